#!/bin/sh
# tables.sh -- `make tables`: writes the tables of Markdown files anew from their CSV files.
#
#     sh dev/tables.sh README.md dev/kernels/README.md ...
#
# What stands between a line `<!-- table COMMAND -->` and the next `<!-- end -->` is replaced by what `sh COMMAND`
# prints, run in the repository's root. A file in which a command fails stays as it is; exit status 1.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
for file in "$@"; do
    if awk '
    /^<!-- table .* -->$/ {
        print
        command = $0
        sub(/^<!-- table /, "", command)
        sub(/ -->$/, "", command)
        if (system("") || system("sh " command)) exit 1
        skipping = 1
    }
    /^<!-- end -->$/ { skipping = 0 }
    !skipping' "$file" >"$file.part"; then
        mv "$file.part" "$file"
    else
        rm -f "$file.part"
        echo "tables.sh: $file: a table's command failed" >&2
        exit 1
    fi
done
