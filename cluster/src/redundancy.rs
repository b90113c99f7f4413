//! How well partitions are protected: for `bbadm cluster status`.

use crate::map::ClusterMap;

/// Counts of partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redundancy {
    /// Copies that each partition should have: 1+K.
    pub wanted: u32,
    /// Copies that the nodes permit, those that are away included: less than `wanted` where the
    /// cluster is too small for its K.
    pub possible: u32,
    /// Partitions with `possible` live copies or more.
    pub full: u32,
    /// Partitions that are served with fewer.
    pub reduced: u32,
    /// Partitions without a live replica.
    pub down: u32,
    /// Of these, partitions whose last replica is damaged: the operator must decide.
    pub lost: u32,
    /// Replicas that are being filled.
    pub filling: u32,
    /// Partitions that the operator once gave up: what they held before is lost.
    pub given_up: u32,
}

impl Redundancy {
    /// Everything has all the copies that were asked for.
    pub const fn is_full(&self) -> bool {
        self.reduced == 0 && self.down == 0 && self.possible >= self.wanted
    }
}

/// Counts over a map.
pub fn redundancy(map: &ClusterMap) -> Redundancy {
    let data_nodes = map.nodes.iter().filter(|n| !n.witness && !n.has_left()).count();
    let wanted = 1 + map.backups;
    let possible = wanted.min(u32::try_from(data_nodes).unwrap_or(u32::MAX));
    let mut counts = Redundancy { wanted, possible, ..Redundancy::default() };
    for entry in &map.partitions {
        let live = entry.members().filter(|id| map.is_active(*id)).count();
        match live {
            0 => counts.down += 1,
            live if live >= possible as usize => counts.full += 1,
            _ => counts.reduced += 1,
        }
        counts.filling += u32::try_from(entry.filling.len()).unwrap_or(u32::MAX);
        counts.lost += u32::from(entry.lost);
        counts.given_up += u32::from(entry.born != 0);
    }
    counts
}
