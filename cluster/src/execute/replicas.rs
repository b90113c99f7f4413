//! New replicas for partitions: each change stands alone, under its own configuration number.

use std::collections::BTreeSet;

use bb_proto::NodeId;

use super::{Effect, Outcome};
use crate::command::{Executed, NewReplicas, Reconfigure};
use crate::limits::REPLICAS_MAX;
use crate::map::{ClusterMap, PartitionEntry};

pub(super) fn reconfigure(
    map: &mut ClusterMap,
    wanted: &Reconfigure,
    executed: &mut Executed,
) -> Outcome {
    let mut changed = false;
    let mut first_reason = None;
    for change in &wanted.changes {
        match next_entry(map, change) {
            Ok(next) => {
                map.partitions[change.partition as usize] = next;
                changed = true;
            }
            Err(why) => {
                executed.not_changed.push(change.partition);
                first_reason.get_or_insert(why);
            }
        }
    }
    match first_reason {
        _ if changed => Ok(Effect::Changed),
        None => Ok(Effect::Nothing),
        Some(why) => Err(format!("nothing was changed, first because {why}")),
    }
}

fn ensure(holds: bool, why: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(why) }
}

/// The entry as it will be. Whoever is a member afterwards has everything: it was one, or it was
/// filling and the proposer (the primary, or the leader told by it) knows that it is full. A change
/// to the same replicas is one: a primary that wanted to hand over goes on under a new number.
fn next_entry(map: &ClusterMap, change: &NewReplicas) -> Result<PartitionEntry, &'static str> {
    let now = map.partitions.get(change.partition as usize).ok_or("there is no such partition")?;
    let mut next = change.entry.clone();
    ensure(next.config == now.config, "the configuration has changed")?;
    next.backups.sort_unstable();
    next.filling.sort_unstable();
    next.born = now.born;
    next.lost = now.lost;
    ensure(next.all_nodes().count() <= REPLICAS_MAX, "that are too many replicas")?;
    let named: BTreeSet<u32> = next.all_nodes().collect();
    ensure(named.len() == next.all_nodes().count(), "a node has two parts")?;
    let holds_data = |id: &u32| map.node(NodeId(*id)).is_some_and(|n| n.holds_data());
    ensure(holds_data(&now.primary), "the partition is down")?;
    ensure(named.iter().all(holds_data), "a node is unknown, away or a witness")?;
    ensure(now.members().any(|m| m == next.primary), "the new primary was no member")?;
    ensure(next.backups.iter().all(|b| now.names(*b)), "a new backup was not filling before")?;
    // A replica leaves when a filled one has taken its place, or where there are more than wanted.
    let wanted = now.member_count().min(1 + map.backups as usize);
    ensure(next.member_count() >= wanted, "a replica would leave without another in its place")?;
    next.config += 1;
    next.since = if next.primary == now.primary { now.since } else { next.config };
    Ok(next)
}
