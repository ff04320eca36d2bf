# check_trainer.sh -- what the shell tests of the trainers share; a test sources it with the trainer as its first argument:
#     . "$(dirname -- "$0")/check_trainer.sh"
#
#     $trainer, $program, $root   the trainer's path, its name, the repository
#     $damage                     test/damage.c, built
#     run ARGUMENTS               runs the trainer: $work/out, $work/err, $status; notes its options in $work/used
#     ok WHAT ARGUMENTS           a run that ends well and has nothing to complain about
#     refuses STATUS TEXT ARGUMENTS    a run that ends with this status and exactly one line on stderr, with the text in it
#     says TEXT, complains TEXT, silent    about the output of the last run
#     near A B TOLERANCE, less A B     numbers
#     number FILE KEY, last_step LOGDIR, newest LOGDIR, same_log LOGDIR LOGDIR    reports, logs, checkpoints
#     every_option_is_used        one check for each option that --help lists (into $work/options)
# Runs on one thread, except where a test compares threads.
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
trainer=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
program=$(basename -- "$1")
. "$(dirname -- "$0")/check.sh"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=passive LC_ALL=C
unset CUDA_CPU_ORDER

says() { grep -q -F -e "$1" "$work/out"; }
complains() { grep -q -F -e "$1" "$work/err"; }
silent() { [ ! -s "$work/out" ] && [ ! -s "$work/err" ]; }
near() { awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; exit !(a != "" && b != "" && d <= t * (b < 0 ? -b : b) && -d <= t * (b < 0 ? -b : b)) }'; }
less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && a + 0 <= b + 0) }'; }

# run ARGUMENTS: runs the trainer; its output and status are in $work/out, $work/err and $status.
run() {
    printf '%s\n' "$@" >>"$work/used"
    "$trainer" "$@" >"$work/out" 2>"$work/err"
    status=$?
}
# ok WHAT ARGUMENTS: a run that ends well and has nothing to complain about.
ok() {
    label=$1
    shift
    run "$@"
    check "$label: exit 0, nothing on stderr" eval '[ $status -eq 0 ] && [ ! -s "$work/err" ]'
}
# refuses STATUS TEXT ARGUMENTS: a run that ends with this status and exactly one line on stderr, with the text in it.
refuses() {
    want=$1 text=$2
    shift 2
    run --quiet "$@"
    check "exit $want and one line with '$text', not $status: $*" one_line
}
one_line() {
    [ "$status" -eq "$want" ] && [ "$(wc -l <"$work/err")" -eq 1 ] && grep -q "^$program: " "$work/err" && complains "$text" && [ ! -s "$work/out" ]
}
# number FILE KEY: a number of a JSON report, as it is written there.
number() { sed -n "s/^ *\"$2\": \\([^,]*\\),*\$/\\1/p" "$1"; }
# last_step LOGDIR: the last step in a log.
last_step() { awk -F, '$3 == "step" { s = $1 } END { print s + 0 }' "$1/log.csv"; }
newest() { find "$1" -name 'checkpoint-*' | sed 's/.*checkpoint-//' | sort -n | tail -n 1; }

# same_log A B: the same rows, apart from the times. The gradient norm is known where the losses were fetched, which
# depends on the clock; where both logs have it, it is the same.
same_log() {
    awk -F, -v other="$2/log.csv" '
        function miss(why) { print "    log line " NR ": " why; bad = 1; exit 1 }
        { if ((getline line < other) <= 0) miss("missing in the other log")
          n = split(line, b, ",")
          if (n != NF) miss("columns")
          for (i = 1; i <= 6; i++) if ($i != b[i]) miss($i " is not " b[i] " in column " i)
          if ($7 != b[7] && $7 != "n/a" && b[7] != "n/a") miss("gradient norm") }
        END { if (!bad && (getline line < other) > 0) { print "    log: more rows in the other log"; bad = 1 }
              exit bad }' "$1/log.csv"
}

: >"$work/out"
: >"$work/err"
damage=$root/build/c/test/damage
if [ ! -x "$damage" ] || [ -n "$(find "$root/test/damage.c" "$root/test/ref_parity.h" -newer "$damage")" ]; then
    damage=$work/damage
    if ! ${CC:-cc} -std=c11 -D_GNU_SOURCE -O1 -I"$root/test" -o "$damage" "$root/test/damage.c" -lm; then
        echo "FAIL cannot build test/damage.c"
        echo "0 passed, 1 failed, 0 skipped"
        exit 1
    fi
fi

every_option_is_used() {
    for option in $(cat "$work/options"); do
        check "--$option is exercised" grep -q -x -e "--$option" "$work/used"
    done
}
