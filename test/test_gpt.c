// test_gpt.c -- tests of the transformer trainer in single precision, whole and piece by piece.
//
//     make test-programs && build/c/test/test_gpt
//
// 1. exp, LayerNorm, attention, cross-entropy, embeddings against plain sums in double (ref_gpt.h), on odd shapes
// 2. gradients of whole networks against the reference
// 3. the loss of fresh networks; fifty AdamW steps against PyTorch's losses
// 4. rescaling leaves the function alone, at initialisation and in training; powers of two bit for bit; bad weights are
//    refused
// 5. same command, same bits; one thread and several; micro-batches and recomputing
// 6. windows of an epoch, evaluation, corpora; sampling
// What a user meets (command line, files, resume) is in test_train_gpt_style.sh; finite differences in
// test_gpt_double.c.
#define TESTING
#include "train_gpt_style.c"

#include "gpt_test.h"

// 64 well-mixed bits of k; make_pytorch_gpt_reference.py has the same formula.
static uint64_t mix(uint64_t k) {
    uint64_t z = (k + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static void fill(float *x, double *copy, size_t n, double spread) {
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)(spread * test_random());
        copy[i] = (double)x[i];
    }
}
static void poison(float *x, size_t n) { memset(x, 0xff, n * sizeof *x); }
static void threads(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

// -------------------------------------------------------------------------------------------------------------- pieces

// Every 61st float from -87 to -0, and what lies outside.
static void test_exp(void) {
    double worst = 0;
    uint32_t first, bits;
    const float end = -87.0f;
    memcpy(&first, &end, sizeof first);
    for (bits = UINT32_C(0x80000000); bits <= first; bits += 61) {
        float x;
        int exponent;
        memcpy(&x, &bits, sizeof x);
        const double want = exp((double)x);
        frexp(want, &exponent);
        worst = fmax(worst, fabs((double)real_exp_negative(x) - want) / ldexp(1, exponent - 24));
    }
    printf("exp_negative: at most %.3f units in the last place off\n", worst);
    CHECK(worst <= 1.25, "exp_negative is within 1.25 units in the last place");
    const int at_the_ends = real_exp_negative(0) == 1 && real_exp_negative(-INFINITY) == 0 &&
                            real_exp_negative(-1e30f) == 0;
    CHECK(at_the_ends && isnan(real_exp_negative(NAN)), "exp_negative at 0, -inf, NaN");
}

static void test_layernorm(void) {
    static const int shapes[][2] = {{1, 1}, {1, 5}, {3, 17}, {33, 48}, {65, 100}, {40, 384}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int with = 0; with < 2; with++) {
            const int rows = shapes[s][0], C = shapes[s][1];
            const size_t n = (size_t)(rows * C), c = (size_t)C;
            model m;
            memset(&m, 0, sizeof m);
            m.C = C;
            m.partial = alloc_reals(((size_t)rows / ROW_BLOCK + 1) * 3 * c);
            float *x = alloc_reals(n), *before = alloc_reals(n), *out = alloc_reals(n), *d = alloc_reals(n);
            float *dx = alloc_reals(n), *v = alloc_reals(7 * c), *stats = alloc_reals(2 * (size_t)rows);
            float *gain = v, *bias = v + c, *b = v + 2 * c, *dgain = v + 3 * c, *dbias = v + 4 * c, *db = v + 5 * c;
            double *xd = ref_gpt_doubles(n), *bd = ref_gpt_doubles(n), *dd = ref_gpt_doubles(n);
            double *want = ref_gpt_doubles(n), *dxd = ref_gpt_doubles(n);
            double *vd = ref_gpt_doubles(7 * c), *dgd = vd + 3 * c, *dbd = vd + 4 * c, *dsum = vd + 5 * c;
            fill(x, xd, n, 2);
            fill(before, bd, n, 2);
            fill(d, dd, n, 1);
            fill(dx, dxd, n, 1);
            fill(v, vd, 3 * c, 1);
            for (size_t i = 0; i < c; i++) {  // they are added to
                dgain[i] = dbias[i] = db[i] = 1;
                dgd[i] = dbd[i] = dsum[i] = 1;
            }
            poison(out, n);
            poison(stats, 2 * (size_t)rows);
            residual_layernorm(out, stats, stats + rows, x, with ? before : NULL, b, gain, bias, rows, C);
            for (size_t i = 0; with && i < n; i++) xd[i] = (double)(float)(bd[i] + (xd[i] + vd[2 * c + i % c]));
            test_close("residual", x, xd, n, 1e-6, 1e-6);
            // LayerNorm of nearly equal channels would blow up the last bit of x.
            for (size_t i = 0; i < n; i++) xd[i] = (double)x[i];
            for (int r = 0; r < rows; r++) ref_gpt_layernorm(want + r * C, xd + r * C, vd, vd + c, C);
            test_close("LayerNorm", out, want, n, 0, 4e-6);
            residual_layernorm_backward(&m, dx, with, dgain, dbias, db, d, x, stats, stats + rows, gain, rows);
            if (!with) memset(dxd, 0, n * sizeof *dxd);
            for (int r = 0; r < rows; r++)
                ref_gpt_layernorm_backward(dxd + r * C, dgd, dbd, xd + r * C, vd, dd + r * C, C);
            for (size_t i = 0; i < n; i++) dsum[i % c] += dxd[i];
            test_close("LayerNorm backward: dx", dx, dxd, n, 1e-5, C == 1 ? 1e-3 : 1e-5);
            test_close("LayerNorm backward: gain", dgain, dgd, c, 1e-5, 2e-5);
            test_close("LayerNorm backward: bias", dbias, dbd, c, 1e-5, 1e-5);
            test_close("LayerNorm backward: sum of dx", db, dsum, c, 1e-5, C == 1 ? 1e-3 : 2e-4);
            free(m.partial);
            free(x);
            free(before);
            free(out);
            free(d);
            free(dx);
            free(v);
            free(stats);
            free(xd);
            free(bd);
            free(dd);
            free(want);
            free(dxd);
            free(vd);
        }
}

// The whole of attention and its backward pass, poisoned outputs, against whole matrices in double.
static void test_attention(void) {
    static const int shapes[][4] = {{1, 1, 1, 1},    {1, 1, 1, 17},  {3, 3, 7, 17},   {1, 3, 16, 64}, {3, 1, 32, 65},
                                    {1, 2, 64, 130}, {2, 3, 5, 300}, {1, 1, 64, 513}, {3, 3, 48, 1}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const int B = shapes[s][0], NH = shapes[s][1], HS = shapes[s][2], T = shapes[s][3], C = NH * HS;
        const gpt_case k = {1, NH, C, T, 3, 1, B, T};
        const size_t n = (size_t)(B * T * C), TC = (size_t)(T * C);
        model m;
        gpt_make(&m, &k, 0);
        const activations *a = &m.a[0];
        double *qkv = ref_gpt_doubles(3 * n), *out = ref_gpt_doubles(n), *d = ref_gpt_doubles(n);
        double *dqkv = ref_gpt_doubles(3 * n), *sums = ref_gpt_doubles(3 * (size_t)C);
        double *p = ref_gpt_doubles((size_t)NH * (size_t)T * (size_t)T);
        fill(a->qkv, qkv, 3 * n, 2);
        fill(m.datt, d, n, 1);
        poison(a->att, n);
        poison(m.dqkv, 3 * n);
        poison(a->lse, (size_t)(B * NH * T));
        memset(m.dw.block[0].qkv_b, 0, 3 * (size_t)C * sizeof(float));
        attention(&m, a, B, T, 0);
        attention_backward(&m, a, m.dw.block[0].qkv_b, B, T);
        for (int b = 0; b < B; b++) {
            const size_t at = (size_t)b * TC;
            ref_gpt_attention(out + at, p, qkv + 3 * at, T, C, NH);
            ref_gpt_attention_backward(dqkv + 3 * at, p, qkv + 3 * at, d + at, T, C, NH);
        }
        for (size_t i = 0; i < 3 * n; i++) sums[i % (3 * (size_t)C)] += dqkv[i];
        test_close("attention", a->att, out, n, 2e-6, 2e-6);
        test_close("attention backward", m.dqkv, dqkv, 3 * n, 2e-5, 2e-5);
        test_close("attention backward: bias", m.dw.block[0].qkv_b, sums, 3 * (size_t)C, 2e-5, 2e-4);
        poison(a->att + TC - (size_t)C, (size_t)C);  // the last position alone, from keys and values that are there
        if (B == 1) {
            attention(&m, a, 1, T, T - 1);
            test_close("attention of the last query", a->att, out, n, 2e-6, 2e-6);
        }
        free(qkv);
        free(out);
        free(d);
        free(dqkv);
        free(sums);
        free(p);
        model_free(&m);
    }
}

static void test_cross_entropy(void) {
    static const int shapes[][2] = {{1, 2}, {3, 17}, {17, 256}, {5, 1000}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int with = 0; with < 2; with++) {
            const int rows = shapes[s][0], V = shapes[s][1];
            const size_t n = (size_t)(rows * V);
            model m;
            memset(&m, 0, sizeof m);
            m.V = V;
            m.logits = alloc_reals(n);
            m.row_loss = ref_gpt_doubles((size_t)rows);
            m.row_hit = (int *)train_alloc(NULL, (size_t)rows, sizeof(int));
            double *x = ref_gpt_doubles(n), *d = ref_gpt_doubles(n), *loss = ref_gpt_doubles((size_t)rows);
            int *target = (int *)train_alloc(NULL, 2 * (size_t)rows, sizeof(int)), *is_best = target + rows, right = 1;
            fill(m.logits, x, n, 20);
            if (s == 3) {  // far beyond the range of exp
                m.logits[V + 1] = 3000;
                x[V + 1] = 3000;
            }
            for (int r = 0; r < rows; r++) {
                int best = 0;
                target[r] = (int)(mix((uint64_t)r) % (uint64_t)V);
                for (int v = 0; v < V; v++) best = x[r * V + v] > x[r * V + best] ? v : best;
                if (r % 2) target[r] = best;
                is_best[r] = target[r] == best;
                loss[r] = ref_gpt_cross_entropy(d + r * V, x + r * V, target[r], V);
            }
            cross_entropy(&m, target, rows, with ? 0.25f : 0);
            for (int r = 0; r < rows; r++) right = right && m.row_hit[r] == is_best[r];
            test_close_d("cross-entropy", m.row_loss, loss, (size_t)rows, 2e-6, 1e-6);
            CHECK(right, "a target with the largest logit is a hit");
            for (size_t i = 0; i < n; i++) d[i] = with ? d[i] * 0.25 : x[i];
            test_close("gradient of cross-entropy, or untouched logits", m.logits, d, n, 2e-6, 1e-7);
            free(m.logits);
            free(m.row_loss);
            free(m.row_hit);
            free(x);
            free(d);
            free(loss);
            free(target);
        }
}

// ------------------------------------------------------------------------------------------------------ whole networks

static void test_gradients(void) {
    for (int i = 0; i < GPT_CASES; i++) {
        const gpt_case *k = &gpt_cases[i];
        const RefGpt r = gpt_ref(k);
        char label[64];
        model m;
        gpt_make(&m, k, 0);
        double *theta = gpt_flat(&m, m.params), *want = ref_gpt_doubles(ref_gpt_size(&r));
        const double loss = ref_gpt_loss(&r, theta, m.tokens, m.targets, k->B, k->T, NULL, want);
        const double got = gpt_gradient(&m, k->B, k->T);
        double *grads = gpt_flat(&m, m.grads);
        snprintf(label, sizeof label, "case %d", i);
        test_close_d("loss", &got, &loss, 1, 1e-5, 0);
        gpt_compare_gradients(label, &m, grads, want, 2e-4);
        free(theta);
        free(want);
        free(grads);
        model_free(&m);
    }
}

// ln V within 2% on random tokens: tied and untied, bytes and GPT-2's vocabulary, all widths of the presets.
static void test_initial_loss(void) {
    static const gpt_case cases[] = {
        {4, 4, 128, 128, 256, 1, 1, 128}, {6, 6, 384, 64, 256, 0, 1, 64}, {2, 12, 768, 16, 50257, 1, 1, 16}};
    for (int i = 0; i < 3; i++) {
        const gpt_case *k = &cases[i];
        config c = gpt_config(k);
        model m;
        char err[256];
        double hits = 0;
        if (model_create(&m, &c, k->B, 0, err, sizeof err)) exit(1);
        model_init(&m, &c);
        for (int r = 0; r < k->B * k->T; r++) {
            m.tokens[r] = (int)(mix((uint64_t)r) % (uint64_t)k->V);
            m.targets[r] = (int)(mix((uint64_t)r + 1000000) % (uint64_t)k->V);
        }
        forward(&m, k->B, k->T, 0);
        const double loss = loss_forward_backward(&m, k->B * k->T, 0, &hits) / (k->B * k->T);
        printf("initial loss %.4f, ln %d = %.4f\n", loss, k->V, log(k->V));
        CHECK(fabs(loss / log(k->V) - 1) < 0.02, "the initial loss is ln(vocabulary) within 2%");
        model_free(&m);
    }
}

enum { PARITY_V = 37, PARITY_T = 16, PARITY_BATCH = 4, PARITY_WINDOWS = 50, PARITY_STEPS = 50 };

// PyTorch's losses of a run: one a step, then the evaluation's. Returns how many there are.
static int read_parity(const char *name, double *want) {
    char line[128], run[32], step[16];
    int rows = 0;
    FILE *f = fopen("test/reference_pytorch_gpt.csv", "r");
    double loss;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "%31[^,],%15[^,],%lf", run, step, &loss) == 3 && !strcmp(run, name)) {
            want[strcmp(step, "eval") ? atoi(step) - 1 : PARITY_STEPS] = loss;
            rows++;
        }
    if (f) fclose(f);
    return rows;
}

// Loads the formula's weights and trains as make_pytorch_gpt_reference.py does.
static void test_parity(void) {
    enum { V = PARITY_V, T = PARITY_T, BATCH = PARITY_BATCH, WINDOWS = PARITY_WINDOWS, STEPS = PARITY_STEPS };
    static int token[WINDOWS * T + 1];
    for (int i = 1; i <= WINDOWS * T; i++) {
        const uint64_t random = mix((uint64_t)i), next = (uint64_t)(5 * token[i - 1] + 3);
        token[i] = (int)((random % 5 == 0 ? random : next) % V);
    }
    for (int which = 0; which < 2; which++) {
        const gpt_case k = {2, 3, 24, T, V, !which, WINDOWS, T};
        const char *name = which ? "untied" : "tied";
        config c = gpt_config(&k);
        double want[STEPS + 1], got[STEPS + 1];
        const int rows = read_parity(name, want);
        if (!CHECK(rows == STEPS + 1, "test/reference_pytorch_gpt.csv has all rows (run in the repository's root)"))
            continue;
        model m;
        gpt_make(&m, &k, 0);
        uint64_t index = 0;
        for (int i = 0; i < m.net.n_tensors; i++) {
            const train_tensor *t = &m.net.tensors[i];
            for (size_t j = 0; j < (size_t)t->rows * (size_t)t->cols; j++) {
                const double s = 2 * ((double)(mix(index++) >> 11) / 9007199254740992.0) - 1;
                double value = (t->role == RESCALE_GAIN) + s / 10;
                if (t->n_dims == 2) value = s / sqrt((double)t->cols);
                m.params[t->offset + j] = (float)value;
            }
        }
        c.train.weight_decay = 0.1;
        c.clip = 1;
        c.beta1 = 0.9;
        c.beta2 = 0.999;
        for (int s = 0; s < STEPS; s++) {
            for (int b = 0; b < BATCH; b++)
                for (int t = 0; t < T; t++) {
                    const int at = (s * BATCH + b) % WINDOWS * T + t;
                    m.tokens[b * T + t] = token[at];
                    m.targets[b * T + t] = token[at + 1];
                }
            got[s] = gpt_gradient(&m, BATCH, T);
            update(&m, &c, which ? 4e-3 : 2e-3, s);
        }
        for (int i = 0; i < WINDOWS * T; i++) {
            m.tokens[i] = token[i];
            m.targets[i] = token[i + 1];
        }
        double hits = 0;
        forward(&m, WINDOWS, T, 0);
        got[STEPS] = loss_forward_backward(&m, WINDOWS * T, 0, &hits) / (WINDOWS * T);
        double worst = 0;
        for (int s = 0; s <= STEPS; s++) worst = fmax(worst, fabs(got[s] / want[s] - 1));
        printf("PyTorch parity, %s: losses of %d steps within %.1e\n", name, STEPS, worst);
        test_close_d("losses against PyTorch", got, want, STEPS + 1, 1e-4, 0);
        model_free(&m);
    }
}

// A few steps on fixed random batches. Returns the last loss.
static double train_some(model *m, const config *c, const gpt_case *k, int first, int steps) {
    double loss = 0;
    for (int s = first; s < first + steps; s++) {
        for (int r = 0; r < k->B * k->T; r++) {
            m->tokens[r] = (int)(mix((uint64_t)(s * k->B * k->T + r) / 3) % (uint64_t)k->V);
            m->targets[r] = (m->tokens[r] * 3 + 1) % k->V;
        }
        loss = gpt_gradient(m, k->B, k->T);
        update(m, c, 1e-3, s);
    }
    return loss;
}

// ----------------------------------------------------------------------------------------------------------- rescaling

static void test_rescaling(void) {
    static const int sets[] = {SET_MLP, SET_VO, SET_QK, SET_LN, SETS_ALL};
    static const gpt_case cases[] = {{2, 4, 128, 64, 256, 1, 1, 64}, {2, 3, 48, 40, 65, 0, 2, 40}};
    for (int i = 0; i < 2; i++)
        for (int s = 0; s < 5; s++)
            for (int later = 0; later < 2; later++)
                for (int pow2 = 0; pow2 < 2; pow2++) {
                    const gpt_case *k = &cases[i];
                    config c = gpt_config(k);
                    rescale_report report;
                    double moved = 1;
                    model m;
                    gpt_make(&m, k, 0);
                    model_init(&m, &c);
                    if (later) train_some(&m, &c, k, 0, 3);
                    c.sets = sets[s];
                    c.train.rescale_pow2 = pow2;
                    CHECK(rescale_and_measure(&m, &c, &report, &moved) == 0, report.message);
                    const double least = pow2 ? -1 : 1e-4;
                    CHECK(report.max_abs_log_lambda > least && report.converged,
                          "something was rescaled, to the optimum");
                    if (!CHECK(moved <= (pow2 ? 0 : 2e-5),
                               "the logits stay: within 2e-5 of the largest, with powers of two bit for bit"))
                        printf("     set %d later %d pow2 %d: moved %.2e\n", c.sets, later, pow2, moved);
                    if (later && !pow2) CHECK(isfinite(train_some(&m, &c, k, 3, 3)), "training goes on");
                    model_free(&m);
                }
}

// A NaN in any set is refused with the tensor's name; a dead unit is pinned and counted.
static void test_rescaling_refuses(void) {
    const gpt_case k = {1, 2, 16, 8, 11, 1, 1, 8};
    for (int s = 0; s < 4; s++) {
        config c = gpt_config(&k);
        rescale_report report;
        model m;
        gpt_make(&m, &k, 0);
        c.sets = 1 << s;
        const block *w = &m.w.block[0];
        float *const spoiled[4] = {w->fc_w, w->out_w, w->qkv_b, w->ln2_w};
        spoiled[s][3] = NAN;
        CHECK(rescale_model(&m, &c, &report) == -1 && report.message[0], "NaN is refused");
        model_free(&m);
    }
    config c = gpt_config(&k);
    rescale_report report;
    model m;
    double moved;
    gpt_make(&m, &k, 0);
    c.sets = SET_MLP;
    for (int i = 0; i < 16; i++) m.w.block[0].proj_w[i * 64 + 5] = 0;
    const int succeeds = rescale_and_measure(&m, &c, &report, &moved) == 0 && moved <= 2e-5;
    CHECK(succeeds && report.pinned_units == 1, "a unit without outgoing weights is pinned");
    model_free(&m);
}

// ----------------------------------------------------------------------------------------------------- reproducibility

// Parameters after 20 steps from the seed.
static double *twenty_steps(const gpt_case *k, int n_threads, int recompute) {
    config c = gpt_config(k);
    model m;
    threads(n_threads);
    gpt_make(&m, k, recompute);
    model_init(&m, &c);
    train_some(&m, &c, k, 0, 20);
    double *theta = gpt_flat(&m, m.params);
    model_free(&m);
    return theta;
}

static void test_reproducible(void) {
    const gpt_case k = {2, 3, 48, 70, 65, 1, 3, 70};
    const RefGpt r = gpt_ref(&k);
    const size_t n = ref_gpt_size(&r);
    const int before = device_threads();
    double *two = twenty_steps(&k, 2, 0), *again = twenty_steps(&k, 2, 0);
    double *one = twenty_steps(&k, 1, 0), *saved = twenty_steps(&k, 2, 1);
    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(two[i] - one[i]));
    printf("parameters after 20 steps on 1 and 2 threads: differ by at most %.1e\n", largest);
    CHECK(!memcmp(two, again, n * sizeof *two), "the same run twice: the same bits");
    test_close_d("1 thread and 2 threads", one, two, n, 0, 1e-5);
    CHECK(!memcmp(two, saved, n * sizeof *two), "recomputed activations: the same bits");
    free(two);
    free(again);
    free(one);
    free(saved);
    threads(before);
}

// ------------------------------------------------------------------------------------------------------ data, sampling

// The corpus of a text of the bytes 0 .. 6 in turn, with a vocabulary; *status: of loading it.
static corpus corpus_of(const char *path, int vocabulary, int *status) {
    static config c;
    char err[2 * LOG_PATH];
    corpus d;
    c = default_config();
    c.context = 8;
    c.vocabulary = vocabulary;
    c.train.data = path;
    *status = corpus_load(&d, &c.train, c.val_data, c.context, &c.vocabulary, err, sizeof err);
    return d;
}

static void test_corpus(void) {
    const char *dir = test_make_dir();
    char path[1200];
    int status;
    snprintf(path, sizeof path, "%s/text", dir);
    FILE *f = fopen(path, "w");
    for (int i = 0; f && i < 200; i++) fputc(i % 7, f);
    if (f) fclose(f);
    corpus d = corpus_of(path, 0, &status);
    CHECK(status == 0 && d.n_train == 180 && d.n_val == 20 && d.val == d.train + 180, "the last tenth validates");
    const int in_place = d.train[8] == 1 && d.val[0] == 180 % 7;
    CHECK(in_place && d.start == '\n', "bytes are tokens; a newline stands for an empty prompt");
    corpus_free(&d);
    d = corpus_of(path, 7, &status);
    CHECK(status == 0 && d.start == 0, "... but for a vocabulary without it");
    corpus_free(&d);
    d = corpus_of(path, 6, &status);
    CHECK(status == -1, "a byte beyond the vocabulary is refused");
    corpus_free(&d);
    test_remove_dir(dir);
}

// Every window of an epoch is inside the training tokens. The windows of an epoch do not overlap. Epochs are cut
// differently.
static void test_windows(void) {
    static trainer t;
    config c = default_config();
    for (size_t n = 17; n < 400; n += 61)
        for (int shuffle = 0; shuffle < 2; shuffle++) {
            memset(&t, 0, sizeof t);
            t.c = &c;
            t.m.T = 16;
            t.data.n_train = n;
            c.train.shuffle = shuffle ? SHUFFLE_EPOCH : SHUFFLE_NONE;
            const int64_t all = ((int64_t)n - 1) / 16;
            t.windows = all > 1 && shuffle ? all - 1 : all;
            int inside = 1, apart = 1, in_order = 1;
            size_t offsets = 0;
            for (int64_t epoch = 0; epoch < 3; epoch++) {
                char *taken = (char *)train_alloc(NULL, n, 1);
                for (int64_t i = 0; i < t.windows; i++) {
                    const size_t at = window_start(&t, epoch, i);
                    inside = inside && at + 16 < n;
                    in_order = in_order && at == (size_t)i * 16;
                    for (size_t j = at; j < at + 16 && j < n; j++) {
                        apart = apart && !taken[j];
                        taken[j] = 1;
                    }
                    if (i == 0) offsets = offsets * 31 + at % 16;
                }
                free(taken);
            }
            CHECK(inside && apart, "windows lie inside the data and do not overlap");
            if (!shuffle) CHECK(in_order, "--shuffle none: in order");
            else if (n > 100) CHECK(!in_order && offsets, "shuffled: another order and another cut every epoch");
        }
}

// The mean over disjoint windows of the validation tokens, by the reference.
static void test_evaluate(void) {
    static trainer t;
    const gpt_case k = {1, 2, 12, 8, 13, 1, 3, 8};
    const RefGpt r = gpt_ref(&k);
    uint16_t tokens[8 * 7 + 3];
    int in[8 * 7], out[8 * 7];
    config c = gpt_config(&k);
    memset(&t, 0, sizeof t);
    gpt_make(&t.m, &k, 0);
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) tokens[i] = (uint16_t)(mix(i) % 13);
    t.c = &c;
    t.data.train = t.data.val = tokens;
    t.data.n_train = t.data.n_val = sizeof tokens / sizeof *tokens;
    for (int i = 0; i < 56; i++) {
        in[i] = tokens[i];
        out[i] = tokens[i + 1];
    }
    double *theta = gpt_flat(&t.m, t.m.params);
    const double want = ref_gpt_loss(&r, theta, in, out, 7, 8, NULL, NULL);
    for (int test = 0; test < 2; test++) {
        double loss = INFINITY, accuracy = 0;
        evaluate(&t, test, &loss, &accuracy);
        test_close_d("evaluation", &loss, &want, 1, 1e-5, 0);
        CHECK(accuracy >= 0 && accuracy <= 1, "accuracy is a fraction");
    }
    free(theta);
    model_free(&t.m);
}

static void test_draw(void) {
    const real logits[5] = {1.0f, -0.5f, 2.0f, 0.3f, -INFINITY};
    double sum = 0, p[5], chi2 = 0;
    int count[5] = {0}, few[5] = {0}, hot = 0, n = 20000;
    real work[5];
    for (int i = 0; i < 5; i++) sum += exp((double)logits[i] / 0.7);
    for (int i = 0; i < 5; i++) p[i] = exp((double)logits[i] / 0.7) / sum;
    for (int i = 0; i < n; i++) {
        const double u = (i + 0.5) / n;
        count[sample_draw(logits, 5, 0.7, 0, u, work)]++;
        few[sample_draw(logits, 5, 0.7, 2, u, work)]++;
        hot += sample_draw(logits, 5, 0, 0, u, work) == 2;
    }
    for (int i = 0; i < 4; i++) chi2 += (count[i] - n * p[i]) * (count[i] - n * p[i]) / (n * p[i]);
    CHECK(chi2 < 0.01 && !count[4], "uniform draws come out with softmax's probabilities");
    const double share = p[2] / (p[2] + p[0]);
    CHECK(few[1] + few[3] + few[4] == 0 && fabs(few[2] / (double)n - share) < 1e-3, "top-k keeps the likeliest");
    CHECK(hot == n, "temperature 0 is the likeliest");
    CHECK(sample_draw(logits, 5, 1, 0, 0.9999999999, work) == 3,
          "the last token that is possible, not one that is not");
}

// One position at a time gives the logits of the whole sequence at once.
static void test_incremental(void) {
    const gpt_case k = {3, 2, 32, 90, 29, 0, 1, 90};
    model m;
    gpt_make(&m, &k, 0);
    int tokens[90];
    memcpy(tokens, m.tokens, sizeof tokens);
    forward(&m, 1, 90, 0);
    double want[29], one[29];
    compute_logits(&m, 89, 1);
    for (int v = 0; v < 29; v++) want[v] = (double)m.logits[v];
    memset(m.acts, 0xff, (size_t)((real *)m.tokens - m.acts) * sizeof(real));  // NaN in all activations
    for (int n = 1, known = 0; n <= 90; known = n, n += n == 1 ? 40 : 1) {
        for (int i = known; i < n; i++) m.tokens[i] = tokens[i];
        forward(&m, 1, n, known);
    }
    compute_logits(&m, 89, 1);
    for (int v = 0; v < 29; v++) one[v] = (double)m.logits[v];
    test_close_d("logits, one position at a time", one, want, 29, 1e-4, 1e-4);
    model_free(&m);
}

int main(void) {
    test_exp();
    test_layernorm();
    test_attention();
    test_cross_entropy();
    test_gradients();
    test_initial_loss();
    test_parity();
    test_rescaling();
    test_rescaling_refuses();
    test_reproducible();
    test_corpus();
    test_windows();
    test_evaluate();
    test_draw();
    test_incremental();
    return test_summary();
}
