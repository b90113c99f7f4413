//! A parity group with its parity and checksums, ready to be written, also more than once.

use bb_erasure::{codec, crc32c, seal};
use bb_proto::{DeviceId, Member, PgBody, PgDescriptor, PgId};
use bb_runtime::{Buf, BufMut};

use crate::WriteError;
use crate::layout::Shape;

/// N+K blocks and their checksums. Keeps the memory of the data until it is dropped, so that the
/// group can be written again under a new id.
#[derive(Debug)]
pub struct Sealed {
    /// Geometry, code, sizes.
    pub shape: Shape,
    blocks: Vec<Buf>,
    chunk_crcs: Vec<Vec<u32>>,
    member_crcs: Vec<u32>,
}

impl Sealed {
    /// Checksums and encodes in one pass over memory. `data` are N buffers of one block each, zeros
    /// behind the bytes in use; `parity` are K buffers of at least a block, contents undefined.
    ///
    /// # Errors
    /// [`WriteError::Erasure`] where counts or lengths do not fit the shape.
    pub fn new(shape: Shape, data: Vec<Buf>, mut parity: Vec<BufMut>) -> Result<Self, WriteError> {
        for buf in &mut parity {
            buf.set_len(shape.block_bytes());
        }
        let sources: Vec<&[u8]> = data.iter().map(|b| &b[..]).collect();
        let mut sinks: Vec<&mut [u8]> = parity.iter_mut().map(|b| &mut b[..]).collect();
        let code = codec(shape.codec)?;
        let chunk_bytes = 1 << shape.chunk_log2;
        let crcs = seal(code, shape.geometry, &sources, &mut sinks, chunk_bytes)?;
        let mut blocks = data;
        blocks.extend(parity.into_iter().map(BufMut::freeze));
        let chunk_crcs: Vec<Vec<u32>> =
            (0..blocks.len()).map(|block| crcs.chunks(block).to_vec()).collect();
        let member_crcs = chunk_crcs.iter().map(|crcs| member_crc(crcs)).collect();
        Ok(Self { shape, blocks, chunk_crcs, member_crcs })
    }

    /// A block, data before parity.
    pub fn block(&self, index: usize) -> &Buf {
        &self.blocks[index]
    }

    /// CRC32Cs of the chunks of a block.
    pub fn chunk_crcs(&self, index: usize) -> &[u32] {
        &self.chunk_crcs[index]
    }

    /// The group's descriptor with these members, in order of their blocks.
    pub(crate) fn descriptor(&self, pg: PgId, devices: &[DeviceId]) -> PgDescriptor {
        let members = devices.iter().zip(&self.member_crcs);
        let count = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
        PgDescriptor {
            pg,
            body: PgBody::Blocks {
                data: count(self.shape.geometry.data()),
                parity: count(self.shape.geometry.parity()),
                codec: self.shape.codec.0,
                block_log2: self.shape.block_log2,
                chunk_log2: self.shape.chunk_log2,
                members: members.map(|(&device, &crc)| Member { device, crc }).collect(),
            },
        }
    }
}

/// The CRC32C of a member: over the little-endian CRC32Cs of its chunks.
pub(crate) fn member_crc(chunk_crcs: &[u32]) -> u32 {
    let bytes: Vec<u8> = chunk_crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect();
    crc32c(&bytes)
}
