#!/bin/sh
# run.sh -- `make bench`: runs the benchmarks, writes dev/bench/results/*.csv and prints them as tables.
#
#     sh dev/bench/run.sh DEVICE_BUILD C_BUILD
device=$1 host=$2
if [ $# -ne 2 ]; then
    echo "usage: sh dev/bench/run.sh DEVICE_BUILD C_BUILD (run make bench)" >&2
    exit 2
fi
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
if python3 -c 'import torch' 2>/dev/null; then
    echo "== peer_torch"
    python3 dev/bench/peer_torch.py >"$results/peer_torch.csv.part" && mv "$results/peer_torch.csv.part" "$results/peer_torch.csv" &&
        sh dev/bench/table.sh "$results/peer_torch.csv"
else
    echo "peer_torch: skipped, torch is not installed"
fi
