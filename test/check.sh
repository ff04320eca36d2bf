# check.sh -- what the shell tests share; a test sources it: . "$(dirname "$0")/check.sh"
#
#     $work                       a fresh temporary folder, removed at the end
#     check WHAT COMMAND...       counts one check; a failure prints it and the last lines of $work/out and $work/err
#     skip WHY                    counts one skipped check, visibly
#     is A B, not COMMAND..., same FILE FILE
#     picture FILE                whether a plot of dev/plot.h is whole: light and dark colours, both axes of every
#     panel
#                                 titled (with SHARED=1 the panels share the vertical one), no number that is none,
#                                 every marker inside its frame
#     full_disk COMMAND...        runs a command whose files must not grow beyond a kilobyte: every write past it fails
#     summary                     the last line `N passed, N failed, N skipped`; returns the exit status of the test
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
unset MAKEFLAGS MFLAGS MAKELEVEL # a make called here is no part of the one that called this script
work=$(mktemp -d "${TMPDIR:-/tmp}/rescale_test_XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM
passed=0 failed=0 skipped=0

check() {
    what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        return
    fi
    failed=$((failed + 1))
    printf 'FAIL %s\n    %s\n' "$what" "$*"
    for file in out err; do [ ! -f "$work/$file" ] || sed "s/^/    $file: /" "$work/$file" | tail -n 5; done
}
skip() {
    skipped=$((skipped + 1))
    printf 'SKIP %s\n' "$1"
}
is() { [ "$1" = "$2" ]; }
not() { ! "$@"; }
same() { cmp -s "$1" "$2"; }
picture() {
    awk -v shared="${SHARED:-0}" '
    /[" ,ML-](nan|inf)/ || /NaN/ { bad = "a number that is none: " $0 }
    /prefers-color-scheme: dark/ { dark = 1 }
    /class="label x-title"/ { x_titles++ }
    /class="label y-title"/ { y_titles++ }
    /<g class="legend">/ { legend = 1 }
    /<\/g>/ { legend = 0 }
    /class="axis"/ {
        split($0, part, /d="M|V|H|"\/>/)
        split(part[2], corner, " ")
        left = corner[1]; top = corner[2]; bottom = part[3]; right = part[4]
        frames++
    }
    /class="(marker|cross) / && !legend {
        at = $0
        sub(/.*d="M/, "", at)
        split(at, point, /[ m]/)
        reach = 5
        outside = point[1] - reach < left || point[1] + reach > right
        if (!frames || outside || point[2] - reach < top || point[2] + reach > bottom)
            bad = "a marker at the border or outside: " $0
        markers++
    }
    END {
        if (!dark) bad = "no dark colours"
        if (!markers) bad = "no marker"
        if (!frames || x_titles != frames || y_titles != (shared + 0 ? 1 : frames)) bad = "axes without titles"
        if (bad) print bad
        exit bad != "" }' "$1"
}
# Writing fails, as on a full disk, and does not kill. A GPU's driver must not need files of its own then: no cache
# for it.
full_disk() { (trap '' XFSZ && export CUDA_CACHE_DISABLE=1 && ulimit -f 2 && exec "$@"); }
summary() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed -eq 0 ] && [ $passed -gt 0 ]
}
