#!/usr/bin/env python3
"""peer_torch_cnn.py -- PyTorch's training step on the nets of train_cnn, for comparison in the same run.

    python3 dev/bench/peer_torch_cnn.py [--seconds S] [--only NAME] [--device cpu]
    python3 dev/bench/peer_torch_cnn.py --device cuda [--seconds S] [--only NAME]

The same step: forward, cross-entropy, backward, SGD with momentum 0.9, PyTorch's default initialisation, images and
labels already on the device.
On the CPU fp32, batch 32 (small: 128), in PyTorch's default memory format (nchw) and in channels_last; threads:
OMP_NUM_THREADS or all. On CUDA batch 512, channels_last: fp32 (TF32 off), tf32 and bf16 autocast, each eager and as one
CUDA graph; allconv and resnet18 also compiled and compiled with CUDA graphs (torch_timing.py).
Times after warm-up, median, p10 and p90: on the CPU of at least 20 steps and S seconds (default 1), on CUDA by events
over 64 steps. torch_peak_mib is the largest resident size of a process that measures this row alone (ru_maxrss; the
remark says how much of it torch itself is), on CUDA the allocator's peak.
--budget S: rows that would begin after S seconds are left out, and named on stderr. Exit status 77 without torch, or
without a GPU when one is asked for.
"""
import argparse
import os
import resource
import subprocess
import sys
import time

try:
    import torch
    from torch import nn
except ImportError:
    print("peer_torch_cnn: torch is not installed (pip install torch)", file=sys.stderr)
    sys.exit(77)

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "test"))
import torch_cnn_models  # noqa: E402
import torch_timing  # noqa: E402

# name, model, image, BatchNorm, batch on a CPU
NETS = [("allconv", "allconv", (3, 32, 32), False, 32), ("allconv-bn", "allconv", (3, 32, 32), True, 32),
        ("resnet18", "resnet18", (3, 32, 32), True, 32), ("small", "small", (1, 28, 28), False, 128)]
CUDA_BATCH = 512
WAYS = {"cpu": ["fp32_nchw_eager", "fp32_channels_last_eager"],
        "cuda": ["%s_channels_last_%s" % (p, m) for p in ("tf32", "bf16", "fp32") for m in ("eager", "graph")]}
FORMAT_NAMES = {"fp32_nchw_eager": "nchw", "fp32_channels_last_eager": "channels_last"}  # in the CSV; on the CPU
COMPILED = ["%s_channels_last_%s" % (p, m) for p in ("bf16", "tf32") for m in ("compile", "reduce_overhead")]
COMPILED_NETS = ["resnet18", "allconv"]


def rows(device):
    """(net, way) in the order of measurement: what has to be compiled comes last."""
    plain = [(net, way) for net in NETS for way in WAYS[device]]
    if device == "cpu":
        return plain
    return plain + [(net, way) for way in COMPILED for net in NETS if net[0] in COMPILED_NETS]


def peak_mib():
    kib = 1024 if sys.platform != "darwin" else 1 << 20  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kib


def run_one(net, way, device, at_least):
    """Measures one net in this process and prints its row."""
    name, model, shape, norm, batch = net
    batch = CUDA_BATCH if device == "cuda" else batch
    layout = torch.channels_last if "channels_last" in way else torch.contiguous_format
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = device == "cuda"
    module = torch_cnn_models.build(model, shape, 10, norm=norm).to(device).to(memory_format=layout)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(4, batch, *shape, device=device)
    labels = torch.randint(0, 10, (4, batch), device=device)
    batches = [(images[i].contiguous(memory_format=layout), labels[i]) for i in range(4)]
    times = torch_timing.measure(module, nn.CrossEntropyLoss(), optimizer, device, way, batches, at_least)
    peak = torch.cuda.max_memory_allocated() / 2 ** 20 if device == "cuda" else peak_mib()
    print("%s,%d,%s,%.3f,%.3f,%.3f,%d,%.0f" % ((name, batch, FORMAT_NAMES.get(way, way)) + times + (peak,)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="", metavar="NAME", help="only the net NAME")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="S", help="begin no row after S seconds")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # NET:FORMAT, measured in this process
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("peer_torch_cnn: no GPU", file=sys.stderr)
        sys.exit(77)
    if args.one:
        name, way = args.one.split(":")
        run_one(next(net for net in NETS if net[0] == name), way, args.device, args.seconds)
        return
    if args.device == "cuda":
        print("# PyTorch %s, %s, SGD momentum 0.9" % (torch.__version__, torch.cuda.get_device_name()))
    else:
        print("# PyTorch %s, %d threads, SGD momentum 0.9; a process that only imports torch: %.0f MiB"
              % (torch.__version__, torch.get_num_threads(), peak_mib()))
    print("net,batch,format,torch_step_ms,torch_p10,torch_p90,runs,torch_peak_mib", flush=True)
    failed = False
    begin = time.perf_counter()
    for net, way in rows(args.device):
        if args.only and net[0] != args.only:
            continue
        if time.perf_counter() - begin > args.budget:
            print("peer_torch_cnn: left out, the time is used up: %s %s" % (net[0], way), file=sys.stderr)
            continue
        command = [sys.executable, os.path.abspath(__file__), "--device", args.device, "--seconds", str(args.seconds),
                   "--one", "%s:%s" % (net[0], way)]
        failed |= subprocess.run(command).returncode != 0
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
