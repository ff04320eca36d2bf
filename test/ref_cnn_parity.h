// ref_cnn_parity.h -- the training runs of test/reference_pytorch_cnn.csv in C: the same data and initial weights.
//
// For tests only. test/make_pytorch_cnn_reference.py has the same formulas in Python and describes them; change both.
//
//     ref_cnn_parity_cases[k]                    seven runs; .options is the trainer's command line for one
//     ref_cnn_parity_read(path, name, ref)       the PyTorch losses of one run, from the CSV; 1 when complete
//     ref_cnn_parity_train(c, steps, losses)     the same run with ref_cnn.h in double precision
//     ref_cnn_parity_tolerance(step)             relative difference allowed: 1e-6 at step 1, 3e-5 at 2, 1e-3 at 50
//     ref_cnn_parity_model(c)                    the initial network
//     ref_cnn_parity_images, _labels, _inputs    the 32 samples in memory: bytes, labels, normalised doubles
//     ref_cnn_parity_write_cifar(folder)         the 3x32x32 samples as the six files of CIFAR-10's binary version: the
//                                                training images in data_batch_1.bin (7), _2 (7), _3, _4, _5 (6 each),
//                                                all in test_batch.bin
//     ref_cnn_parity_write_idx(folder)           the 1x28x28 samples as MNIST-style IDX files, train and t10k alike
//     ref_cnn_parity_write_safetensors(path, c)  the initial network for --load
//     ref_cnn_write_safetensors(path, &m)        any network, float32, PyTorch's names
// A trainer is compared by: write the data and the weights, train 50 steps with
//     --data FOLDER --load FILE --shuffle none --batch-size 8 --steps 50 --rescale none and c->options
// and compare its losses with ref_cnn_parity_read's.
//
// Losses are an array of REF_CNN_PARITY_ROWS: [s - 1] is the training loss of step s = 1..50 before the update of that
// step, [50] the loss over all samples in evaluation mode at the end, [51] and [52] the sum of diag(G) before training
// with sums and with maxima in place of max-pooling.
//
// The tolerance leaves room for decisions. A ReLU or a max-pool that sees a difference of rounding size decides the
// other way and moves one update (so does AdamW's first step for a gradient of rounding size). PyTorch's float32
// against float64, with four implementations (oneDNN, native, channels_last, inputs changed in the last bit), is at
// most 0.4 of it. This header's runs in double differ from the CSV by 1.8e-7 to 5.8e-5 at step 50, and nowhere by
// more than 0.25 of the tolerance.
#pragma once
#include "ref_cnn_rescale.h"
#include "ref_parity.h"

enum { REF_CNN_PARITY_SAMPLES = 32, REF_CNN_PARITY_CLASSES = 10, REF_CNN_PARITY_BATCH = 8, REF_CNN_PARITY_STEPS = 50 };
enum { REF_CNN_PARITY_EVAL = REF_CNN_PARITY_STEPS, REF_CNN_PARITY_PATH_SUM, REF_CNN_PARITY_PATH_MAX };
enum { REF_CNN_PARITY_ROWS = REF_CNN_PARITY_PATH_MAX + 1 };

typedef struct {
    const char *name;
    RefCnnConfig config;
    double label_smoothing;
    int optimizer; // REF_SGD, REF_MOMENTUM, REF_ADAMW
    double lr, momentum, weight_decay;
    const char *options; // network and optimizer as a trainer's command line
} RefCnnParityCase;

static const RefCnnParityCase ref_cnn_parity_cases[] = {
    {"allconv", {REF_ALLCONV, 3, 32, 32, 10, 0.125, 0, 1, 1, 0}, 0, REF_SGD, 1e-3, 0, 0,
     "--model allconv --norm none --width 0.125 --optimizer sgd --lr 1e-3 --weight-decay 0"},
    {"allconv_bn", {REF_ALLCONV, 3, 32, 32, 10, 0.125, 1, 1, 1, 0}, 0, REF_MOMENTUM, 5e-4, 0.9, 1e-3,
     "--model allconv --norm batch --width 0.125 --optimizer momentum --lr 5e-4 --momentum 0.9 --weight-decay 1e-3"},
    {"resnet18", {REF_RESNET18, 3, 32, 32, 10, 0.125, 1, 1, 1, 0}, 0, REF_MOMENTUM, 5e-5, 0.9, 1e-3,
     "--model resnet18 --norm batch --shortcut identity --width 0.125 --optimizer momentum --lr 5e-5 --momentum 0.9 "
     "--weight-decay 1e-3"},
    {"resnet18_c", {REF_RESNET18, 3, 32, 32, 10, 0.125, 1, 1, 1, 1}, 0, REF_ADAMW, 3e-5, 0, 0.01,
     "--model resnet18 --norm batch --shortcut projection --width 0.125 --optimizer adamw --lr 3e-5 "
     "--weight-decay 0.01"},
    {"resnet18_plain", {REF_RESNET18, 3, 32, 32, 10, 0.125, 0, 1, 1, 0}, 0, REF_SGD, 3e-5, 0, 0,
     "--model resnet18 --norm none --shortcut identity --width 0.125 --optimizer sgd --lr 3e-5 --weight-decay 0"},
    {"small", {REF_SMALL, 1, 28, 28, 10, 0.3, 0, 1, 1, 0}, 0, REF_ADAMW, 3e-4, 0, 0.01,
     "--model small --norm none --width 0.3 --optimizer adamw --lr 3e-4 --weight-decay 0.01"},
    {"small_bn", {REF_SMALL, 3, 32, 32, 10, 0.3, 1, 1, 1, 0}, 0.1, REF_SGD, 0.02, 0, 0,
     "--model small --norm batch --width 0.3 --optimizer sgd --lr 0.02 --weight-decay 0 --label-smoothing 0.1"},
};
enum { REF_CNN_PARITY_CASES = sizeof ref_cnn_parity_cases / sizeof ref_cnn_parity_cases[0] };

// ---------------------------------------------------------------------------------------------------------------
// Data and initial weights

// Class of image i.
static inline int ref_cnn_parity_label(int i) {
    return (int)(ref_parity_mix(UINT64_C(1000000) + (uint64_t)i) % REF_CNN_PARITY_CLASSES);
}

static inline void ref_cnn_parity_labels(int *labels) {
    for (int i = 0; i < REF_CNN_PARITY_SAMPLES; i++) labels[i] = ref_cnn_parity_label(i);
}

// Image i as bytes[channels][height][width]: noise plus the pattern of the image's class, 0..254.
static inline void ref_cnn_parity_image(int i, int channels, int height, int width, unsigned char *bytes) {
    for (int c = 0; c < channels; c++)
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++) {
                const int position = ((i * channels + c) * height + y) * width + x;
                const int patch = ref_cnn_parity_label(i) * channels + c;
                const int square = (patch * (height / 4) + y / 4) * (width / 4) + x / 4;
                const uint64_t noise = ref_parity_mix((uint64_t)position) % 128;
                *bytes++ = (unsigned char)(noise + ref_parity_mix(UINT64_C(2000000) + (uint64_t)square) % 128);
            }
}

// All images, bytes[32][channels][height][width].
static inline void ref_cnn_parity_images(const RefCnnConfig *c, unsigned char *bytes) {
    for (int i = 0; i < REF_CNN_PARITY_SAMPLES; i++)
        ref_cnn_parity_image(i, c->in_c, c->in_h, c->in_w, bytes + (size_t)i * (size_t)(c->in_c * c->in_h * c->in_w));
}

// Network inputs x[32][channels][height][width]: standardised per channel, rounded to float.
static inline void ref_cnn_parity_inputs(const RefCnnConfig *config, double *x) {
    const int map = config->in_h * config->in_w, features = config->in_c * map;
    const int total = REF_CNN_PARITY_SAMPLES * features;
    unsigned char *bytes = (unsigned char *)ref_grow(NULL, (size_t)total);
    ref_cnn_parity_images(config, bytes);
    for (int c = 0; c < config->in_c; c++) {
        const double count = (double)REF_CNN_PARITY_SAMPLES * map;
        double mean = 0, var = 0;
        for (int k = 0; k < total; k++)
            if (k / map % config->in_c == c) mean += bytes[k] / 255.0 / count;
        for (int k = 0; k < total; k++)
            if (k / map % config->in_c == c) var += (bytes[k] / 255.0 - mean) * (bytes[k] / 255.0 - mean) / count;
        for (int k = 0; k < total; k++)
            if (k / map % config->in_c == c) x[k] = (double)(float)((bytes[k] / 255.0 - mean) / sqrt(var));
    }
    free(bytes);
}

// The formula's weights for every convolution and linear layer of a network; BatchNorm is left alone.
static inline void ref_cnn_parity_weights(RefCnn *m) {
    uint64_t k = UINT64_C(3000000);
    double fan_in = 1;
    for (int t = 0; t < m->n_tensors; t++) {
        const char *last_dot = strrchr(m->tensors[t].name, '.');
        const int is_weight = strcmp(last_dot, ".weight") == 0;
        int norm = 0;
        for (int l = 0; l < m->n_layers; l++)
            norm |= m->layers[l].kind == REF_LAYER_NORM && (m->layers[l].weight == t || m->layers[l].bias == t);
        if (norm) continue;
        if (is_weight) fan_in = m->tensors[t].cols;
        for (size_t i = 0; i < m->tensors[t].n; i++, k++) {
            const double u = (double)(ref_parity_mix(k) >> 11) / 9007199254740992.0;
            m->tensors[t].data[i] = (double)(float)((2 * u - 1) * (is_weight ? sqrt(6 / fan_in) : 1 / sqrt(fan_in)));
        }
    }
}

static inline RefCnn ref_cnn_parity_model(const RefCnnParityCase *c) {
    RefCnn m = ref_cnn_create(&c->config);
    m.label_smoothing = c->label_smoothing;
    ref_cnn_parity_weights(&m);
    return m;
}

// The first `steps` steps of a run in double precision; fills losses[REF_CNN_PARITY_ROWS]. NaN stands where a step was
// not made (and for the evaluation loss when steps < 50).
static inline void ref_cnn_parity_train(const RefCnnParityCase *c, int steps, double *losses) {
    const size_t features = (size_t)(c->config.in_c * c->config.in_h * c->config.in_w);
    double *x = ref_doubles(REF_CNN_PARITY_SAMPLES * features);
    int labels[REF_CNN_PARITY_SAMPLES];
    RefCnn m = ref_cnn_parity_model(c);
    RefOptimizer opt = ref_optimizer(c->optimizer, c->lr, c->momentum, c->weight_decay);
    const size_t p = ref_cnn_param_count(&m);
    double *g = ref_doubles(p);
    for (int row = 0; row < REF_CNN_PARITY_ROWS; row++) losses[row] = NAN;
    for (int pool = 0; pool < 2; pool++) {
        double *sum = &losses[pool ? REF_CNN_PARITY_PATH_MAX : REF_CNN_PARITY_PATH_SUM];
        ref_cnn_diag_g(&m, pool ? REF_PATHS_MAX : REF_PATHS_SUM, g);
        *sum = 0;
        for (size_t i = 0; i < p; i++) *sum += g[i];
    }
    ref_cnn_parity_inputs(&c->config, x);
    ref_cnn_parity_labels(labels);
    for (int s = 0; s < steps; s++) {
        const int first = s * REF_CNN_PARITY_BATCH % REF_CNN_PARITY_SAMPLES;
        losses[s] = ref_cnn_forward(&m, REF_TRAIN, &x[(size_t)first * features], &labels[first], REF_CNN_PARITY_BATCH);
        ref_cnn_backward(&m);
        ref_tensors_step(m.tensors, m.n_tensors, &opt);
    }
    if (steps == REF_CNN_PARITY_STEPS)
        losses[REF_CNN_PARITY_EVAL] = ref_cnn_forward(&m, REF_EVAL, x, labels, REF_CNN_PARITY_SAMPLES);
    ref_cnn_free(&m);
    free(x);
    free(g);
}

// Relative difference allowed at step 1..50 (and, with 50, in the evaluation loss): see the top.
static inline double ref_cnn_parity_tolerance(int step) {
    const double grown = 1e-6 * pow((double)step, log(1000.0) / log((double)REF_CNN_PARITY_STEPS));
    return step > 1 && grown < 3e-5 ? 3e-5 : grown;
}

// Reads the rows of one run from the CSV into losses[REF_CNN_PARITY_ROWS]; 1 when every row was there once.
static inline int ref_cnn_parity_read(const char *path, const char *name, double *losses) {
    char line[256], run[64], step[16];
    int rows = 0, seen[REF_CNN_PARITY_ROWS] = {0};
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        double value;
        if (sscanf(line, "%63[^,],%15[^,],%lf", run, step, &value) != 3 || strcmp(run, name) != 0) continue;
        int row = atoi(step) - 1;
        if (strcmp(step, "eval") == 0) row = REF_CNN_PARITY_EVAL;
        if (strcmp(step, "path_sum") == 0) row = REF_CNN_PARITY_PATH_SUM;
        if (strcmp(step, "path_max") == 0) row = REF_CNN_PARITY_PATH_MAX;
        if (row < 0 || row >= REF_CNN_PARITY_ROWS || seen[row]++) continue;
        losses[row] = value;
        rows++;
    }
    fclose(f);
    return rows == REF_CNN_PARITY_ROWS;
}

// Where the CSV lies: beside this header, wherever the program was started from.
static inline const char *ref_cnn_parity_csv(void) {
    static char path[1024];
    const char *slash = strrchr(__FILE__, '/');
    snprintf(path, sizeof path, "%.*sreference_pytorch_cnn.csv", slash ? (int)(slash - __FILE__ + 1) : 0, __FILE__);
    FILE *f = fopen(path, "r");
    if (f) fclose(f);
    else snprintf(path, sizeof path, "test/reference_pytorch_cnn.csv");
    return path;
}

// ---------------------------------------------------------------------------------------------------------------
// Files for a trainer

// Writes records of a label byte and 3072 pixel bytes for the images first .. first + n - 1; 1 on success.
static inline int ref_cnn_parity_write_batch(const char *folder, const char *file, int first, int n) {
    char path[1024];
    unsigned char record[3073];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *f = fopen(path, "wb");
    if (!f) return 0;
    for (int i = first; i < first + n; i++) {
        record[0] = (unsigned char)ref_cnn_parity_label(i);
        ref_cnn_parity_image(i, 3, 32, 32, record + 1);
        fwrite(record, 1, sizeof record, f);
    }
    const int failed = ferror(f);
    return fclose(f) == 0 && !failed;
}

static inline int ref_cnn_parity_write_cifar(const char *folder) {
    static const int sizes[5] = {7, 7, 6, 6, 6};
    int first = 0;
    for (int b = 0; b < 5; first += sizes[b++]) {
        char file[32];
        snprintf(file, sizeof file, "data_batch_%d.bin", b + 1);
        if (!ref_cnn_parity_write_batch(folder, file, first, sizes[b])) return 0;
    }
    return first == REF_CNN_PARITY_SAMPLES && ref_cnn_parity_write_batch(folder, "test_batch.bin", 0, first);
}

static inline int ref_cnn_parity_write_idx(const char *folder) {
    const char *const prefixes[] = {"train", "t10k"};
    for (int p = 0; p < 2; p++)
        for (int labels = 0; labels < 2; labels++) {
            char path[1024];
            unsigned char image[784];
            snprintf(path, sizeof path, "%s/%s-%s-ubyte", folder, prefixes[p], labels ? "labels-idx1" : "images-idx3");
            FILE *f = fopen(path, "wb");
            if (!f) return 0;
            ref_parity_be32(f, labels ? 0x801 : 0x803);
            ref_parity_be32(f, REF_CNN_PARITY_SAMPLES);
            if (!labels) ref_parity_be32(f, 28);
            if (!labels) ref_parity_be32(f, 28);
            for (int i = 0; i < REF_CNN_PARITY_SAMPLES; i++) {
                if (labels) fputc(ref_cnn_parity_label(i), f);
                if (!labels) ref_cnn_parity_image(i, 1, 28, 28, image);
                if (!labels) fwrite(image, 1, sizeof image, f);
            }
            const int failed = ferror(f);
            if (fclose(f) || failed) return 0;
        }
    return 1;
}

// Writes a network as float32 safetensors with PyTorch's names and shapes, BatchNorm's num_batches_tracked as int64
// scalars. Returns 1 on success.
static inline int ref_cnn_write_safetensors(const char *path, const RefCnn *m) {
    static char json[1 << 16];
    char name[64], shape[64];
    const size_t room = sizeof json - 16; // leaves space for the closing brace and the padding
    size_t used = 1, offset = 0;
    json[0] = '{';
    for (int l = 0; l < m->n_layers; l++) { // first, so that everything is aligned
        if (m->layers[l].kind != REF_LAYER_NORM) continue;
        snprintf(name, sizeof name, "%s.num_batches_tracked", m->layers[l].name);
        used = ref_parity_entry(json, room, used, name, "I64", "", &offset, 8);
    }
    for (int t = 0; t < m->n_tensors; t++) {
        int at = 0;
        for (int k = 0; k < m->shapes[t].rank; k++)
            at += snprintf(shape + at, sizeof shape - (size_t)at, "%s%d", k ? "," : "", m->shapes[t].dim[k]);
        used = ref_parity_entry(json, room, used, m->tensors[t].name, "F32", shape, &offset, 4 * m->tensors[t].n);
    }
    for (int l = 0; l < m->n_layers; l++) {
        if (m->layers[l].kind != REF_LAYER_NORM) continue;
        const int c = m->layers[l].win.out_c;
        snprintf(shape, sizeof shape, "%d", c);
        snprintf(name, sizeof name, "%s.running_mean", m->layers[l].name);
        used = ref_parity_entry(json, room, used, name, "F32", shape, &offset, 4 * (size_t)c);
        snprintf(name, sizeof name, "%s.running_var", m->layers[l].name);
        used = ref_parity_entry(json, room, used, name, "F32", shape, &offset, 4 * (size_t)c);
    }
    if (used >= room) return 0;
    json[used++] = '}';
    while (used % 8) json[used++] = ' ';

    FILE *f = fopen(path, "wb");
    if (!f) return 0;
    for (int shift = 0; shift < 64; shift += 8) fputc((int)((uint64_t)used >> shift & 255), f);
    fwrite(json, 1, used, f);
    for (int l = 0; l < m->n_layers; l++)
        for (int shift = 0; m->layers[l].kind == REF_LAYER_NORM && shift < 64; shift += 8)
            fputc((int)((uint64_t)m->layers[l].batches_tracked >> shift & 255), f);
    for (int t = 0; t < m->n_tensors; t++) ref_parity_floats(f, m->tensors[t].data, m->tensors[t].n);
    for (int l = 0; l < m->n_layers; l++) {
        if (m->layers[l].kind != REF_LAYER_NORM) continue;
        ref_parity_floats(f, m->layers[l].running_mean, (size_t)m->layers[l].win.out_c);
        ref_parity_floats(f, m->layers[l].running_var, (size_t)m->layers[l].win.out_c);
    }
    const int failed = ferror(f);
    return fclose(f) == 0 && !failed;
}

static inline int ref_cnn_parity_write_safetensors(const char *path, const RefCnnParityCase *c) {
    RefCnn m = ref_cnn_parity_model(c);
    const int written = ref_cnn_write_safetensors(path, &m);
    ref_cnn_free(&m);
    return written;
}
