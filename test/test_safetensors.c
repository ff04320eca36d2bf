// test_safetensors.c -- tests of common/safetensors.h.
//
//     gcc -std=c11 -D_GNU_SOURCE -O3 -I. test/test_safetensors.c -o test_safetensors -lm
//
// Where python3 has numpy and safetensors, test/check_safetensors.py reads a file written here and writes one that is
// read here. Compiles as C11 and C++17.
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "common/safetensors.h"
#include "test.h"

static char dir[1024];
static char err[SAFETENSORS_ERROR_SIZE];

// dir/name; the last four results stay valid
static const char *in_dir(const char *name) {
    static char paths[4][1200];
    static int next;
    char *const path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

static int check_message(const char *what, const char *expected) {
    const int ok = strstr(err, expected) && !strchr(err, '\n');
    if (!CHECK(ok, what)) printf("  message: %s\n  expected: %s\n", err, expected);
    return ok;
}

static void write_bytes(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f)) {
        perror(path);
        exit(1);
    }
}

static unsigned char *read_bytes(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    unsigned char *data = (unsigned char *)malloc(1 << 20);
    *n = fread(data, 1, 1 << 20, f);
    fclose(f);
    return data;
}

// Writes a file with this header and a payload of n bytes 0, 1, 2, ...
static const char *write_raw(const char *header, size_t header_size, size_t n) {
    const char *const path = in_dir("raw.safetensors");
    unsigned char *const data = (unsigned char *)malloc(8 + header_size + n);
    for (int i = 0; i < 8; i++) data[i] = (unsigned char)((uint64_t)header_size >> 8 * i);
    memcpy(data + 8, header, header_size);
    for (size_t i = 0; i < n; i++) data[8 + header_size + i] = (unsigned char)i;
    write_bytes(path, data, 8 + header_size + n);
    free(data);
    return path;
}

// A file with this header is refused with a message that contains `expected`.
static void refuse(const char *header, size_t payload, const char *expected) {
    safetensors_file f;
    err[0] = 0;
    const int status = safetensors_open(&f, write_raw(header, strlen(header), payload), err, sizeof err);
    if (status == 0) safetensors_close(&f);
    if (CHECK(status == -1, header)) check_message(header, expected);
}

// A file with this header is read.
static void accept(const char *header, size_t payload) {
    safetensors_file f;
    const int status = safetensors_open(&f, write_raw(header, strlen(header), payload), err, sizeof err);
    if (!CHECK(status == 0, header)) printf("  message: %s\n", err);
    safetensors_close(&f);
}

// Number of entries of dir whose name contains ".tmp."
static int temporary_files(const char *folder) {
    int n = 0;
    DIR *const d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) n += strstr(e->d_name, ".tmp.") != NULL;
    if (d) closedir(d);
    return n;
}

// ---------------------------------------------------------------------------------------------------------------------

static void test_checksum(void) {
    static const struct { const char *text; uint64_t value; } known[] = {  // XXH64, seed 0
        {"", 0xef46db3751d8e999u},
        {"a", 0xd24ec4f1a98c6e5bu},
        {"abc", 0x44bc2cf5ad770999u},
        {"1234", 0xd8316e61d84f6ba4u},
        {"12345678", 0xd2d02f08cf7cfd4au},
        {"123456789012345", 0xc377d78ade001a3cu},
        {"1234567890123456", 0xb61c33dc6c59f270u},
        {"1234567890123456789012345678901", 0x8f367cb873a5376eu},
        {"12345678901234567890123456789012", 0x40fd1aa52d98274cu},
        {"The quick brown fox jumps over the lazy dog", 0x0b242d361fda71bcu}};
    safetensors_xxh64 h;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        safetensors_xxh64_init(&h);
        safetensors_xxh64_update(&h, known[i].text, strlen(known[i].text));
        CHECK(safetensors_xxh64_digest(&h) == known[i].value, "XXH64 of a known text");
    }
    unsigned char data[300];
    for (int i = 0; i < 300; i++) data[i] = (unsigned char)(i * 131 + 7);
    safetensors_xxh64_init(&h);
    safetensors_xxh64_update(&h, data, 300);
    const uint64_t whole = safetensors_xxh64_digest(&h);
    int same = 1;
    for (size_t piece = 1; piece < 100; piece++) {
        safetensors_xxh64_init(&h);
        for (size_t i = 0; i < 300; i += piece)
            safetensors_xxh64_update(&h, data + i, piece < 300 - i ? piece : 300 - i);
        same &= safetensors_xxh64_digest(&h) == whole;
    }
    CHECK(same, "XXH64 does not depend on how the input is cut");

    const size_t n = (size_t)64 << 20;
    unsigned char *const large = (unsigned char *)calloc(n, 1);
    struct timespec a, b;
    memset(large, 1, n);
    clock_gettime(CLOCK_MONOTONIC, &a);
    safetensors_xxh64_init(&h);
    safetensors_xxh64_update(&h, large, n);
    const uint64_t digest = safetensors_xxh64_digest(&h);
    clock_gettime(CLOCK_MONOTONIC, &b);
    const double seconds = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
    printf("checksum: %.1f GB/s (%016llx)\n", (double)n / seconds / 1e9, (unsigned long long)digest);
    free(large);
}

// What the round trip writes.
static const int64_t shape[4] = {2, 3, 1, 2}, empty[3] = {4, 0, 2}, seven[1] = {7};
static const int64_t step = -1234567890123456789;
static const unsigned char bytes[7] = {1, 2, 3, 4, 5, 254, 255};
static float w[12];

// Everything the writer can write comes back: dtypes, scalars, empty tensors, odd names, metadata.
static void test_round_trip(void) {
    const char *const path = in_dir("c.safetensors");
    double d[7];
    const uint16_t f16[7] = {0x3C00, 0xC000, 0x0001, 0x7BFF, 0x8000, 0x3555, 0x03FF};
    const uint16_t bf16[7] = {0x3F80, 0xC000, 0x0001, 0x7F7F, 0x8000, 0x3EAB, 0x0080};
    for (int i = 0; i < 12; i++) w[i] = (float)i * 0.25f - 1;
    for (int i = 0; i < 7; i++) d[i] = i / 3.0;
    const char *const odd = "quote\" backslash\\ tab\t newline\n \x01 \xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80 / {}[]:,";
    const safetensors_tensor t[] = {
        safetensors_make("u8", SAFETENSORS_U8, 1, seven, bytes), // odd size first: the others must stay aligned
        safetensors_make("f16", SAFETENSORS_F16, 1, seven, f16),
        safetensors_make("bf16", SAFETENSORS_BF16, 1, seven, bf16),
        safetensors_make("fc1.weight", SAFETENSORS_F32, 4, shape, w),
        safetensors_make("f64", SAFETENSORS_F64, 1, seven, d),
        safetensors_make("step", SAFETENSORS_I64, 0, NULL, &step),
        safetensors_make("empty", SAFETENSORS_F32, 3, empty, NULL),
        safetensors_make(odd, SAFETENSORS_I8, 1, seven, bytes),
        safetensors_make("", SAFETENSORS_BOOL, 0, NULL, "\1")};
    const size_t n = sizeof t / sizeof *t;
    const safetensors_pair about[] = {{"model", "784-512-10"}, {odd, odd}, {"", ""}};
    safetensors_file f;
    if (!CHECK(!safetensors_write(path, t, n, about, 3, err, sizeof err), "write")) printf("  %s\n", err);
    if (!CHECK(!safetensors_open(&f, path, err, sizeof err), "open what was written")) {
        printf("  %s\n", err);
        return;
    }
    CHECK(f.n_tensors == n && f.n_metadata == 4, "all tensors and metadata are there, and the checksum");
    int same = 1, aligned = 1, order = 1;
    for (size_t i = 0; i < n; i++) {
        const safetensors_tensor *const r = safetensors_find(&f, t[i].name);
        if (!CHECK(r != NULL, "tensor is found by its name")) continue;
        order &= r == &f.tensors[i];
        aligned &= (uintptr_t)r->data % safetensors_dtype_size(r->dtype) == 0;
        same &= r->dtype == t[i].dtype && r->ndim == t[i].ndim && !memcmp(r->shape, t[i].shape, sizeof r->shape);
        if (r->n_bytes) same &= !memcmp(r->data, t[i].data, r->n_bytes);
    }
    CHECK(order, "tensors are listed in the order given");
    CHECK(aligned, "all tensors are aligned");
    CHECK(same, "dtypes, shapes and data come back");
    const char *const odd_value = safetensors_metadata(&f, odd), *const no_value = safetensors_metadata(&f, "");
    CHECK(odd_value && !strcmp(odd_value, odd), "metadata with escapes come back");
    CHECK(no_value && !*no_value && !safetensors_metadata(&f, "x"), "empty and missing metadata");
    CHECK(!safetensors_find(&f, "fc2.weight") && !safetensors_find(&f, "fc1"), "a name that is not there is NULL");

    safetensors_close(&f);
}

// Tensors of that file are read by name, shape and dtype.
static void test_reading(void) {
    safetensors_file f;
    float out[12], value;
    int64_t got = 0;
    unsigned char got_bytes[7];
    CHECK(!safetensors_open(&f, in_dir("c.safetensors"), err, sizeof err), "open it again");
    CHECK(!safetensors_read_f32(&f, "fc1.weight", 4, shape, out, err, sizeof err) && !memcmp(out, w, sizeof w),
          "read F32");
    CHECK(!safetensors_read_f32(&f, "empty", 3, empty, out, err, sizeof err), "read an empty tensor");
    CHECK(!safetensors_read(&f, "step", SAFETENSORS_I64, 0, NULL, &got, err, sizeof err) && got == step,
          "read an I64 scalar");
    CHECK(!safetensors_read(&f, "u8", SAFETENSORS_U8, 1, seven, got_bytes, err, sizeof err) &&
              !memcmp(got_bytes, bytes, 7),
          "read U8");

    value = 42;
    CHECK(safetensors_read_f32(&f, "fc1.weigth", 0, NULL, &value, err, sizeof err) == -1 && value == 42,
          "a missing tensor");
    check_message("a missing tensor",
                  "c.safetensors: no tensor 'fc1.weigth'; it holds u8, f16, bf16, fc1.weight, f64, step");
    CHECK(safetensors_read_f32(&f, "fc1.weight", 1, seven, &value, err, sizeof err) == -1 && value == 42,
          "a wrong shape");
    check_message("a wrong shape", "c.safetensors: tensor 'fc1.weight': expected shape [7], found [2,3,1,2]");
    const int64_t swapped[4] = {3, 2, 1, 2};
    CHECK(safetensors_read_f32(&f, "fc1.weight", 4, swapped, &value, err, sizeof err) == -1, "swapped dimensions");
    check_message("swapped dimensions", "expected shape [3,2,1,2], found [2,3,1,2]");
    CHECK(safetensors_read_f32(&f, "step", 0, NULL, &value, err, sizeof err) == -1 && value == 42, "a wrong dtype");
    check_message("a wrong dtype", "tensor 'step': expected dtype F32, F64, F16 or BF16, found I64");
    CHECK(safetensors_read(&f, "step", SAFETENSORS_U64, 0, NULL, &got, err, sizeof err) == -1 && got == step,
          "I64 for U64");
    check_message("I64 for U64", "tensor 'step': expected dtype U64, found I64");
    safetensors_close(&f);
    safetensors_close(&f);
    CHECK(f.n_tensors == 0 && !safetensors_find(&f, "step"), "closing twice is fine");

    CHECK(!safetensors_write(in_dir("none.safetensors"), NULL, 0, NULL, 0, err, sizeof err),
          "a file without tensors is written");
    CHECK(!safetensors_open(&f, in_dir("none.safetensors"), err, sizeof err) && f.n_tensors == 0, "and read");
    safetensors_close(&f);

}

// Lists that cannot be written leave the old file alone.
static void test_refused_lists(void) {
    safetensors_file f;
    const char *const old = in_dir("none.safetensors");
    const int64_t largest[1] = {(int64_t)1 << 62};
    const safetensors_tensor t[1] = {safetensors_make("u8", SAFETENSORS_U8, 1, seven, bytes)};
    const safetensors_tensor twice[2] = {t[0], t[0]},
                             reserved = safetensors_make("__metadata__", SAFETENSORS_U8, 1, seven, bytes),
                             broken = safetensors_make("\xff", SAFETENSORS_U8, 1, seven, bytes),
                             null_data = safetensors_make("n", SAFETENSORS_U8, 1, seven, NULL),
                             huge = safetensors_make("h", SAFETENSORS_F32, 1, largest, bytes);
    safetensors_tensor negative = t[0], dims = t[0], no_dtype = t[0];
    negative.shape[0] = -1;
    dims.ndim = 9;
    no_dtype.dtype = SAFETENSORS_N_DTYPES;
    const safetensors_pair checksum = {SAFETENSORS_CHECKSUM_KEY, "x"}, same_key[2] = {{"k", "1"}, {"k", "2"}},
                           bad_value = {"k", "\xc0\x80"};
    const struct {
        const safetensors_tensor *t;
        size_t n;
        const safetensors_pair *m;
        size_t n_m;
        const char *message;
    } bad[] = {{twice, 2, NULL, 0, "tensor 'u8' is there twice"},
               {&reserved, 1, NULL, 0, "'__metadata__' cannot be a name"},
               {&broken, 1, NULL, 0, "cannot be a name"},
               {&null_data, 1, NULL, 0, "tensor 'n': no data"},
               {&huge, 1, NULL, 0, "tensor 'h': shape [4611686018427387904] is negative or too large"},
               {&negative, 1, NULL, 0, "shape [-1] is negative or too large"},
               {&dims, 1, NULL, 0, "9 dimensions, expected 0 to 8"},
               {&no_dtype, 1, NULL, 0, "17 is no dtype"},
               {t, 1, &checksum, 1, "'payload_checksum' is the file's own"},
               {t, 1, same_key, 2, "metadata key 'k' is there twice"},
               {t, 1, &bad_value, 1, "metadata 0 ('k'): key and value need to be"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(safetensors_write(old, bad[i].t, bad[i].n, bad[i].m, bad[i].n_m, err, sizeof err) == -1, bad[i].message);
        check_message(bad[i].message, bad[i].message);
    }
    CHECK(!safetensors_open(&f, old, err, sizeof err) && f.n_tensors == 0, "a refused list leaves the old file alone");
    safetensors_close(&f);
}

// Headers that must be refused, with what the message says, and some odd ones that are fine.
// The checksum before writing is the one in the file, whatever the order of the elements' sizes.
static void test_payload_checksum(void) {
    static const float w[3] = {1, 2, 3};
    static const int64_t step = 7;
    const int64_t three = 3, none = 0;
    const safetensors_tensor t[4] = {safetensors_make("bytes", SAFETENSORS_U8, 1, &three, "abc"),
                                     safetensors_make("w", SAFETENSORS_F32, 1, &three, w),
                                     safetensors_make("empty", SAFETENSORS_U8, 1, &none, NULL),
                                     safetensors_make("step", SAFETENSORS_I64, 0, NULL, &step)};
    char want[40], err[SAFETENSORS_ERROR_SIZE];
    safetensors_file f;
    snprintf(want, sizeof want, "xxh64:%016llx", (unsigned long long)safetensors_payload_checksum(t, 4));
    if (!CHECK(!safetensors_write(in_dir("sum"), t, 4, NULL, 0, err, sizeof err) &&
                   !safetensors_open(&f, in_dir("sum"), err, sizeof err),
               "a file"))
        return;
    CHECK(!strcmp(safetensors_metadata(&f, SAFETENSORS_CHECKSUM_KEY), want), "the checksum of its payload");
    safetensors_close(&f);
}

#define T(name, dtype, shape, offsets)                                                                                 \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void test_refused_tensors(void) {
    refuse("{" T("fc1.weight", "F32", "[10]", "[0,40]") "}", 32,
           "raw.safetensors: tensor 'fc1.weight': offsets [0,40) run past the payload of 32 bytes");
    refuse("{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[2]", "[4,12]") "}", 12,
           "tensor 'b': offsets [4,12) overlap tensor 'a', which ends at 8");
    refuse("{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[2]", "[0,8]") "}", 8, "overlap tensor");
    refuse("{" T("a", "F32", "[1]", "[0,4]") "," T("b", "F32", "[1]", "[8,12]") "}", 12,
           "tensor 'b': offsets [8,12) leave the bytes [4,8) before it to no tensor");
    refuse("{" T("a", "F32", "[1]", "[0,4]") "}", 5, "the tensors hold 4 bytes, the payload has 5");
    refuse("{}", 1, "the tensors hold 0 bytes, the payload has 1");
    refuse("{" T("a", "U8", "[0]", "[2,2]") "," T("b", "U8", "[4]", "[0,4]") "}", 4, "overlap");
    refuse("{" T("a", "F32", "[2]", "[0,4]") "}", 4, "offsets [0,4) hold 4 bytes, F32 of shape [2] needs 8");
    refuse("{" T("a", "F32", "[1]", "[4,0]") "}", 4, "offsets [4,0) end before they begin");
    refuse("{" T("a", "F32", "[4294967296,4294967296,4294967296]", "[0,4]") "}", 4, "is too large");
    refuse("{" T("a", "F64", "[2305843009213693952]", "[0,0]") "}", 0, "is too large");
    refuse("{" T("a", "F32", "[9223372036854775808]", "[0,4]") "}", 4, "a number in shape is too large");
    refuse("{" T("a", "F32", "[1]", "[0,99999999999999999999]") "}", 4, "a number in data_offsets is too large");
    refuse("{" T("a", "F32", "[-1]", "[0,4]") "}", 4, "expected an integer >= 0 without leading zeros, found '-'");
    refuse("{" T("a", "F32", "[1.0]", "[0,4]") "}", 4, "expected ',' or ']', found '.'");
    refuse("{" T("a", "F32", "[1e0]", "[0,4]") "}", 4, "expected ',' or ']', found 'e'");
    refuse("{" T("a", "F32", "[01]", "[0,4]") "}", 4, "without leading zeros");
    refuse("{" T("a", "F32", "[1,]", "[0,4]") "}", 4, "expected an integer");
    refuse("{" T("a", "F32", "[1", "[0,4]") "}", 4, "expected an integer");
    refuse("{" T("a", "F32", "1", "[0,4]") "}", 4, "expected '['");
    refuse("{" T("a", "F32", "null", "[0,4]") "}", 4, "expected '['");
    refuse("{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "tensor 'a': shape has more than 8 numbers");
    refuse("{" T("a", "F32", "[1]", "[0]") "}", 4, "data_offsets needs 2 numbers");
    refuse("{" T("a", "F32", "[1]", "[0,4,4]") "}", 4, "data_offsets has more than 2 numbers");
    refuse("{" T("a", "F33", "[1]", "[0,4]") "}", 4, "tensor 'a': unknown dtype 'F33'");
    refuse("{" T("a", "f32", "[1]", "[0,4]") "}", 4, "unknown dtype 'f32'");
    refuse("{" T("a", "F32", "[1]", "[0,4]") "," T("a", "F32", "[1]", "[4,8]") "}", 8, "tensor 'a' is there twice");
    refuse("{" T("a", "F32", "[1]", "[0,4]") "," T("\\u0061", "F32", "[1]", "[4,8]") "}", 8,
           "tensor 'a' is there twice");
    refuse("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
           "dtype is there twice");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 0, "tensor 'a': no data_offsets");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4,
           "tensor 'a': unknown key 'x'");
}

static void test_refused_syntax(void) {
    refuse("{\"a\":{}}", 0, "expected a key");
    refuse("{\"a\":[]}", 0, "expected '{', found '['");
    refuse("{" T("a", "F32", "[1]", "[0,4]") ",}", 4, "expected a key in double quotes, found '}'");
    refuse("{" T("a", "F32", "[1]", "[0,4]") "} x", 4, "expected nothing but spaces");
    refuse("{" T("a", "F32", "[1]", "[0,4]"), 4, "expected ',' or '}', found the header's end");
    refuse("{\"__metadata__\":{\"a\":1}}", 0, "expected a string (__metadata__ maps strings to strings), found '1'");
    refuse("{\"__metadata__\":{\"a\":{}}}", 0, "maps strings to strings");
    refuse("{\"__metadata__\":nul}", 0, "expected '{'");
    refuse("{\"__metadata__\":nulls}", 0, "expected ',' or '}', found 's'");
    refuse("{\"__metadata__\":null,\"__metadata__\":{}}", 0, "__metadata__ is there twice");
    refuse("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ is there twice");
    refuse("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "metadata key 'k' is there twice");
    refuse("", 0, "header, byte 0: expected '{', found the header's end");
    refuse(" {}", 0, "expected '{', found byte 0x20");
    refuse("[]", 0, "expected '{'");
    refuse("{\"a\\u0000b\":1}", 0, "expected no \\u0000");
    refuse("{\"\\x\":1}", 0, "expected an escape");
    refuse("{\"\\u12g4\":1}", 0, "expected four hex digits, found 'g'");
    refuse("{\"\\ud800\":1}", 0, "expected a low surrogate");
    refuse("{\"\\ud800\\u0041\":1}", 0, "expected a low surrogate");
    refuse("{\"\\udc00\":1}", 0, "expected no low surrogate");
    refuse("{\"\n\":1}", 0, "expected UTF-8 without control characters, found byte 0x0a");
    refuse("{\"\xc0\x80\":1}", 0, "expected UTF-8");      // overlong
    refuse("{\"\xed\xa0\x80\":1}", 0, "expected UTF-8");  // a surrogate
    refuse("{\"\xf4\x90\x80\x80\":1}", 0, "expected UTF-8");
    refuse("{\"\xe4\xb8\":1}", 0, "expected UTF-8");
    refuse("{\"a", 0, "expected the end of a string");
    refuse("{\"a\\", 0, "expected an escape");
    refuse("{\"a\\u00", 0, "expected four hex digits, found the header's end");
    refuse("{\"__metadata__\":{\"payload_checksum\":\"crc32:12345678\"}}", 0,
           "payload_checksum is 'crc32:12345678', expected xxh64: and 16 hex digits");
    refuse("{\"__metadata__\":{\"payload_checksum\":\"xxh64:ef46db3751d8e998\"}}", 0,
           "does not match its checksum (xxh64:ef46db3751d8e998 stored, xxh64:ef46db3751d8e999 found)");
    refuse("{\"line\\nfeed\":{\"dtype\":\"X\"", 0, "tensor 'line?feed': unknown dtype 'X'");

}

static void test_accepted_headers(void) {
    accept("{}", 0);
    accept("{}        ", 0);
    accept("{\"__metadata__\":null}", 0);
    accept("{\"__metadata__\" : null , " T("a", "F32", "[1]", "[0,4]") "}", 4);
    accept("{ \"a\" :\n\t{ \"shape\" : [ ] , \"data_offsets\" : [ 0 , 4 ] ,\r\n\"dtype\" : \"F32\" } }", 4);
    accept("{" T("a", "U8", "[0]", "[4,4]") "," T("b", "U8", "[4]", "[0,4]") "," T("c", "I64", "[0,9]", "[0,0]") "}",
           4);
    accept("{" T("b", "U8", "[0,4611686018427387904,8]", "[0,0]") "}", 0);
    accept("{\"__metadata__\":{\"payload_checksum\":\"xxh64:ef46db3751d8e999\"}}", 0);

    safetensors_file f;  // escapes of every length
    const char *const names = "{" T("\\u00e9\\u4e2d\\ud83d\\ude00\\b\\f\\/\\\"", "U8", "[]", "[0,1]") "}";
    CHECK(!safetensors_open(&f, write_raw(names, strlen(names), 1), err, sizeof err), "a name full of escapes");
    CHECK(safetensors_find(&f, "\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80\b\f/\"") != NULL, "escapes become UTF-8");
    safetensors_close(&f);

    // data that is not aligned
    const char *const odd = "{" T("a", "U8", "[1]", "[0,1]") "," T("b", "F32", "[2]", "[1,9]") "}";
    float out[2], want[2];
    const unsigned char bytes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    const int64_t two = 2;
    memcpy(want, bytes, 8);
    CHECK(!safetensors_open(&f, write_raw(odd, strlen(odd), 9), err, sizeof err), "a file with unaligned data");
    CHECK(!safetensors_read_f32(&f, "b", 1, &two, out, err, sizeof err) && !memcmp(out, want, 8),
          "reads the right bytes");
    safetensors_close(&f);

}

// Depth and size: a header of a million brackets, and one with 20,000 tensors.
static void test_large_headers(void) {
    safetensors_file f;
    char *const deep = (char *)malloc(2000000);
    memset(deep, '[', 2000000);
    memcpy(deep, "{\"a\":", 5);
    CHECK(safetensors_open(&f, write_raw(deep, 2000000, 0), err, sizeof err) == -1, "deep nesting is refused");
    size_t used = 1;
    for (int i = 0; i < 20000; i++)
        used += (size_t)sprintf(deep + used, "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[%d,%d]}",
                                i ? "," : "", i, i, i + 1);
    deep[used++] = '}';
    CHECK(!safetensors_open(&f, write_raw(deep, used, 20000), err, sizeof err) && f.n_tensors == 20000,
          "20,000 tensors");
    const safetensors_tensor *const t = safetensors_find(&f, "t12345");
    CHECK(t && *(const unsigned char *)t->data == (unsigned char)12345, "and the right one is found");
    safetensors_close(&f);
    free(deep);
}
#undef T

// Files of other kinds, which a user may take for safetensors files, are refused by name.
static void test_other_files(void) {
    static const struct { const char *bytes; size_t n; const char *words; } files[] = {
        {"PK\3\4 and so on and on", 16, "not a safetensors file but a zip archive, as torch.save writes"},
        {"\x80\x02}q\1 and so on and on", 16, "a pickle, as old versions of torch.save write"},
        {"version https://git-lfs.github.com/spec/v1\n", 43, "the pointer of a file in Git LFS"},
        {"\x1f\x8b\x08 and so on and on", 16, "gzip data"},
        {"\xfd" "7zXZ\0 and so on and on", 16, "xz data"},
        {"\x28\xb5\x2f\xfd and so on and on", 16, "zstd data"},
        {"GGUF\3 and so on and on", 16, "a GGUF file"},
        {"\x89HDF\r\n\x1a\n and so on and on", 16, "an HDF5 file"},
        {"something else", 14, "truncated, or not a safetensors file"}};
    safetensors_file f;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        write_bytes(in_dir("other"), files[i].bytes, files[i].n);
        CHECK(safetensors_open(&f, in_dir("other"), err, sizeof err) == -1, files[i].words);
        check_message("a file of another kind", files[i].words);
    }
}

// One tensor 'n' with these bytes is read as an integer; words: what refuses it, or NULL where `want` is right.
static void integer(const char *dtype, const char *shape, const void *bytes, size_t n, int64_t want,
                    const char *words) {
    char header[200];
    unsigned char raw[8 + 200 + 64] = {0};
    safetensors_file f;
    int64_t got = 12345;
    const size_t size = (size_t)snprintf(
        header, sizeof header, "{\"n\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[0,%zu]}}", dtype, shape, n);
    raw[0] = (unsigned char)size;
    memcpy(raw + 8, header, size);
    memcpy(raw + 8 + size, bytes, n);
    write_bytes(in_dir("integer"), raw, 8 + size + n);
    if (!CHECK(!safetensors_open(&f, in_dir("integer"), err, sizeof err), header)) return;
    const int status = safetensors_read_integer(&f, "n", &got, err, sizeof err);
    if (words) {
        CHECK(status == -1 && got == 12345, header);
        check_message(header, words);
    } else if (!CHECK(status == 0 && got == want, header)) {
        printf("    %lld, expected %lld\n", (long long)got, (long long)want);
    }
    safetensors_close(&f);
}

static void test_integers(void) {
    const unsigned char minus_two[8] = {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, seven[8] = {7};
    const float f = 1000000, half = 0.5f, nan = (float)NAN;
    const double d = 9007199254740992.0, large = 1e19, limit = 9223372036854775808.0;
    const unsigned char bf16[2] = {0x20, 0x41}, f16[2] = {0x00, 0x49};  // 10 in both
    static const char *const types[] = {"I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"};
    for (int i = 0; i < 8; i++) {
        const size_t n = (size_t)1 << i % 4;
        integer(types[i], i % 2 ? "[]" : "[1]", seven, n, 7, NULL);
        if (i < 4) integer(types[i], "[1,1]", minus_two, n, -2, NULL);
        if (i >= 4 && i < 7) integer(types[i], "[]", minus_two, n, (INT64_C(1) << 8 * n) - 2, NULL);
    }
    integer("U64", "[]", minus_two, 8, 0, "'n': 18446744073709551614 is too large");
    integer("F32", "[]", &f, 4, 1000000, NULL);
    integer("F64", "[1]", &d, 8, INT64_C(9007199254740992), NULL);
    integer("BF16", "[]", bf16, 2, 10, NULL);
    integer("F16", "[]", f16, 2, 10, NULL);
    integer("F32", "[]", &half, 4, 0, "'n': expected an integer, found 0.5");
    integer("F32", "[]", &nan, 4, 0, "'n': expected an integer, found nan");
    integer("F64", "[]", &large, 8, 0, "'n': expected an integer, found 1e+19");
    integer("F64", "[]", &limit, 8, 0, "'n': expected an integer");
    integer("BOOL", "[]", seven, 1, 0, "'n': expected a dtype of numbers, found BOOL");
    integer("I32", "[2]", seven, 8, 0, "'n': expected one number, found shape [2]");
    integer("I32", "[0]", seven, 0, 0, "'n': expected one number, found shape [0]");
}

static void test_files(void) {
    safetensors_file f;
    const unsigned char huge[16] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                    '{',  '}',  ' ',  ' ',  ' ',  ' ',  ' ',  ' '};
    const unsigned char cap[16] = {0x01, 0xe1, 0xf5, 0x05, 0, 0, 0, 0, '{', '}'};  // 100,000,001
    CHECK(safetensors_open(&f, in_dir("missing"), err, sizeof err) == -1, "a missing file");
    check_message("a missing file", "missing: cannot open: No such file");
    CHECK(safetensors_open(&f, dir, err, sizeof err) == -1, "a folder");
    check_message("a folder", "is not a regular file");
    CHECK(safetensors_open(&f, "/dev/null", err, sizeof err) == -1, "a device");
    write_bytes(in_dir("short"), "1234567", 7);
    CHECK(safetensors_open(&f, in_dir("short"), err, sizeof err) == -1, "7 bytes");
    check_message("7 bytes", "short: 7 bytes, too short");
    write_bytes(in_dir("huge"), huge, 16);
    CHECK(safetensors_open(&f, in_dir("huge"), err, sizeof err) == -1, "a huge header");
    check_message("a huge header", "a header of 18446744073709551615 bytes does not fit the file of 16 bytes");
    write_bytes(in_dir("huge"), cap, 16);
    CHECK(!truncate(in_dir("huge"), 200000000), "make a sparse file");
    CHECK(safetensors_open(&f, in_dir("huge"), err, sizeof err) == -1, "a header beyond the limit");
    check_message("a header beyond the limit", "a header of 100000001 bytes does not fit");
    err[0] = 0;
    CHECK(safetensors_open(&f, in_dir("missing"), NULL, 0) == -1 &&
              safetensors_open(&f, in_dir("missing"), err, 8) == -1 && strlen(err) == 7,
          "no or a short buffer for the message");

}

// Every truncation and every flipped bit of a small file is noticed, or does not change what is read.
static void test_damaged_files(void) {
    safetensors_file f;
    size_t n = 0;
    const float w[3] = {1, 2, 3};
    const int64_t three = 3;
    const safetensors_tensor t = safetensors_make("w", SAFETENSORS_F32, 1, &three, w);
    CHECK(!safetensors_write(in_dir("w"), &t, 1, NULL, 0, err, sizeof err), "write a small file");
    unsigned char *const data = read_bytes(in_dir("w"), &n);
    CHECK(n % 8 == 4 && data[0] % 8 == 0, "the header is padded to 8 bytes");
    int refused = 1;
    for (size_t i = 0; i < n; i++) {
        write_bytes(in_dir("cut"), data, i);
        if (!safetensors_open(&f, in_dir("cut"), err, sizeof err)) {
            refused = 0;
            safetensors_close(&f);
        }
    }
    CHECK(refused, "every truncated file is refused");
    write_bytes(in_dir("cut"), data, n);
    FILE *const longer = fopen(in_dir("cut"), "ab");
    fputc(0, longer);
    fclose(longer);
    CHECK(safetensors_open(&f, in_dir("cut"), err, sizeof err) == -1, "a byte too many is refused");
    int unharmed = 1, payload = 1;
    for (size_t bit = 0; bit < 8 * n; bit++) {
        data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        write_bytes(in_dir("flip"), data, n);
        data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        if (safetensors_open(&f, in_dir("flip"), err, sizeof err)) continue;
        if (bit / 8 >= n - 12) payload = 0;
        if (f.payload_size != 12 || memcmp(f.payload, w, 12)) unharmed = 0;
        safetensors_close(&f);
    }
    CHECK(payload, "every flipped bit of the payload is refused");
    CHECK(unharmed, "a flipped bit elsewhere is refused or leaves the payload as it was");
    free(data);
}

// Conversion to float against ldexp, for all F16 and BF16.
static void test_conversion(void) {
    enum { N = 65536 };
    static uint16_t half[N], brain[N];
    static float out[N];
    const int64_t n = N;
    safetensors_file f;
    int kept = 0;
    for (int i = 0; i < N; i++) {  // finite ones only
        half[i] = (uint16_t)((i & 0x7C00) == 0x7C00 ? 0 : i);
        brain[i] = (uint16_t)((i & 0x7F80) == 0x7F80 ? 0 : i);
        kept += half[i] == i;
    }
    CHECK(kept == 2 * 31 * 1024, "number of finite F16");
    const safetensors_tensor t[2] = {safetensors_make("half", SAFETENSORS_F16, 1, &n, half),
                                     safetensors_make("brain", SAFETENSORS_BF16, 1, &n, brain)};
    CHECK(!safetensors_write(in_dir("half"), t, 2, NULL, 0, err, sizeof err) &&
              !safetensors_open(&f, in_dir("half"), err, sizeof err),
          "write and open all F16 and BF16");
    int good = !safetensors_read_f32(&f, "half", 1, &n, out, err, sizeof err);
    for (int i = 0; i < N; i++) {
        const int e = half[i] >> 10 & 31, m = half[i] & 1023;
        const double size = e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
        const double want = half[i] & 0x8000 ? -size : size;
        good &= out[i] == want && !signbit(out[i]) == !(half[i] & 0x8000);
    }
    CHECK(good, "F16 is converted exactly");
    good = !safetensors_read_f32(&f, "brain", 1, &n, out, err, sizeof err);
    for (int i = 0; i < N; i++) {
        const int e = brain[i] >> 7 & 255, m = brain[i] & 127;
        const double size = e ? ldexp(128 + m, e - 134) : ldexp(m, -133);
        const double want = brain[i] & 0x8000 ? -size : size;
        good &= out[i] == want && !signbit(out[i]) == !(brain[i] & 0x8000);
    }
    CHECK(good, "BF16 is converted exactly");
    safetensors_close(&f);

}

// Values that are not finite floats.
static void test_not_finite(void) {
    const int64_t shape[2] = {2, 3};
    safetensors_file f;
    float w[6] = {1, 2, 3, 4, 5, 6}, got[6];
    double d[6] = {1, 1.0 / 3, 1e-50, -3.40282346638528859812e38, 5, 6};
    const struct { double value; const char *message; } bad[] = {
        {NAN, "tensor 'w': element [1,2] is nan, expected a finite float"}, {-NAN, "element [1,2] is"},
        {INFINITY, "element [1,2] is inf"}, {-INFINITY, "element [1,2] is -inf"}};
    const safetensors_tensor both[2] = {safetensors_make("w", SAFETENSORS_F32, 2, shape, w),
                                        safetensors_make("d", SAFETENSORS_F64, 2, shape, d)};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        w[5] = (float)bad[i].value;
        for (int j = 0; j < 6; j++) got[j] = 42;
        CHECK(!safetensors_write(in_dir("bad"), both, 2, NULL, 0, err, sizeof err) &&
                  !safetensors_open(&f, in_dir("bad"), err, sizeof err),
              "write and open a value that is not finite");
        CHECK(safetensors_read_f32(&f, "w", 2, shape, got, err, sizeof err) == -1 && got[0] == 42 && got[4] == 42,
              "nothing is read of a tensor with a value that is not finite");
        check_message(bad[i].message, bad[i].message);
        CHECK(!safetensors_read_f32(&f, "d", 2, shape, got, err, sizeof err) && got[1] == (float)d[1] && got[2] == 0 &&
                  got[3] == (float)d[3],
              "F64 is rounded");
        safetensors_close(&f);
    }
    d[3] = 3.5e38;
    CHECK(!safetensors_write(in_dir("bad"), both, 2, NULL, 0, err, sizeof err) &&
              !safetensors_open(&f, in_dir("bad"), err, sizeof err) &&
              safetensors_read_f32(&f, "d", 2, shape, got, err, sizeof err) == -1,
          "an F64 beyond a float is refused");
    check_message("an F64 beyond a float", "tensor 'd': element [1,0] is 3.5e+38, expected a finite float");
    safetensors_close(&f);
}

// ---------------------------------------------------------------------------------------------------------------------
// Failing writes

enum { LARGE = 1 << 18 };
static float large_values[LARGE];

// Writes a tensor of n equal values.
static int write_values(const char *path, float value, int64_t n) {
    for (int64_t i = 0; i < n; i++) large_values[i] = value;
    const safetensors_tensor t = safetensors_make("v", SAFETENSORS_F32, 1, &n, large_values);
    return safetensors_write(path, &t, 1, NULL, 0, err, sizeof err);
}

// The file is complete and holds equal values; returns the value, or -1.
static float read_values(const char *path) {
    safetensors_file f;
    if (safetensors_open(&f, path, err, sizeof err)) return -1;
    const safetensors_tensor *const t = safetensors_find(&f, "v");
    const float *const v = t ? (const float *)t->data : NULL;
    float value = v ? v[0] : -1;
    for (int64_t i = 0; v && i < t->numel; i++)
        if (v[i] != value) value = -1;
    safetensors_close(&f);
    return value;
}

// Runs a check in a child process: 0 good, 77 not possible here, else bad.
static void in_child(const char *what, int (*check)(void)) {
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        const int status = check();
        if (status == 1) printf("  message: %s\n", err);
        fflush(stdout);
        _exit(status);
    }
    int status = 1;
    waitpid(pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        char line[200];
        snprintf(line, sizeof line, "%s: not possible here", what);
        test_skip(line);
    } else {
        CHECK(status == 0, what);
    }
}

static int limited_size(void) {
    const struct rlimit limit = {100000, 100000};
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit)) return 77;
    return write_values(in_dir("old.safetensors"), 2, LARGE) == -1 &&
                   strstr(err, "old.safetensors: cannot write: File too")
               ? 0
               : 1;
}

static int full_disk(void) {
    char folder[1100], file[1200];
    snprintf(folder, sizeof folder, "%s/full", dir);
    snprintf(file, sizeof file, "%s/w.safetensors", folder);
    mkdir(folder, 0777);
    if (unshare(CLONE_NEWNS) && unshare(CLONE_NEWUSER | CLONE_NEWNS)) return 77;
    if (mount("none", folder, "tmpfs", 0, "size=64k")) return 77;
    if (write_values(file, 1, 100)) return 1;
    if (write_values(file, 2, LARGE) != -1 || !strstr(err, "w.safetensors: cannot write: No space left")) return 1;
    if (temporary_files(folder) || read_values(file) != 1) return 2;
    if (mount("none", folder, NULL, MS_REMOUNT | MS_RDONLY, NULL)) return 77;
    if (write_values(file, 2, 100) != -1 || !strstr(err, "Read-only file system")) return 1;
    return read_values(file) == 1 ? 0 : 2;
}

static int unwritable_folder(void) {
    char folder[1100], file[1200];
    snprintf(folder, sizeof folder, "%s/locked", dir);
    snprintf(file, sizeof file, "%s/w.safetensors", folder);
    if (chmod(dir, 0711) || mkdir(folder, 0777) || write_values(file, 1, 100) || chmod(folder, 0555)) return 1;
    if (geteuid() == 0 && setuid(65534)) return 77;
    if (write_values(file, 2, 100) != -1 || !strstr(err, "cannot create") || !strstr(err, "Permission denied"))
        return 1;
    return read_values(file) == 1 ? 0 : 2;
}

static void test_failing_writes(void) {
    const char *const old = in_dir("old.safetensors");
    char path[1200];
    CHECK(!write_values(old, 1, 1000) && read_values(old) == 1, "write");
    CHECK(!write_values(old, 3, 2000) && read_values(old) == 3, "replace");
    in_child("a limit on the file's size", limited_size);
    CHECK(read_values(old) == 3 && temporary_files(dir) == 0,
          "after a failed write the old file is there, no temporary one");
    in_child("a full disk and a read-only file system", full_disk);
    in_child("an unwritable folder", unwritable_folder);
    CHECK(write_values(in_dir("no/such/folder"), 1, 10) == -1, "a folder that does not exist");
    check_message("a folder that does not exist", "cannot create");
    snprintf(path, sizeof path, "%s/x", old);
    CHECK(write_values(path, 1, 10) == -1, "a file used as a folder");
    check_message("a file used as a folder", "Not a directory");
    mkdir(in_dir("folder"), 0777);
    CHECK(write_values(in_dir("folder"), 1, 10) == -1, "a folder at the file's place");
    check_message("a folder at the file's place", "folder: cannot write: ");
    CHECK(temporary_files(dir) == 0, "no temporary file is left");

    // a name relative to the current folder, and a temporary file left by a dead process with our number
    char was[1024];
    if (getcwd(was, sizeof was) && !chdir(dir)) {
        snprintf(path, sizeof path, "relative.tmp.%ld", (long)getpid());
        write_bytes(path, "junk", 4);
        CHECK(!write_values("relative", 5, 10) && read_values("relative") == 5, "a path without a folder");
        CHECK(!chdir(was), "back");
    }
    CHECK(temporary_files(dir) == 0, "an older temporary file is replaced");
}

// A process that replaces a file again and again is killed at some moment: the file is always complete.
static void test_killed_writer(void) {
    int good = 1;
    CHECK(!write_values(in_dir("killed"), 1, 50000), "write");
    for (int round = 0; round < 10 && good; round++) {
        const pid_t pid = fork();
        if (pid == 0)
            for (int i = 0;; i++)
                if (write_values(in_dir("killed"), (float)(1 + i % 2), 50000 + i % 7)) _exit(1);
        const struct timespec wait = {0, 2000000 + 3700000 * round};
        nanosleep(&wait, NULL);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        const float value = read_values(in_dir("killed"));
        good = value == 1 || value == 2;
    }
    CHECK(good, "after a killed writer the file is complete");
}

// ---------------------------------------------------------------------------------------------------------------------

// Python's package reads what test_round_trip wrote, and we read what it writes.
static void test_python(void) {
    char command[4096], script[1024] = __FILE__;
    char *const slash = strrchr(script, '/');
    snprintf(slash ? slash + 1 : script, 64, "check_safetensors.py");
    snprintf(command, sizeof command, "python3 '%s' '%s'", script, dir);
    fflush(stdout);
    const int status = access(script, R_OK) ? -1 : system(command);
    if (status == -1 || !WIFEXITED(status) || WEXITSTATUS(status) == 77 || WEXITSTATUS(status) == 127) {
        test_skip("exchange with Python: needs python3 with numpy and safetensors (pip install numpy safetensors)");
        return;
    }
    if (!CHECK(WEXITSTATUS(status) == 0, "check_safetensors.py")) return;
    static const char *const files[2] = {"python_numpy.safetensors", "python_torch.safetensors"};
    for (int which = 0; which < 2; which++) {
        safetensors_file f;
        const int64_t shape[2] = {3, 4}, empty[2] = {0, 3};
        float w[12];
        int64_t step = 0;
        int good = 1;
        if (access(in_dir(files[which]), R_OK)) {
            test_skip("exchange with PyTorch: needs python3 with torch");
            continue;
        }
        if (!CHECK(!safetensors_open(&f, in_dir(files[which]), err, sizeof err), "open Python's file")) {
            printf("  %s\n", err);
            continue;
        }
        static const char *const names[4] = {"f32", "f64", "f16", "bf16"};
        for (int k = 0; k < 3 + which; k++) {
            good &= !safetensors_read_f32(&f, names[k], 2, shape, w, err, sizeof err);
            for (int i = 0; i < 12; i++) good &= w[i] == (float)(i - 6) * 0.25f;
        }
        CHECK(good, "Python's F32, F64, F16 (and torch's BF16)");
        CHECK(!safetensors_read(&f, "step", SAFETENSORS_I64, 0, NULL, &step, err, sizeof err) && step == -7,
              "a scalar");
        CHECK(!safetensors_read_f32(&f, "empty", 2, empty, w, err, sizeof err), "an empty tensor");
        CHECK(safetensors_find(&f, "n\xc3\xa4me \"\\\n\xf0\x9f\x98\x80") != NULL, "a name in UTF-8");
        const char *const value = safetensors_metadata(&f, "k\"\t");
        CHECK(value && !strcmp(value, "v\xc3\xa4l\\\n"), "metadata");
        safetensors_close(&f);
    }
}

int main(void) {
    snprintf(dir, sizeof dir, "%s", test_make_dir());
    test_checksum();
    test_round_trip();
    test_reading();
    test_refused_lists();
    test_payload_checksum();
    test_refused_tensors();
    test_refused_syntax();
    test_accepted_headers();
    test_large_headers();
    test_other_files();
    test_integers();
    test_files();
    test_damaged_files();
    test_conversion();
    test_not_finite();
    test_failing_writes();
    test_killed_writer();
    test_python();
    test_remove_dir(dir);
    return test_summary();
}
