#!/bin/sh
# table.sh -- prints CSV files (lines that start with # are remarks) as Markdown tables.
#
#     sh dev/bench/table.sh FILE.csv [COLUMN,COLUMN,...]
awk -F, -v want="${2:-}" '
/^#/ { print substr($0, 3); print ""; next }
!header++ {
    n = want == "" ? NF : split(want, name, ",")
    for (i = 1; i <= n; i++) { column[i] = i; for (k = 1; k <= NF && want != ""; k++) if ($k == name[i]) column[i] = k }
    line = "|"; rule = "|"
    for (i = 1; i <= n; i++) { line = line " " $column[i] " |"; rule = rule (i == 1 ? " --- |" : " ---: |") }
    print line; print rule
    next
}
{ line = "|"; for (i = 1; i <= n; i++) line = line " " $column[i] " |"; print line }' "$1"
