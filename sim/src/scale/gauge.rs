//! What a cluster has counted up to a moment, and what one piece of work has added.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bb_proto::{Fid, PartitionId};
use bb_server::node::Node;

use super::tap::Traffic;
use crate::world::World;

/// Counters of a moment, or what was added between two.
#[derive(Clone, Default, Debug)]
pub struct Gauge {
    /// Virtual time, in nanoseconds.
    pub nanos: u64,
    /// Requests.
    pub traffic: Traffic,
    /// Mutations by partition, as its primary has applied them.
    pub mutations: BTreeMap<PartitionId, u64>,
    /// Log records, of all servers.
    pub log_records: u64,
    /// Their bytes.
    pub log_record_bytes: u64,
    /// Writes of the log: one holds many records.
    pub log_writes: u64,
    /// Bytes of these.
    pub log_write_bytes: u64,
    /// Memory of partitions' tables, of all replicas, as the budget counts it.
    pub metadata_bytes: u64,
    /// Fragments, in primaries.
    pub fragments: u64,
}

impl Gauge {
    /// Now.
    pub fn of(world: &World) -> Self {
        let mut gauge = Self {
            nanos: world.rt.now().as_nanos(),
            traffic: world.traffic.borrow().clone(),
            ..Self::default()
        };
        for node in world.nodes() {
            let stats = node.context().log.stats();
            gauge.log_records += stats.records;
            gauge.log_record_bytes += stats.record_bytes;
            gauge.log_writes += stats.groups;
            gauge.log_write_bytes += stats.group_bytes;
            for replica in node.replicas() {
                let state = replica.state();
                gauge.metadata_bytes += state.memory_bytes();
                if replica.serves() {
                    gauge.mutations.insert(replica.id(), state.applied());
                    gauge.fragments += state.regions.totals().fragments;
                }
            }
        }
        gauge
    }

    /// What was added since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let added = |(id, count): (&PartitionId, &u64)| {
            (*id, count - before.mutations.get(id).copied().unwrap_or(0))
        };
        Self {
            nanos: self.nanos - before.nanos,
            traffic: self.traffic.since(&before.traffic),
            mutations: self.mutations.iter().map(added).filter(|(_, more)| *more > 0).collect(),
            log_records: self.log_records - before.log_records,
            log_record_bytes: self.log_record_bytes - before.log_record_bytes,
            log_writes: self.log_writes - before.log_writes,
            log_write_bytes: self.log_write_bytes - before.log_write_bytes,
            metadata_bytes: self.metadata_bytes.saturating_sub(before.metadata_bytes),
            fragments: self.fragments.saturating_sub(before.fragments),
        }
    }
}

/// The parity groups of a file.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Of each group: how many partitions took fragments of it, and how many nodes lead these.
    pub spread: Vec<(usize, usize)>,
    /// Regions of the file that hold something.
    pub regions: usize,
    /// Partitions that these are in.
    pub partitions: usize,
    /// Fragments.
    pub fragments: u64,
}

impl Groups {
    /// Of a file, as the primaries have it.
    pub fn of(nodes: &[Rc<Node>], fid: Fid) -> Self {
        let mut groups = Self::default();
        let mut partitions = BTreeSet::new();
        for node in nodes {
            let map = node.context().shared.map();
            for replica in node.partitions() {
                let state = replica.state();
                for (id, region) in state.regions.iter() {
                    if id.fid == fid && !region.fragments().is_empty() {
                        groups.regions += 1;
                        groups.fragments += region.fragments().counts().fragments;
                        partitions.insert(replica.id());
                    }
                }
                for (_, pg) in state.pgs.iter().filter(|(_, pg)| pg.fid == fid) {
                    let Some(home) = &pg.home else { continue };
                    let others = home.participants.iter().map(|other| other.partition);
                    let all: BTreeSet<PartitionId> = others.chain([replica.id()]).collect();
                    let leaders: BTreeSet<u32> = all
                        .iter()
                        .filter_map(|id| map.partition(*id))
                        .map(|entry| entry.primary)
                        .collect();
                    groups.spread.push((all.len(), leaders.len()));
                }
            }
        }
        groups.partitions = partitions.len();
        groups
    }

    /// Partitions of a group: mean and most.
    pub fn participants(&self) -> (f64, usize) {
        mean_and_most(self.spread.iter().map(|(partitions, _)| *partitions))
    }

    /// Nodes that lead these: mean and most.
    pub fn leaders(&self) -> (f64, usize) {
        mean_and_most(self.spread.iter().map(|(_, leaders)| *leaders))
    }
}

fn mean_and_most(counts: impl Iterator<Item = usize>) -> (f64, usize) {
    let (mut number, mut sum, mut most) = (0_usize, 0_usize, 0);
    for count in counts {
        number += 1;
        sum += count;
        most = most.max(count);
    }
    (sum as f64 / number.max(1) as f64, most)
}
