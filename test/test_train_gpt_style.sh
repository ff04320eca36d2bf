#!/bin/sh
# test_train_gpt_style.sh -- the language-model trainer as a user meets it: command line, bad input, files, resume,
# sampling, memory.
#
#     sh test/test_train_gpt_style.sh TRAINER [COMPARE] (make test: build/c/train_gpt_style build/c/dev/compare)
#
# Uses the built-in grammar and files written here. Needs POSIX tools and a C compiler; python3, with torch and
# safetensors, adds checks. Runs on one thread, except where threads are what is compared.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
. "$(dirname -- "$0")/check_trainer.sh"
sizes="--layers 2 --heads 2 --channels 16 --context 12"
tiny="--data grammar --limit 200 $sizes --batch-size 8 --eval-every 0"

# le WIDTH NUMBER...: little-endian integers of WIDTH bytes
le() {
    width=$1
    shift
    for n in "$@"; do
        for shift in 0 8 16 24; do
            # shellcheck disable=SC2059
            [ $((shift / 8)) -ge "$width" ] || printf "\\$(printf %03o $((n >> shift & 255)))"
        done
    done
}
# shard FILE MAGIC VERSION COUNT TOKEN...: a token shard, whatever its header says
shard() {
    file=$1 magic=$2 version=$3 count=$4
    shift 4
    { le 4 "$magic" "$version" "$count" && dd if=/dev/zero bs=4 count=253 2>/dev/null && le 2 "$@"; } >"$file"
}

# ------------------------------------------------------------------------------------------------------- command line

helps
# shellcheck disable=SC2086
bad_options $tiny
refuses 2 --layer $tiny --layer 3
refuses 2 --beta1 $tiny --beta1 1
refuses 2 --beta2 $tiny --beta2 -0.1
refuses 2 --clip $tiny --clip -1
refuses 2 --model $tiny --model huge
refuses 2 --layers $tiny --layers 1000
refuses 2 --heads $tiny --heads -1
refuses 2 '--heads: 3 does not divide the 16 channels' $tiny --heads 3
refuses 2 --channels $tiny --channels 1.5
refuses 2 --context $tiny --context -2
refuses 2 --vocabulary $tiny --vocabulary 65537
refuses 2 --temperature $tiny --temperature -1
refuses 2 --top-k $tiny --top-k -1
refuses 2 --sample $tiny --sample -1
refuses 2 --micro-batch $tiny --micro-batch -1
refuses 2 --rescale-kernel $tiny --rescale-kernel weights
refuses 2 --rescale-samples $tiny --rescale-samples 0
refuses 2 --rescale-power $tiny --rescale-power 3
refuses 2 --rescale-level $tiny --rescale-level block
for option in 'kernel data' 'kernel fisher' 'power 1' 'power auto' 'level layer'; do
    # shellcheck disable=SC2086
    refuses 2 'need --rescale pathcond' $tiny --rescale enorm --rescale-$option
done
refuses 2 '--rescale-level layer excludes' $tiny --rescale pathcond --rescale-level layer --rescale-within
refuses 2 '--rescale-level layer excludes' $tiny --rescale pathcond --rescale-level layer --rescale-solver unit-sweeps
refuses 2 '--rescale-paths weights needs' $tiny --rescale pathcond --rescale-kernel data --rescale-paths weights
run --help
check '--help: how many sequences are measured' says 'training samples of --rescale-kernel (default 32)'
for list in '' mlp, ,mlp mlp,,vo mlp,attn MLP all; do refuses 2 --rescale-sets $tiny --rescale-sets "$list"; done

# ----------------------------------------------------------------------------------------------------------------- data

: >"$work/empty"
printf '%s' 'To be, or not to b' >"$work/short"
awk 'BEGIN { for (i = 0; i < 400; i++) printf "abcde fghij klmno %d\n", i % 7 }' >"$work/text"
refuses 1 "$work/nowhere" --data "$work/nowhere" $sizes --steps 0
refuses 1 "$work: not a regular file" --data "$work" $sizes --steps 0
refuses 1 "$work/empty: expected text, found an empty file" --data "$work/empty" $sizes --steps 0
refuses 1 "$work/short: too short: expected at least 26 tokens" --data "$work/short" $sizes --steps 0
refuses 1 "$work/short: too short: expected at least 31 tokens" --data "$work/text" --val-data "$work/short" $sizes \
    --context 30 --steps 0
refuses 1 'get_data.sh' --data shakespeare --data-dir "$work" $sizes --steps 0
refuses 1 'beyond the vocabulary of 100' --data "$work/text" --vocabulary 100 $sizes --steps 0
ok 'bytes below the vocabulary' --data "$work/text" --vocabulary 123 $sizes --steps 0
check 'the vocabulary is said' says 'vocabulary 123'
tokens=$(awk 'BEGIN { for (i = 0; i < 60; i++) print i % 50 * 1000 }')
# shellcheck disable=SC2086
{
    shard "$work/good.bin" 20240520 1 60 $tokens
    shard "$work/magic.bin" 20240521 1 60 $tokens
    shard "$work/version.bin" 20240520 2 60 $tokens
    shard "$work/long.bin" 20240520 1 59 $tokens
    shard "$work/cut.bin" 20240520 1 61 $tokens
    shard "$work/none.bin" 20240520 1 0
}
small="--layers 1 --heads 2 --channels 8 --context 12 --batch-size 2"
ok 'a token shard' --data "$work/good.bin" $small --steps 1
check 'a token shard: GPT-2 vocabulary' says 'vocabulary 50257'
refuses 1 "$work/magic.bin: wrong magic: expected 20240520" --data "$work/magic.bin" $small --steps 0
refuses 1 "$work/version.bin: wrong version" --data "$work/version.bin" $small --steps 0
refuses 1 "$work/long.bin: oversized" --data "$work/long.bin" $small --steps 0
refuses 1 "$work/cut.bin: truncated" --data "$work/cut.bin" $small --steps 0
refuses 1 "$work/none.bin" --data "$work/none.bin" $small --steps 0
refuses 1 "$work/empty.bin" --data "$work/empty.bin" $small --steps 0
cp "$work/empty" "$work/empty.bin"
refuses 1 "$work/empty.bin: truncated" --data "$work/empty.bin" $small --steps 0
cp "$work/good.bin" "$work/good"
ok 'a token shard without .bin' --data "$work/good" $small --steps 0
check 'a token shard without .bin: is one' says 'vocabulary 50257'
shard "$work/llama" 20240801 7 60 $tokens
refuses 1 "$work/llama: wrong magic: expected 20240520" --data "$work/llama" $small --steps 0
# loss_on FILE: the validation loss of untrained weights on a text, in $loss.
loss_on() {
    ok "loss on $1" --data "$1" $sizes --vocabulary 123 --steps 0 --quiet --report "$work/r.json"
    loss=$(number "$work/r.json" final_test_loss)
}
if ! command -v gzip >/dev/null 2>&1; then
    skip 'compressed texts and shards: no gzip'
elif gzip -c "$work/text" >"$work/text.gz" && run --data "$work/text.gz" $sizes --steps 0 &&
    complains 'build with zlib'; then
    skip 'compressed texts and shards: built without zlib'
else
    cp "$work/text.gz" "$work/packed"
    loss_on "$work/text"
    plain=$loss
    loss_on "$work/text.gz"
    check 'a text compressed by gzip: the loss of the text' is "$loss" "$plain"
    loss_on "$work/packed"
    check 'the same without .gz: the loss of the text' is "$loss" "$plain"
    gzip -c "$work/good.bin" >"$work/packed"
    ok 'a compressed token shard' --data "$work/packed" $small --steps 0
    check 'a compressed token shard: is one' says 'vocabulary 50257'
fi
printf '\3757zXZ\000%01000d' 0 >"$work/packed"
refuses 1 "$work/packed: xz data: unpack it with xz -d" --data "$work/packed" $sizes --steps 0
printf '\050\265\057\375%01000d' 0 >"$work/packed"
refuses 1 "$work/packed: zstd data: unpack it with zstd -d" --data "$work/text" --val-data "$work/packed" $sizes \
    --steps 0
refuses 1 'token 49 is 49000, beyond the vocabulary of 49000' --data "$work/good.bin" --vocabulary 49000 $small \
    --steps 0
refuses 1 'not the same kind of file' --data "$work/good.bin" --val-data "$work/text" $small --vocabulary 50257 \
    --steps 0
refuses 1 '--prompt: the data are tokens' --data "$work/good.bin" $small --steps 0 --sample 3 --prompt x
refuses 1 '--prompt: byte 200 is beyond the vocabulary of 123' --data "$work/text" --vocabulary 123 $sizes --steps 0 \
    --sample 3 --prompt "$(printf '\310')"
refuses 1 '--prompt: byte 126 is beyond' --data "$work/text" --vocabulary 123 $sizes --steps 0 --sample 3 --prompt 'a~'
# As the other trainers: without their data nothing else is trained on.
refuses 1 'get_data.sh --dest' --data-dir "$work" $sizes --steps 0
check 'without --data and without Shakespeare: how to get it, and what is built in' complains \
    'shakespeare; built in: grammar'

# -------------------------------------------------------------------------------------------------------------- weights

start() { # start NAME OPTIONS...: untrained weights in $work/NAME
    saved=$1
    shift
    ok "initial weights $saved" $tiny --steps 0 --quiet --save "$work/$saved" "$@"
}
start none --rescale none
start wide --channels 24
start long --context 13
start deep --layers 3
start untied --untied
start words --vocabulary 300
"$damage" read "$work/none" transformer.h.1.mlp.c_fc.weight >"$work/out" 2>"$work/err"
check 'nanoGPT names, [out][in]' is "$(cat "$work/out")" 'F32 [64,16]'
for name in transformer.wte.weight transformer.wpe.weight transformer.h.0.ln_1.weight transformer.h.0.ln_1.bias \
    transformer.h.0.attn.c_attn.weight \
    transformer.h.0.attn.c_attn.bias transformer.h.0.attn.c_proj.weight transformer.h.0.attn.c_proj.bias \
        transformer.h.1.ln_2.weight \
    transformer.h.1.ln_2.bias transformer.h.1.mlp.c_fc.bias transformer.h.1.mlp.c_proj.weight \
        transformer.h.1.mlp.c_proj.bias transformer.ln_f.weight \
    transformer.ln_f.bias; do
    check "the file has $name" eval '"$damage" read "$work/none" '"$name"' >"$work/out" 2>"$work/err"'
done
check 'a head of its own' eval '"$damage" read "$work/untied" lm_head.weight >"$work/out" 2>"$work/err"'
check 'a tied head is not in the file' eval '! "$damage" read "$work/none" lm_head.weight >"$work/out" 2>"$work/err"'
load="$tiny --steps 0 --load"
refuses 1 "'transformer.wte.weight': expected shape [256,16], found [256,24]" $load "$work/wide"
refuses 1 "'transformer.wpe.weight': expected shape [12,16], found [13,16]" $load "$work/long"
refuses 1 "'transformer.h.2.ln_1.weight' does not belong" $load "$work/deep"
refuses 1 "'lm_head.weight' does not belong" $load "$work/untied"
refuses 1 "'lm_head.weight'" $load "$work/none" --untied
refuses 1 "expected shape [256,16], found [300,16]" $load "$work/words"
refuses 1 "$work/none: was made with --heads 2, here it is 4" $load "$work/none" --heads 4
refuses 1 "$work/text" $load "$work/text"
cp "$work/none" "$work/bad"
"$damage" set "$work/bad" -3 01
refuses 1 checksum $load "$work/bad"
"$damage" cut "$work/bad" 5
refuses 1 "$work/bad" $load "$work/bad"

# Names that other programs give to the same weights: loaded and saved again, they are the same file.
renamed() { # renamed FROM TO: FROM at the front of a name becomes TO
    check "names with '$2' for '$1': written" "$damage" rename "$work/none" "$work/renamed" "$1" "$2"
    ok "names with '$2' for '$1' load" $tiny --steps 0 --rescale none --quiet --load "$work/renamed" --save \
        "$work/saved_again"
    check "names with '$2' for '$1': the same weights" same "$work/saved_again" "$work/none"
}
renamed '' _orig_mod.
renamed '' module.
renamed '' module._orig_mod.
renamed transformer. ''
renamed transformer.wte.weight lm_head.weight
refuses 1 "no tensor 'transformer.wte.weight'" $tiny --untied --steps 0 --load "$work/renamed"

# shellcheck disable=SC2086
bad_outputs $tiny
no_steps $tiny
# shellcheck disable=SC2086
"$damage" signal TERM "$work/sampling.json" 10 "$trainer" $tiny --steps 2 --quiet --report "$work/sampling.json" \
    --sample 1000000 >"$work/out" 2>"$work/err"
check 'interrupted while it samples: exit 143' is $? 143
check 'interrupted while it samples: says how far it came' eval \
    '[ "$(wc -l <"$work/err")" -eq 1 ] && complains "of 1000000 tokens of the sample"'
# shellcheck disable=SC2086
no_room --save "$work/full/w" $tiny --steps 0 --save "$work/full/w"

# ------------------------------------------------------------------------------------- initialisation and rescaling

# losses FILE OPTIONS: losses of saved weights, all digits.
losses() {
    file=$1
    shift
    ok "losses of $file" $tiny --quiet --rescale none --steps 0 --load "$work/$file" --report "$work/r.json" "$@"
    train=$(number "$work/r.json" final_train_loss) test=$(number "$work/r.json" final_test_loss)
}
losses none
train0=$train test0=$test
check 'the first loss is ln 256 within 2%' near "$train" 5.545177 0.02
for sets in mlp vo qk ln mlp,vo,qk,ln; do
    for method in pathcond enorm; do
        start rescaled --rescale $method --rescale-sets $sets --report "$work/r.json"
        check "$method $sets: outputs moved by at most 2e-5" eval \
            'less "$(number "$work/r.json" output_max_rel_diff)" 2e-5 &&
            less 0 "$(number "$work/r.json" max_abs_log_lambda)"'
        losses rescaled
        check "$method $sets: other weights, the same losses" eval \
            '! same "$work/none" "$work/rescaled" && near "$train" "$train0" 1e-6 && near "$test" "$test0" 1e-6'
        start pow2 --rescale $method --rescale-sets $sets --rescale-pow2 --report "$work/r.json"
        check "$method $sets in powers of two: outputs moved by exactly 0" is \
            "$(number "$work/r.json" output_max_rel_diff)" 0
        losses pow2
        check "$method $sets in powers of two: the same losses bit for bit" is "$train $test" "$train0 $test0"
    done
done
start sweeps --rescale pathcond --rescale-solver sweeps --rescale-sweeps 3 --report "$work/r.json"
check 'three sweeps are three sweeps' is "$(number "$work/r.json" sweeps)" 3
start bounded --rescale pathcond --rescale-max-log 0.1 --report "$work/r.json"
check 'a bound on |log lambda| holds' less "$(number "$work/r.json" max_abs_log_lambda)" 0.1000001
for how in 'strength 0.5' within 'paths weights' 'max-trace 1'; do
    # shellcheck disable=SC2086
    start variant --rescale pathcond --rescale-$how --report "$work/r.json"
    check "--rescale-$how: other weights" not same "$work/none" "$work/variant"
    check "--rescale-$how: outputs stay" less "$(number "$work/r.json" output_max_rel_diff)" 2e-5
done
# Every option of diag(G): other weights than with paths and squares, the same function; in training, too; powers of two
# bit for bit.
start paths --rescale pathcond
for how in 'power 1' 'power auto' 'level layer' 'kernel data' 'kernel fisher' 'kernel data --rescale-power 1' \
    'kernel fisher --rescale-power 1' 'kernel data --rescale-level layer' 'kernel data --rescale-samples 5' \
    'kernel data --rescale-sets mlp,qk' 'kernel data --untied' 'kernel data --recompute'; do
    # shellcheck disable=SC2086
    ok "--rescale-$how" $tiny --steps 4 --rescale-every 2steps --rescale pathcond --rescale-$how --report "$work/r.json"
    check "--rescale-$how: the function stays each time" less "$(moved)" 2e-5
    # shellcheck disable=SC2086
    start variant --rescale pathcond --rescale-$how --report "$work/r.json"
    check "--rescale-$how: other weights" not same "$work/paths" "$work/variant"
    check "--rescale-$how: a certificate" \
        less "$(number "$work/r.json" grad_inf)" "$(number "$work/r.json" grad_tolerance)"
    case $how in kernel*)
        check "--rescale-$how: a lower objective" \
            less "$(number "$work/r.json" objective_after)" "$(number "$work/r.json" objective_before)"
        ;;
    esac
    # shellcheck disable=SC2086
    start twice --rescale pathcond --rescale-$how
    check "--rescale-$how: the same seed gives the same bits" same "$work/variant" "$work/twice"
    OMP_NUM_THREADS=2
    # shellcheck disable=SC2086
    start twice --rescale pathcond --rescale-$how
    OMP_NUM_THREADS=1
    if [ "$(number "$work/r.json" gemm)" != '"OpenBLAS"' ]; then
        check "--rescale-$how: 1 and 2 threads give the same bits" same "$work/variant" "$work/twice"
    fi
    # shellcheck disable=SC2086
    start pow2 --rescale pathcond --rescale-$how --rescale-pow2 --report "$work/r.json"
    check "--rescale-$how in powers of two: outputs moved by exactly 0" is \
        "$(number "$work/r.json" output_max_rel_diff)" 0
done
ok 'a measured diag(G)' $tiny --steps 0 --rescale pathcond --rescale-kernel data --report "$work/r.json"
check 'a measured diag(G): a line for every set, without an objective of its own' eval \
    '[ "$(grep -c "^set [a-z]*: max |log lambda|" "$work/out")" -eq 4 ]'
check 'a measured diag(G): analysed as one network' eval \
    'tables && says "changes F by -" && says "h.1.attn.c_attn.weight (keys)"'
for key in parameter_share energy_share_before energy_share_after; do
    check "a measured diag(G): $key sums to 1" near "$(shares "$work/r.json" $key)" 1 1e-9
done
check 'a measured diag(G): a smaller spread' \
    less "$(number "$work/r.json" spread_after)" "$(number "$work/r.json" spread_before)"
start auto --rescale pathcond --rescale-power auto
start one --rescale pathcond --rescale-power 1
check '--rescale-power auto: first powers, as this trainer has AdamW' same "$work/auto" "$work/one"
start data --rescale pathcond --rescale-kernel data
start fisher --rescale pathcond --rescale-kernel fisher
start few --rescale pathcond --rescale-kernel data --rescale-samples 5
start many --rescale pathcond --rescale-kernel data --rescale-samples 2000
start all --rescale pathcond --rescale-kernel data --rescale-samples 200
check 'data is not fisher' not same "$work/data" "$work/fisher"
check 'another number of samples: other weights' not same "$work/data" "$work/few"
check 'more samples than there are: all of them' same "$work/many" "$work/all"
ok 'training without rescaling' $tiny --steps 6 --rescale none --quiet --save "$work/a"
ok 'training beside measurements' $tiny --steps 6 --rescale pathcond --rescale-kernel data --rescale-strength 0 \
    --rescale-every 2steps --quiet --save "$work/b"
check 'measuring moves nothing else: the same bits' same "$work/a" "$work/b"
start small --init-scale 1e-3
start seeded --seed 2 --rescale none
check 'another seed: other weights' not same "$work/none" "$work/seeded"

# ------------------------------------------------------------------------------------------- training, logs,
# determinism

ok 'training' $tiny --rescale pathcond --steps 60 --lr 1e-2 --warmup 5 --log-dir "$work/log" --report "$work/r.json" \
    --save "$work/s1" --eval-every 20steps --checkpoint-every 20steps
check 'what was rescaled, and that the function stayed, is printed' says 'outputs moved by'
check 'piped output has no control characters' is "$(tr -d '[:print:]\n' <"$work/out" | wc -c | tr -d ' ')" 0
check 'the loss went down' less "$(number "$work/r.json" final_test_loss)" 3.5
check 'log.csv has a row per step and two per evaluation' is "$(wc -l <"$work/log/log.csv" | tr -d ' ')" 69
check 'log.csv: 9 columns everywhere' eval '! grep -v "^[^,]*\(,[^,]*\)\{8\}$" "$work/log/log.csv"'
check 'the two newest checkpoints are kept' eval '[ -d "$work/log/checkpoint-40" ] && [ "$(newest "$work/log")" = 60 ]'
reports "$work/r.json"
analysed $tiny --untied
for key in tokens_per_second peak_memory_mib gemm; do
    check "report: key $key, once" is "$(grep -c "^ *\"$key\":" "$work/r.json")" 1
done
compared
losses s1
check 'saved weights have the loss that was reported' near "$train" "$(last_loss "$work/log" train)" 1e-6
ok 'quiet' $tiny --steps 2 --quiet
check 'quiet prints nothing' silent

run2="$tiny --rescale pathcond --steps 20 --quiet --lr 1e-3"
ok 'a run' $run2 --save "$work/a" --log-dir "$work/la"
ok 'again' $run2 --save "$work/b" --log-dir "$work/lb"
check 'the same command gives the same bits' same "$work/a" "$work/b"
check 'the same command gives the same log' same_log "$work/la" "$work/lb"
ok 'with recomputed activations' $run2 --recompute --save "$work/b"
check '--recompute: the same bits' same "$work/a" "$work/b"
OMP_NUM_THREADS=2
ok 'on two threads' $run2 --save "$work/b" --log-dir "$work/lb" --overwrite --report "$work/r.json"
OMP_NUM_THREADS=1
loss_at() { awk -F, -v s="$2" '$3 == "step" && $1 == s { print $4 }' "$1/log.csv"; }
check '1 and 2 threads agree after 20 steps' near "$(loss_at "$work/la" 20)" "$(loss_at "$work/lb" 20)" 1e-5
if [ "$(number "$work/r.json" gemm)" != '"OpenBLAS"' ]; then check 'and bit for bit with the built-in product' same \
    "$work/a" "$work/b"; fi
ok 'in micro-batches' $run2 --micro-batch 3 --log-dir "$work/lb" --overwrite
check '--micro-batch: the same losses' near "$(loss_at "$work/la" 20)" "$(loss_at "$work/lb" 20)" 1e-4
ok 'in stored order' $run2 --shuffle none --log-dir "$work/lb" --overwrite
check '--shuffle none: another order' not is "$(loss_at "$work/la" 3)" "$(loss_at "$work/lb" 3)"
ok 'other options' $run2 --beta1 0.8 --beta2 0.95 --weight-decay 0 --clip 0 --schedule constant --warmup 0 \
    --rescale-every 5steps --save "$work/b"
check 'other options: other weights' not same "$work/a" "$work/b"
ok 'rescaling in training' $tiny --rescale pathcond --steps 20 --rescale-every 5steps
check 'rescaling in training: 1 + 3 times' is "$(grep -c '^rescaled by PathCond' "$work/out")" 4
check 'rescaling in training: the function stays each time' less "$(moved)" 2e-5
ok 'one epoch' $tiny --epochs 1 --batch-size 100
ok 'a preset' --data grammar --limit 4 --model small --batch-size 2 --steps 0 --quiet
refuses 1 'try a smaller --lr' $tiny --steps 50 --lr 1e6 --clip 0 --warmup 0

# --------------------------------------------------------------------------------------------- interruption and resume

long="$tiny --lr 2e-3 --schedule constant --rescale pathcond --rescale-every 150steps"
long="$long --eval-every 90steps --micro-batch 5 --quiet"
rows=250
interrupted INT 130 run
interrupted KILL 137 run
full="$tiny --steps 100 --lr 2e-3 --quiet"
damaged_checkpoints
refuses 1 --seed $long --steps 1000 --resume "$work/run-INT" --seed 9
refuses 1 --batch-size $long --steps 1000 --resume "$work/run-INT" --batch-size 9
refuses 1 '--channels was 16 in that run, here it is 32' $long --steps 1000 --resume "$work/run-INT" --channels 32
refuses 1 '--heads was 2 in that run, here it is 4' --resume "$work/run-INT" --heads 4
refuses 1 '--layers was 2 in that run, here it is 3' $long --steps 1000 --resume "$work/run-INT" --layers 3

# ------------------------------------------------------------------------------------------------------------- sampling

sample="--data grammar --limit 200 $sizes --steps 0 --rescale none --quiet --load $work/s1 --sample 40"
ok 'a sample' $sample --prompt 'the cat'
cp "$work/out" "$work/first"
check 'a sample: the prompt and 40 more characters' eval \
    '[ "$(wc -c <"$work/out")" -eq 48 ] && [ "$(head -c 7 "$work/out")" = "the cat" ]'
ok 'a sample again' $sample --prompt 'the cat'
check 'the same seed: the same sample' same "$work/out" "$work/first"
ok 'a sample with another seed' $sample --prompt 'the cat' --seed 5
check 'another seed: another sample' not same "$work/out" "$work/first"
ok 'a sample with recomputed activations' $sample --prompt 'the cat' --recompute
check 'a sample does not depend on how it is computed' same "$work/out" "$work/first"
ok 'the likeliest' $sample --prompt 'the cat' --temperature 0
cp "$work/out" "$work/first"
ok 'the likeliest, as the only one of one' $sample --prompt 'the cat' --temperature 3 --top-k 1
check 'temperature 0 is top-k 1' same "$work/out" "$work/first"
ok 'no prompt' $sample
check 'no prompt: 40 characters' is "$(wc -c <"$work/out" | tr -d ' ')" 41
ok 'an empty prompt' $sample --prompt ''
check 'an empty prompt is no prompt' is "$(wc -c <"$work/out" | tr -d ' ')" 41
ok 'an empty prompt, in one word' $sample --prompt=
check 'an empty prompt in one word is no prompt' is "$(wc -c <"$work/out" | tr -d ' ')" 41
ok 'a prompt longer than the context' $sample --prompt "$(awk 'BEGIN { for (i = 0; i < 50; i++) printf "abc " }')"
# Large random weights, whose likeliest next byte depends on every byte of the context: the last 12 bytes are all that
# counts.
blank="$tiny --steps 0 --rescale none --quiet --init-scale 20 --sample 20 --temperature 0"
tail_of() { tail -c 21 "$work/out"; }
for seed in 1 2 3; do
    ok 'a prompt of the whole context' $blank --seed $seed --prompt 'abcdefghijkl'
    whole=$(tail_of)
    ok 'a prompt longer than the context, with that end' $blank --seed $seed --prompt 'another beginning: abcdefghijkl'
    check 'a longer prompt keeps as many bytes as fit the context' is "$(tail_of)" "$whole"
done
ok 'a prompt, and no sample' $tiny --steps 0 --quiet --prompt 'the cat'
for option in prompt temperature top-k; do
    run $tiny --steps 0 --$option 1
    check "--$option without --sample: a warning, and the run goes on" eval \
        '[ $status -eq 0 ] && complains "warning: --$option is unused without --sample"'
done
ok 'tokens' --data "$work/good.bin" $small --steps 0 --rescale none --quiet --sample 5
check 'tokens are printed as numbers' is "$(wc -w <"$work/out" | tr -d ' ')" 5

# ---------------------------------------------------------------------------------------------------- PyTorch and
# memory

if ! command -v python3 >/dev/null 2>&1 || ! python3 -c 'import torch, safetensors' >/dev/null 2>&1; then
    skip 'weights to and from PyTorch: python3 with torch and safetensors'
else
    # roundtrip FILE OPTIONS: PyTorch evaluates saved weights and finds the trainer's validation loss and accuracy.
    roundtrip() {
        file=$1
        shift
        ok "losses of $file" --data "$work/text" $sizes --quiet --rescale none --steps 0 --load "$file" --report \
            "$work/r.json" "$@"
        python3 "$root/test/pytorch_gpt_roundtrip.py" eval "$file" --heads 2 --data "$work/text" >"$work/out" \
            2>"$work/err"
        check "PyTorch loads and evaluates $file" is $? 0
        check 'PyTorch finds the same loss' near "$(cut -d' ' -f2 "$work/out")" \
            "$(number "$work/r.json" final_test_loss)" 1e-5
        check 'PyTorch finds the same accuracy' near "$(cut -d' ' -f4 "$work/out")" \
            "$(number "$work/r.json" final_test_accuracy)" 1e-8
    }
    ok 'weights for PyTorch' --data "$work/text" $sizes --steps 30 --lr 1e-2 --quiet --save "$work/for-torch"
    roundtrip "$work/for-torch"
    python3 "$root/test/pytorch_gpt_roundtrip.py" init "$work/torch.safetensors" --layers 2 --heads 2 --channels 16 \
        --context 12 --vocabulary 256 --untied >"$work/out" 2>"$work/err"
    check 'PyTorch writes initial weights' is $? 0
    roundtrip "$work/torch.safetensors" --untied
    ok 'training from weights of PyTorch' --data "$work/text" $sizes --untied --load "$work/torch.safetensors" --steps \
        5 --quiet
fi

# The 124M preset: one step of 4 sequences of 64 tokens, with 8 GiB of address space.
# shellcheck disable=SC2046
shard "$work/many.bin" 20240520 1 600 $(awk 'BEGIN { for (i = 0; i < 600; i++) print i * 7919 % 50257 }')
large="--data $work/many.bin --model 124M --context 64 --batch-size 4 --limit 4 --steps 1"
large="$large --eval-every 1steps --rescale pathcond --report $work/r.json"
printf '%s\n' $large >>"$work/used"
(ulimit -v 8388608 && OMP_NUM_THREADS=2 && "$trainer" $large) >"$work/out" 2>"$work/err"
status=$?
check '124M: a step in less than 8 GiB' eval '[ $status -eq 0 ] && less "$(number "$work/r.json" peak_memory_mib)" 8192'
check '124M: 124 million parameters' says 'parameters'
check '124M: the first loss is ln 50257 within 2%' near \
    "$(sed -n 's/^epoch   0.00  train loss \([0-9.]*\) .*/\1/p' "$work/out")" 10.824905 0.02
check '124M: outputs moved by at most 2e-5' less "$(number "$work/r.json" output_max_rel_diff)" 2e-5
grep -e 'parameters' -e 'rescaled' "$work/out" | cut -c 1-200

ends_exercised
