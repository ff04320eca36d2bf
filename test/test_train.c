// test_train.c -- tests of common/train.h in plain C, on a network in host memory.
//
//     make test-programs && build/c/test/test_train
//
// The network is y = W2 relu(W1 x + b1), mean squared error, in 60 lines: a trainer as small as train.h allows. What
// train.h does on a device, and with a real command line, is tested with the MLP trainer (test_mlp.cu,
// test_train_mlp.sh).
//
// 1. options: rows, defaults, what excludes what       2. learning rates, against PyTorch's OneCycleLR
// 3. tables of tensors                                 4. weight files: shapes, order, all or nothing, names of others
// 5. runs: rescaling, log, report, resume, divergence, messages
// 6. whose run: stored options, what a resume refuses and what it tells
// 7. checkpoints: damage, bits flipped in headers, what is kept and removed, and in which order
#include "common/cli.h"
#include "common/log.h"
#include "common/safetensors.h"
#include "rescale.cuh"
#include "common/train.h"
#include "test.h"
#include <sys/syscall.h>
#include <sys/wait.h>

#if HAVE_CUDA_API
#error "this is the test without the CUDA API"
#endif

// ------------------------------------------------------------------------------------------------ a trainer of its own

enum { IN = 3, HIDDEN = 8, OUT = 2, N_TRAIN = 50, N_TEST = 20 };

typedef struct toy {
    train_run run;
    train_net net;
    train_options options;
    float step_loss[TRAIN_LOSS_RING];
    float *w1, *b1, *w2;  // into net.params: [HIDDEN][IN], [HIDDEN], [OUT][HIDDEN]
    double x[N_TRAIN + N_TEST][IN], y[N_TRAIN + N_TEST][OUT];
} toy;

// Loss of rows first .. first + rows - 1 and, with grads not NULL, its gradient; out (or NULL): [rows][OUT].
static double toy_pass(const toy *t, int first, int rows, float *grads, float *out) {
    const size_t b1 = t->net.tensors[1].offset, w2 = t->net.tensors[2].offset;
    double loss = 0;
    if (grads) memset(grads, 0, t->net.n_params * sizeof(float));
    for (int r = first; r < first + rows; r++) {
        double h[HIDDEN], d[OUT];
        for (int k = 0; k < HIDDEN; k++) {
            h[k] = t->b1[k];
            for (int i = 0; i < IN; i++) h[k] += (double)t->w1[k * IN + i] * t->x[r][i];
            if (h[k] < 0) h[k] = 0;
        }
        for (int o = 0; o < OUT; o++) {
            double v = 0;
            for (int k = 0; k < HIDDEN; k++) v += (double)t->w2[o * HIDDEN + k] * h[k];
            if (out) out[(r - first) * OUT + o] = (float)v;
            d[o] = 2 * (v - t->y[r][o]) / (rows * OUT);
            loss += (v - t->y[r][o]) * (v - t->y[r][o]) / (rows * OUT);
        }
        for (int k = 0; k < HIDDEN && grads; k++) {
            double dh = 0;
            for (int o = 0; o < OUT; o++) {
                dh += d[o] * t->w2[o * HIDDEN + k];
                grads[w2 + (size_t)(o * HIDDEN + k)] += (float)(d[o] * h[k]);
            }
            if (h[k] <= 0) continue;
            grads[b1 + (size_t)k] += (float)dh;
            for (int i = 0; i < IN; i++) grads[k * IN + i] += (float)(dh * t->x[r][i]);
        }
    }
    return loss;
}

static void toy_step(toy *t) {
    const train_run *run = &t->run;
    const train_options *o = run->options;
    train_net *net = &t->net;
    int64_t epoch;
    int first;
    const int rows = train_batch(run, &epoch, &first);
    const double lr = train_learning_rate(o, run->step, run->total_steps), at = (double)run->step + 1;
    t->step_loss[train_loss_slot(run)] = (float)toy_pass(t, first, rows, net->grads, NULL);
    for (size_t i = 0; i < net->n_params; i++) {
        float *w = net->params + i, *m = net->moment1 + i, *v = net->moment2 + i;
        const float g = net->grads[i];
        if (o->optimizer == OPTIMIZER_SGD) {
            *w -= (float)lr * g;
        } else if (o->optimizer == OPTIMIZER_MOMENTUM) {
            *m = (float)o->momentum * *m + g;
            *w -= (float)lr * *m;
        } else {
            *m = 0.9f * *m + 0.1f * g;
            *v = 0.999f * *v + 0.001f * g * g;
            *w -= (float)(lr * *m / (1 - pow(0.9, at)) / (sqrt(*v / (1 - pow(0.999, at))) + 1e-8));
        }
    }
    for (int k = 0; k < HIDDEN; k++) net->stats[k] += 0.5f * (t->b1[k] - net->stats[k]);  // a statistic to be saved
    train_count_batch(net);
}

static int interrupt_at;  // the evaluation pass, counted from 1, in which a SIGTERM comes; 0: none

static void toy_evaluate(void *self, int test, double *loss, double *accuracy) {
    static int passes;
    toy *t = (toy *)self;
    if (++passes == interrupt_at) log_interrupted = SIGTERM;
    if (train_pause(&t->run, "evaluating", 0, 1)) return;
    *loss = test ? toy_pass(t, N_TRAIN, N_TEST, NULL, NULL) : toy_pass(t, 0, N_TRAIN, NULL, NULL);
    *accuracy = LOG_NA;
}

static float *toy_outputs(void *self, size_t *n) {
    float *out = (float *)malloc((*n = N_TEST * OUT) * sizeof(float));
    toy_pass((const toy *)self, N_TRAIN, N_TEST, NULL, out);
    return out;
}

static int toy_rescale(void *self, rescale_report *report, double *moved) {
    toy *t = (toy *)self;
    const rescale_group group = rescale_units("hidden", HIDDEN, RESCALE_RELU);
    rescale_tensor list[3] = {rescale_weight("fc1.weight", t->w1, HIDDEN, IN, 1, 0, RESCALE_NONE),
                              rescale_bias("fc1.bias", t->b1, HIDDEN, 0),
                              rescale_weight("fc2.weight", t->w2, OUT, HIDDEN, 1, RESCALE_NONE, 0)};
    for (int i = 0; i < 3; i++) {
        list[i].moment1 = t->net.moment1 ? t->net.moment1 + t->net.tensors[i].offset : NULL;
        list[i].moment2 = t->net.moment2 ? t->net.moment2 + t->net.tensors[i].offset : NULL;
    }
    const rescale_net net = {&group, 1, list, 3};
    const rescale_options o = train_rescale_options(t->run.options);
    size_t n;
    float *before = toy_outputs(t, &n);
    const int status = rescale_run(&net, &o, report) ? -1 : 0;
    float *after = toy_outputs(t, &n);
    if (moved) *moved = train_relative_difference(before, after, n);
    free(before);
    free(after);
    return status;
}

static double toy_norm(void *self, const float *array) {
    double sum = 0;
    for (size_t i = 0; i < ((toy *)self)->net.n_params; i++) sum += (double)array[i] * (double)array[i];
    return sqrt(sum);
}

// Numbers in [-1, 1) that depend on i only.
static double toy_number(uint64_t i) {
    i = (i + 1) * UINT64_C(0x9E3779B97F4A7C15);
    i ^= i >> 29;
    i *= UINT64_C(0xBF58476D1CE4E5B9);
    i ^= i >> 32;
    return 2 * ((double)(i >> 11) / 9007199254740992.0) - 1;
}

// Tables and arrays; with_counter = 0 leaves the counter out, wide = 1 makes fc2 another shape.
static void toy_build(toy *t, int with_counter, int wide) {
    train_net *net = &t->net;
    memset(net, 0, sizeof *net);
    net->hint = "--depth or --norm differ";
    train_add_parameter(net, RESCALE_WEIGHT, 0, HIDDEN, IN, 0, 0, "fc%d.weight", 1);
    train_add_parameter(net, RESCALE_BIAS, 0, HIDDEN, 0, 0, 0, "fc%d.bias", 1);
    train_add_parameter(net, RESCALE_WEIGHT, 1, OUT, HIDDEN + wide, 0, 0, "fc%d.weight", 2);
    train_add_statistic(net, 0, HIDDEN, "bn1.running_mean");
    if (with_counter) train_add_counter(net, 0, "bn1.num_batches_tracked");
    float **const array[] = {&net->params, &net->grads, &net->moment1, &net->moment2};
    int n_arrays = 4;
    if (t->options.optimizer == OPTIMIZER_SGD) n_arrays = 2;
    if (t->options.optimizer == OPTIMIZER_MOMENTUM) n_arrays = 3;
    for (int i = 0; i < n_arrays; i++)
        *array[i] = (float *)train_alloc(NULL, net->n_params, sizeof(float));
    net->stats = (float *)train_alloc(NULL, net->n_stats, sizeof(float));
    t->w1 = net->params + net->tensors[0].offset;
    t->b1 = net->params + net->tensors[1].offset;
    t->w2 = net->params + net->tensors[2].offset;
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < net->tensors[i].rows * net->tensors[i].cols; k++)
            net->params[net->tensors[i].offset + (size_t)k] = (float)toy_number((uint64_t)(1000 * i + k));
}

static void toy_free(toy *t) {
    free(t->options.table);
    free(t->options.stored);
    free(t->net.params);
    free(t->net.grads);
    free(t->net.moment1);
    free(t->net.moment2);
    free(t->net.stats);
    train_net_free(&t->net);
}

static void toy_parse(train_options *o, int argc, char **argv) {
    static int layers, smoothing;
    layers = 2;
    smoothing = 0;
    o->fixed = "depth";
    cli_option table[] = {
        TRAIN_DATA_ROWS(o, "none is needed"),
        CLI_GROUP("Model"),
        CLI_INT("depth", &layers, "N", 0, 9, "a row of its own"),
        TRAIN_INIT_SCALE_ROW(o),
        TRAIN_RESCALING_ROWS(o),
        TRAIN_OPTIMIZER_ROWS(o),
        CLI_INT("label-smoothing", &smoothing, "N", 0, 9, "and one between shared ones"),
        TRAIN_LENGTH_ROWS(o),
        TRAIN_SAMPLING_ROWS(o),
        TRAIN_PRECISION_ROW(o),
        TRAIN_OUTPUT_ROWS(o),
    };
    const int n = sizeof table / sizeof *table;
    train_parse("toy", "Trains a toy.", "0.1", o, table, n, argc, argv);
    train_check_options("toy", o, table, n);
}

// Everything up to the run. The name of the data is part of them.
static void toy_create(toy *t, int argc, char **argv) {
    memset(t, 0, sizeof *t);
    t->options = train_default_options();
    toy_parse(&t->options, argc, argv);
    train_run_init(&t->run, "toy", "0.1", &t->options);
    for (int i = 0; i < N_TRAIN + N_TEST; i++) {
        for (int k = 0; k < IN; k++) t->x[i][k] = toy_number((uint64_t)(5000 + 10 * i + k));
        t->y[i][0] = t->x[i][0] - 2 * fabs(t->x[i][1]);
        t->y[i][1] = t->x[i][2] * 0.5;
    }
    toy_build(t, 1, 0);
    const int smoothing = cli_find(t->options.table, t->options.n_table, "label-smoothing", 15);
    train_describe(&t->net, "label-smoothing", *(const int *)t->options.table[smoothing].value);
    train_set_length(&t->run, N_TRAIN);
    t->run.data = 1000 + (uint64_t)t->options.data[0];
    t->run.net = &t->net;
    t->run.step_loss = t->step_loss;
    t->run.trainer = t;
    t->run.unit = "tokens";
    t->run.units_per_sample = 16;
    t->run.test_name = "val";
    t->run.hooks.evaluate = toy_evaluate;
    t->run.hooks.rescale = toy_rescale;
    t->run.hooks.outputs = toy_outputs;
    t->run.hooks.norm = toy_norm;
}

static int toy_main(int argc, char **argv) {
    static toy t;
    toy_create(&t, argc, argv);
    train_begin(&t.run);
    while (train_next(&t.run)) toy_step(&t);
    const int status = train_end(&t.run);
    toy_free(&t);
    return status;
}

// ------------------------------------------------------------------------------------------------------------- helpers

static char dir[1024];                         // temporary folder
static char out_text[1 << 16], err_text[1 << 16];  // of the latest child

// Reads a whole text file; empty when it cannot be read. Returns its size.
static size_t slurp(const char *path, char *text, size_t size) {
    FILE *f = fopen(path, "rb");
    const size_t n = f ? fread(text, 1, size - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    return n;
}

// Runs toy_main in a child with the words of a command line; every %s stands for the temporary folder. Returns its exit
// status.
static int launch(const char *format) {
    char text[4096], path[1200], *words[64];
    int n = 0, status = -1;
    snprintf(text, sizeof text, format, dir, dir, dir);
    for (char *w = strtok(text, " "); w && n < 63; w = strtok(NULL, " ")) words[n++] = w;
    words[n] = NULL;
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        snprintf(path, sizeof path, "%s/stdout", dir);
        if (!freopen(path, "w", stdout)) _exit(99);
        snprintf(path, sizeof path, "%s/stderr", dir);
        if (!freopen(path, "w", stderr)) _exit(99);
        exit(toy_main(n, words));
    }
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    snprintf(path, sizeof path, "%s/stdout", dir);
    slurp(path, out_text, sizeof out_text);
    snprintf(path, sizeof path, "%s/stderr", dir);
    slurp(path, err_text, sizeof err_text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int same_files(const char *a, const char *b) {
    static char x[1 << 16], y[1 << 16];
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", dir, a);
    const size_t n = slurp(path, x, sizeof x);
    snprintf(path, sizeof path, "%s/%s", dir, b);
    return n > 0 && n == slurp(path, y, sizeof y) && memcmp(x, y, n) == 0;
}

// Whether two files have the same tensors bit for bit, apart from those that name the run.
static int same_tensors(const char *a, const char *b) {
    char path[1200], err[SAFETENSORS_ERROR_SIZE];
    safetensors_file f[2];
    int same = 1;
    for (int k = 0; k < 2; k++) {
        snprintf(path, sizeof path, "%s/%s", dir, k ? b : a);
        if (!safetensors_open(&f[k], path, err, sizeof err)) continue;
        printf("    %s\n", err);
        return 0;
    }
    same = f[0].n_tensors == f[1].n_tensors;
    for (size_t i = 0; i < f[0].n_tensors && same; i++) {
        const safetensors_tensor *t = &f[0].tensors[i], *u = safetensors_find(&f[1], t->name);
        if (!strncmp(t->name, "run.", 4)) continue;
        same = u && u->dtype == t->dtype && u->n_bytes == t->n_bytes && !memcmp(u->data, t->data, t->n_bytes);
    }
    safetensors_close(&f[0]);
    safetensors_close(&f[1]);
    return same;
}

// ---------------------------------------------------------------------------------------------------------- 1. options

static void test_options(void) {
    char *args[] = {(char *)"toy",     (char *)"--lr",       (char *)"0.25",      (char *)"--steps",
                    (char *)"7",       (char *)"--schedule", (char *)"one-cycle", (char *)"--rescale-every",
                    (char *)"2epochs", (char *)"--resume",   (char *)"somewhere", NULL};
    train_options o = train_default_options();
    toy_parse(&o, 11, args);
    CHECK(o.lr == 0.25 && o.steps == 7 && o.schedule == SCHEDULE_ONE_CYCLE && o.rescale_every.n == 2,
          "values reach their fields");
    CHECK(o.rescale_every.unit == CLI_EPOCHS && o.optimizer == OPTIMIZER_SGD && o.momentum == 0.9,
          "the others have their defaults");
    CHECK(o.log_dir && !strcmp(o.log_dir, "somewhere"), "--resume DIR logs to DIR");
    free(o.table);
    o = train_default_options();
    toy_parse(&o, 1, args);
    free(o.table);
    CHECK(o.steps == -1 && o.epochs == 10 && o.batch_size == 128 && o.seed == 1 && !o.log_dir, "defaults");
    CHECK(launch("toy --help") == 0 && strstr(out_text, "constant|cosine|one-cycle"), "--help knows one-cycle");
    CHECK(strstr(out_text, "OneCycleLR(max_lr=LR, cycle_momentum=False)") != NULL,
          "and that its momentum does not cycle");
    const char *const groups[] = {"\nData\n", "\nModel\n", "\nRescaling\n", "\nTraining\n", "\nOutput\n"},
                      *at = out_text;
    for (int i = 0; i < 5 && at; i++) CHECK((at = strstr(at, groups[i])) != NULL, "--help has the groups in order");
    const struct { const char *arguments, *message; } wrong[] = {
        {"toy --resume x --load y", "toy: --resume and --load exclude each other (see --help)\n"},
        {"toy --resume x --log-dir y", "toy: --log-dir must be the folder of --resume, or left out (see --help)\n"},
        {"toy --schedule one-cycle --warmup 5", "toy: --warmup and --schedule one-cycle exclude each other"},
        {"toy --schedule linear", "constant, cosine, one-cycle"}};
    for (int i = 0; i < 4; i++) {
        CHECK(launch(wrong[i].arguments) == 2, "a usage error exits 2");
        if (!CHECK(strstr(err_text, wrong[i].message) != NULL, "and says why")) printf("    %s\n", err_text);
    }
    CHECK(launch("toy --schedule one-cycle --warmup 0 --steps 3 --quiet") == 0, "a warm-up of no steps is none");
}

// --------------------------------------------------------------------------------------------------- 2. learning rates

// The rates that PyTorch 2.15 gives:
//     s = OneCycleLR(SGD([p], lr=0.1), max_lr=0.4, total_steps=total)
//     for step in range(total): print(step, s.get_last_lr()[0]); optimizer.step(); s.step()
static void test_one_cycle(void) {
    static const struct { int64_t total, step; double lr;
    } want[] = {{1, 0, 1.6e-06},
                {2, 0, 0.3246982615799052},
                {2, 1, 1.6e-06},
                {3, 0, 0.39776617418036475},
                {3, 1, 0.18505484106679002},
                {4, 0, 0.016},
                {4, 1, 0.3246982615799052},
                {4, 2, 0.11322439928347969},
                {10, 0, 0.016},
                {10, 1, 0.208},
                {10, 2, 0.4},
                {10, 3, 0.38019385280538953},
                {10, 5, 0.24450480877451572},
                {10, 8, 0.019807747194610516},
                {10, 9, 1.6e-06},
                {37, 1, 0.02521348335371587},
                {37, 10, 0.39990712620006175},
                {37, 11, 0.39880943764213606},
                {37, 18, 0.3149914663209114},
                {37, 35, 0.0014710876306365521},
                {37, 36, 1.6e-06},
                {100, 2, 0.0204888533036634},
                {100, 25, 0.38225448057682376},
                {100, 29, 0.4},
                {100, 30, 0.39979861411380974},
                {100, 50, 0.3175573802302928},
                {100, 98, 0.0002029858861903152},
                {1000, 1, 0.01601059801686716},
                {1000, 250, 0.3751110529593001},
                {1000, 998, 3.6141935421479836e-06}};
    train_options o = train_default_options();
    o.schedule = SCHEDULE_ONE_CYCLE;
    o.lr = 0.4;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const double got = train_learning_rate(&o, want[i].step, want[i].total);
        char name[80];
        snprintf(name, sizeof name, "one-cycle, step %lld of %lld", (long long)want[i].step, (long long)want[i].total);
        test_close_d(name, &got, &want[i].lr, 1, 1e-9, 0);
    }
    CHECK(train_learning_rate(&o, 100, 100) == train_learning_rate(&o, 99, 100), "after the last step its rate stays");
    CHECK(train_learning_rate(&o, 0, 0) == 0.4 / 25, "a run of no steps has the initial rate");
}

// ----------------------------------------------------------------------------------------------------------- 3. tables

static void test_tables(void) {
    enum { LAYERS = 48, PER_LAYER = 12 };  // a large GPT: hundreds of tensors
    train_net net;
    memset(&net, 0, sizeof net);
    size_t want = 0;
    int64_t count = 0, ok = 1;
    for (int l = 0; l < LAYERS; l++)
        for (int k = 0; k < PER_LAYER; k++) {
            const int n_dims = 1 + (k > 2) + 2 * (k > 6);
            const int cols = n_dims > 1 ? 3 + l % 5 : 0;
            const int window = n_dims > 2 ? 3 : 0;
            const int d[4] = {1 + k, cols, window, window};
            const char *format = "transformer.h.%d.mlp.%d.weight";
            const int at = l * PER_LAYER + k;
            int size = d[0];
            for (int i = 1; i < n_dims; i++) size *= d[i];
            ok = ok && train_add_parameter(&net, k % 2, l, d[0], d[1], d[2], d[3], format, l, k) == at;
            const train_tensor *t = &net.tensors[at];
            ok = ok && t->offset == want && t->offset % TRAIN_ALIGN == 0 && t->rows == d[0] &&
                 t->rows * t->cols == size;
            ok = ok && t->n_dims == n_dims && t->dim[0] == d[0] && t->dim[3] == d[3] && t->layer == l &&
                 t->role == k % 2;
            want += ((size_t)size + TRAIN_ALIGN - 1) / TRAIN_ALIGN * TRAIN_ALIGN;
            count += size;
        }
    CHECK(ok && net.n_tensors == LAYERS * PER_LAYER, "tensors follow each other, aligned, with their shapes");
    CHECK(net.n_params == want && train_parameter_count(&net) == count, "sizes with and without padding");
    CHECK(!strcmp(net.tensors[575].name, "transformer.h.47.mlp.11.weight"), "names survive the growth of the table");
    for (int l = 0; l < 60; l++) {
        ok = ok && train_add_statistic(&net, l, 65, "bn%d.running_mean", l) == 2 * l;
        ok = ok && train_add_counter(&net, l, "bn%d.num_batches_tracked", l) == 2 * l + 1;
        net.counts[l] = l;
    }
    train_count_batch(&net);
    for (int l = 0; l < 60; l++)
        ok = ok && net.counts[net.buffers[2 * l + 1].offset] == l + 1 && net.buffers[2 * l].offset == (size_t)l * 128;
    CHECK(ok && net.n_counts == 60 && net.n_stats == 60 * 128, "statistics and counters");
    train_net_free(&net);
    CHECK(net.n_tensors == 0 && !net.tensors, "freed");
}

// ---------------------------------------------------------------------------------------------------------- 4. weights

// A convolution's kernel and a BatchNorm reach the file with their shapes, in order, and come back.
static void test_shapes(void) {
    train_net net;
    safetensors_file f;
    char path[1200], err[512] = "";
    snprintf(path, sizeof path, "%s/shapes.safetensors", dir);
    memset(&net, 0, sizeof net);
    train_add_parameter(&net, RESCALE_WEIGHT, 0, 5, 3, 2, 4, "conv1.weight");
    train_add_parameter(&net, RESCALE_GAIN, 0, 5, 0, 0, 0, "bn1.weight");
    train_add_statistic(&net, 0, 5, "bn1.running_var");
    train_add_counter(&net, 0, "bn1.num_batches_tracked");
    train_add_counter(&net, 1, "bn2.num_batches_tracked");
    net.params = (float *)train_alloc(NULL, net.n_params, sizeof(float));
    net.stats = (float *)train_alloc(NULL, net.n_stats, sizeof(float));
    for (size_t i = 0; i < net.n_params; i++) net.params[i] = (float)i;
    for (int i = 0; i < 5; i++) net.stats[i] = (float)i;
    net.counts[0] = INT64_C(1) << 40;
    net.counts[1] = 3;
    CHECK(train_save_weights(&net, path, err, sizeof err) == 0, "saved");
    if (CHECK(safetensors_open(&f, path, err, sizeof err) == 0 && f.n_tensors == 5, "a file of five tensors")) {
        const safetensors_tensor *t = safetensors_find(&f, "conv1.weight");
        CHECK(t && t->ndim == 4 && t->shape[0] == 5 && t->shape[1] == 3 && t->shape[2] == 2 && t->shape[3] == 4,
              "[5][3][2][4]");
        t = safetensors_find(&f, "bn2.num_batches_tracked");
        CHECK(t && t->ndim == 0 && t->dtype == SAFETENSORS_I64, "a scalar of 64 bits");
        for (int i = 0; i < 5; i++)
            CHECK(!strcmp(f.tensors[i].name, i < 2 ? net.tensors[i].name : net.buffers[i - 2].name), "in order");
        safetensors_close(&f);
    }
    memset(net.params, 0, net.n_params * sizeof(float));
    memset(net.stats, 0, net.n_stats * sizeof(float));
    net.counts[0] = net.counts[1] = 0;
    CHECK(train_load_weights(&net, path, err, sizeof err) == 0 && net.counts[0] == INT64_C(1) << 40 &&
              net.counts[1] == 3,
          "loaded");
    CHECK(net.params[119] == 119 && net.params[120] == 0 && net.params[128 + 4] == 132 && net.stats[4] == 4,
          "every tensor in its place");
    CHECK(train_save_weights(&net, "/dev/null", err, sizeof err) == -1 && strstr(err, "is not a regular file"),
          "a device is not replaced");
    free(net.params);
    free(net.stats);
    train_net_free(&net);
}

// Files of other networks: an error with these words, and nothing has changed.
static void test_load_errors(void) {
    const char *const words = "'fc2.weight': expected shape [2,8], found [2,9]";
    const char *const not_mine = "'bn1.num_batches_tracked' does not belong to this network (--depth or --norm differ)";
    static toy t, o;
    char path[1200], err[512];
    snprintf(path, sizeof path, "%s/other.safetensors", dir);
    for (int i = 0; i < 2; i++) {
        t.options = o.options = train_default_options();
        toy_build(&t, i == 0, 0);
        toy_build(&o, 1, i == 0);
        for (size_t k = 0; k < o.net.n_params; k++) o.net.params[k] = 99;
        CHECK(train_save_weights(&o.net, path, err, sizeof err) == 0, "weights of another network");
        float *params = train_host_copy(t.net.params, t.net.n_params);
        if (i == 0) t.net.counts[0] = 7;
        t.net.stats[2] = 5;
        if (!CHECK(train_load_weights(&t.net, path, err, sizeof err) == -1 && strstr(err, i ? not_mine : words),
                   "refused"))
            printf("    %s\n", err);
        CHECK(memcmp(params, t.net.params, t.net.n_params * sizeof(float)) == 0 && t.net.stats[2] == 5,
              "the network is as before");
        CHECK(i == 1 || t.net.counts[0] == 7, "and its counter");
        free(params);
        toy_free(&t);
        toy_free(&o);
    }
}

// A tied transformer in small: two tensors of attention, an embedding that is also the head, a BatchNorm beside them.
enum { V = 6, C = 4 };
static void gpt_build(train_net *net, int tied) {
    memset(net, 0, sizeof *net);
    net->hint = "--untied differs";
    net->prefix = "transformer.";
    if (tied) {
        net->tied = "lm_head.weight";
        net->tied_to = "transformer.wte.weight";
    }
    train_add_parameter(net, RESCALE_WEIGHT, 0, V, C, 0, 0, "transformer.wte.weight");
    train_add_parameter(net, RESCALE_WEIGHT, 0, 3 * C, C, 0, 0, "transformer.h.0.attn.c_attn.weight");
    train_add_parameter(net, RESCALE_BIAS, 0, 3 * C, 0, 0, 0, "transformer.h.0.attn.c_attn.bias");
    if (!tied) train_add_parameter(net, RESCALE_WEIGHT, 0, V, C, 0, 0, "lm_head.weight");
    train_add_statistic(net, 0, C, "bn1.running_var");
    train_add_counter(net, 0, "bn1.num_batches_tracked");
    net->params = (float *)train_alloc(NULL, net->n_params, sizeof(float));
    net->stats = (float *)train_alloc(NULL, net->n_stats, sizeof(float));
}

static void gpt_free(train_net *net) {
    free(net->params);
    free(net->stats);
    train_net_free(net);
}

// A file of other people's: each word is NAME=VARIANT; the variants: a plain tensor of the network's shape, `turned`
// (transposed), `other` (other values), `mask`, `fill`, and for the counter the dtype, of shape [] or (small letters)
// [1].
static char other_path[1200];
static void write_other(const char *words, const safetensors_pair *metadata) {
    enum { MOST = 12 };
    static float values[MOST][3 * C * V], mask[25];
    static char text[1024];
    const float as_float = 41, variance = -1;
    const int32_t as_int = 41;
    const double as_double = 41;
    const int64_t one = 1, as_long = 41;
    const unsigned char as_byte = 41;
    safetensors_tensor t[MOST];
    size_t n = 0;
    char err[512];
    snprintf(text, sizeof text, "%s", words);
    for (char *w = strtok(text, " "); w && n < MOST; w = strtok(NULL, " ")) {
        char *const variant = strchr(w, '=');
        if (variant) *variant = 0;
        const char *const how = variant ? variant + 1 : "";
        const int matrix = strstr(w, "wte") || strstr(w, "lm_head");
        const int attn = strstr(w, "c_attn.weight") != NULL;
        int64_t shape[4] = {C, C, 0, 0};
        if (strstr(w, "c_attn")) shape[0] = 3 * C;
        if (matrix) shape[0] = V;
        const float above = (matrix ? 0.5f : 0) + (float)!strcmp(how, "other");
        for (int i = 0; i < 3 * C * V; i++) values[n][i] = (float)(i + 1) + above;
        t[n] = safetensors_make(w, SAFETENSORS_F32, matrix || attn ? 2 : 1, shape, values[n]);
        if (!strcmp(how, "turned")) {
            t[n].shape[0] = shape[1];
            t[n].shape[1] = shape[0];
        }
        if (!strcmp(how, "negative")) values[n][2] = variance;
        const int64_t square[4] = {1, 1, 5, 5};
        if (!strcmp(how, "mask")) t[n] = safetensors_make(w, SAFETENSORS_F32, 4, square, mask);
        if (!strcmp(how, "fill")) t[n] = safetensors_make(w, SAFETENSORS_F32, 0, NULL, mask);
        if (!strcmp(how, "i64")) t[n] = safetensors_make(w, SAFETENSORS_I64, 1, &one, &as_long);
        if (!strcmp(how, "I32")) t[n] = safetensors_make(w, SAFETENSORS_I32, 0, NULL, &as_int);
        if (!strcmp(how, "u8")) t[n] = safetensors_make(w, SAFETENSORS_U8, 1, &one, &as_byte);
        if (!strcmp(how, "F32")) t[n] = safetensors_make(w, SAFETENSORS_F32, 0, NULL, &as_float);
        if (!strcmp(how, "f64")) t[n] = safetensors_make(w, SAFETENSORS_F64, 1, &one, &as_double);
        n++;
    }
    snprintf(other_path, sizeof other_path, "%s/others.safetensors", dir);
    if (!CHECK(!safetensors_write(other_path, t, n, metadata, metadata != NULL, err, sizeof err), words))
        printf("    %s\n", err);
}

// The weights of write_other load, with the values of the network's tensors and this counter; or are refused with
// `refusal`.
static void check_other(int tied, const char *words, const safetensors_pair *metadata, int64_t counter,
                        const char *refusal) {
    train_net net;
    char err[512] = "";
    gpt_build(&net, tied);
    write_other(words, metadata);
    const int status = train_load_weights(&net, other_path, err, sizeof err);
    if (refusal) {
        int untouched = 1;
        for (size_t i = 0; i < net.n_params; i++) untouched = untouched && net.params[i] == 0;
        if (!CHECK(status == -1 && strstr(err, refusal) && untouched, words)) printf("    %s\n", err);
        gpt_free(&net);
        return;
    }
    if (!CHECK(status == 0, words)) printf("    %s\n", err);
    int good = net.counts[0] == counter && net.stats[C - 1] == C;
    for (int k = 0; k < net.n_tensors; k++) {
        const train_tensor *t = &net.tensors[k];
        const float more = strstr(t->name, "c_attn") ? 0 : 0.5f;
        for (int i = 0; i < t->rows * t->cols; i++)
            good = good && net.params[t->offset + (size_t)i] == (float)(i + 1) + more;
    }
    CHECK(good || status, words);
    gpt_free(&net);
}

// Weights as nanoGPT, PyTorch, safetensors and Hugging Face write them.
static void test_names_of_others(void) {
    const safetensors_pair left_out = {"transformer.wte.weight", "lm_head.weight"};
    const safetensors_pair compiled = {"_orig_mod.transformer.wte.weight", "_orig_mod.lm_head.weight"};
    const safetensors_pair nowhere = {"transformer.wte.weight", "no such tensor"};
#define ATTN(prefix) prefix "h.0.attn.c_attn.weight " prefix "h.0.attn.c_attn.bias "
#define REST " bn1.running_var bn1.num_batches_tracked=i64"
    check_other(1, "transformer.wte.weight " ATTN("transformer.") REST, NULL, 41, NULL);
    check_other(1, "_orig_mod.transformer.wte.weight " ATTN("_orig_mod.transformer.") REST, NULL, 41, NULL);
    check_other(
        1, "module.transformer.wte.weight " ATTN("module._orig_mod.transformer.") " _orig_mod.module.bn1.running_var",
        NULL, 0, NULL);
    check_other(1, "wte.weight " ATTN("") REST, NULL, 41, NULL);
    check_other(
        1, "transformer.wte.weight module.transformer.wte.weight " ATTN("transformer.") REST, NULL, 0,
        "tensors 'transformer.wte.weight' and 'module.transformer.wte.weight' both stand for 'transformer.wte.weight'");
    check_other(1, "modules.transformer.wte.weight " ATTN("transformer.") REST, NULL, 0,
                "no tensor 'transformer.wte.weight'");
    // masks
    check_other(1, "wte.weight h.0.attn.bias=mask h.0.attn.masked_bias=fill " ATTN("") REST, NULL, 41, NULL);
    check_other(1, "transformer.wte.weight module.transformer.h.0.attn.bias=mask " ATTN("transformer.") REST, NULL, 41,
                NULL);
    check_other(1, "wte.weight h.0.attn.bias " ATTN("") REST, NULL, 0, "'h.0.attn.bias' does not belong");
    check_other(1, "wte.weight h.0.mlp.bias=mask " ATTN("") REST, NULL, 0, "'h.0.mlp.bias' does not belong");
    // tied weights
    check_other(1, "transformer.wte.weight lm_head.weight " ATTN("transformer.") REST, NULL, 41, NULL);
    check_other(1, "_orig_mod.transformer.wte.weight _orig_mod.lm_head.weight " ATTN("transformer.") REST, NULL, 41,
                NULL);
    check_other(1, "lm_head.weight " ATTN("transformer.") REST, NULL, 41, NULL);
    check_other(1, "lm_head.weight " ATTN("transformer.") REST, &left_out, 41, NULL);
    check_other(1, "transformer.wte.weight lm_head.weight=other " ATTN("transformer.") REST, NULL, 0,
                "'lm_head.weight' does not belong to this network: here it is 'transformer.wte.weight', but they "
                "differ (--untied differs)");
    check_other(1, "transformer.wte.weight lm_head.weight=turned " ATTN("transformer.") REST, NULL, 0,
                "'lm_head.weight': expected shape [6,4]");
    check_other(0, "transformer.wte.weight lm_head.weight " ATTN("transformer.") REST, NULL, 41, NULL);
    check_other(0, "lm_head.weight " ATTN("transformer.") REST, &left_out, 41, NULL);
    check_other(0, "_orig_mod.lm_head.weight " ATTN("_orig_mod.transformer.") REST, &compiled, 41, NULL);
    check_other(0, "lm_head.weight " ATTN("transformer.") REST, NULL, 0, "no tensor 'transformer.wte.weight'");
    check_other(0, "lm_head.weight " ATTN("transformer.") REST, &nowhere, 0, "no tensor 'transformer.wte.weight'");
    check_other(0, "transformer.wte.weight " ATTN("transformer.") REST, NULL, 0, "no tensor 'lm_head.weight'");
    // transposed
    check_other(1, "wte.weight h.0.attn.c_attn.weight=turned h.0.attn.c_attn.bias" REST, NULL, 0,
                "'h.0.attn.c_attn.weight': expected shape [12,4], found [4,12]: it is transposed, [in][out], like the "
                "Conv1D of Hugging Face's GPT-2");
    // counters
#define WITH_COUNTER(counter) "wte.weight bn1.running_var " ATTN("") counter
    check_other(1, WITH_COUNTER(""), NULL, 0, NULL);
    check_other(1, WITH_COUNTER("bn1.num_batches_tracked=I32"), NULL, 41, NULL);
    check_other(1, WITH_COUNTER("bn1.num_batches_tracked=u8"), NULL, 41, NULL);
    check_other(1, WITH_COUNTER("bn1.num_batches_tracked=F32"), NULL, 41, NULL);
    check_other(1, WITH_COUNTER("module.bn1.num_batches_tracked=f64"), NULL, 41, NULL);
    check_other(1, WITH_COUNTER("bn1.num_batches_tracked"), NULL, 0,
                "'bn1.num_batches_tracked': expected one number, found shape [4]");
    // a variance
    check_other(1, "wte.weight bn1.running_var=negative " ATTN(""), NULL, 0,
                "'bn1.running_var': element [2] is -1, expected a variance, 0 or more");
#undef ATTN
#undef REST
#undef WITH_COUNTER
}

// A tensor's name from outside cannot steer the terminal.
static void test_clean_names(void) {
    static toy t;
    const int dim[1] = {1};
    const float value = 1;
    char path[1200], err[512];
    snprintf(path, sizeof path, "%s/odd.safetensors", dir);
    t.options = train_default_options();
    toy_build(&t, 1, 0);
    train_list list = train_list_create(t.net.n_tensors + t.net.n_buffers + 1);
    train_list_parameters(&list, &t.net, "", t.net.params);
    train_list_buffers(&list, &t.net, t.net.stats, t.net.counts);
    train_list_add(&list, "", "odd\033[31m\xc2\x9b", SAFETENSORS_F32, 1, dim, &value);
    CHECK(safetensors_write(path, list.tensors, (size_t)list.n, NULL, 0, err, sizeof err) == 0,
          "weights with one tensor more");
    CHECK(train_load_weights(&t.net, path, err, sizeof err) == -1 && strstr(err, "'odd?[31m?' does not belong"),
          "its name is cleaned");
    train_list_free(&list);
    toy_free(&t);
}

// A long loop shows how far it is, and ends when the run is interrupted.
static void test_pause(void) {
    static train_run r;
    train_options o = train_default_options();
    char path[1200], text[200];
    snprintf(path, sizeof path, "%s/progress", dir);
    FILE *f = fopen(path, "w");
    train_run_init(&r, "toy", "0.1", &o);
    r.progress.out = f;
    CHECK(!train_pause(&r, "evaluating", 0, 8), "goes on, nothing is due");
    r.progress.interval = 0;
    r.step = 5;
    CHECK(!train_pause(&r, "evaluating", 2, 8), "goes on and shows it");
    fclose(f);
    slurp(path, text, sizeof text);
    CHECK(!strcmp(text, "step 5  evaluating: 25%\n"), "where it is");
    r.progress.out = NULL;
    log_interrupted = SIGHUP;
    CHECK(train_pause(&r, "evaluating", 3, 8) && r.stopped, "interrupted");
    log_interrupted = 0;
    train_set_length(&r, 128 * 100);
    r.step = 10;
    r.step_seconds = 5;
    train_show_rate(&r, text, sizeof text);
    CHECK(!strcmp(text, "500.00 ms/step  8 min 15 s left"), "the time that is left");
}

// ------------------------------------------------------------------------------------------------------------- 5. runs

// Which samples a step takes, and how many steps there are.
static void test_lengths(void) {
    static train_run r;
    train_options o = train_default_options();
    int64_t epoch;
    int first;
    o.batch_size = 16;
    o.epochs = 3;
    train_run_init(&r, "toy", "0.1", &o);
    train_set_length(&r, 50);
    CHECK(r.batch == 16 && r.steps_per_epoch == 4 && r.total_steps == 12, "three epochs of four steps");
    CHECK(train_batch(&r, &epoch, &first) == 16 && epoch == 0 && first == 0, "the first batch");
    r.step = 7;
    CHECK(train_batch(&r, &epoch, &first) == 2 && epoch == 1 && first == 48,
          "the last batch of the second epoch is smaller");
    o.batch_size = 0;
    train_set_length(&r, 50);
    CHECK(train_batch(&r, &epoch, &first) == 50 && epoch == 7 && first == 0 && r.total_steps == 3, "full batch");
    o.batch_size = 64;
    o.steps = 1;
    train_set_length(&r, 50);
    CHECK(r.batch == 50 && r.total_steps == 1, "a batch larger than the set; --steps");
    o.batch_size = 16;
    train_set_length(&r, 50);
    cli_every every = {3, CLI_EPOCHS};
    CHECK(train_every(&r, every) == 12, "three epochs in steps");
    every.n = INT64_MAX;
    CHECK(train_every(&r, every) == INT64_MAX, "more epochs than can be counted in steps");
    every.n = INT64_MAX / 4;
    CHECK(train_every(&r, every) == INT64_MAX / 4 * 4, "just as many as can be counted");
}

// The rows of LOGDIR/log.csv without their times, in text; returns how many.
static int slurp_log(const char *name, char *text, size_t size) {
    static char all[1 << 16];
    char path[1200];
    size_t used = 0;
    int rows = 0;
    snprintf(path, sizeof path, "%s/%s/log.csv", dir, name);
    slurp(path, all, sizeof all);
    text[0] = 0;
    for (char *line = strtok(all, "\n"); line && used < size; line = strtok(NULL, "\n"), rows++) {
        char step[32], epoch[32], split[32], loss[32];
        if (sscanf(line, "%31[^,],%31[^,],%31[^,],%31[^,]", step, epoch, split, loss) != 4) return -1;
        used += (size_t)snprintf(text + used, size - used, "%s %s %s %s\n", step, epoch, split, loss);
    }
    return rows;
}

// A signal in any pass of any evaluation ends the run at once, with a checkpoint and without half an evaluation;
// resumed, the run ends as one that was not interrupted.
static void test_interrupted_evaluation(void) {
    static char whole[1 << 15], resumed[1 << 15];
    const char *run = "toy --quiet --batch-size 16 --lr 0.02 --epochs 3 --log-dir %s/whole --save %s/whole.w";
    const char *cut = "toy --quiet --batch-size 16 --lr 0.02 --epochs 3 --log-dir %s/cut --overwrite";
    CHECK(launch(run) == 0 && slurp_log("whole", whole, sizeof whole) > 8,
          "a run of three evaluations after the one at the start");
    for (int i = 3; i <= 8; i++) {
        interrupt_at = i;
        CHECK(launch(cut) == 143 && strstr(err_text, "toy: interrupted after step "), "interrupted in an evaluation");
        interrupt_at = 0;
        CHECK(launch("toy --quiet --batch-size 16 --lr 0.02 --epochs 3 --resume %s/cut --save %s/cut.w") == 0 &&
                  !err_text[0],
              "resumed");
        CHECK(same_files("whole.w", "cut.w"), "the same weights");
        slurp_log("cut", resumed, sizeof resumed);
        CHECK(!strcmp(whole, resumed), "the same log");
    }
    CHECK(launch("toy --quiet --batch-size 16 --lr 0.02 --epochs 3 --resume %s/cut --report %s/cut.json") == 0,
          "a finished run, resumed");
    slurp_log("cut", resumed, sizeof resumed);
    CHECK(!strcmp(whole, resumed), "it adds no rows");
    interrupt_at = 1;
    CHECK(launch(cut) == 143 && strstr(err_text, "toy: interrupted after step 0\n"),
          "interrupted before the first step");
    interrupt_at = 0;
    CHECK(launch("toy --quiet --batch-size 16 --epochs 1 --log-dir %s/cut") == 0,
          "nothing was trained there: no --overwrite is asked for");
}

// A log folder belongs to one run, and what is written at the end is tried at the start.
static void test_outputs(void) {
    char path[1200], text[64];
    CHECK(launch("toy --quiet --steps 3 --log-dir %s/own") == 0, "a run in a folder");
    CHECK(launch("toy --quiet --steps 2 --log-dir %s/own") == 1, "another run in that folder");
    snprintf(path, sizeof path, "toy: --log-dir: %s/own holds a run: ", dir);
    CHECK(!strncmp(err_text, path, strlen(path)) && strstr(err_text, "--overwrite"),
          "is refused with a word how to go on");
    snprintf(path, sizeof path, "%s/own/checkpoint-3/state.safetensors", dir);
    CHECK(access(path, F_OK) == 0, "the first run is whole");
    CHECK(launch("toy --quiet --steps 2 --log-dir %s/own --overwrite") == 0 && access(path, F_OK) != 0,
          "--overwrite replaces it");
    CHECK(launch("toy --quiet --overwrite --steps 1") == 2, "--overwrite needs --log-dir");
    CHECK(launch("toy --quiet --overwrite --resume %s/own") == 2, "--overwrite and --resume");
    const char *bad[] = {"toy --quiet --steps 3 --log-dir %s/early --save %s/own",
                         "toy --quiet --steps 3 --log-dir %s/early --report %s/own",
                         "toy --quiet --steps 3 --log-dir %s/early --save %s/own/log.csv/w",
                         "toy --quiet --steps 3 --log-dir %s/early --report %s/own/log.csv/r"};
    for (int i = 0; i < 4; i++) {
        CHECK(launch(bad[i]) == 1 && strstr(err_text, "/own"), "a file that cannot be written");
        snprintf(path, sizeof path, "%s/early/log.csv", dir);
        CHECK(access(path, F_OK) != 0, "is found before the first step");
    }
    CHECK(launch("toy --quiet --steps 1 --save %s/new/a/w --report %s/new/b/r") == 0, "folders are made");
    snprintf(path, sizeof path, "%s/kept", dir);
    FILE *f = fopen(path, "w");
    if (!f || fputs("older weights", f) < 0 || fclose(f)) perror(path);
    CHECK(launch("toy --quiet --steps 3 --lr 1e30 --save %s/kept") == 1, "a run that fails");
    slurp(path, text, sizeof text);
    CHECK(!strcmp(text, "older weights"), "leaves the older file as it was");
    CHECK(launch("toy --eval-every 9223372036854775807epochs --checkpoint-every 9223372036854775807epochs --quiet "
                 "--steps 3 --log-dir %s/far") == 0,
          "an interval beyond all steps");
}

static void test_runs(void) {
    static char text[1 << 16];
    char path[1200];
    CHECK(launch("toy --epochs 30 --batch-size 16 --lr 0.2 --rescale-every 10epochs --log-dir %s/log --save %s/w "
                 "--report %s/report.json") == 0,
          "a run");
    CHECK(!err_text[0], "it has nothing to complain about");
    CHECK(strstr(out_text, "rescaled by PathCond: objective ") && strstr(out_text, "epoch   0.00  train loss "),
          "what it did");
    CHECK(strstr(out_text, "  val loss ") && !strstr(out_text, "accuracy") && !strstr(out_text, "test loss"),
          "the second set has its name");
    snprintf(path, sizeof path, "%s/report.json", dir);
    slurp(path, text, sizeof text);
    CHECK(strstr(text, "\"tokens_per_second\"") && strstr(text, "\"samples_per_second\"") && !strstr(text, "\"gemm\""),
          "throughput in tokens");
    CHECK(strstr(text, "\"rescalings\": 3,") && strstr(text, "\"final_test_accuracy\": null"), "the report");
    CHECK(strstr(text, "\"steps\": 120,") && strstr(text, "\"device\": \"CPU, "), "what it ran on");
    snprintf(path, sizeof path, "%s/log/log.csv", dir);
    slurp(path, text, sizeof text);
    double first = 0, last = 0, lr = 0;
    int rows = 0, sound = 1;
    for (const char *line = strchr(text, '\n'); line && line[1]; line = strchr(line + 1, '\n')) {
        long long step;
        double loss, rate;
        if (sscanf(line, "\n%lld,%*[^,],step,%lf,n/a,%lf", &step, &loss, &rate) != 3) continue;
        rows++;
        sound = sound && step == rows && loss > 0;
        if (step == 1) first = loss;
        last = loss;
        lr = rate;
    }
    CHECK(rows == 120 && sound && lr == 0.2, "a row for every step");
    CHECK(last < 0.5 * first, "it trains");
    CHECK(same_tensors("w", "log/checkpoint-120/model.safetensors"), "the last checkpoint has the saved weights");
    snprintf(path, sizeof path, "%s/log/checkpoint-112", dir);
    CHECK(access(path, F_OK) != 0, "old checkpoints are removed");
    CHECK(launch("toy --epochs 3 --lr 1e30 --quiet") == 1 && strstr(err_text, "toy: ") == err_text &&
              strstr(err_text, "diverged"),
          "divergence");
    CHECK(launch("toy --quiet --resume %s/nowhere") == 1 && strstr(err_text, "toy: --resume: no complete checkpoint"),
          "nothing to resume");
    CHECK(launch("toy --quiet --batch-size 8 --resume %s/log") == 1 &&
              strstr(err_text, "batch_size was 16 in that run, here it is 8"),
          "another batch");
    CHECK(launch("toy --quiet --batch-size 16 --load %s/log/checkpoint-120/model.safetensors --steps 0 --rescale none "
                 "--save %s/w2") == 0 &&
              same_files("w", "w2"),
          "loaded and saved: the same file");
}

// A run that stops and is resumed ends with the same weights and state as one that goes through.
static void test_resume(void) {
    static const char *const optimizers[] = {"sgd", "momentum", "adamw"};
    static const char *const schedules[] = {"constant", "cosine --warmup 3", "one-cycle"};
    char command[1200];
    for (int i = 0; i < 9; i++) {
        const char *format =
            "toy --quiet --batch-size 16 --lr 0.02 --optimizer %s --schedule %s --rescale-every 7steps %s";
        const char *optimizer = optimizers[i / 3], *schedule = schedules[i % 3];
        snprintf(command, sizeof command, format, optimizer, schedule,
                 "--epochs 10 --checkpoint-every 12steps --log-dir %s/a --overwrite --save %s/a.w");
        CHECK(launch(command) == 0, "a run of 40 steps");
        snprintf(command, sizeof command, "rm -r %s/a/checkpoint-40", dir);
        CHECK(system(command) == 0, "as if it had been killed after step 36");
        snprintf(command, sizeof command, format, optimizer, schedule, "--epochs 10 --resume %s/a --save %s/b.w");
        CHECK(launch(command) == 0 && !err_text[0], "resumed");
        CHECK(same_files("a.w", "b.w"), "the same weights, bit for bit");
        snprintf(command, sizeof command, format, optimizer, schedule, "--epochs 10 --log-dir %s/c --overwrite");
        CHECK(launch(command) == 0 &&
                  same_tensors("a/checkpoint-40/state.safetensors", "c/checkpoint-40/state.safetensors"),
              "the same state");
    }
}

// -------------------------------------------------------------------------------------------------------- 6. whose run

// Runs a shell command in which every %s stands for the temporary folder.
static int shell(const char *format) {
    char command[4096];
    snprintf(command, sizeof command, format, dir, dir, dir, dir);
    return system(command);
}

// Reads a file of the temporary folder.
static const char *content(const char *name) {
    static char text[1 << 16];
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    slurp(path, text, sizeof text);
    return text;
}

#define BASE "--quiet --batch-size 16 --lr 0.02 --optimizer adamw --checkpoint-every 12steps --epochs 10 --data moons "

// `--resume DIR` and nothing else goes on with every option of the run, also with what only the trainer knows.
static void test_whose_run(void) {
    CHECK(shell("rm -rf %s/a %s/b %s/whose") == 0, "clean");
    CHECK(launch("toy " BASE "--schedule one-cycle --momentum 0.8 --rescale-pow2 --rescale-every 7steps --log-dir "
                             "%s/whose --save %s/whose.w "
                 "--report %s/r1.json") == 0,
          "a run of 40 steps");
    const char *text = content("r1.json"), *id = strstr(text, "\"run\": \"");
    char run[17] = "", want[64];
    if (CHECK(id && strlen(id) > 30, "the report has the run's id")) snprintf(run, sizeof run, "%s", id + 8);
    CHECK(strlen(run) == 16 && strspn(run, "0123456789abcdef") == 16, "16 hex digits");
    CHECK(strstr(text, "\"command\": \"toy --quiet --batch-size 16 ") != NULL, "the report has the command line");
    CHECK(strstr(text, "\"--momentum\": 0.8,") && strstr(text, "\"--rescale-pow2\": true,") &&
              strstr(text, "\"--load\": null,") && strstr(text, "\"--rescale-every\": \"7steps\",") &&
              strstr(text, "\"--depth\": 2,"),
          "and every option");
    CHECK(shell("rm -r %s/whose/checkpoint-40 && mv %s/whose.w %s/before.w") == 0,
          "as if it had been killed after step 36");
    CHECK(launch("toy --resume %s/whose") == 0 && !err_text[0], "resumed by its folder alone");
    if (!CHECK(strstr(out_text, "resumed from ") != NULL, "it was")) printf("%s\n", out_text);
    CHECK(same_files("whose.w", "before.w"), "the same weights, bit for bit, under the stored --save");
    snprintf(want, sizeof want, "\"run\": \"%s\"", run);
    CHECK(strstr(content("r1.json"), want) != NULL, "a resumed run keeps its id");
    CHECK(launch("toy " BASE "--schedule one-cycle --steps 0 --report %s/r2.json") == 0 &&
              !strstr(content("r2.json"), run),
          "another run has another id");
}

// What a resume refuses, and what it tells in a line.
static void test_changes(void) {
    static const struct { const char *arguments, *words;
    } refused[] = {{"--depth 3", "checkpoint-36: --depth was 2 in that run, here it is 3: leave --depth out\n"},
                   {"--schedule constant", "--schedule was cosine in that run, here it is constant: leave --schedule "
                                           "out, or allow it by --resume-changes schedule"},
                   {"--warmup 3", "--warmup was 0 in that run, here it is 3"},
                   {"--data other", "the samples or labels are not those of that run"},
                   {"--epochs 20", "40 steps in all in that run, here 80, and the schedule"},
                   {"--steps 50", "40 steps in all in that run, here 50, and the schedule"},
                   {"--steps 20", "checkpoint-36: is beyond the 20 steps of this command"},
                   {"--seed 5", "seed was 1 in that run, here it is 5: resume with the same --seed"},
                   {"--batch-size 8", "batch_size was 16 in that run, here it is 8"},
                   {"--shuffle none", "shuffle was 0 in that run, here it is 1"},
                   {"--optimizer momentum --resume-changes optimizer", "optimizer was 2 in that run, here it is 1"}};
    static const struct { const char *arguments, *words;
    } told[] = {{"--lr 0.5", "toy: note: --lr was 0.02 in that run, here it is 0.5\n"},
                {"--weight-decay 0.1", "toy: note: --weight-decay was 0 in that run, here it is 0.1\n"},
                {"--rescale-within", "toy: note: --rescale-within was not set in that run, here it is\n"},
                {"--schedule constant --resume-changes schedule",
                 "toy: note: --schedule was cosine in that run, here it is constant\n"},
                {"--steps 50 --resume-changes warmup,steps", "toy: note: 40 steps in all in that run, here 50\n"},
                {"--epochs 11 --resume-changes epochs", "toy: note: 40 steps in all in that run, here 44\n"},
                {"--batch-size 8 --epochs 5 --steps 40 --resume-changes batch-size",
                 "toy: note: batch_size was 16 in that run, here it is 8\n"},
                {"--data other --resume-changes data", "toy: note: the data are not those of that run\n"}};
    char command[1200];
    CHECK(launch("toy " BASE "--schedule cosine --log-dir %s/changes") == 0 &&
              shell("rm -r %s/changes/checkpoint-40") == 0,
          "36 of 40 steps");
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        snprintf(command, sizeof command, "toy --quiet --resume %%s/changes %s", refused[i].arguments);
        CHECK(launch(command) == 1, "refused");
        if (!CHECK(strstr(err_text, refused[i].words) && strchr(err_text, '\n') == err_text + strlen(err_text) - 1,
                   "in one line"))
            printf("    %s: %s\n", command, err_text);
    }
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        CHECK(shell("rm -rf %s/copy && cp -R %s/changes %s/copy") == 0, "a copy");
        snprintf(command, sizeof command, "toy --resume %%s/copy %s", told[i].arguments);
        CHECK(launch(command) == 0, "goes on");
        if (!CHECK(!strcmp(err_text, told[i].words), "and tells the difference, and no other"))
            printf("    %s: %s\n", command, err_text);
    }
    CHECK(launch("toy --resume %s/changes --resume-changes lr,foo") == 2 && strstr(err_text, "got 'foo'"),
          "not the name of an option");
    CHECK(launch("toy --resume-changes lr") == 2 && strstr(err_text, "needs --resume"), "of no run");
}

// A finished run that is resumed says so and changes nothing.
static void test_finished(void) {
    CHECK(launch("toy " BASE "--log-dir %s/done --save %s/done.w") == 0 &&
              shell("cp %s/done/log.csv %s/log.before") == 0,
          "a run of 40 steps");
    CHECK(launch("toy --resume %s/done") == 0 && !err_text[0], "resumed");
    CHECK(strstr(out_text, "nothing is left to train: all 40 steps are done") != NULL, "it says that nothing is left");
    CHECK(same_files("done/log.csv", "log.before"), "no row is added");
    CHECK(launch("toy --resume %s/done --steps 20") == 1 && strstr(err_text, "beyond the 20 steps"),
          "fewer steps than there are");
    CHECK(same_files("done/log.csv", "log.before"), "and nothing is cut off");
}

// Writes a file again with only the tensors that do not name the run and, unless NULL, another step; without metadata.
static int rewrite(const char *name, const int64_t *step) {
    char path[1200], err[SAFETENSORS_ERROR_SIZE];
    safetensors_file f;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (safetensors_open(&f, path, err, sizeof err)) return -1;
    size_t n = 0;
    for (size_t i = 0; i < f.n_tensors; i++) {
        if (!strncmp(f.tensors[i].name, "run.", 4)) continue;
        f.tensors[n] = f.tensors[i];
        if (step && !strcmp(f.tensors[n].name, "step")) f.tensors[n].data = step;
        n++;
    }
    const int status = safetensors_write(path, f.tensors, n, NULL, 0, err, sizeof err);
    safetensors_close(&f);
    return status;
}

// Checkpoints from before options were stored: read with a note; their step is checked like any other.
static void test_older(void) {
    static const int64_t wrong[] = {-1, 50, INT64_MAX};
    CHECK(launch("toy " BASE "--log-dir %s/old --save %s/old.w") == 0, "a run of 40 steps");
    CHECK(shell("rm -r %s/old/checkpoint-40") == 0 && !rewrite("old/checkpoint-36/state.safetensors", NULL) &&
              !rewrite("old/checkpoint-36/model.safetensors", NULL) && shell("cp -R %s/old %s/old2") == 0,
          "36 steps, as older versions stored them");
    CHECK(launch("toy --batch-size 16 --lr 0.02 --optimizer adamw --epochs 10 --resume %s/old --save %s/old2.w") == 0 &&
              strstr(err_text, "toy: note: ") &&
              strstr(err_text, "checkpoint-36 does not tell the options of its run: give the same ones\n"),
          "resumed, with a note");
    CHECK(same_files("old.w", "old2.w"), "the same weights");
    CHECK(launch("toy --quiet --batch-size 8 --lr 0.02 --optimizer adamw --epochs 10 --resume %s/old2") == 1 &&
              strstr(err_text, "batch_size was 16 in that run, here it is 8"), "another batch");
    for (int i = 0; i < 3; i++) {
        CHECK(!rewrite("old2/checkpoint-36/state.safetensors", &wrong[i]), "another step");
        if (!CHECK(launch("toy --quiet --batch-size 16 --lr 0.02 --optimizer adamw --epochs 10 --resume %s/old2") ==
                           1 &&
                       strstr(err_text, "skipping an incomplete or damaged checkpoint: ") &&
                       strstr(err_text, "expected step 36 as in the folder's name, found "),
                   "is damage"))
            printf("    %s\n", err_text);
    }
}

// ------------------------------------------------------------------------------------------------------ 7. checkpoints

// Any bit that flips in a header leaves a checkpoint that loads as it was or is damaged, never one of "another run".
static void test_flipped_bits(void) {
    static const char *const file[] = {"state", "model"};
    static toy t;
    char path[1200], err[2 * LOG_PATH], resume[1200];
    char *words[] = {(char *)"toy", (char *)"--quiet", (char *)"--resume", resume, NULL};
    CHECK(launch("toy " BASE "--label-smoothing 3 --log-dir %s/flip") == 0, "a run of 40 steps");
    snprintf(resume, sizeof resume, "%s/flip", dir);
    toy_create(&t, 4, words);
    CHECK(train_load_checkpoint(&t.run, 40, err, sizeof err) == 0, "it loads");
    float *params = train_host_copy(t.net.params, t.net.n_params);
    for (int k = 0; k < 2; k++) {
        static unsigned char bytes[1 << 16];
        int damaged = 0, harmless = 0, wrong = 0;
        snprintf(path, sizeof path, "%s/flip/checkpoint-40/%s.safetensors", dir, file[k]);
        FILE *f = fopen(path, "r+b");
        const size_t n = f ? fread(bytes, 1, sizeof bytes, f) : 0, header = 8 + bytes[0] + 256u * bytes[1];
        if (!CHECK(f && n > header && n < sizeof bytes, "a file")) return;
        for (size_t bit = 0; bit < 8 * header; bit++) {
            const unsigned char changed = (unsigned char)(bytes[bit / 8] ^ 1 << bit % 8);
            fseek(f, (long)(bit / 8), SEEK_SET);
            fputc(changed, f);
            fflush(f);
            const int status = train_load_checkpoint(&t.run, 40, err, sizeof err);
            const int same = !memcmp(params, t.net.params, t.net.n_params * sizeof(float)) && t.run.step == 40;
            damaged += status < 0;
            harmless += status == 0;
            if (status > 0 || !same) wrong++;
            if (status > 0 && wrong < 3) printf("    bit %zu of %s: %s\n", bit, file[k], err);
            fseek(f, (long)(bit / 8), SEEK_SET);
            fputc(bytes[bit / 8], f);
            fflush(f);
        }
        fclose(f);
        CHECK(wrong == 0 && damaged > 10 * harmless, "no flipped bit makes another run");
        printf("    %s: %d flipped bits are damage, %d harmless, %d wrong\n", file[k], damaged, harmless, wrong);
    }
    free(params);
    toy_free(&t);
}

// Damage falls back to the checkpoint before.
static void test_damage(void) {
    static const struct { const char *command, *words;
    } damage[] = {
        {"cp %s/foreign/checkpoint-40/model.safetensors %s/hurt/checkpoint-40",
         "does not belong to the state beside it"},
        {"cp %s/foreign/checkpoint-40/state.safetensors %s/hurt/checkpoint-40",
         "does not belong to the state beside it"},
        {"cp %s/hurt/checkpoint-36/state.safetensors %s/hurt/checkpoint-40",
         "expected step 40 as in the folder's name, found 36"},
        {"mv %s/hurt/checkpoint-40 %s/hurt/checkpoint-50", "expected step 50 as in the folder's name, found 40"},
        {"for i in 1 2 3 4 5 6 7; do for j in 0 1 2 3 4 5 6 7 8 9; do mkdir %s/hurt/checkpoint-$i$i$j; done; done; rm "
         "-r %s/hurt/checkpoint-40",
         "checkpoint-777/state.safetensors: cannot open"}};
    CHECK(launch("toy " BASE "--seed 2 --log-dir %s/foreign") == 0 &&
              launch("toy " BASE "--log-dir %s/intact --save %s/intact.w") == 0,
          "two runs");
    for (size_t i = 0; i < sizeof damage / sizeof *damage; i++) {
        CHECK(shell("rm -rf %s/hurt && cp -R %s/intact %s/hurt") == 0 && shell(damage[i].command) == 0, "damaged");
        if (!CHECK(launch("toy --quiet --resume %s/hurt --save %s/hurt.w") == 0, "it falls back"))
            printf("    %s\n", err_text);
        if (!CHECK(strstr(err_text, "skipping an incomplete or damaged checkpoint: ") &&
                       strstr(err_text, damage[i].words),
                   "and says why"))
            printf("    %s\n", err_text);
        CHECK(same_files("intact.w", "hurt.w"), "the same end");
        CHECK(shell("test \"$(ls %s/hurt)\" = \"$(ls %s/intact)\"") == 0, "and the same checkpoints are left");
    }
}

// What the retention asks the system to do, in order: S the log folder is synced, D something in a folder is removed.
static char calls[4096];
static char watched[1200];
static void note_call(char what, int fd) {
    char link[64], path[1200];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0 || !watched[0]) return;
    path[n] = 0;
    const size_t used = strlen(calls);
    if (what == 'S' ? !strcmp(path, watched) : !strncmp(path, watched, strlen(watched)))
        snprintf(calls + used, sizeof calls - used, "%c", what);
}
#ifdef __cplusplus
#error "the test replaces two functions of the C library"
#endif
int fsync(int fd) {
    note_call('S', fd);
    return (int)syscall(SYS_fsync, fd);
}
int unlinkat(int fd, const char *path, int flags) {
    note_call('D', fd);
    return (int)syscall(SYS_unlinkat, fd, path, flags);
}

// The two newest complete checkpoints stay; incomplete ones do not count and go, with the debris of killed runs; links
// and other names are left alone; the log folder is synced before anything goes.
static void test_retention(void) {
    static toy t;
    char resume[1200], err[1024];
    char *words[] = {(char *)"toy", (char *)"--quiet", (char *)"--resume", resume, NULL};
    CHECK(launch("toy " BASE "--log-dir %s/keep --steps 24") == 0, "checkpoints of 12 and 24 steps");
    CHECK(shell("cp -R %s/keep/checkpoint-12 %s/linked && touch %s/linked/model.safetensors.tmp.7") == 0,
          "a folder elsewhere");
    CHECK(
        shell(
            "cd %s/keep && mkdir checkpoint-23 checkpoint-22 checkpoint-007 checkpoint-30 && ln -s ../linked "
            "checkpoint-20 && "
            "echo x >checkpoint-22/state.safetensors && echo x >checkpoint-22/state.safetensors.tmp.99 && "
            "echo x >checkpoint-24/model.safetensors.tmp.4711 && echo x >checkpoint-12/state.safetensors.tmp.1 && "
            "cp checkpoint-12/state.safetensors checkpoint-007 && cp checkpoint-24/model.safetensors checkpoint-23") ==
            0,
        "incomplete ones, a link, another name and debris between them");
    snprintf(resume, sizeof resume, "%s/keep", dir);
    toy_create(&t, 4, words);
    CHECK(train_load_checkpoint(&t.run, 24, err, sizeof err) == 0, "resumed");
    CHECK(realpath(resume, watched) != NULL, "watched");
    CHECK(train_save_checkpoint(&t.run) == 0, "saved again");
    CHECK(strchr(calls, 'S') && strchr(calls, 'D') && strchr(calls, 'S') < strchr(calls, 'D'),
          "the log folder is synced before anything is removed");
    watched[0] = 0;
    CHECK(shell("test \"$(cd %s/keep && ls -d check* | tr '\\n' ' ')\" = 'checkpoint-007 checkpoint-12 checkpoint-20 "
                "checkpoint-24 '") == 0,
          "the two complete ones, the link and the other name stay");
    CHECK(shell("test \"$(ls %s/linked | tr '\\n' ' ')\" = 'model.safetensors model.safetensors.tmp.7 "
                "state.safetensors '") == 0,
          "nothing is removed through a link");
    CHECK(shell("test -z \"$(find %s/keep -name '*.tmp*')\"") == 0, "the debris is gone");
    toy_free(&t);
    CHECK(shell("rm -r %s/keep/checkpoint-24 && ln -s ../linked %s/keep/checkpoint-24") == 0,
          "a link where the next checkpoint goes");
    CHECK(launch("toy --quiet --resume %s/keep") == 1 &&
              strstr(err_text, "checkpoint-24: expected a folder, found something else"),
          "is not written through");
}

// Weights say what no shape shows.
static void test_load_about(void) {
    CHECK(launch("toy --quiet --steps 0 --label-smoothing 3 --save %s/about.w") == 0, "weights");
    CHECK(launch("toy --quiet --steps 0 --label-smoothing 3 --load %s/about.w") == 0, "loaded");
    CHECK(launch("toy --quiet --steps 0 --label-smoothing 4 --load %s/about.w") == 1 &&
              strstr(err_text, "about.w: was made with --label-smoothing 3, here it is 4\n"), "another function");
    CHECK(!rewrite("about.w", NULL) && launch("toy --quiet --steps 0 --label-smoothing 4 --load %s/about.w") == 0,
          "weights that do not say it");
}

int main(void) {
    snprintf(dir, sizeof dir, "%s", test_make_dir());
    test_options();
    test_one_cycle();
    test_tables();
    test_shapes();
    test_load_errors();
    test_names_of_others();
    test_lengths();
    test_runs();
    test_resume();
    test_whose_run();
    test_changes();
    test_finished();
    test_older();
    test_flipped_bits();
    test_damage();
    test_retention();
    test_load_about();
    test_clean_names();
    test_pause();
    test_interrupted_evaluation();
    test_outputs();
    test_remove_dir(dir);
    return test_summary();
}
