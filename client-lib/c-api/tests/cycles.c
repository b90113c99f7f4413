/* init and finalize, again and again, also with files open. cycles DIRECTORY ROUNDS */
#include "check.h"

static int threads_of_this_process(void)
{
    char line[200];
    int count = 0;
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status);
    while (fgets(line, sizeof line, status))
        sscanf(line, "Threads: %d", &count);
    fclose(status);
    return count;
}

int main(int argc, char **argv)
{
    char back[4];
    CHECK(argc == 3);
    int rounds = atoi(argv[2]);
    int kept = -1;
    /* finalize without init, twice, as destructors do. */
    CHECK(ime_native_finalize() == 0 && ime_native_finalize() == 0);
    for (int round = 0; round < rounds; round++) {
        ime_native_init();
        ime_native_init();
        int fd = ime_native_open(name_in(argv[1], "cycled"), O_RDWR | O_CREAT, 0600);
        CHECK(fd >= 0 && ime_native_pwrite(fd, "abcd", 4, round * 4) == 4);
        if (round % 3 == 1) {
            /* A file that is open survives it. */
            CHECK(ime_native_finalize() == 0);
            CHECK(ime_native_pread(fd, back, 4, round * 4) == 4 && memcmp(back, "abcd", 4) == 0);
            CHECK(ime_native_pwrite(fd, "efgh", 4, round * 4) == 4);
            CHECK(ime_native_close(fd) == 0);
        } else if (round % 3 == 2) {
            /* Closed without waiting: finalize does. */
            CHECK(ime_native_async_fd(fd, 1) == 0 && ime_native_close(fd) == 0);
            CHECK(ime_native_finalize() == 0);
        } else {
            CHECK(ime_native_close(fd) == 0 && ime_native_finalize() == 0);
        }
        /* Nothing of the library runs; the kernel counts a joined thread a moment longer. */
        for (int tries = 0; threads_of_this_process() > 1; tries++) {
            CHECK(tries < 5000);
            usleep(1000);
        }
    }
    kept = ime_native_open(name_in(argv[1], "cycled"), O_RDONLY, 0);
    struct stat st;
    CHECK(kept >= 0 && fstat(kept, &st) == 0 && st.st_size == rounds * 4);
    CHECK(ime_native_close(kept) == 0 && ime_native_finalize() == 0 && ime_native_finalize() == 0);
    return 0;
}
