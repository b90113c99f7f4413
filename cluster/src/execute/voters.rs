//! The wanted voters. The Raft group follows: additions first, then removals, one at a time.

use std::collections::BTreeMap;

use bb_proto::NodeId;

use super::{Effect, Outcome};
use crate::command::{Voter, Voters};
use crate::map::{ClusterMap, NodeEntry};

/// True if more than half of the voters are active without that node.
pub(super) fn majority_without(map: &ClusterMap, node: u32) -> bool {
    is_majority(map, |n| n.voter != 0, |n| n.is_active() && n.id != node)
}

fn is_majority(
    map: &ClusterMap,
    votes: impl Fn(&NodeEntry) -> bool,
    lives: impl Fn(&NodeEntry) -> bool,
) -> bool {
    let voting: Vec<&NodeEntry> = map.nodes.iter().filter(|n| votes(n)).collect();
    let living = voting.iter().filter(|n| lives(n)).count();
    2 * living > voting.len()
}

/// All of the command or none of it. Refused where the old voters or the new ones have no majority
/// that is active: then there is one at each step on the way, too.
pub(super) fn voters(map: &mut ClusterMap, wanted: &Voters) -> Outcome {
    let changes: BTreeMap<u32, &Voter> = wanted.voters.iter().map(|v| (v.node, v)).collect();
    if changes.len() != wanted.voters.len() {
        return Err("a node twice".into());
    }
    for voter in &wanted.voters {
        let node = map.node(NodeId(voter.node)).ok_or("a node is not in the map")?;
        if node.voter != voter.seen {
            return Err(format!("node {} has voter number {}", node.id, node.voter));
        }
        if voter.votes && voter.seen == 0 && !node.is_active() {
            return Err(format!("node {} is not active", node.id));
        }
    }
    let will = |n: &NodeEntry| changes.get(&n.id).map_or(n.voter != 0, |v| v.votes);
    let alive = NodeEntry::is_active;
    if !is_majority(map, will, alive) || !is_majority(map, |n| n.voter != 0, alive) {
        return Err("no majority of the voters would be active".into());
    }
    let mut changed = false;
    for voter in changes.values() {
        let number = match (voter.votes, voter.seen) {
            (true, 0) => map.next_voter,
            (true, seen) => seen,
            (false, _) => 0,
        };
        changed |= number != voter.seen;
        if number == map.next_voter {
            map.next_voter += 1;
        }
        if let Some(node) = map.node_mut(voter.node) {
            node.voter = number;
        }
    }
    Ok(if changed { Effect::Changed } else { Effect::Nothing })
}
