/* The ring: hundreds of small requests from one thread. ring DIRECTORY */
#include "check.h"

enum { DEPTH = 256, BLOCKS = 2000, LEN = 4096 };

static unsigned char memory[DEPTH][LEN];
static struct bb_ring_completion ends[DEPTH];

static void run(struct bb_ring *ring, int fd, int registered, int write)
{
    int free_slots[DEPTH], free_count = DEPTH, made = 0, done = 0;
    static char seen[BLOCKS];
    memset(seen, 0, sizeof seen);
    for (int i = 0; i < DEPTH; i++)
        free_slots[i] = i;
    while (done < BLOCKS) {
        while (free_count > 0 && made < BLOCKS) {
            int slot = free_slots[--free_count], block = made++ * 7 % BLOCKS, result;
            off_t offset = (off_t)block * LEN;
            uint64_t data = (uint64_t)block << 16 | (uint64_t)slot;
            if (write)
                fill(memory[slot], LEN, (unsigned)block);
            if (registered && write)
                result = bb_ring_write_registered(ring, fd, 0, (size_t)slot * LEN, LEN, offset, data);
            else if (registered)
                result = bb_ring_read_registered(ring, fd, 0, (size_t)slot * LEN, LEN, offset, data);
            else if (write)
                result = bb_ring_write(ring, fd, memory[slot], LEN, offset, data);
            else
                result = bb_ring_read(ring, fd, memory[slot], LEN, offset, data);
            CHECK(result == 0);
        }
        int count = bb_ring_wait(ring, ends, DEPTH, 1);
        CHECK(count >= 1);
        for (int i = 0; i < count; i++) {
            int slot = (int)(ends[i].user_data & 0xffff), block = (int)(ends[i].user_data >> 16);
            CHECK(ends[i].result == LEN && !seen[block]++);
            CHECK(write || differs(memory[slot], LEN, (unsigned)block) == LEN);
            if (!write)
                memset(memory[slot], 0, LEN);
            free_slots[free_count++] = slot;
        }
        done += count;
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    ime_native_init();
    int fd = ime_native_open(name_in(argv[1], "ring"), O_RDWR | O_CREAT, 0600);
    struct bb_ring *ring = bb_ring_create(DEPTH);
    CHECK(fd >= 0 && ring);
    struct iovec all = {memory, sizeof memory};
    CHECK(bb_ring_register(ring, &all, 1) == 0);
    run(ring, fd, 1, 1);
    CHECK(bb_ring_fsync(ring, fd, 5) == 0 && bb_ring_wait(ring, ends, DEPTH, 1) == 1);
    CHECK(ends[0].user_data == 5 && ends[0].result == 0);
    run(ring, fd, 1, 0);
    run(ring, fd, 0, 1);
    run(ring, fd, 0, 0);
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && st.st_size == (off_t)BLOCKS * LEN);
    /* At the end of the file, and beyond what there is. */
    CHECK(bb_ring_read(ring, fd, memory[0], LEN, st.st_size - 10, 1) == 0);
    CHECK(bb_ring_submit(ring) == 1 && bb_ring_wait(ring, ends, 1, 1) == 1 && ends[0].result == 10);
    CHECK(bb_ring_wait(ring, ends, 1, 1) == 0);
    FAILS(bb_ring_read_registered(ring, fd, 0, sizeof memory - 10, 11, 0, 0), EINVAL);
    FAILS(bb_ring_read_registered(ring, fd, 1, 0, 1, 0, 0), EINVAL);
    FAILS(bb_ring_read(ring, 0, memory[0], 1, 0, 0), EBADF);
    FAILS(bb_ring_read(ring, fd, memory[0], 1, -1, 0), EINVAL);
    for (int i = 0; i < DEPTH; i++)
        CHECK(bb_ring_read(ring, fd, memory[i], LEN, 0, 0) == 0);
    FAILS(bb_ring_read(ring, fd, memory[0], LEN, 0, 0), EAGAIN);
    bb_ring_destroy(ring); /* waits */
    CHECK(ime_native_close(fd) == 0 && ime_native_finalize() == 0);
    return 0;
}
