#!/bin/sh
# test_paper.sh -- dev/paper: the runner repeats nothing and resumes; the report's statistics are checked by hand.
#
#     sh test/test_paper.sh build/c/dev/paper/report
#
# in the repository's root, with ./train_mlp and build/c/dev/compare built
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
report=$1
if [ $# -ne 1 ] || [ ! -x "$report" ] || [ ! -x ./train_mlp ] || [ ! -x build/c/dev/compare ]; then
    echo "usage: sh $0 REPORT (in the repository's root, after make)" >&2
    exit 2
fi
. test/check.sh
export OMP_NUM_THREADS=1
says() { grep -q -F -e "$1" "$work/out"; }
complains() { grep -q -F -e "$1" "$work/err"; }
env_shared() {
    SHARED=1
    "$@"
    found=$?
    SHARED=0
    return $found
}
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
# t = mean / (s / sqrt 3) of ln 0.5, ln 0.55, ln 0.45: 12.01, p = 0.0069. At 0.2: ln (2 / 1.5), without spread: worse
row='| fast | 2 | 0, 0, 0 | 0, 0, 0 | 1, 0, 0 | 0, 0, 1 | 1 | 0.82x | 1 | 0.5x | 1.33x | 1, 0, 0 |'
check 'better once, worse once' says "$row"
row='| same | 2 | 0, 0, 0 | 0, 0, 0 | 0, 1, 0 | 0, 1, 0 | 0 | 1.00x | 0 | 1x | 1x | 0, 1, 0 |'
check 'half a percent is equal' says "$row"
# ln 1.05, ln 1.2, ln 1.35: mean 0.1771, s 0.1257, t = 2.44, p = 0.135
row='| noisy | 1 | 0, 0, 0 | 0, 0, 0 | 0, 1, 0 | 0, 0, 0 | 0 | 1.19x | 1 | 1x | 1x | 0, 1, 0 |'
check 'three scattered seeds prove nothing' says "$row"
check 'runs that learned nothing are counted' says '| 1, 0, 0 | 3 | 0 |'
# two settings: p = 0.025; Student's t with 2 and 4 degrees of freedom: 6.205 and 3.495
check 'what certain asks for' says \
    '`certain` in 2 settings starts at p = 0.025: |t| = 6.21 with three seeds, 3.5 with five.'
check 'worse' quietly "$report" worse fast "$work/a.csv"
check 'where it is worse' says '| net | uniform | 0.2 | 1.5 ± 0 | 2 ± 0 (3 of 3 learned nothing) | 1.33x | 0 |'
check 'plot' quietly "$report" plot "$work/a.csv" 'a < b'
check 'the plot is closed, its title quoted' eval \
    'says "a &lt; b" && [ "$(tail -n 1 "$work/out")" = "</svg>" ] &&
    [ "$(grep -c "class=\"curve " "$work/out")" -eq 8 ]'
check 'its titles, colours, markers' picture "$work/out"
quietly "$report" plot "$work/a.csv" lists none,fast none,same,nonesuch
check 'two lists of methods: two panels of two curves, two legends' eval \
    '[ "$(grep -c "class=\"axis\"" "$work/out")" -eq 2 ] && [ "$(grep -c "class=\"curve " "$work/out")" -eq 8 ]'
check 'the other methods are left out' not says noisy
check 'titles, colours, markers of two columns' picture "$work/out"
# A curve goes through the median: two seeds of three as good as the baseline, one that diverged.
{ grep ',none,' "$work/a.csv"; csv net odd 0.1 1 2 1; csv net odd 0.1 2 2 inf; csv net odd 0.1 3 2 1; } >"$work/b.csv"
quietly "$report" plot "$work/b.csv" median none,odd
check 'the median of 1, 1 and a run that diverged is 1' is \
    "$(sed '/<g class="legend">/,/<\/g>/d' "$work/out" |
        awk '/class="(marker|cross) / { sub(/.*M/, ""); split($0, at, /[ m]/); y[++n] = at[2] }
            END { print n, y[1] == y[3] }')" '3 1'
check 'its bar ends at the loss of a run that learned nothing' is \
    "$(awk '/class="target"/ { sub(/.*y1="/, ""); sub(/".*/, ""); y = $0 }
        /class="range s0"/ { sub(/.*V/, ""); sub(/".*/, ""); print $0 == y }' "$work/out")" 1
quietly "$report" overview fast,same 'a > b' "$work/a.csv"
check 'overview: titles, colours, markers' env_shared picture "$work/out"
check 'its rows' says '>net, uniform</text>'
# The best rate is the lowest: nothing is below it. 0.2 is above.
check 'summary' quietly "$report" summary fast "$work/a.csv"
check 'no rate is below the best' says '| e | 1 | 0, 0, 0 | 1.00x | 1, 0, 0 | 0.50x | 3 | 0 |'
# The same with the baseline at its best at 0.4. Below it: the mean of the logarithms at 0.1 and at 0.2 per seed, ln
# 0.5 / 2 and so on.
{
    cat "$work/a.csv"
    for seed in 1 2 3; do
        csv net none 0.4 $seed 2 0.5
        csv net fast 0.4 $seed 2 0.5
        csv net same 0.4 $seed 2 0.6
    done
} >"$work/b.csv"
quietly "$report" summary same "$work/b.csv"
check 'rates below the best count once per net' says '| e | 1 | 0, 1, 0 | 1.00x | 0, 0, 1 | 1.20x | 0 | 0 |'
check 'best' quietly "$report" best fast "$work/a.csv"
check 'both at their own best rate' says '| net | uniform | 0.1 | 1 ± 0 | 0.1 | 0.5 ± 0.05 | 0.498x | 0.0069 |'
check 'above' quietly "$report" above 1.1 noisy "$work/a.csv"
check 'a ratio counts without significance, too' says '| net | uniform | 0.1 | 1 ± 0 | 1.2 ± 0.15 | 1.19x | 0.13 |'
quietly "$report" above 1.2 noisy "$work/a.csv"
check 'and is left out below the limit' not says '| net | uniform |'
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
refused 1 slow "$report" best slow "$work/a.csv"
refused 1 slow "$report" above 1.4 slow "$work/a.csv"
refused 1 little "$report" above little fast "$work/a.csv"
refused 1 slow "$report" summary slow "$work/a.csv"
refused 1 slow,slower "$report" plot "$work/a.csv" title none slow,slower
refused 1 slow,slower "$report" overview slow,slower title "$work/a.csv"
refused 2 usage "$report" table "$work/a.csv"
sed '1s/,[^,]*$/,/' "$work/a.csv" >"$work/b.csv"
refused 1 34 "$report" harm "$work/b.csv"
sed 1p "$work/a.csv" >"$work/b.csv"
refused 1 'two runs' "$report" harm "$work/b.csv"
sed '/,none,/s/,2,[^c]*$/,inf/' "$work/a.csv" >"$work/b.csv"
grep -v ',none,' "$work/a.csv" >"$work/b.csv"
refused 1 none "$report" harm "$work/b.csv"

# What is committed is what the commands make of the CSV files.
committed=dev/paper/results
mkdir "$work/committed"
cp "$committed"/*.csv "$work/committed"
check 'plots' env OUT="$work/curves" RESULTS="$work/committed" sh dev/paper/run.sh plots
for svg in "$committed"/*.svg; do
    check "$svg is current (make -C dev/paper report)" same "$svg" "$work/committed/${svg##*/}"
    case $svg in */overview.svg) SHARED=1 ;; *) SHARED=0 ;; esac
    check "$svg: titles, colours, markers" picture "$svg"
done
SHARED=0
for svg in dev/kernels/results/*/*.svg; do check "$svg: titles, colours, markers" picture "$svg"; done
cp dev/paper/README.md "$work/README.md"
check 'tables' sh dev/tables.sh "$work/README.md"
check 'the tables of dev/paper/README.md are current' same dev/paper/README.md "$work/README.md"

# ------------------------------------------------------------------------------------------------------------- runner
export QUICK=1 OUT="$work/runs" RESULTS="$work/results" JOBS=2
export NETS=2-8x5-2 INITS="uniform" RATES="0.01 10" METHODS="none sweeps10 trace" SEEDS="1 2"
rows() { find "$work/runs" -name '*.row' | wc -l | tr -d ' '; }
SEEDS=1 RATES=0.01 quietly sh dev/paper/run.sh moons
check 'a part' is $? 0
check 'three runs' is "$(rows)" 3
find "$work/runs" -name '*.row' -exec ls -l --time-style=full-iso {} + | sort >"$work/before"
quietly timeout 0.5 sh dev/paper/run.sh moons # killed, with all that it has started
check 'the rest' quietly sh dev/paper/run.sh moons
check 'twelve runs' is "$(rows)" 12
find "$work/runs/quick/moons/2-8x5-2/uniform/0.01" -name '1.row' -exec ls -l --time-style=full-iso {} + |
    sort >"$work/after"
check 'finished runs are not repeated' same "$work/before" "$work/after"
METHODS=none SEEDS=1 RATES=0.01 NETS=2-4x5-2 quietly sh dev/paper/run.sh moons
kept=$work/runs/quick/moons/2-4x5-2/uniform/0.01/none/1.row
sed 's/,[0-9]*$/,1/' "$kept" >"$work/row" && cp "$work/row" "$kept"
METHODS=none SEEDS=1 RATES=0.01 NETS=2-4x5-2 quietly sh dev/paper/run.sh moons
check 'a run with another command line is repeated' not same "$work/row" "$kept"
rm -r "$work/runs/quick/moons/2-4x5-2"
quietly sh dev/paper/run.sh moons
check 'nothing but rows and the list is left' is \
    "$(find "$work/runs" -type f ! -name '*.row' ! -name '*.list' | wc -l | tr -d ' ')" 0
csv=$work/results/moons_part.csv
check 'a row per run, 34 columns' is "$(grep -v '^#' "$csv" | awk -F, 'NF == 34' | wc -l | tr -d ' ')" 13
check 'methods share their initial weights: the first losses agree' is \
    "$(awk -F, '$4 == 0.01 && $6 == 1 { printf "%.2f ", $15 }' "$csv")" \
    "$(awk -F, '$4 == 0.01 && $6 == 1 && $5 == "none" { printf "%.2f %.2f %.2f ", $15, $15, $15 }' "$csv")"
check 'none rescales nothing, the others do' is \
    "$(awk -F, '$4 == 0.01 { print ($5 == "none" ? $11 == 0 : $11 > 0.1) }' "$csv" | sort -u)" 1
check 'its own report can be read' quietly "$report" harm "$csv"
METHODS=nonesuch OUT="$work/other" quietly sh dev/paper/run.sh moons
status=$?
check 'an unknown method stops it' eval '[ $status -ne 0 ] && complains nonesuch && complains "is not complete"'
refused 2 usage sh dev/paper/run.sh nosuchexperiment

# -------------------------------------------------------------------------------------------------------- second study
criteria() { # criteria COMMAND: of one small setting
    OUT="$work/criteria" SETTINGS=moons-8x2/sgd/20steps METHODS="none data-layer" \
        quietly sh dev/paper/criteria.sh "$1" choose
}
csv=$work/results/criteria_choose.csv
check 'the search for the best rates' criteria rates
check 'it trains three rates first, with two methods and two seeds' says '12 runs'
check 'a row per run, 30 columns' is "$(awk -F, 'NF != 30' "$csv" | wc -l | tr -d ' ')" 0
check 'the best rates' criteria best
while read -r setting method best; do
    for factor in 0.5 2; do
        beside=$(echo "$best" | awk -v f=$factor '{ printf "%.4g", f * $1 }')
        check "$method: $beside beside the best rate $best was tried" is \
            "$(awk -F, -v m="$method" -v r="$beside" '$2 == m && $3 == r' "$csv" | wc -l | tr -d ' ')" 2
    done
done <"$work/out"
cp "$csv" "$work/before"
check 'the same search again' criteria rates
check 'repeats nothing' eval 'same "$work/before" "$csv" && [ ! -s "$work/out" ]'
check 'judging' criteria judge
check 'with the two seeds that are missing' says '4 runs'
check 'a summary' criteria summary
check 'one setting, one verdict' eval 'grep -Eq "^[|] data-layer [|] 1 [|] [01] [|] [01] [|] [01] [|]" "$work/out"'
check 'a table' criteria table
# The ratio of geometric means over four seeds, computed apart.
best=$(sed -n 's/^| moons[^|]*| none | \([^ ]*\) .*/\1/p' "$work/out")
mean=$(awk -F, -v r="$best" '$2 == "none" && $3 == r { s += log($29); n++ } END { printf "%.4g", exp(s / n) }' "$csv")
check 'the final loss of none is the geometric mean' says "| none | $best | $mean | 1 |"
METHODS=nonesuch OUT="$work/criteria" quietly sh dev/paper/criteria.sh rates choose
status=$?
check 'an unknown method of the study' eval '[ $status -ne 0 ] && complains nonesuch'
refused 2 usage sh dev/paper/criteria.sh
refused 2 'unknown study' sh dev/paper/criteria.sh rates nosuch
summary
