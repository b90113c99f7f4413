//! What a client does to a full parity group: one pass over its memory.

use crate::codec::{check_encode, check_unit};
use crate::crc::{Shift, combined, crc32c_append, fetch_ahead};
use crate::{Codec, ErasureError, Geometry};

/// Width of a column. 16 + 4 of them are 320 KiB, so that a column is still in the L2 cache for the
/// encoder when its checksums are done. Other widths have not been measured yet.
pub const COLUMN_BYTES: usize = 16 * 1024;

/// CRC32Cs of all blocks of a sealed parity group, for each chunk and each block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedCrcs {
    chunks_per_block: usize,
    chunks: Vec<u32>,
    blocks: Vec<u32>,
}

impl SealedCrcs {
    /// Chunk CRC32Cs of one block (data first, then parity); the last chunk may be short.
    pub fn chunks(&self, block: usize) -> &[u32] {
        &self.chunks[block * self.chunks_per_block..][..self.chunks_per_block]
    }

    /// CRC32C of each whole block.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

/// Encodes a parity group and checksums its blocks. The memory of each column is read once from
/// DRAM: CRC32C of the N, encode the K, CRC32C of the K.
pub fn seal(
    codec: &dyn Codec,
    geometry: Geometry,
    data: &[&[u8]],
    parity: &mut [&mut [u8]],
    chunk_bytes: usize,
) -> Result<SealedCrcs, ErasureError> {
    check_unit(chunk_bytes).map_err(|_| ErasureError::BadChunk { chunk_bytes })?;
    if !chunk_bytes.is_power_of_two() {
        return Err(ErasureError::BadChunk { chunk_bytes });
    }
    let len_bytes = data.first().map_or(0, |block| block.len());
    check_encode(geometry, data, parity, &(0..len_bytes))?;

    let chunks_per_block = len_bytes.div_ceil(chunk_bytes);
    let mut chunks = vec![0; chunks_per_block * geometry.total()];
    for start in (0..len_bytes).step_by(COLUMN_BYTES) {
        let column = start..len_bytes.min(start + COLUMN_BYTES);
        // A chunk wider than a column is continued: its entry holds the CRC so far.
        let mut checksum = |block: usize, bytes: &[u8], behind: &[u8]| {
            let mut pieces = bytes.chunks(chunk_bytes).enumerate().peekable();
            while let Some((i, piece)) = pieces.next() {
                fetch_ahead(pieces.peek().map_or(behind, |(_, next)| next));
                let crc = &mut chunks[block * chunks_per_block + start / chunk_bytes + i];
                *crc = crc32c_append(*crc, piece);
            }
        };
        for (block, bytes) in data.iter().enumerate() {
            // The first chunk of the next block in this column.
            let first = start..column.end.min(start + chunk_bytes);
            let behind = data.get(block + 1).map_or(&[][..], |next| &next[first]);
            checksum(block, &bytes[column.clone()], behind);
        }
        codec.encode_columns(geometry, data, parity, column.clone())?;
        for (block, bytes) in (geometry.data()..).zip(parity.iter()) {
            checksum(block, &bytes[column.clone()], &[]);
        }
    }
    let blocks = block_crcs(&chunks, chunks_per_block, len_bytes, chunk_bytes);
    Ok(SealedCrcs { chunks_per_block, chunks, blocks })
}

/// Each block's CRC from its chunks' CRCs: a few nanoseconds per chunk, not a second pass.
fn block_crcs(chunks: &[u32], per_block: usize, len_bytes: usize, chunk_bytes: usize) -> Vec<u32> {
    let whole = Shift::of_bytes(chunk_bytes);
    let last = Shift::of_bytes(len_bytes - (per_block - 1) * chunk_bytes);
    let of_block = |crcs: &[u32]| {
        let numbered = crcs.iter().enumerate().skip(1);
        numbered.fold(crcs[0], |crc, (i, &next)| {
            combined(crc, next, if i + 1 == per_block { last } else { whole })
        })
    };
    chunks.chunks(per_block).map(of_block).collect()
}
