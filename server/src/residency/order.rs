//! Part of an operation for one region, checked, and what becomes of it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::{Binding, RegionOperation, RegionOperationReply, Residency};
use bb_proto::{Code, Failure, Fid, OpId, RegionIndex, TruncateEpoch};
use bb_runtime::sync::Notify;
use bb_runtime::{Instant, Rt};

use crate::partition::region_mutation::{Range, RegionId};

/// How long results are remembered: much longer than an answer is waited for before the question
/// is repeated.
const REMEMBERED: Duration = Duration::from_secs(120);
/// How many results are remembered at the most.
const REMEMBERED_MAX: usize = 8_192;

/// A [`RegionOperation`] whose numbers fit together.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Order {
    pub id: RegionId,
    pub op: OpId,
    pub residency: Residency,
    /// Within the region and, but for a purge, below the file's size.
    pub range: Range,
    pub binding: Binding,
    pub epoch: TruncateEpoch,
    pub region_log2: u8,
}

impl Order {
    pub(super) fn new(wanted: &RegionOperation) -> Result<Self, Failure> {
        let invalid = |why: &str| Failure::new(Code::Invalid, why);
        let region_log2 = u8::try_from(wanted.region_log2).ok().filter(|l| (20..=40).contains(l));
        let region_log2 = region_log2.ok_or_else(|| invalid("an impossible region size"))?;
        let residency = Residency::try_from(wanted.residency).unwrap_or(Residency::None);
        let start = u64::from(wanted.region)
            .checked_shl(u32::from(region_log2))
            .filter(|start| start >> region_log2 == u64::from(wanted.region))
            .ok_or_else(|| invalid("no file has such a region"))?;
        let end = start.saturating_add(1 << region_log2);
        let mut range = Range { start: wanted.offset.max(start), end: wanted.end.min(end) };
        match residency {
            Residency::Sync | Residency::Prestage => range.end = range.end.min(wanted.size),
            Residency::Purge | Residency::PurgeDirty => {}
            _ => return Err(invalid("not an operation of a region")),
        }
        Ok(Self {
            id: RegionId { fid: Fid::from(wanted.fid), region: RegionIndex(wanted.region) },
            op: OpId(wanted.op),
            residency,
            range,
            binding: wanted.binding.clone(),
            epoch: TruncateEpoch(wanted.epoch),
            region_log2,
        })
    }

    /// The same order again has the same key.
    pub(super) fn key(&self) -> JobKey {
        (self.id, self.op, self.residency)
    }
}

type JobKey = (RegionId, OpId, Residency);
type JobResult = Result<RegionOperationReply, Failure>;

/// An order that is carried out, or was.
pub(super) struct Job {
    pub order: Order,
    cancelled: Cell<bool>,
    result: RefCell<Option<JobResult>>,
    ended: Notify,
    ended_at: Cell<Instant>,
}

impl Job {
    pub(super) fn check_cancelled(&self) -> Result<(), Failure> {
        if self.cancelled.get() {
            return Err(Failure::new(Code::Cancelled, "the operation was cancelled"));
        }
        Ok(())
    }

    /// Waits for the end.
    pub(super) async fn result(&self) -> JobResult {
        loop {
            let ended = self.ended.notified();
            if let Some(result) = self.result.borrow().clone() {
                return result;
            }
            ended.await;
        }
    }
}

/// What is under way and what was done lately: an order that comes again joins the one that runs,
/// or gets its result. A failure is not remembered: the order that comes after it tries again.
#[derive(Default)]
pub(super) struct Jobs {
    jobs: RefCell<BTreeMap<JobKey, Rc<Job>>>,
}

impl Jobs {
    /// The job of an order, and whether it is new and has to be run.
    pub(super) fn join(&self, rt: &Rt, order: Order) -> (Rc<Job>, bool) {
        self.forget_old(rt.now());
        let mut jobs = self.jobs.borrow_mut();
        if let Some(job) = jobs.get(&order.key()) {
            return (job.clone(), false);
        }
        let job = Rc::new(Job {
            order,
            cancelled: Cell::new(false),
            result: RefCell::new(None),
            ended: Notify::new(),
            ended_at: Cell::new(Instant::ZERO),
        });
        jobs.insert(job.order.key(), job.clone());
        (job, true)
    }

    /// Has a job stop as soon as it can, if it runs.
    pub(super) fn cancel(&self, key: JobKey) {
        if let Some(job) = self.jobs.borrow().get(&key) {
            job.cancelled.set(true);
        }
    }

    pub(super) fn end(&self, rt: &Rt, job: &Rc<Job>, result: JobResult) {
        if result.is_err() {
            self.jobs.borrow_mut().remove(&job.order.key());
        }
        job.ended_at.set(rt.now());
        *job.result.borrow_mut() = Some(result);
        job.ended.notify_all();
    }

    fn forget_old(&self, now: Instant) {
        let mut jobs = self.jobs.borrow_mut();
        if jobs.len() < REMEMBERED_MAX / 8 {
            return;
        }
        let crowded = jobs.len() >= REMEMBERED_MAX;
        jobs.retain(|_, job| {
            let runs = job.result.borrow().is_none();
            runs || !(crowded || now.since(job.ended_at.get()) > REMEMBERED)
        });
    }
}
