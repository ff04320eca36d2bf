# check.sh -- what the shell tests share; a test sources it: . "$(dirname "$0")/check.sh"
#
#     $work                       a fresh temporary folder, removed at the end
#     check WHAT COMMAND...       counts one check; a failure prints it and the last lines of $work/out and $work/err
#     skip WHY                    counts one skipped check, visibly
#     is A B, not COMMAND..., same FILE FILE
#     summary                     the last line `N passed, N failed, N skipped`; returns the exit status of the test
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
summary() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed -eq 0 ] && [ $passed -gt 0 ]
}
