//! One address for the connections of several reactors.
//!
//! The first reactor accepts. It looks at the class of a connection's first frame without taking it:
//! control and metadata (leases, heartbeats, Raft, replication) stay with it, off the paths that
//! clients keep busy; every other connection goes to the reactor that has the fewest. (SO_REUSEPORT
//! would spread connections by a hash of their addresses: four of them may well land in one place,
//! and stay there for days.) Handshake and authentication are the business of the reactor that gets
//! the connection; the look decides nothing but the place.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bb_proto::{HEADER_BYTES, Header};
use bb_runtime::Rt;
use bb_runtime::mailbox::{self, Receiver, Sender, TrySendError};
use bb_runtime::sync::Notify;
use bb_runtime::uring::{RingFd, Uring};

use super::Tcp;
use crate::Address;
use crate::flag::Flag;
use crate::link::{Lane, Link, LinkError, Listener, LocalFuture};

/// Whoever has not said anything for so long is handed over as he is. His time for the handshake
/// begins there.
const FIRST_WORD_LIMIT: Duration = Duration::from_secs(1);
/// So many may be waited for at a time; further ones are handed over unheard.
const UNHEARD_MAX: usize = 64;
/// Out of descriptors, mostly: trying at once would only burn the core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection of a reactor, counted from the moment when it was given to it.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connected socket on its way.
struct Socket {
    fd: OwnedFd,
    counted: Counted,
}

/// A reactor that takes connections, for the one that accepts them.
pub struct Taker {
    to: Sender<Socket>,
    connections: Arc<AtomicUsize>,
}

/// Where they arrive.
pub struct Handed {
    at: Receiver<Socket>,
}

/// The two ends of a hand-over.
pub fn hand_over() -> (Taker, Handed) {
    let (to, at) = mailbox::unbounded();
    (Taker { to, connections: Arc::default() }, Handed { at })
}

impl Taker {
    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Gives a socket away, or back where its reactor takes none any more.
    fn give(&self, fd: OwnedFd) -> Result<(), OwnedFd> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(self.connections.clone());
        self.to.try_send(Socket { fd, counted }).map_err(|refused| match refused {
            TrySendError::Full(socket) | TrySendError::Closed(socket) => socket.fd,
        })
    }
}

impl Tcp {
    /// Listens for this reactor and for others. What a dropped listener had not handed over yet is
    /// closed.
    ///
    /// # Errors
    /// The system's.
    pub async fn listen_and_share(
        rt: &Rt,
        uring: &Uring,
        at: &Address,
        takers: Vec<Taker>,
    ) -> Result<Box<dyn Listener>, LinkError> {
        let (fd, address) = super::bind(uring, at).await?;
        let sharing = Rc::new(Sharing {
            rt: rt.clone(),
            uring: uring.clone(),
            takers,
            next: Cell::new(0),
            unheard: Cell::new(0),
            kept: RefCell::default(),
            changed: Notify::new(),
            closed: Flag::default(),
        });
        let accepting = sharing.clone();
        rt.spawn(async move { accepting.closed.or(accepting.accept(&fd)).await });
        Ok(Box::new(Keeping { sharing, address }))
    }

    /// The listener of a reactor to which connections are handed over, that were accepted at
    /// `address`.
    pub fn listen_to(uring: &Uring, handed: Handed, address: Address) -> Box<dyn Listener> {
        Box::new(Taking { uring: uring.clone(), handed, address })
    }
}

struct Sharing {
    rt: Rt,
    uring: Uring,
    takers: Vec<Taker>,
    /// Who comes first among those that have equally few.
    next: Cell<usize>,
    /// Connections that have not said anything yet.
    unheard: Cell<usize>,
    /// What stays here.
    kept: RefCell<VecDeque<io::Result<RingFd>>>,
    changed: Notify,
    closed: Flag,
}

impl Sharing {
    async fn accept(self: &Rc<Self>, listening: &RingFd) {
        loop {
            match self.uring.accept(listening).await {
                Ok(fd) if self.unheard.get() < UNHEARD_MAX => {
                    let (this, unheard) = (self.clone(), Unheard::new(self.clone()));
                    self.rt.spawn(async move {
                        let lane = this.closed.or(this.lane(&fd)).await;
                        drop(unheard);
                        match lane {
                            // The listener is gone.
                            None => {}
                            Some(Some(Lane::Control | Lane::Metadata)) => this.keep(Ok(fd)),
                            Some(Some(Lane::Bulk) | None) => this.give(fd),
                        }
                    });
                }
                Ok(fd) => self.give(fd),
                Err(error) => {
                    self.keep(Err(error));
                    self.rt.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// The lane of a connection, if its first words say one.
    async fn lane(&self, fd: &RingFd) -> Option<Lane> {
        let ready = self.uring.poll_fd(fd, libc::POLLIN);
        self.rt.timeout(FIRST_WORD_LIMIT, ready).await.ok()?.ok()?;
        let mut head = [0; HEADER_BYTES];
        // SAFETY: `head` is writable for its length.
        let read = unsafe {
            let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
            libc::recv(fd.as_raw_fd(), head.as_mut_ptr().cast(), head.len(), flags)
        };
        // A frame's head that comes in pieces is no client of ours.
        let whole = usize::try_from(read) == Ok(head.len());
        let header = whole.then(|| Header::decode(&head).ok()).flatten()?;
        Some(Lane::of(header.class))
    }

    fn keep(&self, accepted: io::Result<RingFd>) {
        self.kept.borrow_mut().push_back(accepted);
        self.changed.notify_all();
    }

    /// To the reactor with the fewest connections; here where none takes it.
    fn give(&self, fd: RingFd) {
        let mut socket = match fd.as_fd().try_clone_to_owned() {
            Ok(socket) => socket,
            Err(error) => return self.keep(Err(error)),
        };
        let first = self.next.get();
        self.next.set(first.wrapping_add(1));
        let count = self.takers.len();
        let mut order: Vec<&Taker> =
            (0..count).map(|at| &self.takers[first.wrapping_add(at) % count]).collect();
        order.sort_by_key(|taker| taker.connections());
        for taker in order {
            match taker.give(socket) {
                Ok(()) => return,
                Err(back) => socket = back,
            }
        }
        self.keep(Ok(fd));
    }
}

/// Counts a connection that has not said anything.
struct Unheard(Rc<Sharing>);

impl Unheard {
    fn new(sharing: Rc<Sharing>) -> Self {
        sharing.unheard.set(sharing.unheard.get() + 1);
        Self(sharing)
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        self.0.unheard.set(self.0.unheard.get() - 1);
    }
}

/// What the accepting reactor keeps for itself.
struct Keeping {
    sharing: Rc<Sharing>,
    address: SocketAddr,
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.sharing.closed.raise();
        self.sharing.kept.borrow_mut().clear();
    }
}

impl Listener for Keeping {
    fn accept(&mut self) -> LocalFuture<'_, Result<Link, LinkError>> {
        Box::pin(async move {
            loop {
                let Some(fd) = self.sharing.kept.borrow_mut().pop_front() else {
                    self.sharing.changed.notified().await;
                    continue;
                };
                match super::link(&self.sharing.uring, &fd?) {
                    Ok(link) => return Ok(link),
                    Err(error) => tracing::debug!(%error, "a connection ended as it began"),
                }
            }
        })
    }

    fn address(&self) -> Address {
        Address(self.address.to_string().into())
    }
}

/// What another reactor is given.
struct Taking {
    uring: Uring,
    handed: Handed,
    address: Address,
}

impl Listener for Taking {
    fn accept(&mut self) -> LocalFuture<'_, Result<Link, LinkError>> {
        Box::pin(async move {
            loop {
                let Some(Socket { fd, counted }) = self.handed.at.recv().await else {
                    // No more will come.
                    return std::future::pending().await;
                };
                let fd = self.uring.adopt(fd);
                match super::counted_link(&self.uring, &fd, Some(counted)) {
                    Ok(link) => return Ok(link),
                    Err(error) => tracing::debug!(%error, "a connection ended as it began"),
                }
            }
        })
    }

    fn address(&self) -> Address {
        self.address.clone()
    }
}
