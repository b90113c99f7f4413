//! Block devices: aligned asynchronous I/O from registered buffers, behind one trait.

mod device;

pub use device::{
    BLOCK_BYTES, Device, DeviceError, DeviceInfo, DeviceRef, DeviceStats, Durability, IoFuture,
    OpStats, check_range,
};
