#!/usr/bin/env python3
"""Writes test/reference_pytorch_gpt.csv: training losses of PyTorch that train_gpt_style.c is compared with.

    python3 test/make_pytorch_gpt_reference.py > test/reference_pytorch_gpt.csv

The committed file was made with torch 2.15.0 on a CPU, float32, one thread. Everything is defined by formula
(test/test_gpt.c has the same formulas in C), so no data or weights are stored.

    mix(k)      splitmix64's output function of (k + 1) * 0x9E3779B97F4A7C15, 64 bits
    token(0) = 0, token(i) = mix(i) % V where mix(i) % 5 = 0, else (5 token(i - 1) + 3) % V
    weights     running index k over the parameters in the order of the trainer's files: wte, wpe, layers, ln_f,
                lm_head. U = (mix(k) >> 11) / 2^53, s = 2U - 1; a matrix [rows][cols] has s / sqrt(cols), a
                gain 1 + s / 10, a bias s / 10, rounded to float32
Model: 2 layers, 3 heads, 24 channels, context 16, V = 37. Batches of 4 windows of 16 tokens in order, window w
starting at token 16 w of 800 + 1 tokens. 50 steps of AdamW, betas 0.9 and 0.999, weight decay 0.1 on matrices,
gradients clipped to norm 1. Row `name,s,loss` is the loss of step s = 1..50 before its update; `name,eval,loss` the
mean loss over all 50 windows after step 50.
"""
import math
import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from torch_gpt import Gpt, adamw  # noqa: E402

MASK = (1 << 64) - 1
LAYERS, HEADS, CHANNELS, CONTEXT, V, BATCH, WINDOWS, STEPS = 2, 3, 24, 16, 37, 4, 50, 50
CASES = [("tied", True, 2e-3), ("untied", False, 4e-3)]


def mix(k):
    """64 well-mixed bits of the integer k."""
    z = (k + 1) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def tokens():
    t = [0]
    for i in range(1, WINDOWS * CONTEXT + 1):
        t.append(mix(i) % V if mix(i) % 5 == 0 else (5 * t[-1] + 3) % V)
    return torch.tensor(t)


def initialise(model):
    k = 0
    for name, p in model.named_parameters():
        values = []
        for _ in range(p.numel()):
            s = 2 * ((mix(k) >> 11) / float(1 << 53)) - 1
            k += 1
            values.append(s / math.sqrt(p.shape[1]) if p.dim() == 2 else (name.endswith("weight")) + s / 10)
        p.data = torch.tensor(values, dtype=torch.float64).to(torch.float32).view(p.shape)


def main():
    torch.set_num_threads(1)
    data = tokens()
    x, y = data[:-1].view(WINDOWS, CONTEXT), data[1:].view(WINDOWS, CONTEXT)
    print("name,step,loss")
    for name, tied, lr in CASES:
        model = Gpt(LAYERS, HEADS, CHANNELS, CONTEXT, V, tied)
        initialise(model)
        optimizer = adamw(model, lr, 0.1)
        for step in range(STEPS):
            rows = [(step * BATCH + b) % WINDOWS for b in range(BATCH)]
            loss = model.loss(x[rows], y[rows])
            print("%s,%d,%.9g" % (name, step + 1, loss.item()))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            print("%s,eval,%.9g" % (name, model.loss(x, y).item()))


if __name__ == "__main__":
    main()
