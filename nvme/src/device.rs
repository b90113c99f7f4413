//! The seam between those who store and what stores.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bb_runtime::{Buf, BufMut};

/// Unit of offsets and lengths on every device, in bytes. Devices with smaller blocks are used in
/// this unit too: one size keeps formats the same everywhere.
pub const BLOCK_BYTES: u64 = 4096;

/// The future of one device operation. It owns its buffers: dropping it abandons the answer, never
/// the operation, and the buffer stays out of use until the device is done with it.
pub type IoFuture<T> = Pin<Box<dyn Future<Output = Result<T, DeviceError>>>>;

/// A device that is shared by the tasks of one reactor.
pub type DeviceRef = Rc<dyn Device>;

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// For people: the path or address.
    pub name: String,
    /// Usable size, in bytes; a multiple of [`BLOCK_BYTES`].
    pub capacity_bytes: u64,
    /// True unless the kernel or the controller says that a completed write is durable.
    pub volatile_cache: bool,
}

/// When a write counts as done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// When the device has taken it; a later [`Device::flush`] makes it durable.
    Cached,
    /// When it would survive a power cut (FUA, `RWF_DSYNC`).
    Durable,
}

/// Why an operation failed. Nothing is retried below this seam.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Offset or length is not aligned, or lies outside of the device. A bug of the caller.
    #[error("range {offset}+{len} is not aligned or lies outside of the device")]
    Range {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The medium or the path to it failed for this operation; others may still work.
    #[error("device I/O error {errno} at offset {offset}")]
    Io {
        /// The system's error number.
        errno: i32,
        /// Offset in bytes.
        offset: u64,
    },
    /// The device is gone or has failed as a whole (a failed flush counts as that); no later
    /// operation will succeed.
    #[error("device has failed: {0}")]
    Failed(String),
}

/// Counts of one kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpStats {
    /// Operations that ended well.
    pub count: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Latency histogram: entry `i` counts operations that took `2^i ..2^(i+1)` microseconds
    /// (entry 0 also those below one).
    pub latency_us_log2: [u64; 32],
}

/// Counts of a device since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Reads.
    pub read: OpStats,
    /// Writes.
    pub write: OpStats,
    /// Flushes.
    pub flush: OpStats,
    /// Unmaps.
    pub unmap: OpStats,
    /// Writes that ended well as [`Durability::Durable`]: each has a flush of its own in it, or FUA.
    pub durable_writes: u64,
}

impl DeviceStats {
    /// How often the device was told to make something durable.
    pub fn flushes(&self) -> u64 {
        self.flush.count + self.durable_writes
    }
}

/// A block device.
///
/// Operations that are under way at the same time have no order among each other. A flush covers
/// the writes that had completed before it was submitted. A write is not atomic: after a power cut
/// any subset of its 4 KiB blocks may be there, unless it was durable and completed.
pub trait Device {
    /// What it is.
    fn info(&self) -> &DeviceInfo;

    /// Reads `buf.len()` bytes at `offset` into `buf` and gives it back. Both must be multiples of
    /// [`BLOCK_BYTES`].
    fn read(&self, offset: u64, buf: BufMut) -> IoFuture<BufMut>;

    /// Writes all of `buf` at `offset`. `buf` must begin at a multiple of [`BLOCK_BYTES`] of its
    /// slab and be a multiple of it long.
    fn write(&self, offset: u64, buf: Buf, durability: Durability) -> IoFuture<()>;

    /// Makes every write that completed before this call durable. After a failure the device is
    /// [`DeviceError::Failed`]: what it had cached is lost in a way that nobody can tell.
    fn flush(&self) -> IoFuture<()>;

    /// Tells the device that the contents of a range are not needed. What is read there afterwards
    /// is undefined.
    fn unmap(&self, offset: u64, len: u64) -> IoFuture<()>;

    /// Counts since open.
    fn stats(&self) -> DeviceStats;
}

/// Checks a range against the rules of [`Device`].
///
/// # Errors
/// [`DeviceError::Range`].
pub fn check_range(info: &DeviceInfo, offset: u64, len: u64) -> Result<(), DeviceError> {
    let aligned = offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_BYTES);
    let inside = offset.checked_add(len).is_some_and(|end| end <= info.capacity_bytes);
    if aligned && inside && len > 0 { Ok(()) } else { Err(DeviceError::Range { offset, len }) }
}
