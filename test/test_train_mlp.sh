#!/bin/sh
# test_train_mlp.sh -- the MLP trainer as a user meets it: command line, bad input, files, interruption, resume,
# divergence.
#
#     sh test/test_train_mlp.sh TRAINER [COMPARE]          (make test: build/cpu/train_mlp build/c/dev/compare)
#
# Uses the built-in data sets and tiny files written by test/damage.c, so nothing is downloaded. python3, with torch and
# safetensors, adds checks. What it shares with the tests of other trainers is in check_trainer.sh.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
. "$(dirname -- "$0")/check_trainer.sh"
mkdir "$work/idx"
"$damage" parity "$work/idx" || exit 1
moons="--data moons --layers 2,16,16,2"
tiny="--data $work/idx --layers 36,4,10"
start() { # start NAME OPTIONS...: untrained weights in $work/NAME
    saved=$1
    shift
    ok "initial weights $saved" $moons --steps 0 --quiet --save "$work/$saved" "$@"
}

# ------------------------------------------------------------------------------------------------------- command line

helps
bad_options $moons
refuses 2 --layers --data moons --layers 2
refuses 2 --layers --data moons --layers 2,,2
refuses 2 --layers --data moons --layers 2,0,2
refuses 2 --layers --data moons --layers 2,a,2
refuses 2 'has 2 features' --data moons --layers 3,8,2
refuses 2 'has 2 classes' --data moons --layers 2,8,3
refuses 2 'features to reconstruct' --data moons --layers 2,8,3 --task autoencode
refuses 2 --layers --data moons --layers 2,1000000,1000000,2
refuses 2 --layers --data moons --layers "2$(awk 'BEGIN { for (i = 0; i < 200; i++) printf ",4" }'),2"

# ----------------------------------------------------------------------------------------------------------------- data

# broken FILE TEXT COMMAND...: a copy of the tiny data set with one file changed is refused, with the file's name.
broken() {
    file=$1 say=$2
    shift 2
    rm -rf "$work/broken"
    mkdir "$work/broken"
    cp "$work"/idx/*-ubyte "$work/broken"
    "$@" || exit 1
    refuses 1 "$file" --data "$work/broken" --layers 36,4,10 --steps 0
    check "$file: says '$say'" complains "$say"
}
refuses 1 "$work/nowhere" --data "$work/nowhere" --steps 0
refuses 1 "$work/idx/sgd.options" --data "$work/idx/sgd.options" --steps 0
refuses 1 nosuchset --data nosuchset --steps 0
refuses 1 get_data.sh --data mnist --data-dir "$work" --steps 0
bad=$work/broken
broken train-images-idx3-ubyte '' rm "$bad/train-images-idx3-ubyte"
broken t10k-labels-idx1-ubyte '' rm "$bad/t10k-labels-idx1-ubyte"
broken train-images-idx3-ubyte bytes "$damage" cut "$bad/train-images-idx3-ubyte" 1
broken train-images-idx3-ubyte bytes "$damage" cut "$bad/train-images-idx3-ubyte" -1
broken train-images-idx3-ubyte '' "$damage" cut "$bad/train-images-idx3-ubyte" 2310
broken t10k-labels-idx1-ubyte bytes "$damage" cut "$bad/t10k-labels-idx1-ubyte" 40
broken t10k-labels-idx1-ubyte bytes "$damage" cut "$bad/t10k-labels-idx1-ubyte" -40
broken train-images-idx3-ubyte magic "$damage" set "$bad/train-images-idx3-ubyte" 0 00000d03
broken train-labels-idx1-ubyte magic "$damage" set "$bad/train-labels-idx1-ubyte" 0 00000803
broken train-images-idx3-ubyte '' "$damage" set "$bad/train-images-idx3-ubyte" 4 ffffffff
broken train-images-idx3-ubyte '' "$damage" set "$bad/train-images-idx3-ubyte" 8 7fffffff7fffffff
broken train-images-idx3-ubyte '' "$damage" set "$bad/train-images-idx3-ubyte" 4 00000000
broken "$bad" 'expected test labels of 0..9' "$damage" set "$bad/t10k-labels-idx1-ubyte" -1 c8
mkdir -p "$work/named/mnist"
cp "$work"/idx/*-ubyte "$work/named/mnist"
ok 'a named set in another folder' --data mnist --data-dir "$work/named" --layers 36,4,10 --steps 0

# -------------------------------------------------------------------------------------------------------------- weights

"$damage" weights good "$work/w"
ok 'good weights' $tiny --load "$work/w" --rescale none --steps 0 --quiet --save "$work/w2"
for kind in nan inf huge-header long-header empty overlap range backwards negative hole rest duplicate duplicate-key \
    dtype \
    unknown-dtype shape rank huge-shape missing extra json; do
    "$damage" weights $kind "$work/bad.safetensors"
    case $kind in
    nan) say='nan' ;;
    duplicate) say="'fc2.bias' is there twice" ;;
    overlap) say=overlap ;;
    dtype) say="'fc1.bias': expected dtype F32, F64, F16 or BF16, found I32" ;;
    shape) say="'fc1.weight': expected shape [4,36], found [36,4]" ;;
    rank) say="'fc1.weight': expected shape [4,36], found [144]" ;;
    missing) say="'fc1.bias'" ;;
    extra) say="'fc3.bias'" ;;
    *) say='' ;;
    esac
    refuses 1 "$work/bad.safetensors" $tiny --load "$work/bad.safetensors" --steps 0
    check "weights $kind: says '$say'" complains "$say"
done
refuses 1 "$work/none.safetensors" $tiny --load "$work/none.safetensors" --steps 0
refuses 1 "$work" $tiny --load "$work" --steps 0
cp "$work/w2" "$work/w3"
"$damage" cut "$work/w3" 5
refuses 1 "$work/w3" $tiny --load "$work/w3" --steps 0
cp "$work/w2" "$work/w3"
"$damage" set "$work/w3" -3 01
refuses 1 checksum $tiny --load "$work/w3" --steps 0
start other --no-bias
refuses 1 "'fc1.bias'" $moons --load "$work/other" --steps 0
start other
refuses 1 "'fc1.bias' does not belong" $moons --no-bias --load "$work/other" --steps 0
refuses 1 "'fc2.weight': expected shape [8,16], found [16,16]" --data moons --layers 2,16,8,2 --load "$work/other" \
    --steps 0
refuses 1 "'fc3.weight': expected shape [16,16], found [2,16]" --data moons --layers 2,16,16,16,2 --load "$work/other" \
    --steps 0
refuses 1 "'bn1.weight'" $moons --norm batch --load "$work/other" --steps 0
start norm --norm batch --rescale none
for prefix in _orig_mod. module.; do # of torch.compile and of DataParallel
    "$damage" rename "$work/norm" "$work/renamed" '' $prefix
    ok "names with $prefix load" $moons --norm batch --rescale none --steps 0 --quiet --load "$work/renamed" --save \
        "$work/saved_again"
    check "names with $prefix: the same weights" same "$work/saved_again" "$work/norm"
done
"$damage" rename "$work/norm" "$work/renamed" bn2.num_batches_tracked bn2.unknown
refuses 1 "'bn2.unknown' does not belong" $moons --norm batch --load "$work/renamed" --steps 0
"$damage" rename "$work/norm" "$work/swap1" fc1.bias bias         # the biases and the variances change places
"$damage" rename "$work/swap1" "$work/swap2" bn1.running_var fc1.bias
"$damage" rename "$work/swap2" "$work/renamed" bias bn1.running_var
refuses 1 "'bn1.running_var': element [" $moons --norm batch --load "$work/renamed" --steps 0
check 'a negative running variance: what was expected' complains 'expected a variance, 0 or more'

# --------------------------------------------------------------------------------------------------------------- output

bad_outputs $moons
no_steps $moons
if (ulimit -v 100000) 2>/dev/null; then
    out_of_memory 400000 20000 20000 --data moons --layers 2,256,256,2 --steps 3
else
    skip 'out of memory: this shell cannot limit the address space'
fi
no_gpu $moons
if full_disk_works $moons; then
    no_room --save "$work/full/w" $moons --steps 0 --save "$work/full/w"
    full_disk "$trainer" --quiet $moons --steps 200 --log-dir "$work/fulllog" --checkpoint-every 0 >"$work/out" \
        2>"$work/err"
    status=$? want=1 text=$work/fulllog
    # The log ends, training goes on, and so does its end: the checkpoint does not fit either.
    check 'log and checkpoint, no room: exit 1' is $status 1
    check 'log and checkpoint, no room: a line for each' eval \
        '[ "$(grep -c "^train_mlp: $work/fulllog/" "$work/err")" -eq 2 ] && [ "$(wc -l <"$work/err")" -eq 2 ]'
    check 'log, no room: ends with a whole row' eval \
        '[ "$(tail -n 1 "$work/fulllog/log.csv" | tr -dc , | wc -c)" -eq 8 ]'
fi
mkdir "$work/tmpfs"
if unshare -m sh -c 'mount -t tmpfs -o size=64k none "$1"' sh "$work/tmpfs" 2>/dev/null; then
    # A network of 200 kB on a disk of 64 kB, over an older file of 14 bytes.
    unshare -m sh -c '
        mount -t tmpfs -o size=64k none "$1" && cp "$2" "$1/w" || exit 99
        "$3" --quiet --data moons --layers 2,200,200,2 --steps 0 --save "$1/w"
        echo "status $?, $(ls -A "$1" | tr "\n" ,) $(cat "$1/w")"' \
        sh "$work/tmpfs" "$work/old" "$trainer" >"$work/out" 2>"$work/err"
    check 'full disk: exit 1, the older file is intact and alone' says 'status 1, w, an older file'
    check 'full disk: one line' eval \
        '[ "$(wc -l <"$work/err")" -eq 1 ] && complains "$work/tmpfs/w" && complains "No space left"'
    unshare -m sh -c '
        mount -t tmpfs -o size=64k none "$1" || exit 99
        "$2" --quiet --data moons --layers 2,16,2 --steps 3000 --checkpoint-every 0 --log-dir "$1/log"
        echo "status $?"' \
        sh "$work/tmpfs" "$trainer" >"$work/out" 2>"$work/err"
    check 'full disk, log: exit 1' says 'status 1'
    check 'full disk, log: said once' eval '[ "$(grep -c log.csv "$work/err")" -eq 1 ] && complains "No space left"'
else
    skip 'full disk on a tmpfs: needs root and unshare'
fi

# ------------------------------------------------------------------------------------- initialisation and rescaling

# losses FILE OPTIONS: training and test loss of saved weights, all digits.
losses() {
    file=$1
    shift
    ok "losses of $file" $moons --quiet --rescale none --steps 0 --load "$work/$file" --report "$work/r.json" "$@"
    train=$(number "$work/r.json" final_train_loss) test=$(number "$work/r.json" final_test_loss)
}
start none --rescale none
start pathcond --rescale pathcond
start enorm --rescale enorm
start sweeps --rescale-solver sweeps --rescale-sweeps 3 --report "$work/sweeps.json"
start bounded --rescale-max-log 0.5 --report "$work/bounded.json"
start units --rescale-solver unit-sweeps --rescale-sweeps 3 --report "$work/units.json"
start half --rescale-strength 0.5
start within --rescale-within
start weights --rescale-paths weights
start trace --rescale-max-trace 1 --report "$work/trace.json"
check 'unit sweeps are unit sweeps' is "$(number "$work/units.json" solver) $(number "$work/units.json" sweeps)" \
    '"unit-sweeps" 3'
check 'the trace of G does not grow' eval \
    'less "$(number "$work/trace.json" trace_ratio)" 1.000001 && less 0.998 "$(number "$work/trace.json" trace_ratio)"'
check 'three sweeps are three sweeps' is "$(number "$work/sweeps.json" solver) $(number "$work/sweeps.json" sweeps)" \
    '"sweeps" 3'
check 'a bound on |log lambda| holds' less "$(number "$work/bounded.json" max_abs_log_lambda)" 0.5000001
losses none
train0=$train test0=$test
for file in pathcond enorm sweeps bounded units half within weights trace; do
    losses $file
    check "$file: not the same weights" not same "$work/none" "$work/$file"
    check "$file: the same training loss" near "$train" "$train0" 1e-6
    check "$file: the same test loss" near "$test" "$test0" 1e-6
done
for method in pathcond enorm; do
    start pow2 --rescale $method --rescale-pow2 --report "$work/pow2.json"
    losses pow2
    check "$method in powers of two: other weights" not same "$work/none" "$work/pow2"
    check "$method in powers of two: the same losses bit for bit" is "$train $test" "$train0 $test0"
    check "$method in powers of two: outputs moved by exactly 0" is "$(number "$work/pow2.json" output_max_rel_diff)" 0
done
# g from samples: every choice, at its own power and level.
for kernel in data fisher; do
    for power in 1 2 auto; do
        for level in unit layer; do
            name="$kernel, power $power, $level"
            start kernel --rescale-kernel $kernel --rescale-power $power --rescale-level $level --rescale-samples 200 \
                --report "$work/kernel.json"
            losses kernel
            check "$name: not the same weights" not same "$work/none" "$work/kernel"
            check "$name: the same losses" eval 'near "$train" "$train0" 1e-6 && near "$test" "$test0" 1e-6'
        done
    done
done
start data --rescale-kernel data
start few --rescale-kernel data --rescale-samples 3
start many --rescale-kernel data --rescale-samples 1000
start most --rescale-kernel data --rescale-samples 2000000000
start default --rescale-kernel data --rescale-samples 128
start fisher --rescale-kernel fisher
start two --rescale-kernel data --rescale-power 2
start adam --rescale-kernel data --optimizer adamw
start adam1 --rescale-kernel data --optimizer adamw --rescale-power 1
start auto1 --rescale-kernel data --optimizer adamw --rescale-power auto
check '--rescale-samples: 128 unless said otherwise' same "$work/data" "$work/default"
check '--rescale-samples: other samples, another rescaling' not same "$work/data" "$work/few"
check '--rescale-samples: all there are' same "$work/many" "$work/most"
check '--rescale-kernel: data is not fisher' not same "$work/data" "$work/fisher"
check '--rescale-kernel: data is not paths' not same "$work/data" "$work/pathcond"
check '--rescale-power: 2 unless said otherwise, also with AdamW' eval \
    'same "$work/data" "$work/two" && same "$work/data" "$work/adam"'
check '--rescale-power auto: 1 with AdamW' eval \
    'same "$work/adam1" "$work/auto1" && not same "$work/adam1" "$work/adam"'
start power1 --rescale-power 1
start layer --rescale-level layer
start layer1 --rescale-level layer --rescale-power 1
start layers --rescale-level layer --rescale-solver sweeps
for file in power1 layer layer1 layers; do
    losses $file
    check "paths, $file: neither the same weights nor those of units and squares" eval \
        'not same "$work/none" "$work/$file" && not same "$work/pathcond" "$work/$file"'
    check "paths, $file: the same losses" eval 'near "$train" "$train0" 1e-6 && near "$test" "$test0" 1e-6'
done
start list --rescale-log 0.5,-0.25
losses list
check '--rescale-log: not the same weights' not same "$work/none" "$work/list"
check '--rescale-log: the same losses' eval 'near "$train" "$train0" 1e-6 && near "$test" "$test0" 1e-6'
start zeros --rescale-log 0,0
check '--rescale-log 0,0: the same weights' same "$work/none" "$work/zeros"
for list in 0.5 0.5,1,2 0.5, 0.5,x nan,0 101,0 ''; do refuses 2 --rescale-log $moons --rescale-log "$list"; done
kernel="--rescale-kernel data"
refuses 2 '--rescale pathcond' $moons --rescale enorm $kernel
refuses 2 '--rescale pathcond' $moons --rescale enorm --rescale-power 1
refuses 2 '--rescale pathcond' $moons --rescale enorm --rescale-level layer
refuses 2 'unit-sweeps' $moons --rescale-level layer --rescale-solver unit-sweeps
refuses 2 '--rescale-within' $moons --rescale-level layer --rescale-within
refuses 2 '--rescale-paths weights' $moons $kernel --rescale-paths weights
refuses 2 '--rescale-paths weights' $moons --rescale-kernel fisher --rescale-paths weights
refuses 2 --rescale-samples $moons $kernel --rescale-samples 0
refuses 2 --rescale-samples $moons $kernel --rescale-samples -3
refuses 2 --rescale-kernel $moons --rescale-kernel path
refuses 2 --rescale-power $moons --rescale-power 3
refuses 2 --rescale-level $moons --rescale-level group
refuses 2 'BatchNorm needs at least 2 samples' $moons --norm batch $kernel --rescale-samples 1
refuses 2 'BatchNorm needs at least 2 samples' $moons --norm batch $kernel --limit 1 --batch-size 0 --steps 0
ok 'two samples, BatchNorm' $moons --norm batch $kernel --rescale-samples 2 --steps 0 --quiet
ok 'one sample' $moons $kernel --rescale-samples 1 --steps 0 --quiet
# Rescaling on samples in the middle of an epoch leaves the batches alone: with strength 0 the losses are the same.
for batch in 100 0; do
    rm -rf "$work/plain" "$work/still"
    ok "no rescaling, batches of $batch" $moons --steps 25 --batch-size $batch --rescale none --quiet --log-dir \
        "$work/plain" --save "$work/a"
    ok "rescaling by nothing, batches of $batch" $moons --steps 25 --batch-size $batch $kernel --rescale-every 3steps \
        --rescale-strength 0 --quiet --log-dir "$work/still" --save "$work/b"
    check "rescaling on samples keeps the batches of $batch: the same losses" same_log "$work/plain" "$work/still"
    check "rescaling on samples keeps the batches of $batch: the same weights" same "$work/a" "$work/b"
done
for optimizer in sgd momentum adamw; do
    ok "data, every 10 steps, $optimizer" $moons --optimizer $optimizer --lr 0.01 --rescale-every 10steps --epochs 4 \
        $kernel --rescale-power auto
    check "data, $optimizer: 1 + 3 times" is "$(grep -c '^rescaled by PathCond' "$work/out")" 4
    check "data, $optimizer: outputs stay" less "$(moved)" 1e-5
done
ok 'data with BatchNorm' $moons --norm batch $kernel --rescale-every 10steps --epochs 2 --lr 0.01
check 'data with BatchNorm: outputs stay' less "$(moved)" 1e-5
ok 'an autoencoder by data' --data images --limit 200 --layers 784,32,784 --task autoencode $kernel --epochs 1 --lr 0.01
check 'an autoencoder by data: outputs stay' less "$(moved)" 1e-5

start bn --norm batch --rescale none
losses bn --norm batch
train0=$train test0=$test
start bn --norm batch
losses bn --norm batch
check 'BatchNorm: the same losses after PathCond' eval 'near "$train" "$train0" 1e-6 && near "$test" "$test0" 1e-6'

start normal --init kaiming-normal --rescale none
check 'kaiming-normal: other weights' not same "$work/none" "$work/normal"
start scaled --init-scale 1e-20 --rescale none
losses scaled
check 'initial weights scaled to nothing: loss log 2' near "$train" 0.69314718056 1e-6
refuses 1 'initial weights' $moons --steps 0 --init-scale 1e38 --rescale none
start seeded --seed 2 --rescale none
check 'another seed: other weights' not same "$work/none" "$work/seeded"

# ------------------------------------------------------------------------------------------- training, logs,
# determinism

header=step,epoch,split,loss,accuracy,lr,grad_norm,ms,samples_per_s
ok 'training' $moons --epochs 2 --batch-size 100 --log-dir "$work/log" --report "$work/r.json" --save "$work/s1" --lr \
    0.1
check 'piped output has no control characters' is "$(tr -d '[:print:]\n' <"$work/out" | wc -c | tr -d ' ')" 0
check 'log.csv has its header' is "$(head -n 1 "$work/log/log.csv")" $header
check 'log.csv has a row per step and two per evaluation' is "$(wc -l <"$work/log/log.csv" | tr -d ' ')" 27
check 'log.csv: 9 columns everywhere' eval '! grep -v "^[^,]*\(,[^,]*\)\{8\}$" "$work/log/log.csv"'
check 'the two newest checkpoints are kept' eval '[ -d "$work/log/checkpoint-10" ] && [ "$(newest "$work/log")" = 20 ]'
check 'the last checkpoint has the saved weights' same_tensors "$work/log/checkpoint-20/model.safetensors" "$work/s1"
reports "$work/r.json"
check 'a run with steps prints no table' eval 'says ", spread " && ! tables'
analysed $moons
ok 'analysis of given factors' --data moons --layers 2,16,16,2 --steps 0 --rescale-log 0.5,-0.25 \
    --report "$work/r2.json"
check 'analysis of given factors: they are log lambda' is "$(sed -n 's/.*"log_lambda_mean": \([^,]*\),.*/\1/p' \
    "$work/r2.json" | awk '{ printf "%.6f ", $1 }')" '0.500000 -0.250000 '
compared
train=$(last_loss "$work/log" train)
check 'the last row of the log is the report' near "$train" "$(number "$work/r.json" final_train_loss)" 1e-8
losses s1
check 'saved weights have the loss that was reported' eval \
    'near "$train" "$(number "$work/r.json" final_train_loss)" 1e-8'
ok 'quiet' $moons --epochs 1 --quiet
check 'quiet prints nothing' silent

images="--data images --limit 300 --layers 784,48,48,10 --batch-size 64 --epochs 2 --optimizer momentum"
images="$images --lr 0.02 --norm batch --quiet"
ok 'images' $images --save "$work/a" --log-dir "$work/la"
ok 'images again' $images --save "$work/b" --log-dir "$work/lb"
check 'the same command gives the same bits' same "$work/a" "$work/b"
check 'the same command gives the same log' same_log "$work/la" "$work/lb"
CUDA_CPU_ORDER=reverse
export CUDA_CPU_ORDER
ok 'images in reversed thread order' $images --save "$work/b"
unset CUDA_CPU_ORDER
check 'reversed thread order gives the same bits' same "$work/a" "$work/b"
OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2
ok 'images on two threads' $images --save "$work/b" --report "$work/r.json"
if [ "$(number "$work/r.json" gemm)" = '"OpenBLAS"' ]; then
    if same "$work/a" "$work/b"; then echo 'OpenBLAS: the same bits on 1 and 2 threads'; \
        else echo 'OpenBLAS: other bits on 2 threads than on 1'; fi
    ok 'images on two threads, again' $images --save "$work/c"
    check 'the same command on two threads gives the same bits' same "$work/b" "$work/c"
else
    check 'one and two threads give the same bits' same "$work/a" "$work/b"
fi
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

ok 'a training set in stored order' $moons --load "$work/none" --shuffle none --seed 1 --epochs 1 --quiet --save \
    "$work/a"
ok 'the same with another seed' $moons --load "$work/none" --shuffle none --seed 2 --epochs 1 --quiet --save "$work/b"
check '--shuffle none: the seed does not matter' same "$work/a" "$work/b"
ok 'the same, shuffled' $moons --load "$work/none" --shuffle epoch --seed 2 --epochs 1 --quiet --save "$work/b"
check '--shuffle epoch: another order' not same "$work/a" "$work/b"

for optimizer in sgd momentum adamw; do
    ok "rescaling every 10 steps, $optimizer" $moons --optimizer $optimizer --momentum 0.8 --weight-decay 1e-4 --lr \
        0.01 --rescale-every 10steps --epochs 4
    check "rescaling every 10 steps, $optimizer: 1 + 3 times" is "$(grep -c '^rescaled by PathCond' "$work/out")" 4
    check "rescaling, $optimizer: outputs stay" less "$(moved)" 1e-5
    ok "rescaling every epoch, $optimizer, BatchNorm" $moons --optimizer $optimizer --lr 0.01 --norm batch --rescale \
        enorm --rescale-every 1epochs --epochs 3
    check "rescaling every epoch, $optimizer: 1 + 2 times" is "$(grep -c '^rescaled by ENorm' "$work/out")" 3
    check "rescaling with BatchNorm, $optimizer: outputs stay" less "$(moved)" 1e-5
done

ok 'cosine with warm-up' $moons --steps 50 --schedule cosine --warmup 5 --lr 0.5 --log-dir "$work/cosine" --quiet
check 'warm-up: a fifth of the rate in the first of five steps' near "$(rate "$work/cosine" 1)" 0.1 1e-8
check 'warm-up: the whole rate at its end' near "$(rate "$work/cosine" 5)" 0.5 1e-8
check 'cosine: near zero in the last step' eval \
    'less "$(rate "$work/cosine" 50)" 0.001 && less 0 "$(rate "$work/cosine" 50)"'
ok 'one-cycle' $moons --steps 50 --schedule one-cycle --lr 0.5 --log-dir "$work/onecycle" --quiet
check 'one-cycle: a 25th of the rate in the first step' near "$(rate "$work/onecycle" 1)" 0.02 1e-8
check 'one-cycle: the whole rate after 30% of the steps' near "$(rate "$work/onecycle" 15)" 0.5 1e-8
check 'one-cycle: a 250000th of it in the last step' near "$(rate "$work/onecycle" 50)" 2e-6 1e-8

ok 'autoencoder' --data images --limit 200 --layers 784,32,784 --task autoencode --epochs 1 --report "$work/r.json"
check 'autoencoder: no accuracy' eval '! says accuracy && [ "$(number "$work/r.json" final_test_accuracy)" = null ]'
check '--limit: fewer training samples' says '200 training and 2000 test samples'
ok 'fewer test samples' --data images --limit 200 --limit-test 300 --layers 784,8,10 --steps 0
check '--limit-test: fewer test samples' says '200 training and 300 test samples'
ok 'full batch' $moons --batch-size 0 --epochs 3 --report "$work/r.json" --quiet --save "$work/a"
check 'full batch: a step per epoch' is "$(number "$work/r.json" steps)" 3
ok 'full batch, logged' $moons --batch-size 0 --steps 1 --log-dir "$work/fullbatch" --quiet
check 'the loss of a full batch is the loss of the evaluation before it' \
    near "$(awk -F, '$3 == "step" { print $4 }' "$work/fullbatch/log.csv")" \
        "$(awk -F, '$3 == "train" && $1 == 0 { print $4 }' "$work/fullbatch/log.csv")" 1e-7
ok 'a batch as large as the training set' $moons --batch-size 1000 --epochs 3 --quiet --save "$work/b"
ok 'a batch larger than the training set' $moons --batch-size 5000 --epochs 3 --quiet --save "$work/c"
check 'a batch as large as the training set, or larger, is the full batch' eval \
    'same "$work/a" "$work/b" && same "$work/a" "$work/c"'
ok 'a last batch of two samples, BatchNorm' $moons --limit 8 --batch-size 3 --norm batch --epochs 2 --quiet --save \
    "$work/a"
check 'BatchNorm counts its batches' is "$("$damage" read "$work/a" bn1.num_batches_tracked)" 'I64 [] 6'
one="$moons --norm batch --log-dir $work/one"
refuses 2 'the last batch of an epoch has 1 sample (of 7, in batches of 3): choose another --batch-size or --limit' \
    $one --limit 7 --batch-size 3
refuses 2 'BatchNorm: expected more than 1 value per channel when training, but a batch has 1 sample' $one --limit 7 \
    --batch-size 1
refuses 2 'a batch has 1 sample (of 1, in batches of 1)' $one --limit 1 --batch-size 0
refuses 2 'the last batch of an epoch has 1 sample' $one --limit 7 --batch-size 3 --steps 3
refuses 2 'the last batch of an epoch has 1 sample' $one --limit 7 --batch-size 3 --resume "$work/one" --epochs 9
check 'BatchNorm on one value is refused before anything is written' eval '[ ! -e "$work/one" ]'
ok 'BatchNorm, a last batch of one sample that no step takes' $moons --norm batch --limit 7 --batch-size 3 --steps 2 \
    --quiet
ok 'BatchNorm, batches of one sample and no steps' $moons --norm batch --batch-size 1 --steps 0 --quiet
ok 'no BatchNorm, batches of one sample' $moons --limit 7 --batch-size 3 --epochs 2 --quiet
check 'BatchNorm has its statistics' is "$("$damage" read "$work/a" bn2.running_var)" 'F32 [16]'
ok 'no bias' $moons --no-bias --epochs 1 --quiet --save "$work/a"
check 'no bias: none in the file' eval '! "$damage" read "$work/a" fc1.bias 2>"$work/err"'
ok 'a network without hidden layers' --data moons --layers 2,2 --epochs 1
ok 'evaluation every 5 steps' $moons --steps 12 --eval-every 5steps --log-dir "$work/eval" --quiet
check 'evaluated after 0, 5, 10 and 12 steps' is "$(awk -F, '$3 == "test" { printf "%s ", $1 }' "$work/eval/log.csv")" \
    '0 5 10 12 '
ok 'the only precision everywhere' $moons --steps 1 --precision fp32 --quiet
ok 'no epochs' $moons --epochs 0 --quiet

# ---------------------------------------------------------------------------------------------------- PyTorch's losses

for file in "$work"/idx/*.safetensors; do
    name=$(basename "$file" .safetensors)
    # shellcheck disable=SC2046
    ok "parity $name" --data "$work/idx" --load "$file" --shuffle none --rescale none --quiet --log-dir \
        "$work/parity-$name" --save "$work/parity-$name/w" $(cat "$work/idx/$name.options")
    "$damage" parity-check "$name" "$work/parity-$name/log.csv" >"$work/out" 2>"$work/err"
    check "parity $name: PyTorch's losses for 100 steps" is $? 0
    cat "$work/out"
done
if ! command -v python3 >/dev/null 2>&1; then
    skip 'weights to and from PyTorch: no python3'
elif ! python3 -c 'import torch, safetensors' >/dev/null 2>&1; then
    skip 'weights to and from PyTorch: python3 has no torch or no safetensors'
else
    # roundtrip FILE OPTIONS: PyTorch evaluates saved weights and finds the trainer's test loss and accuracy.
    roundtrip() {
        file=$1
        shift
        ok "losses of $file" --data "$work/idx" --quiet --rescale none --steps 0 --load "$file" --report \
            "$work/r.json" "$@"
        python3 "$root/test/pytorch_roundtrip.py" eval "$file" --data "$work/idx" >"$work/out" 2>"$work/err"
        check "PyTorch loads and evaluates $file" is $? 0
        check "PyTorch finds the same test loss" near "$(cut -d' ' -f2 "$work/out")" \
            "$(number "$work/r.json" final_test_loss)" 1e-5
        check "PyTorch finds the same accuracy" near "$(cut -d' ' -f4 "$work/out")" \
            "$(number "$work/r.json" final_test_accuracy)" 1e-8
    }
    roundtrip "$work/parity-momentum_bn/w" --layers 36,32,24,10 --norm batch
    python3 "$root/test/pytorch_roundtrip.py" init "$work/torch.safetensors" --layers 36,20,10 --norm batch \
        >"$work/out" 2>"$work/err"
    check 'PyTorch writes initial weights' is $? 0
    roundtrip "$work/torch.safetensors" --layers 36,20,10 --norm batch
    ok 'training from weights of PyTorch' --data "$work/idx" --layers 36,20,10 --norm batch --load \
        "$work/torch.safetensors" --epochs 2 --batch-size 16 --quiet
fi

# --------------------------------------------------------------------------------------------- interruption and resume

long="--data moons --layers 2,16,16,2 --batch-size 50 --lr 0.02 --rescale-every 150steps --eval-every 90steps --quiet"
interrupted INT 130 sgd
interrupted KILL 137 sgd
interrupted INT 130 momentum --optimizer momentum
interrupted KILL 137 momentum --optimizer momentum
interrupted INT 130 adamw --optimizer adamw
interrupted KILL 137 adamw --optimizer adamw
interrupted INT 130 batchnorm --optimizer momentum --norm batch
interrupted KILL 137 batchnorm --optimizer adamw --norm batch --weight-decay 0.01
interrupted TERM 143 term --shuffle none
interrupted HUP 129 hup --shuffle none

"$damage" signal INT "$work/out" 4 "$trainer" $moons --epochs 100000 --save "$work/partial" >"$work/out" 2>"$work/err"
check 'interrupted without --log-dir: exit 130' is $? 130
check 'interrupted without --log-dir: --save has the weights' eval \
    '"$damage" read "$work/partial" fc1.weight >"$work/out"'
check 'interrupted without --log-dir: nothing to resume is promised' not complains --resume

# Cosine and warm-up, too, go on where they were.
full="--data moons --layers 2,16,16,2 --steps 100 --batch-size 64 --optimizer adamw --lr 0.01"
full="$full --schedule cosine --warmup 10 --quiet"
damaged_checkpoints

resumed="--data moons --layers 2,16,16,2 --steps 150 --resume $work/again"
cp "$work/again/log.csv" "$work/log.before"
refuses 1 --seed $resumed --batch-size 64 --optimizer adamw --seed 7
refuses 1 --batch-size $resumed --batch-size 32 --optimizer adamw
refuses 1 --optimizer $resumed --batch-size 64 --optimizer momentum
refuses 1 --shuffle $resumed --batch-size 64 --optimizer adamw --shuffle none
refuses 1 --limit $resumed --batch-size 64 --optimizer adamw --limit 500
refuses 1 'in all in that run' $resumed
refuses 1 '--norm was none in that run' --resume "$work/again" --norm batch
refuses 1 'the samples or labels are not those of that run' --resume "$work/again" --limit-test 500
refuses 1 --warmup --resume "$work/again" --warmup 11
refuses 1 '--layers was 2,16,16,2 in that run, here it is 2,8,16,2' --data moons --layers 2,8,16,2 --steps 150 \
    --resume "$work/again" --batch-size 64 --optimizer adamw
check 'a refused resume leaves the log alone' same "$work/again/log.csv" "$work/log.before"
refuses 1 'no complete checkpoint' $moons --resume "$work/nowhere"
refuses 1 'no complete checkpoint' $moons --resume "$work/folder"
refuses 1 "$work/again holds a run" $full --steps 50 --log-dir "$work/again"
check 'a refused run leaves the log alone' same "$work/again/log.csv" "$work/log.before"
ok 'a folder with checkpoints of a longer run' $full --steps 50 --log-dir "$work/again" --overwrite --checkpoint-every \
    20steps
check 'a new run in its folder: its own checkpoints are the newest' is "$(newest "$work/again")" 50

# ------------------------------------------------------------------------------------------------------------
# divergence

diverges() { # diverges WHAT OPTIONS
    label=$1
    shift
    refuses 1 'try a smaller --lr' $moons "$@"
    check "$label: says that it diverged" complains diverged
}
diverges 'diverging' --lr 1e30 --epochs 3
check 'diverging: what else may help' complains ', or --rescale-max-log 1 (rescaling went to |log lambda| = '
run --data moons --layers 2,32,32,32,32,32,2 --init kaiming-normal --optimizer sgd --lr 1 --batch-size 0 --steps 5
check 'the loss explodes: one warning' eval \
    '[ "$(wc -l <"$work/err")" -eq 1 ] && complains "warning: loss " && complains "times the first"'
run --data moons --layers 2,32,32,32,32,32,2 --init kaiming-normal --optimizer sgd --lr 0.3 --batch-size 0 --steps 5
check 'a hump is no explosion' eval '[ $status -eq 0 ] && [ ! -s "$work/err" ]'
diverges 'diverging as initialised' --lr 1e30 --epochs 3 --rescale none
check 'diverging as initialised: no word about rescaling' not complains lambda
diverges 'diverging, AdamW' --lr 1e30 --epochs 3 --optimizer adamw
diverges 'diverging, infinite weights' --lr 1e38 --epochs 3 --log-dir "$work/div" --checkpoint-every 1steps
check 'weights that are not finite are no checkpoint' is "$(newest "$work/div")" ''
ok 'a good start' $moons --steps 20 --log-dir "$work/div2" --checkpoint-every 10steps --quiet
cp -R "$work/div2" "$work/div2.before"
refuses 1 "last good checkpoint: $work/div2/checkpoint-20" $moons --steps 200 --resume "$work/div2" --lr 1e30 \
    --checkpoint-every 1steps
check 'diverging: the last good checkpoint is kept' same "$work/div2/checkpoint-20/model.safetensors" \
    "$work/div2.before/checkpoint-20/model.safetensors"
check 'diverging: no other checkpoint was made' is "$(newest "$work/div2")" 20
ok 'the last good checkpoint can be loaded' $moons --load "$work/div2/checkpoint-20/model.safetensors" --steps 5 --quiet
ok 'and resumed with a smaller rate' $moons --steps 40 --resume "$work/div2" --lr 0.01 --quiet
for lr in 1e5 1e10 1e15; do
    rm -rf "$work/div3"
    run $moons --steps 200 --lr $lr --log-dir "$work/div3" --checkpoint-every 1steps --eval-every 0 --rescale none \
        --quiet
    good=$(newest "$work/div3")
    check "diverging at $lr: exit 1" is $status 1
    if [ -n "$good" ]; then
        ok "diverging at $lr: the last checkpoint is good" $moons --load \
            "$work/div3/checkpoint-$good/model.safetensors" --steps 0 --rescale none --quiet
    fi
done

# ---------------------------------------------------------------------------------------------------------------- the
# end

ends_exercised
