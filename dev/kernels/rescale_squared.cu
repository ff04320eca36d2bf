// rescale_squared.cu -- diag(G) of a fully connected layer: matrix times vector, with the matrix squared element by
// element.
//
// Shapes: W [rows][cols] in fp32 ([out][in]); x and y in double, since rescale.cuh sums over many paths.
//     squared_forward     y[o] = sum_i W[o][i]^2 x[i]        energies of the paths that arrive
//     squared_backward    y[i] = sum_o W[o][i]^2 x[o]        of the paths that go on
// diag(G) of W is then the outer product of the two. Bytes: W once, 4 rows cols, and the vectors. Three operations per
// element: memory-bound, so the floor is one reading of W. This is the whole cost of diag(G) for an MLP: less than a
// training step's products, which read W as often for every batch.
//
// Forward, along the rows:
//  1 squared_copy     Square W into a second matrix, then multiply: what a framework does whose trainer squares its
//                     parameters. 12 bytes per element instead of 4.
//  2 thread_per_row   Squares on the fly; a thread walks along its row. Neighbours are a row apart.
//  3 warp_per_row     Neighbouring lanes, neighbouring elements, a butterfly in double.
//  4 warp_float4      16-byte loads, four sums per lane: a quarter of the load instructions, four chains of additions.
//    rescale.cuh      rsc_power_rows_kernel, which rescale_run launches: a block of 256 threads per row.
//    host             rsc_host_power_rows: what rescale_run does for weights in host memory. CPU build only.
// Backward, down the columns:
//  1 thread_per_column   Coalesced, but only cols threads.
//  2 chunks           A thread per column and 32 rows, then rounds over the partial sums, in double: fixed order, loops
//                     of known length.
//    rescale.cuh      rsc_power_cols_kernel and rsc_sum_chunks_kernel.
//    host             rsc_host_power_cols. CPU build only.
#include "dev/kernels/kernels.h"
#include "rescale.cuh"

enum { WEIGHT, X, Y, SCRATCH };
enum { CHUNK = 32 };

static size_t part_doubles(int rows, int cols) { return 2 * ((size_t)ceil_div(rows, CHUNK) + 1) * (size_t)cols; }

static void problem_of(problem *p, int n_x, int n_y) {
    const int rows = p->dim[0], cols = p->dim[1];
    const size_t n = (size_t)rows * (size_t)cols;
    input(p, "W", F32, n, -1, 1);
    input(p, "x", F64, (size_t)n_x, 0.1, 2);
    output(p, "y", F64, (size_t)n_y, 1e-11, 1e-13);
    scratch(p, "scratch", F64, n / 2 + 1 + part_doubles(rows, cols));
    p->bytes = 4.0 * (double)n + 8.0 * (rows + cols);
    p->flops = 3.0 * (double)n;
}
static void forward_problem(problem *p) { problem_of(p, p->dim[1], p->dim[0]); }
static void backward_problem(problem *p) { problem_of(p, p->dim[0], p->dim[1]); }
static void add_squares(problem *p, int forward) {
    const size_t cols = (size_t)p->dim[1];
    for (size_t i = 0; i < (size_t)p->dim[0] * cols; i++) {
        const double w = given(p, WEIGHT)[i];
        if (forward) wanted(p, Y)[i / cols] += w * w * given(p, X)[i % cols];
        else wanted(p, Y)[i % cols] += w * w * given(p, X)[i / cols];
    }
}
static void forward_reference(problem *p) { add_squares(p, 1); }
static void backward_reference(problem *p) { add_squares(p, 0); }

// ------------------------------------------------------------------------------------------------------------- forward

static __global__ void square(float *__restrict__ out, const float *__restrict__ in, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = in[i] * in[i];
}
static __global__ void times(double *y, const float *w, const double *x, int rows, int cols) {
    const int o = blockIdx.x * blockDim.x + threadIdx.x;
    if (o >= rows) return;
    double sum = 0;
    for (int i = 0; i < cols; i++) sum += (double)w[(size_t)o * cols + i] * x[i];
    y[o] = sum;
}
static void run_squared_copy(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1], n = rows * cols;
    float *squares = (float *)c->at[SCRATCH];
    square<<<ceil_div(n, c->block), c->block>>>(squares, FLOATS(c, WEIGHT), n);
    times<<<ceil_div(rows, c->block), c->block>>>(DOUBLES(c, Y), squares, DOUBLES(c, X), rows, cols);
}

static __global__ void thread_per_row(double *y, const float *w, const double *x, int rows, int cols) {
    const int o = blockIdx.x * blockDim.x + threadIdx.x;
    if (o >= rows) return;
    double sum = 0;
    for (int i = 0; i < cols; i++) {
        const double v = w[(size_t)o * cols + i];
        sum += v * v * x[i];
    }
    y[o] = sum;
}
static __global__ void warp_per_row(double *y, const float *w, const double *x, int rows, int cols) {
    const int o = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (o >= rows) return;
    const float *row = w + (size_t)o * cols;
    double sum = 0;
    for (int i = lane; i < cols; i += 32) sum += (double)row[i] * (double)row[i] * x[i];
    sum = warp_reduce_sum(sum);
    if (lane == 0) y[o] = sum;
}
static __global__ void warp_float4(double *y, const float4 *w, const double2 *x, int rows, int cols4) {
    const int o = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (o >= rows) return;
    const float4 *row = w + (size_t)o * cols4;
    double a = 0, b = 0, c = 0, d = 0;
    for (int i = lane; i < cols4; i += 32) {
        const float4 v = row[i];
        const double2 p = x[2 * i], q = x[2 * i + 1];
        a += (double)v.x * (double)v.x * p.x;
        b += (double)v.y * (double)v.y * p.y;
        c += (double)v.z * (double)v.z * q.x;
        d += (double)v.w * (double)v.w * q.y;
    }
    a = warp_reduce_sum((a + b) + (c + d));
    if (lane == 0) y[o] = a;
}
static void run_thread_per_row(const call *c) {
    thread_per_row<<<ceil_div(c->dim[0], c->block), c->block>>>(
        DOUBLES(c, Y), FLOATS(c, WEIGHT), DOUBLES(c, X), c->dim[0], c->dim[1]);
}
static void run_warp_per_row(const call *c) {
    warp_per_row<<<ceil_div(c->dim[0], c->block / 32), c->block>>>(
        DOUBLES(c, Y), FLOATS(c, WEIGHT), DOUBLES(c, X), c->dim[0], c->dim[1]);
}
static void run_warp_float4(const call *c) {
    warp_float4<<<ceil_div(c->dim[0], c->block / 32), c->block>>>(
        DOUBLES(c, Y), (const float4 *)c->at[WEIGHT], (const double2 *)c->at[X], c->dim[0], c->dim[1] / 4);
}
static void run_rescale_rows(const call *c) {
    rsc_power_rows_kernel<<<c->dim[0], RSC_BLOCK>>>(FLOATS(c, WEIGHT), c->dim[1], DOUBLES(c, X), DOUBLES(c, Y), 2);
}
#if !DEVICE_IS_GPU
static void run_host_rows(const call *c) {
    rsc_host_power_rows(FLOATS(c, WEIGHT), (size_t)c->dim[0], (size_t)c->dim[1], DOUBLES(c, X), DOUBLES(c, Y), 2);
}
static void run_host_columns(const call *c) {
    rsc_host_power_cols(FLOATS(c, WEIGHT), (size_t)c->dim[0], (size_t)c->dim[1], DOUBLES(c, X), DOUBLES(c, Y), 2);
}
#endif
static int by_four(const int *dim) { return dim[1] % 4 == 0; }

static const variant forward_variants[] = {
    {"squared_copy", "square into a second matrix, then multiply",
     run_squared_copy, FP32, 0, {32, 128, 256}, NULL, 1e5},
    {"thread_per_row", "squares on the fly", run_thread_per_row, FP32, 0, {32, 128, 256}, NULL, 0},
    {"warp_per_row", "neighbouring lanes, neighbouring elements", run_warp_per_row, FP32, 0, {32, 128, 256}, NULL, 0},
    {"warp_float4", "16-byte loads, four sums per lane", run_warp_float4, FP32, 0, {32, 128, 256}, by_four, 0},
    {"rescale.cuh", "what rescale_run launches: a block per row", run_rescale_rows, FP32, 0, {0}, NULL, 0},
    {"host", "what rescale_run does in host memory", ON_CPU(run_host_rows), FP32, CPU_ONLY, {0}, NULL, 0},
};

// ------------------------------------------------------------------------------------------------------------ backward

static __global__ void thread_per_column(double *y, const float *w, const double *x, int rows, int cols) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= cols) return;
    double sum = 0;
    for (int o = 0; o < rows; o++) {
        const double v = w[(size_t)o * cols + i];
        sum += v * v * x[o];
    }
    y[i] = sum;
}
static __global__ void square_chunks(double *__restrict__ part, const float *__restrict__ w,
                                     const double *__restrict__ x, int rows, int cols) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * CHUNK, last = rows - 1 - first;
    if (i >= cols) return;
    w += (size_t)first * cols;
    double sum = 0;
    UNROLL for (int k = 0; k < CHUNK; k++) {
        const int r = min(k, last);
        const double v = (double)w[r * cols + i];
        sum += v * v * (k <= last ? x[first + r] : 0.0);
    }
    part[(size_t)blockIdx.y * cols + i] = sum;
}
static __global__ void sum_chunks(double *__restrict__ out, const double *__restrict__ in, int rows, int cols) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * CHUNK, last = rows - 1 - first;
    if (i >= cols) return;
    in += (size_t)first * cols;
    double sum = 0;
    UNROLL for (int k = 0; k < CHUNK; k++) sum += (k <= last ? 1.0 : 0.0) * in[min(k, last) * cols + i];
    out[(size_t)blockIdx.y * cols + i] = sum;
}
static void run_thread_per_column(const call *c) {
    thread_per_column<<<ceil_div(c->dim[1], c->block), c->block>>>(
        DOUBLES(c, Y), FLOATS(c, WEIGHT), DOUBLES(c, X), c->dim[0], c->dim[1]);
}
static void run_chunks(const call *c) {
    const int cols = c->dim[1], blocks = ceil_div(cols, c->block);
    int left = ceil_div(c->dim[0], CHUNK);
    double *from = DOUBLES(c, SCRATCH), *to = from + (size_t)left * cols;
    square_chunks<<<dim3(blocks, left), c->block>>>(
        left == 1 ? DOUBLES(c, Y) : from, FLOATS(c, WEIGHT), DOUBLES(c, X), c->dim[0], cols);
    while (left > 1) {
        const int rows = left;
        left = ceil_div(rows, CHUNK);
        double *next = left == 1 ? DOUBLES(c, Y) : to;
        sum_chunks<<<dim3(blocks, left), c->block>>>(next, from, rows, cols);
        to = from;
        from = next;
    }
}
// The launches of rsc_device_pass, without its copies from and to the host.
static void run_rescale_columns(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1], tiles = ceil_div(cols, RSC_BLOCK);
    const int chunk = rows > 64 * 32 ? ceil_div(rows, 64) : 32, chunks = ceil_div(rows, chunk);
    double *part = DOUBLES(c, SCRATCH);
    rsc_power_cols_kernel<<<dim3(tiles, chunks), RSC_BLOCK>>>(
        FLOATS(c, WEIGHT), rows, cols, chunk, DOUBLES(c, X), part, 2);
    rsc_sum_chunks_kernel<<<tiles, RSC_BLOCK>>>(part, chunks, cols, DOUBLES(c, Y));
}

static const variant backward_variants[] = {
    {"thread_per_column", "a thread walks down its column", run_thread_per_column, FP32, 0, {32, 64, 128}, NULL, 0},
    {"chunks", "32 rows per thread, then rounds over the partial sums", run_chunks, FP32, 0, {64, 128, 256}, NULL, 0},
    {"rescale.cuh", "what rescale_run launches", run_rescale_columns, FP32, 0, {0}, NULL, 0},
    {"host", "what rescale_run does in host memory", ON_CPU(run_host_columns), FP32, CPU_ONLY, {0}, NULL, 0},
};

#define TEST_SHAPES "1x1 1x4 7x3 31x33 10x512 300x36 2200x5"
#define CPU_SHAPES "512x784 2048x2048"
#define GPU_SHAPES "512x784 2048x3072 8192x4096"
static const operation operations[] = {
    {"squared_forward", "y[o] = sum_i W[o][i]^2 x[i]", "rows cols", forward_problem, forward_reference,
     VARIANTS(forward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"squared_backward", "y[i] = sum_o W[o][i]^2 x[o]", "rows cols", backward_problem, backward_reference,
     VARIANTS(backward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
