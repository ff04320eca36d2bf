#!/bin/sh
# test_broken.sh BROKEN PROGRAM -- does the harness find deliberate mistakes? BROKEN is the program of broken.cu,
# PROGRAM any other one of dev/kernels, for its command line. The last line is `N passed, N failed, N skipped`.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
broken=$1 program=$2
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT
passed=0 failed=0
unset CUDA_CPU_ORDER

# verdict NAME OK: counts; OK is 0 for a pass
verdict() {
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $1; the output was:"
        head -n 5 "$out"
    fi
}
# expect NAME STATUS TEXT COMMAND...: the command ends with STATUS and says TEXT
expect() {
    name=$1 status=$2 text=$3
    shift 3
    "$@" >"$out" 2>&1
    got=$?
    [ $got -eq "$status" ] && grep -qF -e "$text" "$out"
    verdict "$name: status $got, expected $status and '$text'" $?
}

expect right 0 "0 failed" "$broken" test --variant right
expect right-in-a-benchmark 0 "broken,right,fp32,1000" "$broken" bench --smoke --variant right
for mistake in percent nan infinity unwritten_tail last_block; do
    expect $mistake 1 "FAIL broken/$mistake" "$broken" test --variant $mistake
    expect "$mistake in a benchmark" 1 "before timing" "$broken" bench --smoke --variant $mistake
done
expect nan 1 "nan, want" "$broken" test --variant nan
expect unwritten_tail 1 "y: [997 of 1000] got" "$broken" test --variant unwritten_tail --shape 1000
expect last_block 1 "y: [960 of 1000] got" "$broken" test --variant last_block --shape 1000
expect writes_input 1 "x: writes to its input" "$broken" test --variant writes_input --shape 1000
expect second_time 1 "again: y:" "$broken" test --variant second_time
expect other_bits 1 "two runs give different bits" "$broken" test --variant other_bits
expect after_a_while 1 "after timing: y:" "$broken" bench --smoke --variant after_a_while
if grep -qa __asan_init "$broken"; then  # AddressSanitizer's own guards are around the buffers
    expect writes_outside 1 AddressSanitizer "$broken" test --variant writes_outside
    expect reads_outside 1 AddressSanitizer "$broken" test --variant reads_outside
else
    expect writes_outside 1 "y: writes outside of the buffer" "$broken" test --variant writes_outside
    expect reads_outside 1 "y: [960 of 1000] got" "$broken" test --variant reads_outside --shape 1000
fi
found=1
for order in forward reverse random:7; do
    CUDA_CPU_ORDER=$order "$broken" test --variant missing_barrier >"$out" 2>&1 || found=0
done
verdict "missing_barrier: no thread order shows it" $found

expect no-command 2 "list|test|bench" "$program"
expect unknown-command 2 "none of list, test, bench" "$program" measure
expect unknown-variant 2 "no variant is called so" "$program" list --variant no_such_variant
expect unknown-operation 2 "no variant is called so" "$program" test --op no_such_operation
for shape in 3x 0x1x1 1x1 1x1x1x1x1x1x1x1x1 axbxc; do
    expect "shape $shape" 2 "a shape of" "$broken" test --shape $shape
done
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
