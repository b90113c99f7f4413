//! The system calls that the standard library has no safe form of.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use bb_proto::meta::Attributes;
use bb_runtime::Buf;

use crate::bfs::{BfsError, Times};

/// Longest file handle that the kernel gives: MAX_HANDLE_SZ.
pub(super) const HANDLE_BYTES_MAX: usize = 128;

/// How often a lookup is repeated that lost against a concurrent rename: openat2 answers EAGAIN
/// then. Rare; the bound only keeps a hostile renamer from holding a thread for ever.
const RACES_MAX: u32 = 64;

/// Most pieces of one pwritev: the kernel's UIO_MAXIOV.
const PIECES_MAX: usize = 1024;

/// The error of the call that has just failed.
pub(super) fn last_error() -> BfsError {
    BfsError::Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Whether a call succeeded.
pub(super) fn check(result: libc::c_int) -> Result<libc::c_int, BfsError> {
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

fn check_long(result: libc::c_long) -> Result<libc::c_long, BfsError> {
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

/// Resolves `path` beneath `root`: symbolic links, absolute ones too, end within it, no other
/// file system is entered, and /proc's magic links are not followed.
pub(super) fn open_beneath(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: i32,
    mode: u32,
) -> Result<OwnedFd, BfsError> {
    // SAFETY: all zeros is a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    how.mode = if flags & libc::O_CREAT != 0 { u64::from(mode & 0o7777) } else { 0 };
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_XDEV;
    for _ in 0..RACES_MAX {
        // SAFETY: path is a C string, `how` has the length given.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                root.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        match check_long(fd) {
            Ok(fd) => return Ok(owned(fd)),
            Err(BfsError::Errno(libc::EAGAIN | libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(BfsError::Errno(libc::EAGAIN))
}

fn owned(fd: libc::c_long) -> OwnedFd {
    let fd = libc::c_int::try_from(fd).expect("file descriptors are ints");
    // SAFETY: the kernel has just given us this descriptor, nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A file handle as the kernel lays it out.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    data: [u8; HANDLE_BYTES_MAX],
}

/// Handle type and handle of an open file.
pub(super) fn handle_of(fd: BorrowedFd<'_>) -> Result<(i32, Vec<u8>), BfsError> {
    let mut raw = RawHandle {
        bytes: u32::try_from(HANDLE_BYTES_MAX).expect("small"),
        kind: 0,
        data: [0; HANDLE_BYTES_MAX],
    };
    let mut mount = 0;
    // SAFETY: the handle has room for `bytes` bytes, as it says.
    check(unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut raw).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    })?;
    let len = usize::try_from(raw.bytes).unwrap_or(usize::MAX).min(HANDLE_BYTES_MAX);
    Ok((raw.kind, raw.data[..len].to_vec()))
}

/// Opens a file by its handle, on the file system of `mount`.
pub(super) fn open_handle(
    mount: BorrowedFd<'_>,
    kind: i32,
    handle: &[u8],
    flags: i32,
) -> Result<OwnedFd, BfsError> {
    if handle.is_empty() || handle.len() > HANDLE_BYTES_MAX {
        return Err(BfsError::Errno(libc::ESTALE));
    }
    let mut raw = RawHandle {
        bytes: u32::try_from(handle.len()).expect("small"),
        kind,
        data: [0; HANDLE_BYTES_MAX],
    };
    raw.data[..handle.len()].copy_from_slice(handle);
    // SAFETY: the handle holds as many bytes as it says.
    let fd = check(unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut raw).cast(),
            flags | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY,
        )
    })?;
    Ok(owned(fd.into()))
}

/// What statx says, as far as it is wanted here.
pub(super) struct Status {
    pub attributes: Attributes,
    /// Birth in ns since 1970, where the file system keeps one.
    pub birth_ns: Option<i64>,
    pub dev: (u32, u32),
    pub mount: u64,
}

impl Status {
    pub(super) fn is(&self, kind: libc::mode_t) -> bool {
        self.attributes.mode & libc::S_IFMT == kind
    }
}

/// State of an open file, or of `name` in an open directory (never following a link).
pub(super) fn status(fd: BorrowedFd<'_>, name: &CStr) -> Result<Status, BfsError> {
    // SAFETY: all zeros is a valid statx buffer.
    let mut raw: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME | libc::STATX_MNT_ID;
    // SAFETY: name is a C string and `raw` a statx buffer.
    check(unsafe { libc::statx(fd.as_raw_fd(), name.as_ptr(), flags, mask, &raw mut raw) })?;
    let ns = |time: libc::statx_timestamp| {
        time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec))
    };
    Ok(Status {
        attributes: Attributes {
            inode: raw.stx_ino,
            mode: u32::from(raw.stx_mode),
            links: raw.stx_nlink,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            size: raw.stx_size,
            atime_ns: ns(raw.stx_atime),
            mtime_ns: ns(raw.stx_mtime),
            ctime_ns: ns(raw.stx_ctime),
            blocks: raw.stx_blocks,
            rdev: libc::makedev(raw.stx_rdev_major, raw.stx_rdev_minor),
        },
        birth_ns: (raw.stx_mask & libc::STATX_BTIME != 0).then(|| ns(raw.stx_btime)),
        dev: (raw.stx_dev_major, raw.stx_dev_minor),
        mount: raw.stx_mnt_id,
    })
}

/// The path by which the kernel knows an open file now.
pub(super) fn path_of(fd: BorrowedFd<'_>) -> Result<Vec<u8>, BfsError> {
    use std::os::unix::ffi::OsStringExt;
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map(|path| path.into_os_string().into_vec())
        .map_err(|error| BfsError::Errno(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// A name under /proc that stands for an open file, for calls that take no O_PATH descriptor.
pub(super) fn proc_name(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("no zero byte in it")
}

/// Sets times of an open file (an O_PATH descriptor will do).
pub(super) fn set_times(fd: BorrowedFd<'_>, times: Times) -> Result<(), BfsError> {
    let spec = |ns: Option<i64>| match ns {
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(ns) => libc::timespec {
            tv_sec: ns.div_euclid(1_000_000_000),
            tv_nsec: ns.rem_euclid(1_000_000_000),
        },
    };
    let specs = [spec(times.atime_ns), spec(times.mtime_ns)];
    // SAFETY: an empty C string and two timespecs.
    check(unsafe {
        libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), specs.as_ptr(), libc::AT_EMPTY_PATH)
    })
    .map(drop)
}

/// Reads from `offset` on until the buffer is full or the file ends; gives the number of bytes.
pub(super) fn read_all(fd: BorrowedFd<'_>, offset: u64, buf: &mut [u8]) -> Result<usize, BfsError> {
    let offset = i64::try_from(offset).map_err(|_| BfsError::Errno(libc::EINVAL))?;
    let mut len = 0;
    while len < buf.len() {
        let rest = &mut buf[len..];
        let at = offset.saturating_add(i64::try_from(len).expect("a slice fits in i64"));
        // SAFETY: the kernel writes at most the rest of the buffer.
        let more = unsafe { libc::pread(fd.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), at) };
        match usize::try_from(more) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(_) => match last_error() {
                BfsError::Errno(libc::EINTR) => {}
                error => return Err(error),
            },
        }
    }
    Ok(len)
}

/// Writes all of `bufs` from `offset` on.
pub(super) fn write_all(fd: BorrowedFd<'_>, offset: u64, bufs: &[Buf]) -> Result<(), BfsError> {
    let mut offset = i64::try_from(offset).map_err(|_| BfsError::Errno(libc::EFBIG))?;
    let mut pieces: Vec<libc::iovec> = bufs
        .iter()
        .filter(|buf| !buf.is_empty())
        .map(|buf| libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() })
        .collect();
    let mut rest = pieces.as_mut_slice();
    while !rest.is_empty() {
        let count = libc::c_int::try_from(rest.len().min(PIECES_MAX)).expect("small");
        // SAFETY: each piece points into a Buf that outlives this call; the kernel only reads.
        let written = unsafe { libc::pwritev(fd.as_raw_fd(), rest.as_ptr(), count, offset) };
        if written < 0 {
            match last_error() {
                BfsError::Errno(libc::EINTR) => continue,
                error => return Err(error),
            }
        }
        if written == 0 {
            return Err(BfsError::Errno(libc::EIO));
        }
        offset = offset
            .checked_add(i64::try_from(written).expect("isize is i64"))
            .ok_or(BfsError::Errno(libc::EFBIG))?;
        let mut left = written.cast_unsigned();
        while left > 0 {
            let first = &mut rest[0];
            if left < first.iov_len {
                // SAFETY: stays within the piece.
                first.iov_base = unsafe { first.iov_base.byte_add(left) };
                first.iov_len -= left;
                break;
            }
            left -= first.iov_len;
            rest = &mut rest[1..];
        }
    }
    Ok(())
}

/// Tries to take an exclusive lock that belongs to the open file description: it ends when the
/// process does, and never because another part of the process closes the same file. False if
/// another process has it.
pub(super) fn try_lock(fd: BorrowedFd<'_>) -> Result<bool, BfsError> {
    // SAFETY: all zeros is a valid flock; start 0 and length 0 mean the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(libc::F_WRLCK).expect("small");
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).expect("small");
    // SAFETY: fcntl reads the flock.
    match check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }) {
        Ok(_) => Ok(true),
        Err(BfsError::Errno(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}
