# limit.sh -- a time limit for commands; a script sources it: . dev/limit.sh
#
#     limited SECONDS COMMAND...      runs a command; status 124 when it did not end in time (it got TERM, then KILL)
#
# Where there is no `timeout` (coreutils, BusyBox) the command runs without a limit.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
limited() {
    limit_seconds=$1
    shift
    if ! command -v timeout >/dev/null 2>&1; then
        "$@"
        return
    fi
    limit_begin=$(date +%s)
    timeout -k 5 "$limit_seconds" "$@"
    limit_status=$?
    case $limit_status in 124 | 137 | 143) ;; *) return $limit_status ;; esac # timeouts differ in what they return
    [ $(($(date +%s) - limit_begin)) -lt "$limit_seconds" ] || return 124
    return $limit_status
}
