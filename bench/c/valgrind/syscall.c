/*
 * For `./x bench --instructions`, preloaded into programs that are only counted: what valgrind, as Debian
 * has it, does not know of two system calls.
 *
 * - openat2, with which bbd keeps paths below the root of the backing file system, becomes openat. Nobody
 *   but the bench works in that directory.
 * - io_uring_enter may block; valgrind thinks not, and lets no other thread run meanwhile. So the waiting
 *   becomes a poll, of which it knows. What this costs is counted to nobody (`waits` in
 *   callgrind.rs).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <linux/openat2.h>
#include <linux/time_types.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/syscall.h>

static long direct(long number, const long *a)
{
    register long a3 __asm__("r10") = a[3], a4 __asm__("r8") = a[4], a5 __asm__("r9") = a[5];
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(a3), "r"(a4), "r"(a5)
                     : "rcx", "r11", "memory");
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

/* Milliseconds that may be waited; -1: without end. */
static long patience(const long *a)
{
    const struct io_uring_getevents_arg *extra = (const void *)a[4];
    if (!(a[3] & IORING_ENTER_EXT_ARG) || !extra || !extra->ts)
        return -1;
    const struct __kernel_timespec *time = (const void *)(long)extra->ts;
    return (long)(time->tv_sec * 1000 + (time->tv_nsec + 999999) / 1000000);
}

static long wait_for_ring(const long *a)
{
    /* What has ended shows in the ring only after another call: a look each millisecond. */
    long look[6] = {a[0], a[1], 0, IORING_ENTER_GETEVENTS, 0, 0};
    long submitted = direct(SYS_io_uring_enter, look);
    look[1] = 0;
    struct pollfd ring = {.fd = (int)a[0], .events = POLLIN};
    for (long left = patience(a); submitted >= 0 && left != 0; left -= left > 0) {
        int news = poll(&ring, 1, 1);
        if (news != 0)
            return news < 0 ? -1 : submitted;
        if (direct(SYS_io_uring_enter, look) < 0)
            return -1;
    }
    if (submitted == 0)
        errno = ETIME;
    return submitted > 0 ? submitted : -1;
}

long syscall(long number, ...)
{
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_openat2) {
        const struct open_how *how = (const struct open_how *)a[2];
        a[2] = (long)how->flags;
        a[3] = (long)how->mode;
        number = SYS_openat;
    }
    if (number == SYS_io_uring_enter && a[2] > 0 && (a[3] & IORING_ENTER_GETEVENTS))
        return wait_for_ring(a);
    return direct(number, a);
}
