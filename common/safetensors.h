// safetensors.h -- read and write safetensors files, the format of every checkpoint.
//
//     #include "common/safetensors.h"
//
//     char err[SAFETENSORS_ERROR_SIZE];
//     safetensors_file f;
//     const int64_t shape[2] = {512, 784};
//     if (safetensors_open(&f, "model.safetensors", err, sizeof err)) return fail(err);
//     if (safetensors_read_f32(&f, "fc1.weight", 2, shape, w, err, sizeof err)) ...
//     safetensors_close(&f);
//
//     safetensors_tensor t[2] = {safetensors_make("fc1.weight", SAFETENSORS_F32, 2, shape, w),
//                                safetensors_make("step", SAFETENSORS_I64, 0, NULL, &step)};
//     const safetensors_pair about[1] = {{"model", "784-512-10"}};
//     if (safetensors_write("model.safetensors", t, 2, about, 1, err, sizeof err)) return fail(err);
//
// Header-only; C11, C++17 and CUDA. POSIX files (compile C with -D_GNU_SOURCE or -std=gnu11), little-endian machines.
//
// The format: 8 bytes, little-endian, with the length of the header; the header, a JSON object in UTF-8, which starts
// with '{' and may be padded with spaces; the payload, up to the end of the file. The header maps each tensor's name to
// {"dtype": .., "shape": [..], "data_offsets": [begin, end]} (offsets into the payload, row-major data) and may map
// "__metadata__" to an object of strings (or to null).
//
// Errors: a function that can fail returns 0 on success and -1 on error, with one line in err[err_size] that names the
// file and the tensor. Nothing here prints or exits. A failed read leaves its output as it was.
//
// Reading
//     safetensors_open(&f, path, err, err_size)   reads the file into memory and checks all of it:
//             the header's length (at most SAFETENSORS_MAX_HEADER and the file), its JSON, known keys and dtypes, every
//             shape and range, end - begin == elements * size of an element, that the ranges cover the payload without
//             overlap, hole or rest, that no name comes twice, and the payload's checksum where there is one.
//             f is zeroed on an error. Offsets need not be aligned. The JSON that is accepted is exactly the format's:
//             no key beyond the three of a tensor, no number that is not a plain integer. The file is closed again.
//     safetensors_close(&f)                       frees everything; also fine on a zeroed or closed f
//     safetensors_find(&f, name)                  the tensor, or NULL; O(log n)
//     safetensors_metadata(&f, key)               the value, or NULL
//     f.tensors[0 .. f.n_tensors)                 all tensors, in the header's order
//     f.metadata[0 .. f.n_metadata)               all metadata, sorted by key
//     safetensors_read(&f, name, dtype, ndim, shape, out, err, err_size)
//             copies a tensor of exactly this dtype and shape
//     safetensors_read_f32(&f, name, ndim, shape, out, err, err_size)
//             a tensor of this shape as floats; F64, F16 and BF16 are converted. An element that is not finite, or an
//             F64 beyond the range of a float, is an error. out is written only when the whole tensor is good.
//     safetensors_read_integer(&f, name, &out, err, err_size)
//             a single number of any shape that holds one ([], [1]), integer or float, whose value is an integer
//     tensor->data                                the bytes themselves, valid until safetensors_close. NOT aligned to
//                                                 the element's size in general: use memcpy.
//
// Writing
//     safetensors_make(name, dtype, ndim, shape, data)   describes a tensor; ndim 0 and shape NULL for a scalar. A
//             shape with more than SAFETENSORS_MAX_DIMS dimensions is reported by safetensors_write.
//     safetensors_write(path, tensors, n_tensors, metadata, n_metadata, err, err_size)
//             The header lists the tensors in the given order. The payload holds those with larger elements first, each
//             size in the given order, so that all are aligned (Python's safetensors needs that). Adds the metadata
//             "payload_checksum": "xxh64:" and XXH64 of the payload (seed 0) as 16 hex digits.
//             Atomic: writes PATH.tmp.PID in the same folder, checks every write, syncs, renames, syncs the folder. On
//             an error the temporary file is gone and an older file at path is untouched. (If only the folder's sync
//             fails, the new file is in place, and the message says so.) A symbolic link at path is replaced. Two
//             threads of a process must not write the same path at once.
//
//     safetensors_payload_checksum(tensors, n_tensors)   that checksum as a number, before anything is written
//
// The checksum covers the payload, not the header: what a resumed run depends on (step, epoch, seed) belongs in
// tensors, an I64 scalar each; metadata are for people.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#include "message.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors.h: the format is little-endian, this machine is not"
#endif

#define SAFETENSORS_ERROR_SIZE 1024
#define SAFETENSORS_MAX_DIMS 8
#define SAFETENSORS_MAX_HEADER 100000000u  // bytes, the limit of the format's own implementation
#define SAFETENSORS_CHECKSUM_KEY "payload_checksum"

typedef enum {
    SAFETENSORS_BOOL, SAFETENSORS_U8, SAFETENSORS_I8, SAFETENSORS_F8_E4M3, SAFETENSORS_F8_E5M2, SAFETENSORS_F8_E8M0,
    SAFETENSORS_U16, SAFETENSORS_I16, SAFETENSORS_F16, SAFETENSORS_BF16,
    SAFETENSORS_U32, SAFETENSORS_I32, SAFETENSORS_F32,
    SAFETENSORS_U64, SAFETENSORS_I64, SAFETENSORS_F64, SAFETENSORS_C64,
    SAFETENSORS_N_DTYPES
} safetensors_dtype;

typedef struct {
    const char *name;  // UTF-8
    safetensors_dtype dtype;
    int ndim;
    int64_t shape[SAFETENSORS_MAX_DIMS];  // [ndim]
    const void *data;
    int64_t numel;   // number of elements; filled in by safetensors_open
    size_t n_bytes;  // numel * size of an element; likewise
    size_t offset;   // of the first byte in the payload; likewise
} safetensors_tensor;

typedef struct {
    const char *key, *value;  // UTF-8
} safetensors_pair;

typedef struct {
    char *path;
    safetensors_tensor *tensors;  // [n_tensors]
    safetensors_pair *metadata;   // [n_metadata]
    size_t n_tensors, n_metadata, payload_size;
    unsigned char *payload;            // [payload_size]
    char *text;                        // the header's strings, unescaped, each with a closing 0
    safetensors_tensor **by_name;      // [n_tensors], sorted
    safetensors_tensor **by_position;  // [n_tensors], sorted by the offset in the payload
} safetensors_file;

#if defined(__GNUC__) || defined(__clang__)
#define SAFETENSORS_PRINTF(text, args) __attribute__((format(printf, text, args)))
#else
#define SAFETENSORS_PRINTF(format, args)
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Small parts

// Writes "path: message" as one line, cleaned of what a name can hold (message.h), and returns -1.
static inline int safetensors_error(char *err, size_t err_size, const char *path, const char *format, ...)
    SAFETENSORS_PRINTF(4, 5);
static inline int safetensors_error(char *err, size_t err_size, const char *path, const char *format, ...) {
    if (!err || !err_size) return -1;
    va_list args;
    va_start(args, format);
    const int prefix = snprintf(err, err_size, "%s: ", path);
    if (prefix > 0 && (size_t)prefix < err_size) vsnprintf(err + prefix, err_size - (size_t)prefix, format, args);
    va_end(args);
    message_clean(err);
    return -1;
}

// Name of a dtype in the format; NULL for a number that is none.
static inline const char *safetensors_dtype_name(safetensors_dtype dtype) {
    static const char *const names[SAFETENSORS_N_DTYPES] = {"BOOL", "U8",  "I8",  "F8_E4M3", "F8_E5M2", "F8_E8M0",
                                                            "U16",  "I16", "F16", "BF16",    "U32",     "I32",
                                                            "F32",  "U64", "I64", "F64",     "C64"};
    return (unsigned)dtype < SAFETENSORS_N_DTYPES ? names[dtype] : NULL;
}

// Bytes per element: 1, 2, 4 or 8.
static inline size_t safetensors_dtype_size(safetensors_dtype dtype) {
    if (dtype <= SAFETENSORS_F8_E8M0) return 1;
    if (dtype <= SAFETENSORS_BF16) return 2;
    return dtype <= SAFETENSORS_F32 ? 4 : 8;
}

// Fills in numel and n_bytes. Returns -1 if the size is negative or does not fit.
static inline int safetensors_measure(safetensors_tensor *t) {
    const int64_t limit = (int64_t)(PTRDIFF_MAX / safetensors_dtype_size(t->dtype));
    int empty = 0;
    t->numel = 1;
    for (int d = 0; d < t->ndim; d++) {
        if (t->shape[d] < 0) return -1;
        empty |= t->shape[d] == 0;
    }
    for (int d = 0; d < t->ndim && !empty; d++) {
        if (t->shape[d] > limit / t->numel) return -1;
        t->numel *= t->shape[d];
    }
    if (empty) t->numel = 0;
    t->n_bytes = (size_t)t->numel * safetensors_dtype_size(t->dtype);
    return 0;
}

// Writes a shape as "[512,784]".
static inline const char *safetensors_shape_text(char *buf, size_t n, int ndim, const int64_t *shape) {
    size_t used = (size_t)snprintf(buf, n, "[");
    for (int d = 0; d < ndim && used < n; d++)
        used += (size_t)snprintf(buf + used, n - used, d ? ",%lld" : "%lld", (long long)shape[d]);
    if (used < n) snprintf(buf + used, n - used, "]");
    return buf;
}

// ---------------------------------------------------------------------------------------------------------------------
// Checksum: XXH64 with seed 0, fed in pieces

typedef struct {
    uint64_t lane[4], length;
    unsigned char rest[32];  // the last length % 32 bytes
} safetensors_xxh64;

#define SAFETENSORS_P1 0x9E3779B185EBCA87ull
#define SAFETENSORS_P2 0xC2B2AE3D27D4EB4Full
#define SAFETENSORS_P3 0x165667B19E3779F9ull
#define SAFETENSORS_P4 0x85EBCA77C2B2AE63ull
#define SAFETENSORS_P5 0x27D4EB2F165667C5ull

static inline uint64_t safetensors_rotate(uint64_t x, int bits) {
    return x << bits | x >> (64 - bits);
}

static inline uint64_t safetensors_xxh64_round(uint64_t lane, uint64_t input) {
    return safetensors_rotate(lane + input * SAFETENSORS_P2, 31) * SAFETENSORS_P1;
}

static inline void safetensors_xxh64_init(safetensors_xxh64 *h) {
    memset(h, 0, sizeof *h);
    h->lane[0] = SAFETENSORS_P1 + SAFETENSORS_P2;
    h->lane[1] = SAFETENSORS_P2;
    h->lane[3] = 0 - SAFETENSORS_P1;
}

// Takes in whole stripes of 32 bytes.
static inline void safetensors_xxh64_stripes(safetensors_xxh64 *h, const unsigned char *p, size_t stripes) {
    uint64_t a = h->lane[0], b = h->lane[1], c = h->lane[2], d = h->lane[3], in[4];
    for (; stripes > 0; stripes--, p += 32) {
        memcpy(in, p, 32);
        a = safetensors_xxh64_round(a, in[0]);
        b = safetensors_xxh64_round(b, in[1]);
        c = safetensors_xxh64_round(c, in[2]);
        d = safetensors_xxh64_round(d, in[3]);
    }
    h->lane[0] = a;
    h->lane[1] = b;
    h->lane[2] = c;
    h->lane[3] = d;
}

static inline void safetensors_xxh64_update(safetensors_xxh64 *h, const void *data, size_t n) {
    if (n == 0) return;
    const unsigned char *p = (const unsigned char *)data;
    const size_t used = (size_t)(h->length % 32);
    h->length += n;
    if (used) {
        const size_t take = n < 32 - used ? n : 32 - used;
        memcpy(h->rest + used, p, take);
        p += take;
        n -= take;
        if (used + take < 32) return;
        safetensors_xxh64_stripes(h, h->rest, 1);
    }
    safetensors_xxh64_stripes(h, p, n / 32);
    if (n % 32) memcpy(h->rest, p + n / 32 * 32, n % 32);
}

static inline uint64_t safetensors_xxh64_digest(const safetensors_xxh64 *h) {
    const uint64_t *v = h->lane;
    uint64_t x = SAFETENSORS_P5;
    if (h->length >= 32) {
        x = safetensors_rotate(v[0], 1) + safetensors_rotate(v[1], 7) + safetensors_rotate(v[2], 12) +
            safetensors_rotate(v[3], 18);
        for (int i = 0; i < 4; i++) x = (x ^ safetensors_xxh64_round(0, v[i])) * SAFETENSORS_P1 + SAFETENSORS_P4;
    }
    x += h->length;
    const unsigned char *p = h->rest, *end = p + h->length % 32;
    for (; end - p >= 8; p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        x = safetensors_rotate(x ^ safetensors_xxh64_round(0, word), 27) * SAFETENSORS_P1 + SAFETENSORS_P4;
    }
    if (end - p >= 4) {
        uint32_t word;
        memcpy(&word, p, 4);
        x = safetensors_rotate(x ^ word * SAFETENSORS_P1, 23) * SAFETENSORS_P2 + SAFETENSORS_P3;
        p += 4;
    }
    for (; p < end; p++) x = safetensors_rotate(x ^ *p * SAFETENSORS_P5, 11) * SAFETENSORS_P1;
    x = (x ^ x >> 33) * SAFETENSORS_P2;
    x = (x ^ x >> 29) * SAFETENSORS_P3;
    return x ^ x >> 32;
}

// Writes the metadata's value for a checksum: "xxh64:" and 16 hex digits.
static inline const char *safetensors_checksum_text(const safetensors_xxh64 *h, char buf[24]) {
    snprintf(buf, 24, "xxh64:%016llx", (unsigned long long)safetensors_xxh64_digest(h));
    return buf;
}

// ---------------------------------------------------------------------------------------------------------------------
// Header parser. The format has a fixed depth, so each level is a function and nothing recurses.

typedef struct {
    const unsigned char *start, *p, *end;  // the header; the next byte
    char *text;                            // where the next unescaped string goes; as large as the header
    safetensors_file *f;
    size_t tensor_capacity, metadata_capacity;
    char *err;
    size_t err_size;
} safetensors_parser;

// A syntax error at the parser's position.
static inline int safetensors_syntax(const safetensors_parser *s, const char *expected) {
    char found[24];
    if (s->p >= s->end) snprintf(found, sizeof found, "the header's end");
    else snprintf(found, sizeof found, *s->p > 0x20 && *s->p < 0x7f ? "'%c'" : "byte 0x%02x", *s->p);
    return safetensors_error(s->err, s->err_size, s->f->path, "header, byte %zu: expected %s, found %s",
                             (size_t)(s->p - s->start), expected, found);
}

static inline void safetensors_skip_space(safetensors_parser *s) {
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t')) s->p++;
}

// Takes the character c, with white space around it, if it comes next.
static inline int safetensors_take(safetensors_parser *s, char c) {
    safetensors_skip_space(s);
    if (s->p >= s->end || *s->p != (unsigned char)c) return 0;
    s->p++;
    safetensors_skip_space(s);
    return 1;
}

// Four hex digits of a \u escape; -1 on error.
static inline int safetensors_hex4(safetensors_parser *s) {
    int value = 0;
    for (int i = 0; i < 4; i++, s->p++) {
        const int c = s->p < s->end ? *s->p : 0;
        const int lower = c | 0x20;
        if (c >= '0' && c <= '9') value = value * 16 + (c - '0');
        else if (lower >= 'a' && lower <= 'f') value = value * 16 + (lower - 'a' + 10);
        else return safetensors_syntax(s, "four hex digits");
    }
    return value;
}

// What follows a backslash, as UTF-8. \u0000 is refused, since strings end with a 0 here.
static inline int safetensors_escape(safetensors_parser *s) {
    const char *const from = "\"\\/bfnrt", *const to = "\"\\/\b\f\n\r\t";
    const char *const at = s->p < s->end && *s->p ? strchr(from, *s->p) : NULL;
    if (at) {
        s->p++;
        *s->text++ = to[at - from];
        return 0;
    }
    if (s->p >= s->end || *s->p != 'u') return safetensors_syntax(s, "an escape: one of \"\\/bfnrtu");
    s->p++;
    int code = safetensors_hex4(s);
    if (code < 0) return -1;
    if (code == 0) return safetensors_syntax(s, "no \\u0000");
    if (code >= 0xDC00 && code < 0xE000) return safetensors_syntax(s, "no low surrogate without a high one");
    if (code >= 0xD800 && code < 0xDC00) {
        if (s->end - s->p < 2 || s->p[0] != '\\' || s->p[1] != 'u') return safetensors_syntax(s, "a low surrogate");
        s->p += 2;
        const int low = safetensors_hex4(s);
        if (low < 0) return -1;
        if (low < 0xDC00 || low >= 0xE000) return safetensors_syntax(s, "a low surrogate before it");
        code = 0x10000 + (code - 0xD800) * 0x400 + (low - 0xDC00);
    }
    if (code < 0x80) {
        *s->text++ = (char)code;
        return 0;
    }
    const int more = 1 + (code >= 0x800) + (code >= 0x10000);  // continuation bytes
    *s->text++ = (char)((0xFF00 >> (more + 1) & 0xFF) | code >> 6 * more);  // 110xxxxx, 1110xxxx, 11110xxx
    for (int i = more - 1; i >= 0; i--) *s->text++ = (char)(0x80 | (code >> 6 * i & 0x3F));
    return 0;
}

// A string; NULL on error. The result lives in f->text.
static inline const char *safetensors_string(safetensors_parser *s, const char *expected) {
    const char *const result = s->text;
    if (s->p >= s->end || *s->p != '"') {
        safetensors_syntax(s, expected);
        return NULL;
    }
    s->p++;
    while (s->p < s->end && *s->p != '"') {
        if (*s->p == '\\') {
            s->p++;
            if (safetensors_escape(s)) return NULL;
            continue;
        }
        const int n = *s->p < 0x20 ? 0 : message_utf8_within((const char *)s->p, (size_t)(s->end - s->p));
        if (n == 0) {
            safetensors_syntax(s, "UTF-8 without control characters");
            return NULL;
        }
        memcpy(s->text, s->p, (size_t)n);
        s->text += n;
        s->p += n;
    }
    if (s->p >= s->end) {
        safetensors_syntax(s, "the end of a string");
        return NULL;
    }
    s->p++;
    *s->text++ = 0;
    return result;
}

// A key and the colon behind it.
static inline const char *safetensors_key(safetensors_parser *s) {
    const char *const key = safetensors_string(s, "a key in double quotes");
    if (key && !safetensors_take(s, ':')) {
        safetensors_syntax(s, "':'");
        return NULL;
    }
    return key;
}

// A list of integers >= 0, at most max of them. Returns how many there are, or -1.
static inline int safetensors_integers(safetensors_parser *s, const char *name, const char *key, int64_t *out,
                                       int max) {
    int n = 0;
    if (!safetensors_take(s, '[')) return safetensors_syntax(s, "'['");
    if (safetensors_take(s, ']')) return 0;
    do {
        if (n == max)
            return safetensors_error(s->err, s->err_size, s->f->path, "tensor '%.200s': %s has more than %d numbers",
                                     name, key, max);
        const unsigned char *const first = s->p;
        int64_t value = 0;
        for (; s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++) {
            const int digit = *s->p - '0';
            if (value > (INT64_MAX - digit) / 10)
                return safetensors_error(s->err, s->err_size, s->f->path,
                                         "tensor '%.200s': a number in %s is too large", name, key);
            value = value * 10 + digit;
        }
        if (s->p == first || (*first == '0' && s->p - first > 1)) {
            s->p = first;
            return safetensors_syntax(s, "an integer >= 0 without leading zeros");
        }
        out[n++] = value;
    } while (safetensors_take(s, ','));
    return safetensors_take(s, ']') ? n : safetensors_syntax(s, "',' or ']'");
}

// The dtype by its name.
static inline int safetensors_parse_dtype(safetensors_parser *s, safetensors_tensor *t) {
    const char *const found = safetensors_string(s, "the dtype, a string");
    if (!found) return -1;
    for (int d = 0; d < SAFETENSORS_N_DTYPES; d++) {
        t->dtype = (safetensors_dtype)d;
        if (!strcmp(safetensors_dtype_name(t->dtype), found)) return 0;
    }
    return safetensors_error(s->err, s->err_size, s->f->path, "tensor '%.200s': unknown dtype '%.32s'", t->name, found);
}

// The object that describes a tensor, checked against the payload's size.
static inline int safetensors_parse_tensor(safetensors_parser *s, safetensors_tensor *t) {
    static const char *const keys[3] = {"dtype", "shape", "data_offsets"};
    const char *const path = s->f->path;
    int64_t offsets[2];
    int seen = 0;
    if (!safetensors_take(s, '{')) return safetensors_syntax(s, "'{'");
    do {
        const char *const key = safetensors_key(s);
        if (!key) return -1;
        int which = 0;
        while (which < 3 && strcmp(key, keys[which])) which++;
        if (which == 3)
            return safetensors_error(s->err, s->err_size, path, "tensor '%.200s': unknown key '%.64s'", t->name, key);
        if (seen & 1 << which)
            return safetensors_error(s->err, s->err_size, path, "tensor '%.200s': %s is there twice", t->name, key);
        seen |= 1 << which;
        if (which == 0 && safetensors_parse_dtype(s, t)) return -1;
        if (which == 1 && (t->ndim = safetensors_integers(s, t->name, key, t->shape, SAFETENSORS_MAX_DIMS)) < 0)
            return -1;
        if (which == 2) {
            const int n = safetensors_integers(s, t->name, key, offsets, 2);
            if (n < 0) return -1;
            if (n != 2)
                return safetensors_error(s->err, s->err_size, path, "tensor '%.200s': data_offsets needs 2 numbers",
                                         t->name);
        }
    } while (safetensors_take(s, ','));
    if (!safetensors_take(s, '}')) return safetensors_syntax(s, "',' or '}'");
    for (int which = 0; which < 3; which++)
        if (!(seen & 1 << which))
            return safetensors_error(s->err, s->err_size, path, "tensor '%.200s': no %s", t->name, keys[which]);

    char shape[200];
    safetensors_shape_text(shape, sizeof shape, t->ndim, t->shape);
    if (safetensors_measure(t))
        return safetensors_error(s->err, s->err_size, path, "tensor '%.200s': shape %s is too large", t->name, shape);
    const long long b = (long long)offsets[0], e = (long long)offsets[1];
    if (e < b)
        return safetensors_error(s->err, s->err_size, path,
                                 "tensor '%.200s': offsets [%lld,%lld) end before they begin", t->name, b, e);
    if ((uint64_t)e > s->f->payload_size)
        return safetensors_error(s->err, s->err_size, path,
                                 "tensor '%.200s': offsets [%lld,%lld) run past the payload of %zu bytes", t->name, b,
                                 e, s->f->payload_size);
    if ((uint64_t)(e - b) != t->n_bytes)
        return safetensors_error(s->err, s->err_size, path,
                                 "tensor '%.200s': offsets [%lld,%lld) hold %lld bytes, %s of shape %s needs %zu",
                                 t->name, b, e, e - b, safetensors_dtype_name(t->dtype), shape, t->n_bytes);
    t->offset = (size_t)b;
    return 0;
}

// Makes room for one more element of an array.
static inline int safetensors_grow(safetensors_parser *s, void **array, size_t used, size_t *capacity, size_t size) {
    if (used < *capacity) return 0;
    const size_t larger = *capacity ? 2 * *capacity : 16;
    void *const moved = realloc(*array, larger * size);
    if (!moved) return safetensors_error(s->err, s->err_size, s->f->path, "out of memory for the header");
    *array = moved;
    *capacity = larger;
    return 0;
}

// Takes null, with white space behind it, if it comes next: some writers have it for no metadata.
static inline int safetensors_take_null(safetensors_parser *s) {
    if (s->end - s->p < 4 || memcmp(s->p, "null", 4)) return 0;
    s->p += 4;
    safetensors_skip_space(s);
    return 1;
}

// The object of __metadata__: strings only, no key twice.
static inline int safetensors_parse_metadata(safetensors_parser *s) {
    safetensors_file *const f = s->f;
    if (!safetensors_take(s, '{')) return safetensors_syntax(s, "'{'");
    if (safetensors_take(s, '}')) return 0;
    do {
        void *array = f->metadata;
        if (safetensors_grow(s, &array, f->n_metadata, &s->metadata_capacity, sizeof *f->metadata)) return -1;
        f->metadata = (safetensors_pair *)array;
        safetensors_pair *const pair = &f->metadata[f->n_metadata];
        if (!(pair->key = safetensors_key(s))) return -1;
        if (!(pair->value = safetensors_string(s, "a string (__metadata__ maps strings to strings)"))) return -1;
        f->n_metadata++;
    } while (safetensors_take(s, ','));
    return safetensors_take(s, '}') ? 0 : safetensors_syntax(s, "',' or '}'");
}

// The whole header.
static inline int safetensors_parse(safetensors_parser *s) {
    safetensors_file *const f = s->f;
    int has_metadata = 0;
    if (s->p >= s->end || *s->p != '{') return safetensors_syntax(s, "'{'");
    s->p++;
    safetensors_skip_space(s);
    if (!safetensors_take(s, '}')) {
        do {
            const char *const name = safetensors_key(s);
            if (!name) return -1;
            if (!strcmp(name, "__metadata__")) {
                if (has_metadata++)
                    return safetensors_error(s->err, s->err_size, f->path, "__metadata__ is there twice");
                if (safetensors_take_null(s)) continue;
                if (safetensors_parse_metadata(s)) return -1;
                continue;
            }
            void *array = f->tensors;
            if (safetensors_grow(s, &array, f->n_tensors, &s->tensor_capacity, sizeof *f->tensors)) return -1;
            f->tensors = (safetensors_tensor *)array;
            safetensors_tensor *const t = &f->tensors[f->n_tensors];
            memset(t, 0, sizeof *t);
            t->name = name;
            if (safetensors_parse_tensor(s, t)) return -1;
            f->n_tensors++;
        } while (safetensors_take(s, ','));
        if (!safetensors_take(s, '}')) return safetensors_syntax(s, "',' or '}'");
    }
    return s->p == s->end ? 0 : safetensors_syntax(s, "nothing but spaces behind the header's last '}'");
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

static inline int safetensors_compare_names(const void *a, const void *b) {
    return strcmp((*(safetensors_tensor *const *)a)->name, (*(safetensors_tensor *const *)b)->name);
}

// By offset; an empty tensor comes before the one that starts where it lies.
static inline int safetensors_compare_positions(const void *a, const void *b) {
    const safetensors_tensor *const s = *(safetensors_tensor *const *)a, *const t = *(safetensors_tensor *const *)b;
    if (s->offset != t->offset) return s->offset < t->offset ? -1 : 1;
    return (s->n_bytes > t->n_bytes) - (s->n_bytes < t->n_bytes);
}

static inline int safetensors_compare_keys(const void *a, const void *b) {
    return strcmp(((const safetensors_pair *)a)->key, ((const safetensors_pair *)b)->key);
}

// Builds by_name and checks that no name and no metadata key comes twice.
static inline int safetensors_check_names(safetensors_file *f, char *err, size_t err_size) {
    const size_t n = f->n_tensors;
    f->by_name = (safetensors_tensor **)malloc((n + 1) * sizeof *f->by_name);
    if (!f->by_name) return safetensors_error(err, err_size, f->path, "out of memory for the header");
    for (size_t i = 0; i < n; i++) f->by_name[i] = &f->tensors[i];
    qsort(f->by_name, n, sizeof *f->by_name, safetensors_compare_names);
    for (size_t i = 1; i < n; i++)
        if (!strcmp(f->by_name[i - 1]->name, f->by_name[i]->name))
            return safetensors_error(err, err_size, f->path, "tensor '%.200s' is there twice", f->by_name[i]->name);
    if (f->n_metadata) qsort(f->metadata, f->n_metadata, sizeof *f->metadata, safetensors_compare_keys);
    for (size_t i = 1; i < f->n_metadata; i++)
        if (!strcmp(f->metadata[i - 1].key, f->metadata[i].key))
            return safetensors_error(err, err_size, f->path, "metadata key '%.200s' is there twice",
                                     f->metadata[i].key);
    return 0;
}

// Builds by_position and checks that the tensors cover the payload exactly.
static inline int safetensors_check_cover(safetensors_file *f, char *err, size_t err_size) {
    const size_t n = f->n_tensors;
    size_t covered = 0;
    f->by_position = (safetensors_tensor **)malloc((n + 1) * sizeof *f->by_position);
    if (!f->by_position) return safetensors_error(err, err_size, f->path, "out of memory for the header");
    for (size_t i = 0; i < n; i++) f->by_position[i] = &f->tensors[i];
    qsort(f->by_position, n, sizeof *f->by_position, safetensors_compare_positions);
    for (size_t i = 0; i < n; i++) {
        const safetensors_tensor *const t = f->by_position[i];
        if (t->offset < covered)
            return safetensors_error(err, err_size, f->path,
                                     "tensor '%.200s': offsets [%zu,%zu) overlap tensor '%.200s', which ends at %zu",
                                     t->name, t->offset, t->offset + t->n_bytes, f->by_position[i - 1]->name, covered);
        if (t->offset > covered)
            return safetensors_error(
                err, err_size, f->path,
                "tensor '%.200s': offsets [%zu,%zu) leave the bytes [%zu,%zu) before it to no tensor", t->name,
                t->offset, t->offset + t->n_bytes, covered, t->offset);
        covered += t->n_bytes;
    }
    if (covered != f->payload_size)
        return safetensors_error(err, err_size, f->path, "the tensors hold %zu bytes, the payload has %zu", covered,
                                 f->payload_size);
    return 0;
}

// Frees everything.
static inline void safetensors_close(safetensors_file *f) {
    free(f->path);
    free(f->tensors);
    free(f->metadata);
    free(f->payload);
    free(f->text);
    free(f->by_name);
    free(f->by_position);
    memset(f, 0, sizeof *f);
}

// The tensor of this name, or NULL.
static inline const safetensors_tensor *safetensors_find(const safetensors_file *f, const char *name) {
    size_t first = 0, end = f->n_tensors;
    while (first < end) {
        const size_t middle = first + (end - first) / 2;
        const int order = strcmp(name, f->by_name[middle]->name);
        if (order == 0) return f->by_name[middle];
        if (order < 0) end = middle;
        else first = middle + 1;
    }
    return NULL;
}

// The metadata's value for this key, or NULL.
static inline const char *safetensors_metadata(const safetensors_file *f, const char *key) {
    for (size_t i = 0; i < f->n_metadata; i++)
        if (!strcmp(f->metadata[i].key, key)) return f->metadata[i].value;
    return NULL;
}

// Reads exactly n bytes.
static inline int safetensors_read_all(int fd, void *out, size_t n, const char *path, char *err, size_t err_size) {
    for (size_t done = 0; done < n;) {
        const size_t chunk = n - done < (size_t)1 << 30 ? n - done : (size_t)1 << 30;
        const ssize_t got = read(fd, (char *)out + done, chunk);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return safetensors_error(err, err_size, path, "cannot read: %s", strerror(errno));
        if (got == 0) return safetensors_error(err, err_size, path, "became shorter while it was read");
        done += (size_t)got;
    }
    return 0;
}

// Compares the payload with the checksum in the metadata, if there is one.
static inline int safetensors_verify(const safetensors_file *f, char *err, size_t err_size) {
    const char *const stored = safetensors_metadata(f, SAFETENSORS_CHECKSUM_KEY);
    if (!stored) return 0;
    if (strlen(stored) != 22 || strncmp(stored, "xxh64:", 6) || strspn(stored + 6, "0123456789abcdef") != 16)
        return safetensors_error(err, err_size, f->path,
                                 "metadata " SAFETENSORS_CHECKSUM_KEY " is '%.64s', expected xxh64: and 16 hex digits",
                                 stored);
    safetensors_xxh64 h;
    char computed[24];
    safetensors_xxh64_init(&h);
    safetensors_xxh64_update(&h, f->payload, f->payload_size);
    if (strcmp(stored, safetensors_checksum_text(&h, computed)))
        return safetensors_error(
            err, err_size, f->path,
            "the payload does not match its checksum (%s stored, %s found): the file is damaged, or was "
            "changed by a program that kept its metadata",
            stored, computed);
    return 0;
}

// What else a file may be that begins with these 8 bytes, for the message that refuses it; NULL: unknown.
static inline const char *safetensors_guess(const unsigned char *prefix) {
    static const struct { const char *magic; size_t n; const char *what; } known[] = {
        {"PK\3\4", 4, "a zip archive, as torch.save writes: write it with safetensors.torch.save_file"},
        {"\x80\x02", 2, "a pickle, as old versions of torch.save write: write it with safetensors.torch.save_file"},
        {"version ", 8, "the pointer of a file in Git LFS: fetch it with git lfs pull"},
        {"\x1f\x8b", 2, "gzip data: unpack it"},
        {"\xfd" "7zXZ", 5, "xz data: unpack it"},
        {"\x28\xb5\x2f\xfd", 4, "zstd data: unpack it"},
        {"GGUF", 4, "a GGUF file"},
        {"\x89HDF", 4, "an HDF5 file"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!memcmp(prefix, known[i].magic, known[i].n)) return known[i].what;
    return NULL;
}

// Reads and checks the open file of the given size.
static inline int safetensors_load(safetensors_file *f, int fd, uint64_t size, char *err, size_t err_size) {
    unsigned char prefix[8];
    uint64_t header_size = 0;
    if (size < 8)
        return safetensors_error(err, err_size, f->path, "%llu bytes, too short for a safetensors file",
                                 (unsigned long long)size);
    if (safetensors_read_all(fd, prefix, 8, f->path, err, err_size)) return -1;
    for (int i = 7; i >= 0; i--) header_size = header_size << 8 | prefix[i];
    const int fits = header_size <= SAFETENSORS_MAX_HEADER && header_size <= size - 8;
    const char *const guess = fits ? NULL : safetensors_guess(prefix);
    if (guess) return safetensors_error(err, err_size, f->path, "not a safetensors file but %s", guess);
    if (!fits)
        return safetensors_error(
            err, err_size, f->path,
            "a header of %llu bytes does not fit the file of %llu bytes (limit %u): truncated, or not a "
            "safetensors file",
            (unsigned long long)header_size, (unsigned long long)size, SAFETENSORS_MAX_HEADER);
    f->payload_size = (size_t)(size - 8 - header_size);

    unsigned char *const header = (unsigned char *)malloc((size_t)header_size + 1);
    f->text = (char *)malloc((size_t)header_size + 1);
    if (!header || !f->text) {
        free(header);
        return safetensors_error(err, err_size, f->path, "out of memory for the header");
    }
    int status = safetensors_read_all(fd, header, (size_t)header_size, f->path, err, err_size);
    if (status == 0) {
        safetensors_parser s;
        memset(&s, 0, sizeof s);
        s.start = s.p = header;
        s.end = header + header_size;
        s.text = f->text;
        s.f = f;
        s.err = err;
        s.err_size = err_size;
        status = safetensors_parse(&s);
    }
    free(header);
    if (status || safetensors_check_names(f, err, err_size) || safetensors_check_cover(f, err, err_size)) return -1;

    void *payload = NULL;
    if (posix_memalign(&payload, 64, f->payload_size + 1))
        return safetensors_error(err, err_size, f->path, "out of memory for %zu bytes", f->payload_size);
    f->payload = (unsigned char *)payload;
    if (safetensors_read_all(fd, f->payload, f->payload_size, f->path, err, err_size)) return -1;
    for (size_t i = 0; i < f->n_tensors; i++) f->tensors[i].data = f->payload + f->tensors[i].offset;
    return safetensors_verify(f, err, err_size);
}

// Reads and checks a file.
static inline int safetensors_open(safetensors_file *f, const char *path, char *err, size_t err_size) {
    struct stat info;
    memset(f, 0, sizeof *f);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // O_NONBLOCK: a pipe must not block us
    if (fd < 0) return safetensors_error(err, err_size, path, "cannot open: %s", strerror(errno));
    int status;
    if (fstat(fd, &info)) status = safetensors_error(err, err_size, path, "cannot open: %s", strerror(errno));
    else if (!S_ISREG(info.st_mode)) status = safetensors_error(err, err_size, path, "is not a regular file");
    else if (!(f->path = (char *)malloc(strlen(path) + 1)))
        status = safetensors_error(err, err_size, path, "out of memory");
    else {
        memcpy(f->path, path, strlen(path) + 1);
        status = safetensors_load(f, fd, (uint64_t)info.st_size, err, err_size);
    }
    close(fd);
    if (status) safetensors_close(f);
    return status;
}

// The tensor of this name and shape; NULL with a message if there is none.
static inline const safetensors_tensor *safetensors_expect(const safetensors_file *f, const char *name, int ndim,
                                                           const int64_t *shape, char *err, size_t err_size) {
    const safetensors_tensor *const t = safetensors_find(f, name);
    char expected[200], found[200];
    if (!t) {
        char names[200] = "nothing";
        size_t used = 0, i = 0;
        for (; i < f->n_tensors && used < sizeof names - 20; i++)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%.60s", i ? ", " : "", f->tensors[i].name);
        safetensors_error(err, err_size, f->path, "no tensor '%.200s'; it holds %s%s", name, names,
                          i < f->n_tensors ? ", ..." : "");
        return NULL;
    }
    int same = ndim == t->ndim;
    for (int d = 0; same && d < ndim; d++) same = shape[d] == t->shape[d];
    if (same) return t;
    safetensors_error(err, err_size, f->path, "tensor '%.200s': expected shape %s, found %s", name,
                      safetensors_shape_text(expected, sizeof expected, ndim, shape),
                      safetensors_shape_text(found, sizeof found, t->ndim, t->shape));
    return NULL;
}

// Copies a tensor of exactly this dtype and shape.
static inline int safetensors_read(const safetensors_file *f, const char *name, safetensors_dtype dtype, int ndim,
                                   const int64_t *shape, void *out, char *err, size_t err_size) {
    const safetensors_tensor *const t = safetensors_expect(f, name, ndim, shape, err, err_size);
    if (!t) return -1;
    if (t->dtype != dtype)
        return safetensors_error(err, err_size, f->path, "tensor '%.200s': expected dtype %s, found %s", name,
                                 safetensors_dtype_name(dtype), safetensors_dtype_name(t->dtype));
    if (t->n_bytes) memcpy(out, t->data, t->n_bytes);
    return 0;
}

// Element i of F32, F64, F16 or BF16 data at any alignment.
static inline double safetensors_element(safetensors_dtype dtype, const void *data, size_t i) {
    const unsigned char *const p = (const unsigned char *)data;
    if (dtype == SAFETENSORS_F64) {
        double value;
        memcpy(&value, p + 8 * i, 8);
        return value;
    }
    uint32_t bits;
    if (dtype == SAFETENSORS_F32) {
        memcpy(&bits, p + 4 * i, 4);
    } else {
        const uint32_t half = (uint32_t)p[2 * i] | (uint32_t)p[2 * i + 1] << 8;
        if (dtype == SAFETENSORS_BF16) {
            bits = half << 16;
        } else {
            const uint32_t sign = (half & 0x8000) << 16, magnitude = half & 0x7FFF;
            if (magnitude < 0x400) return (sign ? -1.0 : 1.0) * magnitude / 16777216.0; // zero or subnormal: 2^-24 each
            bits = sign | (magnitude >= 0x7C00 ? 0x7F800000 | magnitude << 13 : (magnitude << 13) + ((127 - 15) << 23));
        }
    }
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Index of the first element that is not finite or does not fit a float; numel if all are good.
static inline size_t safetensors_first_bad(const safetensors_tensor *t) {
    const double largest = 3.40282346638528859812e38;
    for (size_t i = 0; i < (size_t)t->numel; i++) {
        const double x = safetensors_element(t->dtype, t->data, i);
        if (!(x >= -largest && x <= largest)) return i;
    }
    return (size_t)t->numel;
}

// Reads a tensor of this shape as floats.
static inline int safetensors_read_f32(const safetensors_file *f, const char *name, int ndim, const int64_t *shape,
                                       float *out, char *err, size_t err_size) {
    const safetensors_tensor *const t = safetensors_expect(f, name, ndim, shape, err, err_size);
    if (!t) return -1;
    if (t->dtype != SAFETENSORS_F32 && t->dtype != SAFETENSORS_F64 && t->dtype != SAFETENSORS_F16 &&
        t->dtype != SAFETENSORS_BF16)
        return safetensors_error(err, err_size, f->path,
                                 "tensor '%.200s': expected dtype F32, F64, F16 or BF16, found %s", name,
                                 safetensors_dtype_name(t->dtype));
    const size_t n = (size_t)t->numel, bad = safetensors_first_bad(t);
    if (bad < n) {
        int64_t index[SAFETENSORS_MAX_DIMS];
        size_t rest = bad;
        char text[200];
        for (int d = ndim - 1; d >= 0; d--) {
            index[d] = (int64_t)(rest % (size_t)shape[d]);
            rest /= (size_t)shape[d];
        }
        return safetensors_error(err, err_size, f->path, "tensor '%.200s': element %s is %g, expected a finite float",
                                 name, safetensors_shape_text(text, sizeof text, ndim, index),
                                 safetensors_element(t->dtype, t->data, bad));
    }
    if (t->dtype == SAFETENSORS_F32 && n) memcpy(out, t->data, t->n_bytes);
    else
        for (size_t i = 0; i < n; i++) out[i] = (float)safetensors_element(t->dtype, t->data, i);
    return 0;
}

// Reads a single number whose value is an integer, of whatever dtype.
static inline int safetensors_read_integer(const safetensors_file *f, const char *name, int64_t *out, char *err,
                                           size_t err_size) {
    static const char signed_types[] = {SAFETENSORS_I8, SAFETENSORS_I16, SAFETENSORS_I32, SAFETENSORS_I64};
    static const char unsigned_types[] = {SAFETENSORS_U8, SAFETENSORS_U16, SAFETENSORS_U32, SAFETENSORS_U64};
    static const char float_types[] = {SAFETENSORS_F16, SAFETENSORS_BF16, SAFETENSORS_F32, SAFETENSORS_F64};
    const safetensors_tensor *const t = safetensors_find(f, name);
    char shape[200];
    uint64_t bits = 0;
    if (!t) return safetensors_error(err, err_size, f->path, "no tensor '%.200s'", name);
    if (t->numel != 1)
        return safetensors_error(err, err_size, f->path, "tensor '%.200s': expected one number, found shape %s", name,
                                 safetensors_shape_text(shape, sizeof shape, t->ndim, t->shape));
    if (memchr(float_types, (int)t->dtype, sizeof float_types)) {
        const double value = safetensors_element(t->dtype, t->data, 0), limit = 9223372036854775808.0;
        const int inside = value >= -limit && value < limit;
        if (!inside || value != (double)(int64_t)value)
            return safetensors_error(err, err_size, f->path, "tensor '%.200s': expected an integer, found %g", name,
                                     value);
        *out = (int64_t)value;
        return 0;
    }
    const int is_signed = memchr(signed_types, (int)t->dtype, sizeof signed_types) != NULL;
    if (!is_signed && !memchr(unsigned_types, (int)t->dtype, sizeof unsigned_types))
        return safetensors_error(err, err_size, f->path, "tensor '%.200s': expected a dtype of numbers, found %s", name,
                                 safetensors_dtype_name(t->dtype));
    memcpy(&bits, t->data, t->n_bytes);
    const uint64_t sign = (uint64_t)1 << (8 * t->n_bytes - 1);
    if (is_signed && t->n_bytes < 8 && (bits & sign)) bits -= 2 * sign;
    if (!is_signed && bits > INT64_MAX)
        return safetensors_error(err, err_size, f->path, "tensor '%.200s': %llu is too large", name,
                                 (unsigned long long)bits);
    memcpy(out, &bits, sizeof bits);
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing

// Describes a tensor for safetensors_write.
static inline safetensors_tensor safetensors_make(const char *name, safetensors_dtype dtype, int ndim,
                                                  const int64_t *shape, const void *data) {
    safetensors_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name;
    t.dtype = dtype;
    t.ndim = ndim;
    for (int d = 0; d < ndim && d < SAFETENSORS_MAX_DIMS; d++) t.shape[d] = shape[d];
    t.data = data;
    return t;
}

typedef struct {
    char *s;  // [n], not closed by a 0
    size_t n, capacity;
    int failed;  // out of memory
} safetensors_text;

static inline void safetensors_append(safetensors_text *text, const char *s, size_t n) {
    if (text->failed) return;
    if (n > text->capacity - text->n) {
        const size_t larger = 2 * text->capacity + n + 4096;
        char *const moved = (char *)realloc(text->s, larger);
        if (!moved) {
            text->failed = 1;
            return;
        }
        text->s = moved;
        text->capacity = larger;
    }
    memcpy(text->s + text->n, s, n);
    text->n += n;
}

static inline void safetensors_append_text(safetensors_text *text, const char *s) {
    safetensors_append(text, s, strlen(s));
}

// Appends s as a JSON string.
static inline void safetensors_append_string(safetensors_text *text, const char *s) {
    safetensors_append(text, "\"", 1);
    for (; *s; s++) {
        char escape[8];
        if (*s == '"' || *s == '\\') snprintf(escape, sizeof escape, "\\%c", *s);
        else if ((unsigned char)*s < 0x20) snprintf(escape, sizeof escape, "\\u%04x", (unsigned)*s);
        else snprintf(escape, sizeof escape, "%c", *s);
        safetensors_append_text(text, escape);
    }
    safetensors_append(text, "\"", 1);
}

static inline int safetensors_is_utf8(const char *s) {
    while (*s) {
        const int n = message_utf8(s);
        if (n == 0) return 0;
        s += n;
    }
    return 1;
}

// Checks what the caller wants written and fills in numel, n_bytes and offset of f's copies. Larger elements first.
static inline int safetensors_plan(safetensors_file *f, char *err, size_t err_size) {
    for (size_t i = 0; i < f->n_metadata; i++) {
        const safetensors_pair *const pair = &f->metadata[i];
        if (!pair->key || !pair->value || !safetensors_is_utf8(pair->key) || !safetensors_is_utf8(pair->value))
            return safetensors_error(err, err_size, f->path, "metadata %zu ('%.200s'): key and value need to be UTF-8",
                                     i, pair->key ? pair->key : "(null)");
    }
    for (size_t i = 0; i < f->n_tensors; i++) {
        safetensors_tensor *const t = &f->tensors[i];
        if (!t->name || !safetensors_is_utf8(t->name) || !strcmp(t->name, "__metadata__"))
            return safetensors_error(err, err_size, f->path,
                                     "tensor %zu: '%.200s' cannot be a name, it needs to be UTF-8 and not "
                                     "__metadata__",
                                     i, t->name ? t->name : "(null)");
        if (!safetensors_dtype_name(t->dtype))
            return safetensors_error(err, err_size, f->path, "tensor '%.200s': %d is no dtype", t->name, (int)t->dtype);
        if (t->ndim < 0 || t->ndim > SAFETENSORS_MAX_DIMS)
            return safetensors_error(err, err_size, f->path, "tensor '%.200s': %d dimensions, expected 0 to %d",
                                     t->name, t->ndim, SAFETENSORS_MAX_DIMS);
        char shape[200];
        if (safetensors_measure(t))
            return safetensors_error(err, err_size, f->path, "tensor '%.200s': shape %s is negative or too large",
                                     t->name, safetensors_shape_text(shape, sizeof shape, t->ndim, t->shape));
        if (t->n_bytes && !t->data)
            return safetensors_error(err, err_size, f->path, "tensor '%.200s': no data", t->name);
    }
    for (size_t size = 8; size > 0; size /= 2) {
        for (size_t i = 0; i < f->n_tensors; i++) {
            safetensors_tensor *const t = &f->tensors[i];
            if (safetensors_dtype_size(t->dtype) != size) continue;
            if (t->n_bytes > (size_t)PTRDIFF_MAX - f->payload_size)
                return safetensors_error(err, err_size, f->path, "tensor '%.200s': the payload is too large", t->name);
            t->offset = f->payload_size;
            f->payload_size += t->n_bytes;
        }
    }
    return 0;
}

// Writes the header's JSON with its padding.
static inline int safetensors_make_header(const safetensors_file *f, const safetensors_pair *metadata,
                                          const char *checksum, safetensors_text *text, char *err, size_t err_size) {
    char part[100];
    safetensors_append_text(text, "{\"__metadata__\":{");
    for (size_t i = 0; i < f->n_metadata; i++) {
        safetensors_append_string(text, metadata[i].key);
        safetensors_append_text(text, ":");
        safetensors_append_string(text, metadata[i].value);
        safetensors_append_text(text, ",");
    }
    safetensors_append_text(text, "\"" SAFETENSORS_CHECKSUM_KEY "\":");
    safetensors_append_string(text, checksum);
    safetensors_append_text(text, "}");
    for (size_t i = 0; i < f->n_tensors; i++) {
        const safetensors_tensor *const t = &f->tensors[i];
        char shape[200];
        safetensors_append_text(text, ",");
        safetensors_append_string(text, t->name);
        safetensors_append_text(text, ":{\"dtype\":");
        safetensors_append_string(text, safetensors_dtype_name(t->dtype));
        safetensors_append_text(text, ",\"shape\":");
        safetensors_append_text(text, safetensors_shape_text(shape, sizeof shape, t->ndim, t->shape));
        snprintf(part, sizeof part, ",\"data_offsets\":[%zu,%zu]}", t->offset, t->offset + t->n_bytes);
        safetensors_append_text(text, part);
    }
    safetensors_append_text(text, "}");
    while (text->n % 8 && !text->failed) safetensors_append_text(text, " ");
    if (text->failed) return safetensors_error(err, err_size, f->path, "out of memory for the header");
    if (text->n > SAFETENSORS_MAX_HEADER)
        return safetensors_error(err, err_size, f->path, "the header would have %zu bytes, the limit is %u", text->n,
                                 SAFETENSORS_MAX_HEADER);
    return 0;
}

// Writes all n bytes; -1 with errno set on failure.
static inline int safetensors_write_all(int fd, const void *data, size_t n) {
    for (size_t done = 0; done < n;) {
        const size_t chunk = n - done < (size_t)1 << 30 ? n - done : (size_t)1 << 30;
        const ssize_t wrote = write(fd, (const char *)data + done, chunk);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) {
            if (wrote == 0) errno = EIO;
            return -1;
        }
        done += (size_t)wrote;
    }
    return 0;
}

// Writes header and payload to fd and syncs it; -1 with errno set on failure.
static inline int safetensors_write_parts(int fd, const safetensors_file *f, const safetensors_text *header) {
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++) prefix[i] = (unsigned char)((uint64_t)header->n >> 8 * i);
    if (safetensors_write_all(fd, prefix, 8) || safetensors_write_all(fd, header->s, header->n)) return -1;
    for (size_t i = 0; i < f->n_tensors; i++)
        if (safetensors_write_all(fd, f->by_position[i]->data, f->by_position[i]->n_bytes)) return -1;
    return fsync(fd);
}

// Syncs the folder that holds path, so that a rename in it survives a power loss. Some file systems cannot (EINVAL).
static inline int safetensors_sync_folder(char *path) {
    char *const slash = strrchr(path, '/');
    const char *folder = path;
    if (!slash) folder = ".";
    if (slash == path) folder = "/";
    const char kept = slash ? *slash : 0;
    if (slash && slash != path) *slash = 0;
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (slash) *slash = kept;
    if (fd < 0) return -1;
    const int status = fsync(fd) && errno != EINVAL ? -1 : 0, error = errno;
    close(fd);
    errno = error;
    return status;
}

// Puts the file in place by way of a temporary one.
static inline int safetensors_replace(safetensors_file *f, const safetensors_text *header, char *err, size_t err_size) {
    const size_t size = strlen(f->path) + 32;
    char *const temporary = (char *)malloc(size);
    if (!temporary) return safetensors_error(err, err_size, f->path, "out of memory");
    snprintf(temporary, size, "%s.tmp.%ld", f->path, (long)getpid());
    unlink(temporary);  // of an earlier process with the same number
    const int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    int status;
    if (fd < 0) {
        status = safetensors_error(err, err_size, f->path, "cannot create %.300s: %s", temporary, strerror(errno));
    } else {
        status = safetensors_write_parts(fd, f, header);
        int error = errno;
        if (close(fd) && status == 0) {  // network file systems report a full disk here
            status = -1;
            error = errno;
        }
        if (status == 0 && rename(temporary, f->path)) {
            status = -1;
            error = errno;
        }
        if (status) {
            unlink(temporary);
            safetensors_error(err, err_size, f->path, "cannot write: %s", strerror(error));
        } else if (safetensors_sync_folder(f->path)) {
            status = safetensors_error(err, err_size, f->path, "is written, but its folder cannot be synced: %s",
                                       strerror(errno));
        }
    }
    free(temporary);
    return status;
}

// The checksum that a file of these tensors will carry. Tensors that cannot be written count as empty.
static inline uint64_t safetensors_payload_checksum(const safetensors_tensor *tensors, size_t n_tensors) {
    safetensors_xxh64 h;
    safetensors_xxh64_init(&h);
    for (size_t size = 8; size > 0; size /= 2)
        for (size_t i = 0; i < n_tensors; i++) {
            safetensors_tensor t = tensors[i];
            if (safetensors_dtype_size(t.dtype) == size && !safetensors_measure(&t))
                safetensors_xxh64_update(&h, t.data, t.n_bytes);
        }
    return safetensors_xxh64_digest(&h);
}

// Writes a file; f is a scratch description with copies of the caller's lists, freed by safetensors_write.
static inline int safetensors_write_file(safetensors_file *f, const safetensors_pair *metadata, char *err,
                                         size_t err_size) {
    safetensors_text header = {NULL, 0, 0, 0};
    safetensors_xxh64 h;
    char checksum[24];
    if (safetensors_plan(f, err, err_size) || safetensors_check_names(f, err, err_size) ||
        safetensors_check_cover(f, err, err_size))
        return -1;
    if (safetensors_metadata(f, SAFETENSORS_CHECKSUM_KEY))
        return safetensors_error(err, err_size, f->path,
                                 "metadata key '" SAFETENSORS_CHECKSUM_KEY "' is the file's own");
    safetensors_xxh64_init(&h);
    for (size_t i = 0; i < f->n_tensors; i++)
        safetensors_xxh64_update(&h, f->by_position[i]->data, f->by_position[i]->n_bytes);
    int status = safetensors_make_header(f, metadata, safetensors_checksum_text(&h, checksum), &header, err, err_size);
    if (status == 0) status = safetensors_replace(f, &header, err, err_size);
    free(header.s);
    return status;
}

// Writes the tensors and metadata to path.
static inline int safetensors_write(const char *path, const safetensors_tensor *tensors, size_t n_tensors,
                                    const safetensors_pair *metadata, size_t n_metadata, char *err, size_t err_size) {
    safetensors_file f;
    memset(&f, 0, sizeof f);
    f.path = (char *)malloc(strlen(path) + 1);
    f.tensors = (safetensors_tensor *)malloc((n_tensors + 1) * sizeof *f.tensors);
    f.metadata = (safetensors_pair *)malloc((n_metadata + 1) * sizeof *f.metadata);
    int status;
    if (!f.path || !f.tensors || !f.metadata) {
        status = safetensors_error(err, err_size, path, "out of memory");
    } else {
        memcpy(f.path, path, strlen(path) + 1);
        if (n_tensors) memcpy(f.tensors, tensors, n_tensors * sizeof *tensors);
        if (n_metadata) memcpy(f.metadata, metadata, n_metadata * sizeof *metadata);
        f.n_tensors = n_tensors;
        f.n_metadata = n_metadata;
        status = safetensors_write_file(&f, metadata, err, err_size);
    }
    safetensors_close(&f);
    return status;
}

#undef SAFETENSORS_P1
#undef SAFETENSORS_P2
#undef SAFETENSORS_P3
#undef SAFETENSORS_P4
#undef SAFETENSORS_P5
#undef SAFETENSORS_PRINTF
