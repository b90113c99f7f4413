/* Writes, reads and compares for some seconds; says "half" when it is time to take a server away.
 * survive DIRECTORY SECONDS */
#include <time.h>

#include "check.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    static unsigned char out[300000], back[300000];
    CHECK(argc == 3);
    double start = now(), limit = atof(argv[2]);
    int said = 0, round = 0;
    char name[30];
    ime_native_init();
    while (now() - start < limit) {
        size_t len = 1000 + (size_t)(round * 7919) % (sizeof out - 1000);
        snprintf(name, sizeof name, "round%d", round);
        fill(out, len, (unsigned)round);
        int fd = ime_native_open(name_in(argv[1], name), O_RDWR | O_CREAT, 0600);
        CHECK(fd >= 0 && ime_native_write(fd, (char *)out, len) == (ssize_t)len);
        CHECK(ime_native_fsync(fd) == 0 && ime_native_close(fd) == 0);
        int other = round * 3 / 4;
        size_t other_len = 1000 + (size_t)(other * 7919) % (sizeof out - 1000);
        snprintf(name, sizeof name, "round%d", other);
        fd = ime_native_open(name_in(argv[1], name), O_RDONLY, 0);
        CHECK(fd >= 0 && ime_native_pread(fd, (char *)back, sizeof back, 0) == (ssize_t)other_len);
        CHECK(differs(back, other_len, (unsigned)other) == other_len);
        CHECK(ime_native_close(fd) == 0);
        round++;
        if (!said && now() - start > limit / 3) {
            said = 1;
            puts("half");
            fflush(stdout);
        }
    }
    for (int i = 0; i < round; i++) {
        size_t len = 1000 + (size_t)(i * 7919) % (sizeof out - 1000);
        snprintf(name, sizeof name, "round%d", i);
        int fd = ime_native_open(name_in(argv[1], name), O_RDONLY, 0);
        CHECK(fd >= 0 && ime_native_read(fd, (char *)back, sizeof back) == (ssize_t)len);
        CHECK(differs(back, len, (unsigned)i) == len && ime_native_close(fd) == 0);
    }
    printf("%d rounds\n", round);
    CHECK(ime_native_finalize() == 0);
    return 0;
}
