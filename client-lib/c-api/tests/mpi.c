/* Every rank uses the library: a shared file in interleaved records, and a file for each.
 * mpirun -n RANKS mpi DIRECTORY */
#include <mpi.h>

#include "check.h"

enum { RECORD = 47008, RECORDS = 40 };

int main(int argc, char **argv)
{
    static unsigned char out[RECORD], back[RECORD];
    char name[30];
    struct stat st;
    int rank, ranks;
    CHECK(argc == 2);
    ime_native_init(); /* some do so before MPI_Init */
    CHECK(MPI_Init(&argc, &argv) == MPI_SUCCESS);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    int fd = ime_native_open(name_in(argv[1], "shared"), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0);
    for (int i = 0; i < RECORDS; i++) {
        int record = i * ranks + rank;
        fill(out, RECORD, (unsigned)record);
        CHECK(ime_native_pwrite(fd, (char *)out, RECORD, (off_t)record * RECORD) == RECORD);
    }
    CHECK(ime_native_fsync(fd) == 0 && ime_native_close(fd) == 0);
    MPI_Barrier(MPI_COMM_WORLD);
    CHECK(ime_native_stat(name_in(argv[1], "shared"), &st) == 0);
    CHECK(st.st_size == (off_t)RECORD * RECORDS * ranks);
    /* The next rank's records. */
    fd = ime_native_open(name_in(argv[1], "shared"), O_RDONLY, 0);
    CHECK(fd >= 0);
    for (int i = 0; i < RECORDS; i++) {
        int record = i * ranks + (rank + 1) % ranks;
        CHECK(ime_native_pread(fd, (char *)back, RECORD, (off_t)record * RECORD) == RECORD);
        CHECK(differs(back, RECORD, (unsigned)record) == RECORD);
    }
    CHECK(ime_native_close(fd) == 0);
    /* A file for each process, read by the neighbour. */
    snprintf(name, sizeof name, "rank%d", rank);
    fd = ime_native_open(name_in(argv[1], name), O_WRONLY | O_CREAT, 0600);
    fill(out, RECORD, 1000u + (unsigned)rank);
    CHECK(fd >= 0 && ime_native_write(fd, (char *)out, RECORD) == RECORD);
    CHECK(ime_native_close(fd) == 0);
    MPI_Barrier(MPI_COMM_WORLD);
    int next = (rank + 1) % ranks;
    snprintf(name, sizeof name, "rank%d", next);
    fd = ime_native_open(name_in(argv[1], name), O_RDONLY, 0);
    CHECK(fd >= 0 && ime_native_read(fd, (char *)back, RECORD) == RECORD);
    CHECK(differs(back, RECORD, 1000u + (unsigned)next) == RECORD && ime_native_close(fd) == 0);
    MPI_Finalize();
    CHECK(ime_native_finalize() == 0); /* and some finish after MPI_Finalize */
    if (rank == 0)
        printf("%d ranks\n", ranks);
    return 0;
}
