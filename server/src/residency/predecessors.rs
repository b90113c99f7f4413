//! What processes that are gone have left behind (rule 10).
//!
//! An intent of a predecessor says: it may be writing these bytes, now or in an hour, from a
//! kernel where a call of it hangs. Nothing under it is touched until that process is proven gone.
//! Then its bytes are dirty again, and what it was staging is given up.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::Residency as Kind;
use bb_proto::{Code, Failure};

use super::file_jobs::FileJob;
use super::order::Job;
use super::region::PATIENCE;
use super::{Residency, failures};
use crate::partition::Partition;
use crate::partition::region_mutation::{ProcessId, Range, RegionMutation, RegionRefusal};
use crate::planted::{self, Planted};

/// Pause between two tries to prove it.
const ASK_AGAIN: Duration = Duration::from_millis(500);

impl Residency {
    /// Goes on with the sync sessions that predecessors have begun: their guards can't be compared
    /// until they are ended. Under the same number, so that who waits for them is answered.
    pub(super) fn resume_sessions(self: &Rc<Self>) {
        self.partitions.all().iter().for_each(|partition| self.resume(partition));
    }

    /// The same for one partition, which is served from now on.
    pub fn resume(self: &Rc<Self>, partition: &Rc<Partition>) {
        let ours = self.process();
        let open: Vec<_> = {
            let state = partition.state();
            let left = state.files.iter().filter(|(_, record)| !record.rare().dropping);
            left.filter_map(|(fid, record)| Some((fid, record.rare().sync?)))
                .filter(|(_, sync)| sync.process != ours)
                .collect()
        };
        for (fid, sync) in open {
            let range = Range { start: 0, end: u64::MAX };
            let mut job = FileJob::new(sync.op, fid, partition.clone(), Kind::Sync, range);
            job.resumed = true;
            self.begin(job);
        }
    }

    /// Waits until the process that began the session is proven gone: a call of it that hangs may
    /// change the file yet, and the guard that ends the session would be out of date. To be awaited
    /// before the session is logged as ours.
    pub(super) async fn await_predecessor(&self, job: &FileJob) -> Result<(), Failure> {
        loop {
            let session = self.record(job)?.rare().sync.filter(|sync| sync.op == job.op);
            let Some(sync) = session.filter(|sync| sync.process != self.process()) else {
                return Ok(());
            };
            match self.is_gone(sync.process).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(failure) => {
                    tracing::debug!(fid = %job.fid, %failure, "whether a process is gone is not known");
                }
            }
            if !job.partition.serves() {
                return Err(Failure::new(Code::Fenced, "the session is another node's now"));
            }
            self.ctx.rt.sleep(ASK_AGAIN).await;
        }
    }

    /// Makes dirty again what predecessors that are proven gone were writing, in all partitions.
    pub(super) async fn settle_predecessors(&self) {
        for partition in self.partitions.all() {
            for process in self.left_in(&partition) {
                if let Err(failure) = self.settle(&partition, process).await {
                    tracing::debug!(partition = partition.id().0, ?process, %failure,
                        "a former process is not settled");
                }
            }
        }
    }

    /// Predecessors that have left something in a partition.
    fn left_in(&self, partition: &Partition) -> BTreeSet<ProcessId> {
        let ours = self.process();
        let state = partition.state();
        let in_region = |region: &crate::partition::region::Region| {
            let intents = region.intents().values().map(|intent| intent.process);
            let stages = region.stages().values().map(|stage| stage.process);
            intents.chain(stages).filter(|process| *process != ours).collect::<Vec<_>>()
        };
        state.regions.iter().flat_map(|(_, region)| in_region(region)).collect()
    }

    async fn settle(&self, partition: &Rc<Partition>, process: ProcessId) -> Result<(), Failure> {
        if !self.is_gone(process).await? {
            return Err(failures::of_region(RegionRefusal::PredecessorUnproven));
        }
        self.change(partition, RegionMutation::ProcessGone { process }).await.map(drop)
    }

    /// True if a process is proven gone. Once gone, gone for good.
    pub(super) async fn is_gone(&self, process: ProcessId) -> Result<bool, Failure> {
        if planted::is(Planted::IgnoreHungWrite) || self.gone.borrow().contains(&process) {
            return Ok(true);
        }
        let proven = self.ctx.bfs.proven_gone(process).await;
        let proven = proven.map_err(|error| failures::of_bfs(&error, "looking for a lock"))?;
        if proven {
            self.gone.borrow_mut().insert(process);
        }
        Ok(proven)
    }

    /// Waits until no other operation, of this process or of one before, has an intent in the
    /// job's range.
    pub(super) async fn settle_range(
        &self,
        partition: &Rc<Partition>,
        job: &Job,
    ) -> Result<(), Failure> {
        let give_up = self.ctx.rt.now() + PATIENCE;
        loop {
            let changed = partition.changed().notified();
            let Some(process) = self.in_the_way(partition, job) else { return Ok(()) };
            let failure = if process == self.process() {
                failures::of_region(RegionRefusal::Overlap)
            } else {
                match self.settle(partition, process).await {
                    Ok(()) => continue,
                    Err(failure) if failure.kind() == Code::BfsUnavailable => return Err(failure),
                    Err(failure) => failure,
                }
            };
            if self.ctx.rt.now() >= give_up {
                return Err(failure);
            }
            // Elapsed or changed: look again either way.
            let _ = self.ctx.rt.timeout(ASK_AGAIN, changed).await;
        }
    }

    fn in_the_way(&self, partition: &Partition, job: &Job) -> Option<ProcessId> {
        let state = partition.state();
        let region = state.regions.get(job.order.id)?;
        let overlapping = region.intents().values().find(|i| i.range.overlaps(job.order.range));
        let same = region.stages().get(&job.order.op).map(|stage| stage.process);
        overlapping.map(|intent| intent.process).or(same.filter(|p| *p != self.process()))
    }
}
