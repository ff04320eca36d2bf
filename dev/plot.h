// plot.h -- what the programs that write SVG plots share: head, style (light and dark), ticks, colours, dashes and
// markers of series, text.
//
// A series has the class s0 to s7, which sets `color`; curves, markers and ranges draw with currentColor. So the style
// sheet alone decides the colours, and its last rules are for viewers who prefer a dark scheme.
#pragma once
#include <float.h>
#include <math.h>
#include <stdio.h>

// Free pixels between the frame of a plot and its outermost points: a marker there is not cut.
#define PLOT_INSET 7.0

enum { PLOT_TICKS = 12 };  // of an axis, at most

// A step of 1, 2 or 5 times a power of ten that gives about `wanted` intervals, at most 9 for 5. Positive and finite
// for every range >= 0.
static inline double plot_step(double range, int wanted) {
    const double raw = range / wanted;
    if (!(raw >= DBL_MIN)) return DBL_MIN;
    if (!(raw <= 0.1 * DBL_MAX)) return 0.1 * DBL_MAX;
    const double power = pow(10, floor(log10(raw))), digits = raw / power;
    if (digits >= 7.5) return 10 * power;
    if (digits >= 3.5) return 5 * power;
    return digits >= 1.5 ? 2 * power : power;
}

// The multiples of step from lo to hi, increasing, at most PLOT_TICKS. Returns their number. An integer counts them,
// for a sum of floating-point numbers may stay where it is: 1e17 + 5 is 1e17.
static inline int plot_ticks(double *ticks, double lo, double hi, double step) {
    const double first = ceil(lo / step - 1e-9);
    int n = 0;
    for (int i = 0; i < PLOT_TICKS; i++) {
        const double v = (first + i) * step + 0.0;  // + 0.0: no "-0"
        if (!(v <= hi + 1e-9 * step)) break;
        if (n == 0 || v > ticks[n - 1]) ticks[n++] = v;
    }
    return n;
}

enum { PLOT_COLORS = 8 };

// Okabe and Ito's colours, which people with any colour vision tell apart, without the yellow, which white swallows;
// then the same hues, light enough for a dark background.
static const char *const plot_light[PLOT_COLORS] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                    "#E69F00", "#56B4E9", "#000000", "#7F7F7F"};
static const char *const plot_dark[PLOT_COLORS] = {"#4F9FE0", "#FF8A45", "#2FC99B", "#E5A0C8",
                                                   "#F0BB55", "#A5DDFF", "#FFFFFF", "#A8A8A8"};
static const char *const plot_dashes[PLOT_COLORS] = {"none", "8 4", "2 3", "9 3 2 3", "14 4", "5 2", "none", "3 4"};

static inline int plot_color(int series) {
    return series % PLOT_COLORS;
}
static inline const char *plot_dash(int series) {
    return plot_dashes[(series + 4 * (series / PLOT_COLORS)) % PLOT_COLORS];
}

// Text with what XML reserves escaped.
static inline void plot_text(FILE *f, const char *text) {
    for (; *text; text++) {
        if (*text == '&') fputs("&amp;", f);
        else if (*text == '<') fputs("&lt;", f);
        else if (*text == '>') fputs("&gt;", f);
        else if (*text == '"') fputs("&quot;", f);
        else fputc(*text, f);
    }
}

// A line of text at x, y. anchor: start, middle or end.
static inline void plot_label(FILE *f, const char *style, const char *anchor, double x, double y, const char *text) {
    fprintf(f, "<text class=\"%s\" text-anchor=\"%s\" x=\"%.1f\" y=\"%.1f\">", style, anchor, x, y);
    plot_text(f, text);
    fputs("</text>\n", f);
}

// The title of the horizontal axis, centred at x.
static inline void plot_x_title(FILE *f, double x, double y, const char *text) {
    plot_label(f, "label x-title", "middle", x, y, text);
}

// The title of the vertical axis, upwards, centred at y.
static inline void plot_y_title(FILE *f, double x, double y, const char *text) {
    fprintf(f, "<text class=\"label y-title\" text-anchor=\"middle\" transform=\"translate(%.1f %.1f) rotate(-90)\">",
            x, y);
    plot_text(f, text);
    fputs("</text>\n", f);
}

// Opens the path of a series; the caller writes its moves and lines, then "\"/>\n".
static inline void plot_open_curve(FILE *f, int series) {
    fprintf(f, "<path class=\"curve s%d\" stroke-dasharray=\"%s\" d=\"", plot_color(series), plot_dash(series));
}

// One marker of a series, centred at x, y; at most PLOT_INSET wide to every side.
static inline void plot_marker(FILE *f, int series, double x, double y) {
    const int shape = (series + 3 * (series / PLOT_COLORS)) % 8;
    const int open = shape == 5 || shape == 6;                 // plus and cross are strokes
    fprintf(f, "<path class=\"%s s%d\" d=\"", open ? "cross" : "marker", plot_color(series));
    switch (shape) {                                           // formats stay literal, so that compilers check them
#define SHAPE(k, text) case k: fprintf(f, text, x, y); break;
    SHAPE(0, "M%.1f %.1fm-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z")
    SHAPE(1, "M%.1f %.1fm-3.2 -3.2h6.4v6.4h-6.4z")
    SHAPE(2, "M%.1f %.1fm0 -4.4l4 7h-8z")
    SHAPE(3, "M%.1f %.1fm0 -4.6l4.2 4.6l-4.2 4.6l-4.2 -4.6z")
    SHAPE(4, "M%.1f %.1fm0 4.4l4 -7h-8z")
    SHAPE(5, "M%.1f %.1fm-4.6 0h9.2m-4.6 -4.6v9.2")
    SHAPE(6, "M%.1f %.1fm-3.6 -3.6l7.2 7.2m0 -7.2l-7.2 7.2")
    default: fprintf(f, "M%.1f %.1fm-4.6 -2a4.6 4.6 0 1 0 9.2 0z", x, y);
#undef SHAPE
    }
    fputs("\"/>\n", f);
}

// An entry of the legend: 36 pixels of the curve with its marker, then the name.
static inline void plot_legend_entry(FILE *f, int series, double x, double y, const char *name) {
    fputs("<g class=\"legend\">\n", f);
    plot_open_curve(f, series);
    fprintf(f, "M%.1f %.1fh36\"/>\n", x, y);
    plot_marker(f, series, x + 18, y);
    plot_label(f, "label", "start", x + 44, y + 4.5, name);
    fputs("</g>\n", f);
}

static inline void plot_style(FILE *f) {
    fputs("<style>\n"
          "text { font-family: Helvetica, Arial, \"DejaVu Sans\", sans-serif; fill: #222; }\n"
          ".title { font-size: 18px; font-weight: bold; }\n"
          ".heading { font-size: 14px; font-weight: bold; }\n"
          ".label { font-size: 13px; }\n"
          ".tick, .note { font-size: 12px; fill: #444; }\n"
          ".back { fill: #fff; }\n"
          ".grid { stroke: #e3e3e3; stroke-width: 1; }\n"
          ".axis { stroke: #444; stroke-width: 1.2; fill: none; }\n"
          ".target { stroke: #777; stroke-width: 1; stroke-dasharray: 4 3; }\n"
          ".curve { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }\n"
          ".range { fill: none; stroke: currentColor; stroke-width: 1.2; }\n"
          ".marker { fill: currentColor; stroke: #fff; stroke-width: 0.8; }\n"
          ".cross { fill: none; stroke: currentColor; stroke-width: 2; }\n", f);
    for (int i = 0; i < PLOT_COLORS; i++) fprintf(f, ".s%d { color: %s; }\n", i, plot_light[i]);
    fputs("@media (prefers-color-scheme: dark) {\n"
          "text { fill: #e6e6e6; }\n"
          ".tick, .note { fill: #b8b8b8; }\n"
          ".back { fill: #15191e; }\n"
          ".grid { stroke: #2f353d; }\n"
          ".axis { stroke: #b8b8b8; }\n"
          ".target { stroke: #9a9a9a; }\n"
          ".marker { stroke: #15191e; }\n", f);
    for (int i = 0; i < PLOT_COLORS; i++) fprintf(f, ".s%d { color: %s; }\n", i, plot_dark[i]);
    fputs("}\n</style>\n", f);
}

// Opens a picture of width x height pixels; the title is for screen readers and tooltips.
static inline void plot_begin(FILE *f, double width, double height, const char *title) {
    fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" "
               "role=\"img\">\n<title>", width, height, width, height);
    plot_text(f, title);
    fputs("</title>\n", f);
    plot_style(f);
    fputs("<rect class=\"back\" width=\"100%\" height=\"100%\"/>\n", f);
}
