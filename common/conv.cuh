// conv.cuh -- 2-D convolution by hand, forward and backward: im2col or Winograd around the matrix
// product of gemm.h.
//
// Activations are NHWC: x[image][y][x][channel]. Weights are PyTorch's
// [out][in][kernel_h][kernel_w]. fp32. The same kernels run on a GPU and, through cuda_cpu.h, on a
// CPU.
//
//     conv_plan p = conv_make_plan(in_c, h, w, out_c, kernel_h, kernel_w, stride, pad, limit);
//     p.algorithm             the plan's choice; a caller may set CONV_IM2COL instead (see below)
//     p.out_h, p.out_w        size of the output
//     float *work             conv_work_floats(&p, images) floats of scratch; layers that run in
//                             turn share it
//     float *u                conv_transformed_floats(&p) floats: the transformed weights, kept
//                             from forward to backward
//     conv_forward(&gemm, &p, images, x, weight, bias, relu, y, u, work);
//                             y = relu(conv(x) + bias); bias NULL: none
//     conv_backward(&gemm, &p, images, x, weight, dy, dweight, dx, accumulate, u, work);
//                             dweight = gradient; dx = (accumulate: +=) gradient of x, or NULL
//
// Three algorithms:
//     CONV_DIRECT     The rows of x are already the columns: 1x1 with stride 1, and a kernel as
//                     large as the image (a linear layer after a flatten). One product, no copy.
//     CONV_IM2COL     Any shape: windows are copied to rows [pixel][kernel_h * kernel_w * in_c], a
//                     chunk of images at a time.
//     CONV_WINOGRAD   3x3 with stride 1: F(4x4, 3x3) of Winograd as used by Lavin and Gray
//                     (arXiv 1509.09308), 4 times fewer multiplications. Transformed 6x6 tiles of x
//                     meet transformed weights in 36 products [tiles][in] [in][out]. The
//                     interpolation points are 0, +-1/sqrt(2), +-sqrt(2), infinity; their rounding
//                     errors are smaller than those of the usual 0, +-1, +-2, infinity. The
//                     backward pass is the exact adjoint of the forward's three linear maps, so it
//                     needs no other transforms.
// All sums are in a fixed order: same device, same call, same bits. Scaling channels by powers of
// two commutes with every operation, so rescaled networks give the same bits (barring over- and
// underflow). Winograd subtracts: where all terms are positive and small ones matter (diag(G):
// squared weights), use CONV_IM2COL.
//
// Working memory: a chunk of images at a time, at most `limit` floats for windows or tiles, but at
// least one image; never the whole batch. Kernels put channels on neighbouring threads: coalesced
// on a GPU, vectorised on a CPU.
#pragma once
#include <stddef.h>
#include "common/cuda_common.h"
#include "common/gemm.h"
#include "common/layers.cuh"  // bias_relu

enum { CONV_DIRECT, CONV_IM2COL, CONV_WINOGRAD };
enum { CONV_BLOCK = 128 };   // threads of a block, along the channels
enum { CONV_TILE = 4 };      // Winograd: outputs of a tile along each side
enum { CONV_POINTS = 36 };   // elements of a transformed tile, 6 x 6
enum { CONV_PAD = 16 };      // floats between the matrices of two points: their sizes are powers of
                             // two, and without the gap they would meet in few sets of the cache

typedef struct conv_plan {
    int in_c, h, w;                  // input [h][w][in_c]
    int out_c, kernel_h, kernel_w, stride, pad;
    int out_h, out_w;                // output [out_h][out_w][out_c]
    int algorithm;
    size_t limit;                    // floats of work a chunk may use
} conv_plan;

// Output size of a convolution or pooling along one side.
static inline int conv_out_size(int size, int kernel, int stride, int pad) {
    return (size + 2 * pad - kernel) / stride + 1;
}

// Plans one layer; limit: see the top. The caller has checked that the kernel fits into the padded
// image.
static inline conv_plan conv_make_plan(int in_c, int h, int w, int out_c, int kernel_h,
                                       int kernel_w, int stride, int pad, size_t limit) {
    conv_plan p = {in_c, h, w, out_c, kernel_h, kernel_w, stride, pad, 0, 0, CONV_IM2COL, limit};
    p.out_h = conv_out_size(h, kernel_h, stride, pad);
    p.out_w = conv_out_size(w, kernel_w, stride, pad);
    const int pointwise = kernel_h == 1 && kernel_w == 1 && stride == 1;
    const int whole = kernel_h == h && kernel_w == w;
    const int three = kernel_h == 3 && kernel_w == 3 && stride == 1;
    if (pad == 0 && (pointwise || whole)) p.algorithm = CONV_DIRECT;
    else if (three && in_c >= 8 && out_c >= 8) p.algorithm = CONV_WINOGRAD;
    return p;
}

static inline int conv_tiles(const conv_plan *p) {
    return ceil_div(p->out_h, CONV_TILE) * ceil_div(p->out_w, CONV_TILE);
}
static inline int conv_pixels(const conv_plan *p) { return p->out_h * p->out_w; }
static inline int conv_columns(const conv_plan *p) { return p->kernel_h * p->kernel_w * p->in_c; }
static inline size_t conv_weights(const conv_plan *p) {
    return (size_t)p->out_c * (size_t)conv_columns(p);
}

// Floats of an image before and after the convolution.
static inline size_t conv_in_floats(const conv_plan *p) {
    return (size_t)p->h * (size_t)p->w * (size_t)p->in_c;
}
static inline size_t conv_out_floats(const conv_plan *p) {
    return (size_t)p->out_h * (size_t)p->out_w * (size_t)p->out_c;
}

// Floats of one image's share of work, and images per chunk.
static inline size_t conv_image_floats(const conv_plan *p) {
    if (p->algorithm == CONV_WINOGRAD)
        return (size_t)CONV_POINTS * (size_t)conv_tiles(p) * (size_t)(p->in_c + p->out_c);
    if (p->algorithm == CONV_IM2COL) return (size_t)conv_pixels(p) * (size_t)conv_columns(p);
    return 0;
}
static inline int conv_chunk(const conv_plan *p, int images) {
    const size_t one = conv_image_floats(p);
    const int rows = p->algorithm == CONV_WINOGRAD ? conv_tiles(p) : conv_pixels(p);
    size_t n = one ? p->limit / one : (size_t)images;
    if (one && n > 65535 / (size_t)rows) n = 65535 / (size_t)rows;  // blockIdx.y
    if (n < 1) return 1;
    return n < (size_t)images ? (int)n : images;
}

// Floats from one point's matrix [rows][channels] to the next.
static inline size_t conv_point_stride(int rows, int channels) {
    return (size_t)rows * (size_t)channels + CONV_PAD;
}

// Floats of transformed weights: Winograd [36][out][in]; else weights as
// [out][kernel_h][kernel_w][in], unless they have that order already.
static inline size_t conv_transformed_floats(const conv_plan *p) {
    if (p->algorithm == CONV_WINOGRAD) return CONV_POINTS * conv_point_stride(p->out_c, p->in_c);
    return p->kernel_h * p->kernel_w == 1 ? 0 : conv_weights(p);
}

// Floats of scratch for `images` images at a time: a chunk of windows or tiles, and the gradient of
// the transformed weights.
static inline size_t conv_work_floats(const conv_plan *p, int images) {
    const size_t chunk = (size_t)conv_chunk(p, images);
    return chunk * conv_image_floats(p) + 2 * CONV_POINTS * CONV_PAD + conv_transformed_floats(p);
}

// -------------------------------------------------------------------------- im2col and its adjoint

// Weights to the order of the columns: packed[o][k][i] = weight[o][i][k], k over the kernel
// positions.
static __global__ void conv_pack_kernel(float *__restrict__ packed,
                                        const float *__restrict__ weight, int in_c, int positions) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, o = blockIdx.y, k = blockIdx.z;
    if (i >= in_c) return;
    packed[((size_t)o * positions + k) * in_c + i] = weight[((size_t)o * in_c + i) * positions + k];
}
static __global__ void conv_unpack_kernel(float *__restrict__ weight,
                                          const float *__restrict__ packed, int in_c,
                                          int positions) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, o = blockIdx.y, k = blockIdx.z;
    if (i >= in_c) return;
    weight[((size_t)o * in_c + i) * positions + k] = packed[((size_t)o * positions + k) * in_c + i];
}

// columns[pixel][ky][kx][c] = x at the window of output pixel blockIdx.y of the chunk, zero outside
// the image. In NHWC a window's row ky = blockIdx.z is one run of kernel_w * in_c floats; a thread
// copies one of them.
static __global__ void conv_im2col_kernel(float *__restrict__ columns, const float *__restrict__ x,
                                          conv_plan p) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    const int run = p.kernel_w * p.in_c, row = p.w * p.in_c;
    const int pixel = blockIdx.y, pixels = p.out_h * p.out_w;
    const int image = pixel / pixels, rest = pixel % pixels;
    const int y = rest / p.out_w * p.stride - p.pad + (int)blockIdx.z;
    const int first = (rest % p.out_w * p.stride - p.pad) * p.in_c;
    if (j >= run) return;
    // Outside the image: `at` is no index of its row. A row outside has no indices.
    const int at = first + j, limit = (unsigned)y < (unsigned)p.h ? row : 0;
    const float *line = x + ((size_t)image * p.h + min(max(y, 0), p.h - 1)) * row;
    const size_t to = ((size_t)pixel * p.kernel_h + blockIdx.z) * run + j;
    columns[to] = (unsigned)at < (unsigned)limit ? line[at] : 0.0f;
}

// Adjoint, one kernel position (ky, kx) per launch, so that no two threads add to the same element:
// dx[pixel of the window] += columns[pixel][ky][kx][c].
static __global__ void conv_col2im_kernel(float *__restrict__ dx, const float *__restrict__ columns,
                                          int ky, int kx, conv_plan p) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int pixel = blockIdx.y, pixels = p.out_h * p.out_w;
    const int image = pixel / pixels, rest = pixel % pixels;
    const int y = rest / p.out_w * p.stride - p.pad + ky;
    const int x = rest % p.out_w * p.stride - p.pad + kx;
    if (c >= p.in_c || y < 0 || y >= p.h || x < 0 || x >= p.w) return;
    const size_t from = (((size_t)pixel * p.kernel_h + ky) * p.kernel_w + kx) * p.in_c + c;
    dx[(((size_t)image * p.h + y) * p.w + x) * p.in_c + c] += columns[from];
}

// ---------------------------------------------------------------------------------------- Winograd
// With B^T (6x6), G (6x3), A^T (4x6) below, for every 6x6 tile x, "." element by element:
//     y = A^T [sum over in of (G w G^T) . (B^T x B)] A
// Adjoint:
//     dw = G^T [sum over tiles of (A dy A^T) . (B^T x B)] G
//     dx = B [sum over out of (G w G^T) . (A dy A^T)] B^T
//
// Why, along one side: 6 inputs x and 3 weights w make 4 outputs, y_i = sum over k of w_k x_(i+k).
// This is the transpose of a product of two polynomials, w of degree 2 and one of degree 3. Such a
// product has degree 5: its values at 5 points p and its leading coefficient (its value at
// infinity) determine it. The points are
//     0, 1/sqrt(2), -1/sqrt(2), sqrt(2), -sqrt(2), infinity          in this order
// and M(t) = t (t^2 - 1/2) (t^2 - 2) = t^5 - 5/2 t^3 + t is zero at the finite ones. G evaluates
// the weights at the points, A^T has the powers of the points, B^T turns the interpolation around.
// Points come as +-p, so a transform computes an even part and an odd part once and adds or
// subtracts.

#define CONV_SQRT2 1.41421356237309504880f

// v = B^T d. Row i has the coefficients of M(t) / (t - p_i), the last row those of M(t).
static __device__ __forceinline__ void conv_input_1d(float d0, float d1, float d2, float d3,
                                                     float d4, float d5, float *v) {
    // M(t) / (t - p) = (t^4 - 2 t^2) + p (t^3 - 2 t) for p = +-1/sqrt(2)
    const float even_half = d4 - 2.0f * d2, odd_half = d3 - 2.0f * d1;
    // and (t^4 - t^2 / 2) + p (t^3 - t / 2) for p = +-sqrt(2)
    const float even_two = d4 - 0.5f * d2, odd_two = d3 - 0.5f * d1;
    v[0] = d0 - 2.5f * d2 + d4;
    v[1] = even_half + 0.5f * CONV_SQRT2 * odd_half;
    v[2] = even_half - 0.5f * CONV_SQRT2 * odd_half;
    v[3] = even_two + CONV_SQRT2 * odd_two;
    v[4] = even_two - CONV_SQRT2 * odd_two;
    v[5] = d1 - 2.5f * d3 + d5;
}

// d = B v, its adjoint.
static __device__ __forceinline__ void conv_input_adjoint_1d(float v0, float v1, float v2, float v3,
                                                             float v4, float v5, float *d) {
    const float even_half = v1 + v2, odd_half = 0.5f * CONV_SQRT2 * (v1 - v2);
    const float even_two = v3 + v4, odd_two = CONV_SQRT2 * (v3 - v4);
    d[0] = v0;
    d[5] = v5;
    d[1] = v5 - 2.0f * odd_half - 0.5f * odd_two;
    d[2] = -2.5f * v0 - 2.0f * even_half - 0.5f * even_two;
    d[3] = odd_half + odd_two - 2.5f * v5;
    d[4] = v0 + even_half + even_two;
}

// y = A^T m. Row k has the powers p^k of the points; infinity counts in the highest one only.
static __device__ __forceinline__ void conv_output_1d(float m0, float m1, float m2, float m3,
                                                      float m4, float m5, float *y) {
    const float even_half = m1 + m2, odd_half = m1 - m2;
    const float even_two = m3 + m4, odd_two = m3 - m4;
    y[0] = m0 + even_half + even_two;
    y[1] = 0.5f * CONV_SQRT2 * odd_half + CONV_SQRT2 * odd_two;
    y[2] = 0.5f * even_half + 2.0f * even_two;
    y[3] = 0.25f * CONV_SQRT2 * odd_half + 2.0f * CONV_SQRT2 * odd_two + m5;
}

// m = A y, its adjoint: the polynomial y0 + y1 p + y2 p^2 + y3 p^3 at the points.
static __device__ __forceinline__ void conv_output_adjoint_1d(float y0, float y1, float y2,
                                                              float y3, float *m) {
    const float even_half = y0 + 0.5f * y2, odd_half = 0.5f * CONV_SQRT2 * (y1 + 0.5f * y3);
    const float even_two = y0 + 2.0f * y2, odd_two = CONV_SQRT2 * (y1 + 2.0f * y3);
    m[0] = y0;
    m[5] = y3;
    m[1] = even_half + odd_half;
    m[2] = even_half - odd_half;
    m[3] = even_two + odd_two;
    m[4] = even_two - odd_two;
}

// u = G w: the polynomial w0 + w1 p + w2 p^2 at the points, divided by M'(p), the product of p's
// differences to the other points: 1 at 0, -3/2 at +-1/sqrt(2), 6 at +-sqrt(2).
static __device__ __forceinline__ void conv_weight_1d(float w0, float w1, float w2, float *u) {
    const float even_half = -2.0f / 3.0f * w0 - 1.0f / 3.0f * w2, odd_half = CONV_SQRT2 / 3.0f * w1;
    const float even_two = 1.0f / 6.0f * w0 + 1.0f / 3.0f * w2, odd_two = CONV_SQRT2 / 6.0f * w1;
    u[0] = w0;
    u[5] = w2;
    u[1] = even_half - odd_half;
    u[2] = even_half + odd_half;
    u[3] = even_two + odd_two;
    u[4] = even_two - odd_two;
}

// w = G^T u, its adjoint.
static __device__ __forceinline__ void
conv_weight_adjoint_1d(float u0, float u1, float u2, float u3, float u4, float u5, float *w) {
    const float even_half = u1 + u2, odd_half = u2 - u1;
    const float even_two = u3 + u4, odd_two = u3 - u4;
    w[0] = u0 - 2.0f / 3.0f * even_half + 1.0f / 6.0f * even_two;
    w[1] = CONV_SQRT2 / 3.0f * odd_half + CONV_SQRT2 / 6.0f * odd_two;
    w[2] = u5 - 1.0f / 3.0f * even_half + 1.0f / 3.0f * even_two;
}

// u[point][o][i] = G w[o][i] G^T; thread i, blockIdx.y = o. taps is 9: GCC vectorises loads with a
// stride it does not know.
static __global__ void conv_weight_kernel(float *__restrict__ u, const float *__restrict__ weight,
                                          int in_c, int taps, size_t stride) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, o = blockIdx.y;
    if (i >= in_c) return;
    const float *w = weight + (size_t)o * in_c * taps;
    float *out = u + (size_t)o * in_c, t[3][6];
    UNROLL for (int k = 0; k < 3; k++)
        conv_weight_1d(w[taps * i + k], w[taps * i + 3 + k], w[taps * i + 6 + k], t[k]);
    UNROLL for (int k = 0; k < 6; k++) {
        float r[6];
        conv_weight_1d(t[0][k], t[1][k], t[2][k], r);
        UNROLL for (int l = 0; l < 6; l++) out[(6 * k + l) * stride + i] = r[l];
    }
}
// dweight[o][i] = G^T du[.][o][i] G.
static __global__ void conv_weight_adjoint_kernel(float *__restrict__ dweight,
                                                  const float *__restrict__ du, int in_c,
                                                  size_t stride) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, o = blockIdx.y;
    if (i >= in_c) return;
    const float *in = du + (size_t)o * in_c;
    float *w = dweight + (size_t)o * in_c * 9, t[6][3];
    UNROLL for (int k = 0; k < 6; k++)
        conv_weight_adjoint_1d(in[6 * k * stride + i], in[(6 * k + 1) * stride + i],
                               in[(6 * k + 2) * stride + i], in[(6 * k + 3) * stride + i],
                               in[(6 * k + 4) * stride + i], in[(6 * k + 5) * stride + i], t[k]);
    UNROLL for (int k = 0; k < 3; k++) {
        float r[3];
        conv_weight_adjoint_1d(t[0][k], t[1][k], t[2][k], t[3][k], t[4][k], t[5][k], r);
        UNROLL for (int l = 0; l < 3; l++) w[9 * i + 3 * l + k] = r[l];
    }
}

// The tile of a block: image and the first output row and column. Computed before any return, so
// that the divisions leave the loop over the threads on a CPU.
#define CONV_TILE_OF_BLOCK()                                                                       \
    const int c = blockIdx.x * blockDim.x + threadIdx.x, tile = blockIdx.y;                        \
    const int tiles_x = (p.out_w + 3) / 4, tiles = (p.out_h + 3) / 4 * tiles_x;                    \
    const int image = tile / tiles;                                                                \
    const int y0 = tile % tiles / tiles_x * 4, x0 = tile % tiles % tiles_x * 4

// v[point][tile][c] = B^T x B of the tile's 6x6 window, zero outside the image.
static __global__ void conv_input_kernel(float *__restrict__ v, const float *__restrict__ x,
                                         conv_plan p, size_t stride) {
    CONV_TILE_OF_BLOCK();
    if (c >= p.in_c) return;
    const float *in = x + (size_t)image * p.h * p.w * p.in_c;
    float *out = v + (size_t)tile * p.in_c, t[6][6], use[6];
    int at[6];
    UNROLL for (int j = 0; j < 6; j++) {
        use[j] = (float)((unsigned)(x0 - p.pad + j) < (unsigned)p.w);
        at[j] = min(max(x0 - p.pad + j, 0), p.w - 1) * p.in_c;
    }
    UNROLL for (int i = 0; i < 6; i++) {
        const float on = (float)((unsigned)(y0 - p.pad + i) < (unsigned)p.h);
        const float *q = in + min(max(y0 - p.pad + i, 0), p.h - 1) * p.w * p.in_c;
        conv_input_1d(on * use[0] * q[at[0] + c], on * use[1] * q[at[1] + c],
                      on * use[2] * q[at[2] + c], on * use[3] * q[at[3] + c],
                      on * use[4] * q[at[4] + c], on * use[5] * q[at[5] + c], t[i]);
    }
    UNROLL for (int j = 0; j < 6; j++) {
        float r[6];
        conv_input_1d(t[0][j], t[1][j], t[2][j], t[3][j], t[4][j], t[5][j], r);
        UNROLL for (int i = 0; i < 6; i++) out[(6 * i + j) * stride + c] = r[i];
    }
}

// Its adjoint: dx of the window += B dv B^T. One launch per parity of the tile's row and column:
// the windows of such tiles do not meet, so no two threads add to the same element.
static __global__ void conv_input_adjoint_kernel(float *__restrict__ dx,
                                                 const float *__restrict__ dv, conv_plan p,
                                                 size_t stride, int tile_rows, int tile_cols,
                                                 int parity) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int rows = (tile_rows + 1 - parity / 2) / 2, cols = (tile_cols + 1 - parity % 2) / 2;
    const int image = blockIdx.y / (rows * cols), rest = blockIdx.y % (rows * cols);
    const int row = 2 * (rest / cols) + parity / 2, col = 2 * (rest % cols) + parity % 2;
    if (c >= p.in_c) return;
    const float *in = dv + ((size_t)(image * tile_rows + row) * tile_cols + col) * p.in_c;
    float t[6][6];
    UNROLL for (int j = 0; j < 6; j++)
        conv_input_adjoint_1d(in[j * stride + c], in[(6 + j) * stride + c],
                              in[(12 + j) * stride + c], in[(18 + j) * stride + c],
                              in[(24 + j) * stride + c], in[(30 + j) * stride + c], t[j]);
    const int y0 = 4 * row - p.pad, x0 = 4 * col - p.pad;
    float *out = dx + (size_t)image * p.h * p.w * p.in_c, use[6];
    int at[6];
    UNROLL for (int j = 0; j < 6; j++) {
        use[j] = (float)((unsigned)(x0 + j) < (unsigned)p.w);
        at[j] = min(max(x0 + j, 0), p.w - 1) * p.in_c;
    }
    UNROLL for (int i = 0; i < 6; i++) {
        const float on = (float)((unsigned)(y0 + i) < (unsigned)p.h);
        float r[6], *q = out + min(max(y0 + i, 0), p.h - 1) * p.w * p.in_c;
        conv_input_adjoint_1d(t[0][i], t[1][i], t[2][i], t[3][i], t[4][i], t[5][i], r);
        // Outside the image: adds 0 to the nearest pixel.
        UNROLL for (int j = 0; j < 6; j++) q[at[j] + c] += on * use[j] * r[j];
    }
}

// y of the tile = relu(A^T m A + bias).
static __global__ void conv_output_kernel(float *__restrict__ y, const float *__restrict__ m,
                                          const float *__restrict__ bias, int relu, conv_plan p,
                                          size_t stride) {
    CONV_TILE_OF_BLOCK();
    if (c >= p.out_c) return;
    const float *in = m + (size_t)tile * p.out_c, b = bias ? bias[c] : 0.0f;
    float *out = y + (((size_t)image * p.out_h + y0) * p.out_w + x0) * p.out_c, t[6][4];
    UNROLL for (int j = 0; j < 6; j++)
        conv_output_1d(in[j * stride + c], in[(6 + j) * stride + c],
                       in[(12 + j) * stride + c], in[(18 + j) * stride + c],
                       in[(24 + j) * stride + c], in[(30 + j) * stride + c], t[j]);
    UNROLL for (int i = 0; i < 4; i++) {
        float r[4];
        conv_output_1d(t[0][i], t[1][i], t[2][i], t[3][i], t[4][i], t[5][i], r);
        UNROLL for (int j = 0; j < 4; j++) {
            const float v = r[j] + b;
            if (y0 + i >= p.out_h || x0 + j >= p.out_w) continue;
            out[(i * p.out_w + j) * p.out_c + c] = relu && v <= 0.0f ? 0.0f : v;
        }
    }
}

// m[point][tile][c] = A dy A^T of the tile's 4x4 outputs, zero outside the image: the adjoint of
// conv_output_kernel.
static __global__ void conv_output_adjoint_kernel(float *__restrict__ m,
                                                  const float *__restrict__ dy, conv_plan p,
                                                  size_t stride) {
    CONV_TILE_OF_BLOCK();
    if (c >= p.out_c) return;
    const float *in = dy + (size_t)image * p.out_h * p.out_w * p.out_c;
    float *out = m + (size_t)tile * p.out_c, t[4][6], use[4];
    int at[4];
    UNROLL for (int j = 0; j < 4; j++) {
        use[j] = (float)(x0 + j < p.out_w);
        at[j] = min(x0 + j, p.out_w - 1) * p.out_c;
    }
    UNROLL for (int i = 0; i < 4; i++) {
        const float on = (float)(y0 + i < p.out_h);
        const float *q = in + min(y0 + i, p.out_h - 1) * p.out_w * p.out_c;
        conv_output_adjoint_1d(on * use[0] * q[at[0] + c], on * use[1] * q[at[1] + c],
                               on * use[2] * q[at[2] + c], on * use[3] * q[at[3] + c], t[i]);
    }
    UNROLL for (int j = 0; j < 6; j++) {
        float r[6];
        conv_output_adjoint_1d(t[0][j], t[1][j], t[2][j], t[3][j], r);
        UNROLL for (int i = 0; i < 6; i++) out[(6 * i + j) * stride + c] = r[i];
    }
}

// -------------------------------------------------------------------------------------- the passes

static inline dim3 conv_grid(int channels, int rows, int positions) {
    return dim3((unsigned)ceil_div(channels, CONV_BLOCK), (unsigned)rows, (unsigned)positions);
}

// The weights in the order of the columns: u filled from weight, or weight itself where the orders
// are equal.
static inline const float *conv_packed_weights(const conv_plan *p, const float *weight, float *u) {
    const int positions = p->kernel_h * p->kernel_w;
    if (positions == 1) return weight;
    conv_pack_kernel<<<conv_grid(p->in_c, p->out_c, positions), CONV_BLOCK>>>(u, weight, p->in_c,
                                                                              positions);
    return u;
}

// Winograd's matrices for n images of a chunk, by points: v [tiles][in], m [tiles][out] behind it
// in `work`, u [out][in]; and the floats from one point's matrix to the next.
typedef struct conv_tiling {
    int rows, cols, tiles;  // tiles of an image along its sides, and of all n images
    size_t v_step, m_step, u_step;
    float *v, *m;
} conv_tiling;

static inline conv_tiling conv_tiling_of(const conv_plan *p, int n, float *work) {
    conv_tiling t;
    t.rows = ceil_div(p->out_h, CONV_TILE);
    t.cols = ceil_div(p->out_w, CONV_TILE);
    t.tiles = n * t.rows * t.cols;
    t.v_step = conv_point_stride(t.tiles, p->in_c);
    t.m_step = conv_point_stride(t.tiles, p->out_c);
    t.u_step = conv_point_stride(p->out_c, p->in_c);
    t.v = work;
    t.m = work + CONV_POINTS * t.v_step;
    return t;
}

// One chunk of n images, x to y: v = B^T x B, m = v u^T point by point, y = relu(A^T m A + bias).
static inline void conv_winograd_forward(gemm_context *g, const conv_plan *p, int n, const float *x,
                                         const float *bias, int relu, float *y, const float *u,
                                         float *work) {
    const conv_tiling t = conv_tiling_of(p, n, work);
    const dim3 in_grid = conv_grid(p->in_c, t.tiles, 1), out_grid = conv_grid(p->out_c, t.tiles, 1);
    conv_input_kernel<<<in_grid, CONV_BLOCK>>>(t.v, x, *p, t.v_step);
    gemm_batch(g, CONV_POINTS, 0, 1, t.tiles, p->out_c, p->in_c, 1.0f, t.v, p->in_c, t.v_step, u,
               p->in_c, t.u_step, 0.0f, t.m, p->out_c, t.m_step);
    conv_output_kernel<<<out_grid, CONV_BLOCK>>>(y, t.m, bias, relu, *p, t.m_step);
}

// y = relu(conv(x) + bias) for `images` images; bias NULL: none; relu 0: linear. u is filled for
// conv_backward.
static inline void conv_forward(gemm_context *g, const conv_plan *p, int images, const float *x,
                                const float *weight, const float *bias, int relu, float *y,
                                float *u, float *work) {
    const int chunk = conv_chunk(p, images), columns = conv_columns(p), pixels = conv_pixels(p);
    const int winograd = p->algorithm == CONV_WINOGRAD;
    const float *packed = NULL;
    if (winograd) {
        const dim3 grid = conv_grid(p->in_c, p->out_c, 1);
        const size_t step = conv_point_stride(p->out_c, p->in_c);
        conv_weight_kernel<<<grid, CONV_BLOCK>>>(u, weight, p->in_c, 9, step);
    } else {
        packed = conv_packed_weights(p, weight, u);
    }
    for (int first = 0; first < images; first += chunk) {
        const int n = min(chunk, images - first), rows = n * pixels;
        const float *in = x + (size_t)first * conv_in_floats(p);
        float *out = y + (size_t)first * conv_out_floats(p);
        if (winograd) {
            conv_winograd_forward(g, p, n, in, bias, relu, out, u, work);
            continue;
        }
        if (p->algorithm == CONV_IM2COL) {
            const dim3 grid = conv_grid(p->kernel_w * p->in_c, rows, p->kernel_h);
            conv_im2col_kernel<<<grid, CONV_BLOCK>>>(work, in, *p);
            in = work;
        }
        gemm(g, 0, 1, rows, p->out_c, columns, 1.0f, in, columns, packed, columns, 0.0f, out,
             p->out_c);
        if (bias || relu) bias_relu(out, bias, rows, p->out_c, relu);
    }
}

// Backward of one chunk by im2col. du (+= with beta 1) is the gradient of the packed weights; dx,
// NULL or zeroed, gets the gradient of x added.
static inline void conv_im2col_backward(gemm_context *g, const conv_plan *p, int n, const float *x,
                                        const float *packed, const float *dy, float beta, float *du,
                                        float *dx, float *work) {
    const int rows = n * conv_pixels(p), columns = conv_columns(p);
    const dim3 windows = conv_grid(p->kernel_w * p->in_c, rows, p->kernel_h);
    const dim3 grid = conv_grid(p->in_c, rows, 1);
    // du = dy^T columns(x)
    conv_im2col_kernel<<<windows, CONV_BLOCK>>>(work, x, *p);
    gemm(g, 1, 0, p->out_c, columns, rows, 1.0f, dy, p->out_c, work, columns, beta, du, columns);
    if (!dx) return;
    // dx = columns^T(dy packed)
    gemm(g, 0, 0, rows, columns, p->out_c, 1.0f, dy, p->out_c, packed, columns, 0.0f, work,
         columns);
    for (int ky = 0; ky < p->kernel_h; ky++) {
        for (int kx = 0; kx < p->kernel_w; kx++)
            conv_col2im_kernel<<<grid, CONV_BLOCK>>>(dx, work, ky, kx, *p);
    }
}

// Backward of one chunk by Winograd; du (+= with beta 1) is the gradient of u, dx as above.
static inline void conv_winograd_backward(gemm_context *g, const conv_plan *p, int n,
                                          const float *x, const float *u, const float *dy,
                                          float beta, float *du, float *dx, float *work) {
    const conv_tiling t = conv_tiling_of(p, n, work);
    const dim3 in_grid = conv_grid(p->in_c, t.tiles, 1), out_grid = conv_grid(p->out_c, t.tiles, 1);
    // v = B^T x B and m = A dy A^T, then du = m^T v point by point
    conv_input_kernel<<<in_grid, CONV_BLOCK>>>(t.v, x, *p, t.v_step);
    conv_output_adjoint_kernel<<<out_grid, CONV_BLOCK>>>(t.m, dy, *p, t.m_step);
    gemm_batch(g, CONV_POINTS, 1, 0, p->out_c, p->in_c, t.tiles, 1.0f, t.m, p->out_c, t.m_step, t.v,
               p->in_c, t.v_step, beta, du, p->in_c, t.u_step);
    if (!dx) return;
    // dv = m u, in v's place, then dx += B dv B^T
    gemm_batch(g, CONV_POINTS, 0, 0, t.tiles, p->in_c, p->out_c, 1.0f, t.m, p->out_c, t.m_step, u,
               p->in_c, t.u_step, 0.0f, t.v, p->in_c, t.v_step);
    for (int parity = 0; parity < 4; parity++) {
        const int here = n * ((t.rows + 1 - parity / 2) / 2) * ((t.cols + 1 - parity % 2) / 2);
        if (!here) continue;
        const dim3 grid = conv_grid(p->in_c, here, 1);
        conv_input_adjoint_kernel<<<grid, CONV_BLOCK>>>(dx, t.v, *p, t.v_step, t.rows, t.cols,
                                                        parity);
    }
}

// Backward where the rows of x are the columns: two products over all images.
static inline void conv_direct_backward(gemm_context *g, const conv_plan *p, int images,
                                        const float *x, const float *packed, const float *dy,
                                        float *du, float *dx, int accumulate) {
    const int rows = images * conv_pixels(p), columns = conv_columns(p);
    const float beta = accumulate ? 1.0f : 0.0f;
    gemm(g, 1, 0, p->out_c, columns, rows, 1.0f, dy, p->out_c, x, columns, 0.0f, du, columns);
    if (!dx) return;
    gemm(g, 0, 0, rows, columns, p->out_c, 1.0f, dy, p->out_c, packed, columns, beta, dx, columns);
}

// Gradients of the last conv_forward with the same x, weight and u: dweight, and dx unless it is
// NULL (accumulate: added to dx).
static inline void conv_backward(gemm_context *g, const conv_plan *p, int images, const float *x,
                                 const float *weight, const float *dy, float *dweight, float *dx,
                                 int accumulate, const float *u, float *work) {
    const int chunk = conv_chunk(p, images), positions = p->kernel_h * p->kernel_w;
    const size_t in_size = conv_in_floats(p), out_size = conv_out_floats(p);
    // du, the gradient of the transformed weights, lies behind the chunk in `work`. Where weights
    // are used as they are (one kernel position), it is dweight itself.
    const size_t behind = (size_t)chunk * conv_image_floats(p) + 2 * CONV_POINTS * CONV_PAD;
    float *du = positions == 1 ? dweight : work + behind;
    const float *packed = positions == 1 ? weight : u;
    if (p->algorithm == CONV_DIRECT)
        conv_direct_backward(g, p, images, x, packed, dy, du, dx, accumulate);
    for (int first = 0; first < images && p->algorithm != CONV_DIRECT; first += chunk) {
        const int n = min(chunk, images - first);
        const float *in = x + (size_t)first * in_size, *d = dy + (size_t)first * out_size;
        const float beta = first ? 1.0f : 0.0f;  // later chunks add to du
        float *out = dx ? dx + (size_t)first * in_size : NULL;
        if (out && !accumulate) CUDA_CHECK(cudaMemset(out, 0, (size_t)n * in_size * sizeof(float)));
        if (p->algorithm == CONV_IM2COL)
            conv_im2col_backward(g, p, n, in, packed, d, beta, du, out, work);
        else
            conv_winograd_backward(g, p, n, in, u, d, beta, du, out, work);
    }
    const dim3 grid = conv_grid(p->in_c, p->out_c, p->algorithm == CONV_WINOGRAD ? 1 : positions);
    if (p->algorithm == CONV_WINOGRAD) {
        const size_t step = conv_point_stride(p->out_c, p->in_c);
        conv_weight_adjoint_kernel<<<grid, CONV_BLOCK>>>(dweight, du, p->in_c, step);
    } else if (positions > 1) {
        conv_unpack_kernel<<<grid, CONV_BLOCK>>>(dweight, du, p->in_c, positions);
    }
}
