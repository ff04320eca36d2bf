#!/usr/bin/env python3
"""peer_llmc.py -- the training step of llm.c's train_gpt2.c on the model of bench_gpt, for comparison in the same run.

    python3 dev/bench/peer_llmc.py LLM.C_FOLDER [STEPS [LAYERS HEADS CHANNELS CONTEXT BATCH VOCABULARY]]

LLM.C_FOLDER is a checkout of https://github.com/karpathy/llm.c, outside this repository. Its train_gpt2.c takes its batch size, its context and
its number of steps from constants in main, and its model from a checkpoint file; so a copy with other constants is compiled in a temporary
folder (cc -O3 -march=native -fopenmp), beside a checkpoint of that shape with random weights and shards of random tokens. Its model
has GELU where ours has ReLU. One CSV row on stdout; a step is what it times itself: batch, forward, zero_grad, backward, update.
Exit status 77 without the folder.
"""
import array
import os
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile

if len(sys.argv) < 2 or not os.path.exists(os.path.join(sys.argv[1], "train_gpt2.c")):
    print("peer_llmc: needs a folder with llm.c's train_gpt2.c", file=sys.stderr)
    sys.exit(77)
source = os.path.abspath(sys.argv[1])
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 6
L, NH, C, T, B, V = (int(x) for x in sys.argv[3:9]) if len(sys.argv) > 8 else (6, 6, 384, 256, 8, 256)
padded = (V + 127) // 128 * 128


def write_checkpoint(path):
    """Magic, version, sizes; then wte, wpe, ln1, qkv, attproj, ln2, fc, fcproj, lnf: weights normal, gains one, biases zero."""
    rng = random.Random(1)
    pool = array.array("f", (rng.gauss(0, 0.02) for _ in range(1 << 16)))
    ones, zeros = array.array("f", [1.0]), array.array("f", [0.0])

    def fill(values, n):
        return (values * (n // len(values) + 1))[:n]

    with open(path, "wb") as f:
        f.write(struct.pack("256i", 20240326, 3, T, V, L, NH, C, padded, *([0] * 248)))
        for values, n in [(pool, padded * C), (pool, T * C), (ones, L * C), (zeros, L * C), (pool, 3 * L * C * C), (zeros, 3 * L * C), (pool, L * C * C),
                          (zeros, L * C), (ones, L * C), (zeros, L * C), (pool, 4 * L * C * C), (zeros, 4 * L * C), (pool, 4 * L * C * C), (zeros, L * C),
                          (ones, C), (zeros, C)]:
            fill(values, n).tofile(f)


def write_shard(path):
    rng = random.Random(2)
    n = 64 * B * T + 1
    with open(path, "wb") as f:
        f.write(struct.pack("256i", 20240520, 1, n, *([0] * 253)))
        array.array("H", (rng.randrange(V) for _ in range(n))).tofile(f)


def with_constants(text):
    """The source with our batch, context and steps, one validation batch and no sampling."""
    for pattern, to in [(r"int B = \d+;", "int B = %d;" % B), (r"int T = \d+;", "int T = %d;" % T), (r"step <= \d+;", "step < %d;" % steps),
                        (r"val_num_batches = \d+;", "val_num_batches = 1;"), (r"genT = \d+;", "genT = 1;")]:
        text, n = re.subn(pattern, to, text, count=1)
        if n != 1:
            sys.exit("peer_llmc: train_gpt2.c has no '%s'" % pattern)
    return text


with tempfile.TemporaryDirectory() as work:
    with open(os.path.join(source, "train_gpt2.c")) as f:
        text = with_constants(f.read())
    with open(os.path.join(work, "train_gpt2.c"), "w") as f:
        f.write(text)
    program = os.path.join(work, "train_gpt2")
    subprocess.run([os.environ.get("CC", "cc"), "-O3", "-march=native", "-fopenmp", "-w", "-I", source, os.path.join(work, "train_gpt2.c"), "-o", program, "-lm"], check=True)
    write_checkpoint(os.path.join(work, "gpt2_124M.bin"))
    data = os.path.join(work, "dev", "data", "tinyshakespeare")
    os.makedirs(data)
    for part in ("train", "val"):
        write_shard(os.path.join(data, "tiny_shakespeare_%s.bin" % part))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    output = subprocess.run([program], cwd=work, check=True, capture_output=True, text=True).stdout
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
times = [float(ms) for ms in re.findall(r"^step \d+: .*\(took ([\d.]+) ms\)", output, re.M)]
if len(times) != steps:
    sys.exit("peer_llmc: expected %d steps, found %d in:\n%s" % (steps, len(times), output))
t = sorted(times[1:]) or times
n = len(t)
print("program,layers,heads,channels,context,batch,vocabulary,threads,runs,step_ms,p10,p90,tokens_per_s,peak_mib")
print(f"llm.c train_gpt2.c,{L},{NH},{C},{T},{B},{V},{os.environ.get('OMP_NUM_THREADS', os.cpu_count())},{n},{t[n // 2]:.2f},{t[n // 10]:.2f},"
      f"{t[n - 1 - n // 10]:.2f},{1e3 * B * T / t[n // 2]:.0f},{peak // 1024 if peak > before else 'n/a'}")
