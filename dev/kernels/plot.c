// plot.c -- draws the variants of one operation against size, from the CSV of a benchmark.
//
//     plot FILE.csv OPERATION "title" >OPERATION.svg
//
// x: the shapes, in the order of their floor. y: time of the floor over the measured time, in percent, on a logarithmic axis; a variant
// at 100 is as fast as memory or the best matrix product allow. Exit status 1 when the file has no row of the operation.
#include "../plot.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_POINTS = 200, MAX_NAME = 64, WIDTH = 860, LEFT = 64, PLOT_WIDTH = 560, HEIGHT = 300, TOP = 56 };

typedef struct {
    char variant[MAX_NAME], shape[MAX_NAME];
    double floor_ms, percent;
    int column;  // of the plot: which shape
} point;

static point points[MAX_POINTS];
static char variants[MAX_POINTS][MAX_NAME], shapes[MAX_POINTS][MAX_NAME];
static int n_points, n_variants, n_shapes;

static int by_floor(const void *a, const void *b) {
    const double x = ((const point *)a)->floor_ms, y = ((const point *)b)->floor_ms;
    return x != y ? (x > y) - (x < y) : strcmp(((const point *)a)->shape, ((const point *)b)->shape);
}

// Index of a name in a list, added at the end if it is new.
static int index_of(char list[][MAX_NAME], int *n, const char *name) {
    for (int i = 0; i < *n; i++)
        if (!strcmp(list[i], name)) return i;
    snprintf(list[*n], MAX_NAME, "%s", name);
    return (*n)++;
}

// Reads the rows of an operation.
static int read_rows(const char *path, const char *operation) {
    char line[1024], op[MAX_NAME], variant[MAX_NAME], precision[MAX_NAME], shape[MAX_NAME];
    double ms, p10, p90, rate, gflops, floor_ms, percent;
    int block, runs;
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        const int got = sscanf(line, "%63[^,],%63[^,],%63[^,],%63[^,],%d,%lf,%lf,%lf,%d,%lf,%lf,%lf,%lf", op, variant, precision, shape, &block, &ms,
                               &p10, &p90, &runs, &rate, &gflops, &floor_ms, &percent);
        if (got != 13 || strcmp(op, operation) || n_points == MAX_POINTS) continue;
        point *p = &points[n_points];
        snprintf(p->variant, sizeof p->variant, "%s", variant);
        snprintf(p->shape, sizeof p->shape, "%s", shape);
        p->floor_ms = floor_ms, p->percent = percent;
        index_of(variants, &n_variants, variant);
        n_points++;
    }
    fclose(f);
    qsort(points, (size_t)n_points, sizeof *points, by_floor);
    for (int i = 0; i < n_points; i++) points[i].column = index_of(shapes, &n_shapes, points[i].shape);
    return n_points;
}

int main(int argc, char **argv) {
    double least = 100, most = 100;
    if (argc != 4) {
        fprintf(stderr, "usage: plot FILE.csv OPERATION TITLE\n");
        return 2;
    }
    if (!read_rows(argv[1], argv[2])) {
        fprintf(stderr, "plot: %s has no row of %s\n", argv[1], argv[2]);
        return 1;
    }
    for (int i = 0; i < n_points; i++) least = fmin(least, points[i].percent), most = fmax(most, points[i].percent);
    const double y_lo = floor(log10(least)), y_hi = log10(fmax(most, 130)), bottom = TOP + HEIGHT;
#define X_OF(shape) (LEFT + PLOT_WIDTH * ((shape) + 0.5) / n_shapes)
#define Y_OF(v) (bottom - HEIGHT * (log10(v) - y_lo) / (y_hi - y_lo))
    size_t longest = 0;
    for (int i = 0; i < n_shapes; i++) longest = strlen(shapes[i]) > longest ? strlen(shapes[i]) : longest;
    const int levels = 7.5 * (double)longest > PLOT_WIDTH / n_shapes ? 2 : 1;  // rows of labels
    const double foot = bottom + 48 + 14 * (levels - 1);
    printf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\" role=\"img\">\n<title>", WIDTH, foot, WIDTH,
           foot);
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
    for (int i = 0; i < n_shapes; i++) {
        printf("<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%.1f\"/>\n", X_OF(i), TOP, X_OF(i), bottom);
        printf("<text class=\"tick\" text-anchor=\"middle\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", X_OF(i), bottom + 17 + 14 * (i % levels), shapes[i]);
    }
    printf("<path class=\"axis\" d=\"M%d %dV%.1fH%d\"/>\n", LEFT, TOP, bottom, LEFT + PLOT_WIDTH);
    printf("<text class=\"label\" text-anchor=\"middle\" x=\"%d\" y=\"%.1f\">shape</text>\n", LEFT + PLOT_WIDTH / 2, foot - 12);
    for (int v = 0; v < n_variants; v++) {
        const double y = TOP + 10 + 22 * v;
        const char *pen = "M", *dash = *plot_dash(v) ? plot_dash(v) : "none";
        printf("<path class=\"curve\" stroke=\"%s\" stroke-dasharray=\"%s\" d=\"", plot_color(v), dash);
        for (int i = 0; i < n_points; i++)
            if (!strcmp(points[i].variant, variants[v])) printf("%s%.1f %.1f", pen, X_OF(points[i].column), Y_OF(points[i].percent)), pen = "L";
        printf("\"/>\n");
        for (int i = 0; i < n_points; i++)
            if (!strcmp(points[i].variant, variants[v])) plot_marker(stdout, v, X_OF(points[i].column), Y_OF(points[i].percent));
        printf("<path class=\"curve\" stroke=\"%s\" stroke-dasharray=\"%s\" d=\"M%d %.1fh36\"/>\n", plot_color(v), dash, LEFT + PLOT_WIDTH + 24, y);
        plot_marker(stdout, v, LEFT + PLOT_WIDTH + 42, y);
        printf("<text class=\"label\" x=\"%d\" y=\"%.1f\">", LEFT + PLOT_WIDTH + 68, y + 4.5);
        plot_text(stdout, variants[v]);
        printf("</text>\n");
    }
    printf("</svg>\n");
    return ferror(stdout) || fflush(stdout) ? 1 : 0;
}
