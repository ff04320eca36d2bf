// corpus.h -- tokens for a language model: texts and token shards, split for training and validation, cut into windows.
//
//     corpus_load(d, options, val_data, context, &vocabulary, err, size)   reads --data and --val-data
//     corpus_window_start(d, context, windows, options, epoch, i)          where window i of an epoch starts
//     corpus_fingerprint(d)                                                a number that other tokens would change
//     corpus_free(d)
//
// A window is `context` tokens and the one that follows them: each token's target is the next token.
//
// C11, C++17. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "dataset.h"
#include "log.h"
#include "options.h"
#include "rng.h"
#include "safetensors.h"

typedef struct corpus {
    char name[64];
    int bytes;              // tokens are bytes
    int start;              // stands for an empty prompt: a newline where the vocabulary has one, else 0
    uint16_t *train, *val;  // one allocation each; val may be the end of train's
    size_t n_train, n_val;
    uint16_t *owned[2];
} corpus;

static inline void corpus_free(corpus *d) {
    free(d->owned[0]);
    free(d->owned[1]);
    memset(d, 0, sizeof *d);
}

// Reads the tokens of a text (its bytes) or of a token shard. Returns 0, or -1 with a message that names the file.
static inline int corpus_read(const char *name, const char *dir, int bytes, uint16_t **tokens, size_t *n, char *err,
                              size_t size) {
    if (!bytes) {
        dataset_shard shard;
        if (dataset_shard_load(name, &shard, err, size)) return -1;
        *tokens = shard.tokens;
        *n = shard.n;
        return 0;
    }
    dataset_text text;
    if (dataset_text_load(name, dir, &text, err, size)) return -1;
    *tokens = (uint16_t *)train_alloc(NULL, text.n, sizeof **tokens);
    *n = text.n;
    for (size_t i = 0; i < text.n; i++) (*tokens)[i] = text.bytes[i];
    dataset_text_free(&text);
    return 0;
}

// As corpus_read, and checks every token against the vocabulary. *vocabulary = 0: set to 256 for a text, to GPT-2's
// 50257 for a shard. *bytes: set to whether the tokens are bytes.
static inline int corpus_read_checked(const char *name, const char *dir, int *vocabulary, int *bytes,
                                      uint16_t **tokens, size_t *n, char *err, size_t size) {
    *bytes = !dataset_is_shard(name);
    if (corpus_read(name, dir, *bytes, tokens, n, err, size)) return -1;
    if (!*vocabulary) *vocabulary = *bytes ? 256 : 50257;
    for (size_t i = 0; i < *n; i++) {
        const int token = (*tokens)[i];
        if (token < *vocabulary) continue;
        log_error(err, size, "%s: %s %zu is %d, beyond the vocabulary of %d (--vocabulary)", name,
                  *bytes ? "byte" : "token", i, token, *vocabulary);
        free(*tokens);
        *tokens = NULL;
        return -1;
    }
    return 0;
}

// Cuts the last tenth, at least one window, off the training tokens for validation. Returns 0, or -1 with a message.
static inline int corpus_split(corpus *d, const char *name, int context, char *err, size_t size) {
    const size_t window = (size_t)context + 1, tenth = d->n_train / 10;
    if (d->n_train < 2 * window)
        return log_error(err, size, "%s: too short: expected at least %zu tokens, for training and validation windows "
                         "of --context %d and its next token, found %zu", name, 2 * window, context, d->n_train);
    d->n_val = tenth > window ? tenth : window;
    d->n_train -= d->n_val;
    d->val = d->train + d->n_train;
    return 0;
}

// Loads --data and, unless val_data is NULL, --val-data. Without it the last tenth of --data validates. *vocabulary as
// in corpus_read_checked. --limit counts windows of `context` tokens. Returns 0, or -1 with a message.
static inline int corpus_load(corpus *d, const train_options *o, const char *val_data, int context, int *vocabulary,
                              char *err, size_t size) {
    const size_t window = (size_t)context + 1, limit = (size_t)o->limit * (size_t)context + 1;
    const char *dir = o->data_dir;
    int bytes;
    memset(d, 0, sizeof *d);
    snprintf(d->name, sizeof d->name, "%.63s", o->data);
    if (corpus_read_checked(o->data, dir, vocabulary, &d->bytes, &d->owned[0], &d->n_train, err, size)) return -1;
    d->train = d->owned[0];
    d->start = d->bytes && *vocabulary > '\n' ? '\n' : 0;
    if (val_data) {
        if (corpus_read_checked(val_data, dir, vocabulary, &bytes, &d->owned[1], &d->n_val, err, size)) return -1;
        if (bytes != d->bytes)
            return log_error(err, size, "--val-data: %s and %s are not the same kind of file", val_data, o->data);
        d->val = d->owned[1];
    } else if (corpus_split(d, o->data, context, err, size)) {
        return -1;
    }
    if (d->n_train < window || d->n_val < window) {
        const int training = d->n_train < window;
        const char *name = training ? o->data : val_data;
        const size_t found = training ? d->n_train : d->n_val;
        return log_error(err, size, "%s: too short: expected at least %zu tokens (--context and one), found %zu", name,
                         window, found);
    }
    if (o->limit && d->n_train > limit) d->n_train = limit;
    return 0;
}

// Where window i of an epoch starts in the training tokens. The windows of an epoch are disjoint. --shuffle epoch gives
// every epoch a new order and a new offset, so that the same text is cut differently.
static inline size_t corpus_window_start(const corpus *d, int context, int64_t windows, const train_options *o,
                                         int64_t epoch, int64_t i) {
    const size_t T = (size_t)context, spare = d->n_train - 1 - (size_t)windows * T;
    if (o->shuffle == SHUFFLE_NONE) return (size_t)i * T;
    const uint64_t seed = (uint64_t)o->seed;
    const uint32_t word = rng_word_at(seed, rng_stream(RNG_AUGMENTATION, 0), (uint64_t)epoch);
    const uint32_t shift = rng_below(word, (uint32_t)(spare < T ? spare + 1 : T));
    const uint32_t place = rng_permute((uint32_t)i, (uint32_t)windows, rng_permute_key(seed, (uint64_t)epoch));
    return (size_t)place * T + shift;
}

// A number that other tokens would change.
static inline uint64_t corpus_fingerprint(const corpus *d) {
    const uint64_t n[] = {d->n_train, d->n_val, (uint64_t)d->bytes};
    safetensors_xxh64 h;
    safetensors_xxh64_init(&h);
    safetensors_xxh64_update(&h, n, sizeof n);
    safetensors_xxh64_update(&h, d->train, d->n_train * sizeof *d->train);
    safetensors_xxh64_update(&h, d->val, d->n_val * sizeof *d->val);
    return safetensors_xxh64_digest(&h);
}
