// fault_lib.c -- a library that is loaded before the C library (LD_PRELOAD) and makes one file operation fail, or ends
// or stops the process there. test/faults.c, the fault campaign, runs the trainers with it.
//
//     FAULT_DIR=/a/folder FAULT_TRACE=calls LD_PRELOAD=./fault_lib.so ./train_mlp ...        counts, one line a call
//     FAULT_DIR=/a/folder FAULT_AT=17 FAULT_DO=28 LD_PRELOAD=./fault_lib.so ./train_mlp ...  the 17th call: errno 28
//
// Counted are open, write, fsync, close, rename, mkdir and unlink (rmdir and remove among them) on paths in FAULT_DIR,
// whichever function of the C library makes them. FAULT_DIR is a path without symbolic links.
//
// FAULT_DO   a number: the call does nothing and fails with this errno (close does close)
//            kill, kill-after: SIGKILL before or after the call          torn: SIGKILL after half of a write
//            short: a write of half of the bytes                         stop: SIGSTOP before the call
//            power: after the call the machine has lost its power. What was written and not synced is gone, and so are
//            files and folders whose folder was not synced since they were made or renamed; what was removed stays
//            removed. Then SIGKILL.
// FAULT_AT   the number of the call, from 1; `17+`: this one and all later ones of the same kind
// FAULT_TRACE  a file to which `NUMBER CALL PATH` is appended for every counted call
//
// The C library writes its FILE streams by itself, past this library. So the streams of files in FAULT_DIR are made
// here, by fopencookie. fsync is counted and noted, but not carried out. For glibc and musl on Linux.
#ifdef __linux__
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// The next definition of a function: the C library's. ISO C converts no void * to a function pointer: bytes are copied.
#define REAL(type, name, ...)                        \
    static type (*real)(__VA_ARGS__);                \
    if (!real) {                                     \
        void *symbol = dlsym(RTLD_NEXT, name);       \
        memcpy(&real, &symbol, sizeof real);         \
    }

enum { FAULT_NONE, FAULT_ERROR, FAULT_KILL, FAULT_KILL_AFTER, FAULT_TORN, FAULT_SHORT, FAULT_STOP, FAULT_POWER };

static struct {
    int ready, action, error;
    long at, count;
    int sticky;
    char kind[16];                 // of the call that failed first
    char dir[PATH_MAX];
    int trace;                     // file, or -1
} fault;

static void fault_start(void) {
    static const char *const action[] = {"", "", "kill", "kill-after", "torn", "short", "stop", "power"};
    const char *dir = getenv("FAULT_DIR"), *at = getenv("FAULT_AT"), *what = getenv("FAULT_DO");
    const char *trace = getenv("FAULT_TRACE");
    fault.ready = 1;
    fault.trace = -1;
    if (!dir) return;
    snprintf(fault.dir, sizeof fault.dir, "%s/", dir);
    if (trace) {
        REAL(int, "open", const char *, int, ...);
        fault.trace = real(trace, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    }
    if (!at || !what) return;
    char *end;
    fault.at = strtol(at, &end, 10);
    fault.sticky = *end == '+';
    fault.action = FAULT_ERROR;
    fault.error = atoi(what);
    for (int i = FAULT_KILL; i <= FAULT_POWER; i++) {
        if (!strcmp(what, action[i])) fault.action = i;
    }
}

static void fault_trace(const char *call, const char *path) {
    REAL(ssize_t, "write", int, const void *, size_t);
    char line[PATH_MAX + 64];
    const int n = snprintf(line, sizeof line, "%ld %s %s\n", fault.count, call, path);
    if (fault.trace >= 0 && real(fault.trace, line, (size_t)n) != n) abort();
}

static int in_dir(const char *path) {
    if (!fault.ready) fault_start();
    return fault.dir[0] && !strncmp(path, fault.dir, strlen(fault.dir));
}

// Counts a call. Returns what is to be done with it: FAULT_NONE for calls outside of FAULT_DIR. Ends or stops the
// process itself where that comes before the call.
static int fault_call(const char *call, const char *path) {
    const int error = errno;
    if (!path || !in_dir(path)) return FAULT_NONE;
    fault.count++;
    fault_trace(call, path);
    errno = error;
    if (fault.count == fault.at) snprintf(fault.kind, sizeof fault.kind, "%s", call);
    const int hit = fault.count == fault.at || (fault.sticky && fault.count > fault.at && !strcmp(call, fault.kind));
    if (!hit) return FAULT_NONE;
    if (fault.action == FAULT_KILL) raise(SIGKILL);
    if (fault.action == FAULT_STOP) raise(SIGSTOP);
    if (fault.action == FAULT_ERROR) errno = fault.error;
    return fault.action;
}

// The same for a call on an open file. path: [PATH_MAX], filled here.
static int fault_call_fd(const char *call, int fd, char *path) {
    char link[64];
    const int error = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, PATH_MAX - 1);
    path[n > 0 ? n : 0] = 0;
    errno = error;
    return fault_call(call, path);
}

// --------------------------------------------------------------------------------------------------------------- power

// Files and folders that this process has made or written, and what of them would survive.
enum { DISK = 256 };
static struct {
    char path[PATH_MAX];
    long synced;                   // bytes
    int named;                     // the folder was synced since this name is in it
} disk[DISK];
static int n_disk;

static int disk_find(const char *path) {
    int i = 0;
    while (i < n_disk && strcmp(disk[i].path, path)) i++;
    return i;
}

// Notes a file or folder, if it is in FAULT_DIR: of so many synced bytes, its name synced or not.
static void disk_note(const char *path, long synced, int named) {
    const int i = disk_find(path);
    if (!in_dir(path)) return;
    if (i == DISK) abort();
    if (i == n_disk) n_disk++;
    snprintf(disk[i].path, sizeof disk[i].path, "%s", path);
    disk[i].synced = synced;
    disk[i].named = named;
}

// A synced file has its bytes, a synced folder the names in it.
static void disk_sync(const char *path) {
    const size_t n = strlen(path);
    struct stat info;
    for (int i = 0; i < n_disk; i++) {
        if (!strcmp(disk[i].path, path) && stat(path, &info) == 0) disk[i].synced = (long)info.st_size;
        if (strncmp(disk[i].path, path, n) || disk[i].path[n] != '/') continue;
        if (!strchr(disk[i].path + n + 1, '/')) disk[i].named = 1;
    }
}

static void disk_remove(const char *path) {
    const int i = disk_find(path);
    if (i == n_disk) return;
    n_disk--;
    if (i < n_disk) disk[i] = disk[n_disk];
}

// What was at `to` keeps its name: after a loss of power one of the two files has it.
static void disk_rename(const char *from, const char *to, int existed) {
    char rest[PATH_MAX];
    const size_t n = strlen(from);
    disk_remove(to);
    for (int i = 0; i < n_disk; i++) {
        if (strncmp(disk[i].path, from, n) || (disk[i].path[n] && disk[i].path[n] != '/')) continue;
        if (!disk[i].path[n]) disk[i].named = existed;
        snprintf(rest, sizeof rest, "%s", disk[i].path + n);
        if (snprintf(disk[i].path, sizeof disk[i].path, "%s%s", to, rest) >= (int)sizeof disk[i].path) abort();
    }
}

static void power_off(void) {
    char command[PATH_MAX + 16];
    unsetenv("LD_PRELOAD");
    for (int i = 0; i < n_disk; i++) {
        struct stat info;
        if (stat(disk[i].path, &info)) continue;
        if (S_ISREG(info.st_mode) && info.st_size > disk[i].synced && truncate(disk[i].path, disk[i].synced)) abort();
        snprintf(command, sizeof command, "rm -rf '%.*s'", PATH_MAX, disk[i].path);
        if (!disk[i].named && system(command)) abort();
    }
    raise(SIGKILL);
}

static void fault_after(int action) {
    if (action == FAULT_KILL_AFTER) raise(SIGKILL);
    if (action == FAULT_POWER) power_off();
}

// --------------------------------------------------------------------------------------------------------------- paths

int open(const char *path, int flags, ...) {
    REAL(int, "open", const char *, int, ...);
    va_list args;
    va_start(args, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    const int action = fault_call("open", path);
    struct stat info;
    if (action == FAULT_ERROR) return -1;
    const int existed = stat(path, &info) == 0, writes = (flags & O_ACCMODE) != O_RDONLY;
    const int fd = real(path, flags, mode);
    const long synced = existed && !(flags & O_TRUNC) ? (long)info.st_size : 0;
    if (fd >= 0 && writes && disk_find(path) == n_disk) disk_note(path, synced, existed);
    fault_after(action);
    return fd;
}
#ifdef __GLIBC__
int open64(const char *path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return open(path, flags | O_LARGEFILE, mode);
}
#endif

DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    const int action = fault_call("open", path);
    if (action == FAULT_ERROR) return NULL;
    DIR *d = real(path);
    fault_after(action);
    return d;
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    const int action = fault_call("rename", to);
    if (action == FAULT_ERROR) return -1;
    struct stat info;
    const int existed = stat(to, &info) == 0;
    const int status = real(from, to);
    if (status == 0) disk_rename(from, to, existed);
    fault_after(action);
    return status;
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    const int action = fault_call("mkdir", path);
    if (action == FAULT_ERROR) return -1;
    const int status = real(path, mode);
    if (status == 0) disk_note(path, 0, 0);
    fault_after(action);
    return status;
}

// The functions that take a folder and a name in it: their paths in whole. Returns out[PATH_MAX].
static const char *path_at(int folder, const char *name, char *out) {
    char link[64];
    const int error = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t n = *name == '/' || folder == AT_FDCWD ? 0 : readlink(link, out, PATH_MAX / 2);
    if (n < 0) n = 0;
    errno = error;
    if (snprintf(out + n, (size_t)(PATH_MAX - n), "%s%s", n ? "/" : "", name) >= PATH_MAX - n) abort();
    return out;
}

int openat(int folder, const char *name, int flags, ...) {
    REAL(int, "openat", int, const char *, int, ...);
    char path[PATH_MAX];
    va_list args;
    va_start(args, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return in_dir(path_at(folder, name, path)) ? open(path, flags, mode) : real(folder, name, flags, mode);
}
int unlinkat(int folder, const char *name, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    char path[PATH_MAX];
    if (!in_dir(path_at(folder, name, path))) return real(folder, name, flags);
    return flags & AT_REMOVEDIR ? rmdir(path) : unlink(path);
}
int renameat(int folder, const char *name, int folder2, const char *name2) {
    REAL(int, "renameat", int, const char *, int, const char *);
    char from[PATH_MAX], to[PATH_MAX];
    path_at(folder, name, from);
    return in_dir(path_at(folder2, name2, to)) ? rename(from, to) : real(folder, name, folder2, name2);
}
int mkdirat(int folder, const char *name, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    char path[PATH_MAX];
    return in_dir(path_at(folder, name, path)) ? mkdir(path, mode) : real(folder, name, mode);
}

// The functions that remove a path have one form.
#define REMOVES(name)                                         \
    int name(const char *path) {                              \
        REAL(int, #name, const char *);                        \
        const int action = fault_call("unlink", path);        \
        if (action == FAULT_ERROR) return -1;                 \
        const int status = real(path);                        \
        if (status == 0) disk_remove(path);                   \
        fault_after(action);                                  \
        return status;                                        \
    }
REMOVES(unlink)
REMOVES(rmdir)
REMOVES(remove)

// ---------------------------------------------------------------------------------------------------------- open files

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    char path[PATH_MAX];
    const int action = fault_call_fd("write", fd, path);
    if (action == FAULT_ERROR) return -1;
    const int part = (action == FAULT_TORN || action == FAULT_SHORT) && n > 1;
    const ssize_t status = real(fd, data, part ? n / 2 : n);
    if (action == FAULT_TORN) raise(SIGKILL);
    fault_after(action);
    return status;
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    char path[PATH_MAX];
    const long before = fault.count;
    const int action = fault_call_fd("fsync", fd, path);
    if (action == FAULT_ERROR) return -1;
    disk_sync(path);
    fault_after(action);
    return fault.count == before ? real(fd) : 0;
}
int fdatasync(int fd) {
    return fsync(fd);
}

int close(int fd) {
    REAL(int, "close", int);
    char path[PATH_MAX];
    const int action = fault_call_fd("close", fd, path), error = errno;
    const int status = real(fd);
    fault_after(action);
    if (action != FAULT_ERROR) return status;
    errno = error;
    return -1;
}

// ------------------------------------------------------------------------------------------------------------- streams

enum { STREAMS = 64 };
static struct {
    FILE *f;
    int fd;
} streams[STREAMS];

static ssize_t stream_read(void *cookie, char *to, size_t n) {
    return read((int)(intptr_t)cookie, to, n);
}
// As the C library does it: short writes go on, an error ends them.
static ssize_t stream_write(void *cookie, const char *from, size_t n) {
    size_t done = 0;
    while (done < n) {
        const ssize_t part = write((int)(intptr_t)cookie, from + done, n - done);
        if (part < 0) return 0;
        done += (size_t)part;
    }
    return (ssize_t)n;
}
#ifdef __GLIBC__
typedef off64_t stream_offset;
#else
typedef off_t stream_offset;
#endif
static int stream_seek(void *cookie, stream_offset *to, int whence) {
    const off_t at = lseek((int)(intptr_t)cookie, (off_t)*to, whence);
    if (at < 0) return -1;
    *to = at;
    return 0;
}
static int stream_close(void *cookie) {
    const int fd = (int)(intptr_t)cookie;
    for (int i = 0; i < STREAMS; i++) {
        if (streams[i].f && streams[i].fd == fd) streams[i].f = NULL;
    }
    return close(fd);
}

static FILE *stream_make(int fd, const char *mode) {
    const cookie_io_functions_t calls = {stream_read, stream_write, stream_seek, stream_close};
    FILE *f = fopencookie((void *)(intptr_t)fd, mode, calls);
    int i = 0;
    while (i < STREAMS && streams[i].f) i++;
    if (!f || i == STREAMS) abort();
    streams[i].f = f;
    streams[i].fd = fd;
    return f;
}

FILE *fopen(const char *path, const char *mode) {
    REAL(FILE *, "fopen", const char *, const char *);
    if (!in_dir(path)) return real(path, mode);
    int flags = *mode == 'r' ? O_RDONLY : O_WRONLY | O_CREAT;
    if (*mode == 'w') flags |= O_TRUNC;
    if (*mode == 'a') flags |= O_APPEND;
    if (strchr(mode, '+')) flags = (flags & ~O_ACCMODE) | O_RDWR;
    if (strchr(mode, 'x')) flags |= O_EXCL;
    const int fd = open(path, flags | O_CLOEXEC, 0666);
    return fd < 0 ? NULL : stream_make(fd, mode);
}
#ifdef __GLIBC__
FILE *fopen64(const char *path, const char *mode) {
    return fopen(path, mode);
}
#endif

FILE *fdopen(int fd, const char *mode) {
    REAL(FILE *, "fdopen", int, const char *);
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = 0;
    return in_dir(path) ? stream_make(fd, mode) : real(fd, mode);
}

int fileno(FILE *f) {
    REAL(int, "fileno", FILE *);
    for (int i = 0; i < STREAMS; i++) {
        if (streams[i].f == f) return streams[i].fd;
    }
    return real(f);
}
#else
typedef int fault_lib_is_empty;    // other systems preload in another way
#endif
