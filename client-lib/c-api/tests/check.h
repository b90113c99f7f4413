/* What the programs have in common. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>

#include <bb_client.h>
#include <ime_native.h>
#include <im_client_native2.h>

/* Ends the program, with the place and the error, where a condition does not hold. */
#define CHECK(condition)                                                                      \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            int saved_ = errno;                                                               \
            fprintf(stderr, "%s:%d: %s does not hold (errno %d %s; %s)\n", __FILE__, __LINE__, \
                    #condition, saved_, strerror(saved_), bb_error_text());                   \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

/* A call that must fail in one way. */
#define FAILS(call, number)                     \
    do {                                        \
        errno = 0;                              \
        CHECK((call) == -1 && errno == (number)); \
    } while (0)

static inline unsigned char pattern_byte(unsigned seed, size_t i)
{
    return (unsigned char)(i * 31 + i / 251 + seed * 97);
}

static inline void fill(void *data, size_t len, unsigned seed)
{
    unsigned char *bytes = data;
    for (size_t i = 0; i < len; i++)
        bytes[i] = pattern_byte(seed, i);
}

/* First byte that differs, or len. */
static inline size_t differs(const void *data, size_t len, unsigned seed)
{
    const unsigned char *bytes = data;
    for (size_t i = 0; i < len; i++)
        if (bytes[i] != pattern_byte(seed, i))
            return i;
    return len;
}

/* A name in the directory that the test has given to the program (its first argument). */
static inline const char *name_in(const char *directory, const char *name)
{
    static _Thread_local char whole[4][PATH_MAX];
    static _Thread_local int next;
    char *out = whole[next++ & 3];
    snprintf(out, PATH_MAX, "%s/%s", directory, name);
    return out;
}

#endif
