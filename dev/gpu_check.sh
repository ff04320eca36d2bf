#!/bin/sh
# gpu_check.sh -- `make gpu-check`: everything that needs a GPU, in one command of less than 10 minutes.
#
# Builds for the local GPU, runs all tests there, compares short training runs with the CPU build, runs compute-sanitizer on
# small configurations, prints the benchmark tables. Results in out/gpu/. Ends with `N passed, N failed, N skipped`.
# Exit status 77 without a GPU or without nvcc.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
if ! command -v "${NVCC:-nvcc}" >/dev/null 2>&1 || ! nvidia-smi -L >/dev/null 2>&1; then
    echo "gpu-check: needs nvcc and a GPU (nvidia-smi -L finds none)"
    exit 77
fi
passed=0 failed=0 skipped=0
mkdir -p out/gpu
step() { # step NAME COMMAND...: runs it into out/gpu/NAME.log and counts it
    name=$1
    shift
    if "$@" >"out/gpu/$name.log" 2>&1; then
        passed=$((passed + 1))
        echo "ok   $name: $(tail -n 1 "out/gpu/$name.log")"
    else
        failed=$((failed + 1))
        tail -n 30 "out/gpu/$name.log"
        echo "FAIL $name"
    fi
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee out/gpu/device.txt
step build-cuda make -j DEVICE=cuda train_mlp train_cnn compare test-programs
step build-cpu make -j DEVICE=cpu train_mlp train_cnn
step tests-on-gpu make DEVICE=cuda test

# The same steps on both devices: losses agree at every step. Rounding errors grow with the steps: a ReLU or a max-pool that sees one
# decides the other way, and deep nets amplify that. So learning rates are small; measured between two matrix products on a CPU, the
# largest difference in 100 steps is 2e-4 for small and 4e-4 for resnet18.
agree() { # agree STEPS TOLERANCE: compares the losses in out/gpu/cuda.csv and out/gpu/cpu.csv
    paste -d, out/gpu/cuda.csv out/gpu/cpu.csv | awk -F, -v steps="$1" -v tolerance="$2" '
        { d = $4 - $13; if (d < 0) d = -d; r = d / $4; if (r > worst) worst = r; n++ }
        END { printf "%d steps, largest relative difference of the loss %.2e\n", n, worst; exit !(n == steps && worst < tolerance) }'
}
both() { # both NET STEPS TOLERANCE TRAINER OPTIONS...
    net=$1 steps=$2 tolerance=$3 trainer=$4
    shift 4
    for on in cuda cpu; do
        rm -rf "out/gpu/$net-$on"
        step "train-$net-$on" "build/$on/$trainer" "$@" --steps "$steps" --eval-every 0 --checkpoint-every 0 --log-dir "out/gpu/$net-$on" --quiet
        grep ",step," "out/gpu/$net-$on/log.csv" >"out/gpu/$on.csv"
    done
    step "compare-$net" agree "$steps" "$tolerance"
}
both mlp 200 1e-3 train_mlp --data images --limit 2048
both small 100 2e-3 train_cnn --data images --limit 1024 --model small --norm batch --augment --batch-size 32 --optimizer sgd --lr 0.001
both resnet18 100 2e-3 train_cnn --data images --limit 1024 --model resnet18 --width 0.25 --batch-size 32 --optimizer sgd --lr 2e-5
if command -v compute-sanitizer >/dev/null 2>&1; then
    for tool in memcheck racecheck initcheck synccheck; do
        step "sanitizer-$tool" compute-sanitizer --tool $tool --error-exitcode 9 build/cuda/train_mlp --data moons --layers 2,16,2 --limit 256 --steps 3 \
            --norm batch --optimizer adamw --eval-every 0 --quiet
        step "sanitizer-cnn-$tool" compute-sanitizer --tool $tool --error-exitcode 9 build/cuda/train_cnn --data images --width 0.25 --limit 40 --batch-size 20 \
            --steps 3 --norm batch --augment --optimizer adamw --eval-every 0 --quiet
    done
    step sanitizer-resnet18-memcheck compute-sanitizer --tool memcheck --error-exitcode 9 build/cuda/train_cnn --data images --model resnet18 --width 0.1 \
        --shortcut projection --limit 40 --batch-size 20 --steps 2 --eval-every 0 --quiet
else
    skipped=$((skipped + 1))
    echo "SKIP compute-sanitizer is not installed"
fi
step bench make DEVICE=cuda bench
cat out/gpu/bench.log
# Kernel variants: all of them, 0.1 s of timing each; the tables of dev/kernels/README.md get GPU columns.
step kernels-build make -j DEVICE=cuda kernels-list
step kernels-bench make DEVICE=cuda SECONDS_EACH=0.1 kernels-bench
step kernels-report make DEVICE=cuda kernels-report
grep -h '^# copy' dev/kernels/results/cuda/*.csv
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
