// report.c -- what the runs of dev/paper/run.sh show: tables, the comparison with no rescaling, plots.
//
//     report table LR FILE.csv              per net and initialisation: every method at its own best learning rate, and
//                                           at LR
//     report summary METHOD FILE.csv...     per file: where the method is better, equal or worse; runs that learned
//                                           nothing
//     report harm FILE.csv...               per method: in how many settings it is better, equal or worse than `none`
//     report worse METHOD FILE.csv...       the settings in which a method is significantly worse
//     report above RATIO METHOD FILE.csv... the settings in which its loss is above RATIO times the baseline's,
//                                           significantly or not
//     report best METHOD FILE.csv...        per net: the method and the baseline, each at its own best learning rate
//     report plot FILE.csv TITLE [METHOD,METHOD...]...    final training loss against the learning rate, SVG on stdout.
//                                           Each list of methods has its own column of panels; without one: all
//     report overview METHOD,METHOD... TITLE FILE.csv...  loss over the baseline's, one row per net, SVG on stdout
//
// A row of a CSV is one run: experiment,net,init,lr,method,seed,steps,train_loss,test_loss,test_accuracy,
// max_log_lambda,trace_ratio,rescale_seconds,train_seconds,c1,...,c20. c_k is the mean step loss over the k-th
// twentieth of the run; c20 is the final training loss here. A run that diverged has inf there. It counts as one that
// has learned nothing: no loss is taken as higher than `none` has in the first twentieth at the lowest rate. Seeds pair
// the runs: a seed fixes the initial weights and the order of samples for all methods.
//
//     final loss    Mean over seeds ± standard deviation of c20. A method's best learning rate has the lowest mean.
//     time          Epochs (or steps) until the method is first down at the baseline's final loss (same seed, baseline
//                   at its best rate, or at the rate asked for), over those until the baseline itself first is. The
//                   curve c1..c20 is interpolated. Geometric mean over the seeds [95 % interval, Student's t of the
//                   logarithms]. Where some seeds never get there: the mean of the others, and how many they are.
//     harm          Numbers `better, equal, worse`; a setting is a net, an initialisation and a learning rate. `ratio`:
//                   geometric mean over the settings of the final loss over the baseline's. `above 1.05x`: settings
//                   where the mean over seeds is.
//     better/worse  Paired differences of log c20 against `none` at the same net, initialisation and learning rate:
//                   two-sided t-test at 95 %, and a mean ratio of more than 1 %. `certain`: worse also after Holm's
//                   correction for the number of settings.
//     summary       Below the baseline's best rate: the differences of all lower rates averaged per seed, then one test
//                   per net, since the rates of a net share their seeds.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../common/message.h"
#include "../plot.h"

enum { BETTER = -1, EQUAL, WORSE };
enum { CURVE = 20, MAX_SEEDS = 16, NAME = 48, MAX_RATES = 16, MAX_METHODS = 24, MAX_SETTINGS = 64 };

typedef struct run {
    int seed, failed;
    double accuracy, max_log, curve[CURVE];
} run;
typedef struct cell {             // one method at one learning rate
    run runs[MAX_SEEDS];
    int n, failed;                // runs; those that diverged or learned nothing: within 1 % of that loss, or above
} cell;
typedef struct setting {          // a net and an initialisation
    char net[NAME], init[NAME];
    double nothing;               // the loss of a run that has learned nothing
    cell cells[MAX_RATES][MAX_METHODS];
} setting;

static char experiment[NAME];     // the first field of the file
static char methods[MAX_METHODS][NAME];
static double rates[MAX_RATES];   // ascending
static setting *settings[MAX_SETTINGS];
static int n_methods, n_rates, n_settings;

static void fail(const char *what, const char *name) {
    message_print("report", "%s: %s", name, what);
    exit(1);
}

static void copy_name(char *to, const char *name) {
    if (strlen(name) >= NAME) fail("a name of more than 47 characters", name);
    memcpy(to, name, strlen(name) + 1);
}

// Index of a name in a list, which it is added to if new.
static int find(char (*list)[NAME], int *n, int max, const char *name) {
    for (int i = 0; i < *n; i++)
        if (!strcmp(list[i], name)) return i;
    if (*n == max) fail("too many names", name);
    copy_name(list[*n], name);
    return (*n)++;
}
static int find_rate(double lr) {
    for (int i = 0; i < n_rates; i++)
        if (rates[i] == lr) return i;
    return -1;
}
static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static const run *run_of_seed(const cell *c, int seed) {
    for (int i = 0; i < c->n; i++)
        if (c->runs[i].seed == seed) return &c->runs[i];
    return NULL;
}

// The next field of a CSV row; empty at its end.
static const char *field(char **at) {
    char *begin = *at, *end = begin + strcspn(begin, ",\r\n");
    *at = *end == ',' ? end + 1 : end;
    *end = '\0';
    return begin;
}

static void skip_fields(char **at, int n) {
    for (int i = 0; i < n; i++) field(at);
}

// The setting of a net and an initialisation, added if new.
static setting *setting_of(const char *net, const char *init, const char *path) {
    for (int k = 0; k < n_settings; k++)
        if (!strcmp(settings[k]->net, net) && !strcmp(settings[k]->init, init)) return settings[k];
    setting *s = n_settings < MAX_SETTINGS ? (setting *)calloc(1, sizeof *s) : NULL;
    if (!s) fail("more than 64 nets and initialisations", path);
    copy_name(s->net, net);
    copy_name(s->init, init);
    settings[n_settings++] = s;
    return s;
}

// Takes the run of a row: at the field after the learning rate.
static void read_run(setting *s, int rate, char *at, const char *path) {
    cell *c = &s->cells[rate][find(methods, &n_methods, MAX_METHODS, field(&at))];
    if (c->n == MAX_SEEDS) fail("more than 16 seeds", path);
    const int seed = atoi(field(&at));
    if (run_of_seed(c, seed)) fail("two runs of one method, net, initialisation, learning rate and seed", path);
    run *r = &c->runs[c->n++];
    r->seed = seed;
    skip_fields(&at, 3);                       // steps, train_loss, test_loss
    r->accuracy = atof(field(&at));
    r->max_log = atof(field(&at));
    skip_fields(&at, 3);                       // trace_ratio, rescale_seconds, train_seconds
    for (int i = 0; i < CURVE; i++) {
        const char *value = field(&at);
        if (!*value) fail("a row with fewer than 34 fields", path);
        r->curve[i] = atof(value);
        if (isfinite(r->curve[i])) r->curve[i] = fmax(r->curve[i], 1e-12);   // a loss that fp32 rounds to zero
        else r->curve[i] = INFINITY;                                         // nan, too
    }
}

// Sets the loss of a run that has learned nothing, and caps the others at it.
static void find_failures(setting *s, const char *path) {
    int lowest = 0;
    while (lowest < n_rates - 1 && !s->cells[lowest][0].n) lowest++;
    const cell *c = &s->cells[lowest][0];
    for (int i = 0; i < c->n; i++) s->nothing += c->runs[i].curve[0] / c->n;
    if (!(s->nothing > 0 && s->nothing < INFINITY))
        fail("`none` is missing or diverges at the lowest learning rate", path);
    for (int j = 0; j < n_rates * n_methods; j++) {
        cell *at = &s->cells[j / n_methods][j % n_methods];
        for (int i = 0; i < at->n; i++) {
            double *final = &at->runs[i].curve[CURVE - 1];
            at->runs[i].failed = *final >= 0.99 * s->nothing;
            at->failed += at->runs[i].failed;
            *final = fmin(*final, s->nothing);
        }
    }
}

// Reads a file; what an earlier file left is forgotten.
static void read_file(const char *path) {
    char line[2048];
    for (int i = 0; i < n_settings; i++) free(settings[i]);
    n_methods = n_rates = n_settings = 0;
    for (int pass = 0; pass < 2; pass++) {  // learning rates, then runs
        FILE *f = fopen(path, "r");
        if (!f) fail("cannot be read", path);
        while (fgets(line, sizeof line, f)) {
            char *at = line;
            if (*line == '#' || !strncmp(line, "experiment,", 11)) continue;
            copy_name(experiment, field(&at));
            const char *net = field(&at), *init = field(&at);
            const double lr = atof(field(&at));
            if (pass == 1) {
                read_run(setting_of(net, init, path), find_rate(lr), at, path);
                continue;
            }
            if (find_rate(lr) >= 0) continue;
            if (n_rates == MAX_RATES) fail("more than 16 learning rates", path);
            rates[n_rates++] = lr;
        }
        fclose(f);
        qsort(rates, (size_t)n_rates, sizeof *rates, ascending);
    }
    if (!n_settings || strcmp(methods[0], "none")) fail("no runs, or none of method `none` first", path);
    for (int k = 0; k < n_settings; k++) find_failures(settings[k], path);
}

static double final_loss(const run *r) { return r->curve[CURVE - 1]; }
static double mean(const double *x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] / n;
    return sum;
}
static double deviation(const double *x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (x[i] - mean(x, n)) * (x[i] - mean(x, n));
    return n > 1 ? sqrt(sum / (n - 1)) : 0;
}
// Half the 95 % confidence interval of the mean of n values, Student's t.
static double half_interval(const double *x, int n) {
    static const double t[] = {0,     0,     12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365,
                               2.306, 2.262, 2.228,  2.201, 2.179, 2.160, 2.145, 2.131};
    return n > 1 ? t[n] * deviation(x, n) / sqrt(n) : INFINITY;
}
// Two-sided p-value of the mean of n values being zero, Student's t: the finite series for whole degrees of freedom.
static double p_value(const double *x, int n) {
    const int freedom = n - 1;
    if (n < 2 || mean(x, n) == 0) return 1;
    const double s = deviation(x, n);
    if (s == 0) return 0;
    const double t = fabs(mean(x, n)) * sqrt(n) / s, theta = atan(t / sqrt(freedom)), c2 = cos(theta) * cos(theta);
    double term = freedom % 2 ? cos(theta) : 1;
    double sum = freedom == 1 ? 0 : term;
    for (int k = freedom % 2 ? 3 : 2; k < freedom; k += 2) {
        term *= c2 * (k - 1) / k;
        sum += term;
    }
    return fmax(0, 1 - (freedom % 2 ? 2 / M_PI * (theta + sin(theta) * sum) : sin(theta) * sum));
}
static double median(const double *x, int n) {
    double sorted[MAX_SEEDS];
    memcpy(sorted, x, sizeof *x * (size_t)n);
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    return 0.5 * (sorted[(n - 1) / 2] + sorted[n / 2]);
}
// The smallest and the largest of n values.
static void range(const double *x, int n, double *least, double *most) {
    *least = INFINITY;
    *most = -INFINITY;
    for (int i = 0; i < n; i++) {
        *least = fmin(*least, x[i]);
        *most = fmax(*most, x[i]);
    }
}
// The |t| at which the two-sided p-value of n values is p: t = mean / (s / sqrt(n)), searched between 0 and 1e6.
static double t_of_p(double p, int n) {
    double lo = 0, hi = 1e6, x[MAX_SEEDS];
    for (int step = 0; step < 100; step++) {
        const double t = 0.5 * (lo + hi);
        for (int i = 0; i < n; i++) x[i] = i - 0.5 * (n - 1);         // without a mean; s is known
        const double shift = t * deviation(x, n) / sqrt(n);
        for (int i = 0; i < n; i++) x[i] += shift;
        if (p_value(x, n) > p) lo = t;
        else hi = t;
    }
    return hi;
}
static int losses(const cell *c, double *x) {
    for (int i = 0; i < c->n; i++) x[i] = final_loss(&c->runs[i]);
    return c->n;
}
static double mean_loss(const cell *c) {
    double x[MAX_SEEDS];
    for (int i = 0; i < c->n; i++) x[i] = final_loss(&c->runs[i]);
    return c->n ? mean(x, c->n) : INFINITY;
}
static int best_rate(const setting *s, int method) {
    int best = 0;
    for (int r = 1; r < n_rates; r++)
        if (mean_loss(&s->cells[r][method]) < mean_loss(&s->cells[best][method])) best = r;
    return best;
}

// The part of a run after which its curve is at or below the target, or 0: never. A window's mean stands for the
// window's end.
static double time_to(const run *r, double target) {
    for (int i = 0; i < CURVE; i++) {
        if (r->curve[i] > target * (1 + 1e-9)) continue;
        if (i == 0) return 1.0 / CURVE;
        const double part = (log(r->curve[i - 1]) - log(target)) / (log(r->curve[i - 1]) - log(r->curve[i]));
        return (i + (isfinite(part) ? part : 1)) / CURVE;
    }
    return 0;
}

// A cell of the table: the time to the baseline's final loss, relative to the baseline's own.
static void print_time(const cell *c, const cell *base) {
    double log_time[MAX_SEEDS];
    int n = 0, pairs = 0;
    for (int i = 0; i < c->n; i++) {
        const run *b = run_of_seed(base, c->runs[i].seed);
        if (!b || b->failed) continue;
        const double time = time_to(&c->runs[i], final_loss(b));
        pairs++;
        if (time > 0) log_time[n++] = log(time / time_to(b, final_loss(b)));
    }
    const double time = exp(mean(log_time, n)), half = half_interval(log_time, n);
    if (!c->n) printf(" |");
    else if (!pairs) printf(" baseline learns nothing |");
    else if (!n) printf(" never |");
    else if (n < pairs || n < 2) printf(" %.2f (%d of %d) |", time, n, pairs);
    else if (c == base) printf(" 1 |");
    else printf(" %.2f [%.2f, %.2f] |", time, time * exp(-half), time * exp(half));
}
static void print_loss(const cell *c) {
    double loss[MAX_SEEDS] = {0};
    for (int i = 0; i < c->n; i++) loss[i] = final_loss(&c->runs[i]);
    if (c->n) printf(" %.3g ± %.2g", mean(loss, c->n), deviation(loss, c->n));
    if (c->failed) printf(" (%d of %d learned nothing)", c->failed, c->n);
    printf(" |");
}

static void print_rule(int columns) {
    while (columns--) printf(" ---: |");
    printf("\n");
}

static void print_table(const setting *s, int rate) {
    printf("%s, %s\n\n", s->net, s->init);
    printf("| method | best lr | final loss | time | test accuracy | max log λ | final loss at lr %g | time |\n| --- |",
           rates[rate]);
    print_rule(7);
    for (int m = 0; m < n_methods; m++) {
        const int best = best_rate(s, m);
        const cell *c = &s->cells[best][m];
        double accuracy = 0, max_log = 0;
        if (!c->n) continue;
        for (int i = 0; i < c->n; i++) {
            accuracy += c->runs[i].accuracy / c->n;
            max_log = fmax(max_log, c->runs[i].max_log);
        }
        printf("| %s | %g |", methods[m], rates[best]);
        print_loss(c);
        print_time(c, &s->cells[best_rate(s, 0)][0]);
        if (accuracy > 0) printf(" %.1f%% |", 100 * accuracy);
        else printf(" n/a |");
        if (max_log > 0) printf(" %.2g |", max_log);
        else printf(" |");
        print_loss(&s->cells[rate][m]);
        print_time(&s->cells[rate][m], &s->cells[rate][0]);
        printf("\n");
    }
    printf("\n");
}

// --------------------------------------------------------------------------------------------------------- do no harm

enum { MAX_CELLS = 1024 };
typedef struct tally {
    int count[5][3];                     // better, equal, worse: where the baseline learns nothing at any rate; at
                                         // rates below, at and above its best; each at its own best rate
    int n, above_5;                      // settings; those with a mean ratio above 1.05
    int failed, base_failed;             // runs that learned nothing there: of the method, of the baseline
    double log_ratio;                    // summed over the settings
    double largest_gain, largest_harm;   // of the mean log ratio to `none`, where it is significant
    double p[MAX_CELLS];                 // of every setting, 1 where the method's mean is better
} tally;

// Logarithms of the final losses over the baseline's, per seed that both have. Returns how many.
static int log_ratios(const cell *c, const cell *base, double *x) {
    int n = 0;
    for (int i = 0; i < c->n; i++) {
        const run *b = run_of_seed(base, c->runs[i].seed);
        if (b) x[n++] = log(final_loss(&c->runs[i])) - log(final_loss(b));
    }
    return n;
}
// BETTER, WORSE: the mean of n log ratios is significantly below or above zero, by more than 1 %.
static int verdict(const double *x, int n) {
    const double d = n ? mean(x, n) : 0;
    if (fabs(d) <= 0.01 || !(p_value(x, n) < 0.05)) return EQUAL;
    return d > 0 ? WORSE : BETTER;
}
// The same of a method's cell and the baseline's; *d the mean of the log ratio, *p its p-value.
static int compare(const cell *c, const cell *base, double *d, double *p) {
    double x[MAX_SEEDS];
    const int n = log_ratios(c, base, x);
    *d = n ? mean(x, n) : 0;
    *p = p_value(x, n);
    return verdict(x, n);
}

static void add_to_tally(tally *t, const setting *s, int method) {
    double d, p;
    const int best = best_rate(s, 0), own = best_rate(s, method);
    const int nothing = s->cells[best][0].failed == s->cells[best][0].n;
    for (int r = 0; r < n_rates; r++) {
        if (!s->cells[r][method].n || !s->cells[r][0].n) continue;
        const int sign = compare(&s->cells[r][method], &s->cells[r][0], &d, &p);
        int where = (r > best) - (r < best) + 2;
        if (nothing) where = 0;
        if (t->n == MAX_CELLS) fail("more than 1024 settings", methods[method]);
        t->p[t->n++] = d > 0.01 ? p : 1;
        t->count[where][sign + 1]++;
        t->log_ratio += d;
        t->above_5 += d > log(1.05);
        t->failed += s->cells[r][method].failed;
        t->base_failed += s->cells[r][0].failed;
        if (sign == BETTER) t->largest_gain = fmin(t->largest_gain, d);
        if (sign == WORSE) t->largest_harm = fmax(t->largest_harm, d);
    }
    if (!s->cells[own][method].n) return;
    t->count[4][compare(&s->cells[own][method], &s->cells[best][0], &d, &p) + 1]++;
}

// How many of n p-values are below 5 % by Holm's procedure, which holds the chance of a single false one to 5 %.
static int certain(double *p, int n) {
    int k = 0;
    qsort(p, (size_t)n, sizeof *p, ascending);
    while (k < n && p[k] <= 0.05 / (n - k)) k++;
    return k;
}

static void print_harm(int n_files, char **files) {
    static char all[MAX_METHODS][NAME];
    static tally tallies[MAX_METHODS];
    int n_all = 0;
    for (int f = 0; f < n_files; f++) {
        read_file(files[f]);
        for (int m = 1; m < n_methods; m++) {
            tally *t = &tallies[find(all, &n_all, MAX_METHODS, methods[m])];
            for (int k = 0; k < n_settings; k++) add_to_tally(t, settings[k], m);
        }
    }
    printf("| method | settings | baseline learns nothing | below its best rate | at | above | certain | ratio | "
           "above 1.05x | largest gain | largest harm | each at its best rate | runs that learned nothing | of none |\n"
           "| --- |");
    print_rule(13);
    for (int m = 0; m < n_all; m++) {
        tally *t = &tallies[m];
        printf("| %s | %d |", all[m], t->n);
        for (int k = 0; k < 4; k++) printf(" %d, %d, %d |", t->count[k][0], t->count[k][1], t->count[k][2]);
        printf(" %d | %.2fx | %d | %.2gx | %.3gx |", certain(t->p, t->n), exp(t->log_ratio / t->n), t->above_5,
               exp(t->largest_gain), exp(t->largest_harm));
        printf(" %d, %d, %d | %d | %d |\n", t->count[4][0], t->count[4][1], t->count[4][2], t->failed, t->base_failed);
    }
    const double p = 0.05 / tallies[0].n;
    printf("\n`certain` in %d settings starts at p = %.2g: |t| = %.3g with three seeds, %.3g with five.\n",
           tallies[0].n, p, t_of_p(p, 3), t_of_p(p, 5));
}

// Index of a method of the file, or -1.
static int method_of(const char *name, size_t length) {
    for (int m = 0; m < n_methods; m++)
        if (strlen(methods[m]) == length && !strncmp(methods[m], name, length)) return m;
    return -1;
}

// The settings in which a method is significantly worse, or (ratio > 0) those in which the geometric mean of its loss
// over the baseline's is above `ratio`.
static void print_worse(double ratio, const char *name, int n_files, char **files) {
    double d, p;
    int found = 0;
    printf("| net | init | lr | none | %s | ratio | p |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |\n", name);
    for (int f = 0; f < n_files; f++) {
        read_file(files[f]);
        const int m = method_of(name, strlen(name));
        found += m >= 0;
        for (int i = 0; m >= 0 && i < n_settings * n_rates; i++) {
            const int k = i / n_rates, r = i % n_rates;
            const cell *c = &settings[k]->cells[r][m], *base = &settings[k]->cells[r][0];
            if (!c->n || !base->n) continue;
            const int sign = compare(c, base, &d, &p);
            if (ratio > 0 ? d <= log(ratio) : sign != WORSE) continue;
            printf("| %s | %s | %g |", settings[k]->net, settings[k]->init, rates[r]);
            print_loss(base);
            print_loss(c);
            printf(" %.3gx | %.2g |\n", exp(d), p);
        }
    }
    if (!found) fail("no run has this method", name);
}

// Per net and initialisation: the baseline and a method, each at its own best rate.
static void print_best(const char *name, int n_files, char **files) {
    double d, p;
    int found = 0;
    printf("| net | init | lr of none | none | lr of %s | %s | ratio | p |\n", name, name);
    printf("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (int f = 0; f < n_files; f++) {
        read_file(files[f]);
        const int m = method_of(name, strlen(name));
        found += m >= 0;
        for (int k = 0; m >= 0 && k < n_settings; k++) {
            const int own = best_rate(settings[k], m), best = best_rate(settings[k], 0);
            const cell *c = &settings[k]->cells[own][m], *base = &settings[k]->cells[best][0];
            if (!c->n) continue;
            compare(c, base, &d, &p);
            printf("| %s | %s | %g |", settings[k]->net, settings[k]->init, rates[best]);
            print_loss(base);
            printf(" %g |", rates[own]);
            print_loss(c);
            printf(" %.3gx | %.2g |\n", exp(d), p);
        }
    }
    if (!found) fail("no run has this method", name);
}

// One net: the log ratios of every seed that all rates share, averaged over the rates below the baseline's best.
// Returns the number of seeds; 0: no rate is lower.
static int pooled_below(const setting *s, int method, double *x) {
    const cell *first = &s->cells[best_rate(s, 0)][0];
    int n = 0;
    for (int i = 0; i < first->n; i++) {
        double sum = 0;
        int count = 0;
        for (int r = 0; r < best_rate(s, 0); r++) {
            const run *a = run_of_seed(&s->cells[r][method], first->runs[i].seed);
            const run *b = run_of_seed(&s->cells[r][0], first->runs[i].seed);
            if (!a || !b) continue;
            sum += log(final_loss(a)) - log(final_loss(b));
            count++;
        }
        if (count) x[n++] = sum / count;
    }
    return n;
}

typedef struct sums {                    // of one file; counts: better, equal, worse
    int nets, nets_below, below[3], own[3], failed, base_failed;
    double log_below, log_own;
} sums;

static void add_to_sums(sums *t, const setting *s, int method) {
    double x[MAX_SEEDS];
    const cell *c = &s->cells[best_rate(s, method)][method];
    if (!c->n) return;
    t->nets++;
    int n = pooled_below(s, method, x);
    if (n) {
        t->nets_below++;
        t->log_below += mean(x, n);
        t->below[verdict(x, n) + 1]++;
    }
    n = log_ratios(c, &s->cells[best_rate(s, 0)][0], x);
    t->log_own += mean(x, n);
    t->own[verdict(x, n) + 1]++;
    for (int r = 0; r < n_rates; r++) {
        if (!s->cells[r][method].n) continue;
        t->failed += s->cells[r][method].failed;
        t->base_failed += s->cells[r][0].failed;
    }
}

// One row per file. Every net counts once, whatever the number of its rates.
static void print_summary(const char *name, int n_files, char **files) {
    int found = 0;
    printf("| experiment | nets | below the baseline's best rate | loss there | each at its best rate | loss there | "
           "runs that learned nothing | of none |\n| --- |");
    print_rule(7);
    for (int f = 0; f < n_files; f++) {
        sums t = {0};
        read_file(files[f]);
        const int m = method_of(name, strlen(name));
        if (m < 0) continue;
        found = 1;
        for (int k = 0; k < n_settings; k++) add_to_sums(&t, settings[k], m);
        printf("| %s | %d | %d, %d, %d |", experiment, t.nets, t.below[0], t.below[1], t.below[2]);
        printf(" %.2fx | %d, %d, %d |", exp(t.log_below / fmax(1, t.nets_below)), t.own[0], t.own[1], t.own[2]);
        printf(" %.2fx | %d | %d |\n", exp(t.log_own / fmax(1, t.nets)), t.failed, t.base_failed);
    }
    if (!found) fail("no run has this method", name);
}

// --------------------------------------------------------------------------------------------------------------- plots

enum { MAX_GROUPS = 6, PANEL_W = 280, PANEL_H = 160, LEFT = 78, TOP = 50, GAP_X = 76, GAP_Y = 84 };
enum { ENTRY = 140, ENTRY_H = 22 };      // of the legend
enum { BASELINE_SERIES = 6 };            // black, white in the dark: the baseline wherever it is drawn

typedef struct group {                   // methods that share panels
    int method[MAX_METHODS], n;
} group;

static int series[MAX_METHODS];          // of a method: colour, dashes, marker

// Gives every method its series: the baseline its own, the others the rest in this order.
static void choose_series(const group *groups, int n_groups) {
    int next = 0;
    for (int m = 0; m < MAX_METHODS; m++) series[m] = -1;
    series[0] = BASELINE_SERIES;
    for (int g = 0; g < n_groups; g++)
        for (int k = 0; k < groups[g].n; k++) {
            const int m = groups[g].method[k];
            if (series[m] >= 0) continue;
            if (next == BASELINE_SERIES) next++;
            series[m] = next++;
        }
}

// The methods of a list METHOD,METHOD,... that the file has.
static group methods_of(const char *list) {
    group g = {{0}, 0};
    while (*list) {
        const size_t length = strcspn(list, ",");
        const int m = method_of(list, length);
        if (m >= 0 && g.n < MAX_METHODS) g.method[g.n++] = m;
        list += length + (list[length] == ',');
    }
    return g;
}

typedef struct axes {                    // a panel: pixels of its frame, log10 of its ranges
    double x0, y0, width, height, x_lo, x_hi, y_lo, y_hi;
} axes;

// Pixels. The ranges end PLOT_INSET before the frame.
static double x_of(const axes *a, double v) {
    return a->x0 + PLOT_INSET + (a->width - 2 * PLOT_INSET) * (log10(v) - a->x_lo) / (a->x_hi - a->x_lo);
}
static double y_of(const axes *a, double v) {
    return a->y0 + PLOT_INSET + (a->height - 2 * PLOT_INSET) * (a->y_hi - log10(v)) / (a->y_hi - a->y_lo);
}

// Ticks of a log axis from lo to hi (log10): powers of ten where it is long, then 1, 2 and 5 of every decade, then 3, 4
// and 7 too, all tenths where it is short. tenths: 10 to 99, ten times the first digit.
static int is_tick(double lo, double hi, int tenths, int exponent) {
    const double span = hi - lo, v = log10(0.1 * tenths) + exponent;
    if (v < lo || v > hi) return 0;
    if (span > 2.5) return tenths == 10;
    if (span > 0.8) return tenths == 10 || tenths == 20 || tenths == 50;
    return span <= 0.25 || (tenths % 10 == 0 && tenths <= 50) || tenths == 70;
}

static void draw_frame(const axes *a) {
    printf("<path class=\"axis\" d=\"M%.1f %.1fV%.1fH%.1f\"/>\n", a->x0, a->y0, a->y0 + a->height, a->x0 + a->width);
}

static void draw_y_ticks(const axes *a) {
    char text[32];
    for (int e = -13; e < 6; e++)
        for (int tenths = 10; tenths < 100; tenths++) {
            if (!is_tick(a->y_lo, a->y_hi, tenths, e)) continue;
            const double v = 0.1 * tenths * pow(10, e), y = y_of(a, v);
            printf("<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", a->x0, y,
                   a->x0 + a->width, y);
            snprintf(text, sizeof text, "%g", v);
            plot_label(stdout, "tick", "end", a->x0 - 6, y + 4, text);
        }
}

// The curve of a method through the medians over its seeds, with a bar from the least to the largest at every rate.
static void draw_method(const axes *a, const setting *s, int method, double shift) {
    double x[MAX_SEEDS], least, most;
    const char *pen = "M";
    plot_open_curve(stdout, series[method]);
    for (int r = 0; r < n_rates; r++) {
        const int n = losses(&s->cells[r][method], x);
        if (!n) continue;
        printf("%s%.1f %.1f", pen, x_of(a, rates[r]) + shift, y_of(a, median(x, n)));
        pen = "L";
    }
    printf("\"/>\n");
    for (int r = 0; r < n_rates; r++) {
        const int n = losses(&s->cells[r][method], x);
        if (!n) continue;
        const double at = x_of(a, rates[r]) + shift;
        range(x, n, &least, &most);
        printf("<path class=\"range s%d\" d=\"M%.1f %.1fV%.1f\"/>\n", plot_color(series[method]), at, y_of(a, least),
               y_of(a, most));
        plot_marker(stdout, series[method], at, y_of(a, median(x, n)));
    }
}

// One panel: final loss against the learning rate. The vertical range is that of all groups, so that panels of a net
// agree.
static void plot_panel(const setting *s, const group *groups, int n_groups, int g, double x0, double y0) {
    const double shift = 4.0;                                     // pixels from one method to the next
    double lo = INFINITY, hi = 0, x[MAX_SEEDS], least, most;
    char text[2 * NAME + 2];
    for (int j = 0; j < n_groups; j++)
        for (int i = 0; i < groups[j].n * n_rates; i++) {
            const int n = losses(&s->cells[i % n_rates][groups[j].method[i / n_rates]], x);
            if (!n) continue;
            range(x, n, &least, &most);
            lo = fmin(lo, least);
            hi = fmax(hi, most);
        }
    lo = fmin(lo, s->nothing);
    hi = fmax(hi, s->nothing);
    const double x_lo = log10(rates[0]) - 0.12, x_hi = log10(rates[n_rates - 1]) + 0.12;
    axes a = {x0, y0, PANEL_W, PANEL_H, x_lo, x_hi, log10(lo), log10(hi)};
    if (a.y_hi - a.y_lo < 0.01) a.y_lo -= 0.01;
    snprintf(text, sizeof text, "%s, %s", s->net, s->init);
    plot_label(stdout, "heading", "start", x0, y0 - 10, text);
    draw_y_ticks(&a);
    for (int r = 0; r < n_rates; r++) {
        snprintf(text, sizeof text, "%g", rates[r]);
        plot_label(stdout, "tick", "middle", x_of(&a, rates[r]), y0 + PANEL_H + 17, text);
    }
    draw_frame(&a);
    const double y = y_of(&a, s->nothing);
    printf("<line class=\"target\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x0, y, x0 + PANEL_W,
           y);
    plot_x_title(stdout, x0 + PANEL_W / 2.0, y0 + PANEL_H + 36, "learning rate");
    plot_y_title(stdout, x0 - 54, y0 + PANEL_H / 2.0, "final training loss");
    for (int k = 0; k < groups[g].n; k++)
        draw_method(&a, s, groups[g].method[k], shift * (k - 0.5 * (groups[g].n - 1)));
}

// How many panels stand beside each other when a single group fills them: a column per initialisation, else three.
static int columns_of_one_group(void) {
    int inits = 1;
    while (inits < n_settings && !strcmp(settings[inits]->net, settings[0]->net)) inits++;
    if (inits > 1 && inits <= 5) return inits;
    return n_settings < 3 ? n_settings : 3;
}

static void plot(const char *title, int n_lists, char **lists) {
    group groups[MAX_GROUPS];
    int n_groups = n_lists ? n_lists : 1, rows = n_settings, legend_rows = 0;
    if (n_lists > MAX_GROUPS) fail("more than 6 lists of methods", lists[MAX_GROUPS]);
    groups[0].n = n_methods;
    for (int m = 0; m < n_methods; m++) groups[0].method[m] = m;
    for (int g = 0; g < n_lists; g++) {
        groups[g] = methods_of(lists[g]);
        if (!groups[g].n) fail("no run has one of these methods", lists[g]);
    }
    choose_series(groups, n_groups);
    const int columns = n_groups > 1 ? n_groups : columns_of_one_group();
    if (n_groups == 1) rows = (n_settings + columns - 1) / columns;
    const double step = PANEL_W + GAP_X, width = LEFT + columns * step - GAP_X + 30;
    const int per_row = n_groups > 1 ? PANEL_W / ENTRY : (int)((width - LEFT) / ENTRY);
    for (int g = 0; g < n_groups; g++) {
        const int needed = (groups[g].n + per_row - 1) / per_row;
        legend_rows = needed > legend_rows ? needed : legend_rows;
    }
    const double top = TOP + legend_rows * ENTRY_H + 44;
    plot_begin(stdout, width, top + rows * (PANEL_H + GAP_Y) - 22, title);
    plot_label(stdout, "title", "start", LEFT, 26, title);
    plot_label(stdout, "note", "start", LEFT, 46, "median over seeds, bars from the least to the largest; "
                                                  "dashed line: nothing learned");
    for (int g = 0; g < n_groups; g++)
        for (int k = 0; k < groups[g].n; k++)
            plot_legend_entry(stdout, series[groups[g].method[k]], LEFT + g * step + k % per_row * ENTRY,
                              TOP + 20 + k / per_row * ENTRY_H, methods[groups[g].method[k]]);
    for (int k = 0; k < n_settings; k++)
        for (int g = 0; g < n_groups; g++) {
            const int column = n_groups > 1 ? g : k % columns;
            const int row = n_groups > 1 ? k : k / columns;
            plot_panel(settings[k], groups, n_groups, g, LEFT + column * step, top + row * (PANEL_H + GAP_Y));
        }
    printf("</svg>\n");
}

// ------------------------------------------------------------------------------------------------------------ overview

enum { MAX_ROWS = 128, ROW_H = 20, LABELS_W = 232, WIDE = 330 };
enum { BELOW, OWN_BEST, PANELS };

typedef struct point {                   // the loss over the baseline's: median and range over the seeds
    double median, least, most;          // median 0: not measured
} point;
typedef struct row {
    char label[2 * NAME + 2];
    int first;                           // of its file
    point at[PANELS][MAX_METHODS];
} row;

static point point_of(const cell *c, const cell *base) {
    double x[MAX_SEEDS];
    point p = {0, 0, 0};
    const int n = log_ratios(c, base, x);
    if (!n) return p;
    range(x, n, &p.least, &p.most);
    p.least = exp(p.least);
    p.most = exp(p.most);
    p.median = exp(median(x, n));
    return p;
}

// The rows of one file's nets, for the methods of a list. Returns the number of rows now.
static int add_rows(row *rows, int n, char (*names)[NAME], int n_names) {
    for (int k = 0; k < n_settings; k++) {
        const setting *s = settings[k];
        const int best = best_rate(s, 0);
        if (n == MAX_ROWS) fail("more than 128 nets", experiment);
        row *r = &rows[n++];
        memset(r, 0, sizeof *r);
        r->first = k == 0;
        snprintf(r->label, sizeof r->label, "%s, %s", s->net, s->init);
        for (int j = 0; j < n_names; j++) {
            const int m = method_of(names[j], strlen(names[j]));
            if (m < 0) continue;
            r->at[OWN_BEST][j] = point_of(&s->cells[best_rate(s, m)][m], &s->cells[best][0]);
            if (best > 0) r->at[BELOW][j] = point_of(&s->cells[best - 1][m], &s->cells[best - 1][0]);
        }
    }
    return n;
}

// Draws one panel: the points of all rows.
static void overview_panel(const axes *a, const row *rows, int n, int n_names, int which, const char *heading) {
    const double lo = pow(10, a->x_lo), hi = pow(10, a->x_hi), bottom = a->y0 + a->height;
    char text[32];
    plot_label(stdout, "heading", "start", a->x0, a->y0 - 10, heading);
    for (int e = -3; e < 3; e++)
        for (int tenths = 10; tenths < 100; tenths += 10) {
            if (!is_tick(a->x_lo, a->x_hi, tenths, e)) continue;
            const double v = 0.1 * tenths * pow(10, e), x = x_of(a, v);
            printf("<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                   e == 0 && tenths == 10 ? "target" : "grid", x, a->y0, x, bottom);
            snprintf(text, sizeof text, "%g", v);
            plot_label(stdout, "tick", "middle", x, bottom + 17, text);
        }
    draw_frame(a);
    plot_x_title(stdout, a->x0 + a->width / 2, bottom + 38, "final loss over the baseline's");
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n_names; j++) {
            const point *p = &rows[i].at[which][j];
            const double y = a->y0 + PLOT_INSET + (i + 0.5) * ROW_H + 7 * (j - 0.5 * (n_names - 1));
            if (!(p->median > 0)) continue;
            const double least = fmin(fmax(p->least, lo), hi), most = fmin(fmax(p->most, lo), hi);
            printf("<path class=\"range s%d\" d=\"M%.1f %.1fH%.1f\"/>\n", plot_color(j), x_of(a, least), y,
                   x_of(a, most));
            plot_marker(stdout, j, x_of(a, fmin(fmax(p->median, lo), hi)), y);
        }
}

static void overview(char *list, const char *title, int n_files, char **files) {
    static row rows[MAX_ROWS];
    static const double limit = 1.0;                              // log10: what lies outside is drawn at the frame
    char names[MAX_METHODS][NAME];
    char shown[MAX_METHODS * NAME];
    int n = 0, n_names = 0, known = 0;
    snprintf(shown, sizeof shown, "%s", list);
    for (char *at = list; *at;) find(names, &n_names, 8, field(&at));
    for (int f = 0; f < n_files; f++) {
        read_file(files[f]);
        for (int j = 0; j < n_names; j++) known += method_of(names[j], strlen(names[j])) >= 0;
        n = add_rows(rows, n, names, n_names);
    }
    if (!known) fail("no run has one of these methods", shown);
    const double top = TOP + 76, height = n * ROW_H + 2 * PLOT_INSET, step = WIDE + 30;
    axes a = {LABELS_W, top, WIDE, height, -limit, limit, 0, 1};
    plot_begin(stdout, LABELS_W + 2 * step, top + height + 54, title);
    plot_label(stdout, "title", "start", 24, 28, title);
    plot_label(stdout, "note", "start", 24, 48, "median over seeds, bars from the least to the largest; left of 1 is "
                                                "better; beyond 0.1 and 10: at the frame");
    for (int j = 0; j < n_names; j++) plot_legend_entry(stdout, j, 24 + j * (ENTRY + 20.0), 72, names[j]);
    for (int i = 0; i < n; i++) {
        const double y = top + PLOT_INSET + (i + 0.5) * ROW_H;
        plot_label(stdout, "tick", "end", LABELS_W - 8, y + 4, rows[i].label);
        if (i && rows[i].first)
            printf("<line class=\"grid\" x1=\"24\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", y - 0.5 * ROW_H,
                   LABELS_W + step + WIDE, y - 0.5 * ROW_H);
    }
    plot_y_title(stdout, 18, top + height / 2, "net, initialisation");
    overview_panel(&a, rows, n, n_names, BELOW, "one rate below the baseline's best");
    a.x0 += step;
    overview_panel(&a, rows, n, n_names, OWN_BEST, "each at its own best rate");
    printf("</svg>\n");
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    message_guard("report");
    if (!strcmp(command, "harm") && argc > 2) {
        print_harm(argc - 2, argv + 2);
    } else if (!strcmp(command, "worse") && argc > 3) {
        print_worse(0, argv[2], argc - 3, argv + 3);
    } else if (!strcmp(command, "above") && argc > 4) {
        if (!(atof(argv[2]) > 0)) fail("not a ratio above 0", argv[2]);
        print_worse(atof(argv[2]), argv[3], argc - 4, argv + 4);
    } else if (!strcmp(command, "best") && argc > 3) {
        print_best(argv[2], argc - 3, argv + 3);
    } else if (!strcmp(command, "summary") && argc > 3) {
        print_summary(argv[2], argc - 3, argv + 3);
    } else if (!strcmp(command, "plot") && argc >= 4) {
        read_file(argv[2]);
        plot(argv[3], argc - 4, argv + 4);
    } else if (!strcmp(command, "overview") && argc > 4) {
        overview(argv[2], argv[3], argc - 4, argv + 4);
    } else if (!strcmp(command, "table") && argc == 4) {
        read_file(argv[3]);
        const int rate = find_rate(atof(argv[2]));
        if (rate < 0) fail("no run has this learning rate", argv[2]);
        for (int k = 0; k < n_settings; k++) print_table(settings[k], rate);
    } else {
        fprintf(stderr, "usage: report table LR FILE.csv | summary|worse|best METHOD FILE.csv... | harm FILE.csv... | "
                        "above RATIO METHOD FILE.csv... | plot FILE.csv TITLE [METHOD,METHOD...]... | "
                        "overview METHOD,METHOD... TITLE FILE.csv...\n");
        return 2;
    }
    return 0;
}
