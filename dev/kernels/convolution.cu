// convolution.cu -- 2-D convolution of images and its two gradients: directly, as a matrix product, and on tensor
// cores.
//
// Shapes: x, dx [images][h][w][in]; y, dy [images][out_h][out_w][out], channels last; w, dw [out][in][kernel][kernel]
// (PyTorch's); fp32. out_h = (h + 2 pad - kernel) / stride + 1. Cross-correlation, no bias.
//     conv_forward            y = conv(x, w)
//     conv_backward_data      dx = adjoint of conv(., w) applied to dy
//     conv_backward_weight    dw = sum over images and pixels of dy times the window of x
// Each takes 2 images out_h out_w out in kernel^2 operations (Winograd: 4 times fewer for 3x3). Bytes: the three arrays
// once. For 96 channels, 3x3, that is hundreds of operations per byte: compute-bound, if the 9-fold reuse of every
// pixel is not lost on the way. Floor: the best matrix product at hand.
//
//  1 direct            A thread per element of the result, loops over the window and the channels. In forward,
//                      neighbouring threads are neighbouring output channels: x is broadcast, but their weights lie in
//                      kernel^2 floats apart.
//  2 direct_packed     Forward and data only: weights are first reordered so that neighbouring threads read neighbours.
//  3 im2col            Windows are copied to rows of a matrix, which is then multiplied: conv.cuh with CONV_IM2COL.
//                      Everything hard is left to the matrix product; the copy is kernel^2 times the input, written and
//                      read once.
//  4 implicit_gemm     The same product, but the rows of windows never exist: a block gathers its tile of them from x
//                      straight into shared memory (gemm.cu's register_2d with another way to load). The three passes
//                      differ in what is gathered:
//                          forward   y[pixel][out]          over k = (ky, kx, in):  x at the window, packed weights
//                          data      dx[pixel][in]          over k = (ky, kx, out): dy at the window, packed weights
//                          weight    dw[out][(ky, kx, in)]  over k = pixel:         dy, x at the window
//                      The weight pass has few results and very long sums: k is split over blockIdx.z, partial results
//                      are added in order.
//  5 tensor_tf32       The same on tensor cores: 16-byte chunks (4 channels lie side by side) by cp.async, filled with
//                      0 outside the image, four stages deep; TF32. Needs channels in fours.
//    conv.cuh          conv_forward() and conv_backward() of common/conv.cuh, which the trainers use: Winograd F(4x4,
//                      3x3) for 3x3 with stride 1, else im2col. Its backward computes both gradients; under
//                      conv_backward_data the row's time is for both.
//    cudnn, cudnn_tf32   cuDNN, where it is installed: its fastest algorithm without atomics, chosen before the timing.
#define KERNELS_PRODUCT
#include "dev/kernels/kernels.h"
#include "common/rng.h"
#include "common/dataset.h"
#include "common/layers.cuh"
#include "common/conv.cuh"
#ifdef USE_CUDNN
#include <cudnn.h>
#endif

// Of every pass: two inputs, the result, scratch. Backward: X is dy or x, WEIGHT is w or dy.
enum { X, WEIGHT, OUT, PACKED, PART };
enum { FORWARD, DATA, WEIGHTS };

// h, w: of x; k: kernel. Sizes in lists are positive, so the last number of a shape is pad + 1.
typedef struct geometry {
    int images, h, w, in, out, k, stride, pad, out_h, out_w;
} geometry;
static geometry geometry_of(const int *dim) {
    geometry g = {dim[0], dim[1], dim[2], dim[3], dim[4], dim[5], dim[6], dim[7] - 1, 0, 0};
    g.out_h = conv_out_size(g.h, g.k, g.stride, g.pad);
    g.out_w = conv_out_size(g.w, g.k, g.stride, g.pad);
    return g;
}
static size_t x_size(const geometry *g) { return (size_t)g->images * (size_t)g->h * (size_t)g->w * (size_t)g->in; }
static size_t y_size(const geometry *g) {
    return (size_t)g->images * (size_t)g->out_h * (size_t)g->out_w * (size_t)g->out;
}
static size_t w_size(const geometry *g) { return (size_t)g->out * (size_t)g->in * (size_t)(g->k * g->k); }

// Rows m, columns n and depth k of a pass as a matrix product; into how many parts k is split.
typedef struct extent {
    int m, n, k, splits;
} extent;
static extent extent_of(const geometry *g, int pass) {
    const int pixels = g->images * g->out_h * g->out_w, columns = g->k * g->k * g->in;
    extent e = {pixels, g->out, columns, 1};
    if (pass == DATA) {
        e.m = g->images * g->h * g->w;
        e.n = g->in;
        e.k = g->k * g->k * g->out;
    }
    if (pass == WEIGHTS) {
        e.m = g->out;
        e.n = columns;
        e.k = pixels;
        const int blocks = ceil_div(e.m, 128) * ceil_div(e.n, 64);
        e.splits = min(max(512 / blocks, 1), max(1, e.k / 256));
    }
    return e;
}

// What conv.cuh makes of it; limit: 16 MiB of windows or tiles at a time.
static conv_plan plan_of(const geometry *g, int im2col) {
    conv_plan p = conv_make_plan(g->in, g->h, g->w, g->out, g->k, g->k, g->stride, g->pad, (size_t)1 << 22);
    if (im2col && p.algorithm == CONV_WINOGRAD) p.algorithm = CONV_IM2COL;
    return p;
}

// --------------------------------------------------------------------------------------------- problems and references

static void problem_of(problem *p, int pass) {
    const geometry g = geometry_of(p->dim);
    const extent e = extent_of(&g, pass);
    const conv_plan plan = plan_of(&g, 0), im2col = plan_of(&g, 1);
    const double tolerance = p->precision == TF32 ? 6e-4 * sqrt(e.k) : 1e-7 * e.k;
    const size_t packed = conv_transformed_floats(&plan) + conv_transformed_floats(&im2col) + 2 * w_size(&g);
    if (pass == DATA) input(p, "dy", F32, y_size(&g), -1, 1);
    else input(p, "x", F32, x_size(&g), -1, 1);
    if (pass == WEIGHTS) input(p, "dy", F32, y_size(&g), -1, 1);
    else input(p, "w", F32, w_size(&g), -1, 1);
    if (pass == FORWARD) output(p, "y", F32, y_size(&g), 1e-6, tolerance);
    else if (pass == DATA) output(p, "dx", F32, x_size(&g), 1e-6, tolerance);
    else output(p, "dw", F32, w_size(&g), 1e-6, tolerance);
    scratch(p, "packed weights", F32, packed);
    size_t work = conv_work_floats(&plan, g.images) + conv_work_floats(&im2col, g.images) + w_size(&g) + x_size(&g);
    work += pass == WEIGHTS ? (size_t)(e.splits + ceil_div(e.splits, ROW_CHUNK) + 1) * w_size(&g) : 0;
    scratch(p, "work", F32, work);
    p->bytes = 4.0 * (double)(x_size(&g) + y_size(&g) + w_size(&g));
    p->flops = 2.0 * (double)y_size(&g) * g.in * g.k * g.k;
}
static void forward_problem(problem *p) { problem_of(p, FORWARD); }
static void data_problem(problem *p) { problem_of(p, DATA); }
static void weight_problem(problem *p) { problem_of(p, WEIGHTS); }

// Calls f(image, pixel of x, pixel of y, kernel position) for every pair of pixels that meet in an image.
template <class F> static void each_meeting(const geometry *g, int image, F f) {
    for (int oy = 0; oy < g->out_h; oy++)
        for (int ox = 0; ox < g->out_w; ox++)
            for (int k = 0; k < g->k * g->k; k++) {
                const int iy = oy * g->stride - g->pad + k / g->k, ix = ox * g->stride - g->pad + k % g->k;
                if (iy < 0 || iy >= g->h || ix < 0 || ix >= g->w) continue;
                f(((size_t)image * (size_t)g->h + (size_t)iy) * (size_t)g->w + (size_t)ix,
                  ((size_t)image * (size_t)g->out_h + (size_t)oy) * (size_t)g->out_w + (size_t)ox, (size_t)k);
            }
}
// Large problems: some images, or for dw some output channels; the rest stays NaN.
static int step_of(problem *p) {
    const int step = p->flops > 4e9 ? 13 : 1;
    p->sampled = step > 1;
    for (size_t i = 0; p->sampled && i < p->buffers[OUT].n; i++) wanted(p, OUT)[i] = (double)NAN;
    return step;
}
static void pass_reference(problem *p, int pass) {
    const geometry g = geometry_of(p->dim);
    const size_t in = (size_t)g.in, out = (size_t)g.out, kk = (size_t)(g.k * g.k);
    const size_t per_image = p->buffers[OUT].n / (size_t)g.images;
    const int step = step_of(p);
    const double *a = given(p, X), *b = given(p, WEIGHT);
    double *r = wanted(p, OUT);
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic)
#endif
    for (int image = 0; image < g.images; image++) {
        if (pass == WEIGHTS || image % step) continue;
        for (size_t i = 0; i < per_image; i++) r[(size_t)image * per_image + i] = 0;
        each_meeting(&g, image, [=](size_t px, size_t py, size_t k) {
            for (size_t o = 0; o < out; o++)
                for (size_t i = 0; i < in; i++) {
                    if (pass == FORWARD) r[py * out + o] += a[px * in + i] * b[(o * in + i) * kk + k];
                    else r[px * in + i] += a[py * out + o] * b[(o * in + i) * kk + k];
                }
        });
    }
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic)
#endif
    for (int o = 0; o < g.out; o++) {
        if (pass != WEIGHTS || o % step) continue;
        for (size_t i = 0; i < in * kk; i++) r[(size_t)o * in * kk + i] = 0;
        for (int image = 0; image < g.images; image++)
            each_meeting(&g, image, [=](size_t px, size_t py, size_t k) {
                for (size_t i = 0; i < in; i++)
                    r[((size_t)o * in + i) * kk + k] += b[py * out + (size_t)o] * a[px * in + i];
            });
    }
}
static void forward_reference(problem *p) { pass_reference(p, FORWARD); }
static void data_reference(problem *p) { pass_reference(p, DATA); }
static void weight_reference(problem *p) { pass_reference(p, WEIGHTS); }

// ----------------------------------------------------------------------------------------------------------- 1: direct
// blockIdx.y: pixel of the result, blockIdx.z: image, x: channel.

static __global__ void direct_forward(float *y, const float *x, const float *w, geometry g) {
    const int o = blockIdx.x * blockDim.x + threadIdx.x, oy = (int)blockIdx.y / g.out_w, ox = (int)blockIdx.y % g.out_w;
    if (o >= g.out) return;
    float sum = 0.0f;
    for (int ky = 0; ky < g.k; ky++)
        for (int kx = 0; kx < g.k; kx++) {
            const int iy = oy * g.stride - g.pad + ky, ix = ox * g.stride - g.pad + kx;
            if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
            const float *pixel = x + (((size_t)blockIdx.z * g.h + iy) * g.w + ix) * g.in;
            for (int i = 0; i < g.in; i++) sum += pixel[i] * w[(((size_t)o * g.in + i) * g.k + ky) * g.k + kx];
        }
    y[((size_t)blockIdx.z * gridDim.y + blockIdx.y) * g.out + o] = sum;
}
static __global__ void direct_data(float *dx, const float *dy, const float *w, geometry g) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, iy = (int)blockIdx.y / g.w, ix = (int)blockIdx.y % g.w;
    if (i >= g.in) return;
    float sum = 0.0f;
    for (int ky = 0; ky < g.k; ky++)
        for (int kx = 0; kx < g.k; kx++) {
            const int ty = iy + g.pad - ky, tx = ix + g.pad - kx, oy = ty / g.stride, ox = tx / g.stride;
            if (ty < 0 || tx < 0 || oy * g.stride != ty || ox * g.stride != tx || oy >= g.out_h || ox >= g.out_w)
                continue;
            const float *pixel = dy + (((size_t)blockIdx.z * g.out_h + oy) * g.out_w + ox) * g.out;
            for (int o = 0; o < g.out; o++) sum += pixel[o] * w[(((size_t)o * g.in + i) * g.k + ky) * g.k + kx];
        }
    dx[((size_t)blockIdx.z * gridDim.y + blockIdx.y) * g.in + i] = sum;
}
// blockIdx.y: output channel, blockIdx.z: kernel position, x: input channel.
static __global__ void direct_weight(float *dw, const float *x, const float *dy, geometry g) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, o = blockIdx.y, ky = (int)blockIdx.z / g.k;
    const int kx = (int)blockIdx.z % g.k;
    if (i >= g.in) return;
    float sum = 0.0f;
    for (int image = 0; image < g.images; image++)
        for (int oy = 0; oy < g.out_h; oy++)
            for (int ox = 0; ox < g.out_w; ox++) {
                const int iy = oy * g.stride - g.pad + ky, ix = ox * g.stride - g.pad + kx;
                if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
                sum += dy[(((size_t)image * g.out_h + oy) * g.out_w + ox) * g.out + o] *
                       x[(((size_t)image * g.h + iy) * g.w + ix) * g.in + i];
            }
    dw[((size_t)o * g.in + i) * g.k * g.k + blockIdx.z] = sum;
}
static dim3 y_grid(const geometry *g, int block) {
    return dim3(ceil_div(g->out, block), g->out_h * g->out_w, g->images);
}
static dim3 x_grid(const geometry *g, int block) { return dim3(ceil_div(g->in, block), g->h * g->w, g->images); }
static void run_direct_forward(const call *c) {
    const geometry g = geometry_of(c->dim);
    direct_forward<<<y_grid(&g, c->block), c->block>>>(FLOATS(c, OUT), FLOATS(c, X), FLOATS(c, WEIGHT), g);
}
static void run_direct_data(const call *c) {
    const geometry g = geometry_of(c->dim);
    direct_data<<<x_grid(&g, c->block), c->block>>>(FLOATS(c, OUT), FLOATS(c, X), FLOATS(c, WEIGHT), g);
}
static void run_direct_weight(const call *c) {
    const geometry g = geometry_of(c->dim);
    const dim3 grid(ceil_div(g.in, c->block), g.out, g.k * g.k);
    direct_weight<<<grid, c->block>>>(FLOATS(c, OUT), FLOATS(c, X), FLOATS(c, WEIGHT), g);
}

// ---------------------------------------------------------------------------------------------------- 2: direct_packed

// packed[k][in][out] = w[out][in][k]: output channels side by side. Thread o, blockIdx.y: in, blockIdx.z: k.
static __global__ void pack_out_last(float *__restrict__ packed, const float *__restrict__ w, int in, int out) {
    const int o = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y, k = blockIdx.z, kk = gridDim.z;
    if (o < out) packed[((size_t)k * in + i) * out + o] = w[((size_t)o * in + i) * kk + k];
}
static __global__ void direct_packed(float *__restrict__ y, const float *__restrict__ x,
                                     const float *__restrict__ packed, geometry g) {
    const int o = blockIdx.x * blockDim.x + threadIdx.x, oy = (int)blockIdx.y / g.out_w, ox = (int)blockIdx.y % g.out_w;
    if (o >= g.out) return;
    float sum = 0.0f;
    for (int ky = 0; ky < g.k; ky++)
        for (int kx = 0; kx < g.k; kx++) {
            const int iy = oy * g.stride - g.pad + ky, ix = ox * g.stride - g.pad + kx;
            if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
            const float *pixel = x + (((size_t)blockIdx.z * g.h + iy) * g.w + ix) * g.in;
            const float *row = packed + (size_t)(ky * g.k + kx) * g.in * g.out + o;
            for (int i = 0; i < g.in; i++) sum += pixel[i] * row[(size_t)i * g.out];
        }
    y[((size_t)blockIdx.z * gridDim.y + blockIdx.y) * g.out + o] = sum;
}
// packed[k][out][in]: input channels side by side. Thread i, blockIdx.y: out, blockIdx.z: k.
static __global__ void pack_in_last(float *__restrict__ packed, const float *__restrict__ w, int in, int out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, o = blockIdx.y, k = blockIdx.z, kk = gridDim.z;
    if (i < in) packed[((size_t)k * out + o) * in + i] = w[((size_t)o * in + i) * kk + k];
}
static __global__ void direct_packed_data(float *__restrict__ dx, const float *__restrict__ dy,
                                          const float *__restrict__ packed, geometry g) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, iy = (int)blockIdx.y / g.w, ix = (int)blockIdx.y % g.w;
    if (i >= g.in) return;
    float sum = 0.0f;
    for (int ky = 0; ky < g.k; ky++)
        for (int kx = 0; kx < g.k; kx++) {
            const int ty = iy + g.pad - ky, tx = ix + g.pad - kx, oy = ty / g.stride, ox = tx / g.stride;
            if (ty < 0 || tx < 0 || oy * g.stride != ty || ox * g.stride != tx || oy >= g.out_h || ox >= g.out_w)
                continue;
            const float *pixel = dy + (((size_t)blockIdx.z * g.out_h + oy) * g.out_w + ox) * g.out;
            const float *row = packed + (size_t)(ky * g.k + kx) * g.out * g.in + i;
            for (int o = 0; o < g.out; o++) sum += pixel[o] * row[(size_t)o * g.in];
        }
    dx[((size_t)blockIdx.z * gridDim.y + blockIdx.y) * g.in + i] = sum;
}
static void run_packed_forward(const call *c) {
    const geometry g = geometry_of(c->dim);
    const dim3 weights(ceil_div(g.out, 32), g.in, g.k * g.k);
    pack_out_last<<<weights, 32>>>(FLOATS(c, PACKED), FLOATS(c, WEIGHT), g.in, g.out);
    direct_packed<<<y_grid(&g, c->block), c->block>>>(FLOATS(c, OUT), FLOATS(c, X), FLOATS(c, PACKED), g);
}
static void run_packed_data(const call *c) {
    const geometry g = geometry_of(c->dim);
    pack_in_last<<<dim3(ceil_div(g.in, 32), g.out, g.k * g.k), 32>>>(FLOATS(c, PACKED), FLOATS(c, WEIGHT), g.in, g.out);
    direct_packed_data<<<x_grid(&g, c->block), c->block>>>(FLOATS(c, OUT), FLOATS(c, X), FLOATS(c, PACKED), g);
}

// ---------------------------------------------------------------------------------------------- 4, 5: what is gathered
// The result is C[m][n] = sum_k A(m, k) B(n, k). a() and b() return the address of an element of the operands, or NULL
// where it is 0; four neighbours from there are contiguous along k, or along m and n where K_OUTER is set, if channels
// come in fours.

struct forward_gather {
    enum { K_OUTER = 0 };
    geometry g;
    const float *x, *packed;  // packed [out][ky][kx][in]
    __device__ __forceinline__ const float *a(int m, int k) const {
        const int ox = m % g.out_w, oy = m / g.out_w % g.out_h, image = m / g.out_w / g.out_h, i = k % g.in;
        const int position = k / g.in;
        const int iy = oy * g.stride - g.pad + position / g.k, ix = ox * g.stride - g.pad + position % g.k;
        if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) return nullptr;
        return x + (((size_t)image * g.h + iy) * g.w + ix) * g.in + i;
    }
    __device__ __forceinline__ const float *b(int n, int k) const { return packed + (size_t)n * g.k * g.k * g.in + k; }
};
struct data_gather {
    enum { K_OUTER = 0 };
    geometry g;
    const float *dy, *packed;  // packed [in][ky][kx][out]
    __device__ __forceinline__ const float *a(int m, int k) const {
        const int ix = m % g.w, iy = m / g.w % g.h, image = m / g.w / g.h, o = k % g.out, position = k / g.out;
        const int ty = iy + g.pad - position / g.k, tx = ix + g.pad - position % g.k, oy = ty / g.stride;
        const int ox = tx / g.stride;
        if (ty < 0 || tx < 0 || oy * g.stride != ty || ox * g.stride != tx || oy >= g.out_h || ox >= g.out_w)
            return nullptr;
        return dy + (((size_t)image * g.out_h + oy) * g.out_w + ox) * g.out + o;
    }
    __device__ __forceinline__ const float *b(int n, int k) const { return packed + (size_t)n * g.k * g.k * g.out + k; }
};
struct weight_gather {
    enum { K_OUTER = 1 };
    geometry g;
    const float *x, *dy;
    __device__ __forceinline__ const float *a(int m, int k) const { return dy + (size_t)k * g.out + m; }
    __device__ __forceinline__ const float *b(int n, int k) const {
        const forward_gather window = {g, x, nullptr};
        return window.a(k, n);
    }
};

// ---------------------------------------------------------------------------------------------------- 4: implicit_gemm
enum { SIDE = 64, DEPTH = 16, EACH = 8 };  // a block of 64 threads computes 64 x 64, a thread 8 x 8

// part[blockIdx.z][m][n] = the sum over its share of k.
template <class GATHER> __global__ void implicit_gemm(float *part, GATHER gather, extent e) {
    __shared__ float as[DEPTH][SIDE], bs[DEPTH][SIDE];
    const int t = threadIdx.x, x = t % 8 * EACH, y = t / 8 * EACH, m0 = blockIdx.y * SIDE, n0 = blockIdx.x * SIDE;
    const int share = (e.k + e.splits - 1) / e.splits, begin = blockIdx.z * share, end = min(e.k, begin + share);
    float sum[EACH][EACH] = {{0}};
    for (int k0 = begin; k0 < end; k0 += DEPTH) {
        for (int q = t; q < SIDE * DEPTH; q += SIDE) {
            const int r = GATHER::K_OUTER ? q % SIDE : q / DEPTH;
            const int l = GATHER::K_OUTER ? q / SIDE : q % DEPTH, k = k0 + l;
            const float *a = m0 + r < e.m && k < end ? gather.a(m0 + r, k) : nullptr;
            const float *b = n0 + r < e.n && k < end ? gather.b(n0 + r, k) : nullptr;
            as[l][r] = a ? *a : 0.0f;
            bs[l][r] = b ? *b : 0.0f;
        }
        __syncthreads();
        UNROLL for (int l = 0; l < DEPTH; l++) {
            float left[EACH], right[EACH];
            UNROLL for (int i = 0; i < EACH; i++) {
                left[i] = as[l][y + i];
                right[i] = bs[l][x + i];
            }
            UNROLL for (int i = 0; i < EACH; i++) {
                UNROLL for (int j = 0; j < EACH; j++) sum[i][j] += left[i] * right[j];
            }
        }
        __syncthreads();
    }
    UNROLL for (int i = 0; i < EACH; i++) {
        UNROLL for (int j = 0; j < EACH; j++)
            if (m0 + y + i < e.m && n0 + x + j < e.n)
                part[((size_t)blockIdx.z * e.m + m0 + y + i) * e.n + n0 + x + j] = sum[i][j];
    }
}

// ------------------------------------------------------------------------------------------------------ 5: tensor_tf32
// Blocks of 128 x 64 results, four warps of 64 x 32 each, in tiles of 16 x 8. Tiles are [row][16 k], rows padded to 20,
// or where k is outer [16 k][row], padded by 8: in both a fragment's 32 loads lie in 32 banks.
enum { BLOCK_M = 128, BLOCK_N = 64, K_STEP = 16, STAGES = 4 };
struct conv_stage {
    float a[K_STEP * (BLOCK_M + 8) > BLOCK_M * 20 ? K_STEP * (BLOCK_M + 8) : BLOCK_M * 20];
    float b[K_STEP * (BLOCK_N + 8) > BLOCK_N * 20 ? K_STEP * (BLOCK_N + 8) : BLOCK_N * 20];
};
template <int ROWS, int K_OUTER>
static __device__ __forceinline__ int place(int row, int k) { return K_OUTER ? k * (ROWS + 8) + row : row * 20 + k; }

// Copies chunk q of a tile: four k's of a row, or four rows of a k. address(row, k) says from where.
template <int ROWS, int K_OUTER, class ADDRESS>
static __device__ __forceinline__ void copy_chunk(async_copies &copies, float *to, int q, int r0, int k0, int rows,
                                                  int end, ADDRESS address) {
    const int r = K_OUTER ? q % (ROWS / 4) * 4 : q / (K_STEP / 4);
    const int l = K_OUTER ? q / (ROWS / 4) : q % (K_STEP / 4) * 4;
    const float *p = r0 + r < rows && k0 + l < end ? address(r0 + r, k0 + l) : nullptr;
    if (p) copies.copy16(to + place<ROWS, K_OUTER>(r, l), p, 16);
    else copies.copy16(to + place<ROWS, K_OUTER>(r, l), address(0, 0, 0), 0);
}
template <class GATHER> struct address_of_a {
    GATHER gather;
    __device__ __forceinline__ const float *operator()(int m, int k) const { return gather.a(m, k); }
    __device__ __forceinline__ const float *operator()(int, int, int) const {
        return gather.b(0, 0) ? gather.b(0, 0) : gather.a(0, 0);
    }
};
template <class GATHER> struct address_of_b {
    GATHER gather;
    __device__ __forceinline__ const float *operator()(int n, int k) const { return gather.b(n, k); }
    __device__ __forceinline__ const float *operator()(int, int, int) const {
        return gather.a(0, 0) ? gather.a(0, 0) : gather.b(0, 0);
    }
};

template <class GATHER> __global__ void tensor_tf32(float *part, GATHER gather, extent e) {
    extern __shared__ __align__(16) unsigned char ring[];
    conv_stage *stage = (conv_stage *)ring;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int m0 = blockIdx.y * BLOCK_M, n0 = blockIdx.x * BLOCK_N, wm = warp / 2 * 64, wn = warp % 2 * 32;
    const int steps = (e.k + K_STEP - 1) / K_STEP, share = (steps + e.splits - 1) / e.splits * K_STEP;
    const int begin = blockIdx.z * share, end = min(e.k, begin + share);
    const int tiles = end > begin ? (end - begin + K_STEP - 1) / K_STEP : 0;
    const address_of_a<GATHER> from_a = {gather};
    const address_of_b<GATHER> from_b = {gather};
    async_copies copies;
    float d[4][4][4];
    UNROLL for (int r = 0; r < 4; r++) {
        UNROLL for (int s = 0; s < 4; s++) {
            UNROLL for (int i = 0; i < 4; i++) d[r][s][i] = 0.0f;
        }
    }
    for (int next = 1 - STAGES; next < tiles; next++) {  // tile `next` + STAGES - 1 is fetched, tile `next` multiplied
        if (next >= 0) {
            copies.wait<STAGES - 2>();
            __syncthreads();
        }
        const int coming = next + STAGES - 1, k0 = begin + coming * K_STEP;
        if (coming < tiles) {
            conv_stage *s = stage + coming % STAGES;
            for (int q = threadIdx.x; q < BLOCK_M * K_STEP / 4; q += 128)
                copy_chunk<BLOCK_M, GATHER::K_OUTER>(copies, s->a, q, m0, k0, e.m, end, from_a);
            for (int q = threadIdx.x; q < BLOCK_N * K_STEP / 4; q += 128)
                copy_chunk<BLOCK_N, GATHER::K_OUTER>(copies, s->b, q, n0, k0, e.n, end, from_b);
        }
        copies.commit();
        if (next < 0) continue;
        const float *as = stage[next % STAGES].a, *bs = stage[next % STAGES].b;
        UNROLL for (int l = 0; l < K_STEP; l += 8) {
            unsigned fa[4][4], fb[4][2];
            UNROLL for (int r = 0; r < 4; r++) {
                UNROLL for (int i = 0; i < 4; i++) {
                    const int row = wm + 16 * r + g + i % 2 * 8, depth = l + t + i / 2 * 4;
                    fa[r][i] = tf32_of(as[place<BLOCK_M, GATHER::K_OUTER>(row, depth)]);
                }
            }
            UNROLL for (int s = 0; s < 4; s++) {
                UNROLL for (int i = 0; i < 2; i++)
                    fb[s][i] = tf32_of(bs[place<BLOCK_N, GATHER::K_OUTER>(wn + 8 * s + g, l + t + 4 * i)]);
            }
            UNROLL for (int r = 0; r < 4; r++) {
                UNROLL for (int s = 0; s < 4; s++) mma_tf32(d[r][s], fa[r], fb[s]);
            }
        }
    }
    copies.wait<0>();
    UNROLL for (int r = 0; r < 4; r++) {
        UNROLL for (int s = 0; s < 4; s++) {
            UNROLL for (int i = 0; i < 4; i++) {
                const int m = m0 + wm + 16 * r + g + i / 2 * 8, n = n0 + wn + 8 * s + 2 * t + i % 2;
                if (m < e.m && n < e.n) part[((size_t)blockIdx.z * e.m + m) * e.n + n] = d[r][s][i];
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------- launches of 4 and 5

// packed[in][k][out] = w[out][in][k]. Thread o, blockIdx.y: in, blockIdx.z: k.
static __global__ void pack_for_data(float *__restrict__ packed, const float *__restrict__ w, int in, int out) {
    const int o = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y, k = blockIdx.z, kk = gridDim.z;
    if (o < out) packed[((size_t)i * kk + k) * out + o] = w[((size_t)o * in + i) * kk + k];
}
template <class GATHER> static void launch(int tensor, float *to, GATHER gather, extent e) {
    const int bytes = STAGES * (int)sizeof(conv_stage);
    if (tensor) {
        if (!more_shared_memory(tensor_tf32<GATHER>, bytes)) return;
        const dim3 grid(ceil_div(e.n, BLOCK_N), ceil_div(e.m, BLOCK_M), e.splits);
        tensor_tf32<GATHER><<<grid, 128, bytes>>>(to, gather, e);
    } else {
        const dim3 grid(ceil_div(e.n, SIDE), ceil_div(e.m, SIDE), e.splits);
        implicit_gemm<GATHER><<<grid, SIDE>>>(to, gather, e);
    }
}
static void run_product(const call *c, int pass, int tensor) {
    const geometry g = geometry_of(c->dim);
    const extent e = extent_of(&g, pass);
    const int kk = g.k * g.k;
    float *packed = FLOATS(c, PACKED), *part = FLOATS(c, PART);
    if (pass == FORWARD) {
        conv_pack_kernel<<<conv_grid(g.in, g.out, kk), CONV_BLOCK>>>(packed, FLOATS(c, WEIGHT), g.in, kk);
        const forward_gather gather = {g, FLOATS(c, X), packed};
        launch(tensor, FLOATS(c, OUT), gather, e);
    } else if (pass == DATA) {
        pack_for_data<<<conv_grid(g.out, g.in, kk), CONV_BLOCK>>>(packed, FLOATS(c, WEIGHT), g.in, g.out);
        const data_gather gather = {g, FLOATS(c, X), packed};
        launch(tensor, FLOATS(c, OUT), gather, e);
    } else {  // partial results [splits][out][ky][kx][in], their sum, and its transposition to [out][in][ky][kx]
        const weight_gather gather = {g, FLOATS(c, X), FLOATS(c, WEIGHT)};
        launch(tensor, part, gather, e);
        column_sums(packed, part, e.splits, e.m * e.n);
        conv_unpack_kernel<<<conv_grid(g.in, g.out, kk), CONV_BLOCK>>>(FLOATS(c, OUT), packed, g.in, kk);
    }
}
static void run_implicit_forward(const call *c) { run_product(c, FORWARD, 0); }
static void run_implicit_data(const call *c) { run_product(c, DATA, 0); }
static void run_implicit_weight(const call *c) { run_product(c, WEIGHTS, 0); }
static void run_tensor_forward(const call *c) { run_product(c, FORWARD, 1); }
static void run_tensor_data(const call *c) { run_product(c, DATA, 1); }
static void run_tensor_weight(const call *c) { run_product(c, WEIGHTS, 1); }
static int in_fours(const int *dim) { return dim[3] % 4 == 0; }                       // chunks along the input channels
static int out_fours(const int *dim) { return dim[4] % 4 == 0; }                      // along the output channels
static int all_fours(const int *dim) { return dim[3] % 4 == 0 && dim[4] % 4 == 0; }

// ------------------------------------------------------------------------------------------------- 3: im2col, conv.cuh
static gemm_context *context(void) {
    static gemm_context g;
    static int ready;
    char err[256];
    if (!ready && gemm_create(&g, GEMM_FP32, err, sizeof err)) {
        fprintf(stderr, "%s\n", err);
        exit(1);
    }
    ready = 1;
    return &g;
}
// The transformed weights that a forward pass leaves to the backward pass, made once per shape and algorithm: the
// weights of all sets of buffers are the same.
static float *transformed_weights(const call *c, const conv_plan *p) {
    static float *kept;
    static conv_plan of;
    if (kept && !memcmp(&of, p, sizeof of)) return kept;
    const size_t in = (size_t)(p->h * p->w) * (size_t)p->in_c, out = (size_t)(p->out_h * p->out_w) * (size_t)p->out_c;
    float *some = device_floats(in + out + conv_work_floats(p, 1));
    CUDA_CHECK(cudaFree(kept));
    kept = device_floats(conv_transformed_floats(p));
    of = *p;
    conv_forward(context(), p, 1, some, FLOATS(c, WEIGHT), NULL, 0, some + in, kept, some + in + out);
    device_synchronize();
    CUDA_CHECK(cudaFree(some));
    return kept;
}
static void run_conv_cuh(const call *c, int pass, int im2col) {
    const geometry g = geometry_of(c->dim);
    const conv_plan p = plan_of(&g, im2col);
    float *u = FLOATS(c, PACKED), *work = FLOATS(c, PART);
    if (pass == FORWARD) {
        conv_forward(context(), &p, g.images, FLOATS(c, X), FLOATS(c, WEIGHT), NULL, 0, FLOATS(c, OUT), u, work);
    } else if (pass == WEIGHTS) {
        conv_backward(context(), &p, g.images, FLOATS(c, X), NULL, FLOATS(c, WEIGHT), FLOATS(c, OUT), NULL, 0, u, work);
    } else {  // any x will do: the gradient of the weights is thrown away
        float *x = work + conv_work_floats(&p, g.images);
        conv_backward(context(), &p, g.images, x, FLOATS(c, WEIGHT), FLOATS(c, X), u, FLOATS(c, OUT), 0,
                      transformed_weights(c, &p), work);
    }
}
static void run_im2col_forward(const call *c) { run_conv_cuh(c, FORWARD, 1); }
static void run_im2col_data(const call *c) { run_conv_cuh(c, DATA, 1); }
static void run_im2col_weight(const call *c) { run_conv_cuh(c, WEIGHTS, 1); }
static void run_conv_forward(const call *c) { run_conv_cuh(c, FORWARD, 0); }
static void run_conv_data(const call *c) { run_conv_cuh(c, DATA, 0); }
static void run_conv_weight(const call *c) { run_conv_cuh(c, WEIGHTS, 0); }

// --------------------------------------------------------------------------------------------------------------- cuDNN
#ifdef USE_CUDNN
static void cudnn_check(cudnnStatus_t status, int line) {
    if (status == CUDNN_STATUS_SUCCESS) return;
    fprintf(stderr, "convolution.cu:%d: cuDNN: %s\n", line, cudnnGetErrorString(status));
    exit(1);
}
#define CUDNN_CHECK(call) cudnn_check((call), __LINE__)

// What a pass on a shape needs beside its data: made once, so that a timed run holds no descriptors and no choice of an
// algorithm.
typedef struct cudnn_plan {
    int pass, tf32, dim[MAX_DIMS];
    cudnnTensorDescriptor_t x, y;
    cudnnFilterDescriptor_t w;
    cudnnConvolutionDescriptor_t conv;
    int algorithm;               // of the pass's enumeration
    size_t bytes;                // of workspace
} cudnn_plan;
static cudnnHandle_t cudnn_handle(void) {
    static cudnnHandle_t handle;
    if (!handle) CUDNN_CHECK(cudnnCreate(&handle));
    return handle;
}
// The first of the algorithms, which cuDNN lists by expected time, that works and gives the same bits every time: no
// atomics.
template <class PERF> static void choose_algorithm(cudnn_plan *p, const PERF *list, int n) {
    for (int i = 0; i < n; i++) {
        if (list[i].status != CUDNN_STATUS_SUCCESS || list[i].determinism != CUDNN_DETERMINISTIC) continue;
        p->algorithm = (int)list[i].algo;
        p->bytes = list[i].memory;
        return;
    }
    fprintf(stderr, "convolution.cu: cuDNN has no deterministic algorithm for this shape\n");
    exit(1);
}
static void describe_cudnn(cudnn_plan *p, const geometry *g) {
    CUDNN_CHECK(cudnnCreateTensorDescriptor(&p->x));
    CUDNN_CHECK(cudnnCreateTensorDescriptor(&p->y));
    CUDNN_CHECK(cudnnCreateFilterDescriptor(&p->w));
    CUDNN_CHECK(cudnnCreateConvolutionDescriptor(&p->conv));
    CUDNN_CHECK(cudnnSetTensor4dDescriptor(p->x, CUDNN_TENSOR_NHWC, CUDNN_DATA_FLOAT, g->images, g->in, g->h, g->w));
    CUDNN_CHECK(
        cudnnSetTensor4dDescriptor(p->y, CUDNN_TENSOR_NHWC, CUDNN_DATA_FLOAT, g->images, g->out, g->out_h, g->out_w));
    CUDNN_CHECK(cudnnSetFilter4dDescriptor(p->w, CUDNN_DATA_FLOAT, CUDNN_TENSOR_NHWC, g->out, g->in, g->k, g->k));
    CUDNN_CHECK(cudnnSetConvolution2dDescriptor(
        p->conv, g->pad, g->pad, g->stride, g->stride, 1, 1, CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT));
    CUDNN_CHECK(cudnnSetConvolutionMathType(p->conv, p->tf32 ? CUDNN_DEFAULT_MATH : CUDNN_FMA_MATH));
}
static void plan_cudnn(cudnn_plan *p, const geometry *g) {
    enum { MOST = 16 };
    int n = 0;
    describe_cudnn(p, g);
    if (p->pass == FORWARD) {
        cudnnConvolutionFwdAlgoPerf_t list[MOST];
        CUDNN_CHECK(cudnnGetConvolutionForwardAlgorithm_v7(cudnn_handle(), p->x, p->w, p->conv, p->y, MOST, &n, list));
        choose_algorithm(p, list, n);
    } else if (p->pass == DATA) {
        cudnnConvolutionBwdDataAlgoPerf_t list[MOST];
        CUDNN_CHECK(
            cudnnGetConvolutionBackwardDataAlgorithm_v7(cudnn_handle(), p->w, p->y, p->conv, p->x, MOST, &n, list));
        choose_algorithm(p, list, n);
    } else {
        cudnnConvolutionBwdFilterAlgoPerf_t list[MOST];
        CUDNN_CHECK(
            cudnnGetConvolutionBackwardFilterAlgorithm_v7(cudnn_handle(), p->x, p->y, p->conv, p->w, MOST, &n, list));
        choose_algorithm(p, list, n);
    }
}
// The plan of a call, made at its first run; validation comes before the timing.
static const cudnn_plan *cudnn_plan_of(const call *c, int pass, int tf32) {
    enum { MOST = 64 };
    static cudnn_plan plans[MOST];
    static int n;
    const geometry g = geometry_of(c->dim);
    cudnn_plan wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.pass = pass;
    wanted.tf32 = tf32;
    memcpy(wanted.dim, c->dim, sizeof wanted.dim);
    for (int i = 0; i < n; i++)
        if (plans[i].pass == pass && plans[i].tf32 == tf32 && !memcmp(plans[i].dim, wanted.dim, sizeof wanted.dim))
            return &plans[i];
    if (n == MOST) {
        fprintf(stderr, "convolution.cu: more than %d shapes for cuDNN\n", MOST);
        exit(1);
    }
    plan_cudnn(&wanted, &g);
    plans[n] = wanted;
    return &plans[n++];
}
// Device memory of at least that many bytes, the same for all calls.
static void *cudnn_workspace(size_t bytes) {
    static void *space;
    static size_t size;
    if (bytes <= size) return space;
    CUDA_CHECK(cudaFree(space));
    CUDA_CHECK(cudaMalloc(&space, bytes));
    size = bytes;
    return space;
}

// One pass by cuDNN's fastest deterministic algorithm. tf32: tensor cores allowed. Weights come and go as the trainers
// store them, [out][in][k][k]; their (un)packing to cuDNN's NHWC filters [out][k][k][in] is part of the run, as it is
// for the other variants.
static void run_cudnn(const call *c, int pass, int tf32) {
    const geometry g = geometry_of(c->dim);
    const cudnn_plan *p = cudnn_plan_of(c, pass, tf32);
    const float one = 1, zero = 0;
    void *space = cudnn_workspace(p->bytes);
    float *packed = FLOATS(c, PACKED);
    if (pass != WEIGHTS)
        conv_pack_kernel<<<conv_grid(g.in, g.out, g.k * g.k), CONV_BLOCK>>>(packed, FLOATS(c, WEIGHT), g.in, g.k * g.k);
    if (pass == FORWARD) {
        CUDNN_CHECK(cudnnConvolutionForward(cudnn_handle(), &one, p->x, c->at[X], p->w, packed, p->conv,
                                            (cudnnConvolutionFwdAlgo_t)p->algorithm, space, p->bytes, &zero, p->y,
                                            c->at[OUT]));
    } else if (pass == DATA) {
        CUDNN_CHECK(cudnnConvolutionBackwardData(cudnn_handle(), &one, p->w, packed, p->y, c->at[X], p->conv,
                                                 (cudnnConvolutionBwdDataAlgo_t)p->algorithm, space, p->bytes, &zero,
                                                 p->x, c->at[OUT]));
    } else {
        CUDNN_CHECK(cudnnConvolutionBackwardFilter(cudnn_handle(), &one, p->x, c->at[X], p->y, c->at[WEIGHT], p->conv,
                                                   (cudnnConvolutionBwdFilterAlgo_t)p->algorithm, space, p->bytes,
                                                   &zero, p->w, packed));
        conv_unpack_kernel<<<conv_grid(g.in, g.out, g.k * g.k), CONV_BLOCK>>>(FLOATS(c, OUT), packed, g.in, g.k * g.k);
    }
}
#define CUDNN(name, pass, tf32) static void name(const call *c) { run_cudnn(c, pass, tf32); }
#define WITH_CUDNN(launch) (launch)
CUDNN(cudnn_forward, FORWARD, 0)
CUDNN(cudnn_forward_tf32, FORWARD, 1)
CUDNN(cudnn_data, DATA, 0)
CUDNN(cudnn_data_tf32, DATA, 1)
CUDNN(cudnn_weight, WEIGHTS, 0)
CUDNN(cudnn_weight_tf32, WEIGHTS, 1)
#else
#define WITH_CUDNN(launch) NULL
#endif

static const variant forward_variants[] = {
    {"direct", "a thread per element of y", run_direct_forward, FP32, 0, {32, 64, 128}, NULL, 0},
    {"direct_packed", "weights reordered for neighbouring threads",
     run_packed_forward, FP32, 0, {32, 64, 128}, NULL, 0},
    {"im2col", "windows copied to rows, then a matrix product", run_im2col_forward, FP32, 0, {0}, NULL, 0},
    {"implicit_gemm", "windows gathered into the product's tiles", run_implicit_forward, FP32, 0, {0}, NULL, 0},
    {"tensor_tf32", "the same with tensor cores and cp.async", run_tensor_forward, TF32, EMULATED, {0}, in_fours, 0},
    {"conv.cuh", "what the trainers use: Winograd or im2col", run_conv_forward, FP32, 0, {0}, NULL, 30},
    {"cudnn", "cuDNN in fp32", WITH_CUDNN(cudnn_forward), FP32, GPU_ONLY, {0}, NULL, 30},
    {"cudnn_tf32", "cuDNN with TF32", WITH_CUDNN(cudnn_forward_tf32), TF32, GPU_ONLY, {0}, NULL, 2},
};
static const variant data_variants[] = {
    {"direct", "a thread per element of dx", run_direct_data, FP32, 0, {32, 64, 128}, NULL, 0},
    {"direct_packed", "weights reordered for neighbouring threads", run_packed_data, FP32, 0, {32, 64, 128}, NULL, 0},
    {"im2col", "a matrix product, then windows added up (both gradients)", run_im2col_data, FP32, 0, {0}, NULL, 0},
    {"implicit_gemm", "dy gathered into the product's tiles", run_implicit_data, FP32, 0, {0}, NULL, 0},
    {"tensor_tf32", "the same with tensor cores and cp.async", run_tensor_data, TF32, EMULATED, {0}, out_fours, 0},
    {"conv.cuh", "what the trainers use: Winograd or im2col (both gradients)", run_conv_data, FP32, 0, {0}, NULL, 30},
    {"cudnn", "cuDNN in fp32", WITH_CUDNN(cudnn_data), FP32, GPU_ONLY, {0}, NULL, 30},
    {"cudnn_tf32", "cuDNN with TF32", WITH_CUDNN(cudnn_data_tf32), TF32, GPU_ONLY, {0}, NULL, 2},
};
static const variant weight_variants[] = {
    {"direct", "a thread per element of dw", run_direct_weight, FP32, 0, {32, 64, 128}, NULL, 2},
    {"im2col", "windows copied to rows, then a matrix product", run_im2col_weight, FP32, 0, {0}, NULL, 0},
    {"implicit_gemm", "windows gathered, the sum over pixels split", run_implicit_weight, FP32, 0, {0}, NULL, 0},
    {"tensor_tf32", "the same with tensor cores and cp.async", run_tensor_weight, TF32, EMULATED, {0}, all_fours, 0},
    {"conv.cuh", "what the trainers use: Winograd or im2col", run_conv_weight, FP32, 0, {0}, NULL, 30},
    {"cudnn", "cuDNN in fp32", WITH_CUDNN(cudnn_weight), FP32, GPU_ONLY, {0}, NULL, 30},
    {"cudnn_tf32", "cuDNN with TF32", WITH_CUDNN(cudnn_weight_tf32), TF32, GPU_ONLY, {0}, NULL, 2},
};

#define DIMS "images h w in out kernel stride pad+1"
#define SMALL_SHAPES "1x1x1x1x1x1x1x1 1x4x4x1x3x3x1x2 2x5x7x3x5x3x1x2 1x8x6x4x8x3x2x2 "
#define TEST_SHAPES SMALL_SHAPES "2x9x9x8x12x3x1x2 1x6x6x20x36x1x1x1 1x4x4x8x16x4x1x1 2x7x5x12x8x3x2x1"
#define CPU_SHAPES "8x32x32x96x96x3x1x2 8x16x16x192x192x3x1x2"
#define GPU_SHAPES "128x32x32x96x96x3x1x2 128x32x32x96x192x3x2x2 128x16x16x192x192x3x1x2 128x8x8x192x192x3x1x1"
static const operation operations[] = {
    {"conv_forward", "y = conv(x, w)", DIMS, forward_problem, forward_reference, VARIANTS(forward_variants),
     TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"conv_backward_data", "dx = adjoint of conv(., w) applied to dy", DIMS, data_problem, data_reference,
     VARIANTS(data_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"conv_backward_weight", "dw = sum over pixels of dy times the window of x", DIMS, weight_problem, weight_reference,
     VARIANTS(weight_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
