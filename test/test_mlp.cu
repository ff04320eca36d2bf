// test_mlp.cu -- tests of the MLP trainer, whole and piece by piece, on a GPU or on the CPU build.
//
//     make test-programs && build/cpu/test/test_mlp        (or build/cuda/test/test_mlp)
//
// 1. every kernel against plain loops in double precision, on odd shapes, with guarded and poisoned device memory
// 2. whole networks: gradients against ref_mlp.h and against finite differences of the trainer's own loss
// 3. diag(G) of the path-lifting by the trainer's own passes against rescale.cuh and ref_rescale.h
// 4. rescaling leaves the function alone, at initialisation and in the middle of training; errors change nothing
// 5. a hundred training steps against PyTorch's losses
// 6. schedule, layer sizes, weight files, checkpoints, a run that is interrupted and resumed (more of it: test_train.c)
// 7. a hash of trained parameters, on the line `bits ...`: test/sanitize.sh compares it over thread orders and counts
#define TESTING
#include "train_mlp.cu"

#include <sys/wait.h>
#include <unistd.h>
#include "ref_mlp.h"
#include "ref_parity.h"
#include "ref_rescale.h"
#include "trainer.h"
#include "trainer_mlp.h"
#define STEPS_A_SAMPLE 64  // as on a GPU
#include "dev/bench/bench.h"

// ---------------------------------------------------------------------------------------------------------- 1. kernels

static void test_permutation(int n) {
    const uint64_t key = rng_permute_key(5, (uint64_t)n);
    int *want = ints((size_t)n), *seen = ints((size_t)n), all = 1;
    snprintf(label, sizeof label, "permutation n=%d", n);
    for (int shuffled = 0; shuffled < 2; shuffled++) {
        int *order = (int *)guarded(NULL, (size_t)n * sizeof(int));
        permutation_kernel<<<ceil_div(n, BLOCK), BLOCK>>>(order, n, key, shuffled);
        for (int i = 0; i < n; i++) want[i] = shuffled ? (int)rng_permute((uint32_t)i, (uint32_t)n, key) : i;
        same_bits(shuffled ? "shuffled" : "in order", order, want, (size_t)n * sizeof(int));
    }
    for (int i = 0; i < n; i++) all = all && want[i] >= 0 && want[i] < n && !seen[want[i]]++;
    CHECK(all, "every sample comes once");
    release();
}

// The three kernels that make a batch.
static void test_gather(int rows, int cols, int channels) {
    const int samples = 113, features = cols * channels;
    const size_t total = (size_t)samples * (size_t)features, taken = (size_t)rows * (size_t)features;
    unsigned char *pixels = (unsigned char *)host_bytes(total), labels[113];
    float *values = floats(total);
    int *order = ints((size_t)rows), *label_want = ints((size_t)rows);
    double *pixels_want = doubles(taken), *values_want = doubles(taken);
    normalisation norm = {{1.0f / 70, 0.02f, -0.01f, 9}, {-1.5f, 0.25f, 3, 9}};
    snprintf(label, sizeof label, "gather rows=%d cols=%d channels=%d", rows, cols, channels);
    for (size_t i = 0; i < total; i++) pixels[i] = (unsigned char)(128 + 128 * uniform());
    for (int i = 0; i < samples; i++) labels[i] = (unsigned char)(i * 37 % 256);
    fill(values, total, 0, 3);
    for (int r = 0; r < rows; r++) {
        order[r] = (r * 71 + 112) % samples;
        label_want[r] = labels[order[r]];
        for (int c = 0; c < features; c++) {
            const size_t to = (size_t)r * (size_t)features + (size_t)c;
            const size_t from = (size_t)order[r] * (size_t)features + (size_t)c;
            const int k = c / cols;
            pixels_want[to] = pixels[from] * (double)norm.mul[k] + (double)norm.add[k];
            values_want[to] = (double)values[from];
        }
    }
    float *x = out(taken), *y = out(taken);
    int *got = (int *)guarded(NULL, (size_t)rows * sizeof(int));
    int *order_d = in_ints(order, (size_t)rows);
    device_data images, points;
    memset(&images, 0, sizeof images);
    images.features = features;
    images.channels = channels;
    images.labels = (unsigned char *)guarded(labels, sizeof labels);
    images.order = order_d;
    points = images;
    images.pixels = (unsigned char *)guarded(pixels, total);
    images.norm = norm;
    points.values = in(values, total);
    points.norm.mul[0] = 1;  // as device_data_create: values stay as they are
    gather_samples(x, &images, 0, rows);
    gather_samples(y, &points, 0, rows);
    gather_labels(got, &images, 0, rows);
    same("pixels", x, pixels_want, taken, 1e-6, 1e-6);
    same("values", y, values_want, taken, 0, 0);
    same_bits("labels", got, label_want, (size_t)rows * sizeof(int));
    release();
}

// Column sums of d[rows][cols] times weight (or 1), as the kernels' partial sums add up to.
static void column_sums_of(double *sum, const double *d, const double *weight, int rows, int cols) {
    for (int c = 0; c < cols; c++) {
        sum[c] = 0;
        for (int r = 0; r < rows; r++) sum[c] += d[r * cols + c] * (weight ? weight[r * cols + c] : 1);
    }
}

// Activations behind a ReLU: about half of them zero, one of them a negative zero.
static void fill_relu(float *y, size_t n) {
    fill(y, n, 0, 1);
    for (size_t i = 0; i < n; i++) {
        const float zero = i % 5 ? 0.0f : -0.0f;
        y[i] = y[i] > 0 ? y[i] : zero;
    }
}

// Bias, ReLU and their backward.
static void test_bias_relu(int rows, int cols) {
    const size_t n = (size_t)rows * (size_t)cols, c_n = (size_t)cols;
    float *z = floats(n), *b = floats(c_n), *d = floats(n), *y = floats(n);
    double *want = doubles(n), *sums = doubles(c_n);
    fill(b, c_n, 0, 1);
    fill(d, n, 0, 1);
    fill_relu(y, n);
    for (int k = 0; k < 4; k++) {
        const int relu = k & 1, bias = k < 2;
        snprintf(label, sizeof label, "bias_relu rows=%d cols=%d relu=%d bias=%d", rows, cols, relu, bias);
        fill(z, n, 0, 1);
        z[n - 1] = -b[cols - 1];  // a sum of exactly zero
        for (size_t i = 0; i < n; i++) {
            const double v = (double)z[i] + (bias ? (double)b[i % c_n] : 0);
            want[i] = relu && v < 0 ? 0 : v;
        }
        float *z_d = in(z, n);
        bias_relu(z_d, bias ? in(b, c_n) : NULL, rows, cols, relu);
        same("forward", z_d, want, n, 1e-6, 1e-7);
        float *d_d = in(d, n), *sum = out(c_n);
        bias_relu_backward(d_d, in(y, n), bias ? sum : NULL, out(column_scratch(rows, cols)), rows, cols, relu);
        for (size_t i = 0; i < n; i++) want[i] = relu && !(y[i] > 0) ? 0 : (double)d[i];
        column_sums_of(sums, want, NULL, rows, cols);
        same("gradient", d_d, want, n, 0, 0);
        if (bias) same("bias gradient", sum, sums, c_n, 1e-6, 1e-5);
    }
    release();
}

// A network that has diverged must show it: NaN goes through both ReLUs.
static void test_nan_passes(void) {
    const float z[3] = {NAN, -1, 2}, zero[3] = {0, 0, 0}, one[3] = {1, 1, 1};
    snprintf(label, sizeof label, "NaN through ReLU");
    float *plain = in(z, 3), *normed = in(one, 3);
    bias_relu(plain, in(zero, 3), 1, 3, 1);
    bn_relu(normed, in(z, 3), NULL, in(zero, 3), in(one, 3), in(one, 3), in(zero, 3), 1, 3, 1);
    for (int k = 0; k < 2; k++) {
        const float *y = (const float *)fetch(k ? normed : plain, sizeof z);
        CHECK(isnan(y[0]) && y[1] == 0 && y[2] == 2, "ReLU keeps NaN");
    }
    release();
}

// Statistics of BatchNorm. The mean is 1000 in every other column: single-precision sums of squares lose the variance.
static void test_bn_stats(int rows, int cols) {
    const size_t n = (size_t)rows * (size_t)cols, c_n = (size_t)cols;
    float *z = floats(n), *b = floats(c_n), *mean0 = floats(c_n), *var0 = floats(c_n);
    double *mean = doubles(c_n), *rstd = doubles(c_n), *moved_mean = doubles(c_n), *moved_var = doubles(c_n);
    snprintf(label, sizeof label, "bn statistics rows=%d cols=%d", rows, cols);
    for (size_t i = 0; i < n; i++) z[i] = (float)((i % c_n % 2 ? 1000.0 : 0.0) + sqrt(3.0) * (double)uniform());
    fill(b, c_n, 0, 1);
    fill(mean0, c_n, 0, 1);
    fill(var0, c_n, 1.5, 1);
    for (int c = 0; c < cols; c++) {
        double m = 0, m2 = 0;
        for (int r = 0; r < rows; r++) m += (double)z[r * cols + c] / rows;
        for (int r = 0; r < rows; r++) m2 += ((double)z[r * cols + c] - m) * ((double)z[r * cols + c] - m);
        mean[c] = m;
        rstd[c] = 1 / sqrt(m2 / rows + 1e-5);
        moved_mean[c] = 0.9 * (double)mean0[c] + 0.1 * (m + (double)b[c]);
        moved_var[c] = 0.9 * (double)var0[c] + 0.1 * (rows > 1 ? m2 / (rows - 1) : 0);
    }
    float *z_d = in(z, n), *b_d = in(b, c_n), *running_mean = in(mean0, c_n), *running_var = in(var0, c_n);
    for (int update = 0; update < 2; update++) {
        float *mean_d = out(c_n), *rstd_d = out(c_n);
        bn_statistics(mean_d, rstd_d, running_mean, running_var, z_d, b_d, out(column_scratch(rows, cols)), rows, cols,
                      update ? MODE_TRAIN : MODE_PROBE);
        same("mean", mean_d, mean, c_n, 1e-6, 1e-5);
        same("rstd", rstd_d, rstd, c_n, 1e-3, 0);
        if (!update) same_bits("running mean, kept", running_mean, mean0, c_n * sizeof(float));
        if (!update) same_bits("running variance, kept", running_var, var0, c_n * sizeof(float));
    }
    same("running mean", running_mean, moved_mean, c_n, 1e-6, 1e-5);
    same("running variance", running_var, moved_var, c_n, 1e-3, 1e-6);
    for (int k = 0; k < 4; k++) {  // evaluation and diag(G), with and without a bias (to diag(G) a square)
        const int squared = k & 1;
        const double use = k < 2;
        float *mean_d = out(c_n), *rstd_d = out(c_n);
        bn_statistics(mean_d, rstd_d, in(mean0, c_n), in(var0, c_n), z_d, k < 2 ? b_d : NULL,
                      out(column_scratch(rows, cols)), rows, cols, squared ? MODE_SQUARED : MODE_EVAL);
        for (int c = 0; c < cols; c++) {
            const double m = (double)mean0[c], bias = use * (double)b[c], s = 1 / sqrt((double)var0[c] + 1e-5);
            mean[c] = squared ? -(m * m + bias) : m - bias;
            rstd[c] = squared ? s * s : s;
        }
        same(squared ? "mean of squares" : "evaluation mean", mean_d, mean, c_n, 1e-6, 1e-6);
        same(squared ? "rstd of squares" : "evaluation rstd", rstd_d, rstd, c_n, 1e-6, 0);
    }
    release();
}

// BatchNorm, with or without ReLU and residual, forward and backward, for given statistics.
static void test_bn(int rows, int cols, int relu, int residual) {
    const size_t n = (size_t)rows * (size_t)cols, c_n = (size_t)cols;
    float *z = floats(n), *d = floats(n), *y = floats(n), *r = floats(n);
    float *mean = floats(c_n), *rstd = floats(c_n), *gamma = floats(c_n), *beta = floats(c_n);
    double *want = doubles(n), *xhat = doubles(n), *masked = doubles(n), *dbeta = doubles(c_n), *dgamma = doubles(c_n);
    snprintf(label, sizeof label, "bn rows=%d cols=%d relu=%d residual=%d", rows, cols, relu, residual);
    fill(z, n, 0, 1);
    fill(d, n, 0, 1);
    fill(r, n, 0, 1);
    fill_relu(y, n);
    fill(mean, c_n, 0, 1);
    fill(rstd, c_n, 1.5, 1);
    fill(gamma, c_n, 0, 2);
    fill(beta, c_n, 0, 1);
    for (size_t i = 0; i < n; i++) {
        const size_t c = i % c_n;
        xhat[i] = ((double)z[i] - (double)mean[c]) * (double)rstd[c];
        const double v = (double)gamma[c] * xhat[i] + (double)beta[c] + (residual ? (double)r[i] : 0);
        want[i] = v > 0 || !relu ? v : 0;
        masked[i] = y[i] > 0 || !relu ? (double)d[i] : 0;
    }
    column_sums_of(dbeta, masked, NULL, rows, cols);
    column_sums_of(dgamma, masked, xhat, rows, cols);
    float *z_d = in(z, n), *mean_d = in(mean, c_n), *rstd_d = in(rstd, c_n), *gamma_d = in(gamma, c_n);
    float *forward_d = out(n);
    bn_relu(forward_d, z_d, residual ? in(r, n) : NULL, mean_d, rstd_d, gamma_d, in(beta, c_n), rows, cols, relu);
    same("forward", forward_d, want, n, 1e-6, 2e-6);
    for (int training = 0; training < 2; training++) {
        float *d_d = in(d, n), *dz_d = out(n), *dbeta_d = out(c_n), *dgamma_d = out(c_n);
        bn_relu_backward(dz_d, d_d, in(y, n), z_d, mean_d, rstd_d, gamma_d, dgamma_d, dbeta_d,
                         out(column_scratch(rows, cols)), rows, cols, training ? MODE_TRAIN : MODE_EVAL, relu);
        same("masked gradient", d_d, masked, n, 0, 0);
        same("beta gradient", dbeta_d, dbeta, c_n, 1e-6, 1e-5);
        same("gamma gradient", dgamma_d, dgamma, c_n, 1e-6, 4e-5);
        const double inverse = training ? 1.0 / rows : 0;
        for (size_t i = 0; i < n; i++) {
            const size_t c = i % c_n;
            want[i] = (double)gamma[c] * (double)rstd[c] * (masked[i] - inverse * (dbeta[c] + xhat[i] * dgamma[c]));
        }
        same("input gradient", dz_d, want, n, 1e-6, 5e-5);
    }
    release();
}

// The launchers on far more rows than a grid has in y: `rows` rows that repeat. Their statistics are those of one copy,
// their sums a multiple of its sums.
static void test_tall(int rows, int cols) {
    const int copies = 700, tall = rows * copies;  // 70,000 rows: more than a grid has blocks in y
    const size_t n = (size_t)tall * (size_t)cols, one = (size_t)rows * (size_t)cols, c_n = (size_t)cols;
    float *z = floats(n), *d = floats(n);
    float *b = floats(c_n), *gamma = floats(c_n), *beta = floats(c_n), *zero = floats(c_n);
    double *mean = doubles(c_n), *rstd = doubles(c_n), *dgamma = doubles(c_n), *dbeta = doubles(c_n);
    double *y = doubles(n), *dz = doubles(n);
    snprintf(label, sizeof label, "%d rows, cols=%d", tall, cols);
    fill(z, one, 0.5, 1);
    fill(d, one, 0, 1);
    fill(b, c_n, 0, 1);
    fill(gamma, c_n, 0, 2);
    fill(beta, c_n, 0, 1);
    for (size_t i = one; i < n; i++) {
        z[i] = z[i - one];
        d[i] = d[i - one];
    }
    for (size_t i = 0; i < n; i++) y[i] = fmax((double)z[i] + (double)b[i % c_n], 0);
    float *plain = in(z, n);
    bias_relu(plain, in(b, c_n), tall, cols, 1);
    same("bias and ReLU", plain, y, n, 1e-6, 1e-7);
    for (int c = 0; c < cols; c++) {
        double m2 = 0;
        for (int r = 0; r < rows; r++) mean[c] += (double)z[r * cols + c] / rows;
        for (int r = 0; r < rows; r++) m2 += ((double)z[r * cols + c] - mean[c]) * ((double)z[r * cols + c] - mean[c]);
        rstd[c] = 1 / sqrt(m2 / rows + 1e-5);
    }
    for (int relu = 0; relu < 2; relu++) {
        for (size_t c = 0; c < c_n; c++) dgamma[c] = dbeta[c] = 0;
        for (size_t i = 0; i < n; i++) {
            const size_t c = i % c_n;
            const double xhat = ((double)z[i] - mean[c]) * rstd[c], v = (double)gamma[c] * xhat + (double)beta[c];
            y[i] = v > 0 || !relu ? v : 0;
            dz[i] = v > 0 || !relu ? (double)d[i] : 0;
            dgamma[c] += dz[i] * xhat;
            dbeta[c] += dz[i];
        }
        for (size_t i = 0; i < n; i++) {
            const size_t c = i % c_n;
            const double xhat = ((double)z[i] - mean[c]) * rstd[c];
            dz[i] = (double)gamma[c] * rstd[c] * (dz[i] - (dbeta[c] + xhat * dgamma[c]) / tall);
        }
        float *z_d = in(z, n), *d_d = in(d, n), *y_d = out(n), *dz_d = out(n);
        float *partial = out(column_scratch(tall, cols));
        float *mean_d = out(c_n), *rstd_d = out(c_n), *dgamma_d = out(c_n), *dbeta_d = out(c_n);
        float *gamma_d = in(gamma, c_n), *beta_d = in(beta, c_n), *bias_d = in(zero, c_n);
        float *running_mean = in(zero, c_n), *running_var = in(zero, c_n);
        bn_statistics(mean_d, rstd_d, running_mean, running_var, z_d, bias_d, partial, tall, cols, MODE_TRAIN);
        bn_relu(y_d, z_d, NULL, mean_d, rstd_d, gamma_d, beta_d, tall, cols, relu);
        bn_relu_backward(dz_d, d_d, y_d, z_d, mean_d, rstd_d, gamma_d, dgamma_d, dbeta_d, partial, tall, cols,
                         MODE_TRAIN, relu);
        same("mean", mean_d, mean, c_n, 1e-5, 1e-5);
        same("rstd", rstd_d, rstd, c_n, 1e-5, 0);
        same("forward", y_d, y, n, 1e-5, 1e-5);
        same("gamma gradient", dgamma_d, dgamma, c_n, 1e-4, 0.2);
        same("beta gradient", dbeta_d, dbeta, c_n, 1e-4, 0.2);
        same("gradient", dz_d, dz, n, 1e-4, 1e-4);
    }
    release();
}

// Softmax cross-entropy for logits of a given size; ties make the largest logit appear twice.
static void test_softmax(int rows, int cols, double size, int ties) {
    const size_t n = (size_t)rows * (size_t)cols;
    const double scale = 1.0 / rows;
    float *x = floats(n);
    int *y = ints((size_t)rows), *hit = ints((size_t)rows), hits = 0;
    double *loss = doubles((size_t)rows), *d = doubles(n), sum_of_losses = 0;
    snprintf(label, sizeof label, "softmax rows=%d cols=%d size=%g ties=%d", rows, cols, size, ties);
    fill(x, n, 0, size);
    for (int r = 0; r < rows; r++) {
        float *row = x + (size_t)r * (size_t)cols;
        y[r] = (r * 5 + 2) % cols;
        int best = 0;
        double sum = 0;
        for (int c = 1; c < cols; c++) best = row[c] > row[best] ? c : best;
        if (ties && cols > 1) {  // as large as the largest, before or behind it
            const int twin = (best + 1 + r) % cols;
            row[twin] = row[best];
            y[r] = r % 2 ? best : twin;
            best = twin < best ? twin : best;
        }
        for (int c = 0; c < cols; c++) sum += exp((double)row[c] - (double)row[best]);
        for (int c = 0; c < cols; c++) {
            const double probability = exp((double)row[c] - (double)row[best]) / sum;
            d[r * cols + c] = (probability - (c == y[r])) * scale;
        }
        loss[r] = log(sum) + ((double)row[best] - (double)row[y[r]]);
        hit[r] = best == y[r];
        hits += hit[r];
        sum_of_losses += loss[r];
    }
    float *loss_d = out((size_t)rows), *d_d = out(n), *mean = out(1);
    int *hit_d = (int *)guarded(NULL, (size_t)rows * sizeof(int));
    softmax_cross_entropy_kernel<<<ceil_div(rows, 32), 32>>>(loss_d, hit_d, d_d, in(x, n), in_ints(y, (size_t)rows),
                                                            rows, cols, (float)scale, 0.0f);
    same("loss", loss_d, loss, (size_t)rows, 1e-6, 1e-6);
    same("gradient", d_d, d, n, 3e-6, 1e-7);
    same_bits("hits", hit_d, hit, (size_t)rows * sizeof(int));
    for (int threads = 32; threads <= 256; threads *= 8) {  // sums add up over calls
        const double start[2] = {100.5, 7}, want[2] = {100.5 + sum_of_losses, 7.0 + hits};
        const double want_mean = sum_of_losses / rows;
        double *totals = (double *)guarded(start, sizeof start);
        sum_losses_kernel<<<1, threads>>>(totals, mean, loss_d, hit_d, rows, 1.0, rows);
        same_d("totals", totals, want, 2, 2e-6, 2e-6);
        same("mean loss", mean, &want_mean, 1, 2e-6, 2e-6);
    }
    release();
}

// Label smoothing by its definition: loss = -sum target log softmax, target = (1 - s) onehot + s / classes.
static void test_smoothing(int rows, int cols, double size, double s) {
    const size_t n = (size_t)rows * (size_t)cols;
    float *x = floats(n);
    int *y = ints((size_t)rows);
    double *loss = doubles((size_t)rows), *d = doubles(n), want[2] = {2, 3}, mean;
    snprintf(label, sizeof label, "label smoothing %g rows=%d cols=%d size=%g", s, rows, cols, size);
    fill(x, n, 0, size);
    for (int r = 0; r < rows; r++) {
        const float *row = x + (size_t)r * (size_t)cols;
        double largest = row[0], sum = 0;
        y[r] = (r * 5 + 2) % cols;
        for (int c = 1; c < cols; c++) largest = fmax(largest, (double)row[c]);
        for (int c = 0; c < cols; c++) sum += exp((double)row[c] - largest);
        for (int c = 0; c < cols; c++) {
            const double log_p = (double)row[c] - largest - log(sum), target = (1 - s) * (c == y[r]) + s / cols;
            loss[r] -= target * log_p;
            d[r * cols + c] = (exp(log_p) - target) / rows;
        }
        want[0] += loss[r];
        want[1] += (double)row[y[r]] == largest;
    }
    mean = (want[0] - 2) / rows;
    const double start[2] = {2, 3};
    double *totals = (double *)guarded(start, sizeof start);
    float *loss_d = out((size_t)rows), *d_d = out(n), *mean_d = out(1);
    int *hit_d = (int *)guarded(NULL, (size_t)rows * sizeof(int));
    softmax_cross_entropy(totals, mean_d, loss_d, hit_d, d_d, in(x, n), in_ints(y, (size_t)rows), rows, cols, s);
    same("loss", loss_d, loss, (size_t)rows, 3e-6, 1e-6);
    same("gradient", d_d, d, n, 3e-6, 1e-7);
    same("mean loss", mean_d, &mean, 1, 3e-6, 1e-6);
    same_d("totals", totals, want, 2, 3e-6, 1e-6);
    release();
}

// The same against torch.nn.functional.cross_entropy(x, y, label_smoothing=s) and its gradient (PyTorch 2.15, double).
static void test_smoothing_pytorch(void) {
    const float x[6] = {1.5f, -2, 0.25f, 0, 3, -1};
    const int y[2] = {2, 1};
    const double s[2] = {0.1, 1}, loss[2] = {0.9288404163358656, 2.1288404163358656};
    const double gradient[2][6] = {
        {0.36306992638182445, -0.0051996151668964544, -0.35787031121492807, 0.006639644622320279, 0.001453109271586206,
         -0.008092753893906473},
        {0.21306992638182445, -0.15519961516689645, -0.05787031121492804, -0.14336035537767972, 0.3014531092715862,
         -0.15809275389390645}};
    snprintf(label, sizeof label, "label smoothing as PyTorch's");
    for (int k = 0; k < 2; k++) {
        const double zero[2] = {0, 0};
        float *mean = out(1), *d = out(6), *row_loss = out(2);
        double *totals = (double *)guarded(zero, sizeof zero);
        int *hits = (int *)guarded(NULL, 2 * sizeof(int));
        softmax_cross_entropy(totals, mean, row_loss, hits, d, in(x, 6), in_ints(y, 2), 2, 3, s[k]);
        same("loss", mean, &loss[k], 1, 1e-6, 0);
        same("gradient", d, gradient[k], 6, 1e-6, 1e-7);
    }
    release();
}

static void test_mse(int rows, int cols) {
    const size_t n = (size_t)rows * (size_t)cols;
    const int chunks = ceil_div(rows, ROW_CHUNK);
    float *y = floats(n), *target = floats(n);
    double *d = doubles(n), mean = 0;
    const double start[2] = {0, 3};
    snprintf(label, sizeof label, "mse rows=%d cols=%d", rows, cols);
    fill(y, n, 0, 2);
    fill(target, n, 0, 2);
    for (size_t i = 0; i < n; i++) {
        const double e = (double)y[i] - (double)target[i];
        d[i] = 2 * e / (double)n;
        mean += e * e / (double)n;
    }
    float *d_d = out(n), *partial = out((size_t)chunks * (size_t)cols), *mean_d = out(1);
    double *totals = (double *)guarded(start, sizeof start);
    const double want[2] = {mean * rows, 3};
    const float scale = (float)(1.0 / (double)n);
    mse_kernel<<<grid_of(cols, chunks), BLOCK>>>(partial, d_d, in(y, n), in(target, n), rows, cols, scale);
    sum_losses_kernel<<<1, 256>>>(totals, mean_d, partial, (const int *)NULL, chunks * cols, 1.0 / cols, rows);
    same("gradient", d_d, d, n, 1e-6, 1e-7);
    same("mean loss", mean_d, &mean, 1, 2e-6, 0);
    same_d("totals", totals, want, 2, 2e-6, 0);
    release();
}

static void test_sum_squares(size_t n) {
    float *v = floats(n);
    double want = 0, got = 0;
    fill(v, n, 0, 1e3);
    v[n / 2] = 1e25f;  // its square is beyond a float
    for (size_t i = 0; i < n; i++) want += (double)v[i] * (double)v[i];
    snprintf(label, sizeof label, "sum_squares n=%zu", n);
    double *part = (double *)guarded(NULL, REDUCE_BLOCKS * sizeof(double));
    sum_squares_kernel<<<REDUCE_BLOCKS, 32>>>(part, in(v, n), n);
    const double *parts = (const double *)fetch(part, REDUCE_BLOCKS * sizeof(double));
    for (int i = 0; i < REDUCE_BLOCKS; i++) got += parts[i];
    test_close_d(label, &got, &want, 1, 1e-12, 0);
    release();
}

// Six steps of an optimizer with weight decay and a fresh gradient each, against PyTorch's formulas.
static void test_optimizer(int kind, int n) {
    static const char *const name[] = {"sgd", "momentum", "adamw"};
    const size_t s = (size_t)n;
    const double lr = 0.03, decay = 0.1, momentum = 0.9, beta1 = 0.9, beta2 = 0.999;
    float *w = floats(s), *g = floats(s), *zero = floats(s);
    double *want = doubles(s), *m = doubles(s), *v = doubles(s);
    snprintf(label, sizeof label, "%s n=%d", name[kind], n);
    fill(w, s, 0, 1);
    for (int i = 0; i < n; i++) want[i] = (double)w[i];
    float *w_d = in(w, s), *m_d = in(zero, s), *v_d = in(zero, s);
    for (int t = 1; t <= 6; t++) {
        fill(g, s, 0.1, pow(10, t % 3 - 2));
        const float *g_d = in(g, s);
        optimizer_step(kind, w_d, g_d, m_d, v_d, n, lr, momentum, decay, t - 1);
        for (int i = 0; i < n; i++) {
            const double grad = (double)g[i] + decay * want[i];
            if (kind == OPTIMIZER_ADAMW) {
                m[i] = beta1 * m[i] + (1 - beta1) * (double)g[i];
                v[i] = beta2 * v[i] + (1 - beta2) * (double)g[i] * (double)g[i];
                want[i] -= lr * decay * want[i];
                want[i] -= lr * (m[i] / (1 - pow(beta1, t))) / (sqrt(v[i] / (1 - pow(beta2, t))) + 1e-8);
            } else if (kind == OPTIMIZER_MOMENTUM) {
                m[i] = momentum * m[i] + grad;
                want[i] -= lr * m[i];
            } else {
                want[i] -= lr * grad;
            }
        }
        same("parameters", w_d, want, s, 1e-6, 2e-6);
        same("first moment", m_d, m, s, 1e-6, 1e-6);     // m and v stay 0 where the kind does not use them
        same("second moment", v_d, v, s, 2e-6, 1e-12);
    }
    release();
}

// The first three steps of AdamW against torch.optim.AdamW([w], lr=0.01, weight_decay=0.1) in double (PyTorch 2.15),
// for large, small and tiny gradients. A float 1 - 0.999f would miss the second moment by 1.3e-5.
static void test_adamw_first_steps(void) {
    const float w[6] = {0.5f, -1.25f, 2, 0, -0.0625f, 3}, g[3][6] = {{0.1f, -0.2f, 0.3f, -1e-4f, 1e-8f, 5},
                                                                    {0.05f, -0.1f, -0.6f, 2e-4f, 1e-8f, -2.5f},
                                                                    {-0.025f, 0.4f, 0.15f, -4e-4f, -3e-8f, 1.25f}};
    const double want[3][3][6] = {
        {{0.489500001, -1.23875, 1.988, 0.0099990001, -0.0674375, 2.987},
         {0.01, -0.02, 0.03, -1e-05, 1e-09, 0.5},
         {1e-05, 4e-05, 9e-05, 1e-11, 1e-19, 0.025}},
        {{0.479688706, -1.22818945, 1.98967304, 0.00632819732, -0.0723700625, 2.98134963},
         {0.014, -0.028, -0.033, 1.1e-05, 1.9e-09, 0.2},
         {1.249e-05, 4.996e-05, 0.00044991, 4.999e-11, 1.999e-19, 0.031225}},
        {{0.473572404, -1.22902484, 1.98905027, 0.0105182668, -0.0706650172, 2.97496399},
         {0.0101, 0.0148, -0.0147, -3.01e-05, -1.29e-09, 0.305},
         {1.310251e-05, 0.00020991004, 0.00047196009, 2.0994001e-10, 1.0997001e-18, 0.032756275}}};
    const float zero[6] = {0};
    float *w_d = in(w, 6), *m_d = in(zero, 6), *v_d = in(zero, 6);
    for (int step = 0; step < 3; step++) {
        snprintf(label, sizeof label, "AdamW, step %d", step);
        optimizer_step(OPTIMIZER_ADAMW, w_d, in(g[step], 6), m_d, v_d, 6, 0.01, 0.9, 0.1, step);
        same("parameters", w_d, want[step][0], 6, 3e-7, 1e-7);
        same("first moment", m_d, want[step][1], 6, 5e-7, 0);
        same("second moment", v_d, want[step][2], 6, 5e-7, 0);
    }
    release();
}

// An optimizer that does not exist stops the program with a line, before anything is changed.
static void test_unknown_optimizer(void) {
    int ends[2], status = 0;
    char text[256] = "";
    fflush(NULL);
    CHECK(pipe(ends) == 0, "pipe");
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        optimizer_step(OPTIMIZER_ADAMW + 1, NULL, NULL, NULL, NULL, 1, 0.01, 0.9, 0, 0);
        _exit(0);
    }
    close(ends[1]);
    CHECK(read(ends[0], text, sizeof text - 1) > 0 && strstr(text, "no optimizer has the number 3"), "it says so");
    close(ends[0]);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "it aborts");
}

static void test_kernels(void) {
    const int row_counts[] = {1, 7, 32, 33, 100}, col_counts[] = {1, 3, 10, 17, 64, 257};
    const int lengths[] = {1, 2, 7, 256, 257, 1000};
    for (int i = 0; i < 6; i++) test_permutation(lengths[i]);
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 6; k++) {
            const int rows = row_counts[i], cols = col_counts[k];
            test_gather(rows, cols, 1);
            test_gather(rows, cols, 3);
            test_bias_relu(rows, cols);
            test_bn_stats(rows, cols);
            test_mse(rows, cols);
            test_bn(rows, cols, 1, 0);
            test_bn(rows, cols, 0, 0);
            test_bn(rows, cols, 1, 1);
            test_smoothing(rows, cols, 3, 0.1);
            test_smoothing(rows, cols, 1e4, 0.1);
            test_smoothing(rows, cols, 3, 1);
            test_softmax(rows, cols, 3, 0);
            test_softmax(rows, cols, 1e4, 0);
            test_softmax(rows, cols, 3, 1);
            test_softmax(rows, cols, 1e4, 1);
        }
    test_tall(100, 1);
    test_tall(100, 3);
    test_nan_passes();
    test_smoothing_pytorch();
    test_adamw_first_steps();
    test_unknown_optimizer();
    for (int i = 0; i < 6; i++) test_sum_squares((size_t)lengths[i]);
    test_sum_squares(100003);
    for (int kind = OPTIMIZER_SGD; kind <= OPTIMIZER_ADAMW; kind++)
        for (int i = 0; i < 6; i++) test_optimizer(kind, lengths[i]);
}

// --------------------------------------------------------------------------------------------------- 2. whole networks

static void fill_doubles(double *x, size_t n, double centre, double spread) {
    for (size_t i = 0; i < n; i++) x[i] = (double)(float)(centre + spread * (double)uniform());
}

// Random parameters (gains of both signs) and running statistics, all of them floats.
static void randomise(RefMlp *ref) {
    for (int i = 0; i < ref->n_tensors; i++) {
        RefTensor *t = &ref->tensors[i];
        const int bn = t->name[0] == 'b', weight = strstr(t->name, "weight") != NULL;
        double spread = bn ? 1.5 : 2 / sqrt((double)t->cols);
        if (!weight) spread = 0.5;
        fill_doubles(t->data, t->n, 0, spread);
    }
    for (int l = 0; l < ref->n_layers - 1 && ref->has_bn; l++) {
        fill_doubles(ref->running_mean[l], (size_t)ref->dims[l + 1], 0, 0.5);
        fill_doubles(ref->running_var[l], (size_t)ref->dims[l + 1], 1, 0.7);
    }
}

typedef struct net_case {
    const char *name;
    int n_layers, dims[6], bias, norm, task, rows;
} net_case;

static config case_config(const net_case *k) {
    config c = default_config();
    c.bias = k->bias;
    c.norm = k->norm;
    c.task = k->task;
    return c;
}

// Mean loss of the batch that lies on the device, in MODE_PROBE or MODE_EVAL; from the totals, which are double.
static double float_loss(model *m, int rows, int mode) {
    double totals[2];
    CUDA_CHECK(cudaMemset(m->totals, 0, sizeof totals));
    forward(m, rows, mode);
    loss_forward_backward(m, rows, 0);
    CUDA_CHECK(cudaMemcpy(totals, m->totals, sizeof totals, cudaMemcpyDeviceToHost));
    return totals[0] / rows;
}

static int differences;  // finite differences that were compared

// The on/off pattern of all ReLUs of the reference's last forward pass; returns its length.
static size_t relu_pattern(const RefMlp *ref, unsigned char *on) {
    size_t n = 0;
    for (int l = 0; l + 1 < ref->n_layers; l++)
        for (size_t i = 0; i < (size_t)ref->n * (size_t)ref->dims[l + 1]; i++) on[n++] = ref->pre[l][i] > 0;
    return n;
}

// A batch as the reference wants it.
typedef struct batch {
    int mode, loss, rows;  // REF_TRAIN, REF_CROSS_ENTROPY, ...
    const double *x;
    const int *y;
} batch;

static double reference_loss(RefMlp *ref, const batch *b) {
    return ref_mlp_forward(ref, b->mode, b->loss, b->x, b->y, b->x, b->rows);
}

// The largest of a few steps that switches no ReLU when *value moves up or down by it; 0 when all of them do.
static float smooth_step(RefMlp *ref, const batch *b, double *value, const unsigned char *on, unsigned char *moved) {
    const double centre = *value;
    for (float h = 4e-3f; h > 4e-4f; h /= 2) {
        int same = 1;
        for (int side = -1; side < 2; side += 2) {
            *value = centre + side * (double)h;
            reference_loss(ref, b);
            same = same && memcmp(on, moved, relu_pattern(ref, moved)) == 0;
        }
        *value = centre;
        if (same) return h;
    }
    return 0;
}

// Central differences of the trainer's own loss, for entries of each tensor with large gradients. They are coarse: the
// loss is a float. Gradients are the reference's, which the trainer's were compared with.
static void check_differences(model *m, RefMlp *ref, const batch *b, int mode) {
    size_t relus = 0;
    for (int l = 0; l + 1 < ref->n_layers; l++) relus += (size_t)b->rows * (size_t)ref->dims[l + 1];
    unsigned char *on = (unsigned char *)host_bytes(relus), *moved = (unsigned char *)host_bytes(relus);
    relu_pattern(ref, on);
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        const RefTensor *r = ref_mlp_tensor(ref, t->name);
        double largest = 0;
        for (size_t k = 0; k < r->n; k++) largest = fmax(largest, fabs(r->grad[k]));
        for (size_t k = 0, found = 0, tried = 0; k < r->n && found < 3 && tried < 20; k++) {
            if (fabs(r->grad[k]) < 0.6 * largest) continue;
            const float h = smooth_step(ref, b, r->data + k, on, moved), centre = (float)r->data[k], up = centre + h,
                        down = centre - h;
            tried++;
            if (h == 0) continue;
            float *p = m->net.params + t->offset + k;
            CUDA_CHECK(cudaMemcpy(p, &up, sizeof up, cudaMemcpyHostToDevice));
            const double above = float_loss(m, b->rows, mode);
            CUDA_CHECK(cudaMemcpy(p, &down, sizeof down, cudaMemcpyHostToDevice));
            const double below = float_loss(m, b->rows, mode);
            CUDA_CHECK(cudaMemcpy(p, &centre, sizeof centre, cudaMemcpyHostToDevice));
            const double numeric = (above - below) / ((double)up - (double)down);
            char name[320];
            snprintf(name, sizeof name, "%s: finite difference of %s[%zu]", label, t->name, k);
            test_close_d(name, &numeric, r->grad + k, 1, 0.02, 5e-4);
            found++;
            differences++;
        }
    }
}

// Distance of the nearest pre-activation to a ReLU's kink. Below the rounding error of a float gradients are arbitrary.
static double kink_distance(const RefMlp *ref) {
    double nearest = 1;
    for (int l = 0; l + 1 < ref->n_layers; l++)
        for (size_t i = 0; i < (size_t)ref->n * (size_t)ref->dims[l + 1]; i++)
            nearest = fmin(nearest, fabs(ref->pre[l][i]));
    return nearest;
}

// Sets every bit of the activations that a pass has to write, and of the gradients.
static void poison(model *m) {
    CUDA_CHECK(cudaMemset(m->acts, 0xff, (size_t)((float *)m->square_sums - m->acts) * sizeof(float)));
    CUDA_CHECK(cudaMemset(m->net.grads, 0xff, m->net.n_params * sizeof(float)));
    CUDA_CHECK(cudaMemset(m->totals, 0, 2 * sizeof(double)));
}

// Random parameters, and a batch x[n_x], y for them without an activation that is close to a kink.
static void clear_batch(RefMlp *ref, const batch *b, double *x, size_t n_x, int *y, int n_out) {
    double distance = 0;
    for (int tries = 0; tries < 100 && distance < 5e-6; tries++) {
        randomise(ref);
        fill_doubles(x, n_x, 0.1, 1.5);
        for (int r = 0; r < b->rows; r++) y[r] = r * 7 % n_out;
        ref->track_running = 0;
        reference_loss(ref, b);
        distance = kink_distance(ref);
    }
}

// After the backward pass: every gradient, running statistics and batch counts.
static void check_gradients(const model *m, RefMlp *ref, const net_case *k) {
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        const double *want = ref_mlp_tensor(ref, t->name)->grad;
        same_scaled(t->name, m->net.grads + t->offset, want, (size_t)t->rows * (size_t)t->cols, 2e-4);
    }
    CHECK(padding_untouched(m), "gradients keep to their tensors");
    for (int l = 0; l < k->n_layers - 1 && k->norm == NORM_BATCH; l++) {
        same("running mean", m->running_mean[l], ref->running_mean[l], (size_t)k->dims[l + 1], 1e-5, 1e-5);
        same("running variance", m->running_var[l], ref->running_var[l], (size_t)k->dims[l + 1], 1e-5, 1e-5);
    }
    for (int i = 0; i < m->net.n_counts; i++)
        CHECK(m->net.counts[i] == ref->batches_tracked, "counts training batches");
}

// Forward, loss and backward in one mode against the reference: outputs, loss, hits, all gradients, running statistics.
static void test_network(const net_case *k, int mode) {
    static const char *const mode_name[] = {"training", "probe", "evaluation"};
    const config c = case_config(k);
    const int rows = k->rows, n_out = k->dims[k->n_layers];
    const size_t n_x = (size_t)rows * (size_t)k->dims[0], n_y = (size_t)rows * (size_t)n_out;
    RefMlp ref = ref_mlp_create(k->dims, k->n_layers, k->bias, k->bias, k->norm);
    double *x = doubles(n_x), loss, mean[2];
    int *y = ints((size_t)rows);
    const int ref_mode = mode == MODE_EVAL ? REF_EVAL : REF_TRAIN;
    const batch b = {ref_mode, k->task == TASK_CLASSIFY ? REF_CROSS_ENTROPY : REF_MSE, rows, x, y};
    model m;
    snprintf(label, sizeof label, "%s, %s mode", k->name, mode_name[mode]);
    build(&m, k->dims, k->n_layers, &c, rows + 5);
    clear_batch(&ref, &b, x, n_x, y, n_out);
    copy_to_model(&m, &ref);
    poison(&m);
    upload(m.x[0], x, n_x);
    CUDA_CHECK(cudaMemcpy(m.label, y, (size_t)rows * sizeof(int), cudaMemcpyHostToDevice));
    float *stats = train_host_copy(m.net.stats, m.net.n_stats);
    ref.track_running = mode == MODE_TRAIN;
    loss = reference_loss(&ref, &b);
    ref_mlp_backward(&ref);
    forward(&m, rows, mode);
    loss_forward_backward(&m, rows, 3);
    same_scaled("output", m.x[k->n_layers], ref.a[k->n_layers], n_y, 5e-5);
    same_scaled("output gradient", m.dx[0], ref.d_output, n_y, 5e-5);
    same("loss", m.step_loss + 3, &loss, 1, 1e-5, 0);
    mean[0] = loss * rows;
    mean[1] = k->task == TASK_CLASSIFY ? ref.correct : 0;
    same_d("totals", m.totals, mean, 2, 1e-5, 0);
    const int n_in = k->dims[0], n_first = k->dims[1];
    float *d = backward(&m, rows, mode), *dx = d == m.dx[0] ? m.dx[1] : m.dx[0];
    gemm(&m.gemm, 0, 0, rows, n_in, n_first, 1.0f, d, n_first, m.w[0], n_in, 0.0f, dx, n_in);  // on to the input
    same_scaled("input gradient", dx, ref.d_input, n_x, 2e-4);
    check_gradients(&m, &ref, k);
    if (mode != MODE_TRAIN) same_bits("running statistics", m.net.stats, stats, m.net.n_stats * sizeof(float));
    // again: the same tensors, bit for bit
    float *grads = train_host_copy(m.net.grads, m.net.n_params);
    loss_forward_backward(&m, rows, 0);
    backward(&m, rows, mode);
    same_bits("gradients again", m.net.grads, grads, m.net.n_params * sizeof(float));
    if (mode != MODE_TRAIN) check_differences(&m, &ref, &b, mode);
    free(grads);
    free(stats);
    model_free(&m);
    ref_mlp_free(&ref);
    release();
}

static const net_case nets[] = {
    {"one layer", 1, {5, 3}, 1, NORM_NONE, TASK_CLASSIFY, 7},
    {"one row", 2, {4, 5, 3}, 1, NORM_NONE, TASK_CLASSIFY, 1},
    {"two layers", 2, {7, 11, 4}, 1, NORM_NONE, TASK_CLASSIFY, 33},
    {"no bias", 3, {9, 17, 13, 5}, 0, NORM_NONE, TASK_CLASSIFY, 19},
    {"four layers", 4, {13, 31, 17, 9, 10}, 1, NORM_NONE, TASK_CLASSIFY, 65},
    {"batchnorm", 3, {9, 17, 13, 5}, 1, NORM_BATCH, TASK_CLASSIFY, 33},
    {"batchnorm, no bias", 4, {6, 21, 15, 8, 3}, 0, NORM_BATCH, TASK_CLASSIFY, 37},
    {"wide batchnorm", 2, {33, 300, 10}, 1, NORM_BATCH, TASK_CLASSIFY, 100},
    {"autoencoder", 4, {21, 13, 3, 13, 21}, 1, NORM_NONE, TASK_AUTOENCODE, 31},
    {"autoencoder, no bias", 2, {261, 7, 261}, 0, NORM_NONE, TASK_AUTOENCODE, 40},
    {"autoencoder, batchnorm", 3, {10, 19, 7, 10}, 1, NORM_BATCH, TASK_AUTOENCODE, 45},
};
enum { N_NETS = sizeof nets / sizeof *nets };

static void test_networks(void) {
    for (int i = 0; i < N_NETS; i++)
        for (int mode = MODE_TRAIN; mode <= MODE_EVAL; mode++) test_network(&nets[i], mode);
    CHECK(differences > 150, "enough finite differences were taken");
}

// ---------------------------------------------------------------------------------------------------------- 3. diag(G)

// diag(G) of the model as rescale.cuh's squared passes find it: host array [n_params] in the model's layout.
static double *chain_diag_g(const model *m) {
    static rescale_group group[MAX_LAYERS];
    static rescale_tensor list[4 * MAX_LAYERS];
    const rescale_net net = {group, m->n_layers - 1, list, describe(m, group, list)};
    rescale_options o = rescale_default_options();
    rescale_report report;
    rsc_solver s;
    o.on_device = DEVICE_IS_GPU;
    memset(&s, 0, sizeof s);
    memset(&report, 0, sizeof report);
    s.net = &net;
    s.options = &o;
    s.report = &report;
    rsc_arena arena = {NULL, 0, rescale_arena_bytes(&net, &o)};
    char *memory = (char *)host_bytes(arena.size + 64);
    arena.base = memory + (64 - (uintptr_t)memory % 64) % 64;
    device_synchronize();
    rsc_layout(&s, &arena);
    rsc_link(&s);
    double *g = doubles(m->net.n_params);
    if (!CHECK(rsc_chain_diag_g(&s) == RESCALE_OK, "rescale.cuh computes diag(G)")) return g;
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        for (int r = 0; r < t->rows; r++)
            for (int c = 0; c < t->cols; c++)
                g[t->offset + (size_t)r * (size_t)t->cols + (size_t)c] = s.energy[i].out[r] * s.energy[i].in[c];
    }
    return g;
}

// The same from ref_rescale.h.
static double *reference_diag_g(const model *m, const RefMlp *ref) {
    RefMlpTensors t;
    double *g = doubles(m->net.n_params);
    memset(&t, 0, sizeof t);
    t.n_layers = ref->n_layers;
    memcpy(t.dims, ref->dims, (size_t)(ref->n_layers + 1) * sizeof(int));
    for (int l = 0; l < ref->n_layers; l++) {
        t.w[l] = ref->w[l];
        t.b[l] = ref->b[l];
        t.gamma[l] = ref->gamma[l];
        t.beta[l] = ref->beta[l];
        t.mean[l] = ref->running_mean[l];
        double *rstd = doubles((size_t)ref->dims[l + 1]);
        for (int o = 0; ref->gamma[l] && o < ref->dims[l + 1]; o++)
            rstd[o] = 1 / sqrt(ref->running_var[l][o] + (double)BN_EPS);
        t.rstd[l] = rstd;
    }
    RefMlpDiagG r = ref_mlp_diag_g(&t);
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *p = &m->net.tensors[i];
        const int l = p->layer, bn = p->name[0] == 'b';
        const double *rows = bn ? r.g_beta[l] : r.d[l];
        if (p->role == RESCALE_GAIN) rows = r.g_gamma[l];
        for (int o = 0; o < p->rows; o++)
            for (int k = 0; k < p->cols; k++)
                g[p->offset + (size_t)(o * p->cols + k)] = rows[o] * (p->role == RESCALE_WEIGHT ? r.a[l][k] : 1);
    }
    ref_mlp_diag_g_free(&r);
    return g;
}

// diag(G) is the gradient, with respect to squared parameters, of the summed outputs of the network that has the
// squared parameters, on an input of ones. That is one ordinary forward and backward pass of one row. In that network
// BatchNorm, in evaluation mode, adds the path from the running mean instead of subtracting it, and scales by rstd^2:
//     mean' = -mean^2,   1 / sqrt(var' + eps) = 1 / (var + eps), so var' = (var + eps)^2 - eps.
// Nothing is negative then, so no ReLU clips.
static void test_diag_g(const net_case *k) {
    const config c = case_config(k);
    model m, squared;
    RefMlp ref = ref_mlp_create(k->dims, k->n_layers, k->bias, k->bias, k->norm),
           square = ref_mlp_create(k->dims, k->n_layers, k->bias, k->bias, k->norm);
    const int n_in = k->dims[0], n_out = k->dims[k->n_layers];
    double *ones = doubles((size_t)(n_in > n_out ? n_in : n_out));
    snprintf(label, sizeof label, "diag(G), %s", k->name);
    randomise(&ref);
    for (int i = 0; i < ref.n_tensors; i++)
        for (size_t j = 0; j < ref.tensors[i].n; j++) {
            const double w = ref.tensors[i].data[j];
            square.tensors[i].data[j] = w * w;
        }
    for (int l = 0; l < k->n_layers - 1 && k->norm == NORM_BATCH; l++)
        for (int o = 0; o < k->dims[l + 1]; o++) {
            const double var = ref.running_var[l][o] + (double)BN_EPS;
            square.running_mean[l][o] = -ref.running_mean[l][o] * ref.running_mean[l][o];
            square.running_var[l][o] = var * var - (double)BN_EPS;
        }
    for (int i = 0; i < n_in || i < n_out; i++) ones[i] = 1;
    build(&m, k->dims, k->n_layers, &c, 1);
    build(&squared, k->dims, k->n_layers, &c, 1);
    copy_to_model(&m, &ref);
    copy_to_model(&squared, &square);
    poison(&squared);
    upload(squared.x[0], ones, (size_t)n_in);
    forward(&squared, 1, MODE_EVAL);
    upload(squared.dx[0], ones, (size_t)n_out);
    backward(&squared, 1, MODE_EVAL);
    const double *chain = chain_diag_g(&m), *definition = reference_diag_g(&m, &ref);
    for (int i = 0; i < m.net.n_tensors; i++) {
        const train_tensor *t = &m.net.tensors[i];
        const size_t n = (size_t)t->rows * (size_t)t->cols;
        same(t->name, squared.net.grads + t->offset, chain + t->offset, n, 1e-4, 0);
        test_close_d(t->name, chain + t->offset, definition + t->offset, n, 1e-10, 0);
    }
    model_free(&m);
    model_free(&squared);
    ref_mlp_free(&ref);
    ref_mlp_free(&square);
    release();
}

// ------------------------------------------------------------------------------------ 4. rescaling keeps the function

// Gives BatchNorm gains of both signs, shifts and running statistics that are not the defaults.
static void disturb_norm(model *m) {
    for (int l = 0; l < m->n_layers - 1 && m->norm == NORM_BATCH; l++) {
        const size_t n = (size_t)m->dim[l + 1];
        float *v = (float *)malloc(n * sizeof(float)), *const to[4] = {m->gamma[l], m->beta[l], m->running_mean[l],
                                                                       m->running_var[l]};
        const double centre[4] = {0, 0, 0, 1}, spread[4] = {1.5, 0.5, 0.5, 0.7};
        for (int k = 0; k < 4; k++) {
            fill(v, n, centre[k], spread[k]);
            CUDA_CHECK(cudaMemcpy(to[k], v, n * sizeof(float), cudaMemcpyHostToDevice));
        }
        free(v);
    }
}

// A unit that nothing reaches, one that reaches nothing, and with BatchNorm a gain of zero.
static void kill_units(model *m) {
    set(m->w[0] + 2 * m->dim[0], (size_t)m->dim[0], 0);
    if (m->bias) set(m->b[0] + 2, 1, 0);
    for (int r = 0; r < m->dim[2]; r++) set(m->w[1] + (size_t)r * (size_t)m->dim[1] + 3, 1, 0);
    if (m->norm == NORM_BATCH) {
        set(m->gamma[0] + 4, 1, 0);
        set(m->gamma[0] + 5, 1, 0);
        set(m->beta[0] + 5, 1, 0);
    }
}

// Rescales by every method, with and without powers of two. Outputs stay where they were, in training and in evaluation
// mode, while the criterion falls.
static void test_function_kept(const char *name, const int *dims, int n_layers, config c, int dead, int all) {
    static const char *const method_name[] = {"none", "PathCond", "ENorm"};
    for (int method = RESCALE_BY_PATHCOND; method <= RESCALE_BY_ENORM; method++)
        for (int pow2 = 0; pow2 < 2; pow2++) {
            model m;
            rescale_report report;
            double moved;
            if (!all && method == RESCALE_BY_ENORM && pow2) continue;
            c.train.rescale = method;
            c.train.rescale_pow2 = pow2;
            build(&m, dims, n_layers, &c, PROBE_ROWS);
            model_init(&m, &c);
            disturb_norm(&m);
            if (dead) kill_units(&m);
            float *before = train_host_copy(m.net.params, m.net.n_params);
            const int status = rescale_and_measure(&m, &c, &report, &moved);
            float *after = train_host_copy(m.net.params, m.net.n_params);
            printf("     %s, %s%s: %.6g -> %.6g, outputs moved by %.1e\n", name, method_name[method],
                   pow2 ? ", powers of two" : "", report.objective_before, report.objective_after, moved);
            CHECK(status == 0 && report.message[0] == 0, "rescaling succeeds");
            CHECK(pow2 ? moved == 0 : moved <= 1e-5, "the function stays");
            CHECK(pow2 || report.converged, "the solver reached the optimum");
            CHECK(pow2 || report.objective_after < report.objective_before,
                  "the criterion falls"); // rounding to powers of two may cost more than rescaling gained
            CHECK(memcmp(before, after, m.net.n_params * sizeof(float)) != 0, "parameters change");
            CHECK(!dead || report.pinned_units >= 2, "dead units are left alone");
            free(before);
            free(after);
            model_free(&m);
        }
}

// A non-finite number anywhere stops the rescaling with the tensor's name, and nothing has changed.
static void test_rescale_errors(int norm) {
    const int dims[] = {9, 17, 13, 5};
    config c = default_config();
    model m;
    c.norm = norm;
    c.train.optimizer = OPTIMIZER_ADAMW;
    build(&m, dims, 3, &c, PROBE_ROWS);
    model_init(&m, &c);
    snprintf(label, sizeof label, "rescaling with non-finite values");
    for (int i = 0; i < m.net.n_tensors; i++)
        for (int k = 0; k < 6; k++) {
            const train_tensor *t = &m.net.tensors[i];
            const float bad = k % 2 ? INFINITY : NAN, good = 1;
            float *const family[3] = {m.net.params, m.net.moment1, m.net.moment2};
            float *place = family[k / 2] + t->offset + t->rows * t->cols / 2, keep;
            rescale_report report;
            c.train.rescale = i % 2 ? RESCALE_BY_ENORM : RESCALE_BY_PATHCOND;
            CUDA_CHECK(cudaMemcpy(&keep, place, sizeof keep, cudaMemcpyDeviceToHost));
            CUDA_CHECK(cudaMemcpy(place, &bad, sizeof bad, cudaMemcpyHostToDevice));
            float *before = train_host_copy(m.net.params, m.net.n_params);
            const int refused = rescale_model(&m, &c, &report) == -1;
            if (!CHECK(refused && strstr(report.message, t->name), "an error that names the tensor"))
                printf("    %s: '%s'\n", t->name, report.message);
            same_bits("parameters", m.net.params, before, m.net.n_params * sizeof(float));
            CUDA_CHECK(cudaMemcpy(place, k < 2 ? &keep : &good, sizeof keep, cudaMemcpyHostToDevice));
            free(before);
            release();
        }
    rescale_report report;
    CHECK(rescale_model(&m, &c, &report) == 0, "with finite values rescaling works");
    model_free(&m);
}

// Trains a few steps on one random batch of max_rows rows.
static void train_some(model *m, const config *c, int steps, int64_t first_step) {
    const size_t n_in = (size_t)m->max_rows * (size_t)m->dim[0];
    float *x = floats(n_in);
    int *y = ints((size_t)m->max_rows);
    fill(x, n_in, 0, 1.5);
    for (int r = 0; r < m->max_rows; r++)
        y[r] = (int)(3 * x[(size_t)r * (size_t)m->dim[0]] * x[(size_t)r * (size_t)m->dim[0]]) % m->dim[m->n_layers];
    for (int s = 0; s < steps; s++) {
        CUDA_CHECK(cudaMemcpy(m->x[0], x, n_in * sizeof(float), cudaMemcpyHostToDevice));
        CUDA_CHECK(cudaMemcpy(m->label, y, (size_t)m->max_rows * sizeof(int), cudaMemcpyHostToDevice));
        forward(m, m->max_rows, MODE_TRAIN);
        loss_forward_backward(m, m->max_rows, s % TRAIN_LOSS_RING);
        backward(m, m->max_rows, MODE_TRAIN);
        update(m, c, c->train.lr, first_step + s);
    }
}

// Rescaling between two training steps: the function stays, the moments are divided by the factor (its square) of their
// parameter, and training goes on.
static void test_rescale_in_training(int optimizer, int norm) {
    const int dims[] = {12, 30, 25, 6};
    config c = default_config();
    model m;
    rescale_report report;
    double moved;
    c.train.optimizer = optimizer;
    c.norm = norm;
    c.train.lr = optimizer == OPTIMIZER_ADAMW ? 3e-3 : 0.05;
    c.train.weight_decay = 1e-3;
    snprintf(label, sizeof label, "rescaling in training, optimizer %d, norm %d", optimizer, norm);
    build(&m, dims, 3, &c, 50);
    model_init(&m, &c);
    disturb_norm(&m);
    train_some(&m, &c, 12, 0);
    float *w0 = train_host_copy(m.net.params, m.net.n_params), *m0 = train_host_copy(m.net.moment1, m.net.n_params),
          *v0 = m.net.moment2 ? train_host_copy(m.net.moment2, m.net.n_params) : NULL;
    float *stats = train_host_copy(m.net.stats, m.net.n_stats);
    CHECK(rescale_and_measure(&m, &c, &report, &moved) == 0, "rescaling succeeds");
    CHECK(moved <= 1e-5, "the function stays");
    CHECK(report.max_abs_log_lambda > 0.01, "something was rescaled");
    float *w1 = train_host_copy(m.net.params, m.net.n_params), *m1 = train_host_copy(m.net.moment1, m.net.n_params),
          *v1 = m.net.moment2 ? train_host_copy(m.net.moment2, m.net.n_params) : NULL;
    same_products("first moment", &m, m0, w0, m1, w1, 1);
    if (v0) same_products("second moment", &m, v0, w0, v1, w1, 2);
    same_bits("running statistics", m.net.stats, stats, m.net.n_stats * sizeof(float));
    train_some(&m, &c, 12, 12);
    CHECK(isfinite(array_norm(m.net.grads, m.net.n_params, m.square_sums)), "training goes on");
    free(w0);
    free(m0);
    free(v0);
    free(w1);
    free(m1);
    free(v1);
    free(stats);
    model_free(&m);
    release();
}

// What an analysis says of a group, from the factors that its units got: after / before of one number per unit.
static void check_log_lambda(const analysis_group *g, const float *before, const float *after, int n) {
    double mean = 0, squares = 0, least = INFINITY, largest = -INFINITY;
    for (int i = 0; i < n; i++) {
        const double v = log((double)after[i] / (double)before[i]);
        mean += v / n;
        least = fmin(least, v);
        largest = fmax(largest, v);
    }
    for (int i = 0; i < n; i++) squares += pow(log((double)after[i] / (double)before[i]) - mean, 2);
    const double got[4] = {g->mean, g->deviation, g->least, g->largest};
    const double want[4] = {mean, sqrt(squares / n), least, largest};
    CHECK(g->units == n, "a group has as many units");
    test_close_d("mean, deviation, least and largest log lambda", got, want, 4, 1e-5, 1e-6);
}

// The analysis of a rescaling: log lambda is what happened to biases or gains; shares sum to 1; without zeros F falls
// by as much per parameter as the spread.
static void test_analysis(int norm, int method, int power, int weights_only) {
    const int dims[] = {20, 40, 30, 7};
    config c = default_config();
    c.norm = norm;
    c.bias = 1;
    c.init = INIT_KAIMING_UNIFORM;
    c.train.rescale = method;
    c.train.rescale_power = power == 1 ? POWER_ONE : POWER_TWO;
    c.train.rescale_paths = weights_only;
    model m;
    rescale_report report;
    analysis_rows rows;
    memset(&rows, 0, sizeof rows);
    build(&m, dims, 3, &c, PROBE_ROWS);
    model_init(&m, &c);
    m.net.analysis = &rows;
    float *before = train_host_copy(m.net.params, m.net.n_params);
    CHECK(rescale_model(&m, &c, &report) == 0, report.message);
    float *after = train_host_copy(m.net.params, m.net.n_params);
    CHECK(rows.n_groups == 2 && rows.n_tensors == m.net.n_tensors, "a row for every group and tensor");
    for (int l = 0; l < 2 && rows.n_groups == 2; l++) {
        const size_t at = (size_t)((norm ? m.gamma[l] : m.b[l]) - m.net.params);
        check_log_lambda(&rows.groups[l], before + at, after + at, dims[l + 1]);
    }
    double share = 0, energy[2] = {0, 0};
    int64_t counted = 0;
    const int pathcond = method == RESCALE_BY_PATHCOND;
    for (int i = 0; i < rows.n_tensors; i++) {
        const analysis_tensor *t = &rows.tensors[i];
        const int bias = m.net.tensors[i].role == RESCALE_BIAS;
        CHECK(!strcmp(t->name, m.net.tensors[i].name) && !*t->set, "tensors keep their names");
        CHECK(t->counted == (pathcond && !(weights_only && bias)), "a tensor that is not counted has no energy");
        share += t->share;
        if (t->counted) counted += t->parameters;
        for (int k = 0; k < 2; k++) energy[k] += t->in.share[k];
    }
    CHECK(fabs(share - 1) < 1e-12, "parameter shares sum to 1");
    CHECK(rows.spread_known == pathcond, "ENorm has no spread");
    if (pathcond) {
        const double fall = (report.objective_before - report.objective_after) / (double)counted;
        CHECK(fabs(energy[0] - 1) < 1e-12, "energy shares before sum to 1");
        CHECK(fabs(energy[1] - 1) < 1e-12, "energy shares after sum to 1");
        CHECK(fabs(fall - (report.spread_before - report.spread_after)) < 1e-9, "F and the spread fall together");
        CHECK(counted == report.parameters && report.spread_after > 0, "the report counts the same parameters");
    }
    free(before);
    free(after);
    analysis_free(&rows);
    model_free(&m);
}

// A rescaling that fails leaves no rows.
static void test_no_analysis(void) {
    const int dims[] = {20, 40, 30, 7};
    config c = default_config();
    model m;
    rescale_report report;
    analysis_rows rows;
    memset(&rows, 0, sizeof rows);
    build(&m, dims, 3, &c, PROBE_ROWS);
    model_init(&m, &c);
    set(m.w[0], 1, NAN);
    m.net.analysis = &rows;
    CHECK(rescale_model(&m, &c, &report) == -1 && rows.n_groups == 0 && rows.n_tensors == 0 && !rows.spread_known,
          "no rows of a rescaling that failed");
    analysis_free(&rows);
    model_free(&m);
}

static void test_rescaling(void) {
    const int deep[] = {3072, 500, 500, 500, 500, 500, 500, 500, 500, 10}, small[] = {20, 40, 30, 7};
    config c = default_config();
    for (c.norm = NORM_NONE; c.norm <= NORM_BATCH; c.norm++) {
        c.init = INIT_KAIMING_UNIFORM;
        c.bias = 1;
        test_function_kept(c.norm ? "3072-500x8-10, BatchNorm" : "3072-500x8-10", deep, 9, c, 0, 0);
        test_function_kept(c.norm ? "dead units, BatchNorm" : "dead units", small, 3, c, 1, 1);
        c.init = INIT_KAIMING_NORMAL;
        test_function_kept(c.norm ? "kaiming-normal, BatchNorm" : "kaiming-normal", deep + 5, 4, c, 0, 1);
        c.bias = 0;
        test_function_kept(c.norm ? "no bias, BatchNorm" : "no bias", small, 3, c, 1, 1);
        test_rescale_errors(c.norm);
        test_analysis(c.norm, RESCALE_BY_PATHCOND, 2, 0);
        test_analysis(c.norm, RESCALE_BY_PATHCOND, 1, 0);
        test_analysis(c.norm, RESCALE_BY_PATHCOND, 2, 1);
        test_analysis(c.norm, RESCALE_BY_ENORM, 2, 0);
        test_rescale_in_training(OPTIMIZER_MOMENTUM, c.norm);
        test_rescale_in_training(OPTIMIZER_ADAMW, c.norm);
    }
    test_no_analysis();
}

// --------------------------------------------------------------------------------------------------------- 5. PyTorch

// One run of reference_pytorch.csv by the trainer's own passes.
static void test_parity(const RefParityCase *k) {
    static const int optimizer[] = {OPTIMIZER_SGD, OPTIMIZER_MOMENTUM, OPTIMIZER_ADAMW};  // as REF_SGD, ...
    config c = default_config();
    model m;
    double *x = doubles((size_t)REF_PARITY_SAMPLES * REF_PARITY_PIXELS), want[REF_PARITY_ROWS], worst = 0;
    int y[REF_PARITY_SAMPLES], within = 1;
    if (!CHECK(ref_parity_read(ref_parity_csv(), k->name, want), "PyTorch's losses can be read")) return;
    c.norm = k->bn ? NORM_BATCH : NORM_NONE;
    c.task = k->loss == REF_MSE ? TASK_AUTOENCODE : TASK_CLASSIFY;
    c.train.optimizer = optimizer[k->optimizer];
    c.train.lr = k->lr;
    c.train.momentum = k->momentum;
    c.train.weight_decay = k->weight_decay;
    RefMlp initial = ref_parity_model(k);
    build(&m, k->dims, k->n_layers, &c, REF_PARITY_SAMPLES);
    copy_to_model(&m, &initial);
    ref_parity_inputs(k->loss, x);
    for (int i = 0; i < REF_PARITY_SAMPLES; i++) y[i] = ref_parity_label(i);
    for (int s = 0; s <= REF_PARITY_STEPS; s++) {
        const int eval = s == REF_PARITY_STEPS, first = eval ? 0 : s * REF_PARITY_BATCH % REF_PARITY_SAMPLES;
        const int rows = eval ? (int)REF_PARITY_SAMPLES : (int)REF_PARITY_BATCH;
        float loss;
        upload(m.x[0], x + first * REF_PARITY_PIXELS, (size_t)rows * REF_PARITY_PIXELS);
        CUDA_CHECK(cudaMemcpy(m.label, y + first, (size_t)rows * sizeof(int), cudaMemcpyHostToDevice));
        forward(&m, rows, eval ? MODE_EVAL : MODE_TRAIN);
        loss_forward_backward(&m, rows, s % TRAIN_LOSS_RING);
        CUDA_CHECK(cudaMemcpy(&loss, m.step_loss + s % TRAIN_LOSS_RING, sizeof loss, cudaMemcpyDeviceToHost));
        const double difference = fabs((double)loss / want[s] - 1),
                     allowed = eval ? ref_parity_eval_tolerance(k) : ref_parity_tolerance(s + 1);
        worst = fmax(worst, difference / allowed);
        if (!(difference <= allowed) && within)
            printf("    %s: step %d: loss %.9g, PyTorch %.9g\n", k->name, s + 1, (double)loss, want[s]);
        within = within && difference <= allowed;
        if (eval) break;
        backward(&m, rows, MODE_TRAIN);
        update(&m, &c, c.train.lr, s);
    }
    printf("     %s: largest difference from PyTorch is %.3f of what is allowed\n", k->name, worst);
    CHECK(within, "all losses are PyTorch's");
    model_free(&m);
    ref_mlp_free(&initial);
    release();
}

// ----------------------------------------------------------------------------- 6. schedule, layers, files, whole runs

static void test_schedule(void) {
    train_options o = train_default_options();
    const double quarter = 0.5 * 0.2 * (1 + sqrt(0.5));
    double got[8], want[8] = {0.2, 0.2, 0.05, 0.2, 0.2, quarter, 0.1, 0};
    o.lr = 0.2;
    got[0] = train_learning_rate(&o, 0, 100);
    got[1] = train_learning_rate(&o, 99, 100);
    o.warmup = 4;
    got[2] = train_learning_rate(&o, 0, 100);
    got[3] = train_learning_rate(&o, 3, 100);
    o.schedule = SCHEDULE_COSINE;
    got[4] = train_learning_rate(&o, 4, 100);
    got[5] = train_learning_rate(&o, 28, 100);
    got[6] = train_learning_rate(&o, 52, 100);
    got[7] = train_learning_rate(&o, 100, 100);
    test_close_d("learning rate", got, want, 8, 1e-12, 1e-15);
    const double first = train_learning_rate(&o, 2, 3), last = train_learning_rate(&o, 4, 4);
    CHECK(last == 0.2 && first == 0.2 * 3 / 4, "a warm-up longer than the run");
}

static void test_layer_sizes(void) {
    config c = default_config();
    dataset d;
    int dim[MAX_LAYERS + 1];
    char err[256] = "";
    memset(&d, 0, sizeof d);
    snprintf(d.name, sizeof d.name, "pictures");
    d.features = 784;
    d.classes = 10;
    CHECK(layer_sizes(&c, &d, dim, err, sizeof err) == 4 && dim[0] == 784 && dim[1] == 512 && dim[3] == 512 &&
              dim[4] == 10,
          "default layers");
    c.task = TASK_AUTOENCODE;
    CHECK(layer_sizes(&c, &d, dim, err, sizeof err) == 4 && dim[4] == 784, "default layers of an autoencoder");
    c.task = TASK_CLASSIFY;
    c.layers.n = 3;
    c.layers.v[0] = 784;
    c.layers.v[1] = 7;
    c.layers.v[2] = 10;
    CHECK(layer_sizes(&c, &d, dim, err, sizeof err) == 2 && dim[1] == 7 && dim[2] == 10, "given layers");
    c.layers.v[0] = 783;
    CHECK(layer_sizes(&c, &d, dim, err, sizeof err) == 0 && strstr(err, "783") && strstr(err, "784") &&
              strstr(err, "pictures"),
          "wrong inputs");
    c.layers.v[0] = 784;
    c.layers.v[2] = 11;
    CHECK(layer_sizes(&c, &d, dim, err, sizeof err) == 0 && strstr(err, "11") && strstr(err, "10 classes"),
          "wrong number of classes");
    c.task = TASK_AUTOENCODE;
    const int accepted = layer_sizes(&c, &d, dim, err, sizeof err) == 0;
    CHECK(accepted && strstr(err, "784 features"), "wrong outputs of an autoencoder");
}

// Newest first, however many there are; names that no step is written as are left out, and what is no folder.
static void test_find_checkpoints(const char *dir) {
    static const char *const other[] = {
        "checkpoint-", "checkpoint-12x", "checkpoint-abc", "model", "checkpoint", "checkpoint-007", "checkpoint--1",
        "checkpoint-+5", "checkpoint- 5", "checkpoint-9223372036854775807", "checkpoint-99999999999999999999",
        "checkpoint-5.tmp"};
    enum { OTHERS = sizeof other / sizeof *other };
    char path[LOG_PATH];
    int64_t *steps;
    snprintf(path, sizeof path, "%s/many", dir);
    CHECK(checkpoint_find(path, &steps) == 0 && !steps, "a folder that is not there");
    mkdir(path, 0777);
    CHECK(checkpoint_find(path, &steps) == 0 && !steps, "an empty folder");
    for (int i = 0; i < 100 + OTHERS; i++) {
        if (i < 100) snprintf(path, sizeof path, "%s/many/checkpoint-%d", dir, i * 37 % 100 * 10);
        else snprintf(path, sizeof path, "%s/many/%s", dir, other[i - 100]);
        mkdir(path, 0777);
    }
    snprintf(path, sizeof path, "%s/many/checkpoint-5000", dir);
    FILE *f = fopen(path, "w");
    CHECK(f && !fclose(f), "a file with a checkpoint's name");
    snprintf(path, sizeof path, "%s/many", dir);
    int ok = checkpoint_find(path, &steps) == 100;
    for (int i = 0; i < 100 && ok; i++) ok = steps[i] == 990 - 10 * i;
    CHECK(ok, "all checkpoints in order, and nothing else");
    free(steps);
}

// Weight files: back bit for bit, and files of other networks change nothing.
static void test_weights(const char *dir) {
    const int dims[] = {9, 17, 13, 5}, wide[] = {9, 18, 13, 5};
    config c = default_config(), plain = default_config(), no_bias = default_config();
    model a, b, other;
    char path[LOG_PATH], err[512] = "";
    c.norm = no_bias.norm = NORM_BATCH;
    no_bias.bias = 0;
    snprintf(label, sizeof label, "weights");
    snprintf(path, sizeof path, "%s/w.safetensors", dir);
    build(&a, dims, 3, &c, 8);
    build(&b, dims, 3, &c, 8);
    model_init(&a, &c);
    disturb_norm(&a);
    train_some(&a, &c, 3, 0);
    CHECK(a.net.n_counts == 2 && a.net.counts[0] == 3 && train_save_weights(&a.net, path, err, sizeof err) == 0,
          "weights are saved");
    CHECK(train_load_weights(&b.net, path, err, sizeof err) == 0, "and loaded");
    float *params = train_host_copy(a.net.params, a.net.n_params), *stats = train_host_copy(a.net.stats, a.net.n_stats);
    same_bits("parameters", b.net.params, params, a.net.n_params * sizeof(float));
    same_bits("statistics", b.net.stats, stats, a.net.n_stats * sizeof(float));
    CHECK(b.net.counts[0] == 3 && b.net.counts[1] == 3, "batch counts");
    b.net.counts[0] = b.net.counts[1] = 7;
    disturb_norm(&b);
    snprintf(path, sizeof path, "%s/other.safetensors", dir);
    load_fails(&b, path, "other.safetensors");
    const struct { const config *c; const int *dims; const char *words; } wrong[] = {
        {&no_bias, dims, "fc1.bias"}, {&plain, dims, "bn1.weight"}, {&c, wide, "fc1.weight"}};
    for (int k = 0; k < 3; k++) {
        build(&other, wrong[k].dims, 3, wrong[k].c, 8);
        model_init(&other, wrong[k].c);
        CHECK(train_save_weights(&other.net, path, err, sizeof err) == 0, "weights of another network");
        load_fails(&b, path, wrong[k].words);
        if (k == 0) {  // the other way round: a tensor too many
            snprintf(path, sizeof path, "%s/w.safetensors", dir);
            load_fails(&other, path, "fc1.bias");
            snprintf(path, sizeof path, "%s/other.safetensors", dir);
        }
        model_free(&other);
    }
    for (int k = 0; k < 4; k++) {  // not a number, in a weight of the last layer or in a statistic
        const float bad = k % 2 ? INFINITY : NAN;
        float *place = k < 2 ? a.w[2] + 3 : a.running_var[1] + 12, keep;
        CUDA_CHECK(cudaMemcpy(&keep, place, sizeof keep, cudaMemcpyDeviceToHost));
        CUDA_CHECK(cudaMemcpy(place, &bad, sizeof bad, cudaMemcpyHostToDevice));
        CHECK(train_save_weights(&a.net, path, err, sizeof err) == 0, "weights with NaN are saved");
        load_fails(&b, path, k < 2 ? "fc3.weight" : "bn2.running_var");
        CUDA_CHECK(cudaMemcpy(place, &keep, sizeof keep, cudaMemcpyHostToDevice));
    }
    free(params);
    free(stats);
    model_free(&a);
    model_free(&b);
    release();
}

// A run that stops and is resumed ends with the same weights as one that goes through.
static void test_runs(const char *dir) {
#define OPTIONS                                                                                             \
    "train_mlp --quiet --data moons --layers 2,24,24,2 --batch-size 96 --norm batch --optimizer adamw " \
    "--lr 0.01 --rescale-every 5steps --eval-every 3steps "
    size_t n_whole, n_resumed;
    char path[LOG_PATH];
    CHECK(run_program(OPTIONS "--steps 25 --save %s/whole.safetensors --report %s/report.json", dir) == 0, "a run");
    CHECK(run_program(OPTIONS "--steps 13 --log-dir %s/log --checkpoint-every 4steps", dir) == 0, "its first half");
    CHECK(run_program(OPTIONS "--steps 25 --resume %s/log --save %s/resumed.safetensors", dir) == 0, "and the rest");
    const char *whole = contents(dir, "whole.safetensors", &n_whole);
    const char *resumed = contents(dir, "resumed.safetensors", &n_resumed);
    CHECK(n_whole > 0 && n_whole == n_resumed && memcmp(whole, resumed, n_whole) == 0, "the same weights, bit for bit");
    snprintf(path, sizeof path, "%s/report.json", dir);
    CHECK(file_is_there(path), "a report");
    snprintf(path, sizeof path, "%s/log/log.csv", dir);
    CHECK(file_is_there(path), "a log");
    snprintf(path, sizeof path, "%s/log/checkpoint-8", dir);
    CHECK(!file_is_there(path), "old checkpoints are removed");
    release();
}

// --------------------------------------------------------------------------------------------------------- 7. one hash

// Trains three networks for five steps each; FNV-1a over the bits of all their parameters. OpenBLAS's products depend
// on the number of threads (see gemm.h), so it gets one thread; everything else is compared.
static void print_bits(void) {
    const int dims[3][4] = {{70, 300, 41, 10}, {33, 64, 65, 7}, {37, 20, 20, 37}};
    uint32_t hash = 2166136261u;
    seed = 99;
    for (int k = 0; k < 3; k++) {
        config c = default_config();
        model m;
        rescale_report report;
        c.train.optimizer = OPTIMIZER_SGD;
        if (k == 1) c.train.optimizer = OPTIMIZER_ADAMW;
        if (k == 2) c.train.optimizer = OPTIMIZER_MOMENTUM;
        c.norm = k == 1 ? NORM_BATCH : NORM_NONE;
        c.task = k == 2 ? TASK_AUTOENCODE : TASK_CLASSIFY;
        build(&m, dims[k], 3, &c, 101);
#if !DEVICE_IS_GPU
        if (strstr(gemm_backend(), "OpenBLAS")) m.gemm.threads = 1;
#endif
        model_init(&m, &c);
        CHECK(rescale_model(&m, &c, &report) == 0, "rescaling before the hash");
        train_some(&m, &c, 5, 0);
        unsigned char *bytes = (unsigned char *)train_host_copy(m.net.params, m.net.n_params);
        for (size_t i = 0; i < m.net.n_params * sizeof(float); i++) hash = (hash ^ bytes[i]) * 16777619u;
        free(bytes);
        model_free(&m);
        release();
    }
    printf("bits %08X\n", (unsigned)hash);
}

// The benchmark's times: samples of 64 steps between two events, each a time of one step. The trainer moves on by all.
static void test_timed_steps(void) {
    static trainer t;
    const int dim[] = {4, 8, 3};
    char err[256];
    config c = default_config();
    dataset d = random_data(256, 1, 1, 4, 3);
    memset(&t, 0, sizeof t);
    t.c = &c;
    t.ordered = -1;
    train_run_init(&t.run, "test_mlp", VERSION, &c.train);
    train_set_length(&t.run, d.n);
    CHECK(model_create(&t.m, dim, 2, &c, t.run.batch, err, sizeof err) == 0, "a small model");
    t.train = device_data_create(&d, 1);
    dataset_free(&d);
    model_init(&t.m, &c);
    const double start = log_seconds();
    const timing one = time_steps(&t, 0);
    const double all = log_seconds() - start;
    const int64_t timed = MIN_SAMPLES * 64;
    CHECK(one.runs == timed && t.run.step == 3 + timed, "five samples of 64 steps, after three to warm up");
    CHECK(one.p10 > 0 && one.p10 <= one.median && one.median <= one.p90, "times of a step");
    CHECK(one.p10 * 64 * MIN_SAMPLES <= all, "a time is that of one step, not of 64");
    model_free(&t.m);
    device_data_free(&t.train);
}

int main(void) {
    char dir[1024];
    snprintf(dir, sizeof dir, "%s", test_make_dir());
    test_kernels();
    test_networks();
    for (int i = 0; i < N_NETS; i++) test_diag_g(&nets[i]);
    test_rescaling();
    for (int i = 0; i < REF_PARITY_CASES; i++) test_parity(&ref_parity_cases[i]);
    test_schedule();
    test_layer_sizes();
    test_find_checkpoints(dir);
    test_weights(dir);
    test_runs(dir);
    test_timed_steps();
    print_bits();
    test_remove_dir(dir);
    return test_summary();
}
