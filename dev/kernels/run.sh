#!/bin/sh
# run.sh -- runs the programs of dev/kernels: make kernels-list, kernels-test, kernels-bench, kernels-report.
#
#     sh dev/kernels/run.sh list|test|bench|report BUILD NAME...   BUILD: build/cpu or build/cuda; NAME...: the programs
#
# Environment: OP, VARIANT, SHAPE narrow list, test and bench; SECONDS_EACH: of timing for a variant (1).
#   test     every program in forward, reverse and random thread order (CPU), the deliberate mistakes, a short
#            benchmark, and whether README.md, the list and the plots are those of the code and the CSV files. Ends with
#            `N passed, N failed, N skipped`.
#   bench    tables on stdout; without VARIANT and SHAPE also results/DEVICE/NAME.csv, one file per program
#   report   results/variants.txt, the tables of README.md and results/DEVICE/OPERATION.svg
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
command=$1 build=$2
shift 2
here=dev/kernels
device=$(basename "$build")
# Spinning threads wait for each other on a busy machine. Benchmarks leave the choice to OpenMP, as trainers do: waking
# a thread takes longer than many a kernel.
[ "$command" = bench ] || export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
[ $# -gt 0 ] || { echo "no operation or file of $here is called '$OP'" >&2; exit 2; }

# run_one NAME COMMAND...: a program's command with the filters
run_one() {
    program=$1
    shift
    set -- "$@" ${VARIANT:+--variant "$VARIANT"} ${SHAPE:+--shape "$SHAPE"}
    [ -z "$OP" ] || [ -e "$here/$OP.cu" ] || set -- "$@" --op "$OP"
    "$build/$here/$program" "$@"
}
list_all() { for name; do "$build/$here/$name" list; done; }
operations() { sed 's/ .*//' "$1" | uniq; }

# report DIR: what is generated, written to DIR
report() {
    mkdir -p "$1/results"
    for csv in "$here"/results/*/*.csv; do
        [ -e "$csv" ] || continue
        to=$1/results/$(basename "$(dirname "$csv")")
        mkdir -p "$to"
        for op in $(grep -v '^#' "$csv" | sed -n '2,$s/,.*//p' | uniq); do
            build/c/$here/plot "$csv" "$op" "$op, $(sed -n '1s/^# //p' "$csv")" >"$to/$op.svg" || return 1
        done
    done
}

case $command in
list) for name; do run_one "$name" list || exit; done ;;
bench)
    COMMIT=$(git describe --always --dirty 2>/dev/null)
    export COMMIT
    results=$here/results/$device
    mkdir -p "$results"
    for name; do
        csv=$results/$name.csv
        if ! run_one "$name" bench --seconds "${SECONDS_EACH:-1}" >"$csv.part"; then
            cat "$csv.part"
            rm -f "$csv.part"
            exit 1
        fi
        sh dev/bench/table.sh "$csv.part"
        if [ -z "$VARIANT$SHAPE" ] && { [ -z "$OP" ] || [ -e "$here/$OP.cu" ]; }; then
            mv "$csv.part" "$csv"
        else
            rm -f "$csv.part"
        fi
    done
    ;;
report)
    list_all "$@" >"$here/results/variants.txt" && report "$here" && sh dev/tables.sh "$here/README.md"
    ;;
test)
    passed=0 failed=0 skipped=0
    log=$(mktemp -d) || exit 1
    trap 'rm -rf "$log"' EXIT
    orders="forward reverse random:7"
    [ "$device" = cpu ] || orders=forward
    # add NAME STATUS: adds the closing line of the log
    add() {
        number='\([0-9][0-9]*\)'
        counts=$(sed -n "s/^$number passed, $number failed, $number skipped\$/\\1 \\2 \\3/p" "$log/out" | tail -n 1)
        title=$1 status=$2
        # shellcheck disable=SC2086
        set -- ${counts:-0 1 0}
        passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
        if [ "$status" -ne 0 ] || [ "$2" -ne 0 ]; then cat "$log/out"; fi
        printf '%-44s %d passed, %d failed, %d skipped\n' "$title" "$1" "$2" "$3"
    }
    # verdict NAME STATUS: one check, passed when the status is 0
    verdict() {
        if [ "$2" -eq 0 ]; then
            echo "1 passed, 0 failed, 0 skipped" >>"$log/out"
        else
            echo "0 passed, 1 failed, 0 skipped" >>"$log/out"
        fi
        add "$1" 0
    }
    says_once() { [ "$(grep -c "$1" "$log/out")" -eq 1 ]; }
    same_plots() {
        (cd "$log/new/results" && find . -name '*.svg') | while read -r svg; do
            cmp -s "$log/new/results/$svg" "$here/results/$svg" || exit 1
        done
    }
    for name; do
        for order in $orders; do
            CUDA_CPU_ORDER=$order run_one "$name" test >"$log/out" 2>&1
            status=$?
            if [ "$order" = forward ]; then
                grep '^SKIP' "$log/out"
            else # what needs a GPU is counted once
                sed 's/, [0-9]* skipped$/, 0 skipped/' "$log/out" >"$log/once"
                mv "$log/once" "$log/out"
            fi
            add "kernels/$name, $order" $status
        done
    done
    if [ -z "$OP$VARIANT$SHAPE" ]; then
        sh "$here/test_broken.sh" "$build/$here/broken" "$build/$here/bias_relu" >"$log/out" 2>&1
        add "kernels: deliberate mistakes" $?
        "$build/$here/bias_relu" bench --smoke >"$log/csv" 2>"$log/out" &&
            [ "$(grep -c '^bias_relu,' "$log/csv")" -ge 5 ]
        verdict "kernels: a short benchmark" $?
        right=0
        for percent in 0 -1 nan inf; do # which have no place on a logarithmic axis
            echo "x,a,fp32,8,1,1,1,1,1,1,1,1,$percent" >"$log/csv"
            (ulimit -t 5 && ulimit -f 2000 && exec "build/c/$here/plot" "$log/csv" x x) >"$log/svg" 2>"$log/out"
            [ $? -eq 1 ] && says_once 'percent of x, a: expected a positive number' && right=$((right + 1))
        done
        echo "$right passed, $((4 - right)) failed, 0 skipped" >"$log/out"
        add "kernels: percentages that cannot be drawn" 0
        # A device with 99 KiB of shared memory: the block size that needs more is left out and named, nothing fails.
        if [ "$device" = cpu ] && [ -x "$build/$here/gemm" ]; then
            CUDA_CPU_SHARED_KIB=99 "$build/$here/gemm" test --variant tensor_tf32 --shape 16x16x16 >"$log/out" 2>&1
            [ $? -eq 0 ] && says_once '^SKIP gemm/tensor_tf32 16x16x16 block 256: needs 108544 bytes'
            verdict "kernels: a device with less shared memory" $?
        fi
        # What is generated is what is committed.
        list_all "$@" >"$log/variants.txt"
        cp "$here/README.md" "$log/README.md"
        report "$log/new" && sh dev/tables.sh "$log/README.md"
        echo "the list, the tables or the plots are not current: make -C dev/kernels report" >"$log/out"
        cmp -s "$log/variants.txt" "$here/results/variants.txt" && cmp -s "$log/README.md" "$here/README.md" &&
            same_plots
        verdict "kernels: tables and plots are current" $?
    fi
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed -eq 0 ] && [ $passed -gt 0 ]
    ;;
*)
    echo "usage: sh dev/kernels/run.sh list|test|bench|report BUILD NAME..." >&2
    exit 2
    ;;
esac
