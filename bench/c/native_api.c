/*
 * What calls of the C API cost: blocking, with callbacks, and over the ring; writes and reads of 1 MiB
 * and of 4 KiB; and the same on any other file system, by the system's own calls.
 *
 *   cc -O2 -I P/include -L P/lib -o native_api bench/c/native_api.c -lim_client -pthread
 *   native_api ime:///dir/file MIB [DEPTH]
 *   native_api /ext4/file MIB
 *
 * Writes include an fsync at the end, reads begin in a process that knows nothing of the file (of the
 * kernel's: dropped from its cache). 4 KiB blocks are read in random order, a sixteenth of the file.
 * CPU is this process's, user and system, per operation.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include <bb_client.h>
#include <ime_native.h>

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: %s: %s %s\n", __LINE__, #condition, strerror(errno), bb_error_text()); \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

enum how { BLOCKING, CALLBACKS, RING };
static const char *names[] = {"blocking", "callbacks", "ring"};
static size_t depth = 128;

static double wall(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double cpu(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

struct slot {
    struct ime_aiocb block;
    struct iovec iov;
    char *data;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static size_t *idle, idle_count;

static void ended(struct ime_aiocb *block, int err, ssize_t bytes)
{
    if (err || bytes != (ssize_t)block->iov->iov_len) {
        fprintf(stderr, "a request ended with %d, %zd bytes\n", err, bytes);
        exit(1);
    }
    pthread_mutex_lock(&mutex);
    idle[idle_count++] = (size_t)block->user_context;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&mutex);
}

static off_t place(size_t i, size_t blocks, size_t len, int random)
{
    return (off_t)((random ? i * 2654435761u % blocks : i) * len);
}

static void blocking(int fd, int write, size_t count, size_t blocks, size_t len, int random)
{
    char *data = aligned_alloc(4096, len);
    memset(data, 7, len);
    for (size_t i = 0; i < count; i++) {
        off_t at = place(i, blocks, len, random);
        ssize_t done = write ? ime_native_pwrite(fd, data, len, at) : ime_native_pread(fd, data, len, at);
        MUST(done == (ssize_t)len);
    }
    free(data);
}

static struct slot *slots_of(size_t len)
{
    struct slot *slots = calloc(depth, sizeof *slots);
    idle = calloc(depth, sizeof *idle);
    for (size_t i = 0; i < depth; i++) {
        slots[i].data = aligned_alloc(4096, len);
        memset(slots[i].data, 7, len);
        slots[i].iov.iov_base = slots[i].data;
        slots[i].iov.iov_len = len;
        idle[i] = i;
    }
    idle_count = depth;
    return slots;
}

static void callbacks(int fd, int write, size_t count, size_t blocks, size_t len, int random)
{
    struct slot *slots = slots_of(len);
    for (size_t i = 0; i < count; i++) {
        pthread_mutex_lock(&mutex);
        while (idle_count == 0)
            pthread_cond_wait(&changed, &mutex);
        size_t which = idle[--idle_count];
        pthread_mutex_unlock(&mutex);
        struct slot *s = &slots[which];
        s->block.fd = fd;
        s->block.iov = &s->iov;
        s->block.iovcnt = 1;
        s->block.file_offset = place(i, blocks, len, random);
        s->block.complete_cb = ended;
        s->block.user_context = (intptr_t)which;
        MUST((write ? ime_native_aio_write(&s->block) : ime_native_aio_read(&s->block)) == 0);
    }
    pthread_mutex_lock(&mutex);
    while (idle_count < depth)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
}

static void over_ring(int fd, int write, size_t count, size_t blocks, size_t len, int random)
{
    struct slot *slots = slots_of(len);
    struct bb_ring_completion *ends = calloc(depth, sizeof *ends);
    struct bb_ring *ring = bb_ring_create((unsigned)depth);
    MUST(ring);
    for (size_t i = 0; i < depth; i++)
        MUST(bb_ring_register(ring, &slots[i].iov, 1) == (int)i);
    size_t made = 0, done = 0;
    while (done < count) {
        while (idle_count > 0 && made < count) {
            unsigned which = (unsigned)idle[--idle_count];
            off_t at = place(made++, blocks, len, random);
            MUST((write ? bb_ring_write_registered(ring, fd, which, 0, len, at, which)
                        : bb_ring_read_registered(ring, fd, which, 0, len, at, which)) == 0);
        }
        size_t flying = depth - idle_count;
        int got = bb_ring_wait(ring, ends, (unsigned)depth, (unsigned)(flying / 4 + 1));
        MUST(got > 0);
        for (int i = 0; i < got; i++) {
            MUST(ends[i].result == (int64_t)len);
            idle[idle_count++] = (size_t)ends[i].user_data;
        }
        done += (size_t)got;
    }
    bb_ring_destroy(ring);
}

static void run(const char *path, enum how how, int write, size_t len, size_t mib)
{
    size_t blocks = (mib << 20) / len, count = write || len > 4096 ? blocks : blocks / 16;
    int random = !write && len == 4096;
    pid_t child = fork();
    MUST(child >= 0);
    if (child != 0) {
        int status;
        MUST(waitpid(child, &status, 0) == child && status == 0);
        return;
    }
    ime_native_init();
    int fd = ime_native_open(path, write ? O_RDWR | O_CREAT | O_TRUNC : O_RDONLY, 0600);
    MUST(fd >= 0);
    if (path[0] == '/')
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    double wall_before = wall(), cpu_before = cpu();
    if (how == BLOCKING)
        blocking(fd, write, count, blocks, len, random);
    else if (how == CALLBACKS)
        callbacks(fd, write, count, blocks, len, random);
    else
        over_ring(fd, write, count, blocks, len, random);
    if (write)
        MUST(ime_native_fsync(fd) == 0);
    double seconds = wall() - wall_before, used = cpu() - cpu_before;
    printf("%-9s %-5s %7zu B  %9.0f op/s  %8.1f MiB/s  %7.2f us CPU/op\n", names[how],
           write ? "write" : "read", len, (double)count / seconds,
           (double)count * (double)len / seconds / 1048576.0, used / (double)count * 1e6);
    MUST(ime_native_close(fd) == 0 && ime_native_finalize() == 0);
    exit(0);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "native_api PATH MIB [DEPTH]\n");
        return 2;
    }
    size_t mib = strtoul(argv[2], NULL, 10);
    if (argc > 3)
        depth = strtoul(argv[3], NULL, 10);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int how = BLOCKING; how <= RING; how++) {
        if (how == RING && argv[1][0] == '/')
            continue;
        if (how == CALLBACKS && argv[1][0] == '/')
            continue;
        for (size_t len = 1 << 20; len >= 4096; len /= 256) {
            size_t deep = depth;
            if (len > 4096)
                depth = depth < 16 ? depth : 16;
            run(argv[1], (enum how)how, 1, len, mib);
            run(argv[1], (enum how)how, 0, len, mib);
            depth = deep;
        }
    }
    return 0;
}
