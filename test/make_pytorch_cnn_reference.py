#!/usr/bin/env python3
"""Writes test/reference_pytorch_cnn.csv: training losses of PyTorch that the trainers and ref_cnn.h are compared with.

    python3 test/make_pytorch_cnn_reference.py > test/reference_pytorch_cnn.csv
    python3 test/make_pytorch_cnn_reference.py --double       the same losses in float64, to see what float32 costs

The committed file was made with torch 2.15.0 on a CPU, float32, one thread. Everything is defined by formula
(test/ref_cnn_parity.h has the same formulas in C), so no data or weights are stored.

Data: 32 images of C x H x W pixels (3x32x32 or 1x28x28) and 10 classes, used for training and for evaluation.
    mix(k)            splitmix64's output function of (k + 1) * 0x9E3779B97F4A7C15, 64 bits
    label(i)          mix(1000000 + i) % 10
    pixel(i,c,y,x)    mix(CHW i + HW c + W y + x) % 128                             noise, plus a pattern of 4x4 squares
                      + mix(2000000 + ((C label(i) + c) H/4 + y/4) W/4 + x/4) % 128 an integer in 0..254
Input: (pixel / 255 - mean) / std, mean and population std of each channel over all pixels of all images, in double.

Weights: running index k over the weights and biases of all convolutions and linear layers in the order of
model.parameters() (row-major; BatchNorm is left at PyTorch's defaults and not counted),
U = (mix(3000000 + k) >> 11) / 2^53, a weight is (2U - 1) sqrt(6 / fan_in), a bias (2U - 1) / sqrt(fan_in), rounded to
float32.

The learning rates are small on purpose. Where a ReLU or a max-pool decides the other way in float32, the update of that
step changes by the learning rate times one unit's part of the gradient, and deep nets amplify that.

Training: batches of 8 in order, wrapping at the end of the data, 50 steps. Row `name,s,loss` is the loss of step s =
1..50 in training mode before its update. Row `name,eval,loss` is the loss over all 32 samples in evaluation mode
after step 50 (with label smoothing where training has it). Rows `name,path_sum,x` and `name,path_max,x` are the sum
of diag(G) over all parameters before training, in float64. It is the gradient, with respect to the squared
parameters, of the sum of the logits of the network with squared parameters in evaluation mode on one image of ones: x
-> (x + mean^2) / (var + eps) in place of BatchNorm's normalisation, average pooling with 1/k^2, max-pooling as a sum
over the window or as it is.
"""
import math
import sys

import torch
from torch import nn
from torch.nn import functional

import torch_cnn_models

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
SAMPLES, CLASSES, BATCH, STEPS = 32, 10, 8, 50
CIFAR, GREY = (3, 32, 32), (1, 28, 28)

# name, model, image, width, BatchNorm, projection, label smoothing, optimizer, learning rate, momentum, weight decay
CASES = [
    ("allconv", "allconv", CIFAR, 0.125, False, False, 0.0, "sgd", 1e-3, 0.0, 0.0),
    ("allconv_bn", "allconv", CIFAR, 0.125, True, False, 0.0, "momentum", 5e-4, 0.9, 1e-3),
    ("resnet18", "resnet18", CIFAR, 0.125, True, False, 0.0, "momentum", 5e-5, 0.9, 1e-3),
    ("resnet18_c", "resnet18", CIFAR, 0.125, True, True, 0.0, "adamw", 3e-5, 0.0, 0.01),
    ("resnet18_plain", "resnet18", CIFAR, 0.125, False, False, 0.0, "sgd", 3e-5, 0.0, 0.0),
    ("small", "small", GREY, 0.3, False, False, 0.0, "adamw", 3e-4, 0.0, 0.01),
    ("small_bn", "small", CIFAR, 0.3, True, False, 0.1, "sgd", 0.02, 0.0, 0.0),
]


def mix(k):
    """64 well-mixed bits of the integer k."""
    z = (k + 1) * GOLDEN & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def label(i):
    return mix(1000000 + i) % CLASSES


def pixel(shape, i, c, y, x):
    channels, height, width = shape
    noise = mix(((i * channels + c) * height + y) * width + x) % 128
    square = ((label(i) * channels + c) * (height // 4) + y // 4) * (width // 4) + x // 4
    return noise + mix(2000000 + square) % 128


def images(shape):
    """All images, normalised, in float64."""
    channels, height, width = shape
    pixels = [[[[pixel(shape, i, c, y, x) for x in range(width)] for y in range(height)] for c in range(channels)]
              for i in range(SAMPLES)]
    scaled = torch.tensor(pixels, dtype=torch.float64) / 255
    mean = scaled.mean(dim=(0, 2, 3), keepdim=True)
    return (scaled - mean) / ((scaled - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True).sqrt()


class SumPool2d(nn.Module):
    """Sum over every window inside the map: max-pooling of path sums."""

    def __init__(self, kernel, stride, padding):
        super().__init__()
        self.arguments = (kernel, stride, padding)

    def forward(self, x):
        kernel, stride, padding = self.arguments
        return functional.avg_pool2d(x, kernel, stride, padding, count_include_pad=True) * kernel * kernel


class PathPool(nn.Module):
    """Average over the map with squared coefficients."""

    def forward(self, x):
        return x.mean(dim=(2, 3), keepdim=True) / (x.shape[2] * x.shape[3])


def initial(case):
    """The network of a case with its initial weights."""
    _, model, shape, width, norm, projection = case[:6]
    net = torch_cnn_models.build(model, shape, CLASSES, width, norm, projection=projection)
    k = 0
    for module in net.modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        fan_in = module.weight[0].numel()
        for tensor, scale in ((module.weight, math.sqrt(6 / fan_in)), (module.bias, 1 / math.sqrt(fan_in))):
            if tensor is None:
                continue
            values = [(2 * ((mix(3000000 + k + j) >> 11) / float(1 << 53)) - 1) * scale for j in range(tensor.numel())]
            k += tensor.numel()
            tensor.data = torch.tensor(values, dtype=torch.float64).to(torch.float32).view(tensor.shape)
    return net


def path_sum(net, shape, pool):
    """Sum of diag(G), see above; the network is changed and not used afterwards."""
    net = net.to(torch.float64).eval()
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d) and pool == "sum":
                setattr(module, name, SumPool2d(child.kernel_size, child.stride, child.padding))
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, PathPool())
            elif isinstance(child, nn.BatchNorm2d):
                variance = child.running_var + child.eps
                child.running_mean, child.running_var, child.eps = -child.running_mean ** 2, variance ** 2, 0.0
    for tensor in net.parameters():
        tensor.data = tensor.data ** 2
    net(torch.ones((1,) + shape, dtype=torch.float64)).sum().backward()
    return sum(tensor.grad.sum().item() for tensor in net.parameters())


def run(case, dtype):
    """Trains one case and prints its rows."""
    name, _, shape, _, _, _, smoothing, optimizer, lr, momentum, decay = case
    for pool in ("sum", "max"):
        print("%s,path_%s,%.9g" % (name, pool, path_sum(initial(case), shape, pool)))
    x = images(shape).to(torch.float32).to(dtype)
    labels = torch.tensor([label(i) for i in range(SAMPLES)])
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
    model = initial(case).to(dtype)
    if optimizer == "adamw":
        opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    else:
        opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    model.train()
    for step in range(STEPS):
        first = step * BATCH % SAMPLES
        loss = criterion(model(x[first:first + BATCH]), labels[first:first + BATCH])
        print("%s,%d,%.9g" % (name, step + 1, loss.item()))
        opt.zero_grad()
        loss.backward()
        opt.step()
    model.eval()
    with torch.no_grad():
        print("%s,eval,%.9g" % (name, criterion(model(x), labels).item()))


def main():
    torch.set_num_threads(1)
    print("name,step,loss")
    for case in CASES:
        run(case, torch.float64 if sys.argv[1:] == ["--double"] else torch.float32)


if __name__ == "__main__":
    main()
