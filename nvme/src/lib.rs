//! Block devices: aligned asynchronous I/O from registered buffers, behind one trait.

#[doc(hidden)]
pub mod conformance;
mod device;
mod sim;
mod sim_device;
mod sim_faults;
#[cfg(test)]
mod sim_tests;
mod slow;
mod uring;

pub use device::{
    BLOCK_BYTES, Device, DeviceError, DeviceInfo, DeviceRef, DeviceStats, Durability, IoFuture,
    OpStats, check_range,
};
pub use sim::{SimDisk, SimDiskOptions, SimEvent, SimImage, SimLatency, SimTrace};
pub use sim_device::SimDevice;
pub use sim_faults::{FaultCounts, FaultKind, FaultRates};
pub use slow::SlowDevice;
pub use uring::{OpenError, UringDevice, create_file};
