// ref_cnn.h -- reference convolutional networks in double precision: primitives, three families, forward, backward.
//
// For tests only: written from the definitions, sharing no code with the trainers. C11 and C++17, header-only.
// ref_mlp.h has the optimizers and the linear layer, ref_cnn_rescale.h rescaling, ref_cnn_parity.h PyTorch's runs.
//
// PRIMITIVES (all tensors NCHW, row-major; weights [out][in][kh][kw] as PyTorch's)
//   ref_window(...)                       shapes of a convolution or a pooling: any kernel, stride, padding, any image
//   ref_conv_forward, ref_conv_backward   a convolution's output is the product of its weights and a receptive field
//   ref_norm_forward, ref_norm_backward   BatchNorm2d: eps 1e-5. REF_TRAIN: batch mean and biased variance; the running
//                                         mean and the UNBIASED variance move with momentum 0.1. REF_EVAL: running
//                                         statistics
//   ref_relu_forward, ref_relu_backward   derivative 0 at 0
//   ref_max_pool_forward, _backward       padding never wins; ties go to the first entry of the window, row-major
//   ref_avg_pool_forward, _backward       over the whole map
//   ref_smooth_cross_entropy              softmax cross-entropy with label smoothing, mean over the batch
//
// NETWORKS
//   A RefCnn is a list of layers in topological order, each with an input layer (-1: the image) and optionally a
//   residual layer whose output is added to its own. ref_cnn_create builds the families; `width` multiplies the channel
//   counts, max(1, round(width * c)):
//   REF_ALLCONV    conv1 conv2 conv3 of 128 channels, max-pool, conv4 conv5 conv6 of 256, max-pool, conv7 of 320, conv8
//                  of 320 (1x1), conv9 to the classes (1x1), average pool = logits. 3x3 convolutions with padding 1,
//                  ReLU after conv1 to conv8, max-pools 3/2/1. With norm, bn1 follows conv3 and bn2 conv6, before the
//                  ReLU.
//   REF_RESNET18   torchvision's for small images: conv1 3x3/1/1 of 64 channels, bn1, ReLU, no stem pool; layer1 ..
//                  layer4 of two BasicBlocks each with 64, 128, 256, 512 channels, stride 2 at the first block of
//                  layer2 .. layer4; average pool, fc. Shortcuts are the identity where shapes allow, else
//                  downsample.0 (1x1) and downsample.1 (BatchNorm); with `projection` every block has them.
//                  Convolutions have a bias only without norm.
//   REF_SMALL      conv1 3x3/1/1 of 32, ReLU, max-pool 2/2/0, conv2 of 64, ReLU, max-pool 2/2/0, conv3 of 64, ReLU,
//                  flatten (C, H, W), fc. With norm, bn1, bn2, bn3 between a convolution and its ReLU.
//   Other networks: ref_cnn_empty, then ref_cnn_conv, ref_cnn_norm, ref_cnn_relu, ref_cnn_max_pool, ref_cnn_avg_pool,
//   ref_cnn_linear in topological order; the last layer's output is the logits.
//
// HOW TO USE
//   RefCnnConfig c = {REF_ALLCONV, 3, 32, 32, 10, 0.125, 1, 1, 1, 0}; // 3x32x32, 10 classes, an eighth, norm, biases
//   RefCnn m = ref_cnn_create(&c);
//   fill m.tensors[t].data (by name, see below), e.g. from a trainer;
//   double loss = ref_cnn_forward(&m, REF_TRAIN, x, labels, n);   // x[n][C][H][W]; m.label_smoothing is 0 unless set
//   ref_cnn_backward(&m);                                         // m.tensors[t].grad and m.d_input are overwritten
//   RefOptimizer opt = ref_optimizer(REF_MOMENTUM, 0.1, 0.9, 5e-4);
//   ref_tensors_step(m.tensors, m.n_tensors, &opt);
//   ref_cnn_free(&m);
//   m.logits[n][classes] and m.correct belong to the last forward pass. ref_cnn_tensor(&m, "layer1.0.conv1.weight")
//   finds a parameter, ref_cnn_buffer(&m, "bn1.running_var") a running statistic, both NULL when there is none. Tensors
//   are in the order of PyTorch's model.parameters() (a BatchNorm behind its convolution, downsample last in its
//   block); m.tensors[t].rows is the number of output channels, .cols all the rest, m.shapes[t] PyTorch's shape.
#pragma once
#include "ref_mlp.h"

enum { REF_ALLCONV, REF_RESNET18, REF_SMALL };
enum { REF_LAYER_CONV, REF_LAYER_NORM, REF_LAYER_RELU, REF_LAYER_MAX_POOL, REF_LAYER_AVG_POOL, REF_LAYER_LINEAR };
enum { REF_CNN_MAX_LAYERS = 96, REF_CNN_MAX_TENSORS = 128 };

// How the network computes: as itself, or with path sums in place of values (ref_cnn_rescale.h; weights are squared).
enum { REF_VALUES, REF_PATHS_SUM, REF_PATHS_MAX };

// A window that slides over a map: of a convolution, or of a pooling (then in_c = out_c).
typedef struct {
    int in_c, in_h, in_w, out_c, out_h, out_w;
    int kh, kw, stride, pad; // stride and padding are those of both directions
} RefWindow;

typedef struct {
    int kind;            // REF_LAYER_...
    int input, residual; // layer that is read, -1: the image; layer whose output is added, -1: none
    RefWindow win;       // shapes; a linear layer has in_c * in_h * in_w inputs and out_c outputs
    int weight, bias;    // tensors, -1: none; of a BatchNorm: gamma and beta
    char name[32];       // module, e.g. layer1.0.bn1
    double *running_mean, *running_var; // [out_c], BatchNorm only
    long batches_tracked;
    // of the last pass
    double *y;           // [n][out_c][out_h][out_w]
    double *xhat, *rstd; // BatchNorm: normalised value before gamma and beta, like y; [out_c] 1 / sqrt(variance + eps)
    int *arg;            // max-pool: [like y] position in the input map that won
} RefCnnLayer;

typedef struct {
    int n_layers, n_tensors;
    RefCnnLayer layers[REF_CNN_MAX_LAYERS];
    RefTensor tensors[REF_CNN_MAX_TENSORS];
    struct { int rank, dim[4]; } shapes[REF_CNN_MAX_TENSORS];
    int in_c, in_h, in_w;
    double label_smoothing;
    int track_running;   // 1: training passes move the running statistics
    int arithmetic;      // REF_VALUES, except during ref_cnn_diag_g
    int path_power;      // then: the power of the factors of a path, 1 or 2
    // of the last pass
    int n, mode, correct;
    double *x;           // [n][in_c][in_h][in_w]
    double *logits;      // [n][classes], the last layer's y
    double *d_logits;    // [n][classes] gradient of the loss
    double *d_input;     // [n][in_c][in_h][in_w], written by the backward pass
} RefCnn;

typedef struct {
    int model;                          // REF_ALLCONV, REF_RESNET18, REF_SMALL
    int in_c, in_h, in_w, classes;
    double width;                       // multiplies channel counts
    int norm;                           // BatchNorm
    int bias;                           // biases of convolutions (ResNet: only without norm)
    int fc_bias;                        // bias of fc (ResNet, small)
    int projection;                     // ResNet: a projection in every shortcut
} RefCnnConfig;

static inline void ref_cnn_stop(const char *what) {
    fprintf(stderr, "ref_cnn.h: %s\n", what);
    exit(1);
}

// ---------------------------------------------------------------------------------------------------------------
// Convolution

static inline RefWindow ref_window(int in_c, int in_h, int in_w, int out_c, int kh, int kw, int stride, int pad) {
    RefWindow s;
    s.in_c = in_c;
    s.in_h = in_h;
    s.in_w = in_w;
    s.out_c = out_c;
    s.kh = kh;
    s.kw = kw;
    s.stride = stride;
    s.pad = pad;
    s.out_h = (in_h + 2 * pad - kh) / stride + 1;
    s.out_w = (in_w + 2 * pad - kw) / stride + 1;
    if (in_h + 2 * pad < kh || in_w + 2 * pad < kw) ref_cnn_stop("a window is larger than its padded map");
    return s;
}

static inline size_t ref_window_in(const RefWindow *s) { return (size_t)s->in_c * (size_t)s->in_h * (size_t)s->in_w; }
static inline size_t ref_window_out(const RefWindow *s) {
    return (size_t)s->out_c * (size_t)s->out_h * (size_t)s->out_w;
}

// The receptive field of output position (oy, ox) in one image x[in_c][in_h][in_w]: patch[in_c][kh][kw], zero outside.
static inline void ref_patch_read(double *patch, const double *x, const RefWindow *s, int oy, int ox) {
    for (int c = 0; c < s->in_c; c++)
        for (int ky = 0; ky < s->kh; ky++)
            for (int kx = 0; kx < s->kw; kx++) {
                const int iy = oy * s->stride + ky - s->pad, ix = ox * s->stride + kx - s->pad;
                const int inside = iy >= 0 && iy < s->in_h && ix >= 0 && ix < s->in_w;
                *patch++ = inside ? x[((size_t)c * (size_t)s->in_h + (size_t)iy) * (size_t)s->in_w + (size_t)ix] : 0;
            }
}

// The transpose: adds patch to the image positions that ref_patch_read would have read.
static inline void ref_patch_add(double *x, const double *patch, const RefWindow *s, int oy, int ox) {
    for (int c = 0; c < s->in_c; c++)
        for (int ky = 0; ky < s->kh; ky++)
            for (int kx = 0; kx < s->kw; kx++, patch++) {
                const int iy = oy * s->stride + ky - s->pad, ix = ox * s->stride + kx - s->pad;
                const int inside = iy >= 0 && iy < s->in_h && ix >= 0 && ix < s->in_w;
                if (inside) x[((size_t)c * (size_t)s->in_h + (size_t)iy) * (size_t)s->in_w + (size_t)ix] += *patch;
            }
}

// a . b in 16 partial sums, which compilers turn into vectors.
static inline double ref_dot(const double *a, const double *b, size_t n) {
    double part[16] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t k = 0; k < 16; k++) part[k] += a[i + k] * b[i + k];
    for (; i < n; i++) sum += a[i] * b[i];
    for (size_t k = 0; k < 16; k++) sum += part[k];
    return sum;
}

// y[n][out_c][out_h][out_w] = convolution of x[n][in_c][in_h][in_w] with w[out_c][in_c][kh][kw], plus b (NULL: none).
static inline void ref_conv_forward(double *y, const double *x, const double *w, const double *b, int n,
                                    const RefWindow *s) {
    const size_t K = (size_t)(s->in_c * s->kh * s->kw), map = (size_t)(s->out_h * s->out_w);
    double *patch = ref_mlp_doubles(K);
    for (int i = 0; i < n; i++, x += ref_window_in(s), y += ref_window_out(s))
        for (int oy = 0; oy < s->out_h; oy++)
            for (int ox = 0; ox < s->out_w; ox++) {
                ref_patch_read(patch, x, s, oy, ox);
                for (size_t o = 0; o < (size_t)s->out_c; o++)
                    y[o * map + (size_t)(oy * s->out_w + ox)] = (b ? b[o] : 0) + ref_dot(&w[o * K], patch, K);
            }
    free(patch);
}

// dx, dw and db (each may be NULL) from dy; all overwritten.
static inline void ref_conv_backward(double *dx, double *dw, double *db, const double *dy, const double *x,
                                     const double *w, int n, const RefWindow *s) {
    const size_t K = (size_t)(s->in_c * s->kh * s->kw), map = (size_t)(s->out_h * s->out_w), n_out = (size_t)s->out_c;
    double *patch = ref_mlp_doubles(K), *dpatch = ref_mlp_doubles(K);
    if (dx) memset(dx, 0, (size_t)n * ref_window_in(s) * sizeof *dx);
    if (dw) memset(dw, 0, n_out * K * sizeof *dw);
    if (db) memset(db, 0, n_out * sizeof *db);
    for (size_t i = 0; i < (size_t)n; i++)
        for (int oy = 0; oy < s->out_h; oy++)
            for (int ox = 0; ox < s->out_w; ox++) {
                const double *d = &dy[i * ref_window_out(s) + (size_t)(oy * s->out_w + ox)]; // d[o * map]
                for (size_t o = 0; db && o < n_out; o++) db[o] += d[o * map];
                if (dw) {
                    ref_patch_read(patch, &x[i * ref_window_in(s)], s, oy, ox);
                    for (size_t o = 0; o < n_out; o++)
                        for (size_t k = 0; k < K; k++) dw[o * K + k] += d[o * map] * patch[k];
                }
                if (dx) {
                    memset(dpatch, 0, K * sizeof *dpatch);
                    for (size_t o = 0; o < n_out; o++)
                        for (size_t k = 0; k < K; k++) dpatch[k] += d[o * map] * w[o * K + k];
                    ref_patch_add(&dx[i * ref_window_in(s)], dpatch, s, oy, ox);
                }
            }
    free(patch);
    free(dpatch);
}

// ---------------------------------------------------------------------------------------------------------------
// BatchNorm2d, ReLU

// y[n][c][map] = gamma * xhat + beta, xhat = (x - mean) * rstd, rstd = 1 / sqrt(var + eps); keeps xhat and rstd[c].
// REF_TRAIN takes mean and variance over n * map values (at least 2) and, with `track`, moves the running ones.
static inline void ref_norm_forward(double *y, double *xhat, double *rstd, const double *x, const double *gamma,
                                    const double *beta, double *running_mean, double *running_var, double eps, int mode,
                                    int track, int n, int c, int map) {
    const double count = (double)n * map;
    for (int o = 0; o < c; o++) {
        double mean = running_mean[o], var = running_var[o];
        if (mode == REF_TRAIN) {
            mean = var = 0;
            for (int i = 0; i < n; i++)
                for (int j = 0; j < map; j++) mean += x[(i * c + o) * map + j];
            mean /= count;
            for (int i = 0; i < n; i++)
                for (int j = 0; j < map; j++) {
                    const double e = x[(i * c + o) * map + j] - mean;
                    var += e * e;
                }
            var /= count;
            if (track) {
                running_mean[o] += REF_BN_MOMENTUM * (mean - running_mean[o]);
                running_var[o] += REF_BN_MOMENTUM * (var * count / (count - 1) - running_var[o]);
            }
        }
        rstd[o] = 1 / sqrt(var + eps);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < map; j++) {
                const int k = (i * c + o) * map + j;
                xhat[k] = (x[k] - mean) * rstd[o];
                y[k] = gamma[o] * xhat[k] + beta[o];
            }
    }
}

// dx, dgamma, dbeta from dy; in training mode mean and variance depend on x as well.
static inline void ref_norm_backward(double *dx, double *dgamma, double *dbeta, const double *dy, const double *xhat,
                                     const double *rstd, const double *gamma, int mode, int n, int c, int map) {
    const double count = (double)n * map;
    for (int o = 0; o < c; o++) {
        double sum = 0, dot = 0;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < map; j++) {
                const int k = (i * c + o) * map + j;
                sum += dy[k];
                dot += dy[k] * xhat[k];
            }
        dbeta[o] = sum;
        dgamma[o] = dot;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < map; j++) {
                const int k = (i * c + o) * map + j;
                const double centred = mode == REF_TRAIN ? dy[k] - (sum + xhat[k] * dot) / count : dy[k];
                dx[k] = gamma[o] * rstd[o] * centred;
            }
    }
}

static inline void ref_relu_forward(double *y, const double *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = x[i] > 0 ? x[i] : 0;
}

static inline void ref_relu_backward(double *dx, const double *dy, const double *x, size_t n) {
    for (size_t i = 0; i < n; i++) dx[i] = x[i] > 0 ? dy[i] : 0;
}

// ---------------------------------------------------------------------------------------------------------------
// Pooling

// Largest entry of every window; arg (like y) its position in the input map, row * in_w + column.
static inline void ref_max_pool_forward(double *y, int *arg, const double *x, int n, const RefWindow *s) {
    for (int plane = 0; plane < n * s->in_c; plane++, x += s->in_h * s->in_w)
        for (int oy = 0; oy < s->out_h; oy++)
            for (int ox = 0; ox < s->out_w; ox++, y++, arg++) {
                *arg = -1;
                for (int ky = 0; ky < s->kh; ky++)
                    for (int kx = 0; kx < s->kw; kx++) {
                        const int iy = oy * s->stride + ky - s->pad, ix = ox * s->stride + kx - s->pad;
                        if (iy < 0 || iy >= s->in_h || ix < 0 || ix >= s->in_w) continue;
                        if (*arg < 0 || x[iy * s->in_w + ix] > x[*arg]) *arg = iy * s->in_w + ix;
                    }
                if (*arg < 0) ref_cnn_stop("a pooling window lies in the padding"); // PyTorch: padding <= kernel / 2
                *y = x[*arg];
            }
}

static inline void ref_max_pool_backward(double *dx, const double *dy, const int *arg, int n, const RefWindow *s) {
    memset(dx, 0, (size_t)n * ref_window_in(s) * sizeof *dx);
    for (int plane = 0; plane < n * s->in_c; plane++, dx += s->in_h * s->in_w)
        for (int k = 0; k < s->out_h * s->out_w; k++) dx[*arg++] += *dy++;
}

// y = sum over every window inside the map: a max-pool of path sums, whose entries all lie on paths.
static inline void ref_sum_pool_forward(double *y, const double *x, int n, const RefWindow *s) {
    RefWindow one = ref_window(1, s->in_h, s->in_w, 1, s->kh, s->kw, s->stride, s->pad);
    double *w = ref_mlp_doubles((size_t)(s->kh * s->kw));
    for (int k = 0; k < s->kh * s->kw; k++) w[k] = 1;
    ref_conv_forward(y, x, w, NULL, n * s->in_c, &one);
    free(w);
}

static inline void ref_sum_pool_backward(double *dx, const double *dy, int n, const RefWindow *s) {
    RefWindow one = ref_window(1, s->in_h, s->in_w, 1, s->kh, s->kw, s->stride, s->pad);
    double *w = ref_mlp_doubles((size_t)(s->kh * s->kw));
    for (int k = 0; k < s->kh * s->kw; k++) w[k] = 1;
    ref_conv_backward(dx, NULL, NULL, dy, NULL, w, n * s->in_c, &one);
    free(w);
}

// y[planes] = factor * sum over the map; factor 1 / map averages.
static inline void ref_avg_pool_forward(double *y, const double *x, int planes, int map, double factor) {
    for (int p = 0; p < planes; p++) {
        y[p] = 0;
        for (int j = 0; j < map; j++) y[p] += factor * x[p * map + j];
    }
}

static inline void ref_avg_pool_backward(double *dx, const double *dy, int planes, int map, double factor) {
    for (int p = 0; p < planes; p++)
        for (int j = 0; j < map; j++) dx[p * map + j] = factor * dy[p];
}

// ---------------------------------------------------------------------------------------------------------------
// Loss

// Mean over the batch of -sum_k q_k log softmax(logits)_k, with q = (1 - smoothing) [k = label] + smoothing / c.
// d[n][c] is the gradient with respect to the logits. *correct counts the samples whose largest logit (first of
// equals) is the label's.
static inline double ref_smooth_cross_entropy(double *d, const double *logits, const int *labels, double smoothing,
                                              int n, int c, int *correct) {
    double loss = 0;
    *correct = 0;
    for (int i = 0; i < n; i++, logits += c, d += c) {
        int best = 0;
        double sum = 0;
        for (int k = 1; k < c; k++)
            if (logits[k] > logits[best]) best = k;
        for (int k = 0; k < c; k++) sum += exp(logits[k] - logits[best]);
        for (int k = 0; k < c; k++) {
            const double q = (k == labels[i] ? 1 - smoothing : 0) + smoothing / c;
            const double log_p = logits[k] - logits[best] - log(sum);
            loss -= q * log_p / n;
            d[k] = (exp(log_p) - q) / n;
        }
        *correct += best == labels[i];
    }
    return loss;
}

// ---------------------------------------------------------------------------------------------------------------
// Building networks

static inline RefCnn ref_cnn_empty(int in_c, int in_h, int in_w) {
    RefCnn m;
    memset(&m, 0, sizeof m);
    m.in_c = in_c;
    m.in_h = in_h;
    m.in_w = in_w;
    m.track_running = 1;
    return m;
}

// Appends the tensor module.what of shape dim[rank] and returns its number.
static inline int ref_cnn_add_tensor(RefCnn *m, const char *module, const char *what, int rank, int d0, int d1, int d2,
                                     int d3) {
    if (m->n_tensors == REF_CNN_MAX_TENSORS) ref_cnn_stop("too many tensors");
    RefTensor *t = &m->tensors[m->n_tensors];
    const int used = snprintf(t->name, sizeof t->name, "%s.%s", module, what), dim[4] = {d0, d1, d2, d3};
    if (used < 0 || (size_t)used >= sizeof t->name) ref_cnn_stop("a tensor's name is too long");
    m->shapes[m->n_tensors].rank = rank;
    t->rows = d0;
    t->cols = 1;
    for (int k = 0; k < rank; k++) m->shapes[m->n_tensors].dim[k] = dim[k];
    for (int k = 1; k < rank; k++) t->cols *= dim[k];
    t->n = (size_t)t->rows * (size_t)t->cols;
    t->data = ref_mlp_doubles(t->n);
    t->grad = ref_mlp_doubles(t->n);
    t->state1 = ref_mlp_doubles(t->n);
    t->state2 = ref_mlp_doubles(t->n);
    return m->n_tensors++;
}

// Appends a layer with the given window; its tensors are still missing.
static inline int ref_cnn_add_layer(RefCnn *m, int kind, const char *name, int input, RefWindow win) {
    if (m->n_layers == REF_CNN_MAX_LAYERS) ref_cnn_stop("too many layers");
    if (input >= m->n_layers) ref_cnn_stop("layers are not in topological order");
    RefCnnLayer *l = &m->layers[m->n_layers];
    memset(l, 0, sizeof *l);
    l->kind = kind;
    l->input = input;
    l->residual = l->weight = l->bias = -1;
    l->win = win;
    const int used = snprintf(l->name, sizeof l->name, "%s", name);
    if (used < 0 || (size_t)used >= sizeof l->name) ref_cnn_stop("a layer's name is too long");
    return m->n_layers++;
}

// Weight of an entry of an average pool over a map.
static inline double ref_cnn_average(const RefCnn *m, int map) {
    const int squared = m->arithmetic != REF_VALUES && m->path_power == 2;
    return squared ? 1.0 / map / map : 1.0 / map;
}

// Shape of what layer `input` hands on (-1: the image).
static inline void ref_cnn_shape(const RefCnn *m, int input, int *c, int *h, int *w) {
    const RefWindow *s = input >= 0 ? &m->layers[input].win : NULL;
    *c = s ? s->out_c : m->in_c;
    *h = s ? s->out_h : m->in_h;
    *w = s ? s->out_w : m->in_w;
}

// Layers. Each function appends one (and its tensors, in the order of the calls) and returns its number.
static inline int ref_cnn_conv(RefCnn *m, const char *name, int input, int out_c, int kh, int kw, int stride, int pad,
                               int bias) {
    int c, h, w;
    ref_cnn_shape(m, input, &c, &h, &w);
    const int l = ref_cnn_add_layer(m, REF_LAYER_CONV, name, input, ref_window(c, h, w, out_c, kh, kw, stride, pad));
    m->layers[l].weight = ref_cnn_add_tensor(m, name, "weight", 4, out_c, c, kh, kw);
    if (bias) m->layers[l].bias = ref_cnn_add_tensor(m, name, "bias", 1, out_c, 0, 0, 0);
    return l;
}

static inline int ref_cnn_norm(RefCnn *m, const char *name, int input) {
    int c, h, w;
    ref_cnn_shape(m, input, &c, &h, &w);
    const int l = ref_cnn_add_layer(m, REF_LAYER_NORM, name, input, ref_window(c, h, w, c, 1, 1, 1, 0));
    RefCnnLayer *layer = &m->layers[l];
    layer->weight = ref_cnn_add_tensor(m, name, "weight", 1, c, 0, 0, 0);
    layer->bias = ref_cnn_add_tensor(m, name, "bias", 1, c, 0, 0, 0);
    layer->running_mean = ref_mlp_doubles((size_t)c);
    layer->running_var = ref_mlp_doubles((size_t)c);
    for (int o = 0; o < c; o++) m->tensors[layer->weight].data[o] = layer->running_var[o] = 1;
    return l;
}

static inline int ref_cnn_relu(RefCnn *m, int input) {
    int c, h, w;
    ref_cnn_shape(m, input, &c, &h, &w);
    return ref_cnn_add_layer(m, REF_LAYER_RELU, "relu", input, ref_window(c, h, w, c, 1, 1, 1, 0));
}

static inline int ref_cnn_max_pool(RefCnn *m, int input, int kernel, int stride, int pad) {
    int c, h, w;
    ref_cnn_shape(m, input, &c, &h, &w);
    const RefWindow window = ref_window(c, h, w, c, kernel, kernel, stride, pad);
    return ref_cnn_add_layer(m, REF_LAYER_MAX_POOL, "maxpool", input, window);
}

static inline int ref_cnn_avg_pool(RefCnn *m, int input) {
    int c, h, w;
    ref_cnn_shape(m, input, &c, &h, &w);
    return ref_cnn_add_layer(m, REF_LAYER_AVG_POOL, "avgpool", input, ref_window(c, h, w, c, h, w, 1, 0));
}

static inline int ref_cnn_linear(RefCnn *m, const char *name, int input, int n_out, int bias) {
    int c, h, w;
    ref_cnn_shape(m, input, &c, &h, &w);
    const int l = ref_cnn_add_layer(m, REF_LAYER_LINEAR, name, input, ref_window(c, h, w, n_out, h, w, 1, 0));
    m->layers[l].weight = ref_cnn_add_tensor(m, name, "weight", 2, n_out, c * h * w, 0, 0);
    if (bias) m->layers[l].bias = ref_cnn_add_tensor(m, name, "bias", 1, n_out, 0, 0, 0);
    return l;
}

// Adds the output of layer `residual` to that of layer l.
static inline void ref_cnn_add_residual(RefCnn *m, int l, int residual) {
    int c, h, w;
    ref_cnn_shape(m, residual, &c, &h, &w);
    const RefWindow *s = &m->layers[l].win;
    if (residual >= l || residual < 0 || c != s->out_c || h != s->out_h || w != s->out_w)
        ref_cnn_stop("a shortcut does not fit");
    m->layers[l].residual = residual;
}

// ---------------------------------------------------------------------------------------------------------------
// The model families

static inline int ref_cnn_channels(double width, int c) {
    const int scaled = (int)floor(width * c + 0.5);
    return scaled > 1 ? scaled : 1;
}

static inline void ref_cnn_build_allconv(RefCnn *m, const RefCnnConfig *c) {
    static const int channels[8] = {128, 128, 128, 256, 256, 256, 320, 320};
    int l = -1, norms = 0;
    for (int k = 1; k <= 9; k++) {
        char name[32];
        const int out = k < 9 ? ref_cnn_channels(c->width, channels[k - 1]) : c->classes;
        const int kernel = k < 8 ? 3 : 1;
        snprintf(name, sizeof name, "conv%d", k);
        l = ref_cnn_conv(m, name, l, out, kernel, kernel, 1, kernel / 2, c->bias);
        if (k == 9) break;
        snprintf(name, sizeof name, "bn%d", norms + 1);
        if (c->norm && (k == 3 || k == 6)) {
            l = ref_cnn_norm(m, name, l);
            norms++;
        }
        l = ref_cnn_relu(m, l);
        if (k == 3 || k == 6) l = ref_cnn_max_pool(m, l, 3, 2, 1);
    }
    ref_cnn_avg_pool(m, l);
}

// One BasicBlock from layer `input`; returns the layer of its last ReLU.
static inline int ref_cnn_build_block(RefCnn *m, const RefCnnConfig *c, const char *block, int input, int out,
                                      int stride) {
    char name[32];
    int in, h, w, shortcut = input;
    const int bias = c->bias && !c->norm;
    ref_cnn_shape(m, input, &in, &h, &w);
    snprintf(name, sizeof name, "%.12s.conv1", block);
    int l = ref_cnn_conv(m, name, input, out, 3, 3, stride, 1, bias);
    snprintf(name, sizeof name, "%.12s.bn1", block);
    if (c->norm) l = ref_cnn_norm(m, name, l);
    l = ref_cnn_relu(m, l);
    snprintf(name, sizeof name, "%.12s.conv2", block);
    l = ref_cnn_conv(m, name, l, out, 3, 3, 1, 1, bias);
    snprintf(name, sizeof name, "%.12s.bn2", block);
    if (c->norm) l = ref_cnn_norm(m, name, l);
    if (stride != 1 || in != out || c->projection) {
        const int main_path = l;
        snprintf(name, sizeof name, "%.12s.downsample.0", block);
        l = ref_cnn_conv(m, name, input, out, 1, 1, stride, 0, bias);
        snprintf(name, sizeof name, "%.12s.downsample.1", block);
        if (c->norm) l = ref_cnn_norm(m, name, l);
        shortcut = main_path; // the sum is the same in either order; the later layer adds the earlier one
    }
    ref_cnn_add_residual(m, l, shortcut);
    return ref_cnn_relu(m, l);
}

static inline void ref_cnn_build_resnet18(RefCnn *m, const RefCnnConfig *c) {
    int l = ref_cnn_conv(m, "conv1", -1, ref_cnn_channels(c->width, 64), 3, 3, 1, 1, c->bias && !c->norm);
    if (c->norm) l = ref_cnn_norm(m, "bn1", l);
    l = ref_cnn_relu(m, l);
    for (int stage = 1; stage <= 4; stage++)
        for (int block = 0; block < 2; block++) {
            char name[32];
            snprintf(name, sizeof name, "layer%d.%d", stage, block);
            const int stride = stage > 1 && block == 0 ? 2 : 1;
            l = ref_cnn_build_block(m, c, name, l, ref_cnn_channels(c->width, 32 << stage), stride);
        }
    l = ref_cnn_avg_pool(m, l);
    ref_cnn_linear(m, "fc", l, c->classes, c->fc_bias);
}

static inline void ref_cnn_build_small(RefCnn *m, const RefCnnConfig *c) {
    static const int channels[3] = {32, 64, 64};
    int l = -1;
    for (int k = 1; k <= 3; k++) {
        char name[32];
        snprintf(name, sizeof name, "conv%d", k);
        l = ref_cnn_conv(m, name, l, ref_cnn_channels(c->width, channels[k - 1]), 3, 3, 1, 1, c->bias);
        snprintf(name, sizeof name, "bn%d", k);
        if (c->norm) l = ref_cnn_norm(m, name, l);
        l = ref_cnn_relu(m, l);
        if (k < 3) l = ref_cnn_max_pool(m, l, 2, 2, 0);
    }
    ref_cnn_linear(m, "fc", l, c->classes, c->fc_bias);
}

// A network with zero weights and BatchNorm at its defaults: gamma 1, beta 0, running mean 0, running variance 1.
static inline RefCnn ref_cnn_create(const RefCnnConfig *c) {
    RefCnn m = ref_cnn_empty(c->in_c, c->in_h, c->in_w);
    if (c->model == REF_ALLCONV) ref_cnn_build_allconv(&m, c);
    else if (c->model == REF_RESNET18) ref_cnn_build_resnet18(&m, c);
    else ref_cnn_build_small(&m, c);
    return m;
}

// Releases what the passes kept.
static inline void ref_cnn_free_pass(RefCnn *m) {
    for (int l = 0; l < m->n_layers; l++) {
        RefCnnLayer *layer = &m->layers[l];
        free(layer->y);
        free(layer->xhat);
        free(layer->rstd);
        free(layer->arg);
        layer->y = layer->xhat = layer->rstd = NULL;
        layer->arg = NULL;
    }
    free(m->x);
    free(m->d_logits);
    free(m->d_input);
    m->x = m->logits = m->d_logits = m->d_input = NULL;
}

static inline void ref_cnn_free(RefCnn *m) {
    ref_cnn_free_pass(m);
    for (int t = 0; t < m->n_tensors; t++) {
        free(m->tensors[t].data);
        free(m->tensors[t].grad);
        free(m->tensors[t].state1);
        free(m->tensors[t].state2);
    }
    for (int l = 0; l < m->n_layers; l++) {
        free(m->layers[l].running_mean);
        free(m->layers[l].running_var);
    }
    memset(m, 0, sizeof *m);
}

// The parameter of that name, NULL when the network has none.
static inline RefTensor *ref_cnn_tensor(RefCnn *m, const char *name) {
    for (int t = 0; t < m->n_tensors; t++)
        if (strcmp(m->tensors[t].name, name) == 0) return &m->tensors[t];
    return NULL;
}

// The running statistic of that name, e.g. bn1.running_mean; [channels of the BatchNorm]; NULL when there is none.
static inline double *ref_cnn_buffer(RefCnn *m, const char *name) {
    for (int l = 0; l < m->n_layers; l++) {
        char full[64];
        if (m->layers[l].kind != REF_LAYER_NORM) continue;
        snprintf(full, sizeof full, "%s.running_mean", m->layers[l].name);
        if (strcmp(full, name) == 0) return m->layers[l].running_mean;
        snprintf(full, sizeof full, "%s.running_var", m->layers[l].name);
        if (strcmp(full, name) == 0) return m->layers[l].running_var;
    }
    return NULL;
}

static inline size_t ref_cnn_param_count(const RefCnn *m) {
    size_t p = 0;
    for (int t = 0; t < m->n_tensors; t++) p += m->tensors[t].n;
    return p;
}

// ---------------------------------------------------------------------------------------------------------------
// Forward and backward

// y of layer l from its input x, for n samples.
static inline void ref_cnn_layer_forward(RefCnn *m, RefCnnLayer *l, const double *x, int n) {
    const RefWindow *s = &l->win;
    const size_t total = (size_t)n * ref_window_out(s);
    const int map = s->in_h * s->in_w, paths = m->arithmetic != REF_VALUES;
    const double *w = l->weight >= 0 ? m->tensors[l->weight].data : NULL;
    const double *b = l->bias >= 0 ? m->tensors[l->bias].data : NULL;
    l->y = ref_mlp_doubles(total);
    switch (l->kind) {
    case REF_LAYER_CONV: ref_conv_forward(l->y, x, w, b, n, s); break;
    case REF_LAYER_LINEAR:
        ref_linear_forward(l->y, x, w, b, (size_t)n, ref_window_in(s), (size_t)s->out_c);
        break;
    case REF_LAYER_NORM:
        l->xhat = ref_mlp_doubles(total);
        l->rstd = ref_mlp_doubles((size_t)s->out_c);
        ref_norm_forward(l->y, l->xhat, l->rstd, x, w, b, l->running_mean, l->running_var, paths ? 0 : REF_BN_EPS,
                         m->mode, m->track_running, n, s->out_c, map);
        if (m->mode == REF_TRAIN && m->track_running) l->batches_tracked++;
        break;
    case REF_LAYER_RELU:
        if (paths) memcpy(l->y, x, total * sizeof *x); // every path counts
        else ref_relu_forward(l->y, x, total);
        break;
    case REF_LAYER_MAX_POOL:
        if (m->arithmetic == REF_PATHS_SUM) {
            ref_sum_pool_forward(l->y, x, n, s);
            break;
        }
        l->arg = (int *)calloc(total ? total : 1, sizeof *l->arg);
        if (!l->arg) ref_cnn_stop("out of memory");
        ref_max_pool_forward(l->y, l->arg, x, n, s);
        break;
    default: ref_avg_pool_forward(l->y, x, n * s->in_c, map, ref_cnn_average(m, map));
    }
}

// dx of layer l from dy, and its parameters' gradients.
static inline void ref_cnn_layer_backward(RefCnn *m, RefCnnLayer *l, double *dx, const double *dy, const double *x) {
    const RefWindow *s = &l->win;
    const int n = m->n, map = s->in_h * s->in_w, paths = m->arithmetic != REF_VALUES;
    const size_t total = (size_t)n * ref_window_out(s);
    const double *w = l->weight >= 0 ? m->tensors[l->weight].data : NULL;
    double *dw = l->weight >= 0 ? m->tensors[l->weight].grad : NULL;
    double *db = l->bias >= 0 ? m->tensors[l->bias].grad : NULL;
    switch (l->kind) {
    case REF_LAYER_CONV: ref_conv_backward(dx, dw, db, dy, x, w, n, s); break;
    case REF_LAYER_LINEAR:
        ref_linear_backward(dx, dw, db, dy, x, w, (size_t)n, ref_window_in(s), (size_t)s->out_c);
        break;
    case REF_LAYER_NORM:
        ref_norm_backward(dx, dw, db, dy, l->xhat, l->rstd, w, m->mode, n, s->out_c, map);
        break;
    case REF_LAYER_RELU:
        if (paths) memcpy(dx, dy, total * sizeof *dx);
        else ref_relu_backward(dx, dy, x, total);
        break;
    case REF_LAYER_MAX_POOL:
        if (m->arithmetic == REF_PATHS_SUM) ref_sum_pool_backward(dx, dy, n, s);
        else ref_max_pool_backward(dx, dy, l->arg, n, s);
        break;
    default: ref_avg_pool_backward(dx, dy, n * s->in_c, map, ref_cnn_average(m, map));
    }
}

// All layers for x[n][in_c][in_h][in_w]; keeps what the backward pass needs. m->logits is the last layer's output.
static inline void ref_cnn_forward_layers(RefCnn *m, int mode, const double *x, int n) {
    const size_t inputs = (size_t)n * (size_t)m->in_c * (size_t)m->in_h * (size_t)m->in_w;
    ref_cnn_free_pass(m);
    m->n = n;
    m->mode = mode;
    m->x = ref_mlp_doubles(inputs);
    memcpy(m->x, x, inputs * sizeof *x);
    for (int l = 0; l < m->n_layers; l++) {
        RefCnnLayer *layer = &m->layers[l];
        ref_cnn_layer_forward(m, layer, layer->input >= 0 ? m->layers[layer->input].y : m->x, n);
        if (layer->residual < 0) continue;
        const double *shortcut = m->layers[layer->residual].y;
        for (size_t i = 0; i < (size_t)n * ref_window_out(&layer->win); i++) layer->y[i] += shortcut[i];
    }
    m->logits = m->layers[m->n_layers - 1].y;
}

// Forward pass; returns the loss against labels[n] (mean over the batch, with m->label_smoothing).
static inline double ref_cnn_forward(RefCnn *m, int mode, const double *x, const int *labels, int n) {
    ref_cnn_forward_layers(m, mode, x, n);
    const int c = (int)ref_window_out(&m->layers[m->n_layers - 1].win);
    m->d_logits = ref_mlp_doubles((size_t)(n * c));
    return ref_smooth_cross_entropy(m->d_logits, m->logits, labels, m->label_smoothing, n, c, &m->correct);
}

// Gradients of sum(d_logits * logits) of the last forward pass into tensors[].grad and d_input (overwritten).
static inline void ref_cnn_backward_from(RefCnn *m, const double *d_logits) {
    double *d[REF_CNN_MAX_LAYERS]; // gradient with respect to each layer's output, summed over those that read it
    const size_t n = (size_t)m->n, inputs = n * (size_t)(m->in_c * m->in_h * m->in_w);
    for (int l = 0; l < m->n_layers; l++) d[l] = ref_mlp_doubles(n * ref_window_out(&m->layers[l].win));
    free(m->d_input);
    m->d_input = ref_mlp_doubles(inputs);
    memcpy(d[m->n_layers - 1], d_logits, n * ref_window_out(&m->layers[m->n_layers - 1].win) * sizeof *d_logits);
    for (int l = m->n_layers - 1; l >= 0; l--) {
        RefCnnLayer *layer = &m->layers[l];
        const size_t n_in = n * ref_window_in(&layer->win), n_out = n * ref_window_out(&layer->win);
        double *dx = ref_mlp_doubles(n_in), *below = layer->input >= 0 ? d[layer->input] : m->d_input;
        for (size_t i = 0; layer->residual >= 0 && i < n_out; i++) d[layer->residual][i] += d[l][i];
        ref_cnn_layer_backward(m, layer, dx, d[l], layer->input >= 0 ? m->layers[layer->input].y : m->x);
        for (size_t i = 0; i < n_in; i++) below[i] += dx[i];
        free(dx);
        free(d[l]);
    }
}

// Gradients of the loss of the last forward pass.
static inline void ref_cnn_backward(RefCnn *m) { ref_cnn_backward_from(m, m->d_logits); }
