// ref_parity.h -- the training runs of test/reference_pytorch.csv in C: same data, same initial weights, by formula.
//
// For tests only. test/make_pytorch_reference.py has the same formulas in Python and describes them; change both.
//
//     ref_parity_cases[c]                       seven runs: sgd, momentum, adamw, the same with _bn, autoencoder
//     ref_parity_read(path, name, ref)          the PyTorch losses of one run, from the CSV; 1 when complete
//     ref_parity_train(c, losses)               the same run with ref_mlp.h in double precision
//     ref_parity_tolerance(step)                relative difference allowed at a step: 1e-6 at 1 to 1e-3 at 100
//     ref_parity_write_idx(folder)              the 64 images and labels as MNIST-style IDX files, train and t10k alike
//     ref_parity_model(c)                       the initial network
//     ref_parity_write_safetensors(path, &m)    a network as float32 safetensors with PyTorch's names, for --load
// A trainer is compared by: write_idx, write_safetensors(ref_parity_model(c)), train 100 steps with batch size 16,
// --shuffle none and the optimizer of the case, then compare its losses with ref_parity_read's.
//
// Losses are an array of REF_PARITY_ROWS: [s - 1] is the training loss of step s = 1..100 before the update of that
// step, [100] the loss over all samples in evaluation mode at the end.
//
// AdamW with BatchNorm, a trap: the bias of a linear layer in front of BatchNorm has gradient zero, up to rounding;
// AdamW scales that noise up to steps of size lr. Training losses do not see it (the batch mean removes it), but the
// running mean lags behind, so evaluation losses of float32 runs differ by about 1e-3: ref_parity_eval_tolerance.
#pragma once
#include "ref_mlp.h"
#include "ref_rescale.h"

enum { REF_PARITY_SAMPLES = 64, REF_PARITY_SIDE = 6, REF_PARITY_PIXELS = 36, REF_PARITY_CLASSES = 10 };
enum { REF_PARITY_BATCH = 16, REF_PARITY_STEPS = 100, REF_PARITY_ROWS = 101 };

typedef struct {
    const char *name;
    int n_layers, dims[5];
    int bn, loss;  // loss: REF_CROSS_ENTROPY on labels; REF_MSE on the input (autoencoder)
    int optimizer; // REF_SGD, REF_MOMENTUM, REF_ADAMW
    double lr, momentum, weight_decay;
    const char *flags; // the optimizer as a trainer's command line
} RefParityCase;

static const RefParityCase ref_parity_cases[] = {
    {"sgd", 3, {36, 32, 24, 10, 0}, 0, REF_CROSS_ENTROPY, REF_SGD, 0.05, 0, 0,
     "--optimizer sgd --lr 0.05 --weight-decay 0"},
    {"momentum", 3, {36, 32, 24, 10, 0}, 0, REF_CROSS_ENTROPY, REF_MOMENTUM, 0.02, 0.9, 1e-3,
     "--optimizer momentum --lr 0.02 --momentum 0.9 --weight-decay 1e-3"},
    {"adamw", 3, {36, 32, 24, 10, 0}, 0, REF_CROSS_ENTROPY, REF_ADAMW, 1e-3, 0, 0.01,
     "--optimizer adamw --lr 1e-3 --weight-decay 0.01"},
    {"sgd_bn", 3, {36, 32, 24, 10, 0}, 1, REF_CROSS_ENTROPY, REF_SGD, 0.05, 0, 0,
     "--optimizer sgd --lr 0.05 --weight-decay 0"},
    {"momentum_bn", 3, {36, 32, 24, 10, 0}, 1, REF_CROSS_ENTROPY, REF_MOMENTUM, 0.02, 0.9, 1e-3,
     "--optimizer momentum --lr 0.02 --momentum 0.9 --weight-decay 1e-3"},
    {"adamw_bn", 3, {36, 32, 24, 10, 0}, 1, REF_CROSS_ENTROPY, REF_ADAMW, 1e-3, 0, 0.01,
     "--optimizer adamw --lr 1e-3 --weight-decay 0.01"},
    {"autoencoder", 4, {36, 16, 4, 16, 36}, 0, REF_MSE, REF_MOMENTUM, 0.02, 0.9, 1e-3,
     "--optimizer momentum --lr 0.02 --momentum 0.9 --weight-decay 1e-3"},
};
enum { REF_PARITY_CASES = sizeof ref_parity_cases / sizeof ref_parity_cases[0] };

// 64 well-mixed bits of k: splitmix64's output function.
static inline uint64_t ref_parity_mix(uint64_t k) {
    uint64_t z = (k + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

// Class of image i.
static inline int ref_parity_label(int i) {
    return (int)(ref_parity_mix(UINT64_C(1000000) + (uint64_t)i) % REF_PARITY_CLASSES);
}

// Pixel j of image i, 0..254: noise plus the pattern of the image's class.
static inline int ref_parity_pixel(int i, int j) {
    const uint64_t noise = ref_parity_mix((uint64_t)(REF_PARITY_PIXELS * i + j)) % 128;
    const uint64_t pattern =
        ref_parity_mix(UINT64_C(2000000) + (uint64_t)(REF_PARITY_PIXELS * ref_parity_label(i) + j)) % 128;
    return (int)(noise + pattern);
}

// Network inputs x[64][36], rounded to float: standardised for cross-entropy, pixel / 255 for the autoencoder.
static inline void ref_parity_inputs(int loss, double *x) {
    const int total = REF_PARITY_SAMPLES * REF_PARITY_PIXELS;
    double mean = 0, var = 0;
    for (int k = 0; k < total; k++) {
        x[k] = ref_parity_pixel(k / REF_PARITY_PIXELS, k % REF_PARITY_PIXELS) / 255.0;
        mean += x[k] / total;
    }
    for (int k = 0; k < total; k++) var += (x[k] - mean) * (x[k] - mean) / total;
    for (int k = 0; k < total; k++) x[k] = (double)(float)(loss == REF_MSE ? x[k] : (x[k] - mean) / sqrt(var));
}

// The initial network of a run: golden weights rounded to float, BatchNorm at its defaults.
static inline RefMlp ref_parity_model(const RefParityCase *c) {
    RefMlp m = ref_mlp_create(c->dims, c->n_layers, 1, 1, c->bn);
    double *theta = ref_doubles((size_t)ref_mlp_param_count(c->dims, c->n_layers, 1, 1)), *next = theta;
    ref_golden_weights(c->dims, c->n_layers, 1, 1, theta);
    for (int t = 0; t < m.n_tensors; t++) {
        if (m.tensors[t].name[0] != 'f') continue; // only fc*, not bn*
        for (size_t i = 0; i < m.tensors[t].n; i++) m.tensors[t].data[i] = (double)(float)*next++;
    }
    free(theta);
    return m;
}

// The run in double precision; fills losses[REF_PARITY_ROWS].
static inline void ref_parity_train(const RefParityCase *c, double *losses) {
    double *x = ref_doubles((size_t)REF_PARITY_SAMPLES * REF_PARITY_PIXELS);
    int labels[REF_PARITY_SAMPLES];
    RefMlp m = ref_parity_model(c);
    RefOptimizer opt = ref_optimizer(c->optimizer, c->lr, c->momentum, c->weight_decay);
    ref_parity_inputs(c->loss, x);
    for (int i = 0; i < REF_PARITY_SAMPLES; i++) labels[i] = ref_parity_label(i);
    for (int s = 0; s < REF_PARITY_STEPS; s++) {
        const int first = s * REF_PARITY_BATCH % REF_PARITY_SAMPLES;
        const double *batch = &x[first * REF_PARITY_PIXELS];
        losses[s] = ref_mlp_forward(&m, REF_TRAIN, c->loss, batch, &labels[first], batch, REF_PARITY_BATCH);
        ref_mlp_backward(&m);
        ref_mlp_step(&m, &opt);
    }
    losses[REF_PARITY_STEPS] = ref_mlp_forward(&m, REF_EVAL, c->loss, x, labels, x, REF_PARITY_SAMPLES);
    ref_mlp_free(&m);
    free(x);
}

// Relative difference allowed at step 1..100, geometric from 1e-6 to 1e-3.
static inline double ref_parity_tolerance(int step) { return 1e-6 * pow(10.0, 3.0 * (step - 1) / 99.0); }

// Relative difference allowed in the evaluation loss: see the trap above for AdamW with BatchNorm.
static inline double ref_parity_eval_tolerance(const RefParityCase *c) {
    return c->bn && c->optimizer == REF_ADAMW ? 5e-3 : 1e-3;
}

// Reads the rows of one run from the CSV into losses[REF_PARITY_ROWS]; 1 when every row was there once.
static inline int ref_parity_read(const char *path, const char *name, double *losses) {
    char line[256], run[64], step[16];
    int rows = 0, seen[REF_PARITY_ROWS] = {0};
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        double loss;
        if (sscanf(line, "%63[^,],%15[^,],%lf", run, step, &loss) != 3 || strcmp(run, name) != 0) continue;
        const int row = strcmp(step, "eval") == 0 ? REF_PARITY_STEPS : atoi(step) - 1;
        if (row < 0 || row >= REF_PARITY_ROWS || seen[row]++) continue;
        losses[row] = loss;
        rows++;
    }
    fclose(f);
    return rows == REF_PARITY_ROWS;
}

// Where the CSV lies: beside this header, wherever the program was started from.
static inline const char *ref_parity_csv(void) {
    static char path[1024];
    const char *slash = strrchr(__FILE__, '/');
    snprintf(path, sizeof path, "%.*sreference_pytorch.csv", slash ? (int)(slash - __FILE__ + 1) : 0, __FILE__);
    FILE *f = fopen(path, "r");
    if (f) fclose(f);
    else snprintf(path, sizeof path, "test/reference_pytorch.csv");
    return path;
}

// ---------------------------------------------------------------------------------------------------------------
// Files for a trainer

// Writes a 32-bit big-endian integer.
static inline void ref_parity_be32(FILE *f, unsigned value) {
    for (int shift = 24; shift >= 0; shift -= 8) fputc((int)(value >> shift & 255), f);
}

// Writes train-images-idx3-ubyte, train-labels-idx1-ubyte and the same as t10k-*; 1 on success.
static inline int ref_parity_write_idx(const char *folder) {
    const char *const prefixes[] = {"train", "t10k"};
    for (int p = 0; p < 2; p++)
        for (int labels = 0; labels < 2; labels++) {
            char path[1024];
            snprintf(path, sizeof path, "%s/%s-%s-ubyte", folder, prefixes[p], labels ? "labels-idx1" : "images-idx3");
            FILE *f = fopen(path, "wb");
            if (!f) return 0;
            ref_parity_be32(f, labels ? 0x801 : 0x803);
            ref_parity_be32(f, REF_PARITY_SAMPLES);
            if (!labels) ref_parity_be32(f, REF_PARITY_SIDE);
            if (!labels) ref_parity_be32(f, REF_PARITY_SIDE);
            for (int i = 0; i < REF_PARITY_SAMPLES; i++) {
                if (labels) fputc(ref_parity_label(i), f);
                for (int j = 0; !labels && j < REF_PARITY_PIXELS; j++) fputc(ref_parity_pixel(i, j), f);
            }
            const int failed = ferror(f);
            if (fclose(f) || failed) return 0;
        }
    return 1;
}

// Writes n doubles as little-endian float32.
static inline void ref_parity_floats(FILE *f, const double *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const float value = (float)x[i];
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        for (int shift = 0; shift < 32; shift += 8) fputc((int)(bits >> shift & 255), f);
    }
}

// Adds one entry to a safetensors header of `used` characters; returns the new length, `capacity` when it is full.
static inline size_t ref_parity_entry(char *json, size_t capacity, size_t used, const char *name, const char *type,
                                      const char *shape, size_t *offset, size_t bytes) {
    char entry[256];
    const int n = snprintf(entry, sizeof entry,
                           "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", used > 1 ? "," : "",
                           name, type, shape, *offset, *offset + bytes);
    *offset += bytes;
    if (n < 0 || used + (size_t)n >= capacity) return capacity; // full, and stays so
    memcpy(json + used, entry, (size_t)n);
    return used + (size_t)n;
}

// Writes a network as safetensors: 8-byte little-endian header length, JSON padded with spaces, data. Names are
// PyTorch's, with bn*.num_batches_tracked as int64 scalars. 1 on success.
static inline int ref_parity_write_safetensors(const char *path, const RefMlp *m) {
    char json[16384] = "{", name[64], shape[64];
    const size_t room = sizeof json - 16; // leaves space for the closing brace and the padding
    size_t used = 1, offset = 0;
    for (int l = 0; m->has_bn && l + 1 < m->n_layers; l++) { // first, so that everything is aligned
        snprintf(name, sizeof name, "bn%d.num_batches_tracked", l + 1);
        used = ref_parity_entry(json, room, used, name, "I64", "", &offset, 8);
    }
    for (int t = 0; t < m->n_tensors; t++) {
        const RefTensor *x = &m->tensors[t];
        const int is_matrix = strncmp(x->name, "fc", 2) == 0 && strstr(x->name, ".weight");
        if (is_matrix) snprintf(shape, sizeof shape, "%d,%d", x->rows, x->cols);
        else snprintf(shape, sizeof shape, "%d", x->rows);
        used = ref_parity_entry(json, room, used, x->name, "F32", shape, &offset, 4 * x->n);
    }
    for (int l = 0; m->has_bn && l + 1 < m->n_layers; l++) {
        const size_t bytes = 4 * (size_t)m->dims[l + 1];
        snprintf(shape, sizeof shape, "%d", m->dims[l + 1]);
        snprintf(name, sizeof name, "bn%d.running_mean", l + 1);
        used = ref_parity_entry(json, room, used, name, "F32", shape, &offset, bytes);
        snprintf(name, sizeof name, "bn%d.running_var", l + 1);
        used = ref_parity_entry(json, room, used, name, "F32", shape, &offset, bytes);
    }
    if (used >= room) return 0; // more layers than this test helper has room for
    json[used++] = '}';
    while (used % 8) json[used++] = ' ';

    FILE *f = fopen(path, "wb");
    if (!f) return 0;
    for (int shift = 0; shift < 64; shift += 8) fputc((int)((uint64_t)used >> shift & 255), f);
    fwrite(json, 1, used, f);
    for (int l = 0; m->has_bn && l + 1 < m->n_layers; l++)
        for (int shift = 0; shift < 64; shift += 8) fputc((int)((uint64_t)m->batches_tracked >> shift & 255), f);
    for (int t = 0; t < m->n_tensors; t++) ref_parity_floats(f, m->tensors[t].data, m->tensors[t].n);
    for (int l = 0; m->has_bn && l + 1 < m->n_layers; l++) {
        ref_parity_floats(f, m->running_mean[l], (size_t)m->dims[l + 1]);
        ref_parity_floats(f, m->running_var[l], (size_t)m->dims[l + 1]);
    }
    const int failed = ferror(f);
    return fclose(f) == 0 && !failed;
}
