// test_rescale.c -- rescale.cuh in double precision against test/ref_rescale.h, golden values and its own contract.
//
//     cc -O2 -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wpedantic -fopenmp -I. -Itest test/test_rescale.c -lm
//
// Float, and device memory against host memory: test_rescale_device.cu. The example in the manual: test_example.sh.
// Section numbers in comments follow the list of what the method has to get right: diag(G), F, solvers, special cases.
#define RESCALE_REAL double
#include "rescale.cuh"

#include "golden_mlp.h"
#include "ref_rescale.h"
#include "test.h"

// ---------------------------------------------------------------------------------------------------------------
// Random numbers, small helpers

static double normal(void) {
    return sqrt(-2 * log(0.5 + 0.5 * test_random() + 1e-300)) * cos(3.14159265358979323846 * test_random());
}
static int random_int(int low, int high) { return low + (int)(0.5 * (test_random() + 1) * (high - low + 1)); }

static void fill(double *x, size_t n, double centre, double spread) {
    for (size_t i = 0; i < n; i++) x[i] = centre + spread * test_random();
}
static double *copy_of(const double *x, size_t n) {
    double *y = ref_doubles(n);
    memcpy(y, x, n * sizeof *y);
    return y;
}
static double largest_abs(const double *x, size_t n) {
    double m = 0;
    for (size_t i = 0; i < n; i++) m = fmax(m, fabs(x[i]));
    return m;
}
static int same_bits(const double *a, const double *b, size_t n) { return memcmp(a, b, n * sizeof *a) == 0; }

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

// Number of elements of tensor i.
static size_t tensor_size(const rescale_tensor *t) { return (size_t)t->n_out * (size_t)t->n_in * (size_t)t->kernel; }

static void mlp_add(mlp *m, const char *kind, int layer, rescale_tensor t) {
    snprintf(m->name[m->n_tensors], sizeof m->name[0], "%s%d", kind, layer + 1);
    t.name = m->name[m->n_tensors];
    m->tensor[m->n_tensors++] = t;
    m->p += tensor_size(&t);
}

// Describes an MLP with all parameters zero; release with mlp_free.
static mlp *mlp_new(const int *dims, int n_layers, int bias, int last_bias, int bn) {
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
        const int last = l + 1 == n_layers, group = last ? RESCALE_NONE : l, enters = bn ? RESCALE_NONE : group;
        mlp_add(m, "w", l, rescale_weight("", NULL, dims[l + 1], dims[l], 1, enters, l > 0 ? l - 1 : RESCALE_NONE));
        if (last ? last_bias : bias) mlp_add(m, "b", l, rescale_bias("", NULL, dims[l + 1], enters));
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

static void mlp_free(mlp *m) {
    free(m->theta);
    free(m->mean);
    free(m->var);
    free(m);
}

// PyTorch's default init (weights and biases uniform within 1/sqrt(fan_in)), or kaiming normal with zero biases; weights times
// scale. gamma near 1, beta near 0, running statistics plausible.
static void mlp_init(mlp *m, int init, double scale) {
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
static void mlp_forward(const mlp *m, const double *x, int batch, int training, double *y) {
    double *a = copy_of(x, (size_t)batch * (size_t)m->dims[0]);
    for (int l = 0, i = 0, unit = 0; l < m->n_layers; l++) {
        const int n_in = m->dims[l], n_out = m->dims[l + 1], last = l + 1 == m->n_layers;
        const double *w = m->tensor[i++].data, *b = (last ? m->last_bias : m->bias) ? m->tensor[i++].data : NULL;
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
static double *mlp_diag_g(const mlp *m) {
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

// A RefProblem for any description: counted parameters only, g / r with g[] over all parameters of all tensors in order.
// A parameter of a row that leaves (or a column that enters) is a parameter that leaves (enters).
typedef struct problem {
    RefProblem q;
    int *enter, *leave;
    double *g;
} problem;

static problem problem_of(const rescale_net *net, const double *g) {
    problem r;
    size_t p = 0, at = 0;
    int first[MAX_GROUPS + 1] = {0}, n = 0;
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
            const int rows_leave = (t->flags & RESCALE_ROWS_LEAVE) != 0, cols_enter = (t->flags & RESCALE_COLS_ENTER) != 0;
            if (t->flags & RESCALE_UNCOUNTED) continue;
            if (row >= 0 && col >= 0 && rows_leave != cols_enter) {
                fprintf(stderr, "problem_of: a parameter on the same side of two units\n");
                exit(1);
            }
            r.enter[n] = cols_enter ? col : rows_leave ? -1 : row;
            r.leave[n] = rows_leave ? row : cols_enter ? -1 : col;
            r.g[n] = g ? g[at] / (t->reference > 0 ? t->reference : 1) : 0;
            if (g && t->reference_each) r.g[n] /= t->reference_each[j];
            n++;
        }
    }
    r.q.n_params = n;
    r.q.n_units = first[net->n_groups];
    r.q.enter = r.enter;
    r.q.leave = r.leave;
    r.q.g = r.g;
    return r;
}
static void problem_free(problem *r) {
    free(r->enter);
    free(r->leave);
    free(r->g);
}

// rescale_run that must succeed, u to the caller.
static rescale_report solve(const rescale_net *net, rescale_options o, double *u) {
    rescale_report r;
    o.u = u;
    const int status = rescale_run(net, &o, &r);
    if (!CHECK(status == RESCALE_OK && r.status == status, "rescale_run succeeds")) printf("    %s\n", r.message);
    return r;
}

static rescale_options dry(void) {
    rescale_options o = rescale_default_options();
    o.dry_run = 1;
    return o;
}

// ---------------------------------------------------------------------------------------------------------------
// 1. Golden values

static mlp *golden_net(const GoldenMlp *want) {
    mlp *m = mlp_new(want->dims, want->n_layers, want->bias, want->last_bias, 0);
    ref_golden_weights(want->dims, want->n_layers, want->bias, want->last_bias, m->theta);
    return m;
}

// The internal solver state of a description, for tests of diag(G). Release with free(memory).
static rsc_solver open_solver(const rescale_net *net, const rescale_options *o, rescale_report *r, void **memory) {
    rsc_solver s;
    memset(&s, 0, sizeof s);
    memset(r, 0, sizeof *r);
    s.net = net;
    s.options = o;
    s.report = r;
    rsc_arena a = {NULL, 0, rescale_arena_bytes(net, o)};
    *memory = calloc(a.size + 64, 1);
    a.base = (char *)*memory + (64 - (uintptr_t)*memory % 64) % 64;
    rsc_layout(&s, &a);
    CHECK(a.used <= a.size, "the layout fits rescale_arena_bytes");
    rsc_link(&s);
    CHECK(rsc_chain_diag_g(&s) == RESCALE_OK, "squared passes run");
    return s;
}

// The optimum where S = sum g exp(B u) may grow by a factor only: S is at the limit, and dS/du, in loops over single parameters, is a
// positive multiple of n_h (the conditions of Karush, Kuhn and Tucker, sufficient here since S is convex), larger than S / p.
static void check_bounded_trace(const mlp *m, double factor, int general) {
    double *g = mlp_diag_g(m), u[64], slope[64] = {0}, count[64] = {0}, before = 0, S = 0;
    problem pr = problem_of(&m->net, g);
    rescale_options o = dry();
    const rescale_report free_one = solve(&m->net, o, u);
    o.max_trace = factor;
    o.general = general;
    const rescale_report r = solve(&m->net, o, u);
    for (int i = 0; i < pr.q.n_params; i++) {
        const int in = pr.enter[i], out = pr.leave[i];
        const double e = pr.g[i] * exp((out >= 0 ? u[out] : 0) - (in >= 0 ? u[in] : 0));
        before += pr.g[i];
        S += e;
        if (out >= 0) {
            slope[out] += e;
            count[out]++;
        }
        if (in >= 0) {
            slope[in] -= e;
            count[in]--;
        }
    }
    const double ratio = S / before;
    test_close_d("trace ratio", &r.trace_ratio, &ratio, 1, 1e-9, 0);
    if (free_one.trace_ratio <= factor) {
        CHECK(fabs(r.trace_ratio / free_one.trace_ratio - 1) < 1e-6 && fabs(r.objective_after - free_one.objective_after) <= 1e-9 * fabs(r.objective_after), "no bound that matters: the optimum");
    } else {
        double dot = 0, n2 = 0, off = 0, largest = 0;
        CHECK(ratio <= factor * (1 + 1e-9) && ratio >= 0.999 * factor, "the trace is at its bound");
        for (int h = 0; h < m->units; h++) {
            dot += slope[h] * count[h];
            n2 += count[h] * count[h];
        }
        for (int h = 0; h < m->units; h++) {
            off = fmax(off, fabs(slope[h] - dot / n2 * count[h]));
            largest = fmax(largest, fabs(slope[h]));
        }
        CHECK(dot > 0 && off <= 1e-6 * largest && dot / n2 < S / pr.q.n_params, "the gradient of S is a multiple of n");
        CHECK(r.converged && r.objective_after < r.objective_before && r.objective_after > free_one.objective_after, "F between");
    }
    o.max_log = 0.05;
    const rescale_report both = solve(&m->net, o, u);
    CHECK(both.trace_ratio <= factor * (1 + 1e-9) && both.max_abs_log_lambda <= 0.05 * (1 + 1e-12), "both bounds hold");
    problem_free(&pr);
    free(g);
}

// A net whose S is least as it is, though F is not: 2-1-1, all weights 1, S = 2 / x + 2 x, optimum x = 2^-1/2. Nothing may move.
static void check_least_trace(void) {
    const int dims[] = {2, 1, 1};
    double u;
    mlp *m = mlp_new(dims, 2, 0, 0, 0);
    for (size_t i = 0; i < m->p; i++) m->theta[i] = 1;
    rescale_options o = dry();
    rescale_report r = solve(&m->net, o, &u);
    CHECK(fabs(u + 0.5 * log(2.0)) < 1e-9 && fabs(r.trace_ratio - 0.75 * sqrt(2.0)) < 1e-9, "worked out by hand");
    o.max_trace = 1;
    r = solve(&m->net, o, &u);
    CHECK(r.converged && r.trace_ratio <= 1 + 1e-9 && fabs(u) < 1e-4, "no room: u = 0");
    mlp_free(m);
}

static void check_golden(const GoldenMlp *want) {
    mlp *m = golden_net(want);
    double u[64];
    const size_t n = (size_t)want->n_units;
    printf("golden %s\n", want->name);
    CHECK((int)m->p == want->p && m->units == want->n_units, "recorded size");
    rescale_report r = solve(&m->net, dry(), u);
    test_close_d("golden F at 0", &r.objective_before, &want->F_at_zero, 1, 1e-10, 0);
    test_close_d("golden F at the optimum", &r.objective_after, &want->F_optimum, 1, 1e-10, 0);
    test_close_d("golden u at the optimum", u, want->u_optimum, n, 0, 1e-8);
    CHECK(r.converged && r.grad_inf <= r.grad_tolerance, "certificate");
    CHECK(r.parameters == want->p && r.units == want->n_units, "report counts units and parameters");
    rescale_options o = dry();
    o.solver = RESCALE_SWEEPS;
    o.sweeps = 10;
    r = solve(&m->net, o, u);
    test_close_d("golden F after 10 block sweeps", &r.objective_after, &want->F_10_block_sweeps, 1, 1e-10, 0);
    test_close_d("golden u after 10 block sweeps", u, want->u_10_block_sweeps, n, 0, 1e-8);
    CHECK(r.sweeps == 10 && r.iterations == 0, "report counts sweeps");
    o.solver = RESCALE_UNIT_SWEEPS;
    r = solve(&m->net, o, u);
    test_close_d("golden F after 10 unit sweeps", &r.objective_after, &want->F_10_unit_sweeps, 1, 1e-10, 0);
    test_close_d("golden u after 10 unit sweeps", u, want->u_10_unit_sweeps, n, 0, 1e-8);
    CHECK(r.sweeps == 10 && r.iterations == 0, "report counts unit sweeps");
    o = dry();
    o.strength = 0.5;
    r = solve(&m->net, o, u);
    for (size_t h = 0; h < n; h++) u[h] *= 2;
    test_close_d("half of the optimum", u, want->u_optimum, n, 0, 1e-8);
    CHECK(r.objective_after > want->F_optimum && r.objective_after < want->F_at_zero, "half of the way lowers F, by less");
    o = dry();
    o.within = 1;
    r = solve(&m->net, o, u);
    double within[64], zero = 0;
    for (int g = 0, first = 0; g < m->net.n_groups; first += m->net.group[g].n, g++) {
        double mean = 0, sum = 0;
        for (int h = first; h < first + m->net.group[g].n; h++) mean += want->u_optimum[h] / m->net.group[g].n;
        for (int h = first; h < first + m->net.group[g].n; h++) {
            within[h] = want->u_optimum[h] - mean;
            sum += u[h];
        }
        test_close_d("mean of u in a group", &sum, &zero, 1, 0, 1e-12);
    }
    test_close_d("differences within groups", u, within, n, 0, 1e-8);
    for (int k = 0; k < 6; k++) check_bounded_trace(m, k % 3 == 0 ? 1 : k % 3 == 1 ? 1.02 : 50, k / 3);
    // Biases that do not count begin no paths: the same u as with biases of zero.
    static rescale_tensor t[32];
    rescale_net weights = m->net;
    double without[64];
    memcpy(t, m->net.tensor, (size_t)m->net.n_tensors * sizeof *t);
    weights.tensor = t;
    for (int i = 0; i < weights.n_tensors; i++) t[i].flags |= t[i].role == RESCALE_BIAS ? RESCALE_UNCOUNTED : 0;
    solve(&weights, dry(), u);
    for (int i = 0; i < weights.n_tensors; i++)
        if (t[i].role == RESCALE_BIAS) t[i].data = (rescale_real *)calloc((size_t)t[i].n_out, sizeof(rescale_real));
    solve(&weights, dry(), without);
    test_close_d("paths that no bias begins", u, without, n, 0, 1e-8);
    for (int i = 0; i < weights.n_tensors; i++)
        if (t[i].role == RESCALE_BIAS) free(t[i].data);
    void *memory;
    o = rescale_default_options();
    rsc_solver s = open_solver(&m->net, &o, &r, &memory);
    const int last = m->n_tensors - 1 - m->last_bias;
    double a_last[8], bias2[8] = {0}, d_first[8];
    const double one = 1;
    rsc_host_square_rows(m->tensor[last].data, (size_t)m->tensor[last].n_out, (size_t)m->tensor[last].n_in, s.energy[last].in, a_last);
    if (m->last_bias) rsc_host_square_rows(m->tensor[last + 1].data, (size_t)m->tensor[last].n_out, 1, &one, bias2);
    for (int k = 0; k < m->tensor[last].n_out; k++) a_last[k] += bias2[k];
    rsc_host_square_cols(m->tensor[0].data, (size_t)m->tensor[0].n_out, (size_t)m->tensor[0].n_in, s.energy[0].out, d_first);
    test_close_d("golden squared forward output", a_last, want->a_last, (size_t)m->tensor[last].n_out, 1e-12, 0);
    test_close_d("golden squared backward at the input", d_first, want->d_first, (size_t)m->dims[0], 1e-12, 0);
    free(memory);
    mlp_free(m);
}

// ---------------------------------------------------------------------------------------------------------------
// 2. diag(G) against path enumeration

static void check_paths(const int *dims, int n_layers, int bias, int last_bias, int bn) {
    mlp *m = mlp_new(dims, n_layers, bias, last_bias, bn);
    fill(m->theta, m->p, 0, 0.9);
    fill(m->mean, (size_t)m->units, 0.2, 0.7);
    fill(m->var, (size_t)m->units, 1.1, 1);
    double *rstd = ref_doubles((size_t)m->units), *want = ref_doubles(m->p), *got = ref_doubles(m->p);
    for (int h = 0; h < m->units; h++) rstd[h] = 1 / sqrt(m->var[h] + m->eps);
    RefNet net = ref_net_mlp(dims, n_layers, bias, last_bias, bn ? m->mean : NULL, bn ? rstd : NULL);
    RefPaths paths = ref_net_paths(&net, m->theta);
    ref_paths_diag_g(&paths, want);
    CHECK((size_t)net.n_params == m->p && net.n_units == m->units, "the reference describes the same net");
    void *memory;
    rescale_report r;
    const rescale_options o = dry();
    rsc_solver s = open_solver(&m->net, &o, &r, &memory);
    for (int i = 0; i < m->n_tensors; i++) {
        const rescale_tensor *t = m->tensor + i;
        for (int j = 0; j < t->n_out; j++)
            for (int k = 0; k < t->n_in; k++) got[t->data - m->theta + j * t->n_in + k] = s.energy[i].out[j] * s.energy[i].in[k];
    }
    test_close_d("diag(G) by paths", got, want, m->p, 1e-12, 1e-300);
    // The whole problem from the graph: u and F at the optimum.
    double *u = ref_doubles((size_t)m->units), *u_want = ref_doubles((size_t)m->units);
    const RefProblem q = ref_problem(&net, want);
    CHECK(ref_optimum(&q, u_want) < 1e-9, "reference optimum");
    r = solve(&m->net, o, u);
    test_close_d("u from the graph", u, u_want, (size_t)m->units, 0, 1e-8);
    const double F = ref_F(&q, u_want);
    test_close_d("F from the graph", &r.objective_after, &F, 1, 1e-10, 0);
    ref_paths_free(&paths);
    ref_net_free(&net);
    free(memory);
    free(rstd);
    free(want);
    free(got);
    free(u);
    free(u_want);
    mlp_free(m);
}

// ---------------------------------------------------------------------------------------------------------------
// 3. and 4. Ways to give diag(G); references

// Every way to give the same diag(G) and to solve leads to u_want.
static void check_ways(const mlp *m, const double *u_want, double tolerance) {
    double *g = mlp_diag_g(m), *u = ref_doubles((size_t)m->units);
    rescale_tensor t[MAX_TENSORS];
    const rescale_net net = {m->group, m->net.n_groups, t, m->n_tensors};
    double *out[MAX_TENSORS], *in[MAX_TENSORS];
    void *memory;
    rescale_report r;
    const rescale_options plain = dry();
    rsc_solver s = open_solver(&m->net, &plain, &r, &memory);
    for (int i = 0; i < m->n_tensors; i++) {  // another split of each outer product than the library's own
        out[i] = copy_of(s.energy[i].out, (size_t)m->tensor[i].n_out);
        in[i] = copy_of(s.energy[i].in, (size_t)m->tensor[i].n_in);
    }
    for (int i = 0; i < m->n_tensors; i++) {
        for (int k = 0; k < m->tensor[i].n_out; k++) out[i][k] *= 1e-3;
        for (int k = 0; k < m->tensor[i].n_in; k++) in[i][k] *= 1e3;
    }
    free(memory);
    for (int way = 0; way < 6; way++) {  // chain, rank one, full, a mix; chain and full by conjugate gradients
        static const char *const name[] = {"chain", "rank one", "full g", "full and rank one", "chain, CG", "rank one, CG"};
        rescale_options o = dry();
        o.general = way >= 4;
        for (int i = 0; i < m->n_tensors; i++) {
            t[i] = m->tensor[i];
            const int full = way == 2 || (way == 3 && i % 2), rank_one = way == 1 || way == 5 || (way == 3 && !(i % 2));
            if (full) t[i].g = g + (t[i].data - m->theta);
            if (rank_one) {
                t[i].g_out = out[i];
                t[i].g_in = in[i];
            }
        }
        r = solve(&net, o, u);
        test_close_d(name[way], u, u_want, (size_t)m->units, 0, tolerance);
        if (o.general || (way == 2 && m->n_layers > 2 && !m->bn)) CHECK(r.cg_steps > 0 || r.iterations == 0, "conjugate gradients ran");
        if (way < 2 && !m->tensor[0].reference_each) CHECK(r.cg_steps == 0, "Woodbury ran");
    }
    for (int i = 0; i < m->n_tensors; i++) {
        free(out[i]);
        free(in[i]);
    }
    free(g);
    free(u);
}

static void check_references(int bn) {
    static const int dims[] = {5, 9, 7, 8, 3};
    mlp *m = mlp_new(dims, 4, 1, 1, bn);
    mlp_init(m, KAIMING_UNIFORM, 1);
    double *g = mlp_diag_g(m), *each = ref_doubles(m->p), *u = ref_doubles((size_t)m->units);
    for (size_t i = 0; i < m->p; i++) each[i] = exp(1.5 * test_random());
    for (int which = 0; which < 4; which++) {  // none, per tensor, per parameter, both
        for (int i = 0; i < m->n_tensors; i++) {
            m->tensor[i].reference = which & 1 ? exp(2 * test_random()) : 0;
            m->tensor[i].reference_each = which & 2 ? each + (m->tensor[i].data - m->theta) : NULL;
        }
        problem q = problem_of(&m->net, g);
        CHECK(ref_optimum(&q.q, u) < 1e-9, "reference optimum");
        if (which < 2 || !bn) check_ways(m, u, 1e-8);
        else {
            double *got = ref_doubles((size_t)m->units);
            solve(&m->net, dry(), got);
            test_close_d("per-parameter reference, BatchNorm", got, u, (size_t)m->units, 0, 1e-8);
            free(got);
        }
        const rescale_report r = solve(&m->net, dry(), NULL);
        const double F = ref_F(&q.q, u);
        test_close_d("F with references", &r.objective_after, &F, 1, 1e-10, 0);
        problem_free(&q);
    }
    free(g);
    free(each);
    free(u);
    mlp_free(m);
}

// ---------------------------------------------------------------------------------------------------------------
// 5. The certificate on the sizes people use

// Solves one net; the gradient at the returned u recomputed from the definition when `verify`. Returns Newton steps.
static int check_certificate(const char *what, const int *dims, int n_layers, int init, double scale, int bias, int verify) {
    mlp *m = mlp_new(dims, n_layers, bias, bias, 0);
    mlp_init(m, init, scale);
    double *u = ref_doubles((size_t)m->units), n_max = 1;
    rescale_options o = dry();
    const rescale_report r = solve(&m->net, o, u);
    const int hidden = n_layers - 1, limit = hidden <= 8 ? 12 : 25;
    for (int l = 1; l < n_layers; l++) n_max = fmax(n_max, fabs((double)dims[l + 1] - dims[l - 1] - bias));
    CHECK(fabs(r.grad_tolerance - 1e-8 * n_max) <= 1e-12 * n_max, "tolerance of the certificate");
    CHECK(r.converged && r.grad_inf <= 1e-8 * n_max, "certificate");
    if (!CHECK(r.iterations <= limit, "few Newton steps")) printf("    ");
    if (verify || r.iterations > limit)
        printf("%-30s %s scale %.1f bias %d: %2d Newton steps, |dF/du| %.1e of %.1e, F %.6g -> %.6g, %.3f s\n", what,
               init == KAIMING_UNIFORM ? "uniform" : "normal ", scale, bias, r.iterations, r.grad_inf, 1e-8 * n_max,
               r.objective_before, r.objective_after, r.seconds_solve);
    if (verify) {
        double *g = mlp_diag_g(m), *grad = ref_doubles((size_t)m->units);
        problem q = problem_of(&m->net, g);
        const double grad_inf = ref_grad_F(&q.q, u, grad), F = ref_F(&q.q, u);
        CHECK(grad_inf <= 1e-8 * n_max, "the certificate holds for the gradient from the definition");
        test_close_d("F from the definition", &r.objective_after, &F, 1, 1e-10, 0);
        problem_free(&q);
        free(g);
        free(grad);
    }
    free(u);
    mlp_free(m);
    return r.iterations;
}

static void check_certificates(void) {
    static const struct {
        const char *name;
        int repeat, n_layers, dims[8];  // repeat: hidden layers of width dims[1]
    } nets[] = {{"784-512x3-10", 3, 0, {784, 512, 10}}, {"3072-500x3-10", 3, 0, {3072, 500, 10}},
                {"3072-500x5-10", 5, 0, {3072, 500, 10}}, {"3072-500x8-10", 8, 0, {3072, 500, 10}},
                {"784-1000-100-30-100-1000-784", 0, 6, {784, 1000, 100, 30, 100, 1000, 784}},
                {"2048x5-10", 4, 0, {2048, 2048, 10}}, {"2-32x5-2", 5, 0, {2, 32, 2}},
                {"20 hidden layers of 64", 20, 0, {64, 64, 64}}, {"50x64", 50, 0, {64, 64, 64}}, {"50x16", 50, 0, {16, 16, 16}}};
    static const double scales[] = {0.3, 1, 3};
    int most[2] = {0, 0}, runs = 0;
    for (size_t k = 0; k < sizeof nets / sizeof *nets; k++) {
        int dims[MAX_GROUPS + 1], n_layers = nets[k].n_layers;
        for (int l = 0; l < 8; l++) dims[l] = nets[k].dims[l];
        if (nets[k].repeat) {
            n_layers = nets[k].repeat + 1;
            dims[0] = nets[k].dims[0];
            dims[n_layers] = nets[k].dims[2];
            for (int l = 1; l < n_layers; l++) dims[l] = nets[k].dims[1];
        }
        const int large = dims[1] > 400;
        for (int init = 0; init < 2; init++)
            for (int scale = 0; scale < 3; scale++)
                for (int repeat = 0; repeat < (large ? 1 : 5); repeat++) {
                    const int bias = large || repeat < 3;
                    if (large && (scale != 1) && (n_layers > 4 || init)) continue;
                    if (dims[1] > 2000 && init) continue;
                    const int steps = check_certificate(nets[k].name, dims, n_layers, init, scales[scale], bias, repeat == 0 && dims[1] < 600 && scale == 1);
                    const int deep = n_layers > 9;
                    most[deep] = steps > most[deep] ? steps : most[deep];
                    runs++;
                }
    }
    printf("Newton steps, most of %d runs: %d up to 8 hidden layers, %d for 20 and 50\n", runs, most[0], most[1]);
}

// ---------------------------------------------------------------------------------------------------------------
// 6. Special cases

// A small MLP with biases, kaiming uniform, and a copy of its parameters.
static mlp *small_mlp(int bn) {
    static const int dims[] = {4, 8, 6, 7, 3};
    mlp *m = mlp_new(dims, 4, 1, 1, bn);
    mlp_init(m, KAIMING_UNIFORM, 1);
    return m;
}

// Largest |difference| of two outputs relative to the largest |output|.
static double relative_difference(const double *a, const double *b, size_t n) {
    double d = 0;
    for (size_t i = 0; i < n; i++) d = fmax(d, fabs(a[i] - b[i]));
    return d / fmax(largest_abs(b, n), 1e-300);
}

enum { BATCH = 16 };

// Rescales m in place: u equals the reference's, the function stays (in training mode too), `pinned` units stay.
static void check_case(const char *name, mlp *m, int pinned) {
    const size_t n = (size_t)m->units, n_y = (size_t)BATCH * (size_t)m->dims[m->n_layers];
    double *g = mlp_diag_g(m), *u = ref_doubles(n), *want = ref_doubles(n), *before = copy_of(m->theta, m->p);
    double *x = ref_doubles((size_t)BATCH * (size_t)m->dims[0]), *y = ref_doubles(4 * n_y), *scaled = ref_doubles(m->p);
    double *mean = copy_of(m->mean, n), *var = copy_of(m->var, n);
    fill(x, (size_t)BATCH * (size_t)m->dims[0], 0, 2);
    for (int training = 0; training < 2; training++) mlp_forward(m, x, BATCH, training, y + (size_t)training * n_y);
    problem q = problem_of(&m->net, g);
    ref_optimum(&q.q, want);
    const rescale_report r = solve(&m->net, rescale_default_options(), u);
    test_close_d(name, u, want, n, 0, 1e-8);
    if (!CHECK(r.pinned_units == pinned, "number of pinned units")) printf("    %s: %d, not %d\n", name, r.pinned_units, pinned);
    CHECK(r.converged, "certificate");
    ref_apply(&q.q, want, before, scaled);
    test_close_d(name, m->theta, scaled, m->p, 1e-7, 1e-300);
    for (int training = 0; training < 2; training++) {
        double *after = y + (size_t)(2 + training) * n_y;
        mlp_forward(m, x, BATCH, training, after);
        if (!CHECK(relative_difference(after, y + (size_t)training * n_y, n_y) < 1e-12, "the function is unchanged"))
            printf("    %s, %s mode: %g\n", name, training ? "training" : "evaluation", relative_difference(after, y + (size_t)training * n_y, n_y));
    }
    CHECK(same_bits(mean, m->mean, n) && same_bits(var, m->var, n), "running statistics are only read");
    problem_free(&q);
    free(g);
    free(u);
    free(want);
    free(before);
    free(x);
    free(y);
    free(scaled);
    free(mean);
    free(var);
}

static void check_dead_units(void) {
    mlp *m = small_mlp(0);
    check_case("plain", m, 0);
    mlp_free(m);
    m = small_mlp(0);
    m->slope = 0.2;
    m->group[0].activation = m->group[1].activation = m->group[2].activation = RESCALE_LEAKY_RELU;
    check_case("leaky ReLU", m, 0);
    mlp_free(m);
    m = small_mlp(0);
    m->slope = 1;
    for (int l = 0; l < 3; l++) m->group[l].activation = RESCALE_IDENTITY;
    check_case("identity", m, 0);
    mlp_free(m);
    m = small_mlp(0);  // no path arrives at unit 3 of layer 2: its row and its bias are zero
    for (int c = 0; c < 8; c++) m->tensor[2].data[3 * 8 + c] = 0;
    m->tensor[3].data[3] = 0;
    check_case("dead neuron, nothing enters", m, 1);
    mlp_free(m);
    m = small_mlp(0);  // its row is zero, but not its bias: alive
    for (int c = 0; c < 8; c++) m->tensor[2].data[3 * 8 + c] = 0;
    check_case("zero row with a bias", m, 0);
    mlp_free(m);
    m = small_mlp(0);  // unit 2 of layer 1 has zero outgoing weights
    for (int o = 0; o < 6; o++) m->tensor[2].data[o * 8 + 2] = 0;
    check_case("dead neuron, nothing leaves", m, 1);
    mlp_free(m);
    m = small_mlp(0);  // everything that enters layer 2 is zero: that layer and all before it have no optimum
    for (int k = 0; k < 48; k++) m->tensor[2].data[k] = 0;
    for (int k = 0; k < 6; k++) m->tensor[3].data[k] = 0;
    check_case("dead layer", m, 8 + 6);
    mlp_free(m);
    m = small_mlp(0);  // zero-initialised last layer: no path goes on, only the last layer itself has g > 0
    for (int k = 0; k < 21; k++) m->tensor[6].data[k] = 0;
    check_case("zero-initialised last layer", m, 21);
    mlp_free(m);
    m = small_mlp(1);
    check_case("BatchNorm", m, 0);
    mlp_free(m);
    m = small_mlp(1);
    m->slope = 0.1;
    check_case("BatchNorm, leaky ReLU", m, 0);
    mlp_free(m);
    m = small_mlp(1);
    m->tensor[6].data[1] = 0;  // gamma2: paths from beta only; gamma itself still has g > 0
    check_case("zero gamma", m, 0);
    m->tensor[6].data[1] = 0;
    m->tensor[7].data[1] = 0;
    check_case("zero gamma and beta", m, 1);
    mlp_free(m);
    m = small_mlp(1);
    for (int k = 0; k < m->units; k++) {  // gain 1 / sqrt(eps)
        m->var[k] = 0;
        m->mean[k] = 0;
    }
    check_case("zero running variance", m, 0);
    mlp_free(m);
    static const int one[] = {4, 2};
    m = mlp_new(one, 1, 1, 1, 0);
    mlp_init(m, KAIMING_NORMAL, 1);
    double *before = copy_of(m->theta, m->p);
    const rescale_report r = solve(&m->net, rescale_default_options(), NULL);
    CHECK(r.units == 0 && r.converged && r.tensors_touched == 0 && same_bits(before, m->theta, m->p), "a net without hidden units");
    free(before);
    mlp_free(m);
}

// An error that must come with this status, name `name`, and leave all parameters alone bit for bit.
static void expect_error(const char *what, const rescale_net *net, const rescale_options *o, int status, const char *name,
                         const double *theta, size_t p) {
    double *before = copy_of(theta, p);
    rescale_report r;
    const int got = rescale_run(net, o, &r);
    const int ok = got == status && r.status == status && strstr(r.message, name) && !strchr(r.message, '\n') && r.message[0];
    if (!CHECK(ok, what)) printf("    %s: status %d, '%s'\n", what, got, r.message);
    CHECK(same_bits(before, theta, p), "an error changes nothing");
    free(before);
}

static void check_non_finite(void) {
    static const double bad[] = {NAN, INFINITY, -INFINITY};
    mlp *m = small_mlp(1);
    const rescale_options enorm = {.method = RESCALE_ENORM, .tolerance = 1e-10, .max_iterations = 100, .enorm_c = 1};
    for (int i = 0; i < m->n_tensors; i++)
        for (int k = 0; k < 3; k++) {
            const size_t at = (size_t)random_int(0, (int)tensor_size(m->tensor + i) - 1);
            const double keep = m->tensor[i].data[at];
            m->tensor[i].data[at] = bad[k];
            expect_error("non-finite parameter", &m->net, NULL, RESCALE_ERROR_NON_FINITE, m->tensor[i].name, m->theta, m->p);
            expect_error("non-finite parameter, ENorm", &m->net, &enorm, RESCALE_ERROR_NON_FINITE, m->tensor[i].name, m->theta, m->p);
            m->tensor[i].data[at] = keep;
            double *moment = ref_doubles(tensor_size(m->tensor + i));
            moment[at] = bad[k];
            if (k == 0) m->tensor[i].moment1 = moment;
            else m->tensor[i].moment2 = moment;
            expect_error("non-finite optimizer state", &m->net, NULL, RESCALE_ERROR_NON_FINITE, m->tensor[i].name, m->theta, m->p);
            m->tensor[i].moment1 = m->tensor[i].moment2 = NULL;
            free(moment);
        }
    for (int k = 0; k < 3; k++) {
        m->var[9] = bad[k];
        expect_error("non-finite running variance", &m->net, NULL, RESCALE_ERROR_RANGE, "gamma2", m->theta, m->p);
        m->var[9] = 1;
        m->mean[9] = bad[k];
        expect_error("non-finite running mean", &m->net, NULL, RESCALE_ERROR_RANGE, "gamma2", m->theta, m->p);
        m->mean[9] = 0;
    }
    m->var[9] = -1;
    expect_error("negative running variance", &m->net, NULL, RESCALE_ERROR_RANGE, "gamma2", m->theta, m->p);
    m->var[9] = 0;
    m->tensor[6].eps = 0;
    expect_error("zero variance with eps 0", &m->net, NULL, RESCALE_ERROR_RANGE, "gamma2", m->theta, m->p);
    mlp_free(m);
    m = small_mlp(0);
    static const int act[] = {RESCALE_GELU, RESCALE_SILU, RESCALE_TANH, RESCALE_SIGMOID, 99, -1};
    static const char *const name[] = {"GELU", "SiLU", "tanh", "sigmoid", "homogeneous", "homogeneous"};
    for (int k = 0; k < 6; k++) {
        m->group[1] = rescale_units("middle", 6, act[k]);
        expect_error("activation refused", &m->net, NULL, RESCALE_ERROR_ACTIVATION, name[k], m->theta, m->p);
        expect_error("group named", &m->net, NULL, RESCALE_ERROR_ACTIVATION, "middle", m->theta, m->p);
    }
    mlp_free(m);
}

// The output bias counts in p and F, never moves.
static void check_output_bias(void) {
    static const int dims[] = {4, 5, 3};
    mlp *with = mlp_new(dims, 2, 1, 1, 0), *without = mlp_new(dims, 2, 1, 0, 0);
    mlp_init(with, KAIMING_UNIFORM, 1);
    memcpy(without->theta, with->theta, without->p * sizeof(double));
    double bias[3];
    memcpy(bias, with->tensor[3].data, sizeof bias);
    const rescale_report a = solve(&with->net, dry(), NULL), b = solve(&without->net, dry(), NULL);
    CHECK(a.parameters == b.parameters + 3 && fabs(a.objective_after - b.objective_after) > 1, "the output bias counts");
    check_case("with output bias", with, 0);
    check_case("without output bias", without, 0);
    CHECK(same_bits(bias, with->tensor[3].data, 3), "the output bias is not scaled");
    mlp_free(with);
    mlp_free(without);
}

// A residual stream: x -> s = relu(W0 x + b0); two blocks s = relu(s + W2 relu(W1 s + b1) + b2); y = W3 s + b3. One group for
// the stream. Compared with the graph of scalar units, path by path, and as a function.
static void check_residual(void) {
    enum { IN = 3, WIDTH = 4, HIDDEN = 5, OUT = 2 };
    RefNet net = ref_net_residual(IN, WIDTH, HIDDEN, OUT);
    const size_t p = (size_t)net.n_params, n = (size_t)net.n_units;
    double *theta = ref_doubles(p), *g = ref_doubles(p), *u = ref_doubles(n), *want = ref_doubles(n), input[IN + 1];
    double *before = ref_doubles((size_t)net.n_nodes), *after = ref_doubles((size_t)net.n_nodes);
    fill(theta, p, 0, 0.8);
    fill(input, IN, 0, 2);
    input[IN] = 1;
    RefPaths paths = ref_net_paths(&net, theta);
    ref_paths_diag_g(&paths, g);
    const rescale_group group[] = {rescale_units("stream", WIDTH, RESCALE_RELU), rescale_units("block1", HIDDEN, RESCALE_RELU),
                                   rescale_units("block2", HIDDEN, RESCALE_RELU)};
    rescale_tensor t[] = {
        rescale_weight("w0", NULL, WIDTH, IN, 1, 0, RESCALE_NONE), rescale_bias("b0", NULL, WIDTH, 0),
        rescale_weight("w1a", NULL, HIDDEN, WIDTH, 1, 1, 0), rescale_bias("b1a", NULL, HIDDEN, 1),
        rescale_weight("w2a", NULL, WIDTH, HIDDEN, 1, 0, 1), rescale_bias("b2a", NULL, WIDTH, 0),
        rescale_weight("w1b", NULL, HIDDEN, WIDTH, 1, 2, 0), rescale_bias("b1b", NULL, HIDDEN, 2),
        rescale_weight("w2b", NULL, WIDTH, HIDDEN, 1, 0, 2), rescale_bias("b2b", NULL, WIDTH, 0),
        rescale_weight("w3", NULL, OUT, WIDTH, 1, RESCALE_NONE, 0), rescale_bias("b3", NULL, OUT, RESCALE_NONE)};
    size_t at = 0;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        t[i].data = theta + at;
        t[i].g = g + at;
        at += tensor_size(t + i);
    }
    CHECK(at == p, "the description lists every parameter");
    const rescale_net description = {group, 3, t, (int)(sizeof t / sizeof *t)};
    const RefProblem q = ref_problem(&net, g);
    CHECK(ref_optimum(&q, want) < 1e-9, "reference optimum");
    ref_net_forward(&net, theta, input, before);
    solve(&description, rescale_default_options(), u);
    ref_net_forward(&net, theta, input, after);
    test_close_d("residual stream", u, want, n, 0, 1e-8);
    test_close_d("residual net's function", after + net.n_nodes - OUT, before + net.n_nodes - OUT, OUT, 1e-12, 1e-14);
    ref_paths_free(&paths);
    ref_net_free(&net);
    free(theta);
    free(g);
    free(u);
    free(want);
    free(before);
    free(after);
}

// Descriptions at random: groups in any order, kernels, one- and two-sided tensors, tensors from a group to itself, rows that
// leave, columns that enter, uncounted tensors, references, a bound. u from the definition, parameter by parameter.
static void check_random_description(int round) {
    enum { MAX_T = 24 };
    const int n_groups = random_int(1, 4), self_loop = round % 4 == 3, with_bound = round % 3 == 1;
    rescale_group group[4];
    rescale_tensor t[MAX_T];
    char name[MAX_T][8];
    int n_tensors = 0;
    for (int k = 0; k < n_groups; k++) group[k] = rescale_units("group", random_int(1, 6), RESCALE_RELU);
    for (int k = 0; k < n_groups; k++) {  // what every group needs, in one of two spellings
        const int n = group[k].n, other = random_int(1, 5);
        t[n_tensors++] = rescale_weight("", NULL, n, other, random_int(1, 3), k, RESCALE_NONE);
        if (round & 1) {
            t[n_tensors - 1] = rescale_weight("", NULL, other, n, random_int(1, 3), RESCALE_NONE, k);
            t[n_tensors - 1].flags = RESCALE_COLS_ENTER;
        }
        t[n_tensors++] = rescale_weight("", NULL, other, n, random_int(1, 3), RESCALE_NONE, k);
        if (round & 2) {
            t[n_tensors - 1] = rescale_weight("", NULL, n, other, random_int(1, 3), k, RESCALE_NONE);
            t[n_tensors - 1].flags = RESCALE_ROWS_LEAVE;
        }
        t[n_tensors++] = rescale_bias("", NULL, n, k);
        if (test_random() < 0) t[n_tensors - 1].flags = RESCALE_UNCOUNTED;
    }
    for (int extra = random_int(0, 6); extra > 0; extra--) {
        const int a = random_int(0, n_groups - 1), b = self_loop && extra == 1 ? a : random_int(0, n_groups - 1);
        if (a == b && !self_loop) continue;
        t[n_tensors++] = rescale_weight("", NULL, group[a].n, group[b].n, random_int(1, 3), a, b);
        if (test_random() < -0.3) t[n_tensors - 1].flags = RESCALE_ROWS_LEAVE | RESCALE_COLS_ENTER;
        else if (test_random() < -0.5) t[n_tensors - 1].flags = RESCALE_UNCOUNTED;
    }
    t[n_tensors++] = rescale_bias("", NULL, 3, RESCALE_NONE);
    size_t p = 0, at = 0, sides = 0;
    int units = 0;
    for (int i = 0; i < n_tensors; i++) {
        p += tensor_size(t + i);
        sides += (size_t)(t[i].n_out + t[i].n_in * t[i].kernel);
    }
    for (int k = 0; k < n_groups; k++) units += group[k].n;
    double *theta = ref_doubles(p), *g = ref_doubles(p), *each = ref_doubles(p), *vectors = ref_doubles(sides);
    double *u = ref_doubles((size_t)units), *want = ref_doubles((size_t)units), *before, *v = vectors;
    fill(theta, p, 0, 1);
    for (size_t i = 0; i < p; i++) each[i] = exp(test_random());
    for (size_t i = 0; i < sides; i++) vectors[i] = exp(3 * test_random());
    for (int i = 0; i < n_tensors; i++) {
        const size_t columns = (size_t)t[i].n_in * (size_t)t[i].kernel;
        const int rank_one = round % 5 == 0 || test_random() < 0;
        snprintf(name[i], sizeof name[i], "t%d", i);
        t[i].name = name[i];
        t[i].data = theta + at;
        for (size_t j = 0; j < tensor_size(t + i); j++)
            g[at + j] = rank_one ? v[j / columns] * v[(size_t)t[i].n_out + j % columns] : test_random() < -0.8 ? 0 : exp(3 * test_random());
        if (rank_one) {
            t[i].g_out = v;
            t[i].g_in = v + t[i].n_out;
        } else t[i].g = g + at;
        if (test_random() < -0.5) t[i].reference = exp(test_random());
        if (round % 5 && test_random() < -0.5) t[i].reference_each = each + at;
        v += (size_t)t[i].n_out + columns;
        at += tensor_size(t + i);
    }
    const rescale_net net = {group, n_groups, t, n_tensors};
    problem q = problem_of(&net, g);
    rescale_options o = rescale_default_options();
    o.max_log = with_bound ? 0.1 + 0.3 * fabs(test_random()) : 0;
    if (with_bound) ref_unit_sweeps(&q.q, want, 100000, 1e-14, o.max_log);
    else CHECK(ref_optimum(&q.q, want) < 1e-9, "reference optimum");
    before = copy_of(theta, p);
    rescale_report r = solve(&net, o, u);
    test_close_d("random description", u, want, (size_t)units, 0, with_bound ? 1e-6 : 1e-7);
    CHECK(r.parameters == q.q.n_params, "counted parameters");
    const double F = ref_F(&q.q, u);
    test_close_d("random description, F", &r.objective_after, &F, 1, 1e-10, 1e-10);
    // What apply did to every parameter, counted or not.
    int first[5] = {0};
    for (int k = 0; k < n_groups; k++) first[k + 1] = first[k] + group[k].n;
    double *scaled = ref_doubles(p);
    at = 0;
    for (int i = 0; i < n_tensors; i++) {
        const size_t columns = (size_t)t[i].n_in * (size_t)t[i].kernel;
        for (size_t j = 0; j < tensor_size(t + i); j++, at++) {
            double bu = 0;
            if (t[i].enters >= 0) bu += (t[i].flags & RESCALE_ROWS_LEAVE ? 1 : -1) * u[first[t[i].enters] + (int)(j / columns)];
            if (t[i].leaves >= 0) bu += (t[i].flags & RESCALE_COLS_ENTER ? -1 : 1) * u[first[t[i].leaves] + (int)(j % columns) / t[i].kernel];
            scaled[at] = before[at] * exp(-bu / 2);
        }
    }
    test_close_d("random description, parameters", theta, scaled, p, 1e-13, 0);
    free(scaled);
    free(before);
    free(theta);
    free(g);
    free(each);
    free(vectors);
    free(u);
    free(want);
    problem_free(&q);
}

// Queries and keys: row r of W_q and its bias enter unit r, row r of W_k leaves it: q . k of every pair of tokens stays.
static void check_query_key(void) {
    enum { D = 4, C = 6 };
    double wq[D * C], bq[D], wk[D * C], g[3][D * C], x[2][C], u[D], want[D], score[2];
    fill(wq, D * C, 0, 1);
    fill(bq, D, 0, 1);
    fill(wk, D * C, 0, 3);
    for (int k = 0; k < 3; k++) fill(g[k], D * C, 1.1, 1);
    fill(x[0], 2 * C, 0, 1);
    const rescale_group group = rescale_units("query/key", D, RESCALE_IDENTITY);
    rescale_tensor t[] = {rescale_weight("wq", wq, D, C, 1, 0, RESCALE_NONE), rescale_bias("bq", bq, D, 0),
                          rescale_weight("wk", wk, D, C, 1, 0, RESCALE_NONE)};
    t[2].flags = RESCALE_ROWS_LEAVE;
    for (int k = 0; k < 3; k++) t[k].g = g[k];
    const rescale_net net = {&group, 1, t, 3};
    int enter[2 * D * C + D], leave[2 * D * C + D];
    double flat[2 * D * C + D];
    for (int i = 0; i < 2 * D * C + D; i++) {
        const int tensor = i < D * C ? 0 : i < D * C + D ? 1 : 2, j = i - (tensor == 0 ? 0 : tensor == 1 ? D * C : D * C + D);
        enter[i] = tensor == 0 ? j / C : tensor == 1 ? j : -1;
        leave[i] = tensor == 2 ? j / C : -1;
        flat[i] = g[tensor][j];
    }
    const RefProblem q = {2 * D * C + D, D, enter, leave, flat};
    CHECK(ref_optimum(&q, want) < 1e-9, "reference optimum");
    for (int when = 0; when < 2; when++) {
        score[when] = 0;
        for (int r = 0; r < D; r++) {
            double a = bq[r], b = 0;
            for (int c = 0; c < C; c++) {
                a += wq[r * C + c] * x[0][c];
                b += wk[r * C + c] * x[1][c];
            }
            score[when] += a * b;
        }
        if (when == 0) solve(&net, rescale_default_options(), u);
    }
    test_close_d("query/key u", u, want, D, 0, 1e-8);
    test_close_d("query/key score", score + 1, score, 1, 1e-12, 0);
    CHECK(largest_abs(u, D) > 0.1, "and they moved");
}

// A unit that only itself feeds has no optimum: what a tensor from a group to itself puts on its diagonal never changes.
static void check_self_loop(void) {
    double w[4] = {1, 1, 1, 1}, in[2] = {1, 1}, out[2] = {1, 1}, g_w[4] = {2, 0, 0, 3}, g_in[2] = {1, 0}, g_out[2] = {1, 1}, u[2];
    const rescale_group group = rescale_units("recurrent", 2, RESCALE_RELU);
    rescale_tensor t[] = {rescale_weight("in", in, 2, 1, 1, 0, RESCALE_NONE), rescale_weight("w", w, 2, 2, 1, 0, 0),
                          rescale_weight("out", out, 1, 2, 1, RESCALE_NONE, 0)};
    t[0].g = g_in;
    t[1].g = g_w;
    t[2].g = g_out;
    const rescale_net net = {&group, 1, t, 3};
    const rescale_report r = solve(&net, dry(), u);
    CHECK(r.pinned_units == 1 && u[1] == 0 && r.converged, "a unit that only feeds itself is pinned");
}

// ---------------------------------------------------------------------------------------------------------------
// 7. Bound on |log lambda|

static void check_bound(const int *dims, int n_layers, int bn, double scale, double bound) {
    mlp *m = mlp_new(dims, n_layers, 1, 1, bn);
    mlp_init(m, KAIMING_UNIFORM, scale);
    for (int l = 0; l + 1 < n_layers; l++) {  // far from balanced, so that the bound binds on many units
        double *w = m->tensor[l * (bn ? 4 : 2)].data;
        for (int k = 0; k < dims[l + 1] * dims[l]; k++) w[k] *= exp(2 * test_random());
    }
    const size_t n = (size_t)m->units;
    double *g = mlp_diag_g(m), *u = ref_doubles(n), *want = ref_doubles(n), *grad = ref_doubles(n);
    problem q = problem_of(&m->net, g);
    ref_unit_sweeps(&q.q, want, 20000, 1e-13 * (double)n, bound);
    for (int way = 0; way < 3; way++) {
        rescale_options o = dry();
        o.max_log = bound;
        o.general = way == 1;
        if (way == 2) {
            o.solver = RESCALE_SWEEPS;
            o.sweeps = 3000;
        }
        const rescale_report r = solve(&m->net, o, u);
        test_close_d(way == 2 ? "bounded u, sweeps" : way ? "bounded u, CG" : "bounded u, Newton", u, want, n, 0, 1e-6);
        ref_grad_F(&q.q, u, grad);
        int inside = 1, optimal = 1, at_bound = 0;
        for (size_t h = 0; h < n; h++) {
            const double edge = 2 * bound, slack = way == 2 ? 1e-4 : r.grad_tolerance;
            inside = inside && fabs(u[h]) <= edge;
            at_bound += fabs(u[h]) >= edge;
            optimal = optimal && (u[h] >= edge ? grad[h] <= slack : u[h] <= -edge ? grad[h] >= -slack : fabs(grad[h]) <= slack);
        }
        if (!CHECK(inside && optimal, "inside the box, and optimal there")) printf("    way %d bound %g inside %d\n", way, bound, inside);
        CHECK(r.bounded_units == at_bound && r.max_abs_log_lambda <= bound, "report on the bound");
        CHECK(r.converged, "certificate within the bound");
        CHECK(r.iterations <= 30, "Newton steps within the bound");
        if (r.iterations > 12) printf("bound %g: %d Newton steps\n", bound, r.iterations);
    }
    problem_free(&q);
    free(g);
    free(u);
    free(want);
    free(grad);
    mlp_free(m);
}

// ---------------------------------------------------------------------------------------------------------------
// 8. Powers of two

static void check_pow2(int bn, int method, double bound) {
    static const int dims[] = {6, 40, 30, 20, 5};
    mlp *m = mlp_new(dims, 4, 1, 1, bn);
    mlp_init(m, KAIMING_UNIFORM, 2);
    const size_t n = (size_t)m->units;
    double x[BATCH * 6], y[4][BATCH * 5], *u = ref_doubles(n), *before = copy_of(m->theta, m->p);
    fill(x, BATCH * 6, 0, 2);
    for (int training = 0; training < 2; training++) mlp_forward(m, x, BATCH, training, y[training]);
    rescale_options o = rescale_default_options();
    o.pow2 = 1;
    o.max_log = bound;
    o.method = method;
    const rescale_report r = solve(&m->net, o, u);
    for (int training = 0; training < 2; training++) mlp_forward(m, x, BATCH, training, y[2 + training]);
    CHECK(same_bits(y[0], y[2], BATCH * 5), "powers of two keep the function bit for bit");
    CHECK(same_bits(y[1], y[3], BATCH * 5), "in training mode too");
    int power = 1, moved = 0, inside = 1;
    for (size_t h = 0; h < n; h++) {
        const double e = 0.5 * u[h] / log(2.0);
        power = power && fabs(e - rint(e)) < 1e-9;
        moved += rint(e) != 0;
        inside = inside && (bound <= 0 || 0.5 * fabs(u[h]) <= bound * (1 + 1e-12));
    }
    for (size_t i = 0; i < m->p; i++) {
        int e = 0;
        power = power && (before[i] == 0 ? m->theta[i] == 0 : frexp(m->theta[i] / before[i], &e) == 0.5);
    }
    CHECK(power && inside, "every lambda is a power of two within the bound");
    CHECK(moved > 0 || (bound > 0 && bound < log(2.0)), "and some are not 1");
    double sum = 0;  // the objective in the report is that of the rounded solution
    if (method == RESCALE_ENORM) {
        for (int i = 0; i < m->n_tensors; i++)
            for (size_t k = 0; k < tensor_size(m->tensor + i) && m->tensor[i].role != RESCALE_BIAS; k++) sum += pow(m->tensor[i].data[k], 2);
    } else {
        memcpy(m->theta, before, m->p * sizeof *before);
        double *g = mlp_diag_g(m);
        problem q = problem_of(&m->net, g);
        sum = ref_F(&q.q, u);
        problem_free(&q);
        free(g);
    }
    test_close_d("objective after rounding", &r.objective_after, &sum, 1, 1e-10, 0);
    free(u);
    free(before);
    mlp_free(m);
}

// Nets as training leaves them: rows, columns and layers of any size, away from the optimum by what `spread` says. Powers of two end
// at or below F(0), below what rounding every lambda by itself gives, and no single step of one exponent, nor of all of a group, lowers
// F any further. F from the definition.
static int check_pow2_descends(int round) {
    const int dims[] = {random_int(2, 12), random_int(2, 20), random_int(2, 30), random_int(2, 20), random_int(1, 10)};
    const double spread = (round % 6) / 5.0, unit = 2 * log(2.0);
    mlp *m = mlp_new(dims, 4, round & 1, round & 1, round % 5 == 4);
    mlp_init(m, round & 2 ? KAIMING_UNIFORM : KAIMING_NORMAL, 1);
    const size_t n = (size_t)m->units;
    double *u = ref_doubles(n), *real = ref_doubles(n), *mine = ref_doubles(n);
    rescale_options o = dry();
    solve(&m->net, o, real);
    for (size_t h = 0; h < n; h++) mine[h] = 3 * spread * test_random();
    problem q = problem_of(&m->net, NULL);
    double *theta = copy_of(m->theta, m->p);
    for (size_t h = 0; h < n; h++) mine[h] += real[h];
    ref_apply(&q.q, mine, theta, m->theta);  // nearly balanced: rounding has nothing to gain and much to lose
    problem_free(&q);
    double *g = mlp_diag_g(m);
    q = problem_of(&m->net, g);
    solve(&m->net, o, real);
    for (size_t h = 0; h < n; h++) real[h] = unit * rint(real[h] / unit);
    o.pow2 = 1;
    const rescale_report r = solve(&m->net, o, u);
    const double F = ref_F(&q.q, u), rounded = ref_F(&q.q, real), slack = 1e-9 * (double)m->p;
    CHECK(r.objective_after <= r.objective_before + slack && F <= r.objective_before + slack, "powers of two never raise F");
    CHECK(F <= rounded + slack, "nor end above rounding every lambda");
    for (int g0 = 0, first = 0; g0 < m->net.n_groups; first += m->net.group[g0].n, g0++)
        for (int by = -1; by < 2; by += 2) {
            const int end = first + m->net.group[g0].n;
            double lowest = INFINITY;
            for (int h = first; h < end; h++) {
                u[h] += by * unit;
                lowest = fmin(lowest, ref_F(&q.q, u));
                u[h] -= by * unit;
            }
            for (int h = first; h < end; h++) u[h] += by * unit;
            lowest = fmin(lowest, ref_F(&q.q, u));
            for (int h = first; h < end; h++) u[h] -= by * unit;
            if (!CHECK(lowest >= F - slack, "no exponent, nor a group's, lowers F")) printf("    by %g\n", F - lowest);
        }
    o.method = RESCALE_ENORM;
    const rescale_report enorm = solve(&m->net, o, u);
    CHECK(enorm.objective_after <= enorm.objective_before * (1 + 1e-12), "nor do they raise ENorm's sum");
    problem_free(&q);
    free(u);
    free(real);
    free(mine);
    free(theta);
    free(g);
    mlp_free(m);
    return rounded > r.objective_before;
}

// ---------------------------------------------------------------------------------------------------------------
// 9. The function and the optimizer state

static void check_function(const int *dims, int n_layers, int init, double scale, int with_moments) {
    mlp *m = mlp_new(dims, n_layers, 1, 1, 0);
    mlp_init(m, init, scale);
    const size_t n_x = (size_t)4 * (size_t)dims[0], n_y = (size_t)4 * (size_t)dims[n_layers];
    double *x = ref_doubles(n_x), *y = ref_doubles(n_y), *after = ref_doubles(n_y), *w = copy_of(m->theta, m->p);
    double *m1 = ref_doubles(m->p), *m2 = ref_doubles(m->p), *k1 = NULL, *k2 = NULL;
    fill(x, n_x, 0, 1);
    fill(m1, m->p, 0, 1);
    fill(m2, m->p, 1.5, 1);
    k1 = copy_of(m1, m->p);
    k2 = copy_of(m2, m->p);
    for (int i = 0; i < m->n_tensors && with_moments; i++) {
        m->tensor[i].moment1 = m1 + (m->tensor[i].data - m->theta);
        m->tensor[i].moment2 = m2 + (m->tensor[i].data - m->theta);
    }
    mlp_forward(m, x, 4, 0, y);
    const rescale_report r = solve(&m->net, rescale_default_options(), NULL);
    mlp_forward(m, x, 4, 0, after);
    const double d = relative_difference(after, y, n_y);
    printf("function, %d hidden layers of %d, init %d: relative difference %.1e, max |log lambda| %.2f\n", n_layers - 1, dims[1], init,
           d, r.max_abs_log_lambda);
    CHECK(d < 1e-12, "the function is unchanged");
    CHECK(r.tensors_touched == m->n_tensors - 1, "all tensors but the output bias are touched");
    for (size_t i = 0; i < m->p && with_moments; i++) {  // m' / m = w / w', v' / v = (w / w')^2
        const double f = w[i] != 0 ? w[i] / m->theta[i] : 1;
        if (w[i] == 0) {
            k1[i] = m1[i];
            k2[i] = m2[i];
        } else {
            k1[i] *= f;
            k2[i] *= f * f;
        }
    }
    test_close_d("first moment", m1, k1, m->p, 1e-13, 0);
    test_close_d("second moment", m2, k2, m->p, 1e-13, 0);
    free(x);
    free(y);
    free(after);
    free(w);
    free(m1);
    free(m2);
    free(k1);
    free(k2);
    mlp_free(m);
}

// The registered momentum really is the gradient of the rescaled network, by finite differences.
static void check_gradient_scaling(void) {
    static const int dims[] = {3, 5, 4, 2};
    mlp *m = mlp_new(dims, 3, 1, 1, 0);
    mlp_init(m, KAIMING_UNIFORM, 1.5);
    double *grad = ref_doubles(m->p), *after = ref_doubles(m->p), x[BATCH * 3], y[BATCH * 2];
    fill(x, BATCH * 3, 0, 2);
    for (int when = 0; when < 2; when++) {
        double *d = when ? after : grad;
        for (size_t i = 0; i < m->p; i++) {
            const double keep = m->theta[i], e = 1e-6 * fabs(keep);
            double loss[2] = {0, 0};
            for (int side = 0; side < 2; side++) {
                m->theta[i] = keep + (side ? e : -e);
                mlp_forward(m, x, BATCH, 0, y);
                for (int k = 0; k < BATCH * 2; k++) loss[side] += 0.5 * (y[k] - 1) * (y[k] - 1);
            }
            m->theta[i] = keep;
            d[i] = (loss[1] - loss[0]) / (2 * e);
        }
        for (int i = 0; i < m->n_tensors; i++) m->tensor[i].moment1 = grad + (m->tensor[i].data - m->theta);
        if (when == 0) solve(&m->net, rescale_default_options(), NULL);
    }
    test_close_d("gradients scale inversely", grad, after, m->p, 1e-4, 1e-6);
    free(grad);
    free(after);
    mlp_free(m);
}

// ---------------------------------------------------------------------------------------------------------------
// 10. ENorm

static void check_enorm(int bn, double c) {
    static const int dims[] = {6, 20, 15, 18, 4};
    mlp *m = mlp_new(dims, 4, 1, 1, bn);
    mlp_init(m, KAIMING_UNIFORM, 1);
    const size_t n = (size_t)m->units;
    double *cost = ref_doubles(m->p), *u = ref_doubles(n), *want = ref_doubles(n), *before = copy_of(m->theta, m->p);
    double *scaled = ref_doubles(m->p), x[BATCH * 6], y[2][BATCH * 4];
    fill(x, BATCH * 6, 0, 1);
    mlp_forward(m, x, BATCH, 0, y[0]);
    double factor = 1;  // stationarity out = c^2 in is that of costs that fall by c^2 from what enters to what leaves
    for (int i = 0; i < m->n_tensors; i++) {
        const rescale_tensor *t = m->tensor + i;
        if (i > 0 && t->role == RESCALE_WEIGHT && !bn) factor /= c * c;
        if (bn) factor = t->role == RESCALE_GAIN ? c * c : 1;  // here gamma enters, and no weight does
        for (size_t k = 0; k < tensor_size(t); k++) cost[t->data - m->theta + (ptrdiff_t)k] = t->role == RESCALE_BIAS ? 0 : factor;
    }
    problem q = problem_of(&m->net, NULL);
    ref_enorm(&q.q, before, cost, want, 1e-13, 100000);
    rescale_options o = rescale_default_options();
    o.method = RESCALE_ENORM;
    o.enorm_c = c;
    const rescale_report r = solve(&m->net, o, u);
    test_close_d("ENorm u", u, want, n, 0, 1e-7);
    ref_apply(&q.q, want, before, scaled);
    test_close_d("ENorm parameters, biases too", m->theta, scaled, m->p, 1e-6, 0);
    mlp_forward(m, x, BATCH, 0, y[1]);
    CHECK(relative_difference(y[1], y[0], BATCH * 4) < 1e-12, "ENorm keeps the function");
    double cost_now[2] = {0, 0};
    for (int i = 0; i < m->n_tensors; i++)
        for (size_t k = 0; k < tensor_size(m->tensor + i) && m->tensor[i].role != RESCALE_BIAS; k++) {
            const size_t at = (size_t)(m->tensor[i].data - m->theta) + k;
            cost_now[0] += before[at] * before[at];
            cost_now[1] += m->theta[at] * m->theta[at];
        }
    test_close_d("ENorm objective before", &r.objective_before, cost_now, 1, 1e-12, 0);
    test_close_d("ENorm objective after", &r.objective_after, cost_now + 1, 1, 1e-12, 0);
    CHECK(r.converged && (c != 1 || r.objective_after < r.objective_before), "ENorm converged");
    // exp(2 u) = out / (c^2 in) has to hold at once for all units: with the new weights, out = c^2 in.
    double *in = ref_doubles(n), *out = ref_doubles(n);
    for (size_t i = 0; i < m->p; i++) {
        const double e = cost[i] > 0 ? m->theta[i] * m->theta[i] : 0;
        if (q.enter[i] >= 0) in[q.enter[i]] += c * c * e;  // cost only tells what counts
        if (q.leave[i] >= 0) out[q.leave[i]] += e;
    }
    test_close_d("ENorm fixed point", out, in, n, 1e-7, 0);
    memcpy(m->theta, before, m->p * sizeof *before);  // a number of cycles, from the same start
    if (c == 1 && !bn) {
        o.solver = RESCALE_SWEEPS;
        for (int cycles = 0; cycles < 4; cycles++) {
            o.sweeps = cycles;
            o.dry_run = 1;
            ref_enorm(&q.q, before, cost, want, -1, cycles);
            const rescale_report some = solve(&m->net, o, u);
            test_close_d("ENorm cycles", u, want, n, 0, 1e-12);
            CHECK(some.sweeps == cycles, "ENorm counts cycles");
        }
        double largest = 0;
        o = dry();
        o.method = RESCALE_ENORM;
        o.max_log = 0.05;
        solve(&m->net, o, u);
        largest = largest_abs(u, n);
        CHECK(largest <= 0.1 && largest > 0.0999, "ENorm respects the bound");
        for (int k = 0; k < 6; k++) m->tensor[0].data[k] = 0;  // unit 0: only its bias enters, which does not count
        o.max_log = 0;
        const rescale_report pinned = solve(&m->net, o, u);
        CHECK(pinned.pinned_units == 1 && u[0] == 0, "ENorm pins a unit without incoming weights");
    }
    problem_free(&q);
    free(cost);
    free(u);
    free(want);
    free(before);
    free(scaled);
    free(in);
    free(out);
    mlp_free(m);
}

// ---------------------------------------------------------------------------------------------------------------
// 11. Errors

static void check_errors(void) {
    mlp *m = small_mlp(0);
    rescale_tensor *t = m->tensor, keep;
    const rescale_net *net = &m->net;
#define EXPECT(what, change, undo, status, name) \
    do { change; expect_error(what, net, &o, status, name, m->theta, m->p); undo; } while (0)
    rescale_options o = rescale_default_options();
    keep = t[2];
    EXPECT("rows do not match the group", t[2].n_out = 5, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("columns do not match the group", t[2].n_in = 7, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("group that does not exist", t[2].enters = 3, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("negative group", t[2].leaves = -2, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("no data", t[2].data = NULL, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("zero size", t[2].kernel = 0, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("too large", t[2].kernel = 2000000000, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("reference negative", t[2].reference = -1, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("reference NaN", t[2].reference = NAN, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("listed twice", t[4] = t[2]; t[4].name = "again", t[4] = rescale_weight("w3", t[2].data + 54, 7, 6, 1, 2, 1), RESCALE_ERROR_ARGUMENT, "again");
    EXPECT("not a chain", t[1].leaves = RESCALE_NONE; t[0].n_in = 3; t[2].n_in = 7; t[2].leaves = RESCALE_NONE, t[0].n_in = 4; t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("unnamed tensor", t[2].name = NULL; t[2].n_out = 5, t[2] = keep, RESCALE_ERROR_ARGUMENT, "unnamed");
    EXPECT("gain without statistics", t[3].role = RESCALE_GAIN, t[3].role = RESCALE_BIAS, RESCALE_ERROR_ARGUMENT, "b2");
    m->group[1].n = 0;
    expect_error("empty group", net, NULL, RESCALE_ERROR_ARGUMENT, "hidden", m->theta, m->p);
    m->group[1].n = 6;
    const rescale_net none = {m->group, 3, t, 0};
    expect_error("no tensors", &none, NULL, RESCALE_ERROR_ARGUMENT, "no tensors", m->theta, m->p);
    EXPECT("tolerance", o.tolerance = 0, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("tolerance NaN", o.tolerance = NAN, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("iterations", o.max_iterations = 0, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("strength", o.strength = 1.5, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("strength NaN", o.strength = NAN, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("trace", o.max_trace = 0.5, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("trace NaN", o.max_trace = NAN, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("trace and sweeps", (o.max_trace = 1, o.solver = RESCALE_SWEEPS), o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "max_trace");
    EXPECT("within a bound", (o.within = 1, o.max_log = 1), o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "within");
    EXPECT("sweeps", o.sweeps = -1, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("bound", o.max_log = -1, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("enorm_c", o.enorm_c = 0, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("unknown method", o.method = 7, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("unknown solver", o.solver = -1, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("no device in this build", o.on_device = 1, o.on_device = 0, RESCALE_ERROR_ARGUMENT, "on_device");

    // diag(G) given for some tensors only, negative, NaN, infinite; in full and as a product.
    double *g = mlp_diag_g(m), out[64], in[64];
    for (int i = 0; i < 64; i++) out[i] = in[i] = 1;
    for (int i = 0; i < m->n_tensors; i++) t[i].g = g + (t[i].data - m->theta);
    keep = t[2];
    EXPECT("one tensor without g", t[2].g = NULL, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("g in two forms", t[2].g_out = out; t[2].g_in = in, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    t[2].g = NULL;
    t[2].g_out = out;
    EXPECT("g_out without g_in", , , RESCALE_ERROR_ARGUMENT, "w2");
    t[2].g_in = in;
    static const double bad[] = {-1e-3, NAN, INFINITY, -INFINITY};
    for (int k = 0; k < 4; k++) {
        EXPECT("bad g_out", out[1] = bad[k], out[1] = 1, RESCALE_ERROR_RANGE, "w2");
        EXPECT("bad g_in", in[2] = bad[k], in[2] = 1, RESCALE_ERROR_RANGE, "w2");
    }
    t[2] = keep;
    for (int i = 0; i < m->n_tensors; i++)
        for (int k = 0; k < 4; k++) {
            double *at = g + (t[i].data - m->theta) + 1, good = *at;
            EXPECT("bad g", *at = bad[k], *at = good, RESCALE_ERROR_RANGE, t[i].name);
            double *each = ref_doubles(tensor_size(t + i));
            for (size_t j = 0; j < tensor_size(t + i); j++) each[j] = 1;
            t[i].reference_each = each;
            static const double bad_reference[] = {0, -1, NAN, INFINITY};
            EXPECT("bad reference", each[1] = bad_reference[k], , RESCALE_ERROR_ARGUMENT, t[i].name);
            t[i].reference_each = NULL;
            free(each);
        }
    double *zero = ref_doubles(m->p);  // one negative entry inside a kernel of larger positive ones
    for (int i = 0; i < m->n_tensors; i++) t[i].g = zero + (t[i].data - m->theta);
    EXPECT("g zero everywhere", , , RESCALE_ERROR_RANGE, "network");
    for (size_t i = 0; i < m->p; i++) zero[i] = 1e307 * (1 + (double)(i % 7));
    EXPECT("the sum of g overflows", , , RESCALE_ERROR_RANGE, "overflow");
    free(zero);
    for (int i = 0; i < m->n_tensors; i++) t[i].g = NULL;
    double w3[2 * 2 * 3], w4[3 * 2], g3[12], g4[6];
    fill(w3, 12, 0, 1);
    fill(w4, 6, 0, 1);
    fill(g3, 12, 2, 1);
    fill(g4, 6, 2, 1);
    g3[4] = -1e-6;
    const rescale_group two = rescale_units("channels", 2, RESCALE_RELU);
    rescale_tensor kernel[] = {rescale_weight("conv", w3, 2, 2, 3, 0, RESCALE_NONE), rescale_weight("next", w4, 3, 2, 1, RESCALE_NONE, 0)};
    kernel[0].g = g3;
    kernel[1].g = g4;
    const rescale_net conv = {&two, 1, kernel, 2};
    expect_error("negative g inside a kernel", &conv, NULL, RESCALE_ERROR_RANGE, "conv", w3, 12);

    // Results out of range, checked for all tensors before any is changed. For parameters: test_rescale_device.cu, in float.
    double *theta = copy_of(m->theta, m->p), *moment = ref_doubles(m->p);
    for (int k = 0; k < 40; k++) m->theta[k] *= 1e-12;  // w1 and b1: the next weights shrink, their gradients grow
    for (size_t k = 0; k < m->p; k++) moment[k] = 1e300;
    EXPECT("first moment overflows", t[2].moment1 = moment; moment[0] = 1.7e308, t[2].moment1 = NULL; moment[0] = 1e300, RESCALE_ERROR_RANGE, "w2");
    EXPECT("second moment overflows", t[2].moment2 = moment, t[2].moment2 = NULL, RESCALE_ERROR_RANGE, "w2");
    for (size_t k = 0; k < m->p; k++) CHECK(moment[k] == 1e300, "nor the optimizer state");
    memcpy(m->theta, theta, m->p * sizeof *theta);
    t[6].data[5] = 1e155;
    EXPECT("squares overflow", , , RESCALE_ERROR_RANGE, "overflows");
    memcpy(m->theta, theta, m->p * sizeof *theta);

    // A solver that is not given enough steps says so and changes nothing.
    o.max_iterations = 1;
    o.tolerance = 1e-300;
    rescale_report r;
    CHECK(rescale_run(net, &o, &r) == (r.converged ? RESCALE_OK : RESCALE_ERROR_CONVERGENCE), "status of a short run");
    memcpy(m->theta, theta, m->p * sizeof *theta);

    // Arena: too small by one byte or by much, exact, sentinels behind it, any alignment; dry run; options NULL.
    o = rescale_default_options();
    const size_t bytes = rescale_arena_bytes(net, &o);
    CHECK(bytes == rescale_arena_bytes(net, NULL), "options may be NULL for the arena's size");
    unsigned char *arena = (unsigned char *)ref_grow(NULL, bytes + 256);
    o.arena = arena;
    for (size_t cut = 128; cut < bytes; cut = cut * 2 + 1) {
        o.arena_bytes = bytes - cut;
        expect_error("arena too small", net, &o, RESCALE_ERROR_MEMORY, "arena", m->theta, m->p);
    }
    o.arena_bytes = 0;
    expect_error("arena of no bytes", net, &o, RESCALE_ERROR_MEMORY, "arena", m->theta, m->p);
    double *u = ref_doubles((size_t)m->units), *v = ref_doubles((size_t)m->units);
    o.arena_bytes = bytes;
    o.dry_run = 1;
    for (size_t shift = 0; shift < 128; shift += 9) {
        memset(arena, 0xA5, bytes + 256);
        o.arena = arena + shift;
        solve(net, o, u);
        int intact = 1;
        for (size_t i = 0; i < bytes + 256; i++) intact = intact && (i >= shift && i < shift + bytes ? 1 : arena[i] == 0xA5);
        CHECK(intact, "an arena of exactly rescale_arena_bytes, at any address, and nothing beyond it");
    }
    CHECK(same_bits(theta, m->theta, m->p), "a dry run changes no parameter");
    solve(net, dry(), v);
    CHECK(same_bits(u, v, (size_t)m->units), "the caller's arena and ours give the same bits");
    CHECK(rescale_run(net, NULL, &r) == RESCALE_OK && !same_bits(theta, m->theta, m->p) && !r.message[0], "options NULL: defaults");
    double *scaled = ref_doubles(m->p);
    problem q = problem_of(net, NULL);
    ref_apply(&q.q, u, theta, scaled);
    test_close_d("the dry run's u is what a run applies", m->theta, scaled, m->p, 1e-13, 0);
    problem_free(&q);
    free(scaled);
    free(u);
    free(v);
    free(arena);
    free(theta);
    free(moment);
    free(g);
    mlp_free(m);
}

// Without g only a chain is solved: any other description would get the diag(G) of a network that it is not.
static void check_not_a_chain(void) {
    static const int square[] = {6, 6, 6, 6, 6};
    static const unsigned turned[] = {RESCALE_ROWS_LEAVE, RESCALE_COLS_ENTER, RESCALE_ROWS_LEAVE | RESCALE_COLS_ENTER};
    mlp *m = mlp_new(square, 4, 1, 1, 0);
    mlp_init(m, KAIMING_UNIFORM, 1);
    rescale_tensor *t = m->tensor, keep;
    const rescale_net *net = &m->net;
    const rescale_options o = rescale_default_options();
    keep = t[2];
    for (int k = 0; k < 3; k++) EXPECT("flags", t[2].flags = turned[k], t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("[in][out] layout", t[2].enters = 0; t[2].leaves = 1, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("wrong group of the rows", t[2].enters = 2, t[2] = keep, RESCALE_ERROR_ARGUMENT, "b2");
    EXPECT("wrong group of the columns", t[2].leaves = 2, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("columns of no group", t[2].leaves = RESCALE_NONE, t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("rows of no group", t[2].enters = RESCALE_NONE, t[2] = keep, RESCALE_ERROR_ARGUMENT, "b2");
    keep = t[3];
    EXPECT("bias of no group", t[3].enters = RESCALE_NONE, t[3] = keep, RESCALE_ERROR_ARGUMENT, "b2");
    EXPECT("bias of another group", t[3].enters = 0, t[3] = keep, RESCALE_ERROR_ARGUMENT, "b2");
    EXPECT("no weight first", t[0].role = RESCALE_BIAS, t[0].role = RESCALE_WEIGHT, RESCALE_ERROR_ARGUMENT, "w1");
    EXPECT("inputs leave a group", t[0].leaves = 2, t[0].leaves = RESCALE_NONE, RESCALE_ERROR_ARGUMENT, "w1");
    EXPECT("outputs enter a group", t[6].enters = t[7].enters = 0, t[6].enters = t[7].enters = RESCALE_NONE, RESCALE_ERROR_ARGUMENT, "w4");
    keep = t[5];
    EXPECT("a residual stream", t[4].enters = t[5].enters = 0; t[6].leaves = 0, t[4].enters = t[5].enters = t[6].leaves = 2,
           RESCALE_ERROR_ARGUMENT, "w3");
    solve(net, dry(), NULL);  // and as it was it is a chain
    mlp_free(m);
    m = mlp_new(square, 4, 1, 1, 1);
    t = m->tensor;
    net = &m->net;
    mlp_init(m, KAIMING_UNIFORM, 1);
    EXPECT("a layer before BatchNorm enters", t[0].enters = t[1].enters = 0, t[0].enters = t[1].enters = RESCALE_NONE,
           RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("beta of no group", t[3].enters = RESCALE_NONE, t[3].enters = 0, RESCALE_ERROR_ARGUMENT, "beta1");
    solve(net, dry(), NULL);
    mlp_free(m);
    double wq[36], wk[36];  // queries and keys
    fill(wq, 36, 0, 1);
    fill(wk, 36, 0, 1);
    const rescale_group group = rescale_units("query/key", 6, RESCALE_IDENTITY);
    rescale_tensor qk[] = {rescale_weight("wq", wq, 6, 6, 1, 0, RESCALE_NONE), rescale_weight("wk", wk, 6, 6, 1, 0, RESCALE_NONE)};
    qk[1].flags = RESCALE_ROWS_LEAVE;
    const rescale_net attention = {&group, 1, qk, 2};
    expect_error("queries and keys", &attention, &o, RESCALE_ERROR_ARGUMENT, "wk", wq, 36);
}

// Arrays that are written must be alone in memory.
static void check_overlaps(void) {
    mlp *m = small_mlp(1);
    rescale_tensor *t = m->tensor, keep = t[2];
    const rescale_net *net = &m->net;
    rescale_options o = rescale_default_options();
    double *moment = ref_doubles(2 * m->p);
    double *g = ref_doubles(m->p);
    EXPECT("a tensor inside another", t[3].data = t[0].data + 3, t[3].data = t[2].data + 8, RESCALE_ERROR_ARGUMENT, "beta1");
    EXPECT("overlap by one", t[4].data = t[3].data + 7, t[4].data = t[3].data + 8, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("moment1 is data", t[2].moment1 = t[2].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("moment2 is data", t[2].moment2 = t[2].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("moment1 is moment2", t[2].moment1 = t[2].moment2 = moment, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("moments overlap by one", t[2].moment1 = moment; t[2].moment2 = moment + 7, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("a moment of two tensors", t[0].moment1 = t[2].moment1 = moment, t[2] = keep; t[0].moment1 = NULL, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("another tensor's data", t[2].moment2 = t[7].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "beta2");
    EXPECT("g is a moment", t[2].g = t[2].moment1 = moment, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("g is data", t[2].g = t[2].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("reference is data", t[2].reference_each = t[2].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("running statistics are data", t[2].mean = t[3].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "beta1");
    EXPECT("running statistics are a moment", t[3].moment1 = m->mean, t[3].moment1 = NULL, RESCALE_ERROR_ARGUMENT, "beta1");
    EXPECT("u is data", o.u = m->theta, o.u = NULL, RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("arena is data", o.arena = m->theta; o.arena_bytes = 8 * m->p, o.arena = NULL, RESCALE_ERROR_ARGUMENT, "options");
    t[2].moment1 = moment;  // side by side is not an overlap
    t[2].moment2 = moment + 8;
    solve(net, dry(), NULL);
    free(moment);
    free(g);
    mlp_free(m);
}

// NULL lists, and sizes whose sums or products overflow.
static void check_nulls_and_sizes(void) {
    mlp *m = small_mlp(0);
    rescale_report r;
    rescale_options o = rescale_default_options();
    const rescale_net *net = NULL;
    EXPECT("NULL net", , , RESCALE_ERROR_ARGUMENT, "NULL");
    CHECK(rescale_run(&m->net, NULL, NULL) == RESCALE_ERROR_ARGUMENT, "NULL report");
    CHECK(rescale_run(NULL, NULL, NULL) == RESCALE_ERROR_ARGUMENT, "NULL net and report");
    CHECK(rescale_arena_bytes(NULL, NULL) == 0, "a NULL net needs no arena");
    const rescale_net no_tensors = {m->group, 3, NULL, m->n_tensors}, no_groups = {NULL, 3, m->tensor, m->n_tensors};
    net = &no_tensors;
    EXPECT("NULL tensors", , , RESCALE_ERROR_ARGUMENT, "NULL");
    net = &no_groups;
    EXPECT("NULL groups", , , RESCALE_ERROR_ARGUMENT, "NULL");
    CHECK(rescale_arena_bytes(&no_tensors, NULL) == 0 && rescale_arena_bytes(&no_groups, NULL) == 0, "nor do NULL lists");
    const rescale_group huge[] = {rescale_units("g0", 2000000000, RESCALE_RELU), rescale_units("g1", 2000000000, RESCALE_RELU),
                                  rescale_units("g2", 2000000000, RESCALE_RELU)};
    const rescale_net too_many = {huge, 3, m->tensor, m->n_tensors};
    net = &too_many;
    EXPECT("three groups of 2e9 units", , , RESCALE_ERROR_ARGUMENT, "too many units");
    CHECK(rescale_arena_bytes(&too_many, NULL) == 0, "nor do sizes that overflow");
    net = &m->net;
    const rescale_tensor keep = m->tensor[7];
    EXPECT("unknown role", m->tensor[7].role = 3, m->tensor[7] = keep, RESCALE_ERROR_ARGUMENT, "b4");
    EXPECT("unknown flag", m->tensor[7].flags = 8, m->tensor[7] = keep, RESCALE_ERROR_ARGUMENT, "b4");
    EXPECT("enorm_c infinite", o.enorm_c = INFINITY, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    o.max_iterations = INT_MAX;
    o.dry_run = 1;
    CHECK(rescale_run(net, &o, &r) == RESCALE_OK && r.converged, "as many iterations as an int holds");
    o.method = RESCALE_ENORM;
    CHECK(rescale_run(net, &o, &r) == RESCALE_OK && r.converged && r.sweeps > 1, "of ENorm, too");
    mlp_free(m);
}

// ---------------------------------------------------------------------------------------------------------------
// 12. Invariances

static void check_invariances(int bn, int round) {
    static const int dims[] = {7, 12, 9, 14, 4};
    mlp *m = mlp_new(dims, 4, round & 1, round >> 1 & 1, bn);
    mlp_init(m, round & 4 ? KAIMING_NORMAL : KAIMING_UNIFORM, exp(test_random()));
    const size_t n = (size_t)m->units;
    double *u = ref_doubles(n), *u_first = ref_doubles(n), *random = ref_doubles(n), *start = copy_of(m->theta, m->p), *once = ref_doubles(m->p);
    problem q = problem_of(&m->net, NULL);
    for (int method = 0; method < 2; method++) {
        rescale_options o = rescale_default_options();
        o.method = method ? RESCALE_ENORM : RESCALE_PATHCOND;
        memcpy(m->theta, start, m->p * sizeof *start);
        const rescale_report first = solve(&m->net, o, u_first);
        memcpy(once, m->theta, m->p * sizeof *once);
        const rescale_report second = solve(&m->net, o, u);
        CHECK(largest_abs(u, n) < 1e-7, "rescaling twice: nothing left to do");
        double F = first.objective_after;  // of the rescaled network at u = 0: the linear term of F is then zero
        for (int i = 0; i < q.q.n_params && !method; i++) F += ref_bu(&q.q, u_first, i);
        test_close_d("F before the second run", &second.objective_before, &F, 1, 1e-10, 1e-9);
        test_close_d("F after the second run", &second.objective_after, &F, 1, 1e-10, 1e-9);
        fill(random, n, 0, 2);  // a random symmetric network leads to the same final network
        ref_apply(&q.q, random, start, m->theta);
        solve(&m->net, o, u);
        test_close_d("uniqueness of the rescaled network", m->theta, once, m->p, 1e-8, 1e-300);
    }
    problem_free(&q);
    free(u);
    free(u_first);
    free(random);
    free(start);
    free(once);
    mlp_free(m);
}

int main(void) {
    for (size_t k = 0; k < sizeof golden_mlp / sizeof *golden_mlp; k++) {
        check_golden(golden_mlp + k);
        mlp *m = golden_net(golden_mlp + k);
        check_ways(m, golden_mlp[k].u_optimum, 1e-8);
        mlp_free(m);
    }
    static const int small[] = {3, 4, 3, 2}, deep[] = {2, 3, 2, 3, 2, 2}, narrow[] = {5, 10, 4, 12, 3};
    for (int k = 0; k < 8; k++) {
        check_paths(small, 3, k & 1, k >> 1 & 1, k >> 2);
        check_paths(deep, 5, k & 1, k >> 1 & 1, k >> 2);
    }
    check_references(0);
    check_references(1);
    check_least_trace();
    check_certificates();
    check_dead_units();
    check_non_finite();
    check_output_bias();
    check_residual();
    check_query_key();
    check_self_loop();
    for (int round = 0; round < 60; round++) check_random_description(round);
    static const double bounds[] = {0.01, 0.1, 0.3, 1, 1e6};
    for (int k = 0; k < 5; k++)
        for (int round = 0; round < 3; round++) check_bound(narrow, 4, round == 1, round == 2 ? 3 : 1, bounds[k]);
    for (int k = 0; k < 12; k++) check_pow2(k & 1, k & 2 ? RESCALE_ENORM : RESCALE_PATHCOND, k / 4 == 0 ? 0 : k / 4 == 1 ? 1.0 : 0.5);
    int above = 0;
    for (int round = 0; round < 60; round++) above += check_pow2_descends(round);
    printf("powers of two: rounding every lambda by itself would have raised F in %d of 60 nets\n", above);
    CHECK(above > 0, "there are nets where rounding raises F");
    static const int eight[] = {100, 500, 500, 500, 500, 500, 500, 500, 500, 10};
    for (int k = 0; k < 4; k++) check_function(eight, 9, k & 1, k & 2 ? 0.5 : 1, k == 0);
    check_function(narrow, 4, KAIMING_UNIFORM, 1, 1);
    check_gradient_scaling();
    for (int k = 0; k < 6; k++) check_enorm(k & 1, k / 2 == 0 ? 1 : k / 2 == 1 ? 1.2 : 0.8);
    check_errors();
    check_not_a_chain();
    check_overlaps();
    check_nulls_and_sizes();
    for (int round = 0; round < 8; round++) {
        check_invariances(0, round);
        check_invariances(1, round);
    }
    return test_summary();
}
