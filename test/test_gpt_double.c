// test_gpt_double.c -- the transformer of train_gpt_style.c built in double precision: its gradients, to many digits.
//
//     make test-programs && build/c/test/test_gpt_double
//
// 1. the reference of ref_gpt.h agrees with finite differences of its own loss
// 2. loss, logits and gradients agree with the reference: odd shapes, chunks, micro-batches, with and without
//    recomputing
// 3. finite differences of the trainer's own loss, for every parameter kind
// 4. every rescaling set leaves the function alone, and gradients and optimizer state change as they must
#define TESTING
#define REAL double
#include "train_gpt_style.c"

#include "gpt_test.h"

static void test_reference(void) {
    const gpt_case k = {2, 3, 6, 5, 7, 0, 2, 4};
    const RefGpt r = gpt_ref(&k);
    model m;
    gpt_make(&m, &k, 0);
    const size_t n = ref_gpt_size(&r);
    double *theta = gpt_flat(&m, m.params), *d = ref_gpt_doubles(n), *fd = ref_gpt_doubles(n);
    CHECK(n == (size_t)train_parameter_count(&m.net), "the reference has as many parameters as the model");
    ref_gpt_loss(&r, theta, m.tokens, m.targets, k.B, k.T, NULL, d);
    for (size_t i = 0; i < n; i++) {
        const double keep = theta[i], h = 1e-5;
        theta[i] = keep + h;
        const double up = ref_gpt_loss(&r, theta, m.tokens, m.targets, k.B, k.T, NULL, NULL);
        theta[i] = keep - h;
        fd[i] = (up - ref_gpt_loss(&r, theta, m.tokens, m.targets, k.B, k.T, NULL, NULL)) / (2 * h);
        theta[i] = keep;
    }
    gpt_compare_gradients("reference against finite differences", &m, d, fd, 1e-7);
    free(theta);
    free(d);
    free(fd);
    model_free(&m);
}

// Variants of one computation: activations recomputed, rows in small chunks, micro-batches.
static void test_against_reference(void) {
    for (int i = 0; i < GPT_CASES; i++)
        for (int variant = 0; variant < 4; variant++) {
            const gpt_case *k = &gpt_cases[i];
            const RefGpt r = gpt_ref(k);
            char label[128];
            model m;
            gpt_make(&m, k, variant == 1);
            if (variant == 2) {
                m.chunk = 5;
                m.head_rows = 3;
            }
            const int N = k->B * k->T;
            double *theta = gpt_flat(&m, m.params), *want = ref_gpt_doubles(ref_gpt_size(&r));
            double *logits = ref_gpt_doubles((size_t)(N * k->V));
            const double loss = ref_gpt_loss(&r, theta, m.tokens, m.targets, k->B, k->T, logits, want);
            double got;
            snprintf(label, sizeof label, "case %d variant %d", i, variant);
            for (size_t j = 0; j < m.net.n_params; j++) m.grads[j] = 0.5;  // what an earlier step left
            if (variant == 3 && k->B > 1) {
                zero_gradients(&m);
                got = 0;
                int *tokens = (int *)train_alloc(NULL, (size_t)(2 * N), sizeof(int)), *targets = tokens + N;
                memcpy(tokens, m.tokens, (size_t)N * sizeof(int));
                memcpy(targets, m.targets, (size_t)N * sizeof(int));
                for (int b = 0; b < k->B; b++) {
                    memcpy(m.tokens, tokens + b * k->T, (size_t)k->T * sizeof(int));
                    memcpy(m.targets, targets + b * k->T, (size_t)k->T * sizeof(int));
                    got += forward_backward(&m, 1, k->T, 1.0 / N) / N;
                }
                free(tokens);
            } else {
                got = gpt_gradient(&m, k->B, k->T);
            }
            test_close_d("loss", &got, &loss, 1, 1e-12, 0);
            double *grads = gpt_flat(&m, m.grads);
            gpt_compare_gradients(label, &m, grads, want, 1e-11);
            if (variant == 0 || variant == 2) {
                forward(&m, k->B, k->T, 0);
                for (int first = 0; first < N; first += m.head_rows) {
                    const int rows = min_int(m.head_rows, N - first);
                    compute_logits(&m, first, rows);
                    const double *want_logits = logits + (size_t)first * (size_t)k->V;
                    test_close_d("logits", m.logits, want_logits, (size_t)(rows * k->V), 1e-11, 1e-11);
                }
            }
            free(theta);
            free(want);
            free(logits);
            free(grads);
            model_free(&m);
        }
}

// Central differences of the trainer's own loss at elements of every tensor.
static void test_finite_differences(void) {
    const gpt_case cases[] = {{2, 3, 12, 9, 13, 0, 3, 9}, {2, 1, 8, 17, 11, 1, 1, 17}, {1, 2, 8, 80, 11, 1, 1, 75}};
    for (int i = 0; i < 3; i++) {
        const gpt_case *k = &cases[i];
        model m;
        gpt_make(&m, k, 0);
        gpt_gradient(&m, k->B, k->T);
        const size_t N = (size_t)(k->B * k->T);
        for (int j = 0; j < m.net.n_tensors; j++) {
            const train_tensor *t = &m.net.tensors[j];
            const size_t n = (size_t)t->rows * (size_t)t->cols, tried = n < 24 ? n : 24;
            double got[24], want[24], largest = 0, hits = 0;
            for (size_t e = 0; e < n; e++) largest = fmax(largest, fabs(m.grads[t->offset + e]));
            for (size_t e = 0; e < tried; e++) {
                const size_t at = t->offset + e * 7919 % n;
                const double keep = m.params[at], h = 1e-5;
                got[e] = m.grads[at];
                m.params[at] = keep + h;
                forward(&m, k->B, k->T, 0);
                const double up = loss_forward_backward(&m, (int)N, 0, &hits);
                m.params[at] = keep - h;
                forward(&m, k->B, k->T, 0);
                want[e] = (up - loss_forward_backward(&m, (int)N, 0, &hits)) / (2 * h) / (double)N;
                m.params[at] = keep;
            }
            CHECK(largest > 1e-6, t->name);
            test_close_d(t->name, got, want, tried, 1e-6, 1e-7 * largest + 1e-10);
        }
        model_free(&m);
    }
}

// Whether a tensor belongs to one of the sets.
static int in_sets(const train_tensor *t, int sets) {
    if (sets & SET_MLP && strstr(t->name, "mlp.c_")) return 1;
    if (sets & SET_VO && strstr(t->name, "attn.c_")) return 1;
    if (sets & SET_QK && strstr(t->name, "attn.c_attn")) return 1;
    if (!(sets & SET_LN)) return 0;
    return strstr(t->name, "ln_") || strstr(t->name, "c_attn.weight") || strstr(t->name, "c_fc.weight") ||
           strstr(t->name, "lm_head");
}

// Every set alone and all: the same loss, a lower log-det objective, a certificate. The gradient of a parameter is
// divided by the factor that multiplied the parameter, and so are the moments (the second by its square).
static void test_rescaling(void) {
    static const int choices[] = {SET_MLP, SET_VO, SET_QK, SET_LN, SETS_ALL};
    for (int i = 0; i < 2; i++)
        for (int s = 0; s < 5; s++) {
            const int sets = choices[s];
            const gpt_case k = {2, 3, 12, 17, 13, i, 2, 17};
            model m;
            config c = gpt_config(&k);
            c.sets = sets;
            gpt_make(&m, &k, 0);
            const double before = gpt_gradient(&m, k.B, k.T);
            const size_t n = m.net.n_params;
            double *old = ref_gpt_doubles(2 * n), *grads = old + n;
            memcpy(old, m.params, n * sizeof(double));
            memcpy(grads, m.grads, n * sizeof(double));
            for (size_t j = 0; j < n; j++) {
                m.moment1[j] = 1;
                m.moment2[j] = 1;
            }
            rescale_report report;
            CHECK(rescale_model(&m, &c, &report) == 0, report.message);
            CHECK(report.converged && report.grad_inf <= report.grad_tolerance, "the optimum is certified");
            CHECK(report.objective_after < report.objective_before, "the objective went down");
            CHECK(report.units > 0 && report.pinned_units == 0 && report.max_abs_log_lambda > 1e-3, "units moved");
            const double after = gpt_gradient(&m, k.B, k.T);
            test_close_d("loss after rescaling", &after, &before, 1, 1e-13, 0);
            int consistent = 1, moved = 0, only_named = 1;
            for (int t = 0; t < m.net.n_tensors; t++) {
                const train_tensor *tensor = &m.net.tensors[t];
                int changed = 0;
                for (size_t j = tensor->offset; j < tensor->offset + (size_t)tensor->rows * (size_t)tensor->cols; j++) {
                    const double factor = m.params[j] / old[j];
                    if (!(fabs(m.grads[j] * factor - grads[j]) <= 1e-10 * (fabs(grads[j]) + 1e-3))) consistent = 0;
                    const double moment1 = m.moment1[j] * factor, moment2 = m.moment2[j] * factor * factor;
                    if (!(fabs(moment1 - 1) <= 1e-12 && fabs(moment2 - 1) <= 1e-12)) consistent = 0;
                    if (fabs(factor - 1) > 1e-9) {
                        moved++;
                        changed = 1;
                    }
                }
                if (changed && !in_sets(tensor, sets)) only_named = 0;
            }
            CHECK(consistent, "gradients and optimizer state follow the parameters");
            CHECK(moved > 10 && only_named, "the sets that were asked for, and no others, were scaled");
            free(old);
            model_free(&m);
        }
}

// Set qk in closed form: minimum where a query's row and its key's row are of equal size.
static void test_qk_closed_form(void) {
    const gpt_case k = {1, 2, 8, 4, 5, 1, 1, 4};
    model m;
    config c = gpt_config(&k);
    rescale_report report;
    c.sets = SET_QK;
    gpt_make(&m, &k, 0);
    rescale_model(&m, &c, &report);
    const block *w = &m.w.block[0];
    double q[8], kk[8];
    joint_sums(q, w->qkv_w, w->qkv_b, 8, 8, 0, 2);
    joint_sums(kk, w->qkv_w + 64, w->qkv_b + 8, 8, 8, 0, 2);
    test_close_d("|q row| = |k row|", q, kk, 8, 1e-9, 0);
    model_free(&m);
}

// All sets together: a second rescaling has nothing left to do, and the objective before is that of the weights alone,
// whatever the options. Reported per set.
static void test_joint_optimum(void) {
    for (int way = 0; way < 4; way++) {
        const gpt_case k = {2, 3, 12, 17, 13, way & 1, 2, 17};
        model m;
        config c = gpt_config(&k);
        rescale_report report, again;
        double alone = 0;
        gpt_make(&m, &k, 0);
        if (way & 2) c.train.rescale_paths = 1;
        double *start = ref_gpt_doubles(m.net.n_params);
        memcpy(start, m.params, m.net.n_params * sizeof(double));
        for (int set = 0; set < N_SETS; set++) {
            c.sets = 1 << set;
            CHECK(rescale_model(&m, &c, &report) == 0, report.message);
            memcpy(m.params, start, m.net.n_params * sizeof(double));
            alone += report.objective_before;
        }
        c.sets = SETS_ALL;
        CHECK(rescale_model(&m, &c, &report) == 0, report.message);
        test_close_d("objective before, all sets", &report.objective_before, &alone, 1, 1e-12, 0);
        CHECK(report.converged && report.grad_inf <= report.grad_tolerance, "the joint optimum is certified");
        double before = 0, after = 0;
        for (int set = 0; set < N_SETS; set++) {
            const rescale_report *r = &m.set_report[set];
            const int certified = r->converged && r->grad_inf <= r->grad_tolerance;
            CHECK(r->units > 0 && certified && r->max_abs_log_lambda > 1e-3, "every set is reported");
            before += r->objective_before;
            after += r->objective_after;
        }
        test_close_d("sum over sets before", &before, &report.objective_before, 1, 1e-12, 0);
        test_close_d("sum over sets after", &after, &report.objective_after, 1, 1e-12, 0);
        CHECK(rescale_model(&m, &c, &again) == 0, again.message);
        if (!CHECK(again.max_abs_log_lambda < 1e-6, "a second pass moves nothing"))
            printf("     moved %g\n", again.max_abs_log_lambda);
        static const int pow2[2] = {1, 0};
        for (int option = 0; option < 2; option++) {
            memcpy(m.params, start, m.net.n_params * sizeof(double));
            c.train.rescale_pow2 = pow2[option];
            c.train.rescale_max_log = 0.1;
            CHECK(rescale_model(&m, &c, &again) == 0 && again.max_abs_log_lambda <= 0.1 + 1e-12,
                  "a bound holds over all passes");
            test_close_d("objective before, other options", &again.objective_before, &alone, 1, 1e-12, 0);
        }
        free(start);
        model_free(&m);
    }
}

// Mean and standard deviation of log(after / before) of n numbers are those of a group.
static void check_log_lambda(const analysis_group *g, const real *before, const real *after, int n) {
    double mean = 0, squares = 0;
    for (int i = 0; i < n; i++) mean += log(after[i] / before[i]) / n;
    for (int i = 0; i < n; i++) squares += pow(log(after[i] / before[i]) - mean, 2);
    const double deviation = sqrt(squares / n);
    CHECK(g->units == n, "a group has as many units");
    test_close_d("mean log lambda", &g->mean, &mean, 1, 1e-9, 1e-12);
    test_close_d("standard deviation of log lambda", &g->deviation, &deviation, 1, 1e-9, 1e-9);
}

// The analysis of a joint rescaling: its log lambda is what happened to the weights, and what it says of tensors
// afterwards is what the next one says of them before.
static void test_analysis(int tied, int of_block) {
    const gpt_case k = {2, 3, 12, 17, 13, tied, 2, 17};
    const int n_groups = 11 - tied, n_tensors = 43 - 3 * tied;
    analysis_rows rows[2];
    model m;
    config c = gpt_config(&k);
    rescale_report report;
    gpt_make(&m, &k, 0);
    c.sets = SETS_ALL;
    double *start = ref_gpt_doubles(m.net.n_params);
    memcpy(start, m.params, m.net.n_params * sizeof(double));
    memset(rows, 0, sizeof rows);
    for (int i = 0; i < 2; i++) {
        rows[i].net = &m.net;
        m.net.analysis = &rows[i];
        CHECK(rescale_model(&m, &c, &report) == 0, report.message);
        CHECK(rows[i].n_groups == n_groups && rows[i].n_tensors == n_tensors && !rows[i].spread_known,
              "a row for every tensor and group of every set");
        if (i == 0) {
            const block *w = &m.w.block[of_block];
            const real *const scaled[5] = {w->ln1_w, w->qkv_b, w->qkv_b + 2 * m.C, w->ln2_w, w->fc_b};
            for (int part = 0; part < 5; part++)
                check_log_lambda(&rows[0].groups[5 * of_block + part], start + (scaled[part] - m.params), scaled[part],
                                 part == 4 ? 4 * m.C : m.C);
        }
    }
    CHECK(!strcmp(rows[0].tensors[4].set, "qk") &&
              !strcmp(rows[0].tensors[6].name, "transformer.h.0.attn.c_attn.weight (keys)"),
          "the set, and the tensor's name with the part of it");
    for (int i = 0; i < n_tensors; i++) {
        const rescale_tensor_report *first = &rows[0].tensors[i].in, *second = &rows[1].tensors[i].in;
        test_close_d("share after, and then before", &first->share[1], &second->share[0], 1, 1e-8, 1e-12);
        test_close_d("spread after, and then before", &first->spread[1], &second->spread[0], 1, 1e-6, 1e-10);
    }
    for (int g = 0; g < n_groups; g++)
        CHECK(fabs(rows[1].groups[g].least) < 1e-6 && fabs(rows[1].groups[g].largest) < 1e-6, "nothing is left to do");
    for (int i = 0; i < 2; i++) analysis_free(&rows[i]);
    free(start);
    model_free(&m);
}

int main(void) {
    test_joint_optimum();
    test_analysis(0, 0);
    test_analysis(1, 1);
    test_reference();
    test_against_reference();
    test_finite_differences();
    test_rescaling();
    test_qk_closed_form();
    return test_summary();
}
