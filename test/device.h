// device.h -- what tests of kernels share: guarded and poisoned device memory, comparisons with doubles, random inputs.
//
// Include it after the code under test (cuda_common.h at least). release() frees the memory of a case and checks that
// nothing around the device arrays was written.
//
//     snprintf(label, sizeof label, "relu rows=%d", rows);     names the case in messages
//     float *x = floats(n);  fill(x, n, 0, 1);                  host memory, zeroed, then uniform in 0 +- 1
//     float *y_d = out(n), *x_d = in(x, n);                     device memory between guards: all NaN; a copy of x
//     same("y", y_d, want, n, rel, abs);                        as test_close; same_scaled: relative to the largest
//     release();
#pragma once
#include "ref_parity.h"
#include "test.h"

static uint64_t seed = 11;  // of uniform(); a test that must not depend on those before it sets it

// Uniform in [-1, 1), a fixed sequence, as a float.
static inline float uniform(void) { return (float)((double)(ref_parity_mix(seed++) >> 40) / 8388608.0 - 1); }

static inline void fill(float *x, size_t n, double centre, double spread) {
    for (size_t i = 0; i < n; i++) x[i] = (float)(centre + spread * (double)uniform());
}

// ------------------------------------------------------------------------------------------------------------- memory

enum { GUARD = 256, MAX_PIECES = 1024 };  // bytes; arrays of a case
static struct {
    char *device;  // start of the guard in front
    size_t bytes;  // between the guards
} pieces[MAX_PIECES];
static void *hosted[MAX_PIECES];
static int n_pieces, n_hosted;
static char label[160];  // what is being tested, for messages

// Zeroed host memory.
static inline void *host_bytes(size_t bytes) {
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p || n_hosted == MAX_PIECES) {
        fprintf(stderr, "device.h: out of memory in %s\n", label);
        exit(1);
    }
    return hosted[n_hosted++] = p;
}
static inline float *floats(size_t n) { return (float *)host_bytes(n * sizeof(float)); }
static inline double *doubles(size_t n) { return (double *)host_bytes(n * sizeof(double)); }
static inline int *ints(size_t n) { return (int *)host_bytes(n * sizeof(int)); }

// Device memory with guards around it: a copy of host memory, or with NULL all bits set (a NaN in every float).
static inline void *guarded(const void *host, size_t bytes) {
    char *p;
    if (n_pieces == MAX_PIECES) {
        fprintf(stderr, "device.h: too many arrays in %s\n", label);
        exit(1);
    }
    CUDA_CHECK(cudaMalloc((void **)&p, bytes + 2 * GUARD));
    CUDA_CHECK(cudaMemset(p, 0xa5, bytes + 2 * GUARD));
    if (host) CUDA_CHECK(cudaMemcpy(p + GUARD, host, bytes, cudaMemcpyHostToDevice));
    else CUDA_CHECK(cudaMemset(p + GUARD, 0xff, bytes));
    pieces[n_pieces].device = p;
    pieces[n_pieces++].bytes = bytes;
    return p + GUARD;
}
static inline float *in(const float *host, size_t n) { return (float *)guarded(host, n * sizeof(float)); }
static inline int *in_ints(const int *host, size_t n) { return (int *)guarded(host, n * sizeof(int)); }
static inline float *out(size_t n) { return (float *)guarded(NULL, n * sizeof(float)); }

static inline void *fetch(const void *device, size_t bytes) {
    void *host = host_bytes(bytes);
    CUDA_CHECK(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
    return host;
}

// Copies n floats from doubles, which hold floats, to the device.
static inline void upload(float *device, const double *values, size_t n) {
    float *host = (float *)malloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++) host[i] = (float)values[i];
    CUDA_CHECK(cudaMemcpy(device, host, n * sizeof(float), cudaMemcpyHostToDevice));
    free(host);
}

// Sets n floats on the device to v.
static inline void set(float *device, size_t n, float v) {
    for (size_t i = 0; i < n; i++) CUDA_CHECK(cudaMemcpy(device + i, &v, sizeof v, cudaMemcpyHostToDevice));
}

// Ends a case: no guard was touched; everything is freed.
static inline void release(void) {
    int intact = 1;
    CUDA_CHECK_LAUNCH();
    for (int i = 0; i < n_pieces; i++) {
        const size_t total = pieces[i].bytes + 2 * GUARD;
        unsigned char *host = (unsigned char *)malloc(total);
        if (!host || !pieces[i].device) exit(1);
        CUDA_CHECK(cudaMemcpy(host, pieces[i].device, total, cudaMemcpyDeviceToHost));
        const unsigned char *front = host, *behind = host + GUARD + pieces[i].bytes;
        for (size_t k = 0; k < GUARD; k++) intact = intact && front[k] == 0xa5 && behind[k] == 0xa5;
        CUDA_CHECK(cudaFree(pieces[i].device));
        free(host);
    }
    for (int i = 0; i < n_hosted; i++) free(hosted[i]);
    if (n_pieces && !CHECK(intact, "memory around the arrays is untouched")) printf("    in %s\n", label);
    n_pieces = n_hosted = 0;
}

// -------------------------------------------------------------------------------------------------------- comparisons

// Compares device floats with doubles; the message names the case.
static inline int same(const char *what, const float *device, const double *want, size_t n, double rel, double abs) {
    char name[320];
    snprintf(name, sizeof name, "%s: %s", label, what);
    return test_close(name, (const float *)fetch(device, n * sizeof(float)), want, n, rel, abs);
}
static inline int same_d(const char *what, const double *device, const double *want, size_t n, double rel, double abs) {
    char name[320];
    snprintf(name, sizeof name, "%s: %s", label, what);
    return test_close_d(name, (const double *)fetch(device, n * sizeof(double)), want, n, rel, abs);
}
// The same, bit for bit.
static inline int same_bits(const char *what, const void *device, const void *want, size_t bytes) {
    const int ok = CHECK(memcmp(fetch(device, bytes), want, bytes) == 0, "equal bits");
    if (!ok) printf("    %s: %s\n", label, what);
    return ok;
}
// Relative to the largest value.
static inline int same_scaled(const char *what, const float *device, const double *want, size_t n, double rel) {
    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(want[i]));
    return same(what, device, want, n, rel, rel * largest + 1e-6);
}
