//! The seam between parity groups and the libraries that compute them.

use std::ops::Range;

use crate::geometry::MAX_TOTAL;
use crate::replication::Replication;
use crate::rs_simd::ReedSolomonSimd;
use crate::{ErasureError, Geometry};

/// Lengths and column borders are multiples of this: a cache line, and the unit in which
/// reed-solomon-simd lays out its field elements, so that columns encode like whole blocks.
pub const LENGTH_UNIT_BYTES: usize = 64;

/// Which code words a parity group holds. Recorded in each parity group: a number is never given
/// to another code, and a code whose words would change gets a new number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodecId(pub u8);

impl CodecId {
    /// 1+K copies of one block. Any copy serves a read, without a decoder.
    pub const REPLICATION: Self = Self(0);
    /// GF(2^8), polynomial 0x11d, Cauchy matrix: parity row i, column j is 1 / ((N+i) xor j).
    pub const ISAL: Self = Self(1);
    /// GF(2^16), the Leopard code as reed-solomon-simd 3 writes it.
    pub const REED_SOLOMON_SIMD: Self = Self(2);
}

/// One erasure code. All blocks of a call have the same length, a multiple of
/// [`LENGTH_UNIT_BYTES`]. Blocks are numbered data first (0..N), then parity (N..N+K).
pub trait Codec: Sync {
    /// The number recorded in parity groups.
    fn id(&self) -> CodecId;

    /// A name for people.
    fn name(&self) -> &'static str;

    /// Fills the bytes `columns` of all parity blocks from the same bytes of the data blocks. Lets
    /// a caller go over memory once, column by column, and do more with each while it is warm.
    fn encode_columns(
        &self,
        geometry: Geometry,
        data: &[&[u8]],
        parity: &mut [&mut [u8]],
        columns: Range<usize>,
    ) -> Result<(), ErasureError>;

    /// Fills the parity blocks.
    fn encode(
        &self,
        geometry: Geometry,
        data: &[&[u8]],
        parity: &mut [&mut [u8]],
    ) -> Result<(), ErasureError> {
        let len_bytes = data.first().map_or(0, |block| block.len());
        self.encode_columns(geometry, data, parity, 0..len_bytes)
    }

    /// Computes the missing blocks `wanted`, data or parity, from the present ones. `present` has
    /// N+K entries, `None` for a missing block; at least N must be there. `out[i]` gets block
    /// `wanted[i]`. Wanting a present block is an error: whoever doubts a block must not offer it.
    fn reconstruct(
        &self,
        geometry: Geometry,
        present: &[Option<&[u8]>],
        wanted: &[usize],
        out: &mut [&mut [u8]],
    ) -> Result<(), ErasureError>;
}

/// The codec that a parity group was written with.
pub fn codec(id: CodecId) -> Result<&'static dyn Codec, ErasureError> {
    match id {
        CodecId::REPLICATION => Ok(&Replication),
        #[cfg(feature = "isal")]
        CodecId::ISAL => Ok(crate::isal::isal()),
        #[cfg(not(feature = "isal"))]
        CodecId::ISAL => Err(ErasureError::NotBuilt { id, name: "isal" }),
        CodecId::REED_SOLOMON_SIMD => Ok(&ReedSolomonSimd),
        _ => Err(ErasureError::UnknownCodec { id }),
    }
}

/// The codec for new parity groups: copies when there is one data block, else the fastest built.
pub fn default_codec(geometry: Geometry) -> &'static dyn Codec {
    if geometry.data() == 1 {
        return &Replication;
    }
    #[cfg(feature = "isal")]
    return crate::isal::isal();
    #[cfg(not(feature = "isal"))]
    &ReedSolomonSimd
}

/// Checks a call of `encode_columns`.
pub(crate) fn check_encode(
    geometry: Geometry,
    data: &[&[u8]],
    parity: &[&mut [u8]],
    columns: &Range<usize>,
) -> Result<(), ErasureError> {
    check_count("data blocks", data.len(), geometry.data())?;
    check_count("parity blocks", parity.len(), geometry.parity())?;
    let len_bytes = data[0].len();
    check_unit(len_bytes)?;
    let lengths = data.iter().map(|b| b.len()).chain(parity.iter().map(|b| b.len()));
    check_equal(len_bytes, lengths)?;
    if columns.end > len_bytes {
        return Err(ErasureError::ColumnsOutOfRange { end: columns.end, len_bytes });
    }
    if !columns.start.is_multiple_of(LENGTH_UNIT_BYTES) {
        return Err(ErasureError::BadLength { len_bytes: columns.start });
    }
    check_unit(columns.end.saturating_sub(columns.start))
}

/// What a checked call of `reconstruct` comes down to.
pub(crate) struct Plan {
    /// Length of each block, in bytes.
    pub len_bytes: usize,
    /// The N blocks to compute from: data before parity, since a present data block costs a copy
    /// in the decoding matrix where a parity block costs a row of products.
    sources: [u8; MAX_TOTAL],
    sources_len: usize,
}

impl Plan {
    /// Indexes of the source blocks, ascending.
    pub fn sources(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        self.sources[..self.sources_len].iter().map(|&index| usize::from(index))
    }
}

/// Checks a call of `reconstruct` and chooses its sources.
pub(crate) fn check_reconstruct(
    geometry: Geometry,
    present: &[Option<&[u8]>],
    wanted: &[usize],
    out: &[&mut [u8]],
) -> Result<Plan, ErasureError> {
    check_count("blocks", present.len(), geometry.total())?;
    check_count("output blocks", out.len(), wanted.len())?;
    let mut wanted_mask = 0_u32;
    for &index in wanted {
        let missing = present.get(index).is_some_and(Option::is_none);
        if !missing || wanted_mask & (1 << index) != 0 {
            return Err(ErasureError::BadWanted { index });
        }
        wanted_mask |= 1 << index;
    }
    let mut plan = Plan { len_bytes: 0, sources: [0; MAX_TOTAL], sources_len: 0 };
    for (index, number) in (0..geometry.total()).zip(0_u8..) {
        if present[index].is_some() && plan.sources_len < geometry.data() {
            plan.sources[plan.sources_len] = number;
            plan.sources_len += 1;
        }
    }
    if plan.sources_len < geometry.data() {
        let present = plan.sources_len;
        return Err(ErasureError::TooFewBlocks { present, needed: geometry.data() });
    }
    plan.len_bytes = present.iter().flatten().next().map_or(0, |block| block.len());
    check_unit(plan.len_bytes)?;
    let lengths = present.iter().flatten().map(|b| b.len()).chain(out.iter().map(|b| b.len()));
    check_equal(plan.len_bytes, lengths)?;
    Ok(plan)
}

fn check_count(what: &'static str, got: usize, expected: usize) -> Result<(), ErasureError> {
    if got == expected { Ok(()) } else { Err(ErasureError::WrongCount { what, got, expected }) }
}

pub(crate) fn check_unit(len_bytes: usize) -> Result<(), ErasureError> {
    if len_bytes > 0 && len_bytes.is_multiple_of(LENGTH_UNIT_BYTES) {
        Ok(())
    } else {
        Err(ErasureError::BadLength { len_bytes })
    }
}

fn check_equal(
    expected: usize,
    mut lengths: impl Iterator<Item = usize>,
) -> Result<(), ErasureError> {
    match lengths.find(|&got| got != expected) {
        Some(got) => Err(ErasureError::UnequalLengths { got, expected }),
        None => Ok(()),
    }
}
