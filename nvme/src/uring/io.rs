//! Reads, writes and unmaps: whole or not at all.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::{Buf, BufMut};

use super::{Core, open};
use crate::device::{BLOCK_BYTES, DeviceError, DeviceStats, Durability, OpStats};

/// How often an operation is repeated that the kernel had no resources for, a millisecond apart.
const RETRIES_MAX: u32 = 1000;

const BLOCK_LEN: usize = 4096;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_BYTES);

/// What to do after a call to the kernel.
pub(super) enum Next {
    /// Everything is done.
    Finished,
    /// Go on behind this many bytes.
    At(usize),
}

/// An operation as far as it has come.
pub(super) struct Progress<'a> {
    core: &'a Core,
    offset: u64,
    len: usize,
    done: usize,
    retries: u32,
}

impl Progress<'_> {
    /// Judges the result of one call. A short one goes on at the last whole block; one without
    /// any progress is the end of a file that was cut.
    pub(super) async fn after(&mut self, result: io::Result<usize>) -> Result<Next, DeviceError> {
        let offset = self.offset + self.done as u64;
        match result {
            Ok(bytes) => {
                let before = self.done;
                self.done = (self.done + bytes) / BLOCK_LEN * BLOCK_LEN;
                if self.done >= self.len {
                    return Ok(Next::Finished);
                }
                if self.done == before {
                    self.core.check_size()?;
                    return Err(DeviceError::Io { errno: libc::EIO, offset });
                }
                Ok(Next::At(self.done))
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                let again = matches!(errno, libc::EINTR | libc::EAGAIN);
                if again && self.retries < RETRIES_MAX {
                    self.retries += 1;
                    if errno == libc::EAGAIN {
                        self.core.rt.sleep(Duration::from_millis(1)).await;
                    }
                    return Ok(Next::At(self.done));
                }
                Err(DeviceError::Io { errno, offset })
            }
        }
    }
}

impl Core {
    pub(super) fn alive(&self) -> Result<(), DeviceError> {
        match &*self.failed.borrow() {
            Some(why) => Err(DeviceError::Failed(why.clone())),
            None => Ok(()),
        }
    }

    /// From here on, no operation succeeds.
    pub(super) fn fail(&self, why: String) -> DeviceError {
        let mut failed = self.failed.borrow_mut();
        let first = failed.get_or_insert_with(|| {
            tracing::error!(device = self.info.name, why, "device has failed");
            why
        });
        DeviceError::Failed(first.clone())
    }

    /// Fails the device if it has become smaller than it was when it was opened.
    pub(super) fn check_size(&self) -> Result<(), DeviceError> {
        match open::size_bytes(self.fd.as_fd(), self.is_block_device) {
            Ok(now) if now < self.info.capacity_bytes => Err(self.fail(format!(
                "{} has {now} of {} bytes: somebody has truncated it",
                self.path.display(),
                self.info.capacity_bytes
            ))),
            _ => Ok(()),
        }
    }

    pub(super) fn record(
        &self,
        pick: fn(&mut DeviceStats) -> &mut OpStats,
        ok: bool,
        bytes: u64,
        start: bb_runtime::Instant,
    ) {
        let took = self.rt.now() - start;
        pick(&mut self.stats.borrow_mut()).record(ok, bytes, took);
    }

    pub(super) fn progress(&self, offset: u64, len: usize) -> Progress<'_> {
        Progress { core: self, offset, len, done: 0, retries: 0 }
    }

    pub(super) async fn read(
        self: Rc<Self>,
        offset: u64,
        buf: BufMut,
    ) -> Result<BufMut, DeviceError> {
        let (start, len) = (self.rt.now(), buf.len() as u64);
        let result = self.read_all(offset, buf).await.and_then(|buf| self.alive().map(|()| buf));
        self.record(|stats| &mut stats.read, result.is_ok(), len, start);
        result
    }

    async fn read_all(&self, offset: u64, mut buf: BufMut) -> Result<BufMut, DeviceError> {
        let len = buf.len();
        let mut progress = self.progress(offset, len);
        let mut at = 0;
        loop {
            let result;
            (result, buf) = self.uring.read_at(&self.fd, offset + at as u64, buf, at..len).await;
            match progress.after(result).await? {
                Next::Finished => return Ok(buf),
                Next::At(next) => at = next,
            }
        }
    }

    pub(super) async fn write(
        self: Rc<Self>,
        offset: u64,
        buf: Buf,
        durability: Durability,
    ) -> Result<(), DeviceError> {
        let (start, len) = (self.rt.now(), buf.len() as u64);
        let result = self.write_all(offset, &buf, durability).await.and_then(|()| self.alive());
        self.record(|stats| &mut stats.write, result.is_ok(), len, start);
        if result.is_ok() && durability == Durability::Durable {
            self.stats.borrow_mut().durable_writes += 1;
        }
        result
    }

    async fn write_all(
        &self,
        offset: u64,
        buf: &Buf,
        durability: Durability,
    ) -> Result<(), DeviceError> {
        let durable = durability == Durability::Durable;
        let mut progress = self.progress(offset, buf.len());
        let mut at = 0;
        loop {
            let rest = buf.slice(at..);
            let result = self.uring.write_at(&self.fd, offset + at as u64, rest, durable).await;
            match progress.after(result).await {
                Ok(Next::Finished) => return Ok(()),
                Ok(Next::At(next)) => at = next,
                // The flush in it may have dropped what other writes had left in the cache. A
                // file without room has not got that far.
                Err(DeviceError::Io { errno, offset })
                    if durable && !matches!(errno, libc::ENOSPC | libc::EDQUOT) =>
                {
                    let error = io::Error::from_raw_os_error(errno);
                    return Err(self.fail(format!("durable write at {offset}: {error}")));
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn unmap(self: Rc<Self>, offset: u64, len: u64) -> Result<(), DeviceError> {
        let start = self.rt.now();
        let result = loop {
            let result = if self.is_block_device {
                let fd = self.fd.clone();
                // The thread's own descriptor: a `RingFd` stays on its reactor.
                match fd.as_fd().try_clone_to_owned() {
                    Ok(fd) => match self.threads.run(move || open::discard(&fd, offset, len)).await
                    {
                        Ok(result) => result,
                        Err(error) => Err(io::Error::other(error)),
                    },
                    Err(error) => Err(error),
                }
            } else {
                self.uring.punch_hole(&self.fd, offset, len).await
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What it can't do changes nothing: an unmap is a hint.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => break Ok(()),
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    break Err(DeviceError::Io { errno, offset });
                }
                Ok(()) => break Ok(()),
            }
        };
        let result = result.and_then(|()| self.alive());
        self.record(|stats| &mut stats.unmap, result.is_ok(), len, start);
        result
    }
}
