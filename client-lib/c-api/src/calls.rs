//! Calls on descriptors that move no data.

use libc::{c_int, off_t};

use crate::guard::{Errno, Result};
use crate::table::{self, find};
use crate::{library, raw};

pub fn close(fd: c_int) -> Result<c_int> {
    match find(fd) {
        Some(named) => table::close(&named).map(|()| 0),
        None => raw::close(fd),
    }
}

pub fn fsync(fd: c_int) -> Result<c_int> {
    match find(fd) {
        Some(named) => named.file.fsync().map(|()| 0),
        None => raw::fsync(fd),
    }
}

pub fn ftruncate(fd: c_int, len: off_t) -> Result<c_int> {
    let Some(named) = find(fd) else { return raw::ftruncate(fd, len) };
    let len = u64::try_from(len).map_err(|_| Errno(libc::EINVAL))?;
    // As ftruncate(2), which has this number for it.
    named.file.may(true).map_err(|_| Errno(libc::EINVAL))?;
    named.file.file()?.truncate(len)?;
    table::resize(fd, &named.file, len, false);
    Ok(0)
}

/// The position is the memfd's; what depends on the file's size asks for it first.
pub fn lseek(fd: c_int, offset: off_t, whence: c_int) -> Result<off_t> {
    let by_size = [libc::SEEK_END, libc::SEEK_DATA, libc::SEEK_HOLE].contains(&whence);
    let Some(named) = find(fd).filter(|_| by_size) else { return raw::lseek(fd, offset, whence) };
    let size = named.file.size()?;
    table::resize(fd, &named.file, size, false);
    if whence == libc::SEEK_END {
        return raw::lseek(fd, offset, whence);
    }
    // The memfd is one hole; the file counts as one extent, which the call allows.
    match u64::try_from(offset) {
        Ok(at) if at < size && whence == libc::SEEK_DATA => raw::lseek(fd, offset, libc::SEEK_SET),
        Ok(at) if at < size => {
            let end = off_t::try_from(size).map_err(|_| Errno(libc::EOVERFLOW))?;
            raw::lseek(fd, end, libc::SEEK_SET)
        }
        _ => Err(Errno(libc::ENXIO)),
    }
}

pub fn dup2(old: c_int, new: c_int) -> Result<c_int> {
    table::dup2(old, new)
}

/// Writes back what all open files hold.
pub fn sync() -> Result<c_int> {
    let flushed = match library::connected() {
        Some(connection) => connection.client.flush().map_err(Errno::from),
        None => Ok(()),
    };
    flushed.map(|()| 0)
}
