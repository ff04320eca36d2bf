#!/bin/sh
# run.sh -- runs every test program and script and adds up their counts.
#
#     sh test/run.sh build/cpu build/c NAME...  (make test)       NAME...: programs of dev/kernels to test as well
#
# Each test ends with the line `N passed, N failed, N skipped`; one that does not, or that exits non-zero, counts as a
# failure. Status 77 means "cannot run here" and counts as one skipped. The last line is the sum in the same form.
# Output of a passing test: its SKIP lines and its last line. RESCALE_DATA=DIR adds the tests that need real data.
# ONLY="NAME..." runs these tests, ONLY=device those that use the device. TEST_LIMIT=SECONDS (1200): a longer test has
# failed.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
unset MAKEFLAGS MFLAGS MAKELEVEL # a make called here is no part of the one that called this script
device=$1 host=$2
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # spinning threads wait for each other on a busy machine
if [ $# -lt 2 ] || [ ! -d "$device/test" ] || [ ! -d "$host/test" ]; then
    echo "usage: sh test/run.sh DEVICE_BUILD C_BUILD NAME... (run make test)" >&2
    exit 2
fi
shift 2
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
passed=0 failed=0 skipped=0

. "$(dirname -- "$0")/../dev/limit.sh"
# wanted NAME: whether ONLY asks for this test
wanted() {
    case " ${ONLY:-$1} " in *" $1 "*) return 0 ;; " device ") ;; *) return 1 ;; esac
    [ -e "test/$1.cu" ] || [ "$1" = dev/kernels ] || [ "$1" = test_train_mlp ] || [ "$1" = test_train_cnn ]
}
# run NAME COMMAND...: runs one test, shows what matters of its output, adds its counts
run() {
    name=$1
    shift
    wanted "$name" || return 0
    limited "${TEST_LIMIT:-1200}" "$@" >"$log" 2>&1
    status=$?
    if [ $status -eq 77 ]; then
        skipped=$((skipped + 1))
        printf '%-28s skipped: %s\n' "$name" "$(tail -n 1 "$log")"
        return
    fi
    closing='s/^\([0-9][0-9]*\) passed, \([0-9][0-9]*\) failed, \([0-9][0-9]*\) skipped$/\1 \2 \3/p'
    counts=$(sed -n "$closing" "$log" | tail -n 1)
    if [ -z "$counts" ]; then
        cat "$log"
        printf '%-28s FAILED: no closing line, exit status %d\n' "$name" $status
        [ $status -ne 124 ] || echo "    no end after ${TEST_LIMIT:-1200} s"
        failed=$((failed + 1))
        return
    fi
    set -- $counts
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
    if [ $status -ne 0 ] && [ "$2" -eq 0 ]; then
        failed=$((failed + 1))
        echo "$name: exit status $status"
    fi
    if [ $status -ne 0 ]; then cat "$log"; else grep '^SKIP' "$log"; fi
    printf '%-28s %d passed, %d failed, %d skipped\n' "$name" "$1" "$2" "$3"
}

for source in test/test_*.c; do
    name=$(basename "$source" .c)
    run "$name" "$host/test/$name"
done
for source in test/test_*.cu; do
    name=$(basename "$source" .cu)
    [ "$name" = test_cuda_cpu_errors ] && continue  # test_cuda_cpu_errors.sh runs it, mistake by mistake
    run "$name" "$device/test/$name"
done
[ $# -eq 0 ] || run dev/kernels sh dev/kernels/run.sh test "$device" "$@"
run test_scripts sh test/test_scripts.sh
run test_docs sh test/test_docs.sh "$host/dev/paper/report"
run test_example sh test/test_example.sh
run test_get_data sh test/test_get_data.sh
run test_compare sh test/test_compare.sh "$host/dev/compare"
run test_paper sh test/test_paper.sh "$host/dev/paper/report"
run test_gpu_check sh test/test_gpu_check.sh
run test_train_mlp sh test/test_train_mlp.sh "$device/train_mlp" "$host/dev/compare"
run test_train_cnn sh test/test_train_cnn.sh "$device/train_cnn" "$host/dev/compare"
run test_train_gpt_style sh test/test_train_gpt_style.sh "$host/train_gpt_style" "$host/dev/compare"
# What a process loses does not depend on the device: on a GPU the trainer that needs none is enough, and starts faster.
case $device in *cpu) mlp=$device/train_mlp ;; *) mlp= ;; esac
# shellcheck disable=SC2086
run test_faults "$host/test/faults" "$host/test/fault_lib.so" $mlp "$host/train_gpt_style"
case $device in *cpu) run test_cuda_cpu_errors sh test/test_cuda_cpu_errors.sh build/errors ;; esac
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
