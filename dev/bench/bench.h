// bench.h -- for the benchmarks of trainers: timed steps and rescalings, random data, the matrix product's ceiling.
//
// Include it after a trainer (with TESTING): forward, backward, rescale_model and `trainer` are the trainer's own.
#pragma once
#include "dev/timing.h"

enum { MAX_RUNS = 2000, MIN_RUNS = 20 };
// Steps between two events, and the least number of such samples. A GPU works on while the host goes ahead, as in
// training: waiting for every step would cost an MLP 10 to 20 us of it. A CPU has nothing to overlap, so there every
// step is a sample.
#ifndef STEPS_A_SAMPLE
#define STEPS_A_SAMPLE (DEVICE_IS_GPU ? 64 : 1)
#endif
#define MIN_SAMPLES (STEPS_A_SAMPLE > 1 ? 5 : MIN_RUNS)

// One training step, and on to the next batch. The device may still be at work.
static inline void next_step(trainer *t) {
    model *m = &t->m;
    const int rows = next_batch(t);
    forward(m, rows, MODE_TRAIN);
    loss_forward_backward(m, rows, train_loss_slot(&t->run));
    backward(m, rows, MODE_TRAIN);
    update(m, t->c, train_rate(&t->run), t->run.step);
    t->run.step++;
}

// Seconds of one step by events around `steps` of them.
static inline double time_between_events(trainer *t, int steps) {
    cudaEvent_t start, stop;
    float ms = 0;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&stop));
    CUDA_CHECK(cudaEventRecord(start));
    for (int i = 0; i < steps; i++) next_step(t);
    CUDA_CHECK(cudaEventRecord(stop));
    CUDA_CHECK(cudaEventSynchronize(stop));
    CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(stop));
    return 1e-3 * (double)ms / steps;
}

// Training steps on a prepared trainer, at_least seconds of them. Times are those of one step; .runs counts steps.
static inline timing time_steps(trainer *t, double at_least) {
    static double samples[MAX_RUNS];
    double total = 0;
    int n = 0;
    for (int warmup = 0; warmup < 3; warmup++) next_step(t);
    device_synchronize();
    while (n < MAX_RUNS && (n < MIN_SAMPLES || total < at_least)) {
        samples[n] = time_between_events(t, STEPS_A_SAMPLE);
        total += STEPS_A_SAMPLE * samples[n];
        n++;
    }
    timing result = summarise(samples, n);
    result.runs = n * STEPS_A_SAMPLE;
    return result;
}

// rescale_model from the same parameters every time, which it leaves as they were; the report of the last call.
static inline timing time_rescale(trainer *t, double at_least, rescale_report *report) {
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
static inline double gemm_ceiling(gemm_context *g) {
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
static inline dataset random_data(int n, int channels, int height, int width, int classes) {
    dataset d;
    memset(&d, 0, sizeof d);
    d.n = n;
    d.features = channels * height * width;
    d.channels = channels;
    d.height = height;
    d.width = width;
    d.classes = classes;
    for (int k = 0; k < channels; k++) {
        d.mean[k] = 0.5f;
        d.std[k] = 0.29f;
    }
    d.pixels = (unsigned char *)malloc((size_t)n * (size_t)d.features);
    d.labels = (unsigned char *)malloc((size_t)n);
    for (size_t i = 0; i < (size_t)n * (size_t)d.features; i++) d.pixels[i] = (unsigned char)rng_word_at(7, 0, i);
    for (int i = 0; i < n; i++) d.labels[i] = (unsigned char)(rng_word_at(7, 1, (uint64_t)i) % (unsigned)classes);
    return d;
}
