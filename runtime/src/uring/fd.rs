//! Descriptors that operations keep open.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::{Rc, Weak};

use super::ring::Ring;

/// A descriptor that is used with a ring. It is closed when the last clone is gone and the last
/// operation on it has ended, so that an operation can never meet another file that got the same
/// number.
#[derive(Clone)]
pub struct RingFd {
    inner: Rc<Inner>,
}

struct Inner {
    /// Index in the ring's table of registered files.
    registered: Option<(Weak<Ring>, u32)>,
    fd: OwnedFd,
}

impl RingFd {
    pub(super) fn new(fd: OwnedFd, registered: Option<(Weak<Ring>, u32)>) -> Self {
        Self { inner: Rc::new(Inner { registered, fd }) }
    }

    pub(super) fn index(&self) -> Option<u32> {
        self.inner.registered.as_ref().map(|(_, index)| *index)
    }

    /// True if the ring knows the file by index and saves a reference count per operation.
    pub fn is_registered(&self) -> bool {
        self.inner.registered.is_some()
    }

    /// Ends a connection in one or both directions, at once; waiting receives then return 0.
    ///
    /// # Errors
    /// The system's.
    pub fn shutdown(&self, how: std::net::Shutdown) -> std::io::Result<()> {
        let how = match how {
            std::net::Shutdown::Read => libc::SHUT_RD,
            std::net::Shutdown::Write => libc::SHUT_WR,
            std::net::Shutdown::Both => libc::SHUT_RDWR,
        };
        // SAFETY: takes no pointers.
        match unsafe { libc::shutdown(self.as_raw_fd(), how) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.fd.as_raw_fd()
    }
}

impl AsFd for RingFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The ring's table holds the file open (and locked) too.
        if let Some((ring, index)) = self.registered.take()
            && let Some(ring) = ring.upgrade()
        {
            ring.unregister_file(index);
        }
    }
}
