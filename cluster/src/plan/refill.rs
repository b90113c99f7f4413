//! Fillings that are complete, copies too many, and copies that are missing.

use bb_proto::{NodeId, PartitionId};

use super::Round;
use crate::hash::{For, weight};
use crate::map::PartitionEntry;

fn without(list: &[u32], node: u32) -> Vec<u32> {
    list.iter().copied().filter(|id| *id != node).collect()
}

impl Round<'_> {
    /// Full replicas become backups, in the place of another where there are enough.
    pub(super) fn complete(&mut self) {
        let all: Vec<(u32, &PartitionEntry)> = self.free().collect();
        for (id, entry) in all {
            let is_full =
                |node: &&u32| self.known.filled.contains(&(PartitionId(id), NodeId(**node)));
            let full = entry.filling.iter().find(is_full).copied();
            let goes = self.surplus.get(&id).copied();
            let mut next = entry.clone();
            match (goes, full) {
                // It serves no purpose any more.
                (Some(goes), _) if entry.filling.contains(&goes) => {
                    next.filling = without(&entry.filling, goes);
                }
                (goes, Some(full)) => {
                    next.filling = without(&entry.filling, full);
                    next.backups.push(full);
                    next.backups.sort_unstable();
                    if let Some(goes) = goes.filter(|_| entry.member_count() >= self.wanted) {
                        next.backups = without(&next.backups, goes);
                    }
                }
                (Some(goes), None) if entry.member_count() > self.wanted => {
                    if goes == entry.primary {
                        let best = self.lightest_primary(entry);
                        best.into_iter().for_each(|to| self.hand_over(id, entry, to));
                        continue;
                    }
                    next.backups = without(&entry.backups, goes);
                }
                _ => continue,
            }
            self.changes.insert(id, next);
        }
    }

    /// The backup that is primary of the fewest.
    pub(super) fn lightest_primary(&self, entry: &PartitionEntry) -> Option<u32> {
        entry.backups.iter().copied().min_by_key(|id| (self.tally.get(*id).primaries, *id))
    }

    /// Begins fillings where copies are missing. True if none is, also none under way.
    pub(super) fn refill(&mut self) -> bool {
        let mut complete = true;
        let missing: Vec<(u32, &PartitionEntry)> = self
            .map
            .numbered()
            .filter(|(_, p)| self.map.is_active(p.primary) && p.member_count() < self.wanted)
            .collect();
        for (id, entry) in missing {
            complete = false;
            if self.changes.contains_key(&id) {
                continue;
            }
            let mut next = entry.clone();
            while next.all_nodes().count() < self.wanted {
                let Some(to) = self.target(id, &next) else { break };
                self.tally.begin(next.primary, to);
                next.filling.push(to);
                next.filling.sort_unstable();
            }
            if next != *entry {
                self.changes.insert(id, next);
            }
        }
        complete
    }

    /// The emptiest node that has no part in it and may fill one more.
    fn target(&self, id: u32, entry: &PartitionEntry) -> Option<u32> {
        let most = self.limits.fillings_per_node;
        if self.tally.get(entry.primary).gives >= most {
            return None;
        }
        self.tally
            .nodes()
            .filter(|(node, load)| load.takes < most && !entry.names(*node))
            .min_by_key(|(node, load)| {
                let busy = self.known.load.get(&NodeId(*node)).copied().unwrap_or(0) / 100;
                (load.replicas, busy, std::cmp::Reverse(weight(For::Partition, id, *node)))
            })
            .map(|(node, _)| node)
    }
}
