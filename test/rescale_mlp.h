// rescale_mlp.h -- shared by test_rescale.c, test_rescale_net.c and test_rescale_power.c: random numbers, small
// networks, their forward pass and their diag(G) by the reference's loops. rescale.cuh in double precision.
#ifndef RESCALE_MLP_H
#define RESCALE_MLP_H
#define RESCALE_REAL double
#include "rescale.cuh"

#include "ref_rescale.h"
#include "test.h"

// ---------------------------------------------------------------------------------------------------------------
// Random numbers, small helpers

static inline double normal(void) {
    return sqrt(-2 * log(0.5 + 0.5 * test_random() + 1e-300)) * cos(3.14159265358979323846 * test_random());
}
static inline int random_int(int low, int high) { return low + (int)(0.5 * (test_random() + 1) * (high - low + 1)); }

static inline void fill(double *x, size_t n, double centre, double spread) {
    for (size_t i = 0; i < n; i++) x[i] = centre + spread * test_random();
}
static inline double *copy_of(const double *x, size_t n) {
    double *y = ref_doubles(n);
    memcpy(y, x, n * sizeof *y);
    return y;
}
static inline double largest_abs(const double *x, size_t n) {
    double m = 0;
    for (size_t i = 0; i < n; i++) m = fmax(m, fabs(x[i]));
    return m;
}
static inline int same_bits(const double *a, const double *b, size_t n) { return memcmp(a, b, n * sizeof *a) == 0; }

// ---------------------------------------------------------------------------------------------------------------
// Networks to rescale

enum { MAX_GROUPS = 64, MAX_TENSORS = 4 * MAX_GROUPS };
enum { KAIMING_UNIFORM, KAIMING_NORMAL };

// An MLP, all parameters in theta in the order W1, b1, (gamma1, beta1), W2, ..., and its description.
typedef struct mlp {
    int n_layers, dims[MAX_GROUPS + 1], bias, last_bias, bn, units, n_tensors;
    size_t p;
    double slope;             // of the leaky ReLU, 0 = ReLU
    double *theta;            // [p]
    double *mean, *var, eps;  // [units] running statistics when bn
    char name[MAX_TENSORS][24];
    rescale_group group[MAX_GROUPS];
    rescale_tensor tensor[MAX_TENSORS];
    rescale_net net;
} mlp;

// Whether layer l has a bias.
static inline int mlp_has_bias(const mlp *m, int l) { return l + 1 == m->n_layers ? m->last_bias : m->bias; }

// Number of elements of tensor i.
static inline size_t tensor_size(const rescale_tensor *t) {
    return (size_t)t->n_out * (size_t)t->n_in * (size_t)t->kernel;
}

static inline void mlp_add(mlp *m, const char *kind, int layer, rescale_tensor t) {
    snprintf(m->name[m->n_tensors], sizeof m->name[0], "%s%d", kind, layer + 1);
    t.name = m->name[m->n_tensors];
    m->tensor[m->n_tensors++] = t;
    m->p += tensor_size(&t);
}

// Describes an MLP with all parameters zero; release with mlp_free.
static inline mlp *mlp_new(const int *dims, int n_layers, int bias, int last_bias, int bn) {
    mlp *m = (mlp *)ref_grow(NULL, sizeof *m);
    memset(m, 0, sizeof *m);
    m->n_layers = n_layers;
    m->bias = bias;
    m->last_bias = last_bias;
    m->bn = bn;
    for (int l = 0; l <= n_layers; l++) m->dims[l] = dims[l];
    for (int l = 1; l < n_layers; l++) m->units += dims[l];
    m->mean = ref_doubles((size_t)m->units);
    m->var = ref_doubles((size_t)m->units);
    m->eps = 1e-5;
    for (int l = 0, unit = 0; l < n_layers; l++) {
        const int last = l + 1 == n_layers, group = last ? RESCALE_NONE : l;
        const int enters = bn ? RESCALE_NONE : group;
        const int leaves = l > 0 ? l - 1 : RESCALE_NONE;
        mlp_add(m, "w", l, rescale_weight("", NULL, dims[l + 1], dims[l], 1, enters, leaves));
        if (mlp_has_bias(m, l)) mlp_add(m, "b", l, rescale_bias("", NULL, dims[l + 1], enters));
        if (last) continue;
        m->group[l] = rescale_units("hidden", dims[l + 1], RESCALE_RELU);
        if (bn) {
            mlp_add(m, "gamma", l, rescale_gain("", NULL, dims[l + 1], group, m->mean + unit, m->var + unit, m->eps));
            mlp_add(m, "beta", l, rescale_bias("", NULL, dims[l + 1], group));
        }
        unit += dims[l + 1];
    }
    m->theta = ref_doubles(m->p);
    for (int i = 0, at = 0; i < m->n_tensors; i++) {
        m->tensor[i].data = m->theta + at;
        at += (int)tensor_size(m->tensor + i);
    }
    m->net.group = m->group;
    m->net.n_groups = n_layers - 1;
    m->net.tensor = m->tensor;
    m->net.n_tensors = m->n_tensors;
    return m;
}

static inline void mlp_free(mlp *m) {
    free(m->theta);
    free(m->mean);
    free(m->var);
    free(m);
}

// PyTorch's default init (weights and biases uniform within 1/sqrt(fan_in)), or kaiming normal with zero biases;
// weights times scale. gamma near 1, beta near 0, running statistics plausible.
static inline void mlp_init(mlp *m, int init, double scale) {
    int fan_in = 1;
    for (int i = 0; i < m->n_tensors; i++) {
        const rescale_tensor *t = m->tensor + i;
        const size_t n = tensor_size(t);
        if (t->role == RESCALE_WEIGHT) fan_in = t->n_in;
        for (size_t k = 0; k < n; k++) {
            double v = init == KAIMING_UNIFORM ? test_random() / sqrt(fan_in) : normal() * sqrt(2.0 / fan_in);
            if (t->role == RESCALE_WEIGHT) v *= scale;
            else if (t->role == RESCALE_GAIN) v = 1 + 0.5 * test_random();
            else if (init == KAIMING_NORMAL && !m->bn) v = 0;
            t->data[k] = v;
        }
    }
    fill(m->mean, (size_t)m->units, 0.1, 0.5);
    fill(m->var, (size_t)m->units, 1.2, 0.7);
}

// y[batch][last] of x[batch][first]. With BatchNorm: statistics of the batch when training, else the running ones.
static inline void mlp_forward(const mlp *m, const double *x, int batch, int training, double *y) {
    double *a = copy_of(x, (size_t)batch * (size_t)m->dims[0]);
    for (int l = 0, i = 0, unit = 0; l < m->n_layers; l++) {
        const int n_in = m->dims[l], n_out = m->dims[l + 1], last = l + 1 == m->n_layers;
        const double *w = m->tensor[i++].data, *b = mlp_has_bias(m, l) ? m->tensor[i++].data : NULL;
        double *z = ref_doubles((size_t)batch * (size_t)n_out);
        for (int s = 0; s < batch; s++)
            for (int o = 0; o < n_out; o++) {
                double sum = b ? b[o] : 0;
                for (int k = 0; k < n_in; k++) sum += w[(size_t)o * (size_t)n_in + k] * a[(size_t)s * (size_t)n_in + k];
                z[(size_t)s * (size_t)n_out + o] = sum;
            }
        if (m->bn && !last) {
            const double *gamma = m->tensor[i++].data, *beta = m->tensor[i++].data;
            for (int o = 0; o < n_out; o++) {
                double mean = 0, var = 0;
                for (int s = 0; s < batch; s++) mean += z[s * n_out + o] / batch;
                for (int s = 0; s < batch; s++) var += pow(z[s * n_out + o] - mean, 2) / batch;
                if (!training) {
                    mean = m->mean[unit + o];
                    var = m->var[unit + o];
                }
                for (int s = 0; s < batch; s++)
                    z[s * n_out + o] = gamma[o] * (z[s * n_out + o] - mean) / sqrt(var + m->eps) + beta[o];
            }
        }
        for (int k = 0; k < batch * n_out && !last; k++) z[k] = z[k] < 0 ? m->slope * z[k] : z[k];
        free(a);
        a = z;
        unit += n_out;
    }
    memcpy(y, a, (size_t)batch * (size_t)m->dims[m->n_layers] * sizeof *y);
    free(a);
}

// diag(G) of an MLP, entry by entry, by the reference's loops.
static inline double *mlp_diag_g(const mlp *m) {
    RefMlpTensors r;
    memset(&r, 0, sizeof r);
    r.n_layers = m->n_layers;
    double *rstd = ref_doubles((size_t)m->units), *g = ref_doubles(m->p);
    for (int h = 0; h < m->units; h++) rstd[h] = 1 / sqrt(m->var[h] + m->eps);
    for (int l = 0, i = 0, unit = 0; l < m->n_layers; l++) {
        const int last = l + 1 == m->n_layers;
        r.dims[l] = m->dims[l];
        r.w[l] = m->tensor[i++].data;
        if (last ? m->last_bias : m->bias) r.b[l] = m->tensor[i++].data;
        if (m->bn && !last) {
            r.gamma[l] = m->tensor[i++].data;
            r.beta[l] = m->tensor[i++].data;
            r.mean[l] = m->mean + unit;
            r.rstd[l] = rstd + unit;
        }
        unit += m->dims[l + 1];
    }
    r.dims[m->n_layers] = m->dims[m->n_layers];
    RefMlpDiagG d = ref_mlp_diag_g(&r);
    for (int l = 0, i = 0; l < m->n_layers; l++) {
        const int n_in = m->dims[l], n_out = m->dims[l + 1], last = l + 1 == m->n_layers;
        double *w = g + (m->tensor[i++].data - m->theta);
        for (int o = 0; o < n_out; o++)
            for (int k = 0; k < n_in; k++) w[(size_t)o * (size_t)n_in + (size_t)k] = d.d[l][o] * d.a[l][k];
        if (last ? m->last_bias : m->bias)
            memcpy(g + (m->tensor[i++].data - m->theta), d.d[l], (size_t)n_out * sizeof *g);
        if (m->bn && !last) {
            memcpy(g + (m->tensor[i++].data - m->theta), d.g_gamma[l], (size_t)n_out * sizeof *g);
            memcpy(g + (m->tensor[i++].data - m->theta), d.g_beta[l], (size_t)n_out * sizeof *g);
        }
    }
    ref_mlp_diag_g_free(&d);
    free(rstd);
    return g;
}

// A RefProblem for any description: counted parameters only, g / r with g[] over all parameters of all tensors in
// order. A parameter of a row that leaves (or a column that enters) is a parameter that leaves (enters).
typedef struct problem {
    RefProblem q;
    int *enter, *leave;
    double *g;
} problem;

static inline problem problem_of(const rescale_net *net, const double *g) {
    problem r;
    size_t p = 0, at = 0;
    int *first = (int *)ref_grow(NULL, ((size_t)net->n_groups + 1) * sizeof(int)), n = 0;
    first[0] = 0;
    for (int i = 0; i < net->n_groups; i++) first[i + 1] = first[i] + net->group[i].n;
    for (int i = 0; i < net->n_tensors; i++) p += tensor_size(net->tensor + i);
    r.enter = (int *)ref_grow(NULL, p * sizeof(int));
    r.leave = (int *)ref_grow(NULL, p * sizeof(int));
    r.g = ref_doubles(p);
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        const size_t columns = (size_t)t->n_in * (size_t)t->kernel;
        for (size_t j = 0; j < tensor_size(t); j++, at++) {
            const int row = t->enters < 0 ? -1 : first[t->enters] + (int)(j / columns);
            const int col = t->leaves < 0 ? -1 : first[t->leaves] + (int)(j % columns) / t->kernel;
            const int rows_leave = (t->flags & RESCALE_ROWS_LEAVE) != 0,
                      cols_enter = (t->flags & RESCALE_COLS_ENTER) != 0;
            if (t->flags & RESCALE_UNCOUNTED) continue;
            if (row >= 0 && col >= 0 && rows_leave != cols_enter) {
                fprintf(stderr, "problem_of: a parameter on the same side of two units\n");
                exit(1);
            }
            r.enter[n] = row;
            r.leave[n] = col;
            if (cols_enter) r.enter[n] = col;
            else if (rows_leave) r.enter[n] = -1;
            if (rows_leave) r.leave[n] = row;
            else if (cols_enter) r.leave[n] = -1;
            const double reference = t->reference > 0 ? t->reference : 1;
            r.g[n] = g ? g[at] / reference : 0;
            if (g && t->reference_each) r.g[n] /= t->reference_each[j];
            n++;
        }
    }
    r.q.n_params = n;
    r.q.n_units = first[net->n_groups];
    free(first);
    r.q.enter = r.enter;
    r.q.leave = r.leave;
    r.q.g = r.g;
    return r;
}
static inline void problem_free(problem *r) {
    free(r->enter);
    free(r->leave);
    free(r->g);
}

// rescale_run that must succeed, u to the caller.
static inline rescale_report solve(const rescale_net *net, rescale_options o, double *u) {
    rescale_report r;
    o.u = u;
    const int status = rescale_run(net, &o, &r);
    if (!CHECK(status == RESCALE_OK && r.status == status, "rescale_run succeeds")) printf("    %s\n", r.message);
    return r;
}

static inline rescale_options dry(void) {
    rescale_options o = rescale_default_options();
    o.dry_run = 1;
    return o;
}

// A small MLP with biases, kaiming uniform, and a copy of its parameters.
static inline mlp *small_mlp(int bn) {
    static const int dims[] = {4, 8, 6, 7, 3};
    mlp *m = mlp_new(dims, 4, 1, 1, bn);
    mlp_init(m, KAIMING_UNIFORM, 1);
    return m;
}

// The internal solver state of a description, for tests of diag(G). Release with free(memory).
static inline rsc_solver open_solver(const rescale_net *net, const rescale_options *o, rescale_report *r,
                                     void **memory) {
    rsc_solver s;
    memset(&s, 0, sizeof s);
    memset(r, 0, sizeof *r);
    s.net = net;
    s.options = o;
    s.report = r;
    s.power = o->power == 1 ? 1 : 2;
    rsc_arena a = {NULL, 0, rescale_arena_bytes(net, o)};
    *memory = calloc(a.size + 64, 1);
    a.base = (char *)*memory + (64 - (uintptr_t)*memory % 64) % 64;
    rsc_layout(&s, &a);
    CHECK(a.used <= a.size, "the layout fits rescale_arena_bytes");
    rsc_link(&s);
    CHECK(rsc_chain_diag_g(&s) == RESCALE_OK, "squared passes run");
    return s;
}

// Largest |difference| of two outputs relative to the largest |output|.
static inline double relative_difference(const double *a, const double *b, size_t n) {
    double d = 0;
    for (size_t i = 0; i < n; i++) d = fmax(d, fabs(a[i] - b[i]));
    return d / fmax(largest_abs(b, n), 1e-300);
}

enum { BATCH = 16 };
#endif
