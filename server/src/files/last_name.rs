//! The last name of a file is gone: its data goes with it, once nobody has it open and the backing
//! file system agrees (rules 8 and 11). Also what goes on after a restart.

use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::{FileDrop, RegionName};
use bb_proto::{Code, Failure, Fid, Kind, RegionIndex};

use super::FileChange;
use super::peers::{hidden_name, refusal};
use super::service::FileService;
use crate::bfs::BfsError;
use crate::partition::Partition;
use crate::planted::{self, Planted};

/// Pause between attempts in the background.
const RETRY: Duration = Duration::from_secs(1);

impl FileService {
    pub(super) async fn last_name_gone(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        ask: &FileDrop,
    ) -> Result<(), Failure> {
        let fid = Fid::from(ask.fid);
        let _lock = self.locks.lock(fid).await;
        // Without a record nobody had it open, and nothing of it is here.
        let Some(record) = self.record(partition, fid) else { return Ok(()) };
        if self.binding(&record.key) != ask.binding {
            return Ok(());
        }
        if self.opens.is_open(fid, self.parts.rt.now()) && !record.rare().dropping {
            if !record.rare().hidden {
                self.change(partition, fid, FileChange::SetHidden { hidden: true }).await?;
            }
            // After the grace, or with the last close.
            self.finish_later(partition, fid);
            return Ok(());
        }
        self.drop_file(partition, fid).await
    }

    async fn remove_hidden(&self, fid: Fid) -> Result<(), Failure> {
        let removed = self.parts.bfs.remove_hidden(&hidden_name(fid)).await;
        removed.map_err(|error| refusal(&error))
    }

    /// Drops a file that nobody has open, if it has no name on the backing file system. The file
    /// is locked.
    pub(super) async fn drop_file(
        &self,
        partition: &Rc<Partition>,
        fid: Fid,
    ) -> Result<(), Failure> {
        let Some(record) = self.record(partition, fid) else { return Ok(()) };
        if !record.rare().dropping {
            if !planted::is(Planted::TrustUnmounted) {
                self.parts.bfs.check().await.map_err(|error| refusal(&error))?;
            }
            self.remove_hidden(fid).await?;
            match self.parts.bfs.stat(&self.binding(&record.key)).await {
                // Only this says that the file is no more; any other error says nothing.
                Err(BfsError::Errno(libc::ESTALE)) => {}
                _ if planted::is(Planted::DropBeforeBfsAgreed) => {}
                Err(error) => return Err(refusal(&error)),
                Ok(_) => {
                    // Another name, or a link made behind our back.
                    if record.rare().hidden {
                        self.change(partition, fid, FileChange::SetHidden { hidden: false })
                            .await?;
                    }
                    return Ok(());
                }
            }
            // An unmounted file system also says so: looked at again, after the answer.
            if !planted::is(Planted::TrustUnmounted) {
                self.parts.bfs.check().await.map_err(|error| refusal(&error))?;
            }
            self.change(partition, fid, FileChange::DropBegin).await?;
        }
        // Read again: a region may have been registered while the backing file system was asked.
        let Some(record) = self.record(partition, fid) else { return Ok(()) };
        let name = |region: RegionIndex| RegionName { fid: fid.into(), region: region.0 };
        self.parts.tell_regions(Kind::RegionDrop, fid, record.regions(), name).await?;
        self.change(partition, fid, FileChange::DropEnd).await.map(drop)
    }

    /// Finishes in the background what a file's record says is not finished; leaves it to the next
    /// primary when this node's tenure ends.
    pub(super) fn finish_later(self: &Rc<Self>, partition: &Rc<Partition>, fid: Fid) {
        let Some(tenure) = partition.tenure() else { return };
        if !self.at_work.borrow_mut().insert((fid, tenure)) {
            return;
        }
        let (this, partition) = (self.clone(), partition.clone());
        self.parts.rt.spawn(async move {
            while let Err(failure) = this.finish(&partition, tenure, fid).await {
                if failure.kind() != Code::Busy {
                    tracing::warn!(%fid, %failure, "a file's change is not finished; trying again");
                }
                this.parts.rt.sleep(RETRY).await;
            }
            this.at_work.borrow_mut().remove(&(fid, tenure));
        });
    }

    /// One attempt. An open file without name is left to its last close.
    async fn finish(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        tenure: u64,
        fid: Fid,
    ) -> Result<(), Failure> {
        let is_hidden = || self.record(partition, fid).is_some_and(|record| record.rare().hidden);
        // The grace begins again with each partition that this node takes over.
        while self.parts.rt.now() < self.opens.grace_until() && is_hidden() {
            self.parts.rt.sleep_until(self.opens.grace_until()).await;
        }
        let _lock = self.locks.lock(fid).await;
        if partition.tenure() != Some(tenure) {
            return Ok(());
        }
        let Some(record) = self.record(partition, fid) else { return Ok(()) };
        if !record.rare().dropping {
            self.finish_truncate(partition, fid).await?;
        }
        let rare = record.rare();
        let open = self.opens.is_open(fid, self.parts.rt.now());
        if rare.dropping || (rare.hidden && !open) {
            self.drop_file(partition, fid).await?;
        }
        Ok(())
    }

    /// After replay: goes on with what the process before left unfinished in a partition.
    pub fn resume(self: &Rc<Self>, partition: &Rc<Partition>) {
        let unfinished: Vec<Fid> = {
            let state = partition.state();
            let files = state.files.iter().filter(|(_, record)| {
                let rare = record.rare();
                rare.truncating.is_some() || rare.hidden || rare.dropping
            });
            files.map(|(fid, _)| fid).collect()
        };
        for fid in unfinished {
            self.finish_later(partition, fid);
        }
    }
}
