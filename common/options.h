// options.h -- the part of the command line that all trainers have, and the learning rate that follows from it.
//
//     train_options, train_default_options      the options and their defaults
//     TRAIN_DATA_ROWS, ..., TRAIN_OUTPUT_ROWS   their rows for the table of cli.h
//     train_check_options                       options that exclude each other
//     train_learning_rate                       constant, cosine, one-cycle
//
// C11, C++17, CUDA. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
#pragma once
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "cli.h"
#include "optimizer.h"  // OPTIMIZER_SGD, ...
#include "version.h"
#include "weights.h"    // train_alloc

// ------------------------------------------------------------------------------------------------------------- options

enum { RESCALE_OFF, RESCALE_BY_PATHCOND, RESCALE_BY_ENORM };
// Whose diagonal g is: of the path-lifting's Gram matrix; of the tangent kernel on data; of the Fisher matrix.
enum { KERNEL_PATHS, KERNEL_DATA, KERNEL_FISHER };
enum { POWER_TWO, POWER_ONE, POWER_AUTO };
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
    int rescale_kernel, rescale_power, rescale_level, rescale_samples;
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
    // "layers,norm": the trainer's own options that make the function, the data or the loss
    const char *fixed;
    // [n_table] copy of the option table, by train_check_options; NULL: options are unknown
    cli_option *table;
    int n_table, argc;
    char **argv;                 // [argc] the command line
    char *stored;                // words of the run that --resume continues, where the strings of its options live
} train_options;

// The defaults; PyTorch's conventions where it has any. A trainer changes what its nets need (data, lr, ...).
static inline train_options train_default_options(void) {
    train_options o;
    memset(&o, 0, sizeof o);
    o.data = "fashion-mnist";
    o.data_dir = "data";
    o.init_scale = 1;
    o.rescale = RESCALE_BY_PATHCOND;
    o.rescale_sweeps = 10;
    o.rescale_strength = 1;
    o.rescale_samples = 128;
    o.lr = 0.05;
    o.momentum = 0.9;
    o.epochs = 10;
    o.steps = -1;
    o.batch_size = 128;
    o.seed = 1;
    o.eval_every.n = 1;
    o.eval_every.unit = CLI_EPOCHS;
    o.checkpoint_every.n = 1;
    o.checkpoint_every.unit = CLI_EPOCHS;
    return o;
}

// Rows of a trainer's option table, in the order of --help; o is a train_options *. Groups begin with their CLI_GROUP,
// and a trainer puts its own rows between them. names: the data sets it knows.
#define TRAIN_DATA_ROWS(o, names)                                                                                      \
    CLI_GROUP("Data"), CLI_STRING("data", &(o)->data, "NAME|DIR", names),                                              \
        CLI_STRING("data-dir", &(o)->data_dir, "DIR", "where data/get_data.sh puts the named sets"),                   \
        CLI_INT("limit", &(o)->limit, "N", 0, INT_MAX, "use only the first N training samples (0: all)")
#define TRAIN_INIT_SCALE_ROW(o) /* the last of group Model */                                                          \
    CLI_DOUBLE("init-scale", &(o)->init_scale, "X", 0, CLI_NO_MAX, CLI_ABOVE_MIN,                                      \
               "multiplies the initial weights and biases")
#define TRAIN_RESCALING_ROWS(o)                                                                                        \
    CLI_GROUP("Rescaling"),                                                                                            \
        CLI_CHOICE("rescale", &(o)->rescale, "none|pathcond|enorm", "method, applied after initialisation"),           \
        CLI_CHOICE("rescale-kernel", &(o)->rescale_kernel, "paths|data|fisher",                                        \
                   "of PathCond: diag(G) over paths, or of the tangent kernel or Fisher matrix on samples; deep or "   \
                   "badly scaled nets: fisher with --rescale-level layer"),                                            \
        CLI_INT("rescale-samples", &(o)->rescale_samples, "N", 1, INT_MAX, "training samples of --rescale-kernel"),    \
        CLI_CHOICE("rescale-power", &(o)->rescale_power, "2|1|auto",                                                   \
                   "of PathCond: squares or first powers; auto: 1 with AdamW, else 2"),                                \
        CLI_CHOICE("rescale-level", &(o)->rescale_level, "unit|layer",                                                 \
                   "of PathCond: a factor for each unit, or one for a layer"),                                         \
        CLI_CHOICE("rescale-solver", &(o)->rescale_solver, "newton|sweeps|unit-sweeps",                                \
                   "to the optimum; layer by layer; unit by unit, as published"),                                      \
        CLI_INT("rescale-sweeps", &(o)->rescale_sweeps, "N", 0, 1000000, "how many of --rescale-solver's sweeps"),     \
        CLI_DOUBLE("rescale-max-log", &(o)->rescale_max_log, "X", 0, CLI_NO_MAX, 0,                                    \
                   "bound on |log lambda| (0: none)"),                                                                 \
        CLI_DOUBLE("rescale-max-trace", &(o)->rescale_max_trace, "X", 0, CLI_NO_MAX, 0,                                \
                   "bound on the growth of the sum of diag(G), 1 or more (0: none)"),                                  \
        CLI_DOUBLE("rescale-strength", &(o)->rescale_strength, "X", 0, 1, 0,                                           \
                   "the part of log lambda that is applied"),                                                          \
        CLI_FLAG("rescale-within", &(o)->rescale_within, "only differences within a layer: the mean log lambda is 0"), \
        CLI_CHOICE("rescale-paths", &(o)->rescale_paths, "all|weights",                                                \
                   "of PathCond; weights: none that a bias begins"),                                                   \
        CLI_EVERY("rescale-every", &(o)->rescale_every, "rescale again during training (0: only at init)"),            \
        CLI_FLAG("rescale-pow2", &(o)->rescale_pow2, "powers of two only: the function stays the same bit for bit")
#define TRAIN_OPTIMIZER_ROWS(o)                                                                                        \
    CLI_GROUP("Training"), CLI_CHOICE("optimizer", &(o)->optimizer, "sgd|momentum|adamw",                              \
              "as torch.optim.SGD and AdamW"),                                                                         \
        CLI_DOUBLE("lr", &(o)->lr, "X", 0, CLI_NO_MAX, CLI_ABOVE_MIN, "learning rate"),                                \
        CLI_DOUBLE("momentum", &(o)->momentum, "X", 0, 1, CLI_BELOW_MAX, "of --optimizer momentum"),                   \
        CLI_DOUBLE("weight-decay", &(o)->weight_decay, "X", 0, CLI_NO_MAX, 0,                                          \
                   "on every parameter; AdamW's is decoupled"),                                                        \
        CLI_CHOICE("schedule", &(o)->schedule, "constant|cosine|one-cycle",                                            \
                   "of the learning rate; cosine ends at zero; one-cycle is PyTorch's OneCycleLR(max_lr=LR, "          \
                   "cycle_momentum=False)"),                                                                           \
        CLI_INT("warmup", &(o)->warmup, "N", 0, INT_MAX, "steps of linear warm-up; one-cycle has its own")
#define TRAIN_LENGTH_ROWS(o)                                                                                           \
    CLI_INT("epochs", &(o)->epochs, "N", 0, 1000000, "passes over the training set"),                                  \
        CLI_INT("steps", &(o)->steps, "N", 0, INT_MAX,                                                                 \
                "stop after N steps instead (0: initialise, rescale, save, stop)")
#define TRAIN_SAMPLING_ROWS(o)                                                                                         \
    CLI_INT("batch-size", &(o)->batch_size, "N", 0, INT_MAX, "samples per step (0: the whole training set)"),          \
        CLI_INT64("seed", &(o)->seed, "N", 0, 9007199254740992.0, "of initial weights and sample order"),              \
        CLI_CHOICE("shuffle", &(o)->shuffle, "epoch|none", "a new order of the samples every epoch, or as stored")
#define TRAIN_PRECISION_ROW(o)                                                                                         \
    CLI_CHOICE("precision", &(o)->precision, "fp32|tf32|bf16", "of matrix products (tf32 and bf16 need a GPU)")
#define TRAIN_OUTPUT_ROWS(o)                                                                                           \
    CLI_GROUP("Output"), CLI_EVERY("eval-every", &(o)->eval_every,                                                     \
              "evaluate on training and test set (0: only at the end)"),                                               \
        CLI_STRING("load", &(o)->load, "FILE", "initial weights, safetensors with PyTorch's names"),                   \
        CLI_STRING("save", &(o)->save, "FILE", "write the final weights there"),                                       \
        CLI_STRING("log-dir", &(o)->log_dir, "DIR",                                                                    \
                   "write log.csv and checkpoints there, in a folder of this run alone"),                              \
        CLI_FLAG("overwrite", &(o)->overwrite, "replace the run that --log-dir holds"),                                \
        CLI_EVERY("checkpoint-every", &(o)->checkpoint_every, "checkpoints in --log-dir (0: only at the end)"),        \
        CLI_STRING("resume", &(o)->resume, "DIR", "continue the run whose checkpoints are in DIR, with its options"),  \
        CLI_STRING("resume-changes", &(o)->resume_changes, "LIST",                                                     \
                   "options that may differ from that run's: steps,batch-size"),                                       \
        CLI_STRING("report", &(o)->report, "FILE", "write a JSON report"),                                             \
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
            cli_usage_error(program, "--resume-changes: expected names of options like steps,batch-size, got '%s'",
                            shown);
        p = p[length] ? p + length + 1 : NULL;
    }
}

// What remains after the command line is parsed: steps = -1 where --steps was not given, options that exclude each
// other (a usage error ends the program), log_dir = resume, and a copy of the table.
static inline void train_check_options(const char *program, train_options *o, const cli_option *table, int n) {
    if (!cli_given(table, n, "steps")) o->steps = -1;
    if (o->resume && o->load) cli_usage_error(program, "--resume and --load exclude each other");
    if (o->resume && o->log_dir && strcmp(o->resume, o->log_dir))
        cli_usage_error(program, "--log-dir must be the folder of --resume, or left out");
    if (o->overwrite && o->resume) cli_usage_error(program, "--overwrite and --resume exclude each other");
    if (o->overwrite && !o->log_dir) cli_usage_error(program, "--overwrite needs --log-dir");
    if (o->schedule == SCHEDULE_ONE_CYCLE && o->warmup)
        cli_usage_error(program, "--warmup and --schedule one-cycle exclude each other: one-cycle warms up by itself");
    if (o->rescale_max_trace != 0 && o->rescale_max_trace < 1)
        cli_usage_error(program, "--rescale-max-trace: expected 0, or 1 and more");
    if (o->rescale_max_trace != 0 && (o->rescale == RESCALE_BY_ENORM || o->rescale_solver))
        cli_usage_error(program, "--rescale-max-trace needs --rescale pathcond and --rescale-solver newton");
    if (o->rescale_within && (o->rescale_max_trace != 0 || o->rescale_max_log != 0))
        cli_usage_error(program, "--rescale-within excludes --rescale-max-log and --rescale-max-trace");
    if (o->rescale == RESCALE_BY_ENORM && (o->rescale_kernel || o->rescale_power || o->rescale_level))
        cli_usage_error(program, "--rescale-kernel, --rescale-power and --rescale-level need --rescale pathcond");
    if (o->rescale_level && (o->rescale_solver == RESCALE_UNIT_SWEEPS || o->rescale_within))
        cli_usage_error(program, "--rescale-level layer excludes --rescale-solver unit-sweeps and --rescale-within");
    if (o->rescale_kernel && o->rescale_paths)
        cli_usage_error(program, "--rescale-paths weights needs --rescale-kernel paths");
    if (o->resume_changes && !o->resume) cli_usage_error(program, "--resume-changes needs --resume");
    train_check_changes(program, o->resume_changes, table, n);
    if (o->resume) o->log_dir = o->resume;
    o->table = (cli_option *)train_alloc(NULL, (size_t)n, sizeof *table);
    o->n_table = n;
    memcpy(o->table, table, (size_t)n * sizeof *table);
}

// ------------------------------------------------------------------------------------------------------------ schedule

// Learning rate of a step (from 0). constant and cosine: linear warm-up over `warmup` steps, then lr, or a cosine from
// lr to zero at total_steps. one-cycle: torch.optim.lr_scheduler.OneCycleLR(max_lr = lr, total_steps) with its
// defaults: a cosine from lr / 25 up to lr over the first 30% of the steps, then a cosine down to lr / 250000 in the
// last one; but momentum is left alone, as with cycle_momentum = False.
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
