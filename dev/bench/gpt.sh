#!/bin/sh
# gpt.sh -- train_gpt_style.c beside PyTorch and llm.c in one run: 6 layers, 6 heads, 384 channels, T 256, B 8, vocabulary 256.
#
#     make build/c/dev/bench/bench_gpt && sh dev/bench/gpt.sh [LLM.C_FOLDER]
#
# PYTHON=... names the interpreter that has torch. Ours is measured first and last, so that a machine that changes its speed in between
# shows. Writes dev/bench/results/gpt_peers.csv and prints it as a table. A peer that is not there is left out, visibly.
bench=build/c/dev/bench/bench_gpt csv=dev/bench/results/gpt_peers.csv python=${PYTHON:-python3}
[ -x "$bench" ] || { echo "gpt.sh: no $bench: make it first" >&2; exit 2; }
mkdir -p dev/bench/results
part=$csv.part
ours() { # the last columns of bench_gpt's row in the peers' order
    "$bench" small "${SECONDS_EACH:-10}" | awk -F, -v when="$1" '/^#/ { if (when == "first") print } /^small/ { print "train_gpt_style (" when ")," $2 "," $3 "," $4 "," $5 "," $6 "," $7 "," $8 "," $9 "," $10 "," $11 "," $12 "," $13 "," $19 }'
}
ours first >"$part" || exit
{ sed -n '/^#/p' "$part"; echo "program,layers,heads,channels,context,batch,vocabulary,threads,runs,step_ms,p10,p90,tokens_per_s,peak_mib"; sed '/^#/d' "$part"; } >"$part.2"
"$python" dev/bench/peer_torch_gpt.py "${SECONDS_EACH:-10}" >"$part" && sed 1d "$part" >>"$part.2"
"$python" dev/bench/peer_llmc.py "${1:-/nowhere}" "${LLMC_STEPS:-6}" >"$part" && sed 1d "$part" >>"$part.2"
ours last >>"$part.2" || exit
mv "$part.2" "$csv"
rm -f "$part"
sh dev/bench/table.sh "$csv"
awk -F, '/^train_gpt_style/ { ours += $13; peak = $14; n++ } /^PyTorch/ { torch = $13 } /^llm/ { llmc = $13; llmc_peak = $14 }
    END { ours /= n
          if (torch) printf "tokens/s over PyTorch: %.2f\n", ours / torch
          if (llmc) printf "tokens/s over llm.c: %.2f; peak memory %d MiB against %d MiB\n", ours / llmc, peak, llmc_peak }' "$csv"
