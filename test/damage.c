// damage.c -- what the shell tests of trainers cannot do alone: tiny data sets and networks, damaged files, signals.
//
//     damage parity DIR            the four IDX files of ref_parity.h (64 images of 6x6, 10 classes) and, for each of
//     its
//                                  runs, RUN.safetensors with the initial weights and RUN.options with the command line
//     damage parity-check RUN LOG  compares the losses in a log.csv with reference_pytorch.csv; prints the worst
//     damage cnn-parity DIR        the same for the runs of ref_cnn_parity.h: 32 images in DIR/cifar (3x32x32) and
//                                  DIR/grey (1x28x28), folders that exist already
//     damage cnn-parity-check RUN LOG
//     damage weights KIND FILE     a safetensors file for --layers 36,4,10: good, or with one thing wrong (see kinds[])
//     damage set FILE OFFSET HEX   overwrites bytes; a negative offset counts from the end
//     damage cut FILE N            cuts N bytes off the end; a negative N appends zeros
//     damage rename IN OUT FROM TO a copy of weights: names that begin with FROM begin with TO instead
//     damage read FILE TENSOR      prints a tensor's dtype and shape, and its value if it is a single I64
//     damage same A B              whether two files have the same tensors, apart from those that name the run (run.*)
//     damage signal SIGNAL FILE ROWS COMMAND...
//                                  runs the command with default signals, sends SIGNAL (INT, TERM, HUP, KILL) as soon
//                                  as FILE has ROWS lines, exits with the command's status; 128 + number if a signal
//                                  ended it
//
// Exit status 0, 1 when a comparison or an operation fails, 2 for usage errors. Built by check_trainer.sh where there
// is none beside the tests (make build/c/test/damage).
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../common/safetensors.h"
#include "ref_cnn_parity.h"
#include "ref_parity.h"

// Prints an error and ends the program.
static void die(int status, const char *what, const char *which) {
    fprintf(stderr, "damage: %s%s%s\n", what, *which ? ": " : "", which);
    exit(status);
}

// -------------------------------------------------------------------------------------------------------------- parity

static const RefParityCase *find_case(const char *name) {
    for (int c = 0; c < REF_PARITY_CASES; c++)
        if (!strcmp(ref_parity_cases[c].name, name)) return &ref_parity_cases[c];
    die(2, "no such run", name);
    return NULL;
}

// Data, initial weights and command lines of every run.
static void write_parity(const char *dir) {
    char path[1024];
    if (!ref_parity_write_idx(dir)) die(1, "cannot write the IDX files", dir);
    for (int k = 0; k < REF_PARITY_CASES; k++) {
        const RefParityCase *c = &ref_parity_cases[k];
        RefMlp m = ref_parity_model(c);
        snprintf(path, sizeof path, "%s/%s.safetensors", dir, c->name);
        if (!ref_parity_write_safetensors(path, &m)) die(1, "cannot write", path);
        ref_mlp_free(&m);
        snprintf(path, sizeof path, "%s/%s.options", dir, c->name);
        FILE *f = fopen(path, "w");
        if (!f) die(1, "cannot write", path);
        fprintf(f, "--layers ");
        for (int l = 0; l <= c->n_layers; l++) fprintf(f, "%s%d", l ? "," : "", c->dims[l]);
        fprintf(f, " --norm %s --task %s %s --batch-size %d --steps %d\n", c->bn ? "batch" : "none",
                c->loss == REF_MSE ? "autoencode" : "classify", c->flags, REF_PARITY_BATCH, REF_PARITY_STEPS);
        if (fclose(f)) die(1, "cannot write", path);
    }
}

// Reads the step losses and, behind them, the last evaluation of the training set from a log.csv; NaN where none is.
static void read_log(const char *log, double *got, int steps) {
    char line[512], split[16];
    for (int i = 0; i <= steps; i++) got[i] = NAN;
    FILE *f = fopen(log, "r");
    if (!f) die(1, "cannot open", log);
    while (fgets(line, sizeof line, f)) {
        int step;
        double loss;
        if (sscanf(line, "%d,%*[^,],%15[^,],%lf", &step, split, &loss) != 3) continue;
        if (!strcmp(split, "step") && step >= 1 && step <= steps) got[step - 1] = loss;
        if (!strcmp(split, "train") && step == steps) got[steps] = loss;
    }
    fclose(f);
}

// Compares got[steps + 1] with want, the last one being the evaluation. Prints the largest difference, as a part of its
// tolerance.
static int compare_losses(const char *name, const double *got, const double *want, const double *tolerance, int steps) {
    double worst = 0;
    int worst_row = 0;
    for (int i = 0; i <= steps; i++) {
        const double ratio = fabs(got[i] - want[i]) / (tolerance[i] * fabs(want[i]));
        if (!(ratio <= worst)) {
            worst = ratio;
            worst_row = i;
        }
    }
    const double first = fabs(got[0] / want[0] - 1), last = fabs(got[steps - 1] / want[steps - 1] - 1);
    printf("%s: step 1 differs by %.1e, step %d by %.1e, evaluation by %.1e; at worst %.2f of the tolerance (%s %d)\n",
           name, first, steps, last, fabs(got[steps] / want[steps] - 1), worst,
           worst_row < steps ? "step" : "evaluation", worst_row + 1);
    return !(worst <= 1);
}

// The runs of ref_parity.h against PyTorch's losses.
static int check_parity(const char *name, const char *log) {
    const RefParityCase *c = find_case(name);
    double want[REF_PARITY_ROWS], got[REF_PARITY_STEPS + 1], tolerance[REF_PARITY_STEPS + 1];
    if (!ref_parity_read(ref_parity_csv(), name, want)) die(1, "cannot read the reference", ref_parity_csv());
    read_log(log, got, REF_PARITY_STEPS);
    for (int i = 0; i < REF_PARITY_STEPS; i++) tolerance[i] = ref_parity_tolerance(i + 1);
    tolerance[REF_PARITY_STEPS] = ref_parity_eval_tolerance(c);
    return compare_losses(name, got, want, tolerance, REF_PARITY_STEPS);
}

// The same for convolutional nets.
static void write_cnn_parity(const char *dir) {
    char path[1024], folder[900];
    snprintf(folder, sizeof folder, "%s/cifar", dir);
    if (!ref_cnn_parity_write_cifar(folder)) die(1, "cannot write the CIFAR-10 files", folder);
    snprintf(folder, sizeof folder, "%s/grey", dir);
    if (!ref_cnn_parity_write_idx(folder)) die(1, "cannot write the IDX files", folder);
    for (int k = 0; k < REF_CNN_PARITY_CASES; k++) {
        const RefCnnParityCase *c = &ref_cnn_parity_cases[k];
        snprintf(path, sizeof path, "%s/%s.safetensors", dir, c->name);
        if (!ref_cnn_parity_write_safetensors(path, c)) die(1, "cannot write", path);
        snprintf(path, sizeof path, "%s/%s.options", dir, c->name);
        FILE *f = fopen(path, "w");
        if (!f) die(1, "cannot write", path);
        const char *set = c->config.in_c == 3 ? "cifar" : "grey";
        fprintf(f, "--data %s/%s %s --batch-size %d --steps %d\n", dir, set, c->options, REF_CNN_PARITY_BATCH,
                REF_CNN_PARITY_STEPS);
        if (fclose(f)) die(1, "cannot write", path);
    }
}
static int check_cnn_parity(const char *name, const char *log) {
    double want[REF_CNN_PARITY_ROWS], got[REF_CNN_PARITY_STEPS + 1], tolerance[REF_CNN_PARITY_STEPS + 1];
    const char *csv = ref_cnn_parity_csv();
    if (!ref_cnn_parity_read(csv, name, want)) die(1, "cannot read the reference", csv);
    read_log(log, got, REF_CNN_PARITY_STEPS);
    for (int i = 0; i <= REF_CNN_PARITY_STEPS; i++)
        tolerance[i] = ref_cnn_parity_tolerance(i < REF_CNN_PARITY_STEPS ? i + 1 : i);
    return compare_losses(name, got, want, tolerance, REF_CNN_PARITY_STEPS);
}

// ------------------------------------------------------------------------------------------------------------- weights

// A network 36-4-10: tensors of 4x36, 4, 10x4 and 10 floats, 792 bytes.
static const char good[] = "{\"fc1.weight\":{\"dtype\":\"F32\",\"shape\":[4,36],\"data_offsets\":[0,576]},"
                           "\"fc1.bias\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[576,592]},"
                           "\"fc2.weight\":{\"dtype\":\"F32\",\"shape\":[10,4],\"data_offsets\":[592,752]},"
                           "\"fc2.bias\":{\"dtype\":\"F32\",\"shape\":[10],\"data_offsets\":[752,792]}}";
enum { PAYLOAD = 792 };

// What is wrong with a file: text of the good header that is replaced, its replacement, bytes of payload added.
static const struct {
    const char *kind, *old, *replacement;
    int more;
} kinds[] = {
    {"good", "", "", 0},
    {"nan", "", "", 0},                                                    // element 5 of the payload
    {"inf", "", "", 0},
    {"huge-header", "", "", 0},                                            // says 2^62 bytes
    {"long-header", "", "", 0},                                            // longer than the file
    {"empty", "", "", 0},
    {"overlap", "[576,592]", "[572,588]", 0},
    {"range", "[752,792]", "[752,99999792]", 0},
    {"backwards", "[576,592]", "[592,576]", 0},
    {"negative", "[0,576]", "[-576,0]", 0},
    {"hole", "[752,792]", "[756,796]", 4},
    {"rest", "", "", 64},
    {"duplicate", "\"fc1.bias\"", "\"fc2.bias\"", 0},
    {"duplicate-key", "\"dtype\":\"F32\",\"shape\":[4]", "\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[4]", 0},
    {"dtype", "\"F32\",\"shape\":[4],", "\"I32\",\"shape\":[4],", 0},
    {"unknown-dtype", "\"F32\",\"shape\":[4],", "\"F99\",\"shape\":[4],", 0},
    {"shape", "[4,36]", "[36,4]", 0},
    {"rank", "[4,36]", "[144]", 0},
    {"huge-shape", "[4,36]", "[4294967296,4294967296]", 0},
    {"missing", "\"fc1.bias\"", "\"fc1.bios\"", 0},
    {"extra", "[752,792]}", "[752,792]},\"fc3.bias\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[792,808]}", 16},
    {"json", "\"shape\":[10]", "\"shape\":[10", 0},
};

// Writes the network, good or with what `kind` says.
static void write_weights(const char *kind, const char *path) {
    char header[2048];
    size_t k = 0;
    while (k < sizeof kinds / sizeof *kinds && strcmp(kinds[k].kind, kind)) k++;
    if (k == sizeof kinds / sizeof *kinds) die(2, "no such kind", kind);
    const char *at = strstr(good, kinds[k].old);
    if (!at) die(2, "nothing to replace", kind);
    const int used = snprintf(header, sizeof header, "%.*s%s%s", (int)(at - good), good, kinds[k].replacement,
                              at + strlen(kinds[k].old));
    uint64_t length = (uint64_t)used;
    if (!strcmp(kind, "huge-header")) length = UINT64_C(1) << 62;
    if (!strcmp(kind, "long-header")) length = 5000;
    FILE *f = fopen(path, "wb");
    if (!f) die(1, "cannot write", path);
    if (strcmp(kind, "empty")) {
        for (int shift = 0; shift < 64; shift += 8) fputc((int)(length >> shift & 255), f);
        fwrite(header, 1, (size_t)used, f);
        for (int i = 0; i < (PAYLOAD + kinds[k].more) / 4; i++) {
            const double special = !strcmp(kind, "nan") ? NAN : HUGE_VAL, x = 0.3 * sin(i + 1.0);
            const double value = i == 5 && (!strcmp(kind, "nan") || !strcmp(kind, "inf")) ? special : x;
            ref_parity_floats(f, &value, 1);
        }
    }
    if (fclose(f)) die(1, "cannot write", path);
}

// --------------------------------------------------------------------------------------------------------- other files

// Overwrites bytes given in hexadecimal at an offset.
static void set_bytes(const char *path, long offset, const char *hex) {
    FILE *f = fopen(path, "r+b");
    if (!f || fseek(f, offset, offset < 0 ? SEEK_END : SEEK_SET)) die(1, "cannot change", path);
    for (unsigned byte; sscanf(hex, "%2x", &byte) == 1; hex += 2) {
        fputc((int)byte, f);
        if (!hex[1] || !hex[2]) break;
    }
    if (fclose(f)) die(1, "cannot change", path);
}

// Cuts n bytes off the end, or appends -n zeros.
static void cut(const char *path, long n) {
    FILE *f = fopen(path, "r+b");
    if (!f || fseek(f, 0, SEEK_END)) die(1, "cannot change", path);
    const long size = ftell(f);
    if (size < n || fclose(f) || truncate(path, size - n)) die(1, "cannot change", path);
}

// Prints dtype and shape of a tensor, and the value of a single I64.
static void print_tensor(const char *path, const char *name) {
    static const char *const dtype[] = {"BOOL", "U8", "I8", "F8", "F8", "F8", "U16", "I16", "F16", "BF16",
                                        "U32", "I32", "F32", "U64", "I64", "F64", "C64"};
    char err[SAFETENSORS_ERROR_SIZE];
    safetensors_file f;
    if (safetensors_open(&f, path, err, sizeof err)) die(1, err, "");
    const safetensors_tensor *t = safetensors_find(&f, name);
    if (!t) die(1, "no such tensor", name);
    printf("%s [", dtype[t->dtype]);
    for (int i = 0; i < t->ndim; i++) printf("%s%lld", i ? "," : "", (long long)t->shape[i]);
    printf("]");
    if (t->dtype == SAFETENSORS_I64 && t->numel == 1) {
        int64_t value;
        memcpy(&value, t->data, sizeof value);
        printf(" %lld", (long long)value);
    }
    printf("\n");
    safetensors_close(&f);
}

// Whether every tensor of one file that does not name the run is in the other, with the same bits.
static int contains(const safetensors_file *a, const safetensors_file *b) {
    for (size_t i = 0; i < a->n_tensors; i++) {
        const safetensors_tensor *t = &a->tensors[i], *u = safetensors_find(b, t->name);
        if (!strncmp(t->name, "run.", 4)) continue;
        int same = u && u->dtype == t->dtype && u->ndim == t->ndim && u->n_bytes == t->n_bytes;
        for (int d = 0; same && d < t->ndim; d++) same = t->shape[d] == u->shape[d];
        if (same && !memcmp(t->data, u->data, t->n_bytes)) continue;
        printf("    %s: tensor %s is not the same in %s\n", a->path, t->name, b->path);
        return 0;
    }
    return 1;
}
static int compare_files(const char *path_a, const char *path_b) {
    char err[SAFETENSORS_ERROR_SIZE];
    safetensors_file a, b;
    if (safetensors_open(&a, path_a, err, sizeof err) || safetensors_open(&b, path_b, err, sizeof err)) die(1, err, "");
    const int same = contains(&a, &b) && contains(&b, &a);
    safetensors_close(&a);
    safetensors_close(&b);
    return !same;
}

// ------------------------------------------------------------------------------------------------------------- signals

// 0: no such signal.
static int signal_number(const char *name) {
    if (!strcmp(name, "INT")) return SIGINT;
    if (!strcmp(name, "TERM")) return SIGTERM;
    if (!strcmp(name, "HUP")) return SIGHUP;
    return strcmp(name, "KILL") ? 0 : SIGKILL;
}

// Lines in a file; 0 when there is none.
static long count_lines(const char *path) {
    char part[65536];
    long lines = 0;
    const int f = open(path, O_RDONLY);
    for (ssize_t n; f >= 0 && (n = read(f, part, sizeof part)) > 0;)
        for (ssize_t i = 0; i < n; i++) lines += part[i] == '\n';
    if (f >= 0) close(f);
    return lines;
}

// Runs a command and sends it a signal when a file has so many lines. Returns its exit status as a shell shows it. (A
// shell cannot: its background jobs ignore SIGINT.)
static int run_and_signal(const char *name, const char *file, long rows, char **command) {
    const int number = signal_number(name);
    const struct timespec pause = {0, 200000};
    int status, sent = 0;
    if (!number) die(2, "no such signal", name);
    const pid_t child = fork();
    if (child < 0) die(1, "cannot fork", "");
    if (child == 0) {
        signal(SIGINT, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        signal(SIGHUP, SIG_DFL);
        execvp(command[0], command);
        die(1, "cannot run", command[0]);
    }
    while (waitpid(child, &status, WNOHANG) == 0) {
        if (!sent && count_lines(file) >= rows) {
            kill(child, number);
            sent = 1;
        }
        nanosleep(&pause, NULL);
    }
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

// Copies a file of weights with other names: `from` at the front of a name becomes `to`.
static void rename_tensors(const char *in, const char *out, const char *from, const char *to) {
    char err[SAFETENSORS_ERROR_SIZE];
    safetensors_file f;
    const size_t length = strlen(from);
    if (safetensors_open(&f, in, err, sizeof err)) die(1, "cannot read", err);
    for (size_t i = 0; i < f.n_tensors; i++) {
        const char *old = f.tensors[i].name;
        if (strncmp(old, from, length)) continue;
        const size_t size = strlen(old) - length + strlen(to) + 1;
        char *name = (char *)malloc(size);  // kept: the program ends soon
        if (!name) die(1, "out of memory", "");
        snprintf(name, size, "%s%s", to, old + length);
        f.tensors[i].name = name;
    }
    if (safetensors_write(out, f.tensors, f.n_tensors, NULL, 0, err, sizeof err)) die(1, "cannot write", err);
    safetensors_close(&f);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "parity") && argc == 3) write_parity(argv[2]);
    else if (!strcmp(what, "parity-check") && argc == 4) return check_parity(argv[2], argv[3]);
    else if (!strcmp(what, "cnn-parity") && argc == 3) write_cnn_parity(argv[2]);
    else if (!strcmp(what, "cnn-parity-check") && argc == 4) return check_cnn_parity(argv[2], argv[3]);
    else if (!strcmp(what, "weights") && argc == 4) write_weights(argv[2], argv[3]);
    else if (!strcmp(what, "set") && argc == 5) set_bytes(argv[2], atol(argv[3]), argv[4]);
    else if (!strcmp(what, "cut") && argc == 4) cut(argv[2], atol(argv[3]));
    else if (!strcmp(what, "rename") && argc == 6) rename_tensors(argv[2], argv[3], argv[4], argv[5]);
    else if (!strcmp(what, "read") && argc == 4) print_tensor(argv[2], argv[3]);
    else if (!strcmp(what, "same") && argc == 4) return compare_files(argv[2], argv[3]);
    else if (!strcmp(what, "signal") && argc > 5) return run_and_signal(argv[2], argv[3], atol(argv[4]), argv + 5);
    else die(2, "usage: see the head of test/damage.c", "");
    return 0;
}
