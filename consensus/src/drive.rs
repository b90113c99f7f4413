//! The one task of a voter: takes in what came, makes durable what follows from it, and only then
//! says so.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use raft::eraftpb::{Entry, HardState, Message, MessageType};
use raft::{Ready, SnapshotStatus, StateRole};

use crate::VoterNumber;
use crate::consensus::{Inner, Role, View};
use crate::errors::StopReason;
use crate::records::{encode_append, encode_checkpoint};
use crate::sanity::{Verdict, judge};
use crate::wire::{self, Incoming, Piece};

type Outgoing = BTreeMap<VoterNumber, Vec<Vec<u8>>>;

impl Inner {
    pub(crate) async fn run(self: Rc<Self>) {
        // Not all at the same moment.
        let phase = self.rt.random_below(self.tick().as_nanos().try_into().unwrap_or(u64::MAX));
        self.next_tick.set(self.rt.now() + Duration::from_nanos(phase));
        loop {
            let woken = self.wake.notified();
            if let Err(reason) = self.drive().await {
                self.stop(reason);
            }
            if self.is_stopped() {
                return;
            }
            let wait = self.next_tick.get().since(self.rt.now());
            let _ = self.rt.timeout(wait, woken).await;
        }
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(self.settings.tick_ms)
    }

    /// Until there is nothing more to do.
    async fn drive(self: &Rc<Self>) -> Result<(), StopReason> {
        loop {
            if self.is_stopped() {
                return Ok(());
            }
            // Here all that the library holds is durable.
            self.tick_if_due();
            self.take_in()?;
            self.settle();
            self.observe();
            {
                let mut core = self.core.borrow_mut();
                core.put_proposals();
                core.begin_barrier();
                core.drive_change();
                if !core.node.has_ready() {
                    return Ok(());
                }
            }
            self.cycle().await?;
            self.settle();
            self.core.borrow_mut().end_barrier();
            self.observe();
            self.progress.notify_all();
            self.checkpoint_if_due();
        }
    }

    fn tick_if_due(&self) {
        let now = self.rt.now();
        let due = self.next_tick.get();
        if now < due {
            return;
        }
        // After a pause (a slow store) the ticks that were missed don't count: heartbeats that came
        // meanwhile must not look late.
        let late = now.since(due) > self.tick();
        self.next_tick.set(if late { now + self.tick() } else { due + self.tick() });
        let mut out = Outgoing::new();
        {
            let mut core = self.core.borrow_mut();
            core.tick(&self.settings, &self.rt);
            let (again, given_up) = core.bulk.tick();
            for (peer, piece) in again {
                put_pieces(self.number, &mut out, peer, &[piece]);
            }
            for peer in given_up {
                core.node.report_snapshot(peer.0, SnapshotStatus::Failure);
            }
        }
        self.post(out);
    }

    /// Sees whether the voters of the last change can do without those of before.
    fn settle(&self) {
        let settled = {
            let mut core = self.core.borrow_mut();
            let settled = core.settle();
            core.step_down_if_removed(&self.settings);
            settled
        };
        if settled {
            self.progress.notify_all();
        }
    }

    /// Gives the library what came, up to a message that must wait until what is there is durable.
    fn take_in(&self) -> Result<(), StopReason> {
        let mut out = Outgoing::new();
        let taken = self.take_in_to(&mut out);
        self.post(out);
        taken
    }

    fn take_in_to(&self, out: &mut Outgoing) -> Result<(), StopReason> {
        let mut core = self.core.borrow_mut();
        loop {
            let Some((from, incoming)) = self.inbox.borrow_mut().pop_front() else {
                return Ok(());
            };
            match incoming {
                Incoming::Raft(message) => match judge(&core.node, &message) {
                    Verdict::Good if core.is_leaving() && core.is_append_answer(&message) => {
                        core.note_commit(&message);
                    }
                    Verdict::Good => {
                        if let Err(error) = core.node.step(*message) {
                            tracing::debug!(%from, %error, "message not taken");
                        }
                    }
                    Verdict::Nonsense(what) => tracing::warn!(%from, what, "message refused"),
                    Verdict::LogLost { commit, last } => {
                        return Err(StopReason::LogLost { commit, last });
                    }
                    Verdict::Later => {
                        self.inbox.borrow_mut().push_front((from, Incoming::Raft(message)));
                        return Ok(());
                    }
                },
                Incoming::Piece(piece) => {
                    let Some((answer, whole)) = core.bulk.piece(from, &piece) else {
                        tracing::warn!(%from, bytes = piece.total_bytes, "snapshot refused");
                        continue;
                    };
                    let answer = wire::encode_piece_taken(self.number, answer);
                    out.entry(from).or_default().push(answer);
                    if let Some(whole) = whole {
                        self.take_whole(from, &whole);
                    }
                }
                Incoming::PieceTaken(taken) => {
                    let (pieces, ended) = core.bulk.taken(from, taken);
                    put_pieces(self.number, out, from, &pieces);
                    if ended {
                        core.node.report_snapshot(from.0, SnapshotStatus::Finish);
                    }
                }
            }
        }
    }

    /// A message that came in pieces.
    fn take_whole(&self, from: VoterNumber, bytes: &[u8]) {
        match self.check(from, bytes) {
            Ok(Incoming::Raft(message)) => {
                self.inbox.borrow_mut().push_front((from, Incoming::Raft(message)));
            }
            Ok(_) => tracing::warn!(%from, "pieces within pieces refused"),
            Err(error) => tracing::warn!(%from, %error, "message refused"),
        }
    }

    /// One round of the library: what it wants durable, then what depends on it.
    async fn cycle(self: &Rc<Self>) -> Result<(), StopReason> {
        let mut ready = self.core.borrow_mut().node.ready();
        // A leader's appends may leave before its own copy is durable: it counts itself only then.
        // But not before its vote for itself is: one that needs no other vote is elected within
        // the round, and could be elected in the same term again.
        let early = ready.take_messages();
        let elected = ready.hs().is_some_and(|hard| {
            let core = self.core.borrow();
            let known = &core.node.store().hard;
            (hard.term, hard.vote) != (known.term, known.vote)
        });
        if !elected {
            self.send(&early);
        }
        self.core.borrow_mut().confirmed(ready.read_states());
        #[cfg(feature = "planted")]
        if crate::planted::sends_before_persist() {
            self.send(&ready.take_persisted_messages());
        }
        self.persist_snapshot(&ready).await?;
        self.persist_entries(ready.hs(), ready.entries()).await?;
        if elected {
            self.send(&early);
        }
        self.send(&ready.take_persisted_messages());
        let messages = {
            let mut core = self.core.borrow_mut();
            let committed = ready.take_committed_entries();
            // Before changes of voters are applied: the library expects a leader to be a voter
            // while it counts what is durable.
            let mut light = core.node.advance_append(ready);
            let commit = core.node.raft.raft_log.committed;
            core.node.mut_store().hard.commit = commit;
            core.apply(committed, &self.rt)?;
            core.apply(light.take_committed_entries(), &self.rt)?;
            let applied = core.applied.0;
            core.node.advance_apply_to(applied);
            light.take_messages()
        };
        // A leader has just learned what is committed.
        self.persist_entries(None, &[]).await?;
        self.send(&messages);
        Ok(())
    }

    /// A snapshot from the leader replaces log and machine.
    async fn persist_snapshot(&self, ready: &Ready) -> Result<(), StopReason> {
        let snapshot = ready.snapshot();
        if snapshot.is_empty() {
            return Ok(());
        }
        while self.checkpointing.get() {
            self.progress.notified().await;
        }
        let bytes = {
            let mut core = self.core.borrow_mut();
            // First, so that a snapshot that we can't read doesn't replace a log that we can.
            core.machine.restore(&snapshot.data)?;
            let hard = core.node.raft.hard_state();
            let meta = snapshot.get_metadata();
            core.conf = meta.get_conf_state().clone();
            core.applied = (meta.index, meta.term);
            core.conf_index = meta.index;
            let mut durable = hard;
            // Entries that may follow it in this round are not in it yet.
            durable.commit = meta.index;
            let bytes = encode_checkpoint(self.number, &durable, snapshot, &[]);
            let log = core.node.mut_store();
            log.hard = durable;
            log.install(snapshot.clone());
            bytes
        };
        self.rt.trace(snapshot.get_metadata().index);
        self.store.checkpoint(bytes).await?;
        self.core.borrow_mut().node.mut_store().commit_durable = snapshot.get_metadata().index;
        Ok(())
    }

    async fn persist_entries(
        &self,
        hard: Option<&HardState>,
        entries: &[Entry],
    ) -> Result<(), StopReason> {
        let (records, commit) = {
            let mut core = self.core.borrow_mut();
            let log = core.node.mut_store();
            let mut vote_changed = false;
            if let Some(hard) = hard {
                vote_changed = (hard.term, hard.vote) != (log.hard.term, log.hard.vote);
                #[cfg(feature = "planted")]
                if crate::planted::forgets_vote() {
                    vote_changed = false;
                }
                log.hard = hard.clone();
            }
            log.append(entries);
            // A commit index alone is worth no write: it goes with the next one, and a leader tells
            // it again. Except for a change of voters: who forgets that it is through counts votes
            // of those who are gone, and we answer the leader that we know.
            if entries.is_empty() && !vote_changed && !log.forgets_change() {
                return Ok(());
            }
            (encode_append(self.number, &log.hard, entries), log.hard.commit)
        };
        self.store.append(records).await?;
        self.core.borrow_mut().node.mut_store().commit_durable = commit;
        Ok(())
    }

    fn checkpoint_if_due(self: &Rc<Self>) {
        if self.checkpointing.get() || !self.core.borrow().needs_checkpoint(&self.settings) {
            return;
        }
        let bytes = self.core.borrow_mut().compact(self.settings.keep_entries);
        self.checkpointing.set(true);
        // Its place in the log is decided now; it is written while we go on.
        let durable = self.store.checkpoint(bytes);
        let inner = self.clone();
        self.rt.spawn(async move {
            let written = durable.await;
            inner.checkpointing.set(false);
            inner.progress.notify_all();
            if let Err(error) = written {
                inner.stop(error.into());
            }
        });
    }

    fn send(&self, messages: &[Message]) {
        if messages.is_empty() {
            return;
        }
        let mut out = Outgoing::new();
        for message in messages {
            let to = VoterNumber(message.to);
            let Some(bytes) = wire::encode(message) else {
                debug_assert!(false, "{:?} does not travel", message.get_msg_type());
                continue;
            };
            if message.get_msg_type() == MessageType::MsgSnapshot {
                // Whatever its size: pieces are answered, and the library wants to know.
                let pieces = self.core.borrow_mut().bulk.begin(to, bytes);
                put_pieces(self.number, &mut out, to, &pieces);
            } else if bytes.len() <= self.settings.message_bytes_max {
                out.entry(to).or_default().push(bytes);
            } else {
                tracing::error!(%to, bytes = bytes.len(), "message too large, not sent");
            }
        }
        self.post(out);
    }

    /// Outside of any borrow: the other side may answer within the call.
    fn post(&self, out: Outgoing) {
        for (to, messages) in out {
            self.net.send(to, messages);
        }
    }

    /// Sees what has become of us.
    fn observe(&self) {
        let seen = self.view.get();
        let view = {
            let core = self.core.borrow();
            let raft = &core.node.raft;
            let role = match raft.state {
                StateRole::Leader => Role::Leader,
                StateRole::Follower => Role::Follower,
                StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            };
            let since = if role != Role::Leader {
                None
            } else if (seen.role, seen.term) == (role, raft.term) {
                seen.since
            } else {
                Some(self.rt.now())
            };
            View { role, term: raft.term, leader: core.leader(), since }
        };
        if view == seen {
            return;
        }
        self.view.set(view);
        if (view.role, view.term) != (seen.role, seen.term) {
            self.rt.trace(view.term << 2 | u64::from(view.role == Role::Leader));
            let mut core = self.core.borrow_mut();
            core.draw_election_ticks(&self.settings, &self.rt);
            if seen.role == Role::Leader {
                core.fail_pending();
            }
        }
        self.changed.notify_all();
    }
}

fn put_pieces(me: VoterNumber, out: &mut Outgoing, to: VoterNumber, pieces: &[Piece]) {
    if !pieces.is_empty() {
        let encoded = pieces.iter().map(|piece| wire::encode_piece(me, piece));
        out.entry(to).or_default().extend(encoded);
    }
}
