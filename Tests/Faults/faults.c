// Loaded into the server by LD_PRELOAD: makes the system's calls fail as a disk, a full file system or a wrong clock would.
//
// FAULTS=<fault>[,<fault>...]   what goes wrong
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>
#include <dlfcn.h>

static int skips_syncs(void) {
    static int known = -1;
    if (known < 0) {
        const char *faults = getenv("FAULTS");
        known = faults && strstr(faults, "sync=skip");
    }
    return known;
}

int fsync(int fd) {
    if (skips_syncs()) return 0;
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd) {
    if (skips_syncs()) return 0;
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int sync_file_range(int fd, off64_t offset, off64_t count, unsigned flags) {
    if (skips_syncs()) return 0;
    return ((int (*)(int, off64_t, off64_t, unsigned))dlsym(RTLD_NEXT, "sync_file_range"))(fd, offset, count, flags);
}
