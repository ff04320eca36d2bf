// train_gpt_style.c -- trains a GPT-style transformer on a CPU. Rescales its symmetries on request.
//
// It trains decoder-only language models: learned positions, pre-LayerNorm blocks, causal attention
// with several heads, ReLU MLPs of four times the width. The head shares the token embedding's
// weights or has its own. The data are the bytes of any text file, or 16-bit token shards. There is
// no dropout, no other activation, no GPU, no second machine.
//
// Reads top to bottom: configuration, model, layers (each backward stands beside its forward),
// forward, backward, optimizer, initialisation, rescaling (the symmetries: common/gpt_rescale.h),
// training, sampling, command line.
// `train_gpt_style --help` lists the options.
//
// Letters: B sequences, T positions, N = B * T rows, C channels, NH heads of HS = C / NH channels,
// L layers, V tokens of the vocabulary. Matrices are row-major, weights are [out][in] and have the
// names of nanoGPT. d in front of a name means the gradient of it.
//
// How it is fast: gemm.h does every large product. Rows go through a layer in chunks, so that the
// work between two products stays in the cache. Attention takes strips of 64 queries and never
// stores a T x T matrix. Logits exist for one chunk of rows at a time, and their gradient replaces
// them there. Every sum has a fixed order, whatever the number of threads.
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>            // huge pages
#ifdef _OPENMP
#include <omp.h>
#endif
#include "common/real.h"         // real: float, or double in tests; exp, sums and loops for it
#define RESCALE_REAL REAL
#include "common/gemm.h"         // C = alpha op(A) op(B) + beta C
#include "common/rng.h"          // Philox: initial weights, order of the windows, sampling
#include "common/safetensors.h"  // weights and checkpoints
#include "common/cli.h"          // the option table
#include "common/log.h"          // progress line, log.csv, report.json, Ctrl-C
#include "rescale.cuh"           // PathCond and ENorm
#include "common/corpus.h"       // text files, token shards, the built-in grammar; windows
#include "common/gpt_rescale.h"  // the symmetries of a transformer
#include "common/sample.h"       // draws a token from logits
#include "common/train.h"        // options, tensor table, checkpoints, the loop of all trainers

// ---------------------------------------------------------------------------------- configuration

enum { MAX_LAYERS = 128 };
enum { MODEL_TINY, MODEL_SMALL, MODEL_124M };

typedef struct config {
    train_options train;         // what all trainers share
    int model, untied;
    int layers, heads, channels, context, vocabulary;  // 0: the preset's, or the data's
    int micro_batch, recompute;
    double clip, beta1, beta2;
    const char *val_data, *rescale_sets;
    int sets;                    // rescale_sets as bits: SET_MLP, ...
    int sample, top_k;
    double temperature;
    const char *prompt;
} config;

static const struct preset {
    int layers, heads, channels, context;
    double lr;
} presets[] = {{4, 4, 128, 128, 3e-3}, {6, 6, 384, 256, 1e-3}, {12, 12, 768, 1024, 6e-4}};

// ------------------------------------------------------------------------------------------ model

#define LN_EPS ((real)1e-5)      // PyTorch's default
enum { ALIGN = 64 };             // numbers; every tensor starts on such a boundary
enum { ROW_BLOCK = 32 };         // rows one thread adds up in sums over rows
enum { STRIP = 64, KEYS = 256 }; // attention: queries of a strip, keys of a block
enum { CHUNK = 1 << 18 };        // numbers of [rows][C] that go through a layer at a time: cached
enum { LOGITS = 1 << 24 };       // logits that exist at a time, at most about so many

// The parameters of a layer, or their gradients. In the order of the table below and of GPT_LN1_W,
// ... in gpt_rescale.h.
typedef struct block {
    real *ln1_w, *ln1_b;         // [C]
    real *qkv_w, *qkv_b;         // [3C][C], [3C]: rows of queries, keys, values; each NH x HS
    real *out_w, *out_b;         // [C][C], [C]
    real *ln2_w, *ln2_b;         // [C]
    real *fc_w, *fc_b;           // [4C][C], [4C]
    real *proj_w, *proj_b;       // [C][4C], [C]
} block;
enum { BLOCK_TENSORS = sizeof(block) / sizeof(real *) };
static const struct block_tensor {
    const char *name;
    int rows, cols;              // in channels; cols 0: a vector
    int role;
} block_tensors[BLOCK_TENSORS] = {
    {"ln_1.weight", 1, 0, RESCALE_GAIN},        {"ln_1.bias", 1, 0, RESCALE_BIAS},
    {"attn.c_attn.weight", 3, 1, RESCALE_WEIGHT}, {"attn.c_attn.bias", 3, 0, RESCALE_BIAS},
    {"attn.c_proj.weight", 1, 1, RESCALE_WEIGHT}, {"attn.c_proj.bias", 1, 0, RESCALE_BIAS},
    {"ln_2.weight", 1, 0, RESCALE_GAIN},        {"ln_2.bias", 1, 0, RESCALE_BIAS},
    {"mlp.c_fc.weight", 4, 1, RESCALE_WEIGHT},  {"mlp.c_fc.bias", 4, 0, RESCALE_BIAS},
    {"mlp.c_proj.weight", 1, 4, RESCALE_WEIGHT}, {"mlp.c_proj.bias", 1, 0, RESCALE_BIAS},
};

// All parameters, or all gradients.
typedef struct weights {
    real *wte, *wpe;             // [V][C], [T][C]
    struct block block[MAX_LAYERS];
    real *lnf_w, *lnf_b;         // [C]
    real *head;                  // [V][C]; tied: wte
} weights;

// Activations of a layer: its forward pass leaves them for its backward pass.
typedef struct activations {
    real *x;                     // [N][C] residual stream that enters the layer; a[L]: that leaves
    real *ln1, *mean1, *rstd1;   // [N][C], [N], [N]
    real *qkv;                   // [N][3C]
    real *lse;                   // [B][NH][T] log of the sum of exp of the scores of a query
    real *att;                   // [N][C] heads side by side
    real *mid;                   // [N][C] residual stream between attention and MLP
    real *ln2, *mean2, *rstd2;   // [N][C], [N], [N]
    real *fc;                    // [N][4C] after ReLU
} activations;

// Memory that one thread works in for attention.
typedef struct scratch {
    gemm_context gemm;
    real *scores, *dscores;      // [KEYS][STRIP] transposed: softmax works on vectors of queries
    real *out;                   // [STRIP][HS]
    real *max, *old, *sum;       // [STRIP]
} scratch;

typedef struct model {
    int L, NH, HS, C, T, V, tied, recompute;
    int max_B;                   // sequences that activations have room for
    int threads;
    int chunk, head_rows;        // rows that go through a layer, and through the head, at a time
    train_net net;               // the tensors with their names and places, for files
    // [net.n_params] each, one allocation per family.
    real *params, *grads, *moment1, *moment2;
    weights w, dw;
    int accumulate;              // 0: the next backward pass replaces the gradients, 1: it adds
    real *acts;                  // one allocation for all that follows
    activations a[MAX_LAYERS + 1];
    int *tokens, *targets;       // [N]
    real *lnf, *meanf, *rstdf;   // [head_rows][C], [head_rows]
    real *logits;                // [head_rows][V], then their gradient
    real *drawn;                 // [V] where a token is drawn
    real *dx, *datt, *dqkv;      // [N][C], [N][C], [N][3C]
    real *dfc, *dln;             // [chunk][4C], [max(chunk, head_rows)][C]
    real *partial;               // sums over blocks of rows
    double *row_loss;            // [head_rows]
    int *row_hit;                // [head_rows]
    double *square_sums;
    struct scratch *scratch;     // [threads]
    gemm_context gemm;
    real *diag_g;                // [net.n_params] --rescale-kernel data and fisher; NULL: paths
    rescale_report set_report[N_SETS];  // of the last rescaling: mlp, vo, qk, ln
} model;

// Zeroed memory for n numbers. The arrays are large, so they lie on huge pages where the system has
// them.
static real *alloc_reals(size_t n) {
    const size_t page = (size_t)1 << 21, needed = (n ? n : 1) * sizeof(real);
    const size_t bytes = (needed + page - 1) / page * page;
    void *p = NULL;
    if (posix_memalign(&p, bytes > page ? page : 4096, bytes)) {
        message_print("train_gpt_style", "out of memory: %zu MiB", bytes >> 20);
        exit(1);
    }
#ifdef MADV_HUGEPAGE
    if (bytes > page) (void)madvise(p, bytes, MADV_HUGEPAGE);
#endif
    memset(p, 0, bytes);
    return (real *)p;
}

// Takes n numbers from a bump allocator; with base NULL it only counts.
static real *take(real *base, size_t *used, size_t n) {
    real *p = base ? base + *used : NULL;
    *used += (n + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

static int min_int(int a, int b) { return a < b ? a : b; }
static int max_int(int a, int b) { return a > b ? a : b; }

// Places the activations of all layers for N rows; returns how many numbers of base are used.
static size_t place_layers(model *m, real *base, size_t N) {
    const size_t C = (size_t)m->C;
    size_t used = 0;
    for (int l = 0; l <= m->L; l++) {
        activations *a = &m->a[l];
        // --recompute keeps one layer's activations, and the stream between layers.
        if (l > 0 && m->recompute) *a = m->a[0];
        a->x = take(base, &used, N * C);
        if (l == m->L || (l > 0 && m->recompute)) continue;
        a->ln1 = take(base, &used, N * C);
        a->mean1 = take(base, &used, N);
        a->rstd1 = take(base, &used, N);
        a->qkv = take(base, &used, N * 3 * C);
        a->lse = take(base, &used, N * (size_t)m->NH);
        a->att = take(base, &used, N * C);
        a->mid = take(base, &used, N * C);
        a->ln2 = take(base, &used, N * C);
        a->mean2 = take(base, &used, N);
        a->rstd2 = take(base, &used, N);
        a->fc = take(base, &used, N * 4 * C);
    }
    return used;
}

// Places activations and their gradients for max_B sequences in one allocation. Called twice: with
// base NULL to count, then to place.
static size_t place_activations(model *m, real *base) {
    const size_t B = (size_t)m->max_B, N = B * (size_t)m->T, C = (size_t)m->C;
    const size_t chunk = (size_t)m->chunk, head_rows = (size_t)m->head_rows;
    const size_t wide = chunk > head_rows ? chunk : head_rows;
    size_t used = place_layers(m, base, N);
    m->tokens = (int *)(void *)take(base, &used, N);
    m->targets = (int *)(void *)take(base, &used, N);
    m->lnf = take(base, &used, head_rows * C);
    m->meanf = take(base, &used, head_rows);
    m->rstdf = take(base, &used, head_rows);
    m->logits = take(base, &used, head_rows * (size_t)m->V);
    m->drawn = take(base, &used, (size_t)m->V);
    m->dx = take(base, &used, N * C);
    m->datt = take(base, &used, N * C);
    m->dqkv = take(base, &used, N * 3 * C);
    m->dfc = take(base, &used, chunk * 4 * C);
    m->dln = take(base, &used, wide * C);
    m->partial = take(base, &used, (wide / ROW_BLOCK + 1 + B) * 4 * C);
    m->row_loss = (double *)(void *)take(base, &used, 2 * head_rows);
    m->row_hit = (int *)(void *)take(base, &used, head_rows);
    m->square_sums = (double *)(void *)take(base, &used, 2 * (m->net.n_params / 4096 + 1));
    for (int t = 0; t < m->threads; t++) {
        scratch *s = &m->scratch[t];
        s->scores = take(base, &used, KEYS * STRIP);
        s->dscores = take(base, &used, KEYS * STRIP);
        s->out = take(base, &used, (size_t)STRIP * (size_t)m->HS);
        s->max = take(base, &used, STRIP);
        s->old = take(base, &used, STRIP);
        s->sum = take(base, &used, STRIP);
    }
    return used;
}

// Sets the pointers of params or grads.
static void point_weights(const model *m, weights *w, real *base) {
    int i = 0;
    w->wte = base + m->net.tensors[i++].offset;
    w->wpe = base + m->net.tensors[i++].offset;
    for (int l = 0; l < m->L; l++) {
        real *p[BLOCK_TENSORS];
        for (int k = 0; k < BLOCK_TENSORS; k++) p[k] = base + m->net.tensors[i++].offset;
        memcpy(&w->block[l], p, sizeof p);
    }
    w->lnf_w = base + m->net.tensors[i++].offset;
    w->lnf_b = base + m->net.tensors[i++].offset;
    w->head = m->tied ? w->wte : base + m->net.tensors[i].offset;
}

// Lists the tensors with the names and the order of nanoGPT.
static void list_tensors(model *m) {
    train_net *net = &m->net;
    const int C = m->C;
    train_add_parameter(net, RESCALE_WEIGHT, -1, m->V, C, 0, 0, "transformer.wte.weight");
    train_add_parameter(net, RESCALE_WEIGHT, -1, m->T, C, 0, 0, "transformer.wpe.weight");
    for (int l = 0; l < m->L; l++)
        for (int k = 0; k < BLOCK_TENSORS; k++) {
            const struct block_tensor *t = &block_tensors[k];
            train_add_parameter(net, t->role, l, t->rows * C, t->cols * C, 0, 0,
                                "transformer.h.%d.%s", l, t->name);
        }
    train_add_parameter(net, RESCALE_GAIN, m->L, C, 0, 0, 0, "transformer.ln_f.weight");
    train_add_parameter(net, RESCALE_BIAS, m->L, C, 0, 0, 0, "transformer.ln_f.bias");
    if (!m->tied) train_add_parameter(net, RESCALE_WEIGHT, m->L, m->V, C, 0, 0, "lm_head.weight");
    net->hint = "--model, --layers or --untied differ";
    net->prefix = "transformer.";
    if (!m->tied) return;
    net->tied = "lm_head.weight";
    net->tied_to = "transformer.wte.weight";
}

// Builds a model for max_B sequences of up to T tokens at a time. training = 0: without gradients
// and optimizer state. Returns 0, or -1 with a message.
static int model_create(model *m, const config *c, int max_B, int training, char *err, size_t n) {
    memset(m, 0, sizeof *m);
    m->L = c->layers;
    m->NH = c->heads;
    m->C = c->channels;
    m->T = c->context;
    m->V = c->vocabulary;
    m->HS = m->C / m->NH;
    m->tied = !c->untied;
    m->recompute = c->recompute;
    m->max_B = max_B;
    m->threads = device_threads();
    const int N = max_B * m->T;
    const int chunks = ceil_div(N, max_int(256, min_int(4096, CHUNK / m->C)));
    const int fitting = LOGITS / m->V / ROW_BLOCK * ROW_BLOCK;
    m->chunk = ceil_div(ceil_div(N, chunks), ROW_BLOCK) * ROW_BLOCK;
    m->head_rows = min_int(N, max_int(ROW_BLOCK, min_int(m->chunk, fitting)));
    if (gemm_create(&m->gemm, GEMM_FP32, err, n)) return -1;
    m->scratch = (scratch *)train_alloc(NULL, (size_t)m->threads, sizeof *m->scratch);
    for (int t = 0; t < m->threads; t++) {
        if (gemm_create(&m->scratch[t].gemm, GEMM_FP32, err, n)) return -1;
        m->scratch[t].gemm.threads = 1;
    }
    list_tensors(m);
    m->params = alloc_reals(m->net.n_params);
    if (training) {
        m->grads = alloc_reals(m->net.n_params);
        m->moment1 = alloc_reals(m->net.n_params);
        m->moment2 = alloc_reals(m->net.n_params);
        point_weights(m, &m->dw, m->grads);
        if (c->train.rescale && c->train.rescale_kernel) m->diag_g = alloc_reals(m->net.n_params);
    }
    point_weights(m, &m->w, m->params);
    if (sizeof(real) == sizeof(float)) {  // files hold floats; the tests in double have none
        m->net.params = (float *)(void *)m->params;
        m->net.grads = (float *)(void *)m->grads;
        m->net.moment1 = (float *)(void *)m->moment1;
        m->net.moment2 = (float *)(void *)m->moment2;
    }
    m->acts = alloc_reals(place_activations(m, NULL));
    place_activations(m, m->acts);
    return 0;
}

static void model_free(model *m) {
    free(m->params);
    free(m->grads);
    free(m->moment1);
    free(m->moment2);
    free(m->diag_g);
    free(m->acts);
    for (int t = 0; m->scratch && t < m->threads; t++) gemm_destroy(&m->scratch[t].gemm);
    free(m->scratch);
    gemm_destroy(&m->gemm);
    train_net_free(&m->net);
    memset(m, 0, sizeof *m);
}

// ----------------------------------------------------------------------------------------- layers

// x[r] = wte[token] + wpe[position], for rows first .. first + rows - 1 of sequences of T tokens.
static void embed(model *m, int T, int first, int rows) {
    const int C = m->C;
    PARALLEL_FOR
    for (int r = first; r < first + rows; r++) {
        const real *token = m->w.wte + (size_t)m->tokens[r] * (size_t)C;
        const real *position = m->w.wpe + (size_t)(r % T) * (size_t)C;
        real *x = m->a[0].x + (size_t)r * (size_t)C;
        for (int c = 0; c < C; c++) x[c] = token[c] + position[c];
    }
}
// Adds the gradient dx to those of both embeddings. A thread owns columns, so that rows are added
// in their order.
static void embed_backward(model *m, int B, int T) {
    const int C = m->C;
    PARALLEL_FOR
    for (int first = 0; first < C; first += 32) {
        const int width = min_int(32, C - first);
        for (int r = 0; r < B * T; r++) {
            const real *dx = m->dx + (size_t)r * (size_t)C + first;
            real *token = m->dw.wte + (size_t)m->tokens[r] * (size_t)C + first;
            real *position = m->dw.wpe + (size_t)(r % T) * (size_t)C + first;
            for (int c = 0; c < width; c++) {
                token[c] += dx[c];
                position[c] += dx[c];
            }
        }
    }
}

// y[rows][out] = x[rows][in] w[out][in]^T.
static void linear(model *m, real *y, const real *x, const real *w, int rows, int in, int out) {
    real_product(&m->gemm, 0, 1, rows, out, in, 1, x, in, w, in, 0, y, out);
}
// dw += dy^T x, or dw = dy^T x where `fresh`; dx = dy w.
static void linear_backward(model *m, real *dx, real *dw, const real *dy, const real *x,
                            const real *w, int rows, int in, int out, int fresh) {
    real_product(&m->gemm, 1, 0, out, in, rows, 1, dy, out, x, in, !fresh, dw, in);
    real_product(&m->gemm, 0, 0, rows, in, out, 1, dy, out, w, in, 0, dx, in);
}

// y += b.
static void add_bias(real *y, const real *b, int rows, int cols) {
    PARALLEL_FOR
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) y[(size_t)r * (size_t)cols + (size_t)c] += b[c];
}
// y = max(y + b, 0). NaN stays NaN: divergence must show.
static void add_bias_relu(real *y, const real *b, int rows, int cols) {
    PARALLEL_FOR
    for (int r = 0; r < rows; r++) {
        real *p = y + (size_t)r * (size_t)cols;
        for (int c = 0; c < cols; c++) {
            const real v = p[c] + b[c];
            p[c] = v <= 0 ? 0 : v;
        }
    }
}
// dy = 0 where y = 0; db += sum of dy over rows.
static void add_bias_relu_backward(model *m, real *dy, real *db, const real *y, int rows,
                                   int cols) {
    const int blocks = ceil_div(rows, ROW_BLOCK);
    PARALLEL_FOR
    for (int k = 0; k < blocks; k++) {
        real *sum = m->partial + (size_t)k * (size_t)cols;
        memset(sum, 0, (size_t)cols * sizeof(real));
        for (int r = k * ROW_BLOCK; r < min_int(rows, (k + 1) * ROW_BLOCK); r++) {
            real *d = dy + (size_t)r * (size_t)cols;
            const real *p = y + (size_t)r * (size_t)cols;
            for (int c = 0; c < cols; c++) {
                d[c] = p[c] > 0 ? d[c] : 0;
                sum[c] += d[c];
            }
        }
    }
    real_sum_blocks(db, m->partial, blocks, (size_t)cols, cols);
}

// Residual connection and LayerNorm in one pass over [rows][C]: x += before + b, unless before is
// NULL; then out = gain hat + bias with hat = (x - mean) rstd.
static void residual_layernorm(real *out, real *mean, real *rstd, real *x, const real *before,
                               const real *b, const real *gain, const real *bias, int rows, int C) {
    PARALLEL_FOR
    for (int r = 0; r < rows; r++) {
        real *p = x + (size_t)r * (size_t)C, *o = out + (size_t)r * (size_t)C, sum = 0, squares = 0;
        if (before) {
            const real *q = before + (size_t)r * (size_t)C;
            for (int c = 0; c < C; c++) p[c] = q[c] + (p[c] + b[c]);
        }
        SIMD_SUM(sum)
        for (int c = 0; c < C; c++) sum += p[c];
        const real average = sum / (real)C;
        SIMD_SUM(squares)
        for (int c = 0; c < C; c++) squares += (p[c] - average) * (p[c] - average);
        const real scale = 1 / (real)sqrt(squares / (real)C + LN_EPS);  // variance: over C
        for (int c = 0; c < C; c++) o[c] = (p[c] - average) * scale * gain[c] + bias[c];
        mean[r] = average;
        rstd[r] = scale;
    }
}
// Backward: dx = the gradient of LayerNorm's input, or dx += it where `add`; dgain and dbias +=.
// Then db += sum of dx over rows, the gradient of the bias that went into x (NULL: there was none).
static void residual_layernorm_backward(model *m, real *dx, int add, real *dgain, real *dbias,
                                        real *db, const real *dout, const real *x, const real *mean,
                                        const real *rstd, const real *gain, int rows) {
    const int C = m->C, blocks = ceil_div(rows, ROW_BLOCK);
    const size_t stride = 3 * (size_t)C;  // three sums of a block of rows lie side by side
    PARALLEL_FOR
    for (int k = 0; k < blocks; k++) {
        real *sum_gain = m->partial + (size_t)k * stride, *sum_bias = sum_gain + C;
        real *sum_x = sum_bias + C;
        memset(sum_gain, 0, stride * sizeof(real));
        for (int r = k * ROW_BLOCK; r < min_int(rows, (k + 1) * ROW_BLOCK); r++) {
            const real *d = dout + (size_t)r * (size_t)C, *p = x + (size_t)r * (size_t)C;
            const real average = mean[r], scale = rstd[r];
            real *to = dx + (size_t)r * (size_t)C, sum = 0, sum_hat = 0;
            // out = gain hat + bias: dgain = sum of d hat, dbias = sum of d. g = d gain is the
            // gradient of hat.
            SIMD_SUM(sum, sum_hat)
            for (int c = 0; c < C; c++) {
                const real hat = (p[c] - average) * scale, g = d[c] * gain[c];
                sum += g;
                sum_hat += g * hat;
                sum_gain[c] += d[c] * hat;
                sum_bias[c] += d[c];
            }
            sum /= (real)C;
            sum_hat /= (real)C;
            // Every hat of the row depends on every x of it, in three ways:
            //   directly:               rstd g
            //   through the mean:       -rstd mean(g)
            //   through the variance:   -rstd hat mean(g hat)
            for (int c = 0; c < C; c++) {
                const real hat = (p[c] - average) * scale;
                const real g = scale * (d[c] * gain[c] - sum - hat * sum_hat);
                to[c] = add ? to[c] + g : g;
                sum_x[c] += to[c];
            }
        }
    }
    real_sum_blocks(dgain, m->partial, blocks, stride, C);
    real_sum_blocks(dbias, m->partial + C, blocks, stride, C);
    if (db) real_sum_blocks(db, m->partial + 2 * C, blocks, stride, C);
}

// Queries of a strip. The strip on the diagonal wastes half of its scores, which are masked; short
// sequences take smaller strips, so that this weighs less.
static int strip_size(int T) { return T > 2 * STRIP ? STRIP : STRIP / 2; }

// Scores of a strip of queries against a block of keys, transposed: scores[j][i] = scale q_i . k_j,
// or -infinity where key k0 + j lies after query q0 + i.
static void masked_scores(const model *m, scratch *s, const real *qkv, int q0, int queries, int k0,
                          int keys) {
    const int ld = 3 * m->C;
    const real *q = qkv + (size_t)q0 * (size_t)ld, *k = qkv + (size_t)k0 * (size_t)ld + m->C;
    const real scale = 1 / (real)sqrt((real)m->HS);
    real_product(&s->gemm, 0, 1, keys, queries, m->HS, scale, k, ld, q, ld, 0, s->scores, STRIP);
    for (int j = max_int(0, q0 - k0); j < keys; j++)
        for (int i = 0; i < min_int(queries, k0 + j - q0); i++)
            s->scores[j * STRIP + i] = -INFINITY;
}

// Online softmax: takes a block of scores into the running max and sum of each query. The scores
// become e = exp(score - max). A sum so far was taken with the old max; the factor
// old = exp(old max - new max) brings it, and the outputs so far, to the new one.
static void online_softmax(scratch *s, int queries, int keys) {
    real *max = s->max, *old = s->old, *sum = s->sum;
    memcpy(old, max, STRIP * sizeof(real));
    for (int j = 0; j < keys; j++) {
        const real *score = s->scores + j * STRIP;
        for (int i = 0; i < queries; i++) max[i] = score[i] > max[i] ? score[i] : max[i];
    }
    for (int i = 0; i < queries; i++) {
        old[i] = real_exp_negative(old[i] - max[i]);  // 0 at the first block: old max = -infinity
        sum[i] *= old[i];
    }
    for (int j = 0; j < keys; j++) {
        real *score = s->scores + j * STRIP;
        for (int i = 0; i < queries; i++) {
            const real e = real_exp_negative(score[i] - max[i]);
            score[i] = e;
            sum[i] += e;
        }
    }
}

// Causal attention of head h of sequence b, for queries from .. T - 1. A strip of queries meets one
// block of keys after the other, so that no row of scores is ever whole.
static void attend(const model *m, const activations *a, scratch *s, int b, int h, int T,
                   int from) {
    const int C = m->C, HS = m->HS, ld = 3 * C;
    const size_t row = (size_t)b * (size_t)T, head = (size_t)h * (size_t)HS;
    const real *qkv = a->qkv + row * (size_t)ld + head, *v = qkv + 2 * C;
    real *att = a->att + row * (size_t)C + head;
    real *lse = a->lse + ((size_t)b * (size_t)m->NH + (size_t)h) * (size_t)T;
    const int strip = strip_size(T);
    for (int q0 = from; q0 < T; q0 += strip) {
        const int queries = min_int(strip, T - q0);
        for (int i = 0; i < STRIP; i++) {
            s->max[i] = -INFINITY;
            s->sum[i] = 0;
        }
        for (int k0 = 0; k0 < q0 + queries; k0 += KEYS) {
            const int keys = min_int(KEYS, q0 + queries - k0);
            const real *values = v + (size_t)k0 * (size_t)ld;
            masked_scores(m, s, qkv, q0, queries, k0, keys);
            online_softmax(s, queries, keys);
            // out = old out + sum over keys of e v, not yet divided by the sum.
            for (int i = 0; i < queries && k0 > 0; i++)
                for (int c = 0; c < HS; c++) s->out[i * HS + c] *= s->old[i];
            real_product(&s->gemm, 1, 0, queries, HS, keys, 1, s->scores, STRIP, values, ld, k0 > 0,
                         s->out, HS);
        }
        for (int i = 0; i < queries; i++) {
            const real inverse = 1 / s->sum[i], *out = s->out + i * HS;
            real *o = att + (size_t)(q0 + i) * (size_t)C;
            for (int c = 0; c < HS; c++) o[c] = out[c] * inverse;
            lse[q0 + i] = s->max[i] + (real)log(s->sum[i]);  // log of the sum of exp(score)
        }
    }
}
// Where one head of one sequence lies, for the backward pass: rows ld (q, k, v) or C (out) apart.
typedef struct head_view {
    const real *q, *k, *v, *out, *dout, *lse;
    real *dq, *dk, *dv;
} head_view;

static head_view view_head(const model *m, const activations *a, int b, int h, int T) {
    const size_t row = (size_t)b * (size_t)T, head = (size_t)h * (size_t)m->HS;
    const size_t C = (size_t)m->C, in_qkv = row * 3 * C + head, in_out = row * C + head;
    head_view w;
    w.q = a->qkv + in_qkv;
    w.k = w.q + C;
    w.v = w.k + C;
    w.out = a->att + in_out;
    w.dout = m->datt + in_out;
    w.lse = a->lse + ((size_t)b * (size_t)m->NH + (size_t)h) * (size_t)T;
    w.dq = m->dqkv + in_qkv;
    w.dk = w.dq + C;
    w.dv = w.dk + C;
    return w;
}

// For queries q0 ...: dot[i] = dout . out. Zeroes their rows of dk and dv, to which this strip and
// later ones add.
static void begin_strip_backward(const model *m, const head_view *w, real *dot, int q0,
                                 int queries) {
    const size_t C = (size_t)m->C, ld = 3 * C;
    for (int i = 0; i < queries; i++) {
        const size_t t = (size_t)(q0 + i);
        const real *o = w->out + t * C, *d = w->dout + t * C;
        real *dk = w->dk + t * ld, *dv = w->dv + t * ld, sum = 0;
        SIMD_SUM(sum)
        for (int c = 0; c < m->HS; c++) sum += o[c] * d[c];
        dot[i] = sum;
        for (int c = 0; c < m->HS; c++) {
            dk[c] = 0;
            dv[c] = 0;
        }
    }
}

// Backward: datt -> dqkv. Scores are computed again. With weights p of softmax,
//     out_i = sum over keys of p_ij v_j,  p_ij = exp(score_ij - lse_i),  score_ij = scale q_i . k_j
// the gradients are
//     dv_j     = sum over queries of p_ij dout_i
//     dp_ij    = dout_i . v_j
//     dscore   = p (dp - sum over keys of p dp), and that sum is dout_i . out_i, known beforehand
//     dq_i     = scale sum over keys of dscore_ij k_j
//     dk_j     = scale sum over queries of dscore_ij q_i
static void attend_backward(const model *m, const activations *a, scratch *s, int b, int h, int T) {
    const int C = m->C, HS = m->HS, ld = 3 * C, strip = strip_size(T);
    const head_view w = view_head(m, a, b, h, T);
    const real scale = 1 / (real)sqrt((real)HS);
    real *dot = s->sum, *p = s->scores, *ds = s->dscores;
    gemm_context *g = &s->gemm;
    for (int q0 = 0; q0 < T; q0 += strip) {
        const int queries = min_int(strip, T - q0);
        const real *dout = w.dout + (size_t)q0 * (size_t)C, *lse = w.lse + q0;
        begin_strip_backward(m, &w, dot, q0, queries);
        for (int k0 = 0; k0 < q0 + queries; k0 += KEYS) {
            const int keys = min_int(KEYS, q0 + queries - k0);
            const size_t at_k = (size_t)k0 * (size_t)ld, at_q = (size_t)q0 * (size_t)ld;
            const real *q = w.q + at_q, *k = w.k + at_k, *v = w.v + at_k;
            real *dq = w.dq + at_q, *dk = w.dk + at_k, *dv = w.dv + at_k;
            masked_scores(m, s, w.q, q0, queries, k0, keys);
            real_product(g, 0, 1, keys, queries, HS, 1, v, ld, dout, C, 0, ds, STRIP);  // dp
            for (int j = 0; j < keys; j++)
                for (int i = 0; i < queries; i++) {
                    const real weight = real_exp_negative(p[j * STRIP + i] - lse[i]);
                    p[j * STRIP + i] = weight;
                    ds[j * STRIP + i] = weight * (ds[j * STRIP + i] - dot[i]);
                }
            real_product(g, 0, 0, keys, HS, queries, 1, p, STRIP, dout, C, 1, dv, ld);
            real_product(g, 0, 0, keys, HS, queries, scale, ds, STRIP, q, ld, 1, dk, ld);
            real_product(g, 1, 0, queries, HS, keys, scale, ds, STRIP, k, ld, k0 > 0, dq, ld);
        }
    }
}

static scratch *my_scratch(const model *m) {
#ifdef _OPENMP
    return &m->scratch[omp_get_thread_num()];
#else
    return m->scratch;
#endif
}

// All heads of all sequences.
static void attention(const model *m, const activations *a, int B, int T, int from) {
    PARALLEL_FOR
    for (int i = 0; i < B * m->NH; i++)
        attend(m, a, my_scratch(m), i / m->NH, i % m->NH, T, from);
}
// Backward. Then dqkv_b += sum over rows of dqkv: per sequence first, while the rows of a head are
// in the cache.
static void attention_backward(const model *m, const activations *a, real *dqkv_b, int B, int T) {
    const size_t ld = 3 * (size_t)m->C;
    PARALLEL_FOR
    for (int i = 0; i < B * m->NH; i++) {
        const int b = i / m->NH, h = i % m->NH;
        attend_backward(m, a, my_scratch(m), b, h, T);
        for (int part = 0; part < 3; part++) {
            const size_t at = (size_t)part * (size_t)m->C + (size_t)h * (size_t)m->HS;
            const real *d = m->dqkv + (size_t)b * (size_t)T * ld + at;
            real *sum = m->partial + (size_t)b * ld + at;
            for (int c = 0; c < m->HS; c++) sum[c] = 0;
            for (int t = 0; t < T; t++)
                for (int c = 0; c < m->HS; c++) sum[c] += d[(size_t)t * ld + (size_t)c];
        }
    }
    real_sum_blocks(dqkv_b, m->partial, B, ld, 3 * m->C);
}

// Softmax cross-entropy of rows of logits: the loss of each row, and whether its target has the
// largest logit. scale != 0: the logits become the gradient of scale times the loss, in place.
static void cross_entropy(model *m, const int *target, int rows, real scale) {
    const int V = m->V;
    PARALLEL_FOR
    for (int r = 0; r < rows; r++) {
        real *x = m->logits + (size_t)r * (size_t)V, sum = 0;
        const real wanted = x[target[r]], largest = real_largest(x, V);
        m->row_hit[r] = wanted >= largest;
        if (scale == 0) {
            SIMD_SUM(sum)
            for (int v = 0; v < V; v++) sum += real_exp_negative(x[v] - largest);
        } else {
            SIMD_SUM(sum)
            for (int v = 0; v < V; v++) {
                const real e = real_exp_negative(x[v] - largest);
                x[v] = e;
                sum += e;
            }
            // d loss / d x_v = softmax_v - (v is the target), with softmax_v = e_v / sum.
            const real factor = scale / sum;
            for (int v = 0; v < V; v++) x[v] *= factor;
            x[target[r]] -= scale;
        }
        // loss = log(sum over v of exp(x_v)) - x_target, with the largest taken out of the sum.
        m->row_loss[r] = log((double)sum) + ((double)largest - (double)wanted);
    }
}

// ------------------------------------------------------------------------------ forward, backward
// A block computes
//     mid    = x + W_out attention(LayerNorm(x)) + b_out
//     next x = mid + W_proj relu(W_fc LayerNorm(mid) + b_fc) + b_proj
// A product leaves W_... alone in `mid` or in the next layer's `x`. The LayerNorm that reads the
// stream next adds the bias and the earlier stream in the same pass over the rows
// (residual_layernorm). So before_attention finishes x of a layer, after_attention finishes mid,
// and compute_logits finishes x after the last layer.

// The bias that goes into x of layer l: of the layer before (dw: its gradient). NULL for the first.
static real *bias_into(const weights *w, int l) { return l > 0 ? w->block[l - 1].proj_b : NULL; }

// Layer l up to queries, keys and values, for some rows. Finishes x, unless it is finished.
static void before_attention(model *m, int l, int first, int rows, int finished) {
    const activations *a = &m->a[l];
    const block *w = &m->w.block[l];
    const int C = m->C;
    const size_t at = (size_t)first * (size_t)C;
    const real *before = l > 0 && !finished ? m->a[l - 1].mid + at : NULL;
    residual_layernorm(a->ln1 + at, a->mean1 + first, a->rstd1 + first, a->x + at, before,
                       bias_into(&m->w, l), w->ln1_w, w->ln1_b, rows, C);
    linear(m, a->qkv + 3 * at, a->ln1 + at, w->qkv_w, rows, C, 3 * C);
    add_bias(a->qkv + 3 * at, w->qkv_b, rows, 3 * C);
}

// Layer l after attention, up to the product that begins the next layer's x. again = 1: without
// that product, where the backward pass computes activations again.
static void after_attention(model *m, int l, int first, int rows, int again) {
    const activations *a = &m->a[l];
    const block *w = &m->w.block[l];
    const int C = m->C;
    const size_t at = (size_t)first * (size_t)C;
    linear(m, a->mid + at, a->att + at, w->out_w, rows, C, C);
    residual_layernorm(a->ln2 + at, a->mean2 + first, a->rstd2 + first, a->mid + at, a->x + at,
                       w->out_b, w->ln2_w, w->ln2_b, rows, C);
    linear(m, a->fc + 4 * at, a->ln2 + at, w->fc_w, rows, C, 4 * C);
    add_bias_relu(a->fc + 4 * at, w->fc_b, rows, 4 * C);
    if (!again) linear(m, m->a[l + 1].x + at, a->fc + 4 * at, w->proj_w, rows, 4 * C, C);
}

// Forward through all layers for m->tokens, B sequences of T. from > 0 (with B = 1, without
// recompute): computes positions from .. T - 1 only. Those before are as an earlier call left them.
static void forward(model *m, int B, int T, int from) {
    const int N = B * T;
    embed(m, T, from, N - from);
    for (int l = 0; l <= m->L; l++) {
        if (l > 0) attention(m, &m->a[l - 1], B, T, from);
        for (int first = from; first < N; first += m->chunk) {
            const int rows = min_int(m->chunk, N - first);
            if (l > 0) after_attention(m, l - 1, first, rows, 0);
            if (l < m->L) before_attention(m, l, first, rows, 0);
        }
    }
}

// After forward: the logits of rows first .. first + rows - 1 (at most head_rows), in m->logits.
// Finishes the residual stream.
static void compute_logits(model *m, int first, int rows) {
    const size_t at = (size_t)first * (size_t)m->C;
    residual_layernorm(m->lnf, m->meanf, m->rstdf, m->a[m->L].x + at, m->a[m->L - 1].mid + at,
                       bias_into(&m->w, m->L), m->w.lnf_w, m->w.lnf_b, rows, m->C);
    linear(m, m->logits, m->lnf, m->w.head, rows, m->C, m->V);
}

// After compute_logits, with d logits in their place: the gradient of the head's parameters, and
// in dx that of the stream that leaves the last layer. fresh: dw.head is replaced, not added to.
static void head_backward(model *m, int first, int rows, int fresh) {
    const size_t at = (size_t)first * (size_t)m->C;
    linear_backward(m, m->dln, m->dw.head, m->logits, m->lnf, m->w.head, rows, m->C, m->V, fresh);
    residual_layernorm_backward(m, m->dx + at, 0, m->dw.lnf_w, m->dw.lnf_b, bias_into(&m->dw, m->L),
                                m->dln, m->a[m->L].x + at, m->meanf, m->rstdf, m->w.lnf_w, rows);
}

// After forward: the summed loss of the first N rows against m->targets; adds the hits to *hits.
// scale != 0: also the gradient of scale times the loss, for the head's parameters and (in dx) for
// the stream that leaves the last layer. Goes chunk by chunk: logits for all rows never exist.
static double loss_forward_backward(model *m, int N, double scale, double *hits) {
    double loss = 0;
    for (int first = 0; first < N; first += m->head_rows) {
        const int rows = min_int(m->head_rows, N - first), fresh = !m->accumulate && first == 0;
        compute_logits(m, first, rows);
        cross_entropy(m, m->targets + first, rows, (real)scale);
        for (int r = 0; r < rows; r++) {
            loss += m->row_loss[r];
            *hits += m->row_hit[r];
        }
        if (scale != 0) head_backward(m, first, rows, fresh);
    }
    return loss;
}

// --recompute: the activations of layer l again, from the stream that enters it.
static void forward_again(model *m, int l, int B, int T) {
    const int N = B * T;
    for (int first = 0; first < N; first += m->chunk)
        before_attention(m, l, first, min_int(m->chunk, N - first), 1);
    attention(m, &m->a[l], B, T, 0);
    for (int first = 0; first < N; first += m->chunk)
        after_attention(m, l, first, min_int(m->chunk, N - first), 1);
}

// The reverse of after_attention: dx of the stream that leaves layer l becomes that of mid; datt.
static void after_attention_backward(model *m, int l, int first, int rows, int fresh) {
    const activations *a = &m->a[l];
    const block *w = &m->w.block[l], *d = &m->dw.block[l];
    const int C = m->C;
    const size_t at = (size_t)first * (size_t)C;
    real *dx = m->dx + at, *fc = a->fc + 4 * at;
    linear_backward(m, m->dfc, d->proj_w, dx, fc, w->proj_w, rows, 4 * C, C, fresh);
    add_bias_relu_backward(m, m->dfc, d->fc_b, fc, rows, 4 * C);
    linear_backward(m, m->dln, d->fc_w, m->dfc, a->ln2 + at, w->fc_w, rows, C, 4 * C, fresh);
    residual_layernorm_backward(m, dx, 1, d->ln2_w, d->ln2_b, d->out_b, m->dln, a->mid + at,
                                a->mean2 + first, a->rstd2 + first, w->ln2_w, rows);
    linear_backward(m, m->datt + at, d->out_w, dx, a->att + at, w->out_w, rows, C, C, fresh);
}

// The reverse of before_attention: dqkv, and dx of mid, become dx of the stream that enters.
static void before_attention_backward(model *m, int l, int first, int rows, int fresh) {
    const activations *a = &m->a[l];
    const block *w = &m->w.block[l], *d = &m->dw.block[l];
    const int C = m->C;
    const size_t at = (size_t)first * (size_t)C;
    real *dqkv = m->dqkv + 3 * at;
    linear_backward(m, m->dln, d->qkv_w, dqkv, a->ln1 + at, w->qkv_w, rows, C, 3 * C, fresh);
    residual_layernorm_backward(m, m->dx + at, 1, d->ln1_w, d->ln1_b, bias_into(&m->dw, l), m->dln,
                                a->x + at, a->mean1 + first, a->rstd1 + first, w->ln1_w, rows);
}

// Backward through all layers, after loss_forward_backward: from dx to the gradients of weights.
static void backward(model *m, int B, int T) {
    const int N = B * T;
    for (int l = m->L - 1; l >= 0; l--) {
        if (m->recompute && l < m->L - 1) forward_again(m, l, B, T);  // the last layer's are there
        for (int first = 0; first < N; first += m->chunk) {
            const int fresh = !m->accumulate && first == 0;
            after_attention_backward(m, l, first, min_int(m->chunk, N - first), fresh);
        }
        attention_backward(m, &m->a[l], m->dw.block[l].qkv_b, B, T);
        for (int first = 0; first < N; first += m->chunk) {
            const int fresh = !m->accumulate && first == 0;
            before_attention_backward(m, l, first, min_int(m->chunk, N - first), fresh);
        }
    }
    embed_backward(m, B, T);
}

// Zeroes the gradients that a backward pass only adds to: vectors, position embedding, and token
// embedding unless the head's product begins it. The first product of a step replaces the others.
static void zero_gradients(model *m) {
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        const size_t n = (size_t)t->rows * (size_t)t->cols;
        const int added_to = t->n_dims == 1 || i == 1 || (i == 0 && !m->tied);
        if (added_to) memset(m->grads + t->offset, 0, n * sizeof(real));
    }
    m->accumulate = 0;
}

// Floating-point operations of one forward and backward pass over B sequences of T, for GFLOP/s:
// two per multiplication in the products of weights, scores and values. Backward counts twice
// forward. What causality saves and what recomputing adds is not counted.
static double step_flops(const model *m, int B, int T) {
    const double L = m->L, C = m->C;
    return 6.0 * B * T * (L * 12 * C * C + (double)m->V * C + L * C * (T + 1));
}

// -------------------------------------------------------------------------------------- optimizer

// Euclidean norm of an array of the parameters' size; the sums have a fixed order.
static double array_norm(model *m, const real *v) {
    const size_t n = m->net.n_params, share = 4096;
    const int blocks = ceil_div((long long)n, (long long)share);
    double sum = 0;
    PARALLEL_FOR
    for (int k = 0; k < blocks; k++) {
        const size_t end = ((size_t)k + 1) * share < n ? ((size_t)k + 1) * share : n;
        double part = 0;
        SIMD_SUM(part)
        for (size_t i = (size_t)k * share; i < end; i++) part += (double)v[i] * (double)v[i];
        m->square_sums[k] = part;
    }
    for (int k = 0; k < blocks; k++) sum += m->square_sums[k];
    return sqrt(sum);
}

// AdamW as torch.optim.AdamW, with weight decay on matrices only. First scales the gradient to norm
// `clip` where it is longer (0: never). step counts from 0.
static void update(model *m, const config *c, double lr, int64_t step) {
    const double norm = array_norm(m, m->grads), t = (double)step + 1;
    const double clipped = c->clip > 0 && norm > c->clip ? c->clip / norm : 1;
    const real factor = (real)clipped, eps = (real)1e-8;
    const real beta1 = (real)c->beta1, beta2 = (real)c->beta2;
    // Moments start at zero and so are too small by 1 - beta^t. These two factors correct for it.
    const real step_size = (real)(lr / (1 - pow(c->beta1, t)));
    const real root = (real)(1 / sqrt(1 - pow(c->beta2, t)));
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *tensor = &m->net.tensors[i];
        const real keep = (real)(tensor->n_dims > 1 ? 1 - lr * c->train.weight_decay : 1);
        real *w = m->params + tensor->offset;
        real *m1 = m->moment1 + tensor->offset, *m2 = m->moment2 + tensor->offset;
        const real *grad = m->grads + tensor->offset;
        const int64_t n = (int64_t)tensor->rows * tensor->cols;
        PARALLEL_FOR
        for (int64_t k = 0; k < n; k++) {
            const real g = grad[k] * factor;
            m1[k] = beta1 * m1[k] + (1 - beta1) * g;      // mean of the gradient
            m2[k] = beta2 * m2[k] + (1 - beta2) * g * g;  // mean of its square
            w[k] = w[k] * keep - step_size * m1[k] / ((real)sqrt(m2[k]) * root + eps);
        }
    }
}

// --------------------------------------------------------------------------------- initialisation

// Standard deviation of tensor i, as GPT-2: 0.02, and 0.02 / sqrt(2L) for weights that write into
// the residual stream. Unlike GPT-2, the token embedding and the head have at most 0.4 / sqrt(C):
// then logits have at most 0.4, and the first loss is ln V whatever the width.
static double initial_deviation(const model *m, int i) {
    const char *name = m->net.tensors[i].name;
    if (strstr(name, "c_proj.weight")) return 0.02 / sqrt(2.0 * m->L);
    if (i == 0 || strstr(name, "lm_head")) return fmin(0.02, 0.4 / sqrt((double)m->C));
    return 0.02;
}

// Weights are normal, biases 0, gains 1. init_scale multiplies the weights. Counter-based random
// numbers: the same for every number of threads.
static void model_init(model *m, const config *c) {
    const uint64_t seed = (uint64_t)c->train.seed;
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        const size_t n = (size_t)t->rows * (size_t)t->cols;
        const float deviation = (float)(c->train.init_scale * initial_deviation(m, i));
        real *p = m->params + t->offset;
        if (t->role != RESCALE_WEIGHT) {
            for (size_t k = 0; k < n; k++) p[k] = t->role == RESCALE_GAIN;
            continue;
        }
        float *values = (float *)train_alloc(NULL, n, sizeof(float));
        rng_fill_normal(values, n, 0, deviation, seed, rng_stream(RNG_PARAMETERS, (uint32_t)i));
        for (size_t k = 0; k < n; k++) p[k] = (real)values[k];
        free(values);
    }
}

// -------------------------------------------------------------------------------------- rescaling
// --rescale-kernel data and fisher measure diag(G) on training sequences x. With logits f_k of
// every position and token,
//     g_i = mean over x of sum over k of (d f_k(x) / d theta_i)^2.
// One backward pass of sum_k s_k f_k with random signs s_k = +-1 does for a sequence: the square of
// its gradient has that sum as its expectation. fisher: the gradient of the cross-entropy at tokens
// drawn from the model's own probabilities. At power 1 the absolute value replaces the square.

// signs[i] = the sign of element first + i of a stream, as in common/kernel.cuh; four at once.
static void draw_signs(real *signs, int n, uint64_t first, uint64_t seed, uint64_t stream) {
    uint32_t words[4];
    for (int i = 0; i < n; i++) {
        const uint64_t at = first + (uint64_t)i;
        if (i == 0 || at % 4 == 0) rng_philox(seed, stream, at / 4, words);
        signs[i] = (real)rng_sign(rng_word_of(words, (uint32_t)(at % 4)));
    }
}

// The rows of logits become signs. fisher: the gradient of the cross-entropy at drawn tokens.
// first: number of the first of them among the positions of all samples.
static void draw_output_gradient(model *m, const train_options *o, uint64_t stream, uint64_t first,
                                 int rows) {
    const uint64_t seed = (uint64_t)o->seed, V = (uint64_t)m->V;
    if (o->rescale_kernel != KERNEL_FISHER) {
        PARALLEL_FOR
        for (int r = 0; r < rows; r++)
            draw_signs(m->logits + (uint64_t)r * V, m->V, (first + (uint64_t)r) * V, seed, stream);
        return;
    }
    for (int r = 0; r < rows; r++) {
        const double uniform = (double)rng_uniform_at(seed, stream, first + (uint64_t)r);
        const real *logits = m->logits + (uint64_t)r * V;
        m->targets[r] = sample_draw(logits, m->V, 1, 0, uniform, m->drawn);
    }
    cross_entropy(m, m->targets, rows, 1);
}

// m->grads = the gradient of sum_k s_k f_k for the sequence in m->tokens, which is sample i.
static void kernel_gradient(model *m, const train_options *o, uint64_t stream, int i) {
    const uint64_t row = (uint64_t)i * (uint64_t)m->T;
    zero_gradients(m);
    forward(m, 1, m->T, 0);
    for (int first = 0; first < m->T; first += m->head_rows) {
        const int rows = min_int(m->head_rows, m->T - first);
        compute_logits(m, first, rows);
        draw_output_gradient(m, o, stream, row + (uint64_t)first, rows);
        head_backward(m, first, rows, first == 0);
    }
    backward(m, 1, m->T);
}

// diag_g += scale |gradient|^power.
static void kernel_add(model *m, real scale, int power) {
    const int64_t n = (int64_t)m->net.n_params;
    PARALLEL_FOR
    for (int64_t k = 0; k < n; k++) {
        const real g = m->grads[k];
        m->diag_g[k] += scale * (power == 1 ? (real)fabs(g) : g * g);
    }
}

// Rescales the sets that were asked for, parameters and optimizer state, in place. Returns 0, or -1
// with report->message set. Each set's own report is in m->set_report.
static int rescale_model(model *m, const config *c, rescale_report *report) {
    gpt_rescale s;
    s.options = &c->train;
    s.sets = c->sets;
    s.net = &m->net;
    s.params = m->params;
    s.moment1 = m->moment1;
    s.moment2 = m->moment2;
    s.g = m->diag_g;
    s.layers = m->L;
    s.channels = m->C;
    s.vocabulary = m->V;
    s.tied = m->tied;
    s.set_reports = m->set_report;
    return gpt_rescale_run(&s, report);
}

// Logits of a fixed random sequence, as floats in fresh memory; *n of them.
static float *probe_outputs(model *m, size_t *n) {
    const int T = min_int(m->T, min_int(64, m->head_rows));
    *n = (size_t)T * (size_t)m->V;
    float *out = (float *)train_alloc(NULL, *n, sizeof *out);
    for (int t = 0; t < T; t++) {
        const uint32_t word = rng_word_at(1, rng_stream(RNG_TEST, 0), (uint64_t)t);
        m->tokens[t] = (int)rng_below(word, (uint32_t)m->V);
    }
    forward(m, 1, T, 0);
    compute_logits(m, 0, T);
    for (size_t i = 0; i < *n; i++) out[i] = (float)m->logits[i];
    return out;
}

// rescale_model, and how far it moved the logits: largest difference relative to the largest logit.
static int rescale_and_measure(model *m, const config *c, rescale_report *report, double *moved) {
    size_t n;
    float *before = probe_outputs(m, &n);
    const int status = rescale_model(m, c, report);
    float *after = probe_outputs(m, &n);
    *moved = train_relative_difference(before, after, n);
    free(before);
    free(after);
    return status;
}

// --------------------------------------------------------------------------------------- training

typedef struct trainer {
    train_run run;
    const config *c;
    model m;
    corpus data;
    int64_t windows;             // of an epoch: disjoint, of T tokens each
    float step_loss[TRAIN_LOSS_RING];
} trainer;

// Copies the window that starts at `at` into sequence b of the batch.
static void load_window(model *m, const uint16_t *tokens, size_t at, int b) {
    for (int t = 0; t < m->T; t++) {
        m->tokens[b * m->T + t] = tokens[at + (size_t)t];
        m->targets[b * m->T + t] = tokens[at + (size_t)t + 1];
    }
}

// Where window i of an epoch starts.
static size_t window_start(const trainer *t, int64_t epoch, int64_t i) {
    return corpus_window_start(&t->data, t->m.T, t->windows, &t->c->train, epoch, i);
}

// Loads up to max_B sequences of the step to come, from place `done` of its batch of `rows` on.
// Returns how many.
static int next_micro_batch(trainer *t, int done, int rows) {
    model *m = &t->m;
    int64_t epoch;
    int first;
    train_batch(&t->run, &epoch, &first);
    const int B = min_int(m->max_B, rows - done);
    for (int b = 0; b < B; b++) {
        const size_t at = window_start(t, epoch, first + done + b);
        load_window(m, t->data.train, at, b);
    }
    return B;
}

// Mean loss and accuracy over disjoint windows: all of the validation tokens, or as many of the
// training tokens, spread evenly.
static void evaluate(void *self, int test, double *loss, double *accuracy) {
    trainer *t = (trainer *)self;
    model *m = &t->m;
    const char *what = test ? "evaluating on validation data" : "evaluating on training data";
    const uint16_t *tokens = test ? t->data.val : t->data.train;
    const size_t T = (size_t)m->T, in_val = (t->data.n_val - 1) / T;
    const size_t in_train = (t->data.n_train - 1) / T;
    const size_t windows = test || in_val < in_train ? in_val : in_train;
    double sum = 0, hits = 0;
    for (size_t first = 0; first < windows; first += (size_t)m->max_B) {
        const int B = windows - first < (size_t)m->max_B ? (int)(windows - first) : m->max_B;
        if (train_pause(&t->run, what, (int64_t)first, (int64_t)windows)) return;
        for (int b = 0; b < B; b++) {
            const size_t i = first + (size_t)b, window = test ? i : i * in_train / windows;
            load_window(m, tokens, window * T, b);
        }
        forward(m, B, m->T, 0);
        sum += loss_forward_backward(m, B * m->T, 0, &hits);
    }
    *loss = sum / (double)(windows * T);
    *accuracy = hits / (double)(windows * T);
}

// Measures m.diag_g on windows of the training data, the first in an order of their own, by seed
// and step. Overwrites m.grads.
static void measure_diag_g(trainer *t) {
    model *m = &t->m;
    const train_options *o = &t->c->train;
    const uint64_t stream = rng_stream(RNG_KERNEL, (uint32_t)t->run.step);
    const size_t T = (size_t)m->T, windows = (t->data.n_train - 1) / T;
    const size_t asked = (size_t)o->rescale_samples, n = asked < windows ? asked : windows;
    const uint64_t key = rng_permute_key((uint64_t)o->seed, (uint64_t)(-1 - t->run.step));
    memset(m->diag_g, 0, m->net.n_params * sizeof(real));
    for (size_t i = 0; i < n; i++) {
        const uint32_t window = rng_permute((uint32_t)i, (uint32_t)windows, key);
        load_window(m, t->data.train, window * T, 0);
        kernel_gradient(m, o, stream, (int)i);
        kernel_add(m, 1 / (real)n, train_rescale_power(o));
    }
}

// What the last rescaling did to each set. With a measured diag(G) all sets have one objective.
static void show_sets(trainer *t) {
    for (int k = 0; k < N_SETS; k++) {
        const rescale_report *r = &t->m.set_report[k];
        char objective[128] = "";
        if (!(t->c->sets >> k & 1)) continue;
        if (!t->m.diag_g)
            snprintf(objective, sizeof objective,
                     "objective %.6g -> %.6g, max gradient %.1e (optimum: below %.1e), ",
                     r->objective_before, r->objective_after, r->grad_inf, r->grad_tolerance);
        log_progress_line(&t->run.progress, "set %s: %smax |log lambda| %.2f", set_names[k],
                          objective, r->max_abs_log_lambda);
    }
}

// moved = NULL: only rescales; else measures how far the logits moved and shows each set's report.
static int rescale_now(void *self, rescale_report *report, double *moved) {
    trainer *t = (trainer *)self;
    const double start = log_seconds();
    if (t->m.diag_g) measure_diag_g(t);
    const double seconds = log_seconds() - start;
    const int status = moved ? rescale_and_measure(&t->m, t->c, report, moved)
                             : rescale_model(&t->m, t->c, report);
    report->seconds_diag_g += seconds;
    if (!status && moved) show_sets(t);
    return status;
}
static float *outputs(void *self, size_t *n) { return probe_outputs(&((trainer *)self)->m, n); }
static double norm_of(void *self, const float *array) {
    return array_norm(&((trainer *)self)->m, (const real *)(const void *)array);
}

// The training loop. A step makes as many passes over micro-batches as its batch needs, then one
// update. Returns the exit status.
static int train_loop(trainer *t) {
    model *m = &t->m;
    train_run *r = &t->run;
    train_begin(r);                       // --resume, or --load and rescale
    while (train_next(r)) {               // logs, evaluates, checkpoints, rescales when due
        const int rows = train_rows(r);
        const double tokens = (double)rows * m->T;
        double loss = 0, hits = 0;
        zero_gradients(m);
        for (int done = 0; done < rows; done += m->max_B) {
            if (done > 0 && train_pause(r, "passes of this step", done, rows)) break;
            const int B = next_micro_batch(t, done, rows);
            forward(m, B, m->T, 0);
            loss += loss_forward_backward(m, B * m->T, 1 / tokens, &hits);
            backward(m, B, m->T);
            m->accumulate = 1;
        }
        if (r->stopped) continue;         // interrupted between two passes: the step does not count
        t->step_loss[train_loss_slot(r)] = (float)(loss / tokens);
        update(m, t->c, train_rate(r), r->step);
    }
    return train_end(r);
}

// --------------------------------------------------------------------------------------- sampling

// Continues text[n] up to text[end], or until the run is interrupted. Returns where the text ends.
// The context is text[start ...], at first the last T tokens. Positions whose keys and values are
// known are not computed again. When the context is full, its later half starts the next.
static int continue_text(trainer *t, int *text, int n, int end) {
    model *m = &t->m;
    const config *c = t->c;
    const int first = n;
    const uint64_t seed = (uint64_t)c->train.seed, stream = rng_stream(RNG_SAMPLING, 0);
    real *work = (real *)train_alloc(NULL, (size_t)m->V, sizeof *work);
    int start = max_int(0, n - m->T), known = 0;
    for (; n < end && !train_pause(&t->run, "sampling", n - first, end - first); n++) {
        if (n - start > m->T) {
            start = n - max_int(1, m->T / 2);
            known = 0;
        }
        if (m->recompute) known = 0;  // one layer's activations are there, not all
        const int T = n - start;
        for (int i = known; i < T; i++) m->tokens[i] = text[start + i];
        forward(m, 1, T, known);
        compute_logits(m, T - 1, 1);
        const double uniform = (double)rng_uniform_at(seed, stream, (uint64_t)n);
        text[n] = sample_draw(m->logits, m->V, c->temperature, c->top_k, uniform, work);
        known = T;
    }
    free(work);
    return n;
}

// A token as text: a byte as it is, but ? for most control characters; other tokens as a number.
static void print_token(int token, int bytes) {
    const int unsafe = (token < 32 && token != '\n' && token != '\t') || token == 127;
    if (!bytes) printf("%d ", token);
    else putchar(unsafe ? '?' : token);
}

// Prints the prompt and `sample` more tokens. Returns 0, or the exit status of an interruption,
// which leaves the sample shorter.
static int sample_text(trainer *t) {
    const config *c = t->c;
    const int prompt = (int)strlen(c->prompt);
    const int first = prompt == 0;  // the token that stands for an empty prompt is not printed
    const int n = first + prompt, end = n + c->sample;
    int *text = (int *)train_alloc(NULL, (size_t)end, sizeof *text);
    text[0] = t->data.start;
    for (int i = 0; i < prompt; i++) text[i] = (unsigned char)c->prompt[i];
    const int reached = continue_text(t, text, n, end);
    log_progress_clear(&t->run.progress);
    for (int i = first; i < reached; i++) print_token(text[i], t->data.bytes);
    putchar('\n');
    free(text);
    if (reached == end) return 0;
    char message[128];
    snprintf(message, sizeof message, "interrupted after %d of %d tokens of the sample",
             reached - n, end - n);
    train_fail(&t->run, message);
    return log_interrupt_status();
}

// ----------------------------------------------------------------------------------- command line

// The sets named in a list like mlp,vo,qk,ln; exits with a usage error on another name.
static int parse_sets(const char *list) {
    int sets = 0;
    for (const char *p = list;; p++) {  // at the start of a name
        const size_t n = strcspn(p, ",");
        int k = 0;
        while (k < N_SETS && (strlen(set_names[k]) != n || strncmp(p, set_names[k], n))) k++;
        if (k == N_SETS)
            cli_usage_error("train_gpt_style",
                            "--rescale-sets: expected a list of mlp, vo, qk, ln, got '%s'", list);
        sets |= 1 << k;
        p += n;
        if (!*p) return sets;
    }
}

static config default_config(void) {
    config c;
    memset(&c, 0, sizeof c);
    c.train = train_default_options();
    c.train.fixed = "layers,heads,channels,context,vocabulary,untied";
    c.train.data = "shakespeare";
    c.train.optimizer = OPTIMIZER_ADAMW;
    c.train.batch_size = 32;
    c.train.weight_decay = 0.1;
    c.train.lr = presets[MODEL_TINY].lr;
    c.train.schedule = SCHEDULE_COSINE;
    c.train.warmup = 100;
    c.train.epochs = 10;
    c.clip = 1;
    c.beta1 = 0.9;
    c.beta2 = 0.999;
    // With AdamW it gained nothing where we measured it: dev/paper/shakespeare.sh.
    c.train.rescale = RESCALE_OFF;
    c.train.rescale_samples = 32;  // about a step of the default batch, in time
    c.rescale_sets = "mlp,vo,qk,ln";
    c.temperature = 0.8;
    c.prompt = "";
    return c;
}

// Fills sizes and rate from the preset, and checks what depends on two options; exits on a mistake.
static void complete_config(config *c, const cli_option *options, int n) {
    const char *program = "train_gpt_style";
    static const char *const of_sampling[] = {"prompt", "temperature", "top-k"};
    const struct preset *p = &presets[c->model];
    if (!c->layers) c->layers = p->layers;
    if (!c->heads) c->heads = p->heads;
    if (!c->channels) c->channels = p->channels;
    if (!c->context) c->context = p->context;
    if (!cli_given(options, n, "lr")) c->train.lr = p->lr;
    if (c->channels % c->heads)
        cli_usage_error(program, "--heads: %d does not divide the %d channels", c->heads,
                        c->channels);
    c->sets = parse_sets(c->rescale_sets);
    for (int i = 0; i < 3 && !c->sample && !c->train.quiet; i++) {
        if (cli_given(options, n, of_sampling[i]) != CLI_TYPED) continue;
        message_print(program, "warning: --%s is unused without --sample", of_sampling[i]);
    }
}

// Fills the configuration from the command line; exits on --help, --version and usage errors.
static void parse_command_line(config *c, int argc, char **argv) {
    train_options *o = &c->train;
    cli_option options[] = {
        TRAIN_DATA_ROWS(o, "shakespeare, grammar (built in), a text file, or a token shard (.bin)"),
        CLI_STRING("val-data", &c->val_data, "FILE",
                   "validation data of the same kind (default: the last tenth of --data)"),
        CLI_INT("vocabulary", &c->vocabulary, "N", 0, 65536,
                "tokens (0: 256 for text, 50257 for a shard)"),
        CLI_GROUP("Model"),
        CLI_CHOICE("model", &c->model, "tiny|small|124M",
                   "preset of the four sizes: 4,4,128,128 6,6,384,256 12,12,768,1024"),
        CLI_INT("layers", &c->layers, "N", 0, MAX_LAYERS, "transformer blocks (0: the preset's)"),
        CLI_INT("heads", &c->heads, "N", 0, 1024, "attention heads, a divisor of the channels"),
        CLI_INT("channels", &c->channels, "N", 0, 65536, "width of the residual stream"),
        CLI_INT("context", &c->context, "N", 0, 1 << 20, "positions"),
        CLI_FLAG("untied", &c->untied, "a head with weights of its own"),
        TRAIN_INIT_SCALE_ROW(o),
        TRAIN_RESCALING_ROWS(o),
        CLI_STRING("rescale-sets", &c->rescale_sets, "LIST", "symmetries to rescale"),
        CLI_GROUP("Training"),
        CLI_DOUBLE("lr", &o->lr, "X", 0, CLI_NO_MAX, CLI_ABOVE_MIN,
                   "learning rate of AdamW (--model small: 1e-3, 124M: 6e-4)"),
        CLI_DOUBLE("beta1", &c->beta1, "X", 0, 1, CLI_BELOW_MAX, "decay of AdamW's first moment"),
        CLI_DOUBLE("beta2", &c->beta2, "X", 0, 1, CLI_BELOW_MAX, "decay of AdamW's second moment"),
        CLI_DOUBLE("weight-decay", &o->weight_decay, "X", 0, CLI_NO_MAX, 0,
                   "decoupled, on matrices only"),
        CLI_DOUBLE("clip", &c->clip, "X", 0, CLI_NO_MAX, 0,
                   "bound on the gradient's norm (0: none)"),
        CLI_CHOICE("schedule", &o->schedule, "constant|cosine|one-cycle",
                   "of the learning rate; cosine ends at zero; one-cycle is PyTorch's "
                   "OneCycleLR(max_lr=LR, cycle_momentum=False)"),
        CLI_INT("warmup", &o->warmup, "N", 0, INT_MAX, "steps of linear warm-up"),
        TRAIN_LENGTH_ROWS(o),
        TRAIN_SAMPLING_ROWS(o),
        CLI_INT("micro-batch", &c->micro_batch, "N", 0, INT_MAX,
                "samples per pass, gradients add up over a batch (0: all at once)"),
        CLI_FLAG("recompute", &c->recompute,
                 "keep one layer's activations and compute the others again: less memory"),
        TRAIN_OUTPUT_ROWS(o),
        CLI_GROUP("Sampling, after training"),
        CLI_INT("sample", &c->sample, "N", 0, 1 << 24, "print N tokens of text"),
        CLI_TEXT("prompt", &c->prompt, "TEXT",
                 "what it continues; of one beyond --context, its end"),
        CLI_DOUBLE("temperature", &c->temperature, "X", 0, CLI_NO_MAX, 0,
                   "of the softmax (0: always the likeliest)"),
        CLI_INT("top-k", &c->top_k, "N", 0, INT_MAX, "draw among the N likeliest tokens (0: all)"),
    };
    const int n = sizeof options / sizeof *options;
    const char *program = "train_gpt_style", *summary = "Trains a GPT-style transformer on a CPU.";
    train_parse(program, summary, VERSION, o, options, n, argc, argv);
    train_check_options(program, o, options, n);
    complete_config(c, options, n);
}

// Whether the data have tokens for the prompt. Returns 0, or -1 with a message.
static int check_prompt(const trainer *t, char *err, size_t size) {
    for (const char *p = t->c->prompt; *p; p++) {
        const int byte = (unsigned char)*p;
        if (!t->data.bytes) return log_error(err, size, "--prompt: the data are tokens, not text");
        if (byte >= t->c->vocabulary)
            return log_error(err, size, "--prompt: byte %d is beyond the vocabulary of %d", byte,
                             t->c->vocabulary);
    }
    return 0;
}

// Tells the run about the model and the data, for its loop, its log and its report.
static void describe_run(trainer *t) {
    train_run *r = &t->run;
    train_describe(&t->m.net, "heads", t->c->heads);
    r->data = corpus_fingerprint(&t->data);
    r->net = &t->m.net;
    r->step_loss = t->step_loss;
    r->backend = gemm_backend();
    r->unit = "tokens";
    r->units_per_sample = t->c->context;
    r->flops_per_sample = step_flops(&t->m, 1, t->m.T);
    r->test_name = "val";
    r->trainer = t;
    r->hooks.evaluate = evaluate;
    r->hooks.rescale = rescale_now;
    r->hooks.outputs = outputs;
    r->hooks.norm = norm_of;
}

static void show_run(trainer *t) {
    const model *m = &t->m;
    char device[256];
    device_describe(device, sizeof device);
    log_progress_line(&t->run.progress, "%s, %s", device, gemm_backend());
    log_progress_line(&t->run.progress, "%s: %zu training and %zu validation tokens; %d layers, "
                      "%d heads, %d channels, context %d, vocabulary %d, %lld parameters",
                      t->data.name, t->data.n_train, t->data.n_val, m->L, m->NH, m->C, m->T, m->V,
                      (long long)train_parameter_count(&m->net));
}

// Loads the data, builds and initialises the model, trains, saves, samples. Returns the exit
// status.
static int run(config *c) {
    static trainer t;
    char err[2 * LOG_PATH];
    memset(&t, 0, sizeof t);
    train_run *r = &t.run;
    t.c = c;
    train_run_init(r, "train_gpt_style", VERSION, &c->train);
    if (corpus_load(&t.data, &c->train, c->val_data, c->context, &c->vocabulary, err, sizeof err))
        return train_fail(r, err);
    if (check_prompt(&t, err, sizeof err)) return train_fail(r, err);
    const int64_t windows = ((int64_t)t.data.n_train - 1) / c->context;
    // A window fewer leaves room for the offset of an epoch.
    t.windows = windows > 1 && c->train.shuffle == SHUFFLE_EPOCH ? windows - 1 : windows;
    train_set_length(r, t.windows);
    const int at_once = c->micro_batch ? min_int(c->micro_batch, r->batch) : r->batch;
    if ((double)at_once * c->context > INT_MAX / 4)
        cli_usage_error("train_gpt_style", "--batch-size: too many tokens at once: split the batch "
                        "by --micro-batch");
    if (model_create(&t.m, c, at_once, 1, err, sizeof err)) return train_fail(r, err);
    describe_run(&t);
    show_run(&t);
    if (!c->train.resume) model_init(&t.m, c);
    int status = train_loop(&t);
    if (!status && c->sample) status = sample_text(&t);
    model_free(&t.m);
    corpus_free(&t.data);
    return status;
}

#ifdef TESTING  // tests and benchmarks include this file and bring their own main
#define main train_gpt_style_main
int train_gpt_style_main(int argc, char **argv);
#endif
int main(int argc, char **argv) {
    config c = default_config();
    parse_command_line(&c, argc, argv);
    log_signal_install();
    return run(&c);
}
#undef main
