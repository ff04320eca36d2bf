// cli.h -- a command line from one table: getopt_long with types, ranges, help and exact error messages.
//
//     static double lr = 0.1;
//     static int epochs = 20, quiet = 0, bias = 1, init = 0;
//     static cli_ints layers = {3, {784, 512, 10}};
//     static cli_every every = {0, CLI_STEPS};
//     static const char *save = NULL;
//     static cli_option options[] = {
//         CLI_GROUP("Model"),
//         CLI_INTS("layers", &layers, "N,N,...", 1, 1e6, "units of each layer, input first"),
//         CLI_CHOICE("init", &init, "kaiming-uniform|kaiming-normal", "initialisation of the weights"),
//         CLI_NO_FLAG("no-bias", &bias, "leave out the biases"),
//         CLI_GROUP("Training"),
//         CLI_DOUBLE("lr", &lr, "X", 0, CLI_NO_MAX, CLI_ABOVE_MIN, "learning rate"),
//         CLI_INT("epochs", &epochs, "N", 0, CLI_NO_MAX, "passes over the training set"),
//         CLI_EVERY("rescale-every", &every, "rescale again after that many steps or epochs, 0: only at init"),
//         CLI_GROUP("Output"),
//         CLI_STRING("save", &save, "FILE", "write the final weights"),
//         CLI_FLAG("quiet", &quiet, "no progress line"),
//     };
//     enum { n_options = sizeof options / sizeof *options };
//     cli_parse("train_mlp", "Trains an MLP.", "0.1.0", options, n_options, argc, argv);     // exits, see below
//     if (cli_given(options, n_options, "lr")) ...                                    // 1 when on the command line
//
// What a variable holds before cli_parse is its default, which --help shows (not NULL, nan and an empty list, which
// stand for "not set"). --help, -h and --version are added by themselves: they print on stdout and exit 0, wherever
// they stand on the line. Values are written `--lr 0.1` or `--lr=0.1`; a repeated option is allowed and the last one
// wins.
//
// A usage error prints one line on stderr and exits 2:
//     train_mlp: --lr: expected a number > 0, got 'abc' (see --help)
// Refused: unknown options (the nearest name is suggested, as is the nearest word for an unknown choice),
// abbreviations (`--epo` would break scripts as soon as a second option starts like that), a missing value, an empty
// one (but of CLI_TEXT), text after a number, overflow, numbers out of range, inf and nan (unless CLI_ALLOW_NONFINITE),
// hexadecimal, unknown choices, a value for a flag, and arguments that belong to no option (unless the table has
// CLI_REST). A separate value may start with one dash (`--lr -1` is a range error of --lr) but not with two, which is a
// forgotten value; write `--save=--odd` if it is meant.
//
//     cli_parse          fills the variables or exits; the one function of common/ that ends the process, with
//     cli_usage_error    which a program reports an error of its own the same way (options that exclude each other)
//     cli_try            the same as cli_parse, without output and exit, for tests and other front ends
//     cli_help           prints the help
//     cli_given          whether an option was on the command line, or stored by an earlier run (cli_restore)
//     cli_text           the value of an option as it is written on a command line
//     cli_store_word     a value as a word that cli_restore reads: --lr=0.1
//     cli_restore        sets an option that is not on the command line from such a word
//
// C11, C++17, CUDA. C programs compile with -D_GNU_SOURCE (or -std=gnu11). Not thread-safe, as getopt is not.
#pragma once
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "message.h"

enum { CLI_MAX_LIST = 256 };               // values in one CLI_INTS or CLI_REST
enum { CLI_STEPS = 0, CLI_EPOCHS = 1 };    // unit of a cli_every

typedef struct {
    int n;                   // values in use
    int v[CLI_MAX_LIST];
} cli_ints;

typedef struct {
    int64_t n;               // 0: never
    int unit;                // CLI_STEPS or CLI_EPOCHS
} cli_every;

typedef struct {
    int n;                   // arguments in use
    const char *v[CLI_MAX_LIST];
} cli_rest;

typedef enum {
    CLI_KIND_GROUP,          // a heading in --help
    CLI_KIND_FLAG,           // int *: set to 1
    CLI_KIND_NO_FLAG,        // int *: set to 0
    CLI_KIND_INT,            // int *
    CLI_KIND_INT64,          // int64_t *
    CLI_KIND_DOUBLE,         // double *
    CLI_KIND_STRING,         // const char **, points into argv
    CLI_KIND_CHOICE,         // int *: index into the words of `choices`
    CLI_KIND_INTS,           // cli_ints *
    CLI_KIND_EVERY,          // cli_every *
    CLI_KIND_REST            // cli_rest *: all arguments that belong to no option
} cli_kind;

enum { CLI_ABOVE_MIN = 1, CLI_BELOW_MAX = 2, CLI_ALLOW_NONFINITE = 4 };    // open bounds; inf and nan allowed
enum { CLI_ALLOW_EMPTY = 8 };                                               // the empty string is a value
#define CLI_NO_MIN (-HUGE_VAL)
#define CLI_NO_MAX HUGE_VAL

typedef struct {
    const char *name;        // without the dashes; the title of a group
    cli_kind kind;
    void *value;             // type by kind, see cli_kind
    double min, max;         // bounds of a number, of each number of a list, of the count of CLI_REST
    int flags;               // CLI_ABOVE_MIN | CLI_BELOW_MAX | CLI_ALLOW_NONFINITE; CLI_ALLOW_EMPTY
    const char *choices;     // "a|b|c"
    const char *arg;         // what --help calls the value: N, X, FILE
    const char *help;
    int given;               // CLI_TYPED: on the command line; CLI_STORED: by cli_restore; 0: has its default
} cli_option;

enum { CLI_TYPED = 1, CLI_STORED = 2 };

// Rows of the table. Integers take closed bounds; a CLI_DOUBLE bound is open when `flags` says so.
#define CLI_GROUP(title) {title, CLI_KIND_GROUP, NULL, 0, 0, 0, NULL, NULL, NULL, 0}
#define CLI_FLAG(name, ptr, help) {name, CLI_KIND_FLAG, ptr, 0, 0, 0, NULL, NULL, help, 0}
#define CLI_NO_FLAG(name, ptr, help) {name, CLI_KIND_NO_FLAG, ptr, 0, 0, 0, NULL, NULL, help, 0}
#define CLI_INT(name, ptr, arg, min, max, help) \
    {name, CLI_KIND_INT, ptr, (double)(min), (double)(max), 0, NULL, arg, help, 0}
#define CLI_INT64(name, ptr, arg, min, max, help) \
    {name, CLI_KIND_INT64, ptr, (double)(min), (double)(max), 0, NULL, arg, help, 0}
#define CLI_DOUBLE(name, ptr, arg, min, max, flags, help) \
    {name, CLI_KIND_DOUBLE, ptr, (double)(min), (double)(max), flags, NULL, arg, help, 0}
#define CLI_STRING(name, ptr, arg, help) {name, CLI_KIND_STRING, ptr, 0, 0, 0, NULL, arg, help, 0}
#define CLI_TEXT(name, ptr, arg, help) {name, CLI_KIND_STRING, ptr, 0, 0, CLI_ALLOW_EMPTY, NULL, arg, help, 0}
#define CLI_CHOICE(name, ptr, choices, help) {name, CLI_KIND_CHOICE, ptr, 0, 0, 0, choices, NULL, help, 0}
#define CLI_INTS(name, ptr, arg, min, max, help) \
    {name, CLI_KIND_INTS, ptr, (double)(min), (double)(max), 0, NULL, arg, help, 0}
#define CLI_EVERY(name, ptr, help) {name, CLI_KIND_EVERY, ptr, 0, 0, 0, NULL, "Nsteps|Nepochs", help, 0}
#define CLI_REST(ptr, arg, min, max, help) {"", CLI_KIND_REST, ptr, (double)(min), (double)(max), 0, NULL, arg, help, 0}

// ---------------------------------------------------------------------------------------------------------------------
// Text

#ifdef __GNUC__
#define CLI_PRINTF(text, args) __attribute__((format(printf, text, args)))
#else
#define CLI_PRINTF(text, args)
#endif

// snprintf for messages, where what does not fit may be cut.
CLI_PRINTF(3, 4) static inline int cli_format(char *out, size_t size, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(out, size, format, args);
    va_end(args);
    return n;
}

// Copies text for a one-line message, cleaned; what does not fit ends in "...".
static inline void cli_printable(char *out, size_t size, const char *text) {
    const size_t length = strlen(text), fits = length < size ? length : size - 1;
    memcpy(out, text, fits);
    out[fits] = 0;
    message_clean(out);
    const size_t kept = strlen(out);
    if (fits < length && kept >= 3) memcpy(out + kept - 3, "...", 3);
}

// The shortest text of a number that reads back as the same double: 0.1, 1e-8, 20.
static inline void cli_number(char *out, size_t size, double v) {
    for (int digits = 6; digits <= 17; digits++) {
        cli_format(out, size, "%.*g", digits, v);
        if (strtod(out, NULL) == v) break;
    }
    char *e = strchr(out, 'e');                       // 1e-08 -> 1e-8
    if (e && (e[1] == '-' || e[1] == '+')) {
        char *from = e + 2 + strspn(e + 2, "0"), *to = e[1] == '-' ? e + 2 : e + 1;
        memmove(to, from, strlen(from) + 1);
    }
}

// Writes word number `index` of "a|b|c" and returns 1, or returns 0 past the end.
static inline int cli_choice_word(const char *choices, int index, char *out, size_t size) {
    for (; index > 0; index--) {
        choices = strchr(choices, '|');
        if (!choices) return 0;
        choices++;
    }
    cli_format(out, size, "%.*s", (int)strcspn(choices, "|"), choices);
    return 1;
}

// A bound as text: of integers without an exponent.
static inline void cli_bound(char *out, size_t size, double v, int integer) {
    const double limit = 9223372036854775808.0;        // 2^63
    if (!integer) cli_number(out, size, v);
    else if (v >= limit) cli_format(out, size, "%lld", LLONG_MAX);
    else if (v < -limit) cli_format(out, size, "%lld", LLONG_MIN);
    else cli_format(out, size, "%lld", (long long)v);
}

// The words of a range: "a number > 0", "an integer between 1 and 10". lo and hi are the bounds to name.
static inline void cli_range_text(char *out, size_t size, const char *what, double lo, double hi, int flags) {
    char a[40], b[40];
    const int integer = strstr(what, "integer") != NULL;
    cli_bound(a, sizeof a, lo, integer);
    cli_bound(b, sizeof b, hi, integer);
    const int has_lo = lo > CLI_NO_MIN, has_hi = hi < CLI_NO_MAX;
    const char *above = flags & CLI_ABOVE_MIN ? ">" : ">=";
    const char *below = flags & CLI_BELOW_MAX ? "<" : "<=";
    if (has_lo && has_hi && !(flags & (CLI_ABOVE_MIN | CLI_BELOW_MAX))) {
        cli_format(out, size, "%s between %s and %s", what, a, b);
    } else if (has_lo && has_hi) {
        cli_format(out, size, "%s %s %s and %s %s", what, above, a, below, b);
    } else if (has_lo) {
        cli_format(out, size, "%s %s %s", what, above, a);
    } else if (has_hi) {
        cli_format(out, size, "%s %s %s", what, below, b);
    } else {
        cli_format(out, size, "%s", what);
    }
}

// What an option expects, for its error messages. overflow: name the bounds of the type too.
static inline void cli_expected(char *out, size_t size, const cli_option *o, int overflow) {
    double lo = o->min, hi = o->max;
    if (overflow && o->kind != CLI_KIND_DOUBLE) {
        const int wide = o->kind == CLI_KIND_INT64;
        const double least = wide ? (double)INT64_MIN : INT_MIN;
        const double largest = wide ? (double)INT64_MAX : INT_MAX;
        if (lo < least) lo = least;
        if (hi > largest) hi = largest;
    }
    switch (o->kind) {
    case CLI_KIND_INT:
    case CLI_KIND_INT64: cli_range_text(out, size, "an integer", lo, hi, 0); break;
    case CLI_KIND_DOUBLE: cli_range_text(out, size, "a number", lo, hi, o->flags); break;
    case CLI_KIND_INTS:
        cli_range_text(out, size, "a comma-separated list of integers", lo, hi, 0);
        if (overflow) cli_format(out + strlen(out), size - strlen(out), ", at most %d of them", (int)CLI_MAX_LIST);
        break;
    case CLI_KIND_EVERY: cli_format(out, size, "a count with its unit (100steps, 2epochs) or 0"); break;
    case CLI_KIND_CHOICE: {
        char word[64];
        size_t used = (size_t)cli_format(out, size, "one of ");
        for (int i = 0; cli_choice_word(o->choices, i, word, sizeof word) && used < size; i++) {
            used += (size_t)cli_format(out + used, size - used, "%s%s", i ? ", " : "", word);
        }
        break;
    }
    default: cli_format(out, size, "a value (%s)", o->arg ? o->arg : "text");
    }
}

// The option name nearest to a mistyped one, or NULL when nothing is near; see message_nearest.
static inline const char *cli_nearest(const cli_option *options, int n, const char *name, size_t len) {
    const char *best = NULL;
    int best_distance = (int)len / 3 + 1;
    for (int i = -2; i < n; i++) {
        const char *candidate = i == -2 ? "help" : "version";
        if (i >= 0) candidate = options[i].name;
        if (i >= 0 && (options[i].kind == CLI_KIND_GROUP || options[i].kind == CLI_KIND_REST)) continue;
        const int distance = message_misses(name, len, candidate, best_distance);
        if (distance == 0) return candidate;
        if (distance < best_distance) {
            best = candidate;
            best_distance = distance;
        }
    }
    return best;
}

// ---------------------------------------------------------------------------------------------------------------------
// Values

enum { CLI_OK = 0, CLI_BAD = -1, CLI_OVERFLOW = -2 };

// Reads all of text[len] as a decimal integer: no blanks, no sign but one in front, no text behind.
static inline int cli_read_int64(const char *text, size_t len, int64_t *out) {
    const size_t sign = len > 0 && (text[0] == '-' || text[0] == '+');
    if (len == sign || strspn(text + sign, "0123456789") < len - sign) return CLI_BAD;
    errno = 0;
    const long long v = strtoll(text, NULL, 10);
    if (errno == ERANGE) return CLI_OVERFLOW;
    *out = v;
    return CLI_OK;
}

// Reads all of text as a decimal number. inf and nan pass only when allowed; 1e999 and 1e-999 never do.
static inline int cli_read_double(const char *text, int allow_nonfinite, double *out) {
    char *end = NULL;
    const int finite_text = text[0] && strspn(text, "0123456789+-.eE") == strlen(text);
    if (!finite_text && !allow_nonfinite) return CLI_BAD;
    if (!finite_text && strcmp(text + (text[0] == '-' || text[0] == '+'), "inf") && strcmp(text, "nan")) return CLI_BAD;
    errno = 0;
    const double v = strtod(text, &end);
    if (end == text || *end) return CLI_BAD;
    if (errno == ERANGE && (v == 0 || !isfinite(v))) return CLI_OVERFLOW;
    *out = v;
    return CLI_OK;
}

// Whether v lies within the option's bounds (nan does when it was allowed).
static inline int cli_in_range(const cli_option *o, double v) {
    if (v != v) return (o->flags & CLI_ALLOW_NONFINITE) != 0;
    if (o->flags & CLI_ABOVE_MIN ? v <= o->min : v < o->min) return 0;
    return o->flags & CLI_BELOW_MAX ? v < o->max : v <= o->max;
}

// Whether v lies within the option's bounds, compared as integers: 2^53 + 1 is no double.
static inline int cli_integer_in_range(const cli_option *o, int64_t v) {
    const double limit = 9223372036854775808.0;        // 2^63
    if (o->min > -limit && (o->min >= limit || v < (int64_t)ceil(o->min))) return 0;
    return o->max >= limit || (o->max >= -limit && v <= (int64_t)floor(o->max));
}

// One integer within the option's bounds and the range of int.
static inline int cli_read_int(const cli_option *o, const char *text, size_t len, int *out) {
    int64_t v = 0;
    const int status = cli_read_int64(text, len, &v);
    if (status != CLI_OK) return status;
    if (v < INT_MIN || v > INT_MAX) return CLI_OVERFLOW;
    if (!cli_integer_in_range(o, v)) return CLI_BAD;
    *out = (int)v;
    return CLI_OK;
}

// "784,512,10" into a list; a list that is too long counts as overflow.
static inline int cli_read_ints(const cli_option *o, const char *text, cli_ints *out) {
    cli_ints list = {0, {0}};
    for (;;) {
        const size_t len = strcspn(text, ",");
        if (list.n == CLI_MAX_LIST) return CLI_OVERFLOW;
        const int status = cli_read_int(o, text, len, &list.v[list.n]);
        if (status != CLI_OK) return status;
        list.n++;
        if (!text[len]) break;
        text += len + 1;
    }
    *out = list;
    return CLI_OK;
}

// "100steps", "1step", "2epochs", "1epoch" or "0".
static inline int cli_read_every(const char *text, cli_every *out) {
    const size_t len = strspn(text, "0123456789");
    const char *unit = text + len;
    int64_t v = 0;
    const int is_step = !strcmp(unit, "step") || !strcmp(unit, "steps");
    const int is_epoch = !strcmp(unit, "epoch") || !strcmp(unit, "epochs");
    const int status = cli_read_int64(text, len, &v);
    if (status != CLI_OK) return status;
    if (!is_step && !is_epoch && (*unit || v != 0)) return CLI_BAD;
    out->n = v;
    out->unit = is_epoch ? CLI_EPOCHS : CLI_STEPS;
    return CLI_OK;
}

// Stores the text of one option into its variable.
static inline int cli_store(const cli_option *o, const char *text) {
    switch (o->kind) {
    case CLI_KIND_FLAG: *(int *)o->value = 1; return CLI_OK;
    case CLI_KIND_NO_FLAG: *(int *)o->value = 0; return CLI_OK;
    case CLI_KIND_INT: return cli_read_int(o, text, strlen(text), (int *)o->value);
    case CLI_KIND_INT64: {
        int64_t v = 0;
        const int status = cli_read_int64(text, strlen(text), &v);
        if (status != CLI_OK) return status;
        if (!cli_integer_in_range(o, v)) return CLI_BAD;
        *(int64_t *)o->value = v;
        return CLI_OK;
    }
    case CLI_KIND_DOUBLE: {
        double v = 0;
        const int status = cli_read_double(text, o->flags & CLI_ALLOW_NONFINITE, &v);
        if (status != CLI_OK) return status;
        if (!cli_in_range(o, v)) return CLI_BAD;
        *(double *)o->value = v;
        return CLI_OK;
    }
    case CLI_KIND_STRING:
        if (!*text && !(o->flags & CLI_ALLOW_EMPTY)) return CLI_BAD;
        *(const char **)o->value = text;
        return CLI_OK;
    case CLI_KIND_CHOICE: {
        char word[64];
        for (int i = 0; cli_choice_word(o->choices, i, word, sizeof word); i++) {
            if (strcmp(word, text)) continue;
            *(int *)o->value = i;
            return CLI_OK;
        }
        return CLI_BAD;
    }
    case CLI_KIND_INTS: return cli_read_ints(o, text, (cli_ints *)o->value);
    case CLI_KIND_EVERY: return cli_read_every(text, (cli_every *)o->value);
    default: return CLI_BAD;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Parsing

enum { CLI_WANT_HELP = 1, CLI_WANT_VERSION = 2, CLI_ERROR = -1 };    // besides CLI_OK, what cli_try returns

// Whether an option takes a value.
static inline int cli_takes_value(const cli_option *o) {
    return o->kind != CLI_KIND_FLAG && o->kind != CLI_KIND_NO_FLAG;
}

// Index of an option by its exact name, -1 when there is none.
static inline int cli_find(const cli_option *options, int n, const char *name, size_t len) {
    for (int i = 0; i < n; i++) {
        if (options[i].kind == CLI_KIND_GROUP || options[i].kind == CLI_KIND_REST) continue;
        if (!strncmp(options[i].name, name, len) && !options[i].name[len]) return i;
    }
    return -1;
}

// One argument that belongs to no option: goes to CLI_REST if the table has one, else it is an error.
static inline int cli_take_rest(cli_option *options, int n, const char *text, char *err, size_t err_size) {
    char shown[80];
    cli_printable(shown, sizeof shown, text);
    for (int i = 0; i < n; i++) {
        if (options[i].kind != CLI_KIND_REST) continue;
        cli_rest *rest = (cli_rest *)options[i].value;
        if (rest->n == CLI_MAX_LIST || rest->n >= options[i].max) {
            cli_format(err, err_size, "expected at most %g arguments (%s), '%s' is one more",
                     options[i].max < CLI_MAX_LIST ? options[i].max : (double)CLI_MAX_LIST, options[i].arg, shown);
            return CLI_ERROR;
        }
        rest->v[rest->n++] = text;
        options[i].given = 1;
        return CLI_OK;
    }
    cli_format(err, err_size, "unexpected argument '%s'", shown);
    return CLI_ERROR;
}

// Message for an option the table does not have. text: as typed, with its dashes.
static inline int cli_unknown(const cli_option *options, int n, const char *text, char *err, size_t err_size) {
    char shown[80];
    const char *name = text + strspn(text, "-");
    const size_t len = strcspn(name, "=");
    const char *near = cli_nearest(options, n, name, len);
    cli_printable(shown, sizeof shown, text);
    shown[strcspn(shown, "=")] = 0;
    if (near) cli_format(err, err_size, "unknown option %s, did you mean --%s?", shown, near);
    else cli_format(err, err_size, "unknown option %s", shown);
    return CLI_ERROR;
}

// Handles one word of the command line that starts with a dash. text: the word as typed. value: what getopt_long
// found as its value, NULL when there is none.
static inline int cli_take_option(cli_option *options, int n, const char *text, const char *value, char *err,
                                  size_t err_size) {
    const int is_long = text[0] == '-' && text[1] == '-';
    const size_t len = is_long ? strcspn(text + 2, "=") : 0;
    const char *inline_value = is_long && text[2 + len] ? text + 3 + len : NULL;
    const int at = is_long ? cli_find(options, n, text + 2, len) : -1;
    char expected[512], shown[80];
    if (is_long && inline_value && ((len == 4 && !strncmp(text, "--help", 6)) ||
                                    (len == 7 && !strncmp(text, "--version", 9)))) {
        cli_format(err, err_size, "--%.*s: takes no value", (int)len, text + 2);
        return CLI_ERROR;
    }
    if (at < 0) return cli_unknown(options, n, text, err, err_size);
    cli_option *o = &options[at];
    o->given = CLI_TYPED;
    if (!cli_takes_value(o)) {
        if (inline_value) {
            cli_printable(shown, sizeof shown, inline_value);
            cli_format(err, err_size, "--%s: takes no value, got '%s'", o->name, shown);
            return CLI_ERROR;
        }
        cli_store(o, "");
        return CLI_OK;
    }
    if (!inline_value && (!value || !strncmp(value, "--", 2))) {
        cli_expected(expected, sizeof expected, o, 0);
        cli_printable(shown, sizeof shown, value ? value : "");
        if (value) cli_format(err, err_size, "--%s: expected %s, got the option '%s'", o->name, expected, shown);
        else cli_format(err, err_size, "--%s: expected %s, got nothing", o->name, expected);
        return CLI_ERROR;
    }
    value = inline_value ? inline_value : value;
    const int status = cli_store(o, value);
    if (status == CLI_OK) return CLI_OK;
    cli_expected(expected, sizeof expected, o, status == CLI_OVERFLOW);
    cli_printable(shown, sizeof shown, value);
    char near[MESSAGE_WORD];
    if (o->kind == CLI_KIND_CHOICE && message_nearest(value, o->choices, near)) {
        cli_format(err, err_size, "--%s: expected %s, got '%s', did you mean %s?", o->name, expected, shown, near);
    } else {
        cli_format(err, err_size, "--%s: expected %s, got '%s'", o->name, expected, shown);
    }
    return CLI_ERROR;
}

// One pass over the command line with getopt_long. wanted != NULL: only look for --help, -h and --version.
// getopt_long finds where options and values are; the names are compared here, exactly.
static inline int cli_scan(cli_option *options, int n, const struct option *longs, int argc, char **argv, int *wanted,
                           char *err, size_t err_size) {
#if defined(__linux__)
    optind = 0;                                       // starts anew, also after an earlier parse
#else
    optind = 1;
#if defined(__APPLE__) || defined(__FreeBSD__)
    optreset = 1;
#endif
#endif
    opterr = 0;
    for (;;) {
        const int at = optind ? optind : 1;           // the word that getopt_long looks at next
        const int code = getopt_long(argc, argv, "-:h", longs, NULL);
        if (code == -1) break;
        const char *word = argv[at];
        int status = CLI_OK;
        if (!strcmp(word, "-h") || !strcmp(word, "--help") || !strcmp(word, "--version")) {
            if (wanted && *wanted == CLI_OK) *wanted = word[2] == 'v' ? CLI_WANT_VERSION : CLI_WANT_HELP;
        } else if (code == 1) {
            if (!wanted) status = cli_take_rest(options, n, word, err, err_size);
        } else if (wanted) {
            if (code == 2 && optarg && optarg == argv[at + 1] && !strncmp(optarg, "--", 2)) optind = at + 1;
        } else {
            status = cli_take_option(options, n, word, code == 2 ? optarg : NULL, err, err_size);
        }
        if (status != CLI_OK) return status;
    }
    for (int i = optind ? optind : 1; i < argc && !wanted; i++) {    // behind "--"
        if (cli_take_rest(options, n, argv[i], err, err_size) != CLI_OK) return CLI_ERROR;
    }
    return CLI_OK;
}

// Parses without output or exit. Returns CLI_OK, CLI_WANT_HELP or CLI_WANT_VERSION (nothing was stored), or
// CLI_ERROR with a one-line message in err (some variables may have been set).
static inline int cli_try(cli_option *options, int n, int argc, char **argv, char *err, size_t err_size) {
    struct option *longs = (struct option *)calloc((size_t)n + 3, sizeof *longs);
    int wanted = CLI_OK, count = 0;
    if (!longs) {
        cli_format(err, err_size, "out of memory");
        return CLI_ERROR;
    }
    for (int i = 0; i < n; i++) {
        options[i].given = 0;
        if (options[i].kind == CLI_KIND_REST) ((cli_rest *)options[i].value)->n = 0;
        if (options[i].kind == CLI_KIND_GROUP || options[i].kind == CLI_KIND_REST) continue;
        longs[count].name = options[i].name;
        longs[count].has_arg = cli_takes_value(&options[i]) ? required_argument : no_argument;
        longs[count++].val = 2;
    }
    longs[count].name = "help";
    longs[count++].val = 3;
    longs[count].name = "version";
    longs[count++].val = 3;
    int status = cli_scan(options, n, longs, argc, argv, &wanted, err, err_size);
    if (status == CLI_OK) status = wanted;
    if (status == CLI_OK) status = cli_scan(options, n, longs, argc, argv, NULL, err, err_size);
    for (int i = 0; i < n && status == CLI_OK; i++) {
        if (options[i].kind != CLI_KIND_REST || ((cli_rest *)options[i].value)->n >= options[i].min) continue;
        cli_format(err, err_size, "expected at least %g argument%s: %s", options[i].min, options[i].min > 1 ? "s" : "",
                 options[i].arg);
        status = CLI_ERROR;
    }
    free(longs);
    return status;
}

// CLI_TYPED when the option was on the command line, CLI_STORED when cli_restore set it, 0 when it has its default. A
// name that is not in the table is a mistake in the program and aborts it.
static inline int cli_given(const cli_option *options, int n, const char *name) {
    const int at = cli_find(options, n, name, strlen(name));
    if (at < 0) {
        fprintf(stderr, "cli_given: the table has no option --%s\n", name);
        abort();
    }
    return options[at].given;
}

// ---------------------------------------------------------------------------------------------------------------------
// Help

enum { CLI_WIDTH = 100, CLI_INDENT = 30 };

// Prints text wrapped at CLI_WIDTH. column: where the cursor is; indent: where the next lines start.
static inline void cli_wrap(FILE *out, const char *text, int column, int indent) {
    while (*text) {
        const int len = (int)strcspn(text, " ");
        if (column > indent && column + 1 + len > CLI_WIDTH) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            fputc(' ', out);
            column++;
        }
        fprintf(out, "%.*s", len, text);
        column += len;
        text += len;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

// The default of an option as text, empty when there is none to show.
static inline void cli_default_text(const cli_option *o, char *out, size_t size) {
    out[0] = 0;
    switch (o->kind) {
    case CLI_KIND_INT: cli_format(out, size, "%d", *(const int *)o->value); break;
    case CLI_KIND_INT64: cli_format(out, size, "%lld", (long long)*(const int64_t *)o->value); break;
    case CLI_KIND_DOUBLE:
        if (!isnan(*(const double *)o->value)) cli_number(out, size, *(const double *)o->value);
        break;
    case CLI_KIND_STRING: {
        const char *text = *(const char *const *)o->value;
        if (text) cli_printable(out, size, text);
        break;
    }
    case CLI_KIND_CHOICE: {
        const int index = *(const int *)o->value;
        if (index >= 0) cli_choice_word(o->choices, index, out, size);
        break;
    }
    case CLI_KIND_INTS: {
        const cli_ints *list = (const cli_ints *)o->value;
        size_t used = 0;
        for (int i = 0; i < list->n && used < size; i++) {
            used += (size_t)cli_format(out + used, size - used, "%s%d", i ? "," : "", list->v[i]);
        }
        break;
    }
    case CLI_KIND_EVERY: {
        const cli_every *every = (const cli_every *)o->value;
        if (every->n == 0) cli_format(out, size, "0");
        else cli_format(out, size, "%lld%s", (long long)every->n, every->unit == CLI_EPOCHS ? "epochs" : "steps");
        break;
    }
    default: break;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Stored options: a run's values as words of a command line, read again by the same table

enum { CLI_TEXT = 4096 };    // room for the value of any option but a string

// The value of an option as it is written on a command line, in out[CLI_TEXT] or, of a string, where it is. NULL when
// nothing is set: a flag that is off, no string, an empty list, nan, a number beyond the option's bounds.
static inline const char *cli_text(const cli_option *o, char *out) {
    switch (o->kind) {
    case CLI_KIND_FLAG: return *(const int *)o->value ? "" : NULL;
    case CLI_KIND_NO_FLAG: return *(const int *)o->value ? NULL : "";
    case CLI_KIND_STRING: {
        const char *text = *(const char *const *)o->value;
        return text && *text ? text : NULL;
    }
    case CLI_KIND_INT:
        if (!cli_in_range(o, *(const int *)o->value)) return NULL;
        break;
    case CLI_KIND_INT64:
        if (!cli_in_range(o, (double)*(const int64_t *)o->value)) return NULL;
        break;
    case CLI_KIND_DOUBLE:
        if (!cli_in_range(o, *(const double *)o->value)) return NULL;
        break;
    default: break;
    }
    cli_default_text(o, out, CLI_TEXT);
    return *out ? out : NULL;
}

// Writes the word --NAME=VALUE of an option (--NAME of a flag) to out[size]. Returns its length without the closing 0,
// as snprintf does; 0 when the option is not set.
static inline size_t cli_store_word(const cli_option *o, char *out, size_t size) {
    char text[CLI_TEXT];
    const char *value = cli_text(o, text);
    if (!value) return 0;
    const char *equals = cli_takes_value(o) ? "=" : "";
    return (size_t)cli_format(out, size, "--%s%s%s", o->name, equals, value);
}

// Sets an option from such a word unless it is on the command line. A string points into the word. Returns CLI_OK, or
// CLI_ERROR with a message.
static inline int cli_restore(cli_option *options, int n, const char *word, char *err, size_t err_size) {
    const int dashes = !strncmp(word, "--", 2);
    const int at = dashes ? cli_find(options, n, word + 2, strcspn(word + 2, "=")) : -1;
    if (at >= 0 && options[at].given == CLI_TYPED) return CLI_OK;
    const int status = cli_take_option(options, n, word, NULL, err, err_size);
    if (at >= 0) options[at].given = status == CLI_OK ? CLI_STORED : 0;
    return status;
}

// One option of the help: name and value on the left, text and default on the right.
static inline void cli_help_line(FILE *out, const char *name, const char *arg, const char *text, const char *preset) {
    char right[1024];
    int column = fprintf(out, "  %s%s", *name ? "--" : "", name);
    if (arg) column += fprintf(out, "%s%s", *name ? " " : "", arg);
    if (column >= CLI_INDENT - 1) {
        fputc('\n', out);
        column = 0;
    }
    fprintf(out, "%*s", CLI_INDENT - column, "");
    if (*preset) cli_format(right, sizeof right, "%s (default %s)", text, preset);
    else cli_format(right, sizeof right, "%s", text);
    cli_wrap(out, right, CLI_INDENT, CLI_INDENT);
}

// Prints the help: usage, what the program does (synopsis, wrapped), and the options by group.
static inline void cli_help(FILE *out, const char *program, const char *synopsis, const cli_option *options, int n) {
    const char *rest = NULL;
    for (int i = 0; i < n; i++) {
        if (options[i].kind == CLI_KIND_REST) rest = options[i].arg;
    }
    fprintf(out, "Usage: %s [--option value ...]", program);
    if (rest) fprintf(out, " %s", rest);
    fputs("\n\n", out);
    cli_wrap(out, synopsis, 0, 0);
    int in_group = 0;
    for (int i = 0; i < n; i++) {
        const cli_option *o = &options[i];
        char preset[256];
        if (o->kind == CLI_KIND_GROUP) {
            fprintf(out, "\n%s\n", o->name);
            in_group = 1;
            continue;
        }
        if (!in_group) {
            fprintf(out, "\nOptions\n");
            in_group = 1;
        }
        cli_default_text(o, preset, sizeof preset);
        cli_help_line(out, o->name, o->kind == CLI_KIND_CHOICE ? o->choices : o->arg, o->help, preset);
    }
    fprintf(out, "\nHelp\n");
    cli_help_line(out, "help", NULL, "show this text and exit", "");
    cli_help_line(out, "version", NULL, "show the version and exit", "");
}

// Reports a usage error of the program's own, as cli_parse does its errors, and exits 2.
CLI_PRINTF(2, 3) static inline void cli_usage_error(const char *program, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    message_print(program, "%s (see --help)", text);
    exit(2);
}

// Fills the variables of the table from the command line. Exits 0 after --help and --version, 2 after a usage error.
// From here on the program ends with status 1 when standard output cannot be written (message_guard).
static inline void cli_parse(const char *program, const char *synopsis, const char *version, cli_option *options, int n,
                             int argc, char **argv) {
    char err[1024];
    message_guard(program);
    const int status = cli_try(options, n, argc, argv, err, sizeof err);
    if (status == CLI_OK) return;
    if (status == CLI_ERROR) cli_usage_error(program, "%s", err);
    if (status == CLI_WANT_HELP) cli_help(stdout, program, synopsis, options, n);
    else printf("%s %s\n", program, version);
    exit(0);
}
