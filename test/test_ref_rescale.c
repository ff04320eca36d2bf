// test_ref_rescale.c -- self-checks of ref_rescale.h, the reference that rescale.cuh is tested against.
//
//     cc -O2 -std=c11 -D_GNU_SOURCE -Wall -Wextra test/test_ref_rescale.c -o build/test_ref_rescale -lm
//
// Independent routes to the same number: path enumeration against squared passes, golden values, finite differences,
// sweeps against Newton, perturbed minima, and the network's function before and after.
#include "golden_mlp.h"
#include "ref_rescale.h"
#include "test.h"

static void fill(double *x, int n, double centre, double spread) {
    for (int i = 0; i < n; i++) x[i] = centre + spread * test_random();
}

// ---------------------------------------------------------------------------------------------------------------
// Networks that the checks below run on

typedef struct {
    const char *name;
    RefNet net;
    double *theta;
    int n_sources;
} Case;

static Case make_case(const char *name, RefNet net) {
    Case c = {name, net, ref_doubles((size_t)net.n_params), 0};
    fill(c.theta, net.n_params, 0, 0.9);
    for (int n = 0; n < net.n_nodes; n++) c.n_sources += net.kind[n] == REF_SOURCE;
    return c;
}

static Case mlp_case(const char *name, const int *dims, int n_layers, int bias, int last_bias, int bn) {
    double mean[64], rstd[64];
    fill(mean, 64, 0.2, 0.7);
    fill(rstd, 64, 1.1, 0.6);
    const RefNet net = bn ? ref_net_mlp(dims, n_layers, bias, last_bias, mean, rstd)
                          : ref_net_mlp(dims, n_layers, bias, last_bias, NULL, NULL);
    return make_case(name, net);
}

// A one-dimensional convolution (3 taps, 6 positions, no padding, 3 channels, bias), ReLU, average pooling over pairs,
// and a linear layer times 0.7: every convolution weight lies on several edges, every channel owns two columns behind
// the pool, and a fixed factor shares an edge with a parameter.
static RefNet conv_net(void) {
    RefNet net;
    memset(&net, 0, sizeof net);
    enum { IN = 6, TAPS = 3, CHANNELS = 3, POSITIONS = IN - TAPS + 1, POOLED = POSITIONS / 2 };
    int conv[CHANNELS][POSITIONS], pool[CHANNELS][POOLED];
    net.n_units = CHANNELS;
    for (int i = 0; i < IN; i++) ref_net_node(&net, REF_SOURCE);
    const int one = ref_net_node(&net, REF_SOURCE);
    for (int c = 0; c < CHANNELS; c++)
        for (int t = 0; t < POSITIONS; t++) conv[c][t] = ref_net_node(&net, REF_RELU);
    for (int c = 0; c < CHANNELS; c++) {
        for (int k = 0; k < TAPS; k++) {
            const int w = ref_net_param(&net, c, -1);
            for (int t = 0; t < POSITIONS; t++) ref_net_edge(&net, t + k, conv[c][t], w, 1);
        }
        const int b = ref_net_param(&net, c, -1);
        for (int t = 0; t < POSITIONS; t++) ref_net_edge(&net, one, conv[c][t], b, 1);
    }
    for (int c = 0; c < CHANNELS; c++)
        for (int t = 0; t < POOLED; t++) {
            pool[c][t] = ref_net_node(&net, REF_HIDDEN);
            ref_net_edge(&net, conv[c][2 * t], pool[c][t], -1, 0.5);
            ref_net_edge(&net, conv[c][2 * t + 1], pool[c][t], -1, 0.5);
        }
    for (int o = 0; o < 2; o++) {
        const int out = ref_net_node(&net, REF_OUTPUT);
        for (int c = 0; c < CHANNELS; c++)
            for (int t = 0; t < POOLED; t++) ref_net_edge(&net, pool[c][t], out, ref_net_param(&net, -1, c), 0.7);
    }
    return net;
}

// ---------------------------------------------------------------------------------------------------------------
// Checks

// diag(G), u, F and the outer vectors against the golden values.
static void check_golden(const GoldenMlp *want) {
    char name[128];
    const int p = ref_mlp_param_count(want->dims, want->n_layers, want->bias, want->last_bias), n = want->n_units;
    double theta[256], g[256], u[64], grad[64];
    RefNet net = ref_net_mlp(want->dims, want->n_layers, want->bias, want->last_bias, NULL, NULL);
    CHECK(p == want->p && net.n_params == p && net.n_units == n, "golden net has the recorded size");
    ref_golden_weights(want->dims, want->n_layers, want->bias, want->last_bias, theta);
    ref_net_diag_g(&net, theta, g);
    const RefProblem q = ref_problem(&net, g);

    for (int h = 0; h < n; h++) u[h] = 0;
    double F = ref_F(&q, u);
    snprintf(name, sizeof name, "%s F at 0", want->name);
    test_close_d(name, &F, &want->F_at_zero, 1, 1e-13, 0);

    const double certificate = ref_optimum(&q, u);
    CHECK(certificate < 1e-11 && ref_grad_F(&q, u, grad) < 1e-11, "gradient vanishes at the optimum");
    F = ref_F(&q, u);
    snprintf(name, sizeof name, "%s F at the optimum", want->name);
    test_close_d(name, &F, &want->F_optimum, 1, 1e-13, 0);
    snprintf(name, sizeof name, "%s u at the optimum", want->name);
    test_close_d(name, u, want->u_optimum, (size_t)n, 0, 1e-11);

    for (int h = 0; h < n; h++) u[h] = 0;
    CHECK(ref_unit_sweeps(&q, u, 10, 0, 0) == 10, "ten sweeps without a tolerance");
    F = ref_F(&q, u);
    snprintf(name, sizeof name, "%s F after 10 unit sweeps", want->name);
    test_close_d(name, &F, &want->F_10_unit_sweeps, 1, 1e-13, 0);
    snprintf(name, sizeof name, "%s u after 10 unit sweeps", want->name);
    test_close_d(name, u, want->u_10_unit_sweeps, (size_t)n, 0, 1e-11);

    int first_unit[8] = {0};
    for (int l = 0; l + 1 < want->n_layers; l++) first_unit[l + 1] = first_unit[l] + want->dims[l + 1];
    for (int h = 0; h < n; h++) u[h] = 0;
    ref_block_sweeps(&q, u, first_unit, want->n_layers - 1, 10);
    F = ref_F(&q, u);
    snprintf(name, sizeof name, "%s F after 10 block sweeps", want->name);
    test_close_d(name, &F, &want->F_10_block_sweeps, 1, 1e-13, 0);
    snprintf(name, sizeof name, "%s u after 10 block sweeps", want->name);
    test_close_d(name, u, want->u_10_block_sweeps, (size_t)n, 0, 1e-10);

    RefMlpTensors tensors = ref_mlp_tensors(want->dims, want->n_layers, want->bias, want->last_bias, theta);
    RefMlpDiagG passes = ref_mlp_diag_g(&tensors);
    snprintf(name, sizeof name, "%s squared forward output", want->name);
    test_close_d(name, passes.a[want->n_layers], want->a_last, (size_t)want->dims[want->n_layers], 1e-13, 0);
    snprintf(name, sizeof name, "%s squared backward at the input", want->name);
    test_close_d(name, passes.d_first, want->d_first, (size_t)want->dims[0], 1e-13, 0);
    ref_mlp_diag_g_free(&passes);
    ref_net_free(&net);
}

// diag(G): enumeration equals squared passes; G transforms as D G D under rescaling with the paths' Phi unchanged.
static void check_diag_g(const Case *c) {
    const size_t p = (size_t)c->net.n_params;
    double *by_paths = ref_doubles(p), *by_passes = ref_doubles(p), *scaled = ref_doubles(p), *want = ref_doubles(p);
    double *u = ref_doubles((size_t)c->net.n_units);
    RefPaths paths = ref_net_paths(&c->net, c->theta);
    ref_paths_diag_g(&paths, by_paths);
    ref_net_diag_g(&c->net, c->theta, by_passes);
    test_close_d(c->name, by_passes, by_paths, p, 1e-12, 1e-300);
    CHECK(ref_net_walk_diag_g(&c->net, c->theta, scaled) == paths.n_paths, "the walk meets every path");
    test_close_d("diag(G) without keeping the paths", scaled, by_paths, p, 1e-13, 1e-300);

    const RefProblem q = ref_problem(&c->net, by_paths);
    fill(u, c->net.n_units, 0, 1.5);
    ref_apply(&q, u, c->theta, scaled);
    RefPaths after = ref_net_paths(&c->net, scaled);
    CHECK(after.n_paths == paths.n_paths, "rescaling keeps the number of paths");
    test_close_d("Phi after rescaling", after.phi, paths.phi, (size_t)paths.n_paths, 1e-11, 1e-300);
    for (size_t i = 0; i < p; i++) want[i] = by_paths[i] * exp(ref_bu(&q, u, (int)i));
    ref_paths_diag_g(&after, by_passes);
    test_close_d("g exp(Bu) after rescaling", by_passes, want, p, 1e-11, 1e-300);

    if (p < 120) {
        double *G = ref_doubles(p * p), *G_after = ref_doubles(p * p);
        ref_paths_full_g(&paths, G);
        ref_paths_full_g(&after, G_after);
        for (size_t i = 0; i < p; i++) by_passes[i] = G[i * p + i];
        test_close_d("diagonal of the full G", by_passes, by_paths, p, 1e-13, 0);
        double scale = 0;
        for (size_t i = 0; i < p; i++)
            for (size_t j = 0; j < p; j++) {
                G[i * p + j] *= exp((ref_bu(&q, u, (int)i) + ref_bu(&q, u, (int)j)) / 2);
                if (fabs(G[i * p + j]) > scale) scale = fabs(G[i * p + j]);
            }
        test_close_d("full G after rescaling", G_after, G, p * p, 1e-10, 1e-12 * scale);
        free(G);
        free(G_after);
    }
    ref_paths_free(&paths);
    ref_paths_free(&after);
    free(by_paths);
    free(by_passes);
    free(scaled);
    free(want);
    free(u);
}

// The network computes the same function before and after a random rescaling.
static void check_symmetry(const Case *c) {
    const size_t p = (size_t)c->net.n_params, n = (size_t)c->net.n_nodes;
    double *u = ref_doubles((size_t)c->net.n_units), *scaled = ref_doubles(p), *g = ref_doubles(p);
    double *before = ref_doubles(n), *after = ref_doubles(n), x[16];
    const RefProblem q = ref_problem(&c->net, g);
    for (int round = 0; round < 5; round++) {
        fill(u, c->net.n_units, 0, 2);
        fill(x, 16, 0, 2);
        x[c->n_sources - 1] = 1;
        ref_apply(&q, u, c->theta, scaled);
        ref_net_forward(&c->net, c->theta, x, before);
        ref_net_forward(&c->net, scaled, x, after);
        size_t outputs = 0;
        for (size_t i = 0; i < n; i++)
            if (c->net.kind[i] == REF_OUTPUT) {
                before[outputs] = before[i];
                after[outputs++] = after[i];
            }
        test_close_d("function after rescaling", after, before, outputs, 1e-11, 1e-12);
    }
    free(u);
    free(scaled);
    free(g);
    free(before);
    free(after);
}

// Sum of Phi over all paths equals the sum of the outputs for input 1 when no ReLU clips (all parameters positive).
static void check_phi_sum(const int *dims, int n_layers) {
    RefNet net = ref_net_mlp(dims, n_layers, 1, 1, NULL, NULL);
    double *theta = ref_doubles((size_t)net.n_params), *value = ref_doubles((size_t)net.n_nodes), x[16];
    fill(theta, net.n_params, 0.5, 0.4);
    for (int i = 0; i < 16; i++) x[i] = 1;
    RefPaths paths = ref_net_paths(&net, theta);
    int count = 0, onward = 1; // paths from the inputs, plus from every layer's biases
    for (int l = n_layers; l >= 0; l--) {
        onward *= dims[l];
        if (l > 0) count += onward;
    }
    CHECK(paths.n_paths == count + onward, "number of paths");
    double sum = 0, outputs = 0;
    for (int i = 0; i < paths.n_paths; i++) sum += paths.phi[i];
    ref_net_forward(&net, theta, x, value);
    for (int n = 0; n < net.n_nodes; n++)
        if (net.kind[n] == REF_OUTPUT) outputs += value[n];
    test_close_d("sum of Phi", &sum, &outputs, 1, 1e-12, 0);
    ref_paths_free(&paths);
    ref_net_free(&net);
    free(theta);
    free(value);
}

// The log-det divergence between the rescaled diag(G) and alpha * identity, at its best alpha.
static double divergence(const RefProblem *q, const double *u) {
    double S = 0, sum = 0;
    for (int i = 0; i < q->n_params; i++) S += q->g[i] * exp(ref_bu(q, u, i));
    const double alpha = S / q->n_params;
    for (int i = 0; i < q->n_params; i++) {
        const double ratio = q->g[i] * exp(ref_bu(q, u, i)) / alpha;
        sum += ratio - log(ratio) - 1;
    }
    return sum;
}

// F: gradient and Hessian by finite differences, convexity along random segments, meaning as a divergence.
static void check_objective(const Case *c) {
    const size_t n = (size_t)c->net.n_units, p = (size_t)c->net.n_params;
    double *g = ref_doubles(p), *u = ref_doubles(n), *v = ref_doubles(n), *mid = ref_doubles(n);
    double *grad = ref_doubles(n), *above = ref_doubles(n), *below = ref_doubles(n), *numeric = ref_doubles(n);
    double *H = ref_doubles(n * n);
    ref_net_diag_g(&c->net, c->theta, g);
    const RefProblem q = ref_problem(&c->net, g);
    fill(u, (int)n, 0, 1);
    ref_grad_F(&q, u, grad);
    ref_hess_F(&q, u, H);
    const double e = 1e-5;
    for (size_t h = 0; h < n; h++) {
        const double centre = u[h];
        u[h] = centre + e;
        numeric[h] = ref_F(&q, u);
        ref_grad_F(&q, u, above);
        u[h] = centre - e;
        numeric[h] = (numeric[h] - ref_F(&q, u)) / (2 * e);
        ref_grad_F(&q, u, below);
        u[h] = centre;
        for (size_t k = 0; k < n; k++) above[k] = (above[k] - below[k]) / (2 * e);
        test_close_d("Hessian column", above, &H[h * n], n, 1e-6, 1e-7);
    }
    test_close_d("gradient of F", numeric, grad, n, 1e-6, 1e-7);
    const double D = divergence(&q, u), F = ref_F(&q, u);
    for (int round = 0; round < 20; round++) {
        fill(v, (int)n, 0, 3);
        for (size_t h = 0; h < n; h++) mid[h] = (u[h] + v[h]) / 2;
        const double Fv = ref_F(&q, v);
        CHECK(ref_F(&q, mid) < (F + Fv) / 2, "F is strictly convex on a segment");
        const double difference = Fv - F, want = divergence(&q, v) - D;
        test_close_d("F is the divergence up to a constant", &difference, &want, 1, 1e-9, 1e-9);
    }
    free(g);
    free(u);
    free(v);
    free(mid);
    free(grad);
    free(above);
    free(below);
    free(numeric);
    free(H);
}

// Newton, unit sweeps to convergence and block sweeps find the same point; no perturbation improves on it.
static void check_solvers(const Case *c) {
    const size_t n = (size_t)c->net.n_units;
    double *g = ref_doubles((size_t)c->net.n_params), *u = ref_doubles(n), *v = ref_doubles(n), *grad = ref_doubles(n);
    ref_net_diag_g(&c->net, c->theta, g);
    const RefProblem q = ref_problem(&c->net, g);
    CHECK(ref_optimum(&q, u) < 1e-10, "Newton reaches a vanishing gradient");
    const double F = ref_F(&q, u);
    const int sweeps = ref_unit_sweeps(&q, v, 20000, 1e-14 * (double)n, 0);
    CHECK(sweeps < 20000, "sweeps converge");
    test_close_d("sweeps against Newton", v, u, n, 0, 1e-8);
    for (int round = 0; round < 20; round++) {
        for (size_t h = 0; h < n; h++) v[h] = u[h] + 1e-2 * test_random();
        CHECK(ref_F(&q, v) > F, "a perturbed optimum is worse");
    }

    memset(v, 0, n * sizeof *v);
    const int published = ref_unit_sweeps(&q, v, 10, 1e-2, 0);
    memset(v, 0, n * sizeof *v);
    ref_unit_sweeps(&q, v, published - 1, 0, 0);
    memcpy(grad, v, n * sizeof *v);
    ref_unit_sweeps(&q, v, 1, 0, 0);
    double change = 0;
    for (size_t h = 0; h < n; h++) change += fabs(v[h] - grad[h]);
    CHECK(change < 1e-2 || published == 10, "early stop at a total change of 1e-2");

    memset(v, 0, n * sizeof *v);
    ref_unit_sweeps(&q, v, 20000, 1e-14 * (double)n, 0.2);
    ref_grad_F(&q, v, grad);
    int conditions = 1; // optimality within the box: inside, gradient 0; at the bound, F falls only outwards
    for (size_t h = 0; h < n; h++) {
        if (fabs(v[h]) > 0.4 + 1e-15) conditions = 0;
        if (fabs(v[h]) < 0.4 - 1e-9 ? fabs(grad[h]) > 1e-8 : grad[h] * v[h] > 1e-8) conditions = 0;
    }
    CHECK(conditions, "bounded sweeps end at the optimum within the bound");
    free(g);
    free(u);
    free(v);
    free(grad);
}

// Dead units are pinned: zero outgoing weights, and zero incoming weights and bias.
static void check_pinned(void) {
    const int dims[] = {3, 4, 5, 2};
    RefNet net = ref_net_mlp(dims, 3, 1, 1, NULL, NULL);
    double *theta = ref_doubles((size_t)net.n_params), *g = ref_doubles((size_t)net.n_params), u[9], v[9] = {0};
    unsigned char pinned[9];
    fill(theta, net.n_params, 0, 1);
    for (int i = 0; i < net.n_params; i++) // unit 1: nothing comes in; unit 6: nothing goes out
        if (net.enter[i] == 1 || net.leave[i] == 6) theta[i] = 0;
    ref_net_diag_g(&net, theta, g);
    const RefProblem q = ref_problem(&net, g);
    CHECK(ref_pinned(&q, pinned) == 2 && pinned[1] && pinned[6], "the two dead units are pinned");
    CHECK(ref_optimum(&q, u) < 1e-10 && u[1] == 0 && u[6] == 0, "the others reach their optimum");
    ref_unit_sweeps(&q, v, 20000, 1e-13, 0);
    test_close_d("pinned: sweeps against Newton", v, u, 9, 0, 1e-8);
    free(theta);
    free(g);
    ref_net_free(&net);
}

// Reference weights: g_i / r_i moves the optimum; a common factor does not.
static void check_reference_weights(const Case *c) {
    const size_t n = (size_t)c->net.n_units;
    double *g = ref_doubles((size_t)c->net.n_params), *u = ref_doubles(n), *v = ref_doubles(n);
    ref_net_diag_g(&c->net, c->theta, g);
    const RefProblem q = ref_problem(&c->net, g);
    ref_optimum(&q, u);
    for (int i = 0; i < c->net.n_params; i++) g[i] /= 7;
    ref_optimum(&q, v);
    test_close_d("a common reference weight", v, u, n, 0, 1e-10);
    for (int i = 0; i < c->net.n_params; i++) g[i] /= c->net.leave[i] >= 0 ? 1 : 5;
    ref_optimum(&q, v);
    double moved = 0;
    for (size_t h = 0; h < n; h++) moved = fmax(moved, fabs(v[h] - u[h]));
    CHECK(moved > 1e-3, "unequal reference weights move the optimum");
    free(g);
    free(u);
    free(v);
}

// ENorm: converged, balanced, a minimum under perturbation.
static void check_enorm(const Case *c) {
    const size_t n = (size_t)c->net.n_units;
    double *cost = ref_doubles((size_t)c->net.n_params), *u = ref_doubles(n), *v = ref_doubles(n);
    const RefProblem q = ref_problem(&c->net, NULL);
    for (int i = 0; i < c->net.n_params; i++) cost[i] = 1;
    for (int e = 0; e < c->net.n_edges; e++) // biases, the parameters on edges from the constant, do not count
        if (c->net.edges[e].from == c->n_sources - 1 && c->net.edges[e].param >= 0) cost[c->net.edges[e].param] = 0;
    const int cycles = ref_enorm(&q, c->theta, cost, u, 1e-14, 100000);
    CHECK(cycles < 100000, "ENorm converges");
    const double best = ref_enorm_cost(&q, c->theta, cost, u);
    CHECK(best < ref_enorm_cost(&q, c->theta, cost, v), "ENorm lowers the sum of squares");
    for (int round = 0; round < 50; round++) {
        for (size_t h = 0; h < n; h++) v[h] = u[h] + (round % 2 ? 1e-3 : 0.5) * test_random();
        CHECK(ref_enorm_cost(&q, c->theta, cost, v) > best, "a perturbed ENorm minimum is worse");
    }
    double worst = 0;
    for (size_t h = 0; h < n; h++) { // at the minimum every unit is balanced
        double in = 0, out = 0;
        for (int i = 0; i < c->net.n_params; i++) {
            const double energy = cost[i] * c->theta[i] * c->theta[i] * exp(-ref_bu(&q, u, i));
            if (c->net.enter[i] == (int)h) in += energy;
            if (c->net.leave[i] == (int)h) out += energy;
        }
        worst = fmax(worst, fabs(in - out) / (in + out));
    }
    CHECK(worst < 1e-11, "sums of squares that enter and leave a unit are equal");
    free(cost);
    free(u);
    free(v);
}

// The loop version for MLPs with BatchNorm equals the graph.
static void check_mlp_loops(int with_bn) {
    const int dims[] = {3, 5, 4, 2};
    double mean[9], rstd[9];
    fill(mean, 9, 0.3, 0.5);
    fill(rstd, 9, 1.0, 0.5);
    RefNet net = with_bn ? ref_net_mlp(dims, 3, 1, 1, mean, rstd) : ref_net_mlp(dims, 3, 1, 1, NULL, NULL);
    double *theta = ref_doubles((size_t)net.n_params), *g = ref_doubles((size_t)net.n_params);
    double *loops = ref_doubles((size_t)net.n_params);
    fill(theta, net.n_params, 0.1, 1);
    RefMlpTensors m;
    memset(&m, 0, sizeof m);
    m.n_layers = 3;
    memcpy(m.dims, dims, sizeof dims);
    const double *next = theta;
    for (int l = 0, unit = 0; l < 3; unit += dims[++l]) {
        m.w[l] = next;
        m.b[l] = next += dims[l] * dims[l + 1];
        next += dims[l + 1];
        if (!with_bn || l == 2) continue;
        m.gamma[l] = next;
        m.beta[l] = next += dims[l + 1];
        next += dims[l + 1];
        m.mean[l] = mean + unit;
        m.rstd[l] = rstd + unit;
    }
    CHECK(next == theta + net.n_params, "both descriptions have the same parameters");
    RefMlpDiagG r = ref_mlp_diag_g(&m);
    size_t k = 0;
    for (int l = 0; l < 3; l++) {
        for (int o = 0; o < dims[l + 1]; o++)
            for (int i = 0; i < dims[l]; i++) loops[k++] = r.d[l][o] * r.a[l][i];
        for (int o = 0; o < dims[l + 1]; o++) loops[k++] = r.d[l][o];
        if (!m.gamma[l]) continue;
        for (int o = 0; o < dims[l + 1]; o++) loops[k++] = r.g_gamma[l][o];
        for (int o = 0; o < dims[l + 1]; o++) loops[k++] = r.g_beta[l][o];
    }
    RefPaths paths = ref_net_paths(&net, theta);
    ref_paths_diag_g(&paths, g);
    test_close_d(with_bn ? "MLP loops with BatchNorm" : "MLP loops", loops, g, (size_t)net.n_params, 1e-12, 0);
    ref_paths_free(&paths);
    ref_mlp_diag_g_free(&r);
    ref_net_free(&net);
    free(theta);
    free(g);
    free(loops);
}

int main(void) {
    for (int i = 0; i < GOLDEN_MLP_COUNT; i++) check_golden(&golden_mlp[i]);

    const int small[] = {3, 4, 2}, mid[] = {3, 5, 4, 2}, wide[] = {6, 6, 6, 6}, deep[] = {4, 3, 6, 5, 3};
    Case cases[] = {
        mlp_case("2 layers, biases", small, 2, 1, 1, 0),
        mlp_case("2 layers, no bias", small, 2, 0, 0, 0),
        mlp_case("3 layers, no last bias", mid, 3, 1, 0, 0),
        mlp_case("3 layers of 6, biases", wide, 3, 1, 1, 0),
        mlp_case("4 layers, biases", deep, 4, 1, 1, 0),
        mlp_case("4 layers, no bias", deep, 4, 0, 0, 0),
        mlp_case("3 layers, BatchNorm", mid, 3, 1, 1, 1),
        mlp_case("4 layers, BatchNorm, no biases", deep, 4, 0, 1, 1),
        make_case("residual stream", ref_net_residual(2, 3, 3, 2)),
        make_case("convolution, average pooling", conv_net()),
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_diag_g(&cases[i]);
        check_symmetry(&cases[i]);
        check_objective(&cases[i]);
        check_solvers(&cases[i]);
        check_reference_weights(&cases[i]);
        check_enorm(&cases[i]);
        ref_net_free(&cases[i].net);
        free(cases[i].theta);
    }
    check_phi_sum(mid, 3);
    check_phi_sum(deep, 4);
    check_mlp_loops(0);
    check_mlp_loops(1);
    check_pinned();
    return test_summary();
}
