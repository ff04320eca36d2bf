// test_ref_cnn.c -- checks of ref_cnn.h and ref_cnn_parity.h, the references of the convolutional trainer's tests.
//
//     cc -O2 -std=c11 -D_GNU_SOURCE -Wall -Wextra -I. -Itest test/test_ref_cnn.c -o build/test_ref_cnn -lm
//
// Every primitive against central finite differences over odd shapes and against hand computations, a convolution
// against a second definition, whole networks against finite differences, training runs against PyTorch
// (reference_pytorch_cnn.csv), and the files for trainers through the project's own readers. Rescaling is in
// test_ref_cnn_rescale.c.
#include "common/dataset.h"
#include "common/safetensors.h"
#include "ref_cnn_parity.h"
#include "test.h"

#if defined(__SANITIZE_ADDRESS__)
static const int parity_steps = 2; // twenty times slower, and nothing new for the sanitizer after the second step
#else
static const int parity_steps = REF_CNN_PARITY_STEPS;
#endif

static void fill(double *x, size_t n, double centre, double spread) {
    for (size_t i = 0; i < n; i++) x[i] = centre + spread * test_random();
}

// ---------------------------------------------------------------------------------------------------------------
// Primitives by finite differences

enum { CONV, NORM, RELU, MAX_POOL, SUM_POOL, AVG_POOL, LOSS };

// One primitive, its inputs, and the scalar sum(r * y) (the loss itself for LOSS).
typedef struct {
    int kind, n, mode, labels[8];
    double smoothing;
    RefWindow s;
    double *x, *w, *b, *r, *y, *xhat, *rstd, *mean, *var;
    int *arg;
    size_t n_x, n_y, n_w;
} Primitive;

static Primitive make_primitive(int kind, int n, RefWindow s, int mode) {
    Primitive p;
    memset(&p, 0, sizeof p);
    p.kind = kind;
    p.n = n;
    p.s = s;
    p.mode = mode;
    p.n_x = (size_t)n * ref_window_in(&s);
    p.n_y = kind == AVG_POOL ? (size_t)(n * s.in_c) : (size_t)n * ref_window_out(&s);
    p.n_w = kind == CONV ? (size_t)(s.out_c * s.in_c * s.kh * s.kw) : (size_t)s.out_c;
    p.x = ref_doubles(p.n_x);
    p.y = ref_doubles(p.n_y);
    p.r = ref_doubles(p.n_y);
    p.w = ref_doubles(p.n_w);
    p.b = ref_doubles((size_t)s.out_c);
    p.xhat = ref_doubles(p.n_x);
    p.rstd = ref_doubles((size_t)s.out_c);
    p.mean = ref_doubles((size_t)s.out_c);
    p.var = ref_doubles((size_t)s.out_c);
    p.arg = (int *)ref_grow(NULL, sizeof(int) * p.n_y);
    fill(p.x, p.n_x, 0.2, 2);
    fill(p.r, p.n_y, 0.1, 1);
    fill(p.w, p.n_w, 0.1, 1);
    fill(p.b, (size_t)s.out_c, 0, 1);
    fill(p.mean, (size_t)s.out_c, 0, 1);
    fill(p.var, (size_t)s.out_c, 1.5, 1);
    for (int i = 0; i < 8; i++) p.labels[i] = i * 5 % s.out_c;
    return p;
}

static void free_primitive(Primitive *p) {
    free(p->x);
    free(p->y);
    free(p->r);
    free(p->w);
    free(p->b);
    free(p->xhat);
    free(p->rstd);
    free(p->mean);
    free(p->var);
    free(p->arg);
}

static double primitive_value(Primitive *p) {
    const RefWindow *s = &p->s;
    double sum = 0;
    int correct;
    fill(p->y, p->n_y, NAN, 0);
    switch (p->kind) {
    case CONV: ref_conv_forward(p->y, p->x, p->w, p->b, p->n, s); break;
    case NORM:
        ref_norm_forward(p->y, p->xhat, p->rstd, p->x, p->w, p->b, p->mean, p->var, REF_BN_EPS, p->mode, 0, p->n,
                         s->out_c, s->in_h * s->in_w);
        break;
    case RELU: ref_relu_forward(p->y, p->x, p->n_x); break;
    case MAX_POOL: ref_max_pool_forward(p->y, p->arg, p->x, p->n, s); break;
    case SUM_POOL: ref_sum_pool_forward(p->y, p->x, p->n, s); break;
    case AVG_POOL:
        ref_avg_pool_forward(p->y, p->x, p->n * s->in_c, s->in_h * s->in_w, 1.0 / (s->in_h * s->in_w));
        break;
    default: return ref_smooth_cross_entropy(p->y, p->x, p->labels, p->smoothing, p->n, s->out_c, &correct);
    }
    for (size_t i = 0; i < p->n_y; i++) sum += p->r[i] * p->y[i];
    return sum;
}

// Central differences (five points) of the value for v[n] against grad[n].
static void check_primitive_gradient(Primitive *p, const char *what, double *v, const double *grad, size_t n) {
    double *numeric = ref_doubles(n);
    const double e = 1e-3;
    for (size_t i = 0; i < n; i++) {
        const double centre = v[i];
        double f[4];
        for (int k = 0; k < 4; k++) {
            v[i] = centre + (k < 2 ? k - 2 : k - 1) * e; // -2e, -e, e, 2e
            f[k] = primitive_value(p);
        }
        v[i] = centre;
        numeric[i] = (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * e);
    }
    test_close_d(what, numeric, grad, n, 1e-8, 1e-9);
    free(numeric);
}

static void check_primitive(const char *name, int kind, int n, RefWindow s, int mode, double smoothing) {
    char what[128];
    Primitive p = make_primitive(kind, n, s, mode);
    double *dx = ref_doubles(p.n_x), *dw = ref_doubles(p.n_w), *db = ref_doubles((size_t)s.out_c);
    const int has_weights = kind == CONV || kind == NORM;
    p.smoothing = smoothing;
    for (size_t i = 0; i < p.n_x; i++) { // away from ReLU's kink; no two entries of a max-pool nearly the same
        if (kind == RELU) p.x[i] = (floor(p.x[i] * 20) + 0.5) / 20;
        if (kind == MAX_POOL) p.x[i] = 0.05 * (double)(i * 61 % p.n_x) - 0.02 * (double)p.n_x;
    }
    fill(dx, p.n_x, NAN, 0);
    fill(dw, p.n_w, NAN, 0);
    fill(db, (size_t)s.out_c, NAN, 0);
    primitive_value(&p);
    switch (kind) {
    case CONV: ref_conv_backward(dx, dw, db, p.r, p.x, p.w, n, &s); break;
    case NORM: ref_norm_backward(dx, dw, db, p.r, p.xhat, p.rstd, p.w, mode, n, s.out_c, s.in_h * s.in_w); break;
    case RELU: ref_relu_backward(dx, p.r, p.x, p.n_x); break;
    case MAX_POOL: ref_max_pool_backward(dx, p.r, p.arg, n, &s); break;
    case SUM_POOL: ref_sum_pool_backward(dx, p.r, n, &s); break;
    case AVG_POOL: ref_avg_pool_backward(dx, p.r, n * s.in_c, s.in_h * s.in_w, 1.0 / (s.in_h * s.in_w)); break;
    default: memcpy(dx, p.y, p.n_x * sizeof *dx);
    }
    snprintf(what, sizeof what, "%s, %d x %dx%dx%d, gradient of the input", name, n, s.in_c, s.in_h, s.in_w);
    check_primitive_gradient(&p, what, p.x, dx, p.n_x);
    snprintf(what, sizeof what, "%s, %d x %dx%dx%d, gradient of the weight", name, n, s.in_c, s.in_h, s.in_w);
    if (has_weights) check_primitive_gradient(&p, what, p.w, dw, p.n_w);
    snprintf(what, sizeof what, "%s, %d x %dx%dx%d, gradient of the bias", name, n, s.in_c, s.in_h, s.in_w);
    if (has_weights) check_primitive_gradient(&p, what, p.b, db, (size_t)s.out_c);
    free(dx);
    free(dw);
    free(db);
    free_primitive(&p);
}

// ---------------------------------------------------------------------------------------------------------------
// Convolution by a second definition, and hand computations

// Every input entry, through every kernel position, to the output that it reaches.
static void scatter_conv(double *y, const double *x, const double *w, const double *b, int n, const RefWindow *s) {
    for (int i = 0; i < n; i++)
        for (int o = 0; o < s->out_c; o++) {
            double *map = &y[(i * s->out_c + o) * s->out_h * s->out_w];
            for (int k = 0; k < s->out_h * s->out_w; k++) map[k] = b ? b[o] : 0;
            for (int c = 0; c < s->in_c; c++)
                for (int iy = 0; iy < s->in_h; iy++)
                    for (int ix = 0; ix < s->in_w; ix++)
                        for (int ky = 0; ky < s->kh; ky++)
                            for (int kx = 0; kx < s->kw; kx++) {
                                const int ty = iy + s->pad - ky, tx = ix + s->pad - kx;
                                if (ty < 0 || tx < 0 || ty % s->stride || tx % s->stride) continue;
                                if (ty / s->stride >= s->out_h || tx / s->stride >= s->out_w) continue;
                                map[ty / s->stride * s->out_w + tx / s->stride] +=
                                    w[((o * s->in_c + c) * s->kh + ky) * s->kw + kx] *
                                    x[((i * s->in_c + c) * s->in_h + iy) * s->in_w + ix];
                            }
        }
}

static void check_convolutions(void) {
    const RefWindow shapes[] = {
        ref_window(3, 5, 7, 4, 3, 3, 1, 1), ref_window(2, 7, 5, 3, 3, 3, 2, 1), ref_window(1, 4, 6, 2, 1, 1, 1, 0),
        ref_window(3, 6, 6, 2, 1, 1, 2, 0), ref_window(2, 5, 8, 3, 2, 3, 1, 2), ref_window(2, 9, 4, 2, 5, 4, 3, 2),
        ref_window(4, 1, 1, 3, 3, 3, 1, 1), ref_window(2, 3, 3, 2, 3, 3, 1, 0), ref_window(1, 8, 3, 1, 3, 1, 2, 1),
        ref_window(20, 3, 2, 2, 3, 3, 1, 1), ref_window(2, 8, 8, 3, 3, 3, 2, 1), ref_window(1, 2, 2, 1, 5, 5, 1, 2),
    };
    for (size_t k = 0; k < sizeof shapes / sizeof shapes[0]; k++) {
        const int n = 1 + (int)k % 3;
        Primitive p = make_primitive(CONV, n, shapes[k], 0);
        double *want = ref_doubles(p.n_y);
        for (int bias = 0; bias < 2; bias++) {
            fill(p.y, p.n_y, NAN, 0);
            ref_conv_forward(p.y, p.x, p.w, bias ? p.b : NULL, n, &shapes[k]);
            scatter_conv(want, p.x, p.w, bias ? p.b : NULL, n, &shapes[k]);
            test_close_d("convolution against its second definition", p.y, want, p.n_y, 1e-13, 1e-13);
        }
        free(want);
        free_primitive(&p);
        check_primitive("convolution", CONV, n, shapes[k], 0, 0);
    }
    CHECK(shapes[1].out_h == 4 && shapes[1].out_w == 3, "3x3, stride 2, padding 1 on 7x5 gives 4x3");
    CHECK(shapes[5].out_h == 3 && shapes[5].out_w == 2, "5x4, stride 3, padding 2 on 9x4 gives 3x2");
    const double x[] = {1, 2, 3, 4}, w[] = {1, 10, 100, 1000}, want = 4321;
    double y;
    const RefWindow s = ref_window(1, 2, 2, 1, 2, 2, 1, 0);
    ref_conv_forward(&y, x, w, NULL, 1, &s);
    test_close_d("the kernel is not flipped", &y, &want, 1, 1e-15, 0);
}

static void check_pools(void) {
    const RefWindow shapes[] = {
        ref_window(2, 6, 6, 2, 3, 3, 2, 1), ref_window(3, 5, 7, 3, 3, 3, 2, 1), ref_window(2, 5, 7, 2, 2, 2, 2, 0),
        ref_window(1, 4, 3, 1, 3, 3, 1, 1), ref_window(2, 1, 1, 2, 3, 3, 2, 1), ref_window(1, 7, 4, 1, 2, 3, 3, 0),
    };
    for (size_t k = 0; k < sizeof shapes / sizeof shapes[0]; k++) {
        check_primitive("max-pool", MAX_POOL, 2, shapes[k], 0, 0);
        check_primitive("sum-pool", SUM_POOL, 2, shapes[k], 0, 0);
        check_primitive("average pool", AVG_POOL, 2, shapes[k], 0, 0);
    }
    // PyTorch's values and indices on a map with ties
    const double x[] = {0, 0, 1, 1, 0, 0, 1, 1, 2, 2, -1, -1, 2, 2, -1, -3};
    const struct {
        int kernel, stride, pad, n, arg[16];
        double y[16];
    } want[] = {
        {3, 2, 1, 4, {0, 2, 8, 9}, {0, 1, 2, 2}},
        {2, 2, 0, 4, {0, 2, 8, 10}, {0, 1, 2, -1}},
        {2, 1, 0, 9, {0, 2, 2, 8, 9, 6, 8, 9, 10}, {0, 1, 1, 2, 2, 1, 2, 2, -1}},
        {3, 1, 1, 16, {0, 2, 2, 2, 8, 8, 9, 2, 8, 8, 9, 6, 8, 8, 9, 10},
         {0, 1, 1, 1, 2, 2, 2, 1, 2, 2, 2, 1, 2, 2, 2, -1}},
    };
    for (size_t k = 0; k < sizeof want / sizeof want[0]; k++) {
        const RefWindow s = ref_window(1, 4, 4, 1, want[k].kernel, want[k].kernel, want[k].stride, want[k].pad);
        double y[16], dx[16], dy[16], want_dx[16] = {0};
        int arg[16];
        CHECK(s.out_h * s.out_w == want[k].n, "size of the pooled map");
        ref_max_pool_forward(y, arg, x, 1, &s);
        test_close_d("max-pool as in PyTorch", y, want[k].y, (size_t)want[k].n, 0, 0);
        CHECK(memcmp(arg, want[k].arg, sizeof(int) * (size_t)want[k].n) == 0, "the first of equals wins");
        for (int j = 0; j < want[k].n; j++) {
            dy[j] = 1 + j;
            want_dx[want[k].arg[j]] += 1 + j;
        }
        ref_max_pool_backward(dx, dy, arg, 1, &s);
        test_close_d("max-pool, gradient to the winner", dx, want_dx, 16, 0, 0);
    }
}

// BatchNorm of one channel on 1, 2, 3, 6 (two samples of two positions): mean 3, biased variance 3.5, unbiased 14/3.
static void check_norm(void) {
    const int shapes[][4] = {{2, 3, 5, 3}, {1, 2, 3, 2}, {6, 2, 1, 1}, {2, 1, 1, 1}, {3, 4, 2, 5}}; // n, c, h, w
    for (size_t k = 0; k < sizeof shapes / sizeof shapes[0]; k++)
        for (int mode = 0; mode < 2; mode++) {
            const int *s = shapes[k];
            check_primitive(mode == REF_TRAIN ? "BatchNorm, training" : "BatchNorm, evaluation", NORM, s[0],
                            ref_window(s[1], s[2], s[3], s[1], 1, 1, 1, 0), mode, 0);
        }
    const double x[] = {1, 2, 3, 6}, gamma = 2, beta = 0.5, rstd = 1 / sqrt(3.5 + 1e-5);
    const double want[] = {2 * -2 * rstd + 0.5, 2 * -1 * rstd + 0.5, 0.5, 2 * 3 * rstd + 0.5};
    double y[4], xhat[4], kept, mean = 0.25, var = 2, want_eval[4];
    ref_norm_forward(y, xhat, &kept, x, &gamma, &beta, &mean, &var, REF_BN_EPS, REF_TRAIN, 1, 2, 1, 2);
    test_close_d("BatchNorm by hand, training", y, want, 4, 1e-14, 0);
    const double want_mean = 0.9 * 0.25 + 0.1 * 3, want_var = 0.9 * 2 + 0.1 * 14 / 3;
    test_close_d("running mean", &mean, &want_mean, 1, 1e-14, 0);
    test_close_d("running variance", &var, &want_var, 1, 1e-14, 0);
    ref_norm_forward(y, xhat, &kept, x, &gamma, &beta, &mean, &var, REF_BN_EPS, REF_EVAL, 1, 2, 1, 2);
    for (int k = 0; k < 4; k++) want_eval[k] = 2 * (x[k] - want_mean) / sqrt(want_var + 1e-5) + 0.5;
    test_close_d("BatchNorm by hand, evaluation", y, want_eval, 4, 1e-14, 0);
    test_close_d("evaluation leaves the mean", &mean, &want_mean, 1, 1e-14, 0);
}

static void check_relu_and_loss(void) {
    check_primitive("ReLU", RELU, 3, ref_window(2, 3, 4, 2, 1, 1, 1, 0), 0, 0);
    const double x[] = {-1, 0, 2}, dy[] = {3, 4, 5}, want_y[] = {0, 0, 2}, want_dx[] = {0, 0, 5};
    double y[3], dx[3];
    ref_relu_forward(y, x, 3);
    ref_relu_backward(dx, dy, x, 3);
    test_close_d("ReLU", y, want_y, 3, 0, 0);
    test_close_d("ReLU, derivative 0 at 0", dx, want_dx, 3, 0, 0);

    check_primitive("cross-entropy", LOSS, 5, ref_window(4, 1, 1, 4, 1, 1, 1, 0), 0, 0);
    check_primitive("cross-entropy, label smoothing", LOSS, 5, ref_window(4, 1, 1, 4, 1, 1, 1, 0), 0, 0.1);
    // PyTorch's cross_entropy in float64, without and with label_smoothing 0.1
    const double logits[] = {1, 2, -0.5, 0.25, 0, 3}, want_loss[] = {1.614620121281161, 1.6312867879478277};
    const double want_d[2][6] = {{0.12685809081751262, -0.1551639569377482, 0.02830586612023564, -0.4712997197446534,
                                  0.022351800737232697, 0.44894791900742076},
                                 {0.11019142415084596, -0.12183062360441488, 0.011639199453568973, -0.4379663864113201,
                                  0.00568513407056603, 0.4322812523407541}};
    const int labels[] = {1, 0};
    for (int k = 0; k < 2; k++) {
        double d[6];
        int correct;
        const double loss = ref_smooth_cross_entropy(d, logits, labels, k ? 0.1 : 0, 2, 3, &correct);
        test_close_d("cross-entropy as in PyTorch", &loss, &want_loss[k], 1, 1e-14, 0);
        test_close_d("cross-entropy as in PyTorch, gradient", d, want_d[k], 6, 1e-13, 1e-16);
        CHECK(correct == 1, "one of two samples is classified right");
    }
    const double equal[] = {0.5, 0.5}, huge[] = {1000, -1000};
    const int first[] = {0};
    double d[2];
    int correct;
    ref_smooth_cross_entropy(d, equal, first, 0, 1, 2, &correct);
    CHECK(correct == 1, "equal logits: the lowest class");
    const double loss = ref_smooth_cross_entropy(d, huge, first, 0.5, 1, 2, &correct), want = 0.25 * 2000;
    test_close_d("huge logits", &loss, &want, 1, 1e-14, 0);
}

// ---------------------------------------------------------------------------------------------------------------
// Whole networks by finite differences

typedef struct {
    const char *name;
    RefCnnConfig config;
    int mode, n;
    double label_smoothing;
} NetCase;

// Every decision of the last forward pass, ReLUs and max-pools, in one number.
static uint64_t decisions(const RefCnn *m) {
    uint64_t hash = 1;
    for (int l = 0; l < m->n_layers; l++) {
        const RefCnnLayer *layer = &m->layers[l];
        const size_t n = (size_t)m->n * ref_window_out(&layer->win);
        const double *x = layer->input >= 0 ? m->layers[layer->input].y : m->x;
        for (size_t i = 0; i < n && layer->kind == REF_LAYER_RELU; i++) hash = ref_parity_mix(hash ^ (x[i] > 0));
        for (size_t i = 0; i < n && layer->kind == REF_LAYER_MAX_POOL; i++)
            hash = ref_parity_mix(hash ^ (uint64_t)layer->arg[i]);
    }
    return hash;
}

typedef struct {
    RefCnn *m;
    const NetCase *c;
    const double *x;
    const int *labels;
    uint64_t base;
    int checked, kinks;
} Differ;

static double loss_at(Differ *d, double *value, double e, int *same) {
    const double centre = *value;
    *value = centre + e;
    const double loss = ref_cnn_forward(d->m, d->c->mode, d->x, d->labels, d->c->n);
    *value = centre;
    if (decisions(d->m) != d->base) *same = 0;
    return loss;
}

// As check_primitive_gradient for at most 12 entries. A step on which a ReLU or a max-pool decides otherwise is made
// shorter; if that does not help, the entry is left out and counted.
static void check_net_gradient(Differ *d, const char *tensor, double *value, const double *grad, size_t n) {
    double numeric[12], want[12];
    size_t used = 0;
    char name[160];
    for (size_t k = 0; k < (n < 12 ? n : 12); k++) {
        const size_t i = n <= 12 ? k : (size_t)((test_random() + 1) / 2 * (double)n);
        int found = 0;
        for (double e = 1e-4; e > 1e-7 && !found; e /= 10) {
            int same = 1;
            const double far_up = loss_at(d, &value[i], 2 * e, &same), up = loss_at(d, &value[i], e, &same);
            const double down = loss_at(d, &value[i], -e, &same), far_down = loss_at(d, &value[i], -2 * e, &same);
            if (!same) continue;
            found = 1;
            numeric[used] = (8 * (up - down) - (far_up - far_down)) / (12 * e);
            want[used++] = grad[i];
        }
        d->checked += found;
        d->kinks += !found;
    }
    snprintf(name, sizeof name, "%s, gradient of %s", d->c->name, tensor);
    test_close_d(name, numeric, want, used, 1e-6, 1e-8);
}

// Random parameters and statistics, of a size that keeps activations alive.
static void fill_net(RefCnn *m) {
    for (int t = 0; t < m->n_tensors; t++) {
        const int matrix = m->shapes[t].rank > 1;
        const double spread = matrix ? 2 / sqrt(m->tensors[t].cols) : 0.5;
        fill(m->tensors[t].data, m->tensors[t].n, matrix ? 0.02 : 0.1, spread);
    }
    for (int l = 0; l < m->n_layers; l++) {
        if (m->layers[l].kind != REF_LAYER_NORM) continue;
        const size_t c = (size_t)m->layers[l].win.out_c;
        fill(m->tensors[m->layers[l].weight].data, c, 1, 0.6);
        fill(m->layers[l].running_mean, c, 0, 0.7);
        fill(m->layers[l].running_var, c, 1.2, 0.8);
    }
}

static void check_net(const NetCase *c, RefCnn m) {
    const size_t inputs = (size_t)(c->n * m.in_c * m.in_h * m.in_w);
    double *x = ref_doubles(inputs), *d_input = ref_doubles(inputs);
    int labels[8];
    m.track_running = 0; // repeated forward passes must see the same statistics
    m.label_smoothing = c->label_smoothing;
    fill_net(&m);
    fill(x, inputs, 0.1, 1.5);
    for (int i = 0; i < c->n; i++) labels[i] = i * 7 % c->config.classes;
    for (int t = 0; t < m.n_tensors; t++) fill(m.tensors[t].grad, m.tensors[t].n, NAN, 0); // must all be overwritten
    Differ d = {&m, c, x, labels, 0, 0, 0};
    ref_cnn_forward(&m, c->mode, x, labels, c->n);
    d.base = decisions(&m);
    ref_cnn_backward(&m);
    memcpy(d_input, m.d_input, inputs * sizeof *x);
    for (int t = 0; t < m.n_tensors; t++)
        check_net_gradient(&d, m.tensors[t].name, m.tensors[t].data, m.tensors[t].grad, m.tensors[t].n);
    check_net_gradient(&d, "the input", x, d_input, inputs);
    CHECK(d.kinks * 20 <= d.checked, "at most one entry in twenty sits on a kink");
    free(x);
    free(d_input);
    ref_cnn_free(&m);
}

// conv1 is added to conv2 and to conv3, and read by conv2 and by conv4: its gradient has four parts.
static RefCnn shared_net(void) {
    RefCnn m = ref_cnn_empty(2, 5, 4);
    const int a = ref_cnn_conv(&m, "conv1", -1, 3, 3, 3, 1, 1, 1), b = ref_cnn_conv(&m, "conv2", a, 3, 3, 3, 1, 1, 1);
    ref_cnn_add_residual(&m, b, a);
    const int c = ref_cnn_conv(&m, "conv3", ref_cnn_relu(&m, b), 3, 1, 1, 1, 0, 0);
    ref_cnn_add_residual(&m, c, a);
    const int d = ref_cnn_conv(&m, "conv4", a, 3, 1, 3, 1, 1, 1); // 7x4: the padding is that of both directions
    const int e = ref_cnn_conv(&m, "conv5", ref_cnn_relu(&m, d), 3, 3, 1, 1, 0, 1);
    ref_cnn_add_residual(&m, e, c);
    ref_cnn_linear(&m, "fc", ref_cnn_relu(&m, e), 3, 1);
    return m;
}

// ---------------------------------------------------------------------------------------------------------------
// Names, shapes, counts

static void check_families(void) {
    const struct {
        RefCnnConfig config;
        size_t params; // PyTorch's count
        int tensors;
    } want[] = {
        {{REF_ALLCONV, 3, 32, 32, 10, 1, 0, 1, 1, 0}, 2617610, 18},
        {{REF_ALLCONV, 3, 32, 32, 10, 1, 1, 1, 1, 0}, 2618378, 22},
        {{REF_ALLCONV, 3, 32, 32, 10, 1, 0, 0, 1, 0}, 2617610 - 3 * 128 - 3 * 256 - 2 * 320 - 10, 9},
        {{REF_RESNET18, 3, 32, 32, 10, 1, 1, 1, 1, 0}, 11173962, 62},
        {{REF_RESNET18, 3, 32, 32, 10, 1, 1, 1, 1, 1}, 11528266, 77},
        {{REF_RESNET18, 3, 32, 32, 10, 1, 0, 1, 1, 0}, 11169162, 42},
        {{REF_RESNET18, 3, 32, 32, 10, 1, 0, 0, 0, 0}, 11169162 - 4800 - 10, 21},
        {{REF_SMALL, 1, 28, 28, 10, 1, 0, 1, 1, 0}, 87114, 8},
        {{REF_SMALL, 3, 32, 32, 10, 1, 1, 1, 1, 0}, 97610, 14},
    };
    for (size_t k = 0; k < sizeof want / sizeof want[0]; k++) {
        RefCnn m = ref_cnn_create(&want[k].config);
        CHECK(ref_cnn_param_count(&m) == want[k].params, "PyTorch's number of parameters");
        CHECK(m.n_tensors == want[k].tensors, "PyTorch's number of tensors");
        ref_cnn_free(&m);
    }
    const char *const names[] = {
        "conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn1.bias",
        "layer1.0.conv2.weight", "layer1.0.bn2.weight", "layer1.0.bn2.bias", "layer1.1.conv1.weight"};
    const RefCnnConfig resnet = {REF_RESNET18, 3, 32, 32, 10, 0.1, 1, 1, 1, 0};
    RefCnn m = ref_cnn_create(&resnet);
    for (int t = 0; t < 10; t++) CHECK(strcmp(m.tensors[t].name, names[t]) == 0, names[t]);
    const RefTensor *projection = ref_cnn_tensor(&m, "layer2.0.downsample.0.weight");
    CHECK(projection && projection->rows == 13 && projection->cols == 6,
          "a projection from 6 to 13 channels (0.1 of 64 and 128)");
    CHECK(projection == &m.tensors[21] && strcmp(m.tensors[20].name, "layer2.0.bn2.bias") == 0,
          "downsample is last in its block");
    CHECK(!ref_cnn_tensor(&m, "layer1.0.downsample.0.weight"), "an identity shortcut has no tensor");
    CHECK(!ref_cnn_tensor(&m, "conv1.bias") && ref_cnn_tensor(&m, "fc.bias"), "biases: only fc has one");
    CHECK(ref_cnn_buffer(&m, "layer4.1.bn2.running_var") && ref_cnn_buffer(&m, "bn1.running_mean"),
          "running statistics");
    CHECK(!ref_cnn_buffer(&m, "layer4.2.bn2.running_var"), "no such block");
    ref_cnn_free(&m);
    const RefCnnConfig tiny = {REF_ALLCONV, 3, 7, 5, 4, 0.001, 1, 1, 1, 0};
    m = ref_cnn_create(&tiny);
    CHECK(m.tensors[0].rows == 1 && m.shapes[0].rank == 4 && m.shapes[0].dim[1] == 3, "never fewer than one channel");
    const RefWindow last = m.layers[m.n_layers - 1].win;
    CHECK(last.in_h == 2 && last.in_w == 2, "7x5 is pooled twice to 2x2");
    CHECK(ref_cnn_tensor(&m, "bn2.bias") && !ref_cnn_tensor(&m, "bn3.bias"), "two BatchNorms");
    ref_cnn_free(&m);
    const RefCnnConfig grey = {REF_SMALL, 1, 28, 28, 10, 0.25, 1, 1, 1, 0};
    m = ref_cnn_create(&grey);
    CHECK(ref_cnn_tensor(&m, "fc.weight")->cols == 16 * 7 * 7, "28x28 gives 7x7 maps");
    double x[784 * 2];
    const int labels[] = {1, 2};
    fill(x, 784 * 2, 0, 1);
    fill_net(&m);
    ref_cnn_forward(&m, REF_TRAIN, x, labels, 2);
    ref_cnn_forward(&m, REF_EVAL, x, labels, 2);
    const RefCnnLayer norm = m.layers[1];
    CHECK(norm.kind == REF_LAYER_NORM && norm.batches_tracked == 1, "training tracks a batch, evaluation does not");
    ref_cnn_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------
// PyTorch's runs, files

static void check_pytorch(void) {
    double want[REF_CNN_PARITY_ROWS], got[REF_CNN_PARITY_ROWS];
    for (int k = 0; k < REF_CNN_PARITY_CASES; k++) {
        const RefCnnParityCase *c = &ref_cnn_parity_cases[k];
        char name[128];
        CHECK(ref_cnn_parity_read(ref_cnn_parity_csv(), c->name, want),
              "reference_pytorch_cnn.csv holds the whole run");
        const double start = want[0] + want[1] + want[2] + want[3];
        CHECK(want[46] + want[47] + want[48] + want[49] < 0.9 * start, "the loss falls");
        ref_cnn_parity_train(c, parity_steps, got);
        for (int s = 1; s <= parity_steps; s++) {
            snprintf(name, sizeof name, "%s, loss of step %d against PyTorch", c->name, s);
            test_close_d(name, &got[s - 1], &want[s - 1], 1, ref_cnn_parity_tolerance(s), 0);
        }
        snprintf(name, sizeof name, "%s, sum of diag(G) against PyTorch", c->name);
        test_close_d(name, &got[REF_CNN_PARITY_PATH_SUM], &want[REF_CNN_PARITY_PATH_SUM], 2, 1e-8, 0);
        if (parity_steps < REF_CNN_PARITY_STEPS) continue;
        snprintf(name, sizeof name, "%s, evaluation loss against PyTorch", c->name);
        test_close_d(name, &got[REF_CNN_PARITY_EVAL], &want[REF_CNN_PARITY_EVAL], 1, ref_cnn_parity_tolerance(50), 0);
    }
    const double ends[] = {ref_cnn_parity_tolerance(1), ref_cnn_parity_tolerance(50)}, want_ends[] = {1e-6, 1e-3};
    test_close_d("tolerance at both ends", ends, want_ends, 2, 1e-12, 0);
}

// The project's reader finds the samples of the formula, normalised alike.
static void check_data(const char *folder, const RefCnnConfig *c) {
    char err[DATASET_ERROR_SIZE];
    dataset train, test;
    const size_t features = (size_t)(c->in_c * c->in_h * c->in_w), total = REF_CNN_PARITY_SAMPLES * features;
    if (!CHECK(!dataset_load(folder, NULL, &train, &test, err, sizeof err), "the data set is read")) {
        printf("    %s\n", err);
        return;
    }
    double *want = ref_doubles(total);
    float *got = (float *)ref_grow(NULL, total * sizeof *got);
    unsigned char *bytes = (unsigned char *)ref_grow(NULL, total);
    const int same_shape = train.channels == c->in_c && train.height == c->in_h && train.width == c->in_w;
    CHECK(train.n == 32 && test.n == 32 && train.classes == 10 && same_shape, "32 samples of the right shape");
    ref_cnn_parity_inputs(c, want);
    ref_cnn_parity_images(c, bytes);
    for (int pass = 0; pass < 2; pass++) {
        const dataset *d = pass ? &test : &train;
        int labels = 0;
        for (int i = 0; i < d->n; i++) {
            dataset_sample(d, i, got + (size_t)i * features);
            labels += d->labels[i] == ref_cnn_parity_label(i);
        }
        CHECK(labels == 32, "labels in order");
        CHECK(memcmp(d->pixels, bytes, total) == 0, "the same bytes");
        test_close("normalised inputs", got, want, total, 1e-6, 1e-6);
    }
    free(want);
    free(got);
    free(bytes);
    dataset_free(&train);
    dataset_free(&test);
}

// The project's reader finds every tensor under PyTorch's name, with its shape, and nothing else.
static void check_weights(const char *path, const RefCnn *m) {
    char err[SAFETENSORS_ERROR_SIZE] = "", name[64];
    safetensors_file f;
    size_t entries = (size_t)m->n_tensors;
    int64_t shape[4], tracked = -1;
    CHECK(ref_cnn_write_safetensors(path, m), "safetensors written");
    if (!CHECK(!safetensors_open(&f, path, err, sizeof err), err)) return;
    for (int t = 0; t < m->n_tensors; t++) {
        const RefTensor *x = &m->tensors[t];
        float *got = (float *)ref_grow(NULL, x->n * sizeof *got);
        for (size_t i = 0; i < x->n; i++) got[i] = NAN;
        for (int k = 0; k < m->shapes[t].rank; k++) shape[k] = m->shapes[t].dim[k];
        CHECK(!safetensors_read_f32(&f, x->name, m->shapes[t].rank, shape, got, err, sizeof err), err);
        test_close(x->name, got, x->data, x->n, 1e-7, 1e-30);
        free(got);
    }
    for (int l = 0; l < m->n_layers; l++) {
        const RefCnnLayer *layer = &m->layers[l];
        float got[512];
        if (layer->kind != REF_LAYER_NORM) continue;
        entries += 3;
        shape[0] = layer->win.out_c;
        snprintf(name, sizeof name, "%s.num_batches_tracked", layer->name);
        CHECK(!safetensors_read(&f, name, SAFETENSORS_I64, 0, NULL, &tracked, err, sizeof err), err);
        CHECK(tracked == layer->batches_tracked, "number of batches");
        snprintf(name, sizeof name, "%s.running_mean", layer->name);
        CHECK(!safetensors_read_f32(&f, name, 1, shape, got, err, sizeof err), err);
        test_close(name, got, layer->running_mean, (size_t)shape[0], 1e-7, 1e-30);
        snprintf(name, sizeof name, "%s.running_var", layer->name);
        CHECK(!safetensors_read_f32(&f, name, 1, shape, got, err, sizeof err), err);
        test_close(name, got, layer->running_var, (size_t)shape[0], 1e-7, 1e-30);
    }
    CHECK(f.n_tensors == entries, "no other tensors");
    safetensors_close(&f);
}

static void check_files(void) {
    char folder[1024], path[2048];
    snprintf(folder, sizeof folder, "%s", test_make_dir());
    snprintf(path, sizeof path, "%s/init.safetensors", folder);
    CHECK(ref_cnn_parity_write_idx(folder), "IDX files written");
    check_data(folder, &ref_cnn_parity_cases[5].config);
    for (int k = 0; k < REF_CNN_PARITY_CASES; k++) {
        RefCnn m = ref_cnn_parity_model(&ref_cnn_parity_cases[k]);
        check_weights(path, &m);
        ref_cnn_free(&m);
    }
    RefCnn m = ref_cnn_parity_model(&ref_cnn_parity_cases[1]);
    fill_net(&m); // statistics away from their defaults
    m.layers[5].batches_tracked = 3;
    check_weights(path, &m);
    ref_cnn_free(&m);
    CHECK(ref_cnn_parity_write_safetensors(path, &ref_cnn_parity_cases[0]), "initial weights written");
    test_remove_dir(folder);
    snprintf(folder, sizeof folder, "%s", test_make_dir());
    CHECK(ref_cnn_parity_write_cifar(folder), "CIFAR-10 files written");
    check_data(folder, &ref_cnn_parity_cases[0].config);
    test_remove_dir(folder);
    CHECK(!ref_cnn_parity_write_cifar("/nonexistent/folder") && !ref_cnn_parity_write_idx("/nonexistent/folder") &&
              !ref_cnn_parity_write_safetensors("/nonexistent/file", &ref_cnn_parity_cases[0]),
          "failures are reported");
}

int main(void) {
    check_convolutions();
    check_pools();
    check_norm();
    check_relu_and_loss();
    const NetCase nets[] = {
        {"allconv", {REF_ALLCONV, 3, 9, 7, 4, 0.016, 0, 1, 1, 0}, REF_TRAIN, 2, 0},
        {"allconv without biases", {REF_ALLCONV, 2, 6, 6, 3, 0.016, 0, 0, 1, 0}, REF_TRAIN, 2, 0.1},
        {"allconv with BatchNorm", {REF_ALLCONV, 3, 9, 7, 4, 0.016, 1, 1, 1, 0}, REF_TRAIN, 3, 0},
        {"allconv with BatchNorm, evaluation", {REF_ALLCONV, 3, 8, 8, 4, 0.016, 1, 1, 1, 0}, REF_EVAL, 2, 0},
        {"resnet18", {REF_RESNET18, 3, 9, 6, 4, 0.016, 1, 1, 1, 0}, REF_TRAIN, 3, 0},
        {"resnet18, evaluation", {REF_RESNET18, 3, 9, 6, 4, 0.016, 1, 1, 1, 0}, REF_EVAL, 2, 0.1},
        {"resnet18, projections", {REF_RESNET18, 1, 8, 8, 4, 0.016, 1, 1, 1, 1}, REF_TRAIN, 3, 0},
        {"resnet18 without norm", {REF_RESNET18, 3, 8, 8, 4, 0.016, 0, 1, 1, 0}, REF_TRAIN, 2, 0},
        {"resnet18 without norm, projections, no biases",
         {REF_RESNET18, 2, 7, 8, 4, 0.016, 0, 0, 0, 1}, REF_TRAIN, 2, 0},
        {"small", {REF_SMALL, 1, 13, 11, 5, 0.05, 0, 1, 1, 0}, REF_TRAIN, 3, 0},
        {"small without biases", {REF_SMALL, 3, 8, 8, 5, 0.05, 0, 0, 0, 0}, REF_TRAIN, 3, 0.2},
        {"small with BatchNorm", {REF_SMALL, 3, 9, 10, 5, 0.05, 1, 1, 1, 0}, REF_TRAIN, 3, 0.1},
        {"small with BatchNorm, evaluation", {REF_SMALL, 3, 9, 10, 5, 0.05, 1, 1, 1, 0}, REF_EVAL, 1, 0},
    };
    for (size_t k = 0; k < sizeof nets / sizeof nets[0]; k++) check_net(&nets[k], ref_cnn_create(&nets[k].config));
    const NetCase shared = {
        "a layer that is added twice and read twice", {REF_SMALL, 2, 5, 4, 3, 1, 0, 1, 1, 0}, REF_TRAIN, 3, 0};
    check_net(&shared, shared_net());
    check_families();
    check_files();
    check_pytorch();
    return test_summary();
}
