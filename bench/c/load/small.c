/* Many small files, `depth` calls of this rank under way. */
#define _GNU_SOURCE
#include "load.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

static _Atomic uint64_t next;
static void (*each)(const char *path, char *data, uint64_t number);

static void loop(unsigned thread)
{
    char path[4096], *data = memory(task.len);
    fill(data, task.len, task.rank * 1000 + thread);
    for (;;) {
        /* Time is looked at before a number is taken: all files up to the last one exist. */
        if (next > 0 && out_of_time())
            break;
        uint64_t number = atomic_fetch_add(&next, 1);
        if (number >= task.ops)
            break;
        name_of(path, "small", task.rank, number);
        double begin = wall();
        each(path, data, number);
        latency(wall() - begin);
    }
    free(data);
}

static uint64_t number_of(uint64_t number) { return ((uint64_t)task.rank << 32) + number + 1; }

static void create(const char *path, char *data, uint64_t number)
{
    stamp(data, task.len, number_of(number), 0);
    int fd = io.open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
    MUST(fd >= 0);
    MUST(io.pwrite(fd, data, task.len, 0) == (ssize_t)task.len);
    if (task.durable)
        MUST(io.sync(fd) == 0);
    MUST(io.close(fd) == 0);
    done(1, task.len);
}

static void look(const char *path, char *data, uint64_t number)
{
    (void)data;
    (void)number;
    struct stat status;
    MUST(io.stat(path, &status) == 0);
    MUST(status.st_size == (off_t)task.len);
    done(1, 0);
}

static void get(const char *path, char *data, uint64_t number)
{
    int fd = io.open(path, O_RDONLY, 0);
    MUST(fd >= 0);
    MUST(io.pread(fd, data, task.len, 0) == (ssize_t)task.len);
    MUST(io.close(fd) == 0);
    check(data, task.len, number_of(number), 0);
    done(1, task.len);
}

static void drop(const char *path, char *data, uint64_t number)
{
    (void)data;
    (void)number;
    MUST(io.unlink(path) == 0);
    done(1, 0);
}

static void run(void (*what)(const char *, char *, uint64_t))
{
    each = what;
    in_threads(loop);
}

void small_create(void) { run(create); }
void small_stat(void) { run(look); }
void small_read(void) { run(get); }
void small_unlink(void) { run(drop); }
