//! The state counts add up: what a server says of its bytes is counted again, from its maps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bb_client::Error;
use bb_proto::meta::{ByteCounts, FileStat, FileState, FragmentState, NodeStatus, decode, encode};
use bb_proto::{DeviceId, Fid, Kind, PgBody, ServiceClass};
use bb_server::node::Node;
use bb_server::partition::PartitionState;
use bb_server::partition::fragment_map::{Counts, Piece, Place};
use bb_transport::Outgoing;

use crate::workload::Bench;
use crate::world::ClientProcess;

/// Time for one answer: nothing goes wrong when these are asked.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a piece counts for.
fn count(sum: &mut Counts, piece: &Piece) {
    sum.fragments += 1;
    let bytes = u64::from(piece.len);
    match piece.place {
        Place::Pg { state: FragmentState::Dirty, .. } => sum.dirty += bytes,
        Place::Pg { state: FragmentState::Pending, .. } => sum.pending += bytes,
        Place::Pg { state: FragmentState::Clean, .. } => sum.clean += bytes,
        Place::Pg { state: FragmentState::Deletable, .. } => sum.deletable += bytes,
        Place::Placeholder(_) => {}
    }
}

/// At any moment: the sums that a partition keeps along are those of its maps.
pub fn check_partitions(bench: &Bench, node: &Node) {
    for partition in node.partitions() {
        if let Err(why) = check_partition(&partition.state()) {
            return bench.violation(format!("partition {}: {why}", partition.id()));
        }
    }
}

fn check_partition(state: &PartitionState) -> Result<(), String> {
    let mut all = Counts::default();
    let mut live: BTreeMap<u32, u64> = BTreeMap::new();
    for (id, region) in state.regions.iter() {
        let mut sum = Counts::default();
        for piece in region.fragments().pieces(0, u64::MAX) {
            count(&mut sum, &piece);
            if let Place::Pg { pg, .. } = piece.place {
                *live.entry(pg.0).or_default() += u64::from(piece.len);
            }
        }
        if sum != region.fragments().counts() {
            let kept = region.fragments().counts();
            return Err(format!("{id:?} counts {kept:?}, its map has {sum:?}"));
        }
        all.replace(&Counts::default(), &sum);
    }
    if all != state.regions.totals() {
        return Err(format!("it counts {:?}, its maps have {all:?}", state.regions.totals()));
    }
    let mut bytes = 0;
    for (at, pg) in state.pgs.iter() {
        let named = live.remove(&at.0).unwrap_or(0);
        bytes += named;
        if named != pg.live_bytes() {
            let (id, kept) = (pg.descriptor.pg, pg.live_bytes());
            return Err(format!("group {id:?} counts {kept} live bytes, fragments name {named}"));
        }
    }
    if bytes != state.pgs.totals().live_bytes || !live.is_empty() {
        let kept = state.pgs.totals().live_bytes;
        return Err(format!("it counts {kept} live bytes, fragments name {bytes}; {live:?}"));
    }
    Ok(())
}

/// Asks the server how it is.
///
/// # Errors
/// It does not answer.
pub async fn status(bench: &Bench, process: &ClientProcess) -> Result<NodeStatus, Error> {
    let request = Outgoing::new(Kind::NodeStatus, ServiceClass::Control, PATIENCE, Vec::new());
    Ok(decode(&ask(bench, process, request).await?)?)
}

async fn ask(bench: &Bench, process: &ClientProcess, request: Outgoing) -> Result<Vec<u8>, Error> {
    match process.caller.call(&bench.world.first().address, request).await {
        Ok(answer) => Ok(answer.body),
        Err(error) => Err(Error::Protocol(format!("a question to the server: {error}"))),
    }
}

/// Where nothing is under way: the sum over the files is what the node says, and devices hold what
/// parity groups on record occupy, and nothing else.
///
/// # Errors
/// The server does not answer.
pub async fn check_quiet(bench: &Bench, process: &ClientProcess) -> Result<(), Error> {
    let Some(node) = bench.world.first().node() else { return Ok(()) };
    check_partitions(bench, &node);
    let status = status(bench, process).await?;
    let bytes = status.bytes;
    let mut sum = ByteCounts::default();
    for fid in fids(&node) {
        let Some(one) = file_counts(bench, process, &node, fid).await? else { continue };
        sum.dirty += one.dirty;
        sum.pending += one.pending;
        sum.clean += one.clean;
        sum.deletable += one.deletable;
        sum.fragments += one.fragments;
    }
    let parts = |c: &ByteCounts| (c.dirty, c.pending, c.clean, c.deletable, c.fragments);
    if parts(&sum) != parts(&bytes) {
        let leftovers = leftovers(&node);
        bench.violation(format!("the node counts {bytes:?}, its files {sum:?}: {leftovers}"));
    }
    check_devices(bench, &node, &status);
    Ok(())
}

/// Files that have a record or a region.
fn fids(node: &Node) -> BTreeSet<Fid> {
    let mut fids = BTreeSet::new();
    for partition in node.partitions() {
        fids.extend(partition.state().files.iter().map(|(fid, _)| fid));
    }
    fids
}

async fn file_counts(
    bench: &Bench,
    process: &ClientProcess,
    node: &Node,
    fid: Fid,
) -> Result<Option<ByteCounts>, Error> {
    let home = node.partitions().find(|partition| partition.state().files.get(fid).is_some());
    let Some(home) = home else { return Ok(None) };
    let body = encode(&FileStat { fid: fid.into(), counts: true, truncates_after: None });
    let request = Outgoing::new(Kind::FileStat, ServiceClass::Client, PATIENCE, body);
    let request = request.to(home.id().0, home.config().0);
    let state: FileState = decode(&ask(bench, process, request).await?)?;
    Ok(state.bytes)
}

fn check_devices(bench: &Bench, node: &Node, status: &NodeStatus) {
    let mut held: BTreeMap<DeviceId, (u64, u64)> = BTreeMap::new();
    for partition in node.partitions() {
        for (_, pg) in partition.state().pgs.iter().filter(|(_, pg)| pg.home.is_some()) {
            let PgBody::Blocks { block_log2, members, .. } = &pg.descriptor.body else { continue };
            for member in members {
                let (blocks, bytes) = held.entry(member.device).or_default();
                *blocks += 1;
                *bytes += 1_u64 << *block_log2;
            }
        }
    }
    for device in &status.devices {
        let (blocks, bytes) = held.get(&DeviceId(device.device)).copied().unwrap_or_default();
        // A device that failed holds what it held.
        if device.problem.is_empty() && (device.blocks, device.used_bytes) != (blocks, bytes) {
            bench.violation(format!(
                "device {} holds {} blocks, {} bytes; parity groups on record have {blocks} \
                 blocks, {bytes} bytes there",
                device.device, device.blocks, device.used_bytes
            ));
        }
    }
}

/// What the server still knows of files, for a message.
pub fn leftovers(node: &Node) -> String {
    let mut lines = Vec::new();
    for partition in node.partitions() {
        let state = partition.state();
        for (fid, record) in state.files.iter() {
            lines.push(format!("record of {fid}: size {}, {:?}", record.size, record.rare()));
        }
        for (id, region) in state.regions.iter().filter(|(_, r)| !r.fragments().is_empty()) {
            let counts = region.fragments().counts();
            lines.push(format!("region {} of {}: {counts:?}", id.region.0, id.fid));
        }
    }
    lines.join("; ")
}
