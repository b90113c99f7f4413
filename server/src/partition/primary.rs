//! What a primary knows of its followers, and what they are sent.

use std::collections::{BTreeMap, BTreeSet};

use bb_proto::{ConfigNumber, NodeId};

use super::engine::Partition;
use super::role::{Follower, Phase, Primary, Role};
use super::tail::RecordBytes;
use crate::planted::{self, Planted};

/// An entry of a `Replicate` frame, on its way out.
pub(super) struct Sending {
    pub committed: u64,
    pub sequence: u64,
    pub previous: ConfigNumber,
    /// `None`: only the commit point.
    pub record: Option<RecordBytes>,
}

/// What a refusal by a follower means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lack {
    /// It is sent again from there.
    SentAgain,
    /// What it needs is not kept here any more.
    Forgotten,
}

impl Partition {
    /// Takes a role. What was known to be committed stays known; whoever waits for records that
    /// this node numbered under another role is told that their outcome is unknown.
    pub(super) fn set_role(&self, role: Role) {
        let point = self.commit_point();
        self.told.set(point);
        if role.phase().is_none() {
            self.drop_answers();
            self.tail.borrow_mut().keep_nothing();
        }
        *self.role.borrow_mut() = role;
        self.advance();
    }

    /// Begins a tenure: nothing is served, nothing new is committed yet.
    pub(super) fn begin_tenure(&self, since: u64) {
        self.drop_answers();
        self.tail.borrow_mut().keep_nothing();
        let (followers, snapshots) = (BTreeMap::new(), BTreeMap::new());
        let phase = Phase::Asking;
        self.set_role(Role::Primary(Primary { since, phase, followers, snapshots }));
    }

    /// Changes what is known of the tenure; nothing happens where this node is not the primary.
    pub(super) fn with_primary<T>(&self, change: impl FnOnce(&mut Primary) -> T) -> Option<T> {
        match &mut *self.role.borrow_mut() {
            Role::Primary(primary) => Some(change(primary)),
            _ => None,
        }
    }

    /// The tenure of this node, if it is the primary.
    pub fn tenure(&self) -> Option<u64> {
        self.with_primary(|primary| primary.since)
    }

    pub(super) fn phase(&self) -> Option<Phase> {
        self.role.borrow().phase()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.with_primary(|primary| primary.phase = phase);
        self.advance();
    }

    /// Takes no new requests, to give the role away. False if that is not to be done now.
    pub fn begin_hand_over(&self, config: ConfigNumber) -> bool {
        let may = self.config() == config && self.phase() == Some(Phase::Serving);
        if may {
            self.set_phase(Phase::Draining);
        }
        may
    }

    /// Goes on serving: the role was not given away.
    pub fn end_hand_over(&self, config: ConfigNumber) {
        if self.config() == config && self.phase() == Some(Phase::Draining) {
            self.set_phase(Phase::Serving);
        }
    }

    /// Waits until all that was begun has ended: no intent on the backing file system, no record
    /// that is not committed. In that very turn the partition is closed: nothing is numbered any
    /// more. False if the map has decided otherwise meanwhile.
    pub async fn drained(&self, config: ConfigNumber) -> bool {
        loop {
            let progress = self.progress.notified();
            if self.config() != config || self.phase() != Some(Phase::Draining) {
                return false;
            }
            let all_applied = self.tail.borrow().end() == self.tail.borrow().applied();
            if planted::is(Planted::ServeWhileHandingOver) {
                self.set_phase(Phase::Serving);
                return true;
            }
            if all_applied && !self.state().has_intents() {
                self.set_phase(Phase::HandingOver);
                return true;
            }
            progress.await;
        }
    }

    /// The members are these from now on (filling nodes join by themselves). Whoever was filled
    /// and is a member now counts.
    pub(super) fn set_members(&self, members: &BTreeSet<NodeId>, filling: &BTreeSet<NodeId>) {
        let applied = self.tail.borrow().applied();
        self.with_primary(|primary| {
            // A member that is filling now was taken down in between: it begins anew.
            primary.followers.retain(|node, follower| {
                members.contains(node) || follower.filling && filling.contains(node)
            });
            for node in members {
                let known = primary.followers.get(node).map_or(0, |follower| follower.acked);
                let mut follower = Follower::member(known);
                follower.next = follower.next.max(applied + 1);
                primary.followers.insert(*node, follower);
            }
            for follower in primary.followers.values_mut().filter(|f| f.filling) {
                follower.next = follower.acked + 1;
            }
        });
        self.forget_kept();
        self.advance();
        self.send_on();
        self.tell_commit_point();
    }

    /// Entries that `node` has not been sent, of about so many bytes.
    pub(super) fn take_entries(&self, node: NodeId, budget: &mut usize) -> Vec<Sending> {
        let committed = self.commit_point();
        let tail = self.tail.borrow();
        let taken = self.with_primary(|primary| {
            let mut entries = Vec::new();
            if primary.phase == Phase::Asking {
                return entries;
            }
            let Some(follower) = primary.followers.get_mut(&node) else { return entries };
            while follower.next <= tail.end() && (*budget > 0 || entries.is_empty()) {
                let known = tail.record(follower.next).zip(tail.config_at(follower.next - 1));
                let Some((record, previous)) = known else { break };
                *budget = budget.saturating_sub(record.len());
                let sequence = follower.next;
                entries.push(Sending { committed, sequence, previous, record: Some(record) });
                follower.next += 1;
            }
            entries
        });
        taken.unwrap_or_default()
    }

    /// The commit point alone, behind the last record that `node` was sent.
    pub(super) fn commit_entry(&self, node: NodeId) -> Option<Sending> {
        let committed = self.commit_point();
        let tail = self.tail.borrow();
        self.with_primary(|primary| {
            let follower = primary.followers.get(&node)?;
            let previous = tail.config_at(follower.next - 1)?;
            Some(Sending { committed, sequence: follower.next, previous, record: None })
        })?
    }

    /// True if there is something that `node` has not been sent.
    pub(super) fn has_entries(&self, node: NodeId) -> bool {
        let end = self.tail.borrow().end();
        let ready = self.with_primary(|primary| {
            let follower = primary.followers.get(&node);
            primary.phase != Phase::Asking && follower.is_some_and(|f| f.next <= end)
        });
        ready.unwrap_or(false)
    }

    /// `node` has logged everything up to `matched`, it says under `config`.
    pub(super) fn acknowledged(&self, node: NodeId, config: ConfigNumber, matched: u64) {
        if config != self.config.get() {
            return;
        }
        self.with_primary(|primary| {
            if let Some(follower) = primary.followers.get_mut(&node) {
                follower.acked = follower.acked.max(matched);
                follower.next = follower.next.max(follower.acked + 1);
            }
        });
        self.forget_kept();
        self.advance();
    }

    /// `node` lacks what comes behind `matched`.
    pub(super) fn lacks(&self, node: NodeId, config: ConfigNumber, matched: u64) -> Lack {
        if config != self.config.get() {
            return Lack::SentAgain;
        }
        let known =
            self.tail.borrow().record(matched + 1).is_some() || matched >= self.tail.borrow().end();
        self.with_primary(|primary| {
            let Some(follower) = primary.followers.get_mut(&node) else { return Lack::SentAgain };
            if matched < follower.acked {
                // An answer that was overtaken. (Should it have lost something: see `verify`.)
                follower.next = follower.acked + 1;
                return Lack::SentAgain;
            }
            if !known {
                return Lack::Forgotten;
            }
            follower.next = matched + 1;
            Lack::SentAgain
        })
        .unwrap_or(Lack::SentAgain)
    }

    /// What `node` was sent and has not acknowledged is sent again.
    pub(super) fn send_again(&self, node: NodeId) {
        self.with_primary(|primary| {
            if let Some(follower) = primary.followers.get_mut(&node) {
                follower.next = follower.acked + 1;
            }
        });
        self.send_on();
    }

    /// Records that every node which is being filled has need not be kept.
    pub(super) fn forget_kept(&self) {
        let needed = self.with_primary(|primary| {
            let joined = primary.followers.values().filter(|f| f.filling).map(|f| f.acked);
            joined.chain(primary.snapshots.values().copied()).min()
        });
        match needed.flatten() {
            Some(end) => self.tail.borrow_mut().forget(end),
            None => self.tail.borrow_mut().keep_nothing(),
        }
    }

    /// What is kept for nodes that are being filled has become too much: they begin again.
    pub(super) fn drop_slow_fillings(&self, kept_bytes_max: usize) {
        if self.tail.borrow().kept_bytes() > kept_bytes_max {
            self.with_primary(|primary| primary.followers.retain(|_, f| !f.filling || f.counts));
            self.forget_kept();
        }
    }
}
