// test_conv.cu -- tests of common/conv.cuh against the convolutions of ref_cnn.h in double precision, on GPU or CPU.
//
//     make test-programs && build/cpu/test/test_conv        (or build/cuda/test/test_conv)
//
// 1. plans: algorithms, sizes, working memory that does not grow with the batch
// 2. every kernel: the reorderings against plain loops; Winograd's transforms by what they must do together, F(4x4,
//    3x3); each backward transform as the transpose of the forward one
// 3. both passes, all algorithms: odd shapes, chunks with a last partial one, guarded and poisoned memory
// 4. identities: adjoints, exact scaling by powers of two, threads, repetition
// The layout here is NHWC, the reference's NCHW. Errors are relative to the largest value, see `tolerance`.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/cuda_common.h"
#include "common/gemm.h"
#include "common/rng.h"
#include "common/dataset.h"
#include "common/layers.cuh"
#include "common/conv.cuh"
#include "device.h"
#include "ref_cnn.h"

enum { N_ALGORITHMS = CONV_WINOGRAD + 1, AS_PLANNED = -1 };
static const char *const algorithm_name[] = {"direct", "im2col", "Winograd"};
static gemm_context g;

// ------------------------------------------------------------------------------------------------------------- helpers

// x[n][c][h][w] to y[n][h][w][c].
static void to_nhwc(double *y, const double *x, int n, int c, int h, int w) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < c; k++)
            for (int p = 0; p < h * w; p++) y[((size_t)i * (size_t)(h * w) + (size_t)p) * (size_t)c + (size_t)k] = *x++;
}
// And back, from floats.
static void to_nchw(double *y, const float *x, int n, int c, int h, int w) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < c; k++)
            for (int p = 0; p < h * w; p++)
                *y++ = (double)x[((size_t)i * (size_t)(h * w) + (size_t)p) * (size_t)c + (size_t)k];
}

static size_t in_floats(const conv_plan *p, int images) {
    return (size_t)images * (size_t)(p->h * p->w) * (size_t)p->in_c;
}
static size_t out_floats(const conv_plan *p, int images) {
    return (size_t)images * (size_t)(p->out_h * p->out_w) * (size_t)p->out_c;
}

static double dot(const float *a, const float *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

// What a layer computes from, and what its passes give; host memory of the case.
typedef struct problem {
    conv_plan p;
    int images, relu, accumulate;
    float *x, *w, *b, *dy, *before;  // b NULL: no bias; before: what lies in dx
    float *y, *dw, *dx;              // dx NULL: not asked for
} problem;

// Random numbers for a plan.
static problem make_problem(conv_plan p, int images, int bias, int relu, int accumulate, int want_dx) {
    problem q;
    memset(&q, 0, sizeof q);
    q.p = p;
    q.images = images;
    q.relu = relu;
    q.accumulate = accumulate;
    q.x = floats(in_floats(&p, images));
    q.w = floats(conv_weights(&p));
    q.dy = floats(out_floats(&p, images));
    q.y = q.dw = q.dx = q.b = NULL;
    fill(q.x, in_floats(&p, images), 0.1, 1);
    fill(q.w, conv_weights(&p), 0, 1);
    fill(q.dy, out_floats(&p, images), 0, 1);
    if (bias) {
        q.b = floats((size_t)p.out_c);
        fill(q.b, (size_t)p.out_c, 0, 1);
    }
    if (want_dx) {
        q.before = floats(in_floats(&p, images));
        fill(q.before, in_floats(&p, images), 0, 3);
    }
    return q;
}

// Runs both passes in memory that is poisoned first, between guards; inputs must stay as they are.
static void run_passes(problem *q) {
    const conv_plan *p = &q->p;
    const size_t n_in = in_floats(p, q->images), n_out = out_floats(p, q->images);
    const size_t n_w = conv_weights(p), n_work = conv_work_floats(p, q->images);
    float *x = in(q->x, n_in), *w = in(q->w, n_w), *dy = in(q->dy, n_out);
    float *b = q->b ? in(q->b, (size_t)p->out_c) : NULL;
    float *y = out(n_out), *dw = out(n_w), *u = out(conv_transformed_floats(p)), *work = out(n_work);
    float *dx = NULL;
    if (q->before) dx = q->accumulate ? in(q->before, n_in) : out(n_in);
    conv_forward(&g, p, q->images, x, w, b, q->relu, y, u, work);
    CUDA_CHECK_LAUNCH();
    CUDA_CHECK(cudaMemset(work, 0xff, n_work * sizeof(float)));  // nothing but u is kept for the backward pass
    float *kept = (float *)fetch(u, conv_transformed_floats(p) * sizeof(float));
    conv_backward(&g, p, q->images, x, w, dy, dw, dx, q->accumulate, u, work);
    CUDA_CHECK_LAUNCH();
    q->y = (float *)fetch(y, n_out * sizeof(float));
    q->dw = (float *)fetch(dw, n_w * sizeof(float));
    q->dx = dx ? (float *)fetch(dx, n_in * sizeof(float)) : NULL;
    same_bits("x is only read", x, q->x, n_in * sizeof(float));
    same_bits("weights are only read", w, q->w, n_w * sizeof(float));
    same_bits("dy is only read", dy, q->dy, n_out * sizeof(float));
    same_bits("u is only read by the backward pass", u, kept, conv_transformed_floats(p) * sizeof(float));
    if (b) same_bits("the bias is only read", b, q->b, (size_t)p->out_c * sizeof(float));
}

// Largest errors seen, of an algorithm's y, dw, dx.
enum { OF_Y, OF_DW, OF_DX, N_RESULTS };
static double worst_max[N_ALGORITHMS][N_RESULTS], worst_rms[N_ALGORITHMS][N_RESULTS];
static int cases[N_ALGORITHMS];

// Errors allowed, relative to the largest value: in the largest element, and as the root of the mean square (over the
// root of the mean square of the values). Measured over the shapes below (the last lines that this program prints):
// 8e-7 and 4e-7 for sums of up to 1,600 products, 3e-6 and 1.2e-6 for Winograd, whose transforms cancel. About twice
// that is allowed.
static const double tolerance[N_ALGORITHMS][2] = {{2e-6, 8e-7}, {2e-6, 8e-7}, {6e-6, 2.5e-6}};

// Every value is a sum of `terms` products of numbers in [-1, 1). Its size is sqrt(terms) / 3, even where it cancels.
static void compare(int algorithm, int which, const float *got, const double *want, size_t n, double terms) {
    static const char *const what[] = {"y", "dweight", "dx"};
    double largest = sqrt(terms) / 3, square = 0, error = 0, worst = 0;
    char name[240];
    for (size_t i = 0; i < n; i++) {
        largest = fmax(largest, fabs(want[i]));
        square += want[i] * want[i];
    }
    for (size_t i = 0; i < n; i++) {
        const double e = (double)got[i] - want[i];
        error += e * e;
        worst = fmax(worst, fabs(e));
    }
    snprintf(name, sizeof name, "%s: %s", label, what[which]);
    test_close(name, got, want, n, 0, tolerance[algorithm][0] * largest);
    const double rms = square > 0 ? sqrt(error / square) : 0;
    if (n > 100 && !CHECK(rms <= tolerance[algorithm][1], "mean square error")) printf("    %s: %.2e\n", name, rms);
    worst_max[algorithm][which] = fmax(worst_max[algorithm][which], worst / largest);
    if (n > 100) worst_rms[algorithm][which] = fmax(worst_rms[algorithm][which], rms);
}

// ------------------------------------------------------------------------------------------------------------ 1. plans

static void test_plans(void) {
    static const struct {
        int in_c, h, w, out_c, kh, kw, stride, pad, algorithm, out_h, out_w;
    } k[] = {
        {3, 32, 32, 128, 3, 3, 1, 1, CONV_IM2COL, 32, 32},     {8, 32, 31, 8, 3, 3, 1, 1, CONV_WINOGRAD, 32, 31},
        {64, 32, 32, 128, 3, 3, 2, 1, CONV_IM2COL, 16, 16},    {64, 8, 7, 64, 3, 3, 1, 0, CONV_WINOGRAD, 6, 5},
        {64, 8, 7, 64, 3, 3, 1, 2, CONV_WINOGRAD, 10, 9},      {64, 32, 32, 128, 1, 1, 1, 0, CONV_DIRECT, 32, 32},
        {64, 32, 31, 128, 1, 1, 2, 0, CONV_IM2COL, 16, 16},    {64, 7, 5, 10, 7, 5, 1, 0, CONV_DIRECT, 1, 1},
        {64, 1, 1, 10, 1, 1, 1, 0, CONV_DIRECT, 1, 1},         {64, 3, 3, 64, 3, 3, 1, 0, CONV_DIRECT, 1, 1},
        {64, 3, 3, 64, 3, 3, 1, 1, CONV_WINOGRAD, 3, 3},       {64, 1, 1, 64, 3, 3, 1, 1, CONV_WINOGRAD, 1, 1},
        {64, 9, 9, 64, 5, 5, 1, 2, CONV_IM2COL, 9, 9},         {7, 9, 9, 64, 3, 3, 1, 1, CONV_IM2COL, 9, 9},
        {64, 9, 9, 7, 3, 3, 1, 1, CONV_IM2COL, 9, 9},          {64, 9, 9, 64, 1, 1, 1, 1, CONV_IM2COL, 11, 11},
    };
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        const conv_plan p = conv_make_plan(k[i].in_c, k[i].h, k[i].w, k[i].out_c, k[i].kh, k[i].kw, k[i].stride,
                                           k[i].pad, 1 << 20);
        const int ok = p.algorithm == k[i].algorithm && p.out_h == k[i].out_h && p.out_w == k[i].out_w;
        if (!CHECK(ok, "algorithm and size of the output"))
            printf("    plan %zu: %s, %d x %d\n", i, algorithm_name[p.algorithm], p.out_h, p.out_w);
        // Work: for at most `limit` floats of windows or tiles, but one image at least; not more for a larger batch.
        for (int limit = 0; limit < 6; limit++)
            for (int images = 1; images < 200000; images *= 7) {
                conv_plan q = p;
                q.limit = limit ? (size_t)1 << (14 + 2 * limit) : 0;
                const size_t one = conv_image_floats(&q), most = one > q.limit ? one : q.limit;
                const size_t chunk = (size_t)conv_chunk(&q, images), work = conv_work_floats(&q, images);
                const size_t extra = conv_transformed_floats(&q) + 2 * CONV_POINTS * CONV_PAD;
                CHECK(chunk >= 1 && chunk <= (size_t)images && work <= most + extra, "work of a chunk");
                CHECK(chunk == (size_t)images || conv_work_floats(&q, 100 * images) == work,
                      "work does not grow with the batch");
                const size_t rows = (size_t)(q.algorithm == CONV_WINOGRAD ? conv_tiles(&q) : q.out_h * q.out_w);
                CHECK(q.algorithm == CONV_DIRECT || chunk == 1 || chunk * rows <= 65535, "blocks in y");
            }
    }
}

// ---------------------------------------------------------------------------------------------------------- 2. kernels

static void test_pack(int in_c, int out_c, int positions) {
    const size_t n = (size_t)out_c * (size_t)in_c * (size_t)positions;
    float *w = floats(n), *want = floats(n);
    snprintf(label, sizeof label, "weights %d x %d x %d", out_c, in_c, positions);
    fill(w, n, 0, 1);
    for (int o = 0; o < out_c; o++)
        for (int i = 0; i < in_c; i++)
            for (int k = 0; k < positions; k++)
                want[(o * positions + k) * in_c + i] = w[(o * in_c + i) * positions + k];
    float *packed = out(n), *back = out(n);
    conv_pack_kernel<<<conv_grid(in_c, out_c, positions), CONV_BLOCK>>>(packed, in(w, n), in_c, positions);
    same_bits("packed", packed, want, n * sizeof(float));
    conv_unpack_kernel<<<conv_grid(in_c, out_c, positions), CONV_BLOCK>>>(back, packed, in_c, positions);
    same_bits("unpacked", back, w, n * sizeof(float));
    release();
}

// Windows, and what is added back to them.
static void test_columns(int in_c, int h, int w, int kh, int kw, int stride, int pad) {
    const int images = 2;
    const conv_plan p = conv_make_plan(in_c, h, w, 1, kh, kw, stride, pad, 0);
    const int rows = images * p.out_h * p.out_w, columns = conv_columns(&p);
    const size_t n = (size_t)rows * (size_t)columns, n_x = in_floats(&p, images);
    float *x = floats(n_x), *c = floats(n), *want = floats(n), *before = floats(n_x);
    double *sum = doubles(n_x);
    snprintf(label, sizeof label, "columns of %dx%dx%d, kernel %dx%d, stride %d, padding %d", in_c, h, w, kh, kw,
             stride, pad);
    fill(x, n_x, 0, 1);
    fill(c, n, 0, 1);
    fill(before, n_x, 0, 1);
    for (size_t i = 0; i < n_x; i++) sum[i] = (double)before[i];
    size_t at = 0;
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < kh * kw; k++)
            for (int i = 0; i < in_c; i++, at++) {
                const int pixel = r % (p.out_h * p.out_w), image = r / (p.out_h * p.out_w);
                const int iy = pixel / p.out_w * stride - pad + k / kw, ix = pixel % p.out_w * stride - pad + k % kw;
                if (iy < 0 || iy >= h || ix < 0 || ix >= w) continue;
                const size_t from_pixel = ((size_t)image * (size_t)h + (size_t)iy) * (size_t)w + (size_t)ix;
                const size_t from = from_pixel * (size_t)in_c + (size_t)i;
                want[at] = x[from];
                sum[from] += (double)c[at];
            }
    float *columns_d = out(n), *dx = in(before, n_x), *c_d = in(c, n);
    conv_im2col_kernel<<<conv_grid(kw * in_c, rows, kh), CONV_BLOCK>>>(columns_d, in(x, n_x), p);
    const float *got = (const float *)fetch(columns_d, n * sizeof(float));
    int equal = 1;  // 0 and -0 are equal
    for (size_t i = 0; i < n; i++) equal = equal && got[i] == want[i];
    if (!CHECK(equal, "windows")) printf("    %s\n", label);
    for (int k = 0; k < kh * kw; k++)
        conv_col2im_kernel<<<conv_grid(in_c, rows, 1), CONV_BLOCK>>>(dx, c_d, k / kw, k % kw, p);
    same("added back", dx, sum, n_x, 1e-6, 2e-6);
    release();
}

// Winograd's transforms as matrices, from one-hot inputs: channel c of one tile is the c-th unit vector.
static float *unit_vectors(int n) {
    float *v = floats((size_t)n * (size_t)n);
    for (int i = 0; i < n; i++) v[i * n + i] = 1;
    return v;
}

// Winograd's transforms of one tile, GAP floats between two points: input[point][pixel], weight[point][position],
// output[pixel][point].
enum { POINTS = CONV_POINTS, TILE = CONV_TILE * CONV_TILE, WINDOW = 36, KERNEL = 9, GAP = 3 };
enum { PER_WINDOW = WINDOW + GAP, PER_KERNEL = KERNEL + GAP, PER_POINT = POINTS + GAP, PER_TILE = TILE + GAP };
typedef struct transforms {
    const float *input, *weight, *output;
} transforms;

static conv_plan one_tile(void) {
    conv_plan p = conv_make_plan(WINDOW, 6, 6, POINTS, 3, 3, 1, 0, 0);
    p.algorithm = CONV_WINOGRAD;
    CHECK(p.out_h == 4 && p.out_w == 4 && conv_tiles(&p) == 1, "one tile");
    return p;
}

// The unit vectors of the points, [POINTS][PER_POINT], on the device.
static float *unit_points(void) {
    float *m = floats(POINTS * PER_POINT);
    for (int k = 0; k < POINTS; k++) m[k * PER_POINT + k] = 1;
    return in(m, POINTS * PER_POINT);
}

static transforms forward_transforms(conv_plan p) {
    float *input = out(POINTS * PER_WINDOW), *weight = out(POINTS * PER_KERNEL), *output = out(TILE * POINTS);
    const float *windows = in(unit_vectors(WINDOW), WINDOW * WINDOW);
    const float *kernels = in(unit_vectors(KERNEL), KERNEL * KERNEL);
    conv_input_kernel<<<conv_grid(WINDOW, 1, 1), CONV_BLOCK>>>(input, windows, p, PER_WINDOW);
    conv_weight_kernel<<<conv_grid(KERNEL, 1, 1), CONV_BLOCK>>>(weight, kernels, KERNEL, 9, PER_KERNEL);
    conv_output_kernel<<<conv_grid(POINTS, 1, 1), CONV_BLOCK>>>(output, unit_points(), (const float *)NULL, 0, p,
                                                               PER_POINT);
    transforms t;
    t.input = (const float *)fetch(input, POINTS * PER_WINDOW * sizeof(float));
    t.weight = (const float *)fetch(weight, POINTS * PER_KERNEL * sizeof(float));
    t.output = (const float *)fetch(output, TILE * POINTS * sizeof(float));
    return t;
}

// Together: y[pixel] = sum over the kernel of x[pixel + position] w[position].
static void check_together(const transforms *t) {
    double *got = doubles(TILE * WINDOW * KERNEL), *want = doubles(TILE * WINDOW * KERNEL);
    for (int k = 0; k < POINTS; k++)
        for (int i = 0; i < GAP; i++)
            CHECK(isnan(t->input[k * PER_WINDOW + WINDOW + i]) && isnan(t->weight[k * PER_KERNEL + KERNEL + i]),
                  "nothing between two points");
    for (int y = 0; y < TILE; y++)
        for (int x = 0; x < WINDOW; x++)
            for (int w = 0; w < KERNEL; w++) {
                const int at = (y * WINDOW + x) * KERNEL + w;
                for (int k = 0; k < POINTS; k++) {
                    const double to_y = (double)t->output[y * POINTS + k];
                    got[at] += to_y * (double)t->weight[k * PER_KERNEL + w] * (double)t->input[k * PER_WINDOW + x];
                }
                want[at] = x / 6 == y / 4 + w / 3 && x % 6 == y % 4 + w % 3;
            }
    test_close_d("F(4x4, 3x3)", got, want, TILE * WINDOW * KERNEL, 0, 2e-6);
}

// Each backward transform is the transpose of the forward one.
static void check_transposes(const transforms *t, conv_plan p) {
    float *dx = in(floats(WINDOW * POINTS), WINDOW * POINTS), *dw = out(POINTS * KERNEL);
    float *dm_d = out(POINTS * PER_TILE);
    double *transposed = doubles(POINTS * WINDOW), *dm_got = doubles(POINTS * TILE);
    const float *dv = unit_points(), *tiles = in(unit_vectors(TILE), TILE * TILE);
    p.in_c = POINTS;
    conv_input_adjoint_kernel<<<conv_grid(POINTS, 1, 1), CONV_BLOCK>>>(dx, dv, p, PER_POINT, 1, 1, 0);
    for (int x = 0; x < WINDOW; x++)
        for (int k = 0; k < POINTS; k++) transposed[x * POINTS + k] = (double)t->input[k * PER_WINDOW + x];
    same("of the input", dx, transposed, WINDOW * POINTS, 1e-6, 1e-6);
    conv_weight_adjoint_kernel<<<conv_grid(POINTS, 1, 1), CONV_BLOCK>>>(dw, dv, POINTS, PER_POINT);
    for (int k = 0; k < POINTS; k++)
        for (int w = 0; w < KERNEL; w++) transposed[k * KERNEL + w] = (double)t->weight[k * PER_KERNEL + w];
    same("of the weights", dw, transposed, POINTS * KERNEL, 1e-6, 1e-6);
    p.out_c = TILE;
    conv_output_adjoint_kernel<<<conv_grid(TILE, 1, 1), CONV_BLOCK>>>(dm_d, tiles, p, PER_TILE);
    const float *dm = (const float *)fetch(dm_d, POINTS * PER_TILE * sizeof(float));
    for (int k = 0; k < POINTS; k++)
        for (int y = 0; y < TILE; y++) {
            dm_got[k * TILE + y] = (double)dm[k * PER_TILE + y];
            transposed[k * TILE + y] = (double)t->output[y * POINTS + k];
        }
    test_close_d("transposed output transform", dm_got, transposed, POINTS * TILE, 1e-6, 1e-6);
}

static void test_transforms(void) {
    snprintf(label, sizeof label, "Winograd's transforms");
    const conv_plan p = one_tile();
    const transforms t = forward_transforms(p);
    check_together(&t);
    check_transposes(&t, p);
    release();
}

static void test_kernels(void) {
    static const int channels[] = {1, 3, 17, 64, 130}, positions[] = {1, 4, 9, 25};
    for (int i = 0; i < 5; i++)
        for (int o = 0; o < 4; o++)
            for (int k = 0; k < 4; k++) test_pack(channels[i], channels[o], positions[k]);
    for (int c = 0; c < 5; c++)
        for (int stride = 1; stride < 4; stride++)
            for (int pad = 0; pad < 3; pad++) {
                test_columns(channels[c], 5, 7, 3, 3, stride, pad);
                test_columns(channels[c], 6, 4, 1, 1, stride, pad);
                test_columns(channels[c], 7, 5, 5, 5, stride, pad);
                test_columns(channels[c], 4, 9, 2, 3, stride, pad);
            }
    test_transforms();
}

// ----------------------------------------------------------------------------------------------------------- 3. passes

// What a case varies beside its shape, by a running number: the periods have no common factor, so all pairs come up.
static int variant;

// One shape with one algorithm, forward and backward, against the reference.
static void test_case(int in_c, int h, int w, int out_c, int kh, int kw, int stride, int pad, int images,
                      int algorithm) {
    static const int per_chunk[] = {0, 1, 3, 1000};  // images; 0: a limit of nothing
    conv_plan p = conv_make_plan(in_c, h, w, out_c, kh, kw, stride, pad, 0);
    if (algorithm != AS_PLANNED) p.algorithm = algorithm;
    p.limit = (size_t)per_chunk[variant % 4] * conv_image_floats(&p) + (size_t)(variant % 5);
    const int bias = variant % 3 != 0, relu = variant % 7 > 2;
    const int accumulate = variant % 5 > 2, want_dx = variant % 11 != 0;
    variant++;
    const char *bias_name = bias ? ", bias" : "";
    const char *relu_name = relu ? ", ReLU" : "";
    const char *added_name = accumulate ? ", added" : "";
    const char *dx_name = want_dx ? "" : ", no dx";
    snprintf(label, sizeof label, "%s, %d x %dx%dx%d to %d, kernel %dx%d, stride %d, padding %d, %d a chunk%s%s%s%s",
             algorithm_name[p.algorithm], images, in_c, h, w, out_c, kh, kw, stride, pad, conv_chunk(&p, images),
             bias_name, relu_name, added_name, dx_name);
    problem q = make_problem(p, images, bias, relu, accumulate, want_dx);
    const RefWindow win = ref_window(in_c, h, w, out_c, kh, kw, stride, pad);
    CHECK(win.out_h == p.out_h && win.out_w == p.out_w, "size of the output");
    const size_t n_in = in_floats(&p, images), n_out = out_floats(&p, images), n_w = conv_weights(&p);
    double *x = doubles(n_in), *dy = doubles(n_out), *weights = doubles(n_w), *b = doubles((size_t)out_c);
    double *y = doubles(n_out), *dx = doubles(n_in), *dw = doubles(n_w);
    double *want = doubles(n_in > n_out ? n_in : n_out);
    to_nchw(x, q.x, images, in_c, h, w);
    to_nchw(dy, q.dy, images, out_c, p.out_h, p.out_w);
    for (size_t i = 0; i < n_w; i++) weights[i] = (double)q.w[i];
    for (int i = 0; bias && i < out_c; i++) b[i] = (double)q.b[i];
    ref_conv_forward(y, x, weights, bias ? b : NULL, images, &win);
    ref_conv_backward(want_dx ? dx : NULL, dw, NULL, dy, x, weights, images, &win);
    run_passes(&q);
    for (size_t i = 0; relu && i < n_out; i++) y[i] = y[i] > 0 ? y[i] : 0;
    to_nhwc(want, y, images, out_c, p.out_h, p.out_w);
    compare(p.algorithm, OF_Y, q.y, want, n_out, conv_columns(&p));
    compare(p.algorithm, OF_DW, q.dw, dw, n_w, images * p.out_h * p.out_w);
    to_nhwc(want, dx, images, in_c, h, w);
    for (size_t i = 0; accumulate && want_dx && i < n_in; i++) want[i] += (double)q.before[i];
    if (want_dx) compare(p.algorithm, OF_DX, q.dx, want, n_in, out_c * kh * kw);
    cases[p.algorithm]++;
    release();
}

// All algorithms that apply to a shape.
static void test_shape(int in_c, int h, int w, int out_c, int kh, int kw, int stride, int pad, int images) {
    if (h + 2 * pad < kh || w + 2 * pad < kw) return;
    const conv_plan p = conv_make_plan(in_c, h, w, out_c, kh, kw, stride, pad, 0);
    test_case(in_c, h, w, out_c, kh, kw, stride, pad, images, AS_PLANNED);
    if (p.algorithm != CONV_IM2COL) test_case(in_c, h, w, out_c, kh, kw, stride, pad, images, CONV_IM2COL);
    if (p.algorithm != CONV_WINOGRAD && kh == 3 && kw == 3 && stride == 1)
        test_case(in_c, h, w, out_c, kh, kw, stride, pad, images, CONV_WINOGRAD);
}

static void test_passes(void) {
    static const int sizes[][2] = {{7, 5}, {5, 9}, {3, 3}, {1, 2}, {8, 12}, {9, 4}};
    static const int channels[][2] = {{1, 1},   {3, 17}, {17, 3},  {64, 1}, {1, 64}, {17, 17},
                                      {3, 64},  {64, 17}, {8, 9},  {17, 64}, {1, 3}};
    int k = 0;
    for (int kernel = 1; kernel <= 5; kernel += 2)
        for (int stride = 1; stride <= 2; stride++)
            for (int pad = 0; pad <= 2; pad++)
                for (int s = 0; s < 6; s++)
                    for (int round = 0; round < 4; round++, k++) {
                        const int in_c = channels[k % 11][0], out_c = channels[k % 11][1], images = k % 2 ? 7 : 1;
                        test_shape(in_c, sizes[s][0], sizes[s][1], out_c, kernel, kernel, stride, pad, images);
                    }
    for (int s = 0; s < 6; s++)  // whole maps, and kernels that are not square
        for (int i = 0; i < 11; i++, k++) {
            const int c = channels[i][0], o = channels[i][1], h = sizes[s][0], w = sizes[s][1];
            test_shape(c, h, w, o, h, w, 1, 0, k % 2 ? 7 : 1);
            if (i % 4 == s % 4) {
                test_shape(c, h, w, o, 2, 3, 1, 1, 7);
                test_shape(c, h, w, o, 1, 3, 2, 1, 7);
                test_shape(c, h, w, o, 3, 1, 1, 1, 7);
            }
        }
    for (int round = 0; round < 4; round++) {  // many channels; round: the variants
        test_shape(64, 9, 11, 64, 3, 3, 1, 1, 7);
        test_shape(64, 8, 8, 64, 3, 3, 1, 1, 3);
        test_shape(64, 6, 5, 64, 3, 3, 1, 0, 7);
        test_shape(64, 5, 6, 64, 5, 5, 1, 2, 2);
        test_shape(64, 9, 7, 64, 3, 3, 2, 1, 7);
        test_shape(64, 6, 7, 64, 1, 1, 1, 0, 7);
        test_shape(130, 4, 5, 140, 3, 3, 1, 1, 2);  // more than a block has threads
    }
    // More rows than a grid has blocks in y: 17 images of 64x64 pixels, 70,000 images of one tile.
    test_shape(1, 64, 64, 1, 3, 3, 1, 1, 17);
    variant = 3;  // everything in one chunk, if the grid allowed it
    test_case(1, 2, 3, 1, 3, 3, 1, 1, 70000, CONV_WINOGRAD);
    for (int a = 0; a < N_ALGORITHMS; a++) CHECK(cases[a] > 60, "cases of every algorithm");
}

// ------------------------------------------------------------------------------------------------------- 4. identities

// Shapes and algorithms for the identities.
static const struct {
    int in_c, h, w, out_c, kernel, stride, pad, images, algorithm, per_chunk;
} layers[] = {
    {17, 9, 7, 13, 3, 1, 1, 5, CONV_WINOGRAD, 2},
    {64, 6, 11, 64, 3, 1, 0, 3, CONV_WINOGRAD, 1},
    {3, 5, 5, 8, 3, 1, 2, 4, CONV_WINOGRAD, 9},
    {17, 9, 7, 13, 3, 1, 1, 5, CONV_IM2COL, 2},
    {3, 8, 9, 16, 5, 2, 2, 4, CONV_IM2COL, 3},
    {12, 7, 7, 5, 1, 2, 0, 4, CONV_IM2COL, 9},
    {17, 5, 6, 9, 1, 1, 0, 4, CONV_DIRECT, 9},
};
enum { N_LAYERS = sizeof layers / sizeof *layers };

static conv_plan layer_plan(int i) {
    const int kernel = layers[i].kernel;
    conv_plan p = conv_make_plan(layers[i].in_c, layers[i].h, layers[i].w, layers[i].out_c, kernel, kernel,
                                 layers[i].stride, layers[i].pad, 0);
    p.algorithm = layers[i].algorithm;
    p.limit = (size_t)layers[i].per_chunk * conv_image_floats(&p);
    return p;
}

// <conv(x), dy> = <x, dx> = <w, dw>, summed in double.
static void test_adjoint(int i) {
    problem q = make_problem(layer_plan(i), layers[i].images, 0, 0, 0, 1);
    snprintf(label, sizeof label, "adjoint, layer %d", i);
    run_passes(&q);
    const size_t n_in = in_floats(&q.p, q.images), n_out = out_floats(&q.p, q.images), n_w = conv_weights(&q.p);
    const double size = sqrt(dot(q.y, q.y, n_out) * dot(q.dy, q.dy, n_out)), y = dot(q.y, q.dy, n_out) / size;
    const double others[2] = {dot(q.x, q.dx, n_in) / size, dot(q.w, q.dw, n_w) / size}, want[2] = {y, y};
    test_close_d(label, others, want, 2, 0, 2e-7);
    release();
}

// Channels and weights scaled by powers of two give outputs and gradients scaled by them, bit for bit: x by 2^a over
// the inputs, w by 2^(b - a), bias by 2^b, dy by 2^-b. Then y comes by 2^b, dw by 2^(a - b), dx by 2^-a.
static void test_powers_of_two(int i) {
    problem q = make_problem(layer_plan(i), layers[i].images, 1, i % 2, 0, 1), r = q;
    const int positions = q.p.kernel_h * q.p.kernel_w;
    const size_t n_in = in_floats(&q.p, q.images), n_out = out_floats(&q.p, q.images), n_w = conv_weights(&q.p);
    const size_t in_c = (size_t)q.p.in_c, out_c = (size_t)q.p.out_c;
    int *a = ints(in_c), *b = ints(out_c);
    snprintf(label, sizeof label, "powers of two, layer %d", i);
    for (size_t k = 0; k < in_c; k++) a[k] = (int)(12 * uniform());
    for (size_t k = 0; k < out_c; k++) b[k] = (int)(12 * uniform());
    r.x = floats(n_in);
    r.w = floats(n_w);
    r.b = floats(out_c);
    r.dy = floats(n_out);
    for (size_t k = 0; k < n_in; k++) r.x[k] = ldexpf(q.x[k], a[k % in_c]);
    for (size_t k = 0; k < n_out; k++) r.dy[k] = ldexpf(q.dy[k], -b[k % out_c]);
    for (size_t k = 0; k < out_c; k++) r.b[k] = ldexpf(q.b[k], b[k]);
    for (size_t k = 0; k < n_w; k++) {
        const size_t input = k / (size_t)positions % in_c, output = k / (size_t)positions / in_c;
        r.w[k] = ldexpf(q.w[k], b[output] - a[input]);
    }
    run_passes(&q);
    run_passes(&r);
    int y = 1, dx = 1, dw = 1;
    for (size_t k = 0; k < n_out; k++) y = y && r.y[k] == ldexpf(q.y[k], b[k % out_c]);
    for (size_t k = 0; k < n_in; k++) dx = dx && r.dx[k] == ldexpf(q.dx[k], -a[k % in_c]);
    for (size_t k = 0; k < n_w; k++) {
        const size_t pair = k / (size_t)positions;  // of an output and an input channel
        dw = dw && r.dw[k] == ldexpf(q.dw[k], a[pair % in_c] - b[pair / in_c]);
    }
    CHECK(y && dx && dw, "scaled exactly");
    if (!y || !dx || !dw) printf("    %s: y %d, dx %d, dweight %d\n", label, y, dx, dw);
    release();
}

// The same call gives the same bits; with the built-in product for any number of threads. Weights that have changed
// since the last forward pass are transformed anew.
static void test_repetition(int i) {
    problem q = make_problem(layer_plan(i), layers[i].images, 1, 1, 1, 1);
    const size_t n_y = out_floats(&q.p, q.images), n_w = conv_weights(&q.p), n_x = in_floats(&q.p, q.images);
    const size_t y_bytes = n_y * sizeof(float), w_bytes = n_w * sizeof(float), x_bytes = n_x * sizeof(float);
    snprintf(label, sizeof label, "repetition, layer %d", i);
    run_passes(&q);
    problem again = q;
#if !DEVICE_IS_GPU
    const int threads = g.threads;
    if (!strstr(gemm_backend(), "OpenBLAS")) g.threads = threads == 1 ? 2 : 1;
#endif
    run_passes(&again);
#if !DEVICE_IS_GPU
    g.threads = threads;
#endif
    CHECK(!memcmp(q.y, again.y, y_bytes) && !memcmp(q.dw, again.dw, w_bytes) && !memcmp(q.dx, again.dx, x_bytes),
          "the same bits again");
    float *u = out(conv_transformed_floats(&q.p)), *work = out(conv_work_floats(&q.p, q.images));
    float *y = out(n_y), *x = in(q.x, n_x), *w = in(floats(n_w), n_w), *b = in(q.b, (size_t)q.p.out_c);
    conv_forward(&g, &q.p, q.images, x, w, b, 1, y, u, work);
    CUDA_CHECK(cudaMemcpy(w, q.w, w_bytes, cudaMemcpyHostToDevice));
    conv_forward(&g, &q.p, q.images, x, w, b, 1, y, u, work);
    same_bits("weights that changed", y, q.y, y_bytes);
    release();
}

int main(void) {
    char err[256];
#if DEVICE_IS_GPU
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        test_skip("no GPU: convolutions not tested");
        test_summary();
        return 77;
    }
#endif
    if (!CHECK(gemm_create(&g, GEMM_FP32, err, sizeof err) == 0, err)) return test_summary();
    test_plans();
    test_kernels();
    test_passes();
    for (int i = 0; i < N_LAYERS; i++) {
        test_adjoint(i);
        test_powers_of_two(i);
        test_repetition(i);
    }
    for (int a = 0; a < N_ALGORITHMS; a++)
        printf("     %-8s %4d cases; largest error of y, dweight, dx: %.1e %.1e %.1e; "
               "root mean square: %.1e %.1e %.1e\n",
               algorithm_name[a], cases[a], worst_max[a][OF_Y], worst_max[a][OF_DW], worst_max[a][OF_DX],
               worst_rms[a][OF_Y], worst_rms[a][OF_DW], worst_rms[a][OF_DX]);
    gemm_destroy(&g);
    return test_summary();
}
