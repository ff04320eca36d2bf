// test_gemm.c -- gemm.h against a triple loop in double precision, for the backend it is compiled with.
//
//     cc -std=c11 -D_GNU_SOURCE -O3 -march=native -fopenmp test/test_gemm.c -lm                    the built-in product
//     cc ... -DUSE_OPENBLAS test/test_gemm.c -lopenblas -lm                                        OpenBLAS
//     nvcc -x cu -arch=native test/test_gemm.c -lcublas                                            cuBLAS
// Every matrix is stored with sentinels before, between and after its rows, which must survive. C holds NaN before
// every product with beta == 0. On a machine without a GPU the CUDA build exits with 77.
#include "../common/gemm.h"
#include "test.h"

enum { MARGIN = 40 };  // sentinels before and after a matrix, in floats

// A stored matrix [rows][ld >= cols] between two margins. On a GPU `device` mirrors `all`.
typedef struct matrix {
    int rows, cols, ld;
    size_t count;  // floats in `all`
    float *all;    // margins, rows and the gaps between rows
    float *host;   // element [0][0]
    float *device; // element [0][0] as gemm sees it
} matrix;

static unsigned long long random_state = 88172645463325252ull;

// Uniform in [-1, 1), by xorshift.
static float random_float(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (float)(random_state >> 40) / 8388608.0f - 1.0f;
}

static float sentinel(size_t i) { return 12345.0f + (float)(i % 97); }

static void *test_alloc(size_t bytes) {
    void *p = malloc(bytes);
    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return p;
}

// Copies host values to where gemm reads them, and back.
static void matrix_upload(matrix *x) {
#ifdef __CUDACC__
    GEMM_CUDA_CHECK(cudaMemcpy(x->device - MARGIN, x->all, x->count * sizeof(float), cudaMemcpyHostToDevice));
#else
    (void)x;
#endif
}
static void matrix_download(matrix *x) {
#ifdef __CUDACC__
    GEMM_CUDA_CHECK(cudaDeviceSynchronize());
    GEMM_CUDA_CHECK(cudaMemcpy(x->all, x->device - MARGIN, x->count * sizeof(float), cudaMemcpyDeviceToHost));
#else
    (void)x;
#endif
}

// A matrix of random values, `gap` floats longer per row than it needs, all else sentinels.
static matrix matrix_create(int rows, int cols, int gap) {
    matrix x = {rows, cols, cols + gap > 0 ? cols + gap : 1, 0, NULL, NULL, NULL};
    x.count = (size_t)rows * (size_t)x.ld + 2 * MARGIN;
    x.all = (float *)test_alloc(x.count * sizeof(float));
    x.host = x.all + MARGIN;
    for (size_t i = 0; i < x.count; i++) x.all[i] = sentinel(i);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) x.host[(size_t)i * x.ld + j] = random_float();
#ifdef __CUDACC__
    GEMM_CUDA_CHECK(cudaMalloc((void **)&x.device, x.count * sizeof(float)));
    x.device += MARGIN;
#else
    x.device = x.host;
#endif
    matrix_upload(&x);
    return x;
}

static void matrix_destroy(matrix *x) {
#ifdef __CUDACC__
    GEMM_CUDA_CHECK(cudaFree(x->device - MARGIN));
#endif
    free(x->all);
}

// Sets every element inside the matrix.
static void matrix_fill(matrix *x, float value) {
    for (int i = 0; i < x->rows; i++)
        for (int j = 0; j < x->cols; j++) x->host[(size_t)i * x->ld + j] = value;
    matrix_upload(x);
}

// Nonzero when every float outside the matrix is still what matrix_create put there.
static int matrix_intact(const matrix *x) {
    for (size_t i = 0; i < x->count; i++) {
        const size_t at = i - MARGIN;
        const int inside = i >= MARGIN && at < (size_t)x->rows * (size_t)x->ld && at % (size_t)x->ld < (size_t)x->cols;
        if (!inside && x->all[i] != sentinel(i)) return 0;
    }
    return 1;
}

static double element(const matrix *x, int transposed, int row, int col) {
    return (double)(transposed ? x->host[(size_t)col * x->ld + row] : x->host[(size_t)row * x->ld + col]);
}

// The operand of a product that has this many rows and columns; it may be stored transposed.
static matrix operand(int transposed, int rows, int cols, int gap) {
    return transposed ? matrix_create(cols, rows, gap) : matrix_create(rows, cols, gap);
}

// want[m][n] in double, and per element a bound on the rounding error of a sum of k products in fp32.
static void reference(int ta, int tb, int m, int n, int k, float alpha, const matrix *A, const matrix *B, float beta,
                      const matrix *C, double *want, double *size) {
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0, abs_sum = 0;
            for (int l = 0; l < k; l++) {
                const double p = element(A, ta, i, l) * element(B, tb, l, j);
                sum += p;
                abs_sum += fabs(p);
            }
            const double c = beta == 0 ? 0 : (double)beta * element(C, 0, i, j);
            want[(size_t)i * n + j] = (double)alpha * sum + c;
            size[(size_t)i * n + j] = fabs((double)alpha) * abs_sum + fabs(c);
        }
}

// One product checked in every element; `rounding` is the relative error of one product (1 ulp, or that of tf32, bf16).
// Returns nonzero on success.
static int check_product(gemm_context *g, int ta, int tb, int m, int n, int k, float alpha, float beta, int gap,
                         double rounding) {
    matrix A = operand(ta, m, k, gap), B = operand(tb, k, n, gap ? gap + 2 : 0);
    matrix C = matrix_create(m, n, gap ? gap + 1 : 0);
    double *want = (double *)test_alloc(sizeof(double) * ((size_t)m * (size_t)n + 1));
    double *size = (double *)test_alloc(sizeof(double) * ((size_t)m * (size_t)n + 1));
    reference(ta, tb, m, n, k, alpha, &A, &B, beta, &C, want, size);
    if (beta == 0) matrix_fill(&C, NAN);
    gemm(g, ta, tb, m, n, k, alpha, A.device, A.ld, B.device, B.ld, beta, C.device, C.ld);
    matrix_download(&A);
    matrix_download(&B);
    matrix_download(&C);
    int bad = 0;
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            const double got = element(&C, 0, i, j), w = want[(size_t)i * n + j];
            const double bound = rounding * (4 + sqrt((double)k)) * size[(size_t)i * n + j];
            if (!(fabs(got - w) <= bound) && !bad++)
                printf("first bad element [%d][%d]: got %.9g, want %.9g, bound %.3g\n", i, j, got, w, bound);
        }
    const int intact = matrix_intact(&A) && matrix_intact(&B) && matrix_intact(&C);
    char what[200];
    snprintf(what, sizeof what, "ta %d tb %d, %d x %d x %d, alpha %g, beta %g, gap %d: %d bad%s", ta, tb, m, n, k,
             (double)alpha, (double)beta, gap, bad, intact ? "" : ", sentinels overwritten");
    CHECK(bad == 0 && intact, what);
    matrix_destroy(&A);
    matrix_destroy(&B);
    matrix_destroy(&C);
    free(want);
    free(size);
    return bad == 0 && intact;
}

// Sizes around the edges of vectors, tiles, cache blocks and thread pieces.
static void test_sizes(gemm_context *g) {
    static const int edge[] = {1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 15, 16, 17, 24, 31, 32, 33, 47, 64, 65};
    const int count = (int)(sizeof edge / sizeof *edge);
    for (int t = 0; t < 4; t++) {
        for (int i = 0; i < count; i++)
            for (int j = 0; j < count; j++) {
                const int k = edge[(3 * i + 7 * j + t) % count];
                check_product(g, t & 1, t >> 1, edge[i], edge[j], k, 1, 0, (i + j) % 4, 1e-7);
            }
        static const int large[][3] = {
            {128, 512, 784}, {128, 10, 512}, {10, 512, 128}, {512, 10, 128},  {129, 100, 257}, {400, 33, 300},
            {385, 65, 255},  {1, 500, 3072}, {1, 10, 513},   {3, 1000, 784},  {500, 1, 300},   {1000, 32, 2},
            {2, 32, 1000},   {32, 2, 1000},  {1000, 2, 32},  {777, 131, 513}, {30, 100, 2000}, {5, 7, 5000},
            {2, 3000, 40}};
        for (size_t s = 0; s < sizeof large / sizeof *large; s++)
            for (int gap = 0; gap < 6; gap += 5) {
                const float alpha = gap ? -0.5f : 1;
                const float beta = gap ? 1.5f : 0;
                check_product(g, t & 1, t >> 1, large[s][0], large[s][1], large[s][2], alpha, beta, gap, 1e-7);
            }
    }
}

static void test_scalars(gemm_context *g) {
    static const float values[] = {0, 1, -1, 0.5f, -2.25f};
    for (int t = 0; t < 4; t++)
        for (int a = 0; a < 5; a++)
            for (int b = 0; b < 5; b++) {
                check_product(g, t & 1, t >> 1, 37, 45, 29, values[a], values[b], 3, 1e-7);
                check_product(g, t & 1, t >> 1, 130, 70, 600, values[a], values[b], 1, 1e-7);
            }
}

// k == 0 scales C, m == 0 or n == 0 does nothing; pointers that are not needed may be NULL.
static void test_empty(gemm_context *g) {
    for (int t = 0; t < 4; t++) {
        check_product(g, t & 1, t >> 1, 13, 21, 0, 1, 0, 2, 1e-7);
        check_product(g, t & 1, t >> 1, 13, 21, 0, 1, 1, 2, 1e-7);
        check_product(g, t & 1, t >> 1, 13, 21, 0, 1, -3, 2, 1e-7);
        check_product(g, t & 1, t >> 1, 0, 21, 5, 1, 0, 2, 1e-7);
        check_product(g, t & 1, t >> 1, 13, 0, 5, 1, 0, 2, 1e-7);
        check_product(g, t & 1, t >> 1, 0, 0, 0, 1, 1, 2, 1e-7);
        gemm(g, t & 1, t >> 1, 0, 8, 8, 1, NULL, 8, NULL, 8, 0, NULL, 8);
        gemm(g, t & 1, t >> 1, 8, 0, 8, 1, NULL, 8, NULL, 8, 0, NULL, 8);
    }
    matrix C = matrix_create(9, 11, 4);
    matrix_fill(&C, NAN);
    gemm(g, 0, 0, 9, 11, 4, 0, NULL, 4, NULL, 11, 0, C.device, C.ld);
    matrix_download(&C);
    int zeros = 0;
    for (int i = 0; i < 9; i++)
        for (int j = 0; j < 11; j++) zeros += element(&C, 0, i, j) == 0;
    CHECK(zeros == 99 && matrix_intact(&C), "alpha = 0, beta = 0 gives zeros without reading A, B or C");
    matrix_destroy(&C);
}

// A NaN or infinity in one element of A or B reaches exactly its row or column of C.
static void test_nonfinite(gemm_context *g) {
    static const int shapes[][3] = {{5, 7, 9}, {33, 50, 40}, {129, 131, 300}, {128, 10, 512}, {1, 100, 700}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int t = 0; t < 4; t++)
            for (int kind = 0; kind < 4; kind++) {
                const int m = shapes[s][0], n = shapes[s][1], k = shapes[s][2], ta = t & 1, tb = t >> 1;
                const int in_b = kind & 1, l = k / 2, row = m - 1, col = n - 1;
                const float value = kind >> 1 ? INFINITY : NAN;
                matrix A = operand(ta, m, k, 3), B = operand(tb, k, n, 1);
                matrix C = matrix_create(m, n, 2);
                if (in_b) B.host[tb ? (size_t)col * B.ld + l : (size_t)l * B.ld + col] = value;
                else A.host[ta ? (size_t)l * A.ld + row : (size_t)row * A.ld + l] = value;
                matrix_upload(&A);
                matrix_upload(&B);
                matrix_fill(&C, NAN);
                gemm(g, ta, tb, m, n, k, 1, A.device, A.ld, B.device, B.ld, 0, C.device, C.ld);
                matrix_download(&C);
                int wrong = 0;
                for (int i = 0; i < m; i++)
                    for (int j = 0; j < n; j++) {
                        const double c = element(&C, 0, i, j);
                        const int reached = in_b ? j == col : i == row;
                        const int special = isnan(value) ? isnan(c) : !isfinite(c);
                        wrong += reached ? !special : !isfinite(c);
                    }
                CHECK(wrong == 0 && matrix_intact(&C),
                      "NaN or infinity reaches its row or column of C and nothing else");
                matrix_destroy(&A);
                matrix_destroy(&B);
                matrix_destroy(&C);
            }
}

// The same call gives the same bits; the built-in backend for every thread count too.
static void test_determinism(gemm_context *g) {
    static const int shapes[][3] = {{128, 512, 784}, {512, 784, 128}, {128, 10, 512}, {10, 512, 128}, {1, 512, 784},
                                    {129, 333, 1000}, {3, 700, 300}, {700, 3, 300}, {1000, 32, 2}, {64, 64, 64}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int t = 0; t < 4; t++) {
            const int m = shapes[s][0], n = shapes[s][1], k = shapes[s][2], ta = t & 1, tb = t >> 1;
            matrix A = operand(ta, m, k, 0), B = operand(tb, k, n, 0);
            matrix C = matrix_create(m, n, 0);
            float *first = (float *)test_alloc(sizeof(float) * (size_t)m * (size_t)n);
            int runs = 2, different = 0;
#ifndef __CUDACC__
            const int threads = g->threads;
#ifndef USE_OPENBLAS
            runs = 6;
#endif
#endif
            for (int r = 0; r < runs; r++) {
#if !defined(__CUDACC__) && !defined(USE_OPENBLAS)
                g->threads = r == 0 ? 1 : r;
#endif
                matrix_fill(&C, NAN);
                gemm(g, ta, tb, m, n, k, 1.25f, A.device, A.ld, B.device, B.ld, 0, C.device, C.ld);
                matrix_download(&C);
                if (r == 0) memcpy(first, C.host, sizeof(float) * (size_t)m * (size_t)n);
                different += memcmp(first, C.host, sizeof(float) * (size_t)m * (size_t)n) != 0;
            }
#ifndef __CUDACC__
            g->threads = threads;
#endif
            CHECK(different == 0, "same bits on repetition (built-in: with 1 to 5 threads)");
            matrix_destroy(&A);
            matrix_destroy(&B);
            matrix_destroy(&C);
            free(first);
        }
}

// `count` products: C by one call, D one by one, both of the same random start, which `before` keeps.
typedef struct batch {
    int count, ta, tb, m, n, k;
    float alpha, beta;
    int step_rows;  // rows between two matrices
    matrix A, B, C, D, before;
    size_t step_a, step_b, step_c;  // floats from one matrix to the next
} batch;

static batch make_batch(int count, int ta, int tb, int m, int n, int k, float alpha, float beta, int gap) {
    const int step_rows = gap ? 3 : 0, padded_m = m + step_rows, padded_n = n + step_rows, padded_k = k + step_rows;
    const int gap_b = gap ? gap + 2 : 0;
    const int gap_c = gap ? gap + 1 : 0;
    batch q;
    q.count = count;
    q.ta = ta;
    q.tb = tb;
    q.m = m;
    q.n = n;
    q.k = k;
    q.alpha = alpha;
    q.beta = beta;
    q.step_rows = step_rows;
    q.A = ta ? matrix_create(count * padded_k, m, gap) : matrix_create(count * padded_m, k, gap);
    q.B = tb ? matrix_create(count * padded_n, k, gap_b) : matrix_create(count * padded_k, n, gap_b);
    q.C = matrix_create(count * padded_m, n, gap_c);
    q.D = matrix_create(count * padded_m, n, gap_c);
    q.step_a = (size_t)(ta ? padded_k : padded_m) * (size_t)q.A.ld;
    q.step_b = (size_t)(tb ? padded_n : padded_k) * (size_t)q.B.ld;
    q.step_c = (size_t)padded_m * (size_t)q.C.ld;
    for (int i = 0; i < q.C.rows; i++)
        for (int j = 0; j < n; j++) {
            float *c = &q.C.host[(size_t)i * (size_t)q.C.ld + (size_t)j];
            if (beta == 0 && i % padded_m < m) *c = NAN;
            q.D.host[(size_t)i * (size_t)q.C.ld + (size_t)j] = *c;
        }
    matrix_upload(&q.C);
    matrix_upload(&q.D);
    q.before = matrix_create(q.C.rows, n, gap_c);
    memcpy(q.before.all, q.C.all, q.C.count * sizeof(float));
    return q;
}

// Counts elements that are far from the sums in double, that differ from D's, and that were written between two
// matrices.
static void compare_batch(const batch *q, int *bad, int *different, int *between) {
    const int m = q->m, n = q->n, k = q->k;
    const size_t bytes = sizeof(double) * (size_t)m * (size_t)n;
    double *want = (double *)test_alloc(bytes), *size = (double *)test_alloc(bytes);
    for (int b = 0; b < q->count; b++) {
        matrix A = q->A, B = q->B, C = q->before;
        A.host += (size_t)b * q->step_a;
        B.host += (size_t)b * q->step_b;
        C.host += (size_t)b * q->step_c;
        reference(q->ta, q->tb, m, n, k, q->alpha, &A, &B, q->beta, &C, want, size);
        for (int i = 0; i < m + q->step_rows; i++)
            for (int j = 0; j < n; j++) {
                const size_t at = (size_t)b * q->step_c + (size_t)i * (size_t)C.ld + (size_t)j;
                const size_t w = (size_t)i * (size_t)n + (size_t)j;
                const float got = q->C.host[at];
                if (i >= m) {
                    *between += got != q->before.host[at];
                } else {
                    *bad += !(fabs((double)got - want[w]) <= 1e-7 * (4 + sqrt((double)k)) * size[w]);
                    *different += got != q->D.host[at];
                }
            }
    }
    free(want);
    free(size);
}

// `count` products at once: the same bits as one by one (cuBLAS may choose another kernel for a batch: up to rounding),
// near the sums in double, and nothing between the matrices is touched.
static void check_batch(gemm_context *g, int count, int ta, int tb, int m, int n, int k, float alpha, float beta,
                        int gap) {
    batch q = make_batch(count, ta, tb, m, n, k, alpha, beta, gap);
    gemm_batch(g, count, ta, tb, m, n, k, alpha, q.A.device, q.A.ld, q.step_a, q.B.device, q.B.ld, q.step_b, beta,
               q.C.device, q.C.ld, q.step_c);
    for (size_t i = 0; i < (size_t)count; i++) {
        const float *a = q.A.device + i * q.step_a, *b = q.B.device + i * q.step_b;
        gemm(g, ta, tb, m, n, k, alpha, a, q.A.ld, b, q.B.ld, beta, q.D.device + i * q.step_c, q.D.ld);
    }
    matrix_download(&q.A);
    matrix_download(&q.B);
    matrix_download(&q.C);
    matrix_download(&q.D);
    int bad = 0, different = 0, between = 0;
    compare_batch(&q, &bad, &different, &between);
#if defined(__CUDACC__)
    different = 0;
#elif defined(USE_OPENBLAS)
    if (g->threads > 1) different = 0;  // its bits may depend on how a product is cut
#endif
    const int intact = matrix_intact(&q.A) && matrix_intact(&q.B) && matrix_intact(&q.C);
    char what[240];
    snprintf(what, sizeof what,
             "batch of %d, ta %d tb %d, %d x %d x %d, alpha %g, beta %g, gap %d: %d bad, %d not as one by one, "
             "%d between%s",
             count, ta, tb, m, n, k, (double)alpha, (double)beta, gap, bad, different, between,
             intact ? "" : ", sentinels overwritten");
    CHECK(bad == 0 && different == 0 && between == 0 && intact, what);
    matrix_destroy(&q.A);
    matrix_destroy(&q.B);
    matrix_destroy(&q.C);
    matrix_destroy(&q.D);
    matrix_destroy(&q.before);
}

// Batches of few and of many products, small ones and such that are worth several threads.
static void test_batches(gemm_context *g) {
    static const int counts[] = {1, 2, 5, 36};
    static const int shapes[][3] = {{1, 1, 1},    {7, 5, 3},    {13, 17, 9},  {33, 31, 47},
                                    {64, 64, 64}, {3, 130, 65}, {121, 5, 77}, {50, 66, 0}};
    for (int s = 0; s < 8; s++)
        for (int c = 0; c < 4; c++)
            for (int t = 0; t < 4; t++)
                for (int k = 0; k < 3; k++) {
                    const float alpha = k == 2 ? -0.5f : 1, beta = (float)(k > 0);
                    check_batch(g, counts[c], t & 1, t >> 1, shapes[s][0], shapes[s][1], shapes[s][2], alpha, beta,
                                k == 1 ? 3 : 0);
                }
    for (int t = 0; t < 4; t++) {  // work for every thread, shares that are not whole products
        check_batch(g, 5, t & 1, t >> 1, 150, 130, 90, 1, 0, 1);
        check_batch(g, 1, t & 1, t >> 1, 150, 130, 90, 1, 1, 1);
        check_batch(g, 36, t & 1, t >> 1, 61, 67, 70, 1, 0, 2);
        check_batch(g, 37, t & 1, t >> 1, 61, 67, 70, 2, 1, 0);
    }
    gemm_batch(g, 0, 0, 0, 8, 8, 8, 1, NULL, 8, 0, NULL, 8, 0, 0, NULL, 8, 0);
    CHECK(1, "a batch of nothing");
#ifndef __CUDACC__
    matrix A = matrix_create(36 * 40, 40, 0), C = matrix_create(36 * 40, 40, 0);
    g->timed = 1;
    g->flops = 0;
    gemm_batch(g, 36, 0, 0, 40, 40, 40, 1, A.device, 40, 1600, A.device, 40, 1600, 0, C.device, 40, 1600);
    CHECK(g->flops == 36 * 2.0 * 40 * 40 * 40, "flops of a batch");
    g->timed = 0;
    g->flops = g->seconds = 0;
    matrix_destroy(&A);
    matrix_destroy(&C);
#endif
}

// `timed` counts flops and seconds; without it nothing is counted. Unknown precisions are refused with a message.
static void test_context(gemm_context *g) {
    char err[200] = "";
    gemm_context other;
    CHECK(g->seconds == 0 && g->flops == 0, "nothing is counted while timed is 0");
    g->timed = 1;
    check_product(g, 0, 1, 64, 48, 80, 1, 0, 0, 1e-7);
    CHECK(g->flops == 2.0 * 64 * 48 * 80, "flops of one product");
    CHECK(g->seconds > 0 && g->seconds < 60, "seconds of one product");
    g->timed = 0;
    g->seconds = 0;
    g->flops = 0;
    CHECK(gemm_create(&other, 77, err, sizeof err) != 0 && strlen(err) > 10, "an unknown precision is refused");
    gemm_destroy(&other);
    gemm_destroy(&other);
    int status = gemm_set_precision(g, 77, err, sizeof err);
    CHECK(status != 0 && g->precision == GEMM_FP32, "an unknown precision is not set");
    CHECK(gemm_set_precision(g, GEMM_FP32, NULL, 0) == 0 && g->precision == GEMM_FP32, "fp32 can always be set");
    check_product(g, 0, 1, 64, 48, 80, 1, 0, 0, 1e-7);
    CHECK(strlen(gemm_backend()) > 3, "the backend has a name");
#ifdef __CUDACC__
    static const struct { int precision; double rounding; } modes[] = {{GEMM_TF32, 1e-3}, {GEMM_BF16, 8e-3}};
    for (int i = 0; i < 2; i++) {
        CHECK(gemm_create(&other, modes[i].precision, err, sizeof err) == 0, err);
        for (int t = 0; t < 4; t++) {
            check_product(&other, t & 1, t >> 1, 128, 512, 784, 1, 0, 0, modes[i].rounding);
            check_product(&other, t & 1, t >> 1, 33, 65, 129, 0.5f, 1.5f, 3, modes[i].rounding);
        }
        const cublasHandle_t handle = other.handle;
        const int set = gemm_set_precision(&other, GEMM_FP32, err, sizeof err);
        CHECK(set == 0 && other.handle == handle, "fp32, with the same handle");
        check_product(&other, 0, 1, 128, 512, 784, 1, 0, 0, 1e-7);
        gemm_destroy(&other);
    }
    cudaStream_t stream;
    GEMM_CUDA_CHECK(cudaStreamCreate(&stream));
    gemm_set_stream(g, stream);
    check_product(g, 0, 1, 128, 512, 784, 1, 0, 0, 1e-7);
    gemm_set_stream(g, 0);
    GEMM_CUDA_CHECK(cudaStreamDestroy(stream));
#else
    CHECK(gemm_create(&other, GEMM_TF32, err, sizeof err) != 0, "tf32 is refused on a CPU");
    CHECK(gemm_create(&other, GEMM_BF16, NULL, 0) != 0, "bf16 is refused on a CPU, message or not");
    status = gemm_set_precision(g, GEMM_TF32, err, sizeof err);
    CHECK(status != 0 && g->precision == GEMM_FP32, "tf32 is not set on a CPU");
#endif
}

#if !defined(__CUDACC__) && defined(_OPENMP)
// Called inside a parallel region, each thread with a context of its own.
static void test_nested(void) {
    int failures = 0;
#pragma omp parallel for num_threads(3) reduction(+ : failures)
    for (int i = 0; i < 6; i++) {
        gemm_context g;
        if (gemm_create(&g, GEMM_FP32, NULL, 0)) {
            failures++;
            continue;
        }
        enum { N = 96 };
        float *x = (float *)test_alloc(sizeof(float) * N * N), *y = (float *)test_alloc(sizeof(float) * N * N);
        for (int j = 0; j < N * N; j++) x[j] = (float)(j % (i + 2));
        gemm(&g, 0, 0, N, N, N, 1, x, N, x, N, 0, y, N);
        for (int r = 0; r < N; r++)
            for (int c = 0; c < N; c++) {
                double sum = 0;
                for (int l = 0; l < N; l++) sum += (double)x[r * N + l] * x[l * N + c];
                failures += sum != (double)y[r * N + c];  // small integers: exact
            }
        free(x);
        free(y);
        gemm_destroy(&g);
    }
    CHECK(failures == 0, "products inside a parallel region");
}
#endif

int main(void) {
    char err[200] = "";
    gemm_context g;
#ifdef __CUDACC__
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        test_skip("no GPU: cuBLAS not tested");
        test_summary();
        return 77;
    }
#endif
    if (!CHECK(gemm_create(&g, GEMM_FP32, err, sizeof err) == 0, err)) return test_summary();
    printf("backend: %s\n", gemm_backend());
    test_context(&g);
    test_sizes(&g);
    test_scalars(&g);
    test_empty(&g);
    test_nonfinite(&g);
    test_determinism(&g);
#ifdef __CUDACC__
    test_batches(&g);
#else
    const int threads = g.threads;
    for (g.threads = 1; g.threads <= 2; g.threads++) test_batches(&g);
    g.threads = threads;
#endif
#if !defined(__CUDACC__) && defined(_OPENMP)
    test_nested();
    g.threads = g.threads > 1 ? 1 : 3;
    test_scalars(&g);
#endif
    gemm_destroy(&g);
    return test_summary();
}
