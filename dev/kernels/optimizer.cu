// optimizer.cu -- the parameter update, AdamW and SGD with momentum, over all tensors of a network.
//
// Shapes: w, g, m, v [n]: parameters, gradients, first and second moments of `tensors` tensors one behind the other, n floats in all.
// The tensors are of very different sizes, as in a real network: here a weight and a bias by turns, the bias 1/64 of the weight.
//     adamw   m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w = w (1 - lr decay) - step m / (sqrt(v) / root + eps)
//             w, m, v in and out, g in: 28 n bytes
//     sgd     m = momentum m + (g + decay w), w -= lr m                                                          20 n bytes
// About a dozen operations per element: memory-bound. What varies is the number of launches (a launch costs some microseconds on a
// GPU, more than a bias) and the width of the accesses.
//
//  1 per_tensor       One launch per tensor: simple, and all a framework can do that keeps tensors apart. Small tensors pay a launch
//                     each and fill a fraction of the device.
//  2 multi_tensor     One launch for all: a table cuts every tensor into chunks of 4096 elements, a block takes a chunk.
//  3 flat             The tensors are one array from the start, so one launch needs no table: a thread per element.
//  4 flat_float4      16-byte accesses.
//  5 grid_stride      A fixed grid that fills the device walks over the array: fewer blocks to start.
//    layers.cuh       optimizer_step() of common/layers.cuh, which the trainers use: variant 3.
#include "dev/kernels/kernels.h"
#include "common/rng.h"
#include "common/dataset.h"
#include "common/layers.cuh"

enum { W, G, M, V, TABLE };
enum { CHUNK = 4096 };
#define LR 1e-3
#define DECAY 0.01
#define MOMENTUM 0.9
enum { STEP = 9 };

// Where tensor i of `tensors` starts; the last one ends at n.
static int start_of(int i, int tensors, int n) {
    const long long pairs = (tensors + 1) / 2, pair = n / pairs, at = pair * (i / 2);
    if (i >= tensors) return n;
    return (int)(i % 2 ? at + pair - pair / 64 : at);
}
static int chunks_of(int tensors, int n) {
    int chunks = 0;
    for (int i = 0; i < tensors; i++) chunks += ceil_div(start_of(i + 1, tensors, n) - start_of(i, tensors, n), CHUNK);
    return chunks;
}
static int enough(const int *dim) { return dim[1] >= dim[0]; }

// State after some steps: v is not negative, and of the size of g^2. with_v: AdamW.
static void make_buffers(problem *p, int with_v) {
    const int tensors = p->dim[0], n = p->dim[1];
    in_place(p, "w", F32, (size_t)n, -1, 1, 1e-6, 1e-7);
    input(p, "g", F32, (size_t)n, -1, 1);
    in_place(p, "m", F32, (size_t)n, -0.5, 0.5, 1e-6, 1e-7);
    if (with_v) in_place(p, "v", F32, (size_t)n, 0.01, 1, 1e-6, 1e-7);
    else scratch(p, "no v", F32, 1);
    double *table = input(p, "chunks", I32, 2 * (size_t)chunks_of(tensors, n), 0, 1);  // start and length of every chunk
    for (int i = 0; i < tensors; i++)
        for (int at = start_of(i, tensors, n), end = start_of(i + 1, tensors, n); at < end; at += CHUNK, table += 2)
            table[0] = at, table[1] = end - at < CHUNK ? end - at : CHUNK;
}

// A kernel for each way to reach an element; the update itself is a function of its place.
struct adamw_update {
    float *__restrict__ w;
    const float *__restrict__ g;
    float *__restrict__ m;
    float *__restrict__ v;
    adamw_factors f;
    __device__ __forceinline__ void operator()(int i) const {
        const float mi = f.beta1 * m[i] + f.rest1 * g[i], vi = f.beta2 * v[i] + f.rest2 * g[i] * g[i];
        m[i] = mi, v[i] = vi;
        w[i] = w[i] * f.keep - f.step_size * mi / (sqrtf(vi) / f.root + f.eps);
    }
    __device__ __forceinline__ void one(float *wi, float gi, float *mi, float *vi) const {
        *mi = f.beta1 * *mi + f.rest1 * gi, *vi = f.beta2 * *vi + f.rest2 * gi * gi;
        *wi = *wi * f.keep - f.step_size * *mi / (sqrtf(*vi) / f.root + f.eps);
    }
    __device__ __forceinline__ void four(int i) const {
        float4 a = ((const float4 *)w)[i], b = ((const float4 *)m)[i], c = ((const float4 *)v)[i];
        const float4 d = ((const float4 *)g)[i];
        one(&a.x, d.x, &b.x, &c.x), one(&a.y, d.y, &b.y, &c.y), one(&a.z, d.z, &b.z, &c.z), one(&a.w, d.w, &b.w, &c.w);
        ((float4 *)w)[i] = a, ((float4 *)m)[i] = b, ((float4 *)v)[i] = c;
    }
};
struct sgd_update {
    float *__restrict__ w;
    const float *__restrict__ g;
    float *__restrict__ m;
    float lr, decay, momentum;
    __device__ __forceinline__ void operator()(int i) const {
        m[i] = momentum * m[i] + (g[i] + decay * w[i]);
        w[i] -= lr * m[i];
    }
    __device__ __forceinline__ void four(int i) const {
        float4 a = ((const float4 *)w)[i], b = ((const float4 *)m)[i];
        const float4 d = ((const float4 *)g)[i];
        b.x = momentum * b.x + (d.x + decay * a.x), b.y = momentum * b.y + (d.y + decay * a.y);
        b.z = momentum * b.z + (d.z + decay * a.z), b.w = momentum * b.w + (d.w + decay * a.w);
        a.x -= lr * b.x, a.y -= lr * b.y, a.z -= lr * b.z, a.w -= lr * b.w;
        ((float4 *)w)[i] = a, ((float4 *)m)[i] = b;
    }
};
static adamw_update make_adamw(const call *c) {
    const adamw_update u = {FLOATS(c, W), FLOATS(c, G), FLOATS(c, M), FLOATS(c, V), adamw_factors_of(LR, DECAY, STEP)};
    return u;
}
static sgd_update make_sgd(const call *c) {
    const sgd_update u = {FLOATS(c, W), FLOATS(c, G), FLOATS(c, M), (float)LR, (float)DECAY, (float)MOMENTUM};
    return u;
}

template <class UPDATE> __global__ void flat(UPDATE update, int start, int end) {
    const int i = start + blockIdx.x * blockDim.x + threadIdx.x;
    if (i < end) update(i);
}
template <class UPDATE> __global__ void chunks(UPDATE update, const int *__restrict__ table) {
    const int start = table[2 * blockIdx.x], n = table[2 * blockIdx.x + 1];
    for (int i = threadIdx.x; i < n; i += (int)blockDim.x) update(start + i);
}
template <class UPDATE> __global__ void flat4(UPDATE update, int n) {  // the up to three elements left go to the next thread
    const int i = blockIdx.x * blockDim.x + threadIdx.x, whole = n / 4;
    if (i < whole) update.four(i);
    else if (i == whole)
        for (int k = 4 * whole; k < n; k++) update(k);
}
template <class UPDATE> __global__ void grid_stride(UPDATE update, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int)(gridDim.x * blockDim.x)) update(i);
}

#define RUN(name, make)                                                                                                        \
    static void name##_per_tensor(const call *c) {                                                                             \
        const int tensors = c->dim[0], n = c->dim[1];                                                                          \
        for (int i = 0; i < tensors; i++) {                                                                                    \
            const int start = start_of(i, tensors, n), end = start_of(i + 1, tensors, n);                                      \
            if (start < end) flat<<<ceil_div(end - start, c->block), c->block>>>(make(c), start, end);                         \
        }                                                                                                                      \
    }                                                                                                                          \
    static void name##_multi_tensor(const call *c) {                                                                           \
        chunks<<<chunks_of(c->dim[0], c->dim[1]), c->block>>>(make(c), INTS(c, TABLE));                                        \
    }                                                                                                                          \
    static void name##_flat(const call *c) { flat<<<ceil_div(c->dim[1], c->block), c->block>>>(make(c), 0, c->dim[1]); }       \
    static void name##_flat4(const call *c) { flat4<<<ceil_div(c->dim[1] / 4 + 1, c->block), c->block>>>(make(c), c->dim[1]); } \
    static void name##_grid_stride(const call *c) {                                                                            \
        grid_stride<<<min(ceil_div(c->dim[1], c->block), 1024), c->block>>>(make(c), c->dim[1]);                               \
    }
RUN(adamw, make_adamw)
RUN(sgd, make_sgd)

static void adamw_layers(const call *c) { optimizer_step(FLOATS(c, W), FLOATS(c, G), FLOATS(c, M), FLOATS(c, V), c->dim[1], LR, 0, DECAY, STEP); }
static void sgd_layers(const call *c) { optimizer_step(FLOATS(c, W), FLOATS(c, G), FLOATS(c, M), NULL, c->dim[1], LR, MOMENTUM, DECAY, STEP); }

static void adamw_problem(problem *p) {
    make_buffers(p, 1);
    p->bytes = 28.0 * p->dim[1], p->flops = 15.0 * p->dim[1];
}
static void adamw_reference(problem *p) {
    const double b1 = 0.9, b2 = 0.999, t = STEP + 1;
    for (int i = 0; i < p->dim[1]; i++) {
        const double g = given(p, G)[i], m = b1 * given(p, M)[i] + (1 - b1) * g, v = b2 * given(p, V)[i] + (1 - b2) * g * g;
        wanted(p, M)[i] = m, wanted(p, V)[i] = v;
        wanted(p, W)[i] = given(p, W)[i] * (1 - LR * DECAY) - LR * (m / (1 - pow(b1, t))) / (sqrt(v / (1 - pow(b2, t))) + 1e-8);
    }
}
static void sgd_problem(problem *p) {
    make_buffers(p, 0);
    p->bytes = 20.0 * p->dim[1], p->flops = 6.0 * p->dim[1];
}
static void sgd_reference(problem *p) {
    for (int i = 0; i < p->dim[1]; i++) {
        const double m = MOMENTUM * given(p, M)[i] + given(p, G)[i] + DECAY * given(p, W)[i];
        wanted(p, M)[i] = m, wanted(p, W)[i] = given(p, W)[i] - LR * m;
    }
}

#define ROWS(name)                                                                                                             \
    {"per_tensor", "a launch per tensor", name##_per_tensor, FP32, 0, {64, 256}, enough, 0},                                   \
    {"multi_tensor", "one launch, a table of chunks", name##_multi_tensor, FP32, 0, {64, 256, 512}, enough, 0},                \
    {"flat", "one array, a thread per element", name##_flat, FP32, 0, {64, 256, 512}, NULL, 0},                                \
    {"flat_float4", "16-byte accesses", name##_flat4, FP32, 0, {64, 256, 512}, NULL, 0},                                       \
    {"grid_stride", "1024 blocks walk over the array", name##_grid_stride, FP32, 0, {64, 256, 512}, NULL, 0},                  \
    {"layers.cuh", "what the trainers use", name##_layers, FP32, 0, {0}, NULL, 0}
static const variant adamw_variants[] = {ROWS(adamw)};
static const variant sgd_variants[] = {ROWS(sgd)};

#define TEST_SHAPES "1x1 1x3 2x130 7x1003 4x65536 9x70001"
#define CPU_SHAPES "8x932362 16x8388608"
#define GPU_SHAPES "8x932362 16x8388608 64x33554432"
static const operation operations[] = {
    {"adamw", "AdamW step of all tensors", "tensors n", adamw_problem, adamw_reference, VARIANTS(adamw_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"sgd", "SGD step with momentum of all tensors", "tensors n", sgd_problem, sgd_reference, VARIANTS(sgd_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
