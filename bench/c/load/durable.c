/* A job writes a page and waits until it is durable, then the next one; each has a file of its own. */
#define _GNU_SOURCE
#include "load.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

static void job(unsigned thread)
{
    char path[4096], *data = memory(task.len);
    fill(data, task.len, task.rank * 1000 + thread);
    int fd = open_file(name_of(path, "job", task.rank, thread), O_RDWR | O_CREAT);
    uint64_t blocks = task.bytes / task.len;
    for (uint64_t i = 0; i < task.ops && (i == 0 || !out_of_time()); i++) {
        uint64_t at = i % blocks * task.len;
        stamp(data, task.len, task.rank * 1000 + thread, at);
        double begin = wall();
        MUST(io.pwrite(fd, data, task.len, (off_t)at) == (ssize_t)task.len);
        MUST(io.sync(fd) == 0);
        latency(wall() - begin);
        done(1, task.len);
    }
    MUST(io.close(fd) == 0);
    free(data);
}

void write_and_sync(void) { in_threads(job); }
