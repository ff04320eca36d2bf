#!/bin/sh
# fashion_mnist.sh -- does rescaling make an MLP on Fashion-MNIST train faster? Several learning rates and seeds.
#
#     sh dev/paper/fashion_mnist.sh run      trains what is not there yet; needs make train_mlp
#     sh dev/paper/fashion_mnist.sh table    prints dev/paper/results/fashion_mnist.csv as tables
#
# Nets: 784-512x3-10 and 784-256x6-10, PyTorch-default init; SGD, batch 128, 5 epochs. Methods: none, PathCond at the
# optimum, PathCond with 10 block sweeps, ENorm. For a seed, all methods have the same initial weights and sample order.
# One thread per run, as many runs at once as there are processors. A finished run is not repeated.
# Training loss here is the mean of the step losses over one epoch (a moving window, dev/window_loss.sh). The loss of a
# snapshot jumps with the last few batches, and for all methods at once, since they share the order of samples.
# Columns of the CSV: net, lr, method, seed, training loss over the last epoch, final test accuracy, epochs until the
# training loss is at or below the last one of `none` with the same seed and learning rate (0: not within the run),
# max |log lambda|.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
trainer=${TRAINER:-./train_mlp} out=out/paper/fashion-mnist csv=dev/paper/results/fashion_mnist.csv
epochs=5 seeds="1 2 3"
. "$(dirname "$0")/value.sh"

one() { # one NET LR METHOD SEED
    case $1 in 784-512x3-10) layers=784,512,512,512,10 ;; *) layers=784,256,256,256,256,256,256,10 ;; esac
    case $3 in
    none) flags="--rescale none" ;;
    pathcond) flags="--rescale pathcond" ;;
    sweeps10) flags="--rescale pathcond --rescale-solver sweeps --rescale-sweeps 10" ;;
    enorm) flags="--rescale enorm" ;;
    esac
    dir=$out/$1/$2/$3/$4
    [ -f "$dir/report.json" ] && return 0
    # A diverged run leaves no report; its CSV row says nan.
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=1 "$trainer" --data fashion-mnist --layers $layers --lr "$2" --seed "$4" --epochs $epochs $flags \
        --quiet --log-dir "$dir" --overwrite --checkpoint-every 0 --report "$dir/report.json" 2>"$dir.err" ||
        cat "$dir.err"
    return 0
}

if [ "${1:-}" = one ]; then
    shift
    one "$@"
elif [ "${1:-}" = run ]; then
    sh data/get_data.sh fashion-mnist || exit
    for seed in $seeds; do
        for lr in 0.01 0.03 0.1 0.3; do
            for method in none pathcond sweeps10 enorm; do
                for net in 784-256x6-10 784-512x3-10; do
                    mkdir -p "$out/$net/$lr/$method"
                    echo "$net $lr $method $seed"
                done
            done
        done
    done | xargs -P "$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)" -L 1 sh "$0" one
    {
        echo "net,lr,method,seed,final_train_loss,final_test_accuracy,epochs_to_baseline,max_abs_log_lambda"
        for dir in "$out"/*/*/*/*/; do
            dir=${dir%/}
            seed=${dir##*/} rest=${dir%/*}
            method=${rest##*/} rest=${rest%/*}
            lr=${rest##*/} net=$(basename "${rest%/*}")
            report=$dir/report.json
            target=$(sh dev/window_loss.sh "$out/$net/$lr/none/$seed/log.csv" | cut -d, -f1)
            found=$(sh dev/window_loss.sh "$dir/log.csv" "${target:-nan}")
            accuracy=$(value "$report" final_test_accuracy) largest=$(value "$report" max_abs_log_lambda)
            echo "$net,$lr,$method,$seed,${found%,*},$accuracy,${found#*,},$largest"
        done
    } >"$csv.part" && mv "$csv.part" "$csv"
    sh "$0" table
elif [ "${1:-}" = table ]; then
    # Per net and learning rate: mean +- standard deviation over the seeds; epochs as the mean of those that got there.
    awk -F, '
    NR == 1 { next }
    {
        key = $1 "," $2; if (!(key in seen)) { seen[key] = 1; keys[++n] = key }
        k = key "," $3; count[k]++; loss[k] += $5; loss2[k] += $5 * $5; accuracy[k] += $6
        if ($7 > 0) { reached[k]++; epochs[k] += $7 }
    }
    function cell(k,   m, s, when) {
        if (!count[k]) return " n/a |"
        m = loss[k] / count[k]
        s = loss2[k] / count[k] - m * m
        s = s > 0 ? sqrt(s * count[k] / (count[k] > 1 ? count[k] - 1 : 1)) : 0
        when = reached[k] ? sprintf("%.1f (%d/%d)", epochs[k] / reached[k], reached[k], count[k]) : "never"
        return sprintf(" %.3f ± %.3f, %.1f%%, %s |", m, s, 100 * accuracy[k] / count[k], when)
    }
    END {
        print "| net | lr | none | PathCond | PathCond, 10 sweeps | ENorm |"
        print "| --- | ---: | ---: | ---: | ---: | ---: |"
        for (i = 1; i <= n; i++) {
            k = keys[i]
            split(k, part, ",")
            row = "| " part[1] " | " part[2] " |"
            print row cell(k ",none") cell(k ",pathcond") cell(k ",sweeps10") cell(k ",enorm")
        }
    }' "$csv"
else
    echo "usage: sh dev/paper/fashion_mnist.sh run|table" >&2
    exit 2
fi
