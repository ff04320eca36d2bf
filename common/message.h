// message.h -- what a program says to a person: clean text, one line per error, suggestions, a standard output that is
// checked.
//
//     message_clean(text)                    in place; what could steer a terminal becomes '?'
//     message_print("train_mlp", "...", ...) `train_mlp: ...` on stderr, one clean line
//     message_nearest(word, "a|b|c", near)   the choice that a mistyped word may have meant, in near[MESSAGE_WORD]
//     message_guard("train_mlp")             first thing in main: output that is lost is a failure
//
// Every text that holds a name from outside (a path, a tensor's name, a value of the command line) passes through
// message_clean before it is printed. Files are not cleaned: JSON and CSV have their own escapes.
//
// C11, C++17, CUDA. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MESSAGE_LINE = 16384, MESSAGE_WORD = 64 };    // sizes of a line and of a suggested word

#ifdef __GNUC__
#define MESSAGE_PRINTF(text, args) __attribute__((format(printf, text, args)))
#else
#define MESSAGE_PRINTF(text, args)
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Clean text

// Bytes of the UTF-8 character at s, of which n >= 1 bytes may be read: 1 to 4, or 0 when it is no character (overlong
// forms and surrogates are none, nor is the byte 0).
static inline int message_utf8_within(const char *s, size_t n) {
    const unsigned char *u = (const unsigned char *)s;
    size_t length = 0;
    if (u[0] < 0x80) return u[0] != 0;
    if (u[0] >= 0xC2 && u[0] <= 0xDF) length = 2;
    if ((u[0] & 0xF0) == 0xE0) length = 3;
    if (u[0] >= 0xF0 && u[0] <= 0xF4) length = 4;
    if (length > n) return 0;
    for (size_t i = 1; i < length; i++) {
        if ((u[i] & 0xC0) != 0x80) return 0;
    }
    if ((u[0] == 0xE0 && u[1] < 0xA0) || (u[0] == 0xED && u[1] > 0x9F)) return 0;  // overlong; a surrogate
    if ((u[0] == 0xF0 && u[1] < 0x90) || (u[0] == 0xF4 && u[1] > 0x8F)) return 0;  // overlong; beyond U+10FFFF
    return (int)length;
}

// The same in a text that ends with a 0, which ends every character.
static inline int message_utf8(const char *s) { return message_utf8_within(s, 4); }

// Whether the character of n bytes at s could steer a terminal or hide what a line says: control characters (C0, DEL
// and C1, which some terminals obey as they obey escape codes), line separators, marks that change the direction of
// writing.
static inline int message_is_control(const char *s, int n) {
    const unsigned char *u = (const unsigned char *)s;
    if (n == 1) return u[0] < 0x20 || u[0] == 0x7F;
    if (n == 2) return u[0] == 0xC2 && u[1] < 0xA0;
    if (n != 3 || u[0] != 0xE2) return 0;
    if (u[1] == 0x80) return u[2] == 0x8E || u[2] == 0x8F || (u[2] >= 0xA8 && u[2] <= 0xAE);
    return u[1] == 0x81 && u[2] >= 0xA6 && u[2] <= 0xA9;
}

// Makes a text fit for one line of a terminal, in place: such characters, and bytes that are not UTF-8, become '?'.
static inline void message_clean(char *text) {
    char *to = text;
    for (const char *s = text; *s;) {
        const int n = message_utf8(s);
        if (n == 0 || message_is_control(s, n)) {
            *to++ = '?';
            s += n ? n : 1;
            continue;
        }
        for (int i = 0; i < n; i++) *to++ = *s++;
    }
    *to = 0;
}

// `program: text` on stderr, cleaned, one line. What stdout holds comes first.
MESSAGE_PRINTF(2, 3) static inline void message_print(const char *program, const char *format, ...) {
    char text[MESSAGE_LINE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    message_clean(text);
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", program, text);
}

// ---------------------------------------------------------------------------------------------------------------------
// Suggestions

// The edit distance of two words (insert, delete, replace, swap of neighbours), a of length na. Words are cut to 63
// characters.
static inline int message_distance(const char *a, size_t na, const char *b) {
    int d[MESSAGE_WORD][MESSAGE_WORD];
    size_t nb = strlen(b);
    if (na >= MESSAGE_WORD) na = MESSAGE_WORD - 1;
    if (nb >= MESSAGE_WORD) nb = MESSAGE_WORD - 1;
    for (size_t i = 0; i <= na; i++) {
        for (size_t j = 0; j <= nb; j++) {
            if (i == 0 || j == 0) {
                d[i][j] = (int)(i + j);
                continue;
            }
            int best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best) {
                best = d[i - 2][j - 2] + 1;
            }
            d[i][j] = best;
        }
    }
    return d[na][nb];
}

// How far a candidate is from a mistyped word of length len, at most `limit`; `limit` or more when it is no suggestion.
// 0: the candidate starts with the word. 1: the word starts with the candidate.
static inline int message_misses(const char *word, size_t len, const char *candidate, int limit) {
    const size_t size = strlen(candidate);
    if (len >= 2 && !strncmp(candidate, word, len)) return 0;
    if (size >= 3 && !strncmp(candidate, word, size)) return 1;
    const int distance = message_distance(word, len, candidate);
    return distance < limit ? distance : limit;
}

// Finds the word of "a|b|c" that a mistyped one may have meant: one that starts with it, else one that it starts with,
// or within a third of its length in edits. Writes it to near[MESSAGE_WORD] and returns 1; returns 0 when nothing is
// near.
static inline int message_nearest(const char *word, const char *choices, char *near) {
    const size_t len = strlen(word);
    int best = (int)len / 3 + 1;
    int found = 0;
    while (best > 0) {
        char candidate[MESSAGE_WORD];
        const size_t size = strcspn(choices, "|");
        snprintf(candidate, sizeof candidate, "%.*s", (int)size, choices);
        const int misses = message_misses(word, len, candidate, best);
        if (misses < best) {
            memcpy(near, candidate, sizeof candidate);
            best = misses;
            found = 1;
        }
        if (!choices[size]) break;
        choices += size + 1;
    }
    return found;
}

// ---------------------------------------------------------------------------------------------------------------------
// Standard output

// Where the program's name is kept for message_at_exit; empty before message_guard.
static inline const char **message_program(void) {
    static const char *program = "";
    return &program;
}

// Ends the program with status 1 and one line when something that it printed did not reach standard output.
static inline void message_at_exit(void) {
    const int lost = ferror(stdout);
    errno = 0;
    const int closed = fclose(stdout);
    if (!lost && !closed) return;
    fprintf(stderr, "%s: cannot write to standard output: %s\n", *message_program(),
            errno ? strerror(errno) : "an earlier error");
    fflush(stderr);
    _exit(1);
}

// Watches standard output from here to the end of the program, however it ends by exit or return. A standard stream
// that is closed gets /dev/null the wrong way round: no file takes its place, and its use fails as it should.
static inline void message_guard(const char *program) {
    const int known = **message_program() != 0;
    *message_program() = program;
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) >= 0) continue;
        if (open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) < 0) return;
    }
    if (!known) atexit(message_at_exit);
}
