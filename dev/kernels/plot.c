// plot.c -- draws the variants of one operation against size, from the CSV of a benchmark.
//
//     plot FILE.csv OPERATION "title" >OPERATION.svg
//
// x: the shapes, in the order of their floor. y: time of the floor over the measured time, in percent, on a logarithmic
// axis; a variant at 100 is as fast as memory or the best matrix product allow. Exit status 1 when the file has no row
// of the operation, or a percentage of it is no positive number.
#include "../../common/message.h"
#include "../plot.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_POINTS = 200, MAX_NAME = 64, WIDTH = 880, LEFT = 76, PLOT_WIDTH = 560, HEIGHT = 300, TOP = 44 };

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
        const int got = sscanf(line, "%63[^,],%63[^,],%63[^,],%63[^,],%d,%lf,%lf,%lf,%d,%lf,%lf,%lf,%lf", op, variant,
                               precision, shape, &block, &ms, &p10, &p90, &runs, &rate, &gflops, &floor_ms, &percent);
        if (got != 13 || strcmp(op, operation) || n_points == MAX_POINTS) continue;
        if (!(percent >= 1e-300 && percent <= 1e300)) {
            fprintf(stderr, "plot: %s: percent of %s, %s: expected a positive number, got %g\n", path, op, variant,
                    percent);
            exit(1);
        }
        point *p = &points[n_points];
        snprintf(p->variant, sizeof p->variant, "%s", variant);
        snprintf(p->shape, sizeof p->shape, "%s", shape);
        p->floor_ms = floor_ms;
        p->percent = percent;
        index_of(variants, &n_variants, variant);
        n_points++;
    }
    fclose(f);
    qsort(points, (size_t)n_points, sizeof *points, by_floor);
    for (int i = 0; i < n_points; i++) points[i].column = index_of(shapes, &n_shapes, points[i].shape);
    return n_points;
}

typedef struct {
    double y_lo, y_hi;                             // range of log10 of the percentages
} scale;

// Pixels. The ranges end PLOT_INSET before the frame.
static double x_of(int column) {
    return LEFT + PLOT_WIDTH * (column + 0.5) / n_shapes;
}
static double y_of(const scale *s, double v) {
    return TOP + PLOT_INSET + (HEIGHT - 2 * PLOT_INSET) * (s->y_hi - log10(v)) / (s->y_hi - s->y_lo);
}

// Grid, ticks, frame and axis titles. levels: rows of labels of the shapes.
static void draw_axes(const scale *s, int levels) {
    static const int digits[3] = {1, 2, 5};
    const double bottom = TOP + HEIGHT, right = LEFT + PLOT_WIDTH;
    char text[32];
    for (int e = (int)s->y_lo; e <= s->y_hi; e++) {
        for (int d = 0; d < 3; d++) {
            const double v = digits[d] * pow(10, e), y = y_of(s, v);
            if (log10(v) > s->y_hi || (s->y_hi - s->y_lo > 3.2 && d > 0)) continue;
            printf("<line class=\"%s\" x1=\"%d\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", v == 100 ? "target" : "grid",
                   LEFT, y, right, y);
            snprintf(text, sizeof text, "%g%%", v);
            plot_label(stdout, "tick", "end", LEFT - 8, y + 4, text);
        }
    }
    for (int i = 0; i < n_shapes; i++) {
        const double x = x_of(i);
        printf("<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x, TOP, x, bottom);
        plot_label(stdout, "tick", "middle", x, bottom + 17 + 14 * (i % levels), shapes[i]);
    }
    printf("<path class=\"axis\" d=\"M%d %dV%.1fH%.1f\"/>\n", LEFT, TOP, bottom, right);
    plot_x_title(stdout, LEFT + PLOT_WIDTH / 2.0, bottom + 36 + 14 * (levels - 1), "shape");
    plot_y_title(stdout, LEFT - 58, TOP + HEIGHT / 2.0, "percent of the floor");
}

// The curve of a variant, its markers, its line of the legend.
static void draw_variant(const scale *s, int v) {
    const char *pen = "M";
    plot_open_curve(stdout, v);
    for (int i = 0; i < n_points; i++) {
        if (strcmp(points[i].variant, variants[v])) continue;
        printf("%s%.1f %.1f", pen, x_of(points[i].column), y_of(s, points[i].percent));
        pen = "L";
    }
    printf("\"/>\n");
    for (int i = 0; i < n_points; i++) {
        if (strcmp(points[i].variant, variants[v])) continue;
        plot_marker(stdout, v, x_of(points[i].column), y_of(s, points[i].percent));
    }
    plot_legend_entry(stdout, v, LEFT + PLOT_WIDTH + 24, TOP + 10 + 22.0 * v, variants[v]);
}

int main(int argc, char **argv) {
    double least = 100, most = 130;
    size_t longest = 0;
    message_guard("plot");
    if (argc != 4) {
        fprintf(stderr, "usage: plot FILE.csv OPERATION TITLE\n");
        return 2;
    }
    if (!read_rows(argv[1], argv[2])) {
        message_print("plot", "%s has no row of %s", argv[1], argv[2]);
        return 1;
    }
    for (int i = 0; i < n_points; i++) {
        least = fmin(least, points[i].percent);
        most = fmax(most, points[i].percent);
    }
    for (int i = 0; i < n_shapes; i++) longest = strlen(shapes[i]) > longest ? strlen(shapes[i]) : longest;
    const scale s = {floor(log10(least)), log10(most)};
    const int levels = 7.5 * (double)longest > PLOT_WIDTH / n_shapes ? 2 : 1;
    plot_begin(stdout, WIDTH, TOP + HEIGHT + 48 + 14 * (levels - 1), argv[3]);
    plot_label(stdout, "heading", "start", LEFT, 26, argv[3]);
    draw_axes(&s, levels);
    for (int v = 0; v < n_variants; v++) draw_variant(&s, v);
    printf("</svg>\n");
    return 0;
}
