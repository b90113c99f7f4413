//! How many replicas each node has, as it will be when everything under way is done.

use std::collections::BTreeMap;

use crate::map::{ClusterMap, PartitionEntry};

/// Counts of one node.
#[derive(Clone, Copy, Default)]
pub(super) struct Load {
    pub(super) replicas: u32,
    pub(super) primaries: u32,
    /// Replicas that it is filling, and that it gives as their primary.
    pub(super) takes: u32,
    pub(super) gives: u32,
}

/// Counts of the active nodes that hold data.
pub(super) struct Tally {
    nodes: BTreeMap<u32, Load>,
}

impl Tally {
    pub(super) fn of(map: &ClusterMap) -> Self {
        let nodes = map.data_nodes().map(|node| (node.id, Load::default())).collect();
        let mut tally = Self { nodes };
        for entry in map.partitions.iter().filter(|entry| map.is_active(entry.primary)) {
            entry.all_nodes().for_each(|id| tally.add(id));
            tally.change(entry.primary, |load| load.primaries += 1);
            entry.filling.iter().for_each(|to| tally.fills(entry.primary, *to));
        }
        tally
    }

    fn change(&mut self, node: u32, with: impl FnOnce(&mut Load)) {
        if let Some(load) = self.nodes.get_mut(&node) {
            with(load);
        }
    }

    fn fills(&mut self, from: u32, to: u32) {
        self.change(from, |load| load.gives += 1);
        self.change(to, |load| load.takes += 1);
    }

    fn add(&mut self, node: u32) {
        self.change(node, |load| load.replicas += 1);
    }

    fn remove(&mut self, node: u32) {
        self.change(node, |load| load.replicas = load.replicas.saturating_sub(1));
    }

    /// A filling begins.
    pub(super) fn begin(&mut self, from: u32, to: u32) {
        self.add(to);
        self.fills(from, to);
    }

    /// A replica will move from a node that the partition leaves when the filling is complete.
    pub(super) fn leaves(&mut self, node: u32) {
        self.remove(node);
    }

    pub(super) fn primary_moves(&mut self, from: u32, to: u32) {
        self.change(from, |load| load.primaries = load.primaries.saturating_sub(1));
        self.change(to, |load| load.primaries += 1);
    }

    pub(super) fn get(&self, node: u32) -> Load {
        self.nodes.get(&node).copied().unwrap_or_default()
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (u32, Load)> + '_ {
        self.nodes.iter().map(|(id, load)| (*id, *load))
    }

    /// Takes out of the counts, for each partition with more replicas and fillings than wanted, the
    /// one on the fullest node, and says which. Backups go before fillings (their work would be
    /// lost), and the primary only from a node that is fuller than all others.
    pub(super) fn project(&mut self, map: &ClusterMap, wanted: usize) -> BTreeMap<u32, u32> {
        let mut surplus = BTreeMap::new();
        for (id, entry) in map.numbered().filter(|(_, entry)| map.is_active(entry.primary)) {
            if entry.all_nodes().count() > wanted
                && let Some(node) = self.fullest(entry)
            {
                self.remove(node);
                surplus.insert(id, node);
            }
        }
        surplus
    }

    fn fullest(&self, entry: &PartitionEntry) -> Option<u32> {
        let backups = entry.backups.iter().map(|id| (*id, 2));
        let filling = entry.filling.iter().map(|id| (*id, 1));
        backups
            .chain(filling)
            .chain([(entry.primary, 0)])
            .max_by_key(|(id, kind)| (self.get(*id).replicas, *kind, *id))
            .map(|(id, _)| id)
    }
}
