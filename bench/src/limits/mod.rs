//! What single parts of the data path can do at most on this machine, in the run that measures the
//! whole: the machine's speed changes from hour to hour.

mod memory;
mod tcp;

use crate::floor::Fallible;

/// One measurement of each.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Copying memory that is in no cache, one core, GB/s.
    pub copy_gbps: f64,
    /// CRC32C of memory that is in no cache, one core, GB/s.
    pub crc_gbps: f64,
    /// Checksums and encoding of a 2+1 group in one pass, one core, GB/s of data.
    pub seal_2_1_gbps: f64,
    /// The same of 4+2.
    pub seal_4_2_gbps: f64,
    /// One stream over loopback TCP with our socket options, 1 MiB requests, GB/s.
    pub tcp_gbps: f64,
    /// A blocking round trip of 64 bytes between two cores, median, microseconds.
    pub round_trip_us: f64,
}

/// Measures for about a second; only for show with `small`.
///
/// # Errors
/// Of the network.
pub fn measure(small: bool) -> Fallible<Limits> {
    // More than the last level of any cache here.
    let bytes = if small { 8 << 20 } else { 256 << 20 };
    let copy_gbps = memory::copy(bytes);
    let crc_gbps = memory::crc(bytes);
    let seal_2_1_gbps = memory::seal_rate("2+1", bytes)?;
    let seal_4_2_gbps = memory::seal_rate("4+2", bytes)?;
    Ok(Limits {
        copy_gbps,
        crc_gbps,
        seal_2_1_gbps,
        seal_4_2_gbps,
        tcp_gbps: tcp::stream(bytes * 2)?,
        round_trip_us: tcp::round_trip_us()?,
    })
}
