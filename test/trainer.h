// trainer.h -- what tests of trainers share, beside device.h. Include it after a trainer (with TESTING defined): model,
// config, run and parse_command_line are the trainer's own.
#pragma once
#include "device.h"

// Whether the padding between the tensors of a poisoned gradient array is still poisoned.
static inline int padding_untouched(const model *m) {
    float *grads = train_host_copy(m->net.grads, m->net.n_params);
    int ok = 1;
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        const size_t end = i + 1 < m->net.n_tensors ? m->net.tensors[i + 1].offset : m->net.n_params;
        for (size_t k = t->offset + (size_t)t->rows * (size_t)t->cols; k < end; k++) ok = ok && isnan(grads[k]);
    }
    free(grads);
    return ok;
}

// Whether a b^power is the same before and after, up to rounding: how optimizer state follows its parameter.
static inline void same_products(const char *what, const model *m, const float *moment0, const float *w0,
                                 const float *moment1, const float *w1, int power) {
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        const size_t n = (size_t)t->rows * (size_t)t->cols, o = t->offset;
        double *got = doubles(n), *want = doubles(n);
        char name[320];
        for (size_t k = 0; k < n; k++) {
            want[k] = (double)moment0[o + k] * pow((double)w0[o + k], power);
            got[k] = (double)moment1[o + k] * pow((double)w1[o + k], power);
        }
        snprintf(name, sizeof name, "%s: %s of %s", label, what, t->name);
        test_close_d(name, got, want, n, 2e-6, 1e-30);
    }
}

static inline int file_is_there(const char *path) {
    FILE *f = fopen(path, "rb");
    if (f) fclose(f);
    return f != NULL;
}

// Loads a file that does not fit: an error with these words, and the model is as before.
static inline void load_fails(model *m, const char *path, const char *words) {
    char err[512] = "";
    float *params = train_host_copy(m->net.params, m->net.n_params);
    float *stats = train_host_copy(m->net.stats, m->net.n_stats);
    const int64_t tracked = m->net.n_counts ? m->net.counts[0] : 0;
    const int status = train_load_weights(&m->net, path, err, sizeof err);
    if (!CHECK(status == -1 && strstr(err, words), "an error that says what is wrong"))
        printf("    '%s', expected '%s'\n", err, words);
    same_bits("parameters", m->net.params, params, m->net.n_params * sizeof(float));
    same_bits("statistics", m->net.stats, stats, m->net.n_stats * sizeof(float));
    for (int i = 0; i < m->net.n_counts; i++) CHECK(m->net.counts[i] == tracked, "batch count is kept");
    free(params);
    free(stats);
}

// Runs the whole program with a command line, separated by single spaces; returns its exit status.
static inline int run_program(const char *format, const char *dir) {
    char text[4096], *words[64];
    int n = 0;
    snprintf(text, sizeof text, format, dir, dir);
    for (char *w = strtok(text, " "); w && n < 63; w = strtok(NULL, " ")) words[n++] = w;
    words[n] = NULL;
    config c = default_config();
    parse_command_line(&c, n, words);
    const int status = run(&c);
    free(c.train.table);
    free(c.train.stored);
    return status;
}

// Everything a file holds, in memory of the case; *n its size, 0 when it cannot be read.
static inline char *contents(const char *dir, const char *name, size_t *n) {
    char path[LOG_PATH], *bytes = (char *)host_bytes(1 << 20);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    *n = f ? fread(bytes, 1, 1 << 20, f) : 0;
    if (f) fclose(f);
    return bytes;
}
