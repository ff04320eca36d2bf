#!/usr/bin/env python3
"""Carries transformer weights between train_gpt_style and PyTorch, through safetensors files.

    python3 test/pytorch_gpt_roundtrip.py init OUT.safetensors --layers L --heads NH --channels C --context T
            --vocabulary V [--untied] [--seed N]
        writes an initial checkpoint made by PyTorch, to train from with --load
    python3 test/pytorch_gpt_roundtrip.py eval IN.safetensors --heads NH --data TEXT
        loads a --save file into PyTorch modules (every name and shape must fit; all sizes but the number of heads are
        read off the tensors), evaluates it on the validation part of a text as the trainer does (its last tenth, in
        disjoint windows of the context) and prints one line: loss L accuracy A tokens N

The modules are those of test/torch_gpt.py, named as nanoGPT's. float32, CPU. Needs torch and safetensors; without
them it says so and exits with status 77 (skipped).
"""
import argparse
import os
import sys

try:
    import safetensors.torch
    import torch
except ImportError as error:
    print("pytorch_gpt_roundtrip.py: %s; pip install torch safetensors" % error, file=sys.stderr)
    sys.exit(77)
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from torch_gpt import Gpt  # noqa: E402


def initialise(args):
    torch.manual_seed(args.seed)
    model = Gpt(args.layers, args.heads, args.channels, args.context, args.vocabulary, not args.untied)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.02)
    safetensors.torch.save_file(model.state_dict(), args.file)


def evaluate(args):
    tensors = safetensors.torch.load_file(args.file)
    V, C = tensors["transformer.wte.weight"].shape
    T = tensors["transformer.wpe.weight"].shape[0]
    L = sum(name.endswith("ln_1.weight") for name in tensors)
    model = Gpt(L, args.heads, C, T, V, "lm_head.weight" not in tensors)
    model.load_state_dict(tensors, strict=True)
    with open(args.data, "rb") as f:
        text = torch.tensor(list(f.read()))
    val = text[len(text) - max(len(text) // 10, T + 1):]
    n = (len(val) - 1) // T
    x, y = val[:n * T].view(n, T), val[1:n * T + 1].view(n, T)
    with torch.no_grad():
        logits = model.eval()(x)
        loss = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), y.flatten()).item()
    print("loss %.9g accuracy %.9g tokens %d" % (loss, (logits.argmax(2) == y).double().mean().item(), n * T))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="write an initial checkpoint")
    init.add_argument("file")
    for size in ("layers", "heads", "channels", "context", "vocabulary"):
        init.add_argument("--" + size, type=int, required=True)
    init.add_argument("--untied", action="store_true")
    init.add_argument("--seed", type=int, default=0)
    init.set_defaults(run=initialise)
    check = commands.add_parser("eval", help="evaluate a checkpoint")
    check.add_argument("file")
    check.add_argument("--heads", type=int, required=True)
    check.add_argument("--data", required=True)
    check.set_defaults(run=evaluate)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.run(args)


if __name__ == "__main__":
    main()
