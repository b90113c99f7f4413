/*
 * The load of `./x bench`: what one client process (a rank) does in one row.
 *
 * The same loops run on Burstbay, by the C library as a user's program would use it, and on any
 * mounted file system, by the system's calls: `struct calls` is the one switch.
 */
#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/* Smallest unit of random access, and distance of the words that are checked. */
#define PAGE 4096

/* Where the file is: a table of functions for each kind of system. */
struct calls {
    int (*open)(const char *path, int flags, mode_t mode);
    int (*close)(int fd);
    ssize_t (*pread)(int fd, char *buf, size_t len, off_t offset);
    ssize_t (*pwrite)(int fd, const char *buf, size_t len, off_t offset);
    int (*sync)(int fd);
    int (*stat)(const char *path, struct stat *out);
    int (*unlink)(const char *path);
    bool ring; /* the library's ring carries many requests of one thread; else threads do */
};

/* What the command line said. */
struct task {
    const char *phase;
    const char *path; /* prefix of all files */
    unsigned rank, ranks;
    uint64_t bytes;   /* size of a rank's file, or of the shared file per writer */
    uint64_t len;     /* bytes of a record */
    uint64_t ops;     /* at most so many */
    double seconds;   /* at most so long (for what is counted in operations) */
    unsigned depth;   /* requests, or threads, of this rank */
    unsigned shift;   /* read what the rank so many further has written */
    unsigned writers; /* ranks that wrote the shared file */
    uint64_t seed;    /* of the content: another one for each round */
    bool direct;      /* O_DIRECT, and fdatasync: the machine's limits */
    bool durable;     /* small files: fsync before close */
};

extern struct task task;
extern struct calls io;

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            die(__FILE__, __LINE__, #condition);                                                   \
    } while (0)
void die(const char *file, int line, const char *what) __attribute__((noreturn));

/* main.c */
double wall(void);
bool out_of_time(void);
int open_file(const char *path, int flags);
void *memory(size_t len);
const char *name_of(char *out, const char *kind, unsigned rank, uint64_t number);
uint64_t done(uint64_t operations, uint64_t bytes); /* counts; safe in threads */
void in_threads(void (*body)(unsigned thread));     /* task.depth of them */

/* content.c: random bytes, and a word each PAGE that depends on file, offset and round. */
void fill(char *data, size_t len, uint64_t salt);
void stamp(char *data, size_t len, uint64_t file, uint64_t offset);
void check(const char *data, size_t len, uint64_t file, uint64_t offset);

/* histogram.c: latencies, in buckets of a 32nd of an octave. */
void latency(double seconds); /* safe in threads */
void print_histogram(void);

/* The phases. */
void stream_write(void);
void stream_read(void);
void shared_write(void);
void shared_read(void);
void random_read(void);
void random_write(void);
void small_create(void);
void small_stat(void);
void small_read(void);
void small_unlink(void);
void write_and_sync(void);
void bfs_sync(void);
void bfs_prestage(void);
void remove_files(void);

#endif
