//! A process that ends in good order: its roles go to others while it still answers, then the lead of
//! the Raft group, then its place in the map. Without the last, writers would wait for a backup that
//! is gone until the leader has given it up.
//!
//! All of it is bounded: what cannot be given away in time is found by the others as if the process
//! had died.

use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{Change, Command, NewReplicas, NodeName, PartitionEntry, Reconfigure, fail_over};
use bb_proto::{ConfigNumber, PartitionId};
use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::handover::DRAIN;
use super::{AGAIN, Council};
use crate::partition::Partition;

/// For all partitions: the time in which each ends what it began, and two ways through the map.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(3);
/// For the lead, and for the map to say that this process is down: an election's time each.
const MAP_LIMIT: Duration = Duration::from_secs(1);
/// Partitions in one command, which must stay far below the largest entry of the log.
const CHANGES_PER_COMMAND: usize = 1024;

impl Council {
    /// Gives away what this process has, as far as others can take it, within five seconds.
    pub async fn leave_in_order(self: &Rc<Self>) {
        if !self.joined.get() || self.ending.borrow().is_some() || !self.has_company() {
            return;
        }
        let began = self.rt.now();
        let given = self.rt.timeout(HAND_OVER_LIMIT, self.hand_over_all()).await;
        let lead = self.rt.timeout(MAP_LIMIT, self.give_lead_away()).await;
        // What is left here has no primary from now on: the map may name others at once.
        self.shared.lease.end();
        let down = self.rt.timeout(MAP_LIMIT, self.go_down()).await;
        tracing::info!(
            roles = given.is_ok(),
            lead = lead.is_ok(),
            place = down.is_ok(),
            milliseconds = u64::try_from(self.rt.now().since(began).as_millis()).unwrap_or(0),
            "gave away what it had"
        );
    }

    /// True if another node could take something.
    fn has_company(&self) -> bool {
        let map = self.shared.map();
        map.nodes.iter().any(|node| node.id != self.shared.node.0 && node.is_active())
    }

    async fn hand_over_all(self: &Rc<Self>) {
        let host = self.partitions.borrow().upgrade();
        let Some(host) = host else { return };
        let map = self.shared.map();
        let wanted = host.replicas().into_iter().filter_map(|partition| {
            let entry = map.partition(partition.id())?;
            let change = self.without_this(partition.id(), entry)?;
            Some((partition, change))
        });
        let mut drains: FuturesUnordered<_> =
            wanted.map(|(partition, change)| self.drain(partition, change)).collect();
        // Those that have nothing under way go together, and the others as they come.
        while let Some(first) = drains.next().await {
            let mut changes: Vec<NewReplicas> = first.into_iter().collect();
            while changes.len() < CHANGES_PER_COMMAND
                && let Some(Some(next)) = drains.next().now_or_never()
            {
                changes.extend(next);
            }
            if changes.is_empty() {
                continue;
            }
            let executed = self.propose(Change::Reconfigure(Reconfigure { changes })).await;
            tracing::debug!(kept = executed.not_changed.len(), "roles were given away");
            self.fetch_map(None).await;
        }
    }

    /// The heir of a partition whose primary this is: whoever would follow if it died.
    fn without_this(&self, id: PartitionId, entry: &PartitionEntry) -> Option<NewReplicas> {
        let me = self.shared.node;
        let heir = fail_over(id, entry, me).filter(|next| next.primary != me.0)?;
        if entry.primary != me.0 {
            return None;
        }
        let mut next = entry.clone();
        next.primary = heir.primary;
        next.backups.retain(|backup| *backup != heir.primary);
        next.backups.push(me.0);
        Some(NewReplicas { partition: id.0, entry: next })
    }

    /// The change to propose, once nothing of the partition is under way here. One that has no time
    /// for that goes on until the end.
    async fn drain(&self, partition: Rc<Partition>, change: NewReplicas) -> Option<NewReplicas> {
        let config = ConfigNumber(change.entry.config);
        if !partition.begin_hand_over(config) {
            return None;
        }
        let drained = self.rt.timeout(DRAIN, partition.drained(config)).await;
        if drained.unwrap_or(false) {
            return Some(change);
        }
        partition.end_hand_over(config);
        None
    }

    async fn give_lead_away(&self) {
        let voter = self.voter.borrow().clone();
        let Some(voter) = voter else { return };
        loop {
            let changed = voter.consensus.changed().notified();
            if !voter.is_leader() || !voter.consensus.give_lead_away() {
                return;
            }
            let _ = self.rt.timeout(AGAIN, changed).await;
        }
    }

    /// Asks for this process's own end: without a lease it is none already.
    async fn go_down(self: &Rc<Self>) {
        let name = NodeName { node: self.shared.node.0, incarnation: self.shared.incarnation.0 };
        let executed = self.propose(Change::Down(name)).await;
        if !executed.void.is_empty() {
            tracing::info!(why = executed.void, "the map keeps its place");
        }
    }

    /// The command as this leader proposes it. A process asks for its own end without knowing the
    /// term: it has ended its lease for good, so that whichever term it comes true in does no harm.
    pub(super) fn in_term(command: Vec<u8>, term: u64) -> Vec<u8> {
        match Command::decode_command(&command) {
            Ok(Command { change: Some(Change::Down(name)), term: 0, .. }) => {
                Command::of_term(Change::Down(name), term).encode_command()
            }
            _ => command,
        }
    }
}
