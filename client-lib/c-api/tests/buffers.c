/* Reads a file twice in its order; writes into many files at a time. buffers DIRECTORY read|write MIB */
#include "check.h"

static char data[1 << 20];

static void read_twice(const char *dir, int mib)
{
    int fd = ime_native_open(name_in(dir, "written"), O_RDONLY, 0);
    CHECK(fd >= 0);
    for (int turn = 0; turn < 2; turn++)
        for (int i = 0; i < mib * 16; i++)
            CHECK(ime_native_pread(fd, data, 65536, (off_t)i * 65536) == 65536);
    CHECK(ime_native_close(fd) == 0);
}

/* None is full, so that none is sent before memory is short. */
static void write_many(const char *dir, int mib)
{
    int *fds = calloc(mib, sizeof *fds);
    char name[30];
    CHECK(fds);
    for (int i = 0; i < mib; i++) {
        snprintf(name, sizeof name, "part%d", i);
        fds[i] = ime_native_open(name_in(dir, name), O_WRONLY | O_CREAT, 0600);
        CHECK(fds[i] >= 0);
    }
    for (int i = 0; i < mib; i++)
        CHECK(ime_native_write(fds[i], data, sizeof data) == sizeof data);
    for (int i = 0; i < mib; i++)
        CHECK(ime_native_close(fds[i]) == 0);
    free(fds);
}

int main(int argc, char **argv)
{
    CHECK(argc == 4);
    ime_native_init();
    if (strcmp(argv[2], "read") == 0)
        read_twice(argv[1], atoi(argv[3]));
    else
        write_many(argv[1], atoi(argv[3]));
    CHECK(ime_native_finalize() == 0);
    return 0;
}
