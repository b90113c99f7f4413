/* The calls of the Developer Guide's example and of the users' page of Juelich, in their order.
 * samples DIRECTORY */
#include "check.h"

#define COUNT 255
#define LEN (COUNT * sizeof(int))

static void newer(const char *name)
{
    int numbers[COUNT] = {1, 2, 3};
    ssize_t done = 0;
    ime_native_init();
    int fd = ime_native_open(name, O_RDWR | O_CREAT, 0666);
    CHECK(fd >= 0);
    while (done < (ssize_t)LEN) {
        ssize_t part = ime_native_write(fd, (const char *)numbers, LEN);
        CHECK(part >= 0);
        done += part;
    }
    CHECK(ime_native_fsync(fd) == 0 && ime_native_bfs_sync(fd, 1) == 0);
    CHECK(ime_native_close(fd) == 0 && ime_native_finalize() == 0);
}

static void older(const char *name)
{
    int numbers[COUNT] = {4, 5, 6};
    ssize_t done = 0;
    ime_client_native2_init();
    int fd = ime_client_native2_open(name, O_RDWR | O_CREAT, 0666);
    CHECK(fd >= 0);
    while (done < (ssize_t)LEN) {
        ssize_t part = ime_client_native2_write(fd, (const char *)numbers, LEN);
        CHECK(part >= 0);
        done += part;
    }
    /* Synchronization with one argument does not wait. */
    CHECK(ime_client_native2_fsync(fd) == 0 && ime_client_native2_bfs_sync(fd) == 0);
    CHECK(ime_client_native2_close(fd) == 0 && ime_client_native2_finalize() == 0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    newer(name_in(argv[1], "newer"));
    older(name_in(argv[1], "older"));
    return 0;
}
