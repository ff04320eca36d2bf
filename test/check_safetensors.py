"""Exchanges files with Python's safetensors package; run by test/test_safetensors.c with the folder of its files.

Reads FOLDER/c.safetensors, which the C test wrote, and checks its contents, its alignment and its checksum (with an
XXH64 of its own); writes python_numpy.safetensors and, where torch is installed, python_torch.safetensors.
Exit status: 0 good, 1 a check failed, 77 numpy or safetensors is missing.
"""
import json
import struct
import sys

try:
    import numpy as np
    import safetensors.numpy
except ImportError as e:
    print(f"check_safetensors.py: {e}")
    sys.exit(77)
try:
    import torch
    import safetensors.torch
except ImportError:
    torch = None

ODD = "quote\" backslash\\ tab\t newline\n \x01 é 中 😀 / {}[]:,"
MASK = (1 << 64) - 1
P1, P2, P3, P4, P5 = (11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579,
                      2870177450012600261)


def xxh64(data):
    """XXH64 with seed 0."""
    def rotate(x, n):
        return (x << n | x >> 64 - n) & MASK

    def step(lane, word):
        return rotate((lane + word * P2) & MASK, 31) * P1 & MASK

    end = len(data) // 32 * 32
    h = P5
    if end:
        lanes = [(P1 + P2) & MASK, P2, 0, -P1 & MASK]
        for i, word in enumerate(struct.unpack(f"<{end // 8}Q", data[:end])):
            lanes[i % 4] = step(lanes[i % 4], word)
        h = sum(rotate(x, n) for x, n in zip(lanes, (1, 7, 12, 18))) & MASK
        for lane in lanes:
            h = ((h ^ step(0, lane)) * P1 + P4) & MASK
    h = (h + len(data)) & MASK
    rest = data[end:]
    while len(rest) >= 8:
        h = (rotate(h ^ step(0, struct.unpack("<Q", rest[:8])[0]), 27) * P1 + P4) & MASK
        rest = rest[8:]
    if len(rest) >= 4:
        h = (rotate(h ^ struct.unpack("<I", rest[:4])[0] * P1 & MASK, 23) * P2 + P3) & MASK
        rest = rest[4:]
    for byte in rest:
        h = rotate(h ^ byte * P5 & MASK, 11) * P1 & MASK
    h = (h ^ h >> 33) * P2 & MASK
    h = (h ^ h >> 29) * P3 & MASK
    return h ^ h >> 32


def check(ok, what):
    if not ok:
        print(f"check_safetensors.py: failed: {what}")
        sys.exit(1)


def check_file_from_c(path):
    raw = open(path, "rb").read()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n].decode("utf-8"))
    metadata = header.pop("__metadata__")
    check(n % 8 == 0, "header padded to 8 bytes")
    check(metadata["payload_checksum"] == f"xxh64:{xxh64(raw[8 + n:]):016x}", "checksum")
    check(metadata["model"] == "784-512-10" and metadata[ODD] == ODD and metadata[""] == "", "metadata")
    sizes = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "BOOL": 1}
    for name, t in header.items():
        check(t["data_offsets"][0] % sizes[t["dtype"]] == 0, f"alignment of {name!r}")
    bits = {"f16": [0x3C00, 0xC000, 0x0001, 0x7BFF, 0x8000, 0x3555, 0x03FF],
            "bf16": [0x3F80, 0xC000, 0x0001, 0x7F7F, 0x8000, 0x3EAB, 0x0080]}
    weight = (np.arange(12, dtype=np.float32) * np.float32(0.25) - 1).reshape(2, 3, 1, 2)

    if torch:
        tensors = safetensors.torch.load_file(path)
        for name in ("f16", "bf16"):
            check(tensors[name].dtype == getattr(torch, {"f16": "float16", "bf16": "bfloat16"}[name]), name)
            check(tensors[name].view(torch.int16).numpy().view(np.uint16).tolist() == bits[name], f"torch {name}")
        tensors = {k: v.float().numpy() if v.dtype == torch.bfloat16 else v.numpy() for k, v in tensors.items()}
        check_values(tensors, weight)
        with safetensors.safe_open(path, framework="pt") as f:
            check(f.metadata()["model"] == "784-512-10", "safe_open's metadata")
            for name in f.keys():
                f.get_tensor(name)
    try:
        tensors = safetensors.numpy.load_file(path)
    except (KeyError, TypeError, AttributeError):  # numpy has no bfloat16 of its own: all but that
        with safetensors.safe_open(path, framework="np") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys() if k != "bf16"}
        tensors["bf16"] = None
    check(tensors["f16"].view(np.uint16).tolist() == bits["f16"], "numpy f16")
    check_values(tensors, weight)


def check_values(t, weight):
    check(len(t) == 9, "number of tensors")
    check(t["fc1.weight"].dtype == np.float32 and np.array_equal(t["fc1.weight"], weight), "fc1.weight")
    check(np.array_equal(t["f64"], np.arange(7) / 3.0), "f64")
    check(t["step"].shape == () and t["step"] == -1234567890123456789, "step")
    check(t["empty"].shape == (4, 0, 2), "empty")
    check(t["u8"].tolist() == [1, 2, 3, 4, 5, 254, 255], "u8")
    check(t[ODD].tolist() == [1, 2, 3, 4, 5, -2, -1], "odd name")
    check(t[""].shape == () and bool(t[""]), "bool with an empty name")


def main():
    folder = sys.argv[1]
    check_file_from_c(f"{folder}/c.safetensors")
    values = (np.arange(12) - 6).reshape(3, 4) * 0.25
    arrays = {"f32": values.astype(np.float32), "f64": values, "f16": values.astype(np.float16),
              "step": np.array(-7, dtype=np.int64), "empty": np.zeros((0, 3), np.float32),
              "näme \"\\\n😀": np.array([1, 2, 3], np.uint8)}
    metadata = {"k\"\t": "väl\\\n"}
    safetensors.numpy.save_file(arrays, f"{folder}/python_numpy.safetensors", metadata)
    if torch:
        tensors = {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}
        tensors["bf16"] = torch.from_numpy(values).to(torch.bfloat16)
        safetensors.torch.save_file(tensors, f"{folder}/python_torch.safetensors", metadata)


main()
