#!/bin/sh
# get_data.sh -- fetches data sets, checks them and unpacks them under their usual names. See --help.
#
# A data set is complete when every file in its rows of table() is there with the right SHA-256. What is missing is
# taken from the first source that has it: a packed copy beside it, a folder on this machine, a system package, a
# download. A file is downloaded, unpacked and checked in a new folder DIR/NAME/.tmp.PID.* of this user alone, and only
# then renamed: a name never stands for half a file, and nothing is written through a link that somebody has put in its
# place. A download that was cut off stays as DIR/NAME/.part.* and is continued by the next run.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
usage() {
    cat <<'END'
usage: sh data/get_data.sh [--dest DIR] NAME...
       sh data/get_data.sh --list

NAME: mnist | fashion-mnist | cifar10 | shakespeare

Puts the unpacked files into DIR/NAME/ (default: the folder of this script). Sources, in this order:
  1. what is already there, unpacked, .gz or .xz, when its checksum is right
  2. the folder named by RESCALE_DATA: mnist/, fashion-mnist/, cifar-10-batches-bin/ or text/, files .gz, .xz or plain
  3. fashion-mnist: the system package dataset-fashion-mnist, installed, or unpacked here without being installed
  4. the public addresses and their mirrors, with curl or wget

  --dest DIR  where to put NAME/
  --list      the names and the files of each
  --help      this text

exit status: 0 all there, 1 some data set could not be had, 2 wrong usage
END
}

# name | folder under RESCALE_DATA | file | sha256 of the unpacked file
table() {
    cat <<'END'
mnist|mnist|train-images-idx3-ubyte|ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
mnist|mnist|train-labels-idx1-ubyte|65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
mnist|mnist|t10k-images-idx3-ubyte|0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
mnist|mnist|t10k-labels-idx1-ubyte|ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2
fashion-mnist|fashion-mnist|train-images-idx3-ubyte|c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888
fashion-mnist|fashion-mnist|train-labels-idx1-ubyte|bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9
fashion-mnist|fashion-mnist|t10k-images-idx3-ubyte|5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b
fashion-mnist|fashion-mnist|t10k-labels-idx1-ubyte|0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34
cifar10|cifar-10-batches-bin|data_batch_1.bin|cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5
cifar10|cifar-10-batches-bin|data_batch_2.bin|a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed
cifar10|cifar-10-batches-bin|data_batch_3.bin|bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67
cifar10|cifar-10-batches-bin|data_batch_4.bin|014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48
cifar10|cifar-10-batches-bin|data_batch_5.bin|755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add
cifar10|cifar-10-batches-bin|test_batch.bin|8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b
shakespeare|text|tinyshakespeare.txt|86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
END
}

# name | kind | address. each: the address of a folder that holds every file as .gz; tar: an archive with all files in
# one folder; file: the only file of the set, not compressed.
urls() {
    cat <<'END'
mnist|each|https://ossci-datasets.s3.amazonaws.com/mnist
mnist|each|https://storage.googleapis.com/cvdf-datasets/mnist
fashion-mnist|each|http://fashion-mnist.s3-website.eu-central-1.amazonaws.com
fashion-mnist|each|https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion
cifar10|tar|https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz
cifar10|tar|https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz
shakespeare|file|https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
shakespeare|file|https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt
END
}

names='mnist fashion-mnist cifar10 shakespeare'
package=dataset-fashion-mnist
package_dir=/usr/share/datasets/fashion-mnist

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "get_data.sh: $*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# keep_parts FOLDER: downloads that were cut off, in a folder of temporary files, become $dest/.part.*.
keep_parts() {
    for cut in "$1"/.part.*; do
        if [ -f "$cut" ] && [ ! -L "$cut" ] && [ -s "$cut" ]; then
            rm -rf "$dest/${cut##*/}"
            mv -f "$cut" "$dest/${cut##*/}"
        fi
    done
}

# take_part PART: the download $tmp/PART begins with what an earlier run has left of it in $dest. It is copied, for that
# file may have other names; a link is dropped.
take_part() {
    if [ ! -L "$dest/$1" ] && [ ! -e "$dest/$1" ]; then return 0; fi
    mv -f "$dest/$1" "$tmp/left"
    if [ -f "$tmp/left" ] && [ ! -L "$tmp/left" ]; then cat "$tmp/left" >"$tmp/$1"; fi
    rm -rf "$tmp/left"
}

# Removes what this run has not finished, apart from downloads that can be continued.
cleanup() {
    if [ -n "$tmp" ]; then
        keep_parts "$tmp"
        rm -rf "$tmp"
    fi
    tmp=
}

# sha256 FILE: prints the checksum.
sha256() {
    if have sha256sum; then
        sum=$(sha256sum <"$1") || return 1
    else
        sum=$(shasum -a 256 <"$1") || return 1
    fi
    say "${sum%% *}"
}

# The rows of the set that is being fetched, as words `file|sha256`.
rows() { table | sed -n "s/^$name|[^|]*|//p"; }

# The rows whose file is not in place yet.
missing() {
    for row in $(rows); do
        if [ ! -f "$dest/${row%%|*}" ]; then say "$row"; fi
    done
}

# unpack SOURCE FILE LABEL: unpacks SOURCE (.gz, .xz or plain); LABEL is what a message calls it.
unpack() {
    case $1 in
        *.gz) tool=gzip flags=-dc hint=gzip ;;
        *.xz) tool=xz flags=-dc hint=xz-utils ;;
        *) tool=cat flags=-u hint=coreutils ;;
    esac
    if ! have "$tool"; then
        warn "$3: $tool not found: install $hint"
        return 1
    fi
    if ! message=$("$tool" "$flags" -- "$1" 2>&1 >"$2"); then
        warn "$3: cannot be unpacked: $(say "$message" | sed -n '/./{p;q;}')"
        return 1
    fi
}

# accept SOURCE FILE SHA256 LABEL: unpacks SOURCE, and puts it in place as FILE when its checksum is right.
accept() {
    if ! unpack "$1" "$tmp/$2" "$4"; then
        rm -f "$tmp/$2"
        return 1
    fi
    found=$(sha256 "$tmp/$2")
    if [ "$found" != "$3" ]; then
        warn "$4: wrong content: expected sha256 $3, found $found"
        rm -f "$tmp/$2"
        return 1
    fi
    if [ -L "$dest/$2" ]; then rm -f "$dest/$2"; fi # mv would follow a link to a folder
    if [ -d "$dest/$2" ]; then
        warn "$dest/$2: cannot be written: it is a folder"
        return 1
    fi
    if ! message=$(mv -f "$tmp/$2" "$dest/$2" 2>&1); then
        warn "$dest/$2: cannot be written: $message"
        return 1
    fi
}

# from_folder FOLDER LABEL: takes what is missing from the files of a folder; 0 when nothing is missing afterwards.
from_folder() {
    seen=no
    for row in $(missing); do
        for ending in '' .gz .xz; do
            path=$1/${row%%|*}$ending
            if [ -f "$path" ]; then
                seen=yes
                if accept "$path" "${row%%|*}" "${row##*|}" "$path"; then break; fi
            fi
        done
    done
    rest=$(missing)
    if [ -z "$rest" ]; then
        say "$name: taken from $2"
        return 0
    fi
    if [ "$seen" = yes ]; then warn "$name: $2 does not have all files; trying the next source"; fi
    return 1
}

# from_data FOLDER: takes what is missing from FOLDER under RESCALE_DATA.
from_data() {
    if [ -z "${RESCALE_DATA:-}" ]; then return 1; fi
    if [ -d "$RESCALE_DATA/$1" ]; then
        from_folder "$RESCALE_DATA/$1" "$RESCALE_DATA/$1"
        return
    fi
    warn "$name: RESCALE_DATA has no folder $1 ($RESCALE_DATA)"
    return 1
}

# Takes Fashion-MNIST from the system package, downloaded when it is not installed.
from_package() {
    if [ "$name" != fashion-mnist ]; then return 1; fi
    if [ -d "$package_dir" ] && from_folder "$package_dir" "$package_dir"; then return 0; fi
    if ! have apt-get || ! have dpkg-deb; then return 1; fi
    mkdir -p "$tmp/package" || return 1
    say "$name: downloading the package $package"
    message=$(cd "$tmp/package" &&
        apt-get -q -o Acquire::http::Timeout=5 -o Acquire::https::Timeout=5 -o Acquire::Retries=0 \
            download "$package" 2>&1)
    for deb in "$tmp/package/$package"_*.deb; do
        if [ -f "$deb" ] && dpkg-deb -x "$deb" "$tmp/package/root" 2>/dev/null; then
            from_folder "$tmp/package/root/usr/share/datasets/fashion-mnist" "the package $package"
            return
        fi
    done
    message=$(say "$message" | grep '^E:' | sed -n '1p')
    warn "$name: apt-get download $package failed: ${message:-no such package}"
    return 1
}

# download URL PART: continues or starts a download. 0 done, 1 this address failed, 2 the host cannot be reached.
download() {
    was=no
    if [ -s "$2" ]; then was=yes; fi
    if have curl; then
        curl -fsSL --connect-timeout 5 --speed-limit 1000 --speed-time 20 -C - -o "$2" "$1" 2>"$tmp/log"
        code=$?
        case $code in
            0) return 0 ;;
            5 | 6 | 7 | 28) result=2 ;;
            22 | 33 | 36) result=retry ;;
            *) result=1 ;;
        esac
    else
        if wget --help 2>&1 | grep -q -e --connect-timeout; then
            wget -nv --connect-timeout=5 --dns-timeout=5 --read-timeout=20 --tries=1 -c -O "$2" "$1" 2>"$tmp/log"
        else
            wget -T 10 -c -O "$2" "$1" 2>"$tmp/log"
        fi
        code=$?
        case $code in
            0) return 0 ;;
            4) result=2 ;;
            8) result=retry ;;
            *) result=1 ;;
        esac
    fi
    if [ ! -s "$2" ]; then rm -f "$2"; fi
    if [ "$result" = retry ]; then # the server refused: perhaps what we had does not fit what it has now
        rm -f "$2"
        if [ "$was" = yes ]; then
            download "$1" "$2"
            return
        fi
        result=1
    fi
    warn "$1: download failed: $(sed -n '$p' "$tmp/log")"
    return "$result"
}

# fetch_archive URL PART: downloads the archive and takes every missing file out of it.
fetch_archive() {
    mkdir -p "$tmp/archive"
    if message=$(gzip -dc "$2" 2>&1 >"$tmp/archive.tar") &&
        message=$(tar -xf "$tmp/archive.tar" -C "$tmp/archive" 2>&1); then
        for row in $(missing); do
            for path in "$tmp/archive/${row%%|*}" "$tmp"/archive/*/"${row%%|*}"; do
                if [ -f "$path" ]; then accept "$path" "${row%%|*}" "${row##*|}" "$1: ${row%%|*}" && break; fi
            done
        done
    else
        warn "$1: cannot be unpacked: $(say "$message" | sed -n '/./{p;q;}')"
    fi
    rm -rf "$tmp/archive" "$tmp/archive.tar"
}

# get URL DOWNLOAD KIND FILE: downloads one address, the file DOWNLOAD, and puts FILE (for an archive: every file) in
# place. What was continued and turns out wrong is downloaded once more from the start. Returns as download() does.
get() {
    part=$tmp/.part.$source.$2
    take_part ".part.$source.$2"
    continued=no
    if [ -s "$part" ]; then continued=yes; fi
    say "$name: downloading $1"
    download "$1" "$part" || return
    case $3 in
        tar) fetch_archive "$1" "$part" ;;
        *)
            row=$(rows | grep "^$4|")
            accept "$part" "$4" "${row##*|}" "$1"
            ;;
    esac
    rm -f "$part"
    if [ "$3" = tar ]; then rest=$(missing); elif [ -f "$dest/$4" ]; then rest=; else rest=$4; fi
    if [ -z "$rest" ]; then return 0; fi
    if [ "$continued" = yes ]; then
        get "$@"
        return
    fi
    return 1
}

# Downloads what is missing, one public address after the other.
from_urls() {
    if ! have curl && ! have wget; then
        warn "$name: cannot download: install curl or wget"
        return 1
    fi
    if ! have gzip || { [ "$name" = cifar10 ] && ! have tar; }; then
        warn "$name: cannot unpack downloads: install gzip and tar"
        return 1
    fi
    source=0
    for line in $(urls | sed -n "s/^$name|//p"); do
        source=$((source + 1))
        kind=${line%%|*} url=${line#*|}
        case $kind in
            tar) get "$url" "${url##*/}" tar '' ;;
            *)
                for row in $(missing); do
                    file=${row%%|*}
                    if [ "$kind" = each ]; then
                        get "$url/$file.gz" "$file.gz" each "$file"
                    else
                        get "$url" "${url##*/}" file "$file"
                    fi
                    if [ $? -eq 2 ]; then break; fi
                done
                ;;
        esac
        rest=$(missing)
        if [ -z "$rest" ]; then return 0; fi
    done
    return 1
}

# Removes the files of $name that are there with the wrong content; 0 when every file is there then.
check() {
    for row in $(rows); do
        file=$dest/${row%%|*}
        if [ -f "$file" ]; then
            found=$(sha256 "$file")
            if [ "$found" != "${row##*|}" ]; then
                warn "$file: wrong content: expected sha256 ${row##*|}, found $found; fetching it again"
                rm -f "$file"
            fi
        fi
    done
    rest=$(missing)
    [ -z "$rest" ]
}

# Fetches the set $name into $dest.
fetch() {
    if check; then
        say "$name: already there, checksums good ($dest)"
        return 0
    fi
    if ! message=$(mkdir -p "$dest" 2>&1) || ! message=$(mktemp -d "$dest/.tmp.$$.XXXXXX" 2>&1); then
        warn "$dest: cannot be written: $message"
        return 1
    fi
    tmp=$message
    for old in "$dest"/.tmp.*; do # left by a run that was killed
        pid=${old##*/.tmp.}
        if [ "$old" = "$tmp" ] || kill -0 "${pid%%.*}" 2>/dev/null; then continue; fi
        if [ ! -L "$old" ]; then keep_parts "$old"; fi
        rm -rf "$old"
    done
    folder=$(table | sed -n "s/^$name|\([^|]*\)|.*/\1/p" | sed -n '1p')
    if from_folder "$dest" "$dest" || from_data "$folder" || from_package || from_urls; then
        cleanup
        rm -rf "$dest"/.part.*
        say "$name: ready, checksums good ($dest)"
        return 0
    fi
    cleanup
    rmdir "$dest" 2>/dev/null
    hint='connect to the network'
    if [ "$name" = fashion-mnist ]; then hint="$hint, apt-get install $package"; fi
    warn "$name: no source has it: $hint, or set RESCALE_DATA to a folder that has $folder/"
    return 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
base=$here
wanted=
tmp=
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h)
            usage
            exit 0
            ;;
        --list)
            for name in $names; do
                say "$name: $(rows | sed 's/|.*//' | tr '\n' ' ')"
            done
            exit 0
            ;;
        --dest)
            if [ $# -lt 2 ] || [ -z "$2" ]; then
                warn "--dest: expected a folder (see --help)"
                exit 2
            fi
            base=$2
            shift
            ;;
        --dest=?*) base=${1#--dest=} ;;
        -*)
            warn "$1: unknown option (see --help)"
            exit 2
            ;;
        *)
            case " $names " in
                *" $1 "*) wanted="$wanted $1" ;;
                *)
                    warn "$1: unknown data set: expected one of $names"
                    exit 2
                    ;;
            esac
            ;;
    esac
    shift
done
if [ -z "$wanted" ]; then
    usage >&2
    exit 2
fi
if ! have sha256sum && ! have shasum; then
    warn "sha256sum not found: install coreutils"
    exit 1
fi
if ! have mktemp; then
    warn "mktemp not found: install coreutils"
    exit 1
fi
trap cleanup EXIT
trap 'warn "interrupted; run it again to continue"; exit 129' HUP
trap 'warn "interrupted; run it again to continue"; exit 130' INT
trap 'warn "interrupted; run it again to continue"; exit 143' TERM
status=0
for name in $wanted; do
    dest=$base/$name
    fetch || status=1
done
exit $status
