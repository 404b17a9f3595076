// Loaded into the server by LD_PRELOAD: has the system's calls answer as a failing disk, a full one or a clock that was set would.
//
// FAULTS_FILE names a file of 64-bit numbers that the test shares with the server (rig.py, class Faults, has the same list). What is said of files is
// meant of those of the write-ahead log; syncs are skipped for all.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum {
    clock_offset,  // Milliseconds that the wall clock is ahead.
    skip_syncs,    // Not 0: no sync does anything, and all succeed.
    sync_error,    // The next sync fails with this errno; those that follow succeed, as the kernel has it.
    write_error,   // Writes fail with this errno, the first one after half of its bytes.
    short_writes,  // Not 0: a write takes half of its bytes.
    failed_syncs, failed_writes, shortened_writes,
    later_syncs,   // Syncs after one that failed.
    slots
};

static _Atomic int64_t *shared(void) {
    static _Atomic int64_t *slot;
    static _Atomic int64_t none[slots];
    if (slot) return slot;
    const char *path = getenv("FAULTS_FILE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *map = fd >= 0 ? mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (fd >= 0) close(fd);
    return slot = map == MAP_FAILED ? none : map;
}

static int is_write_ahead(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t count = readlink(link, path, sizeof path);
    return count > 4 && memcmp(path + count - 4, ".log", 4) == 0;
}

static int sync_fails(int fd) {
    _Atomic int64_t *slot = shared();
    if (!slot[sync_error] && !slot[failed_syncs]) return 0;
    if (!is_write_ahead(fd)) return 0;
    int64_t reason = atomic_exchange(&slot[sync_error], 0);
    atomic_fetch_add(&slot[reason ? failed_syncs : later_syncs], 1);
    errno = (int)reason;
    return reason != 0;
}

#define real(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) {
    if (shared()[skip_syncs]) return 0;
    return sync_fails(fd) ? -1 : real(fsync)(fd);
}

int fdatasync(int fd) {
    if (shared()[skip_syncs]) return 0;
    return sync_fails(fd) ? -1 : real(fdatasync)(fd);
}

int sync_file_range(int fd, off64_t offset, off64_t count, unsigned flags) {
    return shared()[skip_syncs] ? 0 : real(sync_file_range)(fd, offset, count, flags);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    _Atomic int64_t *slot = shared();
    if ((slot[write_error] || slot[short_writes]) && is_write_ahead(fd)) {
        if (slot[short_writes] && count > 1) {
            count = count / 2;
            atomic_fetch_add(&slot[shortened_writes], 1);
        }
        int64_t reason = slot[write_error];
        if (reason && atomic_fetch_add(&slot[failed_writes], 1) > 0) {
            errno = (int)reason;
            return -1;
        }
        if (reason && count > 1) count = count / 2;
    }
    return real(write)(fd, bytes, count);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int status = real(clock_gettime)(clock, time);
    int64_t offset = shared()[clock_offset];
    if (status != 0 || !offset || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return status;
    int64_t nanoseconds = time->tv_nsec + offset % 1000 * 1000000;
    int64_t carry = nanoseconds < 0 ? -1 : nanoseconds / 1000000000;
    time->tv_sec += offset / 1000 + carry;
    time->tv_nsec = nanoseconds - carry * 1000000000;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (result) *result = precise.tv_sec;
    return precise.tv_sec;
}
