//! Changes of regions, as they are logged.

use bb_proto::{
    DecodeError, Fid, Fragment, Incarnation, NodeId, OpId, PgId, Reader, RegionIndex, Tick,
    TruncateEpoch, Writer,
};

use super::table::{
    Encoded, put_list, put_u8, put_u32, put_u64, take_bool, take_list, take_u8, take_u32, take_u64,
};

/// Names a region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId {
    /// The file.
    pub fid: Fid,
    /// The region of it.
    pub region: RegionIndex,
}

/// One life of one server process: what rule 10 asks a proof of death for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProcessId {
    /// The node.
    pub node: NodeId,
    /// The life.
    pub incarnation: Incarnation,
}

impl ProcessId {
    /// A process of `node`.
    pub const fn new(node: u32, incarnation: u64) -> Self {
        Self { node: NodeId(node), incarnation: Incarnation(incarnation) }
    }
}

/// A range of a file, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First offset.
    pub start: u64,
    /// First offset behind it.
    pub end: u64,
}

/// Bytes that a sync has written to the backing file system, and from where it read them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// The group.
    pub pg: PgId,
    /// Where in the file and in the group.
    pub fragment: Fragment,
}

/// What a purge drops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PurgeMode {
    /// Nothing yet: clean bytes become deletable.
    Mark = 1,
    /// Clean and deletable bytes, and placeholders.
    Clean = 2,
    /// All bytes, also dirty and pending ones, and placeholders.
    All = 3,
}

/// A change of a region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RegionMutation {
    /// The region learns a truncate (rule 7), or the terms of a file that it has not met yet: it
    /// is opened if it is not, and cut at `size`. Once per epoch.
    Truncate {
        /// The region.
        id: RegionId,
        /// log2 of the file's region size in bytes.
        region_log2: u8,
        /// The epoch.
        epoch: TruncateEpoch,
        /// The size of the file, in bytes; `u64::MAX` where nothing was cut.
        size: u64,
        /// True if the backing file system has been truncated, too.
        done: bool,
    },
    /// A region of a file whose record is in this partition is met for the first time: it is registered
    /// there, and opened with what the record says when this is applied (rule 7). Nothing where it is
    /// open, or its file is gone.
    Open {
        /// The region.
        id: RegionId,
    },
    /// The backing file system has been truncated, too.
    TruncateDone {
        /// The region.
        id: RegionId,
        /// Up to this epoch.
        epoch: TruncateEpoch,
    },
    /// The intent of a sync (rules 9, 10): dirty bytes of the range become pending.
    SyncBegin {
        /// The region.
        id: RegionId,
        /// The operation; unique.
        op: OpId,
        /// The process that will write.
        process: ProcessId,
        /// Which bytes.
        range: Range,
    },
    /// The end of a sync.
    SyncEnd {
        /// The region.
        id: RegionId,
        /// The operation.
        op: OpId,
        /// What is safe on the backing file system: clean now, unless it changed meanwhile. The
        /// rest of what the operation made pending is dirty again. Empty after an error.
        written: Vec<Written>,
    },
    /// A process is proven gone (rule 10): what it was about to write is dirty again, what it was
    /// staging is given up. In all regions of the partition.
    ProcessGone {
        /// The process.
        process: ProcessId,
    },
    /// A prestage begins (rule 9): placeholders cover what no fragment covers.
    StageBegin {
        /// The region.
        id: RegionId,
        /// The operation; unique.
        op: OpId,
        /// The process that stages.
        process: ProcessId,
        /// Which bytes.
        range: Range,
        /// Truncate epoch at which the operation began.
        epoch: TruncateEpoch,
    },
    /// A prestage has ended: what is left of its placeholders goes.
    StageEnd {
        /// The region.
        id: RegionId,
        /// The operation.
        op: OpId,
    },
    /// Drops bytes.
    Purge {
        /// The region.
        id: RegionId,
        /// Which bytes.
        range: Range,
        /// Of which states.
        mode: PurgeMode,
    },
    /// Drops everything of the region, for good: the file is gone.
    Drop {
        /// The region.
        id: RegionId,
        /// The tick: commits of groups sealed up to it are refused.
        tick: Tick,
    },
}

/// Why a region refused. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionRefusal {
    /// The region is not open here.
    NotOpen,
    /// The file was dropped.
    Dropped,
    /// A truncate is not done on the backing file system yet.
    Truncating,
    /// Another operation of this process has an intent in the range.
    Overlap,
    /// A predecessor that is not proven gone has an intent in the range.
    PredecessorUnproven,
    /// The region is at another truncate epoch.
    Epoch(TruncateEpoch),
    /// No such operation.
    UnknownOperation,
    /// It breaks a rule.
    Invalid(&'static str),
}

/// What a change of a region answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionOutcome {
    /// Done.
    Done,
    /// Bytes that became pending, clean, covered by placeholders, or were dropped.
    Bytes(u64),
    /// A sync has ended.
    Synced {
        /// Bytes that are clean now.
        clean: u64,
        /// Bytes of the operation that are dirty (again).
        dirty_again: u64,
    },
    /// Not done.
    Refused(RegionRefusal),
}

impl Encoded for RegionId {
    fn encode(&self, out: &mut Writer) {
        self.fid.encode(out);
        put_u32(out, self.region.0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { fid: Fid::decode(reader)?, region: RegionIndex(take_u32(reader)?) })
    }
}

impl Encoded for ProcessId {
    fn encode(&self, out: &mut Writer) {
        put_u32(out, self.node.0);
        put_u64(out, self.incarnation.0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { node: NodeId(take_u32(reader)?), incarnation: Incarnation(take_u64(reader)?) })
    }
}

impl Encoded for Range {
    fn encode(&self, out: &mut Writer) {
        put_u64(out, self.start);
        put_u64(out, self.end);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { start: take_u64(reader)?, end: take_u64(reader)? })
    }
}

impl Encoded for Written {
    fn encode(&self, out: &mut Writer) {
        self.pg.encode(out);
        put_u64(out, self.fragment.offset);
        put_u32(out, self.fragment.pg_offset);
        put_u32(out, self.fragment.len);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let pg = PgId::decode(reader)?;
        let offset = take_u64(reader)?;
        let fragment = Fragment { offset, pg_offset: take_u32(reader)?, len: take_u32(reader)? };
        if offset.checked_add(u64::from(fragment.len)).is_none() {
            return Err(DecodeError::Field("written"));
        }
        Ok(Self { pg, fragment })
    }
}

impl Encoded for RegionMutation {
    fn encode(&self, out: &mut Writer) {
        match self {
            Self::Truncate { id, region_log2, epoch, size, done } => {
                put_u8(out, 1);
                id.encode(out);
                put_u8(out, *region_log2);
                put_u64(out, epoch.0);
                put_u64(out, *size);
                put_u8(out, u8::from(*done));
            }
            Self::TruncateDone { id, epoch } => {
                put_u8(out, 2);
                id.encode(out);
                put_u64(out, epoch.0);
            }
            Self::SyncBegin { id, op, process, range } => {
                put_u8(out, 3);
                id.encode(out);
                put_u64(out, op.0);
                process.encode(out);
                range.encode(out);
            }
            Self::SyncEnd { id, op, written } => {
                put_u8(out, 4);
                id.encode(out);
                put_u64(out, op.0);
                put_list(out, written);
            }
            Self::ProcessGone { process } => {
                put_u8(out, 5);
                process.encode(out);
            }
            Self::StageBegin { id, op, process, range, epoch } => {
                put_u8(out, 6);
                id.encode(out);
                put_u64(out, op.0);
                process.encode(out);
                range.encode(out);
                put_u64(out, epoch.0);
            }
            Self::StageEnd { id, op } => {
                put_u8(out, 7);
                id.encode(out);
                put_u64(out, op.0);
            }
            Self::Purge { id, range, mode } => {
                put_u8(out, 8);
                id.encode(out);
                range.encode(out);
                put_u8(out, *mode as u8);
            }
            Self::Drop { id, tick } => {
                put_u8(out, 9);
                id.encode(out);
                put_u64(out, tick.0);
            }
            Self::Open { id } => {
                put_u8(out, 10);
                id.encode(out);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = take_u8(reader)?;
        if kind == 5 {
            return Ok(Self::ProcessGone { process: ProcessId::decode(reader)? });
        }
        let id = RegionId::decode(reader)?;
        Ok(match kind {
            1 => Self::Truncate {
                id,
                region_log2: take_region_log2(reader)?,
                epoch: TruncateEpoch(take_u64(reader)?),
                size: take_u64(reader)?,
                done: take_bool(reader)?,
            },
            2 => Self::TruncateDone { id, epoch: TruncateEpoch(take_u64(reader)?) },
            3 => Self::SyncBegin {
                id,
                op: OpId(take_u64(reader)?),
                process: ProcessId::decode(reader)?,
                range: Range::decode(reader)?,
            },
            4 => Self::SyncEnd { id, op: OpId(take_u64(reader)?), written: take_list(reader)? },
            6 => Self::StageBegin {
                id,
                op: OpId(take_u64(reader)?),
                process: ProcessId::decode(reader)?,
                range: Range::decode(reader)?,
                epoch: TruncateEpoch(take_u64(reader)?),
            },
            7 => Self::StageEnd { id, op: OpId(take_u64(reader)?) },
            8 => Self::Purge { id, range: Range::decode(reader)?, mode: take_mode(reader)? },
            9 => Self::Drop { id, tick: Tick(take_u64(reader)?) },
            10 => Self::Open { id },
            _ => return Err(DecodeError::Field("region mutation")),
        })
    }
}

/// Takes the logarithm of a region size: 1 MiB to 1 TiB.
pub(super) fn take_region_log2(reader: &mut Reader<'_>) -> Result<u8, DecodeError> {
    let log2 = take_u8(reader)?;
    if (20..=40).contains(&log2) { Ok(log2) } else { Err(DecodeError::Field("region_log2")) }
}

fn take_mode(reader: &mut Reader<'_>) -> Result<PurgeMode, DecodeError> {
    match take_u8(reader)? {
        1 => Ok(PurgeMode::Mark),
        2 => Ok(PurgeMode::Clean),
        3 => Ok(PurgeMode::All),
        _ => Err(DecodeError::Field("purge mode")),
    }
}
