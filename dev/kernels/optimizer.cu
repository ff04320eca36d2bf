// optimizer.cu -- the parameter update, AdamW and SGD with momentum, over all tensors of a network.
//
// Shapes: w, g, m, v [n]: parameters, gradients, first and second moments of `tensors` tensors one behind the other, n
// floats in all. The tensors are of very different sizes, as in a real network: here a weight and a bias by turns, the
// bias 1/64 of the weight.
//     adamw   m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w = w (1 - lr decay) - step m / (sqrt(v) / root + eps)
//             w, m, v in and out, g in: 28 n bytes
//     sgd     m = momentum m + (g + decay w), w -= lr m                                                      20 n bytes
// About a dozen operations per element: memory-bound. What varies is the number of launches (a launch costs some
// microseconds on a GPU, more than a bias) and the width of the accesses.
//
//  1 per_tensor       One launch per tensor: simple, and all a framework can do that keeps tensors apart. Small tensors
//                     pay a launch each and fill a fraction of the device.
//  2 multi_tensor     One launch for all: a table cuts every tensor into chunks of 4096 elements, a block takes a
//                     chunk.
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
    // start and length of every chunk
    double *table = input(p, "chunks", I32, 2 * (size_t)chunks_of(tensors, n), 0, 1);
    for (int i = 0; i < tensors; i++)
        for (int at = start_of(i, tensors, n), end = start_of(i + 1, tensors, n); at < end; at += CHUNK, table += 2) {
            table[0] = at;
            table[1] = end - at < CHUNK ? end - at : CHUNK;
        }
}

// What happens to one element. HAS_V: uses v.
struct adamw_update {
    enum { HAS_V = 1 };
    adamw_factors f;
    __device__ __forceinline__ void operator()(float &w, float g, float &m, float &v) const {
        const float mi = f.beta1 * m + f.rest1 * g, vi = f.beta2 * v + f.rest2 * g * g;
        m = mi;
        v = vi;
        w = w * f.keep - f.step_size * mi / (sqrtf(vi) / f.root + f.eps);
    }
};
struct sgd_update {
    enum { HAS_V = 0 };
    float lr, decay, momentum;
    __device__ __forceinline__ void operator()(float &w, float g, float &m, float &) const {
        m = momentum * m + (g + decay * w);
        w -= lr * m;
    }
};
static adamw_update make_adamw(void) {
    const adamw_update u = {adamw_factors_of(LR, DECAY, STEP)};
    return u;
}
static sgd_update make_sgd(void) {
    const sgd_update u = {(float)LR, (float)DECAY, (float)MOMENTUM};
    return u;
}

// A kernel for each way to reach an element.
#define ARRAYS float *__restrict__ w, const float *__restrict__ g, float *__restrict__ m, float *__restrict__ v
template <class UPDATE> static __device__ __forceinline__ void update_at(ARRAYS, UPDATE update, int i) {
    float none = 0.0f;
    if constexpr (UPDATE::HAS_V) update(w[i], g[i], m[i], v[i]);
    else update(w[i], g[i], m[i], none);
}
template <class UPDATE> __global__ void flat(ARRAYS, UPDATE update, int start, int end) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < end - start) update_at(w, g, m, v, update, start + i);
}
template <class UPDATE> __global__ void chunks(ARRAYS, UPDATE update, const int *__restrict__ table) {
    const int start = table[2 * blockIdx.x], n = table[2 * blockIdx.x + 1];
    for (int i = threadIdx.x; i < n; i += (int)blockDim.x) update_at(w, g, m, v, update, start + i);
}
template <class UPDATE>
__global__ void flat4(ARRAYS, UPDATE update, int n) {  // the up to three elements left go to the next thread
    const int i = blockIdx.x * blockDim.x + threadIdx.x, whole = n / 4;
    if (i == whole)
        for (int k = 4 * whole; k < n; k++) update_at(w, g, m, v, update, k);
    if (i >= whole) return;
    float4 a = ((const float4 *)w)[i], c = ((const float4 *)m)[i], e = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const float4 b = ((const float4 *)g)[i];
    if (UPDATE::HAS_V) e = ((const float4 *)v)[i];
    update(a.x, b.x, c.x, e.x);
    update(a.y, b.y, c.y, e.y);
    update(a.z, b.z, c.z, e.z);
    update(a.w, b.w, c.w, e.w);
    ((float4 *)w)[i] = a;
    ((float4 *)m)[i] = c;
    if (UPDATE::HAS_V) ((float4 *)v)[i] = e;
}
template <class UPDATE> __global__ void grid_stride(ARRAYS, UPDATE update, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int)(gridDim.x * blockDim.x))
        update_at(w, g, m, v, update, i);
}

#define BUFFERS(c) FLOATS(c, W), FLOATS(c, G), FLOATS(c, M), FLOATS(c, V)
#define RUN(name, make)                                                                                                \
    static void name##_per_tensor(const call *c) {                                                                     \
        const int tensors = c->dim[0], n = c->dim[1];                                                                  \
        for (int i = 0; i < tensors; i++) {                                                                            \
            const int start = start_of(i, tensors, n), end = start_of(i + 1, tensors, n);                              \
            if (start < end) flat<<<ceil_div(end - start, c->block), c->block>>>(BUFFERS(c), make(), start, end);      \
        }                                                                                                              \
    }                                                                                                                  \
    static void name##_multi_tensor(const call *c) {                                                                   \
        chunks<<<chunks_of(c->dim[0], c->dim[1]), c->block>>>(BUFFERS(c), make(), INTS(c, TABLE));                     \
    }                                                                                                                  \
    static void name##_flat(const call *c) {                                                                           \
        flat<<<ceil_div(c->dim[1], c->block), c->block>>>(BUFFERS(c), make(), 0, c->dim[1]);                           \
    }                                                                                                                  \
    static void name##_flat4(const call *c) {                                                                          \
        flat4<<<ceil_div(c->dim[1] / 4 + 1, c->block), c->block>>>(BUFFERS(c), make(), c->dim[1]);                     \
    }                                                                                                                  \
    static void name##_grid_stride(const call *c) {                                                                    \
        grid_stride<<<min(ceil_div(c->dim[1], c->block), 1024), c->block>>>(BUFFERS(c), make(), c->dim[1]);            \
    }
RUN(adamw, make_adamw)
RUN(sgd, make_sgd)

static void adamw_layers(const call *c) {
    float *w = FLOATS(c, W), *m = FLOATS(c, M), *v = FLOATS(c, V);
    optimizer_step(OPTIMIZER_ADAMW, w, FLOATS(c, G), m, v, c->dim[1], LR, 0, DECAY, STEP);
}
static void sgd_layers(const call *c) {
    float *w = FLOATS(c, W), *m = FLOATS(c, M);
    optimizer_step(OPTIMIZER_MOMENTUM, w, FLOATS(c, G), m, NULL, c->dim[1], LR, MOMENTUM, DECAY, STEP);
}

static void adamw_problem(problem *p) {
    make_buffers(p, 1);
    p->bytes = 28.0 * p->dim[1];
    p->flops = 15.0 * p->dim[1];
}
static void adamw_reference(problem *p) {
    const double b1 = 0.9, b2 = 0.999, t = STEP + 1;
    for (int i = 0; i < p->dim[1]; i++) {
        const double g = given(p, G)[i], m = b1 * given(p, M)[i] + (1 - b1) * g;
        const double v = b2 * given(p, V)[i] + (1 - b2) * g * g;
        wanted(p, M)[i] = m;
        wanted(p, V)[i] = v;
        wanted(p, W)[i] =
            given(p, W)[i] * (1 - LR * DECAY) - LR * (m / (1 - pow(b1, t))) / (sqrt(v / (1 - pow(b2, t))) + 1e-8);
    }
}
static void sgd_problem(problem *p) {
    make_buffers(p, 0);
    p->bytes = 20.0 * p->dim[1];
    p->flops = 6.0 * p->dim[1];
}
static void sgd_reference(problem *p) {
    for (int i = 0; i < p->dim[1]; i++) {
        const double m = MOMENTUM * given(p, M)[i] + given(p, G)[i] + DECAY * given(p, W)[i];
        wanted(p, M)[i] = m;
        wanted(p, W)[i] = given(p, W)[i] - LR * m;
    }
}

#define ROWS(name)                                                                                                     \
    {"per_tensor", "a launch per tensor", name##_per_tensor, FP32, 0, {64, 256}, enough, 0},                           \
    {"multi_tensor", "one launch, a table of chunks", name##_multi_tensor, FP32, 0, {64, 256, 512}, enough, 0},        \
    {"flat", "one array, a thread per element", name##_flat, FP32, 0, {64, 256, 512}, NULL, 0},                        \
    {"flat_float4", "16-byte accesses", name##_flat4, FP32, 0, {64, 256, 512}, NULL, 0},                               \
    {"grid_stride", "1024 blocks walk over the array", name##_grid_stride, FP32, 0, {64, 256, 512}, NULL, 0},          \
    {"layers.cuh", "what the trainers use", name##_layers, FP32, 0, {0}, NULL, 0}
static const variant adamw_variants[] = {ROWS(adamw)};
static const variant sgd_variants[] = {ROWS(sgd)};

#define TEST_SHAPES "1x1 1x3 2x130 7x1003 4x65536 9x70001"
#define CPU_SHAPES "8x932362 16x4194304"
#define GPU_SHAPES "8x932362 16x8388608 64x33554432"
static const operation operations[] = {
    {"adamw", "AdamW step of all tensors",
     "tensors n", adamw_problem, adamw_reference, VARIANTS(adamw_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"sgd", "SGD step with momentum of all tensors",
     "tensors n", sgd_problem, sgd_reference, VARIANTS(sgd_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
