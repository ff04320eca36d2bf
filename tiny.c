// tiny.c -- the whole idea on one page: a ReLU net trained by hand, as initialised and rescaled.
//
//     cc -O2 tiny.c -lm && ./a.out
//
// A hidden ReLU unit may be scaled: multiply what enters it by lambda > 0 and divide what leaves it
// by lambda. The net computes the same function, but its gradients differ, so it trains otherwise.
// rescale_run() in rescale.cuh chooses all lambdas at once. Here two equal nets learn to tell two
// spirals apart, one as initialised, one rescaled, at several learning rates, from several seeds.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rescale.cuh"

static const int dim[] = {2, 16, 16, 16, 16, 1};  // units of every layer, input first
enum { LAYERS = sizeof dim / sizeof *dim - 1, MAX_UNITS = 16 };
enum { POINTS = 256, BATCH = 16, EPOCHS = 100, SEEDS = 7 };

// The parameters of a layer, s = W h + b. A gradient has the same shape.
typedef struct layer {
    float w[MAX_UNITS * MAX_UNITS];  // [out][in], as in PyTorch
    float b[MAX_UNITS];
} layer;
typedef struct net {
    layer layers[LAYERS];
} net;

static float point[POINTS][2], label[POINTS];  // the data: label +1 or -1

// A uniform random number in [0, 1), from a linear congruential generator.
static float random_uniform(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 16777216.0f;
}

static void make_spirals(void) {
    for (int i = 0; i < POINTS; i++) {
        const float t = (float)(i / 2) / (POINTS / 2);  // 0 at the centre, 1 at the end of the arm
        const float angle = 6.0f * t + (i % 2 ? 3.14159265f : 0.0f);
        point[i][0] = (t + 0.1f) * cosf(angle);
        point[i][1] = (t + 0.1f) * sinf(angle);
        label[i] = i % 2 ? 1.0f : -1.0f;
    }
}

// PyTorch's default for linear layers: weights and biases uniform in +-1 / sqrt(fan_in).
static void initialise(net *n, unsigned seed) {
    for (int l = 0; l < LAYERS; l++) {
        const float range = 1 / sqrtf((float)dim[l]);
        layer *p = &n->layers[l];
        for (int i = 0; i < dim[l + 1] * dim[l]; i++) {
            p->w[i] = range * (2 * random_uniform(&seed) - 1);
        }
        for (int o = 0; o < dim[l + 1]; o++) p->b[o] = range * (2 * random_uniform(&seed) - 1);
    }
}

// Describes the net to rescale.cuh, and rescales it. A hidden layer is a group of units. The rows
// of a weight enter the group after it, and its columns leave the group before it.
static void rescale(net *n) {
    rescale_group hidden[LAYERS];
    rescale_tensor t[2 * LAYERS];
    for (int l = 0; l < LAYERS; l++) {
        const int enters = l < LAYERS - 1 ? l : RESCALE_NONE;
        const int leaves = l > 0 ? l - 1 : RESCALE_NONE;
        layer *p = &n->layers[l];
        hidden[l] = rescale_units("hidden layer", dim[l + 1], RESCALE_RELU);
        t[2 * l] = rescale_weight("weight", p->w, dim[l + 1], dim[l], 1, enters, leaves);
        t[2 * l + 1] = rescale_bias("bias", p->b, dim[l + 1], enters);
    }
    const rescale_net description = {hidden, LAYERS - 1, t, 2 * LAYERS};
    const rescale_options options = rescale_default_options();
    rescale_report report;
    if (rescale_run(&description, &options, &report) == RESCALE_OK) return;
    fprintf(stderr, "tiny: %s\n", report.message);
    exit(1);
}

// Layer by layer: s = W h + b, then h = max(s, 0) for the next one. The last layer has no ReLU.
// h[0] is the input; backward needs all the h. Returns the output, whose sign is the class.
static float forward(const net *n, float h[LAYERS + 1][MAX_UNITS]) {
    for (int l = 0; l < LAYERS; l++) {
        const int has_relu = l < LAYERS - 1;
        for (int o = 0; o < dim[l + 1]; o++) {
            const float *w = n->layers[l].w + o * dim[l];
            float s = n->layers[l].b[o];
            for (int i = 0; i < dim[l]; i++) s += w[i] * h[l][i];
            h[l + 1][o] = has_relu ? fmaxf(s, 0) : s;
        }
    }
    return h[LAYERS][0];
}

// Adds one sample's gradient to g; dy is dloss/dy. A layer s = W h + b has the gradients
// dW = ds h^T, db = ds and dh = W^T ds. A ReLU passes ds = dh where h > 0, and 0 elsewhere.
static void backward(const net *n, float h[LAYERS + 1][MAX_UNITS], float dy, net *g) {
    float ds[MAX_UNITS] = {dy};
    for (int l = LAYERS - 1; l >= 0; l--) {
        float dh[MAX_UNITS] = {0};
        for (int o = 0; o < dim[l + 1]; o++) {
            const float *w = n->layers[l].w + o * dim[l];
            float *dw = g->layers[l].w + o * dim[l];
            g->layers[l].b[o] += ds[o];
            for (int i = 0; i < dim[l]; i++) {
                dw[i] += ds[o] * h[l][i];
                dh[i] += ds[o] * w[i];
            }
        }
        for (int i = 0; i < dim[l]; i++) ds[i] = h[l][i] > 0 ? dh[i] : 0;
    }
}

// Gradient descent: every parameter moves against its gradient.
static void update(net *n, const net *g, float rate) {
    for (int l = 0; l < LAYERS; l++) {
        layer *p = &n->layers[l];
        const layer *d = &g->layers[l];
        for (int i = 0; i < dim[l + 1] * dim[l]; i++) p->w[i] -= rate * d->w[i];
        for (int o = 0; o < dim[l + 1]; o++) p->b[o] -= rate * d->b[o];
    }
}

// Trains a net; the loss of a sample is log(1 + exp(-label y)). Returns its mean in the last epoch.
static double train(net *n, float rate, unsigned seed) {
    float h[LAYERS + 1][MAX_UNITS];
    double loss = 0;
    for (int step = 0; step < EPOCHS * POINTS / BATCH; step++) {
        net g;
        memset(&g, 0, sizeof g);
        if (step % (POINTS / BATCH) == 0) loss = 0;  // a new epoch
        for (int k = 0; k < BATCH; k++) {
            const int i = (int)(POINTS * random_uniform(&seed));
            memcpy(h[0], point[i], sizeof point[i]);
            const float margin = label[i] * forward(n, h);
            const float dy = -label[i] / (1 + expf(margin));
            backward(n, h, dy / BATCH, &g);
            loss += log1p(exp(-margin)) / POINTS;
        }
        update(n, &g, rate);
    }
    return loss;
}

// The largest difference between the outputs of two nets on the data.
static double largest_difference(const net *a, const net *b) {
    double largest = 0;
    for (int i = 0; i < POINTS; i++) {
        float h[LAYERS + 1][MAX_UNITS];
        memcpy(h[0], point[i], sizeof point[i]);
        const double d = forward(a, h) - forward(b, h);
        largest = fmax(largest, fabs(d));
    }
    return largest;
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(void) {
    const float rates[] = {0.02f, 0.05f, 0.1f, 0.2f, 0.4f};
    double difference = 0;
    make_spirals();
    printf("median loss of %d seeds after %d epochs\n", SEEDS, EPOCHS);
    printf("learning rate  as initialised  rescaled\n");
    for (size_t r = 0; r < sizeof rates / sizeof *rates; r++) {
        double loss[2][SEEDS];
        for (unsigned seed = 0; seed < SEEDS; seed++) {
            net plain, rescaled;
            initialise(&plain, 2654435761u * (seed + 1));
            rescaled = plain;
            rescale(&rescaled);
            difference = fmax(difference, largest_difference(&plain, &rescaled));
            loss[0][seed] = train(&plain, rates[r], seed);
            loss[1][seed] = train(&rescaled, rates[r], seed);
        }
        for (int k = 0; k < 2; k++) qsort(loss[k], SEEDS, sizeof loss[k][0], compare_doubles);
        printf("%13g  %14.4f  %8.4f\n", rates[r], loss[0][SEEDS / 2], loss[1][SEEDS / 2]);
    }
    printf("rescaling changed the outputs before training by at most %.1e\n", difference);
    return fflush(stdout) != 0;
}
