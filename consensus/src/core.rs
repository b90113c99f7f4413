//! The library's node and everything around it that changes with it. Nothing here waits.

use std::collections::{BTreeMap, BTreeSet};

use bb_runtime::Rt;
use futures_channel::oneshot;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry,
    EntryType, Message, MessageType, Snapshot,
};
use raft::{RawNode, ReadState, StateRole};

use crate::bulk::Bulk;
use crate::errors::{NotLeader, ProposeError, StopReason};
use crate::log::Log;
use crate::parts::VoterChange;
use crate::records::encode_checkpoint;
use crate::{Machine, Position, Settings, VoterNumber};

/// A learner that lacks no more than this has caught up: the rest is on its way.
const LEARNER_BEHIND_MAX: u64 = 64;

pub(crate) type ProposalAnswer = oneshot::Sender<Result<Vec<u8>, ProposeError>>;
pub(crate) type BarrierAnswer = oneshot::Sender<Result<(), NotLeader>>;

/// A read barrier that is under way, for everybody who asked before it began.
pub(crate) struct Reading {
    context: u64,
    /// What must be applied, once the quorum has answered.
    index: Option<u64>,
    callers: Vec<BarrierAnswer>,
}

pub(crate) struct Core {
    pub(crate) number: VoterNumber,
    pub(crate) node: RawNode<Log>,
    pub(crate) machine: Box<dyn Machine>,
    pub(crate) bulk: Bulk,
    /// The voters as of what is applied.
    pub(crate) conf: ConfState,
    /// Where these became the voters (or a later index).
    pub(crate) conf_index: u64,
    /// The last `conf_index` that most of the voters are known to know of, durably.
    pub(crate) settled: u64,
    /// How long we lead though we are no voter any more.
    leaving_ticks: u32,
    /// Index and term of the last entry applied.
    pub(crate) applied: (u64, u64),
    pub(crate) proposals: Vec<(Vec<u8>, ProposalAnswer)>,
    /// By index: the term in which it was proposed here, and who waits.
    pub(crate) pending: BTreeMap<u64, (u64, ProposalAnswer)>,
    pub(crate) barriers: Vec<BarrierAnswer>,
    reading: Option<Reading>,
    barriers_begun: u64,
    pub(crate) change: Option<VoterChange>,
    election_ticks: usize,
}

impl Core {
    pub(crate) fn new(
        number: VoterNumber,
        node: RawNode<Log>,
        machine: Box<dyn Machine>,
        settings: &Settings,
        rt: &Rt,
    ) -> Self {
        let meta = node.store().snapshot.get_metadata();
        let (conf, applied) = (meta.get_conf_state().clone(), (meta.index, meta.term));
        let bulk =
            Bulk::new(settings.message_bytes_max, settings.snapshot_bytes_max, rt.random_u64());
        let mut core = Self {
            number,
            node,
            machine,
            bulk,
            conf,
            conf_index: applied.0,
            settled: 0,
            leaving_ticks: 0,
            applied,
            proposals: Vec::new(),
            pending: BTreeMap::new(),
            barriers: Vec::new(),
            reading: None,
            barriers_begun: 0,
            change: None,
            election_ticks: 0,
        };
        core.draw_election_ticks(settings, rt);
        core
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether the voters are known, and we are none, nor to become one.
    pub(crate) fn is_removed(&self) -> bool {
        let (me, conf) = (&self.number.0, &self.conf);
        let named = [&conf.voters, &conf.voters_outgoing, &conf.learners];
        !conf.voters.is_empty() && !named.iter().any(|set| set.contains(me))
    }

    pub(crate) fn leader(&self) -> Option<VoterNumber> {
        let leader = self.node.raft.leader_id;
        (leader != 0).then_some(VoterNumber(leader))
    }

    pub(crate) fn not_leader(&self) -> NotLeader {
        NotLeader { hint: self.leader().filter(|leader| *leader != self.number) }
    }

    /// When we would begin an election: drawn anew with each change of role or term, from the
    /// runtime. The library draws its own from the thread's generator, but looks at it only within
    /// `tick`, before which ours is set.
    pub(crate) fn draw_election_ticks(&mut self, settings: &Settings, rt: &Rt) {
        let (min, max) = (settings.election_ticks_min, settings.election_ticks_max);
        let ticks = u64::from(min) + rt.random_below(u64::from(max - min) + 1);
        self.election_ticks = usize::try_from(ticks).expect("a u32 fits");
    }

    pub(crate) fn tick(&mut self, settings: &Settings, rt: &Rt) {
        self.node.raft.set_randomized_election_timeout(self.election_ticks);
        self.node.tick();
        self.leaving_ticks = if self.is_leaving() { self.leaving_ticks + 1 } else { 0 };
        if !self.is_leader() && self.node.raft.election_elapsed == 0 {
            // It has just begun one; should it fail, the next is at another time.
            self.draw_election_ticks(settings, rt);
        }
    }

    /// Gives all proposals to the library at once: one message to each follower.
    pub(crate) fn put_proposals(&mut self) {
        if self.proposals.is_empty() {
            return;
        }
        let proposals = std::mem::take(&mut self.proposals);
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.number.0;
        let (mut entries, mut answers) = (Vec::new(), Vec::new());
        for (data, answer) in proposals {
            entries.push(Entry { data: data.into(), ..Entry::default() });
            answers.push(answer);
        }
        message.set_entries(entries.into());
        // A follower would forward them, and nobody would know what became of them.
        if !self.is_leader() || self.is_leaving() || self.node.step(message).is_err() {
            for answer in answers {
                let _ = answer.send(Err(self.not_leader().into()));
            }
            return;
        }
        let (end, term) = (self.node.raft.raft_log.last_index() + 1, self.node.raft.term);
        for (index, answer) in (end - answers.len() as u64..end).zip(answers) {
            self.pending.insert(index, (term, answer));
        }
    }

    /// Begins a barrier for all who wait, unless one is under way: they get the next one. A new
    /// leader first commits an entry of its term, before which it doesn't know what is committed.
    pub(crate) fn begin_barrier(&mut self) {
        if self.barriers.is_empty() {
            return;
        }
        // Who is no voter has no say in who leads: where only one voter is left, the library would
        // take us for it.
        if !self.is_leader() || self.is_leaving() {
            self.fail_barriers();
            return;
        }
        #[cfg(feature = "planted")]
        if crate::planted::barriers_without_quorum() {
            for caller in self.barriers.drain(..) {
                let _ = caller.send(Ok(()));
            }
            return;
        }
        if self.reading.is_some() || !self.node.raft.commit_to_current_term() {
            return;
        }
        self.barriers_begun += 1;
        let callers = std::mem::take(&mut self.barriers);
        self.reading = Some(Reading { context: self.barriers_begun, index: None, callers });
        self.node.read_index(self.barriers_begun.to_le_bytes().to_vec());
    }

    /// The quorum has confirmed barriers.
    pub(crate) fn confirmed(&mut self, states: &[ReadState]) {
        for state in states {
            let reading = self.reading.as_mut();
            if let Some(reading) =
                reading.filter(|r| r.context.to_le_bytes() == state.request_ctx.as_slice())
            {
                reading.index = Some(state.index);
            }
        }
    }

    /// Ends the barrier under way if what it waits for is applied.
    pub(crate) fn end_barrier(&mut self) {
        let applied = self.applied.0;
        let done = |r: &mut Reading| r.index.is_some_and(|index| index <= applied);
        if let Some(reading) = self.reading.take_if(done) {
            for caller in reading.callers {
                let _ = caller.send(Ok(()));
            }
        }
    }

    pub(crate) fn fail_barriers(&mut self) {
        let reading = self.reading.take().map_or(Vec::new(), |reading| reading.callers);
        for caller in reading.into_iter().chain(std::mem::take(&mut self.barriers)) {
            let _ = caller.send(Err(self.not_leader()));
        }
    }

    /// The leadership is over: nobody here learns any more what became of proposals.
    pub(crate) fn fail_pending(&mut self) {
        for (_, (_, answer)) in std::mem::take(&mut self.pending) {
            let _ = answer.send(Err(ProposeError::Lost));
        }
        self.fail_barriers();
        self.bulk.stop_sending();
        self.change = None;
    }

    /// The next step from the voters there are to the wanted ones: those who are new learn the log
    /// first, so that the group never waits for a majority that doesn't have it; then all change at
    /// once. Nothing where somebody still learns, or a step is under way.
    pub(crate) fn next_change(&self, wanted: &BTreeSet<VoterNumber>) -> Option<VoterChange> {
        let raft = &self.node.raft;
        let busy = self.is_leaving()
            || self.change.is_some()
            || raft.has_pending_conf()
            || !raft.commit_to_current_term()
            || !self.conf.voters_outgoing.is_empty();
        if busy {
            return None;
        }
        let wanted: BTreeSet<u64> = wanted.iter().map(|voter| voter.0).collect();
        let (voters, learners) = (&self.conf.voters, &self.conf.learners);
        let new: Vec<u64> = wanted.iter().copied().filter(|v| !voters.contains(v)).collect();
        let learn: Vec<u64> = new.iter().copied().filter(|v| !learners.contains(v)).collect();
        let stray = learners.iter().copied().filter(|v| !wanted.contains(v));
        if !learn.is_empty() {
            return Some(VoterChange { add: Vec::new(), learn, remove: stray.collect() });
        }
        let last = raft.raft_log.last_index();
        let caught_up = |id: &u64| {
            raft.prs().get(*id).is_some_and(|progress| {
                // Has begun: in a short log, nothing is not far behind.
                progress.matched > 0 && progress.matched + LEARNER_BEHIND_MAX >= last
            })
        };
        if !new.iter().all(caught_up) {
            return None;
        }
        let gone = voters.iter().copied().filter(|v| !wanted.contains(v));
        let remove: Vec<u64> = gone.chain(stray).collect();
        let step = VoterChange { add: new, learn: Vec::new(), remove };
        (!step.add.is_empty() || !step.remove.is_empty()).then_some(step)
    }

    /// Begins a change of voters that was asked for, or ends one whose first half is applied, also
    /// one that an earlier leader began.
    pub(crate) fn drive_change(&mut self) {
        if !self.is_leader() || self.is_leaving() || self.node.raft.has_pending_conf() {
            return;
        }
        // Refused by the library only where it is no leader: the caller sees that.
        if !self.conf.voters_outgoing.is_empty() {
            let _ = self.node.propose_conf_change(Vec::new(), ConfChangeV2::default());
        } else if let Some(change) = self.change.take() {
            let _ = self.node.propose_conf_change(change.encode(), joint(&change));
        }
    }

    /// Whether we lead though we are no voter any more: only until the voters know.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leader() && self.is_removed()
    }

    /// An answer to one of our own appends.
    pub(crate) fn is_append_answer(&self, message: &Message) -> bool {
        message.get_msg_type() == MessageType::MsgAppendResponse
            && message.term == self.node.raft.term
    }

    /// What an answer to an append says of its sender, for a leader that leaves. The library must
    /// not see it: what it commits it counts for itself too, and panics where it is no voter.
    pub(crate) fn note_commit(&mut self, answer: &Message) {
        if let Some(progress) = self.node.raft.mut_prs().get_mut(answer.from) {
            progress.update_committed(answer.commit);
        }
    }

    /// Whether it has just become known that most of the voters know, durably, that they are the
    /// voters. Before that the group needs those of before: a log may hold the entry that ends
    /// their time, but it counts only once it is known to be committed, and without them nobody
    /// could be elected to find out. (Where most know, one of them takes part in each election,
    /// and tells the others what is committed.)
    pub(crate) fn settle(&mut self) -> bool {
        let conf = &self.conf;
        if !self.is_leader() || self.settled == self.conf_index || !conf.voters_outgoing.is_empty()
        {
            return false;
        }
        let knows = |id: &&u64| self.commit_known_by(**id) >= self.conf_index;
        if conf.voters.iter().filter(knows).count() <= conf.voters.len() / 2 {
            return false;
        }
        self.settled = self.conf_index;
        true
    }

    /// Ours is durable too, where it is about the voters.
    fn commit_known_by(&self, voter: u64) -> u64 {
        self.node.raft.prs().get(voter).map_or(0, |progress| progress.committed_index)
    }

    /// A leader that is no voter any more names its successor and leaves, as soon as most voters
    /// know that they are, or when that takes longer than an election.
    pub(crate) fn step_down_if_removed(&mut self, settings: &Settings) {
        let settled = self.settled == self.conf_index;
        if !self.is_leaving() || (!settled && self.leaving_ticks < settings.election_ticks_min) {
            return;
        }
        let successor = self.successor();
        let raft = &mut self.node.raft;
        if let Some(successor) = successor {
            raft.send_timeout_now(successor);
        }
        raft.become_follower(raft.term, 0);
    }

    /// The other voter that knows most.
    fn successor(&self) -> Option<u64> {
        let matched = |id: u64| self.node.raft.prs().get(id).map_or(0, |p| p.matched);
        let knowing = |id: &u64| self.commit_known_by(*id) >= self.conf_index;
        let rank = |id: &&u64| (knowing(id), matched(**id), **id);
        let others = self.conf.voters.iter().filter(|id| **id != self.node.raft.id);
        others.max_by_key(rank).copied()
    }

    /// Begins to give the lead to another voter. False if there is none, or nothing to give.
    pub(crate) fn give_lead_away(&mut self) -> bool {
        let Some(successor) = self.successor().filter(|_| self.is_leader()) else { return false };
        self.node.transfer_leader(successor);
        true
    }

    pub(crate) fn apply(&mut self, entries: Vec<Entry>, rt: &Rt) -> Result<(), StopReason> {
        for entry in entries {
            let outcome = match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => None,
                EntryType::EntryNormal => {
                    let position = Position { index: entry.index, term: entry.term };
                    Some(self.machine.apply(position, &entry.data))
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.apply_change(&entry)?;
                    None
                }
            };
            self.applied = (entry.index, entry.term);
            rt.trace(entry.index ^ entry.term.rotate_left(32));
            if let Some((term, answer)) = self.pending.remove(&entry.index) {
                let outcome = outcome.filter(|_| term == entry.term);
                let _ = answer.send(outcome.ok_or(ProposeError::Lost));
            }
        }
        Ok(())
    }

    fn apply_change(&mut self, entry: &Entry) -> Result<(), StopReason> {
        let change = if entry.data.is_empty() {
            ConfChangeV2::default()
        } else {
            let change = VoterChange::decode(&entry.context);
            joint(&change.map_err(|error| StopReason::Log { what: error.to_string() })?)
        };
        let conf = self.node.apply_conf_change(&change);
        self.conf = conf.map_err(|error| StopReason::Log { what: error.to_string() })?;
        self.conf_index = entry.index;
        if self.is_leaving() {
            // That the change is committed.
            self.node.raft.bcast_append();
        }
        Ok(())
    }

    /// A checkpoint at what is applied: its bytes, after the log has gone on with it.
    pub(crate) fn compact(&mut self, keep: u64) -> Vec<u8> {
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        (meta.index, meta.term) = self.applied;
        *meta.mut_conf_state() = self.conf.clone();
        snapshot.data = self.machine.snapshot().into();
        let log = self.node.mut_store();
        log.hard.commit = log.hard.commit.max(self.applied.0);
        log.compacted(snapshot, keep);
        log.snapshot_wanted.set(false);
        encode_checkpoint(self.number, &log.hard, &log.snapshot, &log.kept(self.applied.0, keep))
    }

    pub(crate) fn needs_checkpoint(&self, settings: &Settings) -> bool {
        let log = self.node.store();
        let since = self.applied.0 - log.snapshot.get_metadata().index;
        since > 0
            && (since >= settings.checkpoint_entries
                || log.bytes_since_snapshot() >= settings.checkpoint_bytes
                || log.snapshot_wanted.get())
    }
}

/// The library's form of a change: always through a joint configuration, which we leave ourselves,
/// so that a new leader leaves one that it finds.
fn joint(change: &VoterChange) -> ConfChangeV2 {
    let single = |voter: u64, kind| {
        let mut single = ConfChangeSingle { node_id: voter, ..ConfChangeSingle::default() };
        single.set_change_type(kind);
        single
    };
    let adds = change.add.iter().map(|&voter| single(voter, ConfChangeType::AddNode));
    let learns = change.learn.iter().map(|&voter| single(voter, ConfChangeType::AddLearnerNode));
    let removes = change.remove.iter().map(|&voter| single(voter, ConfChangeType::RemoveNode));
    let mut joint = ConfChangeV2::default();
    joint.set_transition(ConfChangeTransition::Explicit);
    joint.set_changes(adds.chain(learns).chain(removes).collect::<Vec<_>>().into());
    joint
}
