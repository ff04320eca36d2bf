#!/bin/sh
# test_compare.sh -- dev/compare.c on made-up logs: the exact table and CSV files, the plot, and every error.
#
#     sh test/test_compare.sh build/c/dev/compare
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
compare=$1
if [ $# -ne 1 ] || [ ! -x "$compare" ]; then
    echo "usage: sh test/test_compare.sh COMPARE_PROGRAM (run make test)" >&2
    exit 2
fi
case $compare in /*) ;; *) compare=$PWD/$compare ;; esac
. "$(dirname -- "$0")/check.sh"
cd "$work" || exit 1

# run STATUS ARGUMENT...: runs compare; output in the files out and err, one check of the exit status.
run() {
    want=$1
    shift
    "$compare" "$@" >out 2>err
    status=$?
    check "exit status $status, expected $want: compare $*" [ $status -eq "$want" ]
}
# fails STATUS MESSAGE ARGUMENT...: compare must fail with exactly this line on stderr.
fails() {
    want=$1 message=$2
    shift 2
    run "$want" "$@"
    printf 'compare: %s\n' "$message" >want
    diff want err >/dev/null || diff want err
    check "message: $message" cmp -s want err
}
same() { diff "$1" "$2"; }
has() { grep -q -e "$2" "$1"; }
hasnt() { ! grep -q -e "$2" "$1"; }
none() { [ -z "$(find "$1" -name '*.tmp*')" ]; }
# svg FILE: whether it is one well-formed picture without numbers that are none.
svg() {
    head -c 40 "$1" | grep -q '^<svg xmlns="http://www.w3.org/2000/svg"' && tail -n 1 "$1" | grep -q '^</svg>$' &&
        ! grep -E -i -e '[" ,ML-](nan|inf)' -e '<script' -e 'href' "$1" && { ! $xmllint || xmllint --noout "$1"; }
}
if command -v xmllint >/dev/null 2>&1; then
    xmllint=true
else
    xmllint=false
    skip "no xmllint: the plots are only looked at by their text (install libxml2-utils)"
fi

header=step,epoch,split,loss,accuracy,lr,grad_norm,ms,samples_per_s

# Three runs: with step rows and a repeated evaluation; one that ended early; one that diverged and has no report.
mkdir none pathcond diverged
cat >none/log.csv <<END
$header
0,0,train,2.302585,0.1,n/a,n/a,100,n/a
0,0,test,2.303,0.0996,n/a,n/a,20,n/a
5,0.5,step,1.5,n/a,0.1,1.25,2,64000
10,1,train,1,0.625,n/a,n/a,100,n/a
10,1,test,1.0625,0.61,n/a,n/a,20,n/a
20,2,train,0.75,0.7,n/a,n/a,100,n/a
20,2,test,9,0.01,n/a,n/a,20,n/a
20,2,test,0.8125,0.69,n/a,n/a,20,n/a
30,3,train,0.5,0.8,n/a,n/a,100,n/a
30,3,test,0.875,0.6875,n/a,n/a,20,n/a
END
cat >none/report.json <<END
{"rescale": {"method": "none", "seconds_diag_g": null}, "list": [1, [2], {"seconds": 3}, {}, []],
 "train": {"steps": 30, "seconds": 12.25, "samples_per_second": 51234.4, "note": "a \"b\" \\\\ { ["}, "ok": true}
END
cat >pathcond/log.csv <<END
$header
0,0,train,2.25,0.11,n/a,n/a,100,n/a
0,0,test,2.26,0.1,n/a,n/a,20,n/a
10,1,train,0.625,0.75,n/a,n/a,100,n/a
10,1,test,0.75,0.71,n/a,n/a,20,n/a
20,2,train,0.5,0.8,n/a,n/a,100,n/a
END
printf '30,3,train,0.0' >>pathcond/log.csv
cat >pathcond/report.json <<END
{"rescale": {"seconds_diag_g": 0.001, "seconds_solve": 0.0105, "seconds_apply": 0.0005},
 "train": {"seconds": 192.5, "samples_per_second": 50000}}
END
cat >diverged/log.csv <<END
$header
0,0,train,2.25,0.11,n/a,n/a,100,n/a
0,0,test,2.26,0.1,n/a,n/a,20,n/a
10,1,train,123456,0.1,n/a,n/a,100,n/a
10,1,test,inf,0.1,n/a,n/a,20,n/a
20,2,train,nan,n/a,n/a,n/a,100,n/a
20,2,test,nan,nan,n/a,n/a,20,n/a
END

run 0 --title "Three runs" --out plots/here none=none pathcond=pathcond diverged=diverged
cat >want <<'END'
Three runs
run               |                       none |                   pathcond |                   diverged
loss by epoch     |    train     test accuracy |    train     test accuracy |    train     test accuracy
------------------+----------------------------+----------------------------+---------------------------
0                 |   2.3026   2.3030    9.96% |   2.2500   2.2600   10.00% |   2.2500   2.2600   10.00%
1                 |   1.0000   1.0625   61.00% |   0.6250   0.7500   71.00% | 1.23e+05      inf   10.00%
2                 |   0.7500   0.8125   69.00% |   0.5000      n/a      n/a |      nan      nan      nan
3                 |   0.5000   0.8750   68.75% |      n/a      n/a      n/a |      n/a      n/a      n/a
------------------+----------------------------+----------------------------+---------------------------
epochs to target  |                          3 |                          2 |                not reached
best accuracy     |             69.00% (ep. 2) |             71.00% (ep. 1) |             10.00% (ep. 0)
best test loss    |             0.8125 (ep. 2) |             0.7500 (ep. 1) |             2.2600 (ep. 0)
total time        |                     12.2 s |                 3 min 13 s |                        n/a
of it rescaling   |                        n/a |                      12 ms |                        n/a
samples/s         |                      51234 |                      50000 |                        n/a
target: train loss <= 0.5000, the last one of run none
written: plots/here/compare.csv, compare_summary.csv, compare.svg
END
check "the table" same want out
check "nothing on stderr" [ ! -s err ]
cat >want <<'END'
run,epoch,train_loss,test_loss,test_accuracy
none,0,2.302585,2.303,0.0996
none,1,1,1.0625,0.61
none,2,0.75,0.8125,0.69
none,3,0.5,0.875,0.6875
pathcond,0,2.25,2.26,0.1
pathcond,1,0.625,0.75,0.71
pathcond,2,0.5,n/a,n/a
diverged,0,2.25,2.26,0.1
diverged,1,123456,inf,0.1
diverged,2,nan,nan,nan
END
check "compare.csv" same want plots/here/compare.csv
columns=run,target_train_loss,epochs_to_target,best_test_accuracy,best_test_accuracy_epoch
echo "$columns,best_test_loss,best_test_loss_epoch,seconds,rescale_seconds,samples_per_s" >want
cat >>want <<'END'
none,0.5,3,0.69,2,0.8125,2,12.25,n/a,51234.4
pathcond,0.5,2,0.71,1,0.75,1,192.5,0.012,50000
diverged,0.5,n/a,0.1,0,2.26,0,n/a,n/a,n/a
END
check "compare_summary.csv" same want plots/here/compare_summary.csv
check "compare.svg" svg plots/here/compare.svg
for text in '>Three runs</text>' '>none</text>' '>pathcond</text>' '>diverged</text>' \
    '>Training loss (log scale)</text>' \
    '>Test accuracy</text>' '>epoch</text>' '>target</text>' '>0.5000</text>' '>100</text>' '>60%</text>'; do
    check "compare.svg has $text" has plots/here/compare.svg "$text"
done
check "three curves in two panels and the legend" [ "$(grep -c 'class="curve ' plots/here/compare.svg)" -eq 9 ]
check "titles, colours, markers" picture plots/here/compare.svg
check "no temporary file is left" none plots
cp plots/here/compare.svg first.svg
run 0 --title "Three runs" --out plots/here none=none pathcond=pathcond diverged=diverged
check "the same bytes every time" cmp -s first.svg plots/here/compare.svg

# Targets, thinning, names, an autoencoder, a run of one point, no accuracy and no training loss.
run 0 --target-loss 0.7 none=none pathcond=pathcond
check "--target-loss" has out '^epochs to target  |                          3 |                          1$'
check "--target-loss in the last line" has out '^target: train loss <= 0.7000$'
check "nothing is written without --out" hasnt out '^written'
run 0 --target-loss 1 none=none
check "a loss equal to the target reaches it" has out '^epochs to target  |                          1$'
run 0 --target-loss -1 none=none
check "a target that is never reached" has out '^epochs to target  |                not reached$'
mkdir long auto point testonly zero
{ echo $header; seq 0 100 | sed 's/.*/&,&,train,1,n\/a,n\/a,n\/a,n\/a,n\/a/'; } >long/log.csv
run 0 long=long
check "at most 40 rows" [ "$(grep -c '^[0-9]' out)" -eq 40 ]
check "the first and the last among them" \
    [ "$(grep '^[0-9]' out | sed -n '1p;$p' | cut -d' ' -f1 | tr '\n' ' ')" = "0 100 " ]
run 0 --max-rows 0 long=long
check "all rows" [ "$(grep -c '^[0-9]' out)" -eq 101 ]
run 0 --max-rows 1 long=long
check "one row" has out '^100 '
cat >auto/log.csv <<END
$header
1,0.25,train,0.07,n/a,n/a,n/a,n/a,n/a
1,0.25,test,0.071,n/a,n/a,n/a,n/a,n/a
2,0.5,train,0.0005,n/a,n/a,n/a,n/a,n/a
2,0.5,test,0.069,n/a,n/a,n/a,n/a,n/a
END
run 0 --out auto 'a <b> & "c", d=auto' "$(printf 'caf\303\251 \377\001')=auto"
cat >want <<END
run               |    a <b> & "c", d |           caf$(printf '\303\251') ??
loss by epoch     |    train     test |    train     test
END
sed -n 1,2p out >head
check "names and columns of an autoencoder" same want head
check "no accuracy anywhere" hasnt out accuracy
check "fractional epochs" has out '^0.25              |   0.0700   0.0710 |   0.0700   0.0710$'
check "small losses" has out '^0.5               | 5.00e-04   0.0690 | 5.00e-04   0.0690$'
check "the plot of an autoencoder" svg auto/compare.svg
check "names in the plot" has auto/compare.svg '>a &lt;b&gt; &amp; &quot;c&quot;, d</text>'
check "the second panel is the test loss" has auto/compare.svg '>Test loss (log scale)</text>'
check "names in the CSV file" has auto/compare.csv '^"a <b> & ""c"", d",0.25,0.07,0.071,n/a$'
printf '%s\n0,0,train,2.3,0.1,n/a,n/a,n/a,n/a\n0,0,test,2.3,0.1,n/a,n/a,n/a,n/a\n' $header >point/log.csv
run 0 --out point p=point
check "the plot of one point" svg point/compare.svg
check "its titles, colours, markers" picture point/compare.svg
mkdir perfect
# accuracies NUMBER...: a log with these test accuracies, one an epoch
accuracies() {
    epoch=0
    for accuracy; do
        printf '%d,%d,test,2.3,%s,n/a,n/a,n/a,n/a\n' $epoch $epoch "$accuracy"
        epoch=$((epoch + 1))
    done
}
{
    printf '%s\n0,0,train,2.3,0.1,n/a,n/a,n/a,n/a\n' $header
    accuracies 1 0 0.5 1 1
} >perfect/log.csv
run 0 --out perfect p=perfect
check "accuracies of 0 and 100 %: the markers are whole" picture perfect/compare.svg
{
    printf '%s\n' $header
    accuracies 0.9 0.1 0.2 0.3 0.2
} >perfect/log.csv
run 0 --out perfect p=perfect
check "an epoch 0 above the others is left out" picture perfect/compare.svg
check "and the plot says so" has perfect/compare.svg '>epoch 0 is outside of this range</text>'
printf '%s\n5,1,test,2,0,n/a,n/a,n/a,n/a\n' $header >testonly/log.csv
run 0 --out testonly p=testonly none=none
check "a baseline without training loss" has out '^target: none, run p has no training loss$'
check "its epochs to target" has out '^epochs to target  |                        n/a |                        n/a$'
check "its plot" svg testonly/compare.svg
{
    printf '%s\n0,0,train,1,n/a,n/a,n/a,n/a,n/a\n' $header
    printf '1,1,train,0,n/a,n/a,n/a,n/a,n/a\n2,2,train,-1,n/a,n/a,n/a,n/a,n/a\n'
} >zero/log.csv
run 0 --out zero p=zero
check "losses that are not positive" svg zero/compare.svg
check "their titles, colours, markers" picture zero/compare.svg
check "get a linear axis" has zero/compare.svg '>Training loss</text>'
check "without a test set there is one panel" hasnt zero/compare.svg '>Test '
run 0 --out testloss --test-loss none=none
check "--test-loss" has testloss/compare.svg '>Test loss (log scale)</text>'
check "--test-loss: no accuracy is plotted" hasnt testloss/compare.svg '>Test accuracy'
runs=
for i in 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16; do
    runs="$runs a_run_with_a_name_that_is_too_long_for_it$i=none"
done
# shellcheck disable=SC2086 # one word per run
fails 2 "two runs are called 'a_run_with_a_name_that_is_too_long_for_i' (see --help)" $runs
runs=
for i in 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16; do runs="$runs run_number_$i=none"; done
# shellcheck disable=SC2086
run 0 --out sixteen $runs
check "the plot of sixteen runs" svg sixteen/compare.svg
check "its titles, colours, markers" picture sixteen/compare.svg
# shellcheck disable=SC2086
fails 2 "expected at most 16 arguments (NAME=LOGDIR ...), 'x=none' is one more (see --help)" $runs x=none

# Numbers at the ends of what a double holds: every loop ends, and the plot is a plot.
# extreme EPOCH1 LOSS1 EPOCH2 LOSS2
extreme() {
    rm -rf extreme
    mkdir extreme
    row=train,%s,0.5,n/a,n/a,n/a,n/a
    printf "%s\n0,%s,$row\n1,%s,$row\n" $header "$1" "$2" "$3" "$4" >extreme/log.csv
    (ulimit -c 0 && ulimit -t 5 && ulimit -f 2000 && exec "$compare" --out extreme e=extreme) >out 2>err
    check "epochs $1 and $3, losses $2 and $4: exit status" [ $? -eq 0 ]
    check "epochs $1 and $3, losses $2 and $4: the plot" svg extreme/compare.svg
    ticks=$(grep -c 'class="tick"' extreme/compare.svg | sed 's/^[1-4]\{0,1\}[0-9]$/few/')
    check "epochs $1 and $3, losses $2 and $4: a few ticks" is "$ticks" few
}
extreme 1e17 2 100000000000000032 1
extreme 9007199254740993 2 9007199254740999 1
extreme 0 1e-322 1 1e-322
extreme 0 1e-322 1 3e-322
extreme 0 5e-324 1 1e300
extreme 0 1e308 1 -1e308
extreme 0 -1e-320 1 0
extreme 0 -1e300 1 1e300
extreme 0 1.0000000000000002 1 1
extreme 0 -1e17 1 -100000000000000032
extreme 0 1 5e-324 2
extreme 1e299 1 1e300 2

# The seconds of all rescalings, when a report has them.
mkdir total
cp none/log.csv total
    rescaling='{"seconds":0.5,"seconds_solve":0.1}'
    echo "{\"rescale\":$rescaling,\"train\":{\"seconds\":1e1,\"samples_per_second\":null}}" >total/report.json
run 0 t=total
check "rescale.seconds" has out '^of it rescaling   |                     500 ms$'
check "a number that is null" has out '^samples/s         |                        n/a$'

# Errors.
mkdir bad
fails 2 "expected at least 1 argument: NAME=LOGDIR ... (see --help)"
fails 2 "expected NAME=LOGDIR, got 'none' (see --help)" none
fails 2 "expected NAME=LOGDIR, got '=none' (see --help)" =none
fails 2 "expected NAME=LOGDIR, got 'none=' (see --help)" none=
fails 2 "two runs are called 'a' (see --help)" a=none a=pathcond
fails 2 "--target-loss: expected a number, got 'low' (see --help)" --target-loss low a=none
fails 2 "--max-rows: expected an integer >= 0, got '-1' (see --help)" --max-rows -1 a=none
fails 2 "unknown option --output, did you mean --out? (see --help)" --output x a=none
fails 1 "nowhere/log.csv: cannot read the log of run 'a': No such file or directory" a=nowhere
fails 1 "bad/log.csv: cannot read the log of run 'b': No such file or directory" a=none b=bad
: >bad/log.csv
fails 1 "bad/log.csv: the log is empty" a=bad
printf 'step,ep' >bad/log.csv
fails 1 "bad/log.csv: the log is empty" a=bad
printf '%s\n' $header >bad/log.csv
fails 1 "bad/log.csv: the log has no evaluation yet" a=bad
printf '%s\n1,1,step,1,1,1,1,1,1\n' $header >bad/log.csv
fails 1 "bad/log.csv: the log has no evaluation yet" a=bad
printf 'epoch,loss\n1,2\n' >bad/log.csv
fails 1 "bad/log.csv: not a training log, its first line should be $header" a=bad
for row in rubbish '' 1,1,train,1,1,1,1,1 1,1,train,1,1,1,1,1,1,1 1,1,valid,1,1,1,1,1,1 1,1,train,1x,1,1,1,1,1 \
    1,,train,1,1,1,1,1,1 1,-1,train,1,1,1,1,1,1 1,nan,train,1,1,1,1,1,1 1,1e301,train,1,1,1,1,1,1 ,1,train,1,1,1,1,1,1 \
    '1,1,train,1,1,1,1,1,\0011'; do
    # shellcheck disable=SC2059 # one of the rows has a control character
    { echo $header; echo 1,1,train,1,1,1,1,1,1; printf "$row\n"; } >bad/log.csv
    fails 1 "bad/log.csv: line 3 is not a row of the log" a=bad
done
printf '%s\n1,1,train,1,1,1,1,1,1\0\n' $header >bad/log.csv
fails 1 "bad/log.csv: line 2 is not a row of the log" a=bad
cp none/log.csv bad/log.csv
for report in '' '{' '{"train": {"seconds": 1}' '{"train": {"seconds": 1,}}' '{"train": 12abc}' '{"a": 1} x' '{"a" 1}' \
    '{"a": "b}' '{a: 1}' '[1 2]' '{"a": tru}' '{"a": --1}'; do
    printf '%s' "$report" >bad/report.json
    fails 1 "bad/report.json: not a JSON report" a=bad
done
{ head -c 300 /dev/zero | tr '\0' '['; head -c 300 /dev/zero | tr '\0' ']'; } >bad/report.json
fails 1 "bad/report.json: not a JSON report" a=bad
printf '{"%0500d": {"%0500d": {"seconds": [1]}}}' 1 2 >bad/report.json
run 0 a=bad
check "long keys" has out '^total time        |                        n/a$'
rm bad/report.json
mkdir bad/report.json
run 1 a=bad
check "a folder in the place of the report" has err '^compare: bad/report.json: cannot read: Is a directory$'
: >plain
fails 1 "plain: cannot create the folder: Not a directory" --out plain a=none
fails 1 "plain/x: cannot create the folder: Not a directory" --out plain/x a=none
if [ -c /dev/full ]; then
    "$compare" a=none >/dev/full 2>err
    check "the table on a full disk" [ $? -eq 1 ]
    check "its message" has err '^compare: cannot write to standard output'
    mkdir full
    ln -s /dev/full full/compare.csv
    fails 1 "full/compare.csv: cannot write: No space left on device" --out full a=none
else
    skip "no /dev/full here: output on a full disk"
fi
if [ "$(id -u)" -eq 0 ]; then
    skip "running as root, who may write anywhere: plots in a folder without write permission"
else
    mkdir locked
    chmod 500 locked
    fails 1 "locked/compare.csv: cannot write: Permission denied" --out locked a=none
    chmod 700 locked
fi
run 0 --help
check "--help" has out '^Usage: compare \[--option value ...\] NAME=LOGDIR ...$'
run 0 --version
check "--version" has out '^compare [0-9]'

summary
