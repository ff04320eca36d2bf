// test_dataset.c -- every reader of common/dataset.h with good and bad files, the built-in sets, and the real data.
//
//     test_dataset [DATA_DIR]    the real sets are read from DATA_DIR (default: fetched with data/get_data.sh into a
//                                temporary folder when RESCALE_DATA is set, else skipped)
#include <sys/stat.h>
#include <unistd.h>

#include "../common/dataset.h"
#include "test.h"

// FNV-1a of the built-in sets; they change only when the sets are changed on purpose.
#define MOONS_HASH 0xcda3ad42dba47ed7ull
#define IMAGES_HASH 0x89f20f4bcba67abfull

static char err[DATASET_ERROR_SIZE];
static char dir[1024];
static dataset train, test;

// dir/name in a buffer that lives until the eighth next call.
static const char *at(const char *name) {
    static char path[8][2048];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s", dir, name);
    return path[next];
}

static void write_file(const char *name, const void *bytes, size_t n) {
    FILE *f = fopen(at(name), "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) {
        perror(at(name));
        exit(1);
    }
}

static void put32(unsigned char *p, uint32_t v) {
    p[0] = (unsigned char)(v >> 24);
    p[1] = (unsigned char)(v >> 16);
    p[2] = (unsigned char)(v >> 8);
    p[3] = (unsigned char)v;
}

// Writes n bytes of an IDX file with the given header; pixel or label k is (k * 37 + salt) % modulus.
static void write_idx(const char *name, uint32_t magic, int dims, const uint32_t *dim, size_t n, int modulus,
                      int salt) {
    const size_t header = 4 + 4 * (size_t)dims;
    unsigned char *raw = (unsigned char *)malloc(header + n);
    put32(raw, magic);
    for (int i = 0; i < dims; i++) put32(raw + 4 + 4 * i, dim[i]);
    for (size_t k = 0; k < n; k++)
        raw[header + k] = (unsigned char)((k * 37 + (size_t)salt) % (size_t)modulus);
    write_file(name, raw, header + n);
    free(raw);
}

static void write_images(const char *name, uint32_t n, uint32_t rows, uint32_t columns, int salt) {
    const uint32_t dim[3] = {n, rows, columns};
    write_idx(name, 0x803, 3, dim, (size_t)n * rows * columns, 256, salt);
}

static void write_labels(const char *name, uint32_t n, int classes) {
    write_idx(name, 0x801, 1, &n, n, classes, 0);
}

#define TRAIN_IMAGES "train-images-idx3-ubyte"
#define TRAIN_LABELS "train-labels-idx1-ubyte"
#define TEST_IMAGES "t10k-images-idx3-ubyte"
#define TEST_LABELS "t10k-labels-idx1-ubyte"

// The four files of a small good set: 20 + 6 images of 4 x 3 in 5 classes.
static void write_good(void) {
    write_images(TRAIN_IMAGES, 20, 4, 3, 1);
    write_labels(TRAIN_LABELS, 20, 5);
    write_images(TEST_IMAGES, 6, 4, 3, 2);
    write_labels(TEST_LABELS, 6, 5);
}

// Loads the temporary folder and expects an error whose one line contains every one of the words, and empty outputs.
static void expect_error(const char *what, const char *const words[3]) {
    char line[2200];
    int ok = 1;
    snprintf(err, sizeof err, "(none)");
    ok = dataset_load(dir, NULL, &train, &test, err, sizeof err) == -1;
    for (int i = 0; i < 3; i++) ok = ok && (!words[i] || strstr(err, words[i]));
    ok = ok && !strchr(err, '\n') && !train.labels && !test.labels && !train.pixels && !test.pixels && !train.n;
    const char *second = words[1] ? words[1] : "";
    snprintf(line, sizeof line, "%s: expected an error with '%s' '%s' '%s', got: %s", what, words[0], second,
             words[2] ? words[2] : "", err);
    CHECK(ok, line);
    if (ok && getenv("SHOW_MESSAGES")) printf("%s\n", err);
    dataset_free(&train);
    dataset_free(&test);
}
#define EXPECT_ERROR(what, ...)                             \
    do {                                                    \
        static const char *const words_[3] = {__VA_ARGS__}; \
        expect_error(what, words_);                         \
    } while (0)

// Loads the temporary folder and expects success.
static int expect_load(const char *what) {
    snprintf(err, sizeof err, "(none)");
    const int ok = !dataset_load(dir, NULL, &train, &test, err, sizeof err);
    if (!ok) printf("%s: %s\n", what, err);
    return CHECK(ok, what);
}

static void free_both(void) {
    dataset_free(&train);
    dataset_free(&test);
    dataset_free(&train);  // a second time is fine
    CHECK(!train.pixels && !train.n && !test.labels, "dataset_free zeroes");
}

static void test_idx_good(void) {
    double sum = 0, squares = 0;
    float sample[12];
    write_good();
    if (!expect_load("a good IDX set")) return;
    CHECK(train.n == 20 && test.n == 6, "counts");
    CHECK(train.channels == 1 && train.height == 4 && train.width == 3 && train.features == 12, "shape");
    CHECK(train.classes == 5 && test.classes == 5, "classes");
    CHECK(!train.values && train.pixels, "pixels, not values");
    CHECK(!strncmp(train.name, "rescale_test_", 13), "the name is the last part of the path");
    int same = 1;
    for (int k = 0; k < 240; k++) same = same && train.pixels[k] == (k * 37 + 1) % 256;
    for (int k = 0; k < 20; k++) same = same && train.labels[k] == k * 37 % 5;
    for (int k = 0; k < 72; k++) same = same && test.pixels[k] == (k * 37 + 2) % 256;
    CHECK(same, "every byte in its place");
    for (int k = 0; k < 240; k++) {
        sum += train.pixels[k] / 255.0;
        squares += pow(train.pixels[k] / 255.0, 2);
    }
    const double mean = sum / 240, std = sqrt(squares / 240 - mean * mean);
    const double want[2] = {mean, std};
    const float got[2] = {train.mean[0], train.std[0]}, got_test[2] = {test.mean[0], test.std[0]};
    test_close("mean and std of training", got, want, 2, 1e-6, 0);
    test_close("the test set has those of training", got_test, want, 2, 1e-6, 0);
    double want_sample[12];
    for (int j = 0; j < 12; j++) want_sample[j] = (train.pixels[12 + j] / 255.0 - mean) / std;
    dataset_sample(&train, 1, sample);
    test_close("dataset_sample", sample, want_sample, 12, 1e-5, 1e-6);
    CHECK(dataset_limit(&train, 0) == -1 && dataset_limit(&train, -3) == -1 && train.n == 20, "limit refuses 0");
    CHECK(!dataset_limit(&train, 100) && train.n == 20 && !dataset_limit(&train, 7) && train.n == 7, "limit");
    free_both();

    char slash[1100];
    snprintf(slash, sizeof slash, "%s/", dir);
    CHECK(!dataset_load(slash, NULL, &train, &test, err, sizeof err), "a folder with a slash at the end");
    free_both();

    // constant images: std 1, nothing to divide by
    const uint32_t dim[3] = {20, 4, 3};
    write_idx(TRAIN_IMAGES, 0x803, 3, dim, 240, 1, 0);
    if (expect_load("constant images")) CHECK(train.std[0] == 1.0f && train.mean[0] == 0.0f, "std of a constant is 1");
    free_both();
}

// Files that are missing, cut, too long, or of another kind.
static void test_idx_files(void) {
    const uint32_t dim[3] = {20, 4, 3};
    unsigned char raw[64] = {0};
    write_good();
    unlink(at(TRAIN_LABELS));
    EXPECT_ERROR("missing labels", TRAIN_LABELS, "not found");
    write_good();
    unlink(at(TEST_IMAGES));
    EXPECT_ERROR("missing test images", TEST_IMAGES, "not found");
    write_good();
    write_idx(TRAIN_IMAGES, 0x803, 3, dim, 239, 256, 0);
    EXPECT_ERROR("one byte short", TRAIN_IMAGES, "truncated", "expected 256 bytes");
    write_good();
    write_idx(TRAIN_IMAGES, 0x803, 3, dim, 241, 256, 0);
    EXPECT_ERROR("one byte too many", TRAIN_IMAGES, "oversized", "found 257");
    write_good();
    write_idx(TEST_LABELS, 0x801, 1, dim, 19, 5, 0);
    EXPECT_ERROR("labels short", TEST_LABELS, "truncated", "found 27");
    write_good();
    write_file(TRAIN_IMAGES, raw, 0);
    EXPECT_ERROR("an empty file", TRAIN_IMAGES, "truncated", "header of 16 bytes");
    write_good();
    write_file(TRAIN_LABELS, raw, 7);
    EXPECT_ERROR("a short header", TRAIN_LABELS, "truncated", "header of 8 bytes, found 7");
    write_good();
    write_labels(TRAIN_IMAGES, 20, 5);
    EXPECT_ERROR("labels for images", TRAIN_IMAGES, "wrong magic", "found 0x00000801");
    write_good();
    write_images(TEST_LABELS, 6, 1, 1, 0);
    EXPECT_ERROR("images for labels", TEST_LABELS, "wrong magic", "expected 0x00000801");
    write_good();
    write_idx(TRAIN_IMAGES, 0xd03, 3, dim, 240, 256, 0);
    EXPECT_ERROR("an IDX file of floats", TRAIN_IMAGES, "wrong magic", "0x00000d03");
}

// Headers that promise too little or too much, and sets whose files contradict each other.
static void test_idx_headers(void) {
    write_good();
    write_labels(TRAIN_LABELS, 19, 5);
    EXPECT_ERROR("counts differ", TRAIN_LABELS, "expected 20 labels", "found 19");
    write_good();
    write_images(TRAIN_IMAGES, 0, 4, 3, 0);
    EXPECT_ERROR("no images", TRAIN_IMAGES, "empty");
    write_good();
    write_images(TRAIN_IMAGES, 20, 0, 3, 0);
    EXPECT_ERROR("no rows", TRAIN_IMAGES, "empty", "20 x 0 x 3");
    const uint32_t huge[4][3] = {{0xffffffffu, 1, 1}, {2, 0x10000, 0x10000}, {0x10000, 0x10000, 0x10000},
                                 {0xffffffffu, 0xffffffffu, 0xffffffffu}};
    for (int i = 0; i < 4; i++) {
        write_good();
        write_idx(TRAIN_IMAGES, 0x803, 3, huge[i], 16, 256, 0);
        EXPECT_ERROR("a product that overflows", TRAIN_IMAGES, "out of range");
    }
    const uint32_t large[3] = {0x7fffffff, 46340, 46340};  // fits the types, not the file: no memory must be asked for
    write_good();
    write_idx(TRAIN_IMAGES, 0x803, 3, large, 16, 256, 0);
    EXPECT_ERROR("a large header on a small file", TRAIN_IMAGES, "truncated", "expected 4611");
    write_good();
    write_images(TEST_IMAGES, 6, 3, 4, 0);
    EXPECT_ERROR("test images of another shape", "expected test images of 1x4x3", "found 1x3x4");
    write_good();
    write_labels(TEST_LABELS, 6, 6);
    EXPECT_ERROR("a test label that training does not have", "expected test labels of 0..4", "found 5");
    write_good();
    write_labels(TRAIN_LABELS, 20, 1);
    EXPECT_ERROR("one class", "expected at least 2 classes");
}

// Files that cannot be read.
static void test_idx_access(void) {
    write_good();
    unlink(at(TEST_LABELS));
    mkdir(at(TEST_LABELS), 0777);
    EXPECT_ERROR("a folder for a file", TEST_LABELS, "not a regular file");
    rmdir(at(TEST_LABELS));
    write_good();
    if (geteuid() != 0) {
        chmod(at(TEST_LABELS), 0);
        EXPECT_ERROR("no permission", TEST_LABELS, "cannot be opened");
    } else {
        test_skip("a file without read permission: running as root");
    }
    unlink(at(TRAIN_IMAGES));
    unlink(at(TRAIN_LABELS));
    unlink(at(TEST_IMAGES));
    unlink(at(TEST_LABELS));
    EXPECT_ERROR("an empty folder", "expected train-images-idx3-ubyte or data_batch_1.bin", "found neither");
}

// Names and paths that lead nowhere.
static void test_names(void) {
    char path[DATASET_PATH_SIZE + 100];
    CHECK(dataset_load("no-such-set", NULL, &train, &test, err, sizeof err) == -1 && strstr(err, "no-such-set") &&
          strstr(err, "fashion-mnist"), "an unknown name lists the known ones");
    CHECK(dataset_load("mnist", dir, &train, &test, err, sizeof err) == -1 && strstr(err, "data/get_data.sh --dest") &&
          strstr(err, "mnist") && strstr(err, "built in: images"), "a set that is not there says how to get it");
    write_good();
    write_labels(TRAIN_LABELS, 20, 12);
    const int linked = symlink(dir, at("mnist")) == 0;
    CHECK(linked && dataset_load("mnist", dir, &train, &test, err, sizeof err) == -1 &&
              strstr(err, "expected training labels 0 to 9, found a label 11"),
          "a training label that MNIST does not have");
    unlink(at("mnist"));
    unlink(at(TRAIN_IMAGES));
    unlink(at(TRAIN_LABELS));
    unlink(at(TEST_IMAGES));
    unlink(at(TEST_LABELS));
    mkdir(at("fashion-mnist"), 0777);
    CHECK(dataset_load("fashion-mnist", dir, &train, &test, err, sizeof err) == -1 && strstr(err, TRAIN_IMAGES) &&
          strstr(err, "get_data.sh"), "a set without its files says how to get it");
    rmdir(at("fashion-mnist"));
    write_file("plain", "x", 1);
    CHECK(dataset_load(at("plain"), NULL, &train, &test, err, sizeof err) == -1 && strstr(err, "found a file"),
          "a file where a folder is expected");
    unlink(at("plain"));
    memset(path, 'a', sizeof path);
    path[sizeof path - 1] = 0;
    CHECK(dataset_load(path, NULL, &train, &test, err, sizeof err) == -1, "a path that is too long");
    CHECK(dataset_load("mnist", path, &train, &test, err, sizeof err) == -1 && strstr(err, "too long"),
          "a data folder with too long a path");
    CHECK(dataset_load("cifar10", dir, &train, &test, NULL, 0) == -1, "no room for a message is fine");
    CHECK(dataset_load("cifar10", dir, &train, &test, err, 8) == -1 && strlen(err) == 7, "a short message is cut");
    CHECK(dataset_load("", NULL, &train, &test, err, sizeof err) == -1, "an empty name");
}

// The table of named sets: every row can be loaded without files, or says how to get them and which set stands in.
static void test_table(void) {
    dataset_text text;
    char line[128], names[256];
    for (const dataset_entry *e = dataset_entries(); e->name; e++) {
        const int is_text = e->classes == 0;
        snprintf(line, sizeof line, "%s: a name of one kind", e->name);
        CHECK(dataset_find(e->name, is_text) == e && !dataset_find(e->name, !is_text), line);
        int status = is_text ? dataset_text_load(e->name, dir, &text, err, sizeof err)
                             : dataset_load(e->name, dir, &train, &test, err, sizeof err);
        snprintf(line, sizeof line, "%s: built in, or missing", e->name);
        CHECK((status == 0) == (e->files == NULL) && (e->files == NULL) == (e->instead == NULL), line);
        if (status) {
            snprintf(line, sizeof line, "%s: its substitute", e->name);
            const dataset_entry *instead = dataset_find(e->instead, is_text);
            CHECK(strstr(err, e->instead) && instead && !instead->files, line);
        } else if (is_text) {
            CHECK(text.n == (size_t)e->n_train, "a text: bytes");
            dataset_text_free(&text);
        } else {
            CHECK(train.n == e->n_train && test.n == e->n_test && train.classes == e->classes, "built in: counts");
            free_both();
        }
    }
    dataset_names(names, sizeof names, 0, "|");
    CHECK(!strcmp(names, "moons|images|mnist|fashion-mnist|cifar10"), "the names of the sets");
    dataset_names(names, sizeof names, 1, " ");
    CHECK(!strcmp(names, "shakespeare grammar"), "the names of the texts");
    dataset_names(names, 8, 0, " ");
    CHECK(!strcmp(names, "moons i"), "names are cut where there is no room");
}

// Writes n CIFAR-10 records; label of record i is i % 10 except that of `bad`.
static void write_cifar(const char *name, int n, int extra, int bad) {
    unsigned char *raw = (unsigned char *)calloc((size_t)n + 1, DATASET_CIFAR_RECORD);
    for (int i = 0; i < n; i++) {
        unsigned char *p = raw + (size_t)i * DATASET_CIFAR_RECORD;
        p[0] = (unsigned char)(i == bad ? 10 : i % 10);
        for (int j = 0; j < 3072; j++) p[1 + j] = (unsigned char)(i + j / 1024 * 50 + j % 7);
    }
    write_file(name, raw, (size_t)n * DATASET_CIFAR_RECORD + (size_t)extra);
    free(raw);
}

static void write_good_cifar(void) {
    char name[32];
    for (int i = 1; i <= 5; i++) {
        snprintf(name, sizeof name, "data_batch_%d.bin", i);
        write_cifar(name, 3 + i, 0, -1);
    }
    write_cifar("test_batch.bin", 4, 0, -1);
}

static void test_cifar(void) {
    write_good_cifar();
    if (expect_load("a good CIFAR-10 set")) {
        CHECK(train.n == 4 + 5 + 6 + 7 + 8 && test.n == 4 && train.classes == 10 && test.classes == 10, "counts");
        CHECK(train.channels == 3 && train.height == 32 && train.width == 32 && train.features == 3072, "shape");
        CHECK(train.labels[4] == 0 && train.labels[3] == 3 && train.labels[29] == 7, "labels across files");
        CHECK(train.pixels[29 * 3072 + 2048 + 5] == 7 + 2 * 50 + (2048 + 5) % 7, "last record, blue");
        CHECK(train.mean[1] > train.mean[0] && train.mean[2] > train.mean[1] && train.std[0] > 0, "per channel");
    }
    free_both();
    unlink(at("data_batch_3.bin"));
    EXPECT_ERROR("a missing batch", "data_batch_3.bin", "not found");
    write_good_cifar();
    write_cifar("data_batch_2.bin", 4, 1, -1);
    EXPECT_ERROR("a byte too many", "data_batch_2.bin", "multiple of 3073", "found 12293");
    write_good_cifar();
    write_cifar("test_batch.bin", 0, 0, -1);
    EXPECT_ERROR("an empty batch", "test_batch.bin", "multiple of 3073", "found 0");
    write_good_cifar();
    write_cifar("data_batch_5.bin", 4, 0, 2);
    EXPECT_ERROR("a label of 10", "data_batch_5.bin", "record 2", "found 10");
    write_good_cifar();
    CHECK(!symlink(".", at("cifar10")), "a link");
    CHECK(dataset_load("cifar10", dir, &train, &test, err, sizeof err) == -1 && strstr(err, "truncated") &&
          strstr(err, "30730000"), "the named set has batches of 10,000, not fewer");
    unlink(at("cifar10"));
    for (int i = 1; i <= 5; i++) {
        char name[32];
        snprintf(name, sizeof name, "data_batch_%d.bin", i);
        unlink(at(name));
    }
    unlink(at("test_batch.bin"));
}

#ifdef USE_ZLIB
// Compresses dir/name into dir/name.gz, keeping only the first `keep` bytes of the result, and removes the original.
static void compress_file(const char *name, long keep, int damage) {
    char packed[1200], buffer[1 << 16];
    snprintf(packed, sizeof packed, "%s.gz", at(name));
    FILE *f = fopen(at(name), "rb");
    gzFile z = gzopen(packed, "wb");
    size_t n = f ? fread(buffer, 1, sizeof buffer, f) : 0;
    if (!f || !z || gzwrite(z, buffer, (unsigned)n) != (int)n || gzclose(z)) {
        perror(packed);
        exit(1);
    }
    fclose(f);
    unlink(at(name));
    if (keep > 0 && truncate(packed, keep)) perror(packed);
    if (damage > 0 && (f = fopen(packed, "r+b"))) {
        fseek(f, damage, SEEK_SET);
        const int c = getc(f);
        fseek(f, damage, SEEK_SET);
        putc(c ^ 0x55, f);
        fclose(f);
    }
}

static void test_gz(void) {
    const uint32_t dim[3] = {20, 4, 3};
    write_good();
    compress_file(TRAIN_IMAGES, 0, 0);
    compress_file(TEST_LABELS, 0, 0);
    if (expect_load("IDX files, two of them .gz"))
        CHECK(train.n == 20 && train.pixels[239] == (239 * 37 + 1) % 256 && test.labels[5] == 5 * 37 % 5, "content");
    free_both();
    write_images(TRAIN_IMAGES, 20, 4, 3, 77);
    if (expect_load("plain wins over .gz")) CHECK(train.pixels[0] == 77, "plain wins");
    free_both();
    unlink(at(TRAIN_IMAGES));
    write_images(TRAIN_IMAGES, 20, 4, 3, 1);
    compress_file(TRAIN_IMAGES, 60, 0);
    EXPECT_ERROR("a .gz cut off", TRAIN_IMAGES ".gz", "damaged or cut off");
    write_images(TRAIN_IMAGES, 20, 4, 3, 1);
    compress_file(TRAIN_IMAGES, 0, 100);
    EXPECT_ERROR("a .gz with a wrong byte", TRAIN_IMAGES ".gz", "damaged or cut off");
    write_images(TRAIN_IMAGES, 20, 4, 3, 1);
    rename(at(TRAIN_IMAGES), at(TRAIN_IMAGES ".gz"));
    EXPECT_ERROR("not compressed but called .gz", TRAIN_IMAGES ".gz", "not gzip data");
    unlink(at(TRAIN_IMAGES ".gz"));
    write_images(TRAIN_IMAGES, 20, 4, 3, 1);
    compress_file(TRAIN_IMAGES, 0, 0);
    rename(at(TRAIN_IMAGES ".gz"), at(TRAIN_IMAGES));
    if (expect_load("gzip data without the ending .gz")) CHECK(train.pixels[239] == (239 * 37 + 1) % 256, "content");
    free_both();
    write_file(TRAIN_IMAGES, "\x1f\x8b but no more", 14);
    EXPECT_ERROR("gzip data without the ending .gz, damaged", TRAIN_IMAGES, "damaged or cut off");
    unlink(at(TRAIN_IMAGES));
    write_idx(TRAIN_IMAGES, 0x803, 3, dim, 239, 256, 0);
    compress_file(TRAIN_IMAGES, 0, 0);
    EXPECT_ERROR("a .gz of a short file", TRAIN_IMAGES ".gz", "truncated", "found 255");
    write_idx(TRAIN_IMAGES, 0x803, 3, dim, 241, 256, 0);
    compress_file(TRAIN_IMAGES, 0, 0);
    EXPECT_ERROR("a .gz of a long file", TRAIN_IMAGES ".gz", "oversized", "found 257");
    write_file(TRAIN_IMAGES ".gz", "", 0);
    EXPECT_ERROR("an empty .gz", TRAIN_IMAGES ".gz", "");
    unlink(at(TRAIN_IMAGES ".gz"));
    unlink(at(TEST_LABELS ".gz"));
}
#else
static void test_gz(void) {
    write_good();
    write_file(TRAIN_IMAGES ".gz", "\x1f\x8b\x08", 3);
    unlink(at(TRAIN_IMAGES));
    EXPECT_ERROR("a .gz without zlib", TRAIN_IMAGES ".gz", "gunzip it or build with zlib");
    rename(at(TRAIN_IMAGES ".gz"), at(TRAIN_IMAGES));
    EXPECT_ERROR("gzip data without zlib", TRAIN_IMAGES, "gunzip it or build with zlib");
    test_skip(".gz files: built without zlib");
}
#endif

// Files that are packed in a way that is not read here, whatever their names: every reader refuses them by name.
static void test_packed(void) {
    static const struct { const char *name, *ending, *magic; size_t at, n; } packed[] = {
        {"xz", "xz", "\xfd" "7zXZ\0", 0, 6},       {"zstd", "zst", "\x28\xb5\x2f\xfd", 0, 4},
        {"bzip2", "bz2", "BZh91AY&SY", 0, 10},     {"lz4", "lz4", "\x04\x22\x4d\x18", 0, 4},
        {"compress", "Z", "\x1f\x9d\x90", 0, 3},   {"zip", "zip", "PK\3\4", 0, 4},
        {"7z", "7z", "7z\xbc\xaf\x27\x1c", 0, 6}, {"tar", "tar", "ustar", 257, 5}};
    static const char *const files[] = {"text", "tokens.bin", TRAIN_LABELS, "data_batch_4.bin"};
    char raw[3073] = {0}, name[64], words[64];
    dataset_text text;
    dataset_shard shard;
    for (size_t k = 0; k < sizeof packed / sizeof *packed; k++) {
        memset(raw, 0, sizeof raw);
        memcpy(raw + packed[k].at, packed[k].magic, packed[k].n);
        snprintf(words, sizeof words, ": %s data: unpack it with", packed[k].name);
        for (int i = 0; i < 4; i++) {
            int status = 0;
            if (i == 2) write_good();
            if (i == 3) write_good_cifar();
            write_file(files[i], raw, sizeof raw);
            if (i == 0) status = dataset_text_load(at(files[i]), NULL, &text, err, sizeof err);
            if (i == 1) status = dataset_shard_load(at(files[i]), &shard, err, sizeof err);
            if (i > 1) status = dataset_load(dir, NULL, &train, &test, err, sizeof err);
            const int ok = status == -1 && strstr(err, files[i]) && strstr(err, words);
            if (!CHECK(ok, words)) printf("    %s: %s\n", files[i], err);
            unlink(at(files[i]));
            if (i > 1) unlink(at(TRAIN_IMAGES));
        }
        for (int i = 1; i < 6; i++) {
            snprintf(name, sizeof name, "data_batch_%d.bin", i);
            unlink(at(name));
        }
        snprintf(name, sizeof name, "promise.%s", packed[k].ending);
        snprintf(words, sizeof words, "not %s data", packed[k].name);
        write_file(name, "To be, or not to be\n", 20);
        CHECK(dataset_text_load(at(name), NULL, &text, err, sizeof err) == -1 && strstr(err, words), words);
        unlink(at(name));
    }
    unlink(at("test_batch.bin"));
    unlink(at(TEST_IMAGES));
    unlink(at(TEST_LABELS));
    const char *const plain[] = {"BZh9 is not bzip2", "PK is not zip", "7zip", "ustar at the front", "\x1f"};
    for (int i = 0; i < 5; i++) {
        write_file("text", plain[i], strlen(plain[i]));
        CHECK(!dataset_text_load(at("text"), NULL, &text, err, sizeof err) && text.n == strlen(plain[i]), plain[i]);
        dataset_text_free(&text);
    }
    unlink(at("text"));
}

// What makes a file a shard: the bytes that it begins with, also compressed, or its name.
static void test_is_shard(void) {
    static const struct { const char *name, *content; size_t n; int shard; } files[] = {
        {"tokens", "\x88\xd8\x34\x01 and so on", 14, 1}, {"llama", "\xa1\xd9\x34\x01 and so on", 14, 1},
        {"text", "88d8 is text", 12, 0},                 {"short", "\x88\xd8\x34", 3, 0},
        {"text.bin", "a text", 6, 1},                    {"text.bin.gz", "\x1f\x8b", 2, 1},
        {"bin", "a text", 6, 0},                         {"text.binary", "a text", 6, 0}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        write_file(files[i].name, files[i].content, files[i].n);
        CHECK(dataset_is_shard(at(files[i].name)) == files[i].shard, files[i].name);
        unlink(at(files[i].name));
    }
    const int no_names = !dataset_is_shard("grammar") && !dataset_is_shard("shakespeare");
    CHECK(no_names && !dataset_is_shard(at("nothing")), "names");
#ifdef USE_ZLIB
    dataset_text text;
    dataset_shard shard;
    unsigned char raw[1024 + 6] = {0x88, 0xd8, 0x34, 0x01, 1, 0, 0, 0, 3};
    memcpy(raw + 1024, "\1\0\2\1\3\0", 6);
    write_file("tokens", raw, sizeof raw);
    compress_file("tokens", 0, 0);
    CHECK(dataset_is_shard(at("tokens.gz")) && dataset_is_shard(at("tokens")), "a compressed shard");
    const int loaded = !dataset_shard_load(at("tokens.gz"), &shard, err, sizeof err);
    CHECK(loaded && shard.n == 3 && shard.tokens[1] == 258, "its tokens");
    dataset_shard_free(&shard);
    write_file("text", "To be, or not to be\n", 20);
    compress_file("text", 0, 0);
    const int read = !dataset_text_load(at("text.gz"), NULL, &text, err, sizeof err);
    CHECK(read && text.n == 20 && !memcmp(text.bytes, "To be", 5), "a compressed text by its name");
    dataset_text_free(&text);
    compress_file("text.gz", 0, 0);
    const int status = dataset_text_load(at("text.gz.gz"), NULL, &text, err, sizeof err);
    CHECK(status == -1 && strstr(err, "gzip data inside gzip data"), "compressed twice");
    unlink(at("tokens.gz"));
    unlink(at("text.gz.gz"));
#endif
}

// The built-in text: exactly n bytes, the same every time; a longer one begins with the shorter; whole sentences whose
// verbs agree.
static void test_grammar(void) {
    dataset_text text, longer;
    CHECK(!dataset_grammar(&text, 5000, 7, err, sizeof err) && text.n == 5000, "grammar: as many bytes as asked for");
    CHECK(!dataset_grammar(&longer, 6000, 7, err, sizeof err) && !memcmp(text.bytes, longer.bytes, text.n),
          "grammar: a longer text goes on");
    dataset_text_free(&longer);
    CHECK(!dataset_grammar(&longer, 5000, 8, err, sizeof err) && memcmp(text.bytes, longer.bytes, text.n),
          "grammar: another seed, another text");
    dataset_text_free(&longer);
    int fine = 1, sentences = 0;
    for (size_t i = 0; i < text.n; i++) {
        const unsigned char c = text.bytes[i];
        const int known = (c >= 'a' && c <= 'z') || c == ' ' || c == '.' || c == '\n';
        fine = fine && known && (c != '\n' || (i > 0 && text.bytes[i - 1] != ' '));
        sentences += c == '.';
    }
    CHECK(fine && sentences > 80, "grammar: words, blanks, full stops, lines");
    static const char *const nouns =
        " cat cats dog dogs bird birds child children king kings teacher teachers fox foxes woman women ";
    int singular = 0, plural = 0, agree = 1;
    char word[16], noun[20] = "";
    for (size_t i = 0, length = 0; i < text.n; i++) {
        if (text.bytes[i] != ' ' && length < sizeof word - 1) {
            word[length++] = (char)text.bytes[i];
            continue;
        }
        word[length] = 0;
        if (noun[0] && strcmp(word, "that")) {  // a verb follows its noun: with s where the noun is singular
            const size_t end = strcspn(word, ".");
            const int many = noun[strlen(noun) - 2] == 's' || strstr(noun, "ren") || strstr(noun, "women");
            const int s = end - 1 < length && word[end - 1] == 's';
            agree = agree && s == !many;
            singular += !many;
            plural += many;
        }
        snprintf(noun, sizeof noun, " %s ", word);
        if (!strstr(nouns, noun)) noun[0] = 0;
        length = 0;
        if (text.bytes[i] == '.') noun[0] = 0;
    }
    CHECK(agree && singular > 30 && plural > 30, "grammar: verbs agree with their nouns");
    dataset_text_free(&text);
    CHECK(dataset_grammar(&text, 0, 7, err, sizeof err) == -1 && !text.bytes, "grammar: of no bytes");
    CHECK(!dataset_text_load("grammar", NULL, &text, err, sizeof err) && text.n == 1000000, "grammar: by name");
    dataset_text_free(&text);
}

static void test_text_and_shard(void) {
    dataset_text text;
    dataset_shard shard;
    unsigned char raw[1024 + 2 * 10];
    write_file("text", "To be, or not\0 to be\n", 21);
    CHECK(!dataset_text_load(at("text"), NULL, &text, err, sizeof err) && text.n == 21 &&
          !memcmp(text.bytes, "To be, or not\0 to be\n", 21), "a text, a zero byte included");
    dataset_text_free(&text);
    dataset_text_free(&text);
    write_file("text", "", 0);
    CHECK(dataset_text_load(at("text"), NULL, &text, err, sizeof err) == -1 && strstr(err, "empty") && !text.bytes,
          "an empty text");
    unlink(at("text"));
    CHECK(dataset_text_load(at("text"), NULL, &text, err, sizeof err) == -1 && strstr(err, "not found"), "no text");
    CHECK(dataset_text_load("shakespeare", dir, &text, err, sizeof err) == -1 && strstr(err, "tinyshakespeare.txt") &&
          strstr(err, "get_data.sh"), "no Shakespeare: how to get it");

    static const struct { uint32_t magic, version, count; size_t size; const char *word; } cases[] = {
        {20240520, 1, 10, 1044, NULL},           {20240521, 1, 10, 1044, "wrong magic"},
        {20240520, 2, 10, 1044, "wrong version"}, {20240520, 1, 11, 1044, "truncated"},
        {20240520, 1, 9, 1044, "oversized"},      {20240520, 1, 0, 1024, "in the header"},
        {20240520, 1, 0x80000000u, 1044, "in the header"}, {20240520, 1, 10, 1023, "header of 1024"},
        {20240520, 1, 10, 1043, "truncated"},     {0x20240520, 1, 10, 1044, "wrong magic"},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const uint32_t head[3] = {cases[k].magic, cases[k].version, cases[k].count};
        memset(raw, 0, sizeof raw);
        for (int i = 0; i < 12; i++) raw[i] = (unsigned char)(head[i / 4] >> (8 * (i % 4)));
        for (int i = 0; i < 20; i++) raw[1024 + i] = (unsigned char)(i * 13);
        write_file("shard", raw, cases[k].size);
        const int status = dataset_shard_load(at("shard"), &shard, err, sizeof err);
        if (cases[k].word) {
            CHECK(status == -1 && strstr(err, cases[k].word) && !shard.tokens && !shard.n, cases[k].word);
        } else {
            CHECK(!status && shard.n == 10 && shard.tokens[3] == 6 * 13 + 256 * (7 * 13), "a good shard");
        }
        dataset_shard_free(&shard);
    }
    unlink(at("shard"));
    CHECK(dataset_shard_load(at("shard"), &shard, err, sizeof err) == -1 && strstr(err, "not found"), "no shard");
}

// FNV-1a, to pin the bytes of the built-in sets.
static uint64_t fnv(const void *bytes, size_t n) {
    uint64_t h = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < n; i++) h = (h ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3ull;
    return h;
}

static void test_moons(void) {
    dataset more;
    CHECK(!dataset_load("moons", NULL, &train, &test, err, sizeof err), "moons");
    CHECK(train.n == 1000 && test.n == 1000 && train.features == 2 && train.channels == 2 && train.classes == 2 &&
          train.values && !train.pixels, "shape");
    // Distance to the noiseless half circle of its class is the noise: standard deviation about 0.1.
    int balance = 0, overlap = 0, grid = 1;
    double off = 0;
    for (int i = 0; i < train.n; i++) {
        const double x = train.values[2 * i], y = train.values[2 * i + 1];
        const double r = train.labels[i] ? hypot(x - 1, y - 0.5) : hypot(x, y);
        balance += train.labels[i];
        off += (r - 1) * (r - 1) / train.n;
        grid = grid && x * 1048576 == floor(x * 1048576) && y * 1048576 == floor(y * 1048576);
        for (int j = 0; j < 5; j++) overlap += train.values[2 * i] == test.values[2 * j];
    }
    CHECK(balance == 500, "half of each class");
    CHECK(sqrt(off) > 0.08 && sqrt(off) < 0.12, "noise of 0.1 around the half circles");
    CHECK(grid, "multiples of 2^-20");
    CHECK(overlap == 0, "training and test differ");
    CHECK(!dataset_moons(&more, 10, 5, 0.1, 20250101, err, sizeof err) &&
          !memcmp(more.values, train.values + 10, 80), "a range of the endless set, at any count");
    dataset_free(&more);
    CHECK(dataset_moons(&more, 0, 0, 0.1, 1, err, sizeof err) == -1 && strstr(err, "at least 1"), "no samples");
    CHECK(dataset_moons(&more, 10, 0, NAN, 1, err, sizeof err) == -1 && !more.values, "noise not a number");
    CHECK(dataset_moons(&more, 10, 0, -1, 1, err, sizeof err) == -1, "negative noise");
    CHECK(!dataset_moons(&more, 10, 0, 0, 1, err, sizeof err), "no noise");
    CHECK(fabs(hypot(more.values[0], more.values[1]) - 1) < 1e-5, "on the circle");
    dataset_free(&more);
    const uint64_t h = fnv(train.values, sizeof(float) * 2000);
    if (h != MOONS_HASH) printf("moons: %016llx\n", (unsigned long long)h);
    CHECK(h == MOONS_HASH, "the same values on every machine");
    free_both();
}

// Fraction of test samples that softmax regression trained by SGD gets right.
static double linear_accuracy(void) {
    const int d = train.features, k = train.classes;
    float *w = (float *)calloc((size_t)(k * (d + 1)), sizeof *w), *x = (float *)malloc((size_t)d * sizeof *x);
    int right = 0;
    for (int step = 0; step < 3 * train.n + test.n; step++) {
        const int testing = step >= 3 * train.n, i = testing ? step - 3 * train.n : step % train.n;
        const dataset *set = testing ? &test : &train;
        float z[16], top = -1e30f, sum = 0;
        int best = 0;
        dataset_sample(set, i, x);
        for (int c = 0; c < k; c++) {
            z[c] = w[c * (d + 1) + d];
            for (int j = 0; j < d; j++) z[c] += w[c * (d + 1) + j] * x[j];
            if (z[c] > top) {
                top = z[c];
                best = c;
            }
        }
        right += testing && best == set->labels[i];
        if (testing) continue;
        for (int c = 0; c < k; c++) sum += z[c] = expf(z[c] - top);
        for (int c = 0; c < k; c++) {
            const float g = 0.0005f * (z[c] / sum - (c == set->labels[i]));
            for (int j = 0; j < d; j++) w[c * (d + 1) + j] -= g * x[j];
            w[c * (d + 1) + d] -= g;
        }
    }
    free(w);
    free(x);
    return (double)right / test.n;
}

static void test_images(void) {
    dataset more;
    int histogram[10] = {0}, balanced = 1;
    CHECK(!dataset_load("images", NULL, &train, &test, err, sizeof err), "images");
    CHECK(train.n == 10000 && test.n == 2000 && train.features == 784 && train.channels == 1 && train.height == 28 &&
          train.classes == 10 && train.pixels && !train.values, "shape");
    for (int i = 0; i < train.n; i++) histogram[train.labels[i]]++;
    for (int c = 0; c < 10; c++) balanced = balanced && histogram[c] > 850 && histogram[c] < 1150;
    CHECK(balanced, "about 1,000 of each class");
    CHECK(train.std[0] > 0.1f && train.std[0] < 0.4f && train.mean[0] > 0.3f && train.mean[0] < 0.7f, "contrast");
    const uint64_t h = fnv(train.pixels, 7840000) ^ fnv(test.labels, 2000) ^ fnv(test.pixels, 2000 * 784);
    if (h != IMAGES_HASH) printf("images: %016llx\n", (unsigned long long)h);
    CHECK(h == IMAGES_HASH, "the same pixels on every machine");
    CHECK(!dataset_images(&more, 3, 7, 20250101, err, sizeof err) &&
          !memcmp(more.pixels, train.pixels + 7 * 784, 3 * 784) && !memcmp(more.labels, train.labels + 7, 3),
          "a range of the endless set, at any count");
    dataset_free(&more);
    CHECK(!dataset_images(&more, 3, 7, 1, err, sizeof err) && memcmp(more.pixels, train.pixels + 7 * 784, 784),
          "another seed, another set");
    dataset_free(&more);
    CHECK(dataset_images(&more, -1, 0, 1, err, sizeof err) == -1 && strstr(err, "found -1"), "a negative count");
    const double accuracy = linear_accuracy();
    printf("images: softmax regression, 3 epochs: %.1f%% of the test set\n", 100 * accuracy);
    CHECK(accuracy > 0.5 && accuracy < 0.85, "learnable, but not by a linear model alone");
    free_both();
}

// One real set: the first labels and the label histogram of both parts, mean and standard deviation.
typedef struct {
    const char *name;
    int n, channels, side, train_labels[10], test_labels[10], train_count[10], test_count[10];
    double mean[3], std[3];
} expected;

static void check_real(const char *data_dir, const expected *e) {
    char line[128];
    snprintf(line, sizeof line, "%s: not in the data folder", e->name);
    if (dataset_load(e->name, data_dir, &train, &test, err, sizeof err)) {
        if (strstr(err, "not found")) test_skip(line);
        else CHECK(0, err);
        return;
    }
    int count[2][10] = {{0}}, same = 1;
    for (int i = 0; i < train.n; i++) count[0][train.labels[i]]++;
    for (int i = 0; i < test.n; i++) count[1][test.labels[i]]++;
    for (int c = 0; c < 10; c++)
        same = same && count[0][c] == e->train_count[c] && count[1][c] == e->test_count[c] &&
               train.labels[c] == e->train_labels[c] && test.labels[c] == e->test_labels[c];
    snprintf(line, sizeof line, "%s: first labels and histograms", e->name);
    CHECK(same, line);
    snprintf(line, sizeof line, "%s: counts and shape", e->name);
    CHECK(train.n == e->n && test.n == 10000 && train.channels == e->channels && train.height == e->side &&
          train.width == e->side && train.classes == 10 && !strcmp(train.name, e->name), line);
    snprintf(line, sizeof line, "%s: as the table of names has it", e->name);
    const dataset_entry *entry = dataset_find(e->name, 0);
    CHECK(entry && entry->n_train == train.n && entry->n_test == test.n && entry->classes == train.classes, line);
    snprintf(line, sizeof line, "%s: mean and std", e->name);
    test_close(line, train.mean, e->mean, (size_t)e->channels, 0, 0.00006);
    test_close(line, train.std, e->std, (size_t)e->channels, 0, 0.00006);
    free_both();
}

#define SAME(n) {n, n, n, n, n, n, n, n, n, n}
static const expected real_sets[] = {
    {"mnist", 60000, 1, 28, {5, 0, 4, 1, 9, 2, 1, 3, 1, 4}, {7, 2, 1, 0, 4, 1, 4, 9, 5, 9},
     {5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949},
     {980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009}, {0.1307}, {0.3081}},
    {"fashion-mnist", 60000, 1, 28, {9, 0, 0, 3, 0, 2, 7, 2, 5, 5}, {9, 2, 1, 1, 6, 1, 4, 6, 5, 7}, SAME(6000),
     SAME(1000), {0.2860}, {0.3530}},
    {"cifar10", 50000, 3, 32, {6, 9, 9, 4, 1, 1, 2, 7, 8, 3}, {3, 8, 8, 0, 6, 6, 1, 6, 3, 1}, SAME(5000), SAME(1000),
     {0.4914, 0.4822, 0.4465}, {0.2470, 0.2435, 0.2616}},
};

// The real sets, from data_dir, or fetched into the temporary folder.
static void test_real(const char *data_dir) {
    char command[4096];
    const char *source = getenv("RESCALE_DATA");
    if (!data_dir && (!source || !*source)) {
        test_skip("the real sets: RESCALE_DATA is not set");
        return;
    }
    if (!data_dir) {
        // From RESCALE_DATA alone: nothing is downloaded in a test.
        static const char *const names[][2] = {{"mnist", "mnist"}, {"fashion-mnist", "fashion-mnist"},
                                               {"cifar-10-batches-bin", "cifar10"}, {"text", "shakespeare"}};
        data_dir = dir;
        for (int i = 0; i < 4; i++) {
            snprintf(command, sizeof command, "%s/%s", source, names[i][0]);
            if (dataset_path_kind(command) != 'd') continue;
            snprintf(command, sizeof command, "sh data/get_data.sh --dest '%s' %s >/dev/null", dir, names[i][1]);
            CHECK(!system(command), command);
        }
    }
    for (size_t i = 0; i < sizeof real_sets / sizeof *real_sets; i++) check_real(data_dir, &real_sets[i]);
    dataset_text text;
    if (dataset_text_load("shakespeare", data_dir, &text, err, sizeof err)) {
        test_skip(err);
        return;
    }
    int seen[256] = {0}, different = 0;
    for (size_t i = 0; i < text.n; i++) different += !seen[text.bytes[i]]++;
    CHECK(text.n == 1115394 && different == 65 && seen[10] == 40000, "shakespeare: bytes, characters, lines");
    CHECK(dataset_find("shakespeare", 1)->n_train == (int)text.n, "shakespeare: as the table of names has it");
    dataset_text_free(&text);
}

int main(int argc, char **argv) {
    snprintf(dir, sizeof dir, "%s", test_make_dir());
    test_idx_good();
    test_idx_files();
    test_idx_headers();
    test_idx_access();
    test_names();
    test_table();
    test_cifar();
    test_gz();
    test_packed();
    test_is_shard();
    test_grammar();
    test_text_and_shard();
    test_moons();
    test_images();
    test_real(argc > 1 ? argv[1] : NULL);
    test_remove_dir(dir);
    return test_summary();
}
