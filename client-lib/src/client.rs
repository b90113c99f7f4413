//! The client: what all its files share.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bb_erasure::Geometry;
use bb_pgio::{Limits, PgIo, PgStats};
use bb_proto::meta::Credentials;
use bb_proto::{Code, Fid, SessionId};
use bb_runtime::sync::{Notify, Semaphore};
use bb_runtime::{BufPool, Rt};
use bb_transport::{Address, Caller};

use crate::cache::PgCache;
use crate::counters::Counters;
use crate::error::{Error, Result};
use crate::forgotten::Forgotten;
use crate::link::Link;
use crate::node::Node;
use crate::options::ClientOptions;
use crate::reclaim::show_opens;
use crate::session::Session;

/// How often a session may be lost while the files are opened in it.
const RECOVERIES: u32 = 4;

/// A client of a cluster. Cheap to clone; clones share session, files and memory.
///
/// Memory: written bytes that are not acknowledged stay within `write_back_bytes` (parity, at most
/// K/N of what is being sealed, comes on top, from the pool), bytes kept for reading within
/// `read_cache_bytes`, bytes being read within a quarter of the pool, fragment maps within 64 pages
/// of 4 MiB a file. So a pool of at least four times `write_back_bytes`, and of 32 MiB, never blocks
/// itself.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Rc<Inner>,
    pub(crate) credentials: Rc<Credentials>,
}

pub(crate) struct Inner {
    pub link: Link,
    pub session: Rc<Session>,
    pub io: PgIo,
    pub options: Rc<ClientOptions>,
    pub recovering: Semaphore,
    pub nodes: RefCell<BTreeMap<Fid, Rc<Node>>>,
    pub forgotten: Forgotten,
    /// Bytes that may still be written before the cluster acknowledges some.
    pub budget: Semaphore,
    /// Bytes that reads may have under way: a read takes the share of a whole piece before its
    /// first request, so that reads do not wait for each other's buffers.
    pub reading: Semaphore,
    pub reading_bytes_max: u64,
    pub cache: Rc<PgCache>,
    /// Notified when a group may be sealed that could not be, or was not there, before: for those
    /// who wait for memory.
    pub sealable: Notify,
    /// N of new groups is smaller than wanted, and that has been said.
    pub said_smaller: Cell<bool>,
    #[cfg(feature = "planted")]
    pub planted: Cell<Option<crate::Planted>>,
}

impl Client {
    /// Connects to the cluster whose servers (at least one of them) are at `addresses`, and opens a
    /// session. Repeats until one answers or the command timeout passes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn connect(
        rt: Rt,
        pool: BufPool,
        caller: Rc<dyn Caller>,
        addresses: Vec<Address>,
        options: ClientOptions,
    ) -> Result<Self> {
        let mut options = options;
        let share = pool.stats().total_bytes / 4;
        options.write_back_bytes = options.write_back_bytes.clamp(2 << 20, share.max(2 << 20));
        options.read_cache_bytes = options.read_cache_bytes.min(share);
        // A call that gives up earlier cannot wait longer for one request.
        options.request_timeout = options.request_timeout.min(options.command_timeout);
        let options = Rc::new(options);
        let link =
            Link::connect(rt.clone(), pool.clone(), caller.clone(), addresses, &options).await?;
        let cache = link.cache().clone();
        let session = Session::open(link.clone(), options.clone()).await?;
        let limits = Limits {
            give_up: options.command_timeout,
            deterministic: options.deterministic,
            ..Limits::default()
        };
        let io = PgIo::new(rt, pool, caller, Rc::new(link.clone()), limits);
        let inner = Inner {
            link,
            session,
            io,
            recovering: Semaphore::new(1),
            nodes: RefCell::default(),
            forgotten: Forgotten::default(),
            budget: Semaphore::new(options.write_back_bytes),
            reading: Semaphore::new(share.max(4 << 20)),
            reading_bytes_max: share.max(4 << 20),
            cache,
            sealable: Notify::new(),
            said_smaller: Cell::new(false),
            #[cfg(feature = "planted")]
            planted: Cell::new(None),
            options: options.clone(),
        };
        let credentials = Rc::new(options.credentials.clone());
        let inner = Rc::new(inner);
        inner.rt().spawn(show_opens(Rc::downgrade(&inner), inner.rt().clone()));
        Ok(Self { inner, credentials })
    }

    /// The same client, acting as somebody else on the backing file system.
    #[must_use]
    pub fn acting_as(&self, credentials: Credentials) -> Self {
        Self { inner: self.inner.clone(), credentials: Rc::new(credentials) }
    }

    /// Plants a deliberate error.
    #[cfg(feature = "planted")]
    pub fn plant(&self, planted: crate::Planted) {
        self.inner.planted.set(Some(planted));
        if planted == crate::Planted::TrustCrc {
            self.inner.io.plant_trust_crcs();
        }
        if planted == crate::Planted::HoldAndWait {
            self.inner.io.plant_hold_and_wait();
        }
    }

    /// Blocks that were read by reconstruction so far.
    pub fn reconstructed_blocks(&self) -> u64 {
        self.inner.io.stats().reconstructed
    }

    /// What reading and writing parity groups took so far.
    pub fn statistics(&self) -> PgStats {
        self.inner.io.stats()
    }

    /// What the client did so far, in all.
    pub fn counters(&self) -> Counters {
        let groups = self.inner.io.stats();
        Counters {
            gets: groups.gets + groups.hedge_gets,
            puts: groups.puts + groups.hedge_puts,
            kept_bytes_max: self.inner.cache.used_bytes_max(),
            ..self.inner.link.counters()
        }
    }

    /// The cluster map.
    pub fn map(&self) -> Rc<bb_cluster::ClusterMap> {
        self.inner.link.map()
    }

    /// Writes back everything that any file of the client holds.
    ///
    /// # Errors
    /// The first that there was.
    pub async fn flush(&self) -> Result<()> {
        self.inner.flush_all().await
    }

    /// Writes back everything and ends the session.
    ///
    /// # Errors
    /// The first error of an asynchronous write.
    pub async fn disconnect(self) -> Result<()> {
        let result = self.inner.flush_all().await;
        self.inner.session.close().await;
        result
    }
}

impl Inner {
    pub fn rt(&self) -> &Rt {
        self.link.rt()
    }

    #[cfg(feature = "planted")]
    pub fn planted(&self, error: crate::Planted) -> bool {
        self.planted.get() == Some(error)
    }

    /// Geometry of new groups: what the user or the cluster wants, as far as nodes permit that are
    /// active and take blocks.
    pub fn geometry(&self) -> Option<Geometry> {
        let map = self.link.map();
        let small = |n: u32| u8::try_from(n).unwrap_or(0);
        let wanted = self
            .options
            .geometry
            .or_else(|| Geometry::new(small(map.data), small(map.parity)).ok())?;
        let usable = self.io.usable_geometry(wanted)?;
        let smaller = usable.data() < wanted.data();
        if smaller && !self.said_smaller.replace(smaller) {
            tracing::warn!(
                "too few nodes or devices take blocks for {wanted}: new parity groups are {usable}"
            );
        } else if !smaller && self.said_smaller.replace(false) {
            tracing::info!("new parity groups are {usable} again");
        }
        Some(usable)
    }

    /// A server does not know the session `lost`: opens another, and the files in it. Done when that
    /// is done, also where somebody else had begun with it.
    async fn recover(self: &Rc<Self>, lost: SessionId) -> Result<()> {
        let _one = self.recovering.acquire(1).await;
        let mut lost = lost;
        for _ in 0..RECOVERIES {
            if !self.session.replace(lost).await? {
                return Ok(());
            }
            lost = self.session.id();
            if self.reopen_all().await {
                return Ok(());
            }
        }
        Err(Error::errno_of(libc::EIO, "servers forget each session at once"))
    }

    /// False where the new session was lost meanwhile.
    async fn reopen_all(self: &Rc<Self>) -> bool {
        let nodes: Vec<Rc<Node>> = self.nodes.borrow().values().cloned().collect();
        for node in nodes {
            match self.reopen(&node).await {
                Ok(()) => {}
                Err(error) if error.is(Code::NoSession) => return false,
                Err(error) => node.fail(error),
            }
        }
        true
    }

    /// True if `error` says that the session `used` is lost, and another is open now.
    pub async fn recovered(self: &Rc<Self>, error: &Error, used: SessionId) -> bool {
        error.is(Code::NoSession) && Box::pin(self.recover(used)).await.is_ok()
    }

    /// The same for a request that carried a capability of that session: true if the file has one
    /// of another now.
    pub async fn renewed(self: &Rc<Self>, error: &Error, node: &Node, used: SessionId) -> bool {
        self.recovered(error, used).await && node.session() != used
    }

    /// Waits until the file can be written to in the current session; which.
    pub async fn writable(self: &Rc<Self>, node: &Node) -> Result<SessionId> {
        let session = node.write_capability.get().session;
        if session != self.session.id() {
            Box::pin(self.recover(session)).await?;
        }
        let session = node.write_capability.get().session;
        if session == self.session.id() {
            return Ok(session);
        }
        Err(Error::errno_of(libc::ESTALE, "the file could not be opened again"))
    }

    /// Writes back every file.
    pub async fn flush_all(self: &Rc<Self>) -> Result<()> {
        let nodes: Vec<Rc<Node>> = self.nodes.borrow().values().cloned().collect();
        let mut result = Ok(());
        for node in &nodes {
            self.seal(node);
        }
        for node in nodes {
            result = result.and(self.flush(&node).await);
        }
        result
    }
}
