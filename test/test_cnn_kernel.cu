// test_cnn_kernel.cu -- tests of --rescale-kernel and --rescale-power in the convolutional trainer, on a GPU or on the
// CPU build.
//
//     make test-programs && build/cpu/test/test_cnn_kernel        (or build/cuda/test/test_cnn_kernel)
//
// 1. with given signs or labels, g is what ref_cnn.h's gradients give: one backward per image and output, in double
// 2. the estimate is close to the exact sum, by its own standard error
// 3. g follows a rescaling; path sums of first powers
// 4. on a data set: which images, how many at a time, which BatchNorm statistics; range, threads, what stays as it was
// 5. the rescaled weights are at the optimum of the reference's F for this g
#define TESTING
#include "train_cnn.cu"

#include "ref_cnn_rescale.h"
#include "trainer_cnn.h"

// Every kind of layer: strides, padding, biases, BatchNorm, both pools, shortcuts, a flattened map; convolutions wide
// enough for Winograd's algorithm.
static const struct {
    const char *name;
    RefCnnConfig k;
} nets[] = {
    {"small", {REF_SMALL, 1, 8, 8, 3, 0.1, 0, 1, 1, 0}},
    {"small, wide", {REF_SMALL, 2, 9, 7, 4, 0.3, 0, 1, 1, 0}},
    {"small, BatchNorm", {REF_SMALL, 3, 9, 10, 3, 0.3, 1, 1, 1, 0}},
    {"small, no bias", {REF_SMALL, 1, 8, 8, 3, 0.2, 0, 0, 0, 0}},
    {"allconv", {REF_ALLCONV, 3, 32, 32, 3, 0.02, 0, 1, 1, 0}},
    {"allconv, BatchNorm", {REF_ALLCONV, 1, 32, 32, 3, 0.02, 1, 1, 1, 0}},
    {"resnet18", {REF_RESNET18, 3, 16, 16, 3, 0.05, 1, 1, 1, 0}},
    {"resnet18, projections", {REF_RESNET18, 1, 9, 11, 3, 0.05, 1, 0, 0, 1}},
    {"resnet18, no norm", {REF_RESNET18, 3, 8, 8, 3, 0.13, 0, 1, 1, 0}},
};
enum { N_NETS = sizeof nets / sizeof *nets };
static const double LOG2 = 0.69314718055994530942;

// ----------------------------------------------------------------------------------------------------- the reference

// dlogit_k / dtheta_i of n images: d[(image * classes + k) * p + i]. BatchNorm: the batch's statistics, as constants.
typedef struct {
    int n, classes;
    size_t p;
    double *d;
    const double *logits;   // [n][classes] the reference's own
} jacobian;

static jacobian jacobian_of(RefCnn *ref, const double *x, int n) {
    jacobian j;
    j.n = n;
    j.p = ref_cnn_param_count(ref);
    ref->track_running = 0;
    ref_cnn_forward_layers(ref, REF_TRAIN, x, n);
    j.classes = (int)ref_window_out(&ref->layers[ref->n_layers - 1].win);
    j.logits = ref->logits;
    j.d = doubles((size_t)(n * j.classes) * j.p);
    double *one = doubles((size_t)(n * j.classes));
    ref->mode = REF_EVAL;  // the backward pass: nothing flows through mean and variance
    for (int row = 0; row < n * j.classes; row++) {
        one[row] = 1;
        ref_cnn_backward_from(ref, one);
        one[row] = 0;
        double *to = j.d + (size_t)row * j.p;
        for (int t = 0; t < ref->n_tensors; to += ref->tensors[t++].n)
            memcpy(to, ref->tensors[t].grad, ref->tensors[t].n * sizeof *to);
    }
    return j;
}

// sum over the images of |sum over k of weight[image][k] dlogit_k / dtheta|^power into g[p].
static void combine(const jacobian *j, const double *weight, int power, double *g) {
    memset(g, 0, j->p * sizeof *g);
    for (int image = 0; image < j->n; image++)
        for (size_t i = 0; i < j->p; i++) {
            double sum = 0;
            for (int k = 0; k < j->classes; k++)
                sum += weight[image * j->classes + k] * j->d[(size_t)(image * j->classes + k) * j->p + i];
            g[i] += power == 1 ? fabs(sum) : sum * sum;
        }
}

// softmax of one row.
static void probabilities(const double *logits, int classes, double *p) {
    double largest = logits[0], sum = 0;
    for (int k = 1; k < classes; k++) largest = fmax(largest, logits[k]);
    for (int k = 0; k < classes; k++) sum += exp(logits[k] - largest);
    for (int k = 0; k < classes; k++) p[k] = exp(logits[k] - largest) / sum;
}

// The signs of sample first + r, or with fisher p - [k is the drawn label]: as kernel.cuh says, here in double.
static void weights_of(const jacobian *j, int fisher, int first, int64_t random, int64_t step, double *weight) {
    const uint64_t stream = rng_stream(RNG_KERNEL, (uint32_t)step);
    for (int r = 0; r < j->n; r++, weight += j->classes) {
        const uint64_t sample = (uint64_t)(first + r);
        for (int k = 0; k < j->classes && !fisher; k++) {
            const uint64_t at = sample * (uint64_t)j->classes + (uint64_t)k;
            weight[k] = rng_word_at((uint64_t)random, stream, at) & 1 ? 1 : -1;
        }
        if (!fisher) continue;
        double left = (double)rng_uniform_at((uint64_t)random, stream, sample);
        int label = 0;
        probabilities(j->logits + r * j->classes, j->classes, weight);
        while (label + 1 < j->classes && left >= weight[label]) left -= weight[label++];
        weight[label] -= 1;
    }
}

// A net with its reference and n random images.
typedef struct {
    config c;
    model m;
    RefCnn ref;
    double *x;
    float *g;   // [n_params] between guards
} pair;

static void make_pair(pair *t, const RefCnnConfig *k, int n) {
    const size_t size = (size_t)(n * k->in_c * k->in_h * k->in_w);
    t->c = config_of(k);
    t->c.train.rescale_kernel = KERNEL_DATA;
    t->c.train.seed = 77;
    build(&t->m, k, &t->c, n);
    t->m.step = 3;
    t->ref = ref_cnn_create(k);
    randomise(&t->ref, 0);
    copy_to_model(&t->m, &t->ref);
    t->x = doubles(size);
    fill_doubles(t->x, size, 0.1, 1.5);
    t->g = out(t->m.net.n_params);
}
static void free_pair(pair *t) {
    model_free(&t->m);
    ref_cnn_free(&t->ref);
    release();
}

// add_kernel from zero, on the pair's images.
static void kernel_of(pair *t, int first, int n, int exponent) {
    upload_images(&t->m, t->x, n);
    CUDA_CHECK(cudaMemset(t->g, 0, t->m.net.n_params * sizeof(float)));
    add_kernel(&t->m, &t->c, first, n, exponent, t->g);
}

static double worst;  // |g - reference| relative to the tensor's largest

// Compares g, which lies like the model's parameters, with want[p], which is in the reference's order.
static void same_g(pair *t, const float *g, const double *want, double rel) {
    for (int i = 0; i < t->m.net.n_tensors; i++) {
        const train_tensor *tensor = &t->m.net.tensors[i];
        const RefTensor *r = ref_cnn_tensor(&t->ref, tensor->name);
        const double *w = want + ref_cnn_offset(&t->ref, (int)(r - t->ref.tensors));
        double largest = 0;
        for (size_t k = 0; k < r->n; k++) largest = fmax(largest, w[k]);
        same(tensor->name, g + tensor->offset, w, r->n, rel, rel * largest);
        const float *got = (const float *)fetch(g + tensor->offset, r->n * sizeof(float));
        for (size_t k = 0; k < r->n && largest > 0; k++)
            worst = fmax(worst, fabs((double)got[k] - w[k]) / largest);
    }
}

// ------------------------------------------------------------------------------------------------- 1. given the signs

static void test_given(const char *name, const RefCnnConfig *k, int kernel, int power) {
    enum { ROWS = 4, FIRST = 10 };
    static pair t;
    snprintf(label, sizeof label, "%s, kernel %d, power %d", name, kernel, power);
    make_pair(&t, k, ROWS);
    t.c.train.rescale_kernel = kernel;
    t.c.train.rescale_power = power == 1 ? POWER_ONE : POWER_TWO;
    float *params = train_host_copy(t.m.net.params, t.m.net.n_params);
    float *stats = train_host_copy(t.m.net.stats, t.m.net.n_stats);
    kernel_of(&t, FIRST, ROWS, 0);
    const jacobian j = jacobian_of(&t.ref, t.x, ROWS);
    double *weight = doubles((size_t)(ROWS * j.classes)), *want = doubles(j.p);
    weights_of(&j, kernel == KERNEL_FISHER, FIRST, t.c.train.seed, t.m.step, weight);
    combine(&j, weight, power, want);
    same_g(&t, t.g, want, 2e-5);
    size_t alive = 0;
    for (size_t i = 0; i < j.p; i++) alive += want[i] > 0;
    if (!CHECK(5 * alive > j.p, "many gradients are not zero")) printf("    %s: %zu of %zu\n", label, alive, j.p);
    same_bits("parameters", t.m.net.params, params, t.m.net.n_params * sizeof(float));
    same_bits("running statistics", t.m.net.stats, stats, t.m.net.n_stats * sizeof(float));
    for (int i = 0; i < t.m.net.n_counts; i++) CHECK(t.m.net.counts[i] == 0, "no training batch");
    // Output gradients of 2^7: g times 2^(7 power), bit for bit.
    float *scaled = train_host_copy(t.g, t.m.net.n_params);
    for (size_t i = 0; i < t.m.net.n_params; i++) scaled[i] = ldexpf(scaled[i], 7 * power);
    kernel_of(&t, FIRST, ROWS, 7);
    same_bits("output gradients of 2^7", t.g, scaled, t.m.net.n_params * sizeof(float));
    free(scaled);
    free(params);
    free(stats);
    free_pair(&t);
}

// --------------------------------------------------------------------------------------------------- 2. the estimate

// Over all signs the squares have the mean that the estimate is made for.
static void test_identity(const char *name, const RefCnnConfig *k) {
    enum { ROWS = 3 };
    static pair t;
    snprintf(label, sizeof label, "all signs, %s", name);
    make_pair(&t, k, ROWS);
    const jacobian j = jacobian_of(&t.ref, t.x, ROWS);
    double *weight = doubles((size_t)(ROWS * j.classes)), *g = doubles(j.p), *mean = doubles(j.p), *want = doubles(j.p);
    for (int signs = 0; signs < 1 << j.classes; signs++) {
        for (int row = 0; row < ROWS * j.classes; row++) weight[row] = signs >> row % j.classes & 1 ? 1 : -1;
        combine(&j, weight, 2, g);
        for (size_t i = 0; i < j.p; i++) mean[i] += g[i] / (1 << j.classes);
    }
    for (size_t row = 0; row < (size_t)(ROWS * j.classes); row++)
        for (size_t i = 0; i < j.p; i++) want[i] += j.d[row * j.p + i] * j.d[row * j.p + i];
    test_close_d(label, mean, want, j.p, 1e-10, 0);
    free_pair(&t);
}

// Mean and variance of one image's contribution to parameter i: over the signs, or over the labels.
static void moments_of(const jacobian *j, int fisher, int image, size_t i, double *mean, double *variance) {
    const double *d = j->d + (size_t)(image * j->classes) * j->p + i;
    double squares = 0, fourth = 0, p[16], average = 0;
    *mean = *variance = 0;
    probabilities(j->logits + image * j->classes, j->classes, p);
    for (int k = 0; k < j->classes; k++) {
        const double v = d[(size_t)k * j->p];
        squares += v * v;
        fourth += v * v * v * v;
        average += p[k] * v;
    }
    if (!fisher) {  // (sum s_k d_k)^2 has mean sum d^2 and variance 2 ((sum d^2)^2 - sum d^4)
        *mean = squares;
        *variance = 2 * (squares * squares - fourth);
        return;
    }
    for (int k = 0; k < j->classes; k++) {
        const double v = average - d[(size_t)k * j->p];  // gradient of the cross-entropy at label k
        *mean += p[k] * v * v;
        *variance += p[k] * v * v * v * v;
    }
    *variance -= *mean * *mean;
}

// Many draws of signs: their mean is within a few of its standard errors of the exact sum.
static void test_estimate(const char *name, const RefCnnConfig *k, int kernel) {
    enum { ROWS = 24, DRAWS = 32 };
    static pair t;
    const int fisher = kernel == KERNEL_FISHER;
    snprintf(label, sizeof label, "estimate, %s, kernel %d", name, kernel);
    make_pair(&t, k, ROWS);
    t.c.train.rescale_kernel = kernel;
    const jacobian j = jacobian_of(&t.ref, t.x, ROWS);
    upload_images(&t.m, t.x, ROWS);
    CUDA_CHECK(cudaMemset(t.g, 0, t.m.net.n_params * sizeof(float)));
    for (int draw = 0; draw < DRAWS; draw++) {
        t.m.step = draw;
        add_kernel(&t.m, &t.c, 0, ROWS, 0, t.g);
    }
    double largest = 0, squares = 0;
    size_t counted = 0;
    for (int l = 0; l < t.m.net.n_tensors; l++) {
        const train_tensor *tensor = &t.m.net.tensors[l];
        const RefTensor *r = ref_cnn_tensor(&t.ref, tensor->name);
        const size_t at = ref_cnn_offset(&t.ref, (int)(r - t.ref.tensors));
        const float *g = (const float *)fetch(t.g + tensor->offset, r->n * sizeof(float));
        for (size_t i = 0; i < r->n; i++) {
            double exact = 0, variance = 0, mean, own;
            for (int image = 0; image < ROWS; image++) {
                moments_of(&j, fisher, image, at + i, &mean, &own);
                exact += mean;
                variance += own;
            }
            if (variance <= 1e-10 * exact * exact) continue;  // one image, one output
            const double z = ((double)g[i] / DRAWS - exact) / sqrt(variance / DRAWS);
            largest = fmax(largest, fabs(z));
            squares += z * z;
            counted++;
        }
    }
    const double mean_square = squares / (double)counted;
    printf("     %s: largest |error| %.2f standard errors, mean square %.2f, of %zu parameters\n", label, largest,
           mean_square, counted);
    CHECK(counted * 2 > j.p, "most parameters have a variance");
    CHECK(largest < 6 && mean_square > 0.2 && mean_square < 3, "errors are those of chance");
    free_pair(&t);
}

// ------------------------------------------------------------------------------------- 3. rescalings, first powers

// Under a rescaling by u, lambda = exp(u / 2), g becomes g exp(power (Bu) / 2); by powers of two bit for bit.
static void test_transforms(const char *name, const RefCnnConfig *k, int power, int pow2) {
    enum { ROWS = 4 };
    static pair t;
    snprintf(label, sizeof label, "g after a rescaling, %s, power %d, pow2 %d", name, power, pow2);
    make_pair(&t, k, ROWS);
    t.c.train.rescale_power = power == 1 ? POWER_ONE : POWER_TWO;
    kernel_of(&t, 0, ROWS, 0);
    RefCnnGroups gr = ref_cnn_groups(&t.ref);
    const RefProblem q = ref_cnn_problem(&gr, NULL);
    double *want = doubles((size_t)gr.n_params), *u = doubles((size_t)gr.n_units);
    for (int i = 0; i < t.m.net.n_tensors; i++) {
        const train_tensor *tensor = &t.m.net.tensors[i];
        const RefTensor *r = ref_cnn_tensor(&t.ref, tensor->name);
        const float *g = (const float *)fetch(t.g + tensor->offset, r->n * sizeof(float));
        double *to = want + ref_cnn_offset(&t.ref, (int)(r - t.ref.tensors));
        for (size_t l = 0; l < r->n; l++) to[l] = (double)g[l];
    }
    fill_doubles(u, (size_t)gr.n_units, 0, 2);
    for (int h = 0; h < gr.n_units && pow2; h++) u[h] = 2 * LOG2 * rint(2 * u[h]);
    for (int i = 0; i < gr.n_params; i++) {
        const double log_factor = power * ref_bu(&q, u, i) / 2;
        want[i] = pow2 ? ldexp(want[i], (int)rint(log_factor / LOG2)) : want[i] * exp(log_factor);
    }
    ref_cnn_rescale(&t.ref, &gr, u);
    copy_to_model(&t.m, &t.ref);
    kernel_of(&t, 0, ROWS, 0);
    same_g(&t, t.g, want, pow2 ? 0 : 1e-4);
    ref_cnn_groups_free(&gr);
    free_pair(&t);
}

// Path sums of first powers, against the reference; extreme weights, too, stay in the range of floats.
static void test_paths(const char *name, const RefCnnConfig *k, int pool) {
    static pair t;
    snprintf(label, sizeof label, "paths, power 1, %s, pool %d", name, pool);
    make_pair(&t, k, 1);
    t.m.pool_max = pool == POOL_MAX;
    double *want = doubles(ref_cnn_param_count(&t.ref));
    ref_cnn_path_sums(&t.ref, pool == POOL_MAX ? REF_PATHS_MAX : REF_PATHS_SUM, 1, want);
    diag_g(&t.m, 1, 1);
    for (int i = 0; i < t.m.net.n_tensors; i++) {
        const train_tensor *tensor = &t.m.net.tensors[i];
        const RefTensor *r = ref_cnn_tensor(&t.ref, tensor->name);
        const double *w = want + ref_cnn_offset(&t.ref, (int)(r - t.ref.tensors));
        same(tensor->name, t.m.net.grads + tensor->offset, w, r->n, 1e-5, 1e-30);
    }
    free_pair(&t);
}

// Weights so small that g of ones leaves the range of floats: of the paths, or of the tangent kernel.
static void test_range(const RefCnnConfig *k, int kernel, int power, double factor) {
    enum { ROWS = 2 };
    static pair t;
    snprintf(label, sizeof label, "range, kernel %d, power %d, weights times %g", kernel, power, factor);
    make_pair(&t, k, ROWS);
    dataset images = images_of(k, ROWS, 1);
    device_data data = device_data_create(&images, 1);
    for (int i = 0; i < t.m.net.n_tensors; i++) {
        const int weight = t.m.net.tensors[i].role == RESCALE_WEIGHT;
        RefTensor *r = ref_cnn_tensor(&t.ref, t.m.net.tensors[i].name);
        for (size_t l = 0; l < r->n; l++) r->data[l] *= weight ? factor : 0;
    }
    copy_to_model(&t.m, &t.ref);
    t.m.samples = &data;
    t.c.train.rescale_kernel = kernel;
    t.c.train.rescale_power = power == 1 ? POWER_ONE : POWER_TWO;
    double *want = doubles(ref_cnn_param_count(&t.ref));
    const g_scale scale = kernel ? kernel_in_range(&t.m, &t.c) : diag_g_in_range(&t.m, power, 0);
    CHECK(scale.out + scale.in != 0 && scale.lost == 0, "ones would not do, a power of two does");
    if (!kernel) ref_cnn_path_sums(&t.ref, REF_PATHS_SUM, power, want);
    if (kernel) {  // the images as they are drawn
        const int *order = (const int *)fetch(data.order, ROWS * sizeof(int));
        float *sample = floats((size_t)images.features);
        for (int r = 0; r < ROWS; r++) {
            dataset_sample(&images, order[r], sample);
            for (int l = 0; l < images.features; l++) t.x[r * images.features + l] = (double)sample[l];
        }
        const jacobian j = jacobian_of(&t.ref, t.x, ROWS);
        double *weight = doubles((size_t)(ROWS * j.classes));
        weights_of(&j, kernel == KERNEL_FISHER, 0, t.c.train.seed, t.m.step, weight);
        combine(&j, weight, power, want);
    }
    for (int i = 0; i < t.m.net.n_tensors; i++) {
        const train_tensor *tensor = &t.m.net.tensors[i];
        const RefTensor *r = ref_cnn_tensor(&t.ref, tensor->name);
        double *w = want + ref_cnn_offset(&t.ref, (int)(r - t.ref.tensors));
        const int exponent = scale.out + (tensor->role == RESCALE_BIAS ? 0 : scale.in);
        for (size_t l = 0; l < r->n; l++) w[l] = ldexp(w[l], exponent) / (kernel ? ROWS : 1);
    }
    same_g(&t, t.m.net.grads, want, 1e-4);
    device_data_free(&data);
    free_pair(&t);
}

// ------------------------------------------------------------------------------------------------------ 4. on a set

// The images are the first of an order of their own. More than fit go through in parts of nearly the same size, each
// with its own statistics. Augmentation and the epoch's order do not matter; the next batch is what it would be.
static void test_samples(const char *name, const RefCnnConfig *k, int samples, int fit, int parts) {
    enum { ALL = 11 };
    static trainer t;
    config c = config_of(k);
    const int n = samples < ALL ? samples : ALL;
    c.train.rescale_kernel = KERNEL_DATA;
    c.train.rescale_samples = samples;
    c.train.seed = 5;
    c.train.batch_size = 3;
    c.augment = 1;
    snprintf(label, sizeof label, "%s, %d samples of %d, %d at a time", name, samples, ALL, fit);
    const dataset d = images_of(k, ALL, 1);
    make_trainer(&t, &c, k, &d, fit);
    t.run.step = 6;
    const size_t batch = (size_t)(3 * d.features) * sizeof(float);
    CHECK(next_batch(&t) == 3, "a batch");
    const float *before = (const float *)fetch(t.m.image, batch);
    t.m.step = t.run.step;
    kernel_diagonal(&t.m, &c, 0);
    float *got = train_host_copy(t.m.net.grads, t.m.net.n_params), *g = out(t.m.net.n_params);
    CUDA_CHECK(cudaMemset(g, 0, t.m.net.n_params * sizeof(float)));
    const uint64_t key = rng_permute_key(5, (uint64_t)(-1 - 6));
    float *sample = floats((size_t)d.features);
    double *x = doubles((size_t)(ALL * d.features));
    for (int i = 0, first = 0; i < parts; i++) {
        const int rows = (i + 1) * n / parts - first;
        CHECK(rows <= fit && rows >= n / parts, "parts of nearly the same size");
        for (int r = 0; r < rows; r++) {
            dataset_sample(&d, (int)rng_permute((uint32_t)(first + r), ALL, key), sample);
            for (int l = 0; l < d.features; l++) x[r * d.features + l] = (double)sample[l];
        }
        upload_images(&t.m, x, rows);
        add_kernel(&t.m, &c, first, rows, 0, g);
        first += rows;
    }
    double *want = doubles(t.m.net.n_params), largest = 0;
    const float *sum = (const float *)fetch(g, t.m.net.n_params * sizeof(float));
    for (size_t i = 0; i < t.m.net.n_params; i++) {
        want[i] = (double)sum[i] / n;
        largest = fmax(largest, want[i]);
    }
    // The trainer normalises pixels on the device, the test on the host.
    test_close(label, got, want, t.m.net.n_params, 1e-4, 1e-5 * largest);
    kernel_diagonal(&t.m, &c, 0);
    same_bits("again", t.m.net.grads, got, t.m.net.n_params * sizeof(float));
    rescale_report report;
    CHECK(rescale_now(&t, &report, NULL) == 0, "rescaling");
    CHECK(next_batch(&t) == 3, "a batch");
    same_bits("the batch after a rescaling", t.m.image, before, batch);
    t.m.step = 7;
    kernel_diagonal(&t.m, &c, 0);
    CHECK(memcmp(fetch(t.m.net.grads, t.m.net.n_params * sizeof(float)), got, t.m.net.n_params * sizeof(float)),
          "another step, other signs");
    free(got);
    free_trainer(&t);
    release();
}

// The same bits on one and on two threads.
static void test_threads(const char *name, const RefCnnConfig *k) {
#if !DEVICE_IS_GPU && defined(_OPENMP)
    static pair t;
    const int threads = omp_get_max_threads();
    snprintf(label, sizeof label, "threads, %s", name);
    make_pair(&t, k, 4);
    t.m.gemm.threads = 1;
    omp_set_num_threads(1);
    kernel_of(&t, 0, 4, 0);
    float *one = train_host_copy(t.g, t.m.net.n_params);
    omp_set_num_threads(2);
    if (!strstr(gemm_backend(), "OpenBLAS")) t.m.gemm.threads = 2;
    kernel_of(&t, 0, 4, 0);
    omp_set_num_threads(threads);
    same_bits("one and two threads", t.g, one, t.m.net.n_params * sizeof(float));
    free(one);
    free_pair(&t);
#else
    (void)k;
    printf("     threads, %s: not on this build\n", name);
#endif
}

// -------------------------------------------------------------------------------------------------- 5. the optimum

// The trainer's rescaled weights are those of the reference's optimum for the g that lies in grads (of paths: for the
// reference's g), with lambda = exp(u / power); and the function is the same.
static void test_optimum(const char *name, const RefCnnConfig *k, int kernel, int power) {
    enum { ALL = 20 };
    static trainer t;
    config c = config_of(k);
    rescale_report report;
    double moved = INFINITY;
    c.train.rescale_kernel = kernel;
    c.train.rescale_power = power == 1 ? POWER_AUTO : POWER_TWO;
    c.train.optimizer = OPTIMIZER_ADAMW;
    snprintf(label, sizeof label, "optimum, %s, kernel %d, power %d", name, kernel, power);
    const dataset d = images_of(k, ALL, 1);
    make_trainer(&t, &c, k, &d, ALL);
    RefCnn ref = ref_cnn_create(k);
    randomise(&ref, 1);
    copy_to_model(&t.m, &ref);
    RefCnnGroups gr = ref_cnn_groups(&ref);
    CHECK(rescale_now(&t, &report, &moved) == 0 && report.converged, "rescaling");
    double *g = doubles((size_t)gr.n_params), *u = doubles((size_t)gr.n_units);
    for (int i = 0; i < t.m.net.n_tensors; i++) {
        const train_tensor *tensor = &t.m.net.tensors[i];
        const RefTensor *r = ref_cnn_tensor(&ref, tensor->name);
        const float *from = (const float *)fetch(t.m.net.grads + tensor->offset, r->n * sizeof(float));
        double *to = g + ref_cnn_offset(&ref, (int)(r - ref.tensors));
        for (size_t l = 0; l < r->n; l++) to[l] = (double)from[l];
    }
    if (kernel == KERNEL_PATHS) ref_cnn_path_sums(&ref, REF_PATHS_SUM, power, g);
    const RefProblem q = ref_cnn_problem(&gr, g);
    RefPairs pairs = ref_pairs(&q);
    CHECK(ref_pairs_optimum(&pairs, u) < 1e-5, "the reference finds the optimum");
    const double F = ref_pairs_F(&pairs, u);
    test_close_d("F at the optimum", &report.objective_after, &F, 1, 1e-7, 0);
    for (int h = 0; h < gr.n_units; h++) u[h] *= 2.0 / power;
    ref_cnn_rescale(&ref, &gr, u);
    for (int i = 0; i < t.m.net.n_tensors; i++) {
        const train_tensor *tensor = &t.m.net.tensors[i];
        const RefTensor *r = ref_cnn_tensor(&ref, tensor->name);
        same(tensor->name, t.m.net.params + tensor->offset, r->data, r->n, 1e-3, 1e-30);
    }
    CHECK(moved <= 2e-5, "the function stays");
    ref_pairs_free(&pairs);
    ref_cnn_groups_free(&gr);
    ref_cnn_free(&ref);
    free_trainer(&t);
    release();
}

int main(void) {
    for (int i = 0; i < N_NETS; i++)
        for (int power = 1; power <= 2; power++) {
            const RefCnnConfig *k = &nets[i].k;
            for (int kernel = KERNEL_DATA; kernel <= KERNEL_FISHER; kernel++)
                test_given(nets[i].name, k, kernel, power);
            for (int pow2 = 0; pow2 < 2; pow2++) test_transforms(nets[i].name, k, power, pow2);
            for (int pool = POOL_SUM; pool <= POOL_MAX && power == 1; pool++) test_paths(nets[i].name, k, pool);
            for (int kernel = KERNEL_PATHS; kernel <= KERNEL_FISHER; kernel++)
                if (i == 1 || i == 2 || i == 6) test_optimum(nets[i].name, k, kernel, power);
        }
    printf("     largest error of g, relative to its tensor's largest: %.1e\n", worst);
    test_identity("small", &nets[0].k);
    test_identity("small, BatchNorm", &nets[2].k);
    for (int kernel = KERNEL_DATA; kernel <= KERNEL_FISHER; kernel++) {
        test_estimate("small", &nets[0].k, kernel);
        test_estimate("small, BatchNorm", &nets[2].k, kernel);
    }
    for (int kernel = KERNEL_PATHS; kernel <= KERNEL_FISHER; kernel++) {
        test_range(&nets[4].k, kernel, 2, 1e-3);
        test_range(&nets[4].k, kernel, 1, 1e-5);
    }
    test_samples("small", &nets[1].k, 4, 11, 1);
    test_samples("small, BatchNorm", &nets[2].k, 10, 4, 3);
    test_samples("small, BatchNorm", &nets[2].k, 100, 3, 4);
    for (int i = 0; i < N_NETS; i += 3) test_threads(nets[i].name, &nets[i].k);
    return test_summary();
}
