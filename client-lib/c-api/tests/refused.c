/* A write that could not be stored, ignored by the program, is told again. refused DIRECTORY
 * The command timeout is short, and the servers are stopped when it says "now". */
#include "check.h"

int main(int argc, char **argv)
{
    static char data[8 << 20];
    CHECK(argc == 2);
    ime_native_init();
    int fd = ime_native_open(name_in(argv[1], "refused"), O_RDWR | O_CREAT, 0600);
    int reader = ime_native_open(name_in(argv[1], "refused"), O_RDONLY, 0);
    CHECK(fd >= 0 && reader >= 0);
    CHECK(ime_native_write(fd, data, 100) == 100 && ime_native_fsync(fd) == 0);
    puts("now");
    fflush(stdout);
    CHECK(getchar() != EOF);
    (void)!ime_native_pwrite(fd, data, sizeof data, 0);
    errno = 0;
    CHECK(ime_native_fsync(fd) == -1 && errno != 0);
    int first = errno;
    CHECK(ime_native_fsync(fd) == -1 && errno == first);
    CHECK(ime_native_close(fd) == -1 && errno == first);
    FAILS(ime_native_close(fd), EBADF);
    (void)ime_native_close(reader);
    return 0;
}
