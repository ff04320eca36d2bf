// test_rescale.c -- rescale.cuh in double precision against test/ref_rescale.h, golden values and its own contract.
//
//     cc -O2 -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wpedantic -fopenmp -I. -Itest test/test_rescale.c -lm
//
// Special cases, descriptions at random and errors: test_rescale_net.c. Float, and device memory against host memory:
// test_rescale_device.cu. The example in the manual: test_example.sh. Numbered sections follow the list of what the
// method has to get right: diag(G), F, solvers, special cases.
#include "golden_mlp.h"
#include "rescale_mlp.h"

// ---------------------------------------------------------------------------------------------------------------
// 1. Golden values

static mlp *golden_net(const GoldenMlp *want) {
    mlp *m = mlp_new(want->dims, want->n_layers, want->bias, want->last_bias, 0);
    ref_golden_weights(want->dims, want->n_layers, want->bias, want->last_bias, m->theta);
    return m;
}

// The optimum where S = sum g exp(B u) may grow by a factor only: S is at the limit, and dS/du, in loops over single
// parameters, is a positive multiple of n_h (the conditions of Karush, Kuhn and Tucker, sufficient here since S is
// convex), larger than S / p.
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
        const double u_out = out >= 0 ? u[out] : 0;
        const double u_in = in >= 0 ? u[in] : 0;
        const double e = pr.g[i] * exp(u_out - u_in);
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
        CHECK(fabs(r.trace_ratio / free_one.trace_ratio - 1) < 1e-6 &&
                  fabs(r.objective_after - free_one.objective_after) <= 1e-9 * fabs(r.objective_after),
              "no bound that matters: the optimum");
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
        CHECK(r.converged && r.objective_after < r.objective_before && r.objective_after > free_one.objective_after,
              "F between");
    }
    o.max_log = 0.05;
    const rescale_report both = solve(&m->net, o, u);
    CHECK(both.trace_ratio <= factor * (1 + 1e-9) && both.max_abs_log_lambda <= 0.05 * (1 + 1e-12), "both bounds hold");
    problem_free(&pr);
    free(g);
}

// A net whose S is least as it is, though F is not: 2-1-1, all weights 1, S = 2 / x + 2 x, optimum x = 2^-1/2. Nothing
// may move.
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

// Ten block sweeps and ten unit sweeps.
static void check_golden_sweeps(const GoldenMlp *want, mlp *m) {
    double u[64];
    const size_t n = (size_t)want->n_units;
    rescale_options o = dry();
    o.solver = RESCALE_SWEEPS;
    o.sweeps = 10;
    rescale_report r = solve(&m->net, o, u);
    test_close_d("golden F after 10 block sweeps", &r.objective_after, &want->F_10_block_sweeps, 1, 1e-10, 0);
    test_close_d("golden u after 10 block sweeps", u, want->u_10_block_sweeps, n, 0, 1e-8);
    CHECK(r.sweeps == 10 && r.iterations == 0, "report counts sweeps");
    o.solver = RESCALE_UNIT_SWEEPS;
    r = solve(&m->net, o, u);
    test_close_d("golden F after 10 unit sweeps", &r.objective_after, &want->F_10_unit_sweeps, 1, 1e-10, 0);
    test_close_d("golden u after 10 unit sweeps", u, want->u_10_unit_sweeps, n, 0, 1e-8);
    CHECK(r.sweeps == 10 && r.iterations == 0, "report counts unit sweeps");
}

// Parts of the optimum: half of it, and the differences within groups.
static void check_golden_part(const GoldenMlp *want, mlp *m) {
    double u[64];
    const size_t n = (size_t)want->n_units;
    rescale_options o = dry();
    o.strength = 0.5;
    const rescale_report r = solve(&m->net, o, u);
    for (size_t h = 0; h < n; h++) u[h] *= 2;
    test_close_d("half of the optimum", u, want->u_optimum, n, 0, 1e-8);
    CHECK(r.objective_after > want->F_optimum && r.objective_after < want->F_at_zero,
          "half of the way lowers F, by less");
    o = dry();
    o.within = 1;
    solve(&m->net, o, u);
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
}

// Weights with biases that do not count.
static void check_golden_bias(const GoldenMlp *want, mlp *m) {
    double u[64];
    const size_t n = (size_t)want->n_units;
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
}

// The squared passes that give diag(G).
static void check_golden_squares(const GoldenMlp *want, mlp *m) {
    void *memory;
    rescale_report r;
    const rescale_options o = rescale_default_options();
    rsc_solver s = open_solver(&m->net, &o, &r, &memory);
    const int last = m->n_tensors - 1 - m->last_bias;
    double a_last[8], bias2[8] = {0}, d_first[8];
    const double one = 1;
    rsc_host_power_rows(m->tensor[last].data, (size_t)m->tensor[last].n_out, (size_t)m->tensor[last].n_in,
                         s.energy[last].in, a_last, 2);
    if (m->last_bias) rsc_host_power_rows(m->tensor[last + 1].data, (size_t)m->tensor[last].n_out, 1, &one, bias2, 2);
    for (int k = 0; k < m->tensor[last].n_out; k++) a_last[k] += bias2[k];
    rsc_host_power_cols(m->tensor[0].data, (size_t)m->tensor[0].n_out, (size_t)m->tensor[0].n_in, s.energy[0].out,
                        d_first, 2);
    test_close_d("golden squared forward output", a_last, want->a_last, (size_t)m->tensor[last].n_out, 1e-12, 0);
    test_close_d("golden squared backward at the input", d_first, want->d_first, (size_t)m->dims[0], 1e-12, 0);
    free(memory);
}

static void check_golden(const GoldenMlp *want) {
    mlp *m = golden_net(want);
    double u[64];
    const size_t n = (size_t)want->n_units;
    printf("golden %s\n", want->name);
    CHECK((int)m->p == want->p && m->units == want->n_units, "recorded size");
    const rescale_report r = solve(&m->net, dry(), u);
    test_close_d("golden F at 0", &r.objective_before, &want->F_at_zero, 1, 1e-10, 0);
    test_close_d("golden F at the optimum", &r.objective_after, &want->F_optimum, 1, 1e-10, 0);
    test_close_d("golden u at the optimum", u, want->u_optimum, n, 0, 1e-8);
    CHECK(r.converged && r.grad_inf <= r.grad_tolerance, "certificate");
    CHECK(r.parameters == want->p && r.units == want->n_units, "report counts units and parameters");
    check_golden_sweeps(want, m);
    check_golden_part(want, m);
    static const double factor[] = {1, 1.02, 50};
    for (int k = 0; k < 6; k++) check_bounded_trace(m, factor[k % 3], k / 3);
    check_golden_bias(want, m);
    check_golden_squares(want, m);
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
    const double *bn_mean = bn ? m->mean : NULL;
    const double *bn_rstd = bn ? rstd : NULL;
    RefNet net = ref_net_mlp(dims, n_layers, bias, last_bias, bn_mean, bn_rstd);
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
            for (int k = 0; k < t->n_in; k++)
                got[t->data - m->theta + j * t->n_in + k] = s.energy[i].out[j] * s.energy[i].in[k];
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
        static const char *const name[] = {"chain",     "rank one",    "full g", "full and rank one",
                                           "chain, CG", "rank one, CG"};
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
        if (o.general || (way == 2 && m->n_layers > 2 && !m->bn))
            CHECK(r.cg_steps > 0 || r.iterations == 0, "conjugate gradients ran");
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
static int check_certificate(const char *what, const int *dims, int n_layers, int init, double scale, int bias,
                             int verify) {
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
    } nets[] = {{"784-512x3-10", 3, 0, {784, 512, 10}},
                {"3072-500x3-10", 3, 0, {3072, 500, 10}},
                {"3072-500x5-10", 5, 0, {3072, 500, 10}},
                {"3072-500x8-10", 8, 0, {3072, 500, 10}},
                {"784-1000-100-30-100-1000-784", 0, 6, {784, 1000, 100, 30, 100, 1000, 784}},
                {"2048x5-10", 4, 0, {2048, 2048, 10}},
                {"2-32x5-2", 5, 0, {2, 32, 2}},
                {"20 hidden layers of 64", 20, 0, {64, 64, 64}},
                {"50x64", 50, 0, {64, 64, 64}},
                {"50x16", 50, 0, {16, 16, 16}}};
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
                    const int steps = check_certificate(nets[k].name, dims, n_layers, init, scales[scale], bias,
                                                        repeat == 0 && dims[1] < 600 && scale == 1);
                    const int deep = n_layers > 9;
                    most[deep] = steps > most[deep] ? steps : most[deep];
                    runs++;
                }
    }
    printf("Newton steps, most of %d runs: %d up to 8 hidden layers, %d for 20 and 50\n", runs, most[0], most[1]);
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
        static const char *const name[] = {"bounded u, Newton", "bounded u, CG", "bounded u, sweeps"};
        test_close_d(name[way], u, want, n, 0, 1e-6);
        ref_grad_F(&q.q, u, grad);
        int inside = 1, optimal = 1, at_bound = 0;
        for (size_t h = 0; h < n; h++) {
            const double edge = 2 * bound, slack = way == 2 ? 1e-4 : r.grad_tolerance;
            inside = inside && fabs(u[h]) <= edge;
            at_bound += fabs(u[h]) >= edge;
            const int low = u[h] <= -edge || grad[h] <= slack;   // the lower edge allows grad > 0
            const int high = u[h] >= edge || grad[h] >= -slack;  // the upper edge grad < 0
            optimal = optimal && low && high;
        }
        if (!CHECK(inside && optimal, "inside the box, and optimal there"))
            printf("    way %d bound %g inside %d\n", way, bound, inside);
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
            for (size_t k = 0; k < tensor_size(m->tensor + i) && m->tensor[i].role != RESCALE_BIAS; k++)
                sum += pow(m->tensor[i].data[k], 2);
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

// Nets as training leaves them: rows, columns and layers of any size, away from the optimum by what `spread` says.
// Powers of two end at or below F(0), below what rounding every lambda by itself gives, and no single step of one
// exponent, nor of all of a group, lowers F any further. F from the definition.
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
    CHECK(r.objective_after <= r.objective_before + slack && F <= r.objective_before + slack,
          "powers of two never raise F");
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
    printf("function, %d hidden layers of %d, init %d: relative difference %.1e, max |log lambda| %.2f\n", n_layers - 1,
           dims[1], init, d, r.max_abs_log_lambda);
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

// ENorm with a number of cycles, with a bound, and with a unit that nothing enters.
static void check_enorm_cycles(mlp *m, problem *q, const double *before, const double *cost) {
    const size_t n = (size_t)m->units;
    double *u = ref_doubles(n), *want = ref_doubles(n);
    rescale_options o = dry();
    o.method = RESCALE_ENORM;
    o.solver = RESCALE_SWEEPS;
    for (int cycles = 0; cycles < 4; cycles++) {
        o.sweeps = cycles;
        o.dry_run = 1;
        ref_enorm(&q->q, before, cost, want, -1, cycles);
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
    free(u);
    free(want);
}

static void check_enorm(int bn) {
    static const int dims[] = {6, 20, 15, 18, 4};
    mlp *m = mlp_new(dims, 4, 1, 1, bn);
    mlp_init(m, KAIMING_UNIFORM, 1);
    const size_t n = (size_t)m->units;
    double *cost = ref_doubles(m->p), *u = ref_doubles(n), *want = ref_doubles(n), *before = copy_of(m->theta, m->p);
    double *scaled = ref_doubles(m->p), x[BATCH * 6], y[2][BATCH * 4];
    fill(x, BATCH * 6, 0, 1);
    mlp_forward(m, x, BATCH, 0, y[0]);
    for (int i = 0; i < m->n_tensors; i++) {
        const rescale_tensor *t = m->tensor + i;
        for (size_t k = 0; k < tensor_size(t); k++)
            cost[t->data - m->theta + (ptrdiff_t)k] = t->role != RESCALE_BIAS;
    }
    problem q = problem_of(&m->net, NULL);
    ref_enorm(&q.q, before, cost, want, 1e-13, 100000);
    rescale_options o = rescale_default_options();
    o.method = RESCALE_ENORM;
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
    CHECK(r.converged && r.objective_after < r.objective_before, "ENorm converged");
    // exp(2 u) = out / in has to hold at once for all units: with the new weights, out = in.
    double *in = ref_doubles(n), *out = ref_doubles(n);
    for (size_t i = 0; i < m->p; i++) {
        const double e = cost[i] > 0 ? m->theta[i] * m->theta[i] : 0;
        if (q.enter[i] >= 0) in[q.enter[i]] += e;  // cost only tells what counts
        if (q.leave[i] >= 0) out[q.leave[i]] += e;
    }
    test_close_d("ENorm fixed point", out, in, n, 1e-7, 0);
    memcpy(m->theta, before, m->p * sizeof *before);  // from the same start
    if (!bn) check_enorm_cycles(m, &q, before, cost);
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
// 12. Invariances

static void check_invariances(int bn, int round) {
    static const int dims[] = {7, 12, 9, 14, 4};
    mlp *m = mlp_new(dims, 4, round & 1, round >> 1 & 1, bn);
    mlp_init(m, round & 4 ? KAIMING_NORMAL : KAIMING_UNIFORM, exp(test_random()));
    const size_t n = (size_t)m->units;
    double *u = ref_doubles(n), *u_first = ref_doubles(n), *random = ref_doubles(n), *start = copy_of(m->theta, m->p),
           *once = ref_doubles(m->p);
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
    static const double bounds[] = {0.01, 0.1, 0.3, 1, 1e6};
    for (int k = 0; k < 5; k++)
        for (int round = 0; round < 3; round++) check_bound(narrow, 4, round == 1, round == 2 ? 3 : 1, bounds[k]);
    static const double pow2_bound[] = {0, 1.0, 0.5};
    for (int k = 0; k < 12; k++)
        check_pow2(k & 1, k & 2 ? RESCALE_ENORM : RESCALE_PATHCOND, pow2_bound[k / 4]);
    int above = 0;
    for (int round = 0; round < 60; round++) above += check_pow2_descends(round);
    printf("powers of two: rounding every lambda by itself would have raised F in %d of 60 nets\n", above);
    CHECK(above > 0, "there are nets where rounding raises F");
    static const int eight[] = {100, 500, 500, 500, 500, 500, 500, 500, 500, 10};
    for (int k = 0; k < 4; k++) check_function(eight, 9, k & 1, k & 2 ? 0.5 : 1, k == 0);
    check_function(narrow, 4, KAIMING_UNIFORM, 1, 1);
    check_gradient_scaling();
    for (int k = 0; k < 6; k++) check_enorm(k & 1);
    for (int round = 0; round < 8; round++) {
        check_invariances(0, round);
        check_invariances(1, round);
    }
    return test_summary();
}
