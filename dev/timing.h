// timing.h -- what the benchmarks share: median, 10th and 90th percentile of repeated measurements.
#pragma once
#include <stdlib.h>

typedef struct timing {
    double median, p10, p90;  // in the unit of the samples
    int runs;
} timing;

static inline int timing_order(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Sorts n > 0 samples and takes the percentiles.
static inline timing summarise(double *samples, int n) {
    qsort(samples, (size_t)n, sizeof *samples, timing_order);
    const timing t = {samples[n / 2], samples[n / 10], samples[n - 1 - n / 10], n};
    return t;
}
