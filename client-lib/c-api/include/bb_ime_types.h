/*
 * What ime_native.h and im_client_native2.h have in common.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#ifndef BB_IME_TYPES_H
#define BB_IME_TYPES_H

/* Programs rely on these coming with the header. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Functions that are here: 120 version; 130 statvfs, mkdir, rmdir; 132 mknod, sync. */
#define IME_NATIVE_API_VERSION 132

/* A path of the backing file system: the prefix, then an absolute path or one below its mount point. */
#define DEFAULT_IME_FILE_PREFIX "ime://"
#define DEFAULT_IME_FILE_PREFIX_LEN (sizeof(DEFAULT_IME_FILE_PREFIX) - 1)
#define DEFAULT_IME_PREFIX_NO_FWD_SLASH "ime:"
#define IME_FILE_PREFIX_LEN_NO_FWD_SLASH (sizeof(DEFAULT_IME_PREFIX_NO_FWD_SLASH) - 1)

/* Elements of a vector. */
#define IME_IOV_MAX 1024

/* Numbers for config_ctl. */
#define BB_RATIO_SYNC 0
#define BB_RATIO_PURGE 1

/* The one or two arguments of bfs_sync; without the second it does not block. */
#define BB_IME_FIRST_TWO(fd, blocking, ...) (fd), (blocking)

/* A request with a callback. */
struct ime_aiocb {
    int fd;
    int iovcnt;
    uint32_t flags; /* ignored */
    const struct iovec *iov;
    off_t file_offset;
    /* err is 0 or an error number; bytes is valid with an err of 0. Called once, from any thread,
     * possibly before the submission has returned. The control block is the caller's again. */
    void (*complete_cb)(struct ime_aiocb *aiocb, int err, ssize_t bytes);
    intptr_t user_context; /* the caller's; never looked at */
};

#endif
