// test_cnn.cu -- tests of the convolutional trainer: kernels, whole networks, training. On a GPU or on the CPU build.
//
//     make test-programs && build/cpu/test/test_cnn        (or build/cuda/test/test_cnn)
//     build/cpu/test/test_cnn bits                          the last part alone
//
// 1. every kernel of train_cnn.cu against plain loops in double precision: odd shapes, guarded and poisoned memory
// 2. whole networks of every family: outputs, loss and every gradient against ref_cnn.h, finite differences
// 3. fifty training steps of every run of reference_pytorch_cnn.csv against PyTorch's losses; the same bits again
// 4. what a model refuses, its working memory, weight files
// 5. a hash of trained parameters, on the line `bits ...`: test/sanitize.sh compares it over thread orders and counts
// Convolutions are in test_conv.cu, diag(G) and rescaling in test_cnn_rescale.cu, the tangent kernel in
// test_cnn_kernel.cu, BatchNorm, loss and optimizers (layers.cuh) in test_mlp.cu, the command line in
// test_train_cnn.sh.
#define TESTING
#include "train_cnn.cu"

#include "trainer_cnn.h"

// ---------------------------------------------------------------------------------------------------------- 1. kernels

// Shifts and mirroring depend on (seed, epoch, sample) alone, lie in range and are all used.
static void test_crop(void) {
    enum { ROWS = 1000, ROOM = 1003 };
    int order[ROWS], moved[ROWS], *crop[4], seen[3][2 * CROP_PAD + 1] = {{0}};
    int differ = 0, in_range = 1, same_sample = 1;
    snprintf(label, sizeof label, "crops");
    for (int r = 0; r < ROWS; r++) {
        order[r] = r * 7;
        moved[(r * 37 + 11) % ROWS] = r * 7;
    }
    for (int k = 0; k < 4; k++) {  // as it is, samples in other places, the next epoch, another seed
        int *d = (int *)guarded(NULL, 3 * ROOM * sizeof(int));
        const int *const samples = k == 1 ? moved : order;
        const uint32_t epoch = k == 2 ? 4 : 3;
        const uint64_t crop_seed = k == 3 ? 6 : 5;
        crop_kernel<<<ceil_div(ROWS, BLOCK), BLOCK>>>(d, in_ints(samples, ROWS), ROWS, ROOM, crop_seed,
                                                     rng_stream(RNG_AUGMENTATION, epoch));
        crop[k] = (int *)fetch(d, 3 * ROOM * sizeof(int));
        const int rest_untouched = crop[k][ROWS] == -1 && crop[k][ROOM + ROWS] == -1 && crop[k][2 * ROOM + ROWS] == -1;
        CHECK(rest_untouched, "no more rows than asked for");
    }
    for (int r = 0; r < ROWS; r++)
        for (int part = 0; part < 3; part++) {
            const int v = crop[0][part * ROOM + r];
            const int low = part < 2 ? -CROP_PAD : 0;
            const int high = part < 2 ? CROP_PAD : 1;
            in_range = in_range && v >= low && v <= high;
            if (v >= low && v <= high) seen[part][v - low]++;
            same_sample = same_sample && v == crop[1][part * ROOM + (r * 37 + 11) % ROWS];
            differ += (v != crop[2][part * ROOM + r]) + (v != crop[3][part * ROOM + r]);
        }
    CHECK(in_range && same_sample, "a crop belongs to its sample");
    CHECK(differ > ROWS, "other epochs and seeds have other crops");
    for (int part = 0; part < 2; part++)
        for (int v = 0; v <= 2 * CROP_PAD; v++)
            CHECK(seen[part][v] > ROWS / 9 - 60 && seen[part][v] < ROWS / 9 + 60, "all shifts alike");
    CHECK(abs(seen[2][0] - ROWS / 2) < 80, "half are mirrored");
    release();
}

// A batch of images, cropped (shifted beyond the edge, too) and mirrored, by plain loops.
static void test_gather_images(int rows, int channels, int h, int w, int cropped) {
    const int samples = 11, features = channels * h * w, room = rows + 3;
    const size_t total = (size_t)samples * (size_t)features, taken = (size_t)rows * (size_t)features;
    unsigned char *pixels = (unsigned char *)host_bytes(total);
    int *order = ints((size_t)rows), *crop = ints(3 * (size_t)room);
    double *want = doubles(taken), *at = want;
    const normalisation norm = {{1.0f / 70, 0.02f, -0.01f, 9}, {-1.5f, 0.25f, 3, 9}};
    snprintf(label, sizeof label, "gather rows=%d, %dx%dx%d, cropped=%d", rows, channels, h, w, cropped);
    for (size_t i = 0; i < total; i++) pixels[i] = (unsigned char)(128 + 128 * uniform());
    for (int r = 0; r < rows; r++) {
        order[r] = (r * 7 + 5) % samples;
        crop[r] = r % 9 - 4;
        crop[room + r] = r / 9 % 9 - 4;
        crop[2 * room + r] = r / 2 % 2;
    }
    for (int r = 0; r < rows; r++)
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++)
                for (int c = 0; c < channels; c++) {
                    const int column = cropped && crop[2 * room + r] ? w - 1 - x : x;  // of the cropped image
                    const int from_y = y + (cropped ? crop[r] : 0);
                    const int from_x = column + (cropped ? crop[room + r] : 0);
                    const int inside = from_y >= 0 && from_y < h && from_x >= 0 && from_x < w;
                    // The image has a black border.
                    const double pixel = inside ? pixels[((order[r] * channels + c) * h + from_y) * w + from_x] : 0;
                    *at++ = pixel * (double)norm.mul[c] + (double)norm.add[c];
                }
    float *x = out(taken);
    const dim3 grid((unsigned)ceil_div(w, 32), (unsigned)h, (unsigned)rows);
    const int *crop_d = cropped ? in_ints(crop, 3 * (size_t)room) : NULL;
    gather_images_kernel<<<grid, 32>>>(x, (const unsigned char *)guarded(pixels, total), in_ints(order, (size_t)rows),
                                      crop_d, room, channels, w, norm);
    same("images", x, want, taken, 1e-6, 1e-6);
    release();
}

// NCHW doubles to NHWC, and back from floats.
static void to_nhwc(double *y, const double *x, int n, int c, int map) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < c; k++)
            for (int p = 0; p < map; p++) y[(i * map + p) * c + k] = *x++;
}
static double *from_nhwc(const float *x, int n, int c, int map) {
    double *y = doubles((size_t)(n * c * map));
    for (int i = 0; i < n; i++)
        for (int k = 0; k < c; k++)
            for (int p = 0; p < map; p++) y[(i * c + k) * map + p] = (double)x[(i * map + p) * c + k];
    return y;
}

// Max-pools, forward and backward, as maxima and as sums. With `coarse` there are few different values, so that most
// windows have several largest.
static void test_max_pool(int n, int c, int h, int w, int kernel, int stride, int pad, int coarse) {
    const RefWindow win = ref_window(c, h, w, c, kernel, kernel, stride, pad);
    const pool_shape p = {c, h, w, win.out_h, win.out_w, kernel, stride, pad};
    const int map = h * w, out_map = win.out_h * win.out_w;
    const size_t n_x = (size_t)(n * c * map), n_y = (size_t)(n * c * out_map);
    float *x = floats(n_x), *d = floats(n_y);
    double *y = doubles(n_y), *dx = doubles(n_x), *want = doubles(n_x > n_y ? n_x : n_y);
    int *arg = ints(n_y);
    snprintf(label, sizeof label, "max-pool %d x %dx%dx%d, kernel %d, stride %d, padding %d, coarse %d", n, c, h, w,
             kernel, stride, pad, coarse);
    const int got_h = conv_out_size(h, kernel, stride, pad), got_w = conv_out_size(w, kernel, stride, pad);
    CHECK(got_h == win.out_h && got_w == win.out_w, "size of the output");
    fill(x, n_x, -0.5, 1);
    fill(d, n_y, 0, 1);
    for (size_t i = 0; coarse && i < n_x; i++) x[i] = floorf(2 * x[i]) / 2;
    const double *x_ref = from_nhwc(x, n, c, map), *d_ref = from_nhwc(d, n, c, out_map);
    for (int sum = 0; sum < 2; sum++) {
        float *y_d = out(n_y), *dx_d = out(n_x);
        unsigned char *arg_d = (unsigned char *)guarded(NULL, n_y);
        if (sum) sum_pool_kernel<<<grid_of_images(c, out_map, n), block_of(c)>>>(y_d, in(x, n_x), p);
        else max_pool_kernel<<<grid_of_images(c, out_map, n), block_of(c)>>>(y_d, arg_d, in(x, n_x), p);
        if (sum) {
            ref_sum_pool_forward(y, x_ref, n, &win);
            ref_sum_pool_backward(dx, d_ref, n, &win);
        } else {
            ref_max_pool_forward(y, arg, x_ref, n, &win);
            ref_max_pool_backward(dx, d_ref, arg, n, &win);
        }
        to_nhwc(want, y, n, c, out_map);
        const double tolerance = sum ? 1e-6 : 0;  // maxima are exact
        same(sum ? "sums" : "maxima", y_d, want, n_y, tolerance, tolerance);
        const unsigned char *arg_got = (const unsigned char *)fetch(arg_d, n_y);
        int winners = 1;
        for (int i = 0; i < n; i++)
            for (int k = 0; k < c; k++)
                for (int o = 0; o < out_map; o++) {
                    const int at = arg_got[(i * out_map + o) * c + k];
                    const int iy = o / win.out_w * stride - pad + at / POOL;
                    const int ix = o % win.out_w * stride - pad + at % POOL;
                    winners = winners && arg[(i * c + k) * out_map + o] == iy * w + ix;
                }
        if (!sum && !CHECK(winners, "the first of the largest wins")) printf("    %s\n", label);
        max_pool_backward_kernel<<<grid_of_images(c, map, n), block_of(c)>>>(dx_d, in(d, n_y), arg_d, p, sum);
        to_nhwc(want, dx, n, c, map);
        same(sum ? "gradient of sums" : "gradient of maxima", dx_d, want, n_x, 1e-6, 1e-6);
    }
    release();
}

// Whether a 2x2 window with padding 1 has but one pixel inside the image: in a corner.
static int held_alone(int row, int col, int stride, int h, int w) {
    const int top = row == 0, left = col == 0, bottom = row * stride == h, right = col * stride == w;
    return (top || bottom) && (left || right);
}

// A window with a NaN gives NaN, and no other window does; infinities are numbers. One value among zeros, everywhere.
static void test_max_pool_special(int kernel, int stride, int pad, float special) {
    const int h = 6, w = 5;
    const int out_h = conv_out_size(h, kernel, stride, pad), out_w = conv_out_size(w, kernel, stride, pad);
    const pool_shape p = {1, h, w, out_h, out_w, kernel, stride, pad};
    snprintf(label, sizeof label, "max-pool with %g, kernel %d, stride %d, padding %d", (double)special, kernel, stride,
             pad);
    for (int at = 0; at < h * w; at++) {
        float x[30];
        int wrong = 0;
        for (int i = 0; i < h * w; i++) x[i] = i == at ? special : 0;
        for (int sum = 0; sum < 2; sum++) {
            float *y_d = out((size_t)(out_h * out_w));
            unsigned char *arg_d = (unsigned char *)guarded(NULL, (size_t)(out_h * out_w));
            if (sum) sum_pool_kernel<<<grid_of_images(1, out_h * out_w, 1), block_of(1)>>>(y_d, in(x, 30), p);
            else max_pool_kernel<<<grid_of_images(1, out_h * out_w, 1), block_of(1)>>>(y_d, arg_d, in(x, 30), p);
            const float *y = (const float *)fetch(y_d, (size_t)(out_h * out_w) * sizeof(float));
            for (int o = 0; o < out_h * out_w; o++) {
                const int row = o / out_w, col = o % out_w;
                const int dy = at / w - (row * stride - pad), dx = at % w - (col * stride - pad);
                const int inside = dy >= 0 && dy < kernel && dx >= 0 && dx < kernel;
                const int alone = kernel == 2 && pad == 1 && held_alone(row, col, stride, h, w);
                const float want = inside && (sum || alone || !(special < 0)) ? special : 0;
                wrong += isnan(want) ? !isnan(y[o]) : !(y[o] == want);
            }
        }
        if (!CHECK(wrong == 0, "a special value reaches the windows that hold it and no others"))
            printf("    %s at %d\n", label, at);
        release();
    }
}

static void test_avg_pool(int n, int c, int h, int w) {
    const int map = h * w;
    const size_t n_x = (size_t)(n * c * map), n_y = (size_t)(n * c);
    const float factor = 1.0f / (float)(map * map);
    float *x = floats(n_x), *d = floats(n_y);
    double *y = doubles(n_y), *dx = doubles(n_x), *want = doubles(n_x);
    snprintf(label, sizeof label, "average pool %d x %dx%dx%d", n, c, h, w);
    fill(x, n_x, 0.3, 1);
    fill(d, n_y, 0, 1);
    float *y_d = out(n_y), *dx_d = out(n_x);
    avg_pool_kernel<<<grid_of(c, n), block_of(c)>>>(y_d, in(x, n_x), map, c, factor);
    ref_avg_pool_forward(y, from_nhwc(x, n, c, map), n * c, map, (double)factor);
    same("forward", y_d, y, n_y, 1e-6, 1e-6);
    avg_pool_backward_kernel<<<grid_of_images(c, map, n), block_of(c)>>>(dx_d, in(d, n_y), c, factor);
    ref_avg_pool_backward(dx, from_nhwc(d, n, c, 1), n * c, map, (double)factor);
    to_nhwc(want, dx, n, c, map);
    same("backward", dx_d, want, n_x, 1e-6, 0);
    release();
}

static void test_elementwise(int n) {
    const size_t s = (size_t)n;
    float *y = floats(s), *r = floats(s);
    double *sum = doubles(s), *clipped = doubles(s), *square = doubles(s), *positive = doubles(s);
    double *constant = doubles(s);
    snprintf(label, sizeof label, "element by element, n=%d", n);
    fill(y, s, 0, 1);
    fill(r, s, 0, 1);
    r[n - 1] = -y[n - 1];  // a sum of exactly zero
    for (int i = 0; i < n; i++) {
        const double v = (double)y[i] + (double)r[i];
        sum[i] = v;
        clipped[i] = v > 0 ? v : 0;
        square[i] = (double)y[i] * (double)y[i];
        positive[i] = fabs((double)y[i]);
        constant[i] = -2.5;
    }
    const int blocks = ceil_div(n, BLOCK);
    float *plain = in(y, s), *relu = in(y, s), *squared = out(s), *absolute = out(s), *filled = out(s);
    add_relu_kernel<<<blocks, BLOCK>>>(plain, in(r, s), n, 0);
    add_relu_kernel<<<blocks, BLOCK>>>(relu, in(r, s), n, 1);
    kernel_raise(squared, in(y, s), s, 2);
    kernel_raise(absolute, in(y, s), s, 1);
    fill_kernel<<<blocks, BLOCK>>>(filled, -2.5f, n);
    same("sum", plain, sum, s, 1e-6, 1e-7);
    same("sum through ReLU", relu, clipped, s, 1e-6, 1e-7);
    same("square", squared, square, s, 1e-6, 0);
    same("absolute value", absolute, positive, s, 0, 0);
    same("filled", filled, constant, s, 0, 0);
    const float bad[3] = {NAN, 1, -1}, zero[3] = {0, 0, 0};
    float *kept = in(bad, 3);
    add_relu_kernel<<<1, BLOCK>>>(kept, in(zero, 3), 3, 1);
    const float *got = (const float *)fetch(kept, sizeof bad);
    CHECK(isnan(got[0]) && got[1] == 1 && got[2] == 0, "ReLU keeps NaN");
    release();
}

static void test_kernels(void) {
    static const int channels[] = {1, 3, 17, 64, 300}, lengths[] = {1, 3, 256, 257, 1000};
    static const int sizes[][2] = {{5, 7}, {6, 4}, {1, 3}, {9, 8}, {2, 2}};
    test_crop();
    for (int k = 0; k < 2; k++) {
        for (int s = 0; s < 5; s++)
            for (int c = 1; c <= 3; c += 2) {
                test_gather_images(9, c, sizes[s][0], sizes[s][1], k);
                test_gather_images(1, c, sizes[s][0], sizes[s][1], k);
            }
        test_gather_images(170, 1, 12, 35, k);
    }
    for (int c = 0; c < 5; c++)
        for (int s = 0; s < 5; s++) {
            const int n = c % 2 ? 7 : 1, h = sizes[s][0], w = sizes[s][1];
            for (int kernel = 2; kernel <= 3; kernel++)
                for (int stride = 1; stride <= 3; stride++)
                    for (int pad = 0; pad <= kernel / 2; pad++)
                        if (h + 2 * pad >= kernel && w + 2 * pad >= kernel)
                            test_max_pool(n, channels[c], h, w, kernel, stride, pad, (c + s + stride) % 2);
            test_avg_pool(n, channels[c], h, w);
        }
    for (int kernel = 2; kernel <= 3; kernel++)
        for (int stride = 1; stride <= 2; stride++)
            for (int pad = 0; pad <= 1; pad++) {
                test_max_pool_special(kernel, stride, pad, NAN);
                test_max_pool_special(kernel, stride, pad, INFINITY);
                test_max_pool_special(kernel, stride, pad, -INFINITY);
            }
    for (int i = 0; i < 5; i++) test_elementwise(lengths[i]);
}

// --------------------------------------------------------------------------------------------------- 2. whole networks

typedef struct net_case {
    const char *name;
    RefCnnConfig k;
    int rows;
    double smoothing;
} net_case;

static const net_case nets[] = {
    {"allconv", {REF_ALLCONV, 3, 32, 32, 10, 0.04, 0, 1, 1, 0}, 2, 0},
    {"allconv, no bias", {REF_ALLCONV, 3, 32, 32, 7, 0.04, 0, 0, 0, 0}, 2, 0.1},
    {"allconv, BatchNorm", {REF_ALLCONV, 3, 32, 32, 10, 0.04, 1, 1, 1, 0}, 2, 0},
    {"allconv, BatchNorm, no bias", {REF_ALLCONV, 1, 32, 32, 10, 0.04, 1, 0, 0, 0}, 2, 0},
    {"resnet18", {REF_RESNET18, 3, 32, 32, 10, 0.05, 1, 1, 1, 0}, 2, 0.1},
    {"resnet18, projections", {REF_RESNET18, 3, 16, 16, 5, 0.05, 1, 1, 1, 1}, 3, 0},
    {"resnet18, no norm", {REF_RESNET18, 3, 16, 16, 10, 0.05, 0, 1, 1, 0}, 2, 0},
    {"resnet18, no norm, projections, no bias", {REF_RESNET18, 1, 11, 9, 10, 0.07, 0, 0, 0, 1}, 2, 0},
    {"resnet18, projections, no bias", {REF_RESNET18, 3, 9, 14, 10, 0.05, 1, 0, 0, 1}, 3, 0},
    {"small", {REF_SMALL, 1, 28, 28, 10, 0.2, 0, 1, 1, 0}, 3, 0.1},
    {"small, BatchNorm", {REF_SMALL, 3, 32, 32, 10, 0.2, 1, 1, 1, 0}, 2, 0},
    {"small, odd sizes", {REF_SMALL, 1, 17, 23, 3, 0.3, 0, 1, 1, 0}, 5, 0},
    {"small, odd sizes, BatchNorm, no bias", {REF_SMALL, 3, 17, 23, 10, 0.25, 1, 0, 0, 0}, 4, 0.2},
    {"small, 4x5 pixels", {REF_SMALL, 1, 4, 5, 2, 0.5, 1, 1, 1, 0}, 7, 0},
    {"small, one row", {REF_SMALL, 1, 7, 6, 4, 0.5, 0, 1, 1, 0}, 1, 0},
};
enum { N_NETS = sizeof nets / sizeof *nets };

// How near the last pass came to a decision: the smallest |input| of a ReLU, and the smallest lead of the winner in a
// max-pool, unless the winner is a zero that a ReLU left. Gradients are arbitrary where floats round to the other side.
static double decision_distance(const RefCnn *ref) {
    double nearest = 1;
    for (int l = 0; l < ref->n_layers; l++) {
        const RefCnnLayer *layer = &ref->layers[l];
        const RefWindow *s = &layer->win;
        if (layer->kind != REF_LAYER_RELU && layer->kind != REF_LAYER_MAX_POOL) continue;
        const double *x = ref->layers[layer->input].y;
        const size_t n_relu = layer->kind == REF_LAYER_RELU ? (size_t)ref->n * ref_window_out(s) : 0;
        for (size_t i = 0; i < n_relu; i++) nearest = fmin(nearest, fabs(x[i]));
        for (int o = 0; layer->kind == REF_LAYER_MAX_POOL && o < ref->n * (int)ref_window_out(s); o++) {
            const int oy = o / s->out_w % s->out_h * s->stride - s->pad, ox = o % s->out_w * s->stride - s->pad;
            const double *map = x + (size_t)(o / (s->out_h * s->out_w)) * (size_t)(s->in_h * s->in_w);
            for (int k = 0; k < s->kh * s->kw && layer->y[o] > 0; k++) {
                const int iy = oy + k / s->kw, ix = ox + k % s->kw;
                if (iy < 0 || iy >= s->in_h || ix < 0 || ix >= s->in_w || layer->arg[o] == iy * s->in_w + ix) continue;
                nearest = fmin(nearest, layer->y[o] - map[iy * s->in_w + ix]);
            }
        }
    }
    return nearest;
}

// Sets every bit of the activations that a pass has to write, and of the gradients.
static void poison(model *m) {
    CUDA_CHECK(cudaMemset(m->acts, 0xff, (size_t)((float *)m->square_sums - m->acts) * sizeof(float)));
    CUDA_CHECK(cudaMemset(m->net.grads, 0xff, m->net.n_params * sizeof(float)));
    CUDA_CHECK(cudaMemset(m->totals, 0, 2 * sizeof(double)));
}

// Whether the activations of images beyond the first `rows` are still poisoned.
static int other_rows_untouched(model *m, int rows) {
    int ok = 1;
    for (int k = 0; k < m->n_layers; k++) {
        const layer *l = &m->layers[k];
        const size_t size = (size_t)(l->h * l->w * l->c), n = (size_t)(m->max_rows - rows) * size;
        float *y = train_host_copy(l->y + (size_t)rows * size, n);
        for (size_t i = 0; i < n; i++) ok = ok && isnan(y[i]);
        free(y);
    }
    return ok;
}

// Mean loss of the batch that lies on the device, from the totals, which are double.
static double float_loss(model *m, int rows, int mode) {
    double totals[2];
    CUDA_CHECK(cudaMemset(m->totals, 0, sizeof totals));
    forward(m, rows, mode);
    loss_forward_backward(m, rows, 0);
    train_download(totals, m->totals, sizeof totals);
    return totals[0] / rows;
}

static double worst_output, worst_gradient, worst_difference, worst_own_difference;  // relative errors seen

// Gradients (in grads) against differences of the loss, of two kinds.
// The reference's loss, along random directions. Every parameter moves by up to 1e-7 of its tensor's size. No decision
// notices: they are 1e-5 away. A central difference in double is good to 1e-8, so the error is that of the gradients.
// The trainer's own loss, along the gradient, where it moves most. It and the parameters have rounding errors of
// relative size 1e-7, so a step moves it by a thousandth (of its value, where that is above 1) to either side.
// Curvature and the decisions that turn over on the way are measured at most 0.4%; 2% is allowed.
static void check_differences(model *m, RefCnn *ref, const double *x, const int *y, int rows, int mode) {
    const int ref_mode = mode == MODE_EVAL ? REF_EVAL : REF_TRAIN;
    const size_t p = ref_cnn_param_count(ref);
    double *theta = doubles(p), *v = doubles(p), *moved = doubles(p), *gradient = doubles(p);
    char name[320];
    ref_cnn_get_theta(ref, theta);
    float *grads = train_host_copy(m->net.grads, m->net.n_params);
    for (int t = 0, at = 0; t < ref->n_tensors; at += (int)ref->tensors[t++].n)
        for (int i = 0; i < m->net.n_tensors; i++)
            for (size_t k = 0; !strcmp(m->net.tensors[i].name, ref->tensors[t].name) && k < ref->tensors[t].n; k++)
                gradient[at + (int)k] = (double)grads[m->net.tensors[i].offset + k];
    double norm = 0;
    for (size_t i = 0; i < p; i++) norm += gradient[i] * gradient[i];
    norm = sqrt(norm);
    for (int direction = 0; direction < 4; direction++) {
        double loss[2], slope = 0, length = 0;
        for (int t = 0, at = 0; t < ref->n_tensors; at += (int)ref->tensors[t++].n)
            for (size_t k = 0; k < ref->tensors[t].n; k++) {
                const double towards = direction < 3 ? (double)uniform() : gradient[at + (int)k] / norm;
                const double size = ref->shapes[t].rank > 1 ? 1 / sqrt(ref->tensors[t].cols) : 1;
                v[at + (int)k] = towards * size;
            }
        for (size_t i = 0; i < p; i++) {
            slope += v[i] * gradient[i];
            length += v[i] * v[i];
        }
        for (int side = 0; side < 2; side++) {
            for (size_t i = 0; i < p; i++) moved[i] = theta[i] + (side ? 1e-7 : -1e-7) * v[i];
            ref_cnn_set_theta(ref, moved);
            loss[side] = ref_cnn_forward(ref, ref_mode, x, y, rows);
        }
        const double numeric = (loss[1] - loss[0]) / 2e-7, scale = norm * sqrt(length);
        snprintf(name, sizeof name, "%s: derivative along direction %d", label, direction);
        test_close_d(name, &slope, &numeric, 1, 0, 2e-5 * scale);
        worst_difference = fmax(worst_difference, fabs(slope - numeric) / scale);
    }
    ref_cnn_set_theta(ref, theta);
    float *own = train_host_copy(m->net.params, m->net.n_params), *stepped = floats(m->net.n_params);
    const double h = 1e-3 * fmax(1, float_loss(m, rows, mode)) / norm;  // the loss moves by h |gradient| to either side
    double loss[2];
    for (int side = 0; side < 2; side++) {
        memcpy(stepped, own, m->net.n_params * sizeof(float));
        for (int i = 0; i < m->net.n_tensors; i++) {
            const train_tensor *t = &m->net.tensors[i];
            for (size_t k = t->offset; k < t->offset + (size_t)t->rows * (size_t)t->cols; k++)
                stepped[k] = (float)((double)own[k] + (side ? h : -h) * (double)grads[k] / norm);
        }
        train_upload(m->net.params, stepped, m->net.n_params * sizeof(float));
        loss[side] = float_loss(m, rows, mode);
    }
    train_upload(m->net.params, own, m->net.n_params * sizeof(float));
    const double numeric = (loss[1] - loss[0]) / (2 * h);
    snprintf(name, sizeof name, "%s: the trainer's own loss along its gradient", label);
    test_close_d(name, &numeric, &norm, 1, 0.02, 0);
    worst_own_difference = fmax(worst_own_difference, fabs(numeric / norm - 1));
    free(grads);
    free(own);
}

// Parameters and a batch x[n_x], y[rows] without close decisions.
static void clear_batch(RefCnn *ref, int ref_mode, double *x, size_t n_x, int *y, int rows, int classes) {
    double distance = 0;
    for (int tries = 0; tries < 60 && distance < 1e-5; tries++) {
        randomise(ref, 0);
        fill_doubles(x, n_x, 0.1, 1.5);
        for (int r = 0; r < rows; r++) y[r] = (r * 7 + 1) % classes;
        ref->track_running = 0;
        ref_cnn_forward(ref, ref_mode, x, y, rows);
        distance = decision_distance(ref);
    }
    CHECK(distance >= 1e-5, "a batch without close decisions");
}

// Outputs, their gradient, loss (in slot 3) and hits after the forward pass.
static void check_outputs(model *m, const RefCnn *ref, double loss, int rows) {
    const layer *last = &m->layers[m->n_layers - 1];
    const size_t n = (size_t)(rows * m->classes);
    const float *logits = (const float *)fetch(last->y, n * sizeof(float));
    const double totals[2] = {loss * rows, (double)ref->correct};
    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(ref->logits[i]));
    for (size_t i = 0; i < n; i++)
        worst_output = fmax(worst_output, fabs((double)logits[i] - ref->logits[i]) / largest);
    same("output", last->y, ref->logits, n, 0, 1e-5 * largest);
    same_scaled("output gradient", m->gradient[last->gradient], ref->d_logits, n, 2e-5);
    same("loss", m->step_loss + 3, &loss, 1, 2e-5, 0);
    same_d("totals", m->totals, totals, 2, 2e-5, 0);
}

// Every gradient after the backward pass, relative to the largest of its tensor. A bias in front of BatchNorm has a
// gradient of zero: it is compared relative to its layer's weights.
static void check_gradients(model *m, RefCnn *ref) {
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        const size_t n = (size_t)t->rows * (size_t)t->cols;
        const RefTensor *r = ref_cnn_tensor(ref, t->name);
        const RefTensor *w = ref_cnn_tensor(ref, m->net.tensors[m->layers[t->layer].weight].name);
        double scale = 0;
        for (size_t j = 0; j < r->n; j++) scale = fmax(scale, fabs(r->grad[j]));
        for (size_t j = 0; j < w->n; j++) scale = fmax(scale, t->role == RESCALE_BIAS ? fabs(w->grad[j]) : 0);
        const float *got = (const float *)fetch(m->net.grads + t->offset, n * sizeof(float));
        for (size_t j = 0; j < n; j++) worst_gradient = fmax(worst_gradient, fabs((double)got[j] - r->grad[j]) / scale);
        same(t->name, m->net.grads + t->offset, r->grad, n, 0, 5e-5 * scale);
    }
    CHECK(padding_untouched(m), "gradients keep to their tensors");
}

// Running statistics and batch counts: moved by training, else as they were.
static void check_statistics(model *m, RefCnn *ref, int mode, const float *before) {
    for (int i = 0; i < m->net.n_buffers; i++) {
        const train_tensor *t = &m->net.buffers[i];
        const float *got = m->net.stats + t->offset;
        const int training = mode == MODE_TRAIN;
        if (t->role == TRAIN_COUNTER) CHECK(m->net.counts[t->offset] == training, "counts training batches");
        else same(t->name, got, ref_cnn_buffer(ref, t->name), (size_t)t->rows, 1e-5, 1e-5);
    }
    if (mode != MODE_TRAIN) same_bits("running statistics", m->net.stats, before, m->net.n_stats * sizeof(float));
}

// Forward, loss and backward in one mode against the reference: outputs, loss, hits, all gradients, running statistics.
static void test_network(const net_case *k, int mode) {
    static const char *const mode_name[] = {"training", "probe", "evaluation"};
    const int rows = k->rows, ref_mode = mode == MODE_EVAL ? REF_EVAL : REF_TRAIN;
    const size_t n_x = (size_t)(rows * k->k.in_c * k->k.in_h * k->k.in_w);
    config c = config_of(&k->k);
    RefCnn ref = ref_cnn_create(&k->k);
    model m;
    double *x = doubles(n_x);
    int *y = ints((size_t)rows);
    snprintf(label, sizeof label, "%s, %s mode", k->name, mode_name[mode]);
    c.smoothing = ref.label_smoothing = k->smoothing;
    build(&m, &k->k, &c, rows + 3);
    clear_batch(&ref, ref_mode, x, n_x, y, rows, k->k.classes);
    copy_to_model(&m, &ref);
    poison(&m);
    upload_images(&m, x, rows);
    CUDA_CHECK(cudaMemcpy(m.label, y, (size_t)rows * sizeof(int), cudaMemcpyHostToDevice));
    float *stats = train_host_copy(m.net.stats, m.net.n_stats);
    ref.track_running = mode == MODE_TRAIN;
    const double loss = ref_cnn_forward(&ref, ref_mode, x, y, rows);
    ref_cnn_backward(&ref);
    forward(&m, rows, mode);
    loss_forward_backward(&m, rows, 3);
    check_outputs(&m, &ref, loss, rows);
    CHECK(other_rows_untouched(&m, rows), "other images are left alone");
    backward(&m, rows, mode);
    check_gradients(&m, &ref);
    check_statistics(&m, &ref, mode, stats);
    if (mode == MODE_EVAL) {  // what the passes left behind does not matter (training mode moves the statistics)
        float *grads = train_host_copy(m.net.grads, m.net.n_params);
        forward(&m, rows, mode);
        loss_forward_backward(&m, rows, 0);
        backward(&m, rows, mode);
        same_bits("gradients again", m.net.grads, grads, m.net.n_params * sizeof(float));
        free(grads);
    }
    if (mode != MODE_TRAIN) check_differences(&m, &ref, x, y, rows, mode);
    free(stats);
    model_free(&m);
    ref_cnn_free(&ref);
    release();
}

static void test_networks(void) {
    for (int i = 0; i < N_NETS; i++)
        for (int mode = MODE_TRAIN; mode <= MODE_EVAL; mode++)
            if (mode == MODE_TRAIN || nets[i].k.norm || mode == MODE_EVAL) test_network(&nets[i], mode);
    printf("     largest errors: outputs %.1e, gradients %.1e, derivatives %.1e, differences of the trainer's own loss "
           "%.1e\n", worst_output, worst_gradient, worst_difference, worst_own_difference);
}

// --------------------------------------------------------------------------------------------------------- 3. training

// One step; returns its loss.
static float step(trainer *t) {
    float loss;
    model *m = &t->m;
    const int rows = next_batch(t), slot = train_loss_slot(&t->run);
    forward(m, rows, MODE_TRAIN);
    loss_forward_backward(m, rows, slot);
    backward(m, rows, MODE_TRAIN);
    update(m, t->c, train_rate(&t->run), t->run.step);
    train_download(&loss, m->step_loss + slot, sizeof loss);
    t->run.step++;
    return loss;
}

// One run of reference_pytorch_cnn.csv by the trainer's own steps: 50 losses, and an evaluation by batches of 13.
static void test_parity(const RefCnnParityCase *k) {
    static const int optimizer[] = {OPTIMIZER_SGD, OPTIMIZER_MOMENTUM, OPTIMIZER_ADAMW};  // as REF_SGD, ...
    static trainer t;
    config c = config_of(&k->config);
    double want[REF_CNN_PARITY_ROWS], loss = INFINITY, accuracy = 0, worst = 0;
    int within = 1;
    snprintf(label, sizeof label, "PyTorch's losses, %s", k->name);
    if (!CHECK(ref_cnn_parity_read(ref_cnn_parity_csv(), k->name, want), "PyTorch's losses can be read")) return;
    c.train.optimizer = optimizer[k->optimizer];
    c.train.lr = k->lr;
    c.train.momentum = k->momentum;
    c.train.weight_decay = k->weight_decay;
    c.train.batch_size = REF_CNN_PARITY_BATCH;
    c.train.shuffle = SHUFFLE_NONE;
    c.train.steps = REF_CNN_PARITY_STEPS;
    c.smoothing = k->label_smoothing;
    const dataset d = images_of(&k->config, REF_CNN_PARITY_SAMPLES, 0);
    make_trainer(&t, &c, &k->config, &d, 13);
    RefCnn initial = ref_cnn_parity_model(k);
    copy_to_model(&t.m, &initial);
    for (int s = 0; s <= REF_CNN_PARITY_STEPS; s++) {
        if (s < REF_CNN_PARITY_STEPS) loss = (double)step(&t);
        else evaluate(&t, 0, &loss, &accuracy);
        const double difference = fabs(loss / want[s] - 1);
        const double allowed = ref_cnn_parity_tolerance(s < REF_CNN_PARITY_STEPS ? s + 1 : s);
        worst = fmax(worst, difference / allowed);
        if (!(difference <= allowed) && within)
            printf("    %s: step %d: loss %.9g, PyTorch %.9g\n", k->name, s + 1, loss, want[s]);
        within = within && difference <= allowed;
    }
    printf("     %s: largest difference from PyTorch is %.3f of what is allowed\n", k->name, worst);
    CHECK(within, "all losses are PyTorch's");
    free_trainer(&t);
    ref_cnn_free(&initial);
    release();
}

// Runs for the same bits: partial batches, augmentation, every optimizer and family; after rescaling.
static const struct {
    RefCnnConfig k;
    int optimizer, augment, schedule;
} runs[] = {
    {{REF_ALLCONV, 3, 32, 32, 10, 0.07, 1, 1, 1, 0}, OPTIMIZER_ADAMW, 1, SCHEDULE_COSINE},
    {{REF_RESNET18, 3, 16, 16, 5, 0.15, 1, 1, 1, 0}, OPTIMIZER_MOMENTUM, 0, SCHEDULE_ONE_CYCLE},
    {{REF_RESNET18, 1, 9, 11, 5, 0.13, 0, 1, 1, 1}, OPTIMIZER_SGD, 1, SCHEDULE_CONSTANT},
    {{REF_SMALL, 1, 17, 23, 10, 0.3, 0, 1, 1, 0}, OPTIMIZER_MOMENTUM, 1, SCHEDULE_CONSTANT},
};
enum { N_RUNS = sizeof runs / sizeof *runs, RUN_STEPS = 7 };

// Trains runs[k]; returns the parameters (the caller frees them), [*n].
static float *trained(int k, size_t *n) {
    static trainer t;
    config c = config_of(&runs[k].k);
    rescale_report report;
    seed = 99 + (uint64_t)k;
    c.train.optimizer = runs[k].optimizer;
    c.augment = runs[k].augment;
    c.train.schedule = runs[k].schedule;
    c.smoothing = 0.1;
    c.train.lr = 1e-3;
    c.train.weight_decay = 1e-3;
    c.train.batch_size = 13;
    c.train.steps = RUN_STEPS;
    const dataset d = images_of(&runs[k].k, 31, 1);
    make_trainer(&t, &c, &runs[k].k, &d, 13);
#if !DEVICE_IS_GPU
    // OpenBLAS's products depend on the number of threads, see gemm.h.
    if (strstr(gemm_backend(), "OpenBLAS")) t.m.gemm.threads = 1;
#endif
    CHECK(rescale_model(&t.m, &c, &report) == 0, "rescaling before training");
    for (int s = 0; s < RUN_STEPS; s++) CHECK(isfinite(step(&t)), "a finite loss");
    *n = t.m.net.n_params;
    float *params = train_host_copy(t.m.net.params, *n);
    free_trainer(&t);
    release();
    return params;
}

// The same run, twice, and with another number of threads.
static void test_same_bits(int k) {
    size_t n = 0, again = 0;
    float *first = trained(k, &n);
#if !DEVICE_IS_GPU && defined(_OPENMP)
    const int threads = omp_get_max_threads();
    omp_set_num_threads(threads == 1 ? 2 : 1);
#endif
    float *second = trained(k, &again);
#if !DEVICE_IS_GPU && defined(_OPENMP)
    omp_set_num_threads(threads);
#endif
    if (!CHECK(n == again && !memcmp(first, second, n * sizeof(float)), "the same run gives the same bits"))
        printf("    run %d\n", k);
    free(first);
    free(second);
}

// Batches come in the order of the epoch. Augmentation makes epochs differ; a crop is its sample's own.
static void test_batches(void) {
    const RefCnnConfig k = {REF_SMALL, 3, 12, 10, 10, 0.1, 0, 1, 1, 0};
    static trainer t;
    config c = config_of(&k);
    c.train.batch_size = 5;
    snprintf(label, sizeof label, "batches");
    const dataset d = images_of(&k, 14, 1);
    make_trainer(&t, &c, &k, &d, 14);
    const size_t size = (size_t)d.features, n = 14 * size;
    double *want = doubles(size);
    order_samples(&t.train, 1, 0, 1);
    const int *order = (const int *)fetch(t.train.order, 14 * sizeof(int));
    load_batch(&t.m, &t.train, 3, 5, -1, 0);
    for (int r = 0; r < 5; r++) {
        float *sample = floats(size);
        dataset_sample(&d, order[3 + r], sample);
        for (int c0 = 0; c0 < 3; c0++)
            for (int p = 0; p < 120; p++) want[p * 3 + c0] = (double)sample[c0 * 120 + p];
        same("sample", t.m.image + (size_t)r * size, want, size, 1e-5, 1e-5);
    }
    const int *labels = (const int *)fetch(t.m.label, 5 * sizeof(int));
    for (int r = 0; r < 5; r++) CHECK(labels[r] == d.labels[order[3 + r]], "label");
    order_samples(&t.train, 0, 0, 0);
    const float *image[5];
    for (int i = 0; i < 5; i++) {  // not augmented; epochs 0, 1, 0; epoch 0 from place 4 on
        const int from = i == 4 ? 4 : 0;
        load_batch(&t.m, &t.train, from, 14 - from, i ? 7 : -1, i == 2);
        image[i] = (const float *)fetch(t.m.image, (n - (size_t)from * size) * sizeof(float));
    }
    CHECK(memcmp(image[0], image[1], n * sizeof(float)) && memcmp(image[1], image[2], n * sizeof(float)),
          "augmented, anew in every epoch");
    CHECK(!memcmp(image[1], image[3], n * sizeof(float)), "the same epoch again");
    CHECK(!memcmp(image[4], image[1] + 4 * size, (n - 4 * size) * sizeof(float)), "whatever the batch");
    free_trainer(&t);
    release();
}

// -------------------------------------------------------------------------------------------- 4. limits, memory, files

// A model that does not fit is refused with a message that names the option.
static void test_refusals(void) {
    static const struct {
        int model, c, h, w, rows;
        double width;
        int precision;
        const char *words[2];
    } bad[] = {
        {MODEL_ALLCONV, 1, 28, 28, 32, 1, GEMM_FP32, {"--model allconv", "28x28"}},
        {MODEL_ALLCONV, 3, 32, 31, 32, 1, GEMM_FP32, {"--model allconv", "32x31"}},
        {MODEL_SMALL, 1, 3, 9, 32, 1, GEMM_FP32, {"--model small", "at least 4x4"}},
        {MODEL_RESNET18, 3, 8, 7, 32, 1, GEMM_FP32, {"--model resnet18", "at least 8x8"}},
        {MODEL_SMALL, 1, 28, 28, 2675, 1, GEMM_FP32, {"--batch-size", "at most 2674 images"}},
        {MODEL_SMALL, 1, 4, 4, 65536, 1, GEMM_FP32, {"--batch-size", "at most 65535 images"}},
        {MODEL_SMALL, 1, 257, 256, 32, 1, GEMM_FP32, {"--data", "257x256"}},
        {MODEL_SMALL, 1, 4, 70000, 32, 1, GEMM_FP32, {"--data", "4x70000"}},
        {MODEL_RESNET18, 3, 32, 32, 32, 16, GEMM_FP32, {"--width", "parameters"}},
#if !DEVICE_IS_GPU
        {MODEL_SMALL, 1, 28, 28, 32, 1, GEMM_TF32, {"--precision", "fp32"}},
        {MODEL_SMALL, 1, 28, 28, 32, 1, GEMM_BF16, {"--precision", "fp32"}},
#endif
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        config c = default_config();
        model m;
        char err[512] = "";
        c.model = bad[i].model;
        c.width = bad[i].width;
        c.train.precision = bad[i].precision;
        const int status = model_create(&m, &c, bad[i].c, bad[i].h, bad[i].w, 10, bad[i].rows, err, sizeof err);
        const int named = strstr(err, bad[i].words[0]) && strstr(err, bad[i].words[1]) && !strchr(err, '\n');
        if (!CHECK(status == -1 && named, "refused with the reason"))
            printf("    case %zu: status %d, '%s'\n", i, status, err);
        if (status == 0) model_free(&m);
    }
}

// Full-size nets hold windows or tiles for a chunk of images, never for the whole batch. WORK_FLOATS or one image
// bounds the scratch; only the activations and their gradients grow with the batch.
static void test_memory(const RefCnnConfig *k) {
    const config c = config_of(k);
    model m;
    build(&m, k, &c, 1);
    size_t per_image = 0, largest = 0, statistics = 0, bytes = 0;
    for (int i = 0; i < m.n_layers; i++) {
        const layer *l = &m.layers[i];
        const size_t size = (size_t)(l->h * l->w * l->c);
        per_image += l->kind == LAYER_CONV && l->gamma != NONE ? 2 * size : size;
        bytes += l->kind == LAYER_MAX_POOL ? size : 0;
        largest = size > largest ? size : largest;
        if (l->kind != LAYER_CONV) continue;
        const size_t one = conv_image_floats(&l->conv), limit = (size_t)WORK_FLOATS > one ? (size_t)WORK_FLOATS : one;
        const size_t allowed = limit + conv_transformed_floats(&l->conv) + 2 * CONV_POINTS * CONV_PAD;
        CHECK(conv_work_floats(&l->conv, 64) <= allowed, "work of a chunk");
        CHECK(64 * one <= limit || conv_chunk(&l->conv, 64) < 64, "not the whole batch");
        const size_t sums = column_scratch(64 * l->h * l->w, l->c);  // per column and 32 rows
        statistics = sums > statistics ? sums : statistics;
    }
    per_image += 4 * largest + (size_t)(k->in_c * k->in_h * k->in_w);
    size_t floats_of[2], work[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        m.max_rows = 128 << i;
        floats_of[i] = place_activations(&m, NULL);
        for (int k2 = 0; k2 < m.n_layers; k2++) {
            const size_t need = m.layers[k2].kind == LAYER_CONV ? conv_work_floats(&m.layers[k2].conv, m.max_rows) : 0;
            work[i] = need > work[i] ? need : work[i];
        }
    }
    const size_t grown = floats_of[1] - floats_of[0];
    const size_t activations = 128 * per_image + 128 * (bytes + 3) / 4;
    const size_t most = activations + 2 * statistics + 128 * 16 + 64 * 100 + work[1] - work[0];
    CHECK(DEVICE_IS_GPU || work[1] == work[0], "scratch that does not grow");
    if (!CHECK(grown <= most, "memory grows with the activations alone"))
        printf("    %zu floats for 128 images more, expected at most %zu\n", grown, most);
    m.max_rows = 1;
    place_activations(&m, m.acts);
    model_free(&m);
}

// Weight files: back bit for bit, and files of other networks change nothing.
static void test_weights(const char *dir) {
    const RefCnnConfig k = {REF_RESNET18, 3, 9, 8, 5, 0.05, 1, 1, 1, 0};
    const config c = config_of(&k);
    model a, b;
    char path[LOG_PATH], err[512] = "";
    RefCnn ref = ref_cnn_create(&k);
    snprintf(label, sizeof label, "weights");
    build(&a, &k, &c, 2);
    build(&b, &k, &c, 2);
    randomise(&ref, 0);
    copy_to_model(&a, &ref);
    for (int i = 0; i < a.net.n_counts; i++) a.net.counts[i] = 3 + i;
    snprintf(path, sizeof path, "%s/w.safetensors", dir);
    CHECK(train_save_weights(&a.net, path, err, sizeof err) == 0, "weights are saved");
    CHECK(train_load_weights(&b.net, path, err, sizeof err) == 0, "and loaded");
    float *params = train_host_copy(a.net.params, a.net.n_params), *stats = train_host_copy(a.net.stats, a.net.n_stats);
    same_bits("parameters", b.net.params, params, a.net.n_params * sizeof(float));
    same_bits("statistics", b.net.stats, stats, a.net.n_stats * sizeof(float));
    for (int i = 0; i < b.net.n_counts; i++) {
        CHECK(b.net.counts[i] == 3 + i, "batch counts");
        b.net.counts[i] = 7;
    }
    CHECK(b.net.n_counts == 20, "a count for every BatchNorm");
    free(params);
    free(stats);
    const struct {
        RefCnnConfig k;
        const char *words;
    } other[] = {
        {{REF_RESNET18, 3, 9, 8, 5, 0.07, 1, 1, 1, 0}, "'conv1.weight': expected shape [3,3,3,3], found [4,3,3,3]"},
        {{REF_RESNET18, 1, 9, 8, 5, 0.05, 1, 1, 1, 0}, "'conv1.weight': expected shape [3,3,3,3], found [3,1,3,3]"},
        {{REF_RESNET18, 3, 9, 8, 6, 0.05, 1, 1, 1, 0}, "'fc.weight': expected shape [5,26], found [6,26]"},
        {{REF_RESNET18, 3, 9, 8, 5, 0.05, 0, 1, 1, 0}, "bn1.weight"},
        {{REF_RESNET18, 3, 9, 8, 5, 0.05, 1, 0, 0, 0}, "'fc.bias'"},
        {{REF_RESNET18, 3, 9, 8, 5, 0.05, 1, 1, 1, 1},
         "'layer1.0.downsample.0.weight' does not belong to this network"},
        {{REF_SMALL, 3, 9, 8, 5, 0.05, 1, 1, 1, 0}, "conv1.weight"},
        {{REF_ALLCONV, 3, 32, 32, 5, 0.05, 1, 1, 1, 0}, "conv1.weight"},
    };
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        const config oc = config_of(&other[i].k);
        model o;
        build(&o, &other[i].k, &oc, 1);
        model_init(&o, &oc);
        snprintf(path, sizeof path, "%s/other.safetensors", dir);
        CHECK(train_save_weights(&o.net, path, err, sizeof err) == 0, "weights of another network");
        load_fails(&b, path, other[i].words);
        model_free(&o);
    }
    model_free(&a);
    model_free(&b);
    ref_cnn_free(&ref);
    release();
}

// Initial weights: nn.Conv2d's default within its bound and of its size, kaiming-normal with its variance, BatchNorm at
// its defaults.
static void test_initialisation(int init) {
    const RefCnnConfig k = {REF_SMALL, 3, 16, 16, 10, 1, 1, 1, 1, 0};
    config c = config_of(&k);
    model m;
    c.init = init;
    c.train.init_scale = 0.5;
    snprintf(label, sizeof label, "initialisation %d", init);
    build(&m, &k, &c, 1);
    model_init(&m, &c);
    for (int i = 0; i < m.net.n_tensors; i++) {
        const train_tensor *t = &m.net.tensors[i];
        const size_t n = (size_t)t->rows * (size_t)t->cols;
        const float *v = (const float *)fetch(m.net.params + t->offset, n * sizeof(float));
        const double fan_in = m.net.tensors[m.layers[t->layer].weight].cols, bound = 0.5 / sqrt(fan_in);
        double sum = 0, square = 0, largest = 0;
        for (size_t j = 0; j < n; j++) {
            sum += (double)v[j];
            square += (double)v[j] * (double)v[j];
            largest = fmax(largest, fabs((double)v[j]));
        }
        const int norm = t->name[0] == 'b', gain = t->role == RESCALE_GAIN, bias = t->role == RESCALE_BIAS;
        double variance = 0.25 * 2 / fan_in;
        if (init == INIT_KAIMING_UNIFORM) variance = bound * bound / 3;
        else if (bias) variance = 0;
        const double tolerance = (n > 500 ? 0.15 : 0.7) * variance;
        int ok = norm || fabs(square / (double)n - variance) <= tolerance;
        if (norm) ok = sum == (gain ? (double)n : 0) && square == sum;
        if (!norm && init == INIT_KAIMING_UNIFORM) ok = ok && largest <= bound * 1.000001 && largest > 0.8 * bound;
        if (!norm) ok = ok && fabs(sum / (double)n) <= 4 * sqrt(variance / (double)n);
        if (!CHECK(ok, "initial values"))
            printf("    %s: mean %.3g, mean square %.3g, largest %.3g\n", t->name, sum / (double)n, square / (double)n,
                   largest);
    }
    for (int i = 0; i < m.net.n_buffers; i++) {
        const train_tensor *t = &m.net.buffers[i];
        if (t->role == TRAIN_COUNTER) continue;
        const float *v = (const float *)fetch(m.net.stats + t->offset, (size_t)t->rows * sizeof(float));
        for (int j = 0; j < t->rows; j++) CHECK(v[j] == (strstr(t->name, "var") ? 1.0f : 0.0f), "fresh statistics");
    }
    model_free(&m);
    release();
}

// --------------------------------------------------------------------------------------------------------- 5. one hash

// FNV-1a over the bits of all parameters of the runs.
static void print_bits(void) {
    uint32_t hash = 2166136261u;
    for (int k = 0; k < N_RUNS; k++) {
        size_t n;
        float *params = trained(k, &n);
        const unsigned char *bytes = (const unsigned char *)params;
        for (size_t i = 0; i < n * sizeof(float); i++) hash = (hash ^ bytes[i]) * 16777619u;
        free(params);
    }
    printf("bits %08X\n", (unsigned)hash);
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "bits")) {
        print_bits();
        return test_summary();
    }
    const RefCnnConfig full[] = {
        {REF_ALLCONV, 3, 32, 32, 10, 1, 1, 1, 1, 0},
        {REF_RESNET18, 3, 32, 32, 10, 1, 1, 1, 1, 1},
        {REF_SMALL, 1, 28, 28, 10, 1, 0, 1, 1, 0},
    };
    char dir[1024];
    snprintf(dir, sizeof dir, "%s", test_make_dir());
    test_kernels();
    test_networks();
    for (int i = 0; i < REF_CNN_PARITY_CASES; i++) test_parity(&ref_cnn_parity_cases[i]);
    for (int k = 0; k < N_RUNS; k++) test_same_bits(k);
    test_batches();
    test_refusals();
    for (int i = 0; i < 3; i++) test_memory(&full[i]);
    test_weights(dir);
    test_initialisation(INIT_KAIMING_UNIFORM);
    test_initialisation(INIT_KAIMING_NORMAL);
    print_bits();
    test_remove_dir(dir);
    return test_summary();
}
