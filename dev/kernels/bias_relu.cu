// bias_relu.cu -- y[r][c] = relu(y[r][c] + b[c]), in place: what follows every matrix product of a ReLU network.
//
// Shapes: y [rows][cols], b [cols]; fp32. Bytes that must move: y once in and once out, b once: 4 (2 rows cols + cols).
// 2 rows cols operations: nothing, so the floor is the copy bandwidth. Everything here is about not disturbing the
// memory.
//
//  1 flat          One thread per element. The column is i % cols: an integer division per element, which costs more
//                  than the addition, and on a CPU keeps the loop over the threads from being vectorised.
//  2 grid          A two-dimensional grid: blockIdx.y is the row, so there is nothing to divide. Neighbouring threads
//                  have neighbouring elements: coalesced on a GPU, one vector instruction on a CPU.
//  3 float4        Four elements per thread in 16-byte accesses: a quarter of the instructions and of the threads for
//                  the same bytes. Needs cols % 4 == 0.
//  4 rows          A thread stays in its column and walks down 32 rows: b[c] is read once, the index arithmetic is
//                  shared, and 32 independent loads are under way. Rows past the end are read again and written back
//                  unchanged, so that the loop has a known length, is unrolled and vectorises across threads.
//  5 rows_float4   Both: 8 rows of 4 columns per thread, the row loop cut by a test instead.
//    layers.cuh    bias_relu() of common/layers.cuh, which the trainers use. It is variant 4.
#include "dev/kernels/kernels.h"
#include "common/rng.h"
#include "common/dataset.h"
#include "common/layers.cuh"

enum { Y, B };

static void problem_of(problem *p) {
    const size_t rows = (size_t)p->dim[0], cols = (size_t)p->dim[1];
    in_place(p, "y", F32, rows * cols, -1, 1, 1e-7, 1e-7);
    input(p, "b", F32, cols, -1e-3, 1e-3);
    p->bytes = 4.0 * (double)(2 * rows * cols + cols);
    p->flops = 2.0 * (double)(rows * cols);
}

static void reference(problem *p) {
    for (int r = 0; r < p->dim[0]; r++)
        for (int c = 0; c < p->dim[1]; c++) {
            const size_t i = (size_t)r * (size_t)p->dim[1] + (size_t)c;
            wanted(p, Y)[i] = fmax(given(p, Y)[i] + given(p, B)[c], 0.0);
        }
}

// NaN stays NaN: a run that diverges must show. (fmaxf would turn it into 0.)
static __device__ __forceinline__ float relu(float v) { return v <= 0.0f ? 0.0f : v; }

static __global__ void flat(float *y, const float *b, int n, int cols) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = relu(y[i] + b[i % cols]);
}
static void run_flat(const call *c) {
    const int n = c->dim[0] * c->dim[1];
    flat<<<ceil_div(n, c->block), c->block>>>(FLOATS(c, Y), FLOATS(c, B), n, c->dim[1]);
}

static __global__ void grid(float *__restrict__ y, const float *__restrict__ b, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = BLOCK_ROW;
    if (c >= cols || r >= rows) return;
    float *row = y + (size_t)r * cols;
    row[c] = relu(row[c] + b[c]);
}
static void run_grid(const call *c) {
    const dim3 blocks = row_grid(ceil_div(c->dim[1], c->block), c->dim[0]);
    grid<<<blocks, c->block>>>(FLOATS(c, Y), FLOATS(c, B), c->dim[0], c->dim[1]);
}

static __device__ __forceinline__ float4 bias_relu4(float4 v, float4 b) {
    return make_float4(relu(v.x + b.x), relu(v.y + b.y), relu(v.z + b.z), relu(v.w + b.w));
}
static __global__ void vector4(float4 *__restrict__ y, const float4 *__restrict__ b, int rows, int cols4) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = BLOCK_ROW;
    if (c >= cols4 || r >= rows) return;
    float4 *row = y + (size_t)r * cols4;
    row[c] = bias_relu4(row[c], b[c]);
}
static void run_float4(const call *c) {
    const int cols4 = c->dim[1] / 4;
    const dim3 grid = row_grid(ceil_div(cols4, c->block), c->dim[0]);
    vector4<<<grid, c->block>>>((float4 *)c->at[Y], (const float4 *)c->at[B], c->dim[0], cols4);
}

enum { ROWS = 32, ROWS4 = 8 };
static __global__ void down_rows(float *__restrict__ y, const float *__restrict__ b, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROWS, last = rows - 1 - first;
    if (c >= cols) return;
    y += (size_t)first * cols;
    const float add = b[c];
    UNROLL for (int k = 0; k < ROWS; k++) {
        const int i = min(k, last) * cols + c;
        const float z = y[i], w = relu(z + add);
        y[i] = k <= last ? w : z;
    }
}
static void run_rows(const call *c) {
    const dim3 grid(ceil_div(c->dim[1], c->block), ceil_div(c->dim[0], ROWS));
    down_rows<<<grid, c->block>>>(FLOATS(c, Y), FLOATS(c, B), c->dim[0], c->dim[1]);
}

static __global__ void down_rows4(float4 *__restrict__ y, const float4 *__restrict__ b, int rows, int cols4) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * ROWS4;
    if (c >= cols4) return;
    float4 *start = y + (size_t)first * cols4;
    const float4 add = b[c];
    UNROLL for (int k = 0; k < ROWS4; k++)
        if (first + k < rows) start[k * cols4 + c] = bias_relu4(start[k * cols4 + c], add);
}
static void run_rows_float4(const call *c) {
    const int cols4 = c->dim[1] / 4;
    const dim3 grid(ceil_div(cols4, c->block), ceil_div(c->dim[0], ROWS4));
    down_rows4<<<grid, c->block>>>((float4 *)c->at[Y], (const float4 *)c->at[B], c->dim[0], cols4);
}

static void run_layers(const call *c) { bias_relu(FLOATS(c, Y), FLOATS(c, B), c->dim[0], c->dim[1], 1); }

static int by_four(const int *dim) { return dim[1] % 4 == 0; }

static const variant variants[] = {
    {"flat", "one thread per element, column by division", run_flat, FP32, 0, {128, 256, 512}, NULL, 0},
    {"grid", "rows along blockIdx.y, no division", run_grid, FP32, 0, {64, 128, 256}, NULL, 0},
    {"float4", "16-byte accesses", run_float4, FP32, 0, {64, 128, 256}, by_four, 0},
    {"rows", "a thread walks down 32 rows of its column", run_rows, FP32, 0, {64, 128, 256}, NULL, 0},
    {"rows_float4", "8 rows of 4 columns per thread", run_rows_float4, FP32, 0, {64, 128, 256}, by_four, 0},
    {"layers.cuh", "what the trainers use", run_layers, FP32, 0, {0}, NULL, 0},
};
static const operation operations[] = {
    {"bias_relu", "y[r][c] = relu(y[r][c] + b[c]), in place", "rows cols", problem_of, reference, VARIANTS(variants),
     "1x1 1x4 7x3 31x33 32x64 33x500 64x1028 70001x4", "128x512 2048x2048", "1024x1024 4096x4096 8192x4096"},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
