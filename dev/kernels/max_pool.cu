// max_pool.cu -- max-pooling of images, forward and backward.
//
// Shapes: x, dx [images][h][w][c]; y, d [images][out_h][out_w][c], arg likewise, one byte (which of the 3 x 3 positions
// of the window won, the first of equals; a NaN wins); kernel <= 3, stride, pad; out = (size + 2 pad - kernel) / stride
// + 1. Channels last, so that neighbouring threads have neighbouring channels whatever the window does.
//     max_pool_forward     y = maximum over the window, arg = its position                    x in, y and arg out
//     max_pool_backward    dx = sum of d over the windows in which this x won       d and arg in, dx out
// A few comparisons per byte: memory-bound, and only if the index arithmetic stays out of the way.
//
// Forward:
//  1 flat           A thread per output element, its coordinates by / and %: five divisions each.
//  2 grid           blockIdx.y is the output pixel, blockIdx.z the image: the divisions are the same for the whole
//                   block.
//  3 unrolled       All 9 positions, always: one outside the image or the kernel stands for the nearest inside, which
//                   changes no maximum. No branch is left, so the loop is unrolled on a GPU and vectorised over
//                   channels on a CPU.
//  4 float4         Four channels per thread.
// Backward:
//  1 scatter        A thread per output element adds d to the winner with atomicAdd: dx has to be zeroed, and where
//                   windows overlap the order of additions is open.
//  2 gather         A thread per input element looks at the windows that hold it and takes d where arg names it: every
//                   dx is written once, in fixed order.
//  3 gather_unrolled   The same for all 9 positions without a branch.
//    train_cnn.cu   max_pool_kernel and max_pool_backward_kernel of the trainer: variants 3.
#define TESTING
#include "train_cnn.cu"
#include "dev/kernels/kernels.h"

enum { X, Y, ARG };               // forward
enum { B_D, B_ARG, B_DX };        // backward
enum { SIDE = 3, WINDOW = SIDE * SIDE };

typedef struct shape {
    int images, h, w, c, kernel, stride, pad, out_h, out_w;
} shape;
static shape shape_of(const int *dim) {
    // sizes in lists are positive: pad + 1
    shape s = {dim[0], dim[1], dim[2], dim[3], dim[4], dim[5], dim[6] - 1, 0, 0};
    s.out_h = (s.h + 2 * s.pad - s.kernel) / s.stride + 1;
    s.out_w = (s.w + 2 * s.pad - s.kernel) / s.stride + 1;
    return s;
}
static size_t inputs(const shape *s) { return (size_t)s->images * (size_t)s->h * (size_t)s->w * (size_t)s->c; }
static size_t outputs(const shape *s) { return (size_t)s->images * (size_t)s->out_h * (size_t)s->out_w * (size_t)s->c; }

// Winner of every window of x in double; -1 never stays.
static void find_winners(const shape *s, const double *x, double *y, double *arg) {
    size_t out = 0;
    for (int n = 0; n < s->images; n++)
        for (int oy = 0; oy < s->out_h; oy++)
            for (int ox = 0; ox < s->out_w; ox++)
                for (int c = 0; c < s->c; c++, out++) {
                    y[out] = -HUGE_VAL;
                    arg[out] = -1;
                    for (int k = 0; k < WINDOW; k++) {
                        const int ky = k / SIDE, kx = k % SIDE, iy = oy * s->stride - s->pad + ky;
                        const int ix = ox * s->stride - s->pad + kx;
                        if (ky >= s->kernel || kx >= s->kernel || iy < 0 || iy >= s->h || ix < 0 || ix >= s->w)
                            continue;
                        const size_t pixel = ((size_t)n * (size_t)s->h + (size_t)iy) * (size_t)s->w + (size_t)ix;
                        const double v = x[pixel * (size_t)s->c + (size_t)c];
                        if (v > y[out]) {
                            y[out] = v;
                            arg[out] = k;
                        }
                    }
                }
}

// ------------------------------------------------------------------------------------------------------------- forward

static void forward_problem(problem *p) {
    const shape s = shape_of(p->dim);
    double *x = input(p, "x", F32, inputs(&s), -4, 4);
    for (size_t i = 0; i < inputs(&s); i += 3) x[i] = rint(x[i]);  // equal values, to see which one wins
    output(p, "y", F32, outputs(&s), 0, 0);
    output(p, "arg", U8, outputs(&s), 0, 0);
    p->bytes = 4.0 * (double)inputs(&s) + 5.0 * (double)outputs(&s);
    p->flops = s.kernel * s.kernel * (double)outputs(&s);
}
static void forward_reference(problem *p) {
    const shape s = shape_of(p->dim);
    find_winners(&s, given(p, X), wanted(p, Y), wanted(p, ARG));
}

// One output by a loop over its window.
static __device__ __forceinline__ void pool_window(float *y, unsigned char *arg, const float *in, shape s, int oy,
                                                   int ox, int c) {
    float best = -INFINITY;
    int at = 0;
    for (int ky = 0; ky < s.kernel; ky++)
        for (int kx = 0; kx < s.kernel; kx++) {
            const int iy = oy * s.stride - s.pad + ky, ix = ox * s.stride - s.pad + kx;
            if (iy < 0 || iy >= s.h || ix < 0 || ix >= s.w) continue;
            const float v = in[((size_t)iy * s.w + ix) * s.c + c];
            if (v > best || v != v) {
                best = v;
                at = ky * SIDE + kx;
            }
        }
    *y = best;
    *arg = (unsigned char)at;
}
static __global__ void flat(float *y, unsigned char *arg, const float *x, shape s, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const int c = i % s.c, ox = i / s.c % s.out_w, oy = i / s.c / s.out_w % s.out_h;
    const int image = i / s.c / s.out_w / s.out_h;
    pool_window(y + i, arg + i, x + (size_t)image * s.h * s.w * s.c, s, oy, ox, c);
}
static void run_flat(const call *c) {
    const shape s = shape_of(c->dim);
    const int n = (int)outputs(&s);
    flat<<<ceil_div(n, c->block), c->block>>>(FLOATS(c, Y), BYTES(c, ARG), FLOATS(c, X), s, n);
}

static __global__ void grid(float *y, unsigned char *arg, const float *x, shape s) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, oy = (int)blockIdx.y / s.out_w, ox = (int)blockIdx.y % s.out_w;
    if (c >= s.c) return;
    const size_t out = ((size_t)blockIdx.z * gridDim.y + blockIdx.y) * s.c + c;
    pool_window(y + out, arg + out, x + (size_t)blockIdx.z * s.h * s.w * s.c, s, oy, ox, c);
}
static dim3 out_grid(const shape *s, int channels, int block) {
    return dim3(ceil_div(channels, block), s->out_h * s->out_w, s->images);
}
static void run_grid(const call *c) {
    const shape s = shape_of(c->dim);
    grid<<<out_grid(&s, s.c, c->block), c->block>>>(FLOATS(c, Y), BYTES(c, ARG), FLOATS(c, X), s);
}

// Position k of the window at (y0, x0), or where that is outside the image or the kernel the nearest inside: offset of
// its pixel, and which position it is.
static __device__ __forceinline__ int window_pixel(shape s, int y0, int x0, int k, int *position) {
    const int iy = min(max(y0 + min(k / SIDE, s.kernel - 1), 0), s.h - 1);
    const int ix = min(max(x0 + min(k % SIDE, s.kernel - 1), 0), s.w - 1);
    *position = (iy - y0) * SIDE + ix - x0;
    return iy * s.w + ix;
}
static __device__ __forceinline__ void compete(float *best, int *at, float v, int k) {
    const int wins = (int)(v > *best) | (int)(v != v);
    *best = wins ? v : *best;
    *at = wins ? k : *at;
}
static __global__ void unrolled(float *__restrict__ y, unsigned char *__restrict__ arg, const float *__restrict__ x,
                                shape s) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int y0 = (int)blockIdx.y / s.out_w * s.stride - s.pad, x0 = (int)blockIdx.y % s.out_w * s.stride - s.pad;
    if (c >= s.c) return;
    const float *in = x + (size_t)blockIdx.z * s.h * s.w * s.c;
    float best = -INFINITY;
    int at = 0, position;
    UNROLL for (int k = 0; k < WINDOW; k++) {
        const int pixel = window_pixel(s, y0, x0, k, &position);
        compete(&best, &at, in[pixel * s.c + c], position);
    }
    const size_t out = ((size_t)blockIdx.z * gridDim.y + blockIdx.y) * s.c;
    y += out;
    arg += out;
    y[c] = best;
    arg[c] = (unsigned char)at;
}
static void run_unrolled(const call *c) {
    const shape s = shape_of(c->dim);
    unrolled<<<out_grid(&s, s.c, c->block), c->block>>>(FLOATS(c, Y), BYTES(c, ARG), FLOATS(c, X), s);
}

static __device__ __forceinline__ uchar4 byte4(const int *at) {
    return make_uchar4((unsigned char)at[0], (unsigned char)at[1], (unsigned char)at[2], (unsigned char)at[3]);
}
static __global__ void unrolled4(float4 *__restrict__ y, uchar4 *__restrict__ arg, const float4 *__restrict__ x,
                                 shape s) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, c4 = s.c / 4;
    const int y0 = (int)blockIdx.y / s.out_w * s.stride - s.pad, x0 = (int)blockIdx.y % s.out_w * s.stride - s.pad;
    if (c >= c4) return;
    const float4 *in = x + (size_t)blockIdx.z * s.h * s.w * c4;
    float best[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    int at[4] = {0, 0, 0, 0}, position;
    UNROLL for (int k = 0; k < WINDOW; k++) {
        const float4 v = in[window_pixel(s, y0, x0, k, &position) * c4 + c];
        compete(&best[0], &at[0], v.x, position);
        compete(&best[1], &at[1], v.y, position);
        compete(&best[2], &at[2], v.z, position);
        compete(&best[3], &at[3], v.w, position);
    }
    const size_t out = ((size_t)blockIdx.z * gridDim.y + blockIdx.y) * c4;
    y += out;
    arg += out;
    y[c] = make_float4(best[0], best[1], best[2], best[3]);
    arg[c] = byte4(at);
}
static void run_float4(const call *c) {
    const shape s = shape_of(c->dim);
    unrolled4<<<out_grid(&s, s.c / 4, c->block), c->block>>>(
        (float4 *)c->at[Y], (uchar4 *)c->at[ARG], (const float4 *)c->at[X], s);
}
static int by_four(const int *dim) { return dim[3] % 4 == 0; }

static pool_shape trainer_shape(const shape *s) {
    const pool_shape p = {s->c, s->h, s->w, s->out_h, s->out_w, s->kernel, s->stride, s->pad};
    return p;
}
static void run_trainer(const call *c) {
    const shape s = shape_of(c->dim);
    max_pool_kernel<<<out_grid(&s, s.c, c->block), c->block>>>(
        FLOATS(c, Y), BYTES(c, ARG), FLOATS(c, X), trainer_shape(&s));
}

static const variant forward_variants[] = {
    {"flat", "a thread per element, coordinates by division", run_flat, FP32, 0, {64, 256}, NULL, 0},
    {"grid", "pixel and image along the grid", run_grid, FP32, 0, {32, 64, 128}, NULL, 0},
    {"unrolled", "always 9 positions, no branch", run_unrolled, FP32, 0, {32, 64, 128}, NULL, 0},
    {"float4", "four channels per thread", run_float4, FP32, 0, {32, 64}, by_four, 0},
    {"train_cnn.cu", "what the trainer uses", run_trainer, FP32, 0, {32, 64, 128}, NULL, 0},
};

// ------------------------------------------------------------------------------------------------------------ backward

static void backward_problem(problem *p) {
    const shape s = shape_of(p->dim);
    const size_t in = inputs(&s), out = outputs(&s);
    input(p, "d", F32, out, -1, 1);
    double *arg = input(p, "arg", U8, out, 0, 1), *x = (double *)allocate(in * sizeof(double));
    double *y = (double *)allocate(out * sizeof(double));
    for (size_t i = 0; i < in; i++) x[i] = test_random();
    find_winners(&s, x, y, arg);
    free(x);
    free(y);
    output(p, "dx", F32, in, 1e-6, 1e-6);
    p->bytes = 5.0 * (double)out + 4.0 * (double)in;
    p->flops = (double)out;
}
static void backward_reference(problem *p) {
    const shape s = shape_of(p->dim);
    for (size_t i = 0; i < outputs(&s); i++) {
        const size_t c = i % (size_t)s.c, pixel = i / (size_t)s.c, image = pixel / (size_t)(s.out_h * s.out_w);
        const int rest = (int)(pixel % (size_t)(s.out_h * s.out_w)), k = (int)given(p, B_ARG)[i];
        const int iy = rest / s.out_w * s.stride - s.pad + k / SIDE, ix = rest % s.out_w * s.stride - s.pad + k % SIDE;
        const size_t to = (image * (size_t)s.h + (size_t)iy) * (size_t)s.w + (size_t)ix;
        wanted(p, B_DX)[to * (size_t)s.c + c] += given(p, B_D)[i];
    }
}

static __global__ void scatter_kernel(float *dx, const float *d, const unsigned char *arg, shape s) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= s.c) return;
    const size_t out = ((size_t)blockIdx.z * gridDim.y + blockIdx.y) * s.c + c;
    const int k = arg[out], iy = (int)blockIdx.y / s.out_w * s.stride - s.pad + k / SIDE;
    const int ix = (int)blockIdx.y % s.out_w * s.stride - s.pad + k % SIDE;
    atomicAdd(&dx[(((size_t)blockIdx.z * s.h + iy) * s.w + ix) * s.c + c], d[out]);
}
static void run_scatter(const call *c) {
    const shape s = shape_of(c->dim);
    CUDA_CHECK(cudaMemsetAsync(FLOATS(c, B_DX), 0, inputs(&s) * sizeof(float)));
    scatter_kernel<<<out_grid(&s, s.c, c->block), c->block>>>(FLOATS(c, B_DX), FLOATS(c, B_D), BYTES(c, B_ARG), s);
}

static dim3 in_grid(const shape *s, int block) { return dim3(ceil_div(s->c, block), s->h * s->w, s->images); }
static __global__ void gather_kernel(float *dx, const float *d, const unsigned char *arg, shape s) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, iy = (int)blockIdx.y / s.w, ix = (int)blockIdx.y % s.w;
    if (c >= s.c) return;
    float sum = 0.0f;
    for (int ky = 0; ky < s.kernel; ky++)
        for (int kx = 0; kx < s.kernel; kx++) {
            const int ty = iy + s.pad - ky, tx = ix + s.pad - kx, oy = ty / s.stride, ox = tx / s.stride;
            if (ty < 0 || tx < 0 || oy * s.stride != ty || ox * s.stride != tx || oy >= s.out_h || ox >= s.out_w)
                continue;
            const size_t out = (((size_t)blockIdx.z * s.out_h + oy) * s.out_w + ox) * s.c + c;
            if (arg[out] == ky * SIDE + kx) sum += d[out];
        }
    dx[((size_t)blockIdx.z * gridDim.y + blockIdx.y) * s.c + c] = sum;
}
static void run_gather(const call *c) {
    const shape s = shape_of(c->dim);
    gather_kernel<<<in_grid(&s, c->block), c->block>>>(FLOATS(c, B_DX), FLOATS(c, B_D), BYTES(c, B_ARG), s);
}

static __global__ void gather_unrolled(float *__restrict__ dx, const float *__restrict__ d,
                                       const unsigned char *__restrict__ arg, shape s) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, iy = (int)blockIdx.y / s.w + s.pad;
    const int ix = (int)blockIdx.y % s.w + s.pad;
    // the output row and column whose window has this input at position k
    int at_y[SIDE], at_x[SIDE], on_y[SIDE], on_x[SIDE];
    UNROLL for (int k = 0; k < SIDE; k++) {
        at_y[k] = min(max((iy - k) / s.stride, 0), s.out_h - 1);
        at_x[k] = min(max((ix - k) / s.stride, 0), s.out_w - 1);
        on_y[k] = (int)(k < s.kernel) & (int)(iy - k == at_y[k] * s.stride);
        on_x[k] = (int)(k < s.kernel) & (int)(ix - k == at_x[k] * s.stride);
    }
    if (c >= s.c) return;
    const size_t start = (size_t)blockIdx.z * s.out_h * s.out_w * s.c;
    arg += start;
    d += start;
    float sum = 0.0f;
    UNROLL for (int k = 0; k < WINDOW; k++) {
        const int out = (at_y[k / SIDE] * s.out_w + at_x[k % SIDE]) * s.c + c;
        const float on = (float)(on_y[k / SIDE] & on_x[k % SIDE]), won = (float)(int)(arg[out] == k);
        sum += on * won * d[out];
    }
    dx += ((size_t)blockIdx.z * gridDim.y + blockIdx.y) * s.c;
    dx[c] = sum;
}
static void run_gather_unrolled(const call *c) {
    const shape s = shape_of(c->dim);
    gather_unrolled<<<in_grid(&s, c->block), c->block>>>(FLOATS(c, B_DX), FLOATS(c, B_D), BYTES(c, B_ARG), s);
}
static void run_trainer_backward(const call *c) {
    const shape s = shape_of(c->dim);
    max_pool_backward_kernel<<<in_grid(&s, c->block), c->block>>>(
        FLOATS(c, B_DX), FLOATS(c, B_D), BYTES(c, B_ARG), trainer_shape(&s), 0);
}

static const variant backward_variants[] = {
    {"scatter", "a thread per output adds atomically", run_scatter, FP32, ATOMICS, {32, 64, 128}, NULL, 0},
    {"gather", "a thread per input looks at its windows", run_gather, FP32, 0, {32, 64, 128}, NULL, 0},
    {"gather_unrolled", "always 9 positions, no branch", run_gather_unrolled, FP32, 0, {32, 64, 128}, NULL, 0},
    {"train_cnn.cu", "what the trainer uses", run_trainer_backward, FP32, 0, {32, 64, 128}, NULL, 0},
};

#define SMALL_SHAPES "1x1x1x1x1x1x1 1x4x4x4x2x2x1 2x5x7x3x2x2x1 "
#define TEST_SHAPES SMALL_SHAPES "2x7x6x33x3x2x2 1x9x9x64x3x1x2 3x6x5x8x3x3x1 1x2x2x12x2x2x2"
#define CPU_SHAPES "32x32x32x64x2x2x1 32x32x32x64x3x2x2"
#define GPU_SHAPES "128x32x32x64x2x2x1 256x32x32x128x2x2x1 256x32x32x64x3x2x2"
static const operation operations[] = {
    {"max_pool_forward", "y = maximum over the window, arg = its position", "images h w c kernel stride pad+1",
     forward_problem, forward_reference, VARIANTS(forward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
    {"max_pool_backward", "dx = sum of d over the windows in which this input won", "images h w c kernel stride pad+1",
     backward_problem, backward_reference, VARIANTS(backward_variants), TEST_SHAPES, CPU_SHAPES, GPU_SHAPES},
};

int main(int argc, char **argv) { return kernels_main(argc, argv, OPERATIONS(operations)); }
