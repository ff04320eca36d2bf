// ref_cnn_rescale.h -- reference for rescaling the networks of ref_cnn.h: groups, diag(G), solvers for large nets.
//
// For tests only: from the definitions, in double precision; no code of rescale.cuh or the trainers. C11, C++17.
//
// CONTENTS
//   ref_cnn_get_theta, ref_cnn_set_theta     all parameters as one array theta[p], in the order of m.tensors
//   ref_cnn_groups                           which scalar parameter enters and leaves which unit, from the layers alone
//   ref_cnn_diag_g                           diag(G) by one squared forward and backward pass of one sample of ones;
//                                            ref_cnn_path_sums: of absolute values as well
//   ref_cnn_graph                            the network as a graph of scalar units: diag(G) by enumerating its paths
//   ref_cnn_problem                          the criterion F of ref_rescale.h: ref_F, ref_grad_F, ref_optimum
//   (dense), ... ref_pairs, ref_pairs_F, _grad, _unit_sweeps, _block_sweeps, _optimum
//                                            the same for large nets: parameters between the same two units are one
//   ref_cnn_published                        the published algorithm: arg-max pooling, 10 sweeps unit by unit
//   ref_cnn_rescale                          applies u to the network
//
// THE GROUPS
//   A group is a set of channels that are scaled alike wherever they appear. A convolution's rows and bias enter the
//   group of its output, its columns leave the group of its input. In front of a BatchNorm it enters nothing; gamma
//   and beta enter instead, so the function is the same in training and in evaluation mode. ReLU and pooling hand the
//   group on. An added shortcut makes both sides the same group: all that writes into a residual stream enters it,
//   all that reads it leaves it. A channel owns H * W columns of a linear layer behind it. Image and logits are never
//   scaled. Groups are numbered in the order in which the first tensor that enters them appears in m.tensors; units
//   group by group.
//
// HOW TO USE
//   RefCnnGroups gr = ref_cnn_groups(&m);
//   double *g = ref_doubles(gr.n_params), *u = ref_doubles(gr.n_units);
//   ref_cnn_diag_g(&m, REF_PATHS_SUM, g);                 // or REF_PATHS_MAX, as published
//   const RefProblem q = ref_cnn_problem(&gr, g);         // small nets: ref_optimum(&q, u), ref_unit_sweeps(&q, u,
//   ...) RefPairs pairs = ref_pairs(&q);                       // large nets: ref_pairs_optimum(&pairs, u)
//   ref_cnn_rescale(&m, &gr, u);                          // theta_i exp(-(Bu)_i / 2)
//   ref_pairs_free(&pairs); ref_cnn_groups_free(&gr);
#pragma once
#include "ref_cnn.h"
#include "ref_rescale.h"

// ---------------------------------------------------------------------------------------------------------------
// Parameters as one array

static inline void ref_cnn_get_theta(const RefCnn *m, double *theta) {
    for (int t = 0; t < m->n_tensors; theta += m->tensors[t++].n)
        memcpy(theta, m->tensors[t].data, m->tensors[t].n * sizeof *theta);
}

static inline void ref_cnn_set_theta(RefCnn *m, const double *theta) {
    for (int t = 0; t < m->n_tensors; theta += m->tensors[t++].n)
        memcpy(m->tensors[t].data, theta, m->tensors[t].n * sizeof *theta);
}

// Where tensor t begins in theta.
static inline size_t ref_cnn_offset(const RefCnn *m, int t) {
    size_t at = 0;
    for (int k = 0; k < t; k++) at += m->tensors[k].n;
    return at;
}

// ---------------------------------------------------------------------------------------------------------------
// Groups

typedef struct {
    int n_groups, n_units, n_params;
    int first_unit[REF_CNN_MAX_LAYERS + 1];   // units of group k: first_unit[k] .. first_unit[k + 1] - 1, by channel
    int layer_group[REF_CNN_MAX_LAYERS];      // group of a layer's output channels, -1: never scaled
    int tensor_enter[REF_CNN_MAX_TENSORS];    // group that a tensor's rows enter, -1: none
    int tensor_leave[REF_CNN_MAX_TENSORS];    // group that its columns leave, -1: none
    int *enter, *leave;                       // [n_params] unit of every scalar parameter, -1: none
} RefCnnGroups;

// The layer that stands for all layers with the same scale as l.
static inline int ref_cnn_same_scale(const int *parent, int l) {
    while (parent[l] != l) l = parent[l];
    return l;
}

// Finds layers whose outputs have the same scale (parent[] of a union-find), and the scales that must stay 1: those of
// the logits and of all that a BatchNorm normalises.
static inline void ref_cnn_same_scales(const RefCnn *m, int *parent, int *unscaled) {
    int fixed[REF_CNN_MAX_LAYERS] = {0};
    for (int l = 0; l < m->n_layers; l++) {
        const RefCnnLayer *layer = &m->layers[l];
        const int pools = layer->kind == REF_LAYER_MAX_POOL || layer->kind == REF_LAYER_AVG_POOL;
        const int passes = layer->kind == REF_LAYER_RELU || pools;
        parent[l] = l;
        if (passes && layer->input < 0) fixed[l] = 1; // an image that is only pooled
        if (passes && layer->input >= 0) parent[l] = ref_cnn_same_scale(parent, layer->input);
        if (layer->residual >= 0) {
            const int a = ref_cnn_same_scale(parent, l), b = ref_cnn_same_scale(parent, layer->residual);
            parent[a] = b;
        }
    }
    memset(unscaled, 0, (size_t)m->n_layers * sizeof *unscaled);
    for (int l = 0; l < m->n_layers; l++) {
        if (fixed[l] || l + 1 == m->n_layers) unscaled[ref_cnn_same_scale(parent, l)] = 1;
        if (m->layers[l].kind == REF_LAYER_NORM && m->layers[l].input >= 0)
            unscaled[ref_cnn_same_scale(parent, m->layers[l].input)] = 1;
    }
}

static inline RefCnnGroups ref_cnn_groups(const RefCnn *m) {
    RefCnnGroups gr;
    int parent[REF_CNN_MAX_LAYERS], unscaled[REF_CNN_MAX_LAYERS], number[REF_CNN_MAX_LAYERS];
    int owner[REF_CNN_MAX_TENSORS];
    memset(&gr, 0, sizeof gr);
    ref_cnn_same_scales(m, parent, unscaled);
    // Numbers, in the order of the tensors.
    for (int l = 0; l < m->n_layers; l++) {
        number[l] = -1;
        if (m->layers[l].weight >= 0) owner[m->layers[l].weight] = l;
        if (m->layers[l].bias >= 0) owner[m->layers[l].bias] = l;
    }
    for (int t = 0; t < m->n_tensors; t++) {
        const int root = ref_cnn_same_scale(parent, owner[t]);
        if (unscaled[root] || number[root] >= 0) continue;
        number[root] = gr.n_groups++;
        gr.first_unit[gr.n_groups] = gr.first_unit[gr.n_groups - 1] + m->layers[owner[t]].win.out_c;
    }
    gr.n_units = gr.first_unit[gr.n_groups];
    for (int l = 0; l < m->n_layers; l++) {
        const int root = ref_cnn_same_scale(parent, l);
        gr.layer_group[l] = unscaled[root] ? -1 : number[root];
    }
    // Every scalar parameter.
    gr.n_params = (int)ref_cnn_param_count(m);
    gr.enter = (int *)ref_grow(NULL, sizeof(int) * (size_t)gr.n_params);
    gr.leave = (int *)ref_grow(NULL, sizeof(int) * (size_t)gr.n_params);
    for (int t = 0, i = 0; t < m->n_tensors; t++) {
        const RefCnnLayer *layer = &m->layers[owner[t]];
        const int matrix = m->shapes[t].rank > 1; // a convolution's or a linear layer's weight
        const int out = gr.layer_group[owner[t]], in = matrix && layer->input >= 0 ? gr.layer_group[layer->input] : -1;
        // Kernel positions, or the columns of a channel.
        const int per_channel = matrix ? m->tensors[t].cols / layer->win.in_c : 1;
        gr.tensor_enter[t] = out;
        gr.tensor_leave[t] = in;
        for (int row = 0; row < m->tensors[t].rows; row++)
            for (int col = 0; col < m->tensors[t].cols; col++, i++) {
                gr.enter[i] = out >= 0 ? gr.first_unit[out] + row : -1;
                gr.leave[i] = in >= 0 ? gr.first_unit[in] + col / per_channel : -1;
            }
    }
    return gr;
}

static inline void ref_cnn_groups_free(RefCnnGroups *gr) {
    free(gr->enter);
    free(gr->leave);
    memset(gr, 0, sizeof *gr);
}

static inline RefProblem ref_cnn_problem(const RefCnnGroups *gr, const double *g) {
    RefProblem q;
    q.n_params = gr->n_params;
    q.n_units = gr->n_units;
    q.enter = gr->enter;
    q.leave = gr->leave;
    q.g = g;
    return q;
}

// Rescales the network by u[n_units].
static inline void ref_cnn_rescale(RefCnn *m, const RefCnnGroups *gr, const double *u) {
    const RefProblem q = ref_cnn_problem(gr, NULL);
    double *theta = ref_doubles((size_t)gr->n_params);
    ref_cnn_get_theta(m, theta);
    ref_apply(&q, u, theta, theta);
    ref_cnn_set_theta(m, theta);
    free(theta);
}

// ---------------------------------------------------------------------------------------------------------------
// diag(G)

// diag(G) into g[p]: parameters squared, BatchNorm as in evaluation mode (xhat = rstd^2 x + (mean rstd)^2), average
// pooling 1/k^2, no clipping, one sample of ones. Then g is the gradient of the sum of the outputs with respect to the
// squared parameters. Max-pooling: REF_PATHS_SUM adds its window, REF_PATHS_MAX follows the largest entry (as
// published). power 1: absolute values take the place of squares, everywhere. The gradients and all that the last pass
// kept are overwritten (layers[].arg keeps the arg-max); parameters and statistics are not changed.
static inline void ref_cnn_path_sums(RefCnn *m, int pool, int power, double *g) {
    const size_t p = ref_cnn_param_count(m), inputs = (size_t)(m->in_c * m->in_h * m->in_w);
    const int outputs = (int)ref_window_out(&m->layers[m->n_layers - 1].win);
    double *theta = ref_doubles(p), *squared = ref_doubles(p);
    double *ones = ref_doubles(inputs), *d = ref_doubles((size_t)outputs);
    double *saved[REF_CNN_MAX_LAYERS][2] = {{0}};
    ref_cnn_get_theta(m, theta);
    for (size_t i = 0; i < p; i++) squared[i] = pow(fabs(theta[i]), power);
    for (size_t i = 0; i < inputs; i++) ones[i] = 1;
    for (int o = 0; o < outputs; o++) d[o] = 1;
    ref_cnn_set_theta(m, squared);
    // (x - mean) * rstd with -mean^2 for mean and rstd^2 for rstd; eps is 0 in such a pass.
    for (int l = 0; l < m->n_layers; l++) {
        RefCnnLayer *layer = &m->layers[l];
        if (layer->kind != REF_LAYER_NORM) continue;
        const size_t c = (size_t)layer->win.out_c;
        saved[l][0] = layer->running_mean;
        saved[l][1] = layer->running_var;
        layer->running_mean = ref_doubles(c);
        layer->running_var = ref_doubles(c);
        for (size_t o = 0; o < c; o++) {
            const double var = saved[l][1][o] + REF_BN_EPS;
            layer->running_mean[o] = -pow(fabs(saved[l][0][o]), power);
            layer->running_var[o] = pow(var, power);
        }
    }
    m->arithmetic = pool;
    m->path_power = power;
    ref_cnn_forward_layers(m, REF_EVAL, ones, 1);
    ref_cnn_backward_from(m, d);
    m->arithmetic = REF_VALUES;
    for (int t = 0; t < m->n_tensors; g += m->tensors[t++].n)
        memcpy(g, m->tensors[t].grad, m->tensors[t].n * sizeof *g);
    ref_cnn_set_theta(m, theta);
    for (int l = 0; l < m->n_layers; l++) {
        if (!saved[l][0]) continue;
        free(m->layers[l].running_mean);
        free(m->layers[l].running_var);
        m->layers[l].running_mean = saved[l][0];
        m->layers[l].running_var = saved[l][1];
    }
    free(theta);
    free(squared);
    free(ones);
    free(d);
}

static inline void ref_cnn_diag_g(RefCnn *m, int pool, double *g) { ref_cnn_path_sums(m, pool, 2, g); }

// Sum over the kernel positions (or the columns that a channel owns) of tensor t: M[rows][in channels] from g[p]; for a
// vector M[rows] is its part of g.
static inline void ref_cnn_pair_energies(const RefCnn *m, int t, const double *g, double *M) {
    int channels = 1;
    for (int l = 0; l < m->n_layers; l++)
        if (m->layers[l].weight == t && m->shapes[t].rank > 1) channels = m->layers[l].win.in_c;
    const int per_channel = m->tensors[t].cols / channels;
    g += ref_cnn_offset(m, t);
    for (int k = 0; k < m->tensors[t].rows * channels; k++) {
        M[k] = 0;
        for (int j = 0; j < per_channel; j++) M[k] += *g++;
    }
}

// The kind of node that the outputs of layer l are.
static inline int ref_cnn_node_kind(const RefCnn *m, int l) {
    if (l + 1 == m->n_layers) return REF_OUTPUT;
    return m->layers[l].kind == REF_LAYER_RELU ? REF_RELU : REF_HIDDEN;
}

// The network in evaluation mode as a graph of scalar units: one node for every value, one parameter for every scalar
// of theta. A convolution weight lies on one edge for every position; padding has no edges. BatchNorm: fixed edges
// rstd and -mean * rstd (from the constant) to xhat, then gamma and beta. Max-pool: the sum of its window, or, with
// along_arg, only the entry that won in the last pass (sample 0). Sources: the image, then the constant 1.
static inline RefNet ref_cnn_graph(const RefCnn *m, const RefCnnGroups *gr, int along_arg) {
    RefNet net;
    int node[REF_CNN_MAX_LAYERS];    // first node of a layer's output
    int param[REF_CNN_MAX_TENSORS];  // first parameter of a tensor
    memset(&net, 0, sizeof net);
    net.n_units = gr->n_units;
    for (int t = 0, i = 0; t < m->n_tensors; t++) {
        param[t] = i;
        for (size_t k = 0; k < m->tensors[t].n; k++, i++) ref_net_param(&net, gr->enter[i], gr->leave[i]);
    }
    for (int i = 0; i < m->in_c * m->in_h * m->in_w; i++) ref_net_node(&net, REF_SOURCE);
    const int one = ref_net_node(&net, REF_SOURCE);
    for (int l = 0; l < m->n_layers; l++) {
        const RefCnnLayer *layer = &m->layers[l];
        const RefWindow *s = &layer->win;
        const int x = layer->input >= 0 ? node[layer->input] : 0;
        const int n_in = (int)ref_window_in(s), n_out = (int)ref_window_out(s);
        const int in_map = s->in_h * s->in_w, map = s->out_h * s->out_w;
        const int w = layer->weight >= 0 ? param[layer->weight] : -1;
        const int b = layer->bias >= 0 ? param[layer->bias] : -1;
        int xhat = -1;
        if (layer->kind == REF_LAYER_NORM) {
            xhat = net.n_nodes;
            for (int k = 0; k < n_out; k++) ref_net_node(&net, REF_HIDDEN);
        }
        const int y = node[l] = net.n_nodes;
        for (int k = 0; k < n_out; k++) ref_net_node(&net, ref_cnn_node_kind(m, l));
        for (int k = 0; k < n_out; k++) {
            const int o = k / map, oy = k % map / s->out_w, ox = k % s->out_w;
            if (layer->residual >= 0) ref_net_edge(&net, node[layer->residual] + k, y + k, -1, 1);
            if (b >= 0) ref_net_edge(&net, one, y + k, b + o, 1);
            if (layer->kind == REF_LAYER_RELU) ref_net_edge(&net, x + k, y + k, -1, 1);
            if (layer->kind == REF_LAYER_NORM) {
                const double rstd = 1 / sqrt(layer->running_var[o] + REF_BN_EPS);
                ref_net_edge(&net, x + k, xhat + k, -1, rstd);
                ref_net_edge(&net, one, xhat + k, -1, -layer->running_mean[o] * rstd);
                ref_net_edge(&net, xhat + k, y + k, w + o, 1);
            }
            if (layer->kind == REF_LAYER_AVG_POOL)
                for (int j = 0; j < in_map; j++) ref_net_edge(&net, x + k * in_map + j, y + k, -1, 1.0 / in_map);
            if (layer->kind == REF_LAYER_LINEAR)
                for (int j = 0; j < n_in; j++) ref_net_edge(&net, x + j, y + k, w + k * n_in + j, 1);
            if (layer->kind == REF_LAYER_MAX_POOL && along_arg)
                ref_net_edge(&net, x + o * in_map + layer->arg[k], y + k, -1, 1);
            if (layer->kind != REF_LAYER_CONV && (layer->kind != REF_LAYER_MAX_POOL || along_arg)) continue;
            for (int c = 0; c < s->in_c; c++)
                for (int ky = 0; ky < s->kh; ky++)
                    for (int kx = 0; kx < s->kw; kx++) {
                        const int iy = oy * s->stride + ky - s->pad, ix = ox * s->stride + kx - s->pad;
                        if (iy < 0 || iy >= s->in_h || ix < 0 || ix >= s->in_w) continue;
                        const int from = x + c * in_map + iy * s->in_w + ix;
                        const int weight = ((o * s->in_c + c) * s->kh + ky) * s->kw + kx;
                        if (layer->kind == REF_LAYER_CONV) ref_net_edge(&net, from, y + k, w + weight, 1);
                        else if (c == o) ref_net_edge(&net, from, y + k, -1, 1);
                    }
        }
    }
    return net;
}

// ---------------------------------------------------------------------------------------------------------------
// The criterion for large nets

// Parameters with the same two units have the same (Bu)_i, so F needs only the sum of their g and their number. A
// unit's pairs are listed, so that a sweep over all units costs O(pairs).
typedef struct {
    int n_pairs, n_units;
    double p;                // number of parameters
    int *enter, *leave;      // [n_pairs], -1: none
    double *energy, *count;  // [n_pairs] sum of g; number of parameters
    double *n;               // [n_units] parameters that leave minus parameters that enter
    int *first, *incident;   // pairs of unit h: incident[first[h]] .. incident[first[h + 1] - 1]
} RefPairs;

// Merges neighbouring parameters (kernel positions, columns of one channel) that enter and leave the same units.
static inline RefPairs ref_pairs(const RefProblem *q) {
    RefPairs r;
    memset(&r, 0, sizeof r);
    const size_t room = (size_t)(q->n_params ? q->n_params : 1), units = (size_t)q->n_units;
    r.p = q->n_params;
    r.n_units = q->n_units;
    r.enter = (int *)ref_grow(NULL, room * sizeof(int));
    r.leave = (int *)ref_grow(NULL, room * sizeof(int));
    r.energy = ref_doubles(room);
    r.count = ref_doubles(room);
    r.n = ref_doubles(units);
    for (int i = 0; i < q->n_params; i++) {
        const int last = r.n_pairs - 1;
        if (last < 0 || r.enter[last] != q->enter[i] || r.leave[last] != q->leave[i]) {
            r.enter[r.n_pairs] = q->enter[i];
            r.leave[r.n_pairs++] = q->leave[i];
        }
        r.energy[r.n_pairs - 1] += q->g[i];
        r.count[r.n_pairs - 1] += 1;
    }
    r.first = (int *)ref_grow(NULL, (units + 2) * sizeof(int));
    r.incident = (int *)ref_grow(NULL, (2 * (size_t)r.n_pairs + 1) * sizeof(int));
    for (size_t h = 0; h < units + 2; h++) r.first[h] = 0;
    for (int k = 0; k < r.n_pairs; k++) {
        if (r.leave[k] >= 0) {
            r.n[r.leave[k]] += r.count[k];
            r.first[r.leave[k] + 2]++;
        }
        if (r.enter[k] >= 0) {
            r.n[r.enter[k]] -= r.count[k];
            r.first[r.enter[k] + 2]++;
        }
    }
    for (size_t h = 0; h < units; h++) r.first[h + 2] += r.first[h + 1];
    for (int k = 0; k < r.n_pairs; k++) { // first[h + 1] runs from the beginning of h's list to its end
        if (r.leave[k] >= 0) r.incident[r.first[r.leave[k] + 1]++] = k;
        if (r.enter[k] >= 0) r.incident[r.first[r.enter[k] + 1]++] = k;
    }
    return r;
}

static inline void ref_pairs_free(RefPairs *r) {
    free(r->enter);
    free(r->leave);
    free(r->energy);
    free(r->count);
    free(r->n);
    free(r->first);
    free(r->incident);
    memset(r, 0, sizeof *r);
}

static inline double ref_pairs_bu(const RefPairs *q, const double *u, int k) {
    const double leaving = q->leave[k] >= 0 ? u[q->leave[k]] : 0;
    return leaving - (q->enter[k] >= 0 ? u[q->enter[k]] : 0);
}

static inline double ref_pairs_F(const RefPairs *q, const double *u) {
    double sum = 0, linear = 0;
    for (int k = 0; k < q->n_pairs; k++) sum += q->energy[k] * exp(ref_pairs_bu(q, u, k));
    for (int h = 0; h < q->n_units; h++) linear += q->n[h] * u[h];
    return q->p * log(sum) - linear;
}

// dF/du into grad[n_units]; returns max_h |dF/du_h| over the units that are not pinned (NULL: all).
static inline double ref_pairs_grad(const RefPairs *q, const double *u, double *grad, const unsigned char *pinned) {
    double sum = 0, largest = 0;
    for (int h = 0; h < q->n_units; h++) grad[h] = 0;
    for (int k = 0; k < q->n_pairs; k++) {
        const double e = q->energy[k] * exp(ref_pairs_bu(q, u, k));
        sum += e;
        if (q->leave[k] >= 0) grad[q->leave[k]] += e;
        if (q->enter[k] >= 0) grad[q->enter[k]] -= e;
    }
    for (int h = 0; h < q->n_units; h++) {
        grad[h] = q->p * grad[h] / sum - q->n[h];
        if (!(pinned && pinned[h]) && fabs(grad[h]) > largest) largest = fabs(grad[h]);
    }
    return largest;
}

// As ref_pinned: pinned[h] = 1 when all energy that enters h, or all that leaves it, is 0. Returns their number.
static inline int ref_pairs_pinned(const RefPairs *q, unsigned char *pinned) {
    RefProblem as_problem;
    as_problem.n_params = q->n_pairs;
    as_problem.n_units = q->n_units;
    as_problem.enter = q->enter;
    as_problem.leave = q->leave;
    as_problem.g = q->energy;
    return ref_pinned(&as_problem, pinned);
}

// As ref_minimise_unit: minimises F over u[h] alone, |u_h| <= 2 max_log when that is positive. `total` is S with u_h in
// it, and is kept up to date. Returns |change of u_h|.
static inline double ref_pairs_minimise_unit(const RefPairs *q, double *u, int h, double max_log, double *total) {
    const double before = u[h], n = q->n[h], p = q->p;
    double B = 0, C = 0;
    u[h] = 0;
    for (int j = q->first[h]; j < q->first[h + 1]; j++) {
        const int k = q->incident[j];
        const double e = q->energy[k] * exp(ref_pairs_bu(q, u, k));
        if (q->leave[k] == h) B += e;
        else C += e;
    }
    const double D = fmax(*total - B * exp(before) - C * exp(-before), 0);
    const double root = sqrt(n * n * D * D + 4 * (p - n) * (p + n) * B * C);
    const double x = n >= 0 ? (n * D + root) / (2 * (p - n) * B) : 2 * (p + n) * C / (root - n * D);
    u[h] = log(x);
    if (max_log > 0 && fabs(u[h]) > 2 * max_log) u[h] = u[h] > 0 ? 2 * max_log : -2 * max_log;
    *total = D + B * exp(u[h]) + C * exp(-u[h]);
    return fabs(u[h] - before);
}

static inline double ref_pairs_total(const RefPairs *q, const double *u) {
    double sum = 0;
    for (int k = 0; k < q->n_pairs; k++) sum += q->energy[k] * exp(ref_pairs_bu(q, u, k));
    return sum;
}

// As ref_unit_sweeps: n_sweeps over all units in index order, from the u given. Stops after a sweep with a total change
// below tol (0: never). Returns the number of sweeps done.
static inline int ref_pairs_unit_sweeps(const RefPairs *q, double *u, int n_sweeps, double tol, double max_log) {
    unsigned char *pinned = (unsigned char *)ref_grow(NULL, (size_t)q->n_units + 1);
    ref_pairs_pinned(q, pinned);
    int sweep = 0;
    while (sweep < n_sweeps) {
        double change = 0, total = ref_pairs_total(q, u);
        for (int h = 0; h < q->n_units; h++)
            if (!pinned[h]) change += ref_pairs_minimise_unit(q, u, h, max_log, &total);
        sweep++;
        if (change < tol) break;
    }
    free(pinned);
    return sweep;
}

// As ref_block_sweeps: every group in turn is minimised exactly, by cycling over its units until nothing moves.
static inline void ref_pairs_block_sweeps(const RefPairs *q, double *u, const int *first_unit, int n_groups,
                                          int n_sweeps) {
    unsigned char *pinned = (unsigned char *)ref_grow(NULL, (size_t)q->n_units + 1);
    ref_pairs_pinned(q, pinned);
    for (int sweep = 0; sweep < n_sweeps; sweep++)
        for (int k = 0; k < n_groups; k++)
            for (int cycle = 0; cycle < 10000; cycle++) {
                double change = 0, total = ref_pairs_total(q, u);
                for (int h = first_unit[k]; h < first_unit[k + 1]; h++)
                    if (!pinned[h]) change += ref_pairs_minimise_unit(q, u, h, 0, &total);
                if (change < 1e-13 * (first_unit[k + 1] - first_unit[k])) break;
            }
    free(pinned);
}

// out = H v for the Hessian at u, H = (p / S) (A - q q^T / S). w[k] are the rescaled energies, sum = S.
// Pinned units stay.
static inline void ref_pairs_hessian(const RefPairs *q, const double *w, double sum, const unsigned char *pinned,
                                     const double *v, double *out) {
    double mean = 0; // sum_k w_k (Bv)_k / S
    for (int h = 0; h < q->n_units; h++) out[h] = 0;
    for (int k = 0; k < q->n_pairs; k++) mean += w[k] * ref_pairs_bu(q, v, k) / sum;
    for (int k = 0; k < q->n_pairs; k++) { // a covariance: differences to the mean first, so that nothing cancels
        const double t = q->p * w[k] / sum * (ref_pairs_bu(q, v, k) - mean);
        if (q->leave[k] >= 0) out[q->leave[k]] += t;
        if (q->enter[k] >= 0) out[q->enter[k]] -= t;
    }
    for (int h = 0; h < q->n_units; h++)
        if (pinned[h]) out[h] = 0;
}

// Solves H step = -grad by conjugate gradients, preconditioned with the diagonal of A. Returns the iterations.
static inline int ref_pairs_newton_step(const RefPairs *q, const double *u, const unsigned char *pinned,
                                        const double *grad, double *step) {
    const size_t n = (size_t)q->n_units;
    double *w = ref_doubles((size_t)q->n_pairs), *diagonal = ref_doubles(n), *r = ref_doubles(n), *z = ref_doubles(n);
    double *direction = ref_doubles(n), *Hd = ref_doubles(n), sum = 0, rz = 0, start = 0;
    for (int k = 0; k < q->n_pairs; k++) sum += w[k] = q->energy[k] * exp(ref_pairs_bu(q, u, k));
    for (int k = 0; k < q->n_pairs; k++) {
        if (q->leave[k] >= 0) diagonal[q->leave[k]] += q->p * w[k] / sum;
        if (q->enter[k] >= 0) diagonal[q->enter[k]] += q->p * w[k] / sum;
    }
    for (size_t h = 0; h < n; h++) {
        step[h] = 0;
        if (pinned[h]) diagonal[h] = 1;
        r[h] = pinned[h] ? 0 : -grad[h];
        direction[h] = z[h] = r[h] / diagonal[h];
        rz += r[h] * z[h];
    }
    int iteration = 0;
    for (start = rz; iteration < 5000 && rz > 1e-24 * start; iteration++) {
        double curvature = 0, next = 0;
        ref_pairs_hessian(q, w, sum, pinned, direction, Hd);
        for (size_t h = 0; h < n; h++) curvature += direction[h] * Hd[h];
        if (!(curvature > 0)) break;
        for (size_t h = 0; h < n; h++) {
            step[h] += rz / curvature * direction[h];
            r[h] -= rz / curvature * Hd[h];
            z[h] = r[h] / diagonal[h];
            next += r[h] * z[h];
        }
        for (size_t h = 0; h < n; h++) direction[h] = z[h] + next / rz * direction[h];
        rz = next;
    }
    free(w);
    free(diagonal);
    free(r);
    free(z);
    free(direction);
    free(Hd);
    return iteration;
}

// The exact optimum: ten unit sweeps, then Newton's method with conjugate gradients and step halving until the gradient
// no longer gets smaller. Returns max |dF/du_h| over the units that are not pinned (rounding leaves about 1e-14 p), NaN
// when it did not get there.
static inline double ref_pairs_optimum(const RefPairs *q, double *u) {
    const size_t n = (size_t)q->n_units;
    double *grad = ref_doubles(n), *step = ref_doubles(n), *trial = ref_doubles(n), best = INFINITY;
    unsigned char *pinned = (unsigned char *)ref_grow(NULL, n + 1);
    ref_pairs_pinned(q, pinned);
    for (size_t h = 0; h < n; h++) u[h] = 0;
    ref_pairs_unit_sweeps(q, u, 10, 0, 0);
    int iteration = 0;
    for (; iteration < 200; iteration++) {
        const double largest = ref_pairs_grad(q, u, grad, pinned), F = ref_pairs_F(q, u), slack = 1e-14 * fabs(F);
        if (largest < 1e-12 * q->p && largest >= best) break; // in the regime of rounding errors
        best = largest;
        ref_pairs_newton_step(q, u, pinned, grad, step);
        double slope = 0, size = 1;
        for (size_t h = 0; h < n; h++) slope += pinned[h] ? 0 : grad[h] * step[h];
        for (;; size /= 2) {
            for (size_t h = 0; h < n; h++) trial[h] = u[h] + size * step[h];
            if (ref_pairs_F(q, trial) <= F + 1e-4 * size * slope + slack || size < 1e-12) break;
        }
        if (size < 1e-12) break;
        for (size_t h = 0; h < n; h++) u[h] = trial[h];
    }
    free(grad);
    free(step);
    free(trial);
    free(pinned);
    return iteration < 200 && best < 1e-9 * q->p ? best : NAN;
}

// The published algorithm on a network: diag(G) along arg-max paths, then 10 sweeps unit by unit, from u = 0. With
// tol 1e-2 it stops early as published; 0 makes it exactly 10 sweeps. u[n_units] is overwritten; returns the number
// of sweeps.
static inline int ref_cnn_published(RefCnn *m, const RefCnnGroups *gr, double tol, double *u) {
    double *g = ref_doubles((size_t)gr->n_params);
    ref_cnn_diag_g(m, REF_PATHS_MAX, g);
    const RefProblem q = ref_cnn_problem(gr, g);
    RefPairs pairs = ref_pairs(&q);
    for (int h = 0; h < gr->n_units; h++) u[h] = 0;
    const int sweeps = ref_pairs_unit_sweeps(&pairs, u, 10, tol, 0);
    ref_pairs_free(&pairs);
    free(g);
    return sweeps;
}
