# check_trainer.sh -- what the shell tests of trainers share, beside check.sh. A test `test_train_X.sh TRAINER
# [COMPARE]` sources it:
#
#     . "$(dirname -- "$0")/check_trainer.sh"
#
#     $trainer, $program, $compare    the program under test, its name, and dev/compare or nothing
#     $root, $work, $damage           the project, a temporary folder, the program of test/damage.c (built where there
#                                     is none)
#     run ARGUMENTS                   runs the trainer: $work/out, $work/err, $status
#     ok WHAT ARGUMENTS               a run that ends well and has nothing to complain about
#     refuses STATUS TEXT ARGUMENTS   a run that ends with this status and exactly one line on stderr, with the text in
#                                     it
#     says TEXT, complains TEXT       stdout, stderr of the last run has the text
# and the parts further down that are the same for every trainer, each a function: bad_options, reports, analysed,
# compared, no_room, no_gpu, interrupted, again, ends_exercised. Needs POSIX tools and a C compiler. Runs on one thread,
# except where threads are what is compared.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
if [ $# -lt 1 ] || [ $# -gt 2 ] || [ ! -x "$1" ]; then
    echo "usage: sh $0 TRAINER [COMPARE]" >&2
    exit 2
fi
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
trainer=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
program=$(basename -- "$1")
compare=${2:-}
. "$root/test/check.sh"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=passive
unset CUDA_CPU_ORDER

says() { grep -q -F -e "$1" "$work/out"; }
complains() { grep -q -F -e "$1" "$work/err"; }
silent() { [ ! -s "$work/out" ] && [ ! -s "$work/err" ]; }
near() { awk -v a="$1" -v b="$2" -v t="$3" \
    'BEGIN { d = a - b; exit !(a != "" && b != "" && d <= t * (b < 0 ? -b : b) && -d <= t * (b < 0 ? -b : b)) }'; }
less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && a + 0 <= b + 0) }'; }

run() {
    printf '%s\n' "$@" >>"$work/used"
    "$trainer" "$@" >"$work/out" 2>"$work/err"
    status=$?
}
ok() {
    label=$1
    shift
    run "$@"
    check "$label: exit 0, nothing on stderr" eval '[ $status -eq 0 ] && [ ! -s "$work/err" ]'
}
refuses() {
    want=$1 text=$2
    shift 2
    run --quiet "$@"
    check "exit $want and one line with '$text', not $status: $*" one_line
}
one_line() {
    [ "$status" -eq "$want" ] && [ "$(wc -l <"$work/err")" -eq 1 ] && grep -q "^$program: " "$work/err" &&
        complains "$text" && [ ! -s "$work/out" ]
}
# same_tensors A B: two weight or state files have the same tensors, apart from those that name the run.
same_tensors() { "$damage" same "$1" "$2" >>"$work/out" 2>>"$work/err"; }
# number FILE KEY: a number of a JSON report, as it is written there.
number() { sed -n "s/^ *\"$2\": \\([^,]*\\),*\$/\\1/p" "$1"; }
# last_step LOGDIR: the last step in a log; newest LOGDIR: that of the newest checkpoint.
last_step() { awk -F, '$3 == "step" { s = $1 } END { print s + 0 }' "$1/log.csv"; }
newest() { find "$1" -name 'checkpoint-*' | sed 's/.*checkpoint-//' | sort -n | tail -n 1; }
# moved: the largest change of the outputs by a rescaling that the last run printed.
moved() { sed -n 's/.*outputs moved by //p' "$work/out" | awk '$1 + 0 >= most + 0 { most = $1 } END { print most }'; }
# last_loss LOGDIR SPLIT: the last loss of a split in a log.
last_loss() { awk -F, -v which="$2" '$3 == which { loss = $4 } END { print loss }' "$1/log.csv"; }
# rate LOGDIR STEP: the learning rate of a step in a log.
rate() { awk -F, -v s="$2" '$3 == "step" && $1 == s { print $6 }' "$1/log.csv"; }

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
if [ ! -x "$damage" ] || [ -n \
    "$(find "$root/test" -name 'damage.c' -newer "$damage" -o -name 'ref_*.h' -newer "$damage")" ]; then
    damage=$work/damage
    if ! ${CC:-cc} -std=c11 -D_GNU_SOURCE -O1 -I"$root/test" -o "$damage" "$root/test/damage.c" -lm; then
        echo "FAIL cannot build test/damage.c"
        echo "0 passed, 1 failed, 0 skipped"
        exit 1
    fi
fi
echo 'an older file' >"$work/old"

# ----------------------------------------------------------------------------------------- the same for every trainer

# helps: --help and --version; the options of --help go to $work/options.
helps() {
    run --help
    check '--help: exit 0, on stdout' eval '[ $status -eq 0 ] && [ ! -s "$work/err" ] && says "Usage: $program"'
    sed -n 's/^  --\([a-z0-9-]*\).*/\1/p' "$work/out" >"$work/options"
    check '--help: lists the options' eval '[ "$(wc -l <"$work/options")" -gt 30 ]'
    check '--help: one-cycle is the one without cycling momentum' says 'OneCycleLR(max_lr=LR, cycle_momentum=False)'
    check '--help: at most 100 columns' eval '[ -z "$(sed -n "/^.\{101\}/p" "$work/out")" ]'
    run --version
    check '--version: exit 0, one line on stdout' eval \
        '[ $status -eq 0 ] && [ ! -s "$work/err" ] && [ "$(wc -l <"$work/out")" -eq 1 ]'
}

# bad_options ARGUMENTS: usage errors of the options that all trainers have, after arguments that are fine.
bad_options() {
    refuses 2 --epocs "$@" --epocs 3
    refuses 2 --epoch "$@" --epoch 3
    refuses 2 --lr "$@" --lr abc
    refuses 2 --lr "$@" --lr 0.1x
    refuses 2 --lr "$@" --lr -1
    refuses 2 --lr "$@" --lr 0
    refuses 2 --lr "$@" --lr nan
    refuses 2 --lr "$@" --lr 1e999
    refuses 2 --lr "$@" --lr ''
    refuses 2 --lr "$@" --lr
    refuses 2 --momentum "$@" --momentum 1
    refuses 2 --weight-decay "$@" --weight-decay -0.1
    refuses 2 --init-scale "$@" --init-scale 0
    refuses 2 --batch-size "$@" --batch-size -1
    refuses 2 --batch-size "$@" --batch-size 1.5
    refuses 2 --epochs "$@" --epochs 99999999999999999999
    refuses 2 --steps "$@" --steps -1
    refuses 2 --seed "$@" --seed -3
    refuses 2 --seed "$@" --seed 9007199254740993
    refuses 2 --limit "$@" --limit -2
    refuses 2 --warmup "$@" --warmup -1
    refuses 2 --warmup "$@" --schedule one-cycle --warmup 5
    refuses 2 one-cycle "$@" --schedule linear
    refuses 2 --eval-every "$@" --eval-every 3weeks
    refuses 2 --rescale-every "$@" --rescale-every -1steps
    refuses 2 --rescale-max-log "$@" --rescale-max-log -1
    refuses 2 --rescale-strength "$@" --rescale-strength 1.5
    refuses 2 --rescale-paths "$@" --rescale-paths biases
    refuses 2 --rescale-solver "$@" --rescale-solver unit
    refuses 2 --rescale-max-trace "$@" --rescale-max-trace 0.5
    refuses 2 --rescale-max-trace "$@" --rescale pathcond --rescale-max-trace 1 --rescale-solver sweeps
    refuses 2 --rescale-within "$@" --rescale-within --rescale-max-log 1
    refuses 2 --rescale-max-trace "$@" --rescale enorm --rescale-max-trace 1
    refuses 2 --rescale "$@" --rescale maybe
    refuses 2 'did you mean pathcond?' "$@" --rescale patchcond
    refuses 2 '--overwrite needs --log-dir' "$@" --overwrite
    refuses 2 '--overwrite and --resume' "$@" --resume "$work/x" --overwrite
    refuses 2 --optimizer "$@" --optimizer adam
    refuses 2 --quiet "$@" --quiet=yes
    refuses 2 stray "$@" stray
    refuses 2 '--resume and --load' "$@" --resume "$work/x" --load "$work/y"
    refuses 2 --log-dir "$@" --resume "$work/x" --log-dir "$work/y"
    ok 'a run that says what it runs on' "$@" --steps 0
    if head -n 1 "$work/out" | grep -q '^CPU'; then
        refuses 2 --precision "$@" --precision bf16
        refuses 2 --precision "$@" --precision tf32
    else
        skip 'precisions a CPU does not have: this is not the CPU build'
    fi
}

# bad_outputs ARGUMENTS: files that cannot be written, found before the first step of a run that would never end;
# folders that are made; standard output and messages.
bad_outputs() {
    refuses 1 "$work/old/logs" "$@" --steps 100000000 --log-dir "$work/old/logs"
    refuses 1 "$work/old" "$@" --steps 100000000 --report "$work/old/r.json"
    refuses 1 "$work/old" "$@" --steps 100000000 --save "$work/old/w"
    check 'the older file is as it was' is "$(cat "$work/old")" 'an older file'
    ok 'folders of --save and --report are made' "$@" --steps 0 --quiet --save "$work/made/a/w" --report \
        "$work/made/b/r.json"
    check '--save and --report: the files' eval '[ -s "$work/made/a/w" ] && [ -s "$work/made/b/r.json" ]'
    output_lost "$@"
    clean_messages "$@"
    one_owner "$@"
    mkdir -p "$work/folder"
    refuses 1 "$work/folder" "$@" --steps 0 --save "$work/folder"
    [ -p "$work/pipe" ] || mkfifo "$work/pipe"
    refuses 1 "$work/pipe" "$@" --steps 0 --save "$work/pipe"
    check '--save does not replace a pipe or a device' test -p "$work/pipe"
}

# no_steps ARGUMENTS: --steps 0 initialises, rescales and saves, in the log folder as well; a run goes on from there.
no_steps() {
    set -- "$@" --quiet --schedule constant --rescale pathcond # a schedule may follow the number of steps
    ok '--steps 0' "$@" --steps 0 --log-dir "$work/zero" --save "$work/zero.safetensors"
    check '--steps 0: a checkpoint in the log folder' is "$(newest "$work/zero")" 0
    check '--steps 0: it has the weights of --save' same_tensors "$work/zero/checkpoint-0/model.safetensors" \
        "$work/zero.safetensors"
    ok 'resumed at step 0' "$@" --steps 3 --resume "$work/zero" --save "$work/zero.resumed"
    ok 'begun without a stop' "$@" --steps 3 --log-dir "$work/begun" --save "$work/begun.w"
    check 'resumed at step 0: the same weights bit for bit' same "$work/zero.resumed" "$work/begun.w"
    rm -rf "$work/zero" "$work/begun"
}

# full_disk_works ARGUMENTS: without room a run that saves nothing must work. Where it does not because a GPU's driver
# needs files of its own, the status is 1, and this is said as a skipped check.
full_disk_works() {
    run "$@" --steps 0
    on_cpu=1
    says 'CPU, ' || on_cpu=0
    full_disk "$trainer" --quiet "$@" --steps 0 >"$work/out" 2>"$work/err"
    status=$?
    [ $status -eq 0 ] || [ $on_cpu -eq 1 ] || { skip \
        "full disk: the driver needs files of its own: $(tail -n 1 "$work/err")" && return 1; }
    check 'no room: a run that saves nothing works' is $status 0
}

# no_gpu ARGUMENTS: where there is no GPU, a program of both devices says so before it reads or writes anything.
no_gpu() {
    export CUDA_CPU_DEVICES=0 CUDA_VISIBLE_DEVICES=
    refuses 1 "$program: no GPU: build with DEVICE=cpu" "$@"
    refuses 1 "$program: no GPU: build with DEVICE=cpu" "$@" --data "$work/missing" --log-dir "$work/no_gpu"
    unset CUDA_CPU_DEVICES CUDA_VISIBLE_DEVICES
    check 'no GPU: no log folder' test ! -e "$work/no_gpu"
}

# output_lost ARGUMENTS: standard output that cannot be written makes a failure, and a file never takes its place.
output_lost() {
    if [ -c /dev/full ]; then
        "$trainer" "$@" --steps 0 >/dev/full 2>"$work/err"
        check 'standard output on a full disk: exit 1' is $? 1
        check 'standard output on a full disk: one line' eval \
            '[ "$(wc -l <"$work/err")" -eq 1 ] && complains "cannot write to standard output"'
        "$trainer" --help >/dev/full 2>"$work/err"
        check '--help on a full disk: exit 1' is $? 1
    else
        skip 'standard output on a full disk: no /dev/full here'
    fi
    "$trainer" "$@" --steps 3 --log-dir "$work/closed" >&- 2>"$work/err"
    check 'standard output closed: exit 1' is $? 1
    check 'standard output closed: the log holds rows alone' is \
        "$(grep -c -v -E '^(step|[0-9]+),' "$work/closed/log.csv")" 0
    "$trainer" "$@" --steps 3 --quiet >&- 2>"$work/err"
    check 'standard output closed, and not used: exit 0' is $? 0
}

# clean_messages ARGUMENTS: no escape code of a path reaches the terminal.
clean_messages() {
    odd=$(printf '%s/\033[31m\302\233red' "$work")
    for option in --load --resume --data; do
        run "$@" "$option" "$odd"
        check "$option with an escape code: the message has none" eval \
            '[ $status -ne 0 ] && complains "?[31m?red" && [ "$(tr -d "\n -~" <"$work/err" | wc -c)" -eq 0 ]'
    done
    ok 'a log folder with an escape code' "$@" --steps 1 --log-dir "$odd"
    run "$@" --steps 1 --resume "$odd"
    check 'resumed there: no escape code is printed' eval \
        '[ $status -eq 0 ] && says "?[31m?red" && ! grep -q "$(printf "\033")" "$work/out"'
}

# one_owner ARGUMENTS: runs that race for a folder. One gets it, the others say so and leave it alone.
one_owner() {
    for round in 1 2 3; do
        for way in '' --overwrite; do
            race "$way" "$@" --quiet --steps 20 --eval-every 0 --log-dir "$work/race$round"
        done
    done
    ok 'what is left is whole' "$@" --quiet --steps 20 --eval-every 0 --resume "$work/race1"
    rm -rf "$work"/race*
}
race() {
    way=$1
    shift
    for k in 1 2 3 4; do
        ("$trainer" "$@" $way 2>"$work/race.$k.err"; echo $? >"$work/race.$k") &
    done
    wait
    won=0 odd=0
    for k in 1 2 3 4; do
        case $(cat "$work/race.$k") in
        0) won=$((won + 1)) ;;
        1) [ "$(wc -l <"$work/race.$k.err")" -eq 1 ] && grep -q -e 'another run is writing there' -e 'holds a run' \
            "$work/race.$k.err" || odd=$((odd + 1)) ;;
        *) odd=$((odd + 1)) ;;
        esac
    done
    if [ "$way" ]; then check 'a race to overwrite: somebody wins' test $won -ge 1; \
        else check 'a race: one wins' is $won 1; fi
    check "a race $way: the others say why" is $odd 0
    check "a race $way: the log has each step once" is "$(grep -c ',step,' "$work/race$round/log.csv")" 20
}

# out_of_memory FROM TO STEP ARGUMENTS: with less and less address space (in KiB) a run ends well or with one line and
# exit 1, never by a signal and never as a usage error.
out_of_memory() {
    room=$1 least=$2 less=$3 refused=0
    shift 3
    while [ "$room" -ge "$least" ]; do
        (ulimit -v "$room" && exec "$trainer" "$@" --quiet) >"$work/out" 2>"$work/err"
        status=$?
        [ $status -eq 127 ] && break # the system's loader found no room
        [ $status -eq 0 ] || refused=$((refused + 1))
        check "$room KiB of memory: exit 0, or 1 and one line, not $status" eval \
            '[ $status -eq 0 ] || { [ $status -eq 1 ] && [ "$(wc -l <"$work/err")" -eq 1 ]; }'
        room=$((room - less))
    done
    check 'memory was short at least once' test $refused -gt 0
}

# no_room WHAT FILE ARGUMENTS: with room for one kilobyte, FILE cannot be written, keeps its old content, and says so
# once.
no_room() {
    label=$1 file=$2
    shift 2
    mkdir -p "$(dirname "$file")"
    echo 'an older file' >"$file"
    full_disk "$trainer" --quiet "$@" >"$work/out" 2>"$work/err"
    status=$? want=1 text=$file
    check "$label, no room: exit 1 and one line with '$text', not $status" one_line
    check "$label, no room: the older file is intact" same "$file" "$work/old"
    check "$label, no room: nothing half-written is left" is "$(find "$(dirname "$file")" -name '*.tmp*')" ''
}

# reports FILE: a report has every key, and is JSON.
reports() {
    report=$1
    for key in rescale method solver objective_before objective_after spread_before spread_after tensors groups \
        grad_inf iterations seconds_diag_g seconds_solve seconds_apply \
        max_abs_log_lambda pinned_units units parameters output_max_rel_diff train steps final_train_loss \
            final_test_loss \
        final_test_accuracy rescalings samples_per_second device threads version; do
        check "report: key $key, once" is "$(grep -c "^ *\"$key\":" "$report")" 1
    done
    check 'report: seconds of all rescalings, and of training' is "$(grep -c '^ *"seconds":' "$report")" 2
    if command -v python3 >/dev/null 2>&1; then
        check 'the report is valid JSON' eval 'python3 -m json.tool "$report" >"$work/json" 2>"$work/err"'
    else
        skip 'JSON of the report: no python3'
    fi
}

# shares FILE KEY: the sum of a key over the rows of a report's list "tensors", over all sets divided by their number (a
# set is one group); nothing where a row has it not. A row is on one line.
shares() {
    awk -v key="\"$2\": " '
        /^      \{/ && /"energy_share_before"/ {
            n++
            sets = /"set": /
            at = index($0, key)
            if (!at) bad = 1
            sum += substr($0, at + length(key))
        }
        /^      \{/ && /"log_lambda_mean"/ { groups++ }
        END { if (n && groups && !bad) printf "%.12g\n", sets ? sum / groups : sum }' "$1"
}

# tables: the last run printed the tables of an analysis, with the sentence.
tables() { says 'parameters   share  energy' && says 'log lambda   ' && grep -q '^Rescaling .* up to' "$work/out"; }

# analysed ARGUMENTS: --steps 0 says of any weights what a rescaling does to them, and changes no file.
analysed() {
    ok 'weights to analyse' "$@" --quiet --steps 0 --rescale none --save "$work/analysed"
    cp "$work/analysed" "$work/analysed.before"
    set -- "$@" --load "$work/analysed" --steps 0
    ok 'analysis' "$@" --rescale pathcond --report "$work/analysis.json"
    check 'analysis: both tables and the sentence' tables
    check 'analysis: the weights are as they were' same "$work/analysed" "$work/analysed.before"
    sed -n '/^tensor  /,/^Rescaling/p' "$work/out" >"$work/table"
    check 'analysis: at most 100 columns' eval '[ -s "$work/table" ] && [ -z "$(sed -n "/^.\{101\}/p" "$work/table")" ]'
    check 'analysis: a line of the table for every row of the report' is "$(wc -l <"$work/table")" \
        "$(($(grep -c '^      {' "$work/analysis.json") + 3))"
    for key in parameter_share energy_share_before energy_share_after; do
        check "analysis: $key sums to 1" near "$(shares "$work/analysis.json" $key)" 1 1e-9
    done
    reports "$work/analysis.json"
    ok 'analysis for ENorm' "$@" --rescale enorm --report "$work/analysis.json"
    check 'analysis for ENorm: log lambda alone' eval 'says "log lambda   " && ! says "parameters   share"'
    check 'analysis for ENorm: no energy in the report' eval \
        'grep -q "\"energy_share_after\": null" "$work/analysis.json" && grep -q log_lambda_std "$work/analysis.json"'
    ok 'no rescaling' "$@" --rescale none --report "$work/analysis.json"
    check 'no rescaling: no table' eval '! says "log lambda" && ! says "Rescaling "'
    check 'no rescaling: no rows in the report' is "$(grep -c '^    "[a-z]*": \[\],*$' "$work/analysis.json")" 2
    ok 'quiet analysis' "$@" --rescale pathcond --quiet --report "$work/analysis.json"
    check 'quiet analysis: silent, and in the report' eval 'silent && grep -q log_lambda_mean "$work/analysis.json"'
}

# compared: dev/compare, where it is given, reads the log in $work/log.
compared() {
    [ -n "$compare" ] && [ -x "$compare" ] || return 0
    "$compare" --out "$work/compare" run="$work/log" >"$work/out" 2>"$work/err"
    check 'the comparison reads the log' is $? 0
}

# interrupted SIGNAL EXPECTED NAME OPTIONS: a run of $long that never ends by itself is interrupted where it happens to
# be, resumed up to 100 steps later, and compared with a run that went there directly. $rows: rows of its log to wait
# for.
interrupted() {
    signal=$1 expected=$2 name=$3
    shift 3
    dir=$work/$name-$signal
    # shellcheck disable=SC2086
    "$damage" signal "$signal" "$dir/log.csv" "${rows:-400}" "$trainer" $long "$@" --steps 100000000 \
        --checkpoint-every 70steps --log-dir "$dir" \
        --save "$dir.partial" >"$work/out" 2>"$work/err"
    check "$name, SIG$signal: exit $expected" is $? "$expected"
    if [ "$signal" = KILL ]; then
        # Rows after the newest checkpoint have to go; a write in progress may have left its temporary file.
        step=$(newest "$dir")
    else
        step=$(last_step "$dir")
        check "$name, SIG$signal: one line says where" eval \
            '[ "$(wc -l <"$work/err")" -eq 1 ] && complains "interrupted after step $step; continue with --resume $dir"'
        check "$name, SIG$signal: the step is finished and saved" is "$(newest "$dir")" "$step"
        check "$name, SIG$signal: --save has the weights so far" same_tensors "$dir.partial" \
            "$dir/checkpoint-$step/model.safetensors"
    fi
    end=$((step + 100))
    # shellcheck disable=SC2086
    run $long "$@" --steps $end --checkpoint-every 70steps --resume "$dir" --save "$dir.resumed"
    check "$name, SIG$signal: resumed" eval '[ $status -eq 0 ] && { [ ! -s "$work/err" ] || complains "skipping"; }'
    # shellcheck disable=SC2086
    ok "$name, SIG$signal: without interruption" $long "$@" --steps $end --checkpoint-every 70steps --log-dir \
        "$dir-direct" --save "$dir.direct"
    check "$name, SIG$signal: the same weights bit for bit" same "$dir.resumed" "$dir.direct"
    check "$name, SIG$signal: the same log" same_log "$dir" "$dir-direct"
    check "$name, SIG$signal: the same optimizer state" same_tensors "$dir/checkpoint-$end/state.safetensors" \
        "$dir-direct/checkpoint-$end/state.safetensors"
    rm -rf "$dir-direct"
}

# damaged_checkpoints: a run of 100 steps ($full) keeps the checkpoints of 60 and 100 steps. With the later one damaged
# in some way, the earlier one leads to the same end. $work/again is left as the run ended.
damaged_checkpoints() {
    # shellcheck disable=SC2086
    ok 'a whole run' $full --log-dir "$work/whole" --checkpoint-every 60steps --save "$work/whole.w"
    cp -R "$work/whole" "$work/again"
    last=$work/again/checkpoint-100
    rm -r "$last"
    again 'newest checkpoint gone' 0
    rm "$last/state.safetensors"
    again 'newest checkpoint without state' 1
    "$damage" cut "$last/state.safetensors" 1
    again 'newest checkpoint, state truncated' 1
    "$damage" set "$last/state.safetensors" -9 55
    again 'newest checkpoint, a byte of the state changed' 1
    "$damage" set "$last/model.safetensors" -9 55
    again 'newest checkpoint, a byte of the weights changed' 1
    "$damage" cut "$last/model.safetensors" 300
    again 'newest checkpoint, weights truncated' 1
    rm "$last/model.safetensors"
    again 'newest checkpoint without weights' 1
    cp "$work/whole/checkpoint-60/model.safetensors" "$last"
    again 'newest checkpoint, weights of another step' 1
    mv "$last" "$work/again/checkpoint-101"
    run --resume "$work/again"
    check 'a checkpoint under another number: skipped' complains \
        "checkpoint-101/state.safetensors: expected step 101 as in the folder's name, found 100"
    continued
}
# continued: the run of damaged_checkpoints goes on by its folder alone, with the stored options; what is asked beside
# has to fit it.
continued() {
    rm -rf "$work/again"
    cp -R "$work/whole" "$work/again"
    rm -r "$last" "$work/whole.w"
    run --resume "$work/again"
    check '--resume alone: exit 0, nothing on stderr' eval \
        '[ $status -eq 0 ] && [ ! -s "$work/err" ] && says "resumed from $work/again/checkpoint-60"'
    check '--resume alone: the same weights, under the stored --save' same_tensors "$work/whole.w" \
        "$work/whole/checkpoint-100/model.safetensors"
    check '--resume alone: the same state' same_tensors "$last/state.safetensors" \
        "$work/whole/checkpoint-100/state.safetensors"
    check '--resume alone: the same log' same_log "$work/again" "$work/whole"
    cp "$work/again/log.csv" "$work/log.before"
    run --resume "$work/again" --report "$work/again.json"
    check 'a finished run: says that nothing is left' eval \
        '[ $status -eq 0 ] && says "nothing is left to train: all 100 steps are done"'
    check 'a finished run: no row is added' same "$work/again/log.csv" "$work/log.before"
    check 'the report has the command line' eval \
        'grep -q "\"command\": \".*--resume $work/again --report" "$work/again.json"'
    check 'the report has every option' is "$(sed -n 's/^    "--\([a-z0-9-]*\)": .*/\1/p' "$work/again.json")" \
        "$(grep -v -x -e help -e version "$work/options")"
    refuses 1 'beyond the 20 steps' --resume "$work/again" --steps 20
    run --resume "$work/again" --steps 105 --lr 0.0009 --resume-changes steps
    check 'other options are told, a line each' eval \
        '[ $status -eq 0 ] && [ "$(wc -l <"$work/err")" -eq 2 ] && complains "note: --lr was "'
    refuses 2 "got 'nonsense'" --resume "$work/again" --resume-changes nonsense
    rm -rf "$work/again"
    cp -R "$work/whole" "$work/again"
    rm -rf "$work/moved"
    mv "$work/again" "$work/moved"
    rm -r "$work/moved/checkpoint-100"
    run --resume "$work/moved"
    check '--resume of a folder that was moved' eval \
        '[ $status -eq 0 ] && same_tensors "$work/moved/checkpoint-100/state.safetensors" \
            "$work/whole/checkpoint-100/state.safetensors"'
    rm -rf "$work/again"
    cp -R "$work/whole" "$work/again"
}
# again WHAT NOTES: resumes the copy $work/again, which prints so many notes, and compares.
again() {
    # shellcheck disable=SC2086
    run $full --resume "$work/again" --checkpoint-every 60steps --save "$work/again.w"
    check "$1: resumed" is $status 0
    check "$1: one note on the checkpoint that is skipped" eval \
        '[ "$(wc -l <"$work/err")" -eq '"$2"' ] && { [ '"$2"' -eq 0 ] || complains checkpoint-100/; }'
    check "$1: the same weights" same "$work/again.w" "$work/whole.w"
    check "$1: the same log" same_log "$work/again" "$work/whole"
    check "$1: the checkpoints are whole again" same_tensors "$work/again/checkpoint-100/state.safetensors" \
        "$work/whole/checkpoint-100/state.safetensors"
    rm -rf "$work/again"
    cp -R "$work/whole" "$work/again"
}

# ends_exercised: the end of a test: every option of --help was used in it.
ends_exercised() {
    for option in $(cat "$work/options"); do
        check "--$option is exercised" grep -q -x -e "--$option" "$work/used"
    done
    summary
}
