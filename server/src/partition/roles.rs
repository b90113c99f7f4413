//! The map decides which replicas this node has, and what they are.

use std::collections::BTreeSet;
use std::rc::Rc;

use bb_cluster::{ClusterMap, PartitionEntry};
use bb_proto::meta::ReplicaCounts;
use bb_proto::{ConfigNumber, NodeId, PartitionId};

use super::engine::Partition;
use super::host::PartitionHost;
use super::replay::Replica;
use super::role::{Phase, Role};
use crate::planted::{self, Planted};

impl PartitionHost {
    /// Takes over what the map says now. `authoritative`: this process is active in it, and it is
    /// at least as new as its first lease, so that replicas which it does not name are removed.
    pub fn follow_map(self: &Rc<Self>, authoritative: bool) {
        let map = self.env.shared.map();
        let restarted = self.restarted(&map);
        for (id, entry) in (0..).map(PartitionId).zip(&map.partitions) {
            self.forget_fillings(id, &restarted);
            self.follow_entry(id, entry, authoritative);
            for node in entry.backups.iter().copied().map(NodeId) {
                if restarted.contains(&node)
                    && let Some(partition) = self.replica(id).filter(|p| p.tenure().is_some())
                {
                    self.env.rt.spawn(self.clone().verify(partition, node));
                }
            }
        }
        self.outbox.keep(|node| map.node(node).is_some());
    }

    /// Nodes whose processes are others than when this was asked last.
    fn restarted(&self, map: &ClusterMap) -> BTreeSet<NodeId> {
        let mut known = self.incarnations.borrow_mut();
        let now = map.nodes.iter().map(|node| (NodeId(node.id), node.incarnation));
        now.filter(|(node, now)| known.insert(*node, *now).is_some_and(|then| then != *now))
            .map(|(node, _)| node)
            .collect()
    }

    /// What the earlier process of a node was sent, the next one does not have: its filling begins
    /// anew, also where no map was seen that did not name it.
    fn forget_fillings(&self, id: PartitionId, restarted: &BTreeSet<NodeId>) {
        let Some(partition) = self.replica(id).filter(|_| !restarted.is_empty()) else { return };
        partition.with_primary(|primary| {
            primary.followers.retain(|node, f| !(f.filling && restarted.contains(node)));
        });
    }

    fn follow_entry(self: &Rc<Self>, id: PartitionId, entry: &PartitionEntry, authoritative: bool) {
        let me = self.env.shared.node.0;
        let config = ConfigNumber(entry.config);
        if entry.primary == me && self.must_be_born(id, entry) {
            self.begin_anew(id, entry.born);
            return;
        }
        let Some(partition) = self.replica(id) else {
            if entry.primary == me || entry.backups.contains(&me) {
                tracing::error!(partition = id.0, "the map names a replica that is not here");
                self.council().damaged(self.env.shared.node, "a replica is not there");
            }
            return;
        };
        if config < partition.config() {
            return;
        }
        if planted::is(Planted::IgnoreConfiguration)
            && entry.primary != me
            && !matches!(partition.phase(), None | Some(Phase::Asking | Phase::Spreading))
        {
            partition.set_phase(Phase::Serving);
            return;
        }
        let newer = config > partition.config();
        partition.config.set(config);
        if entry.primary == me {
            self.lead(&partition, entry, newer);
        } else if entry.backups.contains(&me) {
            follow(&partition);
        } else if entry.filling.contains(&me) {
            await_filling(&partition);
        } else if authoritative {
            self.remove(&partition);
        } else {
            partition.set_role(Role::Absent);
        }
    }

    /// True for a partition that was given up and begins anew here, where that has not happened yet:
    /// nothing is here, or only what is void. (A node that dies before its first snapshot is durable
    /// finds nothing; alone in the configuration, it has nobody who could have more.)
    fn must_be_born(&self, id: PartitionId, entry: &PartitionEntry) -> bool {
        if entry.born == 0 || !entry.backups.is_empty() {
            return false;
        }
        self.replica(id).is_none_or(|partition| partition.newest_config().0 < entry.born)
            || self.births.borrow().contains(&id)
    }

    /// Makes the empty partition durable; then the map is followed as usual.
    fn begin_anew(self: &Rc<Self>, id: PartitionId, born: u64) {
        if !self.births.borrow_mut().insert(id) {
            return;
        }
        tracing::warn!(partition = id.0, "begins anew, empty: what it held was given up");
        let replica = Replica::reborn(id, ConfigNumber(born));
        let snapshot = replica.snapshot();
        if let Some(void) = self.replicas.borrow_mut().remove(&id) {
            void.discard();
        }
        let written = self.journal.checkpoint(id, snapshot);
        let host = self.clone();
        self.env.rt.spawn(async move {
            let result = match written {
                Ok(written) => written.await,
                Err(failure) => Err(failure),
            };
            host.births.borrow_mut().remove(&id);
            match result {
                Ok(()) => {
                    host.adopt_replica(replica);
                    host.follow_map(false);
                }
                // Only its own log can fail it; then the node ends.
                Err(failure) => tracing::error!(partition = id.0, %failure, "cannot begin anew"),
            }
        });
    }

    fn lead(self: &Rc<Self>, partition: &Rc<Partition>, entry: &PartitionEntry, newer: bool) {
        let same_tenure = partition.tenure() == Some(entry.since);
        match partition.phase() {
            Some(Phase::Serving | Phase::Draining | Phase::HandingOver) if same_tenure => {
                if newer {
                    // Where it was giving the role away, the map has decided that it stays.
                    partition.set_phase(Phase::Serving);
                    let nodes = |list: &[u32]| list.iter().copied().map(NodeId).collect();
                    let backups: BTreeSet<NodeId> = nodes(&entry.backups);
                    let filling: BTreeSet<NodeId> = nodes(&entry.filling);
                    partition.set_members(&backups, &filling);
                    // What was asked for under the configuration before is void.
                    filling.iter().for_each(|node| self.follower_moved(partition, *node));
                }
                self.fill_new(partition);
            }
            _ if same_tenure && !newer => {}
            _ => {
                partition.begin_tenure(entry.since);
                let config = partition.config();
                self.env.rt.spawn(self.clone().take_over(partition.clone(), config));
            }
        }
    }

    /// A take-over has ended well.
    pub(super) fn begin_to_serve(self: &Rc<Self>, partition: &Rc<Partition>, config: ConfigNumber) {
        tracing::debug!(partition = partition.id().0, config = config.0, "serves");
        if let Some(hook) = &*self.on_serve.borrow() {
            hook(partition);
        }
        partition.set_phase(Phase::Serving);
        partition.send_on();
        self.fill_new(partition);
    }

    /// What the replicas of this node do, for status.
    pub fn replica_counts(&self) -> ReplicaCounts {
        let mut counts = ReplicaCounts::default();
        for partition in self.replicas() {
            let count = match &*partition.role.borrow() {
                Role::Primary(primary) if primary.phase == Phase::Serving => &mut counts.serving,
                Role::Primary(_) => &mut counts.changing,
                Role::Member(_) => &mut counts.following,
                Role::Filling(_) => &mut counts.filling,
                Role::Absent => &mut counts.absent,
            };
            *count += 1;
        }
        counts
    }

    /// A replica that the map names no more.
    fn remove(&self, partition: &Rc<Partition>) {
        partition.discard();
        self.replicas.borrow_mut().remove(&partition.id());
        self.incoming.borrow_mut().forget(partition.id());
        match self.journal.retire(partition.id()) {
            Ok(written) => {
                self.env.rt.spawn(async move {
                    if let Err(failure) = written.await {
                        tracing::error!(%failure, "a replica was not removed from the log");
                    }
                });
            }
            // It never got as far as the log.
            Err(failure) => tracing::debug!(%failure, "nothing to remove from the log"),
        }
    }

    /// A replica that a snapshot brings: nothing is taken by it before it is durable.
    pub(super) fn adopt_replica(&self, replica: Replica) -> Rc<Partition> {
        let id = replica.state.id();
        if let Some(old) = self.replicas.borrow_mut().remove(&id) {
            old.discard();
        }
        let partition = self.make(replica);
        partition.set_role(Role::Absent);
        self.replicas.borrow_mut().insert(id, partition.clone());
        partition
    }
}

fn follow(partition: &Rc<Partition>) {
    let role = match &*partition.role.borrow() {
        Role::Member(_) => return,
        Role::Filling(matched) => Role::Member(*matched),
        Role::Primary(_) | Role::Absent => Role::member(),
    };
    partition.set_role(role);
}

/// What a node has of an earlier time is not believed, unless it turns out that it was counted in.
fn await_filling(partition: &Rc<Partition>) {
    if !matches!(&*partition.role.borrow(), Role::Filling(_) | Role::Absent) {
        partition.set_role(Role::Absent);
    }
}
