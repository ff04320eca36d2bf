// test_gpt_kernel.c -- diag(G) of train_gpt_style.c in double precision: measured on data, and of paths at both powers.
//
//     make test-programs && build/c/test/test_gpt_kernel
//
// 1. with the signs of the run, the measured diag(G) is that of one backward pass of the reference per output
// 2. the mean over all choices of signs is the sum of squares; random signs and drawn tokens come within their errors
// 3. any rescaling of any set multiplies g_i by exp((B u)_i), at both powers
// 4. a measured rescaling: its certificate from diag(G) measured again, its objective; logits and moments follow
// 5. diag(G) of paths, enumerated one by one: objective and certificate of every set, at both powers and levels
#define TESTING
#define REAL double
#include "train_gpt_style.c"

#include "gpt_test.h"

enum { SAMPLES = 3, SEED = 11, STEP = 7 };

// A trainer with random weights and a random text; diag(G) of `kernel` at `power`, on `samples` windows.
static void make_trainer(trainer *t, config *c, const gpt_case *k, int kernel, int power, int samples) {
    static uint16_t text[256];
    *c = gpt_config(k);
    c->train.rescale_kernel = kernel;
    c->train.rescale_power = power == 1 ? POWER_ONE : POWER_TWO;
    c->train.rescale_samples = samples;
    c->train.seed = SEED;
    memset(t, 0, sizeof *t);
    for (int i = 0; i < 256; i++) text[i] = (uint16_t)((int)((test_random() + 1) / 2 * k->V) % k->V);
    t->data.train = text;
    t->data.n_train = 256;
    t->run.step = STEP;
    t->c = c;
    gpt_make_as(&t->m, k, c);
}

static size_t count(const model *m) { return (size_t)train_parameter_count(&m->net); }
static double *copy_of(const double *from, size_t n) {
    double *to = ref_gpt_doubles(n);
    memcpy(to, from, n * sizeof *to);
    return to;
}
static double raised(double x, int power) { return power == 1 ? fabs(x) : x * x; }

// Choices that a bit of `way` makes.
static int kernel_of(int bit) { return bit ? KERNEL_FISHER : KERNEL_DATA; }
static int power_of(int bit) { return bit ? 1 : 2; }

// Tokens of sample i: those of a window that seed and step choose.
static void sample_tokens(const trainer *t, int i, int *tokens) {
    const int T = t->m.T;
    const uint64_t key = rng_permute_key(SEED, UINT64_MAX - (uint64_t)t->run.step);
    const uint32_t windows = (uint32_t)((t->data.n_train - 1) / (size_t)T);
    const uint32_t window = rng_permute((uint32_t)i, windows, key);
    for (int s = 0; s < T; s++) tokens[s] = t->data.train[window * (uint32_t)T + (uint32_t)s];
}

// The derivatives of every output (position, token) of a sample by every parameter: [T * V][parameters].
static double *jacobian(const trainer *t, const RefGpt *r, const int *tokens) {
    const size_t n = count(&t->m), outputs = (size_t)(t->m.T * t->m.V);
    double *theta = gpt_flat(&t->m, t->m.params), *J = ref_gpt_doubles(outputs * n), *one = ref_gpt_doubles(outputs);
    for (size_t k = 0; k < outputs; k++) {
        one[k] = 1;
        ref_gpt_output_gradient(r, theta, tokens, 1, t->m.T, one, J + k * n);
        one[k] = 0;
    }
    free(theta);
    free(one);
    return J;
}

// The gradient of the outputs of sample i that the run draws: signs, or probabilities minus a drawn token.
static void drawn_outputs(const trainer *t, const RefGpt *r, int i, const int *tokens, double *d) {
    const int T = t->m.T, V = t->m.V;
    const uint64_t stream = rng_stream(RNG_KERNEL, (uint32_t)t->run.step), first = (uint64_t)(i * T);
    if (t->c->train.rescale_kernel == KERNEL_DATA) {
        for (int k = 0; k < T * V; k++)
            d[k] = rng_word_at(SEED, stream, first * (uint64_t)V + (uint64_t)k) & 1 ? 1 : -1;
        return;
    }
    double *theta = gpt_flat(&t->m, t->m.params);
    ref_gpt_loss(r, theta, tokens, tokens, 1, T, d, NULL);
    for (int s = 0; s < T; s++) {
        double *row = d + s * V, sum = 0, below = 0;
        const double uniform = (double)rng_uniform_at(SEED, stream, first + (uint64_t)s);
        for (int v = 0; v < V; v++) sum += exp(row[v]);
        int token = 0;
        while (token < V - 1 && below + exp(row[token]) / sum <= uniform) below += exp(row[token++]) / sum;
        for (int v = 0; v < V; v++) row[v] = exp(row[v]) / sum - (v == token);
    }
    free(theta);
}

// 1. A key's bias moves no output, so both sides have rounding errors there.
static void test_given_signs(void) {
    static const gpt_case cases[] = {{2, 2, 6, 5, 7, 1, 1, 5}, {1, 3, 6, 4, 5, 0, 2, 4}};
    for (int way = 0; way < 16; way++) {
        const gpt_case *k = &cases[way & 1];
        const int kernel = kernel_of(way & 2), power = power_of(way & 4);
        const RefGpt r = gpt_ref(k);
        static trainer t;
        config c;
        make_trainer(&t, &c, k, kernel, power, SAMPLES);
        if (way & 8) {  // logits in chunks
            t.m.chunk = 3;
            t.m.head_rows = 2;
        }
        measure_diag_g(&t);
        const size_t n = count(&t.m), outputs = (size_t)(k->T_max * k->V);
        double *want = ref_gpt_doubles(n), *sum = ref_gpt_doubles(n), *d = ref_gpt_doubles(outputs);
        for (int i = 0; i < SAMPLES; i++) {
            int tokens[8];
            sample_tokens(&t, i, tokens);
            double *J = jacobian(&t, &r, tokens);
            drawn_outputs(&t, &r, i, tokens, d);
            memset(sum, 0, n * sizeof *sum);
            for (size_t o = 0; o < outputs; o++)
                for (size_t j = 0; j < n; j++) sum[j] += d[o] * J[o * n + j];
            for (size_t j = 0; j < n; j++) want[j] += raised(sum[j], power) / SAMPLES;
            free(J);
        }
        double *got = gpt_flat(&t.m, t.m.diag_g);
        char label[64];
        snprintf(label, sizeof label, "way %d, diag(G), as", way);
        gpt_compare_gradients(label, &t.m, got, want, 1e-11);
        size_t near = 0, at = 0;
        for (; at < n; at++) near += fabs(got[at] - want[at]) <= 1e-10 * fabs(want[at]);
        CHECK(near + (size_t)(k->L * k->C) >= n, "every entry to 1e-10 of itself, but for the biases of keys");
        free(want);
        free(sum);
        free(d);
        free(got);
        model_free(&t.m);
    }
}

// 2. Six outputs: all 64 choices of signs, each given to the trainer's own backward pass.
static void test_all_signs(void) {
    const gpt_case k = {1, 2, 4, 3, 2, 1, 1, 3};
    const RefGpt r = gpt_ref(&k);
    static trainer t;
    config c;
    make_trainer(&t, &c, &k, KERNEL_DATA, 2, 1);
    model *m = &t.m;
    int tokens[3];
    sample_tokens(&t, 0, tokens);
    double *J = jacobian(&t, &r, tokens);
    const size_t n = count(m);
    for (int signs = 0; signs < 64; signs++) {
        memcpy(m->tokens, tokens, sizeof tokens);
        zero_gradients(m);
        forward(m, 1, 3, 0);
        compute_logits(m, 0, 3);
        for (int o = 0; o < 6; o++) m->logits[o] = signs >> o & 1 ? 1 : -1;
        head_backward(m, 0, 3, 1);
        backward(m, 1, 3);
        kernel_add(m, 1.0 / 64, 2);
    }
    double *got = gpt_flat(m, m->diag_g), *want = ref_gpt_doubles(n);
    for (int o = 0; o < 6; o++)
        for (size_t j = 0; j < n; j++) want[j] += J[(size_t)o * n + j] * J[(size_t)o * n + j];
    gpt_compare_gradients("mean over all signs, as", m, got, want, 1e-11);
    free(J);
    free(got);
    free(want);
    model_free(m);
}

// The expectation of sample i's squared gradient: over signs; over tokens that the model draws, position by position.
static void expected(const trainer *t, const RefGpt *r, const int *tokens, double *want) {
    const int T = t->m.T, V = t->m.V;
    const size_t n = count(&t->m);
    double *J = jacobian(t, r, tokens), *theta = gpt_flat(&t->m, t->m.params);
    double *logits = ref_gpt_doubles((size_t)(T * V)), *mean = ref_gpt_doubles(n);
    ref_gpt_loss(r, theta, tokens, tokens, 1, T, logits, NULL);
    for (int s = 0; s < T; s++) {
        const double *row = logits + s * V;
        double sum = 0;
        memset(mean, 0, n * sizeof *mean);
        for (int v = 0; v < V; v++) sum += exp(row[v]);
        for (int v = 0; v < V; v++)
            for (size_t j = 0; j < n; j++) mean[j] += exp(row[v]) / sum * J[(size_t)(s * V + v) * n + j];
        for (int v = 0; v < V; v++)
            for (size_t j = 0; j < n; j++) {
                const double of = J[(size_t)(s * V + v) * n + j], score = of - mean[j];
                const int fisher = t->c->train.rescale_kernel == KERNEL_FISHER;
                want[j] += fisher ? exp(row[v]) / sum * score * score : of * of;
            }
    }
    free(J);
    free(theta);
    free(logits);
    free(mean);
}

// 2. Repeated at other steps, whose windows are all there are: the mean comes within its own standard error.
static void test_random_signs(void) {
    for (int fisher = 0; fisher < 2; fisher++) {
        enum { REPEATS = 400 };
        const gpt_case k = {1, 2, 4, 64, 5, 1, 1, 64};
        const RefGpt r = gpt_ref(&k);
        static trainer t;
        config c;
        make_trainer(&t, &c, &k, fisher ? KERNEL_FISHER : KERNEL_DATA, 2, 100);
        const size_t n = count(&t.m);
        double *want = ref_gpt_doubles(n), *sum = ref_gpt_doubles(n), *squares = ref_gpt_doubles(n);
        int tokens[64];
        for (int i = 0; i < 3; i++) {  // 3 windows of 64 in 255 tokens and a last target
            sample_tokens(&t, i, tokens);
            expected(&t, &r, tokens, want);
        }
        for (int repeat = 0; repeat < REPEATS; repeat++) {
            t.run.step = repeat;
            measure_diag_g(&t);
            double *g = gpt_flat(&t.m, t.m.diag_g);
            for (size_t j = 0; j < n; j++) {
                sum[j] += g[j] / REPEATS;
                squares[j] += g[j] * g[j] / REPEATS;
            }
            free(g);
        }
        size_t tried = 0, beyond[2] = {0, 0};
        double total = 0, total_want = 0;
        for (size_t j = 0; j < n; j++) {
            const double exact = want[j] / 3, error = sqrt((squares[j] - sum[j] * sum[j]) / REPEATS);
            total += sum[j];
            total_want += exact;
            if (exact < 1e-20) continue;  // biases of keys, tokens that are not there
            tried++;
            beyond[0] += fabs(sum[j] - exact) > 2 * error;
            beyond[1] += fabs(sum[j] - exact) > 5 * error;
        }
        printf("%s: %zu entries, %zu beyond 2 standard errors, total %.4g of %.4g\n", fisher ? "fisher" : "data", tried,
               beyond[0], total, total_want);
        CHECK(tried > n / 2 && beyond[1] == 0, "every entry is within five standard errors of its expectation");
        CHECK(beyond[0] * 10 < tried, "and few are beyond two");
        CHECK(fabs(total / total_want - 1) < 0.05, "the sum is right to 5%");
        free(want);
        free(sum);
        free(squares);
        model_free(&t.m);
    }
}

// ------------------------------------------------------------------------------------- what a rescaling does, by name

// Where the units of layer l's sets are in u, in the order of the net: ln (first half), qk, vo, ln (second half), mlp;
// layer L: the head's. -1: not asked for.
typedef struct places {
    int ln1, qk, vo, ln2, mlp;
} places;

// Units of a set in a group of its own; 0: not asked for.
static int group_of(const model *m, int sets, int set) {
    if (!(sets & set)) return 0;
    return set == SET_MLP ? 4 * m->C : m->C;
}
static int units_of_block(const model *m, int sets) {
    const int ln = group_of(m, sets, SET_LN), qk = group_of(m, sets, SET_QK), vo = group_of(m, sets, SET_VO);
    return 2 * ln + qk + vo + group_of(m, sets, SET_MLP);
}
static int units_of(const model *m, int sets) {
    const int head = m->tied ? 0 : group_of(m, sets, SET_LN);
    return m->L * units_of_block(m, sets) + head;
}

// Moves *at behind a group. Returns where it begins, or -1 for an empty one.
static int place_group(int *at, int units) {
    *at += units;
    return units ? *at - units : -1;
}
static places places_of(const model *m, int sets, int l) {
    const int ln = group_of(m, sets, SET_LN);
    int at = l * units_of_block(m, sets);
    places p;
    p.ln1 = place_group(&at, l == m->L && m->tied ? 0 : ln);
    p.qk = place_group(&at, group_of(m, sets, SET_QK));
    p.vo = place_group(&at, group_of(m, sets, SET_VO));
    p.ln2 = place_group(&at, ln);
    p.mlp = place_group(&at, group_of(m, sets, SET_MLP));
    return p;
}

// A parameter's row of B: at most two units, with sign -1 (it enters) or +1 (it leaves).
typedef struct row_of_B {
    int n, unit[2], sign[2];
} row_of_B;

static void add_unit(row_of_B *b, int group, int index, int sign) {
    if (group < 0) return;
    b->unit[b->n] = group + index;
    b->sign[b->n++] = sign;
}
static row_of_B find_row(const model *m, int sets, const train_tensor *t, int row, int col) {
    const int C = m->C, part = row / C;
    const char *name = t->name;
    row_of_B b = {0, {0, 0}, {0, 0}};
    if (t->layer < 0) return b;
    const places p = places_of(m, sets, t->layer);
    if (strstr(name, "ln_1") || strstr(name, "ln_f")) add_unit(&b, p.ln1, row, -1);
    if (strstr(name, "lm_head")) add_unit(&b, p.ln1, col, 1);
    if (strstr(name, "ln_2")) add_unit(&b, p.ln2, row, -1);
    if (strstr(name, "c_attn") && part == 0) add_unit(&b, p.qk, row, -1);
    if (strstr(name, "c_attn") && part == 1) add_unit(&b, p.qk, row - C, 1);
    if (strstr(name, "c_attn") && part == 2) add_unit(&b, p.vo, row - 2 * C, -1);
    if (strstr(name, "c_attn.weight")) add_unit(&b, p.ln1, col, 1);
    if (strstr(name, "attn.c_proj.weight")) add_unit(&b, p.vo, col, 1);
    if (strstr(name, "c_fc")) add_unit(&b, p.mlp, row, -1);
    if (strstr(name, "c_fc.weight")) add_unit(&b, p.ln2, col, 1);
    if (strstr(name, "mlp.c_proj.weight")) add_unit(&b, p.mlp, col, 1);
    return b;
}

// (B u)_i of all parameters, as an array of the parameters' size.
static double *times_B(const model *m, int sets, const double *u) {
    double *Bu = ref_gpt_doubles(m->net.n_params);
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        for (int row = 0; row < t->rows; row++)
            for (int col = 0; col < t->cols; col++) {
                const row_of_B b = find_row(m, sets, t, row, col);
                double *to = Bu + t->offset + row * t->cols + col;
                for (int k = 0; k < b.n; k++) *to += b.sign[k] * u[b.unit[k]];
            }
    }
    return Bu;
}

static gpt_rescale view(const trainer *t) {
    gpt_rescale s;
    memset(&s, 0, sizeof s);
    s.options = &t->c->train;
    s.sets = t->c->sets;
    s.net = &t->m.net;
    s.params = t->m.params;
    s.g = t->m.diag_g;
    s.layers = t->m.L;
    s.channels = t->m.C;
    s.vocabulary = t->m.V;
    s.tied = t->m.tied;
    return s;
}

// Fails unless got is within rel of want, entry by entry; entries below 1e-24 of the largest (biases of keys) are 0.
static void compare_g(const char *label, const model *m, const double *got, const double *want, double rel) {
    double largest = 0;
    for (size_t i = 0; i < m->net.n_params; i++) largest = fmax(largest, want[i]);
    test_close_d(label, got, want, m->net.n_params, rel, 1e-14 * largest);
}

// 3. Given u, applied to every set alone and to all: weights and the measured diag(G) change as B says.
static void test_transforms(void) {
    static const int choices[] = {SET_MLP, SET_VO, SET_QK, SET_LN, SETS_ALL};
    for (int way = 0; way < 40; way++) {
        const gpt_case k = {2, 2, 6, 6, 7, way & 1, 1, 6};
        const int kernel = kernel_of(way & 2), power = power_of(way & 4), sets = choices[way / 8];
        static trainer t;
        config c;
        make_trainer(&t, &c, &k, kernel, power, SAMPLES);
        model *m = &t.m;
        c.sets = sets;
        measure_diag_g(&t);
        double *g = copy_of(m->diag_g, m->net.n_params), *theta = copy_of(m->params, m->net.n_params);
        const int units = units_of(m, sets);
        double *u = ref_gpt_doubles((size_t)units);
        for (int h = 0; h < units; h++) u[h] = 1.5 * test_random();
        const gpt_rescale s = view(&t);
        gpt_net n = gpt_describe(&s);
        const double before = gpt_gradient(m, 1, k.T);
        const rescale_net net = {n.group, n.n_groups, n.tensor, n.n_tensors};
        rescale_options o = train_rescale_options(&c.train);
        rescale_report report;
        CHECK(n.units == units && n.n_tensors == m->net.n_tensors + 4 * m->L, "every unit and every tensor is there");
        CHECK(rescale_apply(&net, &o, u, &report) == 0, report.message);
        CHECK(report.parameters == (long long)count(m), "every parameter counts");
        double *Bu = times_B(m, sets, u);
        const double after = gpt_gradient(m, 1, k.T);
        test_close_d("loss", &after, &before, 1, 1e-13, 0);
        for (size_t i = 0; i < m->net.n_params; i++) {
            theta[i] *= exp(-Bu[i] / power);
            g[i] *= exp(Bu[i]);
        }
        test_close_d("rescaled weights", m->params, theta, m->net.n_params, 1e-13, 0);
        measure_diag_g(&t);
        compare_g("diag(G) of rescaled weights", m, m->diag_g, g, 1e-9);
        gpt_net_free(&n);
        free(g);
        free(theta);
        free(u);
        free(Bu);
        model_free(m);
    }
}

// 4. The largest |dF/du| by definition, at the diag(G) g. layer: of sums over the units of a group. Units without
// energy on one side are pinned.
typedef struct optimum {
    double p_log_S, gradient;
    int pinned;
} optimum;

static optimum optimum_at(const model *m, const double *g, int layer) {
    const int units = units_of(m, SETS_ALL), C = m->C;
    double *d = ref_gpt_doubles(4 * (size_t)units), *n = d + units, S = 0, *side = n + units;
    const double p = (double)count(m);
    optimum o = {0, 0, 0};
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        for (int row = 0; row < t->rows; row++)
            for (int col = 0; col < t->cols; col++) {
                const row_of_B b = find_row(m, SETS_ALL, t, row, col);
                const double e = g[t->offset + (size_t)(row * t->cols + col)];
                S += e;
                for (int k = 0; k < b.n; k++) {
                    d[b.unit[k]] += b.sign[k] * e;
                    n[b.unit[k]] += b.sign[k];
                    side[2 * b.unit[k] + (b.sign[k] > 0)] += e;
                }
            }
    }
    // A block has 8 C units: groups of C, C, C, C and 4 C; the head's group is at the end.
    double sum = 0;
    for (int h = 0, first = 0; h < units; h++) {
        const int size = h < m->L * 8 * C && h % (8 * C) >= 4 * C ? 4 * C : C;
        const double one = p * d[h] / S - n[h];
        const int pinned = !layer && !(side[2 * h] > 0 && side[2 * h + 1] > 0);
        o.pinned += pinned;
        sum += one;
        if (!layer && !pinned) o.gradient = fmax(o.gradient, fabs(one));
        if (h + 1 - first < size) continue;
        if (layer) o.gradient = fmax(o.gradient, fabs(sum));
        first = h + 1;
        sum = 0;
    }
    free(d);
    o.p_log_S = p * log(S);
    return o;
}

static void test_measured_optimum(void) {
    for (int way = 0; way < 16; way++) {
        const gpt_case k = {2, 2, 6, 12, 9, way & 1, 1, 12};
        const int kernel = kernel_of(way & 2), power = power_of(way & 4), layer = way >> 3;
        static trainer t;
        config c;
        rescale_report report;
        double moved = 1;
        make_trainer(&t, &c, &k, kernel, power, 16);
        model *m = &t.m;
        c.train.rescale_level = layer;
        measure_diag_g(&t);
        double *theta = copy_of(m->params, m->net.n_params);
        const optimum before = optimum_at(m, m->diag_g, layer);
        for (size_t i = 0; i < m->net.n_params; i++) {
            m->moment1[i] = 1;
            m->moment2[i] = 1;
        }
        CHECK(rescale_and_measure(m, &c, &report, &moved) == 0, report.message);
        test_close_d("objective before", &report.objective_before, &before.p_log_S, 1, 1e-12, 0);
        CHECK(report.converged && report.grad_inf <= report.grad_tolerance, "the optimum is certified");
        CHECK(report.objective_after < report.objective_before, "the objective went down");
        CHECK(moved < 1e-12, "the logits stay");
        measure_diag_g(&t);
        const optimum now = optimum_at(m, m->diag_g, layer);
        if (!CHECK(now.gradient < 1e-7 * before.gradient, "measured again, diag(G) is at the optimum"))
            printf("     way %d: gradient %.3g -> %.3g\n", way, before.gradient, now.gradient);
        CHECK(report.pinned_units == before.pinned && before.pinned < 4, "dead units are pinned");
        double sum = 0, largest = 0;  // of n_h u_h = sum of (B u)_i = sum of -power log(factor)
        int follow = 1;
        for (int i = 0; i < m->net.n_tensors; i++) {
            const train_tensor *of = &m->net.tensors[i];
            for (size_t j = of->offset; j < of->offset + (size_t)of->rows * (size_t)of->cols; j++) {
                const double f = m->params[j] / theta[j];
                sum -= power * log(f);
                follow = follow && fabs(m->moment1[j] * f - 1) < 1e-12 && fabs(m->moment2[j] * f * f - 1) < 1e-12;
            }
        }
        const double after = now.p_log_S - sum;
        test_close_d("objective after", &report.objective_after, &after, 1, 1e-9, 0);
        CHECK(follow, "optimizer state follows");
        int units = 0;
        for (int set = 0; set < N_SETS; set++) {
            units += m->set_report[set].units;
            largest = fmax(largest, m->set_report[set].max_abs_log_lambda);
        }
        CHECK(units == report.units && largest == report.max_abs_log_lambda, "what the sets report adds up");
        CHECK(rescale_model(m, &c, &report) == 0 && report.max_abs_log_lambda < 1e-6, "a second pass moves nothing");
        free(theta);
        model_free(m);
    }
}

// NaN and infinity in weights or in diag(G) are refused, and nothing moves.
static void test_measured_refuses(void) {
    for (int way = 0; way < 2; way++) {
        const gpt_case k = {1, 2, 6, 12, 9, 1, 1, 12};
        static trainer t;
        config c;
        rescale_report report;
        make_trainer(&t, &c, &k, KERNEL_DATA, 2, 4);
        if (way == 0) t.m.w.block[0].fc_w[3] = NAN;
        measure_diag_g(&t);
        if (way == 1) t.m.diag_g[t.m.net.tensors[gpt_first_tensor(0) + GPT_FC_W].offset] = INFINITY;
        double *theta = copy_of(t.m.params, t.m.net.n_params);
        CHECK(rescale_model(&t.m, &c, &report) == -1 && report.message[0], "refused, with a message");
        CHECK(!memcmp(theta, t.m.params, t.m.net.n_params * sizeof *theta), "and no weight has changed");
        free(theta);
        model_free(&t.m);
    }
}

// --------------------------------------------------------------------------------------------------- paths, one by one

// A path of two steps through unit `at`; -1: without. enters, leaves: indices of its parameters.
typedef struct part_sums {
    double *g;             // [n_params] sum over paths of |path / parameter|^power
    unsigned char *counts; // [n_params] whether a parameter belongs to the part
    int *unit, *sign;      // [n_params] whose row of B it has
    int units;
} part_sums;

static void add_path(const model *m, part_sums *s, size_t first, size_t second, int power) {
    const double path = m->params[first] * m->params[second];
    s->g[first] += raised(path / m->params[first], power);
    s->g[second] += raised(path / m->params[second], power);
}
static void belongs(part_sums *s, size_t i, int unit, int sign) {
    s->counts[i] = 1;
    s->unit[i] = unit;
    s->sign[i] = sign;
}

// Gain and bias of a channel, each with every weight of its column; the next bias is a path by itself.
static void enumerate_ln(const model *m, part_sums *s, size_t gain, size_t bias, size_t W, long next, int rows,
                         int power) {
    const size_t C = (size_t)m->C;
    for (size_t c = 0; c < C; c++) {
        for (size_t r = 0; r < (size_t)rows; r++) {
            add_path(m, s, gain + c, W + r * C + c, power);
            add_path(m, s, bias + c, W + r * C + c, power);
            belongs(s, W + r * C + c, (int)c, 1);
        }
        belongs(s, gain + c, (int)c, -1);
        belongs(s, bias + c, (int)c, -1);
    }
    for (size_t r = 0; next >= 0 && r < (size_t)rows; r++) {
        s->g[(size_t)next + r] += 1;
        belongs(s, (size_t)next + r, 0, 0);
    }
}
// A [units][C] with bias a into the units, B [C][units] out of them, b beside. Queries and keys: B = NULL.
static void enumerate_hidden(const model *m, part_sums *s, size_t A, size_t a, size_t W, size_t b, int units,
                             int power) {
    const size_t C = (size_t)m->C, H = (size_t)units;
    for (size_t h = 0; h < H; h++)
        for (size_t in = 0; in <= C; in++) {
            const size_t enters = in < C ? A + h * C + in : a + h;
            belongs(s, enters, (int)h, -1);
            for (size_t out = 0; out < C; out++) {
                add_path(m, s, enters, W + out * H + h, power);
                belongs(s, W + out * H + h, (int)h, 1);
            }
        }
    for (size_t out = 0; out < C; out++) {
        s->g[b + out] += 1;
        belongs(s, b + out, 0, 0);
    }
}
static void enumerate_qk(const model *m, part_sums *s, size_t W, size_t b, int power) {
    const size_t C = (size_t)m->C;
    for (size_t h = 0; h < C; h++)
        for (size_t i = 0; i <= C; i++)
            for (size_t j = 0; j <= C; j++) {
                const size_t query = i < C ? W + h * C + i : b + h;
                const size_t key = j < C ? W + (C + h) * C + j : b + C + h;
                add_path(m, s, query, key, power);
                belongs(s, query, (int)h, -1);
                belongs(s, key, (int)h, 1);
            }
}

static size_t place(const model *m, int l, int k) { return m->net.tensors[gpt_first_tensor(l) + (size_t)k].offset; }

// The parts of set `which` in layer l, in turn: part 0, and for LayerNorm part 1. 0: there is no such part.
static int enumerate_part(const model *m, part_sums *s, int which, int l, int part, int power) {
    const size_t C = (size_t)m->C, n = m->net.n_params;
    memset(s->g, 0, n * sizeof *s->g);
    memset(s->counts, 0, n);
    s->units = which == OF_MLP ? 4 * m->C : m->C;
    if (l == m->L) {
        if (which != OF_LN || part || m->tied) return 0;
        enumerate_ln(m, s, place(m, l, GPT_LNF_W), place(m, l, GPT_LNF_B), place(m, l, GPT_HEAD), -1, m->V, power);
        return 1;
    }
    if (part > (which == OF_LN)) return 0;
    const size_t qkv = place(m, l, GPT_QKV_W), qkv_b = place(m, l, GPT_QKV_B), fc = place(m, l, GPT_FC_W);
    const size_t fc_b = place(m, l, GPT_FC_B);
    if (which == OF_LN && part == 0)
        enumerate_ln(m, s, place(m, l, GPT_LN1_W), place(m, l, GPT_LN1_B), qkv, (long)qkv_b, 3 * m->C, power);
    if (which == OF_LN && part == 1)
        enumerate_ln(m, s, place(m, l, GPT_LN2_W), place(m, l, GPT_LN2_B), fc, (long)fc_b, 4 * m->C, power);
    if (which == OF_QK) enumerate_qk(m, s, qkv, qkv_b, power);
    if (which == OF_VO)
        enumerate_hidden(m, s, qkv + 2 * C * C, qkv_b + 2 * C, place(m, l, GPT_OUT_W), place(m, l, GPT_OUT_B), m->C,
                         power);
    if (which == OF_MLP)
        enumerate_hidden(m, s, fc, fc_b, place(m, l, GPT_PROJ_W), place(m, l, GPT_PROJ_B), 4 * m->C, power);
    return 1;
}

// p log S of a part, and its largest |dF/du| relative to its number of parameters; layer: of the sum over its units.
static double part_objective(const model *m, const part_sums *s, int layer, double *gradient) {
    double *d = ref_gpt_doubles(2 * (size_t)s->units), *n = d + s->units, S = 0, p = 0, sum = 0;
    for (size_t i = 0; i < m->net.n_params; i++) {
        if (!s->counts[i]) continue;
        p++;
        S += s->g[i];
        d[s->unit[i]] += s->sign[i] * s->g[i];
        n[s->unit[i]] += s->sign[i];
    }
    for (int h = 0; h < s->units; h++) {
        const double one = p * d[h] / S - n[h];
        sum += one;
        if (!layer) *gradient = fmax(*gradient, fabs(one) / p);
    }
    if (layer) *gradient = fmax(*gradient, fabs(sum) / p);
    free(d);
    return p * log(S);
}

// Sum of p log S over all parts of the sets, at the weights as they are; the largest gradient.
static double enumerate_sets(const model *m, int sets, int power, int layer, double *gradient) {
    const size_t n = m->net.n_params;
    part_sums s;
    double total = 0;
    s.g = ref_gpt_doubles(n);
    s.counts = (unsigned char *)calloc(n, 1);
    s.unit = (int *)calloc(2 * n, sizeof(int));
    s.sign = s.unit + n;
    *gradient = 0;
    for (int which = 0; which < N_SETS; which++)
        for (int l = 0; sets >> which & 1 && l <= m->L; l++)
            for (int part = 0; part < 2; part++)
                if (enumerate_part(m, &s, which, l, part, power)) total += part_objective(m, &s, layer, gradient);
    free(s.g);
    free(s.counts);
    free(s.unit);
    return total;
}

// 5. Every set alone: objective before and after, and the optimum. All sets: every part is at its optimum in the end.
static void test_paths(void) {
    static const int choices[] = {SET_MLP, SET_VO, SET_QK, SET_LN, SETS_ALL};
    for (int way = 0; way < 40; way++) {
        const gpt_case k = {2, 2, 6, 6, 7, way & 1, 1, 6};
        const int power = way & 2 ? 1 : 2, layer = way >> 2 & 1, sets = choices[way / 8];
        static trainer t;
        config c;
        rescale_report report;
        make_trainer(&t, &c, &k, KERNEL_PATHS, power, 1);
        model *m = &t.m;
        c.sets = sets;
        c.train.rescale_level = layer;
        double *theta = copy_of(m->params, m->net.n_params), start, end, moved = 1;
        const double before = enumerate_sets(m, sets, power, layer, &start);
        CHECK(rescale_and_measure(m, &c, &report, &moved) == 0, report.message);
        double after = enumerate_sets(m, sets, power, layer, &end), sum = 0;
        for (size_t i = 0; i < m->net.n_params; i++)
            if (theta[i] != 0) sum -= power * log(m->params[i] / theta[i]);
        after -= sum;
        test_close_d("objective before, enumerated", &report.objective_before, &before, 1, 1e-12, 0);
        if (sets != SETS_ALL)
            test_close_d("objective after, enumerated", &report.objective_after, &after, 1, 1e-10, 1e-8);
        if (!CHECK(end < 1e-8 && end < start, "enumerated paths: at the optimum"))
            printf("     way %d sets %d: gradient %.3g -> %.3g\n", way, sets, start, end);
        CHECK(report.converged && moved < 1e-12, "certified, and the logits stay");
        free(theta);
        model_free(m);
    }
}

int main(void) {
    test_given_signs();
    test_all_signs();
    test_random_signs();
    test_transforms();
    test_measured_optimum();
    test_measured_refuses();
    test_paths();
    return test_summary();
}
