// train_mlp.cu -- trains a multilayer perceptron, rescaled right after initialisation so that it trains faster.
//
// What it trains: fully connected ReLU nets, as classifiers (softmax cross-entropy) or as autoencoders (mean squared error),
// with or without biases and BatchNorm, on images or points that fit in device memory. What it does not: convolutions
// (train_cnn.cu), text (train_gpt_style.c), several devices.
//
// Reads top to bottom: configuration, model, kernels (each forward beside its backward), forward, backward, optimizer,
// initialisation, rescaling, checkpoints, evaluation, training loop, command line. `train_mlp --help` lists the options.
//
// The same source runs on a GPU (nvcc, cuBLAS) and on a CPU (every kernel body runs there, see common/cuda_cpu.h).
// Dimension letters: B rows of a batch, D units of a layer; matrices are row-major, weights [out][in] as PyTorch's.
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>              // listing checkpoints
#include <errno.h>
#include <sys/stat.h>
#include "common/cuda_common.h"  // CUDA_CHECK, ceil_div, reductions; CUDA itself, or its CPU stand-in
#include "common/gemm.h"         // C = alpha op(A) op(B) + beta C: cuBLAS, OpenBLAS or built in
#include "common/rng.h"          // Philox: initial weights, permutations
#include "common/dataset.h"      // MNIST, Fashion-MNIST, CIFAR-10, synthetic sets
#include "common/safetensors.h"  // weights and checkpoints
#include "common/cli.h"          // the option table
#include "common/log.h"          // progress line, log.csv, report.json, Ctrl-C
#include "rescale.cuh"           // PathCond and ENorm

#define VERSION "0.1.0"

// ------------------------------------------------------------------------------------------------------ configuration

enum { MAX_LAYERS = 128 };  // linear layers
enum { TASK_CLASSIFY, TASK_AUTOENCODE };
enum { INIT_KAIMING_UNIFORM, INIT_KAIMING_NORMAL };
enum { NORM_NONE, NORM_BATCH };
enum { RESCALE_OFF, RESCALE_BY_PATHCOND, RESCALE_BY_ENORM };
enum { OPTIMIZER_SGD, OPTIMIZER_MOMENTUM, OPTIMIZER_ADAMW };
enum { SCHEDULE_CONSTANT, SCHEDULE_COSINE };
enum { SHUFFLE_EPOCH, SHUFFLE_NONE };

typedef struct config {
    const char *data, *data_dir;
    int limit;                   // training samples used, 0: all
    cli_ints layers;             // units of every layer, input first; n = 0: features,512,512,512,classes
    int task, init, norm, bias;
    double init_scale;
    int rescale, rescale_solver, rescale_sweeps, rescale_pow2;
    double rescale_max_log;
    cli_every rescale_every;
    int optimizer, schedule, warmup;
    double lr, momentum, weight_decay;
    int epochs, steps;           // steps < 0: epochs decide
    int batch_size;              // 0: full batch
    int64_t seed;
    int shuffle, precision;
    cli_every eval_every, checkpoint_every;
    const char *load, *save, *resume, *log_dir, *report;
    int quiet;
} config;

// The defaults; PyTorch's conventions where it has any.
static config default_config(void) {
    config c;
    memset(&c, 0, sizeof c);
    c.data = "fashion-mnist", c.data_dir = "data";
    c.bias = 1, c.init_scale = 1;
    c.rescale = RESCALE_BY_PATHCOND, c.rescale_sweeps = 10;
    c.lr = 0.05, c.momentum = 0.9, c.epochs = 10, c.steps = -1, c.batch_size = 128, c.seed = 1;
    c.eval_every.n = 1, c.eval_every.unit = CLI_EPOCHS;
    c.checkpoint_every.n = 1, c.checkpoint_every.unit = CLI_EPOCHS;
    return c;
}

// -------------------------------------------------------------------------------------------------------------- model

#define BN_EPS 1e-5f       // PyTorch's defaults
#define BN_MOMENTUM 0.1f
enum { ALIGN = 64 };       // floats; every tensor starts on a 256-byte boundary
enum { ROW_CHUNK = 32 };   // rows a thread adds up in column sums
enum { LOSS_RING = 64 };   // step losses kept on the device before they are fetched
enum { REDUCE_BLOCKS = 64 };

// A named piece of the parameter arrays: params, grads, moment1, moment2 share the offsets.
typedef struct tensor {
    char name[32];         // PyTorch's: fc1.weight, fc1.bias, bn1.weight, bn1.bias
    size_t offset;         // in floats
    int rows, cols;        // a vector has cols 1
    int layer;             // linear layer it belongs to, from 0
    int role;              // RESCALE_WEIGHT, RESCALE_BIAS, RESCALE_GAIN; beta is a bias
} tensor;

typedef struct model {
    int n_layers;                        // linear layers L
    int dim[MAX_LAYERS + 1];             // dim[0] inputs ... dim[L] outputs
    int bias, norm, task;
    int n_tensors;
    tensor tensors[4 * MAX_LAYERS];
    const float *no_bias;                // zeros [max dim], stands in for a missing bias
    // Device memory, one allocation per family, [n_params] each (padding between tensors stays zero)
    size_t n_params;
    float *params, *grads, *moment1, *moment2;
    float *w[MAX_LAYERS], *b[MAX_LAYERS], *gamma[MAX_LAYERS], *beta[MAX_LAYERS];      // into params
    float *dw[MAX_LAYERS], *db[MAX_LAYERS], *dgamma[MAX_LAYERS], *dbeta[MAX_LAYERS];  // into grads
    float *stats;                        // running mean and variance of every BatchNorm
    float *running_mean[MAX_LAYERS], *running_var[MAX_LAYERS];  // [D] into stats
    int64_t batches_tracked;             // training batches seen by BatchNorm
    // Activations for up to max_rows rows, one allocation
    int max_rows;
    float *acts;
    float *x[MAX_LAYERS + 1];            // [B][dim[l]]: x[0] input, x[l] after ReLU, x[L] logits or reconstruction
    float *z[MAX_LAYERS];                // [B][D] before BatchNorm; without it z[l] is x[l + 1], overwritten in place
    float *mean[MAX_LAYERS], *rstd[MAX_LAYERS];  // [D] of BatchNorm in the last forward
    float *dx[2];                        // [B][max dim] gradients of activations, used in turn
    float *partial;                      // [2][chunks][max dim] partial column sums
    float *row_loss;                     // [B]
    int *label, *row_hit;                // [B]
    float *step_loss;                    // [LOSS_RING] mean loss of the latest steps, and one of the latest evaluated batch
    double *totals;                      // [2] loss and hits, summed over an evaluation
    double *square_sums;                 // [REDUCE_BLOCKS] for the gradient norm
    gemm_context gemm;
} model;

// Appends a tensor to the model's table.
static void add_tensor(model *m, const char *kind, const char *suffix, int layer, int rows, int cols, int role) {
    tensor *t = &m->tensors[m->n_tensors++];
    snprintf(t->name, sizeof t->name, "%s%d.%s", kind, layer + 1, suffix);
    t->offset = m->n_params, t->rows = rows, t->cols = cols, t->layer = layer, t->role = role;
    m->n_params += ((size_t)rows * (size_t)cols + ALIGN - 1) / ALIGN * ALIGN;
}

// Allocates n zeroed floats on the device.
static float *device_floats(size_t n) {
    float *p;
    CUDA_CHECK(cudaMalloc((void **)&p, (n ? n : 1) * sizeof(float)));
    CUDA_CHECK(cudaMemset(p, 0, (n ? n : 1) * sizeof(float)));
    return p;
}

// Takes n floats from a bump allocator; with base NULL it only counts.
static float *take(float *base, size_t *used, size_t n) {
    float *p = base ? base + *used : NULL;
    *used += (n + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

// Places all activations in one allocation; called twice, to count and to place.
static size_t place_activations(model *m, float *base) {
    const size_t rows = (size_t)m->max_rows, chunks = (size_t)ceil_div(m->max_rows, ROW_CHUNK);
    size_t used = 0, widest = 0;
    for (int l = 0; l <= m->n_layers; l++) {
        widest = (size_t)m->dim[l] > widest ? (size_t)m->dim[l] : widest;
        m->x[l] = take(base, &used, rows * (size_t)m->dim[l]);
    }
    for (int l = 0; l < m->n_layers; l++) {
        const int normed = m->norm == NORM_BATCH && l < m->n_layers - 1;
        m->z[l] = normed ? take(base, &used, rows * (size_t)m->dim[l + 1]) : m->x[l + 1];
        m->mean[l] = normed ? take(base, &used, (size_t)m->dim[l + 1]) : NULL;
        m->rstd[l] = normed ? take(base, &used, (size_t)m->dim[l + 1]) : NULL;
    }
    for (int i = 0; i < 2; i++) m->dx[i] = take(base, &used, rows * widest);
    m->partial = take(base, &used, 2 * chunks * widest);
    m->row_loss = take(base, &used, rows);
    m->label = (int *)take(base, &used, rows), m->row_hit = (int *)take(base, &used, rows);
    m->step_loss = take(base, &used, LOSS_RING + 1);
    m->totals = (double *)take(base, &used, 4), m->square_sums = (double *)take(base, &used, 2 * REDUCE_BLOCKS);
    m->no_bias = take(base, &used, widest);
    return used;
}

// Builds the model on the device for at most max_rows rows at a time. Returns 0, or -1 with a message (--precision).
static int model_create(model *m, const int *dim, int n_layers, const config *c, int max_rows, char *err, size_t n) {
    memset(m, 0, sizeof *m);
    m->n_layers = n_layers, m->bias = c->bias, m->norm = c->norm, m->task = c->task, m->max_rows = max_rows;
    memcpy(m->dim, dim, (size_t)(n_layers + 1) * sizeof(int));
    if (gemm_create(&m->gemm, c->precision, err, n)) return -1;
    size_t n_stats = 0;
    for (int l = 0; l < n_layers; l++) {
        add_tensor(m, "fc", "weight", l, dim[l + 1], dim[l], RESCALE_WEIGHT);
        if (m->bias) add_tensor(m, "fc", "bias", l, dim[l + 1], 1, RESCALE_BIAS);
        if (m->norm == NORM_BATCH && l < n_layers - 1) {
            add_tensor(m, "bn", "weight", l, dim[l + 1], 1, RESCALE_GAIN);
            add_tensor(m, "bn", "bias", l, dim[l + 1], 1, RESCALE_BIAS);
            n_stats += 2 * (size_t)((dim[l + 1] + ALIGN - 1) / ALIGN * ALIGN);
        }
    }
    m->params = device_floats(m->n_params), m->grads = device_floats(m->n_params), m->stats = device_floats(n_stats);
    if (c->optimizer != OPTIMIZER_SGD) m->moment1 = device_floats(m->n_params);
    if (c->optimizer == OPTIMIZER_ADAMW) m->moment2 = device_floats(m->n_params);
    for (int i = 0; i < m->n_tensors; i++) {
        const tensor *t = &m->tensors[i];
        const int l = t->layer, bn = t->name[0] == 'b';
        float **value = t->role == RESCALE_WEIGHT ? m->w : t->role == RESCALE_GAIN ? m->gamma : bn ? m->beta : m->b;
        float **grad = t->role == RESCALE_WEIGHT ? m->dw : t->role == RESCALE_GAIN ? m->dgamma : bn ? m->dbeta : m->db;
        value[l] = m->params + t->offset, grad[l] = m->grads + t->offset;
    }
    size_t used = 0;
    for (int l = 0; l < n_layers - 1 && m->norm == NORM_BATCH; l++) {
        m->running_mean[l] = take(m->stats, &used, (size_t)dim[l + 1]);
        m->running_var[l] = take(m->stats, &used, (size_t)dim[l + 1]);
    }
    m->acts = device_floats(place_activations(m, NULL));
    place_activations(m, m->acts);
    return 0;
}

static void model_free(model *m) {
    float *const owned[] = {m->params, m->grads, m->moment1, m->moment2, m->stats, m->acts};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) CUDA_CHECK(cudaFree(owned[i]));
    gemm_destroy(&m->gemm);
    memset(m, 0, sizeof *m);
}

// ------------------------------------------------------------------------------------------------------------- kernels
// One thread per element, or per column and chunk of rows; a 2-D grid instead of / and %, so that the same code is
// coalesced on a GPU and vectorised on a CPU. Sums are added in a fixed order: same command, same bits.

enum { BLOCK = 256 };

// Order of the samples of one epoch: order[i] = i shuffled by (seed, epoch), with no sort and no state.
static __global__ void permutation_kernel(int *__restrict__ order, int n, uint64_t key, int shuffled) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) order[i] = shuffled ? (int)rng_permute((uint32_t)i, (uint32_t)n, key) : i;
}

// Per-channel normalisation of pixels: pixel * mul + add.
typedef struct normalisation {
    float mul[4], add[4];
} normalisation;

// A batch of images: x[r][c] = normalised pixel c of sample order[r]; blockIdx.z is the channel, of `plane` pixels.
static __global__ void gather_pixels_kernel(float *__restrict__ x, const unsigned char *__restrict__ pixels,
                                            const int *__restrict__ order, int plane, normalisation norm) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y, channel = blockIdx.z;
    if (i >= plane) return;
    const int features = plane * gridDim.z, c = channel * plane + i;
    x[(size_t)r * features + c] = (float)pixels[(size_t)order[r] * features + c] * norm.mul[channel] + norm.add[channel];
}
static __global__ void gather_values_kernel(float *__restrict__ x, const float *__restrict__ values,
                                            const int *__restrict__ order, int features) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (c < features) x[(size_t)r * features + c] = values[(size_t)order[r] * features + c];
}
static __global__ void gather_labels_kernel(int *__restrict__ label, const unsigned char *__restrict__ labels,
                                            const int *__restrict__ order, int rows) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < rows) label[r] = labels[order[r]];
}

// y[r][c] = z[r][c] + b[c], through ReLU for hidden layers; in place. NaN stays NaN, as in PyTorch: divergence must show.
static __global__ void bias_relu_kernel(float *__restrict__ y, const float *__restrict__ b, int cols, int relu) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (c >= cols) return;
    const float v = y[(size_t)r * cols + c] + b[c];
    y[(size_t)r * cols + c] = relu && v <= 0.0f ? 0.0f : v;
}

// Backward of ReLU and bias: d is masked where y <= 0 (relu), and partial[chunk][c] is the column sum of the chunk's rows.
static __global__ void bias_relu_backward_kernel(float *__restrict__ d, const float *__restrict__ y, float *__restrict__ partial,
                                                 int rows, int cols, int relu) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK;
    if (c >= cols) return;
    float sum = 0.0f;
    for (int r = first; r < first + ROW_CHUNK && r < rows; r++) {
        const size_t i = (size_t)r * cols + c;
        if (relu && !(y[i] > 0.0f)) d[i] = 0.0f;
        sum += d[i];
    }
    partial[(size_t)blockIdx.y * cols + c] = sum;
}

// out[c] = sum over chunks of partial[chunk][c].
static __global__ void sum_chunks_kernel(float *__restrict__ out, const float *__restrict__ partial, int chunks, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    float sum = 0.0f;
    for (int k = 0; k < chunks; k++) sum += partial[(size_t)k * cols + c];
    out[c] = sum;
}

// BatchNorm statistics, first half: mean and sum of squared deviations of each column over a chunk of rows (Welford).
static __global__ void bn_chunk_stats_kernel(const float *__restrict__ z, float *__restrict__ chunk_mean,
                                             float *__restrict__ chunk_m2, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK;
    if (c >= cols) return;
    float mean = 0.0f, m2 = 0.0f, n = 0.0f;
    for (int r = first; r < first + ROW_CHUNK && r < rows; r++) {
        const float v = z[(size_t)r * cols + c], delta = v - mean;
        n += 1.0f, mean += delta / n, m2 += delta * (v - mean);
    }
    chunk_mean[(size_t)blockIdx.y * cols + c] = mean, chunk_m2[(size_t)blockIdx.y * cols + c] = m2;
}

// Second half: merges the chunks (Chan et al.), writes mean and 1 / sqrt(var + eps), and moves the running statistics. The
// layer's bias is not in z (it cancels in training mode); it belongs to the running mean. update = 0 leaves them alone.
static __global__ void bn_merge_stats_kernel(float *__restrict__ mean, float *__restrict__ rstd, float *__restrict__ running_mean,
                                             float *__restrict__ running_var, const float *__restrict__ chunk_mean,
                                             const float *__restrict__ chunk_m2, const float *__restrict__ b, int rows,
                                             int cols, int update) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    float n = 0.0f, avg = 0.0f, m2 = 0.0f;
    for (int k = 0; k * ROW_CHUNK < rows; k++) {
        const float count = (float)min((int)ROW_CHUNK, rows - k * ROW_CHUNK), delta = chunk_mean[(size_t)k * cols + c] - avg;
        n += count, avg += delta * count / n;
        m2 += chunk_m2[(size_t)k * cols + c] + delta * delta * count * (n - count) / n;
    }
    mean[c] = avg, rstd[c] = 1.0f / sqrtf(m2 / n + BN_EPS);
    if (update) {
        running_mean[c] += BN_MOMENTUM * (avg + b[c] - running_mean[c]);
        running_var[c] += BN_MOMENTUM * (m2 / fmaxf(n - 1.0f, 1.0f) - running_var[c]);
    }
}

// Evaluation mode: the running statistics, shifted by the bias so that they apply to z.
static __global__ void bn_running_stats_kernel(float *__restrict__ mean, float *__restrict__ rstd,
                                               const float *__restrict__ running_mean, const float *__restrict__ running_var,
                                               const float *__restrict__ b, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < cols) mean[c] = running_mean[c] - b[c], rstd[c] = 1.0f / sqrtf(running_var[c] + BN_EPS);
}

// y = relu(gamma (z - mean) rstd + beta).
static __global__ void bn_relu_kernel(float *__restrict__ y, const float *__restrict__ z, const float *__restrict__ mean,
                                      const float *__restrict__ rstd, const float *__restrict__ gamma,
                                      const float *__restrict__ beta, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (c >= cols) return;
    const float v = gamma[c] * ((z[(size_t)r * cols + c] - mean[c]) * rstd[c]) + beta[c];
    y[(size_t)r * cols + c] = v <= 0.0f ? 0.0f : v;
}

// Backward, first half: masks d where y <= 0; partial column sums of d (for beta) and of d * xhat (for gamma).
static __global__ void bn_relu_backward_sums_kernel(float *__restrict__ d, const float *__restrict__ y, const float *__restrict__ z,
                                                    const float *__restrict__ mean, const float *__restrict__ rstd,
                                                    float *__restrict__ partial_beta, float *__restrict__ partial_gamma,
                                                    int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK;
    if (c >= cols) return;
    float sum = 0.0f, sum_xhat = 0.0f;
    for (int r = first; r < first + ROW_CHUNK && r < rows; r++) {
        const size_t i = (size_t)r * cols + c;
        if (!(y[i] > 0.0f)) d[i] = 0.0f;
        sum += d[i], sum_xhat += d[i] * ((z[i] - mean[c]) * rstd[c]);
    }
    partial_beta[(size_t)blockIdx.y * cols + c] = sum, partial_gamma[(size_t)blockIdx.y * cols + c] = sum_xhat;
}

// Second half: gradient of z. inverse_rows = 1 / B in training mode, where mean and variance depend on z; 0 in evaluation.
static __global__ void bn_backward_kernel(float *__restrict__ d, const float *__restrict__ z, const float *__restrict__ mean,
                                          const float *__restrict__ rstd, const float *__restrict__ gamma,
                                          const float *__restrict__ dgamma, const float *__restrict__ dbeta, int cols,
                                          float inverse_rows) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (c >= cols) return;
    const size_t i = (size_t)r * cols + c;
    const float xhat = (z[i] - mean[c]) * rstd[c];
    d[i] = gamma[c] * rstd[c] * (d[i] - inverse_rows * (dbeta[c] + xhat * dgamma[c]));
}

// Softmax cross-entropy, forward and backward in one pass; a thread per row (few classes). Writes the row's loss, whether
// the largest logit is the label's, and d = (softmax - onehot) * scale.
static __global__ void softmax_cross_entropy_kernel(float *__restrict__ row_loss, int *__restrict__ row_hit, float *__restrict__ d,
                                                    const float *__restrict__ logits, const int *__restrict__ label, int rows,
                                                    int classes, float scale) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const float *x = logits + (size_t)r * classes;
    float largest = x[0], sum = 0.0f;
    int best = 0;
    for (int c = 1; c < classes; c++)
        if (x[c] > largest) largest = x[c], best = c;
    for (int c = 0; c < classes; c++) sum += expf(x[c] - largest);
    for (int c = 0; c < classes; c++)
        d[(size_t)r * classes + c] = (expf(x[c] - largest) / sum - (c == label[r] ? 1.0f : 0.0f)) * scale;
    row_loss[r] = logf(sum) + (largest - x[label[r]]);
    row_hit[r] = best == label[r];
}

// Mean squared error, forward and backward: partial[chunk][c] = squared error of column c over a chunk of rows,
// d = 2 (y - target) * scale.
static __global__ void mse_kernel(float *__restrict__ partial, float *__restrict__ d, const float *__restrict__ y,
                                  const float *__restrict__ target, int rows, int cols, float scale) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK;
    if (c >= cols) return;
    float sum = 0.0f;
    for (int r = first; r < first + ROW_CHUNK && r < rows; r++) {
        const size_t i = (size_t)r * cols + c;
        const float e = y[i] - target[i];
        sum += e * e, d[i] = 2.0f * e * scale;
    }
    partial[(size_t)blockIdx.y * cols + c] = sum;
}

// One block: adds weight * sum of loss[n] to totals[0], the hits (NULL: none) to totals[1], and writes the mean loss over
// the batch's rows to *mean_loss.
static __global__ void sum_losses_kernel(double *__restrict__ totals, float *__restrict__ mean_loss, const float *__restrict__ loss,
                                         const int *__restrict__ hit, int n, double weight, int rows) {
    double sum = 0, hits = 0;
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) sum += (double)loss[i], hits += hit ? hit[i] : 0;
    sum = weight * block_reduce_sum(sum), hits = block_reduce_sum(hits);
    if (threadIdx.x == 0) {
        totals[0] += sum, totals[1] += hits;
        *mean_loss = (float)(sum / rows);
    }
}

// part[block] = sum of squares of a contiguous share of v[n]; for the gradient norm.
static __global__ void sum_squares_kernel(double *__restrict__ part, const float *__restrict__ v, size_t n) {
    const size_t share = (n + gridDim.x - 1) / gridDim.x, first = blockIdx.x * share;
    double sum = 0;
    for (size_t i = first + threadIdx.x; i < first + share && i < n; i += blockDim.x) sum += (double)v[i] * (double)v[i];
    sum = block_reduce_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

// One optimizer step over all parameters at once: they are one array, so one kernel serves every tensor.
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
// AdamW as torch.optim.AdamW: decoupled weight decay, bias-corrected moments; step_size = lr / (1 - beta1^t), root =
// sqrt(1 - beta2^t).
static __global__ void adamw_kernel(float *__restrict__ w, const float *__restrict__ g, float *__restrict__ m, float *__restrict__ v,
                                    float keep, float step_size, float root, float beta1, float beta2, float eps, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float mi = beta1 * m[i] + (1.0f - beta1) * g[i], vi = beta2 * v[i] + (1.0f - beta2) * g[i] * g[i];
    m[i] = mi, v[i] = vi;
    w[i] = w[i] * keep - step_size * mi / (sqrtf(vi) / root + eps);
}

// --------------------------------------------------------------------------------------------------- forward, backward

// What a pass does about BatchNorm: training uses the batch's statistics and moves the running ones; PROBE is training mode
// that leaves the running statistics alone; evaluation uses them.
enum { MODE_TRAIN, MODE_PROBE, MODE_EVAL };

static dim3 grid_of(int cols, int rows) { return dim3((unsigned)ceil_div(cols, BLOCK), (unsigned)rows); }

// Forward: x[0] holds the input [rows][dim[0]]; fills x[1..L].
static void forward(model *m, int rows, int mode) {
    for (int l = 0; l < m->n_layers; l++) {
        const int in = m->dim[l], out = m->dim[l + 1], hidden = l < m->n_layers - 1, chunks = ceil_div(rows, ROW_CHUNK);
        const float *b = m->bias ? m->b[l] : m->no_bias;
        gemm(&m->gemm, 0, 1, rows, out, in, 1.0f, m->x[l], in, m->w[l], in, 0.0f, m->z[l], out);
        if (m->norm == NORM_NONE || !hidden) {
            if (hidden || m->bias) bias_relu_kernel<<<grid_of(out, rows), BLOCK>>>(m->x[l + 1], b, out, hidden);
            continue;
        }
        float *chunk_mean = m->partial, *chunk_m2 = m->partial + (size_t)chunks * (size_t)out;
        if (mode == MODE_EVAL) {
            bn_running_stats_kernel<<<grid_of(out, 1), BLOCK>>>(m->mean[l], m->rstd[l], m->running_mean[l], m->running_var[l], b, out);
        } else {
            bn_chunk_stats_kernel<<<grid_of(out, chunks), BLOCK>>>(m->z[l], chunk_mean, chunk_m2, rows, out);
            bn_merge_stats_kernel<<<grid_of(out, 1), BLOCK>>>(m->mean[l], m->rstd[l], m->running_mean[l], m->running_var[l],
                                                             chunk_mean, chunk_m2, b, rows, out, mode == MODE_TRAIN);
        }
        bn_relu_kernel<<<grid_of(out, rows), BLOCK>>>(m->x[l + 1], m->z[l], m->mean[l], m->rstd[l], m->gamma[l], m->beta[l], out);
    }
    if (mode == MODE_TRAIN && m->norm == NORM_BATCH) m->batches_tracked++;
    CUDA_CHECK_LAUNCH();
}

// Loss of x[L]; its gradient, of the mean over the batch, goes to dx[0]; the mean loss to step_loss[slot]; loss and hits
// are added to totals.
static void loss_forward_backward(model *m, int rows, int slot) {
    const int out = m->dim[m->n_layers], chunks = ceil_div(rows, ROW_CHUNK);
    const float scale = 1.0f / (float)rows;
    const float *y = m->x[m->n_layers];
    if (m->task == TASK_CLASSIFY) {
        softmax_cross_entropy_kernel<<<ceil_div(rows, 32), 32>>>(m->row_loss, m->row_hit, m->dx[0], y, m->label, rows, out, scale);
        sum_losses_kernel<<<1, rows <= 1024 ? 32 : 256>>>(m->totals, m->step_loss + slot, m->row_loss, m->row_hit, rows, 1.0, rows);
    } else {
        mse_kernel<<<grid_of(out, chunks), BLOCK>>>(m->partial, m->dx[0], y, m->x[0], rows, out, scale / (float)out);
        sum_losses_kernel<<<1, 256>>>(m->totals, m->step_loss + slot, m->partial, (const int *)NULL, chunks * out, 1.0 / out, rows);
    }
    CUDA_CHECK_LAUNCH();
}

// Backward of the last forward: dx[0] holds the gradient of x[L]; writes every tensor of grads. Returns the buffer with the
// gradient of x[0], which costs one more product, if input_gradient is set.
static float *backward(model *m, int rows, int mode, int input_gradient) {
    float *d = m->dx[0], *next = m->dx[1];
    const int chunks = ceil_div(rows, ROW_CHUNK);
    for (int l = m->n_layers - 1; l >= 0; l--) {
        const int in = m->dim[l], out = m->dim[l + 1], hidden = l < m->n_layers - 1;
        if (m->norm == NORM_BATCH && hidden) {
            float *partial_gamma = m->partial + (size_t)chunks * (size_t)out;
            bn_relu_backward_sums_kernel<<<grid_of(out, chunks), BLOCK>>>(d, m->x[l + 1], m->z[l], m->mean[l], m->rstd[l], m->partial,
                                                                         partial_gamma, rows, out);
            sum_chunks_kernel<<<grid_of(out, 1), BLOCK>>>(m->dbeta[l], m->partial, chunks, out);
            sum_chunks_kernel<<<grid_of(out, 1), BLOCK>>>(m->dgamma[l], partial_gamma, chunks, out);
            bn_backward_kernel<<<grid_of(out, rows), BLOCK>>>(d, m->z[l], m->mean[l], m->rstd[l], m->gamma[l], m->dgamma[l],
                                                             m->dbeta[l], out, mode == MODE_EVAL ? 0.0f : 1.0f / (float)rows);
        }
        const int relu = hidden && m->norm == NORM_NONE;
        if (relu || m->bias) {
            bias_relu_backward_kernel<<<grid_of(out, chunks), BLOCK>>>(d, m->x[l + 1], m->partial, rows, out, relu);
            if (m->bias) sum_chunks_kernel<<<grid_of(out, 1), BLOCK>>>(m->db[l], m->partial, chunks, out);
        }
        gemm(&m->gemm, 1, 0, out, in, rows, 1.0f, d, out, m->x[l], in, 0.0f, m->dw[l], in);
        if (l == 0 && !input_gradient) break;
        gemm(&m->gemm, 0, 0, rows, in, out, 1.0f, d, out, m->w[l], in, 0.0f, next, in);
        float *swap = d;
        d = next, next = swap;
    }
    CUDA_CHECK_LAUNCH();
    return d;
}

// ----------------------------------------------------------------------------------------------------------- optimizer

// Learning rate of a step (from 0): linear warm-up, then constant or a cosine to zero at the last step.
static double learning_rate(const config *c, int64_t step, int64_t total_steps) {
    if (step < c->warmup) return c->lr * (double)(step + 1) / c->warmup;
    if (c->schedule == SCHEDULE_CONSTANT || total_steps <= c->warmup) return c->lr;
    return 0.5 * c->lr * (1 + cos(M_PI * (double)(step - c->warmup) / (double)(total_steps - c->warmup)));
}

// One update of all parameters; step counts from 0 (AdamW's bias correction uses step + 1).
static void optimizer_step(model *m, const config *c, double lr, int64_t step) {
    const int n = (int)m->n_params, blocks = ceil_div(n, BLOCK);
    const float decay = (float)c->weight_decay;
    if (c->optimizer == OPTIMIZER_SGD) {
        sgd_kernel<<<blocks, BLOCK>>>(m->params, m->grads, (float)lr, decay, n);
    } else if (c->optimizer == OPTIMIZER_MOMENTUM) {
        momentum_kernel<<<blocks, BLOCK>>>(m->params, m->grads, m->moment1, (float)lr, decay, (float)c->momentum, n);
    } else {
        const double beta1 = 0.9, beta2 = 0.999, t = (double)step + 1;
        adamw_kernel<<<blocks, BLOCK>>>(m->params, m->grads, m->moment1, m->moment2, (float)(1 - lr * c->weight_decay),
                                        (float)(lr / (1 - pow(beta1, t))), (float)sqrt(1 - pow(beta2, t)), (float)beta1,
                                        (float)beta2, 1e-8f, n);
    }
    CUDA_CHECK_LAUNCH();
}

// Euclidean norm of an array of the parameters' size. Waits for the device.
static double array_norm(model *m, const float *v) {
    double part[REDUCE_BLOCKS], sum = 0;
    sum_squares_kernel<<<REDUCE_BLOCKS, 32>>>(m->square_sums, v, m->n_params);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemcpy(part, m->square_sums, sizeof part, cudaMemcpyDeviceToHost));
    for (int i = 0; i < REDUCE_BLOCKS; i++) sum += part[i];
    return sqrt(sum);
}
static double gradient_norm(model *m) { return array_norm(m, m->grads); }

// ------------------------------------------------------------------------------------------------------ initialisation

// Initial parameters, made on the host by a counter-based generator (the same on every device), and fresh statistics.
// kaiming-uniform is nn.Linear's default: weights and bias uniform in +-1 / sqrt(fan_in). kaiming-normal: weights normal with
// variance 2 / fan_in, biases zero. scale multiplies weights and biases. BatchNorm: gamma 1, beta 0, mean 0, variance 1.
static void model_init(model *m, const config *c) {
    float *host = (float *)calloc(m->n_params, sizeof(float)), one = 1.0f;
    for (int i = 0; i < m->n_tensors; i++) {
        const tensor *t = &m->tensors[i];
        float *p = host + t->offset;
        const size_t n = (size_t)t->rows * (size_t)t->cols;
        const float fan_in = (float)m->dim[t->layer], scale = (float)c->init_scale;
        const uint64_t stream = rng_stream(RNG_PARAMETERS, (uint32_t)i);
        if (t->name[0] == 'b') {
            for (size_t k = 0; k < n; k++) p[k] = t->role == RESCALE_GAIN ? 1.0f : 0.0f;
        } else if (c->init == INIT_KAIMING_UNIFORM) {
            rng_fill_uniform(p, n, -scale / sqrtf(fan_in), scale / sqrtf(fan_in), (uint64_t)c->seed, stream);
        } else if (t->role == RESCALE_WEIGHT) {
            rng_fill_normal(p, n, 0.0f, scale * sqrtf(2.0f / fan_in), (uint64_t)c->seed, stream);
        }
    }
    CUDA_CHECK(cudaMemcpy(m->params, host, m->n_params * sizeof(float), cudaMemcpyHostToDevice));
    for (int l = 0; l < m->n_layers - 1 && m->norm == NORM_BATCH; l++)
        for (int k = 0; k < m->dim[l + 1]; k++)
            CUDA_CHECK(cudaMemcpy(m->running_var[l] + k, &one, sizeof one, cudaMemcpyHostToDevice));
    free(host);
}

// ----------------------------------------------------------------------------------------------------------- rescaling

// Describes the model to rescale.cuh. With BatchNorm the units are scaled through gamma and beta, which keeps the function
// in training and in evaluation mode; the layer before it is left alone. Returns the number of tensors.
static int describe(const model *m, rescale_group *group, rescale_tensor *tensors) {
    for (int l = 0; l < m->n_layers - 1; l++) group[l] = rescale_units(m->tensors[0].name, m->dim[l + 1], RESCALE_RELU);
    for (int i = 0; i < m->n_tensors; i++) {
        const tensor *t = &m->tensors[i];
        const int l = t->layer, unit = l < m->n_layers - 1 ? l : RESCALE_NONE, bn = t->name[0] == 'b';
        const int enters = m->norm == NORM_BATCH && !bn ? RESCALE_NONE : unit;
        float *data = m->params + t->offset;
        if (t->role == RESCALE_WEIGHT)
            tensors[i] = rescale_weight(t->name, data, t->rows, t->cols, 1, enters, l > 0 ? l - 1 : RESCALE_NONE);
        else if (t->role == RESCALE_GAIN)
            tensors[i] = rescale_gain(t->name, data, t->rows, enters, m->running_mean[l], m->running_var[l], BN_EPS);
        else
            tensors[i] = rescale_bias(t->name, data, t->rows, enters);
        tensors[i].moment1 = m->moment1 ? m->moment1 + t->offset : NULL;
        tensors[i].moment2 = m->moment2 ? m->moment2 + t->offset : NULL;
    }
    return m->n_tensors;
}

// Rescales the parameters (and the optimizer state) in place. Returns 0, or -1 with report->message set.
static int rescale_model(model *m, const config *c, rescale_report *report) {
    static rescale_group group[MAX_LAYERS];
    static rescale_tensor tensors[4 * MAX_LAYERS];
    const rescale_net net = {group, m->n_layers - 1, tensors, describe(m, group, tensors)};
    rescale_options o = rescale_default_options();
    o.method = c->rescale == RESCALE_BY_ENORM ? RESCALE_ENORM : RESCALE_PATHCOND;
    o.solver = c->rescale_solver ? RESCALE_SWEEPS : RESCALE_NEWTON;
    o.sweeps = c->rescale_sweeps, o.max_log = c->rescale_max_log, o.pow2 = c->rescale_pow2;
    o.on_device = DEVICE_IS_GPU;
    device_synchronize();
    return rescale_run(&net, &o, report) ? -1 : 0;
}

enum { PROBE_ROWS = 64 };

// Rows of a probe; a model for fewer rows at a time gets fewer.
static int probe_rows(const model *m) { return m->max_rows < PROBE_ROWS ? m->max_rows : PROBE_ROWS; }

// Outputs of the network on fixed random inputs, [PROBE_ROWS][outputs], in the given mode; the caller frees them.
static float *probe_outputs(model *m, int mode) {
    const int rows = probe_rows(m);
    const size_t n_in = (size_t)rows * (size_t)m->dim[0], n_out = (size_t)rows * (size_t)m->dim[m->n_layers];
    float *in = (float *)malloc(n_in * sizeof(float)), *out = (float *)malloc(n_out * sizeof(float));
    rng_fill_normal(in, n_in, 0.0f, 1.0f, 1, rng_stream(RNG_TEST, 0));
    CUDA_CHECK(cudaMemcpy(m->x[0], in, n_in * sizeof(float), cudaMemcpyHostToDevice));
    forward(m, rows, mode);
    CUDA_CHECK(cudaMemcpy(out, m->x[m->n_layers], n_out * sizeof(float), cudaMemcpyDeviceToHost));
    free(in);
    return out;
}

// Largest |after - before| relative to the largest |before|.
static double relative_difference(const model *m, const float *before, const float *after) {
    const int rows = probe_rows(m);
    double difference = 0, largest = 0;
    for (size_t i = 0; i < (size_t)rows * (size_t)m->dim[m->n_layers]; i++) {
        difference = fmax(difference, fabs((double)after[i] - before[i]));
        largest = fmax(largest, fabs((double)before[i]));
    }
    return difference > 0 ? difference / largest : 0;
}

// rescale_model, and what it did to the network's outputs, in training and in evaluation mode; prints one line.
static int rescale_and_measure(model *m, const config *c, rescale_report *report, double *moved) {
    float *before[2], *after[2];
    before[0] = probe_outputs(m, MODE_EVAL), before[1] = probe_outputs(m, MODE_PROBE);
    const int status = rescale_model(m, c, report);
    *moved = 0;
    for (int i = 0; i < 2; i++) {
        after[i] = probe_outputs(m, i ? MODE_PROBE : MODE_EVAL);
        *moved = fmax(*moved, relative_difference(m, before[i], after[i]));
        free(before[i]), free(after[i]);
    }
    return status;
}

// ------------------------------------------------------------------------------------------------------- data on device

typedef struct device_data {
    int n, features, plane, channels;
    unsigned char *pixels;  // [n][features], or NULL
    float *values;          // [n][features], or NULL
    unsigned char *labels;  // [n]
    int *order;             // [n] this epoch's order of the samples
    normalisation norm;
} device_data;

// Copies a data set to the device. Classifiers see pixels normalised per channel, autoencoders pixels scaled to 0..1.
static device_data device_data_create(const dataset *d, int task) {
    device_data r;
    const size_t size = (size_t)d->n * (size_t)d->features;
    memset(&r, 0, sizeof r);
    r.n = d->n, r.features = d->features, r.plane = d->height * d->width, r.channels = d->channels;
    for (int k = 0; k < d->channels && k < 4; k++) {
        r.norm.mul[k] = task == TASK_AUTOENCODE ? 1.0f / 255.0f : 1.0f / (255.0f * d->std[k]);
        r.norm.add[k] = task == TASK_AUTOENCODE ? 0.0f : -d->mean[k] / d->std[k];
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

static void device_data_free(device_data *d) {
    CUDA_CHECK(cudaFree(d->pixels));
    CUDA_CHECK(cudaFree(d->values));
    CUDA_CHECK(cudaFree(d->labels));
    CUDA_CHECK(cudaFree(d->order));
    memset(d, 0, sizeof *d);
}

// Puts the samples of an epoch in order: shuffled by (seed, epoch), or as stored.
static void order_samples(const device_data *d, int64_t seed, int64_t epoch, int shuffled) {
    const uint64_t key = rng_permute_key((uint64_t)seed, (uint64_t)epoch);
    permutation_kernel<<<ceil_div(d->n, BLOCK), BLOCK>>>(d->order, d->n, key, shuffled);
    CUDA_CHECK_LAUNCH();
}

// Loads rows first .. first + rows - 1 of the epoch's order into x[0] and the labels.
static void load_batch(model *m, const device_data *d, int first, int rows) {
    const int *order = d->order + first;
    if (d->pixels) {
        const dim3 grid((unsigned)ceil_div(d->plane, BLOCK), (unsigned)rows, (unsigned)d->channels);
        gather_pixels_kernel<<<grid, BLOCK>>>(m->x[0], d->pixels, order, d->plane, d->norm);
    } else {
        gather_values_kernel<<<grid_of(d->features, rows), BLOCK>>>(m->x[0], d->values, order, d->features);
    }
    gather_labels_kernel<<<ceil_div(rows, BLOCK), BLOCK>>>(m->label, d->labels, order, rows);
    CUDA_CHECK_LAUNCH();
}

// Mean loss and accuracy (a fraction; LOG_NA for autoencoders) over a data set, BatchNorm in evaluation mode.
static void evaluate(model *m, const device_data *d, double *loss, double *accuracy) {
    double totals[2];
    order_samples(d, 0, 0, 0);
    CUDA_CHECK(cudaMemset(m->totals, 0, sizeof totals));
    for (int first = 0; first < d->n; first += m->max_rows) {
        const int rows = d->n - first < m->max_rows ? d->n - first : m->max_rows;
        load_batch(m, d, first, rows);
        forward(m, rows, MODE_EVAL);
        loss_forward_backward(m, rows, LOSS_RING);
    }
    CUDA_CHECK(cudaMemcpy(totals, m->totals, sizeof totals, cudaMemcpyDeviceToHost));
    *loss = totals[0] / d->n;
    *accuracy = m->task == TASK_CLASSIFY ? totals[1] / d->n : LOG_NA;
}

// -------------------------------------------------------------------------------------------------------- training loop

typedef struct trainer {
    const config *c;
    model m;
    device_data train, test;
    int batch;                   // rows of a full batch
    int64_t steps_per_epoch, total_steps, step;
    int64_t ready;               // epoch whose sample order (full batch: whose batch) is on the device, or -1
    int64_t first_step;          // where this process started (resume)
    int64_t fetched;             // steps whose loss has been fetched and logged
    double step_seconds, mark;   // time spent in steps; clock at the last mark
    double loss, train_loss, test_loss, test_accuracy;
    rescale_report rescale;      // of the first rescaling
    int rescalings;              // how many there were, and how long all of them took
    double rescale_seconds;
    double output_moved;
    log_csv csv;
    log_progress progress;
    char last_checkpoint[LOG_PATH];
} trainer;

// Prints `train_mlp: message` on stderr and returns 1, the exit status of a failure.
static int fail(trainer *t, const char *message) {
    log_progress_clear(&t->progress);
    fprintf(stderr, "train_mlp: %s\n", message);
    return 1;
}

// Reports that `what` is not finite after `step` steps; names the last good checkpoint. Returns 1.
static int diverged(trainer *t, const char *what, int64_t step) {
    char text[2 * LOG_PATH];
    if (step == 0)
        snprintf(text, sizeof text, "%s is not finite before the first step: the initial weights are too large", what);
    else
        snprintf(text, sizeof text, "%s is not finite at step %lld: training diverged, try a smaller --lr than %g%s%s", what,
                 (long long)step, t->c->lr, t->last_checkpoint[0] ? "; last good checkpoint: " : "", t->last_checkpoint);
    return fail(t, text);
}

// Number of steps an option like 2epochs or 100steps stands for; 0: never.
static int64_t every_steps(const trainer *t, cli_every e) { return e.unit == CLI_EPOCHS ? e.n * t->steps_per_epoch : e.n; }

// Fetches the losses of the steps since the last call, logs them, and stops the clock of the steps. Returns 0; 1 when the
// loss is no longer finite or the log fails.
static int fetch_losses(trainer *t) {
    float ring[LOSS_RING];
    char err[LOG_PATH + 256];
    const int64_t n = t->step - t->fetched;
    if (n == 0) return 0;
    CUDA_CHECK(cudaMemcpy(ring, t->m.step_loss, sizeof ring, cudaMemcpyDeviceToHost));
    const double now = log_seconds(), seconds = (now - t->mark) / (double)n, norm = t->csv.file.f ? gradient_norm(&t->m) : 0;
    t->step_seconds += now - t->mark;
    for (; t->fetched < t->step; t->fetched++) {
        const int64_t s = t->fetched;
        t->loss = ring[s % LOSS_RING];
        if (!isfinite(t->loss)) return diverged(t, "the loss", s + 1);
        log_row row = log_row_make(s + 1, (double)(s + 1) / (double)t->steps_per_epoch, "step", t->loss);
        row.lr = learning_rate(t->c, s, t->total_steps);
        row.ms = 1e3 * seconds, row.samples_per_s = t->batch / seconds;
        if (s + 1 == t->step) row.grad_norm = norm;
        if (t->csv.file.f && log_write(&t->csv, &row, err, sizeof err)) fail(t, err);
    }
    t->mark = log_seconds();
    return 0;
}

// Evaluates on both sets, logs two rows and prints a line. Returns 0, or 1 when the training loss is not finite.
static int evaluate_and_log(trainer *t) {
    char err[LOG_PATH + 256];
    double accuracy;
    const double epoch = (double)t->step / (double)t->steps_per_epoch;
    t->ready = -1;
    evaluate(&t->m, &t->train, &t->train_loss, &accuracy);
    evaluate(&t->m, &t->test, &t->test_loss, &t->test_accuracy);
    for (int k = 0; k < 2 && t->csv.file.f; k++) {
        log_row row = log_row_make(t->step, epoch, k ? "test" : "train", k ? t->test_loss : t->train_loss);
        row.accuracy = k ? t->test_accuracy : accuracy;
        row.lr = learning_rate(t->c, t->step, t->total_steps);
        if (log_write(&t->csv, &row, err, sizeof err)) fail(t, err);
    }
    if (t->test_accuracy == LOG_NA)
        log_progress_line(&t->progress, "epoch %6.2f  train loss %.6f  test loss %.6f", epoch, t->train_loss, t->test_loss);
    else
        log_progress_line(&t->progress, "epoch %6.2f  train loss %.4f  test loss %.4f  test accuracy %.2f%%", epoch, t->train_loss,
                          t->test_loss, 100 * t->test_accuracy);
    t->mark = log_seconds();
    return isfinite(t->train_loss) ? 0 : diverged(t, "the training loss", t->step);
}

// Rescales now and prints what it did. Returns 0, or 1 after a message.
static int rescale_and_log(trainer *t, int first) {
    rescale_report r;
    double moved;
    t->ready = -1;
    if (rescale_and_measure(&t->m, t->c, &r, &moved)) return fail(t, r.message);
    if (first) t->rescale = r, t->output_moved = moved;
    t->rescalings++, t->rescale_seconds += r.seconds_diag_g + r.seconds_solve + r.seconds_apply;
    char diag[LOG_DURATION], solve[LOG_DURATION], apply[LOG_DURATION];
    log_progress_line(&t->progress,
                      "rescaled by %s: objective %.6g -> %.6g, max gradient %.1e after %d Newton steps and %d sweeps; diag(G) %s, "
                      "solve %s, apply %s; max |log lambda| %.2f, %d of %d units pinned; outputs moved by %.1e",
                      t->c->rescale == RESCALE_BY_ENORM ? "ENorm" : "PathCond", r.objective_before, r.objective_after, r.grad_inf,
                      r.iterations, r.sweeps, log_duration(diag, r.seconds_diag_g), log_duration(solve, r.seconds_solve),
                      log_duration(apply, r.seconds_apply), r.max_abs_log_lambda, r.pinned_units, r.units, moved);
    t->mark = log_seconds();
    return 0;
}

// --------------------------------------------------------------------------------------------- weights and checkpoints
// Weights are safetensors with PyTorch's names. A checkpoint is a folder LOGDIR/checkpoint-STEP with model.safetensors and,
// written after it, state.safetensors; one with both files good is complete.

enum { MAX_SAVED = 7 * MAX_LAYERS + 16 };  // tensors in one file

// Copies n floats from the device into fresh host memory.
static float *download(const float *device, size_t n) {
    float *host = (float *)malloc((n ? n : 1) * sizeof(float));
    CUDA_CHECK(cudaMemcpy(host, device, n * sizeof(float), cudaMemcpyDeviceToHost));
    return host;
}

// Lists the parameter tensors of a family (host copy of params or of a moment) under prefix + name. Returns how many.
static int list_tensors(const model *m, const float *host, const char *prefix, safetensors_tensor *out, char (*names)[64]) {
    for (int i = 0; i < m->n_tensors; i++) {
        const tensor *t = &m->tensors[i];
        const int64_t shape[2] = {t->rows, t->cols};
        snprintf(names[i], 64, "%s%s", prefix, t->name);
        out[i] = safetensors_make(names[i], SAFETENSORS_F32, t->role == RESCALE_WEIGHT ? 2 : 1, shape, host + t->offset);
    }
    return m->n_tensors;
}

// Lists BatchNorm's running statistics and batch counts under PyTorch's names. Returns how many.
static int list_stats(const model *m, const float *host, safetensors_tensor *out, char (*names)[64]) {
    static const char *const suffix[3] = {"running_mean", "running_var", "num_batches_tracked"};
    int n = 0;
    for (int l = 0; l < m->n_layers - 1 && m->norm == NORM_BATCH; l++)
        for (int k = 0; k < 3; k++, n++) {
            const int64_t shape[1] = {m->dim[l + 1]};
            snprintf(names[n], 64, "bn%d.%s", l + 1, suffix[k]);
            const float *stat = host + ((k ? m->running_var[l] : m->running_mean[l]) - m->stats);
            out[n] = k < 2 ? safetensors_make(names[n], SAFETENSORS_F32, 1, shape, stat)
                           : safetensors_make(names[n], SAFETENSORS_I64, 0, NULL, &m->batches_tracked);
        }
    return n;
}

static size_t stats_size(const model *m) {
    size_t n = 0;
    for (int l = 0; l < m->n_layers - 1 && m->norm == NORM_BATCH; l++) take(NULL, &n, (size_t)m->dim[l + 1]), take(NULL, &n, (size_t)m->dim[l + 1]);
    return n;
}

static int64_t parameter_count(const model *m) {
    int64_t n = 0;
    for (int i = 0; i < m->n_tensors; i++) n += (int64_t)m->tensors[i].rows * m->tensors[i].cols;
    return n;
}

// Writes the weights. Returns 0, or -1 with a message. A device or pipe at path is refused: it would be replaced.
static int save_model(const model *m, const char *path, char *err, size_t n) {
    static char names[MAX_SAVED][64];
    safetensors_tensor list[MAX_SAVED];
    struct stat info;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode)) {
        snprintf(err, n, "%s: is not a regular file", path);
        return -1;
    }
    float *params = download(m->params, m->n_params), *stats = download(m->stats, stats_size(m));
    int count = list_tensors(m, params, "", list, names);
    count += list_stats(m, stats, list + count, names + count);
    const int status = safetensors_write(path, list, (size_t)count, NULL, 0, err, n);
    free(params), free(stats);
    return status;
}

// Reads the listed tensors, whose data point into host arrays that they fill, from an open file.
static int read_listed(const safetensors_file *f, const safetensors_tensor *list, int count, char *err, size_t n) {
    for (int i = 0; i < count; i++) {
        void *out = (void *)(uintptr_t)list[i].data;
        const int status = list[i].dtype == SAFETENSORS_F32
                               ? safetensors_read_f32(f, list[i].name, list[i].ndim, list[i].shape, (float *)out, err, n)
                               : safetensors_read(f, list[i].name, list[i].dtype, list[i].ndim, list[i].shape, out, err, n);
        if (status) return status;
    }
    return 0;
}

// Loads weights (and BatchNorm statistics). Every tensor of the network must be there with its shape, and no other. The
// model changes only when the whole file is good. Returns 0, or -1 with a message.
static int load_model(model *m, const char *path, char *err, size_t n) {
    static char names[MAX_SAVED][64];
    safetensors_tensor list[MAX_SAVED];
    safetensors_file f;
    if (safetensors_open(&f, path, err, n)) return -1;
    const int64_t tracked = m->batches_tracked;
    float *params = download(m->params, m->n_params), *stats = download(m->stats, stats_size(m));
    int count = list_tensors(m, params, "", list, names);
    count += list_stats(m, stats, list + count, names + count);
    int status = read_listed(&f, list, count, err, n);
    for (size_t k = 0; k < f.n_tensors && !status; k++) {
        int known = 0;
        for (int i = 0; i < count; i++) known = known || !strcmp(f.tensors[k].name, names[i]);
        if (!known) {
            snprintf(err, n, "%s: tensor '%s' does not belong to this network (layers, --norm or --no-bias differ)", path, f.tensors[k].name);
            status = -1;
        }
    }
    if (!status) {
        CUDA_CHECK(cudaMemcpy(m->params, params, m->n_params * sizeof(float), cudaMemcpyHostToDevice));
        CUDA_CHECK(cudaMemcpy(m->stats, stats, stats_size(m) * sizeof(float), cudaMemcpyHostToDevice));
    } else {
        m->batches_tracked = tracked;
    }
    free(params), free(stats);
    safetensors_close(&f);
    return status;
}

// What a resumed run must share with the run that wrote the state.
enum { STATE_STEP, STATE_SEED, STATE_BATCH, STATE_SAMPLES, STATE_OPTIMIZER, STATE_SHUFFLE, N_STATE };
static const char *const state_name[N_STATE] = {"step", "seed", "batch_size", "training_samples", "optimizer", "shuffle"};
static const char *const state_option[N_STATE] = {"", "--seed", "--batch-size", "--data or --limit", "--optimizer", "--shuffle"};

static void state_of(const trainer *t, int64_t *state) {
    const int64_t now[N_STATE] = {t->step, t->c->seed, t->batch, t->train.n, t->c->optimizer, t->c->shuffle};
    memcpy(state, now, sizeof now);
}

// Lists the state: the scalars and the optimizer's moments (host copies, NULL where the optimizer has none).
static int list_state(const model *m, const int64_t *state, const float *moment1, const float *moment2,
                      safetensors_tensor *list, char (*names)[64]) {
    int count = 0;
    for (; count < N_STATE; count++) list[count] = safetensors_make(state_name[count], SAFETENSORS_I64, 0, NULL, state + count);
    if (moment1) count += list_tensors(m, moment1, "moment1.", list + count, names + count);
    if (moment2) count += list_tensors(m, moment2, "moment2.", list + count, names + count);
    return count;
}

// The steps of the checkpoints in a log folder, newest first; at most max of them. Returns how many.
static int find_checkpoints(const char *dir, int64_t *steps, int max) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        long long step;
        char tail;
        if (sscanf(e->d_name, "checkpoint-%lld%c", &step, &tail) != 1) continue;
        if (n == max && steps[max - 1] >= step) continue;
        int at = n < max ? n++ : max - 1;
        for (; at > 0 && steps[at - 1] < step; at--) steps[at] = steps[at - 1];
        steps[at] = step;
    }
    if (d) closedir(d);
    return n;
}

// Whether training can go on from here: parameters, optimizer state, gradients and the network's outputs are finite.
static int is_sound(trainer *t) {
    model *m = &t->m;
    const float *const arrays[] = {m->params, m->grads, m->moment1, m->moment2};
    int sound = 1;
    for (int i = 0; i < 4; i++) sound = sound && (!arrays[i] || isfinite(array_norm(m, arrays[i])));
    float *out = probe_outputs(m, MODE_EVAL);
    const int rows = probe_rows(m);
    for (size_t i = 0; i < (size_t)rows * (size_t)m->dim[m->n_layers]; i++) sound = sound && isfinite(out[i]);
    free(out);
    t->ready = -1;
    return sound;
}

// Writes LOGDIR/checkpoint-STEP and removes all but the two newest, and those of later steps: they are damaged (--resume
// skipped them) or of an earlier run in this folder. Returns 0, or 1 after a message.
static int save_checkpoint(trainer *t) {
    static char names[MAX_SAVED][64];
    safetensors_tensor list[MAX_SAVED];
    char dir[LOG_PATH], path[LOG_PATH + 32], err[LOG_PATH + 256];
    int64_t state[N_STATE], steps[64];
    const model *m = &t->m;
    state_of(t, state);
    if (!is_sound(t)) return diverged(t, "the network", t->step);
    snprintf(dir, sizeof dir, "%s/checkpoint-%lld", t->c->log_dir, (long long)t->step);
    if (mkdir(dir, 0777) && errno != EEXIST) {
        snprintf(err, sizeof err, "%s: cannot make the folder: %s", dir, strerror(errno));
        return fail(t, err);
    }
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    if (save_model(m, path, err, sizeof err)) return fail(t, err);
    float *moment1 = m->moment1 ? download(m->moment1, m->n_params) : NULL;
    float *moment2 = m->moment2 ? download(m->moment2, m->n_params) : NULL;
    snprintf(path, sizeof path, "%s/state.safetensors", dir);
    const int count = list_state(m, state, moment1, moment2, list, names);
    const int status = safetensors_write(path, list, (size_t)count, NULL, 0, err, sizeof err);
    free(moment1), free(moment2);
    if (status) return fail(t, err);
    snprintf(t->last_checkpoint, sizeof t->last_checkpoint, "%s", dir);
    for (int n = find_checkpoints(t->c->log_dir, steps, 64), i = 0, kept = 0; i < n; i++) {
        static const char *const file[] = {"/state.safetensors", "/model.safetensors", ""};
        if (steps[i] <= t->step && kept++ < 2) continue;
        for (int k = 0; k < 3; k++) {
            snprintf(path, sizeof path, "%s/checkpoint-%lld%s", t->c->log_dir, (long long)steps[i], file[k]);
            if (remove(path) && errno != ENOENT) break;
        }
    }
    return 0;
}

// Loads one checkpoint. Returns 0; -1 when it is incomplete or damaged (err says why); 1 when it belongs to other options.
static int load_checkpoint(trainer *t, const char *dir, char *err, size_t n) {
    static char names[MAX_SAVED][64];
    safetensors_tensor list[MAX_SAVED];
    safetensors_file f;
    char path[LOG_PATH + 32];
    int64_t state[N_STATE], mine[N_STATE];
    model *m = &t->m;
    state_of(t, mine), memcpy(state, mine, sizeof mine);
    snprintf(path, sizeof path, "%s/state.safetensors", dir);
    if (safetensors_open(&f, path, err, n)) return -1;
    int status = read_listed(&f, list, list_state(m, state, NULL, NULL, list, names), err, n) ? 1 : 0;
    for (int k = 1; k < N_STATE && !status; k++)
        if (state[k] != mine[k]) {
            snprintf(err, n, "%s: %s was %lld in that run, here it is %lld: resume with the same %s", dir, state_name[k], (long long)state[k],
                     (long long)mine[k], state_option[k]);
            status = 1;
        }
    float *moment1 = m->moment1 ? download(m->moment1, m->n_params) : NULL;
    float *moment2 = m->moment2 ? download(m->moment2, m->n_params) : NULL;
    if (!status && read_listed(&f, list, list_state(m, state, moment1, moment2, list, names), err, n)) status = 1;
    safetensors_close(&f);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    if (!status && load_model(m, path, err, n)) status = -1;
    if (!status) {
        if (moment1) CUDA_CHECK(cudaMemcpy(m->moment1, moment1, m->n_params * sizeof(float), cudaMemcpyHostToDevice));
        if (moment2) CUDA_CHECK(cudaMemcpy(m->moment2, moment2, m->n_params * sizeof(float), cudaMemcpyHostToDevice));
        t->step = state[STATE_STEP];
    }
    free(moment1), free(moment2);
    return status;
}

// Continues from the newest complete checkpoint of --resume. Returns 0, or 1 after a message.
static int resume_checkpoint(trainer *t) {
    int64_t steps[64];
    char dir[LOG_PATH], err[LOG_PATH + 256];
    const int n = find_checkpoints(t->c->resume, steps, 64);
    for (int i = 0; i < n; i++) {
        snprintf(dir, sizeof dir, "%s/checkpoint-%lld", t->c->resume, (long long)steps[i]);
        const int status = load_checkpoint(t, dir, err, sizeof err);
        if (status > 0) return fail(t, err);
        if (status == 0) {
            snprintf(t->last_checkpoint, sizeof t->last_checkpoint, "%s", dir);
            log_progress_line(&t->progress, "resumed from %s", dir);
            return 0;
        }
        fprintf(stderr, "train_mlp: skipping an incomplete or damaged checkpoint: %s\n", err);
    }
    snprintf(err, sizeof err, "--resume: no complete checkpoint in %s", t->c->resume);
    return fail(t, err);
}

// One training step: batch, forward, loss, backward, update.
static void train_step(trainer *t) {
    const config *c = t->c;
    const int64_t epoch = t->step / t->steps_per_epoch, in_epoch = t->step % t->steps_per_epoch;
    const int first = (int)in_epoch * t->batch, rows = t->train.n - first < t->batch ? t->train.n - first : t->batch;
    const int full_batch = t->batch == t->train.n;
    if (t->ready != (full_batch ? 0 : epoch)) {  // a new epoch, or an evaluation came in between
        t->ready = full_batch ? 0 : epoch;
        order_samples(&t->train, c->seed, epoch, c->shuffle == SHUFFLE_EPOCH && !full_batch);
        if (full_batch) load_batch(&t->m, &t->train, 0, rows);
    }
    if (!full_batch) load_batch(&t->m, &t->train, first, rows);
    forward(&t->m, rows, MODE_TRAIN);
    loss_forward_backward(&t->m, rows, (int)(t->step % LOSS_RING));
    backward(&t->m, rows, MODE_TRAIN, 0);
    optimizer_step(&t->m, c, learning_rate(c, t->step, t->total_steps), t->step);
    t->step++;
}

// Trains to the last step. Returns the exit status: 0, 1 after a failure, 130 or 143 when interrupted (after saving).
static int train_loop(trainer *t) {
    const config *c = t->c;
    const int64_t eval = every_steps(t, c->eval_every), checkpoint = every_steps(t, c->checkpoint_every);
    const int64_t rescale = c->rescale ? every_steps(t, c->rescale_every) : 0;
    int64_t evaluated = -1, saved = t->step;
    t->mark = log_seconds();
    if (t->step == 0) {
        if (evaluate_and_log(t)) return 1;
        evaluated = 0;
    }
    while (t->step < t->total_steps && !log_interrupted) {
        if (rescale && t->step > 0 && t->step % rescale == 0) {
            if (fetch_losses(t) || rescale_and_log(t, 0)) return 1;
        }
        train_step(t);
        const int due = log_progress_due(&t->progress);
        if ((due || t->step - t->fetched == LOSS_RING) && fetch_losses(t)) return 1;
        if (due)
            log_progress_update(&t->progress, "epoch %.2f of %.0f  step %lld  loss %.4f  %.2f ms/step",
                                (double)t->step / (double)t->steps_per_epoch, (double)t->total_steps / (double)t->steps_per_epoch,
                                (long long)t->step, t->loss, 1e3 * t->step_seconds / (double)(t->step - t->first_step));
        if (eval && t->step % eval == 0) {
            if (fetch_losses(t) || evaluate_and_log(t)) return 1;
            evaluated = t->step;
        }
        if (checkpoint && t->step % checkpoint == 0 && c->log_dir) {
            if (fetch_losses(t) || save_checkpoint(t)) return 1;
            saved = t->step, t->mark = log_seconds();
        }
    }
    if (fetch_losses(t)) return 1;
    if (!log_interrupted && evaluated != t->step && evaluate_and_log(t)) return 1;
    if (c->log_dir && saved != t->step && save_checkpoint(t)) return 1;
    if (!log_interrupted) return 0;
    char text[LOG_PATH + 128];
    snprintf(text, sizeof text, "interrupted after step %lld%s%s", (long long)t->step,
             t->last_checkpoint[0] ? "; continue with --resume " : "", t->last_checkpoint[0] ? c->log_dir : "");
    fail(t, text);
    return log_interrupt_status();
}

// CPU threads that kernels and matrix products use; 1 on a GPU.
static int device_threads(void) {
    cudaDeviceProp prop;
    CUDA_CHECK(cudaGetDeviceProperties(&prop, 0));
    return DEVICE_IS_GPU ? 1 : prop.multiProcessorCount;
}

// The JSON report: what the rescaling did, how training went, what it ran on. Returns 0, or 1 after a message.
static int write_report(trainer *t, double seconds) {
    const rescale_report *r = &t->rescale;
    const int rescaled = r->units > 0;
    static const char *const method[] = {"none", "pathcond", "enorm"}, *const solver[] = {"newton", "sweeps"};
    char err[LOG_PATH + 256], device[256];
    log_json j;
    if (log_json_open(&j, t->c->report, err, sizeof err)) return fail(t, err);
    log_json_begin(&j, "rescale");
    log_json_string(&j, "method", method[t->c->rescale]);
    log_json_string(&j, "solver", solver[t->c->rescale_solver]);
    log_json_number(&j, "objective_before", rescaled ? r->objective_before : LOG_NA);
    log_json_number(&j, "objective_after", rescaled ? r->objective_after : LOG_NA);
    log_json_number(&j, "grad_inf", rescaled ? r->grad_inf : LOG_NA);
    log_json_number(&j, "grad_tolerance", rescaled ? r->grad_tolerance : LOG_NA);
    log_json_int(&j, "iterations", r->iterations);
    log_json_int(&j, "sweeps", r->sweeps);
    log_json_number(&j, "seconds_diag_g", r->seconds_diag_g);
    log_json_number(&j, "seconds_solve", r->seconds_solve);
    log_json_number(&j, "seconds_apply", r->seconds_apply);
    log_json_int(&j, "rescalings", t->rescalings);
    log_json_number(&j, "seconds", t->rescale_seconds);
    log_json_number(&j, "max_abs_log_lambda", r->max_abs_log_lambda);
    log_json_int(&j, "pinned_units", r->pinned_units);
    log_json_int(&j, "units", r->units);
    log_json_int(&j, "parameters", r->parameters);
    log_json_number(&j, "output_max_rel_diff", rescaled ? t->output_moved : LOG_NA);
    log_json_end(&j);
    log_json_begin(&j, "train");
    log_json_int(&j, "steps", t->step);
    log_json_number(&j, "final_train_loss", t->train_loss);
    log_json_number(&j, "final_test_loss", t->test_loss);
    log_json_number(&j, "final_test_accuracy", t->test_accuracy);
    log_json_number(&j, "seconds", seconds);
    log_json_number(&j, "step_seconds", t->step_seconds);
    const double samples = (double)(t->step - t->first_step) * t->train.n / (double)t->steps_per_epoch;
    log_json_number(&j, "samples_per_second", t->step_seconds > 0 ? samples / t->step_seconds : LOG_NA);
    log_json_end(&j);
    device_describe(device, sizeof device);
    log_json_string(&j, "device", device);
    log_json_string(&j, "gemm", gemm_backend());
    log_json_int(&j, "threads", device_threads());
    log_json_string(&j, "version", VERSION);
    return log_json_close(&j, err, sizeof err) ? fail(t, err) : 0;
}

// -------------------------------------------------------------------------------------------------------- command line

// Fills the configuration from the command line; exits on --help, --version and usage errors.
static void parse_command_line(config *c, int argc, char **argv) {
    cli_option options[] = {
        CLI_GROUP("Data"),
        CLI_STRING("data", &c->data, "NAME|DIR", "fashion-mnist, mnist, cifar10, moons, images (built in), or a folder"),
        CLI_STRING("data-dir", &c->data_dir, "DIR", "where data/get_data.sh puts the named sets"),
        CLI_INT("limit", &c->limit, "N", 0, INT_MAX, "use only the first N training samples (0: all)"),
        CLI_GROUP("Model"),
        CLI_INTS("layers", &c->layers, "N,N,...", 1, 1e6, "units of every layer, input first (default: input,512,512,512,output)"),
        CLI_CHOICE("task", &c->task, "classify|autoencode", "softmax cross-entropy, or mean squared error of the input"),
        CLI_CHOICE("norm", &c->norm, "none|batch", "BatchNorm after every hidden linear layer"),
        CLI_NO_FLAG("no-bias", &c->bias, "linear layers without bias"),
        CLI_CHOICE("init", &c->init, "kaiming-uniform|kaiming-normal", "nn.Linear's default, or normal weights and zero biases"),
        CLI_DOUBLE("init-scale", &c->init_scale, "X", 0, CLI_NO_MAX, CLI_ABOVE_MIN, "multiplies the initial weights and biases"),
        CLI_GROUP("Rescaling"),
        CLI_CHOICE("rescale", &c->rescale, "none|pathcond|enorm", "method, applied after initialisation"),
        CLI_CHOICE("rescale-solver", &c->rescale_solver, "newton|sweeps", "to the optimum, or a number of block sweeps"),
        CLI_INT("rescale-sweeps", &c->rescale_sweeps, "N", 0, 1000000, "sweeps of --rescale-solver sweeps"),
        CLI_DOUBLE("rescale-max-log", &c->rescale_max_log, "X", 0, CLI_NO_MAX, 0, "bound on |log lambda| (0: none)"),
        CLI_EVERY("rescale-every", &c->rescale_every, "rescale again during training (0: only at init)"),
        CLI_FLAG("rescale-pow2", &c->rescale_pow2, "powers of two only: the function stays the same bit for bit"),
        CLI_GROUP("Training"),
        CLI_CHOICE("optimizer", &c->optimizer, "sgd|momentum|adamw", "as torch.optim.SGD and AdamW"),
        CLI_DOUBLE("lr", &c->lr, "X", 0, CLI_NO_MAX, CLI_ABOVE_MIN, "learning rate"),
        CLI_DOUBLE("momentum", &c->momentum, "X", 0, 1, CLI_BELOW_MAX, "of --optimizer momentum"),
        CLI_DOUBLE("weight-decay", &c->weight_decay, "X", 0, CLI_NO_MAX, 0, "on every parameter; AdamW's is decoupled"),
        CLI_CHOICE("schedule", &c->schedule, "constant|cosine", "of the learning rate; cosine ends at zero"),
        CLI_INT("warmup", &c->warmup, "N", 0, INT_MAX, "steps of linear warm-up"),
        CLI_INT("epochs", &c->epochs, "N", 0, 1000000, "passes over the training set"),
        CLI_INT("steps", &c->steps, "N", 0, INT_MAX, "stop after N steps instead (0: initialise, rescale, save, stop)"),
        CLI_INT("batch-size", &c->batch_size, "N", 0, INT_MAX, "samples per step (0: the whole training set)"),
        CLI_INT64("seed", &c->seed, "N", 0, 9007199254740992.0, "of initial weights and sample order"),
        CLI_CHOICE("shuffle", &c->shuffle, "epoch|none", "a new order of the samples every epoch, or as stored"),
        CLI_CHOICE("precision", &c->precision, "fp32|tf32|bf16", "of matrix products (tf32 and bf16 need a GPU)"),
        CLI_GROUP("Output"),
        CLI_EVERY("eval-every", &c->eval_every, "evaluate on training and test set (0: only at the end)"),
        CLI_STRING("load", &c->load, "FILE", "initial weights, safetensors with PyTorch's names"),
        CLI_STRING("save", &c->save, "FILE", "write the final weights there"),
        CLI_STRING("log-dir", &c->log_dir, "DIR", "write log.csv and checkpoints there"),
        CLI_EVERY("checkpoint-every", &c->checkpoint_every, "checkpoints in --log-dir (0: only at the end)"),
        CLI_STRING("resume", &c->resume, "DIR", "continue from the newest checkpoint in DIR, with the same options"),
        CLI_STRING("report", &c->report, "FILE", "write a JSON report"),
        CLI_FLAG("quiet", &c->quiet, "print nothing but errors"),
    };
    const int n = sizeof options / sizeof *options;
    cli_parse("train_mlp", "Trains a ReLU MLP, rescaled after initialisation so that it trains faster.", VERSION, options, n, argc, argv);
    if (!cli_given(options, n, "steps")) c->steps = -1;
    if (c->resume && c->load) cli_usage_error("train_mlp", "--resume and --load exclude each other");
    if (c->resume && c->log_dir && strcmp(c->resume, c->log_dir))
        cli_usage_error("train_mlp", "--log-dir must be the folder of --resume, or left out");
    if (c->layers.n == 1 || c->layers.n > MAX_LAYERS + 1)
        cli_usage_error("train_mlp", "--layers: expected 2 to %d layer sizes, got %d", MAX_LAYERS + 1, c->layers.n);
    if (c->resume) c->log_dir = c->resume;
}

// Layer sizes from --layers or the default, checked against the data. Returns the number of linear layers, or 0 with err.
static int layer_sizes(const config *c, const dataset *d, int *dim, char *err, size_t n) {
    const int out = c->task == TASK_CLASSIFY ? d->classes : d->features, standard[5] = {d->features, 512, 512, 512, out};
    const int layers = c->layers.n ? c->layers.n : 5;
    double parameters = 0;  // at most; with the padding of small tensors
    for (int i = 0; i < layers; i++) dim[i] = c->layers.n ? c->layers.v[i] : standard[i];
    for (int i = 1; i < layers; i++) parameters += ((double)dim[i - 1] + 3) * dim[i] + 4 * ALIGN;
    if (dim[0] != d->features)
        snprintf(err, n, "--layers: the first layer has %d units, but a sample of %s has %d features", dim[0], d->name, d->features);
    else if (dim[layers - 1] != out)
        snprintf(err, n, "--layers: the last layer has %d units, but %s has %d %s", dim[layers - 1], d->name, out,
                 c->task == TASK_CLASSIFY ? "classes" : "features to reconstruct");
    else if (parameters > INT_MAX)
        snprintf(err, n, "--layers: %.3g parameters, expected at most %d", parameters, INT_MAX);
    else
        return layers - 1;
    return 0;
}

// Loads the data, builds and initialises the model, trains, saves. Returns the exit status.
static int run(const config *c) {
    static trainer t;
    char err[2 * LOG_PATH];
    dataset train, test;
    int dim[MAX_LAYERS + 1];
    const double start = log_seconds();
    memset(&t, 0, sizeof t);
    t.c = c, t.train_loss = t.test_loss = t.test_accuracy = LOG_NA;
    log_progress_init(&t.progress, stdout, c->quiet);
    if (dataset_load(c->data, c->data_dir, &train, &test, err, sizeof err)) return fail(&t, err);
    if (c->limit) dataset_limit(&train, c->limit);
    const int n_layers = layer_sizes(c, &train, dim, err, sizeof err);
    if (!n_layers) cli_usage_error("train_mlp", "%s", err);
    t.batch = c->batch_size && c->batch_size < train.n ? c->batch_size : train.n;
    t.steps_per_epoch = ceil_div(train.n, t.batch);
    t.total_steps = c->steps >= 0 ? c->steps : c->epochs * t.steps_per_epoch;
    const int max_rows = t.batch > 512 ? t.batch : 512;
    if (model_create(&t.m, dim, n_layers, c, max_rows, err, sizeof err)) cli_usage_error("train_mlp", "--precision: %s", err);
    t.train = device_data_create(&train, c->task), t.test = device_data_create(&test, c->task);
    t.ready = -1;
    char device[256], layers[1024];
    size_t used = 0;
    device_describe(device, sizeof device);
    for (int i = 0; i <= n_layers && used < sizeof layers; i++) used += (size_t)snprintf(layers + used, sizeof layers - used, i ? "-%d" : "%d", dim[i]);
    log_progress_line(&t.progress, "%s, %s", device, gemm_backend());
    log_progress_line(&t.progress, "%s: %d training and %d test samples; MLP %s, %lld parameters", train.name, train.n, test.n, layers,
                      (long long)parameter_count(&t.m));
    dataset_free(&train), dataset_free(&test);
    int status = 0;
    if (c->resume) {
        status = resume_checkpoint(&t);
    } else {
        model_init(&t.m, c);
        if (c->load && load_model(&t.m, c->load, err, sizeof err)) status = fail(&t, err);
        if (!status && c->rescale) status = rescale_and_log(&t, 1);
    }
    t.first_step = t.fetched = t.step;
    if (!status && c->log_dir && log_open(&t.csv, c->log_dir, c->resume ? t.step : -1, err, sizeof err)) status = fail(&t, err);
    if (!status) status = train_loop(&t);
    if ((!status || (log_interrupted && status > 1)) && c->save && save_model(&t.m, c->save, err, sizeof err)) status = fail(&t, err);
    if (!status && c->report) status = write_report(&t, log_seconds() - start);
    if (t.csv.file.f && log_close(&t.csv, err, sizeof err) && !status) status = fail(&t, err);
    if (t.csv.failed && !status) status = 1;  // rows are missing; it was said when it happened
    model_free(&t.m), device_data_free(&t.train), device_data_free(&t.test);
    return status;
}

#ifdef TESTING  // tests and benchmarks include this file and bring their own main
#define main train_mlp_main
int train_mlp_main(int argc, char **argv);
#endif
int main(int argc, char **argv) {
    config c = default_config();
    parse_command_line(&c, argc, argv);
    log_signal_install();
    return run(&c);
}
#undef main
