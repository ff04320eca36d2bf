#!/bin/sh
# cu2cpp.sh -- translates a CUDA source file for the CPU build.
#
#     sh common/cu2cpp.sh train_mlp.cu >build/cpu/train_mlp.cpp      (a program, compiled as C++17)
#     sh common/cu2cpp.sh rescale.cuh >build/cpu/rescale.cuh         (a header: keep its name, put -Ibuild/cpu first)
#
# The result includes common/cuda_cpu.h and then holds the source with its launches and its dynamic shared memory
# rewritten by cu2cpp.sed; everything else, the line numbers included, is unchanged. Exit status: 0 done; 1 the source
# holds a launch or a shared array that cannot be rewritten, named on stderr as file:line, and nothing is written;
# 2 usage.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
case $# in 1) ;; *)
    echo "usage: sh common/cu2cpp.sh SOURCE.cu >RESULT.cpp" >&2
    exit 2
esac
if ! [ -r "$1" ]; then
    echo "cu2cpp.sh: cannot read $1" >&2
    exit 1
fi
text=$(sed -E -f "$(dirname "$0")/cu2cpp.sed" "$1") || exit 1
errors=$(printf '%s\n' "$text" | grep -n '^#error cu2cpp: ')
if [ -n "$errors" ]; then
    printf '%s\n' "$errors" | sed 's/^\([0-9]*\):#error cu2cpp: /:\1: error: /' | while IFS= read -r message; do
        printf '%s%s\n' "$1" "$message"
    done >&2
    exit 1
fi
printf '#include "common/cuda_cpu.h"\n#line 1 "%s"\n%s\n' "$1" "$text"
