/* Many threads: each calls init, works, and some call finalize under the others.
 * threads DIRECTORY THREADS ROUNDS */
#include <pthread.h>

#include "check.h"

static const char *dir;
static int rounds, shared;

static void *work(void *argument)
{
    int number = (int)(intptr_t)argument;
    unsigned char out[20000], back[20000];
    char name[40], other[40];
    ime_native_init();
    for (int round = 0; round < rounds; round++) {
        size_t len = 1 + (size_t)(number * 7919 + round * 104729) % sizeof out;
        snprintf(name, sizeof name, "t%d.%d", number, round);
        fill(out, len, (unsigned)(number + round));
        int fd = ime_native_open(name_in(dir, name), O_RDWR | O_CREAT, 0600);
        CHECK(fd >= 0 && ime_native_write(fd, (char *)out, len) == (ssize_t)len);
        CHECK(ime_native_pread(fd, (char *)back, sizeof back, 0) == (ssize_t)len);
        CHECK(memcmp(out, back, len) == 0);
        CHECK(ime_native_pwrite(shared, (char *)out, 100, (number * rounds + round) * 100) == 100);
        if (round % 3 == 0)
            CHECK(ime_native_fsync(fd) == 0);
        struct stat st;
        CHECK(ime_native_close(fd) == 0);
        CHECK(ime_native_stat(name_in(dir, name), &st) == 0 && st.st_size == (off_t)len);
        if (round % 2 == 0)
            CHECK(ime_native_unlink(name_in(dir, name)) == 0);
        snprintf(other, sizeof other, "no.%d", number);
        FAILS(ime_native_open(name_in(dir, other), O_RDONLY, 0), ENOENT);
        if (round % 5 == number % 5)
            CHECK(ime_native_finalize() == 0);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[64];
    unsigned char want[100], back[100];
    CHECK(argc == 4);
    dir = argv[1];
    int count = atoi(argv[2]);
    rounds = atoi(argv[3]);
    CHECK(count <= 64);
    ime_native_init();
    shared = ime_native_open(name_in(dir, "shared"), O_RDWR | O_CREAT, 0600);
    CHECK(shared >= 0);
    for (int i = 0; i < count; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i) == 0);
    for (int i = 0; i < count; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < count * rounds; i++) {
        int number = i / rounds, round = i % rounds;
        size_t len = 1 + (size_t)(number * 7919 + round * 104729) % 20000;
        fill(want, sizeof want, (unsigned)(number + round));
        CHECK(ime_native_pread(shared, (char *)back, 100, i * 100) == 100);
        CHECK(memcmp(want, back, len < 100 ? len : 100) == 0);
    }
    CHECK(ime_native_close(shared) == 0 && ime_native_finalize() == 0);
    return 0;
}
