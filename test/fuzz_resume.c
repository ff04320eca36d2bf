// fuzz_resume.c -- resumes a small training run (that of test_train.c) from damaged checkpoints.
//
//     fuzz_resume [SEED [ITERATIONS]]         default 1 and 1000; the same arguments do the same
//
// A run of 12 steps left checkpoint-8 and checkpoint-12. Each iteration damages the model or the state of the newer
// one, or puts a file of another run or another step in its place, and resumes. Two kinds take turns:
//     plain      flipped bits, cuts, blocks: what a disk does. The run must fall back to the older checkpoint, or find
//                that the damage is in text that means nothing: exit 0, and the final weights of a run without damage.
//     repaired   changed numbers and names, with all checksums repaired, as somebody might who means harm. The run may
//                take it, fall back or refuse. No crash; a refusal is one clean line; what is accepted are the weights
//                in the file or those of a run without damage, all finite; and never a state whose step, seed, batch,
//                samples, optimizer or order of samples is not that of the run.
// Built with -fsanitize=address,undefined (test/fuzz.sh), which watch the rest.
#define main test_train_main
#include "test_train.c"
#undef main
#include "common/rng.h"

enum { CAPACITY = 1 << 14, N_FILES = 2 };
typedef struct {
    unsigned char bytes[CAPACITY];
    size_t n;
} buffer;

static const char *const file_name[N_FILES] = {"model.safetensors", "state.safetensors"};
static buffer good[N_FILES], older[N_FILES], foreign[N_FILES], log_rows;
static safetensors_file want;               // the final weights
static uint64_t fuzz_seed, fuzz_counter;

// What a sanitizer finds ends the process by a signal, which no exit status can be mistaken for.
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "abort_on_error=1:detect_leaks=0"; }
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void) { return "abort_on_error=1"; }

// A random integer in [0, n), n >= 1.
static size_t below(size_t n) {
    return rng_below(rng_word_at(fuzz_seed, rng_stream(RNG_TEST, 0), fuzz_counter++), (uint32_t)n);
}

static void get_file(const char *name, buffer *b) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        exit(1);
    }
    b->n = fread(b->bytes, 1, CAPACITY, f);
    fclose(f);
}

static void put_file(const char *name, const buffer *b) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(b->bytes, 1, b->n, f) != b->n || fclose(f)) {
        perror(path);
        exit(1);
    }
}

// Removes a folder with everything in it.
static void remove_folder(const char *folder) {
    char path[1200], inner[1200];
    snprintf(path, sizeof path, "%s/%s", dir, folder);
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(inner, sizeof inner, "%.500s/%.500s", folder, e->d_name);
        remove_folder(inner);
    }
    if (d) closedir(d);
    remove(path);
}

static void make_folder(const char *name) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (mkdir(path, 0777)) {
        perror(path);
        exit(1);
    }
}

// Start of the payload.
static size_t payload_at(const buffer *b) {
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | b->bytes[i];
    return length > b->n - 8 ? b->n : 8 + (size_t)length;
}

static void set_payload_at(buffer *b, size_t at) {
    for (int i = 0; i < 8; i++) b->bytes[i] = (unsigned char)((uint64_t)(at - 8) >> 8 * i);
}

// The checksum of a file's payload as it stands in metadata.
static void checksum_of(const buffer *b, char text[24]) {
    const size_t at = payload_at(b);
    safetensors_xxh64 h;
    safetensors_xxh64_init(&h);
    safetensors_xxh64_update(&h, b->bytes + at, b->n - at);
    safetensors_checksum_text(&h, text);
}

// Puts `now` in the place of every `old` of the same length.
static void replace_text(buffer *b, const char *old, const char *now) {
    const size_t n = strlen(old);
    for (size_t i = 0; n == strlen(now) && i + n <= b->n; i++) {
        if (!memcmp(b->bytes + i, old, n)) memcpy(b->bytes + i, now, n);
    }
}

// Gives both files the checksums of their payloads, wherever one names its own or the other's.
static void repair(buffer *files) {
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N_FILES; i++) {
            char old[24], now[24];
            checksum_of(&good[i], old);
            checksum_of(&files[i], now);
            for (int k = 0; k < N_FILES; k++) replace_text(&files[k], old, now);
        }
    }
}

// Replaces `cut` bytes at `at` by n others, where the result fits.
static void replace_bytes(buffer *b, size_t at, size_t cut, const void *data, size_t n) {
    if (at > b->n || cut > b->n - at || b->n - cut + n > CAPACITY) return;
    memmove(b->bytes + at + n, b->bytes + at + cut, b->n - at - cut);
    memcpy(b->bytes + at, data, n);
    b->n += n - cut;
}

// What a disk does.
static void damage_plain(buffer *b) {
    const size_t at = below(b->n);
    switch (below(5)) {
    case 0: b->n = at; break;
    case 1: {
        const size_t n = below(b->n - at < 512 ? b->n - at : 512) + 1;
        memset(b->bytes + at, 0, n);
        break;
    }
    case 2: b->bytes[at] = (unsigned char)below(256); break;
    default: b->bytes[below(3) ? at : below(payload_at(b))] ^= (unsigned char)(1u << below(8));
    }
}

// Changes a number in the payload: an integer of the state, or a float.
static void change_number(buffer *b) {
    static const int64_t whole[] = {-1, 0, 1, 8, 11, 13, 50, INT32_MAX, INT64_MAX, INT64_MIN, INT64_MAX - 1, 1LL << 53};
    static const float real[] = {0, -0.0f, 1, -1, 1e-45f, 3e38f, -3e38f, 1e20f, NAN, INFINITY, -INFINITY};
    const size_t from = payload_at(b), words = (b->n - from) / 4;
    if (words < 2) return;
    const size_t first = words < 24 ? words / 2 : 12;
    if (below(2)) memcpy(&b->bytes[from + 8 * below(first)], &whole[below(sizeof whole / sizeof *whole)], 8);
    else memcpy(&b->bytes[from + 4 * below(words)], &real[below(sizeof real / sizeof *real)], 4);
}

// Changes the header, and its length with it.
static void change_header(buffer *b) {
    static const char *const pieces[] = {"9", "-1", "9223372036854775807", "0", "1e9", "F64", "I64", "F32", "\"", "[",
                                         "\\u001b[31m", "\\n", "null", "fc1.weight", "step", "moment1.",
                                         "__metadata__", "\xc3\xa9", "_orig_mod.", "module."};
    const size_t end = payload_at(b), at = 8 + below(end - 8);
    const char *piece = pieces[below(sizeof pieces / sizeof *pieces)];
    const size_t payload = b->n - end, cut = below(3) ? below(6) : 0, n = strlen(piece);
    switch (below(4)) {
    case 0: b->bytes[at] ^= (unsigned char)(1u << below(8)); break;
    case 1:  // a digit
        for (size_t i = at; i < end; i++) {
            if (b->bytes[i] < '0' || b->bytes[i] > '9') continue;
            b->bytes[i] = (unsigned char)('0' + below(10));
            break;
        }
        break;
    default:
        if (cut <= end - at) replace_bytes(b, at, cut, piece, n);
        set_payload_at(b, b->n - payload);
    }
}

// Whether two weight files hold the same values.
static int same_weights(const safetensors_file *a, const safetensors_file *b) {
    int same = 1;
    for (size_t i = 0; i < a->n_tensors && same; i++) {
        const safetensors_tensor *x = &a->tensors[i], *y = safetensors_find(b, x->name);
        same = y && x->n_bytes == y->n_bytes && !memcmp(x->data, y->data, x->n_bytes);
    }
    return same;
}

// Whether a file has all tensors of the final weights with the same shapes, and no value that is not finite.
static int finite_weights(const safetensors_file *f) {
    static float out[CAPACITY];
    char err[SAFETENSORS_ERROR_SIZE];
    for (size_t i = 0; i < want.n_tensors; i++) {
        const safetensors_tensor *t = &want.tensors[i];
        if (t->dtype != SAFETENSORS_F32) continue;
        if (safetensors_read_f32(f, t->name, t->ndim, t->shape, out, err, sizeof err)) return 0;
    }
    return 1;
}

// Whether the damaged state says the same as the good one about what the run is.
static int same_run(const buffer *state) {
    static const char *const name[] = {"step", "seed", "batch_size", "training_samples", "optimizer", "shuffle"};
    char a[1200], b[1200], err[SAFETENSORS_ERROR_SIZE];
    safetensors_file x, y;
    put_file("state.good", &good[1]);
    put_file("state.bad", state);
    snprintf(a, sizeof a, "%s/state.good", dir);
    snprintf(b, sizeof b, "%s/state.bad", dir);
    if (safetensors_open(&x, a, err, sizeof err)) return 0;
    if (safetensors_open(&y, b, err, sizeof err)) {
        safetensors_close(&x);
        return 0;
    }
    int same = 1;
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        const safetensors_tensor *t = safetensors_find(&x, name[i]), *u = safetensors_find(&y, name[i]);
        if (t) same = same && u && t->n_bytes == u->n_bytes && !memcmp(t->data, u->data, t->n_bytes);
    }
    safetensors_close(&x);
    safetensors_close(&y);
    return same;
}

// Whether a message is clean: one line of the program, those about skipped checkpoints aside; no escape code.
static int clean_message(const char *text) {
    int lines = 0;
    for (const char *c = text; *c; c++) {
        if (((unsigned char)*c < 32 && *c != '\n') || *c == 127) return 0;
    }
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1) {
        if (strncmp(line, "toy: ", 5)) return 0;
        const char *skipping = strstr(line, "skipping");
        lines += !skipping || skipping > line + strcspn(line, "\n");
        if (!line[strcspn(line, "\n")]) return 0;
    }
    return lines <= 1;
}

// What is wrong with how a run from these files ended; NULL: nothing.
static const char *judge(int status, const buffer *files, int plain) {
    char path[1200], err[SAFETENSORS_ERROR_SIZE];
    safetensors_file saved, model;
    if (status < 0 || status > 2) return "the run crashed";
    if (!clean_message(err_text)) return "a message that is not one clean line";
    if (status && plain) return "a damaged checkpoint keeps the older one from being used";
    if (status) return err_text[0] ? NULL : "no message";
    snprintf(path, sizeof path, "%s/saved", dir);
    if (safetensors_open(&saved, path, err, sizeof err)) return "exit 0 without weights";
    const char *why = NULL;
    if (!finite_weights(&saved)) why = "weights that are not finite or not whole";
    else if (!same_weights(&want, &saved) && plain) why = "other weights than without damage";
    else if (!same_weights(&want, &saved)) {
        put_file("model.bad", &files[0]);
        snprintf(path, sizeof path, "%s/model.bad", dir);
        if (safetensors_open(&model, path, err, sizeof err)) why = "weights that are in no file";
        else if (!same_weights(&want, &saved) && !same_weights(&saved, &model)) why = "weights that are in no file";
        if (!why) safetensors_close(&model);
    }
    safetensors_close(&saved);
    if (!why && !strstr(err_text, "skipping") && !same_run(&files[1])) why = "the state of another run was accepted";
    return why;
}

#define RUN "toy --steps 12 --batch-size 10 --optimizer adamw --checkpoint-every 4steps --quiet --save %s/saved "

// One iteration. Returns what is wrong, or NULL; *accepted: the run went on from the damaged checkpoint.
static const char *iterate(int *accepted) {
    static buffer files[N_FILES];
    char name[64];
    const int plain = (int)below(2), which = (int)below(N_FILES);
    memcpy(files, good, sizeof files);
    remove_folder("saved");
    remove_folder("log");
    make_folder("log");
    make_folder("log/checkpoint-8");
    make_folder("log/checkpoint-12");
    if (plain) {
        damage_plain(&files[which]);
    } else if (!below(8)) {
        files[which] = below(2) ? older[which] : foreign[which];
    } else {
        for (size_t k = below(3) + 1; k; k--) {
            if (below(2)) change_number(&files[which]);
            else change_header(&files[which]);
        }
        repair(files);
    }
    for (int i = 0; i < N_FILES; i++) {
        snprintf(name, sizeof name, "log/checkpoint-12/%s", file_name[i]);
        put_file(name, &files[i]);
        snprintf(name, sizeof name, "log/checkpoint-8/%s", file_name[i]);
        put_file(name, &older[i]);
    }
    put_file("log/log.csv", &log_rows);
    const int status = launch(RUN "--resume %s/log");
    *accepted = status == 0 && !strstr(err_text, "skipping");
    const char *why = judge(status, files, plain);
    if (why)
        printf("    exit %d, %s damage to %s, message: %s\n", status, plain ? "plain" : "repaired", file_name[which],
               err_text);
    return why;
}

// Makes the checkpoints: of the run, and of a run with another seed.
static void make_files(void) {
    char path[1200], err[SAFETENSORS_ERROR_SIZE];
    if (!CHECK(launch(RUN "--log-dir %s/foreign --seed 2") == 0, "a run with another seed")) puts(err_text);
    if (!CHECK(launch(RUN "--log-dir %s/log") == 0, "a run")) puts(err_text);
    for (int i = 0; i < N_FILES; i++) {
        snprintf(path, sizeof path, "log/checkpoint-12/%s", file_name[i]);
        get_file(path, &good[i]);
        snprintf(path, sizeof path, "log/checkpoint-8/%s", file_name[i]);
        get_file(path, &older[i]);
        snprintf(path, sizeof path, "foreign/checkpoint-12/%s", file_name[i]);
        get_file(path, &foreign[i]);
    }
    get_file("log/log.csv", &log_rows);
    snprintf(path, sizeof path, "%s/saved", dir);
    if (safetensors_open(&want, path, err, sizeof err)) {
        puts(err);
        exit(1);
    }
}

int main(int argc, char **argv) {
    char what[128];
    long accepted = 0;
    const long iterations = argc > 2 ? atol(argv[2]) : 1000;
    int used;
    fuzz_seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    // Syncing a disk takes long.
    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 1);
    snprintf(dir, sizeof dir, "%s", test_make_dir());
    make_files();
    for (long i = 0; i < iterations; i++) {
        const char *why = iterate(&used);
        snprintf(what, sizeof what, "seed %llu, iteration %ld: %s", (unsigned long long)fuzz_seed, i, why ? why : "");
        CHECK(!why, what);
        accepted += used;
    }
    CHECK(iterations < 200 || (accepted > iterations / 50 && accepted < iterations / 2), "both outcomes are reached");
    printf("seed %llu: %ld of %ld damaged checkpoints accepted\n", (unsigned long long)fuzz_seed, accepted, iterations);
    safetensors_close(&want);
    test_remove_dir(dir);
    return test_summary();
}
