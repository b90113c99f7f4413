//! The file records of a partition, and how they change.

use std::collections::BTreeMap;

use bb_proto::{DecodeError, Fid, Reader, RegionIndex, TruncateEpoch, Writer};

use super::mutation::{FileChange, FileMutation, FileOutcome, FileRefusal};
use super::record::{FileRecord, RUN_REGIONS, SyncSession, Truncate};
use crate::partition::table::{
    ApplyContext, Encoded, FileRecords, RegionTerms, Table, put_len, put_u64, take_len, take_u64,
};
use crate::planted::{self, Planted};

/// Largest offset in a file.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Whether a file may have regions of this size in that run. The last run that a number could name is
/// left out, so that what follows it has a number, too.
pub fn has_run(run: u32, region_log2: u8) -> bool {
    let first = u64::from(run) * u64::from(RUN_REGIONS);
    first <= FILE_BYTES_MAX >> region_log2 && run < u32::MAX / RUN_REGIONS
}

/// The file records of a partition.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct FileTable {
    records: BTreeMap<Fid, FileRecord>,
    /// The newest truncate epoch of any record that has gone: a file that comes back must not
    /// start below what its regions and clients have seen, also if it was truncated more often
    /// than once a tick.
    epoch_floor: TruncateEpoch,
    memory_bytes: u64,
}

impl FileTable {
    /// A record.
    pub fn get(&self, fid: Fid) -> Option<&FileRecord> {
        self.records.get(&fid)
    }

    /// All records, in order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (Fid, &FileRecord)> {
        self.records.iter().map(|(fid, record)| (*fid, record))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn remove(&mut self, fid: Fid) {
        if let Some(record) = self.records.remove(&fid) {
            self.memory_bytes -= record.memory_bytes();
            self.epoch_floor = self.epoch_floor.max(record.epoch);
        }
    }

    /// Changes a record and keeps the count of bytes.
    fn change(
        &mut self,
        fid: Fid,
        change: impl FnOnce(&mut FileRecord) -> FileOutcome,
    ) -> FileOutcome {
        let Some(record) = self.records.get_mut(&fid) else {
            return FileOutcome::Refused(FileRefusal::Unknown);
        };
        let before = record.memory_bytes();
        let outcome = change(record);
        self.memory_bytes = self.memory_bytes - before + record.memory_bytes();
        outcome
    }

    fn meet(&mut self, fid: Fid, change: &FileChange) -> FileOutcome {
        let FileChange::Meet { key, region_log2, tick, guard } = change else {
            return FileOutcome::Done;
        };
        if let Some(record) = self.records.get(&fid) {
            return if record.key != *key {
                FileOutcome::Refused(FileRefusal::OtherFile)
            } else if record.rare().dropping {
                FileOutcome::Refused(FileRefusal::Dropping)
            } else {
                FileOutcome::Done
            };
        }
        let record = FileRecord {
            key: key.clone(),
            size: guard.size,
            mtime_ns: 0,
            epoch: TruncateEpoch(tick.0.max(self.epoch_floor.0 + 1)),
            guard: *guard,
            region_log2: *region_log2,
            runs: Vec::new(),
            rare: None,
        };
        self.memory_bytes += record.memory_bytes();
        self.records.insert(fid, record);
        FileOutcome::Done
    }
}

/// A change of a record that is there.
fn apply_to(record: &mut FileRecord, change: &FileChange) -> FileOutcome {
    if record.rare().dropping && !matches!(change, FileChange::DropBegin) {
        return FileOutcome::Refused(FileRefusal::Dropping);
    }
    match change {
        FileChange::Register { run, regions } => {
            record.register(*run, *regions);
        }
        FileChange::Raise { epoch, size, mtime_ns } => raise(record, *epoch, *size, *mtime_ns),
        FileChange::Append { len } => {
            let at = record.size;
            return match at.checked_add(*len).filter(|end| *end <= FILE_BYTES_MAX) {
                Some(end) => {
                    record.size = end;
                    FileOutcome::Reserved { at }
                }
                None => FileOutcome::Refused(FileRefusal::TooLarge),
            };
        }
        FileChange::SetGuard { guard } => record.guard = *guard,
        FileChange::Rebase { guard } => {
            record.guard = *guard;
            record.size = guard.size;
            record.mtime_ns = 0;
            record.change_rare(|rare| rare.conflict = false);
        }
        FileChange::SetConflict { conflict } => {
            record.change_rare(|rare| rare.conflict = *conflict);
        }
        FileChange::SetPinned { pinned } => record.change_rare(|rare| rare.pinned = *pinned),
        FileChange::SetHidden { hidden } => record.change_rare(|rare| rare.hidden = *hidden),
        FileChange::DropBegin => record.change_rare(|rare| rare.dropping = true),
        FileChange::TruncateBegin { .. }
        | FileChange::TruncateResume { .. }
        | FileChange::TruncateDone { .. } => return truncate(record, change),
        FileChange::SyncBegin { .. } | FileChange::SyncEnd { .. } => return sync(record, change),
        FileChange::Meet { .. } | FileChange::DropEnd | FileChange::Forget => {}
    }
    FileOutcome::Done
}

/// Rule 7: a size that was reached under an old epoch was cut off since.
fn raise(record: &mut FileRecord, epoch: TruncateEpoch, size: u64, mtime_ns: i64) {
    if epoch == record.epoch || planted::is(Planted::OldSizeRaise) {
        record.size = record.size.max(size.min(FILE_BYTES_MAX));
    }
    if mtime_ns != 0 {
        record.mtime_ns = mtime_ns;
    }
}

fn truncate(record: &mut FileRecord, change: &FileChange) -> FileOutcome {
    match change {
        FileChange::TruncateBegin { size, session, sequence, process } => {
            let same = |t: &&Truncate| t.session == *session && t.sequence == *sequence;
            if let Some(begun) = record.rare().truncates.iter().find(same) {
                return FileOutcome::Truncating { epoch: begun.epoch, again: true };
            }
            if record.rare().truncating.is_some() {
                return FileOutcome::Refused(FileRefusal::Truncating);
            }
            if *size > FILE_BYTES_MAX {
                return FileOutcome::Refused(FileRefusal::TooLarge);
            }
            let epoch = TruncateEpoch(record.epoch.0 + 1);
            record.epoch = epoch;
            record.size = *size;
            // The backing file system's new time holds, until the next write.
            record.mtime_ns = 0;
            record.remember(Truncate {
                epoch,
                size: *size,
                session: *session,
                sequence: *sequence,
            });
            record.change_rare(|rare| rare.truncating = Some(*process));
            FileOutcome::Truncating { epoch, again: false }
        }
        FileChange::TruncateResume { process } => record.change_rare(|rare| {
            if rare.truncating.is_some() {
                rare.truncating = Some(*process);
            }
            FileOutcome::Done
        }),
        FileChange::TruncateDone { epoch, guard } => {
            if *epoch == record.epoch {
                record.change_rare(|rare| rare.truncating = None);
                record.guard = guard.unwrap_or(record.guard);
            }
            FileOutcome::Done
        }
        _ => FileOutcome::Done,
    }
}

fn sync(record: &mut FileRecord, change: &FileChange) -> FileOutcome {
    let current = record.rare().sync;
    match change {
        FileChange::SyncBegin { op, process } => {
            if current.is_some_and(|sync| sync.op != *op) {
                return FileOutcome::Refused(FileRefusal::Syncing);
            }
            let session = SyncSession { op: *op, process: *process };
            record.change_rare(|rare| rare.sync = Some(session));
        }
        FileChange::SyncEnd { op, guard } => {
            if current.is_none_or(|sync| sync.op != *op) {
                return FileOutcome::Refused(FileRefusal::Syncing);
            }
            record.change_rare(|rare| rare.sync = None);
            record.guard = guard.unwrap_or(record.guard);
        }
        _ => {}
    }
    FileOutcome::Done
}

impl Table for FileTable {
    type Mutation = FileMutation;
    type Outcome = FileOutcome;

    fn apply(&mut self, _context: &ApplyContext, mutation: &FileMutation) -> FileOutcome {
        let FileMutation { fid, change } = mutation;
        match change {
            FileChange::Meet { .. } => self.meet(*fid, change),
            FileChange::DropEnd => match self.records.get(fid) {
                Some(record) if !record.rare().dropping => {
                    FileOutcome::Refused(FileRefusal::Needed)
                }
                _ => {
                    self.remove(*fid);
                    FileOutcome::Done
                }
            },
            FileChange::Forget => match self.records.get(fid) {
                Some(record) if !record.is_needless() => FileOutcome::Refused(FileRefusal::Needed),
                _ => {
                    self.remove(*fid);
                    FileOutcome::Done
                }
            },
            change => self.change(*fid, |record| apply_to(record, change)),
        }
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}

impl Encoded for FileTable {
    fn encode(&self, out: &mut Writer) {
        put_u64(out, self.epoch_floor.0);
        put_len(out, self.records.len());
        for (fid, record) in &self.records {
            fid.encode(out);
            record.encode(out);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut table = Self { epoch_floor: TruncateEpoch(take_u64(reader)?), ..Self::default() };
        for _ in 0..take_len(reader)? {
            let fid = Fid::decode(reader)?;
            let record = FileRecord::decode(reader)?;
            table.memory_bytes += record.memory_bytes();
            if table.records.insert(fid, record).is_some() {
                return Err(DecodeError::Field("file twice"));
            }
        }
        Ok(table)
    }
}

impl FileRecords for FileTable {
    fn region_terms(&self, fid: Fid, after: TruncateEpoch) -> Option<RegionTerms> {
        let record = self.records.get(&fid).filter(|record| !record.rare().dropping);
        record.map(|record| record.terms(after))
    }

    fn open_region(&mut self, fid: Fid, region: RegionIndex) -> Option<RegionTerms> {
        let RegionTerms { region_log2, epoch, .. } = self.region_terms(fid, TruncateEpoch(0))?;
        let (run, index) = (region.0 / RUN_REGIONS, region.0 % RUN_REGIONS);
        if !has_run(run, region_log2) {
            return None;
        }
        self.change(fid, |record| {
            record.register(run, index + 1);
            FileOutcome::Done
        });
        self.region_terms(fid, TruncateEpoch(epoch.0.saturating_sub(1)))
    }

    fn raise(&mut self, fid: Fid, epoch: TruncateEpoch, size: u64, mtime_ns: i64) {
        self.change(fid, |record| {
            raise(record, epoch, size, mtime_ns);
            FileOutcome::Done
        });
    }
}
