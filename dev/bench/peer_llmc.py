#!/usr/bin/env python3
"""peer_llmc.py -- times the steps of a program that you have built from llm.c's train_gpt2.c, on bench_gpt's model.

    LLMC_PROGRAM=PROGRAM python3 dev/bench/peer_llmc.py [LAYERS HEADS CHANNELS CONTEXT BATCH VOCABULARY]

PROGRAM is yours: this script builds nothing. It takes its model and its data from a folder that is made here for it (a
checkpoint of the given shape with random weights, shards of random tokens). It takes batch size, context and number of
steps from its own source, so CONTEXT and BATCH have to be those that it was built with; its number of batches tells
whether their product is.
One CSV row on stdout; a step is what the program times itself: batch, forward, zero_grad, backward, update. The first
step is left out. Exit status 77 without LLMC_PROGRAM.
"""
import array
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile

if not os.environ.get("LLMC_PROGRAM"):
    print("peer_llmc: LLMC_PROGRAM is not set: it names a program that you have built from llm.c's train_gpt2.c",
          file=sys.stderr)
    sys.exit(77)
program = shutil.which(os.environ["LLMC_PROGRAM"])
if not program:
    sys.exit("peer_llmc: LLMC_PROGRAM=%s: no program that can be run" % os.environ["LLMC_PROGRAM"])
if len(sys.argv) not in (1, 7) or not all(x.isdecimal() and int(x) > 0 for x in sys.argv[1:]):
    print("usage: LLMC_PROGRAM=PROGRAM peer_llmc.py [LAYERS HEADS CHANNELS CONTEXT BATCH VOCABULARY]", file=sys.stderr)
    sys.exit(2)
L, NH, C, T, B, V = (int(x) for x in sys.argv[1:]) if len(sys.argv) > 1 else (6, 6, 384, 256, 8, 256)
padded = (V + 127) // 128 * 128
BATCHES = 64  # of a shard


def write_checkpoint(path):
    """Magic, version, sizes; then wte, wpe, ln1, qkv, attproj, ln2, fc, fcproj, lnf.

    Weights are normal, gains one, biases zero.
    """
    rng = random.Random(1)
    pool = array.array("f", (rng.gauss(0, 0.02) for _ in range(1 << 16)))
    ones, zeros = array.array("f", [1.0]), array.array("f", [0.0])

    def fill(values, n):
        return (values * (n // len(values) + 1))[:n]

    with open(path, "wb") as f:
        f.write(struct.pack("256i", 20240326, 3, T, V, L, NH, C, padded, *([0] * 248)))
        parts = [
            (pool, padded * C), (pool, T * C), (ones, L * C), (zeros, L * C),
            (pool, 3 * L * C * C), (zeros, 3 * L * C), (pool, L * C * C), (zeros, L * C),
            (ones, L * C), (zeros, L * C),
            (pool, 4 * L * C * C), (zeros, 4 * L * C), (pool, 4 * L * C * C), (zeros, L * C),
            (ones, C), (zeros, C),
        ]
        for values, n in parts:
            fill(values, n).tofile(f)


def write_shard(path):
    rng = random.Random(2)
    n = BATCHES * B * T + 1
    with open(path, "wb") as f:
        f.write(struct.pack("256i", 20240520, 1, n, *([0] * 253)))
        array.array("H", (rng.randrange(V) for _ in range(n))).tofile(f)


with tempfile.TemporaryDirectory() as work:
    write_checkpoint(os.path.join(work, "gpt2_124M.bin"))
    data = os.path.join(work, "dev", "data", "tinyshakespeare")
    os.makedirs(data)
    for part in ("train", "val"):
        write_shard(os.path.join(data, "tiny_shakespeare_%s.bin" % part))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    run = subprocess.run([os.path.abspath(program)], cwd=work, stdout=subprocess.PIPE, text=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
if run.returncode:
    sys.exit("peer_llmc: %s ended with status %d" % (program, run.returncode))
batches = re.search(r"^train dataset num_batches: (\d+)", run.stdout, re.M)
if not batches or int(batches[1]) != BATCHES:
    sys.exit("peer_llmc: %s: expected %d batches of %d x %d tokens, found %s: "
             "was it built with this batch size and context?" %
             (program, BATCHES, B, T, batches[1] if batches else "no number of batches"))
times = [float(ms) for ms in re.findall(r"^step \d+: .*\(took ([\d.]+) ms\)", run.stdout, re.M)]
if len(times) < 2:
    sys.exit("peer_llmc: %s: expected at least 2 steps with their times, found %d" % (program, len(times)))
t = sorted(times[1:])
n = len(t)
kib = 1024 if sys.platform != "darwin" else 1 << 20  # macOS counts bytes
print("program,layers,heads,channels,context,batch,vocabulary,threads,runs,step_ms,p10,p90,tokens_per_s,peak_mib")
threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
print(f"llm.c train_gpt2.c,{L},{NH},{C},{T},{B},{V},{threads},{n},{t[n // 2]:.2f},{t[n // 10]:.2f},"
      f"{t[n - 1 - n // 10]:.2f},{1e3 * B * T / t[n // 2]:.0f},{peak // kib if peak > before else 'n/a'}")
