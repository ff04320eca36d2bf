#!/bin/sh
# test_docs.sh -- the documents are true where a program can see it: functions they name exist, links lead somewhere,
# the version is one, generated tables are those of the CSV files.
#
#     sh test/test_docs.sh REPORT       REPORT: build/c/dev/paper/report, which tables need, as build/c/dev/compare
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
cd "$(dirname "$0")/.." || exit 1
. test/check.sh
report=${1:-build/c/dev/paper/report}
documents="README.md CONTRIBUTING.md CHANGELOG.md doc/*.md"
documents="$documents dev/paper/README.md dev/paper/criteria.md dev/kernels/README.md"

# `file: function` in a document: the file defines it.
cat doc/walk.md CONTRIBUTING.md | tr '\n' ' ' | grep -o '`[a-z_/]*\.[a-z]*: [a-z_0-9]*`' | tr -d '`' | \
    sort -u >"$work/named"
check 'documents name functions' [ "$(wc -l <"$work/named")" -ge 15 ]
while IFS= read -r line; do
    file=${line%%: *} function=${line##*: }
    check "$line" grep -q "^[a-zA-Z].*[ *]$function(" "$file"
done <"$work/named"

# Links and pictures of the repository.
for document in $documents; do
    folder=$(dirname "$document")
    grep -o ']([^)#:]*[)#]' "$document" | sed 's/^](//; s/[)#]$//' | sort -u >"$work/links"
    while IFS= read -r link; do
        [ -z "$link" ] || check "$document: $link" [ -e "$folder/$link" ]
    done <"$work/links"
done

# One version.
version=$(sed -n 's/^#define VERSION "\(.*\)"$/\1/p' common/version.h)
check 'common/version.h has a version' [ -n "$version" ]
check 'CITATION.cff has it' grep -qx "version: $version" CITATION.cff
check 'CHANGELOG.md begins with it' is "$(sed -n 's/^## \([0-9.]*\).*/\1/p' CHANGELOG.md | head -n 1)" "$version"

# README stays a front page.
check 'README.md has at most 140 lines' [ "$(wc -l <README.md)" -le 140 ]

# Generated tables.
if [ -x "$report" ] && [ -x build/c/dev/compare ]; then
    for document in README.md doc/results.md; do
        cp "$document" "$work/new.md"
        check "$document: its tables can be made" sh dev/tables.sh "$work/new.md"
        check "$document: its tables are current (make tables)" same "$document" "$work/new.md"
    done
else
    skip "tables: no $report or no build/c/dev/compare"
fi

summary
