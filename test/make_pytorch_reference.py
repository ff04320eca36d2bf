#!/usr/bin/env python3
"""Writes test/reference_pytorch.csv: training losses of PyTorch that the trainers and ref_mlp.h are compared with.

    python3 test/make_pytorch_reference.py > test/reference_pytorch.csv

The committed file was made with torch 2.15.0 on a CPU, float32, one thread. Everything is defined by
formula (test/ref_parity.h has the same formulas in C), so no data or weights are stored.

Data: 64 grey images of 6x6 pixels and 10 classes, used for training and for evaluation.
    mix(k)       splitmix64's output function of (k + 1) * 0x9E3779B97F4A7C15, 64 bits
    label(i)     mix(1000000 + i) % 10
    pixel(i, j)  mix(36 i + j) % 128 + mix(2000000 + 36 label(i) + j) % 128        an integer in 0..254
Classifier input: (pixel / 255 - mean) / std, mean and population std over all pixels of all images in double.
Autoencoder input and target: pixel / 255.

Weights: running index k over fc1.weight, fc1.bias, fc2.weight, ... (row-major [out][in]; BatchNorm is left at
PyTorch's defaults and not counted), h = (k + 1) * 0x9E3779B97F4A7C15 modulo 2^64, U = (h >> 11) / 2^53,
value = (2U - 1) / sqrt(fan_in), rounded to float32.

Training: batches of 16 in order, wrapping at the end of the data, 100 steps. Row `name,s,loss` is the loss of step
s = 1..100 in training mode before its update; row `name,eval,loss` the loss over all 64 samples in evaluation mode
after step 100.
"""
import math

import torch

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
SAMPLES, SIDE, CLASSES, BATCH, STEPS = 64, 6, 10, 16, 100
PIXELS = SIDE * SIDE

# name, dims, BatchNorm, task, optimizer, learning rate, momentum, weight decay
CASES = []
for norm in (False, True):
    suffix = "_bn" if norm else ""
    dims = [PIXELS, 32, 24, CLASSES]
    CASES += [("sgd" + suffix, dims, norm, "classify", "sgd", 0.05, 0.0, 0.0),
              ("momentum" + suffix, dims, norm, "classify", "momentum", 0.02, 0.9, 1e-3),
              ("adamw" + suffix, dims, norm, "classify", "adamw", 1e-3, 0.0, 0.01)]
CASES.append(("autoencoder", [PIXELS, 16, 4, 16, PIXELS], False, "autoencode", "momentum", 0.02, 0.9, 1e-3))


def mix(k):
    """64 well-mixed bits of the integer k."""
    z = (k + 1) * GOLDEN & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def label(i):
    return mix(1000000 + i) % CLASSES


def pixel(i, j):
    return mix(PIXELS * i + j) % 128 + mix(2000000 + PIXELS * label(i) + j) % 128


class Mlp(torch.nn.Module):
    """fc1 -> [bn1] -> ReLU -> fc2 -> ... -> fcL."""

    def __init__(self, dims, norm):
        super().__init__()
        self.n_layers = len(dims) - 1
        for l in range(1, len(dims)):
            self.add_module("fc%d" % l, torch.nn.Linear(dims[l - 1], dims[l]))
            if norm and l < self.n_layers:
                self.add_module("bn%d" % l, torch.nn.BatchNorm1d(dims[l]))
        k = 0
        for l in range(1, len(dims)):
            layer = getattr(self, "fc%d" % l)
            for tensor in (layer.weight, layer.bias):
                values = []
                for _ in range(tensor.numel()):
                    u = (((k + 1) * GOLDEN & MASK) >> 11) / float(1 << 53)
                    values.append((2 * u - 1) / math.sqrt(dims[l - 1]))
                    k += 1
                tensor.data = torch.tensor(values, dtype=torch.float64).to(torch.float32).view(tensor.shape)

    def forward(self, x):
        for l in range(1, self.n_layers + 1):
            x = getattr(self, "fc%d" % l)(x)
            if l < self.n_layers:
                bn = getattr(self, "bn%d" % l, None)
                x = torch.relu(bn(x) if bn is not None else x)
        return x


def run(case):
    """Trains one case and prints its rows."""
    name, dims, norm, task, optimizer, lr, momentum, decay = case
    pixels = torch.tensor([[pixel(i, j) for j in range(PIXELS)] for i in range(SAMPLES)], dtype=torch.float64)
    labels = torch.tensor([label(i) for i in range(SAMPLES)])
    x = pixels / 255
    if task == "classify":
        x = (x - x.mean()) / x.std(unbiased=False)
    x = x.to(torch.float32)
    target = labels if task == "classify" else x
    criterion = torch.nn.CrossEntropyLoss() if task == "classify" else torch.nn.MSELoss()
    model = Mlp(dims, norm)
    if optimizer == "adamw":
        opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    else:
        opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    model.train()
    for step in range(STEPS):
        first = step * BATCH % SAMPLES
        loss = criterion(model(x[first:first + BATCH]), target[first:first + BATCH])
        print("%s,%d,%.9g" % (name, step + 1, loss.item()))
        opt.zero_grad()
        loss.backward()
        opt.step()
    model.eval()
    with torch.no_grad():
        print("%s,eval,%.9g" % (name, criterion(model(x), target).item()))


def main():
    torch.set_num_threads(1)
    print("name,step,loss")
    for case in CASES:
        run(case)


if __name__ == "__main__":
    main()
