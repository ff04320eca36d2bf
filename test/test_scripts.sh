#!/bin/sh
# test_scripts.sh -- the scripts on other machines: another locale, BusyBox's tools, no nvcc, other people's programs.
#
#     sh test/test_scripts.sh          in the repository's root, after make train_mlp
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
if [ ! -f common/cu2cpp.sed ] || [ ! -x ./train_mlp ]; then
    echo "usage: sh $0 (in the repository's root, after make train_mlp)" >&2
    exit 2
fi
. test/check.sh
complains() { grep -q -F -e "$1" "$work/err"; }
script() { # script FILE LINE: makes a program
    printf '#!/bin/sh\n%s\n' "$2" >"$1"
    chmod +x "$1"
}

# ------------------------------------------------------------------------------------------------------------- locale

# Every script sets LC_ALL before its first command: under git the ones that it lists, elsewhere all but those of build/
# and out/.
git ls-files -- .ci/run '*.sh' >"$work/scripts" 2>"$work/err" && [ -s "$work/scripts" ] ||
    find . -name '*.sh' ! -path './build/*' ! -path './out/*' >"$work/scripts"
check 'there are scripts' [ -s "$work/scripts" ]
while read -r script; do
    check "$script: its first command is export LC_ALL=C" eval \
        'case $(sed -n -e "/^#/d" -e "/^[[:space:]]*$/d" -e p -e q "$script") in
        "export LC_ALL=C"*) true ;;
        *) false ;;
        esac'
done <"$work/scripts"
check 'the Makefile sets it, too' grep -q '^export LC_ALL := C$' Makefile

# The same bytes in a locale that writes 0,5 for 0.5, set by LC_ALL and by LANG alone.
printf 'name,ms,n\na,2.098,3\nb,0.75,4\n' >"$work/numbers.csv"
printf 'step,epoch,split,loss\n1,0.25,step,2.75\n2,0.5,step,1.25\n3,0.75,step,0.875\n4,1,step,0.625\n' >"$work/log.csv"
row() { # row OUT: the losses of one run of dev/paper, without its times
    OUT=$1 QUICK=1 sh dev/paper/run.sh one moons 2-8x5-2 uniform 0.1 none 1
    cut -d, -f 1-12,15-34 "$1/quick/moons/2-8x5-2/uniform/0.1/none/1.row"
}
tables() { # tables DIR FILE: the file with its tables written anew
    mkdir -p "$1"
    cp "$2" "$1/README.md"
    sh dev/tables.sh "$1/README.md"
    cat "$1/README.md"
}
numbers() { # numbers DIR: prints what the scripts that handle numbers make of them; DIR holds their files
    tables "$1" dev/kernels/README.md
    sh dev/bench/table.sh "$work/numbers.csv" name,ms,ms/n
    sh dev/kernels/table.sh gemm
    sh dev/window_loss.sh "$work/log.csv" 1.5
    row "$1/runs"
}
spreads() { # spreads DIR: the same of those that need awk's sqrt
    tables "$1" doc/results.md
    sh dev/paper/fashion_mnist.sh table
}
numbers "$work/c" >"$work/expected" 2>&1
spreads "$work/c" >"$work/expected_spreads" 2>&1
check 'a number in a table' grep -q -F -e '| a | 2.098 | 0.70 |' "$work/expected"
check 'a window of losses' grep -q -F -e '1.375000000,1.000' "$work/expected"
if command -v localedef >/dev/null 2>&1 &&
    localedef -i de_DE -f UTF-8 "$work/de_DE.UTF-8" >"$work/out" 2>"$work/err"; then
    cat "$work/expected" "$work/expected_spreads" >"$work/both"
    (export LOCPATH="$work" LC_ALL=de_DE.UTF-8 && numbers "$work/all" && spreads "$work/all") >"$work/out" 2>&1
    check 'LC_ALL=de_DE.UTF-8: the same numbers' same "$work/both" "$work/out"
    (unset LC_ALL && export LOCPATH="$work" LANG=de_DE.UTF-8 && numbers "$work/lang" && spreads "$work/lang") \
        >"$work/out" 2>&1
    check 'LANG=de_DE.UTF-8: the same numbers' same "$work/both" "$work/out"
else
    skip 'scripts in a German locale: localedef cannot make one here'
fi

# ------------------------------------------------------------------------------------------------------------ BusyBox

if command -v busybox >/dev/null 2>&1; then
    mkdir "$work/busybox"
    for tool in sed awk sh; do ln -s "$(command -v busybox)" "$work/busybox/$tool"; done
    for source in *.cu *.cuh common/*.cuh test/*.cu dev/bench/*.cu dev/kernels/*.cu; do
        sh common/cu2cpp.sh "$source" >"$work/ours"
        PATH=$work/busybox:$PATH sh common/cu2cpp.sh "$source" >"$work/out" 2>"$work/err"
        check "BusyBox translates $source in the same way" same "$work/ours" "$work/out"
    done
    (PATH=$work/busybox:$PATH && numbers "$work/busy") >"$work/out" 2>&1
    check 'BusyBox: the same numbers' same "$work/expected" "$work/out"
    if busybox awk 'BEGIN { exit sqrt(4) != 2 }' 2>"$work/err"; then
        (PATH=$work/busybox:$PATH && spreads "$work/busy") >"$work/out" 2>&1
        check 'BusyBox: the same means and deviations' same "$work/expected_spreads" "$work/out"
    else
        skip "BusyBox's awk has no sqrt here: tables of means and deviations"
    fi
else
    skip "BusyBox's sed, awk and sh: busybox is not installed"
fi

# --------------------------------------------------------------------------------------------------------------- nvcc

# no_nvcc ARGUMENTS: make says so in one line, and has built nothing
no_nvcc() {
    ${MAKE:-make} --no-print-directory "$@" NVCC=no-such-nvcc >"$work/out" 2>"$work/err"
    status=$?
    check "make $* without nvcc: exit 2" is $status 2
    check "make $* without nvcc: one line" eval '[ "$(wc -l <"$work/err")" -eq 1 ] && [ ! -s "$work/out" ]'
    check "make $* without nvcc: what to do" complains \
        "no nvcc 'no-such-nvcc': install the CUDA Toolkit, set NVCC, or build with DEVICE=cpu"
}
no_nvcc DEVICE=cuda train_mlp
no_nvcc DEVICE=cuda
no_nvcc nvcc-check
# The same in a test that a make with jobs and -w has called, and what that make hands to its scripts.
called='. test/check.sh; ${MAKE:-make} --no-print-directory DEVICE=cuda NVCC=no-such-nvcc'
MAKEFLAGS='w -j2 --jobserver-auth=8,9' MAKELEVEL=1 sh -c "$called" >"$work/out" 2>"$work/err"
check 'called by make -j2 -w, make DEVICE=cuda without nvcc: one line' eval \
    '[ "$(wc -l <"$work/err")" -eq 1 ] && [ ! -s "$work/out" ] && complains "no nvcc"'
printf 'flags:\n\t@echo "flags $$MAKEFLAGS$$MFLAGS."\n' >"$work/flags.mk"
${MAKE:-make} -j2 -w -f Makefile -f "$work/flags.mk" DEVICE=cpu flags >"$work/out" 2>"$work/err"
check 'make -j2 -w: its scripts get no flags' eval 'grep -q "^flags [.]$" "$work/out" && [ ! -s "$work/err" ]'
check 'make help without nvcc' eval \
    '${MAKE:-make} --no-print-directory DEVICE=cuda NVCC=no-such-nvcc help >"$work/out" 2>"$work/err"'

# ------------------------------------------------------------------------------------------------- make help, make test
# T=

${MAKE:-make} --no-print-directory help >"$work/out"
for group in 'To use rescale.c:' 'To read the kernels:' 'To change the code:' 'With a GPU or nvcc:'; do
    check "make help has the group $group" grep -qx "$group" "$work/out"
done
sed -n 's/^\([a-z_-]*\):.*## .*/\1/p' Makefile | sort >"$work/targets"
sed -n 's/^  \([a-z_-]*\) .*/\1/p' "$work/out" | sort >"$work/listed"
check 'make help lists every target with a reason, once' cmp -s "$work/targets" "$work/listed"
${MAKE:-make} -n --no-print-directory DEVICE=cpu test T=test_rng >"$work/out" 2>"$work/err"
check 'make test T=test_rng runs this test' grep -q '^ONLY="test_rng" sh test/run.sh ' "$work/out"
check 'make test T=test_rng builds no trainer' eval '! grep -q "train_\|dev/kernels/.*\.cu" "$work/out"'
${MAKE:-make} -n -W test/test_rng.c -W test/test_train.c --no-print-directory DEVICE=cpu \
    test T='test_rng test_train' >"$work/out" 2>"$work/err"
check 'make test T="test_rng test_train" builds both' is "$(grep -c ' test/test_[a-z]*[.]c -o ' "$work/out")" 2
check 'make test T="test_rng test_train" runs both' grep -q '^ONLY="test_rng test_train" sh test/run.sh ' "$work/out"
mkdir -p "$work/list/test"
for name in test_rng test_gemm test_train; do
    script "$work/list/test/$name" 'echo "1 passed, 0 failed, 0 skipped"'
done
ONLY='test_gemm test_rng' sh test/run.sh "$work/list" "$work/list" >"$work/out" 2>"$work/err"
check 'run.sh runs the tests of a list' eval \
    '[ "$(tr -s " " <"$work/out" | sed "s/ .*//" | tr "\n" " ")" = "test_gemm test_rng 2 " ]'
${MAKE:-make} --no-print-directory DEVICE=cpu test T='test_rng test_nothing' >"$work/out" 2>"$work/err"
check 'make test T="test_rng test_nothing": exit 2' is $? 2
check 'make test T="test_rng test_nothing": one line' eval \
    '[ "$(wc -l <"$work/err")" -eq 1 ] && complains "T=test_nothing: no test has this name"'

# --------------------------------------------------------------------------------------------------------------- lint

# breaches NAME WANT CODE: dev/lint.c finds in this code what is wanted, `line: what`, and nothing else
breaches() {
    printf '%b' "$3" >"$work/code.c"
    sh dev/style.sh breaches "$work/code.c" | sed -n "s|^$work/code.c:||p" >"$work/out" 2>"$work/err"
    check "lint: $1" is "$(cat "$work/out")" "$2"
}
breaches 'a comma statement' '2: a comma statement' 'void f(int a, int b) {\n    a = 1, b = 2;\n}\n'
breaches 'a declaration' '' 'void f(void) {\n    int a = 1, b = 2;\n}\n'
breaches 'a declaration behind a macro' '' 'void f(void) {\n    UNUSED(x, y)\n    int a = 1, b = 2;\n}\n'
breaches 'a comma statement behind a macro' '3: a comma statement' \
    'void f(int a, int b) {\n    UNUSED(a, b)\n    a = 1, b = 2;\n}\n'
lines=$(awk 'BEGIN { for (i = 0; i < 60; i++) printf "%s", "    g();\\n" }')
breaches 'a long function behind a macro' '1: f has 63 lines, at most 60' "PRINTF(4, 0)\nvoid f(void) {\n$lines}\n"
breaches 'a conditional in a conditional' '1: a conditional inside a conditional
1: 2 conditionals on a line' 'int f(int a) { return a ? 1 : a ? 2 : 3; }\n'

# ---------------------------------------------------------------------------------------------------------- compilers

quietly() { "$@" >"$work/out" 2>"$work/err" && [ ! -s "$work/err" ]; }
# checks WHAT COMMAND...: the command ends well and has nothing to say
checks() {
    what=$1
    shift
    check "$what" quietly "$@"
}
warn="-Wall -Wextra -Wpedantic -Werror"
cxx=${CXX:-c++}
printf '#include "common/cuda_cpu.h"\n#include "common/gemm.h"\nint main() { return 0; }\n' >"$work/headers.cpp"

# Systems without what Linux has, as headers that cannot know it.
mkdir -p "$work/other/common"
cp common/*.h "$work/other/common"
for name in _SC_AVPHYS_PAGES MAP_NORESERVE; do
    sed "s/$name/NOT_HERE_$name/g" common/cuda_cpu.h >"$work/other/common/cuda_cpu.h"
    # shellcheck disable=SC2086
    checks "the CPU runtime without $name" $cxx -std=c++17 $warn -fsyntax-only -I"$work/other" "$work/headers.cpp"
done
cp common/cuda_cpu.h "$work/other/common/cuda_cpu.h"

# gcc before 12 takes other branches of gemm.h.
sed 's/__GNUC__ >= 12/0/' common/gemm.h >"$work/other/common/gemm.h"
# shellcheck disable=SC2086
case $($cxx --version) in
*clang*) skip "gemm.h for gcc before 12: $cxx is clang" ;;
    *)
        checks 'gemm.h for gcc before 12' $cxx -std=c++17 $warn -O1 -c -I"$work/other" -x c++ "$work/headers.cpp" \
            -o "$work/object"
        ;;
esac

# 32 bits, where the compiler has the libraries for it.
linux=/usr/include/$($cxx -dumpmachine) # the kernel's headers are the same for 32 bits
if printf '#include <map>\n#include <errno.h>\nint main() { return 0; }' |
    $cxx -m32 -idirafter "$linux" -x c++ - -o "$work/program" 2>"$work/err"; then
    # shellcheck disable=SC2086
    checks 'the headers of the CPU build in 32 bits' $cxx -m32 -msse2 -mfpmath=sse -std=c++17 $warn -fsyntax-only -I. \
        -idirafter "$linux" "$work/headers.cpp"
    check 'configure: a compiler with an option' eval \
        'CC="cc -m32 -msse2" CXX="c++ -m32" OPENBLAS=0 ZLIB=0 sh dev/configure.sh >"$work/out" 2>"$work/err" &&
        grep -q "^MARCH := .*-mfpmath=sse" "$work/out"'
else
    skip "32 bits: $cxx -m32 cannot link (install g++-multilib)"
fi

# The context switch, assembled for Linux and macOS; what clang says to the Makefile's options.
if command -v clang++ >/dev/null 2>&1; then
    {
        sed -n '/^extern "C" void cuda_cpu_switch/,/^inline void switch_stack/p' common/cuda_cpu.h | sed '$d'
        echo 'int use(void **save, void *to) { cuda_cpu_switch(save, to); return kFrame + kReturn; }'
    } >"$work/switch.cpp"
    for target in x86_64-linux-gnu aarch64-linux-gnu x86_64-apple-macos11 arm64-apple-macos11; do
        : >"$work/empty.cpp"
        if clang++ --target=$target -stdlib=libc++ -c "$work/empty.cpp" -o "$work/object" 2>"$work/err"; then
            checks "the context switch for $target" clang++ --target=$target -stdlib=libc++ -std=c++17 $warn \
                -c "$work/switch.cpp" -o "$work/object"
        else
            skip "the context switch for $target: this clang does not know it"
        fi
    done
    echo 'int main() { return 0; }' >"$work/empty.cpp"
    ${MAKE:-make} -n OPENMP= MARCH= FCF= LIBS= CXX=clang++ -W common/cuda_cpu.h build/cpu/train_mlp 2>"$work/err" |
        grep '^clang++' |
        sed -e "s# -x c++ [^ ]*# -x c++ $work/empty.cpp#" -e "s# -o [^ ]*# -o $work/program#" >"$work/command"
    check 'make tells how clang is called' grep -q '^clang++ ' "$work/command"
    checks 'clang has nothing against its options' sh "$work/command"
else
    skip 'clang: not installed'
fi

# macOS: OpenMP is Homebrew's, and there is no nproc.
mkdir "$work/mac"
script "$work/mac/uname" 'echo Darwin'
script "$work/mac/brew" 'echo /brew/libomp'
script "$work/mac/clang" 'case $* in *-Xpreprocessor*) exit 0 ;; *-fopenmp*) exit 1 ;; esac'
PATH=$work/mac:$PATH CC=clang CXX=clang sh dev/configure.sh >"$work/out" 2>"$work/err"
check "configure: Homebrew's OpenMP" grep -q \
    '^OPENMP := -Xpreprocessor -fopenmp -I/brew/libomp/include -L/brew/libomp/lib -lomp$' "$work/out"
check 'nproc is never called without another way' eval \
    '! grep -n "[$](nproc" $(cat "$work/scripts") |
    grep -v -e "nproc 2>/dev/null || getconf _NPROCESSORS_ONLN" -e "nproc 2>/dev/null || echo 1"'

# -------------------------------------------------------------------------------------------------------------- peers

# llmc STATUS TEXT ARGUMENTS...: dev/bench/peer_llmc.py times $program, in a PATH whose compilers leave a trace
llmc() {
    want=$1 text=$2
    shift 2
    PATH=$work/compilers:$PATH LLMC_PROGRAM=$program python3 dev/bench/peer_llmc.py "$@" >"$work/out" 2>"$work/err"
    check "peer_llmc.py, '$text': exit status" is $? "$want"
    check "peer_llmc.py, '$text': said" grep -q -F -e "$text" "$work/out" "$work/err"
    check "peer_llmc.py, '$text': nothing is compiled" [ ! -e "$work/compiled" ]
}
if command -v python3 >/dev/null 2>&1; then
    mkdir "$work/compilers"
    for tool in cc gcc clang make git; do
        script "$work/compilers/$tool" "echo '$tool' >>'$work/compiled'; exit 1"
    done
    cat >"$work/peer" <<'END'
#!/bin/sh
[ -s gpt2_124M.bin ] && [ -s dev/data/tinyshakespeare/tiny_shakespeare_val.bin ] || exit 3
bytes=$(wc -c <dev/data/tinyshakespeare/tiny_shakespeare_train.bin)
echo "train dataset num_batches: $(((bytes - 1024) / 2 / (2 * 16)))"
echo 'step 0: train loss 5.5 (took 900.0 ms)'
echo 'step 1: train loss 5.5 (took 30.0 ms)'
echo 'step 2: train loss 5.4 (took 20.0 ms)'
echo 'step 3: train loss 5.3 (took 25.5 ms)'
END
    chmod +x "$work/peer"
    program=$work/peer
    llmc 0 'llm.c train_gpt2.c,1,2,8,16,2,64,2,3,25.50,20.00,30.00,1255,' 1 2 8 16 2 64
    llmc 1 'expected 64 batches of 4 x 16 tokens, found' 1 2 8 16 4 64
    llmc 2 'usage: LLMC_PROGRAM=PROGRAM' 1 2 8
    program=$work/nothing
    llmc 1 'nothing: no program that can be run'
    program=
    llmc 77 'LLMC_PROGRAM is not set'
else
    skip 'dev/bench/peer_llmc.py: no python3'
fi

summary
