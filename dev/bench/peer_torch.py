#!/usr/bin/env python3
"""peer_torch.py -- PyTorch's training step on the nets of bench_rescale, for comparison in the same run.

    python3 dev/bench/peer_torch.py [--device cpu] [--seconds S] [--only NET] [--budget S]
    python3 dev/bench/peer_torch.py --device cuda [--seconds S] [--only NET] [--budget S]

The same step: batch 128, SGD. A batch is a slice of a float tensor (the trainer also gathers and normalises its batch
from bytes).
On the CPU fp32, eager; threads: OMP_NUM_THREADS or all; medians with p10 and p90 of at least 20 steps. On CUDA fp32 and
tf32, each eager, as one CUDA graph, compiled and compiled with CUDA graphs (torch_timing.py), by events over 64 steps.
--budget: rows that would begin after so many seconds are left out, and named on stderr.
CSV on stdout. Exit status 77 without torch, or without a GPU when one is asked for.
"""
import argparse
import sys
import time

try:
    import torch
    from torch import nn
except ImportError:
    print("peer_torch: torch is not installed (pip install torch)", file=sys.stderr)
    sys.exit(77)
import torch_timing

NETS = [("784-512x3-10", [784, 512, 512, 512, 10]), ("3072-500x3-10", [3072] + [500] * 3 + [10]),
        ("3072-500x5-10", [3072] + [500] * 5 + [10]), ("3072-500x8-10", [3072] + [500] * 8 + [10]),
        ("784-1000-100-30-100-1000-784", [784, 1000, 100, 30, 100, 1000, 784]), ("2048x5-10", [2048] * 6 + [10])]
WAYS = {"cpu": ["fp32_eager"], "cuda": [p + "_" + m for p in ("fp32", "tf32") for m in ("eager", "graph")]}
COMPILED = [p + "_" + m for p in ("fp32", "tf32") for m in ("compile", "reduce_overhead")]
COMPILED_NETS = ["784-512x3-10", "3072-500x5-10"]


def rows(device):
    """(net, way) in the order of measurement: what has to be compiled comes last."""
    plain = [(net, way) for net in NETS for way in WAYS[device]]
    if device == "cpu":
        return plain
    return plain + [(net, way) for net in NETS if net[0] in COMPILED_NETS for way in COMPILED]


def bench(dims, way, device, at_least):
    layers = []
    for a, b in zip(dims, dims[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    module = nn.Sequential(*layers[:-1]).to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    autoencoder = dims[0] == dims[-1]
    loss_of = nn.MSELoss() if autoencoder else nn.CrossEntropyLoss()
    x = torch.rand(2048, dims[0], device=device)
    y = x if autoencoder else torch.randint(0, dims[-1], (2048,), device=device)
    batches = [(x[i:i + 128], y[i:i + 128]) for i in range(0, 2048, 128)]
    return torch_timing.measure(module, loss_of, optimizer, device, way, batches, at_least)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="", metavar="NET", help="only this net")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="S", help="begin no row after S seconds")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("peer_torch: no GPU", file=sys.stderr)
        sys.exit(77)
    where = torch.cuda.get_device_name() if args.device == "cuda" else "%d threads" % torch.get_num_threads()
    print("# PyTorch %s, %s, batch 128, SGD" % (torch.__version__, where))
    print("net,format,torch_step_ms,torch_p10,torch_p90,runs", flush=True)
    begin = time.perf_counter()
    for (name, dims), way in rows(args.device):
        if args.only and args.only != name:
            continue
        if time.perf_counter() - begin > args.budget:
            print("peer_torch: left out, the time is used up: %s %s" % (name, way), file=sys.stderr)
            continue
        print("%s,%s,%.4f,%.4f,%.4f,%d" % ((name, way) + bench(dims, way, args.device, args.seconds)), flush=True)


if __name__ == "__main__":
    main()
