//! `bbd run`: serves until a signal says stop.

use std::os::fd::{FromRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bb_commitlog::Options;
use bb_nvme::{DeviceRef, SlowDevice};
use bb_proto::DeviceId;
use bb_runtime::uring::{self, Uring, UringOptions};
use bb_runtime::{BufPool, Rt, ThreadPool};
use futures_util::future;

use bb_transport::{
    Address, Client, ClientConfig, Complaints, Identity, Role, Server, Service, Tcp,
};

use super::auth::Auth;
use super::reactors::{Others, Terms, log_stopped};
use super::{DaemonError, open_device, pool};
use crate::bfs::posix::{Limits, PosixBfs};
use crate::blockstore;
use crate::config::{AuthConfig, Config};
use crate::node::{Node, Parts, SESSION_LEASE};
use crate::partition::HostConfig;

/// How long requests that run may take to end after a signal. Some wait for other servers, which may
/// wait for this one: the sooner it is gone, the sooner all go on.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// The same where the cluster goes on without this process: its answers are worth nothing, and its
/// successor is waited for.
const END_LIMIT: Duration = Duration::from_millis(200);

/// For tests: how many times as long operations of this node's devices shall take.
#[derive(Clone, Copy, Debug)]
pub struct Slower {
    /// Those of data devices.
    pub devices: u32,
    /// Those of the commit log's.
    pub log: u32,
}

/// Serves as the node that `config` describes, in this thread and those of further reactors, until
/// SIGTERM or SIGINT. `ready` is
/// called once requests are answered. The operator gives up the devices `give_up`: their blocks are
/// reconstructed from others from now on.
///
/// # Errors
/// [`DaemonError`].
pub fn run(
    config: &Config,
    give_up: &[DeviceId],
    slower: Slower,
    ready: impl FnOnce() + 'static,
) -> Result<(), DaemonError> {
    // Before any thread is started, so that none of them takes the signal.
    let signals = block_signals()?;
    let auth = Auth::begin(&config.auth)?;
    let bfs = PosixBfs::open(&config.bfs.path, bfs_limits(config))?;
    let pool = pool(config)?;
    let (executor, uring) = uring::executor(&UringOptions::for_reactor())?;
    uring.register_pool(&pool);
    let rt = executor.rt();
    let threads = ThreadPool::new("device", 2, 64);
    executor.block_on(serve(
        config, give_up, slower, &rt, &uring, &threads, pool, bfs, auth, signals, ready,
    ))
}

fn slower_device(rt: &Rt, device: DeviceRef, times: u32) -> DeviceRef {
    if times <= 1 {
        return device;
    }
    tracing::warn!(device = device.info().name, times, "made slower, for a test");
    Rc::new(SlowDevice::new(rt, device, times))
}

fn bfs_limits(config: &Config) -> Limits {
    let threads = config.bfs.threads;
    Limits { name_threads: threads, data_threads: threads, ..Limits::default() }
}

#[expect(clippy::too_many_arguments, reason = "what a process is made of, put together once")]
async fn serve(
    config: &Config,
    give_up: &[DeviceId],
    slower: Slower,
    rt: &Rt,
    uring: &Uring,
    threads: &ThreadPool,
    pool: BufPool,
    bfs: PosixBfs,
    auth: Auth,
    signals: OwnedFd,
    ready: impl FnOnce() + 'static,
) -> Result<(), DaemonError> {
    let log = open_device(rt, uring, threads, &config.log).await?;
    let log = slower_device(rt, log, slower.log);
    let (mut devices, mut unusable) = (Vec::new(), Vec::new());
    for store in &config.devices {
        match open_device(rt, uring, threads, store).await {
            Ok(device) => devices.push(slower_device(rt, device, slower.devices)),
            Err(error) => {
                unusable.push((store.path.display().to_string(), error.to_string()));
            }
        }
    }
    let network = Tcp::network(uring);
    let host = format!("node{}", config.node.id);
    let identity = Identity {
        role: Role::Server,
        host: host.as_str().into(),
        cluster: Vec::new(),
        incarnation: 0,
        auth: auth.method(),
    };
    let caller = Client::new(rt, network, ClientConfig::new(identity, pool.clone()));
    let address = Address::from(config.node.listen.as_str());
    let parts = Parts {
        address: address.clone(),
        pool: pool.clone(),
        log,
        log_options: Options::default(),
        devices,
        unusable,
        give_up: give_up.to_vec(),
        bfs: Rc::new(bfs),
        caller: Rc::new(caller.clone()),
        blocks: blockstore::Config::default(),
        host: HostConfig::default(),
        session_lease: SESSION_LEASE,
        metadata_bytes_max: config.node.metadata_bytes_max,
        plan: bb_cluster::PlanLimits::default(),
        security: auth.secured(rt),
    };
    let node = Node::start(rt, parts, &|device, progress| {
        if progress.blocks_done.is_multiple_of(1000) {
            tracing::info!(
                device,
                done = progress.blocks_done,
                total = progress.blocks_total,
                "checking blocks after a restart"
            );
        }
    })
    .await?;
    caller.set_local(address.clone(), node.clone());
    let shared = node.context().shared.clone();
    caller.set_cluster(shared.map().cluster.clone());
    let terms = Terms {
        reactors: config.node.reactors,
        address: config.node.listen.clone(),
        host,
        cluster: shared.map().cluster.clone(),
        incarnation: shared.incarnation.0,
        auth,
        pool,
        complaints: Complaints::default(),
    };
    let (server, mut others) = listen(rt, uring, &address, &node, &terms).await?;
    if node.context().shared.security().is_none() {
        tracing::warn!("{}", AuthConfig::TRUSTED);
    }
    tracing::info!(
        address = %server.address().0,
        incarnation = %shared.incarnation,
        reactors = terms.reactors,
        "listening"
    );
    let council = node.council().clone();
    rt.spawn(async move {
        council.joined().await;
        tracing::info!("serving");
        ready();
    });
    let outcome = until_stopped(uring, &node, others.as_ref(), signals).await;
    if outcome.is_ok() {
        node.council().leave_in_order().await;
    }
    let limit = if outcome.is_ok() { STOP_LIMIT } else { END_LIMIT };
    let others_end = async {
        if let Some(others) = &mut others {
            others.stop(rt, limit).await;
        }
    };
    future::join(server.stop(limit), others_end).await;
    log_stopped(0, server.stats());
    caller.close();
    if outcome.is_ok()
        && let Err(error) = node.stop().await
    {
        tracing::warn!(%error, "the commit log could not be closed; nothing is lost");
    }
    if let Some(others) = others {
        others.join();
    }
    outcome
}

/// Listens, in this reactor and in those beside it that the configuration wants.
async fn listen(
    rt: &Rt,
    uring: &Uring,
    address: &Address,
    node: &Rc<Node>,
    terms: &Terms,
) -> Result<(Server, Option<Others>), DaemonError> {
    let service: Rc<dyn Service> = node.clone();
    let (others, listener) = if terms.reactors > 1 {
        let (others, takers) = Others::start(rt, &service, terms)?;
        (Some(others), Tcp::listen_and_share(rt, uring, address, takers).await)
    } else {
        (None, Tcp::network(uring).listen(address).await)
    };
    let listener = listener.map_err(|error| DaemonError::Listen {
        address: address.0.to_string(),
        why: error.to_string(),
    })?;
    Ok((Server::start(rt, listener, service, terms.server(0)), others))
}

/// Waits for a signal, or for something without which nothing can be served to fail.
async fn until_stopped(
    uring: &Uring,
    node: &Node,
    others: Option<&Others>,
    signals: OwnedFd,
) -> Result<(), DaemonError> {
    let signals = uring.adopt(signals);
    let signal = std::pin::pin!(uring.poll_fd(&signals, libc::POLLIN));
    let log = node.context().log.clone();
    let failed = async {
        let ends = std::pin::pin!(node.council().must_end());
        match future::select(std::pin::pin!(log.failed()), ends).await {
            future::Either::Left((error, _)) => DaemonError::LogFailed(error),
            future::Either::Right((why, _)) if node.council().is_given_up() => {
                DaemonError::GivenUp(why)
            }
            future::Either::Right((why, _)) => DaemonError::MustRestart(why),
        }
    };
    let reactor_ended = async {
        match others {
            Some(others) => others.one_ended().await,
            None => future::pending().await,
        }
        DaemonError::ReactorEnded
    };
    let failed = async {
        let ended = std::pin::pin!(reactor_ended);
        future::select(std::pin::pin!(failed), ended).await.factor_first().0
    };
    match future::select(signal, std::pin::pin!(failed)).await {
        future::Either::Left((signal, _)) => {
            signal.map_err(|error| DaemonError::Os { doing: "wait for signals", error })?;
            tracing::info!("stopping");
            Ok(())
        }
        future::Either::Right((error, _)) => Err(error),
    }
}

fn block_signals() -> Result<OwnedFd, DaemonError> {
    let failed = |doing| {
        let error = std::io::Error::last_os_error();
        DaemonError::Os { doing, error }
    };
    // SAFETY: `set` is initialised by sigemptyset before it is used, and lives through all calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        if libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(failed("block signals"));
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(failed("make a signal descriptor"));
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}
