#!/bin/sh
# run.sh -- `make bench`: runs the benchmarks, writes dev/bench/results/*.csv and prints them as tables.
#
#     sh dev/bench/run.sh DEVICE_BUILD C_BUILD
device=$1 host=$2
if [ $# -ne 2 ]; then
    echo "usage: sh dev/bench/run.sh DEVICE_BUILD C_BUILD (run make bench)" >&2
    exit 2
fi
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-active}
results=dev/bench/results
mkdir -p "$results"
for program in "$device"/dev/bench/bench_* "$host"/dev/bench/bench_*; do
    case $program in *'*' | *.cu | *.d) continue ;; esac
    name=$(basename "$program")
    echo "== $name"
    "$program" >"$results/$name.csv.part" || { rm -f "$results/$name.csv.part"; exit 1; }
    mv "$results/$name.csv.part" "$results/$name.csv"
    sh dev/bench/table.sh "$results/$name.csv"
done
