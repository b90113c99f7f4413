//! reed-solomon-simd: the pure-Rust codec, always built.
//!
//! It computes in work buffers of its own: data is copied in and parity out. Columns keep those
//! copies in the cache while encoding; a decoder has a high fixed cost (transforms over 65,536
//! field elements), so it takes blocks whole.

use std::cell::RefCell;
use std::ops::Range;

use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

use crate::codec::{check_encode, check_reconstruct};
use crate::geometry::MAX_DATA;
use crate::{COLUMN_BYTES, Codec, CodecId, ErasureError, Geometry};

/// The Leopard code over GF(2^16).
pub(crate) struct ReedSolomonSimd;

const NAME: &str = "reed-solomon-simd";

thread_local! {
    /// Kept for their work buffers.
    static ENCODER: RefCell<Option<ReedSolomonEncoder>> = const { RefCell::new(None) };
    static DECODER: RefCell<Option<ReedSolomonDecoder>> = const { RefCell::new(None) };
}

impl Codec for ReedSolomonSimd {
    fn id(&self) -> CodecId {
        CodecId::REED_SOLOMON_SIMD
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn encode_columns(
        &self,
        geometry: Geometry,
        data: &[&[u8]],
        parity: &mut [&mut [u8]],
        columns: Range<usize>,
    ) -> Result<(), ErasureError> {
        check_encode(geometry, data, parity, &columns)?;
        encode(geometry, data, columns, |index, range, bytes| {
            parity[index][range].copy_from_slice(bytes);
        })
    }

    fn reconstruct(
        &self,
        geometry: Geometry,
        present: &[Option<&[u8]>],
        wanted: &[usize],
        out: &mut [&mut [u8]],
    ) -> Result<(), ErasureError> {
        let plan = check_reconstruct(geometry, present, wanted, out)?;
        let data_blocks = geometry.data();
        if present[..data_blocks].iter().all(Option::is_some) {
            return finish(geometry, plan.len_bytes, |index| present[index], wanted, out);
        }
        DECODER.with_borrow_mut(|slot| {
            let decoder = decoder(slot, geometry, plan.len_bytes)?;
            for index in plan.sources() {
                let block = present[index].unwrap_or_default();
                match index.checked_sub(data_blocks) {
                    None => decoder.add_original_shard(index, block),
                    Some(parity) => decoder.add_recovery_shard(parity, block),
                }
                .map_err(library)?;
            }
            let restored = decoder.decode().map_err(library)?;
            let data = |index: usize| present[index].or_else(|| restored.restored_original(index));
            finish(geometry, plan.len_bytes, data, wanted, out)
        })
    }
}

/// Hands out the wanted blocks, now that all data blocks are known. The decoder restores data
/// only: parity is encoded anew.
fn finish<'a>(
    geometry: Geometry,
    len_bytes: usize,
    data: impl Fn(usize) -> Option<&'a [u8]>,
    wanted: &[usize],
    out: &mut [&mut [u8]],
) -> Result<(), ErasureError> {
    let known = |index| {
        let reason = || format!("data block {index} was not restored");
        data(index).ok_or_else(|| ErasureError::Library { codec: NAME, reason: reason() })
    };
    for (&index, block) in wanted.iter().zip(out.iter_mut()) {
        if index < geometry.data() {
            block.copy_from_slice(known(index)?);
        }
    }
    if wanted.iter().all(|&index| index < geometry.data()) {
        return Ok(());
    }
    let mut blocks = [&[][..]; MAX_DATA];
    for (index, block) in blocks.iter_mut().enumerate().take(geometry.data()) {
        *block = known(index)?;
    }
    encode(geometry, &blocks[..geometry.data()], 0..len_bytes, |parity, range, bytes| {
        let index = geometry.data() + parity;
        if let Some(slot) = wanted.iter().position(|&want| want == index) {
            out[slot][range].copy_from_slice(bytes);
        }
    })
}

/// Encodes column by column; `store` gets each parity block's number, place and bytes.
fn encode(
    geometry: Geometry,
    data: &[&[u8]],
    columns: Range<usize>,
    mut store: impl FnMut(usize, Range<usize>, &[u8]),
) -> Result<(), ErasureError> {
    if geometry.parity() == 0 {
        return Ok(());
    }
    ENCODER.with_borrow_mut(|slot| {
        for start in columns.clone().step_by(COLUMN_BYTES) {
            let range = start..columns.end.min(start + COLUMN_BYTES);
            let encoder = encoder(slot, geometry, range.len())?;
            for block in data {
                encoder.add_original_shard(&block[range.clone()]).map_err(library)?;
            }
            let encoded = encoder.encode().map_err(library)?;
            for (index, bytes) in encoded.recovery_iter().enumerate() {
                store(index, range.clone(), bytes);
            }
        }
        Ok(())
    })
}

fn encoder(
    slot: &mut Option<ReedSolomonEncoder>,
    geometry: Geometry,
    len_bytes: usize,
) -> Result<&mut ReedSolomonEncoder, ErasureError> {
    let (data, parity) = (geometry.data(), geometry.parity());
    match slot {
        Some(encoder) => encoder.reset(data, parity, len_bytes).map_err(library)?,
        None => *slot = Some(ReedSolomonEncoder::new(data, parity, len_bytes).map_err(library)?),
    }
    slot.as_mut().ok_or_else(no_work_buffers)
}

fn decoder(
    slot: &mut Option<ReedSolomonDecoder>,
    geometry: Geometry,
    len_bytes: usize,
) -> Result<&mut ReedSolomonDecoder, ErasureError> {
    let (data, parity) = (geometry.data(), geometry.parity());
    match slot {
        Some(decoder) => decoder.reset(data, parity, len_bytes).map_err(library)?,
        None => *slot = Some(ReedSolomonDecoder::new(data, parity, len_bytes).map_err(library)?),
    }
    slot.as_mut().ok_or_else(no_work_buffers)
}

fn no_work_buffers() -> ErasureError {
    ErasureError::Library { codec: NAME, reason: "no work buffers".to_owned() }
}

fn library(error: reed_solomon_simd::Error) -> ErasureError {
    ErasureError::Library { codec: NAME, reason: error.to_string() }
}
