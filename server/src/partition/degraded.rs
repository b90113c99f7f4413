//! Parity groups with missing members: how many there are, by the map of the moment.
//!
//! Counted now and then, not kept along: what is missing is a matter of the map, not of the
//! partition's state, and changes for millions of groups at once.

use bb_cluster::{ClusterMap, DeviceState};
use bb_proto::{DeviceId, PgBody};

use super::host::PartitionHost;
use super::pg::Pg;

/// Groups that are not whole, over the partitions that this node serves as their home.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Degraded {
    /// Groups with a missing member: its device was given up, or its node is down.
    pub groups: u64,
    /// Of these, groups that miss more members than they have parity: they cannot be read.
    pub unreadable: u64,
}

/// Devices whose blocks cannot be had, sorted.
fn missing_devices(map: &ClusterMap) -> Vec<DeviceId> {
    let missing = |entry: &&bb_cluster::DeviceEntry| {
        entry.state() != DeviceState::Active || !map.is_active(entry.node)
    };
    map.devices.iter().filter(missing).map(|entry| DeviceId(entry.id)).collect()
}

impl Degraded {
    fn add(&mut self, pg: &Pg, missing: &[DeviceId]) {
        let PgBody::Blocks { members, parity, .. } = &pg.descriptor.body else { return };
        if pg.home.as_ref().is_none_or(|home| home.dead) {
            return;
        }
        let lost = members.iter().filter(|m| missing.binary_search(&m.device).is_ok()).count();
        self.groups += u64::from(lost > 0);
        self.unreadable += u64::from(lost > usize::from(*parity));
    }
}

impl PartitionHost {
    /// As last counted: some seconds ago at the most.
    pub fn degraded(&self) -> Degraded {
        self.degraded.get()
    }

    /// Counts anew.
    pub async fn count_degraded(&self) {
        let missing = missing_devices(&self.env.shared.map());
        let mut sum = Degraded::default();
        if !missing.is_empty() {
            for partition in self.partitions() {
                for (_, pg) in partition.state().pgs.iter() {
                    sum.add(pg, &missing);
                }
                // Others want the core, too.
                self.env.rt.yield_now().await;
            }
        }
        self.degraded.set(sum);
    }
}
