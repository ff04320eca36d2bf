# value.sh -- for the scripts of dev/paper, which read it with `.`: numbers of a trainer's report.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
# value FILE KEY: the number under "KEY" in the JSON report FILE; nan where it is null, nothing where there is none
value() { sed -n "s/.*\"$2\": \([^,]*\),*$/\1/p" "$1" 2>/dev/null | head -n 1 | sed 's/null/nan/'; }
