#!/bin/sh
# test_paper.sh -- dev/paper: the runner repeats nothing and resumes, the report's statistics against values worked out by hand.
#
#     sh test/test_paper.sh build/c/dev/paper/report       in the repository's root, with ./train_mlp built
report=$1
if [ $# -ne 1 ] || [ ! -x "$report" ] || [ ! -x ./train_mlp ]; then
    echo "usage: sh $0 REPORT (in the repository's root, after make)" >&2
    exit 2
fi
. test/check.sh
export OMP_NUM_THREADS=1 LC_ALL=C
says() { grep -q -F -e "$1" "$work/out"; }
complains() { grep -q -F -e "$1" "$work/err"; }
quietly() { "$@" >"$work/out" 2>"$work/err"; }

# ------------------------------------------------------------------------------------------------------------- report
# csv NET METHOD LR SEED C1 C20: a row whose loss falls geometrically from C1 to C20
csv() {
    awk -v head="e,$1,uniform,$3,$2,$4,20,0,0,0.5,1,1,0,0" -v a="$5" -v b="$6" 'BEGIN {
        printf "%s", head
        for (k = 0; k < 20; k++) printf ",%.9g", b == "inf" ? "inf" : a * exp(log(b / a) * k / 19)
        print "" }'
}
for seed in 1 2 3; do
    csv net none 0.1 $seed 2 1
    csv net none 0.2 $seed 2 1.5
done >"$work/a.csv"
csv net fast 0.1 1 2 0.5 >>"$work/a.csv"
csv net fast 0.1 2 2 0.55 >>"$work/a.csv"
csv net fast 0.1 3 2 0.45 >>"$work/a.csv"
for seed in 1 2 3; do
    csv net fast 0.2 $seed 2 inf
    csv net same 0.1 $seed 2 1.005
    csv net same 0.2 $seed 2 1.5
done >>"$work/a.csv"
csv net noisy 0.1 1 2 1.05 >>"$work/a.csv"
csv net noisy 0.1 2 2 1.2 >>"$work/a.csv"
csv net noisy 0.1 3 2 1.35 >>"$work/a.csv"
check 'table' quietly "$report" table 0.2 "$work/a.csv"
check 'the baseline at its best rate' says '| none | 0.1 | 1 ± 0 | 1 | 50.0% | 1 | 1.5 ± 0 | 1 |'
# 19 ln 2 / ln (2 / C20) windows after the first: 9.5, 10.20, 8.83, so 0.525, 0.560, 0.491 of the
# run, the baseline 1; logarithms: mean -0.6449, s 0.0654, half 4.303 s / sqrt 3 = 0.162
check 'half of the loss takes half of the time' says '| fast | 0.1 | 0.5 ± 0.05 | 0.52 [0.45, 0.62] |'
check 'diverged runs have learned nothing' says '| 2 ± 0 (3 of 3 learned nothing) | never |'
check 'never' says '| same | 0.1 | 1 ± 0 | never |'
check 'harm' quietly "$report" harm "$work/a.csv"
# t = mean / (s / sqrt 3) of ln 0.5, ln 0.55, ln 0.45: 12.01, p = 0.0069. At 0.2: ln (2 / 1.5), without spread: worse, certainly
check 'better once, worse once' says '| fast | 2 | 0, 0, 0 | 0, 0, 0 | 1, 0, 0 | 0, 0, 1 | 1 | 0.82x | 1 | 0.5x | 1.33x | 1, 0, 0 |'
check 'half a percent is equal' says '| same | 2 | 0, 0, 0 | 0, 0, 0 | 0, 1, 0 | 0, 1, 0 | 0 | 1.00x | 0 | 1x | 1x | 0, 1, 0 |'
# ln 1.05, ln 1.2, ln 1.35: mean 0.1771, s 0.1257, t = 2.44, p = 0.135
check 'three scattered seeds prove nothing' says '| noisy | 1 | 0, 0, 0 | 0, 0, 0 | 0, 1, 0 | 0, 0, 0 | 0 | 1.19x | 1 | 1x | 1x | 0, 1, 0 |'
check 'worse' quietly "$report" worse fast "$work/a.csv"
check 'where it is worse' says '| net | uniform | 0.2 | 1.5 ± 0 | 2 ± 0 (3 of 3 learned nothing) | 1.33x | 0 |'
check 'plot' quietly "$report" plot "$work/a.csv" 'a < b'
check 'the plot is closed, its title quoted' eval 'says "a &lt; b" && [ "$(tail -n 1 "$work/out")" = "</svg>" ] && [ "$(grep -c "class=\"curve\"" "$work/out")" -eq 8 ]'
refused() { # STATUS TEXT COMMAND...
    wanted=$1 text=$2
    shift 2
    quietly "$@"
    check "$text: exit status" is $? "$wanted"
    check "$text: one line that names it" eval '[ "$(wc -l <"$work/err")" -eq 1 ] && complains "$text"'
}
refused 1 nothere "$report" harm "$work/nothere.csv"
refused 1 0.7 "$report" table 0.7 "$work/a.csv"
refused 1 slow "$report" worse slow "$work/a.csv"
refused 2 usage "$report" table "$work/a.csv"
sed '1s/,[^,]*$/,/' "$work/a.csv" >"$work/b.csv"
refused 1 34 "$report" harm "$work/b.csv"
sed 1p "$work/a.csv" >"$work/b.csv"
refused 1 'two runs' "$report" harm "$work/b.csv"
sed '/,none,/s/,2,[^c]*$/,inf/' "$work/a.csv" >"$work/b.csv"
grep -v ',none,' "$work/a.csv" >"$work/b.csv"
refused 1 none "$report" harm "$work/b.csv"

# ------------------------------------------------------------------------------------------------------------- runner
export QUICK=1 OUT="$work/runs" RESULTS="$work/results" NETS=2-8x5-2 INITS="uniform" RATES="0.01 10" METHODS="none sweeps10 trace" SEEDS="1 2" JOBS=2
rows() { find "$work/runs" -name '*.row' | wc -l | tr -d ' '; }
SEEDS=1 RATES=0.01 quietly sh dev/paper/run.sh moons
check 'a part' is $? 0
check 'three runs' is "$(rows)" 3
find "$work/runs" -name '*.row' -exec ls -l --time-style=full-iso {} + | sort >"$work/before"
quietly timeout 0.5 sh dev/paper/run.sh moons # killed, with all that it has started
check 'the rest' quietly sh dev/paper/run.sh moons
check 'twelve runs' is "$(rows)" 12
find "$work/runs/quick/moons/2-8x5-2/uniform/0.01" -name '1.row' -exec ls -l --time-style=full-iso {} + | sort >"$work/after"
check 'finished runs are not repeated' same "$work/before" "$work/after"
METHODS=none SEEDS=1 RATES=0.01 NETS=2-4x5-2 quietly sh dev/paper/run.sh moons
sed 's/,[0-9]*$/,1/' "$work/runs/quick/moons/2-4x5-2/uniform/0.01/none/1.row" >"$work/row" && cp "$work/row" "$work/runs/quick/moons/2-4x5-2/uniform/0.01/none/1.row"
METHODS=none SEEDS=1 RATES=0.01 NETS=2-4x5-2 quietly sh dev/paper/run.sh moons
check 'a run with another command line is repeated' not same "$work/row" "$work/runs/quick/moons/2-4x5-2/uniform/0.01/none/1.row"
rm -r "$work/runs/quick/moons/2-4x5-2"
quietly sh dev/paper/run.sh moons
check 'nothing but rows and the list is left' is "$(find "$work/runs" -type f ! -name '*.row' ! -name '*.list' | wc -l | tr -d ' ')" 0
csv=$work/results/moons_part.csv
check 'a row per run, 34 columns' is "$(grep -v '^#' "$csv" | awk -F, 'NF == 34' | wc -l | tr -d ' ')" 13
check 'methods share their initial weights: the first losses agree' is \
    "$(awk -F, '$4 == 0.01 && $6 == 1 { printf "%.2f ", $15 }' "$csv")" "$(awk -F, '$4 == 0.01 && $6 == 1 && $5 == "none" { printf "%.2f %.2f %.2f ", $15, $15, $15 }' "$csv")"
check 'none rescales nothing, the others do' is "$(awk -F, '$4 == 0.01 { print ($5 == "none" ? $11 == 0 : $11 > 0.1) }' "$csv" | sort -u)" 1
check 'its own report can be read' quietly "$report" harm "$csv"
METHODS=nonesuch OUT="$work/other" quietly sh dev/paper/run.sh moons
status=$?
check 'an unknown method stops it' eval '[ $status -ne 0 ] && complains nonesuch && complains "is not complete"'
refused 2 usage sh dev/paper/run.sh nosuchexperiment
summary
