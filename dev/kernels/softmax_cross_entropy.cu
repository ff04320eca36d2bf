// softmax_cross_entropy.cu -- the classification loss and its gradient.
//
// Shapes: logits x [rows][classes], label [rows]; loss [rows], lse [rows] (log sum exp), d [rows][classes]; fp32.
//     cross_entropy_forward    lse[r] = log sum_c exp(x[r][c]),  loss[r] = lse[r] - x[r][label[r]]
//     cross_entropy_backward   d[r][c] = (exp(x[r][c] - lse[r]) - [c == label[r]]) / rows
//     cross_entropy            both in one pass over the rows, which is what a trainer needs; no lse
// Bytes: 4 rows classes forward, 8 rows classes backward and for both in one.
// One exp per element each: memory-bound on a GPU; on a CPU exp is what costs. The maximum of a row is subtracted
// before exp, so that nothing overflows; the naive way reads a row once for it, once for the sum and once for the
// result.
//
// Forward:
//  1 thread_per_row   A thread walks along its row, twice. With few classes (10) that is all it takes; with many,
//                     neighbouring threads are a whole row apart, and nothing is coalesced.
//  2 warp_per_row     The lanes of a warp take neighbouring elements, and a butterfly of shuffles reduces 32 partial
//                     results.
//  3 warp_online      One pass: each lane keeps the maximum so far and the sum relative to it; a larger element
//                     rescales the sum. Two lanes' results merge by the same rule. The row is read once.
//  4 block_online     A block per row, for few rows of many classes (a language model: 50,257), where one warp per row
//                     would leave a GPU empty.
// Backward:
//  1 flat             A thread per element on a two-dimensional grid.
//  2 float4           16-byte accesses.
// Both:
//  1 two_kernels      Forward (warp_online), then backward (flat): the row is read twice from memory.
//  2 warp_twice       A warp reads the row online and then again, now from the cache, and writes the gradient.
//  3 block_registers  A block per row; each thread keeps its up to 16 elements in registers: read once, written once.
//    layers.cuh       softmax_cross_entropy() of common/layers.cuh, which the trainers use: a thread per row, for few
//                     classes.
#include "dev/kernels/kernels.h"
#include "common/rng.h"
#include "common/dataset.h"
#include "common/layers.cuh"

enum { X, LABEL, LOSS, LSE };                            // forward
enum { B_X, B_LABEL, B_LSE, B_D };                       // backward
enum { W_X, W_LABEL, W_LOSS, W_D, W_LSE, W_HIT, W_SUMS };  // both
enum { KEPT = 16 };                                      // elements of a row that a thread of block_registers keeps

// What a thread knows of a row: the largest element so far, and the sum of exp(element - largest).
typedef struct running {
    float largest, sum;
} running;
static __device__ __forceinline__ void take(running *r, float x) {
    const float larger = fmaxf(r->largest, x);
    r->sum = r->sum * expf(r->largest - larger) + expf(x - larger);
    r->largest = larger;
}
// Lanes without an element have sum 0 and largest -FLT_MAX, so that no infinity meets another one.
static __device__ __forceinline__ running nothing(void) {
    running r;
    r.largest = -FLT_MAX;
    r.sum = 0.0f;
    return r;
}

// ------------------------------------------------------------------------------------------------------------- forward

// Loss and lse of each row in double.
static void loss_of(const double *x, const double *label, int rows, int classes, double *loss, double *lse) {
    for (int r = 0; r < rows; r++) {
        const double *row = x + (size_t)r * (size_t)classes;
        double largest = row[0], sum = 0;
        for (int c = 1; c < classes; c++) largest = fmax(largest, row[c]);
        for (int c = 0; c < classes; c++) sum += exp(row[c] - largest);
        lse[r] = largest + log(sum);
        loss[r] = lse[r] - row[(int)label[r]];
    }
}
static void gradient_of(const double *x, const double *label, const double *lse, int rows, int classes, double *d) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < classes; c++) {
            const size_t i = (size_t)r * (size_t)classes + (size_t)c;
            d[i] = (exp(x[i] - lse[r]) - (c == (int)label[r])) / rows;
        }
}

static void forward_problem(problem *p) {
    const size_t rows = (size_t)p->dim[0], classes = (size_t)p->dim[1];
    input(p, "x", F32, rows * classes, -8, 8);
    input(p, "label", I32, rows, 0, p->dim[1]);
    output(p, "loss", F32, rows, 2e-6, 4e-6);
    output(p, "lse", F32, rows, 2e-6, 4e-6);
    p->bytes = 4.0 * (double)(rows * classes + 3 * rows);
    p->flops = 3.0 * (double)(rows * classes);
}
static void forward_reference(problem *p) {
    loss_of(given(p, X), given(p, LABEL), p->dim[0], p->dim[1], wanted(p, LOSS), wanted(p, LSE));
}

static __global__ void thread_per_row(float *loss, float *lse, const float *x, const int *label, int rows,
                                      int classes) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const float *row = x + (size_t)r * classes;
    float largest = row[0], sum = 0.0f;
    for (int c = 1; c < classes; c++) largest = fmaxf(largest, row[c]);
    for (int c = 0; c < classes; c++) sum += expf(row[c] - largest);
    lse[r] = largest + logf(sum);
    loss[r] = lse[r] - row[label[r]];
}
static void run_thread_per_row(const call *c) {
    thread_per_row<<<ceil_div(c->dim[0], c->block), c->block>>>(
        FLOATS(c, LOSS), FLOATS(c, LSE), FLOATS(c, X), INTS(c, LABEL), c->dim[0], c->dim[1]);
}

static __global__ void warp_per_row(float *loss, float *lse, const float *x, const int *label, int rows, int classes) {
    const int r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= rows) return;
    const float *row = x + (size_t)r * classes;
    float largest = -FLT_MAX, sum = 0.0f;
    for (int c = lane; c < classes; c += 32) largest = fmaxf(largest, row[c]);
    largest = warp_reduce_max(largest);
    for (int c = lane; c < classes; c += 32) sum += expf(row[c] - largest);
    sum = warp_reduce_sum(sum);
    if (lane == 0) {
        lse[r] = largest + logf(sum);
        loss[r] = lse[r] - row[label[r]];
    }
}
static void run_warp_per_row(const call *c) {
    warp_per_row<<<ceil_div(c->dim[0], c->block / 32), c->block>>>(
        FLOATS(c, LOSS), FLOATS(c, LSE), FLOATS(c, X), INTS(c, LABEL), c->dim[0], c->dim[1]);
}

// The row's result from what the 32 lanes have: all get it.
static __device__ __forceinline__ running warp_merge(running r) {
    const float largest = warp_reduce_max(r.largest);
    r.sum = warp_reduce_sum(r.sum * expf(r.largest - largest));
    r.largest = largest;
    return r;
}
static __global__ void warp_online(float *loss, float *lse, const float *x, const int *label, int rows, int classes) {
    const int r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= rows) return;
    const float *row = x + (size_t)r * classes;
    running all = nothing();
    for (int c = lane; c < classes; c += 32) take(&all, row[c]);
    all = warp_merge(all);
    if (lane) return;
    lse[r] = all.largest + logf(all.sum);
    if (loss) loss[r] = lse[r] - row[label[r]];
}
static void run_warp_online(const call *c) {
    warp_online<<<ceil_div(c->dim[0], c->block / 32), c->block>>>(
        FLOATS(c, LOSS), FLOATS(c, LSE), FLOATS(c, X), INTS(c, LABEL), c->dim[0], c->dim[1]);
}

static __device__ __forceinline__ running block_merge(running r) {
    const float largest = block_reduce_max(r.largest);
    r.sum = block_reduce_sum(r.sum * expf(r.largest - largest));
    r.largest = largest;
    return r;
}
static __global__ void block_online(float *loss, float *lse, const float *x, const int *label, int classes) {
    const int r = blockIdx.x;
    const float *row = x + (size_t)r * classes;
    running all = nothing();
    for (int c = threadIdx.x; c < classes; c += (int)blockDim.x) take(&all, row[c]);
    all = block_merge(all);
    if (threadIdx.x == 0) {
        lse[r] = all.largest + logf(all.sum);
        loss[r] = lse[r] - row[label[r]];
    }
}
static void run_block_online(const call *c) {
    block_online<<<c->dim[0], c->block>>>(FLOATS(c, LOSS), FLOATS(c, LSE), FLOATS(c, X), INTS(c, LABEL), c->dim[1]);
}

static const variant forward_variants[] = {
    {"thread_per_row", "a thread walks along its row, twice", run_thread_per_row, FP32, 0, {32, 128, 256}, NULL, 20},
    {"warp_per_row", "neighbouring lanes, neighbouring elements", run_warp_per_row, FP32, 0, {32, 128, 256}, NULL, 0},
    {"warp_online", "maximum and sum in one pass", run_warp_online, FP32, 0, {32, 128, 256}, NULL, 0},
    {"block_online", "a block per row", run_block_online, FP32, 0, {32, 128, 512}, NULL, 0},
};

// ------------------------------------------------------------------------------------------------------------ backward

static void backward_problem(problem *p) {
    const int rows = p->dim[0], classes = p->dim[1];
    double *x = input(p, "x", F32, (size_t)rows * (size_t)classes, -8, 8);
    double *label = input(p, "label", I32, (size_t)rows, 0, classes);
    double *lse = input(p, "lse", F32, (size_t)rows, 0, 1), *loss = (double *)allocate((size_t)rows * sizeof(double));
    loss_of(x, label, rows, classes, loss, lse);
    for (int r = 0; r < rows; r++) lse[r] = (double)(float)lse[r];
    free(loss);
    output(p, "d", F32, (size_t)rows * (size_t)classes, 4e-6, 1e-6 / rows);  // p near 1: p - 1 has p's rounding errors
    p->bytes = 4.0 * (2.0 * rows * classes + 2.0 * rows);
    p->flops = 3.0 * rows * classes;
}
static void backward_reference(problem *p) {
    gradient_of(given(p, B_X), given(p, B_LABEL), given(p, B_LSE), p->dim[0], p->dim[1], wanted(p, B_D));
}

static __global__ void flat(float *__restrict__ d, const float *__restrict__ x, const int *__restrict__ label,
                            const float *__restrict__ lse, int rows, int classes, float scale) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = BLOCK_ROW;
    if (c >= classes || r >= rows) return;
    const size_t row = (size_t)r * classes;
    d += row;
    x += row;
    d[c] = (expf(x[c] - lse[r]) - (float)(c == label[r])) * scale;
}
static void run_flat(const call *c) {
    flat<<<row_grid(ceil_div(c->dim[1], c->block), c->dim[0]), c->block>>>(
        FLOATS(c, B_D), FLOATS(c, B_X), INTS(c, B_LABEL), FLOATS(c, B_LSE), c->dim[0], c->dim[1],
        1.0f / (float)c->dim[0]);
}

static __global__ void flat4(float4 *__restrict__ d, const float4 *__restrict__ x, const int *__restrict__ label,
                             const float *__restrict__ lse, int rows, int classes4, float scale) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = BLOCK_ROW;
    if (c >= classes4 || r >= rows) return;
    const size_t row = (size_t)r * classes4;
    x += row;
    d += row;
    const float4 v = x[c];
    const float z = lse[r];
    const int hit = label[r] - 4 * c;
    d[c] =
        make_float4((expf(v.x - z) - (float)(hit == 0)) * scale, (expf(v.y - z) - (float)(hit == 1)) * scale,
                    (expf(v.z - z) - (float)(hit == 2)) * scale, (expf(v.w - z) - (float)(hit == 3)) * scale);
}
static void run_flat4(const call *c) {
    const int classes4 = c->dim[1] / 4;
    flat4<<<row_grid(ceil_div(classes4, c->block), c->dim[0]), c->block>>>(
        (float4 *)c->at[B_D], (const float4 *)c->at[B_X], INTS(c, B_LABEL), FLOATS(c, B_LSE), c->dim[0], classes4,
        1.0f / (float)c->dim[0]);
}
static int by_four(const int *dim) { return dim[1] % 4 == 0; }

static const variant backward_variants[] = {
    {"flat", "a thread per element", run_flat, FP32, 0, {32, 128, 256}, NULL, 0},
    {"float4", "16-byte accesses", run_flat4, FP32, 0, {32, 128, 256}, by_four, 0},
};

// ---------------------------------------------------------------------------------------------------------------- both

static void both_problem(problem *p) {
    const size_t rows = (size_t)p->dim[0], classes = (size_t)p->dim[1];
    input(p, "x", F32, rows * classes, -8, 8);
    input(p, "label", I32, rows, 0, p->dim[1]);
    output(p, "loss", F32, rows, 2e-6, 4e-6);
    output(p, "d", F32, rows * classes, 1e-5, 1e-6 / p->dim[0]);
    scratch(p, "lse", F32, rows);
    scratch(p, "hits", I32, rows);
    scratch(p, "sums", F64, 3);
    p->bytes = 4.0 * (double)(2 * rows * classes + 2 * rows);
    p->flops = 3.0 * (double)(rows * classes);
}
static void both_reference(problem *p) {
    double *lse = (double *)allocate((size_t)p->dim[0] * sizeof(double));
    loss_of(given(p, W_X), given(p, W_LABEL), p->dim[0], p->dim[1], wanted(p, W_LOSS), lse);
    gradient_of(given(p, W_X), given(p, W_LABEL), lse, p->dim[0], p->dim[1], wanted(p, W_D));
    free(lse);
}

static void run_two_kernels(const call *c) {
    const int rows = c->dim[0], classes = c->dim[1], warps = c->block / 32;
    warp_online<<<ceil_div(rows, warps), c->block>>>(
        FLOATS(c, W_LOSS), FLOATS(c, W_LSE), FLOATS(c, W_X), INTS(c, W_LABEL), rows, classes);
    flat<<<row_grid(ceil_div(classes, c->block), rows), c->block>>>(
        FLOATS(c, W_D), FLOATS(c, W_X), INTS(c, W_LABEL), FLOATS(c, W_LSE), rows, classes, 1.0f / (float)rows);
}

static __global__ void warp_twice(float *loss, float *d, const float *x, const int *label, int rows, int classes,
                                  float scale) {
    const int r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= rows) return;
    const float *row = x + (size_t)r * classes;
    float *out = d + (size_t)r * classes;
    running all = nothing();
    for (int c = lane; c < classes; c += 32) take(&all, row[c]);
    all = warp_merge(all);
    for (int c = lane; c < classes; c += 32)
        out[c] = (expf(row[c] - all.largest) / all.sum - (float)(c == label[r])) * scale;
    if (lane == 0) loss[r] = logf(all.sum) + (all.largest - row[label[r]]);
}
static void run_warp_twice(const call *c) {
    warp_twice<<<ceil_div(c->dim[0], c->block / 32), c->block>>>(FLOATS(c, W_LOSS), FLOATS(c, W_D), FLOATS(c, W_X),
                                                                 INTS(c, W_LABEL), c->dim[0], c->dim[1],
                                                                 1.0f / (float)c->dim[0]);
}

static __global__ void block_registers(float *loss, float *d, const float *x, const int *label, int classes,
                                       float scale) {
    const int r = blockIdx.x, t = threadIdx.x, threads = blockDim.x;
    const float *row = x + (size_t)r * classes;
    float kept[KEPT], largest = -FLT_MAX, sum = 0.0f;
    UNROLL for (int i = 0; i < KEPT; i++) {
        const int c = t + i * threads;
        kept[i] = c < classes ? row[c] : -FLT_MAX;
        largest = fmaxf(largest, kept[i]);
    }
    largest = block_reduce_max(largest);
    UNROLL for (int i = 0; i < KEPT; i++) {
        kept[i] = expf(kept[i] - largest);  // of -FLT_MAX: 0
        sum += kept[i];
    }
    sum = block_reduce_sum(sum);
    const float inverse = 1.0f / sum;
    UNROLL for (int i = 0; i < KEPT; i++) {
        const int c = t + i * threads;
        if (c < classes) d[(size_t)r * classes + c] = (kept[i] * inverse - (float)(c == label[r])) * scale;
    }
    if (t == 0) loss[r] = logf(sum) + (largest - row[label[r]]);
}
static void run_block_registers(const call *c) {
    const int threads = min(1024, 32 * ceil_div(c->dim[1], 32 * KEPT));
    block_registers<<<c->dim[0], threads>>>(
        FLOATS(c, W_LOSS), FLOATS(c, W_D), FLOATS(c, W_X), INTS(c, W_LABEL), c->dim[1], 1.0f / (float)c->dim[0]);
}
static int kept(const int *dim) { return dim[1] <= 1024 * KEPT; }

static void run_layers(const call *c) {
    double *sums = DOUBLES(c, W_SUMS);
    softmax_cross_entropy(sums, (float *)(sums + 2), FLOATS(c, W_LOSS), INTS(c, W_HIT), FLOATS(c, W_D), FLOATS(c, W_X),
                          INTS(c, W_LABEL), c->dim[0], c->dim[1], 0);
}

static const variant both_variants[] = {
    {"two_kernels", "forward, then backward", run_two_kernels, FP32, 0, {32, 128, 256}, NULL, 0},
    {"warp_twice", "a warp reads its row online, then again from the cache",
     run_warp_twice, FP32, 0, {32, 128, 256}, NULL, 0},
    {"block_registers", "the row stays in the block's registers", run_block_registers, FP32, 0, {0}, kept, 0},
    {"layers.cuh", "what the trainers use: a thread per row", run_layers, FP32, 0, {0}, NULL, 20},
};

#define TEST_SHAPES "1x1 1x10 33x10 7x32 5x100 64x256 3x1001"
#define CPU_SHAPES "128x10 8192x10 512x1000 64x50257"
#define GPU_SHAPES "1024x10 262144x10 16384x1000 4096x50257"
static const operation operations[] = {
    {"cross_entropy_forward", "lse[r] = log sum_c exp(x[r][c]), loss[r] = lse[r] - x[r][label[r]]", "rows classes",
     forward_problem, forward_reference, VARIANTS(forward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"cross_entropy_backward", "d[r][c] = (exp(x[r][c] - lse[r]) - [c == label[r]]) / rows", "rows classes",
     backward_problem, backward_reference, VARIANTS(backward_variants), TEST_SHAPES " 70001x4", CPU_SHAPES, GPU_SHAPES},
    {"cross_entropy", "loss and gradient in one call", "rows classes", both_problem, both_reference,
     VARIANTS(both_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
