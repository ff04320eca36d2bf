// layers.cuh -- kernels that the CUDA trainers share, and small host functions that launch them.
//
// Everything is a matrix, row-major: rows are samples, columns are units. A convolutional net in
// NHWC layout fits as it is: rows = N * H * W, columns = C. Rows go up to MAX_ROWS (2 million),
// columns and parameters up to INT_MAX. Pointers are device memory unless a comment says otherwise;
// scratch memory is the caller's. Host functions queue their kernels and check the launches; only
// device_data_create and array_norm wait for the device. For the CPU build the file passes through
// cu2cpp.sh.
//
// Memory       device_floats(n)                 n zeroed floats
//              take(base, &used, n)             a piece of one allocation
// Data         device_data_create(&d, normalise), device_data_free(&r)     a data set on the device
//              data_fingerprint(&train, &test)  tells data sets apart
//              order_samples(&r, seed, epoch, shuffled)   this epoch's order of samples, r.order
//              gather_samples(x, &r, first, rows)         samples first, first + 1, ... of it
//              gather_labels(label, &r, first, rows)      their labels
// Bias, ReLU   bias_relu, bias_relu_backward
// BatchNorm    bn_statistics, bn_relu, bn_relu_backward, as torch.nn.BatchNorm:
//              z -> relu(gamma (z - mean) rstd + beta)
// Loss         softmax_cross_entropy            with label smoothing, as PyTorch's
//              sum_losses_kernel                for other losses
// Optimizer    optimizer_step                   SGD, momentum or AdamW over n parameters
//              array_norm                       Euclidean norm
//
// A kernel has one thread per element, or one per column and chunk of rows. A 2-D grid replaces /
// and %, so that the same code is coalesced on a GPU and vectorised on a CPU. Sums are added in a
// fixed order: same command, same bits.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/cuda_common.h"
#include "common/dataset.h"      // the data that goes to the device
#include "common/optimizer.h"    // OPTIMIZER_SGD, ..., AdamW's factors
#include "common/rng.h"          // permutations
#include "common/safetensors.h"  // XXH64

enum { BLOCK = 256 };         // threads of a block, at most
enum { ROW_CHUNK = 32 };      // rows a thread adds up in column sums
enum { ALIGN = 64 };          // floats; a piece of an allocation starts on a 256-byte boundary
enum { REDUCE_BLOCKS = 64 };  // partial sums of array_norm
enum { MAX_ROWS = 65535 * ROW_CHUNK };  // of a matrix: CUDA allows 65,535 blocks along y
#define BN_EPS 1e-5f          // PyTorch's defaults
#define BN_MOMENTUM 0.1f

// How a pass treats BatchNorm.
//     MODE_TRAIN      the batch's statistics; the running ones move
//     MODE_PROBE      the batch's statistics; the running ones stay
//     MODE_EVAL       the running statistics
//     MODE_SQUARED    evaluation with squared parameters, for diag(G)
//     MODE_ABSOLUTE   evaluation with absolute values of parameters, for diag(G) of first powers
//     MODE_KERNEL     the batch's statistics, as constants: nothing flows back through them
enum { MODE_TRAIN, MODE_PROBE, MODE_EVAL, MODE_SQUARED, MODE_ABSOLUTE, MODE_KERNEL };

// The power of every factor of a path in this mode; 0 where the network computes its own function.
static inline int power_of(int mode) {
    if (mode == MODE_SQUARED) return 2;
    return mode == MODE_ABSOLUTE;
}

// Grid and block of a kernel with a thread per column; blockIdx.y is a row or a chunk of rows.
// Narrow matrices get narrow blocks.
static inline dim3 grid_of(int cols, int rows) {
    return dim3((unsigned)ceil_div(cols, BLOCK), (unsigned)rows);
}
static inline unsigned block_of(int cols) {
    return cols < BLOCK ? 32 * (unsigned)ceil_div(cols, 32) : (unsigned)BLOCK;
}

// ------------------------------------------------------------------------------------------ memory

// Allocates n zeroed floats on the device; cudaFree frees them.
static inline float *device_floats(size_t n) {
    float *p;
    CUDA_CHECK(cudaMalloc((void **)&p, (n ? n : 1) * sizeof(float)));
    CUDA_CHECK(cudaMemset(p, 0, (n ? n : 1) * sizeof(float)));
    return p;
}

// Takes n floats from a bump allocator; with base NULL it only counts. *used is in floats.
static inline float *take(float *base, size_t *used, size_t n) {
    float *p = base ? base + *used : NULL;
    *used += (n + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

// -------------------------------------------------------------------------------------------- data

// Per-channel normalisation: pixel * mul + add. Values that are no pixels have mul 1, add 0.
typedef struct normalisation {
    float mul[4], add[4];
} normalisation;

typedef struct device_data {
    int n, features, channels, height, width;
    unsigned char *pixels;  // [n][features], each sample in CHW order, or NULL
    float *values;          // [n][features], or NULL
    unsigned char *labels;  // [n]
    int *order;             // [n] this epoch's order of the samples
    normalisation norm;
} device_data;

// Copies a data set to the device. norm maps pixels to mean 0 and standard deviation 1 per channel
// (normalise) or to 0..1, and values to themselves.
static inline device_data device_data_create(const dataset *d, int normalise) {
    device_data r;
    const size_t size = (size_t)d->n * (size_t)d->features;
    memset(&r, 0, sizeof r);
    r.n = d->n;
    r.features = d->features;
    r.channels = d->channels;
    r.height = d->height;
    r.width = d->width;
    for (int k = 0; k < 4; k++) {
        r.norm.mul[k] = d->pixels ? 1.0f / 255.0f : 1.0f;
        if (!d->pixels || !normalise || k >= d->channels) continue;
        r.norm.mul[k] = 1.0f / (255.0f * d->std[k]);
        r.norm.add[k] = -d->mean[k] / d->std[k];
    }
    if (d->pixels) {
        CUDA_CHECK(cudaMalloc((void **)&r.pixels, size));
        CUDA_CHECK(cudaMemcpy(r.pixels, d->pixels, size, cudaMemcpyHostToDevice));
    } else {
        CUDA_CHECK(cudaMalloc((void **)&r.values, size * sizeof(float)));
        CUDA_CHECK(cudaMemcpy(r.values, d->values, size * sizeof(float), cudaMemcpyHostToDevice));
    }
    CUDA_CHECK(cudaMalloc((void **)&r.labels, (size_t)d->n));
    CUDA_CHECK(cudaMemcpy(r.labels, d->labels, (size_t)d->n, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMalloc((void **)&r.order, (size_t)d->n * sizeof(int)));
    return r;
}

// A hash of the samples, labels and statistics of both sets, as they are trained and tested on.
static inline uint64_t data_fingerprint(const dataset *train, const dataset *test) {
    const dataset *const sets[] = {train, test};
    safetensors_xxh64 h;
    safetensors_xxh64_init(&h);
    for (int i = 0; i < 2; i++) {
        const dataset *d = sets[i];
        const int shape[] = {d->n, d->channels, d->height, d->width, d->classes};
        const size_t size = (size_t)d->n * (size_t)d->features;
        const size_t channels = (size_t)(d->channels < 4 ? d->channels : 4);
        safetensors_xxh64_update(&h, shape, sizeof shape);
        if (d->pixels) safetensors_xxh64_update(&h, d->pixels, size);
        else safetensors_xxh64_update(&h, d->values, size * sizeof(float));
        safetensors_xxh64_update(&h, d->labels, (size_t)d->n);
        safetensors_xxh64_update(&h, d->mean, channels * sizeof(float));
        safetensors_xxh64_update(&h, d->std, channels * sizeof(float));
    }
    return safetensors_xxh64_digest(&h);
}

static inline void device_data_free(device_data *d) {
    CUDA_CHECK(cudaFree(d->pixels));
    CUDA_CHECK(cudaFree(d->values));
    CUDA_CHECK(cudaFree(d->labels));
    CUDA_CHECK(cudaFree(d->order));
    memset(d, 0, sizeof *d);
}

// Order of the samples of one epoch: order[i] = i shuffled by (seed, epoch), with no sort and no
// state.
static __global__ void permutation_kernel(int *__restrict__ order, int n, uint64_t key,
                                          int shuffled) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) order[i] = shuffled ? (int)rng_permute((uint32_t)i, (uint32_t)n, key) : i;
}

// Puts the samples of an epoch in order: shuffled by (seed, epoch), or as stored.
static inline void order_samples(const device_data *d, int64_t seed, int64_t epoch, int shuffled) {
    const uint64_t key = rng_permute_key((uint64_t)seed, (uint64_t)epoch);
    permutation_kernel<<<ceil_div(d->n, BLOCK), BLOCK>>>(d->order, d->n, key, shuffled);
    CUDA_CHECK_LAUNCH();
}

// x[r][c] = element c of sample order[r], normalised. blockIdx.y is r, blockIdx.z the channel,
// which has `plane` elements. T is unsigned char (pixels) or float (values).
template <typename T>
static __global__ void gather_samples_kernel(float *__restrict__ x, const T *__restrict__ samples,
                                             const int *__restrict__ order, int plane,
                                             normalisation norm) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y, channel = blockIdx.z;
    if (i >= plane) return;
    const int features = plane * gridDim.z, c = channel * plane + i;
    const float value = (float)samples[(size_t)order[r] * features + c];
    x[(size_t)r * features + c] = value * norm.mul[channel] + norm.add[channel];
}

// x[r][features] = the sample at place first + r of the epoch's order, r < rows.
static inline void gather_samples(float *x, const device_data *d, int first, int rows) {
    const int *order = d->order + first, channels = d->pixels ? d->channels : 1;
    const int plane = d->features / channels;
    const unsigned block = block_of(plane);
    dim3 grid = grid_of(plane, rows);
    grid.z = (unsigned)channels;
    if (d->pixels)
        gather_samples_kernel<unsigned char><<<grid, block>>>(x, d->pixels, order, plane, d->norm);
    else
        gather_samples_kernel<float><<<grid, block>>>(x, d->values, order, plane, d->norm);
    CUDA_CHECK_LAUNCH();
}

static __global__ void gather_labels_kernel(int *__restrict__ label,
                                            const unsigned char *__restrict__ labels,
                                            const int *__restrict__ order, int rows) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < rows) label[r] = labels[order[r]];
}

// label[r] = label of the sample at place first + r of the epoch's order, r < rows.
static inline void gather_labels(int *label, const device_data *d, int first, int rows) {
    const int *order = d->order + first;
    gather_labels_kernel<<<ceil_div(rows, BLOCK), BLOCK>>>(label, d->labels, order, rows);
    CUDA_CHECK_LAUNCH();
}

// ------------------------------------------------------------------------------------- column sums
// A thread adds up a chunk of ROW_CHUNK rows of its column, in order; then the sums are added up
// the same way until one row is left. In a chunk, k counts its rows from `first`, and `last` is its
// last row that exists. A row past it is row `last` again, min(k, last), and counts with weight 0.
// So the loops have a known length, they unroll, and the loop over the threads vectorises across
// the columns.

// Floats of scratch that the functions below need for z[rows][cols]: two sums per chunk and column,
// those of the next round, and the result.
static inline size_t column_scratch(int rows, int cols) {
    const size_t chunks = (size_t)ceil_div(rows, ROW_CHUNK);
    const size_t next = (size_t)ceil_div((long long)chunks, ROW_CHUNK);
    return 2 * (chunks + next + 1) * (size_t)cols;
}

// out[block][c] = sum of ROW_CHUNK rows of in.
static __global__ void column_sum_kernel(float *__restrict__ out, const float *__restrict__ in,
                                         int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    in += (size_t)first * cols;
    float sum = 0.0f;
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const float weight = (float)(k <= last);
        sum += weight * in[min(k, last) * cols + c];
    }
    out[(size_t)blockIdx.y * cols + c] = sum;
}

// out[cols] = sum of the rows of scratch[rows][cols], which has room for ceil(rows / ROW_CHUNK)
// rows more and is overwritten.
static inline void column_sums(float *out, float *scratch, int rows, int cols) {
    float *from = scratch, *to = scratch + (size_t)rows * (size_t)cols;
    do {
        const int left = ceil_div(rows, ROW_CHUNK);
        float *next = left == 1 ? out : to;
        column_sum_kernel<<<grid_of(cols, left), block_of(cols)>>>(next, from, rows, cols);
        to = from;
        from = next;
        rows = left;
    } while (rows > 1);
}

// -------------------------------------------------------------------------------------- bias, ReLU

// y[r][c] = z[r][c] + b[c], through ReLU for hidden layers; in place. NaN stays NaN, as in PyTorch:
// divergence must show.
static __global__ void bias_relu_kernel(float *__restrict__ y, const float *__restrict__ b,
                                        int rows, int cols, int relu) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    y += (size_t)first * cols;
    const float bias = b ? b[c] : 0.0f;
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float z = y[i], v = z + bias;
        const float activated = relu && v <= 0.0f ? 0.0f : v;
        y[i] = k <= last ? activated : z;  // the last row again: as it is
    }
}

// Adds b[cols] (NULL: nothing) to y[rows][cols] in place; then ReLU if relu is set.
static inline void bias_relu(float *y, const float *b, int rows, int cols, int relu) {
    const dim3 grid = grid_of(cols, ceil_div(rows, ROW_CHUNK));
    bias_relu_kernel<<<grid, block_of(cols)>>>(y, b, rows, cols, relu);
    CUDA_CHECK_LAUNCH();
}

// Backward of ReLU and bias: d is masked where y <= 0 (relu), and partial[chunk][c] is the column
// sum of the chunk's rows.
static __global__ void bias_relu_backward_kernel(float *__restrict__ d, const float *__restrict__ y,
                                                 float *__restrict__ partial, int rows, int cols,
                                                 int relu) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    d += (size_t)first * cols;
    y += (size_t)first * cols;
    float sum = 0.0f;
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float weight = (float)(k <= last);
        const float masked = y[i] > 0.0f || !relu ? d[i] : 0.0f;
        d[i] = masked;
        sum += weight * masked;
    }
    partial[(size_t)blockIdx.y * cols + c] = sum;
}

// Turns d[rows][cols], the gradient of y, into that of z in place, and writes the bias gradient
// db[cols] (NULL: no bias). scratch: column_scratch floats.
static inline void bias_relu_backward(float *d, const float *y, float *db, float *scratch, int rows,
                                      int cols, int relu) {
    const int chunks = ceil_div(rows, ROW_CHUNK);
    const dim3 grid = grid_of(cols, chunks);
    bias_relu_backward_kernel<<<grid, block_of(cols)>>>(d, y, scratch, rows, cols, relu);
    if (db) column_sums(db, scratch, chunks, cols);
    CUDA_CHECK_LAUNCH();
}

// --------------------------------------------------------------------------------------- BatchNorm

// With xhat = (z - mean) rstd, rstd = 1 / sqrt(var + eps), column by column over all rows:
//     forward     y = gamma xhat + beta
//     backward    dbeta = sum d        dgamma = sum d xhat        (d: the gradient of y)

// partial[chunk][0][c] and [chunk][1][c] = sums over a chunk of rows of z - z[0] and of its square.
// The shift by the first row keeps the variance exact where the mean is large.
static __global__ void bn_moments_kernel(float *__restrict__ partial, const float *__restrict__ z,
                                         int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const float shift = z[c];
    z += (size_t)first * cols;
    float sum = 0.0f, squares = 0.0f;
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const float weight = (float)(k <= last);
        const float v = weight * (z[min(k, last) * cols + c] - shift);
        sum += v;
        squares += v * v;
    }
    float *out = partial + 2 * (size_t)blockIdx.y * cols;
    out[c] = sum;
    out[cols + c] = squares;
}

// From the sums over all rows: mean and rstd; moves the running statistics (update = 0: leaves
// them). The layer's bias is not in z (it cancels in training mode); it belongs to the running
// mean.
static __global__ void bn_finish_kernel(float *__restrict__ mean, float *__restrict__ rstd,
                                        float *__restrict__ running_mean,
                                        float *__restrict__ running_var,
                                        const float *__restrict__ sums, const float *__restrict__ z,
                                        const float *__restrict__ b, int rows, int cols,
                                        int update) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    const float n = (float)rows;
    const float shifted = sums[c] / n;  // mean of z - z[0]
    const float average = z[c] + shifted;
    // Sum of squared deviations: sum (x - mean x)^2 = sum x^2 - (sum x)(mean x). Rounding may make
    // it slightly negative.
    const float squares = fmaxf(sums[cols + c] - sums[c] * shifted, 0.0f);
    mean[c] = average;
    rstd[c] = 1.0f / sqrtf(squares / n + BN_EPS);
    if (update) {
        const float bias = b ? b[c] : 0.0f;
        const float unbiased = squares / fmaxf(n - 1.0f, 1.0f);  // the running one, as PyTorch's
        running_mean[c] += BN_MOMENTUM * (average + bias - running_mean[c]);
        running_var[c] += BN_MOMENTUM * (unbiased - running_var[c]);
    }
}

// Evaluation mode: the running statistics, shifted by the bias so that they apply to z. power 2 and
// 1: for diag(G) every factor is |.|^power and every path counts by itself, so (z - mean + b) rstd
// becomes (z + |mean|^power + b) rstd^power; b is a power already.
static __global__ void bn_running_kernel(float *__restrict__ mean, float *__restrict__ rstd,
                                         const float *__restrict__ running_mean,
                                         const float *__restrict__ running_var,
                                         const float *__restrict__ b, int cols, int power) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    const float m = running_mean[c];
    const float s = 1.0f / sqrtf(running_var[c] + BN_EPS);
    const float bias = b ? b[c] : 0.0f;
    const float path = power == 1 ? fabsf(m) : m * m;
    mean[c] = power ? -(path + bias) : m - bias;
    rstd[c] = power == 2 ? s * s : s;
}

// mean[cols] and rstd[cols] of z[rows][cols] in the given mode; MODE_TRAIN moves the running
// statistics. z is the layer's output without its bias b[cols] (NULL: none). scratch:
// column_scratch floats.
static inline void bn_statistics(float *mean, float *rstd, float *running_mean, float *running_var,
                                 const float *z, const float *b, float *scratch, int rows, int cols,
                                 int mode) {
    const int chunks = ceil_div(rows, ROW_CHUNK);
    const dim3 columns = grid_of(cols, 1);
    const unsigned block = block_of(cols);
    if (mode == MODE_EVAL || power_of(mode)) {
        bn_running_kernel<<<columns, block>>>(mean, rstd, running_mean, running_var, b, cols,
                                              power_of(mode));
    } else {
        float *sums = scratch + column_scratch(rows, cols) - 2 * (size_t)cols;
        bn_moments_kernel<<<grid_of(cols, chunks), block>>>(scratch, z, rows, cols);
        column_sums(sums, scratch, chunks, 2 * cols);
        bn_finish_kernel<<<columns, block>>>(mean, rstd, running_mean, running_var, sums, z, b,
                                             rows, cols, mode == MODE_TRAIN);
    }
    CUDA_CHECK_LAUNCH();
}

// y = gamma (z - mean) rstd + beta, plus the residual (add), through ReLU if relu is set.
static __global__ void
bn_relu_kernel(float *__restrict__ y, const float *__restrict__ z,
               const float *__restrict__ residual, const float *__restrict__ mean,
               const float *__restrict__ rstd, const float *__restrict__ gamma,
               const float *__restrict__ beta, int rows, int cols, int add, int relu) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    y += (size_t)first * cols;
    z += (size_t)first * cols;
    residual += (size_t)first * cols;
    const float g = gamma[c], b = beta[c], m = mean[c], s = rstd[c];
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float xhat = (z[i] - m) * s, r = residual[i];
        const float v = g * xhat + b + (add ? r : 0.0f);
        y[i] = relu && v <= 0.0f ? 0.0f : v;
    }
}

// The same for y[rows][cols]; residual, like y, or NULL; mean, rstd, gamma and beta are [cols].
static inline void bn_relu(float *y, const float *z, const float *residual, const float *mean,
                           const float *rstd, const float *gamma, const float *beta, int rows,
                           int cols, int relu) {
    const dim3 grid = grid_of(cols, ceil_div(rows, ROW_CHUNK));
    const int add = residual != NULL;
    const float *r = add ? residual : z;  // without one z stands in: it is read, not added
    bn_relu_kernel<<<grid, block_of(cols)>>>(y, z, r, mean, rstd, gamma, beta, rows, cols, add,
                                             relu);
    CUDA_CHECK_LAUNCH();
}

// Backward, first half: masks d where y <= 0 (relu); sums over a chunk of d (for beta) and of d
// xhat (for gamma).
static __global__ void
bn_relu_backward_sums_kernel(float *__restrict__ d, const float *__restrict__ y,
                             const float *__restrict__ z, const float *__restrict__ mean,
                             const float *__restrict__ rstd, float *__restrict__ partial, int rows,
                             int cols, int relu) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    d += (size_t)first * cols;
    y += (size_t)first * cols;
    z += (size_t)first * cols;
    const float m = mean[c], s = rstd[c];
    float sum = 0.0f, sum_xhat = 0.0f;
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float weight = (float)(k <= last);
        const float masked = y[i] > 0.0f || !relu ? d[i] : 0.0f;
        const float xhat = (z[i] - m) * s;
        const float counted = weight * masked;
        d[i] = masked;
        sum += counted;
        sum_xhat += counted * xhat;
    }
    float *out = partial + 2 * (size_t)blockIdx.y * cols;
    out[c] = sum;
    out[cols + c] = sum_xhat;
}

// Second half: dz, the gradient of z. sums: of d and of d xhat over all rows. inverse_rows = 1 /
// rows in training mode, where mean and variance depend on z; 0 in evaluation.
static __global__ void
bn_backward_kernel(float *__restrict__ dz, const float *__restrict__ d, const float *__restrict__ z,
                   const float *__restrict__ mean, const float *__restrict__ rstd,
                   const float *__restrict__ gamma, const float *__restrict__ sums, int rows,
                   int cols, float inverse_rows) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    dz += (size_t)first * cols;
    d += (size_t)first * cols;
    z += (size_t)first * cols;
    const float m = mean[c], s = rstd[c];
    // dz = gamma rstd (d - mean(d) - xhat mean(d xhat)), the means over the rows:
    //     d                    z acts through its own xhat
    //     mean(d)              z acts through the mean of all rows
    //     xhat mean(d xhat)    z acts through their variance
    const float scale = gamma[c] * s;
    const float mean_d = inverse_rows * sums[c];
    const float mean_d_xhat = inverse_rows * sums[cols + c];
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float xhat = (z[i] - m) * s;
        dz[i] = scale * (d[i] - (mean_d + xhat * mean_d_xhat));
    }
}
static __global__ void bn_gradients_kernel(float *__restrict__ dgamma, float *__restrict__ dbeta,
                                           const float *__restrict__ sums, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < cols) {
        dbeta[c] = sums[c];
        dgamma[c] = sums[cols + c];
    }
}

// From d[rows][cols], the gradient of y: masks it by the ReLU in place (that is the residual's
// gradient), writes dz, the gradient of z, and dgamma[cols], dbeta[cols]. mean, rstd, mode and relu
// are those of the forward pass. scratch: column_scratch floats.
static inline void bn_relu_backward(float *dz, float *d, const float *y, const float *z,
                                    const float *mean, const float *rstd, const float *gamma,
                                    float *dgamma, float *dbeta, float *scratch, int rows, int cols,
                                    int mode, int relu) {
    const int chunks = ceil_div(rows, ROW_CHUNK);
    const dim3 grid = grid_of(cols, chunks);
    const unsigned block = block_of(cols);
    // mean and variance are
    const int constant = mode == MODE_EVAL || mode == MODE_KERNEL || power_of(mode);
    const float inverse_rows = constant ? 0.0f : 1.0f / (float)rows;
    float *sums = scratch + column_scratch(rows, cols) - 2 * (size_t)cols;
    bn_relu_backward_sums_kernel<<<grid, block>>>(d, y, z, mean, rstd, scratch, rows, cols, relu);
    column_sums(sums, scratch, chunks, 2 * cols);
    bn_gradients_kernel<<<grid_of(cols, 1), block>>>(dgamma, dbeta, sums, cols);
    bn_backward_kernel<<<grid, block>>>(dz, d, z, mean, rstd, gamma, sums, rows, cols,
                                        inverse_rows);
    CUDA_CHECK_LAUNCH();
}

// -------------------------------------------------------------------------------------------- loss

// Softmax cross-entropy, forward and backward in one pass; a thread per row (few classes). Writes
// the row's loss, whether the largest logit is the label's, and d, the gradient of the logits times
// scale, as torch.nn.CrossEntropyLoss(label_smoothing=...).
static __global__ void softmax_cross_entropy_kernel(float *__restrict__ row_loss,
                                                    int *__restrict__ row_hit,
                                                    float *__restrict__ d,
                                                    const float *__restrict__ logits,
                                                    const int *__restrict__ label, int rows,
                                                    int classes, float scale, float smoothing) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const float *x = logits + (size_t)r * classes;
    d += (size_t)r * classes;
    // target = (1 - smoothing) onehot + smoothing / classes
    const float off = smoothing / (float)classes;  // target of a class that is not the label
    const float on = 1.0f - smoothing + off;       // target of the label
    float largest = x[0], sum = 0.0f;
    int best = 0;
    for (int c = 1; c < classes; c++) {
        if (x[c] > largest) {
            largest = x[c];
            best = c;
        }
    }
    // softmax(x)_c = exp(x_c - largest) / sum: the shift cancels and keeps exp from overflowing.
    for (int c = 0; c < classes; c++) sum += expf(x[c] - largest);
    for (int c = 0; c < classes; c++) {
        const float softmax = expf(x[c] - largest) / sum;
        d[c] = (softmax - (c == label[r] ? on : off)) * scale;
    }
    // -log softmax(x)_c = log(sum) + largest - x_c; the loss is its mean weighted by the target:
    // the label's, and with smoothing also the plain mean over all classes.
    float loss = logf(sum) + (largest - x[label[r]]);
    if (smoothing != 0.0f) {
        float distance = 0.0f;
        for (int c = 0; c < classes; c++) distance += largest - x[c];
        const float mean_of_classes = logf(sum) + distance / (float)classes;
        loss = (1.0f - smoothing) * loss + smoothing * mean_of_classes;
    }
    row_loss[r] = loss;
    row_hit[r] = best == label[r];
}

// One block: adds weight * sum of loss[n] to totals[0], the hits (NULL: none) to totals[1], and
// writes the mean loss over the batch's rows to *mean_loss.
static __global__ void sum_losses_kernel(double *__restrict__ totals, float *__restrict__ mean_loss,
                                         const float *__restrict__ loss,
                                         const int *__restrict__ hit, int n, double weight,
                                         int rows) {
    double sum = 0, hits = 0;
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) {
        sum += (double)loss[i];
        hits += hit ? hit[i] : 0;
    }
    sum = weight * block_reduce_sum(sum);
    hits = block_reduce_sum(hits);
    if (threadIdx.x == 0) {
        totals[0] += sum;
        totals[1] += hits;
        *mean_loss = (float)(sum / rows);
    }
}

// Loss of logits[rows][classes] with label[rows], and the gradient d of the mean over the rows. The
// mean goes to *mean_loss; the sum and the number of hits are added to totals[2]. row_loss[rows]
// and row_hit[rows] hold those of every row. 0 <= smoothing <= 1.
static inline void softmax_cross_entropy(double *totals, float *mean_loss, float *row_loss,
                                         int *row_hit, float *d, const float *logits,
                                         const int *label, int rows, int classes,
                                         double smoothing) {
    const float scale = 1.0f / (float)rows;
    const int threads = rows <= 1024 ? 32 : 256;
    softmax_cross_entropy_kernel<<<ceil_div(rows, 32), 32>>>(
        row_loss, row_hit, d, logits, label, rows, classes, scale, (float)smoothing);
    sum_losses_kernel<<<1, threads>>>(totals, mean_loss, row_loss, row_hit, rows, 1.0, rows);
    CUDA_CHECK_LAUNCH();
}

// v[i] = value for n floats.
static __global__ void fill_kernel(float *__restrict__ v, float value, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) v[i] = value;
}

// --------------------------------------------------------------------------------------- optimizer

// part[block] = sum of squares of a contiguous share of v[n]; for the gradient norm.
static __global__ void sum_squares_kernel(double *__restrict__ part, const float *__restrict__ v,
                                          size_t n) {
    const size_t share = (n + gridDim.x - 1) / gridDim.x, first = blockIdx.x * share;
    double sum = 0;
    for (size_t i = first + threadIdx.x; i < first + share && i < n; i += blockDim.x)
        sum += (double)v[i] * (double)v[i];
    sum = block_reduce_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

// Euclidean norm of v[n]. square_sums: scratch of [REDUCE_BLOCKS]. Waits for the device.
static inline double array_norm(const float *v, size_t n, double *square_sums) {
    double part[REDUCE_BLOCKS], sum = 0;
    sum_squares_kernel<<<REDUCE_BLOCKS, 32>>>(square_sums, v, n);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(part, square_sums, sizeof part, cudaMemcpyDeviceToHost));
    for (int i = 0; i < REDUCE_BLOCKS; i++) sum += part[i];
    return sqrt(sum);
}

// SGD as torch.optim.SGD: the weight decay is part of the gradient, g + decay w.
static __global__ void sgd_kernel(float *__restrict__ w, const float *__restrict__ g, float lr,
                                  float decay, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) w[i] -= lr * (g[i] + decay * w[i]);
}

// The same with momentum, without dampening: m sums the gradients, older ones ever less.
static __global__ void momentum_kernel(float *__restrict__ w, const float *__restrict__ g,
                                       float *__restrict__ m, float lr, float decay, float momentum,
                                       int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    m[i] = momentum * m[i] + (g[i] + decay * w[i]);
    w[i] -= lr * m[i];
}

// AdamW; optimizer.h has the formulas behind the factors.
static __global__ void adamw_kernel(float *__restrict__ w, const float *__restrict__ g,
                                    float *__restrict__ m, float *__restrict__ v, adamw_factors f,
                                    int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float mi = f.beta1 * m[i] + f.rest1 * g[i];
    const float vi = f.beta2 * v[i] + f.rest2 * g[i] * g[i];
    m[i] = mi;
    v[i] = vi;
    // Bias correction: step_size divides m by 1 - beta1^t, root divides v by 1 - beta2^t.
    w[i] = w[i] * f.keep - f.step_size * mi / (sqrtf(vi) / f.root + f.eps);
}

// One update of w[n] by the gradient g[n]. kind: OPTIMIZER_SGD, OPTIMIZER_MOMENTUM (uses m[n]) or
// OPTIMIZER_ADAMW (uses m[n] and v[n]). step counts from 0. All parameters are one array, so one
// kernel serves every tensor; a trainer that decays only some tensors calls it per tensor.
static inline void optimizer_step(int kind, float *w, const float *g, float *m, float *v, int n,
                                  double lr, double momentum, double weight_decay, int64_t step) {
    const int blocks = ceil_div(n, BLOCK);
    const float rate = (float)lr, decay = (float)weight_decay;
    switch (kind) {
    case OPTIMIZER_SGD:
        sgd_kernel<<<blocks, BLOCK>>>(w, g, rate, decay, n);
        break;
    case OPTIMIZER_MOMENTUM:
        momentum_kernel<<<blocks, BLOCK>>>(w, g, m, rate, decay, (float)momentum, n);
        break;
    case OPTIMIZER_ADAMW:
        adamw_kernel<<<blocks, BLOCK>>>(w, g, m, v, adamw_factors_of(lr, weight_decay, step), n);
        break;
    default:
        fprintf(stderr, "optimizer_step: no optimizer has the number %d\n", kind);
        abort();
    }
    CUDA_CHECK_LAUNCH();
}
