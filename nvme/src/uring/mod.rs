//! Files and block devices through `io_uring`, past the page cache.
//!
//! An operation runs as a task of its own: dropping its future abandons the answer, never the
//! operation, and what it learns (a failed flush) is kept.

mod create;
mod flush;
mod io;
mod open;
mod recorder;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;

use bb_runtime::uring::{RingFd, Uring};
use bb_runtime::{Buf, BufMut, Rt, ThreadPool};

use crate::device::{
    BLOCK_BYTES, Device, DeviceError, DeviceInfo, DeviceStats, Durability, IoFuture, check_range,
};

pub use create::create_file;
pub use open::OpenError;

/// A file or block device, opened for this process alone.
pub struct UringDevice {
    core: Rc<Core>,
    flusher: Rc<flush::Flusher>,
}

/// What the operations of a device share.
struct Core {
    rt: Rt,
    uring: Uring,
    fd: RingFd,
    threads: ThreadPool,
    path: PathBuf,
    info: DeviceInfo,
    is_block_device: bool,
    stats: RefCell<DeviceStats>,
    /// Why no operation will succeed any more.
    failed: RefCell<Option<String>>,
}

impl UringDevice {
    /// Opens the file or block device at `path` and locks it, so that no second process (or
    /// second server on the same configuration) writes to it. `threads` is for the few calls that
    /// the ring can't make.
    ///
    /// # Errors
    /// [`OpenError`], which says what to do.
    pub async fn open(
        rt: &Rt,
        uring: &Uring,
        threads: &ThreadPool,
        path: impl Into<PathBuf>,
    ) -> Result<Self, OpenError> {
        let path = path.into();
        let opened = open::open(rt, &path).await?;
        let core = Rc::new(Core {
            rt: rt.clone(),
            uring: uring.clone(),
            fd: uring.register_fd(opened.fd),
            threads: threads.clone(),
            info: DeviceInfo {
                name: path.display().to_string(),
                capacity_bytes: opened.capacity_bytes,
                volatile_cache: opened.volatile_cache,
            },
            path,
            is_block_device: opened.is_block_device,
            stats: RefCell::default(),
            failed: RefCell::default(),
        });
        Ok(Self { flusher: Rc::new(flush::Flusher::new(core.clone())), core })
    }

    /// Runs an operation to its end, whether or not somebody waits for it.
    fn start<T: 'static>(
        &self,
        operation: impl Future<Output = Result<T, DeviceError>> + 'static,
    ) -> IoFuture<T> {
        if let Err(error) = self.core.alive() {
            return Box::pin(std::future::ready(Err(error)));
        }
        let running = self.core.rt.spawn(operation);
        Box::pin(async move {
            running
                .await
                .unwrap_or_else(|_| Err(DeviceError::Failed("its reactor has ended".to_owned())))
        })
    }

    fn check(&self, offset: u64, len: usize, address: *const u8) -> Result<(), DeviceError> {
        let len = len as u64;
        if !(address as u64).is_multiple_of(BLOCK_BYTES) {
            return Err(DeviceError::Range { offset, len });
        }
        check_range(&self.core.info, offset, len)
    }
}

fn refused<T: 'static>(error: DeviceError) -> IoFuture<T> {
    Box::pin(std::future::ready(Err(error)))
}

impl Device for UringDevice {
    fn info(&self) -> &DeviceInfo {
        &self.core.info
    }

    fn read(&self, offset: u64, buf: BufMut) -> IoFuture<BufMut> {
        match self.check(offset, buf.len(), buf.as_ptr()) {
            Ok(()) => self.start(self.core.clone().read(offset, buf)),
            Err(error) => refused(error),
        }
    }

    fn write(&self, offset: u64, buf: Buf, durability: Durability) -> IoFuture<()> {
        match self.check(offset, buf.len(), buf.as_ptr()) {
            Ok(()) => self.start(self.core.clone().write(offset, buf, durability)),
            Err(error) => refused(error),
        }
    }

    fn flush(&self) -> IoFuture<()> {
        // Joined now, not when the task runs: from this call on, it covers what has completed.
        let flushed = self.flusher.join();
        self.start(flushed)
    }

    fn unmap(&self, offset: u64, len: u64) -> IoFuture<()> {
        match check_range(&self.core.info, offset, len) {
            Ok(()) => self.start(self.core.clone().unmap(offset, len)),
            Err(error) => refused(error),
        }
    }

    fn stats(&self) -> DeviceStats {
        self.core.stats.borrow().clone()
    }
}
