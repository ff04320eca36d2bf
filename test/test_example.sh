#!/bin/sh
# test_example.sh -- compiles the two examples in rescale.cuh's manual, that very text, as C99, C11, C++17 and CUDA, and
# runs them; and tiny.c as C11 and C++17.
#
#     sh test/test_example.sh
#
# With every compiler found: cc and c++, clang and clang++, tcc, MinGW (compiled only), nvcc for sm_80 and sm_90. All
# warnings are errors, also those about conversions and casts that other projects turn on. The runs have to print the
# same F. Numbers other than float and double do not compile. Last line: N passed, N failed, N skipped.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d "${TMPDIR:-/tmp}/rescale_test_XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
passed=0 failed=0 skipped=0
warn="-Wall -Wextra -Wpedantic -Werror"

# extract HEADING NAME: the example under that heading, as NAME.c, NAME.cpp and NAME.cu
extract() {
    sed -n "/^\/\/ $1\$/,/^\/\/ END\$/p" rescale.cuh | sed -e '1d;$d' -e 's|^// \{0,1\}||' >"$work/$2.c"
    cp "$work/$2.c" "$work/$2.cpp"
    cp "$work/$2.c" "$work/$2.cu"
}
extract EXAMPLE example
extract 'EXAMPLE 2' example2

# check WHAT COMMAND...: counts one check, shows what the command said when it fails
check() {
    checked=$1
    shift
    if "$@" >"$work/log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $checked"
        sed 's/^/    /' "$work/log" | head -n 20
        return 1
    fi
}

# run_and_compare WHAT PROGRAM EXAMPLE: the program exits 0 and prints the F of the first one of its example that ran
run_and_compare() {
    check "$1 runs" "$2" || return
    sed 's/, max.*//' "$work/log" >"$work/F"
    [ -f "$work/F_$3" ] || cp "$work/F" "$work/F_$3"
    echo "$1: $(cat "$work/log")"
    check "$1 prints the same F" cmp "$work/F_$3" "$work/F"
}

# build_and_run COMPILER FLAGS FILE: with and without OpenMP where the compiler has it
build_and_run() {
    if ! command -v "$1" >/dev/null 2>&1; then
        skipped=$((skipped + 1))
        echo "SKIP $1 is not installed"
        return
    fi
    for openmp in "" -fopenmp; do
        what="$1 $2 $3 $openmp"
        if [ -n "$openmp" ] && ! echo 'int main(void) { return 0; }' | \
            "$1" $openmp -x c - -o "$work/probe" 2>/dev/null; then
            skipped=$((skipped + 1))
            echo "SKIP $1 has no OpenMP"
            continue
        fi
        # shellcheck disable=SC2086
        check "$what compiles" "$1" $2 $warn $openmp -O1 -I. "$work/$3" -o "$work/example" -lm &&
            run_and_compare "$what" "$work/example" "${3%.*}"
    done
}

# compile_only COMPILER FLAGS FILE: all warnings on, none left
compile_only() {
    if ! command -v "$1" >/dev/null 2>&1; then
        skipped=$((skipped + 1))
        echo "SKIP $1 is not installed"
        return
    fi
    # shellcheck disable=SC2086
    check "$1 $2" "$1" $2 $warn -O1 -I. -c "$work/$3" -o "$work/object"
}

# refuses_reals COMPILER FLAGS FILE: only float and double are numbers that the header takes
refuses_reals() {
    command -v "$1" >/dev/null 2>&1 || return
    for real in int long short "long long" "long double" "unsigned char"; do
        # shellcheck disable=SC2086
        check "$1 refuses RESCALE_REAL $real" sh -c '! "$@" 2>/dev/null' sh "$1" $2 "-DRESCALE_REAL=$real" -I. -c \
            "$work/$3" \
            -o "$work/object"
    done
}

check "the manual holds an example" grep -q 'rescale_run(&net' "$work/example.c"
check "the manual holds an example of g from data" grep -q 'rescale_verify(&net' "$work/example2.c"
for example in example example2; do
    for std in c99 c11; do
        build_and_run "${CC:-cc}" -std=$std $example.c
        build_and_run clang -std=$std $example.c
    done
    for std in c++11 c++17; do
        build_and_run "${CXX:-c++}" -std=$std $example.cpp
        build_and_run clang++ -std=$std $example.cpp
    done
    build_and_run tcc -Wall $example.c
done
printf '#include "rescale.cuh"\nint main(void) { return 0; }\n' >"$work/header.c"
cp "$work/header.c" "$work/header.cpp"
for std in c99 c11; do
    for example in example example2; do compile_only x86_64-w64-mingw32-gcc -std=$std $example.c; done
done
for real in float double; do
    strict="-DRESCALE_REAL=$real -Wconversion -Wsign-conversion"
    for compiler in "${CC:-cc}" clang; do
        compile_only "$compiler" "-std=c11 $strict" header.c
        compile_only "$compiler" "-std=c99 $strict" header.c
    done
    for compiler in "${CXX:-c++}" clang++; do compile_only "$compiler" "-std=c++17 -Wold-style-cast $strict" \
        header.cpp; done
done
for compiler in "${CC:-cc}" clang; do
    refuses_reals "$compiler" -std=c11 header.c
    refuses_reals "$compiler" -std=c99 header.c
done
for compiler in "${CXX:-c++}" clang++; do refuses_reals "$compiler" -std=c++17 header.cpp; done
refuses_reals tcc -Wall header.c
if command -v "${NVCC:-nvcc}" >/dev/null 2>&1; then
    for arch in 80 90; do
        for example in example example2; do
            check "nvcc sm_$arch compiles $example" "${NVCC:-nvcc}" -std=c++17 -arch=sm_$arch -Werror all-warnings \
                -Xcompiler -Wall,-Wextra,-Werror -I. "$work/$example.cu" -o "$work/${example}_$arch"
            # host memory only, so that it runs without a GPU, too
            [ -x "$work/${example}_$arch" ] && run_and_compare "nvcc sm_$arch" "$work/${example}_$arch" $example
        done
    done
else
    skipped=$((skipped + 1))
    echo "SKIP nvcc is not installed"
fi
for example in example example2; do
    # F 123.4 -> 120.0: four words
    check "F of $example falls" awk '{ exit !($4 < $2) }' "$work/F_$example"
done

# tiny.c, compiled as its first lines say. Its table has a row for every learning rate: rate, loss as initialised, loss
# rescaled.
run_tiny() {
    check "tiny.c compiles with $1" "$@" $warn -O2 tiny.c -lm -o "$work/tiny" || return
    check "tiny.c runs, compiled with $1" sh -c '"$1" >"$2"' sh "$work/tiny" "$work/tiny.txt" || return
    check "tiny.c prints a row for every rate" test "$(grep -c '^ *0\.[0-9]* ' "$work/tiny.txt")" -eq 5
    check "tiny.c: rescaling halves the loss at 0.05 and 0.1" \
        awk '$1 == 0.05 || $1 == 0.1 { n += $3 < $2 / 2 } END { exit n != 2 }' "$work/tiny.txt"
    check "tiny.c: rescaling keeps the outputs" awk '/^rescaling changed/ { n += $NF < 1e-6 } END { exit n != 1 }' \
        "$work/tiny.txt"
}
run_tiny "${CC:-cc}" -std=c11
run_tiny "${CXX:-c++}" -std=c++17 -x c++
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
