/* Section 3.5: requests with callbacks. aio DIRECTORY */
#include <pthread.h>

#include "check.h"

enum { FLIGHT = 128, ROUNDS = 20, LEN = 3000, VECTORS = 1024 };

struct request {
    struct ime_aiocb block; /* first: the callback gets its address */
    struct iovec iov[2];
    unsigned char data[LEN];
    int index, round;
};

static struct request requests[FLIGHT];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int ended, calls;

static void submit(struct request *r, void (*cb)(struct ime_aiocb *, int, ssize_t), int fd)
{
    fill(r->data, LEN, (unsigned)(r->index * ROUNDS + r->round));
    r->iov[0].iov_base = r->data;
    r->iov[0].iov_len = 1;
    r->iov[1].iov_base = r->data + 1;
    r->iov[1].iov_len = LEN - 1;
    r->block.fd = fd;
    r->block.iov = r->iov;
    r->block.iovcnt = 2;
    r->block.file_offset = (off_t)(r->index * ROUNDS + r->round) * LEN;
    r->block.complete_cb = cb;
    r->block.user_context = (intptr_t)r;
    CHECK(ime_native_aio_write(&r->block) == 0);
}

/* The control block is used again at once, from within. */
static void next(struct ime_aiocb *block, int err, ssize_t bytes)
{
    struct request *r = (struct request *)block->user_context;
    int fd = block->fd;
    CHECK(err == 0 && bytes == LEN && &r->block == block);
    memset(block, 0xaa, sizeof *block);
    pthread_mutex_lock(&mutex);
    calls++;
    pthread_mutex_unlock(&mutex);
    if (++r->round < ROUNDS) {
        submit(r, next, fd);
        return;
    }
    pthread_mutex_lock(&mutex);
    ended++;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&mutex);
}

static int read_error;
static ssize_t read_bytes;

static void once(struct ime_aiocb *block, int err, ssize_t bytes)
{
    (void)block;
    pthread_mutex_lock(&mutex);
    read_error = err;
    read_bytes = bytes;
    ended++;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&mutex);
}

static void wait_for(int count)
{
    pthread_mutex_lock(&mutex);
    while (ended < count)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    ime_native_init();
    int fd = ime_native_open(name_in(argv[1], "aio"), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0);
    for (int i = 0; i < FLIGHT; i++) {
        requests[i].index = i;
        submit(&requests[i], next, fd);
    }
    wait_for(FLIGHT);
    CHECK(calls == FLIGHT * ROUNDS);
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && st.st_size == (off_t)FLIGHT * ROUNDS * LEN);
    CHECK(ime_native_fsync(fd) == 0);

    unsigned char back[LEN];
    for (int i = 0; i < FLIGHT * ROUNDS; i++) {
        CHECK(ime_native_pread(fd, (char *)back, LEN, (off_t)i * LEN) == LEN);
        CHECK(differs(back, LEN, (unsigned)i) == LEN);
    }

    /* 1,024 elements, and the end of the file. */
    static unsigned char scattered[VECTORS][LEN + 1];
    struct iovec many[VECTORS];
    for (int i = 0; i < VECTORS; i++) {
        many[i].iov_base = scattered[i];
        many[i].iov_len = LEN;
    }
    struct ime_aiocb block = {fd, VECTORS, 0, many, 0, once, 0};
    ended = 0;
    CHECK(ime_native_aio_read(&block) == 0);
    wait_for(1);
    CHECK(read_error == 0 && read_bytes == (ssize_t)VECTORS * LEN);
    for (int i = 0; i < VECTORS; i++)
        CHECK(differs(scattered[i], LEN, (unsigned)i) == LEN && scattered[i][LEN] == 0);
    block.file_offset = (off_t)FLIGHT * ROUNDS * LEN - 100;
    CHECK(ime_native_aio_read(&block) == 0);
    wait_for(2);
    CHECK(read_error == 0 && read_bytes == 100);

    /* What is refused has no callback. */
    block.iovcnt = VECTORS + 1;
    FAILS(ime_native_aio_read(&block), EINVAL);
    block.iovcnt = 1;
    block.file_offset = -1;
    FAILS(ime_native_aio_read(&block), EINVAL);
    block.file_offset = 0;
    block.complete_cb = NULL;
    FAILS(ime_native_aio_read(&block), EINVAL);
    FAILS(ime_native_aio_read(NULL), EFAULT);
    block.complete_cb = once;
    int reader = ime_native_open(name_in(argv[1], "aio"), O_RDONLY, 0);
    block.fd = reader;
    FAILS(ime_native_aio_write(&block), EBADF);
    CHECK(ended == 2 && ime_native_close(reader) == 0);

    /* A file of the system's. */
    block.fd = open("/dev/zero", O_RDONLY);
    CHECK(ime_native_aio_read(&block) == 0);
    wait_for(3);
    CHECK(read_error == 0 && read_bytes == LEN && close(block.fd) == 0);
    CHECK(ime_native_close(fd) == 0 && ime_native_finalize() == 0);
    return 0;
}
