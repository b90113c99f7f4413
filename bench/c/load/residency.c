/* To the backing file system and from it, and removal of what a round has made. */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include <ime_native.h>

static int open_own(void)
{
    char path[4096];
    return open_file(name_of(path, "stream", task.rank, 0), O_RDWR);
}

void bfs_sync(void)
{
    int fd = open_own();
    MUST(ime_native_bfs_sync(fd, true) == 0);
    MUST(io.close(fd) == 0);
    done(1, task.bytes);
}

void bfs_prestage(void)
{
    int fd = open_own();
    MUST(ime_native_prestage_blocking(fd, false) == 0);
    MUST(io.close(fd) == 0);
    done(1, task.bytes);
}

static void drop(const char *kind, uint64_t count)
{
    char path[4096];
    for (uint64_t i = 0; i < count; i++) {
        if (io.unlink(name_of(path, kind, task.rank, i)) == 0)
            done(1, 0);
        else
            MUST(errno == ENOENT);
    }
}

void remove_files(void)
{
    drop("stream", 1);
    drop("shared", task.rank == 0);
    drop("job", task.depth);
}
