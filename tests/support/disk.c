/* A folder that behaves as a small disk of its own, for a program that is started with this in LD_PRELOAD: where no disk
 * may be mounted. The system's calls fail as those of a real one do, with ENOSPC when what is in the folder would come to
 * more than TIDEGATE_TEST_DISK_BYTES, and with EROFS for whoever would change something while there is a file of the
 * folder's name with ".read-only" behind it. Nothing else changes. The folder is TIDEGATE_TEST_DISK. */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_within(const char *disk, const char *path) {
    size_t length = strlen(disk);
    return strncmp(disk, path, length) == 0 && (path[length] == '/' || path[length] == 0);
}

/* What is in the folder, in bytes: no folders are made in it. */
static long long taken(const char *disk) {
    long long bytes = 0;
    DIR *folder = opendir(disk);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        struct stat found;
        if (fstatat(dirfd(folder), entry->d_name, &found, 0) == 0 && S_ISREG(found.st_mode)) {
            bytes += found.st_size;
        }
    }
    if (folder) {
        closedir(folder);
    }
    return bytes;
}

/* How many of these bytes there is room for; -1 if there is none for any of them. */
static ssize_t room(int file, off_t at, size_t count) {
    const char *disk = getenv("TIDEGATE_TEST_DISK"), *bytes = getenv("TIDEGATE_TEST_DISK_BYTES");
    char link[64], path[PATH_MAX];
    struct stat found;
    if (!disk || !bytes || count == 0 || fstat(file, &found) != 0 || !S_ISREG(found.st_mode)) {
        return (ssize_t)count;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) {
        return (ssize_t)count;
    }
    path[length] = 0;
    if (!is_within(disk, path)) {
        return (ssize_t)count;
    }
    if (at < 0) {
        at = fcntl(file, F_GETFL) & O_APPEND ? found.st_size : lseek(file, 0, SEEK_CUR);
    }
    /* What is there already is written over. */
    long long more = (long long)at + (long long)count - found.st_size;
    if (more <= 0) {
        return (ssize_t)count;
    }
    long long left = atoll(bytes) - taken(disk);
    long long fit = more <= left ? (long long)count : (long long)count - more + (left > 0 ? left : 0);
    if (fit <= 0) {
        errno = ENOSPC;
        return -1;
    }
    return (ssize_t)fit;
}

ssize_t write(int file, const void *from, size_t count) {
    int before = errno;
    ssize_t fit = room(file, -1, count);
    if (fit < 0) {
        return -1;
    }
    errno = before;
    return syscall(SYS_write, file, from, (size_t)fit);
}

ssize_t pwrite64(int file, const void *from, size_t count, off64_t at) {
    int before = errno;
    ssize_t fit = room(file, at, count);
    if (fit < 0) {
        return -1;
    }
    errno = before;
    return syscall(SYS_pwrite64, file, from, (size_t)fit, at);
}

ssize_t pwrite(int file, const void *from, size_t count, off_t at) { return pwrite64(file, from, count, at); }

/* Whether that path is on the disk, and the disk read-only. */
static int is_locked(int folder, const char *path) {
    const char *disk = getenv("TIDEGATE_TEST_DISK");
    char mark[PATH_MAX], whole[PATH_MAX], real[PATH_MAX];
    int before = errno, locked = 0;
    if (disk && (folder == AT_FDCWD || path[0] == '/')) {
        snprintf(mark, sizeof mark, "%s.read-only", disk);
        if (access(mark, F_OK) == 0) {
            /* The file may not be there yet, so it is its folder that is looked for. */
            const char *name = strrchr(path, '/');
            snprintf(whole, sizeof whole, "%.*s", name ? (int)(name - path + 1) : 1, name ? path : ".");
            locked = realpath(whole, real) && is_within(disk, real);
        }
    }
    errno = before;
    return locked;
}

static int open_at(int folder, const char *path, int flags, mode_t mode) {
    int changes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    if (changes && is_locked(folder, path)) {
        /* What is not there can't be opened, be it to read or to make it. */
        errno = flags & O_CREAT || access(path, F_OK) == 0 ? EROFS : ENOENT;
        return -1;
    }
    return (int)syscall(SYS_openat, folder, path, flags, mode);
}

#define MODE(last) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list more; \
        va_start(more, last); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return open_at(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return open_at(folder, path, flags, mode); }

int unlink(const char *path) {
    if (is_locked(AT_FDCWD, path)) {
        errno = EROFS;
        return -1;
    }
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
