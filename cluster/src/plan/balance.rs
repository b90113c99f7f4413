//! Replicas and primaries spread evenly, when no copy is missing. Each move makes two nodes that
//! differ by two or more more equal: that ends.

use std::collections::BTreeMap;

use super::Round;
use crate::map::PartitionEntry;

impl Round<'_> {
    /// Begins to fill replicas on the emptiest nodes that shall replace some on the fullest.
    pub(super) fn balance_replicas(&mut self) {
        let mut movable: BTreeMap<u32, Vec<(u32, &PartitionEntry)>> = BTreeMap::new();
        for (id, entry) in self.free() {
            if entry.filling.is_empty() && entry.member_count() == self.wanted {
                entry.members().for_each(|node| movable.entry(node).or_default().push((id, entry)));
            }
        }
        for _ in 0..self.limits.moves_per_round {
            let Some((id, entry, from, to)) = self.next_move(&movable) else { return };
            self.tally.begin(entry.primary, to);
            self.tally.leaves(from);
            let mut next = entry.clone();
            next.filling = vec![to];
            self.changes.insert(id, next);
        }
    }

    fn next_move<'e>(
        &self,
        movable: &BTreeMap<u32, Vec<(u32, &'e PartitionEntry)>>,
    ) -> Option<(u32, &'e PartitionEntry, u32, u32)> {
        let most = self.limits.fillings_per_node;
        let mut by_count: Vec<(u32, u32)> =
            self.tally.nodes().map(|(node, load)| (load.replicas, node)).collect();
        by_count.sort_unstable();
        for (many, from) in by_count.iter().rev() {
            for (few, to) in by_count.iter().take_while(|(few, _)| few + 2 <= *many) {
                let settled = self.known.is_settled(self.map, *to, self.limits);
                if !settled || self.tally.get(*to).takes >= most {
                    continue;
                }
                let fits = |(id, entry): &&(u32, &PartitionEntry)| {
                    !self.changes.contains_key(id)
                        && !entry.names(*to)
                        && self.tally.get(entry.primary).gives < most
                };
                let candidates = movable.get(from).map_or(&[][..], Vec::as_slice);
                // A primary has to hand over first: a backup moves for less.
                let found = candidates
                    .iter()
                    .filter(fits)
                    .min_by_key(|(id, entry)| (entry.primary == *from, *id));
                if let Some((id, entry)) = found {
                    debug_assert!(few < many, "a move makes two nodes more equal");
                    return Some((*id, entry, *from, *to));
                }
            }
        }
        None
    }

    /// Asks primaries on nodes with many of them to hand over to a backup on a node with few.
    pub(super) fn balance_primaries(&mut self) {
        let all: Vec<(u32, &PartitionEntry)> = self.free().collect();
        for (id, entry) in all {
            if self.handovers.len() >= self.limits.moves_per_round {
                return;
            }
            // A new primary would begin a filling anew.
            if !entry.filling.is_empty() || entry.member_count() > self.wanted {
                continue;
            }
            let Some(to) = self.lightest_primary(entry) else { continue };
            let settled = self.known.is_settled(self.map, to, self.limits);
            let few = self.tally.get(to).primaries;
            if settled && few + 2 <= self.tally.get(entry.primary).primaries {
                self.hand_over(id, entry, to);
            }
        }
    }
}
