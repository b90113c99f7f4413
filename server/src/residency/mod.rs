//! Residency: bytes go to the backing file system (sync), come from it (prestage), and leave the
//! buffer (purge).
//!
//! | file | what |
//! |---|---|
//! | `order` | part of an operation for one region: checked, joined, remembered |
//! | `sync`, `batch` | rounds of a sync; which reads and writes they take |
//! | `stage` | a prestage of a region |
//! | `file_jobs`, `file_run` | operations on files; the file's half of them |
//! | `changes` | changes behind our back, when an operation begins |
//! | `region` | the region's half, and purges |
//! | `predecessors` | what processes that are gone have left behind (rule 10) |
//! | `read_through` | bytes that no fragment covers |
//! | `partitions`, `failures` | what is needed of the node; errors in the protocol's words |
//!
//! An operation runs in two halves. The file's half (at the partition of region 0) owns the sync
//! session and asks the primary of each region for its part. The region's half alone touches bytes
//! of the region (rule 9). Both are tasks of their own: a lost connection stops neither.

mod batch;
mod changes;
mod failures;
mod file_jobs;
mod file_run;
mod order;
mod partitions;
mod predecessors;
mod read_through;
mod region;
mod stage;
mod sync;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::ClusterMap;
use bb_pgio::{Limits, PgIo, View};
use bb_proto::{Code, Failure, Kind, ServiceClass};
use bb_runtime::sync::Semaphore;
use bb_transport::{Incoming, Response, Vitals};

pub use self::partitions::Partitions;
use crate::context::{Context, Shared};
use crate::files::opens::FileLocks;
use crate::files::{FileService, Parts};
use crate::partition::region_mutation::{ProcessId, RegionMutation, RegionOutcome};
use crate::partition::{Mutation, Partition};

/// Share of the buffer pool that residency may hold while it waits for more: little enough that
/// its own waiting never keeps everybody else from buffers (rule 14).
const POOL_SHARE: u64 = 8;
/// Least memory to work with: two batches.
const BUDGET_BYTES_MIN: u64 = 10 << 20;
/// Pause between looks for what predecessors have left.
const PREDECESSOR_INTERVAL: Duration = Duration::from_secs(1);

/// The residency operations of a node.
pub struct Residency {
    ctx: Context,
    parts: Parts,
    partitions: Rc<dyn Partitions>,
    files: Rc<FileService>,
    /// Reads what is synchronized: that makes space, and may use what is reserved for it.
    reads: PgIo,
    /// Writes what is prestaged: that can wait.
    writes: PgIo,
    /// Bytes of buffers that may be held.
    budget: Semaphore,
    jobs: order::Jobs,
    file_jobs: file_jobs::FileJobs,
    /// One operation at a time for each file.
    turns: FileLocks,
    /// Number of the next parity group that a prestage writes.
    pg_sequence: Cell<u32>,
    /// Predecessors that are proven gone.
    gone: RefCell<BTreeSet<ProcessId>>,
    started: Cell<bool>,
}

/// The cluster as the server itself sees it.
struct OwnView(Rc<Shared>);

impl View for OwnView {
    fn map(&self) -> Rc<ClusterMap> {
        self.0.map()
    }

    fn seen(&self, _vitals: Vitals) {}

    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(std::future::ready(()))
    }
}

impl Residency {
    /// Nothing is under way yet.
    pub fn new(ctx: Context, partitions: Rc<dyn Partitions>, files: Rc<FileService>) -> Rc<Self> {
        let io = |class| {
            let view: Rc<dyn View> = Rc::new(OwnView(ctx.shared.clone()));
            let limits = Limits { class, ..Limits::default() };
            PgIo::new(ctx.rt.clone(), ctx.pool.clone(), ctx.caller.clone(), view, limits)
        };
        let budget = (ctx.pool.stats().total_bytes / POOL_SHARE).max(BUDGET_BYTES_MIN);
        Rc::new(Self {
            parts: Parts::from(&ctx),
            partitions,
            files,
            reads: io(ServiceClass::Reclaim),
            writes: io(ServiceClass::Background),
            budget: Semaphore::new(budget),
            jobs: order::Jobs::default(),
            file_jobs: file_jobs::FileJobs::default(),
            turns: FileLocks::default(),
            pg_sequence: Cell::new(0),
            gone: RefCell::default(),
            started: Cell::new(false),
            ctx,
        })
    }

    /// Blocks that this process reconstructed because it could not read them.
    pub fn reconstructed_blocks(&self) -> u64 {
        self.reads.stats().reconstructed
    }

    /// Begins the work in the background. Once, before anything is served.
    pub fn start(self: &Rc<Self>) {
        if self.started.replace(true) {
            return;
        }
        self.resume_sessions();
        let this = self.clone();
        self.ctx.rt.spawn(async move {
            loop {
                this.settle_predecessors().await;
                this.ctx.rt.sleep(PREDECESSOR_INTERVAL).await;
            }
        });
    }

    /// Answers a request.
    ///
    /// # Errors
    /// What the request's handler says.
    pub async fn serve(self: &Rc<Self>, request: Incoming) -> Result<Response, Failure> {
        let partition =
            partitions::addressed(&*self.partitions, &self.ctx.shared, &request.header)?;
        match request.header.kind {
            Kind::FileOperation => self.serve_file_operation(partition, &request),
            Kind::OperationStatus => self.serve_operation_status(&request).await,
            Kind::ReadThrough => self.serve_read_through(&partition, &request).await,
            Kind::RegionOperation => self.serve_region(partition, &request).await,
            kind => {
                Err(Failure::new(Code::Unsupported, format!("{kind:?} is not about residency")))
            }
        }
    }

    /// This life of this process.
    fn process(&self) -> ProcessId {
        ProcessId { node: self.ctx.shared.node, incarnation: self.ctx.shared.incarnation }
    }

    /// Has a change of regions logged and applied. It frees, or leads to it: it may use what the
    /// log reserves for that.
    async fn change(
        &self,
        partition: &Rc<Partition>,
        mutation: RegionMutation,
    ) -> Result<RegionOutcome, Failure> {
        partition.submit(ServiceClass::Reclaim, Mutation::Region(mutation)).await?.region()
    }

    /// The same for what must not be left undone: tried again while the log is short of room.
    async fn change_for_sure(
        &self,
        partition: &Rc<Partition>,
        mutation: RegionMutation,
    ) -> Result<RegionOutcome, Failure> {
        let mut pause = Duration::from_millis(10);
        for _ in 0..60 {
            match self.change(partition, mutation.clone()).await {
                Err(failure) if failure.kind() == Code::Busy => {
                    tracing::debug!(%failure, "the end of an operation is not logged yet");
                }
                result => return result,
            }
            self.ctx.rt.sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        self.change(partition, mutation).await
    }
}
