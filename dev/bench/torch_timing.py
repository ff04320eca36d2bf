"""torch_timing.py -- for peer_torch.py and peer_torch_cnn.py: ways to run a training step in PyTorch, and their times.

A way is PRECISION_[LAYOUT_]MODE. Precisions: fp32 (TF32 off), tf32 (TF32 on), bf16 (autocast). Modes: eager; compile
(torch.compile); reduce_overhead (torch.compile with CUDA graphs); graph (the whole eager step as one CUDA graph).
"""
import time

import torch

STEPS_A_SAMPLE = 64  # between two events, as in bench.h
MIN_RUNS = 20
MIN_SAMPLES = 5


def set_precision(way):
    """TF32 on or off, for matrix products and convolutions."""
    tf32 = not way.startswith("fp32")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def training_step(module, loss_of, optimizer, device, way):
    """The function step(x, y) that trains on a batch the given way."""
    forward = module
    if way.endswith("compile"):
        forward = torch.compile(module)
    if way.endswith("reduce_overhead"):
        forward = torch.compile(module, mode="reduce-overhead")
    bf16 = way.startswith("bf16")

    def step(x, y):
        optimizer.zero_grad(set_to_none=True)
        if way.endswith("reduce_overhead"):
            torch.compiler.cudagraph_mark_step_begin()
        # A graph must not keep the casts of weights from one step to the next.
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16, cache_enabled=not way.endswith("graph")):
            loss = loss_of(forward(x), y)
        loss.backward()
        optimizer.step()

    return step


def captured(step, x, y):
    """The step as one CUDA graph: step(x, y) copies the batch to where the graph reads it, then replays it."""
    x_at, y_at = x.clone(), y.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(x_at, y_at)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(x_at, y_at)

    def replay(new_x, new_y):
        x_at.copy_(new_x)
        y_at.copy_(new_y)
        graph.replay()

    return replay


def cuda_times(step, batches, at_least):
    """Times of a step by events around STEPS_A_SAMPLE of them, and how many steps that were."""
    times = []
    while len(times) < MIN_SAMPLES or STEPS_A_SAMPLE * sum(times) < at_least:
        start = torch.cuda.Event(enable_timing=True)
        stop = torch.cuda.Event(enable_timing=True)
        start.record()
        for i in range(STEPS_A_SAMPLE):
            step(*batches[i % len(batches)])
        stop.record()
        stop.synchronize()
        times.append(1e-3 * start.elapsed_time(stop) / STEPS_A_SAMPLE)
    return times, STEPS_A_SAMPLE * len(times)


def cpu_times(step, batches, at_least):
    """Times of single steps, and how many."""
    times = []
    while len(times) < MIN_RUNS or sum(times) < at_least:
        start = time.perf_counter()
        step(*batches[len(times) % len(batches)])
        times.append(time.perf_counter() - start)
    return times, len(times)


def measure(module, loss_of, optimizer, device, way, batches, at_least):
    """Median, p10 and p90 of a training step in milliseconds, and the number of steps; after warm-up."""
    set_precision(way)
    step = training_step(module, loss_of, optimizer, device, way)
    if way.endswith("graph"):
        step = captured(step, *batches[0])
    for i in range(23 if device == "cuda" else 10):
        step(*batches[i % len(batches)])
    if device == "cuda":
        torch.cuda.synchronize()
    times, runs = (cuda_times if device == "cuda" else cpu_times)(step, batches, at_least)
    times.sort()
    n = len(times)
    return 1e3 * times[n // 2], 1e3 * times[n // 10], 1e3 * times[n - 1 - n // 10], runs
