// resume.h -- what a run stores with its checkpoints, and how another process goes on from them.
//
//     train_parse               the command line and, with --resume, the options of the run that is continued
//     train_save_checkpoint     writes LOGDIR/checkpoint-STEP, keeps the two newest
//     train_resume              loads the newest complete one
//
// The folders themselves are those of checkpoint.h.
// C11, C++17, CUDA. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
#pragma once
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "checkpoint.h"
#include "cli.h"
#include "log.h"
#include "run.h"
#include "safetensors.h"
#include "weights.h"

// ------------------------------------------------------------------------------------------------------ stored options
// A run's options are stored with its checkpoints. `--resume DIR` takes them over; what is on the command line beside
// it comes first, and has to fit: an option that makes the function, the data or the schedule must be that of the run,
// unless
// --resume-changes names it. Every other difference is told in a line.

// Not taken over; and told apart by something better than their text (the data, scalars, the total steps), or of no
// interest.
#define TRAIN_NOT_RESTORED "resume,resume-changes,load,log-dir,overwrite,quiet"
#define TRAIN_NOT_COMPARED                                                                                             \
    "data,data-dir,val-data,limit,limit-test,seed,batch-size,optimizer,shuffle,epochs,steps,save,report"
#define TRAIN_FIXED "schedule,warmup"

// What a resumed run must share with the run that wrote the state, and its names in the file and on the command line.
enum {
    TRAIN_STATE_STEP,
    TRAIN_STATE_SEED,
    TRAIN_STATE_BATCH,
    TRAIN_STATE_SAMPLES,
    TRAIN_STATE_OPTIMIZER,
    TRAIN_STATE_SHUFFLE,
    TRAIN_N_STATE
};
static inline const char *train_state_name(int i) {
    static const char *const name[TRAIN_N_STATE] = {"step",      "seed",   "batch_size", "training_samples",
                                                    "optimizer", "shuffle"};
    return name[i];
}
static inline const char *train_state_option(int i) {
    static const char *const option[TRAIN_N_STATE] = {"", "--seed", "--batch-size", "--data or --limit", "--optimizer",
                                                     "--shuffle"};
    return option[i];
}
static inline void train_state_of(const train_run *r, int64_t *state) {
    state[TRAIN_STATE_STEP] = r->step;
    state[TRAIN_STATE_SEED] = r->options->seed;
    state[TRAIN_STATE_BATCH] = r->batch;
    state[TRAIN_STATE_SAMPLES] = r->samples;
    state[TRAIN_STATE_OPTIMIZER] = r->options->optimizer;
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
    for (int i = 0; i < TRAIN_N_STATE; i++)
        train_list_add(l, "", train_state_name(i), SAFETENSORS_I64, 0, NULL, s->scalar + i);
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
    if (!status && s->n_words && s->words[s->n_words - 1])
        status = log_error(err, n, "%s: its options are damaged", f->path);
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
        message_print(program, "--resume: an option of that run: %s", err);
        exit(1);
    }
}

// Fills the variables of the table from the command line and, with --resume, from the run that is continued. Exits as
// cli_parse.
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

// An option whose value differs from the stored one: "--lr was 0.1 in that run, here it is 0.2" to text. Returns 0 when
// they agree.
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
        log_error(err, n, "%s: %s was %lld in that run, here it is %lld: resume with the same %s", dir,
                  train_state_name(k), (long long)s->scalar[k], (long long)mine[k], train_state_option(k));
        return 1;
    }
    if (s->known && s->data && r->data && s->data != r->data && !new_data) {
        log_error(err, n,
                  "%s: the samples or labels are not those of that run: give it the same --data, or allow others by "
                  "--resume-changes data",
                  dir);
        return 1;
    }
    if (s->scalar[TRAIN_STATE_STEP] > r->total_steps) {
        log_error(err, n, "%s: is beyond the %lld steps of this command: raise --steps or --epochs", dir,
                  (long long)r->total_steps);
        return 1;
    }
    const int longer = train_listed(changes, "steps") || train_listed(changes, "epochs");
    if (s->known && o->schedule != SCHEDULE_CONSTANT && s->total_steps != r->total_steps && !longer) {
        log_error(err, n,
                  "%s: %lld steps in all in that run, here %lld, and the schedule of the learning rate follows them: "
                  "leave --steps and --epochs out, or allow it by --resume-changes steps",
                  dir, (long long)s->total_steps, (long long)r->total_steps);
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
        message_print(r->program, "note: %s does not tell the options of its run: give the same ones", dir);
        return;
    }
    train_state_of(r, mine);
    for (int i = 0; i < o->n_table; i++) {
        const char *name = o->table[i].name;
        if (train_listed(TRAIN_NOT_RESTORED, name) || train_listed(TRAIN_NOT_COMPARED, name)) continue;
        if (train_differs(&o->table[i], s, text, sizeof text)) message_print(r->program, "note: %s", text);
    }
    for (int k = 1; k < TRAIN_N_STATE; k++)
        if (s->scalar[k] != mine[k])
            message_print(r->program, "note: %s was %lld in that run, here it is %lld", train_state_name(k),
                    (long long)s->scalar[k], (long long)mine[k]);
    if (s->data && r->data && s->data != r->data) message_print(r->program, "note: the data are not those of that run");
    if (s->total_steps != r->total_steps)
        message_print(r->program, "note: %lld steps in all in that run, here %lld", (long long)s->total_steps,
                (long long)r->total_steps);
}

// --------------------------------------------------------------------------------------------------------- checkpoints
// Folders LOGDIR/checkpoint-STEP, as checkpoint.h describes them.

// Lists the state: scalars, what names the run (unless it is unknown), and the optimizer's moments (host copies, or
// NULL).
static inline train_list train_list_state(const train_net *net, const train_saved *s, const float *moment1,
                                          const float *moment2) {
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
    for (int i = 0; i < 4; i++) sound = sound && (!arrays[i] || isfinite(r->hooks.norm(r->trainer, arrays[i])));
    float *out = r->hooks.outputs(r->trainer, &n);
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
    snprintf(sum, sizeof sum, "xxh64:%016llx",
             (unsigned long long)safetensors_payload_checksum(state.tensors, (size_t)state.n));
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

// Writes LOGDIR/checkpoint-STEP and removes all but the two newest complete ones, and those of later steps: they are
// damaged
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

// Takes moments and weights of a checkpoint whose files are open and of this run. What does not fit in an intact file
// is damage in its header where the options are known to be the same (-1), else another network (1).
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
