#!/usr/bin/env python3
"""peer_torch.py -- PyTorch's training step on the nets of bench_rescale, for comparison in the same run.

    python3 dev/bench/peer_torch.py [SECONDS]      (make bench runs it where torch is installed)

The same step: batch 128, fp32, SGD; a batch is a slice of a float tensor (the trainer also gathers and normalises its batch from
bytes). Threads: OMP_NUM_THREADS or all. CSV on stdout, medians with p10 and p90 of at least 20 runs. Exit status 77 without torch.
"""
import sys
import time

try:
    import torch
    from torch import nn
except ImportError:
    print("peer_torch: torch is not installed (pip install torch)", file=sys.stderr)
    sys.exit(77)

NETS = [("784-512x3-10", [784, 512, 512, 512, 10]), ("3072-500x3-10", [3072] + [500] * 3 + [10]),
        ("3072-500x5-10", [3072] + [500] * 5 + [10]), ("3072-500x8-10", [3072] + [500] * 8 + [10]),
        ("784-1000-100-30-100-1000-784", [784, 1000, 100, 30, 100, 1000, 784]), ("2048x5-10", [2048] * 6 + [10])]


def step_times(dims, at_least):
    layers = []
    for a, b in zip(dims, dims[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    autoencoder = dims[0] == dims[-1]
    loss_of = nn.MSELoss() if autoencoder else nn.CrossEntropyLoss()
    x = torch.rand(2048, dims[0])
    y = x if autoencoder else torch.randint(0, dims[-1], (2048,))
    times = []
    while len(times) < 30 or sum(times) < at_least:
        i = len(times) * 128 % 2048
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss_of(model(x[i:i + 128]), y[i:i + 128]).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return sorted(times[10:])


at_least = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
print(f"# PyTorch {torch.__version__}, {torch.get_num_threads()} threads, batch 128, SGD")
print("net,torch_step_ms,torch_p10,torch_p90,runs")
for name, dims in NETS:
    t = step_times(dims, at_least)
    n = len(t)
    print(f"{name},{1e3 * t[n // 2]:.4f},{1e3 * t[n // 10]:.4f},{1e3 * t[n - 1 - n // 10]:.4f},{n}", flush=True)
