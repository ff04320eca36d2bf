#!/bin/sh
# test_gpu_check.sh -- the stages of dev/gpu_check.sh, in their dry form on the CPU build. They write what they
# should, name a program that hangs, fails or cannot run, and skip a compute-sanitizer that is refused the GPU. Also
# dev/bench/run.sh, which keeps the results of a GPU and of a CPU apart.
#
#     sh test/test_gpu_check.sh          from the project's root, after make test-programs train_mlp DEVICE=cpu
#
# The last line is `N passed, N failed, N skipped`.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
. "$(dirname -- "$0")/check.sh"
export OMP_WAIT_POLICY=passive
for program in build/cpu/train_mlp build/cpu/dev/kernels/bias_relu build/cpu/test/test_rng_device; do
    if [ ! -x $program ]; then
        echo "needs the CPU build: make DEVICE=cpu test-programs train_mlp"
        exit 77
    fi
done
says() { grep -q -F -e "$1" "$work/out"; }
# stage NAME: runs a stage; its output in $work/out, its status in $status
stage() { DEVICE=cpu DRY=1 sh dev/gpu_check.sh "$1" "$work/gpu" >"$work/out" 2>"$work/err"; status=$?; }
stage() {
    DEVICE=cpu DRY=1 sh dev/gpu_check.sh "$1" "$work/gpu" >"$work/out" 2>"$work/err"
    status=$?
}
stand_in() {
    mkdir -p "$(dirname "$1")"
    printf '#!/bin/sh\n%s\n' "$2" >"$1"
    chmod +x "$1"
}

# ---------------------------------------------------------------------------------------------------------------- usage
for arguments in unknown 'build a b' ''; do
    # shellcheck disable=SC2086
    DEVICE=cpu sh dev/gpu_check.sh $arguments >"$work/out" 2>"$work/err"
    status=$?
    check "'$arguments' without DRY=1: exit 2 and one line" eval \
        '[ $status -eq 2 ] && [ "$(wc -l <"$work/err")" -eq 1 ]'
done
(PATH=/bin:/usr/bin NVCC=$work/missing sh dev/gpu_check.sh tests "$work/none") >"$work/out" 2>"$work/err"
status=$?
check 'without nvcc: exit 77 and one line' eval \
    '[ $status -eq 77 ] && [ "$(cat "$work/out" "$work/err" | wc -l)" -eq 1 ]'
check 'without nvcc: nothing is written' test ! -e "$work/none"

# --------------------------------------------------------------------------------------------------------------- stages
for name in tests compare kernels; do
    stage $name
    check "$name: exit 0" is $status 0
    check "$name: a closing line without failures" grep -q '^[1-9][0-9]* passed, 0 failed, 0 skipped$' "$work/out"
    check "$name: an archive" eval 'tar -tzf "$work/gpu/gpu-$name.tar.gz" >"$work/list"'
    check "$name: summary, device and logs are in it" eval \
        'grep -q "^$name/summary.txt$" "$work/list" && grep -q "^$name/device.txt$" "$work/list" &&
        grep -q "^$name/.*\.log$" "$work/list"'
done
check 'one archive per stage' is "$(find "$work/gpu" -name '*.tar.gz' | wc -l)" 3
stage compare
check 'compare: the losses of both runs' eval \
    'says "10 steps, largest relative difference of the loss" &&
    [ "$(wc -l <"$work/gpu/compare/mlp-a-cpu.csv")" -eq 10 ]'

# No time is left: nothing may pass for having been run.
STAGE_LIMIT=0 stage compare
check 'no time left: exit 1' is $status 1
check 'no time left: said' says 'not run, the stage'
ONLY=no_such_test TEST_LIMIT=5 sh test/run.sh build/cpu build/c >"$work/out" 2>"$work/err"
status=$?
check 'test/run.sh: a test that is not there is a failure' is $status 1

# A test that hangs.
mkdir -p "$work/build/test"
for source in test/test_*.c test/test_*.cu; do stand_in "$work/build/test/$(basename "${source%.*}")" 'sleep 60'; done
ONLY=test_rng TEST_LIMIT=1 sh test/run.sh "$work/build" "$work/build" >"$work/out" 2>"$work/err"
status=$?
check 'test/run.sh: a test that hangs is a failure' eval \
    '[ $status -eq 1 ] && says "no end after 1 s" && says "0 passed, 1 failed, 0 skipped"'

# ------------------------------------------------------------------------------------------------------------ sanitizer
bin=$work/bin
stand_in "$bin/compute-sanitizer" 'echo "========= Error: the device does not support debugging" >&2; exit 1'
PATH=$bin:$PATH stage sanitizer
check 'a sanitizer that is refused: skipped' eval '[ $status -eq 0 ] && says "0 passed, 0 failed, 1 skipped"'
check 'a sanitizer that is refused: why' says \
    'SKIP sanitizer: compute-sanitizer does not work here (exit status 1): ========= Error: the device'
check 'a sanitizer that is refused: tried once' is "$(find "$work/gpu/sanitizer" -name '*.log' | wc -l)" 1
stand_in "$bin/compute-sanitizer" \
    'while [ "$1" != racecheck ] && [ $# -gt 1 ]; do case $1 in build/*) exec "$@" ;; esac; shift; done; exit 9'
PATH=$bin:$PATH stage sanitizer
check 'a sanitizer that finds a race: a failure' eval \
    '[ $status -eq 1 ] && says "3 passed, 1 failed, 0 skipped" &&
    says "FAIL sanitizer-racecheck: exit status 9"'

# ---------------------------------------------------------------------------------------------------------------- bench
row='printf "# device\nnet,step_ms\na,1\n"'
stand_in "$work/cuda/dev/bench/bench_a" "$row"
stand_in "$work/cuda/dev/bench/bench_b_absent" 'exit 77'
stand_in "$work/cuda/dev/bench/bench_c_fails" 'echo half; exit 3'
stand_in "$work/cuda/dev/bench/bench_cuda_cpu" 'exit 4'
stand_in "$work/cuda/dev/bench/bench_d_hangs" 'sleep 60'
stand_in "$work/cuda/dev/bench/bench_rescale" 'printf "net,seconds\na,%s\n" "$1"'
stand_in "$work/python" '[ "$1" = -c ] && exit 0
name=$(basename "$1" .py)
shift
printf "net,arguments\n%s,%s\n" "$name" "$*"'
# Where results go without RESULTS: from a folder of its own.
mkdir -p "$work/project/dev/bench/results"
echo "of the CPU" >"$work/project/dev/bench/results/bench_a.csv"
run=$(pwd)/dev/bench/run.sh
(cd "$work/project" && export LIMIT=2 BENCH_SECONDS=0.25 PEER_BUDGET=7 PYTHON="$work/python" &&
    sh "$run" "$work/cuda" "$work/none") >"$work/out" 2>"$work/err"
status=$?
check 'bench: a failure is exit 1' is $status 1
cuda=$work/project/dev/bench/results/cuda
check "bench: a GPU's results have a folder of their own" eval \
    'grep -q "^a,1$" "$cuda/bench_a.csv" &&
    [ "$(cat "$work/project/dev/bench/results/bench_a.csv")" = "of the CPU" ]'
check 'bench: what cannot run here is skipped' says 'SKIP bench_b_absent: cannot run here'
check 'bench: what fails is named, and leaves no file' eval \
    'says "FAIL bench_c_fails: exit status 3" && [ ! -e "$cuda/bench_c_fails.csv" ] &&
    [ ! -e "$cuda/bench_c_fails.csv.part" ]'
check 'bench: what hangs is ended and named' says 'FAIL bench_d_hangs: no end after 2 s'
check "bench: the CPU's own benchmark is not run on a GPU" says 'SKIP bench_cuda_cpu: it measures the CPU build'
check 'bench: what comes after a failure is run' grep -q '^a,0.25$' "$cuda/bench_rescale.csv"
for peer in peer_torch peer_torch_cnn; do
    check "bench: $peer runs on the same device" \
        grep -q -x "$peer,--device cuda --seconds 0.25 --budget 7" "$cuda/$peer.csv"
done
check 'bench: a peer of the CPU is not run for a GPU' eval \
    'says "SKIP peer_torch_gpt" && [ ! -e "$cuda/peer_torch_gpt.csv" ]'
mkdir -p "$work/cpu/dev/bench"
cp "$work/cuda/dev/bench/bench_a" "$work/cpu/dev/bench/bench_a"
BENCH_BUILD=$work/cpu stage bench
check 'bench stage: results in its folder' eval \
    '[ $status -eq 0 ] && grep -q "^a,1$" "$work/gpu/bench/results/bench_a.csv" && says "| a | 1 |"'
check 'bench stage: results in its archive' eval \
    'tar -tzf "$work/gpu/gpu-bench.tar.gz" | grep -q "^bench/results/bench_a.csv$"'
cp "$work/cuda/dev/bench/bench_d_hangs" "$work/cpu/dev/bench/bench_d_hangs"
LIMIT=1 BENCH_BUILD=$work/cpu stage bench
check 'bench stage: a program that hangs is a failure' eval '[ $status -eq 1 ] && says "0 passed, 1 failed, 0 skipped"'
summary
