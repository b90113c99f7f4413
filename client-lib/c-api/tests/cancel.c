/* Threads that are cancelled while they call: each ends between two calls, never within one, in
 * which it may be driving what all the others wait for.
 * cancel DIRECTORY THREADS */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "check.h"

#define PAGE 4096

static const char *dir;
static atomic_int over;

struct worker {
    pthread_t thread;
    int number;
    /* What has returned, and what was begun. */
    atomic_long begun, ended;
};

static void *work(void *argument)
{
    struct worker *worker = argument;
    unsigned char out[PAGE], back[PAGE];
    char name[40];
    snprintf(name, sizeof name, "cancel.%d", worker->number);
    int fd = ime_native_open(name_in(dir, name), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0);
    for (unsigned round = 0; !atomic_load(&over); round++) {
        pthread_testcancel();
        atomic_fetch_add(&worker->begun, 1);
        off_t at = (off_t)(round % 50) * PAGE;
        fill(out, PAGE, round);
        CHECK(ime_native_pwrite(fd, (char *)out, PAGE, at) == PAGE);
        if (round % 4 == 0)
            CHECK(ime_native_fsync(fd) == 0);
        struct stat st;
        CHECK(ime_native_stat(name_in(dir, name), &st) == 0);
        CHECK(ime_native_pread(fd, (char *)back, PAGE, at) == PAGE && memcmp(out, back, PAGE) == 0);
        atomic_fetch_add(&worker->ended, 1);
    }
    CHECK(ime_native_close(fd) == 0);
    return NULL;
}

static void start(struct worker *worker, int number)
{
    *worker = (struct worker){.number = number};
    CHECK(pthread_create(&worker->thread, NULL, work, worker) == 0);
}

int main(int argc, char **argv)
{
    static struct worker stay[2], go[200];
    CHECK(argc == 3);
    dir = argv[1];
    int count = atoi(argv[2]);
    CHECK(count <= 200);
    ime_native_init();
    for (int i = 0; i < 2; i++)
        start(&stay[i], i);
    for (int i = 0; i < count; i++) {
        start(&go[i], 2 + i);
        while (atomic_load(&go[i].ended) < 1 + i % 7)
            nanosleep(&(struct timespec){.tv_nsec = 20000 + i * 1000}, NULL);
        void *result = NULL;
        CHECK(pthread_cancel(go[i].thread) == 0 && pthread_join(go[i].thread, &result) == 0);
        CHECK(result == PTHREAD_CANCELED);
        /* What it had begun, it has ended. */
        CHECK(atomic_load(&go[i].begun) == atomic_load(&go[i].ended));
    }
    long before[2] = {atomic_load(&stay[0].ended), atomic_load(&stay[1].ended)};
    for (int i = 0; i < 2; i++)
        while (atomic_load(&stay[i].ended) == before[i])
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    atomic_store(&over, 1);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(stay[i].thread, NULL) == 0);
    CHECK(ime_native_finalize() == 0);
    return 0;
}
