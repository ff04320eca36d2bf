// dataset.h -- data sets in host memory, ready to be copied to a device.
//
//     #include "common/dataset.h"
//
//     dataset train, test;
//     char err[DATASET_ERROR_SIZE];
//     if (dataset_load("mnist", NULL, &train, &test, err, sizeof err)) { fprintf(stderr, "%s\n", err); exit(1); }
//     ... train.pixels[i * train.features + j], train.labels[i], (pixel / 255 - mean[c]) / std[c] ...
//     dataset_free(&train), dataset_free(&test);
//
// Header-only; C11, C++17 and CUDA. Needs stat() and fileno() of POSIX (compile C with -D_GNU_SOURCE or -std=gnu11).
// With -DUSE_ZLIB (link with -lz) every file may be compressed by gzip, whatever its name; without it that is an error.
// Other compressed files and archives (xz, zstd, bzip2, zip, tar, ...) are known by their first bytes and refused.
//
// Errors: every function that can fail returns 0 on success and -1 on error, with one line in err[err_size] (no
// newline) that names the file, what was expected and what was found. On an error the outputs hold nothing. Nothing
// here prints or exits; only a row of the table below that nothing loads aborts. Outputs are overwritten without being
// freed, so free a data set before it is loaded again.
//
// Contents
//     dataset_load(name_or_path, data_dir, &train, &test, err, err_size)      a training and a test set
//         name    built in   moons           1,000 + 1,000 points in the plane, 2 classes, noise 0.1
//                            images          10,000 + 2,000 synthetic gray images of 28x28, 10 classes
//                 files      mnist, fashion-mnist, cifar10: the folder data_dir/NAME (data_dir NULL: "data"), as
//                            filled by `sh data/get_data.sh NAME`
//         path    any other folder that holds the four IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte,
//                 t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte) or the six files of CIFAR-10's binary version
//                 (data_batch_1.bin .. data_batch_5.bin, test_batch.bin); "./mnist" is a path, "mnist" the name
//     dataset_free(&d)                          frees, and zeroes the struct; fine on a zeroed or already freed one
//     dataset_limit(&d, n)                      keeps the first n samples (all of them when n > d.n); n >= 1
//     dataset_sample(&d, i, out)                sample i as out[features], normalised per channel
//     dataset_moons, dataset_images             the built-in sets with other sizes, seeds and noise
//     dataset_text_load(name_or_path, data_dir, &text, err, err_size)         the bytes of a file; `shakespeare` as
//                                               filled by get_data.sh; `grammar`: built in, 1,000,000 bytes
//     dataset_grammar(&text, n, seed, err, err_size)                          sentences of a small grammar, n bytes
//     dataset_shard_load(path, &shard, err, err_size)                         a shard of 16-bit tokens (llm.c's format)
//     dataset_is_shard(path)                    whether a file is to be read as a shard: by its first bytes or its name
//     dataset_text_free(&text), dataset_shard_free(&shard)
//
// What is checked before any memory is allocated: magic numbers, dimensions (their product included), that the size of
// the file is exactly what the header says, and that images and labels have the same count. Then: labels in range,
// every test label known to the training set, and training and test images of the same shape.
//
// The built-in sets are functions of (seed, index of the sample): the same on every machine and for every count.
// `images` uses integers only; `moons` is rounded to multiples of 2^-20, which hides last-bit differences between
// math libraries.
#pragma once
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "message.h"
#ifdef USE_ZLIB
#include <zlib.h>
#endif

#define DATASET_ERROR_SIZE 1024
#define DATASET_PATH_SIZE 4096

// n samples of channels x height x width numbers. Exactly one of pixels (bytes, 0..255) and values is not NULL; it is
// [n][features], each sample in CHW order. mean and std are those of the TRAINING set, per channel, also in the test
// set: of pixels scaled to 0..1, or of the values as they are. A channel without any variation has std 1.
typedef struct {
    char name[64];
    int n;
    int channels, height, width;
    int features;  // channels * height * width
    int classes;   // labels are 0 .. classes - 1
    unsigned char *pixels;
    float *values;
    unsigned char *labels;  // [n]
    float mean[4], std[4];  // [channels]
} dataset;

typedef struct {
    unsigned char *bytes;  // [n]
    size_t n;
} dataset_text;

typedef struct {
    uint16_t *tokens;  // [n]
    size_t n;
} dataset_shard;

// Where the samples of a set come from: files of a format, or a function.
enum { DATASET_IDX, DATASET_CIFAR, DATASET_TEXT, DATASET_MOONS, DATASET_IMAGES, DATASET_GRAMMAR };

// A data set that has a name.
typedef struct {
    const char *name;
    int format;
    const char *const *files;  // in the folder data_dir/name, training before test, NULL at the end; none: built in
    int classes;               // its labels are 0 .. classes - 1; 0: a text, for dataset_text_load
    int n_train, n_test;       // samples, or bytes of a text
    const char *instead;       // the built-in set that stands in where the files are missing
} dataset_entry;

static const char *const dataset_idx_files[] = {"train-images-idx3-ubyte", "train-labels-idx1-ubyte",
                                                "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", NULL};
static const char *const dataset_cifar_files[] = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                                  "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin", NULL};
static const char *const dataset_shakespeare_files[] = {"tinyshakespeare.txt", NULL};

// All of them; a row without a name ends the table. A new set needs a row here and, where its format is new, a case in
// dataset_load_entry or dataset_text_load.
static inline const dataset_entry *dataset_entries(void) {
    static const dataset_entry all[] = {
        {"moons", DATASET_MOONS, NULL, 2, 1000, 1000, NULL},
        {"images", DATASET_IMAGES, NULL, 10, 10000, 2000, NULL},
        {"mnist", DATASET_IDX, dataset_idx_files, 10, 60000, 10000, "images"},
        {"fashion-mnist", DATASET_IDX, dataset_idx_files, 10, 60000, 10000, "images"},
        {"cifar10", DATASET_CIFAR, dataset_cifar_files, 10, 50000, 10000, "images"},
        {"shakespeare", DATASET_TEXT, dataset_shakespeare_files, 0, 1115394, 0, "grammar"},
        {"grammar", DATASET_GRAMMAR, NULL, 0, 1000000, 0, NULL},
        {NULL, 0, NULL, 0, 0, 0, NULL},
    };
    return all;
}

// A row of the table whose format nothing loads is a mistake of ours.
#if defined(__GNUC__) || defined(__clang__)
static inline void dataset_no_loader(const dataset_entry *entry) __attribute__((noreturn));
#endif
static inline void dataset_no_loader(const dataset_entry *entry) {
    fprintf(stderr, "dataset.h: no loader for %s\n", entry->name);
    abort();
}

// The entry of a name among the texts, or among the other sets; NULL when there is none.
static inline const dataset_entry *dataset_find(const char *name, int text) {
    for (const dataset_entry *e = dataset_entries(); e->name; e++) {
        if ((e->classes == 0) == text && !strcmp(e->name, name)) return e;
    }
    return NULL;
}

// Writes the names of the texts, or of the other sets, with a separator between them.
static inline void dataset_names(char *out, size_t size, int text, const char *separator) {
    size_t used = 0;
    for (const dataset_entry *e = dataset_entries(); e->name && used < size; e++) {
        if ((e->classes == 0) != text) continue;
        used += (size_t)snprintf(out + used, size - used, "%s%s", used ? separator : "", e->name);
    }
}

#if defined(__GNUC__) || defined(__clang__)
#define DATASET_PRINTF __attribute__((format(printf, 3, 4)))
#else
#define DATASET_PRINTF
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Errors and memory

// Writes the one-line message and returns -1, so that a failing function ends with `return dataset_error(...)`.
static inline int dataset_error(char *err, size_t err_size, const char *format, ...) DATASET_PRINTF;
static inline int dataset_error(char *err, size_t err_size, const char *format, ...) {
    va_list args;
    if (err && err_size) {
        va_start(args, format);
        vsnprintf(err, err_size, format, args);
        va_end(args);
        message_clean(err);
    }
    return -1;
}

// Frees the arrays and zeroes the struct.
static inline void dataset_free(dataset *d) {
    free(d->pixels);
    free(d->values);
    free(d->labels);
    memset(d, 0, sizeof *d);
}

static inline void dataset_text_free(dataset_text *t) {
    free(t->bytes);
    memset(t, 0, sizeof *t);
}

static inline void dataset_shard_free(dataset_shard *s) {
    free(s->tokens);
    memset(s, 0, sizeof *s);
}

// Zeroes d, sets its name and shape and allocates the labels and the pixels (or the values). The caller has checked
// that channels * height * width fits an int.
static inline int dataset_alloc(dataset *d, const char *name, int n, int channels, int height, int width,
                                int as_values, char *err, size_t err_size) {
    memset(d, 0, sizeof *d);
    snprintf(d->name, sizeof d->name, "%s", name);
    d->n = n;
    d->channels = channels;
    d->height = height;
    d->width = width;
    d->features = channels * height * width;
    const uint64_t bytes = (uint64_t)n * (uint64_t)d->features * (as_values ? sizeof(float) : 1);
    if (bytes <= SIZE_MAX / 2) {
        if (as_values) d->values = (float *)malloc((size_t)bytes);
        else d->pixels = (unsigned char *)malloc((size_t)bytes);
        d->labels = (unsigned char *)malloc((size_t)n);
    }
    if (!d->labels || (!d->values && !d->pixels)) {
        dataset_free(d);
        return dataset_error(err, err_size, "%s: out of memory: %d samples need %llu bytes", name, n,
                             (unsigned long long)bytes + (unsigned long long)n);
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Files, plain or compressed

enum { DATASET_HEAD = 512 };  // bytes of a file that tell what it is

// An open file whose size, uncompressed, is known.
typedef struct {
    FILE *plain;
#ifdef USE_ZLIB
    gzFile gz;
#endif
    uint64_t size;
    unsigned char head[DATASET_HEAD];  // its first bytes, uncompressed
    size_t n_head;
    char path[DATASET_PATH_SIZE];
} dataset_file;

static inline void dataset_file_close(dataset_file *f) {
    if (f->plain) fclose(f->plain);
#ifdef USE_ZLIB
    if (f->gz) gzclose(f->gz);
    f->gz = NULL;
#endif
    f->plain = NULL;
}

// Joins dir/name and suffix into path[DATASET_PATH_SIZE]; -1 when it does not fit.
static inline int dataset_path(char *path, const char *dir, const char *name, const char *suffix) {
    const int length = snprintf(path, DATASET_PATH_SIZE, "%s%s%s%s", dir, *dir ? "/" : "", name, suffix);
    return length < 0 || length >= DATASET_PATH_SIZE ? -1 : 0;
}

// 'f' a regular file, 'd' a folder, '?' something else, 0 nothing there.
static inline int dataset_path_kind(const char *path) {
    struct stat st;
    if (stat(path, &st)) return 0;
    if ((st.st_mode & S_IFMT) == S_IFREG) return 'f';
    return (st.st_mode & S_IFMT) == S_IFDIR ? 'd' : '?';
}

// Little-endian 32-bit integer.
static inline uint32_t dataset_le32(const unsigned char *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

// A format that packs files: its name, the ending of its files, how to unpack one, and the bytes that tell it.
typedef struct {
    const char *name, *ending, *unpack;
    size_t at, n;
    const char *magic;
} dataset_packing;

// All of them, gzip first; a row without a name ends the table.
static inline const dataset_packing *dataset_packings(void) {
    static const dataset_packing all[] = {
        {"gzip", ".gz", "gunzip it", 0, 2, "\x1f\x8b"},
        {"xz", ".xz", "unpack it with xz -d", 0, 6, "\xfd" "7zXZ\0"},
        {"zstd", ".zst", "unpack it with zstd -d", 0, 4, "\x28\xb5\x2f\xfd"},
        {"bzip2", ".bz2", "unpack it with bzip2 -d", 4, 6, "1AY&SY"},
        {"lz4", ".lz4", "unpack it with lz4 -d", 0, 4, "\x04\x22\x4d\x18"},
        {"compress", ".Z", "unpack it with uncompress", 0, 2, "\x1f\x9d"},
        {"zip", ".zip", "unpack it with unzip", 0, 4, "PK\3\4"},
        {"7z", ".7z", "unpack it with 7z x", 0, 6, "7z\xbc\xaf\x27\x1c"},
        {"tar", ".tar", "unpack it with tar -xf", 257, 5, "ustar"},
        {NULL, NULL, NULL, 0, 0, NULL},
    };
    return all;
}

// The packing that a file begins with, or NULL.
static inline const dataset_packing *dataset_packing_of(const unsigned char *head, size_t n) {
    for (const dataset_packing *p = dataset_packings(); p->name; p++) {
        if (p->at + p->n <= n && !memcmp(head + p->at, p->magic, p->n)) return p;
    }
    return NULL;
}

static inline int dataset_ends_in(const char *path, const char *ending) {
    const size_t n = strlen(path), m = strlen(ending);
    return n > m && !strcmp(path + n - m, ending);
}

#ifdef USE_ZLIB
// Opens a gzip file and finds its uncompressed size by reading through it once, with constant memory: the length stored
// at its end is only the size modulo 2^32, and a damaged file is found before anything is allocated.
static inline int dataset_gz_open(dataset_file *f, char *err, size_t err_size) {
    char buffer[1 << 14];
    int got, code = Z_OK;
    const char *why;
    f->size = f->n_head = 0;
    f->gz = gzopen(f->path, "rb");
    if (!f->gz) return dataset_error(err, err_size, "%s: cannot be opened", f->path);
    gzbuffer(f->gz, 1 << 17);
    while ((got = gzread(f->gz, buffer, sizeof buffer)) > 0) {
        if (f->size == 0) {
            f->n_head = (size_t)got < sizeof f->head ? (size_t)got : sizeof f->head;
            memcpy(f->head, buffer, f->n_head);
        }
        f->size += (uint64_t)got;
    }
    why = gzerror(f->gz, &code);
    if (!strncmp(why, f->path, strlen(f->path))) why += strlen(f->path);  // zlib puts "PATH: " in front
    while (*why == ':' || *why == ' ') why++;
    if (got < 0 || code != Z_OK)
        return dataset_error(err, err_size, "%s: damaged or cut off: %s", f->path,
                             code == Z_ERRNO ? "read error" : why);
    if (gzrewind(f->gz)) return dataset_error(err, err_size, "%s: cannot be read again", f->path);
    return 0;
}
#endif

// Unpacks an open file that is packed by gzip, and refuses every other packing; also a name that promises one.
static inline int dataset_file_unpack(dataset_file *f, char *err, size_t err_size) {
    const dataset_packing *const gzip = dataset_packings();
    const dataset_packing *const found = dataset_packing_of(f->head, f->n_head);
    for (const dataset_packing *p = dataset_packings(); p->name && !found; p++) {
        if (!dataset_ends_in(f->path, p->ending)) continue;
        return dataset_error(err, err_size, "%s: not %s data, as its name says", f->path, p->name);
    }
    if (!found) return 0;
    if (found != gzip) return dataset_error(err, err_size, "%s: %s data: %s", f->path, found->name, found->unpack);
#ifdef USE_ZLIB
    fclose(f->plain);
    f->plain = NULL;
    if (dataset_gz_open(f, err, err_size)) return -1;
    const dataset_packing *const inner = dataset_packing_of(f->head, f->n_head);
    if (!inner) return 0;
    return dataset_error(err, err_size, "%s: %s data inside gzip data: gunzip it, then %s", f->path, inner->name,
                         inner->unpack);
#else
    return dataset_error(err, err_size, "%s: compressed by gzip; gunzip it or build with zlib (-DUSE_ZLIB -lz)",
                         f->path);
#endif
}

// Opens dir/name or, when that is not there, dir/name.gz; hint ends the message when neither is. Every file of data is
// opened here, so that a compressed one is never taken for data.
static inline int dataset_file_open(dataset_file *f, const char *dir, const char *name, const char *hint, char *err,
                                    size_t err_size) {
    struct stat st;
    memset(f, 0, sizeof *f);
    if (dataset_path(f->path, dir, name, ".gz"))
        return dataset_error(err, err_size, "%.64s...: path too long", dir);
    char packed[DATASET_PATH_SIZE];
    memcpy(packed, f->path, sizeof packed);
    dataset_path(f->path, dir, name, "");
    if (!dataset_path_kind(f->path) && dataset_path_kind(packed) == 'f') memcpy(f->path, packed, sizeof packed);
    const int kind = dataset_path_kind(f->path);
    if (!kind) return dataset_error(err, err_size, "%s: not found%s", f->path, hint);
    if (kind != 'f') return dataset_error(err, err_size, "%s: not a regular file", f->path);
    f->plain = fopen(f->path, "rb");
    if (!f->plain || fstat(fileno(f->plain), &st)) {
        dataset_file_close(f);
        return dataset_error(err, err_size, "%s: cannot be opened", f->path);
    }
    f->size = (uint64_t)st.st_size;
    f->n_head = fread(f->head, 1, sizeof f->head, f->plain);
    if (ferror(f->plain) || fseek(f->plain, 0, SEEK_SET)) {
        dataset_file_close(f);
        return dataset_error(err, err_size, "%s: read error", f->path);
    }
    if (!dataset_file_unpack(f, err, err_size)) return 0;
    dataset_file_close(f);
    return -1;
}

// Reads exactly n bytes.
static inline int dataset_file_read(dataset_file *f, void *to, size_t n, char *err, size_t err_size) {
    size_t done = 0;
#ifdef USE_ZLIB
    while (f->gz && done < n) {
        const size_t rest = n - done, step = rest < (1u << 30) ? rest : (1u << 30);
        const int got = gzread(f->gz, (char *)to + done, (unsigned)step);
        if (got <= 0) break;
        done += (size_t)got;
    }
    if (!f->gz)
#endif
        done = fread(to, 1, n, f->plain);
    if (done == n) return 0;
    return dataset_error(err, err_size, "%s: read error: expected %zu more bytes, found %zu", f->path, n, done);
}

// Compares the size of the file with what its header (or its format) asks for.
static inline int dataset_file_expect(const dataset_file *f, uint64_t want, const char *why, char *err,
                                      size_t err_size) {
    if (f->size == want) return 0;
    return dataset_error(err, err_size, "%s: %s: expected %llu bytes (%s), found %llu", f->path,
                         f->size < want ? "truncated" : "oversized", (unsigned long long)want, why,
                         (unsigned long long)f->size);
}

// ---------------------------------------------------------------------------------------------------------------------
// IDX: 32-bit big-endian magic and dimensions, then bytes

// Opens an IDX file of unsigned bytes with 1 or 3 dimensions and checks everything its header says.
static inline int dataset_idx_open(dataset_file *f, const char *dir, const char *name, const char *hint, int dims,
                                   uint32_t dim[3], char *err, size_t err_size) {
    const uint32_t magic = 0x800u + (uint32_t)dims;
    const size_t header = 4 + 4 * (size_t)dims;
    unsigned char raw[16] = {0};
    uint32_t word[4];
    char why[96];
    if (dataset_file_open(f, dir, name, hint, err, err_size)) return -1;
    if (f->size < header) {
        dataset_error(err, err_size, "%s: truncated: expected an IDX header of %zu bytes, found %llu bytes", f->path,
                      header, (unsigned long long)f->size);
    } else if (!dataset_file_read(f, raw, header, err, err_size)) {
        for (int i = 0; i < 4; i++)
            word[i] = (uint32_t)raw[4 * i] << 24 | (uint32_t)raw[4 * i + 1] << 16 | (uint32_t)raw[4 * i + 2] << 8 |
                      raw[4 * i + 3];
        for (int i = 0; i < 3; i++) dim[i] = i < dims ? word[i + 1] : 1;
        if (word[0] != magic) {
            dataset_error(err, err_size, "%s: wrong magic: expected 0x%08x (IDX, unsigned bytes, %d dimension%s), "
                          "found 0x%08x", f->path, magic, dims, dims == 1 ? "" : "s", word[0]);
        } else if (!dim[0] || !dim[1] || !dim[2]) {
            dataset_error(err, err_size, "%s: empty: the header says %u x %u x %u", f->path, dim[0], dim[1], dim[2]);
        } else if (dim[0] > INT_MAX || (uint64_t)dim[1] * dim[2] > INT_MAX) {
            dataset_error(err, err_size, "%s: dimensions out of range: expected at most %d samples and %d bytes in "
                          "each, found %u x %u x %u", f->path, INT_MAX, INT_MAX, dim[0], dim[1], dim[2]);
        } else {
            snprintf(why, sizeof why, "the header says %u x %u x %u", dim[0], dim[1], dim[2]);
            if (!dataset_file_expect(f, header + (uint64_t)dim[0] * ((uint64_t)dim[1] * dim[2]), why, err, err_size))
                return 0;
        }
    }
    dataset_file_close(f);
    return -1;
}

// Sets d->classes to the largest label + 1.
static inline void dataset_count_classes(dataset *d) {
    int largest = 0;
    for (int i = 0; i < d->n; i++)
        if (d->labels[i] > largest) largest = d->labels[i];
    d->classes = largest + 1;
}

// Reads one pair of IDX files, images and labels.
static inline int dataset_idx_load(dataset *d, const char *name, const char *dir, const char *images,
                                   const char *labels, const char *hint, char *err, size_t err_size) {
    dataset_file image_file, label_file;
    uint32_t image_dim[3], label_dim[3];
    int status = -1;
    if (dataset_idx_open(&image_file, dir, images, hint, 3, image_dim, err, err_size)) return -1;
    if (dataset_idx_open(&label_file, dir, labels, hint, 1, label_dim, err, err_size)) {
        dataset_file_close(&image_file);
        return -1;
    }
    if (image_dim[0] != label_dim[0]) {
        dataset_error(err, err_size, "%s: expected %u labels, one for each image of %s, found %u", label_file.path,
                      image_dim[0], images, label_dim[0]);
    } else if (!dataset_alloc(d, name, (int)image_dim[0], 1, (int)image_dim[1], (int)image_dim[2], 0, err, err_size)) {
        status = dataset_file_read(&image_file, d->pixels, (size_t)d->n * (size_t)d->features, err, err_size);
        if (!status) status = dataset_file_read(&label_file, d->labels, (size_t)d->n, err, err_size);
        if (status) dataset_free(d);
        else dataset_count_classes(d);
    }
    dataset_file_close(&image_file);
    dataset_file_close(&label_file);
    return status;
}

// ---------------------------------------------------------------------------------------------------------------------
// CIFAR-10, binary version: records of one label byte and 3 x 32 x 32 pixel bytes, no header

#define DATASET_CIFAR_RECORD 3073

// Finds the number of records of a CIFAR-10 file; `records`, when not 0, is the number it must have.
static inline int dataset_cifar_open(dataset_file *f, const char *dir, const char *file, int records, const char *hint,
                                     char *err, size_t err_size) {
    if (dataset_file_open(f, dir, file, hint, err, err_size)) return -1;
    if (records) {
        if (!dataset_file_expect(f, (uint64_t)records * DATASET_CIFAR_RECORD, "records of 3073 bytes", err, err_size))
            return 0;
    } else if (f->size == 0 || f->size % DATASET_CIFAR_RECORD) {
        dataset_error(err, err_size, "%s: expected a multiple of 3073 bytes (CIFAR-10 records), found %llu", f->path,
                      (unsigned long long)f->size);
    } else if (f->size / DATASET_CIFAR_RECORD > INT_MAX / 8) {
        dataset_error(err, err_size, "%s: expected at most %d records, found %llu", f->path, INT_MAX / 8,
                      (unsigned long long)(f->size / DATASET_CIFAR_RECORD));
    } else {
        return 0;
    }
    dataset_file_close(f);
    return -1;
}

// Reads every record of an open file into samples first, first + 1, ... of d.
static inline int dataset_cifar_read(dataset_file *f, dataset *d, int first, char *err, size_t err_size) {
    const int n = (int)(f->size / DATASET_CIFAR_RECORD);
    for (int i = 0; i < n; i++) {
        unsigned char *label = d->labels + first + i;
        if (dataset_file_read(f, label, 1, err, err_size)) return -1;
        if (*label > 9)
            return dataset_error(err, err_size, "%s: record %d: expected a label of 0..9, found %d", f->path, i,
                                 *label);
        if (dataset_file_read(f, d->pixels + (size_t)(first + i) * 3072, 3072, err, err_size)) return -1;
    }
    return 0;
}

// Reads count files into one set: first the sizes of all, then their content.
static inline int dataset_cifar_load(dataset *d, const char *name, const char *dir, const char *const *files,
                                     int count, int records, const char *hint, char *err, size_t err_size) {
    dataset_file f;
    int n = 0, first = 0;
    for (int i = 0; i < count; i++) {
        if (dataset_cifar_open(&f, dir, files[i], records, hint, err, err_size)) return -1;
        n += (int)(f.size / DATASET_CIFAR_RECORD);
        dataset_file_close(&f);
    }
    if (dataset_alloc(d, name, n, 3, 32, 32, 0, err, err_size)) return -1;
    d->classes = 10;
    for (int i = 0; i < count; i++) {
        int status = dataset_cifar_open(&f, dir, files[i], records, hint, err, err_size);
        if (!status) {
            const int records_now = (int)(f.size / DATASET_CIFAR_RECORD);
            status = first + records_now > n
                         ? dataset_error(err, err_size, "%s: changed while it was read", f.path)
                         : dataset_cifar_read(&f, d, first, err, err_size);
            first += records_now;
            dataset_file_close(&f);
        }
        if (!status && i == count - 1 && first != n)
            status = dataset_error(err, err_size, "%s: changed while it was read", dir);
        if (status) {
            dataset_free(d);
            return -1;
        }
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Built-in sets

// 64 random bits as a function of (seed, sample, draw), draw < 1024: SplitMix64's finaliser on a counter (Steele, Lea
// and Flood, "Fast splittable pseudorandom number generators", 2014).
static inline uint64_t dataset_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
static inline uint64_t dataset_random(uint64_t seed, uint64_t sample, uint32_t draw) {
    return dataset_mix(dataset_mix(seed + 0x9e3779b97f4a7c15ull) + (sample * 1024 + draw + 1) * 0x9e3779b97f4a7c15ull);
}

// A random integer of lo .. hi, both included; the bias of the product is below 2^-31 * (hi - lo).
static inline int dataset_random_int(uint64_t seed, uint64_t sample, uint32_t draw, int lo, int hi) {
    const uint64_t range = (uint64_t)(hi - lo + 1);
    return lo + (int)(((dataset_random(seed, sample, draw) >> 32) * range) >> 32);
}

// Uniform in (0, 1).
static inline double dataset_random_uniform(uint64_t seed, uint64_t sample, uint32_t draw) {
    return ((double)(dataset_random(seed, sample, draw) >> 11) + 0.5) * (1.0 / 9007199254740992.0);
}

// Two interleaving half circles: class 0 on the unit circle's upper half, class 1 on the lower half moved by (1, 0.5);
// even samples are class 0. Normal noise with standard deviation `noise` on both coordinates, which are the two
// channels (so each has its own mean and std). Sample i is number first + i of the endless set that the seed defines.
static inline int dataset_moons(dataset *d, int n, uint64_t first, double noise, uint64_t seed, char *err,
                                size_t err_size) {
    const double pi = 3.14159265358979323846, grid = 1048576.0;
    memset(d, 0, sizeof *d);
    if (n < 1 || !(noise >= 0 && noise <= 100))
        return dataset_error(err, err_size, "moons: expected at least 1 sample and noise of 0..100, found %d and %g", n,
                             noise);
    if (dataset_alloc(d, "moons", n, 2, 1, 1, 1, err, err_size)) return -1;
    d->classes = 2;
    for (int i = 0; i < n; i++) {
        const uint64_t sample = first + (uint64_t)i;
        const int label = (int)(sample & 1);
        const double angle = pi * dataset_random_uniform(seed, sample, 0);
        const double radius = noise * sqrt(-2.0 * log(dataset_random_uniform(seed, sample, 1)));
        const double turn = 2.0 * pi * dataset_random_uniform(seed, sample, 2);
        const double x = (label ? 1.0 - cos(angle) : cos(angle)) + radius * cos(turn);
        const double y = (label ? 0.5 - sin(angle) : sin(angle)) + radius * sin(turn);
        d->values[2 * i] = (float)(floor(x * grid + 0.5) / grid);
        d->values[2 * i + 1] = (float)(floor(y * grid + 0.5) / grid);
        d->labels[i] = (unsigned char)label;
    }
    return 0;
}

enum {
    DATASET_IMAGE_SIZE = 28,
    DATASET_IMAGE_CLASSES = 10,
    DATASET_IMAGE_MODES = 4,   // prototypes of each class
    DATASET_IMAGE_NODES = 9,   // a prototype is a smooth surface through 9 x 9 random heights ...
    DATASET_IMAGE_STEP = 1280  // ... 5 pixels apart; positions count 1/256 of a pixel
};

// v, or the nearest of 0 and end where it lies outside.
static inline int dataset_clamp(int v, int end) {
    if (v < 0) return 0;
    return v > end ? end : v;
}

// Height (about -128..127) of a prototype at (y, x), bilinear between its nodes.
static inline int dataset_prototype(const int node[DATASET_IMAGE_NODES][DATASET_IMAGE_NODES], int y, int x) {
    const int end = (DATASET_IMAGE_NODES - 1) * DATASET_IMAGE_STEP - 1, step = DATASET_IMAGE_STEP;
    y = dataset_clamp(y, end);
    x = dataset_clamp(x, end);
    const int i = y / step, j = x / step, fy = y % step, fx = x % step;
    const int top = node[i][j] * (step - fx) + node[i][j + 1] * fx;
    const int bottom = node[i + 1][j] * (step - fx) + node[i + 1][j + 1] * fx;
    return (int)(((int64_t)top * (step - fy) + (int64_t)bottom * fy) / ((int64_t)step * step));
}

typedef int dataset_nodes[DATASET_IMAGE_NODES][DATASET_IMAGE_NODES];

// Draws one image, pixels[28][28], of the given class.
static inline void dataset_draw_image(unsigned char *pixels, const dataset_nodes *prototypes, int label,
                                      uint64_t sample, uint64_t seed) {
    const int size = DATASET_IMAGE_SIZE;
    const int middle = (DATASET_IMAGE_NODES - 1) * DATASET_IMAGE_STEP / 2;
    const int mode = dataset_random_int(seed, sample, 1, 0, DATASET_IMAGE_MODES - 1);
    const int other = dataset_random_int(seed, sample, 2, 0, DATASET_IMAGE_CLASSES * DATASET_IMAGE_MODES - 1);
    const int shift_y = dataset_random_int(seed, sample, 3, -768, 768);
    const int shift_x = dataset_random_int(seed, sample, 4, -768, 768);
    const int zoom = dataset_random_int(seed, sample, 5, 230, 282);      // of 256
    const int contrast = dataset_random_int(seed, sample, 6, 110, 256);  // of 256
    const int distract = dataset_random_int(seed, sample, 7, 0, 90);     // of 256, weight of another prototype
    const int level = dataset_random_int(seed, sample, 8, 104, 152);
    const int other_y = dataset_random_int(seed, sample, 9, -1024, 1024);
    const int other_x = dataset_random_int(seed, sample, 10, -1024, 1024);
    const int patch = dataset_random_int(seed, sample, 11, 4, 9);  // side of a covered square
    const int patch_y = dataset_random_int(seed, sample, 12, 0, size - 4);
    const int patch_x = dataset_random_int(seed, sample, 13, 0, size - 4);
    const int patch_level = dataset_random_int(seed, sample, 14, 0, 255);
    const int noise = dataset_random_int(seed, sample, 15, 8, 32);
    for (int y = 0; y < size; y++) {
        for (int x = 0; x < size; x++) {
            const int v = (2 * y - size + 1) * zoom / 2 + middle, u = (2 * x - size + 1) * zoom / 2 + middle;
            const uint64_t bits = dataset_random(seed, sample, (uint32_t)(32 + y * size + x));
            int grains = -510, value = patch_level;  // sum of four bytes: nearly normal, standard deviation 148
            for (int k = 0; k < 4; k++) grains += (int)(bits >> (8 * k) & 255);
            if (y < patch_y || y >= patch_y + patch || x < patch_x || x >= patch_x + patch)
                value = level +
                        contrast * dataset_prototype(prototypes[label * DATASET_IMAGE_MODES + mode], v + shift_y,
                                                     u + shift_x) / 256 +
                        distract * dataset_prototype(prototypes[other], v + other_y, u + other_x) / 256;
            value += noise * grains / 148;
            pixels[y * size + x] = (unsigned char)dataset_clamp(value, 255);
        }
    }
}

// Gray images of 28x28 in 10 classes. Each class has four smooth random prototypes; a sample is one of them moved,
// scaled, with its own contrast and brightness, mixed with a fainter prototype of any class, partly covered by a
// square, with noise. Trained on 10,000 for ten epochs, a multilayer perceptron gets about 94% of new samples right, a
// linear model 73%. Sample i is number first + i of the endless set that the seed defines: a training and a test set
// take different ranges of the same seed. Integers only.
static inline int dataset_images(dataset *d, int n, uint64_t first, uint64_t seed, char *err, size_t err_size) {
    dataset_nodes prototypes[DATASET_IMAGE_CLASSES * DATASET_IMAGE_MODES];
    memset(d, 0, sizeof *d);
    if (n < 1) return dataset_error(err, err_size, "images: expected at least 1 sample, found %d", n);
    if (dataset_alloc(d, "images", n, 1, DATASET_IMAGE_SIZE, DATASET_IMAGE_SIZE, 0, err, err_size)) return -1;
    d->classes = DATASET_IMAGE_CLASSES;
    for (int p = 0; p < DATASET_IMAGE_CLASSES * DATASET_IMAGE_MODES; p++)
        for (int k = 0; k < DATASET_IMAGE_NODES * DATASET_IMAGE_NODES; k++)
            prototypes[p][k / DATASET_IMAGE_NODES][k % DATASET_IMAGE_NODES] =
                dataset_random_int(seed, ((uint64_t)1 << 50) + (uint64_t)p, (uint32_t)k, -128, 127);
    for (int i = 0; i < n; i++) {
        const uint64_t sample = first + (uint64_t)i;
        const int label = dataset_random_int(seed, sample, 0, 0, DATASET_IMAGE_CLASSES - 1);
        dataset_draw_image(d->pixels + (size_t)i * (size_t)d->features, (const dataset_nodes *)prototypes, label,
                           sample, seed);
        d->labels[i] = (unsigned char)label;
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// One way in

// Per-channel mean and standard deviation of the training set, written to both sets.
static inline void dataset_statistics(dataset *train, dataset *test) {
    const int plane = train->height * train->width;
    const double count = (double)train->n * plane;
    for (int c = 0; c < train->channels && c < 4; c++) {
        double sum = 0, squares = 0;
        if (train->pixels) {
            uint64_t histogram[256] = {0};
            for (int i = 0; i < train->n; i++) {
                const unsigned char *p = train->pixels + (size_t)i * (size_t)train->features + (size_t)(c * plane);
                for (int j = 0; j < plane; j++) histogram[p[j]]++;
            }
            for (int v = 0; v < 256; v++) {
                sum += (double)histogram[v] * v / 255.0;
                squares += (double)histogram[v] * v / 255.0 * v / 255.0;
            }
        } else {
            for (int i = 0; i < train->n; i++) {
                const float *p = train->values + (size_t)i * (size_t)train->features + (size_t)(c * plane);
                for (int j = 0; j < plane; j++) {
                    sum += p[j];
                    squares += (double)p[j] * p[j];
                }
            }
        }
        const double mean = sum / count, variance = squares / count - mean * mean;
        train->mean[c] = test->mean[c] = (float)mean;
        train->std[c] = test->std[c] = variance > 1e-12 ? (float)sqrt(variance) : 1.0f;
    }
}

// Checks that the two sets fit together: one shape, no test label that the training set does not have, and no more
// labels than a set of that name has (entry NULL: it has no name).
static inline int dataset_check_pair(const char *from, const dataset_entry *entry, dataset *train, dataset *test,
                                     char *err, size_t err_size) {
    if (train->channels != test->channels || train->height != test->height || train->width != test->width)
        return dataset_error(err, err_size, "%s: expected test images of %dx%dx%d as in training, found %dx%dx%d", from,
                             train->channels, train->height, train->width, test->channels, test->height, test->width);
    if (train->classes < 2)
        return dataset_error(err, err_size, "%s: expected at least 2 classes, found the training label 0 alone", from);
    if (entry && train->classes > entry->classes)
        return dataset_error(err, err_size, "%s: expected training labels 0 to %d, found a label %d", from,
                             entry->classes - 1, train->classes - 1);
    if (test->classes > train->classes)
        return dataset_error(err, err_size, "%s: expected test labels of 0..%d as in training, found %d", from,
                             train->classes - 1, test->classes - 1);
    test->classes = train->classes;
    return 0;
}

// Whether a folder holds a file, packed or not.
static inline int dataset_holds(const char *dir, const char *file) {
    char path[DATASET_PATH_SIZE];
    if (!dataset_path(path, dir, file, "") && dataset_path_kind(path)) return 1;
    return !dataset_path(path, dir, file, ".gz") && dataset_path_kind(path);
}

// The format of the files in a folder, by their names: DATASET_IDX, DATASET_CIFAR, or -1.
static inline int dataset_folder_format(const char *dir) {
    const char *const *idx = dataset_idx_files, *const *cifar = dataset_cifar_files;
    if (dataset_holds(dir, idx[0]) || dataset_holds(dir, idx[1])) return DATASET_IDX;
    if (dataset_holds(dir, cifar[0]) || dataset_holds(dir, cifar[5])) return DATASET_CIFAR;
    return -1;
}

// Loads the files of a folder in a format; records: of each CIFAR-10 file, 0: any number.
static inline int dataset_load_folder(const char *name, const char *dir, int format, int records, const char *hint,
                                      dataset *train, dataset *test, char *err, size_t err_size) {
    const char *const *idx = dataset_idx_files, *const *cifar = dataset_cifar_files;
    switch (format) {
    case DATASET_IDX:
        if (dataset_idx_load(train, name, dir, idx[0], idx[1], hint, err, err_size)) return -1;
        return dataset_idx_load(test, name, dir, idx[2], idx[3], hint, err, err_size);
    case DATASET_CIFAR:
        if (dataset_cifar_load(train, name, dir, cifar, 5, records, hint, err, err_size)) return -1;
        return dataset_cifar_load(test, name, dir, cifar + 5, 1, records, hint, err, err_size);
    default:
        return dataset_error(err, err_size, "%s: expected %s or %s in this folder, found neither", dir, idx[0],
                             cifar[0]);
    }
}

// Writes the ending of a `not found` message: how to get a data set, and which one is there without files.
static inline void dataset_hint(char *hint, size_t size, const dataset_entry *entry, const char *data_dir) {
    const char *option = strcmp(data_dir, "data") ? " --dest " : "";
    snprintf(hint, size, "; get it with: sh data/get_data.sh%s%s %s; built in: %s", option, *option ? data_dir : "",
             entry->name, entry->instead);
}

// Writes the ending of a `not found` message: the set that a mistyped name may have meant. Returns 0 when it is near
// none.
static inline int dataset_suggest(char *hint, size_t size, const char *name, int text) {
    char near[MESSAGE_WORD], names[256];
    dataset_names(names, sizeof names, text, "|");
    if (!message_nearest(name, names, near)) return 0;
    snprintf(hint, size, ", did you mean %s?", near);
    return 1;
}

// The files of a named set.
static inline int dataset_load_named(const dataset_entry *entry, const char *data_dir, dataset *train, dataset *test,
                                     char *err, size_t err_size) {
    char dir[DATASET_PATH_SIZE], hint[DATASET_PATH_SIZE + 128];
    const int records = entry->format == DATASET_CIFAR ? entry->n_test : 0;  // each of its files has as many
    if (dataset_path(dir, data_dir, entry->name, ""))
        return dataset_error(err, err_size, "%.64s...: path too long", data_dir);
    dataset_hint(hint, sizeof hint, entry, data_dir);
    if (!dataset_path_kind(dir)) return dataset_error(err, err_size, "%s: not found%s", dir, hint);
    return dataset_load_folder(entry->name, dir, entry->format, records, hint, train, test, err, err_size);
}

// The files of a folder that is no named set.
static inline int dataset_load_path(const char *path, dataset *train, dataset *test, char *err, size_t err_size) {
    char hint[DATASET_PATH_SIZE + 128], names[256];
    const char *slash = strrchr(path, '/'), *name = slash && slash[1] ? slash + 1 : path;
    const int kind = dataset_path_kind(path);
    if (kind == 'd')
        return dataset_load_folder(name, path, dataset_folder_format(path), 0, "", train, test, err, err_size);
    if (kind)
        return dataset_error(err, err_size, "%s: expected a folder with IDX or CIFAR-10 files, found a file", path);
    if (dataset_suggest(hint, sizeof hint, path, 0)) return dataset_error(err, err_size, "%s: not found%s", path, hint);
    dataset_names(names, sizeof names, 0, ", ");
    return dataset_error(err, err_size, "%s: expected %s or a folder, found nothing of that name", path, names);
}

// The samples of a named set: computed, or read from its files.
static inline int dataset_load_entry(const dataset_entry *entry, const char *data_dir, dataset *train, dataset *test,
                                     char *err, size_t err_size) {
    const uint64_t seed = 20250101, first_test = (uint64_t)1 << 40;  // training and test samples have other numbers
    switch (entry->format) {
    case DATASET_MOONS:
        if (dataset_moons(train, entry->n_train, 0, 0.1, seed, err, err_size)) return -1;
        return dataset_moons(test, entry->n_test, first_test, 0.1, seed, err, err_size);
    case DATASET_IMAGES:
        if (dataset_images(train, entry->n_train, 0, seed, err, err_size)) return -1;
        return dataset_images(test, entry->n_test, first_test, seed, err, err_size);
    case DATASET_IDX:
    case DATASET_CIFAR:
        return dataset_load_named(entry, data_dir, train, test, err, err_size);
    default:
        dataset_no_loader(entry);
    }
}

// See the contents above.
static inline int dataset_load(const char *name_or_path, const char *data_dir, dataset *train, dataset *test, char *err,
                               size_t err_size) {
    const dataset_entry *const entry = dataset_find(name_or_path, 0);
    int status;
    memset(train, 0, sizeof *train);
    memset(test, 0, sizeof *test);
    if (entry) status = dataset_load_entry(entry, data_dir ? data_dir : "data", train, test, err, err_size);
    else status = dataset_load_path(name_or_path, train, test, err, err_size);
    if (!status) status = dataset_check_pair(name_or_path, entry, train, test, err, err_size);
    if (status) {
        dataset_free(train);
        dataset_free(test);
        return -1;
    }
    dataset_statistics(train, test);
    return 0;
}

// Keeps the first n samples, all of them when there are fewer; -1 when n < 1. mean and std stay those of the full set.
static inline int dataset_limit(dataset *d, int n) {
    if (n < 1) return -1;
    if (n < d->n) d->n = n;
    return 0;
}

// Writes sample i to out[features]: (pixel / 255 - mean) / std, or (value - mean) / std, per channel.
static inline void dataset_sample(const dataset *d, int i, float *out) {
    const int plane = d->height * d->width;
    const size_t start = (size_t)i * (size_t)d->features;
    for (int j = 0; j < d->features; j++) {
        const int c = j / plane < 4 ? j / plane : 3;
        const float v = d->pixels ? (float)d->pixels[start + (size_t)j] / 255.0f : d->values[start + (size_t)j];
        out[j] = (v - d->mean[c]) / d->std[c];
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Text and tokens

// A sentence of the grammar while it is written: its random numbers, and where its words go.
typedef struct {
    dataset_text *text;
    size_t n;  // bytes in all
    uint64_t seed, sentence;
    uint32_t draws;
} dataset_sentence;

// The sentence's next random integer of 0 .. most.
static inline int dataset_draw(dataset_sentence *s, int most) {
    return dataset_random_int(s->seed, s->sentence, s->draws++, 0, most);
}

// Appends a word and the character after it, as far as there is room.
static inline void dataset_append(dataset_sentence *s, const char *word, char after) {
    dataset_text *t = s->text;
    for (; *word && t->n < s->n; word++) t->bytes[t->n++] = (unsigned char)*word;
    if (t->n < s->n) t->bytes[t->n++] = (unsigned char)after;
}

// Appends a noun, in the plural or not.
static inline void dataset_append_noun(dataset_sentence *s, int plural, char after) {
    static const char *const noun[8][2] = {
        {"cat", "cats"}, {"dog", "dogs"}, {"bird", "birds"}, {"child", "children"},
        {"king", "kings"}, {"teacher", "teachers"}, {"fox", "foxes"}, {"woman", "women"}};
    dataset_append(s, noun[dataset_draw(s, 7)][plural], after);
}

// Appends an article, perhaps an adjective, and a noun. Returns whether the noun is in the plural.
static inline int dataset_append_phrase(dataset_sentence *s) {
    static const char *const adjective[6] = {"old", "small", "quiet", "happy", "tired", "clever"};
    const int plural = dataset_draw(s, 1);
    const int definite = dataset_draw(s, 1);
    dataset_append(s, definite || plural ? "the" : "a", ' ');
    if (dataset_draw(s, 2) == 0) dataset_append(s, adjective[dataset_draw(s, 5)], ' ');
    dataset_append_noun(s, plural, ' ');
    return plural;
}

// Appends the verb of a noun. The last verb of a sentence may end it or take an object; the others take a clause.
static inline void dataset_append_verb(dataset_sentence *s, int plural, int last) {
    static const char *const verb[6][2] = {{"sees", "see"}, {"likes", "like"}, {"follows", "follow"},
                                           {"hears", "hear"}, {"knows", "know"}, {"fears", "fear"}};
    static const char *const alone[4][2] = {{"sleeps", "sleep"}, {"runs", "run"}, {"sings", "sing"}, {"waits", "wait"}};
    const int object = dataset_draw(s, 1);
    if (last && !object) {
        dataset_append(s, alone[dataset_draw(s, 3)][plural], '.');
        return;
    }
    dataset_append(s, verb[dataset_draw(s, 5)][plural], ' ');
    if (!last) return;
    const int many = dataset_draw(s, 1);
    dataset_append(s, "the", ' ');
    dataset_append_noun(s, many, '.');
}

// English-like text of n bytes, one sentence per line: "the old teacher that likes the cats sees a bird." Verbs agree
// in number with their noun across relative clauses, so that there is something to learn beyond the next few letters.
// Sentence i is a function of (seed, i): a longer text begins with the shorter one.
static inline int dataset_grammar(dataset_text *text, size_t n, uint64_t seed, char *err, size_t err_size) {
    memset(text, 0, sizeof *text);
    if (n < 1 || n > SIZE_MAX / 2 || !(text->bytes = (unsigned char *)malloc(n)))
        return dataset_error(err, err_size, "grammar: expected room for %zu bytes", n);
    for (uint64_t sentence = 0; text->n < n; sentence++) {
        dataset_sentence s = {text, n, seed, sentence, 0};
        int plural[3], nouns = 0;  // nouns whose verb is still to come
        for (int open = 1; open > 0;) {
            if (nouns < open) {
                plural[nouns++] = dataset_append_phrase(&s);
                if (nouns == 3 || dataset_draw(&s, 2) != 0) continue;
                dataset_append(&s, "that", ' ');  // a relative clause: its noun and verb come first
                open++;
                continue;
            }
            nouns--;
            open--;
            dataset_append_verb(&s, plural[nouns], open == 0);
        }
        dataset_append(&s, "", '\n');
    }
    return 0;
}

// Reads the bytes of a text: of a named set (entry), or of a path (entry NULL). An empty file is an error.
static inline int dataset_text_read(const dataset_entry *entry, const char *path, const char *data_dir,
                                    dataset_text *text, char *err, size_t err_size) {
    dataset_file f;
    char dir[DATASET_PATH_SIZE] = "", hint[DATASET_PATH_SIZE + 128] = "";
    memset(text, 0, sizeof *text);
    if (entry) dataset_hint(hint, sizeof hint, entry, data_dir);
    else dataset_suggest(hint, sizeof hint, path, 1);
    if (entry && dataset_path(dir, data_dir, entry->name, ""))
        return dataset_error(err, err_size, "%.64s...: path too long", data_dir);
    if (dataset_file_open(&f, dir, entry ? entry->files[0] : path, hint, err, err_size)) return -1;
    int status = 0;
    if (f.size == 0) {
        status = dataset_error(err, err_size, "%s: expected text, found an empty file", f.path);
    } else if (f.size > SIZE_MAX / 2 || !(text->bytes = (unsigned char *)malloc((size_t)f.size))) {
        status = dataset_error(err, err_size, "%s: out of memory: expected room for %llu bytes", f.path,
                               (unsigned long long)f.size);
    } else {
        text->n = (size_t)f.size;
        status = dataset_file_read(&f, text->bytes, text->n, err, err_size);
    }
    dataset_file_close(&f);
    if (status) dataset_text_free(text);
    return status;
}

// See the contents above. A text that is not named in the table is a path.
static inline int dataset_text_load(const char *name_or_path, const char *data_dir, dataset_text *text, char *err,
                                    size_t err_size) {
    const dataset_entry *const entry = dataset_find(name_or_path, 1);
    switch (entry ? entry->format : DATASET_TEXT) {
    case DATASET_GRAMMAR:
        return dataset_grammar(text, (size_t)entry->n_train, 20250101, err, err_size);
    case DATASET_TEXT:
        return dataset_text_read(entry, name_or_path, data_dir ? data_dir : "data", text, err, err_size);
    default:
        dataset_no_loader(entry);
    }
}

// Whether a file is to be read as a shard of tokens: it begins with a magic number of llm.c's files (a date of 2024),
// of which only the shard's is then accepted; or its name ends in .bin or .bin.gz. 0 for the name of a text, and where
// nothing can be read.
static inline int dataset_is_shard(const char *path) {
    dataset_file f;
    if (dataset_find(path, 1)) return 0;
    if (dataset_ends_in(path, ".bin") || dataset_ends_in(path, ".bin.gz")) return 1;
    if (dataset_file_open(&f, "", path, "", NULL, 0)) return 0;
    const uint32_t magic = f.n_head < 4 ? 0 : dataset_le32(f.head);
    dataset_file_close(&f);
    return magic > 20240000 && magic < 20250000;
}

// Reads the header of a shard and checks the size of its file.
static inline int dataset_shard_check(dataset_file *f, size_t *count, char *err, size_t err_size) {
    unsigned char header[1024];
    char why[64];
    if (f->size < sizeof header)
        return dataset_error(err, err_size, "%s: truncated: expected a header of 1024 bytes, found %llu bytes", f->path,
                             (unsigned long long)f->size);
    if (dataset_file_read(f, header, sizeof header, err, err_size)) return -1;
    const uint32_t magic = dataset_le32(header), version = dataset_le32(header + 4), n = dataset_le32(header + 8);
    if (magic != 20240520)
        return dataset_error(err, err_size, "%s: wrong magic: expected 20240520 (token shard), found %u", f->path,
                             magic);
    if (version != 1)
        return dataset_error(err, err_size, "%s: wrong version: expected 1 (16-bit tokens), found %u", f->path,
                             version);
    if (n < 1 || n > INT_MAX)
        return dataset_error(err, err_size, "%s: expected 1..%d tokens, found %d in the header", f->path, INT_MAX,
                             (int)n);
    snprintf(why, sizeof why, "the header says %u tokens", n);
    *count = n;
    return dataset_file_expect(f, sizeof header + 2ull * n, why, err, err_size);
}

// Reads a shard of tokens: 256 little-endian 32-bit integers (magic 20240520, version 1, number of tokens, zeros), then
// the tokens as little-endian 16-bit integers.
static inline int dataset_shard_load(const char *path, dataset_shard *shard, char *err, size_t err_size) {
    dataset_file f;
    size_t n = 0;
    memset(shard, 0, sizeof *shard);
    if (dataset_file_open(&f, "", path, "", err, err_size)) return -1;
    int status = dataset_shard_check(&f, &n, err, err_size);
    if (!status && !(shard->tokens = (uint16_t *)malloc(2 * n)))
        status = dataset_error(err, err_size, "%s: out of memory: expected room for %zu tokens", f.path, n);
    if (!status) status = dataset_file_read(&f, shard->tokens, 2 * n, err, err_size);
    dataset_file_close(&f);
    if (status) {
        dataset_shard_free(shard);
        return -1;
    }
    shard->n = n;
    for (size_t i = 0; i < n; i++) {
        const unsigned char *p = (const unsigned char *)(shard->tokens + i);
        shard->tokens[i] = (uint16_t)(p[0] | p[1] << 8);
    }
    return 0;
}
