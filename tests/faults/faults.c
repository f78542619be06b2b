/* Makes the n-th change in a folder fail. It is preloaded, so it affects Python, GDAL, SQLite and Pillow alike.
 *
 * Every call that changes a file in the folder is counted. After fault_arm, the n-th one (from 1) fails:
 *   FAIL   with the error `code`; if `sticky`, all later calls that need space fail as well, as on a full disk
 *   SHORT  a write stores half of its bytes, then the disk is full
 *   KILL   the process is killed before the call, as by kill -9; of a write, the first half is stored
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, FAIL, SHORT, KILL };
static char folder[PATH_MAX];
static atomic_long count;
static long target;
static int mode, code, sticky;
static atomic_int full;

void fault_arm(const char *below, long number, int how, int error, int stays) {
    snprintf(folder, sizeof folder, "%s/", below);
    count = 0; full = 0; target = number; mode = how; code = error; sticky = stays;
}

long fault_count(void) { return count; }

static int below(const char *path) { return strncmp(path, folder, strlen(folder)) == 0; }

static int watched_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    strncat(path, "/", sizeof path - strlen(path) - 1);
    return below(path);
}

static int watched(int at, const char *path) {
    char here[PATH_MAX];
    if (!folder[0]) return 0;
    if (path[0] == '/') return below(path);
    if (at != AT_FDCWD) return watched_fd(at);
    if (!getcwd(here, sizeof here)) return 0;
    strncat(here, "/", sizeof here - strlen(here) - 1);
    return below(here);
}

/* Returns what happens to a call: NONE, or a mode. `room`: whether it needs space: 0 no, 1 yes, 2 for earlier writes. */
static int fate(int room) {
    if (full && room == 1) { errno = code; return FAIL; }
    if (++count != target || mode == NONE) return NONE;
    if (mode == KILL && !room) raise(SIGKILL);
    if (sticky && !room) return NONE; /* a full disk still removes */
    if (mode == FAIL || (mode == SHORT && !room)) { full = sticky; errno = code; return FAIL; }
    return mode;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define MAY_FAIL(inside, room) if ((inside) && fate(room) != NONE) { if (mode == KILL) raise(SIGKILL); full = sticky; errno = code; return -1; }

/* Writes `size` bytes with `call(part)`, or half of them if the fault is SHORT or KILL. */
#define WRITE(inside, size, call) \
    int end = (inside) ? fate(1) : NONE; \
    if (end == FAIL) return -1; \
    if (end == NONE) return call(size); \
    ssize_t done = size > 1 ? call(size / 2) : 0; \
    if (end == KILL) raise(SIGKILL); \
    full = 1; \
    if (done <= 0) { errno = code; return -1; } \
    return done

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
#define CALL(n) real(fd, data, n)
    WRITE(watched_fd(fd), size, CALL);
#undef CALL
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
#define CALL(n) real(fd, data, n, at)
    WRITE(watched_fd(fd), size, CALL);
#undef CALL
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
#define CALL(n) real(fd, data, n, at)
    WRITE(watched_fd(fd), size, CALL);
#undef CALL
}

ssize_t sendfile(int out, int in, off_t *at, size_t size) {
    static ssize_t (*real)(int, int, off_t *, size_t); if (!real) real = dlsym(RTLD_NEXT, "sendfile");
#define CALL(n) real(out, in, at, n)
    WRITE(watched_fd(out), size, CALL);
#undef CALL
}

ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
    static ssize_t (*real)(int, int, off64_t *, size_t); if (!real) real = dlsym(RTLD_NEXT, "sendfile64");
#define CALL(n) real(out, in, at, n)
    WRITE(watched_fd(out), size, CALL);
#undef CALL
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *at, size_t size, unsigned int flags) {
    REAL(copy_file_range);
#define CALL(n) real(in, from, out, at, n, flags)
    WRITE(watched_fd(out), size, CALL);
#undef CALL
}

ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(writev);
    MAY_FAIL(watched_fd(fd), 1);
    return real(fd, parts, number);
}

size_t fwrite(const void *data, size_t size, size_t number, FILE *file) {
    REAL(fwrite);
    int end = watched_fd(fileno(file)) ? fate(1) : NONE;
    if (end == NONE) return real(data, size, number, file);
    if (end == FAIL) return 0;
    size_t done = real(data, size, number / 2, file);
    fflush(file);
    if (end == KILL) raise(SIGKILL);
    full = 1; errno = code;
    return done;
}

static int makes(int flags) { return flags & (O_CREAT | O_TRUNC); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); va_list more; va_start(more, flags); mode_t rights = makes(flags) || (flags & O_TMPFILE) ? va_arg(more, mode_t) : 0; va_end(more); \
        MAY_FAIL(makes(flags) && watched(AT_FDCWD, path), 1); \
        return real(path, flags, rights); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(name); va_list more; va_start(more, flags); mode_t rights = makes(flags) || (flags & O_TMPFILE) ? va_arg(more, mode_t) : 0; va_end(more); \
        MAY_FAIL(makes(flags) && watched(at, path), 1); \
        return real(at, path, flags, rights); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *how) { \
        REAL(name); \
        if ((how[0] == 'w' || how[0] == 'a') && watched(AT_FDCWD, path) && fate(1) != NONE) { if (mode == KILL) raise(SIGKILL); full = sticky; errno = code; return NULL; } \
        return real(path, how); \
    }
FOPEN(fopen)
FOPEN(fopen64)

int fsync(int fd) { REAL(fsync); MAY_FAIL(watched_fd(fd), 2); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); MAY_FAIL(watched_fd(fd), 2); return real(fd); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); MAY_FAIL(watched_fd(fd), 1); return real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); MAY_FAIL(watched_fd(fd), 1); return real(fd, size); }
int mkdir(const char *path, mode_t rights) { REAL(mkdir); MAY_FAIL(watched(AT_FDCWD, path), 1); return real(path, rights); }
int link(const char *from, const char *to) { REAL(link); MAY_FAIL(watched(AT_FDCWD, to), 1); return real(from, to); }
int rename(const char *from, const char *to) { REAL(rename); MAY_FAIL(watched(AT_FDCWD, to), 1); return real(from, to); }
int renameat2(int old, const char *from, int at, const char *to, unsigned int flags) { REAL(renameat2); MAY_FAIL(watched(at, to), 1); return real(old, from, at, to, flags); }
int chmod(const char *path, mode_t rights) { REAL(chmod); MAY_FAIL(watched(AT_FDCWD, path), 0); return real(path, rights); }
int unlink(const char *path) { REAL(unlink); MAY_FAIL(watched(AT_FDCWD, path), 0); return real(path); }
int unlinkat(int at, const char *path, int flags) { REAL(unlinkat); MAY_FAIL(watched(at, path), 0); return real(at, path, flags); }
int rmdir(const char *path) { REAL(rmdir); MAY_FAIL(watched(AT_FDCWD, path), 0); return real(path); }
