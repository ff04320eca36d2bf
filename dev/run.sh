#!/bin/sh
# run.sh -- `make run`: the same MLP from the same seed three times: not rescaled, PathCond, ENorm.
#
#     sh dev/run.sh TRAINER COMPARE [options for every run, e.g. --lr 0.01 --epochs 5]
#
# Data: Fashion-MNIST through data/get_data.sh; where no source can be reached, the built-in synthetic images.
# Results in out/: METHOD/log.csv and METHOD/report.json, compare.csv, compare.svg (loss and accuracy by epoch).
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
trainer=$1 compare=$2
if [ $# -lt 2 ]; then
    echo "usage: sh dev/run.sh TRAINER COMPARE [OPTION...] (run make run)" >&2
    exit 2
fi
shift 2
# Idle OpenMP threads spin for a moment, then sleep: as fast as spinning on a free machine, and bearable on a busy one.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-20000}"
data=fashion-mnist
if ! sh data/get_data.sh fashion-mnist; then
    data=images
    echo "Fashion-MNIST could not be had: using the built-in synthetic images instead (--data images)"
fi
mkdir -p out || exit 1
for method in none pathcond enorm; do
    echo
    echo "== $trainer --data $data --rescale $method --lr 0.01 $*"
    "$trainer" --data $data --rescale $method --lr 0.01 --log-dir out/$method --overwrite \
        --report out/$method/report.json --checkpoint-every 0 "$@" || exit
done
echo
"$compare" --title "MLP on $data: not rescaled, PathCond, ENorm" --out out \
    none=out/none pathcond=out/pathcond enorm=out/enorm || exit
# The losses above are snapshots at the end of an epoch and jump with its last batches. So here averaged over an epoch:
target=$(sh dev/window_loss.sh out/none/log.csv | cut -d, -f1)
echo "training loss averaged over one epoch of steps, and the epoch at which it reached the last one of run none:"
for method in none pathcond enorm; do
    found=$(sh dev/window_loss.sh out/$method/log.csv "$target")
    echo "    $method: ${found%,*}, epoch ${found#*,}"
done
