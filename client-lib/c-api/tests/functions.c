/* Section 2: every function, under both names. functions DIRECTORY */
#define BB_IME_NO_MACROS
#include "check.h"

struct api {
    void (*init)(void);
    int (*finalize)(void);
    const char *(*version)(void);
    int (*open)(const char *, int, mode_t);
    int (*close)(int);
    int (*access)(const char *, int);
    int (*stat)(const char *, struct stat *);
    int (*unlink)(const char *);
    int (*mkdir)(const char *, mode_t);
    int (*rmdir)(const char *);
    int (*mknod)(const char *, mode_t, dev_t);
    int (*statvfs)(const char *, struct statvfs *);
    int (*sync)(int);
    ssize_t (*read)(int, char *, size_t);
    ssize_t (*write)(int, const char *, size_t);
    ssize_t (*pread)(int, char *, size_t, off_t);
    ssize_t (*pwrite)(int, const char *, size_t, off_t);
    ssize_t (*preadv)(int, const struct iovec *, int, off_t);
    ssize_t (*pwritev)(int, const struct iovec *, int, off_t);
    int (*fsync)(int);
    int (*ftruncate)(int, off_t);
    off_t (*lseek)(int, off_t, int);
    int (*dup2)(int, int);
    int (*aio_read)(struct ime_aiocb *);
    int (*aio_write)(struct ime_aiocb *);
    int (*bfs_sync)(int, bool);
    int (*async_fd)(int, int);
    int (*config_ctl)(int, uint32_t);
    int (*data_release)(int, int);
    int (*frag_fstat)(int, size_t *, size_t *, size_t *, size_t *);
    ssize_t (*get_ime_fsize)(int);
    int (*prestage)(int, bool);
    int (*prestage_blocking)(int, bool);
    int (*sync_ctl)(int, int);
    bool (*is_fuse_path_and_convert)(const char *, char *);
};

#define API(prefix)                                                                             \
    {                                                                                           \
        prefix##init, prefix##finalize, prefix##version, prefix##open, prefix##close,           \
            prefix##access, prefix##stat, prefix##unlink, prefix##mkdir, prefix##rmdir,         \
            prefix##mknod, prefix##statvfs, prefix##sync, prefix##read, prefix##write,          \
            prefix##pread, prefix##pwrite, prefix##preadv, prefix##pwritev, prefix##fsync,      \
            prefix##ftruncate, prefix##lseek, prefix##dup2, prefix##aio_read, prefix##aio_write, \
            prefix##bfs_sync, prefix##async_fd, prefix##config_ctl, prefix##data_release,       \
            prefix##frag_fstat, prefix##get_ime_fsize, prefix##prestage,                        \
            prefix##prestage_blocking, prefix##sync_ctl, prefix##is_fuse_path_and_convert,      \
    }

static const struct api apis[] = {API(ime_native_), API(ime_client_native2_)};
static volatile int callbacks;

static void complete(struct ime_aiocb *block, int err, ssize_t bytes)
{
    CHECK(err == 0 && bytes == (ssize_t)block->user_context);
    __atomic_add_fetch(&callbacks, 1, __ATOMIC_SEQ_CST);
}

static void wait_for(int count)
{
    while (__atomic_load_n(&callbacks, __ATOMIC_SEQ_CST) < count)
        usleep(100);
}

static void names(const struct api *a, const char *dir)
{
    struct stat st;
    struct statvfs space;
    const char *sub = name_in(dir, "sub");
    const char *node = name_in(dir, "sub/node");
    CHECK(a->mkdir(sub, 0750) == 0);
    FAILS(a->mkdir(sub, 0750), EEXIST);
    CHECK(a->stat(sub, &st) == 0 && S_ISDIR(st.st_mode) && (st.st_mode & 0777) == 0750);
    CHECK(a->mknod(node, S_IFREG | S_IRUSR, 0) == 0);
    FAILS(a->mknod(node, S_IFREG | S_IRUSR, 0), EEXIST);
    FAILS(a->mknod(name_in(dir, "fifo"), S_IFIFO | 0600, 0), EOPNOTSUPP);
    CHECK(a->stat(node, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0777) == 0400);
    CHECK(st.st_size == 0 && st.st_uid == geteuid());
    CHECK(a->access(node, F_OK) == 0 && a->access(node, R_OK) == 0);
    CHECK(a->access(sub, W_OK | X_OK) == 0);
    FAILS(a->access(name_in(dir, "absent"), F_OK), ENOENT);
    FAILS(a->rmdir(sub), ENOTEMPTY);
    CHECK(a->unlink(node) == 0);
    FAILS(a->unlink(node), ENOENT);
    FAILS(a->stat(node, &st), ENOENT);
    FAILS(a->unlink(sub), EISDIR);
    CHECK(a->rmdir(sub) == 0);
    FAILS(a->rmdir(sub), ENOENT);
    CHECK(a->statvfs(dir, &space) == 0);
    CHECK(space.f_bsize > 0 && space.f_blocks > 0 && space.f_bfree <= space.f_blocks);
    CHECK(space.f_files > 0 && space.f_ffree <= space.f_files);
}

static void data(const struct api *a, const char *dir)
{
    char out[9000], back[9000];
    struct stat st;
    const char *path = name_in(dir, "data");
    fill(out, sizeof out, 1);
    int fd = a->open(path, O_RDWR | O_CREAT | O_EXCL, 0640);
    CHECK(fd >= 0);
    FAILS(a->open(path, O_RDWR | O_CREAT | O_EXCL, 0640), EEXIST);
    CHECK(a->write(fd, out, 4000) == 4000);
    CHECK(a->lseek(fd, 0, SEEK_CUR) == 4000);
    CHECK(a->pwrite(fd, out + 4000, 5000, 4000) == 5000);
    CHECK(a->lseek(fd, 0, SEEK_CUR) == 4000 && a->lseek(fd, 0, SEEK_END) == 9000);
    CHECK(a->read(fd, back, 10) == 0);
    CHECK(a->lseek(fd, 100, SEEK_SET) == 100);
    CHECK(a->read(fd, back, 9000) == 8900 && memcmp(back, out + 100, 8900) == 0);
    CHECK(a->pread(fd, back, 50, 8990) == 10 && memcmp(back, out + 8990, 10) == 0);
    struct iovec iov[3] = {{back, 1000}, {back + 5000, 1}, {back + 1000, 2000}};
    CHECK(a->preadv(fd, iov, 3, 6500) == 2500);
    CHECK(memcmp(back, out + 6500, 1000) == 0 && back[5000] == out[7500]);
    CHECK(memcmp(back + 1000, out + 7501, 1499) == 0);
    struct iovec gather[2] = {{out, 10}, {out + 100, 10}};
    CHECK(a->pwritev(fd, gather, 2, 8990) == 20);
    CHECK(a->fsync(fd) == 0 && a->sync(0) == 0);
    CHECK(a->stat(path, &st) == 0 && st.st_size == 9010);
    CHECK(a->get_ime_fsize(fd) == 9010);
    CHECK(a->ftruncate(fd, 5000) == 0 && a->stat(path, &st) == 0 && st.st_size == 5000);
    CHECK(a->ftruncate(fd, 6000) == 0 && a->pread(fd, back, 2000, 4990) == 1010);
    CHECK(memcmp(back, out + 4990, 10) == 0 && back[10] == 0 && back[1009] == 0);
    int other = a->dup2(fd, 77);
    CHECK(other == 77 && a->close(fd) == 0);
    CHECK(a->pread(other, back, 10, 0) == 10 && memcmp(back, out, 10) == 0);
    CHECK(a->close(other) == 0);
    FAILS(a->pread(other, back, 10, 0), EBADF);
}

static void asynchronous(const struct api *a, const char *dir)
{
    char out[3000], back[3000];
    fill(out, sizeof out, 2);
    int fd = a->open(name_in(dir, "aio"), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0);
    struct iovec iov[2] = {{out, 1000}, {out + 1000, 2000}};
    struct ime_aiocb block;
    memset(&block, 0xff, sizeof block); /* flags and all */
    block.fd = fd;
    block.iovcnt = 2;
    block.iov = iov;
    block.file_offset = 500;
    block.complete_cb = complete;
    block.user_context = 3000;
    int before = callbacks;
    CHECK(a->aio_write(&block) == 0);
    wait_for(before + 1);
    CHECK(block.user_context == 3000);
    struct iovec in = {back, sizeof back};
    block.iov = &in;
    block.iovcnt = 1;
    CHECK(a->aio_read(&block) == 0);
    wait_for(before + 2);
    CHECK(differs(back, sizeof back, 2) == sizeof back);
    block.fd = 9999;
    FAILS(a->aio_read(&block), EBADF);
    CHECK(a->async_fd(fd, 1) == 0 && a->close(fd) == 0);
    CHECK(a->finalize() == 0);
    a->init();
    struct stat st;
    CHECK(a->stat(name_in(dir, "aio"), &st) == 0 && st.st_size == 3500);
}

static void residency(const struct api *a, const char *dir)
{
    static char out[100000];
    size_t dirty, syncing, clean, deletable;
    fill(out, sizeof out, 3);
    int fd = a->open(name_in(dir, "staged"), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && a->write(fd, out, sizeof out) == sizeof out && a->fsync(fd) == 0);
    CHECK(a->frag_fstat(fd, &dirty, &syncing, &clean, &deletable) == 0);
    CHECK(dirty == sizeof out && clean == 0);
    CHECK(a->sync_ctl(fd, 1) == 0 && a->sync_ctl(fd, 0) == 0);
    CHECK(a->bfs_sync(fd, true) == 0);
    CHECK(a->frag_fstat(fd, &dirty, NULL, &clean, NULL) == 0 && dirty == 0);
    CHECK(clean == sizeof out);
    CHECK(a->data_release(fd, 1) == 0);
    do
        CHECK(a->frag_fstat(fd, &dirty, &syncing, &clean, &deletable) == 0);
    while (clean + deletable > 0);
    CHECK(a->prestage_blocking(fd, false) == 0);
    CHECK(a->frag_fstat(fd, &dirty, &syncing, &clean, &deletable) == 0);
    CHECK(clean == sizeof out && dirty == 0);
    CHECK(a->prestage(fd, true) == 0 && a->bfs_sync(fd, false) == 0);
    /* What was started must not meet what comes now. */
    CHECK(a->bfs_sync(fd, true) == 0 && a->prestage_blocking(fd, true) == 0);
    /* What is not synchronized may be given up. */
    CHECK(a->pwrite(fd, "lost", 4, 0) == 4 && a->data_release(fd, 0) == 0);
    do
        CHECK(a->frag_fstat(fd, &dirty, &syncing, &clean, &deletable) == 0);
    while (dirty + syncing + clean + deletable > 0);
    char back[4];
    CHECK(a->pread(fd, back, 4, 0) == 4 && memcmp(back, out, 4) == 0);
    CHECK(a->config_ctl(40, BB_RATIO_SYNC) == 0);
    FAILS(a->config_ctl(101, BB_RATIO_SYNC), EINVAL);
    FAILS(a->config_ctl(40, 99), EINVAL);
    CHECK(a->close(fd) == 0);
    CHECK(a->bfs_sync(0, true) == -1 && (errno == EINVAL || errno == EBADF));
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    for (unsigned i = 0; i < 2; i++) {
        const struct api *a = &apis[i];
        const char *dir = name_in(argv[1], i ? "native2" : "native");
        char kept[PATH_MAX], converted[PATH_MAX];
        snprintf(kept, sizeof kept, "%s", dir);
        a->init();
        CHECK(strlen(a->version()) > 4 && strlen(a->version()) < 1024);
        CHECK(!a->is_fuse_path_and_convert("/etc/passwd", converted));
        CHECK(a->mkdir(kept, 0700) == 0);
        names(a, kept);
        data(a, kept);
        asynchronous(a, kept);
        residency(a, kept);
        CHECK(a->finalize() == 0);
    }
    return 0;
}
