//! What the block store writes to the commit log, version 1. All numbers are little-endian.
//!
//! Each page of a device (a fixed range of its chunks) is a stream, so that checkpoints are small
//! and taken one page at a time; one more stream is about the device as a whole. The log frames
//! and checks every record; here is what is inside:
//!
//! ```text
//! put                head, put, CRC32C per chunk                            page stream
//! free               head, name * count                                     page stream
//! confirmed through  head, slot                                             device stream
//! snapshot of page   head, (put, log position of the put, CRCs) * count     page stream
//! snapshot of device head, slot                                             device stream
//! ```

use bb_commitlog::Lsn;
use bb_proto::{DecodeError, PartitionId, PgId, Reader, SessionId, Tick, Writer};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::space::{Address, BLOCK_LOG2_MIN, CHUNK_LOG2};
use super::table::{BlockKey, ChunkCrcs, Entry, Logs, Standing, State};

const VERSION: u8 = 1;

/// Names in one free record at the most: 28 KiB, well inside what a group of the log holds.
pub const NAMES_PER_RECORD: usize = 1000;

/// The page number of the stream about the device as a whole.
pub const DEVICE_PAGE: u32 = (1 << 24) - 1;

const KIND_PUT: u8 = 1;
const KIND_FREE: u8 = 2;
const KIND_CONFIRMED: u8 = 3;
const KIND_PAGE: u8 = 4;

const FLAG_LATE: u8 = 1;
const FLAG_CONFIRMED: u8 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    /// A newer one is refused.
    version: u8,
    kind: u8,
    /// Zero.
    reserved: [u8; 2],
    count: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct NameWire {
    slot: U64,
    session: U64,
    sequence: U32,
    home: U32,
    index: u8,
    /// Zero.
    reserved: [u8; 3],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PutWire {
    name: NameWire,
    chunk: U32,
    slot: u8,
    block_log2: u8,
    chunk_log2: u8,
    flags: u8,
}

const _: () = assert!(size_of::<Head>() == 8);
const _: () = assert!(size_of::<NameWire>() == 28);
const _: () = assert!(size_of::<PutWire>() == 36);

/// A record that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer version.
    #[error("block store record of version {0}, this program knows up to {VERSION}")]
    Newer(u8),
    /// No record of this stream.
    #[error("block store record of unknown kind {0}")]
    Kind(u8),
    /// Sizes or values that cannot be.
    #[error("block store record: {0}")]
    Decode(#[from] DecodeError),
}

impl From<BlockKey> for NameWire {
    fn from(key: BlockKey) -> Self {
        Self {
            slot: U64::new(key.pg.slot.0),
            session: U64::new(key.pg.session.0),
            sequence: U32::new(key.pg.sequence),
            home: U32::new(key.pg.home.0),
            index: key.index,
            reserved: [0; 3],
        }
    }
}

impl From<&NameWire> for BlockKey {
    fn from(wire: &NameWire) -> Self {
        let pg = PgId {
            slot: Tick(wire.slot.get()),
            session: SessionId(wire.session.get()),
            sequence: wire.sequence.get(),
            home: PartitionId(wire.home.get()),
        };
        Self { pg, index: wire.index }
    }
}

fn head(kind: u8, count: usize) -> Head {
    let count = U32::new(u32::try_from(count).expect("blocks of one page"));
    Head { version: VERSION, kind, reserved: [0; 2], count }
}

fn put_wire(entry: &Entry) -> PutWire {
    let flags = match entry.standing {
        Standing::Unconfirmed => 0,
        Standing::UnconfirmedLate => FLAG_LATE,
        Standing::Confirmed => FLAG_CONFIRMED,
    };
    PutWire {
        name: entry.key().into(),
        chunk: U32::new(entry.chunk),
        slot: entry.slot,
        block_log2: entry.block_log2,
        chunk_log2: entry.chunk_log2,
        flags,
    }
}

fn write_crcs(out: &mut Writer, crcs: &ChunkCrcs) {
    for crc in crcs.as_slice() {
        out.put(&U32::new(*crc));
    }
}

/// Bytes of a put record.
pub const fn put_bytes(chunks: usize) -> usize {
    size_of::<Head>() + size_of::<PutWire>() + 4 * chunks
}

/// Bytes of a free record.
pub const fn free_bytes(names: usize) -> usize {
    size_of::<Head>() + names * size_of::<NameWire>()
}

/// The record of a put.
pub fn encode_put(entry: &Entry) -> Vec<u8> {
    let mut out = Writer::with_capacity(put_bytes(entry.crcs.as_slice().len()));
    out.put(&head(KIND_PUT, 1)).put(&put_wire(entry));
    write_crcs(&mut out, &entry.crcs);
    out.finish()
}

/// The record of blocks that are freed.
pub fn encode_free(keys: &[BlockKey]) -> Vec<u8> {
    let mut out = Writer::with_capacity(free_bytes(keys.len()));
    out.put(&head(KIND_FREE, keys.len()));
    for key in keys {
        out.put(&NameWire::from(*key));
    }
    out.finish()
}

/// The record (and the snapshot) of the slot through which everything is confirmed.
pub fn encode_confirmed(through: Tick) -> Vec<u8> {
    let mut out = Writer::with_capacity(size_of::<Head>() + size_of::<U64>());
    out.put(&head(KIND_CONFIRMED, 1)).put(&U64::new(through.0));
    out.finish()
}

/// The snapshot of a page: what its records up to now amount to. Blocks whose put is under way
/// have their record in the log already, so they belong in; those whose free is under way don't.
pub fn encode_page<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<u8> {
    let mut out = Writer::default();
    let mut count = 0;
    for entry in entries.filter(|entry| matches!(entry.state, State::Pending | State::Live)) {
        out.put(&put_wire(entry)).put(&U64::new(entry.lsn.0));
        write_crcs(&mut out, &entry.crcs);
        count += 1;
    }
    let mut whole = Writer::default();
    whole.put(&head(KIND_PAGE, count)).put(out.finish().as_slice());
    whole.finish()
}

/// A record of a page's stream.
#[derive(Debug)]
pub enum PageRecord {
    /// A block was put.
    Put(Entry),
    /// Blocks were freed.
    Free(Vec<BlockKey>),
}

fn read_head<'a>(reader: &mut Reader<'a>) -> Result<&'a Head, RecordError> {
    let head: &Head = reader.take()?;
    if head.version == 0 || head.version > VERSION {
        return Err(RecordError::Newer(head.version));
    }
    Ok(head)
}

fn read_put(reader: &mut Reader<'_>, with_lsn: bool) -> Result<Entry, RecordError> {
    let wire: &PutWire = reader.take()?;
    let logs = Logs { block: wire.block_log2, chunk: wire.chunk_log2 };
    if !(BLOCK_LOG2_MIN..=CHUNK_LOG2).contains(&logs.block) {
        return Err(DecodeError::Field("block_log2").into());
    }
    if !(BLOCK_LOG2_MIN..=logs.block).contains(&logs.chunk) {
        return Err(DecodeError::Field("chunk_log2").into());
    }
    let lsn = if with_lsn { Lsn(reader.take::<U64>()?.get()) } else { Lsn(0) };
    let crcs = reader.take_slice::<U32>(1 << (logs.block - logs.chunk))?;
    let crcs: Vec<u32> = crcs.iter().map(|crc| crc.get()).collect();
    let address = Address { chunk: wire.chunk.get(), slot: wire.slot };
    let mut entry = Entry::new((&wire.name).into(), address, logs, crcs.as_slice().into());
    entry.lsn = lsn;
    entry.state = State::Live;
    entry.standing = match wire.flags {
        0 => Standing::Unconfirmed,
        FLAG_LATE => Standing::UnconfirmedLate,
        FLAG_CONFIRMED => Standing::Confirmed,
        _ => return Err(DecodeError::Field("flags").into()),
    };
    Ok(entry)
}

/// Reads a record of a page's stream.
///
/// # Errors
/// [`RecordError`].
pub fn decode_record(bytes: &[u8]) -> Result<PageRecord, RecordError> {
    let mut reader = Reader::new(bytes);
    let head = read_head(&mut reader)?;
    let record = match head.kind {
        KIND_PUT => PageRecord::Put(read_put(&mut reader, false)?),
        KIND_FREE => {
            let names = reader.take_slice::<NameWire>(head.count.get() as usize)?;
            PageRecord::Free(names.iter().map(BlockKey::from).collect())
        }
        kind => return Err(RecordError::Kind(kind)),
    };
    reader.finish()?;
    Ok(record)
}

/// Name of a record's kind, for people; `None` for what this version does not know.
pub fn kind_name(bytes: &[u8]) -> Option<&'static str> {
    Some(match *bytes.get(1)? {
        KIND_PUT => "put",
        KIND_FREE => "free",
        KIND_CONFIRMED => "confirmed through",
        KIND_PAGE => "page",
        _ => return None,
    })
}

/// Reads the snapshot of a page.
///
/// # Errors
/// [`RecordError`].
pub fn decode_page(bytes: &[u8]) -> Result<Vec<Entry>, RecordError> {
    let mut reader = Reader::new(bytes);
    let head = read_head(&mut reader)?;
    if head.kind != KIND_PAGE {
        return Err(RecordError::Kind(head.kind));
    }
    let entries = (0..head.count.get())
        .map(|_| read_put(&mut reader, true))
        .collect::<Result<Vec<_>, RecordError>>()?;
    reader.finish()?;
    Ok(entries)
}

/// Reads a record or the snapshot of the device's own stream.
///
/// # Errors
/// [`RecordError`].
pub fn decode_confirmed(bytes: &[u8]) -> Result<Tick, RecordError> {
    let mut reader = Reader::new(bytes);
    let head = read_head(&mut reader)?;
    if head.kind != KIND_CONFIRMED {
        return Err(RecordError::Kind(head.kind));
    }
    let through = reader.take::<U64>()?.get();
    reader.finish()?;
    Ok(Tick(through))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(sequence: u32, logs: Logs, standing: Standing) -> Entry {
        let pg = PgId {
            slot: Tick(0x0102_0304),
            session: SessionId(0x1112_1314_1516_1718),
            sequence,
            home: PartitionId(0x21),
        };
        let crcs: Vec<u32> = (0..1 << (logs.block - logs.chunk)).map(|n| 0xC0C0 + n).collect();
        let address = Address { chunk: 0x31, slot: 5 };
        let key = BlockKey { pg, index: 7 };
        let mut entry = Entry::new(key, address, logs, crcs.as_slice().into());
        entry.standing = standing;
        entry.lsn = Lsn(0x4142);
        entry
    }

    fn same(a: &Entry, b: &Entry) -> bool {
        (a.key(), a.address(), a.block_log2, a.chunk_log2, &a.crcs, a.standing)
            == (b.key(), b.address(), b.block_log2, b.chunk_log2, &b.crcs, b.standing)
    }

    #[test]
    fn the_format_never_changes_unnoticed() {
        let put = encode_put(&entry(9, Logs { block: 13, chunk: 12 }, Standing::UnconfirmedLate));
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let name = "04030201000000001817161514131211090000002100000007000000";
        assert_eq!(hex(&put), format!("0101000001000000{name}31000000050d0c01c0c00000c1c00000"));
        let key = entry(9, Logs { block: 12, chunk: 12 }, Standing::Confirmed).key();
        assert_eq!(hex(&encode_free(&[key])), format!("0102000001000000{name}"));
        assert_eq!(hex(&encode_confirmed(Tick(6))), "01030000010000000600000000000000");
    }

    #[test]
    fn a_newer_version_is_refused() {
        let mut put = encode_put(&entry(1, Logs { block: 12, chunk: 12 }, Standing::Confirmed));
        put[0] = VERSION + 1;
        assert_eq!(decode_record(&put).err(), Some(RecordError::Newer(VERSION + 1)));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            blocks in prop::collection::vec((12_u8..=20, 0_u8..9, 0_u8..3), 0..20)
        ) {
            let entries: Vec<Entry> = (0..).zip(&blocks).map(|(n, (block, less, standing))| {
                let chunk = block.saturating_sub(*less).max(12);
                let standing = match standing {
                    0 => Standing::Unconfirmed,
                    1 => Standing::UnconfirmedLate,
                    _ => Standing::Confirmed,
                };
                entry(n, Logs { block: *block, chunk }, standing)
            }).collect();
            for entry in &entries {
                let record = encode_put(entry);
                prop_assert_eq!(record.len(), put_bytes(entry.crcs.as_slice().len()));
                let Ok(PageRecord::Put(read)) = decode_record(&record) else {
                    return Err(TestCaseError::fail("not a put"));
                };
                prop_assert!(same(entry, &read));
            }
            let page = decode_page(&encode_page(entries.iter())).expect("readable");
            prop_assert_eq!(page.len(), entries.len());
            prop_assert!(page.iter().zip(&entries).all(|(a, b)| same(a, b) && a.lsn == b.lsn));
        }

        #[test]
        fn garbage_is_refused_and_never_panics(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            kind in 0_u8..6,
        ) {
            if let [version, at, ..] = bytes.as_mut_slice() {
                (*version, *at) = (VERSION, kind);
            }
            let _ = decode_record(&bytes);
            let _ = decode_page(&bytes);
            let _ = decode_confirmed(&bytes);
        }
    }
}
