// fuzz_safetensors.c -- feeds damaged files to the reader of common/safetensors.h.
//
//     clang -std=c11 -D_GNU_SOURCE -O1 -g -fsanitize=address,undefined -I. test/fuzz_safetensors.c -o fuzz -lm
//     ./fuzz [seed [iterations]]            default 1 20000; the same arguments do the same
//
// Each iteration takes a good file, applies one to eight mutations (bits, bytes, numbers, pieces of JSON, cuts,
// copies), mends the header's length in most cases so that the damage gets past it, and opens the result. A file that
// is accepted must hold what the manual promises: tensors that cover the payload exactly, each found by its name,
// readable to the last byte; and it must survive being written and read again. The sanitizers watch the rest. On a
// failure the file is kept and named.
#include "common/rng.h"
#include "common/safetensors.h"
#include "test.h"

enum { CAPACITY = 16384, N_SEEDS = 6 };
typedef struct {
    unsigned char bytes[CAPACITY];
    size_t n;
} buffer;

static uint64_t fuzz_seed, fuzz_counter;
static char path[1100], again[1100], err[SAFETENSORS_ERROR_SIZE];

// A random integer in [0, n), n >= 1.
static size_t below(size_t n) {
    return rng_below(rng_word_at(fuzz_seed, rng_stream(RNG_TEST, 0), fuzz_counter++), (uint32_t)n);
}

static void put_file(const char *name, const buffer *b) {
    unlink(name);  // some file systems sync a file that is emptied and written again
    FILE *f = fopen(name, "wb");
    if (!f || fwrite(b->bytes, 1, b->n, f) != b->n || fclose(f)) {
        perror(name);
        exit(1);
    }
}

static void get_file(const char *name, buffer *b) {
    FILE *f = fopen(name, "rb");
    if (!f) {
        perror(name);
        exit(1);
    }
    b->n = fread(b->bytes, 1, CAPACITY, f);
    fclose(f);
}

// A file from a header and n bytes of payload; no checksum, so that damaged payloads are read as well.
static void make_raw(buffer *b, const char *header, size_t n) {
    const size_t length = strlen(header);
    memset(b, 0, sizeof *b);
    b->bytes[0] = (unsigned char)length;
    b->bytes[1] = (unsigned char)(length >> 8);
    memcpy(b->bytes + 8, header, length);
    for (size_t i = 0; i < n; i++) b->bytes[8 + length + i] = (unsigned char)(i * 37);
    b->n = 8 + length + n;
}

static void make_seeds(buffer seeds[N_SEEDS]) {
    static const double values[24];
    const int64_t shape[3] = {2, 3, 4};
    safetensors_tensor t[SAFETENSORS_N_DTYPES];
    char names[SAFETENSORS_N_DTYPES][40];
    for (int d = 0; d < SAFETENSORS_N_DTYPES; d++) {
        snprintf(names[d], sizeof names[d], "layers.%d.\"\xc3\xa9\\\n", d);
        t[d] = safetensors_make(names[d], (safetensors_dtype)d, d % 4, shape, values);
    }
    const safetensors_pair about[2] = {{"format", "pt"}, {"k\"\t", "\xf0\x9f\x98\x80\\"}};
    for (int i = 0; i < 2; i++) {
        const size_t n_tensors = i ? SAFETENSORS_N_DTYPES : 2;
        if (safetensors_write(path, t, n_tensors, about, (size_t)i * 2, err, sizeof err)) {
            puts(err);
            exit(1);
        }
        get_file(path, &seeds[i]);
    }
    make_raw(&seeds[2], "{}", 0);
    make_raw(
        &seeds[3],
        "{\"__metadata__\":{\"a\":\"b\",\"c\":\"\\u00e9\\ud83d\\ude00\\n\"},\"fc1.weight\":{\"dtype\":\"F32\","
        "\"shape\":[2,3],\"data_offsets\":[0,24]},\"fc1.bias\":{\"dtype\":\"F16\","
        "\"shape\":[2],\"data_offsets\":[24,28]}}   ",
        28);
    make_raw(
        &seeds[4],
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"b\":{\"data_offsets\":[1,9],\"shape\":[1],"
        "\"dtype\":\"F64\"},\"c\":{\"dtype\":\"BF16\",\"shape\":[0,7],\"data_offsets\":[9,9]}}",
        9);
    make_raw(
        &seeds[5],
        "{\"s\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},\n\t\"t\" : { \"dtype\" : \"I64\", \"shape\" : "
        "[ 1 , 1 ] , \"data_offsets\" : [ 4 , 12 ] } }",
        12);
}

// Replaces `cut` bytes at `at` by n others, where the result fits.
static void replace_bytes(buffer *b, size_t at, size_t cut, const void *data, size_t n) {
    unsigned char copy[512];
    if (at > b->n || cut > b->n - at || n > sizeof copy || b->n - cut + n > CAPACITY) return;
    if (n) memcpy(copy, data, n);  // the source may lie in the buffer
    memmove(b->bytes + at + n, b->bytes + at + cut, b->n - at - cut);
    if (n) memcpy(b->bytes + at, copy, n);
    b->n += n - cut;
}

static void mutate(buffer *b) {
    static const char *const pieces[] = {  // 12 .. 22 stand in for numbers
        "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u0000", "\\ud800", "\\udc00", "\\u", "0", "-1", "1e9", "1.5",
        "null", "true", "18446744073709551615", "9223372036854775807", "9223372036854775808", "4294967296",
        "4611686018427387904", "[0,0]", "\"dtype\":\"F32\"", "\"shape\":[]", "\"data_offsets\":[0,4]",
        "__metadata__", "payload_checksum", "xxh64:", "F64", "U8", "\xff", "\xc0\x80", "\xed\xa0\x80",
        "\xf0\x9f\x98", "\x7f", "\n", "{\"a\":", "[[[[[[[[",
        ",\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}"};
    if (b->n == 0) return;
    const size_t at = below(b->n), start = b->n > 8 && below(8) ? 8 + below(b->n - 8) : at;
    const size_t span = below(64) + 1, left = b->n - start, size = span < left ? span : left;
    switch (below(9)) {
    case 0: b->bytes[at] ^= (unsigned char)(1u << below(8)); break;
    case 1: b->bytes[start] = (unsigned char)below(256); break;
    case 2: replace_bytes(b, start, size, NULL, 0); break;
    case 3: replace_bytes(b, start, 0, b->bytes + at, b->n - at < size ? b->n - at : size); break;  // copies a piece
    case 4: b->n = at; break;
    case 5:
        for (size_t i = start; i < b->n; i++)  // another digit
            if (b->bytes[i] >= '0' && b->bytes[i] <= '9') {
                b->bytes[i] = (unsigned char)('0' + below(10));
                break;
            }
        break;
    case 6: {
        const char *const p = pieces[below(sizeof pieces / sizeof *pieces)];
        replace_bytes(b, start, below(2) ? 0 : below(4), p, strlen(p));
        break;
    }
    case 7: {
        const char zeros[16] = {0};
        replace_bytes(b, b->n, 0, zeros, below(16) + 1);
        break;
    }
    default:
        for (size_t i = start; i < b->n; i++)  // in place of a number, one of the pieces
            if (b->bytes[i] >= '0' && b->bytes[i] <= '9') {
                const char *const p = pieces[12 + below(11)];
                size_t digits = 1;
                while (i + digits < b->n && b->bytes[i + digits] >= '0' && b->bytes[i + digits] <= '9') digits++;
                replace_bytes(b, i, digits, p, strlen(p));
                break;
            }
    }
}

// Sets the header's length to where the JSON ends: behind its last '}' and the spaces after it.
static void mend_length(buffer *b, size_t payload) {
    if (b->n < 8 + payload) return;
    const size_t length = b->n - 8 - payload;
    for (int i = 0; i < 8; i++) b->bytes[i] = (unsigned char)((uint64_t)length >> 8 * i);
}

static int same_pairs(const safetensors_file *f, const safetensors_file *g) {
    if (f->n_metadata != g->n_metadata) return 0;
    for (size_t i = 0; i < f->n_metadata; i++) {
        const char *const value = safetensors_metadata(g, f->metadata[i].key);
        if (!value || strcmp(value, f->metadata[i].value)) return 0;
    }
    return 1;
}

// What must hold for an accepted file; NULL, or what does not.
static const char *broken(const safetensors_file *f) {
    static float out[CAPACITY];
    static unsigned char raw[CAPACITY];
    size_t covered = 0, sum = 0;
    for (size_t i = 0; i < f->n_tensors; i++) {
        const safetensors_tensor *const t = &f->tensors[i], *const p = f->by_position[i];
        if (safetensors_find(f, t->name) != t) return "a tensor is not found by its name";
        if (p->offset != covered || p->data != f->payload + p->offset) return "tensors do not cover the payload";
        covered += p->n_bytes;
        for (size_t j = 0; j < t->n_bytes; j++) sum += ((const unsigned char *)t->data)[j];
        if (safetensors_read(f, t->name, t->dtype, t->ndim, t->shape, raw, err, sizeof err))
            return "a tensor cannot be read";
        out[0] = 42;
        if (!safetensors_read_f32(f, t->name, t->ndim, t->shape, out, err, sizeof err)) {
            for (int64_t j = 0; j < t->numel; j++)
                if (!isfinite(out[j])) return "a value that is not finite got through";
        } else if (out[0] != 42) {
            return "a refused tensor was half read";
        }
        int64_t integer = 42;
        const int got = !safetensors_read_integer(f, t->name, &integer, err, sizeof err);
        if (got ? t->numel != 1 : integer != 42) return "an integer that is none";
    }
    return covered != f->payload_size || sum > 255u * CAPACITY ? "tensors do not cover the payload" : NULL;
}

// Writes what was read and reads it again; NULL, or what went wrong.
static const char *round_trip(const safetensors_file *f) {
    safetensors_file g;
    safetensors_pair *const pairs = (safetensors_pair *)malloc((f->n_metadata + 1) * sizeof *pairs);
    size_t n = 0;
    const int has_checksum = safetensors_metadata(f, SAFETENSORS_CHECKSUM_KEY) != NULL;
    for (size_t i = 0; i < f->n_metadata; i++)
        if (strcmp(f->metadata[i].key, SAFETENSORS_CHECKSUM_KEY)) pairs[n++] = f->metadata[i];
    const int failed = safetensors_write(again, f->tensors, f->n_tensors, pairs, n, err, sizeof err);
    free(pairs);
    if (failed || safetensors_open(&g, again, err, sizeof err)) return err;
    const char *why = NULL;
    if (g.n_tensors != f->n_tensors || g.payload_size != f->payload_size) why = "other tensors after a round trip";
    for (size_t i = 0; i < f->n_tensors && !why; i++) {
        const safetensors_tensor *const a = &f->tensors[i], *const b = &g.tensors[i];
        if (strcmp(a->name, b->name) || a->dtype != b->dtype || a->ndim != b->ndim ||
            memcmp(a->shape, b->shape, sizeof a->shape) || memcmp(a->data, b->data, a->n_bytes))
            why = "another tensor after a round trip";
    }
    if (!why && has_checksum && !same_pairs(f, &g) && f->n_metadata == g.n_metadata)
        why = strcmp(safetensors_metadata(f, SAFETENSORS_CHECKSUM_KEY),
                     safetensors_metadata(&g, SAFETENSORS_CHECKSUM_KEY))
                  ? NULL // the payload's order changed
                  : "other metadata after a round trip";
    safetensors_close(&g);
    return why;
}

static long number(const char *text) {
    char *end;
    const long value = strtol(text, &end, 10);
    if (*end || value < 0) {
        fprintf(stderr, "usage: fuzz_safetensors [seed [iterations]]\n");
        exit(2);
    }
    return value;
}

int main(int argc, char **argv) {
    static buffer seeds[N_SEEDS], b;
    char dir[1024];
    long accepted = 0, refused = 0;
    fuzz_seed = argc > 1 ? (uint64_t)number(argv[1]) : 1;
    const long iterations = argc > 2 ? number(argv[2]) : 20000;
    snprintf(dir, sizeof dir, "%s", test_make_dir());
    snprintf(path, sizeof path, "%s/f.safetensors", dir);
    snprintf(again, sizeof again, "%s/again.safetensors", dir);
    make_seeds(seeds);
    for (long i = 0; i < iterations; i++) {
        const buffer *const seed = &seeds[below(N_SEEDS)];
        size_t header = 0;
        for (int j = 7; j >= 0; j--) header = header << 8 | seed->bytes[j];
        b = *seed;
        for (size_t mutations = i < N_SEEDS ? 0 : below(below(8) + 1) + 1; mutations > 0; mutations--) mutate(&b);
        if (below(4)) mend_length(&b, seed->n - 8 - header);
        put_file(path, &b);
        safetensors_file f;
        err[0] = 0;
        const char *why = NULL;
        if (safetensors_open(&f, path, err, sizeof err)) {
            refused++;
            if (!err[0] || strchr(err, '\n')) why = "a file is refused without a message of one line";
        } else {
            why = broken(&f);
            if (!why && accepted++ % 64 == 0) why = round_trip(&f);
            safetensors_close(&f);
        }
        if (why) {
            printf("FAIL seed %llu, iteration %ld: %s\n  kept: %s\n", (unsigned long long)fuzz_seed, i, why, path);
            return 1;
        }
    }
    printf("seed %llu: %ld files refused, %ld accepted\n", (unsigned long long)fuzz_seed, refused, accepted);
    CHECK(refused > iterations / 4 && accepted > iterations / 50, "the fuzzer reaches both outcomes");
    test_remove_dir(dir);
    return test_summary();
}
