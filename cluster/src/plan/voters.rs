//! Who shall vote: 2K+1 nodes where there are enough, at least three, at most seven.

use super::{Known, PlanLimits};
use crate::command::{Change, Command, Voter, Voters};
use crate::map::{ClusterMap, NodeEntry};

/// How many voters make sense among so many nodes: an even number survives no more than the odd one
/// below it. Two nodes both vote: alone, one of them would not know what the other did.
fn target(map: &ClusterMap, eligible: usize) -> usize {
    let wanted = (2 * map.backups as usize + 1).clamp(3, 7).min(eligible);
    if wanted > 2 && wanted.is_multiple_of(2) { wanted - 1 } else { wanted }
}

/// The change of voters, if one is due. One that is down counts as a voter as long as nobody can
/// take its place, or until its grace is over.
pub(super) fn plan_voters(
    map: &ClusterMap,
    known: &Known<'_>,
    limits: &PlanLimits,
) -> Option<Command> {
    let rank = |n: &NodeEntry| match (n.is_active(), n.voter != 0) {
        (true, true) if n.id == known.leader.0 => Some(0),
        (true, true) => Some(1),
        (false, true) if n.has_left() || n.damaged => None,
        (false, true) if known.since(n.id) < limits.voter_grace => Some(2),
        // A witness is there to vote.
        (true, false) => Some(if n.witness { 3 } else { 4 }),
        (false, true) => Some(5),
        (false, false) => None,
    };
    let mut eligible: Vec<(u32, &NodeEntry)> =
        map.nodes.iter().filter_map(|n| Some((rank(n)?, n))).collect();
    eligible.sort_by_key(|(rank, n)| (*rank, n.id));
    eligible.truncate(target(map, eligible.len()));
    let chosen = |n: &NodeEntry| eligible.iter().any(|(_, other)| other.id == n.id);
    // Nothing that the condition of the command would refuse.
    let majority = |votes: &dyn Fn(&NodeEntry) -> bool| {
        let all = map.nodes.iter().filter(|n| votes(n)).count();
        2 * map.nodes.iter().filter(|n| votes(n) && n.is_active()).count() > all
    };
    if !majority(&chosen) || !majority(&|n| n.voter != 0) {
        return None;
    }
    let voters: Vec<Voter> = map
        .nodes
        .iter()
        .filter(|n| chosen(n) != (n.voter != 0))
        .map(|n| Voter { node: n.id, seen: n.voter, votes: chosen(n) })
        .collect();
    (!voters.is_empty()).then(|| Change::Voters(Voters { voters }).into())
}
