// test_rescale_net.c -- rescale.cuh in double precision: special cases, descriptions at random, errors.
//
//     cc -O2 -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wpedantic -fopenmp -I. -Itest test/test_rescale_net.c -lm
//
// Numbered sections continue the list of test_rescale.c.
#include "rescale_mlp.h"

// ---------------------------------------------------------------------------------------------------------------
// 6. Special cases

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
    if (!CHECK(r.pinned_units == pinned, "number of pinned units"))
        printf("    %s: %d, not %d\n", name, r.pinned_units, pinned);
    CHECK(r.converged, "certificate");
    ref_apply(&q.q, want, before, scaled);
    test_close_d(name, m->theta, scaled, m->p, 1e-7, 1e-300);
    for (int training = 0; training < 2; training++) {
        double *after = y + (size_t)(2 + training) * n_y;
        mlp_forward(m, x, BATCH, training, after);
        if (!CHECK(relative_difference(after, y + (size_t)training * n_y, n_y) < 1e-12, "the function is unchanged"))
            printf("    %s, %s mode: %g\n", name, training ? "training" : "evaluation",
                   relative_difference(after, y + (size_t)training * n_y, n_y));
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
}

static void check_dead_batchnorm(void) {
    mlp *m = small_mlp(1);
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
}

static void check_no_hidden_units(void) {
    static const int one[] = {4, 2};
    mlp *m = mlp_new(one, 1, 1, 1, 0);
    mlp_init(m, KAIMING_NORMAL, 1);
    double *before = copy_of(m->theta, m->p);
    const rescale_report r = solve(&m->net, rescale_default_options(), NULL);
    CHECK(r.units == 0 && r.converged && r.tensors_touched == 0 && same_bits(before, m->theta, m->p),
          "a net without hidden units");
    free(before);
    mlp_free(m);
}

// An error that must come with this status, name `name`, and leave all parameters alone bit for bit.
static void expect_error(const char *what, const rescale_net *net, const rescale_options *o, int status,
                         const char *name, const double *theta, size_t p) {
    double *before = copy_of(theta, p);
    rescale_report r;
    const int got = rescale_run(net, o, &r);
    const int ok =
        got == status && r.status == status && strstr(r.message, name) && !strchr(r.message, '\n') && r.message[0];
    if (!CHECK(ok, what)) printf("    %s: status %d, '%s'\n", what, got, r.message);
    CHECK(same_bits(before, theta, p), "an error changes nothing");
    free(before);
}

static void check_non_finite(void) {
    static const double bad[] = {NAN, INFINITY, -INFINITY};
    mlp *m = small_mlp(1);
    const rescale_options enorm = {.method = RESCALE_ENORM, .tolerance = 1e-10, .max_iterations = 100};
    for (int i = 0; i < m->n_tensors; i++)
        for (int k = 0; k < 3; k++) {
            const size_t at = (size_t)random_int(0, (int)tensor_size(m->tensor + i) - 1);
            const double keep = m->tensor[i].data[at];
            m->tensor[i].data[at] = bad[k];
            expect_error("non-finite parameter", &m->net, NULL, RESCALE_ERROR_NON_FINITE, m->tensor[i].name, m->theta,
                         m->p);
            expect_error("non-finite parameter, ENorm", &m->net, &enorm, RESCALE_ERROR_NON_FINITE, m->tensor[i].name,
                         m->theta, m->p);
            m->tensor[i].data[at] = keep;
            double *moment = ref_doubles(tensor_size(m->tensor + i));
            moment[at] = bad[k];
            if (k == 0) m->tensor[i].moment1 = moment;
            else m->tensor[i].moment2 = moment;
            expect_error("non-finite optimizer state", &m->net, NULL, RESCALE_ERROR_NON_FINITE, m->tensor[i].name,
                         m->theta, m->p);
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
    CHECK(a.parameters == b.parameters + 3 && fabs(a.objective_after - b.objective_after) > 1,
          "the output bias counts");
    check_case("with output bias", with, 0);
    check_case("without output bias", without, 0);
    CHECK(same_bits(bias, with->tensor[3].data, 3), "the output bias is not scaled");
    mlp_free(with);
    mlp_free(without);
}

// A residual stream: x -> s = relu(W0 x + b0); two blocks s = relu(s + W2 relu(W1 s + b1) + b2); y = W3 s + b3. One
// group for the stream. Compared with the graph of scalar units, path by path, and as a function.
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
    const rescale_group group[] = {rescale_units("stream", WIDTH, RESCALE_RELU),
                                   rescale_units("block1", HIDDEN, RESCALE_RELU),
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

enum { RANDOM_TENSORS = 24 };

// Tensors for groups at random. Returns how many.
static int random_tensors(int round, const rescale_group *group, int n_groups, rescale_tensor *t) {
    const int self_loop = round % 4 == 3;
    int n_tensors = 0;
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
    return n_tensors;
}

// Fills in names, data, diag(G) (g over all parameters, vectors for products) and references.
static void random_diag_g(int round, rescale_tensor *t, int n_tensors, char (*name)[16], double *theta, double *g,
                          double *each, double *vectors) {
    double *v = vectors;
    size_t at = 0;
    for (int i = 0; i < n_tensors; i++) {
        const size_t columns = (size_t)t[i].n_in * (size_t)t[i].kernel;
        const int rank_one = round % 5 == 0 || test_random() < 0;
        snprintf(name[i], sizeof name[i], "t%d", i);
        t[i].name = name[i];
        t[i].data = theta + at;
        for (size_t j = 0; j < tensor_size(t + i); j++)
            if (rank_one) g[at + j] = v[j / columns] * v[(size_t)t[i].n_out + j % columns];
            else g[at + j] = test_random() < -0.8 ? 0 : exp(3 * test_random());
        if (rank_one) {
            t[i].g_out = v;
            t[i].g_in = v + t[i].n_out;
        } else t[i].g = g + at;
        if (test_random() < -0.5) t[i].reference = exp(test_random());
        if (round % 5 && test_random() < -0.5) t[i].reference_each = each + at;
        v += (size_t)t[i].n_out + columns;
        at += tensor_size(t + i);
    }
}

// Apply did the same to every parameter, counted or not.
static void check_applied(const rescale_net *net, const double *u, const double *before, const double *theta,
                          size_t p) {
    const rescale_tensor *t = net->tensor;
    int first[5] = {0};
    for (int k = 0; k < net->n_groups; k++) first[k + 1] = first[k] + net->group[k].n;
    double *scaled = ref_doubles(p);
    size_t at = 0;
    for (int i = 0; i < net->n_tensors; i++) {
        const size_t columns = (size_t)t[i].n_in * (size_t)t[i].kernel;
        for (size_t j = 0; j < tensor_size(t + i); j++, at++) {
            double bu = 0;
            const int row = (int)(j / columns), column = (int)(j % columns) / t[i].kernel;
            const int row_sign = t[i].flags & RESCALE_ROWS_LEAVE ? 1 : -1;
            const int column_sign = t[i].flags & RESCALE_COLS_ENTER ? -1 : 1;
            if (t[i].enters >= 0) bu += row_sign * u[first[t[i].enters] + row];
            if (t[i].leaves >= 0) bu += column_sign * u[first[t[i].leaves] + column];
            scaled[at] = before[at] * exp(-bu / 2);
        }
    }
    test_close_d("random description, parameters", theta, scaled, p, 1e-13, 0);
    free(scaled);
}

// Descriptions at random: groups in any order, kernels, one- and two-sided tensors, tensors from a group to itself,
// rows that leave, columns that enter, uncounted tensors, references, a bound. u from the definition, parameter by
// parameter.
static void check_random_description(int round) {
    const int n_groups = random_int(1, 4), with_bound = round % 3 == 1;
    rescale_group group[4];
    rescale_tensor t[RANDOM_TENSORS];
    char name[RANDOM_TENSORS][16];
    for (int k = 0; k < n_groups; k++) group[k] = rescale_units("group", random_int(1, 6), RESCALE_RELU);
    const int n_tensors = random_tensors(round, group, n_groups, t);
    size_t p = 0, sides = 0;
    int units = 0;
    for (int i = 0; i < n_tensors; i++) {
        p += tensor_size(t + i);
        sides += (size_t)(t[i].n_out + t[i].n_in * t[i].kernel);
    }
    for (int k = 0; k < n_groups; k++) units += group[k].n;
    double *theta = ref_doubles(p), *g = ref_doubles(p), *each = ref_doubles(p), *vectors = ref_doubles(sides);
    double *u = ref_doubles((size_t)units), *want = ref_doubles((size_t)units), *before;
    fill(theta, p, 0, 1);
    for (size_t i = 0; i < p; i++) each[i] = exp(test_random());
    for (size_t i = 0; i < sides; i++) vectors[i] = exp(3 * test_random());
    random_diag_g(round, t, n_tensors, name, theta, g, each, vectors);
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
    check_applied(&net, u, before, theta, p);
    free(before);
    free(theta);
    free(g);
    free(each);
    free(vectors);
    free(u);
    free(want);
    problem_free(&q);
}

// Queries and keys: row r of W_q and its bias enter unit r, row r of W_k leaves it: q . k of every pair of tokens
// stays.
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
        static const int start[] = {0, D * C, D * C + D};
        const int tensor = (i >= start[1]) + (i >= start[2]), j = i - start[tensor];
        enter[i] = -1;
        if (tensor == 0) enter[i] = j / C;
        if (tensor == 1) enter[i] = j;
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

// A unit that only itself feeds has no optimum: what a tensor from a group to itself puts on its diagonal never
// changes.
static void check_self_loop(void) {
    double w[4] = {1, 1, 1, 1}, in[2] = {1, 1}, out[2] = {1, 1}, g_w[4] = {2, 0, 0, 3}, g_in[2] = {1, 0},
           g_out[2] = {1, 1}, u[2];
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
// 11. Errors

// Makes one change, expects the error of `status` that names `name`, and undoes the change. Uses net, o and m.
#define EXPECT(what, change, undo, status, name)                           \
    do {                                                                   \
        change;                                                            \
        expect_error(what, net, &o, status, name, m->theta, m->p);         \
        undo;                                                              \
    } while (0)

static void expect_description_errors(mlp *m) {
    rescale_tensor *t = m->tensor;
    rescale_tensor keep;
    const rescale_net *net = &m->net;
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
    EXPECT("listed twice", t[4] = t[2]; t[4].name = "again", t[4] = rescale_weight("w3", t[2].data + 54, 7, 6, 1, 2, 1),
           RESCALE_ERROR_ARGUMENT, "again");
    EXPECT("not a chain", t[1].leaves = RESCALE_NONE; t[0].n_in = 3; t[2].n_in = 7;
           t[2].leaves = RESCALE_NONE, t[0].n_in = 4; t[2] = keep, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("unnamed tensor", t[2].name = NULL; t[2].n_out = 5, t[2] = keep, RESCALE_ERROR_ARGUMENT, "unnamed");
    EXPECT("gain without statistics", t[3].role = RESCALE_GAIN, t[3].role = RESCALE_BIAS, RESCALE_ERROR_ARGUMENT, "b2");
    m->group[1].n = 0;
    expect_error("empty group", net, NULL, RESCALE_ERROR_ARGUMENT, "hidden", m->theta, m->p);
    m->group[1].n = 6;
    const rescale_net none = {m->group, 3, t, 0};
    expect_error("no tensors", &none, NULL, RESCALE_ERROR_ARGUMENT, "no tensors", m->theta, m->p);
}

static void expect_option_errors(mlp *m) {
    const rescale_net *net = &m->net;
    rescale_options o = rescale_default_options();
    EXPECT("tolerance", o.tolerance = 0, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("tolerance NaN", o.tolerance = NAN, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("iterations", o.max_iterations = 0, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("strength", o.strength = 1.5, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("strength NaN", o.strength = NAN, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("trace", o.max_trace = 0.5, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("trace NaN", o.max_trace = NAN, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("trace and sweeps", (o.max_trace = 1, o.solver = RESCALE_SWEEPS), o = rescale_default_options(),
           RESCALE_ERROR_ARGUMENT, "max_trace");
    EXPECT("within a bound", (o.within = 1, o.max_log = 1), o = rescale_default_options(), RESCALE_ERROR_ARGUMENT,
           "within");
    EXPECT("sweeps", o.sweeps = -1, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("bound", o.max_log = -1, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("unknown method", o.method = 7, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("unknown solver", o.solver = -1, o = rescale_default_options(), RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("no device in this build", o.on_device = 1, o.on_device = 0, RESCALE_ERROR_ARGUMENT, "on_device");
}

// diag(G) given for some tensors only, negative, NaN, infinite; in full and as a product. g is that of m.
static void expect_diag_g_errors(mlp *m, double *g) {
    rescale_tensor *t = m->tensor;
    rescale_tensor keep;
    const rescale_net *net = &m->net;
    rescale_options o = rescale_default_options();
    double out[64], in[64];
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
}

static void expect_sum_errors(mlp *m) {
    rescale_tensor *t = m->tensor;
    const rescale_net *net = &m->net;
    rescale_options o = rescale_default_options();
    double *zero = ref_doubles(m->p);
    for (int i = 0; i < m->n_tensors; i++) t[i].g = zero + (t[i].data - m->theta);
    EXPECT("g zero everywhere", , , RESCALE_ERROR_RANGE, "network");
    for (size_t i = 0; i < m->p; i++) zero[i] = 1e307 * (1 + (double)(i % 7));
    EXPECT("the sum of g overflows", , , RESCALE_ERROR_RANGE, "overflow");
    free(zero);
    for (int i = 0; i < m->n_tensors; i++) t[i].g = NULL;
}

// One negative entry inside a kernel of larger positive ones.
static void expect_kernel_error(void) {
    double w3[2 * 2 * 3], w4[3 * 2], g3[12], g4[6];
    fill(w3, 12, 0, 1);
    fill(w4, 6, 0, 1);
    fill(g3, 12, 2, 1);
    fill(g4, 6, 2, 1);
    g3[4] = -1e-6;
    const rescale_group two = rescale_units("channels", 2, RESCALE_RELU);
    rescale_tensor kernel[] = {rescale_weight("conv", w3, 2, 2, 3, 0, RESCALE_NONE),
                               rescale_weight("next", w4, 3, 2, 1, RESCALE_NONE, 0)};
    kernel[0].g = g3;
    kernel[1].g = g4;
    const rescale_net conv = {&two, 1, kernel, 2};
    expect_error("negative g inside a kernel", &conv, NULL, RESCALE_ERROR_RANGE, "conv", w3, 12);
}

// Results out of range, checked for all tensors before any is changed. For parameters: test_rescale_device.cu, in
// float.
static void expect_range_errors(mlp *m) {
    rescale_tensor *t = m->tensor;
    const rescale_net *net = &m->net;
    rescale_options o = rescale_default_options();
    double *theta = copy_of(m->theta, m->p);
    double *moment = ref_doubles(m->p);
    for (int k = 0; k < 40; k++) m->theta[k] *= 1e-12;  // w1 and b1: the next weights shrink, their gradients grow
    for (size_t k = 0; k < m->p; k++) moment[k] = 1e300;
    EXPECT("first moment overflows", t[2].moment1 = moment; moment[0] = 1.7e308, t[2].moment1 = NULL;
           moment[0] = 1e300, RESCALE_ERROR_RANGE, "w2");
    EXPECT("second moment overflows", t[2].moment2 = moment, t[2].moment2 = NULL, RESCALE_ERROR_RANGE, "w2");
    for (size_t k = 0; k < m->p; k++) CHECK(moment[k] == 1e300, "nor the optimizer state");
    memcpy(m->theta, theta, m->p * sizeof *theta);
    t[6].data[5] = 1e155;
    EXPECT("squares overflow", , , RESCALE_ERROR_RANGE, "overflows");
    memcpy(m->theta, theta, m->p * sizeof *theta);
    free(theta);
    free(moment);
}

// A solver that is not given enough steps says so and changes nothing.
static void check_short_run(mlp *m) {
    const rescale_net *net = &m->net;
    rescale_options o = rescale_default_options();
    double *theta = copy_of(m->theta, m->p);
    o.max_iterations = 1;
    o.tolerance = 1e-300;
    rescale_report r;
    CHECK(rescale_run(net, &o, &r) == (r.converged ? RESCALE_OK : RESCALE_ERROR_CONVERGENCE), "status of a short run");
    memcpy(m->theta, theta, m->p * sizeof *theta);
    free(theta);
}

// Arena: too small by one byte or by much, exact, sentinels behind it, any alignment; dry run; options NULL.
static void check_arena(mlp *m) {
    const rescale_net *net = &m->net;
    rescale_options o = rescale_default_options();
    rescale_report r;
    double *theta = copy_of(m->theta, m->p);
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
        for (size_t i = 0; i < bytes + 256; i++)
            intact = intact && (i >= shift && i < shift + bytes ? 1 : arena[i] == 0xA5);
        CHECK(intact, "an arena of exactly rescale_arena_bytes, at any address, and nothing beyond it");
    }
    CHECK(same_bits(theta, m->theta, m->p), "a dry run changes no parameter");
    solve(net, dry(), v);
    CHECK(same_bits(u, v, (size_t)m->units), "the caller's arena and ours give the same bits");
    CHECK(rescale_run(net, NULL, &r) == RESCALE_OK && !same_bits(theta, m->theta, m->p) && !r.message[0],
          "options NULL: defaults");
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
}

static void check_errors(void) {
    mlp *m = small_mlp(0);
    expect_description_errors(m);
    expect_option_errors(m);
    double *g = mlp_diag_g(m);
    expect_diag_g_errors(m, g);
    free(g);
    expect_sum_errors(m);
    expect_kernel_error();
    expect_range_errors(m);
    check_short_run(m);
    check_arena(m);
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
    EXPECT("outputs enter a group", t[6].enters = t[7].enters = 0, t[6].enters = t[7].enters = RESCALE_NONE,
           RESCALE_ERROR_ARGUMENT, "w4");
    keep = t[5];
    EXPECT("a residual stream", t[4].enters = t[5].enters = 0;
           t[6].leaves = 0, t[4].enters = t[5].enters = t[6].leaves = 2, RESCALE_ERROR_ARGUMENT, "w3");
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
    rescale_tensor qk[] = {rescale_weight("wq", wq, 6, 6, 1, 0, RESCALE_NONE),
                           rescale_weight("wk", wk, 6, 6, 1, 0, RESCALE_NONE)};
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
    EXPECT("a tensor inside another", t[3].data = t[0].data + 3, t[3].data = t[2].data + 8, RESCALE_ERROR_ARGUMENT,
           "beta1");
    EXPECT("overlap by one", t[4].data = t[3].data + 7, t[4].data = t[3].data + 8, RESCALE_ERROR_ARGUMENT, "w2");
    EXPECT("moment1 is data", t[2].moment1 = t[2].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("moment2 is data", t[2].moment2 = t[2].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("moment1 is moment2", t[2].moment1 = t[2].moment2 = moment, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("moments overlap by one", t[2].moment1 = moment;
           t[2].moment2 = moment + 7, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("a moment of two tensors", t[0].moment1 = t[2].moment1 = moment, t[2] = keep;
           t[0].moment1 = NULL, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("another tensor's data", t[2].moment2 = t[7].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "beta2");
    EXPECT("g is a moment", t[2].g = t[2].moment1 = moment, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("g is data", t[2].g = t[2].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("reference is data", t[2].reference_each = t[2].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "gamma1");
    EXPECT("running statistics are data", t[2].mean = t[3].data, t[2] = keep, RESCALE_ERROR_ARGUMENT, "beta1");
    EXPECT("running statistics are a moment", t[3].moment1 = m->mean, t[3].moment1 = NULL, RESCALE_ERROR_ARGUMENT,
           "beta1");
    EXPECT("u is data", o.u = m->theta, o.u = NULL, RESCALE_ERROR_ARGUMENT, "options");
    EXPECT("arena is data", o.arena = m->theta;
           o.arena_bytes = 8 * m->p, o.arena = NULL, RESCALE_ERROR_ARGUMENT, "options");
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
    CHECK(rescale_arena_bytes(&no_tensors, NULL) == 0 && rescale_arena_bytes(&no_groups, NULL) == 0,
          "nor do NULL lists");
    const rescale_group huge[] = {rescale_units("g0", 2000000000, RESCALE_RELU),
                                  rescale_units("g1", 2000000000, RESCALE_RELU),
                                  rescale_units("g2", 2000000000, RESCALE_RELU)};
    const rescale_net too_many = {huge, 3, m->tensor, m->n_tensors};
    net = &too_many;
    EXPECT("three groups of 2e9 units", , , RESCALE_ERROR_ARGUMENT, "too many units");
    CHECK(rescale_arena_bytes(&too_many, NULL) == 0, "nor do sizes that overflow");
    net = &m->net;
    const rescale_tensor keep = m->tensor[7];
    EXPECT("unknown role", m->tensor[7].role = 3, m->tensor[7] = keep, RESCALE_ERROR_ARGUMENT, "b4");
    EXPECT("unknown flag", m->tensor[7].flags = 8, m->tensor[7] = keep, RESCALE_ERROR_ARGUMENT, "b4");
    o.max_iterations = INT_MAX;
    o.dry_run = 1;
    CHECK(rescale_run(net, &o, &r) == RESCALE_OK && r.converged, "as many iterations as an int holds");
    o.method = RESCALE_ENORM;
    CHECK(rescale_run(net, &o, &r) == RESCALE_OK && r.converged && r.sweeps > 1, "of ENorm, too");
    mlp_free(m);
}

int main(void) {
    check_dead_units();
    check_dead_batchnorm();
    check_no_hidden_units();
    check_non_finite();
    check_output_bias();
    check_residual();
    check_query_key();
    check_self_loop();
    for (int round = 0; round < 60; round++) check_random_description(round);
    check_errors();
    check_not_a_chain();
    check_overlaps();
    check_nulls_and_sizes();
    return test_summary();
}
