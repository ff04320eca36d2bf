#!/bin/sh
# gpu_check.sh -- `make gpu-check`: everything that needs a GPU, in stages of less than 8 minutes.
#
#     sh dev/gpu_check.sh [STAGE [DIR]]        (make gpu-check STAGE=tests DIR=/some/folder)
#
# Stages, in this order; without one, or with `all`, one after the other:
#     build       programs for this GPU and for the CPU; every other stage needs it
#     tests       the tests that run on the GPU
#     compare     short training runs on both devices: the losses agree
#     sanitizer   compute-sanitizer on small configurations
#     bench       steps and rescalings, beside PyTorch on the same GPU; CSV files go to dev/bench/results/cuda as well
#     kernels     dev/kernels: tests, times and tables
# DIR (default out/gpu) gets a log of every step, and at the end of a stage one archive with all that it wrote,
# gpu-STAGE.tar.gz.
# A stage ends with `N passed, N failed, N skipped`. A program that does not end within its limit has
# failed, and so has a step for which no time is left. Exit status: 0, 1 after a failure, 2 usage, 77 without nvcc or
# without a GPU.
#
# Environment: STAGE_LIMIT=SECONDS for a stage (460); DEVICE=cpu DRY=1: the same stages in seconds, on the CPU build,
# reduced to a sample of each (test/test_gpu_check.sh runs them), bench on the programs of BENCH_BUILD (build/cpu);
# JOBS=N for make (all processors).
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
unset MAKEFLAGS MFLAGS MAKELEVEL # a make called here is no part of the one that called this script
stages="build tests compare sanitizer bench kernels"
device=${DEVICE:-cuda}
dry=${DRY:-0}
usage() {
    echo "usage: sh dev/gpu_check.sh [all|$(echo "$stages" | tr ' ' '|') [DIR]]" >&2
    exit 2
}
[ $# -le 2 ] || usage
stage=${1:-all}
dir=${2:-out/gpu}
case " $stages all " in *" $stage "*) ;; *) usage ;; esac
case $device/$dry in cuda/0 | cpu/1) ;; *)
    echo "gpu_check.sh: DEVICE=cpu and DRY=1 go together" >&2
    exit 2
    ;;
esac
if [ "$device" = cuda ] && { ! command -v "${NVCC:-nvcc}" >/dev/null 2>&1 || ! nvidia-smi -L >/dev/null 2>&1; }; then
    echo "gpu-check: needs nvcc and a GPU (nvidia-smi -L finds none)"
    exit 77
fi
mkdir -p "$dir" || exit 1
dir=$(CDPATH='' cd -- "$dir" && pwd) || exit 1
if [ "$stage" = all ]; then
    status=0
    for one in $stages; do
        echo "== stage $one"
        sh "$0" "$one" "$dir" || status=1
    done
    exit $status
fi

. "$(dirname -- "$0")/limit.sh"
export LC_ALL=C
out=$dir/$stage
rm -rf "$out"
mkdir -p "$out" || exit 1
passed=0 failed=0 skipped=0
begin=$(date +%s)
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)}

fail() { # fail NAME WHY
    failed=$((failed + 1))
    echo "FAIL $1: $2"
}
skip() { # skip NAME WHY
    skipped=$((skipped + 1))
    echo "SKIP $1: $2"
}
left() { echo $((${STAGE_LIMIT:-460} - $(date +%s) + begin)); } # seconds of the stage
# step NAME SECONDS COMMAND...: runs it into NAME.log, for at most SECONDS and what is left of the stage; counts it
step() {
    name=$1 seconds=$2
    shift 2
    rest=$(left)
    if [ "$rest" -lt 1 ]; then
        fail "$name" "not run, the stage's time is used up"
        return 1
    fi
    [ "$seconds" -lt "$rest" ] || seconds=$rest
    limited "$seconds" "$@" >"$out/$name.log" 2>&1
    status=$?
    if [ $status -eq 0 ]; then
        passed=$((passed + 1))
        echo "ok   $name: $(tail -n 1 "$out/$name.log")"
        return 0
    fi
    tail -n 30 "$out/$name.log"
    case $status in
    124) fail "$name" "no end after $seconds s" ;;
    *) fail "$name" "exit status $status" ;;
    esac
    return 1
}

describe() {
    if [ "$device" = cuda ]; then nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
    else echo "the CPU build, a dry run"; fi
    git describe --always --dirty 2>/dev/null
    uname -srm
}

build_stage() {
    if [ "$dry" = 1 ]; then
        step build-cpu 120 make -j "$jobs" DEVICE=cpu train_mlp
        return
    fi
    step build-cuda 440 make -j "$jobs" DEVICE=cuda train_mlp train_cnn compare test-programs bench-programs
    step build-cpu 200 make -j "$jobs" DEVICE=cpu train_mlp train_cnn
}

tests_stage() {
    if [ "$dry" = 1 ]; then
        step tests 60 env ONLY=test_rng_device TEST_LIMIT=60 sh test/run.sh build/cpu build/c
        return
    fi
    step tests-on-gpu 460 env ONLY=device TEST_LIMIT=150 sh test/run.sh build/cuda build/c
}

# The same steps on both devices: losses agree at every step. Rounding errors grow with the steps: a ReLU or a max-pool
# that sees one decides the other way, and deep nets amplify that. So learning rates are small; measured between two
# matrix products on a CPU, the largest difference in 100 steps is 2e-4 for small and 4e-4 for resnet18.
agree() { # agree STEPS TOLERANCE FILE FILE: compares the losses of two runs
    paste -d, "$3" "$4" | awk -F, -v steps="$1" -v tolerance="$2" '
        { d = $4 - $13; if (d < 0) d = -d; r = d / $4; if (r > worst) worst = r; n++ }
        END {
            printf "%d steps, largest relative difference of the loss %.2e\n", n, worst
            exit !(n == steps && worst < tolerance)
        }'
}
both() { # both NET STEPS TOLERANCE TRAINER OPTIONS...
    net=$1 steps=$2 tolerance=$3 trainer=$4
    shift 4
    first=$device second=cpu
    for on in "a-$first" "b-$second"; do
        step "train-$net-$on" 120 "build/${on#*-}/$trainer" "$@" --steps "$steps" --eval-every 0 --checkpoint-every 0 \
            --log-dir "$out/$net-$on" --quiet || return
        grep ",step," "$out/$net-$on/log.csv" >"$out/$net-$on.csv"
    done
    if agree "$steps" "$tolerance" "$out/$net-a-$first.csv" "$out/$net-b-$second.csv" >"$out/compare-$net.log"; then
        passed=$((passed + 1))
        echo "ok   compare-$net: $(cat "$out/compare-$net.log")"
    else
        fail "compare-$net" "$(cat "$out/compare-$net.log"), expected less than $tolerance"
    fi
}
compare_stage() {
    if [ "$dry" = 1 ]; then
        both mlp 10 1e-3 train_mlp --data images --limit 256
        return
    fi
    both mlp 200 1e-3 train_mlp --data images --limit 2048
    images="--data images --limit 1024 --batch-size 32 --optimizer sgd"
    # shellcheck disable=SC2086
    both small 100 2e-3 train_cnn $images --model small --norm batch --augment --lr 0.001
    # shellcheck disable=SC2086
    both resnet18 100 2e-3 train_cnn $images --model resnet18 --width 0.25 --lr 2e-5
}

# compute-sanitizer needs a debugger's access to the GPU, which some machines refuse: one tiny run finds out.
sanitizer_stage() {
    sanitize="compute-sanitizer --error-exitcode 9 --tool"
    mlp="build/$device/train_mlp --data moons --layers 2,16,2 --limit 256 --norm batch --optimizer adamw"
    mlp="$mlp --eval-every 0 --quiet"
    cnn="build/$device/train_cnn --data images --limit 40 --batch-size 20 --eval-every 0 --quiet"
    if ! command -v compute-sanitizer >/dev/null 2>&1; then
        skip sanitizer "compute-sanitizer is not installed"
        return
    fi
    # shellcheck disable=SC2086
    limited 60 $sanitize memcheck build/$device/train_mlp --data moons --layers 2,4,2 --limit 8 --steps 0 --quiet \
        >"$out/probe.log" 2>&1
    probe=$?
    if [ $probe -ne 0 ] && [ $probe -ne 9 ]; then
        skip sanitizer "compute-sanitizer does not work here (exit status $probe): $(tail -n 1 "$out/probe.log")"
        return
    fi
    # shellcheck disable=SC2086
    for tool in memcheck racecheck initcheck synccheck; do
        step "sanitizer-$tool" 60 $sanitize $tool $mlp --steps 3
        [ "$dry" = 1 ] || step "sanitizer-cnn-$tool" 90 $sanitize $tool $cnn --width 0.25 --norm batch --augment \
            --optimizer adamw --steps 3
    done
    # shellcheck disable=SC2086
    [ "$dry" = 1 ] || step sanitizer-resnet18-memcheck 120 $sanitize memcheck $cnn --model resnet18 --width 0.1 \
        --shortcut projection --steps 2
}

bench_stage() {
    export RESULTS="$out/results"
    if [ "$dry" = 1 ]; then
        step bench 60 env LIMIT="${LIMIT:-60}" BENCH_SECONDS=0.001 PYTHON="${PYTHON:-false}" \
            sh dev/bench/run.sh "${BENCH_BUILD:-build/cpu}" build/none
    else
        step bench 460 env LIMIT=220 BENCH_SECONDS=0.3 PEER_BUDGET=100 sh dev/bench/run.sh build/cuda build/c
        mkdir -p dev/bench/results/cuda
        for csv in "$RESULTS"/*.csv; do [ ! -e "$csv" ] || cp "$csv" dev/bench/results/cuda/; done
    fi
    cat "$out/bench.log"
}

kernels_stage() {
    if [ "$dry" = 1 ]; then
        step kernels-test 60 build/cpu/dev/kernels/bias_relu test
        step kernels-bench 60 build/cpu/dev/kernels/bias_relu bench --smoke
        return
    fi
    # Variants: all of them, 0.1 s of timing each; the tables of dev/kernels/README.md get GPU columns.
    step kernels-build 200 make -j "$jobs" DEVICE=cuda kernels-list
    # shellcheck disable=SC2046
    step kernels-test 200 sh dev/kernels/run.sh test build/cuda \
        $(for f in dev/kernels/*.cu; do basename "$f" .cu; done | grep -v '^broken$')
    step kernels-bench 300 make DEVICE=cuda SECONDS_EACH=0.1 kernels-bench
    step kernels-report 60 make DEVICE=cuda kernels-report
    mkdir -p "$out/results"
    for csv in dev/kernels/results/cuda/*.csv; do [ ! -e "$csv" ] || cp "$csv" "$out/results/"; done
    grep -h '^# copy' "$out/results"/*.csv
}

describe >"$out/device.txt"
head -n 1 "$out/device.txt"
"${stage}_stage"
echo "$passed passed, $failed failed, $skipped skipped" | tee "$out/summary.txt"
tar -C "$dir" -czf "$dir/gpu-$stage.tar.gz" "$stage" || exit 1
echo "$dir/gpu-$stage.tar.gz"
[ $failed -eq 0 ]
