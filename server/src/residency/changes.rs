//! Changes behind our back, when an operation on a file begins. The file is locked.

use std::rc::Rc;

use bb_proto::meta::Residency as Kind;
use bb_proto::{Code, Failure, RegionIndex};

use super::file_jobs::{FileJob, Force};
use super::file_run::guard_of;
use super::{Residency, failures};
use crate::files::FileChange;
use crate::files::record::FileRecord;
use crate::planted::{self, Planted};

impl Residency {
    /// Compares what the backing file system has with what it had. Clean bytes of a changed file
    /// are dropped; dirty ones make a conflict, which `force` settles either way. False if nothing
    /// of ours is left to be synchronized.
    pub(super) async fn settle_changes(&self, job: &Rc<FileJob>) -> Result<bool, Failure> {
        let record = self.settled_record(job)?;
        let found = self.ctx.bfs.stat(&self.binding(&record)).await;
        let mut guard = guard_of(&failures::confirm(&*self.ctx.bfs, found, "stat").await?);
        let same = record.guard == guard && !record.rare().conflict;
        if same || planted::is(Planted::IgnoreGuard) {
            return Ok(true);
        }
        let unsaved = self.unsaved(job, &record).await?.bytes > 0;
        let ours = unsaved || record.rare().conflict || record.size != record.guard.size;
        match (ours, job.force) {
            (false, _) => {
                self.purge_all(job, &record, Kind::Purge).await?;
                self.change_file(job, FileChange::Rebase { guard }).await?;
                Ok(false)
            }
            (true, Force::Stop) => {
                self.change_file(job, FileChange::SetConflict { conflict: true }).await?;
                Err(Failure::new(
                    Code::Conflict,
                    "the file was changed on the backing file system while it has dirty data \
                     here: say whose bytes win (force)",
                ))
            }
            (true, Force::Ours) => {
                self.purge_all(job, &record, Kind::Purge).await?;
                if guard.size > record.size {
                    // What was written behind our end is not ours.
                    let (bfs, binding) = (&*self.ctx.bfs, self.binding(&record));
                    let cut = bfs.truncate(&binding, record.size).await;
                    failures::confirm(bfs, cut, "truncate").await?;
                    let found = bfs.stat(&binding).await;
                    guard = guard_of(&failures::confirm(bfs, found, "stat").await?);
                }
                self.change_file(job, FileChange::SetGuard { guard }).await?;
                self.change_file(job, FileChange::SetConflict { conflict: false }).await?;
                Ok(true)
            }
            (true, Force::Theirs) => {
                self.purge_all(job, &record, Kind::PurgeDirty).await?;
                self.change_file(job, FileChange::Rebase { guard }).await?;
                Ok(false)
            }
        }
    }

    /// In all regions, whatever range the operation is for: a change behind our back may be
    /// anywhere.
    async fn purge_all(
        &self,
        job: &Rc<FileJob>,
        record: &FileRecord,
        residency: Kind,
    ) -> Result<(), Failure> {
        let last = record.size.max(record.guard.size).saturating_sub(1) >> record.region_log2;
        let held = record.regions().take_while(|region| u64::from(region.0) <= last);
        let whole = crate::partition::region_mutation::Range { start: 0, end: u64::MAX };
        let op = self.file_jobs.new_op(&self.ctx.shared);
        let purge = FileJob::new(op, job.fid, job.partition.clone(), residency, whole);
        let regions: Vec<RegionIndex> = held.collect();
        self.run_regions(&purge, &regions).await
    }
}
