// train_gpt_style.c -- trains a GPT-style transformer on a CPU; on request with its symmetries rescaled.
//
// What it trains: decoder-only language models with learned positions, pre-LayerNorm blocks, causal multi-head attention, ReLU MLPs
// of four times the width and a head that shares the token embedding's weights or has its own; on the bytes of any text file or on
// 16-bit token shards. What it does not: dropout, other activations, GPUs, several machines.
//
// Reads top to bottom: configuration, model, layers (each forward beside its backward), forward, backward, optimizer,
// initialisation, rescaling, data, sampling, training, command line. `train_gpt_style --help` lists the options.
//
// Letters: B sequences, T positions, N = B * T rows, C channels, NH heads of HS = C / NH channels, L layers, V tokens of the
// vocabulary. Matrices are row-major, weights [out][in] with the names of nanoGPT. d in front of a name: the gradient of it.
//
// How it is fast: every large product is gemm.h's; rows go through a layer in chunks, so that what happens between two products
// happens in the cache; attention works on strips of 64 queries and never stores a T x T matrix; logits exist for one chunk of rows
// at a time, and their gradient replaces them there. Every sum has a fixed order, whatever the number of threads.
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
#ifndef REAL
#define REAL float               // tests build the same file with double
#endif
typedef REAL real;
#define RESCALE_REAL REAL
#include "common/gemm.h"         // C = alpha op(A) op(B) + beta C
#include "common/rng.h"          // Philox: initial weights, order of the windows, sampling
#include "common/dataset.h"      // text files, token shards, the built-in grammar
#include "common/safetensors.h"  // weights and checkpoints
#include "common/cli.h"          // the option table
#include "common/log.h"          // progress line, log.csv, report.json, Ctrl-C
#include "rescale.cuh"           // PathCond and ENorm
#include "common/train.h"        // options, tensor table, checkpoints and the loop that trainers share

// Loops over independent pieces run on all threads; sums that may be reordered for vectors say so.
#define PRAGMA(x) _Pragma(#x)
#ifdef _OPENMP
#define PARALLEL_FOR PRAGMA(omp parallel for schedule(static))
#define SIMD_SUM(...) PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#else
#define PARALLEL_FOR
#define SIMD_SUM(...)
#endif

// ------------------------------------------------------------------------------------------------------ configuration

enum { MAX_LAYERS = 128 };
enum { MODEL_TINY, MODEL_SMALL, MODEL_124M };
enum { SET_MLP = 1, SET_VO = 2, SET_QK = 4, SET_LN = 8, SETS_ALL = 15, N_SETS = 4 };  // symmetries that can be rescaled

typedef struct config {
    train_options train;         // what all trainers share
    int model, layers, heads, channels, context, vocabulary, untied;  // 0: the preset's, or the data's
    int micro_batch, recompute;
    double clip, beta1, beta2;
    const char *val_data, *rescale_sets;
    int sets;                    // rescale_sets as bits
    int sample, top_k;
    double temperature;
    const char *prompt;
} config;

static const struct preset {
    int layers, heads, channels, context;
    double lr;
} presets[] = {{4, 4, 128, 128, 3e-3}, {6, 6, 384, 256, 1e-3}, {12, 12, 768, 1024, 6e-4}};

// -------------------------------------------------------------------------------------------------------------- model

#define LN_EPS ((real)1e-5)      // PyTorch's default
enum { ALIGN = 64 };             // numbers; every tensor starts on such a boundary
enum { ROW_BLOCK = 32 };         // rows one thread adds up in sums over rows
enum { STRIP = 64, KEYS = 256 }; // attention: queries of a strip, keys of a block
enum { CHUNK = 1 << 18 };        // numbers of an array [rows][C] that go through a layer at a time, so that they stay in the cache
enum { LOGITS = 1 << 24 };       // logits that exist at a time, at most about so many

// The parameters of a layer, or their gradients. In the order of the table below.
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

// What the backward pass of a layer needs of its forward pass.
typedef struct activations {
    real *x;                     // [N][C] residual stream that enters the layer; a[L].x: that leaves the last one
    real *ln1, *mean1, *rstd1;   // [N][C], [N], [N]
    real *qkv;                   // [N][3C]
    real *lse;                   // [B][NH][T] log of the sum of exp of the scores of a query
    real *att;                   // [N][C] heads side by side
    real *mid;                   // [N][C] residual stream between attention and MLP
    real *ln2, *mean2, *rstd2;   // [N][C], [N], [N]
    real *fc;                    // [N][4C] after ReLU
} activations;

// What one thread needs for attention.
typedef struct scratch {
    gemm_context gemm;
    real *scores, *dscores;      // [KEYS][STRIP] transposed, so that softmax works on vectors of queries
    real *out;                   // [STRIP][HS]
    real *max, *old, *sum;       // [STRIP]
} scratch;

typedef struct model {
    int L, NH, HS, C, T, V, tied, recompute;
    int max_B;                   // sequences that activations have room for
    int threads, chunk, head_rows;  // rows that go through a layer, and through the head, at a time
    train_net net;               // the tensors with their names and places, for files
    real *params, *grads, *moment1, *moment2;  // [net.n_params] each, one allocation per family
    weights w, dw;
    int accumulate;              // 0: the next backward pass replaces the gradients, 1: it adds to them
    real *acts;                  // one allocation for all that follows
    activations a[MAX_LAYERS + 1];
    int *tokens, *targets;       // [N]
    real *lnf, *meanf, *rstdf;   // [head_rows][C], [head_rows]
    real *logits;                // [head_rows][V], then their gradient
    real *dx, *datt, *dqkv;      // [N][C], [N][C], [N][3C]
    real *dfc, *dln;             // [chunk][4C], [max(chunk, head_rows)][C]
    real *partial;               // sums over blocks of rows
    double *row_loss;            // [head_rows]
    int *row_hit;                // [head_rows]
    double *square_sums;
    struct scratch *scratch;     // [threads]
    gemm_context gemm;
    rescale_report set_report[N_SETS];  // of the last rescaling: mlp, vo, qk, ln
} model;

// Zeroed memory for n numbers, on huge pages where the system has them: the arrays are large and walked through.
static real *alloc_reals(size_t n) {
    const size_t page = (size_t)1 << 21, bytes = ((n ? n : 1) * sizeof(real) + page - 1) / page * page;
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

// Places activations and gradients of activations for B sequences in one allocation; called twice, to count and to place.
static size_t place_activations(model *m, real *base) {
    const size_t B = (size_t)m->max_B, N = B * (size_t)m->T, C = (size_t)m->C, chunk = (size_t)m->chunk;
    const size_t head_rows = (size_t)m->head_rows, wide = chunk > head_rows ? chunk : head_rows;
    size_t used = 0;
    for (int l = 0; l <= m->L; l++) {
        activations *a = &m->a[l];
        if (l > 0 && m->recompute) *a = m->a[0];  // one layer's are kept, and the stream between layers
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
    m->tokens = (int *)(void *)take(base, &used, N);
    m->targets = (int *)(void *)take(base, &used, N);
    m->lnf = take(base, &used, head_rows * C);
    m->meanf = take(base, &used, head_rows);
    m->rstdf = take(base, &used, head_rows);
    m->logits = take(base, &used, head_rows * (size_t)m->V);
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

// Builds a model for max_B sequences of up to T tokens at a time; optimizer state only if it will be trained. Returns 0, or -1.
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
    const int N = max_B * m->T, C = m->C;
    const int chunks = ceil_div(N, max_int(256, min_int(4096, CHUNK / C)));
    m->chunk = ceil_div(ceil_div(N, chunks), ROW_BLOCK) * ROW_BLOCK;  // chunks of nearly equal size
    m->head_rows = min_int(N, max_int(ROW_BLOCK, min_int(m->chunk, LOGITS / m->V / ROW_BLOCK * ROW_BLOCK)));
    if (gemm_create(&m->gemm, GEMM_FP32, err, n)) return -1;
    m->scratch = (scratch *)train_alloc(NULL, (size_t)m->threads, sizeof *m->scratch);
    for (int t = 0; t < m->threads; t++) {
        if (gemm_create(&m->scratch[t].gemm, GEMM_FP32, err, n)) return -1;
        m->scratch[t].gemm.threads = 1;
    }
    train_add_parameter(&m->net, RESCALE_WEIGHT, -1, m->V, C, 0, 0, "transformer.wte.weight");
    train_add_parameter(&m->net, RESCALE_WEIGHT, -1, m->T, C, 0, 0, "transformer.wpe.weight");
    for (int l = 0; l < m->L; l++)
        for (int k = 0; k < BLOCK_TENSORS; k++) {
            const struct block_tensor *t = &block_tensors[k];
            train_add_parameter(&m->net, t->role, l, t->rows * C, t->cols * C, 0, 0, "transformer.h.%d.%s", l, t->name);
        }
    train_add_parameter(&m->net, RESCALE_GAIN, m->L, C, 0, 0, 0, "transformer.ln_f.weight");
    train_add_parameter(&m->net, RESCALE_BIAS, m->L, C, 0, 0, 0, "transformer.ln_f.bias");
    if (!m->tied) train_add_parameter(&m->net, RESCALE_WEIGHT, m->L, m->V, C, 0, 0, "lm_head.weight");
    m->net.hint = "--model, --layers or --untied differ";
    m->net.prefix = "transformer.";
    if (m->tied) {
        m->net.tied = "lm_head.weight";
        m->net.tied_to = "transformer.wte.weight";
    }
    m->params = alloc_reals(m->net.n_params);
    if (training) {
        m->grads = alloc_reals(m->net.n_params);
        m->moment1 = alloc_reals(m->net.n_params);
        m->moment2 = alloc_reals(m->net.n_params);
        point_weights(m, &m->dw, m->grads);
    }
    point_weights(m, &m->w, m->params);
    if (sizeof(real) == sizeof(float)) {  // files hold floats; the double build of the tests has none
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
    free(m->acts);
    for (int t = 0; m->scratch && t < m->threads; t++) gemm_destroy(&m->scratch[t].gemm);
    free(m->scratch);
    gemm_destroy(&m->gemm);
    train_net_free(&m->net);
    memset(m, 0, sizeof *m);
}

// ---------------------------------------------------------------------------------------------------------- arithmetic

// C[M][N] = alpha op(A) op(B) + beta C. gemm.h knows floats; tests in double get the plain sum.
static void product(gemm_context *g, int trans_a, int trans_b, int M, int N, int K, real alpha, const real *A, int lda, const real *B,
                    int ldb, real beta, real *C, int ldc) {
    if (sizeof(real) == sizeof(float)) {
        gemm(g, trans_a, trans_b, M, N, K, (float)alpha, (const float *)(const void *)A, lda, (const float *)(const void *)B, ldb,
             (float)beta, (float *)(void *)C, ldc);
        return;
    }
    for (size_t i = 0; i < (size_t)M; i++)
        for (size_t j = 0; j < (size_t)N; j++) {
            real sum = 0, *c = C + i * (size_t)ldc + j;
            for (size_t k = 0; k < (size_t)K; k++)
                sum += A[trans_a ? k * (size_t)lda + i : i * (size_t)lda + k] * B[trans_b ? j * (size_t)ldb + k : k * (size_t)ldb + j];
            *c = alpha * sum + (beta != 0 ? beta * *c : 0);
        }
}

#ifdef FP_FAST_FMAF
#define FMA(a, b, c) fmaf(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

// exp(x) for x <= 0, in a form that compilers turn into vector instructions; 0 below -87, NaN for NaN. Within 0.9 units in the last
// place (1.2 without fused multiply-add), as the tests measure. x = n log 2 + r, exp(r) by a polynomial, n into the exponent.
static inline real exp_negative(real x) {
    if (sizeof(real) == sizeof(double)) return (real)exp((double)x);
    const float v = (float)x, shifted = FMA(v, 1.44269504f, 12582912.0f), n = shifted - 12582912.0f;  // n = round(x / log 2)
    const float r = FMA(n, -1.42860677e-6f, FMA(n, -0.693145752f, v));                              // log 2 in two parts
    float p = 1.38145394e-3f;
    p = FMA(p, r, 8.36874545e-3f);
    p = FMA(p, r, 4.16683890e-2f);
    p = FMA(p, r, 1.66665211e-1f);
    p = FMA(p, r, 4.99999940e-1f);
    p = FMA(p, r, 1.0f);
    p = FMA(p, r, 1.0f);
    int32_t bits, exponent;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&exponent, &shifted, sizeof exponent);
    bits = (int32_t)((uint32_t)bits + ((uint32_t)exponent << 23));
    memcpy(&p, &bits, sizeof p);
    return v < -87.0f ? 0 : (real)p;
}

// out[c] += sum over blocks of partial[block][c], a strip of columns at a time.
static void sum_blocks(real *out, const real *partial, int blocks, size_t stride, int n) {
    PARALLEL_FOR
    for (int first = 0; first < n; first += 64) {
        const int width = min_int(64, n - first);
        real sum[64] = {0};
        for (int k = 0; k < blocks; k++) {
            const real *p = partial + (size_t)k * stride + first;
            for (int c = 0; c < width; c++) sum[c] += p[c];
        }
        for (int c = 0; c < width; c++) out[first + c] += sum[c];
    }
}

// ------------------------------------------------------------------------------------------------------------- layers

// x[r] = wte[token] + wpe[position], for rows first .. first + rows - 1 of sequences of T tokens.
static void embed(model *m, int T, int first, int rows) {
    const int C = m->C;
    PARALLEL_FOR
    for (int r = first; r < first + rows; r++) {
        const real *token = m->w.wte + (size_t)m->tokens[r] * (size_t)C, *position = m->w.wpe + (size_t)(r % T) * (size_t)C;
        real *x = m->a[0].x + (size_t)r * (size_t)C;
        for (int c = 0; c < C; c++) x[c] = token[c] + position[c];
    }
}
// Adds the gradient dx to those of both embeddings. A thread owns columns, so that rows are added in their order.
static void embed_backward(model *m, int B, int T) {
    const int C = m->C;
    PARALLEL_FOR
    for (int first = 0; first < C; first += 32) {
        const int width = min_int(32, C - first);
        for (int r = 0; r < B * T; r++) {
            const real *dx = m->dx + (size_t)r * (size_t)C + first;
            real *token = m->dw.wte + (size_t)m->tokens[r] * (size_t)C + first, *position = m->dw.wpe + (size_t)(r % T) * (size_t)C + first;
            for (int c = 0; c < width; c++) {
                token[c] += dx[c];
                position[c] += dx[c];
            }
        }
    }
}

// y[rows][out] = x[rows][in] w[out][in]^T.
static void linear(model *m, real *y, const real *x, const real *w, int rows, int in, int out) {
    product(&m->gemm, 0, 1, rows, out, in, 1, x, in, w, in, 0, y, out);
}
// dw += dy^T x, or = where `fresh`; dx = dy w.
static void linear_backward(model *m, real *dx, real *dw, const real *dy, const real *x, const real *w, int rows, int in, int out,
                            int fresh) {
    product(&m->gemm, 1, 0, out, in, rows, 1, dy, out, x, in, fresh ? 0 : 1, dw, in);
    product(&m->gemm, 0, 0, rows, in, out, 1, dy, out, w, in, 0, dx, in);
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
static void add_bias_relu_backward(model *m, real *dy, real *db, const real *y, int rows, int cols) {
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
    sum_blocks(db, m->partial, blocks, (size_t)cols, cols);
}

// Residual connection and LayerNorm in one pass: x += before + b, with before = NULL: x stays; out = LayerNorm(x).
static void residual_layernorm(real *out, real *mean, real *rstd, real *x, const real *before, const real *b, const real *gain,
                               const real *bias, int rows, int C) {
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
        const real scale = 1 / (real)sqrt(squares / (real)C + LN_EPS);
        for (int c = 0; c < C; c++) o[c] = (p[c] - average) * scale * gain[c] + bias[c];
        mean[r] = average;
        rstd[r] = scale;
    }
}
// Backward: dx (+)= the gradient of LayerNorm's input, dgain and dbias +=; then db += sum of dx over rows, the gradient of the bias
// that went into x (NULL: there was none). add = 0 replaces dx, as at the end of the stream.
static void residual_layernorm_backward(model *m, real *dx, int add, real *dgain, real *dbias, real *db, const real *dout, const real *x,
                                        const real *mean, const real *rstd, const real *gain, int rows) {
    const int C = m->C, blocks = ceil_div(rows, ROW_BLOCK);
    PARALLEL_FOR
    for (int k = 0; k < blocks; k++) {
        real *sum_gain = m->partial + (size_t)k * 3 * (size_t)C, *sum_bias = sum_gain + C, *sum_x = sum_bias + C;
        memset(sum_gain, 0, 3 * (size_t)C * sizeof(real));
        for (int r = k * ROW_BLOCK; r < min_int(rows, (k + 1) * ROW_BLOCK); r++) {
            const real *d = dout + (size_t)r * (size_t)C, *p = x + (size_t)r * (size_t)C, average = mean[r], scale = rstd[r];
            real *to = dx + (size_t)r * (size_t)C, sum = 0, sum_hat = 0;
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
            for (int c = 0; c < C; c++) {
                const real hat = (p[c] - average) * scale, g = scale * (d[c] * gain[c] - sum - hat * sum_hat);
                to[c] = add ? to[c] + g : g;
                sum_x[c] += to[c];
            }
        }
    }
    sum_blocks(dgain, m->partial, blocks, 3 * (size_t)C, C);
    sum_blocks(dbias, m->partial + C, blocks, 3 * (size_t)C, C);
    if (db) sum_blocks(db, m->partial + 2 * C, blocks, 3 * (size_t)C, C);
}

// Queries of a strip: half as many where the waste on the diagonal, where half of the scores are masked, would weigh more.
static int strip_size(int T) { return T > 2 * STRIP ? STRIP : STRIP / 2; }

// Scores of a strip of queries against a block of keys, transposed: scores[j][i] = scale q_i . k_j, and -infinity where key
// k0 + j lies after query q0 + i.
static void masked_scores(const model *m, scratch *s, const real *qkv, int q0, int queries, int k0, int keys) {
    const int ld = 3 * m->C;
    const real *q = qkv + (size_t)q0 * (size_t)ld, *k = qkv + (size_t)k0 * (size_t)ld + m->C;
    product(&s->gemm, 0, 1, keys, queries, m->HS, 1 / (real)sqrt((real)m->HS), k, ld, q, ld, 0, s->scores, STRIP);
    for (int j = max_int(0, q0 - k0); j < keys; j++)
        for (int i = 0; i < min_int(queries, k0 + j - q0); i++) s->scores[j * STRIP + i] = -INFINITY;
}

// Causal attention of head h of sequence b, for queries from .. T - 1: a strip of queries at a time against blocks of keys, with a
// running maximum and sum, so that no row of scores is ever whole.
static void attend(const model *m, const activations *a, scratch *s, int b, int h, int T, int from) {
    const int C = m->C, HS = m->HS, ld = 3 * C;
    const real *qkv = a->qkv + (size_t)b * (size_t)T * (size_t)ld + (size_t)h * (size_t)HS, *v = qkv + 2 * C;
    real *att = a->att + (size_t)b * (size_t)T * (size_t)C + (size_t)h * (size_t)HS;
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
            masked_scores(m, s, qkv, q0, queries, k0, keys);
            memcpy(s->old, s->max, STRIP * sizeof(real));
            for (int j = 0; j < keys; j++)
                for (int i = 0; i < queries; i++) s->max[i] = s->scores[j * STRIP + i] > s->max[i] ? s->scores[j * STRIP + i] : s->max[i];
            for (int i = 0; i < queries; i++) {
                s->old[i] = exp_negative(s->old[i] - s->max[i]);
                s->sum[i] *= s->old[i];
            }
            for (int j = 0; j < keys; j++)
                for (int i = 0; i < queries; i++) {
                    const real e = exp_negative(s->scores[j * STRIP + i] - s->max[i]);
                    s->scores[j * STRIP + i] = e;
                    s->sum[i] += e;
                }
            for (int i = 0; i < queries && k0 > 0; i++)
                for (int c = 0; c < HS; c++) s->out[i * HS + c] *= s->old[i];
            product(&s->gemm, 1, 0, queries, HS, keys, 1, s->scores, STRIP, v + (size_t)k0 * (size_t)ld, ld, k0 > 0, s->out, HS);
        }
        for (int i = 0; i < queries; i++) {
            const real inverse = 1 / s->sum[i];
            for (int c = 0; c < HS; c++) att[(size_t)(q0 + i) * (size_t)C + (size_t)c] = s->out[i * HS + c] * inverse;
            lse[q0 + i] = s->max[i] + (real)log(s->sum[i]);
        }
    }
}
// Backward: datt -> dqkv. Scores are computed again; with p = exp(score - lse) and dp = dout . v, the gradient of a score is
// p (dp - sum over keys of p dp), and that sum is dout . out.
static void attend_backward(const model *m, const activations *a, scratch *s, int b, int h, int T) {
    const int C = m->C, HS = m->HS, ld = 3 * C;
    const size_t row = (size_t)b * (size_t)T, head = (size_t)h * (size_t)HS;
    const real *q = a->qkv + row * (size_t)ld + head, *k = q + C, *v = k + C, scale = 1 / (real)sqrt((real)HS);
    const real *out = a->att + row * (size_t)C + head, *dout = m->datt + row * (size_t)C + head;
    const real *lse = a->lse + ((size_t)b * (size_t)m->NH + (size_t)h) * (size_t)T;
    real *dq = m->dqkv + row * (size_t)ld + head, *dk = dq + C, *dv = dk + C, *dot = s->sum;
    const int strip = strip_size(T);
    for (int q0 = 0; q0 < T; q0 += strip) {
        const int queries = min_int(strip, T - q0);
        const real *strip_dout = dout + (size_t)q0 * (size_t)C;
        for (int i = 0; i < queries; i++) {
            const real *o = out + (size_t)(q0 + i) * (size_t)C, *d = strip_dout + (size_t)i * (size_t)C;
            real sum = 0;
            SIMD_SUM(sum)
            for (int c = 0; c < HS; c++) sum += o[c] * d[c];
            dot[i] = sum;
            for (int c = 0; c < HS; c++) dk[(size_t)(q0 + i) * (size_t)ld + (size_t)c] = dv[(size_t)(q0 + i) * (size_t)ld + (size_t)c] = 0;
        }
        for (int k0 = 0; k0 < q0 + queries; k0 += KEYS) {
            const int keys = min_int(KEYS, q0 + queries - k0);
            const size_t at_k = (size_t)k0 * (size_t)ld, at_q = (size_t)q0 * (size_t)ld;
            masked_scores(m, s, q, q0, queries, k0, keys);
            product(&s->gemm, 0, 1, keys, queries, HS, 1, v + at_k, ld, strip_dout, C, 0, s->dscores, STRIP);
            for (int j = 0; j < keys; j++)
                for (int i = 0; i < queries; i++) {
                    const real p = exp_negative(s->scores[j * STRIP + i] - lse[q0 + i]);
                    s->scores[j * STRIP + i] = p;
                    s->dscores[j * STRIP + i] = p * (s->dscores[j * STRIP + i] - dot[i]);
                }
            product(&s->gemm, 0, 0, keys, HS, queries, 1, s->scores, STRIP, strip_dout, C, 1, dv + at_k, ld);
            product(&s->gemm, 0, 0, keys, HS, queries, scale, s->dscores, STRIP, q + at_q, ld, 1, dk + at_k, ld);
            product(&s->gemm, 1, 0, queries, HS, keys, scale, s->dscores, STRIP, k + at_k, ld, k0 > 0, dq + at_q, ld);
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
    for (int i = 0; i < B * m->NH; i++) attend(m, a, my_scratch(m), i / m->NH, i % m->NH, T, from);
}
// Backward; dqkv_b += sum over rows of dqkv, added up per sequence first, while a head's rows are in the cache.
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
    sum_blocks(dqkv_b, m->partial, B, ld, 3 * m->C);
}

// The largest of x[n]; sixteen maxima at a time, for vectors.
static real largest_of(const real *x, int n) {
    real lane[16], largest = x[0];
    int v = 0;
    for (int i = 0; i < 16; i++) lane[i] = x[0];
    for (; v + 16 <= n; v += 16)
        for (int i = 0; i < 16; i++) lane[i] = x[v + i] > lane[i] ? x[v + i] : lane[i];
    for (int i = 0; i < 16; i++) largest = lane[i] > largest ? lane[i] : largest;
    for (; v < n; v++) largest = x[v] > largest ? x[v] : largest;
    return largest;
}

// Softmax cross-entropy of rows of logits: the loss of each row, and whether its target has the largest logit. scale != 0: the
// logits become their gradient (softmax - onehot) * scale in place.
static void cross_entropy(model *m, const int *target, int rows, real scale) {
    const int V = m->V;
    PARALLEL_FOR
    for (int r = 0; r < rows; r++) {
        real *x = m->logits + (size_t)r * (size_t)V, sum = 0;
        const real wanted = x[target[r]], largest = largest_of(x, V);
        m->row_hit[r] = wanted >= largest;
        if (scale == 0) {
            SIMD_SUM(sum)
            for (int v = 0; v < V; v++) sum += exp_negative(x[v] - largest);
        } else {
            SIMD_SUM(sum)
            for (int v = 0; v < V; v++) {
                const real e = exp_negative(x[v] - largest);
                x[v] = e;
                sum += e;
            }
            const real factor = scale / sum;
            for (int v = 0; v < V; v++) x[v] *= factor;
            x[target[r]] -= scale;
        }
        m->row_loss[r] = log((double)sum) + ((double)largest - (double)wanted);
    }
}

// --------------------------------------------------------------------------------------------------- forward, backward
// A block computes  mid = x + W_out attention(LayerNorm(x)) + b_out,  next x = mid + W_proj relu(W_fc LayerNorm(mid) + b_fc) + b_proj.
// A product leaves W_... alone in `mid` or in the next layer's `x`; the LayerNorm that reads the stream next adds the bias and the
// earlier stream in the same pass over the rows (residual_layernorm). So x of a layer is finished by before_attention, mid by
// after_attention, and x after the last layer by compute_logits.

// The part of layer l before attention, for some rows: finishes x (unless it is finished), up to queries, keys and values.
static void before_attention(model *m, int l, int first, int rows, int finished) {
    const activations *a = &m->a[l];
    const block *w = &m->w.block[l];
    const int C = m->C;
    const size_t at = (size_t)first * (size_t)C;
    const real *before = l > 0 && !finished ? m->a[l - 1].mid + at : NULL;
    residual_layernorm(a->ln1 + at, a->mean1 + first, a->rstd1 + first, a->x + at, before, l > 0 ? m->w.block[l - 1].proj_b : NULL, w->ln1_w,
                       w->ln1_b, rows, C);
    linear(m, a->qkv + 3 * at, a->ln1 + at, w->qkv_w, rows, C, 3 * C);
    add_bias(a->qkv + 3 * at, w->qkv_b, rows, 3 * C);
}

// The part after attention, up to the product that begins the next layer's x; again = 1: without it, activations are recomputed for
// the backward pass.
static void after_attention(model *m, int l, int first, int rows, int again) {
    const activations *a = &m->a[l];
    const block *w = &m->w.block[l];
    const int C = m->C;
    const size_t at = (size_t)first * (size_t)C;
    linear(m, a->mid + at, a->att + at, w->out_w, rows, C, C);
    residual_layernorm(a->ln2 + at, a->mean2 + first, a->rstd2 + first, a->mid + at, a->x + at, w->out_b, w->ln2_w, w->ln2_b, rows, C);
    linear(m, a->fc + 4 * at, a->ln2 + at, w->fc_w, rows, C, 4 * C);
    add_bias_relu(a->fc + 4 * at, w->fc_b, rows, 4 * C);
    if (!again) linear(m, m->a[l + 1].x + at, a->fc + 4 * at, w->proj_w, rows, 4 * C, C);
}

// Forward through all layers for m->tokens, B sequences of T. With from > 0 (and B = 1, without recompute) only positions from .. T - 1 are
// computed; what earlier calls left of the positions before is used again.
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

// After forward: the logits of rows first .. first + rows - 1 (at most head_rows), in m->logits. Finishes the residual stream.
static void compute_logits(model *m, int first, int rows) {
    const size_t at = (size_t)first * (size_t)m->C;
    residual_layernorm(m->lnf, m->meanf, m->rstdf, m->a[m->L].x + at, m->a[m->L - 1].mid + at, m->w.block[m->L - 1].proj_b, m->w.lnf_w,
                       m->w.lnf_b, rows, m->C);
    linear(m, m->logits, m->lnf, m->w.head, rows, m->C, m->V);
}

// After forward: the summed loss of the first N rows against m->targets, and the number of hits. scale != 0: also the gradient of
// scale times the loss, of the head's parameters and (dx) of the residual stream that leaves the last layer. Chunk by
// chunk, so that logits for all rows never exist.
static double loss_forward_backward(model *m, int N, double scale, double *hits) {
    double loss = 0;
    for (int first = 0; first < N; first += m->head_rows) {
        const int rows = min_int(m->head_rows, N - first);
        const size_t at = (size_t)first * (size_t)m->C;
        compute_logits(m, first, rows);
        cross_entropy(m, m->targets + first, rows, (real)scale);
        for (int r = 0; r < rows; r++) {
            loss += m->row_loss[r];
            *hits += m->row_hit[r];
        }
        if (scale == 0) continue;
        linear_backward(m, m->dln, m->dw.head, m->logits, m->lnf, m->w.head, rows, m->C, m->V, !m->accumulate && first == 0);
        residual_layernorm_backward(m, m->dx + at, 0, m->dw.lnf_w, m->dw.lnf_b, m->dw.block[m->L - 1].proj_b, m->dln, m->a[m->L].x + at,
                                    m->meanf, m->rstdf, m->w.lnf_w, rows);
    }
    return loss;
}

// Backward through all layers, from dx; after head.
static void backward(model *m, int B, int T) {
    const int N = B * T, C = m->C;
    for (int l = m->L - 1; l >= 0; l--) {
        const activations *a = &m->a[l];
        const block *w = &m->w.block[l], *d = &m->dw.block[l];
        if (m->recompute && l < m->L - 1) {  // the last layer's activations are still there
            for (int first = 0; first < N; first += m->chunk) before_attention(m, l, first, min_int(m->chunk, N - first), 1);
            attention(m, a, B, T, 0);
            for (int first = 0; first < N; first += m->chunk) after_attention(m, l, first, min_int(m->chunk, N - first), 1);
        }
        for (int first = 0; first < N; first += m->chunk) {
            const int rows = min_int(m->chunk, N - first), fresh = !m->accumulate && first == 0;
            const size_t at = (size_t)first * (size_t)C;
            linear_backward(m, m->dfc, d->proj_w, m->dx + at, a->fc + 4 * at, w->proj_w, rows, 4 * C, C, fresh);
            add_bias_relu_backward(m, m->dfc, d->fc_b, a->fc + 4 * at, rows, 4 * C);
            linear_backward(m, m->dln, d->fc_w, m->dfc, a->ln2 + at, w->fc_w, rows, C, 4 * C, fresh);
            residual_layernorm_backward(m, m->dx + at, 1, d->ln2_w, d->ln2_b, d->out_b, m->dln, a->mid + at, a->mean2 + first, a->rstd2 + first,
                                        w->ln2_w, rows);
            linear_backward(m, m->datt + at, d->out_w, m->dx + at, a->att + at, w->out_w, rows, C, C, fresh);
        }
        attention_backward(m, a, d->qkv_b, B, T);
        for (int first = 0; first < N; first += m->chunk) {
            const int rows = min_int(m->chunk, N - first), fresh = !m->accumulate && first == 0;
            const size_t at = (size_t)first * (size_t)C;
            linear_backward(m, m->dln, d->qkv_w, m->dqkv + 3 * at, a->ln1 + at, w->qkv_w, rows, C, 3 * C, fresh);
            residual_layernorm_backward(m, m->dx + at, 1, d->ln1_w, d->ln1_b, l > 0 ? m->dw.block[l - 1].proj_b : NULL, m->dln, a->x + at,
                                        a->mean1 + first, a->rstd1 + first, w->ln1_w, rows);
        }
    }
    embed_backward(m, B, T);
}

// Gradients that are only ever added to start from zero; the first product of a step replaces those of the other matrices.
static void zero_gradients(model *m) {
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        if (t->n_dims == 1 || i == 1 || (i == 0 && !m->tied)) memset(m->grads + t->offset, 0, (size_t)t->rows * (size_t)t->cols * sizeof(real));
    }
    m->accumulate = 0;
}

// Floating-point operations of one forward and backward pass over B sequences of T, for GFLOP/s: 2 per multiplication of the products of
// weights, scores and values, backward twice forward; what causality or recomputing adds or saves in practice is not counted.
static double step_flops(const model *m, int B, int T) {
    const double L = m->L, C = m->C;
    return 6.0 * B * T * (L * 12 * C * C + (double)m->V * C + L * C * (T + 1));
}

// ----------------------------------------------------------------------------------------------------------- optimizer

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

// AdamW as torch.optim.AdamW, with weight decay on matrices only, after scaling the gradient to norm `clip` where it is longer (0:
// never). step counts from 0.
static void update(model *m, const config *c, double lr, int64_t step) {
    const double norm = array_norm(m, m->grads), t = (double)step + 1;
    const real factor = (real)(c->clip > 0 && norm > c->clip ? c->clip / norm : 1);
    const real beta1 = (real)c->beta1, beta2 = (real)c->beta2, step_size = (real)(lr / (1 - pow(c->beta1, t)));
    const real root = (real)(1 / sqrt(1 - pow(c->beta2, t))), eps = (real)1e-8;
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *tensor = &m->net.tensors[i];
        const real keep = (real)(tensor->n_dims > 1 ? 1 - lr * c->train.weight_decay : 1);
        real *w = m->params + tensor->offset, *m1 = m->moment1 + tensor->offset, *m2 = m->moment2 + tensor->offset;
        const real *grad = m->grads + tensor->offset;
        const int64_t n = (int64_t)tensor->rows * tensor->cols;
        PARALLEL_FOR
        for (int64_t k = 0; k < n; k++) {
            const real g = grad[k] * factor;
            m1[k] = beta1 * m1[k] + (1 - beta1) * g;
            m2[k] = beta2 * m2[k] + (1 - beta2) * g * g;
            w[k] = w[k] * keep - step_size * m1[k] / ((real)sqrt(m2[k]) * root + eps);
        }
    }
}

// ------------------------------------------------------------------------------------------------------ initialisation

// As GPT-2: weights normal with standard deviation 0.02, those that write into the residual stream 0.02 / sqrt(2L); biases 0, gains 1.
// Unlike GPT-2, what makes logits (token embedding, head) has at most 0.4 / sqrt(C), so that they have at most 0.4 and the first loss
// is ln V whatever the width. init_scale multiplies the weights. Counter-based: the same for every number of threads.
static void model_init(model *m, const config *c) {
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        const size_t n = (size_t)t->rows * (size_t)t->cols;
        const int writes = strstr(t->name, "c_proj.weight") != NULL, logits = i == 0 || strstr(t->name, "lm_head") != NULL;
        const double std = c->train.init_scale * (writes ? 0.02 / sqrt(2.0 * m->L) : logits ? fmin(0.02, 0.4 / sqrt((double)m->C)) : 0.02);
        real *p = m->params + t->offset;
        if (t->role != RESCALE_WEIGHT) {
            for (size_t k = 0; k < n; k++) p[k] = t->role == RESCALE_GAIN;
            continue;
        }
        float *values = (float *)train_alloc(NULL, n, sizeof(float));
        rng_fill_normal(values, n, 0, (float)std, (uint64_t)c->train.seed, rng_stream(RNG_PARAMETERS, (uint32_t)i));
        for (size_t k = 0; k < n; k++) p[k] = (real)values[k];
        free(values);
    }
}

// ----------------------------------------------------------------------------------------------------------- rescaling
// Four sets of symmetries of a block. Each is a small network of its own with inputs of ones:
//     ln   LayerNorm's gain and bias enter C linear units, the columns of the next linear layer leave them
//     qk   queries' rows enter C units (of all heads), keys' rows leave them: q . k stays the same
//     vo   values' rows enter C linear units, the columns of attn.c_proj leave them
//     mlp  rows of c_fc enter 4C ReLU units, columns of mlp.c_proj leave them
// They share tensors: what one set does to attn.c_attn changes diag(G) of another. So they are solved in turn, each from the original
// weights with what the others do applied, until no u changes: each set is then at its optimum given all others. The final LayerNorm
// and the head are a network of set ln when the head is not tied to the embedding.

enum { PART_LN1, PART_QK, PART_VO, PART_LN2, PART_MLP, PART_HEAD, N_PARTS };
static const struct part_info {
    int set, activation;
    const char *name;
} part_info[N_PARTS] = {{SET_LN, RESCALE_IDENTITY, "ln"}, {SET_QK, RESCALE_IDENTITY, "qk"}, {SET_VO, RESCALE_IDENTITY, "vo"},
                        {SET_LN, RESCALE_IDENTITY, "ln"}, {SET_MLP, RESCALE_RELU, "mlp"},   {SET_LN, RESCALE_IDENTITY, "ln"}};

// One small network: its tensors, and diag(G) as vectors.
typedef struct part {
    rescale_tensor t[4];
    int n, units;
    double *arriving, *going, *ones;  // [4C]: squared paths that arrive at a unit, that go on from it; 1 [max(4C, V)]
    real *copy;                       // ENorm reads weights: those of the part as the other parts leave them
    size_t copied;
} part;

// What all parts of a block, or the head, are solved with: u of every part, 0 at first.
typedef struct parts {
    double *u[N_PARTS], *next, *row, *col;  // row and col: what the other parts multiply squares by
    part p;
} parts;

// out[r] = sum over c of row[r] col[c] W[r][c]^2, plus row[r] b[r]^2; of_columns: out[c] = sum over r. NULL for row, col: ones; b: zeros.
static void weighted_square_sums(double *out, const real *W, const real *b, int rows, int cols, int of_columns, const double *row,
                                 const double *col) {
    for (int i = 0; i < (of_columns ? cols : rows); i++) out[i] = b ? (double)b[i] * (double)b[i] * (row ? row[i] : 1) : 0;
    for (int r = 0; r < rows; r++) {
        const double of_row = row ? row[r] : 1;
        for (int c = 0; c < cols; c++) {
            const double w = (double)W[(size_t)r * (size_t)cols + (size_t)c];
            out[of_columns ? c : r] += w * w * of_row * (col ? col[c] : 1);
        }
    }
}
static void square_sums(double *out, const real *W, const real *b, int rows, int cols, int of_columns) {
    weighted_square_sums(out, W, b, rows, cols, of_columns, NULL, NULL);
}

// Adds a tensor that is part of the parameters, with its optimizer state, rows x cols (cols 1 for a vector), and its diag(G). row and
// col: what the other parts multiply its squares by; with_copy: data is a copy that this is applied to.
static void add_tensor(part *p, const model *m, const char *name, real *data, int rows, int cols, int enters, int leaves, int role,
                       const double *g_out, const double *g_in, const double *row, const double *col, int with_copy) {
    rescale_tensor t = rescale_weight(name, data, rows, cols, 1, enters, leaves);
    if (!data) return;
    t.role = role;
    t.g_out = g_out;
    t.g_in = g_in;
    if (with_copy) {
        t.data = p->copy + p->copied;
        p->copied += (size_t)rows * (size_t)cols;
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++) {
                const size_t i = (size_t)r * (size_t)cols + (size_t)c;
                t.data[i] = (real)((double)data[i] * sqrt((row ? row[r] : 1) * (col ? col[c] : 1)));
            }
    } else if (m->moment1) {
        t.moment1 = m->moment1 + (data - m->params);
        t.moment2 = m->moment2 + (data - m->params);
    }
    p->t[p->n++] = t;
}

// Set ln: gain and bias, then W [rows][C] with its own bias b (NULL: none), whose rows other sets multiply. diag(G) is
// the sum of the squares of column c of W for gain and bias of channel c, and gain^2 + bias^2 for W[r][c].
static void describe_ln(parts *s, const model *m, real *gain, real *bias, real *W, real *b, int rows, int bias_paths, int with_copy) {
    part *p = &s->p;
    weighted_square_sums(p->going, W, NULL, rows, m->C, 1, s->row, NULL);
    square_sums(p->arriving, gain, bias_paths ? bias : NULL, m->C, 1, 0);
    add_tensor(p, m, "LayerNorm weight", gain, m->C, 1, 0, RESCALE_NONE, RESCALE_GAIN, p->going, p->ones, NULL, NULL, with_copy);
    add_tensor(p, m, "LayerNorm bias", bias, m->C, 1, 0, RESCALE_NONE, RESCALE_BIAS, p->going, p->ones, NULL, NULL, with_copy);
    add_tensor(p, m, "weight after LayerNorm", W, rows, m->C, RESCALE_NONE, 0, RESCALE_WEIGHT, p->ones, p->arriving, s->row, NULL, with_copy);
    add_tensor(p, m, "bias after LayerNorm", b, rows, 1, RESCALE_NONE, RESCALE_NONE, RESCALE_BIAS, p->ones, p->ones, s->row, NULL, with_copy);
}

// Set qk: a path goes from an input through q_c and k_c to another, so diag(G) is the squared size of k_c's row (with its bias)
// for every parameter of q_c, and the other way round. Set ln multiplies the columns.
static void describe_qk(parts *s, const model *m, const block *w, int bias_paths, int with_copy) {
    part *p = &s->p;
    const int C = m->C;
    real *keys = w->qkv_w + (size_t)C * (size_t)C, *key_bias = w->qkv_b + C;
    weighted_square_sums(p->arriving, w->qkv_w, bias_paths ? w->qkv_b : NULL, C, C, 0, NULL, s->col);
    weighted_square_sums(p->going, keys, bias_paths ? key_bias : NULL, C, C, 0, NULL, s->col);
    add_tensor(p, m, "attn.c_attn.weight (queries)", w->qkv_w, C, C, 0, RESCALE_NONE, RESCALE_WEIGHT, p->going, p->ones, NULL, s->col, with_copy);
    add_tensor(p, m, "attn.c_attn.bias (queries)", w->qkv_b, C, 1, 0, RESCALE_NONE, RESCALE_BIAS, p->going, p->ones, NULL, NULL, with_copy);
    add_tensor(p, m, "attn.c_attn.weight (keys)", keys, C, C, 0, RESCALE_NONE, RESCALE_WEIGHT, p->arriving, p->ones, NULL, s->col, with_copy);
    add_tensor(p, m, "attn.c_attn.bias (keys)", key_bias, C, 1, 0, RESCALE_NONE, RESCALE_BIAS, p->arriving, p->ones, NULL, NULL, with_copy);
    p->t[2].flags = p->t[3].flags = RESCALE_ROWS_LEAVE;
}

// Sets vo and mlp: rows of A [units][C] and its bias a enter the units, columns of B [C][units] leave them, B has the bias b. Set ln
// multiplies the columns of A.
static void describe_hidden(parts *s, const model *m, const char *const name[4], int units, real *A, real *a, real *B, real *b, int bias_paths,
                            int with_copy) {
    part *p = &s->p;
    const int C = m->C;
    weighted_square_sums(p->arriving, A, bias_paths ? a : NULL, units, C, 0, NULL, s->col);
    square_sums(p->going, B, NULL, C, units, 1);
    add_tensor(p, m, name[0], A, units, C, 0, RESCALE_NONE, RESCALE_WEIGHT, p->going, p->ones, NULL, s->col, with_copy);
    add_tensor(p, m, name[1], a, units, 1, 0, RESCALE_NONE, RESCALE_BIAS, p->going, p->ones, NULL, NULL, with_copy);
    add_tensor(p, m, name[2], B, C, units, RESCALE_NONE, 0, RESCALE_WEIGHT, p->ones, p->arriving, NULL, NULL, with_copy);
    add_tensor(p, m, name[3], b, C, 1, RESCALE_NONE, RESCALE_NONE, RESCALE_BIAS, p->ones, p->ones, NULL, NULL, with_copy);
}

// Describes part k of block w as the other parts leave it (alone: as the weights are) in s->p.
static void describe_part(parts *s, const model *m, const block *w, int k, const config *c, int alone) {
    static const char *const values[4] = {"attn.c_attn.weight (values)", "attn.c_attn.bias (values)", "attn.c_proj.weight", "attn.c_proj.bias"};
    static const char *const hidden[4] = {"mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"};
    const int C = m->C, n = k == PART_MLP ? 4 * C : C, paths = !c->train.rescale_paths;
    const int copy = !alone && c->train.rescale == RESCALE_BY_ENORM;
    s->p.n = 0;
    s->p.copied = 0;
    s->p.units = n;
    for (int i = 0; i < max_int(4 * C, m->V); i++) s->row[i] = 1;
    for (int i = 0; i < C; i++) {
        s->col[i] = alone ? 1 : exp(-s->u[k <= PART_VO ? PART_LN1 : PART_LN2][i]);
        if (alone || k != PART_LN1) continue;
        s->row[i] = exp(s->u[PART_QK][i]);
        s->row[C + i] = 1 / s->row[i];
        s->row[2 * C + i] = exp(s->u[PART_VO][i]);
    }
    for (int i = 0; i < 4 * C && k == PART_LN2 && !alone; i++) s->row[i] = exp(s->u[PART_MLP][i]);
    if (k == PART_LN1) describe_ln(s, m, w->ln1_w, w->ln1_b, w->qkv_w, w->qkv_b, 3 * C, paths, copy);
    else if (k == PART_LN2) describe_ln(s, m, w->ln2_w, w->ln2_b, w->fc_w, w->fc_b, 4 * C, paths, copy);
    else if (k == PART_HEAD) describe_ln(s, m, m->w.lnf_w, m->w.lnf_b, m->w.head, NULL, m->V, paths, copy);
    else if (k == PART_QK) describe_qk(s, m, w, paths, copy);
    else if (k == PART_VO)
        describe_hidden(s, m, values, C, w->qkv_w + 2 * (size_t)C * (size_t)C, w->qkv_b + 2 * C, w->out_w, w->out_b, paths, copy);
    else describe_hidden(s, m, hidden, 4 * C, w->fc_w, w->fc_b, w->proj_w, w->proj_b, paths, copy);
    train_count_paths(&c->train, s->p.t, s->p.n);
}

// Runs rescale.cuh on s->p. given NULL: solves, u to s->next, changes nothing; else the given u, applied if `apply`. 0 or -1.
static int run_part(parts *s, const config *c, int k, const double *given, int apply, rescale_report *r) {
    rescale_options o = train_rescale_options(&c->train);
    const rescale_group group = rescale_units(s->p.t[0].name, s->p.units, part_info[k].activation);
    const rescale_net net = {&group, 1, s->p.t, s->p.n};
    o.dry_run = !apply;
    if (!given) o.u = s->next;
    return (given ? rescale_apply(&net, &o, given, r) : rescale_run(&net, &o, r)) ? -1 : 0;
}

// Adds what a part reports to a total. `before`: its objective at the weights as they were.
static void add_report(rescale_report *total, const rescale_report *r, double before) {
    total->objective_before += before;
    total->objective_after += r->objective_after;
    total->grad_inf = fmax(total->grad_inf, r->grad_inf);
    total->grad_tolerance = fmax(total->grad_tolerance, r->grad_tolerance);
    total->converged = total->converged && r->converged;
    total->iterations = max_int(total->iterations, r->iterations);
    total->sweeps = max_int(total->sweeps, r->sweeps);
    total->seconds_diag_g += r->seconds_diag_g;
    total->seconds_solve += r->seconds_solve;
    total->seconds_apply += r->seconds_apply;
    total->trace_ratio = fmax(total->trace_ratio, r->trace_ratio);
    total->max_abs_log_lambda = fmax(total->max_abs_log_lambda, r->max_abs_log_lambda);
    total->units += r->units;
    total->pinned_units += r->pinned_units;
    total->bounded_units += r->bounded_units;
    total->parameters += r->parameters;
    total->tensors_touched += r->tensors_touched;
}

// Whether a certificate at the final u is that of the optimum: nothing was asked for that moves u away from it.
static int wants_optimum(const train_options *o) {
    return !o->rescale_solver && !o->rescale_pow2 && o->rescale_strength == 1 && !o->rescale_within && o->rescale_max_trace == 0;
}

enum { MOST_PASSES = 100 };

// Solves the parts first .. last that were asked for in turn until no u changes. Returns 0, or -1 with the failed report in r.
static int solve_parts(parts *s, const model *m, const block *w, int first, int last, const config *c, rescale_report r[N_PARTS],
                       rescale_report *failed) {
    const double enough = c->train.rescale == RESCALE_BY_ENORM ? 1e-7 : 1e-10;  // ENorm reads weights as floats
    double change = INFINITY;
    for (int pass = 0; pass < MOST_PASSES && change > enough; pass++) {
        change = 0;
        for (int k = first; k <= last; k++) {
            if (!(part_info[k].set & c->sets)) continue;
            describe_part(s, m, w, k, c, 0);
            if (run_part(s, c, k, NULL, 0, failed)) return -1;
            r[k] = *failed;
            for (int h = 0; h < s->p.units; h++) {
                change = fmax(change, fabs(s->next[h] - s->u[k][h]));
                s->u[k][h] = s->next[h];
            }
            if (first == last) change = 0;
        }
    }
    for (int k = first; k <= last && wants_optimum(&c->train); k++) {  // the certificate: every gradient at what all parts ended at
        if (!(part_info[k].set & c->sets)) continue;
        const int iterations = r[k].iterations, sweeps = r[k].sweeps;
        const double seconds = r[k].seconds_solve;
        describe_part(s, m, w, k, c, 0);
        if (run_part(s, c, k, s->u[k], 0, failed)) return -1;
        r[k] = *failed;
        r[k].iterations = iterations;
        r[k].sweeps = sweeps;
        r[k].seconds_solve += seconds;
        if (r[k].converged) continue;
        failed->status = RESCALE_ERROR_CONVERGENCE;
        snprintf(failed->message, sizeof failed->message, "rescale: set %s: the sets of a block did not reach a joint optimum; "
                 "a bound on |log lambda| helps", part_info[k].name);
        return -1;
    }
    return 0;
}

// Solves and applies the parts first .. last of block w; adds to the report and to those of the sets. Returns 0, or -1.
static int rescale_parts(parts *s, model *m, const block *w, int first, int last, const config *c, rescale_report *total) {
    rescale_report r[N_PARTS], one;
    double before[N_PARTS];
    int status = 0;
    for (int k = first; k <= last; k++) {
        for (int h = 0; h < 4 * m->C; h++) s->u[k][h] = 0;
        if (!(part_info[k].set & c->sets) || status) continue;
        describe_part(s, m, w, k, c, 1);
        status = run_part(s, c, k, s->u[k], 0, &one);
        before[k] = one.objective_before;
    }
    if (!status) status = solve_parts(s, m, w, first, last, c, r, &one);
    for (int k = first; k <= last && !status; k++) {
        if (!(part_info[k].set & c->sets)) continue;
        describe_part(s, m, w, k, c, 1);
        status = run_part(s, c, k, s->u[k], 1, &one);
        r[k].tensors_touched = one.tensors_touched;
        r[k].seconds_apply += one.seconds_apply;
        int set = 0;
        while (!(part_info[k].set >> set & 1)) set++;
        add_report(&m->set_report[set], &r[k], before[k]);
        add_report(total, &r[k], before[k]);
    }
    if (!status) return 0;
    total->status = one.status;
    memcpy(total->message, one.message, sizeof total->message);
    return -1;
}

// Rescales the sets that were asked for, parameters and optimizer state, in place. Returns 0, or -1 with report->message set. What each
// set reports is in m->set_report.
static int rescale_model(model *m, const config *c, rescale_report *report) {
    const size_t n = 4 * (size_t)m->C, wide = (size_t)max_int(4 * m->C, m->V);
    parts s;
    double *memory = (double *)train_alloc(NULL, n * (N_PARTS + 3) + 3 * wide, sizeof *memory), *at = memory;
    memset(&s, 0, sizeof s);
    for (int k = 0; k < N_PARTS; k++) s.u[k] = at + (size_t)k * n;
    at += N_PARTS * n;
    s.next = at;
    s.p.arriving = at + n;
    s.p.going = at + 2 * n;
    at += 3 * n;
    s.row = at;
    s.col = at + wide;
    s.p.ones = at + 2 * wide;
    for (size_t i = 0; i < wide; i++) s.p.ones[i] = 1;
    s.p.copy = (real *)train_alloc(NULL, (wide + n) * (size_t)m->C + 8 * n + 2 * wide, sizeof *s.p.copy);
    memset(report, 0, sizeof *report);
    report->converged = 1;
    for (int set = 0; set < N_SETS; set++) m->set_report[set] = *report;
    int status = 0;
    for (int l = 0; l < m->L && !status; l++) {
        if (c->sets & (SET_LN | SET_QK | SET_VO)) status = rescale_parts(&s, m, &m->w.block[l], PART_LN1, PART_VO, c, report);
        if (c->sets & (SET_LN | SET_MLP) && !status) status = rescale_parts(&s, m, &m->w.block[l], PART_LN2, PART_MLP, c, report);
    }
    if (c->sets & SET_LN && !m->tied && !status) status = rescale_parts(&s, m, NULL, PART_HEAD, PART_HEAD, c, report);
    free(s.p.copy);
    free(memory);
    return status;
}

// Logits of a fixed random sequence, as floats in fresh memory; *n of them.
static float *probe_outputs(model *m, size_t *n) {
    const int T = min_int(m->T, min_int(64, m->head_rows));
    *n = (size_t)T * (size_t)m->V;
    float *out = (float *)train_alloc(NULL, *n, sizeof *out);
    for (int t = 0; t < T; t++) m->tokens[t] = (int)rng_below(rng_word_at(1, rng_stream(RNG_TEST, 0), (uint64_t)t), (uint32_t)m->V);
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

// ---------------------------------------------------------------------------------------------------------------- data

// Tokens for training and validation.
typedef struct corpus {
    char name[64];
    int bytes;                   // tokens are bytes
    int start;                   // stands for an empty prompt: a newline where the vocabulary has one, else 0
    uint16_t *train, *val;       // one allocation each; val may be the end of train's
    size_t n_train, n_val;
    uint16_t *owned[2];
} corpus;

static void corpus_free(corpus *d) {
    free(d->owned[0]);
    free(d->owned[1]);
    memset(d, 0, sizeof *d);
}

// Reads the tokens of a text (their bytes) or of a token shard. *vocabulary = 0: set to 256, or for a
// shard to GPT-2's 50257. Returns 0, or -1 with a message that names the file.
static int load_tokens(const char *name, const char *dir, int *vocabulary, int *bytes, uint16_t **tokens, size_t *n, char *err, size_t size) {
    *bytes = !dataset_is_shard(name);
    if (*bytes) {
        dataset_text text;
        if (dataset_text_load(name, dir, &text, err, size)) return -1;
        *tokens = (uint16_t *)train_alloc(NULL, text.n, sizeof **tokens);
        *n = text.n;
        for (size_t i = 0; i < text.n; i++) (*tokens)[i] = text.bytes[i];
        dataset_text_free(&text);
    } else {
        dataset_shard shard;
        if (dataset_shard_load(name, &shard, err, size)) return -1;
        *tokens = shard.tokens;
        *n = shard.n;
    }
    if (!*vocabulary) *vocabulary = *bytes ? 256 : 50257;
    for (size_t i = 0; i < *n; i++)
        if ((*tokens)[i] >= *vocabulary) {
            log_error(err, size, "%s: %s %zu is %d, beyond the vocabulary of %d (--vocabulary)", name, *bytes ? "byte" : "token", i, (*tokens)[i],
                      *vocabulary);
            free(*tokens);
            *tokens = NULL;
            return -1;
        }
    return 0;
}

// Loads --data and --val-data; without the latter the last tenth of the data validates. Returns 0, or -1 with a message.
static int corpus_load(corpus *d, config *c, char *err, size_t size) {
    const size_t window = (size_t)c->context + 1;
    int bytes;
    memset(d, 0, sizeof *d);
    snprintf(d->name, sizeof d->name, "%.63s", c->train.data);
    if (load_tokens(c->train.data, c->train.data_dir, &c->vocabulary, &d->bytes, &d->owned[0], &d->n_train, err, size)) return -1;
    d->train = d->owned[0];
    d->start = d->bytes && c->vocabulary > '\n' ? '\n' : 0;
    if (c->val_data) {
        if (load_tokens(c->val_data, c->train.data_dir, &c->vocabulary, &bytes, &d->owned[1], &d->n_val, err, size)) return -1;
        if (bytes != d->bytes) return log_error(err, size, "--val-data: %s and %s are not the same kind of file", c->val_data, c->train.data);
        d->val = d->owned[1];
    } else {
        const size_t tenth = d->n_train / 10;
        d->n_val = tenth > window ? tenth : window;
        if (d->n_train < 2 * window)
            return log_error(err, size, "%s: too short: expected at least %zu tokens, for training and validation windows of --context %d and its "
                             "next token, found %zu", c->train.data, 2 * window, c->context, d->n_train);
        d->n_train -= d->n_val;
        d->val = d->train + d->n_train;
    }
    if (d->n_train < window || d->n_val < window)
        return log_error(err, size, "%s: too short: expected at least %zu tokens (--context and one), found %zu",
                         d->n_train < window ? c->train.data : c->val_data, window, d->n_train < window ? d->n_train : d->n_val);
    if (c->train.limit && d->n_train > (size_t)c->train.limit * (size_t)c->context + 1) d->n_train = (size_t)c->train.limit * (size_t)c->context + 1;
    return 0;
}

// A number that other tokens would change.
static uint64_t corpus_fingerprint(const corpus *d) {
    const uint64_t n[] = {d->n_train, d->n_val, (uint64_t)d->bytes};
    safetensors_xxh64 h;
    safetensors_xxh64_init(&h);
    safetensors_xxh64_update(&h, n, sizeof n);
    safetensors_xxh64_update(&h, d->train, d->n_train * sizeof *d->train);
    safetensors_xxh64_update(&h, d->val, d->n_val * sizeof *d->val);
    return safetensors_xxh64_digest(&h);
}

// ------------------------------------------------------------------------------------------------------------ training

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

// Where window i of an epoch starts. Shuffled: the windows are in a new order and shifted by a new offset every epoch, so that the
// same text is cut differently.
static size_t window_start(const trainer *t, int64_t epoch, int64_t i) {
    const size_t T = (size_t)t->m.T, spare = t->data.n_train - 1 - (size_t)t->windows * T;
    if (t->c->train.shuffle == SHUFFLE_NONE) return (size_t)i * T;
    const uint64_t seed = (uint64_t)t->c->train.seed;
    const uint32_t shift = rng_below(rng_word_at(seed, rng_stream(RNG_AUGMENTATION, 0), (uint64_t)epoch), (uint32_t)(spare < T ? spare + 1 : T));
    return (size_t)rng_permute((uint32_t)i, (uint32_t)t->windows, rng_permute_key(seed, (uint64_t)epoch)) * T + shift;
}

// Loads up to max_B sequences of the step to come, from place `done` of its batch of `rows` on; returns how many.
static int next_micro_batch(trainer *t, int done, int rows) {
    model *m = &t->m;
    int64_t epoch;
    int first;
    train_batch(&t->run, &epoch, &first);
    const int B = min_int(m->max_B, rows - done);
    for (int b = 0; b < B; b++) load_window(m, t->data.train, window_start(t, epoch, first + done + b), b);
    return B;
}

// Mean loss and accuracy over disjoint windows: all of the validation tokens, or as many of the training tokens, spread evenly.
static void evaluate(void *self, int test, double *loss, double *accuracy) {
    trainer *t = (trainer *)self;
    model *m = &t->m;
    const size_t T = (size_t)m->T, in_val = (t->data.n_val - 1) / T, in_train = (t->data.n_train - 1) / T;
    const size_t windows = test || in_val < in_train ? in_val : in_train;
    double sum = 0, hits = 0;
    for (size_t first = 0; first < windows; first += (size_t)m->max_B) {
        const int B = windows - first < (size_t)m->max_B ? (int)(windows - first) : m->max_B;
        const char *what = test ? "evaluating on validation data" : "evaluating on training data";
        if (train_pause(&t->run, what, (int64_t)first, (int64_t)windows)) return;
        for (int b = 0; b < B; b++) {
            const size_t i = first + (size_t)b;
            load_window(m, test ? t->data.val : t->data.train, test ? i * T : i * in_train / windows * T, b);
        }
        forward(m, B, m->T, 0);
        sum += loss_forward_backward(m, B * m->T, 0, &hits);
    }
    *loss = sum / (double)(windows * T);
    *accuracy = hits / (double)(windows * T);
}

static int rescale_now(void *self, rescale_report *report, double *moved) {
    static const char *const name[N_SETS] = {"mlp", "vo", "qk", "ln"};
    trainer *t = (trainer *)self;
    const int status = moved ? rescale_and_measure(&t->m, t->c, report, moved) : rescale_model(&t->m, t->c, report);
    for (int k = 0; k < N_SETS && !status && moved; k++) {
        const rescale_report *r = &t->m.set_report[k];
        if (!(t->c->sets >> k & 1)) continue;
        log_progress_line(&t->run.progress, "set %s: objective %.6g -> %.6g, max gradient %.1e (optimum: below %.1e), max |log lambda| %.2f",
                          name[k], r->objective_before, r->objective_after, r->grad_inf, r->grad_tolerance, r->max_abs_log_lambda);
    }
    return status;
}
static float *outputs(void *self, size_t *n) { return probe_outputs(&((trainer *)self)->m, n); }
static double norm_of(void *self, const float *array) { return array_norm(&((trainer *)self)->m, (const real *)(const void *)array); }

// The training loop. A step makes as many passes over micro-batches as its batch needs, then one update. Returns the exit
// status.
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

// ------------------------------------------------------------------------------------------------------------ sampling

static int descending(const void *a, const void *b) {
    const real x = *(const real *)a, y = *(const real *)b;
    return (x < y) - (x > y);
}

// Draws from softmax(logits / temperature) over the top_k largest (0: all); temperature 0: the largest. Uses `work` [V]; uniform in [0, 1).
static int draw(const real *logits, int V, double temperature, int top_k, double uniform, real *work) {
    int best = 0, last = 0;
    for (int v = 1; v < V; v++)
        if (logits[v] > logits[best]) best = v;
    if (temperature == 0) return best;
    real least = -INFINITY;
    if (top_k > 0 && top_k < V) {
        memcpy(work, logits, (size_t)V * sizeof(real));
        qsort(work, (size_t)V, sizeof(real), descending);
        least = work[top_k - 1];
    }
    double sum = 0, below = 0;
    for (int v = 0; v < V; v++) {
        work[v] = logits[v] >= least ? (real)exp(((double)logits[v] - (double)logits[best]) / temperature) : 0;
        sum += (double)work[v];
    }
    for (int v = 0; v < V; v++) {
        if (work[v] > 0) last = v;
        below += (double)work[v];
        if (uniform * sum < below) return v;
    }
    return last;
}

// Continues text[n] up to text[end], or until the run is interrupted; returns where the text ends now. The context is
// text[start ...], at first the last T tokens; positions whose keys and values are known are not computed again. When it
// is full, its later half starts the next.
static int continue_text(trainer *t, int *text, int n, int end) {
    model *m = &t->m;
    const config *c = t->c;
    const int first = n;
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
        const double uniform = (double)rng_uniform_at((uint64_t)c->train.seed, rng_stream(RNG_SAMPLING, 0), (uint64_t)n);
        text[n] = draw(m->logits, m->V, c->temperature, c->top_k, uniform, work);
        known = T;
    }
    free(work);
    return n;
}

// Prints the prompt and `sample` more tokens: text as it is, but control characters as ?, tokens as numbers. Returns 0, or the exit
// status of an interruption, which leaves the sample shorter.
static int sample_text(trainer *t) {
    const config *c = t->c;
    const int prompt = (int)strlen(c->prompt), first = prompt ? 0 : 1;  // what stands for an empty prompt is not printed
    const int n = first + prompt, end = n + c->sample;
    int *text = (int *)train_alloc(NULL, (size_t)end, sizeof *text);
    text[0] = t->data.start;
    for (int i = 0; i < prompt; i++) text[i] = (unsigned char)c->prompt[i];
    const int reached = continue_text(t, text, n, end);
    log_progress_clear(&t->run.progress);
    for (int i = first; i < reached; i++) {
        const int v = text[i];
        if (!t->data.bytes) printf("%d ", v);
        else putchar((v < 32 && v != '\n' && v != '\t') || v == 127 ? '?' : v);
    }
    putchar('\n');
    free(text);
    if (reached == end) return 0;
    char message[128];
    snprintf(message, sizeof message, "interrupted after %d of %d tokens of the sample", reached - n, end - n);
    train_fail(&t->run, message);
    return log_interrupt_status();
}

// -------------------------------------------------------------------------------------------------------- command line

// The sets named in a list like mlp,vo,qk,ln; exits with a usage error on another name.
static int parse_sets(const char *list) {
    static const char *const name[] = {"mlp", "vo", "qk", "ln"};  // in the order of SET_MLP, SET_VO, ...
    int sets = 0;
    for (const char *p = list;; p++) {  // at the start of a name
        const size_t n = strcspn(p, ",");
        int k = 0;
        while (k < 4 && (strlen(name[k]) != n || strncmp(p, name[k], n))) k++;
        if (k == 4) cli_usage_error("train_gpt_style", "--rescale-sets: expected a list of mlp, vo, qk, ln, got '%s'", list);
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
    c.train.rescale = RESCALE_OFF;  // with AdamW it gained nothing where we measured it: dev/paper/shakespeare.sh
    c.rescale_sets = "mlp,vo,qk,ln";
    c.temperature = 0.8;
    c.prompt = "";
    return c;
}

// Fills the configuration from the command line; exits on --help, --version and usage errors.
static void parse_command_line(config *c, int argc, char **argv) {
    train_options *o = &c->train;
    cli_option options[] = {
        TRAIN_DATA_ROWS(o, "shakespeare, grammar (built in), a text file, or a token shard (.bin)"),
        CLI_STRING("val-data", &c->val_data, "FILE", "validation data of the same kind (default: the last tenth of --data)"),
        CLI_INT("vocabulary", &c->vocabulary, "N", 0, 65536, "tokens (0: 256 for text, 50257 for a shard)"),
        CLI_GROUP("Model"),
        CLI_CHOICE("model", &c->model, "tiny|small|124M", "preset of the four sizes: 4,4,128,128 6,6,384,256 12,12,768,1024"),
        CLI_INT("layers", &c->layers, "N", 0, MAX_LAYERS, "transformer blocks (0: the preset's)"),
        CLI_INT("heads", &c->heads, "N", 0, 1024, "attention heads, a divisor of the channels"),
        CLI_INT("channels", &c->channels, "N", 0, 65536, "width of the residual stream"),
        CLI_INT("context", &c->context, "N", 0, 1 << 20, "positions"),
        CLI_FLAG("untied", &c->untied, "a head with weights of its own"),
        TRAIN_INIT_SCALE_ROW(o),
        TRAIN_RESCALING_ROWS(o),
        CLI_STRING("rescale-sets", &c->rescale_sets, "LIST", "symmetries to rescale"),
        CLI_GROUP("Training"),
        CLI_DOUBLE("lr", &o->lr, "X", 0, CLI_NO_MAX, CLI_ABOVE_MIN, "learning rate of AdamW (--model small: 1e-3, 124M: 6e-4)"),
        CLI_DOUBLE("beta1", &c->beta1, "X", 0, 1, CLI_BELOW_MAX, "decay of AdamW's first moment"),
        CLI_DOUBLE("beta2", &c->beta2, "X", 0, 1, CLI_BELOW_MAX, "decay of AdamW's second moment"),
        CLI_DOUBLE("weight-decay", &o->weight_decay, "X", 0, CLI_NO_MAX, 0, "decoupled, on matrices only"),
        CLI_DOUBLE("clip", &c->clip, "X", 0, CLI_NO_MAX, 0, "bound on the gradient's norm (0: none)"),
        CLI_CHOICE("schedule", &o->schedule, "constant|cosine|one-cycle",
                   "of the learning rate; cosine ends at zero; one-cycle is PyTorch's "
                   "OneCycleLR(max_lr=LR, cycle_momentum=False)"),
        CLI_INT("warmup", &o->warmup, "N", 0, INT_MAX, "steps of linear warm-up"),
        TRAIN_LENGTH_ROWS(o),
        TRAIN_SAMPLING_ROWS(o),
        CLI_INT("micro-batch", &c->micro_batch, "N", 0, INT_MAX, "samples per pass, gradients add up over a batch (0: all at once)"),
        CLI_FLAG("recompute", &c->recompute, "keep one layer's activations and compute the others again: less memory"),
        TRAIN_OUTPUT_ROWS(o),
        CLI_GROUP("Sampling, after training"),
        CLI_INT("sample", &c->sample, "N", 0, 1 << 24, "print N tokens of text"),
        CLI_TEXT("prompt", &c->prompt, "TEXT", "what it continues; of one beyond --context, its end"),
        CLI_DOUBLE("temperature", &c->temperature, "X", 0, CLI_NO_MAX, 0, "of the softmax (0: always the likeliest)"),
        CLI_INT("top-k", &c->top_k, "N", 0, INT_MAX, "draw among the N likeliest tokens (0: all)"),
    };
    const int n = sizeof options / sizeof *options;
    const char *program = "train_gpt_style";
    train_parse(program, "Trains a GPT-style transformer on a CPU.", VERSION, o, options, n, argc, argv);
    train_check_options(program, o, options, n);
    const struct preset *p = &presets[c->model];
    if (!c->layers) c->layers = p->layers;
    if (!c->heads) c->heads = p->heads;
    if (!c->channels) c->channels = p->channels;
    if (!c->context) c->context = p->context;
    if (!cli_given(options, n, "lr")) o->lr = p->lr;
    if (c->channels % c->heads) cli_usage_error(program, "--heads: %d does not divide the %d channels", c->heads, c->channels);
    c->sets = parse_sets(c->rescale_sets);
    static const char *const of_sampling[] = {"prompt", "temperature", "top-k"};
    for (int i = 0; i < 3 && !c->sample && !o->quiet; i++) {
        const char *name = of_sampling[i];
        if (cli_given(options, n, name) != CLI_TYPED) continue;
        message_print(program, "warning: --%s is unused without --sample", name);
    }
}

// Loads the data, builds and initialises the model, trains, saves, samples. Returns the exit status.
static int run(config *c) {
    static trainer t;
    char err[2 * LOG_PATH], device[256];
    memset(&t, 0, sizeof t);
    train_run *r = &t.run;
    t.c = c;
    train_run_init(r, "train_gpt_style", VERSION, &c->train);
    if (corpus_load(&t.data, c, err, sizeof err)) return train_fail(r, err);
    for (const char *p = c->prompt; *p; p++)
        if (!t.data.bytes || (unsigned char)*p >= c->vocabulary) {
            snprintf(err, sizeof err, t.data.bytes ? "--prompt: byte %d is beyond the vocabulary of %d" : "--prompt: the data are tokens, not text",
                     (unsigned char)*p, c->vocabulary);
            return train_fail(r, err);
        }
    const int64_t windows = ((int64_t)t.data.n_train - 1) / c->context;
    t.windows = windows > 1 && c->train.shuffle == SHUFFLE_EPOCH ? windows - 1 : windows;
    train_set_length(r, t.windows);
    const int at_once = c->micro_batch ? min_int(c->micro_batch, r->batch) : r->batch;
    if ((double)at_once * c->context > INT_MAX / 4)
        cli_usage_error("train_gpt_style", "--batch-size: too many tokens at once: split the batch by --micro-batch");
    if (model_create(&t.m, c, at_once, 1, err, sizeof err)) return train_fail(r, err);
    train_describe(&t.m.net, "heads", c->heads);
    r->data = corpus_fingerprint(&t.data);
    r->net = &t.m.net;
    r->step_loss = t.step_loss;
    r->backend = gemm_backend();
    r->unit = "tokens";
    r->units_per_sample = c->context;
    r->flops_per_sample = step_flops(&t.m, 1, t.m.T);
    r->test_name = "val";
    r->trainer = &t;
    r->hooks.evaluate = evaluate;
    r->hooks.rescale = rescale_now;
    r->hooks.outputs = outputs;
    r->hooks.norm = norm_of;
    device_describe(device, sizeof device);
    log_progress_line(&r->progress, "%s, %s", device, gemm_backend());
    log_progress_line(&r->progress, "%s: %zu training and %zu validation tokens; %d layers, %d heads, %d channels, context %d, vocabulary %d, "
                      "%lld parameters", t.data.name, t.data.n_train, t.data.n_val, t.m.L, t.m.NH, t.m.C, t.m.T, t.m.V,
                      (long long)train_parameter_count(&t.m.net));
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
