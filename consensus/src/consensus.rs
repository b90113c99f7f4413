//! What callers see.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::sync::{Notify, Semaphore};
use bb_runtime::{Instant, Rt};
use futures_channel::oneshot;
use raft::eraftpb::{ConfState, HardState, Snapshot};
use raft::{Config, RawNode, ReadOnlyOption};

use crate::core::Core;
use crate::errors::{
    ChangeError, CreateError, NotLeader, ProposeError, StartError, StepError, StopReason,
};
use crate::log::Log;
use crate::parts::VOTERS_MAX;
use crate::records::encode_checkpoint;
use crate::wire::{self, Incoming};
use crate::{Machine, Net, RecoverError, Recovered, Settings, Store, VoterNumber};

/// What a voter is at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Wants to be elected.
    Candidate,
    /// Was elected. Only a read barrier tells whether it still leads.
    Leader,
}

/// A voter's state, for people and for tests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// What it is.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<VoterNumber>,
    /// Index of the last entry.
    pub last_index: u64,
    /// Known to be committed.
    pub commit: u64,
    /// Applied to the machine.
    pub applied: u64,
    /// Index of the last checkpoint.
    pub checkpoint: u64,
    /// What log and last snapshot take in memory.
    pub memory_bytes: u64,
    /// The voters, as far as applied here.
    pub voters: BTreeSet<VoterNumber>,
    /// The voters that are being replaced; empty unless a change is under way.
    pub voters_outgoing: BTreeSet<VoterNumber>,
    /// Those who are to become voters, and still learn the log.
    pub learners: BTreeSet<VoterNumber>,
    /// This voter knows of voters, and is neither one nor to become one, as far as applied here
    /// (right after a start: as of the last checkpoint). Where this is false it may still have been
    /// removed: who was away when the change was committed is not told any more. It stands for
    /// election in vain then, and disturbs nobody; the caller's map knows.
    pub removed: bool,
}

/// What others look at without disturbing the core.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) role: Role,
    pub(crate) term: u64,
    pub(crate) leader: Option<VoterNumber>,
    pub(crate) since: Option<Instant>,
}

pub(crate) struct Inner {
    pub(crate) rt: Rt,
    pub(crate) number: VoterNumber,
    pub(crate) settings: Settings,
    pub(crate) store: Rc<dyn Store>,
    pub(crate) net: Rc<dyn Net>,
    pub(crate) core: RefCell<Core>,
    pub(crate) inbox: RefCell<VecDeque<(VoterNumber, Incoming)>>,
    /// Something has come for the task.
    pub(crate) wake: Notify,
    /// Role, term or leader.
    pub(crate) changed: Notify,
    /// A round is over, or a checkpoint.
    pub(crate) progress: Notify,
    pub(crate) view: Cell<View>,
    pub(crate) next_tick: Cell<Instant>,
    pub(crate) checkpointing: Cell<bool>,
    stopped: RefCell<Option<StopReason>>,
    changing: Semaphore,
}

impl Inner {
    pub(crate) fn stop(&self, reason: StopReason) {
        if self.stopped.borrow().is_some() {
            return;
        }
        tracing::error!(voter = %self.number, %reason, "the voter stops");
        *self.stopped.borrow_mut() = Some(reason);
        let nobody = View { role: Role::Follower, leader: None, since: None, ..self.view.get() };
        self.view.set(nobody);
        self.inbox.borrow_mut().clear();
        let mut core = self.core.borrow_mut();
        core.fail_pending();
        for (_, answer) in std::mem::take(&mut core.proposals) {
            let _ = answer.send(Err(NotLeader { hint: None }.into()));
        }
        drop(core);
        self.changed.notify_all();
        self.progress.notify_all();
        self.wake.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.borrow().is_some()
    }

    /// Everything about a message that can be judged at once.
    pub(crate) fn check(&self, from: VoterNumber, bytes: &[u8]) -> Result<Incoming, StepError> {
        let (claimed, incoming) = wire::decode(bytes)?;
        if claimed != from || from == self.number {
            return Err(StepError::FalseName { from, claimed });
        }
        if let Incoming::Raft(message) = &incoming
            && message.to != self.number.0
        {
            return Err(StepError::NotForMe { to: VoterNumber(message.to), me: self.number });
        }
        Ok(incoming)
    }
}

fn possible(voters: &BTreeSet<VoterNumber>) -> bool {
    (1..=VOTERS_MAX).contains(&voters.len()) && !voters.contains(&VoterNumber(0))
}

/// One voter of a group. Cheap to clone; its task lives as long as the domain of the `Rt` that it
/// was started with.
#[derive(Clone)]
pub struct Consensus {
    inner: Rc<Inner>,
}

impl Consensus {
    /// Makes the first checkpoint of a new group durable. Each of its first voters does this, once,
    /// with the same set and a machine in the same state, and then starts with what it returns.
    pub async fn create(
        number: VoterNumber,
        voters: &BTreeSet<VoterNumber>,
        machine: &dyn Machine,
        store: &dyn Store,
    ) -> Result<Recovered, CreateError> {
        if !possible(voters) || !voters.contains(&number) {
            return Err(CreateError::Impossible { count: voters.len() });
        }
        // As if an entry had been committed in term 1: the library takes index 0 for "no group".
        let mut hard = HardState::default();
        (hard.term, hard.commit) = (1, 1);
        let voters = voters.iter().map(|voter| voter.0).collect();
        let conf = ConfState { voters, ..ConfState::default() };
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        (meta.index, meta.term) = (1, 1);
        *meta.mut_conf_state() = conf;
        snapshot.data = machine.snapshot().into();
        let bytes = encode_checkpoint(number, &hard, &snapshot, &[]);
        let durable = store.checkpoint(bytes.clone());
        durable.await?;
        let mut recovered = Recovered::new();
        recovered.snapshot(&bytes).expect("just written by us");
        Ok(recovered)
    }

    /// Starts a voter from what its store replayed. The machine is restored from the checkpoint in
    /// it, if there is one, and then applies what follows. With nothing recovered it waits until a
    /// leader finds it.
    pub fn start(
        rt: &Rt,
        number: VoterNumber,
        store: Rc<dyn Store>,
        net: Rc<dyn Net>,
        mut machine: Box<dyn Machine>,
        recovered: Recovered,
        settings: Settings,
    ) -> Result<Self, StartError> {
        settings.check().map_err(StartError::Settings)?;
        if number.0 == 0 {
            return Err(StartError::Number);
        }
        if let Some(found) = recovered.voter().filter(|found| *found != number) {
            return Err(RecoverError::OtherVoter { expected: number, found }.into());
        }
        recovered.check()?;
        if let Some((_, snapshot)) = recovered.machine() {
            machine.restore(snapshot)?;
        }
        let applied = recovered.snapshot.get_metadata().index;
        let log = Log::new(recovered.hard, recovered.snapshot, recovered.entries);
        let node = RawNode::new(&config(number, applied, &settings), log, &crate::logger::logger());
        let node = node.map_err(|error| StartError::Library(error.to_string()))?;
        let mut core = Core::new(number, node, machine, &settings, rt);
        if core.conf.voters == [number.0] && core.conf.voters_outgoing.is_empty() {
            // Nobody else to wait for. It can be refused only because entries that change the
            // voters must be applied first; then the election comes by time.
            let _ = core.node.campaign();
        }
        let inner = Rc::new(Inner {
            rt: rt.clone(),
            number,
            settings,
            store,
            net,
            core: RefCell::new(core),
            inbox: RefCell::default(),
            wake: Notify::new(),
            changed: Notify::new(),
            progress: Notify::new(),
            view: Cell::new(View { role: Role::Follower, term: 0, leader: None, since: None }),
            next_tick: Cell::new(rt.now()),
            checkpointing: Cell::new(false),
            stopped: RefCell::default(),
            changing: Semaphore::new(1),
        });
        rt.spawn(inner.clone().run());
        Ok(Self { inner })
    }

    /// Takes in a message from a peer, whom the transport has authenticated.
    pub fn step(&self, from: VoterNumber, message: &[u8]) -> Result<(), StepError> {
        if let Some(reason) = self.stopped() {
            return Err(StepError::Stopped(reason));
        }
        let incoming = self.inner.check(from, message)?;
        let mut inbox = self.inner.inbox.borrow_mut();
        inbox.push_back((from, incoming));
        if inbox.len() > self.inner.settings.inbox_messages_max {
            inbox.pop_front();
        }
        drop(inbox);
        self.inner.wake.notify_all();
        Ok(())
    }

    /// Proposes a command; answers with the machine's outcome when it is applied here. Dropping the
    /// future does not take the proposal back.
    pub async fn propose(&self, data: Vec<u8>) -> Result<Vec<u8>, ProposeError> {
        let max = self.inner.settings.proposal_bytes_max;
        if data.is_empty() || data.len() > max {
            return Err(ProposeError::Size { bytes: data.len(), max });
        }
        if self.role() != Role::Leader {
            return Err(self.not_leader().into());
        }
        let (answer, outcome) = oneshot::channel();
        self.inner.core.borrow_mut().proposals.push((data, answer));
        self.inner.wake.notify_all();
        outcome.await.unwrap_or(Err(ProposeError::Lost))
    }

    /// Waits until a quorum has confirmed, after this call began, that this voter leads, and until
    /// everything that was committed before is applied. One barrier serves all callers that wait.
    /// Takes as long as it takes: without a quorum, until the leader gives up
    /// (twice `Settings::election_ticks_min` at most).
    pub async fn read_barrier(&self) -> Result<(), NotLeader> {
        if self.role() != Role::Leader {
            return Err(self.not_leader());
        }
        let (answer, outcome) = oneshot::channel();
        self.inner.core.borrow_mut().barriers.push(answer);
        self.inner.wake.notify_all();
        outcome.await.unwrap_or(Err(NotLeader { hint: None }))
    }

    /// Makes exactly `wanted` the voters and returns when that is committed and most of them know
    /// it, durably: from then on the others can be switched off. **Not before**: after an error the
    /// voters of before must stay until a later call, at whoever leads then, has succeeded.
    ///
    /// Those who are new are learners until they have caught up; then all are added and removed in
    /// one joint change. One change at a time; others wait. A voter that is added must run (with
    /// [`Recovered::new`]): until it has caught up nothing else changes. Ends when the leadership
    /// ends, and after [`Settings::change_timeout_ms`] at the latest. Dropping the future begins no
    /// further step.
    ///
    /// A leader that is not wanted leads until the change is through, and then steps down. Those
    /// who are removed are told so once, and may miss it: see [`Status::removed`].
    pub async fn change_voters(&self, wanted: BTreeSet<VoterNumber>) -> Result<(), ChangeError> {
        if !possible(&wanted) {
            return Err(ChangeError::Impossible { count: wanted.len() });
        }
        let timeout_ms = self.inner.settings.change_timeout_ms;
        let limit = Duration::from_millis(timeout_ms);
        let changed = self.inner.rt.timeout(limit, self.change_to(wanted)).await;
        changed.unwrap_or_else(|_| {
            Err(ChangeError::Slow { timeout_ms, learners: self.status().learners })
        })
    }

    async fn change_to(&self, wanted: BTreeSet<VoterNumber>) -> Result<(), ChangeError> {
        let inner = &self.inner;
        let _turn = inner.changing.acquire(1).await;
        let mut begun = false;
        let term = self.term();
        loop {
            let progress = inner.progress.notified();
            let changed = inner.changed.notified();
            let Status { voters, voters_outgoing, learners, .. } = self.status();
            let settled = {
                let core = inner.core.borrow();
                core.settled == core.conf_index
            };
            let there = voters == wanted && voters_outgoing.is_empty() && settled;
            if begun && there && learners.is_empty() {
                return Ok(());
            }
            if self.role() != Role::Leader || self.term() != term {
                return Err(self.not_leader().into());
            }
            {
                let mut core = inner.core.borrow_mut();
                if let Some(step) = core.next_change(&wanted) {
                    core.change = Some(step);
                    begun = true;
                    inner.wake.notify_all();
                } else if there
                    && core.node.raft.commit_to_current_term()
                    && !core.node.raft.has_pending_conf()
                {
                    return Ok(());
                }
            }
            futures_util::future::select(Box::pin(progress), Box::pin(changed)).await;
        }
    }

    /// Gives the lead to the voter that knows most, where this one leads and there is another. Takes
    /// no proposals until that one leads, or an election's time has passed in vain: call it again
    /// then. Who waits finds the change by [`Consensus::changed`].
    pub fn give_lead_away(&self) -> bool {
        let given = self.inner.core.borrow_mut().give_lead_away();
        if given {
            self.inner.wake.notify_all();
        }
        given
    }

    fn not_leader(&self) -> NotLeader {
        NotLeader { hint: self.leader().filter(|leader| *leader != self.inner.number) }
    }

    /// This voter's number.
    pub fn number(&self) -> VoterNumber {
        self.inner.number
    }

    /// What it is.
    pub fn role(&self) -> Role {
        self.inner.view.get().role
    }

    /// Who leads, as far as is known; may be this voter.
    pub fn leader(&self) -> Option<VoterNumber> {
        self.inner.view.get().leader
    }

    /// The term.
    pub fn term(&self) -> u64 {
        self.inner.view.get().term
    }

    /// Since when it leads, where it leads: not before its election.
    pub fn leading_since(&self) -> Option<Instant> {
        self.inner.view.get().since
    }

    /// Notified when role, term or leader has changed, or the voter has stopped.
    pub fn changed(&self) -> &Notify {
        &self.inner.changed
    }

    /// Why the voter has stopped, if it has.
    pub fn stopped(&self) -> Option<StopReason> {
        self.inner.stopped.borrow().clone()
    }

    /// All there is to know.
    pub fn status(&self) -> Status {
        let view = self.inner.view.get();
        let core = self.inner.core.borrow();
        let log = &core.node.raft.raft_log;
        let set = |voters: &[u64]| voters.iter().map(|&voter| VoterNumber(voter)).collect();
        Status {
            role: view.role,
            term: view.term,
            leader: view.leader,
            last_index: log.last_index(),
            commit: log.committed,
            applied: core.applied.0,
            checkpoint: log.store.snapshot.get_metadata().index,
            memory_bytes: log.store.memory_bytes(),
            voters: set(&core.conf.voters),
            voters_outgoing: set(&core.conf.voters_outgoing),
            learners: set(&core.conf.learners),
            removed: core.is_removed(),
        }
    }
}

fn config(number: VoterNumber, applied: u64, settings: &Settings) -> Config {
    let ticks = |count: u32| usize::try_from(count).expect("a u32 fits");
    Config {
        applied,
        election_tick: ticks(settings.election_ticks_min),
        heartbeat_tick: ticks(settings.heartbeat_ticks),
        min_election_tick: ticks(settings.election_ticks_min),
        // Not included.
        max_election_tick: ticks(settings.election_ticks_max) + 1,
        max_size_per_msg: settings.append_bytes_max as u64,
        // Entries under way to a follower: times append_bytes_max, a few MiB.
        max_inflight_msgs: 32,
        check_quorum: true,
        pre_vote: true,
        // Leases would rely on clocks.
        read_only_option: ReadOnlyOption::Safe,
        ..Config::new(number.0)
    }
}
