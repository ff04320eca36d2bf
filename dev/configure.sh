#!/bin/sh
# configure.sh -- finds out what this machine has and prints it as make variables; messages go to stderr.
#
#     MARCH    -march=native, or the nearest this compiler knows         DEFS, LIBS   OpenBLAS and zlib when present
#     OPENMP   -fopenmp when it works                                    FCF          -fcf-protection=none on x86
#     CUDNN_DEFS, CUDNN_LIBS   cuDNN, a ceiling in dev/kernels, where nvcc finds it
# Environment: CC, CXX, NVCC; OPENBLAS=0 and ZLIB=0 leave the library out, OPENBLAS=1 asks for it. Unset, OpenBLAS is
# used when present, but not on processors with AVX-512, where the built-in matrix product is faster than the one in
# distributions (make bench).
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
CC=${CC:-cc} CXX=${CXX:-c++}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT

# works COMPILER FLAGS...: a program from stdin compiles and links
works() {
    compiler=$1
    shift
    $compiler -x c - -o "$dir/a" "$@" >/dev/null 2>&1
}
# needs COMPILER WHAT: ends with what to do where it is not installed
needs() {
    command -v "${1%% *}" >/dev/null 2>&1 || { echo "configure: no $2" >&2; exit 1; }
}
needs "$CC" "C compiler '$CC': install gcc (or set CC)"
needs "$CXX" "C++ compiler '$CXX': install g++ (or set CXX)"

march=
for flag in -march=native -mcpu=native; do
    if echo 'int main(void){return 0;}' | works "$CC" "$flag"; then march=$flag; break; fi
done
# 32-bit x86: SSE computes in float and double as every other processor does, the x87 in 80 bits.
if printf '#if !defined(__i386__) || !defined(__SSE2__)\n#error\n#endif\nint main(void){return 0;}' |
    works "$CC" $march -mfpmath=sse; then
    march="$march -mfpmath=sse"
fi
echo "MARCH := $march"
if echo 'int main(void){return 0;}' | works "$CC" -fcf-protection=none; then echo "FCF := -fcf-protection=none"; fi
libomp= # Apple's clang has no OpenMP of its own, but takes Homebrew's
if [ "$(uname)" = Darwin ] && prefix=$(brew --prefix libomp 2>/dev/null); then
    libomp="-Xpreprocessor -fopenmp -I$prefix/include -L$prefix/lib -lomp"
fi
omp_program='#include <omp.h>\nint main(void){return omp_get_max_threads()<1;}'
# shellcheck disable=SC2059
if printf "$omp_program" | works "$CC" -fopenmp; then
    echo "OPENMP := -fopenmp"
elif [ -n "$libomp" ] && printf "$omp_program" | works "$CC" $libomp; then
    echo "OPENMP := $libomp"
else
    echo "OPENMP :="
    echo "configure: no OpenMP: everything runs on one thread (install libgomp, libomp-dev for clang," \
        "or libomp of Homebrew on macOS)" >&2
fi
defs= libs=
if [ "${OPENBLAS:-}" = 0 ]; then
    :
elif [ -z "${OPENBLAS:-}" ] &&
    printf '#ifndef __AVX512F__\n#error\n#endif\nint main(void){return 0;}' | works "$CC" $march; then
    :
elif printf '#include <cblas.h>\nint main(void){openblas_set_num_threads(1);return 0;}' | works "$CC" -lopenblas; then
    defs="$defs -DUSE_OPENBLAS" libs="$libs -lopenblas"
else
    echo "configure: no OpenBLAS: using the built-in matrix product (install libopenblas-dev to compare)" >&2
fi
if [ "${ZLIB:-1}" = 0 ]; then
    :
elif printf '#include <zlib.h>\nint main(void){return !zlibVersion();}' | works "$CC" -lz; then
    defs="$defs -DUSE_ZLIB" libs="$libs -lz"
else
    echo "configure: no zlib: compressed data files are not read directly (install zlib1g-dev)" >&2
fi
printf '#include <cudnn.h>\nint main(void){return !cudnnGetVersion();}' >"$dir/cudnn.cu"
if "${NVCC:-nvcc}" "$dir/cudnn.cu" -o "$dir/a" -lcudnn >/dev/null 2>&1; then
    printf 'CUDNN_DEFS := -DUSE_CUDNN\nCUDNN_LIBS := -lcudnn\n'
fi
command -v "${NVCC:-nvcc}" >/dev/null 2>&1 ||
    echo "configure: no nvcc: CPU build only (install the CUDA Toolkit for a GPU)" >&2
echo "DEFS :=$defs"
echo "LIBS :=$libs"
