//! A node: the parts of a server, put together.
//!
//! | file | what |
//! |---|---|
//! | `format` | makes a new node |
//! | `start` | brings a node back from its log and devices, in the order in which that is safe |
//! | `replay` | sorts what the log holds |
//! | `serve` | who answers which request |
//! | `checkpoint` | keeps the log short |
//! | `bfs_watch` | what the status says of the backing file system |
//! | `inspect`, `record_names` | what a log holds, for people, without changing it |

mod bfs_watch;
mod checkpoint;
mod format;
mod inspect;
mod record_names;
mod replay;
mod serve;
mod start;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_commitlog::LogError;
use bb_proto::DeviceId;

use crate::bfs::BfsError;
use crate::blockstore::{BlockStore, OpenError};
use crate::context::Context;
use crate::council::{Council, VoterError};
use crate::files::FileService;
use crate::namespace::SessionService;
use crate::partition::{Partition, PartitionHost};
use crate::residency::Residency;

pub use format::{JoinPlan, Plan, Progress, format, join};
pub use inspect::{Kind, LogInspection, Owner, RecordLine, ReplayVerdict, inspect_log};
pub use start::{Parts, RecoveryNews, SESSION_LEASE, check_bfs};

/// Why a node cannot start (or be formatted).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A data device.
    #[error(transparent)]
    Device(#[from] OpenError),
    /// The commit log.
    #[error("commit log: {0}")]
    Log(#[from] LogError),
    /// The map in the log.
    #[error("commit log: {0}. `bbd format` makes a node")]
    Map(#[from] bb_cluster::MapError),
    /// The voter's log.
    #[error(transparent)]
    Voter(#[from] VoterError),
    /// The backing file system.
    #[error("backing file system: {0}")]
    Bfs(#[from] BfsError),
    /// Another backing file system than the one that the cluster was formatted with.
    #[error(
        "the backing file system has UUID {found}, the cluster was formatted with {expected}. \
         Is the right one mounted?"
    )]
    OtherBfs {
        /// What is mounted.
        found: crate::blockstore::Uuid,
        /// What the map says.
        expected: crate::blockstore::Uuid,
    },
    /// The cluster does not take the node in.
    #[error("cannot join the cluster: {0}")]
    Join(String),
    /// The devices of the configuration are not those of the map.
    #[error("{0}")]
    Devices(String),
}

/// A node that serves.
pub struct Node {
    ctx: Context,
    council: Rc<Council>,
    stores: BTreeMap<DeviceId, Rc<BlockStore>>,
    partitions: Rc<PartitionHost>,
    files: Rc<FileService>,
    sessions: Rc<SessionService>,
    residency: Rc<Residency>,
    metadata_bytes_max: u64,
    bfs_watch: Rc<bfs_watch::BfsWatch>,
    stopping: Cell<bool>,
}

impl Node {
    /// What its parts share.
    pub const fn context(&self) -> &Context {
        &self.ctx
    }

    /// Its part in the cluster.
    pub const fn council(&self) -> &Rc<Council> {
        &self.council
    }

    /// The partitions that this node serves, in order.
    pub fn partitions(&self) -> impl Iterator<Item = Rc<Partition>> + use<> {
        self.partitions.partitions()
    }

    /// All replicas of this node, whatever their role.
    pub fn replicas(&self) -> Vec<Rc<Partition>> {
        self.partitions.replicas()
    }

    /// True while this node may answer for the partitions that it serves.
    pub fn has_lease(&self) -> bool {
        self.ctx.shared.lease.is_valid(self.ctx.shared.map().epoch)
    }

    /// Ends in good order, after the transport has been stopped: everything acknowledged is
    /// durable anyway; this spares the next start the search for a torn tail.
    ///
    /// # Errors
    /// The log's failure.
    pub async fn stop(&self) -> Result<(), LogError> {
        self.stopping.set(true);
        self.council.stop();
        // Mutations of background work that was under way may still be on their way to the log.
        self.ctx.rt.sleep(Duration::from_millis(10)).await;
        self.ctx.log.close().await
    }
}
