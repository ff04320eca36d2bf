#!/bin/sh
# shakespeare.sh -- does rescaling make a small transformer on tiny Shakespeare train faster? Each set alone, all, none.
#
#     sh dev/paper/shakespeare.sh run      trains what is not there yet; needs make train_gpt_style
#     sh dev/paper/shakespeare.sh table    prints dev/paper/results/shakespeare.csv as a table
#     sh dev/paper/shakespeare.sh plot     dev/paper/results/shakespeare_LR.svg from shakespeare_curves.csv, from step
#                                          200 on; needs make compare
#
# The tiny preset (842,496 parameters, context 128), AdamW, weight decay 0.1, clipped to 1, 100 steps of warm-up,
# cosine, 16 windows (2,048 tokens) a step, 1,000 steps (two epochs). For a seed, all sets have the same initial weights
# and the same batches. One thread per run, as many runs at once as there are processors. A finished run is not
# repeated.
# Columns of the CSV: lr, sets, seed, mean training loss of the last 100 steps, validation loss and accuracy at the end,
# steps until the mean training loss of 100 steps is at or below the last one of `none` with the same seed and rate (0:
# not within the run), max |log lambda|.
# shakespeare_curves.csv: lr, sets, step, mean training loss of the 50 steps up to it, mean and standard deviation over
# the seeds.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
trainer=${TRAINER:-./train_gpt_style} out=out/paper/shakespeare csv=${RESULTS:-dev/paper/results}/shakespeare.csv
. "$(dirname "$0")/value.sh"
steps=1000 seeds=${SEEDS:-"1 2 3"} rates="1e-3 3e-3 1e-2" all="none mlp vo qk ln all"

one() { # one LR SETS SEED
    case $2 in
    none) flags="--rescale none" ;;
    all) flags="--rescale pathcond" ;;
    *) flags="--rescale pathcond --rescale-sets $2" ;;
    esac
    dir=$out/$1/$2/$3
    [ -f "$dir/report.json" ] && return 0
    # A diverged run leaves no report; its CSV row says nan.
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=1 $trainer --data shakespeare --model tiny --lr "$1" --seed "$3" --steps $steps --batch-size 16 \
        $flags --quiet --eval-every 0 --checkpoint-every 0 --log-dir "$dir" --overwrite --report "$dir/report.json" \
        2>"$dir.err" || cat "$dir.err"
    return 0
}

# window LOG [TARGET]: mean loss of the last 100 steps, and the first step at which that mean is at or below TARGET
window() {
    awk -F, -v target="${2:-nan}" '
    $3 == "step" {
        loss[++n] = $4
        sum += $4
        if (n > 100) sum -= loss[n - 100]
        if (n >= 100 && !reached && target != "nan" && sum / 100 <= target + 1e-6) reached = n
    }
    END { if (n >= 100) printf "%.6f,%d\n", sum / 100, reached; else print "nan,0" }' "$1" 2>/dev/null
}

if [ "${1:-}" = one ]; then
    shift
    one "$@"
elif [ "${1:-}" = run ]; then
    sh data/get_data.sh shakespeare || exit
    for seed in $seeds; do
        for lr in $rates; do
            for sets in $all; do
                mkdir -p "$out/$lr/$sets"
                echo "$lr $sets $seed"
            done
        done
    done | xargs -P "$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)" -L 1 sh "$0" one
    {
        echo "lr,sets,seed,final_train_loss,final_val_loss,final_val_accuracy,steps_to_baseline,max_abs_log_lambda"
        for lr in $rates; do
            for sets in $all; do
                for seed in $seeds; do
                    dir=$out/$lr/$sets/$seed
                    target=$(window "$out/$lr/none/$seed/log.csv" | cut -d, -f1)
                    found=$(window "$dir/log.csv" "${target:-nan}")
                    loss=$(value "$dir/report.json" final_test_loss)
                    accuracy=$(value "$dir/report.json" final_test_accuracy)
                    largest=$(value "$dir/report.json" max_abs_log_lambda)
                    echo "$lr,$sets,$seed,${found%,*},${loss:-nan},$accuracy,${found#*,},$largest"
                done
            done
        done
    } >"$csv.part" && mv "$csv.part" "$csv"
    {
        echo "lr,sets,step,train_loss_mean,train_loss_std"
        for lr in $rates; do
            for sets in $all; do
                cat "$out/$lr/$sets"/*/log.csv | awk -F, -v lr="$lr" -v sets="$sets" '
                $3 == "step" {
                    sum += $4
                    if ($1 == 1) sum = $4
                    if ($1 % 50) next
                    m = sum / 50
                    sum = 0
                    n[$1]++
                    s1[$1] += m
                    s2[$1] += m * m
                }
                END {
                    for (t = 50; t in n; t += 50) {
                        c = n[t]
                        v = s2[t] / c - s1[t] / c * s1[t] / c
                        std = v > 0 && c > 1 ? sqrt(v * c / (c - 1)) : 0
                        printf "%s,%s,%d,%.5f,%.5f\n", lr, sets, t, s1[t] / c, std
                    }
                }'
            done
        done
    } >"${csv%.csv}_curves.csv"
    sh "$0" table
elif [ "${1:-}" = plot ]; then
    for lr in $rates; do
        runs=
        for sets in $all; do # the curves as logs that dev/compare reads
            mkdir -p "$out/curves/$lr/$sets"
            awk -F, -v lr="$lr" -v sets="$sets" '
            BEGIN { print "step,epoch,split,loss,accuracy,lr,grad_norm,ms,samples_per_s" }
            $1 == lr && $2 == sets && $3 >= 200 { print $3 "," $3 / 490 ",train," $4 ",n/a,n/a,n/a,n/a,n/a" }
            ' "${csv%.csv}_curves.csv" >"$out/curves/$lr/$sets/log.csv"
            runs="$runs $sets=$out/curves/$lr/$sets"
        done
        # shellcheck disable=SC2086
        build/c/dev/compare --title "tiny Shakespeare, AdamW, lr $lr: mean training loss over 3 seeds" \
            --out "$out/curves/$lr" $runs >/dev/null || exit
        cp "$out/curves/$lr/compare.svg" "${csv%.csv}_$lr.svg"
    done
elif [ "${1:-}" = table ]; then
    [ -f "$csv" ] || { echo "not measured yet"; exit 0; }
    # Per rate and set: mean +- standard deviation over the seeds; steps as the mean over the seeds that reached it.
    awk -F, '
    NR == 1 { next }
    {
        if (!($1 in seen)) { seen[$1] = 1; rates[++n] = $1 }
        if (!($2 in known)) { known[$2] = 1; sets[++m] = $2 }
        k = $1 "," $2; count[k]++; train[k] += $4; train2[k] += $4 * $4; val[k] += $5; val2[k] += $5 * $5
        if ($7 > 0) { reached[k]++; steps[k] += $7 }
    }
    function spread(sum, sum2, c,   v) {
        v = sum2 / c - sum / c * sum / c
        return v > 0 ? sqrt(v * c / (c > 1 ? c - 1 : 1)) : 0
    }
    END {
        line = "| lr |"; rule = "| ---: |"
        for (j = 1; j <= m; j++) { line = line " " sets[j] " |"; rule = rule " --- |" }
        print line; print rule
        for (i = 1; i <= n; i++) {
            line = "| " rates[i] " |"
            for (j = 1; j <= m; j++) {
                k = rates[i] "," sets[j]
                c = count[k]
                when = reached[k] ? sprintf("%d (%d/%d)", steps[k] / reached[k], reached[k], c) : "never"
                line = line sprintf(" %.3f ± %.3f, val %.3f ± %.3f, %s |", train[k] / c, \
                                    spread(train[k], train2[k], c), val[k] / c, spread(val[k], val2[k], c), when)
            }
            print line
        }
    }' "$csv"
else
    echo "usage: sh dev/paper/shakespeare.sh run|table|plot" >&2
    exit 2
fi
