//! A planted error ([`Planted::FreeBeforeCommit`]): not part of any program that is shipped.

use std::collections::BTreeMap;

use bb_proto::meta::{BlockName, FreeBlocks, encode};
use bb_proto::{Commit, Kind, PgBody, PgDescriptor, ServiceClass};
use bb_transport::Outgoing;

use super::apply_commit::region_of;
use super::engine::Partition;
use super::fragment_map::Place;
use super::host::PartitionHost;
use super::pg::Pg;
use crate::planted::{self, Planted};

impl PartitionHost {
    /// Has the blocks of groups that `commit` will leave without a byte freed before it is in the
    /// log.
    pub(super) fn free_before_commit(&self, partition: &Partition, commit: &Commit) {
        if !planted::is(Planted::FreeBeforeCommit) {
            return;
        }
        for descriptor in overwritten(partition, commit) {
            let PgBody::Blocks { members, .. } = &descriptor.body else { continue };
            for (index, member) in (0..).zip(members) {
                let block = BlockName { pg: descriptor.pg.into(), index };
                let body = encode(&FreeBlocks { blocks: vec![block] });
                let Some((address, incarnation)) = self.env.shared.driver(member.device) else {
                    continue;
                };
                let deadline = self.config.call_deadline;
                let request =
                    Outgoing::new(Kind::FreeBlocks, ServiceClass::Reclaim, deadline, body)
                        .to(member.device.0, incarnation);
                self.env.rt.spawn(self.env.caller.call(&address, request));
            }
        }
    }
}

/// Groups at home here that lose their last byte to `commit`.
fn overwritten(partition: &Partition, commit: &Commit) -> Vec<PgDescriptor> {
    let state = partition.state();
    let fid = commit.capability.fid;
    let Some(region_log2) = state.regions.region_log2(fid) else { return Vec::new() };
    let mut lost = BTreeMap::new();
    for fragment in &commit.fragments {
        let id = region_of(fid, fragment, region_log2);
        let Some(region) = id.and_then(|id| state.regions.get(id)) else { continue };
        for piece in region.fragments().pieces(fragment.offset, fragment.end()) {
            if let Place::Pg { pg, .. } = piece.place {
                *lost.entry(pg).or_insert(0) += u64::from(piece.len);
            }
        }
    }
    let dies = |pg: &Pg, bytes: u64| {
        pg.live_bytes() == bytes
            && pg.home.as_ref().is_some_and(|home| home.participants.iter().all(|p| p.released))
    };
    lost.into_iter()
        .map(|(at, bytes)| (state.pgs.get(at), bytes))
        .filter(|(pg, bytes)| dies(pg, *bytes))
        .map(|(pg, _)| pg.descriptor.clone())
        .collect()
}
