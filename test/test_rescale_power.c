// test_rescale_power.c -- rescale.cuh in double precision: first powers, one factor a layer, the report per tensor, g
// from data, rescale_verify.
//
//     cc -O2 -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wpedantic -fopenmp -I. -Itest test/test_rescale_power.c -lm
//
// Numbered sections continue the list of test_rescale_net.c.
#include "rescale_mlp.h"

// ---------------------------------------------------------------------------------------------------------------
// 17. First powers: g_i = sum over paths of |Phi / theta_i|, lambda = exp(u)

static rescale_options dry_of(int power, int level) {
    rescale_options o = dry();
    o.power = power;
    o.level = level;
    return o;
}

// g_i = sum over paths of |dPhi / dtheta_i|, by enumeration.
static void first_powers(const RefNet *net, const double *theta, double *g) {
    RefPaths paths = ref_net_paths(net, theta);
    const size_t p = (size_t)paths.n_params;
    for (size_t i = 0; i < p; i++) g[i] = 0;
    for (size_t row = 0; row < (size_t)paths.n_paths; row++)
        for (size_t i = 0; i < p; i++) g[i] += fabs(paths.jacobian[row * p + i]);
    ref_paths_free(&paths);
}

// diag(G) of the header's own passes, entry by entry, at the power of o.
static void chain_diag_g(const mlp *m, const rescale_options *o, double *g) {
    void *memory;
    rescale_report r;
    rsc_solver s = open_solver(&m->net, o, &r, &memory);
    for (int i = 0; i < m->n_tensors; i++) {
        const rescale_tensor *t = m->tensor + i;
        for (int j = 0; j < t->n_out; j++)
            for (int k = 0; k < t->n_in; k++)
                g[t->data - m->theta + j * t->n_in + k] = s.energy[i].out[j] * s.energy[i].in[k];
    }
    free(memory);
}

// An MLP with everything at random, and its graph.
static mlp *random_mlp(const int *dims, int n_layers, int bias, int last_bias, int bn, RefNet *net) {
    mlp *m = mlp_new(dims, n_layers, bias, last_bias, bn);
    double *rstd = ref_doubles((size_t)m->units);
    fill(m->theta, m->p, 0, 0.9);
    fill(m->mean, (size_t)m->units, 0.2, 0.7);
    fill(m->var, (size_t)m->units, 1.1, 1);
    for (int h = 0; h < m->units; h++) rstd[h] = 1 / sqrt(m->var[h] + m->eps);
    const double *bn_mean = bn ? m->mean : NULL;
    *net = ref_net_mlp(dims, n_layers, bias, last_bias, bn_mean, rstd);
    free(rstd);
    return m;
}

// Against paths: g, the optimum and its certificate; the function; g and its energies behind the rescaling.
static void check_first_powers(const int *dims, int n_layers, int bias, int last_bias, int bn) {
    RefNet net;
    mlp *m = random_mlp(dims, n_layers, bias, last_bias, bn, &net);
    const size_t n = (size_t)m->units, n_x = (size_t)(BATCH * dims[0]), n_y = (size_t)(BATCH * dims[n_layers]);
    double *want = ref_doubles(m->p), *got = ref_doubles(m->p), *u = ref_doubles(n), *best = ref_doubles(n);
    double *x = ref_doubles(n_x), *y = ref_doubles(4 * n_y), *grad = ref_doubles(n);
    rescale_options o = dry_of(1, RESCALE_UNIT);
    first_powers(&net, m->theta, want);
    chain_diag_g(m, &o, got);
    test_close_d("first powers by paths", got, want, m->p, 1e-12, 1e-300);
    const RefProblem q = ref_problem(&net, want);
    CHECK(ref_optimum(&q, best) < 1e-9, "reference optimum");
    const double F[2] = {ref_F(&q, grad), ref_F(&q, best)};  // grad is still zero
    fill(x, n_x, 0, 2);
    for (int training = 0; training < 2; training++) mlp_forward(m, x, BATCH, training, y + (size_t)training * n_y);
    o.dry_run = 0;
    const rescale_report r = solve(&m->net, o, u);
    test_close_d("u at power 1", u, best, n, 0, 1e-8);
    test_close_d("F(0) at power 1", &r.objective_before, F, 1, 1e-10, 0);
    test_close_d("F at power 1", &r.objective_after, F + 1, 1, 1e-10, 0);
    CHECK(r.converged && ref_grad_F(&q, u, grad) <= r.grad_tolerance, "the certificate, from the definition");
    test_close_d("|log lambda| is |u|", &r.max_abs_log_lambda, (double[]){largest_abs(u, n)}, 1, 1e-12, 0);
    for (int training = 0; training < 2; training++) {
        double *after = y + (size_t)(2 + training) * n_y;
        mlp_forward(m, x, BATCH, training, after);
        CHECK(relative_difference(after, y + (size_t)training * n_y, n_y) < 1e-12, "the function is unchanged");
    }
    // g moves as g_i exp((B log lambda)_i), and what is left to do is nothing.
    for (size_t i = 0; i < m->p; i++) want[i] *= exp(ref_bu(&q, u, (int)i));
    first_powers(&net, m->theta, got);
    test_close_d("first powers behind the rescaling", got, want, m->p, 1e-10, 1e-300);
    solve(&m->net, o, u);
    CHECK(largest_abs(u, n) < 1e-7, "rescaled twice: nothing left to do");
    ref_net_free(&net);
    free(want);
    free(got);
    free(u);
    free(best);
    free(x);
    free(y);
    free(grad);
    mlp_free(m);
}

// F ends below its value at other u, near and far.
static void check_minimal(const mlp *m, const double *g) {
    const size_t n = (size_t)m->units;
    double *u = ref_doubles(n), *other = ref_doubles(n);
    problem q = problem_of(&m->net, g);
    const rescale_report r = solve(&m->net, dry_of(1, RESCALE_UNIT), u);
    double lowest = INFINITY;
    for (int round = 0; round < 200; round++) {
        const double size = pow(10, -(round % 5));
        for (size_t h = 0; h < n; h++) other[h] = u[h] + size * test_random();
        lowest = fmin(lowest, ref_F(&q.q, other));
    }
    CHECK(lowest > r.objective_after, "no perturbation lowers F");
    problem_free(&q);
    free(u);
    free(other);
}

// |log lambda| <= max_log, against unit sweeps within |u| <= max_log, which ref_unit_sweeps halves.
static void check_bounded(const mlp *m, const double *g, double bound) {
    const size_t n = (size_t)m->units;
    double *u = ref_doubles(n), *want = ref_doubles(n);
    problem q = problem_of(&m->net, g);
    ref_unit_sweeps(&q.q, want, 20000, 1e-13 * (double)n, bound / 2);
    for (int way = 0; way < 4; way++) {
        rescale_options o = dry_of(1, RESCALE_UNIT);
        o.max_log = bound;
        o.general = way == 1;
        if (way > 1) {
            o.solver = way == 2 ? RESCALE_SWEEPS : RESCALE_UNIT_SWEEPS;
            o.sweeps = 3000;
        }
        const rescale_report r = solve(&m->net, o, u);
        static const char *const name[] = {"bounded, Newton", "bounded, CG", "bounded, sweeps", "bounded, unit sweeps"};
        test_close_d(name[way], u, want, n, 0, 1e-6);
        int at_bound = 0;
        for (size_t h = 0; h < n; h++) at_bound += fabs(u[h]) >= bound;
        CHECK(r.converged && r.max_abs_log_lambda <= bound && largest_abs(u, n) <= bound, "within the bound");
        CHECK(r.bounded_units == at_bound, "the report counts units at the bound");
    }
    problem_free(&q);
    free(u);
    free(want);
}

// Powers of two: u is a multiple of log 2, the function stays bit for bit, F ends below F(0), and no step of an
// exponent lowers it.
static void check_octaves(int bn, double bound, double strength) {
    static const int dims[] = {6, 40, 30, 20, 5};
    RefNet net;
    mlp *m = random_mlp(dims, 4, 1, 1, bn, &net);
    const size_t n = (size_t)m->units;
    double x[BATCH * 6], y[2][BATCH * 5];
    double *u = ref_doubles(n), *g = ref_doubles(m->p), *before = copy_of(m->theta, m->p);
    rescale_options o = dry_of(1, RESCALE_UNIT);
    chain_diag_g(m, &o, g);
    problem q = problem_of(&m->net, g);
    fill(x, BATCH * 6, 0, 2);
    mlp_forward(m, x, BATCH, 0, y[0]);
    o.dry_run = 0;
    o.pow2 = 1;
    o.max_log = bound;
    o.strength = strength;
    const rescale_report r = solve(&m->net, o, u);
    mlp_forward(m, x, BATCH, 0, y[1]);
    CHECK(same_bits(y[0], y[1], BATCH * 5), "powers of two keep the function bit for bit");
    int octaves = 1, moved = 0;
    for (size_t h = 0; h < n; h++) {
        octaves = octaves && fabs(u[h] / log(2.0) - rint(u[h] / log(2.0))) < 1e-9;
        moved += u[h] != 0;
    }
    for (size_t i = 0; i < m->p; i++) {
        const double k = -ref_bu(&q.q, u, (int)i) / log(2.0);
        octaves = octaves && m->theta[i] == ldexp(before[i], (int)rint(k));
    }
    CHECK(octaves && moved > 0, "every lambda is a power of two, some are not 1");
    CHECK(bound <= 0 || r.max_abs_log_lambda <= bound * (1 + 1e-12), "within the bound");
    const double F = ref_F(&q.q, u), slack = 1e-9 * (double)m->p;
    test_close_d("F of the powers of two", &r.objective_after, &F, 1, 1e-10, 0);
    CHECK(F <= r.objective_before + slack, "F never ends above F(0)");
    double lowest = INFINITY;
    for (size_t h = 0; h < n; h++)
        for (int by = -1; by < 2 && bound <= 0 && strength == 1; by += 2) {
            const double keep = u[h];
            u[h] += by * log(2.0);
            lowest = fmin(lowest, ref_F(&q.q, u));
            u[h] = keep;
        }
    CHECK(lowest >= F - slack, "no exponent lowers F");
    problem_free(&q);
    ref_net_free(&net);
    free(u);
    free(g);
    free(before);
    mlp_free(m);
}

// rescale_apply with a given u: parameters, optimizer state and report. power 0 is power 2.
static void check_given_u(int power) {
    mlp *m = small_mlp(0);
    const double root = power == 1 ? 1 : 2;
    const size_t n = (size_t)m->units;
    double *u = ref_doubles(n), *twice = ref_doubles(n), *g = ref_doubles(m->p), *want = ref_doubles(m->p);
    double *m1 = ref_doubles(m->p), *m2 = ref_doubles(m->p), *want1 = ref_doubles(m->p), *want2 = ref_doubles(m->p);
    rescale_options o = rescale_default_options();
    rescale_report r;
    o.power = power;
    chain_diag_g(m, &o, g);
    problem q = problem_of(&m->net, g);
    fill(u, n, 0, 2);
    fill(m1, m->p, 0, 1);
    fill(m2, m->p, 1.5, 1);
    for (int i = 0; i < m->n_tensors; i++) {
        m->tensor[i].moment1 = m1 + (m->tensor[i].data - m->theta);
        m->tensor[i].moment2 = m2 + (m->tensor[i].data - m->theta);
    }
    for (size_t h = 0; h < n; h++) twice[h] = 2 * u[h] / root;
    ref_apply(&q.q, twice, m->theta, want);
    for (size_t i = 0; i < m->p; i++) {
        const double f = exp(-ref_bu(&q.q, u, (int)i) / root);
        want1[i] = m1[i] / f;
        want2[i] = m2[i] / (f * f);
    }
    const double F = ref_F(&q.q, u), log_lambda = largest_abs(u, n) / root;
    CHECK(rescale_apply(&m->net, &o, u, &r) == RESCALE_OK, "rescale_apply succeeds");
    test_close_d("parameters at a given u", m->theta, want, m->p, 1e-12, 0);
    test_close_d("first moment at a given u", m1, want1, m->p, 1e-12, 0);
    test_close_d("second moment at a given u", m2, want2, m->p, 1e-12, 0);
    test_close_d("F at a given u", &r.objective_after, &F, 1, 1e-12, 0);
    test_close_d("log lambda at a given u", &r.max_abs_log_lambda, &log_lambda, 1, 1e-12, 0);
    for (int i = 0; i < m->n_tensors; i++) m->tensor[i].moment1 = m->tensor[i].moment2 = NULL;
    o.dry_run = 1;
    u[3] = 699 * root;  // the edge of what exp can hold
    int status = rescale_apply(&m->net, &o, u, &r);
    CHECK(power != 1 || status == RESCALE_OK, "log lambda of 699");
    u[3] = 701 * root;
    status = rescale_apply(&m->net, &o, u, &r);
    CHECK(status == RESCALE_ERROR_RANGE, "log lambda of 701 is refused");
    problem_free(&q);
    free(u);
    free(twice);
    free(g);
    free(want);
    free(m1);
    free(m2);
    free(want1);
    free(want2);
    mlp_free(m);
}

// The same g as a full array, as products, as a mix, and by the header's own passes; by Woodbury and by CG.
static void check_power_ways(int bn) {
    mlp *m = small_mlp(bn);
    const rescale_options plain = dry_of(1, RESCALE_UNIT);
    const size_t n = (size_t)m->units;
    double *g = ref_doubles(m->p), *u = ref_doubles(n), *want = ref_doubles(n);
    rescale_tensor t[MAX_TENSORS];
    const rescale_net net = {m->group, m->net.n_groups, t, m->n_tensors};
    void *memory;
    rescale_report r;
    rsc_solver s = open_solver(&m->net, &plain, &r, &memory);
    chain_diag_g(m, &plain, g);
    problem q = problem_of(&m->net, g);
    CHECK(ref_optimum(&q.q, want) < 1e-9, "reference optimum");
    for (int way = 0; way < 8; way++) {
        rescale_options o = plain;
        o.general = way >= 4;
        for (int i = 0; i < m->n_tensors; i++) {
            t[i] = m->tensor[i];
            if (way % 4 == 1 || (way % 4 == 3 && i % 2)) t[i].g = g + (t[i].data - m->theta);
            if (way % 4 == 2 || (way % 4 == 3 && !(i % 2))) {
                t[i].g_out = s.energy[i].out;
                t[i].g_in = s.energy[i].in;
            }
        }
        solve(&net, o, u);
        static const char *const name[] = {"chain", "full g", "rank one", "a mix"};
        test_close_d(name[way % 4], u, want, n, 0, 1e-8);
    }
    check_minimal(m, g);
    static const double bounds[] = {0.02, 0.3, 1e6};
    for (int k = 0; k < 3; k++) check_bounded(m, g, bounds[k]);
    problem_free(&q);
    free(memory);
    free(g);
    free(u);
    free(want);
    mlp_free(m);
}

// A description with every kind of side: two groups; rows that leave, columns that enter; products and full arrays;
// references; kernels; zeros; with `loop` a tensor from a group to itself.
enum { A = 5, B = 4, FLAG_TENSORS = 9 };
typedef struct flag_net {
    rescale_group group[2];
    rescale_tensor tensor[FLAG_TENSORS];
    rescale_net net;
    double theta[512], g[512], each[512], vectors[512];
    size_t p;
    char name[FLAG_TENSORS][16];
} flag_net;

static void flag_net_fill(flag_net *f, int zeros) {
    double *v = f->vectors;
    fill(f->theta, 512, 0, 1);
    f->p = 0;
    for (int i = 0; i < f->net.n_tensors; i++) {
        rescale_tensor *t = f->tensor + i;
        const size_t size = tensor_size(t), columns = (size_t)t->n_in * (size_t)t->kernel;
        double *g = f->g + f->p;
        snprintf(f->name[i], sizeof f->name[i], "t%d", i);
        t->name = f->name[i];
        t->data = f->theta + f->p;
        for (size_t j = 0; j < size; j++) {
            f->each[f->p + j] = exp(test_random());
            g[j] = zeros && test_random() < -0.7 ? 0 : exp(2 * test_random());
        }
        if (i % 3 == 1) {  // an outer product
            for (size_t j = 0; j < (size_t)t->n_out + columns; j++)
                v[j] = zeros && j % 5 == 2 ? 0 : exp(test_random());
            for (size_t j = 0; j < size; j++) g[j] = v[j / columns] * v[(size_t)t->n_out + j % columns];
            t->g_out = v;
            t->g_in = v + t->n_out;
            v += (size_t)t->n_out + columns;
        } else {
            t->g = g;
        }
        if (i % 2) t->reference = exp(test_random());
        if (i % 4 > 1) t->reference_each = f->each + f->p;
        f->p += size;
    }
}

static flag_net *flag_net_new(int loop, int zeros) {
    flag_net *f = (flag_net *)ref_grow(NULL, sizeof *f);
    memset(f, 0, sizeof *f);
    f->group[0] = rescale_units("first", A, RESCALE_RELU);
    f->group[1] = rescale_units("second", B, RESCALE_IDENTITY);
    const rescale_tensor t[FLAG_TENSORS] = {
        rescale_weight("", NULL, A, 3, 2, 0, RESCALE_NONE), rescale_weight("", NULL, B, 6, 1, 1, RESCALE_NONE),
        rescale_weight("", NULL, B, A, 3, 1, 0),            rescale_weight("", NULL, B, 6, 1, 1, RESCALE_NONE),
        rescale_weight("", NULL, 7, A, 1, RESCALE_NONE, 0), rescale_weight("", NULL, A, B, 1, 0, 1),
        rescale_bias("", NULL, A, 0),                       rescale_weight("", NULL, 3, A, 1, RESCALE_NONE, 0),
        rescale_weight("", NULL, A, A, 2, 0, 0)};
    memcpy(f->tensor, t, sizeof t);
    f->tensor[3].flags = RESCALE_ROWS_LEAVE;
    f->tensor[4].flags = RESCALE_COLS_ENTER;
    f->tensor[5].flags = RESCALE_ROWS_LEAVE | RESCALE_COLS_ENTER;
    f->tensor[6].flags = RESCALE_UNCOUNTED;
    f->net.group = f->group;
    f->net.n_groups = 2;
    f->net.tensor = f->tensor;
    f->net.n_tensors = loop ? FLAG_TENSORS : FLAG_TENSORS - 1;
    flag_net_fill(f, zeros);
    return f;
}

// Rows that leave and columns that enter, at both powers; what queries and keys compute stays.
static void check_flags(int power, int loop, int zeros) {
    flag_net *f = flag_net_new(loop, zeros);
    double u[A + B], want[A + B], twice[A + B], *before = copy_of(f->theta, f->p), *after = ref_doubles(f->p);
    const double *query = f->tensor[1].data, *key = f->tensor[3].data;
    double scores[2][36];
    problem q = problem_of(&f->net, f->g), all;
    CHECK(ref_optimum(&q.q, want) < 1e-9, "reference optimum");
    for (int i = 0; i < f->net.n_tensors; i++) f->tensor[i].flags &= ~(unsigned)RESCALE_UNCOUNTED;
    all = problem_of(&f->net, f->g);  // uncounted tensors are scaled
    f->tensor[6].flags = RESCALE_UNCOUNTED;
    rescale_options o = dry_of(power, RESCALE_UNIT);
    o.dry_run = 0;
    for (int when = 0; when < 2; when++) {
        for (int j = 0; j < 36; j++) {
            scores[when][j] = 0;
            for (int h = 0; h < B; h++) scores[when][j] += query[h * 6 + j / 6] * key[h * 6 + j % 6];
        }
        if (when) break;
        const rescale_report r = solve(&f->net, o, u);
        CHECK(r.converged && r.parameters == q.q.n_params, "certificate and counted parameters");
    }
    test_close_d("u with flags", u, want, A + B, 0, 1e-8);
    for (int h = 0; h < A + B; h++) twice[h] = 2 * u[h] / power;
    ref_apply(&all.q, twice, before, after);
    test_close_d("parameters with flags", f->theta, after, f->p, 1e-12, 0);
    test_close_d("queries times keys", scores[1], scores[0], 36, 1e-12, 1e-14);
    problem_free(&q);
    problem_free(&all);
    free(before);
    free(after);
    free(f);
}

// What callers of older versions write: power 0 means 2. Other numbers are refused.
static void check_default_power(void) {
    mlp *m = small_mlp(0);
    double *u = ref_doubles((size_t)m->units), *want = ref_doubles((size_t)m->units);
    rescale_options o = {.max_iterations = 100, .tolerance = 1e-10, .strength = 1, .dry_run = 1};
    rescale_report r;
    solve(&m->net, o, u);
    CHECK(rescale_default_options().power == 2 && rescale_default_options().level == RESCALE_UNIT, "the defaults");
    solve(&m->net, dry(), want);
    CHECK(same_bits(u, want, (size_t)m->units), "power 0 is power 2");
    o.power = 1;
    solve(&m->net, o, u);
    CHECK(!same_bits(u, want, (size_t)m->units), "power 1 is not");
    static const int bad[] = {-1, 3, 100};
    for (int k = 0; k < 3; k++) {
        o.power = bad[k];
        CHECK(rescale_run(&m->net, &o, &r) == RESCALE_ERROR_ARGUMENT && strstr(r.message, "power"), "power is refused");
    }
    free(u);
    free(want);
    mlp_free(m);
}

// ---------------------------------------------------------------------------------------------------------------
// 18. One factor a layer: the same F over one variable a group

// The problem with groups in place of units.
static problem by_groups(const rescale_net *net, const problem *units) {
    problem r = *units;
    const size_t p = (size_t)units->q.n_params;
    int group_of[1024], n = 0;
    for (int g = 0; g < net->n_groups; g++)
        for (int h = 0; h < net->group[g].n; h++) group_of[n++] = g;
    r.enter = (int *)ref_grow(NULL, p * sizeof(int));
    r.leave = (int *)ref_grow(NULL, p * sizeof(int));
    r.g = copy_of(units->g, p);
    for (size_t i = 0; i < p; i++) {
        r.enter[i] = units->enter[i] < 0 ? -1 : group_of[units->enter[i]];
        r.leave[i] = units->leave[i] < 0 ? -1 : group_of[units->leave[i]];
    }
    r.q.n_units = net->n_groups;
    r.q.enter = r.enter;
    r.q.leave = r.leave;
    r.q.g = r.g;
    return r;
}

// u of the groups from u of the units, which must agree bit for bit.
static void group_values(const rescale_net *net, const double *u, double *U) {
    int equal = 1, at = 0;
    for (int g = 0; g < net->n_groups; g++) {
        U[g] = u[at];
        for (int h = 0; h < net->group[g].n; h++) equal = equal && u[at++] == U[g];
    }
    CHECK(equal, "all units of a group have the same u");
}

// dF/dU of a group by central differences.
static double slope_of(const RefProblem *q, double *U, int g) {
    const double keep = U[g], step = 1e-5;
    U[g] = keep + step;
    const double above = ref_F(q, U);
    U[g] = keep - step;
    const double below = ref_F(q, U);
    U[g] = keep;
    return (above - below) / (2 * step);
}

// The optimum under the constraint, and its certificate, at the optimum and elsewhere.
static void check_layer_optimum(const char *name, const rescale_net *net, const double *g, int power) {
    problem q = problem_of(net, g), groups = by_groups(net, &q);
    const size_t n = (size_t)q.q.n_units, n_groups = (size_t)net->n_groups;
    double *u = ref_doubles(n), *U = ref_doubles(n_groups);
    double *want = ref_doubles(n_groups), *grad = ref_doubles(n_groups);
    rescale_options o = dry_of(power, RESCALE_LAYER);
    CHECK(ref_optimum(&groups.q, want) < 1e-8, "reference optimum");
    rescale_report r = solve(net, o, u);
    group_values(net, u, U);
    test_close_d(name, U, want, n_groups, 0, 1e-8);
    const double F = ref_F(&groups.q, want);
    test_close_d("F at the layer level", &r.objective_after, &F, 1, 1e-10, 0);
    unsigned char *pinned = (unsigned char *)ref_grow(NULL, n_groups + 1);
    ref_pinned(&groups.q, pinned);
    double slope = 0, largest = 0;
    ref_grad_F(&groups.q, U, grad);
    for (size_t k = 0; k < n_groups; k++) slope = pinned[k] ? slope : fmax(slope, fabs(grad[k]));
    if (!CHECK(r.converged && slope <= r.grad_tolerance, "the certificate, from the definition"))
        printf("    %s: %g, reported %g, tolerance %g\n", name, slope, r.grad_inf, r.grad_tolerance);
    double *count = ref_doubles(n_groups), most = 1;
    for (int i = 0; i < q.q.n_params; i++) {
        if (groups.leave[i] >= 0) count[groups.leave[i]]++;
        if (groups.enter[i] >= 0) count[groups.enter[i]]--;
    }
    for (size_t k = 0; k < n_groups; k++) most = fmax(most, fabs(count[k]));
    test_close_d("tolerance of the certificate", &r.grad_tolerance, (double[]){1e-8 * most}, 1, 1e-12, 0);
    free(count);
    CHECK(r.objective_after <= r.objective_before && r.cg_steps == 0, "F falls");
    const rescale_report free_one = solve(net, dry_of(power, RESCALE_UNIT), NULL);
    CHECK(free_one.objective_after <= r.objective_after * (1 + 1e-12), "and units by themselves get further");
    // Elsewhere: grad_inf is the largest slope along a group.
    fill(U, n_groups, 0, 0.5);
    for (size_t k = 0, at = 0; k < n_groups; k++)
        for (int h = 0; h < net->group[k].n; h++) u[at++] = U[k];
    for (size_t k = 0; k < n_groups; k++)
        if (!pinned[k]) largest = fmax(largest, fabs(slope_of(&groups.q, U, (int)k)));
    CHECK(rescale_apply(net, &o, u, &r) == RESCALE_OK, "rescale_apply at the layer level");
    test_close_d("the certificate by finite differences", &r.grad_inf, &largest, 1, 1e-6, 0);
    CHECK(!r.converged, "which is no optimum");
    problem_free(&q);
    problem_free(&groups);
    free(pinned);
    free(u);
    free(U);
    free(want);
    free(grad);
}

// Within a bound, in sweeps, in part, and in powers of two.
static void check_layer_options(const rescale_net *net, const double *g, int power) {
    problem q = problem_of(net, g), groups = by_groups(net, &q);
    const size_t n = (size_t)q.q.n_units, n_groups = (size_t)net->n_groups;
    double *u = ref_doubles(n), *U = ref_doubles(n_groups), *want = ref_doubles(n_groups);
    rescale_options o = dry_of(power, RESCALE_LAYER);
    const double bound = 0.6 * solve(net, o, u).max_abs_log_lambda;
    o.max_log = bound;
    rescale_report r = solve(net, o, u);
    group_values(net, u, U);
    ref_unit_sweeps(&groups.q, want, 20000, 1e-14, power * bound / 2);
    test_close_d("layers within a bound", U, want, n_groups, 0, 1e-7);
    CHECK(r.bounded_units > 0 && r.max_abs_log_lambda <= bound && r.converged, "some layers are at the bound");
    o = dry_of(power, RESCALE_LAYER);
    o.solver = RESCALE_SWEEPS;
    for (o.sweeps = 0; o.sweeps < 4; o.sweeps++) {
        for (size_t k = 0; k < n_groups; k++) want[k] = 0;
        ref_unit_sweeps(&groups.q, want, o.sweeps, 0, 0);
        solve(net, o, u);
        group_values(net, u, U);
        test_close_d("sweeps over layers", U, want, n_groups, 0, 1e-10);
    }
    o = dry_of(power, RESCALE_LAYER);
    o.strength = 0.5;
    ref_optimum(&groups.q, want);
    r = solve(net, o, u);
    group_values(net, u, U);
    for (size_t k = 0; k < n_groups; k++) U[k] *= 2;
    test_close_d("half of the way", U, want, n_groups, 0, 1e-8);
    o.strength = 1;
    o.pow2 = 1;
    r = solve(net, o, u);
    group_values(net, u, U);
    const double octave = power * log(2.0), F = ref_F(&groups.q, U), slack = 1e-9 * q.q.n_params;
    int octaves = 1;
    double lowest = INFINITY;
    for (size_t k = 0; k < n_groups; k++) {
        octaves = octaves && fabs(U[k] / octave - rint(U[k] / octave)) < 1e-9;
        for (int by = -1; by < 2; by += 2) {
            U[k] += by * octave;
            lowest = fmin(lowest, ref_F(&groups.q, U));
            U[k] -= by * octave;
        }
    }
    CHECK(octaves && F <= r.objective_before + slack && lowest >= F - slack, "powers of two a layer");
    test_close_d("F of the powers of two", &r.objective_after, &F, 1, 1e-10, 0);
    problem_free(&q);
    problem_free(&groups);
    free(u);
    free(U);
    free(want);
}

// S may grow by a factor only, half as much as at the optimum: S is there, and its slopes along the groups are one
// multiple of the counts.
static int check_layer_trace(const rescale_net *net, const double *g) {
    problem q = problem_of(net, g), groups = by_groups(net, &q);
    const size_t n_groups = (size_t)net->n_groups;
    double *u = ref_doubles((size_t)q.q.n_units), *U = ref_doubles(n_groups), before = 0, S = 0;
    double *slope = ref_doubles(n_groups), *count = ref_doubles(n_groups);
    rescale_options o = dry_of(1, RESCALE_LAYER);
    const double factor = fmax(1, 0.5 + 0.5 * solve(net, o, u).trace_ratio);
    o.max_trace = factor;
    const rescale_report r = solve(net, o, u);
    group_values(net, u, U);
    for (int i = 0; i < q.q.n_params; i++) {
        const int in = groups.enter[i], out = groups.leave[i];
        const double e = groups.g[i] * exp(ref_bu(&groups.q, U, i));
        before += groups.g[i];
        S += e;
        if (out >= 0) slope[out] += e;
        if (out >= 0) count[out]++;
        if (in >= 0) slope[in] -= e;
        if (in >= 0) count[in]--;
    }
    const double ratio = S / before;
    test_close_d("trace ratio", &r.trace_ratio, &ratio, 1, 1e-9, 0);
    CHECK(ratio <= factor * (1 + 1e-9) && (factor <= 1 || ratio >= 0.999 * factor), "S at its bound");
    double dot = 0, n2 = 0, off = 0, largest = 0;
    for (size_t k = 0; k < n_groups; k++) {
        dot += slope[k] * count[k];
        n2 += count[k] * count[k];
        largest = fmax(largest, fabs(slope[k]));
    }
    for (size_t k = 0; k < n_groups; k++) off = fmax(off, fabs(slope[k] - dot / n2 * count[k]));
    if (factor > 1) CHECK(dot > 0 && off <= 1e-6 * largest, "the gradient of S is a multiple of n");
    CHECK(r.converged, "certificate within the bound of the trace");
    problem_free(&q);
    problem_free(&groups);
    free(u);
    free(U);
    free(slope);
    free(count);
    return factor > 1;
}

static void check_layers(int bn, int power) {
    static const int dims[] = {5, 12, 7, 20, 9, 3};
    mlp *m = mlp_new(dims, 5, 1, 1, bn);
    mlp_init(m, KAIMING_UNIFORM, 1);
    const rescale_options o = dry_of(power, RESCALE_LAYER);
    double *g = ref_doubles(m->p), x[BATCH * 5], y[2][BATCH * 3];
    for (int k = 0; k < 140; k++) m->tensor[bn ? 8 : 4].data[k] *= 5;  // layers far from balance
    chain_diag_g(m, &o, g);
    check_layer_optimum("layers of a chain", &m->net, g, power);
    check_layer_options(&m->net, g, power);
    rescale_tensor t[MAX_TENSORS];
    memcpy(t, m->tensor, sizeof t);
    for (int i = 0; i < m->n_tensors; i++) t[i].g = g + (t[i].data - m->theta);
    const rescale_net full = {m->group, m->net.n_groups, t, m->n_tensors};
    check_layer_optimum("layers with a full g", &full, g, power);
    fill(x, BATCH * 5, 0, 2);
    mlp_forward(m, x, BATCH, bn, y[0]);
    rescale_options now = o;
    now.dry_run = 0;
    solve(&m->net, now, NULL);
    mlp_forward(m, x, BATCH, bn, y[1]);
    CHECK(relative_difference(y[1], y[0], BATCH * 3) < 1e-12, "a factor a layer keeps the function");
    free(g);
    mlp_free(m);
}

// Dead units move with their layer; a layer without energy on one side does not move.
static void check_dead_layers(void) {
    mlp *m = small_mlp(0);
    double *u = ref_doubles((size_t)m->units), *U = ref_doubles(3), *g = ref_doubles(m->p);
    const rescale_options o = dry_of(2, RESCALE_LAYER);
    for (int c = 0; c < 8; c++) m->tensor[2].data[3 * 8 + c] = 0;  // nothing enters unit 3 of layer 2
    m->tensor[3].data[3] = 0;
    for (int k = 0; k < 7; k++) m->tensor[4].data[k * 6 + 1] = 0;  // nothing leaves unit 1 of layer 2
    chain_diag_g(m, &o, g);
    rescale_report r = solve(&m->net, o, u);
    group_values(&m->net, u, U);
    CHECK(r.pinned_units == 0 && U[1] != 0, "a layer with dead units moves");
    check_layer_optimum("layers with dead units", &m->net, g, 2);
    for (int k = 0; k < 48; k++) m->tensor[2].data[k] = 0;  // nothing enters layer 2: nor is there a path through 1
    for (int k = 0; k < 6; k++) m->tensor[3].data[k] = 0;
    chain_diag_g(m, &o, g);
    r = solve(&m->net, o, u);
    group_values(&m->net, u, U);
    CHECK(r.pinned_units == 8 + 6 && U[0] == 0 && U[1] == 0 && U[2] != 0 && r.converged, "dead layers are pinned");
    check_layer_optimum("dead layers", &m->net, g, 2);
    free(u);
    free(U);
    free(g);
    mlp_free(m);
}

// More groups than the dense systems of a unit-level run take: 230 layers of two units, rank-one g.
static void check_many_layers(void) {
    enum { LAYERS = 230, WIDTH = 2 };
    static rescale_group group[LAYERS];
    static rescale_tensor t[LAYERS + 1];
    static double theta[(LAYERS + 1) * 4], g[(LAYERS + 1) * 4], vectors[(LAYERS + 1) * 4];
    for (int l = 0; l <= LAYERS; l++) {
        const int enters = l < LAYERS ? l : RESCALE_NONE;
        const int leaves = l > 0 ? l - 1 : RESCALE_NONE;
        if (l < LAYERS) group[l] = rescale_units("layer", WIDTH, RESCALE_RELU);
        t[l] = rescale_weight("w", theta + 4 * l, WIDTH, WIDTH, 1, enters, leaves);
        t[l].g_out = vectors + 4 * l;
        t[l].g_in = vectors + 4 * l + 2;
        for (int k = 0; k < 4; k++) vectors[4 * l + k] = exp(test_random());
        for (int k = 0; k < 4; k++) g[4 * l + k] = vectors[4 * l + k / 2] * vectors[4 * l + 2 + k % 2];
    }
    fill(theta, (LAYERS + 1) * 4, 0, 1);
    const rescale_net net = {group, LAYERS, t, LAYERS + 1};
    check_layer_optimum("230 layers", &net, g, 1);
}

// Combinations that are refused; the message names the option.
static void check_refused(void) {
    mlp *m = small_mlp(0);
    static const struct { int method, solver, within, power, level, each; const char *word; } bad[] = {
        {RESCALE_ENORM, RESCALE_NEWTON, 0, 2, RESCALE_LAYER, 0, "level"},
        {RESCALE_ENORM, RESCALE_NEWTON, 0, 1, RESCALE_UNIT, 0, "power 1"},
        {RESCALE_ENORM, RESCALE_SWEEPS, 0, 0, RESCALE_UNIT, 1, "each"},
        {RESCALE_PATHCOND, RESCALE_UNIT_SWEEPS, 0, 2, RESCALE_LAYER, 0, "unit sweeps"},
        {RESCALE_PATHCOND, RESCALE_NEWTON, 1, 1, RESCALE_LAYER, 0, "within"},
        {RESCALE_PATHCOND, RESCALE_NEWTON, 0, 1, 2, 0, "level"},
        {RESCALE_PATHCOND, RESCALE_NEWTON, 0, 1, -1, 0, "level"}};
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        static rescale_tensor_report each[MAX_TENSORS];
        double *before = copy_of(m->theta, m->p);
        rescale_options o = rescale_default_options();
        rescale_report r;
        o.method = bad[k].method;
        o.solver = bad[k].solver;
        o.within = bad[k].within;
        o.power = bad[k].power;
        o.level = bad[k].level;
        o.each = bad[k].each ? each : NULL;
        const int status = rescale_run(&m->net, &o, &r);
        if (!CHECK(status == RESCALE_ERROR_ARGUMENT && strstr(r.message, bad[k].word), "a combination is refused"))
            printf("    %d '%s', expected '%s'\n", status, r.message, bad[k].word);
        CHECK(same_bits(before, m->theta, m->p), "and nothing moves");
        free(before);
    }
    mlp_free(m);
}

// ---------------------------------------------------------------------------------------------------------------
// 19. The report per tensor

// Share, spread and zeros of every tensor at u from the definition, in loops over single parameters; spread of all.
static void direct_report(const rescale_net *net, const double *g, const double *u, int when,
                          rescale_tensor_report *each, double *spread) {
    int first[MAX_GROUPS + 1] = {0};
    double S[MAX_TENSORS] = {0}, logs[MAX_TENSORS] = {0}, total = 0, all_logs = 0, all_n = 0;
    for (int k = 0; k < net->n_groups; k++) first[k + 1] = first[k] + net->group[k].n;
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = net->tensor + i;
        const int columns = t->n_in * t->kernel;
        double n = 0;
        each[i].zeros = 0;
        each[i].share[when] = each[i].spread[when] = 0;
        for (int j = 0; j < (int)tensor_size(t); j++, g++) {
            double bu = 0, reference = t->reference > 0 ? t->reference : 1;
            if (t->enters >= 0)
                bu += (t->flags & RESCALE_ROWS_LEAVE ? 1 : -1) * u[first[t->enters] + j / columns];
            if (t->leaves >= 0)
                bu += (t->flags & RESCALE_COLS_ENTER ? -1 : 1) * u[first[t->leaves] + j % columns / t->kernel];
            if (t->reference_each) reference *= t->reference_each[j];
            const double e = *g / reference * exp(bu);
            if (t->flags & RESCALE_UNCOUNTED) continue;
            each[i].zeros += !(e > 0);
            if (!(e > 0)) continue;
            S[i] += e;
            logs[i] += log(e);
            n++;
        }
        if (n > 0) each[i].spread[when] = log(S[i] / n) - logs[i] / n;
        total += S[i];
        all_logs += logs[i];
        all_n += n;
    }
    for (int i = 0; i < net->n_tensors; i++) each[i].share[when] = S[i] / total;
    *spread = log(total / all_n) - all_logs / all_n;
}

// Solves with and without the report, which must not change u; compares it with the definition.
static void check_report(const char *name, const rescale_net *net, const double *g, rescale_options o) {
    rescale_tensor_report got[MAX_TENSORS], want[MAX_TENSORS];
    double u[256], plain[256] = {0}, sum[2] = {0, 0}, spread[2];
    const double zero[256] = {0};
    long long zeros = 0;
    int units = 0, same = 1;
    for (int k = 0; k < net->n_groups; k++) units += net->group[k].n;
    const rescale_report without = solve(net, o, plain);
    CHECK(without.spread_before == 0 && without.spread_after == 0, "no spread without options.each");
    o.each = got;
    o.arena_bytes = rescale_arena_bytes(net, &o);
    o.arena = malloc(o.arena_bytes);
    memset(got, 0xff, sizeof got);
    const rescale_report r = solve(net, o, u);
    free(o.arena);
    CHECK(same_bits(u, plain, (size_t)units), "the report changes nothing");
    for (int when = 0; when < 2; when++) direct_report(net, g, when ? u : zero, when, want, spread + when);
    for (int i = 0; i < net->n_tensors; i++) {
        test_close_d(name, got[i].share, want[i].share, 2, 1e-11, 1e-14);
        test_close_d(name, got[i].spread, want[i].spread, 2, 0, 1e-11);
        same = same && got[i].zeros == want[i].zeros;
        sum[0] += got[i].share[0];
        sum[1] += got[i].share[1];
        zeros += got[i].zeros;
    }
    CHECK(same, "zeros of every tensor");
    test_close_d(name, &r.spread_before, spread, 1, 0, 1e-11);
    test_close_d(name, &r.spread_after, spread + 1, 1, 0, 1e-11);
    test_close_d("shares add up", sum, (double[]){1, 1}, 2, 1e-12, 0);
    if (zeros) return;
    const double change = (r.objective_after - r.objective_before) / (double)r.parameters;
    const double fall = r.spread_after - r.spread_before;
    test_close_d("the spread falls by F's change over p", &fall, &change, 1, 0, 1e-11);
}

// The options that lead to different u.
static void check_reports(const char *name, const rescale_net *net, const double *g, int power) {
    for (int k = 0; k < 9; k++) {
        rescale_options o = dry_of(power, k == 1 ? RESCALE_LAYER : RESCALE_UNIT);
        if (k == 2) o.strength = 0.5;
        if (k == 3) o.strength = 0;
        if (k == 4) o.pow2 = 1;
        if (k == 5) o.max_log = 0.1;
        if (k == 6) o.solver = RESCALE_SWEEPS;
        if (k == 7) o.within = 1;
        if (k == 8) o.max_trace = 1.01;
        check_report(name, net, g, o);
    }
}

static void check_all_reports(void) {
    for (int k = 0; k < 8; k++) {
        const rescale_options o = dry_of(1 + (k & 1), RESCALE_UNIT);
        mlp *m = small_mlp(k >> 1 & 1);
        double *g = ref_doubles(m->p);
        if (k & 4) m->tensor[2].data[7] = m->tensor[0].data[0] = m->tensor[0].data[1] = 0;
        for (int c = 0; c < 8 && k & 4; c++) m->tensor[2].data[c] = 0;  // with a dead unit: g of 0 elsewhere
        if (k & 4 && !m->bn) m->tensor[3].data[0] = 0;
        chain_diag_g(m, &o, g);
        check_reports("report of a chain", &m->net, g, o.power);
        free(g);
        mlp_free(m);
    }
    for (int k = 0; k < 8; k++) {
        flag_net *f = flag_net_new(k & 1, k >> 1 & 1);
        check_reports("report with flags, kernels and references", &f->net, f->g, 1 + (k >> 2));
        free(f);
    }
    // In place: the report describes the network that is left.
    mlp *m = small_mlp(0);
    rescale_tensor_report each[MAX_TENSORS];
    double *g = ref_doubles(m->p), *zero = ref_doubles((size_t)m->units), spread;
    rescale_tensor_report want[MAX_TENSORS];
    rescale_options o = rescale_default_options();
    o.each = each;
    const rescale_report r = solve(&m->net, o, NULL);
    chain_diag_g(m, &o, g);
    direct_report(&m->net, g, zero, 1, want, &spread);
    test_close_d("spread of the rescaled network", &r.spread_after, &spread, 1, 0, 1e-11);
    for (int i = 0; i < m->n_tensors; i++)
        test_close_d("share in the rescaled network", each[i].share + 1, want[i].share + 1, 1, 1e-9, 0);
    rescale_report bad;
    o.u = (double *)(void *)each;
    CHECK(rescale_run(&m->net, &o, &bad) == RESCALE_ERROR_ARGUMENT && strstr(bad.message, "each"), "each overlaps u");
    o.u = NULL;
    o.each = (rescale_tensor_report *)(void *)m->theta;
    CHECK(rescale_run(&m->net, &o, &bad) == RESCALE_ERROR_ARGUMENT && strstr(bad.message, "each"),
          "each overlaps a tensor");
    free(g);
    free(zero);
    mlp_free(m);
}

// ---------------------------------------------------------------------------------------------------------------
// 20. g from data

// rescale_kernel_linear against its sum, element by element, on top of what is there; and against rescale_kernel_add of
// every sample's gradient.
static void check_kernel_sums(int samples, int n_out, int n_in, int power, int bias) {
    const size_t n = (size_t)n_out * (size_t)n_in;
    double *delta = ref_doubles((size_t)(samples * n_out)), *a = ref_doubles((size_t)(samples * n_in));
    double *g = ref_doubles(n), *each = ref_doubles(n), *want = ref_doubles(n), *gradient = ref_doubles(n);
    fill(delta, (size_t)(samples * n_out), 0, 2);
    fill(a, (size_t)(samples * n_in), 0, 2);
    fill(g, n, 1, 1);
    memcpy(each, g, n * sizeof *g);
    memcpy(want, g, n * sizeof *g);
    for (int s = 0; s < samples; s++) {
        for (size_t j = 0; j < n; j++) {
            const size_t o = j / (size_t)n_in, i = j % (size_t)n_in;
            gradient[j] = delta[s * n_out + (int)o] * (bias ? 1 : a[s * n_in + (int)i]);
            want[j] += pow(fabs(gradient[j]), power);
        }
        rescale_kernel_add(each, gradient, n, power);
    }
    rescale_kernel_linear(g, delta, bias ? NULL : a, samples, n_out, n_in, power);
    test_close_d("rescale_kernel_linear", g, want, n, 1e-13, 0);
    test_close_d("rescale_kernel_add", each, want, n, 1e-13, 0);
    delta[n_out - 1] = NAN;
    rescale_kernel_linear(g, delta, bias ? NULL : a, samples, n_out, n_in, power);
    CHECK(isnan(g[n - 1]) && (n_out == 1 || !isnan(g[0])), "NaN shows where it belongs");
    free(delta);
    free(a);
    free(g);
    free(each);
    free(want);
    free(gradient);
}

// g of an MLP without BatchNorm from `samples` inputs x and signs of its outputs: forward, backward, sums.
static void data_diag_g(const mlp *m, const double *x, int samples, const double *signs, int power, double *g) {
    double *act[MAX_GROUPS + 1], *delta = copy_of(signs, (size_t)(samples * m->dims[m->n_layers]));
    act[0] = copy_of(x, (size_t)(samples * m->dims[0]));
    for (int l = 0; l < m->n_layers; l++) {
        const double *w = m->tensor[2 * l].data, *b = m->tensor[2 * l + 1].data;
        const int n_in = m->dims[l], n_out = m->dims[l + 1];
        act[l + 1] = ref_doubles((size_t)(samples * n_out));
        for (int i = 0; i < samples * n_out; i++) {
            double sum = b[i % n_out];
            for (int c = 0; c < n_in; c++) sum += w[i % n_out * n_in + c] * act[l][i / n_out * n_in + c];
            act[l + 1][i] = l + 1 < m->n_layers && sum < 0 ? 0 : sum;
        }
    }
    for (size_t i = 0; i < m->p; i++) g[i] = 0;
    for (int l = m->n_layers - 1; l >= 0; l--) {
        const double *w = m->tensor[2 * l].data;
        const int n_in = m->dims[l], n_out = m->dims[l + 1];
        double *below = ref_doubles((size_t)(samples * n_in));
        rescale_kernel_linear(g + (w - m->theta), delta, act[l], samples, n_out, n_in, power);
        rescale_kernel_linear(g + (m->tensor[2 * l + 1].data - m->theta), delta, NULL, samples, n_out, 1, power);
        for (int i = 0; i < samples * n_in; i++)
            for (int o = 0; o < n_out && act[l][i] > 0; o++)
                below[i] += delta[i / n_in * n_out + o] * w[o * n_in + i % n_in];
        free(delta);
        delta = below;
    }
    free(delta);
    for (int l = 0; l <= m->n_layers; l++) free(act[l]);
}

// What rescale_verify calls: the outputs of a network on its inputs; spoils one output of call number `spoil`.
typedef struct watched {
    const mlp *m;
    const double *x;
    int calls, spoil;
    double value;
} watched;
static void watch(void *context, double *outputs) {
    watched *w = (watched *)context;
    mlp_forward(w->m, w->x, BATCH, 0, outputs);
    if (++w->calls == w->spoil) outputs[1] = w->value;
}

// g against differences of outputs, one parameter and one sample at a time; how a rescaling moves it; the function.
static void check_data(int power) {
    mlp *m = small_mlp(0);
    double x[BATCH * 4], signs[BATCH * 3], y[2][BATCH * 3], memory[2 * BATCH * 3], u[64];
    double *g = ref_doubles(m->p), *want = ref_doubles(m->p);
    fill(x, BATCH * 4, 0.3, 2);
    for (int i = 0; i < BATCH * 3; i++) signs[i] = test_random() < 0 ? -1 : 1;
    data_diag_g(m, x, BATCH, signs, power, g);
    for (size_t i = 0; i < m->p; i++) {
        const double keep = m->theta[i], step = 1e-6;
        for (int side = 0; side < 2; side++) {
            m->theta[i] = keep + (side ? step : -step);
            mlp_forward(m, x, BATCH, 0, y[side]);
        }
        m->theta[i] = keep;
        for (int s = 0; s < BATCH; s++) {
            double d = 0;
            for (int k = 3 * s; k < 3 * s + 3; k++) d += signs[k] * (y[1][k] - y[0][k]) / (2 * step);
            want[i] += pow(fabs(d), power);
        }
    }
    test_close_d("g from data by differences", g, want, m->p, 1e-6, 1e-8);
    for (int i = 0; i < m->n_tensors; i++) m->tensor[i].g = g + (m->tensor[i].data - m->theta);
    for (int level = 0; level < 2; level++) {
        watched w = {m, x, 0, 0, 0};
        rescale_options o = rescale_default_options();
        rescale_report r;
        o.power = power;
        o.level = level ? RESCALE_UNIT : RESCALE_LAYER;
        o.u = u;
        const double moved = rescale_verify(&m->net, &o, &r, watch, &w, memory, BATCH * 3);
        CHECK(r.status == RESCALE_OK && r.converged && w.calls == 2 && moved < 1e-12, "g from data: same function");
        CHECK(largest_abs(u, (size_t)m->units) > 0.05, "something moves");
        problem q = problem_of(&m->net, g);
        for (size_t i = 0; i < m->p; i++) want[i] = g[i] * exp(ref_bu(&q.q, u, (int)i));
        problem_free(&q);
        data_diag_g(m, x, BATCH, signs, power, g);
        test_close_d("g from data behind the rescaling", g, want, m->p, 1e-10, 1e-300);
    }
    free(g);
    free(want);
    mlp_free(m);
}

// Descriptions with a group left out on one side; what forward and the run may do wrong.
static void check_verify(void) {
    double x[BATCH * 4], memory[2 * BATCH * 3];
    fill(x, BATCH * 4, 0.3, 2);
    for (int k = 0; k < 7; k++) {
        mlp *m = small_mlp(0);
        m->slope = 0.1;  // no unit is silent on all inputs
        double *g = mlp_diag_g(m), *before = copy_of(m->theta, m->p);
        watched w = {m, x, 0, 0, 0};
        rescale_options o = rescale_default_options();
        rescale_report r;
        for (int i = 0; i < m->n_tensors; i++) m->tensor[i].g = g + (m->tensor[i].data - m->theta);
        if (k == 0) m->tensor[2].leaves = RESCALE_NONE;  // columns of the second weight
        if (k == 1) m->tensor[2].enters = RESCALE_NONE;  // its rows
        if (k == 2) m->tensor[3].enters = RESCALE_NONE;  // its bias
        if (k == 3) o.max_log = -1;
        if (k == 4) w.spoil = 2;
        w.value = k == 4 ? NAN : 0;
        if (k == 5) o.dry_run = 1;
        if (k == 6) {
            w.spoil = 1;
            w.value = 1e6;
        }
        const double moved = rescale_verify(&m->net, &o, &r, watch, &w, memory, BATCH * 3);
        if (k == 0) CHECK(moved < 1e-12 && r.pinned_units == 8, "units that nothing leaves are pinned: no harm done");
        const int shows = r.status == RESCALE_OK && moved > 1e-3 && moved < INFINITY;
        if ((k == 1 || k == 2) && !CHECK(shows, "a side left out shows"))
            printf("    %d: moved %g, max |log lambda| %g\n", k, moved, r.max_abs_log_lambda);
        if (k == 3) CHECK(r.status == RESCALE_ERROR_ARGUMENT && strstr(r.message, "max_log"), "the error of the run");
        if (k == 3) CHECK(same_bits(before, m->theta, m->p) && w.calls == 1, "and nothing moved");
        if (k == 3 || k == 4) CHECK(isinf(moved) && moved > 0, "infinity for what proves nothing");
        if (k == 5) CHECK(moved == 0 && r.status == RESCALE_OK, "a dry run moves nothing");
        if (k == 6) CHECK(fabs(moved - 1) < 1e-2, "relative to the largest output before");
        free(g);
        free(before);
        mlp_free(m);
    }
    static const int dims[] = {4, 8, 6, 7, 3};
    mlp *zero = mlp_new(dims, 4, 1, 1, 0);  // all outputs are zero
    rescale_options enorm = rescale_default_options();
    rescale_report r;
    enorm.method = RESCALE_ENORM;
    watched w = {zero, x, 0, 0, 0};
    const double moved = rescale_verify(&zero->net, &enorm, &r, watch, &w, memory, BATCH * 3);
    CHECK(r.status == RESCALE_OK && isinf(moved), "outputs of zero prove nothing");
    mlp_free(zero);
}

int main(void) {
    static const int small[] = {3, 4, 3, 2}, deep[] = {2, 3, 2, 3, 2, 2};
    for (int k = 0; k < 8; k++) {
        check_first_powers(small, 3, k & 1, k >> 1 & 1, k >> 2);
        check_first_powers(deep, 5, k & 1, k >> 1 & 1, k >> 2);
    }
    check_power_ways(0);
    check_power_ways(1);
    static const double octave_bound[] = {0, 0, 1}, part[] = {1, 0.7, 1};
    for (int k = 0; k < 6; k++) check_octaves(k & 1, octave_bound[k / 2], part[k / 2]);
    for (int power = 0; power < 3; power++) check_given_u(power);
    for (int k = 0; k < 8; k++) check_flags(1 + (k & 1), k >> 1 & 1, k >> 2);
    check_default_power();
    for (int k = 0; k < 4; k++) check_layers(k & 1, 1 + (k >> 1));
    int bound = 0;
    for (int k = 0; k < 8; k++) {
        flag_net *f = flag_net_new(k & 1, k >> 1 & 1);
        check_layer_optimum("layers with flags", &f->net, f->g, 1 + (k >> 2));
        if (!(k & 1)) check_layer_options(&f->net, f->g, 1 + (k >> 2));
        bound += check_layer_trace(&f->net, f->g);
        free(f);
    }
    CHECK(bound > 2, "there are nets where the bound of the trace binds");
    check_dead_layers();
    check_many_layers();
    check_refused();
    check_all_reports();
    static const int shapes[][3] = {{1, 1, 1}, {7, 3, 127}, {5, 4, 128}, {6, 5, 129}, {3, 130, 300}};
    for (int k = 0; k < 10; k++) check_kernel_sums(shapes[k / 2][0], shapes[k / 2][1], shapes[k / 2][2], 1 + k % 2, 0);
    for (int k = 0; k < 2; k++) check_kernel_sums(9, 140, 1, 1 + k, 1);
    check_data(1);
    check_data(2);
    check_verify();
    return test_summary();
}
