//! Making a new node, for a new cluster or for one that exists: what `bbd format` does.

use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{
    Change, ClusterMap, ClusterState, Command, DeviceEntry, Executed, Join, NewDevice, NodeEntry,
    PartitionEntry,
};
use bb_commitlog::{
    Class, ClusterUuid, FormatOptions as LogFormat, Log, LogIdentity, LogUuid, Nonce, Options,
};
use bb_nvme::DeviceRef;
use bb_proto::cluster::{Propose, ProposeReply};
use bb_proto::meta::{GetMap, GetMapReply, decode, encode};
use bb_proto::{DeviceId, Incarnation, Kind, NodeId, PartitionId, ServiceClass, Tick};
use bb_runtime::{BufPool, Rt};
use bb_transport::{Address, CallError, Caller, Outgoing};

use super::StartError;
use super::replay::Replayed;
use crate::blockstore::{self, Uuid};
use crate::context::Stream;
use crate::council::{LocalState, found};
use crate::partition::PartitionState;
use crate::partition::snapshot::encode_snapshot;

/// What a new cluster shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Number of the first node.
    pub node: u32,
    /// Where it listens.
    pub address: String,
    /// UUID of the backing file system, from its marker.
    pub bfs: [u8; 16],
    /// Data blocks per parity group.
    pub data: u8,
    /// Parity blocks per parity group.
    pub parity: u8,
    /// Erasure code of new groups.
    pub codec: u8,
    /// Number of metadata partitions.
    pub partitions: u32,
    /// log2 of the region size of new files, in bytes.
    pub region_log2: u32,
    /// W of rule 1, in ticks.
    pub window_ticks: u32,
    /// Rendezvous placement instead of least loaded.
    pub deterministic: bool,
    /// Write zeros through devices first (rule 13).
    pub write_through: bool,
}

/// How far a format is: what is being written, bytes done, bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(&str, u64, u64);

fn uuid(rt: &Rt) -> [u8; 16] {
    let bits = u128::from(rt.random_u64()) << 64 | u128::from(rt.random_u64());
    // Version 4, variant 1 of RFC 9562.
    let bits = bits & !(0xF << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62;
    bits.to_be_bytes()
}

/// Formats the log and the data devices and logs the first map: a new cluster of this node alone.
/// What they held is lost.
///
/// # Errors
/// [`StartError`]; then nothing of it can be started.
pub async fn format(
    rt: &Rt,
    pool: &BufPool,
    log_device: &DeviceRef,
    devices: &[DeviceRef],
    plan: &Plan,
    progress: Progress<'_>,
) -> Result<ClusterMap, StartError> {
    let identity = LogIdentity {
        log: LogUuid(uuid(rt)),
        cluster: ClusterUuid(uuid(rt)),
        nonce: Nonce(rt.random_u64()),
    };
    let named: Vec<(u32, [u8; 16])> = (1..).zip(devices.iter().map(|_| uuid(rt))).collect();
    let capacities =
        format_devices(pool, devices, &named, identity, plan.write_through, progress).await?;
    let entries = named
        .iter()
        .zip(capacities)
        .map(|((id, uuid), capacity_bytes)| DeviceEntry {
            id: *id,
            uuid: uuid.to_vec(),
            incarnation: 1,
            node: plan.node,
            state: 0,
            capacity_bytes,
        })
        .collect();
    let state = ClusterState::new(first_map(plan, identity, entries), Tick(1))?;
    let map = state.map.clone();
    let log = format_log(rt, pool, log_device, identity, plan.write_through, progress).await?;
    found(rt, &log, 1, state).await?;
    bear_partitions(&log, plan.partitions).await?;
    note_node(&log, NodeId(plan.node), &map).await?;
    log.close().await?;
    Ok(map)
}

/// Formats a node for a cluster that exists, which gives it its numbers. Repeated after a failure,
/// it gets new ones; the old ones stay unused.
///
/// # Errors
/// [`StartError`].
pub async fn join(
    rt: &Rt,
    pool: &BufPool,
    log_device: &DeviceRef,
    devices: &[DeviceRef],
    plan: &JoinPlan,
    progress: Progress<'_>,
) -> Result<NodeId, StartError> {
    let cluster: [u8; 16] = plan.map.cluster.as_slice().try_into().unwrap_or_default();
    let identity = LogIdentity {
        log: LogUuid(uuid(rt)),
        cluster: ClusterUuid(cluster),
        nonce: Nonce(rt.random_u64()),
    };
    let uuids: Vec<[u8; 16]> = devices.iter().map(|_| uuid(rt)).collect();
    let join = Join {
        log: identity.log.0.to_vec(),
        address: plan.address.clone(),
        devices: uuids
            .iter()
            .zip(devices)
            .map(|(uuid, device)| NewDevice {
                uuid: uuid.to_vec(),
                capacity_bytes: device.info().capacity_bytes,
            })
            .collect(),
        witness: plan.witness,
        ..Join::default()
    };
    let (node, ids, map) = ask_to_join(rt, plan, join).await?;
    let named: Vec<(u32, [u8; 16])> = ids.into_iter().zip(uuids).collect();
    format_devices(pool, devices, &named, identity, plan.write_through, progress).await?;
    let log = format_log(rt, pool, log_device, identity, plan.write_through, progress).await?;
    note_node(&log, node, &map).await?;
    log.close().await?;
    Ok(node)
}

/// How a node joins a cluster.
pub struct JoinPlan {
    /// The cluster's map, as one of its nodes gave it.
    pub map: ClusterMap,
    /// Where the node will listen.
    pub address: String,
    /// It votes, and holds nothing.
    pub witness: bool,
    /// Write zeros through devices first (rule 13).
    pub write_through: bool,
    /// Reaches the cluster's nodes.
    pub caller: Rc<dyn Caller>,
    /// How long the cluster is asked.
    pub patience: Duration,
}

/// Asks whoever leads for numbers; the map that names them.
async fn ask_to_join(
    rt: &Rt,
    plan: &JoinPlan,
    join: Join,
) -> Result<(NodeId, Vec<u32>, ClusterMap), StartError> {
    let command = Command::new(Change::Join(join)).encode_command();
    let body = encode(&Propose { command });
    let refused = |why: String| StartError::Join(why);
    let give_up = rt.now() + plan.patience;
    let mut last = "no node answers".to_owned();
    while rt.now() < give_up {
        let mut rejections = 0;
        for node in &plan.map.nodes {
            let address = Address::from(node.address.as_str());
            let ask = |kind, body: Vec<u8>| {
                let wait = Duration::from_secs(2);
                plan.caller.call(&address, Outgoing::new(kind, ServiceClass::Control, wait, body))
            };
            let reply: ProposeReply = match ask(Kind::Propose, body.clone()).await {
                Ok(answer) => decode(&answer.body).map_err(|f| refused(f.to_string()))?,
                Err(error) => {
                    rejections += usize::from(matches!(error, CallError::Rejected(_)));
                    last = format!("{}: {error}", node.address);
                    continue;
                }
            };
            let executed: Executed =
                decode(&reply.outcome).map_err(|failure| refused(failure.to_string()))?;
            if !executed.void.is_empty() {
                return Err(refused(executed.void));
            }
            let asked = GetMap { epoch: 0, deltas: false };
            let answer = ask(Kind::GetMap, encode(&asked)).await;
            let answer = answer.map_err(|error| refused(error.to_string()))?;
            let reply: GetMapReply =
                decode(&answer.body).map_err(|failure| refused(failure.to_string()))?;
            let map = ClusterMap::decode_map(&reply.map)?;
            return Ok((NodeId(executed.node), executed.devices, map));
        }
        // Another method of authentication, or another cluster key: asking again does not help.
        if rejections == plan.map.nodes.len() {
            break;
        }
        rt.sleep(Duration::from_millis(200)).await;
    }
    Err(refused(last))
}

/// Formats devices under these numbers and UUIDs; returns their usable bytes.
async fn format_devices(
    pool: &BufPool,
    devices: &[DeviceRef],
    named: &[(u32, [u8; 16])],
    identity: LogIdentity,
    write_through: bool,
    progress: Progress<'_>,
) -> Result<Vec<u64>, StartError> {
    let mut capacities = Vec::new();
    for (device, (id, uuid)) in devices.iter().zip(named) {
        let id = blockstore::Identity {
            device: DeviceId(*id),
            uuid: Uuid(*uuid),
            incarnation: Incarnation(1),
            cluster: Uuid(identity.cluster.0),
            nonce: identity.nonce,
        };
        let info = device.info();
        let superblock = blockstore::format_device(device, pool, id, write_through, |done| {
            progress(&info.name, done, info.capacity_bytes);
        })
        .await?;
        capacities.push(superblock.capacity_bytes);
    }
    Ok(capacities)
}

async fn format_log(
    rt: &Rt,
    pool: &BufPool,
    device: &DeviceRef,
    identity: LogIdentity,
    write_through: bool,
    progress: Progress<'_>,
) -> Result<Rc<Log>, StartError> {
    let name = device.info().name.clone();
    let options = LogFormat { zero_ring: write_through, ..LogFormat::new(identity) };
    Log::format(rt, pool, device, &options, &mut |done, all| progress(&name, done, all)).await?;
    let mut nothing = Replayed::default();
    Ok(Rc::new(Log::open(rt, pool, device, Options::default(), &mut nothing).await?))
}

/// Each partition begins as a stream of its own: one that is missing later was lost, and is not
/// taken for empty.
async fn bear_partitions(log: &Log, count: u32) -> Result<(), StartError> {
    let mut written = Vec::new();
    for id in (0..count).map(PartitionId) {
        let empty = encode_snapshot(&PartitionState::new(id), std::iter::empty());
        written.push(log.checkpoint(Stream::Partition(id).id(), empty)?.durable);
    }
    for durable in written {
        durable.await?;
    }
    Ok(())
}

async fn note_node(log: &Log, node: NodeId, map: &ClusterMap) -> Result<(), StartError> {
    let first = LocalState::new(node, map).snapshot();
    let mut room = log.admit(Class::Control, first.len()).await?;
    Ok(log.append(Stream::Node.id(), &mut room, &first)?.durable.await?)
}

/// Length of a lease: a writer's pause when its server dies is a little more.
const LEASE_MS: u32 = 3_000;
/// 1 % of a lease and 100 ms.
const DRIFT_MS: u32 = 130;
/// Pause between heartbeats.
const HEARTBEAT_MS: u32 = 250;
/// Eight lost heartbeats: a busy server answers late, which is no death.
const SUSPECT_MS: u32 = 2_000;

fn first_map(plan: &Plan, identity: LogIdentity, devices: Vec<DeviceEntry>) -> ClusterMap {
    let next_device = devices.iter().map(|device| device.id + 1).max().unwrap_or(1);
    let own =
        PartitionEntry { config: 1, since: 1, primary: plan.node, ..PartitionEntry::default() };
    ClusterMap {
        format: 0,
        epoch: 1,
        cluster: identity.cluster.0.to_vec(),
        bfs: plan.bfs.to_vec(),
        nodes: vec![NodeEntry {
            id: plan.node,
            address: plan.address.clone(),
            log: identity.log.0.to_vec(),
            voter: 1,
            ..NodeEntry::default()
        }],
        devices,
        partitions: vec![own; plan.partitions as usize],
        data: u32::from(plan.data),
        parity: u32::from(plan.parity),
        codec: u32::from(plan.codec),
        region_log2: plan.region_log2,
        window_ticks: plan.window_ticks,
        deterministic: plan.deterministic,
        lease_ms: LEASE_MS,
        drift_ms: DRIFT_MS,
        heartbeat_ms: HEARTBEAT_MS,
        suspect_ms: SUSPECT_MS,
        next_node: plan.node + 1,
        next_device,
        next_voter: 2,
        ..ClusterMap::default()
    }
}
