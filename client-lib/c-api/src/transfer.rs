//! Reading and writing: at the position of the descriptor, at an offset, with vectors.

use libc::{c_int, c_void, iovec, off_t, size_t};

use crate::guard::{Errno, Result};
use crate::raw;
use crate::table::{self, Named, find};

/// What the kernel's own calls take at most.
pub const VECTORS_MAX: usize = 1_024;

fn offset_of(offset: off_t) -> Result<u64> {
    u64::try_from(offset).map_err(|_| Errno(libc::EINVAL))
}

fn length(len: usize) -> Result<isize> {
    isize::try_from(len).map_err(|_| Errno(libc::EINVAL))
}

/// # Safety
/// As read(2): `buffer` has room for `len` bytes.
unsafe fn room<'a>(buffer: *mut c_void, len: size_t) -> Result<&'a mut [u8]> {
    length(len)?;
    if len == 0 {
        return Ok(&mut []);
    }
    if buffer.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise; not null, and not longer than an object can be.
    Ok(unsafe { std::slice::from_raw_parts_mut(buffer.cast(), len) })
}

/// # Safety
/// As write(2): `buffer` holds `len` bytes.
unsafe fn bytes<'a>(buffer: *const c_void, len: size_t) -> Result<&'a [u8]> {
    length(len)?;
    if len == 0 {
        return Ok(&[]);
    }
    if buffer.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: as above.
    Ok(unsafe { std::slice::from_raw_parts(buffer.cast(), len) })
}

/// Checks a vector and copies it.
///
/// # Safety
/// `iov` holds `count` elements.
pub unsafe fn vectors(iov: *const iovec, count: c_int) -> Result<Vec<iovec>> {
    let count = usize::try_from(count).map_err(|_| Errno(libc::EINVAL))?;
    if count > VECTORS_MAX {
        return Err(Errno(libc::EINVAL));
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    if iov.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise, and not null.
    let all = unsafe { std::slice::from_raw_parts(iov, count) };
    let mut sum = 0_usize;
    for one in all {
        sum = sum.checked_add(one.iov_len).ok_or(Errno(libc::EINVAL))?;
        if one.iov_base.is_null() && one.iov_len > 0 {
            return Err(Errno(libc::EFAULT));
        }
    }
    length(sum)?;
    Ok(all.to_vec())
}

/// Where bytes go that were written: `O_APPEND` puts them at the end.
fn after_write(named: &Named, offset: u64, written: usize) -> Result<u64> {
    let end = offset + written as u64;
    if written == 0 {
        return Ok(end);
    }
    let end = if named.file.appends() { named.file.file()?.size_hint()? } else { end };
    if end > named.size {
        table::resize(named.fd, &named.file, end, true);
    }
    Ok(end)
}

fn position(fd: c_int) -> Result<u64> {
    offset_of(raw::lseek(fd, 0, libc::SEEK_CUR)?)
}

fn set_position(fd: c_int, offset: u64) -> Result<()> {
    let offset = off_t::try_from(offset).map_err(|_| Errno(libc::EOVERFLOW))?;
    raw::lseek(fd, offset, libc::SEEK_SET).map(drop)
}

/// # Safety
/// As read(2).
pub unsafe fn read(fd: c_int, buffer: *mut c_void, len: size_t) -> Result<isize> {
    let Some(named) = find(fd) else { return raw::read(fd, buffer, len) };
    // SAFETY: the caller's promise.
    let out = unsafe { room(buffer, len) }?;
    named.file.may(false)?;
    let _one = named.file.positioned();
    let offset = position(fd)?;
    let done = named.file.pread(out, offset)?;
    set_position(fd, offset + done as u64)?;
    length(done)
}

/// # Safety
/// As write(2).
pub unsafe fn write(fd: c_int, buffer: *const c_void, len: size_t) -> Result<isize> {
    let Some(named) = find(fd) else { return raw::write(fd, buffer, len) };
    // SAFETY: the caller's promise.
    let data = unsafe { bytes(buffer, len) }?;
    named.file.may(true)?;
    let _one = named.file.positioned();
    let offset = position(fd)?;
    let done = named.file.pwrite(data, offset)?;
    let end = after_write(&named, offset, done)?;
    set_position(fd, end)?;
    length(done)
}

/// # Safety
/// As pread(2).
pub unsafe fn pread(fd: c_int, buffer: *mut c_void, len: size_t, offset: off_t) -> Result<isize> {
    let Some(named) = find(fd) else { return raw::pread(fd, buffer, len, offset) };
    // SAFETY: the caller's promise.
    let out = unsafe { room(buffer, len) }?;
    let offset = offset_of(offset)?;
    named.file.may(false)?;
    length(named.file.pread(out, offset)?)
}

/// # Safety
/// As pwrite(2).
pub unsafe fn pwrite(
    fd: c_int,
    buffer: *const c_void,
    len: size_t,
    offset: off_t,
) -> Result<isize> {
    let Some(named) = find(fd) else { return raw::pwrite(fd, buffer, len, offset) };
    // SAFETY: the caller's promise.
    let data = unsafe { bytes(buffer, len) }?;
    let offset = offset_of(offset)?;
    named.file.may(true)?;
    let done = named.file.pwrite(data, offset)?;
    after_write(&named, offset, done)?;
    length(done)
}

/// # Safety
/// As preadv(2).
pub unsafe fn preadv(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> Result<isize> {
    let Some(named) = find(fd) else { return raw::preadv(fd, iov, count, offset) };
    // SAFETY: the caller's promise.
    let all = unsafe { vectors(iov, count) }?;
    let offset = offset_of(offset)?;
    named.file.may(false)?;
    // SAFETY: as above; each element was checked.
    let outs = all.iter().map(|one| unsafe { room(one.iov_base, one.iov_len) });
    let mut outs: Vec<&mut [u8]> = outs.collect::<Result<_>>()?;
    length(named.file.preadv(&mut outs, offset)?)
}

/// # Safety
/// As pwritev(2).
pub unsafe fn pwritev(fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> Result<isize> {
    let Some(named) = find(fd) else { return raw::pwritev(fd, iov, count, offset) };
    // SAFETY: the caller's promise.
    let all = unsafe { vectors(iov, count) }?;
    let offset = offset_of(offset)?;
    named.file.may(true)?;
    // SAFETY: as above; each element was checked.
    let datas = all.iter().map(|one| unsafe { bytes(one.iov_base, one.iov_len) });
    let datas: Vec<&[u8]> = datas.collect::<Result<_>>()?;
    let done = named.file.pwritev(&datas, offset)?;
    after_write(&named, offset, done)?;
    length(done)
}
