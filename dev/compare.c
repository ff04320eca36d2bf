// compare.c -- several training runs side by side: one table on stdout, compare.csv, compare_summary.csv and
// compare.svg in a folder.
//
//     compare --out out --title "784-512x3-10, Fashion-MNIST" none=out/none pathcond=out/pathcond enorm=out/enorm
//
// Each run is NAME=LOGDIR. LOGDIR/log.csv (common/log.h) gives the curves: the rows with split "train" and "test"
// are the evaluations at an epoch, rows with split "step" are left out; when an epoch was evaluated twice (a resumed
// run) the last one counts. LOGDIR/report.json, when it is there, gives the seconds, the samples per second and the
// seconds spent rescaling (rescale.seconds if the report has it, else seconds_diag_g + seconds_solve +
// seconds_apply). What is not known prints n/a.
//
// The first run is the baseline: its last training loss is the target, unless --target-loss sets another. "Epochs
// to target" is the first evaluated epoch whose training loss is at most the target; nothing is interpolated.
//
// Exit status: 0, 1 when a log is missing, empty or garbled or a file cannot be written, 2 for usage errors.
//
// Build: cc -std=c11 -D_GNU_SOURCE dev/compare.c -o compare -lm
#include "../common/cli.h"
#include "../common/log.h"
#include "plot.h"

enum { MAX_RUNS = 16, MAX_NAME = 40 };
static const double LARGEST = 1e300;   // of an epoch and of a loss that is drawn: differences and products stay finite

// ---------------------------------------------------------------------------------------------------------------
// Runs

typedef struct {
    double epoch, train_loss, test_loss, test_accuracy;    // LOG_NA when not evaluated
} point;

typedef struct {
    char name[4 * MAX_NAME + 8];   // UTF-8, at most MAX_NAME characters
    int width;                     // characters of the name
    const char *dir;
    point *points;                 // by increasing epoch
    int n_points;
    double seconds, rescale_seconds, samples_per_s;         // from report.json, LOG_NA when it does not say
    double epochs_to_target;       // LOG_NA: not reached
    double best_loss, best_loss_epoch, best_accuracy, best_accuracy_epoch;    // of the test set
} run;

// Whether a number can be drawn and compared.
static int known(double v) {
    return v != LOG_NA && isfinite(v);
}

// Prints an error as every program here does and exits 1.
LOG_PRINTF(1, 2) static void fail(const char *format, ...) {
    va_list args;
    char text[MESSAGE_LINE];
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    message_print("compare", "%s", text);
    exit(1);
}

// Memory or the end of the program.
static void *grow(void *memory, size_t size) {
    void *p = realloc(memory, size);
    if (!p) fail("out of memory");
    return p;
}

// The point of an epoch, made and put in its place when the run has none yet.
static point *point_at(run *r, double epoch) {
    int at = r->n_points;
    while (at > 0 && r->points[at - 1].epoch > epoch) at--;
    if (at > 0 && r->points[at - 1].epoch == epoch) return &r->points[at - 1];
    if ((r->n_points & (r->n_points - 1)) == 0) {              // full at every power of two
        r->points = grow(r->points, sizeof *r->points * (size_t)(r->n_points ? 2 * r->n_points : 1));
    }
    memmove(&r->points[at + 1], &r->points[at], sizeof *r->points * (size_t)(r->n_points - at));
    r->n_points++;
    r->points[at] = (point){epoch, LOG_NA, LOG_NA, LOG_NA};
    return &r->points[at];
}

// Reads one number of a row: a number, inf, nan or n/a. Returns 0 when it is none of these.
static int read_field(const char *text, double *out) {
    char *end = NULL;
    *out = LOG_NA;
    if (!strcmp(text, "n/a")) return 1;
    *out = strtod(text, &end);
    return end != text && !*end;
}

// Takes one line of the log, without its end of line, into the run. Returns 0 when it is not a row.
static int take_row(run *r, char *line) {
    enum { STEP, EPOCH, SPLIT, LOSS, ACCURACY, N_FIELDS = 9 };
    char *field[N_FIELDS];
    double value[N_FIELDS];
    for (int i = 0; i < N_FIELDS; i++) {
        field[i] = strsep(&line, ",");
        if (!field[i] || (i != SPLIT && !read_field(field[i], &value[i]))) return 0;
    }
    const int train = !strcmp(field[SPLIT], "train"), test = !strcmp(field[SPLIT], "test");
    if (line || !known(value[EPOCH]) || value[EPOCH] < 0 || value[EPOCH] > LARGEST) return 0;
    if (!train && !test) return !strcmp(field[SPLIT], "step");
    point *p = point_at(r, value[EPOCH]);
    if (train) p->train_loss = value[LOSS];
    if (test) {
        p->test_loss = value[LOSS];
        p->test_accuracy = value[ACCURACY];
    }
    return 1;
}

// Reads LOGDIR/log.csv. A last line without its end of line belongs to a run that was killed or is still going and is
// left out.
static void read_log(run *r) {
    char path[LOG_PATH], *line = NULL;
    size_t size = 0;
    ssize_t len = 0;
    long number = 0;
    snprintf(path, sizeof path, "%s/log.csv", r->dir);
    FILE *f = fopen(path, "r");
    if (!f) fail("%s: cannot read the log of run '%s': %s", path, r->name, strerror(errno));
    while ((len = getline(&line, &size, f)) > 0 && line[len - 1] == '\n') {
        line[--len] = 0;
        if (len > 0 && line[len - 1] == '\r') line[--len] = 0;    // an editor left CR LF
        number++;
        if (number == 1 && strcmp(line, LOG_CSV_HEADER)) {
            fail("%s: not a training log, its first line should be %s", path, LOG_CSV_HEADER);
        }
        if (number > 1 && ((size_t)len != strlen(line) || !take_row(r, line))) {
            fail("%s: line %ld is not a row of the log", path, number);
        }
    }
    if (ferror(f)) fail("%s: cannot read: %s", path, strerror(errno));
    if (number == 0) fail("%s: the log is empty", path);
    if (r->n_points == 0) fail("%s: the log has no evaluation yet", path);
    free(line);
    fclose(f);
}

// ---------------------------------------------------------------------------------------------------------------
// Reports: as much JSON as it takes to find numbers by their path

typedef struct {
    const char *at;                // next character
    const char *wanted;            // "train.seconds"
    char here[256];                // path of the value that is being read
    double found;                  // LOG_NA until it was there
    int depth;
} json;

static void json_blank(json *j) {
    j->at += strspn(j->at, " \t\r\n");
}

// A string. key: appended to the path when not NULL and short enough. Returns 0 when it is none.
static int json_text(json *j, char *key, size_t size) {
    size_t n = 0;
    if (*j->at++ != '"') return 0;
    while (*j->at && *j->at != '"' && (unsigned char)*j->at >= 0x20) {
        if (*j->at == '\\' && !*++j->at) return 0;
        if (key && n + 1 < size) key[n++] = *j->at;
        j->at++;
    }
    if (key && size) key[n] = 0;
    return *j->at++ == '"';
}

// Any value, objects and arrays with all they hold. Returns 0 when the text is not JSON.
static int json_value(json *j) {
    json_blank(j);
    const char c = *j->at;
    if (c == '"') return json_text(j, NULL, 0);
    if (c == '{' || c == '[') {
        const char last = c == '{' ? '}' : ']';
        const size_t outer = strlen(j->here);
        int ok = ++j->depth <= 64;
        j->at++;
        json_blank(j);
        if (*j->at == last) ok = 2;
        while (ok == 1) {
            j->here[outer] = 0;
            if (c == '{') {
                json_blank(j);
                if (outer && outer + 1 < sizeof j->here) strcat(j->here, ".");
                const size_t start = strlen(j->here);
                ok = json_text(j, j->here + start, sizeof j->here - start);
                json_blank(j);
                ok = ok && *j->at++ == ':';
            } else if (outer + 2 < sizeof j->here) {
                strcat(j->here, "[]");
            }
            ok = ok && json_value(j);
            json_blank(j);
            if (ok && *j->at == last) ok = 2;
            else ok = ok && *j->at++ == ',';
        }
        j->here[outer] = 0;
        j->depth--;
        j->at += ok == 2;
        return ok == 2;
    }
    const size_t n = strspn(j->at, "-+.0123456789eE");
    if (n) {
        char *end = NULL;
        const double v = strtod(j->at, &end);
        if (end != j->at + n) return 0;
        if (!strcmp(j->here, j->wanted)) j->found = v;
        j->at = end;
        return 1;
    }
    const char *words[3] = {"null", "true", "false"};
    for (int i = 0; i < 3; i++) {
        if (strncmp(j->at, words[i], strlen(words[i]))) continue;
        j->at += strlen(words[i]);
        return 1;
    }
    return 0;
}

// The number at a path of a JSON text, LOG_NA when there is none. *ok: 0 when the text is not one JSON value.
static double json_find(const char *text, const char *wanted, int *ok) {
    json j = {text, wanted, "", LOG_NA, 0};
    *ok = json_value(&j);
    json_blank(&j);
    *ok = *ok && !*j.at;
    return j.found;
}

// Reads LOGDIR/report.json if it is there.
static void read_report(run *r) {
    static char text[1 << 20];
    char path[LOG_PATH];
    int ok = 1;
    r->seconds = r->rescale_seconds = r->samples_per_s = LOG_NA;
    snprintf(path, sizeof path, "%s/report.json", r->dir);
    FILE *f = fopen(path, "r");
    if (!f && errno == ENOENT) return;
    const size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (!f || ferror(f)) fail("%s: cannot read: %s", path, strerror(errno));
    fclose(f);
    text[n] = 0;
    r->seconds = json_find(text, "train.seconds", &ok);
    if (!ok || strlen(text) != n) fail("%s: not a JSON report", path);
    r->samples_per_s = json_find(text, "train.samples_per_second", &ok);
    r->rescale_seconds = json_find(text, "rescale.seconds", &ok);
    if (r->rescale_seconds != LOG_NA) return;
    const char *parts[3] = {"rescale.seconds_diag_g", "rescale.seconds_solve", "rescale.seconds_apply"};
    for (int i = 0; i < 3; i++) {
        const double v = json_find(text, parts[i], &ok);
        if (v != LOG_NA) r->rescale_seconds = v + (r->rescale_seconds == LOG_NA ? 0 : r->rescale_seconds);
    }
}

// Copies a name, at most MAX_NAME characters of it, cleaned as message_clean does. Returns its characters.
static int copy_name(char *out, const char *text, size_t len) {
    int characters = 0;
    for (size_t i = 0; i < len && characters < MAX_NAME; characters++) {
        const int n = message_utf8(text + i);
        if (n == 0 || i + (size_t)n > len || message_is_control(text + i, n)) {
            *out++ = '?';
            i += n ? (size_t)n : 1;
            continue;
        }
        memcpy(out, text + i, (size_t)n);
        out += n;
        i += (size_t)n;
    }
    *out = 0;
    return characters;
}

// Splits NAME=LOGDIR and reads the run.
static void read_run(run *runs, int index, const char *argument) {
    run *r = &runs[index];
    const char *equals = strchr(argument, '=');
    if (!equals || equals == argument || !equals[1])
        cli_usage_error("compare", "expected NAME=LOGDIR, got '%s'", argument);
    memset(r, 0, sizeof *r);
    r->width = copy_name(r->name, argument, (size_t)(equals - argument));
    r->dir = equals + 1;
    for (int i = 0; i < index; i++) {
        if (!strcmp(runs[i].name, r->name)) cli_usage_error("compare", "two runs are called '%s'", r->name);
    }
    if (strlen(r->dir) + 16 > LOG_PATH)
        cli_usage_error("compare", "the folder of run '%s' has too long a name", r->name);
    read_log(r);
    read_report(r);
}

// The last training loss of a run that is a number, LOG_NA when there is none.
static double final_train_loss(const run *r) {
    for (int i = r->n_points - 1; i >= 0; i--) {
        if (known(r->points[i].train_loss)) return r->points[i].train_loss;
    }
    return LOG_NA;
}

// Fills what follows from the curves: epochs to the target and the best test results.
static void summarise(run *r, double target) {
    r->epochs_to_target = r->best_loss = r->best_loss_epoch = r->best_accuracy = r->best_accuracy_epoch = LOG_NA;
    for (int i = 0; i < r->n_points; i++) {
        const point *p = &r->points[i];
        if (known(target) && known(p->train_loss) && p->train_loss <= target && r->epochs_to_target == LOG_NA) {
            r->epochs_to_target = p->epoch;
        }
        if (known(p->test_loss) && (r->best_loss == LOG_NA || p->test_loss < r->best_loss)) {
            r->best_loss = p->test_loss;
            r->best_loss_epoch = p->epoch;
        }
        if (known(p->test_accuracy) && p->test_accuracy > r->best_accuracy) {
            r->best_accuracy = p->test_accuracy;
            r->best_accuracy_epoch = p->epoch;
        }
    }
}

// The epochs of all runs, increasing, each once. Returns how many; the caller frees *epochs.
static int all_epochs(const run *runs, int n, double **epochs) {
    run merged;
    memset(&merged, 0, sizeof merged);
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < runs[i].n_points; k++) point_at(&merged, runs[i].points[k].epoch);
    }
    *epochs = grow(NULL, sizeof **epochs * (size_t)merged.n_points);
    for (int k = 0; k < merged.n_points; k++) (*epochs)[k] = merged.points[k].epoch;
    free(merged.points);
    return merged.n_points;
}

// The point of a run at an epoch, NULL when it was not evaluated there.
static const point *find_point(const run *r, double epoch) {
    for (int i = 0; i < r->n_points; i++) {
        if (r->points[i].epoch == epoch) return &r->points[i];
    }
    return NULL;
}

// Whether any run measured an accuracy (an autoencoder does not).
static int have_accuracy(const run *runs, int n) {
    for (int i = 0; i < n; i++) {
        if (runs[i].best_accuracy != LOG_NA) return 1;
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------
// Table

enum { LABEL = 17, CELL = 9 };     // columns of the first column and of each number

// A number of four or five digits for a column of the table; n/a when it is not known.
static const char *cell(char *out, size_t size, double v) {
    if (v == LOG_NA) snprintf(out, size, "n/a");
    else if (isnan(v)) snprintf(out, size, "nan");
    else if (isinf(v)) snprintf(out, size, "%s", v > 0 ? "inf" : "-inf");
    else if (v != 0 && (fabs(v) < 1e-3 || fabs(v) >= 1e4)) snprintf(out, size, "%.2e", v);
    else snprintf(out, size, "%.4f", v);
    return out;
}

// A fraction as percent.
static const char *percent(char *out, size_t size, double v) {
    if (!known(v)) return cell(out, size, v);
    snprintf(out, size, "%.2f%%", 100 * v);
    return out;
}

// One row below the curves: a label and one text per run, right-aligned with its columns.
static void print_row(const char *label, char text[][64], int n, int width) {
    printf("%-*s", LABEL, label);
    for (int i = 0; i < n; i++) printf(" |%*s", width, text[i]);
    putchar('\n');
}

// A line between the parts of the table.
static void print_rule(int n, int width) {
    for (int i = 0; i < LABEL; i++) putchar('-');
    for (int i = 0; i < n; i++) {
        fputs("-+", stdout);
        for (int k = 0; k < width; k++) putchar('-');
    }
    putchar('\n');
}

// Whether row k of n is printed when at most max_rows are: evenly spaced, the first and the last always.
static int shows_row(int k, int n, int max_rows) {
    if (max_rows == 0 || n <= max_rows || k == n - 1) return 1;
    return (long long)k * (max_rows - 1) / (n - 1) != (long long)(k - 1) * (max_rows - 1) / (n - 1) || k == 0;
}

// The curves: one line per epoch.
static void print_curves(const run *runs, int n, int width, int max_rows) {
    const int accuracy = have_accuracy(runs, n);
    double *epochs = NULL;
    const int n_epochs = all_epochs(runs, n, &epochs);
    char a[64], b[64], c[64];
    printf("%-*s", LABEL, "loss by epoch");
    for (int i = 0; i < n; i++) {
        printf(" |%*s%*s", width - (accuracy ? 2 : 1) * CELL, "train", CELL, "test");
        if (accuracy) printf("%*s", CELL, "accuracy");
    }
    putchar('\n');
    print_rule(n, width);
    for (int k = 0; k < n_epochs; k++) {
        if (!shows_row(k, n_epochs, max_rows)) continue;
        printf("%-*.6g", LABEL, epochs[k]);
        for (int i = 0; i < n; i++) {
            const point none = {0, LOG_NA, LOG_NA, LOG_NA}, *p = find_point(&runs[i], epochs[k]);
            if (!p) p = &none;
            printf(" |%*s%*s", width - (accuracy ? 2 : 1) * CELL, cell(a, sizeof a, p->train_loss), CELL,
                   cell(b, sizeof b, p->test_loss));
            if (accuracy) printf("%*s", CELL, percent(c, sizeof c, p->test_accuracy));
        }
        putchar('\n');
    }
    free(epochs);
}

// The whole table.
static void print_table(const run *runs, int n, const char *title, double target, int own_target, int max_rows) {
    char text[MAX_RUNS][64], number[64];
    const int accuracy = have_accuracy(runs, n);
    int width = (accuracy ? 3 : 2) * CELL;
    for (int i = 0; i < n; i++) {
        if (runs[i].width + 1 > width) width = runs[i].width + 1;
    }
    if (title) {
        char shown[MESSAGE_LINE];
        cli_printable(shown, sizeof shown, title);
        printf("%s\n", shown);
    }
    printf("%-*s", LABEL, "run");
    for (int i = 0; i < n; i++) printf(" |%*s%s", width - runs[i].width, "", runs[i].name);
    putchar('\n');
    print_curves(runs, n, width, max_rows);
    print_rule(n, width);

    for (int i = 0; i < n; i++) {
        if (runs[i].epochs_to_target == LOG_NA) snprintf(text[i], sizeof *text, known(target) ? "not reached" : "n/a");
        else snprintf(text[i], sizeof *text, "%.6g", runs[i].epochs_to_target);
    }
    print_row("epochs to target", text, n, width);
    for (int i = 0; i < n; i++) {
        if (runs[i].best_accuracy == LOG_NA) snprintf(text[i], sizeof *text, "n/a");
        else
            snprintf(text[i], sizeof *text, "%.2f%% (ep. %.6g)", 100 * runs[i].best_accuracy,
                     runs[i].best_accuracy_epoch);
    }
    if (accuracy) print_row("best accuracy", text, n, width);
    for (int i = 0; i < n; i++) {
        cell(number, sizeof number, runs[i].best_loss);
        if (runs[i].best_loss == LOG_NA) snprintf(text[i], sizeof *text, "n/a");
        else snprintf(text[i], sizeof *text, "%.16s (ep. %.6g)", number, runs[i].best_loss_epoch);
    }
    print_row("best test loss", text, n, width);
    for (int i = 0; i < n; i++) log_duration(text[i], runs[i].seconds);
    print_row("total time", text, n, width);
    for (int i = 0; i < n; i++) log_duration(text[i], runs[i].rescale_seconds);
    print_row("of it rescaling", text, n, width);
    for (int i = 0; i < n; i++) {
        if (known(runs[i].samples_per_s)) snprintf(text[i], sizeof *text, "%.0f", runs[i].samples_per_s);
        else snprintf(text[i], sizeof *text, "n/a");
    }
    print_row("samples/s", text, n, width);
    if (!known(target)) printf("target: none, run %s has no training loss\n", runs[0].name);
    else if (own_target) printf("target: train loss <= %s\n", cell(number, sizeof number, target));
    else
        printf("target: train loss <= %s, the last one of run %s\n", cell(number, sizeof number, target), runs[0].name);
}

// ---------------------------------------------------------------------------------------------------------------
// CSV

// A name, quoted when it has to be.
static void csv_name(FILE *f, const char *name) {
    if (!strpbrk(name, ",\"")) {
        fputs(name, f);
        return;
    }
    fputc('"', f);
    for (; *name; name++) fprintf(f, *name == '"' ? "\"\"" : "%c", *name);
    fputc('"', f);
}

static void write_curves(FILE *f, const run *runs, int n) {
    fputs("run,epoch,train_loss,test_loss,test_accuracy\n", f);
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < runs[i].n_points; k++) {
            const point *p = &runs[i].points[k];
            csv_name(f, runs[i].name);
            log_field(f, p->epoch);
            log_field(f, p->train_loss);
            log_field(f, p->test_loss);
            log_field(f, p->test_accuracy);
            fputc('\n', f);
        }
    }
}

static void write_summary(FILE *f, const run *runs, int n, double target) {
    fputs("run,target_train_loss,epochs_to_target,best_test_accuracy,best_test_accuracy_epoch,best_test_loss,"
          "best_test_loss_epoch,seconds,rescale_seconds,samples_per_s\n", f);
    for (int i = 0; i < n; i++) {
        const run *r = &runs[i];
        const double v[9] = {target, r->epochs_to_target, r->best_accuracy, r->best_accuracy_epoch, r->best_loss,
                             r->best_loss_epoch, r->seconds, r->rescale_seconds, r->samples_per_s};
        csv_name(f, r->name);
        for (int k = 0; k < 9; k++) log_field(f, v[k]);
        fputc('\n', f);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// SVG

enum { TRAIN_LOSS, TEST_ACCURACY, TEST_LOSS };     // what a panel shows

typedef struct {
    double left, top, width, height;               // plot area, pixels
    int what;
    int log_axis;
    double lo, hi;                                 // y range, in log10 when log_axis
    double x_lo, x_hi;                             // epochs
    double y_ticks[PLOT_TICKS];
    int n_ticks;
    double x_step;
    int clipped;                                   // an accuracy of epoch 0 lies outside of lo to hi
} panel;

// What a panel draws of a point: accuracies in percent, other numbers where ranges can be made of them; else LOG_NA.
static double panel_value(const panel *p, const point *q) {
    if (p->what == TEST_ACCURACY) {
        const double a = q->test_accuracy;
        return known(a) && a >= 0 && a <= 1 ? 100 * a : LOG_NA;
    }
    const double v = p->what == TRAIN_LOSS ? q->train_loss : q->test_loss;
    return known(v) && fabs(v) <= LARGEST ? v : LOG_NA;
}

// Pixels. The ranges end PLOT_INSET before the frame.
static double panel_x(const panel *p, double epoch) {
    return p->left + PLOT_INSET + (p->width - 2 * PLOT_INSET) * (epoch - p->x_lo) / (p->x_hi - p->x_lo);
}
static double panel_y(const panel *p, double v) {
    const double y = p->log_axis ? log10(v) : v;
    return p->top + PLOT_INSET + (p->height - 2 * PLOT_INSET) * (1 - (y - p->lo) / (p->hi - p->lo));
}

// Whether a value has a place in the panel: all have, but for an accuracy of epoch 0 (scale_panel).
static int in_range(const panel *p, double v) {
    if (!known(v)) return 0;
    const double y = p->log_axis ? log10(v) : v;
    return y >= p->lo && y <= p->hi;
}

// Ticks at evenly spaced round values between lo and hi (of the value itself, also on a log axis).
static void linear_ticks(panel *p, double lo, double hi) {
    p->n_ticks = plot_ticks(p->y_ticks, lo, hi, plot_step(hi - lo, 5));
}

// Ticks of a log axis: powers of ten, with 2 and 5 between when there are few, evenly spaced values within a decade.
static void log_ticks(panel *p) {
    const double decades = p->hi - p->lo;
    const int per_decade = decades < 3 ? 3 : 1;
    const double digits[3] = {1, 2, 5};
    const int stride = per_decade == 3 ? 1 : (int)ceil(decades / 7);
    p->n_ticks = 0;
    for (int e = (int)floor(p->lo); e <= (int)ceil(p->hi); e++) {
        for (int d = 0; d < per_decade; d++) {
            const double v = digits[d] * pow(10, e);
            if (log10(v) < p->lo - 1e-9 || log10(v) > p->hi + 1e-9 || e % stride || p->n_ticks == PLOT_TICKS) continue;
            p->y_ticks[p->n_ticks++] = v;
        }
    }
    const double lo = pow(10, p->lo), hi = pow(10, p->hi);
    if (p->n_ticks < 4 && lo >= DBL_MIN) linear_ticks(p, lo, hi);  // below it no digits are left to space ticks with
}

// Chooses the ranges and ticks of a panel. The accuracy before training would squeeze the rest of its curve: with
// three or more points after epoch 0 the range is theirs.
static void scale_panel(panel *p, const run *runs, int n) {
    double lo = HUGE_VAL, hi = -HUGE_VAL, x_hi = 0, first = HUGE_VAL;
    double lowest = HUGE_VAL, highest = -HUGE_VAL;
    int positive = 1, later = 0;
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < runs[i].n_points; k++) {
            later += runs[i].points[k].epoch > 0 && known(panel_value(p, &runs[i].points[k]));
        }
    }
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < runs[i].n_points; k++) {
            const double v = panel_value(p, &runs[i].points[k]), epoch = runs[i].points[k].epoch;
            if (epoch > x_hi) x_hi = epoch;
            if (epoch < first) first = epoch;
            if (!known(v)) continue;
            if (v <= 0) positive = 0;
            if (p->what == TEST_ACCURACY && v < lowest) lowest = v;
            if (p->what == TEST_ACCURACY && v > highest) highest = v;
            if (p->what == TEST_ACCURACY && later >= 3 && epoch == 0) continue;
            if (v < lo) lo = v;
            if (v > hi) hi = v;
        }
    }
    p->x_lo = x_hi > first && first >= 0.1 * x_hi ? first : 0;
    p->x_hi = x_hi > 0 ? x_hi : 1;
    p->x_step = fmax(plot_step(p->x_hi - p->x_lo, 5), p->x_hi >= 2);
    p->log_axis = p->what != TEST_ACCURACY && positive && hi > 0;
    p->n_ticks = 0;
    if (lo > hi) {  // nothing to draw
        lo = 0;
        hi = 1;
        p->log_axis = 0;
    }
    if (p->log_axis) {
        lo = log10(lo);
        hi = log10(hi);
    }
    double margin = 0.06 * (hi - lo);
    if (p->log_axis && margin < 1e-3) margin = 0.05;           // curves that are flat
    if (!p->log_axis && margin < 1e-4 * fabs(hi)) margin = 0.1 * fabs(hi);
    if (margin == 0) margin = 0.5;
    p->lo = lo - margin;
    p->hi = hi + margin;
    if (p->what == TEST_ACCURACY && p->lo < 0) p->lo = 0;
    if (p->what == TEST_ACCURACY && p->hi > 100) p->hi = 100;
    p->clipped = lowest < p->lo || highest > p->hi;
    if (p->log_axis) log_ticks(p);
    else linear_ticks(p, p->lo, p->hi);
}

// Grid, frame, tick labels and axis titles.
static void draw_axes(FILE *f, const panel *p, const char *y_title) {
    const double right = p->left + p->width, bottom = p->top + p->height;
    char text[40];
    for (int i = 0; i < p->n_ticks; i++) {
        const double v = p->y_ticks[i], y = panel_y(p, v);
        snprintf(text, sizeof text, "%.6g", v);                // 0.30000000000000004 is 0.3
        cli_number(text, sizeof text, strtod(text, NULL));
        fprintf(f, "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", p->left, y, right, y);
        fprintf(f, "<text class=\"tick\" text-anchor=\"end\" x=\"%.1f\" y=\"%.1f\">%s%s</text>\n", p->left - 8, y + 4,
                text, p->what == TEST_ACCURACY ? "%" : "");
    }
    double epochs[PLOT_TICKS];
    const int n_epochs = plot_ticks(epochs, p->x_lo, p->x_hi, p->x_step);
    for (int i = 0; i < n_epochs; i++) {
        const double x = panel_x(p, epochs[i]);
        fprintf(f, "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x, p->top, x, bottom);
        fprintf(f, "<text class=\"tick\" text-anchor=\"middle\" x=\"%.1f\" y=\"%.1f\">%.6g</text>\n", x, bottom + 18,
                epochs[i]);
    }
    if (p->clipped) plot_label(f, "note", "end", right, p->top - 10, "epoch 0 is outside of this range");
    fprintf(f, "<path class=\"axis\" d=\"M%.1f %.1fV%.1fH%.1f\"/>\n", p->left, p->top, bottom, right);
    plot_x_title(f, p->left + p->width / 2, bottom + 38, "epoch");
    plot_y_title(f, p->left - 52, p->top + p->height / 2, y_title);
}

// The curve of one run: a line, broken where a value is missing, and at most about a dozen markers, which are
// staggered between the runs.
static void draw_curve(FILE *f, const panel *p, const run *r, int index, int n) {
    int drawn = 0, pen_down = 0;
    for (int k = 0; k < r->n_points; k++) {
        const double v = panel_value(p, &r->points[k]);
        if (!in_range(p, v)) {
            pen_down = 0;
            continue;
        }
        if (!drawn) plot_open_curve(f, index);
        fprintf(f, "%s%.2f %.2f", pen_down ? "L" : "M", panel_x(p, r->points[k].epoch), panel_y(p, v));
        drawn = 1;
        pen_down = 1;
    }
    if (!drawn) return;
    fputs("\"/>\n", f);
    const int stride = (r->n_points + 11) / 12, offset = stride * index / n;
    for (int k = offset; k < r->n_points; k += stride) {
        const double v = panel_value(p, &r->points[k]);
        if (in_range(p, v)) plot_marker(f, index, panel_x(p, r->points[k].epoch), panel_y(p, v));
    }
}

// One panel with all curves. target: of the training loss, LOG_NA for none.
static void draw_panel(FILE *f, panel *p, const run *runs, int n, double target) {
    const char *heading = p->what == TEST_ACCURACY ? "Test accuracy" : "Training loss";
    char text[96];
    if (p->what == TEST_LOSS) heading = "Test loss";
    scale_panel(p, runs, n);
    snprintf(text, sizeof text, "%s%s", heading, p->log_axis ? " (log scale)" : "");
    draw_axes(f, p, text);
    const int target_shown = p->what == TRAIN_LOSS && (target > 0 || !p->log_axis) && in_range(p, target);
    if (target_shown) {
        const double right = p->left + p->width, y = panel_y(p, target);
        fprintf(f, "<line class=\"target\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", p->left, y, right, y);
        plot_label(f, "note", "start", right + 8, y - 2, "target");
        plot_label(f, "note", "start", right + 8, y + 12, cell(text, sizeof text, target));
    }
    for (int i = 0; i < n; i++) draw_curve(f, p, &runs[i], i, n);
}

enum { WIDTH = 960, PLOT_HEIGHT = 300, LEGEND_ROW = 24 };

// Pixels that a legend entry takes: line, gap, text (at most 8 pixels a character), gap to the next.
static double legend_width(const run *r) {
    return 44 + 7.4 * r->width + 26;
}

// The legend in rows under the title, or only counts its rows when f is NULL.
static int draw_legend(FILE *f, const run *runs, int n, double left, double top) {
    double x = left, y = top;
    int rows = 1;
    for (int i = 0; i < n; i++) {
        if (x > left && x + legend_width(&runs[i]) > WIDTH - 20) {
            x = left;
            y += LEGEND_ROW;
            rows++;
        }
        if (f) plot_legend_entry(f, i, x, y, runs[i].name);
        x += legend_width(&runs[i]);
    }
    return rows;
}

// Whether any run was evaluated on a test set.
static int have_test(const run *runs, int n) {
    for (int i = 0; i < n; i++) {
        if (runs[i].best_loss != LOG_NA || runs[i].best_accuracy != LOG_NA) return 1;
    }
    return 0;
}

// Two panels: training loss, and test accuracy or (test_loss != 0, or no accuracies) test loss. Without a test set:
// one wide panel.
static void write_svg(FILE *f, const run *runs, int n, const char *title, double target, int test_loss) {
    const double left = 76, title_height = title ? 40 : 14;
    const int rows = draw_legend(NULL, runs, n, left, 0);
    const double top = title_height + 16 + rows * LEGEND_ROW + 20, height = top + PLOT_HEIGHT + 54;
    const int panels = have_test(runs, n) ? 2 : 1;
    const double width = panels == 2 ? (WIDTH - left - 24 - 136) / 2 : WIDTH - left - 80;
    panel loss = {.left = left, .top = top, .width = width, .height = PLOT_HEIGHT, .what = TRAIN_LOSS};
    panel test = loss;
    test.left = left + width + 136;
    test.what = have_accuracy(runs, n) && !test_loss ? TEST_ACCURACY : TEST_LOSS;
    plot_begin(f, WIDTH, height, title ? title : "Training runs compared");
    if (title) plot_label(f, "title", "start", left, 34, title);
    draw_legend(f, runs, n, left, title_height + 20);
    draw_panel(f, &loss, runs, n, target);
    if (panels == 2) draw_panel(f, &test, runs, n, LOG_NA);
    fputs("</svg>\n", f);
}

// ---------------------------------------------------------------------------------------------------------------
// Command line

// Opens DIR/NAME for writing; it appears when finish succeeds.
static void start(log_file *file, const char *dir, const char *name) {
    char path[LOG_PATH], err[LOG_PATH + 128];
    snprintf(path, sizeof path, "%.4000s/%s", dir, name);
    if (log_file_open(file, path, err, sizeof err)) fail("%s", err);
}
static void finish(log_file *file) {
    char err[LOG_PATH + 128];
    if (log_file_close(file, err, sizeof err)) fail("%s", err);
}

int main(int argc, char **argv) {
    static run runs[MAX_RUNS];
    static cli_rest rest;
    static const char *out_dir = NULL, *title = NULL;
    static double target = NAN;
    static int max_rows = 40, test_loss = 0;
    static cli_option options[] = {
        CLI_REST(&rest, "NAME=LOGDIR ...", 1, MAX_RUNS, "the runs; the first one is the baseline"),
        CLI_DOUBLE("target-loss", &target, "X", CLI_NO_MIN, CLI_NO_MAX, 0,
                   "count epochs to this training loss (default: the last one of the baseline)"),
        CLI_STRING("out", &out_dir, "DIR", "write compare.csv, compare_summary.csv and compare.svg there"),
        CLI_STRING("title", &title, "TEXT", "title of table and plot"),
        CLI_FLAG("test-loss", &test_loss, "plot the test loss, not the accuracy"),
        CLI_INT("max-rows", &max_rows, "N", 0, CLI_NO_MAX, "lines of the table for the epochs, evenly spaced; 0: all"),
    };
    enum { N_OPTIONS = sizeof options / sizeof *options };
    cli_parse("compare", "Compares training runs: a table side by side, CSV files and a plot.", "0.1.0", options,
              N_OPTIONS, argc, argv);
    for (int i = 0; i < rest.n; i++) read_run(runs, i, rest.v[i]);
    const int own_target = !isnan(target);
    if (!own_target) target = final_train_loss(&runs[0]);
    for (int i = 0; i < rest.n; i++) summarise(&runs[i], target);
    print_table(runs, rest.n, title, target, own_target, max_rows);
    if (out_dir) {
        log_file file;
        start(&file, out_dir, "compare.csv");
        write_curves(file.f, runs, rest.n);
        finish(&file);
        start(&file, out_dir, "compare_summary.csv");
        write_summary(file.f, runs, rest.n, target);
        finish(&file);
        start(&file, out_dir, "compare.svg");
        write_svg(file.f, runs, rest.n, title, target, test_loss);
        finish(&file);
        printf("written: %s/compare.csv, compare_summary.csv, compare.svg\n", out_dir);
    }
    for (int i = 0; i < rest.n; i++) free(runs[i].points);
    return 0;
}
