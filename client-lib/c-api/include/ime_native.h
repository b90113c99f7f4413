/*
 * The native API under its newer names: ime_native_*.
 * See ime-native-api(3) and docs/c-api.md.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#ifndef IME_NATIVE_H
#define IME_NATIVE_H

#include "bb_ime_types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads the settings. Connecting waits for the first path that needs it. May be called again, from any
 * thread, in a child, and after finalize. */
void ime_native_init(void);
/* Writes back everything; ends the session where no file is open. Returns the error of descriptors
 * that were closed without waiting (async_fd), and of what else could not be written. */
int ime_native_finalize(void);
/* A static string. */
const char *ime_native_version(void);

/* As their counterparts of POSIX, on paths and descriptors of the buffer; anything else goes to the
 * kernel as it is. Transfers are never short, except at the end of the file. */
int ime_native_open(const char *path, int flags, mode_t mode);
int ime_native_close(int fd);
int ime_native_access(const char *path, int mode);
int ime_native_stat(const char *path, struct stat *out);
int ime_native_unlink(const char *path);
int ime_native_mkdir(const char *path, mode_t mode);
int ime_native_rmdir(const char *path);
int ime_native_mknod(const char *path, mode_t mode, dev_t dev);
int ime_native_statvfs(const char *path, struct statvfs *out);
ssize_t ime_native_read(int fd, char *buf, size_t len);
ssize_t ime_native_write(int fd, const char *buf, size_t len);
ssize_t ime_native_pread(int fd, char *buf, size_t len, off_t offset);
ssize_t ime_native_pwrite(int fd, const char *buf, size_t len, off_t offset);
ssize_t ime_native_preadv(int fd, const struct iovec *iov, int iovcnt, off_t offset);
ssize_t ime_native_pwritev(int fd, const struct iovec *iov, int iovcnt, off_t offset);
int ime_native_ftruncate(int fd, off_t len);
off_t ime_native_lseek(int fd, off_t offset, int whence);
int ime_native_dup2(int oldfd, int newfd);
/* Brings what was written to the servers, not to the backing file system. */
int ime_native_fsync(int fd);
/* The same for all open files; the argument is ignored. */
int ime_native_sync(int fd);

/* Starts a request. 0: its callback comes, once. -1 with errno: it does not. */
int ime_native_aio_read(struct ime_aiocb *aiocb);
int ime_native_aio_write(struct ime_aiocb *aiocb);

/* Data to the backing file system, kept in the buffer. Also with one argument: does not block. */
int ime_native_bfs_sync(int fd, bool blocking);
#ifndef BB_IME_NO_MACROS
#define ime_native_bfs_sync(...) (ime_native_bfs_sync)(BB_IME_FIRST_TWO(__VA_ARGS__, 0, 0))
#endif
/* Data from the backing file system; clean data that is here already goes first, unless it is kept. */
int ime_native_prestage(int fd, bool keep_clean);
int ime_native_prestage_blocking(int fd, bool keep_clean);
/* Drops data from the buffer: what was never synchronized is lost, unless clean_data_only is set. */
int ime_native_data_release(int fd, int clean_data_only);
/* Bytes by state; null pointers are left out. */
int ime_native_frag_fstat(int fd, size_t *dirty, size_t *syncing, size_t *clean, size_t *deletable);
ssize_t ime_native_get_ime_fsize(int fd);
/* Exempts the file from automatic synchronization and purging, or ends that. */
int ime_native_sync_ctl(int fd, int disable_auto_sync);
/* close does not wait any more, or waits again. */
int ime_native_async_fd(int fd, int on);
/* Sets the ratio of BB_RATIO_SYNC or BB_RATIO_PURGE, in percent. */
int ime_native_config_ctl(int ratio, uint32_t type);

/* True for a path below the mount of the buffer; out, of PATH_MAX bytes, gets the path below it. */
bool ime_native_is_fuse_path_and_convert(const char *path, char *out);

#ifdef __cplusplus
}
#endif

#endif
