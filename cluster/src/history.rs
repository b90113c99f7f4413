//! Which map leads from where to here: answers "what has changed since epoch e".
//!
//! It remembers no changes, only the epoch at which each entry changed last: 8 bytes per entry,
//! however long it runs, and changes that overtook each other are sent once.

use std::collections::BTreeMap;

use prost::Message;

use crate::delta::MapDelta;
use crate::map::ClusterMap;

/// How many answers are kept ready. After a change, thousands ask from the same few epochs.
const READY_MAX: usize = 8;

/// What somebody with an older map needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapUpdate {
    /// Nothing: it has this map, or a newer one.
    Current,
    /// Bytes for [`MapDelta::decode_delta`].
    Delta(Vec<u8>),
    /// Bytes for [`ClusterMap::decode_map`].
    Whole(Vec<u8>),
}

/// Epochs of the last change of each entry.
#[derive(Debug)]
pub struct MapHistory {
    /// Nothing is known of changes up to this epoch.
    since: u64,
    epoch: u64,
    nodes: Vec<u64>,
    devices: Vec<u64>,
    partitions: Vec<u64>,
    whole_bytes: usize,
    ready: BTreeMap<u64, MapUpdate>,
}

impl MapHistory {
    /// A history that begins with this map.
    pub fn new(map: &ClusterMap) -> Self {
        Self {
            since: map.epoch,
            epoch: map.epoch,
            nodes: vec![map.epoch; map.nodes.len()],
            devices: vec![map.epoch; map.devices.len()],
            partitions: vec![map.epoch; map.partitions.len()],
            whole_bytes: map.encoded_len(),
            ready: BTreeMap::new(),
        }
    }

    /// The map has changed. Where `before` is not the map of the last call (a snapshot was
    /// installed, or it is another cluster's), the history begins anew.
    pub fn changed(&mut self, before: &ClusterMap, after: &ClusterMap) {
        let follows = before.epoch == self.epoch
            && before.epoch < after.epoch
            && before.cluster == after.cluster
            && is_prefix(&before.nodes, &after.nodes, |n| n.id)
            && is_prefix(&before.devices, &after.devices, |d| d.id)
            && before.partitions.len() == after.partitions.len();
        if !follows {
            *self = Self::new(after);
            return;
        }
        mark(&mut self.nodes, &before.nodes, &after.nodes, after.epoch);
        mark(&mut self.devices, &before.devices, &after.devices, after.epoch);
        mark(&mut self.partitions, &before.partitions, &after.partitions, after.epoch);
        self.epoch = after.epoch;
        self.whole_bytes = after.encoded_len();
        self.ready.clear();
    }

    /// What leads from epoch `from` to `map`, which is the map of the last call of
    /// [`Self::changed`]: the shorter of delta and whole map, or the whole one where `from` is too
    /// old.
    pub fn update(&mut self, map: &ClusterMap, from: u64) -> MapUpdate {
        debug_assert_eq!(map.epoch, self.epoch, "the history belongs to this map");
        if from >= self.epoch {
            return MapUpdate::Current;
        }
        // All who are too far behind get the same.
        let from = if from < self.since { 0 } else { from };
        if let Some(ready) = self.ready.get(&from) {
            return ready.clone();
        }
        let update = match self.delta(map, from) {
            Some(delta) if delta.encoded_len() < self.whole_bytes => {
                MapUpdate::Delta(delta.encode_delta())
            }
            _ => MapUpdate::Whole(map.encode_map()),
        };
        if self.ready.len() >= READY_MAX {
            // Those farthest behind are the rarest.
            self.ready.pop_first();
        }
        self.ready.insert(from, update.clone());
        update
    }

    fn delta(&self, map: &ClusterMap, from: u64) -> Option<MapDelta> {
        if from < self.since || from == 0 {
            return None;
        }
        let nodes = changed_since(&self.nodes, &map.nodes, from).cloned().collect();
        let devices = changed_since(&self.devices, &map.devices, from).cloned().collect();
        let partitions = (0_u32..)
            .zip(&self.partitions)
            .zip(&map.partitions)
            .filter(|((_, epoch), _)| **epoch > from)
            .map(|((id, _), entry)| (id, entry));
        Some(MapDelta::of(from, map, nodes, devices, partitions))
    }
}

/// Entries are only ever added, at the end, and keep their places.
fn is_prefix<T>(before: &[T], after: &[T], id: impl Fn(&T) -> u32) -> bool {
    before.len() <= after.len() && before.iter().zip(after).all(|(a, b)| id(a) == id(b))
}

fn mark<T: PartialEq>(epochs: &mut Vec<u64>, before: &[T], after: &[T], epoch: u64) {
    for ((old, new), last) in before.iter().zip(after).zip(epochs.iter_mut()) {
        if old != new {
            *last = epoch;
        }
    }
    epochs.resize(after.len(), epoch);
}

fn changed_since<'a, T>(
    epochs: &'a [u64],
    entries: &'a [T],
    from: u64,
) -> impl Iterator<Item = &'a T> {
    epochs.iter().zip(entries).filter(move |(epoch, _)| **epoch > from).map(|(_, entry)| entry)
}
