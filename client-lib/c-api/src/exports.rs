//! The functions of IME under both of their names.

use libc::{c_char, c_int, c_void, dev_t, iovec, mode_t, off_t, size_t, ssize_t, stat, statvfs};

use crate::aio::ControlBlock;
use crate::guard::guard;
use crate::{aio, calls, library, names, residency, transfer};

/// What `ime_native_version` says: programs print it, and some compare it.
const VERSION: &str = concat!("1.4.1 (Burstbay ", env!("CARGO_PKG_VERSION"), ")\0");

/// Defines each function twice. A body is a `Result`; the value before it is what a failure returns,
/// with `errno` set. A body that trusts its caller is marked `unsafe`.
macro_rules! exports {
    ($($native:ident $native2:ident ($($argument:ident: $type:ty),*) -> $result:ty = $failed:expr,
       $($body:ident)* ($call:expr);)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $native($($argument: $type),*) -> $result {
                guard($failed, || exports!(@body $($body)* $call))
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn $native2($($argument: $type),*) -> $result {
                guard($failed, || exports!(@body $($body)* $call))
            }
        )*
    };
    (@body trusting $call:expr) => {
        // SAFETY: the C caller keeps what the documentation of the function says.
        unsafe { $call }
    };
    (@body checked $call:expr) => { $call };
}

exports! {
    ime_native_init ime_client_native2_init() -> () = (), checked ({ library::init(); Ok(()) });
    ime_native_finalize ime_client_native2_finalize() -> c_int = -1,
        checked (library::finalize().map(|()| 0));
    ime_native_version ime_client_native2_version() -> *const c_char = VERSION.as_ptr().cast(),
        checked (Ok(VERSION.as_ptr().cast()));
    ime_native_open ime_client_native2_open(path: *const c_char, flags: c_int, mode: mode_t)
        -> c_int = -1, trusting (names::open(path, flags, mode));
    ime_native_close ime_client_native2_close(fd: c_int) -> c_int = -1, checked (calls::close(fd));
    ime_native_access ime_client_native2_access(path: *const c_char, mode: c_int) -> c_int = -1,
        trusting (names::access(path, mode));
    ime_native_stat ime_client_native2_stat(path: *const c_char, out: *mut stat) -> c_int = -1,
        trusting (names::stat(path, out));
    ime_native_unlink ime_client_native2_unlink(path: *const c_char) -> c_int = -1,
        trusting (names::unlink(path));
    ime_native_mkdir ime_client_native2_mkdir(path: *const c_char, mode: mode_t) -> c_int = -1,
        trusting (names::mkdir(path, mode));
    ime_native_rmdir ime_client_native2_rmdir(path: *const c_char) -> c_int = -1,
        trusting (names::rmdir(path));
    ime_native_mknod ime_client_native2_mknod(path: *const c_char, mode: mode_t, device: dev_t)
        -> c_int = -1, trusting (names::mknod(path, mode, device));
    ime_native_statvfs ime_client_native2_statvfs(path: *const c_char, out: *mut statvfs)
        -> c_int = -1, trusting (names::statvfs(path, out));
    ime_native_sync ime_client_native2_sync(_fd: c_int) -> c_int = -1, checked (calls::sync());
    ime_native_read ime_client_native2_read(fd: c_int, buffer: *mut c_char, len: size_t)
        -> ssize_t = -1, trusting (transfer::read(fd, buffer.cast::<c_void>(), len));
    ime_native_write ime_client_native2_write(fd: c_int, buffer: *const c_char, len: size_t)
        -> ssize_t = -1, trusting (transfer::write(fd, buffer.cast::<c_void>(), len));
    ime_native_pread ime_client_native2_pread(
        fd: c_int, buffer: *mut c_char, len: size_t, offset: off_t
    ) -> ssize_t = -1, trusting (transfer::pread(fd, buffer.cast::<c_void>(), len, offset));
    ime_native_pwrite ime_client_native2_pwrite(
        fd: c_int, buffer: *const c_char, len: size_t, offset: off_t
    ) -> ssize_t = -1, trusting (transfer::pwrite(fd, buffer.cast::<c_void>(), len, offset));
    ime_native_preadv ime_client_native2_preadv(
        fd: c_int, iov: *const iovec, count: c_int, offset: off_t
    ) -> ssize_t = -1, trusting (transfer::preadv(fd, iov, count, offset));
    ime_native_pwritev ime_client_native2_pwritev(
        fd: c_int, iov: *const iovec, count: c_int, offset: off_t
    ) -> ssize_t = -1, trusting (transfer::pwritev(fd, iov, count, offset));
    ime_native_fsync ime_client_native2_fsync(fd: c_int) -> c_int = -1, checked (calls::fsync(fd));
    ime_native_ftruncate ime_client_native2_ftruncate(fd: c_int, len: off_t) -> c_int = -1,
        checked (calls::ftruncate(fd, len));
    ime_native_lseek ime_client_native2_lseek(fd: c_int, offset: off_t, whence: c_int)
        -> off_t = -1, checked (calls::lseek(fd, offset, whence));
    ime_native_dup2 ime_client_native2_dup2(old: c_int, new: c_int) -> c_int = -1,
        checked (calls::dup2(old, new));
    ime_native_aio_read ime_client_native2_aio_read(block: *mut ControlBlock) -> c_int = -1,
        trusting (aio::submit(block, false));
    ime_native_aio_write ime_client_native2_aio_write(block: *mut ControlBlock) -> c_int = -1,
        trusting (aio::submit(block, true));
    ime_native_bfs_sync ime_client_native2_bfs_sync(fd: c_int, blocking: bool) -> c_int = -1,
        checked (residency::bfs_sync(fd, blocking));
    ime_native_async_fd ime_client_native2_async_fd(fd: c_int, on: c_int) -> c_int = -1,
        checked (residency::async_fd(fd, on != 0));
    ime_native_config_ctl ime_client_native2_config_ctl(ratio: c_int, kind: u32) -> c_int = -1,
        checked (residency::config_ctl(ratio, kind));
    ime_native_data_release ime_client_native2_data_release(fd: c_int, clean_only: c_int)
        -> c_int = -1, checked (residency::data_release(fd, clean_only != 0));
    ime_native_frag_fstat ime_client_native2_frag_fstat(
        fd: c_int, dirty: *mut size_t, syncing: *mut size_t, clean: *mut size_t,
        deletable: *mut size_t
    ) -> c_int = -1, trusting (residency::frag_fstat(fd, dirty, syncing, clean, deletable));
    ime_native_get_ime_fsize ime_client_native2_get_ime_fsize(fd: c_int) -> ssize_t = -1,
        checked (residency::ime_fsize(fd));
    ime_native_prestage ime_client_native2_prestage(fd: c_int, keep_clean: bool) -> c_int = -1,
        checked (residency::prestage(fd, keep_clean, false));
    ime_native_prestage_blocking ime_client_native2_prestage_blocking(fd: c_int, keep_clean: bool)
        -> c_int = -1, checked (residency::prestage(fd, keep_clean, true));
    ime_native_sync_ctl ime_client_native2_sync_ctl(fd: c_int, disable: c_int) -> c_int = -1,
        checked (residency::sync_ctl(fd, disable != 0));
    ime_native_is_fuse_path_and_convert ime_client_native2_is_fuse_path_and_convert(
        path: *const c_char, out: *mut c_char
    ) -> bool = false, trusting (names::below_mount(path, out));
}
