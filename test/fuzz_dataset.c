// fuzz_dataset.c -- feeds damaged files to every reader of common/dataset.h.
//
//     fuzz_dataset [SEED [ITERATIONS]]    default 1 and 3000; the same arguments give the same run
//
// Each iteration damages one good file (IDX, CIFAR-10, token shard or text, with zlib also compressed): flipped bits,
// bytes and header words of special values, cut, extended, moved blocks. The reader must return 0 with a data set whose
// every byte can be used, or -1 with a one-line message and empty outputs. Build it with -fsanitize=address,undefined
// to find reads and writes that are out of bounds.
#include <sys/stat.h>
#include <unistd.h>

#include "../common/dataset.h"
#include "test.h"

enum { LARGEST = 1 << 14, FILES = 10 };

// A good file and whether it belongs to the IDX (i) or CIFAR-10 (c) folder, or is a shard (s) or a text (t).
typedef struct {
    const char *name;
    char kind;
    size_t n;
    unsigned char bytes[LARGEST];
} good_file;

static good_file files[FILES];
static char dir[1024];
static uint64_t fuzz_seed, fuzz_draw;
static double used;  // what was read from accepted data, so that the reads are not optimised away

// A random number below n.
static uint32_t below(uint32_t n) {
    const uint64_t z = dataset_random(fuzz_seed, fuzz_draw / 1000, (uint32_t)(fuzz_draw % 1000));
    fuzz_draw++;
    return (uint32_t)((z >> 32) * n >> 32);
}

static void write_bytes(char kind, const char *name, const char *ending, const unsigned char *bytes, size_t n) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%c/%s%s", dir, kind, name, ending);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) {
        perror(path);
        exit(1);
    }
}

static void remove_file(char kind, const char *name, const char *ending) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%c/%s%s", dir, kind, name, ending);
    unlink(path);
}

// Writes v at p, most significant byte first (IDX) or last (shard).
static void put32(unsigned char *p, uint32_t v, int big) {
    for (int i = 0; i < 4; i++) p[big ? 3 - i : i] = (unsigned char)(v >> (8 * i));
}

static good_file *add(int k, char kind, const char *name, size_t n) {
    files[k].name = name;
    files[k].kind = kind;
    files[k].n = n;
    for (size_t i = 0; i < n; i++) files[k].bytes[i] = (unsigned char)(i * 131 + i / 7);
    return files + k;
}

// Makes the good files and writes them.
static void make_files(void) {
    static const char *const cifar[] = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                        "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};
    static const char *const idx[] = {"train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte",
                                      "t10k-labels-idx1-ubyte"};
    const char kinds[] = "icst";
    char path[1200];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%c", dir, kinds[i]);
        mkdir(path, 0777);
    }
    for (int i = 0; i < 4; i++) {
        const uint32_t n = i % 2 ? 9 : 30;
        good_file *f = add(i, 'i', idx[i], i < 2 ? 16 + n * 35 : 8 + n);
        put32(f->bytes, i < 2 ? 0x803 : 0x801, 1);
        put32(f->bytes + 4, n, 1);
        if (i < 2) {
            put32(f->bytes + 8, 7, 1);
            put32(f->bytes + 12, 5, 1);
        } else {
            for (uint32_t j = 0; j < n; j++) f->bytes[8 + j] = (unsigned char)(j % 4);
        }
    }
    for (int i = 0; i < 6; i++) {  // only the first and the last are damaged; the others stay on disk
        good_file *f = add(i ? 5 : 4, 'c', cifar[i], 2 * DATASET_CIFAR_RECORD);
        f->bytes[0] = 3;
        f->bytes[DATASET_CIFAR_RECORD] = 9;
        write_bytes('c', f->name, "", f->bytes, f->n);
    }
    good_file *shard = add(6, 's', "shard", 1024 + 2 * 500);
    put32(shard->bytes, 20240520, 0);
    put32(shard->bytes + 4, 1, 0);
    put32(shard->bytes + 8, 500, 0);
    add(7, 't', "text", 3000);
    add(8, 't', "short", 1);
    add(9, 's', "tiny", 1026);
    put32(files[9].bytes, 20240520, 0);
    put32(files[9].bytes + 4, 1, 0);
    put32(files[9].bytes + 8, 1, 0);
    for (int i = 0; i < FILES; i++) write_bytes(files[i].kind, files[i].name, "", files[i].bytes, files[i].n);
}

// Damages bytes[*n] in place, in one of several ways; there is room for LARGEST bytes.
static void damage(unsigned char *bytes, size_t *n) {
    static const uint32_t special[] = {0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x801, 0x803, 0x7fff, 0x8000, 0xffff, 0x10000,
                                       0x7fffffff, 0x80000000u, 0xfffffff0u, 0xffffffffu, 20240520, 0x40000000};
    const size_t head = *n < 16 ? *n : 16;
    switch (below(8)) {
        case 0:  // flipped bits
            for (uint32_t k = below(4) + 1; *n && k; k--) bytes[below((uint32_t)*n)] ^= (unsigned char)(1u << below(8));
            break;
        case 1:  // flipped bits near the start
            for (uint32_t k = below(3) + 1; *n && k; k--)
                bytes[below((uint32_t)head)] ^= (unsigned char)(1u << below(8));
            break;
        case 2:  // a word of the header
        case 3:
            for (uint32_t k = below(3) + 1; *n >= 16 && k; k--)
                put32(bytes + 4 * below(4), special[below(sizeof special / sizeof *special)], (int)below(2));
            break;
        case 4:  // cut
            *n = below((uint32_t)*n + 1);
            break;
        case 5: {  // extended
            const uint32_t more = below(3) ? below(4) + 1 : below(LARGEST - (uint32_t)*n);
            for (uint32_t k = 0; k < more; k++) bytes[*n + k] = (unsigned char)below(256);
            *n += more;
            break;
        }
        case 6: {  // one block over another
            if (!*n) break;
            const uint32_t length = below((uint32_t)*n) + 1, from = below((uint32_t)*n - length + 1);
            memmove(bytes + below((uint32_t)*n - length + 1), bytes + from, length);
            break;
        }
        default:  // random bytes
            for (uint32_t k = below(16) + 1; *n && k; k--) bytes[below((uint32_t)*n)] = (unsigned char)below(256);
    }
}

#ifdef USE_ZLIB
// Compresses bytes[n] into packed[LARGEST]; returns the size, 0 when it does not fit.
static size_t pack(const unsigned char *bytes, size_t n, unsigned char *packed) {
    z_stream z;
    memset(&z, 0, sizeof z);
    if (deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK) return 0;
    z.next_in = (Bytef *)(uintptr_t)bytes;
    z.avail_in = (uInt)n;
    z.next_out = packed;
    z.avail_out = LARGEST;
    const int done = deflate(&z, Z_FINISH) == Z_STREAM_END;
    const size_t size = z.total_out;
    deflateEnd(&z);
    return done ? size : 0;
}
#endif

// Uses every byte of an accepted set and checks what the header promises.
static int use_set(const dataset *d) {
    float *sample = (float *)malloc(sizeof *sample * (size_t)d->features);
    int ok = d->n > 0 && d->classes >= 2 && d->features == d->channels * d->height * d->width && d->pixels;
    for (int i = 0; ok && i < d->n; i++) {
        dataset_sample(d, i, sample);
        for (int j = 0; j < d->features; j++) {
            ok = ok && isfinite(sample[j]);
            used += sample[j];
        }
        ok = ok && d->labels[i] < d->classes;
    }
    free(sample);
    return ok;
}

// Runs the reader of a kind; -1 rejected as it should be, 1 accepted and used, 0 wrong.
static int read_kind(const good_file *f) {
    dataset train, test, empty;
    dataset_shard shard;
    dataset_text text;
    char err[256] = "", path[1200];
    int status, ok;
    memset(&empty, 0, sizeof empty);
    if (f->kind == 'i' || f->kind == 'c') {
        snprintf(path, sizeof path, "%s/%c", dir, f->kind);
        status = dataset_load(path, NULL, &train, &test, err, sizeof err);
        ok = status ? !memcmp(&train, &empty, sizeof empty) && !memcmp(&test, &empty, sizeof empty)
                    : use_set(&train) && use_set(&test);
        dataset_free(&train);
        dataset_free(&test);
    } else if (f->kind == 's') {
        snprintf(path, sizeof path, "%s/s/%s", dir, f->name);
        status = dataset_shard_load(path, &shard, err, sizeof err);
        ok = status ? !shard.tokens && !shard.n : shard.n > 0;
        for (size_t i = 0; i < shard.n; i++) used += shard.tokens[i];
        dataset_shard_free(&shard);
    } else {
        snprintf(path, sizeof path, "%s/t/%s", dir, f->name);
        status = dataset_text_load(path, NULL, &text, err, sizeof err);
        ok = status ? !text.bytes && !text.n : text.n > 0;
        for (size_t i = 0; i < text.n; i++) used += text.bytes[i];
        dataset_text_free(&text);
    }
    if (!ok || (status != 0 && (status != -1 || !*err || strchr(err, '\n')))) {
        printf("%s: status %d, message: %s\n", f->name, status, err);
        return 0;
    }
    return status ? -1 : 1;
}

// One iteration: a damaged copy of a good file, plain or compressed, takes its place while it is read.
static int iterate(void) {
    static unsigned char bytes[LARGEST];
    const good_file *f = files + below(FILES);
    const char *ending = "";
    size_t n = f->n;
    memcpy(bytes, f->bytes, n);
#ifdef USE_ZLIB
    static unsigned char packed[LARGEST];
    const int compressed = !below(3), inside = (int)below(2);
    if (compressed) {
        if (inside) damage(bytes, &n);
        const size_t size = pack(bytes, n, packed);
        if (size) {
            ending = ".gz";
            n = size;
            memcpy(bytes, packed, size);
        }
        if (size && !inside) damage(bytes, &n);
    } else
#endif
        for (uint32_t k = below(3) + 1; k; k--) damage(bytes, &n);
    remove_file(f->kind, f->name, "");
    if (below(200)) write_bytes(f->kind, f->name, ending, bytes, n);
    const int result = read_kind(f);
    remove_file(f->kind, f->name, ending);
    write_bytes(f->kind, f->name, "", f->bytes, f->n);
    return result;
}

int main(int argc, char **argv) {
    char what[128];
    int accepted = 0, rejected = 0;
    const long iterations = argc > 2 ? atol(argv[2]) : 3000;
    fuzz_seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    snprintf(dir, sizeof dir, "%s", test_make_dir());
    make_files();
    for (int i = 0; i < FILES; i++) CHECK(read_kind(files + i) == 1, files[i].name);
    for (long i = 0; i < iterations; i++) {
        const int result = iterate();
        snprintf(what, sizeof what, "seed %llu, iteration %ld", (unsigned long long)fuzz_seed, i);
        CHECK(result != 0, what);
        accepted += result == 1;
        rejected += result == -1;
    }
    CHECK(iterations < 1000 || (accepted > iterations / 20 && rejected > iterations / 5), "both outcomes are reached");
    printf("%d accepted, %d rejected (%g)\n", accepted, rejected, used);
    test_remove_dir(dir);
    return test_summary();
}
