//! The real driver: one `io_uring` under one executor.
//!
//! Tasks queue operations through a [`Uring`] handle; the driver hands everything that one turn of
//! the executor has queued to the kernel in one system call and takes completions from shared
//! memory. The state of an operation, with its buffers and its descriptor, lies in a slab until the
//! kernel has reported its end: dropping the future of an operation never frees or reuses memory
//! that the kernel may still write.
//!
//! A ring belongs to one thread ([`RingOwner::Thread`], the servers' reactors: completions are
//! delivered only when that thread asks, without interrupts) or to a process
//! ([`RingOwner::Process`], the client library: threads of an application drive it in turn, under
//! a lock of the library). Linux binds a request to the thread that submitted it, also there: when
//! that thread exits, the request ends with ECANCELED without having done anything. The ring
//! queues such a request again from the thread that drives it then, so nobody above notices;
//! only `connect` cannot be repeated, and looks at the socket instead. A request of a thread that
//! sits in an uninterruptible system call completes when that call ends; that is the price of
//! having no thread of our own. Such a ring is also slept in without the lock: the sleeper enters the
//! kernel with nothing to submit and touches no shared memory, while others submit.

pub(crate) mod clock;
mod driver;
mod fd;
mod file;
mod net;
mod op;
mod register;
mod ring;
mod sleeper;
#[cfg(test)]
mod tests;
mod wakeup;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::executor::{Executor, Order};

pub use driver::UringDriver;
pub use fd::RingFd;
pub use net::Part;

/// Who may drive a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingOwner {
    /// The thread that creates it, and no other.
    Thread,
    /// Any thread of the process, one at a time, beside one that sleeps. Not its children: after a `fork` the ring is not
    /// mapped in the child, which must leak the executor and everything that holds the ring.
    Process,
}

/// How a ring is made.
#[derive(Clone, Debug)]
pub struct UringOptions {
    /// Who may drive it.
    pub owner: RingOwner,
    /// Size of the submission queue. More operations than this may be under way; a turn that
    /// queues more needs another system call.
    pub submission_entries: u32,
    /// How long an idle driver spins before it sleeps. Each spin is a `sched_yield`, and the first
    /// one that gave the core to somebody else ends it.
    pub spin: Duration,
    /// Descriptors that can be registered with the ring.
    pub registered_files: u32,
}

impl UringOptions {
    /// What a reactor of a server uses.
    pub fn for_reactor() -> Self {
        Self {
            owner: RingOwner::Thread,
            submission_entries: 512,
            // A round trip over loopback between spinning threads takes 8-15 us, one that wakes a
            // sleeper over 50: spinning longer than that never pays.
            spin: Duration::from_micros(50),
            registered_files: 64,
        }
    }

    /// What the client library uses.
    pub fn for_library() -> Self {
        Self { owner: RingOwner::Process, submission_entries: 128, ..Self::for_reactor() }
    }
}

/// Why a ring could not be made.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// The kernel has no `io_uring`, or forbids it.
    #[error(
        "io_uring is not available ({0}): it needs Linux 6.1 or later, kernel.io_uring_disabled=0, \
         and a container profile that permits it"
    )]
    Unavailable(io::Error),
    /// The kernel's `io_uring` lacks something that this program needs.
    #[error("this kernel's io_uring is too old ({0}): Linux 6.1 or later is needed")]
    TooOld(io::Error),
    /// The user may not lock as much memory as the smallest ring needs.
    #[error("no memory for io_uring ({0}): raise the limit on locked memory (ulimit -l)")]
    Memory(io::Error),
    /// Something else.
    #[error("cannot set up io_uring: {0}")]
    Io(#[from] io::Error),
}

impl UringError {
    fn from_setup(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => Self::Unavailable(error),
            Some(libc::EINVAL) => Self::TooOld(error),
            Some(libc::ENOMEM) => Self::Memory(error),
            _ => Self::Io(error),
        }
    }
}

/// Queues operations on a ring. Cheap to clone; belongs to the ring's executor.
///
/// Operations are queued when their method is called, not when the future is first polled, and go
/// to the kernel at the executor's next turn. Dropping the future of a read, write, flush or
/// allocation abandons only the answer; dropping one that may wait forever (accept, receive, send,
/// connect, poll) asks the kernel to cancel it. Bytes that a dropped receive had already taken are
/// lost, and a dropped send may have sent a part: the connection must then be closed.
#[derive(Clone)]
pub struct Uring {
    ring: Rc<ring::Ring>,
}

/// An executor over a new ring, with chance from the system.
///
/// # Errors
/// When the kernel has no usable `io_uring`.
pub fn executor(options: &UringOptions) -> Result<(Executor, Uring), UringError> {
    let (driver, uring) = UringDriver::new(options)?;
    let mut seed = [0_u8; 8];
    // SAFETY: eight writable bytes. Fewer than asked for can't happen below 256.
    if unsafe { libc::getrandom(seed.as_mut_ptr().cast(), 8, 0) } != 8 {
        return Err(io::Error::last_os_error().into());
    }
    Ok((Executor::new(driver, Order::Fifo, u64::from_le_bytes(seed)), uring))
}
