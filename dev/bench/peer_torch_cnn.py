#!/usr/bin/env python3
"""peer_torch_cnn.py -- PyTorch's training step on the nets of train_cnn, for comparison in the same run.

    python3 dev/bench/peer_torch_cnn.py [--seconds S] [--only NAME] [--device cpu]
    python3 dev/bench/peer_torch_cnn.py --device cuda [--seconds S] [--only NAME]

The same step: forward, cross-entropy, backward, SGD with momentum 0.9, PyTorch's default initialisation, images and labels already
on the device. On the CPU fp32, batch 32 (small: 128), in PyTorch's default memory format (nchw) and in channels_last; threads:
OMP_NUM_THREADS or all. On CUDA batch 512: fp32 with TF32 matrix products, and bf16 autocast, both channels_last, eager and
compiled. CSV on stdout: medians with p10 and p90 of at least 20 steps and S seconds (default 1), after warm-up. torch_peak_mib is the
largest resident size of a process that runs this net alone (ru_maxrss; the remark says how much of it torch itself is), on CUDA
the allocator's peak. Exit status 77 without torch, or without a GPU when one is asked for.
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

# name, model, image, BatchNorm, batch on a CPU
NETS = [("allconv", "allconv", (3, 32, 32), False, 32), ("allconv-bn", "allconv", (3, 32, 32), True, 32),
        ("resnet18", "resnet18", (3, 32, 32), True, 32), ("small", "small", (1, 28, 28), False, 128)]
CUDA_BATCH = 512
FORMATS = {"cpu": ["nchw", "channels_last"],
           "cuda": ["tf32_channels_last", "tf32_channels_last_compile", "bf16_channels_last", "bf16_channels_last_compile"]}
WARM_UP = 3
MIN_RUNS = 20


def peak_mib():
    kib = 1024 if sys.platform != "darwin" else 1 << 20  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kib


def step_times(net, how, device, at_least):
    """Sorted times of single steps, and the batch."""
    _, model, shape, norm, batch = net
    batch = CUDA_BATCH if device == "cuda" else batch
    layout = torch.channels_last if "channels_last" in how else torch.contiguous_format
    torch.manual_seed(0)
    module = torch_cnn_models.build(model, shape, 10, norm=norm).to(device).to(memory_format=layout)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()
    x = torch.randn(4, batch, *shape, device=device)
    batches = [part.contiguous(memory_format=layout) for part in x]
    labels = torch.randint(0, 10, (4, batch), device=device)
    forward = torch.compile(module) if how.endswith("compile") else module

    def step(i):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=how.startswith("bf16")):
            loss = loss_of(forward(batches[i % 4]), labels[i % 4])
        loss.backward()
        optimizer.step()

    def finish():
        if device == "cuda":
            torch.cuda.synchronize()

    for i in range(WARM_UP + (20 if device == "cuda" else 0)):
        step(i)
    finish()
    times = []
    while len(times) < MIN_RUNS or sum(times) < at_least:
        start = time.perf_counter()
        step(len(times))
        finish()
        times.append(time.perf_counter() - start)
    return sorted(times), batch


def run_one(net, how, device, at_least):
    """Measures one net in this process and prints its row."""
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    t, batch = step_times(net, how, device, at_least)
    n = len(t)
    peak = torch.cuda.max_memory_allocated() / 2 ** 20 if device == "cuda" else peak_mib()
    median, p10, p90 = 1e3 * t[n // 2], 1e3 * t[n // 10], 1e3 * t[n - 1 - n // 10]
    print("%s,%d,%s,%.3f,%.3f,%.3f,%d,%.0f" % (net[0], batch, how, median, p10, p90, n, peak))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="", metavar="NAME", help="only the net NAME")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # NET:FORMAT, measured in this process
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("peer_torch_cnn: no GPU", file=sys.stderr)
        sys.exit(77)
    if args.one:
        name, how = args.one.split(":")
        run_one(next(net for net in NETS if net[0] == name), how, args.device, args.seconds)
        return
    if args.device == "cuda":
        print("# PyTorch %s, %s, SGD momentum 0.9" % (torch.__version__, torch.cuda.get_device_name()))
    else:
        print("# PyTorch %s, %d threads, SGD momentum 0.9; a process that only imports torch: %.0f MiB"
              % (torch.__version__, torch.get_num_threads(), peak_mib()))
    print("net,batch,format,torch_step_ms,torch_p10,torch_p90,runs,torch_peak_mib", flush=True)
    failed = False
    for net in NETS:
        if args.only and net[0] != args.only:
            continue
        for how in FORMATS[args.device]:
            command = [sys.executable, os.path.abspath(__file__), "--device", args.device, "--seconds", str(args.seconds),
                       "--one", "%s:%s" % (net[0], how)]
            failed |= subprocess.run(command).returncode != 0
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
