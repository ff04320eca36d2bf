// plot.h -- what the programs that write SVG plots share: colours, dashes and markers of series, text, style.
#pragma once
#include <stdio.h>

// Okabe and Ito's colours, which people with any colour vision tell apart, without the yellow, which white swallows.
static const char *const plot_colors[8] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F"};
static const char *const plot_dashes[5] = {"", "8 4", "2 3", "9 3 2 3", "14 4"};

static inline const char *plot_color(int i) {
    return plot_colors[i % 8];
}
static inline const char *plot_dash(int i) {
    return plot_dashes[(i + 4 * (i / 8)) % 5];
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

// One marker of a series, centred at x, y.
static inline void plot_marker(FILE *f, int series, double x, double y) {
    const int shape = (series + 3 * (series / 8)) % 8;
    const char *c = plot_color(series);
    if (shape == 0) {
        fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.6\" fill=\"%s\" stroke=\"#fff\" stroke-width=\"0.8\"/>\n", x, y, c);
        return;
    }
    const int open = shape == 5 || shape == 6;                 // plus and cross are strokes
    fputs("<path d=\"", f);
    switch (shape) {                                           // formats stay literal, so that compilers check them
#define SHAPE(k, text) case k: fprintf(f, text, x, y); break;
    SHAPE(1, "M%.1f %.1fm-3.2 -3.2h6.4v6.4h-6.4z")
    SHAPE(2, "M%.1f %.1fm0 -4.4l4 7h-8z")
    SHAPE(3, "M%.1f %.1fm0 -4.6l4.2 4.6l-4.2 4.6l-4.2 -4.6z")
    SHAPE(4, "M%.1f %.1fm0 4.4l4 -7h-8z")
    SHAPE(5, "M%.1f %.1fm-4.6 0h9.2m-4.6 -4.6v9.2")
    SHAPE(6, "M%.1f %.1fm-3.6 -3.6l7.2 7.2m0 -7.2l-7.2 7.2")
    default: fprintf(f, "M%.1f %.1fm-4.6 0a4.6 4.6 0 1 0 9.2 0z", x, y);
#undef SHAPE
    }
    if (open) fprintf(f, "\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", c);
    else fprintf(f, "\" fill=\"%s\" stroke=\"#fff\" stroke-width=\"0.8\"/>\n", c);
}

// The style sheet of a plot.
#define PLOT_STYLE \
    "text { font-family: Helvetica, Arial, \"DejaVu Sans\", sans-serif; fill: #222; }\n" \
    ".title { font-size: 18px; font-weight: bold; }\n" \
    ".heading { font-size: 14px; font-weight: bold; }\n" \
    ".label { font-size: 13px; }\n" \
    ".tick, .note { font-size: 12px; fill: #444; }\n" \
    ".grid { stroke: #e3e3e3; stroke-width: 1; }\n" \
    ".axis { stroke: #444; stroke-width: 1.2; fill: none; }\n" \
    ".target { stroke: #777; stroke-width: 1; stroke-dasharray: 4 3; }\n" \
    ".curve { fill: none; stroke-width: 2; stroke-linejoin: round; }\n"
