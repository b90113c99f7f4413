//! Operations on files: started once, asked about, awaited, cancelled.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::rights::{check_capability, check_operation, owner};
use bb_proto::meta::{
    FileOperation, OPERATION_UNKNOWN, OperationState, OperationStatus, Residency as Kind, decode,
    encode,
};
use bb_proto::{
    Capability, ClientSequence, Code, Failure, Fid, OpId, RegionIndex, Rights, SessionId,
};
use bb_runtime::Instant;
use bb_runtime::sync::Notify;
use bb_transport::{Incoming, Response};

use super::Residency;
use crate::context::Shared;
use crate::partition::Partition;
use crate::partition::region_mutation::Range;

/// How long an operation can be asked about after its end.
const REMEMBERED: Duration = Duration::from_secs(600);
/// How many are remembered at the most.
const REMEMBERED_MAX: usize = 16_384;
/// Longest wait within one request.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What to do about a conflict with a change behind our back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Force {
    /// Say so and stop.
    Stop,
    /// Our dirty bytes win.
    Ours,
    /// Theirs win: all that is here goes.
    Theirs,
}

/// An operation on a file.
pub(super) struct FileJob {
    pub op: OpId,
    pub fid: Fid,
    pub partition: Rc<Partition>,
    pub residency: Kind,
    pub range: Range,
    pub force: Force,
    /// User who started it, where users are proven.
    pub owner: Option<u32>,
    /// Goes on with the sync session of a process that is gone.
    pub resumed: bool,
    pub bytes_total: Cell<u64>,
    pub bytes_done: Cell<u64>,
    cancelled: Cell<bool>,
    result: RefCell<Option<Result<(), Failure>>>,
    ended: Notify,
    ended_at: Cell<Instant>,
}

impl FileJob {
    pub(super) fn new(
        op: OpId,
        fid: Fid,
        partition: Rc<Partition>,
        residency: Kind,
        range: Range,
    ) -> Self {
        Self {
            op,
            fid,
            partition,
            residency,
            range,
            force: Force::Stop,
            owner: None,
            resumed: false,
            bytes_total: Cell::new(0),
            bytes_done: Cell::new(0),
            cancelled: Cell::new(false),
            result: RefCell::new(None),
            ended: Notify::new(),
            ended_at: Cell::new(Instant::ZERO),
        }
    }

    /// True for an operation on all of the file.
    pub(super) const fn is_whole(&self) -> bool {
        self.range.start == 0 && self.range.end == u64::MAX
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    /// Waits until somebody wants it cancelled.
    pub(super) async fn cancelled(&self) {
        loop {
            let changed = self.ended.notified();
            if self.cancelled.get() {
                return;
            }
            changed.await;
        }
    }

    /// Says how it ended. What is left to clean up may still go on.
    pub(super) fn end(&self, now: Instant, result: Result<(), Failure>) {
        if self.result.borrow().is_some() {
            return;
        }
        *self.result.borrow_mut() = Some(result);
        self.ended_at.set(now);
        self.ended.notify_all();
    }

    fn has_ended(&self) -> bool {
        self.result.borrow().is_some()
    }

    fn state(&self) -> OperationState {
        let result = self.result.borrow();
        OperationState {
            op: self.op.0,
            ended: result.is_some(),
            bytes_total: self.bytes_total.get().max(self.bytes_done.get()),
            bytes_done: self.bytes_done.get(),
            failure: result.clone().and_then(Result::err),
        }
    }
}

/// The operations of this process.
#[derive(Default)]
pub(super) struct FileJobs {
    jobs: RefCell<BTreeMap<OpId, Rc<FileJob>>>,
    /// Under which number of his a client started which: a retry finds it.
    numbers: RefCell<BTreeMap<(SessionId, ClientSequence), OpId>>,
    counter: Cell<u64>,
}

impl FileJobs {
    /// A number that no other operation has or had: the node in the upper 16 bits, its incarnation
    /// in the next 24, a count of this process in the lower 24. (After 16 million operations the
    /// count starts again: those that had the same number are long forgotten.)
    pub(super) fn new_op(&self, shared: &Shared) -> OpId {
        let count = self.counter.get() % 0xFF_FFFF + 1;
        self.counter.set(count);
        let node = u64::from(shared.node.0 & 0xFFFF);
        OpId(node << 48 | (shared.incarnation.0 & 0xFF_FFFF) << 24 | count)
    }

    pub(super) fn get(&self, op: OpId) -> Option<Rc<FileJob>> {
        self.jobs.borrow().get(&op).cloned()
    }

    fn numbered(&self, number: (SessionId, ClientSequence)) -> Option<Rc<FileJob>> {
        let op = self.numbers.borrow().get(&number).copied()?;
        self.get(op)
    }

    pub(super) fn add(&self, job: Rc<FileJob>, now: Instant) {
        self.forget_old(now);
        self.jobs.borrow_mut().insert(job.op, job);
    }

    fn forget_old(&self, now: Instant) {
        let mut jobs = self.jobs.borrow_mut();
        if jobs.len() < REMEMBERED_MAX / 8 {
            return;
        }
        let crowded = jobs.len() >= REMEMBERED_MAX;
        jobs.retain(|_, job| {
            !job.has_ended() || !(crowded || now.since(job.ended_at.get()) > REMEMBERED)
        });
        self.numbers.borrow_mut().retain(|_, op| jobs.contains_key(op));
    }
}

impl Residency {
    pub(super) fn serve_file_operation(
        self: &Rc<Self>,
        partition: Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        let wanted: FileOperation = decode(&request.body)?;
        let capability = Capability::from(&wanted.capability);
        let residency = Kind::try_from(wanted.residency).unwrap_or(Kind::None);
        let invalid = |why: &str| Failure::new(Code::Invalid, why);
        if residency == Kind::None {
            return Err(invalid("no such operation"));
        }
        let force = match wanted.force {
            0 => Force::Stop,
            1 => Force::Ours,
            2 => Force::Theirs,
            _ => return Err(invalid("force is 0, 1 or 2")),
        };
        // Who may read or write may move bytes; who may write may throw some away.
        let throws_away = residency == Kind::PurgeDirty || force != Force::Stop;
        let writes = capability.rights.allows(Rights::WRITE);
        let rights = if throws_away || writes { Rights::WRITE } else { Rights::READ };
        check_capability(&self.ctx.shared, &capability, rights, &request.peer)?;
        if self.parts.partition_of(capability.fid, RegionIndex(0)) != partition.id() {
            return Err(invalid("the file belongs to another partition"));
        }
        let number = (SessionId(wanted.session), ClientSequence(wanted.sequence));
        if number.0 != SessionId(0)
            && let Some(job) = self.file_jobs.numbered(number)
        {
            return Ok(Response::body(encode(&job.state())));
        }
        if partition.state().files.get(capability.fid).is_none() {
            return Err(Failure::new(Code::StaleFile, "the file is not known here"));
        }
        let end = match wanted.len {
            0 => u64::MAX,
            len => wanted.offset.saturating_add(len),
        };
        let op = self.file_jobs.new_op(&self.ctx.shared);
        let range = Range { start: wanted.offset, end };
        let mut job = FileJob::new(op, capability.fid, partition, residency, range);
        job.force = force;
        job.owner = owner(&self.ctx.shared, &request.peer)?;
        if number.0 != SessionId(0) {
            self.file_jobs.numbers.borrow_mut().insert(number, op);
        }
        let job = self.begin(job);
        Ok(Response::body(encode(&job.state())))
    }

    /// Runs an operation as a task of its own.
    pub(super) fn begin(self: &Rc<Self>, job: FileJob) -> Rc<FileJob> {
        let job = Rc::new(job);
        self.file_jobs.add(job.clone(), self.ctx.rt.now());
        let (this, running) = (self.clone(), job.clone());
        self.ctx.rt.spawn(async move {
            let result = this.run_file(&running).await;
            if let Err(failure) = &result {
                let op = running.op.0;
                tracing::info!(op, fid = %running.fid, %failure, "an operation on a file failed");
            }
            running.end(this.ctx.rt.now(), result);
        });
        job
    }

    pub(super) async fn serve_operation_status(
        &self,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        let wanted: OperationStatus = decode(&request.body)?;
        let Some(job) = self.file_jobs.get(OpId(wanted.op)) else {
            let why = "the operation is not known any more: the server was restarted, or it ended \
                       long ago. Start it again";
            let failure = Failure::new(Code::Cancelled, why).with_value(OPERATION_UNKNOWN);
            let failure = Some(failure);
            let state =
                OperationState { op: wanted.op, ended: true, failure, ..Default::default() };
            return Ok(Response::body(encode(&state)));
        };
        check_operation(&self.ctx.shared, job.owner, &request.peer)?;
        if wanted.cancel && !job.cancelled.replace(true) {
            job.ended.notify_all();
        }
        let wait = Duration::from_millis(u64::from(wanted.wait_ms)).min(WAIT_MAX);
        let ended = async {
            loop {
                let changed = job.ended.notified();
                if job.has_ended() {
                    return;
                }
                changed.await;
            }
        };
        if !wait.is_zero() {
            // Elapsed: the state says so.
            let _ = self.ctx.rt.timeout(wait, ended).await;
        }
        Ok(Response::body(encode(&job.state())))
    }
}
