//! Clusters to test with, and what must hold of every one.

use std::collections::BTreeSet;

use bb_cluster::{
    Change, ClusterMap, ClusterState, Command, DeviceName, Join, Leave, NewDevice, NewReplicas,
    NodeEntry, NodeName, PartitionEntry, Reconfigure, Settings, Started, Tick, Voter, Voters,
};
use proptest::prelude::*;

pub const TERM: u64 = 3;

pub fn uuid(kind: u8, number: u32) -> Vec<u8> {
    let mut uuid = vec![kind; 16];
    uuid[..4].copy_from_slice(&number.to_le_bytes());
    uuid
}

/// What `bbd format` makes.
pub fn first_map(partitions: usize, backups: u32) -> ClusterMap {
    let node = NodeEntry {
        id: 1,
        address: "n1".into(),
        log: uuid(1, 1),
        voter: 1,
        ..NodeEntry::default()
    };
    let own = PartitionEntry { config: 1, primary: 1, ..PartitionEntry::default() };
    ClusterMap {
        epoch: 1,
        cluster: uuid(9, 9),
        bfs: uuid(8, 8),
        nodes: vec![node],
        partitions: vec![own; partitions],
        data: 2,
        region_log2: 26,
        lease_ms: 3000,
        drift_ms: 130,
        heartbeat_ms: 250,
        suspect_ms: 2000,
        backups,
        ..ClusterMap::default()
    }
}

pub fn join(log: u32, devices: u32, witness: bool) -> Change {
    let devices = (0..devices)
        .map(|i| NewDevice { uuid: uuid(2, log * 100 + i), capacity_bytes: 1 << 30 })
        .collect();
    let address = format!("n{log}");
    Change::Join(Join { log: uuid(1, log), address, devices, witness, slice: String::new() })
}

pub fn started(state: &ClusterState, id: u32) -> Change {
    let node = state.map.nodes.iter().find(|n| n.id == id).expect("known");
    Change::Started(Started {
        node: id,
        log: node.log.clone(),
        incarnation: node.incarnation + 1,
        address: node.address.clone(),
    })
}

pub fn name(state: &ClusterState, id: u32) -> NodeName {
    let incarnation = state.map.nodes.iter().find(|n| n.id == id).map_or(0, |n| n.incarnation);
    NodeName { node: id, incarnation }
}

pub fn run(state: &mut ClusterState, change: Change) -> bb_cluster::Executed {
    state.execute(TERM, &Command::of_term(change, TERM))
}

/// A cluster of so many nodes; node 1 is the first.
pub fn cluster(nodes: u32, partitions: usize, backups: u32) -> ClusterState {
    let mut state = ClusterState::default();
    assert_eq!(run(&mut state, Change::Create(first_map(partitions, backups))).void, "");
    for log in 2..=nodes {
        let id = run(&mut state, join(log, 2, false)).node;
        let change = started(&state, id);
        assert_eq!(run(&mut state, change).void, "");
    }
    state
}

/// A command made of random numbers: sometimes sensible, sometimes not.
pub fn change(state: &ClusterState, kind: u8, a: u32, b: u32, c: u32) -> Change {
    let nodes = &state.map.nodes;
    let pick = |n: u32| nodes[n as usize % nodes.len()].id;
    match kind % 12 {
        0 => Change::Tick(Tick { tick: state.tick.0 + u64::from(a % 40) }),
        1 => join(a % 9 + 1, b % 3, c.is_multiple_of(7)),
        2 | 3 => started(state, pick(a)),
        4 => Change::Down(name(state, pick(a))),
        5 => {
            let NodeName { node, incarnation } = name(state, pick(a));
            Change::Leave(Leave { node, incarnation, give_up: b.is_multiple_of(2) })
        }
        6 => Change::DeviceFailed(DeviceName { device: a % 12, incarnation: u64::from(b % 2) }),
        7 if a.is_multiple_of(3) => Change::Damaged(name(state, pick(b))),
        8 => {
            let settings = Settings {
                parity: Some(a % 4),
                backups: Some(b % 4),
                lease_ms: Some(c % 9000),
                ..Settings::default()
            };
            Change::Settings(settings)
        }
        9 => {
            let voter = |n: u32| {
                let node = &nodes[n as usize % nodes.len()];
                Voter { node: node.id, seen: node.voter, votes: (n / 8).is_multiple_of(2) }
            };
            Change::Voters(Voters { voters: vec![voter(a), voter(b)] })
        }
        _ => Change::Reconfigure(Reconfigure {
            changes: vec![mutated(state, a, b, c), mutated(state, c, a, b)],
        }),
    }
}

fn mutated(state: &ClusterState, a: u32, b: u32, c: u32) -> NewReplicas {
    let partition = a % u32::try_from(state.map.partitions.len()).expect("small");
    let mut entry = state.map.partitions[partition as usize].clone();
    let node = state.map.nodes[b as usize % state.map.nodes.len()].id;
    match c % 6 {
        0 | 1 => entry.filling.push(node),
        2 | 3 => entry.backups.append(&mut entry.filling),
        4 => std::mem::swap(&mut entry.primary, entry.backups.first_mut().unwrap_or(&mut 0)),
        _ => entry.backups.retain(|id| *id != node),
    }
    NewReplicas { partition, entry }
}

pub fn steps() -> impl Strategy<Value = Vec<(u8, u32, u32, u32)>> {
    prop::collection::vec((any::<u8>(), any::<u32>(), any::<u32>(), any::<u32>()), 1..80)
}

/// What holds between two states, one command apart.
pub fn check_step(before: &ClusterState, after: &ClusterState, command: &Command) {
    let (old, new) = (&before.map, &after.map);
    let changed = ClusterMap { epoch: 0, ..old.clone() } != ClusterMap { epoch: 0, ..new.clone() };
    assert_eq!(new.epoch, old.epoch + u64::from(changed), "the epoch rises exactly with changes");
    assert!(after.tick >= before.tick);
    assert!(new.next_node >= old.next_node && new.next_device >= old.next_device);
    assert!(new.next_voter >= old.next_voter);
    for node in &new.nodes {
        let had = old.nodes.iter().find(|n| n.id == node.id);
        assert!(had.is_some() || node.id >= old.next_node, "a node's number is used again");
        let voted = had.is_some_and(|n| n.voter == node.voter);
        assert!(voted || node.voter == 0 || node.voter >= old.next_voter, "a vote is used again");
    }
    for device in &new.devices {
        let had = old.devices.iter().find(|d| d.id == device.id);
        assert!(had.is_some() || device.id >= old.next_device, "a device's number is used again");
        assert!(had.is_none_or(|d| d.uuid == device.uuid), "a device's number was given away");
    }
    for (old, new) in old.partitions.iter().zip(&new.partitions) {
        if old == new {
            continue;
        }
        assert!(new.config > old.config, "the configuration number rises");
        let kept: BTreeSet<u32> = old.members().collect();
        if new.members().all(|m| !kept.contains(&m)) {
            let forced = matches!(command.change, Some(Change::Leave(leave)) if leave.give_up);
            assert!(forced, "the last replica was lost");
            assert_eq!((new.born, new.since), (new.config, new.config));
        }
        if new.primary != old.primary {
            assert_eq!(new.since, new.config, "a new primary begins a tenure");
        }
    }
}
