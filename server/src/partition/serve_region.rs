//! What is asked about regions: lookups, truncates, drops, counts.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::{
    ByteCounts, Done, FragmentInfo, Lookup, LookupReply, RegionName, RegionTruncate, decode, encode,
};
use bb_proto::{Capability, Code, Failure, Fid, PgId, RegionIndex, Rights, TruncateEpoch, Writer};
use bb_transport::{Incoming, Response};

use super::engine::Partition;
use super::fragment_map::{PgRef, Place};
use super::host::{PartitionHost, class_of};
use super::mutation::Mutation;
use super::region::Region;
use super::region_mutation::{RegionId, RegionMutation, RegionOutcome, RegionRefusal};
use super::state::PartitionState;
use crate::rights::{check_capability, check_server, group_permission};

/// Bytes of a page of a lookup, as estimated: well below the longest body.
const PAGE_BYTES: usize = 512 << 10;
/// Most bytes that the encoding of a fragment takes: five varints and their tags.
const INFO_BYTES: usize = 40;
/// And that of a permission.
const PERMISSION_BYTES: usize = 18;

impl PartitionHost {
    pub(super) fn serve_lookup(
        &self,
        partition: &Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        let lookup: Lookup = decode(&request.body)?;
        let capability = Capability::from(&lookup.capability);
        check_capability(&self.env.shared, &capability, Rights::READ, &request.peer)?;
        let end = lookup.offset.checked_add(lookup.len).filter(|_| lookup.len > 0);
        let end = end.ok_or_else(|| Failure::new(Code::Invalid, "an impossible range"))?;
        let permit = |pg| group_permission(&self.env.shared, pg, capability.fid, &request.peer);
        let reply = look_up(&partition.state(), capability.fid, lookup.offset, end, permit)?;
        Ok(Response::body(encode(&reply)))
    }

    /// Applies a truncate and waits until no sync of this process is under way in the region; or
    /// hears that one is done (rule 7).
    pub(super) async fn serve_truncate(
        &self,
        partition: &Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        check_server(&request.peer)?;
        let wanted: RegionTruncate = decode(&request.body)?;
        let id = self.region_here(partition, wanted.fid.into(), wanted.region)?;
        let epoch = TruncateEpoch(wanted.epoch);
        let region_log2 = u8::try_from(wanted.region_log2).ok().filter(|l| (20..=40).contains(l));
        let region_log2 =
            region_log2.ok_or_else(|| Failure::new(Code::Invalid, "an impossible region size"))?;
        let known = {
            let state = partition.state();
            match state.regions.get(id) {
                Some(region) => {
                    region.epoch() > epoch
                        || (region.epoch() == epoch
                            && !(wanted.done && region.truncating().is_some()))
                }
                // The end of a truncate that this region never heard of: nothing is here.
                None => wanted.done,
            }
        };
        if !known {
            let (size, done) = (wanted.size, wanted.done);
            let mutation = RegionMutation::Truncate { id, region_log2, epoch, size, done };
            let outcome = partition.submit(class_of(request), Mutation::Region(mutation)).await?;
            match outcome.region()? {
                RegionOutcome::Refused(RegionRefusal::Dropped) => {
                    return Err(Failure::new(Code::StaleFile, "the file was dropped"));
                }
                RegionOutcome::Refused(refusal) => {
                    return Err(Failure::new(Code::Invalid, format!("{refusal:?}")));
                }
                _ => {}
            }
        }
        if !wanted.done {
            self.drain_syncs(partition, id, request.header.deadline_ms).await?;
        }
        Ok(Response::body(encode(&Done {})))
    }

    async fn drain_syncs(
        &self,
        partition: &Rc<Partition>,
        id: RegionId,
        deadline_ms: u32,
    ) -> Result<(), Failure> {
        let limit = match deadline_ms {
            0 => self.config.call_deadline,
            ms => Duration::from_millis(u64::from(ms)),
        };
        let drained = async {
            loop {
                let changed = partition.changed().notified();
                let busy = |region: &Region| !region.intents().is_empty();
                if !partition.state().regions.get(id).is_some_and(busy) {
                    return;
                }
                changed.await;
            }
        };
        let elapsed = |_| Failure::new(Code::Busy, "a sync of the region has not ended yet");
        self.env.rt.timeout(limit, drained).await.map_err(elapsed)
    }

    pub(super) async fn serve_drop(
        &self,
        partition: &Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        check_server(&request.peer)?;
        let name: RegionName = decode(&request.body)?;
        let id = self.region_here(partition, name.fid.into(), name.region)?;
        let mutation = RegionMutation::Drop { id, tick: self.env.shared.tick() };
        partition.submit(class_of(request), Mutation::Region(mutation)).await?;
        Ok(Response::body(encode(&Done {})))
    }

    pub(super) fn serve_region_stat(
        &self,
        partition: &Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        check_server(&request.peer)?;
        let name: RegionName = decode(&request.body)?;
        let id = self.region_here(partition, name.fid.into(), name.region)?;
        let state = partition.state();
        let counts = state.regions.get(id).map(byte_counts).unwrap_or_default();
        Ok(Response::body(encode(&counts)))
    }

    fn region_here(
        &self,
        partition: &Partition,
        fid: Fid,
        region: u32,
    ) -> Result<RegionId, Failure> {
        let region = RegionIndex(region);
        if self.partition_of(fid, region) == partition.id() {
            Ok(RegionId { fid, region })
        } else {
            Err(Failure::new(Code::Invalid, "the region belongs to another partition"))
        }
    }
}

/// Bytes of a region by state.
pub fn byte_counts(region: &Region) -> ByteCounts {
    let counts = region.fragments().counts();
    let groups: BTreeSet<PgRef> = region
        .fragments()
        .pieces(0, u64::MAX)
        .filter_map(|piece| match piece.place {
            Place::Pg { pg, .. } => Some(pg),
            Place::Placeholder(_) => None,
        })
        .collect();
    ByteCounts {
        dirty: counts.dirty,
        pending: counts.pending,
        clean: counts.clean,
        deletable: counts.deletable,
        end: region.fragments().end(),
        fragments: counts.fragments,
        groups: groups.len() as u64,
    }
}

/// Fragments of `offset .. end` of a file, as many as fit a page, each group with what permits to
/// read it.
///
/// # Errors
/// [`Code::Invalid`] for a range across a region's border.
pub fn look_up(
    state: &PartitionState,
    fid: Fid,
    offset: u64,
    end: u64,
    permit: impl Fn(PgId) -> Option<[u8; 16]>,
) -> Result<LookupReply, Failure> {
    let mut reply = LookupReply {
        fragments: Vec::new(),
        descriptors: Vec::new(),
        end,
        epoch: 0,
        zeros_from: u64::MAX,
        permissions: Vec::new(),
    };
    let Some(region_log2) = state.regions.region_log2(fid) else { return Ok(reply) };
    let number = offset >> region_log2;
    if number != (end - 1) >> region_log2 {
        return Err(Failure::new(Code::Invalid, "the range crosses a region's border"));
    }
    let region = u32::try_from(number).ok().map(RegionIndex);
    let region = region.and_then(|region| state.regions.get(RegionId { fid, region }));
    let Some(region) = region else { return Ok(reply) };
    reply.epoch = region.epoch().0;
    reply.zeros_from = region.truncating().unwrap_or(u64::MAX);
    let (mut bytes, mut groups) = (0, BTreeMap::new());
    for piece in region.fragments().pieces(offset, end) {
        let Place::Pg { pg, pg_offset, state: fragment } = piece.place else { continue };
        if bytes > PAGE_BYTES {
            reply.end = piece.offset;
            break;
        }
        let next = u32::try_from(reply.descriptors.len()).expect("a page is small");
        let group = *groups.entry(pg).or_insert(next);
        if group == next {
            let mut out = Writer::default();
            let found = &state.pgs.get(pg).descriptor;
            found.encode(&mut out);
            if let Some(permission) = permit(found.pg) {
                bytes += PERMISSION_BYTES;
                reply.permissions.push(permission.to_vec());
            }
            let descriptor = out.finish();
            bytes += descriptor.len();
            reply.descriptors.push(descriptor);
        }
        bytes += INFO_BYTES;
        reply.fragments.push(FragmentInfo {
            offset: piece.offset,
            len: piece.len,
            group,
            pg_offset,
            state: i32::from(fragment),
        });
    }
    Ok(reply)
}
