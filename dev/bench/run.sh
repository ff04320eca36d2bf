#!/bin/sh
# run.sh -- `make bench`: runs the benchmarks, writes dev/bench/results/*.csv and prints them as tables.
#
#     sh dev/bench/run.sh DEVICE_BUILD C_BUILD [NAME]      NAME: only benchmarks whose name contains it (make bench BENCH=cnn)
#
# Each benchmark is followed by its peer in PyTorch (peer_torch*.py) where torch is installed.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
device=$1 host=$2 only=${3:-}
if [ $# -lt 2 ]; then
    echo "usage: sh dev/bench/run.sh DEVICE_BUILD C_BUILD [NAME] (run make bench)" >&2
    exit 2
fi
results=dev/bench/results
mkdir -p "$results"
# measure NAME COMMAND...: the command's output becomes results/NAME.csv when it succeeds
measure() {
    name=$1
    shift
    case $name in *"$only"*) ;; *) return 0 ;; esac
    echo "== $name"
    "$@" >"$results/$name.csv.part" || { rm -f "$results/$name.csv.part"; return 1; }
    mv "$results/$name.csv.part" "$results/$name.csv"
    sh dev/bench/table.sh "$results/$name.csv"
}
for program in "$device"/dev/bench/bench_* "$host"/dev/bench/bench_*; do
    case $program in *'*' | *.cu | *.d) continue ;; esac
    measure "$(basename "$program")" "$program" || exit 1
done
if python3 -c 'import torch' 2>/dev/null; then
    for peer in dev/bench/peer_torch*.py; do
        on=
        case $device in *cuda) grep -q -- --device "$peer" && on="--device cuda" ;; esac
        # shellcheck disable=SC2086
        measure "$(basename "$peer" .py)" python3 "$peer" $on || exit 1
    done
else
    echo "PyTorch's side is skipped: torch is not installed"
fi
