//! A node as a process: configuration, ring, sockets, signals.
//!
//! The program `bbd` is a few lines over this, so that another program can start a server, too.

mod auth;
mod format;
mod log_inspect;
mod reactors;
mod restart;
mod run;

use std::rc::Rc;

use bb_commitlog::LogError;
use bb_nvme::{DeviceRef, UringDevice};
use bb_runtime::uring::{Uring, UringError};
use bb_runtime::{BufPool, Rt, ThreadPool};
use bb_transport::auth::{KeyError, MungeError};

use crate::bfs::posix::SetupError;
use crate::config::{Config, ConfigErrors, StoreConfig};
use crate::node::StartError;

pub use format::{FormatReport, format};
pub use log_inspect::{Show, log_inspect};
pub use restart::Restart;
pub use run::{Slower, run};

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// No ring.
    #[error(transparent)]
    Ring(#[from] UringError),
    /// A device cannot be opened.
    #[error(transparent)]
    Open(#[from] bb_nvme::OpenError),
    /// A device or the log cannot be made.
    #[error("cannot make {path}: {error}")]
    Create {
        /// Its path.
        path: String,
        /// The system's answer.
        error: std::io::Error,
    },
    /// Something is there already.
    #[error(
        "{path} holds something already. `--force` formats it all the same; what it holds is lost"
    )]
    Occupied {
        /// Its path.
        path: String,
    },
    /// The backing file system.
    #[error("backing file system: {0}")]
    Bfs(#[from] SetupError),
    /// The node cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Nobody can connect.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// The address.
        address: String,
        /// The reason.
        why: String,
    },
    /// The commit log has failed while the node was serving.
    #[error("the commit log has failed, so nothing can be acknowledged any more: {0}")]
    LogFailed(LogError),
    /// A reactor beside the first one is gone.
    #[error("a reactor has ended by itself: its connections are lost")]
    ReactorEnded,
    /// The cluster goes on without this process: one with a new incarnation may take its place.
    #[error("this process ends, to be started anew: {0}")]
    MustRestart(String),
    /// The cluster will not have this node back with this log.
    #[error("{0}. It is not started anew: `bbd format` makes it a new node")]
    GivenUp(String),
    /// A server runs.
    #[error("{0}. A server has its log for itself while it runs: stop it first")]
    LogInUse(bb_nvme::OpenError),
    /// The cluster's key.
    #[error("cluster key: {0}")]
    Key(#[from] KeyError),
    /// Users cannot be proven.
    #[error("{0}")]
    Munge(#[from] MungeError),
    /// The report says that a start would be refused.
    #[error("replay would fail: {0}")]
    Replay(String),
    /// Something of the operating system.
    #[error("{doing}: {error}")]
    Os {
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        error: std::io::Error,
    },
}

impl DaemonError {
    /// Exit code of the process: 2 = the configuration is wrong (or what it names under
    /// `[auth]`), 3 = a device or the log cannot be
    /// used, or the cluster has given the node up, 4 = the log was looked at and would not be replayed,
    /// 75 = to be started anew, 1 = anything else.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Key(_) | Self::Munge(_) => 2,
            Self::Open(_)
            | Self::Start(_)
            | Self::Occupied { .. }
            | Self::LogFailed(_)
            | Self::GivenUp(_)
            | Self::LogInUse(_) => 3,
            Self::Replay(_) => 4,
            // EX_TEMPFAIL of sysexits.h.
            Self::MustRestart(_) => 75,
            _ => 1,
        }
    }
}

fn pool(config: &Config) -> Result<BufPool, DaemonError> {
    let bytes = usize::try_from(config.node.buffer_bytes).unwrap_or(usize::MAX);
    let pool = BufPool::new(bytes, config.node.huge_pages)
        .map_err(|error| DaemonError::Os { doing: "map memory for buffers", error })?;
    let stats = pool.stats();
    tracing::info!(
        mib = stats.total_bytes >> 20,
        huge_pages = stats.huge_pages,
        "memory for buffers is mapped"
    );
    Ok(pool)
}

async fn open_device(
    rt: &Rt,
    uring: &Uring,
    threads: &ThreadPool,
    store: &StoreConfig,
) -> Result<DeviceRef, DaemonError> {
    let device = UringDevice::open(rt, uring, threads, &store.path).await?;
    Ok(Rc::new(device))
}
