/* Section 3: what programs rely on. behaviour DIRECTORY DIRECTORY-ON-THE-BFS */
#include "check.h"

static void transfers_are_never_short(const char *dir)
{
    enum { LEN = 21 << 20 };
    char *out = malloc(LEN), *back = malloc(LEN);
    fill(out, LEN, 5);
    int fd = ime_native_open(name_in(dir, "large"), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ime_native_pwrite(fd, out, LEN, 12345) == LEN);
    CHECK(ime_native_pread(fd, back, LEN, 12345) == LEN && memcmp(out, back, LEN) == 0);
    struct iovec many[1024];
    for (int i = 0; i < 1024; i++) {
        many[i].iov_base = back + i * 20000;
        many[i].iov_len = 1 + (size_t)(i * 13 % 20000);
    }
    ssize_t sum = 0;
    for (int i = 0; i < 1024; i++)
        sum += (ssize_t)many[i].iov_len;
    memset(back, 0, LEN);
    CHECK(ime_native_preadv(fd, many, 1024, 12345) == sum);
    for (ssize_t at = 0, i = 0; i < 1024; at += (ssize_t)many[i++].iov_len)
        CHECK(memcmp(many[i].iov_base, out + at, many[i].iov_len) == 0);
    CHECK(ime_native_pwritev(fd, many, 1024, 40 << 20) == sum);
    CHECK(ime_native_pread(fd, back, (size_t)sum, 40 << 20) == sum);
    CHECK(memcmp(back, out, (size_t)sum) == 0);
    FAILS(ime_native_preadv(fd, many, 1025, 0), EINVAL);
    FAILS(ime_native_preadv(fd, many, -1, 0), EINVAL);
    CHECK(ime_native_preadv(fd, many, 0, 0) == 0);
    CHECK(ime_native_close(fd) == 0);
    free(out);
    free(back);
}

static off_t kernel_size(int fd)
{
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && S_ISREG(st.st_mode));
    return st.st_size;
}

static void a_descriptor_is_the_kernel_s(const char *dir)
{
    char back[100];
    int low = open("/dev/null", O_RDONLY), fd = ime_native_open(name_in(dir, "real"), O_RDWR | O_CREAT, 0600);
    int next = open("/dev/null", O_RDONLY);
    CHECK(low >= 0 && fd > low && next > fd);
    CHECK(kernel_size(fd) == 0);
    CHECK(ime_native_write(fd, "0123456789", 10) == 10 && kernel_size(fd) == 10);
    CHECK(lseek(fd, 0, SEEK_CUR) == 10 && lseek(fd, 0, SEEK_END) == 10);
    CHECK(lseek(fd, 3, SEEK_SET) == 3 && ime_native_read(fd, back, 4) == 4);
    CHECK(memcmp(back, "3456", 4) == 0);
    CHECK(ime_native_pwrite(fd, "x", 1, 999) == 1 && kernel_size(fd) == 1000);
    CHECK(ime_native_ftruncate(fd, 500) == 0 && kernel_size(fd) == 500);
    CHECK(fcntl(fd, F_GETFL) >= 0);
    /* Copies that the C library makes lead to the same file, and share the position. */
    int copy = fcntl(fd, F_DUPFD, 100), second = dup2(fd, 200);
    CHECK(copy >= 100 && second == 200);
    CHECK(ime_native_lseek(copy, 1, SEEK_SET) == 1 && ime_native_read(second, back, 2) == 2);
    CHECK(memcmp(back, "12", 2) == 0 && lseek(fd, 0, SEEK_CUR) == 3);
    CHECK(ime_native_close(copy) == 0 && ime_native_close(second) == 0);
    CHECK(ime_native_pread(fd, back, 3, 0) == 3);
    copy = dup(fd);
    second = dup(fd);
    CHECK(copy >= 0 && second >= 0 && ime_native_pwrite(copy, "copy", 4, 0) == 4);
    CHECK(ime_native_pread(second, back, 4, 0) == 4 && close(second) == 0);
    CHECK(ime_native_close(fd) == 0 && ime_native_pread(copy, back, 4, 0) == 4);
    CHECK(memcmp(back, "copy", 4) == 0);
    fd = fcntl(copy, F_DUPFD, 300);
    CHECK(fd >= 300 && ime_native_pread(fd, back, 4, 0) == 4 && ime_native_close(copy) == 0);
    /* Past the library nothing is written that would be lost. */
    FAILS(write(fd, "lost", 4), EPERM);
    /* A number that was closed past the library and given away is not ours. */
    int pipes[2];
    CHECK(close(fd) == 0 && pipe(pipes) == 0 && dup2(pipes[0], fd) == fd && close(pipes[0]) == 0);
    pipes[0] = fd;
    CHECK(ime_native_write(pipes[1], "pipe", 4) == 4 && ime_native_read(pipes[0], back, 100) == 4);
    FAILS(ime_native_lseek(pipes[0], 0, SEEK_SET), ESPIPE);
    CHECK(ime_native_close(pipes[0]) == 0 && ime_native_close(pipes[1]) == 0);
    /* The file that lost its descriptor is well. */
    fd = ime_native_open(name_in(dir, "real"), O_RDONLY, 0);
    CHECK(fd >= 0 && kernel_size(fd) == 500 && ime_native_close(fd) == 0);
    close(low);
    close(next);
}

static void anything_else_is_the_system_s(const char *local)
{
    char path[PATH_MAX], back[20];
    struct stat st;
    struct statvfs space;
    snprintf(path, sizeof path, "%s/plain", local);
    int fd = ime_native_open(path, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ime_native_write(fd, "hello", 5) == 5 && ime_native_fsync(fd) == 0);
    CHECK(pread(fd, back, 20, 0) == 5 && ime_native_pread(fd, back, 20, 1) == 4);
    struct iovec iov = {back, 3};
    CHECK(ime_native_pwritev(fd, &iov, 1, 5) == 3 && ime_native_preadv(fd, &iov, 1, 5) == 3);
    CHECK(ime_native_lseek(fd, 0, SEEK_END) == 8 && ime_native_ftruncate(fd, 2) == 0);
    CHECK(ime_native_stat(path, &st) == 0 && st.st_size == 2 && st.st_uid == geteuid());
    CHECK(ime_native_access(path, R_OK) == 0 && ime_native_statvfs(path, &space) == 0);
    CHECK(space.f_bsize > 0 && space.f_namemax >= 255);
    CHECK(ime_native_dup2(fd, 150) == 150 && ime_native_close(fd) == 0 && ime_native_close(150) == 0);
    FAILS(ime_native_close(150), EBADF);
    FAILS(ime_native_read(150, back, 1), EBADF);
    CHECK(ime_native_unlink(path) == 0);
    FAILS(ime_native_unlink(path), ENOENT);
    CHECK(ime_native_mkdir(path, 0700) == 0 && ime_native_rmdir(path) == 0);
    CHECK(ime_native_mknod(path, S_IFIFO | 0600, 0) == 0 && ime_native_unlink(path) == 0);
}

static void sizes_are_those_of_the_buffer(const char *dir, const char *bfs)
{
    char local[PATH_MAX], back[8];
    struct stat st;
    const char *path = name_in(dir, "sized");
    int fd = ime_native_open(path, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ime_native_stat(path, &st) == 0 && st.st_size == 0);
    CHECK(ime_native_ftruncate(fd, 7000) == 0);
    CHECK(ime_native_stat(path, &st) == 0 && st.st_size == 7000);
    CHECK(ime_native_pwrite(fd, "x", 1, 8000) == 1);
    CHECK(ime_native_stat(path, &st) == 0 && st.st_size == 8001);
    snprintf(local, sizeof local, "%s/sized", bfs);
    CHECK(stat(local, &st) == 0 && ime_native_close(fd) == 0);
    CHECK(ime_native_unlink(path) == 0 && stat(local, &st) == -1 && errno == ENOENT);
    /* What appeared on the backing file system a moment ago opens at once. */
    snprintf(local, sizeof local, "%s/outside", bfs);
    fd = open(local, O_WRONLY | O_CREAT, 0600);
    CHECK(fd >= 0 && write(fd, "outside", 7) == 7 && close(fd) == 0);
    fd = ime_native_open(name_in(dir, "outside"), O_RDONLY, 0);
    CHECK(fd >= 0 && ime_native_read(fd, back, 8) == 7 && memcmp(back, "outside", 7) == 0);
    CHECK(ime_native_close(fd) == 0);
}

static void errors_have_their_numbers(const char *dir)
{
    char byte = 0, longest[300], *huge = malloc(5000);
    struct stat st;
    memset(longest, 'n', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    memset(huge, 'p', 4999);
    memcpy(huge, "ime:///", 7);
    huge[4999] = 0;
    FAILS(ime_native_open(name_in(dir, "absent"), O_RDONLY, 0), ENOENT);
    FAILS(ime_native_open(name_in(dir, "absent/x"), O_RDWR | O_CREAT, 0600), ENOENT);
    FAILS(ime_native_open(dir, O_RDWR, 0), EISDIR);
    FAILS(ime_native_open(name_in(dir, longest), O_RDWR | O_CREAT, 0600), ENAMETOOLONG);
    FAILS(ime_native_open(huge, O_RDONLY, 0), ENAMETOOLONG);
    FAILS(ime_native_open(NULL, O_RDONLY, 0), EFAULT);
    int fd = ime_native_open(name_in(dir, "errors"), O_WRONLY | O_CREAT, 0600);
    CHECK(fd >= 0);
    FAILS(ime_native_open(name_in(dir, "errors/x"), O_RDONLY, 0), ENOTDIR);
    FAILS(ime_native_read(fd, &byte, 1), EBADF);
    FAILS(ime_native_pread(fd, &byte, 1, 0), EBADF);
    FAILS(ime_native_pwrite(fd, &byte, 1, -1), EINVAL);
    FAILS(ime_native_pwrite(fd, NULL, 1, 0), EFAULT);
    FAILS(ime_native_pwrite(fd, &byte, 1, LLONG_MAX), EFBIG);
    FAILS(ime_native_ftruncate(fd, -1), EINVAL);
    FAILS(ime_native_lseek(fd, -1, SEEK_SET), EINVAL);
    FAILS(ime_native_lseek(fd, 0, 99), EINVAL);
    CHECK(ime_native_pwrite(fd, NULL, 0, 0) == 0);
    /* Arguments that were wrong are no lost data. */
    CHECK(ime_native_fsync(fd) == 0 && ime_native_close(fd) == 0);
    FAILS(ime_native_close(fd), EBADF);
    FAILS(ime_native_fsync(fd), EBADF);
    fd = ime_native_open(name_in(dir, "errors"), O_RDONLY, 0);
    CHECK(fd >= 0);
    FAILS(ime_native_write(fd, &byte, 1), EBADF);
    FAILS(ime_native_ftruncate(fd, 0), EINVAL);
    CHECK(ime_native_close(fd) == 0);
    FAILS(ime_native_stat(name_in(dir, "errors"), NULL), EFAULT);
    errno = 77;
    CHECK(ime_native_stat(name_in(dir, "errors"), &st) == 0 && errno == 77);
    free(huge);
}

static void appending_goes_to_the_end(const char *dir)
{
    char back[20];
    int fd = ime_native_open(name_in(dir, "log"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    int other = ime_native_open(name_in(dir, "log"), O_RDWR | O_APPEND, 0600);
    CHECK(fd >= 0 && other >= 0);
    CHECK(ime_native_write(fd, "one", 3) == 3 && ime_native_write(other, "two", 3) == 3);
    CHECK(lseek(other, 0, SEEK_CUR) == 6 && ime_native_write(fd, "three", 5) == 5);
    CHECK(ime_native_pread(other, back, 20, 0) == 11 && memcmp(back, "onetwothree", 11) == 0);
    CHECK(ime_native_close(fd) == 0 && ime_native_close(other) == 0);
    /* As one program opens it. */
    fd = ime_native_open(name_in(dir, "log"), O_APPEND, 0);
    CHECK(fd >= 0 && ime_native_read(fd, back, 20) == 11 && ime_native_close(fd) == 0);
}

static void holes_are_found(const char *dir)
{
    int fd = ime_native_open(name_in(dir, "holes"), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ime_native_pwrite(fd, "x", 1, 4999) == 1);
    CHECK(ime_native_lseek(fd, 10, SEEK_DATA) == 10 && ime_native_lseek(fd, 10, SEEK_HOLE) == 5000);
    FAILS(ime_native_lseek(fd, 5000, SEEK_DATA), ENXIO);
    CHECK(ime_native_close(fd) == 0);
}

static void the_mask_is_the_caller_s(const char *dir)
{
    struct stat st;
    mode_t before = umask(027);
    int fd = ime_native_open(name_in(dir, "masked"), O_RDWR | O_CREAT, 0666);
    CHECK(fd >= 0 && ime_native_stat(name_in(dir, "masked"), &st) == 0);
    CHECK((st.st_mode & 0777) == 0640 && ime_native_close(fd) == 0);
    umask(before);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    /* A descriptor from before init is the system's. */
    char back[4];
    int zero = open("/dev/zero", O_RDONLY);
    ime_native_init();
    CHECK(ime_native_read(zero, back, 4) == 4 && ime_native_close(zero) == 0);
    transfers_are_never_short(argv[1]);
    a_descriptor_is_the_kernel_s(argv[1]);
    anything_else_is_the_system_s(argv[2]);
    sizes_are_those_of_the_buffer(argv[1], argv[2]);
    errors_have_their_numbers(argv[1]);
    appending_goes_to_the_end(argv[1]);
    holes_are_found(argv[1]);
    the_mask_is_the_caller_s(argv[1]);
    CHECK(ime_native_finalize() == 0);
    return 0;
}
