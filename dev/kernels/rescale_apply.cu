// rescale_apply.cu -- the rescaling itself: every row of every tensor times its factor, every column times its own.
//
// Shapes: `tensors` matrices W one behind the other, tensor t with rows >> (t % 3) rows and cols >> (t + 1) % 2
// columns; row and column factors of all tensors in double; W in fp32, in place.
//     apply     W[o][i] = (float)(W[o][i] * (row[o] * col[i])), one rounding, so that powers of two are exact
// Bytes: W in and out, 8 per element. Two multiplications in double per element: memory-bound. A network has dozens of
// tensors, and this runs once: so the number of launches counts as much as the bandwidth.
//
//  1 two_passes      Rows, then columns: W moves twice, and is rounded twice.
//  2 one_pass        A launch per tensor, a thread per column and blockIdx.y for the row.
//  3 one_launch      All tensors at once: a table tells a block its tensor and its 8 rows.
//  4 one_launch_float4   16-byte accesses for the tensors whose rows start on 16 bytes.
//    rescale.cuh     rsc_scale_kernel per tensor, which rescale_run launches.
//    host            rsc_host_scale per tensor. CPU build only.
#include "dev/kernels/kernels.h"
#include "rescale.cuh"

enum { W, ROW, COL, TABLE };
enum { STRIP = 8 };   // rows of a block of one_launch
enum { FIELDS = 6 };  // of a table entry: offsets of W, rows and columns, first row, rows, cols

// Sizes and offsets of tensor t.
typedef struct tensor {
    int rows, cols;
    size_t w, row, col;
} tensor;
static tensor tensor_of(const int *dim, int t) {
    tensor r = {0, 0, 0, 0, 0};
    for (int i = 0;; i++) {
        r.rows = dim[1] >> (i % 3);
        r.cols = dim[2] >> ((i + 1) % 2);
        if (r.rows < 1) r.rows = 1;
        if (r.cols < 1) r.cols = 1;
        if (i == t) return r;
        r.w += (size_t)r.rows * (size_t)r.cols;
        r.row += (size_t)r.rows;
        r.col += (size_t)r.cols;
    }
}
static int strips_of(const int *dim) {
    int n = 0;
    for (int t = 0; t < dim[0]; t++) n += ceil_div(tensor_of(dim, t).rows, STRIP);
    return n;
}

static void problem_of(problem *p) {
    const tensor end = tensor_of(p->dim, p->dim[0]);
    in_place(p, "W", F32, end.w, -1, 1, 1e-7, 0);
    input(p, "row", F64, end.row, 0.999, 1.001);  // near 1: benchmarks apply it thousands of times
    input(p, "col", F64, end.col, 0.999, 1.001);
    double *table = input(p, "table", I32, FIELDS * (size_t)strips_of(p->dim), 0, 1);
    for (int t = 0; t < p->dim[0]; t++) {
        const tensor x = tensor_of(p->dim, t);
        for (int first = 0; first < x.rows; first += STRIP, table += FIELDS) {
            const double entry[FIELDS] = {
                (double)x.w, (double)x.row, (double)x.col, (double)first, (double)x.rows, (double)x.cols};
            memcpy(table, entry, sizeof entry);
        }
    }
    p->bytes = 8.0 * (double)end.w;
    p->flops = 2.0 * (double)end.w;
}
static void reference(problem *p) {
    for (int t = 0; t < p->dim[0]; t++) {
        const tensor x = tensor_of(p->dim, t);
        for (int o = 0; o < x.rows; o++)
            for (int i = 0; i < x.cols; i++) {
                const size_t at = x.w + (size_t)o * (size_t)x.cols + (size_t)i;
                wanted(p, W)[at] =
                    given(p, W)[at] * given(p, ROW)[x.row + (size_t)o] * given(p, COL)[x.col + (size_t)i];
            }
    }
}

static __global__ void scale_rows(float *__restrict__ w, const double *__restrict__ row, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    w += (size_t)blockIdx.y * cols;
    w[c] = (float)((double)w[c] * row[blockIdx.y]);
}
static __global__ void scale_columns(float *__restrict__ w, const double *__restrict__ col, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    w += (size_t)blockIdx.y * cols;
    w[c] = (float)((double)w[c] * col[c]);
}
static __global__ void scale_both(float *__restrict__ w, const double *__restrict__ row, const double *__restrict__ col,
                                  int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    w += (size_t)blockIdx.y * cols;
    const double f = row[blockIdx.y];
    w[c] = (float)((double)w[c] * (f * col[c]));
}

// Launches f(tensor, grid) for every tensor.
template <class F> static void each_tensor(const call *c, F f) {
    for (int t = 0; t < c->dim[0]; t++) {
        const tensor x = tensor_of(c->dim, t);
        f(x, dim3(ceil_div(x.cols, c->block ? c->block : RSC_BLOCK), x.rows));
    }
}
static void run_two_passes(const call *c) {
    each_tensor(c, [=](tensor x, dim3 grid) {
        scale_rows<<<grid, c->block>>>(FLOATS(c, W) + x.w, DOUBLES(c, ROW) + x.row, x.cols);
        scale_columns<<<grid, c->block>>>(FLOATS(c, W) + x.w, DOUBLES(c, COL) + x.col, x.cols);
    });
}
static void run_one_pass(const call *c) {
    each_tensor(c, [=](tensor x, dim3 grid) {
        scale_both<<<grid, c->block>>>(FLOATS(c, W) + x.w, DOUBLES(c, ROW) + x.row, DOUBLES(c, COL) + x.col, x.cols);
    });
}
static void run_rescale(const call *c) {
    each_tensor(c, [=](tensor x, dim3 grid) {
        rsc_scale_kernel<<<grid, RSC_BLOCK>>>(
            FLOATS(c, W) + x.w, x.rows, x.cols, DOUBLES(c, ROW) + x.row, DOUBLES(c, COL) + x.col);
    });
}
#if !DEVICE_IS_GPU
static void run_host(const call *c) {
    each_tensor(c, [=](tensor x, dim3) {
        rsc_host_scale(
            FLOATS(c, W) + x.w, (size_t)x.rows, (size_t)x.cols, DOUBLES(c, ROW) + x.row, DOUBLES(c, COL) + x.col);
    });
}
#endif

static __device__ __forceinline__ float scaled(float w, double f) { return (float)((double)w * f); }

// blockIdx.y: a strip of the table; blockIdx.x: 32 columns per warp of the widest tensor. VECTOR: four columns per
// thread where possible.
template <int VECTOR>
__global__ void one_launch(float *__restrict__ w, const double *__restrict__ row, const double *__restrict__ col,
                                                 const int *__restrict__ table) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int *entry = table + FIELDS * blockIdx.y;
    const int first = entry[3], last = entry[4] - 1 - first, cols = entry[5];
    float *__restrict__ tile = w + (size_t)entry[0] + (size_t)first * cols;
    const double *__restrict__ factor = col + entry[2], *__restrict__ rows = row + entry[1] + first;
    if (VECTOR && (cols | entry[0]) % 4 == 0) {
        if (4 * c >= cols) return;
        const double f0 = factor[4 * c], f1 = factor[4 * c + 1], f2 = factor[4 * c + 2], f3 = factor[4 * c + 3];
        UNROLL for (int k = 0; k < STRIP; k++) {
            if (k > last) break;
            float4 *p = (float4 *)(tile + k * cols) + c;
            *p = make_float4(scaled(p->x, rows[k] * f0), scaled(p->y, rows[k] * f1), scaled(p->z, rows[k] * f2),
                             scaled(p->w, rows[k] * f3));
        }
        return;
    }
    for (int i = c; i < cols; i += (int)(gridDim.x * blockDim.x)) {
        const double f = factor[i];
        UNROLL for (int k = 0; k < STRIP; k++) {  // rows past the end: the last one again, times 1
            const int o = min(k, last);
            tile[o * cols + i] = scaled(tile[o * cols + i], k <= last ? rows[o] * f : 1.0);
        }
    }
}
static int widest(const int *dim) { return dim[0] > 1 ? dim[2] : tensor_of(dim, 0).cols; }
static void run_one_launch(const call *c) {
    one_launch<0><<<dim3(ceil_div(widest(c->dim), c->block), strips_of(c->dim)), c->block>>>(
        FLOATS(c, W), DOUBLES(c, ROW), DOUBLES(c, COL), INTS(c, TABLE));
}
static void run_one_launch4(const call *c) {
    one_launch<1><<<dim3(ceil_div(ceil_div(widest(c->dim), 4), c->block), strips_of(c->dim)), c->block>>>(
        FLOATS(c, W), DOUBLES(c, ROW), DOUBLES(c, COL), INTS(c, TABLE));
}

static const variant variants[] = {
    {"two_passes", "rows, then columns", run_two_passes, FP32, 0, {64, 128, 256}, NULL, 2},
    {"one_pass", "both factors at once, a launch per tensor", run_one_pass, FP32, 0, {64, 128, 256}, NULL, 0},
    {"one_launch", "all tensors in one launch, by a table", run_one_launch, FP32, 0, {64, 128, 256}, NULL, 0},
    {"one_launch_float4", "16-byte accesses", run_one_launch4, FP32, 0, {32, 64, 128}, NULL, 0},
    {"rescale.cuh", "what rescale_run launches", run_rescale, FP32, 0, {0}, NULL, 0},
    {"host", "what rescale_run does in host memory", ON_CPU(run_host), FP32, CPU_ONLY, {0}, NULL, 0},
};
static const operation operations[] = {
    {"rescale_apply", "W[o][i] *= row[o] * col[i], all tensors, in place", "tensors rows cols", problem_of, reference,
     VARIANTS(variants), "1x1x1 1x1x8 2x7x3 3x31x33 6x64x96 5x70x1000", "8x512x512 24x1024x1024",
     "8x512x512 24x1024x1024 24x2048x4096"},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
