// train.h -- the training loop around a trainer's step: begin, next, end.
//
// A trainer, in outline:
//     typedef struct config { train_options train; int depth; } config;   // its own options beside the shared ones
//     typedef struct trainer { train_run run; model m; ... } trainer;     // model has a train_net: its named tensors
//
//     int run(const config *c) {
//         train_run_init(&t.run, "train_x", VERSION, &c->train);
//         ... load the data, build the model, describe it: t.run.net = ..., t.run.hooks = ...
//         train_begin(&t.run);                      // --resume, or --load and rescale
//         while (train_next(&t.run)) {              // logs, evaluates, checkpoints, rescales when due
//             const int rows = next_batch(&t);
//             forward(&t.m, rows, MODE_TRAIN);
//             loss_forward_backward(&t.m, rows, ...);
//             backward(&t.m, rows, MODE_TRAIN);
//             update(&t);
//         }
//         return train_end(&t.run);                 // last evaluation, checkpoint, weights, report
//     }
//
// Below it, each by itself: options.h (the command line), weights.h (tensors and their files), run.h (losses,
// evaluation, rescaling), checkpoint.h and resume.h. C11, C++17, CUDA. POSIX. C programs compile with -D_GNU_SOURCE (or
// -std=gnu11).
#pragma once
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "checkpoint.h"
#include "cuda_common.h"
#include "log.h"
#include "options.h"
#include "resume.h"
#include "run.h"
#include "weights.h"

// ----------------------------------------------------------------------------------------------------- what is written

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
             r->last_checkpoint[0] ? "; continue with --resume " : "",
             r->last_checkpoint[0] ? r->options->log_dir : "");
    train_fail(r, text);
    return log_interrupt_status();
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

// The report's part on the first rescaling. Numbers that are not known are null.
static inline void train_report_rescaling(log_json *j, const train_run *r) {
    const rescale_report *first = &r->first_rescaling;
    const int rescaled = first->units > 0, spread = r->analysis.spread_known;
    static const char *const method[] = {"none", "pathcond", "enorm"}, *const solver[] = {"newton", "sweeps",
                                                                                          "unit-sweeps"};
    log_json_begin(j, "rescale");
    log_json_string(j, "method", method[r->options->rescale]);
    log_json_string(j, "solver", solver[r->options->rescale_solver]);
    log_json_number(j, "objective_before", rescaled ? first->objective_before : LOG_NA);
    log_json_number(j, "objective_after", rescaled ? first->objective_after : LOG_NA);
    log_json_number(j, "trace_ratio",
                    rescaled && r->options->rescale == RESCALE_BY_PATHCOND ? first->trace_ratio : LOG_NA);
    log_json_number(j, "spread_before", spread ? first->spread_before : LOG_NA);
    log_json_number(j, "spread_after", spread ? first->spread_after : LOG_NA);
    log_json_number(j, "grad_inf", rescaled ? first->grad_inf : LOG_NA);
    log_json_number(j, "grad_tolerance", rescaled ? first->grad_tolerance : LOG_NA);
    log_json_int(j, "iterations", first->iterations);
    log_json_int(j, "sweeps", first->sweeps);
    log_json_number(j, "seconds_diag_g", first->seconds_diag_g);
    log_json_number(j, "seconds_solve", first->seconds_solve);
    log_json_number(j, "seconds_apply", first->seconds_apply);
    log_json_int(j, "rescalings", r->rescalings);
    log_json_number(j, "seconds", r->rescale_seconds);
    log_json_number(j, "max_abs_log_lambda", first->max_abs_log_lambda);
    log_json_int(j, "pinned_units", first->pinned_units);
    log_json_int(j, "units", first->units);
    log_json_int(j, "parameters", first->parameters);
    log_json_number(j, "output_max_rel_diff", rescaled ? r->output_moved : LOG_NA);
    analysis_json(&r->analysis, j);
    log_json_end(j);
}

// The JSON report: what the rescaling did, how training went, what it ran on. Returns 0, or 1 after a message.
static inline int train_write_report(train_run *r) {
    const double seconds = log_seconds() - r->started;
    char err[LOG_PATH + 256], device[256], rate[64];
    log_json j;
    if (log_json_open(&j, r->options->report, err, sizeof err)) return train_fail(r, err);
    train_report_rescaling(&j, r);
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
    if (strcmp(r->unit, "samples"))
        log_json_number(&j, rate, r->step_seconds > 0 ? samples * r->units_per_sample / r->step_seconds : LOG_NA);
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

// Takes the log folder, and tries what will be written at the end of the run, before it begins. Returns 0, or 1 after a
// message.
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
static inline int train_open(train_run *r) {
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
    if (o->log_dir && log_open(&r->csv, o->log_dir, o->resume ? r->step : -1, err, sizeof err))
        return train_fail(r, err);
    return 0;
}

// ------------------------------------------------------------------------------------------------------------ the loop

static inline int train_is_due(const train_run *r, int64_t every) { return every && r->step % every == 0; }

static inline int train_evaluate_now(train_run *r) {
    r->evaluated = r->step;
    return train_fetch_losses(r) || train_evaluate(r);
}

static inline int train_save_now(train_run *r) {
    r->saved = r->step;
    if (train_fetch_losses(r) || train_save_checkpoint(r)) return 1;
    r->mark = log_seconds();
    return 0;
}

static inline void train_show_progress(train_run *r) {
    const double per_epoch = (double)r->steps_per_epoch;
    char rate[192];
    train_show_rate(r, rate, sizeof rate);
    log_progress_update(&r->progress, "epoch %.2f of %.0f  step %lld  loss %.4f  %s", (double)r->step / per_epoch,
                        (double)r->total_steps / per_epoch, (long long)r->step, r->loss, rate);
}

// Counts the step that the trainer has made, and does what is due after it. Returns 0, or 1 after a message.
static inline int train_count_step(train_run *r) {
    r->step++;
    const int show = log_progress_due(&r->progress);
    if ((show || r->step - r->fetched == TRAIN_LOSS_RING) && train_fetch_losses(r)) return 1;
    if (show) train_show_progress(r);
    if (train_is_due(r, r->eval_every) && train_evaluate_now(r)) return 1;
    if (r->options->log_dir && train_is_due(r, r->checkpoint_every) && train_save_now(r)) return 1;
    return 0;
}

// Begins the run of a model that is built, and initialised unless --resume is set: takes the outputs; resumes, or loads
// and rescales; evaluates for the first time.
static inline void train_begin(train_run *r) {
    const train_options *o = r->options;
    r->eval_every = train_every(r, o->eval_every);
    r->checkpoint_every = train_every(r, o->checkpoint_every);
    r->rescale_every = o->rescale ? train_every(r, o->rescale_every) : 0;
    r->evaluated = -1;
    r->status = train_take_outputs(r) || train_open(r);
    r->saved = o->resume || r->total_steps > 0 ? r->step : -1;  // --steps 0 saves what was initialised
    r->mark = log_seconds();
    // At the start; and where a run that is resumed was interrupted in an evaluation.
    const int first = r->step == 0 || o->resume;
    if (!r->status && first && train_is_due(r, r->eval_every) && r->csv.evaluated != r->step)
        r->status = train_evaluate_now(r);
}

// Ends a step and says whether there is another one: 1, the trainer makes step r->step now; 0, train_end comes next. A
// trainer that was told to stop within a step (train_pause) leaves it unfinished, and it does not count.
static inline int train_next(train_run *r) {
    if (r->in_step && !r->stopped) r->status = train_count_step(r);
    r->in_step = 0;
    if (r->status || r->stopped || log_interrupted || r->step >= r->total_steps) return 0;
    if (r->step > 0 && train_is_due(r, r->rescale_every)) r->status = train_fetch_losses(r) || train_rescale(r, 0);
    r->in_step = !r->status;
    return r->in_step;
}

// The last losses, evaluation and checkpoint. Returns the exit status: 0, 1 after a failure, 129, 130 or 143 when
// interrupted (after a checkpoint).
static inline int train_close(train_run *r) {
    if (train_fetch_losses(r)) return 1;
    if (!log_interrupted && r->evaluated != r->step && train_evaluate_now(r)) return 1;
    if (r->options->log_dir && r->saved != r->step && train_save_now(r)) return 1;
    return log_interrupted ? train_interrupted(r) : 0;
}

// Ends the run: last evaluation and checkpoint, weights (also after an interruption), report. Returns the exit status
// of the program. What the trainer allocated stays.
static inline int train_end(train_run *r) {
    const train_options *o = r->options;
    char err[2 * LOG_PATH];
    if (!r->status) r->status = train_close(r);
    const int has_weights = !r->status || (log_interrupted && r->status > 1);
    if (has_weights && o->save && train_save_weights(r->net, o->save, err, sizeof err)) r->status = train_fail(r, err);
    if (!r->status && o->report) r->status = train_write_report(r);
    analysis_free(&r->analysis);
    if (r->csv.file.f && log_close(&r->csv, err, sizeof err) && !r->status) r->status = train_fail(r, err);
    if (r->csv.failed && !r->status) r->status = 1;  // rows are missing; it was said when it happened
    if (r->lock >= 0) close(r->lock);
    r->lock = -1;
    return r->status;
}
