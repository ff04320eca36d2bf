#!/bin/sh
# run.sh -- `make bench`: runs the benchmarks, keeps their CSV files and prints them as tables.
#
#     sh dev/bench/run.sh DEVICE_BUILD C_BUILD [NAME]
#
# NAME: only benchmarks whose name contains it (make bench BENCH=cnn).
# Each benchmark is followed by its peer in PyTorch (peer_torch*.py, on the same device) where torch is installed. On a
# GPU those of the CPU alone are left out. A program that fails or takes too long is named, the others still run, the
# exit status is 1.
# Environment: RESULTS=DIR instead of dev/bench/results (on a GPU dev/bench/results/cuda); LIMIT=SECONDS for each
# program (1800); BENCH_SECONDS=X of timing for each row (1); PEER_BUDGET=SECONDS after which a peer begins no row;
# PYTHON=python3.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
device=$1 host=$2 only=${3:-}
if [ $# -lt 2 ]; then
    echo "usage: sh dev/bench/run.sh DEVICE_BUILD C_BUILD [NAME] (run make bench)" >&2
    exit 2
fi
here=$(dirname "$0")
. "$here/../limit.sh"
python=${PYTHON:-python3}
case $device in
*cuda) results=${RESULTS:-dev/bench/results/cuda} on=cuda ;;
*) results=${RESULTS:-dev/bench/results} on=cpu ;;
esac
mkdir -p "$results" || exit 1
failures=0

# measure NAME COMMAND...: the command's output becomes NAME.csv when it succeeds. Status 77: it cannot run here.
measure() {
    name=$1
    shift
    case $name in *"$only"*) ;; *) return ;; esac
    echo "== $name"
    limited "${LIMIT:-1800}" "$@" >"$results/$name.csv.part"
    status=$?
    if [ $status -eq 0 ]; then
        mv "$results/$name.csv.part" "$results/$name.csv"
        sh "$here/table.sh" "$results/$name.csv"
        return
    fi
    rm -f "$results/$name.csv.part"
    if [ $status -eq 77 ]; then
        echo "SKIP $name: cannot run here"
        return
    fi
    failures=$((failures + 1))
    case $status in
    124) echo "FAIL $name: no end after ${LIMIT:-1800} s" ;;
    *) echo "FAIL $name: exit status $status" ;;
    esac
}

for program in "$device"/dev/bench/bench_*; do
    case $program in *'*' | *.cu | *.d) continue ;; esac
    case $on/$program in
    cuda/*bench_cuda_cpu) echo "SKIP bench_cuda_cpu: it measures the CPU build" ;;
    *bench_rescale | *bench_cnn) measure "$(basename "$program")" "$program" "${BENCH_SECONDS:-1}" ;;
    *) measure "$(basename "$program")" "$program" ;;
    esac
done
if [ "$on" = cpu ]; then
    for program in "$host"/dev/bench/bench_*; do
        case $program in *'*' | *.d) continue ;; esac
        measure "$(basename "$program")" "$program"
    done
else
    echo "SKIP $host/dev/bench: these run on a CPU only (make DEVICE=cpu bench)"
fi
if "$python" -c 'import torch' 2>/dev/null; then
    for peer in "$here"/peer_torch*.py; do
        name=$(basename "$peer" .py)
        if grep -q -- '"--device"' "$peer"; then
            measure "$name" "$python" "$peer" --device "$on" --seconds "${BENCH_SECONDS:-1}" \
                ${PEER_BUDGET:+--budget "$PEER_BUDGET"}
        elif [ "$on" = cpu ]; then
            measure "$name" "$python" "$peer"
        else
            echo "SKIP $name: its trainer runs on a CPU only"
        fi
    done
else
    echo "SKIP PyTorch's side: torch is not installed"
fi
[ $failures -eq 0 ]
