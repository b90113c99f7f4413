//! What must hold of several nodes: at any moment that nobody serves what another serves, and in the
//! end that all replicas of a partition are the same.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::ClusterMap;
use bb_proto::{ConfigNumber, NodeId, PartitionId};

use crate::counts::check_partitions;
use crate::workload::Bench;

/// Time for followers to hear how far everything is committed.
const SAME_WITHIN: Duration = Duration::from_secs(10);

/// Looks at all nodes now and then.
#[derive(Default)]
pub struct Watch {
    seen: RefCell<Option<Rc<ClusterMap>>>,
    /// How far each replica of a process had come: configuration and sequence of its last mutation.
    applied: RefCell<BTreeMap<ReplicaOfProcess, (ConfigNumber, u64)>>,
}

/// Node, incarnation, partition.
type ReplicaOfProcess = (NodeId, u64, PartitionId);

impl Watch {
    /// Looks once.
    pub fn look(&self, bench: &Bench) {
        for node in bench.world.nodes() {
            check_partitions(bench, &node);
        }
        if bench.family.has_nodes() {
            one_serves(bench);
            self.none_goes_back(bench);
            self.count_roles(bench);
        }
    }

    /// What a replica has applied was committed: no process may forget it, whatever fills it anew.
    fn none_goes_back(&self, bench: &Bench) {
        let mut applied = self.applied.borrow_mut();
        for node in bench.world.nodes() {
            let shared = &node.context().shared;
            for replica in node.replicas() {
                let id = replica.id();
                let now = {
                    let state = replica.state();
                    (state.applied_config(), state.applied())
                };
                let key = (shared.node, shared.incarnation.0, id);
                let before = applied.insert(key, now).unwrap_or(now);
                if now < before {
                    bench.violation(format!(
                        "the replica of partition {id} on node {} went back from {before:?} to \
                         {now:?}",
                        shared.node
                    ));
                }
            }
        }
    }

    /// Counts what the map says of roles that moved since the last look.
    fn count_roles(&self, bench: &Bench) {
        let Some(map) = bench.world.map() else { return };
        let Some(before) = self.seen.replace(Some(map.clone())) else { return };
        let mut tally = bench.world.tally.borrow_mut();
        for (now, then) in map.partitions.iter().zip(&before.partitions) {
            if now.primary != then.primary {
                let lives = map.is_active(then.primary)
                    && map.node(NodeId(then.primary)).map(|node| node.incarnation)
                        == before.node(NodeId(then.primary)).map(|node| node.incarnation);
                *(if lives { &mut tally.hand_overs } else { &mut tally.take_overs }) += 1;
            }
            let filled = now.backups.iter().filter(|node| then.filling.contains(node));
            tally.fillings += filled.count() as u64;
        }
    }
}

/// Of all processes that may answer for a partition there is one.
fn one_serves(bench: &Bench) {
    let mut serving: BTreeMap<PartitionId, (NodeId, Option<u64>)> = BTreeMap::new();
    for node in bench.world.nodes().iter().filter(|node| node.has_lease()) {
        let id = node.context().shared.node;
        for partition in node.partitions() {
            let tenure = partition.tenure();
            if let Some((other, other_tenure)) = serving.insert(partition.id(), (id, tenure)) {
                bench.violation(format!(
                    "partition {} is served by node {other} in tenure {other_tenure:?} and by \
                     node {id} in tenure {tenure:?}",
                    partition.id()
                ));
            }
        }
    }
}

/// While nothing is under way: all members of each partition hold the same.
pub async fn check_replicas(bench: &Bench) {
    let deadline = bench.rt().now() + SAME_WITHIN;
    loop {
        let different = different_replicas(bench);
        if different.is_empty() {
            return;
        }
        if bench.rt().now() >= deadline {
            return bench.violation(format!("replicas are not the same: {different}"));
        }
        bench.rt().sleep(Duration::from_millis(200)).await;
    }
}

fn different_replicas(bench: &Bench) -> String {
    let Some(map) = bench.world.map() else { return "nobody has a map".to_owned() };
    let nodes = bench.world.nodes();
    let mut different = Vec::new();
    for (id, entry) in (0..).map(PartitionId).zip(&map.partitions) {
        let states: Vec<(u32, Option<Vec<u8>>)> = entry
            .members()
            .map(|member| {
                let node = nodes.iter().find(|node| node.context().shared.node.0 == member);
                let replicas = node.map(|node| node.replicas()).unwrap_or_default();
                let replica = replicas.into_iter().find(|replica| replica.id() == id);
                (member, replica.map(|replica| replica.state_bytes()))
            })
            .collect();
        let odd = states.iter().filter(|(_, state)| state.is_none() || *state != states[0].1);
        let odd: Vec<String> = odd
            .map(|(node, state)| format!("{node} ({:?} bytes)", state.as_ref().map(Vec::len)))
            .collect();
        if !odd.is_empty() {
            let (primary, state) = &states[0];
            let len = state.as_ref().map(Vec::len);
            let odd = odd.join(", ");
            different.push(format!("partition {id}: primary {primary} ({len:?} bytes), {odd}"));
        }
    }
    different.join("; ")
}
