//! System calls without the C library's functions: under a preloaded shim those would come back to
//! us.

use std::ffi::CStr;
use std::mem::MaybeUninit;

use libc::{c_int, c_long, c_void, iovec, mode_t, off_t, size_t};

use crate::guard::{Errno, Result};

/// This thread's error number.
pub fn errno() -> i32 {
    // SAFETY: always a valid address of this thread's.
    unsafe { *libc::__errno_location() }
}

/// Sets it.
pub fn set_errno(errno: i32) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

fn check(result: c_long) -> Result<c_long> {
    if result == -1 { Err(Errno(errno())) } else { Ok(result) }
}

fn int(result: c_long) -> Result<c_int> {
    check(result).map(|value| c_int::try_from(value).unwrap_or(c_int::MAX))
}

fn size(result: c_long) -> Result<isize> {
    check(result).map(|value| isize::try_from(value).unwrap_or(isize::MAX))
}

/// One system call. Its arguments go to the kernel as they are: the kernel checks addresses.
macro_rules! call {
    ($name:ident $(, $argument:expr)*) => {{
        // SAFETY: the kernel checks addresses and descriptors; memory that the call writes to was
        // named by the caller of the API for that purpose, or lies in this module.
        unsafe { libc::syscall(libc::$name $(, $argument)*) }
    }};
}

const HERE: c_int = libc::AT_FDCWD;

pub fn open(path: &CStr, flags: c_int, mode: mode_t) -> Result<c_int> {
    int(call!(SYS_openat, HERE, path.as_ptr(), flags, mode))
}

pub fn close(fd: c_int) -> Result<c_int> {
    int(call!(SYS_close, fd))
}

pub fn read(fd: c_int, buffer: *mut c_void, len: size_t) -> Result<isize> {
    size(call!(SYS_read, fd, buffer, len))
}

pub fn write(fd: c_int, buffer: *const c_void, len: size_t) -> Result<isize> {
    size(call!(SYS_write, fd, buffer, len))
}

pub fn pread(fd: c_int, buffer: *mut c_void, len: size_t, offset: off_t) -> Result<isize> {
    size(call!(SYS_pread64, fd, buffer, len, offset))
}

pub fn pwrite(fd: c_int, buffer: *const c_void, len: size_t, offset: off_t) -> Result<isize> {
    size(call!(SYS_pwrite64, fd, buffer, len, offset))
}

// The offset comes in two halves; with 64 bits the lower one holds it all.
pub fn preadv(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> Result<isize> {
    size(call!(SYS_preadv, fd, iov, count, offset, 0))
}

pub fn pwritev(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> Result<isize> {
    size(call!(SYS_pwritev, fd, iov, count, offset, 0))
}

pub fn fsync(fd: c_int) -> Result<c_int> {
    int(call!(SYS_fsync, fd))
}

pub fn ftruncate(fd: c_int, len: off_t) -> Result<c_int> {
    int(call!(SYS_ftruncate, fd, len))
}

pub fn lseek(fd: c_int, offset: off_t, whence: c_int) -> Result<off_t> {
    check(call!(SYS_lseek, fd, offset, whence))
}

pub fn fcntl(fd: c_int, command: c_int, argument: c_int) -> Result<c_int> {
    int(call!(SYS_fcntl, fd, command, argument))
}

/// Newer machines have no dup2, and dup3 refuses equal numbers.
pub fn dup2(old: c_int, new: c_int) -> Result<c_int> {
    if old == new {
        return fcntl(old, libc::F_GETFD, 0).map(|_| new);
    }
    int(call!(SYS_dup3, old, new, 0))
}

pub fn access(path: &CStr, mode: c_int) -> Result<c_int> {
    int(call!(SYS_faccessat, HERE, path.as_ptr(), mode))
}

pub fn unlink(path: &CStr) -> Result<c_int> {
    int(call!(SYS_unlinkat, HERE, path.as_ptr(), 0))
}

pub fn rmdir(path: &CStr) -> Result<c_int> {
    int(call!(SYS_unlinkat, HERE, path.as_ptr(), libc::AT_REMOVEDIR))
}

pub fn mkdir(path: &CStr, mode: mode_t) -> Result<c_int> {
    int(call!(SYS_mkdirat, HERE, path.as_ptr(), mode))
}

pub fn mknod(path: &CStr, mode: mode_t, device: libc::dev_t) -> Result<c_int> {
    int(call!(SYS_mknodat, HERE, path.as_ptr(), mode, device))
}

pub fn rename(from: &CStr, to: &CStr) -> Result<c_int> {
    int(call!(SYS_renameat2, HERE, from.as_ptr(), HERE, to.as_ptr(), 0))
}

/// The kernel's `struct stat` is the C library's on 64-bit machines.
pub fn stat(path: &CStr, out: *mut libc::stat) -> Result<c_int> {
    int(call!(SYS_newfstatat, HERE, path.as_ptr(), out, 0))
}

pub fn fstat(fd: c_int) -> Result<libc::stat> {
    let mut out = MaybeUninit::<libc::stat>::zeroed();
    int(call!(SYS_fstat, fd, out.as_mut_ptr()))?;
    // SAFETY: zeros are a valid `stat`, and the kernel has filled it.
    Ok(unsafe { out.assume_init() })
}

pub fn statfs(path: &CStr) -> Result<libc::statfs> {
    let mut out = MaybeUninit::<libc::statfs>::zeroed();
    int(call!(SYS_statfs, path.as_ptr(), out.as_mut_ptr()))?;
    // SAFETY: as above.
    Ok(unsafe { out.assume_init() })
}

pub fn memfd(name: &CStr) -> Result<c_int> {
    int(call!(SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING))
}

/// Where the link leads.
pub fn readlink(path: &CStr) -> Result<Vec<u8>> {
    let mut out = vec![0_u8; 4_096];
    let len = size(call!(SYS_readlinkat, HERE, path.as_ptr(), out.as_mut_ptr(), out.len()))?;
    out.truncate(usize::try_from(len).unwrap_or(0));
    Ok(out)
}

/// As whom the kernel checks this thread's access to files. A change to an impossible id is none,
/// and tells the present one.
pub fn file_ids() -> (u32, u32) {
    let id = |value: c_long| u32::try_from(value & 0xffff_ffff).unwrap_or(0);
    let nobody = u32::MAX;
    (id(call!(SYS_setfsuid, nobody)), id(call!(SYS_setfsgid, nobody)))
}

/// This thread's supplementary groups: the C library's function knows nothing else either, but
/// shims replace it.
pub fn groups() -> Vec<u32> {
    let mut few = [0_u32; 64];
    let none: *mut u32 = std::ptr::null_mut();
    if let Ok(count) = check(call!(SYS_getgroups, few.len(), few.as_mut_ptr())) {
        return few[..usize::try_from(count).unwrap_or(0)].to_vec();
    }
    let count = usize::try_from(call!(SYS_getgroups, 0, none)).unwrap_or(0);
    let mut many = vec![0_u32; count];
    let got = check(call!(SYS_getgroups, many.len(), many.as_mut_ptr())).unwrap_or(0);
    many.truncate(usize::try_from(got).unwrap_or(0));
    many
}

/// A whole small file.
pub fn read_file(path: &CStr) -> Result<Vec<u8>> {
    let fd = open(path, libc::O_RDONLY | libc::O_CLOEXEC, 0)?;
    let mut out = Vec::new();
    let mut piece = [0_u8; 4_096];
    let result = loop {
        match read(fd, piece.as_mut_ptr().cast(), piece.len()) {
            Ok(0) => break Ok(()),
            Ok(len) => out.extend_from_slice(&piece[..usize::try_from(len).unwrap_or(0)]),
            Err(Errno(libc::EINTR)) => {}
            Err(error) => break Err(error),
        }
        if out.len() > 16 << 20 {
            break Err(Errno(libc::EFBIG));
        }
    };
    let _ = close(fd);
    result.map(|()| out)
}

/// Writes all of it, or gives up: for messages.
pub fn write_all(fd: c_int, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match write(fd, bytes.as_ptr().cast(), bytes.len()) {
            Ok(done) if done > 0 => bytes = &bytes[usize::try_from(done).unwrap_or(0)..],
            Err(Errno(libc::EINTR)) => {}
            _ => return,
        }
    }
}
