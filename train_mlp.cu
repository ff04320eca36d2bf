// train_mlp.cu -- trains a multilayer perceptron, rescaled right after initialisation so that it
// trains faster.
//
// What it trains: fully connected ReLU nets, as classifiers (softmax cross-entropy) or as
// autoencoders (mean squared error), with or without biases and BatchNorm, on images or points that
// fit in device memory. What it does not: convolutions (train_cnn.cu), text (train_gpt_style.c),
// several devices.
//
// Reads top to bottom: configuration, model, kernels (those that the trainers share are in
// common/layers.cuh), forward, backward, update, initialisation, rescaling, evaluation, training
// loop, command line. What happens around them, from the options and the learning rate to
// checkpoints and the report, is common/train.h. `train_mlp --help` lists the options.
//
// The same source runs on a GPU (nvcc, cuBLAS) and on a CPU (every kernel body runs there, see
// common/cuda_cpu.h). Dimension letters: B rows of a batch, D units of a layer; matrices are
// row-major, weights [out][in] as PyTorch's.
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/cuda_common.h"  // CUDA_CHECK, ceil_div, reductions; CUDA or its CPU stand-in
#include "common/gemm.h"         // C = alpha op(A) op(B) + beta C: cuBLAS, OpenBLAS or built in
#include "common/rng.h"          // Philox: initial weights, permutations
#include "common/dataset.h"      // MNIST, Fashion-MNIST, CIFAR-10, synthetic sets
#include "common/safetensors.h"  // weights and checkpoints
#include "common/cli.h"          // the option table
#include "common/log.h"          // progress line, log.csv, report.json, Ctrl-C
#include "rescale.cuh"           // PathCond and ENorm
#include "common/kernel.cuh"     // the diagonal of the tangent kernel on data
#include "common/layers.cuh"     // kernels that the trainers share: BatchNorm, losses, optimizers
#include "common/train.h"        // train_begin, train_next, train_end, and what belongs to a run

// ----------------------------------------------------------------------------------- configuration

enum { MAX_LAYERS = 128 };  // linear layers
enum { PART_WEIGHT, PART_BIAS, PART_GAMMA, PART_BETA };  // tensors of a layer
enum { TASK_CLASSIFY, TASK_AUTOENCODE };
enum { INIT_KAIMING_UNIFORM, INIT_KAIMING_NORMAL };
enum { NORM_NONE, NORM_BATCH };

typedef struct config {
    // what every trainer has: data, rescaling, optimizer, length, files
    train_options train;
    // units of every layer, input first; n = 0: features,512,512,512,classes
    cli_ints layers;
    int task, init, norm, bias;
    // log lambda of every hidden layer, to rescale by instead of a criterion; text NULL: none
    const char *log_text;
    double log_lambda[MAX_LAYERS];
} config;

static config default_config(void) {
    config c;
    memset(&c, 0, sizeof c);
    c.train = train_default_options();
    c.train.fixed = "layers,task,norm,no-bias";
    c.bias = 1;
    return c;
}

// ------------------------------------------------------------------------------------------- model

typedef struct model {
    int n_layers;                        // linear layers L
    int dim[MAX_LAYERS + 1];             // dim[0] inputs ... dim[L] outputs
    int bias, norm, task;
    // Device memory, one allocation per family; net has their names, shapes and offsets. Tensors of
    // net: fc1.weight [out][in], fc1.bias [out], bn1.weight [out] (gamma), bn1.bias [out] (beta),
    // fc2.weight, ... params, grads, moment1, moment2 [n_params]; stats: running mean and variance
    train_net net;
    int part[4 * MAX_LAYERS];            // PART_WEIGHT, ... of net.tensors[i]
    float *w[MAX_LAYERS], *b[MAX_LAYERS], *gamma[MAX_LAYERS], *beta[MAX_LAYERS];      // into params
    float *dw[MAX_LAYERS], *db[MAX_LAYERS], *dgamma[MAX_LAYERS], *dbeta[MAX_LAYERS];  // into grads
    float *running_mean[MAX_LAYERS], *running_var[MAX_LAYERS];  // [D] into stats
    // Activations for up to max_rows rows, one allocation
    int max_rows;
    float *acts;
    // [B][dim[l]]: x[0] input, x[l] after ReLU, x[L] logits or reconstruction
    float *x[MAX_LAYERS + 1];
    // [B][D] before BatchNorm; without it z[l] is x[l + 1], overwritten in place
    float *z[MAX_LAYERS];
    float *mean[MAX_LAYERS], *rstd[MAX_LAYERS];  // [D] of BatchNorm in the last forward
    float *dx[2];                        // [B][max dim] gradients of activations, used in turn
    float *partial;                      // partial column sums
    float *row_loss;                     // [B]
    int *label, *row_hit;                // [B]
    // [TRAIN_LOSS_RING] mean loss of the latest steps, and one of the latest evaluated batch
    float *step_loss;
    double *totals;                      // [2] loss and hits, summed over an evaluation
    double *square_sums;                 // [REDUCE_BLOCKS] for the gradient norm
    gemm_context gemm;
} model;

// Places all activations in one allocation; called twice, to count and to place.
static size_t place_activations(model *m, float *base) {
    const size_t rows = (size_t)m->max_rows;
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
    m->partial = take(base, &used, column_scratch(m->max_rows, (int)widest));
    m->row_loss = take(base, &used, rows);
    m->label = (int *)take(base, &used, rows);
    m->row_hit = (int *)take(base, &used, rows);
    m->step_loss = take(base, &used, TRAIN_LOSS_RING + 1);
    m->totals = (double *)take(base, &used, 4);
    m->square_sums = (double *)take(base, &used, 2 * REDUCE_BLOCKS);
    return used;
}

// Adds the tensors of layer l under their PyTorch names.
static void add_layer(model *m, int l) {
    train_net *net = &m->net;
    const int in = m->dim[l], out = m->dim[l + 1], k = l + 1;
    m->part[train_add_parameter(net, RESCALE_WEIGHT, l, out, in, 0, 0, "fc%d.weight", k)] =
        PART_WEIGHT;
    if (m->bias)
        m->part[train_add_parameter(net, RESCALE_BIAS, l, out, 0, 0, 0, "fc%d.bias", k)] =
            PART_BIAS;
    if (m->norm == NORM_NONE || l == m->n_layers - 1) return;
    m->part[train_add_parameter(net, RESCALE_GAIN, l, out, 0, 0, 0, "bn%d.weight", k)] = PART_GAMMA;
    m->part[train_add_parameter(net, RESCALE_BIAS, l, out, 0, 0, 0, "bn%d.bias", k)] = PART_BETA;
    train_add_statistic(net, l, out, "bn%d.running_mean", k);
    train_add_statistic(net, l, out, "bn%d.running_var", k);
    train_add_counter(net, l, "bn%d.num_batches_tracked", k);
}

// Points w, b, gamma, beta and their gradients into params and grads.
static void place_parameters(model *m) {
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        float *value = m->net.params + t->offset, *grad = m->net.grads + t->offset;
        switch (m->part[i]) {
        case PART_WEIGHT:
            m->w[t->layer] = value;
            m->dw[t->layer] = grad;
            break;
        case PART_BIAS:
            m->b[t->layer] = value;
            m->db[t->layer] = grad;
            break;
        case PART_GAMMA:
            m->gamma[t->layer] = value;
            m->dgamma[t->layer] = grad;
            break;
        case PART_BETA:
            m->beta[t->layer] = value;
            m->dbeta[t->layer] = grad;
            break;
        default: abort();
        }
    }
}

// Builds the model on the device for at most max_rows rows at a time. Returns 0, or with a message
// -1 where the options ask for what cannot be, 1 where the machine lacks something.
static int model_create(model *m, const int *dim, int n_layers, const config *c, int max_rows,
                        char *err, size_t n) {
    memset(m, 0, sizeof *m);
    m->n_layers = n_layers;
    m->bias = c->bias;
    m->norm = c->norm;
    m->task = c->task;
    m->max_rows = max_rows;
    memcpy(m->dim, dim, (size_t)(n_layers + 1) * sizeof(int));
    if (gemm_create(&m->gemm, c->train.precision, err, n))
        return c->train.precision == GEMM_FP32 ? 1 : -1;
    train_net *net = &m->net;
    net->hint = "layers, --norm or --no-bias differ";
    for (int l = 0; l < n_layers; l++) add_layer(m, l);
    net->params = device_floats(net->n_params);
    net->grads = device_floats(net->n_params);
    net->stats = device_floats(net->n_stats);
    if (c->train.optimizer != OPTIMIZER_SGD) net->moment1 = device_floats(net->n_params);
    if (c->train.optimizer == OPTIMIZER_ADAMW) net->moment2 = device_floats(net->n_params);
    place_parameters(m);
    for (int i = 0; i < net->n_buffers; i += 3) {  // mean, variance and counter of a layer
        const train_tensor *t = &net->buffers[i];
        m->running_mean[t->layer] = net->stats + t[0].offset;
        m->running_var[t->layer] = net->stats + t[1].offset;
    }
    m->acts = device_floats(place_activations(m, NULL));
    place_activations(m, m->acts);
    return 0;
}

static void model_free(model *m) {
    float *const owned[] = {m->net.params,  m->net.grads, m->net.moment1,
                            m->net.moment2, m->net.stats, m->acts};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) CUDA_CHECK(cudaFree(owned[i]));
    train_net_free(&m->net);
    gemm_destroy(&m->gemm);
    memset(m, 0, sizeof *m);
}

// ----------------------------------------------------------------------------------------- kernels
// Only this trainer needs mean squared error. The other kernels, and how they are written:
// common/layers.cuh.

// Mean squared error, forward and backward: partial[chunk][c] = squared error of column c over a
// chunk of rows, d = 2 (y - target) * scale.
static __global__ void mse_kernel(float *__restrict__ partial, float *__restrict__ d,
                                  const float *__restrict__ y, const float *__restrict__ target,
                                  int rows, int cols, float scale) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROW_CHUNK;
    if (c >= cols) return;
    float sum = 0.0f;
    for (int r = first; r < first + ROW_CHUNK && r < rows; r++) {
        const size_t i = (size_t)r * cols + c;
        const float e = y[i] - target[i];
        sum += e * e;
        d[i] = 2.0f * e * scale;
    }
    partial[(size_t)blockIdx.y * cols + c] = sum;
}

// ------------------------------------------------------------------------------- forward, backward

// Forward: x[0] holds the input [rows][dim[0]]; fills x[1..L]. mode: MODE_TRAIN, MODE_PROBE,
// MODE_EVAL.
static void forward(model *m, int rows, int mode) {
    for (int l = 0; l < m->n_layers; l++) {
        const int in = m->dim[l], out = m->dim[l + 1], hidden = l < m->n_layers - 1;
        const float *b = m->bias ? m->b[l] : NULL;
        gemm(&m->gemm, 0, 1, rows, out, in, 1.0f, m->x[l], in, m->w[l], in, 0.0f, m->z[l], out);
        if (m->norm == NORM_BATCH && hidden) {
            bn_statistics(m->mean[l], m->rstd[l], m->running_mean[l], m->running_var[l], m->z[l], b,
                          m->partial, rows, out, mode);
            bn_relu(m->x[l + 1], m->z[l], NULL, m->mean[l], m->rstd[l], m->gamma[l], m->beta[l],
                    rows, out, 1);
        } else if (hidden || m->bias) {
            bias_relu(m->x[l + 1], b, rows, out, hidden);
        }
    }
    if (mode == MODE_TRAIN) train_count_batch(&m->net);
}

// Loss of x[L]; its gradient, of the mean over the batch, goes to dx[0]; the mean loss to
// step_loss[slot]; loss and hits are added to totals.
static void loss_forward_backward(model *m, int rows, int slot) {
    const int out = m->dim[m->n_layers], chunks = ceil_div(rows, ROW_CHUNK);
    const float *y = m->x[m->n_layers], scale = 1.0f / (float)rows / (float)out;
    float *mean_loss = m->step_loss + slot;
    if (m->task == TASK_CLASSIFY) {
        softmax_cross_entropy(m->totals, mean_loss, m->row_loss, m->row_hit, m->dx[0], y, m->label,
                              rows, out, 0);
    } else {
        mse_kernel<<<grid_of(out, chunks), block_of(out)>>>(m->partial, m->dx[0], y, m->x[0], rows,
                                                            out, scale);
        sum_losses_kernel<<<1, 256>>>(m->totals, mean_loss, m->partial, (const int *)NULL,
                                      chunks * out, 1.0 / out, rows);
        CUDA_CHECK_LAUNCH();
    }
}

// Backward of the last forward: dx[0] holds the gradient of x[L]; writes every tensor of grads.
// Returns the buffer with the gradient of the first linear layer's output.
static float *backward(model *m, int rows, int mode) {
    float *d = m->dx[0], *next = m->dx[1];
    for (int l = m->n_layers - 1; l >= 0; l--) {
        const int in = m->dim[l], out = m->dim[l + 1], hidden = l < m->n_layers - 1;
        const int normed = m->norm == NORM_BATCH && hidden;
        if (normed) {
            bn_relu_backward(next, d, m->x[l + 1], m->z[l], m->mean[l], m->rstd[l], m->gamma[l],
                             m->dgamma[l], m->dbeta[l], m->partial, rows, out, mode, 1);
            float *swap = d;
            d = next;
            next = swap;
        }
        const int relu = hidden && !normed;
        if (relu || m->bias)
            bias_relu_backward(d, m->x[l + 1], m->bias ? m->db[l] : NULL, m->partial, rows, out,
                               relu);
        gemm(&m->gemm, 1, 0, out, in, rows, 1.0f, d, out, m->x[l], in, 0.0f, m->dw[l], in);
        if (l == 0) break;
        gemm(&m->gemm, 0, 0, rows, in, out, 1.0f, d, out, m->w[l], in, 0.0f, next, in);
        float *swap = d;
        d = next;
        next = swap;
    }
    return d;
}

// One update of all parameters; step counts from 0 (AdamW's bias correction uses step + 1).
static void update(model *m, const config *c, double lr, int64_t step) {
    const train_net *net = &m->net;
    optimizer_step(c->train.optimizer, net->params, net->grads, net->moment1, net->moment2,
                   (int)net->n_params, lr, c->train.momentum, c->train.weight_decay, step);
}

// ---------------------------------------------------------------------------------- initialisation

// Initial parameters, made on the host by a counter-based generator (the same on every device), and
// fresh statistics. kaiming-uniform is nn.Linear's default: weights and bias uniform in +-1 /
// sqrt(fan_in). kaiming-normal: weights normal with variance 2 / fan_in, biases zero. scale
// multiplies weights and biases. BatchNorm: gamma 1, beta 0, mean 0, variance 1.
static void model_init(model *m, const config *c) {
    float *host = (float *)train_alloc(NULL, m->net.n_params, sizeof(float));
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        float *p = host + t->offset;
        const size_t n = (size_t)t->rows * (size_t)t->cols;
        const float fan_in = (float)m->dim[t->layer], scale = (float)c->train.init_scale;
        const uint64_t stream = rng_stream(RNG_PARAMETERS, (uint32_t)i);
        if (m->part[i] == PART_GAMMA || m->part[i] == PART_BETA) {
            for (size_t k = 0; k < n; k++) p[k] = m->part[i] == PART_GAMMA ? 1.0f : 0.0f;
        } else if (c->init == INIT_KAIMING_UNIFORM) {
            rng_fill_uniform(p, n, -scale / sqrtf(fan_in), scale / sqrtf(fan_in),
                             (uint64_t)c->train.seed, stream);
        } else if (m->part[i] == PART_WEIGHT) {
            rng_fill_normal(p, n, 0.0f, scale * sqrtf(2.0f / fan_in), (uint64_t)c->train.seed,
                            stream);
        }
    }
    train_upload(m->net.params, host, m->net.n_params * sizeof(float));
    for (int l = 0; l < m->n_layers - 1 && m->norm == NORM_BATCH; l++) {
        const int D = m->dim[l + 1];
        fill_kernel<<<ceil_div(D, BLOCK), BLOCK>>>(m->running_var[l], 1.0f, D);
        CUDA_CHECK_LAUNCH();
    }
    free(host);
}

// -------------------------------------------------------------------------------------------- data

// Loads rows first .. first + rows - 1 of the epoch's order into x[0] and the labels.
static void load_batch(model *m, const device_data *d, int first, int rows) {
    gather_samples(m->x[0], d, first, rows);
    gather_labels(m->label, d, first, rows);
}

// --------------------------------------------------------------------------------------- rescaling

// Backward for the diagonal of the tangent kernel (common/kernel.cuh): dx[0] holds the gradient of
// x[L] for every row by itself. The gradient of a weight on one row is an outer product, so its
// power summed over the rows is a product of powers:
//     g[o][i] = sum over rows of |d[o] x[i]|^power = (|d|^power)^T |x|^power
// grads becomes keep * grads + scale * g. BatchNorm's statistics count as constants. Overwrites x.
static void kernel_backward(model *m, int rows, int power, float scale, float keep) {
    float *d = m->dx[0], *next = m->dx[1];
    for (int l = m->n_layers - 1; l >= 0; l--) {
        const int in = m->dim[l], out = m->dim[l + 1], hidden = l < m->n_layers - 1;
        const int normed = m->norm == NORM_BATCH && hidden;
        bias_relu_backward(d, m->x[l + 1], NULL, m->partial, rows, out, hidden);
        if (normed) {
            kernel_gain(m->dgamma[l], d, m->z[l], m->mean[l], m->rstd[l], rows, out, power, scale,
                        keep);
            kernel_bias(m->dbeta[l], d, rows, out, power, scale, keep);
            kernel_through_norm(d, m->gamma[l], m->rstd[l], rows, out);
        }
        if (m->bias) kernel_bias(m->db[l], d, rows, out, power, scale, keep);
        if (l > 0)
            gemm(&m->gemm, 0, 0, rows, in, out, 1.0f, d, out, m->w[l], in, 0.0f, next, in);
        kernel_raise(d, d, (size_t)rows * (size_t)out, power);
        kernel_raise(m->x[l], m->x[l], (size_t)rows * (size_t)in, power);  // its sign stays
        gemm(&m->gemm, 1, 0, out, in, rows, scale, d, out, m->x[l], in, keep, m->dw[l], in);
        float *swap = d;
        d = next;
        next = swap;
    }
}

// diag(G) of the tangent kernel on --rescale-samples training samples, to grads. They come in an
// order of their own, by seed and step.
static void kernel_on_data(model *m, const config *c, const device_data *data, int64_t step) {
    const train_options *o = &c->train;
    const int n = o->rescale_samples < data->n ? o->rescale_samples : data->n;
    const int fisher = o->rescale_kernel == KERNEL_FISHER && m->task == TASK_CLASSIFY;
    order_samples(data, o->seed, -1 - step, 1);
    // In chunks of one size, up to one: BatchNorm's statistics are those of a chunk.
    const int chunks = ceil_div(n, m->max_rows);
    for (int k = 0; k < chunks; k++) {
        const int first = (int)((int64_t)n * k / chunks);
        const int rows = (int)((int64_t)n * (k + 1) / chunks) - first;
        const int out = m->dim[m->n_layers];
        load_batch(m, data, first, rows);
        forward(m, rows, MODE_PROBE);
        kernel_output_gradient(m->dx[0], m->x[m->n_layers], fisher, first, rows, out, o->seed,
                               step);
        kernel_backward(m, rows, train_rescale_power(o), 1.0f / (float)n, first > 0);
    }
}

// Describes the model to rescale.cuh. With BatchNorm the units are scaled through gamma and beta,
// which keeps the function in training and in evaluation mode; the layer before it is left alone.
// Returns the number of tensors.
static int describe(const model *m, rescale_group *group, rescale_tensor *tensors) {
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        const int l = t->layer, hidden = l < m->n_layers - 1, part = m->part[i];
        const int of_norm = part == PART_GAMMA || part == PART_BETA;
        const int scaled = hidden && (of_norm || m->norm == NORM_NONE);
        const int enters = scaled ? l : RESCALE_NONE;
        const int leaves = l > 0 ? l - 1 : RESCALE_NONE;
        float *data = m->net.params + t->offset;
        if (part == PART_WEIGHT && hidden) group[l] = rescale_units(t->name, t->rows, RESCALE_RELU);
        if (part == PART_WEIGHT)
            tensors[i] = rescale_weight(t->name, data, t->rows, t->cols, 1, enters, leaves);
        else if (part == PART_GAMMA)
            tensors[i] = rescale_gain(t->name, data, t->rows, enters, m->running_mean[l],
                                      m->running_var[l], BN_EPS);
        else
            tensors[i] = rescale_bias(t->name, data, t->rows, enters);
        tensors[i].moment1 = m->net.moment1 ? m->net.moment1 + t->offset : NULL;
        tensors[i].moment2 = m->net.moment2 ? m->net.moment2 + t->offset : NULL;
    }
    return m->net.n_tensors;
}

static int uses_data(const config *c) {
    return c->train.rescale == RESCALE_BY_PATHCOND && c->train.rescale_kernel != KERNEL_PATHS;
}

// Rescales by the factors of --rescale-log, one for each hidden layer. Under SGD that is a learning
// rate for each layer.
static int rescale_by_list(const model *m, const rescale_net *net, const rescale_options *o,
                           const config *c, rescale_report *report) {
    size_t units = 0, h = 0;
    for (int g = 0; g < net->n_groups; g++) units += (size_t)net->group[g].n;
    double *u = (double *)train_alloc(NULL, units, sizeof *u);
    for (int g = 0; g < net->n_groups; g++)
        for (int k = 0; k < net->group[g].n; k++) u[h++] = o->power * c->log_lambda[g];
    const int status = analysis_apply(m->net.analysis, net, o, u, report);
    free(u);
    return status;
}

// Rescales the parameters (and the optimizer state) in place. With a kernel on data, grads holds
// its diagonal. Returns 0, or -1 with report->message set.
static int rescale_model(model *m, const config *c, rescale_report *report) {
    static rescale_group group[MAX_LAYERS];
    static rescale_tensor tensors[4 * MAX_LAYERS];
    const rescale_net net = {group, m->n_layers - 1, tensors, describe(m, group, tensors)};
    const rescale_options o = train_rescale_options(&c->train);
    for (int i = 0; i < net.n_tensors && uses_data(c); i++)
        tensors[i].g = m->net.grads + m->net.tensors[i].offset;
    train_count_paths(&c->train, tensors, net.n_tensors);
    device_synchronize();
    if (c->log_text) return rescale_by_list(m, &net, &o, c, report) ? -1 : 0;
    return analysis_run(m->net.analysis, &net, &o, report) ? -1 : 0;
}

enum { PROBE_ROWS = 64 };

// Rows of a probe; a model for fewer rows at a time gets fewer.
static int probe_rows(const model *m) {
    return m->max_rows < PROBE_ROWS ? m->max_rows : PROBE_ROWS;
}

// Outputs of the network on fixed random inputs, [PROBE_ROWS][outputs], in the given mode; the
// caller frees them.
static float *probe_outputs(model *m, int mode) {
    const int rows = probe_rows(m);
    const size_t n_in = (size_t)rows * (size_t)m->dim[0],
                 n_out = (size_t)rows * (size_t)m->dim[m->n_layers];
    float *in = (float *)train_alloc(NULL, n_in, sizeof(float));
    float *out = (float *)train_alloc(NULL, n_out, sizeof(float));
    rng_fill_normal(in, n_in, 0.0f, 1.0f, 1, rng_stream(RNG_TEST, 0));
    CUDA_CHECK(cudaMemcpy(m->x[0], in, n_in * sizeof(float), cudaMemcpyHostToDevice));
    forward(m, rows, mode);
    CUDA_CHECK(cudaMemcpy(out, m->x[m->n_layers], n_out * sizeof(float), cudaMemcpyDeviceToHost));
    free(in);
    return out;
}

// rescale_model, and what it did to the network's outputs, in training and in evaluation mode.
static int rescale_and_measure(model *m, const config *c, rescale_report *report, double *moved) {
    float *before[2], *after[2];
    before[0] = probe_outputs(m, MODE_EVAL);
    before[1] = probe_outputs(m, MODE_PROBE);
    const int status = rescale_model(m, c, report);
    const size_t n = (size_t)probe_rows(m) * (size_t)m->dim[m->n_layers];
    *moved = 0;
    for (int i = 0; i < 2; i++) {
        after[i] = probe_outputs(m, i ? MODE_PROBE : MODE_EVAL);
        *moved = fmax(*moved, train_relative_difference(before[i], after[i], n));
        free(before[i]);
        free(after[i]);
    }
    return status;
}

// ---------------------------------------------------------------------------------------- training

typedef struct trainer {
    train_run run;               // the run's options, lengths, losses, log
    const config *c;
    model m;
    device_data train, test;
    // epoch whose sample order (full batch: whose batch) is on the device, or -1
    int64_t ordered;
} trainer;

// Loads the batch of the step to come; returns its rows.
static int next_batch(trainer *t) {
    const train_options *o = t->run.options;
    int64_t epoch;
    int first;
    const int rows = train_batch(&t->run, &epoch, &first), full_batch = t->run.batch == t->train.n;
    if (full_batch) epoch = 0;      // it stays the same
    const int in_order = t->ordered == epoch;
    if (!in_order)
        order_samples(&t->train, o->seed, epoch, o->shuffle == SHUFFLE_EPOCH && !full_batch);
    if (!in_order || !full_batch) load_batch(&t->m, &t->train, first, rows);
    t->ordered = epoch;
    return rows;
}

// The hooks of common/run.h. All but the norm overwrite the batch on the device.

// Mean loss and accuracy (a fraction; LOG_NA for autoencoders) over a data set, BatchNorm in
// evaluation mode.
static void evaluate(void *self, int test, double *loss, double *accuracy) {
    trainer *t = (trainer *)self;
    model *m = &t->m;
    const device_data *d = test ? &t->test : &t->train;
    double totals[2] = {0, 0};
    t->ordered = -1;
    order_samples(d, 0, 0, 0);
    CUDA_CHECK(cudaMemset(m->totals, 0, sizeof totals));
    for (int first = 0; first < d->n; first += m->max_rows) {
        const int rows = d->n - first < m->max_rows ? d->n - first : m->max_rows;
        if (train_pause(&t->run, test ? "evaluating on test data" : "evaluating on training data",
                        first, d->n))
            return;
        load_batch(m, d, first, rows);
        forward(m, rows, MODE_EVAL);
        loss_forward_backward(m, rows, TRAIN_LOSS_RING);
    }
    CUDA_CHECK(cudaMemcpy(totals, m->totals, sizeof totals, cudaMemcpyDeviceToHost));
    *loss = totals[0] / d->n;
    *accuracy = m->task == TASK_CLASSIFY ? totals[1] / d->n : LOG_NA;
}
static int rescale_now(void *self, rescale_report *report, double *moved) {
    trainer *t = (trainer *)self;
    t->ordered = -1;
    const double start = log_seconds();
    if (uses_data(t->c)) kernel_on_data(&t->m, t->c, &t->train, t->run.step);
    device_synchronize();
    const double seconds = log_seconds() - start;
    const int status = moved ? rescale_and_measure(&t->m, t->c, report, moved)
                             : rescale_model(&t->m, t->c, report);
    report->seconds_diag_g += seconds;
    return status;
}
static float *outputs(void *self, size_t *n) {
    trainer *t = (trainer *)self;
    t->ordered = -1;
    *n = (size_t)probe_rows(&t->m) * (size_t)t->m.dim[t->m.n_layers];
    return probe_outputs(&t->m, MODE_EVAL);
}
static double norm_of(void *self, const float *array) {
    model *m = &((trainer *)self)->m;
    return array_norm(array, m->net.n_params, m->square_sums);
}

// The training loop. Returns the exit status.
static int train_loop(trainer *t) {
    model *m = &t->m;
    train_run *r = &t->run;
    train_begin(r);                       // --resume, or --load and rescale
    while (train_next(r)) {               // logs, evaluates, checkpoints, rescales when due
        const int rows = next_batch(t);
        forward(m, rows, MODE_TRAIN);
        loss_forward_backward(m, rows, train_loss_slot(r));
        backward(m, rows, MODE_TRAIN);
        update(m, t->c, train_rate(r), r->step);
    }
    return train_end(r);
}

// ------------------------------------------------------------------------------------ command line

// Fills the configuration from the command line; exits on --help, --version and usage errors.
static void parse_command_line(config *c, int argc, char **argv) {
    cli_option options[] = {
        TRAIN_DATA_ROWS(&c->train,
                        "fashion-mnist, mnist, cifar10, moons, images (built in), or a folder"),
        CLI_INT("limit-test", &c->train.limit_test, "N", 0, INT_MAX, "the same for the test set"),
        CLI_GROUP("Model"),
        CLI_INTS("layers", &c->layers, "N,N,...", 1, 1e6,
                 "units of every layer, input first (default: input,512,512,512,output)"),
        CLI_CHOICE("task", &c->task, "classify|autoencode",
                   "softmax cross-entropy, or mean squared error of the input"),
        CLI_CHOICE("norm", &c->norm, "none|batch", "BatchNorm after every hidden linear layer"),
        CLI_NO_FLAG("no-bias", &c->bias, "linear layers without bias"),
        CLI_CHOICE("init", &c->init, "kaiming-uniform|kaiming-normal",
                   "nn.Linear's default, or normal weights and zero biases"),
        TRAIN_INIT_SCALE_ROW(&c->train),
        TRAIN_RESCALING_ROWS(&c->train),
        CLI_STRING("rescale-log", &c->log_text, "X,X,...",
                   "log lambda of each hidden layer, instead of a criterion"),
        TRAIN_OPTIMIZER_ROWS(&c->train),
        TRAIN_LENGTH_ROWS(&c->train),
        TRAIN_SAMPLING_ROWS(&c->train),
        TRAIN_PRECISION_ROW(&c->train),
        TRAIN_OUTPUT_ROWS(&c->train),
    };
    const int n = sizeof options / sizeof *options;
    train_parse("train_mlp",
                "Trains a ReLU MLP, rescaled after initialisation so that it trains faster.",
                VERSION, &c->train, options, n, argc, argv);
    train_check_options("train_mlp", &c->train, options, n);
    if (c->layers.n == 1 || c->layers.n > MAX_LAYERS + 1)
        cli_usage_error("train_mlp", "--layers: expected 2 to %d layer sizes, got %d",
                        MAX_LAYERS + 1, c->layers.n);
}

// Reads --rescale-log for a net of n_layers linear layers. Returns 1, or 0 with err.
static int read_log_lambda(config *c, int n_layers, char *err, size_t n) {
    const char *at = c->log_text;
    int count = 0;
    for (; at && count < n_layers; count++) {
        char *end;
        c->log_lambda[count] = strtod(at, &end);
        if (end == at || !(fabs(c->log_lambda[count]) <= 100)) break;
        if (*end != ',' && *end != '\0') break;
        at = *end == ',' ? end + 1 : NULL;
    }
    if (!at && count == n_layers - 1) return 1;
    snprintf(err, n,
             "--rescale-log: expected %d numbers from -100 to 100, one for each hidden layer",
             n_layers - 1);
    return 0;
}

// Layer sizes from --layers or the default, checked against the data. Returns the number of linear
// layers, or 0 with err.
static int layer_sizes(const config *c, const dataset *d, int *dim, char *err, size_t n) {
    const int out = c->task == TASK_CLASSIFY ? d->classes : d->features,
              standard[5] = {d->features, 512, 512, 512, out};
    const int layers = c->layers.n ? c->layers.n : 5;
    double parameters = 0;  // at most; with the padding of small tensors
    for (int i = 0; i < layers; i++) dim[i] = c->layers.n ? c->layers.v[i] : standard[i];
    for (int i = 1; i < layers; i++)
        parameters += ((double)dim[i - 1] + 3) * dim[i] + 4 * TRAIN_ALIGN;
    if (dim[0] != d->features)
        snprintf(err, n,
                 "--layers: the first layer has %d units, but a sample of %s has %d features",
                 dim[0], d->name, d->features);
    else if (dim[layers - 1] != out)
        snprintf(err, n, "--layers: the last layer has %d units, but %s has %d %s", dim[layers - 1],
                 d->name, out, c->task == TASK_CLASSIFY ? "classes" : "features to reconstruct");
    else if (parameters > INT_MAX)
        snprintf(err, n, "--layers: %.3g parameters, expected at most %d", parameters, INT_MAX);
    else
        return layers - 1;
    return 0;
}

// Loads the data, builds and initialises the model, trains, saves. Returns the exit status.
static int run(config *c) {
    static trainer t;
    const train_options *o = &c->train;
    char err[2 * LOG_PATH], device[256], layers[1024];
    dataset train, test;
    int dim[MAX_LAYERS + 1];
    size_t used = 0;
    memset(&t, 0, sizeof t);
    t.c = c;
    t.ordered = -1;
    train_run_init(&t.run, "train_mlp", VERSION, o);
    if (dataset_load(o->data, o->data_dir, &train, &test, err, sizeof err))
        return train_fail(&t.run, err);
    if (o->limit) dataset_limit(&train, o->limit);
    if (o->limit_test) dataset_limit(&test, o->limit_test);
    const int n_layers = layer_sizes(c, &train, dim, err, sizeof err);
    if (!n_layers) cli_usage_error("train_mlp", "%s", err);
    if (c->log_text && !read_log_lambda(c, n_layers, err, sizeof err))
        cli_usage_error("train_mlp", "%s", err);
    c->layers.n = n_layers + 1;  // what is stored with checkpoints
    memcpy(c->layers.v, dim, (size_t)c->layers.n * sizeof *dim);
    train_set_length(&t.run, train.n);
    if (c->norm == NORM_BATCH && n_layers > 1) train_check_batch_norm(&t.run, 1);
    if (c->norm == NORM_BATCH && uses_data(c) && (o->rescale_samples < 2 || train.n < 2))
        cli_usage_error("train_mlp", "--rescale-samples: BatchNorm needs at least 2 samples");
    const int max_rows = t.run.batch > 512 ? t.run.batch : 512;
    const int failed = model_create(&t.m, dim, n_layers, c, max_rows, err, sizeof err);
    if (failed < 0) cli_usage_error("train_mlp", "--precision: %s", err);
    if (failed) return train_fail(&t.run, err);
    t.train = device_data_create(&train, c->task == TASK_CLASSIFY);
    t.test = device_data_create(&test, c->task == TASK_CLASSIFY);
    device_describe(device, sizeof device);
    for (int i = 0; i <= n_layers && used < sizeof layers; i++)
        used += (size_t)snprintf(layers + used, sizeof layers - used, i ? "-%d" : "%d", dim[i]);
    log_progress_line(&t.run.progress, "%s, %s", device, gemm_backend());
    log_progress_line(&t.run.progress,
                      "%s: %d training and %d test samples; MLP %s, %lld parameters", train.name,
                      train.n, test.n, layers, (long long)train_parameter_count(&t.m.net));
    t.run.data = data_fingerprint(&train, &test);
    dataset_free(&train);
    dataset_free(&test);
    t.run.net = &t.m.net;
    t.run.step_loss = t.m.step_loss;
    t.run.backend = gemm_backend();
    t.run.trainer = &t;
    t.run.hooks.evaluate = evaluate;
    t.run.hooks.rescale = rescale_now;
    t.run.hooks.outputs = outputs;
    t.run.hooks.norm = norm_of;
    if (!o->resume) model_init(&t.m, c);
    const int status = train_loop(&t);
    model_free(&t.m);
    device_data_free(&t.train);
    device_data_free(&t.test);
    return status;
}

#ifdef TESTING  // tests and benchmarks include this file and bring their own main
#define main train_mlp_main
int train_mlp_main(int argc, char **argv);
#endif
int main(int argc, char **argv) {
    config c = default_config();
    parse_command_line(&c, argc, argv);
    device_require("train_mlp");
    log_signal_install();
    return run(&c);
}
#undef main
