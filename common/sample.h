// sample.h -- draws a token from a model's logits.
//
//     sample_draw(logits, V, temperature, top_k, uniform, work)   the token, 0 .. V - 1
//
// C11, C++17. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include "real.h"

static inline int sample_descending(const void *a, const void *b) {
    const real x = *(const real *)a, y = *(const real *)b;
    return (x < y) - (x > y);
}

// Draws from softmax(logits / temperature) over the top_k largest of V logits (0: all). Temperature 0: the largest.
// uniform is a random number in [0, 1). Overwrites work [V].
static inline int sample_draw(const real *logits, int V, double temperature, int top_k, double uniform, real *work) {
    int best = 0, last = 0;
    for (int v = 1; v < V; v++)
        if (logits[v] > logits[best]) best = v;
    if (temperature == 0) return best;
    real least = -INFINITY;  // smaller logits are never drawn
    if (top_k > 0 && top_k < V) {
        memcpy(work, logits, (size_t)V * sizeof(real));
        qsort(work, (size_t)V, sizeof(real), sample_descending);
        least = work[top_k - 1];
    }
    double sum = 0, below = 0;
    for (int v = 0; v < V; v++) {
        const double exponent = ((double)logits[v] - (double)logits[best]) / temperature;
        work[v] = logits[v] >= least ? (real)exp(exponent) : 0;
        sum += (double)work[v];
    }
    for (int v = 0; v < V; v++) {
        if (work[v] > 0) last = v;  // rounding may leave uniform * sum at the end: then the last one that is possible
        below += (double)work[v];
        if (uniform * sum < below) return v;
    }
    return last;
}
