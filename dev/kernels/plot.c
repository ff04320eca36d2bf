// plot.c -- draws the variants of one operation against size, from the CSV of a benchmark.
//
//     plot FILE.csv OPERATION "title" >OPERATION.svg
//
// x: what a shape must move (MiB) where the copy bandwidth is the floor of most rows, else what it must compute (GFLOP); the shapes
// themselves are the labels. y: time of the floor over the measured time, in percent; a variant at 100 is as fast as memory or the
// best matrix product allow. Both axes are logarithmic. Exit status 1 when the file has no row of the operation.
#include "../plot.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_POINTS = 200, MAX_NAME = 64, WIDTH = 860, LEFT = 64, PLOT_WIDTH = 560, HEIGHT = 300, TOP = 56 };

typedef struct {
    char variant[MAX_NAME], shape[MAX_NAME];
    double x, percent;
} point;

static point points[MAX_POINTS];
static char variants[MAX_POINTS][MAX_NAME];
static int n_points, n_variants;

// Reads the rows of an operation; x_is_flops: the product is what bounds most of them.
static int read_rows(const char *path, const char *operation, int *x_is_flops) {
    char line[1024], op[MAX_NAME], variant[MAX_NAME], precision[MAX_NAME], shape[MAX_NAME];
    double ms, p10, p90, rate, gflops, floor_ms, percent;
    double bytes[MAX_POINTS], flops[MAX_POINTS];
    int block, runs, compute = 0;
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        const int got = sscanf(line, "%63[^,],%63[^,],%63[^,],%63[^,],%d,%lf,%lf,%lf,%d,%lf,%lf,%lf,%lf", op, variant, precision, shape, &block, &ms,
                               &p10, &p90, &runs, &rate, &gflops, &floor_ms, &percent);
        if (got != 13 || strcmp(op, operation) || n_points == MAX_POINTS) continue;
        point *p = &points[n_points];
        snprintf(p->variant, sizeof p->variant, "%s", variant);
        snprintf(p->shape, sizeof p->shape, "%s", shape);
        p->percent = percent;
        bytes[n_points] = rate * ms / 1024 / 1.024 / 1.024, flops[n_points] = gflops * ms * 1e-3;
        compute += flops[n_points] > 20e-3 * bytes[n_points];  // more than 20 operations a byte
        n_points++;
        int known = 0;
        for (int i = 0; i < n_variants; i++) known |= !strcmp(variants[i], variant);
        if (!known) snprintf(variants[n_variants++], MAX_NAME, "%s", variant);
    }
    fclose(f);
    *x_is_flops = 2 * compute > n_points;
    for (int i = 0; i < n_points; i++) points[i].x = *x_is_flops ? flops[i] : bytes[i];
    return n_points;
}

int main(int argc, char **argv) {
    int flops = 0;
    double lo = HUGE_VAL, hi = 0, least = 100, most = 100, seen[MAX_POINTS];
    if (argc != 4) {
        fprintf(stderr, "usage: plot FILE.csv OPERATION TITLE\n");
        return 2;
    }
    if (!read_rows(argv[1], argv[2], &flops)) {
        fprintf(stderr, "plot: %s has no row of %s\n", argv[1], argv[2]);
        return 1;
    }
    for (int i = 0; i < n_points; i++) {
        lo = fmin(lo, points[i].x), hi = fmax(hi, points[i].x);
        least = fmin(least, points[i].percent), most = fmax(most, points[i].percent);
    }
    const double x_lo = log10(lo) - 0.1, x_hi = log10(hi) + 0.1, y_lo = floor(log10(least)), y_hi = log10(fmax(most, 130)), bottom = TOP + HEIGHT;
#define X_OF(v) (LEFT + PLOT_WIDTH * (log10(v) - x_lo) / (x_hi - x_lo))
#define Y_OF(v) (bottom - HEIGHT * (log10(v) - y_lo) / (y_hi - y_lo))
    printf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\" role=\"img\">\n<title>", WIDTH, bottom + 62,
           WIDTH, bottom + 62);
    plot_text(stdout, argv[3]);
    printf("</title>\n<style>\n" PLOT_STYLE "</style>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n<text class=\"heading\" x=\"%d\" y=\"26\">",
           LEFT);
    plot_text(stdout, argv[3]);
    printf("</text>\n<text class=\"note\" x=\"%d\" y=\"%d\">percent of the floor</text>\n", LEFT, TOP - 8);
    for (double e = y_lo; e <= y_hi; e++) {
        for (int d = 1; d < 10; d += d == 1 ? 1 : d == 2 ? 3 : 5) {
            const double v = d * pow(10, e), y = Y_OF(v);
            if (log10(v) > y_hi || (y_hi - y_lo > 3.2 && d > 1)) continue;
            printf("<line class=\"%s\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>\n", v == 100 ? "target" : "grid", LEFT, y, LEFT + PLOT_WIDTH, y);
            printf("<text class=\"tick\" text-anchor=\"end\" x=\"%d\" y=\"%.1f\">%g%%</text>\n", LEFT - 8, y + 4, v);
        }
    }
    int n_seen = 0;
    for (int i = 0; i < n_points; i++) {  // a label per shape; two at the same x share the place
        int known = 0;
        for (int k = 0; k < n_seen; k++) known |= fabs(log10(seen[k] / points[i].x)) < 1e-3;
        if (known) continue;
        seen[n_seen++] = points[i].x;
        const double x = X_OF(points[i].x);
        printf("<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x, TOP, x, bottom);
        printf("<text class=\"tick\" text-anchor=\"middle\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", x, bottom + (n_seen % 2 ? 17 : 31), points[i].shape);
    }
    printf("<path class=\"axis\" d=\"M%d %dV%.1fH%d\"/>\n", LEFT, TOP, bottom, LEFT + PLOT_WIDTH);
    printf("<text class=\"label\" text-anchor=\"middle\" x=\"%d\" y=\"%.1f\">shape, by %s</text>\n", LEFT + PLOT_WIDTH / 2, bottom + 50,
           flops ? "operations" : "bytes to move");
    for (int v = 0; v < n_variants; v++) {
        const double y = TOP + 10 + 22 * v;
        const char *pen = "M", *dash = *plot_dash(v) ? plot_dash(v) : "none";
        printf("<path class=\"curve\" stroke=\"%s\" stroke-dasharray=\"%s\" d=\"", plot_color(v), dash);
        for (int i = 0; i < n_points; i++)
            if (!strcmp(points[i].variant, variants[v])) printf("%s%.1f %.1f", pen, X_OF(points[i].x), Y_OF(points[i].percent)), pen = "L";
        printf("\"/>\n");
        for (int i = 0; i < n_points; i++)
            if (!strcmp(points[i].variant, variants[v])) plot_marker(stdout, v, X_OF(points[i].x), Y_OF(points[i].percent));
        printf("<path class=\"curve\" stroke=\"%s\" stroke-dasharray=\"%s\" d=\"M%d %.1fh36\"/>\n", plot_color(v), dash, LEFT + PLOT_WIDTH + 24, y);
        plot_marker(stdout, v, LEFT + PLOT_WIDTH + 42, y);
        printf("<text class=\"label\" x=\"%d\" y=\"%.1f\">", LEFT + PLOT_WIDTH + 68, y + 4.5);
        plot_text(stdout, variants[v]);
        printf("</text>\n");
    }
    printf("</svg>\n");
    return ferror(stdout) || fflush(stdout) ? 1 : 0;
}
