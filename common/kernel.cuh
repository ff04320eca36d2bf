// kernel.cuh -- the diagonal of the tangent kernel on training samples, for --rescale-kernel data and fisher.
//
// For parameter i, outputs f_k and N samples x,
//     g_i = mean over x of sum over k of (df_k(x) / dtheta_i)^2.
// Signs s_k = +-1, drawn for every sample and output, make it one backward pass: the expectation of
// (sum_k s_k df_k / dtheta_i)^2 over the signs is sum_k (df_k / dtheta_i)^2. So the gradient of sum_k s_k f_k(x) is
// taken for every sample by itself, and its square is averaged. fisher: the gradient of the cross-entropy at a label
// drawn from the model's own probabilities; the same average is then the diagonal of the Fisher matrix. At power 1 the
// absolute value takes the place of the square.
//
//     kernel_output_gradient(d, y, fisher, first, rows, cols, seed, step)      d [rows][cols] from outputs y
//     kernel_raise(y, x, n, power)                     y = |x|^power; y may be x
//     kernel_add(sum, x, n, power, scale)              sum += scale |x|^power
//     kernel_bias(g, d, rows, cols, power, scale, keep)        g of a bias, or of BatchNorm's beta
//     kernel_gain(g, d, z, mean, rstd, ...)                    g of BatchNorm's gamma
//     kernel_through_norm(d, gamma, rstd, rows, cols)          d behind BatchNorm to d before it
//
// Outline: kernel_output_gradient, backward of the trainer, then for a linear layer the product of kernel_raise of both
// factors, else kernel_add of the gradient of a single sample. C++17, CUDA. Arrays are device memory.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include "common/cuda_common.h"
#include "common/rng.h"

// +1 or -1 for element i of a stream.
RNG_FN float kernel_sign(uint64_t seed, uint64_t stream, uint64_t i) {
    return rng_sign(rng_word_at(seed, stream, i));
}

// d[r][k] = a sign for sample first + r and output k.
static __global__ void kernel_signs_kernel(float *__restrict__ d, int first, int rows, int cols, uint64_t seed,
                                           uint64_t stream) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (k >= cols || r >= rows) return;
    const uint64_t i = (uint64_t)(first + r) * (uint64_t)cols + (uint64_t)k;
    d[(size_t)r * cols + k] = kernel_sign(seed, stream, i);
}

// d[r][k] = p_k - [k is the drawn label], where p = softmax(y[r]) and the label of sample first + r is drawn from p:
// the gradient of the cross-entropy. A thread per row.
static __global__ void kernel_drawn_label_kernel(float *__restrict__ d, const float *__restrict__ y, int first,
                                                 int rows, int cols, uint64_t seed, uint64_t stream) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const float *logits = y + (size_t)r * cols;
    float *out = d + (size_t)r * cols;
    float largest = logits[0], sum = 0.0f;
    for (int k = 1; k < cols; k++) largest = fmaxf(largest, logits[k]);
    for (int k = 0; k < cols; k++) sum += expf(logits[k] - largest);
    float left = rng_uniform_at(seed, stream, (uint64_t)(first + r)) * sum;
    int label = 0;
    for (int k = 0; k < cols; k++) {
        const float e = expf(logits[k] - largest);
        out[k] = e / sum;
        left -= e;
        if (left >= 0.0f && k + 1 < cols) label = k + 1;
    }
    out[label] -= 1.0f;
}

// y = |x|^power.
static __global__ void kernel_raise_kernel(float *y, const float *x, size_t n, int power) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float v = x[i];
    y[i] = power == 1 ? fabsf(v) : v * v;
}

// sum += scale |x|^power.
static __global__ void kernel_add_kernel(float *__restrict__ sum, const float *__restrict__ x, size_t n, int power,
                                         float scale) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float v = x[i];
    sum[i] += scale * (power == 1 ? fabsf(v) : v * v);
}

// g[c] = keep g[c] + scale sum over rows of |d xhat|^power, xhat = (z - mean) rstd, or 1 if z is NULL. A thread per
// column.
static __global__ void kernel_columns_kernel(float *__restrict__ g, const float *__restrict__ d,
                                             const float *__restrict__ z, const float *__restrict__ mean,
                                             const float *__restrict__ rstd, int rows, int cols, int power, float scale,
                                             float keep) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    float sum = 0.0f;
    for (int r = 0; r < rows; r++) {
        const size_t i = (size_t)r * cols + c;
        const float xhat = z ? (z[i] - mean[c]) * rstd[c] : 1.0f;
        const float v = d[i] * xhat;
        sum += power == 1 ? fabsf(v) : v * v;
    }
    g[c] = (keep == 0.0f ? 0.0f : keep * g[c]) + scale * sum;  // keep = 0 does not read, as in a matrix product
}

// d[r][c] *= gamma[c] rstd[c]: backward of BatchNorm with constant statistics.
static __global__ void kernel_through_norm_kernel(float *__restrict__ d, const float *__restrict__ gamma,
                                                  const float *__restrict__ rstd, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (c < cols && r < rows) d[(size_t)r * cols + c] *= gamma[c] * rstd[c];
}

enum { KERNEL_BLOCK = 256 };

// d [rows][cols] = the gradient with respect to the outputs y [rows][cols] of samples first .. first + rows - 1: signs,
// or with fisher that of the cross-entropy at labels drawn from softmax(y).
static inline void kernel_output_gradient(float *d, const float *y, int fisher, int first, int rows, int cols,
                                          int64_t seed, int64_t step) {
    const uint64_t stream = rng_stream(RNG_KERNEL, (uint32_t)step);
    if (fisher) {
        kernel_drawn_label_kernel<<<ceil_div(rows, KERNEL_BLOCK), KERNEL_BLOCK>>>(d, y, first, rows, cols,
                                                                                  (uint64_t)seed, stream);
    } else {
        const dim3 grid((unsigned)ceil_div(cols, KERNEL_BLOCK), (unsigned)rows);
        kernel_signs_kernel<<<grid, KERNEL_BLOCK>>>(d, first, rows, cols, (uint64_t)seed, stream);
    }
    CUDA_CHECK_LAUNCH();
}
static inline unsigned kernel_blocks(size_t n) { return (unsigned)((n + KERNEL_BLOCK - 1) / KERNEL_BLOCK); }
static inline void kernel_raise(float *y, const float *x, size_t n, int power) {
    kernel_raise_kernel<<<kernel_blocks(n), KERNEL_BLOCK>>>(y, x, n, power);
    CUDA_CHECK_LAUNCH();
}
static inline void kernel_add(float *sum, const float *x, size_t n, int power, float scale) {
    kernel_add_kernel<<<kernel_blocks(n), KERNEL_BLOCK>>>(sum, x, n, power, scale);
    CUDA_CHECK_LAUNCH();
}

// g[cols] of a bias from d[rows][cols], the gradient of what it is added to: keep g + scale sum of |d|^power.
static inline void kernel_bias(float *g, const float *d, int rows, int cols, int power, float scale, float keep) {
    kernel_columns_kernel<<<kernel_blocks((size_t)cols), KERNEL_BLOCK>>>(
        g, d, (const float *)NULL, (const float *)NULL, (const float *)NULL, rows, cols, power, scale, keep);
    CUDA_CHECK_LAUNCH();
}

// g[cols] of BatchNorm's gamma from d, the gradient of its output, and its input z, both [rows][cols].
static inline void kernel_gain(float *g, const float *d, const float *z, const float *mean, const float *rstd, int rows,
                               int cols, int power, float scale, float keep) {
    kernel_columns_kernel<<<kernel_blocks((size_t)cols), KERNEL_BLOCK>>>(g, d, z, mean, rstd, rows, cols, power, scale,
                                                                         keep);
    CUDA_CHECK_LAUNCH();
}

// d[rows][cols], the gradient of BatchNorm's output, becomes that of its input; statistics are constants.
static inline void kernel_through_norm(float *d, const float *gamma, const float *rstd, int rows, int cols) {
    const dim3 grid((unsigned)ceil_div(cols, KERNEL_BLOCK), (unsigned)rows);
    kernel_through_norm_kernel<<<grid, KERNEL_BLOCK>>>(d, gamma, rstd, rows, cols);
    CUDA_CHECK_LAUNCH();
}
