//! Asynchronous reads and writes with callbacks.
//!
//! A callback fires exactly once, and only where the submission returned 0. It runs on a thread of
//! the library that holds no lock, so it may make any call; the control block is the caller's again
//! before it runs.

use bb_client::blocking::RawBuffer;
use libc::{c_int, iovec, off_t, ssize_t};

use crate::guard::{Errno, Result};
use crate::table::{self, find};
use crate::transfer::vectors;
use crate::{monitor, raw};

/// Told of the end.
pub type Complete = unsafe extern "C" fn(block: *mut ControlBlock, error: c_int, bytes: ssize_t);

/// `struct ime_aiocb`.
#[repr(C)]
pub struct ControlBlock {
    fd: c_int,
    iovcnt: c_int,
    /// Never looked at: programs leave it uninitialised.
    flags: u32,
    iov: *const iovec,
    file_offset: off_t,
    complete_cb: Option<Complete>,
    /// The caller's.
    user_context: isize,
}

// As in the published header, on machines of 64 bits.
const _: () = {
    assert!(size_of::<ControlBlock>() == 48);
    assert!(std::mem::offset_of!(ControlBlock, iovcnt) == 4);
    assert!(std::mem::offset_of!(ControlBlock, flags) == 8);
    assert!(std::mem::offset_of!(ControlBlock, iov) == 16);
    assert!(std::mem::offset_of!(ControlBlock, file_offset) == 24);
    assert!(std::mem::offset_of!(ControlBlock, complete_cb) == 32);
    assert!(std::mem::offset_of!(ControlBlock, user_context) == 40);
};

/// The block on its way to the callback.
struct Told {
    block: *mut ControlBlock,
    complete: Complete,
}

// SAFETY: the caller has given the block away until the callback, which the API runs on any thread.
unsafe impl Send for Told {}

impl Told {
    fn tell(self, result: Result<usize>) {
        let (error, bytes) = match result {
            Ok(bytes) => (0, ssize_t::try_from(bytes).unwrap_or(ssize_t::MAX)),
            Err(Errno(errno)) => (errno, -1),
        };
        // SAFETY: the caller's function with the caller's block, as promised. Nothing of the block
        // is touched afterwards.
        unsafe { (self.complete)(self.block, error, bytes) };
    }
}

/// # Safety
/// `block` is null or a control block whose vector and buffers stay valid until the callback.
pub unsafe fn submit(block: *mut ControlBlock, write: bool) -> Result<c_int> {
    if block.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller's promise, and not null. `flags` and `user_context` are not read.
    let (fd, iovcnt, iov, offset, complete) = unsafe {
        let at = &raw const *block;
        ((*at).fd, (*at).iovcnt, (*at).iov, (*at).file_offset, (*at).complete_cb)
    };
    let complete = complete.ok_or(Errno(libc::EINVAL))?;
    // SAFETY: the caller's promise.
    let all = unsafe { vectors(iov, iovcnt) }?;
    let from = u64::try_from(offset).map_err(|_| Errno(libc::EINVAL))?;
    let told = Told { block, complete };
    let Some(named) = find(fd) else {
        let move_now = if write { raw::pwritev } else { raw::preadv };
        let moved = move_now(fd, all.as_ptr(), iovcnt, offset)?;
        told.tell(Ok(usize::try_from(moved).unwrap_or(0)));
        return Ok(0);
    };
    named.file.may(write)?;
    let file = named.file.file()?;
    let len: u64 = all.iter().map(|one| one.iov_len as u64).sum();
    let buffers =
        all.iter().map(|one| RawBuffer { address: one.iov_base.cast(), len: one.iov_len });
    let buffers: Vec<RawBuffer> = buffers.collect();
    let open = named.file;
    if write {
        let range = from..from.saturating_add(len);
        let done = move |result: bb_client::Result<usize>| {
            let result = open.wrote(range.clone(), result.map_err(Errno::from));
            if result.is_ok() && len > 0 {
                table::resize(fd, &open, range.end, true);
            }
            told.tell(result);
        };
        // SAFETY: the caller's promise about the buffers holds until the callback.
        unsafe { file.start_pwritev(buffers, from, done) };
    } else {
        let done = move |result: bb_client::Result<usize>| {
            let result = result.map_err(Errno::from);
            monitor::transferred(false, result.map_err(|errno| errno.0));
            told.tell(result);
        };
        // SAFETY: as above.
        unsafe { file.start_preadv(buffers, from, done) };
    }
    Ok(0)
}
