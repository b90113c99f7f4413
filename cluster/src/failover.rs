//! What becomes of a partition when a node goes: a pure function of its entry, so that one command
//! moves the roles of thousands of partitions.

use bb_proto::{NodeId, PartitionId};

use crate::hash::{For, weight};
use crate::map::PartitionEntry;

/// The entry without the node, under the next configuration number; `None` where the node has no
/// part in it. An only replica stays: the partition is down and keeps it as its authority.
///
/// The new primary is the backup that weighs most for this partition: all of them hold everything
/// that was committed, and the weights spread a node's partitions evenly over the others.
pub fn fail_over(
    partition: PartitionId,
    entry: &PartitionEntry,
    node: NodeId,
) -> Option<PartitionEntry> {
    if !entry.names(node.0) {
        return None;
    }
    let mut next = entry.clone();
    next.backups.retain(|backup| *backup != node.0);
    next.filling.retain(|filling| *filling != node.0);
    next.config += 1;
    if entry.primary == node.0
        && let Some(primary) = heaviest(partition, next.backups.iter().copied())
    {
        next.primary = primary;
        next.since = next.config;
        next.backups.retain(|backup| *backup != primary);
    }
    Some(next)
}

/// The entry of a partition that was given up: empty, on the node that weighs most for it.
pub(crate) fn begin_anew(
    partition: PartitionId,
    entry: &PartitionEntry,
    nodes: impl Iterator<Item = u32>,
) -> Option<PartitionEntry> {
    let config = entry.config + 1;
    let primary = heaviest(partition, nodes)?;
    Some(PartitionEntry {
        config,
        primary,
        since: config,
        born: config,
        ..PartitionEntry::default()
    })
}

fn heaviest(partition: PartitionId, nodes: impl Iterator<Item = u32>) -> Option<u32> {
    nodes.max_by_key(|node| (weight(For::Partition, partition.0, *node), *node))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(primary: u32, backups: &[u32], filling: &[u32]) -> PartitionEntry {
        PartitionEntry {
            config: 7,
            primary,
            backups: backups.to_vec(),
            filling: filling.to_vec(),
            ..PartitionEntry::default()
        }
    }

    #[test]
    fn the_last_replica_stays_and_keeps_its_authority() {
        let next = fail_over(PartitionId(1), &entry(1, &[], &[2]), NodeId(1));
        assert_eq!(next, Some(PartitionEntry { config: 8, ..entry(1, &[], &[2]) }));
        assert_eq!(fail_over(PartitionId(1), &entry(1, &[2], &[]), NodeId(3)), None);
    }

    #[test]
    fn a_filling_node_never_becomes_primary() {
        for partition in 0..100 {
            let next = fail_over(PartitionId(partition), &entry(1, &[2], &[3, 4]), NodeId(1));
            assert_eq!(
                next,
                Some(PartitionEntry { config: 8, since: 8, ..entry(2, &[], &[3, 4]) })
            );
        }
    }

    #[test]
    fn primaries_of_a_dead_node_are_spread_evenly() {
        let mut got = [0_u32; 8];
        for partition in 0..7_000 {
            let backups: Vec<u32> = (1..8).collect();
            let next = fail_over(PartitionId(partition), &entry(0, &backups, &[]), NodeId(0));
            got[next.expect("seven backups").primary as usize] += 1;
        }
        // 1,000 each; five standard deviations are 146.
        assert!(got[1..].iter().all(|n| (850..1150).contains(n)), "{got:?}");
    }
}
