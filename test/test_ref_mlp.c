// test_ref_mlp.c -- checks of ref_mlp.h, the double-precision reference that the trainers are tested against.
//
//     cc -O2 -std=c11 -D_GNU_SOURCE -Wall -Wextra test/test_ref_mlp.c -o build/test_ref_mlp -lm
//
// Every gradient against central finite differences, BatchNorm's statistics and the optimizers against hand
// computations, and whole training runs against PyTorch (reference_pytorch.csv).
#include "ref_parity.h"
#include "test.h"

static uint64_t seed = 7;

// Uniform in [-1, 1), a fixed sequence.
static double uniform(void) { return (double)(ref_parity_mix(seed++) >> 11) / 4503599627370496.0 - 1; }

static void fill(double *x, size_t n, double centre, double spread) {
    for (size_t i = 0; i < n; i++) x[i] = centre + spread * uniform();
}

// ---------------------------------------------------------------------------------------------------------------
// Finite differences

typedef struct {
    const char *name;
    int n_layers, dims[5];
    int bias, last_bias, bn, mode, loss, n;
} GradCase;

// The on/off pattern of all ReLUs of the last forward pass, appended to pattern; returns its length.
static size_t relu_pattern(const RefMlp *m, unsigned char *pattern) {
    size_t k = 0;
    for (int l = 0; l + 1 < m->n_layers; l++)
        for (size_t i = 0; i < (size_t)m->n * (size_t)m->dims[l + 1]; i++) pattern[k++] = m->pre[l][i] > 0;
    return k;
}

typedef struct {
    RefMlp *m;
    const GradCase *c;
    const double *x, *target;
    const int *labels;
    unsigned char *base, *moved; // ReLU patterns
    size_t relus;
    int checked, kinks;
} Differ;

// Loss with *value moved by e; *same is cleared when a ReLU switched.
static double loss_at(Differ *d, double *value, double e, int *same) {
    const double centre = *value;
    *value = centre + e;
    const double loss = ref_mlp_forward(d->m, d->c->mode, d->c->loss, d->x, d->labels, d->target, d->c->n);
    *value = centre;
    relu_pattern(d->m, d->moved);
    if (memcmp(d->base, d->moved, d->relus) != 0) *same = 0;
    return loss;
}

// Central differences of the loss for value[n] against grad[n]. A step across a ReLU's kink is made shorter and, if
// that does not help, the entry is left out and counted.
static void check_gradient(Differ *d, const char *tensor, double *value, const double *grad, size_t n) {
    double *numeric = ref_doubles(n), *want = ref_doubles(n);
    size_t used = 0;
    char name[128];
    for (size_t i = 0; i < n; i++) {
        int found = 0;
        for (double e = 1e-4; e > 1e-7 && !found; e /= 10) {
            int same = 1;
            // five-point rule: its truncation error is of order e^4, far below the tolerance
            const double far_up = loss_at(d, &value[i], 2 * e, &same), up = loss_at(d, &value[i], e, &same);
            const double down = loss_at(d, &value[i], -e, &same), far_down = loss_at(d, &value[i], -2 * e, &same);
            if (!same) continue;
            found = 1;
            numeric[used] = (8 * (up - down) - (far_up - far_down)) / (12 * e);
            want[used++] = grad[i];
        }
        d->checked += found;
        d->kinks += !found;
    }
    snprintf(name, sizeof name, "%s, gradient of %s", d->c->name, tensor);
    test_close_d(name, numeric, want, used, 1e-6, 1e-9);
    free(numeric);
    free(want);
}

static void check_gradients(const GradCase *c) {
    RefMlp m = ref_mlp_create(c->dims, c->n_layers, c->bias, c->last_bias, c->bn);
    const size_t n_in = (size_t)(c->n * c->dims[0]), n_out = (size_t)(c->n * c->dims[c->n_layers]);
    double *x = ref_doubles(n_in), *target = ref_doubles(n_out), *d_input = ref_doubles(n_in);
    int labels[32];
    size_t relus = 1;
    m.track_running = 0; // repeated forward passes must see the same statistics
    for (int t = 0; t < m.n_tensors; t++) fill(m.tensors[t].data, m.tensors[t].n, 0.05, 0.8);
    for (int l = 0; l + 1 < c->n_layers; l++) {
        relus += (size_t)c->n * (size_t)c->dims[l + 1];
        if (!c->bn) continue;
        fill(m.gamma[l], (size_t)c->dims[l + 1], 1, 0.6);
        fill(m.running_mean[l], (size_t)c->dims[l + 1], 0, 0.7);
        fill(m.running_var[l], (size_t)c->dims[l + 1], 1.2, 0.8);
    }
    fill(x, n_in, 0.1, 1.5);
    fill(target, n_out, 0, 1);
    for (int s = 0; s < c->n; s++) labels[s] = (int)(ref_parity_mix(seed++) % (uint64_t)c->dims[c->n_layers]);

    unsigned char *base = (unsigned char *)ref_grow(NULL, relus), *moved = (unsigned char *)ref_grow(NULL, relus);
    Differ d = {&m, c, x, target, labels, base, moved, 0, 0, 0};
    for (int t = 0; t < m.n_tensors; t++) fill(m.tensors[t].grad, m.tensors[t].n, NAN, 0); // must all be overwritten
    ref_mlp_forward(&m, c->mode, c->loss, x, labels, target, c->n);
    d.relus = relu_pattern(&m, base);
    ref_mlp_backward(&m);
    memcpy(d_input, m.d_input, n_in * sizeof *x);
    for (int t = 0; t < m.n_tensors; t++)
        check_gradient(&d, m.tensors[t].name, m.tensors[t].data, m.tensors[t].grad, m.tensors[t].n);
    check_gradient(&d, "input", x, d_input, n_in);
    CHECK(d.kinks * 50 <= d.checked, "fewer than one entry in fifty sits on a ReLU's kink");
    free(x);
    free(target);
    free(d_input);
    free(base);
    free(moved);
    ref_mlp_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------
// Hand computations

// BatchNorm of one channel on the batch 1, 2, 3, 6: mean 3, biased variance 3.5, unbiased 14/3.
static void check_batchnorm(void) {
    const int dims[] = {1, 1, 1};
    RefMlp m = ref_mlp_create(dims, 2, 0, 0, 1);
    const double x[] = {1, 2, 3, 6}, target[4] = {0};
    m.w[0][0] = m.w[1][0] = 1;
    m.gamma[0][0] = 2;
    m.beta[0][0] = 0.5;
    ref_mlp_forward(&m, REF_TRAIN, REF_MSE, x, NULL, target, 4);
    const double rstd = 1 / sqrt(3.5 + 1e-5);
    const double want_train[] = {2 * -2 * rstd + 0.5, 2 * -1 * rstd + 0.5, 0.5, 2 * 3 * rstd + 0.5};
    test_close_d("BatchNorm, training", m.pre[0], want_train, 4, 1e-14, 0);
    const double mean = 0.3, var = 0.9 + 0.1 * 14 / 3;
    test_close_d("running mean", m.running_mean[0], &mean, 1, 1e-14, 0);
    test_close_d("running variance", m.running_var[0], &var, 1, 1e-14, 0);
    CHECK(m.batches_tracked == 1, "one batch tracked");
    ref_mlp_forward(&m, REF_EVAL, REF_MSE, x, NULL, target, 4);
    double want_eval[4];
    for (int s = 0; s < 4; s++) want_eval[s] = 2 * (x[s] - mean) / sqrt(var + 1e-5) + 0.5;
    test_close_d("BatchNorm, evaluation", m.pre[0], want_eval, 4, 1e-14, 0);
    CHECK(m.running_mean[0][0] == mean || fabs(m.running_mean[0][0] - mean) < 1e-15, "evaluation leaves the mean");
    CHECK(m.batches_tracked == 1, "evaluation tracks nothing");
    ref_mlp_free(&m);
}

// Cross-entropy of uniform logits is log(classes); huge logits stay finite; gradients sum to zero per sample.
static void check_losses(void) {
    const double logits[] = {0.3, 0.3, 0.3, 1000, -1000, 0};
    const int labels[] = {2, 0};
    double d[6];
    int correct;
    const double loss = ref_cross_entropy(d, logits, labels, 2, 3, &correct), want = log(3.0) / 2;
    test_close_d("cross-entropy", &loss, &want, 1, 1e-14, 0);
    const double want_d[] = {1.0 / 6, 1.0 / 6, -1.0 / 3, 0, 0, 0};
    test_close_d("cross-entropy gradient", d, want_d, 6, 1e-14, 1e-16);
    CHECK(correct == 1, "ties go to the lowest class");
    const double y[] = {1, 2, 3, 4}, target[] = {0, 2, 5, 3}, mse = ref_mse(d, y, target, 2, 2), want_mse = 6.0 / 4;
    const double want_dmse[] = {0.5, 0, -1, 0.5};
    test_close_d("MSE", &mse, &want_mse, 1, 1e-15, 0);
    test_close_d("MSE gradient", d, want_dmse, 4, 1e-15, 0);
}

// Two steps of each optimizer on one parameter w = 1 with gradients 0.5 and -0.25, lr 0.1, decay 0.01.
static void check_optimizers(void) {
    const int dims[] = {1, 1};
    const int kinds[] = {REF_SGD, REF_MOMENTUM, REF_ADAMW};
    double want[3];
    double w = 1 - 0.1 * (0.5 + 0.01);
    want[0] = w - 0.1 * (-0.25 + 0.01 * w);
    want[1] = w - 0.1 * (0.9 * 0.51 + (-0.25 + 0.01 * w));
    w = 1 - 0.1 * 0.01 - 0.1 * 0.5 / (0.5 + 1e-8); // after bias correction the first step is lr * sign
    const double m1 = (0.9 * 0.05 + 0.1 * -0.25) / (1 - 0.81), v1 = (0.999 * 0.00025 + 0.001 * 0.0625) / (1 - 0.998001);
    want[2] = w - 0.1 * 0.01 * w - 0.1 * m1 / (sqrt(v1) + 1e-8);
    for (int k = 0; k < 3; k++) {
        RefMlp m = ref_mlp_create(dims, 1, 0, 0, 0);
        RefOptimizer opt = ref_optimizer(kinds[k], 0.1, 0.9, 0.01);
        m.w[0][0] = 1;
        m.dw[0][0] = 0.5;
        ref_mlp_step(&m, &opt);
        m.dw[0][0] = -0.25;
        ref_mlp_step(&m, &opt);
        test_close_d("optimizer, two steps by hand", m.w[0], &want[k], 1, 1e-12, 0);
        ref_mlp_free(&m);
    }
}

// The graph of ref_rescale.h computes what the MLP computes in evaluation mode, with BatchNorm's mean and variance
// inside fixed edges; so its path-lifting is that of this network. Same order of parameters in both.
static void check_graph(int bn) {
    const int dims[] = {4, 5, 3, 2};
    double mean[8], rstd[8], x[5], target[2] = {0};
    RefMlp m = ref_mlp_create(dims, 3, 1, 1, bn);
    for (int t = 0; t < m.n_tensors; t++) fill(m.tensors[t].data, m.tensors[t].n, 0.1, 0.9);
    for (int l = 0, h = 0; bn && l < 2; l++)
        for (int o = 0; o < dims[l + 1]; o++, h++) {
            mean[h] = m.running_mean[l][o] = 0.8 * uniform();
            m.running_var[l][o] = 1.2 + uniform();
            rstd[h] = 1 / sqrt(m.running_var[l][o] + REF_BN_EPS);
        }
    RefNet net = bn ? ref_net_mlp(dims, 3, 1, 1, mean, rstd) : ref_net_mlp(dims, 3, 1, 1, NULL, NULL);
    double *theta = ref_doubles((size_t)net.n_params), *value = ref_doubles((size_t)net.n_nodes);
    size_t k = 0;
    for (int t = 0; t < m.n_tensors; t++)
        for (size_t i = 0; i < m.tensors[t].n; i++) theta[k++] = m.tensors[t].data[i];
    CHECK(k == (size_t)net.n_params, "same number of parameters");
    for (int round = 0; round < 10; round++) {
        fill(x, 4, 0, 2);
        x[4] = 1; // the constant
        ref_mlp_forward(&m, REF_EVAL, REF_MSE, x, NULL, target, 1);
        ref_net_forward(&net, theta, x, value);
        double outputs[2] = {0};
        for (int n = 0, o = 0; n < net.n_nodes; n++)
            if (net.kind[n] == REF_OUTPUT) outputs[o++] = value[n];
        test_close_d("graph against MLP", outputs, m.a[3], 2, 1e-12, 1e-14);
    }
    free(theta);
    free(value);
    ref_net_free(&net);
    ref_mlp_free(&m);
}

// Names and shapes are PyTorch's.
static void check_tensors(void) {
    const int dims[] = {5, 4, 3};
    RefMlp m = ref_mlp_create(dims, 2, 1, 0, 1);
    const char *const names[] = {"fc1.weight", "fc1.bias", "bn1.weight", "bn1.bias", "fc2.weight"};
    CHECK(m.n_tensors == 5, "five tensors");
    for (int t = 0; t < m.n_tensors; t++) CHECK(strcmp(m.tensors[t].name, names[t]) == 0, names[t]);
    const RefTensor *w = ref_mlp_tensor(&m, "fc2.weight");
    CHECK(w && w->rows == 3 && w->cols == 4 && w->data == m.w[1] && w->grad == m.dw[1], "fc2.weight is [3][4]");
    CHECK(!ref_mlp_tensor(&m, "fc2.bias"), "no bias in the last layer");
    ref_mlp_free(&m);
}

// The runs of reference_pytorch.csv: double precision against PyTorch's float32.
static void check_pytorch(void) {
    double want[REF_PARITY_ROWS], got[REF_PARITY_ROWS];
    for (int k = 0; k < REF_PARITY_CASES; k++) {
        const RefParityCase *c = &ref_parity_cases[k];
        char name[128];
        CHECK(ref_parity_read(ref_parity_csv(), c->name, want), "reference_pytorch.csv holds the whole run");
        ref_parity_train(c, got);
        for (int s = 1; s <= REF_PARITY_STEPS; s++) {
            snprintf(name, sizeof name, "%s, loss of step %d against PyTorch", c->name, s);
            test_close_d(name, &got[s - 1], &want[s - 1], 1, ref_parity_tolerance(s), 0);
        }
        snprintf(name, sizeof name, "%s, evaluation loss against PyTorch", c->name);
        test_close_d(name, &got[REF_PARITY_STEPS], &want[REF_PARITY_STEPS], 1, ref_parity_eval_tolerance(c), 0);
    }
}

// Size of a file, -1 when it cannot be read.
static long file_size(const char *folder, const char *file) {
    char path[2048];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *f = fopen(path, "rb");
    if (!f) return -1;
    fseek(f, 0, SEEK_END);
    const long size = ftell(f);
    fclose(f);
    return size;
}

// The files written for trainers have the sizes their formats demand, and a header that adds up.
static void check_files(void) {
    char folder[1024], path[2048];
    snprintf(folder, sizeof folder, "%s", test_make_dir());
    CHECK(ref_parity_write_idx(folder), "IDX files written");
    CHECK(file_size(folder, "train-images-idx3-ubyte") == 16 + 64 * 36, "size of the training images");
    CHECK(file_size(folder, "t10k-images-idx3-ubyte") == 16 + 64 * 36, "size of the test images");
    CHECK(file_size(folder, "train-labels-idx1-ubyte") == 8 + 64, "size of the training labels");
    CHECK(file_size(folder, "t10k-labels-idx1-ubyte") == 8 + 64, "size of the test labels");
    CHECK(!ref_parity_write_idx("/nonexistent/folder"), "an unwritable folder is reported");
    for (int k = 0; k < REF_PARITY_CASES; k++) {
        RefMlp m = ref_parity_model(&ref_parity_cases[k]);
        long bytes = 0;
        snprintf(path, sizeof path, "%s/init.safetensors", folder);
        CHECK(ref_parity_write_safetensors(path, &m), "safetensors written");
        for (int t = 0; t < m.n_tensors; t++) bytes += 4 * (long)m.tensors[t].n;
        for (int l = 0; m.has_bn && l + 1 < m.n_layers; l++) bytes += 8 + 8 * (long)m.dims[l + 1];
        unsigned char head[9] = {0};
        FILE *f = fopen(path, "rb");
        CHECK(f && fread(head, 1, 9, f) == 9, "safetensors can be read back");
        if (f) fclose(f);
        const long header = head[0] | head[1] << 8 | head[2] << 16;
        CHECK(head[8] == '{' && header % 8 == 0, "header is JSON, aligned");
        CHECK(file_size(folder, "init.safetensors") == 8 + header + bytes, "header and data fill the file");
        ref_mlp_free(&m);
    }
    test_remove_dir(folder);
}

int main(void) {
    const GradCase cases[] = {
        {"linear, cross-entropy", 1, {5, 4, 0, 0, 0}, 1, 1, 0, REF_TRAIN, REF_CROSS_ENTROPY, 3},
        {"linear, MSE, no bias", 1, {5, 4, 0, 0, 0}, 0, 0, 0, REF_TRAIN, REF_MSE, 3},
        {"MLP, cross-entropy", 3, {6, 7, 5, 4, 0}, 1, 1, 0, REF_TRAIN, REF_CROSS_ENTROPY, 8},
        {"MLP, cross-entropy, one sample", 3, {6, 7, 5, 4, 0}, 1, 1, 0, REF_EVAL, REF_CROSS_ENTROPY, 1},
        {"MLP, MSE, no bias", 4, {6, 5, 3, 5, 6}, 0, 0, 0, REF_TRAIN, REF_MSE, 8},
        {"MLP, MSE, no last bias", 4, {6, 5, 3, 5, 6}, 1, 0, 0, REF_TRAIN, REF_MSE, 8},
        {"BatchNorm training, cross-entropy", 3, {6, 7, 5, 4, 0}, 1, 1, 1, REF_TRAIN, REF_CROSS_ENTROPY, 9},
        {"BatchNorm training, MSE, no bias", 4, {6, 5, 3, 5, 6}, 0, 0, 1, REF_TRAIN, REF_MSE, 7},
        {"BatchNorm training, two samples", 2, {4, 5, 3, 0, 0}, 1, 1, 1, REF_TRAIN, REF_CROSS_ENTROPY, 2},
        {"BatchNorm evaluation, cross-entropy", 3, {6, 7, 5, 4, 0}, 1, 1, 1, REF_EVAL, REF_CROSS_ENTROPY, 9},
        {"BatchNorm evaluation, MSE, one sample", 4, {6, 5, 3, 5, 6}, 0, 1, 1, REF_EVAL, REF_MSE, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_gradients(&cases[i]);
    check_batchnorm();
    check_losses();
    check_optimizers();
    check_graph(0);
    check_graph(1);
    check_tensors();
    check_pytorch();
    check_files();
    return test_summary();
}
