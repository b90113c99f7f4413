//! Applying a commit: every condition first, then every change.

use bb_proto::{Commit, Fid, Fragment, OpId, PgBody, RegionIndex};

use super::fragment_map::PgRef;
use super::pg::{Fate, HomeRecord, Ledger, Participant};
use super::pg_mutation::{CommitRecord, CommitRefusal, InlineBytes, PgOutcome};
use super::region_mutation::RegionId;
use super::state::PartitionState;
use super::table::FileRecords;
use crate::planted::{self, Planted};

/// What keeps a commit from being applied, or that it has been.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing does.
    Apply,
    /// It has been applied.
    Duplicate,
    /// This does.
    Refuse(CommitRefusal),
}

impl PartitionState {
    pub(super) fn apply_commit(&mut self, record: &CommitRecord) -> PgOutcome {
        match self.judge_commit(&record.commit) {
            Verdict::Apply => {}
            Verdict::Duplicate => return PgOutcome::Committed { duplicate: true },
            Verdict::Refuse(refusal) => return PgOutcome::Refused(refusal),
        }
        let commit = &record.commit;
        let mut ledger = Ledger::default();
        let at = self.put_on_record(record);
        // A commit that leaves no byte (all overtaken) must be noticed, too.
        ledger.add(at, 0);
        let region_log2 = self.regions.region_log2(commit.capability.fid).unwrap_or(0);
        for fragment in &commit.fragments {
            self.place_fragment(commit, at, fragment, region_log2, &mut ledger);
        }
        self.pgs.settle(&ledger);
        if commit.size_raise > 0 || commit.mtime_ns != 0 {
            let (fid, size) = (commit.capability.fid, commit.size_raise);
            self.files.raise(fid, commit.epoch, size, commit.mtime_ns);
        }
        PgOutcome::Committed { duplicate: false }
    }

    /// What a commit would meet if it were applied now.
    pub fn judge_commit(&self, commit: &Commit) -> Verdict {
        let id = commit.descriptor.pg;
        let known = match self.pgs.fate(id) {
            Some(Fate::Cancelled) => return Verdict::Refuse(CommitRefusal::Cancelled),
            Some(Fate::Gone) => true,
            None => self.pgs.reference(id).is_some(),
        };
        if known && !planted::is(Planted::ForgetCommitIds) {
            return Verdict::Duplicate;
        }
        if !known && id.slot <= self.pgs.horizon() {
            return Verdict::Refuse(CommitRefusal::BehindHorizon);
        }
        match self.region_refusal(commit) {
            Some(refusal) => Verdict::Refuse(refusal),
            None => Verdict::Apply,
        }
    }

    /// Every region that takes a fragment must be open, and at the epoch under which the bytes
    /// were written.
    fn region_refusal(&self, commit: &Commit) -> Option<CommitRefusal> {
        let fid = commit.capability.fid;
        if self.regions.is_dropped(fid) {
            return Some(CommitRefusal::FileDropped);
        }
        let Some(region_log2) = self.regions.region_log2(fid) else {
            return Some(CommitRefusal::RegionBehind(bb_proto::TruncateEpoch(0)));
        };
        let mut newest = commit.epoch;
        let mut behind = None;
        for fragment in &commit.fragments {
            let Some(id) = region_of(fid, fragment, region_log2) else {
                return Some(CommitRefusal::Invalid("a fragment crosses a region's border"));
            };
            let epoch = self.regions.get(id).map(super::region::Region::epoch);
            newest = newest.max(epoch.unwrap_or_default());
            if epoch.is_none_or(|epoch| epoch < commit.epoch) {
                behind = Some(epoch.unwrap_or_default());
            }
        }
        if planted::is(Planted::ForgetTruncateEpoch) && behind.is_none() {
            return None;
        }
        if newest > commit.epoch {
            return Some(CommitRefusal::OldEpoch(newest));
        }
        behind.map(CommitRefusal::RegionBehind)
    }

    fn put_on_record(&mut self, record: &CommitRecord) -> PgRef {
        let commit = &record.commit;
        if let Some(at) = self.pgs.reference(commit.descriptor.pg) {
            // Only reached with the planted error.
            return at;
        }
        let is_home = commit.descriptor.pg.home == self.id();
        let home = is_home.then(|| {
            let mut others: Vec<_> =
                commit.participants.iter().copied().filter(|p| *p != self.id()).collect();
            others.sort_unstable();
            others.dedup();
            let participant = |partition| Participant { partition, released: false };
            HomeRecord {
                participants: others.into_iter().map(participant).collect(),
                absent_members: record.absent_members,
                ..HomeRecord::default()
            }
        });
        let inline = match (&commit.descriptor.body, is_home) {
            (PgBody::Inline { .. }, true) => record.inline.clone(),
            _ => InlineBytes::default(),
        };
        self.pgs.insert(commit.capability.fid, commit.descriptor.clone(), home, inline)
    }

    fn place_fragment(
        &mut self,
        commit: &Commit,
        at: PgRef,
        fragment: &Fragment,
        region_log2: u8,
        ledger: &mut Ledger,
    ) {
        let fid = commit.capability.fid;
        let id = region_of(fid, fragment, region_log2).expect("judged before");
        self.regions
            .change(id, |region| {
                if commit.stage == OpId(0) {
                    region.write(at, fragment, ledger);
                } else {
                    region.stage(commit.stage, at, fragment, ledger);
                }
            })
            .expect("judged before: the region is open");
    }
}

/// The region that a fragment lies in; `None` if it crosses a border.
pub fn region_of(fid: Fid, fragment: &Fragment, region_log2: u8) -> Option<RegionId> {
    let first = fragment.offset >> region_log2;
    let last = (fragment.end() - 1) >> region_log2;
    let region = u32::try_from(first).ok().filter(|_| first == last)?;
    Some(RegionId { fid, region: RegionIndex(region) })
}
