#!/usr/bin/env python3
"""Carries weights of convolutional nets between train_cnn and PyTorch, through safetensors files.

    python3 test/pytorch_cnn_roundtrip.py check TRAINER [-k NAME]
        runs the trainer (--steps 0, no training) on small files of random images and checks, for every model and its
        options: its own initial weights load into plain torch.nn modules; PyTorch's weights come back bit for bit;
        after --rescale pathcond the modules compute the same outputs, to 1e-5, in evaluation and in training mode;
        the trainer's test loss and accuracy are PyTorch's. Last line: N passed, N failed, N skipped. -k runs the
        cases with NAME in their name
    python3 test/pytorch_cnn_roundtrip.py init OUT.safetensors --model M --shape 3,32,32 [options]
        writes an initial checkpoint as PyTorch creates it, to train from with --load
    python3 test/pytorch_cnn_roundtrip.py eval IN.safetensors --model M --data FOLDER [options]
        loads a trainer's --save file into PyTorch modules (every name and shape must fit), evaluates it on the test set
        of a folder with IDX or CIFAR-10 files and prints one line: loss L accuracy A samples N

Options as the trainer's: --norm none|batch --no-bias --shortcut identity|projection --width X --classes N (init).
Modules are in test/torch_cnn_models.py; where torchvision is installed, ResNet-18 at full width is also loaded into
torchvision's. Inputs are (pixel / 255 - mean) / std with mean and population std per channel of all training pixels.
float32, CPU. Needs torch and safetensors; without them it says so and exits with status 77 (skipped).
"""
import argparse
import gzip
import json
import os
import struct
import subprocess
import sys
import tempfile

try:
    import safetensors.torch
    import torch
    from torch import nn
    import torch_cnn_models
except ImportError as error:
    print("pytorch_cnn_roundtrip.py: %s; pip install torch safetensors" % error, file=sys.stderr)
    sys.exit(77)

try:
    import torchvision
except ImportError:
    torchvision = None

CIFAR, GREY = (3, 32, 32), (1, 28, 28)
CLASSES = 10

# name, model, image, norm, no-bias, shortcut, width; odd channel counts where kernels could mind
CASES = [
    ("allconv", "allconv", CIFAR, "none", False, "identity", 0.25),
    ("allconv-norm", "allconv", CIFAR, "batch", False, "identity", 0.2),
    ("allconv-no-bias", "allconv", CIFAR, "none", True, "identity", 0.125),
    ("allconv-norm-no-bias", "allconv", CIFAR, "batch", True, "identity", 0.125),
    ("allconv-full", "allconv", CIFAR, "none", False, "identity", 1.0),
    ("resnet18", "resnet18", CIFAR, "batch", False, "identity", 0.25),
    ("resnet18-projection", "resnet18", CIFAR, "batch", False, "projection", 0.2),
    ("resnet18-none", "resnet18", CIFAR, "none", False, "identity", 0.125),
    ("resnet18-none-no-bias", "resnet18", CIFAR, "none", True, "projection", 0.125),
    ("resnet18-grey", "resnet18", GREY, "batch", False, "identity", 0.125),
    ("resnet18-full", "resnet18", CIFAR, "batch", False, "identity", 1.0),
    ("small", "small", GREY, "none", False, "identity", 1.0),
    ("small-norm", "small", CIFAR, "batch", False, "identity", 0.3),
    ("small-no-bias", "small", GREY, "none", True, "identity", 0.5),
]


# ------------------------------------------------------------------------------------------------------------- networks

def build(model, shape, classes, norm, no_bias, shortcut, width, fc_bias=True):
    projection = shortcut == "projection"
    return torch_cnn_models.build(model, shape, classes, width, norm == "batch", not no_bias, fc_bias, projection)


def load(path, model, shape, classes, norm, no_bias, shortcut, width):
    """The network in a safetensors file; every name, shape and type must fit. With no_bias fc.bias may be missing."""
    tensors = safetensors.torch.load_file(path)
    net = build(model, shape, classes, norm, no_bias, shortcut, width, not no_bias or "fc.bias" in tensors)
    for name, want in net.state_dict().items():
        if name in tensors and tensors[name].dtype != want.dtype:
            raise ValueError("%s: %s is %s, expected %s" % (path, name, tensors[name].dtype, want.dtype))
    try:
        net.load_state_dict(tensors, strict=True)
    except RuntimeError as problem:
        raise ValueError("%s: %s" % (path, " ".join(str(problem).split())))
    return net


def randomise(net):
    """Weights large enough for the outputs to depend on the image; BatchNorm away from its defaults."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(7)


def in_torchvision(net):
    """The same weights in torchvision's ResNet-18 with a stem for small images."""
    twin = torchvision.models.resnet18(num_classes=net.fc.out_features)
    twin.conv1 = nn.Conv2d(net.conv1.in_channels, 64, 3, 1, 1, bias=False)
    twin.maxpool = nn.Identity()
    twin.load_state_dict(net.state_dict(), strict=True)
    return twin


def outputs(net, x, training):
    """Logits; in training mode with batch statistics, which leaves the running ones as they are."""
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    net.train(training)
    with torch.no_grad():
        y = net(x)
    net.load_state_dict(kept)
    return y


def distance(a, b):
    """Largest difference relative to the largest output; NaN when something is not finite."""
    return ((a - b).abs().max() / b.abs().max()).item()


# ----------------------------------------------------------------------------------------------------------------- data

def read(folder, name):
    path = os.path.join(folder, name)
    if os.path.exists(path):
        with open(path, "rb") as f:
            return f.read()
    with gzip.open(path + ".gz", "rb") as f:
        return f.read()


def read_idx(folder, name, magic):
    """Bytes of an IDX file as a tensor of its shape."""
    data = read(folder, name)
    rank = magic & 255
    found, *shape = struct.unpack(">%dI" % (1 + rank), data[:4 + 4 * rank])
    if found != magic:
        sys.exit("%s: magic 0x%08x, expected 0x%08x" % (name, found, magic))
    return torch.frombuffer(bytearray(data[4 + 4 * rank:]), dtype=torch.uint8).view(shape)


def read_set(folder, test):
    """Pixels [n][C][H][W] and labels of the training or the test set of a folder."""
    if any(os.path.exists(os.path.join(folder, "test_batch.bin" + end)) for end in ("", ".gz")):
        names = ["test_batch.bin"] if test else ["data_batch_%d.bin" % k for k in range(1, 6)]
        data = bytearray(b"".join(read(folder, name) for name in names))
        records = torch.frombuffer(data, dtype=torch.uint8).view(-1, 3073)
        return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()
    prefix = "t10k" if test else "train"
    return (read_idx(folder, prefix + "-images-idx3-ubyte", 0x803).unsqueeze(1),
            read_idx(folder, prefix + "-labels-idx1-ubyte", 0x801).long())


def test_inputs(folder):
    """Normalised test images and labels."""
    train = read_set(folder, False)[0].double() / 255
    pixels, labels = read_set(folder, True)
    std, mean = torch.std_mean(train, dim=(0, 2, 3), correction=0, keepdim=True)
    return ((pixels.double() / 255 - mean) / std).float(), labels


def write_set(folder, shape, generator):
    """A data set of random images: 40 for training, 24 for testing."""
    os.makedirs(folder)
    for test, n in ((False, 40), (True, 24)):
        pixels = torch.randint(0, 256, (n,) + shape, dtype=torch.uint8, generator=generator)
        labels = torch.arange(n).remainder(CLASSES).to(torch.uint8)
        if shape == CIFAR:
            records = torch.cat([labels.view(n, 1), pixels.view(n, -1)], dim=1)
            parts = [("test_batch.bin", records)] if test else \
                [("data_batch_%d.bin" % (k + 1), part) for k, part in enumerate(records.chunk(5))]
            for name, part in parts:
                with open(os.path.join(folder, name), "wb") as f:
                    f.write(bytes(part.flatten().tolist()))
            continue
        prefix = os.path.join(folder, "t10k" if test else "train")
        with open(prefix + "-images-idx3-ubyte", "wb") as f:
            f.write(struct.pack(">4I", 0x803, n, shape[1], shape[2]) + bytes(pixels.flatten().tolist()))
        with open(prefix + "-labels-idx1-ubyte", "wb") as f:
            f.write(struct.pack(">2I", 0x801, n) + bytes(labels.tolist()))


def loss_and_accuracy(net, x, labels):
    net.eval()
    with torch.no_grad():
        logits = net(x)
    loss = nn.functional.cross_entropy(logits.double(), labels).item()
    return loss, (logits.argmax(1) == labels).double().mean().item()


# ---------------------------------------------------------------------------------------------------------------- check

class Checks:
    """Counts checks; a failure prints what was expected and what was found."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def check(self, ok, what, found=""):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print("FAIL %s %s" % (what, found), flush=True)
        return ok


def check_case(checks, case, trainer, folder, work):
    """One network, there and back."""
    name, model, shape, norm, no_bias, shortcut, width = case
    options = ["--data", folder, "--model", model, "--norm", norm, "--width", "%g" % width]
    options += ["--steps", "0", "--seed", "3", "--quiet"]
    options += ["--no-bias"] if no_bias else []
    options += ["--shortcut", shortcut] if model == "resnet18" else []

    def run(what, *more):
        command = [trainer] + options + list(more)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        found = "exit status %d: %s" % (done.returncode, done.stdout.strip()[-500:])
        return checks.check(done.returncode == 0, "%s: %s" % (name, what), found)

    def read_back(what, path):
        try:
            return load(path, model, shape, CLASSES, norm, no_bias, shortcut, width)
        except (ValueError, OSError, safetensors.SafetensorError) as problem:
            checks.check(False, "%s: %s" % (name, what), problem)
            return None

    path = os.path.join(work, name + "-%s.safetensors")
    x, labels = test_inputs(folder)

    # 1. the trainer's initial weights in PyTorch's modules
    if not run("the trainer writes initial weights", "--rescale", "none", "--save", path % "own"):
        return
    own = read_back("the trainer's initial weights load", path % "own")
    if own is None:
        return
    y = outputs(own, x, False)
    alive = torch.isfinite(y).all().item() and y.std().item() > 0
    checks.check(alive, "%s: outputs of the trainer's initial weights" % name, y.flatten()[:5])
    for module_name, module in own.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):  # kaiming-uniform with a = sqrt(5): within 1 / sqrt(fan_in)
            bound = module.weight[0].numel() ** -0.5
            spread = module.weight.abs().max().item() / bound
            checks.check(0.5 < spread <= 1.0001, "%s: size of %s" % (name, module_name), spread)

    # 2. PyTorch's weights, through the trainer, bit for bit
    torch.manual_seed(len(name))
    fc_bias = not no_bias or hasattr(own, "fc") and own.fc.bias is not None
    net = build(model, shape, CLASSES, norm, no_bias, shortcut, width, fc_bias)
    randomise(net)
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    safetensors.torch.save_file(state, path % "torch")
    report = path % "report"
    if not run("the trainer loads PyTorch's weights", "--rescale", "none", "--load", path % "torch",
               "--save", path % "same", "--report", report):
        return
    same = safetensors.torch.load_file(path % "same")
    checks.check(set(same) == set(state), "%s: the same names" % name, sorted(set(same) ^ set(state))[:5])
    different = [key for key, value in state.items()
                 if key in same and not (same[key].dtype == value.dtype and torch.equal(same[key], value))]
    checks.check(not different, "%s: the same bits" % name, different[:5])

    # 3. the trainer's forward pass
    want = loss_and_accuracy(net, x, labels)
    try:
        with open(report) as f:
            train = json.load(f)["train"]
        found = train["final_test_loss"], train["final_test_accuracy"]
        near = abs(found[0] - want[0]) <= 1e-5 * abs(want[0]) and abs(found[1] - want[1]) <= 1e-8
    except (OSError, ValueError, KeyError, TypeError) as problem:
        found, near = problem, False
    checks.check(near, "%s: test loss and accuracy" % name, "%s, PyTorch has %s" % (found, want))

    # 4. rescaled weights: other weights, the same function
    if not run("the trainer rescales", "--rescale", "pathcond", "--load", path % "torch", "--save", path % "rescaled"):
        return
    rescaled = read_back("rescaled weights load", path % "rescaled")
    if rescaled is None:
        return
    moved = max(((b - a).abs().max() / a.abs().max()).item() for a, b in zip(net.parameters(), rescaled.parameters()))
    checks.check(moved > 1e-3, "%s: rescaling moves the weights" % name, moved)
    buffers = dict(rescaled.named_buffers())
    stay = all(torch.equal(value, buffers[key]) for key, value in net.named_buffers())
    checks.check(stay, "%s: running statistics stay" % name)
    for training in (False, True):
        gap = distance(outputs(rescaled, x, training), outputs(net, x, training))
        mode = "training" if training else "evaluation"
        checks.check(gap <= 1e-5, "%s: outputs after rescaling, %s mode" % (name, mode), gap)
    if model == "resnet18" and width == 1 and norm == "batch" and shortcut == "identity":
        if torchvision is None:
            checks.skipped += 1
            print("SKIP %s: torchvision is not installed" % name)
        else:
            gap = distance(outputs(in_torchvision(rescaled), x, False), outputs(net, x, False))
            checks.check(gap <= 1e-5, "%s: rescaled weights in torchvision's module" % name, gap)


def check(args):
    trainer = os.path.abspath(args.trainer)
    checks = Checks()
    generator = torch.Generator().manual_seed(1)
    with tempfile.TemporaryDirectory(prefix="rescale_test_") as work:
        folders = {CIFAR: os.path.join(work, "cifar"), GREY: os.path.join(work, "grey")}
        for shape, folder in folders.items():
            write_set(folder, shape, generator)
        for case in CASES:
            if args.k in case[0]:
                check_case(checks, case, trainer, folders[case[2]], work)
                for file in os.listdir(work):
                    if file.endswith(".safetensors"):
                        os.remove(os.path.join(work, file))
    print("%d passed, %d failed, %d skipped" % (checks.passed, checks.failed, checks.skipped))
    sys.exit(1 if checks.failed or not checks.passed else 0)


# ------------------------------------------------------------------------------------------------------------- commands

def initialise(args):
    """Writes a checkpoint with PyTorch's default initialisation."""
    shape = tuple(int(d) for d in args.shape.split(","))
    if len(shape) != 3 or min(shape) < 1:
        sys.exit("--shape %s: expected channels,height,width" % args.shape)
    torch.manual_seed(args.seed)
    net = build(args.model, shape, args.classes, args.norm, args.no_bias, args.shortcut, args.width)
    safetensors.torch.save_file({key: value.contiguous() for key, value in net.state_dict().items()}, args.file)


def evaluate(args):
    """Prints the test loss and accuracy of a checkpoint."""
    x, labels = test_inputs(args.data)
    classes = int(read_set(args.data, False)[1].max()) + 1 if x.shape[1] == 1 else CLASSES
    try:
        shape = tuple(x.shape[1:])
        net = load(args.file, args.model, shape, classes, args.norm, args.no_bias, args.shortcut, args.width)
    except ValueError as problem:
        sys.exit(str(problem))
    print("loss %.9g accuracy %.9g samples %d" % (loss_and_accuracy(net, x, labels) + (len(labels),)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help="check a trainer, there and back")
    checker.add_argument("trainer")
    checker.add_argument("-k", default="", metavar="NAME", help="only cases with NAME in their name")
    checker.set_defaults(run=check)
    init = commands.add_parser("init", help="write an initial checkpoint")
    init.add_argument("--shape", required=True)
    init.add_argument("--classes", type=int, default=CLASSES)
    init.add_argument("--seed", type=int, default=0)
    init.set_defaults(run=initialise)
    evaluator = commands.add_parser("eval", help="evaluate a checkpoint")
    evaluator.add_argument("--data", required=True)
    evaluator.set_defaults(run=evaluate)
    for command in (init, evaluator):
        command.add_argument("file")
        command.add_argument("--model", choices=["allconv", "resnet18", "small"], required=True)
        command.add_argument("--norm", choices=["none", "batch"], default="none")
        command.add_argument("--no-bias", action="store_true")
        command.add_argument("--shortcut", choices=["identity", "projection"], default="identity")
        command.add_argument("--width", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.run(args)


if __name__ == "__main__":
    main()
