// run.h -- one training run: its length, its losses, its evaluations and rescalings, and what it says of them.
//
//     train_run, train_hooks                    the run, and what only a trainer can do
//     train_run_init, train_set_length          beginning
//     train_batch, train_pause                  for the trainer's step and its long loops
//     train_fetch_losses, train_evaluate, train_rescale
//     train_rescale_options, train_relative_difference
//     train_fail, train_diverged                messages
//
// Functions of a run print `program: message` on stderr and return 1, the exit status of a failure. A usage error
// exits 2. C11, C++17, CUDA. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rescale.cuh"
#include "analysis.h"
#include "checkpoint.h"
#include "cli.h"
#include "log.h"
#include "message.h"
#include "optimizer.h"
#include "options.h"
#include "weights.h"

// ----------------------------------------------------------------------------------------------------------- rescaling

// 1: first powers, 2: squares.
static inline int train_rescale_power(const train_options *o) {
    if (o->rescale_power == POWER_AUTO) return o->optimizer == OPTIMIZER_ADAMW ? 1 : 2;
    return o->rescale_power == POWER_ONE ? 1 : 2;
}

// The options of rescale.cuh that the command line sets.
static inline rescale_options train_rescale_options(const train_options *o) {
    rescale_options r = rescale_default_options();
    r.method = o->rescale == RESCALE_BY_ENORM ? RESCALE_ENORM : RESCALE_PATHCOND;
    r.solver = o->rescale_solver;
    r.sweeps = o->rescale_sweeps;
    r.max_log = o->rescale_max_log;
    r.pow2 = o->rescale_pow2;
    r.max_trace = o->rescale_max_trace;
    r.strength = o->rescale_strength;
    r.within = o->rescale_within;
    r.level = o->rescale_level == 1 ? RESCALE_LAYER : RESCALE_UNIT;
    r.power = train_rescale_power(o);
    r.on_device = DEVICE_IS_GPU;
    return r;
}

// Leaves biases, and with them the paths that begin at one, out of the criterion if the command line says so.
static inline void train_count_paths(const train_options *o, rescale_tensor *t, int n) {
    for (int i = 0; i < n; i++)
        if (o->rescale_paths && t[i].role == RESCALE_BIAS) t[i].flags |= RESCALE_UNCOUNTED;
}

// Largest |after - before| relative to the largest |before|, n outputs in host memory; infinity where one of them is
// NaN.
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

// ----------------------------------------------------------------------------------------------------------------- run

enum { TRAIN_LOSS_RING = 64 };  // step losses kept beside the network before they are fetched

// What only a trainer can do. Each is called once per step or less, with the trainer as it is.
typedef struct train_hooks {
    // Mean loss over the training set (test = 0) or the test set (1), and the accuracy as a fraction, or LOG_NA. Asks
    // train_pause for every batch.
    void (*evaluate)(void *trainer, int test, double *loss, double *accuracy);
    // Rescales the network; *moved: how far its outputs moved, as train_relative_difference; moved may be NULL. 0, or
    // -1 with report->message.
    int (*rescale)(void *trainer, rescale_report *report, double *moved);
    // Outputs [n] on fixed inputs, in evaluation mode, in host memory that is freed here: to see whether they are
    // finite.
    float *(*outputs)(void *trainer, size_t *n);
    // Euclidean norm of params, grads, moment1 or moment2.
    double (*norm)(void *trainer, const float *array);
} train_hooks;

// One training run.
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
    // [TRAIN_LOSS_RING] beside the network's arrays: mean loss of step s in train_loss_slot
    const float *step_loss;
    const char *backend;         // of matrix products, for the report; or NULL
    // what throughput counts: "samples", or "tokens" with units_per_sample = context length
    const char *unit;
    double units_per_sample;     // 1
    double flops_per_sample;     // of a training step, for GFLOP/s in the progress line; 0: no throughput there
    // how lines call the second data set: "test", or "val"; log.csv and the report say test
    const char *test_name;
    uint64_t data;               // fingerprint of training and test data; 0: unknown
    void *trainer;               // for the hooks
    train_hooks hooks;
    // The loop's own
    int status;                  // exit status so far: 0, or 1 after a failure
    int in_step;                 // train_next has returned 1, and the trainer makes a step
    int64_t eval_every, checkpoint_every, rescale_every;  // steps; 0: never
    int64_t evaluated, saved;    // steps of the last evaluation and checkpoint of this process, or -1
    // The run's own
    int64_t step;                // steps done
    int64_t first_step;          // where this process started (resume)
    int64_t fetched;             // steps whose loss has been fetched and logged
    double step_seconds, mark;   // time spent in steps; clock at the last mark
    // of the first step fetched here; 0: not yet. -1: it has been said that the loss exploded
    double first_loss;
    double loss, train_loss, test_loss, test_accuracy;
    rescale_report first_rescaling;  // right after initialisation
    analysis_rows analysis;      // of it, where somebody asked: train_wants_analysis
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
    r->program = program;
    r->version = version;
    r->options = o;
    r->unit = "samples";
    r->units_per_sample = 1;
    r->test_name = "test";
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
    *epoch = r->step / r->steps_per_epoch;
    *first = (int)start;
    return (int)(left < r->batch ? left : r->batch);
}

// Samples in the batch of the step to come.
static inline int train_rows(const train_run *r) {
    int64_t epoch;
    int first;
    return train_batch(r, &epoch, &first);
}

// Where in step_loss the step to come leaves its loss.
static inline int train_loss_slot(const train_run *r) { return (int)(r->step % TRAIN_LOSS_RING); }

// The learning rate of the step to come.
static inline double train_rate(const train_run *r) {
    return train_learning_rate(r->options, r->step, r->total_steps);
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

// What else than a smaller learning rate may help: in dev/paper, rescaling fails where the baseline trains only beyond
// |log lambda| = 1.
static inline void train_hint(const train_run *r, char *hint, size_t size) {
    *hint = '\0';
    if (r->first_rescaling.max_abs_log_lambda > 1.001)
        snprintf(hint, size, ", or --rescale-max-log 1 (rescaling went to |log lambda| = %.2g)",
                 r->first_rescaling.max_abs_log_lambda);
}

// Warns once when the loss of a step is ten times that of the first: on two moons (dev/paper, explosions) 75 runs that
// learned stayed below six times, and of 15 that did not 14 exceeded 36 times. Trained weights have small and scattered
// losses: not watched.
static inline void train_watch(train_run *r, int64_t step) {
    char hint[128];
    if (r->options->load || r->options->resume) return;
    if (r->first_loss == 0) r->first_loss = r->loss;
    if (r->first_loss < 0 || r->loss <= 10 * r->first_loss) return;
    train_hint(r, hint, sizeof hint);
    if (!r->options->quiet)
        message_print(
            r->program,
            "warning: loss %.3g at step %lld, %.2g times the first: few runs recover, try a smaller --lr than %g%s",
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
        snprintf(text, sizeof text,
                 "%s is not finite at step %lld: training diverged, try a smaller --lr than %g%s%s%s", what,
                 (long long)step, r->options->lr, hint, r->last_checkpoint[0] ? "; last good checkpoint: " : "",
                 r->last_checkpoint);
    return train_fail(r, text);
}

// Number of steps an option like 2epochs or 100steps stands for; 0: never. More steps than can be counted are as many
// as can.
static inline int64_t train_every(const train_run *r, cli_every e) {
    if (e.unit != CLI_EPOCHS) return e.n;
    return e.n > INT64_MAX / r->steps_per_epoch ? INT64_MAX : e.n * r->steps_per_epoch;
}

// For long loops (over the batches of an evaluation, the passes of one step, the tokens of a sample): shows that `what`
// has come to done of total, when an update is due. Returns 1 when the run was interrupted: the caller then leaves its
// loop, and what the loop would have given is dropped.
static inline int train_pause(train_run *r, const char *what, int64_t done, int64_t total) {
    if (r->progress.out && log_progress_due(&r->progress))
        log_progress_update(&r->progress, "step %lld  %s: %.0f%%", (long long)r->step, what,
                            100.0 * (double)done / (double)total);
    if (log_interrupted) r->stopped = 1;
    return r->stopped;
}

// Fetches the losses of the steps since the last call, logs them, and stops the clock of the steps. Returns 0; 1 when
// the loss is no longer finite.
static inline int train_fetch_losses(train_run *r) {
    float ring[TRAIN_LOSS_RING];
    char err[LOG_PATH + 256];
    const int64_t n = r->step - r->fetched;
    if (n == 0) return 0;
    train_download(ring, r->step_loss, sizeof ring);
    const double now = log_seconds(), seconds = (now - r->mark) / (double)n;
    const double norm = r->csv.file.f ? r->hooks.norm(r->trainer, r->net->grads) : 0;
    r->step_seconds += now - r->mark;
    for (; r->fetched < r->step; r->fetched++) {
        const int64_t s = r->fetched;
        r->loss = ring[s % TRAIN_LOSS_RING];
        if (!isfinite(r->loss)) return train_diverged(r, "the loss", s + 1);
        train_watch(r, s + 1);
        log_row row = log_row_make(s + 1, (double)(s + 1) / (double)r->steps_per_epoch, "step", r->loss);
        row.lr = train_learning_rate(r->options, s, r->total_steps);
        row.ms = 1e3 * seconds;
        row.samples_per_s = r->batch * r->units_per_sample / seconds;
        if (s + 1 == r->step) row.grad_norm = norm;
        if (r->csv.file.f && log_write(&r->csv, &row, err, sizeof err)) train_fail(r, err);
    }
    r->mark = log_seconds();
    return 0;
}

// Evaluates on both sets, logs two rows (unless a resumed log has them) and prints a line. Returns 0, or 1 when the
// training loss is not finite. Interrupted, it sets stopped and tells nothing: a resumed run evaluates anew.
static inline int train_evaluate(train_run *r) {
    char err[LOG_PATH + 256];
    double loss[2] = {LOG_NA, LOG_NA}, accuracy[2] = {LOG_NA, LOG_NA};
    const double epoch = (double)r->step / (double)r->steps_per_epoch;
    for (int k = 0; k < 2 && !r->stopped; k++) r->hooks.evaluate(r->trainer, k, &loss[k], &accuracy[k]);
    if (r->stopped) return 0;
    r->train_loss = loss[0];
    r->test_loss = loss[1];
    r->test_accuracy = accuracy[1];
    for (int k = 0; k < 2 && r->csv.file.f && r->csv.evaluated != r->step; k++) {
        log_row row = log_row_make(r->step, epoch, k ? "test" : "train", loss[k]);
        row.accuracy = accuracy[k];
        row.lr = train_learning_rate(r->options, r->step, r->total_steps);
        if (log_write(&r->csv, &row, err, sizeof err)) train_fail(r, err);
    }
    if (r->test_accuracy == LOG_NA)
        log_progress_line(&r->progress, "epoch %6.2f  train loss %.6f  %s loss %.6f", epoch, r->train_loss,
                          r->test_name, r->test_loss);
    else
        log_progress_line(&r->progress, "epoch %6.2f  train loss %.4f  %s loss %.4f  %s accuracy %.2f%%", epoch,
                          r->train_loss, r->test_name, r->test_loss, r->test_name, 100 * r->test_accuracy);
    r->mark = log_seconds();
    return isfinite(r->train_loss) ? 0 : train_diverged(r, "the training loss", r->step);
}

// Whether the first rescaling is analysed: for the report, or for the table of a run without steps.
static inline int train_wants_analysis(const train_run *r) {
    return r->options->report || (r->total_steps == 0 && !r->options->quiet);
}

// Prints what a rescaling did, on one line.
static inline void train_show_rescaling(train_run *r, const rescale_report *report, int analysed, double moved) {
    char diag[LOG_DURATION], solve[LOG_DURATION], apply[LOG_DURATION], trace[48] = "", spread[64] = "";
    if (report->trace_ratio > 0) snprintf(trace, sizeof trace, ", trace of G times %.2f", report->trace_ratio);
    if (analysed && r->analysis.spread_known)
        snprintf(spread, sizeof spread, ", spread %.2f -> %.2f", report->spread_before, report->spread_after);
    log_progress_line(
        &r->progress,
        "rescaled by %s: objective %.6g -> %.6g%s, max gradient %.1e after %d Newton steps and %d sweeps; diag(G) %s, "
        "solve %s, apply %s; max |log lambda| %.2f%s, %d of %d units pinned; outputs moved by %.1e",
        r->options->rescale == RESCALE_BY_ENORM ? "ENorm" : "PathCond", report->objective_before,
        report->objective_after, spread, report->grad_inf, report->iterations, report->sweeps,
        log_duration(diag, report->seconds_diag_g), log_duration(solve, report->seconds_solve),
        log_duration(apply, report->seconds_apply), report->max_abs_log_lambda, trace, report->pinned_units,
        report->units, moved);
}

// Rescales now and prints what it did; the report tells about the first one, right after initialisation. Returns 0, or
// 1 after a message.
static inline int train_rescale(train_run *r, int first) {
    rescale_report report;
    // measured where it is told: four passes, which a quiet run that rescales at every step would notice
    double moved = 0;
    r->analysis.net = r->net;
    r->net->analysis = first && train_wants_analysis(r) ? &r->analysis : NULL;
    const int failed = r->hooks.rescale(r->trainer, &report, first || !r->options->quiet ? &moved : NULL);
    r->net->analysis = NULL;
    if (failed) {
        const int diverged = !first &&
                             (report.status == RESCALE_ERROR_NON_FINITE || report.status == RESCALE_ERROR_RANGE);
        const int extreme = report.status == RESCALE_ERROR_RANGE || report.status == RESCALE_ERROR_CONVERGENCE;
        char text[sizeof report.message + 64];
        snprintf(text, sizeof text, "%s%s", report.message, extreme ? "; --rescale-max-log X bounds |log lambda|" : "");
        return diverged ? train_diverged(r, "a weight, or diag(G) of a rescaling,", r->step) : train_fail(r, text);
    }
    if (report.message[0] && first) message_print(r->program, "warning: %s", report.message);
    if (first && report.max_abs_log_lambda > 20)  // exp(20) = 5e8
        message_print(r->program, "warning: rescaling goes to |log lambda| = %.3g, which training may not survive; "
                      "--rescale-max-log X bounds it", report.max_abs_log_lambda);
    if (first) {
        r->first_rescaling = report;
        r->output_moved = moved;
    }
    r->rescalings++;
    r->rescale_seconds += report.seconds_diag_g + report.seconds_solve + report.seconds_apply;
    train_show_rescaling(r, &report, first, moved);
    if (first && r->total_steps == 0 && train_wants_analysis(r))
        analysis_print(&r->analysis, &report, r->options->rescale == RESCALE_BY_ENORM, &r->progress);
    r->mark = log_seconds();
    return 0;
}
