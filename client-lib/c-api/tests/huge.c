/* One call that moves more than 2 GiB, from and to a small buffer by vectors, and one to a large
 * one. huge DIRECTORY [whole] */
#include "check.h"

enum { PART = 2200000, PARTS = 1024 };

int main(int argc, char **argv)
{
    CHECK(argc == 2 || argc == 3);
    unsigned char *part = malloc(PART);
    struct iovec iov[PARTS];
    size_t sum = (size_t)PART * PARTS;
    fill(part, PART, 7);
    for (int i = 0; i < PARTS; i++) {
        iov[i].iov_base = part;
        iov[i].iov_len = PART;
    }
    ime_native_init();
    int fd = ime_native_open(name_in(argv[1], "huge"), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ime_native_pwritev(fd, iov, PARTS, 0) == (ssize_t)sum);
    CHECK(ime_native_fsync(fd) == 0 && ime_native_lseek(fd, 0, SEEK_END) == (off_t)sum);
    memset(part, 0, PART);
    CHECK(ime_native_preadv(fd, iov, PARTS, 0) == (ssize_t)sum);
    CHECK(differs(part, PART, 7) == PART);
    if (argc == 3) {
        char *all = malloc(sum);
        CHECK(all && ime_native_pread(fd, all, sum, 0) == (ssize_t)sum);
        for (size_t at = 0; at < sum; at += PART)
            CHECK(differs(all + at, PART, 7) == PART);
        CHECK(ime_native_pwrite(fd, all, sum, 0) == (ssize_t)sum && ime_native_fsync(fd) == 0);
        free(all);
    }
    CHECK(ime_native_close(fd) == 0 && ime_native_unlink(name_in(argv[1], "huge")) == 0);
    CHECK(ime_native_finalize() == 0);
    free(part);
    return 0;
}
