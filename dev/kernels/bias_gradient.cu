// bias_gradient.cu -- sums over the rows of a matrix: the gradient of a bias, alone and together with the backward of
// ReLU.
//
// bias_gradient         db[c] = sum_r d[r][c].    d [rows][cols], db [cols]; fp32. Bytes: 4 (rows cols + cols).
// bias_relu_backward    d[r][c] = 0 where y[r][c] <= 0, in place, and db as above of what is left.
//                       Bytes: 4 (3 rows cols + cols): d in and out, y in.
// One addition per element: memory-bound. The difficulty is that the sum runs across the rows, while memory runs along
// them, and that many threads must add to one number. In training the order of additions must be fixed: same command,
// same bits.
//
//  1 thread_per_column  A thread walks down its column. Neighbours read neighbours (coalesced), but there are only cols
//                       threads, far too few to fill a GPU, and each waits for one load after the other.
//  2 atomics            Rows are cut into chunks of 32, a thread per chunk and column, results added with atomicAdd.
//                       Enough threads; but the order of the additions is whatever the hardware does, so two runs
//                       differ in the last bits.
//  3 chunks             The chunks' sums go to scratch memory, and the same kernel runs on them again until one row is
//                       left: fixed order, 1/32 more traffic. The loop has a known length (rows past the end count with
//                       weight 0), so it is unrolled, has 32 loads under way and vectorises across columns on a CPU.
//  4 chunks_float4      Four columns per thread in 16-byte loads; needs cols % 4 == 0.
//  5 block_tile         A block has 32 columns and many rows; its warps share the rows and meet in shared memory. A
//                       tenth of the scratch traffic and one launch less on tall matrices. (On a CPU every barrier
//                       costs.)
//
// For bias_relu_backward:
//  1 two_kernels        Mask in one kernel, column sums (chunks) in others: d is read twice, 4 rows cols accesses
//                       instead of 3.
//  2 fused              The kernel that masks adds up what it has in its hands anyway.
//  3 fused_float4       Likewise with 16-byte accesses.
//    layers.cuh         bias_relu_backward() of common/layers.cuh, which the trainers use: variant 2.
#include "dev/kernels/kernels.h"
#include "common/rng.h"
#include "common/dataset.h"
#include "common/layers.cuh"

enum { CHUNK = 32 };                       // rows that a thread adds up
enum { TILE_COLS = 32, TILE_ROWS = 256 };  // of a block of block_tile

static size_t at(size_t r, size_t c, size_t cols) { return r * cols + c; }

// Room for two rounds of partial sums, and for what layers.cuh asks for.
static size_t scratch_floats(int rows, int cols) { return 2 * ((size_t)ceil_div(rows, 8) + 64) * (size_t)cols; }

// ------------------------------------------------------------------------------------------------------- bias_gradient

enum { D, DB, PART };

static void gradient_problem(problem *p) {
    const size_t rows = (size_t)p->dim[0], cols = (size_t)p->dim[1];
    input(p, "d", F32, rows * cols, -1, 1);
    output(p, "db", F32, cols, 1e-6, 4e-7 * sqrt((double)rows));
    scratch(p, "partial sums", F32, scratch_floats(p->dim[0], p->dim[1]));
    p->bytes = 4.0 * (double)(rows * cols + cols);
    p->flops = (double)(rows * cols);
}
static void gradient_reference(problem *p) {
    const size_t rows = (size_t)p->dim[0], cols = (size_t)p->dim[1];
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) wanted(p, DB)[c] += given(p, D)[at(r, c, cols)];
}

static __global__ void whole_columns(float *__restrict__ db, const float *__restrict__ d, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    float sum = 0.0f;
    for (int r = 0; r < rows; r++) sum += d[(size_t)r * cols + c];
    db[c] = sum;
}
static void run_thread_per_column(const call *c) {
    whole_columns<<<ceil_div(c->dim[1], c->block), c->block>>>(FLOATS(c, DB), FLOATS(c, D), c->dim[0], c->dim[1]);
}

// Sum of the rows first .. first + CHUNK - 1 of a column, or of as many as there are.
static __device__ __forceinline__ float chunk_sum(const float *__restrict__ d, int first, int c, int rows, int cols) {
    const int last = rows - 1 - first;
    d += (size_t)first * cols;
    float sum = 0.0f;
    UNROLL for (int k = 0; k < CHUNK; k++) sum += (k <= last ? 1.0f : 0.0f) * d[min(k, last) * cols + c];
    return sum;
}
static __global__ void add_chunks(float *db, const float *__restrict__ d, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < cols) atomicAdd(&db[c], chunk_sum(d, blockIdx.y * CHUNK, c, rows, cols));
}
static void run_atomics(const call *c) {
    CUDA_CHECK(cudaMemsetAsync(FLOATS(c, DB), 0, (size_t)c->dim[1] * sizeof(float)));
    const dim3 grid(ceil_div(c->dim[1], c->block), ceil_div(c->dim[0], CHUNK));
    add_chunks<<<grid, c->block>>>(FLOATS(c, DB), FLOATS(c, D), c->dim[0], c->dim[1]);
}

static __global__ void store_chunks(float *__restrict__ part, const float *__restrict__ d, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < cols) part[(size_t)blockIdx.y * cols + c] = chunk_sum(d, blockIdx.y * CHUNK, c, rows, cols);
}

// db = column sums of from[rows][cols], by rounds of store_chunks between two parts of scratch memory.
static void sum_columns(float *db, const float *from, float *part, int rows, int cols, int block) {
    float *to = part, *other = part + (size_t)ceil_div(rows, CHUNK) * cols;
    do {
        const int left = ceil_div(rows, CHUNK);
        store_chunks<<<dim3(ceil_div(cols, block), left), block>>>(left == 1 ? db : to, from, rows, cols);
        float *swap = to;
        from = to;
        to = other;
        other = swap;
        rows = left;
    } while (rows > 1);
}
static void run_chunks(const call *c) {
    sum_columns(FLOATS(c, DB), FLOATS(c, D), FLOATS(c, PART), c->dim[0], c->dim[1], c->block);
}

static __device__ __forceinline__ float4 add4(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
static __global__ void store_chunks4(float4 *__restrict__ part, const float4 *__restrict__ d, int rows, int cols4) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * CHUNK;
    if (c >= cols4) return;
    d += (size_t)first * cols4;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    UNROLL for (int k = 0; k < CHUNK; k++)
        if (first + k < rows) sum = add4(sum, d[k * cols4 + c]);
    part[(size_t)blockIdx.y * cols4 + c] = sum;
}
static void run_chunks_float4(const call *c) {
    const int rows = c->dim[0], cols4 = c->dim[1] / 4, left = ceil_div(rows, CHUNK);
    float *part = FLOATS(c, PART);
    store_chunks4<<<dim3(ceil_div(cols4, c->block), left), c->block>>>((float4 *)(left == 1 ? FLOATS(c, DB) : part),
                                                                     (const float4 *)FLOATS(c, D), rows, cols4);
    if (left > 1) sum_columns(FLOATS(c, DB), part, part + (size_t)left * c->dim[1], left, c->dim[1], c->block);
}

// Warp w of the block adds rows w, w + warps, ... of its tile; lane = column. Then warp 0 adds the warps' sums in
// order.
static __global__ void tiles(float *__restrict__ part, const float *__restrict__ d, int rows, int cols) {
    __shared__ float sums[32][TILE_COLS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int c = blockIdx.x * TILE_COLS + lane, first = blockIdx.y * TILE_ROWS, end = min(first + TILE_ROWS, rows);
    float sum = 0.0f;
    for (int r = first + warp; r < end && c < cols; r += warps) sum += d[(size_t)r * cols + c];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= cols) return;
    for (int w = 1; w < warps; w++) sum += sums[w][lane];
    part[(size_t)blockIdx.y * cols + c] = sum;
}
static void run_block_tile(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1], left = ceil_div(rows, TILE_ROWS);
    const dim3 grid(ceil_div(cols, TILE_COLS), left);
    float *part = FLOATS(c, PART);
    tiles<<<grid, c->block>>>(left == 1 ? FLOATS(c, DB) : part, FLOATS(c, D), rows, cols);
    if (left > 1) sum_columns(FLOATS(c, DB), part, part + (size_t)left * cols, left, cols, 128);
}

static int by_four(const int *dim) { return dim[1] % 4 == 0; }

static const variant gradient_variants[] = {
    {"thread_per_column", "a thread walks down its column", run_thread_per_column, FP32, 0, {32, 64, 128}, NULL, 100},
    {"atomics", "chunks of 32 rows, added with atomicAdd: no fixed order",
     run_atomics, FP32, ATOMICS, {64, 128, 256}, NULL, 100},
    {"chunks", "the chunks' sums are added up the same way, in rounds", run_chunks, FP32, 0, {64, 128, 256}, NULL, 0},
    {"chunks_float4", "16-byte loads in the first round", run_chunks_float4, FP32, 0, {32, 64, 128}, by_four, 0},
    {"block_tile", "256 rows by 32 columns per block, meeting in shared memory",
     run_block_tile, FP32, 0, {32, 256, 512}, NULL, 10},
};

// -------------------------------------------------------------------------------------------------- bias_relu_backward

enum { B_D, B_Y, B_DB, B_PART };

static void backward_problem(problem *p) {
    const size_t rows = (size_t)p->dim[0], cols = (size_t)p->dim[1];
    in_place(p, "d", F32, rows * cols, -1, 1, 0, 0);
    double *y = input(p, "y", F32, rows * cols, -1, 1);
    for (size_t i = 0; i < rows * cols; i++) y[i] = fmax(y[i], 0.0);
    output(p, "db", F32, cols, 1e-6, 4e-7 * sqrt((double)rows));
    scratch(p, "partial sums", F32, scratch_floats(p->dim[0], p->dim[1]));
    p->bytes = 4.0 * (double)(3 * rows * cols + cols);
    p->flops = (double)(rows * cols);
}
static void backward_reference(problem *p) {
    const size_t rows = (size_t)p->dim[0], cols = (size_t)p->dim[1];
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) {
            const size_t i = at(r, c, cols);
            wanted(p, B_D)[i] = given(p, B_Y)[i] > 0 ? given(p, B_D)[i] : 0;
            wanted(p, B_DB)[c] += wanted(p, B_D)[i];
        }
}

static __global__ void mask(float *__restrict__ d, const float *__restrict__ y, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = BLOCK_ROW;
    if (c >= cols || r >= rows) return;
    const size_t row = (size_t)r * cols;
    d += row;
    y += row;
    d[c] = y[c] > 0.0f ? d[c] : 0.0f;
}
static void run_two_kernels(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1];
    mask<<<row_grid(ceil_div(cols, c->block), rows), c->block>>>(FLOATS(c, B_D), FLOATS(c, B_Y), rows, cols);
    sum_columns(FLOATS(c, B_DB), FLOATS(c, B_D), FLOATS(c, B_PART), rows, cols, c->block);
}

static __global__ void mask_and_add(float *__restrict__ d, const float *__restrict__ y, float *__restrict__ part,
                                    int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * CHUNK, last = rows - 1 - first;
    if (c >= cols) return;
    const size_t start = (size_t)first * cols;
    y += start;
    d += start;
    float sum = 0.0f;
    UNROLL for (int k = 0; k < CHUNK; k++) {
        const int i = min(k, last) * cols + c;
        const float v = y[i] > 0.0f ? d[i] : 0.0f;
        d[i] = v;
        sum += (k <= last ? 1.0f : 0.0f) * v;
    }
    part[(size_t)blockIdx.y * cols + c] = sum;
}
static void run_fused(const call *c) {
    const int rows = c->dim[0], cols = c->dim[1], left = ceil_div(rows, CHUNK);
    float *part = FLOATS(c, B_PART);
    mask_and_add<<<dim3(ceil_div(cols, c->block), left), c->block>>>(FLOATS(c, B_D), FLOATS(c, B_Y), part, rows, cols);
    sum_columns(FLOATS(c, B_DB), part, part + (size_t)left * cols, left, cols, c->block);
}

static __device__ __forceinline__ float masked(float y, float d) { return y > 0.0f ? d : 0.0f; }
static __device__ __forceinline__ float4 mask4(float4 y, float4 d) {
    return make_float4(masked(y.x, d.x), masked(y.y, d.y), masked(y.z, d.z), masked(y.w, d.w));
}
static __global__ void mask_and_add4(float4 *__restrict__ d, const float4 *__restrict__ y, float4 *__restrict__ part,
                                     int rows, int cols4) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * CHUNK;
    if (c >= cols4) return;
    const size_t start = (size_t)first * cols4;
    y += start;
    d += start;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    UNROLL for (int k = 0; k < CHUNK; k++)
        if (first + k < rows) {
            const int i = k * cols4 + c;
            const float4 v = mask4(y[i], d[i]);
            d[i] = v;
            sum = add4(sum, v);
        }
    part[(size_t)blockIdx.y * cols4 + c] = sum;
}
static void run_fused_float4(const call *c) {
    const int rows = c->dim[0], cols4 = c->dim[1] / 4, left = ceil_div(rows, CHUNK);
    float *part = FLOATS(c, B_PART);
    mask_and_add4<<<dim3(ceil_div(cols4, c->block), left), c->block>>>(
        (float4 *)c->at[B_D], (const float4 *)c->at[B_Y], (float4 *)part, rows, cols4);
    sum_columns(FLOATS(c, B_DB), part, part + (size_t)left * c->dim[1], left, c->dim[1], c->block);
}

static void run_layers(const call *c) {
    bias_relu_backward(FLOATS(c, B_D), FLOATS(c, B_Y), FLOATS(c, B_DB), FLOATS(c, B_PART), c->dim[0], c->dim[1], 1);
}

static const variant backward_variants[] = {
    {"two_kernels", "mask, then column sums", run_two_kernels, FP32, 0, {64, 128, 256}, NULL, 0},
    {"fused", "the mask's kernel adds up its rows", run_fused, FP32, 0, {64, 128, 256}, NULL, 0},
    {"fused_float4", "16-byte accesses", run_fused_float4, FP32, 0, {32, 64, 128}, by_four, 0},
    {"layers.cuh", "what the trainers use", run_layers, FP32, 0, {0}, NULL, 0},
};

#define TEST_SHAPES "1x1 1x4 7x3 31x33 32x64 33x500 300x36 1100x7 70001x2"
#define CPU_SHAPES "128x512 2048x2048 65536x64"
#define GPU_SHAPES "1024x1024 4096x4096 262144x64"
static const operation operations[] = {
    {"bias_gradient", "db[c] = sum_r d[r][c]", "rows cols", gradient_problem, gradient_reference,
     VARIANTS(gradient_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"bias_relu_backward", "d masked where y <= 0, in place; db[c] = sum_r d[r][c]", "rows cols", backward_problem,
     backward_reference, VARIANTS(backward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
