"""The convolutional model families as plain PyTorch modules, with the tensor names that the trainer's checkpoints have.

build(model, shape, classes, ...) makes allconv, resnet18 or small for images of shape (C, H, W); `width` multiplies the
channel counts. resnet18 is torchvision's for small images: 3x3 stem with stride 1, no stem pool. Used by
make_pytorch_cnn_reference.py, pytorch_cnn_roundtrip.py and dev/bench/peer_torch_cnn.py.
"""
import math

import torch
from torch import nn


def scaled(width, channels):
    """A channel count times the width, rounded, at least 1."""
    return max(1, math.floor(width * channels + 0.5))


class AllConv(nn.Module):
    """conv1 conv2 conv3 [bn1] pool conv4 conv5 conv6 [bn2] pool conv7 conv8 conv9 average; ReLU after all but conv9."""

    def __init__(self, in_channels, classes, width, norm, bias):
        super().__init__()
        channels = [in_channels] + [scaled(width, c) for c in (128, 128, 128, 256, 256, 256, 320, 320)] + [classes]
        for k in range(1, 10):
            kernel = 3 if k < 8 else 1
            conv = nn.Conv2d(channels[k - 1], channels[k], kernel, padding=kernel // 2, bias=bias)
            self.add_module("conv%d" % k, conv)
            if norm and k in (3, 6):
                self.add_module("bn%d" % (k // 3), nn.BatchNorm2d(channels[k]))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.norm = norm

    def forward(self, x):
        for k in range(1, 9):
            x = getattr(self, "conv%d" % k)(x)
            if self.norm and k in (3, 6):
                x = getattr(self, "bn%d" % (k // 3))(x)
            x = torch.relu(x)
            if k in (3, 6):
                x = self.pool(x)
        return self.avgpool(self.conv9(x)).flatten(1)


class BasicBlock(nn.Module):
    """conv1 [bn1] ReLU conv2 [bn2], plus the shortcut, ReLU."""

    def __init__(self, n_in, n_out, stride, norm, bias, projection):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=bias)
        if norm:
            self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=bias)
        if norm:
            self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out or projection:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=bias))
            if norm:
                self.downsample.append(nn.BatchNorm2d(n_out))
        self.norm = norm

    def forward(self, x):
        y = self.conv1(x)
        y = torch.relu(self.bn1(y) if self.norm else y)
        y = self.conv2(y)
        y = self.bn2(y) if self.norm else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """conv1 [bn1] ReLU, layer1 .. layer4 of two BasicBlocks, average, fc. Convolutions: biases only without norm."""

    def __init__(self, in_channels, classes, width, norm, bias, fc_bias, projection):
        super().__init__()
        n = scaled(width, 64)
        bias = bias and not norm
        self.conv1 = nn.Conv2d(in_channels, n, 3, 1, 1, bias=bias)
        if norm:
            self.bn1 = nn.BatchNorm2d(n)
        for stage in range(1, 5):
            n_out = scaled(width, 32 << stage)
            self.add_module("layer%d" % stage, nn.Sequential(
                BasicBlock(n, n_out, 2 if stage > 1 else 1, norm, bias, projection),
                BasicBlock(n_out, n_out, 1, norm, bias, projection)))
            n = n_out
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(n, classes, bias=fc_bias)
        self.norm = norm

    def forward(self, x):
        x = self.conv1(x)
        x = torch.relu(self.bn1(x) if self.norm else x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class Small(nn.Module):
    """conv1 [bn1] ReLU pool conv2 [bn2] ReLU pool conv3 [bn3] ReLU flatten fc."""

    def __init__(self, shape, classes, width, norm, bias, fc_bias):
        super().__init__()
        channels = [shape[0]] + [scaled(width, c) for c in (32, 64, 64)]
        for k in range(1, 4):
            self.add_module("conv%d" % k, nn.Conv2d(channels[k - 1], channels[k], 3, padding=1, bias=bias))
            if norm:
                self.add_module("bn%d" % k, nn.BatchNorm2d(channels[k]))
        self.fc = nn.Linear(channels[3] * (shape[1] // 4) * (shape[2] // 4), classes, bias=fc_bias)
        self.pool = nn.MaxPool2d(2, 2)
        self.norm = norm

    def forward(self, x):
        for k in range(1, 4):
            x = getattr(self, "conv%d" % k)(x)
            x = torch.relu(getattr(self, "bn%d" % k)(x) if self.norm else x)
            if k < 3:
                x = self.pool(x)
        return self.fc(x.flatten(1))


def build(model, shape, classes, width=1.0, norm=False, bias=True, fc_bias=True, projection=False):
    """A network with PyTorch's default initialisation."""
    if model == "allconv":
        return AllConv(shape[0], classes, width, norm, bias)
    if model == "resnet18":
        return ResNet18(shape[0], classes, width, norm, bias, fc_bias, projection)
    if model == "small":
        return Small(shape, classes, width, norm, bias, fc_bias)
    raise ValueError("model %s: expected allconv, resnet18 or small" % model)
