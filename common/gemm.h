// gemm.h -- one matrix product for every trainer: C = alpha op(A) op(B) + beta C, row-major, fp32.
//
//     gemm_context g;
//     char err[256];
//     if (gemm_create(&g, GEMM_FP32, err, sizeof err)) { fprintf(stderr, "%s\n", err); return 1; }
//     gemm(&g, 0, 1, batch, out, in, 1.0f, X, in, W, in, 0.0f, Y, out);    // Y[batch][out] = X[batch][in] W[out][in]^T
//     gemm_destroy(&g);
//
// Three backends behind one interface, chosen when the file is compiled:
//     nvcc (__CUDACC__)   cuBLAS; every matrix is device memory; calls are queued on the context's stream
//     -DUSE_OPENBLAS      OpenBLAS's single-threaded kernels (link -lopenblas), parallelised here
//     otherwise           a built-in packed, cache-blocked and register-blocked kernel; needs nothing
// Compiles as C11, C++17 and CUDA; OpenMP is used when enabled (-fopenmp). Include it in one place per program.
//
// gemm_create(g, precision, err, err_size)
//     Prepares g and allocates its workspace. precision is GEMM_FP32, or on a GPU also GEMM_TF32 or GEMM_BF16: inputs
//     are rounded to that format inside the tensor cores, sums and results stay fp32. Returns 0, or nonzero with one
//     line in err (NULL is allowed); g may then be passed to gemm_destroy, to nothing else.
// gemm_set_precision(g, precision, err, err_size)
//     Later products use another precision; workspace and handle stay. GEMM_FP32, and what g had before, never fail.
//     Returns 0, or nonzero with one line in err (NULL is allowed), and g is as it was.
// gemm_destroy(g)
//     Frees what g holds. A context that is all zeros, or destroyed already, is fine.
// gemm(g, trans_a, trans_b, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc)
//     C[m][n] = alpha op(A)[m][k] op(B)[k][n] + beta C. op(A) is A, stored [m][lda >= k], or with trans_a its
//     transpose, A stored [k][lda >= m]; op(B) is B, stored [k][ldb >= n], or with trans_b its transpose, B stored
//     [n][ldb >= k].
//     C is stored [m][ldc >= n]; what lies between its rows is not touched. C must not overlap A or B. No alignment is
//     required.
//     beta == 0 never reads C, so C may hold anything, NaN included. k == 0 or alpha == 0 never reads A and B, and
//     C becomes beta C.
//     m == 0 or n == 0 does nothing. NaN and infinities in A and B propagate as in the sum itself.
//     The context belongs to one caller at a time; two threads that call gemm at once need two contexts. Called inside
//     an OpenMP parallel region it runs on the calling thread alone.
//     GPU: a cuBLAS or CUDA failure prints file, line and status and exits with status 1, as CUDA_CHECK does.
// gemm_batch(g, count, trans_a, trans_b, m, n, k, alpha, A, lda, step_a, B, ldb, step_b, beta, C, ldc, step_c)
//     `count` products of the same shape, the matrices of each step_a, step_b, step_c floats after those of the one
//     before.
// gemm_backend()
//     Its name: "cuBLAS", "OpenBLAS", "built-in (AVX-512)", "built-in (AVX2)", ...
// gemm_set_stream(g, stream)      (GPU only)
//     Queues later calls on another stream; the fixed workspace stays, so a context is used on one stream at a time.
//
// Fields a caller may set between calls: `timed`; on a CPU also `threads` (starts as omp_get_max_threads()).
// Timing: with `timed` nonzero, every call adds its wall time to `seconds` and 2 m n k to `flops`. On a GPU this
// synchronises the stream before and after every product, which costs overlap: use it to measure, not to train.
//
// Determinism: same device, same call, same bits. The built-in backend also gives the same bits for every thread count:
// threads divide C, never the sum over k. OpenBLAS treats the edges of a piece by other kernels, so its bits may
// depend on the thread count. cuBLAS gets a fixed workspace of its own and atomics stay off.
//
// Why OpenBLAS runs single-threaded here: its own pool of threads (the default package of several distributions) beside
// a spinning OpenMP runtime competes for the same cores and slows a training step down several times.
#pragma once
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef __CUDACC__
#include <cublas_v2.h>
#include <cuda_runtime.h>
#else
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef USE_OPENBLAS
#include <cblas.h>
#elif defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#endif

enum { GEMM_FP32 = 0, GEMM_TF32 = 1, GEMM_BF16 = 2 };

typedef struct gemm_context {
    int precision;   // GEMM_FP32, GEMM_TF32, GEMM_BF16
    int timed;       // set by the caller: count seconds and flops
    double seconds;  // wall time inside gemm while `timed` was set
    double flops;    // 2 m n k summed over the same calls
#ifdef __CUDACC__
    cublasHandle_t handle;
    cudaStream_t stream;
    cublasComputeType_t compute;
    void *workspace;  // device memory owned by this context, so that cuBLAS never picks an algorithm by what is free
    size_t workspace_size;
#else
    int threads;            // OpenMP threads a product may use
    int workspace_threads;  // threads that `workspace` has room for
    void *allocation;       // what malloc returned
    float *workspace;       // aligned to 64 bytes: one packing buffer per thread
#endif
} gemm_context;

// Wall clock in seconds.
static inline double gemm_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Writes one line into the caller's buffer and returns 1.
static inline int gemm_error(char *err, size_t err_size, const char *message) {
    if (err && err_size) snprintf(err, err_size, "gemm: %s", message);
    return 1;
}

#ifdef __CUDACC__
// ------------------------------------------------------------------------------------------------------------ cuBLAS

enum { GEMM_WORKSPACE_BYTES = 32 << 20 };  // what cuBLAS asks for on Hopper; smaller devices use less of it

// Stops the program on a cuBLAS failure, as CUDA_CHECK does on a CUDA one.
static inline void gemm_cublas_check(cublasStatus_t status, const char *file, int line) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    fprintf(stderr, "%s:%d: cuBLAS: %s (status %d)\n", file, line, cublasGetStatusString(status), (int)status);
    exit(1);
}
static inline void gemm_cuda_check(cudaError_t status, const char *file, int line) {
    if (status == cudaSuccess) return;
    fprintf(stderr, "%s:%d: CUDA: %s\n", file, line, cudaGetErrorString(status));
    exit(1);
}
#define GEMM_CUBLAS_CHECK(call) gemm_cublas_check((call), __FILE__, __LINE__)
#define GEMM_CUDA_CHECK(call) gemm_cuda_check((call), __FILE__, __LINE__)

static inline const char *gemm_backend(void) { return "cuBLAS"; }

static inline void gemm_destroy(gemm_context *g) {
    if (g->handle) cublasDestroy(g->handle);
    if (g->workspace) cudaFree(g->workspace);
    memset(g, 0, sizeof *g);
}

// cublasSetStream falls back to the library's own workspace, so ours has to be set again after it.
static inline void gemm_set_stream(gemm_context *g, cudaStream_t stream) {
    g->stream = stream;
    GEMM_CUBLAS_CHECK(cublasSetStream(g->handle, stream));
    GEMM_CUBLAS_CHECK(cublasSetWorkspace(g->handle, g->workspace, g->workspace_size));
}

static inline int gemm_set_precision(gemm_context *g, int precision, char *err, size_t err_size) {
    if (precision == GEMM_FP32) g->compute = CUBLAS_COMPUTE_32F;
    else if (precision == GEMM_TF32) g->compute = CUBLAS_COMPUTE_32F_FAST_TF32;
    else if (precision == GEMM_BF16) g->compute = CUBLAS_COMPUTE_32F_FAST_16BF;
    else return gemm_error(err, err_size, "precision must be GEMM_FP32, GEMM_TF32 or GEMM_BF16");
    g->precision = precision;
    return 0;
}

static inline int gemm_create(gemm_context *g, int precision, char *err, size_t err_size) {
    memset(g, 0, sizeof *g);
    if (gemm_set_precision(g, precision, err, err_size)) return 1;
    if (cudaMalloc(&g->workspace, GEMM_WORKSPACE_BYTES) != cudaSuccess) {
        g->workspace = NULL;
        return gemm_error(err, err_size, "no device memory for the cuBLAS workspace (32 MiB)");
    }
    g->workspace_size = GEMM_WORKSPACE_BYTES;
    if (cublasCreate(&g->handle) != CUBLAS_STATUS_SUCCESS) {
        g->handle = NULL;
        return gemm_error(err, err_size, "cublasCreate failed: no usable GPU, or the driver is older than the toolkit");
    }
    gemm_set_stream(g, 0);
    return 0;
}

static inline cublasOperation_t gemm_operation(int transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; }

// Row-major C = op(A) op(B) is column-major C^T = op(B)^T op(A)^T: the operands change places, nothing is copied.
static inline void gemm(gemm_context *g, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *A,
                        int lda, const float *B, int ldb, float beta, float *C, int ldc) {
    if (m <= 0 || n <= 0) return;
    if (k <= 0 || alpha == 0) {
        if (beta == 1) return;
        if (beta == 0) {
            GEMM_CUDA_CHECK(cudaMemset2DAsync(C, (size_t)ldc * sizeof(float), 0, (size_t)n * sizeof(float), (size_t)m,
                                              g->stream));
            return;
        }
        k = 0;
    }
    double start = 0;
    if (g->timed) {
        GEMM_CUDA_CHECK(cudaStreamSynchronize(g->stream));
        start = gemm_clock();
    }
    const cublasOperation_t op_a = gemm_operation(trans_a), op_b = gemm_operation(trans_b);
    GEMM_CUBLAS_CHECK(cublasGemmEx(g->handle, op_b, op_a, n, m, k, &alpha, B, CUDA_R_32F, ldb, A, CUDA_R_32F, lda,
                                   &beta, C, CUDA_R_32F, ldc, g->compute, CUBLAS_GEMM_DEFAULT));
    if (g->timed) {
        GEMM_CUDA_CHECK(cudaStreamSynchronize(g->stream));
        g->seconds += gemm_clock() - start;
        g->flops += 2.0 * m * n * k;
    }
}

static inline void gemm_batch(gemm_context *g, int count, int trans_a, int trans_b, int m, int n, int k, float alpha,
                              const float *A, int lda, size_t step_a, const float *B, int ldb, size_t step_b,
                              float beta, float *C, int ldc, size_t step_c) {
    if (m <= 0 || n <= 0 || k <= 0 || alpha == 0 || g->timed) {
        for (int i = 0; i < count; i++) {
            const float *a = A + (size_t)i * step_a, *b = B + (size_t)i * step_b;
            gemm(g, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, C + (size_t)i * step_c, ldc);
        }
        return;
    }
    const cublasOperation_t op_a = gemm_operation(trans_a), op_b = gemm_operation(trans_b);
    const cublasStatus_t status = cublasGemmStridedBatchedEx(
        g->handle, op_b, op_a, n, m, k, &alpha, B, CUDA_R_32F, ldb, (long long)step_b, A, CUDA_R_32F, lda,
        (long long)step_a, &beta, C, CUDA_R_32F, ldc, (long long)step_c, count, g->compute, CUBLAS_GEMM_DEFAULT);
    GEMM_CUBLAS_CHECK(status);
}

#else
// --------------------------------------------------------------------------------------------------------------- CPU

// Vector width, registers per tile row, rows per tile, and the fused multiply-add of the target. The multiply-add is
// written out because -std=c11 forbids the compiler to contract a * b + c.
#if defined(USE_OPENBLAS)
#define GEMM_NAME "OpenBLAS"
enum { GEMM_VL = 16, GEMM_NV = 2, GEMM_MR = 12 };
#elif defined(__AVX512F__)
#define GEMM_NAME "built-in (AVX-512)"
#define GEMM_FMA(a, b, c) ((gemm_vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
enum { GEMM_VL = 16, GEMM_NV = 2, GEMM_MR = 12 };  // 24 accumulators of 32 registers
#elif defined(__AVX2__) && defined(__FMA__)
#define GEMM_NAME "built-in (AVX2)"
#define GEMM_FMA(a, b, c) ((gemm_vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
enum { GEMM_VL = 8, GEMM_NV = 2, GEMM_MR = 6 };  // 12 accumulators of 16 registers
#elif defined(__aarch64__)
#define GEMM_NAME "built-in (NEON)"
#define GEMM_FMA(a, b, c) ((gemm_vec)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
enum { GEMM_VL = 4, GEMM_NV = 2, GEMM_MR = 12 };  // 24 accumulators of 32 registers
#else
#define GEMM_NAME "built-in (128-bit vectors)"
#define GEMM_FMA(a, b, c) ((c) + (a) * (b))
enum { GEMM_VL = 4, GEMM_NV = 2, GEMM_MR = 6 };  // 12 accumulators of 16 registers
#endif

// Cache blocking: a packed block of A (MC x KC) and a packed group of panels of B (up to KC x NC in all, each panel NR
// wide) stay in the second-level cache while the inner kernel runs over their tiles.
enum { GEMM_NR = GEMM_NV * GEMM_VL, GEMM_KC = 384, GEMM_MC = 32 * GEMM_MR, GEMM_NC = 128 };
enum { GEMM_THREAD_FLOATS = GEMM_MC * GEMM_KC + GEMM_KC * GEMM_NC };  // workspace of one thread
enum { GEMM_WIDE = 4, GEMM_DOT = 4 };  // vectors per row for one or two rows; tile side of the dot products

static inline const char *gemm_backend(void) { return GEMM_NAME; }

// How a product is cut into pieces: `rows` x `cols` pieces of C.
typedef struct gemm_grid {
    int rows, cols;
} gemm_grid;

#ifndef USE_OPENBLAS
typedef float gemm_vec __attribute__((vector_size(4 * GEMM_VL)));
typedef float gemm_vec_u __attribute__((vector_size(4 * GEMM_VL), aligned(4), may_alias));  // any address
typedef int gemm_int __attribute__((vector_size(4 * GEMM_VL)));
typedef float gemm_vec4 __attribute__((vector_size(16)));
typedef float gemm_vec4_u __attribute__((vector_size(16), aligned(4), may_alias));

#if defined(__clang__)
#define GEMM_UNROLL _Pragma("unroll")
#else
#define GEMM_UNROLL _Pragma("GCC unroll 16")
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define GEMM_SHUFFLE4(x, y, a, b, c, d) __builtin_shufflevector(x, y, a, b, c, d)
#else
typedef int gemm_int4 __attribute__((vector_size(16)));
#define GEMM_SHUFFLE4 gemm_shuffle4
static inline __attribute__((always_inline)) gemm_vec4 gemm_shuffle4(gemm_vec4 x, gemm_vec4 y, int a, int b, int c,
                                                                     int d) {
    const gemm_int4 lanes = {a, b, c, d};
    return __builtin_shuffle(x, y, lanes);
}
#endif
#define GEMM_INLINE static inline __attribute__((always_inline))

// x in every lane.
GEMM_INLINE gemm_vec gemm_splat(float x) {
    const gemm_vec zero = {0};
    return x - zero;
}

// The inner kernel: C[MR][NV * VL] = alpha sum_l a_l b_l^T + beta C over kc terms, in order of l. a holds MR
// consecutive values per term (terms `as` floats apart), b NV vectors per term (terms `bs` floats apart). MR and NV are
// constants at every call, so the accumulators live in registers. B is prefetched a few terms ahead, which matters
// where it is used in place.
GEMM_INLINE void gemm_kernel(const int MR, const int NV, int kc, const float *a, ptrdiff_t as, const float *b,
                             ptrdiff_t bs, float alpha, float beta, float *c, ptrdiff_t ldc) {
    gemm_vec acc[GEMM_MR][GEMM_WIDE];
    GEMM_UNROLL
    for (int i = 0; i < MR; i++) {
        GEMM_UNROLL
        for (int v = 0; v < NV; v++) acc[i][v] = gemm_splat(0);
    }
    for (int l = 0; l < kc; l++, a += as, b += bs) {
        if (NV <= 2) {
            const float *ahead = b + (l + 12 < kc ? 12 * bs : 0);  // never past B: another thread may write there
            __builtin_prefetch(ahead);
            __builtin_prefetch(ahead + (NV - 1) * GEMM_VL);
        }
        gemm_vec bv[GEMM_WIDE];
        GEMM_UNROLL
        for (int v = 0; v < NV; v++) bv[v] = *(const gemm_vec_u *)(b + v * GEMM_VL);
        GEMM_UNROLL
        for (int i = 0; i < MR; i++) {
            const gemm_vec av = gemm_splat(a[i]);
            GEMM_UNROLL
            for (int v = 0; v < NV; v++) acc[i][v] = GEMM_FMA(av, bv[v], acc[i][v]);
        }
    }
    const gemm_vec alphas = gemm_splat(alpha), betas = gemm_splat(beta);
    GEMM_UNROLL
    for (int i = 0; i < MR; i++) {
        GEMM_UNROLL
        for (int v = 0; v < NV; v++) {
            gemm_vec_u *p = (gemm_vec_u *)(c + i * ldc + v * GEMM_VL);
            const gemm_vec t = alphas * acc[i][v];
            if (beta == 0) *p = t;
            else *p = GEMM_FMA(betas, (gemm_vec)*p, t);
        }
    }
}

#define GEMM_CASES(NV)                                                                                              \
    switch (mr) {                                                                                                   \
    case 1: gemm_kernel(1, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                      \
    case 2: gemm_kernel(2, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                      \
    case 3: gemm_kernel(3, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                      \
    case 4: gemm_kernel(4, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                      \
    case 5: gemm_kernel(5, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                      \
    case 6: gemm_kernel(6, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                      \
    default: break;                                                                                                 \
    }
#define GEMM_MORE_CASES(NV)                                                                                         \
    switch (mr) {                                                                                                   \
    case 7: gemm_kernel(7, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                      \
    case 8: gemm_kernel(8, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                      \
    case 9: gemm_kernel(9, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                      \
    case 10: gemm_kernel(10, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                    \
    case 11: gemm_kernel(11, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                    \
    case 12: gemm_kernel(12, NV, kc, a, as, b, bs, alpha, beta, c, ldc); return;                                    \
    default: break;                                                                                                 \
    }

// One full tile of mr rows and nv vectors: picks the kernel compiled for that size. nv == GEMM_WIDE: one or two rows.
static inline void gemm_full_tile(int mr, int nv, int kc, const float *a, ptrdiff_t as, const float *b, ptrdiff_t bs,
                           float alpha, float beta, float *c, ptrdiff_t ldc) {
    if (nv == 2) {
        GEMM_CASES(2)
#if defined(__AVX512F__) || defined(__aarch64__)
        GEMM_MORE_CASES(2)
#endif
    } else if (nv == 1) {
        GEMM_CASES(1)
#if defined(__AVX512F__) || defined(__aarch64__)
        GEMM_MORE_CASES(1)
#endif
    } else if (mr == 1) {
        gemm_kernel(1, GEMM_WIDE, kc, a, as, b, bs, alpha, beta, c, ldc);
    } else {
        gemm_kernel(2, GEMM_WIDE, kc, a, as, b, bs, alpha, beta, c, ldc);
    }
}

// A tile of mr x nr of C, whose element [i][j] is c[i * rs + j * cs]. Where nr is no multiple of the vector width or
// cs is not 1, the tile goes through a padded copy, with the same arithmetic.
static inline void gemm_tile(int mr, int nr, int kc, const float *a, ptrdiff_t as, const float *b, ptrdiff_t bs,
                             float alpha, float beta, float *c, ptrdiff_t rs, ptrdiff_t cs) {
    const int nv = (nr + GEMM_VL - 1) / GEMM_VL, width = nv * GEMM_VL;
    if (nr == width && cs == 1) {
        gemm_full_tile(mr, nv, kc, a, as, b, bs, alpha, beta, c, rs);
        return;
    }
    float padded[GEMM_MR * GEMM_NR];
    if (beta != 0) {
        memset(padded, 0, sizeof padded);
        for (int i = 0; i < mr; i++)
            for (int j = 0; j < nr; j++) padded[i * width + j] = c[i * rs + j * cs];
    }
    gemm_full_tile(mr, nv, kc, a, as, b, bs, alpha, beta, padded, width);
    if (cs == 1) {
        for (int i = 0; i < mr; i++) memcpy(c + i * rs, padded + i * width, (size_t)nr * sizeof(float));
    } else {
        for (int j = 0; j < nr; j++)
            for (int i = 0; i < mr; i++) c[i * rs + j * cs] = padded[i * width + j];
    }
}

// dst[c * ds + r] = src[r * ss + c]: the packing of a matrix whose rows run along k. Blocks of 4 x 4 in registers; the
// next four rows are prefetched, as packing is where a product meets operands that are in no cache.
static inline void gemm_transpose(int rows, int cols, const float *src, ptrdiff_t ss, float *dst, ptrdiff_t ds) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) {
        const float *s = src + r * ss;
        float *d = dst + r;
        int c = 0;
        for (; c + 4 <= cols; c += 4) {
            if (c % 16 == 0 && r + 8 <= rows) {
                __builtin_prefetch(s + 4 * ss + c);
                __builtin_prefetch(s + 5 * ss + c);
                __builtin_prefetch(s + 6 * ss + c);
                __builtin_prefetch(s + 7 * ss + c);
            }
            const gemm_vec4 x0 = *(const gemm_vec4_u *)(s + c), x1 = *(const gemm_vec4_u *)(s + ss + c);
            const gemm_vec4 x2 = *(const gemm_vec4_u *)(s + 2 * ss + c), x3 = *(const gemm_vec4_u *)(s + 3 * ss + c);
            const gemm_vec4 lo01 = GEMM_SHUFFLE4(x0, x1, 0, 4, 1, 5), hi01 = GEMM_SHUFFLE4(x0, x1, 2, 6, 3, 7);
            const gemm_vec4 lo23 = GEMM_SHUFFLE4(x2, x3, 0, 4, 1, 5), hi23 = GEMM_SHUFFLE4(x2, x3, 2, 6, 3, 7);
            *(gemm_vec4_u *)(d + c * ds) = GEMM_SHUFFLE4(lo01, lo23, 0, 1, 4, 5);
            *(gemm_vec4_u *)(d + (c + 1) * ds) = GEMM_SHUFFLE4(lo01, lo23, 2, 3, 6, 7);
            *(gemm_vec4_u *)(d + (c + 2) * ds) = GEMM_SHUFFLE4(hi01, hi23, 0, 1, 4, 5);
            *(gemm_vec4_u *)(d + (c + 3) * ds) = GEMM_SHUFFLE4(hi01, hi23, 2, 3, 6, 7);
        }
        for (; c < cols; c++)
            for (int i = 0; i < 4; i++) d[c * ds + i] = s[i * ss + c];
    }
    for (; r < rows; r++)
        for (int c = 0; c < cols; c++) dst[c * ds + r] = src[r * ss + c];
}

// `size` rows (or terms) cut into `parts` whose sizes differ by at most one: the first row of part p.
static inline int gemm_part(int size, int parts, int p) {
    const int base = size / parts, rest = size % parts;
    return p * base + (p < rest ? p : rest);
}

// Packs mc rows and kc columns of op(A), panel after panel, each [kc][rows of the panel]. A transposed A is read along
// its rows, which is the order that hardware prefetches.
static inline void gemm_pack_a(int trans_a, int mc, int kc, const float *A, ptrdiff_t lda, float *dst) {
    const int panels = (mc + GEMM_MR - 1) / GEMM_MR, base = mc / panels, rest = mc % panels;
    for (int p = 0, i0 = 0; p < panels && !trans_a; p++) {
        const int mr = base + (p < rest);
        gemm_transpose(mr, kc, A + i0 * lda, lda, dst + (ptrdiff_t)i0 * kc, mr);
        i0 += mr;
    }
    for (int l = 0; l < kc && trans_a; l++) {
        const float *s = A + l * lda;
        if (l + 8 < kc)
            for (int i = 0; i < mc; i += 16) __builtin_prefetch(s + 8 * lda + i);
        for (int p = 0, i0 = 0; p < panels; p++) {
            const int mr = base + (p < rest);
            float *d = dst + (ptrdiff_t)i0 * kc + l * mr;
            int i = 0;
            for (; i + 4 <= mr; i += 4) *(gemm_vec4_u *)(d + i) = *(const gemm_vec4_u *)(s + i0 + i);
            for (; i < mr; i++) d[i] = s[i0 + i];
            i0 += mr;
        }
    }
}

// Packs kc rows and nr columns of op(B), panel after panel (NR columns, the last one fewer), each [kc][width], width
// the next multiple of the vector width, padded with zeros.
static inline void gemm_pack_b(int trans_b, int kc, int nr, const float *B, ptrdiff_t ldb, float *dst) {
    for (int l = 0; l < kc && !trans_b; l++) {
        const float *s = B + l * ldb;
        int j0 = 0;
        if (l + 8 < kc)
            for (int j = 0; j < nr; j += 16) __builtin_prefetch(s + 8 * ldb + j);
        for (; j0 + GEMM_NR <= nr; j0 += GEMM_NR)
            memcpy(dst + (ptrdiff_t)j0 * kc + l * GEMM_NR, s + j0, GEMM_NR * sizeof(float));
        if (j0 < nr) {
            const int width = (nr - j0 + GEMM_VL - 1) / GEMM_VL * GEMM_VL;
            float *d = dst + (ptrdiff_t)j0 * kc + l * width;
            for (int j = 0; j < width; j++) d[j] = j0 + j < nr ? s[j0 + j] : 0.0f;
        }
    }
    for (int j0 = 0; j0 < nr && trans_b; j0 += GEMM_NR) {
        const int panel = nr - j0 < GEMM_NR ? nr - j0 : GEMM_NR, width = (panel + GEMM_VL - 1) / GEMM_VL * GEMM_VL;
        float *d = dst + (ptrdiff_t)j0 * kc;
        gemm_transpose(panel, kc, B + j0 * ldb, ldb, d, width);
        for (int l = 0; l < kc && panel < width; l++)
            for (int j = panel; j < width; j++) d[l * width + j] = 0;
    }
}

// A matrix of C as the pieces see it: element [i][j] is c[i * rs + j * cs].
typedef struct gemm_out {
    float *c;
    ptrdiff_t rs, cs;
} gemm_out;

// All tiles of mc rows and nc columns. A and B are packed, or, where as or bs is not 0, used in place: A transposed
// with terms `as` apart, B with rows `bs` apart.
static inline void gemm_block(int mc, int nc, int kc, const float *a, ptrdiff_t as, const float *b, ptrdiff_t bs,
                              float alpha, float beta, gemm_out out) {
    const int panels = (mc + GEMM_MR - 1) / GEMM_MR, columns = (nc + GEMM_NR - 1) / GEMM_NR;
    const int base = mc / panels, rest = mc % panels;
    const int rows_first = kc <= 64;  // short sums: write C along its rows; long ones: keep a panel of B in L1
    for (int t = 0, p = 0, q = 0; t < panels * columns; t++) {
        const int i0 = p * base + (p < rest ? p : rest), mr = base + (p < rest), j0 = q * GEMM_NR;
        const int nr = nc - j0 < GEMM_NR ? nc - j0 : GEMM_NR, width = (nr + GEMM_VL - 1) / GEMM_VL * GEMM_VL;
        const float *a_tile = as ? a + i0 : a + (ptrdiff_t)i0 * kc;
        const float *b_tile = bs ? b + j0 : b + (ptrdiff_t)j0 * kc;
        const ptrdiff_t a_step = as ? as : mr;
        const ptrdiff_t b_step = bs ? bs : width;
        gemm_tile(mr, nr, kc, a_tile, a_step, b_tile, b_step, alpha, beta, out.c + i0 * out.rs + j0 * out.cs, out.rs,
                  out.cs);
        if (rows_first) {
            if (++q == columns) {
                q = 0;
                p++;
            }
        } else if (++p == panels) {
            p = 0;
            q++;
        }
    }
}

// The sum of a vector's lanes, left as four partial sums.
GEMM_INLINE gemm_vec4 gemm_fold(gemm_vec x) {
    float lanes[GEMM_VL];
    *(gemm_vec_u *)lanes = x;
    gemm_vec4 sum = *(const gemm_vec4_u *)lanes;
    GEMM_UNROLL
    for (int i = 4; i < GEMM_VL; i += 4) sum += *(const gemm_vec4_u *)(lanes + i);
    return sum;
}

// MR x NR of C = A B^T by sums along k in vectors, without packing; k >= VL. The last k % VL terms come from one more
// load that ends at the row's end, with the lanes that were summed already set to zero.
GEMM_INLINE void gemm_dot(const int MR, const int NR, int k, float alpha, const float *A, ptrdiff_t lda, const float *B,
                          ptrdiff_t ldb, float beta, gemm_out out) {
    gemm_vec acc[GEMM_DOT][GEMM_DOT], av[GEMM_DOT], bv[GEMM_DOT];
    GEMM_UNROLL
    for (int i = 0; i < MR; i++) {
        GEMM_UNROLL
        for (int j = 0; j < NR; j++) acc[i][j] = gemm_splat(0);
    }
    int l = 0;
    for (; l + GEMM_VL <= k; l += GEMM_VL) {
        GEMM_UNROLL
        for (int j = 0; j < NR; j++) bv[j] = *(const gemm_vec_u *)(B + j * ldb + l);
        GEMM_UNROLL
        for (int i = 0; i < MR; i++) {
            av[i] = *(const gemm_vec_u *)(A + i * lda + l);
            GEMM_UNROLL
            for (int j = 0; j < NR; j++) acc[i][j] = GEMM_FMA(av[i], bv[j], acc[i][j]);
        }
    }
    if (l < k) {
        gemm_int fresh;
        for (int x = 0; x < GEMM_VL; x++) fresh[x] = x >= GEMM_VL - (k - l) ? -1 : 0;
        GEMM_UNROLL
        for (int j = 0; j < NR; j++)
            bv[j] = (gemm_vec)((gemm_int)(gemm_vec) * (const gemm_vec_u *)(B + j * ldb + k - GEMM_VL) & fresh);
        GEMM_UNROLL
        for (int i = 0; i < MR; i++) {
            av[i] = (gemm_vec)((gemm_int)(gemm_vec) * (const gemm_vec_u *)(A + i * lda + k - GEMM_VL) & fresh);
            GEMM_UNROLL
            for (int j = 0; j < NR; j++) acc[i][j] = GEMM_FMA(av[i], bv[j], acc[i][j]);
        }
    }
    GEMM_UNROLL
    for (int i = 0; i < MR; i++) {
        gemm_vec4 x[GEMM_DOT];
        GEMM_UNROLL
        for (int j = 0; j < GEMM_DOT; j++) x[j] = gemm_fold(acc[i][j < NR ? j : 0]);
        const gemm_vec4 lo01 = GEMM_SHUFFLE4(x[0], x[1], 0, 4, 1, 5), hi01 = GEMM_SHUFFLE4(x[0], x[1], 2, 6, 3, 7);
        const gemm_vec4 lo23 = GEMM_SHUFFLE4(x[2], x[3], 0, 4, 1, 5), hi23 = GEMM_SHUFFLE4(x[2], x[3], 2, 6, 3, 7);
        const gemm_vec4 s01 = lo01 + hi01, s23 = lo23 + hi23;
        const gemm_vec4 sum = GEMM_SHUFFLE4(s01, s23, 0, 1, 4, 5) + GEMM_SHUFFLE4(s01, s23, 2, 3, 6, 7);
        GEMM_UNROLL
        for (int j = 0; j < NR; j++) {
            float *c = out.c + i * out.rs + j * out.cs;
            *c = alpha * sum[j] + (beta == 0 ? 0.0f : beta * *c);
        }
    }
}

#define GEMM_DOT_CASES(NR)                                                                                          \
    switch (mr) {                                                                                                   \
    case 1: gemm_dot(1, NR, k, alpha, a, lda, b, ldb, beta, tile); break;                                           \
    case 2: gemm_dot(2, NR, k, alpha, a, lda, b, ldb, beta, tile); break;                                           \
    case 3: gemm_dot(3, NR, k, alpha, a, lda, b, ldb, beta, tile); break;                                           \
    default: gemm_dot(4, NR, k, alpha, a, lda, b, ldb, beta, tile); break;                                          \
    }

// One piece of C = A B^T with few rows or few columns. The shorter side is the inner loop, so the longer is read once.
static inline void gemm_dots(int m, int n, int k, float alpha, const float *A, ptrdiff_t lda, const float *B,
                             ptrdiff_t ldb, float beta, gemm_out out) {
    for (int i = 0, j = 0; i < m && j < n;) {
        const int mr = m - i < GEMM_DOT ? m - i : GEMM_DOT;
        const int nr = n - j < GEMM_DOT ? n - j : GEMM_DOT;
        const float *a = A + i * lda, *b = B + j * ldb;
        const gemm_out tile = {out.c + i * out.rs + j * out.cs, out.rs, out.cs};
        if (nr == 4) GEMM_DOT_CASES(4)
        else if (nr == 3) GEMM_DOT_CASES(3)
        else if (nr == 2) GEMM_DOT_CASES(2)
        else GEMM_DOT_CASES(1)
        if (m < n) {
            i += mr;
            if (i == m) {
                i = 0;
                j += nr;
            }
        } else {
            j += nr;
            if (j == n) {
                j = 0;
                i += mr;
            }
        }
    }
}

// One piece of C on one thread. Blocks along k depend on k alone, so every element sees the same order of additions
// whatever the piece.
static inline void gemm_piece(int trans_a, int trans_b, int m, int n, int k, float alpha, const float *A, ptrdiff_t lda,
                              const float *B, ptrdiff_t ldb, float beta, gemm_out out, float *workspace) {
    float *packed_a = workspace, *packed_b = workspace + GEMM_MC * GEMM_KC;
    const int k_blocks = (k + GEMM_KC - 1) / GEMM_KC, m_blocks = (m + GEMM_MC - 1) / GEMM_MC;
    for (int mb = 0; mb < m_blocks; mb++) {
        const int i0 = gemm_part(m, m_blocks, mb), mc = gemm_part(m, m_blocks, mb + 1) - i0;
        for (int kb = 0; kb < k_blocks; kb++) {
            const int l0 = gemm_part(k, k_blocks, kb), kc = gemm_part(k, k_blocks, kb + 1) - l0;
            const float beta_now = kb == 0 ? beta : 1.0f;
            // Few rows or few terms: a panel of B is used too little to be worth a copy. Few columns: likewise for A.
            const int b_in_place = !trans_b && (mc <= 2 * GEMM_MR || kc <= 16);
            const int a_in_place = trans_a && n <= 2 * GEMM_NR;
            const float *a = trans_a ? A + l0 * lda + i0 : A + i0 * lda + l0;
            const ptrdiff_t as = a_in_place ? lda : 0;
            if (!a_in_place) {
                gemm_pack_a(trans_a, mc, kc, a, lda, packed_a);
                a = packed_a;
            }
            int j0 = 0;
            for (; b_in_place && mc <= 2 && out.cs == 1 && j0 + GEMM_WIDE * GEMM_VL <= n; j0 += GEMM_WIDE * GEMM_VL)
                gemm_full_tile(mc, GEMM_WIDE, kc, a, as ? as : mc, B + l0 * ldb + j0, ldb, alpha, beta_now,
                               out.c + i0 * out.rs + j0, out.rs);
            if (b_in_place && j0 < n / GEMM_VL * GEMM_VL) {
                const int nc = n / GEMM_VL * GEMM_VL - j0;
                const gemm_out block = {out.c + i0 * out.rs + j0 * out.cs, out.rs, out.cs};
                gemm_block(mc, nc, kc, a, as, B + l0 * ldb + j0, ldb, alpha, beta_now, block);
                j0 += nc;
            }
            const int group = GEMM_NC * GEMM_KC / kc / GEMM_NR * GEMM_NR;  // columns that fit into packed_b
            for (; j0 < n; j0 += group) {
                const int nc = n - j0 < group ? n - j0 : group;
                const gemm_out block = {out.c + i0 * out.rs + j0 * out.cs, out.rs, out.cs};
                gemm_pack_b(trans_b, kc, nc, trans_b ? B + j0 * ldb + l0 : B + l0 * ldb + j0, ldb, packed_b);
                gemm_block(mc, nc, kc, a, as, packed_b, 0, alpha, beta_now, block);
            }
        }
    }
}
#endif

// Room for `threads` packing buffers. Returns 0, or 1 when memory is short (the old buffers stay).
static inline int gemm_reserve(gemm_context *g, int threads) {
#ifdef USE_OPENBLAS
    g->workspace_threads = threads;
    return 0;
#else
    if (threads <= g->workspace_threads) return 0;
    void *p = malloc((size_t)threads * GEMM_THREAD_FLOATS * sizeof(float) + 64);
    if (!p) return 1;
    free(g->allocation);
    g->allocation = p;
    g->workspace = (float *)((char *)p + (64 - (size_t)p % 64));
    g->workspace_threads = threads;
    return 0;
#endif
}

static inline void gemm_destroy(gemm_context *g) {
    free(g->allocation);
    memset(g, 0, sizeof *g);
}

static inline int gemm_set_precision(gemm_context *g, int precision, char *err, size_t err_size) {
    if (precision != GEMM_FP32) return gemm_error(err, err_size, "a CPU computes in fp32 only, not in tf32 or bf16");
    g->precision = precision;
    return 0;
}

static inline int gemm_create(gemm_context *g, int precision, char *err, size_t err_size) {
    memset(g, 0, sizeof *g);
    if (gemm_set_precision(g, precision, err, err_size)) return 1;
    g->threads = 1;
#ifdef _OPENMP
    g->threads = omp_get_max_threads();
#endif
#ifdef USE_OPENBLAS
    openblas_set_num_threads(1);
#ifdef _OPENMP
    omp_set_num_threads(g->threads);  // OpenBLAS built for OpenMP passes its number on to the whole program
#endif
#endif
    if (gemm_reserve(g, g->threads)) return gemm_error(err, err_size, "no memory for the packing buffers");
    return 0;
}

// Relative cost of the largest of rows x cols pieces: multiply-adds, packing of both operands, and, where pieces cut
// the rows of C, cache lines next to each cut that two cores write or prefetch in turn.
static inline double gemm_grid_cost(gemm_grid s, int m, int n, int k, int cuts_rows) {
    const int unit_m = 4, unit_n = GEMM_VL;
    const double pm = unit_m * (double)(((m + unit_m - 1) / unit_m + s.rows - 1) / s.rows);
    const double pn = unit_n * (double)(((n + unit_n - 1) / unit_n + s.cols - 1) / s.cols);
    return pm * pn + 6 * (pm + pn) + (cuts_rows ? 3200.0 / k * pm : 0);
}

// The grid of pieces for `threads` threads. by_columns: C is stored by columns (its roles were swapped).
static inline gemm_grid gemm_choose_grid(int threads, int m, int n, int k, int by_columns) {
    gemm_grid best = {1, 1};
    double best_cost = gemm_grid_cost(best, m, n, k, 0);
    for (int rows = 1; rows <= threads; rows++) {
        const gemm_grid s = {rows, threads / rows};
        const double cost = gemm_grid_cost(s, m, n, k, (by_columns ? s.rows : s.cols) > 1);
        if (cost < best_cost) {
            best = s;
            best_cost = cost;
        }
    }
    return best;
}

// First index of piece p of `pieces` along a side of `size`, on a multiple of `unit`.
static inline int gemm_cut(int size, int unit, int pieces, int p) {
    const long long units = (size + unit - 1) / unit, at = units * p / pieces * unit;
    return at < size ? (int)at : size;
}

// C = beta C.
static inline void gemm_scale(int m, int n, float beta, float *C, ptrdiff_t ldc) {
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) C[i * ldc + j] = beta == 0 ? 0.0f : beta * C[i * ldc + j];
}

// One product as the pieces see it.
typedef struct gemm_call {
    int trans_a, trans_b, m, n, k;
    float alpha, beta;
    const float *A, *B;
    ptrdiff_t lda, ldb;
    float *C;
    ptrdiff_t rs, cs;  // element [i][j] of C is C[i * rs + j * cs]
    int dots;          // built-in: sums along k in vectors
} gemm_call;

// Rows i0 to i1 and columns j0 to j1 of C, on the calling thread.
static inline void gemm_run(const gemm_call *x, int i0, int i1, int j0, int j1, float *workspace) {
    if (i0 == i1 || j0 == j1) return;
    const int m = i1 - i0, n = j1 - j0;
    const float *A = x->trans_a ? x->A + i0 : x->A + i0 * x->lda;
    const float *B = x->trans_b ? x->B + j0 * x->ldb : x->B + j0;
    float *C = x->C + i0 * x->rs + j0 * x->cs;
#ifdef USE_OPENBLAS
    const CBLAS_TRANSPOSE op_a = x->trans_a ? CblasTrans : CblasNoTrans;
    const CBLAS_TRANSPOSE op_b = x->trans_b ? CblasTrans : CblasNoTrans;
    (void)workspace;
    cblas_sgemm(CblasRowMajor, op_a, op_b, m, n, x->k, x->alpha, A, (int)x->lda, B, (int)x->ldb, x->beta, C,
                (int)x->rs);
#else
    const gemm_out out = {C, x->rs, x->cs};
    if (x->dots) gemm_dots(m, n, x->k, x->alpha, A, x->lda, B, x->ldb, x->beta, out);
    else gemm_piece(x->trans_a, x->trans_b, m, n, x->k, x->alpha, A, x->lda, B, x->ldb, x->beta, out, workspace);
#endif
}

// Below this many flops a parallel region costs more than it saves.
enum { GEMM_PARALLEL_FLOPS = 100000 };

// One product for the pieces; small or narrow ones take other roads with the built-in kernel.
static inline gemm_call gemm_prepare(int trans_a, int trans_b, int m, int n, int k, float alpha, const float *A,
                                     int lda, const float *B, int ldb, float beta, float *C, int ldc) {
    gemm_call x = {trans_a, trans_b, m, n, k, alpha, beta, A, B, lda, ldb, C, ldc, 1, 0};
#ifndef USE_OPENBLAS
    x.dots = !trans_a && trans_b && k >= 2 * GEMM_VL && (m <= 16 || n <= 16);
    if (n <= GEMM_VL / 2 && m > n && !x.dots) {  // few columns: C^T = op(B)^T op(A)^T, so that vectors run along m
        const gemm_call swapped = {!trans_b, !trans_a, n, m, k, alpha, beta, B, A, ldb, lda, C, 1, ldc, 0};
        x = swapped;
    }
#endif
    return x;
}

// Whether a product of this size is worth a team of threads.
static inline int gemm_in_parallel(gemm_context *g, double flops) {
#ifdef _OPENMP
    return g->threads > 1 && flops >= GEMM_PARALLEL_FLOPS && !omp_in_parallel() && gemm_reserve(g, g->threads) == 0;
#else
    (void)g;
    (void)flops;
    return 0;
#endif
}

static inline void gemm(gemm_context *g, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *A,
                        int lda, const float *B, int ldb, float beta, float *C, int ldc) {
    if (m <= 0 || n <= 0) return;
    if (k <= 0 || alpha == 0) {
        if (beta != 1) gemm_scale(m, n, beta, C, ldc);
        return;
    }
    const double flops = 2.0 * m * n * k, start = g->timed ? gemm_clock() : 0;
    const gemm_call x = gemm_prepare(trans_a, trans_b, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc);
    gemm_grid s = {1, 1};
    if (gemm_in_parallel(g, flops)) s = gemm_choose_grid(g->threads, x.m, x.n, x.k, x.cs != 1);
#ifdef _OPENMP
    if (s.rows * s.cols > 1) {
        // The team always has g->threads members, even for fewer pieces: changing its size is expensive.
#pragma omp parallel num_threads(g->threads)
        {
            const int id = omp_get_thread_num(), team = omp_get_num_threads(), unit_m = 4, unit_n = GEMM_VL;
            float *workspace = g->workspace ? g->workspace + (size_t)id * GEMM_THREAD_FLOATS : NULL;
            for (int p = id; p < s.rows * s.cols; p += team) {
                const int r = p / s.cols, c = p % s.cols;
                gemm_run(&x, gemm_cut(x.m, unit_m, s.rows, r), gemm_cut(x.m, unit_m, s.rows, r + 1),
                         gemm_cut(x.n, unit_n, s.cols, c), gemm_cut(x.n, unit_n, s.cols, c + 1), workspace);
            }
        }
    }
#endif
    if (s.rows * s.cols == 1) gemm_run(&x, 0, x.m, 0, x.n, g->workspace);
    if (g->timed) {
        g->seconds += gemm_clock() - start;
        g->flops += flops;
    }
}

// A thread takes whole products, or, where there are few for many threads, equal shares of their rows.
static inline void gemm_batch(gemm_context *g, int count, int trans_a, int trans_b, int m, int n, int k, float alpha,
                              const float *A, int lda, size_t step_a, const float *B, int ldb, size_t step_b,
                              float beta, float *C, int ldc, size_t step_c) {
    const double flops = 2.0 * m * n * k * count, start = g->timed ? gemm_clock() : 0;
    if (m <= 0 || n <= 0 || k <= 0 || alpha == 0 || !gemm_in_parallel(g, flops)) {
        for (int i = 0; i < count; i++) {
            const float *a = A + (size_t)i * step_a, *b = B + (size_t)i * step_b;
            gemm(g, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, C + (size_t)i * step_c, ldc);
        }
        return;
    }
#ifdef _OPENMP
    const int parts = count % g->threads == 0 || count > 8 * g->threads ? 1 : g->threads;
#pragma omp parallel num_threads(g->threads)
    {
        const int id = omp_get_thread_num(), team = omp_get_num_threads();
        float *workspace = g->workspace ? g->workspace + (size_t)id * GEMM_THREAD_FLOATS : NULL;
        const long long pieces = (long long)count * parts;
        const int first = (int)(pieces * id / team), end = (int)(pieces * (id + 1) / team);
        for (int p = first; p < end; p++) {
            const size_t i = (size_t)(p / parts);
            const float *a = A + i * step_a, *b = B + i * step_b;
            float *c = C + i * step_c;
            const gemm_call x = gemm_prepare(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
            const int top = gemm_cut(x.m, 4, parts, p % parts), bottom = gemm_cut(x.m, 4, parts, p % parts + 1);
            gemm_run(&x, top, bottom, 0, x.n, workspace);
        }
    }
#endif
    if (g->timed) {
        g->seconds += gemm_clock() - start;
        g->flops += flops;
    }
}
#endif
