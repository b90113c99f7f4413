//! ISA-L: Reed-Solomon over GF(2^8) with a Cauchy matrix.
//!
//! Every square submatrix of a Cauchy matrix can be inverted, so any N blocks of a group give back
//! the rest. (ISA-L's other generator, a Vandermonde one, can't promise that for K > 3.)

mod ffi;
mod tables;

use std::cell::RefCell;
use std::ops::Range;
use std::ptr;
use std::sync::OnceLock;

use self::tables::{DecodeCache, DecodeKey, EncodeTables, Tables};
use crate::codec::{check_encode, check_reconstruct};
use crate::geometry::{MAX_DATA, MAX_PARITY};
use crate::{Codec, CodecId, ErasureError, Geometry};

pub(crate) use self::ffi::crc32c_append;

/// The codec, with the encoding tables of each geometry that was used so far.
pub(crate) struct Isal {
    encode: EncodeTables,
}

/// The process's one instance.
pub(crate) fn isal() -> &'static Isal {
    static ISAL: OnceLock<Isal> = OnceLock::new();
    ISAL.get_or_init(|| Isal { encode: EncodeTables::default() })
}

thread_local! {
    /// Per reactor, so that a degraded read takes no lock.
    static DECODE: RefCell<DecodeCache> = RefCell::default();
}

impl Codec for Isal {
    fn id(&self) -> CodecId {
        CodecId::ISAL
    }

    fn name(&self) -> &'static str {
        "isal"
    }

    fn encode_columns(
        &self,
        geometry: Geometry,
        data: &[&[u8]],
        parity: &mut [&mut [u8]],
        columns: Range<usize>,
    ) -> Result<(), ErasureError> {
        check_encode(geometry, data, parity, &columns)?;
        if geometry.parity() == 0 {
            return Ok(());
        }
        let mut sources = [ptr::null::<u8>(); MAX_DATA];
        for (source, block) in sources.iter_mut().zip(data) {
            *source = block[columns.clone()].as_ptr();
        }
        let mut targets = [ptr::null_mut::<u8>(); MAX_PARITY];
        for (target, block) in targets.iter_mut().zip(parity.iter_mut()) {
            *target = block[columns.clone()].as_mut_ptr();
        }
        let tables = self.encode.get(geometry);
        // SAFETY: each pointer was just made from a slice of `columns.len()` bytes, N of them
        // shared and K of them exclusive, and they live until the call returns.
        unsafe { multiply(tables, columns.len(), &sources, &targets) };
        Ok(())
    }

    fn reconstruct(
        &self,
        geometry: Geometry,
        present: &[Option<&[u8]>],
        wanted: &[usize],
        out: &mut [&mut [u8]],
    ) -> Result<(), ErasureError> {
        let plan = check_reconstruct(geometry, present, wanted, out)?;
        if wanted.is_empty() {
            return Ok(());
        }
        let mut sources = [ptr::null::<u8>(); MAX_DATA];
        let blocks = plan.sources().filter_map(|index| present[index]);
        for (source, block) in sources.iter_mut().zip(blocks) {
            *source = block.as_ptr();
        }
        // Tables are made for the wanted blocks in ascending order, so that the order in which a
        // caller names them makes no new cache entry.
        let wanted_mask = mask(wanted.iter().copied());
        let mut targets = [ptr::null_mut::<u8>(); MAX_PARITY];
        for (&index, block) in wanted.iter().zip(out.iter_mut()) {
            let below = wanted_mask & ((1 << index) - 1);
            targets[below.count_ones() as usize] = block.as_mut_ptr();
        }
        let key = DecodeKey { geometry, sources_mask: mask(plan.sources()), wanted_mask };
        DECODE.with_borrow_mut(|cache| {
            let tables = cache.get(key)?;
            // SAFETY: `check_reconstruct` saw that all blocks have `len_bytes` bytes; N sources
            // are shared, at most K targets exclusive borrows that outlive the call.
            unsafe { multiply(tables, plan.len_bytes, &sources, &targets) };
            Ok(())
        })
    }
}

/// Block numbers as a bit set.
fn mask(blocks: impl Iterator<Item = usize>) -> u32 {
    blocks.fold(0, |mask, index| mask | (1 << index))
}

/// targets = tables x sources.
///
/// # Safety
/// The first `tables.columns` sources and the first `tables.rows` targets point to `len_bytes`
/// readable or writable bytes, and no target overlaps another block.
unsafe fn multiply(
    tables: &Tables,
    len_bytes: usize,
    sources: &[*const u8; MAX_DATA],
    targets: &[*mut u8; MAX_PARITY],
) {
    // The library counts in `int`: a gigabyte at a time, whatever the caller brings.
    let mut done = 0;
    while done < len_bytes {
        let step = (len_bytes - done).min(1 << 30);
        let mut from = *sources;
        let mut to = *targets;
        // SAFETY: only pointers that point to `len_bytes` bytes are moved, and `done` is less.
        unsafe {
            from[..tables.columns()].iter_mut().for_each(|p| *p = p.add(done));
            to[..tables.rows()].iter_mut().for_each(|p| *p = p.add(done));
            ffi::encode_data(tables, step, &from, &to);
        }
        done += step;
    }
}
