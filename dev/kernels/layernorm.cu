// layernorm.cu -- LayerNorm: every row is normalised by its own mean and variance, forward and backward.
//
// Shapes: x, y, dy, dx [rows][cols] (tokens, channels); gamma, beta, dgamma, dbeta [cols]; mean, rstd [rows]; fp32.
//     layernorm_forward     y = gamma (x - mean[r]) rstd[r] + beta,
//                           rstd = 1 / sqrt(variance + 1e-5)                                          8 rows cols bytes
//     layernorm_backward    with xhat = (x - mean) rstd and g = gamma dy:
//                           dx = rstd (g - average_c(g) - xhat average_c(g xhat)),
//                           dbeta[c] = sum_r dy, dgamma[c] = sum_r dy xhat                           12 rows cols bytes
// About ten operations per element: memory-bound. A row fits into a warp's registers or at least into the cache, so
// unlike BatchNorm one pass over memory is enough, if the kernel is built for it. The backward pass sums along rows and
// down columns.
//
// Forward:
//  1 thread_per_row   A thread walks along its row three times; neighbouring threads are a row apart.
//  2 warp_per_row     Neighbouring lanes, neighbouring elements, a butterfly for the sums: mean, then variance, then
//                     result. The row comes from memory once and twice from the cache.
//  3 warp_shifted     Sums of x - x[0] and of its square in one pass: one trip through the cache less, no cancellation.
//  4 warp_registers   Up to 32 elements per lane stay in registers: memory is read once, and the exact two-pass formula
//                     costs nothing.
//  5 block_per_row    Long rows: a block of threads per row, sums by block reductions.
//    train_gpt_style.c  A loop over rows, three vectorised passes over a row in the cache: the language-model trainer
//                       on a CPU.
// Backward:
//  1 naive            dx by a thread per row; dgamma and dbeta by a thread per column.
//  2 warp_and_chunks  dx by a warp per row; the column sums in chunks of 32 rows and rounds (bias_gradient.cu). dy and
//                     x are read twice: 20 bytes per element instead of 12.
//  3 fused            A block takes 16 rows one after the other, reduces each along, and every thread keeps the sums of
//                     its columns in registers as the rows pass by: 12 bytes per element and one partial sum per 16
//                     rows.
//    train_gpt_style.c  The same idea on a CPU: 32 rows at a time, their column sums in the cache.
#ifndef __CUDACC__
#include "dev/kernels/gpt.h"
#endif
#include "dev/kernels/kernels.h"
#include "common/rng.h"
#include "common/dataset.h"
#include "common/layers.cuh"

enum { X, GAMMA, BETA, Y, MEAN, RSTD };                                   // forward
enum { B_DY, B_X, B_MEAN, B_RSTD, B_GAMMA, B_DX, B_DGAMMA, B_DBETA, B_PART, B_SUMS };  // backward
enum { KEPT = 32 };                       // elements of a row that a lane of warp_registers keeps
enum { FUSED_ROWS = 16, FUSED_COLS = 8 };  // rows of a block of fused; columns that a thread may have
#define EPS 1e-5f

// Mean and rstd of every row of x in double.
static void statistics_of(const double *x, int rows, int cols, double *mean, double *rstd) {
    for (int r = 0; r < rows; r++) {
        const double *row = x + (size_t)r * (size_t)cols;
        double sum = 0, squares = 0;
        for (int c = 0; c < cols; c++) sum += row[c];
        mean[r] = sum / cols;
        for (int c = 0; c < cols; c++) squares += pow(row[c] - mean[r], 2);
        rstd[r] = 1 / sqrt(squares / cols + (double)EPS);
    }
}
// Rows around different means, one of them large.
static void draw_rows(double *x, int rows, int cols) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            double *v = &x[(size_t)r * (size_t)cols + (size_t)c];
            *v = (double)(float)(*v + (r % 5 == 3 ? 100.0 : 0.1 * (r % 7)));
        }
}

// ------------------------------------------------------------------------------------------------------------- forward

static void forward_problem(problem *p) {
    const size_t rows = (size_t)p->dim[0], cols = (size_t)p->dim[1];
    draw_rows(input(p, "x", F32, rows * cols, -1, 1), p->dim[0], p->dim[1]);
    input(p, "gamma", F32, cols, 0.5, 1.5);
    input(p, "beta", F32, cols, -1, 1);
    // few columns: the variance may be near 0, rstd up to 316
    output(p, "y", F32, rows * cols, 2e-5, cols < 4 ? 6e-3 : 8e-5);
    output(p, "mean", F32, rows, 1e-6, 1e-6);
    output(p, "rstd", F32, rows, cols < 4 ? 2e-3 : 5e-5, 1e-6);
    p->bytes = 8.0 * (double)(rows * cols);
    p->flops = 8.0 * (double)(rows * cols);
}
static void forward_reference(problem *p) {
    const size_t cols = (size_t)p->dim[1];
    statistics_of(given(p, X), p->dim[0], p->dim[1], wanted(p, MEAN), wanted(p, RSTD));
    for (size_t i = 0; i < (size_t)p->dim[0] * cols; i++)
        wanted(p, Y)[i] =
            given(p, GAMMA)[i % cols] * (given(p, X)[i] - wanted(p, MEAN)[i / cols]) * wanted(p, RSTD)[i / cols] +
            given(p, BETA)[i % cols];
}

static __global__ void thread_per_row(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                                      const float *beta, int rows, int cols) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const float *row = x + (size_t)r * cols;
    float sum = 0.0f, squares = 0.0f;
    for (int c = 0; c < cols; c++) sum += row[c] - row[0];
    const float m = row[0] + sum / (float)cols;
    for (int c = 0; c < cols; c++) squares += (row[c] - m) * (row[c] - m);
    const float s = 1.0f / sqrtf(squares / (float)cols + EPS);
    for (int c = 0; c < cols; c++) y[(size_t)r * cols + c] = gamma[c] * ((row[c] - m) * s) + beta[c];
    mean[r] = m;
    rstd[r] = s;
}

static __global__ void warp_per_row(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                                    const float *beta, int rows, int cols) {
    const int r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= rows) return;
    const float *row = x + (size_t)r * cols;
    float sum = 0.0f, squares = 0.0f;
    for (int c = lane; c < cols; c += 32) sum += row[c];
    const float m = warp_reduce_sum(sum) / (float)cols;
    for (int c = lane; c < cols; c += 32) squares += (row[c] - m) * (row[c] - m);
    const float s = 1.0f / sqrtf(warp_reduce_sum(squares) / (float)cols + EPS);
    for (int c = lane; c < cols; c += 32) y[(size_t)r * cols + c] = gamma[c] * ((row[c] - m) * s) + beta[c];
    if (lane == 0) {
        mean[r] = m;
        rstd[r] = s;
    }
}

// From the sums of x - shift and of its square.
static __device__ __forceinline__ float shifted_rstd(float sum, float squares, int cols) {
    return 1.0f / sqrtf(fmaxf(squares - sum * (sum / (float)cols), 0.0f) / (float)cols + EPS);
}
static __global__ void warp_shifted(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                                    const float *beta, int rows, int cols) {
    const int r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= rows) return;
    const float *row = x + (size_t)r * cols, shift = row[0];
    float sum = 0.0f, squares = 0.0f;
    for (int c = lane; c < cols; c += 32) {
        const float v = row[c] - shift;
        sum += v;
        squares += v * v;
    }
    sum = warp_reduce_sum(sum);
    squares = warp_reduce_sum(squares);
    const float m = shift + sum / (float)cols, s = shifted_rstd(sum, squares, cols);
    for (int c = lane; c < cols; c += 32) y[(size_t)r * cols + c] = gamma[c] * ((row[c] - m) * s) + beta[c];
    if (lane == 0) {
        mean[r] = m;
        rstd[r] = s;
    }
}

static __global__ void warp_registers(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                                      const float *beta, int rows, int cols) {
    const int r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= rows) return;
    const float *row = x + (size_t)r * cols;
    float kept[KEPT], sum = 0.0f, squares = 0.0f;
    UNROLL for (int i = 0; i < KEPT; i++) {
        const int c = lane + 32 * i;
        kept[i] = c < cols ? row[c] : 0.0f;
        sum += kept[i];
    }
    const float m = warp_reduce_sum(sum) / (float)cols;
    UNROLL for (int i = 0; i < KEPT; i++) {
        const float v = lane + 32 * i < cols ? kept[i] - m : 0.0f;
        squares += v * v;
    }
    const float s = 1.0f / sqrtf(warp_reduce_sum(squares) / (float)cols + EPS);
    UNROLL for (int i = 0; i < KEPT; i++) {
        const int c = lane + 32 * i;
        if (c < cols) y[(size_t)r * cols + c] = gamma[c] * ((kept[i] - m) * s) + beta[c];
    }
    if (lane == 0) {
        mean[r] = m;
        rstd[r] = s;
    }
}
static int kept(const int *dim) { return dim[1] <= 32 * KEPT; }

static __global__ void block_per_row(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                                     const float *beta, int rows, int cols) {
    const int r = blockIdx.x;
    const float *row = x + (size_t)r * cols, shift = row[0];
    float sum = 0.0f, squares = 0.0f;
    for (int c = threadIdx.x; c < cols; c += (int)blockDim.x) {
        const float v = row[c] - shift;
        sum += v;
        squares += v * v;
    }
    sum = block_reduce_sum(sum);
    squares = block_reduce_sum(squares);
    const float m = shift + sum / (float)cols, s = shifted_rstd(sum, squares, cols);
    for (int c = threadIdx.x; c < cols; c += (int)blockDim.x)
        y[(size_t)r * cols + c] = gamma[c] * ((row[c] - m) * s) + beta[c];
    if (threadIdx.x == 0 && r < rows) {
        mean[r] = m;
        rstd[r] = s;
    }
}

#define RUN_FORWARD(name, rows_per_block)                                                                              \
    static void run_##name(const call *c) {                                                                            \
        const int grid = ceil_div(c->dim[0], rows_per_block);                                                          \
        name<<<grid, c->block>>>(FLOATS(c, Y), FLOATS(c, MEAN), FLOATS(c, RSTD), FLOATS(c, X), FLOATS(c, GAMMA),       \
                                 FLOATS(c, BETA), c->dim[0], c->dim[1]);                                               \
    }
RUN_FORWARD(thread_per_row, c->block)
RUN_FORWARD(warp_per_row, c->block / 32)
RUN_FORWARD(warp_shifted, c->block / 32)
RUN_FORWARD(warp_registers, c->block / 32)
RUN_FORWARD(block_per_row, 1)
#if !DEVICE_IS_GPU
static void run_gpt(const call *c) {
    gpt::residual_layernorm(FLOATS(c, Y), FLOATS(c, MEAN), FLOATS(c, RSTD), FLOATS(c, X), NULL, NULL, FLOATS(c, GAMMA),
                            FLOATS(c, BETA), c->dim[0], c->dim[1]);
}
#endif

static const variant forward_variants[] = {
    {"thread_per_row", "a thread walks along its row three times",
     run_thread_per_row, FP32, 0, {32, 128, 256}, NULL, 20},
    {"warp_per_row", "neighbouring lanes, neighbouring elements", run_warp_per_row, FP32, 0, {32, 128, 256}, NULL, 0},
    {"warp_shifted", "both sums in one pass, shifted by the first element",
     run_warp_shifted, FP32, 0, {32, 128, 256}, NULL, 0},
    {"warp_registers", "the row stays in registers", run_warp_registers, FP32, 0, {32, 128, 256}, kept, 0},
    {"block_per_row", "a block per row, for long rows", run_block_per_row, FP32, 0, {32, 128, 512}, NULL, 0},
    {"train_gpt_style.c", "what the trainer uses: a loop over rows", ON_CPU(run_gpt), FP32, CPU_ONLY, {0}, NULL, 4},
};

// ------------------------------------------------------------------------------------------------------------ backward

static void backward_problem(problem *p) {
    const int rows = p->dim[0], cols = p->dim[1];
    const size_t n = (size_t)rows * (size_t)cols;
    input(p, "dy", F32, n, -1, 1);
    double *x = input(p, "x", F32, n, -1, 1), *mean = input(p, "mean", F32, (size_t)rows, 0, 1);
    double *rstd = input(p, "rstd", F32, (size_t)rows, 0, 1);
    input(p, "gamma", F32, (size_t)cols, 0.5, 1.5);
    statistics_of(x, rows, cols, mean, rstd);
    for (int r = 0; r < rows; r++) {
        mean[r] = (double)(float)mean[r];
        rstd[r] = (double)(float)rstd[r];
    }
    output(p, "dx", F32, n, 2e-5, cols < 4 ? 2e-4 : 4e-6);
    output(p, "dgamma", F32, (size_t)cols, 1e-5, 1e-6 * sqrt((double)rows));
    output(p, "dbeta", F32, (size_t)cols, 1e-5, 1e-6 * sqrt((double)rows));
    scratch(
        p, "partial sums", F32, 2 * column_scratch(rows, cols) + 2 * (size_t)cols * (size_t)ceil_div(rows, FUSED_ROWS));
    scratch(p, "sums", F32, 2 * (size_t)cols);
    p->bytes = 12.0 * (double)n;
    p->flops = 14.0 * (double)n;
}
static void backward_reference(problem *p) {
    const int rows = p->dim[0], cols = p->dim[1];
    const double *dy = given(p, B_DY), *x = given(p, B_X), *gamma = given(p, B_GAMMA);
    for (int r = 0; r < rows; r++) {
        const double mean = given(p, B_MEAN)[r], rstd = given(p, B_RSTD)[r];
        const size_t row = (size_t)r * (size_t)cols;
        double g = 0, g_xhat = 0;
        for (int c = 0; c < cols; c++) {
            const double xhat = (x[row + c] - mean) * rstd;
            g += gamma[c] * dy[row + c] / cols;
            g_xhat += gamma[c] * dy[row + c] * xhat / cols;
            wanted(p, B_DGAMMA)[c] += dy[row + c] * xhat;
            wanted(p, B_DBETA)[c] += dy[row + c];
        }
        for (int c = 0; c < cols; c++)
            wanted(p, B_DX)[row + c] = rstd * (gamma[c] * dy[row + c] - g - (x[row + c] - mean) * rstd * g_xhat);
    }
}

static __global__ void dx_thread(float *dx, const float *dy, const float *x, const float *mean, const float *rstd,
                                 const float *gamma, int rows, int cols) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const float *d = dy + (size_t)r * cols, *v = x + (size_t)r * cols, m = mean[r], s = rstd[r];
    float g = 0.0f, g_xhat = 0.0f;
    for (int c = 0; c < cols; c++) {
        g += gamma[c] * d[c];
        g_xhat += gamma[c] * d[c] * ((v[c] - m) * s);
    }
    g /= (float)cols;
    g_xhat /= (float)cols;
    for (int c = 0; c < cols; c++) dx[(size_t)r * cols + c] = s * (gamma[c] * d[c] - g - (v[c] - m) * s * g_xhat);
}
static __global__ void columns_thread(float *dgamma, float *dbeta, const float *dy, const float *x, const float *mean,
                                      const float *rstd, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    float sum = 0.0f, products = 0.0f;
    for (int r = 0; r < rows; r++) {
        const size_t i = (size_t)r * cols + c;
        sum += dy[i];
        products += dy[i] * ((x[i] - mean[r]) * rstd[r]);
    }
    dgamma[c] = products;
    dbeta[c] = sum;
}
static void run_naive(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1];
    dx_thread<<<ceil_div(rows, c->block), c->block>>>(FLOATS(c, B_DX), FLOATS(c, B_DY), FLOATS(c, B_X),
                                                      FLOATS(c, B_MEAN), FLOATS(c, B_RSTD), FLOATS(c, B_GAMMA), rows,
                                                      cols);
    columns_thread<<<ceil_div(cols, c->block), c->block>>>(FLOATS(c, B_DGAMMA), FLOATS(c, B_DBETA), FLOATS(c, B_DY),
                                                           FLOATS(c, B_X), FLOATS(c, B_MEAN), FLOATS(c, B_RSTD), rows,
                                                           cols);
}

static __global__ void dx_warp(float *dx, const float *dy, const float *x, const float *mean, const float *rstd,
                               const float *gamma, int rows, int cols) {
    const int r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= rows) return;
    const float *d = dy + (size_t)r * cols, *v = x + (size_t)r * cols, m = mean[r], s = rstd[r];
    float g = 0.0f, g_xhat = 0.0f;
    for (int c = lane; c < cols; c += 32) {
        const float one = gamma[c] * d[c];
        g += one;
        g_xhat += one * ((v[c] - m) * s);
    }
    g = warp_reduce_sum(g) / (float)cols;
    g_xhat = warp_reduce_sum(g_xhat) / (float)cols;
    for (int c = lane; c < cols; c += 32)
        dx[(size_t)r * cols + c] = s * (gamma[c] * d[c] - g - (v[c] - m) * s * g_xhat);
}
// part[chunk][0..1][c] = sums of dy xhat and of dy over 32 rows.
static __global__ void column_chunks(float *__restrict__ part, const float *__restrict__ dy,
                                     const float *__restrict__ x, const float *__restrict__ mean,
                                     const float *__restrict__ rstd, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    dy += start;
    x += start;
    float sum = 0.0f, products = 0.0f;
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const int r = min(k, last), i = r * cols + c;
        const float v = (k <= last ? 1.0f : 0.0f) * dy[i];
        sum += v;
        products += v * ((x[i] - mean[first + r]) * rstd[first + r]);
    }
    float *out = part + 2 * (size_t)blockIdx.y * cols;
    out[c] = products;
    out[cols + c] = sum;
}
static __global__ void split_sums(float *dgamma, float *dbeta, const float *sums, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < cols) {
        dgamma[c] = sums[c];
        dbeta[c] = sums[cols + c];
    }
}
// dgamma and dbeta from partial sums [chunks][2][cols].
static void finish_columns(const call *c, int chunks) {
    const int cols = c->dim[1];
    column_sums(FLOATS(c, B_SUMS), FLOATS(c, B_PART), chunks, 2 * cols);
    split_sums<<<ceil_div(cols, 128), 128>>>(FLOATS(c, B_DGAMMA), FLOATS(c, B_DBETA), FLOATS(c, B_SUMS), cols);
}
static void run_warp_and_chunks(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1];
    dx_warp<<<ceil_div(rows, c->block / 32), c->block>>>(FLOATS(c, B_DX), FLOATS(c, B_DY), FLOATS(c, B_X),
                                                         FLOATS(c, B_MEAN), FLOATS(c, B_RSTD), FLOATS(c, B_GAMMA), rows,
                                                         cols);
    column_chunks<<<dim3(ceil_div(cols, c->block), ceil_div(rows, ROW_CHUNK)), c->block>>>(
        FLOATS(c, B_PART), FLOATS(c, B_DY), FLOATS(c, B_X), FLOATS(c, B_MEAN), FLOATS(c, B_RSTD), rows, cols);
    finish_columns(c, ceil_div(rows, ROW_CHUNK));
}

static __global__ void fused(float *dx, float *part, const float *dy, const float *x, const float *mean,
                             const float *rstd, const float *gamma, int rows, int cols) {
    const int t = threadIdx.x, threads = blockDim.x, first = blockIdx.x * FUSED_ROWS;
    const int end = min(first + (int)FUSED_ROWS, rows);
    float sum[FUSED_COLS] = {0}, products[FUSED_COLS] = {0}, scale[FUSED_COLS];
    UNROLL for (int i = 0; i < FUSED_COLS; i++) scale[i] = t + i * threads < cols ? gamma[t + i * threads] : 0.0f;
    for (int r = first; r < end; r++) {
        const float *d = dy + (size_t)r * cols, *v = x + (size_t)r * cols, m = mean[r], s = rstd[r];
        float mine[FUSED_COLS], xhat[FUSED_COLS], g = 0.0f, g_xhat = 0.0f;
        UNROLL for (int i = 0; i < FUSED_COLS; i++) {
            const int c = t + i * threads;
            mine[i] = c < cols ? d[c] : 0.0f;
            xhat[i] = c < cols ? (v[c] - m) * s : 0.0f;
            g += scale[i] * mine[i];
            g_xhat += scale[i] * mine[i] * xhat[i];
            sum[i] += mine[i];
            products[i] += mine[i] * xhat[i];
        }
        g = block_reduce_sum(g) / (float)cols;
        g_xhat = block_reduce_sum(g_xhat) / (float)cols;
        UNROLL for (int i = 0; i < FUSED_COLS; i++) {
            const int c = t + i * threads;
            if (c < cols) dx[(size_t)r * cols + c] = s * (scale[i] * mine[i] - g - xhat[i] * g_xhat);
        }
    }
    float *out = part + 2 * (size_t)blockIdx.x * cols;
    UNROLL for (int i = 0; i < FUSED_COLS; i++) {
        const int c = t + i * threads;
        if (c < cols) {
            out[c] = products[i];
            out[cols + c] = sum[i];
        }
    }
}
static void run_fused(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1], threads = 32 * ceil_div(cols, 32 * FUSED_COLS);
    const int blocks = ceil_div(rows, FUSED_ROWS);
    fused<<<blocks, threads>>>(FLOATS(c, B_DX), FLOATS(c, B_PART), FLOATS(c, B_DY), FLOATS(c, B_X), FLOATS(c, B_MEAN),
                               FLOATS(c, B_RSTD), FLOATS(c, B_GAMMA), rows, cols);
    finish_columns(c, blocks);
}
#if !DEVICE_IS_GPU
static void run_gpt_backward(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1];
    gpt::model *m = gpt_model(1, cols, 3 * (size_t)cols * (size_t)ceil_div(rows, gpt::ROW_BLOCK));
    memset(FLOATS(c, B_DGAMMA), 0, (size_t)cols * sizeof(float));
    memset(FLOATS(c, B_DBETA), 0, (size_t)cols * sizeof(float));
    gpt::residual_layernorm_backward(m, FLOATS(c, B_DX), 0, FLOATS(c, B_DGAMMA), FLOATS(c, B_DBETA), NULL,
                                     FLOATS(c, B_DY), FLOATS(c, B_X), FLOATS(c, B_MEAN), FLOATS(c, B_RSTD),
                                     FLOATS(c, B_GAMMA), rows);
}
#endif
static int fused_fits(const int *dim) { return dim[1] <= 1024 * FUSED_COLS; }

static const variant backward_variants[] = {
    {"naive", "dx by a thread per row, the rest by a thread per column", run_naive, FP32, 0, {32, 128, 256}, NULL, 4},
    {"warp_and_chunks", "dx by a warp per row, then column sums in chunks",
     run_warp_and_chunks, FP32, 0, {32, 128, 256}, NULL, 0},
    {"fused", "a block takes 16 rows and keeps its columns' sums", run_fused, FP32, 0, {0}, fused_fits, 0},
    {"train_gpt_style.c", "what the trainer uses: 32 rows at a time",
     ON_CPU(run_gpt_backward), FP32, CPU_ONLY, {0}, NULL, 0},
};

#define TEST_SHAPES "1x8 4x1 7x3 31x33 17x96 64x384 300x100"
#define CPU_SHAPES "1024x384 8192x768"
#define GPU_SHAPES "4096x768 65536x384 65536x768"
static const operation operations[] = {
    {"layernorm_forward", "y = gamma (x - mean) rstd + beta, row by row", "rows cols", forward_problem,
     forward_reference, VARIANTS(forward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"layernorm_backward", "dx, dgamma, dbeta", "rows cols", backward_problem, backward_reference,
     VARIANTS(backward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
