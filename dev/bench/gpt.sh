#!/bin/sh
# gpt.sh -- train_gpt_style.c beside PyTorch and llm.c in one run, and how it scales.
#
#     make build/c/dev/bench/bench_gpt
#     sh dev/bench/gpt.sh peers       6 layers, 6 heads, 384 channels, T 256, B 8, vocabulary 256:
#                                     ours, PyTorch, llm.c, ours again
#     sh dev/bench/gpt.sh models      the tiny, small and 124M presets
#     sh dev/bench/gpt.sh layers      2 to 16 layers
#     sh dev/bench/gpt.sh context     T 128 to 2,048 at the same number of tokens
#
# Each writes dev/bench/results/gpt_WHAT.csv and prints it as a table. PYTHON=... names the interpreter that has torch;
# LLMC_PROGRAM=... a program that you have built from llm.c's train_gpt2.c (peer_llmc.py); EACH: seconds per row. Ours
# is measured before and after its peers, so that a machine that changes its speed shows. A peer that is not there is
# left out, visibly.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
bench=build/c/dev/bench/bench_gpt what=${1:-} results=dev/bench/results each=${EACH:-8}
case $what in
peers | models | layers | context) ;;
*)
    echo "usage: sh dev/bench/gpt.sh peers | models | layers | context" >&2
    exit 2
    ;;
esac
[ -x "$bench" ] || { echo "gpt.sh: no $bench: make it first" >&2; exit 2; }
mkdir -p "$results"
csv=$results/gpt_$what.csv
# rows FILE WHEN: our row in the peers' columns
rows() {
    awk -F, -v OFS=, -v when="$2" '/^small,/ {
        print "train_gpt_style (" when ")", $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $NF
    }' "$1"
}
case $what in
peers)
    "$bench" small "$each" >"$csv.1" && "${PYTHON:-python3}" dev/bench/peer_torch_gpt.py "$each" >"$csv.2"
    "${PYTHON:-python3}" dev/bench/peer_llmc.py >"$csv.3"
    "$bench" small "$each" >"$csv.4" || exit
    {
        sed -n '/^#/p' "$csv.1"
        echo "program,layers,heads,channels,context,batch,vocabulary,threads,runs,step_ms,p10,p90,tokens_per_s,peak_mib"
        rows "$csv.1" first
        sed 1d "$csv.2"
        sed 1d "$csv.3"
        rows "$csv.4" last
    } >"$csv"
    rm -f "$csv.1" "$csv.2" "$csv.3" "$csv.4"
    ;;
models)
    for model in tiny small 124M; do "$bench" $model "$each" || exit; done | awk '!seen[$0]++' >"$csv.part" &&
        mv "$csv.part" "$csv"
    ;;
*) "$bench" "$what" "$each" >"$csv.part" && mv "$csv.part" "$csv" || exit ;;
esac
sh dev/bench/table.sh "$csv"
