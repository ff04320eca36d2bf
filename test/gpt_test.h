// gpt_test.h -- what the two tests of train_gpt_style.c share (float and double): small models with random parameters
// beside the reference of ref_gpt.h. Include it after the trainer.
#pragma once
#include "ref_gpt.h"
#include "test.h"

typedef struct gpt_case {
    int L, NH, C, T_max, V, tied, B, T;
} gpt_case;

// Odd shapes: one position, one head, 3 heads of odd size, several strips and blocks of keys of attention.
static const gpt_case gpt_cases[] = {
    {1, 1, 4, 1, 5, 1, 1, 1},   {2, 3, 15, 17, 11, 0, 3, 17}, {3, 1, 8, 20, 7, 1, 1, 17}, {1, 3, 6, 17, 2, 1, 3, 1},
    {2, 2, 32, 70, 19, 1, 1, 65}, {1, 1, 16, 300, 33, 0, 1, 300}, {1, 2, 6, 270, 9, 1, 2, 257},
};
enum { GPT_CASES = sizeof gpt_cases / sizeof gpt_cases[0] };

static config gpt_config(const gpt_case *k) {
    config c = default_config();
    c.layers = k->L;
    c.heads = k->NH;
    c.channels = k->C;
    c.context = k->T_max;
    c.vocabulary = k->V;
    c.untied = !k->tied;
    c.sets = SETS_ALL;
    c.train.rescale = RESCALE_BY_PATHCOND;
    return c;
}

// A model of a configuration with random parameters (nothing at zero or one), and random tokens and targets.
static void gpt_make_as(model *m, const gpt_case *k, const config *c) {
    char err[256];
    if (model_create(m, c, k->B, 1, err, sizeof err)) {
        fprintf(stderr, "%s\n", err);
        exit(1);
    }
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        for (size_t j = 0; j < (size_t)t->rows * (size_t)t->cols; j++) {
            double spread = 1.2 / sqrt((double)t->cols);
            if (t->layer < 0) spread = 1;
            if (t->n_dims == 1) spread = 0.3;
            m->params[t->offset + j] = (real)((t->role == RESCALE_GAIN) + spread * test_random());
        }
    }
    for (int r = 0; r < k->B * k->T; r++) {
        m->tokens[r] = (int)((test_random() + 1) / 2 * k->V) % k->V;
        m->targets[r] = (int)((test_random() + 1) / 2 * k->V) % k->V;
    }
}

static inline void gpt_make(model *m, const gpt_case *k, int recompute) {
    config c = gpt_config(k);
    c.recompute = recompute;
    gpt_make_as(m, k, &c);
}

// The reference's view of a case, and the model's arrays in its order, without padding.
static RefGpt gpt_ref(const gpt_case *k) {
    const RefGpt r = {k->L, k->NH, k->C, k->T_max, k->V, k->tied};
    return r;
}
static double *gpt_flat(const model *m, const real *array) {
    double *flat = ref_gpt_doubles((size_t)train_parameter_count(&m->net));
    size_t n = 0;
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        for (size_t j = 0; j < (size_t)t->rows * (size_t)t->cols; j++) flat[n++] = (double)array[t->offset + j];
    }
    return flat;
}

// One pass over m->tokens and m->targets: adds the gradient of scale * (sum of losses). Returns the sum of losses.
static double forward_backward(model *m, int B, int T, double scale) {
    double hits = 0;
    forward(m, B, T, 0);
    const double loss = loss_forward_backward(m, B * T, scale, &hits);
    backward(m, B, T);
    m->accumulate = 1;
    return loss;
}

// Mean loss and, in m->grads, its gradient.
static double gpt_gradient(model *m, int B, int T) {
    zero_gradients(m);
    return forward_backward(m, B, T, 1.0 / (B * T)) / (B * T);
}

// Fails unless got[n] is within rel of the largest |want| of its tensor, for every tensor; n parameters.
static void gpt_compare_gradients(const char *label, const model *m, const double *got, const double *want,
                                  double rel) {
    size_t at = 0;
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        const size_t n = (size_t)t->rows * (size_t)t->cols;
        char name[256];
        double largest = 0;
        for (size_t j = 0; j < n; j++) largest = fmax(largest, fabs(want[at + j]));
        snprintf(name, sizeof name, "%s: gradient of %s", label, t->name);
        test_close_d(name, got + at, want + at, n, 0, rel * (largest + 1e-3));
        at += n;
    }
}
