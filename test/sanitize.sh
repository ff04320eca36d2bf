#!/bin/sh
# sanitize.sh -- the CPU tests under AddressSanitizer and UBSan, and the kernels in other thread orders.
#
#     sh test/sanitize.sh          (make sanitize)
#
# 1. every C test and every .cu test, built with -fsanitize=address,undefined, run once. -DTEST_REDUCED makes the
#    full-size nets of test_cnn_rescale narrower: every access costs ten times as much;
# 2. every kernel variant of dev/kernels, sanitized, in forward, reverse and random order: the same checks pass, with
#    the same bits;
# 3. test_mlp, and of test_cnn the trained networks, with the built-in matrix product, with the threads of a block in
#    forward, reverse and random order and with 1 and 2 OpenMP threads. The same checks pass and the trained parameters
#    have the same bits. (OpenBLAS's bits depend on the number of threads.) Built for a processor without fused
#    multiply-add: with it, a compiler may contract a b + c d in two ways, and need not choose the same one inside and
#    outside of a vectorised loop.
# Make builds the programs, one on every processor, and as many run at a time.
# The last line is `N passed, N failed, N skipped`: one count per program and configuration.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
unset MAKEFLAGS MFLAGS MAKELEVEL # a make called here is no part of the one that called this script
export OMP_WAIT_POLICY=passive
# Leaks of a process that exits with an error message are not of interest; everything else is.
export ASAN_OPTIONS=detect_leaks=${LEAKS:-1}:detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1
dir=build/sanitize
log=$dir/log

# three_orders NAME: a program of dev/kernels
three_orders() {
    program=$dir/dev/kernels/$1 want=
    if [ "$1" = broken ]; then # makes mistakes on purpose
        sh dev/kernels/test_broken.sh "$program" "$dir/dev/kernels/bias_relu"
        return
    fi
    for order in forward reverse random:7; do
        CUDA_CPU_ORDER=$order "$program" test >"$log/order $1" 2>&1
        status=$?
        cat "$log/order $1"
        [ $status -eq 0 ] || return 1
        bits=$(grep '^bits ' "$log/order $1")
        want=${want:-$bits}
        [ "$bits" = "$want" ] || { echo "order $order: other bits than in forward order" && return 1; }
    done
}
# one KIND NAME [ORDER THREADS]: a line of the list
one() {
    case $1 in
    test) OMP_NUM_THREADS=2 "$dir/test/$2" ;;
    kernel) OMP_NUM_THREADS=2 three_orders "$2" ;;
    test_mlp) CUDA_CPU_ORDER=$2 OMP_NUM_THREADS=$3 "$dir/orders/test_mlp" ;;
    test_cnn) CUDA_CPU_ORDER=$2 OMP_NUM_THREADS=$3 "$dir/orders/test_cnn" bits ;;
    esac
}
if [ $# -gt 0 ]; then # one program of several that run at a time
    one "$@" >"$log/$*" 2>&1
    echo "exit status $?" >>"$log/$*"
    exit 0
fi

passed=0 failed=0 skipped=0
# verdict OK WHAT: counts one line of the list
verdict() {
    if [ "$1" -eq 1 ]; then
        passed=$((passed + 1))
        echo "ok   $2: $(tail -n 2 "$log/$2" | head -n 1)"
    else
        failed=$((failed + 1))
        tail -n 40 "$log/$2"
        echo "FAIL $2"
    fi
}
can_sanitize() {
    echo 'int main(void){return 0;}' | ${CC:-cc} -x c - -fsanitize=address,undefined -o "$dir/probe" 2>/dev/null &&
        "$dir/probe"
}
rm -rf "$log"
mkdir -p "$log"
list=$dir/list
: >"$list"
goals=orders
if can_sanitize; then
    goals="sanitized orders"
    for source in test/test_*.c test/test_*.cu dev/kernels/*.cu; do
        name=$(basename "${source%.*}")
        case $source in
        test/test_cuda_cpu_errors.cu) ;; # makes mistakes on purpose; has its own script
        test/*) echo "test $name" ;;
        *) echo "kernel $name" ;;
        esac
    done >>"$list"
else
    echo "SKIP sanitizers: this compiler cannot link or run -fsanitize=address,undefined"
    skipped=1
fi
for name in test_mlp test_cnn; do
    for order in forward reverse random:3; do printf '%s\n' "$name $order 1" "$name $order 2"; done
done >>"$list"

processors=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
# With -k a program that does not compile is the only one that fails.
# shellcheck disable=SC2086
${MAKE:-make} -s -k -j"$processors" DEVICE=cpu $goals
xargs -L 1 -P "$processors" sh "$0" <"$list"
while read -r line; do
    ok=$(tail -n 1 "$log/$line" | grep -c -x 'exit status 0')
    case $line in test_*) # the line `bits ...` is the same for all orders and numbers of threads
        bits=$(grep '^bits ' "$log/${line%% *} forward 1")
        grep -q -x "${bits:-no bits}" "$log/$line" || ok=0
        ;;
    esac
    verdict "$ok" "$line"
done <"$list"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
