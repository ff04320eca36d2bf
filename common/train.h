// train.h -- what every training run does around its model: options, schedule, named tensors, files, the loop, the report.
//
// C11, C++17, CUDA. Include before it: common/cli.h, common/log.h, common/safetensors.h, rescale.cuh. A network's arrays are
// device memory where HAVE_CUDA_API is 1 (CUDA, or its stand-in on a CPU) and host memory in plain C; the two functions
// train_upload and train_download are the only place that knows. C programs compile with -D_GNU_SOURCE. POSIX.
//
// A trainer, in outline
//     typedef struct config { train_options train; int depth; } config;       // its own options beside the shared ones
//     typedef struct trainer { train_run run; model m; ... } trainer;         // model has a train_net: its named tensors
//
//     static void train_step(void *self) { trainer *t = (trainer *)self; ... batch, forward, loss, backward, update ... }
//     ... and evaluate, rescale, outputs, norm: see struct train_run ...
//
//     int run(const config *c) {
//         train_run_init(&t.run, "train_x", VERSION, &c->train);
//         ... load the data, build the model: train_add_parameter(...), then allocate net.params and the like ...
//         train_set_length(&t.run, n_training_samples);
//         t.run.net = &t.m.net, t.run.step_loss = ..., t.run.trainer = &t, t.run.train_step = train_step, ...
//         if (!c->train.resume) initialise(&t.m);
//         return train_execute(&t.run);        // resume or load and rescale, train, log, checkpoint, save, report
//     }
//
// Contents
//     Memory      train_upload, train_download, train_host_copy, train_alloc
//     Options     train_options, train_default_options, TRAIN_..._ROWS for the table of cli.h, train_check_options
//     Schedule    train_learning_rate: constant, cosine, one-cycle
//     Tensors     train_net: a table of parameters and one of buffers (running statistics, counters), and the arrays
//     Weights     train_save_weights, train_load_weights: safetensors with PyTorch's names
//     Stored      train_parse: the command line and, with --resume, the options of the run that is continued
//     Run         train_run, train_run_init, train_set_length, train_batch, train_pause, train_check_batch_norm,
//                 train_fail, train_execute
//     Rescaling   train_rescale_options, train_relative_difference
// What else is here (checkpoints, losses, loop, report) train_execute calls; tests call it too.
//
// Errors: functions with err[n] return 0, or -1 with a one-line message. Functions of a run print `program: message` on stderr
// and return 1, the exit status of a failure. A usage error exits 2, as in cli.h; being out of memory exits 1.
#pragma once
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "cuda_common.h"
#include "checkpoint.h"  // folders of checkpoints, stored options

// ------------------------------------------------------------------------------------------------------------- memory

// Copies bytes from host memory to where the network's arrays are, and back.
#if HAVE_CUDA_API
static inline void train_upload(void *to, const void *host, size_t bytes) {
    CUDA_CHECK(cudaMemcpy(to, host, bytes, cudaMemcpyHostToDevice));
}
static inline void train_download(void *host, const void *from, size_t bytes) {
    CUDA_CHECK(cudaMemcpy(host, from, bytes, cudaMemcpyDeviceToHost));
}
#else
static inline void train_upload(void *to, const void *host, size_t bytes) {
    if (bytes) memcpy(to, host, bytes);
}
static inline void train_download(void *host, const void *from, size_t bytes) {
    if (bytes) memcpy(host, from, bytes);
}
#endif

// Zeroed host memory for n elements of a size, freed with free(); old != NULL: that memory, grown (new elements not zeroed).
static inline void *train_alloc(void *old, size_t n, size_t size) {
    void *p = old ? realloc(old, (n ? n : 1) * size) : calloc(n ? n : 1, size);
    if (p) return p;
    message_print("train.h", "out of memory: %zu elements of %zu bytes", n, size);
    exit(1);
}

// Copies n floats of a network's array into fresh host memory.
static inline float *train_host_copy(const float *from, size_t n) {
    float *host = (float *)train_alloc(NULL, n, sizeof(float));
    train_download(host, from, n * sizeof(float));
    return host;
}

// ------------------------------------------------------------------------------------------------------------ options

enum { RESCALE_OFF, RESCALE_BY_PATHCOND, RESCALE_BY_ENORM };
enum { OPTIMIZER_SGD, OPTIMIZER_MOMENTUM, OPTIMIZER_ADAMW };
enum { SCHEDULE_CONSTANT, SCHEDULE_COSINE, SCHEDULE_ONE_CYCLE };
enum { SHUFFLE_EPOCH, SHUFFLE_NONE };

// The part of the command line that all trainers have; each takes the rows that apply to it.
typedef struct train_options {
    const char *data, *data_dir;
    int limit, limit_test;       // training and test samples used, 0: all
    double init_scale;
    int rescale, rescale_solver, rescale_sweeps, rescale_pow2;
    double rescale_max_log, rescale_max_trace, rescale_strength;
    int rescale_within, rescale_paths;
    cli_every rescale_every;
    int optimizer, schedule, warmup;
    double lr, momentum, weight_decay;
    int epochs, steps;           // steps < 0: epochs decide
    int batch_size;              // 0: full batch
    int64_t seed;
    int shuffle, precision;
    cli_every eval_every, checkpoint_every;
    const char *load, *save, *resume, *resume_changes, *log_dir, *report;
    int overwrite;               // --log-dir may hold a run, which is replaced
    int quiet;
    // Not on the command line
    const char *fixed;           // "layers,norm": the trainer's own options that make the function, the data or the loss
    cli_option *table;           // [n_table] copy of the option table, by train_check_options; NULL: options are unknown
    int n_table, argc;
    char **argv;                 // [argc] the command line
    char *stored;                // words of the run that --resume continues, where the strings of its options live
} train_options;

// The defaults; PyTorch's conventions where it has any. A trainer changes what its nets need (data, lr, ...).
static inline train_options train_default_options(void) {
    train_options o;
    memset(&o, 0, sizeof o);
    o.data = "fashion-mnist", o.data_dir = "data", o.init_scale = 1;
    o.rescale = RESCALE_BY_PATHCOND, o.rescale_sweeps = 10, o.rescale_strength = 1;
    o.lr = 0.05, o.momentum = 0.9, o.epochs = 10, o.steps = -1, o.batch_size = 128, o.seed = 1;
    o.eval_every.n = 1, o.eval_every.unit = CLI_EPOCHS;
    o.checkpoint_every.n = 1, o.checkpoint_every.unit = CLI_EPOCHS;
    return o;
}

// Rows of a trainer's option table, in the order of --help; o is a train_options *. Groups begin with their CLI_GROUP, and a
// trainer puts its own rows between them. names: the data sets it knows.
#define TRAIN_DATA_ROWS(o, names)                                                                                           \
    CLI_GROUP("Data"), CLI_STRING("data", &(o)->data, "NAME|DIR", names),                                                   \
        CLI_STRING("data-dir", &(o)->data_dir, "DIR", "where data/get_data.sh puts the named sets"),                        \
        CLI_INT("limit", &(o)->limit, "N", 0, INT_MAX, "use only the first N training samples (0: all)")
#define TRAIN_INIT_SCALE_ROW(o) /* the last of group Model */                                                               \
    CLI_DOUBLE("init-scale", &(o)->init_scale, "X", 0, CLI_NO_MAX, CLI_ABOVE_MIN, "multiplies the initial weights and biases")
#define TRAIN_RESCALING_ROWS(o)                                                                                             \
    CLI_GROUP("Rescaling"),                                                                                                 \
        CLI_CHOICE("rescale", &(o)->rescale, "none|pathcond|enorm", "method, applied after initialisation"),                \
        CLI_CHOICE("rescale-solver", &(o)->rescale_solver, "newton|sweeps|unit-sweeps",                                     \
                   "to the optimum; layer by layer; unit by unit, as published"),                                           \
        CLI_INT("rescale-sweeps", &(o)->rescale_sweeps, "N", 0, 1000000, "how many of --rescale-solver's sweeps"),           \
        CLI_DOUBLE("rescale-max-log", &(o)->rescale_max_log, "X", 0, CLI_NO_MAX, 0, "bound on |log lambda| (0: none)"),     \
        CLI_DOUBLE("rescale-max-trace", &(o)->rescale_max_trace, "X", 0, CLI_NO_MAX, 0,                                     \
                   "bound on the growth of the sum of diag(G), 1 or more (0: none)"),                                       \
        CLI_DOUBLE("rescale-strength", &(o)->rescale_strength, "X", 0, 1, 0, "the part of log lambda that is applied"),     \
        CLI_FLAG("rescale-within", &(o)->rescale_within, "only differences within a layer: the mean log lambda is 0"),      \
        CLI_CHOICE("rescale-paths", &(o)->rescale_paths, "all|weights", "of PathCond; weights: none that a bias begins"),   \
        CLI_EVERY("rescale-every", &(o)->rescale_every, "rescale again during training (0: only at init)"),                 \
        CLI_FLAG("rescale-pow2", &(o)->rescale_pow2, "powers of two only: the function stays the same bit for bit")
#define TRAIN_OPTIMIZER_ROWS(o)                                                                                             \
    CLI_GROUP("Training"), CLI_CHOICE("optimizer", &(o)->optimizer, "sgd|momentum|adamw", "as torch.optim.SGD and AdamW"),  \
        CLI_DOUBLE("lr", &(o)->lr, "X", 0, CLI_NO_MAX, CLI_ABOVE_MIN, "learning rate"),                                     \
        CLI_DOUBLE("momentum", &(o)->momentum, "X", 0, 1, CLI_BELOW_MAX, "of --optimizer momentum"),                        \
        CLI_DOUBLE("weight-decay", &(o)->weight_decay, "X", 0, CLI_NO_MAX, 0, "on every parameter; AdamW's is decoupled"),  \
        CLI_CHOICE("schedule", &(o)->schedule, "constant|cosine|one-cycle",                                                 \
                   "of the learning rate; cosine ends at zero; one-cycle is PyTorch's OneCycleLR(max_lr=LR, "               \
                   "cycle_momentum=False)"),                                                                                \
        CLI_INT("warmup", &(o)->warmup, "N", 0, INT_MAX, "steps of linear warm-up; one-cycle has its own")
#define TRAIN_LENGTH_ROWS(o)                                                                                                \
    CLI_INT("epochs", &(o)->epochs, "N", 0, 1000000, "passes over the training set"),                                       \
        CLI_INT("steps", &(o)->steps, "N", 0, INT_MAX, "stop after N steps instead (0: initialise, rescale, save, stop)")
#define TRAIN_SAMPLING_ROWS(o)                                                                                              \
    CLI_INT("batch-size", &(o)->batch_size, "N", 0, INT_MAX, "samples per step (0: the whole training set)"),               \
        CLI_INT64("seed", &(o)->seed, "N", 0, 9007199254740992.0, "of initial weights and sample order"),                   \
        CLI_CHOICE("shuffle", &(o)->shuffle, "epoch|none", "a new order of the samples every epoch, or as stored")
#define TRAIN_PRECISION_ROW(o)                                                                                              \
    CLI_CHOICE("precision", &(o)->precision, "fp32|tf32|bf16", "of matrix products (tf32 and bf16 need a GPU)")
#define TRAIN_OUTPUT_ROWS(o)                                                                                                \
    CLI_GROUP("Output"), CLI_EVERY("eval-every", &(o)->eval_every, "evaluate on training and test set (0: only at the end)"), \
        CLI_STRING("load", &(o)->load, "FILE", "initial weights, safetensors with PyTorch's names"),                        \
        CLI_STRING("save", &(o)->save, "FILE", "write the final weights there"),                                            \
        CLI_STRING("log-dir", &(o)->log_dir, "DIR", "write log.csv and checkpoints there, in a folder of this run alone"),  \
        CLI_FLAG("overwrite", &(o)->overwrite, "replace the run that --log-dir holds"),                                     \
        CLI_EVERY("checkpoint-every", &(o)->checkpoint_every, "checkpoints in --log-dir (0: only at the end)"),             \
        CLI_STRING("resume", &(o)->resume, "DIR", "continue the run whose checkpoints are in DIR, with its options"),       \
        CLI_STRING("resume-changes", &(o)->resume_changes, "LIST", "options that may differ from that run's: steps,batch-size"), \
        CLI_STRING("report", &(o)->report, "FILE", "write a JSON report"),                                                  \
        CLI_FLAG("quiet", &(o)->quiet, "print nothing but errors")

// Whether a name is in a list "a,b,c"; not in NULL.
static inline int train_listed(const char *list, const char *name) {
    const size_t n = strlen(name);
    for (const char *p = list; p;) {
        const size_t length = strcspn(p, ",");
        if (length == n && !strncmp(p, name, n)) return 1;
        p = p[length] ? p + length + 1 : NULL;
    }
    return 0;
}

// A usage error for a name in --resume-changes that is no option.
static inline void train_check_changes(const char *program, const char *list, const cli_option *table, int n) {
    for (const char *p = list; p;) {
        const size_t length = strcspn(p, ",");
        char shown[64];
        cli_printable(shown, sizeof shown, p);
        if (cli_find(table, n, p, length) < 0)
            cli_usage_error(program, "--resume-changes: expected names of options like steps,batch-size, got '%s'", shown);
        p = p[length] ? p + length + 1 : NULL;
    }
}

// What remains after the command line is parsed: steps = -1 where --steps was not given, options that exclude each other (a
// usage error ends the program), log_dir = resume, and a copy of the table.
static inline void train_check_options(const char *program, train_options *o, const cli_option *table, int n) {
    if (!cli_given(table, n, "steps")) o->steps = -1;
    if (o->resume && o->load) cli_usage_error(program, "--resume and --load exclude each other");
    if (o->resume && o->log_dir && strcmp(o->resume, o->log_dir))
        cli_usage_error(program, "--log-dir must be the folder of --resume, or left out");
    if (o->overwrite && o->resume) cli_usage_error(program, "--overwrite and --resume exclude each other");
    if (o->overwrite && !o->log_dir) cli_usage_error(program, "--overwrite needs --log-dir");
    if (o->schedule == SCHEDULE_ONE_CYCLE && o->warmup)
        cli_usage_error(program, "--warmup and --schedule one-cycle exclude each other: one-cycle warms up by itself");
    if (o->rescale_max_trace != 0 && o->rescale_max_trace < 1) cli_usage_error(program, "--rescale-max-trace: expected 0, or 1 and more");
    if (o->rescale_max_trace != 0 && (o->rescale == RESCALE_BY_ENORM || o->rescale_solver))
        cli_usage_error(program, "--rescale-max-trace needs --rescale pathcond and --rescale-solver newton");
    if (o->rescale_within && (o->rescale_max_trace != 0 || o->rescale_max_log != 0))
        cli_usage_error(program, "--rescale-within excludes --rescale-max-log and --rescale-max-trace");
    if (o->resume_changes && !o->resume) cli_usage_error(program, "--resume-changes needs --resume");
    train_check_changes(program, o->resume_changes, table, n);
    if (o->resume) o->log_dir = o->resume;
    o->table = (cli_option *)train_alloc(NULL, (size_t)n, sizeof *table);
    o->n_table = n;
    memcpy(o->table, table, (size_t)n * sizeof *table);
}

// ----------------------------------------------------------------------------------------------------------- schedule

// Learning rate of a step (from 0). constant and cosine: linear warm-up over `warmup` steps, then lr, or a cosine from lr to zero
// at total_steps. one-cycle: torch.optim.lr_scheduler.OneCycleLR(max_lr = lr, total_steps) with its defaults: a cosine from
// lr / 25 up to lr over the first 30% of the steps, then a cosine down to lr / 250000 in the last one; but momentum is
// left alone, as with cycle_momentum = False.
static inline double train_learning_rate(const train_options *o, int64_t step, int64_t total_steps) {
    if (o->schedule == SCHEDULE_ONE_CYCLE) {
        const double start = o->lr / 25, end = start / 1e4;                                 // rates
        const double peak = 0.3 * (double)total_steps - 1, last = (double)total_steps - 1;  // steps
        const double s = (double)step < last ? (double)step : last;  // after the last step its rate stays
        if (total_steps < 1) return start;
        if (s <= peak) return o->lr + 0.5 * (start - o->lr) * (1 + cos(M_PI * s / peak));
        return end + 0.5 * (o->lr - end) * (1 + cos(M_PI * (s - peak) / (last - peak)));
    }
    if (step < o->warmup) return o->lr * (double)(step + 1) / o->warmup;
    if (o->schedule == SCHEDULE_CONSTANT || total_steps <= o->warmup) return o->lr;
    return 0.5 * o->lr * (1 + cos(M_PI * (double)(step - o->warmup) / (double)(total_steps - o->warmup)));
}

// ------------------------------------------------------------------------------------------------------------ tensors

enum { TRAIN_NAME = 80, TRAIN_MAX_DIMS = 4 };
enum { TRAIN_ALIGN = 64 };                             // floats; every tensor starts on a 256-byte boundary
enum { TRAIN_STATISTIC = 1000, TRAIN_COUNTER = 1001 };  // roles of buffers; those of parameters are rescale.cuh's

// A named piece of a network's arrays.
typedef struct train_tensor {
    char name[TRAIN_NAME];         // PyTorch's: fc1.weight, layer1.0.bn1.running_mean, transformer.h.0.attn.c_attn.weight
    size_t offset;                 // in floats, into params, grads, moment1, moment2 or stats; of a counter its index in counts
    int n_dims, dim[TRAIN_MAX_DIMS];  // shape as in the file, [out][in][kh][kw]; a counter has none
    int rows, cols;                // the same as a matrix: dim[0] and the product of the others, 1 for a vector
    int role;                      // RESCALE_WEIGHT, RESCALE_BIAS, RESCALE_GAIN; TRAIN_STATISTIC, TRAIN_COUNTER
    int layer;                     // what the trainer numbers its layers by
} train_tensor;

// What is saved of a network. The tables come first (train_add_...); then the trainer allocates the arrays, zeroed, of the sizes
// found here (padding between tensors has to stay finite: norms and optimizers run over it), and frees them itself.
typedef struct train_net {
    int n_tensors, n_buffers;
    train_tensor *tensors;         // [n_tensors] parameters, in the order of the files
    train_tensor *buffers;         // [n_buffers] running statistics and counters, PyTorch's buffers
    size_t n_params, n_stats;      // floats
    float *params, *grads;         // [n_params]
    float *moment1, *moment2;      // [n_params] optimizer state, or NULL: SGD has none, momentum only the first
    float *stats;                  // [n_stats]
    int n_counts;
    int64_t *counts;               // [n_counts], host memory, grown by train_add_counter
    const char *hint;              // ends the message on a tensor that the network lacks: "layers or --norm differ"
    int n_about;                   // what the function depends on and no shape shows, by train_describe
    struct { char key[24], value[24]; } about[4];
    const char *prefix;            // that names in a file may lack: "transformer."; or NULL
    const char *tied, *tied_to;    // another name of a tensor in files, lm_head.weight for transformer.wte.weight; or NULL
} train_net;

// Appends a zeroed tensor to a table, which doubles when it is full.
LOG_PRINTF(4, 0) static inline train_tensor *train_new_tensor(train_tensor **table, int *n, int role, const char *format,
                                                              va_list args) {
    if ((*n & (*n - 1)) == 0) *table = (train_tensor *)train_alloc(*table, *n ? 2 * (size_t)*n : 1, sizeof **table);
    train_tensor *t = &(*table)[(*n)++];
    memset(t, 0, sizeof *t);
    t->role = role, t->rows = t->cols = 1;
    if (vsnprintf(t->name, sizeof t->name, format, args) >= (int)sizeof t->name) {
        fprintf(stderr, "train.h: the name of tensor '%s' is too long\n", t->name);
        abort();
    }
    return t;
}

// Adds a parameter [d0][d1][d2][d3], with 0 for dimensions that it does not have; its name is formatted as by printf. Returns its
// place in net->tensors (pointers into the table do not survive the next call).
LOG_PRINTF(8, 9) static inline int train_add_parameter(train_net *net, int role, int layer, int d0, int d1, int d2, int d3,
                                                       const char *format, ...) {
    const int dim[TRAIN_MAX_DIMS] = {d0, d1, d2, d3};
    va_list args;
    va_start(args, format);
    train_tensor *t = train_new_tensor(&net->tensors, &net->n_tensors, role, format, args);
    va_end(args);
    t->offset = net->n_params, t->layer = layer, t->rows = d0;
    for (int i = 0; i < TRAIN_MAX_DIMS && dim[i]; i++) t->dim[t->n_dims++] = dim[i], t->cols *= i ? dim[i] : 1;
    net->n_params += ((size_t)t->rows * (size_t)t->cols + TRAIN_ALIGN - 1) / TRAIN_ALIGN * TRAIN_ALIGN;
    return net->n_tensors - 1;
}

// Adds a running statistic [n]; returns its place in net->buffers.
LOG_PRINTF(4, 5) static inline int train_add_statistic(train_net *net, int layer, int n, const char *format, ...) {
    va_list args;
    va_start(args, format);
    train_tensor *t = train_new_tensor(&net->buffers, &net->n_buffers, TRAIN_STATISTIC, format, args);
    va_end(args);
    t->offset = net->n_stats, t->layer = layer, t->n_dims = 1, t->dim[0] = t->rows = n;
    net->n_stats += ((size_t)n + TRAIN_ALIGN - 1) / TRAIN_ALIGN * TRAIN_ALIGN;
    return net->n_buffers - 1;
}

// Adds a 64-bit integer, 0 until it is set; returns its place in net->buffers.
LOG_PRINTF(3, 4) static inline int train_add_counter(train_net *net, int layer, const char *format, ...) {
    va_list args;
    va_start(args, format);
    train_tensor *t = train_new_tensor(&net->buffers, &net->n_buffers, TRAIN_COUNTER, format, args);
    va_end(args);
    t->offset = (size_t)net->n_counts, t->layer = layer;
    net->counts = (int64_t *)train_alloc(net->counts, (size_t)net->n_counts + 1, sizeof *net->counts);
    net->counts[net->n_counts++] = 0;
    return net->n_buffers - 1;
}

// Names a number that the network's function depends on and no shape of a tensor shows, by its option: heads. It is stored with
// the weights, and weights with another number are refused.
static inline void train_describe(train_net *net, const char *option, int64_t value) {
    if (net->n_about == (int)(sizeof net->about / sizeof *net->about)) abort();  // a mistake of the trainer
    snprintf(net->about[net->n_about].key, sizeof net->about->key, "%s", option);
    snprintf(net->about[net->n_about].value, sizeof net->about->value, "%lld", (long long)value);
    net->n_about++;
}

// Adds one to every counter: num_batches_tracked after a training pass.
static inline void train_count_batch(train_net *net) {
    for (int i = 0; i < net->n_counts; i++) net->counts[i]++;
}

// Parameters without the padding.
static inline int64_t train_parameter_count(const train_net *net) {
    int64_t n = 0;
    for (int i = 0; i < net->n_tensors; i++) n += (int64_t)net->tensors[i].rows * net->tensors[i].cols;
    return n;
}

// Frees the tables and the counters; the arrays are the trainer's.
static inline void train_net_free(train_net *net) {
    free(net->tensors), free(net->buffers), free(net->counts);
    memset(net, 0, sizeof *net);
}

// ------------------------------------------------------------------------------------------------------------ weights

// Tensors for a file, with the memory of their names.
typedef struct train_list {
    safetensors_tensor *tensors;
    char (*names)[TRAIN_NAME + 16];
    int n;
} train_list;

static inline train_list train_list_create(int room) {
    train_list l;
    l.tensors = (safetensors_tensor *)train_alloc(NULL, (size_t)room, sizeof *l.tensors);
    l.names = (char(*)[TRAIN_NAME + 16])train_alloc(NULL, (size_t)room, sizeof *l.names);
    l.n = 0;
    return l;
}
static inline void train_list_free(train_list *l) { free(l->tensors), free(l->names); }

// Adds prefix + name.
static inline void train_list_add(train_list *l, const char *prefix, const char *name, safetensors_dtype dtype, int n_dims,
                                  const int *dim, const void *data) {
    int64_t shape[TRAIN_MAX_DIMS] = {0};
    for (int i = 0; i < n_dims; i++) shape[i] = dim[i];
    snprintf(l->names[l->n], sizeof *l->names, "%.15s%.79s", prefix, name);
    l->tensors[l->n] = safetensors_make(l->names[l->n], dtype, n_dims, n_dims ? shape : NULL, data);
    l->n++;
}

// Adds the parameter tensors of a family (host copy of params or of a moment) under prefix + name.
static inline void train_list_parameters(train_list *l, const train_net *net, const char *prefix, const float *host) {
    for (int i = 0; i < net->n_tensors; i++) {
        const train_tensor *t = &net->tensors[i];
        train_list_add(l, prefix, t->name, SAFETENSORS_F32, t->n_dims, t->dim, host + t->offset);
    }
}

// Adds the buffers (host copies of stats and counts).
static inline void train_list_buffers(train_list *l, const train_net *net, const float *stats, const int64_t *counts) {
    for (int i = 0; i < net->n_buffers; i++) {
        const train_tensor *t = &net->buffers[i];
        if (t->role == TRAIN_COUNTER) train_list_add(l, "", t->name, SAFETENSORS_I64, 0, NULL, counts + t->offset);
        else train_list_add(l, "", t->name, SAFETENSORS_F32, t->n_dims, t->dim, stats + t->offset);
    }
}

// Lists the weights and buffers of a network (host copies).
static inline train_list train_list_weights(const train_net *net, const float *params, const float *stats, const int64_t *counts) {
    train_list list = train_list_create(net->n_tensors + net->n_buffers);
    train_list_parameters(&list, net, "", params);
    train_list_buffers(&list, net, stats, counts);
    return list;
}

// Writes listed weights with what train_describe said and more metadata [n_more].
static inline int train_write_weights(const train_net *net, const train_list *list, const char *path, const safetensors_pair *more,
                                      int n_more, char *err, size_t n) {
    safetensors_pair pairs[8];
    int n_pairs = 0;
    for (int i = 0; i < net->n_about; i++, n_pairs++) {
        pairs[n_pairs].key = net->about[i].key;
        pairs[n_pairs].value = net->about[i].value;
    }
    for (int i = 0; i < n_more; i++) pairs[n_pairs++] = more[i];
    return safetensors_write(path, list->tensors, (size_t)list->n, pairs, (size_t)n_pairs, err, n);
}


// Whether weights could be written to path, as log_file_try. A device or pipe there, or standard output, is refused: it would be
// replaced.
static inline int train_try_weights(const char *path, char *err, size_t n) {
    struct stat info;
    if ((stat(path, &info) == 0 && !S_ISREG(info.st_mode)) || log_standard_stream(path))
        return log_error(err, n, "%s: is not a regular file", path);
    return log_file_try(path, err, n);
}

// Writes the weights and buffers. Returns 0, or -1 with a message. What train_try_weights refuses is refused.
static inline int train_save_weights(const train_net *net, const char *path, char *err, size_t n) {
    struct stat info;
    if ((stat(path, &info) == 0 && !S_ISREG(info.st_mode)) || log_standard_stream(path))
        return log_error(err, n, "%s: is not a regular file", path);
    float *params = train_host_copy(net->params, net->n_params), *stats = train_host_copy(net->stats, net->n_stats);
    train_list list = train_list_weights(net, params, stats, net->counts);
    const int status = train_write_weights(net, &list, path, NULL, 0, err, n);
    train_list_free(&list);
    free(params), free(stats);
    return status;
}

// Reads the listed tensors, whose data point into host arrays that they fill, from an open file.
static inline int train_read_list(const safetensors_file *f, const train_list *l, char *err, size_t n) {
    for (int i = 0; i < l->n; i++) {
        const safetensors_tensor *t = &l->tensors[i];
        void *out = (void *)(uintptr_t)t->data;
        const int status = t->dtype == SAFETENSORS_F32 ? safetensors_read_f32(f, t->name, t->ndim, t->shape, (float *)out, err, n)
                                                       : safetensors_read(f, t->name, t->dtype, t->ndim, t->shape, out, err, n);
        if (status) return status;
    }
    return 0;
}

// Whether a file says of the network's function what train_describe says; files of other programs say nothing.
static inline int train_check_about(const train_net *net, const safetensors_file *f, char *err, size_t n) {
    for (int i = 0; i < net->n_about; i++) {
        const char *found = safetensors_metadata(f, net->about[i].key);
        char shown[24];
        if (!found || !strcmp(found, net->about[i].value)) continue;
        cli_printable(shown, sizeof shown, found);
        return log_error(err, n, "%s: was made with --%s %s, here it is %s", f->path, net->about[i].key, shown, net->about[i].value);
    }
    return 0;
}

// A name without what torch.compile (_orig_mod.) and DataParallel (module.) put in front of it.
static inline const char *train_plain_name(const char *name) {
    for (;;) {
        if (!strncmp(name, "_orig_mod.", 10)) name += 10;
        else if (!strncmp(name, "module.", 7)) name += 7;
        else return name;
    }
}

// Whether a name in a file stands for the tensor `name` of the network.
static inline int train_same_name(const train_net *net, const char *in_file, const char *name) {
    const char *const plain = train_plain_name(in_file);
    const size_t n = net->prefix ? strlen(net->prefix) : 0;
    if (!strcmp(plain, name)) return 1;
    return n && !strncmp(name, net->prefix, n) && !strcmp(plain, name + n);
}

// Finds the tensor of a file whose name stands for `name`: *found, or NULL. Two of them are an error.
static inline int train_find_name(const train_net *net, const safetensors_file *f, const char *name,
                                  const safetensors_tensor **found, char *err, size_t n) {
    *found = NULL;
    for (size_t k = 0; k < f->n_tensors; k++) {
        const safetensors_tensor *const t = &f->tensors[k];
        if (!train_same_name(net, t->name, name)) continue;
        if (*found)
            return safetensors_error(err, n, f->path, "tensors '%.200s' and '%.200s' both stand for '%s'", (*found)->name,
                                     t->name, name);
        *found = t;
    }
    return 0;
}

// The same; a tied tensor may also stand there under its other name alone. The metadata that safetensors' save_model
// writes say so too: they map the name that was left out to the one that was kept.
static inline int train_find_tensor(const train_net *net, const safetensors_file *f, const char *name,
                                    const safetensors_tensor **found, char *err, size_t n) {
    if (train_find_name(net, f, name, found, err, n)) return -1;
    const int has_other = net->tied && !strcmp(name, net->tied_to);
    if (!*found && has_other && train_find_name(net, f, net->tied, found, err, n)) return -1;
    for (size_t k = 0; k < f->n_metadata && !*found; k++) {
        if (train_same_name(net, f->metadata[k].key, name)) *found = safetensors_find(f, f->metadata[k].value);
    }
    return 0;
}

// Reads a tensor of the network into host memory from the one in the file that stands for it (NULL: there is none).
static inline int train_read_tensor(const safetensors_file *f, const train_tensor *t, const safetensors_tensor *from,
                                    float *out, char *err, size_t n) {
    const size_t length = strlen(t->name);
    int64_t shape[TRAIN_MAX_DIMS] = {0};
    for (int i = 0; i < t->n_dims; i++) shape[i] = t->dim[i];
    const int matrices = from && t->n_dims == 2 && from->ndim == 2 && t->rows != t->cols;
    if (matrices && from->shape[0] == t->cols && from->shape[1] == t->rows)
        return safetensors_error(err, n, f->path,
                                 "tensor '%.200s': expected shape [%d,%d], found [%d,%d]: it is transposed, [in][out], like "
                                 "the Conv1D of Hugging Face's GPT-2 (c_attn, c_proj, c_fc); transpose every such weight, "
                                 "the square ones too",
                                 from->name, t->rows, t->cols, t->cols, t->rows);
    if (safetensors_read_f32(f, from ? from->name : t->name, t->n_dims, shape, out, err, n)) return -1;
    if (t->role != TRAIN_STATISTIC || length < 11 || strcmp(t->name + length - 11, "running_var")) return 0;
    for (int i = 0; i < t->rows; i++)
        if (out[i] < 0)
            return safetensors_error(err, n, f->path, "tensor '%.200s': element [%d] is %g, expected a variance, 0 or more",
                                     from->name, i, (double)out[i]);
    return 0;
}

// Where a file holds a tied tensor under both names, they must be equal. params: what was read from it.
static inline int train_check_tied(const train_net *net, const safetensors_file *f, const float *params, char *used,
                                   char *err, size_t n) {
    const safetensors_tensor *head = NULL;
    const train_tensor *t = NULL;
    for (int i = 0; i < net->n_tensors && net->tied; i++)
        if (!strcmp(net->tensors[i].name, net->tied_to)) t = &net->tensors[i];
    if (!t) return 0;
    if (train_find_name(net, f, net->tied, &head, err, n)) return -1;
    if (!head || used[head - f->tensors]) return 0;
    used[head - f->tensors] = 1;
    const size_t size = (size_t)t->rows * (size_t)t->cols;
    float *values = (float *)train_alloc(NULL, size, sizeof *values);
    int status = train_read_tensor(f, t, head, values, err, n);
    for (size_t i = 0; i < size && !status; i++)
        if (values[i] != params[t->offset + i])
            status = safetensors_error(
                err, n, f->path, "tensor '%.200s' does not belong to this network: here it is '%s', but they differ (%s)",
                head->name, t->name, net->hint ? net->hint : "its options differ");
    free(values);
    return status;
}

// Whether a tensor is a constant of GPT-2's attention, as old files hold: the causal mask [1][1][T][T], or its fill value.
static inline int train_is_mask(const safetensors_tensor *t) {
    static const char *const ending[] = {".attn.bias", ".attn.masked_bias"};
    const size_t length = strlen(t->name);
    for (int i = 0; i < 2; i++) {
        const size_t n = strlen(ending[i]);
        if (length <= n || strcmp(t->name + length - n, ending[i])) continue;
        if (i == 1) return t->numel == 1;
        return t->ndim == 4 && t->shape[0] == 1 && t->shape[1] == 1 && t->shape[2] == t->shape[3];
    }
    return 0;
}

// Takes weights and buffers from an open file, under the network's names or as PyTorch's world writes them
// (doc/reference.md). Every tensor of the network must be there with its shape, and no other; only a counter may be
// missing, it is 0 then. The network changes only when the whole file is good. Returns 0, or -1 with a message.
static inline int train_take_weights(train_net *net, const safetensors_file *f, char *err, size_t n) {
    float *params = train_host_copy(net->params, net->n_params), *stats = train_host_copy(net->stats, net->n_stats);
    int64_t *counts = (int64_t *)train_alloc(NULL, (size_t)net->n_counts, sizeof *counts);
    char *used = (char *)train_alloc(NULL, f->n_tensors, 1);
    int status = 0;
    for (int i = 0; i < net->n_tensors + net->n_buffers && !status; i++) {
        const train_tensor *t = i < net->n_tensors ? &net->tensors[i] : &net->buffers[i - net->n_tensors];
        const safetensors_tensor *from;
        status = train_find_tensor(net, f, t->name, &from, err, n);
        if (status) break;
        if (from) used[from - f->tensors] = 1;
        if (t->role != TRAIN_COUNTER)
            status = train_read_tensor(f, t, from, (t->role == TRAIN_STATISTIC ? stats : params) + t->offset, err, n);
        else if (from)
            status = safetensors_read_integer(f, from->name, counts + t->offset, err, n);
    }
    if (!status) status = train_check_tied(net, f, params, used, err, n);
    for (size_t k = 0; k < f->n_tensors && !status; k++)
        if (!used[k] && !train_is_mask(&f->tensors[k]))
            status = safetensors_error(err, n, f->path, "tensor '%.200s' does not belong to this network (%s)",
                                       f->tensors[k].name, net->hint ? net->hint : "its options differ");
    if (!status) status = train_check_about(net, f, err, n);
    if (!status) {
        train_upload(net->params, params, net->n_params * sizeof(float));
        train_upload(net->stats, stats, net->n_stats * sizeof(float));
        for (int i = 0; i < net->n_counts; i++) net->counts[i] = counts[i];
    }
    free(params);
    free(stats);
    free(counts);
    free(used);
    return status;
}

// Loads weights and buffers from a file, as train_take_weights does.
static inline int train_load_weights(train_net *net, const char *path, char *err, size_t n) {
    safetensors_file f;
    if (safetensors_open(&f, path, err, n)) return -1;
    const int status = train_take_weights(net, &f, err, n);
    safetensors_close(&f);
    return status;
}

// ---------------------------------------------------------------------------------------------------------- rescaling

// The options of rescale.cuh that the command line sets.
static inline rescale_options train_rescale_options(const train_options *o) {
    rescale_options r = rescale_default_options();
    r.method = o->rescale == RESCALE_BY_ENORM ? RESCALE_ENORM : RESCALE_PATHCOND;
    r.solver = o->rescale_solver;
    r.sweeps = o->rescale_sweeps, r.max_log = o->rescale_max_log, r.pow2 = o->rescale_pow2;
    r.max_trace = o->rescale_max_trace, r.strength = o->rescale_strength, r.within = o->rescale_within;
    r.on_device = DEVICE_IS_GPU;
    return r;
}

// Leaves biases, and with them the paths that begin at one, out of the criterion if the command line says so.
static inline void train_count_paths(const train_options *o, rescale_tensor *t, int n) {
    for (int i = 0; i < n; i++)
        if (o->rescale_paths && t[i].role == RESCALE_BIAS) t[i].flags |= RESCALE_UNCOUNTED;
}

// Largest |after - before| relative to the largest |before|, n outputs in host memory; infinity where one of them is NaN.
static inline double train_relative_difference(const float *before, const float *after, size_t n) {
    double difference = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)after[i] - before[i]);
        if (isnan(d)) return INFINITY;
        difference = fmax(difference, d);
        largest = fmax(largest, fabs((double)before[i]));
    }
    return difference > 0 ? difference / largest : 0;
}

// ---------------------------------------------------------------------------------------------------------------- run

enum { TRAIN_LOSS_RING = 64 };  // step losses kept beside the network before they are fetched

// One training run. The few things that only a trainer knows come in as function pointers: they are called once per step or less,
// so they cost nothing; every call site is in this file; and a test can run the loop on a model of ten lines. `trainer` is
// handed to them as it is.
typedef struct train_run {
    // By train_run_init
    const char *program, *version;  // "train_mlp", in front of every message
    const train_options *options;
    double started;              // clock when the program began
    // By train_set_length
    int64_t samples;             // training samples
    int batch;                   // samples of a full step; the last step of an epoch has what is left
    int64_t steps_per_epoch, total_steps;
    // By the trainer
    train_net *net;
    const float *step_loss;      // [TRAIN_LOSS_RING] beside the network's arrays: mean loss of step s in [s % TRAIN_LOSS_RING]
    const char *backend;         // of matrix products, for the report; or NULL
    const char *unit;            // what throughput counts: "samples", or "tokens" with units_per_sample = context length
    double units_per_sample;     // 1
    double flops_per_sample;     // of a training step, for GFLOP/s beside throughput in the progress line; 0: neither is shown
    const char *test_name;       // what lines call the second data set: "test", or "val"; log.csv and the report say test
    uint64_t data;               // fingerprint of training and test data; 0: unknown
    void *trainer;
    // Step number `step`: batch, forward, loss, backward, update. The loop counts.
    void (*train_step)(void *trainer);
    // Mean loss over the training set (test = 0) or the test set (1), and the accuracy as a fraction, or LOG_NA. Asks train_pause
    // for every batch, as does train_step where it takes several passes, before it changes anything but gradients.
    void (*evaluate)(void *trainer, int test, double *loss, double *accuracy);
    // Rescales the network; *moved: how far its outputs moved, as train_relative_difference; moved may be NULL. 0, or -1 with
    // report->message.
    int (*rescale)(void *trainer, rescale_report *report, double *moved);
    // Outputs [n] on fixed inputs, in evaluation mode, in host memory that is freed here: to see whether they are finite.
    float *(*outputs)(void *trainer, size_t *n);
    // Euclidean norm of params, grads, moment1 or moment2.
    double (*norm)(void *trainer, const float *array);
    // The run's own
    int64_t step;                // steps done
    int64_t first_step;          // where this process started (resume)
    int64_t fetched;             // steps whose loss has been fetched and logged
    double step_seconds, mark;   // time spent in steps; clock at the last mark
    double first_loss;           // of the first step fetched here; 0: not yet. -1: it has been said that the loss exploded
    double loss, train_loss, test_loss, test_accuracy;
    rescale_report first_rescaling;  // right after initialisation
    double output_moved;         // by it
    int stopped;                 // by an interruption, within a step or an evaluation
    int lock;                    // of the log folder, see log_claim; -1: none
    int rescalings;              // how many there were, and how long all of them took
    double rescale_seconds;
    log_csv csv;
    log_progress progress;
    char last_checkpoint[CHECKPOINT_PATH];
    char id[CHECKPOINT_ID + 1];  // of this run, from its first process on
    int64_t good[CHECKPOINT_KEPT];  // steps of the newest checkpoints that this process wrote or read
    int n_good;
} train_run;

// Begins a run: clock, progress on stdout, defaults of the trainer's fields.
static inline void train_run_init(train_run *r, const char *program, const char *version, const train_options *o) {
    memset(r, 0, sizeof *r);
    r->started = log_seconds();
    r->program = program, r->version = version, r->options = o;
    r->unit = "samples", r->units_per_sample = 1, r->test_name = "test";
    r->lock = -1;
    r->csv.evaluated = -1;
    r->train_loss = r->test_loss = r->test_accuracy = LOG_NA;
    log_progress_init(&r->progress, stdout, o->quiet);
}

// Batch, steps per epoch and in all, for a training set of n >= 1 samples.
static inline void train_set_length(train_run *r, int64_t n) {
    const train_options *o = r->options;
    r->samples = n;
    r->batch = (int)(o->batch_size && o->batch_size < n ? o->batch_size : n);
    r->steps_per_epoch = (n + r->batch - 1) / r->batch;
    r->total_steps = o->steps >= 0 ? o->steps : o->epochs * r->steps_per_epoch;
}

// Which samples step `step` takes: those at places *first .. *first + rows - 1 in the order of *epoch. Returns rows.
static inline int train_batch(const train_run *r, int64_t *epoch, int *first) {
    const int64_t start = r->step % r->steps_per_epoch * r->batch, left = r->samples - start;
    *epoch = r->step / r->steps_per_epoch, *first = (int)start;
    return (int)(left < r->batch ? left : r->batch);
}

// As PyTorch, BatchNorm does not train on one value of a channel, whose variance is 0: a usage error ends the program,
// before the first step, where a step to come has such a batch. values: height x width of the smallest map that is
// normalised, 1 for vectors.
static inline void train_check_batch_norm(const train_run *r, int64_t values) {
    const int64_t tail = r->samples - (r->steps_per_epoch - 1) * r->batch;  // samples in the last batch of an epoch
    const char *which = NULL;
    if (r->batch == 1 && r->total_steps > 0) which = "a batch";
    else if (tail == 1 && r->total_steps >= r->steps_per_epoch) which = "the last batch of an epoch";
    if (!which || values > 1) return;
    cli_usage_error(r->program,
                    "BatchNorm: expected more than 1 value per channel when training, but %s has 1 sample (of %lld, in "
                    "batches of %d): choose another --batch-size or --limit",
                    which, (long long)r->samples, r->batch);
}

// Prints `program: message` on stderr and returns 1, the exit status of a failure.
static inline int train_fail(train_run *r, const char *message) {
    log_progress_clear(&r->progress);
    message_print(r->program, "%s", message);
    return 1;
}

// What else than a smaller learning rate may help: in dev/paper, rescaling fails where the baseline trains only beyond |log lambda| = 1.
static inline void train_hint(const train_run *r, char *hint, size_t size) {
    *hint = '\0';
    if (r->first_rescaling.max_abs_log_lambda > 1.001)
        snprintf(hint, size, ", or --rescale-max-log 1 (rescaling went to |log lambda| = %.2g)", r->first_rescaling.max_abs_log_lambda);
}

// Warns once when the loss of a step is ten times that of the first: on two moons (dev/paper, explosions) 75 runs that learned stayed
// below six times, and of 15 that did not 14 exceeded 36 times. Trained weights have small and scattered losses: not watched.
static inline void train_watch(train_run *r, int64_t step) {
    char hint[128];
    if (r->options->load || r->options->resume) return;
    if (r->first_loss == 0) r->first_loss = r->loss;
    if (r->first_loss < 0 || r->loss <= 10 * r->first_loss) return;
    train_hint(r, hint, sizeof hint);
    if (!r->options->quiet)
        message_print(r->program, "warning: loss %.3g at step %lld, %.2g times the first: few runs recover, try a smaller --lr than %g%s",
                      r->loss, (long long)step, r->loss / r->first_loss, r->options->lr, hint);
    r->first_loss = -1;
}

// Reports that `what` is not finite after `step` steps; names the last good checkpoint. Returns 1.
static inline int train_diverged(train_run *r, const char *what, int64_t step) {
    char text[2 * LOG_PATH], hint[128];
    train_hint(r, hint, sizeof hint);
    if (step == 0)
        snprintf(text, sizeof text, "%s is not finite before the first step: the %s weights are too large", what,
                 r->options->load ? "loaded" : "initial");
    else
        snprintf(text, sizeof text, "%s is not finite at step %lld: training diverged, try a smaller --lr than %g%s%s%s", what,
                 (long long)step, r->options->lr, hint, r->last_checkpoint[0] ? "; last good checkpoint: " : "", r->last_checkpoint);
    return train_fail(r, text);
}

// Number of steps an option like 2epochs or 100steps stands for; 0: never. More steps than can be counted are as many as can.
static inline int64_t train_every(const train_run *r, cli_every e) {
    if (e.unit != CLI_EPOCHS) return e.n;
    return e.n > INT64_MAX / r->steps_per_epoch ? INT64_MAX : e.n * r->steps_per_epoch;
}

// For long loops (over the batches of an evaluation, the passes of one step, the tokens of a sample): shows that `what` has come to
// done of total, when an update is due. Returns 1 when the run was interrupted: the caller then leaves its loop, and what the loop
// would have given is dropped.
static inline int train_pause(train_run *r, const char *what, int64_t done, int64_t total) {
    if (r->progress.out && log_progress_due(&r->progress))
        log_progress_update(&r->progress, "step %lld  %s: %.0f%%", (long long)r->step, what, 100.0 * (double)done / (double)total);
    if (log_interrupted) r->stopped = 1;
    return r->stopped;
}

// Fetches the losses of the steps since the last call, logs them, and stops the clock of the steps. Returns 0; 1 when the
// loss is no longer finite.
static inline int train_fetch_losses(train_run *r) {
    float ring[TRAIN_LOSS_RING];
    char err[LOG_PATH + 256];
    const int64_t n = r->step - r->fetched;
    if (n == 0) return 0;
    train_download(ring, r->step_loss, sizeof ring);
    const double now = log_seconds(), seconds = (now - r->mark) / (double)n;
    const double norm = r->csv.file.f ? r->norm(r->trainer, r->net->grads) : 0;
    r->step_seconds += now - r->mark;
    for (; r->fetched < r->step; r->fetched++) {
        const int64_t s = r->fetched;
        r->loss = ring[s % TRAIN_LOSS_RING];
        if (!isfinite(r->loss)) return train_diverged(r, "the loss", s + 1);
        train_watch(r, s + 1);
        log_row row = log_row_make(s + 1, (double)(s + 1) / (double)r->steps_per_epoch, "step", r->loss);
        row.lr = train_learning_rate(r->options, s, r->total_steps);
        row.ms = 1e3 * seconds, row.samples_per_s = r->batch * r->units_per_sample / seconds;
        if (s + 1 == r->step) row.grad_norm = norm;
        if (r->csv.file.f && log_write(&r->csv, &row, err, sizeof err)) train_fail(r, err);
    }
    r->mark = log_seconds();
    return 0;
}

// Evaluates on both sets, logs two rows (unless a resumed log has them) and prints a line. Returns 0, or 1 when the training loss is
// not finite. Interrupted, it sets stopped and tells nothing: a resumed run evaluates anew.
static inline int train_evaluate(train_run *r) {
    char err[LOG_PATH + 256];
    double loss[2] = {LOG_NA, LOG_NA}, accuracy[2] = {LOG_NA, LOG_NA};
    const double epoch = (double)r->step / (double)r->steps_per_epoch;
    for (int k = 0; k < 2 && !r->stopped; k++) r->evaluate(r->trainer, k, &loss[k], &accuracy[k]);
    if (r->stopped) return 0;
    r->train_loss = loss[0];
    r->test_loss = loss[1];
    r->test_accuracy = accuracy[1];
    for (int k = 0; k < 2 && r->csv.file.f && r->csv.evaluated != r->step; k++) {
        log_row row = log_row_make(r->step, epoch, k ? "test" : "train", k ? r->test_loss : r->train_loss);
        row.accuracy = accuracy[k];
        row.lr = train_learning_rate(r->options, r->step, r->total_steps);
        if (log_write(&r->csv, &row, err, sizeof err)) train_fail(r, err);
    }
    if (r->test_accuracy == LOG_NA)
        log_progress_line(&r->progress, "epoch %6.2f  train loss %.6f  %s loss %.6f", epoch, r->train_loss, r->test_name,
                          r->test_loss);
    else
        log_progress_line(&r->progress, "epoch %6.2f  train loss %.4f  %s loss %.4f  %s accuracy %.2f%%", epoch, r->train_loss,
                          r->test_name, r->test_loss, r->test_name, 100 * r->test_accuracy);
    r->mark = log_seconds();
    return isfinite(r->train_loss) ? 0 : train_diverged(r, "the training loss", r->step);
}

// Rescales now and prints what it did; the report tells about the first one, right after initialisation. Returns 0, or 1 after a
// message.
static inline int train_rescale(train_run *r, int first) {
    rescale_report report;
    double moved = 0;  // measured where it is told: four passes, which a quiet run that rescales at every step would notice
    if (r->rescale(r->trainer, &report, first || !r->options->quiet ? &moved : NULL)) {
        const int diverged = !first && (report.status == RESCALE_ERROR_NON_FINITE || report.status == RESCALE_ERROR_RANGE);
        return diverged ? train_diverged(r, "a weight, or diag(G) of a rescaling,", r->step) : train_fail(r, report.message);
    }
    if (first) r->first_rescaling = report, r->output_moved = moved;
    r->rescalings++, r->rescale_seconds += report.seconds_diag_g + report.seconds_solve + report.seconds_apply;
    char diag[LOG_DURATION], solve[LOG_DURATION], apply[LOG_DURATION], trace[48] = "";
    if (report.trace_ratio > 0) snprintf(trace, sizeof trace, ", trace of G times %.2f", report.trace_ratio);
    log_progress_line(&r->progress,
                      "rescaled by %s: objective %.6g -> %.6g, max gradient %.1e after %d Newton steps and %d sweeps; diag(G) %s, "
                      "solve %s, apply %s; max |log lambda| %.2f%s, %d of %d units pinned; outputs moved by %.1e",
                      r->options->rescale == RESCALE_BY_ENORM ? "ENorm" : "PathCond", report.objective_before,
                      report.objective_after, report.grad_inf, report.iterations, report.sweeps,
                      log_duration(diag, report.seconds_diag_g), log_duration(solve, report.seconds_solve),
                      log_duration(apply, report.seconds_apply), report.max_abs_log_lambda, trace, report.pinned_units, report.units,
                      moved);
    r->mark = log_seconds();
    return 0;
}

// ----------------------------------------------------------------------------------------------------- stored options
// A run's options are stored with its checkpoints. `--resume DIR` takes them over; what is on the command line beside it
// comes first, and has to fit: an option that makes the function, the data or the schedule must be that of the run, unless
// --resume-changes names it. Every other difference is told in a line.

// Not taken over; and told apart by something better than their text (the data, scalars, the total steps), or of no interest.
#define TRAIN_NOT_RESTORED "resume,resume-changes,load,log-dir,overwrite,quiet"
#define TRAIN_NOT_COMPARED "data,data-dir,val-data,limit,limit-test,seed,batch-size,optimizer,shuffle,epochs,steps,save,report"
#define TRAIN_FIXED "schedule,warmup"

// What a resumed run must share with the run that wrote the state, and its names in the file and on the command line.
enum { TRAIN_STATE_STEP, TRAIN_STATE_SEED, TRAIN_STATE_BATCH, TRAIN_STATE_SAMPLES, TRAIN_STATE_OPTIMIZER, TRAIN_STATE_SHUFFLE,
       TRAIN_N_STATE };
static inline const char *train_state_name(int i) {
    static const char *const name[TRAIN_N_STATE] = {"step", "seed", "batch_size", "training_samples", "optimizer", "shuffle"};
    return name[i];
}
static inline const char *train_state_option(int i) {
    static const char *const option[TRAIN_N_STATE] = {"", "--seed", "--batch-size", "--data or --limit", "--optimizer",
                                                     "--shuffle"};
    return option[i];
}
static inline void train_state_of(const train_run *r, int64_t *state) {
    state[TRAIN_STATE_STEP] = r->step, state[TRAIN_STATE_SEED] = r->options->seed, state[TRAIN_STATE_BATCH] = r->batch;
    state[TRAIN_STATE_SAMPLES] = r->samples, state[TRAIN_STATE_OPTIMIZER] = r->options->optimizer;
    state[TRAIN_STATE_SHUFFLE] = r->options->shuffle;
}

// What a state says besides the moments. The tensors run.* are those of checkpoint.h.
enum { TRAIN_N_RUN = 5 };
typedef struct train_saved {
    int64_t scalar[TRAIN_N_STATE];
    int known;                   // 0: of an older version, the rest is unknown
    char id[CHECKPOINT_ID];
    int64_t total_steps;
    uint64_t data, model;
    char *words;                 // [n_words] options; freed by who reads it
    int n_words;
} train_saved;

static inline void train_list_scalars(train_list *l, const train_saved *s) {
    for (int i = 0; i < TRAIN_N_STATE; i++) train_list_add(l, "", train_state_name(i), SAFETENSORS_I64, 0, NULL, s->scalar + i);
}
static inline void train_list_run(train_list *l, const train_saved *s) {
    const int length = CHECKPOINT_ID;
    train_list_add(l, "run.", "total_steps", SAFETENSORS_I64, 0, NULL, &s->total_steps);
    train_list_add(l, "run.", "data", SAFETENSORS_U64, 0, NULL, &s->data);
    train_list_add(l, "run.", "model", SAFETENSORS_U64, 0, NULL, &s->model);
    train_list_add(l, "run.", "id", SAFETENSORS_U8, 1, &length, s->id);
    train_list_add(l, "run.", "options", SAFETENSORS_U8, 1, &s->n_words, s->words);
}

// Reads it. An older state has none of the run.* tensors. Returns 0; -1 when the state is damaged.
static inline int train_read_saved(const safetensors_file *f, train_saved *s, char *err, size_t n) {
    const safetensors_tensor *options = safetensors_find(f, "run.options");
    memset(s, 0, sizeof *s);
    for (size_t i = 0; i < f->n_tensors; i++) s->known = s->known || !strncmp(f->tensors[i].name, "run.", 4);
    s->n_words = options && options->ndim == 1 && options->numel < INT_MAX ? (int)options->numel : 0;
    s->words = (char *)train_alloc(NULL, (size_t)s->n_words + 1, 1);
    train_list list = train_list_create(TRAIN_N_STATE + TRAIN_N_RUN);
    train_list_scalars(&list, s);
    if (s->known) train_list_run(&list, s);
    int status = train_read_list(f, &list, err, n);
    train_list_free(&list);
    const int has_sum = safetensors_metadata(f, SAFETENSORS_CHECKSUM_KEY) != NULL;
    if (!status && s->known && (!has_sum || s->scalar[TRAIN_STATE_STEP] > s->total_steps))
        status = log_error(err, n, "%s: its header is damaged", f->path);
    if (!status && s->n_words && s->words[s->n_words - 1]) status = log_error(err, n, "%s: its options are damaged", f->path);
    return status;
}

// Sets the options that are not on the command line to those of the run in --resume. Exits where one is not an option.
static inline void train_restore(const char *program, train_options *o, cli_option *table, int n) {
    char err[1024];
    int64_t *steps;
    safetensors_file f;
    train_saved s;
    const int count = checkpoint_find(o->resume, &steps), epochs = cli_given(table, n, "epochs");
    int found = 0;
    for (int i = 0; i < count && !found; i++) {
        if (checkpoint_open_state(&f, o->resume, steps[i], err, sizeof err)) continue;
        found = !train_read_saved(&f, &s, err, sizeof err) && checkpoint_has_model(&f, o->resume, steps[i]);
        if (!found) free(s.words);
        safetensors_close(&f);
    }
    free(steps);
    if (!found) return;
    o->stored = s.words;
    for (int at = 0; at < s.n_words; at += (int)strlen(s.words + at) + 1) {
        char name[64];
        const char *word = s.words + at;
        const char *start = word + strspn(word, "-");
        snprintf(name, sizeof name, "%.*s", (int)strcspn(start, "="), start);
        if (train_listed(TRAIN_NOT_RESTORED, name) || (epochs && !strcmp(name, "steps"))) continue;
        if (cli_restore(table, n, word, err, sizeof err) == CLI_OK) continue;
        fprintf(stderr, "%s: --resume: an option of that run: %s\n", program, err);
        exit(1);
    }
}

// Fills the variables of the table from the command line and, with --resume, from the run that is continued. Exits as cli_parse.
static inline void train_parse(const char *program, const char *synopsis, const char *version, train_options *o,
                               cli_option *table, int n, int argc, char **argv) {
    cli_parse(program, synopsis, version, table, n, argc, argv);
    o->argc = argc;
    o->argv = argv;
    if (o->resume) train_restore(program, o, table, n);
}

// The command line as one text, quoted for a shell; the caller frees it. NULL: unknown.
static inline char *train_command(const train_options *o) {
    const char *const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./,:=+@%";
    size_t size = 1;
    if (!o->argc) return NULL;
    for (int i = 0; i < o->argc; i++) size += 4 * strlen(o->argv[i]) + 3;
    char *text = (char *)train_alloc(NULL, size, 1), *at = text;
    for (int i = 0; i < o->argc; i++) {
        const char *word = o->argv[i];
        const int quoted = !*word || word[strspn(word, plain)];
        if (i) *at++ = ' ';
        if (quoted) *at++ = '\'';
        for (; *word; word++) {
            if (*word == '\'') at += sprintf(at, "'\\''");
            else *at++ = *word;
        }
        if (quoted) *at++ = '\'';
    }
    return text;
}

// An option whose value differs from the stored one: "--lr was 0.1 in that run, here it is 0.2" to text. Returns 0 when they agree.
static inline int train_differs(const cli_option *option, const train_saved *s, char *text, size_t n) {
    char here[CLI_TEXT], a[80], b[80];
    if (option->kind == CLI_KIND_GROUP || option->kind == CLI_KIND_REST) return 0;
    const char *now = cli_text(option, here), *then = checkpoint_value(s->words, (size_t)s->n_words, option->name);
    if (now == then || (now && then && !strcmp(now, then))) return 0;
    cli_printable(a, sizeof a, then ? then : "not set");
    cli_printable(b, sizeof b, now ? now : "not set");
    if (cli_takes_value(option)) snprintf(text, n, "--%s was %s in that run, here it is %s", option->name, a, b);
    else if (then) snprintf(text, n, "--%s was set in that run, here it is not", option->name);
    else snprintf(text, n, "--%s was not set in that run, here it is", option->name);
    return 1;
}

// Whether a state is of this run: the same function, data, order of samples, optimizer and schedule, apart from what
// --resume-changes names. Returns 0, or 1 with a message.
static inline int train_compare_run(const train_run *r, const char *dir, const train_saved *s, char *err, size_t n) {
    const train_options *o = r->options;
    int64_t mine[TRAIN_N_STATE];
    char text[256];
    const char *changes = o->resume_changes;
    train_state_of(r, mine);
    for (int i = 0; i < o->n_table && s->known; i++) {
        const char *name = o->table[i].name;
        if (!train_listed(TRAIN_FIXED, name) && !train_listed(o->fixed, name)) continue;
        if (train_listed(changes, name) || !train_differs(&o->table[i], s, text, sizeof text)) continue;
        const int own = train_listed(o->fixed, name);
        const char *allow = own ? "" : ", or allow it by --resume-changes ";
        log_error(err, n, "%s: %s: leave --%s out%s%s", dir, text, name, allow, own ? "" : name);
        return 1;
    }
    const int new_data = train_listed(changes, "data") || train_listed(changes, "limit");
    for (int k = 1; k < TRAIN_N_STATE; k++) {
        const int named = k != TRAIN_STATE_OPTIMIZER && train_listed(changes, train_state_option(k) + 2);
        if (s->scalar[k] == mine[k] || named || (k == TRAIN_STATE_SAMPLES && new_data)) continue;
        log_error(err, n, "%s: %s was %lld in that run, here it is %lld: resume with the same %s", dir, train_state_name(k),
                  (long long)s->scalar[k], (long long)mine[k], train_state_option(k));
        return 1;
    }
    if (s->known && s->data && r->data && s->data != r->data && !new_data) {
        log_error(err, n, "%s: the samples or labels are not those of that run: give it the same --data, or allow others by "
                  "--resume-changes data", dir);
        return 1;
    }
    if (s->scalar[TRAIN_STATE_STEP] > r->total_steps) {
        log_error(err, n, "%s: is beyond the %lld steps of this command: raise --steps or --epochs", dir, (long long)r->total_steps);
        return 1;
    }
    const int longer = train_listed(changes, "steps") || train_listed(changes, "epochs");
    if (s->known && o->schedule != SCHEDULE_CONSTANT && s->total_steps != r->total_steps && !longer) {
        log_error(err, n, "%s: %lld steps in all in that run, here %lld, and the schedule of the learning rate follows them: "
                  "leave --steps and --epochs out, or allow it by --resume-changes steps", dir, (long long)s->total_steps,
                  (long long)r->total_steps);
        return 1;
    }
    return 0;
}

// Names what differs from the run that is continued, a line each; of an older checkpoint that it cannot be known.
static inline void train_tell_differences(train_run *r, const char *dir, const train_saved *s) {
    const train_options *o = r->options;
    int64_t mine[TRAIN_N_STATE];
    char text[256];
    if (o->quiet) return;
    if (!s->known) {
        fprintf(stderr, "%s: note: %s does not tell the options of its run: give the same ones\n", r->program, dir);
        return;
    }
    train_state_of(r, mine);
    for (int i = 0; i < o->n_table; i++) {
        const char *name = o->table[i].name;
        if (train_listed(TRAIN_NOT_RESTORED, name) || train_listed(TRAIN_NOT_COMPARED, name)) continue;
        if (train_differs(&o->table[i], s, text, sizeof text)) fprintf(stderr, "%s: note: %s\n", r->program, text);
    }
    for (int k = 1; k < TRAIN_N_STATE; k++)
        if (s->scalar[k] != mine[k])
            fprintf(stderr, "%s: note: %s was %lld in that run, here it is %lld\n", r->program, train_state_name(k),
                    (long long)s->scalar[k], (long long)mine[k]);
    if (s->data && r->data && s->data != r->data) fprintf(stderr, "%s: note: the data are not those of that run\n", r->program);
    if (s->total_steps != r->total_steps)
        fprintf(stderr, "%s: note: %lld steps in all in that run, here %lld\n", r->program, (long long)s->total_steps,
                (long long)r->total_steps);
}

// -------------------------------------------------------------------------------------------------------- checkpoints
// Folders LOGDIR/checkpoint-STEP, as checkpoint.h describes them.

// Lists the state: scalars, what names the run (unless it is unknown), and the optimizer's moments (host copies, or NULL).
static inline train_list train_list_state(const train_net *net, const train_saved *s, const float *moment1, const float *moment2) {
    train_list l = train_list_create(TRAIN_N_STATE + TRAIN_N_RUN + 2 * net->n_tensors);
    train_list_scalars(&l, s);
    if (s->known) train_list_run(&l, s);
    if (moment1) train_list_parameters(&l, net, "moment1.", moment1);
    if (moment2) train_list_parameters(&l, net, "moment2.", moment2);
    return l;
}

// Whether training can go on from here: parameters, optimizer state, gradients and the network's outputs are finite.
static inline int train_is_sound(train_run *r) {
    const train_net *net = r->net;
    const float *const arrays[] = {net->params, net->grads, net->moment1, net->moment2};
    size_t n;
    int sound = 1;
    for (int i = 0; i < 4; i++) sound = sound && (!arrays[i] || isfinite(r->norm(r->trainer, arrays[i])));
    float *out = r->outputs(r->trainer, &n);
    for (size_t i = 0; i < n; i++) sound = sound && isfinite(out[i]);
    free(out);
    return sound;
}

// Writes model.safetensors and then state.safetensors into a folder, each with the other's checksum.
static inline int train_write_checkpoint(train_run *r, char *err, size_t n) {
    const train_net *net = r->net;
    const char *log_dir = r->options->log_dir;
    char path[CHECKPOINT_PATH], sum[40];
    size_t size;
    train_saved s;
    memset(&s, 0, sizeof s);
    train_state_of(r, s.scalar);
    s.known = 1;
    s.total_steps = r->total_steps;
    s.data = r->data;
    memcpy(s.id, r->id, sizeof s.id);
    s.words = checkpoint_words(r->options->table, r->options->n_table, &size);
    if (!s.words || size >= INT_MAX) return log_error(err, n, "out of memory for the options");
    s.n_words = (int)size;
    float *params = train_host_copy(net->params, net->n_params), *stats = train_host_copy(net->stats, net->n_stats);
    float *moment1 = net->moment1 ? train_host_copy(net->moment1, net->n_params) : NULL;
    float *moment2 = net->moment2 ? train_host_copy(net->moment2, net->n_params) : NULL;
    train_list model = train_list_weights(net, params, stats, net->counts);
    s.model = safetensors_payload_checksum(model.tensors, (size_t)model.n);
    train_list state = train_list_state(net, &s, moment1, moment2);
    snprintf(sum, sizeof sum, "xxh64:%016llx", (unsigned long long)safetensors_payload_checksum(state.tensors, (size_t)state.n));
    const safetensors_pair more[] = {{"run_id", r->id}, {CHECKPOINT_STATE_KEY, sum}};
    checkpoint_path(path, log_dir, r->step, "/model.safetensors");
    int status = train_write_weights(net, &model, path, more, 2, err, n);
    checkpoint_path(path, log_dir, r->step, "/state.safetensors");
    if (!status) status = safetensors_write(path, state.tensors, (size_t)state.n, NULL, 0, err, n);
    train_list_free(&model);
    train_list_free(&state);
    free(params);
    free(stats);
    free(moment1);
    free(moment2);
    free(s.words);
    return status;
}

// Remembers that the checkpoint of this step is good.
static inline void train_know_good(train_run *r, const char *dir) {
    r->good[1] = r->good[0];
    r->good[0] = r->step;
    r->n_good = r->n_good < CHECKPOINT_KEPT ? r->n_good + 1 : CHECKPOINT_KEPT;
    snprintf(r->last_checkpoint, sizeof r->last_checkpoint, "%s", dir);
}

// Writes LOGDIR/checkpoint-STEP and removes all but the two newest complete ones, and those of later steps: they are damaged
// (--resume skipped them) or of an earlier run in this folder. Returns 0, or 1 after a message.
static inline int train_save_checkpoint(train_run *r) {
    const char *log_dir = r->options->log_dir;
    char dir[CHECKPOINT_PATH], err[2 * LOG_PATH];
    struct stat info;
    if (!train_is_sound(r)) return train_diverged(r, "the network", r->step);
    checkpoint_path(dir, log_dir, r->step, "");
    if (mkdir(dir, 0777) && errno != EEXIST) {
        log_errno(err, sizeof err, dir, "cannot make the folder");
        return train_fail(r, err);
    }
    if (lstat(dir, &info) || !S_ISDIR(info.st_mode)) {
        log_error(err, sizeof err, "%s: expected a folder, found something else", dir);
        return train_fail(r, err);
    }
    if (train_write_checkpoint(r, err, sizeof err)) return train_fail(r, err);
    train_know_good(r, dir);
    if (checkpoint_retain(log_dir, r->step, r->good, r->n_good, err, sizeof err)) return train_fail(r, err);
    return 0;
}

// Takes moments and weights of a checkpoint whose files are open and of this run. What does not fit in an intact file is damage in
// its header where the options are known to be the same (-1), else another network (1).
static inline int train_take_checkpoint(train_run *r, const safetensors_file *state, const safetensors_file *model,
                                        const train_saved *s, char *err, size_t n) {
    train_net *net = r->net;
    const int misfit = s->known && !r->options->resume_changes ? -1 : 1;
    float *moment1 = net->moment1 ? train_host_copy(net->moment1, net->n_params) : NULL;
    float *moment2 = net->moment2 ? train_host_copy(net->moment2, net->n_params) : NULL;
    train_list list = train_list_state(net, s, moment1, moment2);
    int status = train_read_list(state, &list, err, n) ? misfit : 0;
    if (!status && state->n_tensors != (size_t)list.n) {
        log_error(err, n, "%s: has %zu tensors, expected %d", state->path, state->n_tensors, list.n);
        status = misfit;
    }
    train_list_free(&list);
    if (!status && train_take_weights(net, model, err, n)) status = misfit;
    if (!status) {
        if (moment1) train_upload(net->moment1, moment1, net->n_params * sizeof(float));
        if (moment2) train_upload(net->moment2, moment2, net->n_params * sizeof(float));
    }
    free(moment1);
    free(moment2);
    return status;
}

// Loads one checkpoint. Returns 0; -1 when it is incomplete or damaged (err says why); 1 when it is of another run.
static inline int train_load_checkpoint(train_run *r, int64_t step, char *err, size_t n) {
    safetensors_file state, model;
    train_saved s;
    char dir[CHECKPOINT_PATH], path[CHECKPOINT_PATH];
    checkpoint_path(dir, r->options->resume, step, "");
    checkpoint_path(path, r->options->resume, step, "/model.safetensors");
    if (checkpoint_open_state(&state, r->options->resume, step, err, n)) return -1;
    if (safetensors_open(&model, path, err, n)) {
        safetensors_close(&state);
        return -1;
    }
    int status = train_read_saved(&state, &s, err, n);
    if (!status) status = checkpoint_check_pair(&model, &state, err, n);
    if (!status) status = train_compare_run(r, dir, &s, err, n);
    if (!status) status = train_take_checkpoint(r, &state, &model, &s, err, n);
    if (!status) {
        r->step = step;
        if (s.known) snprintf(r->id, sizeof r->id, "%.*s", CHECKPOINT_ID, s.id);
        train_know_good(r, dir);
        train_tell_differences(r, dir, &s);
    }
    free(s.words);
    safetensors_close(&state);
    safetensors_close(&model);
    return status;
}

// Continues from the newest complete checkpoint of --resume. Returns 0, or 1 after a message.
static inline int train_resume(train_run *r) {
    int64_t *steps;
    char dir[CHECKPOINT_PATH], err[2 * LOG_PATH];
    const int n = checkpoint_find(r->options->resume, &steps);
    int status = -1;
    for (int i = 0; i < n && status < 0; i++) {
        status = train_load_checkpoint(r, steps[i], err, sizeof err);
        checkpoint_path(dir, r->options->resume, steps[i], "");
        if (status >= 0) continue;
        message_print(r->program, "skipping an incomplete or damaged checkpoint: %s", err);
    }
    free(steps);
    if (status > 0) return train_fail(r, err);
    if (status < 0) {
        snprintf(err, sizeof err, "--resume: no complete checkpoint in %s", r->options->resume);
        return train_fail(r, err);
    }
    log_progress_line(&r->progress, "resumed from %s", dir);
    if (r->step == r->total_steps)
        log_progress_line(&r->progress, "nothing is left to train: all %lld steps are done (more: --steps or --epochs)",
                          (long long)r->step);
    checkpoint_sweep(r->options->resume);
    return 0;
}

// ------------------------------------------------------------------------------------------------------ loop, report

// Fills text with the rate of the last steps and the time that the others will take, for the progress line.
static inline void train_show_rate(const train_run *r, char *text, size_t size) {
    const double seconds = r->step_seconds / (double)(r->step - r->first_step);
    char rate[96] = "", left[LOG_DURATION];
    if (r->flops_per_sample > 0)
        snprintf(rate, sizeof rate, "  %.0f %s/s  %.0f GFLOP/s", r->batch * r->units_per_sample / seconds, r->unit,
                 1e-9 * r->batch * r->flops_per_sample / seconds);
    log_duration(left, seconds * (double)(r->total_steps - r->step));
    snprintf(text, size, "%.2f ms/step%s  %s left", 1e3 * seconds, rate, left);
}

// Says where an interrupted run can go on. Returns its exit status.
static inline int train_interrupted(train_run *r) {
    char text[LOG_PATH + 128];
    snprintf(text, sizeof text, "interrupted after step %lld%s%s", (long long)r->step,
             r->last_checkpoint[0] ? "; continue with --resume " : "", r->last_checkpoint[0] ? r->options->log_dir : "");
    train_fail(r, text);
    return log_interrupt_status();
}

// Trains to the last step. Returns the exit status: 0, 1 after a failure, 129, 130 or 143 when interrupted (after a checkpoint).
static inline int train_loop(train_run *r) {
    const train_options *o = r->options;
    const int64_t eval = train_every(r, o->eval_every), checkpoint = train_every(r, o->checkpoint_every);
    const int64_t rescale = o->rescale ? train_every(r, o->rescale_every) : 0;
    int64_t evaluated = -1, saved = r->step;
    char rate[192];
    r->mark = log_seconds();
    // At the start; and where a run that is resumed was interrupted in an evaluation.
    if (eval && r->step % eval == 0 && (r->step == 0 || o->resume) && r->csv.evaluated != r->step) {
        if (train_evaluate(r)) return 1;
        evaluated = r->step;
    }
    while (r->step < r->total_steps && !log_interrupted) {
        if (rescale && r->step > 0 && r->step % rescale == 0) {
            if (train_fetch_losses(r) || train_rescale(r, 0)) return 1;
        }
        r->train_step(r->trainer);
        if (r->stopped) break;  // nothing was updated
        r->step++;
        const int due = log_progress_due(&r->progress);
        if ((due || r->step - r->fetched == TRAIN_LOSS_RING) && train_fetch_losses(r)) return 1;
        if (due) {
            train_show_rate(r, rate, sizeof rate);
            log_progress_update(&r->progress, "epoch %.2f of %.0f  step %lld  loss %.4f  %s",
                                (double)r->step / (double)r->steps_per_epoch, (double)r->total_steps / (double)r->steps_per_epoch,
                                (long long)r->step, r->loss, rate);
        }
        if (eval && r->step % eval == 0) {
            if (train_fetch_losses(r) || train_evaluate(r)) return 1;
            evaluated = r->step;
        }
        if (checkpoint && r->step % checkpoint == 0 && o->log_dir) {
            if (train_fetch_losses(r) || train_save_checkpoint(r)) return 1;
            saved = r->step;
            r->mark = log_seconds();
        }
    }
    if (train_fetch_losses(r)) return 1;
    if (!log_interrupted && evaluated != r->step && train_evaluate(r)) return 1;
    if (o->log_dir && saved != r->step && train_save_checkpoint(r)) return 1;
    return log_interrupted ? train_interrupted(r) : 0;
}

// The report's part on whose run it is: id, command line, every option (null: not set).
static inline void train_report_run(log_json *j, const train_run *r) {
    const train_options *o = r->options;
    char id[32], text[CLI_TEXT], *command = train_command(o);
    snprintf(id, sizeof id, "%016llx", (unsigned long long)r->data);
    log_json_string(j, "run", r->id);
    log_json_string(j, "data_fingerprint", id);
    log_json_string(j, "command", command);
    log_json_begin(j, "options");
    for (int i = 0; i < o->n_table; i++) {
        const cli_option *option = &o->table[i];
        char key[64];
        if (option->kind == CLI_KIND_GROUP || option->kind == CLI_KIND_REST) continue;
        const char *value = cli_text(option, text);
        snprintf(key, sizeof key, "--%s", option->name);
        if (!cli_takes_value(option)) log_json_bool(j, key, value != NULL);
        else if (value && option->kind == CLI_KIND_DOUBLE) log_json_number(j, key, *(const double *)option->value);
        else if (value && option->kind == CLI_KIND_INT) log_json_int(j, key, *(const int *)option->value);
        else if (value && option->kind == CLI_KIND_INT64) log_json_int(j, key, *(const int64_t *)option->value);
        else log_json_string(j, key, value);
    }
    log_json_end(j);
    free(command);
}

// The JSON report: what the rescaling did, how training went, what it ran on. Returns 0, or 1 after a message.
static inline int train_write_report(train_run *r) {
    const rescale_report *first = &r->first_rescaling;
    const int rescaled = first->units > 0;
    static const char *const method[] = {"none", "pathcond", "enorm"}, *const solver[] = {"newton", "sweeps", "unit-sweeps"};
    const double seconds = log_seconds() - r->started;
    char err[LOG_PATH + 256], device[256], rate[64];
    log_json j;
    if (log_json_open(&j, r->options->report, err, sizeof err)) return train_fail(r, err);
    log_json_begin(&j, "rescale");
    log_json_string(&j, "method", method[r->options->rescale]);
    log_json_string(&j, "solver", solver[r->options->rescale_solver]);
    log_json_number(&j, "objective_before", rescaled ? first->objective_before : LOG_NA);
    log_json_number(&j, "objective_after", rescaled ? first->objective_after : LOG_NA);
    log_json_number(&j, "trace_ratio", rescaled && r->options->rescale == RESCALE_BY_PATHCOND ? first->trace_ratio : LOG_NA);
    log_json_number(&j, "grad_inf", rescaled ? first->grad_inf : LOG_NA);
    log_json_number(&j, "grad_tolerance", rescaled ? first->grad_tolerance : LOG_NA);
    log_json_int(&j, "iterations", first->iterations);
    log_json_int(&j, "sweeps", first->sweeps);
    log_json_number(&j, "seconds_diag_g", first->seconds_diag_g);
    log_json_number(&j, "seconds_solve", first->seconds_solve);
    log_json_number(&j, "seconds_apply", first->seconds_apply);
    log_json_int(&j, "rescalings", r->rescalings);
    log_json_number(&j, "seconds", r->rescale_seconds);
    log_json_number(&j, "max_abs_log_lambda", first->max_abs_log_lambda);
    log_json_int(&j, "pinned_units", first->pinned_units);
    log_json_int(&j, "units", first->units);
    log_json_int(&j, "parameters", first->parameters);
    log_json_number(&j, "output_max_rel_diff", rescaled ? r->output_moved : LOG_NA);
    log_json_end(&j);
    log_json_begin(&j, "train");
    log_json_int(&j, "steps", r->step);
    log_json_number(&j, "final_train_loss", r->train_loss);
    log_json_number(&j, "final_test_loss", r->test_loss);
    log_json_number(&j, "final_test_accuracy", r->test_accuracy);
    log_json_number(&j, "seconds", seconds);
    log_json_number(&j, "step_seconds", r->step_seconds);
    const double samples = (double)(r->step - r->first_step) * (double)r->samples / (double)r->steps_per_epoch;
    log_json_number(&j, "samples_per_second", r->step_seconds > 0 ? samples / r->step_seconds : LOG_NA);
    snprintf(rate, sizeof rate, "%s_per_second", r->unit);
    if (strcmp(r->unit, "samples")) log_json_number(&j, rate, r->step_seconds > 0 ? samples * r->units_per_sample / r->step_seconds : LOG_NA);
    log_json_end(&j);
    log_json_int(&j, "peak_memory_mib", log_peak_mib());
    device_describe(device, sizeof device);
    log_json_string(&j, "device", device);
    if (r->backend) log_json_string(&j, "gemm", r->backend);
    log_json_int(&j, "threads", device_threads());
    log_json_string(&j, "version", r->version);
    train_report_run(&j, r);
    return log_json_close(&j, err, sizeof err) ? train_fail(r, err) : 0;
}

// Takes the log folder, and tries what will be written at the end of the run, before it begins. Returns 0, or 1 after a message.
static inline int train_take_outputs(train_run *r) {
    const train_options *o = r->options;
    char err[2 * LOG_PATH];
    const int missing = o->resume && !log_holds_run(o->resume);  // train_resume says so
    int purpose = o->overwrite ? LOG_OVERWRITE : LOG_NEW;
    if (o->resume) purpose = LOG_RESUME;
    if (o->log_dir && !missing) {
        r->lock = log_claim(o->log_dir, purpose, err, sizeof err);
        if (r->lock < 0) return train_fail(r, err);
    }
    if (o->save && train_try_weights(o->save, err, sizeof err)) return train_fail(r, err);
    if (o->report && log_file_try(o->report, err, sizeof err)) return train_fail(r, err);
    return 0;
}

// The weights and the log that a run begins with. Returns 0, or 1 after a message.
static inline int train_begin(train_run *r) {
    const train_options *o = r->options;
    char err[2 * LOG_PATH];
    if (o->resume && train_resume(r)) return 1;
    if (o->load && train_load_weights(r->net, o->load, err, sizeof err)) return train_fail(r, err);
    if (!o->resume && o->rescale && train_rescale(r, 1)) return 1;
    r->first_step = r->step;
    r->fetched = r->step;
    if (!r->id[0]) checkpoint_run_id(r->id);
    if (o->overwrite) checkpoint_sweep(o->log_dir);
    if (o->overwrite && log_remove_run(o->log_dir, err, sizeof err)) return train_fail(r, err);
    if (o->log_dir && log_open(&r->csv, o->log_dir, o->resume ? r->step : -1, err, sizeof err)) return train_fail(r, err);
    return 0;
}

// The whole run of a model that is built, and initialised unless --resume is set: resumes, or loads and rescales; trains; saves
// (also after an interruption); reports. Returns the exit status of the program. What the trainer allocated stays.
static inline int train_execute(train_run *r) {
    const train_options *o = r->options;
    char err[2 * LOG_PATH];
    int status = train_take_outputs(r);
    if (!status) status = train_begin(r);
    if (!status) status = train_loop(r);
    if ((!status || (log_interrupted && status > 1)) && o->save && train_save_weights(r->net, o->save, err, sizeof err))
        status = train_fail(r, err);
    if (!status && o->report) status = train_write_report(r);
    if (r->csv.file.f && log_close(&r->csv, err, sizeof err) && !status) status = train_fail(r, err);
    if (r->csv.failed && !status) status = 1;  // rows are missing; it was said when it happened
    if (r->lock >= 0) close(r->lock);
    r->lock = -1;
    return status;
}
