/* The switch: Burstbay's library, or the system. */
#define _GNU_SOURCE
#include "calls.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <ime_native.h>

static int system_open(const char *path, int flags, mode_t mode) { return open(path, flags, mode); }
static ssize_t system_pread(int fd, char *buf, size_t len, off_t at) { return pread(fd, buf, len, at); }
static ssize_t system_pwrite(int fd, const char *buf, size_t len, off_t at) { return pwrite(fd, buf, len, at); }
static int system_stat(const char *path, struct stat *out) { return stat(path, out); }

struct calls calls_for(const char *path, bool direct)
{
    if (strncmp(path, "ime://", 6) == 0)
        return (struct calls){
            .open = ime_native_open,
            .close = ime_native_close,
            .pread = ime_native_pread,
            .pwrite = ime_native_pwrite,
            .sync = ime_native_fsync,
            .stat = ime_native_stat,
            .unlink = ime_native_unlink,
            .ring = true,
        };
    return (struct calls){
        .open = system_open,
        .close = close,
        .pread = system_pread,
        .pwrite = system_pwrite,
        .sync = direct ? fdatasync : fsync,
        .stat = system_stat,
        .unlink = unlink,
        .ring = false,
    };
}
