#!/bin/sh
# run.sh -- the experiments: make -C dev/paper moons | fc-depth | allconv | autoencoder | scale | cost | all
#
#     [QUICK=1] sh dev/paper/run.sh NAME       trains what is not there yet, then writes dev/paper/results/NAME[_full].csv
#
# QUICK=1: minutes on two processors, smaller nets and fewer samples; without it the sizes of the paper, for a GPU. As many runs at once as
# there are processors (JOBS=N for another number), each on one thread on a CPU. A finished run leaves one row in out/paper/ and
# is not repeated; one that was stopped begins anew. A run that diverges is a result (inf); any other error stops the experiment.
#
# A configuration is NET INIT LR METHOD SEED. For a seed, all methods have the same initial weights and the same batches.
# The methods are listed in method_flags, the nets of every experiment in its function. Rows: see report.c.
here=dev/paper out=out/paper/experiments
quick=${QUICK:-0}
[ "$quick" = 1 ] && size=quick || size=full
jobs=${JOBS:-$(nproc)}
suffix=
[ $size = quick ] || suffix=_full

# method_flags METHOD STEPS: what it is on the command line; STEPS of the run.
method_flags() {
    often="--rescale-every $((($2 + 19) / 20))steps"
    case $1 in
    none) echo "--rescale none" ;;
    pathcond) echo "--rescale pathcond" ;;                                                   # the optimum
    sweeps1) echo "--rescale pathcond --rescale-solver unit-sweeps --rescale-sweeps 1" ;;
    sweeps10) echo "--rescale pathcond --rescale-solver unit-sweeps --rescale-sweeps 10" ;;  # as published
    bound1) echo "--rescale pathcond --rescale-max-log 1" ;;                                 # |log lambda| <= 1
    half) echo "--rescale pathcond --rescale-strength 0.5" ;;                                # half of log lambda
    within) echo "--rescale pathcond --rescale-within" ;;                                    # means of the layers taken out
    weights) echo "--rescale pathcond --rescale-paths weights" ;;                            # paths from biases left out
    repeated) echo "--rescale pathcond $often" ;;                                            # 20 times during the run
    enorm) echo "--rescale enorm" ;;                                                         # its optimum, once
    enorm-step) echo "--rescale enorm --rescale-solver sweeps --rescale-sweeps 1 --rescale-every 1steps" ;;  # as its authors run it
    enorm-20) echo "--rescale enorm --rescale-solver sweeps --rescale-sweeps 1 $often" ;;    # one cycle, 20 times
    pool-max) echo "--rescale pathcond --rescale-pool max" ;;
    sweeps10-max) echo "--rescale pathcond --rescale-solver unit-sweeps --rescale-sweeps 10 --rescale-pool max" ;;
    *) echo "unknown method $1" >&2; return 1 ;;
    esac
}

# repeated N WIDTH: WIDTH,WIDTH,... N times
repeated() { i=0; while [ $i -lt "$1" ]; do printf ',%d' "$2"; i=$((i + 1)); done; }

# settings EXPERIMENT: lines `NET INIT` and what varies with them; lists in $rates, $methods, $seeds.
# run_flags EXPERIMENT NET INIT: trainer and options of a run without learning rate, method and seed; sets $steps.
init_flags() { # INIT is uniform or normal, and maybe xSCALE
    case $1 in uniform*) echo "--init kaiming-uniform" ;; *) echo "--init kaiming-normal" ;; esac
    case $1 in *x*) echo "--init-scale ${1#*x}" ;; esac
}
lists() {
    seeds="1 2 3 4 5" methods="none pathcond sweeps1 sweeps10 bound1 half within weights repeated enorm enorm-20 enorm-step"
    [ $size = quick ] && seeds="1 2 3"
    case $1-$size in
    moons-quick) nets="2-8x5-2 2-32x5-2" inits="uniform normal" rates="0.001 0.01 0.1 1" ;;
    moons-full) nets="2-2x5-2 2-4x5-2 2-8x5-2 2-16x5-2 2-32x5-2" inits="uniform normal" rates="0.0001 0.001 0.01 0.1 1" ;;
    fc-depth-quick) nets="fashion-500x3 fashion-500x5 fashion-500x5-bn cifar10-500x3 cifar10-500x5" inits=uniform rates="0.001 0.01 0.1 0.3" ;;
    fc-depth-full)
        nets= inits="uniform normal" rates="0.0001 0.001 0.01 0.1 0.3"
        for data in cifar10 fashion; do for k in 3 4 5 6 7 8; do nets="$nets $data-500x$k $data-500x$k-bn"; done; done
        ;;
    allconv-quick) nets="allconv/4 allconv/4-bn" inits="uniform normal" rates="0.005 0.02 0.05 0.1" ;;
    allconv-full) nets="allconv allconv-bn" inits="uniform normal" rates="0.001 0.01 0.05 0.1" ;;
    autoencoder-quick) nets="mnist-100-30 mnist-32-4 fashion-100-30 fashion-32-4" inits=uniform rates="0.1 0.3 1 3" ;;
    autoencoder-full) nets="mnist-100-30 mnist-64-8 mnist-32-4 fashion-100-30 fashion-64-8 fashion-32-4" inits="uniform normal" rates="0.01 0.03 0.1 0.3 1 3" ;;
    scale-quick | scale-full) nets="constant pyramid bottleneck encoder-decoder" inits="uniformx0.3 uniform uniformx3" rates="0.001 0.01 0.1 1" ;;
    esac
    case $1 in
    allconv) methods="$methods pool-max sweeps10-max" ;;
    scale) methods="none pathcond within enorm" ; [ $size = full ] && inits="uniformx0.1 uniformx0.3 uniform uniformx3 uniformx10" ;;
    esac
    return 0
}
run_flags() {
    trainer=./train_mlp optimizer="--optimizer sgd --batch-size 128"
    case $1 in
    moons)
        steps=2000 width=${2#2-}
        echo "$trainer --data moons --layers 2$(repeated 5 "${width%%x*}"),2 --optimizer sgd --batch-size 0"
        ;;
    fc-depth)
        case $2 in
        fashion*) data=fashion-mnist in=784 ;;
        *) data=cifar10 in=3072 ;;
        esac
        layers=${2#*x} norm=
        case $2 in *-bn) norm="--norm batch" layers=${layers%-bn} ;; esac
        [ $size = quick ] && steps=395 limit="--limit 10000" || { steps=39100 limit=; }
        echo "$trainer --data $data $limit --layers $in$(repeated "$layers" 500),10 $norm $optimizer"
        ;;
    allconv)
        case $2 in *-bn) norm=batch ;; *) norm=none ;; esac
        # full: the paper's SGD; quick: momentum, or nothing happens in so few steps
        [ $size = quick ] && steps=400 more="--width 0.25 --limit 12800 --optimizer momentum --batch-size 64" || { steps=50048 more=$optimizer; }
        echo "./train_cnn --data cifar10 --model allconv --norm $norm $more"
        ;;
    autoencoder)
        case $2 in mnist*) data=mnist ;; *) data=fashion-mnist ;; esac
        inner=${2#*-} b=${2##*-} a=${inner%-*}
        [ $size = quick ] && steps=316 limit="--limit 10000" wide=500 || { steps=23450 limit= wide=1000; }
        echo "$trainer --task autoencode --data $data $limit --layers 784,$wide,$a,$b,$a,$wide,784 $optimizer"
        ;;
    scale)
        case $2 in
        constant) layers=784,256,256,256,256,256,10 ;;
        pyramid) layers=784,512,256,128,64,32,10 ;;
        bottleneck) layers=784,512,64,16,64,512,10 ;;
        encoder-decoder) layers="784,512,128,32,128,512,784 --task autoencode" ;;
        esac
        [ $size = quick ] && steps=316 limit="--limit 10000" || { steps=9380 limit=; }
        echo "$trainer --data fashion-mnist $limit --layers $layers $optimizer"
        ;;
    esac
}

# one EXPERIMENT NET INIT LR METHOD SEED: one run, one row
one() {
    dir=$out/$size/$1/$(echo "$2" | tr / _)/$3/$4/$5
    row=$dir/$6.row
    [ -s "$row" ] && return 0
    mkdir -p "$dir"
    flags=$(run_flags "$@")
    run_flags "$@" >/dev/null # once more in this shell: it sets steps
    method=$(method_flags "$5" $steps) || return 255
    # shellcheck disable=SC2046,SC2086
    OMP_NUM_THREADS=${THREADS:-1} $flags $(init_flags "$3") $method --lr "$4" --seed "$6" --steps $steps --quiet \
        --eval-every 0 --checkpoint-every 0 --log-dir "$dir/$6" --report "$dir/$6.json" 2>"$dir/$6.err"
    status=$?
    if [ $status -ne 0 ] && ! grep -q "diverged\|not finite\|not a number" "$dir/$6.err"; then
        [ $status -gt 128 ] || { cat "$dir/$6.err" >&2; echo "run.sh: $*: exit status $status" >&2; }
        return 255 # xargs stops
    fi
    json=$dir/$6.json
    value() { sed -n "s/.*\"$1\": \([^,]*\),*$/\1/p" "$json" | head -n 1 | sed 's/null/nan/'; }
    if [ $status -eq 0 ]; then
        set -- "$@" "$(value final_train_loss)" "$(value final_test_loss)" "$(value final_test_accuracy)" "$(value max_abs_log_lambda)" \
            "$(value seconds)" "$(value step_seconds)"
    else
        set -- "$@" inf inf 0 0 0 0
    fi
    awk -F, -v steps=$steps -v head="$1,$2,$3,$4,$5,$6,$steps,$7,$8,$9,${10},${11},${12}" -v failed=$status '
    $3 == "step" { k = int(($1 - 1) * 20 / steps); sum[k] += $4; n[k]++ }
    END { printf "%s", head; for (k = 0; k < 20; k++) printf ",%s", failed || !n[k] ? "inf" : sprintf("%.5g", sum[k] / n[k]); print "" }' "$dir/$6/log.csv" >"$row.part" &&
        mv "$row.part" "$row" && rm -rf "${dir:?}/$6" "$dir/$6.json" "$dir/$6.err"
}

experiment() {
    lists "$1"
    case $1 in
    fc-depth) needs="fashion-mnist cifar10" ;; allconv) needs=cifar10 ;; autoencoder) needs="mnist fashion-mnist" ;; scale) needs=fashion-mnist ;; *) needs= ;;
    esac
    for data in $needs; do sh data/get_data.sh "$data" || return; done
    for seed in $seeds; do
        for net in $nets; do
            for init in $inits; do
                for lr in $rates; do
                    for method in $methods; do echo "$1 $net $init $lr $method $seed"; done
                done
            done
        done
    done >"$out/$size-$1.list" || return
    xargs -P "$jobs" -L 1 sh "$0" one <"$out/$size-$1.list" || { echo "run.sh: $1 is not complete; the same command goes on" >&2; return 1; }
    csv=$here/results/$1$suffix.csv
    {
        echo "# $size, $(nproc) processors ($(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)), $(date +%F), commit $(git describe --always --dirty)"
        printf 'experiment,net,init,lr,method,seed,steps,train_loss,test_loss,test_accuracy,max_log_lambda,rescale_seconds,train_seconds'
        for k in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do printf ',c%d' $k; done
        echo
        while read -r e net init lr method seed; do cat "$out/$size/$e/$(echo "$net" | tr / _)/$init/$lr/$method/$seed.row"; done <"$out/$size-$1.list"
    } >"$csv.part" && mv "$csv.part" "$csv" && echo "wrote $csv"
}

case ${1:-} in
one)
    shift
    one "$@"
    ;;
moons | fc-depth | allconv | autoencoder | scale)
    mkdir -p "$out" "$here/results"
    experiment "$1"
    ;;
*)
    echo "usage: [QUICK=1] sh dev/paper/run.sh moons | fc-depth | allconv | autoencoder | scale" >&2
    exit 2
    ;;
esac
