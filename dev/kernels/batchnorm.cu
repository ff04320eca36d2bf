// batchnorm.cu -- BatchNorm in training mode with the ReLU behind it, forward and backward.
//
// Shapes: z [rows][cols] (a convolution's output in NHWC: rows = images * height * width, cols = channels); mean, rstd,
// gamma, beta [cols]; fp32. Statistics run down the columns, as the bias gradient does.
//     batchnorm_forward     mean[c], rstd[c] = 1 / sqrt(variance + 1e-5), y = relu(gamma (z - mean) rstd + beta)
//     batchnorm_backward    from d, the gradient of y: d = 0 where y <= 0, in place (a shortcut needs it, too);
//                           dbeta[c] = sum d, dgamma[c] = sum d xhat with xhat = (z - mean) rstd,
//                           dz = gamma rstd (d - dbeta / rows - xhat dgamma / rows)
// Bytes: the statistics need all of z before the first y can be written, so what does not fit into the cache is read
// twice: forward 12 rows cols (z, z, y), backward 28 rows cols (d, y, z in and d out; d, z in and dz out). About ten
// operations per element: memory-bound. What the variants differ in is the number of passes, and what happens to the
// digits.
//
// Forward:
//  1 columns          A thread walks down its column three times: mean, variance, result. Coalesced, but only cols
//                     threads.
//  2 two_pass         Chunks of 32 rows, summed in rounds (bias_gradient.cu; column_sums() of layers.cuh): sum z, then
//                     sum (z - mean)^2, then the result, then ReLU by itself: exact, but 6 accesses per element instead
//                     of 3.
//  3 welford          Mean and sum of squared deviations of a chunk in one pass over it by Welford's recurrence; two
//                     chunks merge by Chan's rule. z is read twice in all. A division per element, and each step waits
//                     for the one before.
//  4 shifted          Sums of z - z[0] and of its square: as cheap as the naive sums of z and z^2, without their
//                     cancellation where the mean is large, since any value of the column is as good as its mean for
//                     that purpose. The first of its kernels is the trainers' own, bn_moments_kernel of layers.cuh.
//  5 shifted_fused    ReLU in the same kernel as the normalisation: one access less in, one less out.
//    layers.cuh       bn_statistics() and bn_relu() of common/layers.cuh, which the trainers use: variant 5.
// Backward:
//  1 separate         Mask and sum of d, as for a bias; then sum of d xhat; then the result: d and z are read once
//                     more.
//  2 fused            Mask and both sums in one pass; then the result: 28 bytes per element.
//    layers.cuh       bn_relu_backward() of common/layers.cuh: variant 2.
#include "dev/kernels/kernels.h"
#include "common/rng.h"
#include "common/dataset.h"
#include "common/layers.cuh"

enum { CHUNK = ROW_CHUNK };
enum { Z, GAMMA, BETA, Y, MEAN, RSTD, PART, SUMS };                        // forward
enum { B_D, B_Y, B_Z, B_MEAN, B_RSTD, B_GAMMA, B_DZ, B_DGAMMA, B_DBETA, B_PART, B_SUMS };  // backward

// z around a mean that is large for some columns: sums of squares without care lose all digits there.
static void draw_columns(double *z, int rows, int cols) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            double *v = &z[(size_t)r * (size_t)cols + (size_t)c];
            *v = (double)(float)(*v + (c % 5 == 3 ? 100.0 : 0.1 * (c % 7)));
        }
}

// Mean and 1 / sqrt(variance + eps) of every column in double, and y before the ReLU.
static void normalise(const double *z, const double *gamma, const double *beta, int rows, int cols, double *mean,
                      double *rstd, double *y) {
    for (int c = 0; c < cols; c++) {
        double sum = 0, squares = 0;
        for (int r = 0; r < rows; r++) sum += z[(size_t)r * (size_t)cols + (size_t)c];
        mean[c] = sum / rows;
        for (int r = 0; r < rows; r++) squares += pow(z[(size_t)r * (size_t)cols + (size_t)c] - mean[c], 2);
        rstd[c] = 1 / sqrt(squares / rows + (double)BN_EPS);
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            const size_t i = (size_t)r * (size_t)cols + (size_t)c;
            y[i] = gamma[c] * (z[i] - mean[c]) * rstd[c] + beta[c];
        }
}

static size_t scratch_floats(int rows, int cols) { return column_scratch(rows, cols) + 8 * (size_t)cols; }

// ------------------------------------------------------------------------------------------------------------- forward

static void forward_problem(problem *p) {
    const size_t rows = (size_t)p->dim[0], cols = (size_t)p->dim[1];
    draw_columns(input(p, "z", F32, rows * cols, -1, 1), p->dim[0], p->dim[1]);
    input(p, "gamma", F32, cols, 0.5, 1.5);
    input(p, "beta", F32, cols, -1, 1);
    // z around 100 is given to 4e-6 itself. One row: variance 0, and rstd multiplies every error by 316.
    output(p, "y", F32, rows * cols, 2e-5, rows == 1 ? 3e-3 : 8e-5);
    output(p, "mean", F32, cols, 1e-6, 1e-6);
    output(p, "rstd", F32, cols, 5e-5, 1e-6);
    scratch(p, "partial sums", F32, scratch_floats(p->dim[0], p->dim[1]));
    scratch(p, "sums", F32, 4 * cols);
    p->bytes = 12.0 * (double)(rows * cols);
    p->flops = 10.0 * (double)(rows * cols);
}
static void forward_reference(problem *p) {
    const size_t n = (size_t)p->dim[0] * (size_t)p->dim[1];
    double *y = wanted(p, Y);
    normalise(given(p, Z), given(p, GAMMA), given(p, BETA), p->dim[0], p->dim[1], wanted(p, MEAN), wanted(p, RSTD), y);
    for (size_t i = 0; i < n; i++) y[i] = fmax(y[i], 0.0);
}

static __device__ __forceinline__ float affine(float z, float mean, float rstd, float gamma, float beta) {
    return gamma * ((z - mean) * rstd) + beta;
}

static __global__ void whole_columns(float *y, float *mean, float *rstd, const float *z, const float *gamma,
                                     const float *beta, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    const float shift = z[c];
    float sum = 0.0f, squares = 0.0f;
    for (int r = 0; r < rows; r++) sum += z[(size_t)r * cols + c] - shift;
    const float m = shift + sum / (float)rows;
    for (int r = 0; r < rows; r++) {
        const float v = z[(size_t)r * cols + c] - m;
        squares += v * v;
    }
    const float s = 1.0f / sqrtf(squares / (float)rows + BN_EPS);
    for (int r = 0; r < rows; r++) {
        const float v = affine(z[(size_t)r * cols + c], m, s, gamma[c], beta[c]);
        y[(size_t)r * cols + c] = v <= 0.0f ? 0.0f : v;
    }
    mean[c] = m;
    rstd[c] = s;
}
static void run_columns(const call *c) {
    whole_columns<<<ceil_div(c->dim[1], c->block), c->block>>>(FLOATS(c, Y), FLOATS(c, MEAN), FLOATS(c, RSTD),
                                                               FLOATS(c, Z), FLOATS(c, GAMMA), FLOATS(c, BETA),
                                                               c->dim[0], c->dim[1]);
}

// part[chunk][c] = sum of (z - shift)^power over the chunk; shift [cols], or NULL for the first row.
static __global__ void moments(float *__restrict__ part, const float *__restrict__ z, const float *__restrict__ shift,
                               int power, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const float s = shift ? shift[c] : z[c];
    z += (size_t)first * cols;
    float sum = 0.0f;
    UNROLL for (int k = 0; k < CHUNK; k++) {
        const float v = (k <= last ? 1.0f : 0.0f) * (z[min(k, last) * cols + c] - s);
        sum += power == 2 ? v * v : v;
    }
    part[(size_t)blockIdx.y * cols + c] = sum;
}
static __global__ void finish_mean(float *mean, const float *sums, const float *z, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < cols) mean[c] = z[c] + sums[c] / (float)rows;
}
static __global__ void finish_rstd(float *rstd, const float *sums, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < cols) rstd[c] = 1.0f / sqrtf(sums[c] / (float)rows + BN_EPS);
}
// y = gamma (z - mean) rstd + beta, through ReLU if relu is set; 32 rows per thread.
static __global__ void apply(float *__restrict__ y, const float *__restrict__ z, const float *__restrict__ mean,
                             const float *__restrict__ rstd, const float *__restrict__ gamma,
                             const float *__restrict__ beta, int relu, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    z += start;
    y += start;
    const float m = mean[c], s = rstd[c], g = gamma[c], b = beta[c];
    UNROLL for (int k = 0; k < CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float v = affine(z[i], m, s, g, b);
        y[i] = relu && v <= 0.0f ? 0.0f : v;
    }
}
static __global__ void relu_in_place(float *y, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = BLOCK_ROW;
    if (c >= cols || r >= rows) return;
    float *row = y + (size_t)r * cols;
    row[c] = row[c] <= 0.0f ? 0.0f : row[c];
}

static dim3 chunk_grid(const call *c) { return dim3(ceil_div(c->dim[1], c->block), ceil_div(c->dim[0], CHUNK)); }
static void run_apply(const call *c, int relu) {
    apply<<<chunk_grid(c), c->block>>>(FLOATS(c, Y), FLOATS(c, Z), FLOATS(c, MEAN), FLOATS(c, RSTD), FLOATS(c, GAMMA),
                                       FLOATS(c, BETA), relu, c->dim[0], c->dim[1]);
    if (relu) return;
    const dim3 grid = row_grid(ceil_div(c->dim[1], c->block), c->dim[0]);
    relu_in_place<<<grid, c->block>>>(FLOATS(c, Y), c->dim[0], c->dim[1]);
}

static void run_two_pass(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1], chunks = ceil_div(rows, CHUNK), blocks = ceil_div(cols, c->block);
    float *part = FLOATS(c, PART), *sums = FLOATS(c, SUMS);
    moments<<<chunk_grid(c), c->block>>>(part, FLOATS(c, Z), nullptr, 1, rows, cols);
    column_sums(sums, part, chunks, cols);
    finish_mean<<<blocks, c->block>>>(FLOATS(c, MEAN), sums, FLOATS(c, Z), rows, cols);
    moments<<<chunk_grid(c), c->block>>>(part, FLOATS(c, Z), FLOATS(c, MEAN), 2, rows, cols);
    column_sums(sums, part, chunks, cols);
    finish_rstd<<<blocks, c->block>>>(FLOATS(c, RSTD), sums, rows, cols);
    run_apply(c, 0);
}

// Count, mean and sum of squared deviations of a set of numbers.
typedef struct spread {
    float n, mean, squares;
} spread;
static __device__ __forceinline__ spread merge(spread a, spread b) {  // Chan, Golub, LeVeque
    spread r;
    r.n = a.n + b.n;
    const float delta = b.mean - a.mean, share = b.n / fmaxf(r.n, 1.0f);
    r.mean = a.mean + delta * share;
    r.squares = a.squares + b.squares + delta * delta * a.n * share;
    return r;
}
// part[chunk][0..1][c] = mean and squares of a chunk of rows, by Welford's recurrence.
static __global__ void welford_chunks(float *__restrict__ part, const float *__restrict__ z, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    z += (size_t)first * cols;
    float mean = 0.0f, squares = 0.0f;
    UNROLL for (int k = 0; k < CHUNK; k++) {
        const float counts = k <= last ? 1.0f : 0.0f, v = z[min(k, last) * cols + c];
        const float delta = counts * (v - mean);
        mean += delta * (1.0f / (float)(k + 1));
        squares += delta * (v - mean);
    }
    float *out = part + 2 * (size_t)blockIdx.y * cols;
    out[c] = mean;
    out[cols + c] = squares;
}
// Merges the chunks of a column in order: a thread takes every lanes-th, then the lanes meet in shared memory.
enum { MERGERS = 8 };
static __global__ void welford_finish(float *mean, float *rstd, const float *part, int chunks, int rows, int cols) {
    __shared__ spread found[MERGERS][32];
    const int lane = threadIdx.x, y = threadIdx.y, c = blockIdx.x * 32 + lane;
    spread all = {0.0f, 0.0f, 0.0f};
    for (int i = y; i < chunks && c < cols; i += MERGERS) {
        const float *in = part + 2 * (size_t)i * cols;
        const spread one = {(float)min((int)CHUNK, rows - i * CHUNK), in[c], in[cols + c]};
        all = merge(all, one);
    }
    found[y][lane] = all;
    __syncthreads();
    if (y > 0 || c >= cols) return;
    for (int i = 1; i < MERGERS; i++) all = merge(all, found[i][lane]);
    mean[c] = all.mean;
    rstd[c] = 1.0f / sqrtf(all.squares / (float)rows + BN_EPS);
}
static void run_welford(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1];
    welford_chunks<<<chunk_grid(c), c->block>>>(FLOATS(c, PART), FLOATS(c, Z), rows, cols);
    welford_finish<<<ceil_div(cols, 32), dim3(32, MERGERS)>>>(
        FLOATS(c, MEAN), FLOATS(c, RSTD), FLOATS(c, PART), ceil_div(rows, CHUNK), rows, cols);
    run_apply(c, 0);
}

static __global__ void shifted_finish(float *mean, float *rstd, const float *sums, const float *z, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    const float n = (float)rows, off = sums[c] / n;
    mean[c] = z[c] + off;
    rstd[c] = 1.0f / sqrtf(fmaxf(sums[cols + c] - sums[c] * off, 0.0f) / n + BN_EPS);
}
static void shifted_statistics(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1];
    bn_moments_kernel<<<chunk_grid(c), c->block>>>(FLOATS(c, PART), FLOATS(c, Z), rows, cols);
    column_sums(FLOATS(c, SUMS), FLOATS(c, PART), ceil_div(rows, CHUNK), 2 * cols);
    shifted_finish<<<ceil_div(cols, c->block), c->block>>>(
        FLOATS(c, MEAN), FLOATS(c, RSTD), FLOATS(c, SUMS), FLOATS(c, Z), rows, cols);
}
static void run_shifted(const call *c) {
    shifted_statistics(c);
    run_apply(c, 0);
}
static void run_shifted_fused(const call *c) {
    shifted_statistics(c);
    run_apply(c, 1);
}

static void run_layers(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1];
    bn_statistics(FLOATS(c, MEAN), FLOATS(c, RSTD), nullptr, nullptr, FLOATS(c, Z), nullptr, FLOATS(c, PART), rows,
                  cols, MODE_PROBE);
    bn_relu(FLOATS(c, Y), FLOATS(c, Z), nullptr, FLOATS(c, MEAN), FLOATS(c, RSTD), FLOATS(c, GAMMA), FLOATS(c, BETA),
            rows, cols, 1);
}

static const variant forward_variants[] = {
    {"columns", "a thread walks down its column three times", run_columns, FP32, 0, {32, 64, 128}, NULL, 4},
    {"two_pass", "mean, then variance, in chunks of rows; ReLU apart", run_two_pass, FP32, 0, {64, 128, 256}, NULL, 0},
    {"welford", "mean and variance in one pass, chunks merged", run_welford, FP32, 0, {64, 128, 256}, NULL, 0},
    {"shifted", "sums of z - z[0] and of its square", run_shifted, FP32, 0, {64, 128, 256}, NULL, 0},
    {"shifted_fused", "ReLU in the kernel that normalises", run_shifted_fused, FP32, 0, {64, 128, 256}, NULL, 0},
    {"layers.cuh", "what the trainers use", run_layers, FP32, 0, {0}, NULL, 0},
};

// ------------------------------------------------------------------------------------------------------------ backward

static void backward_problem(problem *p) {
    const int rows = p->dim[0], cols = p->dim[1];
    const size_t n = (size_t)rows * (size_t)cols;
    in_place(p, "d", F32, n, -1, 1, 0, 0);
    double *y = input(p, "y", F32, n, -1, 1), *z = input(p, "z", F32, n, -1, 1);
    double *mean = input(p, "mean", F32, (size_t)cols, 0, 1), *rstd = input(p, "rstd", F32, (size_t)cols, 0, 1);
    double *gamma = input(p, "gamma", F32, (size_t)cols, 0.5, 1.5);
    double *zero = (double *)allocate((size_t)cols * sizeof(double));
    normalise(z, gamma, zero, rows, cols, mean, rstd, y);
    for (int c = 0; c < cols; c++) {
        mean[c] = (double)(float)mean[c];
        rstd[c] = (double)(float)rstd[c];
    }
    for (size_t i = 0; i < n; i++) y[i] = (double)(float)fmax(y[i], 0.0);
    free(zero);
    output(p, "dz", F32, n, 2e-5, rows == 1 ? 2e-4 : 2e-6);
    output(p, "dgamma", F32, (size_t)cols, 1e-5, 1e-6 * sqrt((double)rows));
    output(p, "dbeta", F32, (size_t)cols, 1e-5, 1e-6 * sqrt((double)rows));
    scratch(p, "partial sums", F32, scratch_floats(rows, cols));
    scratch(p, "sums", F32, 4 * (size_t)cols);
    p->bytes = 28.0 * (double)n;
    p->flops = 15.0 * (double)n;
}
static void backward_reference(problem *p) {
    const size_t rows = (size_t)p->dim[0], cols = (size_t)p->dim[1];
    const double *mean = given(p, B_MEAN), *rstd = given(p, B_RSTD), *z = given(p, B_Z);
    double *d = wanted(p, B_D);
    for (size_t i = 0; i < rows * cols; i++) {
        const size_t c = i % cols;
        d[i] = given(p, B_Y)[i] > 0 ? given(p, B_D)[i] : 0;
        wanted(p, B_DBETA)[c] += d[i];
        wanted(p, B_DGAMMA)[c] += d[i] * (z[i] - mean[c]) * rstd[c];
    }
    for (size_t i = 0; i < rows * cols; i++) {
        const size_t c = i % cols;
        const double n = (double)rows, xhat = (z[i] - mean[c]) * rstd[c];
        wanted(p, B_DZ)[i] =
            given(p, B_GAMMA)[c] * rstd[c] * (d[i] - wanted(p, B_DBETA)[c] / n - xhat * wanted(p, B_DGAMMA)[c] / n);
    }
}

static __global__ void add_products(float *__restrict__ part, const float *__restrict__ d, const float *__restrict__ z,
                                    const float *__restrict__ mean, const float *__restrict__ rstd, int rows,
                                    int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    d += start;
    z += start;
    const float m = mean[c], s = rstd[c];
    float sum = 0.0f;
    UNROLL for (int k = 0; k < CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        sum += (k <= last ? 1.0f : 0.0f) * d[i] * ((z[i] - m) * s);
    }
    part[(size_t)blockIdx.y * cols + c] = sum;
}
static __global__ void backward_apply(float *__restrict__ dz, const float *__restrict__ d, const float *__restrict__ z,
                                      const float *__restrict__ mean, const float *__restrict__ rstd,
                                      const float *__restrict__ gamma, const float *__restrict__ dgamma,
                                      const float *__restrict__ dbeta, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    dz += start;
    d += start;
    z += start;
    const float n = (float)rows, m = mean[c], s = rstd[c], g = gamma[c] * s, b = dbeta[c] / n, a = dgamma[c] / n;
    UNROLL for (int k = 0; k < CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        dz[i] = g * (d[i] - (b + (z[i] - m) * s * a));
    }
}
static void run_backward_apply(const call *c) {
    backward_apply<<<chunk_grid(c), c->block>>>(FLOATS(c, B_DZ), FLOATS(c, B_D), FLOATS(c, B_Z), FLOATS(c, B_MEAN),
                                                FLOATS(c, B_RSTD), FLOATS(c, B_GAMMA), FLOATS(c, B_DGAMMA),
                                                FLOATS(c, B_DBETA), c->dim[0], c->dim[1]);
}
static void run_separate(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1];
    float *part = FLOATS(c, B_PART);
    bias_relu_backward(FLOATS(c, B_D), FLOATS(c, B_Y), FLOATS(c, B_DBETA), part, rows, cols, 1);
    add_products<<<chunk_grid(c), c->block>>>(
        part, FLOATS(c, B_D), FLOATS(c, B_Z), FLOATS(c, B_MEAN), FLOATS(c, B_RSTD), rows, cols);
    column_sums(FLOATS(c, B_DGAMMA), part, ceil_div(rows, CHUNK), cols);
    run_backward_apply(c);
}

// Masks d and adds both sums of a chunk: part[chunk][0..1][c].
static __global__ void mask_and_sums(float *__restrict__ part, float *__restrict__ d, const float *__restrict__ y,
                                     const float *__restrict__ z, const float *__restrict__ mean,
                                     const float *__restrict__ rstd, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    y += start;
    d += start;
    z += start;
    const float m = mean[c], s = rstd[c];
    float sum = 0.0f, products = 0.0f;
    UNROLL for (int k = 0; k < CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float v = y[i] > 0.0f ? d[i] : 0.0f;
        const float counted = (k <= last ? 1.0f : 0.0f) * v;
        d[i] = v;
        sum += counted;
        products += counted * ((z[i] - m) * s);
    }
    float *out = part + 2 * (size_t)blockIdx.y * cols;
    out[c] = sum;
    out[cols + c] = products;
}
static __global__ void split_sums(float *dbeta, float *dgamma, const float *sums, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < cols) {
        dbeta[c] = sums[c];
        dgamma[c] = sums[cols + c];
    }
}
static void run_fused(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1];
    float *part = FLOATS(c, B_PART), *sums = FLOATS(c, B_SUMS);
    mask_and_sums<<<chunk_grid(c), c->block>>>(
        part, FLOATS(c, B_D), FLOATS(c, B_Y), FLOATS(c, B_Z), FLOATS(c, B_MEAN), FLOATS(c, B_RSTD), rows, cols);
    column_sums(sums, part, ceil_div(rows, CHUNK), 2 * cols);
    split_sums<<<ceil_div(cols, c->block), c->block>>>(FLOATS(c, B_DBETA), FLOATS(c, B_DGAMMA), sums, cols);
    run_backward_apply(c);
}
static void run_layers_backward(const call *c) {
    bn_relu_backward(FLOATS(c, B_DZ), FLOATS(c, B_D), FLOATS(c, B_Y), FLOATS(c, B_Z), FLOATS(c, B_MEAN),
                     FLOATS(c, B_RSTD), FLOATS(c, B_GAMMA), FLOATS(c, B_DGAMMA), FLOATS(c, B_DBETA), FLOATS(c, B_PART),
                     c->dim[0], c->dim[1], MODE_TRAIN, 1);
}

static const variant backward_variants[] = {
    {"separate", "mask and sum of d, sum of d xhat, result", run_separate, FP32, 0, {64, 128, 256}, NULL, 0},
    {"fused", "mask and both sums in one pass, then the result", run_fused, FP32, 0, {64, 128, 256}, NULL, 0},
    {"layers.cuh", "what the trainers use", run_layers_backward, FP32, 0, {0}, NULL, 0},
};

#define TEST_SHAPES "1x5 4x1 7x3 31x33 64x32 300x36 1100x12 70001x2"
#define CPU_SHAPES "128x512 32768x96 8192x512"
#define GPU_SHAPES "1024x1024 131072x96 131072x192 524288x64"
static const operation operations[] = {
    {"batchnorm_forward", "y = relu(gamma (z - mean) rstd + beta), statistics of the batch", "rows cols",
     forward_problem, forward_reference, VARIANTS(forward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"batchnorm_backward", "d masked in place; dz, dgamma, dbeta", "rows cols", backward_problem, backward_reference,
     VARIANTS(backward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
