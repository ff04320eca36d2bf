// lint.c -- the rules of the house that a program can see, and the table of doc/house.md.
//
//     lint FILE...            prints `file:line: what` for every breach; exit status 1 where there is one
//     lint --table FILE...    the numbers behind the rules, as a Markdown table
//
// Rules, for C, C++ and CUDA files, with comments, strings and preprocessor lines taken out:
//     width          100 columns in what people read (trainers, layers, conv, rescale.cuh, tiny.c), 120 elsewhere;
//                    this one for all files
//     comma          no comma statements (a = b, c = d;); declarations and for-headers may have commas
//     conditional    no conditional inside a conditional, and no two of them on a line
//     ? 1 : 0        a condition is a number already
//     (p + i)[k]     advance the pointer first
//     function       no function of more than 60 lines
//     include        a trainer includes common/ and rescale.cuh alone, common/ nothing of dev/ and test/, rescale.cuh
//                    nothing of ours; no circles
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 200, MAX_FILES = 400, MAX_FUNCTIONS = 8000, LONGEST = 60, NAME = 128 };
enum { PRODUCT, DEV, TEST, AREAS };

typedef struct numbers {  // what the table shows of an area
    long lines, over_100, over_120, commas, two_conditionals;
    int length[MAX_FUNCTIONS], functions, longest;
    char longest_name[2 * NAME];
} numbers;

typedef struct level {  // of a parenthesis, bracket or brace
    char open;
    int block;        // a brace that holds statements
    int conditional;  // a ? has come since the last comma or semicolon
} level;

static numbers area[AREAS];
static int breaches, table_only;
static const char *file;

__attribute__((format(printf, 2, 3))) static void breach(int line, const char *format, ...) {
    va_list args;
    breaches++;
    if (table_only) return;
    printf("%s:%d: ", file, line);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

static int has_prefix(const char *text, const char *prefix) { return !strncmp(text, prefix, strlen(prefix)); }
static int has_suffix(const char *text, const char *suffix) {
    const size_t n = strlen(text), k = strlen(suffix);
    return n >= k && !strcmp(text + n - k, suffix);
}
static int is_code(const char *name) {
    return has_suffix(name, ".c") || has_suffix(name, ".h") || has_suffix(name, ".cu") || has_suffix(name, ".cuh");
}

static char *read_file(const char *name) {
    FILE *f = fopen(name, "rb");
    size_t size = 0, room = 1 << 16;
    char *text = (char *)malloc(room);
    while (f && text) {
        size += fread(text + size, 1, room - size - 1, f);
        if (size < room - 1) break;
        room *= 2;
        text = (char *)realloc(text, room);
    }
    if (!f || !text || ferror(f)) {
        fprintf(stderr, "lint: %s: cannot read\n", name);
        exit(1);
    }
    fclose(f);
    text[size] = 0;
    return text;
}

// ------------------------------------------------------------------------------------------------------------ lines

static int area_of(const char *name) {
    if (has_prefix(name, "dev/")) return DEV;
    return has_prefix(name, "test/") ? TEST : PRODUCT;
}

// What people read first: 100 columns.
static int is_narrow(const char *name) {
    static const char *const narrow[] = {"common/layers.cuh", "common/conv.cuh", "rescale.cuh", "tiny.c"};
    for (int i = 0; i < 4; i++)
        if (!strcmp(name, narrow[i])) return 1;
    return has_prefix(name, "train_") && !strchr(name, '/');
}

// Width of a line in columns: bytes that continue a UTF-8 character take none.
static int columns(const char *line) {
    int n = 0;
    for (; *line && *line != '\n'; line++) n += (*line & 0xc0) != 0x80;
    return n;
}

static void check_widths(const char *text) {
    const int limit = is_narrow(file) ? 100 : 120;
    numbers *a = &area[area_of(file)];
    int number = 0;
    for (const char *line = text; *line;) {
        const int width = columns(line);
        const char *end = strchr(line, '\n');
        number++;
        a->lines++;
        a->over_100 += width > 100;
        a->over_120 += width > 120;
        if (width > limit) breach(number, "%d columns, at most %d", width, limit);
        if (!end) break;
        line = end + 1;
    }
}

// --------------------------------------------------------------------------------------------------------- comments

// Length of what stands at p if it is a comment, a string, a character or a preprocessor line; else 0.
static size_t passage(const char *p, int line_start) {
    size_t n = 0;
    if (p[0] == '/' && p[1] == '/') {
        while (p[n] && p[n] != '\n') n++;
    } else if (p[0] == '/' && p[1] == '*') {
        const char *end = strstr(p + 2, "*/");
        n = end ? (size_t)(end + 2 - p) : strlen(p);
    } else if (p[0] == '"' || (p[0] == '\'' && !isalnum((unsigned char)p[-1]))) {
        for (n = 1; p[n] && p[n] != p[0] && p[n] != '\n'; n++) n += p[n] == '\\' && p[n + 1];
        n += p[n] == p[0];
    } else if (p[0] == '#' && line_start) {
        while (p[n] && (p[n] != '\n' || p[n - 1] == '\\')) n++;
    }
    return n;
}

// Overwrites comments, preprocessor lines and the inside of strings with spaces.
static void blank(char *text) {
    int line_start = 1;
    for (char *p = text; *p;) {
        const size_t n = p == text && *p == '\'' ? 0 : passage(p, line_start);
        const char quote = *p == '"' || *p == '\'' ? *p : ' ';
        for (size_t i = 0; i < n; i++) {
            if (p[i] != '\n') p[i] = i == 0 || i == n - 1 ? quote : ' ';
        }
        if (n) {
            p += n;
            line_start = 0;
            continue;
        }
        if (*p == '\n') line_start = 1;
        else if (!isspace((unsigned char)*p)) line_start = 0;
        p++;
    }
}

// Overwrites the commas between <<< and >>> and in template arguments: they make no comma statement.
static void blank_arguments(char *text) {
    static const char in_template[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:*/, ";
    for (char *p = text; (p = strchr(p, '<')) != NULL;) {
        const int launch = has_prefix(p, "<<<");
        char *end = launch ? strstr(p, ">>>") : p + 1 + strspn(p + 1, in_template);
        p++;
        if (!end || (!launch && *end != '>')) continue;
        for (; p < end; p++)
            if (*p == ',') *p = ' ';
    }
}

// ------------------------------------------------------------------------------------------------------- statements

static int is_word(char c) { return isalnum((unsigned char)c) || c == '_'; }

// Reads an identifier, skipping what stands before it; returns what follows it, or NULL.
static const char *next_word(const char *p, char *word) {
    int n = 0;
    while (isspace((unsigned char)*p)) p++;
    if (!is_word(*p) || isdigit((unsigned char)*p)) return NULL;
    for (; is_word(*p); p++)
        if (n < NAME - 1) word[n++] = *p;
    word[n] = 0;
    return p;
}

// Whether a statement declares something: it begins with two words in a row, or with a word, stars and a word.
static int is_declaration(const char *statement) {
    static const char *const skipped[] = {
        "static", "const", "volatile", "extern", "struct", "enum", "unsigned", "typedef"};
    char word[NAME];
    const char *p = next_word(statement, word);
    for (int i = 0; p && i < 8; i++) {
        if (strcmp(word, skipped[i])) continue;
        return 1;
    }
    if (!p || !strcmp(word, "return") || !strcmp(word, "else") || !strcmp(word, "case") || !strcmp(word, "goto"))
        return 0;
    while (isspace((unsigned char)*p) || *p == '*' || *p == '&') p++;
    if (*p == '<') p = strchr(p, '>') ? strchr(p, '>') + 1 : p;
    return next_word(p, word) != NULL;
}

// Past macros on lines of their own that need no semicolon, such as LOG_PRINTF(4, 0) before a function.
static const char *past_macros(const char *p) {
    char word[NAME], next[NAME];
    for (const char *after; (after = next_word(p, word)) != NULL; p = after) {
        if (strpbrk(word, "abcdefghijklmnopqrstuvwxyz")) break;
        after += strspn(after, " \t");
        int depth = *after == '(';
        for (after += depth; *after && depth > 0; after++) depth += (*after == '(') - (*after == ')');
        after += strspn(after, " \t\r");
        if (*after != '\n' || !next_word(after, next)) break;
    }
    return p;
}

// Past `else`, `if (...)`, `for (...)`, `while (...)`, `case ...:` and labels: where the simple statement begins.
static const char *simple_statement(const char *p, const char *end) {
    for (;;) {
        char word[NAME], second[NAME];
        const char *after = next_word(p, word);
        if (!after || after > end) return p;
        const int before_for = next_word(after, second) && !strcmp(second, "for");  // a macro: UNROLL for (...)
        if (!strcmp(word, "else") || !strcmp(word, "do") || before_for) {
            p = after;
        } else if (!strcmp(word, "if") || !strcmp(word, "for") || !strcmp(word, "while") || !strcmp(word, "switch")) {
            int depth = 0;
            for (p = after; p < end; p++) {
                depth += (*p == '(') - (*p == ')');
                if (*p == ')' && depth == 0) break;
            }
            p++;
        } else if (!strcmp(word, "case") || !strcmp(word, "default")) {
            while (p < end && *p != ':') p++;
            p++;
        } else {
            return p;
        }
        if (p >= end) return end;
    }
}

// Whether the brace at p begins a block of statements and not a list of values.
static int opens_block(const char *text, const char *p) {
    const char *q = p - 1;
    while (q > text && isspace((unsigned char)*q)) q--;
    if (q <= text) return 1;
    if (strchr("=,({[", *q)) return 0;
    if (*q == ']') return 0;
    if (is_word(*q)) {  // enum NAME {, struct NAME {, else {, do {
        const char *start = q;
        while (start > text && *start != ';' && *start != '}' && *start != '{') start--;
        return !strstr(start, "enum") || strstr(start, "enum") > p;
    }
    if (*q == ')') {  // (type){...} is a value
        const char *open = q;
        int depth = 0;
        for (; open > text; open--) {
            depth += (*open == ')') - (*open == '(');
            if (depth == 0) break;
        }
        for (open--; open > text && isspace((unsigned char)*open);) open--;
        return is_word(*open) || *open == '>' || *open == ')' || *open == ']';
    }
    return 1;
}

// Notes a function's length.
static void note_function(const char *head, int first, int last) {
    numbers *a = &area[area_of(file)];
    const int length = last - first + 1;
    char name[NAME] = "";
    head = past_macros(head);
    const char *open = strchr(head, '(');
    const char *start = open;
    while (start && start > head && isspace((unsigned char)start[-1])) start--;
    while (start && start > head && is_word(start[-1])) start--;
    if (start) next_word(start, name);
    if (a->functions < MAX_FUNCTIONS) a->length[a->functions++] = length;
    if (length > a->longest) {
        a->longest = length;
        snprintf(a->longest_name, sizeof a->longest_name, "%s: %s", file, name);
    }
    if (length > LONGEST) breach(first, "%s has %d lines, at most %d", name, length, LONGEST);
}

// Where a walk through the blanked text is: brackets, statements, conditionals.
typedef struct walk {
    const char *text;
    level stack[MAX_DEPTH];
    int depth, line, conditionals;  // of this line
    const char *statement, *comma;  // where the statement begins; its first comma outside of brackets
    int statement_line, comma_line;
    const char *function;           // head of the function around p, while function_depth >= 0
    int function_depth, function_line;
} walk;

static void end_line(walk *w) {
    if (w->conditionals > 1) {
        breach(w->line, "%d conditionals on a line", w->conditionals);
        area[area_of(file)].two_conditionals++;
    }
    w->conditionals = 0;
    w->line++;
}

static void see_conditional(walk *w, const char *p) {
    w->conditionals++;
    for (int i = w->depth; i >= 0; i--) {
        if (w->stack[i].open == '{' && w->stack[i].block && i < w->depth) break;
        if (!w->stack[i].conditional) continue;
        breach(w->line, "a conditional inside a conditional");
        break;
    }
    w->stack[w->depth].conditional = 1;
    if (!strncmp(p, "? 1 : 0", 7) && !is_word(p[7]) && p[7] != '.')
        breach(w->line, "`? 1 : 0`: a condition is a number already");
}

static void begin_statement(walk *w, const char *p) {
    w->statement = p;
    w->comma = NULL;
}

static void open_bracket(walk *w, const char *p) {
    const int block = *p == '{' && opens_block(w->text, p);
    if (block && w->function_depth < 0 && w->depth == 0) {
        const char *q = p - 1;
        while (q > w->text && isspace((unsigned char)*q)) q--;
        if (*q == ')') {
            w->function_depth = w->depth;
            w->function_line = w->statement_line;
            w->function = w->statement;
        }
    }
    if (w->depth < MAX_DEPTH - 1) w->depth++;
    w->stack[w->depth].open = *p;
    w->stack[w->depth].block = block;
    w->stack[w->depth].conditional = 0;
    if (block) begin_statement(w, p + 1);
}

static void close_bracket(walk *w, const char *p) {
    const int was_block = w->stack[w->depth].block && *p == '}';
    if (w->depth > 0) w->depth--;
    if (!was_block) return;
    if (w->depth == w->function_depth) {
        note_function(w->function, w->function_line, w->line);
        w->function_depth = -1;
    }
    begin_statement(w, p + 1);
}

static void see_comma(walk *w, const char *p) {
    w->stack[w->depth].conditional = 0;
    if (!w->stack[w->depth].block || w->comma) return;
    w->comma = p;
    w->comma_line = w->line;
}

static void end_statement(walk *w, const char *p) {
    w->stack[w->depth].conditional = 0;
    if (!w->stack[w->depth].block) return;
    const char *simple = simple_statement(past_macros(w->statement), p);
    if (w->comma && w->comma > simple && !is_declaration(simple)) {
        breach(w->comma_line, "a comma statement");
        area[area_of(file)].commas++;
    }
    begin_statement(w, p + 1);
}

static void check_statements(char *text) {
    static walk w;
    memset(&w, 0, sizeof w);
    w.text = text;
    w.stack[0].open = '{';
    w.stack[0].block = 1;
    w.line = w.statement_line = 1;
    w.function_depth = -1;
    w.statement = text;
    for (char *p = text; *p; p++) {
        if (*p == '\n') end_line(&w);
        else if (*p == '?') see_conditional(&w, p);
        else if (strchr("([{", *p)) open_bracket(&w, p);
        else if (strchr(")]}", *p)) close_bracket(&w, p);
        else if (*p == ',') see_comma(&w, p);
        else if (*p == ';') end_statement(&w, p);
        if (!isspace((unsigned char)*p) && p == w.statement + strspn(w.statement, " \n\t\r")) w.statement_line = w.line;
    }
}

// `(p + i)[k]`: a parenthesised sum with a subscript behind it. A declarator such as (*rows)[4] has no sum.
static void check_subscripts(const char *text) {
    int line = 1;
    for (const char *p = text; *p; p++) {
        if (*p == '\n') line++;
        if (p[0] != ')' || p[1] != '[') continue;
        const char *open = p;
        int depth = 0, sum = 0;
        for (; open > text; open--) {
            depth += (*open == ')') - (*open == '(');
            if (depth == 0) break;
            sum |= depth == 1 && *open == '+';
        }
        if (sum && open > text && !is_word(open[-1])) breach(line, "`(p + i)[k]`: advance the pointer first");
    }
}

// --------------------------------------------------------------------------------------------------------- includes

static const char *names[MAX_FILES];
static int n_names;
static int state[MAX_FILES];  // of the walk: 0 not seen, 1 on the way, 2 done

static int find_name(const char *name) {
    for (int i = 0; i < n_names; i++)
        if (!strcmp(names[i], name)) return i;
    return -1;
}

// The file that `#include "target"` in file `from` means, beside it or at the root; -1: none of ours.
static int resolve(const char *from, const char *target) {
    char path[2 * NAME];
    const char *slash = strrchr(from, '/');
    const int folder = slash ? (int)(slash - from + 1) : 0;
    snprintf(path, sizeof path, "%.*s%s", folder, from, target);
    if (find_name(path) >= 0) return find_name(path);
    return find_name(target);
}

static int allowed_include(const char *from, const char *to) {
    if (!strcmp(from, "rescale.cuh")) return 0;
    if (area_of(from) != PRODUCT) return 1;
    return has_prefix(to, "common/") || !strcmp(to, "rescale.cuh");
}

// Walks the includes of a file; returns the lines of all that it reaches for the first time, itself included.
static long walk_includes(int i) {
    char *text = read_file(names[i]);
    long lines = 0;
    int number = 0;
    state[i] = 1;
    for (char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        char target[NAME];
        number++;
        lines += *line != 0;
        if (sscanf(line, "#include \"%127[^\"]\"", target) != 1) continue;
        const int to = resolve(names[i], target);
        file = names[i];
        if (to < 0) continue;
        if (!allowed_include(names[i], names[to])) breach(number, "may not include %s", names[to]);
        if (state[to] == 1) breach(number, "%s includes this file, in a circle", names[to]);
        if (state[to] == 0) lines += walk_includes(to);
    }
    state[i] = 2;
    free(text);
    return lines;
}

// ------------------------------------------------------------------------------------------------------------ table

static int compare_ints(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static void print_table(void) {
    static const char *const name[AREAS] = {"trainers, common/, rescale.cuh, tiny.c", "dev/", "test/"};
    printf("| | lines | over 100 columns | over 120 | comma statements | two conditionals on a line | functions "
           "| median length | longest |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (int i = 0; i < AREAS; i++) {
        numbers *a = &area[i];
        qsort(a->length, (size_t)a->functions, sizeof a->length[0], compare_ints);
        printf("| %s | %ld | %.1f %% | %ld | %ld | %ld | %d | %d | %d |\n", name[i], a->lines,
               a->lines ? 100.0 * (double)a->over_100 / (double)a->lines : 0.0, a->over_120, a->commas,
               a->two_conditionals, a->functions, a->functions ? a->length[a->functions / 2] : 0, a->longest);
    }
    printf("\n| to own | lines, with all that it includes of ours |\n| --- | ---: |\n");
    for (int i = 0; i < n_names; i++) {
        if (strchr(names[i], '/') || (!has_prefix(names[i], "train_") && strcmp(names[i], "tiny.c"))) continue;
        memset(state, 0, sizeof state);
        printf("| `%s` | %ld |\n", names[i], walk_includes(i));
    }
}

int main(int argc, char **argv) {
    int first = 1;
    if (argc > 1 && !strcmp(argv[1], "--table")) {
        table_only = 1;
        first = 2;
    }
    if (first >= argc || argc - first > MAX_FILES) {
        fprintf(stderr, "usage: lint [--table] FILE... (at most %d)\n", MAX_FILES);
        return 2;
    }
    for (int i = first; i < argc; i++) names[n_names++] = argv[i];
    for (int i = 0; i < n_names; i++) {
        file = names[i];
        char *text = read_file(file);
        check_widths(text);
        if (is_code(file)) {
            blank(text);
            blank_arguments(text);
            check_statements(text);
            check_subscripts(text);
        }
        free(text);
    }
    for (int i = 0; i < n_names; i++)
        if (is_code(names[i]) && !state[i]) walk_includes(i);
    if (table_only) print_table();
    else printf("%d breaches in %d files\n", breaches, n_names);
    if (fflush(stdout)) {
        perror("lint: standard output");
        return 1;
    }
    return !table_only && breaches > 0;
}
