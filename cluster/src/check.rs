//! What holds of every map that commands made. Checked when a voter reads one, and by the tests
//! after each command.

use std::collections::BTreeSet;

use crate::limits::{BACKUPS_MAX, NUMBER_MAX};
use crate::map::{ClusterMap, MapError, PartitionEntry};

type Checked = Result<(), MapError>;

/// Everything that a map of voters must fulfil.
pub(crate) fn check(map: &ClusterMap) -> Checked {
    map.check()?;
    nodes(map)?;
    devices(map)?;
    ensure(map.epoch > 0 && map.epoch < NUMBER_MAX, "the epoch is out of range")?;
    ensure(map.backups <= BACKUPS_MAX, "more copies of the metadata than are possible")?;
    ensure(map.parity <= map.backups, "the geometry survives more than the metadata")?;
    map.partitions.iter().try_for_each(|entry| partition(map, entry))
}

fn ensure(holds: bool, what: &'static str) -> Checked {
    if holds { Ok(()) } else { Err(MapError::Inconsistent(what)) }
}

/// True if the numbers rise: sorted, and none twice.
fn rising(numbers: impl Iterator<Item = u32>) -> bool {
    let mut last = None;
    numbers.into_iter().all(|number| last.replace(number).is_none_or(|before| before < number))
}

fn nodes(map: &ClusterMap) -> Checked {
    ensure(rising(map.nodes.iter().map(|n| n.id)), "nodes are not in order")?;
    ensure(map.nodes.iter().all(|n| n.id < map.next_node), "a node above the next number")?;
    ensure(map.nodes.iter().all(|n| n.voter < map.next_voter), "a voter above the next number")?;
    ensure(map.nodes.iter().all(|n| n.log.len() == 16), "a log's UUID has 16 bytes")?;
    let logs: BTreeSet<&[u8]> = map.nodes.iter().map(|n| n.log.as_slice()).collect();
    ensure(logs.len() == map.nodes.len(), "two nodes with one log")?;
    let voters: Vec<u64> = map.nodes.iter().map(|n| n.voter).filter(|v| *v != 0).collect();
    let distinct: BTreeSet<&u64> = voters.iter().collect();
    ensure(distinct.len() == voters.len(), "two nodes with one voter number")?;
    ensure(!voters.is_empty(), "nobody votes")
}

fn devices(map: &ClusterMap) -> Checked {
    ensure(rising(map.devices.iter().map(|d| d.id)), "devices are not in order")?;
    ensure(map.devices.iter().all(|d| d.id < map.next_device), "a device above the next number")?;
    ensure(map.devices.iter().all(|d| d.uuid.len() == 16), "a device's UUID has 16 bytes")?;
    let uuids: BTreeSet<&[u8]> = map.devices.iter().map(|d| d.uuid.as_slice()).collect();
    ensure(uuids.len() == map.devices.len(), "two devices with one UUID")
}

/// Roles lie on active nodes that hold data. The one exception is a partition that is down: its
/// last replica is on a node that is away.
fn partition(map: &ClusterMap, entry: &PartitionEntry) -> Checked {
    let named: BTreeSet<u32> = entry.all_nodes().collect();
    ensure(named.len() == entry.all_nodes().count(), "a node twice in a partition")?;
    ensure(rising(entry.backups.iter().copied()), "backups are not in order")?;
    ensure(rising(entry.filling.iter().copied()), "filling nodes are not in order")?;
    ensure((1..NUMBER_MAX).contains(&entry.config), "a configuration number out of range")?;
    let past = entry.born <= entry.config && entry.since <= entry.config;
    ensure(past, "a tenure that begins in the future")?;
    let holds_data = |id: u32| map.node(bb_proto::NodeId(id)).is_some_and(|n| n.holds_data());
    ensure(
        entry.backups.iter().chain(&entry.filling).all(|id| holds_data(*id)),
        "a replica on a node that is away",
    )?;
    let primary = map.node(bb_proto::NodeId(entry.primary));
    ensure(primary.is_some_and(|n| !n.witness && !n.has_left()), "a primary that cannot be one")?;
    ensure(holds_data(entry.primary) || entry.backups.is_empty(), "a primary that is away")
}
