//! A mutation as the commit log holds it, and as replicas will send it to each other.
//!
//! ```text
//! offset  bytes  what
//!      0      4  magic "BBPR"
//!      4      1  version, 1
//!      5      1  table
//!      6      2  0
//!      8      8  configuration number under which it was numbered
//!     16      8  sequence within the partition, rising by one
//!     24      8  commit point: every mutation up to this sequence was committed
//!     32      4  length of the body
//!     36      4  CRC32C of the 36 bytes before and of the body
//!     40         the body: the mutation's own encoding
//! ```
//!
//! The log has a checksum of its own; this one goes with the record to other replicas and into
//! snapshots, where a logged tail travels along.

use bb_erasure::{crc32c, crc32c_append};
use bb_proto::{ConfigNumber, DecodeError, PartitionId, Reader};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::mutation::{Mutation, TableKind};

/// Bytes of a record before its body.
pub const RECORD_HEADER_BYTES: usize = 40;

const MAGIC: u32 = u32::from_le_bytes(*b"BBPR");
const VERSION: u8 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RecordWire {
    magic: U32,
    version: u8,
    table: u8,
    reserved: U16,
    config: U64,
    sequence: U64,
    committed: U64,
    body_len: U32,
    crc: U32,
}

const _: () = assert!(size_of::<RecordWire>() == RECORD_HEADER_BYTES);
const CRC_AT: usize = RECORD_HEADER_BYTES - 4;

/// Bytes that are not a record, or one that does not belong here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not a record, or damaged.
    #[error("partition record is damaged: {0}")]
    Damaged(&'static str),
    /// Written by a newer version.
    #[error("partition record has version {0}, this program knows up to {VERSION}")]
    Newer(u8),
    /// The body is not a mutation.
    #[error("partition record: {0}")]
    Body(#[from] DecodeError),
    /// A mutation is missing before this one.
    #[error("{partition}: record {found} follows {applied}")]
    Gap {
        /// The partition.
        partition: PartitionId,
        /// Sequence of the last one known.
        applied: u64,
        /// Sequence found.
        found: u64,
    },
}

/// A numbered mutation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Configuration under which it was numbered.
    pub config: ConfigNumber,
    /// Its number.
    pub sequence: u64,
    /// Every mutation up to this number was committed when it was logged.
    pub committed: u64,
    /// The mutation.
    pub mutation: Mutation,
}

/// What stands in the header besides the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbers {
    /// As [`Record::config`].
    pub config: ConfigNumber,
    /// As [`Record::sequence`].
    pub sequence: u64,
    /// As [`Record::committed`].
    pub committed: u64,
}

/// Writes the header of a record whose body lies behind room for it.
pub fn number_record(record: &mut [u8], numbers: Numbers, table: TableKind) {
    let (header, body) = record.split_at_mut(RECORD_HEADER_BYTES);
    let wire = RecordWire {
        magic: U32::new(MAGIC),
        version: VERSION,
        table: table as u8,
        reserved: U16::ZERO,
        config: U64::new(numbers.config.0),
        sequence: U64::new(numbers.sequence),
        committed: U64::new(numbers.committed),
        body_len: U32::new(u32::try_from(body.len()).expect("the log refuses records this long")),
        crc: U32::ZERO,
    };
    header.copy_from_slice(wire.as_bytes());
    let crc = crc32c_append(crc32c(&header[..CRC_AT]), body);
    header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(bytes);
        let wire: &RecordWire = reader.take().map_err(|_| RecordError::Damaged("too short"))?;
        let body = reader.rest();
        if wire.magic.get() != MAGIC {
            return Err(RecordError::Damaged("magic"));
        }
        if wire.version > VERSION {
            return Err(RecordError::Newer(wire.version));
        }
        if u32::try_from(body.len()) != Ok(wire.body_len.get()) {
            return Err(RecordError::Damaged("length"));
        }
        if crc32c_append(crc32c(&bytes[..CRC_AT]), body) != wire.crc.get() {
            return Err(RecordError::Damaged("checksum"));
        }
        Ok(Self {
            config: ConfigNumber(wire.config.get()),
            sequence: wire.sequence.get(),
            committed: wire.committed.get(),
            mutation: Mutation::decode_body(wire.table, body)?,
        })
    }
}
