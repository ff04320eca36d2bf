// gpt_rescale.h -- the symmetries of a GPT-style transformer, for rescale.cuh.
//
// Four sets of symmetries of a block. lambda of a unit multiplies what enters it and divides what leaves it:
//     ln   LayerNorm's gain and bias enter C linear units, columns of the next weight leave them
//     qk   rows of queries enter C units (of all heads), rows of keys leave them; q . k stays
//     vo   rows of values enter C linear units, columns of attn.c_proj leave them
//     mlp  rows of c_fc enter 4C ReLU units, columns of mlp.c_proj leave them
// Behind the blocks, the final LayerNorm and the head are of set ln, unless the head is tied to the embedding.
//
//     gpt_rescale s = {options, sets, net, params, moment1, moment2, g, layers, channels, ...};
//     gpt_rescale_run(&s, &report)      in place, parameters and optimizer state
//
// Two ways. With a measured g every parameter has its own entry of diag(G), and a rescaling multiplies it by
// exp((B u)_i), whatever else is rescaled. No tensor enters two groups or leaves two, once rows of queries, keys and
// values are three tensors. So all sets of the model are one network, and one run solves it. Without g, diag(G) is that
// of each symmetry alone, a small network with inputs of ones: joint.h solves those in turn. A block's two halves share
// no tensor.
//
// C11, C++17, CUDA. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rescale.cuh"
#include "analysis.h"
#include "joint.h"
#include "options.h"
#include "run.h"
#include "weights.h"

// Sets that can be rescaled: numbers, and bits of them.
enum { OF_MLP, OF_VO, OF_QK, OF_LN, N_SETS };
enum { SET_MLP = 1, SET_VO = 2, SET_QK = 4, SET_LN = 8, SETS_ALL = 15 };
static const char *const set_names[N_SETS] = {"mlp", "vo", "qk", "ln"};

// The tensors of a block, in the order of the table of tensors.
enum {
    GPT_LN1_W, GPT_LN1_B,    // [C]
    GPT_QKV_W, GPT_QKV_B,    // [3C][C], [3C]: rows of queries, keys, values
    GPT_OUT_W, GPT_OUT_B,    // [C][C], [C]
    GPT_LN2_W, GPT_LN2_B,    // [C]
    GPT_FC_W, GPT_FC_B,      // [4C][C], [4C]
    GPT_PROJ_W, GPT_PROJ_B,  // [C][4C], [C]
    GPT_BLOCK
};
enum { GPT_BLOCKS = 2 };                         // in the table, wte and wpe stand before the blocks
enum { GPT_LNF_W, GPT_LNF_B, GPT_HEAD };         // and these behind them

// A model, and what to do to it.
typedef struct gpt_rescale {
    const train_options *options;
    int sets;                                    // bits of the sets that were asked for
    const train_net *net;                        // its table of tensors
    rescale_real *params, *moment1, *moment2;    // [net->n_params]
    const rescale_real *g;                       // [net->n_params] measured diag(G); NULL: of paths
    int layers, channels, vocabulary, tied;
    rescale_report *set_reports;                 // [N_SETS]; with g only units and max_abs_log_lambda
} gpt_rescale;

static inline size_t gpt_first_tensor(int block) { return GPT_BLOCKS + (size_t)block * GPT_BLOCK; }

// ------------------------------------------------------------------------------------ measured diag(G): one network

enum { GPT_GROUPS = 5 };                         // of a block, and one behind the blocks
enum { GPT_MORE = 4 };                           // tensors of a block that queries, keys and values are beyond one

typedef struct gpt_net {
    rescale_group *group;                        // named after the first tensor that enters it
    int *set;                                    // [n_groups] number of a group's set
    rescale_tensor *tensor;
    char (*name)[ANALYSIS_NAME];                 // [n_tensors]
    int n_groups, n_tensors, units;
} gpt_net;

// Adds a group of a set. Returns its number, or RESCALE_NONE where the set was not asked for.
static inline int gpt_add_group(gpt_net *n, const gpt_rescale *s, int set, int units, int activation) {
    if (!(s->sets >> set & 1)) return RESCALE_NONE;
    n->group[n->n_groups] = rescale_units(NULL, units, activation);
    n->set[n->n_groups] = set;
    n->units += units;
    return n->n_groups++;
}

// Adds rows first .. first + rows - 1 of tensor i of the table. piece: their name, " (keys)", or "".
static inline rescale_tensor *gpt_add_rows(gpt_net *n, const gpt_rescale *s, size_t i, const char *piece, int first,
                                           int rows, int enters, int leaves) {
    const train_tensor *of = &s->net->tensors[i];
    const size_t at = of->offset + (size_t)first * (size_t)of->cols;
    char *name = n->name[n->n_tensors];
    rescale_tensor *t = &n->tensor[n->n_tensors++];
    snprintf(name, ANALYSIS_NAME, "%s%s", of->name, piece);
    if (enters >= 0 && !n->group[enters].name) n->group[enters].name = name;
    *t = rescale_weight(name, s->params + at, rows, of->cols, 1, enters, leaves);
    t->role = of->role;
    t->g = s->g + at;
    if (s->moment1) {
        t->moment1 = s->moment1 + at;
        t->moment2 = s->moment2 + at;
    }
    return t;
}
static inline void gpt_add(gpt_net *n, const gpt_rescale *s, size_t i, int enters, int leaves) {
    gpt_add_rows(n, s, i, "", 0, s->net->tensors[i].rows, enters, leaves);
}

static inline void gpt_add_block(gpt_net *n, const gpt_rescale *s, int block) {
    const int C = s->channels, none = RESCALE_NONE;
    const size_t i = gpt_first_tensor(block);
    const int ln1 = gpt_add_group(n, s, OF_LN, C, RESCALE_IDENTITY);
    const int qk = gpt_add_group(n, s, OF_QK, C, RESCALE_IDENTITY);
    const int vo = gpt_add_group(n, s, OF_VO, C, RESCALE_IDENTITY);
    const int ln2 = gpt_add_group(n, s, OF_LN, C, RESCALE_IDENTITY);
    const int mlp = gpt_add_group(n, s, OF_MLP, 4 * C, RESCALE_RELU);
    gpt_add(n, s, i + GPT_LN1_W, ln1, none);
    gpt_add(n, s, i + GPT_LN1_B, ln1, none);
    for (int bias = 0; bias < 2; bias++) {
        const size_t qkv = i + (bias ? GPT_QKV_B : GPT_QKV_W);
        const int columns = bias ? none : ln1;
        gpt_add_rows(n, s, qkv, " (queries)", 0, C, qk, columns);
        rescale_tensor *keys = gpt_add_rows(n, s, qkv, " (keys)", C, C, qk, columns);
        if (qk != none) keys->flags |= RESCALE_ROWS_LEAVE;
        gpt_add_rows(n, s, qkv, " (values)", 2 * C, C, vo, columns);
    }
    gpt_add(n, s, i + GPT_OUT_W, none, vo);
    gpt_add(n, s, i + GPT_OUT_B, none, none);
    gpt_add(n, s, i + GPT_LN2_W, ln2, none);
    gpt_add(n, s, i + GPT_LN2_B, ln2, none);
    gpt_add(n, s, i + GPT_FC_W, mlp, ln2);
    gpt_add(n, s, i + GPT_FC_B, mlp, none);
    gpt_add(n, s, i + GPT_PROJ_W, none, mlp);
    gpt_add(n, s, i + GPT_PROJ_B, none, none);
}

// Describes the whole model: every parameter counts, also those that no set scales. Free with gpt_net_free.
static inline gpt_net gpt_describe(const gpt_rescale *s) {
    const size_t groups = (size_t)s->layers * GPT_GROUPS + 1;
    const size_t tensors = (size_t)s->net->n_tensors + (size_t)s->layers * GPT_MORE;
    gpt_net n;
    memset(&n, 0, sizeof n);
    n.group = (rescale_group *)train_alloc(NULL, groups, sizeof *n.group);
    n.set = (int *)train_alloc(NULL, groups, sizeof *n.set);
    n.tensor = (rescale_tensor *)train_alloc(NULL, tensors, sizeof *n.tensor);
    n.name = (char (*)[ANALYSIS_NAME])train_alloc(NULL, tensors, sizeof *n.name);
    for (size_t i = 0; i < GPT_BLOCKS; i++) gpt_add(&n, s, i, RESCALE_NONE, RESCALE_NONE);
    for (int l = 0; l < s->layers; l++) gpt_add_block(&n, s, l);
    const size_t behind = gpt_first_tensor(s->layers);
    const int head = s->tied ? RESCALE_NONE : gpt_add_group(&n, s, OF_LN, s->channels, RESCALE_IDENTITY);
    gpt_add(&n, s, behind + GPT_LNF_W, head, RESCALE_NONE);
    gpt_add(&n, s, behind + GPT_LNF_B, head, RESCALE_NONE);
    if (!s->tied) gpt_add(&n, s, behind + GPT_HEAD, RESCALE_NONE, head);
    return n;
}

static inline void gpt_net_free(gpt_net *n) {
    free(n->group);
    free(n->set);
    free(n->tensor);
    free(n->name);
    memset(n, 0, sizeof *n);
}

// Units and the largest |log lambda| of every set, from the solution u.
static inline void gpt_report_sets(const gpt_rescale *s, const gpt_net *n, const double *u, int power) {
    for (int g = 0; g < n->n_groups; g++) {
        rescale_report *r = &s->set_reports[n->set[g]];
        r->units += n->group[g].n;
        for (int h = 0; h < n->group[g].n; h++) r->max_abs_log_lambda = fmax(r->max_abs_log_lambda, fabs(*u++) / power);
    }
}

// Returns 0, or -1 with report->message set.
static inline int gpt_rescale_measured(const gpt_rescale *s, rescale_report *report) {
    gpt_net n = gpt_describe(s);
    const rescale_net net = {n.group, n.n_groups, n.tensor, n.n_tensors};
    rescale_options o = train_rescale_options(s->options);
    o.u = (double *)train_alloc(NULL, (size_t)n.units, sizeof *o.u);
    const int status = analysis_run(s->net->analysis, &net, &o, report);
    if (!status) gpt_report_sets(s, &n, o.u, o.power);
    free(o.u);
    gpt_net_free(&n);
    return status ? -1 : 0;
}

// --------------------------------------------------------------------------------- diag(G) of paths: parts in turn

enum { PART_LN1, PART_QK, PART_VO, PART_LN2, PART_MLP, PART_HEAD, N_PARTS };
static const joint_info part_info[N_PARTS] = {
    {OF_LN, RESCALE_IDENTITY, "ln"}, {OF_QK, RESCALE_IDENTITY, "qk"}, {OF_VO, RESCALE_IDENTITY, "vo"},
    {OF_LN, RESCALE_IDENTITY, "ln"}, {OF_MLP, RESCALE_RELU, "mlp"},   {OF_LN, RESCALE_IDENTITY, "ln"},
};

// Tensor k of the block, or behind the blocks, that is described.
static inline rescale_real *gpt_data(const joint *s, int k) {
    const train_tensor *first = (const train_tensor *)s->block;
    return s->params + first[k].offset;
}

// Set ln: gain and bias, then W [rows][C] with its own bias b (NULL: none), whose rows other sets multiply. diag(G) of
// gain and bias of channel c is the sum of |w|^power over column c of W. Of W[r][c] it is |gain|^power + |bias|^power.
static inline void gpt_describe_ln(joint *s, int C, rescale_real *gain, rescale_real *bias, rescale_real *W,
                                   rescale_real *b, int rows) {
    joint_part *p = &s->part;
    const rescale_real *on_paths = s->options->rescale_paths ? NULL : bias;
    joint_weighted_sums(p->going, W, NULL, rows, C, 1, s->power, s->row, NULL);
    joint_sums(p->arriving, gain, on_paths, C, 1, 0, s->power);
    joint_enters(s, "LayerNorm weight", gain, C, 1, RESCALE_GAIN, p->going, NULL);
    joint_enters(s, "LayerNorm bias", bias, C, 1, RESCALE_BIAS, p->going, NULL);
    joint_leaves(s, "weight after LayerNorm", W, rows, C, p->arriving, s->row);
    joint_beside(s, "bias after LayerNorm", b, rows, s->row);
}

// Set qk: a path goes from an input through q_c and k_c to another. So diag(G) of every parameter of q_c is the sum
// over k_c's row with its bias, and the other way round. Set ln multiplies the columns.
static inline void gpt_describe_qk(joint *s, int C) {
    joint_part *p = &s->part;
    rescale_real *queries = gpt_data(s, GPT_QKV_W), *keys = queries + (size_t)C * (size_t)C;
    rescale_real *query_bias = gpt_data(s, GPT_QKV_B), *key_bias = query_bias + C;
    const int weights_only = s->options->rescale_paths;
    const rescale_real *q_on_paths = weights_only ? NULL : query_bias;
    const rescale_real *k_on_paths = weights_only ? NULL : key_bias;
    joint_weighted_sums(p->arriving, queries, q_on_paths, C, C, 0, s->power, NULL, s->col);
    joint_weighted_sums(p->going, keys, k_on_paths, C, C, 0, s->power, NULL, s->col);
    joint_enters(s, "attn.c_attn.weight (queries)", queries, C, C, RESCALE_WEIGHT, p->going, s->col);
    joint_enters(s, "attn.c_attn.bias (queries)", query_bias, C, 1, RESCALE_BIAS, p->going, NULL);
    joint_enters(s, "attn.c_attn.weight (keys)", keys, C, C, RESCALE_WEIGHT, p->arriving, s->col);
    joint_enters(s, "attn.c_attn.bias (keys)", key_bias, C, 1, RESCALE_BIAS, p->arriving, NULL);
    p->t[2].flags = RESCALE_ROWS_LEAVE;
    p->t[3].flags = RESCALE_ROWS_LEAVE;
}

// Sets vo and mlp: rows of A [units][C] and its bias a enter the units, columns of B [C][units] leave them, B has the
// bias b. Set ln multiplies the columns of A.
static inline void gpt_describe_hidden(joint *s, int C, const char *const name[4], int units, rescale_real *A,
                                       rescale_real *a, rescale_real *B, rescale_real *b) {
    joint_part *p = &s->part;
    const rescale_real *on_paths = s->options->rescale_paths ? NULL : a;
    joint_weighted_sums(p->arriving, A, on_paths, units, C, 0, s->power, NULL, s->col);
    joint_sums(p->going, B, NULL, C, units, 1, s->power);
    joint_enters(s, name[0], A, units, C, RESCALE_WEIGHT, p->going, s->col);
    joint_enters(s, name[1], a, units, 1, RESCALE_BIAS, p->going, NULL);
    joint_leaves(s, name[2], B, C, units, p->arriving, NULL);
    joint_beside(s, name[3], b, C, NULL);
}

// Sets s->row and s->col, by which the other parts multiply |w|^power of part k's tensors. Set ln divides the columns
// of the weight after it. Sets qk, vo and mlp multiply the rows of that weight; keys get the inverse of queries.
static inline void gpt_other_parts(joint *s, int C, int k) {
    const double *ln = s->u[k <= PART_VO ? PART_LN1 : PART_LN2];
    for (int i = 0; i < C; i++) s->col[i] = exp(-ln[i]);
    for (int i = 0; i < C && k == PART_LN1; i++) {
        s->row[i] = exp(s->u[PART_QK][i]);
        s->row[C + i] = 1 / s->row[i];
        s->row[2 * C + i] = exp(s->u[PART_VO][i]);
    }
    for (int i = 0; i < 4 * C && k == PART_LN2; i++) s->row[i] = exp(s->u[PART_MLP][i]);
}

// Rows and columns of a part's tensors, at most.
static inline int gpt_widest(const gpt_rescale *s) {
    return 4 * s->channels > s->vocabulary ? 4 * s->channels : s->vocabulary;
}

// Describes part k as the other parts leave it in s->part; alone: as the weights are.
static inline void gpt_describe_part(joint *s, int k, int alone) {
    static const char *const values[4] = {"attn.c_attn.weight (values)", "attn.c_attn.bias (values)",
                                          "attn.c_proj.weight", "attn.c_proj.bias"};
    static const char *const hidden[4] = {"mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"};
    const gpt_rescale *of = (const gpt_rescale *)s->trainer;
    const int C = of->channels;
    joint_begin(s, k == PART_MLP ? 4 * C : C, alone);
    for (int i = 0; i < gpt_widest(of); i++) s->row[i] = 1;
    for (int i = 0; i < C; i++) s->col[i] = 1;
    if (!alone) gpt_other_parts(s, C, k);
    switch (k) {
    case PART_LN1:
        gpt_describe_ln(s, C, gpt_data(s, GPT_LN1_W), gpt_data(s, GPT_LN1_B), gpt_data(s, GPT_QKV_W),
                        gpt_data(s, GPT_QKV_B), 3 * C);
        break;
    case PART_QK:
        gpt_describe_qk(s, C);
        break;
    case PART_VO: {
        rescale_real *value_rows = gpt_data(s, GPT_QKV_W) + 2 * (size_t)C * (size_t)C;
        gpt_describe_hidden(s, C, values, C, value_rows, gpt_data(s, GPT_QKV_B) + 2 * C, gpt_data(s, GPT_OUT_W),
                            gpt_data(s, GPT_OUT_B));
        break;
    }
    case PART_LN2:
        gpt_describe_ln(s, C, gpt_data(s, GPT_LN2_W), gpt_data(s, GPT_LN2_B), gpt_data(s, GPT_FC_W),
                        gpt_data(s, GPT_FC_B), 4 * C);
        break;
    case PART_MLP:
        gpt_describe_hidden(s, C, hidden, 4 * C, gpt_data(s, GPT_FC_W), gpt_data(s, GPT_FC_B), gpt_data(s, GPT_PROJ_W),
                            gpt_data(s, GPT_PROJ_B));
        break;
    case PART_HEAD:
        gpt_describe_ln(s, C, gpt_data(s, GPT_LNF_W), gpt_data(s, GPT_LNF_B), gpt_data(s, GPT_HEAD), NULL,
                        of->vocabulary);
        break;
    default:
        abort();  // a part without a description
    }
    train_count_paths(s->options, s->part.t, s->part.n);
}

// Returns 0, or -1 with report->message set.
static inline int gpt_rescale_parts(const gpt_rescale *of, rescale_report *report) {
    const size_t C = (size_t)of->channels, units = 4 * C, wide = (size_t)gpt_widest(of);
    const size_t copies = (wide + units) * C + 8 * units + 2 * wide;
    joint s;
    joint_create(&s, of->options, part_info, N_PARTS, units, wide, copies);
    s.sets = of->sets;
    s.analysis = of->net->analysis;
    s.set_reports = of->set_reports;
    s.trainer = of;
    s.describe = gpt_describe_part;
    s.params = of->params;
    s.moment1 = of->moment1;
    s.moment2 = of->moment2;
    int status = 0;
    for (int l = 0; l < of->layers && !status; l++) {
        s.block = &of->net->tensors[gpt_first_tensor(l)];
        status = joint_rescale(&s, PART_LN1, PART_VO, report);
        if (!status) status = joint_rescale(&s, PART_LN2, PART_MLP, report);
    }
    s.block = &of->net->tensors[gpt_first_tensor(of->layers)];
    if (!of->tied && !status) status = joint_rescale(&s, PART_HEAD, PART_HEAD, report);
    joint_free(&s);
    return status;
}

// --------------------------------------------------------------------------------------------------------- both ways

// Rescales the sets that were asked for, parameters and optimizer state, in place. Returns 0, or -1 with
// report->message set.
static inline int gpt_rescale_run(const gpt_rescale *s, rescale_report *report) {
    memset(report, 0, sizeof *report);
    report->converged = 1;
    for (int set = 0; set < N_SETS; set++) s->set_reports[set] = *report;
    return s->g ? gpt_rescale_measured(s, report) : gpt_rescale_parts(s, report);
}
