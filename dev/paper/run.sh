#!/bin/sh
# run.sh -- the experiments, which make -C dev/paper NAME runs.
#
#     [QUICK=1] sh dev/paper/run.sh NAME     trains what is not there yet, then writes dev/paper/results/NAME[_full].csv
#
# NAME: moons, fc-depth, allconv, autoencoder, scale, held-out, cost, explosions. Environment:
#     NETS="..." INITS="..." RATES="..." METHODS="..." SEEDS="..."    only these; then it is NAME[_full]_part.csv
#     JOBS=N         runs at once (default: processors), each on THREADS=N threads (default 1)
#     OUT=DIR        rows of finished runs (default out/paper/experiments)
#     RESULTS=DIR    CSV files (default dev/paper/results)
#
# QUICK=1: minutes on two processors, smaller nets and fewer samples; without it the sizes of the paper, for a GPU. A
# finished run leaves one row and is not repeated, unless its command line has changed; one that was stopped begins
# anew. A run that diverges is a result (inf); any other error stops the experiment.
#
# A configuration is NET INIT LR METHOD SEED. For a seed, all methods have the same initial weights and batches.
# Methods: method_flags. Nets, rates, seeds: lists. A run's trainer and options: run_flags. Columns: report.c.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
out=${OUT:-out/paper/experiments} results=${RESULTS:-dev/paper/results}
quick=${QUICK:-0}
[ "$quick" = 1 ] && size=quick || size=full
jobs=${JOBS:-$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}
suffix=
[ "$size" = quick ] || suffix=_full
[ -z "${NETS:-}${INITS:-}${RATES:-}${METHODS:-}${SEEDS:-}" ] || suffix=${suffix}_part

# method_flags METHOD STEPS: what it is on the command line; STEPS of the run.
method_flags() {
    often="--rescale-every $((($2 + 19) / 20))steps"
    pathcond="--rescale pathcond"
    enorm="--rescale enorm --rescale-solver sweeps --rescale-sweeps 1"
    case $1 in
    none) echo "--rescale none" ;;
    pathcond) echo "$pathcond" ;;                                             # the optimum
    sweeps1) echo "$pathcond --rescale-solver unit-sweeps --rescale-sweeps 1" ;;
    sweeps10) echo "$pathcond --rescale-solver unit-sweeps --rescale-sweeps 10" ;; # as published
    bound1) echo "$pathcond --rescale-max-log 1" ;;                           # |log lambda| <= 1
    within) echo "$pathcond --rescale-within" ;;                              # means of the layers taken out
    weights) echo "$pathcond --rescale-paths weights" ;;                      # paths from biases left out
    trace) echo "$pathcond --rescale-max-trace 1" ;;                          # the trace of G does not grow
    trace1.5) echo "$pathcond --rescale-max-trace 1.5" ;;
    repeated) echo "$pathcond $often" ;;                                      # 20 times during the run
    pool-max) echo "$pathcond --rescale-pool max" ;;                          # paths of the largest of a pool only
    control) echo "$pathcond --rescale-strength 0.001" ;;                     # next to nothing: what chance does
    enorm) echo "--rescale enorm" ;;                                          # its optimum, once
    enorm-step) echo "$enorm --rescale-every 1steps" ;;                       # as its authors run it
    enorm-epoch) echo "$enorm --rescale-every 1epochs" ;;
    enorm-20) echo "$enorm $often" ;;                                         # one cycle, 20 times
    *) echo "unknown method $1" >&2; return 1 ;;
    esac
}

# widths N WIDTH: WIDTH,WIDTH,... N times
widths() { i=0; while [ $i -lt "$1" ]; do printf ',%d' "$2"; i=$((i + 1)); done; }

# lists EXPERIMENT: sets $nets, $inits, $rates, $methods, $seeds, and the data sets in $needs.
# An init is uniform or normal, and maybe xSCALE.
lists() {
    seeds="1 2 3 4 5" inits=uniform needs=
    methods="none pathcond sweeps1 sweeps10 bound1 within weights trace trace1.5 repeated control"
    methods="$methods enorm enorm-20 enorm-step"
    [ "$size" = quick ] && seeds="1 2 3"
    case $1-$size in
    moons-quick) nets="2-8x5-2 2-32x5-2" seeds="1 2 3 4 5" rates="0.001 0.01 0.1 0.3 1 3" ;;
    moons-full) nets="2-2x5-2 2-4x5-2 2-8x5-2 2-16x5-2 2-32x5-2" rates="0.0001 0.001 0.01 0.1 0.3 1 3" ;;
    fc-depth-quick)
        nets="fashion-500x3 fashion-500x5 fashion-500x5-bn cifar10-500x3 cifar10-500x5"
        rates="0.001 0.01 0.1 0.3 1"
        ;;
    fc-depth-full)
        nets='' inits="uniform normal" rates="0.0001 0.001 0.01 0.1 0.3 1"
        for data in cifar10 fashion; do for k in 3 4 5 6 7 8; do nets="$nets $data-500x$k $data-500x$k-bn"; done; done
        ;;
    allconv-quick) nets="allconv/4 allconv/8-bn small/2" rates="0.005 0.02 0.05 0.1" ;;
    allconv-full) nets="allconv allconv-bn small" inits="uniform normal" rates="0.001 0.01 0.05 0.1" ;;
    autoencoder-quick) nets="mnist-100-30 mnist-32-4 fashion-100-30 fashion-32-4" rates="0.1 0.3 1 3 10" ;;
    autoencoder-full)
        nets="mnist-100-30 mnist-64-8 mnist-32-4 fashion-100-30 fashion-64-8 fashion-32-4"
        inits="uniform normal" rates="0.01 0.03 0.1 0.3 1 3 10"
        ;;
    scale-quick)
        nets="constant pyramid bottleneck encoder-decoder"
        inits="uniformx0.3 uniform uniformx3" rates="0.001 0.01 0.03 0.1 0.3 1 3"
        ;;
    scale-full)
        nets="constant pyramid bottleneck encoder-decoder"
        inits="uniformx0.1 uniformx0.3 uniform uniformx3 uniformx10" rates="0.001 0.003 0.01 0.03 0.1 0.3 1 3"
        ;;
    held-out-*)
        nets="moons:2-16x3-2 fc-depth:fashion-300x4 autoencoder:mnist-64-8 scale:trapezoid allconv:small/4"
        inits="uniform normal" rates="0.02 0.1 0.5 2" seeds="11 12 13 14 15"
        ;;
    esac
    case $1 in
    moons) inits="uniform normal" ;;
    fc-depth)
        needs="fashion-mnist cifar10"
        methods="none pathcond sweeps10 bound1 within weights trace repeated enorm-epoch enorm-step"
        ;;
    allconv) needs=cifar10 methods="none pathcond sweeps10 bound1 weights trace enorm-step" ;;
    autoencoder) needs="mnist fashion-mnist" methods="none pathcond sweeps10 bound1 within trace repeated enorm-step" ;;
    scale) needs=fashion-mnist methods="none pathcond bound1 within trace control enorm" ;;
    held-out) needs="mnist fashion-mnist cifar10" methods="none pathcond bound1 trace control" ;;
    esac
    nets=${NETS:-$nets} inits=${INITS:-$inits} rates=${RATES:-$rates}
    methods=${METHODS:-$methods} seeds=${SEEDS:-$seeds}
}

# run_flags EXPERIMENT NET INIT: sets $steps and $flags, trainer and options without learning rate, method and seed.
run_flags() {
    case $2 in
    *:*) # EXPERIMENT:NET
        run_flags "${2%%:*}" "${2#*:}" "$3"
        return
        ;;
    esac
    flags=./train_mlp sgd="--optimizer sgd --batch-size 128" small=
    [ "$size" = quick ] && small="--limit 10000 --limit-test 2000"
    case $1 in
    moons)
        steps=2000 layers=${2#2-} depth=${2#*x}
        flags="$flags --data moons --layers 2$(widths "${depth%-2}" "${layers%%x*}"),2 --optimizer sgd --batch-size 0"
        ;;
    fc-depth)
        depth=${2#*x} width=${2#*-} norm=
        case $2 in *-bn) norm="--norm batch" depth=${depth%-bn} ;; esac
        case $2-$size in
        fashion*quick) steps=395 ;;
        *quick) steps=195 small="--limit 5000 --limit-test 2000" ;;
        *) steps=39100 ;;
        esac
        case $2 in fashion*) data=fashion-mnist in=784 ;; *) data=cifar10 in=3072 ;; esac
        flags="$flags --data $data $small --layers $in$(widths "$depth" "${width%%x*}"),10 $norm $sgd"
        ;;
    allconv)
        case $2 in *-bn) norm="batch" ;; *) norm="none" ;; esac
        model=${2%-bn} steps=50048 more=$sgd
        # full: the paper's SGD; quick: momentum, or nothing happens in so few steps
        if [ "$size" = quick ]; then
            more="--optimizer momentum --batch-size 32 --limit-test 2000"
            case $2 in allconv/4) steps=400 more="$more --limit 12800" ;; *) steps=200 more="$more --limit 6400" ;; esac
        fi
        case $model in */*) more="$more --width $(awk "BEGIN { print 1 / ${model#*/} }")" ;; esac
        flags="./train_cnn --data cifar10 --model ${model%/*} --norm $norm $more"
        ;;
    autoencoder)
        case $2 in mnist*) data=mnist ;; *) data=fashion-mnist ;; esac
        inner=${2#*-} b=${2##*-} a=${inner%-*}
        if [ "$size" = quick ]; then steps=316 wide=500; else steps=23450 wide=1000; fi
        flags="$flags --task autoencode --data $data $small --layers 784,$wide,$a,$b,$a,$wide,784 $sgd"
        ;;
    scale)
        case $2 in
        constant) layers=784,256,256,256,256,256,10 ;;
        pyramid) layers=784,512,256,128,64,32,10 ;;
        bottleneck) layers=784,512,64,16,64,512,10 ;;
        trapezoid) layers=784,64,128,256,512,10 ;;
        encoder-decoder) layers="784,512,128,32,128,512,784 --task autoencode" ;;
        esac
        if [ "$size" = quick ]; then steps=316; else steps=9380; fi
        flags="$flags --data fashion-mnist $small --layers $layers $sgd"
        ;;
    esac
    case $3 in uniform*) flags="$flags --init kaiming-uniform" ;; *) flags="$flags --init kaiming-normal" ;; esac
    case $3 in *x*) flags="$flags --init-scale ${3#*x}" ;; esac
}

. "$(dirname "$0")/value.sh"
machine() {
    gpu=$(nvidia-smi -L 2>/dev/null | head -n 1)
    processor=$(sed -n 's/^model name.*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
    processors=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    echo "${gpu:+$gpu, }$processors processors ($processor), $(date +%F)"
}

# one EXPERIMENT NET INIT LR METHOD SEED: one run, one row
one() {
    dir=$out/$size/$1/$(echo "$2" | tr / _)/$3/$4/$5
    row=$dir/$6.row
    run_flags "$@"
    method=$(method_flags "$5" "$steps") || return 255
    sum=$(echo "$flags $method $steps" | cksum | cut -d ' ' -f 1)
    [ -s "$row" ] && [ "$(sed 's/.*,//' "$row")" = "$sum" ] && return 0
    mkdir -p "$dir"
    temporary=$dir/$6.part$$ # a name of its own: what a killed runner left behind may still be running
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=${THREADS:-1} $flags $method --lr "$4" --seed "$6" --steps $steps --quiet \
        --eval-every 0 --checkpoint-every 0 --log-dir "$temporary" --overwrite --report "$temporary.json" \
        2>"$temporary.err"
    status=$?
    if [ $status -ne 0 ] && ! { [ $status -eq 1 ] && grep -q diverged "$temporary.err"; }; then
        if [ $status -ne 130 ] && [ $status -ne 143 ]; then
            cat "$temporary.err" >&2
            echo "run.sh: $*: exit status $status" >&2
        fi
        return 255 # xargs stops
    fi
    json=$temporary.json head="$1,$2,$3,$4,$5,$6,$steps"
    if [ $status -eq 0 ]; then
        keys="final_train_loss final_test_loss final_test_accuracy max_abs_log_lambda trace_ratio seconds step_seconds"
        for key in $keys; do head="$head,$(value "$json" $key)"; done
    else
        head="$head,inf,inf,0,nan,nan,0,0" # it leaves no report: what is not known is nan
    fi
    commit=$(git describe --always --dirty)
    awk -F, -v steps="$steps" -v head="$head" -v failed=$status -v sum="$sum" -v commit="$commit" '
    $3 == "step" { k = int(($1 - 1) * 20 / steps); total[k] += $4; n[k]++ }
    END {
        printf "%s", head
        for (k = 0; k < 20; k++) printf ",%s", (failed || !n[k] ? "inf" : sprintf("%.5g", total[k] / n[k]))
        print "," commit "," sum
    }' "$temporary/log.csv" >"$temporary.new" &&
        mv "$temporary.new" "$row" && rm -rf "$temporary" "$json" "$temporary.err"
}

experiment() {
    lists "$1"
    for data in $needs; do sh data/get_data.sh "$data" || return; done
    for seed in $seeds; do
        for net in $nets; do
            for init in $inits; do
                for lr in $rates; do
                    case $net-$lr in allconv/4-0.005) continue ;; esac # learns nothing at 0.02 already, and is slow
                    for method in $methods; do echo "$1 $net $init $lr $method $seed"; done
                    case $1-$net in allconv-small*) echo "$1 $net $init $lr pool-max $seed" ;; esac # it has max-pools
                done
            done
        done
    done >"$out/$size-$1.list" || return
    list=$out/$size-$1.list
    if ! xargs -P "$jobs" -L 1 sh "$0" one <"$list"; then
        echo "run.sh: $1 is not complete; the same command goes on" >&2
        return 1
    fi
    find "$out/$size/$1" -name '*.part*' -prune ! -newer "$list" -exec rm -rf {} + # of runs that were stopped before
    csv=$results/$1$suffix.csv
    while read -r e net init lr method seed; do
        cat "$out/$size/$e/$(echo "$net" | tr / _)/$init/$lr/$method/$seed.row"
    done <"$list" >"$csv.rows"
    commits=$(awk -F, '{ print $(NF - 1) }' "$csv.rows" | sort -u | tr '\n' ' ')
    {
        echo "# $size, $(machine), commits of the runs: $commits"
        printf 'experiment,net,init,lr,method,seed,steps,train_loss,test_loss,test_accuracy,max_log_lambda,'
        printf 'trace_ratio,rescale_seconds,train_seconds'
        for k in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do printf ',c%d' $k; done
        echo
        awk -F, -v OFS=, '{
            for (i = 8; i <= 14; i++) if ($i ~ /^[-+.0-9e]+$/) $i = sprintf("%.6g", $i)
            NF -= 2
            print
        }' "$csv.rows"
    } >"$csv.part" && rm "$csv.rows" && mv "$csv.part" "$csv" && echo "wrote $csv"
}

# cost: what rescaling takes, beside a training step. Columns: net, parameters, diag_g, solve, apply (seconds),
# newton_steps, step (seconds per step at batch 128, mean of 10), peak_memory_mib. All processors, three runs each; the
# net of 1.1 billion parameters once, two steps, where 16 GiB of memory are free.
cost() {
    sh data/get_data.sh cifar10 || return
    csv=$results/cost$suffix.csv
    nets="mlp-256x3 mlp-512x5 mlp-512x20 mlp-1024x5 mlp-2048x5 mlp-4096x3 mlp-4096x6 mlp-16384x5"
    nets="$nets cnn-small cnn-allconv cnn-resnet18"
    [ "$quick" = 1 ] || nets="$nets mlp-512x50 mlp-8192x5"
    {
        echo "# $size, $(machine), commit $(git describe --always --dirty)"
        echo "net,parameters,diag_g,solve,apply,newton_steps,step,peak_memory_mib"
        for net in $nets; do
            case $net in
            mlp-*) width=${net#mlp-} flags="./train_mlp --layers 3072$(widths "${net#*x}" "${width%x*}"),10" ;;
            *) flags="./train_cnn --model ${net#cnn-}" ;;
            esac
            seeds="1 2 3" steps=10
            case $net in
            mlp-16384x5)
                seeds=1 steps=2
                awk '$1 == "MemAvailable:" { exit $2 < 16 * 1048576 }' /proc/meminfo 2>/dev/null || continue
                ;;
            esac
            for seed in $seeds; do
                json=$out/cost.json
                # shellcheck disable=SC2086
                $flags --data cifar10 --limit 640 --limit-test 128 --lr 1e-4 --seed $seed --steps $steps \
                    --rescale pathcond --eval-every 0 --quiet --report "$json" || return
                row=$net
                for key in parameters seconds_diag_g seconds_solve seconds_apply iterations; do
                    row=$row,$(value "$json" $key)
                done
                step=$(awk "BEGIN { print $(value "$json" step_seconds) / $steps }")
                echo "$row,$step,$(value "$json" peak_memory_mib)"
            done
        done
    } >"$csv.part" && mv "$csv.part" "$csv" && echo "wrote $csv"
}

# explosions: how high the loss of a step goes, over that of the first, in runs that learn and in runs that do not:
# 2-32x5-2 on moons, where the trainers' warning comes from.
# Columns: init, lr, method, seed, peak (over the first loss), learned (last loss below half the first).
explosions() {
    csv=$results/explosions$suffix.csv log=$out/explosions
    lists moons
    {
        echo "# $size, $(machine), commit $(git describe --always --dirty)"
        echo "init,lr,method,seed,peak,learned"
        for init in $inits; do
            run_flags moons 2-32x5-2 "$init"
            for lr in 0.1 0.3 1; do
                for method in none pathcond trace; do
                    for seed in $seeds; do
                        rm -rf "$log"
                        # shellcheck disable=SC2046,SC2086
                        OMP_NUM_THREADS=1 $flags $(method_flags $method $steps) --lr $lr --seed "$seed" --steps $steps \
                            --quiet --eval-every 0 --checkpoint-every 0 --log-dir "$log" 2>"$log.err" ||
                            grep -q diverged "$log.err" || { cat "$log.err" >&2; return 1; }
                        awk -F, -v head="$init,$lr,$method,$seed" -v failed="$(grep -c diverged "$log.err")" '
                        $3 == "step" { if (!n++) first = $4; last = $4; if ($4 + 0 > peak + 0) peak = $4 }
                        END { printf "%s,%.3g,%d\n", head, peak / first, !failed && last < first / 2 }' "$log/log.csv"
                    done
                done
            done
        done
    } >"$csv.part" && mv "$csv.part" "$csv" && echo "wrote $csv"
}

# read_curves NAME: results/NAME.csv, the compare.csv of a run, as logs for dev/compare: $runs, in $logs
read_curves() {
    csv=$results/$1.csv logs=$out/curves/$1 runs=
    for run in $(sed '1d; s/,.*//' "$csv" | uniq); do
        mkdir -p "$logs/$run" || return
        awk -F, -v run="$run" '
        BEGIN { print "step,epoch,split,loss,accuracy,lr,grad_norm,ms,samples_per_s" }
        $1 == run {
            print "0," $2 ",train," $3 ",n/a,n/a,n/a,n/a,n/a"
            print "0," $2 ",test," $4 "," $5 ",n/a,n/a,n/a,n/a"
        }
        ' "$csv" >"$logs/$run/log.csv" || return
        runs="$runs $run=$logs/$run"
    done
}

# plot_curves NAME TITLE [OPTION]: results/NAME.svg from results/NAME.csv
plot_curves() {
    title=$2 name=$1
    shift 2
    [ -f "$results/$name.csv" ] || return 0
    read_curves "$name" || return
    # shellcheck disable=SC2086
    build/c/dev/compare "$@" --title "$title" --out "$logs" $runs >/dev/null &&
        cp "$logs/compare.svg" "$results/$name.svg"
}

case ${1:-} in
one)
    shift
    one "$@"
    ;;
moons | fc-depth | allconv | autoencoder | scale | held-out | cost | explosions)
    mkdir -p "$out" "$results"
    case $1 in cost | explosions) "$1" ;; *) experiment "$1" ;; esac
    ;;
# For README.md: table LR NAME, harm NAME..., above RATIO METHOD NAME..., and worse, best, summary METHOD NAME...
# They need make build/c/dev/paper/report.
table | harm | worse | best | above | summary)
    command=$1 argument=
    [ "$1" = harm ] || { argument=${2:-} && shift; }
    [ "$command" != above ] || { argument="$argument ${2:-}" && shift; }
    shift
    files=
    for name in "$@"; do
        csv=$results/$name.csv
        [ -f "$csv" ] || { echo "$name: not measured yet"; exit 0; }
        files="$files $csv"
        case $command in table | harm) ;; *) continue ;; esac
        echo "$name: $(sed -n '1s/^# //p' "$csv"); $(grep -vc '^#\|^experiment' "$csv") runs"
    done
    echo
    # shellcheck disable=SC2086
    build/c/dev/paper/report "$command" $argument $files
    ;;
cost-table) # NAME (cost, cost_full): medians of the three runs
    csv=$results/${2:-cost}.csv
    [ -f "$csv" ] || { echo "not measured yet"; exit 0; }
    sed -n '1s/^# \(.*\)/\1\n/p' "$csv"
    printf '| net | parameters | diag(G) ms | solve ms | apply ms | Newton steps | step ms | rescaling, steps '
    echo "| rescaling, epochs of 50,000 | peak MiB |"
    echo "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    awk -F, '
    function median(a, b, c) {
        if (a > b) return median(b, a, c)
        if (c < a) return a
        return c < b ? c : b
    }
    /^#/ || $1 == "net" { next }
    { k = n[$1]++; if (k == 0) order[++m] = $1; for (i = 2; i <= NF; i++) v[$1, i, k] = $i }
    END {
        for (j = 1; j <= m; j++) {
            net = order[j]
            for (i = 2; i <= 8; i++) {
                x[i] = v[net, i, 0]
                if (n[net] >= 3) x[i] = median(v[net, i, 0] + 0, v[net, i, 1] + 0, v[net, i, 2] + 0)
            }
            steps = (x[3] + x[4] + x[5]) / x[7]
            printf "| %s | %d | %.2f | %.2f | %.2f | %d | ", net, x[2], 1e3 * x[3], 1e3 * x[4], 1e3 * x[5], x[6]
            printf "%.1f | %.2f | %.5f | %d |\n", 1e3 * x[7], steps, steps * 128 / 50000, x[8]
        }
    }' "$csv"
    ;;
explosions-table)
    csv=$results/explosions.csv
    [ -f "$csv" ] || { echo "not measured yet"; exit 0; }
    sed -n '1s/^# \(.*\)/\1\n/p' "$csv"
    echo "| | runs | least peak | largest peak |"
    echo "| --- | ---: | ---: | ---: |"
    awk -F, '
    /^#/ || $1 == "init" { next }
    {
        k = $6
        if (!n[k]++ || $5 + 0 < least[k]) least[k] = $5 + 0
        if ($5 + 0 > largest[k]) largest[k] = $5 + 0
    }
    function row(what, k) { printf "| %s | %d | %.3g | %.3g |\n", what, n[k], least[k], largest[k] }
    END {
        row("learns", 1)
        row("ends near its first loss, or diverges", 0)
    }' "$csv"
    ;;
# Of every experiment with a CSV file, of make run and the language models. They need the programs of make paper-report.
make-run) # for the front README: the first lines of the table that make run printed; needs make compare
    read_curves make_run || exit
    # shellcheck disable=SC2086
    build/c/dev/compare --out "$logs" $runs >"$logs/table" || exit
    echo
    sed -n '/^run /,/^10 /s/^/    /p' "$logs/table" | grep -v '^    [3579] '
    echo
    ;;
plots)
    for csv in "$results"/*.csv; do
        name=$(basename "$csv" .csv)
        # every plot has the baseline, the default and the bounded optimum
        case $name in
        *_part) continue ;;
        moons*) lists="none,pathcond,bound1,trace none,pathcond,sweeps10,within none,pathcond,enorm,enorm-step" ;;
        fc-depth*)
            lists="none,pathcond,bound1,trace none,pathcond,weights,repeated none,pathcond,enorm-epoch,enorm-step"
            ;;
        allconv*) lists=none,pathcond,bound1,enorm-step ;;
        autoencoder*) lists="none,pathcond,bound1,trace none,pathcond,sweeps10,enorm-step" ;;
        scale*) lists=none,pathcond,bound1,enorm ;;
        held-out*) lists=none,pathcond,bound1,trace ;;
        *) continue ;;
        esac
        # shellcheck disable=SC2086
        build/c/dev/paper/report plot "$csv" "$name: training loss at the end" $lists >"$results/$name.svg.part" &&
            mv "$results/$name.svg.part" "$results/$name.svg" || exit
    done
    overview_of="moons fc-depth allconv autoencoder scale held-out" files=
    for name in $overview_of; do [ ! -f "$results/$name.csv" ] || files="$files $results/$name.csv"; done
    # shellcheck disable=SC2086
    if [ -n "$files" ]; then
        build/c/dev/paper/report overview pathcond,bound1 "Loss after rescaling, over the loss without" $files \
            >"$results/overview.svg.part" && mv "$results/overview.svg.part" "$results/overview.svg" || exit
    fi
    plot_curves make_run "MLP on fashion-mnist: not rescaled, PathCond, ENorm" || exit
    plot_curves make_shakespeare "tiny transformer on shakespeare: cross-entropy in nats per byte" --test-loss || exit
    RESULTS=$results sh dev/paper/shakespeare.sh plot
    ;;
*)
    names="moons | fc-depth | allconv | autoencoder | scale | held-out | cost | explosions"
    echo "usage: [QUICK=1] sh dev/paper/run.sh $names" >&2
    exit 2
    ;;
esac
