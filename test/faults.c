// faults.c -- the fault campaign: every file operation of a training run fails, or the process dies, stops or meets a
// second one there; what was left is resumed; nothing may be lost.
//
//     faults [--all] [--csv FILE] [--jobs N] LIBRARY TRAINER...          (make faults; make test runs a part)
//
// LIBRARY is test/fault_lib.c, built; TRAINER is train_mlp or train_gpt_style. A tiny run with checkpoints is recorded
// call by call: from the start, resumed, and, where the trainer has --overwrite, in the folder of an earlier run. Then
// every fault of the table below strikes at every call of its kind; without --all at one of those calls that differ
// only in numbers, another one for each fault, and of the second trainer at every third. After it:
//     1. A run that failed says one line, exits 1 and leaves no temporary file. One that exits 0 has done everything.
//     2. Once there is a complete checkpoint, there always is one: --resume succeeds. Before that, a run can be started
//        anew. Where the power is lost, once the first older checkpoint was removed.
//     3. The final weights and the values of log.csv are bit for bit those of a run without a fault. Rows may be
//        missing from log.csv only where it could not be written, and the run said so, or where the power was lost.
//     4. After the resumed run the log folder holds the files of a run without a fault. A third checkpoint may be
//        there, if it is whole. (A process that is killed while it writes --save leaves a temporary file beside
//        it, which may belong to a live one.)
//     5. Of two runs in one folder one is refused, with one line, and the other one ends as if it were alone.
// Every check that fails prints a line. --csv: a row for each fault. The last line is `N passed, N failed, N skipped`.
#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>
#include "common/safetensors.h"
#include "test.h"

enum { PATH_SIZE = 1024, MAX_CALLS = 2000, MAX_ARGS = 64, TEXT = 4096, SECONDS_EACH = 60 };
enum { NEW, RESUMED, REPLACED, N_SCENES };
static const char *const scene_name[N_SCENES] = {"new", "resumed", "replaced"};

// What can go wrong, at which calls (NULL: all), and how the library is told. second: another run is started while the
// first one stands.
enum { ALONE, SECOND_NEW, SECOND_RESUMED };
static const struct {
    const char *name, *call, *action;
    int error, sticky, second;
} faults[] = {
    {"killed before the call", NULL, "kill", 0, 0, ALONE},
    {"killed after the call", NULL, "kill-after", 0, 0, ALONE},
    {"killed within a write", "write", "torn", 0, 0, ALONE},
    {"power lost after the call", NULL, "power", 0, 0, ALONE},
    {"write of half of the bytes", "write", "short", 0, 0, ALONE},
    {"write: no space left, once", "write", NULL, ENOSPC, 0, ALONE},
    {"write: no space left, from then on", "write", NULL, ENOSPC, 1, ALONE},
    {"write: I/O error", "write", NULL, EIO, 0, ALONE},
    {"fsync: I/O error", "fsync", NULL, EIO, 0, ALONE},
    {"rename: I/O error", "rename", NULL, EIO, 0, ALONE},
    {"rename: permission denied", "rename", NULL, EACCES, 0, ALONE},
    {"mkdir: no space left", "mkdir", NULL, ENOSPC, 0, ALONE},
    {"unlink: permission denied", "unlink", NULL, EACCES, 0, ALONE},
    {"unlink: I/O error, from then on", "unlink", NULL, EIO, 1, ALONE},
    {"close: I/O error", "close", NULL, EIO, 0, ALONE},
    {"open: too many open files", "open", NULL, EMFILE, 0, ALONE},
    {"open: permission denied", "open", NULL, EACCES, 0, ALONE},
    {"a second run in the folder", NULL, "stop", 0, 0, SECOND_NEW},
    {"a second run that resumes", NULL, "stop", 0, 0, SECOND_RESUMED},
};
enum { N_FAULTS = sizeof faults / sizeof *faults };

typedef struct {
    const char *program, *name;    // path, and what messages begin with
    int overwrite;                 // it has --overwrite
    char weights[PATH_SIZE], log[PATH_SIZE];  // of the run without a fault
} trainer;

// One of a trainer's runs, as recorded without a fault.
typedef struct {
    const trainer *t;
    int kind;                      // NEW, RESUMED, REPLACED
    char before[PATH_SIZE];        // folder to begin with, or ""
    char *calls[MAX_CALLS + 1];    // "write /a/path", from 1
    int n_calls;
    int first_row, last_row;       // the first and the last write to log.csv
    int complete;                  // after this call a resume must succeed
    int first_removal;             // after it, the first call that removes a part of a checkpoint; 0: none
    char files[TEXT];              // what a finished run leaves
} scene;

// Where one case runs at a time; `run` is FAULT_DIR.
typedef struct {
    char dir[PATH_SIZE - 64], run[PATH_SIZE], log[PATH_SIZE], weights[PATH_SIZE], second[PATH_SIZE];
    char out[PATH_SIZE], err[PATH_SIZE];
    char said[TEXT];               // stderr of the last run
} place;

// Outcome of a case. Small enough for one write to a pipe.
typedef struct {
    int fault, ended;              // 0, 1, or 2: killed
    int lost, failed;              // bits were lost; any check failed
    char what[400];
} verdict;

static char *work, *library, text_file[PATH_SIZE];

static void die(const char *what, const char *which) {
    fprintf(stderr, "faults: %s %s: %s\n", what, which, strerror(errno));
    exit(1);
}

// --------------------------------------------------------------------------------------------------- files and folders

static void join(char *out, size_t size, const char *a, const char *b) {
    if (snprintf(out, size, "%s/%s", a, b) >= (int)size) die("path too long:", b);
}

static void shell(const char *format, const char *a, const char *b) {
    char command[3 * PATH_SIZE];
    snprintf(command, sizeof command, format, a, b);
    if (system(command)) die("cannot run", command);
}

// Removes a file or a folder with everything in it.
static void remove_all(const char *path) {
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        char inner[PATH_SIZE];
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        join(inner, sizeof inner, path, e->d_name);
        if (unlink(inner)) remove_all(inner);
    }
    if (d) closedir(d);
    if (remove(path) && errno != ENOENT) die("cannot remove", path);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// Appends the names of everything in a folder to text[TEXT], sorted, one a line.
static void list(const char *dir, const char *prefix, char *text) {
    char *names[256], inner[PATH_SIZE], name[PATH_SIZE];
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && n < 256 && (e = readdir(d));) {
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) names[n++] = strdup(e->d_name);
    }
    if (d) closedir(d);
    qsort(names, (size_t)n, sizeof *names, by_name);
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "%s%s", prefix, names[i]);
        const size_t used = strlen(text);
        snprintf(text + used, TEXT - used, "%s\n", name);
        join(inner, sizeof inner, dir, names[i]);
        strcat(name, "/");
        list(inner, name, text);
        free(names[i]);
    }
}

// Whether a text has a line.
static int has_line(const char *text, const char *line) {
    const size_t n = strlen(line);
    for (; *text; text += strcspn(text, "\n") + 1) {
        if (!strncmp(text, line, n) && text[n] == '\n') return 1;
    }
    return 0;
}

// Whether a listed name belongs to a checkpoint that is whole: its folder and two files.
static int of_whole_checkpoint(const char *files, const char *name) {
    char model[PATH_SIZE + 32], state[PATH_SIZE + 32];
    const char *at = strstr(name, "checkpoint-");
    if (!at) return 0;
    const int n = (int)(at - name) + 11 + (int)strspn(at + 11, "0123456789");
    snprintf(model, sizeof model, "%.*s/model.safetensors", n, name);
    snprintf(state, sizeof state, "%.*s/state.safetensors", n, name);
    if (name[n] && strcmp(name, model) && strcmp(name, state)) return 0;
    return has_line(files, model) && has_line(files, state);
}

// The first line of a that is not in b; NULL: there is none. extra: a may have whole checkpoints that b has not. Not
// thread-safe.
static const char *line_missing(const char *a, const char *b, int extra) {
    static char line[PATH_SIZE];
    for (const char *at = a; *at; at += strcspn(at, "\n") + 1) {
        snprintf(line, sizeof line, "%.*s", (int)strcspn(at, "\n"), at);
        if (!has_line(b, line) && !(extra && of_whole_checkpoint(a, line))) return line;
    }
    return NULL;
}

static void read_text(const char *path, char *text, size_t size) {
    FILE *f = fopen(path, "r");
    const size_t n = f ? fread(text, 1, size - 1, f) : 0;
    text[n] = 0;
    if (f) fclose(f);
}

// Whether two weight files hold the same tensors with the same bits. Metadata may differ: a run has an id of its own.
static int same_weights(const char *path, const char *other) {
    safetensors_file a, b;
    char err[SAFETENSORS_ERROR_SIZE];
    if (safetensors_open(&a, path, err, sizeof err)) return 0;
    if (safetensors_open(&b, other, err, sizeof err)) die("cannot read", other);
    int same = a.n_tensors == b.n_tensors;
    for (size_t i = 0; same && i < a.n_tensors; i++) {
        const safetensors_tensor *x = &a.tensors[i], *y = safetensors_find(&b, x->name);
        same = y && x->dtype == y->dtype && x->numel == y->numel && x->ndim == y->ndim;
        for (int k = 0; same && k < x->ndim; k++) same = x->shape[k] == y->shape[k];
        same = same && !memcmp(x->data, y->data, (size_t)x->numel * safetensors_dtype_size(x->dtype));
    }
    safetensors_close(&a);
    safetensors_close(&b);
    return same;
}

// Whether two rows of a log have the same values: all but the times; the gradient norm where both have it.
static int same_row(const char *a, const char *b) {
    for (int column = 0; column < 7; column++) {
        const size_t n = strcspn(a, ",\n"), m = strcspn(b, ",\n");
        const int unknown = column == 6 && (!strncmp(a, "n/a", 3) || !strncmp(b, "n/a", 3));
        if (!unknown && (n != m || strncmp(a, b, n))) return 0;
        if (a[n] != ',' || b[m] != ',') return 0;
        a += n + 1;
        b += m + 1;
    }
    return 1;
}

// Whether a log has the rows of another one, in their order; gaps: some may be missing.
static int same_log(const char *path, const char *other, int gaps) {
    char a[512], b[512];
    FILE *f = fopen(path, "r"), *g = fopen(other, "r");
    if (!g) die("cannot read", other);
    int same = f != NULL;
    while (same && fgets(a, sizeof a, f)) {
        do same = fgets(b, sizeof b, g) != NULL;
        while (same && gaps && !same_row(a, b));
        same = same && same_row(a, b);
    }
    if (same && !gaps) same = !fgets(b, sizeof b, g);
    if (f) fclose(f);
    fclose(g);
    return same;
}

// ---------------------------------------------------------------------------------------------------------------- runs

// What every run of a trainer has in common, without folders.
static int common_options(const trainer *t, const char **argv) {
    static const char *const mlp[] = {"--data", "moons", "--layers", "2,16,2", "--batch-size", "64",
                                      "--optimizer", "adamw"};
    static const char *const gpt[] = {"--data", text_file, "--layers", "1", "--heads", "2", "--channels", "8",
                                      "--context", "16", "--batch-size", "4", "--eval-every", "20steps"};
    static const char *const all[] = {"--quiet", "--steps", "40", "--checkpoint-every", "10steps"};
    const int is_gpt = strstr(t->name, "gpt") != NULL;
    const char *const *own = is_gpt ? gpt : mlp;
    const int n_own = (int)(is_gpt ? sizeof gpt / sizeof *gpt : sizeof mlp / sizeof *mlp);
    int n = 0;
    argv[n++] = t->program;
    for (int i = 0; i < n_own; i++) argv[n++] = own[i];
    for (int i = 0; i < 5; i++) argv[n++] = all[i];
    return n;
}

enum { FRESH, RESUME, OVERWRITE };

// Starts a trainer on the log folder of a place. at NULL: without the library; "": with it, no fault. trace: or NULL.
static pid_t start(const place *p, const trainer *t, int how, const char *save, const char *at, const char *action,
                   const char *trace) {
    const char *argv[MAX_ARGS];
    int n = common_options(t, argv);
    argv[n++] = "--save";
    argv[n++] = save;
    argv[n++] = how == RESUME ? "--resume" : "--log-dir";
    argv[n++] = p->log;
    if (how == OVERWRITE && t->overwrite) argv[n++] = "--overwrite";
    argv[n] = NULL;
    const pid_t child = fork();
    if (child < 0) die("cannot start", t->program);
    if (child > 0) return child;
    if (at) setenv("LD_PRELOAD", library, 1);
    if (at) setenv("FAULT_DIR", p->run, 1);
    if (at && *at) setenv("FAULT_AT", at, 1);
    if (action) setenv("FAULT_DO", action, 1);
    if (trace) setenv("FAULT_TRACE", trace, 1);
    const int second = !strcmp(save, p->second);
    char path[PATH_SIZE + 8];
    snprintf(path, sizeof path, "%s%s", p->out, second ? "2" : "");
    if (!freopen(path, "w", stdout)) _exit(126);
    snprintf(path, sizeof path, "%s%s", p->err, second ? "2" : "");
    if (!freopen(path, "w", stderr)) _exit(126);
    alarm(SECONDS_EACH);
    execv(t->program, (char *const *)(uintptr_t)argv);
    _exit(127);
}

// Waits for a process. Returns its exit status, 128 + signal, or -1 when it has stopped.
static int finish(pid_t child) {
    int status;
    while (waitpid(child, &status, WUNTRACED) < 0) {
        if (errno != EINTR) die("cannot wait for", "a trainer");
    }
    if (WIFSTOPPED(status)) return -1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int run(place *p, const trainer *t, int how, const char *save, const char *at, const char *action,
               const char *trace) {
    const int status = finish(start(p, t, how, save, at, action, trace));
    read_text(p->err, p->said, sizeof p->said);
    return status;
}

// Whether a line of a text, which may go on after it, has these words.
static int line_has(const char *text, const char *words) {
    const char *at = strstr(text, words);
    return at && at < text + strcspn(text, "\n");
}

// Whether a message is one line that begins with the program's name. Before it may come that a damaged checkpoint is
// skipped, and that the log ends, with which training goes on.
static int one_line(const trainer *t, const char *text) {
    const size_t n = strlen(t->name);
    int lines = 0, ends = 0;
    for (; *text; text += strcspn(text, "\n") + (text[strcspn(text, "\n")] != 0)) {
        if (strncmp(text, t->name, n) || strncmp(text + n, ": ", 2)) return 0;
        if (line_has(text, "the log ends here")) ends++;
        else lines += !line_has(text, "skipping");
    }
    return ends <= 1 && (lines == 1 || (lines == 0 && ends == 1));
}

static void make_place(place *p, int number) {
    memset(p, 0, sizeof *p);
    snprintf(p->dir, sizeof p->dir, "%s/place-%d", work, number);
    if (mkdir(p->dir, 0777)) die("cannot make", p->dir);
    join(p->run, sizeof p->run, p->dir, "run");
    join(p->log, sizeof p->log, p->dir, "run/log");
    join(p->weights, sizeof p->weights, p->dir, "run/weights");
    join(p->second, sizeof p->second, p->dir, "second");
    join(p->out, sizeof p->out, p->dir, "out");
    join(p->err, sizeof p->err, p->dir, "err");
}

// An empty folder, or a copy of what the scene begins with.
static void prepare(const place *p, const scene *s) {
    remove_all(p->run);
    unlink(p->second);
    if (s->before[0]) shell("cp -R '%s' '%s'", s->before, p->run);
    else if (mkdir(p->run, 0777)) die("cannot make", p->run);
}

static int scene_how(const scene *s) {
    static const int how[N_SCENES] = {FRESH, RESUME, OVERWRITE};
    return how[s->kind];
}

// ----------------------------------------------------------------------------------------------------------- recording

// Runs a trainer without a fault and without the library: the right weights and the right log.
static void make_reference(trainer *t, place *p) {
    char help[65536];
    FILE *f;
    snprintf(help, sizeof help, "'%s' --help", t->program);
    if (!(f = popen(help, "r"))) die("cannot run", t->program);
    const size_t n = fread(help, 1, sizeof help - 1, f);
    help[n] = 0;
    pclose(f);
    t->overwrite = strstr(help, "--overwrite") != NULL;
    snprintf(t->weights, sizeof t->weights, "%s/%s.weights", work, t->name);
    snprintf(t->log, sizeof t->log, "%s/%s.csv", work, t->name);
    scene none = {.t = t};
    prepare(p, &none);
    if (run(p, t, FRESH, p->weights, NULL, NULL, NULL)) die(p->said, t->name);
    shell("cp '%s' '%s'", p->weights, t->weights);
    shell("cp '%s/log.csv' '%s'", p->log, t->log);
}

// Whether a run that dies after call n can be resumed.
static int resumes_after(place *p, const scene *s, int n) {
    char at[16];
    snprintf(at, sizeof at, "%d", n);
    prepare(p, s);
    run(p, s->t, scene_how(s), p->weights, at, "kill-after", NULL);
    return run(p, s->t, RESUME, p->weights, NULL, NULL, NULL) == 0;
}

// Reads the trace of a run.
static void read_calls(scene *s, const char *trace) {
    char line[2 * PATH_SIZE];
    FILE *f = fopen(trace, "r");
    if (!f) die("cannot read", trace);
    while (fgets(line, sizeof line, f)) {
        if (++s->n_calls > MAX_CALLS) die("more calls than there is room for in", trace);
        line[strcspn(line, "\n")] = 0;
        s->calls[s->n_calls] = strdup(strchr(line, ' ') + 1);
        if (strncmp(s->calls[s->n_calls], "write ", 6) || !strstr(line, "/log.csv")) continue;
        if (!s->first_row) s->first_row = s->n_calls;
        s->last_row = s->n_calls;
    }
    fclose(f);
}

// Finds the first call after `complete` that removes a part of a checkpoint.
static void find_removal(scene *s) {
    for (int i = s->complete; i <= s->n_calls && !s->first_removal; i++) {
        const char *call = s->calls[i];
        if (!strncmp(call, "unlink ", 7) && strstr(call, "/checkpoint-") && !strstr(call, ".tmp")) s->first_removal = i;
    }
}

// Whether a trainer takes no preloaded library: it is static, or has a sanitizer that wants to be the first. Says so.
static int cannot_preload(const trainer *t, const place *p) {
    char head[4096], why[PATH_SIZE];
    FILE *f = fopen(t->program, "rb");
    const size_t n = f ? fread(head, 1, sizeof head, f) : 0;
    if (f) fclose(f);
    const int sanitized = strstr(p->said, "ASan runtime") != NULL, dynamic = memmem(head, n, "/ld", 3) != NULL;
    if (dynamic && !sanitized) return 0;
    snprintf(why, sizeof why, "fault campaign: %s takes no preloaded library: it is %s", t->name,
             sanitized ? "sanitized" : "static");
    test_skip(why);
    return 1;
}

// Records a run of a trainer. Returns 0 where the library cannot work.
static int record(scene *s, const trainer *t, int kind, place *p) {
    char trace[PATH_SIZE], at[16];
    const scene *fresh = s - kind;
    s->t = t;
    s->kind = kind;
    if (kind != NEW) {  // begins with a run that died, or with one that ended
        snprintf(s->before, sizeof s->before, "%s/%s-%s", work, t->name, scene_name[kind]);
        snprintf(at, sizeof at, "%d", (3 * fresh->complete + fresh->n_calls) / 4);
        prepare(p, fresh);
        if (kind == RESUMED) run(p, t, FRESH, p->weights, at, "kill-after", NULL);
        else run(p, t, FRESH, p->weights, "", NULL, NULL);
        shell("cp -R '%s' '%s'", p->run, s->before);
    }
    snprintf(trace, sizeof trace, "%s/%s-%s.calls", work, t->name, scene_name[kind]);
    prepare(p, s);
    const int status = run(p, t, scene_how(s), p->weights, "", NULL, trace);
    if (access(trace, R_OK)) {
        CHECK(cannot_preload(t, p), p->said[0] ? p->said : "the library is preloaded");
        return 0;
    }
    read_calls(s, trace);
    CHECK(status == 0 && same_weights(p->weights, t->weights), "a recorded run without a fault has the right weights");
    if (run(p, t, RESUME, p->weights, NULL, NULL, NULL)) die(p->said, t->name);
    list(p->log, "", s->files);
    if (kind != NEW) {  // removing an earlier run comes first
        s->complete = fresh->complete + (s->n_calls > fresh->n_calls ? s->n_calls - fresh->n_calls : 0);
        find_removal(s);
        return 1;
    }
    int no = 0, yes = s->n_calls;  // after `no` calls a resume fails, after `yes` it succeeds
    while (yes - no > 1) {
        const int middle = (no + yes) / 2;
        if (resumes_after(p, s, middle)) yes = middle;
        else no = middle;
    }
    s->complete = yes;
    find_removal(s);
    return 1;
}

// --------------------------------------------------------------------------------------------------------------- cases

// Notes what is wrong; the first finding is the one that is told.
static void wrong(verdict *v, int lost, const char *what, const char *detail) {
    v->lost |= lost;
    if (v->failed++) return;
    snprintf(v->what, sizeof v->what, "%s%s%.200s", what, *detail ? ": " : "", detail);
    v->what[strcspn(v->what, "\n")] = 0;
}

// How the first run ended, and whether it may end so.
static void judge_end(verdict *v, const place *p, const scene *s, int status, int killed) {
    const trainer *t = s->t;
    char files[TEXT] = "", before[2 * TEXT] = "";
    v->ended = status > 1 ? 2 : status;
    if (killed && status != 128 + SIGKILL) wrong(v, 0, "the fault was not reached", p->said);
    else if (!killed && status > 1) wrong(v, 0, status == 128 + SIGALRM ? "did not end" : "crashed", p->said);
    else if (status == 1 && !one_line(t, p->said)) wrong(v, 0, "exit 1 with another message than one line", p->said);
    else if (status == 0 && !same_weights(p->weights, t->weights)) wrong(v, 1, "exit 0 with other weights", p->said);
    if (killed || !faults[v->fault].call || !strcmp(faults[v->fault].call, "unlink")) return;
    list(p->run, "", files);
    if (s->before[0]) list(s->before, "", before);
    const char *name = line_missing(files, before, 0);
    while (name && !strstr(name, ".tmp")) {
        snprintf(before + strlen(before), sizeof before - strlen(before), "%s\n", name);
        name = line_missing(files, before, 0);
    }
    if (name) wrong(v, 0, "a run that ended has left a temporary file", name);
}

// Weights, log and files at the end. What died while it removed an earlier run may be resumed as that run, with one
// checkpoint left.
static void judge_result(verdict *v, const place *p, const scene *s, const char *weights, int gaps) {
    char log[PATH_SIZE + 16], files[TEXT] = "";
    const char *name;
    join(log, sizeof log, p->log, "log.csv");
    if (!same_weights(weights, s->t->weights)) wrong(v, 1, "other weights", "");
    if (!same_log(log, s->t->log, gaps)) wrong(v, 1, "other rows in log.csv", "");
    list(p->log, "", files);
    if ((name = line_missing(files, s->files, 1))) wrong(v, 0, "left behind", name);
    if (s->kind == REPLACED || weights != p->weights) return;
    if ((name = line_missing(s->files, files, 0))) wrong(v, 0, "missing at the end", name);
}

// Resumes what a fault has left, or starts anew where that is allowed.
static void recover(verdict *v, place *p, const scene *s, int needed, int gaps) {
    int status = run(p, s->t, RESUME, p->weights, NULL, NULL, NULL);
    if (status && (needed || v->ended == 0)) {
        wrong(v, 1, "cannot be resumed", p->said);
        return;
    }
    if (status) {
        if (status != 1 || !one_line(s->t, p->said)) wrong(v, 0, "--resume fails with more than one line", p->said);
        status = run(p, s->t, OVERWRITE, p->weights, NULL, NULL, NULL);
        gaps = 0;
    }
    if (status) wrong(v, 1, "cannot be started anew", p->said);
    else judge_result(v, p, s, p->weights, gaps);
}

// How the library is told: an action, or the number of an error.
static const char *action_of(int fault) {
    static char number[16];
    if (faults[fault].action) return faults[fault].action;
    snprintf(number, sizeof number, "%d", faults[fault].error);
    return number;
}

// A fault strikes at call n.
static void strike(verdict *v, place *p, const scene *s, int n) {
    char at[16];
    const char *action = action_of(v->fault);
    const int power = !strcmp(action, "power");
    const int killed = power || !strcmp(action, "torn") || !strncmp(action, "kill", 4);
    snprintf(at, sizeof at, "%d%s", n, faults[v->fault].sticky ? "+" : "");
    prepare(p, s);
    const int status = run(p, s->t, scene_how(s), p->weights, at, action, NULL);
    judge_end(v, p, s, status, killed);
    const int gaps = power || (status == 1 && strstr(p->said, "log.csv") != NULL);
    const int since = power ? s->first_removal : s->complete;
    recover(v, p, s, s->kind == RESUMED || (since && n > since), gaps);
}

// While the first run stands before call n, a second one wants the same folder.
static void meet(verdict *v, place *p, const scene *s, int n) {
    char at[16], said[TEXT], path[PATH_SIZE + 8];
    const int resume = faults[v->fault].second == SECOND_RESUMED, within = n > s->first_row && n <= s->last_row;
    snprintf(at, sizeof at, "%d", n);
    prepare(p, s);
    const pid_t first = start(p, s->t, scene_how(s), p->weights, at, "stop", NULL);
    int status = finish(first);
    if (status >= 0) wrong(v, 0, "the fault was not reached", "");
    const int other = run(p, s->t, resume ? RESUME : FRESH, p->second, NULL, NULL, NULL);
    snprintf(path, sizeof path, "%s2", p->err);
    read_text(path, said, sizeof said);
    if (status < 0) {
        kill(first, SIGCONT);
        status = finish(first);
    }
    read_text(p->err, p->said, sizeof p->said);
    v->ended = other > 1 ? 2 : other;
    if (other > 1) wrong(v, 0, other == 128 + SIGALRM ? "the second run did not end" : "the second run crashed", said);
    if (status > 1) wrong(v, 0, "the first run crashed", p->said);
    if (other == 1 && !one_line(s->t, said)) wrong(v, 0, "the second run was not refused with one line", said);
    if (status == 1 && !one_line(s->t, p->said)) wrong(v, 0, "the first run was not refused with one line", p->said);
    if (within && other == 0) wrong(v, 1, "a second run was let in while the first one was at work", "");
    if (within && status != 0) wrong(v, 1, "the first run failed because of the second one", p->said);
    if (status && other) wrong(v, 1, "neither run succeeded", p->said);
    if (!resume && !status && !other) wrong(v, 1, "both runs succeeded in one folder", "");
    if (status == 0) judge_result(v, p, s, p->weights, 0);
    if (other == 0) judge_result(v, p, s, p->second, 0);
}

// A number that depends on the call and not on the digits in it.
static uint32_t signature(const char *call) {
    uint32_t h = 2166136261u;
    for (; *call; call++) {
        if (*call < '0' || *call > '9') h = (h ^ (unsigned char)*call) * 16777619u;
    }
    return h;
}

// Whether fault f strikes at call n: calls of its kind; not all: one of those that differ only in numbers.
static int chosen(const scene *s, int f, int n, int all) {
    const char *call = faults[f].call;
    int same = 0, before = 0;
    if (call && (strncmp(s->calls[n], call, strlen(call)) || s->calls[n][strlen(call)] != ' ')) return 0;
    if (faults[f].second == SECOND_NEW && s->kind != NEW) return 0;
    if (all) return 1;
    for (int i = 1; i <= s->n_calls; i++) {
        if (signature(s->calls[i]) != signature(s->calls[n])) continue;
        before += i < n;
        same++;
    }
    return before == (int)((signature(s->calls[n]) >> 8) + 7919u * (uint32_t)(f + 3 * s->kind)) % same;
}

// Puts in front of what is wrong where it was found.
static void locate(verdict *v, const scene *s, int n) {
    char what[sizeof v->what];
    const char *call = strstr(s->calls[n], "/run/");
    memcpy(what, v->what, sizeof what);
    snprintf(v->what, sizeof v->what, "%s, %s run, %s, call %d (%.*s %.60s): %.200s", s->t->name, scene_name[s->kind],
             faults[v->fault].name, n, (int)strcspn(s->calls[n], " "), s->calls[n], call ? call + 5 : "", what);
}

// The cases of one worker: every jobs-th. Verdicts go into a pipe.
static void worker(const scene *scenes, int n_scenes, int all, int number, int jobs, int pipe_end) {
    static place p;
    int k = 0;
    make_place(&p, 1 + number);
    for (int i = 0; i < n_scenes; i++) {
        for (int f = 0; f < N_FAULTS; f++) {
            for (int n = 1; n <= scenes[i].n_calls; n++) {
                const scene *s = &scenes[i];
                verdict v = {.fault = f};
                if (!all && s->t != scenes->t && (n + f) % 3) continue;
                if (!chosen(s, f, n, all) || k++ % jobs != number) continue;
                if (faults[f].second) meet(&v, &p, s, n);
                else strike(&v, &p, s, n);
                if (v.failed) locate(&v, s, n);
                if (write(pipe_end, &v, sizeof v) != (ssize_t)sizeof v) _exit(1);
            }
        }
    }
    _exit(0);
}

// ------------------------------------------------------------------------------------------------------------- results

typedef struct {
    int runs, ended[3], lost, failed;
} tally;

static void write_csv(const char *path, const tally *sum) {
    FILE *f = fopen(path, "w");
    if (!f) die("cannot write", path);
    fputs("fault,runs,went_on,failed,killed,lost_bits,other_faults\n", f);
    for (int i = 0; i < N_FAULTS; i++) {
        const tally *s = &sum[i];
        fprintf(f, "\"%s\",%d,%d,%d,%d,%d,%d\n", faults[i].name, s->runs, s->ended[0], s->ended[1], s->ended[2],
                s->lost, s->failed - s->lost);
    }
    if (fclose(f)) die("cannot write", path);
}

// Runs all cases on `jobs` processes.
static void campaign(const scene *scenes, int n_scenes, int all, int jobs, const char *csv) {
    static tally sum[N_FAULTS];
    verdict v;
    int ends[2], shown = 0, status;
    if (pipe(ends)) die("cannot make", "a pipe");
    fflush(stdout);
    for (int i = 0; i < jobs; i++) {
        const pid_t child = fork();
        if (child < 0) die("cannot start", "a worker");
        if (child == 0) worker(scenes, n_scenes, all, i, jobs, ends[1]);
    }
    close(ends[1]);
    while (read(ends[0], &v, sizeof v) == (ssize_t)sizeof v) {
        tally *s = &sum[v.fault];
        s->runs++;
        s->ended[v.ended]++;
        s->lost += v.lost;
        s->failed += v.failed != 0;
        test_passed += !v.failed;
        test_failed += v.failed != 0;
        if (v.failed && shown++ < 400) printf("FAIL %s\n", v.what);
    }
    for (int i = 0; i < jobs; i++) CHECK(wait(&status) > 0 && status == 0, "a worker ends well");
    for (int i = 0; i < N_FAULTS; i++) {
        const tally *s = &sum[i];
        printf("%-36s %5d runs: %d went on, %d failed, %d killed; %d lost bits, %d with other faults\n", faults[i].name,
               s->runs, s->ended[0], s->ended[1], s->ended[2], s->lost, s->failed - s->lost);
    }
    if (csv) write_csv(csv, sum);
}

static void write_language(void) {
    snprintf(text_file, sizeof text_file, "%s/text", work);
    FILE *f = fopen(text_file, "w");
    for (int i = 0; f && i < 150; i++) fprintf(f, "the %dth cat saw a dog. ", i * 7919 % 97);
    if (!f || fclose(f)) die("cannot write", text_file);
}

int main(int argc, char **argv) {
    static scene scenes[8 * N_SCENES];
    static trainer trainers[8];
    static place p;
    const char *csv = NULL;
    int all = 0, jobs = (int)sysconf(_SC_NPROCESSORS_ONLN), i = 1, n = 0;
#ifndef __linux__
    test_skip("fault campaign: the preloaded library is for Linux");
    return 77;
#endif
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (!strcmp(argv[i], "--all")) all = 1;
        else if (!strcmp(argv[i], "--csv") && i + 1 < argc) csv = argv[++i];
        else if (!strcmp(argv[i], "--jobs") && i + 1 < argc) jobs = atoi(argv[++i]);
        else break;
    }
    if (argc - i < 2 || argc - i > 9 || argv[i][0] == '-' || jobs < 1) {
        fprintf(stderr, "usage: faults [--all] [--csv FILE] [--jobs N] LIBRARY TRAINER...\n");
        return 2;
    }
    if (!(library = realpath(argv[i], NULL))) die("cannot find", argv[i]);
    // Memory is faster than a disk.
    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 1);
    if (!(work = realpath(test_make_dir(), NULL))) die("cannot make", "a temporary folder");
    setenv("OMP_NUM_THREADS", "1", 1);
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    write_language();
    make_place(&p, 0);
    for (int k = 0; ++i < argc; k++) {
        trainer *t = &trainers[k];
        const char *slash = strrchr(argv[i], '/');
        t->program = argv[i];
        t->name = slash ? slash + 1 : argv[i];
        make_reference(t, &p);
        for (int kind = 0; kind < N_SCENES; kind++) {
            if (kind == REPLACED && !t->overwrite) continue;
            if (record(&scenes[n], t, kind, &p)) n++;
            else break;
        }
    }
    if (n) campaign(scenes, n, all, jobs, csv);
    test_remove_dir(work);
    return test_summary();
}
