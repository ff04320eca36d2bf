// trainer_cnn.h -- the convolutional trainer beside its reference: the same network in float and in double. Include it
// after train_cnn.cu (with TESTING defined).
//
//     const RefCnnConfig k = {REF_RESNET18, 3, 32, 32, 10, 0.05, 1, 1, 1, 0};
//     config c = config_of(&k);                   the trainer's configuration of the same network
//     model m;  build(&m, &k, &c, rows);          for up to `rows` images at a time
//     RefCnn ref = ref_cnn_create(&k);  randomise(&ref);  copy_to_model(&m, &ref);
//     upload_images(&m, x, n);                    x[n][c][h][w] in double
//     dataset d = images_of(&k, n, noise);        n images in memory of the case
//     make_trainer(&t, &c, &k, &d, rows);         a trainer on them, as run() makes it;  free_trainer(&t);
// TEST_REDUCED makes the large nets small: test/sanitize.sh checks every access, which costs ten times as much.
#pragma once
#include "ref_cnn_parity.h"
#include "trainer.h"

#ifdef TEST_REDUCED
static const double full_width = 0.125;
#else
static const double full_width = 1;
#endif

static inline config config_of(const RefCnnConfig *k) {
    static const int kind[] = {MODEL_ALLCONV, MODEL_RESNET18, MODEL_SMALL};  // in the order of REF_ALLCONV, ...
    config c = default_config();
    c.model = kind[k->model];
    c.width = k->width;
    c.norm = k->norm ? NORM_BATCH : NORM_NONE;
    c.bias = k->bias;
    c.shortcut = k->projection ? SHORTCUT_PROJECTION : SHORTCUT_IDENTITY;
    return c;
}

// Builds a model; stops the program when it cannot.
static inline void build(model *m, const RefCnnConfig *k, const config *c, int rows) {
    char err[512];
    if (model_create(m, c, k->in_c, k->in_h, k->in_w, k->classes, rows, err, sizeof err)) {
        fprintf(stderr, "trainer_cnn.h: %s\n", err);
        exit(1);
    }
}

// Copies parameters and running statistics by name, from the reference to the model or back. Both have the same ones.
static inline void copy_tensors(model *m, RefCnn *ref, int to_model) {
    const train_net *net = &m->net;
    int same = net->n_tensors == ref->n_tensors;
    for (int i = 0; i < net->n_tensors && same; i++) {
        const train_tensor *t = &net->tensors[i];
        RefTensor *r = ref_cnn_tensor(ref, t->name);
        same = r && r->rows == t->rows && r->cols == t->cols && ref->shapes[r - ref->tensors].rank == t->n_dims;
        for (int k = 0; same && k < t->n_dims; k++) same = ref->shapes[r - ref->tensors].dim[k] == t->dim[k];
        if (same && to_model) upload(net->params + t->offset, r->data, r->n);
        if (!same || to_model) continue;
        float *host = train_host_copy(net->params + t->offset, r->n);
        for (size_t k = 0; k < r->n; k++) r->data[k] = (double)host[k];
        free(host);
    }
    int statistics = 0;
    for (int i = 0; i < net->n_buffers && same; i++) {
        const train_tensor *t = &net->buffers[i];
        double *r = ref_cnn_buffer(ref, t->name);
        if (t->role != TRAIN_STATISTIC) continue;
        same = r != NULL;
        statistics++;
        if (same && to_model) upload(net->stats + t->offset, r, (size_t)t->rows);
        if (!same || to_model) continue;
        float *host = train_host_copy(net->stats + t->offset, (size_t)t->rows);
        for (int k = 0; k < t->rows; k++) r[k] = (double)host[k];
        free(host);
    }
    for (int l = 0; l < ref->n_layers; l++) statistics -= 2 * (ref->layers[l].kind == REF_LAYER_NORM);
    CHECK(same && statistics == 0, "trainer and reference have the same tensors, by name and shape");
}
static inline void copy_to_model(model *m, RefCnn *ref) { copy_tensors(m, ref, 1); }
static inline void copy_from_model(RefCnn *ref, model *m) { copy_tensors(m, ref, 0); }

static inline void fill_doubles(double *x, size_t n, double centre, double spread) {
    for (size_t i = 0; i < n; i++) x[i] = (double)(float)(centre + spread * (double)uniform());
}

// Random parameters (gains of both signs) and statistics, all of them floats. `defaults` keeps BatchNorm as it begins.
static inline void randomise(RefCnn *ref, int defaults) {
    for (int t = 0; t < ref->n_tensors; t++) {
        const int matrix = ref->shapes[t].rank > 1;
        int norm = 0;
        for (int l = 0; l < ref->n_layers; l++) {
            const RefCnnLayer *layer = &ref->layers[l];
            norm |= layer->kind == REF_LAYER_NORM && (layer->weight == t || layer->bias == t);
        }
        if (norm && defaults) continue;
        fill_doubles(ref->tensors[t].data, ref->tensors[t].n, 0, matrix ? 2.4 / sqrt(ref->tensors[t].cols) : 0.3);
    }
    for (int l = 0; l < ref->n_layers; l++) {
        RefCnnLayer *layer = &ref->layers[l];
        const size_t c = (size_t)layer->win.out_c;
        if (layer->kind != REF_LAYER_NORM || defaults) continue;
        double *gamma = ref->tensors[layer->weight].data;
        fill_doubles(gamma, c, 0, 1);
        for (size_t i = 0; i < c; i++) gamma[i] += gamma[i] < 0 ? -0.5 : 0.5;
        fill_doubles(layer->running_mean, c, 0, 0.5);
        fill_doubles(layer->running_var, c, 1, 0.7);
    }
}

static inline void upload_images(model *m, const double *x, int n) {
    const layer *l = &m->layers[0];
    const size_t map = (size_t)(l->in_h * l->in_w), channels = (size_t)l->in_c;
    double *nhwc = (double *)malloc((size_t)n * channels * map * sizeof *nhwc);
    for (size_t i = 0; i < (size_t)n; i++)
        for (size_t c = 0; c < channels; c++)
            for (size_t p = 0; p < map; p++) nhwc[(i * map + p) * channels + c] = *x++;
    upload(m->image, nhwc, (size_t)n * channels * map);
    free(nhwc);
}

// A trainer on a data set in memory, which is training and test set.
static inline void make_trainer(trainer *t, const config *c, const RefCnnConfig *k, const dataset *d, int max_rows) {
    memset(t, 0, sizeof *t);
    t->c = c;
    t->ordered = -1;
    train_run_init(&t->run, "trainer_cnn.h", VERSION, &c->train);
    train_set_length(&t->run, d->n);
    build(&t->m, k, c, max_rows);
    t->train = device_data_create(d, 1);
    t->test = device_data_create(d, 1);
    t->run.net = &t->m.net;
    t->run.step_loss = t->m.step_loss;
    t->run.trainer = t;
    t->m.samples = &t->train;
    model_init(&t->m, c);
}
static inline void free_trainer(trainer *t) {
    model_free(&t->m);
    device_data_free(&t->train);
    device_data_free(&t->test);
}

// n images in memory of the case: those of ref_cnn_parity.h, repeated, or with `noise` random ones.
static inline dataset images_of(const RefCnnConfig *k, int n, int noise) {
    dataset d;
    memset(&d, 0, sizeof d);
    d.n = n;
    d.channels = k->in_c;
    d.height = k->in_h;
    d.width = k->in_w;
    d.features = k->in_c * k->in_h * k->in_w;
    d.classes = k->classes;
    d.pixels = (unsigned char *)host_bytes((size_t)n * (size_t)d.features);
    d.labels = (unsigned char *)host_bytes((size_t)n);
    for (int i = 0; i < n; i++) {
        d.labels[i] = (unsigned char)(noise ? (i * 7 + 3) % k->classes : ref_cnn_parity_label(i));
        unsigned char *p = d.pixels + (size_t)i * (size_t)d.features;
        if (!noise) ref_cnn_parity_image(i, k->in_c, k->in_h, k->in_w, p);
        for (int j = 0; noise && j < d.features; j++) p[j] = (unsigned char)(128 + 128 * uniform());
    }
    dataset other = d;
    dataset_statistics(&d, &other);
    return d;
}
