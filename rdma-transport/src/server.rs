//! The accepting side: who may connect, how many, and how it all ends.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::sync::{Notify, Semaphore};
use bb_runtime::{BufPool, Rt};

use crate::budget::{Budget, Part};
use crate::complaints::Complaints;
use crate::flag::Flag;
use crate::hello::{self, HelloError, Identity};
use crate::link::{Link, Listener};
use crate::{Address, Service};

/// Settings of a server. Everything that a peer can make it hold is bounded by one of them.
#[derive(Clone)]
pub struct ServerConfig {
    /// What it says of itself.
    pub identity: Identity,
    /// Where payload is received. `budget_bytes` of it must be nobody else's: that is what makes
    /// the windows honest.
    pub pool: BufPool,
    /// Payload under way over all connections, in bytes; at least 16 MiB.
    pub budget_bytes: u64,
    /// Which part of that is this server's.
    pub budget_part: Part,
    /// Largest window of one connection, in bytes.
    pub window_bytes_max: u32,
    /// Requests of one connection that run at a time; further ones wait in the socket.
    pub requests_max: u64,
    /// Connections that have not introduced themselves yet; further ones are closed at once.
    pub handshakes_max: u64,
    /// Time for the handshake.
    pub handshake_limit: Duration,
    /// A peer that takes none of what is sent for so long is gone; also one that announces a
    /// payload and does not send it.
    pub stall_limit: Duration,
    /// Shared by the servers of a process.
    pub complaints: Complaints,
}

impl ServerConfig {
    /// Usual settings.
    pub fn new(identity: Identity, pool: BufPool) -> Self {
        let budget_bytes = (pool.stats().total_bytes / 2).max(Part::bytes_min(1));
        Self {
            identity,
            pool,
            budget_bytes,
            budget_part: Part::Whole,
            window_bytes_max: 16 << 20,
            requests_max: 1024,
            handshakes_max: 64,
            handshake_limit: Duration::from_secs(5),
            stall_limit: Duration::from_secs(30),
            complaints: Complaints::default(),
        }
    }
}

/// What a server has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServerStats {
    /// Connections past their handshake.
    pub connections: u64,
    /// Connections that got past their handshake so far.
    pub accepted: u64,
    /// Requests that run.
    pub running: u64,
    /// Requests that were handed to the service so far.
    pub requests: u64,
    /// Requests answered without a look, because their caller had stopped waiting.
    pub too_late: u64,
    /// Most bytes of payload that one connection had under way.
    pub under_way_bytes_max: u64,
    /// Connections closed because the peer broke the protocol; over all servers that share their
    /// [`Complaints`].
    pub bad_peers: u64,
    /// Log lines about these.
    pub bad_peer_lines: u64,
}

pub(crate) struct ServerInner {
    pub(crate) rt: Rt,
    pub(crate) service: Rc<dyn Service>,
    pub(crate) config: ServerConfig,
    pub(crate) budget: Budget,
    pub(crate) complaints: Complaints,
    pub(crate) stats: RefCell<ServerStats>,
    pub(crate) changed: Notify,
    /// No new connections, no new requests.
    pub(crate) stopping: Flag,
    /// Nothing goes on.
    pub(crate) stopped: Flag,
    handshakes: Semaphore,
}

/// A running server on one listener. Dropping the handle lets it run.
pub struct Server {
    inner: Rc<ServerInner>,
    address: Address,
}

impl Server {
    /// Serves `listener` with `service`, in tasks of `rt`'s domain.
    pub fn start(
        rt: &Rt,
        mut listener: Box<dyn Listener>,
        service: Rc<dyn Service>,
        config: ServerConfig,
    ) -> Self {
        let inner = Rc::new(ServerInner {
            rt: rt.clone(),
            service,
            budget: Budget::new(config.budget_bytes, config.budget_part, config.window_bytes_max),
            complaints: config.complaints.clone(),
            stats: RefCell::default(),
            changed: Notify::new(),
            stopping: Flag::default(),
            stopped: Flag::default(),
            handshakes: Semaphore::new(config.handshakes_max),
            config,
        });
        let address = listener.address();
        let server = inner.clone();
        rt.spawn(async move {
            let stopping = server.stopping.clone();
            while let Some(accepted) = stopping.or(listener.accept()).await {
                match accepted {
                    Ok(link) => server.clone().accepted(link),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        // Out of descriptors, mostly: trying at once would only burn the core.
                        server.rt.sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Self { inner, address }
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Figures.
    pub fn stats(&self) -> ServerStats {
        let (bad_peers, bad_peer_lines) = self.inner.complaints.counts();
        ServerStats { bad_peers, bad_peer_lines, ..*self.inner.stats.borrow() }
    }

    /// Accepts nothing more, lets running requests end and their answers leave for at most
    /// `limit`, then drops what is left and closes all connections. True if all had ended. Must
    /// not be called from a request's own task.
    pub async fn stop(&self, limit: Duration) -> bool {
        self.inner.stopping.raise();
        let quiet = async {
            // A connection counts until its last answer has left.
            while self.inner.stats.borrow().connections > 0 || self.inner.stats.borrow().running > 0
            {
                self.inner.changed.notified().await;
            }
        };
        let ended = self.inner.rt.timeout(limit, quiet).await.is_ok();
        self.inner.stopped.raise();
        ended
    }
}

impl ServerInner {
    fn accepted(self: Rc<Self>, mut link: Link) {
        let Some(permit) = self.handshakes.try_acquire(1) else {
            let why = "too many connections have not introduced themselves";
            self.complaints.closed(&self.rt, &link.remote, &why);
            link.send.close();
            return;
        };
        let rt = self.rt.clone();
        rt.spawn(async move {
            let limit = self.config.handshake_limit;
            let window = |lane| self.budget.window(lane);
            let hello = hello::respond(&mut link, &self.config.identity, window);
            let agreed = self.stopping.or(self.rt.timeout(limit, hello)).await;
            drop(permit);
            let complaint = match agreed {
                Some(Ok(Ok(agreed))) => return crate::serving::serve(self, link, agreed).await,
                Some(Ok(Err(HelloError::Link(error)))) if !error.is_peers_fault() => None,
                Some(Ok(Err(error))) => Some(error.to_string()),
                Some(Err(_)) => Some("no handshake in time".to_owned()),
                None => None,
            };
            link.send.close();
            if let Some(why) = complaint {
                self.complaints.closed(&self.rt, &link.remote, &why);
            }
        });
    }
}
