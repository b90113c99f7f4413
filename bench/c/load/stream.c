/* Large transfers: a file for each rank, or one file of which each rank has every n-th record. */
#define _GNU_SOURCE
#include "load.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

/* One for all ranks, or one for each. Its number is part of the content. */
static int open_stream(bool shared, unsigned owner, int flags)
{
    char path[4096];
    return open_file(name_of(path, shared ? "shared" : "stream", shared ? 0 : owner, 0), flags);
}

static char *random_block(void)
{
    char *data = memory(task.len);
    fill(data, task.len, task.rank + 1);
    return data;
}

static void put(int fd, char *data, uint64_t file, uint64_t at)
{
    stamp(data, task.len, file, at);
    MUST(io.pwrite(fd, data, task.len, (off_t)at) == (ssize_t)task.len);
    done(1, task.len);
}

static void get(int fd, char *data, uint64_t file, uint64_t at)
{
    MUST(io.pread(fd, data, task.len, (off_t)at) == (ssize_t)task.len);
    check(data, task.len, file, at);
    done(1, task.len);
}

void stream_write(void)
{
    char *data = random_block();
    /* A limit of the machine is taken on blocks that exist: those of a previous round. */
    int fd = open_stream(false, task.rank, O_RDWR | O_CREAT | (task.direct ? 0 : O_TRUNC));
    for (uint64_t at = 0; at + task.len <= task.bytes; at += task.len)
        put(fd, data, task.rank, at);
    MUST(io.sync(fd) == 0);
    MUST(io.close(fd) == 0);
    free(data);
}

void stream_read(void)
{
    char *data = memory(task.len);
    unsigned owner = (task.rank + task.shift) % task.writers;
    int fd = open_stream(false, owner, O_RDONLY);
    for (uint64_t at = 0; at + task.len <= task.bytes; at += task.len)
        get(fd, data, owner, at);
    MUST(io.close(fd) == 0);
    free(data);
}

/* Record i of rank r is record i * ranks + r of the file. */
void shared_write(void)
{
    char *data = random_block();
    int fd = open_stream(true, 0, O_RDWR | O_CREAT);
    for (uint64_t i = 0; (i + 1) * task.len <= task.bytes; i++)
        put(fd, data, 1000, (i * task.ranks + task.rank) * task.len);
    MUST(io.sync(fd) == 0);
    MUST(io.close(fd) == 0);
    free(data);
}

/* As many readers as one likes: together they read each record once, in the order of the file. */
void shared_read(void)
{
    char *data = memory(task.len);
    int fd = open_stream(true, 0, O_RDONLY);
    uint64_t records = task.bytes / task.len * task.writers;
    for (uint64_t i = (task.rank + task.shift) % task.ranks; i < records; i += task.ranks)
        get(fd, data, 1000, i * task.len);
    MUST(io.close(fd) == 0);
    free(data);
}
