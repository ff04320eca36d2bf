#!/bin/sh
# fuzz.sh -- a short fuzz of every file reader: mutated files, deterministic, under AddressSanitizer and UBSan when they
# work.
#
#     sh test/fuzz.sh [ITERATIONS [SEED]]          (make fuzz)
#
# fuzz_resume and fuzz_compare start a process for each iteration and make a fifth as many.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
n=${1:-5000} seed=${2:-1} failed=0 passed=0
dir=build/fuzz
mkdir -p "$dir"
flags="-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined"
if ! echo 'int main(void){return 0;}' | ${CC:-cc} -x c - $flags -o "$dir/probe" 2>/dev/null || ! "$dir/probe"; \
    then flags="-O1 -g"; fi
zlib=
if echo '#include <zlib.h>
int main(void){return !zlibVersion();}' | ${CC:-cc} -x c - -lz -o "$dir/probe" 2>/dev/null; then
    zlib="-DUSE_ZLIB -lz"
fi
for source in test/fuzz_*.c; do
    name=$(basename "$source" .c) iterations=$n
    case $name in fuzz_resume | fuzz_compare) iterations=$((n / 5)) ;; esac
    if ${CC:-cc} -std=c11 -D_GNU_SOURCE -Wall -Wextra $flags -I. -Itest "$source" -o "$dir/$name" $zlib -lm &&
        "$dir/$name" "$seed" "$iterations"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $name $seed $iterations"
    fi
done
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
