// test_rng.c -- tests of common/rng.h on the host; test_rng_device.cu compares a device with it.
//
//     gcc -std=c11 -D_GNU_SOURCE -O3 -fopenmp -I. test/test_rng.c -o test_rng -lm
//
// Statistical tests use fixed keys, so their outcome never varies. Each turns a chi-square statistic into a number of
// standard deviations z; a sound generator exceeds the bound of 5 about once in 10^5 tests.
#include <stdint.h>

#include "common/rng.h"
#include "test.h"
#ifdef _OPENMP
#include <omp.h>
#endif

// Number of standard deviations of a chi-square statistic over its mean.
static double chi_square_z(const long long *count, size_t cells, double expected, double degrees) {
    double chi = 0;
    for (size_t i = 0; i < cells; i++) chi += ((double)count[i] - expected) * ((double)count[i] - expected) / expected;
    return (chi - degrees) / sqrt(2 * degrees);
}

static void check_z(const char *what, unsigned n, double z, double bound) {
    char line[160];
    snprintf(line, sizeof line, "%s, n = %u: %.2f standard deviations, at most %.1f expected", what, n, z, bound);
    CHECK(isfinite(z) && fabs(z) <= bound, line);
}

static long long *make_counts(size_t n) {
    long long *c = (long long *)calloc(n, sizeof *c);
    if (!c) exit(1);
    return c;
}

// ---------------------------------------------------------------------------------------------------------------------
// Words and distributions

// The three vectors for philox4x32 with 10 rounds of Random123's file kat_vectors: zeros, ones, digits of pi.
static void test_known_answers(void) {
    static const uint64_t in[3][3] = {{0, 0, 0},  // key, upper and lower half of the counter
                                      {UINT64_MAX, UINT64_MAX, UINT64_MAX},
                                      {0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u}};
    static const uint32_t want[3][4] = {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u},
                                        {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu},
                                        {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}};
    for (int v = 0; v < 3; v++) {
        uint32_t out[4];
        rng_philox(in[v][0], in[v][1], in[v][2], out);
        CHECK(!memcmp(out, want[v], sizeof out), "Philox4x32-10 gives Random123's known answer");
    }
}

static void test_words(void) {
    int same = 1;
    for (uint64_t i = 0; i < 1000; i++) {
        uint32_t w[4];
        rng_philox(7, rng_stream(RNG_TEST, 3), i / 4, w);
        same &= rng_word_at(7, rng_stream(RNG_TEST, 3), i) == w[i % 4];
    }
    CHECK(same, "rng_word_at gives the words of rng_philox in order");
    CHECK(rng_stream(2, 5) == ((uint64_t)2 << 32 | 5), "rng_stream puts the purpose above the index");
    CHECK(rng_word_at(1, 0, 0) != rng_word_at(2, 0, 0) && rng_word_at(1, 0, 0) != rng_word_at(1, 1, 0),
          "seeds and streams differ");
    CHECK(rng_word_at(1, 2, (uint64_t)1 << 40) != rng_word_at(1, 2, 0), "the counter's upper half counts");
}

static void test_uniform(void) {
    CHECK(rng_uniform(0) == 0 && rng_uniform(UINT32_MAX) == 1 - 1.0f / 16777216, "rng_uniform is in [0, 1)");
    CHECK(rng_uniform_open0(0) == 1.0f / 16777216 && rng_uniform_open0(UINT32_MAX) == 1,
          "rng_uniform_open0 is in (0, 1]");
    CHECK(rng_below(0, 10) == 0 && rng_below(UINT32_MAX, 10) == 9 && rng_below(UINT32_MAX, 1) == 0, "rng_below");

    enum { N = 1000000, CELLS = 256 };
    long long *cell = make_counts(CELLS), *pair = make_counts(64 * 64);
    double sum = 0, square = 0, product = 0, before = 0;
    for (int i = 0; i < N; i++) {
        const double u = rng_uniform_at(1, rng_stream(RNG_TEST, 0), (uint64_t)i);
        cell[(int)(u * CELLS)]++;
        if (i % 2) pair[(int)(before * 64) * 64 + (int)(u * 64)]++;
        if (i) product += (u - 0.5) * (before - 0.5);
        sum += u;
        square += (u - 0.5) * (u - 0.5);
        before = u;
    }
    check_z("uniform numbers, cells", CELLS, chi_square_z(cell, CELLS, (double)N / CELLS, CELLS - 1), 5);
    check_z("uniform numbers, pairs", 64, chi_square_z(pair, 64 * 64, N / 2.0 / 4096, 4095), 5);
    check_z("uniform numbers, mean", N, (sum / N - 0.5) * sqrt(12.0 * N), 5);
    check_z("uniform numbers, variance", N, (square / N - 1 / 12.0) * sqrt(180.0 * N), 5);
    check_z("uniform numbers, correlation of neighbours", N, product / N * 12 * sqrt((double)N), 5);
    free(cell);
    free(pair);
}

static void test_normal(void) {
    enum { N = 1000000, CELLS = 64 };
    float *z = (float *)malloc(N * sizeof *z), extreme[2];
    long long *cell = make_counts(CELLS);
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, pair = 0;
    int same = 1;
    rng_fill_normal(z, N, 0, 1, 5, rng_stream(RNG_TEST, 1));
    for (int i = 0; i < N; i++) {
        const double x = z[i];
        m1 += x;
        m2 += x * x;
        m3 += x * x * x;
        m4 += x * x * x * x;
        if (i % 2) pair += x * z[i - 1];
        int c = (int)(0.5 * erfc(-x / sqrt(2.0)) * CELLS);  // the distribution function makes the numbers uniform
        cell[c < CELLS ? c : CELLS - 1]++;
        if (i < 1000) same &= z[i] == rng_normal_at(5, rng_stream(RNG_TEST, 1), (uint64_t)i);
    }
    CHECK(same, "rng_normal_at gives the elements of rng_fill_normal");
    check_z("normal numbers, mean", N, m1 / N * sqrt((double)N), 5);
    check_z("normal numbers, variance", N, (m2 / N - 1) * sqrt(N / 2.0), 5);
    check_z("normal numbers, skewness", N, m3 / N * sqrt(N / 15.0), 5);
    check_z("normal numbers, fourth moment", N, (m4 / N - 3) * sqrt(N / 96.0), 5);
    check_z("normal numbers, correlation in a pair", N, pair / (N / 2) * sqrt(N / 2.0), 5);
    check_z("normal numbers, distribution", CELLS, chi_square_z(cell, CELLS, (double)N / CELLS, CELLS - 1), 5);
    rng_normal(0, 0, extreme);
    CHECK(isfinite(extreme[0]) && extreme[0] > 6.6f && extreme[0] < 6.67f, "the largest normal number is about 6.66");
    rng_normal(UINT32_MAX, UINT32_MAX, extreme);
    CHECK(isfinite(extreme[0]) && isfinite(extreme[1]), "normal numbers are finite");
    free(z);
    free(cell);
}

// The fills write exactly n elements, follow their formula and do not depend on the number of threads.
static void test_fill(void) {
    static const size_t sizes[] = {0, 1, 2, 3, 4, 5, 7, 8, 1001, 50003};
    enum { LARGEST = 50003 };
    float *a = (float *)malloc((LARGEST + 1) * sizeof *a), *b = (float *)malloc((LARGEST + 1) * sizeof *b);
    int good = 1;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const size_t n = sizes[s];
        a[n] = b[n] = 42;
        rng_fill_uniform(a, n, -0.25f, 0.75f, 9, 2);
        rng_fill_normal(b, n, 1.5f, 0.1f, 9, 2);
        for (size_t i = 0; i < n; i++) {
            good &= a[i] == rng_affine(rng_uniform_at(9, 2, i), -0.25f, 1.0f) && a[i] >= -0.25f && a[i] <= 0.75f;
            good &= b[i] == rng_affine(rng_normal_at(9, 2, i), 1.5f, 0.1f);
        }
        good &= a[n] == 42 && b[n] == 42;
    }
    CHECK(good, "fills give the elements of the _at functions and nothing behind them");
#ifdef _OPENMP
    const int threads = omp_get_max_threads();
    int same = 1;
    for (int t = 1; t <= 5; t += 2) {
        float *c = (float *)malloc(LARGEST * sizeof *c);
        omp_set_num_threads(t);
        rng_fill_uniform(c, LARGEST, -0.25f, 0.75f, 9, 2);
        same &= !memcmp(a, c, LARGEST * sizeof *c);
        rng_fill_normal(c, LARGEST, 1.5f, 0.1f, 9, 2);
        same &= !memcmp(b, c, LARGEST * sizeof *c);
        free(c);
    }
    omp_set_num_threads(threads);
    CHECK(same, "fills do not depend on the number of threads");
#else
    test_skip("fills with several threads: compiled without OpenMP");
#endif
    // the bits themselves, so that another machine or compiler that differs is noticed
    static const uint32_t want[4] = {0x3ea22b42u, 0xbe340e10u, 0x3e8fe67eu, 0xbee1d58eu};
    rng_fill_uniform(a, 4, -0.5f, 0.5f, 1234, rng_stream(RNG_PARAMETERS, 1));
    uint32_t bits[4];
    memcpy(bits, a, sizeof bits);
    if (!CHECK(!memcmp(bits, want, sizeof bits), "rng_fill_uniform gives the recorded bits"))
        printf("  got %08x %08x %08x %08x\n", bits[0], bits[1], bits[2], bits[3]);
    free(a);
    free(b);
}

// ---------------------------------------------------------------------------------------------------------------------
// Permutation

static void test_bijection(void) {
    static const uint32_t sizes[] = {1,   2,   3,   5,    10,   64,   100,   255,   256,   257,
                                     511, 512, 513, 1000, 1024, 1025, 60000, 65535, 65536, 65537};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const uint32_t n = sizes[s];
        unsigned char *seen = (unsigned char *)malloc(n);
        int good = 1;
        for (uint64_t epoch = 0; epoch < 5; epoch++) {
            const uint64_t key = epoch < 4 ? rng_permute_key(1, epoch) : 0;
            memset(seen, 0, n);
            for (uint32_t i = 0; i < n; i++) {
                const uint32_t v = rng_permute(i, n, key);
                if (v >= n || seen[v]) good = 0;
                else seen[v] = 1;
            }
        }
        char line[80];
        snprintf(line, sizeof line, "rng_permute is a bijection for n = %u", n);
        CHECK(good, line);
        free(seen);
    }
    CHECK(rng_permute(7, 7, 1) == 7 && rng_permute(1000, 300, 1) == 1000 && rng_permute(0, 0, 1) == 0,
          "an index beyond n is returned as it is");
    CHECK(rng_permute(UINT32_MAX - 1, UINT32_MAX, 3) < UINT32_MAX && rng_permute(5, 1u << 31, 3) < 1u << 31,
          "the largest n work");
    CHECK(rng_permute_key(1, 0) != rng_permute_key(1, 1) && rng_permute_key(1, 0) != rng_permute_key(2, 0),
          "keys differ by seed and epoch");
}

// All n! permutations come equally often over many keys, also over the keys 0, 1, 2, ...
static void test_all_permutations(void) {
    enum { KEYS = 240000 };
    for (uint32_t n = 2; n <= 5; n++) {
        for (int consecutive = 0; consecutive < 2; consecutive++) {
            size_t factorial = 1;
            for (uint32_t i = 2; i <= n; i++) factorial *= i;
            long long *count = make_counts(factorial);
            for (uint64_t k = 0; k < KEYS; k++) {
                uint32_t p[5];
                size_t rank = 0;
                for (uint32_t i = 0; i < n; i++) p[i] = rng_permute(i, n, consecutive ? k : rng_permute_key(3, k));
                for (uint32_t i = 0; i < n; i++) {  // rank in lexicographic order
                    size_t smaller = 0;
                    for (uint32_t j = i + 1; j < n; j++) smaller += p[j] < p[i];
                    rank = rank * (n - i) + smaller;
                }
                count[rank]++;
            }
            check_z("permutations, all orders", n,
                    chi_square_z(count, factorial, (double)KEYS / (double)factorial, (double)factorial - 1), 5);
            free(count);
        }
    }
}

// Over many keys: every value at every position equally often; the difference of neighbours, and the values at two
// fixed pairs of positions, uniform; the number of fixed points distributed by Poisson's law with mean 1.
static void test_uniform_permutation(uint32_t n, long keys) {
    const size_t cells = (size_t)n * n;
    long long *value = make_counts(cells), *difference = make_counts(n), *near = make_counts(cells),
              *far = make_counts(cells);
    long long fixed[6] = {0};
    uint32_t *p = (uint32_t *)malloc(n * sizeof *p);
    for (long k = 0; k < keys; k++) {
        int fixed_points = 0;
        for (uint32_t i = 0; i < n; i++) {
            p[i] = rng_permute(i, n, (uint64_t)k);
            value[(size_t)i * n + p[i]]++;
            fixed_points += p[i] == i;
        }
        for (uint32_t i = 0; i < n; i++) difference[(p[(i + 1) % n] + n - p[i]) % n]++;
        near[(size_t)p[0] * n + p[1]]++;
        far[(size_t)p[1] * n + p[n / 2 + 1]]++;
        fixed[fixed_points < 5 ? fixed_points : 5]++;
    }
    const double m = n, k = (double)keys;
    check_z("permutations, value at a position", n, chi_square_z(value, cells, k / m, (m - 1) * (m - 1)), 5);
    check_z("permutations, difference of neighbours", n,
            chi_square_z(difference + 1, n - 1, k * m / (m - 1), m - 2), 5);
    // the diagonal cannot occur: leave it out of the statistic
    const double expected = k / (m * (m - 1)), degrees = m * (m - 1) - 1;
    for (uint32_t i = 0; i < n; i++) near[(size_t)i * n + i] = far[(size_t)i * n + i] = -1;
    size_t kept = 0;
    int diagonal = 0;
    for (size_t c = 0; c < cells; c++) {
        if (near[c] < 0) {
            diagonal++;
            continue;
        }
        near[kept] = near[c];
        far[kept++] = far[c];
    }
    CHECK(diagonal == (int)n && difference[0] == 0, "no value comes twice");
    check_z("permutations, values at 0 and 1", n, chi_square_z(near, kept, expected, degrees), 5);
    check_z("permutations, values at 1 and n/2 + 1", n, chi_square_z(far, kept, expected, degrees), 5);
    double chi = 0, probability = exp(-1.0), rest = 1;
    for (int f = 0; f < 6; f++) {
        const double e = k * (f < 5 ? probability : rest);
        chi += ((double)fixed[f] - e) * ((double)fixed[f] - e) / e;
        rest -= probability;
        probability /= f + 1;
    }
    check_z("permutations, fixed points", n, (chi - 5) / sqrt(10.0), 5);
    free(value);
    free(difference);
    free(near);
    free(far);
    free(p);
}

// Orders of the size of a data set: serial correlation, and correlation between the orders of consecutive epochs.
static void test_large_permutation(void) {
    enum { N = 60000, EPOCHS = 20 };
    double *before = (double *)calloc(N, sizeof *before), serial = 0, epochs = 0;
    for (int e = 0; e < EPOCHS; e++) {
        const uint64_t key = rng_permute_key(11, (uint64_t)e);
        double last = 0;
        for (uint32_t i = 0; i < N; i++) {
            const double x = (rng_permute(i, N, key) - (N - 1) / 2.0) / (N / sqrt(12.0));
            serial += x * last;
            epochs += x * before[i];
            before[i] = last = x;
        }
    }
    check_z("permutations, serial correlation", N, serial / sqrt((double)N * EPOCHS), 5);
    check_z("permutations, correlation of epochs", N, epochs / sqrt((double)N * (EPOCHS - 1)), 5);
    free(before);
}

int main(void) {
    test_known_answers();
    test_words();
    test_uniform();
    test_normal();
    test_fill();
    test_bijection();
    test_all_permutations();
    test_uniform_permutation(10, 100000);
    test_uniform_permutation(257, 15000);
    test_uniform_permutation(512, 8000);
    test_uniform_permutation(1000, 4000);
    test_large_permutation();
    return test_summary();
}
