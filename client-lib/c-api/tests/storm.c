/* Children that are forked while other threads call: whatever these hold at that moment, nobody in
 * the child waits for it. storm DIRECTORY THREADS CHILDREN */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096

static const char *dir;
static atomic_int over;
static atomic_long calls;

static void use(const char *name, unsigned round)
{
    unsigned char out[PAGE], back[PAGE];
    int fd = ime_native_open(name_in(dir, name), O_RDWR | O_CREAT, 0600);
    off_t at = (off_t)(round % 20) * PAGE;
    fill(out, PAGE, round);
    CHECK(fd >= 0 && ime_native_pwrite(fd, (char *)out, PAGE, at) == PAGE);
    if (round % 4 == 0)
        CHECK(ime_native_fsync(fd) == 0);
    CHECK(ime_native_pread(fd, (char *)back, PAGE, at) == PAGE && memcmp(out, back, PAGE) == 0);
    CHECK(ime_native_close(fd) == 0);
}

static void *work(void *argument)
{
    char name[40];
    snprintf(name, sizeof name, "storm.%d", (int)(intptr_t)argument);
    for (unsigned round = 0; !atomic_load(&over); round++) {
        use(name, round);
        atomic_fetch_add(&calls, 1);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[32];
    CHECK(argc == 4);
    dir = argv[1];
    int count = atoi(argv[2]), children = atoi(argv[3]);
    CHECK(count <= 32);
    ime_native_init();
    for (int i = 0; i < count; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i) == 0);
    for (int i = 0; i < children; i++) {
        /* Not two forks at the same point of what the threads do. */
        long before = atomic_load(&calls);
        while (atomic_load(&calls) < before + 1 + i % 3)
            sched_yield();
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            char name[40];
            /* A child that sleeps forever is a failure too. */
            alarm(60);
            snprintf(name, sizeof name, "child.%d", i);
            use(name, (unsigned)i * 4);
            exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    atomic_store(&over, 1);
    for (int i = 0; i < count; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(ime_native_finalize() == 0);
    return 0;
}
