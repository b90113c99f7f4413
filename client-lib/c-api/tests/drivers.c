/* The calls of known callers, in their order. drivers DIRECTORY */
#include <pthread.h>
#include <sys/wait.h>

#include "check.h"

/* IOR and mdtest, a file: each object is made, written, checked, removed by name. */
static void ior(const char *dir)
{
    static char block[262144], back[262144];
    char version[1024];
    struct stat st;
    struct statvfs space;
    const char *name = name_in(dir, "ior");
    ime_native_init();
    strcpy(version, ime_native_version());
    CHECK(ime_native_access(name, F_OK) == -1);
    CHECK(ime_native_statvfs(dir, &space) == 0 && space.f_blocks >= space.f_bfree);
    int fd = ime_native_open(name, O_RDWR | O_CREAT | O_DIRECT, 0664);
    CHECK(fd >= 0);
    for (int i = 0; i < 8; i++) {
        size_t rest = sizeof block;
        char *at = block;
        off_t offset = (off_t)i * (off_t)sizeof block;
        fill(block, sizeof block, (unsigned)i);
        while (rest > 0) {
            ssize_t done = ime_native_pwrite(fd, at, rest, offset);
            CHECK(done > 0);
            rest -= (size_t)done;
            at += done;
        }
    }
    CHECK(ime_native_fsync(fd) == 0 && ime_native_close(fd) == 0);
    CHECK(ime_native_stat(name, &st) == 0 && st.st_size == 8 * (off_t)sizeof block);
    fd = ime_native_open(name, O_RDONLY, 0);
    for (int i = 7; i >= 0; i--) {
        CHECK(ime_native_pread(fd, back, sizeof back, (off_t)i * (off_t)sizeof back) == sizeof back);
        CHECK(differs(back, sizeof back, (unsigned)i) == sizeof back);
    }
    CHECK(ime_native_close(fd) == 0 && ime_native_unlink(name) == 0);
    /* mdtest: a tree, mknod or open for each item, sync between the phases. */
    char tree[PATH_MAX];
    snprintf(tree, sizeof tree, "%s/mdtest", dir);
    CHECK(ime_native_mkdir(tree, S_IRWXU) == 0 && ime_native_access(tree, F_OK) == 0);
    for (int i = 0; i < 5; i++) {
        char item[30];
        snprintf(item, sizeof item, "mdtest/file.%d", i);
        if (i % 2)
            CHECK(ime_native_mknod(name_in(dir, item), S_IFREG | S_IRUSR, 0) == 0);
        else
            CHECK((fd = ime_native_open(name_in(dir, item), O_CREAT | O_WRONLY, 0664)) >= 0 &&
                  ime_native_write(fd, item, 10) == 10 && ime_native_close(fd) == 0);
    }
    CHECK(ime_native_sync(0) == 0);
    for (int i = 0; i < 5; i++) {
        char item[30];
        snprintf(item, sizeof item, "mdtest/file.%d", i);
        CHECK(ime_native_stat(name_in(dir, item), &st) == 0 && st.st_size == (i % 2 ? 0 : 10));
        CHECK(ime_native_unlink(name_in(dir, item)) == 0);
    }
    CHECK(ime_native_rmdir(tree) == 0 && ime_native_finalize() == 0);
}

/* ROMIO: the prefix may have no slashes; sizes by stat on the name, set by ftruncate. */
static void romio(const char *dir)
{
    char bare[PATH_MAX], back[64];
    struct stat st;
    /* ime:///x/y -> ime:/x/y */
    snprintf(bare, sizeof bare, "ime:%s/romio", dir + 6);
    ime_native_init();
    int fd = ime_native_open(bare, O_CREAT | O_RDWR, 0644);
    CHECK(fd >= 0);
    CHECK(ime_native_ftruncate(fd, 1000) == 0 && ime_native_stat(bare, &st) == 0 && st.st_size == 1000);
    CHECK(ime_native_pwrite(fd, "romio", 5, 2000) == 5 && ime_native_pread(fd, back, 64, 2000) == 5);
    CHECK(ime_native_ftruncate(fd, 2003) == 0 && ime_native_pread(fd, back, 64, 2000) == 3);
    CHECK(ime_native_fsync(fd) == 0 && ime_native_close(fd) == 0);
    CHECK(ime_native_unlink(bare) == 0);
    FAILS(ime_native_unlink(bare), ENOENT);
    CHECK(ime_native_finalize() == 0);
}

static volatile int ompi_ended;

static void ompi_done(struct ime_aiocb *block, int err, ssize_t bytes)
{
    ssize_t *result = (ssize_t *)block->user_context;
    *result = err ? -err : bytes;
    __atomic_store_n(&ompi_ended, 1, __ATOMIC_SEQ_CST);
}

/* Open MPI: vectors of up to 1,024, asynchronous ones polled; the size by SEEK_END. */
static void openmpi(const char *dir)
{
    static char parts[1024][37], back[1024 * 37];
    struct iovec iov[IME_IOV_MAX];
    ssize_t result = 0;
    const char *name = name_in(dir, "ompi");
    ime_client_native2_init();
    FAILS(ime_native_unlink(name), ENOENT);
    int fd = ime_native_open(name, O_CREAT | O_RDWR | O_EXCL, 0644);
    CHECK(fd >= 0);
    for (int i = 0; i < 1024; i++) {
        fill(parts[i], 37, (unsigned)i);
        iov[i].iov_base = parts[i];
        iov[i].iov_len = 37;
    }
    CHECK(ime_native_pwritev(fd, iov, 1024, 11) == 1024 * 37);
    CHECK(ime_native_lseek(fd, 0, SEEK_END) == 11 + 1024 * 37);
    struct ime_aiocb block = {fd, 1024, 0, iov, 11 + 1024 * 37, ompi_done, (intptr_t)&result};
    CHECK(ime_native_aio_write(&block) == 0);
    while (!__atomic_load_n(&ompi_ended, __ATOMIC_SEQ_CST))
        usleep(50);
    CHECK(result == 1024 * 37);
    CHECK(ime_native_lseek(fd, 0, SEEK_END) == 11 + 2 * 1024 * 37);
    CHECK(ime_native_pread(fd, back, sizeof back, 11 + 1024 * 37) == sizeof back);
    for (int i = 0; i < 1024; i++)
        CHECK(memcmp(back + i * 37, parts[i], 37) == 0);
    CHECK(ime_native_ftruncate(fd, 5) == 0 && ime_native_lseek(fd, 0, SEEK_END) == 5);
    CHECK(ime_native_fsync(fd) == 0 && ime_native_close(fd) == 0 && ime_native_finalize() == 0);
}

static pthread_mutex_t fio_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t fio_cond = PTHREAD_COND_INITIALIZER;
static int fio_ended;

static void fio_done(struct ime_aiocb *block, int err, ssize_t bytes)
{
    pthread_mutex_lock(&fio_lock);
    CHECK(err == 0 && bytes == *(ssize_t *)block->user_context);
    fio_ended++;
    pthread_cond_signal(&fio_cond);
    pthread_mutex_unlock(&fio_lock);
}

/* fio, in each job: the file is laid out, stat right after the open, a queue of vectors. */
static void *fio_job(void *argument)
{
    static _Thread_local char data[16][8192];
    struct iovec iov[16];
    struct stat st;
    const char *name = argument;
    ssize_t wanted = sizeof data;
    ime_native_init();
    int fd = ime_native_open(name, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ime_native_stat(name, &st) == 0 && st.st_size == 0);
    CHECK(ime_native_ftruncate(fd, 1 << 20) == 0);
    CHECK(ime_native_stat(name, &st) == 0 && st.st_size == 1 << 20);
    for (int i = 0; i < 16; i++) {
        fill(data[i], sizeof data[i], (unsigned)i);
        iov[i].iov_base = data[i];
        iov[i].iov_len = sizeof data[i];
    }
    CHECK(ime_native_pwritev(fd, iov, 16, 0) == wanted);
    memset(data, 0, sizeof data);
    CHECK(ime_native_preadv(fd, iov, 16, 0) == wanted && differs(data[9], 8192, 9) == 8192);
    struct ime_aiocb block = {fd, 16, 0, iov, wanted, fio_done, (intptr_t)&wanted};
    pthread_mutex_lock(&fio_lock);
    int before = fio_ended;
    pthread_mutex_unlock(&fio_lock);
    CHECK(ime_native_aio_write(&block) == 0);
    pthread_mutex_lock(&fio_lock);
    while (fio_ended == before)
        pthread_cond_wait(&fio_cond, &fio_lock);
    pthread_mutex_unlock(&fio_lock);
    CHECK(ime_native_fsync(fd) == 0 && ime_native_close(fd) == 0);
    return NULL;
}

static void fio(const char *dir)
{
    /* As threads one after the other (a job waits for any end), then as a child. */
    for (int i = 0; i < 2; i++) {
        pthread_t job;
        char name[PATH_MAX];
        snprintf(name, sizeof name, "%s/fio.%d", dir, i);
        CHECK(pthread_create(&job, NULL, fio_job, name) == 0 && pthread_join(job, NULL) == 0);
    }
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char name[PATH_MAX];
        snprintf(name, sizeof name, "%s/fio.child", dir);
        fio_job(name);
        CHECK(ime_native_finalize() == 0);
        exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(ime_native_finalize() == 0 && ime_native_finalize() == 0);
}

/* ADIOS2: write in a loop, fsync, then to the backing file system; finalize with a file open. */
static void adios(const char *dir)
{
    static char data[50000];
    ime_client_native2_init();
    fill(data, sizeof data, 1);
    int other = ime_client_native2_open(name_in(dir, "adios.kept"), O_RDWR | O_CREAT, 0644);
    int fd = ime_client_native2_open(name_in(dir, "adios"), O_WRONLY | O_CREAT | O_TRUNC, 0777);
    CHECK(fd >= 0 && other >= 0);
    for (size_t at = 0; at < sizeof data;) {
        ssize_t done = ime_client_native2_write(fd, data + at, sizeof data - at);
        CHECK(done > 0);
        at += (size_t)done;
    }
    CHECK(ime_client_native2_lseek(fd, 0, SEEK_END) == sizeof data);
    CHECK(ime_client_native2_fsync(fd) == 0 && ime_client_native2_bfs_sync(fd, true) == 0);
    CHECK(ime_client_native2_close(fd) == 0 && ime_client_native2_finalize() == 0);
    CHECK(ime_client_native2_write(other, data, 10) == 10 && ime_client_native2_close(other) == 0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    ior(argv[1]);
    romio(argv[1]);
    openmpi(argv[1]);
    fio(argv[1]);
    adios(argv[1]);
    return 0;
}
