//! One region of a file: its fragments, its truncate epoch, and what is under way in it.

use std::collections::BTreeMap;

use bb_proto::meta::FragmentState;
use bb_proto::{Fragment, OpId, TruncateEpoch};

use super::fragment_map::{FragmentMap, PgRef, Piece, Place, StageRef};
use super::pg::Ledger;
use super::region_mutation::{ProcessId, PurgeMode, Range, RegionOutcome, RegionRefusal};
use crate::planted::{self, Planted};

/// A sync that may be writing to the backing file system (rule 10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intent {
    /// Who writes.
    pub process: ProcessId,
    /// Where. Intents of a region never overlap.
    pub range: Range,
}

/// A prestage that is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage {
    /// Who stages.
    pub process: ProcessId,
    /// How its placeholders name it.
    pub local: StageRef,
}

/// What a sync has written, with the group as this partition names it (`None`: not on record any
/// more).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrittenPiece {
    /// The group.
    pub pg: Option<PgRef>,
    /// Which bytes.
    pub fragment: Fragment,
}

/// A region.
#[derive(Debug)]
pub struct Region {
    pub(super) region_log2: u8,
    pub(super) epoch: TruncateEpoch,
    /// A truncate is applied here and not done on the backing file system: it cuts here.
    pub(super) truncating: Option<u64>,
    pub(super) fragments: FragmentMap,
    pub(super) intents: BTreeMap<OpId, Intent>,
    pub(super) stages: BTreeMap<OpId, Stage>,
}

impl Region {
    /// A region without bytes, with all truncates up to `epoch` behind it.
    pub fn new(region_log2: u8, epoch: TruncateEpoch) -> Self {
        Self {
            region_log2,
            epoch,
            truncating: None,
            fragments: FragmentMap::default(),
            intents: BTreeMap::new(),
            stages: BTreeMap::new(),
        }
    }

    /// log2 of its size in bytes.
    pub const fn region_log2(&self) -> u8 {
        self.region_log2
    }

    /// The newest truncate that it has applied.
    pub const fn epoch(&self) -> TruncateEpoch {
        self.epoch
    }

    /// While a truncate is not done on the backing file system: where it cuts, in bytes.
    pub const fn truncating(&self) -> Option<u64> {
        self.truncating
    }

    /// Its fragments.
    pub const fn fragments(&self) -> &FragmentMap {
        &self.fragments
    }

    /// Syncs under way, by operation.
    pub const fn intents(&self) -> &BTreeMap<OpId, Intent> {
        &self.intents
    }

    /// Prestages under way, by operation.
    pub const fn stages(&self) -> &BTreeMap<OpId, Stage> {
        &self.stages
    }

    /// Bytes that an application wrote replace what was there.
    pub fn write(&mut self, pg: PgRef, fragment: &Fragment, ledger: &mut Ledger) {
        self.cut_out(fragment.offset, fragment.end(), ledger);
        self.put(pg, fragment, FragmentState::Dirty, ledger);
    }

    /// Bytes that a prestage brings replace what is left of its placeholders (rule 9).
    pub fn stage(&mut self, op: OpId, pg: PgRef, fragment: &Fragment, ledger: &mut Ledger) {
        if planted::is(Planted::PrestageOverwrites) {
            self.cut_out(fragment.offset, fragment.end(), ledger);
            return self.put(pg, fragment, FragmentState::Clean, ledger);
        }
        let Some(stage) = self.stages.get(&op).map(|stage| stage.local) else { return };
        let held: Vec<Piece> = self
            .fragments
            .pieces(fragment.offset, fragment.end())
            .filter(|piece| piece.place == Place::Placeholder(stage))
            .collect();
        for piece in held {
            let skipped =
                u32::try_from(piece.offset - fragment.offset).expect("within the fragment");
            let pg_offset = fragment.pg_offset + skipped;
            let part = Fragment { offset: piece.offset, pg_offset, len: piece.len };
            self.cut_out(piece.offset, piece.end(), ledger);
            self.put(pg, &part, FragmentState::Clean, ledger);
        }
    }

    fn put(&mut self, pg: PgRef, at: &Fragment, state: FragmentState, ledger: &mut Ledger) {
        let place = Place::Pg { pg, pg_offset: at.pg_offset, state };
        self.fragments.insert(Piece { offset: at.offset, len: at.len, place });
        ledger.add(pg, at.len);
    }

    fn cut_out(&mut self, start: u64, end: u64, ledger: &mut Ledger) -> u64 {
        let mut bytes = 0;
        for piece in self.fragments.remove(start, end) {
            if let Place::Pg { pg, .. } = piece.place {
                ledger.sub(pg, piece.len);
                bytes += u64::from(piece.len);
            }
        }
        bytes
    }

    /// Drops everything.
    pub fn clear(&mut self, ledger: &mut Ledger) -> u64 {
        self.intents.clear();
        self.stages.clear();
        self.cut_out(0, u64::MAX, ledger)
    }

    /// Applies a truncate, once per epoch (rule 7).
    pub fn truncate(&mut self, epoch: TruncateEpoch, size: u64, done: bool, ledger: &mut Ledger) {
        if epoch > self.epoch {
            self.cut_out(size, u64::MAX, ledger);
            self.epoch = epoch;
            // Two truncates whose ends were both missed: the backing file system may still have
            // bytes from the smaller size on.
            self.truncating = Some(self.truncating.map_or(size, |before| before.min(size)));
        }
        if done {
            self.truncate_done(epoch);
        }
    }

    /// The backing file system has been truncated up to `epoch`.
    pub fn truncate_done(&mut self, epoch: TruncateEpoch) {
        if epoch >= self.epoch {
            self.truncating = None;
        }
    }

    /// Dirty bytes of the range become pending, and the intent is on record.
    pub fn sync_begin(&mut self, op: OpId, process: ProcessId, range: Range) -> RegionOutcome {
        if let Some(refusal) = self.sync_refusal(op, process, range) {
            return RegionOutcome::Refused(refusal);
        }
        let bytes = self.fragments.set_states(range.start, range.end, |piece| match piece.place {
            Place::Pg { state: FragmentState::Dirty, .. } => Some(FragmentState::Pending),
            _ => None,
        });
        if bytes > 0 {
            self.intents.insert(op, Intent { process, range });
        }
        RegionOutcome::Bytes(bytes)
    }

    fn sync_refusal(&self, op: OpId, process: ProcessId, range: Range) -> Option<RegionRefusal> {
        if range.start >= range.end {
            return Some(RegionRefusal::Invalid("an empty range"));
        }
        if self.truncating.is_some() {
            return Some(RegionRefusal::Truncating);
        }
        if self.intents.contains_key(&op) {
            return Some(RegionRefusal::Overlap);
        }
        let overlapping = self.intents.values().filter(|intent| intent.range.overlaps(range));
        // Whose writes could land after ours: they must have ended, or their writer be gone.
        overlapping.map(|intent| intent.process == process).min().map(|ours| {
            if ours { RegionRefusal::Overlap } else { RegionRefusal::PredecessorUnproven }
        })
    }

    /// What was written and has not changed meanwhile is clean; the rest is dirty again.
    pub fn sync_end(&mut self, op: OpId, written: &[WrittenPiece]) -> RegionOutcome {
        let Some(intent) = self.intents.remove(&op) else {
            return RegionOutcome::Refused(RegionRefusal::UnknownOperation);
        };
        let mut clean = 0;
        for WrittenPiece { pg, fragment } in written {
            let start = fragment.offset.max(intent.range.start);
            let end = fragment.end().min(intent.range.end);
            clean += self.fragments.set_states(start, end, |piece| {
                let unchanged = piece.is_pending_at(*pg, fragment);
                let unchanged = unchanged || planted::is(Planted::MarkCleanChanged);
                unchanged.then_some(FragmentState::Clean)
            });
        }
        let dirty_again = self.pending_to_dirty(intent.range);
        RegionOutcome::Synced { clean, dirty_again }
    }

    fn pending_to_dirty(&mut self, range: Range) -> u64 {
        self.fragments.set_states(range.start, range.end, |piece| match piece.place {
            Place::Pg { state: FragmentState::Pending, .. } => Some(FragmentState::Dirty),
            _ => None,
        })
    }

    /// `process` is proven gone: what it was writing is dirty again, what it was staging is given
    /// up.
    pub fn process_gone(&mut self, process: ProcessId) -> u64 {
        let mut bytes = 0;
        for op in keys(&self.intents, |intent| intent.process == process) {
            if let Some(intent) = self.intents.remove(&op) {
                bytes += self.pending_to_dirty(intent.range);
            }
        }
        for op in keys(&self.stages, |stage| stage.process == process) {
            self.stage_end(op);
        }
        bytes
    }

    /// Placeholders of `op` cover what nothing covers in the range.
    pub fn stage_begin(&mut self, op: OpId, process: ProcessId, range: Range) -> RegionOutcome {
        if range.start >= range.end {
            return RegionOutcome::Refused(RegionRefusal::Invalid("an empty range"));
        }
        if range.end - range.start > 1 << self.region_log2 {
            // A placeholder is at most 4 GiB long: the whole of what offsets can say would be billions.
            let why = RegionRefusal::Invalid("a range longer than a region");
            return RegionOutcome::Refused(why);
        }
        if self.truncating.is_some() {
            return RegionOutcome::Refused(RegionRefusal::Truncating);
        }
        if self.stages.contains_key(&op) {
            return RegionOutcome::Refused(RegionRefusal::Overlap);
        }
        let gaps = self.fragments.gaps(range.start, range.end);
        if gaps.is_empty() {
            return RegionOutcome::Bytes(0);
        }
        let local = self.free_stage();
        for (start, end) in &gaps {
            let mut at = *start;
            while at < *end {
                let len = u32::try_from(end - at).unwrap_or(u32::MAX);
                let place = Place::Placeholder(local);
                self.fragments.insert(Piece { offset: at, len, place });
                at += u64::from(len);
            }
        }
        self.stages.insert(op, Stage { process, local });
        RegionOutcome::Bytes(gaps.iter().map(|(start, end)| end - start).sum())
    }

    /// The smallest local name that no stage has.
    pub(super) fn free_stage(&self) -> StageRef {
        let taken = |number: &u32| self.stages.values().any(|stage| stage.local.0 == *number);
        StageRef((0..u32::MAX).find(|number| !taken(number)).expect("fewer stages than numbers"))
    }

    /// What is left of the placeholders of `op` goes.
    pub fn stage_end(&mut self, op: OpId) -> RegionOutcome {
        let Some(stage) = self.stages.remove(&op) else {
            return RegionOutcome::Refused(RegionRefusal::UnknownOperation);
        };
        let left: Vec<Piece> = self
            .fragments
            .pieces(0, u64::MAX)
            .filter(|piece| piece.place == Place::Placeholder(stage.local))
            .collect();
        let mut bytes = 0;
        for piece in left {
            self.fragments.remove(piece.offset, piece.end());
            bytes += u64::from(piece.len);
        }
        RegionOutcome::Bytes(bytes)
    }

    /// Drops bytes of the range, or marks them for it.
    pub fn purge(&mut self, range: Range, mode: PurgeMode, ledger: &mut Ledger) -> u64 {
        let Range { start, end } = range;
        match mode {
            PurgeMode::Mark => self.fragments.set_states(start, end, |piece| match piece.place {
                Place::Pg { state: FragmentState::Clean, .. } => Some(FragmentState::Deletable),
                _ => None,
            }),
            PurgeMode::All => self.cut_out(start, end, ledger),
            PurgeMode::Clean => {
                let given_up = |piece: &Piece| match piece.place {
                    Place::Pg { state, .. } => {
                        matches!(state, FragmentState::Clean | FragmentState::Deletable)
                    }
                    // What a prestage is about to bring it may have read long ago: from the file as
                    // it was before somebody changed it behind our back, perhaps.
                    Place::Placeholder(_) => true,
                };
                let pieces: Vec<Piece> =
                    self.fragments.pieces(start, end).filter(given_up).collect();
                pieces.iter().map(|p| self.cut_out(p.offset, p.end(), ledger)).sum()
            }
        }
    }
}

impl Piece {
    /// True for pending bytes that lie where `written` says they were read from.
    fn is_pending_at(&self, written_pg: Option<PgRef>, written: &Fragment) -> bool {
        let Place::Pg { pg, pg_offset, state: FragmentState::Pending } = self.place else {
            return false;
        };
        let skipped = self.offset - written.offset;
        Some(pg) == written_pg && u64::from(pg_offset) == u64::from(written.pg_offset) + skipped
    }
}

impl Range {
    /// True if a byte is in both.
    pub const fn overlaps(&self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

fn keys<V>(map: &BTreeMap<OpId, V>, wanted: impl Fn(&V) -> bool) -> Vec<OpId> {
    map.iter().filter(|(_, value)| wanted(value)).map(|(op, _)| *op).collect()
}
