/*
 * Pages of a rank's own file in random order, each at most once: one at a time, or `depth` under way.
 * With the library one thread and its ring; elsewhere a thread for each.
 */
#define _GNU_SOURCE
#include "load.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include <bb_client.h>

static int file;
static bool writing;
static uint64_t pages, wanted, step;
static _Atomic uint64_t next;

/* A permutation: the step has no factor in common with the number of pages. */
static uint64_t greatest_common(uint64_t a, uint64_t b) { return b ? greatest_common(b, a % b) : a; }

static uint64_t place(uint64_t number)
{
    return (uint64_t)((unsigned __int128)number * step % pages) * PAGE;
}

static bool take(uint64_t *at)
{
    uint64_t number = atomic_fetch_add(&next, 1);
    if (number >= wanted || (number > 0 && out_of_time()))
        return false;
    *at = place(number);
    return true;
}

static void calls_of_thread(unsigned thread)
{
    char *data = memory(PAGE);
    fill(data, PAGE, task.rank * 1000 + thread);
    for (uint64_t at; take(&at);) {
        if (writing)
            stamp(data, PAGE, task.rank, at);
        double begin = wall();
        ssize_t got = writing ? io.pwrite(file, data, PAGE, (off_t)at) : io.pread(file, data, PAGE, (off_t)at);
        latency(wall() - begin);
        MUST(got == PAGE);
        if (!writing)
            check(data, PAGE, task.rank, at);
        done(1, PAGE);
    }
    free(data);
}

struct slot {
    uint64_t at;
    double begin;
    char *data;
};

static bool begin(struct bb_ring *ring, struct slot *slot, unsigned number)
{
    if (!take(&slot->at))
        return false;
    if (writing)
        stamp(slot->data, PAGE, task.rank, slot->at);
    slot->begin = wall();
    MUST((writing ? bb_ring_write_registered(ring, file, number, 0, PAGE, (off_t)slot->at, number)
                  : bb_ring_read_registered(ring, file, number, 0, PAGE, (off_t)slot->at, number)) == 0);
    return true;
}

static void over_ring(void)
{
    struct slot *slots = calloc(task.depth, sizeof *slots);
    struct bb_ring_completion *ends = calloc(task.depth, sizeof *ends);
    struct bb_ring *ring = bb_ring_create(task.depth);
    MUST(slots && ends && ring);
    unsigned flying = 0;
    for (unsigned i = 0; i < task.depth; i++) {
        slots[i].data = memory(PAGE);
        fill(slots[i].data, PAGE, task.rank * 1000 + i);
        struct iovec iov = {slots[i].data, PAGE};
        MUST(bb_ring_register(ring, &iov, 1) == (int)i);
    }
    for (unsigned i = 0; i < task.depth; i++)
        flying += begin(ring, &slots[i], i);
    while (flying > 0) {
        int got = bb_ring_wait(ring, ends, task.depth, 1);
        MUST(got > 0);
        double now = wall();
        for (int i = 0; i < got; i++) {
            unsigned number = (unsigned)ends[i].user_data;
            struct slot *slot = &slots[number];
            MUST(ends[i].result == PAGE);
            latency(now - slot->begin);
            if (!writing)
                check(slot->data, PAGE, task.rank, slot->at);
            done(1, PAGE);
            flying -= !begin(ring, slot, number);
        }
    }
    bb_ring_destroy(ring);
    for (unsigned i = 0; i < task.depth; i++)
        free(slots[i].data);
    free(slots);
    free(ends);
}

static void run(bool write)
{
    char path[4096];
    writing = write;
    file = open_file(name_of(path, "stream", task.rank, 0), write ? O_RDWR : O_RDONLY);
    pages = task.bytes / PAGE;
    wanted = task.ops < pages ? task.ops : pages;
    step = (uint64_t)((double)pages * 0.6180339887) | 1;
    while (greatest_common(step, pages) != 1)
        step += 2;
    if (io.ring && task.depth > 1)
        over_ring();
    else
        in_threads(calls_of_thread);
    if (write)
        MUST(io.sync(file) == 0);
    MUST(io.close(file) == 0);
}

void random_read(void) { run(false); }
void random_write(void) { run(true); }
