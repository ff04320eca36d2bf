// checkpoint.h -- checkpoints as folders: which there are, which are complete, which stay; whose run they belong to.
//
// What a run stores there and how it goes on from it: resume.h.
// C11, C++17, CUDA. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
//
// A checkpoint is a folder LOGDIR/checkpoint-STEP with model.safetensors and, written after it, state.safetensors:
//     model       the weights; metadata state_checksum names the state
//     state       a scalar step, equal to the folder's number; the optimizer's moments; and what names the run, in
//     tensors,
//                 because the checksum covers tensors and not the metadata:
//                 run.id [16] U8 hex digits, run.total_steps I64, run.data U64 (fingerprint of the data), run.model U64
//                 (checksum of the model's payload), run.options U8 (words of a command line, each with a closing 0)
// It is complete when both files are good and name each other. Older checkpoints lack the run.* tensors and the names.
//
// Folders whose name is not exactly checkpoint-STEP are nobody's business here. Symbolic links are read, never removed
// or followed by what removes.
//
// Contents
//     checkpoint_path, checkpoint_find        the folders, newest first
//     checkpoint_open_state                   opens the state and checks its step
//     checkpoint_check_pair                   whether model and state name each other
//     checkpoint_is_complete, checkpoint_retain, checkpoint_sweep      what stays
//     checkpoint_run_id                       a new random id
//     checkpoint_words, checkpoint_value      options as words, and the value of one of them
//
// Errors: functions with err[n] return 0, or -1 with a one-line message.
#pragma once
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "cli.h"
#include "log.h"
#include "safetensors.h"

#define CHECKPOINT_MAX_STEP (INT64_C(1) << 53)  // beyond it nothing counts steps
#define CHECKPOINT_STATE_KEY "state_checksum"
enum { CHECKPOINT_ID = 16, CHECKPOINT_PATH = LOG_PATH + 64, CHECKPOINT_KEPT = 2 };

// Writes LOGDIR/checkpoint-STEP, followed by file ("" or "/model.safetensors").
static inline void checkpoint_path(char *path, const char *log_dir, int64_t step, const char *file) {
    cli_format(path, CHECKPOINT_PATH, "%s/checkpoint-%lld%s", log_dir, (long long)step, file);
}

static inline int checkpoint_newer(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

// The step in a folder's name, or -1: only a name that is written from its step exactly so.
static inline int64_t checkpoint_step(const char *name) {
    char again[64];
    if (strncmp(name, "checkpoint-", 11) || name[11] < '0' || name[11] > '9') return -1;
    errno = 0;
    const long long step = strtoll(name + 11, NULL, 10);
    cli_format(again, sizeof again, "checkpoint-%lld", step);
    return !errno && step <= CHECKPOINT_MAX_STEP && !strcmp(name, again) ? (int64_t)step : -1;
}

// The steps of all checkpoint folders, complete or not, newest first. *steps: memory that the caller frees. Returns how
// many; none where the folder cannot be read.
static inline int checkpoint_find(const char *log_dir, int64_t **steps) {
    DIR *d = opendir(log_dir);
    int n = 0, room = 0;
    *steps = NULL;
    if (!d) return 0;
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        char path[CHECKPOINT_PATH];
        struct stat info;
        const int64_t step = checkpoint_step(e->d_name);
        if (step < 0) continue;
        checkpoint_path(path, log_dir, step, "");
        if (stat(path, &info) || !S_ISDIR(info.st_mode)) continue;
        if (n == room) {
            room = room ? 2 * room : 16;
            int64_t *larger = (int64_t *)realloc(*steps, (size_t)room * sizeof **steps);
            if (!larger) break;
            *steps = larger;
        }
        (*steps)[n++] = step;
    }
    closedir(d);
    if (n) qsort(*steps, (size_t)n, sizeof **steps, checkpoint_newer);
    return n;
}

// Opens the state of a checkpoint; its step has to be the folder's. 0: close f. -1: damaged or not there, and f is
// closed.
static inline int checkpoint_open_state(safetensors_file *f, const char *log_dir, int64_t step, char *err, size_t n) {
    char path[CHECKPOINT_PATH];
    int64_t found = -1;
    checkpoint_path(path, log_dir, step, "/state.safetensors");
    if (safetensors_open(f, path, err, n)) return -1;
    int status = safetensors_read(f, "step", SAFETENSORS_I64, 0, NULL, &found, err, n);
    if (!status && found != step)
        status = log_error(err, n, "%s: expected step %lld as in the folder's name, found %lld", path, (long long)step,
                           (long long)found);
    if (status) safetensors_close(f);
    return status;
}

// Whether model and state name each other's checksum. Of an older checkpoint neither does.
static inline int checkpoint_check_pair(const safetensors_file *model, const safetensors_file *state, char *err,
                                        size_t n) {
    const char *named = safetensors_metadata(model, CHECKPOINT_STATE_KEY);
    const char *of_model = safetensors_metadata(model, SAFETENSORS_CHECKSUM_KEY);
    const char *of_state = safetensors_metadata(state, SAFETENSORS_CHECKSUM_KEY);
    char text[40] = "";
    uint64_t sum;
    if (!named && !safetensors_find(state, "run.model")) return 0;
    if (!safetensors_read(state, "run.model", SAFETENSORS_U64, 0, NULL, &sum, err, n))
        cli_format(text, sizeof text, "xxh64:%016llx", (unsigned long long)sum);
    if (named && of_model && of_state && !strcmp(named, of_state) && !strcmp(text, of_model)) return 0;
    return log_error(err, n, "%s: does not belong to the state beside it", model->path);
}

// Whether the model beside an open state is good and belongs to it.
static inline int checkpoint_has_model(const safetensors_file *state, const char *log_dir, int64_t step) {
    char path[CHECKPOINT_PATH], err[SAFETENSORS_ERROR_SIZE];
    safetensors_file model;
    checkpoint_path(path, log_dir, step, "/model.safetensors");
    if (safetensors_open(&model, path, err, sizeof err)) return 0;
    const int fits = !checkpoint_check_pair(&model, state, err, sizeof err);
    safetensors_close(&model);
    return fits;
}

// Whether a checkpoint is complete: both files are good and belong together.
static inline int checkpoint_is_complete(const char *log_dir, int64_t step) {
    char err[SAFETENSORS_ERROR_SIZE];
    safetensors_file state;
    if (checkpoint_open_state(&state, log_dir, step, err, sizeof err)) return 0;
    const int complete = checkpoint_has_model(&state, log_dir, step);
    safetensors_close(&state);
    return complete;
}

// Removes what a killed run left half-written in a checkpoint folder; with everything = 1 the checkpoint too. Nothing
// is done where the folder is a symbolic link. What cannot be removed stays.
static inline void checkpoint_clear(const char *dir, int everything) {
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return;
    if (everything) unlinkat(fd, "state.safetensors", 0);  // first: without it the checkpoint is incomplete
    if (everything) unlinkat(fd, "model.safetensors", 0);
    DIR *d = fdopendir(fd);
    if (!d) {
        close(fd);
        return;
    }
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        const int model = !strncmp(e->d_name, "model.safetensors.tmp.", 22);
        if (model || !strncmp(e->d_name, "state.safetensors.tmp.", 22)) unlinkat(fd, e->d_name, 0);
    }
    closedir(d);
    if (everything) rmdir(dir);
}

// Removes half-written files from all checkpoint folders, and the folders that lack the model or the state: a run was
// killed while it wrote the checkpoint or removed it.
static inline void checkpoint_sweep(const char *log_dir) {
    char dir[CHECKPOINT_PATH], model[CHECKPOINT_PATH], state[CHECKPOINT_PATH];
    struct stat info;
    int64_t *steps;
    const int n = checkpoint_find(log_dir, &steps);
    for (int i = 0; i < n; i++) {
        checkpoint_path(dir, log_dir, steps[i], "");
        checkpoint_path(model, log_dir, steps[i], "/model.safetensors");
        checkpoint_path(state, log_dir, steps[i], "/state.safetensors");
        checkpoint_clear(dir, lstat(model, &info) || lstat(state, &info));
    }
    free(steps);
}

// Keeps the two newest complete checkpoints up to `newest`, and removes the others: older, incomplete, of later steps.
// good[]: steps of checkpoints that this process has written or read, which need no second look. The log folder is
// synced before anything goes, so that a power loss cannot take both the old and the new.
static inline int checkpoint_retain(const char *log_dir, int64_t newest, const int64_t *good, int n_good, char *err,
                                    size_t n) {
    char dir[CHECKPOINT_PATH];
    int64_t *steps;
    struct stat info;
    int kept = 0;
    checkpoint_path(dir, log_dir, newest, "");
    if (safetensors_sync_folder(dir)) return log_errno(err, n, log_dir, "cannot sync the folder");
    const int count = checkpoint_find(log_dir, &steps);
    for (int i = 0; i < count; i++) {
        int complete = 0;
        checkpoint_path(dir, log_dir, steps[i], "");
        if (lstat(dir, &info) || !S_ISDIR(info.st_mode)) continue;
        const int candidate = steps[i] <= newest && kept < CHECKPOINT_KEPT;
        for (int k = 0; k < n_good && candidate; k++) complete |= good[k] == steps[i];
        if (candidate && !complete) complete = checkpoint_is_complete(log_dir, steps[i]);
        kept += complete;
        checkpoint_clear(dir, !complete);
    }
    free(steps);
    return 0;
}

// Writes a new random id: 16 hex digits and a closing 0.
static inline void checkpoint_run_id(char id[CHECKPOINT_ID + 1]) {
    uint64_t bits = 0;
    const int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    const int random = fd >= 0 && read(fd, &bits, sizeof bits) == (ssize_t)sizeof bits;
    if (fd >= 0) close(fd);
    if (!random) {  // no such device: the clock and the process tell runs of one machine apart
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        bits = ((uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec) ^ (uint64_t)getpid() << 48;
    }
    cli_format(id, CHECKPOINT_ID + 1, "%016llx", (unsigned long long)bits);
}

// All options of a table that are set, as words --NAME=VALUE with a closing 0 each, in memory that the caller frees;
// *size bytes. NULL when out of memory.
static inline char *checkpoint_words(const cli_option *table, int n, size_t *size) {
    char *text = (char *)malloc(1);
    *size = 0;
    for (int i = 0; i < n && text; i++) {
        if (table[i].kind == CLI_KIND_GROUP || table[i].kind == CLI_KIND_REST) continue;
        const size_t length = cli_store_word(&table[i], NULL, 0);
        if (!length) continue;
        char *larger = (char *)realloc(text, *size + length + 1);
        if (!larger) free(text);
        text = larger;
        if (!text) break;
        cli_store_word(&table[i], text + *size, length + 1);
        *size += length + 1;
    }
    return text;
}

// The value of an option in such words ("" of a flag), or NULL.
static inline const char *checkpoint_value(const char *words, size_t size, const char *name) {
    const size_t length = strlen(name);
    for (size_t at = 0; at < size; at += strlen(words + at) + 1) {
        const char *word = words + at;
        if (strncmp(word, "--", 2) || strncmp(word + 2, name, length)) continue;
        if (word[2 + length] == '=') return word + 3 + length;
        if (!word[2 + length]) return word + 2 + length;
    }
    return NULL;
}
