#!/usr/bin/env python3
"""peer_torch_gpt.py -- PyTorch's training step on the model of bench_gpt, for comparison in the same run.

    python3 dev/bench/peer_torch_gpt.py [SECONDS [LAYERS HEADS CHANNELS CONTEXT BATCH VOCABULARY]]

The same model (test/torch_gpt.py: scaled_dot_product_attention, ReLU MLP, tied head), fp32, AdamW, gradients clipped.
Threads: OMP_NUM_THREADS or all. One CSV row on stdout: medians with p10 and p90 of at least 20 steps. Exit status 77
without torch.
"""
import os
import resource
import sys
import time

try:
    import torch
except ImportError:
    print("peer_torch_gpt: torch is not installed (pip install torch)", file=sys.stderr)
    sys.exit(77)
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "test"))
from torch_gpt import Gpt, adamw  # noqa: E402

at_least = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
L, NH, C, T, B, V = (int(x) for x in sys.argv[2:8]) if len(sys.argv) > 7 else (6, 6, 384, 256, 8, 256)
torch.manual_seed(1)
model = Gpt(L, NH, C, T, V)
for p in model.parameters():
    if p.dim() > 1:
        torch.nn.init.normal_(p, std=0.02)
optimizer = adamw(model, 3e-4, 0.1)
tokens = torch.randint(0, V, (B, T))
targets = (tokens * 3 + 1) % V
times = []
while len(times) < 23 or sum(times) < at_least:
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    model.loss(tokens, targets).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    times.append(time.perf_counter() - start)
t = sorted(times[3:])
kib = 1024 if sys.platform != "darwin" else 1 << 20  # macOS counts bytes
n, peak = len(t), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // kib
print("program,layers,heads,channels,context,batch,vocabulary,threads,runs,step_ms,p10,p90,tokens_per_s,peak_mib")
print(f"PyTorch {torch.__version__},{L},{NH},{C},{T},{B},{V},{torch.get_num_threads()},{n},"
      f"{1e3 * t[n // 2]:.2f},{1e3 * t[n // 10]:.2f},"
      f"{1e3 * t[n - 1 - n // 10]:.2f},{B * T / t[n // 2]:.0f},{peak}")
