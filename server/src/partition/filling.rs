//! A primary fills nodes that shall become backups.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::cluster::{InstallSnapshot, InstallSnapshotReply};
use bb_proto::meta::decode;
use bb_proto::{Kind, NodeId};

use super::engine::Partition;
use super::host::PartitionHost;
use super::role::{Follower, Phase};
use crate::planted::{self, Planted};

/// Bytes of one piece of a snapshot.
const PIECE_BYTES: usize = 512 << 10;
/// Records kept for a node that is being filled, in bytes; beyond, it begins again.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Snapshots that a node sends at a time: so many are in memory.
pub(super) const SNAPSHOTS_MAX: u64 = 4;
/// Pause after a piece that was not taken.
const AGAIN: Duration = Duration::from_millis(100);

impl PartitionHost {
    /// Begins to fill the nodes that the map says, and that are not being filled.
    pub(super) fn fill_new(self: &Rc<Self>, partition: &Rc<Partition>) {
        if partition.phase() != Some(Phase::Serving) {
            return;
        }
        for node in self.filling_of(partition.id()) {
            let known = partition.with_primary(|primary| primary.followers.contains_key(&node));
            if known == Some(false) && self.fillings.borrow_mut().insert((partition.id(), node)) {
                let (this, partition) = (self.clone(), partition.clone());
                self.env.rt.spawn(async move {
                    this.fill(&partition, node).await;
                    this.fillings.borrow_mut().remove(&(partition.id(), node));
                });
            }
        }
    }

    /// A filling node has lost what it was sent, or needs what is kept no more.
    pub(super) fn fill_again(self: &Rc<Self>, partition: &Rc<Partition>, node: NodeId) {
        let anew = partition.with_primary(|primary| {
            let filling = primary.followers.get(&node).is_some_and(|follower| follower.filling);
            filling.then(|| primary.followers.remove(&node)).is_some()
        });
        if anew == Some(true) {
            partition.forget_kept();
            self.fill_new(partition);
        } else {
            // A member that has no replica says so itself when it follows the map.
            partition.send_again(node);
        }
    }

    /// Sends a snapshot, then lets records follow.
    async fn fill(self: &Rc<Self>, partition: &Rc<Partition>, node: NodeId) {
        let Some(since) = partition.tenure() else { return };
        // What one process was sent, the next one does not have.
        let process = |host: &Self| host.env.shared.map().node(node).map(|entry| entry.incarnation);
        let filled = process(self);
        let still = |host: &Self| {
            partition.tenure() == Some(since)
                && process(host) == filled
                && host.filling_of(partition.id()).contains(&node)
        };
        while still(self) {
            // Many may be waited for; few have their snapshots in memory.
            let _room = self.snapshot_room.acquire(1).await;
            if !still(self) {
                break;
            }
            partition.tail.borrow_mut().keep();
            let (snapshot, end) = (partition.snapshot(), partition.tail.borrow().end());
            partition.with_primary(|primary| primary.snapshots.insert(node, end));
            let number = self.next_snapshot();
            if self.send_snapshot(partition, node, since, number, &snapshot, &still).await {
                let joined = still(self)
                    && partition.tail.borrow().kept_bytes() <= KEPT_BYTES_MAX
                    && partition
                        .with_primary(|primary| {
                            primary.followers.insert(node, Follower::filled(end));
                        })
                        .is_some();
                partition.with_primary(|primary| primary.snapshots.remove(&node));
                if joined {
                    self.outbox.ready_for(partition.id(), node);
                    self.follower_moved(partition, node);
                    return;
                }
            }
            self.env.rt.sleep(AGAIN).await;
        }
        partition.with_primary(|primary| primary.snapshots.remove(&node));
        partition.forget_kept();
    }

    async fn send_snapshot(
        &self,
        partition: &Partition,
        node: NodeId,
        since: u64,
        number: u64,
        snapshot: &[u8],
        still: &impl Fn(&Self) -> bool,
    ) -> bool {
        let total = snapshot.len() as u64;
        let mut have: usize = 0;
        loop {
            let end = (have + PIECE_BYTES).min(snapshot.len());
            let piece = InstallSnapshot {
                partition: partition.id().0,
                config: partition.config().0,
                since,
                snapshot: number,
                total,
                offset: have as u64,
                bytes: snapshot[have..end].to_vec(),
            };
            match self.ask_node(node, Kind::InstallSnapshot, &piece).await {
                Ok(body) => {
                    let reply: InstallSnapshotReply = decode(&body).unwrap_or_default();
                    have = usize::try_from(reply.have).unwrap_or(0).min(snapshot.len());
                    if reply.have >= total {
                        return true;
                    }
                }
                Err(why) => {
                    tracing::debug!(node = node.0, why, "a piece of a snapshot was not taken");
                    self.env.rt.sleep(AGAIN).await;
                }
            }
            if !still(self) || partition.tail.borrow().kept_bytes() > KEPT_BYTES_MAX {
                return false;
            }
        }
    }

    /// Something was acknowledged: a filling node may have everything now.
    pub(super) fn follower_moved(self: &Rc<Self>, partition: &Rc<Partition>, node: NodeId) {
        if partition.phase() != Some(Phase::Serving) {
            return;
        }
        let end = partition.tail.borrow().end();
        let ask = partition.with_primary(|primary| {
            let follower = primary.followers.get_mut(&node).filter(|f| f.filling)?;
            match follower.target {
                None if follower.acked >= end || planted::is(Planted::FillHalf) => {
                    // From now on nothing is committed without it.
                    follower.counts = !planted::is(Planted::FillHalf);
                    follower.target = Some(end);
                    Some(())
                }
                None => None,
                Some(target) => {
                    let full = follower.acked >= target || planted::is(Planted::FillHalf);
                    full.then_some(())
                }
            }
        });
        if ask.flatten().is_some() {
            let config = partition.config().0;
            tracing::debug!(partition = partition.id().0, config, node = node.0, "is filled");
            self.council().filled(partition.id(), partition.config(), node);
        }
    }

    /// Looks after nodes that are being filled: begins, begins again, asks again.
    pub(super) fn tend_fillings(self: &Rc<Self>) {
        for partition in self.partitions() {
            let filling = self.filling_of(partition.id());
            if filling.is_empty() {
                continue;
            }
            partition.drop_slow_fillings(KEPT_BYTES_MAX);
            self.fill_new(&partition);
            filling.iter().for_each(|node| self.follower_moved(&partition, *node));
        }
    }

    pub(super) fn filling_of(&self, id: bb_proto::PartitionId) -> BTreeSet<NodeId> {
        let map = self.env.shared.map();
        map.partition(id)
            .map(|entry| entry.filling.iter().copied().map(NodeId).collect())
            .unwrap_or_default()
    }
}
