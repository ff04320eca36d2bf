#!/bin/sh
# table.sh -- prints the variants of an operation, what they add and what was measured, as a Markdown table.
#
#     sh dev/kernels/table.sh OPERATION            (dev/tables.sh calls it, for README.md here)
#
# Reads results/variants.txt (the output of `list`) and, where they exist, results/cpu/*.csv and results/cuda/*.csv. A
# cell is the median time and the percent of the floor; the fastest of a column is bold. "emulated": tensor cores, which
# a CPU only emulates; "not run": code that no machine has run; "not measured": it runs, on the CPU build, but there are
# no numbers for a GPU yet.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
dir=$(dirname "$0")/results
[ $# -eq 1 ] || { echo "usage: sh dev/kernels/table.sh OPERATION" >&2; exit 2; }
cpu=$(grep -ls "^$1," "$dir"/cpu/*.csv) gpu=$(grep -ls "^$1," "$dir"/cuda/*.csv)
# shellcheck disable=SC2086
awk -v op="$1" -v variants="$dir/variants.txt" '
function cell(device, v, s,    key) {
    key = device SUBSEP v SUBSEP s
    if (!(key in ms)) return "–"
    return sprintf(ms[key] == best[device, s] ? "**%s**, %.3g%%" : "%s, %.3g%%", show(ms[key]), percent[key])
}
function show(t) { return t >= 1 ? sprintf("%.3g ms", t) : sprintf("%.3g µs", 1000 * t) }
function without_gpu(place) { # of a variant, where no GPU was measured
    if (place ~ /gpu\+emulated/ || place == "gpu") return "not run"
    return place == "cpu" ? "–" : "not measured"
}
FNR == 1 { device = FILENAME ~ /\/cuda\// ? "GPU" : "CPU"; split("", line) }
/^# / { remark[device] = remark[device] (remark[device] == "" ? "" : "; ") substr($0, 3); next }
{ split($0, f, ","); if (f[1] != op) next }
{
    if (!((device SUBSEP f[4]) in known)) { known[device, f[4]] = 1; shape[device, ++shapes[device]] = f[4] }
    ms[device, f[2], f[4]] = f[6] + 0; percent[device, f[2], f[4]] = f[13]
    if (best[device, f[4]] == "" || f[6] + 0 < best[device, f[4]]) best[device, f[4]] = f[6] + 0
}
END {
    if (remark["CPU"] != "") print "Times on a CPU: " remark["CPU"] "."
    print (remark["GPU"] != "" ? "Times on a GPU: " remark["GPU"] "." : "On a GPU: not measured.") "\n"
    head = "| variant | what it adds |"; rule = "| --- | --- |"
    for (i = 1; i <= shapes["CPU"]; i++) { head = head " CPU " shape["CPU", i] " |"; rule = rule " ---: |" }
    for (i = 1; i <= shapes["GPU"]; i++) { head = head " GPU " shape["GPU", i] " |"; rule = rule " ---: |" }
    if (!shapes["GPU"]) { head = head " GPU |"; rule = rule " ---: |" }
    print head; print rule
    while ((getline text < variants) > 0) {
        n = split(text, w, /  */)
        if (w[1] != op) continue
        idea = text; for (i = 1; i <= 4; i++) sub(/^[^ ]+ +/, "", idea)
        row = "| " w[2] (w[3] == "fp32" ? "" : " (" w[3] ")") " | " idea " |"
        for (i = 1; i <= shapes["CPU"]; i++)
            row = row " " (w[4] ~ /emulated/ ? "emulated" : cell("CPU", w[2], shape["CPU", i])) " |"
        for (i = 1; i <= shapes["GPU"]; i++) row = row " " cell("GPU", w[2], shape["GPU", i]) " |"
        if (!shapes["GPU"]) row = row " " without_gpu(w[4]) " |"
        print row
    }
}' $cpu $gpu /dev/null
