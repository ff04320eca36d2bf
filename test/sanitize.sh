#!/bin/sh
# sanitize.sh -- the CPU tests under AddressSanitizer and UBSan, and the kernels in other thread orders.
#
#     sh test/sanitize.sh          (make sanitize)
#
# 1. every C test and every .cu test, built with -fsanitize=address,undefined, run once. -DTEST_REDUCED makes the
#    full-size nets of test_cnn_rescale narrower: every access costs ten times as much;
# 2. test_mlp, and of test_cnn the trained networks, with the built-in matrix product, with the threads of a block in
#    forward, reverse and random order and with 1 and 2 OpenMP threads. The same checks pass and the trained parameters
#    have the same bits. (OpenBLAS's bits depend on the number of threads.) Built for a processor without fused
#    multiply-add: with it, a compiler may contract a b + c d in two ways, and need not choose the same one inside and
#    outside of a vectorised loop;
# 3. every kernel variant of dev/kernels, sanitized, in forward, reverse and random order: the same checks pass, with
#    the same bits.
# The last line is `N passed, N failed, N skipped`: one count per program and configuration.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
unset MAKEFLAGS MFLAGS MAKELEVEL # a make called here is no part of the one that called this script
passed=0 failed=0 skipped=0
# verdict STATUS WHAT: counts a program that ended with this status, its output in $dir/log
verdict() {
    if [ "$1" -eq 0 ]; then
        passed=$((passed + 1))
        echo "ok   $2: $(tail -n 1 "$dir/log")"
    else
        failed=$((failed + 1))
        tail -n 40 "$dir/log"
        echo "FAIL $2"
    fi
}
export OMP_WAIT_POLICY=passive
dir=build/sanitize
mkdir -p "$dir/common" "$dir/test"
for f in *.cuh common/*.cuh train_mlp.cu train_cnn.cu test/test_*.cu; do
    sh common/cu2cpp.sh "$f" >"$dir/$f" || exit 1
done
flags="-O1 -g -DTEST_REDUCED -fsanitize=address,undefined -fno-sanitize-recover=undefined -fopenmp"
probe=$dir/probe
if ! echo 'int main(void){return 0;}' | ${CC:-cc} -x c - -fsanitize=address,undefined -o "$probe" 2>/dev/null ||
    ! "$probe"; then
    echo "SKIP sanitizers: this compiler cannot link or run -fsanitize=address,undefined"
    skipped=$((skipped + 1))
else
    # Leaks of a process that exits with an error message are not of interest; everything else is.
    export ASAN_OPTIONS=detect_leaks=${LEAKS:-1}:detect_stack_use_after_return=1
    export UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2
    for source in test/test_*.c test/test_*.cu; do
        name=$(basename "$source")
        program=$dir/${name%.*}
        case $name in
        test_cuda_cpu_errors.cu) continue ;; # makes mistakes on purpose; has its own script
        *.cu)
            ${CXX:-c++} -std=c++17 $flags -DUSE_ZLIB -I"$dir" -I. -Itest -x c++ "$dir/$source" -o "$program" -lz -lm
            ;;
        *) ${CC:-cc} -std=c11 -D_GNU_SOURCE $flags -DUSE_ZLIB -I. -Itest "$source" -o "$program" -lz -lm ;;
        esac
        [ $? -eq 0 ] && "$program" >"$dir/log" 2>&1
        verdict $? "sanitized $name"
    done
    ${MAKE:-make} -s -j"$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)" kernels-sanitized || failed=$((failed + 1))
    for program in "$dir"/dev/kernels/*; do
        name=$(basename "$program") want=
        if [ "$name" = broken ]; then # makes mistakes on purpose
            sh dev/kernels/test_broken.sh "$program" "$dir/dev/kernels/bias_relu" >"$dir/log" 2>&1
            status=$?
        else
            status=0
            for order in forward reverse random:7; do
                CUDA_CPU_ORDER=$order "$program" test >"$dir/log" 2>&1 || { status=1; break; }
                bits=$(grep '^bits ' "$dir/log")
                want=${want:-$bits}
                [ "$bits" != "$want" ] || continue
                echo "order $order: other bits than in forward order" >>"$dir/log"
                status=1
                break
            done
        fi
        verdict $status "sanitized kernels/$name, three thread orders"
    done
fi
# orders NAME [ARGUMENTS]: the line `bits ...` of a test is the same for all orders and numbers of threads.
orders() {
    name=$1
    shift
    ${CXX:-c++} -std=c++17 -O2 -fopenmp -I"$dir" -I. -Itest -x c++ "$dir/test/$name.cu" -o "$dir/${name}_builtin" -lm ||
        exit 1
    want=
    for order in forward reverse random:3; do
        for threads in 1 2; do
            bits=$(CUDA_CPU_ORDER=$order OMP_NUM_THREADS=$threads "$dir/${name}_builtin" "$@" 2>&1 |
                sed -n 's/^bits //p')
            want=${want:-$bits}
            if [ -n "$bits" ] && [ "$bits" = "$want" ]; then
                passed=$((passed + 1))
                echo "ok   $name, thread order $order, $threads threads: bits $bits"
            else
                failed=$((failed + 1))
                echo "FAIL $name, thread order $order, $threads threads: bits '$bits', expected '$want'"
            fi
        done
    done
}
orders test_mlp
orders test_cnn bits
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
