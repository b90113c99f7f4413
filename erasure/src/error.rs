//! What can go wrong, and how a caller tells the cases apart.

use thiserror::Error;

use crate::{CodecId, Geometry};

/// What a caller can do about an [`ErasureError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The call itself was wrong: lengths, counts or indexes don't fit the geometry.
    Usage,
    /// The parity group needs a codec that this build does not have.
    CodecUnavailable,
    /// Fewer than N blocks are left: the data can't be computed.
    DataLost,
}

/// An error of this crate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ErasureError {
    /// A geometry outside 1+0..16+4.
    #[error("geometry {data}+{parity} is outside 1+0 to 16+4")]
    GeometryOutOfRange {
        /// Data blocks asked for.
        data: u8,
        /// Parity blocks asked for.
        parity: u8,
    },
    /// A geometry that isn't written N+K.
    #[error("'{text}' is not a geometry: write it as N+K, for example 8+2")]
    GeometrySyntax {
        /// What was given.
        text: String,
    },
    /// A codec id that no version up to this one has given out.
    #[error(
        "erasure codec {} is unknown to this version: it was written by a newer one", id.0
    )]
    UnknownCodec {
        /// The id that was recorded.
        id: CodecId,
    },
    /// A known codec that was left out of this build.
    #[error("erasure codec {} ({name}) is not part of this build: build with feature `{name}`", id.0)]
    NotBuilt {
        /// The id that was recorded.
        id: CodecId,
        /// Name of the codec and of the cargo feature.
        name: &'static str,
    },
    /// The codec can't do this geometry (replication has one data block).
    #[error("codec {codec} can't encode {geometry}")]
    GeometryUnsupported {
        /// Name of the codec.
        codec: &'static str,
        /// The geometry asked for.
        geometry: Geometry,
    },
    /// A list of blocks has the wrong number of entries.
    #[error("{what}: {got} given, {expected} needed")]
    WrongCount {
        /// Which list.
        what: &'static str,
        /// Entries given.
        got: usize,
        /// Entries needed.
        expected: usize,
    },
    /// Blocks of one parity group differ in length.
    #[error("blocks differ in length: {got} and {expected} bytes")]
    UnequalLengths {
        /// Length of the block that differs, in bytes.
        got: usize,
        /// Length of the first block, in bytes.
        expected: usize,
    },
    /// A length or a column border that isn't a multiple of 64 bytes, or no bytes at all.
    #[error("{len_bytes} bytes: lengths and column borders are multiples of 64 bytes, and not 0")]
    BadLength {
        /// The length or border given.
        len_bytes: usize,
    },
    /// A column range that ends behind the blocks.
    #[error("columns end at {end}, blocks at {len_bytes}")]
    ColumnsOutOfRange {
        /// End of the range.
        end: usize,
        /// Length of the blocks.
        len_bytes: usize,
    },
    /// A wanted block that doesn't exist, is wanted twice, or is given as present.
    #[error("block {index} can't be wanted: it must be one missing block of the group, named once")]
    BadWanted {
        /// The index in question.
        index: usize,
    },
    /// Chunk size for checksums that isn't a power of two of at least 64 bytes.
    #[error("checksum chunks of {chunk_bytes} bytes: must be a power of two, at least 64")]
    BadChunk {
        /// The chunk size given.
        chunk_bytes: usize,
    },
    /// Too many blocks are missing.
    #[error("{present} blocks present, {needed} needed: the parity group can't be decoded")]
    TooFewBlocks {
        /// Blocks that were given.
        present: usize,
        /// Blocks needed (N).
        needed: usize,
    },
    /// The codec library refused what we believe is valid.
    #[error("codec {codec} failed: {reason}")]
    Library {
        /// Name of the codec.
        codec: &'static str,
        /// What it said.
        reason: String,
    },
}

impl ErasureError {
    /// What a caller can do about it.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownCodec { .. } | Self::NotBuilt { .. } => ErrorKind::CodecUnavailable,
            Self::TooFewBlocks { .. } => ErrorKind::DataLost,
            _ => ErrorKind::Usage,
        }
    }
}
