// ref_gpt.h -- the transformer of train_gpt_style.c by definition: plain loops in double, whole T x T matrices.
//
// For tests only, and independent of the trainer: it shares no code with it.
//
//     RefGpt r = {L, NH, C, T_max, V, tied};
//     ref_gpt_size(&r)                                    parameters, in the order wte, wpe, layers, ln_f, head
//     (untied) ref_gpt_loss(&r, theta, tokens, targets, B, T, logits, dtheta)
//         mean cross-entropy over B * T tokens; logits[B * T][V] and dtheta[size] are filled where not NULL
//     ref_gpt_output_gradient(&r, theta, tokens, B, T, given, dtheta)
//         dtheta = gradient of sum of given[B * T][V] times the logits
//     ref_gpt_layernorm, ref_gpt_attention, ref_gpt_cross_entropy and ..._backward: the pieces
// A layer's parameters: ln_1 weight and bias, c_attn weight [3C][C] and bias, c_proj, ln_2, c_fc [4C][C], c_proj
// [C][4C].
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int L, NH, C, T_max, V, tied;
} RefGpt;

static inline double *ref_gpt_doubles(size_t n) {
    double *p = (double *)calloc(n ? n : 1, sizeof(double));
    if (p) return p;
    fprintf(stderr, "ref_gpt.h: out of memory\n");
    exit(1);
}

static inline size_t ref_gpt_layer_size(const RefGpt *r) { return (size_t)(12 * r->C * r->C + 13 * r->C); }
static inline size_t ref_gpt_size(const RefGpt *r) {
    return (size_t)((r->V * (r->tied ? 1 : 2) + r->T_max) * r->C + 2 * r->C) + (size_t)r->L * ref_gpt_layer_size(r);
}

// y[o] = W x + b, W [out][in].
static inline void ref_gpt_linear(double *y, const double *W, const double *b, const double *x, int out, int in) {
    for (int o = 0; o < out; o++) {
        y[o] = b ? b[o] : 0;
        for (int i = 0; i < in; i++) y[o] += W[o * in + i] * x[i];
    }
}
// dx += W^T dy; dW += dy x^T; db += dy.
static inline void ref_gpt_linear_backward(double *dx, double *dW, double *db, const double *W, const double *x,
                                           const double *dy, int out, int in) {
    for (int o = 0; o < out; o++) {
        if (db) db[o] += dy[o];
        for (int i = 0; i < in; i++) {
            dx[i] += W[o * in + i] * dy[o];
            dW[o * in + i] += dy[o] * x[i];
        }
    }
}

static inline void ref_gpt_layernorm(double *y, const double *x, const double *gain, const double *bias, int C) {
    double mean = 0, var = 0;
    for (int c = 0; c < C; c++) mean += x[c] / C;
    for (int c = 0; c < C; c++) var += (x[c] - mean) * (x[c] - mean) / C;
    for (int c = 0; c < C; c++) y[c] = (x[c] - mean) / sqrt(var + 1e-5) * gain[c] + bias[c];
}
// dx += ..., through the whole Jacobian d hat_i / d x_j = (delta_ij - 1 / C - hat_i hat_j / C) / std.
static inline void ref_gpt_layernorm_backward(double *dx, double *dgain, double *dbias, const double *x,
                                              const double *gain, const double *dy, int C) {
    double mean = 0, var = 0;
    for (int c = 0; c < C; c++) mean += x[c] / C;
    for (int c = 0; c < C; c++) var += (x[c] - mean) * (x[c] - mean) / C;
    const double std = sqrt(var + 1e-5);
    for (int i = 0; i < C; i++) {
        const double hat_i = (x[i] - mean) / std;
        dgain[i] += dy[i] * hat_i;
        dbias[i] += dy[i];
        for (int j = 0; j < C; j++) {
            const double hat_j = (x[j] - mean) / std;
            dx[j] += dy[i] * gain[i] * ((i == j) - 1.0 / C - hat_i * hat_j / C) / std;
        }
    }
}

// Causal attention of one sequence: qkv [T][3C] -> out [T][C]; p [NH][T][T] receives the probabilities.
static inline void ref_gpt_attention(double *out, double *p, const double *qkv, int T, int C, int NH) {
    const int HS = C / NH;
    for (int h = 0; h < NH; h++)
        for (int i = 0; i < T; i++) {
            double *row = p + ((size_t)h * (size_t)T + (size_t)i) * (size_t)T, sum = 0, largest = -1e300;
            const double *query = qkv + i * 3 * C + h * HS;
            for (int j = 0; j <= i; j++) {
                const double *key = qkv + j * 3 * C + C + h * HS;
                row[j] = 0;
                for (int c = 0; c < HS; c++) row[j] += query[c] * key[c] / sqrt((double)HS);
                if (row[j] > largest) largest = row[j];
            }
            for (int j = 0; j <= i; j++) {
                row[j] = exp(row[j] - largest);
                sum += row[j];
            }
            for (int j = 0; j < T; j++) row[j] = j <= i ? row[j] / sum : 0;
            for (int c = 0; c < HS; c++) {
                out[i * C + h * HS + c] = 0;
                for (int j = 0; j <= i; j++) out[i * C + h * HS + c] += row[j] * qkv[j * 3 * C + 2 * C + h * HS + c];
            }
        }
}
// dqkv = gradient, given the probabilities and dout.
static inline void ref_gpt_attention_backward(double *dqkv, const double *p, const double *qkv, const double *dout,
                                              int T, int C, int NH) {
    const int HS = C / NH;
    memset(dqkv, 0, (size_t)(T * 3 * C) * sizeof(double));
    double *dp = ref_gpt_doubles((size_t)T);
    for (int h = 0; h < NH; h++)
        for (int i = 0; i < T; i++) {
            const double *row = p + ((size_t)h * (size_t)T + (size_t)i) * (size_t)T;
            for (int j = 0; j <= i; j++) {
                dp[j] = 0;
                for (int c = 0; c < HS; c++) {
                    dp[j] += dout[i * C + h * HS + c] * qkv[j * 3 * C + 2 * C + h * HS + c];
                    dqkv[j * 3 * C + 2 * C + h * HS + c] += row[j] * dout[i * C + h * HS + c];
                }
            }
            for (int j = 0; j <= i; j++) {
                double ds = 0;  // softmax's Jacobian
                for (int k = 0; k <= i; k++) ds += dp[k] * row[k] * ((j == k) - row[j]);
                for (int c = 0; c < HS; c++) {
                    dqkv[i * 3 * C + h * HS + c] += ds * qkv[j * 3 * C + C + h * HS + c] / sqrt((double)HS);
                    dqkv[j * 3 * C + C + h * HS + c] += ds * qkv[i * 3 * C + h * HS + c] / sqrt((double)HS);
                }
            }
        }
    free(dp);
}

// Loss of one row of logits; d[V] (may be NULL) receives its gradient.
static inline double ref_gpt_cross_entropy(double *d, const double *logits, int target, int V) {
    double largest = logits[0], sum = 0;
    for (int v = 1; v < V; v++) largest = logits[v] > largest ? logits[v] : largest;
    for (int v = 0; v < V; v++) sum += exp(logits[v] - largest);
    for (int v = 0; d && v < V; v++) d[v] = exp(logits[v] - largest) / sum - (v == target);
    return log(sum) + largest - logits[target];
}

// What a layer leaves for its backward pass, of one sequence.
typedef struct {
    double *x, *ln1, *qkv, *p, *att, *mid, *ln2, *fc;
} RefGptLayer;

// Places of the parameters: in theta, and in a layer.
typedef struct {
    size_t wpe, blocks, layer, lnf, head;  // `layer` is the size of one of the L in `blocks`
    size_t ln1_w, ln1_b, qkv_w, qkv_b, out_w, out_b, ln2_w, ln2_b, fc_w, fc_b, proj_w, proj_b;
} RefGptPlaces;

static inline RefGptPlaces ref_gpt_places(const RefGpt *r) {
    const size_t c = (size_t)r->C;
    RefGptPlaces o;
    o.layer = ref_gpt_layer_size(r);
    o.wpe = (size_t)(r->V * r->C);
    o.blocks = o.wpe + (size_t)(r->T_max * r->C);
    o.lnf = o.blocks + (size_t)r->L * o.layer;
    o.head = r->tied ? 0 : o.lnf + 2 * c;
    o.ln1_w = 0;
    o.ln1_b = c;
    o.qkv_w = 2 * c;
    o.qkv_b = o.qkv_w + 3 * c * c;
    o.out_w = o.qkv_b + 3 * c;
    o.out_b = o.out_w + c * c;
    o.ln2_w = o.out_b + c;
    o.ln2_b = o.ln2_w + c;
    o.fc_w = o.ln2_b + c;
    o.fc_b = o.fc_w + 4 * c * c;
    o.proj_w = o.fc_b + 4 * c;
    o.proj_b = o.proj_w + 4 * c * c;
    return o;
}

static inline RefGptLayer *ref_gpt_layers_create(const RefGpt *r, int T) {
    const size_t TC = (size_t)(T * r->C);
    RefGptLayer *a = (RefGptLayer *)calloc((size_t)r->L + 1, sizeof *a);
    for (int l = 0; l <= r->L; l++) {
        a[l].x = ref_gpt_doubles(TC);
        a[l].ln1 = ref_gpt_doubles(TC);
        a[l].qkv = ref_gpt_doubles(3 * TC);
        a[l].att = ref_gpt_doubles(TC);
        a[l].p = ref_gpt_doubles((size_t)r->NH * (size_t)T * (size_t)T);
        a[l].mid = ref_gpt_doubles(TC);
        a[l].ln2 = ref_gpt_doubles(TC);
        a[l].fc = ref_gpt_doubles(4 * TC);
    }
    return a;
}
static inline void ref_gpt_layers_free(const RefGpt *r, RefGptLayer *a) {
    for (int l = 0; l <= r->L; l++) {
        free(a[l].x);
        free(a[l].ln1);
        free(a[l].qkv);
        free(a[l].p);
        free(a[l].att);
        free(a[l].mid);
        free(a[l].ln2);
        free(a[l].fc);
    }
    free(a);
}

// One layer, with parameters w: a->x [T][C] to x_next [T][C].
static inline void ref_gpt_layer_forward(const RefGpt *r, const RefGptPlaces *o, RefGptLayer *a, double *x_next,
                                         const double *w, int T) {
    const int C = r->C;
    for (int t = 0; t < T; t++) {
        ref_gpt_layernorm(a->ln1 + t * C, a->x + t * C, w + o->ln1_w, w + o->ln1_b, C);
        ref_gpt_linear(a->qkv + 3 * t * C, w + o->qkv_w, w + o->qkv_b, a->ln1 + t * C, 3 * C, C);
    }
    ref_gpt_attention(a->att, a->p, a->qkv, T, C, r->NH);
    for (int t = 0; t < T; t++) {
        double *mid = a->mid + t * C, *fc = a->fc + 4 * t * C;
        ref_gpt_linear(mid, w + o->out_w, w + o->out_b, a->att + t * C, C, C);
        for (int i = 0; i < C; i++) mid[i] += a->x[t * C + i];
        ref_gpt_layernorm(a->ln2 + t * C, mid, w + o->ln2_w, w + o->ln2_b, C);
        ref_gpt_linear(fc, w + o->fc_w, w + o->fc_b, a->ln2 + t * C, 4 * C, C);
        for (int i = 0; i < 4 * C; i++) fc[i] = fc[i] > 0 ? fc[i] : 0;
        ref_gpt_linear(x_next + t * C, w + o->proj_w, w + o->proj_b, fc, C, 4 * C);
        for (int i = 0; i < C; i++) x_next[t * C + i] += mid[i];
    }
}

// Back through one layer: dx [T][C] is the gradient behind it and becomes that in front of it; d += that of w.
static inline void ref_gpt_layer_backward(const RefGpt *r, const RefGptPlaces *o, const RefGptLayer *a, double *dx,
                                          double *d, const double *w, int T) {
    const int C = r->C;
    const size_t c = (size_t)C, TC = (size_t)(T * C);
    double *datt = ref_gpt_doubles(TC), *dqkv = ref_gpt_doubles(3 * TC);
    double *dfc = ref_gpt_doubles(4 * c), *dln = ref_gpt_doubles(c);
    for (int t = 0; t < T; t++) {
        const double *fc = a->fc + 4 * t * C;
        double *dx_t = dx + t * C;
        memset(dfc, 0, 4 * c * sizeof(double));
        memset(dln, 0, c * sizeof(double));
        ref_gpt_linear_backward(dfc, d + o->proj_w, d + o->proj_b, w + o->proj_w, fc, dx_t, C, 4 * C);
        for (int i = 0; i < 4 * C; i++) dfc[i] = fc[i] > 0 ? dfc[i] : 0;
        ref_gpt_linear_backward(dln, d + o->fc_w, d + o->fc_b, w + o->fc_w, a->ln2 + t * C, dfc, 4 * C, C);
        ref_gpt_layernorm_backward(dx_t, d + o->ln2_w, d + o->ln2_b, a->mid + t * C, w + o->ln2_w, dln, C);
        ref_gpt_linear_backward(datt + t * C, d + o->out_w, d + o->out_b, w + o->out_w, a->att + t * C, dx_t, C, C);
    }
    ref_gpt_attention_backward(dqkv, a->p, a->qkv, datt, T, C, r->NH);
    for (int t = 0; t < T; t++) {
        double *dqkv_t = dqkv + 3 * t * C;
        memset(dln, 0, c * sizeof(double));
        ref_gpt_linear_backward(dln, d + o->qkv_w, d + o->qkv_b, w + o->qkv_w, a->ln1 + t * C, dqkv_t, 3 * C, C);
        ref_gpt_layernorm_backward(dx + t * C, d + o->ln1_w, d + o->ln1_b, a->x + t * C, w + o->ln1_w, dln, C);
    }
    free(datt);
    free(dqkv);
    free(dfc);
    free(dln);
}

// From the last layer's output x[C] of one token to its share of the mean loss over `tokens` tokens. row[V] receives
// the logits; where dtheta is not NULL, dx[C] receives the gradient of x. given[V], unless NULL: the gradient of the
// logits, in place of the loss's.
static inline double ref_gpt_head(const RefGpt *r, const RefGptPlaces *o, const double *theta, const double *x,
                                  int target, int tokens, const double *given, double *row, double *dtheta,
                                  double *dx) {
    const int C = r->C, V = r->V;
    const size_t c = (size_t)C;
    double *last = ref_gpt_doubles(c), *dlast = ref_gpt_doubles(c), *drow = ref_gpt_doubles((size_t)V);
    ref_gpt_layernorm(last, x, theta + o->lnf, theta + o->lnf + C, C);
    ref_gpt_linear(row, theta + o->head, NULL, last, V, C);
    const double loss = ref_gpt_cross_entropy(drow, row, target, V) / tokens;
    for (int v = 0; v < V; v++) drow[v] = given ? given[v] : drow[v] / tokens;
    if (dtheta) {
        memset(dx, 0, c * sizeof(double));
        ref_gpt_linear_backward(dlast, dtheta + o->head, NULL, theta + o->head, last, drow, V, C);
        ref_gpt_layernorm_backward(dx, dtheta + o->lnf, dtheta + o->lnf + C, x, theta + o->lnf, dlast, C);
    }
    free(last);
    free(dlast);
    free(drow);
    return loss;
}

// The whole network. given: as for ref_gpt_loss, or [B * T][V] with the gradient of the logits.
static inline double ref_gpt_pass(const RefGpt *r, const double *theta, const int *tokens, const int *targets, int B,
                                  int T, const double *given, double *logits, double *dtheta) {
    const int C = r->C, V = r->V, L = r->L;
    const RefGptPlaces o = ref_gpt_places(r);
    RefGptLayer *a = ref_gpt_layers_create(r, T);
    double loss = 0, *row = ref_gpt_doubles((size_t)V), *dx = ref_gpt_doubles((size_t)(T * C));
    if (dtheta) memset(dtheta, 0, ref_gpt_size(r) * sizeof(double));
    for (int b = 0; b < B; b++) {
        const int *token = tokens + b * T, *target = targets + b * T;
        for (int t = 0; t < T; t++)
            for (int i = 0; i < C; i++)
                a[0].x[t * C + i] = theta[token[t] * C + i] + theta[o.wpe + (size_t)(t * C + i)];
        for (int l = 0; l < L; l++)
            ref_gpt_layer_forward(r, &o, &a[l], a[l + 1].x, theta + o.blocks + (size_t)l * o.layer, T);
        for (int t = 0; t < T; t++) {
            const double *d = given ? given + (size_t)(b * T + t) * (size_t)V : NULL;
            loss += ref_gpt_head(r, &o, theta, a[L].x + t * C, target[t], B * T, d, row, dtheta, dx + t * C);
            if (logits) memcpy(logits + (size_t)(b * T + t) * (size_t)V, row, (size_t)V * sizeof(double));
        }
        if (!dtheta) continue;
        for (int l = L - 1; l >= 0; l--) {
            const size_t at = o.blocks + (size_t)l * o.layer;
            ref_gpt_layer_backward(r, &o, &a[l], dx, dtheta + at, theta + at, T);
        }
        for (int t = 0; t < T; t++)
            for (int i = 0; i < C; i++) {
                dtheta[token[t] * C + i] += dx[t * C + i];
                dtheta[o.wpe + (size_t)(t * C + i)] += dx[t * C + i];
            }
    }
    ref_gpt_layers_free(r, a);
    free(row);
    free(dx);
    return loss;
}
static inline double ref_gpt_loss(const RefGpt *r, const double *theta, const int *tokens, const int *targets, int B,
                                  int T, double *logits, double *dtheta) {
    return ref_gpt_pass(r, theta, tokens, targets, B, T, NULL, logits, dtheta);
}
// dtheta = the gradient of the sum of given[B * T][V] times the logits.
static inline void ref_gpt_output_gradient(const RefGpt *r, const double *theta, const int *tokens, int B, int T,
                                           const double *given, double *dtheta) {
    ref_gpt_pass(r, theta, tokens, tokens, B, T, given, NULL, dtheta);
}
