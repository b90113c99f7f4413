//! Sleeping in a ring that other threads use meanwhile.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::clock;
use crate::driver::Sleeper;
use crate::time::Instant;

/// `IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG`
const WAIT_FLAGS: libc::c_uint = 1 | 8;

/// The kernel's `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArgument {
    signal_mask: u64,
    signal_mask_bytes: u32,
    min_wait_us: u32,
    timeout: u64,
}

/// The kernel's `struct __kernel_timespec`.
#[repr(C)]
struct Timeout {
    seconds: i64,
    nanoseconds: i64,
}

/// Sleeps until the ring has a completion. It submits nothing and touches none of the memory that
/// is shared with the kernel: that belongs to whoever holds the executor.
pub(super) struct RingSleeper {
    /// A descriptor of its own: the ring may be given up while somebody sleeps in it.
    ring: OwnedFd,
    /// How long the last [`Sleeper::give_way`] took.
    gave_way_ns: AtomicU64,
    complained: AtomicBool,
}

impl RingSleeper {
    pub(super) fn new(ring: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            ring: ring.try_clone_to_owned()?,
            gave_way_ns: AtomicU64::new(0),
            complained: AtomicBool::new(false),
        })
    }

    /// How long the last giving way took; zero where that was asked already.
    pub(super) fn gave_way(&self) -> Duration {
        Duration::from_nanos(self.gave_way_ns.swap(0, Ordering::Relaxed))
    }

    fn enter(&self, timeout: Option<&Timeout>) -> io::Result<()> {
        let timeout = timeout.map_or(0, |timeout| std::ptr::from_ref(timeout) as u64);
        let argument =
            WaitArgument { signal_mask: 0, signal_mask_bytes: 0, min_wait_us: 0, timeout };
        let (submit, complete): (libc::c_uint, libc::c_uint) = (0, 1);
        // SAFETY: the descriptor is a ring's; the argument, and the time that it points to, are
        // readable during the call and as the flags say. With nothing to submit the kernel reads
        // no request.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.ring.as_raw_fd(),
                submit,
                complete,
                WAIT_FLAGS,
                &raw const argument,
                size_of::<WaitArgument>(),
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Sleeper for RingSleeper {
    fn sleep(&self, deadline: Option<Instant>) {
        let left = deadline.map(|at| at - clock::now());
        if left == Some(Duration::ZERO) {
            return;
        }
        let timeout = left.map(|left| Timeout {
            seconds: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: i64::from(left.subsec_nanos()),
        });
        let Err(error) = self.enter(timeout.as_ref()) else { return };
        match error.raw_os_error() {
            // A signal, or the time is over; the rest is short of memory and tried again.
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {}
            _ => {
                if !self.complained.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "cannot wait in the ring: it is looked at again and again");
                }
                // Else this would be a loop that takes the whole core.
                let pause = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                // SAFETY: `pause` is readable, and the remainder is not asked for.
                unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
            }
        }
    }

    fn give_way(&self) {
        let begin = clock::now();
        // SAFETY: takes no arguments.
        unsafe { libc::sched_yield() };
        let took = clock::now() - begin;
        self.gave_way_ns
            .store(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
