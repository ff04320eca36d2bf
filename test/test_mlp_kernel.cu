// test_mlp_kernel.cu -- tests of train_mlp's --rescale-kernel: the diagonal of the tangent kernel on samples.
//
//     make test T=test_mlp_kernel
//
// 1. g against one backward pass for each output and sample in double precision (ref_mlp.h), combined with the same
//    signs; with all combinations of signs, it is the sum over outputs of squares
// 2. random signs: the estimate is within its own standard errors of that sum
// 3. a rescaling moves g_i by exp((B u)_i)
// 4. samples in several chunks; the same bits again and on two threads
// 5. rescaling by g: outputs stay, F falls, nothing is left to do
#define TESTING
#include "train_mlp.cu"

#include "ref_mlp.h"
#include "ref_parity.h"
#include "trainer.h"
#include "trainer_mlp.h"

enum { SAMPLES = 41, ORDER_OF = 3 };  // samples of the data set; the training step that draws signs and samples

// ------------------------------------------------------------------------------------------------------- the reference

// A network of each kind, in double; biases, gains and shifts are all at random.
typedef struct net_case {
    const char *name;
    int dims[6], n_layers, bias, norm, task;
} net_case;
static const net_case cases[] = {
    {"bias", {5, 9, 8, 3}, 3, 1, NORM_NONE, TASK_CLASSIFY},
    {"no bias", {5, 9, 8, 3}, 3, 0, NORM_NONE, TASK_CLASSIFY},
    {"BatchNorm", {5, 9, 8, 3}, 3, 1, NORM_BATCH, TASK_CLASSIFY},
    {"BatchNorm, no bias", {5, 9, 8, 7, 4}, 4, 0, NORM_BATCH, TASK_CLASSIFY},
    {"one layer", {6, 3}, 1, 1, NORM_NONE, TASK_CLASSIFY},
    {"autoencoder", {7, 6, 3, 6, 7}, 4, 1, NORM_NONE, TASK_AUTOENCODE},
    {"autoencoder, BatchNorm", {7, 6, 3, 6, 7}, 4, 1, NORM_BATCH, TASK_AUTOENCODE},
};
enum { N_CASES = sizeof cases / sizeof *cases };

// A model, its twin in double, and samples on the device.
typedef struct setting {
    config c;
    model m;
    RefMlp ref;
    device_data data;
    float *x;  // [SAMPLES][dims[0]] of the data set
    size_t p;
    int out;
} setting;

static void fill_reference(RefMlp *ref) {
    for (int i = 0; i < ref->n_tensors; i++) {
        RefTensor *t = &ref->tensors[i];
        const int gain = strncmp(t->name, "bn", 2) == 0 && strstr(t->name, "weight");
        const double spread = t->cols > 1 ? 1.2 / sqrt(t->cols) : 0.4;
        for (size_t k = 0; k < t->n; k++) t->data[k] = (double)(float)(gain + spread * (double)uniform());
    }
}

static void open_setting(setting *s, const net_case *k, int samples, int max_rows) {
    memset(s, 0, sizeof *s);
    s->c = default_config();
    s->c.bias = k->bias;
    s->c.norm = k->norm;
    s->c.task = k->task;
    s->c.train.seed = 17;
    s->c.train.rescale_kernel = KERNEL_DATA;
    s->c.train.rescale_samples = samples;
    snprintf(label, sizeof label, "%s", k->name);
    s->ref = ref_mlp_create(k->dims, k->n_layers, k->bias, k->bias, k->norm == NORM_BATCH);
    s->ref.track_running = 0;
    fill_reference(&s->ref);
    build(&s->m, k->dims, k->n_layers, &s->c, max_rows);
    copy_to_model(&s->m, &s->ref);
    s->out = k->dims[k->n_layers];
    for (int i = 0; i < s->ref.n_tensors; i++) s->p += s->ref.tensors[i].n;
    const size_t n_x = SAMPLES * (size_t)k->dims[0];
    unsigned char labels[SAMPLES];
    s->x = floats(n_x);
    fill(s->x, n_x, 0.2, 1.5);
    for (int i = 0; i < SAMPLES; i++) labels[i] = (unsigned char)(i % s->out);
    s->data.n = SAMPLES;
    s->data.features = k->dims[0];
    s->data.channels = 1;
    s->data.values = in(s->x, n_x);
    s->data.labels = (unsigned char *)guarded(labels, sizeof labels);
    s->data.order = (int *)guarded(NULL, SAMPLES * sizeof(int));
    s->data.norm.mul[0] = 1;
}

static void close_setting(setting *s) {
    ref_mlp_free(&s->ref);
    model_free(&s->m);
    release();
}

// J[s][k][p]: gradients of output k of the sample at position s of the order, one backward pass for each. Statistics of
// BatchNorm are those of these samples, and constant.
static double *jacobian(setting *s, int samples) {
    const size_t d = (size_t)s->data.features, K = (size_t)s->out;
    const uint64_t key = rng_permute_key((uint64_t)s->c.train.seed, (uint64_t)(int64_t)(-1 - ORDER_OF));
    double *x = doubles((size_t)samples * d), *J = doubles((size_t)samples * K * s->p);
    int *no_labels = ints((size_t)samples);
    for (int i = 0; i < samples; i++) {
        const size_t from = rng_permute((uint32_t)i, SAMPLES, key);
        for (size_t c = 0; c < d; c++) x[(size_t)i * d + c] = (double)s->x[from * d + c];
    }
    ref_mlp_forward(&s->ref, REF_TRAIN, REF_CROSS_ENTROPY, x, no_labels, NULL, samples);
    s->ref.mode = REF_EVAL;  // backward with constant statistics
    for (size_t i = 0; i < (size_t)samples * K; i++) {
        double *to = J + i * s->p;
        memset(s->ref.d_output, 0, (size_t)samples * K * sizeof(double));
        s->ref.d_output[i] = 1;
        ref_mlp_backward(&s->ref);
        for (int t = 0; t < s->ref.n_tensors; t++) {
            memcpy(to, s->ref.tensors[t].grad, s->ref.tensors[t].n * sizeof(double));
            to += s->ref.tensors[t].n;
        }
    }
    return J;
}

// What multiplies the outputs' gradients for position i of the order: signs, or for Fisher's p - [label].
static void output_gradient(const setting *s, int i, int64_t step, double *d) {
    const uint64_t seed = (uint64_t)s->c.train.seed, stream = rng_stream(RNG_KERNEL, (uint32_t)step);
    const int K = s->out, fisher = s->c.train.rescale_kernel == KERNEL_FISHER && s->c.task == TASK_CLASSIFY;
    for (int k = 0; k < K && !fisher; k++)
        d[k] = rng_word_at(seed, stream, (uint64_t)(i * K + k)) & 1 ? 1 : -1;
    if (!fisher) return;
    const double *logits = s->ref.a[s->ref.n_layers] + i * K, u = (double)rng_uniform_at(seed, stream, (uint64_t)i);
    double sum = 0, below = 0;
    int label_of = K - 1;
    for (int k = 0; k < K; k++) sum += exp(logits[k]);
    for (int k = 0; k < K; k++) d[k] = exp(logits[k]) / sum;
    for (int k = K - 1; k >= 0; k--) {  // the first label whose cumulated probability exceeds u
        below = 0;
        for (int j = 0; j <= k; j++) below += d[j];
        if (u < below) label_of = k;
    }
    d[label_of] -= 1;
}

// Mean over samples of |sum_k d_k J_k|^power.
static double *combined(const setting *s, const double *J, int samples, int64_t step, int power) {
    double *g = doubles(s->p), d[16];
    for (int i = 0; i < samples; i++) {
        output_gradient(s, i, step, d);
        for (size_t j = 0; j < s->p; j++) {
            double sum = 0;
            for (int k = 0; k < s->out; k++) sum += d[k] * J[(size_t)(i * s->out + k) * s->p + j];
            g[j] += pow(fabs(sum), power) / samples;
        }
    }
    return g;
}

// Compares the model's gradients, tensor by tensor, with values in the reference's order.
static void same_g(const char *what, setting *s, const double *want, double rel) {
    for (int i = 0; i < s->ref.n_tensors; i++) {
        const RefTensor *r = &s->ref.tensors[i];
        double largest = 0;
        char name[128];
        snprintf(name, sizeof name, "%s, %s", what, r->name);
        for (size_t k = 0; k < r->n; k++) largest = fmax(largest, want[k]);
        for (int j = 0; j < s->m.net.n_tensors; j++)
            if (strcmp(s->m.net.tensors[j].name, r->name) == 0)
                same(name, s->m.net.grads + s->m.net.tensors[j].offset, want, r->n, rel, rel * largest + 1e-12);
        want += r->n;
    }
}

// Fills grads with NaN, then with g.
static void fill_g(setting *s) {
    CUDA_CHECK(cudaMemset(s->m.net.grads, 0xff, s->m.net.n_params * sizeof(float)));
    kernel_on_data(&s->m, &s->c, &s->data, ORDER_OF);
}

// ------------------------------------------------------------------------------------------------------ 1. brute force

// fisher: labels that the model draws, in place of signs.
static void test_brute_force(const net_case *k, int fisher) {
    setting s;
    const int samples = 13;
    open_setting(&s, k, samples, 16);
    s.c.train.rescale_kernel = fisher ? KERNEL_FISHER : KERNEL_DATA;
    const double *J = jacobian(&s, samples);
    for (int power = 1; power < 3; power++) {
        char what[64];
        snprintf(what, sizeof what, "%s, power %d", fisher ? "fisher" : "data", power);
        s.c.train.rescale_power = power == 1 ? POWER_ONE : POWER_TWO;
        fill_g(&s);
        same_g(what, &s, combined(&s, J, samples, ORDER_OF, power), 3e-5);
        CHECK(padding_untouched(&s.m), "nothing is written between the tensors");
    }
    s.c.train.rescale_power = POWER_AUTO;
    for (int adamw = 0; adamw < 2; adamw++) {
        s.c.train.optimizer = adamw ? OPTIMIZER_ADAMW : OPTIMIZER_MOMENTUM;
        fill_g(&s);
        same_g("power by the optimizer", &s, combined(&s, J, samples, ORDER_OF, adamw ? 1 : 2), 3e-5);
    }
    close_setting(&s);
}

// Over all combinations of signs the average is the sum over outputs of squares: in the reference, and in the trainer
// with these signs in place of random ones.
static void test_all_signs(const net_case *k) {
    setting s;
    const int samples = 9;
    open_setting(&s, k, samples, 16);
    const double *J = jacobian(&s, samples);
    double *squares = doubles(s.p), *mean = doubles(s.p);
    float *signs = floats((size_t)(samples * s.out));
    const int K = s.out, all = 1 << K;
    for (size_t j = 0; j < (size_t)(samples * K) * s.p; j++) squares[j % s.p] += J[j] * J[j] / samples;
    for (int pattern = 0; pattern < all; pattern++) {
        for (int i = 0; i < samples * K; i++) signs[i] = pattern >> (i % K) & 1 ? 1.0f : -1.0f;
        for (int i = 0; i < samples; i++)
            for (size_t j = 0; j < s.p; j++) {
                double sum = 0;
                for (int o = 0; o < K; o++) sum += (double)signs[o] * J[(size_t)(i * K + o) * s.p + j];
                mean[j] += sum * sum / samples / all;
            }
        order_samples(&s.data, s.c.train.seed, -1 - ORDER_OF, 1);
        load_batch(&s.m, &s.data, 0, samples);
        forward(&s.m, samples, MODE_PROBE);
        CUDA_CHECK(cudaMemcpy(s.m.dx[0], signs, (size_t)(samples * K) * sizeof(float), cudaMemcpyHostToDevice));
        kernel_backward(&s.m, samples, 2, 1.0f / (float)(samples * all), pattern > 0);
    }
    test_close_d("all signs: the sum of squares", mean, squares, s.p, 1e-10, 1e-14);
    same_g("all signs, in the trainer", &s, squares, 3e-5);
    close_setting(&s);
}

// ----------------------------------------------------------------------------------------------------- 2. random signs

// Deviations of the estimate over its own standard errors, for every parameter: Var (sum_k s_k J_k)^2 over the signs is
// 2 (sum_k J_k^2)^2 - 2 sum_k J_k^4. Signs of 24 steps and 41 samples.
static void test_estimate(const net_case *k) {
    enum { STEPS = 24 };
    setting s;
    open_setting(&s, k, SAMPLES, 64);
    const double *J = jacobian(&s, SAMPLES);
    double *exact = doubles(s.p), *variance = doubles(s.p), *got = doubles(s.p), largest = 0, sum2 = 0;
    for (int i = 0; i < SAMPLES; i++)
        for (size_t j = 0; j < s.p; j++) {
            double two = 0, four = 0;
            for (int o = 0; o < s.out; o++) {
                const double J2 = pow(J[(size_t)(i * s.out + o) * s.p + j], 2);
                two += J2;
                four += J2 * J2;
            }
            exact[j] += two / SAMPLES;
            variance[j] += 2 * (two * two - four) / SAMPLES / SAMPLES / STEPS;
        }
    for (int step = 0; step < STEPS; step++) {
        const double *once = combined(&s, J, SAMPLES, 1000 + step, 2);  // the same samples, other signs
        for (size_t j = 0; j < s.p; j++) got[j] += once[j] / STEPS;
    }
    size_t counted = 0;
    for (size_t j = 0; j < s.p; j++) {
        if (!(variance[j] > 1e-9 * exact[j] * exact[j])) {  // a unit that no sample reaches, or one output alone
            CHECK(fabs(got[j] - exact[j]) <= 1e-9 * exact[j], "nothing to estimate");
            continue;
        }
        const double z = (got[j] - exact[j]) / sqrt(variance[j]);
        largest = fmax(largest, fabs(z));
        sum2 += z * z;
        counted++;
    }
    const double rms = counted ? sqrt(sum2 / (double)counted) : 0;
    if (counted)
        printf("%s: %zu parameters, deviations of %.2f standard errors, at most %.2f\n", label, counted, rms, largest);
    CHECK(counted == 0 || (largest < 5 && rms < 1.8 && rms > 0.4), "the estimate is within its standard errors");
    close_setting(&s);
}

// ------------------------------------------------------------------------------------------------------- 3. rescalings

// g of a randomly rescaled network is g_i exp((B u)_i); the same samples and signs.
static void test_transforms(const net_case *k, int power) {
    setting s;
    open_setting(&s, k, SAMPLES, 64);
    s.c.train.rescale_power = power == 1 ? POWER_ONE : POWER_TWO;
    static rescale_group group[MAX_LAYERS];
    static rescale_tensor tensors[4 * MAX_LAYERS];
    const rescale_net net = {group, s.m.n_layers - 1, tensors, describe(&s.m, group, tensors)};
    double *u = doubles(64), *want = doubles(s.m.net.n_params);
    int first[MAX_LAYERS] = {0};
    for (int l = 0; l < net.n_groups; l++) first[l + 1] = first[l] + group[l].n;
    for (int h = 0; h < first[net.n_groups]; h++) u[h] = 2 * (double)uniform();
    fill_g(&s);
    float *before = train_host_copy(s.m.net.grads, s.m.net.n_params);
    for (int i = 0; i < net.n_tensors; i++) {
        const rescale_tensor *t = &tensors[i];
        const size_t offset = s.m.net.tensors[i].offset;
        for (int j = 0; j < t->n_out * t->n_in; j++) {
            double bu = 0;
            if (t->enters >= 0) bu -= u[first[t->enters] + j / t->n_in];
            if (t->leaves >= 0) bu += u[first[t->leaves] + j % t->n_in];
            want[offset + (size_t)j] = (double)before[offset + (size_t)j] * exp(bu);
        }
        tensors[i].g = s.m.net.grads + offset;
    }
    rescale_options o = train_rescale_options(&s.c.train);
    rescale_report r;
    CHECK(o.power == power && rescale_apply(&net, &o, u, &r) == RESCALE_OK, "a random rescaling");
    fill_g(&s);
    for (int i = 0; i < net.n_tensors; i++) {
        const size_t n = (size_t)(tensors[i].n_out * tensors[i].n_in), offset = s.m.net.tensors[i].offset;
        char name[64];
        double largest = 0;
        snprintf(name, sizeof name, "g behind a rescaling, power %d, %s", power, tensors[i].name);
        for (size_t j = 0; j < n; j++) largest = fmax(largest, want[offset + j]);
        same(name, s.m.net.grads + offset, want + offset, n, 1e-4, 1e-5 * largest);
    }
    free(before);
    close_setting(&s);
}

// ------------------------------------------------------------------------------------------- 4. chunks, bits, threads

// In several chunks, the last one shorter; all samples when there are fewer than asked for.
static void test_chunks(const net_case *k) {
    setting s, whole;
    open_setting(&whole, k, SAMPLES, 64);
    const double *J = jacobian(&whole, SAMPLES);
    for (int rows = 1; rows <= 40; rows = 3 * rows + 1) {
        seed = 11;
        open_setting(&s, k, rows % 2 ? SAMPLES : 100000, rows);
        for (int i = 0; i < s.ref.n_tensors; i++)
            memcpy(s.ref.tensors[i].data, whole.ref.tensors[i].data, s.ref.tensors[i].n * sizeof(double));
        copy_to_model(&s.m, &s.ref);
        const device_data own = s.data;
        s.data = whole.data;
        fill_g(&s);
        s.data = own;
        char what[32];
        snprintf(what, sizeof what, "%d rows at a time", rows);
        same_g(what, &s, combined(&whole, J, SAMPLES, ORDER_OF, 2), 3e-5);
        ref_mlp_free(&s.ref);
        model_free(&s.m);
    }
    ref_mlp_free(&whole.ref);
    model_free(&whole.m);
    release();
}

// BatchNorm: chunks are of one size, so that no chunk has statistics of one sample, which would blow up g.
static void test_even_chunks(void) {
    setting s;
    open_setting(&s, &cases[2], SAMPLES, 40);  // 41 = 40 + 1 samples
    fill_g(&s);
    float *g = train_host_copy(s.m.net.grads, s.m.net.n_params);
    const int chunk[2] = {20, 21};
    int at = 0, fits = 1;
    double *want = doubles(s.m.net.n_params);
    for (int half = 0; half < 2; half++) {
        load_batch(&s.m, &s.data, at, chunk[half]);
        forward(&s.m, chunk[half], MODE_PROBE);
        kernel_output_gradient(s.m.dx[0], s.m.x[s.m.n_layers], 0, at, chunk[half], s.out, s.c.train.seed, ORDER_OF);
        kernel_backward(&s.m, chunk[half], 2, 1.0f / SAMPLES, 0);
        float *part = train_host_copy(s.m.net.grads, s.m.net.n_params);
        for (size_t j = 0; j < s.m.net.n_params; j++) want[j] += (double)part[j];
        free(part);
        at += chunk[half];
    }
    for (int i = 0; i < s.m.net.n_tensors; i++) {
        const train_tensor *t = &s.m.net.tensors[i];
        for (size_t j = t->offset; j < t->offset + (size_t)t->rows * (size_t)t->cols; j++)
            fits = fits && fabs((double)g[j] - want[j]) <= 1e-5 * want[j] + 1e-9;
    }
    CHECK(fits, "41 samples, 40 at a time: 20 and 21");
    free(g);
    close_setting(&s);
}

static void test_bits(const net_case *k) {
    setting s;
    open_setting(&s, k, SAMPLES, 16);
    const size_t bytes = s.m.net.n_params * sizeof(float);
#if !DEVICE_IS_GPU
    if (strstr(gemm_backend(), "OpenBLAS")) s.m.gemm.threads = 1;
#endif
    fill_g(&s);
    float *once = train_host_copy(s.m.net.grads, s.m.net.n_params);
    for (int threads = 1; threads < 3; threads++) {
#ifdef _OPENMP
        omp_set_num_threads(threads);
#endif
        fill_g(&s);
        same_bits("again", s.m.net.grads, once, bytes);
    }
    s.c.train.seed = 18;
    fill_g(&s);
    float *other = train_host_copy(s.m.net.grads, s.m.net.n_params);
    CHECK(memcmp(once, other, bytes) != 0, "another seed, another g");
    free(once);
    free(other);
    close_setting(&s);
}

// ------------------------------------------------------------------------------------------------------- 5. rescaling

// Rescales by g as the trainer does. `level`, `fisher` and power vary.
static void test_rescale(const net_case *k, int fisher, int power, int level) {
    setting s;
    rescale_report r;
    double moved;
    open_setting(&s, k, SAMPLES, 64);
    s.c.train.rescale_kernel = fisher ? KERNEL_FISHER : KERNEL_DATA;
    s.c.train.rescale_power = power == 1 ? POWER_ONE : POWER_TWO;
    s.c.train.rescale_level = level;
    fill_g(&s);
    CHECK(rescale_and_measure(&s.m, &s.c, &r, &moved) == 0 && r.converged, "rescaling by g succeeds");
    if (r.status) printf("    %s: %s\n", label, r.message);
    CHECK(moved < 1e-5, "the outputs stay, in both modes");
    CHECK(s.m.n_layers == 1 || (r.objective_after < r.objective_before && r.max_abs_log_lambda > 0.01), "F falls");
    float *params = train_host_copy(s.m.net.params, s.m.net.n_params);
    int finite = 1;
    for (size_t i = 0; i < s.m.net.n_params; i++) finite = finite && isfinite(params[i]);
    CHECK(finite, "finite parameters");
    free(params);
    fill_g(&s);
    CHECK(rescale_model(&s.m, &s.c, &r) == 0 && r.max_abs_log_lambda < 1e-4, "again: nothing left to do");
    close_setting(&s);
}

int main(void) {
    for (int k = 0; k < N_CASES; k++)
        for (int fisher = 0; fisher < 2; fisher++) test_brute_force(&cases[k], fisher);
    for (int k = 0; k < 3; k++) test_all_signs(&cases[k]);
    for (int k = 0; k < N_CASES; k++) test_estimate(&cases[k]);
    for (int k = 0; k < N_CASES; k++)
        for (int power = 1; power < 3; power++) test_transforms(&cases[k], power);
    test_chunks(&cases[0]);
    test_chunks(&cases[5]);
    test_even_chunks();
    test_bits(&cases[0]);
    test_bits(&cases[2]);
    for (int k = 0; k < N_CASES; k++)
        for (int way = 0; way < 8; way++) test_rescale(&cases[k], way & 1, 1 + (way >> 1 & 1), way >> 2);
    return test_summary();
}
