//! Nodes and devices come, go and come back.

use bb_proto::{NodeId, PartitionId, Tick};

use super::{Effect, Outcome};
use crate::command::{DeviceName, Executed, Join, Leave, NodeName, Started};
use crate::failover::{begin_anew, fail_over};
use crate::limits::{MASS_TICKS, NAME_BYTES_MAX, NODES_MAX};
use crate::map::{ClusterMap, DeviceEntry, DeviceState, NodeEntry, NodeState};

fn node(map: &ClusterMap, id: u32) -> Result<&NodeEntry, String> {
    map.node(NodeId(id)).ok_or_else(|| format!("node {id} is not in the map"))
}

/// A new node gets numbers; a known one gets its own again, and new ones for devices that were
/// added to it (a drive that replaces a failed one is a new device).
pub(super) fn join(map: &mut ClusterMap, join: &Join, executed: &mut Executed) -> Outcome {
    check_names(join)?;
    let known = map.nodes.iter().find(|n| n.log == join.log);
    let id = known.map_or(map.next_node, |n| n.id);
    if let Some(node) = known {
        if node.has_left() || node.damaged {
            return Err(format!("node {id} was given up: format it, and it joins as a new one"));
        }
        if node.witness != join.witness {
            return Err(format!("node {id} cannot become or cease to be a witness"));
        }
    } else if id >= NODES_MAX {
        return Err(format!("the map holds no more than {NODES_MAX} nodes"));
    }
    let numbers = device_numbers(map, id, join)?;
    let is_new = known.is_none();
    if is_new {
        map.next_node += 1;
        map.nodes.push(NodeEntry {
            id,
            address: join.address.clone(),
            state: NodeState::Joining as i32,
            log: join.log.clone(),
            witness: join.witness,
            slice: join.slice.clone(),
            ..NodeEntry::default()
        });
    }
    let mut added = false;
    for (number, device) in numbers.iter().zip(&join.devices) {
        if *number >= map.next_device {
            map.next_device = number + 1;
            map.devices.push(DeviceEntry {
                id: *number,
                uuid: device.uuid.clone(),
                incarnation: 1,
                node: id,
                state: DeviceState::Active as i32,
                capacity_bytes: device.capacity_bytes,
            });
            added = true;
        }
    }
    executed.node = id;
    executed.devices = numbers;
    Ok(if is_new || added { Effect::Changed } else { Effect::Nothing })
}

fn check_names(join: &Join) -> Result<(), String> {
    if join.log.len() != 16 || join.devices.iter().any(|d| d.uuid.len() != 16) {
        return Err("UUIDs have 16 bytes".into());
    }
    if join.address.is_empty() || join.address.len() > NAME_BYTES_MAX {
        return Err(format!("an address has 1 to {NAME_BYTES_MAX} bytes"));
    }
    if join.slice.len() > NAME_BYTES_MAX {
        return Err(format!("a slice's name has up to {NAME_BYTES_MAX} bytes"));
    }
    if join.witness && !join.devices.is_empty() {
        return Err("a witness has no devices".into());
    }
    let twice = |(at, d): (usize, &crate::NewDevice)| {
        join.devices[..at].iter().any(|other| other.uuid == d.uuid)
    };
    if join.devices.iter().enumerate().any(twice) {
        return Err("the same device twice".into());
    }
    Ok(())
}

/// The number of each device asked for: its own, or the next that were never used.
fn device_numbers(map: &ClusterMap, node: u32, join: &Join) -> Result<Vec<u32>, String> {
    let mut next = map.next_device;
    let mut number =
        |device: &crate::NewDevice| match map.devices.iter().find(|d| d.uuid == device.uuid) {
            Some(known) if known.node == node => Ok(known.id),
            Some(known) => Err(format!("device {} belongs to node {}", known.id, known.node)),
            None => {
                let number = next;
                next = next.checked_add(1).ok_or("no device numbers are left")?;
                Ok(number)
            }
        };
    join.devices.iter().map(&mut number).collect()
}

/// A process begins: whatever its predecessor was asked under the old configuration numbers is
/// fenced.
pub(super) fn started(map: &mut ClusterMap, started: &Started) -> Outcome {
    let entry = node(map, started.node)?;
    if entry.log != started.log {
        return Err(format!("node {} has another log", entry.id));
    }
    if entry.has_left() {
        return Err(format!("node {} was given up", entry.id));
    }
    if entry.damaged {
        return Err(format!("the log of node {} is damaged", entry.id));
    }
    if started.incarnation == entry.incarnation && entry.is_active() {
        return Ok(Effect::Nothing);
    }
    if started.incarnation <= entry.incarnation {
        return Err(format!("node {} has incarnation {}", entry.id, entry.incarnation));
    }
    if started.address.is_empty() || started.address.len() > NAME_BYTES_MAX {
        return Err(format!("an address has 1 to {NAME_BYTES_MAX} bytes"));
    }
    for entry in map.partitions.iter_mut().filter(|p| p.primary == started.node) {
        entry.config += 1;
        entry.since = entry.config;
    }
    if let Some(entry) = map.node_mut(started.node) {
        entry.down_since = 0;
        entry.incarnation = started.incarnation;
        entry.address.clone_from(&started.address);
        entry.state = NodeState::Active as i32;
    }
    Ok(Effect::Changed)
}

pub(super) fn down(map: &mut ClusterMap, tick: Tick, name: NodeName) -> Outcome {
    let entry = node(map, name.node)?;
    if entry.incarnation != name.incarnation {
        return Err(format!("node {} has incarnation {}", entry.id, entry.incarnation));
    }
    if entry.has_left() {
        return Err(format!("node {} has left", entry.id));
    }
    if entry.state == NodeState::Down as i32 {
        return Ok(Effect::Nothing);
    }
    if entry.voter != 0 && !super::voters::majority_without(map, name.node) {
        return Err(format!("without node {} no majority of the voters is active", entry.id));
    }
    if went_down_lately(map, tick, name.node) >= map.backups.max(1) as usize {
        return Err(format!("as many nodes as K went down within {MASS_TICKS} ticks"));
    }
    take_down(map, tick, name.node);
    Ok(Effect::Changed)
}

/// How many other nodes went down a short time ago and are still down.
pub(crate) fn went_down_lately(map: &ClusterMap, tick: Tick, node: u32) -> usize {
    let lately = |n: &&NodeEntry| {
        n.state == NodeState::Down as i32 && tick.0 < n.down_since.saturating_add(MASS_TICKS)
    };
    map.nodes.iter().filter(|n| n.id != node).filter(lately).count()
}

fn take_down(map: &mut ClusterMap, tick: Tick, id: u32) {
    for (partition, entry) in (0..).zip(&mut map.partitions) {
        if let Some(next) = fail_over(PartitionId(partition), entry, NodeId(id)) {
            *entry = next;
        }
    }
    if let Some(entry) = map.node_mut(id) {
        entry.state = NodeState::Down as i32;
        entry.down_since = tick.0.max(1);
    }
}

/// A log has lost what it had acknowledged: nothing it says counts any more, no vote either. What
/// only it held is lost, unless the operator knows better.
pub(super) fn damaged(map: &mut ClusterMap, tick: Tick, name: NodeName) -> Outcome {
    let entry = node(map, name.node)?;
    if entry.incarnation != name.incarnation {
        return Err(format!("node {} has incarnation {}", entry.id, entry.incarnation));
    }
    if entry.damaged || entry.has_left() {
        return Ok(Effect::Nothing);
    }
    if entry.voter != 0 && !map.nodes.iter().any(|n| n.voter != 0 && n.id != name.node) {
        return Err(format!("node {} is the only voter", entry.id));
    }
    let was_down = entry.state == NodeState::Down as i32;
    if !was_down {
        take_down(map, tick, name.node);
    }
    for entry in map.partitions.iter_mut().filter(|p| p.primary == name.node) {
        entry.lost = true;
        entry.config += u64::from(was_down);
    }
    if let Some(entry) = map.node_mut(name.node) {
        entry.damaged = true;
        entry.voter = 0;
    }
    Ok(Effect::Changed)
}

/// A node is given up for good, and its devices with it. The last replica of a partition goes only
/// by the operator's word; the partition then begins anew, empty, on another node.
pub(super) fn leave(map: &mut ClusterMap, leave: Leave, executed: &mut Executed) -> Outcome {
    let entry = node(map, leave.node)?;
    if entry.has_left() {
        return Ok(Effect::Nothing);
    }
    if entry.incarnation != leave.incarnation {
        return Err(format!("node {} has incarnation {}", entry.id, entry.incarnation));
    }
    let is_down = entry.state == NodeState::Down as i32;
    if !is_down && entry.voter != 0 {
        return Err(format!("node {} votes: another has to take its place first", leave.node));
    }
    let held: Vec<u32> =
        map.numbered().filter(|(_, p)| p.names(leave.node)).map(|(id, _)| id).collect();
    if !is_down && !held.is_empty() {
        return Err(format!("node {} serves {} partitions", leave.node, held.len()));
    }
    executed.last_replicas.clone_from(&held);
    if !held.is_empty() && !leave.give_up {
        return Err(format!(
            "node {} has the last replica of {} partitions",
            leave.node,
            held.len()
        ));
    }
    let others: Vec<u32> = map.data_nodes().map(|n| n.id).filter(|id| *id != leave.node).collect();
    if !held.is_empty() && others.is_empty() {
        return Err("no active node is left to begin its partitions anew".into());
    }
    for id in held {
        let entry = &mut map.partitions[id as usize];
        if let Some(next) = begin_anew(PartitionId(id), entry, others.iter().copied()) {
            *entry = next;
        }
    }
    for device in map.devices.iter_mut().filter(|d| d.node == leave.node) {
        device.state = DeviceState::Failed as i32;
    }
    if let Some(entry) = map.node_mut(leave.node) {
        entry.state = NodeState::Left as i32;
    }
    Ok(Effect::Changed)
}

pub(super) fn device_failed(map: &mut ClusterMap, name: DeviceName) -> Outcome {
    let Some(at) = map.devices.binary_search_by_key(&name.device, |d| d.id).ok() else {
        return Err(format!("device {} is not in the map", name.device));
    };
    let device = &mut map.devices[at];
    if device.incarnation != name.incarnation {
        return Err(format!("device {} has incarnation {}", device.id, device.incarnation));
    }
    if device.state == DeviceState::Failed as i32 {
        return Ok(Effect::Nothing);
    }
    device.state = DeviceState::Failed as i32;
    Ok(Effect::Changed)
}
