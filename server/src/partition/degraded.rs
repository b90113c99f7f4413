//! Parity groups with missing members: how many there are, by the map of the moment.
//!
//! Counted now and then, not kept along: what is missing is a matter of the map, not of the
//! partition's state, and changes for millions of groups at once.

use bb_cluster::{ClusterMap, DeviceEntry, DeviceState};
use bb_proto::{DeviceId, Member, PgBody};

use super::host::PartitionHost;
use super::pg::Pg;

/// Groups that are not whole, over the partitions that this node serves as their home.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Degraded {
    /// Groups with a missing member: its device was given up, or its node is down.
    pub groups: u64,
    /// Of these, groups that miss more members than they have parity: they cannot be read.
    pub unreadable: u64,
    /// Groups with parity of which two blocks share a node: they were written when there were too
    /// few nodes, and survive fewer of them than the geometry says.
    pub crowded: u64,
}

/// The devices of a map, sorted by number: the node of each, none where its blocks cannot be had.
struct Places(Vec<(DeviceId, Option<u32>)>);

impl Places {
    fn of(map: &ClusterMap) -> Self {
        let there =
            |entry: &DeviceEntry| entry.state() == DeviceState::Active && map.is_active(entry.node);
        let place = |entry: &DeviceEntry| there(entry).then_some(entry.node);
        Self(map.devices.iter().map(|entry| (DeviceId(entry.id), place(entry))).collect())
    }

    /// A device that the map does not know is one of a map to come.
    fn is_missing(&self, device: DeviceId) -> bool {
        self.find(device) == Some(None)
    }

    fn node(&self, device: DeviceId) -> Option<u32> {
        self.find(device).flatten()
    }

    fn find(&self, device: DeviceId) -> Option<Option<u32>> {
        let at = self.0.binary_search_by_key(&device, |(device, _)| *device).ok()?;
        Some(self.0[at].1)
    }
}

impl Degraded {
    fn add(&mut self, pg: &Pg, places: &Places) {
        let PgBody::Blocks { members, parity, .. } = &pg.descriptor.body else { return };
        if pg.home.as_ref().is_none_or(|home| home.dead) {
            return;
        }
        let lost = members.iter().filter(|m| places.is_missing(m.device)).count();
        self.groups += u64::from(lost > 0);
        self.unreadable += u64::from(lost > usize::from(*parity));
        let shares = |(at, member): (usize, &Member)| {
            let node = places.node(member.device);
            node.is_some() && members[..at].iter().any(|other| places.node(other.device) == node)
        };
        self.crowded += u64::from(*parity > 0 && members.iter().enumerate().any(shares));
    }
}

impl PartitionHost {
    /// As last counted: some seconds ago at the most.
    pub fn degraded(&self) -> Degraded {
        self.degraded.get()
    }

    /// Counts anew.
    pub async fn count_degraded(&self) {
        let places = Places::of(&self.env.shared.map());
        let mut sum = Degraded::default();
        for partition in self.partitions() {
            for (_, pg) in partition.state().pgs.iter() {
                sum.add(pg, &places);
            }
            // Others want the core, too.
            self.env.rt.yield_now().await;
        }
        self.degraded.set(sum);
    }
}
