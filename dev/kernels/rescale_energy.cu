// rescale_energy.cu -- energies of a convolution: diag(G) summed over the kernel, and its row and column sums.
//
// Shapes: g [out][in][kernel] in fp32, not negative; M [out][in], row [out], col [in] in double.
//     energy_sums     M[o][i] = sum_k g[o][i][k],  row[o] = sum_i M[o][i],  col[i] = sum_o M[o][i]
// M is what Newton's method works on; the row sums are the energy that enters the output channels, the column sums what
// leaves the input channels. Bytes: g once in and M once out: 4 out in kernel + 8 out in. One addition per element:
// memory-bound.
//
//  1 three_kernels   M by a thread per pair, then the row sums and the column sums from M: M is read twice more, 24
//                    bytes per pair.
//  2 fused           A warp has 32 columns and walks down 32 rows: each lane writes its M, adds it to its column, and
//                    the warp adds the 32 values up for the row. M is never read; one partial sum per 32 elements and
//                    side is left for a last kernel.
//  3 fused_staged    With a kernel of 9 floats a lane's loads are 36 bytes apart. Here the warp first copies its 32 x
//                    kernel floats of a row to shared memory, in order, and then every lane sums from there; 9 is odd,
//                    so no bank conflicts.
//    rescale.cuh     rsc_reduce_kernel, then both sums on the host, as rescale_run does (here with its copies).
//    host            rsc_host_reduce, then both sums. CPU build only.
#include "dev/kernels/kernels.h"
#include "rescale.cuh"

enum { G, M, ROW, COL, PART_ROW, PART_COL };
enum { SIDE = 32, MAX_KERNEL = 25 };

static int tiles(int n) { return ceil_div(n, SIDE); }

static void problem_of(problem *p) {
    const int out = p->dim[0], in = p->dim[1];
    const size_t pairs = (size_t)out * (size_t)in, n = pairs * (size_t)p->dim[2];
    input(p, "g", F32, n, 0, 1);
    output(p, "M", F64, pairs, 1e-12, 1e-14);
    output(p, "row", F64, (size_t)out, 1e-11, 1e-14);
    output(p, "col", F64, (size_t)in, 1e-11, 1e-14);
    scratch(p, "partial row sums", F64, (size_t)tiles(in) * (size_t)out);
    scratch(p, "partial column sums", F64, (size_t)tiles(out) * (size_t)in);
    p->bytes = 4.0 * (double)n + 8.0 * (double)pairs;
    p->flops = (double)n + 2.0 * (double)pairs;
}
static void reference(problem *p) {
    const int out = p->dim[0], in = p->dim[1], kernel = p->dim[2];
    for (int o = 0; o < out; o++)
        for (int i = 0; i < in; i++) {
            double *m = wanted(p, M) + (size_t)o * (size_t)in + i;
            for (int k = 0; k < kernel; k++)
                *m += given(p, G)[((size_t)o * (size_t)in + (size_t)i) * (size_t)kernel + (size_t)k];
            wanted(p, ROW)[o] += *m;
            wanted(p, COL)[i] += *m;
        }
}

static __global__ void pair_sums(double *m, const float *g, int pairs, int kernel) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pairs) return;
    double sum = 0;
    for (int k = 0; k < kernel; k++) sum += g[(size_t)i * kernel + k];
    m[i] = sum;
}
static __global__ void row_sums(double *row, const double *m, int out, int in) {
    const int o = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (o >= out) return;
    double sum = 0;
    for (int i = lane; i < in; i += 32) sum += m[(size_t)o * in + i];
    sum = warp_reduce_sum(sum);
    if (lane == 0) row[o] = sum;
}
// y[c] = sum of the rows of m[rows][cols], row by row.
static __global__ void column_totals(double *y, const double *m, int rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    double sum = 0;
    for (int r = 0; r < rows; r++) sum += m[(size_t)r * cols + c];
    y[c] = sum;
}
static void run_three_kernels(const call *c) {
    const int out = c->dim[0], in = c->dim[1], pairs = out * in;
    pair_sums<<<ceil_div(pairs, c->block), c->block>>>(DOUBLES(c, M), FLOATS(c, G), pairs, c->dim[2]);
    row_sums<<<ceil_div(out, c->block / 32), c->block>>>(DOUBLES(c, ROW), DOUBLES(c, M), out, in);
    column_totals<<<ceil_div(in, c->block), c->block>>>(DOUBLES(c, COL), DOUBLES(c, M), out, in);
}

// Warp (tile of columns blockIdx.x, tile of rows blockIdx.y * warps + warp). STAGED: through shared memory.
template <int STAGED>
__global__ void fused(double *m, double *part_row, double *part_col, const float *g, int out, int in, int kernel) {
    extern __shared__ float stages[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.y * (blockDim.x / 32) + warp;
    const int i0 = blockIdx.x * SIDE, i = i0 + lane, first = tile * SIDE, wide = min((int)SIDE, in - i0) * kernel;
    float *stage = stages + warp * SIDE * kernel;
    double column = 0;
    for (int o = first; o < first + SIDE && o < out; o++) {
        const float *row = g + ((size_t)o * in + i0) * kernel;
        const float *mine = STAGED ? stage + lane * kernel : row + lane * kernel;
        double sum = 0;
        if (STAGED) {
            __syncwarp();  // everyone is done with the row before
            for (int k = lane; k < wide; k += 32) stage[k] = row[k];
            __syncwarp();
        }
        for (int k = 0; k < kernel && i < in; k++) sum += mine[k];
        if (i < in) m[(size_t)o * in + i] = sum;
        column += sum;
        sum = warp_reduce_sum(sum);
        if (lane == 0) part_row[(size_t)blockIdx.x * out + o] = sum;
    }
    if (i < in && first < out) part_col[(size_t)tile * in + i] = column;
}
static void run_fused_kernel(const call *c, int staged) {
    const int out = c->dim[0], in = c->dim[1], kernel = c->dim[2], warps = c->block / 32;
    const dim3 grid(tiles(in), ceil_div(tiles(out), warps));
    const size_t bytes = staged ? (size_t)(warps * SIDE * kernel) * sizeof(float) : 0;
    if (staged)
        fused<1><<<grid, c->block, bytes>>>(
            DOUBLES(c, M), DOUBLES(c, PART_ROW), DOUBLES(c, PART_COL), FLOATS(c, G), out, in, kernel);
    else
        fused<0><<<grid, c->block, bytes>>>(
            DOUBLES(c, M), DOUBLES(c, PART_ROW), DOUBLES(c, PART_COL), FLOATS(c, G), out, in, kernel);
    column_totals<<<ceil_div(out, 64), 64>>>(DOUBLES(c, ROW), DOUBLES(c, PART_ROW), tiles(in), out);
    column_totals<<<ceil_div(in, 64), 64>>>(DOUBLES(c, COL), DOUBLES(c, PART_COL), tiles(out), in);
}
static void run_fused(const call *c) { run_fused_kernel(c, 0); }
static void run_fused_staged(const call *c) { run_fused_kernel(c, 1); }
static int small_kernel(const int *dim) { return dim[2] <= MAX_KERNEL; }

// Row and column sums of m in host memory, as rsc_collect takes them.
static void host_sums(const double *m, int out, int in, double *row, double *col) {
    for (int i = 0; i < in; i++) col[i] = 0;
    for (int o = 0; o < out; o++) {
        row[o] = 0;
        for (int i = 0; i < in; i++) {
            row[o] += m[(size_t)o * (size_t)in + (size_t)i];
            col[i] += m[(size_t)o * (size_t)in + (size_t)i];
        }
    }
}
static void run_rescale(const call *c) {
    const int out = c->dim[0], in = c->dim[1], kernel = c->dim[2];
    const size_t pairs = (size_t)out * (size_t)in;
    double *m = (double *)allocate((pairs + (size_t)(out + in)) * sizeof(double)), *row = m + pairs, *col = row + out;
    rsc_reduce_kernel<<<ceil_div((long long)pairs, RSC_BLOCK), RSC_BLOCK>>>(
        FLOATS(c, G), nullptr, pairs, (size_t)in, (size_t)kernel, nullptr, nullptr, DOUBLES(c, M));
    CUDA_CHECK(cudaMemcpy(m, DOUBLES(c, M), pairs * sizeof(double), cudaMemcpyDeviceToHost));
    host_sums(m, out, in, row, col);
    CUDA_CHECK(cudaMemcpy(DOUBLES(c, ROW), row, (size_t)out * sizeof(double), cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemcpy(DOUBLES(c, COL), col, (size_t)in * sizeof(double), cudaMemcpyHostToDevice));
    free(m);
}
#if !DEVICE_IS_GPU
static void run_host(const call *c) {
    rsc_host_reduce(
        FLOATS(c, G), NULL, (size_t)c->dim[0], (size_t)c->dim[1], (size_t)c->dim[2], NULL, NULL, DOUBLES(c, M));
    host_sums(DOUBLES(c, M), c->dim[0], c->dim[1], DOUBLES(c, ROW), DOUBLES(c, COL));
}
#endif

static const variant variants[] = {
    {"three_kernels", "pairs, then row sums, then column sums", run_three_kernels, FP32, 0, {32, 64, 256}, NULL, 0},
    {"fused", "a warp sums pairs, rows and columns of a 32 x 32 tile", run_fused, FP32, 0, {32, 64, 128}, NULL, 0},
    {"fused_staged", "a row's pairs through shared memory", run_fused_staged, FP32, 0, {32, 64, 128}, small_kernel, 0},
    {"rescale.cuh", "what rescale_run does on a device: sums on the host", run_rescale, FP32, 0, {0}, NULL, 0},
    {"host", "what rescale_run does in host memory", ON_CPU(run_host), FP32, CPU_ONLY, {0}, NULL, 0},
};
static const operation operations[] = {
    {"energy_sums", "M[o][i] = sum_k g[o][i][k], and its row and column sums", "out in kernel", problem_of, reference,
     VARIANTS(variants), "1x1x1 1x5x9 33x31x9 64x32x4 70x100x1 40x3x25", "192x192x9 512x512x9",
     "192x192x9 512x512x9 2048x2048x9"},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
