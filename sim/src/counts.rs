//! The state counts add up: what a server says of its bytes is counted again, from its maps.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bb_client::Error;
use bb_proto::meta::{
    ByteCounts, DeviceStatus, FileStat, FileState, FragmentState, NodeStatus, decode, encode,
};
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

/// Asks all servers how they are.
///
/// # Errors
/// One does not answer.
pub async fn status(bench: &Bench, process: &ClientProcess) -> Result<Vec<NodeStatus>, Error> {
    let mut all = Vec::new();
    for node in bench.world.nodes() {
        let request = Outgoing::new(Kind::NodeStatus, ServiceClass::Control, PATIENCE, Vec::new());
        all.push(decode(&ask(&node, process, request).await?)?);
    }
    Ok(all)
}

/// The sum of what servers say of the bytes of their partitions.
pub fn all_bytes(status: &[NodeStatus]) -> ByteCounts {
    let mut sum = ByteCounts::default();
    status.iter().for_each(|node| add(&mut sum, &node.bytes));
    sum
}

fn add(sum: &mut ByteCounts, one: &ByteCounts) {
    sum.dirty += one.dirty;
    sum.pending += one.pending;
    sum.clean += one.clean;
    sum.deletable += one.deletable;
    sum.fragments += one.fragments;
    sum.groups += one.groups;
}

async fn ask(node: &Node, process: &ClientProcess, request: Outgoing) -> Result<Vec<u8>, Error> {
    match process.caller.call(&node.context().shared.address, request).await {
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
    let nodes = bench.world.nodes();
    nodes.iter().for_each(|node| check_partitions(bench, node));
    let status = status(bench, process).await?;
    let bytes = all_bytes(&status);
    let mut sum = ByteCounts::default();
    for fid in fids(&nodes) {
        if let Some(one) = file_counts(process, &nodes, fid).await? {
            add(&mut sum, &one);
        }
    }
    let parts = |c: &ByteCounts| (c.dirty, c.pending, c.clean, c.deletable, c.fragments);
    if parts(&sum) != parts(&bytes) {
        let leftovers = leftovers(&nodes);
        bench.violation(format!("the nodes count {bytes:?}, the files {sum:?}: {leftovers}"));
    }
    check_devices(bench, &nodes, &status);
    Ok(())
}

/// Files that have a record or a region.
fn fids(nodes: &[Rc<Node>]) -> BTreeSet<Fid> {
    let mut fids = BTreeSet::new();
    for partition in nodes.iter().flat_map(|node| node.partitions()) {
        fids.extend(partition.state().files.iter().map(|(fid, _)| fid));
    }
    fids
}

async fn file_counts(
    process: &ClientProcess,
    nodes: &[Rc<Node>],
    fid: Fid,
) -> Result<Option<ByteCounts>, Error> {
    let all = nodes.iter().flat_map(|node| node.partitions().map(move |p| (node, p)));
    let home = all.into_iter().find(|(_, p)| p.state().files.get(fid).is_some());
    let Some((node, home)) = home else { return Ok(None) };
    let body = encode(&FileStat { fid: fid.into(), counts: true, truncates_after: None });
    let request = Outgoing::new(Kind::FileStat, ServiceClass::Client, PATIENCE, body);
    let request = request.to(home.id().0, home.config().0);
    let state: FileState = decode(&ask(node, process, request).await?)?;
    Ok(state.bytes)
}

/// What each device holds, as its node says.
pub fn devices(nodes: &[Rc<Node>], status: &[NodeStatus]) -> Vec<DeviceStatus> {
    let mut all = Vec::new();
    for node in status {
        let Some(map) = nodes.first().map(|node| node.context().shared.map()) else { continue };
        let own = |device: &&DeviceStatus| {
            map.device(DeviceId(device.device)).is_some_and(|entry| entry.node == node.node)
        };
        all.extend(node.devices.iter().filter(own).cloned());
    }
    all
}

fn check_devices(bench: &Bench, nodes: &[Rc<Node>], status: &[NodeStatus]) {
    let mut held: BTreeMap<DeviceId, (u64, u64)> = BTreeMap::new();
    for partition in nodes.iter().flat_map(|node| node.partitions()) {
        for (_, pg) in partition.state().pgs.iter().filter(|(_, pg)| pg.home.is_some()) {
            let PgBody::Blocks { block_log2, members, .. } = &pg.descriptor.body else { continue };
            for member in members {
                let (blocks, bytes) = held.entry(member.device).or_default();
                *blocks += 1;
                *bytes += 1_u64 << *block_log2;
            }
        }
    }
    for device in devices(nodes, status) {
        let (blocks, bytes) = held.get(&DeviceId(device.device)).copied().unwrap_or_default();
        // A device that failed holds what it held; one whose log has lost its end, too little.
        if device.problem.is_empty()
            && !bench.world.has_lost_blocks(device.device)
            && (device.blocks, device.used_bytes) != (blocks, bytes)
        {
            bench.violation(format!(
                "device {} holds {} blocks, {} bytes; parity groups on record have {blocks} \
                 blocks, {bytes} bytes there",
                device.device, device.blocks, device.used_bytes
            ));
        }
    }
}

/// What the server still knows of files, for a message.
pub fn leftovers(nodes: &[Rc<Node>]) -> String {
    let mut lines = Vec::new();
    for partition in nodes.iter().flat_map(|node| node.partitions()) {
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
