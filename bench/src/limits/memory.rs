//! Memory, CRC32C and the codec, on data that comes from DRAM.

use std::hint::black_box;

use bb_erasure::{Geometry, crc32c, default_codec, seal};

use crate::floor::Fallible;
use crate::suite::clock::now;

const CHUNK_BYTES: usize = 16 << 10;

fn rate(bytes: usize, work: impl FnOnce()) -> f64 {
    let start = now();
    work();
    bytes as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// GB/s of a copy, from DRAM to DRAM.
pub fn copy(bytes: usize) -> f64 {
    let (from, mut to) = (vec![7_u8; bytes], vec![1_u8; bytes]);
    rate(bytes, || {
        to.copy_from_slice(&from);
        black_box(&to);
    })
}

/// GB/s of CRC32C.
pub fn crc(bytes: usize) -> f64 {
    let data = vec![7_u8; bytes];
    rate(bytes, || {
        black_box(crc32c(black_box(&data)));
    })
}

/// GB/s of data that is sealed in groups of 2 MiB.
pub fn seal_rate(geometry: &str, bytes: usize) -> Fallible<f64> {
    let geometry: Geometry = geometry.parse()?;
    let block_bytes = (2 << 20) / geometry.data();
    let mut groups = vec![vec![vec![7_u8; block_bytes]; geometry.total()]; bytes / (2 << 20)];
    let mut failed = None;
    let rate = rate(bytes, || {
        for group in &mut groups {
            let (data, parity) = group.split_at_mut(geometry.data());
            let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
            match seal(default_codec(geometry), geometry, &data, &mut parity, CHUNK_BYTES) {
                Ok(crcs) => {
                    black_box(crcs);
                }
                Err(error) => failed = Some(error),
            }
        }
    });
    failed.map_or(Ok(rate), |error| Err(error.into()))
}
