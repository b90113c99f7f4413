//! The region's half of an operation: at the primary of the region's partition.

use std::rc::Rc;
use std::time::Duration;

use crate::rights::check_server;
use bb_proto::meta::{RegionOperation, RegionOperationReply, Residency as Kind, decode, encode};
use bb_proto::{Code, Failure, partition_of};
use bb_transport::{Incoming, Response};

use super::order::{Job, Order};
use super::{Residency, failures};
use crate::partition::Partition;
use crate::partition::region::Region;
use crate::partition::region_mutation::{PurgeMode, RegionMutation, RegionOutcome};
use crate::planted::{self, Planted};

/// How long a region waits for what must end first, before it says "later".
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Value of a [`Code::Busy`] that says: the job runs, ask again.
pub(super) const UNDER_WAY: u64 = 1;
/// How long an answer is waited for where the caller does not say.
const ANSWER_MAX: Duration = Duration::from_secs(60);

impl Residency {
    pub(super) async fn serve_region(
        self: &Rc<Self>,
        partition: Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        check_server(&request.peer)?;
        let wanted: RegionOperation = decode(&request.body)?;
        let order = Order::new(&wanted)?;
        let count = self.ctx.shared.map().partition_count();
        if partition_of(order.id.fid, order.id.region, count) != partition.id() {
            return Err(Failure::new(Code::Invalid, "the region belongs to another partition"));
        }
        if wanted.cancel {
            self.jobs.cancel(order.key());
            return Ok(Response::body(encode(&RegionOperationReply::default())));
        }
        let (job, is_new) = self.jobs.join(&self.ctx.rt, order);
        if is_new {
            let (this, job) = (self.clone(), job.clone());
            // A task of its own: once bytes are on their way to the backing file system nobody but
            // a crash may stop it before the end is logged.
            self.ctx.rt.spawn(async move {
                let result = this.run(&job, &partition).await;
                this.jobs.end(&this.ctx.rt, &job, result);
            });
        }
        // A little less than the caller waits, so that he hears that it is under way.
        let limit = match request.header.deadline_ms {
            0 => ANSWER_MAX,
            ms => Duration::from_millis(u64::from(ms)) * 3 / 4,
        };
        let result = self.ctx.rt.timeout(limit, job.result()).await;
        let under_way = |_| Failure::new(Code::Busy, "it is under way").with_value(UNDER_WAY);
        let reply = result.map_err(under_way)??;
        Ok(Response::body(encode(&reply)))
    }

    async fn run(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
    ) -> Result<RegionOperationReply, Failure> {
        if job.order.range.start >= job.order.range.end {
            return Ok(RegionOperationReply::default());
        }
        self.check_bfs(job, partition).await?;
        match job.order.residency {
            Kind::Sync => self.sync(job, partition).await,
            Kind::Prestage => self.stage(job, partition).await,
            Kind::Purge => self.purge(job, partition, PurgeMode::Clean).await,
            Kind::PurgeDirty => self.purge(job, partition, PurgeMode::All).await,
            _ => Err(Failure::new(Code::Invalid, "not an operation of a region")),
        }
    }

    /// Rule 11: before each batch, is it still the file system that it should be? If it is not,
    /// nothing is said about any byte: dirty ones stay, clean ones too (there is nothing else to
    /// read them from).
    pub(super) async fn check_bfs(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
    ) -> Result<(), Failure> {
        let Err(error) = self.ctx.bfs.check().await else { return Ok(()) };
        if planted::is(Planted::DropDirtyUnmounted) {
            self.purge(job, partition, PurgeMode::All).await?;
        }
        Err(failures::of_bfs(&error, "looking for the marker"))
    }

    async fn purge(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
        mode: PurgeMode,
    ) -> Result<RegionOperationReply, Failure> {
        let (id, range) = (job.order.id, job.order.range);
        match self.change(partition, RegionMutation::Purge { id, range, mode }).await? {
            RegionOutcome::Bytes(bytes) => Ok(RegionOperationReply { bytes, dirty_again: 0 }),
            RegionOutcome::Refused(refusal) => Err(failures::of_region(refusal)),
            _ => Err(Failure::new(Code::Unknown, "a purge answers with bytes")),
        }
    }

    /// The operation was made for one truncate epoch: its size holds for that only.
    pub(super) fn check_epoch(&self, job: &Job, region: &Region) -> Result<(), Failure> {
        let epoch = region.epoch();
        if epoch > job.order.epoch {
            let failure = Failure::new(Code::OldTruncateEpoch, "the file was truncated");
            return Err(failure.with_value(epoch.0));
        }
        if epoch < job.order.epoch {
            return Err(Failure::new(Code::Busy, "the region has not heard of a truncate yet"));
        }
        Ok(())
    }

    /// Waits until `ready` says what it waits for, or the patience is over.
    pub(super) async fn wait_until<T>(
        &self,
        partition: &Partition,
        mut ready: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let give_up = self.ctx.rt.now() + PATIENCE;
        loop {
            let changed = partition.changed().notified();
            match ready() {
                Err(failure) if failure.kind() == Code::Busy => {
                    let now = self.ctx.rt.now();
                    if now >= give_up {
                        return Err(failure);
                    }
                    // Elapsed or changed: look again either way.
                    let _ = self.ctx.rt.timeout(give_up.since(now), changed).await;
                }
                result => return result,
            }
        }
    }
}
