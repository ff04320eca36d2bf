#!/bin/sh
# window_loss.sh -- the training loss of a run, averaged over one epoch of steps, and when it reached a target.
#
#     sh dev/window_loss.sh LOG.csv [TARGET]         prints LOSS,EPOCHS
#
# LOSS is the mean of the step losses over the last epoch of the log; EPOCHS the first point of the run, in epochs, at
# which the mean over the epoch of steps before it is at or below TARGET (0: never). A loss evaluated at the end of an
# epoch jumps with the last few batches; this one does not.
export LC_ALL=C # a locale would change what awk, sed, sort and printf read and write
awk -F, -v target="${2:-nan}" '
$3 == "step" { loss[++n] = $4; epoch[n] = $2; if ($2 <= 1) width = n }
END {
    for (i = 1; i <= n; i++) {
        sum += loss[i]
        if (i > width) sum -= loss[i - width]
        if (i >= width && !reached && target != "nan" && sum / width <= target + 1e-9) reached = epoch[i]
    }
    if (n) printf "%.9f,%.3f\n", sum / width, reached; else print "nan,0"
}' "$1"
