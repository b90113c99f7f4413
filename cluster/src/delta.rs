//! What leads from one map to a later one.
//!
//! When a node dies, thousands of partitions get new replicas at once, and every node and client
//! wants to know. Few combinations of replicas occur among them, so the partitions travel as
//! columns: how far to the next one, its configuration number, and which combination it has.

use std::collections::BTreeMap;

use prost::Message;

use crate::map::{ClusterMap, DeviceEntry, MapError, NodeEntry, PartitionEntry};

/// Version of the encoded delta. A newer one is refused.
const FORMAT_VERSION: u32 = 1;

/// The changes between two epochs.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MapDelta {
    /// Version of this encoding.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Epoch of the only map to which it applies.
    #[prost(uint64, tag = "2")]
    pub base: u64,
    /// The new map without its lists: epoch, settings, next numbers.
    #[prost(message, required, tag = "3")]
    pub rest: ClusterMap,
    /// Nodes that are new or have changed, sorted.
    #[prost(message, repeated, tag = "4")]
    pub nodes: Vec<NodeEntry>,
    /// Devices that are new or have changed, sorted.
    #[prost(message, repeated, tag = "5")]
    pub devices: Vec<DeviceEntry>,
    /// Partitions that have changed: of the first its number, then the distance to the one before.
    #[prost(uint32, repeated, tag = "6")]
    pub steps: Vec<u32>,
    /// Their configuration numbers.
    #[prost(uint64, repeated, tag = "7")]
    pub configs: Vec<u64>,
    /// Which of `replicas` they have.
    #[prost(uint32, repeated, tag = "8")]
    pub which: Vec<u32>,
    /// Combinations of replicas; numbers are zero.
    #[prost(message, repeated, tag = "9")]
    pub replicas: Vec<PartitionEntry>,
    /// By how much the configuration number is above [`PartitionEntry::since`].
    #[prost(uint64, repeated, tag = "11")]
    pub tenures: Vec<u64>,
    /// [`PartitionEntry::born`] of each, or empty if all are zero.
    #[prost(uint64, repeated, tag = "10")]
    pub born: Vec<u64>,
}

/// What partitions have in common: primary, backups, filling nodes, lost.
type Replicas<'a> = (u32, &'a [u32], &'a [u32], bool);

/// The map without nodes, devices and partitions.
fn without_lists(map: &ClusterMap) -> ClusterMap {
    ClusterMap {
        cluster: map.cluster.clone(),
        bfs: map.bfs.clone(),
        nodes: Vec::new(),
        devices: Vec::new(),
        partitions: Vec::new(),
        ..*map
    }
}

impl MapDelta {
    /// The given entries of a map, as what leads there from epoch `base`. The caller knows which
    /// have changed since.
    pub(crate) fn of<'a>(
        base: u64,
        map: &ClusterMap,
        nodes: Vec<NodeEntry>,
        devices: Vec<DeviceEntry>,
        partitions: impl Iterator<Item = (u32, &'a PartitionEntry)>,
    ) -> Self {
        let rest = without_lists(map);
        let mut delta =
            Self { format: FORMAT_VERSION, base, rest, nodes, devices, ..Self::default() };
        let mut known: BTreeMap<Replicas<'_>, u32> = BTreeMap::new();
        let mut last = 0;
        for (id, entry) in partitions {
            delta.steps.push(id - last);
            last = id;
            delta.configs.push(entry.config);
            delta.tenures.push(entry.config.saturating_sub(entry.since));
            delta.born.push(entry.born);
            let next = u32::try_from(known.len()).unwrap_or(u32::MAX);
            let which = *known
                .entry((entry.primary, &entry.backups, &entry.filling, entry.lost))
                .or_insert(next);
            if which == next {
                delta.replicas.push(PartitionEntry {
                    config: 0,
                    since: 0,
                    born: 0,
                    ..entry.clone()
                });
            }
            delta.which.push(which);
        }
        if delta.born.iter().all(|born| *born == 0) {
            delta.born.clear();
        }
        delta
    }

    /// The bytes of the delta.
    pub fn encode_delta(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads a delta.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn decode_delta(bytes: &[u8]) -> Result<Self, MapError> {
        let delta = Self::decode(bytes).map_err(|error| MapError::Decode(error.to_string()))?;
        if delta.format > FORMAT_VERSION {
            return Err(MapError::Newer(delta.format));
        }
        Ok(delta)
    }

    /// The map that follows from `map`.
    ///
    /// # Errors
    /// [`MapError::NotTheBase`] for another map than the delta's base, others where it is damaged.
    pub fn apply(&self, map: &ClusterMap) -> Result<ClusterMap, MapError> {
        if map.epoch != self.base || map.cluster != self.rest.cluster {
            return Err(MapError::NotTheBase { has: map.epoch, base: self.base });
        }
        if self.rest.epoch <= self.base {
            return Err(MapError::Inconsistent("a delta that leads back"));
        }
        self.rest.check_version()?;
        let mut next = ClusterMap {
            nodes: merged(&map.nodes, &self.nodes, |n| n.id),
            devices: merged(&map.devices, &self.devices, |d| d.id),
            partitions: map.partitions.clone(),
            ..without_lists(&self.rest)
        };
        self.apply_partitions(&mut next.partitions)?;
        next.check()?;
        Ok(next)
    }

    fn apply_partitions(&self, partitions: &mut [PartitionEntry]) -> Result<(), MapError> {
        const UNEVEN: MapError = MapError::Inconsistent("columns of a delta differ in length");
        let count = self.steps.len();
        let born_fits = self.born.is_empty() || self.born.len() == count;
        if self.configs.len() != count
            || self.which.len() != count
            || self.tenures.len() != count
            || !born_fits
        {
            return Err(UNEVEN);
        }
        let mut id = 0_u32;
        for at in 0..count {
            id = id
                .checked_add(self.steps[at])
                .ok_or(MapError::Inconsistent("a partition out of range"))?;
            let entry = partitions
                .get_mut(id as usize)
                .ok_or(MapError::Inconsistent("a partition out of range"))?;
            let replicas = self
                .replicas
                .get(self.which[at] as usize)
                .ok_or(MapError::Inconsistent("a combination out of range"))?;
            *entry = PartitionEntry {
                config: self.configs[at],
                since: self.configs[at].saturating_sub(self.tenures[at]),
                born: self.born.get(at).copied().unwrap_or(0),
                ..replicas.clone()
            };
        }
        Ok(())
    }
}

/// Old entries with those that are new or replaced, sorted.
fn merged<T: Clone>(old: &[T], changed: &[T], id: impl Fn(&T) -> u32) -> Vec<T> {
    let mut all: BTreeMap<u32, &T> = old.iter().map(|entry| (id(entry), entry)).collect();
    all.extend(changed.iter().map(|entry| (id(entry), entry)));
    all.into_values().cloned().collect()
}
