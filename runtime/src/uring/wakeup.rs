//! Ends a park from another thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::driver::Unpark;

/// An eventfd that a read in the ring waits for, and two flags that save most of its writes: a
/// driver that spins sees `notified` without any system call.
pub(crate) struct Wakeup {
    event: OwnedFd,
    notified: AtomicBool,
    sleeping: AtomicBool,
}

impl Wakeup {
    pub(crate) fn new() -> io::Result<Self> {
        // Blocking on purpose: io_uring would answer EAGAIN at once on a non-blocking one.
        // SAFETY: creates a descriptor, touches no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and has no other owner.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { event, notified: AtomicBool::new(false), sleeping: AtomicBool::new(false) })
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// True once after one or more calls of `unpark`.
    pub(crate) fn take(&self) -> bool {
        self.notified.swap(false, Ordering::SeqCst)
    }

    /// Announces a sleep. False if somebody has called `unpark` meanwhile.
    pub(crate) fn begin_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        if self.take() {
            self.sleeping.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// A write to the eventfd that comes after this only makes the next sleep return early.
    pub(crate) fn end_sleep(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
        self.notified.store(false, Ordering::SeqCst);
    }
}

impl Unpark for Wakeup {
    fn unpark(&self) {
        let already = self.notified.swap(true, Ordering::SeqCst);
        if !already && self.sleeping.load(Ordering::SeqCst) {
            let one = 1_u64;
            // SAFETY: eight readable bytes. It cannot block: the counter would have to be at 2^64.
            unsafe { libc::write(self.raw_fd(), (&raw const one).cast(), 8) };
        }
    }
}
