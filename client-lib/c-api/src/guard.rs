//! The boundary: results become return values and `errno`, panics become `EIO`, and nobody's thread is
//! cancelled within.

use std::cell::RefCell;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};

use libc::c_int;

use crate::raw;

unsafe extern "C" {
    /// Not in the `libc` crate for Linux.
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// The same number in glibc and musl.
const PTHREAD_CANCEL_DISABLE: c_int = 1;

/// A number of errno(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// Results with it.
pub type Result<T> = std::result::Result<T, Errno>;

thread_local! {
    static TEXT: RefCell<CString> = RefCell::default();
}

impl From<bb_client::Error> for Errno {
    fn from(error: bb_client::Error) -> Self {
        tracing::debug!(%error, "a call fails");
        say(&error.to_string());
        Self(error.errno())
    }
}

/// Keeps a sentence about this thread's last error, for `bb_error_text`.
pub fn say(text: &str) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // Not where the thread is ending.
    let _ = TEXT.try_with(|slot| *slot.borrow_mut() = text);
}

/// An error with a sentence.
pub fn refuse<T>(errno: i32, text: &str) -> Result<T> {
    say(text);
    Err(Errno(errno))
}

/// The sentence; valid until this thread's next call.
pub fn text() -> *const libc::c_char {
    TEXT.try_with(|slot| slot.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// While it lives, pthread_cancel(3) does not end this thread: it may be driving what all the others
/// wait for, and the C library ends a thread by unwinding, which Rust answers with an abort of the
/// process. The thread ends at the next cancellation point of its own.
struct Uncancelled(c_int);

impl Uncancelled {
    fn begin() -> Self {
        let mut old = 0;
        // SAFETY: `old` is writable; there is no other condition.
        unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &raw mut old) };
        Self(old)
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pthread_setcancelstate(self.0, std::ptr::null_mut()) };
    }
}

/// Runs a call of the API. `errno` is changed only by a call that fails.
pub fn guard<R>(failed: R, call: impl FnOnce() -> Result<R>) -> R {
    let _uncancelled = Uncancelled::begin();
    let before = raw::errno();
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => {
            raw::set_errno(before);
            value
        }
        Ok(Err(Errno(errno))) => {
            raw::set_errno(errno);
            failed
        }
        Err(_) => {
            say("the library has met a defect of its own");
            raw::set_errno(libc::EIO);
            failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_eio_and_success_leaves_errno_alone() {
        raw::set_errno(libc::E2BIG);
        assert_eq!(guard(-1, || Ok(3)), 3);
        assert_eq!(raw::errno(), libc::E2BIG);
        assert_eq!(guard(-1, || Err(Errno(libc::ENOSPC))), -1);
        assert_eq!(raw::errno(), libc::ENOSPC);
        assert_eq!(guard(-1, || panic!("planted")), -1);
        assert_eq!(raw::errno(), libc::EIO);
    }
}
