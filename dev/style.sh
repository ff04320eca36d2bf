#!/bin/sh
# style.sh -- `make lint`: the rules of the house (dev/lint.c), and that every header compiles by itself.
#
#     sh dev/style.sh                        breaches, headers; ends with `N passed, N failed, N skipped`
#     sh dev/style.sh breaches [FILE...]     only the breaches, of these files or of all
#     sh dev/style.sh headers                only the headers
#     sh dev/style.sh table                  the numbers of doc/house.md (dev/tables.sh calls it)
#
# Environment: CC, CXX, NVCC. A .h compiles as C11 where it is C, and as C++17; a .cuh as C++17 and with nvcc.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
cd "$(dirname "$0")/.." || exit 1
cc=${CC:-cc} cxx=${CXX:-c++} nvcc=${NVCC:-nvcc}
work=$(mktemp -d "${TMPDIR:-/tmp}/rescale_lint_XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM
passed=0 failed=0 skipped=0
"$cc" -std=c11 -Wall -Wextra -Wpedantic -O1 dev/lint.c -o "$work/lint" || exit 1

# All sources, as git knows them; in a folder that is no checkout, as they lie there.
files() {
    if git rev-parse --git-dir >/dev/null 2>&1; then
        git ls-files -co --exclude-standard '*.c' '*.h' '*.cu' '*.cuh' '*.sh' '*.py' Makefile .ci/run
    else
        find . -path ./build -prune -o -path ./out -prune -o -type f \( -name '*.[ch]' -o -name '*.cu' \
            -o -name '*.cuh' -o -name '*.sh' -o -name '*.py' -o -name Makefile \) -print | sed 's|^\./||' | sort
    fi
}
breaches() { # breaches [FILE...]
    if [ $# -gt 0 ]; then "$work/lint" "$@"; else "$work/lint" $(files); fi
}

# compiles WHAT COMMAND...: counts one header
compiles() {
    what=$1
    shift
    if "$@" >"$work/log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $what does not compile by itself"
        head -n 5 "$work/log"
    fi
}
headers() {
    warn="-Wall -Wextra -Wpedantic -Werror -Wno-unused-function -Wno-unused-variable -Wno-unused-const-variable"
    mkdir -p "$work/cpu/common"
    for header in common/*.cuh rescale.cuh; do sh common/cu2cpp.sh "$header" >"$work/cpu/$header" || exit 1; done
    for header in common/*.h common/*.cuh rescale.cuh; do
        # A header of macros alone leaves nothing to compile, and ISO C asks for something.
        printf '#include "%s"\ntypedef int something;\n' "$header" >"$work/alone.c"
        # shellcheck disable=SC2086
        case $header in
        common/cuda_cpu.h)
            compiles "$header as C++17" "$cxx" -std=c++17 $warn -fsyntax-only -I. -x c++ "$work/alone.c"
            ;;
        *.h)
            compiles "$header as C11" "$cc" -std=c11 -D_GNU_SOURCE $warn -fsyntax-only -I. -x c "$work/alone.c"
            compiles "$header as C++17" "$cxx" -std=c++17 $warn -fsyntax-only -I. -x c++ "$work/alone.c"
            ;;
        *) compiles "$header as C++17" "$cxx" -std=c++17 $warn -fsyntax-only -I"$work/cpu" -I. -x c++ "$work/alone.c" ;;
        esac
        case $header in
        common/cuda_cpu.h) ;;
        *.cuh)
            if command -v "$nvcc" >/dev/null 2>&1; then
                compiles "$header with nvcc" "$nvcc" -std=c++17 -arch=sm_80 -I. -x cu -c "$work/alone.c" \
                    -o "$work/alone.o"
            else
                skipped=$((skipped + 1))
                echo "SKIP $header with nvcc: not installed"
            fi
            ;;
        esac
    done
}

case ${1:-} in
breaches)
    shift
    breaches "$@"
    ;;
headers)
    headers
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed -eq 0 ]
    ;;
table)
    # shellcheck disable=SC2046
    "$work/lint" --table $(files)
    ;;
"")
    if breaches; then passed=1; else failed=1; fi
    headers
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed -eq 0 ]
    ;;
*)
    echo "usage: sh dev/style.sh [breaches [FILE...] | headers | table]" >&2
    exit 2
    ;;
esac
