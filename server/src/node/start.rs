//! Bringing a node back, in the order in which that is safe.
//!
//! 1. Superblocks say who the devices are; the log is replayed into tables.
//! 2. The map says whether these are the right devices and the right backing file system.
//! 3. The new incarnation takes its lock on the backing file system and is logged.
//! 4. Blocks that may be torn are read and checked.
//! 5. Only then anything is served.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{ClusterMap, ClusterState, DeviceState, PlanLimits};
use bb_commitlog::{ClusterUuid, Log, Options};
use bb_erasure::{CodecId, codec};
use bb_nvme::DeviceRef;
use bb_proto::{DeviceId, Incarnation, NodeId};
use bb_runtime::{BufPool, Rt};
use bb_transport::{Address, Caller};

use super::replay::Replayed;
use super::{Node, StartError};
use crate::bfs::Bfs;
use crate::blockstore::{self, BlockStore, Env, Expected, RecoveryProgress, Superblock, Uuid};
use crate::context::{Context, Shared};
use crate::council::{Begin, Council, Local};
use crate::files::FileService;
use crate::namespace::{FindPartition, Namespace, SessionService, WriteThrough};
use crate::partition::region_mutation::ProcessId;
use crate::partition::{HostConfig, OnServe, PartitionHost, background, journal::Journal};
use crate::planted::{self, Planted};
use crate::residency::Residency;
use crate::security::Secured;

/// Usual lease of a session: several lost renewals, and a server that restarts.
pub const SESSION_LEASE: Duration = Duration::from_secs(60);

/// What a node is made of.
pub struct Parts {
    /// Where it listens; the map is corrected if it says something else.
    pub address: Address,
    /// Buffers.
    pub pool: BufPool,
    /// The commit log's device.
    pub log: DeviceRef,
    /// How the log is opened; what it must be is filled in.
    pub log_options: Options,
    /// The data devices, in any order.
    pub devices: Vec<DeviceRef>,
    /// Data devices that could not be opened: name and reason. The node starts without them if
    /// the map has given them up.
    pub unusable: Vec<(String, String)>,
    /// Devices that the operator gives up: their blocks are reconstructed from others.
    pub give_up: Vec<DeviceId>,
    /// The backing file system.
    pub bfs: Rc<dyn Bfs>,
    /// Reaches every node, this one too.
    pub caller: Rc<dyn Caller>,
    /// Settings of the block stores.
    pub blocks: blockstore::Config,
    /// A client that is not heard of for so long is dead; also how long clients have after a
    /// restart to show what they have open.
    pub session_lease: Duration,
    /// Settings of the partitions; the budget of memory comes from below.
    pub host: HostConfig,
    /// Memory for metadata (rule 16).
    pub metadata_bytes_max: u64,
    /// How much the planner does at a time, where this node leads.
    pub plan: PlanLimits,
    /// What clients have to prove; without it they are trusted.
    pub security: Option<Secured>,
}

/// Tells an operator how a start goes on.
pub type RecoveryNews<'a> = &'a dyn Fn(&str, RecoveryProgress);

impl Node {
    /// Starts a node. When this returns it can answer requests.
    ///
    /// # Errors
    /// [`StartError`]; nothing was served and nothing was lost.
    pub async fn start(
        rt: &Rt,
        mut parts: Parts,
        news: RecoveryNews<'_>,
    ) -> Result<Rc<Self>, StartError> {
        let (superblocks, devices) = identify(&mut parts).await?;
        let mut replayed = Replayed::new(&superblocks);
        let log = open_log(rt, &parts, &superblocks, &mut replayed).await?;
        let map = without(newest_map(&replayed)?, &parts.give_up);
        check_devices(&map, replayed.local.node(), &superblocks, &log, &parts.unusable)?;
        check_bfs(&map, &*parts.bfs)?;
        parts.bfs.check().await?;
        warn_of_codec(&map);
        let metadata_bytes_max = metadata_budget(parts.metadata_bytes_max, &log);
        let ctx = context(rt, &parts, log, &replayed, map);
        let process = ProcessId { node: ctx.shared.node, incarnation: ctx.shared.incarnation };
        parts.bfs.hold(process).await?;
        let local = std::mem::take(&mut replayed.local);
        let local = Local::new(rt.clone(), ctx.log.clone(), local);
        local.begin(ctx.shared.incarnation).await?;
        forget_failed(&ctx, &mut replayed).await?;
        let stores = recover_stores(&ctx, &parts, &mut replayed, devices, news).await?;
        let journal: Rc<dyn Journal> = ctx.log.clone();
        let host_config = HostConfig {
            metadata_bytes_max,
            // Nothing is served before the map says that this process is the primary.
            serve_at_once: false,
            ..parts.host
        };
        let states = replayed.partitions.finish();
        let partitions = PartitionHost::new((&ctx).into(), &journal, host_config, states);
        let files = FileService::new((&ctx).into(), parts.session_lease);
        let names: Rc<dyn Namespace> = WriteThrough::new((&ctx).into());
        let sessions = {
            let host = partitions.clone();
            let find: FindPartition = Rc::new(move |id| host.partition(id));
            let lease = parts.session_lease;
            SessionService::new((&ctx).into(), find, names.clone(), files.clone(), lease)
        };
        let residency = Residency::new(ctx.clone(), partitions.clone(), files.clone());
        let ballots = std::mem::take(&mut replayed.ballots);
        let council = Council::new(&ctx, Begin { local, ballots, limits: parts.plan })?;
        let on_serve = on_serve(&names, &files, &sessions, &residency);
        partitions.join(Rc::new(council.clone()), on_serve);
        let node = Rc::new(Self {
            ctx,
            council,
            stores,
            partitions,
            files,
            sessions,
            residency,
            metadata_bytes_max,
            bfs_watch: Rc::default(),
            stopping: false.into(),
        });
        node.start_background();
        node.give_up_devices(parts.give_up);
        Ok(node)
    }

    /// What the operator gives up, the map gives up.
    fn give_up_devices(&self, devices: Vec<DeviceId>) {
        let council = self.council.clone();
        self.ctx.rt.spawn(async move {
            council.joined().await;
            for device in devices {
                council.give_up_device(device).await;
            }
        });
    }

    fn start_background(self: &Rc<Self>) {
        let rt = &self.ctx.rt;
        rt.spawn(self.clone().run_checkpoints());
        for (id, store) in &self.stores {
            self.watch(*id, store);
            store.start();
        }
        rt.spawn(background::run(Rc::downgrade(&self.partitions)));
        let served = self.partitions.clone();
        rt.spawn(self.sessions.clone().expire(move || served.partitions().collect()));
        self.residency.start();
        self.council.start(&self.partitions);
    }
}

/// What is done with each partition that this node serves from now on: like a restart.
fn on_serve(
    names: &Rc<dyn Namespace>,
    files: &Rc<FileService>,
    sessions: &Rc<SessionService>,
    residency: &Rc<Residency>,
) -> OnServe {
    let (names, files) = (names.clone(), files.clone());
    let (sessions, residency) = (Rc::downgrade(sessions), Rc::downgrade(residency));
    Box::new(move |partition| {
        files.begin_grace(partition.id());
        names.clone().resume(partition);
        files.resume(partition);
        if let Some(sessions) = sessions.upgrade() {
            sessions.begin_lease(partition);
        }
        if let Some(residency) = residency.upgrade() {
            residency.resume(partition);
        }
    })
}

/// The newest map that the log knows: as a voter, or as a node.
fn newest_map(replayed: &Replayed) -> Result<ClusterMap, StartError> {
    let noted = replayed.local.map()?;
    let voted = replayed.ballots.recovered().machine();
    let voted = voted.and_then(|(_, bytes)| ClusterState::decode_snapshot(bytes).ok());
    Ok(match voted {
        Some(state) if state.map.epoch > noted.epoch => state.map,
        _ => noted,
    })
}

type Devices = BTreeMap<DeviceId, DeviceRef>;

/// Asks the devices who they are. One that cannot say joins the unusable ones.
async fn identify(parts: &mut Parts) -> Result<(Vec<Superblock>, Devices), StartError> {
    let mut superblocks: Vec<Superblock> = Vec::new();
    let mut devices = BTreeMap::new();
    for device in &parts.devices {
        let name = device.info().name.clone();
        let superblock = match blockstore::read_superblock(device, &parts.pool).await {
            Ok(superblock) => superblock,
            Err(error) => {
                parts.unusable.push((name, error.to_string()));
                continue;
            }
        };
        if devices.insert(superblock.device, device.clone()).is_some() {
            let text =
                format!("{name} is a copy of another configured device: {}", superblock.uuid);
            return Err(StartError::Devices(text));
        }
        superblocks.push(superblock);
    }
    Ok((superblocks, devices))
}

/// Groups of a code that this build lacks are read while all their data blocks are there. Whoever
/// started the wrong build should not learn that from the first lost device.
fn warn_of_codec(map: &ClusterMap) {
    let id = CodecId(u8::try_from(map.codec).unwrap_or(u8::MAX));
    if let Err(error) = codec(id) {
        tracing::warn!(%error, "lost blocks of this cluster's groups cannot be reconstructed");
    }
}

/// The map after the operator has given up devices.
fn without(mut map: ClusterMap, give_up: &[DeviceId]) -> ClusterMap {
    for entry in &mut map.devices {
        if give_up.contains(&DeviceId(entry.id)) && entry.state() != DeviceState::Failed {
            entry.set_state(DeviceState::Failed);
            map.epoch += 1;
        }
    }
    map
}

/// What the log holds of devices that are given up is of no use to anybody, and would keep the
/// ring's tail for ever.
async fn forget_failed(ctx: &Context, replayed: &mut Replayed) -> Result<(), StartError> {
    for streams in std::mem::take(&mut replayed.absent).into_values() {
        for stream in streams {
            ctx.log.retire(stream)?.durable.await?;
        }
    }
    Ok(())
}

impl Node {
    /// A device that fails is given up, in the map: clients place nothing there any more and
    /// reconstruct what it held.
    fn watch(self: &Rc<Self>, id: DeviceId, store: &BlockStore) {
        let node = Rc::downgrade(self);
        store.on_failure(move |why| {
            let Some(node) = node.upgrade() else { return };
            tracing::error!(device = %id, why, "a data device is given up");
            let rt = node.ctx.rt.clone();
            rt.spawn(async move {
                node.council.give_up_device(id).await;
            });
        });
    }
}

async fn open_log(
    rt: &Rt,
    parts: &Parts,
    superblocks: &[Superblock],
    replayed: &mut Replayed,
) -> Result<Log, StartError> {
    let options = expecting(parts.log_options.clone(), superblocks);
    Ok(Log::open(rt, &parts.pool, &parts.log, options, replayed).await?)
}

/// Options that refuse the log of other devices for what it is, before anything is replayed.
pub(super) fn expecting(mut options: Options, superblocks: &[Superblock]) -> Options {
    let first = superblocks.first();
    if let Some(first) = first.filter(|_| !planted::is(Planted::TrustAnyDevice)) {
        options.expect.cluster = Some(ClusterUuid(first.cluster.0));
        options.expect.nonce = Some(first.nonce);
    }
    options
}

/// The devices must be the map's, and those of this log; all that the map has not given up must be
/// there.
fn check_devices(
    map: &ClusterMap,
    me: NodeId,
    superblocks: &[Superblock],
    log: &Log,
    unusable: &[(String, String)],
) -> Result<(), StartError> {
    let identity = log.identity();
    let ClusterUuid(cluster) = identity.cluster;
    if map.cluster != cluster {
        return Err(StartError::Devices("the map in the log is another cluster's".to_owned()));
    }
    let expected = Expected { cluster: Uuid(cluster), nonce: identity.nonce };
    for superblock in superblocks {
        let name = format!("device {}", superblock.device);
        superblock.check(&name, &expected)?;
        let entry = map.device(superblock.device).filter(|entry| {
            entry.uuid == superblock.uuid.0 && entry.incarnation == superblock.incarnation.0
        });
        if entry.is_none() && !planted::is(Planted::TrustAnyDevice) {
            let text = format!("{name} (UUID {}) is not in the cluster map", superblock.uuid);
            return Err(StartError::Devices(text));
        }
    }
    let missing: Vec<u32> = map
        .devices
        .iter()
        .filter(|entry| entry.node == me.0 && entry.state() != DeviceState::Failed)
        .map(|entry| entry.id)
        .filter(|id| !superblocks.iter().any(|s| s.device.0 == *id))
        .collect();
    if missing.is_empty() {
        for (name, why) in unusable {
            tracing::warn!(name, why, "starting without a device that was given up");
        }
        return Ok(());
    }
    let mut text = format!("devices {missing:?} of the cluster map are not there");
    for (_, why) in unusable {
        text.push_str(". ");
        text.push_str(why);
    }
    text.push_str(
        ". Bring them back, or start with --give-up N: what they held is then reconstructed",
    );
    Err(StartError::Devices(text))
}

/// The backing file system must be the cluster's.
///
/// # Errors
/// [`StartError::OtherBfs`].
pub fn check_bfs(map: &ClusterMap, bfs: &dyn Bfs) -> Result<(), StartError> {
    let found = bfs.uuid();
    let expected: [u8; 16] = map.bfs.as_slice().try_into().unwrap_or_default();
    if found == expected {
        return Ok(());
    }
    Err(StartError::OtherBfs { found: Uuid(found), expected: Uuid(expected) })
}

/// What the log can keep of metadata. It is always enough for a log that is not larger than a
/// quarter of the ring; a third of that is left for the replicas that come from nodes that are down
/// and for those whose primary, on another node, does not see this log.
fn metadata_budget(wanted_bytes: u64, log: &Log) -> u64 {
    let ring_bytes = log.usage().ring_bytes;
    let log_bytes = ring_bytes / 6;
    if log_bytes < wanted_bytes {
        tracing::info!(
            "a log of {} MiB keeps {} MiB of metadata, of {} MiB in the configuration",
            ring_bytes >> 20,
            log_bytes >> 20,
            wanted_bytes >> 20
        );
    }
    wanted_bytes.min(log_bytes)
}

fn context(rt: &Rt, parts: &Parts, log: Log, replayed: &Replayed, mut map: ClusterMap) -> Context {
    let incarnation = Incarnation(replayed.local.incarnation().0 + 1);
    let node = replayed.local.node();
    for entry in map.nodes.iter_mut().filter(|entry| entry.id == node.0) {
        entry.address = parts.address.0.to_string();
    }
    let tick = replayed.local.tick();
    let shared = Shared::new(rt, node, parts.address.clone(), incarnation, map, tick);
    if let Some(security) = &parts.security {
        shared.secure(security.clone());
    }
    Context {
        rt: rt.clone(),
        pool: parts.pool.clone(),
        log: Rc::new(log),
        caller: parts.caller.clone(),
        bfs: parts.bfs.clone(),
        shared: Rc::new(shared),
    }
}

async fn recover_stores(
    ctx: &Context,
    parts: &Parts,
    replayed: &mut Replayed,
    devices: BTreeMap<DeviceId, DeviceRef>,
    news: RecoveryNews<'_>,
) -> Result<BTreeMap<DeviceId, Rc<BlockStore>>, StartError> {
    let mut stores = BTreeMap::new();
    for (id, device) in devices {
        let map = ctx.shared.map();
        if map.device(id).is_none_or(|entry| entry.state() == DeviceState::Failed) {
            // Given up once, it comes back only formatted, under another number.
            replayed.stores.remove(&id);
            continue;
        }
        let Some(recovery) = replayed.stores.remove(&id) else { continue };
        let name = device.info().name.clone();
        let (store, _report) = recovery
            .finish(Env::from(ctx), device, parts.blocks.clone(), |progress| {
                news(&name, progress);
            })
            .await?;
        stores.insert(id, store);
    }
    Ok(stores)
}
