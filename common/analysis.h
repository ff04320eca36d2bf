// analysis.h -- what a rescaling does to every tensor and to every group of units, as a table and in the JSON report.
//
//     analysis_rows a = {0};
//     analysis_run(&a, &net, &options, &report)     rescale_run, and its analysis; a NULL: rescale_run alone
//     analysis_apply(&a, &net, &options, u, ...)    the same for rescale_apply
//     analysis_add(&a, set, ...)                    for networks that are solved in turn (joint.h): one after the other
//     analysis_print(&a, &report, &progress)        the table, at most 100 columns, and one sentence
//     analysis_json(&a, &json)                      "tensors" and "groups", lists of objects
//     analysis_free(&a)
//
// Of a tensor: its parameters; its share of sum(diag(G) / r), before and after; the spread
// log(mean g) - mean log g of its own diag(G), before and after; how many elements are 0. Of a group: mean, standard
// deviation, least and largest log lambda. ENorm has no diag(G): then only log lambda is known.
//
// C11, C++17, CUDA. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rescale.cuh"
#include "log.h"
#include "weights.h"

enum { ANALYSIS_NAME = 2 * TRAIN_NAME, ANALYSIS_SET = 16, ANALYSIS_COLUMN = 40 };  // the last: of a name in the table

typedef struct analysis_tensor {
    char set[ANALYSIS_SET], name[ANALYSIS_NAME];  // set: "" for a network that is solved at once
    int64_t parameters;
    double share;                // of the network's (the set's) counted parameters; 0 for one that is not counted
    int counted;                 // it is in sum(diag(G) / r), and `in` holds what that says
    rescale_tensor_report in;
} analysis_tensor;

typedef struct analysis_group {
    char set[ANALYSIS_SET], name[ANALYSIS_NAME];
    int units;
    double mean, deviation, least, largest;  // of log lambda
} analysis_group;

typedef struct analysis_rows {
    const train_net *net;        // names and places of tensors, for analysis_add; or NULL
    int spread_known;            // of the whole network, in the report
    int n_tensors, n_groups;
    analysis_tensor *tensors;    // [n_tensors]
    analysis_group *groups;      // [n_groups]
} analysis_rows;

static inline void analysis_free(analysis_rows *a) {
    free(a->tensors);
    free(a->groups);
    memset(a, 0, sizeof *a);
}

// ------------------------------------------------------------------------------------------------------------- filling

// The name of a tensor that begins `offset` numbers behind the net's parameters: that of the net's tensor it lies in,
// with what `given` has in brackets, as in "... (keys)". Else `given`.
static inline void analysis_name(char *name, const train_net *net, size_t offset, const char *given) {
    if (!given) given = "";
    const char *piece = strchr(given, '(');
    snprintf(name, ANALYSIS_NAME, "%s", given);
    for (int i = 0; net && i < net->n_tensors; i++) {
        const train_tensor *t = &net->tensors[i];
        if (offset < t->offset || offset - t->offset >= (size_t)t->rows * (size_t)t->cols) continue;
        if (piece) snprintf(name, ANALYSIS_NAME, "%s %.60s", t->name, piece);
        else snprintf(name, ANALYSIS_NAME, "%s", t->name);
    }
}

// The same for a tensor among the parameters of a->net, which begin at params; NULL: `given`.
static inline void analysis_place(const analysis_rows *a, char *name, const rescale_real *params,
                                  const rescale_tensor *t, const char *given) {
    if (params) analysis_name(name, a->net, (size_t)(t->data - params), given);
    else analysis_name(name, NULL, 0, given);
}

static inline int64_t analysis_size(const rescale_tensor *t) { return (int64_t)t->n_out * t->n_in * t->kernel; }
static inline int analysis_counts(const rescale_tensor *t) { return !(t->flags & RESCALE_UNCOUNTED); }

// Mean, standard deviation, least and largest of u[n] / power. n 0: zeros.
static inline void analysis_statistics(analysis_group *g, const double *u, int n, int power) {
    double squares = 0;
    g->units = n;
    g->mean = g->deviation = g->least = g->largest = 0;
    if (n < 1) return;
    g->least = g->largest = u[0] / power;
    for (int h = 0; h < n; h++) {
        const double v = u[h] / power;
        g->mean += v / n;
        g->least = fmin(g->least, v);
        g->largest = fmax(g->largest, v);
    }
    for (int h = 0; h < n; h++) squares += (u[h] / power - g->mean) * (u[h] / power - g->mean);
    g->deviation = sqrt(squares / n);
}

// Adds the rows of a network. params: where the parameters of a->net begin, to name tensors by their place; NULL: by
// the names that they have in `net`. each [n_tensors]: NULL where diag(G) is not known. u: of every unit.
static inline void analysis_add(analysis_rows *a, const char *set, const rescale_real *params, const rescale_net *net,
                                const rescale_tensor_report *each, const double *u, int power) {
    const size_t n_tensors = (size_t)(a->n_tensors + net->n_tensors), n_groups = (size_t)(a->n_groups + net->n_groups);
    int64_t counted = 0;
    a->tensors = (analysis_tensor *)train_alloc(a->tensors, n_tensors, sizeof *a->tensors);
    a->groups = (analysis_group *)train_alloc(a->groups, n_groups, sizeof *a->groups);
    for (int i = 0; i < net->n_tensors; i++)
        if (analysis_counts(&net->tensor[i])) counted += analysis_size(&net->tensor[i]);
    for (int i = 0; i < net->n_tensors; i++) {
        const rescale_tensor *t = &net->tensor[i];
        analysis_tensor *row = &a->tensors[a->n_tensors++];
        memset(row, 0, sizeof *row);
        snprintf(row->set, sizeof row->set, "%s", set);
        analysis_place(a, row->name, params, t, t->name);
        row->parameters = analysis_size(t);
        row->counted = each && analysis_counts(t);
        if (analysis_counts(t)) row->share = (double)row->parameters / (double)counted;
        if (row->counted) row->in = each[i];
        for (int k = 0; k < 2; k++) row->in.spread[k] = fmax(row->in.spread[k], 0);  // equal g: rounding
    }
    for (int g = 0, first = 0; g < net->n_groups; g++) {
        analysis_group *row = &a->groups[a->n_groups++];
        snprintf(row->set, sizeof row->set, "%s", set);
        analysis_place(a, row->name, params, &net->tensor[0], net->group[g].name);
        analysis_statistics(row, u + first, net->group[g].n, power);
        first += net->group[g].n;
    }
}

// rescale_apply. With an analysis (NULL: none) its rows are added; a rescaling that fails adds none. given NULL: as
// rescale_run, solved.
static inline int analysis_apply(analysis_rows *a, const rescale_net *net, const rescale_options *options,
                                 const double *given, rescale_report *report) {
    if (!a && !given) return rescale_run(net, options, report);
    if (!a) return rescale_apply(net, options, given, report);
    rescale_options o = *options;
    size_t units = 0;
    for (int g = 0; g < net->n_groups; g++) units += (size_t)net->group[g].n;
    const int pathcond = o.method == RESCALE_PATHCOND;
    double *own = o.u ? NULL : (double *)train_alloc(NULL, units, sizeof *o.u);
    if (own) o.u = own;
    o.each = (rescale_tensor_report *)train_alloc(NULL, (size_t)net->n_tensors, sizeof *o.each);
    rescale_tensor_report *each = o.each;
    if (!pathcond) o.each = NULL;
    const int status = given ? rescale_apply(net, &o, given, report) : rescale_run(net, &o, report);
    if (!status) analysis_add(a, "", NULL, net, o.each, o.u, o.power == 1 ? 1 : 2);
    a->spread_known = !status && pathcond;
    free(each);
    free(own);
    return status;
}
static inline int analysis_run(analysis_rows *a, const rescale_net *net, const rescale_options *options,
                               rescale_report *report) {
    return analysis_apply(a, net, options, NULL, report);
}

// ------------------------------------------------------------------------------------------------------------- telling

// How a row is called in the table, in ANALYSIS_COLUMN columns: the set, and the name without the net's prefix; of a
// long one the end.
static inline void analysis_label(char *label, const analysis_rows *a, const char *set, const char *name) {
    const char *prefix = a->net ? a->net->prefix : NULL;
    const int n_set = *set ? snprintf(label, ANALYSIS_COLUMN + 1, "%s ", set) : 0;
    const size_t room = (size_t)(ANALYSIS_COLUMN - n_set);
    if (prefix && !strncmp(name, prefix, strlen(prefix))) name += strlen(prefix);
    const size_t length = strlen(name);
    if (length > room) snprintf(label + n_set, room + 1, "...%s", name + length - (room - 3));
    else snprintf(label + n_set, room + 1, "%s", name);
}

// Two numbers with the same format, or two dashes where they are not known.
static inline void analysis_pair(char text[2][16], int known, double scale, const char *unit, const double value[2]) {
    for (int i = 0; i < 2; i++) {
        if (known) snprintf(text[i], sizeof text[i], "%.2f%s", scale * value[i], unit);
        else snprintf(text[i], sizeof text[i], "-");
    }
}

// What the rescaling did or would do, in one sentence. Sets change each other's objective: no sum of them falls.
static inline void analysis_sentence(const analysis_rows *a, const rescale_report *r, int enorm, log_progress *p) {
    const int in_sets = a->n_groups > 0 && *a->groups[0].set;
    const double most = r->max_abs_log_lambda, n = fmax((double)r->parameters, 1);
    char what[128];
    if (in_sets)
        snprintf(what, sizeof what, "brings every set to its optimum given the others");
    else if (enorm)
        snprintf(what, sizeof what, "brings the sum of squared weights from %.4g to %.4g", r->objective_before,
                 r->objective_after);
    else
        snprintf(what, sizeof what, "changes F by %+.4g per parameter, spread %.2f -> %.2f",
                 (r->objective_after - r->objective_before) / n, r->spread_before, r->spread_after);
    log_progress_line(p, "Rescaling %s, with |log lambda| up to %.2f.", what, most);
}

// Prints the tables and the sentence; nothing with p->quiet. r: the report of the rescaling.
static inline void analysis_print(const analysis_rows *a, const rescale_report *r, int enorm, log_progress *p) {
    char label[ANALYSIS_COLUMN + 1], energy[2][16], spread[2][16], zeros[24];
    const int width = ANALYSIS_COLUMN;
    if (!enorm)
        log_progress_line(p, "%-*s %10s %7s %7s %7s %6s %6s %8s", width, "tensor", "parameters", "share", "energy",
                          "after", "spread", "after", "zeros");
    for (int i = 0; i < a->n_tensors && !enorm; i++) {
        const analysis_tensor *t = &a->tensors[i];
        analysis_label(label, a, t->set, t->name);
        analysis_pair(energy, t->counted, 100, "%", t->in.share);
        analysis_pair(spread, t->counted, 1, "", t->in.spread);
        snprintf(zeros, sizeof zeros, "%lld", t->in.zeros);
        log_progress_line(p, "%-*s %10lld %6.2f%% %7s %7s %6s %6s %8s", width, label, (long long)t->parameters,
                          100 * t->share, energy[0], energy[1], spread[0], spread[1], t->counted ? zeros : "-");
    }
    log_progress_line(p, "%-*s %10s %7s %7s %7s %6s", width, "log lambda", "units", "mean", "std", "least", "most");
    for (int i = 0; i < a->n_groups; i++) {
        const analysis_group *g = &a->groups[i];
        analysis_label(label, a, g->set, g->name);
        log_progress_line(p, "%-*s %10d %7.3f %7.3f %7.2f %6.2f", width, label, g->units, g->mean, g->deviation,
                          g->least, g->largest);
    }
    analysis_sentence(a, r, enorm, p);
}

// Writes the lists "tensors" and "groups" into the open object.
static inline void analysis_json(const analysis_rows *a, log_json *j) {
    log_json_list(j, "tensors");
    for (int i = 0; i < a->n_tensors; i++) {
        const analysis_tensor *t = &a->tensors[i];
        log_json_row(j);
        if (*t->set) log_json_string(j, "set", t->set);
        log_json_string(j, "name", t->name);
        log_json_int(j, "parameters", t->parameters);
        log_json_number(j, "parameter_share", t->share);
        log_json_number(j, "energy_share_before", t->counted ? t->in.share[0] : LOG_NA);
        log_json_number(j, "energy_share_after", t->counted ? t->in.share[1] : LOG_NA);
        log_json_number(j, "spread_before", t->counted ? t->in.spread[0] : LOG_NA);
        log_json_number(j, "spread_after", t->counted ? t->in.spread[1] : LOG_NA);
        log_json_number(j, "zeros", t->counted ? (double)t->in.zeros : LOG_NA);
        log_json_end(j);
    }
    log_json_end(j);
    log_json_list(j, "groups");
    for (int i = 0; i < a->n_groups; i++) {
        const analysis_group *g = &a->groups[i];
        log_json_row(j);
        if (*g->set) log_json_string(j, "set", g->set);
        log_json_string(j, "name", g->name);
        log_json_int(j, "units", g->units);
        log_json_number(j, "log_lambda_mean", g->mean);
        log_json_number(j, "log_lambda_std", g->deviation);
        log_json_number(j, "log_lambda_min", g->least);
        log_json_number(j, "log_lambda_max", g->largest);
        log_json_end(j);
    }
    log_json_end(j);
}
