//! Changes behind our back: what the backing file system has is compared with what it had.

use std::rc::Rc;

use bb_proto::meta::{Guard, RegionOperation, RegionOperationReply, Residency};
use bb_proto::{Failure, Fid, Kind, RegionIndex};

use super::FileChange;
use super::peers::refusal;
use super::record::FileRecord;
use super::service::FileService;
use crate::bfs::confirmed;
use crate::partition::Partition;
use crate::planted::{self, Planted};

impl FileService {
    /// Before clean data is served after an open: drops it if the file has changed. Dirty data of
    /// a changed file makes a conflict, which the user settles. The file is locked.
    pub(super) async fn compare_guard(
        &self,
        partition: &Rc<Partition>,
        fid: Fid,
        seen: Guard,
    ) -> Result<(), Failure> {
        let Some(record) = self.record(partition, fid) else { return Ok(()) };
        if record.guard == seen || is_ours(&record) || planted::is(Planted::IgnoreGuard) {
            return Ok(());
        }
        // What the opener saw may be older than a change of our own: look again.
        let binding = self.binding(&record.key);
        let found = confirmed(&*self.parts.bfs, self.parts.bfs.stat(&binding).await).await;
        let found = found.map_err(|error| refusal(&error))?;
        let guard = Guard { size: found.size, mtime_ns: found.mtime_ns };
        let Some(record) = self.record(partition, fid) else { return Ok(()) };
        if record.guard == guard || is_ours(&record) {
            return Ok(());
        }
        let counts = self.count(fid, &record).await?;
        let size_is_ours = record.size != record.guard.size && counts.fragments == 0;
        if counts.dirty > 0 || counts.pending > 0 || size_is_ours {
            let conflict = FileChange::SetConflict { conflict: true };
            return self.change(partition, fid, conflict).await.map(drop);
        }
        self.purge(&record, fid).await?;
        // Somebody may have written meanwhile; then it is a conflict after all.
        let counts = self.count(fid, &record).await?;
        let change = if counts.dirty > 0 || counts.pending > 0 {
            FileChange::SetConflict { conflict: true }
        } else {
            FileChange::Rebase { guard }
        };
        self.change(partition, fid, change).await.map(drop)
    }

    /// Drops all clean bytes of a file.
    async fn purge(&self, record: &FileRecord, fid: Fid) -> Result<(), Failure> {
        let op = self.parts.rt.random_u64();
        let binding = self.binding(&record.key);
        let ask = |region: RegionIndex| RegionOperation {
            fid: fid.into(),
            region: region.0,
            op,
            residency: Residency::Purge.into(),
            offset: 0,
            end: u64::MAX,
            binding: binding.clone(),
            epoch: record.epoch.0,
            size: record.size,
            region_log2: u32::from(record.region_log2),
            cancel: false,
        };
        let answer = |_: RegionOperationReply| ();
        self.parts.ask_regions(Kind::RegionOperation, fid, record.regions(), ask, answer).await
    }
}

/// True while a difference is our own doing, or known already.
fn is_ours(record: &FileRecord) -> bool {
    let rare = record.rare();
    rare.sync.is_some() || rare.truncating.is_some() || rare.conflict
}
