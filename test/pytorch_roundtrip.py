#!/usr/bin/env python3
"""Carries MLP weights between the trainers and PyTorch, through safetensors files.

    python3 test/pytorch_roundtrip.py init OUT.safetensors --layers 784,512,10 [--norm batch] [--no-bias] [--seed N]
        writes an initial checkpoint as PyTorch creates it, to train from with --load
    python3 test/pytorch_roundtrip.py eval IN.safetensors --data FOLDER [--split test|train]
            [--task classify|autoencode]
        loads a trainer's --save file into PyTorch modules (every name and shape must fit), evaluates it on IDX data
        and prints one line: loss L accuracy A samples N    (accuracy n/a for an autoencoder)

Modules are named fc1, bn1, fc2, ...: fc1.weight, fc1.bias, bn1.weight, bn1.bias, bn1.running_mean, bn1.running_var,
bn1.num_batches_tracked. The data are MNIST-style files, plain or .gz; classifier inputs are (pixel / 255 - mean) / std
with mean and population std of all training pixels, autoencoder inputs and targets are pixel / 255. float32, CPU.
Needs torch and safetensors; without them it says so and exits with status 77 (skipped).
"""
import argparse
import gzip
import os
import re
import struct
import sys

try:
    import safetensors.torch
    import torch
except ImportError as error:
    print("pytorch_roundtrip.py: %s; pip install torch safetensors" % error, file=sys.stderr)
    sys.exit(77)


class Mlp(torch.nn.Module):
    """fc1 -> [bn1] -> ReLU -> fc2 -> ... -> fcL; biases[l] and norms[l] say what layer l has."""

    def __init__(self, dims, biases, norms):
        super().__init__()
        self.n_layers = len(dims) - 1
        for l in range(self.n_layers):
            self.add_module("fc%d" % (l + 1), torch.nn.Linear(dims[l], dims[l + 1], bias=biases[l]))
            if norms[l]:
                self.add_module("bn%d" % (l + 1), torch.nn.BatchNorm1d(dims[l + 1]))

    def forward(self, x):
        for l in range(1, self.n_layers + 1):
            x = getattr(self, "fc%d" % l)(x)
            if hasattr(self, "bn%d" % l):
                x = getattr(self, "bn%d" % l)(x)
            if l < self.n_layers:
                x = torch.relu(x)
        return x


def load(path):
    """The network in a safetensors file, in evaluation mode; its shape is read off the tensors."""
    tensors = safetensors.torch.load_file(path)
    numbers = sorted(int(m.group(1)) for m in (re.fullmatch(r"fc(\d+)\.weight", name) for name in tensors) if m)
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        sys.exit("%s: expected fc1.weight, fc2.weight, ..., found %s" % (path, ", ".join(sorted(tensors))))
    dims = [tensors["fc1.weight"].shape[1]] + [tensors["fc%d.weight" % l].shape[0] for l in numbers]
    model = Mlp(dims, ["fc%d.bias" % l in tensors for l in numbers], ["bn%d.weight" % l in tensors for l in numbers])
    for name, want in model.state_dict().items():
        if name in tensors and tensors[name].dtype != want.dtype:
            sys.exit("%s: %s is %s, expected %s" % (path, name, tensors[name].dtype, want.dtype))
    model.load_state_dict(tensors, strict=True)
    return model.eval(), dims


def read_idx(folder, name, magic):
    """Bytes of an IDX file as a tensor of its shape."""
    path = os.path.join(folder, name)
    opener = open
    if not os.path.exists(path) and os.path.exists(path + ".gz"):
        path, opener = path + ".gz", gzip.open
    with opener(path, "rb") as f:
        data = f.read()
    rank = magic & 255
    found, *shape = struct.unpack(">%dI" % (1 + rank), data[:4 + 4 * rank])
    if found != magic:
        sys.exit("%s: magic 0x%08x, expected 0x%08x" % (path, found, magic))
    return torch.frombuffer(bytearray(data[4 + 4 * rank:]), dtype=torch.uint8).view(shape)


def evaluate(args):
    """Prints the loss and accuracy of a checkpoint."""
    model, dims = load(args.file)
    prefix = "train" if args.split == "train" else "t10k"
    pixels = read_idx(args.data, prefix + "-images-idx3-ubyte", 0x803).flatten(1).double() / 255
    if pixels.shape[1] != dims[0]:
        sys.exit("%s: takes %d inputs, the images have %d pixels" % (args.file, dims[0], pixels.shape[1]))
    with torch.no_grad():
        if args.task == "autoencode":
            x = pixels.float()
            print("loss %.9g accuracy n/a samples %d" % (torch.nn.functional.mse_loss(model(x), x).item(), len(x)))
            return
        train = read_idx(args.data, "train-images-idx3-ubyte", 0x803).double() / 255
        x = ((pixels - train.mean()) / train.std(unbiased=False)).float()
        labels = read_idx(args.data, prefix + "-labels-idx1-ubyte", 0x801).long()
        logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits.double(), labels).item()
        accuracy = (logits.argmax(1) == labels).double().mean().item()
        print("loss %.9g accuracy %.9g samples %d" % (loss, accuracy, len(x)))


def initialise(args):
    """Writes a checkpoint with PyTorch's default initialisation."""
    dims = [int(d) for d in args.layers.split(",")]
    if len(dims) < 2 or min(dims) < 1:
        sys.exit("--layers %s: expected at least two positive numbers" % args.layers)
    torch.manual_seed(args.seed)
    n = len(dims) - 1
    model = Mlp(dims, [not args.no_bias] * n, [args.norm == "batch" and l + 1 < n for l in range(n)])
    safetensors.torch.save_file(model.state_dict(), args.file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="write an initial checkpoint")
    init.add_argument("file")
    init.add_argument("--layers", required=True)
    init.add_argument("--norm", choices=["none", "batch"], default="none")
    init.add_argument("--no-bias", action="store_true")
    init.add_argument("--seed", type=int, default=0)
    init.set_defaults(run=initialise)
    check = commands.add_parser("eval", help="evaluate a checkpoint")
    check.add_argument("file")
    check.add_argument("--data", required=True)
    check.add_argument("--split", choices=["test", "train"], default="test")
    check.add_argument("--task", choices=["classify", "autoencode"], default="classify")
    check.set_defaults(run=evaluate)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.run(args)


if __name__ == "__main__":
    main()
