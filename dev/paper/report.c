// report.c -- what the runs of dev/paper/run.sh show: tables, the comparison with no rescaling, plots.
//
//     report table LR FILE.csv      per net and initialisation, as a Markdown table: every method at its own best learning rate, and at LR
//     report harm FILE.csv...       per method: in how many settings it is better, equal or worse than no rescaling
//     report worse METHOD FILE.csv...   the settings in which a method is worse
//     report plot FILE.csv TITLE [METHOD...]   final training loss against the learning rate, SVG on stdout; only these methods
//
// A row of a CSV is one run: experiment,net,init,lr,method,seed,steps,train_loss,test_loss,test_accuracy,max_log_lambda,trace_ratio,
// rescale_seconds,train_seconds,c1,...,c20; c_k is the mean step loss over the k-th twentieth of the run, c20 the final training loss here.
// A run that diverged has inf there, and counts as one that has learned nothing: no loss is taken as higher than `none` has in the first
// twentieth at the lowest rate. Seeds pair the runs: a seed fixes the initial weights and the order of samples for all methods.
//
//     final loss    mean over seeds ± standard deviation of c20. A method's best learning rate has the lowest mean.
//     time          epochs (or steps) until the method is first down at the baseline's final loss (same seed, baseline at its best rate, or at
//                   the rate asked for), the curve c1..c20 interpolated, over those until the baseline itself first is; geometric mean
//                   over the seeds [95 % interval, Student's t of the logarithms]. Where some seeds never get there: the mean of the
//                   others, and how many they are.
//     harm          numbers `better, equal, worse`, settings being nets, initialisations and learning rates; `ratio`: geometric mean over the
//                   settings of the final loss over the baseline's; `above 1.05x`: settings where the mean over seeds is.
//     better/worse  paired differences of log c20 against `none` at the same net, initialisation and learning rate, two-sided t-test at
//                   95 %, and a mean ratio of more than 1 %. `certain`: worse also after Holm's correction for the number of settings.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../plot.h"

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

static char methods[MAX_METHODS][NAME];
static double rates[MAX_RATES];   // ascending
static setting *settings[MAX_SETTINGS];
static int n_methods, n_rates, n_settings;

static void fail(const char *what, const char *name) {
    fprintf(stderr, "report: %s: %s\n", name, what);
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
            field(&at);  // experiment
            const char *net = field(&at), *init = field(&at);
            const double lr = atof(field(&at));
            if (pass == 0) {
                if (find_rate(lr) >= 0) continue;
                if (n_rates == MAX_RATES) fail("more than 16 learning rates", path);
                rates[n_rates++] = lr;
                continue;
            }
            int k = 0;
            while (k < n_settings && (strcmp(settings[k]->net, net) || strcmp(settings[k]->init, init))) k++;
            if (k == n_settings) {
                if (k == MAX_SETTINGS || !(settings[k] = (setting *)calloc(1, sizeof(setting)))) fail("more than 64 nets and initialisations", path);
                copy_name(settings[k]->net, net), copy_name(settings[k]->init, init);
                n_settings++;
            }
            cell *c = &settings[k]->cells[find_rate(lr)][find(methods, &n_methods, MAX_METHODS, field(&at))];
            if (c->n == MAX_SEEDS) fail("more than 16 seeds", path);
            const int seed = atoi(field(&at));
            if (run_of_seed(c, seed)) fail("two runs of one method, net, initialisation, learning rate and seed", path);
            run *r = &c->runs[c->n++];
            r->seed = seed;
            field(&at), field(&at), field(&at);  // steps, train_loss, test_loss
            r->accuracy = atof(field(&at)), r->max_log = atof(field(&at));
            field(&at), field(&at), field(&at);  // trace_ratio, rescale_seconds, train_seconds
            for (int i = 0; i < CURVE; i++) {
                const char *value = field(&at);
                if (!*value) fail("a row with fewer than 34 fields", path);
                r->curve[i] = atof(value);
                if (!(r->curve[i] > 0)) r->curve[i] = isfinite(r->curve[i]) ? 1e-12 : INFINITY;  // nan; a loss that fp32 rounds to zero
            }
        }
        fclose(f);
        qsort(rates, (size_t)n_rates, sizeof *rates, ascending);
    }
    if (!n_settings || strcmp(methods[0], "none")) fail("no runs, or none of method `none` first", path);
    for (int k = 0; k < n_settings; k++) {
        setting *s = settings[k];
        int lowest = 0;
        while (lowest < n_rates - 1 && !s->cells[lowest][0].n) lowest++;
        const cell *c = &s->cells[lowest][0];
        for (int i = 0; i < c->n; i++) s->nothing += c->runs[i].curve[0] / c->n;
        if (!(s->nothing > 0 && s->nothing < INFINITY)) fail("`none` is missing or diverges at the lowest learning rate", path);
        for (int j = 0; j < n_rates * n_methods; j++) {
            cell *at = &s->cells[j / n_methods][j % n_methods];
            for (int i = 0; i < at->n; i++) {
                double *final = &at->runs[i].curve[CURVE - 1];
                at->runs[i].failed = *final >= 0.99 * s->nothing, at->failed += at->runs[i].failed;
                *final = fmin(*final, s->nothing);
            }
        }
    }
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
    static const double t[] = {0, 0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131};
    return n > 1 ? t[n] * deviation(x, n) / sqrt(n) : INFINITY;
}
// Two-sided p-value of the mean of n values being zero, Student's t: the finite series for whole degrees of freedom.
static double p_value(const double *x, int n) {
    const int freedom = n - 1;
    if (n < 2) return 1;
    const double s = deviation(x, n), t = fabs(mean(x, n)) * sqrt(n) / s, theta = atan(t / sqrt(freedom)), c2 = cos(theta) * cos(theta);
    double term = freedom % 2 ? cos(theta) : 1, sum = freedom == 1 ? 0 : term;
    if (mean(x, n) == 0) return 1;
    if (s == 0) return 0;
    for (int k = freedom % 2 ? 3 : 2; k < freedom; k += 2) term *= c2 * (k - 1) / k, sum += term;
    return fmax(0, 1 - (freedom % 2 ? 2 / M_PI * (theta + sin(theta) * sum) : sin(theta) * sum));
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

// The part of a run after which its curve is at or below the target, or 0: never. A window's mean stands for the window's end.
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
    if (!c->n) printf(" |");
    else if (!pairs) printf(" baseline learns nothing |");
    else if (!n) printf(" never |");
    else if (n < pairs || n < 2) printf(" %.2f (%d of %d) |", exp(mean(log_time, n)), n, pairs);
    else if (c == base) printf(" 1 |");
    else printf(" %.2f [%.2f, %.2f] |", exp(mean(log_time, n)), exp(mean(log_time, n) - half_interval(log_time, n)), exp(mean(log_time, n) + half_interval(log_time, n)));
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
    printf("%s, %s\n\n| method | best lr | final loss | time | test accuracy | max log λ | final loss at lr %g | time |\n", s->net, s->init, rates[rate]);
    printf("| --- |"), print_rule(7);
    for (int m = 0; m < n_methods; m++) {
        const int best = best_rate(s, m);
        const cell *c = &s->cells[best][m];
        double accuracy = 0, max_log = 0;
        if (!c->n) continue;
        for (int i = 0; i < c->n; i++) accuracy += c->runs[i].accuracy / c->n, max_log = fmax(max_log, c->runs[i].max_log);
        printf("| %s | %g |", methods[m], rates[best]);
        print_loss(c), print_time(c, &s->cells[best_rate(s, 0)][0]);
        if (accuracy > 0) printf(" %.1f%% |", 100 * accuracy);
        else printf(" n/a |");
        if (max_log > 0) printf(" %.2g |", max_log);
        else printf(" |");
        print_loss(&s->cells[rate][m]), print_time(&s->cells[rate][m], &s->cells[rate][0]);
        printf("\n");
    }
    printf("\n");
}

// ---------------------------------------------------------------------------------------------------------- do no harm

enum { MAX_CELLS = 1024 };
typedef struct tally {
    int count[5][3];                     // better, equal, worse: where the baseline learns nothing at any rate; at rates below, at and above
                                         // its best; each at its own best rate
    int n, above_5;                      // settings; those with a mean ratio above 1.05
    double log_ratio;                    // summed over the settings
    double largest_gain, largest_harm;   // of the mean log ratio to `none`, where it is significant
    double p[MAX_CELLS];                 // of every setting, 1 where the method's mean is better
} tally;

// -1: the method's loss is significantly below the baseline's, 1 above, 0 neither; *d the mean of the log ratio, *p its p-value.
static int compare(const cell *c, const cell *base, double *d, double *p) {
    double x[MAX_SEEDS];
    int n = 0;
    for (int i = 0; i < c->n; i++) {
        const run *b = run_of_seed(base, c->runs[i].seed);
        if (b) x[n++] = log(final_loss(&c->runs[i])) - log(final_loss(b));
    }
    *d = n ? mean(x, n) : 0, *p = p_value(x, n);
    return fabs(*d) <= 0.01 || !(*p < 0.05) ? 0 : *d > 0 ? 1 : -1;
}

static void add_to_tally(tally *t, const setting *s, int method) {
    double d, p;
    const int best = best_rate(s, 0), own = best_rate(s, method), nothing = s->cells[best][0].failed == s->cells[best][0].n;
    for (int r = 0; r < n_rates; r++) {
        if (!s->cells[r][method].n || !s->cells[r][0].n) continue;
        const int sign = compare(&s->cells[r][method], &s->cells[r][0], &d, &p);
        if (t->n == MAX_CELLS) fail("more than 1024 settings", methods[method]);
        t->p[t->n++] = d > 0.01 ? p : 1;
        t->count[nothing ? 0 : r < best ? 1 : r == best ? 2 : 3][sign + 1]++;
        t->log_ratio += d, t->above_5 += d > log(1.05);
        if (sign < 0) t->largest_gain = fmin(t->largest_gain, d);
        if (sign > 0) t->largest_harm = fmax(t->largest_harm, d);
    }
    if (s->cells[own][method].n) t->count[4][compare(&s->cells[own][method], &s->cells[best][0], &d, &p) + 1]++;
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
    printf("| method | settings | baseline learns nothing | below its best rate | at | above | certain | ratio | above 1.05x | largest gain | largest harm | each at its best rate |\n");
    printf("| --- |"), print_rule(11);
    for (int m = 0; m < n_all; m++) {
        tally *t = &tallies[m];
        printf("| %s | %d |", all[m], t->n);
        for (int k = 0; k < 4; k++) printf(" %d, %d, %d |", t->count[k][0], t->count[k][1], t->count[k][2]);
        printf(" %d | %.2fx | %d | %.2gx | %.3gx | %d, %d, %d |\n", certain(t->p, t->n), exp(t->log_ratio / t->n), t->above_5, exp(t->largest_gain),
               exp(t->largest_harm), t->count[4][0], t->count[4][1], t->count[4][2]);
    }
}

static void print_worse(const char *name, int n_files, char **files) {
    double d, p;
    int found = 0;
    printf("| net | init | lr | none | %s | ratio | p |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |\n", name);
    for (int f = 0; f < n_files; f++) {
        int m = 0;
        read_file(files[f]);
        while (m < n_methods && strcmp(methods[m], name)) m++;
        found += m < n_methods;
        for (int i = 0; m < n_methods && i < n_settings * n_rates; i++) {
            const int k = i / n_rates, r = i % n_rates;
            const cell *c = &settings[k]->cells[r][m], *base = &settings[k]->cells[r][0];
            if (!c->n || !base->n || compare(c, base, &d, &p) <= 0) continue;
            printf("| %s | %s | %g |", settings[k]->net, settings[k]->init, rates[r]);
            print_loss(base), print_loss(c);
            printf(" %.3gx | %.2g |\n", exp(d), p);
        }
    }
    if (!found) fail("no run has this method", name);
}

// ---------------------------------------------------------------------------------------------------------------- plots

static int shown[MAX_METHODS], n_shown;  // the methods of a plot

enum { PANEL_W = 330, PANEL_H = 210, LEFT = 62, TOP = 64, GAP_X = 78, GAP_Y = 74, COLUMNS = 2, LEGEND = 190 };

// One panel: final loss against the learning rate, a curve per method, vertical lines from the least to the largest seed.
static void plot_panel(const setting *s, int x0, int y0) {
    double lo = INFINITY, hi = 0;
    for (int k = 0; k < n_shown; k++)
        for (int r = 0; r < n_rates; r++)
            for (int i = 0; i < s->cells[r][shown[k]].n; i++) {
                const double v = final_loss(&s->cells[r][shown[k]].runs[i]);
                lo = fmin(lo, v), hi = fmax(hi, v);
            }
    const double y_lo = log10(lo) - 0.03, y_hi = log10(hi) + 0.03, x_lo = log10(rates[0]) - 0.12, x_hi = log10(rates[n_rates - 1]) + 0.12;
#define X_OF(k, r) (x0 + PANEL_W * (log10(rates[r]) - x_lo) / (x_hi - x_lo) + 3 * ((k) - 0.5 * (n_shown - 1)))
#define Y_OF(v) (y0 + PANEL_H * (y_hi - log10(v)) / (y_hi - y_lo))
    printf("<text class=\"heading\" x=\"%d\" y=\"%d\">", x0, y0 - 10);
    plot_text(stdout, s->net), printf(", "), plot_text(stdout, s->init);
    printf("</text>\n");
    for (int e = -13; e < 4; e++)
        for (int d = 10; d < 100; d++) {
            const double v = 0.1 * d * pow(10, e), span = y_hi - y_lo;
            if (log10(v) < y_lo || log10(v) > y_hi || (span > 0.25 && d % 10) || (span > 0.8 && d != 10 && d != 20 && d != 50) || (span > 2 && d > 10)) continue;
            printf("<line class=\"grid\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>\n", x0, Y_OF(v), x0 + PANEL_W, Y_OF(v));
            printf("<text class=\"tick\" text-anchor=\"end\" x=\"%d\" y=\"%.1f\">%g</text>\n", x0 - 6, Y_OF(v) + 4, v);
        }
    for (int r = 0; r < n_rates; r++)
        printf("<text class=\"tick\" text-anchor=\"middle\" x=\"%.1f\" y=\"%d\">%g</text>\n", X_OF(0.5 * (n_shown - 1), r), y0 + PANEL_H + 17, rates[r]);
    printf("<path class=\"axis\" d=\"M%d %dV%dH%d\"/>\n", x0, y0, y0 + PANEL_H, x0 + PANEL_W);
    for (int k = 0; k < n_shown; k++) {
        const int m = shown[k];
        const char *pen = "M";
        printf("<path class=\"curve\" stroke=\"%s\" stroke-dasharray=\"%s\" d=\"", plot_color(k), *plot_dash(k) ? plot_dash(k) : "none");
        for (int r = 0; r < n_rates; r++) {
            const double v = mean_loss(&s->cells[r][m]);
            if (s->cells[r][m].n) printf("%s%.1f %.1f", pen, X_OF(k, r), Y_OF(v)), pen = "L";
        }
        printf("\"/>\n");
        for (int r = 0; r < n_rates; r++) {
            const cell *c = &s->cells[r][m];
            double least = INFINITY, most = 0;
            for (int i = 0; i < c->n; i++) least = fmin(least, final_loss(&c->runs[i])), most = fmax(most, final_loss(&c->runs[i]));
            if (!c->n) continue;
            printf("<path stroke=\"%s\" stroke-width=\"1\" d=\"M%.1f %.1fV%.1f\"/>\n", plot_color(k), X_OF(k, r), Y_OF(least), Y_OF(most));
            plot_marker(stdout, k, X_OF(k, r), Y_OF(mean_loss(c)));
        }
    }
}

static void plot(const char *title, int n_names, char **names) {
    for (int k = 0; k < n_names; k++)
        for (int m = 0; m < n_methods; m++)
            if (!strcmp(methods[m], names[k])) shown[n_shown++] = m;
    for (; !n_names && n_shown < n_methods; n_shown++) shown[n_shown] = n_shown;
    if (!n_shown) fail("no run has one of these methods", names[0]);
    const int rows = (n_settings + COLUMNS - 1) / COLUMNS, columns = n_settings < COLUMNS ? n_settings : COLUMNS;
    const int legend_x = LEFT + columns * (PANEL_W + GAP_X) - GAP_X + 24, width = legend_x + LEGEND;
    int height = TOP + rows * (PANEL_H + GAP_Y);
    if (height < TOP + 20 * n_shown + 30) height = TOP + 20 * n_shown + 30;
    printf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" role=\"img\">\n<title>", width, height, width, height);
    plot_text(stdout, title);
    printf("</title>\n<style>\n" PLOT_STYLE "</style>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n<text class=\"title\" x=\"%d\" y=\"26\">", LEFT);
    plot_text(stdout, title);
    printf("</text>\n");
    for (int k = 0; k < n_settings; k++)
        plot_panel(settings[k], LEFT + k % COLUMNS * (PANEL_W + GAP_X), TOP + k / COLUMNS * (PANEL_H + GAP_Y));
    printf("<text class=\"label\" text-anchor=\"middle\" x=\"%d\" y=\"%d\">learning rate</text>\n", LEFT + PANEL_W / 2, TOP + (rows - 1) * (PANEL_H + GAP_Y) + PANEL_H + 36);
    for (int k = 0; k < n_shown; k++) {
        const int y = TOP + 6 + 20 * k;
        printf("<path class=\"curve\" stroke=\"%s\" stroke-dasharray=\"%s\" d=\"M%d %dh36\"/>\n", plot_color(k), *plot_dash(k) ? plot_dash(k) : "none", legend_x, y);
        plot_marker(stdout, k, legend_x + 18, y);
        printf("<text class=\"label\" x=\"%d\" y=\"%d\">", legend_x + 44, y + 4);
        plot_text(stdout, methods[shown[k]]);
        printf("</text>\n");
    }
    printf("</svg>\n");
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    if (!strcmp(command, "harm") && argc > 2) {
        print_harm(argc - 2, argv + 2);
    } else if (!strcmp(command, "worse") && argc > 3) {
        print_worse(argv[2], argc - 3, argv + 3);
    } else if (!strcmp(command, "plot") && argc >= 4 && argc < 4 + MAX_METHODS) {
        read_file(argv[2]);
        plot(argv[3], argc - 4, argv + 4);
    } else if (!strcmp(command, "table") && argc == 4) {
        read_file(argv[3]);
        const int rate = find_rate(atof(argv[2]));
        if (rate < 0) fail("no run has this learning rate", argv[2]);
        for (int k = 0; k < n_settings; k++) print_table(settings[k], rate);
    } else {
        fprintf(stderr, "usage: report table LR FILE.csv | harm FILE.csv... | worse METHOD FILE.csv... | plot FILE.csv TITLE [METHOD...]\n");
        return 2;
    }
    return ferror(stdout) || fflush(stdout) ? 1 : 0;
}
