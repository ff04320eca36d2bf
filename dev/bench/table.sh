#!/bin/sh
# table.sh -- prints a CSV file (lines that start with # are remarks) as a Markdown table.
#
#     sh dev/bench/table.sh FILE.csv [COLUMN,COLUMN,... [PEER.csv [PATTERN]]]
#
# PEER.csv: its columns may be asked for as well; its row is the one with the same first field (and that matches
# PATTERN). A column A/B is the quotient of two columns.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
awk -F, -v want="${2:-}" -v peer="${3:-}" -v pattern="${4:-}" '
function value(name,    part, n) {
    n = split(name, part, "/")
    if (n == 2) return value(part[2]) > 0 ? sprintf("%.2f", value(part[1]) / value(part[2])) : "n/a"
    name = name in column ? $column[name] : ($1 SUBSEP name) in other ? other[$1, name] : "n/a"
    return name ~ /^-?[0-9]+\.[0-9]+$/ ? sprintf("%.4g", name) : name
}
BEGIN {
    while (peer != "" && (getline line < peer) > 0) {
        if (line ~ /^#/) continue
        n = split(line, field, ",")
        if (!named++) { for (i = 1; i <= n; i++) title[i] = field[i]; continue }
        if (pattern == "" || line ~ pattern) for (i = 1; i <= n; i++) other[field[1], title[i]] = field[i]
    }
}
/^#/ { print substr($0, 3); print ""; next }
!header++ {
    n = want == "" ? NF : split(want, name, ",")
    for (i = 1; i <= NF; i++) { column[$i] = i; if (want == "") name[i] = $i }
    line = "|"; rule = "|"
    for (i = 1; i <= n; i++) { line = line " " name[i] " |"; rule = rule (i == 1 ? " --- |" : " ---: |") }
    print line; print rule
    next
}
{ line = "|"; for (i = 1; i <= n; i++) line = line " " value(name[i]) " |"; print line }' "$1"
