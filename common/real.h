// real.h -- arithmetic on arrays of `real`, which is float in programs and double in tests of the same file.
//
//     real                                    float, or what REAL says: define it before the first include
//     PARALLEL_FOR, SIMD_SUM(a, b)            loops over all threads; sums that may be reordered for vectors
//     real_product(context, ...)              C = alpha op(A) op(B) + beta C
//     real_exp_negative(x)                    exp(x) for x <= 0, as vector instructions
//     real_largest(x, n)                      the largest of n numbers
//     real_sum_blocks(out, partial, ...)      adds up the sums of blocks of rows, in a fixed order
//
// C11, C++17. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "gemm.h"

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

// Loops over independent pieces run on all threads. Sums that may be reordered for vectors say so.
#define PRAGMA(x) _Pragma(#x)
#ifdef _OPENMP
#define PARALLEL_FOR PRAGMA(omp parallel for schedule(static))
#define SIMD_SUM(...) PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#else
#define PARALLEL_FOR
#define SIMD_SUM(...)
#endif

#ifdef FP_FAST_FMAF
#define REAL_FMA(a, b, c) fmaf(a, b, c)
#else
#define REAL_FMA(a, b, c) ((a) * (b) + (c))
#endif

// C[M][N] = alpha op(A) op(B) + beta C. op(A) is [M][K], op(B) is [K][N]. trans_a: A is [K][M]; trans_b: B is [N][K].
// gemm.h knows floats only. Doubles get the plain sum.
static inline void real_product(gemm_context *g, int trans_a, int trans_b, int M, int N, int K, real alpha,
                                const real *A, int lda, const real *B, int ldb, real beta, real *C, int ldc) {
    if (sizeof(real) == sizeof(float)) {
        const float *a = (const float *)(const void *)A, *b = (const float *)(const void *)B;
        gemm(g, trans_a, trans_b, M, N, K, (float)alpha, a, lda, b, ldb, (float)beta, (float *)(void *)C, ldc);
        return;
    }
    // Distances in A and B from one term of a sum to the next.
    const size_t a_term = trans_a ? (size_t)lda : 1;
    const size_t b_term = trans_b ? 1 : (size_t)ldb;
    // Distances in A and B from the sum of one row or column of C to that of the next.
    const size_t a_row = trans_a ? 1 : (size_t)lda;
    const size_t b_col = trans_b ? (size_t)ldb : 1;
    for (size_t i = 0; i < (size_t)M; i++)
        for (size_t j = 0; j < (size_t)N; j++) {
            const real *a = A + i * a_row, *b = B + j * b_col;
            real *c = C + i * (size_t)ldc + j, sum = 0;
            for (size_t k = 0; k < (size_t)K; k++) sum += a[k * a_term] * b[k * b_term];
            *c = alpha * sum + (beta != 0 ? beta * *c : 0);
        }
}

// exp(x) for x <= 0, in a form that compilers turn into vector instructions. It is 0 below -87, and NaN for NaN.
// Tests measure its error: within 0.9 units in the last place (1.2 without fused multiply-add).
static inline real real_exp_negative(real x) {
    if (sizeof(real) == sizeof(double)) return (real)exp((double)x);
    // x = n log 2 + r. Adding 1.5 * 2^23 rounds x / log 2 to the integer n and leaves n in the low bits of `shifted`.
    const float v = (float)x, shifted = REAL_FMA(v, 1.44269504f, 12582912.0f), n = shifted - 12582912.0f;
    // log 2 in two parts, so that r keeps its last bits.
    const float r = REAL_FMA(n, -1.42860677e-6f, REAL_FMA(n, -0.693145752f, v));
    float p = 1.38145394e-3f;  // exp(r), a polynomial for |r| <= log(2) / 2
    p = REAL_FMA(p, r, 8.36874545e-3f);
    p = REAL_FMA(p, r, 4.16683890e-2f);
    p = REAL_FMA(p, r, 1.66665211e-1f);
    p = REAL_FMA(p, r, 4.99999940e-1f);
    p = REAL_FMA(p, r, 1.0f);
    p = REAL_FMA(p, r, 1.0f);
    int32_t bits, exponent;  // exp(x) = 2^n exp(r): n is added to the exponent of the float
    memcpy(&bits, &p, sizeof bits);
    memcpy(&exponent, &shifted, sizeof exponent);
    bits = (int32_t)((uint32_t)bits + ((uint32_t)exponent << 23));
    memcpy(&p, &bits, sizeof p);
    return v < -87.0f ? 0 : (real)p;
}

// The largest of x[n], n > 0. Sixteen maxima at a time, for vectors.
static inline real real_largest(const real *x, int n) {
    real lane[16], largest = x[0];
    int v = 0;
    for (int i = 0; i < 16; i++) lane[i] = x[0];
    for (; v + 16 <= n; v += 16)
        for (int i = 0; i < 16; i++) lane[i] = x[v + i] > lane[i] ? x[v + i] : lane[i];
    for (int i = 0; i < 16; i++) largest = lane[i] > largest ? lane[i] : largest;
    for (; v < n; v++) largest = x[v] > largest ? x[v] : largest;
    return largest;
}

// out[c] += sum over blocks of partial[block * stride + c], for n columns. A thread owns a strip of 64 columns.
static inline void real_sum_blocks(real *out, const real *partial, int blocks, size_t stride, int n) {
    PARALLEL_FOR
    for (int first = 0; first < n; first += 64) {
        const int width = n - first < 64 ? n - first : 64;
        real sum[64] = {0};
        for (int k = 0; k < blocks; k++) {
            const real *p = partial + (size_t)k * stride + first;
            for (int c = 0; c < width; c++) sum[c] += p[c];
        }
        for (int c = 0; c < width; c++) out[first + c] += sum[c];
    }
}
