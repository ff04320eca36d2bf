// test.h -- what every test program shares: counters, one comparator, temporary folders.
//
//     CHECK(cond, "what was expected");            counts one check, prints the line on failure
//     test_close("dW1", got, want, n, rel, abs);   one comparator for all numeric tests, see below
//     test_random();                              numbers for inputs, the same every time
//     test_skip("why");                            counts one skipped check, visibly
//     return test_summary();                       last line `N passed, N failed, N skipped`; exit status of main
//
// Compiles as C11, C++17 and CUDA.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_passed, test_failed, test_skipped;

// Counts one check; a failure prints where it happened and what was expected.
static inline int test_check(int ok, const char *file, int line, const char *what) {
    if (ok) {
        test_passed++;
    } else {
        test_failed++;
        printf("FAIL %s:%d: %s\n", file, line, what);
    }
    return ok;
}
#define CHECK(cond, what) test_check((cond) ? 1 : 0, __FILE__, __LINE__, what)

static inline void test_skip(const char *why) {
    test_skipped++;
    printf("SKIP %s\n", why);
}

// Compares got[n] with want[n]: an element passes when |got - want| <= abs_tol + rel_tol * |want|. Fails on a
// non-finite element in either array (so a buffer poisoned with NaN shows unwritten elements) and on n == 0. On
// failure prints max abs, max rel and the first bad index. Counts one check.
#define TEST_CLOSE_BODY()                                                                                        \
    double max_abs = 0, max_rel = 0;                                                                                 \
    size_t bad = n;                                                                                                  \
    for (size_t i = 0; i < n; i++) {                                                                                 \
        const double g = (double)got[i], w = want[i], d = fabs(g - w);                                               \
        const int ok = isfinite(g) && isfinite(w) && d <= abs_tol + rel_tol * fabs(w);                               \
        if (!ok && bad == n) bad = i;                                                                                \
        if (d > max_abs) max_abs = d;                                                                                \
        if (w != 0 && d / fabs(w) > max_rel) max_rel = d / fabs(w);                                                  \
    }                                                                                                                \
    if (bad == n && n > 0) {                                                                                         \
        test_passed++;                                                                                               \
        return 1;                                                                                                    \
    }                                                                                                                \
    test_failed++;                                                                                                   \
    if (n == 0) printf("FAIL %s: nothing to compare\n", name);                                                       \
    else                                                                                                             \
        printf("FAIL %s: [%zu of %zu] got %.17g, want %.17g (max abs %.3g, max rel %.3g)\n", name, bad, n,           \
               (double)got[bad], want[bad], max_abs, max_rel);                                                       \
    return 0;
static inline int test_close(const char *name, const float *got, const double *want, size_t n, double rel_tol,
                             double abs_tol) {
    TEST_CLOSE_BODY()
}
static inline int test_close_d(const char *name, const double *got, const double *want, size_t n, double rel_tol,
                               double abs_tol) {
    TEST_CLOSE_BODY()
}

// Uniform in [-1, 1), a fixed sequence (splitmix64).
static inline double test_random(void) {
    static uint64_t state = 1;
    uint64_t z = (state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return 2 * ((double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0) - 1;
}

// Makes a fresh temporary folder (TMPDIR or /tmp) and returns its path, valid until the next call.
static inline const char *test_make_dir(void) {
    static char path[1024];
    const char *base = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/rescale_test_XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(path)) {
        perror(path);
        exit(1);
    }
    return path;
}

// Removes a folder made by test_make_dir with everything in it.
static inline void test_remove_dir(const char *path) {
    char command[1200];
    if (!strstr(path, "rescale_test_")) return;
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    if (system(command)) printf("note: could not remove %s\n", path);
}

// Prints the closing line that test/run.sh adds up; the exit status of a test's main.
static inline int test_summary(void) {
    printf("%d passed, %d failed, %d skipped\n", test_passed, test_failed, test_skipped);
    return test_failed > 0 || test_passed == 0;
}
