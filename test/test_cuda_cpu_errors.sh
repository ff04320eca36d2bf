#!/bin/sh
# test_cuda_cpu_errors.sh BUILD -- are mistakes in CUDA code reported? BUILD holds test_cuda_cpu_errors (CPU build) and,
# where the compiler has sanitizers, test_cuda_cpu_errors_san (AddressSanitizer and UBSan). Also checks what cu2cpp.sh
# refuses. Run it from the root of the repository. The last line is `N passed, N failed, N skipped`.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
build=${1:?usage: sh test/test_cuda_cpu_errors.sh BUILD}
dir=$(mktemp -d "${TMPDIR:-/tmp}/rescale_test_XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
ulimit -c 0
passed=0 failed=0 skipped=0

# check NAME TEXT: the file out holds TEXT
check() {
    if grep -qF -e "$2" "$dir/out"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $1: expected \"$2\", got:"
        head -5 "$dir/out"
    fi
}

# mistake NAME STATUS TEXT...: the run says every TEXT; STATUS is 0 or what its exit status must be ("-": any but 0)
mistake() {
    name=$1 expected=$2
    shift 2
    { "$program" "$name"; } >"$dir/out" 2>&1
    status=$?
    if [ "$expected" = - ] && [ $status -ne 0 ] || [ "$status" = "$expected" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $name: exit status $status, expected $expected"
    fi
    for text; do check "$name" "$text"; done
}

program=$build/test_cuda_cpu_errors
unset CUDA_CPU_ORDER
mistake none 0 "last error: no error"
mistake two_barriers - "kernel (two_barriers), block (0,0,0), thread (16,0,0)" \
    "reached this barrier while other threads wait in another one" "16 of 32 live threads wait in __syncthreads"
mistake barrier_and_shuffle - "deadlock: no thread of the block can go on" \
    "40 of 64 live threads wait in __syncthreads" "thread 63 (warp 1 lane 31) waits in __shfl_*_sync"
mistake mask_mismatch - "lanes of one warp meet in different warp intrinsics or masks"
mistake vote_and_shuffle - "lanes of one warp meet in different warp intrinsics or masks"
mistake half_warp - "shuffle reads from a lane that exited, does not exist or is not in the mask"
mistake not_in_mask - "thread (16,0,0)" "warp intrinsic called by a lane that is not in its mask"
mistake reduce_half_warp - "warp_reduce_* needs all 32 lanes of the warp"
mistake reduce_odd_block - "block_reduce_* needs all threads of the block, a multiple of 32"
mistake reduce_after_exit - "block_reduce_* needs all threads of the block"
mistake reduce_and_barrier - "reached this barrier while other threads wait in another one" "wait in block_reduce_*"
mistake mma_half_warp - "a matrix instruction needs all 32 lanes of the warp"
mistake ldmatrix_misaligned - "ldmatrix: the address of a row must be a multiple of 16"
mistake copy_misaligned - "cp.async: an address is not a multiple of the size"
mistake copy_never_waited - "cp.async: the thread exits without waiting for its copies"
mistake too_many_threads 0 "last error: invalid configuration argument"
mistake no_block 0 "last error: invalid configuration argument"
mistake too_much_shared 0 "last error: invalid argument"
mistake shared_of_another 0 "last error: invalid argument"
mistake shared_asked_too_little 0 "last error: invalid argument"
mistake shared_asked 0 "last error: no error"
CUDA_CPU_SHARED_KIB=99 mistake shared_asked 1 "108544): invalid argument"
CUDA_CPU_SHARED_KIB=9x mistake shared_asked 2 "CUDA_CPU_SHARED_KIB=9x: expected a whole number from 0 to 227"
parted="lanes of one warp go on to a barrier that others, which were at the last one, do not reach"
mistake leave_between_barriers - "$parted" "kernel (leave_between_barriers)"
mistake return_between_barriers - "$parted"
CUDA_CPU_ORDER=reverse mistake leave_between_barriers - "$parted"
mistake no_gpu 0 "last error: no error"
CUDA_CPU_DEVICES=0 mistake no_gpu 1 "test_cuda_cpu_errors: no GPU: build with DEVICE=cpu"
CUDA_CPU_DEVICES=0 mistake none 1 "no CUDA-capable device is detected"
mistake copy_overrun 0 "last error: invalid argument"
mistake copy_direction 0 "last error: invalid argument"
mistake copy_host_as_device 0 "last error: invalid argument"
mistake memset_host 0 "last error: invalid argument"
mistake free_host_pointer 0 "last error: invalid argument"
mistake double_free 0 "last error: invalid argument"
mistake check_launch 1 "test_cuda_cpu_errors.cu:" "kernel launch: invalid configuration argument"
mistake check_call 1 "cudaMemset(p + 1, 0, sizeof h): invalid argument"
mistake big_stack -
CUDA_CPU_ORDER=backwards mistake none 2 "CUDA_CPU_ORDER=backwards: expected forward, reverse or random[:SEED]"

# a missing barrier: the orders must not agree
for name in missing_sync missing_sync_2; do
    for order in forward reverse random:1; do CUDA_CPU_ORDER=$order "$program" "$name"; done | grep checksum >"$dir/out"
    if [ "$(sort -u "$dir/out" | wc -l)" -gt 1 ] && [ "$(wc -l <"$dir/out")" -eq 3 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $name: the result does not depend on the order of threads"
    fi
done

program=${program}_san
if [ -x "$program" ]; then
    mistake none 0 "last error: no error"
    mistake oob_global - "AddressSanitizer: heap-buffer-overflow"
    mistake oob_dynamic - "AddressSanitizer: heap-buffer-overflow"
    mistake oob_static - "index 32 out of bounds for type 'float"
    mistake misaligned - "misaligned address"
    mistake big_stack - "AddressSanitizer: stack-overflow"
else
    skipped=$((skipped + 1))
    echo "SKIP sanitizers: no $program"
fi

# refuse LINE TEXT SOURCE: cu2cpp.sh refuses SOURCE, names the line and writes nothing
refuse() {
    printf "$3" >"$dir/bad.cu"
    if sh common/cu2cpp.sh "$dir/bad.cu" >"$dir/result" 2>"$dir/out"; then echo "was accepted" >"$dir/out"; fi
    [ -s "$dir/result" ] && echo "wrote a result" >"$dir/out"
    check "cu2cpp.sh on line $1" "$dir/bad.cu:$1: error: $2"
}
launch="a launch needs its kernel's name, <<<...>>> and the opening parenthesis on one line"
shared="dynamic shared memory must read: extern __shared__ T name[];"
refuse 2 "$launch" 'int x;\nkernel<<<1,\n 2>>>(3);\n'
refuse 2 "$launch" 'kernel\n<<<1, 2>>>(3);\n'
refuse 2 "$launch" '// fine <<<\n/* fine <<< */ kernel<<<1, 2>>>\n(3);\n'
refuse 3 "$shared" '\n/*\n*/ extern __shared__ float a[32];\n'
refuse 1 "$shared" 'extern __shared__ float a[], b[];'
sh common/cu2cpp.sh "$dir/absent.cu" >"$dir/result" 2>"$dir/out"
check "cu2cpp.sh without a file" "cannot read $dir/absent.cu"

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
