// log.h -- what a trainer tells the outside world: progress line, CSV log, JSON report, clock, interruption.
//
// Progress, on stdout or any stream:
//     log_progress p;
//     log_progress_init(&p, stdout, quiet);
//     if (log_progress_due(&p))                            // only then fetch the loss from the device
//         log_progress_update(&p, "epoch %d step %d loss %.4f", epoch, step, loss);
//     log_progress_line(&p, "epoch %d: train %.4f test %.4f", epoch, train, test);
//   update: on a terminal one line that is refreshed at most 10 times a second, cut to the terminal's width and dim
//   unless NO_COLOR is set; in a pipe or file a plain line at most every 10 seconds. line: always a line of its own.
//   With quiet both print nothing. Text is cleaned (message.h). Call log_progress_clear before anything else writes to
//   the terminal.
//
// Log folder, of one run at a time:
//     int lock = log_claim("out/run1", LOG_NEW, err, sizeof err);             // or LOG_OVERWRITE, LOG_RESUME
//   makes the folder and locks it until the descriptor is closed or the process is gone, however it ends. Another
//   process that claims it meanwhile gets an error; so does LOG_NEW where the folder holds a run. LOG_OVERWRITE removes
//   nothing yet:
//     log_remove_run("out/run1", err, sizeof err);                            // its checkpoints; log_open replaces the
//     log
//
// CSV log, columns LOG_CSV_HEADER:
//     log_csv log;
//     if (log_open(&log, "out/run1", resumed_step, err, sizeof err)) ...      // -1: a new log, the old one is replaced
//     log_row row = log_row_make(step, epoch, "train", loss);                 // all else unknown (LOG_NA)
//     row.accuracy = 0.93;                                                    // a fraction, not percent
//     if (log_write(&log, &row, err, sizeof err)) ...
//     log_close(&log, err, sizeof err);
//   split is "step" (loss of one step's batch), "train" or "test" (an evaluation at that step; the epoch is how much
//   has been trained, 0 before the first step). Numbers print with 9 digits, so floats read back exactly; unknown
//   ones (LOG_NA) as n/a. Every row reaches the operating system at once, so that a killed run keeps its rows. The
//   first row that cannot be written (disk full) gives the error; what was written of it is cut off again, and from
//   then on rows are dropped in silence (log.failed is set): a full disk does not end a run or flood its output.
//
// JSON, one object, keys in call order:
//     log_json j;
//     if (log_json_open(&j, "report.json", err, sizeof err)) ...
//     log_json_begin(&j, "train");  log_json_number(&j, "loss", 0.25);  log_json_end(&j);
//     log_json_string(&j, "device", name);  log_json_int(&j, "steps", n);  log_json_bool(&j, "diverged", 0);
//     log_json_list(&j, "layers");                    // [...] of objects, one a line
//     log_json_row(&j);  log_json_int(&j, "units", 8);  log_json_end(&j);     // and so on
//     log_json_end(&j);
//     if (log_json_close(&j, err, sizeof err)) ...
//   Non-finite numbers and LOG_NA become null, a NULL string too; invalid UTF-8 becomes U+FFFD. The file appears
//   complete under its name or not at all; one that is not a regular file (/dev/stdout) is written directly.
//
// Clock, durations, memory:
//     double t = log_seconds();                       // monotonic, arbitrary origin
//     char text[LOG_DURATION]; log_duration(text, log_seconds() - t);         // "12.3 ms", "4.56 s", "3 min 05 s"
//     long mib = log_peak_mib();                      // the most memory that the process has had
//
// Interruption:
//     log_signal_install();
//     while (training) { ...one step...; if (log_interrupted) { save; exit(log_interrupt_status()); } }
//   SIGINT, SIGTERM and SIGHUP (the terminal is gone) set log_interrupted; a second one ends the process at once. The
//   status is 128 and the signal: 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP.
//
// Functions that can fail return 0 or -1 with a one-line message in err that names the file. C11, C++17, CUDA; C
// programs compile with -D_GNU_SOURCE (or -std=gnu11). POSIX. Not thread-safe: one thread logs.
#pragma once
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "message.h"

enum { LOG_PATH = 4096, LOG_DURATION = 32 };     // sizes of path and duration buffers
#define LOG_NA (-DBL_MAX)                        // a number that is not known
#define LOG_CSV_HEADER "step,epoch,split,loss,accuracy,lr,grad_norm,ms,samples_per_s"

#ifdef __GNUC__
#define LOG_PRINTF(text, args) __attribute__((format(printf, text, args)))
#else
#define LOG_PRINTF(text, args)
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Clock

// Seconds on a clock that never jumps. Only differences mean something.
static inline double log_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// A duration for people, in out[LOG_DURATION]: "850 us", "12.3 ms", "4.56 s", "3 min 05 s", "2 h 03 min". n/a when
// negative or not finite.
static inline const char *log_duration(char *out, double seconds) {
    if (!isfinite(seconds) || seconds < 0 || seconds > 1e12) {
        snprintf(out, LOG_DURATION, "n/a");
    } else if (seconds < 0.9995e-3) {
        snprintf(out, LOG_DURATION, "%.0f us", seconds * 1e6);
    } else if (seconds < 0.9995) {
        snprintf(out, LOG_DURATION, "%.3g ms", seconds * 1e3);
    } else if (seconds < 59.95) {
        snprintf(out, LOG_DURATION, seconds < 9.995 ? "%.2f s" : "%.1f s", seconds);
    } else {
        const long long s = (long long)(seconds + 0.5);
        if (s < 3600) snprintf(out, LOG_DURATION, "%lld min %02lld s", s / 60, s % 60);
        else snprintf(out, LOG_DURATION, "%lld h %02lld min", (s + 30) / 3600, (s + 30) % 3600 / 60);
    }
    return out;
}

// The most memory that this process has had so far, in MiB of the host.
static inline long log_peak_mib(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return usage.ru_maxrss >> 20;                     // in bytes
#else
    return usage.ru_maxrss >> 10;                     // in KiB
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Interruption

static volatile sig_atomic_t log_interrupted;    // 0, or the signal that asked the run to end

// Notes the signal; the second one ends the process.
static inline void log_on_signal(int number) {
    if (log_interrupted) {
        signal(number, SIG_DFL);
        raise(number);                           // delivered when the handler returns
    }
    log_interrupted = number;
}

// From here on SIGINT, SIGTERM and SIGHUP set log_interrupted. Interrupted system calls are restarted. A signal that
// the parent process had set to be ignored (nohup, a shell's background job) stays ignored.
static inline void log_signal_install(void) {
    const int signals[3] = {SIGINT, SIGTERM, SIGHUP};
    log_interrupted = 0;
    for (int i = 0; i < 3; i++) {
        struct sigaction action, old;
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN) continue;
        memset(&action, 0, sizeof action);
        action.sa_handler = log_on_signal;
        action.sa_flags = SA_RESTART;
        sigemptyset(&action.sa_mask);
        sigaction(signals[i], &action, NULL);
    }
}

// Exit status of a run that was interrupted: 128 + signal; 0 when it was not.
static inline int log_interrupt_status(void) {
    return log_interrupted ? 128 + (int)log_interrupted : 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Files

// Fills err with one clean line and returns -1.
LOG_PRINTF(3, 4) static inline int log_error(char *err, size_t err_size, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(err, err_size, format, args);
    va_end(args);
    message_clean(err);
    return -1;
}

// Fills err with "path: what: reason of errno" and returns -1.
static inline int log_errno(char *err, size_t err_size, const char *path, const char *what) {
    return log_error(err, err_size, "%s: %s: %s", path, what, strerror(errno));
}

// Syncs the folder that a new folder is in, so that it survives a loss of power. One that cannot be read, or lies on a
// file system that cannot sync folders, is left alone.
static inline int log_sync_parent(const char *path) {
    char parent[LOG_PATH];
    const char *slash = strrchr(path, '/');
    const size_t n = slash && slash != path ? (size_t)(slash - path) : 1;
    memcpy(parent, slash ? path : ".", n);
    parent[n] = 0;
    const int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return 0;
    const int failed = fsync(fd) && errno != EINVAL;
    const int error = errno;
    close(fd);
    errno = error;
    return failed ? -1 : 0;
}

// Makes a folder and those above it, as mkdir -p. An existing folder is fine.
static inline int log_make_dirs(const char *path, char *err, size_t err_size) {
    char part[LOG_PATH];
    const size_t len = strlen(path);
    struct stat info;
    if (len == 0) return log_error(err, err_size, "empty folder name");
    if (len >= sizeof part) return log_error(err, err_size, "%.200s: path too long", path);
    memcpy(part, path, len + 1);
    for (size_t i = 1; i <= len; i++) {
        if (part[i] != '/' && part[i] != 0) continue;
        const char kept = part[i];
        part[i] = 0;
        const int made = mkdir(part, 0777) == 0;
        if (!made && errno != EEXIST) return log_errno(err, err_size, part, "cannot create the folder");
        if (made && log_sync_parent(part)) return log_errno(err, err_size, part, "cannot sync the folder above");
        part[i] = kept;
    }
    if (stat(path, &info)) return log_errno(err, err_size, path, "cannot create the folder");
    if (S_ISDIR(info.st_mode)) return 0;
    errno = ENOTDIR;
    return log_errno(err, err_size, path, "cannot create the folder");
}

// Makes the folders above a file; nothing to do for a plain name.
static inline int log_make_parent(const char *path, char *err, size_t err_size) {
    char parent[LOG_PATH];
    const char *slash = strrchr(path, '/');
    if (!slash || slash == path) return 0;
    if ((size_t)(slash - path) >= sizeof parent) return log_error(err, err_size, "%.200s: path too long", path);
    memcpy(parent, path, (size_t)(slash - path));
    parent[slash - path] = 0;
    return log_make_dirs(parent, err, err_size);
}

// A text file that appears under its name complete or not at all: written as PATH.tmp.PID, then renamed.
typedef struct {
    FILE *f;                       // to write to
    char path[LOG_PATH];
    char temp[LOG_PATH];           // empty when path is not a regular file and is written directly
} log_file;

// The name of the temporary file beside a path, in temp[LOG_PATH].
static inline int log_temp_name(char *temp, const char *path, char *err, size_t err_size) {
    const int n = snprintf(temp, LOG_PATH, "%s.tmp.%ld", path, (long)getpid());
    return n < LOG_PATH ? 0 : log_error(err, err_size, "%.200s: path too long", path);
}

// Makes a temporary file and opens it for writing. One of that name, left by a process of the same number or a link
// that somebody put there, is removed first; what a link points to stays as it is. Returns the descriptor, or -1 with
// errno.
static inline int log_open_temp(const char *temp) {
    if (unlink(temp) && errno != ENOENT) return -1;
    return open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}

// The standard stream that a path names (/dev/stdout, also where it leads to a regular file): 1, 2, or 0 for none.
static inline int log_standard_stream(const char *path) {
    struct stat link, file, stream;
    if (lstat(path, &link) || !S_ISLNK(link.st_mode) || stat(path, &file)) return 0;
    for (int fd = 1; fd <= 2; fd++) {
        if (fstat(fd, &stream) == 0 && stream.st_dev == file.st_dev && stream.st_ino == file.st_ino) return fd;
    }
    return 0;
}

// What stands at a path where a file is to be written: 0 nothing or a regular file, which is replaced; 1 something
// else, which is written directly; -1 with an error for a folder, and for what no file can be.
static inline int log_file_kind(const char *path, char *err, size_t err_size) {
    struct stat info;
    if (!*path) return log_error(err, err_size, "empty file name");
    if (log_standard_stream(path)) return 1;
    if (stat(path, &info)) return 0;
    if (!S_ISDIR(info.st_mode)) return S_ISREG(info.st_mode) ? 0 : 1;
    errno = EISDIR;
    return log_errno(err, err_size, path, "cannot write");
}

// Starts writing a file, making the folders above it.
static inline int log_file_open(log_file *file, const char *path, char *err, size_t err_size) {
    const int kind = log_file_kind(path, err, err_size);
    file->f = NULL;
    file->temp[0] = 0;
    if (kind < 0) return -1;
    if (strlen(path) >= sizeof file->path) return log_error(err, err_size, "%.200s: path too long", path);
    memcpy(file->path, path, strlen(path) + 1);
    if (kind == 1) {
        const int stream = log_standard_stream(path);
        fflush(stdout);
        file->f = stream ? fdopen(dup(stream), "w") : fopen(path, "w");
        return file->f ? 0 : log_errno(err, err_size, path, "cannot write");
    }
    if (log_temp_name(file->temp, path, err, err_size) || log_make_parent(path, err, err_size)) return -1;
    const int fd = log_open_temp(file->temp);
    if (fd >= 0) file->f = fdopen(fd, "w");
    return file->f ? 0 : log_errno(err, err_size, path, "cannot write");
}

// Whether a file could be written at the end of a long run: makes the folders above it, and a temporary file beside it
// that is removed again. What stands at the path is not touched. Returns 0, or -1 with an error.
static inline int log_file_try(const char *path, char *err, size_t err_size) {
    char temp[LOG_PATH];
    const int kind = log_file_kind(path, err, err_size);
    if (kind < 0) return -1;
    if (kind == 1) return access(path, W_OK) ? log_errno(err, err_size, path, "cannot write") : 0;
    if (log_temp_name(temp, path, err, err_size) || log_make_parent(path, err, err_size)) return -1;
    const int fd = log_open_temp(temp);
    if (fd < 0) return log_errno(err, err_size, path, "cannot write");
    close(fd);
    return unlink(temp) ? log_errno(err, err_size, temp, "cannot remove") : 0;
}

// Gives up on a file: what was there before under its name stays.
static inline void log_file_abandon(log_file *file) {
    if (!file->f) return;
    fclose(file->f);
    file->f = NULL;
    if (file->temp[0]) unlink(file->temp);
}

// Brings what was written to disk and under its final name; the file stays open. On an error it is abandoned.
static inline int log_file_commit(log_file *file, char *err, size_t err_size) {
    int bad = fflush(file->f) != 0 || ferror(file->f);
    if (!bad && file->temp[0]) bad = fsync(fileno(file->f)) != 0 || rename(file->temp, file->path) != 0;
    if (!bad) {
        file->temp[0] = 0;
        return 0;
    }
    log_errno(err, err_size, file->path, "cannot write");
    log_file_abandon(file);
    return -1;
}

// Commits and closes.
static inline int log_file_close(log_file *file, char *err, size_t err_size) {
    if (log_file_commit(file, err, err_size)) return -1;
    const int bad = fclose(file->f) != 0;
    file->f = NULL;
    return bad ? log_errno(err, err_size, file->path, "cannot write") : 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Log folder

enum { LOG_NEW, LOG_OVERWRITE, LOG_RESUME };     // what log_claim wants a folder for

// Whether a name is a checkpoint's: checkpoint- and digits.
static inline int log_is_checkpoint(const char *name) {
    const size_t prefix = strlen("checkpoint-");
    return !strncmp(name, "checkpoint-", prefix) && name[prefix] && !name[prefix + strspn(name + prefix, "0123456789")];
}

// Whether a folder holds a run: checkpoints, or a log with rows.
static inline int log_holds_run(const char *dir) {
    char path[LOG_PATH + 16];
    struct stat info;
    DIR *d = opendir(dir);
    int found = 0;
    for (struct dirent *e; d && !found && (e = readdir(d));) found = log_is_checkpoint(e->d_name);
    if (d) closedir(d);
    snprintf(path, sizeof path, "%s/log.csv", dir);
    if (found || lstat(path, &info)) return found;
    return info.st_size > (off_t)strlen(LOG_CSV_HEADER "\r\n");
}

// Locks DIR/.lock without waiting. Returns its descriptor, or -1 with an error. A file system that knows no locks lets
// the run go on without one.
static inline int log_lock(const char *dir, char *err, size_t err_size) {
    char path[LOG_PATH + 16], owner[32] = "";
    snprintf(path, sizeof path, "%s/.lock", dir);
    const int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0) return log_errno(err, err_size, path, "cannot lock the folder");
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
        const int n = snprintf(owner, sizeof owner, "%ld\n", (long)getpid());
        if (ftruncate(fd, 0) || pwrite(fd, owner, (size_t)n, 0) != n) errno = 0;    // only a help for the message below
        return fd;
    }
    if (errno == ENOLCK || errno == ENOSYS || errno == EOPNOTSUPP || errno == EINVAL) return fd;
    const int busy = errno == EWOULDBLOCK;
    if (!busy) log_errno(err, err_size, path, "cannot lock the folder");
    if (busy && pread(fd, owner, sizeof owner - 1, 0) < 0) owner[0] = 0;
    owner[strspn(owner, "0123456789")] = 0;
    close(fd);
    if (!busy) return -1;
    return log_error(err, err_size, "%s: another run is writing there%s%s", dir, owner[0] ? ", process " : "", owner);
}

// Removes the temporary files of logs whose runs were killed in this folder, which nobody else writes to now.
static inline void log_remove_debris(const char *dir) {
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!strncmp(e->d_name, "log.csv.tmp", strlen("log.csv.tmp"))) (void)unlinkat(dirfd(d), e->d_name, 0);
    }
    if (d) closedir(d);
}

// Takes a log folder for this process. LOG_NEW and LOG_OVERWRITE make it where it is missing. Returns the lock, a
// descriptor that gives the folder back when it is closed, or -1 with an error.
static inline int log_claim(const char *dir, int purpose, char *err, size_t err_size) {
    if (strlen(dir) >= LOG_PATH) return log_error(err, err_size, "%.200s: path too long", dir);
    if (purpose != LOG_RESUME && log_make_dirs(dir, err, err_size)) return -1;
    const int lock = log_lock(dir, err, err_size);
    if (lock >= 0) log_remove_debris(dir);
    if (lock < 0 || purpose != LOG_NEW || !log_holds_run(dir)) return lock;
    close(lock);
    return log_error(err, err_size,
                     "--log-dir: %s holds a run: continue it with --resume, replace it with --overwrite, or name "
                     "another folder",
                     dir);
}

// Removes the checkpoint `name` of a log folder: its files, then the folder itself. A symbolic link is removed, not
// followed. What else the folder holds stays, and so does the folder then. Returns 0, or -1 with errno.
static inline int log_remove_checkpoint(const char *dir, const char *name) {
    static const char *const files[] = {"state.safetensors", "model.safetensors"};
    struct stat info;
    int status = -1;
    const int parent = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0) return -1;
    if (fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(info.st_mode)) {
        status = unlinkat(parent, name, 0);
        close(parent);
        return status;
    }
    const int folder = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder >= 0) {
        for (int i = 0; i < 2; i++) (void)unlinkat(folder, files[i], 0);
        close(folder);
        status = unlinkat(parent, name, AT_REMOVEDIR);
    }
    const int reason = errno;
    close(parent);
    errno = reason;
    return status;
}

// Removes the checkpoints of a folder that was claimed to be overwritten. Returns 0, or -1 with an error.
static inline int log_remove_run(const char *dir, char *err, size_t err_size) {
    DIR *d = opendir(dir);
    int status = d ? 0 : log_errno(err, err_size, dir, "cannot read");
    for (struct dirent *e; d && !status && (e = readdir(d));) {
        if (!log_is_checkpoint(e->d_name)) continue;
        if (log_remove_checkpoint(dir, e->d_name)) {
            status = log_error(err, err_size, "%s/%s: cannot remove: %s", dir, e->d_name, strerror(errno));
        }
    }
    if (d) closedir(d);
    return status;
}

// ---------------------------------------------------------------------------------------------------------------------
// CSV log

typedef struct {
    int64_t step;                  // optimizer steps done
    double epoch;                  // passes over the training set done
    const char *split;             // "step", "train" or "test"; no comma, no line break
    double loss, accuracy, lr, grad_norm, ms, samples_per_s;    // LOG_NA when unknown; ms: of the step or evaluation
} log_row;

typedef struct {
    log_file file;
    long good;                     // bytes up to the end of the last whole row
    int64_t evaluated;             // of the rows that log_open kept: step of the last one of split "test", or -1
    int failed;                    // a row could not be written; later ones are dropped
} log_csv;

// A row with its first four columns; the others are unknown.
static inline log_row log_row_make(int64_t step, double epoch, const char *split, double loss) {
    log_row row = {step, epoch, split, loss, LOG_NA, LOG_NA, LOG_NA, LOG_NA, LOG_NA};
    return row;
}

// The step of a line that is a row of the log, or -1 when it is none.
static inline int64_t log_row_step(const char *line) {
    char *end = NULL;
    int commas = 0;
    errno = 0;
    const long long step = strtoll(line, &end, 10);
    for (const char *c = line; *c; c++) commas += *c == ',';
    return end == line || *end != ',' || errno || commas != 8 ? -1 : step;
}

// Copies the rows up to resume_step of an earlier log. A last line without its end of line was cut off when the run
// was killed and is dropped; any other line that is not a row is an error, as is another header. Lines may end in CR
// LF, as an editor may have left them. *evaluated: see log_csv. A row of split "train" at resume_step without one of
// split "test" after it is half of an evaluation and is dropped: the resumed run evaluates anew.
static inline int log_copy_rows(FILE *from, FILE *to, const char *path, int64_t resume_step, int64_t *evaluated,
                                char *err, size_t err_size) {
    char line[1024], half[1024] = "";
    for (int64_t number = 1; fgets(line, sizeof line, from); number++) {
        size_t len = strlen(line);
        const int whole = len > 0 && line[len - 1] == '\n';
        if (!whole && feof(from)) break;
        if (whole) line[--len] = 0;
        if (whole && len > 0 && line[len - 1] == '\r') line[--len] = 0;
        if (number == 1) {
            if (!strcmp(line, LOG_CSV_HEADER)) continue;
            return log_error(err, err_size, "%s: not a training log, its first line should be %s", path,
                             LOG_CSV_HEADER);
        }
        const int64_t step = log_row_step(line);
        if (!whole || step < 0) {
            return log_error(err, err_size, "%s: line %lld is not a row of the log", path, (long long)number);
        }
        if (step > resume_step) continue;
        const char *split = strchr(strchr(line, ',') + 1, ',');
        if (step == resume_step && !strncmp(split, ",train,", 7)) {
            memcpy(half, line, len + 1);
            continue;
        }
        if (!strncmp(split, ",test,", 6)) *evaluated = step;
        if (*half) fprintf(to, "%s\n", half);
        *half = 0;
        fprintf(to, "%s\n", line);
    }
    return ferror(from) ? log_errno(err, err_size, path, "cannot read") : 0;
}

// Opens DIR/log.csv, making the folder. resume_step < 0: a new log that replaces an old one. Otherwise the rows with
// step <= resume_step stay and the others are cut off; a log that is not there begins anew. The old file is
// untouched until its successor is complete. On an error log->file.f is NULL and log_write does nothing.
static inline int log_open(log_csv *log, const char *dir, int64_t resume_step, char *err, size_t err_size) {
    char path[LOG_PATH];
    memset(log, 0, sizeof *log);
    log->evaluated = -1;
    if (strlen(dir) + 16 > sizeof path) return log_error(err, err_size, "%.200s: path too long", dir);
    if (log_make_dirs(dir, err, err_size)) return -1;
    snprintf(path, sizeof path, "%s/log.csv", dir);
    FILE *old = resume_step >= 0 ? fopen(path, "r") : NULL;
    if (resume_step >= 0 && !old && errno != ENOENT) return log_errno(err, err_size, path, "cannot read");
    int status = log_file_open(&log->file, path, err, err_size);
    if (status == 0) {
        fputs(LOG_CSV_HEADER "\n", log->file.f);
        if (old) status = log_copy_rows(old, log->file.f, path, resume_step, &log->evaluated, err, err_size);
        if (status) log_file_abandon(&log->file);
    }
    if (old) fclose(old);
    if (status == 0) status = log_file_commit(&log->file, err, err_size);
    if (status == 0) log->good = ftell(log->file.f);
    return status;
}

// One number of a CSV row, with its leading comma. NaN has no sign there: some libraries print -nan, which few readers
// know.
static inline void log_field(FILE *f, double v) {
    if (v == LOG_NA) fputs(",n/a", f);
    else if (isnan(v)) fputs(",nan", f);
    else fprintf(f, ",%.9g", v);
}

// Appends a row. Does nothing on a log that is not open or has failed before.
static inline int log_write(log_csv *log, const log_row *row, char *err, size_t err_size) {
    FILE *f = log->file.f;
    if (!f || log->failed) return 0;
    fprintf(f, "%lld", (long long)row->step);
    log_field(f, row->epoch);
    fprintf(f, ",%s", row->split);
    log_field(f, row->loss);
    log_field(f, row->accuracy);
    log_field(f, row->lr);
    log_field(f, row->grad_norm);
    log_field(f, row->ms);
    log_field(f, row->samples_per_s);
    fputc('\n', f);
    if (fflush(f) == 0 && !ferror(f)) {
        log->good = ftell(f);
        return 0;
    }
    log_errno(err, err_size, log->file.path, "cannot write, the log ends here");
    log->failed = 1;
    if (log->good > 0 && ftruncate(fileno(f), log->good) != 0) log->good = 0;    // nothing more can be done
    return -1;
}

// Closes the log. Quiet about a failure that log_write has reported.
static inline int log_close(log_csv *log, char *err, size_t err_size) {
    if (!log->file.f) return 0;
    const int bad = fclose(log->file.f) != 0 && !log->failed;
    log->file.f = NULL;
    return bad ? log_errno(err, err_size, log->file.path, "cannot write") : 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// JSON

typedef struct {
    log_file file;
    int depth;                     // open objects and lists
    int empty;                     // nothing was written into the current one yet
    int list;                      // depth within a list, 0: none is open
} log_json;

// Writes a quoted JSON string.
static inline void log_json_text(FILE *f, const char *s) {
    fputc('"', f);
    while (*s) {
        const int n = message_utf8(s);
        if (n == 0) fputs("\\ufffd", f);
        else if (*s == '"' || *s == '\\') fprintf(f, "\\%c", *s);
        else if (*s == '\n') fputs("\\n", f);
        else if (*s == '\t') fputs("\\t", f);
        else if (n == 1 && ((unsigned char)*s < 0x20 || *s == 0x7F)) fprintf(f, "\\u%04x", (unsigned)*s);
        else fwrite(s, 1, (size_t)n, f);
        s += n ? n : 1;
    }
    fputc('"', f);
}

// Whether what is open is a row of a list: its keys stand on one line.
static inline int log_json_in_row(const log_json *j) { return j->list && j->depth > j->list; }

// What stands before a value: comma, line, indentation, key.
static inline void log_json_key(log_json *j, const char *key) {
    if (log_json_in_row(j)) fputs(j->empty ? "" : ", ", j->file.f);
    else fprintf(j->file.f, "%s\n%*s", j->empty ? "" : ",", 2 * j->depth, "");
    log_json_text(j->file.f, key);
    fputs(": ", j->file.f);
    j->empty = 0;
}

// Starts the report. All other log_json functions do nothing when this has failed.
static inline int log_json_open(log_json *j, const char *path, char *err, size_t err_size) {
    j->depth = 1;
    j->empty = 1;
    j->list = 0;
    if (log_file_open(&j->file, path, err, err_size)) return -1;
    fputc('{', j->file.f);
    return 0;
}

// Begins an object within the current one.
static inline void log_json_begin(log_json *j, const char *key) {
    if (!j->file.f) return;
    log_json_key(j, key);
    fputc('{', j->file.f);
    j->depth++;
    j->empty = 1;
}

// Begins a list within the current object. It takes rows only, and a row takes no list.
static inline void log_json_list(log_json *j, const char *key) {
    if (!j->file.f) return;
    log_json_key(j, key);
    fputc('[', j->file.f);
    j->list = ++j->depth;
    j->empty = 1;
}

// Begins an object of a list.
static inline void log_json_row(log_json *j) {
    if (!j->file.f) return;
    fprintf(j->file.f, "%s\n%*s{", j->empty ? "" : ",", 2 * j->depth, "");
    j->depth++;
    j->empty = 1;
}

// Ends what the last log_json_begin, log_json_list or log_json_row began.
static inline void log_json_end(log_json *j) {
    if (!j->file.f || j->depth == 0) return;
    const int one_line = j->empty || log_json_in_row(j), is_list = j->list == j->depth;
    j->depth--;
    if (!one_line) fprintf(j->file.f, "\n%*s", 2 * j->depth, "");
    fputc(is_list ? ']' : '}', j->file.f);
    if (is_list) j->list = 0;
    j->empty = 0;
}

// A string; NULL is null.
static inline void log_json_string(log_json *j, const char *key, const char *value) {
    if (!j->file.f) return;
    log_json_key(j, key);
    if (value) log_json_text(j->file.f, value);
    else fputs("null", j->file.f);
}

// A number that reads back exactly; null when it is not finite or not known.
static inline void log_json_number(log_json *j, const char *key, double value) {
    if (!j->file.f) return;
    char text[40];
    log_json_key(j, key);
    if (!isfinite(value) || value == LOG_NA) {
        fputs("null", j->file.f);
        return;
    }
    snprintf(text, sizeof text, "%.15g", value);
    if (strtod(text, NULL) != value) snprintf(text, sizeof text, "%.17g", value);
    fputs(text, j->file.f);
}

// An integer.
static inline void log_json_int(log_json *j, const char *key, int64_t value) {
    if (!j->file.f) return;
    log_json_key(j, key);
    fprintf(j->file.f, "%lld", (long long)value);
}

// true or false.
static inline void log_json_bool(log_json *j, const char *key, int value) {
    if (!j->file.f) return;
    log_json_key(j, key);
    fputs(value ? "true" : "false", j->file.f);
}

// Ends all open objects and puts the file in place.
static inline int log_json_close(log_json *j, char *err, size_t err_size) {
    if (!j->file.f) return 0;
    while (j->depth > 0) log_json_end(j);
    fputc('\n', j->file.f);
    return log_file_close(&j->file, err, err_size);
}

// ---------------------------------------------------------------------------------------------------------------------
// Progress

typedef struct {
    FILE *out;
    int quiet;
    int terminal;                  // one refreshed line; else plain lines
    int color;
    int shown;                     // columns of the line that stands on the terminal now
    double interval, last;         // seconds between updates; when the last one was
} log_progress;

// Whether a stream is a terminal that understands a carriage return (TERM=dumb does not say so).
static inline int log_is_terminal(FILE *out) {
    const char *term = getenv("TERM");
    return isatty(fileno(out)) && !(term && !strcmp(term, "dumb"));
}

// Prepares progress output on a stream.
static inline void log_progress_init(log_progress *p, FILE *out, int quiet) {
    const char *no_color = getenv("NO_COLOR");
    p->out = out;
    p->quiet = quiet;
    p->terminal = log_is_terminal(out);
    p->color = p->terminal && !(no_color && *no_color);
    p->shown = 0;
    p->interval = p->terminal ? 0.1 : 10;
    p->last = p->terminal ? -1e30 : log_seconds();
}

// Whether an update would be printed now.
static inline int log_progress_due(const log_progress *p) {
    return !p->quiet && log_seconds() - p->last >= p->interval;
}

// Removes the refreshed line from the terminal.
static inline void log_progress_clear(log_progress *p) {
    if (p->shown > 0) {
        fprintf(p->out, "\r%*s\r", p->shown, "");
        fflush(p->out);
    }
    p->shown = 0;
}

// Shows where the run is; dropped when the last update is too recent.
LOG_PRINTF(2, 3) static inline void log_progress_update(log_progress *p, const char *format, ...) {
    char text[512];
    struct winsize size;
    va_list args;
    if (!log_progress_due(p)) return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    message_clean(text);
    p->last = log_seconds();
    if (!p->terminal) {
        fprintf(p->out, "%s\n", text);
        fflush(p->out);
        return;
    }
    int width = 80;
    if (ioctl(fileno(p->out), TIOCGWINSZ, &size) == 0 && size.ws_col > 1) width = size.ws_col;
    if ((size_t)width <= sizeof text) text[width - 1] = 0;      // the last column stays free, else the line wraps
    const int len = (int)strlen(text), rest = p->shown > len ? p->shown - len : 0;
    const char *const dim = p->color ? "\033[2m" : "";
    const char *const normal = p->color ? "\033[0m" : "";
    fprintf(p->out, "\r%s%s%s%*s", dim, text, normal, rest, "");
    fflush(p->out);
    p->shown = len;
}

// Prints a line that stays.
LOG_PRINTF(2, 3) static inline void log_progress_line(log_progress *p, const char *format, ...) {
    char text[MESSAGE_LINE];
    va_list args;
    if (p->quiet) return;
    log_progress_clear(p);
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    message_clean(text);
    fprintf(p->out, "%s\n", text);
    fflush(p->out);
}
