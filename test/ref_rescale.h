// ref_rescale.h -- reference for path-conditioned rescaling and ENorm, in double precision, from the definitions.
//
// For tests only: slow, obvious, and sharing no code with rescale.cuh or the trainers. C11 and C++17, header-only.
//
// CONTENTS
//   RefNet                   a ReLU network as a graph of scalar units: sources, edges, parameters, symmetry groups
//   ref_net_mlp              builds an MLP, biases and evaluation-mode BatchNorm optional; parameters W1, b1, (gamma1,
//                            beta1), W2, b2, ..., weights row-major [out][in]
//   ref_golden_weights       the weights that the golden values belong to
//   ref_net_paths            every path, Phi, and the dense Jacobian dPhi/dtheta: the definition of G
//   ref_net_walk_diag_g      diag(G) by the same enumeration without keeping the paths
//   ref_net_diag_g           diag(G) by one squared forward and one squared backward pass over the graph
//   ref_mlp_diag_g           the same for an MLP in plain loops, with the two vectors of every layer; for large nets
//   ref_bu, ref_F, ref_grad_F, ref_hess_F     the criterion straight from its definition, parameter by parameter
//   ref_unit_sweeps          the published solver: unit by unit, closed form, fixed number of sweeps or early stop
//   ref_block_sweeps         a layer at a time
//   ref_optimum              the exact optimum: damped Newton with the dense Hessian
//   ref_enorm, ref_enorm_cost                 equi-normalisation, closed form per unit until nothing moves
//   ref_apply                rescaled parameters theta_i exp(-(Bu)_i / 2)
//
// THE MODEL
//   A network is a directed acyclic graph. A node is a source (an input unit, or the constant 1 that carries the
//   biases) or computes the sum over its incoming edges of coefficient * parameter * value, optionally through a ReLU.
//   An edge without a parameter has a fixed coefficient (identity shortcut: 1; average pooling: 1/k; BatchNorm in
//   evaluation mode: rstd, and -mean * rstd from the constant). A path runs from a source to an output node; Phi is
//   the product of what lies on its edges. A path never meets the same parameter twice.
//   Symmetry: unit h may be scaled by lambda_h = exp(u_h / 2). A parameter that enters h (enter[i] = h) is multiplied
//   by lambda_h, one that leaves h (leave[i] = h) divided; -1 means neither. (Bu)_i = u[leave[i]] - u[enter[i]].
//   A parameter may enter one unit and leave another.
//   The solvers need only enter[], leave[] and g[], so they serve any architecture, also ones not built as a RefNet.
//
// Memory: functions that return pointers allocate with calloc and stop the program with a message when there is none
// (this is a test helper). ref_net_free and ref_paths_free release.
#pragma once
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REF_MAX_LAYERS 64

// ---------------------------------------------------------------------------------------------------------------
// Memory and the hash that defines golden weights

// Zeroed array of n doubles; stops the program when memory is exhausted.
static inline double *ref_doubles(size_t n) {
    double *x = (double *)calloc(n ? n : 1, sizeof(double));
    if (!x) {
        fprintf(stderr, "ref_rescale.h: out of memory (%zu doubles)\n", n);
        exit(1);
    }
    return x;
}

// realloc that stops the program when memory is exhausted.
static inline void *ref_grow(void *old, size_t bytes) {
    void *x = realloc(old, bytes);
    if (!x) {
        fprintf(stderr, "ref_rescale.h: out of memory (%zu bytes)\n", bytes);
        exit(1);
    }
    return x;
}

// Value number k of the golden sequence, in [-1, 1): multiplicative hash with the 64-bit golden ratio.
static inline double ref_hash_signed(uint64_t k) {
    const uint64_t h = (k + 1) * UINT64_C(0x9E3779B97F4A7C15); // wraps modulo 2^64
    return 2.0 * ((double)(h >> 11) / 9007199254740992.0) - 1.0; // 2^53
}

// Number of parameters of an MLP with dims[0..n_layers] (n_layers linear layers) without normalisation.
static inline int ref_mlp_param_count(const int *dims, int n_layers, int bias, int last_bias) {
    int p = 0;
    for (int l = 0; l < n_layers; l++) {
        const int has_bias = l + 1 < n_layers ? bias : last_bias;
        p += dims[l + 1] * dims[l] + (has_bias ? dims[l + 1] : 0);
    }
    return p;
}

// Golden weights: theta[p] in the order W1, b1, W2, b2, ...; uniform-looking in +-1/sqrt(fan_in), the fan_in of a
// bias being that of its layer. Layers below the last have a bias if `bias`, the last if `last_bias`.
static inline void ref_golden_weights(const int *dims, int n_layers, int bias, int last_bias, double *theta) {
    uint64_t k = 0;
    for (int l = 0; l < n_layers; l++) {
        const int has_bias = l + 1 < n_layers ? bias : last_bias;
        const int count = dims[l + 1] * dims[l] + (has_bias ? dims[l + 1] : 0);
        for (int i = 0; i < count; i++, k++) theta[k] = ref_hash_signed(k) / sqrt((double)dims[l]);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Networks as graphs

enum { REF_SOURCE, REF_HIDDEN, REF_RELU, REF_OUTPUT }; // kind of a node; only REF_RELU clips negative values

typedef struct {
    int from, to;  // nodes, from < to
    int param;     // index of the parameter on the edge, -1: none
    double factor; // fixed coefficient, multiplies the parameter when there is one
} RefEdge;

typedef struct {
    int n_nodes, n_edges, n_params, n_units;
    int *kind;             // [n_nodes] REF_SOURCE ...; nodes are numbered in topological order
    RefEdge *edges;        // [n_edges]
    int *enter, *leave;    // [n_params] unit that the parameter enters / leaves, or -1
} RefNet;

// Adds a node and returns its number. Sources take the inputs in the order in which they are added.
static inline int ref_net_node(RefNet *net, int kind) {
    net->kind = (int *)ref_grow(net->kind, sizeof(int) * (size_t)(net->n_nodes + 1));
    net->kind[net->n_nodes] = kind;
    return net->n_nodes++;
}

// Adds a parameter that enters unit `enter` and leaves unit `leave` (-1: none); returns its index in theta.
static inline int ref_net_param(RefNet *net, int enter, int leave) {
    const size_t bytes = sizeof(int) * (size_t)(net->n_params + 1);
    net->enter = (int *)ref_grow(net->enter, bytes);
    net->leave = (int *)ref_grow(net->leave, bytes);
    net->enter[net->n_params] = enter;
    net->leave[net->n_params] = leave;
    return net->n_params++;
}

// Adds an edge; param -1 makes it a fixed coefficient.
static inline void ref_net_edge(RefNet *net, int from, int to, int param, double factor) {
    if (from >= to) {
        fprintf(stderr, "ref_rescale.h: edge %d -> %d is not in topological order\n", from, to);
        exit(1);
    }
    net->edges = (RefEdge *)ref_grow(net->edges, sizeof(RefEdge) * (size_t)(net->n_edges + 1));
    RefEdge *e = &net->edges[net->n_edges++];
    e->from = from;
    e->to = to;
    e->param = param;
    e->factor = factor;
}

static inline void ref_net_free(RefNet *net) {
    free(net->kind);
    free(net->edges);
    free(net->enter);
    free(net->leave);
    memset(net, 0, sizeof *net);
}

// An MLP with dims[0..n_layers]. Source 0..dims[0]-1 are the inputs, the next source is the constant 1. Hidden units
// are numbered layer by layer. With bn_mean and bn_rstd (one value per hidden unit in that numbering; NULL: no
// normalisation) every hidden linear layer is followed by gamma * (z - mean) * rstd + beta before the ReLU. Then the
// unit is entered by gamma and beta, and the linear layer before the normalisation enters nothing.
static inline RefNet ref_net_mlp(const int *dims, int n_layers, int bias, int last_bias, const double *bn_mean,
                                 const double *bn_rstd) {
    RefNet net;
    memset(&net, 0, sizeof net);
    int first = 0; // node of the layer below's first value
    for (int i = 0; i < dims[0]; i++) ref_net_node(&net, REF_SOURCE);
    const int one = ref_net_node(&net, REF_SOURCE);
    int below = 0; // unit number of the layer below's first unit; only used when l > 0
    for (int l = 0; l < n_layers; l++) {
        const int last = l + 1 == n_layers, n_in = dims[l], n_out = dims[l + 1];
        const int with_bn = bn_mean && bn_rstd && !last;
        const int has_bias = last ? last_bias : bias;
        const int unit = net.n_units; // this layer's first unit
        if (!last) net.n_units += n_out;
        const int z = net.n_nodes; // first node of this layer's linear output
        int kind = with_bn ? REF_HIDDEN : REF_RELU;
        if (last) kind = REF_OUTPUT;
        for (int o = 0; o < n_out; o++) ref_net_node(&net, kind);
        for (int o = 0; o < n_out; o++) {
            const int enter = last || with_bn ? -1 : unit + o;
            for (int i = 0; i < n_in; i++) {
                const int w = ref_net_param(&net, enter, l > 0 ? below + i : -1);
                ref_net_edge(&net, first + i, z + o, w, 1.0);
            }
        }
        for (int o = 0; has_bias && o < n_out; o++) {
            const int b = ref_net_param(&net, last || with_bn ? -1 : unit + o, -1);
            ref_net_edge(&net, one, z + o, b, 1.0);
        }
        first = z;
        if (with_bn) {
            const int xhat = net.n_nodes;
            for (int o = 0; o < n_out; o++) ref_net_node(&net, REF_HIDDEN);
            const int y = net.n_nodes;
            for (int o = 0; o < n_out; o++) ref_net_node(&net, REF_RELU);
            for (int o = 0; o < n_out; o++) {
                ref_net_edge(&net, z + o, xhat + o, -1, bn_rstd[unit + o]);
                ref_net_edge(&net, one, xhat + o, -1, -bn_mean[unit + o] * bn_rstd[unit + o]);
            }
            for (int o = 0; o < n_out; o++) ref_net_edge(&net, xhat + o, y + o, ref_net_param(&net, unit + o, -1), 1.0);
            for (int o = 0; o < n_out; o++) ref_net_edge(&net, one, y + o, ref_net_param(&net, unit + o, -1), 1.0);
            first = y;
        }
        below = unit;
    }
    return net;
}

// A residual stream: x -> s = relu(W0 x + b0); two blocks s = relu(s + W2 relu(W1 s + b1) + b2); y = W3 s + b3;
// parameters in this order. Stream channel c is ONE unit: W0, b0 and every W2, b2 enter it, every W1 and W3 leave it.
// Units: the stream's `width` channels, then each block's `hidden` ones. At most 8 of each.
static inline RefNet ref_net_residual(int n_in, int width, int hidden, int n_out) {
    RefNet net;
    memset(&net, 0, sizeof net);
    net.n_units = width + 2 * hidden;
    int x[8], s[8], h[8], y[8];
    for (int i = 0; i < n_in; i++) x[i] = ref_net_node(&net, REF_SOURCE);
    const int one = ref_net_node(&net, REF_SOURCE);
    for (int c = 0; c < width; c++) s[c] = ref_net_node(&net, REF_RELU);
    for (int c = 0; c < width; c++)
        for (int i = 0; i < n_in; i++) ref_net_edge(&net, x[i], s[c], ref_net_param(&net, c, -1), 1);
    for (int c = 0; c < width; c++) ref_net_edge(&net, one, s[c], ref_net_param(&net, c, -1), 1);
    for (int block = 0; block < 2; block++) {
        const int unit = width + block * hidden;
        for (int j = 0; j < hidden; j++) h[j] = ref_net_node(&net, REF_RELU);
        for (int j = 0; j < hidden; j++)
            for (int c = 0; c < width; c++) ref_net_edge(&net, s[c], h[j], ref_net_param(&net, unit + j, c), 1);
        for (int j = 0; j < hidden; j++) ref_net_edge(&net, one, h[j], ref_net_param(&net, unit + j, -1), 1);
        for (int c = 0; c < width; c++) y[c] = ref_net_node(&net, REF_RELU);
        for (int c = 0; c < width; c++) {
            ref_net_edge(&net, s[c], y[c], -1, 1); // identity shortcut
            for (int j = 0; j < hidden; j++) ref_net_edge(&net, h[j], y[c], ref_net_param(&net, c, unit + j), 1);
        }
        for (int c = 0; c < width; c++) ref_net_edge(&net, one, y[c], ref_net_param(&net, c, -1), 1);
        memcpy(s, y, sizeof s);
    }
    for (int o = 0; o < n_out; o++) y[o] = ref_net_node(&net, REF_OUTPUT);
    for (int o = 0; o < n_out; o++)
        for (int c = 0; c < width; c++) ref_net_edge(&net, s[c], y[o], ref_net_param(&net, -1, c), 1);
    for (int o = 0; o < n_out; o++) ref_net_edge(&net, one, y[o], ref_net_param(&net, -1, -1), 1);
    return net;
}

// What an edge multiplies its input by.
static inline double ref_edge_value(const RefEdge *e, const double *theta) {
    return e->factor * (e->param >= 0 ? theta[e->param] : 1.0);
}

// Values of all nodes, value[n_nodes], for one input: x[] holds the sources in order (so 1 for the constant).
static inline void ref_net_forward(const RefNet *net, const double *theta, const double *x, double *value) {
    int source = 0;
    for (int n = 0; n < net->n_nodes; n++) {
        if (net->kind[n] == REF_SOURCE) {
            value[n] = x[source++];
            continue;
        }
        value[n] = 0;
        for (int e = 0; e < net->n_edges; e++) // all edges for every node: slow and obvious
            if (net->edges[e].to == n) value[n] += ref_edge_value(&net->edges[e], theta) * value[net->edges[e].from];
        if (net->kind[n] == REF_RELU && value[n] < 0) value[n] = 0;
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Path-lifting by enumeration

typedef struct {
    int n_paths, n_params;
    double *phi;      // [n_paths] product along the path
    double *jacobian; // [n_paths][n_params] dPhi_path / dtheta_param
} RefPaths;

// Extends the path edge_stack[0..depth-1], which ends at `node`, in all ways; records it when `node` is an output.
static inline void ref_extend_path(const RefNet *net, const double *theta, int node, int *edge_stack, int depth,
                                   RefPaths *out) {
    if (net->kind[node] == REF_OUTPUT) {
        const size_t row = (size_t)out->n_paths++, p = (size_t)net->n_params;
        if ((row & (row - 1)) == 0) {  // full at 0 and every power of two: twice the room
            const size_t room = row ? 2 * row : 1;
            out->phi = (double *)ref_grow(out->phi, sizeof(double) * room);
            out->jacobian = (double *)ref_grow(out->jacobian, sizeof(double) * room * p);
        }
        out->phi[row] = 1;
        for (int s = 0; s < depth; s++) out->phi[row] *= ref_edge_value(&net->edges[edge_stack[s]], theta);
        for (size_t i = 0; i < p; i++) out->jacobian[row * p + i] = 0;
        for (int s = 0; s < depth; s++) {
            const RefEdge *moving = &net->edges[edge_stack[s]];
            if (moving->param < 0) continue;
            double product = moving->factor; // derivative: everything on the path except this parameter
            for (int t = 0; t < depth; t++)
                if (t != s) product *= ref_edge_value(&net->edges[edge_stack[t]], theta);
            out->jacobian[row * p + (size_t)moving->param] += product;
        }
        return;
    }
    for (int e = 0; e < net->n_edges; e++) {
        if (net->edges[e].from != node) continue;
        edge_stack[depth] = e;
        ref_extend_path(net, theta, net->edges[e].to, edge_stack, depth + 1, out);
    }
}

// Enumerates every path from every source to every output. For nets of a few thousand paths.
static inline RefPaths ref_net_paths(const RefNet *net, const double *theta) {
    RefPaths paths;
    memset(&paths, 0, sizeof paths);
    paths.n_params = net->n_params;
    int *stack = (int *)ref_grow(NULL, sizeof(int) * (size_t)(net->n_nodes + 1));
    for (int n = 0; n < net->n_nodes; n++)
        if (net->kind[n] == REF_SOURCE) ref_extend_path(net, theta, n, stack, 0, &paths);
    free(stack);
    return paths;
}

static inline void ref_paths_free(RefPaths *paths) {
    free(paths->phi);
    free(paths->jacobian);
    memset(paths, 0, sizeof *paths);
}

// diag(J^T J) into g[n_params].
static inline void ref_paths_diag_g(const RefPaths *paths, double *g) {
    const size_t p = (size_t)paths->n_params;
    for (size_t i = 0; i < p; i++) g[i] = 0;
    for (size_t row = 0; row < (size_t)paths->n_paths; row++)
        for (size_t i = 0; i < p; i++) g[i] += paths->jacobian[row * p + i] * paths->jacobian[row * p + i];
}

// Continues the path edge_stack[0..depth-1], which ends at `node`; adds the squared derivatives of every path to g.
static inline void ref_walk_paths(const RefNet *net, const double *theta, int node, int *edge_stack, int depth,
                                  double *g, long *count) {
    if (net->kind[node] == REF_OUTPUT) {
        ++*count;
        for (int s = 0; s < depth; s++) {
            const RefEdge *moving = &net->edges[edge_stack[s]];
            if (moving->param < 0) continue;
            double product = moving->factor;
            for (int t = 0; t < depth; t++)
                if (t != s) product *= ref_edge_value(&net->edges[edge_stack[t]], theta);
            g[moving->param] += product * product;
        }
        return;
    }
    for (int e = 0; e < net->n_edges; e++) {
        if (net->edges[e].from != node) continue;
        edge_stack[depth] = e;
        ref_walk_paths(net, theta, net->edges[e].to, edge_stack, depth + 1, g, count);
    }
}

// diag(G) into g[n_params] by enumeration, for up to about a million paths: each is forgotten once it has been added.
// Returns the number of paths.
static inline long ref_net_walk_diag_g(const RefNet *net, const double *theta, double *g) {
    int *stack = (int *)ref_grow(NULL, sizeof(int) * (size_t)(net->n_nodes + 1));
    long count = 0;
    for (int i = 0; i < net->n_params; i++) g[i] = 0;
    for (int n = 0; n < net->n_nodes; n++)
        if (net->kind[n] == REF_SOURCE) ref_walk_paths(net, theta, n, stack, 0, g, &count);
    free(stack);
    return count;
}

// The whole G = J^T J into G[n_params][n_params].
static inline void ref_paths_full_g(const RefPaths *paths, double *G) {
    const size_t p = (size_t)paths->n_params;
    for (size_t i = 0; i < p * p; i++) G[i] = 0;
    for (size_t row = 0; row < (size_t)paths->n_paths; row++) {
        const double *J = &paths->jacobian[row * p];
        for (size_t i = 0; i < p; i++)
            for (size_t j = 0; j < p; j++) G[i * p + j] += J[i] * J[j];
    }
}

// ---------------------------------------------------------------------------------------------------------------
// diag(G) by squared passes

// diag(G) into g[n_params]: with everything squared, all sources 1 and no clipping, g of an edge is (value before
// it) * (sensitivity of the sum of the outputs after it) * (fixed factor squared).
static inline void ref_net_diag_g(const RefNet *net, const double *theta, double *g) {
    double *value = ref_doubles((size_t)net->n_nodes), *sens = ref_doubles((size_t)net->n_nodes);
    for (int n = 0; n < net->n_nodes; n++) {
        if (net->kind[n] == REF_SOURCE) value[n] = 1;
        for (int e = 0; e < net->n_edges; e++) {
            const RefEdge *edge = &net->edges[e];
            const double w = ref_edge_value(edge, theta);
            if (edge->to == n) value[n] += w * w * value[edge->from];
        }
    }
    for (int n = net->n_nodes - 1; n >= 0; n--) {
        if (net->kind[n] == REF_OUTPUT) sens[n] = 1;
        for (int e = 0; e < net->n_edges; e++) {
            const RefEdge *edge = &net->edges[e];
            const double w = ref_edge_value(edge, theta);
            if (edge->from == n) sens[n] += w * w * sens[edge->to];
        }
    }
    for (int i = 0; i < net->n_params; i++) g[i] = 0;
    for (int e = 0; e < net->n_edges; e++) {
        const RefEdge *edge = &net->edges[e];
        if (edge->param >= 0) g[edge->param] += edge->factor * edge->factor * value[edge->from] * sens[edge->to];
    }
    free(value);
    free(sens);
}

// Input of ref_mlp_diag_g: the tensors of an MLP where they lie. Unused entries are NULL.
typedef struct {
    int n_layers;
    int dims[REF_MAX_LAYERS + 1];
    const double *w[REF_MAX_LAYERS];     // [dims[l+1]][dims[l]]
    const double *b[REF_MAX_LAYERS];     // [dims[l+1]] or NULL
    const double *gamma[REF_MAX_LAYERS]; // [dims[l+1]] or NULL: no BatchNorm after layer l
    const double *beta[REF_MAX_LAYERS];
    const double *mean[REF_MAX_LAYERS];
    const double *rstd[REF_MAX_LAYERS];
} RefMlpTensors;

// Output of ref_mlp_diag_g, for linear layer l: diag(G) of w is the outer product d[l][o] * a[l][i], of b it is
// d[l][o], of gamma g_gamma[l][o], of beta g_beta[l][o]. a[n_layers] is the squared forward output of the network.
typedef struct {
    double *a[REF_MAX_LAYERS + 1];       // [dims[l]] squared forward value that enters layer l
    double *d[REF_MAX_LAYERS];           // [dims[l+1]] squared sensitivity at layer l's linear output
    double *g_gamma[REF_MAX_LAYERS];     // [dims[l+1]], zero without BatchNorm
    double *g_beta[REF_MAX_LAYERS];      // [dims[l+1]] the sensitivity behind layer l's BatchNorm
    double *d_first;                     // [dims[0]] squared backward at the input
} RefMlpDiagG;

// Squared forward and backward pass of an MLP. Release with ref_mlp_diag_g_free.
static inline RefMlpDiagG ref_mlp_diag_g(const RefMlpTensors *m) {
    RefMlpDiagG r;
    memset(&r, 0, sizeof r);
    const int L = m->n_layers;
    double *xhat[REF_MAX_LAYERS] = {0}; // squared normalised value, what gamma multiplies
    r.a[0] = ref_doubles((size_t)m->dims[0]);
    for (int i = 0; i < m->dims[0]; i++) r.a[0][i] = 1;
    for (int l = 0; l < L; l++) {
        const int n_in = m->dims[l], n_out = m->dims[l + 1];
        r.a[l + 1] = ref_doubles((size_t)n_out);
        xhat[l] = ref_doubles((size_t)n_out);
        for (int o = 0; o < n_out; o++) {
            double z = m->b[l] ? m->b[l][o] * m->b[l][o] : 0;
            for (int i = 0; i < n_in; i++) {
                const double w = m->w[l][(size_t)o * (size_t)n_in + (size_t)i];
                z += w * w * r.a[l][i];
            }
            if (m->gamma[l]) {
                const double rstd = m->rstd[l][o], shift = m->mean[l][o] * rstd;
                xhat[l][o] = rstd * rstd * z + shift * shift;
                z = m->gamma[l][o] * m->gamma[l][o] * xhat[l][o] + m->beta[l][o] * m->beta[l][o];
            }
            r.a[l + 1][o] = z;
        }
    }
    double *above = ref_doubles((size_t)m->dims[L]); // sensitivity at the output of layer l (behind its BatchNorm)
    for (int o = 0; o < m->dims[L]; o++) above[o] = 1;
    for (int l = L - 1; l >= 0; l--) {
        const int n_in = m->dims[l], n_out = m->dims[l + 1];
        r.d[l] = ref_doubles((size_t)n_out);
        r.g_gamma[l] = ref_doubles((size_t)n_out);
        r.g_beta[l] = ref_doubles((size_t)n_out);
        double *below = ref_doubles((size_t)n_in);
        for (int o = 0; o < n_out; o++) {
            r.d[l][o] = r.g_beta[l][o] = above[o];
            if (m->gamma[l]) {
                const double scale = m->gamma[l][o] * m->rstd[l][o];
                r.g_gamma[l][o] = above[o] * xhat[l][o];
                r.d[l][o] = above[o] * scale * scale;
            }
            for (int i = 0; i < n_in; i++) {
                const double w = m->w[l][(size_t)o * (size_t)n_in + (size_t)i];
                below[i] += w * w * r.d[l][o];
            }
        }
        free(above);
        free(xhat[l]);
        above = below;
    }
    r.d_first = above;
    return r;
}

static inline void ref_mlp_diag_g_free(RefMlpDiagG *r) {
    for (int l = 0; l < REF_MAX_LAYERS; l++) {
        free(r->a[l]);
        free(r->d[l]);
        free(r->g_gamma[l]);
        free(r->g_beta[l]);
    }
    free(r->a[REF_MAX_LAYERS]);
    free(r->d_first);
    memset(r, 0, sizeof *r);
}

// The tensors of an MLP whose parameters lie in one array theta (order W1, b1, W2, b2, ..., no BatchNorm).
static inline RefMlpTensors ref_mlp_tensors(const int *dims, int n_layers, int bias, int last_bias,
                                            const double *theta) {
    RefMlpTensors m;
    memset(&m, 0, sizeof m);
    m.n_layers = n_layers;
    for (int l = 0; l <= n_layers; l++) m.dims[l] = dims[l];
    for (int l = 0; l < n_layers; l++) {
        m.w[l] = theta;
        theta += (size_t)dims[l + 1] * (size_t)dims[l];
        if (l + 1 < n_layers ? bias : last_bias) {
            m.b[l] = theta;
            theta += dims[l + 1];
        }
    }
    return m;
}

// ---------------------------------------------------------------------------------------------------------------
// The criterion, from its definition

// What the criterion needs: who enters and leaves which unit, and g. With reference weights r_i pass g_i / r_i as g.
typedef struct {
    int n_params, n_units;
    const int *enter, *leave; // [n_params], -1: none
    const double *g;          // [n_params], >= 0
} RefProblem;

static inline RefProblem ref_problem(const RefNet *net, const double *g) {
    RefProblem q;
    q.n_params = net->n_params;
    q.n_units = net->n_units;
    q.enter = net->enter;
    q.leave = net->leave;
    q.g = g;
    return q;
}

// (Bu)_i: +u of the unit that parameter i leaves, -u of the unit it enters.
static inline double ref_bu(const RefProblem *q, const double *u, int i) {
    double s = 0;
    if (q->leave[i] >= 0) s += u[q->leave[i]];
    if (q->enter[i] >= 0) s -= u[q->enter[i]];
    return s;
}

// F(u) = p log sum_i g_i exp((Bu)_i) - sum_i (Bu)_i.
static inline double ref_F(const RefProblem *q, const double *u) {
    double sum = 0, linear = 0;
    for (int i = 0; i < q->n_params; i++) {
        sum += q->g[i] * exp(ref_bu(q, u, i));
        linear += ref_bu(q, u, i);
    }
    return q->n_params * log(sum) - linear;
}

// dF/du into grad[n_units]; returns max_h |dF/du_h|.
static inline double ref_grad_F(const RefProblem *q, const double *u, double *grad) {
    double sum = 0, largest = 0;
    for (int i = 0; i < q->n_params; i++) sum += q->g[i] * exp(ref_bu(q, u, i));
    for (int h = 0; h < q->n_units; h++) grad[h] = 0;
    for (int i = 0; i < q->n_params; i++) {
        const double t = q->n_params * q->g[i] * exp(ref_bu(q, u, i)) / sum - 1.0; // dF / d(Bu)_i
        if (q->leave[i] >= 0) grad[q->leave[i]] += t;
        if (q->enter[i] >= 0) grad[q->enter[i]] -= t;
    }
    for (int h = 0; h < q->n_units; h++)
        if (fabs(grad[h]) > largest) largest = fabs(grad[h]);
    return largest;
}

// Hessian of F into H[n_units][n_units]: p (B^T diag(w) B - (B^T w)(B^T w)^T) with w_i = g_i exp((Bu)_i) / S.
static inline void ref_hess_F(const RefProblem *q, const double *u, double *H) {
    const size_t n = (size_t)q->n_units;
    double sum = 0, *mean = ref_doubles(n);
    for (size_t i = 0; i < n * n; i++) H[i] = 0;
    for (int i = 0; i < q->n_params; i++) sum += q->g[i] * exp(ref_bu(q, u, i));
    for (int i = 0; i < q->n_params; i++) {
        const double w = q->g[i] * exp(ref_bu(q, u, i)) / sum;
        const int unit[2] = {q->leave[i], q->enter[i]};
        const double sign[2] = {1.0, -1.0};
        for (int s = 0; s < 2; s++) {
            if (unit[s] < 0) continue;
            mean[unit[s]] += w * sign[s];
            for (int t = 0; t < 2; t++)
                if (unit[t] >= 0) H[(size_t)unit[s] * n + (size_t)unit[t]] += w * sign[s] * sign[t];
        }
    }
    for (size_t h = 0; h < n; h++)
        for (size_t k = 0; k < n; k++) H[h * n + k] = q->n_params * (H[h * n + k] - mean[h] * mean[k]);
    free(mean);
}

// Units without an optimum: pinned[h] = 1 when everything that enters h, or everything that leaves it, has g = 0.
// Such a unit keeps u = 0 in every solver below. Returns their number.
static inline int ref_pinned(const RefProblem *q, unsigned char *pinned) {
    double *in = ref_doubles((size_t)q->n_units), *out = ref_doubles((size_t)q->n_units);
    int count = 0;
    for (int i = 0; i < q->n_params; i++) {
        if (q->enter[i] >= 0) in[q->enter[i]] += q->g[i];
        if (q->leave[i] >= 0) out[q->leave[i]] += q->g[i];
    }
    for (int h = 0; h < q->n_units; h++) {
        pinned[h] = !(in[h] > 0 && out[h] > 0);
        count += pinned[h];
    }
    free(in);
    free(out);
    return count;
}

// ---------------------------------------------------------------------------------------------------------------
// Solvers

// Minimises F exactly over u[h] alone. With S(x) = D + B x + C / x, x = exp(u_h), n = #leaving - #entering, the
// stationary x is the positive root of (p - n) B x^2 - n D x - (p + n) C = 0. `max_log` > 0 keeps |u_h / 2| (the
// logarithm of lambda) within that bound, which is exact too because F is convex in u_h. Returns |change of u_h|.
static inline double ref_minimise_unit(const RefProblem *q, double *u, int h, double max_log) {
    const double before = u[h], p = q->n_params;
    double B = 0, C = 0, D = 0, n = 0;
    u[h] = 0;
    for (int i = 0; i < q->n_params; i++) {
        const double energy = q->g[i] * exp(ref_bu(q, u, i)); // with u_h = 0
        const int leaves = q->leave[i] == h, enters = q->enter[i] == h;
        if (leaves && !enters) {
            B += energy;
            n += 1;
        } else if (enters && !leaves) {
            C += energy;
            n -= 1;
        } else {
            D += energy;
        }
    }
    const double root = sqrt(n * n * D * D + 4 * (p - n) * (p + n) * B * C);
    const double x = n >= 0 ? (n * D + root) / (2 * (p - n) * B) : 2 * (p + n) * C / (root - n * D);
    u[h] = log(x);
    if (max_log > 0 && fabs(u[h]) > 2 * max_log) u[h] = u[h] > 0 ? 2 * max_log : -2 * max_log;
    return fabs(u[h] - before);
}

// The published solver: sweeps over all units in index order, each minimised exactly with the others fixed, from the
// u given (start with zeros). Stops after n_sweeps, or after a sweep whose total change sum_h |u_h - old u_h| is
// below `tol` (0: never; the published value is 1e-2 with at most 10 sweeps). Returns the number of sweeps done.
static inline int ref_unit_sweeps(const RefProblem *q, double *u, int n_sweeps, double tol, double max_log) {
    unsigned char *pinned = (unsigned char *)ref_grow(NULL, (size_t)q->n_units + 1);
    ref_pinned(q, pinned);
    int sweep = 0;
    while (sweep < n_sweeps) {
        double change = 0;
        for (int h = 0; h < q->n_units; h++)
            if (!pinned[h]) change += ref_minimise_unit(q, u, h, max_log);
        sweep++;
        if (change < tol) break;
    }
    free(pinned);
    return sweep;
}

// Block sweeps: each group of units (a layer), first_unit[k] <= h < first_unit[k + 1], is minimised exactly with the
// others fixed, here by cycling over its units until nothing moves. From the u given; n_sweeps over all groups.
static inline void ref_block_sweeps(const RefProblem *q, double *u, const int *first_unit, int n_groups, int n_sweeps) {
    unsigned char *pinned = (unsigned char *)ref_grow(NULL, (size_t)q->n_units + 1);
    ref_pinned(q, pinned);
    for (int sweep = 0; sweep < n_sweeps; sweep++)
        for (int k = 0; k < n_groups; k++)
            for (int cycle = 0; cycle < 10000; cycle++) {
                double change = 0;
                for (int h = first_unit[k]; h < first_unit[k + 1]; h++)
                    if (!pinned[h]) change += ref_minimise_unit(q, u, h, 0);
                if (change < 1e-14 * (first_unit[k + 1] - first_unit[k])) break;
            }
    free(pinned);
}

// Solves H x = b for symmetric positive definite H[n][n] (destroyed) by Cholesky; b becomes x. Returns 0 when H is
// not positive definite.
static inline int ref_cholesky_solve(double *H, double *b, size_t n) {
    for (size_t j = 0; j < n; j++) {
        double d = H[j * n + j];
        for (size_t k = 0; k < j; k++) d -= H[j * n + k] * H[j * n + k];
        if (!(d > 0)) return 0;
        H[j * n + j] = sqrt(d);
        for (size_t i = j + 1; i < n; i++) {
            double s = H[i * n + j];
            for (size_t k = 0; k < j; k++) s -= H[i * n + k] * H[j * n + k];
            H[i * n + j] = s / H[j * n + j];
        }
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < i; k++) b[i] -= H[i * n + k] * b[k];
        b[i] /= H[i * n + i];
    }
    for (size_t i = n; i-- > 0;) {
        for (size_t k = i + 1; k < n; k++) b[i] -= H[k * n + i] * b[k];
        b[i] /= H[i * n + i];
    }
    return 1;
}

// The exact optimum: Newton's method with the dense Hessian and step halving, from u = 0, until the gradient no
// longer gets smaller. Returns max |dF/du_h| over units that are not pinned (usually 1e-13 or so), NaN when a step
// failed. Dense: for up to about a thousand units.
static inline double ref_optimum(const RefProblem *q, double *u) {
    const size_t n = (size_t)q->n_units;
    double *H = ref_doubles(n * n), *step = ref_doubles(n), *grad = ref_doubles(n), *trial = ref_doubles(n);
    unsigned char *pinned = (unsigned char *)ref_grow(NULL, n + 1);
    ref_pinned(q, pinned);
    for (size_t h = 0; h < n; h++) u[h] = 0;
    double best = INFINITY;
    for (int iteration = 0; iteration < 500; iteration++) {
        double largest = 0;
        ref_grad_F(q, u, grad);
        for (size_t h = 0; h < n; h++) {
            if (pinned[h]) grad[h] = 0;
            if (fabs(grad[h]) > largest) largest = fabs(grad[h]);
        }
        if (largest < 1e-6 && largest >= best) break; // in the regime of rounding errors
        best = largest;
        ref_hess_F(q, u, H);
        for (size_t h = 0; h < n; h++) {
            step[h] = -grad[h];
            for (size_t k = 0; k < n; k++)
                if (pinned[h] || pinned[k]) H[h * n + k] = h == k ? 1.0 : 0.0;
        }
        if (!ref_cholesky_solve(H, step, n)) {
            best = NAN;
            break;
        }
        double slope = 0, size = 1;
        for (size_t h = 0; h < n; h++) slope += grad[h] * step[h];
        const double F = ref_F(q, u), slack = 1e-14 * fabs(F); // F itself is only known to rounding
        for (;; size /= 2) {
            for (size_t h = 0; h < n; h++) trial[h] = u[h] + size * step[h];
            if (ref_F(q, trial) <= F + 1e-4 * size * slope + slack) break;
            if (size < 1e-12) break;
        }
        if (size < 1e-12) break;
        for (size_t h = 0; h < n; h++) u[h] = trial[h];
    }
    free(H);
    free(step);
    free(grad);
    free(trial);
    free(pinned);
    return best;
}

// Rescaled parameters: out_i = theta_i exp(-(Bu)_i / 2). out may be theta.
static inline void ref_apply(const RefProblem *q, const double *u, const double *theta, double *out) {
    for (int i = 0; i < q->n_params; i++) out[i] = theta[i] * exp(-ref_bu(q, u, i) / 2);
}

// ---------------------------------------------------------------------------------------------------------------
// ENorm

// sum_i cost_i theta_i^2 exp(-(Bu)_i): cost_i is 1 for a weight, 0 for what is scaled but not counted (biases), or
// the layer's penalty. q->g is not used.
static inline double ref_enorm_cost(const RefProblem *q, const double *theta, const double *cost, const double *u) {
    double sum = 0;
    for (int i = 0; i < q->n_params; i++) sum += cost[i] * theta[i] * theta[i] * exp(-ref_bu(q, u, i));
    return sum;
}

// Minimises ref_enorm_cost from u = 0: each unit in turn gets exp(2 u_h) = out_h / in_h, the sums that leave / enter
// it without its own factor, until a whole cycle changes no u by more than `tol`, or max_cycles. Units with nothing
// entering or nothing leaving keep u = 0. Returns the number of cycles.
static inline int ref_enorm(const RefProblem *q, const double *theta, const double *cost, double *u, double tol,
                            int max_cycles) {
    for (int h = 0; h < q->n_units; h++) u[h] = 0;
    for (int cycle = 1; cycle <= max_cycles; cycle++) {
        double change = 0;
        for (int h = 0; h < q->n_units; h++) {
            const double before = u[h];
            double in = 0, out = 0;
            u[h] = 0;
            for (int i = 0; i < q->n_params; i++) {
                const double energy = cost[i] * theta[i] * theta[i] * exp(-ref_bu(q, u, i));
                if (q->enter[i] == h && q->leave[i] != h) in += energy;
                if (q->leave[i] == h && q->enter[i] != h) out += energy;
            }
            if (in > 0 && out > 0) u[h] = 0.5 * log(out / in);
            if (fabs(u[h] - before) > change) change = fabs(u[h] - before);
        }
        if (change <= tol) return cycle;
    }
    return max_cycles;
}
