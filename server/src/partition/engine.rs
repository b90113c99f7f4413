//! A partition that lives: numbers mutations, has them logged, applies them in order.
//!
//! ```text
//! submit -> admit -> number + append (one turn) -> durable -> committed -> apply -> outcome
//! ```
//!
//! Many mutations are on their way at once. They are applied strictly in log order, by one task,
//! and only when they are committed: logged by every replica of the configuration. Alone that is
//! this node's log; backups will be waited for in [`Partition::committed`], nowhere else.

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use bb_proto::{Code, ConfigNumber, Failure, PartitionId, ServiceClass, Writer};
use bb_runtime::Rt;
use bb_runtime::sync::Notify;
use futures_channel::oneshot;

use super::journal::{Journal, JournalFuture};
use super::mutation::{Mutation, Outcome};
use super::record::{Numbers, RECORD_HEADER_BYTES, encode_record};
use super::snapshot::encode_snapshot;
use super::state::PartitionState;

/// A partition of which this node is a replica (today: the only one, and the primary).
pub struct Partition {
    id: PartitionId,
    rt: Rt,
    journal: Rc<dyn Journal>,
    state: RefCell<PartitionState>,
    queue: RefCell<Queue>,
    config: Cell<ConfigNumber>,
    changed: Notify,
    meter: Rc<Meter>,
}

/// What the partitions of a node count together.
#[derive(Default)]
pub struct Meter {
    /// Memory of all tables, in bytes (rule 16).
    memory_bytes: Cell<u64>,
    /// Wakes whoever frees dead groups and reports released ones.
    pub work: Notify,
}

impl Meter {
    /// Memory of all tables, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.get()
    }

    fn replace(&self, before: u64, after: u64) {
        self.memory_bytes.set(self.memory_bytes.get() - before + after);
    }
}

/// The logged tail: numbered and appended, not applied yet.
struct Queue {
    next_sequence: u64,
    in_flight: VecDeque<InFlight>,
    applying: bool,
    failed: Option<Failure>,
}

struct InFlight {
    /// As appended: a snapshot carries it along.
    record: Vec<u8>,
    mutation: Mutation,
    durable: Option<JournalFuture<()>>,
    answer: oneshot::Sender<Result<Outcome, Failure>>,
}

impl Partition {
    /// A partition in the state that replay has brought.
    pub fn new(
        state: PartitionState,
        config: ConfigNumber,
        rt: Rt,
        journal: Rc<dyn Journal>,
        meter: Rc<Meter>,
    ) -> Rc<Self> {
        meter.replace(0, state.memory_bytes());
        Rc::new(Self {
            id: state.id(),
            rt,
            journal,
            queue: RefCell::new(Queue {
                next_sequence: state.applied() + 1,
                in_flight: VecDeque::new(),
                applying: false,
                failed: None,
            }),
            state: RefCell::new(state),
            config: Cell::new(config),
            changed: Notify::new(),
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

    /// Takes over a newer configuration.
    pub fn set_config(&self, config: ConfigNumber) {
        self.config.set(self.config.get().max(config));
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
    /// after a restart.
    pub async fn submit(
        self: &Rc<Self>,
        class: ServiceClass,
        mutation: Mutation,
    ) -> Result<Outcome, Failure> {
        let body = mutation.encode_body();
        let bytes = RECORD_HEADER_BYTES + body.len();
        let ticket = self.journal.admit(self.id, class, bytes).await?;
        let answer = {
            let mut queue = self.queue.borrow_mut();
            if let Some(failure) = &queue.failed {
                return Err(failure.clone());
            }
            let numbers = Numbers {
                config: self.config.get(),
                sequence: queue.next_sequence,
                committed: self.state.borrow().applied(),
            };
            let record = encode_record(numbers, mutation.table(), &body);
            let durable = Some(ticket.append(&record)?);
            queue.next_sequence += 1;
            let (answer, receiver) = oneshot::channel();
            queue.in_flight.push_back(InFlight { record, mutation, durable, answer });
            receiver
        };
        self.start_applying();
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    fn start_applying(self: &Rc<Self>) {
        if !std::mem::replace(&mut self.queue.borrow_mut().applying, true) {
            let partition = self.clone();
            self.rt.spawn(async move { partition.apply_all().await });
        }
    }

    async fn apply_all(self: Rc<Self>) {
        loop {
            let durable = {
                let mut queue = self.queue.borrow_mut();
                match queue.in_flight.front_mut() {
                    Some(front) => front.durable.take(),
                    None => {
                        queue.applying = false;
                        return;
                    }
                }
            };
            if let Some(durable) = durable
                && let Err(failure) = self.committed(durable).await
            {
                self.fail(&failure);
                return;
            }
            self.apply_front();
        }
    }

    /// Waits until a mutation is committed. Alone: until it is durable here.
    async fn committed(&self, durable: JournalFuture<()>) -> Result<(), Failure> {
        durable.await
    }

    fn apply_front(&self) {
        let Some(front) = self.queue.borrow_mut().in_flight.pop_front() else { return };
        let (outcome, has_work) = {
            let mut state = self.state.borrow_mut();
            let before = state.memory_bytes();
            let outcome = state.apply(&front.mutation);
            self.meter.replace(before, state.memory_bytes());
            (outcome, state.pgs.has_work())
        };
        if has_work {
            self.meter.work.notify_all();
        }
        // Whoever asked may be gone; the mutation stands.
        let _ = front.answer.send(Ok(outcome));
        self.changed.notify_all();
    }

    /// The log has failed: nothing that is not applied now ever will be by this process.
    fn fail(&self, failure: &Failure) {
        let in_flight = {
            let mut queue = self.queue.borrow_mut();
            queue.failed = Some(failure.clone());
            queue.applying = false;
            std::mem::take(&mut queue.in_flight)
        };
        tracing::error!(partition = self.id.0, %failure, "the commit log failed");
        for waiting in in_flight {
            let _ = waiting.answer.send(Err(failure.clone()));
        }
    }

    /// The state and the logged tail behind it: all that has been appended so far.
    pub fn snapshot(&self) -> Vec<u8> {
        let queue = self.queue.borrow();
        encode_snapshot(
            &self.state.borrow(),
            queue.in_flight.iter().map(|in_flight| in_flight.record.as_slice()),
        )
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

    /// The bytes of the state alone, without a tail: equal on equal replicas.
    pub fn state_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        super::table::Encoded::encode(&*self.state.borrow(), &mut out);
        out.finish()
    }
}

fn stopped() -> Failure {
    Failure::new(Code::Busy, "the partition stops")
}
