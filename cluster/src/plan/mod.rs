//! What the Raft leader proposes next, as a pure function of the map and of what it knows: refill
//! what lost a replica, then balance, then the voters. Repeated, it comes to rest.

mod balance;
mod refill;
mod tally;
mod voters;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bb_proto::{NodeId, PartitionId};

use crate::command::{Change, Command, NewReplicas, Reconfigure};
use crate::map::{ClusterMap, PartitionEntry};
use tally::Tally;

/// What the leader knows beyond the map.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The leader itself: stays a voter.
    pub leader: NodeId,
    /// For how long each node has been in its state, as far as the leader saw; absent: not at all.
    pub for_how_long: &'a BTreeMap<NodeId, Duration>,
    /// Filling replicas of which the primary says that they are full.
    pub filled: &'a BTreeSet<(PartitionId, NodeId)>,
    /// Load of nodes, 0 idle to 1000 full: decides between nodes that are equal otherwise.
    pub load: &'a BTreeMap<NodeId, u32>,
}

impl Known<'_> {
    fn since(&self, node: u32) -> Duration {
        self.for_how_long.get(&NodeId(node)).copied().unwrap_or_default()
    }

    /// True if the node may get roles for the sake of balance: not one that comes and goes.
    fn is_settled(&self, map: &ClusterMap, node: u32, limits: &PlanLimits) -> bool {
        let first_life = map.node(NodeId(node)).is_some_and(|entry| entry.incarnation <= 1);
        first_life || self.since(node) >= limits.settle
    }
}

/// How much at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanLimits {
    /// Replicas that a node fills, and that it gives, at a time. Most are small: what a filling costs
    /// is its way through the map; how many snapshots are in memory, their sender decides.
    pub fillings_per_node: u32,
    /// Moves for the sake of balance that begin in one round.
    pub moves_per_round: usize,
    /// A node that was started again gets roles for the sake of balance only when it has been active
    /// for so long. (A new one gets them at once: who adds a node waits for it.)
    pub settle: Duration,
    /// A voter that is down is replaced after so long.
    pub voter_grace: Duration,
}

impl Default for PlanLimits {
    fn default() -> Self {
        Self {
            fillings_per_node: 64,
            moves_per_round: 64,
            settle: Duration::from_secs(30),
            voter_grace: Duration::from_secs(60),
        }
    }
}

/// What shall happen next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To be proposed. None of them takes the role of primary from anybody.
    pub commands: Vec<Command>,
    /// Primaries that shall hand over: each is asked, stops serving that partition, and proposes
    /// this change itself.
    pub handovers: Vec<NewReplicas>,
}

impl Plan {
    /// Nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.handovers.is_empty()
    }
}

/// The next steps. Deterministic; a cluster that is full and balanced gets none.
pub fn plan(map: &ClusterMap, known: &Known<'_>, limits: &PlanLimits) -> Plan {
    let mut round = Round::new(map, known, limits);
    round.complete();
    if round.refill() {
        // No copy is missing: now, and only now, it may be made nicer.
        round.balance_replicas();
        round.balance_primaries();
    }
    let mut plan = Plan { commands: Vec::new(), handovers: round.handovers };
    let changes: Vec<NewReplicas> = round
        .changes
        .into_iter()
        .map(|(partition, entry)| NewReplicas { partition, entry })
        .collect();
    let chunks = changes.chunks(CHANGES_PER_COMMAND);
    plan.commands.extend(
        chunks.map(|part| Change::Reconfigure(Reconfigure { changes: part.to_vec() }).into()),
    );
    plan.commands.extend(voters::plan_voters(map, known, limits));
    plan
}

/// A command must stay far below the largest entry of the log.
const CHANGES_PER_COMMAND: usize = 1024;

/// One round: each partition is changed at most once.
struct Round<'a> {
    map: &'a ClusterMap,
    known: &'a Known<'a>,
    limits: &'a PlanLimits,
    /// Copies that each partition shall have: 1+K, or as many as there are nodes.
    wanted: usize,
    tally: Tally,
    /// Who would go from partitions that have one more than wanted when their filling is complete.
    surplus: BTreeMap<u32, u32>,
    changes: BTreeMap<u32, PartitionEntry>,
    handovers: Vec<NewReplicas>,
    handed: BTreeSet<u32>,
}

impl<'a> Round<'a> {
    fn new(map: &'a ClusterMap, known: &'a Known<'a>, limits: &'a PlanLimits) -> Self {
        let wanted = (1 + map.backups as usize).min(map.data_nodes().count()).max(1);
        let mut tally = Tally::of(map);
        let surplus = tally.project(map, wanted);
        Self {
            map,
            known,
            limits,
            wanted,
            tally,
            surplus,
            changes: BTreeMap::new(),
            handovers: Vec::new(),
            handed: BTreeSet::new(),
        }
    }

    /// Partitions that are served, and not touched in this round.
    fn free(&self) -> impl Iterator<Item = (u32, &'a PartitionEntry)> + '_ {
        self.map.numbered().filter(|(id, entry)| {
            self.map.is_active(entry.primary)
                && !self.changes.contains_key(id)
                && !self.handed.contains(id)
        })
    }

    fn hand_over(&mut self, partition: u32, entry: &PartitionEntry, to: u32) {
        let mut next = entry.clone();
        next.backups.retain(|backup| *backup != to);
        next.backups.push(entry.primary);
        next.backups.sort_unstable();
        next.primary = to;
        self.tally.primary_moves(entry.primary, to);
        self.handed.insert(partition);
        self.handovers.push(NewReplicas { partition, entry: next });
    }
}
