#!/bin/sh
# shakespeare.sh -- `make shakespeare`: trains the tiny language model on tiny Shakespeare and prints a sample.
#
#     sh dev/shakespeare.sh TRAINER COMPARE [options, e.g. --epochs 3 --rescale none]
#
# Data through data/get_data.sh; where no source can be reached, the built-in grammar. Results in out/shakespeare/:
# log.csv, report.json, checkpoints, model.safetensors, compare.svg (training and validation loss by epoch).
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
trainer=$1 compare=$2 out=out/shakespeare
if [ $# -lt 2 ]; then
    echo "usage: sh dev/shakespeare.sh TRAINER COMPARE [OPTION...] (run make shakespeare)" >&2
    exit 2
fi
shift 2
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-20000}" # as in run.sh
data=shakespeare
if ! sh data/get_data.sh shakespeare; then
    data=grammar
    echo "tiny Shakespeare could not be had: using the built-in grammar instead (--data grammar)"
fi
mkdir -p out || exit 1
set -- --data $data --log-dir $out --overwrite --report $out/report.json --save $out/model.safetensors \
    --sample 500 --prompt ROMEO: "$@"
echo "== $trainer $*"
"$trainer" "$@" || exit
"$compare" --test-loss --title "tiny transformer on $data: cross-entropy in nats per byte" --out $out model=$out
