// fuzz_compare.c -- feeds odd logs and reports to dev/compare.c: its CSV reader, its table, its plots.
//
//     fuzz_compare [SEED [ITERATIONS]]        default 1 and 1000; the same arguments do the same
//
// Each iteration writes one to three runs, of rows with ordinary and with extreme numbers (epochs 1e17 and 1e17 + 32, a
// loss of 1e-322), damages some of them, and compares them with options that vary. The program must end within seconds,
// write no more than a plot and a few lines for every row, exit 0, 1 or 2, with one clean line where it is not 0; and
// the plot it writes is whole, has a bounded number of ticks, and no coordinate that is not a number. Built with
// -fsanitize=address,undefined (test/fuzz.sh).
#define main compare_main
#include "../dev/compare.c"
#undef main
#include <sys/resource.h>
#include <sys/wait.h>
#include "common/rng.h"
#include "test.h"

enum { SECONDS_EACH = 20, MOST_BYTES = 1 << 20, MOST_TICKS = 100 };

static uint64_t fuzz_seed, fuzz_counter;
static char dir[1024];
static char text[2 * MOST_BYTES];

// What a sanitizer finds ends the process by a signal, which no exit status can be mistaken for.
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "abort_on_error=1:detect_leaks=0"; }
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void) { return "abort_on_error=1"; }

// The power stays on here, and syncing thousands of files takes long.
int fsync(int fd) { return fd < 0 ? -1 : 0; }

// A random integer in [0, n), n >= 1.
static size_t below(size_t n) {
    return rng_below(rng_word_at(fuzz_seed, rng_stream(RNG_TEST, 0), fuzz_counter++), (uint32_t)n);
}

static FILE *open_in(const char *name, const char *mode) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, mode);
    if (!f && *mode == 'w') {
        perror(path);
        exit(1);
    }
    return f;
}

// Reads a file into text; returns its size, or -1 when there is none.
static long slurp(const char *name) {
    FILE *f = open_in(name, "rb");
    const size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    text[n] = 0;
    if (!f) return -1;
    fclose(f);
    return (long)n;
}

// A number as a log may have it: one of a family that the iteration has chosen, or any.
static void put_number(FILE *f, int family) {
    static const char *const odd[] = {"1e17", "100000000000000032", "1e-322", "4.9e-324", "1.7976931348623157e308",
                                      "-1e308", "1e300", "nan", "-nan", "inf", "-inf", "n/a", "0", "-0", "1e-17",
                                      "9007199254740993", "2.5", "1e16", "1e15", "1e-300", "99999999", "0x1p-1074",
                                      "1e22", "1e-5", "-1", "3"};
    switch (family) {
    case 0: fprintf(f, "%.9g", 2.0 / (double)(1 + below(50))); break;
    case 1: fprintf(f, "%zu", below(30)); break;
    case 2: fprintf(f, "%.17g", 1e17 + 16.0 * (double)below(6)); break;
    case 3: fprintf(f, "%.3g", 5e-324 * (double)below(200)); break;
    case 4: fprintf(f, "%.17g", (double)(1 + below(1000)) * pow(10, (double)below(616) - 308)); break;
    case 5: fprintf(f, "%.17g", 1 + (double)below(8) * 0x1p-52); break;
    default: fputs(odd[below(sizeof odd / sizeof *odd)], f);
    }
}

static void put_row(FILE *f, size_t step, int epochs, int losses) {
    static const char *const split[] = {"train", "test", "train", "test", "step", "valid", "", "train,"};
    fprintf(f, "%zu,", step);
    put_number(f, below(20) ? epochs : (int)below(9));
    fprintf(f, ",%s", split[below(40) ? below(5) : below(8)]);
    for (int i = 0; i < 6; i++) {
        fputc(',', f);
        put_number(f, below(20) ? losses : (int)below(9));
    }
    fputs(below(100) ? "\n" : "\r\n", f);
}

// One run: a log, and sometimes a report.
static void put_run(int number) {
    char name[64], path[1200];
    snprintf(path, sizeof path, "%s/run%d", dir, number);
    mkdir(path, 0777);
    snprintf(name, sizeof name, "run%d/log.csv", number);
    FILE *f = open_in(name, "w");
    const int epochs = (int)below(7), losses = (int)below(7);
    const size_t rows = below(4) ? below(30) : below(3);
    fputs(below(100) ? LOG_CSV_HEADER "\n" : "step,epoch\n", f);
    for (size_t i = 0; i < rows; i++) put_row(f, i, epochs, losses);
    fclose(f);
    if (!below(4)) {  // a damaged byte, or an end within a row
        const long n = slurp(name);
        if (n > 0) text[below((size_t)n)] = (char)below(256);
        f = open_in(name, "w");
        if (n > 0) fwrite(text, 1, below(2) ? (size_t)n : below((size_t)n), f);
        fclose(f);
    }
    snprintf(path, sizeof path, "%s/run%d/report.json", dir, number);
    remove(path);
    if (below(2)) return;
    snprintf(name, sizeof name, "run%d/report.json", number);
    f = open_in(name, "w");
    fputs("{\"train\": {\"seconds\": ", f);
    put_number(f, (int)below(8));
    fputs(", \"samples_per_second\": ", f);
    put_number(f, (int)below(8));
    fputs(below(9) ? "}, \"rescale\": {\"seconds_solve\": 1e-3}}" : "}, \"x\": [[[[", f);
    fclose(f);
}

// Runs compare in a child. Returns its exit status, or 128 + signal.
static int launch(int runs) {
    char name[3][1200], out[1200], err[1200];
    char *argv[16] = {(char *)"compare", (char *)"--out", out};
    static const char *const targets[] = {"1e-322", "0", "1e308", "-1", "0.5", "inf"};
    int n = 3, status;
    snprintf(out, sizeof out, "%s/out", dir);
    for (int i = 0; i < runs; i++) {
        snprintf(name[i], sizeof name[i], "r%d=%s/run%d", i, dir, i);
        argv[n++] = name[i];
    }
    if (!below(3)) argv[n++] = (char *)"--test-loss";
    if (!below(3)) {
        argv[n++] = (char *)"--target-loss";
        argv[n++] = (char *)(uintptr_t)targets[below(sizeof targets / sizeof *targets)];
    }
    if (!below(4)) {
        argv[n++] = (char *)"--max-rows";
        argv[n++] = (char *)(below(2) ? "1" : "2");
    }
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        const struct rlimit most = {MOST_BYTES, MOST_BYTES};
        snprintf(err, sizeof err, "%s/stdout", dir);
        if (!freopen(err, "w", stdout)) _exit(99);
        snprintf(err, sizeof err, "%s/stderr", dir);
        if (!freopen(err, "w", stderr)) _exit(99);
        setrlimit(RLIMIT_FSIZE, &most);
        alarm(SECONDS_EACH);
        exit(compare_main(n, argv));
    }
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int count(const char *what) {
    int n = 0;
    for (const char *at = strstr(text, what); at; at = strstr(at + 1, what)) n++;
    return n;
}

// What is wrong with the plot in text; NULL: nothing.
static const char *judge_plot(long size) {
    static const char *const bad[] = {"\"nan", "\"inf", "\"-nan", "\"-inf", " nan", " inf",
                                      " -nan", " -inf", "Mnan", "Lnan", "Minf", "M-inf"};
    if (size < 20 || strcmp(text + size - 7, "</svg>\n")) return "the plot is not whole";
    if (count("class=\"tick\"") > MOST_TICKS) return "the plot has too many ticks";
    if (count("class=\"grid\"") > MOST_TICKS) return "the plot has too many grid lines";
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (strstr(text, bad[i])) return "the plot has a coordinate that is not a number";
    }
    return NULL;
}

static const char *judge(int status) {
    if (status == 128 + SIGALRM) return "compare does not end";
    if (status == 128 + SIGXFSZ) return "compare writes and writes";
    if (status < 0 || status > 2) return "compare crashed";
    long size = slurp("stderr");
    if (status == 0) {
        if (size) return "exit 0 with a message";
        size = slurp("out/compare.csv");
        if (size <= 0 || text[size - 1] != '\n') return "compare.csv is not whole";
        return judge_plot(slurp("out/compare.svg"));
    }
    if (strncmp(text, "compare: ", 9) || strchr(text, '\n') != text + size - 1) return "a message that is not one line";
    for (long i = 0; i + 1 < size; i++) {
        if ((unsigned char)text[i] < 32 || text[i] == 127) return "a message with control characters";
    }
    return NULL;
}

int main(int argc, char **argv) {
    char what[128];
    long compared = 0;
    const long iterations = argc > 2 ? atol(argv[2]) : 1000;
    fuzz_seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    snprintf(dir, sizeof dir, "%s", test_make_dir());
    for (long i = 0; i < iterations; i++) {
        const int runs = 1 + (int)below(3);
        for (int k = 0; k < runs; k++) put_run(k);
        const int status = launch(runs);
        const char *why = judge(status);
        snprintf(what, sizeof what, "seed %llu, iteration %ld: %s", (unsigned long long)fuzz_seed, i, why ? why : "");
        if (!CHECK(!why, what)) {
            slurp("stderr");
            printf("    exit %d, message: %.400s\n", status, text);
            snprintf(text, sizeof text, "rm -rf '%s.%ld' && cp -R '%s' '%s.%ld'", dir, i, dir, dir, i);
            if (getenv("KEEP") && !system(text)) printf("    kept: %s.%ld\n", dir, i);
        }
        compared += status == 0;
    }
    CHECK(iterations < 200 || (compared > iterations / 20 && compared < iterations), "both outcomes are reached");
    printf("seed %llu: %ld of %ld comparisons made\n", (unsigned long long)fuzz_seed, compared, iterations);
    test_remove_dir(dir);
    return test_summary();
}
