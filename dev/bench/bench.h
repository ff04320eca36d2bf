// bench.h -- what the benchmarks of trainers share: timed steps and rescalings, random data, the ceiling of the matrix product.
//
// Include it after a trainer (with TESTING defined): train_step, rescale_model and `trainer` are the trainer's own.
#pragma once
#include "dev/timing.h"

enum { MAX_RUNS = 2000, MIN_RUNS = 20 };

// One training step, and on to the next batch; waits for the device.
static void next_step(trainer *t) {
    train_step(t);
    t->run.step++;
    device_synchronize();
}

// Training steps on a prepared trainer, at least MIN_RUNS and at_least seconds of them.
static timing time_steps(trainer *t, double at_least) {
    static double samples[MAX_RUNS];
    double total = 0;
    int n = 0;
    for (int warmup = 0; warmup < 3; warmup++) next_step(t);
    while (n < MAX_RUNS && (n < MIN_RUNS || total < at_least)) {
        const double start = log_seconds();
        next_step(t);
        total += samples[n++] = log_seconds() - start;
    }
    return summarise(samples, n);
}

// rescale_model from the same parameters every time, which it leaves as they were; the report of the last call.
static timing time_rescale(trainer *t, double at_least, rescale_report *report) {
    static double samples[MAX_RUNS];
    double total = 0;
    int n = -2;
    const size_t bytes = t->m.net.n_params * sizeof(float);
    float *initial = device_floats(t->m.net.n_params);
    CUDA_CHECK(cudaMemcpy(initial, t->m.net.params, bytes, cudaMemcpyDeviceToDevice));
    while (n < MIN_RUNS || (n < MAX_RUNS && total < at_least)) {
        CUDA_CHECK(cudaMemcpy(t->m.net.params, initial, bytes, cudaMemcpyDeviceToDevice));
        device_synchronize();
        const double start = log_seconds();
        if (rescale_model(&t->m, t->c, report)) {
            fprintf(stderr, "%s: %s\n", t->run.program, report->message);
            exit(1);
        }
        device_synchronize();
        if (n++ < 0) continue;  // two warm-up calls
        total += samples[n - 1] = log_seconds() - start;
    }
    CUDA_CHECK(cudaMemcpy(t->m.net.params, initial, bytes, cudaMemcpyDeviceToDevice));
    CUDA_CHECK(cudaFree(initial));
    return summarise(samples, n);
}

// Best rate of gemm() on square matrices, in flop/s.
static double gemm_ceiling(gemm_context *g) {
    const int n = 1024;
    float *A = device_floats((size_t)n * n), *B = device_floats((size_t)n * n), *C = device_floats((size_t)n * n);
    double best = 0;
    for (int i = 0; i < 20; i++) {
        device_synchronize();
        const double start = log_seconds();
        gemm(g, 0, 1, n, n, n, 1.0f, A, n, B, n, 0.0f, C, n);
        device_synchronize();
        best = fmax(best, 2.0 * n * n * n / (log_seconds() - start));
    }
    CUDA_CHECK(cudaFree(A));
    CUDA_CHECK(cudaFree(B));
    CUDA_CHECK(cudaFree(C));
    return best;
}

// A data set of n samples of random pixels [channels][height][width], with random labels.
static dataset random_data(int n, int channels, int height, int width, int classes) {
    dataset d;
    memset(&d, 0, sizeof d);
    d.n = n, d.features = channels * height * width, d.channels = channels, d.height = height, d.width = width, d.classes = classes;
    for (int k = 0; k < channels; k++) d.mean[k] = 0.5f, d.std[k] = 0.29f;
    d.pixels = (unsigned char *)malloc((size_t)n * (size_t)d.features), d.labels = (unsigned char *)malloc((size_t)n);
    for (size_t i = 0; i < (size_t)n * (size_t)d.features; i++) d.pixels[i] = (unsigned char)rng_word_at(7, 0, i);
    for (int i = 0; i < n; i++) d.labels[i] = (unsigned char)(rng_word_at(7, 1, (uint64_t)i) % (unsigned)classes);
    return d;
}
