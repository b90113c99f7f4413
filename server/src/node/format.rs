//! Making a new node, and with it a cluster of one: what `bbd format` does.

use bb_cluster::{ClusterMap, ClusterState, DeviceEntry, NodeEntry, PartitionEntry};
use bb_commitlog::{
    Class, ClusterUuid, FormatOptions as LogFormat, Log, LogIdentity, LogUuid, Nonce, Options,
};
use bb_nvme::DeviceRef;
use bb_proto::{DeviceId, Incarnation, NodeId, Tick};
use bb_runtime::{BufPool, Rt};

use super::StartError;
use super::replay::Replayed;
use crate::blockstore::{self, Uuid};
use crate::context::Stream;
use crate::council::{LocalState, found};

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

/// Formats the log and the data devices and logs the first map. What they held is lost.
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
    let mut entries = Vec::new();
    for (at, device) in (1..).zip(devices) {
        let id = blockstore::Identity {
            device: DeviceId(at),
            uuid: Uuid(uuid(rt)),
            incarnation: Incarnation(1),
            cluster: Uuid(identity.cluster.0),
            nonce: identity.nonce,
        };
        let info = device.info();
        let superblock = blockstore::format_device(device, pool, id, plan.write_through, |done| {
            progress(&info.name, done, info.capacity_bytes);
        })
        .await?;
        entries.push(DeviceEntry {
            id: at,
            uuid: id.uuid.0.to_vec(),
            incarnation: id.incarnation.0,
            node: plan.node,
            state: 0,
            capacity_bytes: superblock.capacity_bytes,
        });
    }
    let map = first_map(plan, identity, entries);
    let log_name = log_device.info().name.clone();
    let options = LogFormat { zero_ring: plan.write_through, ..LogFormat::new(identity) };
    Log::format(rt, pool, log_device, &options, &mut |done, all| {
        progress(&log_name, done, all);
    })
    .await?;
    let mut nothing = Replayed::default();
    let log = Log::open(rt, pool, log_device, Options::default(), &mut nothing).await?;
    let log = std::rc::Rc::new(log);
    let state = ClusterState::new(map, Tick(1))?;
    let map = state.map.clone();
    found(rt, &log, 1, state).await?;
    let first = LocalState::new(NodeId(plan.node), &map).snapshot();
    let mut room = log.admit(Class::Control, first.len()).await?;
    log.append(Stream::Node.id(), &mut room, &first)?.durable.await?;
    drop(room);
    log.close().await?;
    Ok(map)
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
