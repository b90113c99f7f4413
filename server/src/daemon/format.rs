//! `bbd format`: makes files, formats devices, marks the backing file system.

use std::rc::Rc;
use std::time::Duration;

use bb_cluster::ClusterMap;
use bb_erasure::CodecId;
use bb_nvme::create_file;
use bb_proto::meta::{GetMap, GetMapReply, decode, encode};
use bb_proto::{Kind, ServiceClass};
use bb_runtime::uring::{self, Uring, UringOptions};
use bb_runtime::{BufPool, Rt, ThreadPool};
use bb_transport::auth::ClusterKey;
use bb_transport::{Address, Caller, Client, ClientConfig, Identity, Outgoing, Role, Tcp};

use super::auth::Auth;
use super::{DaemonError, open_device, pool};
use crate::bfs::posix::{self, Limits, PosixBfs, SetupError};
use crate::blockstore::Uuid;
use crate::config::{Config, StoreConfig};
use crate::node::{self, JoinPlan, Plan, StartError};

/// W of rule 1: longer than a client may hold a sealed group plus a fail-over.
const WINDOW_TICKS: u32 = 60;

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatReport {
    /// UUID of the new cluster.
    pub cluster: String,
    /// The cluster's key was made, here: every other server needs a copy.
    pub key_made: bool,
    /// The node's number.
    pub node: u32,
    /// Bytes of all data devices, as far as they are files.
    pub device_bytes: u64,
    /// Number of data devices.
    pub devices: usize,
}

/// Formats the node that `config` describes, as a cluster of one. With `force` whatever the
/// devices hold is overwritten; with `sparse` files are not written through first (rule 13: each
/// first write is then a good deal slower). `progress` is told what, bytes done, bytes in all.
///
/// # Errors
/// [`DaemonError`].
pub fn format(
    config: &Config,
    force: bool,
    sparse: bool,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<FormatReport, DaemonError> {
    let founds = config.cluster.join.is_empty();
    let key_made = config.auth.munge && founds && ClusterKey::create(&config.auth.key)?;
    // A server that cannot prove itself is better told before its devices are written through.
    let auth = Auth::begin(&config.auth)?;
    for store in config.devices.iter().chain([&config.log]) {
        prepare(store, force, sparse, progress)?;
    }
    let pool = pool(config)?;
    let (executor, uring) = uring::executor(&UringOptions::for_reactor())?;
    let rt = executor.rt();
    let threads = ThreadPool::new("device", 2, 64);
    let (cluster, node) = executor.block_on(async {
        let log = open_device(&rt, &uring, &threads, &config.log).await?;
        let mut devices = Vec::new();
        for store in &config.devices {
            devices.push(open_device(&rt, &uring, &threads, store).await?);
        }
        if founds {
            let plan = plan(config, marked_bfs(config)?);
            let map = node::format(&rt, &pool, &log, &devices, &plan, progress).await?;
            return Ok::<_, DaemonError>((map.cluster, config.node.id));
        }
        let plan = join_plan(config, &auth, &rt, &uring, &pool).await?;
        let node = node::join(&rt, &pool, &log, &devices, &plan, progress).await?;
        Ok((plan.map.cluster, node.0))
    })?;
    let cluster: [u8; 16] = cluster.as_slice().try_into().unwrap_or_default();
    let bytes = |store: &StoreConfig| store.size_bytes.unwrap_or(0);
    Ok(FormatReport {
        cluster: Uuid(cluster).to_string(),
        key_made,
        node,
        device_bytes: config.devices.iter().map(bytes).sum(),
        devices: config.devices.len(),
    })
}

/// How long a cluster is asked to take a node in.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);

/// Finds the cluster that is to be joined.
async fn join_plan(
    config: &Config,
    auth: &Auth,
    rt: &Rt,
    uring: &Uring,
    pool: &BufPool,
) -> Result<JoinPlan, DaemonError> {
    let identity = |role, cluster| Identity {
        role,
        host: "bbd format".into(),
        cluster,
        incarnation: 0,
        auth: auth.method(),
    };
    let caller = |role, cluster| {
        let settings = ClientConfig::new(identity(role, cluster), pool.clone());
        Client::new(rt, Tcp::network(uring), settings)
    };
    // A stranger may ask for the map; only a server of the cluster may ask for more.
    let stranger = caller(Role::Client, Vec::new());
    let mut why = String::new();
    for peer in &config.cluster.join {
        let body = encode(&GetMap { epoch: 0, deltas: false });
        let request = Outgoing::new(Kind::GetMap, ServiceClass::Control, JOIN_PATIENCE / 10, body);
        let answer = stranger.call(&Address::from(peer.as_str()), request).await;
        let map = answer.map_err(|error| error.to_string()).and_then(|answer| {
            let reply: GetMapReply = decode(&answer.body).map_err(|f| f.to_string())?;
            ClusterMap::decode_map(&reply.map).map_err(|error| error.to_string())
        });
        let map = match map {
            Ok(map) => map,
            Err(error) => {
                why = format!("{peer}: {error}");
                continue;
            }
        };
        stranger.close();
        let bfs = PosixBfs::open(&config.bfs.path, Limits::default())?;
        node::check_bfs(&map, &bfs)?;
        let known = caller(Role::Server, map.cluster.clone());
        return Ok(JoinPlan {
            address: config.node.listen.clone(),
            witness: config.node.witness,
            write_through: false,
            caller: Rc::new(known),
            patience: JOIN_PATIENCE,
            map,
        });
    }
    Err(StartError::Join(why).into())
}

fn plan(config: &Config, bfs: [u8; 16]) -> Plan {
    let cluster = &config.cluster;
    let codec = if cfg!(feature = "isal") { CodecId::ISAL } else { CodecId::REED_SOLOMON_SIMD };
    Plan {
        node: config.node.id,
        address: config.node.listen.clone(),
        bfs,
        data: cluster.data,
        parity: cluster.parity,
        codec: codec.0,
        partitions: cluster.partitions,
        region_log2: cluster.region_bytes.trailing_zeros(),
        window_ticks: WINDOW_TICKS,
        deterministic: cluster.deterministic,
        // Files were written through when they were made; block devices need none of it.
        write_through: false,
    }
}

/// Makes a file where there is none; refuses what holds something.
fn prepare(
    store: &StoreConfig,
    force: bool,
    sparse: bool,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<(), DaemonError> {
    let path = store.path.display().to_string();
    let failed = |error| DaemonError::Create { path: path.clone(), error };
    match std::fs::metadata(&store.path) {
        Ok(found) if found.is_file() && force && store.size_bytes.is_some() => {
            std::fs::remove_file(&store.path).map_err(failed)?;
        }
        Ok(_) if force || is_blank(&store.path).map_err(failed)? => return Ok(()),
        Ok(_) => return Err(DaemonError::Occupied { path }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let Some(bytes) = store.size_bytes else {
        let error = std::io::Error::other("it does not exist, and the configuration gives no size");
        return Err(failed(error));
    };
    create_file(&store.path, bytes, !sparse, |done| progress(&path, done, bytes)).map_err(failed)
}

/// True if the first MiB holds nothing but zeros: no file system, no device of ours.
fn is_blank(path: &std::path::Path) -> std::io::Result<bool> {
    use std::io::Read;
    let mut first = Vec::new();
    std::fs::File::open(path)?.take(1 << 20).read_to_end(&mut first)?;
    Ok(first.iter().all(|byte| *byte == 0))
}

/// UUID of the backing file system, which is marked if it is not yet.
fn marked_bfs(config: &Config) -> Result<[u8; 16], DaemonError> {
    let path = &config.bfs.path;
    let mut fresh = [0_u8; 16];
    // SAFETY: sixteen writable bytes.
    if unsafe { libc::getrandom(fresh.as_mut_ptr().cast(), fresh.len(), 0) } != 16 {
        let error = std::io::Error::last_os_error();
        return Err(DaemonError::Os { doing: "draw a UUID", error });
    }
    match posix::format(path, fresh) {
        Ok(()) | Err(SetupError::AlreadyFormatted { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let bfs = PosixBfs::open(path, Limits::default())?;
    Ok(crate::bfs::Bfs::uuid(&bfs))
}
