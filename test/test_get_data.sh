#!/bin/sh
# test_get_data.sh -- data/get_data.sh with sources of every kind, good and bad, without the network.
#
# Most checks run a copy of the script whose table has the checksums of tiny files made here, whose addresses are looked
# up in a folder by stand-ins for curl and wget, and whose PATH has nothing but what each case allows.

export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$(dirname -- "$0")/check.sh"

says() { grep -q -e "$1" "$work/out"; }
none() { [ ! -e "$1" ]; }

# A folder with nothing half-written in it.
clean() { [ -z "$(find "$1" -name '.tmp.*' 2>/dev/null)" ]; }

# --- the copy under test, its tiny files and its PATH

mkdir -p "$work/data" "$work/bin" "$work/good" "$work/web" "$work/tree"
script=$work/data/get_data.sh
cp "$root/data/get_data.sh" "$script"
sed -n '/^[a-z0-9-]*|[^|]*|[^|]*|[0-9a-f]\{64\}$/p' "$script" >"$work/rows"
while IFS='|' read -r name folder file sum; do
    mkdir -p "$work/good/$folder" "$work/tree/$name"
    printf 'the file %s of %s\n' "$file" "$name" >"$work/good/$folder/$file"
    new=$(sha256sum <"$work/good/$folder/$file")
    sed "s/$sum/${new%% *}/" "$script" >"$script.new" && mv "$script.new" "$script"
done <"$work/rows"
sed "s#^package_dir=.*#package_dir=$work/package#" "$script" >"$script.new" && mv "$script.new" "$script"

for tool in sh sed cat gzip xz tar mkdir mktemp rm mv rmdir sha256sum dirname grep tr; do
    path=$(command -v "$tool") && ln -s "$path" "$work/bin/$tool"
done

# A fresh folder of good files in $work/source.
source_folder() {
    rm -rf "$work/source"
    cp -r "$work/good" "$work/source"
}

# run ARGUMENTS: runs the copy; its output and status are in $work/out and $status.
run() {
    PATH=$work/bin "$work/bin/sh" "$script" "$@" >"$work/out" 2>&1
    status=$?
}

# --- command line

real=${RESCALE_DATA:-}
unset RESCALE_DATA PACKAGE_MISSING MODE
run --help
check 'help: exit 0' is $status 0
check 'help: usage' says '^usage:'
run
check 'no name: exit 2' is $status 2
run mnist nosuchset
check 'unknown name: exit 2' is $status 2
check 'unknown name: said, with the known ones' says 'nosuchset: unknown data set: expected one of mnist '
check 'unknown name: nothing fetched' none "$work/data/mnist"
run --nonsense
check 'unknown option: exit 2' is $status 2
run --dest
check 'option without value: exit 2' is $status 2
run --list
check 'list: exit 0' is $status 0
check 'list: files' says '^cifar10: data_batch_1.bin .*test_batch.bin'

# --- no source at all

run mnist
check 'no source: exit 1' is $status 1
check 'no source: what to install' says 'install curl or wget'
check 'no source: what else' says 'no source has it.*RESCALE_DATA'
check 'no source: leaves nothing' none "$work/data/mnist"

# --- RESCALE_DATA: plain, .gz, .xz

RESCALE_DATA=$work/source
export RESCALE_DATA
source_folder
run mnist
check 'plain files: exit 0' is $status 0
check 'plain files: content' same "$work/data/mnist/t10k-labels-idx1-ubyte" "$work/good/mnist/t10k-labels-idx1-ubyte"
check 'plain files: clean' clean "$work/data"
before=$(ls -i "$work/data/mnist")
run mnist
check 'again: exit 0' is $status 0
check 'again: says so' says 'mnist: already there, checksums good'
check 'again: touches nothing' is "$(ls -i "$work/data/mnist")" "$before"
rm -rf "$work/source"
run mnist
check 'again, with no source: exit 0' is $status 0

source_folder
gzip "$work/source/mnist/"*
run --dest "$work/a b" mnist
check '.gz: exit 0' is $status 0
check '.gz: content, in a folder with a space' \
    same "$work/a b/mnist/train-images-idx3-ubyte" "$work/good/mnist/train-images-idx3-ubyte"
run --dest="$work/eq" shakespeare
check '--dest=DIR' same "$work/eq/shakespeare/tinyshakespeare.txt" "$work/good/text/tinyshakespeare.txt"
if command -v xz >/dev/null 2>&1; then
    xz "$work/source/cifar-10-batches-bin/"*
    run cifar10
    check '.xz: exit 0' is $status 0
    check '.xz: content' same "$work/data/cifar10/test_batch.bin" "$work/good/cifar-10-batches-bin/test_batch.bin"
    rm -rf "$work/data/cifar10"
    mv "$work/bin/xz" "$work/xz"
    run cifar10
    mv "$work/xz" "$work/bin/xz"
    check 'xz missing: exit 1' is $status 1
    check 'xz missing: what to install' says 'xz not found: install xz-utils'
else
    skip '.xz files: xz is not installed'
fi
mv "$work/bin/gzip" "$work/gzip"
run --dest "$work/nogzip" mnist
mv "$work/gzip" "$work/bin/gzip"
check 'gzip missing: exit 1' is $status 1
check 'gzip missing: what to install' says 'gzip not found: install gzip'
for tool in sha256sum mktemp; do
    mv "$work/bin/$tool" "$work/$tool"
    run mnist
    mv "$work/$tool" "$work/bin/$tool"
    check "$tool missing: exit 1" is $status 1
    check "$tool missing: what to install" says "$tool not found: install coreutils"
done

rm -rf "$work/data/mnist" "$work/source/mnist"
run mnist
check 'no such folder: exit 1' is $status 1
check 'no such folder: said' says 'RESCALE_DATA has no folder mnist'

# --- wrong content

source_folder
printf 'x' >>"$work/source/mnist/t10k-images-idx3-ubyte"
run mnist shakespeare
check 'wrong checksum: exit 1' is $status 1
check 'wrong checksum: file, expected, found' \
    says 't10k-images-idx3-ubyte: wrong content: expected sha256 [0-9a-f]*, found [0-9a-f]'
check 'wrong checksum: not in place' none "$work/data/mnist/t10k-images-idx3-ubyte"
check 'wrong checksum: the good files are' \
    same "$work/data/mnist/train-images-idx3-ubyte" "$work/good/mnist/train-images-idx3-ubyte"
check 'wrong checksum: clean' clean "$work/data"
check 'wrong checksum: the next set is fetched' \
    same "$work/data/shakespeare/tinyshakespeare.txt" "$work/good/text/tinyshakespeare.txt"
source_folder
gzip "$work/source/mnist/t10k-images-idx3-ubyte"
dd if="$work/source/mnist/t10k-images-idx3-ubyte.gz" of="$work/cut" bs=1 count=40 2>/dev/null
mv "$work/cut" "$work/source/mnist/t10k-images-idx3-ubyte.gz"
run mnist
check 'cut .gz: exit 1' is $status 1
check 'cut .gz: said' says 't10k-images-idx3-ubyte.gz: cannot be unpacked: '
check 'cut .gz: not in place' none "$work/data/mnist/t10k-images-idx3-ubyte"
cp "$work/good/mnist/t10k-images-idx3-ubyte" "$work/source/mnist/"
run mnist
check 'repaired source: exit 0' is $status 0
printf 'x' >>"$work/data/mnist/train-labels-idx1-ubyte"
mkdir "$work/data/mnist/.tmp.999999999"
run mnist
check 'wrong file in place: exit 0' is $status 0
check 'wrong file in place: said' says 'train-labels-idx1-ubyte: wrong content: .*; fetching it again'
check 'wrong file in place: replaced' \
    same "$work/data/mnist/train-labels-idx1-ubyte" "$work/good/mnist/train-labels-idx1-ubyte"
check 'what a killed run left is gone' clean "$work/data"
unset RESCALE_DATA
rm -rf "$work/data/mnist"
mkdir "$work/data/mnist"
cp "$work/good/mnist/"* "$work/data/mnist/"
gzip "$work/data/mnist/train-images-idx3-ubyte"
run mnist
check 'a packed file beside its place: exit 0' is $status 0
check 'a packed file beside its place: unpacked' \
    same "$work/data/mnist/train-images-idx3-ubyte" "$work/good/mnist/train-images-idx3-ubyte"
printf 'x' >"$work/file"
run --dest "$work/file" mnist
check 'folder that cannot be made: exit 1' is $status 1
check 'folder that cannot be made: said' says 'file/mnist: cannot be written: '

# --- the system package

mkdir -p "$work/package"
cp "$work/good/fashion-mnist/"* "$work/package/"
gzip "$work/package/"*
run fashion-mnist
check 'package installed: exit 0' is $status 0
check 'package installed: content' \
    same "$work/data/fashion-mnist/train-images-idx3-ubyte" "$work/good/fashion-mnist/train-images-idx3-ubyte"
rm -rf "$work/data/fashion-mnist" "$work/tree"
mkdir -p "$work/tree/usr/share/datasets"
mv "$work/package" "$work/tree/usr/share/datasets/fashion-mnist"
cat >"$work/bin/apt-get" <<'END'
#!/bin/sh
if [ -n "$PACKAGE_MISSING" ]; then
    echo "E: Unable to locate package dataset-fashion-mnist" >&2
    exit 100
fi
echo deb >dataset-fashion-mnist_1_all.deb
END
cat >"$work/bin/dpkg-deb" <<END
#!/bin/sh
$(command -v cp) -r '$work/tree' "\$3"
END
chmod +x "$work/bin/apt-get" "$work/bin/dpkg-deb"
run fashion-mnist
check 'package downloaded: exit 0' is $status 0
check 'package downloaded: content' \
    same "$work/data/fashion-mnist/t10k-labels-idx1-ubyte" "$work/good/fashion-mnist/t10k-labels-idx1-ubyte"
check 'package downloaded: clean' clean "$work/data"
rm -rf "$work/data/fashion-mnist"
PACKAGE_MISSING=1
export PACKAGE_MISSING
run fashion-mnist
check 'no package: exit 1' is $status 1
check 'no package: said' says 'apt-get download dataset-fashion-mnist failed: E: Unable to locate'
rm -f "$work/bin/apt-get" "$work/bin/dpkg-deb"

# --- downloads, with stand-ins for curl and wget that take https://HOST/PATH from $work/web/HOST/PATH

cat >"$work/bin/curl" <<END
#!$work/bin/sh
PATH=$PATH
web='$work/web' log='$work/log'
END
cat >>"$work/bin/curl" <<'END'
case $1 in --help) echo '  --connect-timeout=SECONDS' && exit 0 ;; esac
case $0 in *curl) refused=22 offline=6 ;; *) refused=8 offline=4 ;; esac
for word; do
    case $last in -o | -O) out=$word ;; esac
    case $word in http*://*) url=$word ;; esac
    last=$word
done
have=0
if [ -f "$out" ]; then have=$(($(wc -c <"$out"))); fi
echo "$have ${url##*/} $url" >>"$log"
if [ "$MODE" = offline ]; then exit "$offline"; fi
from=$web/${url#*://}
if [ ! -f "$from" ] || [ "$have" -ge "$(wc -c <"$from")" ]; then
    echo "the server said no" >&2
    exit "$refused"
fi
if [ "$MODE" = TERM ] || [ "$MODE" = KILL ]; then
    head -c 20 "$from" >"$out"
    kill -s "$MODE" "$PPID"
    exit 18
fi
tail -c "+$((have + 1))" "$from" >>"$out"
END
chmod +x "$work/bin/curl"
s3=$work/web/ossci-datasets.s3.amazonaws.com/mnist
gs=$work/web/storage.googleapis.com/cvdf-datasets/mnist

# fill FOLDER: puts the four packed files of MNIST there.
fill() {
    rm -rf "$1"
    mkdir -p "$1"
    cp "$work/good/mnist/"* "$1"
    gzip "$1"/*
}
files() { find "$1" ! -type d | wc -l | tr -d ' '; }
calls() { echo $(($(wc -l <"$work/log"))); }

# All cases once with each of the two programs.
downloads() {
    rm -rf "$work/data/mnist" "$work/web"
    : >"$work/log"
    fill "$s3"
    run mnist
    check "$1: exit 0" is $status 0
    check "$1: content" \
        same "$work/data/mnist/t10k-images-idx3-ubyte" "$work/good/mnist/t10k-images-idx3-ubyte"
    check "$1: one download for each file" is "$(calls)" 4
    check "$1: nothing else is left" is "$(files "$work/data/mnist")" 4

    rm -rf "$work/data/mnist"
    fill "$gs"
    rm "$s3/train-labels-idx1-ubyte.gz"
    printf 'not this' | gzip >"$s3/t10k-labels-idx1-ubyte.gz"
    run mnist
    check "$1, mirror: exit 0" is $status 0
    check "$1, mirror: the refused file is named" says 'train-labels-idx1-ubyte.gz: download failed: the server said no'
    check "$1, mirror: the wrong file is named" says 's3.*t10k-labels-idx1-ubyte.gz: wrong content: expected sha256'
    check "$1, mirror: content" \
        same "$work/data/mnist/t10k-labels-idx1-ubyte" "$work/good/mnist/t10k-labels-idx1-ubyte"

    rm -rf "$work/data/mnist" "$gs"
    run mnist
    check "$1, only a wrong file: exit 1" is $status 1
    check "$1, only a wrong file: not in place" none "$work/data/mnist/t10k-labels-idx1-ubyte"
    check "$1, only a wrong file: clean" clean "$work/data"

    rm -rf "$work/data/mnist"
    : >"$work/log"
    MODE=offline run mnist
    check "$1, offline: exit 1" is $status 1
    check "$1, offline: each host is tried once" is "$(calls)" 2
    check "$1, offline: leaves nothing" none "$work/data/mnist"

    fill "$s3"
    MODE=TERM run mnist
    check "$1, interrupted: exit 143" is $status 143
    check "$1, interrupted: said" says 'interrupted; run it again to continue'
    check "$1, interrupted: nothing under the final names" none "$work/data/mnist/train-images-idx3-ubyte"
    check "$1, interrupted: clean" clean "$work/data"
    : >"$work/log"
    run mnist
    check "$1, continued: exit 0" is $status 0
    check "$1, continued: from where it was" is "$(sed -n '1s/ .*//p' "$work/log")" 20
    check "$1, continued: content" \
        same "$work/data/mnist/train-images-idx3-ubyte" "$work/good/mnist/train-images-idx3-ubyte"

    rm -rf "$work/data/mnist"
    MODE=KILL run mnist
    check "$1, killed: exit 137" is $status 137
    : >"$work/log"
    run mnist
    check "$1, after a kill: exit 0" is $status 0
    check "$1, after a kill: from where it was" is "$(sed -n '1s/ .*//p' "$work/log")" 20
    check "$1, after a kill: nothing else is left" is "$(files "$work/data/mnist")" 4

    # What somebody else has put where a download or a file will be: a link, another name of a file, a folder, a link
    # to one.
    for how in 'ln -s' ln; do
        for name in .part.1.train-images-idx3-ubyte.gz train-images-idx3-ubyte; do
            rm -rf "$work/data/mnist"
            mkdir "$work/data/mnist"
            printf 'precious' >"$work/victim"
            $how "$work/victim" "$work/data/mnist/$name"
            run mnist
            check "$1, $how $name: exit 0" is $status 0
            check "$1, $how $name: what it leads to is intact" is "$(cat "$work/victim")" precious
            check "$1, $how $name: content" \
                same "$work/data/mnist/train-images-idx3-ubyte" "$work/good/mnist/train-images-idx3-ubyte"
        done
    done
    for name in .part.1.train-images-idx3-ubyte.gz train-images-idx3-ubyte; do
        rm -rf "$work/data/mnist" "$work/folder"
        mkdir "$work/data/mnist" "$work/folder"
        ln -s "$work/folder" "$work/data/mnist/$name"
        run mnist
        check "$1, link to a folder $name: exit 0" is $status 0
        check "$1, link to a folder $name: it is still empty" is "$(files "$work/folder")" 0
    done
    rm -rf "$work/data/mnist"
    mkdir -p "$work/data/mnist/train-images-idx3-ubyte"
    run mnist
    check "$1, a folder in the place of a file: exit 1" is $status 1
    check "$1, a folder in the place of a file: said" says 'train-images-idx3-ubyte: cannot be written: it is a folder'
    rm -rf "$work/data/mnist"

    for junk in 'other bytes' "$(cat "$work/rows")"; do # a part that does not fit, a part longer than the file
        rm -rf "$work/data/mnist"
        mkdir "$work/data/mnist"
        printf '%s' "$junk" >"$work/data/mnist/.part.1.train-images-idx3-ubyte.gz"
        run mnist
        check "$1, a wrong part: exit 0" is $status 0
        check "$1, a wrong part: downloaded again" \
            same "$work/data/mnist/train-images-idx3-ubyte" "$work/good/mnist/train-images-idx3-ubyte"
    done

    rm -rf "$work/data/cifar10" "$work/data/shakespeare"
    mkdir -p "$work/web/www.cs.toronto.edu/~kriz" "$work/web/storage.googleapis.com/download.tensorflow.org/data"
    tar -cf - -C "$work/good" cifar-10-batches-bin | gzip >"$work/web/www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    cp "$work/good/text/tinyshakespeare.txt" \
        "$work/web/storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt"
    run cifar10 shakespeare
    check "$1, an archive and a plain file: exit 0" is $status 0
    check "$1, an archive: content" \
        same "$work/data/cifar10/data_batch_4.bin" "$work/good/cifar-10-batches-bin/data_batch_4.bin"
    check "$1, an archive: nothing else is left" is "$(files "$work/data/cifar10")" 6
    check "$1, a plain file: content" \
        same "$work/data/shakespeare/tinyshakespeare.txt" "$work/good/text/tinyshakespeare.txt"
    rm -rf "$work/data/cifar10"
    printf 'no archive' >"$work/web/www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    run cifar10
    check "$1, no archive: exit 1" is $status 1
    check "$1, no archive: said" says 'cifar-10-binary.tar.gz: cannot be unpacked: '
    check "$1, no archive: leaves nothing" none "$work/data/cifar10"
}
downloads curl
mv "$work/bin/curl" "$work/bin/wget"
downloads wget

# --- the script as it is, with the real files

if [ -n "$real" ] && [ -f "$real/text/tinyshakespeare.txt" ]; then
    RESCALE_DATA=$real sh "$root/data/get_data.sh" --dest "$work/real" shakespeare >"$work/out" 2>&1
    check 'real files: exit 0' is $? 0
    check 'real files: checksum' is "$(md5sum <"$work/real/shakespeare/tinyshakespeare.txt")" \
        '6fb458f1232090904fb40fe944165e91  -'
else
    skip 'real files: RESCALE_DATA is not set'
fi

summary
