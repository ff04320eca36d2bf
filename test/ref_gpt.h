// ref_gpt.h -- the transformer of train_gpt_style.c by definition: plain loops in double, whole T x T matrices, one token after the other.
//
// For tests only, and independent of the trainer: it shares no code with it.
//
//     RefGpt r = {L, NH, C, T_max, V, tied};
//     ref_gpt_size(&r)                                    parameters, in the order wte, wpe, layers, ln_f, head (untied)
//     ref_gpt_loss(&r, theta, tokens, targets, B, T, logits, dtheta)
//         mean cross-entropy over B * T tokens; logits[B * T][V] and dtheta[size] are filled where not NULL
//     ref_gpt_layernorm, ref_gpt_attention, ref_gpt_cross_entropy and ..._backward: the pieces
// A layer's parameters: ln_1 weight and bias, c_attn weight [3C][C] and bias, c_proj, ln_2, c_fc [4C][C], mlp c_proj [C][4C].
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
static inline void ref_gpt_linear_backward(double *dx, double *dW, double *db, const double *W, const double *x, const double *dy, int out,
                                           int in) {
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
static inline void ref_gpt_layernorm_backward(double *dx, double *dgain, double *dbias, const double *x, const double *gain,
                                              const double *dy, int C) {
    double mean = 0, var = 0;
    for (int c = 0; c < C; c++) mean += x[c] / C;
    for (int c = 0; c < C; c++) var += (x[c] - mean) * (x[c] - mean) / C;
    const double std = sqrt(var + 1e-5);
    for (int i = 0; i < C; i++) {
        const double hat_i = (x[i] - mean) / std;
        dgain[i] += dy[i] * hat_i;
        dbias[i] += dy[i];
        for (int j = 0; j < C; j++) dx[j] += dy[i] * gain[i] * ((i == j) - 1.0 / C - hat_i * (x[j] - mean) / std / C) / std;
    }
}

// Causal attention of one sequence: qkv [T][3C] -> out [T][C]; p [NH][T][T] receives the probabilities.
static inline void ref_gpt_attention(double *out, double *p, const double *qkv, int T, int C, int NH) {
    const int HS = C / NH;
    for (int h = 0; h < NH; h++)
        for (int i = 0; i < T; i++) {
            double *row = p + ((size_t)h * (size_t)T + (size_t)i) * (size_t)T, sum = 0, largest = -1e300;
            for (int j = 0; j <= i; j++) {
                row[j] = 0;
                for (int c = 0; c < HS; c++) row[j] += qkv[i * 3 * C + h * HS + c] * qkv[j * 3 * C + C + h * HS + c] / sqrt((double)HS);
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
static inline void ref_gpt_attention_backward(double *dqkv, const double *p, const double *qkv, const double *dout, int T, int C, int NH) {
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

// The whole network; see the head of this file.
static inline double ref_gpt_loss(const RefGpt *r, const double *theta, const int *tokens, const int *targets, int B, int T, double *logits,
                                  double *dtheta) {
    const int C = r->C, V = r->V, L = r->L;
    const size_t TC = (size_t)(T * C), layer = ref_gpt_layer_size(r), wpe = (size_t)(V * C), blocks = wpe + (size_t)(r->T_max * C);
    const size_t lnf = blocks + (size_t)L * layer, head = r->tied ? 0 : lnf + 2 * (size_t)C;
    // Places of a layer's parameters.
    const size_t c = (size_t)C, ln1_w = 0, ln1_b = c, qkv_w = 2 * c, qkv_b = qkv_w + 3 * c * c, out_w = qkv_b + 3 * c, out_b = out_w + c * c,
                 ln2_w = out_b + c, ln2_b = ln2_w + c, fc_w = ln2_b + c, fc_b = fc_w + 4 * c * c, proj_w = fc_b + 4 * c, proj_b = proj_w + 4 * c * c;
    RefGptLayer *a = (RefGptLayer *)calloc((size_t)L + 1, sizeof *a);
    for (int l = 0; l <= L; l++) {
        a[l].x = ref_gpt_doubles(TC);
        a[l].ln1 = ref_gpt_doubles(TC);
        a[l].qkv = ref_gpt_doubles(3 * TC);
        a[l].att = ref_gpt_doubles(TC);
        a[l].p = ref_gpt_doubles((size_t)r->NH * (size_t)T * (size_t)T);
        a[l].mid = ref_gpt_doubles(TC);
        a[l].ln2 = ref_gpt_doubles(TC);
        a[l].fc = ref_gpt_doubles(4 * TC);
    }
    double loss = 0, *row = ref_gpt_doubles((size_t)V), *drow = ref_gpt_doubles((size_t)V), *final = ref_gpt_doubles(c), *dfinal = ref_gpt_doubles(c);
    double *dx = ref_gpt_doubles(TC), *datt = ref_gpt_doubles(TC), *dqkv = ref_gpt_doubles(3 * TC), *dfc = ref_gpt_doubles(4 * c), *dln = ref_gpt_doubles(c);
    if (dtheta) memset(dtheta, 0, ref_gpt_size(r) * sizeof(double));
    for (int b = 0; b < B; b++) {
        const int *token = tokens + b * T, *target = targets + b * T;
        for (int t = 0; t < T; t++)
            for (int i = 0; i < C; i++) a[0].x[t * C + i] = theta[token[t] * C + i] + theta[wpe + (size_t)(t * C + i)];
        for (int l = 0; l < L; l++) {
            const double *w = theta + blocks + (size_t)l * layer;
            for (int t = 0; t < T; t++) {
                ref_gpt_layernorm(a[l].ln1 + t * C, a[l].x + t * C, w + ln1_w, w + ln1_b, C);
                ref_gpt_linear(a[l].qkv + 3 * t * C, w + qkv_w, w + qkv_b, a[l].ln1 + t * C, 3 * C, C);
            }
            ref_gpt_attention(a[l].att, a[l].p, a[l].qkv, T, C, r->NH);
            for (int t = 0; t < T; t++) {
                double *mid = a[l].mid + t * C, *fc = a[l].fc + 4 * t * C;
                ref_gpt_linear(mid, w + out_w, w + out_b, a[l].att + t * C, C, C);
                for (int i = 0; i < C; i++) mid[i] += a[l].x[t * C + i];
                ref_gpt_layernorm(a[l].ln2 + t * C, mid, w + ln2_w, w + ln2_b, C);
                ref_gpt_linear(fc, w + fc_w, w + fc_b, a[l].ln2 + t * C, 4 * C, C);
                for (int i = 0; i < 4 * C; i++) fc[i] = fc[i] > 0 ? fc[i] : 0;
                ref_gpt_linear(a[l + 1].x + t * C, w + proj_w, w + proj_b, fc, C, 4 * C);
                for (int i = 0; i < C; i++) a[l + 1].x[t * C + i] += mid[i];
            }
        }
        for (int t = 0; t < T; t++) {
            ref_gpt_layernorm(final, a[L].x + t * C, theta + lnf, theta + lnf + C, C);
            ref_gpt_linear(row, theta + head, NULL, final, V, C);
            if (logits) memcpy(logits + (size_t)(b * T + t) * (size_t)V, row, (size_t)V * sizeof(double));
            loss += ref_gpt_cross_entropy(dtheta ? drow : NULL, row, target[t], V) / (B * T);
            if (!dtheta) continue;
            for (int v = 0; v < V; v++) drow[v] /= B * T;
            memset(dfinal, 0, c * sizeof(double));
            memset(dx + t * C, 0, c * sizeof(double));
            ref_gpt_linear_backward(dfinal, dtheta + head, NULL, theta + head, final, drow, V, C);
            ref_gpt_layernorm_backward(dx + t * C, dtheta + lnf, dtheta + lnf + C, a[L].x + t * C, theta + lnf, dfinal, C);
        }
        for (int l = L - 1; dtheta && l >= 0; l--) {
            const double *w = theta + blocks + (size_t)l * layer;
            double *d = dtheta + blocks + (size_t)l * layer;
            memset(datt, 0, TC * sizeof(double));
            for (int t = 0; t < T; t++) {
                memset(dfc, 0, 4 * c * sizeof(double));
                memset(dln, 0, c * sizeof(double));
                ref_gpt_linear_backward(dfc, d + proj_w, d + proj_b, w + proj_w, a[l].fc + 4 * t * C, dx + t * C, C, 4 * C);
                for (int i = 0; i < 4 * C; i++) dfc[i] = a[l].fc[4 * t * C + i] > 0 ? dfc[i] : 0;
                ref_gpt_linear_backward(dln, d + fc_w, d + fc_b, w + fc_w, a[l].ln2 + t * C, dfc, 4 * C, C);
                ref_gpt_layernorm_backward(dx + t * C, d + ln2_w, d + ln2_b, a[l].mid + t * C, w + ln2_w, dln, C);
                ref_gpt_linear_backward(datt + t * C, d + out_w, d + out_b, w + out_w, a[l].att + t * C, dx + t * C, C, C);
            }
            ref_gpt_attention_backward(dqkv, a[l].p, a[l].qkv, datt, T, C, r->NH);
            for (int t = 0; t < T; t++) {
                memset(dln, 0, c * sizeof(double));
                ref_gpt_linear_backward(dln, d + qkv_w, d + qkv_b, w + qkv_w, a[l].ln1 + t * C, dqkv + 3 * t * C, 3 * C, C);
                ref_gpt_layernorm_backward(dx + t * C, d + ln1_w, d + ln1_b, a[l].x + t * C, w + ln1_w, dln, C);
            }
        }
        for (int t = 0; dtheta && t < T; t++)
            for (int i = 0; i < C; i++) {
                dtheta[token[t] * C + i] += dx[t * C + i];
                dtheta[wpe + (size_t)(t * C + i)] += dx[t * C + i];
            }
    }
    for (int l = 0; l <= L; l++) {
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
    free(row);
    free(drow);
    free(final);
    free(dfinal);
    free(dx);
    free(datt);
    free(dqkv);
    free(dfc);
    free(dln);
    return loss;
}
