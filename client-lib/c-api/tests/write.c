/* Writes a file of so many MiB, once. write DIRECTORY MIB */
#include "check.h"

int main(int argc, char **argv)
{
    static char data[1 << 20];
    CHECK(argc == 3);
    fill(data, sizeof data, 1);
    ime_native_init();
    int fd = ime_native_open(name_in(argv[1], "written"), O_WRONLY | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0);
    for (int i = 0; i < atoi(argv[2]); i++)
        CHECK(ime_native_write(fd, data, sizeof data) == sizeof data);
    CHECK(ime_native_close(fd) == 0 && ime_native_finalize() == 0);
    return 0;
}
