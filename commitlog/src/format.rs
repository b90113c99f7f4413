//! The format on the device, version 1. All numbers are little-endian.
//!
//! ```text
//! offset           bytes       what
//! 0                2 MiB       superblock, even generations, first copy
//! 2 MiB            2 MiB       superblock, even generations, second copy
//! 4 MiB            2 MiB       superblock, odd generations, first copy
//! 6 MiB            2 MiB       superblock, odd generations, second copy
//! 8 MiB            ring_bytes  the ring: groups, each at a multiple of 4 KiB
//! ```
//!
//! A superblock is one [`SuperblockHeader`] block followed by the stream table
//! ([`StreamEntry`] each), all under one CRC. Two generations, so that a torn write leaves the one
//! before; two copies of each, so that one rotten block costs nothing.
//!
//! A group is written with one write. It is a [`GroupHeader`], `external_count` times
//! [`ExternalEntry`], then records; `written_bytes` are on the device (filled up with zeros to
//! 4 KiB), the next group begins `span_bytes` further (more than was written where the rest of a
//! lap is skipped). A group never straddles the end of the ring, a record never its group.
//!
//! A record is a [`RecordHeader`] and its payload, filled up with zeros to 8 bytes.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version that this release writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// First bytes of a superblock.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"BBLOGSB\0";
/// First bytes of a group.
pub const GROUP_MAGIC: [u8; 8] = *b"BBLOGGR\0";
/// Distance between superblock copies, in bytes.
pub const SUPERBLOCK_STRIDE: u64 = 2 << 20;
const SUPERBLOCK_ROOM: usize = 2 << 20;
/// Copies of the superblock: two of each of two generations.
pub const SUPERBLOCK_COPIES: u64 = 4;
/// Where the ring begins, in bytes.
pub const RING_OFFSET: u64 = SUPERBLOCK_STRIDE * SUPERBLOCK_COPIES;
/// Unit of groups, in bytes.
pub const BLOCK: usize = 4096;
/// Streams that the table has room for.
pub const STREAMS_MAX: usize = 65_536;
/// "External durable through" pairs that a group has room for.
pub const EXTERNALS_MAX: usize = 64;

const _: () = assert!(BLOCK as u64 == bb_nvme::BLOCK_BYTES);
const _: () = assert!(size_of::<SuperblockHeader>() == 192);
const _: () = assert!(size_of::<StreamEntry>() == 24);
const _: () = assert!(size_of::<GroupHeader>() == 128);
const _: () = assert!(size_of::<ExternalEntry>() == 16);
const _: () = assert!(size_of::<RecordHeader>() == 24);
const _: () = assert!(size_of::<ChunkHeader>() == 16);
const _: () = assert!(size_of::<SnapshotEnd>() == 24);
const _: () = assert!(SUPERBLOCK_ROOM as u64 == SUPERBLOCK_STRIDE);
const _: () = assert!(BLOCK + STREAMS_MAX * size_of::<StreamEntry>() <= SUPERBLOCK_ROOM);
const _: () = assert!(
    size_of::<GroupHeader>() + EXTERNALS_MAX * size_of::<ExternalEntry>() <= BLOCK,
    "a group's header area must fit its first block"
);

/// Head of a superblock.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct SuperblockHeader {
    /// [`SUPERBLOCK_MAGIC`]: tells a log from anything else.
    pub magic: [u8; 8],
    /// [`VERSION`]: a newer one is refused.
    pub version: U32,
    /// CRC32C of this block with this field zero, and of the table: torn writes, rot.
    pub crc: U32,
    /// Rises by one with each superblock written; the newest whole one counts.
    pub generation: U64,
    /// Names the log: groups of an older log on the same device don't match.
    pub log_uuid: [u8; 16],
    /// Names the cluster: a log of another cluster is refused.
    pub cluster_uuid: [u8; 16],
    /// Shared with the data devices: a log of other devices is refused.
    pub nonce: U64,
    /// Size of the device when it was formatted: a truncated or swapped device is refused.
    pub device_bytes: U64,
    /// Where the ring begins.
    pub ring_offset: U64,
    /// Size of the ring.
    pub ring_bytes: U64,
    /// Largest group; bounds what a reader must hold.
    pub group_bytes_max: U32,
    /// Entries of the table.
    pub stream_count: U32,
    /// Process starts so far: an incarnation's groups differ from those that a crash cut off.
    pub incarnation: U64,
    /// LSN of the oldest group that is still needed; replay begins there.
    pub trim: U64,
    /// All below was durable when this was written, and the table is as of here: a log that ends
    /// before is damaged.
    pub durable_through: U64,
    /// When the log was formatted, in nanoseconds since 1970 (for people).
    pub formatted_at: U64,
    /// Zero.
    pub reserved: [u8; 64],
}

/// A stream's start in the superblock's table.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct StreamEntry {
    /// The stream.
    pub stream: U64,
    /// LSN of its snapshot, or of its first record.
    pub start: U64,
    /// Bytes from the beginning of the group to that record.
    pub within_group: U32,
    /// [`START_IS_SNAPSHOT`]: a snapshot whose end went missing is damage.
    pub flags: U32,
}

/// The record begins a snapshot that is whole.
pub const START_IS_SNAPSHOT: u32 = 1;

/// Head of a group.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct GroupHeader {
    /// [`GROUP_MAGIC`]: what is not a group at all.
    pub magic: [u8; 8],
    /// [`VERSION`]: a newer one is refused.
    pub version: U32,
    /// Size of this header with the external entries.
    pub header_bytes: U16,
    /// External entries that follow.
    pub external_count: U16,
    /// Names the log: groups of an older log on the same device.
    pub log_uuid: [u8; 16],
    /// The superblock's nonce: groups of another format of the same log.
    pub nonce: U64,
    /// Process start that wrote it: groups that a crash had cut off.
    pub incarnation: U64,
    /// Rises by one with each group: a group that is missing.
    pub sequence: U64,
    /// Its position (the lap is `lsn / ring_bytes`): groups of an earlier lap, misdirected writes.
    pub lsn: U64,
    /// All below was durable when this was submitted: what is missing there is damage, not a torn
    /// tail.
    pub durable_through: U64,
    /// The superblock's trim point when this was submitted: a superblock that fell back.
    pub trim: U64,
    /// Distance to the next group.
    pub span_bytes: U32,
    /// Bytes on the device.
    pub written_bytes: U32,
    /// Bytes of records after the header.
    pub payload_bytes: U32,
    /// Records in it.
    pub record_count: U32,
    /// `header_crc` of the group before: a stale group behind a torn tail never joins the log.
    pub previous_crc: U32,
    /// CRC32C of the records: torn writes, rot.
    pub payload_crc: U32,
    /// CRC32C of the header (with this field zero) and the external entries.
    pub header_crc: U32,
    /// Zero.
    pub reserved: [u8; 20],
}

/// "Everything up to this LSN is durable elsewhere", with a tag that only the caller understands.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct ExternalEntry {
    /// The caller's tag.
    pub tag: U64,
    /// The LSN.
    pub through: U64,
}

/// Head of a record.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RecordHeader {
    /// Bytes of payload.
    pub payload_bytes: U32,
    /// A [`RecordType`].
    pub record_type: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// The stream.
    pub stream: U64,
    /// CRC32C of this header (with this field zero) and the payload: damage in memory between
    /// append and group, and after the group was verified.
    pub crc: U32,
    /// Zero.
    pub reserved_2: U32,
}

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[repr(u8)]
pub enum RecordType {
    /// The caller's.
    Data = 1,
    /// A snapshot of the stream, as of here, follows in chunks. Payload: its size (8 bytes).
    SnapshotBegin = 2,
    /// A piece of a snapshot. Payload: [`ChunkHeader`], bytes.
    SnapshotChunk = 3,
    /// The snapshot is whole. Payload: [`SnapshotEnd`].
    SnapshotEnd = 4,
    /// The stream holds nothing any more.
    Retire = 5,
}

impl RecordType {
    /// The type with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Data, Self::SnapshotBegin, Self::SnapshotChunk, Self::SnapshotEnd, Self::Retire]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// Head of a chunk's payload.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct ChunkHeader {
    /// LSN of the snapshot's begin: a chunk of a snapshot that was given up.
    pub begin: U64,
    /// Bytes of the snapshot before this chunk.
    pub offset: U64,
}

/// Payload of a snapshot's end.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct SnapshotEnd {
    /// LSN of the snapshot's begin.
    pub begin: U64,
    /// Size of the snapshot.
    pub total_bytes: U64,
    /// CRC32C of the snapshot: a missing or repeated chunk.
    pub crc: U32,
    /// Zero.
    pub reserved: U32,
}

/// Bytes that a record with this payload takes.
pub(crate) const fn framed_bytes(payload_bytes: usize) -> usize {
    size_of::<RecordHeader>() + payload_bytes.next_multiple_of(8)
}

/// A `usize` in a format's `u32`.
pub(crate) fn le32(value: usize) -> U32 {
    U32::new(u32::try_from(value).expect("sizes within a group fit 32 bits"))
}

/// A format's `u32` as a size.
pub(crate) fn size(value: U32) -> usize {
    value.get() as usize
}
