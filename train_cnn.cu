// train_cnn.cu -- trains a convolutional net, rescaled right after initialisation so that it trains
// faster.
//
// What it trains: an all-convolutional CIFAR net, ResNet-18 for small images, and a small net for a
// first run (`--model`), as classifiers, with or without biases and BatchNorm, on image sets that
// fit in device memory. What it does not: fully connected nets (train_mlp.cu), text
// (train_gpt_style.c), large images, several devices.
//
// Reads top to bottom: configuration, model, kernels (each forward beside its backward), forward,
// backward, initialisation, data, diag(G) and rescaling, training, command line. `train_cnn --help`
// lists the options. Convolutions, by hand, are in common/conv.cuh; kernels that the MLP has as
// well in common/layers.cuh.
//
// The same source runs on a GPU (nvcc, cuBLAS) and on a CPU (every kernel body runs there, see
// common/cuda_cpu.h). Activations are NHWC: [B images][h][w][c]; to the kernels in layers.cuh that
// is a matrix of B h w rows and c columns. Weights are PyTorch's [out][in][kernel_h][kernel_w], in
// memory, in files and to rescale.cuh.
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/cuda_common.h"  // CUDA_CHECK, ceil_div, reductions; CUDA or its CPU stand-in
#include "common/gemm.h"         // C = alpha op(A) op(B) + beta C: cuBLAS, OpenBLAS or built in
#include "common/rng.h"          // Philox: initial weights, permutations, crops
#include "common/dataset.h"      // MNIST, Fashion-MNIST, CIFAR-10, synthetic sets
#include "common/safetensors.h"  // weights and checkpoints
#include "common/cli.h"          // the option table
#include "common/log.h"          // progress line, log.csv, report.json, Ctrl-C
#include "rescale.cuh"           // PathCond and ENorm
#include "common/train.h"        // the training run around a model: options, files, loop, report
#include "common/layers.cuh"     // BatchNorm, bias and ReLU, loss, optimizers, data on the device
#include "common/conv.cuh"       // convolutions by im2col and Winograd
#include "common/kernel.cuh"     // diagonal of the tangent kernel: output gradients, sums of powers

// ----------------------------------------------------------------------------------- configuration

enum { MODEL_SMALL, MODEL_ALLCONV, MODEL_RESNET18 };
enum { INIT_KAIMING_UNIFORM, INIT_KAIMING_NORMAL };
enum { NORM_NONE, NORM_BATCH };
enum { SHORTCUT_IDENTITY, SHORTCUT_PROJECTION };
enum { POOL_SUM, POOL_MAX };

typedef struct config {
    train_options train;
    int model, norm, bias, init, shortcut;
    double width;                // multiplies the channels of every layer
    int rescale_pool;            // what a max-pool is to the paths of diag(G)
    int augment;
    double smoothing;            // of labels
} config;

// The defaults; PyTorch's conventions where it has any.
static config default_config(void) {
    config c;
    memset(&c, 0, sizeof c);
    c.train = train_default_options();
    c.train.epochs = 5;
    c.train.optimizer = OPTIMIZER_MOMENTUM;
    c.train.lr = 0.02;
    c.train.fixed = "model,width,norm,no-bias,shortcut,augment,label-smoothing";
    c.bias = 1;
    c.width = 1;
    return c;
}

// ------------------------------------------------------------------------------------------- model

enum { MAX_LAYERS = 40 };
enum { EVAL_ROWS = 32 };             // images at a time in evaluations of small batches
// blocks along y, which are pixels of an image, and along z, which are images
enum { MAX_GRID = 65535 };
// windows and tiles of a chunk: on a CPU they should stay in its cache
enum { WORK_FLOATS = DEVICE_IS_GPU ? 64 << 20 : 2 << 20 };
// activation 0 is the batch of images; NONE: no tensor, no residual, no group
enum { IMAGE = 0, NONE = -1 };
enum { LAYER_CONV, LAYER_MAX_POOL, LAYER_AVG_POOL };

// One layer; it makes activation l + 1. A convolution may carry BatchNorm, a residual and a ReLU:
//     y = relu(bn(conv(x)) + residual)       or, without BatchNorm, relu(conv(x) + bias + residual)
// A linear layer is a convolution whose kernel covers the map: its weights [out][c * h * w] lie in
// memory as [out][c][h][w].
typedef struct layer {
    int kind;
    // activations: IMAGE, or k + 1 for the output of layer k; residual may be NONE
    int input, residual;
    int in_c, in_h, in_w;               // input [in_h][in_w][in_c]
    int c, h, w;                        // output [h][w][c]
    int relu;
    int kernel, stride, pad;            // of a max-pool
    conv_plan conv;
    int weight, bias, gamma, beta;      // parameters in net.tensors, or NONE
    // running mean in net.buffers, the variance follows; or NONE
    int stats;
    // Device memory for up to max_rows images, pieces of the model's allocations
    float *y;                           // [B][h][w][c] output
    float *z;                           // [B][h][w][c] before BatchNorm
    float *mean, *rstd;                 // [c] what the last forward normalised with
    float *running_mean, *running_var;  // [c]
    float *u;                           // transformed weights of the last forward
    unsigned char *arg;                 // max-pool: [B][h][w][c] position in the window that won
    int gradient;                       // buffer that holds the gradient of y
    // 1: the input's gradient has other parts already, this layer adds to it
    int accumulate;
} layer;

typedef struct model {
    int n_layers, classes;
    layer layers[MAX_LAYERS];
    int pool_max;                       // diag(G) follows the largest of a pool, not all
    // of --rescale-kernel data and fisher: the training set, and the steps done when it is computed
    const device_data *samples;
    int64_t step;
    float smoothing;                    // of labels
    // parameters and running statistics by PyTorch's names; device memory
    train_net net;
    int max_rows;                       // images at a time
    size_t n_acts;
    float *acts;                        // [n_acts] floats: everything below and in the layers
    float *image;                       // [B][h][w][c] activation 0
    // [B][largest activation] gradients of activations, see plan_gradients
    float *gradient[3];
    float *dz;                          // [B][largest activation] gradient before BatchNorm
    float *work;                        // windows and tiles of a chunk of images
    float *partial;                     // partial column sums
    float *row_loss;                    // [B]
    int *label, *row_hit, *crop;        // [B], [B], [3][B] shift down, shift right, mirrored
    // [TRAIN_LOSS_RING] mean loss of the latest steps, and one of the latest evaluated batch
    float *step_loss;
    double *totals;                     // [2] loss and hits, summed over an evaluation
    double *square_sums;                // [REDUCE_BLOCKS] for norms
    gemm_context gemm;
} model;

// Activation a and its shape.
static float *activation(model *m, int a) { return a == IMAGE ? m->image : m->layers[a - 1].y; }
static void activation_shape(const model *m, int a, int *c, int *h, int *w) {
    const layer *first = &m->layers[0], *l = &m->layers[a > IMAGE ? a - 1 : 0];
    *c = a == IMAGE ? first->in_c : l->c;
    *h = a == IMAGE ? first->in_h : l->h;
    *w = a == IMAGE ? first->in_w : l->w;
}

// Appends a layer that reads activation `input`; its output has c channels of [h][w] (0: those of
// the input).
static layer *add_layer(model *m, int kind, int input, int c, int h, int w) {
    layer *l = &m->layers[m->n_layers];
    activation_shape(m, input, &l->in_c, &l->in_h, &l->in_w);
    m->n_layers++;
    l->kind = kind;
    l->input = input;
    l->residual = NONE;
    l->c = c ? c : l->in_c;
    l->h = h;
    l->w = w;
    l->weight = l->bias = l->gamma = l->beta = l->stats = NONE;
    return l;
}

// Appends a convolution: tensors NAME.weight, NAME.bias (if bias) and, unless norm is NULL, a
// BatchNorm's NORM.weight, NORM.bias and running statistics. A linear layer has kernel 0: it covers
// the map. Returns its activation.
static int add_conv(model *m, const char *name, int bias, const char *norm, int input, int out_c,
                    int kernel, int stride, int relu, int residual) {
    int c, h, w;
    activation_shape(m, input, &c, &h, &w);
    const int kernel_h = kernel ? kernel : h;
    const int kernel_w = kernel ? kernel : w;
    const conv_plan plan =
        conv_make_plan(c, h, w, out_c, kernel_h, kernel_w, stride, kernel / 2, WORK_FLOATS);
    layer *l = add_layer(m, LAYER_CONV, input, out_c, plan.out_h, plan.out_w);
    const int k = m->n_layers - 1;
    l->conv = plan;
    l->relu = relu;
    l->residual = residual;
    if (m->gemm.precision != GEMM_FP32 && plan.algorithm == CONV_WINOGRAD)
        l->conv.algorithm = CONV_IM2COL;
    if (kernel)
        l->weight = train_add_parameter(&m->net, RESCALE_WEIGHT, k, out_c, c, kernel, kernel,
                                        "%s.weight", name);
    else
        l->weight = train_add_parameter(&m->net, RESCALE_WEIGHT, k, out_c, c * h * w, 0, 0,
                                        "%s.weight", name);
    if (bias)
        l->bias = train_add_parameter(&m->net, RESCALE_BIAS, k, out_c, 0, 0, 0, "%s.bias", name);
    if (!norm) return m->n_layers;
    l->gamma = train_add_parameter(&m->net, RESCALE_GAIN, k, out_c, 0, 0, 0, "%s.weight", norm);
    l->beta = train_add_parameter(&m->net, RESCALE_BIAS, k, out_c, 0, 0, 0, "%s.bias", norm);
    l->stats = train_add_statistic(&m->net, k, out_c, "%s.running_mean", norm);
    train_add_statistic(&m->net, k, out_c, "%s.running_var", norm);
    train_add_counter(&m->net, k, "%s.num_batches_tracked", norm);
    return m->n_layers;
}

static int add_max_pool(model *m, int input, int kernel, int stride, int pad) {
    int c, h, w;
    activation_shape(m, input, &c, &h, &w);
    layer *l = add_layer(m, LAYER_MAX_POOL, input, 0, conv_out_size(h, kernel, stride, pad),
                         conv_out_size(w, kernel, stride, pad));
    l->kernel = kernel;
    l->stride = stride;
    l->pad = pad;
    return m->n_layers;
}
static int add_avg_pool(model *m, int input) {
    add_layer(m, LAYER_AVG_POOL, input, 0, 1, 1);
    return m->n_layers;
}

// Channels of a layer at --width.
static int channels_of(const config *c, int channels) {
    const int n = (int)floor(c->width * channels + 0.5);
    return n < 1 ? 1 : n;
}

// The all-convolutional net for CIFAR (Springenberg et al., arXiv 1412.6806, as in the PathCond
// paper).
static void build_allconv(model *m, const config *c) {
    static const int width[9] = {128, 128, 128, 256, 256, 256, 320, 320, 0},
                     kernel[9] = {3, 3, 3, 3, 3, 3, 3, 1, 1};
    char name[32], norm[32];
    int a = IMAGE;
    for (int l = 0; l < 9; l++) {
        const int pooled = l == 2 || l == 5, normed = pooled && c->norm == NORM_BATCH;
        snprintf(name, sizeof name, "conv%d", l + 1);
        snprintf(norm, sizeof norm, "bn%d", l / 3 + 1);
        a = add_conv(m, name, c->bias, normed ? norm : NULL, a,
                     width[l] ? channels_of(c, width[l]) : m->classes, kernel[l], 1, l < 8, NONE);
        if (pooled) a = add_max_pool(m, a, 3, 2, 1);
    }
    add_avg_pool(m, a);
}

// ResNet-18 (He et al., arXiv 1512.03385) for small images: a 3x3 stem without pooling; names are
// torchvision's.
static void build_resnet18(model *m, const config *c) {
    char name[4][48];
    const int normed = c->norm == NORM_BATCH, bias = c->bias && !normed;
    int a = add_conv(m, "conv1", bias, normed ? "bn1" : NULL, IMAGE, channels_of(c, 64), 3, 1, 1,
                     NONE);
    for (int stage = 0; stage < 4; stage++)
        for (int block = 0; block < 2; block++) {
            const int stride = stage && !block ? 2 : 1, out = channels_of(c, 64 << stage), in = a;
            int shortcut = in, in_c, in_h, in_w;
            activation_shape(m, in, &in_c, &in_h, &in_w);
            for (int k = 0; k < 4; k++)
                snprintf(name[k], sizeof name[k], "layer%d.%d.%s%d", stage + 1, block,
                         k < 2 ? "conv" : "bn", k % 2 + 1);
            a = add_conv(m, name[0], bias, normed ? name[2] : NULL, in, out, 3, stride, 1, NONE);
            const int middle = a;
            if (c->shortcut == SHORTCUT_PROJECTION || stride != 1 || in_c != out) {
                char down[2][48];
                for (int k = 0; k < 2; k++)
                    snprintf(down[k], sizeof down[k], "layer%d.%d.downsample.%d", stage + 1, block,
                             k);
                shortcut = add_conv(m, down[0], bias, normed ? down[1] : NULL, in, out, 1, stride,
                                    0, NONE);
            }
            a = add_conv(m, name[1], bias, normed ? name[3] : NULL, middle, out, 3, 1, 1, shortcut);
        }
    a = add_avg_pool(m, a);
    add_conv(m, "fc", c->bias, NULL, a, m->classes, 0, 1, 0, NONE);
}

// The default: three convolutions and a linear layer, for any image size.
static void build_small(model *m, const config *c) {
    static const int width[3] = {32, 64, 64};
    char name[32], norm[32];
    int a = IMAGE;
    for (int l = 0; l < 3; l++) {
        snprintf(name, sizeof name, "conv%d", l + 1);
        snprintf(norm, sizeof norm, "bn%d", l + 1);
        a = add_conv(m, name, c->bias, c->norm == NORM_BATCH ? norm : NULL, a,
                     channels_of(c, width[l]), 3, 1, 1, NONE);
        if (l < 2) a = add_max_pool(m, a, 2, 2, 0);
    }
    add_conv(m, "fc", c->bias, NULL, a, m->classes, 0, 1, 0, NONE);
}

// Chooses the buffers of the activations' gradients by walking the backward pass. The gradient of a
// residual is that of the sum: it takes over the buffer; convolutions that read the same activation
// later add to it.
static void plan_gradients(model *m) {
    int at[MAX_LAYERS + 1], used[3] = {0, 0, 0};
    for (int a = 0; a <= m->n_layers; a++) at[a] = NONE;
    at[m->n_layers] = 0;
    used[0] = 1;
    for (int k = m->n_layers - 1; k >= 0; k--) {
        layer *l = &m->layers[k];
        l->gradient = at[k + 1];
        if (l->residual != NONE) at[l->residual] = l->gradient;
        l->accumulate = at[l->input] != NONE;
        for (int b = 0; b < 3 && at[l->input] == NONE; b++)
            if (!used[b]) {
                at[l->input] = b;
                used[b] = 1;
            }
        if (l->residual == NONE) used[l->gradient] = 0;
    }
}

// The convolution of a layer in this mode. For diag(G) not Winograd's: over paths it is a sum of
// positive terms, which his differences would spoil; on data a gradient of zero would not stay
// zero. An image at a time, which needs the least memory.
static conv_plan plan_of(const layer *l, int mode) {
    conv_plan p = l->conv;
    if (p.algorithm != CONV_WINOGRAD || (!power_of(mode) && mode != MODE_KERNEL)) return p;
    p.algorithm = CONV_IM2COL;
    p.limit = 0;
    return p;
}

// Places all activations in one allocation; called twice, to count and to place.
static size_t place_activations(model *m, float *base) {
    const size_t rows = (size_t)m->max_rows;
    size_t used = 0, largest = 0, work = 0, partial = 0;
    for (int k = 0; k < m->n_layers; k++) {
        layer *l = &m->layers[k];
        const size_t size = (size_t)l->h * (size_t)l->w * (size_t)l->c, channels = (size_t)l->c;
        if (k == 0)
            m->image = take(base, &used,
                            rows * (size_t)l->in_h * (size_t)l->in_w * (size_t)l->in_c);
        l->y = take(base, &used, rows * size);
        largest = size > largest ? size : largest;
        if (l->kind == LAYER_MAX_POOL)
            l->arg = (unsigned char *)take(base, &used, (rows * size + 3) / 4);
        if (l->kind != LAYER_CONV) continue;
        if (l->gamma != NONE) {
            l->z = take(base, &used, rows * size);
            l->mean = take(base, &used, channels);
            l->rstd = take(base, &used, channels);
        }
        const size_t need = column_scratch(m->max_rows * l->h * l->w, l->c);
        partial = need > partial ? need : partial;
        l->u = take(base, &used, conv_transformed_floats(&l->conv));
        const conv_plan squared = plan_of(l, MODE_SQUARED);
        const size_t here = conv_work_floats(&l->conv, m->max_rows),
                     once = conv_work_floats(&squared, 1);
        work = here > work ? here : work;
        work = once > work ? once : work;
    }
    for (int i = 0; i < 3; i++) m->gradient[i] = take(base, &used, rows * largest);
    m->dz = take(base, &used, rows * largest);
    m->work = take(base, &used, work);
    m->partial = take(base, &used, partial);
    m->row_loss = take(base, &used, rows);
    m->label = (int *)take(base, &used, rows);
    m->row_hit = (int *)take(base, &used, rows);
    m->crop = (int *)take(base, &used, 3 * rows);
    m->step_loss = take(base, &used, TRAIN_LOSS_RING + 1);
    m->totals = (double *)take(base, &used, 4);
    m->square_sums = (double *)take(base, &used, 2 * REDUCE_BLOCKS);
    return used;
}

static void model_free(model *m) {
    float *const owned[] = {m->net.params,  m->net.grads, m->net.moment1,
                            m->net.moment2, m->net.stats, m->acts};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) CUDA_CHECK(cudaFree(owned[i]));
    gemm_destroy(&m->gemm);
    train_net_free(&m->net);
    memset(m, 0, sizeof *m);
}

// Whether images of in_h x in_w, max_rows at a time, fit the model. Returns 0, or -1 with a message
// that names the option that does not.
static int check_images(const config *c, int in_h, int in_w, int max_rows, char *err, size_t n) {
    static const char *const name[] = {"small", "allconv", "resnet18"};
    const int smallest = c->model == MODEL_SMALL ? 4 : 8;
    if (c->model == MODEL_ALLCONV && (in_h != 32 || in_w != 32)) {
        snprintf(err, n, "--model allconv: expected images of 32x32 pixels, the data has %dx%d",
                 in_h, in_w);
        return -1;
    }
    if (in_h < smallest || in_w < smallest) {
        snprintf(err, n, "--model %s: expected images of at least %dx%d pixels, the data has %dx%d",
                 name[c->model], smallest, smallest, in_h, in_w);
        return -1;
    }
    if ((double)in_h * in_w > MAX_GRID) {
        snprintf(err, n, "--data: expected images of at most %d pixels, the data has %dx%d",
                 MAX_GRID, in_h, in_w);
        return -1;
    }
    const int most = MAX_ROWS / (in_h * in_w) < MAX_GRID ? MAX_ROWS / (in_h * in_w) : MAX_GRID;
    if (max_rows > most) {
        snprintf(err, n, "--batch-size: expected at most %d images of %dx%d pixels, got %d", most,
                 in_h, in_w, max_rows);
        return -1;
    }
    return 0;
}

// Builds the model for images [in_h][in_w][in_c] on the device, at most max_rows at a time. Returns
// 0, or -1 with a message that names the option that does not fit.
static int model_create(model *m, const config *c, int in_c, int in_h, int in_w, int classes,
                        int max_rows, char *err, size_t n) {
    memset(m, 0, sizeof *m);
    m->classes = classes;
    m->max_rows = max_rows;
    m->smoothing = (float)c->smoothing;
    m->pool_max = c->rescale_pool == POOL_MAX;
    m->net.hint = "--model, --width, --norm, --shortcut or --no-bias differ";
    if (check_images(c, in_h, in_w, max_rows, err, n)) return -1;
    char text[256];
    if (gemm_create(&m->gemm, c->train.precision, text, sizeof text)) {
        const int machine = c->train.precision == GEMM_FP32;  // which every machine has
        snprintf(err, n, machine ? "%s" : "--precision: %s", text);
        return machine ? 1 : -1;
    }
    m->layers[0].in_c = in_c;
    m->layers[0].in_h = in_h;
    m->layers[0].in_w = in_w;
    if (c->model == MODEL_ALLCONV) build_allconv(m, c);
    else if (c->model == MODEL_RESNET18) build_resnet18(m, c);
    else build_small(m, c);
    train_net *net = &m->net;
    if (net->n_params > INT_MAX) {
        snprintf(err, n, "--width: %.3g parameters, expected at most %d", (double)net->n_params,
                 INT_MAX);
        model_free(m);
        return -1;
    }
    plan_gradients(m);
    net->params = device_floats(net->n_params);
    net->grads = device_floats(net->n_params);
    net->stats = device_floats(net->n_stats);
    if (c->train.optimizer != OPTIMIZER_SGD) net->moment1 = device_floats(net->n_params);
    if (c->train.optimizer == OPTIMIZER_ADAMW) net->moment2 = device_floats(net->n_params);
    for (int k = 0; k < m->n_layers; k++) {
        layer *l = &m->layers[k];
        if (l->stats == NONE) continue;
        l->running_mean = net->stats + net->buffers[l->stats].offset;
        l->running_var = net->stats + net->buffers[l->stats + 1].offset;
    }
    m->n_acts = place_activations(m, NULL);
    m->acts = device_floats(m->n_acts);
    place_activations(m, m->acts);
    return 0;
}

// ----------------------------------------------------------------------------------------- kernels
// What only this trainer needs; BatchNorm, losses and optimizers are in common/layers.cuh,
// convolutions in common/conv.cuh. A thread per channel, so that neighbouring threads touch
// neighbouring floats.

// Grid with a thread per channel, blockIdx.y the pixel and blockIdx.z the image.
static dim3 grid_of_images(int channels, int pixels, int images) {
    return dim3((unsigned)ceil_div(channels, BLOCK), (unsigned)pixels, (unsigned)images);
}

// Random crop (after padding by 4) and mirror image of each sample, a function of (seed, epoch,
// sample) alone.
enum { CROP_PAD = 4 };
static __global__ void crop_kernel(int *__restrict__ crop, const int *__restrict__ order, int rows,
                                   int max_rows, uint64_t seed, uint64_t stream) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    uint32_t w[4];
    rng_philox(seed, stream, (uint64_t)order[r], w);
    crop[r] = (int)rng_below(w[0], 2 * CROP_PAD + 1) - CROP_PAD;
    crop[max_rows + r] = (int)rng_below(w[1], 2 * CROP_PAD + 1) - CROP_PAD;
    crop[2 * max_rows + r] = (int)(w[2] & 1);
}

// A batch of images, from bytes [c][h][w] to floats [h][w][c]: x = pixel * mul + add. A thread per
// column, blockIdx.y the row, blockIdx.z the image. crop NULL: as stored; pixels outside the stored
// image are black.
static __global__ void gather_images_kernel(float *__restrict__ x,
                                            const unsigned char *__restrict__ pixels,
                                            const int *__restrict__ order,
                                            const int *__restrict__ crop, int max_rows,
                                            int channels, int w, normalisation norm) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y, r = blockIdx.z;
    const int h = gridDim.y;
    if (column >= w) return;
    const int down = crop ? crop[r] : 0;
    const int right = crop ? crop[max_rows + r] : 0;
    const int mirrored = crop ? crop[2 * max_rows + r] : 0;
    const int from_row = row + down;
    const int from = (mirrored ? w - 1 - column : column) + right;
    const int row_inside = (unsigned)from_row < (unsigned)h;
    const int inside = row_inside && (unsigned)from < (unsigned)w;
    const unsigned char *sample = pixels + (size_t)order[r] * channels * h * w;
    for (int c = 0; c < channels; c++)
        x[(((size_t)r * h + row) * w + column) * channels + c] =
            (inside ? (float)sample[(c * h + from_row) * w + from] : 0.0f) * norm.mul[c] +
            norm.add[c];
}

// Shape of a max-pool: kernel <= 3.
typedef struct pool_shape {
    int c, h, w, out_h, out_w, kernel, stride, pad;
} pool_shape;
enum { POOL = 3 };

// y = maximum over the window, arg = which of its POOL x POOL positions won (the first of equals,
// as in PyTorch; NaN wins). blockIdx.y is the output pixel, blockIdx.z the image. All 9 positions
// without a branch: one outside the image or a smaller kernel stands for the nearest inside, which
// changes no maximum.
static __global__ void max_pool_kernel(float *__restrict__ y, unsigned char *__restrict__ arg,
                                       const float *__restrict__ x, pool_shape p) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int y0 = (int)blockIdx.y / p.out_w * p.stride - p.pad,
              x0 = (int)blockIdx.y % p.out_w * p.stride - p.pad;
    if (c >= p.c) return;
    const float *in = x + (size_t)blockIdx.z * p.h * p.w * p.c;
    float best = -INFINITY;
    int at = 0;
    UNROLL for (int k = 0; k < POOL * POOL; k++) {
        const int iy = min(max(y0 + min(k / POOL, p.kernel - 1), 0), p.h - 1),
                  ix = min(max(x0 + min(k % POOL, p.kernel - 1), 0), p.w - 1);
        const float v = in[(iy * p.w + ix) * p.c + c];
        const int wins = (int)(v > best) | (int)(v != v);
        best = wins ? v : best;
        at = wins ? (iy - y0) * POOL + ix - x0 : at;
    }
    const size_t out = ((size_t)blockIdx.z * gridDim.y + blockIdx.y) * p.c + c;
    y[out] = best;
    arg[out] = (unsigned char)at;
}

// y = sum over the window, which is what max-pooling means to paths.
static __global__ void sum_pool_kernel(float *__restrict__ y, const float *__restrict__ x,
                                       pool_shape p) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int y0 = (int)blockIdx.y / p.out_w * p.stride - p.pad,
              x0 = (int)blockIdx.y % p.out_w * p.stride - p.pad;
    const float *in = x + (size_t)blockIdx.z * p.h * p.w * p.c;
    float total = 0.0f;
    if (c >= p.c) return;
    for (int iy = max(y0, 0); iy < min(y0 + p.kernel, p.h); iy++)
        for (int ix = max(x0, 0); ix < min(x0 + p.kernel, p.w); ix++)
            total += in[(iy * p.w + ix) * p.c + c];
    y[((size_t)blockIdx.z * gridDim.y + blockIdx.y) * p.c + c] = total;
}

// dx = sum of d over the windows in which this input won (sum: over all windows that hold it).
// blockIdx.y is the input pixel.
static __global__ void max_pool_backward_kernel(float *__restrict__ dx, const float *__restrict__ d,
                                                const unsigned char *__restrict__ arg, pool_shape p,
                                                int sum) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, iy = (int)blockIdx.y / p.w + p.pad,
              ix = (int)blockIdx.y % p.w + p.pad;
    // the output row and column whose window has this input at position k
    int at_y[POOL], at_x[POOL], on_y[POOL], on_x[POOL];
    UNROLL for (int k = 0; k < POOL; k++) {
        at_y[k] = min(max((iy - k) / p.stride, 0), p.out_h - 1);
        at_x[k] = min(max((ix - k) / p.stride, 0), p.out_w - 1);
        on_y[k] = (int)(k < p.kernel) & (int)(iy - k == at_y[k] * p.stride);
        on_x[k] = (int)(k < p.kernel) & (int)(ix - k == at_x[k] * p.stride);
    }
    if (c >= p.c) return;
    arg += (size_t)blockIdx.z * p.out_h * p.out_w * p.c;
    d += (size_t)blockIdx.z * p.out_h * p.out_w * p.c;
    float total = 0.0f;
    UNROLL for (int k = 0; k < POOL * POOL; k++) {
        const int at = (at_y[k / POOL] * p.out_w + at_x[k % POOL]) * p.c + c;
        const float on = (float)(on_y[k / POOL] & on_x[k % POOL]);
        const float won = (float)((int)(arg[at] == k) | sum);
        total += on * won * d[at];
    }
    dx[((size_t)blockIdx.z * gridDim.y + blockIdx.y) * p.c + c] = total;
}

// y[image][c] = factor * sum of x[image][pixel][c]; blockIdx.y is the image. And its adjoint;
// blockIdx.y the pixel, .z the image.
static __global__ void avg_pool_kernel(float *__restrict__ y, const float *__restrict__ x,
                                       int pixels, int channels, float factor) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    float sum = 0.0f;
    for (int i = 0; i < pixels; i++) sum += x[((size_t)blockIdx.y * pixels + i) * channels + c];
    y[(size_t)blockIdx.y * channels + c] = factor * sum;
}
static __global__ void avg_pool_backward_kernel(float *__restrict__ dx, const float *__restrict__ d,
                                                int channels, float factor) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    dx[((size_t)blockIdx.z * gridDim.y + blockIdx.y) * channels + c] =
        factor * d[(size_t)blockIdx.z * channels + c];
}

// y = relu(y + residual).
static __global__ void add_relu_kernel(float *__restrict__ y, const float *__restrict__ residual,
                                       int n, int relu) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float v = y[i] + residual[i];
    y[i] = (int)(v <= 0.0f) & relu ? 0.0f : v;
}

// v *= factor.
static __global__ void multiply_kernel(float *__restrict__ v, float factor, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) v[i] *= factor;
}

// ------------------------------------------------------------------------------- forward, backward

static float *value_of(const model *m, int t) {
    return t == NONE ? NULL : m->net.params + m->net.tensors[t].offset;
}
static float *grad_of(const model *m, int t) {
    return t == NONE ? NULL : m->net.grads + m->net.tensors[t].offset;
}
static pool_shape pool_of(const layer *l) {
    const pool_shape p = {l->c, l->in_h, l->in_w, l->h, l->w, l->kernel, l->stride, l->pad};
    return p;
}

// Weight of a pixel in an average pool, squared with the other weights.
static float average_factor(const layer *l, int mode) {
    const float f = 1.0f / (float)(l->in_h * l->in_w);
    return power_of(mode) == 2 ? f * f : f;
}

// One convolution with what follows it: BatchNorm or bias, residual, ReLU.
static void conv_layer_forward(model *m, layer *l, int n, int mode) {
    const int rows = n * l->h * l->w, normed = l->gamma != NONE,
              fused = !normed && l->residual == NONE;
    const conv_plan plan = plan_of(l, mode);
    const float *bias = value_of(m, l->bias);
    const float *added = normed ? NULL : bias;
    float *out = normed ? l->z : l->y;
    conv_forward(&m->gemm, &plan, n, activation(m, l->input), value_of(m, l->weight), added,
                 fused && l->relu, out, l->u, m->work);
    const float *residual = l->residual == NONE ? NULL : activation(m, l->residual);
    if (normed) {
        bn_statistics(l->mean, l->rstd, l->running_mean, l->running_var, l->z, bias, m->partial,
                      rows, l->c, mode);
        bn_relu(l->y, l->z, residual, l->mean, l->rstd, value_of(m, l->gamma), value_of(m, l->beta),
                rows, l->c, l->relu);
    } else if (residual) {
        add_relu_kernel<<<ceil_div((long long)rows * l->c, BLOCK), BLOCK>>>(l->y, residual,
                                                                            rows * l->c, l->relu);
    }
}

// Its backward for images first .. first + n - 1 of the last forward: d, the gradient of y, is
// masked by the ReLU in place and is then also the residual's gradient.
static void conv_layer_backward(model *m, layer *l, int first, int n, int mode, float *dx) {
    // powers are not negative: every ReLU passes
    const int rows = n * l->h * l->w, relu = l->relu && !power_of(mode);
    const conv_plan plan = plan_of(l, mode);
    const size_t before = (size_t)first * conv_out_floats(&plan);
    const size_t before_x = (size_t)first * conv_in_floats(&plan);
    const float *x = activation(m, l->input) + before_x, *y = l->y + before;
    float *d = m->gradient[l->gradient] + before, *dz = d;
    if (l->gamma != NONE) {
        dz = m->dz;
        bn_relu_backward(dz, d, y, l->z + before, l->mean, l->rstd, value_of(m, l->gamma),
                         grad_of(m, l->gamma), grad_of(m, l->beta), m->partial, rows, l->c, mode,
                         relu);
        if (l->bias != NONE)
            bias_relu_backward(dz, y, grad_of(m, l->bias), m->partial, rows, l->c, 0);
    } else if (relu || l->bias != NONE) {
        bias_relu_backward(d, y, grad_of(m, l->bias), m->partial, rows, l->c, relu);
    }
    conv_backward(&m->gemm, &plan, n, x, value_of(m, l->weight), dz, grad_of(m, l->weight),
                  dx ? dx + before_x : NULL, l->accumulate, l->u, m->work);
}

// The same for n images one by one, whose gradients are not added up: |gradient|^power of every
// image is added to g[n_params].
static void conv_layer_backward_each(model *m, layer *l, int n, int mode, float *dx, float *g,
                                     int power) {
    const train_net *net = &m->net;
    int end = l->weight;
    while (end < net->n_tensors && &m->layers[net->tensors[end].layer] == l) end++;
    const size_t at = net->tensors[l->weight].offset;
    const size_t after = end < net->n_tensors ? net->tensors[end].offset : net->n_params;
    for (int i = 0; i < n; i++) {
        conv_layer_backward(m, l, i, 1, mode, dx);
        kernel_add(g + at, net->grads + at, after - at, power, 1.0f);
    }
}

// Forward of n images in activation 0.
static void forward(model *m, int n, int mode) {
    for (int k = 0; k < m->n_layers; k++) {
        layer *l = &m->layers[k];
        const float *x = activation(m, l->input);
        const dim3 grid = grid_of_images(l->c, l->h * l->w, n);
        switch (l->kind) {
        case LAYER_CONV: conv_layer_forward(m, l, n, mode); break;
        case LAYER_MAX_POOL:
            if (power_of(mode) && !m->pool_max)
                sum_pool_kernel<<<grid, block_of(l->c)>>>(l->y, x, pool_of(l));
            else
                max_pool_kernel<<<grid, block_of(l->c)>>>(l->y, l->arg, x, pool_of(l));
            break;
        case LAYER_AVG_POOL:
            avg_pool_kernel<<<grid_of(l->c, n), block_of(l->c)>>>(l->y, x, l->in_h * l->in_w, l->c,
                                                                  average_factor(l, mode));
            break;
        default: abort();
        }
    }
    if (mode == MODE_TRAIN) train_count_batch(&m->net);
    CUDA_CHECK_LAUNCH();
}

// Backward of the last forward: the gradient of the last activation lies in its buffer; writes
// every tensor of grads. With g[n_params]: |gradient|^power of each of the n images is added to g.
static void backward_into(model *m, int n, int mode, float *g, int power) {
    for (int k = m->n_layers - 1; k >= 0; k--) {
        layer *l = &m->layers[k];
        float *d = m->gradient[l->gradient], *dx = NULL;
        if (l->input != IMAGE) dx = m->gradient[m->layers[l->input - 1].gradient];
        const dim3 grid = grid_of_images(l->c, l->in_h * l->in_w, n);
        const int sum = power_of(mode) && !m->pool_max;
        switch (l->kind) {
        case LAYER_CONV:
            if (g) conv_layer_backward_each(m, l, n, mode, dx, g, power);
            else conv_layer_backward(m, l, 0, n, mode, dx);
            break;
        case LAYER_MAX_POOL:
            max_pool_backward_kernel<<<grid, block_of(l->c)>>>(dx, d, l->arg, pool_of(l), sum);
            break;
        case LAYER_AVG_POOL:
            avg_pool_backward_kernel<<<grid, block_of(l->c)>>>(dx, d, l->c,
                                                               average_factor(l, mode));
            break;
        default: abort();
        }
    }
    CUDA_CHECK_LAUNCH();
}

static void backward(model *m, int n, int mode) { backward_into(m, n, mode, NULL, 0); }

// Loss of the logits; its gradient, of the mean over the batch, goes to their buffer; the mean loss
// to step_loss[slot].
static void loss_forward_backward(model *m, int n, int slot) {
    const layer *last = &m->layers[m->n_layers - 1];
    softmax_cross_entropy(m->totals, m->step_loss + slot, m->row_loss, m->row_hit,
                          m->gradient[last->gradient], last->y, m->label, n, m->classes,
                          m->smoothing);
}

// One update of all parameters; step counts from 0 (AdamW's bias correction uses step + 1).
static void update(model *m, const config *c, double lr, int64_t step) {
    const train_net *net = &m->net;
    optimizer_step(c->train.optimizer, net->params, net->grads, net->moment1, net->moment2,
                   (int)net->n_params, lr, c->train.momentum, c->train.weight_decay, step);
}

// ---------------------------------------------------------------------------------- initialisation

// Initial parameters, made on the host by a counter-based generator (the same on every device), and
// fresh statistics. kaiming-uniform is the default of nn.Conv2d and nn.Linear: weights and biases
// uniform in +-1 / sqrt(fan_in). kaiming-normal: weights normal with variance 2 / fan_in, biases
// zero. --init-scale multiplies both. BatchNorm: gamma 1, beta 0, mean 0, variance 1.
static void model_init(model *m, const config *c) {
    train_net *net = &m->net;
    float *host = (float *)train_alloc(NULL, net->n_params, sizeof(float));
    float *stats = (float *)train_alloc(NULL, net->n_stats + 1, sizeof(float));
    const float scale = (float)c->train.init_scale;
    for (int i = 0; i < net->n_tensors; i++) {
        const train_tensor *t = &net->tensors[i];
        const layer *l = &m->layers[t->layer];
        float *p = host + t->offset;
        const size_t n = (size_t)t->rows * (size_t)t->cols;
        const float fan_in = (float)net->tensors[l->weight].cols;
        const uint64_t seed = (uint64_t)c->train.seed,
                       stream = rng_stream(RNG_PARAMETERS, (uint32_t)i);
        if (i == l->gamma || i == l->beta) {
            for (size_t k = 0; k < n; k++) p[k] = i == l->gamma ? 1.0f : 0.0f;
        } else if (c->init == INIT_KAIMING_UNIFORM) {
            rng_fill_uniform(p, n, -scale / sqrtf(fan_in), scale / sqrtf(fan_in), seed, stream);
        } else if (i == l->weight) {
            rng_fill_normal(p, n, 0.0f, scale * sqrtf(2.0f / fan_in), seed, stream);
        }
    }
    for (int k = 0; k < m->n_layers; k++) {
        const layer *l = &m->layers[k];
        if (l->stats == NONE) continue;
        float *variance = stats + net->buffers[l->stats + 1].offset;
        for (int i = 0; i < l->c; i++) variance[i] = 1.0f;
    }
    train_upload(net->params, host, net->n_params * sizeof(float));
    train_upload(net->stats, stats, net->n_stats * sizeof(float));
    free(host);
    free(stats);
}

// -------------------------------------------------------------------------------------------- data

// Loads images first .. first + rows - 1 of the epoch's order into activation 0, cropped and
// mirrored at random if crop_seed >= 0.
static void load_batch(model *m, const device_data *d, int first, int rows, int64_t crop_seed,
                       int64_t epoch) {
    const int *order = d->order + first, *crop = NULL;
    if (crop_seed >= 0) {
        crop_kernel<<<ceil_div(rows, BLOCK), BLOCK>>>(
            m->crop, order, rows, m->max_rows, (uint64_t)crop_seed,
            rng_stream(RNG_AUGMENTATION, (uint32_t)epoch));
        crop = m->crop;
    }
    const dim3 grid((unsigned)ceil_div(d->width, 32), (unsigned)d->height, (unsigned)rows);
    gather_images_kernel<<<grid, 32>>>(m->image, d->pixels, order, crop, m->max_rows, d->channels,
                                       d->width, d->norm);
    gather_labels(m->label, d, first, rows);
    CUDA_CHECK_LAUNCH();
}

// --------------------------------------------------------------------------- diag(G) and rescaling

// Writes diag(G) of the path-lifting into grads, that of a bias times 2^out, all others times 2^(in
// + out): the trainer's own passes, once, with squared parameters (power 1: with their absolute
// values), on one image of 2^in and output gradients of 2^out. Max-pools are sums over their
// windows, or follow the largest (--rescale-pool max). Every path begins at the image or at a bias,
// so powers of biases are times 2^in as well; with BatchNorm, whose means begin paths, in is 0.
static void scaled_diag_g(model *m, int power, int bias_paths, int in, int out) {
    const int pixels = m->layers[0].in_h * m->layers[0].in_w * m->layers[0].in_c;
    const int mode = power == 1 ? MODE_ABSOLUTE : MODE_SQUARED;
    float *params = m->net.params, *powers = device_floats(m->net.n_params);
    const int precision = m->gemm.precision;
    gemm_set_precision(&m->gemm, GEMM_FP32, NULL, 0);  // also with --precision tf32 or bf16
    kernel_raise(powers, params, m->net.n_params, power);
    fill_kernel<<<ceil_div(pixels, BLOCK), BLOCK>>>(m->image, ldexpf(1.0f, in), pixels);
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        float *bias = powers + t->offset;
        if (t->role != RESCALE_BIAS) continue;
        if (!bias_paths) CUDA_CHECK(cudaMemset(bias, 0, (size_t)t->rows * sizeof(float)));
        else if (in)
            multiply_kernel<<<ceil_div(t->rows, BLOCK), BLOCK>>>(bias, ldexpf(1.0f, in), t->rows);
    }
    m->net.params = powers;
    forward(m, 1, mode);
    fill_kernel<<<ceil_div(m->classes, BLOCK), BLOCK>>>(
        m->gradient[m->layers[m->n_layers - 1].gradient], ldexpf(1.0f, out), m->classes);
    backward(m, 1, mode);
    device_synchronize();
    m->net.params = params;
    CUDA_CHECK(cudaFree(powers));
    gemm_set_precision(&m->gemm, precision, NULL, 0);
}

static void diag_g(model *m, int power, int bias_paths) {
    scaled_diag_g(m, power, bias_paths, 0, 0);
}

// What is in grads: the smallest positive and the largest number, the smallest that is the largest
// of a tensor, and how many are zero.
typedef struct g_range {
    double least, most, faintest;
    size_t zeros;
} g_range;
static g_range range_of_g(const model *m) {
    float *host = train_host_copy(m->net.grads, m->net.n_params);
    g_range r = {INFINITY, 0, INFINITY, 0};
    for (int k = 0; k < m->net.n_tensors; k++) {
        const train_tensor *t = &m->net.tensors[k];
        const float *g = host + t->offset;
        double most = 0;
        for (size_t i = 0; i < (size_t)t->rows * (size_t)t->cols; i++) {
            if (g[i] == 0) r.zeros++;
            else if (!(g[i] >= r.least)) r.least = g[i];
            if (!(g[i] <= most)) most = g[i];
        }
        if (!(most <= r.most)) r.most = most;
        r.faintest = fmin(r.faintest, most);
    }
    free(host);
    return r;
}

// The exponents that diag(G) was written with, and how many of its entries are zero because no
// exponents keep all in range.
typedef struct g_scale {
    int in, out;
    size_t lost;
} g_scale;

// diag(G) into grads, with powers of two that keep it within the range of floats where ones do not.
// Layers of small weights, one after the other, leave that range: their g would be zero, and their
// channels would be taken for dead.
static g_scale diag_g_in_range(model *m, int power, int bias_paths) {
    const double comfortable = 1e-30;
    const g_scale ones = {0, 0, 0};
    int norm = 0;
    diag_g(m, power, bias_paths);
    g_range range = range_of_g(m);
    if (range.most <= FLT_MAX && range.zeros == 0 && range.least >= comfortable) return ones;
    for (int k = 0; k < m->n_layers; k++)
        norm = norm || (m->layers[k].kind == LAYER_CONV && m->layers[k].gamma != NONE);
    const int most = range.most > 0 && range.most <= FLT_MAX ? ilogb(range.most) : 0;
    for (int shift = (range.most <= FLT_MAX ? 100 : -20) - most; shift > -240; shift -= 20) {
        g_scale scale = {norm ? 0 : shift / 2, 0, 0};
        scale.out = shift - scale.in < 120 ? shift - scale.in : 120;
        scaled_diag_g(m, power, bias_paths, scale.in, scale.out);
        range = range_of_g(m);
        if (!(range.most <= FLT_MAX)) continue;
        if (range.least < comfortable) scale.lost = range.zeros;
        return scale;
    }
    return ones;  // rescale.cuh refuses what overflows
}

// Adds to g[n_params] what the n images in activation 0 contribute to the diagonal of the tangent
// kernel (or of the Fisher matrix), n times their mean, with output gradients of 2^out. They are
// samples first .. first + n - 1 of the draw, which decides on signs and labels. One forward for
// all; the backward takes every image by itself. BatchNorm: mean and variance are those of the n
// images, and are constants to the backward.
static void add_kernel(model *m, const config *c, int first, int n, int out, float *g) {
    const layer *last = &m->layers[m->n_layers - 1];
    const int fisher = c->train.rescale_kernel == KERNEL_FISHER, size = n * m->classes;
    float *d = m->gradient[last->gradient];
    forward(m, n, MODE_KERNEL);
    kernel_output_gradient(d, last->y, fisher, first, n, m->classes, c->train.seed, m->step);
    if (out) multiply_kernel<<<ceil_div(size, BLOCK), BLOCK>>>(d, ldexpf(1.0f, out), size);
    backward_into(m, n, MODE_KERNEL, g, train_rescale_power(&c->train));
}

// Training samples of the kernel's diagonal: --rescale-samples, or all.
static int kernel_samples(const config *c, int n) {
    return c->train.rescale_samples < n ? c->train.rescale_samples : n;
}

// Writes the diagonal of the tangent kernel (or of the Fisher matrix) on training samples into
// grads, times 2^(out power): the mean over samples drawn by (seed, step), without augmentation.
// More than the model holds at a time go through it in parts of nearly the same size; with
// BatchNorm, each has its own mean and variance, as a training batch has.
static void kernel_diagonal(model *m, const config *c, int out) {
    const int n = kernel_samples(c, m->samples->n), parts = ceil_div(n, m->max_rows);
    const int n_params = (int)m->net.n_params, precision = m->gemm.precision;
    float *g = device_floats(m->net.n_params);
    gemm_set_precision(&m->gemm, GEMM_FP32, NULL, 0);
    // Epochs count from 0, so none of them has this order.
    order_samples(m->samples, c->train.seed, -1 - m->step, 1);
    for (int i = 0; i < parts; i++) {
        const int first = (int)((int64_t)n * i / parts), end = (int)((int64_t)n * (i + 1) / parts);
        load_batch(m, m->samples, first, end - first, -1, 0);
        add_kernel(m, c, first, end - first, out, g);
    }
    multiply_kernel<<<ceil_div(n_params, BLOCK), BLOCK>>>(g, 1.0f / (float)n, n_params);
    CUDA_CHECK(cudaMemcpy(m->net.grads, g, m->net.n_params * sizeof(float),
                          cudaMemcpyDeviceToDevice));
    CUDA_CHECK(cudaFree(g));
    gemm_set_precision(&m->gemm, precision, NULL, 0);
}

// The same, with output gradients of a power of two that keeps it within the range of floats where
// ones would not do. A zero says nothing here, as a ReLU may be off on all samples, and the biases
// of the logits have g of about one. So it is the largest number of every tensor that is looked at.
static g_scale kernel_in_range(model *m, const config *c) {
    const double comfortable = 1e-20;
    const int power = train_rescale_power(&c->train);
    int out = 0;
    kernel_diagonal(m, c, out);
    const g_range range = range_of_g(m);
    if (!(range.most <= FLT_MAX)) out = -60;
    else if (range.most == 0) out = 120;
    else if (range.faintest < comfortable) out = (100 - ilogb(range.most)) / power;
    if (out > 120) out = 120;
    if (out) kernel_diagonal(m, c, out);  // rescale.cuh refuses what overflows still
    const g_scale scale = {0, out * power, 0};
    return scale;
}

// Describes the model to rescale.cuh; returns the number of groups. The channels of an activation
// are one group of units, and so are all activations that a residual adds up: every tensor that
// writes into the stream enters it, every one that reads it leaves it. With BatchNorm the channels
// are scaled through gamma and beta, which is exact in training and in evaluation mode; the
// convolution before it is left alone. tensors[i] belongs to net.tensors[i]; with_g: with diag(G)
// from grads.
static int describe(const model *m, rescale_group *group, rescale_tensor *tensors, int with_g) {
    const train_net *net = &m->net;
    int unit[MAX_LAYERS + 1], n_groups = 0, output = m->n_layers - 1;
    // the layer that makes the logits
    while (m->layers[output].kind != LAYER_CONV) output = m->layers[output].input - 1;
    unit[IMAGE] = RESCALE_NONE;
    for (int k = 0; k < m->n_layers; k++) {
        const layer *l = &m->layers[k];
        if (l->kind != LAYER_CONV) unit[k + 1] = unit[l->input];
        else if (k == output) unit[k + 1] = RESCALE_NONE;
        else if (l->residual != NONE) unit[k + 1] = unit[l->residual];
        else unit[k + 1] = n_groups;
        if (l->kind != LAYER_CONV) continue;
        const char *name = net->tensors[l->weight].name;
        if (unit[k + 1] == n_groups) group[n_groups++] = rescale_units(name, l->c, RESCALE_RELU);
        const int u = unit[k + 1], before_norm = l->gamma != NONE ? RESCALE_NONE : u;
        tensors[l->weight] = rescale_weight(name, value_of(m, l->weight), l->c, l->in_c,
                                            l->conv.kernel_h * l->conv.kernel_w, before_norm,
                                            unit[l->input]);
        if (l->bias != NONE)
            tensors[l->bias] = rescale_bias(net->tensors[l->bias].name, value_of(m, l->bias), l->c,
                                            before_norm);
        if (l->gamma == NONE) continue;
        tensors[l->gamma] = rescale_gain(net->tensors[l->gamma].name, value_of(m, l->gamma), l->c,
                                         u, l->running_mean, l->running_var, BN_EPS);
        tensors[l->beta] = rescale_bias(net->tensors[l->beta].name, value_of(m, l->beta), l->c, u);
    }
    for (int i = 0; i < net->n_tensors; i++) {
        const size_t at = net->tensors[i].offset;
        tensors[i].g = with_g ? net->grads + at : NULL;
        tensors[i].moment1 = net->moment1 ? net->moment1 + at : NULL;
        tensors[i].moment2 = net->moment2 ? net->moment2 + at : NULL;
    }
    return n_groups;
}

// Rescales the parameters (and the optimizer state) in place. Returns 0, or -1 with report->message
// set.
static int rescale_model(model *m, const config *c, rescale_report *report) {
    rescale_group group[MAX_LAYERS];
    rescale_tensor tensors[4 * MAX_LAYERS];
    const rescale_options o = train_rescale_options(&c->train);
    const int pathcond = o.method == RESCALE_PATHCOND;
    device_synchronize();
    const double start = log_seconds();
    g_scale scale = {0, 0, 0};
    if (pathcond && c->train.rescale_kernel) scale = kernel_in_range(m, c);
    else if (pathcond) scale = diag_g_in_range(m, o.power, !c->train.rescale_paths);
    const double seconds = log_seconds() - start;
    const rescale_net net = {group, describe(m, group, tensors, pathcond), tensors,
                             m->net.n_tensors};
    train_count_paths(&c->train, tensors, net.n_tensors);
    for (int i = 0; i < net.n_tensors; i++)
        tensors[i].reference = ldexp(1.0,
                                     scale.out + (tensors[i].role == RESCALE_BIAS ? 0 : scale.in));
    const int status = analysis_run(m->net.analysis, &net, &o, report);
    if (!status && scale.lost)
        snprintf(report->message, sizeof report->message,
                 "%zu of %zu entries of diag(G) are too small for floats, %d units stay as they "
                 "are; a larger --init-scale helps",
                 scale.lost, m->net.n_params, report->pinned_units);
    report->seconds_diag_g += seconds;
    return status ? -1 : 0;
}

enum { PROBE_ROWS = 8 };

// Outputs of the network on fixed random images, [*n] = [PROBE_ROWS][classes], in the given mode;
// the caller frees them.
static float *probe_outputs(model *m, int mode, size_t *n) {
    const int rows = m->max_rows < PROBE_ROWS ? m->max_rows : PROBE_ROWS;
    const layer *first = &m->layers[0];
    const size_t n_in = (size_t)rows * (size_t)first->in_h * (size_t)first->in_w *
                        (size_t)first->in_c;
    float *in = (float *)train_alloc(NULL, n_in, sizeof(float));
    rng_fill_normal(in, n_in, 0.0f, 1.0f, 1, rng_stream(RNG_TEST, 0));
    train_upload(m->image, in, n_in * sizeof(float));
    free(in);
    forward(m, rows, mode);
    *n = (size_t)rows * (size_t)m->classes;
    return train_host_copy(m->layers[m->n_layers - 1].y, *n);
}

// rescale_model, and what it did to the network's outputs, in training and in evaluation mode.
static int rescale_and_measure(model *m, const config *c, rescale_report *report, double *moved) {
    float *before[2], *after[2];
    size_t n = 0;
    for (int i = 0; i < 2; i++) before[i] = probe_outputs(m, i ? MODE_PROBE : MODE_EVAL, &n);
    const int status = rescale_model(m, c, report);
    *moved = 0;
    for (int i = 0; i < 2; i++) {
        after[i] = probe_outputs(m, i ? MODE_PROBE : MODE_EVAL, &n);
        *moved = fmax(*moved, train_relative_difference(before[i], after[i], n));
        free(before[i]);
        free(after[i]);
    }
    return status;
}

// ------------------------------------------------------------------------------------ training run

typedef struct trainer {
    train_run run;
    const config *c;
    model m;
    device_data train, test;
    int64_t ordered;                    // epoch whose sample order is on the device, or -1
} trainer;

// Loads the batch of the step to come; returns its rows.
static int next_batch(trainer *t) {
    const train_options *o = t->run.options;
    int64_t epoch;
    int first;
    const int rows = train_batch(&t->run, &epoch, &first);
    if (t->ordered != epoch) order_samples(&t->train, o->seed, epoch, o->shuffle == SHUFFLE_EPOCH);
    t->ordered = epoch;
    load_batch(&t->m, &t->train, first, rows, t->c->augment ? o->seed : -1, epoch);
    return rows;
}

// Mean loss and accuracy over the test set, or over as many training samples (the first ones, not
// augmented).
static void evaluate(void *self, int test, double *loss, double *accuracy) {
    trainer *t = (trainer *)self;
    model *m = &t->m;
    const device_data *d = test ? &t->test : &t->train;
    const int n = d->n < t->test.n ? d->n : t->test.n;
    double totals[2];
    order_samples(d, 0, 0, 0);
    t->ordered = -1;
    CUDA_CHECK(cudaMemset(m->totals, 0, sizeof totals));
    for (int first = 0; first < n; first += m->max_rows) {
        const int rows = n - first < m->max_rows ? n - first : m->max_rows;
        if (train_pause(&t->run, test ? "evaluating on test data" : "evaluating on training data",
                        first, n))
            return;
        load_batch(m, d, first, rows, -1, 0);
        forward(m, rows, MODE_EVAL);
        loss_forward_backward(m, rows, TRAIN_LOSS_RING);
    }
    train_download(totals, m->totals, sizeof totals);
    *loss = totals[0] / n;
    *accuracy = totals[1] / n;
}

static int rescale_now(void *self, rescale_report *report, double *moved) {
    trainer *t = (trainer *)self;
    t->m.step = t->run.step;
    t->ordered = -1;  // the kernel's samples are in their own order
    return moved ? rescale_and_measure(&t->m, t->c, report, moved)
                 : rescale_model(&t->m, t->c, report);
}
static float *outputs(void *self, size_t *n) {
    return probe_outputs(&((trainer *)self)->m, MODE_EVAL, n);
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
    train_options *o = &c->train;
    cli_option options[] = {
        TRAIN_DATA_ROWS(o, "fashion-mnist, mnist, cifar10, images (built in), or a folder"),
        CLI_INT("limit-test", &o->limit_test, "N", 0, INT_MAX, "the same for the test set"),
        CLI_FLAG("augment", &c->augment, "random crops (after padding by 4) and mirror images"),
        CLI_GROUP("Model"),
        CLI_CHOICE("model", &c->model, "small|allconv|resnet18",
                   "three convolutions; nine, for 32x32 images; ResNet-18 for small images"),
        CLI_DOUBLE("width", &c->width, "X", 0, 16, CLI_ABOVE_MIN,
                   "multiplies the channels of every layer"),
        CLI_CHOICE("norm", &c->norm, "none|batch",
                   "BatchNorm (default batch for resnet18, else none)"),
        CLI_NO_FLAG("no-bias", &c->bias, "layers without bias"),
        CLI_CHOICE("shortcut", &c->shortcut, "identity|projection",
                   "of resnet18: identity where shapes allow, or a projection in every block"),
        CLI_CHOICE("init", &c->init, "kaiming-uniform|kaiming-normal",
                   "nn.Conv2d's default, or normal weights and zero biases"),
        TRAIN_INIT_SCALE_ROW(o),
        TRAIN_RESCALING_ROWS(o),
        CLI_CHOICE("rescale-pool", &c->rescale_pool, "sum|max",
                   "paths through a max-pool: all, or those of the largest (as published)"),
        TRAIN_OPTIMIZER_ROWS(o),
        CLI_DOUBLE("label-smoothing", &c->smoothing, "X", 0, 1, CLI_BELOW_MAX,
                   "as torch.nn.CrossEntropyLoss"),
        TRAIN_LENGTH_ROWS(o),
        TRAIN_SAMPLING_ROWS(o),
        TRAIN_PRECISION_ROW(o),
        TRAIN_OUTPUT_ROWS(o),
    };
    const int n = sizeof options / sizeof *options;
    train_parse(
        "train_cnn",
        "Trains a convolutional net, rescaled after initialisation so that it trains faster.",
        VERSION, o, options, n, argc, argv);
    train_check_options("train_cnn", o, options, n);
    if (c->model == MODEL_RESNET18 && !cli_given(options, n, "norm")) c->norm = NORM_BATCH;
    if (c->model != MODEL_RESNET18 && cli_given(options, n, "shortcut") == CLI_TYPED)
        cli_usage_error("train_cnn", "--shortcut: only --model resnet18 has shortcuts");
    if (c->rescale_pool && o->rescale_kernel)
        cli_usage_error("train_cnn", "--rescale-pool max needs --rescale-kernel paths");
}

// Height x width of the smallest map that BatchNorm normalises; 0 where none is.
static int smallest_normed_map(const model *m) {
    int smallest = 0;
    for (int k = 0; k < m->n_layers; k++) {
        const layer *l = &m->layers[k];
        if (l->gamma == NONE) continue;
        const int size = l->h * l->w;
        if (!smallest || size < smallest) smallest = size;
    }
    return smallest;
}

// Device memory of the model, in MiB.
static double model_mebibytes(const model *m) {
    const size_t families = 2 + (m->net.moment1 != NULL) + (m->net.moment2 != NULL);
    return (double)(families * m->net.n_params + m->net.n_stats + m->n_acts) * sizeof(float) /
           (1 << 20);
}

// Loads the data, builds and initialises the model, trains, saves. Returns the exit status.
static int run(const config *c) {
    static trainer t;
    static const char *const name[] = {"small", "allconv", "ResNet-18"};
    char err[2 * LOG_PATH], device[256];
    dataset train, test;
    memset(&t, 0, sizeof t);
    t.c = c;
    t.ordered = -1;
    train_run_init(&t.run, "train_cnn", VERSION, &c->train);
    if (dataset_load(c->train.data, c->train.data_dir, &train, &test, err, sizeof err))
        return train_fail(&t.run, err);
    if (!train.pixels)
        cli_usage_error("train_cnn", "--data: expected images, %s has %d-dimensional points",
                        train.name, train.features);
    if (c->train.limit) dataset_limit(&train, c->train.limit);
    if (c->train.limit_test) dataset_limit(&test, c->train.limit_test);
    train_set_length(&t.run, train.n);
    const int max_rows = t.run.batch > EVAL_ROWS ? t.run.batch : EVAL_ROWS;
    const int failed = model_create(&t.m, c, train.channels, train.height, train.width,
                                    train.classes, max_rows, err, sizeof err);
    if (failed < 0) cli_usage_error("train_cnn", "%s", err);
    if (failed) return train_fail(&t.run, err);
    const int normed = smallest_normed_map(&t.m);
    if (normed) train_check_batch_norm(&t.run, normed);
    if (normed == 1 && c->train.rescale_kernel && kernel_samples(c, train.n) == 1)
        cli_usage_error("train_cnn", "--rescale-samples: BatchNorm expects 2 samples or more");
    t.train = device_data_create(&train, 1);
    t.test = device_data_create(&test, 1);
    device_describe(device, sizeof device);
    log_progress_line(&t.run.progress, "%s, %s", device, gemm_backend());
    log_progress_line(
        &t.run.progress,
        "%s: %d training and %d test images of %dx%dx%d; %s, %lld parameters, %.0f MiB", train.name,
        train.n, test.n, train.channels, train.height, train.width, name[c->model],
        (long long)train_parameter_count(&t.m.net), model_mebibytes(&t.m));
    t.run.data = data_fingerprint(&train, &test);
    dataset_free(&train);
    dataset_free(&test);
    t.run.net = &t.m.net;
    t.run.step_loss = t.m.step_loss;
    t.run.backend = gemm_backend();
    t.run.trainer = &t;
    t.m.samples = &t.train;
    t.run.hooks.evaluate = evaluate;
    t.run.hooks.rescale = rescale_now;
    t.run.hooks.outputs = outputs;
    t.run.hooks.norm = norm_of;
    if (!c->train.resume) model_init(&t.m, c);
    const int status = train_loop(&t);
    model_free(&t.m);
    device_data_free(&t.train);
    device_data_free(&t.test);
    return status;
}

#ifdef TESTING  // tests and benchmarks include this file and bring their own main
#define main train_cnn_main
int train_cnn_main(int argc, char **argv);
#endif
int main(int argc, char **argv) {
    config c = default_config();
    parse_command_line(&c, argc, argv);
    device_require("train_cnn");
    log_signal_install();
    return run(&c);
}
#undef main
