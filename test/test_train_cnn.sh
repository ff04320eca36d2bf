#!/bin/sh
# test_train_cnn.sh -- the convolutional trainer as a user meets it: command line, bad input, files, interruption,
# resume.
#
#     sh test/test_train_cnn.sh TRAINER [COMPARE]          (make test: build/cpu/train_cnn build/c/dev/compare)
#
# Uses the built-in data sets and tiny files written by test/damage.c, so nothing is downloaded. python3, with torch and
# safetensors, adds checks. What it shares with the tests of other trainers is in check_trainer.sh.

export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
. "$(dirname -- "$0")/check_trainer.sh"
mkdir "$work/idx" "$work/cnn" "$work/cnn/cifar" "$work/cnn/grey"
"$damage" parity "$work/idx" || exit 1
"$damage" cnn-parity "$work/cnn" || exit 1
# 64 images of 6x6 pixels, 10 classes; small, 3-6-6 channels
tiny="--data $work/idx --width 0.1 --batch-size 16"
cifar="--data $work/cnn/cifar --width 0.06 --batch-size 8"     # 32 images of 3x32x32
start() { # start NAME OPTIONS...: untrained weights in $work/NAME
    saved=$1
    shift
    ok "initial weights $saved" --steps 0 --quiet --save "$work/$saved" "$@"
}

# ------------------------------------------------------------------------------------------------------- command line

helps
bad_options $tiny
refuses 2 --model $tiny --model vgg
refuses 2 --model $tiny --model Small
refuses 2 --width $tiny --width 0
refuses 2 --width $tiny --width -1
refuses 2 --width $tiny --width 16.5
refuses 2 --width $tiny --width wide
refuses 2 --norm $tiny --norm layer
refuses 2 --init $tiny --init xavier
refuses 2 --rescale-pool $tiny --rescale-pool min
refuses 2 --rescale-kernel $tiny --rescale-kernel ntk
refuses 2 --rescale-power $tiny --rescale-power 3
refuses 2 --rescale-level $tiny --rescale-level net
refuses 2 --rescale-samples $tiny --rescale-kernel data --rescale-samples 0
refuses 2 '--rescale-pool max needs --rescale-kernel paths' $tiny --rescale-kernel data --rescale-pool max
refuses 2 '--rescale-paths weights needs --rescale-kernel paths' $tiny --rescale-kernel fisher --rescale-paths weights
refuses 2 'need --rescale pathcond' $tiny --rescale enorm --rescale-kernel data
refuses 2 'need --rescale pathcond' $tiny --rescale enorm --rescale-power 1
refuses 2 'need --rescale pathcond' $tiny --rescale enorm --rescale-level layer
refuses 2 '--rescale-level layer excludes' $tiny --rescale-level layer --rescale-within
refuses 2 '--rescale-level layer excludes' $tiny --rescale-level layer --rescale-solver unit-sweeps
refuses 2 --label-smoothing $tiny --label-smoothing 1
refuses 2 --label-smoothing $tiny --label-smoothing -0.1
refuses 2 --label-smoothing $tiny --label-smoothing nan
refuses 2 --augment $tiny --augment=yes
refuses 2 --layers $tiny --layers 36,10
refuses 2 --shortcut $tiny --model resnet18 --shortcut none
refuses 2 'only --model resnet18 has shortcuts' $tiny --shortcut projection
refuses 2 'only --model resnet18 has shortcuts' $cifar --model allconv --shortcut identity
refuses 2 'expected images, moons has 2-dimensional points' --data moons
refuses 2 'expected images of 32x32 pixels, the data has 6x6' $tiny --model allconv
refuses 2 'expected images of 32x32 pixels, the data has 28x28' --data images --model allconv
refuses 2 'expected images of at least 8x8 pixels, the data has 6x6' $tiny --model resnet18
refuses 2 'at most 2674 images of 28x28 pixels, got 2675' --data images --batch-size 2675
refuses 2 'at most 2674 images of 28x28 pixels, got 10000' --data images --batch-size 0
refuses 2 'parameters, expected at most' $cifar --model resnet18 --width 16

# ----------------------------------------------------------------------------------------------------------------- data

# changed FILE: a copy of the small data sets where a file can be changed.
changed() {
    rm -rf "$work/changed"
    cp -R "$work/$1" "$work/changed"
}
refuses 1 "$work/nowhere" --data "$work/nowhere"
refuses 1 "$work/cnn/small.options" --data "$work/cnn/small.options"
refuses 1 nosuchset --data nosuchset
refuses 1 get_data.sh --data cifar10 --data-dir "$work"
refuses 1 get_data.sh --data-dir "$work"
changed idx
"$damage" cut "$work/changed/train-images-idx3-ubyte" 1
refuses 1 "$work/changed/train-images-idx3-ubyte" --data "$work/changed"
changed idx
for file in train t10k; do "$damage" set "$work/changed/$file-images-idx3-ubyte" 8 000000030000000c; done
refuses 2 'expected images of at least 4x4 pixels, the data has 3x12' --data "$work/changed"
changed idx
for file in train t10k; do "$damage" set "$work/changed/$file-images-idx3-ubyte" 4 00000002000000120000003f; done
refuses 1 "$work/changed/train-images-idx3-ubyte" --data "$work/changed"
changed cnn/cifar
"$damage" cut "$work/changed/data_batch_3.bin" 1
refuses 1 "$work/changed/data_batch_3.bin" --data "$work/changed"
changed cnn/cifar
"$damage" set "$work/changed/data_batch_2.bin" 3073 0b
refuses 1 "$work/changed/data_batch_2.bin" --data "$work/changed"
changed cnn/cifar
rm "$work/changed/test_batch.bin"
refuses 1 "$work/changed/test_batch.bin" --data "$work/changed"
mkdir -p "$work/named/mnist" "$work/named/cifar10"
cp "$work"/idx/*-ubyte "$work/named/mnist"
cp "$work"/cnn/cifar/*.bin "$work/named/cifar10"
ok 'a named set in another folder' --data mnist --data-dir "$work/named" --width 0.1 --steps 0
refuses 1 "$work/named/cifar10/data_batch_1.bin" --data cifar10 --data-dir "$work/named"

# -------------------------------------------------------------------------------------------------------------- weights

start good $tiny
for kind in huge-header long-header empty overlap range backwards negative hole rest duplicate duplicate-key \
    unknown-dtype huge-shape json; do
    "$damage" weights $kind "$work/bad.safetensors"
    refuses 1 "$work/bad.safetensors" $tiny --load "$work/bad.safetensors" --steps 0
done
refuses 1 "$work/none.safetensors" $tiny --load "$work/none.safetensors" --steps 0
refuses 1 "$work" $tiny --load "$work" --steps 0
cp "$work/good" "$work/w3"
"$damage" cut "$work/w3" 5
refuses 1 "$work/w3" $tiny --load "$work/w3" --steps 0
cp "$work/good" "$work/w3"
"$damage" set "$work/w3" -3 01
refuses 1 checksum $tiny --load "$work/w3" --steps 0
start w.bn $tiny --norm batch
start w.bare $tiny --no-bias
start w.cifar $cifar
start w.allconv $cifar --model allconv
start w.resnet $cifar --model resnet18
start w.plain $cifar --model resnet18 --norm none
refuses 1 "'conv1.weight': expected shape [6,1,3,3], found [3,1,3,3]" $tiny --width 0.2 --load "$work/good" --steps 0
refuses 1 "'bn1.weight'" $tiny --norm batch --load "$work/good" --steps 0
refuses 1 "'bn1.weight' does not belong to this network (--model, --width, --norm, --shortcut or --no-bias differ)" \
    $tiny --load "$work/w.bn" --steps 0
refuses 1 "'conv1.bias'" $tiny --load "$work/w.bare" --steps 0
refuses 1 "'conv1.bias' does not belong" $tiny --no-bias --load "$work/good" --steps 0
refuses 1 "'conv1.weight': expected shape [3,1,3,3], found [2,3,3,3]" $tiny --load "$work/w.cifar" --steps 0
refuses 1 "'fc.weight': expected shape [10,294], found [10,6]" --data images --width 0.1 --load "$work/good" --steps 0
refuses 1 "'conv1.weight': expected shape [8,3,3,3], found [2,3,3,3]" $cifar --model allconv --load "$work/w.cifar" \
    --steps 0
refuses 1 "'layer1.0.conv1.weight'" $cifar --width 0.03 --model resnet18 --norm none --load "$work/w.cifar" --steps 0
refuses 1 "'bn1.weight'" $cifar --model resnet18 --load "$work/w.plain" --steps 0
refuses 1 "'bn1.weight' does not belong" $cifar --model resnet18 --norm none --no-bias --load "$work/w.resnet" --steps 0
refuses 1 "'layer1.0.downsample.0.weight'" $cifar --model resnet18 --shortcut projection --load "$work/w.resnet" \
    --steps 0
changed idx
for file in train t10k; do # classes 5 to 9 become 0 to 4
    { head -c 8 "$work/idx/$file-labels-idx1-ubyte" && tail -c +9 "$work/idx/$file-labels-idx1-ubyte" | \
        tr '\005\006\007\010\011' '\000\001\002\003\004'; } >"$work/changed/$file-labels-idx1-ubyte"
done
ok 'five classes' --data "$work/changed" --width 0.1 --steps 0
refuses 1 "'fc.weight': expected shape [5,6], found [10,6]" --data "$work/changed" --width 0.1 --load "$work/good" \
    --steps 0

# --------------------------------------------------------------------------------------------------------------- output

bad_outputs $tiny
no_steps $tiny
if (ulimit -v 100000) 2>/dev/null; then
    out_of_memory 400000 40000 40000 --data images --limit 64 --limit-test 16 --width 2 --batch-size 64 --steps 1
else
    skip 'out of memory: this shell cannot limit the address space'
fi
no_gpu $tiny
if full_disk_works $tiny; then
    no_room --save "$work/full/w" $tiny --steps 0 --save "$work/full/w"
    full_disk "$trainer" --quiet $tiny --steps 200 --eval-every 0 --log-dir "$work/fulllog" --checkpoint-every 0 \
        >"$work/out" 2>"$work/err"
    check 'log and checkpoint, no room: exit 1' is $? 1
    check 'log and checkpoint, no room: a line for each' eval \
        '[ "$(grep -c "^train_cnn: $work/fulllog/" "$work/err")" -eq 2 ] && [ "$(wc -l <"$work/err")" -eq 2 ]'
fi

# ------------------------------------------------------------------------------------- initialisation and rescaling

# losses FILE OPTIONS: training and test loss of saved weights, all digits.
losses() {
    file=$1
    shift
    ok "losses of $file" --quiet --rescale none --steps 0 --load "$work/$file" --report "$work/r.json" "$@"
    train=$(number "$work/r.json" final_train_loss) test=$(number "$work/r.json" final_test_loss)
}
# rescaled NAME OPTIONS: every way of rescaling gives other weights with the same losses; in powers of two exactly.
rescaled() {
    net=$1
    shift
    start "$net.none" "$@" --rescale none
    losses "$net.none" "$@"
    train0=$train test0=$test
    for how in 'pathcond' 'enorm' 'pathcond --rescale-solver sweeps --rescale-sweeps 2' \
        'pathcond --rescale-max-log 0.3' 'pathcond --rescale-pool max' 'pathcond --rescale-strength 0.5' \
        'pathcond --rescale-within' 'pathcond --rescale-paths weights' 'pathcond --rescale-max-trace 1' \
        'pathcond --rescale-power 1' 'pathcond --rescale-level layer' \
        'pathcond --rescale-kernel data --rescale-max-log 1' \
        'pathcond --rescale-kernel fisher --rescale-samples 24 --rescale-max-log 1' \
        'pathcond --rescale-kernel data --rescale-power 1 --rescale-level layer --rescale-max-log 1'; do
        # shellcheck disable=SC2086
        start rescaled "$@" --rescale $how --report "$work/how.json"
        check "$net, $how: the report says that outputs stayed" less "$(number "$work/how.json" output_max_rel_diff)" \
            2e-5
        case $how in
        *sweeps*) check "$net, $how: two sweeps" is \
            "$(number "$work/how.json" solver) $(number "$work/how.json" sweeps)" '"sweeps" 2' ;;
        *max-trace*) check "$net, $how: the trace of G does not grow" less "$(number "$work/how.json" trace_ratio)" \
            1.000001 ;;
        *'max-log 0.3') check "$net, $how: the bound holds" less "$(number "$work/how.json" max_abs_log_lambda)" \
            0.3000001 ;;
        esac
        losses rescaled "$@"
        check "$net, $how: not the same weights" not same "$work/$net.none" "$work/rescaled"
        check "$net, $how: the same losses" eval 'near "$train" "$train0" 2e-5 && near "$test" "$test0" 2e-5'
    done
    start rescaled "$@"
    start most "$@" --rescale-pool max
    if [ "$net" = resnet ]; then check "$net: no max-pool" same "$work/rescaled" "$work/most"; \
        else check "$net: paths of the largest give other weights" not same "$work/rescaled" "$work/most"; fi
    start pow2 "$@" --rescale-pow2 --report "$work/how.json"
    losses pow2 "$@"
    check "$net, powers of two: the objective does not rise" less "$(number "$work/how.json" objective_after)" \
        "$(number "$work/how.json" objective_before)"
    # on this allconv no power of two is better than none
    [ "$net" = allconv ] || check "$net, powers of two: other weights" not same "$work/$net.none" "$work/pow2"
    check "$net, powers of two: the same losses bit for bit" is "$train $test" "$train0 $test0"
    check "$net, powers of two: outputs moved by exactly 0" is "$(number "$work/how.json" output_max_rel_diff)" 0
}
rescaled small $tiny
rescaled small-bn $tiny --norm batch --init kaiming-normal
rescaled allconv $cifar --model allconv
rescaled resnet $cifar --model resnet18

# Small weights: diag(G) stays in the range of floats, no unit is taken for dead; factors beyond reason and what remains
# out of range are said.
faint="$cifar --model allconv --steps 0 --report $work/how.json"
for scale in 0.1 0.03 0.01; do
    ok "init scale $scale" $faint --init-scale $scale --rescale-max-log 1
    check "init scale $scale: no unit is pinned" is "$(number "$work/how.json" pinned_units)" 0
done
run $faint --init-scale 0.3
check 'init scale 0.3: extreme factors are told' eval \
    '[ $status -eq 0 ] && complains "warning: rescaling goes to |log lambda| =" && complains --rescale-max-log'
refuses 1 '--rescale-max-log' $faint --init-scale 0.001
run $faint --init-scale 0.00001 --rescale-max-log 1
check 'init scale 0.00001: entries too small are told' eval '[ $status -eq 0 ] && complains "too small for floats"'

start normal $tiny --init kaiming-normal --rescale none
start seeded $tiny --seed 2 --rescale none
check 'kaiming-normal, another seed: other weights' eval \
    'not same "$work/small.none" "$work/normal" && not same "$work/small.none" "$work/seeded"'
start scaled $tiny --init-scale 1e-20 --rescale none
losses scaled $tiny
check 'initial weights scaled to nothing: loss log 10' near "$train" 2.302585093 1e-6
refuses 1 'initial weights' $tiny --steps 0 --init-scale 1e38 --rescale none
check 'resnet18 has BatchNorm by default' is "$("$damage" read "$work/w.resnet" bn1.running_var)" 'F32 [4]'
check 'resnet18 --norm none has not' eval '! "$damage" read "$work/w.plain" bn1.running_var 2>"$work/err"'
check 'names and shapes as in torchvision' is "$("$damage" read "$work/w.resnet" layer2.0.downsample.0.weight)" \
    'F32 [8,4,1,1]'
losses small.none $tiny --label-smoothing 0.2
check 'label smoothing changes the loss' not near "$train" \
    "$(losses small.none $tiny && number "$work/r.json" final_train_loss)" 1e-4

# ------------------------------------------------------------------------------------------- training, logs,
# determinism

ok 'training' --data images --limit 1000 --width 0.2 --epochs 4 --batch-size 50 --lr 0.05 --log-dir "$work/log" \
    --report "$work/r.json" --save "$work/s1"
check 'says what it trains' says '1000 training and 2000 test images of 1x28x28; small'
check 'piped output has no control characters' is "$(tr -d '[:print:]\n' <"$work/out" | wc -c | tr -d ' ')" 0
check 'log.csv has a row per step and two per evaluation' is "$(wc -l <"$work/log/log.csv" | tr -d ' ')" 91
check 'the last checkpoint has the saved weights' same_tensors "$work/log/checkpoint-80/model.safetensors" "$work/s1"
before=$(awk -F, '$3 == "test" && $1 == 0 { print $5 }' "$work/log/log.csv") after=$(number "$work/r.json" \
    final_test_accuracy)
echo "test accuracy on synthetic images: $before before training, $after after 80 steps"
check 'training improves accuracy' eval 'less "$before" 0.3 && less 0.5 "$after"'
reports "$work/r.json"
compared
analysed $tiny --norm batch --init kaiming-normal
losses s1 --data images --limit 1000 --width 0.2
check 'saved weights have the losses that were reported' eval 'near "$test" "$(last_loss "$work/log" test)" 1e-6'
ok 'quiet' $tiny --epochs 1 --quiet
check 'quiet prints nothing' silent

# repeats WHAT OPTIONS: the same command gives the same bits, also on two threads. (Not in other orders of a block's
# threads: those run outside of the vectorised loops, where a compiler may contract a b + c d to the other of its two
# fused forms. sanitize.sh compares the orders in a build without fused multiply-add.)
repeats() {
    kind=$1
    shift
    ok "$kind" "$@" --quiet --save "$work/a" --log-dir "$work/la"
    ok "$kind, again" "$@" --quiet --save "$work/b" --log-dir "$work/lb"
    check "$kind: the same bits and log" eval 'same "$work/a" "$work/b" && same_log "$work/la" "$work/lb"'
    OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2
    ok "$kind, two threads" "$@" --quiet --save "$work/b" --report "$work/r.json"
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
    if [ "$(number "$work/r.json" gemm)" != '"OpenBLAS"' ]; then check "$kind: one and two threads give the same bits" \
        same "$work/a" "$work/b"; fi
    rm -rf "$work/la" "$work/lb"
}
repeats 'small, augmented' $tiny --epochs 3 --norm batch --augment --optimizer momentum --lr 0.02
repeats 'resnet18' $cifar --model resnet18 --epochs 2 --optimizer adamw --lr 0.002 --augment
repeats 'allconv' $cifar --model allconv --epochs 1 --optimizer sgd --lr 0.01
repeats 'small, kernel on data' $tiny --norm batch --epochs 2 --rescale-kernel data --rescale-every 3steps
repeats 'resnet18, Fisher' $cifar --model resnet18 --epochs 1 --rescale-kernel fisher --rescale-power 1 \
    --rescale-every 2steps
ok 'augmented' $tiny --epochs 1 --quiet --augment --save "$work/a"
ok 'not augmented' $tiny --epochs 1 --quiet --save "$work/b"
check '--augment changes training' not same "$work/a" "$work/b"
ok 'a training set in stored order' $tiny --load "$work/good" --shuffle none --seed 1 --epochs 1 --quiet --save \
    "$work/a"
ok 'the same with another seed' $tiny --load "$work/good" --shuffle none --seed 2 --epochs 1 --quiet --save "$work/b"
check '--shuffle none: the seed does not matter' same "$work/a" "$work/b"

for optimizer in sgd momentum adamw; do
    ok "rescaling every 3 steps, $optimizer" $tiny --optimizer $optimizer --momentum 0.8 --weight-decay 1e-4 --lr 0.01 \
        --rescale-every 3steps --epochs 3
    check "rescaling every 3 steps, $optimizer: 1 + 3 times" is "$(grep -c '^rescaled by PathCond' "$work/out")" 4
    check "rescaling, $optimizer: outputs stay" less "$(moved)" 2e-5
done
ok 'rescaling every epoch' $cifar --model resnet18 --rescale enorm --rescale-every 1epochs --epochs 3 --lr 0.01
check 'rescaling every epoch: 1 + 2 times' is "$(grep -c '^rescaled by ENorm' "$work/out")" 3
check 'rescaling with BatchNorm and shortcuts: outputs stay' less "$(moved)" 2e-5
for kernel in data fisher; do
    ok "rescaling every 3 steps, $kernel" $tiny --norm batch --optimizer adamw --lr 0.001 --rescale-kernel $kernel \
        --rescale-power auto --rescale-every 3steps --epochs 3
    check "rescaling every 3 steps, $kernel: 1 + 3 times" is "$(grep -c '^rescaled by PathCond' "$work/out")" 4
    check "rescaling, $kernel: outputs stay" less "$(moved)" 2e-5
done
# The samples of the kernel leave the batches alone: a rescaling that does nothing, between the steps, changes nothing.
ok 'no rescaling' $tiny --rescale none --epochs 2 --augment --quiet --save "$work/a"
ok 'rescalings of strength 0' $tiny --rescale-kernel data --rescale-strength 0 --rescale-every 1steps --epochs 2 \
    --augment --quiet --save "$work/b"
check 'rescalings of strength 0: the same training bit for bit' same "$work/a" "$work/b"
start other $tiny --rescale-kernel data --load "$work/small.none"
start all $tiny --rescale-kernel data --rescale-samples 64 --load "$work/small.none"
start more $tiny --rescale-kernel data --rescale-samples 1000 --load "$work/small.none"
check 'more samples than there are: all' same "$work/all" "$work/more"
start seven $tiny --rescale-kernel data --seed 7 --load "$work/small.none"
check 'another seed, other signs' not same "$work/other" "$work/seven"
start one $tiny --rescale-kernel data --rescale-power auto --optimizer adamw --load "$work/small.none"
start two $tiny --rescale-kernel data --rescale-power 1 --load "$work/small.none"
check '--rescale-power auto: 1 with AdamW' same_tensors "$work/one" "$work/two"
check '--rescale-power 1: other weights' not same "$work/two" "$work/other"
ok 'rescaling by powers of two' $cifar --model allconv --norm batch --rescale-pow2 --rescale-every 2steps --steps 5 \
    --lr 0.01
check 'powers of two: outputs moved by 0, every time' is "$(sed -n 's/.*outputs moved by //p' "$work/out" | sort -u)" \
    0.0e+00

ok 'cosine with warm-up' $tiny --steps 50 --schedule cosine --warmup 5 --lr 0.05 --log-dir "$work/cosine" --quiet
check 'warm-up: a fifth of the rate in the first of five steps' near "$(rate "$work/cosine" 1)" 0.01 1e-8
check 'cosine: near zero in the last step' eval \
    'less "$(rate "$work/cosine" 50)" 0.0001 && less 0 "$(rate "$work/cosine" 50)"'
ok 'one-cycle' $tiny --steps 50 --schedule one-cycle --lr 0.05 --label-smoothing 0.1 --log-dir "$work/onecycle" --quiet
check 'one-cycle: a 25th of the rate in the first step' near "$(rate "$work/onecycle" 1)" 0.002 1e-8
check 'one-cycle: the whole rate after 30% of the steps' near "$(rate "$work/onecycle" 15)" 0.05 1e-8
ok 'full batch' $tiny --batch-size 0 --epochs 3 --report "$work/r.json" --quiet
check 'full batch: a step per epoch' is "$(number "$work/r.json" steps)" 3
ok 'full batch, logged' $tiny --batch-size 0 --steps 1 --log-dir "$work/fullbatch" --quiet
check 'the loss of a full batch is the loss of the evaluation before it' \
    near "$(awk -F, '$3 == "step" { print $4 }' "$work/fullbatch/log.csv")" \
        "$(awk -F, '$3 == "train" && $1 == 0 { print $4 }' "$work/fullbatch/log.csv")" 1e-6
ok 'BatchNorm, a last batch of two images' $tiny --limit 8 --batch-size 3 --norm batch --epochs 2 --quiet --save \
    "$work/a"
check 'BatchNorm counts its batches' is "$("$damage" read "$work/a" bn1.num_batches_tracked)" 'I64 [] 6'
refuses 2 'the last batch of an epoch has 1 sample (of 7, in batches of 3): choose another --batch-size or --limit' \
    $tiny --limit 7 --batch-size 3 --norm batch
refuses 2 '--rescale-samples: BatchNorm expects 2 samples or more' $tiny --norm batch --rescale-kernel data \
    --rescale-samples 1
refuses 2 'a batch has 1 sample' $tiny --limit 7 --batch-size 1 --norm batch
ok 'BatchNorm, batches of one image with maps of more than one pixel' --data images --limit 3 --limit-test 3 \
    --batch-size 1 --width 0.1 --norm batch --epochs 1 --quiet
ok 'fewer test images' $tiny --limit-test 30 --steps 0
check '--limit-test: fewer test images' says ' 30 test images'
ok 'evaluation every 5 steps' $tiny --steps 12 --eval-every 5steps --log-dir "$work/eval" --quiet --precision fp32
check 'evaluated after 0, 5, 10 and 12 steps' is "$(awk -F, '$3 == "test" { printf "%s ", $1 }' "$work/eval/log.csv")" \
    '0 5 10 12 '

# ---------------------------------------------------------------------------------------------------- PyTorch's losses

for file in "$work"/cnn/*.safetensors; do
    name=$(basename "$file" .safetensors)
    # shellcheck disable=SC2046
    ok "parity $name" $(cat "$work/cnn/$name.options") --load "$file" --shuffle none --rescale none --quiet --log-dir \
        "$work/parity-$name"
    "$damage" cnn-parity-check "$name" "$work/parity-$name/log.csv" >"$work/out" 2>"$work/err"
    check "parity $name: PyTorch's losses for 50 steps" is $? 0
    cat "$work/out"
done
if ! command -v python3 >/dev/null 2>&1; then
    skip 'weights to and from PyTorch: no python3'
elif ! python3 -c 'import torch, safetensors' >/dev/null 2>&1; then
    skip 'weights to and from PyTorch: python3 has no torch or no safetensors'
else
    python3 "$root/test/pytorch_cnn_roundtrip.py" check "$trainer" >"$work/out" 2>"$work/err"
    check 'weights to and from PyTorch, for every model' is $? 0
    echo "pytorch_cnn_roundtrip.py: $(tail -n 1 "$work/out")"
    python3 "$root/test/pytorch_cnn_roundtrip.py" init "$work/torch.safetensors" --model resnet18 --norm batch --shape \
        3,32,32 --width 0.06 >"$work/out" 2>"$work/err"
    check 'PyTorch writes initial weights' is $? 0
    ok 'training from weights of PyTorch' $cifar --model resnet18 --load "$work/torch.safetensors" --epochs 1 --quiet \
        --save "$work/a" --report "$work/r.json"
    python3 "$root/test/pytorch_cnn_roundtrip.py" eval "$work/a" --model resnet18 --norm batch --width 0.06 --data \
        "$work/cnn/cifar" >"$work/out" 2>"$work/err"
    check 'PyTorch finds the same test loss' near "$(cut -d' ' -f2 "$work/out")" \
        "$(number "$work/r.json" final_test_loss)" 1e-5
    check 'PyTorch finds the same accuracy' near "$(cut -d' ' -f4 "$work/out")" \
        "$(number "$work/r.json" final_test_accuracy)" 1e-8
fi

# --------------------------------------------------------------------------------------------- interruption and resume

long="$tiny --lr 0.01 --rescale-every 150steps --eval-every 90steps --quiet"
interrupted INT 130 momentum
interrupted KILL 137 batchnorm --norm batch --optimizer adamw --weight-decay 0.01 --augment
interrupted TERM 143 augmented --norm batch --augment
rows=40
long="$cifar --model resnet18 --width 0.03 --optimizer adamw --lr 0.001 --augment --rescale-every 30steps"
long="$long --eval-every 90steps --quiet"
interrupted INT 130 resnet18

# Schedules, too, go on where they were.
full="$tiny --steps 100 --norm batch --augment --optimizer adamw --lr 0.01 --schedule one-cycle"
full="$full --label-smoothing 0.1 --quiet"
damaged_checkpoints
resumed="--data $work/idx --steps 150 --norm batch --resume $work/again"
cp "$work/again/log.csv" "$work/log.before"
refuses 1 --seed $resumed --width 0.1 --batch-size 16 --optimizer adamw --seed 7
refuses 1 --batch-size $resumed --width 0.1 --batch-size 32 --optimizer adamw
refuses 1 --optimizer $resumed --width 0.1 --batch-size 16 --optimizer momentum
refuses 1 --shuffle $resumed --width 0.1 --batch-size 16 --optimizer adamw --shuffle none
refuses 1 '--no-bias was not set in that run, here it is' --resume "$work/again" --no-bias
refuses 1 '--label-smoothing was 0.1 in that run, here it is 0.2' --resume "$work/again" --label-smoothing 0.2
refuses 1 --limit $resumed --width 0.1 --batch-size 16 --optimizer adamw --limit 50
refuses 1 '--width was 0.1 in that run, here it is 0.2' $resumed --width 0.2 --batch-size 16 --optimizer adamw
check 'a refused resume leaves the log alone' same "$work/again/log.csv" "$work/log.before"
refuses 1 'no complete checkpoint' $tiny --resume "$work/nowhere"

# ------------------------------------------------------------------------------------------------------------
# divergence

for optimizer in sgd momentum adamw; do
    refuses 1 'try a smaller --lr' $tiny --lr 1e30 --epochs 3 --optimizer $optimizer
    check "diverging, $optimizer: says that it diverged" complains diverged
done
ok 'a good start' $tiny --steps 20 --log-dir "$work/div" --checkpoint-every 10steps --quiet
refuses 1 "last good checkpoint: $work/div/checkpoint-20" $tiny --steps 200 --resume "$work/div" --lr 1e30 \
    --checkpoint-every 1steps
check 'diverging: no other checkpoint was made' is "$(newest "$work/div")" 20

ends_exercised
