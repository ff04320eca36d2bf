#!/bin/sh
# criteria.sh -- the second study: which criterion wins where every method has its own best learning rate?
#
#     sh dev/paper/criteria.sh rates STUDY      finds every method's best rate
#     sh dev/paper/criteria.sh judge STUDY      trains at the best rates, with other seeds
#     SETTINGS=ONE sh dev/paper/criteria.sh control STUDY       tunes a rate for every layer, without a criterion
#     sh dev/paper/criteria.sh table STUDY      prints a row for every setting and method
#     sh dev/paper/criteria.sh summary STUDY    prints a row for every method
#
# STUDY: choose (where methods were picked; nothing is claimed) or confirm (other data, nets and seeds). Environment:
#     SETTINGS="..." METHODS="..."      only these
#     JOBS=N                            runs at once (default: processors), each on one thread
#     OUT=DIR                           work (default out/paper/criteria)
#     RESULTS=DIR                       CSV files (default dev/paper/results)
#
# Rows of finished runs stand in RESULTS/criteria_STUDY.csv and are not repeated, unless their command line has
# changed: a study that was stopped goes on. Rates: first r, 4 r and 16 r; then the neighbours at a factor 2 of the best
# one, until it has both. The best rate has the least geometric mean of the final training losses over the seeds; a run
# that diverged counts as a loss of 1e6. The final loss is the mean over the last twentieth of the steps.
#
# A setting is DATA-NET/OPTIMIZER, and maybe /SCHEDULE, /INIT or /STEPSsteps: fashion-256x6/sgd, cifar10-ae/adamw/x0.3.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
out=${OUT:-out/paper/criteria} results=${RESULTS:-dev/paper/results}
jobs=${JOBS:-$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}
. "$(dirname "$0")/value.sh"

# method_flags METHOD STEPS
method_flags() {
    pathcond="--rescale pathcond" data="--rescale pathcond --rescale-kernel data"
    layer="--rescale-level layer"
    case $1 in
    none) echo "--rescale none" ;;
    pathcond) echo "$pathcond" ;;
    enorm) echo "--rescale enorm" ;;
    paths-layer) echo "$pathcond $layer" ;;
    paths1) echo "$pathcond --rescale-power 1" ;;
    paths1-layer) echo "$pathcond --rescale-power 1 $layer" ;;
    data) echo "$data" ;;
    data-layer) echo "$data $layer" ;;
    data-layer-512) echo "$data $layer --rescale-samples 512" ;;
    data-layer-bound1) echo "$data $layer --rescale-max-log 1" ;;
    data-bound1) echo "$data --rescale-max-log 1" ;;
    data-epoch) echo "$data $layer --rescale-every 1epochs" ;;
    data1-layer) echo "$data --rescale-power 1 $layer" ;;
    data1-bound1) echo "$data --rescale-power 1 --rescale-max-log 1" ;;
    fisher-layer) echo "$pathcond --rescale-kernel fisher $layer" ;;
    log:*) echo "--rescale-log ${1#log:}" | tr _ , ;; # per-layer rates; _ stands for a comma
    *) echo "unknown method $1" >&2; return 1 ;;
    esac
}

# lists STUDY: sets $settings, $methods, $seeds (rates), $judges (judge)
lists() {
    case $1 in
    choose)
        seeds="1 2" judges="1 2 3 4"
        settings="mnist-256x6/sgd mnist-256x6/adamw mnist-pyramid/sgd mnist-pyramid/adamw mnist-ae/sgd mnist-ae/adamw"
        methods="none pathcond enorm paths1 paths1-layer data-layer data1-layer fisher-layer data-bound1"
        ;;
    confirm)
        seeds="11 12" judges="21 22 23 24 25 26 27 28"
        settings="fashion-256x6/sgd fashion-256x6/adamw fashion-pyramid/sgd fashion-ae/sgd fashion-ae/adamw"
        settings="$settings cifar10-256x4/sgd cifar10-256x4/momentum/cosine fashion-512x3/sgd fashion-256x6-bn/sgd"
        settings="$settings fashion-128x10/sgd moons-32x5/sgd/1000steps moons-32x5/adamw/1000steps"
        settings="$settings fashion-256x4/sgd/normal fashion-256x4/sgd/x0.3 fashion-256x4/sgd/x3"
        settings="$settings fashion-bottleneck/adamw/one-cycle fashion-256x4/momentum fashion-256x6/sgd/1500steps"
        settings="$settings cifar10-ae/adamw"
        methods="none pathcond enorm data-layer fisher-layer data1-layer paths1"
        ;;
    *) echo "unknown study $1" >&2; return 2 ;;
    esac
    settings=${SETTINGS:-$settings} methods=${METHODS:-$methods}
}

# setting_flags SETTING: sets $flags, $steps, $rate (the first) and $need (a data set)
setting_flags() {
    name=${1%%/*} rest=/${1#*/}/
    data=${name%%-*} net=${name#*-} steps=316 norm= task= program=./train_mlp
    case $data in
    mnist) need=mnist in=784 out_units=10 ;;
    fashion) need=fashion-mnist in=784 out_units=10 ;;
    cifar10) need=cifar10 in=3072 out_units=10 ;;
    moons) need= in=2 out_units=2 ;;
    esac
    case $net in *-bn) norm="--norm batch" net=${net%-bn} ;; esac
    case $net in
    ae) hidden=500,100,30,100,500 out_units=$in task="--task autoencode" ;;
    pyramid) hidden=512,256,128,64,32 ;;
    bottleneck) hidden=512,64,16,64,512 ;;
    *x*)
        hidden=${net%x*} k=1
        while [ $k -lt "${net#*x}" ]; do hidden=$hidden,${net%x*} k=$((k + 1)); done
        ;;
    *) echo "unknown net $net" >&2; return 1 ;;
    esac
    case $rest in
    */sgd/*) optimizer=sgd rate=0.05 ;;
    */momentum/*) optimizer=momentum rate=0.005 ;;
    */adamw/*) optimizer=adamw rate=0.0005 ;;
    esac
    case $net-$optimizer in ae-sgd) rate=0.8 ;; ae-momentum) rate=0.08 ;; esac
    case $rest in */*steps/*) steps=${rest%steps/*} steps=${steps##*/} ;; esac
    limits="--limit 10000"
    case $data in moons) limits= ;; esac
    flags="$program --data ${need:-$data} $limits --layers $in,$hidden,$out_units $task $norm --optimizer $optimizer"
    case $rest in
    */cosine/*) flags="$flags --schedule cosine" ;;
    */one-cycle/*) flags="$flags --schedule one-cycle" ;;
    esac
    case $rest in */normal/*) flags="$flags --init kaiming-normal" ;; esac
    case $rest in */x*) scale=${rest#*/x} flags="$flags --init-scale ${scale%%/*}" ;; esac
}

# one SETTING METHOD LR SEED: one run, one row on $out/rows.csv
one() {
    setting_flags "$1" || return 255
    method=$(method_flags "$2" "$steps") || return 255
    sum=$(echo "$flags $method $steps" | cksum | cut -d ' ' -f 1)
    log=$out/run.$$
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=1 $flags $method --lr "$3" --seed "$4" --steps "$steps" --quiet --eval-every 0 \
        --checkpoint-every 0 --log-dir "$log" --overwrite --report "$log.json" 2>"$log.err"
    status=$?
    if [ $status -ne 0 ] && ! { [ $status -eq 1 ] && grep -q diverged "$log.err"; }; then
        cat "$log.err" >&2
        return 255 # xargs stops
    fi
    row="$1,$2,$3,$4"
    if [ $status -eq 0 ]; then
        for key in final_train_loss final_test_loss final_test_accuracy max_abs_log_lambda seconds_diag_g; do
            row="$row,$(value "$log.json" $key)"
        done
    else
        row="$row,inf,inf,nan,nan,nan"
    fi
    awk -F, -v steps="$steps" -v row="$row" -v failed=$status -v sum="$sum" '
    $3 == "step" { k = int(($1 - 1) * 20 / steps); total[k] += $4; n[k]++ }
    END {
        for (k = 0; k < 20; k++) row = row "," (failed || !n[k] ? "inf" : sprintf("%.5g", total[k] / n[k]))
        print row "," sum
    }' "$log/log.csv" >>"$out/rows.csv"
    rm -rf "$log" "$log.json" "$log.err"
}

# sums: SETTING METHOD SUM of every configuration asked for
sums() {
    for setting in $settings; do
        setting_flags "$setting" || return
        for method in $methods; do
            method_line=$(method_flags "$method" "$steps") || return
            echo "$setting $method $(echo "$flags $method_line $steps" | cksum | cut -d ' ' -f 1) $rate"
        done
    done
}

columns=setting,method,lr,seed,train_loss,test_loss,test_accuracy,max_log_lambda,seconds_diag_g
# merge: the rows of $out/rows.csv into the CSV file, sorted, one for each run
merge() {
    touch "$csv" "$out/rows.csv"
    {
        printf '%s' "$columns"
        for k in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do printf ',c%d' $k; done
        echo ,sum
        cat "$csv" "$out/rows.csv" | grep -v '^setting,' | awk -F, 'NF == 30 { row[$1 FS $2 FS $3 FS $4] = $0 }
            END { for (key in row) print row[key] }' | sort -t, -k1,1 -k2,2 -k3,3g -k4,4n
    } >"$csv.part" && mv "$csv.part" "$csv" && : >"$out/rows.csv"
}

# best rates: SETTING METHOD RATE, or with "missing" the runs that the search still needs
search() {
    awk -F, -v want="$1" -v seeds="$2" -v judges="${3:-}" '
    function need(s, m, r, list,   a, n, i) {
        n = split(list, a, " ")
        for (i = 1; i <= n; i++) if (!((s, m, r, a[i]) in loss)) { print s, m, r, a[i]; asked++ }
    }
    function score(s, m, r,   a, n, i, sum, v) {
        n = split(seeds, a, " ")
        for (i = 1; i <= n; i++) {
            if (!((s, m, r, a[i]) in loss)) return 1e9
            v = loss[s, m, r, a[i]]
            sum += log(v ~ /inf|nan/ || v > 1e6 ? 1e6 : v + 0)
        }
        return sum / n
    }
    FILENAME == ARGV[1] {
        split($0, f, " ")
        key[++n_keys] = f[1] " " f[2]
        sum_of[f[1], f[2]] = f[3]
        first[f[1], f[2]] = f[4]
        next
    }
    $1 == "setting" || sum_of[$1, $2] != $30 { next }
    {
        r = sprintf("%.4g", $3)
        loss[$1, $2, r, $4] = $29
        if (!(($1, $2, r) in seen)) { seen[$1, $2, r] = 1; rates[$1, $2] = rates[$1, $2] " " r }
    }
    END {
        for (k = 1; k <= n_keys; k++) {
            split(key[k], f, " "); s = f[1]; m = f[2]; asked = 0
            for (i = 1; i <= 16; i *= 4) if (want != "best") need(s, m, sprintf("%.4g", first[s, m] * i), seeds)
            if (asked) continue
            n = split(rates[s, m], a, " "); best = ""; least = 1e8
            for (i = 1; i <= n; i++) {
                v = score(s, m, a[i])
                if (v < least - 1e-12 || (v < least + 1e-12 && a[i] < best)) { least = v; best = a[i] }
            }
            if (best == "") continue
            if (want == "best") { print s, m, best; continue }
            if (want == "judge") { need(s, m, best, judges); continue }
            if (least > 13 || best > 4000 * first[s, m] || best < first[s, m] / 4000) continue
            need(s, m, sprintf("%.4g", best / 2), seeds)
            need(s, m, sprintf("%.4g", best * 2), seeds)
        }
    }' "$out/sums" "$csv"
}

# trains WHAT: trains what search finds missing, until nothing is
trains() {
    sums >"$out/sums" || return
    for setting in $settings; do
        setting_flags "$setting" && { [ -z "$need" ] || sh data/get_data.sh "$need"; } || return
    done >"$out/data.log"
    merge
    while search "$1" "$seeds" "$judges" >"$out/list" && [ -s "$out/list" ]; do
        echo "$(wc -l <"$out/list") runs"
        xargs -P "$jobs" -L 1 sh "$0" one <"$out/list" || { merge; return 1; }
        merge
    done
}

# loss_of METHOD LR: the geometric mean of the final losses over $seeds; trains what is missing
loss_of() {
    for seed in $seeds; do echo "$settings $1 $2 $seed"; done >"$out/list"
    while read -r setting method lr seed; do
        awk -F, -v s="$setting" -v m="$method" -v r="$lr" -v n="$seed" '
            $1 == s && $2 == m && $3 == r && $4 == n { found = 1 }
            END { exit !found }' "$csv" "$out/rows.csv" || echo "$setting $method $lr $seed"
    done <"$out/list" >"$out/missing"
    xargs -r -P "$jobs" -L 1 sh "$0" one <"$out/missing" || return
    awk -F, -v s="$settings" -v m="$1" -v r="$2" -v seeds=" $seeds " '
    $1 == s && $2 == m && $3 == r && index(seeds, " " $4 " ") {
        sum += log($29 ~ /inf|nan/ || $29 > 1e6 ? 1e6 : $29)
        n++
    }
    END { printf "%.6f", n ? sum / n : 99 }' "$csv" "$out/rows.csv"
}

# control: a coordinate search over the learning rate and one factor for every hidden layer, at $settings (one). Under
# SGD that is a tuned rate for every layer. A move is kept if the mean log loss over $seeds falls; steps of log lambda
# are 0.7, then 0.35, and factors 2 and 1.4 of the rate. It ends when no move of the smaller size helps.
control() {
    setting_flags "$settings" || return
    n=$(echo "$hidden" | tr , '\n' | wc -l)
    point=$(search best "$seeds" | awk '$2 == "none" { print $3 }') step=0.7
    i=0
    while [ $i -lt "$n" ]; do point="$point 0" i=$((i + 1)); done
    least=99
    while :; do
        moved=0 i=0
        while [ $i -le "$n" ]; do
            for way in 0 1 -1; do
                [ "$way" != 0 ] || [ "$least" = 99 ] || continue
                next=$(echo "$point" | awk -v i=$i -v way=$way -v step=$step '{
                    if (i == 0) $1 = sprintf("%.4g", $1 * exp(way * step))
                    else $(i + 1) = sprintf("%.4g", $(i + 1) + way * step)
                    print
                }')
                list=${next#* }
                value=$(loss_of "log:$(echo "$list" | tr ' ' _)" "${next%% *}") || return
                if [ "$(echo "$value $least" | awk '{ print ($1 < $2 - 0.005) }')" = 1 ]; then
                    least=$value point=$next
                    [ "$way" = 0 ] || moved=1
                    echo "$settings: log loss $least at lr, log lambda $point"
                    [ "$way" = 0 ] || break
                fi
            done
            i=$((i + 1))
        done
        [ $moved = 1 ] && continue
        [ $step = 0.7 ] || break
        step=0.35
    done
    merge
    list=${point#* }
    echo "$settings log:$(echo "$list" | tr ' ' _) ${point%% *}" >>"$out/controls"
    seeds=$judges
    loss_of "log:$(echo "$list" | tr ' ' _)" "${point%% *}" >"$out/value" || return
    merge
    echo "$settings: tuned $point, log loss of the judges $(cat "$out/value")"
}

# compares WHAT: the judged runs of every method beside those of none with the same seeds. table: a row for each setting
# and method; summary: one for each method. A ratio is the geometric mean over the seeds of final losses, with a 95 %
# interval of Student's t. Better and worse: the interval is on one side of 1. A seed that diverges counts as failed and
# leaves no ratio; a method with more failures than none is worse.
compares() {
    search best "$seeds" >"$out/best" || return
    awk -F, -v what="$1" -v judges="$judges" -v methods="$methods" '
    function mean_interval(list, n,   i, sum, squares, t) { # of list[1..n]: mean, half width in global
        sum = squares = 0
        for (i = 1; i <= n; i++) sum += list[i]
        for (i = 1; i <= n; i++) squares += (list[i] - sum / n) ^ 2
        split("12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228 2.201", t, " ")
        half = n > 1 ? t[n > 12 ? 11 : n - 1] * (squares / (n - 1) / n) ^ 0.5 : 99
        return sum / n
    }
    function fine(v) { return v != "" && v !~ /inf|nan/ && v < 1e6 }
    function per_setting(s, m,   i, v, base, a, b, x, n, n_acc, n_logs, logs, failed, base_failed,
                         shown, acc, verdict) {
        for (i = 1; i <= n_judges; i++) {
            v = loss[s, m, judge[i]]
            base = loss[s, "none", judge[i]]
            if (v == "") continue
            failed += !fine(v)
            base_failed += !fine(base)
            if (fine(v)) logs += log(v)
            if (fine(v)) n_logs++
            if (!fine(v) || !fine(base)) continue
            ratio[++n] = log(v / base)
            a = accuracy[s, m, judge[i]]
            b = accuracy[s, "none", judge[i]]
            if (fine(a) && fine(b)) diff[++n_acc] = 100 * (m == "none" ? a : a - b)
        }
        if (!n_logs && !failed) return
        shown = acc = "-"
        verdict = "equal"
        if (n > 1) {
            x = mean_interval(ratio, n)
            if (x + half < 0) verdict = "better"
            if (x - half > 0) verdict = "worse"
            shown = sprintf("%.3f [%.3f, %.3f]", exp(x), exp(x - half), exp(x + half))
            log_sum[m] += x
            if (!count[m]++ || x > worst[m]) worst[m] = x
        }
        if (failed > base_failed) verdict = "worse"
        if (verdict != "equal") shown = shown ", " verdict
        if (n_acc > 0) {
            x = mean_interval(diff, n_acc)
            acc = sprintf("%+.2f [%+.2f, %+.2f]", x, x - half, x + half)
            if (m == "none") acc = sprintf("%.2f %%", x)
            acc_better[m] += x - half > 0
            acc_worse[m] += x + half < 0
            acc_n[m]++
        }
        verdicts[m, verdict]++
        all_failed[m] += failed
        if (what == "table")
            printf "| %s | %s | %s | %s | %s | %s | %d of %d |\n", s, m, rate[s, m],
                n_logs ? sprintf("%.4g", exp(logs / n_logs)) : "-", m == "none" ? "1" : shown, acc, failed, n_judges
    }
    FILENAME == ARGV[1] {
        split($0, f, " ")
        rate[f[1], f[2]] = f[3]
        if (!(f[1] in known)) order[++n_settings] = f[1]
        known[f[1]] = 1
        next
    }
    $1 == "setting" || sprintf("%.4g", $3) != rate[$1, $2] { next }
    {
        loss[$1, $2, $4] = $29
        accuracy[$1, $2, $4] = $7
    }
    END {
        n_judges = split(judges, judge, " ")
        n_methods = split(methods, method, " ")
        if (what == "table") {
            print "| setting | method | best rate | final loss | over none | test accuracy, points over none | failed |"
            print "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
        }
        for (k = 1; k <= n_settings; k++)
            for (j = 1; j <= n_methods; j++) per_setting(order[k], method[j])
        if (what != "summary") exit
        printf "| method | settings | better | equal | worse | loss over none | the worst "
        print "| accuracy better, worse of | failed runs |"
        print "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        for (j = 1; j <= n_methods; j++) {
            m = method[j]
            if (m == "none" || !count[m]) continue
            settings = verdicts[m, "better"] + verdicts[m, "equal"] + verdicts[m, "worse"]
            printf "| %s | %d | %d | %d | %d | %.3f | %.3f | %d, %d of %d | %d |\n", m, settings,
                verdicts[m, "better"], verdicts[m, "equal"], verdicts[m, "worse"], exp(log_sum[m] / count[m]),
                exp(worst[m]), acc_better[m], acc_worse[m], acc_n[m], all_failed[m]
        }
        printf "\nFailed runs of none: %d.\n", all_failed["none"]
    }' "$out/best" "$csv"
}

mkdir -p "$out" "$results"
csv=$results/criteria_${2:-}.csv
case ${1:-} in
one)
    shift
    one "$@"
    ;;
rates | judge)
    lists "$2" && trains "$1"
    ;;
table | summary)
    lists "$2" && sums >"$out/sums" && echo && compares "$1"
    ;;
control)
    lists "$2" && sums >"$out/sums" && control
    ;;
best)
    lists "$2" && sums >"$out/sums" && search best "$seeds"
    ;;
*)
    echo "usage: sh dev/paper/criteria.sh rates | judge | control | table | summary  choose | confirm" >&2
    exit 2
    ;;
esac
