#!/bin/sh
# faults_table.sh -- prints test/results/faults.csv (make faults) as the table of doc/faults.md.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
awk -F '"' '
    NR == 1 {
        print "| fault | runs | went on to the end | failed with one line | killed | lost bits | other faults |"
        print "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
        next
    }
    {
        split($3, n, ",")
        print "| " $2 " | " n[2] " | " n[3] " | " n[4] " | " n[5] " | " n[6] " | " n[7] " |"
        for (i = 2; i <= 7; i++) sum[i] += n[i]
    }
    END { print "| **all** | " sum[2] " | " sum[3] " | " sum[4] " | " sum[5] " | " sum[6] " | " sum[7] " |" }
' test/results/faults.csv
