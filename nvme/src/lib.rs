//! Block devices: aligned asynchronous I/O from registered buffers, behind one trait.

#[doc(hidden)]
pub mod conformance;
mod device;
mod uring;

pub use device::{
    BLOCK_BYTES, Device, DeviceError, DeviceInfo, DeviceRef, DeviceStats, Durability, IoFuture,
    OpStats, check_range,
};
pub use uring::{OpenError, UringDevice, create_file};
