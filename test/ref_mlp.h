// ref_mlp.h -- reference multilayer perceptron in double precision: forward, backward, losses, optimizers.
//
// For tests only: plain loops in the order of the formulas, sharing no code with the trainers. C11 and C++17.
//
// THE NETWORK
//   fc1 -> [bn1] -> ReLU -> fc2 -> [bn2] -> ReLU -> ... -> fcL, no activation at the end. Weights are [out][in] as in
//   PyTorch. Meaning of everything is PyTorch's:
//   - BatchNorm1d: eps 1e-5. REF_TRAIN normalises with the batch mean and the biased batch variance (batch of at
//     least 2) and, if m.track_running, moves the running mean and the UNBIASED variance n / (n - 1) with momentum 0.1.
//     REF_EVAL normalises with the running statistics.
//   - ReLU has derivative 0 at 0.
//   - REF_CROSS_ENTROPY: mean over the batch of -log softmax(logits)[label]. REF_MSE: mean over ALL elements of
//     (output - target)^2.
//   - SGD, SGD with momentum (no dampening, no Nesterov) with weight decay added to the gradient; AdamW with decoupled
//     decay, betas 0.9 / 0.999, eps 1e-8. Decay applies to every parameter, as with optim.X(model.parameters()).
//
// HOW TO USE
//   int dims[] = {36, 32, 24, 10};
//   RefMlp m = ref_mlp_create(dims, 3, 1, 1, 1);           // 3 linear layers, biases, last bias, BatchNorm
//   fill m.tensors[t].data (by name, see below), e.g. from a trainer;
//   double loss = ref_mlp_forward(&m, REF_TRAIN, REF_CROSS_ENTROPY, x, labels, NULL, n);
//   ref_mlp_backward(&m);                                  // m.tensors[t].grad is overwritten
//   RefOptimizer opt = ref_optimizer(REF_ADAMW, 1e-3, 0, 0.01);
//   ref_mlp_step(&m, &opt);
//   ref_mlp_free(&m);
//
// TENSORS
//   m.tensors[0 .. m.n_tensors-1] are all parameters in PyTorch's order: fc1.weight, fc1.bias, bn1.weight, bn1.bias,
//   fc2.weight, ... ref_mlp_tensor(&m, "bn1.weight") finds one. The same arrays are m.w[l], m.b[l], m.gamma[l],
//   m.beta[l] (NULL where absent); running statistics are m.running_mean[l], m.running_var[l]. l counts linear layers
//   from 0. ref_mlp_default_norm sets gamma 1, beta 0, running mean 0, running variance 1; ref_mlp_create does so, too.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REF_MLP_MAX_LAYERS 64
#define REF_BN_EPS 1e-5
#define REF_BN_MOMENTUM 0.1

enum { REF_TRAIN, REF_EVAL };
enum { REF_CROSS_ENTROPY, REF_MSE };
enum { REF_SGD, REF_MOMENTUM, REF_ADAMW };

typedef struct {
    char name[32]; // PyTorch's name, e.g. fc1.weight
    int rows, cols; // [out][in]; cols is 1 for a vector
    size_t n;       // rows * cols
    double *data, *grad;
    double *state1, *state2; // momentum buffer or first moment; second moment
} RefTensor;

typedef struct {
    int n_layers; // linear layers
    int dims[REF_MLP_MAX_LAYERS + 1];
    int has_bn, track_running;
    int n_tensors;
    RefTensor tensors[4 * REF_MLP_MAX_LAYERS];
    // the same parameters by layer, NULL where absent; d* are gradients
    double *w[REF_MLP_MAX_LAYERS], *dw[REF_MLP_MAX_LAYERS];
    double *b[REF_MLP_MAX_LAYERS], *db[REF_MLP_MAX_LAYERS];
    double *gamma[REF_MLP_MAX_LAYERS], *dgamma[REF_MLP_MAX_LAYERS];
    double *beta[REF_MLP_MAX_LAYERS], *dbeta[REF_MLP_MAX_LAYERS];
    double *running_mean[REF_MLP_MAX_LAYERS], *running_var[REF_MLP_MAX_LAYERS];
    long batches_tracked;
    // kept by the forward pass for the backward pass; [n][dims] row-major, layer l
    int n, mode, loss;                       // of the last forward pass
    double *a[REF_MLP_MAX_LAYERS + 1];       // input of layer l; a[n_layers] is the output (logits)
    double *pre[REF_MLP_MAX_LAYERS];         // what the ReLU sees: after BatchNorm if there is one
    double *xhat[REF_MLP_MAX_LAYERS];        // normalised value, before gamma and beta
    double *rstd[REF_MLP_MAX_LAYERS];        // [dims[l+1]] 1 / sqrt(variance + eps) in use
    double *d_output;                        // [n][dims[n_layers]] gradient of the loss
    double *d_input;                         // [n][dims[0]] written by the backward pass
    int correct;                             // samples whose largest logit is the label's (classification)
} RefMlp;

typedef struct {
    int kind;
    double lr, momentum, weight_decay, beta1, beta2, eps;
    long steps; // done so far
} RefOptimizer;

// Zeroed array; stops the program when memory is exhausted.
static inline double *ref_mlp_doubles(size_t n) {
    double *x = (double *)calloc(n ? n : 1, sizeof(double));
    if (!x) {
        fprintf(stderr, "ref_mlp.h: out of memory (%zu doubles)\n", n);
        exit(1);
    }
    return x;
}

// Appends a tensor named e.g. fc1.weight and hands out its data and gradient.
static inline void ref_mlp_add(RefMlp *m, const char *module, int layer, const char *what, int rows, int cols,
                               double **data, double **grad) {
    RefTensor *t = &m->tensors[m->n_tensors++];
    snprintf(t->name, sizeof t->name, "%s%d.%s", module, layer + 1, what);
    t->rows = rows;
    t->cols = cols;
    t->n = (size_t)rows * (size_t)cols;
    *data = t->data = ref_mlp_doubles(t->n);
    *grad = t->grad = ref_mlp_doubles(t->n);
    t->state1 = ref_mlp_doubles(t->n);
    t->state2 = ref_mlp_doubles(t->n);
}

// gamma 1, beta 0, running mean 0, running variance 1.
static inline void ref_mlp_default_norm(RefMlp *m) {
    for (int l = 0; l + 1 < m->n_layers; l++)
        for (int o = 0; m->has_bn && o < m->dims[l + 1]; o++) {
            m->gamma[l][o] = m->running_var[l][o] = 1;
            m->beta[l][o] = m->running_mean[l][o] = 0;
        }
    m->batches_tracked = 0;
}

// A network with dims[0..n_layers] and zero weights. `bias` for the layers below the last, `last_bias` for the last.
static inline RefMlp ref_mlp_create(const int *dims, int n_layers, int bias, int last_bias, int has_bn) {
    RefMlp m;
    memset(&m, 0, sizeof m);
    m.n_layers = n_layers;
    m.has_bn = has_bn;
    m.track_running = 1;
    for (int l = 0; l <= n_layers; l++) m.dims[l] = dims[l];
    for (int l = 0; l < n_layers; l++) {
        const int last = l + 1 == n_layers, n_out = dims[l + 1];
        ref_mlp_add(&m, "fc", l, "weight", n_out, dims[l], &m.w[l], &m.dw[l]);
        if (last ? last_bias : bias) ref_mlp_add(&m, "fc", l, "bias", n_out, 1, &m.b[l], &m.db[l]);
        if (last || !has_bn) continue;
        ref_mlp_add(&m, "bn", l, "weight", n_out, 1, &m.gamma[l], &m.dgamma[l]);
        ref_mlp_add(&m, "bn", l, "bias", n_out, 1, &m.beta[l], &m.dbeta[l]);
        m.running_mean[l] = ref_mlp_doubles((size_t)n_out);
        m.running_var[l] = ref_mlp_doubles((size_t)n_out);
    }
    ref_mlp_default_norm(&m);
    return m;
}

// Releases what the forward pass kept.
static inline void ref_mlp_free_activations(RefMlp *m) {
    for (int l = 0; l <= m->n_layers; l++) {
        free(m->a[l]);
        m->a[l] = NULL;
        if (l == m->n_layers) break;
        free(m->pre[l]);
        free(m->xhat[l]);
        free(m->rstd[l]);
        m->pre[l] = m->xhat[l] = m->rstd[l] = NULL;
    }
    free(m->d_output);
    free(m->d_input);
    m->d_output = m->d_input = NULL;
}

static inline void ref_mlp_free(RefMlp *m) {
    ref_mlp_free_activations(m);
    for (int t = 0; t < m->n_tensors; t++) {
        free(m->tensors[t].data);
        free(m->tensors[t].grad);
        free(m->tensors[t].state1);
        free(m->tensors[t].state2);
    }
    for (int l = 0; l < m->n_layers; l++) {
        free(m->running_mean[l]);
        free(m->running_var[l]);
    }
    memset(m, 0, sizeof *m);
}

// The tensor of that name, NULL when the network has none.
static inline RefTensor *ref_mlp_tensor(RefMlp *m, const char *name) {
    for (int t = 0; t < m->n_tensors; t++)
        if (strcmp(m->tensors[t].name, name) == 0) return &m->tensors[t];
    return NULL;
}

// ---------------------------------------------------------------------------------------------------------------
// Layers, forward beside backward

// z[n][n_out] = x[n][n_in] w^T + b.
static inline void ref_linear_forward(double *z, const double *x, const double *w, const double *b, size_t n,
                                      size_t n_in, size_t n_out) {
    for (size_t s = 0; s < n; s++)
        for (size_t o = 0; o < n_out; o++) {
            double sum = b ? b[o] : 0;
            for (size_t i = 0; i < n_in; i++) sum += w[o * n_in + i] * x[s * n_in + i];
            z[s * n_out + o] = sum;
        }
}

// dx, dw, db (db may be NULL) from dz; all overwritten.
static inline void ref_linear_backward(double *dx, double *dw, double *db, const double *dz, const double *x,
                                       const double *w, size_t n, size_t n_in, size_t n_out) {
    memset(dx, 0, n * n_in * sizeof *dx);
    memset(dw, 0, n_out * n_in * sizeof *dw);
    if (db) memset(db, 0, n_out * sizeof *db);
    for (size_t s = 0; s < n; s++)
        for (size_t o = 0; o < n_out; o++) {
            const double d = dz[s * n_out + o];
            if (db) db[o] += d;
            for (size_t i = 0; i < n_in; i++) {
                dw[o * n_in + i] += d * x[s * n_in + i];
                dx[s * n_in + i] += d * w[o * n_in + i];
            }
        }
}

// BatchNorm of layer l: y = gamma * xhat + beta, xhat = (z - mean) * rstd, statistics by m->mode.
static inline void ref_bn_forward(RefMlp *m, int l, double *y, const double *z) {
    const size_t n = (size_t)m->n, c = (size_t)m->dims[l + 1];
    for (size_t o = 0; o < c; o++) {
        double mean = m->running_mean[l][o], var = m->running_var[l][o];
        if (m->mode == REF_TRAIN) {
            mean = var = 0;
            for (size_t s = 0; s < n; s++) mean += z[s * c + o];
            mean /= (double)n;
            for (size_t s = 0; s < n; s++) var += (z[s * c + o] - mean) * (z[s * c + o] - mean);
            var /= (double)n;
            if (m->track_running) {
                const double unbiased = var * (double)n / (double)(n - 1);
                m->running_mean[l][o] += REF_BN_MOMENTUM * (mean - m->running_mean[l][o]);
                m->running_var[l][o] += REF_BN_MOMENTUM * (unbiased - m->running_var[l][o]);
            }
        }
        m->rstd[l][o] = 1 / sqrt(var + REF_BN_EPS);
        for (size_t s = 0; s < n; s++) {
            m->xhat[l][s * c + o] = (z[s * c + o] - mean) * m->rstd[l][o];
            y[s * c + o] = m->gamma[l][o] * m->xhat[l][s * c + o] + m->beta[l][o];
        }
    }
}

// dgamma, dbeta and dz (in place of dy). In training mode mean and variance depend on z as well.
static inline void ref_bn_backward(RefMlp *m, int l, double *dy) {
    const size_t n = (size_t)m->n, c = (size_t)m->dims[l + 1];
    for (size_t o = 0; o < c; o++) {
        double sum = 0, dot = 0;
        for (size_t s = 0; s < n; s++) {
            sum += dy[s * c + o];
            dot += dy[s * c + o] * m->xhat[l][s * c + o];
        }
        m->dbeta[l][o] = sum;
        m->dgamma[l][o] = dot;
        for (size_t s = 0; s < n; s++) {
            double d = dy[s * c + o];
            if (m->mode == REF_TRAIN) d -= (sum + m->xhat[l][s * c + o] * dot) / (double)n;
            dy[s * c + o] = d * m->gamma[l][o] * m->rstd[l][o];
        }
    }
}

// Mean cross-entropy over the batch; d[n][c] its gradient with respect to the logits; *correct counts arg-max hits.
static inline double ref_cross_entropy(double *d, const double *logits, const int *labels, size_t n, size_t c,
                                       int *correct) {
    double loss = 0;
    *correct = 0;
    for (size_t s = 0; s < n; s++) {
        const double *row = &logits[s * c];
        size_t best = 0;
        double sum = 0;
        for (size_t k = 1; k < c; k++)
            if (row[k] > row[best]) best = k;
        for (size_t k = 0; k < c; k++) sum += exp(row[k] - row[best]);
        for (size_t k = 0; k < c; k++)
            d[s * c + k] = (exp(row[k] - row[best]) / sum - ((int)k == labels[s] ? 1.0 : 0.0)) / (double)n;
        loss += log(sum) + row[best] - row[labels[s]];
        *correct += (int)best == labels[s];
    }
    return loss / (double)n;
}

// Mean squared error over all n * c elements; d its gradient with respect to y.
static inline double ref_mse(double *d, const double *y, const double *target, size_t n, size_t c) {
    double loss = 0;
    for (size_t i = 0; i < n * c; i++) {
        const double e = y[i] - target[i];
        loss += e * e;
        d[i] = 2 * e / (double)(n * c);
    }
    return loss / (double)(n * c);
}

// ---------------------------------------------------------------------------------------------------------------
// The whole network

// Forward pass of x[n][dims[0]]; returns the loss against labels[n] or target[n][dims[n_layers]] (the other NULL).
// Keeps what ref_mlp_backward needs; outputs are m->a[m->n_layers].
static inline double ref_mlp_forward(RefMlp *m, int mode, int loss, const double *x, const int *labels,
                                     const double *target, int n) {
    ref_mlp_free_activations(m);
    m->n = n;
    m->mode = mode;
    m->loss = loss;
    const int L = m->n_layers;
    for (int l = 0; l <= L; l++) m->a[l] = ref_mlp_doubles((size_t)n * (size_t)m->dims[l]);
    memcpy(m->a[0], x, sizeof(double) * (size_t)n * (size_t)m->dims[0]);
    for (int l = 0; l < L; l++) {
        const size_t n_in = (size_t)m->dims[l], n_out = (size_t)m->dims[l + 1], total = (size_t)n * n_out;
        if (l + 1 == L) {
            ref_linear_forward(m->a[L], m->a[l], m->w[l], m->b[l], (size_t)n, n_in, n_out);
            break;
        }
        m->pre[l] = ref_mlp_doubles(total);
        ref_linear_forward(m->pre[l], m->a[l], m->w[l], m->b[l], (size_t)n, n_in, n_out);
        if (m->has_bn) {
            m->xhat[l] = ref_mlp_doubles(total);
            m->rstd[l] = ref_mlp_doubles(n_out);
            ref_bn_forward(m, l, m->pre[l], m->pre[l]); // reads each value before it writes it
        }
        for (size_t i = 0; i < total; i++) m->a[l + 1][i] = m->pre[l][i] > 0 ? m->pre[l][i] : 0;
    }
    if (m->has_bn && mode == REF_TRAIN && m->track_running) m->batches_tracked++;
    const size_t c = (size_t)m->dims[L];
    m->correct = 0;
    m->d_output = ref_mlp_doubles((size_t)n * c);
    return loss == REF_MSE ? ref_mse(m->d_output, m->a[L], target, (size_t)n, c)
                           : ref_cross_entropy(m->d_output, m->a[L], labels, (size_t)n, c, &m->correct);
}

// Gradients of the loss of the last forward pass into tensors[].grad (overwritten) and d_input.
static inline void ref_mlp_backward(RefMlp *m) {
    const int L = m->n_layers;
    const size_t n = (size_t)m->n;
    double *d = ref_mlp_doubles(n * (size_t)m->dims[L]);
    memcpy(d, m->d_output, sizeof(double) * n * (size_t)m->dims[L]);
    for (int l = L - 1; l >= 0; l--) {
        const size_t n_in = (size_t)m->dims[l], n_out = (size_t)m->dims[l + 1];
        if (l + 1 < L) {
            for (size_t i = 0; i < n * n_out; i++)
                if (!(m->pre[l][i] > 0)) d[i] = 0;
            if (m->has_bn) ref_bn_backward(m, l, d);
        }
        double *below = ref_mlp_doubles(n * n_in);
        ref_linear_backward(below, m->dw[l], m->db[l], d, m->a[l], m->w[l], n, n_in, n_out);
        free(d);
        d = below;
    }
    free(m->d_input);
    m->d_input = d;
}

// ---------------------------------------------------------------------------------------------------------------
// Optimizers

// An optimizer with PyTorch's remaining defaults. `momentum` is used by REF_MOMENTUM only.
static inline RefOptimizer ref_optimizer(int kind, double lr, double momentum, double weight_decay) {
    RefOptimizer opt;
    opt.kind = kind;
    opt.lr = lr;
    opt.momentum = momentum;
    opt.weight_decay = weight_decay;
    opt.beta1 = 0.9;
    opt.beta2 = 0.999;
    opt.eps = 1e-8;
    opt.steps = 0;
    return opt;
}

// One update of n_tensors tensors from their gradients. tensors[].state1, state2 hold the optimizer's state.
static inline void ref_tensors_step(RefTensor *tensors, int n_tensors, RefOptimizer *opt) {
    opt->steps++;
    const double correct1 = 1 - pow(opt->beta1, (double)opt->steps), correct2 = 1 - pow(opt->beta2, (double)opt->steps);
    for (int t = 0; t < n_tensors; t++) {
        RefTensor *x = &tensors[t];
        for (size_t i = 0; i < x->n; i++) {
            if (opt->kind == REF_ADAMW) {
                const double g = x->grad[i];
                x->data[i] -= opt->lr * opt->weight_decay * x->data[i];
                x->state1[i] = opt->beta1 * x->state1[i] + (1 - opt->beta1) * g;
                x->state2[i] = opt->beta2 * x->state2[i] + (1 - opt->beta2) * g * g;
                x->data[i] -= opt->lr * (x->state1[i] / correct1) / (sqrt(x->state2[i] / correct2) + opt->eps);
                continue;
            }
            double g = x->grad[i] + opt->weight_decay * x->data[i];
            if (opt->kind == REF_MOMENTUM) g = x->state1[i] = opt->momentum * x->state1[i] + g; // first step: g
            x->data[i] -= opt->lr * g;
        }
    }
}

// One update of all parameters of a network.
static inline void ref_mlp_step(RefMlp *m, RefOptimizer *opt) { ref_tensors_step(m->tensors, m->n_tensors, opt); }
