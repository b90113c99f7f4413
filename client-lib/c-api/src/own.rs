//! Our own functions: `bb_client.h` is generated from this file (`./x headers`).

use std::ffi::CStr;
use std::mem::MaybeUninit;

use bb_client::blocking::RawBuffer;
use libc::{c_char, c_int, c_uint, c_void, iovec, off_t, size_t, ssize_t};

use crate::guard::{self, Errno, Result, guard, refuse};
use crate::library;
use crate::ring::CRing;
use crate::{config, transfer};

/// A submission and completion ring. Any thread may use it.
#[expect(non_camel_case_types, reason = "a name of C")]
pub struct bb_ring {
    _private: [u8; 0],
}

/// How a request of a ring ended.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct bb_ring_completion {
    /// What the request was given.
    pub user_data: u64,
    /// Bytes transferred, or an error number with a minus before it.
    pub result: i64,
}

/// Version of the library: a static string.
#[unsafe(no_mangle)]
pub extern "C" fn bb_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// A sentence about the last error of a call of this thread; valid until the thread's next call.
#[unsafe(no_mangle)]
pub extern "C" fn bb_error_text() -> *const c_char {
    guard::text()
}

/// Sets a setting, by its name or that of its environment variable, before the environment and the
/// configuration file: for tools with a command line. A null value takes it back. To be called
/// before `ime_native_init`, or after `ime_native_finalize`. Returns 0, or -1 with `errno`.
///
/// # Safety
/// `name` is a string, `value` a string or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bb_set(name: *const c_char, value: *const c_char) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's promise.
        let (name, value) = unsafe { (text(name)?, text(value)?) };
        let Some(name) = name else { return Err(Errno(libc::EFAULT)) };
        match config::set(name, value) {
            Ok(()) => {
                library::settings_changed();
                Ok(0)
            }
            Err(why) => refuse(libc::EINVAL, &why),
        }
    })
}

/// # Safety
/// Null, or a string.
unsafe fn text<'a>(text: *const c_char) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise, and not null.
    let text = unsafe { CStr::from_ptr(text) }.to_str();
    text.map(Some).map_err(|_| Errno(libc::EINVAL))
}

/// Writes all settings with their values and origins, a line each, and what is wrong with them, into
/// a buffer of `len` bytes, and a NUL. Returns the length of the whole text without the NUL, which
/// may be more than there was room for, or -1 with `errno`.
///
/// # Safety
/// `buffer` has `len` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bb_settings(buffer: *mut c_char, len: size_t) -> ssize_t {
    guard(-1, || {
        let known = library::known();
        let mut all = config::show(&known.values);
        let ratios = library::state().ratios;
        for (name, ratio) in ["sync", "purge"].iter().zip(ratios) {
            if let Some(ratio) = ratio {
                all += &format!("ratio_{name} = {ratio} (config_ctl; not yet in use)\n");
            }
        }
        if let Err(error) = &known.settings {
            all += &format!("error: {error}\n");
        }
        if buffer.is_null() && len > 0 {
            return Err(Errno(libc::EFAULT));
        }
        if len > 0 {
            let count = all.len().min(len - 1);
            // SAFETY: `count` and a NUL are at most the `len` bytes that the caller has promised.
            unsafe {
                std::ptr::copy_nonoverlapping(all.as_ptr(), buffer.cast(), count);
                buffer.add(count).write(0);
            }
        }
        ssize_t::try_from(all.len()).map_err(|_| Errno(libc::EOVERFLOW))
    })
}

/// # Safety
/// From `bb_ring_create`, and not destroyed.
unsafe fn ring<'a>(ring: *mut bb_ring) -> Result<&'a CRing> {
    // SAFETY: the caller's promise; null is checked.
    unsafe { ring.cast::<CRing>().as_ref() }.ok_or(Errno(libc::EINVAL))
}

/// Makes a ring with room for `depth` requests that were made and whose ends were not picked up.
/// Connects to the cluster where that is not done. Returns null with `errno` on failure.
#[unsafe(no_mangle)]
pub extern "C" fn bb_ring_create(depth: c_uint) -> *mut bb_ring {
    guard(std::ptr::null_mut(), || Ok(Box::into_raw(Box::new(CRing::new(depth as usize)?)).cast()))
}

/// Waits for everything under way and frees the ring.
///
/// # Safety
/// From `bb_ring_create`, and not destroyed; null does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bb_ring_destroy(ring: *mut bb_ring) {
    guard((), || {
        if !ring.is_null() {
            // SAFETY: the caller's promise.
            CRing::destroy(unsafe { Box::from_raw(ring.cast::<CRing>()) });
        }
        Ok(())
    });
}

/// Registers buffers, which must stay where they are as long as the ring is. Returns the number of
/// the first; the others follow. -1 with `errno` on failure.
///
/// # Safety
/// `buffers` has `count` elements, each valid memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bb_ring_register(
    ring: *mut bb_ring,
    buffers: *const iovec,
    count: c_uint,
) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's promise.
        let ring = unsafe { self::ring(ring) }?;
        let mut all = Vec::new();
        for first in (0..count as usize).step_by(transfer::VECTORS_MAX) {
            let many = (count as usize - first).min(transfer::VECTORS_MAX);
            let many = c_int::try_from(many).unwrap_or(0);
            // SAFETY: the caller's promise.
            all.extend(unsafe { transfer::vectors(buffers.wrapping_add(first), many) }?);
        }
        let raw = |one: iovec| RawBuffer { address: one.iov_base.cast(), len: one.iov_len };
        let first = ring.register(all.into_iter().map(raw))?;
        c_int::try_from(first).map_err(|_| Errno(libc::EOVERFLOW))
    })
}

/// Makes a read of `len` bytes from `offset`. It begins with the next submit or wait. Returns 0, or
/// -1 with `errno`: `EAGAIN` where the ring is full, `EBADF` for a descriptor that is not a file of
/// the buffer.
///
/// # Safety
/// Until the request has ended, the memory stays writable and nobody else touches it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bb_ring_read(
    ring: *mut bb_ring,
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    offset: off_t,
    user_data: u64,
) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's promise.
        unsafe { self::ring(ring)?.queue(fd, Some(false), (buffer, len), offset, user_data)? };
        Ok(0)
    })
}

/// Makes a write. As `bb_ring_read`.
///
/// # Safety
/// Until the request has ended, nobody changes the memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bb_ring_write(
    ring: *mut bb_ring,
    fd: c_int,
    buffer: *const c_void,
    len: size_t,
    offset: off_t,
    user_data: u64,
) -> c_int {
    guard(-1, || {
        let memory = (buffer.cast_mut(), len);
        // SAFETY: the caller's promise.
        unsafe { self::ring(ring)?.queue(fd, Some(true), memory, offset, user_data)? };
        Ok(0)
    })
}

/// Makes a read into a part of a registered buffer. As `bb_ring_read`; `EINVAL` for a part that the
/// buffer does not have.
///
/// # Safety
/// Until the request has ended, nobody else touches that part.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bb_ring_read_registered(
    ring: *mut bb_ring,
    fd: c_int,
    buffer: c_uint,
    buffer_offset: size_t,
    len: size_t,
    offset: off_t,
    user_data: u64,
) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's promise.
        let ring = unsafe { self::ring(ring) }?;
        let address = ring.part(buffer as usize, buffer_offset, len)?;
        // SAFETY: the caller's promise.
        unsafe { ring.queue(fd, Some(false), (address, len), offset, user_data)? };
        Ok(0)
    })
}

/// Makes a write from a part of a registered buffer. As `bb_ring_read_registered`.
///
/// # Safety
/// Until the request has ended, nobody changes that part.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bb_ring_write_registered(
    ring: *mut bb_ring,
    fd: c_int,
    buffer: c_uint,
    buffer_offset: size_t,
    len: size_t,
    offset: off_t,
    user_data: u64,
) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's promise.
        let ring = unsafe { self::ring(ring) }?;
        let address = ring.part(buffer as usize, buffer_offset, len)?;
        // SAFETY: the caller's promise.
        unsafe { ring.queue(fd, Some(true), (address, len), offset, user_data)? };
        Ok(0)
    })
}

/// Makes an fsync, which covers the writes that had ended before. As `bb_ring_read`.
///
/// # Safety
/// The ring is from `bb_ring_create`, and not destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bb_ring_fsync(ring: *mut bb_ring, fd: c_int, user_data: u64) -> c_int {
    guard(-1, || {
        let none = (std::ptr::null_mut(), 0);
        // SAFETY: the caller's promise; no memory is lent.
        unsafe { self::ring(ring)?.queue(fd, None, none, 0, user_data)? };
        Ok(0)
    })
}

/// Hands over the requests that were made since, and does not wait. Returns how many.
///
/// # Safety
/// The ring is from `bb_ring_create`, and not destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bb_ring_submit(ring: *mut bb_ring) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's promise.
        let count = unsafe { self::ring(ring) }?.submit()?;
        Ok(c_int::try_from(count).unwrap_or(c_int::MAX))
    })
}

/// Hands over the requests that were made since, waits until `min` have ended (or all that there
/// are), and gives up to `max` ends. With a `min` of 0 it does not wait. Returns how many, or -1
/// with `errno`.
///
/// # Safety
/// `completions` has room for `max` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bb_ring_wait(
    ring: *mut bb_ring,
    completions: *mut bb_ring_completion,
    max: c_uint,
    min: c_uint,
) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's promise.
        let ring = unsafe { self::ring(ring) }?;
        if completions.is_null() || max == 0 {
            return Err(Errno(libc::EINVAL));
        }
        let room = completions.cast::<MaybeUninit<bb_ring_completion>>();
        // SAFETY: the caller's promise; nothing is read from it.
        let room = unsafe { std::slice::from_raw_parts_mut(room, max as usize) };
        let picked = ring.wait(room, min as usize)?;
        Ok(c_int::try_from(picked).unwrap_or(c_int::MAX))
    })
}
