//! What every table of a partition has in common.
//!
//! A partition is a few tables: parity groups and regions (this module), files and sessions
//! (`crate::files`). Each has a mutation type and an outcome type. The engine numbers and logs
//! mutations, and applies the committed ones in log order, on every replica.
//!
//! **What `apply` may use**: the table, the mutation, and [`ApplyContext`]. No clock, no map, no
//! device, nothing that lives in memory only: what a decision needs besides the state travels in
//! the mutation (a tick, an incarnation, which members are gone). Conditions are checked in
//! `apply`, not before: what a handler saw before it logged may have changed by then. A mutation
//! whose conditions do not hold changes nothing, and its outcome says why.
//!
//! **Snapshots** are canonical: two tables with the same contents encode to the same bytes,
//! however they came about. So replicas can be compared, and replay is tested byte by byte.

use bb_proto::{DecodeError, Fid, PartitionId, PgId, Reader, RegionIndex, SessionId, Tick};
use bb_proto::{TruncateEpoch, Writer};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What `apply` may know besides table and mutation: the same on every replica and in replay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApplyContext {
    /// The partition.
    pub partition: PartitionId,
    /// Number of the mutation in the partition's log, rising by one. Unique, so that it can serve
    /// as the source of new ids.
    pub sequence: u64,
}

/// A value with a fixed little-endian encoding.
pub trait Encoded: Sized {
    /// Adds the bytes to `out`.
    fn encode(&self, out: &mut Writer);

    /// Takes the value off the front of `reader`.
    ///
    /// # Errors
    /// [`DecodeError`]; damaged or foreign bytes never panic.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// A table of a partition. Its own encoding is its snapshot: canonical, see the module.
pub trait Table: Default + Encoded {
    /// What changes it. The encoding is what is logged.
    type Mutation: Encoded;
    /// What a change answers.
    type Outcome;

    /// Applies a mutation.
    fn apply(&mut self, context: &ApplyContext, mutation: &Self::Mutation) -> Self::Outcome;

    /// Memory that the contents take, in bytes, as counted for the budget (rule 16). Cheap: kept
    /// along, not summed up.
    fn memory_bytes(&self) -> u64;
}

/// What a partition's regions and commits ask of its file records, where it holds them: it is the
/// partition of (file, region 0). Pure functions of the table.
pub trait FileRecords {
    /// What the regions of `fid` have to know: `None` if there is no such record (never was, or
    /// dropped).
    fn region_terms(&self, fid: Fid, after: TruncateEpoch) -> Option<RegionTerms>;

    /// Registers a region, and says with what it is to be opened: nothing older than the newest truncate
    /// can cut what is not there yet. `None` if there is no such record, or no file is that large.
    fn open_region(&mut self, fid: Fid, region: RegionIndex) -> Option<RegionTerms>;

    /// A commit brought bytes up to `size` (0 for no further than they went), written under truncate
    /// epoch `epoch`: the size of the record is raised if that epoch is still the current one (rule 7).
    /// `mtime_ns` is when they were written, 0 if that is not told.
    fn raise(&mut self, fid: Fid, epoch: TruncateEpoch, size: u64, mtime_ns: i64);
}

/// What a file record tells a region that meets a file, or a newer epoch, for the first time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionTerms {
    /// log2 of the file's region size in bytes.
    pub region_log2: u8,
    /// The newest truncate epoch.
    pub epoch: TruncateEpoch,
    /// The smallest size of the truncates after the epoch asked about; `u64::MAX` if there was
    /// none.
    pub size: u64,
    /// True until the newest truncate is done on the backing file system, too.
    pub truncating: bool,
}

/// Puts one fixed value.
pub fn put_u64(out: &mut Writer, value: u64) {
    out.put(&U64::new(value));
}

/// Puts one fixed value.
pub fn put_u32(out: &mut Writer, value: u32) {
    out.put(&U32::new(value));
}

/// Puts one fixed value.
pub fn put_u8(out: &mut Writer, value: u8) {
    out.put(&value);
}

/// Puts the length of a list or byte string.
pub fn put_len(out: &mut Writer, len: usize) {
    put_u32(out, u32::try_from(len).expect("lists of a partition have fewer than 2^32 entries"));
}

/// Puts a byte string with its length before it.
pub fn put_bytes(out: &mut Writer, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.put(bytes);
}

/// Takes one value.
///
/// # Errors
/// [`DecodeError`].
pub fn take_u64(reader: &mut Reader<'_>) -> Result<u64, DecodeError> {
    Ok(reader.take::<U64>()?.get())
}

/// Takes one value.
///
/// # Errors
/// [`DecodeError`].
pub fn take_u32(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    Ok(reader.take::<U32>()?.get())
}

/// Takes one value.
///
/// # Errors
/// [`DecodeError`].
pub fn take_u8(reader: &mut Reader<'_>) -> Result<u8, DecodeError> {
    Ok(*reader.take::<u8>()?)
}

/// Takes a truth value.
///
/// # Errors
/// [`DecodeError`].
pub fn take_bool(reader: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match take_u8(reader)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Field("bool")),
    }
}

/// Takes the length of a list.
///
/// # Errors
/// [`DecodeError`].
pub fn take_len(reader: &mut Reader<'_>) -> Result<usize, DecodeError> {
    usize::try_from(take_u32(reader)?).map_err(|_| DecodeError::Field("length"))
}

/// Takes a byte string with its length before it.
///
/// # Errors
/// [`DecodeError`].
pub fn take_bytes<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let len = take_len(reader)?;
    reader.take_bytes(len)
}

/// Puts a list with its length before it.
pub fn put_list<T: Encoded>(out: &mut Writer, list: &[T]) {
    put_len(out, list.len());
    for item in list {
        item.encode(out);
    }
}

/// Takes a list with its length before it.
///
/// # Errors
/// [`DecodeError`].
pub fn take_list<T: Encoded>(reader: &mut Reader<'_>) -> Result<Vec<T>, DecodeError> {
    let len = take_len(reader)?;
    // Grows as it is read: a damaged length must not reserve memory.
    let mut list = Vec::new();
    for _ in 0..len {
        list.push(T::decode(reader)?);
    }
    Ok(list)
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct PgIdRecord {
    slot: U64,
    session: U64,
    sequence: U32,
    home: U32,
}

const _: () = assert!(size_of::<PgIdRecord>() == 24);

impl Encoded for PgId {
    fn encode(&self, out: &mut Writer) {
        out.put(&PgIdRecord {
            slot: U64::new(self.slot.0),
            session: U64::new(self.session.0),
            sequence: U32::new(self.sequence),
            home: U32::new(self.home.0),
        });
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let record: &PgIdRecord = reader.take()?;
        Ok(Self {
            slot: Tick(record.slot.get()),
            session: SessionId(record.session.get()),
            sequence: record.sequence.get(),
            home: PartitionId(record.home.get()),
        })
    }
}

impl Encoded for Fid {
    fn encode(&self, out: &mut Writer) {
        out.put(&self.0.to_le_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(u128::from_le_bytes(*reader.take::<[u8; 16]>()?)))
    }
}
