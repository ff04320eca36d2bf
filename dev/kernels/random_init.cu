// random_init.cu -- random initial weights, from a counter: no state, the same numbers whatever the number of threads.
//
// Shape: w [n]; fp32. Philox4x32-10 (common/rng.h): counter i gives four words of 32 bits, so element k is a function
// of (seed, k).
//     uniform_init    w = bound * (2 u - 1)     4 n bytes out, 10 rounds of two multiplications for every four elements
//     normal_init     w = std * z, by Box and Muller's transform, in double, as rng.h defines it
// About 25 integer operations per element against 4 bytes: still memory-bound on a GPU, if no work is done twice;
// compute-bound on a CPU, above all the logarithm, sine and cosine of the normal numbers.
//
//  1 element       A thread per element. Each computes all four words of its counter and throws three away.
//  2 four          A thread per counter: four elements, an eighth of the multiplications per byte written, one 16-byte
//                  store.
//  3 curand        cuRAND's Philox generator, called in a kernel: the same words, since rng.h numbers them as cuRAND
//                  does.
//    host          rng_fill_uniform() / rng_fill_normal() of common/rng.h, which the trainers use for initial weights
//                  (then copied, so that a GPU run starts from the very bits of a CPU run). In the CPU build: on the
//                  processor itself.
#include "dev/kernels/kernels.h"
#include "common/rng.h"
#if DEVICE_IS_GPU
#include <curand_kernel.h>
#endif

enum { W };
enum { SEED = 12345 };
#define BOUND 0.25f
#define STD 0.5f

static uint64_t stream(void) { return rng_stream(RNG_TEST, 7); }

static void uniform_problem(problem *p) {
    output(p, "w", F32, (size_t)p->dim[0], 0, 0);  // the same bits everywhere
    p->bytes = 4.0 * p->dim[0];
    p->flops = 25.0 * p->dim[0];
}
static void normal_problem(problem *p) {
    output(p, "w", F32, (size_t)p->dim[0], 2e-7, 1e-9);  // log, sin, cos: the last bit may differ
    p->bytes = 4.0 * p->dim[0];
    p->flops = 100.0 * p->dim[0];
}
// From the definition of the generator's output, word by word.
static void uniform_reference(problem *p) {
    for (int i = 0; i < p->dim[0]; i++) {
        const double u = (double)(rng_word_at(SEED, stream(), (uint64_t)i) >> 8) / 16777216;
        wanted(p, W)[i] = (double)(float)(-(double)BOUND + 2 * (double)BOUND * u);
    }
}
static void normal_reference(problem *p) {
    for (int i = 0; i < p->dim[0]; i++) {
        const uint64_t pair = (uint64_t)i / 2 * 2;
        const double u = ((double)rng_word_at(SEED, stream(), pair) + 1) / 4294967296.0;
        const double angle = 2 * acos(-1.0) * (double)rng_word_at(SEED, stream(), pair + 1) / 4294967296.0;
        wanted(p, W)[i] = (double)STD * (double)(float)(sqrt(-2 * log(u)) * (i % 2 ? sin(angle) : cos(angle)));
    }
}

static __global__ void uniform_element(float *w, int n, uint64_t seed, uint64_t stream) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) w[i] = rng_uniform_range(rng_word_at(seed, stream, (uint64_t)i), -BOUND, BOUND);
}
static __global__ void normal_element(float *w, int n, uint64_t seed, uint64_t stream) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) w[i] = rng_affine(rng_normal_at(seed, stream, (uint64_t)i), 0.0f, STD);
}

// Writes four elements from 4 i on, or as many as there are.
static __device__ __forceinline__ void store_four(float *w, int i, int n, const float *v) {
    if (4 * i + 3 < n) *(float4 *)(w + 4 * i) = make_float4(v[0], v[1], v[2], v[3]);
    else
        for (int k = 0; 4 * i + k < n; k++) w[4 * i + k] = v[k];
}
static __device__ __forceinline__ void uniform_words(const uint32_t *words, float *v) {
    UNROLL for (int k = 0; k < 4; k++) v[k] = rng_uniform_range(words[k], -BOUND, BOUND);
}
static __device__ __forceinline__ void normal_words(const uint32_t *words, float *v) {
    rng_normal(words[0], words[1], v);
    rng_normal(words[2], words[3], v + 2);
    UNROLL for (int k = 0; k < 4; k++) v[k] = rng_affine(v[k], 0.0f, STD);
}
template <int NORMAL> __global__ void four(float *w, int n, uint64_t seed, uint64_t stream) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (4 * i >= n) return;
    uint32_t words[4];
    float v[4];
    rng_philox(seed, stream, (uint64_t)i, words);
    if (NORMAL) normal_words(words, v);
    else uniform_words(words, v);
    store_four(w, i, n, v);
}
#if DEVICE_IS_GPU
template <int NORMAL> __global__ void curand_kernel(float *w, int n, uint64_t seed, uint64_t stream) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (4 * i >= n) return;
    curandStatePhilox4_32_10_t state;
    float v[4];
    curand_init(seed, stream, 4ull * (unsigned)i, &state);
    const uint4 r = curand4(&state);
    const uint32_t words[4] = {r.x, r.y, r.z, r.w};
    if (NORMAL) normal_words(words, v);
    else uniform_words(words, v);
    store_four(w, i, n, v);
}
static void run_uniform_curand(const call *c) {
    curand_kernel<0><<<ceil_div(ceil_div(c->dim[0], 4), c->block), c->block>>>(FLOATS(c, W), c->dim[0], SEED, stream());
}
static void run_normal_curand(const call *c) {
    curand_kernel<1><<<ceil_div(ceil_div(c->dim[0], 4), c->block), c->block>>>(FLOATS(c, W), c->dim[0], SEED, stream());
}
#endif

static void run_uniform_element(const call *c) {
    uniform_element<<<ceil_div(c->dim[0], c->block), c->block>>>(FLOATS(c, W), c->dim[0], SEED, stream());
}
static void run_normal_element(const call *c) {
    normal_element<<<ceil_div(c->dim[0], c->block), c->block>>>(FLOATS(c, W), c->dim[0], SEED, stream());
}
static void run_uniform_four(const call *c) {
    four<0><<<ceil_div(ceil_div(c->dim[0], 4), c->block), c->block>>>(FLOATS(c, W), c->dim[0], SEED, stream());
}
static void run_normal_four(const call *c) {
    four<1><<<ceil_div(ceil_div(c->dim[0], 4), c->block), c->block>>>(FLOATS(c, W), c->dim[0], SEED, stream());
}

// On a GPU the copy is part of it.
static void run_host(const call *c, int normal) {
    const size_t n = (size_t)c->dim[0];
    float *w = DEVICE_IS_GPU ? (float *)allocate(n * sizeof(float)) : FLOATS(c, W);
    if (normal) rng_fill_normal(w, n, 0.0f, STD, SEED, stream());
    else rng_fill_uniform(w, n, -BOUND, BOUND, SEED, stream());
    if (!DEVICE_IS_GPU) return;
    CUDA_CHECK(cudaMemcpy(FLOATS(c, W), w, n * sizeof(float), cudaMemcpyHostToDevice));
    free(w);
}
static void run_uniform_host(const call *c) { run_host(c, 0); }
static void run_normal_host(const call *c) { run_host(c, 1); }

static const variant uniform_variants[] = {
    {"element", "a thread per element, three of four words thrown away",
     run_uniform_element, FP32, 0, {64, 256, 512}, NULL, 0},
    {"four", "a thread per counter: four elements", run_uniform_four, FP32, 0, {64, 256, 512}, NULL, 0},
    {"curand", "cuRAND's Philox in a kernel: the same words",
     ON_GPU(run_uniform_curand), FP32, GPU_ONLY, {64, 256, 512}, NULL, 0},
    {"host", "what the trainers use: on the processor, then copied", run_uniform_host, FP32, 0, {0}, NULL, 0},
};
static const variant normal_variants[] = {
    {"element", "a thread per element, three of four words thrown away",
     run_normal_element, FP32, 0, {64, 256, 512}, NULL, 0},
    {"four", "a thread per counter: four elements", run_normal_four, FP32, 0, {64, 256, 512}, NULL, 0},
    {"curand", "cuRAND's Philox in a kernel: the same words",
     ON_GPU(run_normal_curand), FP32, GPU_ONLY, {64, 256, 512}, NULL, 0},
    {"host", "what the trainers use: on the processor, then copied", run_normal_host, FP32, 0, {0}, NULL, 0},
};

#define TEST_SHAPES "1 3 4 5 1000 65539"
#define CPU_SHAPES "262144 4194304"
#define GPU_SHAPES "262144 16777216 33554432"
static const operation operations[] = {
    {"uniform_init", "w[i] uniform in [-bound, bound)", "n", uniform_problem, uniform_reference,
     VARIANTS(uniform_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"normal_init", "w[i] normal with mean 0", "n", normal_problem, normal_reference, VARIANTS(normal_variants),
     TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
