//! Calls on paths.

use std::ffi::CStr;
use std::sync::Arc;

use bb_client::blocking::Client;
use bb_proto::meta::{Attributes, Credentials};
use libc::{c_char, c_int, dev_t, mode_t};

use crate::guard::{Errno, Result, refuse};
use crate::library::{self, Connection};
use crate::open_file::OpenFile;
use crate::paths::Places;
use crate::{credentials, monitor, raw, table};

/// Flags that mean something to a file of ours. O_DIRECT does not: nothing of the kernel's lies
/// between the program and the servers.
const NOT_OURS: c_int = libc::O_DIRECT
    | libc::O_CLOEXEC
    | libc::O_NONBLOCK
    | libc::O_NOCTTY
    | libc::O_NOATIME
    | libc::O_ASYNC
    | 0o100_000; // O_LARGEFILE as the kernel knows it

/// What a path leads to.
enum Place<'a> {
    Ours(Vec<u8>),
    System(&'a CStr),
}

/// # Safety
/// Null, or a string.
unsafe fn place<'a>(path: *const c_char) -> Result<Place<'a>> {
    if path.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise, and not null.
    let path = unsafe { CStr::from_ptr(path) };
    let resolved = match library::known().settings {
        Ok(settings) => settings.places.resolve(path)?,
        // What is not ours works also with settings that are wrong.
        Err(error) => match Places::default().resolve(path) {
            Ok(None) => None,
            _ => return refuse(libc::EINVAL, &error),
        },
    };
    Ok(resolved.map_or(Place::System(path), Place::Ours))
}

fn acting_as(who: Credentials) -> Result<Client> {
    Ok(library::connection()?.client.acting_as(who))
}

/// # Safety
/// `path` is null or a string; so with all that follow.
pub unsafe fn open(path: *const c_char, flags: c_int, mode: mode_t) -> Result<c_int> {
    // SAFETY: the caller's promise.
    let path = match unsafe { place(path) }? {
        Place::System(path) => return raw::open(path, flags, mode),
        Place::Ours(path) => path,
    };
    // First: a file must not be made and then not be given.
    let descriptor = table::new_descriptor()?;
    let connection: Arc<Connection> = library::connection()?;
    let creates = flags & libc::O_CREAT != 0;
    let who = if creates { credentials::creating() } else { credentials::present() };
    let file = OpenFile::open(connection, path, flags & !NOT_OURS, mode & 0o7777, who)?;
    let size = file.file()?.size_hint()?;
    let fd = descriptor.give(file)?;
    monitor::OPENS.add(1);
    if size > 0
        && let Some(named) = table::find(fd)
    {
        table::resize(fd, &named.file, size, true);
    }
    Ok(fd)
}

/// # Safety
/// As [`open`].
pub unsafe fn access(path: *const c_char, mode: c_int) -> Result<c_int> {
    // SAFETY: the caller's promise.
    match unsafe { place(path) }? {
        Place::System(path) => raw::access(path, mode),
        Place::Ours(path) => {
            let mode = u32::try_from(mode).map_err(|_| Errno(libc::EINVAL))?;
            acting_as(credentials::present())?.access(&path, mode)?;
            Ok(0)
        }
    }
}

/// # Safety
/// As [`open`]; `out` is null or writable.
pub unsafe fn stat(path: *const c_char, out: *mut libc::stat) -> Result<c_int> {
    // SAFETY: the caller's promise.
    match unsafe { place(path) }? {
        Place::System(path) => raw::stat(path, out),
        Place::Ours(path) => {
            let attributes = acting_as(credentials::present())?.stat(&path)?;
            if out.is_null() {
                return Err(Errno(libc::EFAULT));
            }
            // SAFETY: the caller's promise, and not null.
            unsafe { out.write(as_stat(&attributes)) };
            Ok(0)
        }
    }
}

fn as_stat(attributes: &Attributes) -> libc::stat {
    // SAFETY: zeros are a valid `stat`.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    let time = |ns: i64| (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    stat.st_dev = 0xbb;
    stat.st_ino = attributes.inode;
    stat.st_mode = attributes.mode;
    stat.st_nlink = attributes.links.into();
    (stat.st_uid, stat.st_gid) = (attributes.uid, attributes.gid);
    stat.st_rdev = attributes.rdev;
    stat.st_size = i64::try_from(attributes.size).unwrap_or(i64::MAX);
    stat.st_blksize = 1 << 20;
    // Bytes that are only in the buffer count: by less than the size, tools see a file with holes.
    let blocks = attributes.blocks.max(attributes.size.div_ceil(512));
    stat.st_blocks = i64::try_from(blocks).unwrap_or(i64::MAX);
    (stat.st_atime, stat.st_atime_nsec) = time(attributes.atime_ns);
    (stat.st_mtime, stat.st_mtime_nsec) = time(attributes.mtime_ns);
    (stat.st_ctime, stat.st_ctime_nsec) = time(attributes.ctime_ns);
    stat
}

/// # Safety
/// As [`open`].
pub unsafe fn unlink(path: *const c_char) -> Result<c_int> {
    // SAFETY: the caller's promise.
    match unsafe { place(path) }? {
        Place::System(path) => raw::unlink(path),
        Place::Ours(path) => Ok(acting_as(credentials::present())?.unlink(&path).map(|()| 0)?),
    }
}

/// # Safety
/// As [`open`].
pub unsafe fn mkdir(path: *const c_char, mode: mode_t) -> Result<c_int> {
    // SAFETY: the caller's promise.
    match unsafe { place(path) }? {
        Place::System(path) => raw::mkdir(path, mode),
        Place::Ours(path) => {
            let client = acting_as(credentials::creating())?;
            Ok(client.mkdir(&path, mode & 0o7777).map(|()| 0)?)
        }
    }
}

/// # Safety
/// As [`open`].
pub unsafe fn rmdir(path: *const c_char) -> Result<c_int> {
    // SAFETY: the caller's promise.
    match unsafe { place(path) }? {
        Place::System(path) => raw::rmdir(path),
        Place::Ours(path) => Ok(acting_as(credentials::present())?.rmdir(&path).map(|()| 0)?),
    }
}

/// Regular files only: the buffer holds data, and nothing else has any.
///
/// # Safety
/// As [`open`].
pub unsafe fn mknod(path: *const c_char, mode: mode_t, device: dev_t) -> Result<c_int> {
    // SAFETY: the caller's promise.
    match unsafe { place(path) }? {
        Place::System(path) => raw::mknod(path, mode, device),
        Place::Ours(path) => {
            if ![0, libc::S_IFREG].contains(&(mode & libc::S_IFMT)) {
                return refuse(libc::EOPNOTSUPP, "only regular files can be made");
            }
            let client = acting_as(credentials::creating())?;
            // For reading: that is permitted whatever the mode is.
            let flags = libc::O_RDONLY | libc::O_CREAT | libc::O_EXCL;
            Ok(client.open(&path, flags, mode & 0o7777)?.close().map(|()| 0)?)
        }
    }
}

/// # Safety
/// As [`open`]; `out` is null or writable.
pub unsafe fn statvfs(path: *const c_char, out: *mut libc::statvfs) -> Result<c_int> {
    // SAFETY: zeros are a valid `statvfs`.
    let mut space: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the caller's promise.
    match unsafe { place(path) }? {
        Place::System(path) => {
            let fs = raw::statfs(path)?;
            let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
            space.f_bsize = unsigned(fs.f_bsize);
            space.f_frsize = unsigned(fs.f_frsize);
            (space.f_blocks, space.f_bfree, space.f_bavail) =
                (fs.f_blocks, fs.f_bfree, fs.f_bavail);
            (space.f_files, space.f_ffree, space.f_favail) = (fs.f_files, fs.f_ffree, fs.f_ffree);
            space.f_namemax = unsigned(fs.f_namelen);
        }
        Place::Ours(path) => {
            let here = acting_as(credentials::present())?.statvfs(&path)?;
            (space.f_bsize, space.f_frsize) = (here.block_bytes, here.block_bytes);
            (space.f_blocks, space.f_bfree, space.f_bavail) = (here.blocks, here.free, here.free);
            (space.f_files, space.f_ffree, space.f_favail) =
                (here.files, here.files_free, here.files_free);
            (space.f_fsid, space.f_namemax) = (0xbb, 255);
        }
    }
    if out.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise, and not null.
    unsafe { out.write(space) };
    Ok(0)
}

/// True for a path below the buffer's mount; then `out`, of PATH_MAX bytes, gets what follows the
/// mount point.
///
/// # Safety
/// As [`open`]; `out` is null or has PATH_MAX writable bytes.
pub unsafe fn below_mount(path: *const c_char, out: *mut c_char) -> Result<bool> {
    if path.is_null() || out.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise, and not null.
    let path = unsafe { CStr::from_ptr(path) };
    let settings = library::settings()?;
    let Some(mut rest) = settings.places.below_mount(path.to_bytes()) else { return Ok(false) };
    if rest.is_empty() {
        rest.push(b'/');
    }
    rest.push(0);
    if rest.len() > 4_096 {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    // SAFETY: the caller's promise; the length was checked.
    unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), out.cast(), rest.len()) };
    Ok(true)
}
