#!/usr/bin/env python3
"""Writes test/golden_mlp.h from a JSON file of golden values.

    python3 test/make_golden_header.py golden/mlp.json > test/golden_mlp.h

Every number is printed with 17 significant digits, so the C compiler reads back the same double.
Only the Python standard library is needed.
"""
import json
import sys

ARRAYS = ["u_optimum", "u_10_unit_sweeps", "u_10_block_sweeps", "a_last", "d_first"]
SCALARS = ["F_at_zero", "F_optimum", "grad_inf", "F_10_unit_sweeps", "F_10_block_sweeps"]


def number(x):
    """A C double literal with 17 significant digits."""
    text = "%.17g" % x
    return text if any(c in text for c in ".en") else text + ".0"


def array(values):
    """Brace-enclosed initialiser, four numbers to a line."""
    lines = [", ".join(number(v) for v in values[i:i + 4]) for i in range(0, len(values), 4)]
    return "{" + ",\n     ".join(lines) + "}"


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: make_golden_header.py MLP.json > golden_mlp.h")
    with open(sys.argv[1]) as f:
        entries = json.load(f)
    max_units = max(len(e["u_optimum"]) for e in entries)
    max_dims = max(len(e["dims"]) for e in entries)
    max_ends = max(max(len(e["a_last"]), len(e["d_first"])) for e in entries)
    print("""\
// golden_mlp.h -- golden values of path-conditioned rescaling for small MLPs.
//
// GENERATED: python3 test/make_golden_header.py mlp.json > test/golden_mlp.h. Do not edit.
//
// The weights are not stored but defined, see ref_golden_weights in ref_rescale.h: running index k = 0, 1, 2, ... over
// W1, b1, W2, b2, ... (row-major [out][in]), h = (k + 1) * 0x9E3779B97F4A7C15 modulo 2^64, U = (h >> 11) / 2^53,
// value = (2U - 1) / sqrt(fan_in). F = p log(sum_i g_i exp((Bu)_i)) - sum_i (Bu)_i. Units are numbered layer by layer.
#pragma once

typedef struct {
    const char *name;
    int n_layers;               // linear layers
    int dims[%d];
    int bias, last_bias;        // of the layers below the last, of the last
    int p, n_units;             // parameters, hidden units
    double F_at_zero, F_optimum;
    double grad_inf;            // max |dF/du| where the optimum was recorded
    double F_10_unit_sweeps, F_10_block_sweeps;
    double u_optimum[%d];         // the minimiser of F
    double u_10_unit_sweeps[%d];  // unit by unit, index ascending
    double u_10_block_sweeps[%d]; // a whole layer at once
    double a_last[%d];             // squared forward output
    double d_first[%d];            // squared backward at the input
} GoldenMlp;

static const GoldenMlp golden_mlp[] = {""" % (max_dims, max_units, max_units, max_units, max_ends, max_ends))
    for e in entries:
        assert e["p"] == sum((e["dims"][l] + (e["bias"] if l + 2 < len(e["dims"]) else e["last_bias"]))
                             * e["dims"][l + 1] for l in range(len(e["dims"]) - 1)), e["name"]
        print('    {"%s", %d, {%s}, %d, %d, %d, %d,' % (
            e["name"], len(e["dims"]) - 1, ", ".join(map(str, e["dims"])), e["bias"], e["last_bias"], e["p"],
            len(e["u_optimum"])))
        print("     " + ", ".join(number(e[k]) for k in SCALARS[:3]) + ",")
        print("     " + ", ".join(number(e[k]) for k in SCALARS[3:]) + ",")
        print("     " + ",\n     ".join(array(e[k]) for k in ARRAYS) + "},")
    print("};\n\nenum { GOLDEN_MLP_COUNT = sizeof golden_mlp / sizeof golden_mlp[0] };")


if __name__ == "__main__":
    main()
