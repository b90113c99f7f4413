//! A replica that lives: numbers mutations (the primary), has them logged, applies them in order.
//!
//! ```text
//! submit -> admit -> number + append (one turn) -> durable -> committed -> apply -> outcome
//! ```
//!
//! Many mutations are on their way at once. They are applied strictly in log order, and only when
//! they are committed: logged by every member of the configuration. [`Partition::commit_point`]
//! says how far that is; whatever may have moved it ends with [`Partition::advance`].

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bb_proto::{Code, ConfigNumber, Failure, NodeId, PartitionId, ServiceClass, Writer};
use bb_runtime::Rt;
use bb_runtime::sync::Notify;
use futures_channel::oneshot;

use super::journal::{Journal, JournalFuture};
use super::mutation::{Mutation, Outcome};
use super::record::{Numbers, number_record};
use super::replay::Replica;
use super::role::{Phase, Role};
use super::snapshot::encode_snapshot;
use super::state::PartitionState;
use super::tail::{Logged, Tail};

/// A replica of a partition on this node.
pub struct Partition {
    pub(super) id: PartitionId,
    pub(super) rt: Rt,
    pub(super) journal: Rc<dyn Journal>,
    pub(super) state: RefCell<PartitionState>,
    pub(super) tail: RefCell<Tail>,
    pub(super) role: RefCell<Role>,
    /// The map's configuration number.
    pub(super) config: Cell<ConfigNumber>,
    /// Older configurations are refused.
    pub(super) promised: Cell<ConfigNumber>,
    /// Commit point as others have told it.
    pub(super) told: Cell<u64>,
    /// Wakes with everything that happens to the tail.
    pub(super) progress: Notify,
    changed: Notify,
    flow: RefCell<Flow>,
    outbox: Rc<dyn Outbox>,
    meter: Rc<Meter>,
}

/// Who sends what a primary has logged to the other members.
pub trait Outbox {
    /// The partition has records that `node` has not been sent.
    fn ready(&self, partition: PartitionId, node: NodeId);

    /// The commit point has moved: `node` shall hear of it soon.
    fn committed(&self, partition: PartitionId, node: NodeId);
}

/// What the replicas of a node count together.
#[derive(Default)]
pub struct Meter {
    /// Memory of all tables, in bytes (rule 16).
    memory_bytes: Cell<u64>,
    /// The part of it that is the bytes of inline groups.
    inline_bytes: Cell<u64>,
    /// Wakes whoever frees dead groups and reports released ones.
    pub work: Notify,
}

impl Meter {
    /// Memory of all tables, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.get()
    }

    /// The part of it that is the bytes of inline groups.
    pub fn inline_bytes(&self) -> u64 {
        self.inline_bytes.get()
    }

    fn replace(&self, before: Weight, after: Weight) {
        self.memory_bytes.set(self.memory_bytes.get() - before.memory_bytes + after.memory_bytes);
        self.inline_bytes.set(self.inline_bytes.get() - before.inline_bytes + after.inline_bytes);
    }
}

/// What one replica adds to the meter.
#[derive(Clone, Copy, Default)]
struct Weight {
    memory_bytes: u64,
    inline_bytes: u64,
}

impl Weight {
    fn of(state: &PartitionState) -> Self {
        Self { memory_bytes: state.memory_bytes(), inline_bytes: state.pgs.totals().inline_bytes }
    }
}

/// Appends on their way to the log.
#[derive(Default)]
struct Flow {
    appends: VecDeque<(u64, ConfigNumber, JournalFuture<()>)>,
    waiting: bool,
    failed: Option<Failure>,
}

impl Partition {
    /// A replica as replay has brought it: a member of `config`.
    pub fn new(
        replica: Replica,
        config: ConfigNumber,
        rt: Rt,
        journal: Rc<dyn Journal>,
        meter: Rc<Meter>,
        outbox: Rc<dyn Outbox>,
    ) -> Rc<Self> {
        let Replica { state, tail } = replica;
        meter.replace(Weight::default(), Weight::of(&state));
        Rc::new(Self {
            id: state.id(),
            rt,
            journal,
            told: Cell::new(tail.applied()),
            role: RefCell::new(Role::member()),
            state: RefCell::new(state),
            tail: RefCell::new(tail),
            config: Cell::new(config),
            promised: Cell::new(ConfigNumber(0)),
            progress: Notify::new(),
            changed: Notify::new(),
            flow: RefCell::default(),
            outbox,
            meter,
        })
    }

    /// Which one.
    pub const fn id(&self) -> PartitionId {
        self.id
    }

    /// The state that all committed mutations have made. Never held across an await.
    pub fn state(&self) -> Ref<'_, PartitionState> {
        self.state.borrow()
    }

    /// Wakes with every mutation that is applied.
    pub const fn changed(&self) -> &Notify {
        &self.changed
    }

    /// The configuration number that requests have to name.
    pub fn config(&self) -> ConfigNumber {
        self.config.get()
    }

    /// Configuration of the last record that is here.
    pub(super) fn newest_config(&self) -> ConfigNumber {
        self.tail.borrow().end_config()
    }

    pub(super) fn set_config(&self, config: ConfigNumber) {
        self.config.set(config);
    }

    /// True while this node serves the partition (as far as roles go; leases are another matter), be
    /// it only to end what was begun.
    pub fn serves(&self) -> bool {
        matches!(self.role.borrow().phase(), Some(Phase::Serving | Phase::Draining))
    }

    /// Numbers `mutation`, has it logged, and applies it when it is committed. The outcome is that
    /// of applying it: whether its conditions held there.
    ///
    /// Two calls that are under way together are ordered by who gets room in the log first: await
    /// one before the other where the order matters. Once it is appended, dropping the future does
    /// not take it back.
    ///
    /// # Errors
    /// [`Code::Busy`] when the log is full or has failed: then the mutation may be found logged
    /// after a restart. [`Code::Fenced`] when this node is not, or no longer, the primary: the
    /// mutation may yet be committed.
    pub async fn submit(
        self: &Rc<Self>,
        class: ServiceClass,
        mutation: Mutation,
    ) -> Result<Outcome, Failure> {
        let mut record = mutation.encode_unnumbered();
        let ticket = self.journal.admit(self.id, class, record.len()).await?;
        let answer = {
            if let Some(failure) = &self.flow.borrow().failed {
                return Err(failure.clone());
            }
            if !self.serves() {
                return Err(not_primary(self.id));
            }
            let sequence = self.tail.borrow().end() + 1;
            let committed = self.tail.borrow().applied();
            let config = self.config.get();
            let numbers = Numbers { config, sequence, committed };
            number_record(&mut record, numbers, mutation.table());
            let (durable, record) = (ticket.append(&record)?, Rc::new(record));
            let (answer, receiver) = oneshot::channel();
            let logged = Logged { record, config, mutation, answer: Some(answer) };
            self.appended(sequence, logged, durable);
            receiver
        };
        self.send_on();
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// A record has got its place in the log: it is the end of the tail now.
    pub(super) fn appended(
        self: &Rc<Self>,
        sequence: u64,
        logged: Logged,
        durable: JournalFuture<()>,
    ) {
        let mut flow = self.flow.borrow_mut();
        flow.appends.push_back((sequence, logged.config, durable));
        self.tail.borrow_mut().push(logged);
        if !std::mem::replace(&mut flow.waiting, true) {
            let partition = self.clone();
            self.rt.spawn(async move { partition.wait_for_log().await });
        }
    }

    /// Tells whoever sends that there is something to send.
    pub(super) fn send_on(&self) {
        if let Role::Primary(primary) = &*self.role.borrow() {
            primary.followers.keys().for_each(|node| self.outbox.ready(self.id, *node));
        }
    }

    async fn wait_for_log(self: Rc<Self>) {
        loop {
            let next = {
                let mut flow = self.flow.borrow_mut();
                let next = flow.appends.pop_front();
                flow.waiting = next.is_some();
                next
            };
            let Some((sequence, config, durable)) = next else { return };
            if let Err(failure) = durable.await {
                return self.fail(&failure);
            }
            self.tail.borrow_mut().note_durable(sequence, config);
            self.advance();
        }
    }

    /// Sequence up to which everything is committed, as far as this replica knows.
    pub(super) fn commit_point(&self) -> u64 {
        let tail = self.tail.borrow();
        let known = self.role.borrow().commit_point(self.told.get(), tail.durable());
        known.min(tail.durable()).max(tail.applied())
    }

    /// Applies what is committed.
    pub(super) fn advance(&self) {
        let point = self.commit_point();
        let before = self.tail.borrow().applied();
        while self.tail.borrow().applied() < point {
            self.apply_next();
        }
        if point > before {
            self.tell_commit_point();
        }
        self.progress.notify_all();
    }

    /// Has all followers hear how far everything is committed.
    pub(super) fn tell_commit_point(&self) {
        if let Role::Primary(primary) = &*self.role.borrow() {
            primary.followers.keys().for_each(|node| self.outbox.committed(self.id, *node));
        }
    }

    fn apply_next(&self) {
        let Some(next) = self.tail.borrow_mut().pop() else { return };
        let (outcome, has_work) = {
            let mut state = self.state.borrow_mut();
            let before = Weight::of(&state);
            let outcome = state.apply_numbered(next.config, &next.mutation);
            self.meter.replace(before, Weight::of(&state));
            (outcome, state.pgs.has_work())
        };
        if has_work {
            self.meter.work.notify_all();
        }
        if let Some(answer) = next.answer {
            // Whoever asked may be gone; the mutation stands.
            let _ = answer.send(Ok(outcome));
        }
        self.changed.notify_all();
    }

    /// The log has failed: nothing that is not applied now ever will be by this process.
    fn fail(&self, failure: &Failure) {
        {
            let mut flow = self.flow.borrow_mut();
            flow.failed = Some(failure.clone());
            flow.waiting = false;
            flow.appends.clear();
        }
        tracing::error!(partition = self.id.0, %failure, "the commit log failed");
        for answer in self.tail.borrow_mut().take_answers() {
            let _ = answer.send(Err(failure.clone()));
        }
        self.progress.notify_all();
    }

    /// Why the log can take nothing more, if so.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.flow.borrow().failed.clone()
    }

    /// Tells whoever waits for records of the tail that this node cannot say what becomes of them.
    pub(super) fn drop_answers(&self) {
        for answer in self.tail.borrow_mut().take_answers() {
            let _ = answer.send(Err(not_primary(self.id)));
        }
    }

    /// Waits until all that is appended is durable.
    ///
    /// # Errors
    /// The log's failure.
    pub(super) async fn all_durable(&self) -> Result<(), Failure> {
        let end = self.tail.borrow().end();
        self.durable_through(end).await
    }

    /// Waits until everything up to `sequence` is durable, or was cut away.
    ///
    /// # Errors
    /// The log's failure.
    pub(super) async fn durable_through(&self, sequence: u64) -> Result<(), Failure> {
        loop {
            let progress = self.progress.notified();
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            {
                let tail = self.tail.borrow();
                if tail.durable() >= sequence.min(tail.end()) {
                    return Ok(());
                }
            }
            progress.await;
        }
    }

    /// The state and the logged tail behind it: all that has been appended so far.
    pub fn snapshot(&self) -> Vec<u8> {
        let tail = self.tail.borrow();
        encode_snapshot(&self.state.borrow(), tail.records().map(|logged| logged.record.as_slice()))
    }

    /// Writes a checkpoint; done when the log starts there.
    ///
    /// # Errors
    /// The log's failure.
    pub async fn checkpoint(&self) -> Result<(), Failure> {
        // Nothing may be appended between taking the snapshot and handing it over: no await.
        let written = self.journal.checkpoint(self.id, self.snapshot())?;
        written.await
    }

    /// The replica leaves this node: its memory is not counted any more.
    pub(super) fn discard(&self) {
        self.drop_answers();
        *self.role.borrow_mut() = Role::Absent;
        self.meter.replace(Weight::of(&self.state.borrow()), Weight::default());
        *self.state.borrow_mut() = PartitionState::new(self.id);
        self.progress.notify_all();
    }

    /// The bytes of the state alone, without a tail: equal on equal replicas.
    pub fn state_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        super::table::Encoded::encode(&*self.state.borrow(), &mut out);
        out.finish()
    }

    /// Where it stands, for whoever looks for an error.
    #[cfg(test)]
    pub fn describe(&self) -> String {
        let tail = self.tail.borrow();
        format!(
            "config {} promised {} told {} applied {} durable {} end {} {:?}",
            self.config.get(),
            self.promised.get(),
            self.told.get(),
            tail.applied(),
            tail.durable(),
            tail.end(),
            self.role.borrow()
        )
    }

    /// A deliberate error: forgets up to which slot no new group is accepted.
    #[cfg(feature = "planted")]
    pub(super) fn drop_horizon(&self) {
        self.state.borrow_mut().drop_horizon();
    }

    /// What the other members have, for status.
    pub fn followers(&self) -> BTreeMap<NodeId, u64> {
        match &*self.role.borrow() {
            Role::Primary(primary) => {
                primary.followers.iter().map(|(node, f)| (*node, f.acked)).collect()
            }
            _ => BTreeMap::new(),
        }
    }
}

fn stopped() -> Failure {
    Failure::new(Code::Busy, "the partition stops")
}

pub(super) fn not_primary(id: PartitionId) -> Failure {
    Failure::new(Code::Fenced, format!("partition {id} is not served here"))
}
