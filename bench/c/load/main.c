/*
 * load PHASE key=value...: prints "ready", waits for a line, works, prints one line of JSON.
 *
 * What connects to a cluster comes before "ready". Times are of CLOCK_MONOTONIC, which all processes
 * of a machine share: a row runs from the first start to the last end.
 */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <bb_client.h>
#include <ime_native.h>

#include "calls.h"

struct task task = {.ranks = 1, .writers = 1, .len = 1 << 20, .ops = UINT64_MAX, .seconds = 1e9, .depth = 1};
struct calls io;

static double started;
static _Atomic uint64_t all_operations, all_bytes;

static const struct {
    const char *name;
    void (*run)(void);
} phases[] = {
    {"stream-write", stream_write}, {"stream-read", stream_read},   {"shared-write", shared_write},
    {"shared-read", shared_read},   {"random-read", random_read},   {"random-write", random_write},
    {"small-create", small_create}, {"small-stat", small_stat},     {"small-read", small_read},
    {"small-unlink", small_unlink}, {"fsync", write_and_sync},      {"sync", bfs_sync},
    {"prestage", bfs_prestage},     {"remove", remove_files},
};

void die(const char *file, int line, const char *what)
{
    int number = errno;
    fprintf(stderr, "%s %d: %s: %s: %s\n", file, line, what, strerror(number), io.ring ? bb_error_text() : "");
    exit(1);
}

double wall(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

bool out_of_time(void) { return wall() - started > task.seconds; }

int open_file(const char *path, int flags)
{
    int fd = io.open(path, flags | (task.direct ? O_DIRECT : 0), 0644);
    MUST(fd >= 0);
    return fd;
}

void *memory(size_t len)
{
    void *data = NULL;
    MUST(posix_memalign(&data, PAGE, (len + PAGE - 1) / PAGE * PAGE) == 0);
    memset(data, 0, len);
    return data;
}

const char *name_of(char *out, const char *kind, unsigned rank, uint64_t number)
{
    snprintf(out, 4096, "%s/%s.%u.%llu", task.path, kind, rank, (unsigned long long)number);
    return out;
}

uint64_t done(uint64_t operations, uint64_t bytes)
{
    atomic_fetch_add_explicit(&all_bytes, bytes, memory_order_relaxed);
    return atomic_fetch_add_explicit(&all_operations, operations, memory_order_relaxed);
}

struct worker {
    void (*body)(unsigned);
    unsigned number;
};

static void *work(void *argument)
{
    struct worker *worker = argument;
    worker->body(worker->number);
    return NULL;
}

void in_threads(void (*body)(unsigned thread))
{
    pthread_t *threads = calloc(task.depth, sizeof *threads);
    struct worker *workers = calloc(task.depth, sizeof *workers);
    MUST(threads && workers);
    for (unsigned i = 1; i < task.depth; i++) {
        workers[i] = (struct worker){body, i};
        MUST(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    body(0);
    for (unsigned i = 1; i < task.depth; i++)
        pthread_join(threads[i], NULL);
    free(threads);
    free(workers);
}

static void parse(int argc, char **argv)
{
    task.phase = argv[1];
    for (int i = 2; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        MUST(value);
        *value++ = 0;
        const char *key = argv[i];
        unsigned long long number = strtoull(value, NULL, 10);
        if (!strcmp(key, "path")) task.path = value;
        else if (!strcmp(key, "rank")) task.rank = (unsigned)number;
        else if (!strcmp(key, "ranks")) task.ranks = (unsigned)number;
        else if (!strcmp(key, "bytes")) task.bytes = number;
        else if (!strcmp(key, "len")) task.len = number;
        else if (!strcmp(key, "ops")) task.ops = number;
        else if (!strcmp(key, "seconds")) task.seconds = strtod(value, NULL);
        else if (!strcmp(key, "depth")) task.depth = (unsigned)number;
        else if (!strcmp(key, "shift")) task.shift = (unsigned)number;
        else if (!strcmp(key, "writers")) task.writers = (unsigned)number;
        else if (!strcmp(key, "seed")) task.seed = number;
        else if (!strcmp(key, "direct")) task.direct = number != 0;
        else if (!strcmp(key, "placement")) setenv("IM_CLIENT_DATA_PLACEMENT_TYPE", value, 1);
        else if (!strcmp(key, "durable")) task.durable = number != 0;
        else {
            fprintf(stderr, "load: what is %s?\n", key);
            exit(2);
        }
    }
    MUST(task.path && task.depth > 0 && task.ranks > 0 && task.writers > 0 && task.len > 0);
}

static double cpu(const struct rusage *from, const struct rusage *to, bool user)
{
    const struct timeval *a = user ? &from->ru_utime : &from->ru_stime;
    const struct timeval *b = user ? &to->ru_utime : &to->ru_stime;
    return (double)(b->tv_sec - a->tv_sec) + (double)(b->tv_usec - a->tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "load PHASE key=value...\n");
        return 2;
    }
    parse(argc, argv);
    void (*run)(void) = NULL;
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++)
        if (!strcmp(phases[i].name, task.phase))
            run = phases[i].run;
    if (!run) {
        fprintf(stderr, "load: what is phase %s?\n", task.phase);
        return 2;
    }
    io = calls_for(task.path, task.direct);
    if (io.ring)
        ime_native_init();
    struct stat status;
    MUST(io.stat(task.path, &status) == 0);
    printf("ready\n");
    fflush(stdout);
    char line[16];
    if (!fgets(line, sizeof line, stdin))
        return 0; /* nobody wants it any more */
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    started = wall();
    run();
    double ended = wall();
    getrusage(RUSAGE_SELF, &after);
    printf("{\"start\":%.9f,\"end\":%.9f,\"bytes\":%llu,\"ops\":%llu,\"user\":%.6f,\"system\":%.6f,"
           "\"peak_kib\":%ld,\"histogram\":",
           started, ended, (unsigned long long)all_bytes, (unsigned long long)all_operations,
           cpu(&before, &after, true), cpu(&before, &after, false), after.ru_maxrss);
    print_histogram();
    printf("}\n");
    fflush(stdout);
    if (io.ring)
        MUST(ime_native_finalize() == 0);
    return 0;
}
