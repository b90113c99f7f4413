//! Geometry and block sizes: what a parity group with so many bytes looks like.

use bb_erasure::{CodecId, ErasureError, Geometry, codec, default_codec};
use bb_proto::{Member, PG_DATA_BYTES_MAX, PgBody};

use crate::ReadError;

/// Up to here contents are stored as 1+K copies of one block: below it a group's cost is the number
/// of device operations, not its bytes.
pub const COPIES_BYTES_MAX: usize = 32 << 10;

const BLOCK_LOG2_MIN: u32 = 12;
const FULL_BLOCK_LOG2_MIN: u32 = 17;
const BLOCK_LOG2_MAX: u32 = 20;

/// Geometry, code and sizes of a parity group to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// N and K.
    pub geometry: Geometry,
    /// The erasure code.
    pub codec: CodecId,
    /// log2 of the block size in bytes.
    pub block_log2: u8,
    /// log2 of the chunk size in bytes.
    pub chunk_log2: u8,
}

fn log2_ceil(bytes: usize) -> u32 {
    bytes.max(1).next_power_of_two().trailing_zeros()
}

fn small(n: impl TryInto<u8>) -> u8 {
    n.try_into().unwrap_or(u8::MAX)
}

/// log2 of the chunk size: 4 KiB where the mean fragment is below 64 KiB, else 16 KiB.
pub fn chunk_log2_for(used_bytes: usize, fragments: usize) -> u8 {
    if used_bytes / fragments.max(1) < 64 << 10 { 12 } else { 14 }
}

impl Shape {
    /// The shape of a full group: blocks of 2 MiB / N, rounded up to a power of two, from 128 KiB
    /// to 1 MiB.
    pub fn full(geometry: Geometry, chunk_log2: u8) -> Self {
        let log2 = log2_ceil(PG_DATA_BYTES_MAX.div_ceil(geometry.data()))
            .clamp(FULL_BLOCK_LOG2_MIN, BLOCK_LOG2_MAX);
        Self::with(geometry, log2, chunk_log2)
    }

    /// The smallest shape of at most this geometry that holds `used_bytes`: copies of one block for
    /// little, else N blocks as small as they may be.
    pub fn fit(geometry: Geometry, used_bytes: usize, chunk_log2: u8) -> Self {
        if used_bytes <= COPIES_BYTES_MAX
            && let Ok(copies) = Geometry::new(1, small(geometry.parity()))
        {
            return Self::with(copies, log2_ceil(used_bytes).max(BLOCK_LOG2_MIN), chunk_log2);
        }
        let log2 = log2_ceil(used_bytes.div_ceil(geometry.data()));
        Self::with(geometry, log2.clamp(BLOCK_LOG2_MIN, BLOCK_LOG2_MAX), chunk_log2)
    }

    fn with(geometry: Geometry, block_log2: u32, chunk_log2: u8) -> Self {
        let block_log2 = small(block_log2);
        let codec = default_codec(geometry).id();
        Self { geometry, codec, block_log2, chunk_log2: chunk_log2.clamp(12, block_log2) }
    }

    /// The same with the code that the cluster map names, where this build has it and it fits.
    #[must_use]
    pub fn coded(mut self, wanted: u32) -> Self {
        let wanted = u8::try_from(wanted).map_or(CodecId::REPLICATION, CodecId);
        if self.geometry.data() > 1 && wanted != CodecId::REPLICATION && codec(wanted).is_ok() {
            self.codec = wanted;
        }
        self
    }

    /// Size of a block in bytes.
    pub const fn block_bytes(&self) -> usize {
        1 << self.block_log2
    }

    /// Bytes of data that fit.
    pub const fn data_bytes(&self) -> usize {
        self.geometry.data() << self.block_log2
    }
}

/// The parts of a descriptor that matter for reading blocks, checked.
#[derive(Clone, Debug)]
pub struct BlockLayout {
    /// Geometry, code, sizes.
    pub shape: Shape,
    /// The members, by index.
    pub members: Vec<Member>,
}

impl BlockLayout {
    /// From a descriptor's body; `None` for an inline group.
    ///
    /// # Errors
    /// [`ReadError::Descriptor`] where the numbers contradict each other.
    pub fn of(body: &PgBody) -> Result<Option<Self>, ReadError> {
        let PgBody::Blocks { data, parity, codec, block_log2, chunk_log2, members } = body else {
            return Ok(None);
        };
        let geometry =
            Geometry::new(*data, *parity).map_err(|e: ErasureError| ReadError::from(e))?;
        let sizes = (12..=20).contains(block_log2) && (12..=*block_log2).contains(chunk_log2);
        if members.len() != geometry.total() || !sizes {
            return Err(ReadError::Descriptor("members or sizes do not fit the geometry".into()));
        }
        let (block_log2, chunk_log2) = (*block_log2, *chunk_log2);
        let shape = Shape { geometry, codec: CodecId(*codec), block_log2, chunk_log2 };
        Ok(Some(Self { shape, members: members.clone() }))
    }

    /// Chunks in a block.
    pub fn chunks(&self) -> u16 {
        1 << (self.shape.block_log2 - self.shape.chunk_log2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_costs_copies_of_a_small_block_and_a_full_group_two_mib() {
        let g = Geometry::new(8, 2).expect("valid");
        let tiny = Shape::fit(g, 3_901, 14);
        assert_eq!(
            (tiny.geometry.data(), tiny.geometry.parity(), tiny.block_bytes()),
            (1, 2, 4096)
        );
        assert_eq!((tiny.chunk_log2, tiny.codec), (12, CodecId::REPLICATION));
        let full = Shape::full(g, 14);
        assert_eq!((full.block_bytes(), full.data_bytes()), (256 << 10, 2 << 20));
        assert_eq!(Shape::fit(g, 2 << 20, 14), full);
        assert_eq!(Shape::full(Geometry::new(3, 1).expect("valid"), 14).block_bytes(), 1 << 20);
    }

    #[test]
    fn whatever_fits_a_full_group_fits_the_shape_that_is_chosen_for_it() {
        for g in Geometry::all() {
            let full = Shape::full(g, 14).data_bytes();
            for used in [1, 4096, 4097, 32 << 10, (32 << 10) + 1, 300_000, full - 1, full] {
                let shape = Shape::fit(g, used.min(full), 14);
                assert!(shape.data_bytes() >= used.min(full), "{g} {used}");
                assert!(shape.block_log2 <= 20 && shape.chunk_log2 <= shape.block_log2);
            }
        }
    }
}
