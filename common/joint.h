// joint.h -- rescales several small networks that share tensors to their joint optimum.
//
// A transformer's block has several symmetries. Each is a small network of its own, called a part here: the rows of
// some tensors enter its units, the columns of others leave them. Parts share tensors, so one part changes diag(G) of
// another. They are solved in turn until no u changes. Each starts from the original weights with the others applied.
// In the end each part is at its optimum given all others.
//
// Outline (gpt_rescale.h):
//     joint s;
//     joint_create(&s, options, info, n_parts, units, wide, copies)
//     s.describe = ...         describes part k: joint_begin, then joint_enters, joint_leaves, joint_beside
//     joint_rescale(&s, first, last, &report)
//     joint_free(&s)
//
// C11, C++17, CUDA. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rescale.cuh"
#include "analysis.h"
#include "options.h"
#include "run.h"
#include "weights.h"

enum { JOINT_PARTS = 8, JOINT_PASSES = 100 };  // most parts; most passes over them

typedef struct joint_info {
    int set;         // number of its set: several parts may be one set to the user
    int activation;  // RESCALE_IDENTITY or RESCALE_RELU
    const char *name;
} joint_info;

// One part: its tensors, and diag(G) as vectors.
typedef struct joint_part {
    rescale_tensor t[4];
    int n, units;
    double *arriving, *going;  // [units] sums over paths that arrive at a unit, that go on from it: joint_sums
    double *ones;              // [wide]
    int with_copy;             // ENorm reads weights: t holds copies of them as the other parts leave them
    rescale_real *copy;        // [copies]
    size_t copied;             // numbers of it that are in use
} joint_part;

typedef struct joint {
    const train_options *options;
    const joint_info *info;       // [n_parts]
    int sets;                     // bits of the sets that were asked for
    int power;                    // of weights in diag(G): 2, or 1
    size_t units;                 // of the largest part
    double *u[JOINT_PARTS];       // [units] of every part: 0 at first, then the solution
    double *next;                 // [units] u that is being solved
    double *row, *col;            // [wide]: the other parts multiply |w|^power of a tensor's rows and columns by these
    joint_part part;
    rescale_report *set_reports;  // one for each set; what the parts report is added
    // The tensors of the trainer, and where the parameters and their optimizer state begin.
    const void *trainer, *block;
    rescale_real *params, *moment1, *moment2;
    analysis_rows *analysis;      // of every part, or NULL; params are then those of its net
    rescale_tensor_report *each;  // [4] of the part that runs, or NULL
    // Describes part k in s->part as the other parts leave it; alone: as the weights are.
    void (*describe)(struct joint *s, int k, int alone);
    double *memory;
} joint;

// Takes memory for parts of at most `units` units and tensors of at most `wide` rows or columns.
static inline void joint_create(joint *s, const train_options *o, const joint_info *info, int n_parts, size_t units,
                                size_t wide, size_t copies) {
    memset(s, 0, sizeof *s);
    s->options = o;
    s->info = info;
    s->power = train_rescale_power(o);
    s->units = units;
    s->memory = (double *)train_alloc(NULL, units * ((size_t)n_parts + 3) + 3 * wide, sizeof *s->memory);
    double *at = s->memory;
    for (int k = 0; k < n_parts; k++) s->u[k] = at + (size_t)k * units;
    at += (size_t)n_parts * units;
    s->next = at;
    s->part.arriving = at + units;
    s->part.going = at + 2 * units;
    at += 3 * units;
    s->row = at;
    s->col = at + wide;
    s->part.ones = at + 2 * wide;
    for (size_t i = 0; i < wide; i++) s->part.ones[i] = 1;
    s->part.copy = (rescale_real *)train_alloc(NULL, copies, sizeof *s->part.copy);
}

static inline void joint_free(joint *s) {
    free(s->part.copy);
    free(s->memory);
    memset(s, 0, sizeof *s);
}

// ---------------------------------------------------------------------------------------------------------------
// Describing a part

// Sums of |w|^power, power 2 or 1, over W [rows][cols] and b. One in row r counts row[r] times, one in column c col[c]
// times.
//     by rows:      out[r] = row[r] (|b[r]|^power + sum over c of col[c] |W[r][c]|^power)
//     of_columns:   out[c] = col[c] sum over r of row[r] |W[r][c]|^power; b is NULL
// NULL for row and col: ones; for b: zeros.
static inline void joint_weighted_sums(double *out, const rescale_real *W, const rescale_real *b, int rows, int cols,
                                       int of_columns, int power, const double *row, const double *col) {
    const int n = of_columns ? cols : rows;
    for (int i = 0; i < n; i++) {
        const double bias = b ? (double)b[i] : 0;
        out[i] = power == 1 ? fabs(bias) : bias * bias;
        if (b && row) out[i] *= row[i];
    }
    for (int r = 0; r < rows; r++) {
        const double of_row = row ? row[r] : 1;
        for (int c = 0; c < cols; c++) {
            const double w = (double)W[(size_t)r * (size_t)cols + (size_t)c];
            const double of_col = col ? col[c] : 1;
            const double raised = power == 1 ? fabs(w) : w * w;
            out[of_columns ? c : r] += raised * of_row * of_col;
        }
    }
}
static inline void joint_sums(double *out, const rescale_real *W, const rescale_real *b, int rows, int cols,
                              int of_columns, int power) {
    joint_weighted_sums(out, W, b, rows, cols, of_columns, power, NULL, NULL);
}

// Empties s->part for a part of `units` units.
static inline void joint_begin(joint *s, int units, int alone) {
    s->part.n = 0;
    s->part.copied = 0;
    s->part.units = units;
    s->part.with_copy = !alone && s->options->rescale == RESCALE_BY_ENORM;
}

// Adds a tensor that is part of the parameters, with its optimizer state, or for ENorm a copy of it with the square of
// row r multiplied by row[r] and that of column c by col[c] (NULL: ones). A tensor without data is left out.
static inline void joint_add(joint *s, rescale_tensor t, int rows, int cols, const double *row, const double *col) {
    joint_part *p = &s->part;
    const rescale_real *data = t.data;
    if (!data) return;
    if (p->with_copy) {
        t.data = p->copy + p->copied;
        p->copied += (size_t)rows * (size_t)cols;
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++) {
                const size_t i = (size_t)r * (size_t)cols + (size_t)c;
                const double of_row = row ? row[r] : 1;
                const double of_col = col ? col[c] : 1;
                t.data[i] = (rescale_real)((double)data[i] * sqrt(of_row * of_col));
            }
    } else if (s->moment1) {
        t.moment1 = s->moment1 + (data - s->params);
        t.moment2 = s->moment2 + (data - s->params);
    }
    p->t[p->n++] = t;
}

// Adds a tensor whose rows enter the units (cols 1: a vector). g [rows]: diag(G) of a row's parameters. Other parts
// multiply its columns by col, as in joint_sums.
static inline void joint_enters(joint *s, const char *name, rescale_real *data, int rows, int cols, int role,
                                const double *g, const double *col) {
    rescale_tensor t = rescale_weight(name, data, rows, cols, 1, 0, RESCALE_NONE);
    t.role = role;
    t.g_out = g;
    t.g_in = s->part.ones;
    joint_add(s, t, rows, cols, NULL, col);
}

// Adds a weight whose columns leave the units. g [cols]: diag(G) of a column's parameters. Other parts multiply its
// rows by row, as in joint_sums.
static inline void joint_leaves(joint *s, const char *name, rescale_real *data, int rows, int cols, const double *g,
                                const double *row) {
    rescale_tensor t = rescale_weight(name, data, rows, cols, 1, RESCALE_NONE, 0);
    t.role = RESCALE_WEIGHT;
    t.g_out = s->part.ones;
    t.g_in = g;
    joint_add(s, t, rows, cols, row, NULL);
}

// Adds the bias [rows] of a weight that leaves the units: no unit of this part scales it. data may be NULL.
static inline void joint_beside(joint *s, const char *name, rescale_real *data, int rows, const double *row) {
    rescale_tensor t = rescale_weight(name, data, rows, 1, 1, RESCALE_NONE, RESCALE_NONE);
    t.role = RESCALE_BIAS;
    t.g_out = s->part.ones;
    t.g_in = s->part.ones;
    joint_add(s, t, rows, 1, row, NULL);
}

// ---------------------------------------------------------------------------------------------------------------
// Solving and applying

// Runs rescale.cuh on s->part. given NULL: solves, u to s->next, changes nothing. Else the given u, applied if `apply`.
// Returns 0 or -1.
static inline int joint_run(joint *s, int k, const double *given, int apply, rescale_report *r) {
    rescale_options o = train_rescale_options(s->options);
    const rescale_group group = rescale_units(s->part.t[0].name, s->part.units, s->info[k].activation);
    const rescale_net net = {&group, 1, s->part.t, s->part.n};
    o.dry_run = !apply;
    o.each = s->each;
    if (given) return rescale_apply(&net, &o, given, r) ? -1 : 0;
    o.u = s->next;
    return rescale_run(&net, &o, r) ? -1 : 0;
}

// Adds what a part reports to a total. `before`: its objective at the weights as they were.
static inline void joint_add_report(rescale_report *total, const rescale_report *r, double before) {
    total->objective_before += before;
    total->objective_after += r->objective_after;
    total->grad_inf = fmax(total->grad_inf, r->grad_inf);
    total->grad_tolerance = fmax(total->grad_tolerance, r->grad_tolerance);
    total->converged = total->converged && r->converged;
    if (r->iterations > total->iterations) total->iterations = r->iterations;
    if (r->sweeps > total->sweeps) total->sweeps = r->sweeps;
    total->seconds_diag_g += r->seconds_diag_g;
    total->seconds_solve += r->seconds_solve;
    total->seconds_apply += r->seconds_apply;
    total->trace_ratio = fmax(total->trace_ratio, r->trace_ratio);
    total->max_abs_log_lambda = fmax(total->max_abs_log_lambda, r->max_abs_log_lambda);
    total->units += r->units;
    total->pinned_units += r->pinned_units;
    total->bounded_units += r->bounded_units;
    total->parameters += r->parameters;
    total->tensors_touched += r->tensors_touched;
}

// Whether the gradient at the final u has to be zero: no option was given that moves u away from the optimum.
static inline int joint_wants_optimum(const train_options *o) {
    return !o->rescale_solver && !o->rescale_pow2 && o->rescale_strength == 1 && !o->rescale_within &&
           o->rescale_max_trace == 0;
}

static inline int joint_asked(const joint *s, int k) { return s->sets >> s->info[k].set & 1; }

// The certificate of part k: its gradient at the u that all parts ended at. Keeps the counts and the time of the solver
// in *r. Returns 0, or -1 with the failed report in *failed.
static inline int joint_certify(joint *s, int k, rescale_report *r, rescale_report *failed) {
    const rescale_report solved = *r;
    s->describe(s, k, 0);
    if (joint_run(s, k, s->u[k], 0, failed)) return -1;
    *r = *failed;
    r->iterations = solved.iterations;
    r->sweeps = solved.sweeps;
    r->seconds_solve += solved.seconds_solve;
    if (r->converged) return 0;
    failed->status = RESCALE_ERROR_CONVERGENCE;
    snprintf(failed->message, sizeof failed->message, "rescale: set %s: the sets of a block did not reach a joint "
             "optimum; a bound on |log lambda| helps", s->info[k].name);
    return -1;
}

// Solves the parts first .. last that were asked for, in turn, until no u changes. Returns 0, or -1 with the failed
// report in *failed.
static inline int joint_solve(joint *s, int first, int last, rescale_report r[JOINT_PARTS], rescale_report *failed) {
    const double enough = s->options->rescale == RESCALE_BY_ENORM ? 1e-7 : 1e-10;  // ENorm reads weights as floats
    double change = INFINITY;
    for (int pass = 0; pass < JOINT_PASSES && change > enough; pass++) {
        change = 0;
        for (int k = first; k <= last; k++) {
            if (!joint_asked(s, k)) continue;
            s->describe(s, k, 0);
            if (joint_run(s, k, NULL, 0, failed)) return -1;
            r[k] = *failed;
            for (int h = 0; h < s->part.units; h++) {
                change = fmax(change, fabs(s->next[h] - s->u[k][h]));
                s->u[k][h] = s->next[h];
            }
        }
        if (first == last) change = 0;  // a part alone is solved at once
    }
    for (int k = first; k <= last && joint_wants_optimum(s->options); k++)
        if (joint_asked(s, k) && joint_certify(s, k, &r[k], failed)) return -1;
    return 0;
}

// Zeroes u of the parts first .. last and notes their objectives at the weights as they are. Returns 0, or -1.
static inline int joint_start(joint *s, int first, int last, double before[JOINT_PARTS], rescale_report *one) {
    for (int k = first; k <= last; k++) {
        for (size_t h = 0; h < s->units; h++) s->u[k][h] = 0;
        if (!joint_asked(s, k)) continue;
        s->describe(s, k, 1);
        if (joint_run(s, k, s->u[k], 0, one)) return -1;
        before[k] = one->objective_before;
    }
    return 0;
}

// Applies the solutions of the parts first .. last; adds to `total` and to the reports of the sets. Returns 0, or -1.
static inline int joint_apply(joint *s, int first, int last, const double before[JOINT_PARTS],
                              rescale_report r[JOINT_PARTS], rescale_report *one, rescale_report *total) {
    for (int k = first; k <= last; k++) {
        if (!joint_asked(s, k)) continue;
        s->describe(s, k, 1);
        if (joint_run(s, k, s->u[k], 1, one)) return -1;
        r[k].tensors_touched = one->tensors_touched;
        r[k].seconds_apply += one->seconds_apply;
        joint_add_report(&s->set_reports[s->info[k].set], &r[k], before[k]);
        joint_add_report(total, &r[k], before[k]);
    }
    return 0;
}

// Adds the part k, solved and not applied yet, to the analysis. Before: the weights as they are. After: all parts that
// were solved are applied. ENorm has no diag(G) to tell of. Returns 0, or -1 with the failed report in *failed.
static inline int joint_analyse(joint *s, int k, rescale_report *failed) {
    const int pathcond = s->options->rescale == RESCALE_BY_PATHCOND;
    rescale_tensor_report before[4], after[4];
    int status = 0;
    s->each = after;
    s->describe(s, k, 0);
    if (pathcond) status = joint_run(s, k, s->u[k], 0, failed);
    s->each = before;
    for (size_t h = 0; h < s->units; h++) s->next[h] = 0;
    s->describe(s, k, 1);
    if (pathcond && !status) status = joint_run(s, k, s->next, 0, failed);
    s->each = NULL;
    if (status) return status;
    for (int i = 0; i < s->part.n && pathcond; i++) {
        before[i].share[1] = after[i].share[1];
        before[i].spread[1] = after[i].spread[1];
    }
    const rescale_group group = rescale_units(s->part.t[0].name, s->part.units, s->info[k].activation);
    const rescale_net net = {&group, 1, s->part.t, s->part.n};
    analysis_add(s->analysis, s->info[k].name, s->params, &net, pathcond ? before : NULL, s->u[k],
                 train_rescale_power(s->options));
    return 0;
}

// Solves and applies the parts first .. last that were asked for; adds to the reports. Returns 0, or -1 with
// total->status and total->message set.
static inline int joint_rescale(joint *s, int first, int last, rescale_report *total) {
    rescale_report r[JOINT_PARTS], one;
    double before[JOINT_PARTS];
    int status = joint_start(s, first, last, before, &one);
    if (!status) status = joint_solve(s, first, last, r, &one);
    for (int k = first; k <= last && s->analysis && !status; k++)
        if (joint_asked(s, k)) status = joint_analyse(s, k, &one);
    if (!status) status = joint_apply(s, first, last, before, r, &one, total);
    if (!status) return 0;
    total->status = one.status;
    memcpy(total->message, one.message, sizeof total->message);
    return -1;
}
