//! The regions of a partition.

use std::collections::{BTreeMap, BTreeSet};

use bb_proto::{Fid, RegionIndex, Tick};

use super::fragment_map::Counts;
use super::pg::{Ledger, PgTable};
use super::region::{Region, WrittenPiece};
use super::region_mutation::{RegionId, RegionMutation, RegionOutcome, RegionRefusal, Written};

/// Memory of a fragment: 16 bytes, and its share of what its leaf takes besides and has not filled
/// (measured in `tests/metadata_bytes.rs`); a placeholder counts like one.
pub const FRAGMENT_BYTES: u64 = 24;
/// Memory of a region besides its fragments, and what the room of a small leaf may cost more.
const REGION_BYTES: u64 = 448;
/// Memory of the mark that a dropped region leaves.
const DROPPED_BYTES: u64 = 64;

/// The regions of a partition.
#[derive(Default, Debug)]
pub struct RegionTable {
    pub(super) regions: BTreeMap<RegionId, Region>,
    /// Dropped regions, and when: a commit that is still on its way must not open them again. Kept
    /// until the horizon refuses every group that was sealed by then.
    pub(super) dropped: BTreeMap<RegionId, Tick>,
    pub(super) totals: Counts,
    /// Regions that have applied a truncate whose end they have not heard of.
    pub(super) truncating: BTreeSet<RegionId>,
}

impl RegionTable {
    /// A region, if it is open here.
    pub fn get(&self, id: RegionId) -> Option<&Region> {
        self.regions.get(&id)
    }

    /// All regions, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&RegionId, &Region)> {
        self.regions.iter()
    }

    /// Bytes by state, over all regions.
    pub const fn totals(&self) -> Counts {
        self.totals
    }

    /// Memory, as counted.
    pub fn memory_bytes(&self) -> u64 {
        self.totals.fragments * FRAGMENT_BYTES
            + self.regions.len() as u64 * REGION_BYTES
            + self.dropped.len() as u64 * DROPPED_BYTES
    }

    /// log2 of the region size of a file, if any region of it is open here.
    pub fn region_log2(&self, fid: Fid) -> Option<u8> {
        // Most files have region 0 here and no other: one search instead of two for a range's ends.
        let first = RegionId { fid, region: RegionIndex(0) };
        if let Some(region) = self.regions.get(&first) {
            return Some(region.region_log2());
        }
        let next = self.regions.range(first..).next().filter(|(id, _)| id.fid == fid);
        next.map(|(_, region)| region.region_log2())
    }

    /// True if the file was dropped here, as far as that still matters.
    pub fn is_dropped(&self, fid: Fid) -> bool {
        let first = RegionId { fid, region: RegionIndex(0) };
        self.dropped.range(first..).next().is_some_and(|(id, _)| id.fid == fid)
    }

    /// Regions in which a truncate is under way, in order.
    pub fn truncating(&self) -> impl Iterator<Item = RegionId> + '_ {
        self.truncating.iter().copied()
    }

    /// Changes an open region, keeping the sums along.
    pub(super) fn change<T>(
        &mut self,
        id: RegionId,
        change: impl FnOnce(&mut Region) -> T,
    ) -> Option<T> {
        let region = self.regions.get_mut(&id)?;
        let before = region.fragments.counts();
        let result = change(region);
        if region.truncating().is_some() {
            self.truncating.insert(id);
        } else {
            self.truncating.remove(&id);
        }
        self.totals.replace(&before, &region.fragments.counts());
        Some(result)
    }

    /// Marks of dropped regions up to `horizon` are not needed any more.
    pub fn forget_dropped(&mut self, horizon: Tick) {
        self.dropped.retain(|_, tick| *tick > horizon);
    }

    /// Applies a mutation; what groups lose goes to `ledger`.
    pub fn apply(
        &mut self,
        mutation: &RegionMutation,
        pgs: &PgTable,
        ledger: &mut Ledger,
    ) -> RegionOutcome {
        let not_open = RegionOutcome::Refused(RegionRefusal::NotOpen);
        match mutation {
            // Opened before by whoever has the file's record.
            RegionMutation::Open { .. } => RegionOutcome::Done,
            RegionMutation::Truncate { .. } => self.truncate(mutation, ledger),
            RegionMutation::TruncateDone { id, epoch } => {
                self.change(*id, |region| region.truncate_done(*epoch));
                RegionOutcome::Done
            }
            RegionMutation::SyncBegin { id, op, process, range } => self
                .change(*id, |region| region.sync_begin(*op, *process, *range))
                .unwrap_or(not_open),
            RegionMutation::SyncEnd { id, op, written } => {
                let written = resolve(written, pgs);
                self.change(*id, |region| region.sync_end(*op, &written)).unwrap_or(not_open)
            }
            RegionMutation::ProcessGone { process } => {
                let ids: Vec<RegionId> = self.regions.keys().copied().collect();
                let bytes =
                    ids.iter().filter_map(|id| self.change(*id, |r| r.process_gone(*process)));
                RegionOutcome::Bytes(bytes.sum())
            }
            RegionMutation::StageBegin { id, op, process, range, epoch } => self
                .change(*id, |region| {
                    if region.epoch() == *epoch {
                        region.stage_begin(*op, *process, *range)
                    } else {
                        RegionOutcome::Refused(RegionRefusal::Epoch(region.epoch()))
                    }
                })
                .unwrap_or(not_open),
            RegionMutation::StageEnd { id, op } => {
                self.change(*id, |region| region.stage_end(*op)).unwrap_or(not_open)
            }
            RegionMutation::Purge { id, range, mode } => self
                .change(*id, |region| RegionOutcome::Bytes(region.purge(*range, *mode, ledger)))
                .unwrap_or(RegionOutcome::Bytes(0)),
            RegionMutation::Drop { id, tick } => {
                let bytes = self.change(*id, |region| region.clear(ledger));
                self.regions.remove(id);
                self.truncating.remove(id);
                let mark = self.dropped.entry(*id).or_default();
                *mark = (*mark).max(*tick);
                self.forget_dropped(pgs.horizon());
                RegionOutcome::Bytes(bytes.unwrap_or(0))
            }
        }
    }

    fn truncate(&mut self, mutation: &RegionMutation, ledger: &mut Ledger) -> RegionOutcome {
        let RegionMutation::Truncate { id, region_log2, epoch, size, done } = mutation else {
            unreachable!("called for truncates");
        };
        if self.is_dropped(id.fid) {
            return RegionOutcome::Refused(RegionRefusal::Dropped);
        }
        if self.region_log2(id.fid).is_some_and(|log2| log2 != *region_log2) {
            return RegionOutcome::Refused(RegionRefusal::Invalid("another region size"));
        }
        self.regions
            .entry(*id)
            .or_insert_with(|| Region::new(*region_log2, bb_proto::TruncateEpoch(0)));
        self.change(*id, |region| region.truncate(*epoch, *size, *done, ledger));
        RegionOutcome::Done
    }
}

fn resolve(written: &[Written], pgs: &PgTable) -> Vec<WrittenPiece> {
    let resolve = |w: &Written| WrittenPiece { pg: pgs.reference(w.pg), fragment: w.fragment };
    written.iter().map(resolve).collect()
}
