//! What partitions do unasked: tell members of dead groups to free, report what was released, ask
//! silent participants, and ask how truncates have ended.
//!
//! Everything here is a message that can be repeated and a mutation that can come twice; what
//! fails is tried again in the next round.

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bb_cluster::{ClusterMap, DeviceState};
use bb_proto::meta::{BlockName, FreeBlocks, PgHoldsReply, PgList, decode};
use bb_proto::{
    DeviceId, Kind, PartitionId, PgBody, PgId, RegionIndex, ServiceClass, TruncateEpoch,
};
use futures_util::future::join_all;

use super::engine::Partition;
use super::host::PartitionHost;
use super::mutation::Mutation;
use super::pg::Pg;
use super::pg_mutation::{FreedMembers, PgMutation};
use super::region_mutation::{RegionId, RegionMutation};
use crate::planted::{self, Planted};

/// Groups that one message names.
const GROUPS_PER_CALL: usize = 1024;
/// Dead groups of a partition that one round takes on.
const DEAD_PER_ROUND: usize = 4096;
/// Deaths come in crowds: a message that waits for so long names many.
const GATHER: Duration = Duration::from_millis(10);

/// Runs for as long as the host lives.
pub async fn run(host: Weak<PartitionHost>) {
    let Some((rt, config)) = host.upgrade().map(|host| (host.env.rt.clone(), host.config)) else {
        return;
    };
    let mut asked = rt.now();
    let mut counted = None;
    loop {
        let Some(woken) = host.upgrade().map(|host| host.meter.work.notified()) else { return };
        let left = match host.upgrade() {
            Some(host) => {
                host.tend_fillings();
                let left = host.reclaim().await;
                let now = (host.env.shared.map().epoch, rt.now());
                let old = |(epoch, at): (u64, bb_runtime::Instant)| {
                    epoch != now.0 || now.1.since(at) >= config.ask_interval
                };
                if counted.is_none_or(old) {
                    counted = Some(now);
                    host.count_degraded().await;
                }
                left
            }
            None => return,
        };
        if rt.now().since(asked) >= config.ask_interval {
            asked = rt.now();
            if let Some(host) = host.upgrade() {
                host.ask_silent().await;
                host.ask_truncates().await;
            }
        }
        if left {
            rt.sleep(config.work_interval).await;
        } else {
            // Nothing to do is not an error: a timeout brings the next look at silent ones.
            let _ = rt.timeout(config.work_interval, woken).await;
            rt.sleep(GATHER).await;
        }
    }
}

type Releases = BTreeMap<(PartitionId, PartitionId), Vec<PgId>>;
type Blocks = BTreeMap<DeviceId, Vec<(PartitionId, PgId, u32)>>;

impl PartitionHost {
    /// Frees dead groups and reports released ones; true if something is left to do.
    pub async fn reclaim(&self) -> bool {
        self.report_releases().await;
        self.free_dead().await;
        self.partitions().any(|partition| partition.state().pgs.has_work())
    }

    async fn report_releases(&self) {
        let mut releases = Releases::new();
        for partition in self.partitions() {
            for pg in partition.state().pgs.owed() {
                releases.entry((partition.id(), pg.home)).or_default().push(pg);
            }
        }
        join_all(releases.iter().flat_map(|((participant, home), pgs)| {
            pgs.chunks(GROUPS_PER_CALL).map(|pgs| self.report_release(*participant, *home, pgs))
        }))
        .await;
    }

    async fn report_release(&self, participant: PartitionId, home: PartitionId, pgs: &[PgId]) {
        let list =
            PgList { pgs: pgs.iter().map(|pg| (*pg).into()).collect(), participant: participant.0 };
        let answer = self.ask_partition(Kind::PgRelease, ServiceClass::Reclaim, home, &list).await;
        if let Err(error) = answer {
            tracing::debug!(%home, %error, "a release was not reported yet");
            return;
        }
        let acked = PgMutation::ReleaseAcked { pgs: pgs.to_vec() };
        self.log(participant, Mutation::Pg(acked)).await;
    }

    /// Logs a mutation of the background. A failure of the log shows everywhere else, too.
    async fn log(&self, partition: PartitionId, mutation: Mutation) {
        let Some(partition) = self.partition(partition) else { return };
        if let Err(failure) = partition.submit(ServiceClass::Reclaim, mutation).await {
            tracing::debug!(%failure, "background work was not logged");
        }
    }

    async fn free_dead(&self) {
        let blocks = self.blocks_to_free();
        let calls = blocks.iter().flat_map(|(device, blocks)| {
            blocks.chunks(GROUPS_PER_CALL).map(|chunk| self.free_blocks(*device, chunk))
        });
        let mut freed: BTreeMap<(PartitionId, PgId), u32> = BTreeMap::new();
        for (partition, pg, index) in join_all(calls).await.into_iter().flatten() {
            *freed.entry((partition, pg)).or_default() |= 1 << index;
        }
        let mut logs: BTreeMap<PartitionId, Vec<FreedMembers>> = BTreeMap::new();
        for ((partition, pg), members) in freed {
            logs.entry(partition).or_default().push(FreedMembers { pg, members });
        }
        join_all(logs.into_iter().map(|(partition, groups)| {
            self.log(partition, Mutation::Pg(PgMutation::Freed { groups }))
        }))
        .await;
    }

    /// What can be freed now. Groups that only wait for nodes that are down are set aside until the
    /// map changes: they must not hold up the others, nor be looked at again and again.
    fn blocks_to_free(&self) -> Blocks {
        let map = self.env.shared.map();
        let changed = self.parked_at.replace(map.epoch) != map.epoch;
        let mut blocks = Blocks::new();
        for partition in self.partitions() {
            if changed {
                partition.state.borrow_mut().pgs.unpark();
            }
            let mut parked = Vec::new();
            for pg in partition.state().pgs.dead().take(DEAD_PER_ROUND) {
                let id = pg.descriptor.pg;
                let before = parked.len();
                parked.push(id);
                for (device, index) in members_to_free(pg) {
                    if !is_away(&map, device) {
                        parked.truncate(before);
                        blocks.entry(device).or_default().push((partition.id(), id, index));
                    }
                }
            }
            partition.state.borrow_mut().pgs.park(&parked);
        }
        blocks
    }

    /// Tells a device to free; returns what it, or its absence, has acked.
    async fn free_blocks(
        &self,
        device: DeviceId,
        blocks: &[(PartitionId, PgId, u32)],
    ) -> Vec<(PartitionId, PgId, u32)> {
        let map = self.env.shared.map();
        let entry = map.device(device);
        if entry.is_none_or(|entry| entry.state != i32::from(DeviceState::Active)) {
            // Failed for good: should it come back, it is formatted, or asks about every block.
            return blocks.to_vec();
        }
        let Some((address, incarnation)) = self.env.shared.driver(device) else {
            return Vec::new();
        };
        let name = |(_, pg, index): &(PartitionId, PgId, u32)| BlockName {
            pg: (*pg).into(),
            index: *index,
        };
        let list = FreeBlocks { blocks: blocks.iter().map(name).collect() };
        let target = (device.0, incarnation);
        match self.ask(&address, Kind::FreeBlocks, ServiceClass::Reclaim, target, &list).await {
            Ok(_) => blocks.to_vec(),
            Err(_) if planted::is(Planted::ForgetUnfreed) => blocks.to_vec(),
            Err(error) => {
                tracing::debug!(%device, %error, "blocks were not freed yet");
                Vec::new()
            }
        }
    }

    /// Asks participants about groups that only they keep alive: one that never got its commit
    /// will never report (rule 2).
    pub async fn ask_silent(&self) {
        let old = self.old_slots_end();
        let mut questions = Releases::new();
        let mut silent = std::collections::BTreeSet::new();
        for partition in self.partitions() {
            for pg in partition.state().pgs.silent() {
                let id = pg.descriptor.pg;
                for participant in unreleased(pg) {
                    silent.insert((id, participant));
                    let asked = self.holders.borrow().contains(&(id, participant));
                    if id.slot.0 < old && !asked {
                        questions.entry((partition.id(), participant)).or_default().push(id);
                    }
                }
            }
        }
        self.holders.borrow_mut().retain(|holder| silent.contains(holder));
        join_all(questions.iter().flat_map(|((home, participant), pgs)| {
            pgs.chunks(GROUPS_PER_CALL).map(|pgs| self.ask_holds(*home, *participant, pgs))
        }))
        .await;
    }

    async fn ask_holds(&self, home: PartitionId, participant: PartitionId, pgs: &[PgId]) {
        let list =
            PgList { pgs: pgs.iter().map(|pg| (*pg).into()).collect(), participant: participant.0 };
        let class = ServiceClass::Reclaim;
        let Ok(answer) = self.ask_partition(Kind::PgHolds, class, participant, &list).await else {
            return;
        };
        let Ok(reply) = decode::<PgHoldsReply>(&answer.body) else { return };
        if reply.held.len() != pgs.len() {
            return;
        }
        let mut released = Vec::new();
        for (pg, held) in pgs.iter().zip(&reply.held) {
            if *held {
                self.holders.borrow_mut().insert((*pg, participant));
            } else {
                released.push(*pg);
            }
        }
        if let Some(partition) = self.partition(home)
            && let Err(failure) =
                self.log_release(&partition, participant, released.into_iter()).await
        {
            tracing::debug!(%failure, "a release was not logged");
        }
    }

    /// Asks the file records of regions in which a truncate has not ended: the message that said
    /// so may be lost, or the region was opened after it was sent.
    pub async fn ask_truncates(&self) {
        let mut open: Vec<(Rc<Partition>, RegionId, TruncateEpoch)> = Vec::new();
        for partition in self.partitions() {
            let state = partition.state();
            for id in state.regions.truncating() {
                if let Some(region) = state.regions.get(id) {
                    open.push((partition.clone(), id, region.epoch()));
                }
            }
        }
        for (partition, id, epoch) in open {
            let owner = self.partition_of(id.fid, RegionIndex(0));
            let class = ServiceClass::Reclaim;
            let Ok(file) = self.file_state(owner, id.fid, epoch, class).await else { continue };
            if file.known && file.epoch == epoch.0 && !file.truncating {
                let done = RegionMutation::TruncateDone { id, epoch };
                self.log(partition.id(), Mutation::Region(done)).await;
            }
        }
    }
}

/// The device's node is down, and may come back with its blocks.
fn is_away(map: &ClusterMap, device: DeviceId) -> bool {
    let entry = map.device(device).filter(|entry| entry.state() == DeviceState::Active);
    entry.is_some_and(|entry| !map.is_active(entry.node))
}

fn members_to_free(pg: &Pg) -> Vec<(DeviceId, u32)> {
    let freed = pg.home.as_ref().map_or(0, |home| home.freed_members);
    let PgBody::Blocks { members, .. } = &pg.descriptor.body else { return Vec::new() };
    let named = (0..).zip(members).map(|(index, member)| (member.device, index));
    named.filter(|(_, index)| freed & (1 << index) == 0).collect()
}

fn unreleased(pg: &Pg) -> Vec<PartitionId> {
    let Some(home) = &pg.home else { return Vec::new() };
    let silent = home.participants.iter().filter(|participant| !participant.released);
    silent.map(|participant| participant.partition).collect()
}
