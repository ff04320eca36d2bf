// layers.cuh -- kernels that the CUDA trainers share, and small host functions that launch them.
//
// Include before it: common/rng.h (permutations) and common/dataset.h (what is copied to the device). For the CPU build it
// passes through cu2cpp.sh as every .cuh does.
//
// Everything is a matrix, row-major: rows are samples, columns are units. A convolutional net in NHWC layout fits as it is:
// rows = N * H * W, columns = C. Rows go up to MAX_GRID_Y * ROW_CHUNK (2 million), columns and parameters up to INT_MAX.
// Pointers are device memory unless a comment says otherwise; scratch memory is the caller's. Host functions queue their
// kernels and check the launches; only device_data_create and array_norm wait for the device.
//
// Memory       device_floats(n)          n zeroed floats;  take(base, &used, n): a piece of one allocation
// Data         device_data_create(&d, normalise), device_data_free(&r)      a data set on the device
//              data_fingerprint(&train, &test)          tells data sets apart
//              order_samples(&r, seed, epoch, shuffled)                     this epoch's order of its samples, r.order
//              gather_labels(label, &r, first, rows)                        labels of rows first .. of that order
// Bias, ReLU   bias_relu, bias_relu_backward
// BatchNorm    bn_statistics, bn_relu, bn_relu_backward: z -> relu(gamma (z - mean) rstd + beta), as torch.nn.BatchNorm
// Loss         softmax_cross_entropy (label smoothing as PyTorch's), sum_losses_kernel for other losses
// Optimizer    optimizer_step: SGD, momentum or AdamW over n parameters;  array_norm: Euclidean norm
//
// One thread per element, or per column and chunk of rows; a 2-D grid instead of / and %, so that the same code is coalesced
// on a GPU and vectorised on a CPU. Sums are added in a fixed order: same command, same bits.
#pragma once
#include "common/cuda_common.h"
#include "common/safetensors.h"  // XXH64

enum { BLOCK = 256 };         // threads of a block, at most
enum { ROW_CHUNK = 32 };      // rows a thread adds up in column sums
enum { ALIGN = 64 };          // floats; a piece of an allocation starts on a 256-byte boundary
enum { REDUCE_BLOCKS = 64 };  // partial sums of array_norm
enum { MAX_ROWS = 65535 * ROW_CHUNK };  // of a matrix: CUDA allows 65,535 blocks along y, and a thread has ROW_CHUNK rows
#define BN_EPS 1e-5f          // PyTorch's defaults
#define BN_MOMENTUM 0.1f

// What a pass does about BatchNorm: training uses the batch's statistics and moves the running ones; PROBE is training mode
// that leaves the running statistics alone; evaluation uses them; SQUARED is evaluation with squared parameters, for diag(G).
enum { MODE_TRAIN, MODE_PROBE, MODE_EVAL, MODE_SQUARED };

// Grid and block of a kernel with a thread per column and blockIdx.y a row or a chunk; narrow matrices get narrow blocks.
static inline dim3 grid_of(int cols, int rows) { return dim3((unsigned)ceil_div(cols, BLOCK), (unsigned)rows); }
static inline unsigned block_of(int cols) { return cols < BLOCK ? 32 * (unsigned)ceil_div(cols, 32) : (unsigned)BLOCK; }

// ------------------------------------------------------------------------------------------------------------- memory

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

// --------------------------------------------------------------------------------------------------------------- data

// Per-channel normalisation of pixels: pixel * mul + add.
typedef struct normalisation {
    float mul[4], add[4];
} normalisation;

typedef struct device_data {
    int n, features, channels, height, width;
    unsigned char *pixels;  // [n][features], each sample in CHW order, or NULL
    float *values;          // [n][features], or NULL
    unsigned char *labels;  // [n]
    int *order;             // [n] this epoch's order of the samples
    normalisation norm;     // of the pixels
} device_data;

// Copies a data set to the device. norm maps pixels to mean 0 and standard deviation 1 per channel (normalise) or to 0..1.
static inline device_data device_data_create(const dataset *d, int normalise) {
    device_data r;
    const size_t size = (size_t)d->n * (size_t)d->features;
    memset(&r, 0, sizeof r);
    r.n = d->n;
    r.features = d->features;
    r.channels = d->channels;
    r.height = d->height;
    r.width = d->width;
    for (int k = 0; k < d->channels && k < 4; k++) {
        r.norm.mul[k] = normalise ? 1.0f / (255.0f * d->std[k]) : 1.0f / 255.0f;
        r.norm.add[k] = normalise ? -d->mean[k] / d->std[k] : 0.0f;
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

// A number that other samples, labels or statistics would change: of the two sets as they are trained and tested on.
static inline uint64_t data_fingerprint(const dataset *train, const dataset *test) {
    const dataset *const sets[] = {train, test};
    safetensors_xxh64 h;
    safetensors_xxh64_init(&h);
    for (int i = 0; i < 2; i++) {
        const dataset *d = sets[i];
        const int shape[] = {d->n, d->channels, d->height, d->width, d->classes};
        const size_t size = (size_t)d->n * (size_t)d->features, channels = (size_t)(d->channels < 4 ? d->channels : 4);
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

// Order of the samples of one epoch: order[i] = i shuffled by (seed, epoch), with no sort and no state.
static __global__ void permutation_kernel(int *__restrict__ order, int n, uint64_t key, int shuffled) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) order[i] = shuffled ? (int)rng_permute((uint32_t)i, (uint32_t)n, key) : i;
}

// Puts the samples of an epoch in order: shuffled by (seed, epoch), or as stored.
static inline void order_samples(const device_data *d, int64_t seed, int64_t epoch, int shuffled) {
    const uint64_t key = rng_permute_key((uint64_t)seed, (uint64_t)epoch);
    permutation_kernel<<<ceil_div(d->n, BLOCK), BLOCK>>>(d->order, d->n, key, shuffled);
    CUDA_CHECK_LAUNCH();
}

static __global__ void gather_labels_kernel(int *__restrict__ label, const unsigned char *__restrict__ labels,
                                            const int *__restrict__ order, int rows) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < rows) label[r] = labels[order[r]];
}

// label[r] = label of the sample at place first + r of the epoch's order, r < rows.
static inline void gather_labels(int *label, const device_data *d, int first, int rows) {
    gather_labels_kernel<<<ceil_div(rows, BLOCK), BLOCK>>>(label, d->labels, d->order + first, rows);
    CUDA_CHECK_LAUNCH();
}

// -------------------------------------------------------------------------------------------------------- column sums
// A thread adds up a fixed number of rows of its column, in order; then the sums are added up the same way until one row is
// left. Rows past the end are read again and count with weight 0, so the loops have a known length and vectorise across columns.

// Floats of scratch that the functions below need for z[rows][cols]: two sums per chunk and column, the next round's, the result.
static inline size_t column_scratch(int rows, int cols) {
    const size_t chunks = (size_t)ceil_div(rows, ROW_CHUNK);
    return 2 * (chunks + (size_t)ceil_div((long long)chunks, ROW_CHUNK) + 1) * (size_t)cols;
}

// out[block][c] = sum of ROW_CHUNK rows of in.
static __global__ void column_sum_kernel(float *__restrict__ out, const float *__restrict__ in, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    float sum = 0.0f;
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) sum += (k <= last ? 1.0f : 0.0f) * (in + start)[min(k, last) * cols + c];
    out[(size_t)blockIdx.y * cols + c] = sum;
}

// out[cols] = sum of the rows of scratch[rows][cols], which has room for ceil(rows / ROW_CHUNK) rows more and is overwritten.
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

// --------------------------------------------------------------------------------------------------------- bias, ReLU

// y[r][c] = z[r][c] + b[c], through ReLU for hidden layers; in place. NaN stays NaN, as in PyTorch: divergence must show.
static __global__ void bias_relu_kernel(float *__restrict__ y, const float *__restrict__ b, int rows, int cols, int relu) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    const float add = b ? b[c] : 0.0f;
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float z = (y + start)[i], v = z + add, w = (int)(v <= 0.0f) & relu ? 0.0f : v;
        (y + start)[i] = k <= last ? w : z;
    }
}

// Adds b[cols] (NULL: nothing) to y[rows][cols] in place; then ReLU if relu is set.
static inline void bias_relu(float *y, const float *b, int rows, int cols, int relu) {
    bias_relu_kernel<<<grid_of(cols, ceil_div(rows, ROW_CHUNK)), block_of(cols)>>>(y, b, rows, cols, relu);
    CUDA_CHECK_LAUNCH();
}

// Backward of ReLU and bias: d is masked where y <= 0 (relu), and partial[chunk][c] is the column sum of the chunk's rows.
static __global__ void bias_relu_backward_kernel(float *__restrict__ d, const float *__restrict__ y, float *__restrict__ partial,
                                                 int rows, int cols, int relu) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    const int pass = !relu;
    float sum = 0.0f;
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float g = (d + start)[i], v = (int)((y + start)[i] > 0.0f) | pass ? g : 0.0f;
        (d + start)[i] = v;
        sum += (k <= last ? 1.0f : 0.0f) * v;
    }
    partial[(size_t)blockIdx.y * cols + c] = sum;
}

// Turns d[rows][cols], the gradient of y, into that of z in place, and writes the bias gradient db[cols] (NULL: no bias).
// scratch: column_scratch floats.
static inline void bias_relu_backward(float *d, const float *y, float *db, float *scratch, int rows, int cols, int relu) {
    const int chunks = ceil_div(rows, ROW_CHUNK);
    bias_relu_backward_kernel<<<grid_of(cols, chunks), block_of(cols)>>>(d, y, scratch, rows, cols, relu);
    if (db) column_sums(db, scratch, chunks, cols);
    CUDA_CHECK_LAUNCH();
}

// ---------------------------------------------------------------------------------------------------------- BatchNorm

// Sums over a chunk of rows of z - z[0] and of its square: partial[chunk][0][c], [chunk][1][c]. The shift by the first row keeps
// the variance exact where the mean is large.
static __global__ void bn_moments_kernel(float *__restrict__ partial, const float *__restrict__ z, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    const float shift = z[c];
    float sum = 0.0f, squares = 0.0f;
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const float v = (k <= last ? 1.0f : 0.0f) * ((z + start)[min(k, last) * cols + c] - shift);
        sum += v;
        squares += v * v;
    }
    float *out = partial + 2 * (size_t)blockIdx.y * cols;
    out[c] = sum;
    out[cols + c] = squares;
}

// From the sums over all rows: mean and 1 / sqrt(var + eps); moves the running statistics (update = 0: leaves them). The layer's
// bias is not in z (it cancels in training mode); it belongs to the running mean.
static __global__ void bn_finish_kernel(float *__restrict__ mean, float *__restrict__ rstd, float *__restrict__ running_mean,
                                        float *__restrict__ running_var, const float *__restrict__ sums, const float *__restrict__ z,
                                        const float *__restrict__ b, int rows, int cols, int update) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    const float n = (float)rows, shifted = sums[c] / n, m2 = fmaxf(sums[cols + c] - sums[c] * shifted, 0.0f), avg = z[c] + shifted;
    mean[c] = avg;
    rstd[c] = 1.0f / sqrtf(m2 / n + BN_EPS);
    if (update) {
        running_mean[c] += BN_MOMENTUM * (avg + (b ? b[c] : 0.0f) - running_mean[c]);
        running_var[c] += BN_MOMENTUM * (m2 / fmaxf(n - 1.0f, 1.0f) - running_var[c]);
    }
}

// Evaluation mode: the running statistics, shifted by the bias so that they apply to z. squared: for diag(G), where every factor
// is squared and every path counts by itself, (z - mean + b) rstd becomes (z + mean^2 + b) rstd^2, b being a square already.
static __global__ void bn_running_kernel(float *__restrict__ mean, float *__restrict__ rstd, const float *__restrict__ running_mean,
                                         const float *__restrict__ running_var, const float *__restrict__ b, int cols, int squared) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    const float m = running_mean[c], s = 1.0f / sqrtf(running_var[c] + BN_EPS), bias = b ? b[c] : 0.0f;
    mean[c] = squared ? -(m * m + bias) : m - bias;
    rstd[c] = squared ? s * s : s;
}

// mean[cols] and rstd[cols] of z[rows][cols] in the given mode; MODE_TRAIN moves the running statistics. z is the layer's
// output without its bias b[cols] (NULL: none). scratch: column_scratch floats.
static inline void bn_statistics(float *mean, float *rstd, float *running_mean, float *running_var, const float *z, const float *b,
                                 float *scratch, int rows, int cols, int mode) {
    const int chunks = ceil_div(rows, ROW_CHUNK);
    if (mode == MODE_EVAL || mode == MODE_SQUARED) {
        bn_running_kernel<<<grid_of(cols, 1), block_of(cols)>>>(mean, rstd, running_mean, running_var, b, cols, mode == MODE_SQUARED);
    } else {
        float *sums = scratch + column_scratch(rows, cols) - 2 * (size_t)cols;
        bn_moments_kernel<<<grid_of(cols, chunks), block_of(cols)>>>(scratch, z, rows, cols);
        column_sums(sums, scratch, chunks, 2 * cols);
        bn_finish_kernel<<<grid_of(cols, 1), block_of(cols)>>>(mean, rstd, running_mean, running_var, sums, z, b, rows, cols, mode == MODE_TRAIN);
    }
    CUDA_CHECK_LAUNCH();
}

// y = gamma (z - mean) rstd + beta, plus the residual (add), through ReLU if relu is set.
static __global__ void bn_relu_kernel(float *__restrict__ y, const float *__restrict__ z, const float *__restrict__ residual,
                                      const float *__restrict__ mean, const float *__restrict__ rstd, const float *__restrict__ gamma,
                                      const float *__restrict__ beta, int rows, int cols, int add, int relu) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    const float g = gamma[c], b = beta[c], m = mean[c], s = rstd[c];
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float r = (residual + start)[i], v = g * (((z + start)[i] - m) * s) + b + (add ? r : 0.0f);
        (y + start)[i] = (int)(v <= 0.0f) & relu ? 0.0f : v;
    }
}

// The same for y[rows][cols]; residual, like y, or NULL; mean, rstd, gamma and beta are [cols].
static inline void bn_relu(float *y, const float *z, const float *residual, const float *mean, const float *rstd, const float *gamma,
                           const float *beta, int rows, int cols, int relu) {
    bn_relu_kernel<<<grid_of(cols, ceil_div(rows, ROW_CHUNK)), block_of(cols)>>>(y, z, residual ? residual : z, mean, rstd, gamma, beta, rows,
                                                                               cols, residual ? 1 : 0, relu);
    CUDA_CHECK_LAUNCH();
}

// Backward, first half: masks d where y <= 0 (relu); sums over a chunk of d (for beta) and of d * xhat (for gamma).
static __global__ void bn_relu_backward_sums_kernel(float *__restrict__ d, const float *__restrict__ y, const float *__restrict__ z,
                                                    const float *__restrict__ mean, const float *__restrict__ rstd,
                                                    float *__restrict__ partial, int rows, int cols, int relu) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    const int pass = !relu;
    const float m = mean[c], s = rstd[c];
    float sum = 0.0f, sum_xhat = 0.0f;
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float g = (d + start)[i], v = (int)((y + start)[i] > 0.0f) | pass ? g : 0.0f, counted = (k <= last ? 1.0f : 0.0f) * v;
        (d + start)[i] = v;
        sum += counted;
        sum_xhat += counted * (((z + start)[i] - m) * s);
    }
    float *out = partial + 2 * (size_t)blockIdx.y * cols;
    out[c] = sum;
    out[cols + c] = sum_xhat;
}

// Second half: gradient of z. inverse_rows = 1 / rows in training mode, where mean and variance depend on z; 0 in evaluation.
static __global__ void bn_backward_kernel(float *__restrict__ dz, const float *__restrict__ d, const float *__restrict__ z,
                                          const float *__restrict__ mean, const float *__restrict__ rstd, const float *__restrict__ gamma,
                                          const float *__restrict__ sums, int rows, int cols, float inverse_rows) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    const float m = mean[c], s = rstd[c], scale = gamma[c] * s, db = inverse_rows * sums[c], dg = inverse_rows * sums[cols + c];
    UNROLL for (int k = 0; k < ROW_CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        (dz + start)[i] = scale * ((d + start)[i] - (db + ((z + start)[i] - m) * s * dg));
    }
}
static __global__ void bn_gradients_kernel(float *__restrict__ dgamma, float *__restrict__ dbeta, const float *__restrict__ sums, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < cols) {
        dbeta[c] = sums[c];
        dgamma[c] = sums[cols + c];
    }
}

// From d[rows][cols], the gradient of y: masks it by the ReLU in place (that is the residual's gradient), writes dz, the gradient of
// z, and dgamma[cols], dbeta[cols]. mean, rstd, mode and relu are those of the forward pass. scratch: column_scratch floats.
static inline void bn_relu_backward(float *dz, float *d, const float *y, const float *z, const float *mean, const float *rstd,
                                    const float *gamma, float *dgamma, float *dbeta, float *scratch, int rows, int cols, int mode, int relu) {
    const int chunks = ceil_div(rows, ROW_CHUNK);
    const float inverse_rows = mode == MODE_EVAL || mode == MODE_SQUARED ? 0.0f : 1.0f / (float)rows;
    float *sums = scratch + column_scratch(rows, cols) - 2 * (size_t)cols;
    bn_relu_backward_sums_kernel<<<grid_of(cols, chunks), block_of(cols)>>>(d, y, z, mean, rstd, scratch, rows, cols, relu);
    column_sums(sums, scratch, chunks, 2 * cols);
    bn_gradients_kernel<<<grid_of(cols, 1), block_of(cols)>>>(dgamma, dbeta, sums, cols);
    bn_backward_kernel<<<grid_of(cols, chunks), block_of(cols)>>>(dz, d, z, mean, rstd, gamma, sums, rows, cols, inverse_rows);
    CUDA_CHECK_LAUNCH();
}

// --------------------------------------------------------------------------------------------------------------- loss

// Softmax cross-entropy, forward and backward in one pass; a thread per row (few classes). Writes the row's loss, whether
// the largest logit is the label's, and d = (softmax - target) * scale. target = (1 - smoothing) onehot + smoothing / classes
// and loss = -sum target log softmax, as torch.nn.CrossEntropyLoss(label_smoothing=...).
static __global__ void softmax_cross_entropy_kernel(float *__restrict__ row_loss, int *__restrict__ row_hit, float *__restrict__ d,
                                                    const float *__restrict__ logits, const int *__restrict__ label, int rows,
                                                    int classes, float scale, float smoothing) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const float *x = logits + (size_t)r * classes;
    const float off = smoothing / (float)classes, on = 1.0f - smoothing + off;  // target of the other classes, of the label
    float largest = x[0], sum = 0.0f;
    int best = 0;
    for (int c = 1; c < classes; c++)
        if (x[c] > largest) {
            largest = x[c];
            best = c;
        }
    for (int c = 0; c < classes; c++) sum += expf(x[c] - largest);
    for (int c = 0; c < classes; c++)
        d[(size_t)r * classes + c] = (expf(x[c] - largest) / sum - (c == label[r] ? on : off)) * scale;
    float loss = logf(sum) + (largest - x[label[r]]);
    if (smoothing != 0.0f) {
        float distance = 0.0f;
        for (int c = 0; c < classes; c++) distance += largest - x[c];
        loss = (1.0f - smoothing) * loss + smoothing * (logf(sum) + distance / (float)classes);
    }
    row_loss[r] = loss;
    row_hit[r] = best == label[r];
}

// One block: adds weight * sum of loss[n] to totals[0], the hits (NULL: none) to totals[1], and writes the mean loss over
// the batch's rows to *mean_loss.
static __global__ void sum_losses_kernel(double *__restrict__ totals, float *__restrict__ mean_loss, const float *__restrict__ loss,
                                         const int *__restrict__ hit, int n, double weight, int rows) {
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

// Loss of logits[rows][classes] with label[rows] and its gradient d, of the mean over the rows; the mean goes to *mean_loss,
// the sum and the number of hits are added to totals[2]. row_loss[rows], row_hit[rows]: of every row. 0 <= smoothing <= 1.
static inline void softmax_cross_entropy(double *totals, float *mean_loss, float *row_loss, int *row_hit, float *d,
                                         const float *logits, const int *label, int rows, int classes, double smoothing) {
    softmax_cross_entropy_kernel<<<ceil_div(rows, 32), 32>>>(row_loss, row_hit, d, logits, label, rows, classes, 1.0f / (float)rows,
                                                            (float)smoothing);
    sum_losses_kernel<<<1, rows <= 1024 ? 32 : 256>>>(totals, mean_loss, row_loss, row_hit, rows, 1.0, rows);
    CUDA_CHECK_LAUNCH();
}

// v[i] = value for n floats.
static __global__ void fill_kernel(float *__restrict__ v, float value, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) v[i] = value;
}

// ---------------------------------------------------------------------------------------------------------- optimizer

// part[block] = sum of squares of a contiguous share of v[n]; for the gradient norm.
static __global__ void sum_squares_kernel(double *__restrict__ part, const float *__restrict__ v, size_t n) {
    const size_t share = (n + gridDim.x - 1) / gridDim.x, first = blockIdx.x * share;
    double sum = 0;
    for (size_t i = first + threadIdx.x; i < first + share && i < n; i += blockDim.x) sum += (double)v[i] * (double)v[i];
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

// SGD as torch.optim.SGD: g + wd w, momentum without dampening.
static __global__ void sgd_kernel(float *__restrict__ w, const float *__restrict__ g, float lr, float decay, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) w[i] -= lr * (g[i] + decay * w[i]);
}
static __global__ void momentum_kernel(float *__restrict__ w, const float *__restrict__ g, float *__restrict__ m, float lr,
                                       float decay, float momentum, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    m[i] = momentum * m[i] + (g[i] + decay * w[i]);
    w[i] -= lr * m[i];
}

// AdamW as torch.optim.AdamW: decoupled weight decay, bias-corrected moments.
typedef struct adamw_factors {
    float keep;          // 1 - lr * weight decay
    float step_size;     // lr / (1 - beta1^t)
    float root;          // sqrt(1 - beta2^t)
    float beta1, beta2;
    float rest1, rest2;  // 1 - beta1, 1 - beta2, rounded from double: in float arithmetic 1 - 0.999f is off by 1.3e-5
    float eps;
} adamw_factors;

// The factors of the step that counts as t = step + 1, with PyTorch's betas and eps.
static inline adamw_factors adamw_factors_of(double lr, double weight_decay, int64_t step) {
    const double beta1 = 0.9, beta2 = 0.999, t = (double)step + 1;
    adamw_factors f;
    f.keep = (float)(1 - lr * weight_decay);
    f.step_size = (float)(lr / (1 - pow(beta1, t)));
    f.root = (float)sqrt(1 - pow(beta2, t));
    f.beta1 = (float)beta1;
    f.beta2 = (float)beta2;
    f.rest1 = (float)(1 - beta1);
    f.rest2 = (float)(1 - beta2);
    f.eps = 1e-8f;
    return f;
}
static __global__ void adamw_kernel(float *__restrict__ w, const float *__restrict__ g, float *__restrict__ m,
                                    float *__restrict__ v, adamw_factors f, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float mi = f.beta1 * m[i] + f.rest1 * g[i], vi = f.beta2 * v[i] + f.rest2 * g[i] * g[i];
    m[i] = mi;
    v[i] = vi;
    w[i] = w[i] * f.keep - f.step_size * mi / (sqrtf(vi) / f.root + f.eps);
}

// One update of w[n] by the gradient g[n]. The optimizer state says which: SGD with m and v NULL, SGD with momentum with v
// NULL, else AdamW. step counts from 0. All parameters are one array, so one kernel serves every tensor; a trainer that
// decays only some tensors calls it per tensor.
static inline void optimizer_step(float *w, const float *g, float *m, float *v, int n, double lr, double momentum,
                                  double weight_decay, int64_t step) {
    const int blocks = ceil_div(n, BLOCK);
    const float rate = (float)lr, decay = (float)weight_decay;
    if (v) adamw_kernel<<<blocks, BLOCK>>>(w, g, m, v, adamw_factors_of(lr, weight_decay, step), n);
    else if (m) momentum_kernel<<<blocks, BLOCK>>>(w, g, m, rate, decay, (float)momentum, n);
    else sgd_kernel<<<blocks, BLOCK>>>(w, g, rate, decay, n);
    CUDA_CHECK_LAUNCH();
}
