//! Changes of file records, as they are logged.

use bb_proto::Writer;
use bb_proto::meta::Guard;
use bb_proto::{ClientSequence, DecodeError, Fid, OpId, Reader, SessionId, Tick, TruncateEpoch};

use super::record::{HandleKey, RUN_REGIONS, put_guard, put_i64, take_guard, take_i64};
use crate::partition::region_mutation::ProcessId;
use crate::partition::table::{
    Encoded, put_u8, put_u32, put_u64, take_bool, take_u8, take_u32, take_u64,
};

/// A change of one file's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileMutation {
    /// The file.
    pub fid: Fid,
    /// What changes.
    pub change: FileChange,
}

/// What changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileChange {
    /// The file is met: makes the record if there is none.
    Meet {
        /// Identity, which is compared as a whole.
        key: HandleKey,
        /// log2 of the region size of a new record, in bytes.
        region_log2: u8,
        /// The current tick: where the truncate epoch of a new record starts.
        tick: Tick,
        /// What the backing file system has.
        guard: Guard,
    },
    /// Registers the first regions of a run.
    Register {
        /// The run.
        run: u32,
        /// How many.
        regions: u32,
    },
    /// Raises the size, if the epoch is still the current one.
    Raise {
        /// Truncate epoch under which it was reached.
        epoch: TruncateEpoch,
        /// The size; 0 for none.
        size: u64,
        /// Modification time to take over; 0 for none.
        mtime_ns: i64,
    },
    /// Reserves room at the end.
    Append {
        /// So many bytes.
        len: u64,
    },
    /// The intent of a truncate (rule 7).
    TruncateBegin {
        /// The new size.
        size: u64,
        /// Who asks.
        session: SessionId,
        /// His number for it.
        sequence: ClientSequence,
        /// The process that will call the backing file system (rule 10).
        process: ProcessId,
    },
    /// The truncate's intent passes to another process: its own is proven gone.
    TruncateResume {
        /// The new process.
        process: ProcessId,
    },
    /// The backing file system has been truncated.
    TruncateDone {
        /// The epoch.
        epoch: TruncateEpoch,
        /// What it has now; none if the file is gone.
        guard: Option<Guard>,
    },
    /// What the backing file system has after a change of our own.
    SetGuard {
        /// That.
        guard: Guard,
    },
    /// The file changed behind our back, and no bytes of it are here: start again from that.
    Rebase {
        /// What the backing file system has.
        guard: Guard,
    },
    /// A sync session begins.
    SyncBegin {
        /// The operation.
        op: OpId,
        /// The process.
        process: ProcessId,
    },
    /// A sync session ends.
    SyncEnd {
        /// The operation.
        op: OpId,
        /// What the backing file system has now; none if that could not be read.
        guard: Option<Guard>,
    },
    /// The file changed behind our back while there was dirty data here, or that was settled.
    SetConflict {
        /// Whether there is a conflict.
        conflict: bool,
    },
    /// Exempts the file from the automatic engine, or not.
    SetPinned {
        /// Whether.
        pinned: bool,
    },
    /// The last name was removed while the file was open, or there is another name after all.
    SetHidden {
        /// Whether.
        hidden: bool,
    },
    /// The file is gone: its regions are being dropped.
    DropBegin,
    /// Every region has dropped it: the record goes.
    DropEnd,
    /// Forgets a record that says nothing any more.
    Forget,
}

/// Why a change was refused. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileRefusal {
    /// There is no record.
    Unknown,
    /// The record is of another file: this one was deleted and made again.
    OtherFile,
    /// The file is being dropped.
    Dropping,
    /// Another truncate is under way.
    Truncating,
    /// Another sync session is under way, or this one is not.
    Syncing,
    /// The file would be larger than a file can be.
    TooLarge,
    /// The record is still needed.
    Needed,
}

/// What a change answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileOutcome {
    /// Done, or had no effect that is wanted.
    Done,
    /// Room was reserved.
    Reserved {
        /// From here on.
        at: u64,
    },
    /// A truncate begins, or had begun before under the same number.
    Truncating {
        /// Its epoch.
        epoch: TruncateEpoch,
        /// True if this is a retry.
        again: bool,
    },
    /// Not done.
    Refused(FileRefusal),
}

impl Encoded for FileMutation {
    fn encode(&self, out: &mut Writer) {
        self.fid.encode(out);
        match &self.change {
            FileChange::Meet { key, region_log2, tick, guard } => {
                put_u8(out, 1);
                key.encode(out);
                put_u8(out, *region_log2);
                put_u64(out, tick.0);
                put_guard(out, guard);
            }
            FileChange::Register { run, regions } => {
                put_u8(out, 2);
                put_u32(out, *run);
                put_u32(out, *regions);
            }
            FileChange::Raise { epoch, size, mtime_ns } => {
                put_u8(out, 3);
                put_u64(out, epoch.0);
                put_u64(out, *size);
                put_i64(out, *mtime_ns);
            }
            FileChange::Append { len } => {
                put_u8(out, 4);
                put_u64(out, *len);
            }
            FileChange::TruncateBegin { size, session, sequence, process } => {
                put_u8(out, 5);
                put_u64(out, *size);
                put_u64(out, session.0);
                put_u64(out, sequence.0);
                process.encode(out);
            }
            FileChange::TruncateResume { process } => {
                put_u8(out, 6);
                process.encode(out);
            }
            FileChange::TruncateDone { epoch, guard } => {
                put_u8(out, 7);
                put_u64(out, epoch.0);
                put_maybe_guard(out, guard.as_ref());
            }
            FileChange::SetGuard { guard } => {
                put_u8(out, 8);
                put_guard(out, guard);
            }
            FileChange::Rebase { guard } => {
                put_u8(out, 9);
                put_guard(out, guard);
            }
            FileChange::SyncBegin { op, process } => {
                put_u8(out, 10);
                put_u64(out, op.0);
                process.encode(out);
            }
            FileChange::SyncEnd { op, guard } => {
                put_u8(out, 11);
                put_u64(out, op.0);
                put_maybe_guard(out, guard.as_ref());
            }
            FileChange::SetConflict { conflict } => put_flag(out, 12, *conflict),
            FileChange::SetPinned { pinned } => put_flag(out, 13, *pinned),
            FileChange::SetHidden { hidden } => put_flag(out, 14, *hidden),
            FileChange::DropBegin => put_u8(out, 15),
            FileChange::DropEnd => put_u8(out, 16),
            FileChange::Forget => put_u8(out, 17),
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let fid = Fid::decode(reader)?;
        let change = match take_u8(reader)? {
            1 => FileChange::Meet {
                key: HandleKey::decode(reader)?,
                region_log2: take_region_log2(reader)?,
                tick: Tick(take_u64(reader)?),
                guard: take_guard(reader)?,
            },
            2 => take_register(reader)?,
            3 => FileChange::Raise {
                epoch: TruncateEpoch(take_u64(reader)?),
                size: take_u64(reader)?,
                mtime_ns: take_i64(reader)?,
            },
            4 => FileChange::Append { len: take_u64(reader)? },
            5 => FileChange::TruncateBegin {
                size: take_u64(reader)?,
                session: SessionId(take_u64(reader)?),
                sequence: ClientSequence(take_u64(reader)?),
                process: ProcessId::decode(reader)?,
            },
            6 => FileChange::TruncateResume { process: ProcessId::decode(reader)? },
            7 => FileChange::TruncateDone {
                epoch: TruncateEpoch(take_u64(reader)?),
                guard: take_maybe_guard(reader)?,
            },
            8 => FileChange::SetGuard { guard: take_guard(reader)? },
            9 => FileChange::Rebase { guard: take_guard(reader)? },
            10 => FileChange::SyncBegin {
                op: OpId(take_u64(reader)?),
                process: ProcessId::decode(reader)?,
            },
            11 => FileChange::SyncEnd {
                op: OpId(take_u64(reader)?),
                guard: take_maybe_guard(reader)?,
            },
            12 => FileChange::SetConflict { conflict: take_bool(reader)? },
            13 => FileChange::SetPinned { pinned: take_bool(reader)? },
            14 => FileChange::SetHidden { hidden: take_bool(reader)? },
            15 => FileChange::DropBegin,
            16 => FileChange::DropEnd,
            17 => FileChange::Forget,
            _ => return Err(DecodeError::Field("file change")),
        };
        Ok(Self { fid, change })
    }
}

fn put_flag(out: &mut Writer, kind: u8, value: bool) {
    put_u8(out, kind);
    put_u8(out, u8::from(value));
}

fn put_maybe_guard(out: &mut Writer, guard: Option<&Guard>) {
    put_u8(out, u8::from(guard.is_some()));
    if let Some(guard) = guard {
        put_guard(out, guard);
    }
}

fn take_maybe_guard(reader: &mut Reader<'_>) -> Result<Option<Guard>, DecodeError> {
    Ok(if take_bool(reader)? { Some(take_guard(reader)?) } else { None })
}

fn take_region_log2(reader: &mut Reader<'_>) -> Result<u8, DecodeError> {
    let log2 = take_u8(reader)?;
    if (20..=40).contains(&log2) { Ok(log2) } else { Err(DecodeError::Field("region_log2")) }
}

fn take_register(reader: &mut Reader<'_>) -> Result<FileChange, DecodeError> {
    let (run, regions) = (take_u32(reader)?, take_u32(reader)?);
    let fits = run < u32::MAX / RUN_REGIONS && (1..=RUN_REGIONS).contains(&regions);
    if fits { Ok(FileChange::Register { run, regions }) } else { Err(DecodeError::Field("run")) }
}
