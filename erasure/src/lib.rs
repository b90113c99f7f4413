//! Systematic N+K erasure codes and CRC32C.
//!
//! A parity group is N data blocks and K parity blocks of equal length. The data blocks are the
//! data (systematic): a read without failures decodes nothing. Any N of the N+K blocks give back
//! the others.
//!
//! Codecs differ in their code words, so each parity group records the [`CodecId`] that wrote it,
//! and [`codec`] finds the implementation again. [`seal`] does all that a client does to a full
//! parity group in one pass over memory.

mod codec;
mod crc;
mod error;
mod geometry;
#[cfg(feature = "isal")]
mod isal;
mod replication;
mod rs_simd;
mod seal;

pub use codec::{Codec, CodecId, LENGTH_UNIT_BYTES, codec, default_codec};
pub use crc::{crc32c, crc32c_append, crc32c_chunks};
pub use error::{ErasureError, ErrorKind};
pub use geometry::{Geometry, MAX_DATA, MAX_PARITY, MAX_TOTAL};
pub use seal::{COLUMN_BYTES, SealedCrcs, seal};
