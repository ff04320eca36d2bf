#!/bin/sh
# gpu_check.sh -- `make gpu-check`: everything that needs a GPU, in one command of less than 10 minutes.
#
# Builds for the local GPU, runs all tests there, compares a short training run with the CPU build, runs compute-sanitizer on
# small configurations, prints the benchmark tables. Results in out/gpu/. Ends with `N passed, N failed, N skipped`.
# Exit status 77 without a GPU or without nvcc.
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
step build-cpu make -j DEVICE=cpu train_mlp
step tests-on-gpu make DEVICE=cuda test

# The same 200 steps on both devices: losses agree to 1e-3 at every step (fp32 rounding grows with the steps).
run() { "$1" --data images --limit 2048 --steps 200 --eval-every 0 --checkpoint-every 0 --log-dir "$2" --quiet; }
rm -rf out/gpu/cuda out/gpu/cpu
step train-cuda run build/cuda/train_mlp out/gpu/cuda
step train-cpu run build/cpu/train_mlp out/gpu/cpu
step compare-cuda-cpu sh -c 'grep ",step," out/gpu/cuda/log.csv >out/gpu/a; grep ",step," out/gpu/cpu/log.csv >out/gpu/b
    paste -d, out/gpu/a out/gpu/b | awk -F, "{ d = \$4 - \$13; if (d < 0) d = -d; r = d / \$4; if (r > worst) worst = r; n++ }
    END { printf \"%d steps, largest relative difference of the loss %.2e\n\", n, worst; exit !(n == 200 && worst < 1e-3) }"'
if command -v compute-sanitizer >/dev/null 2>&1; then
    for tool in memcheck racecheck initcheck synccheck; do
        step "sanitizer-$tool" compute-sanitizer --tool $tool --error-exitcode 9 build/cuda/train_mlp --data moons --layers 2,16,2 --limit 256 --steps 3 \
            --norm batch --optimizer adamw --eval-every 0 --quiet
    done
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
