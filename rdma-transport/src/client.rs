//! The calling side: connections to every peer, made when they are needed and made again when they
//! are lost.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::{Code, Failure, Header};
use bb_runtime::sync::Notify;
use bb_runtime::{BufPool, Instant, Rt};

use crate::complaints::Complaints;
use crate::conn::Conn;
use crate::flag::Flag;
use crate::hello::{self, HelloError, Identity};
use crate::link::{Frame, Lane, LinkError, Network};
use crate::local::Local;
use crate::{Address, CallError, CallFuture, Caller, Outgoing, Service, Vitals};

/// For whom requests are made; servers account by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Account {
    /// Node, as the client names it.
    pub node: u32,
    /// User id.
    pub uid: u32,
    /// Job id.
    pub job: u64,
}

/// Settings of the calling side.
#[derive(Clone)]
pub struct ClientConfig {
    /// What it says of itself.
    pub identity: Identity,
    /// For whom it calls.
    pub account: Account,
    /// For payload that must be gathered on the way to a service of this process.
    pub pool: BufPool,
    /// Time to connect and introduce itself.
    pub connect_limit: Duration,
    /// Pause after a first failed attempt; doubles with each further one.
    pub backoff_min: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Abandoned requests of one connection beyond which it is closed, to have their buffers back.
    pub overdue_max: usize,
    /// Time after its deadline in which a request's answer may still come; then the connection is
    /// closed, for the same reason.
    pub overdue_limit: Duration,
    /// A peer that takes none of what is sent for so long is gone.
    pub stall_limit: Duration,
}

impl ClientConfig {
    /// Usual settings.
    pub const fn new(identity: Identity, pool: BufPool) -> Self {
        Self {
            identity,
            account: Account { node: 0, uid: 0, job: 0 },
            pool,
            connect_limit: Duration::from_secs(3),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_secs(1),
            overdue_max: 256,
            overdue_limit: Duration::from_secs(10),
            stall_limit: Duration::from_secs(30),
        }
    }
}

type Connected = Result<Rc<Conn>, CallError>;

/// One attempt to connect; all calls that need it wait for the same one.
#[derive(Default)]
struct Attempt {
    result: RefCell<Option<Connected>>,
    done: Notify,
}

#[derive(Default)]
struct Slot {
    conn: Option<Rc<Conn>>,
    attempt: Option<Rc<Attempt>>,
    failures: u32,
    not_before: Instant,
}

/// Figures of the calling side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClientStats {
    /// Attempts to connect.
    pub attempts: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Batches of frames that the present connections sent.
    pub batches: u64,
    /// Calls that went to this process's own service without a network.
    pub local_calls: u64,
}

struct Inner {
    rt: Rt,
    network: Rc<dyn Network>,
    config: Rc<ClientConfig>,
    cluster: RefCell<Vec<u8>>,
    slots: RefCell<BTreeMap<(Address, Lane), Slot>>,
    local: RefCell<Option<(Address, Local)>>,
    closed: Flag,
    complaints: Complaints,
    stats: Cell<ClientStats>,
}

/// Calls servers. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Rc<Inner>,
}

impl Client {
    /// A caller over `network`; its tasks run in `rt`'s domain.
    pub fn new(rt: &Rt, network: Rc<dyn Network>, config: ClientConfig) -> Self {
        Self {
            inner: Rc::new(Inner {
                rt: rt.clone(),
                network,
                cluster: RefCell::new(config.identity.cluster.clone()),
                config: Rc::new(config),
                slots: RefCell::default(),
                local: RefCell::default(),
                closed: Flag::default(),
                complaints: Complaints::default(),
                stats: Cell::default(),
            }),
        }
    }

    /// The cluster's UUID has become known; connections made from now on insist on it.
    pub fn set_cluster(&self, cluster: Vec<u8>) {
        *self.inner.cluster.borrow_mut() = cluster;
    }

    /// Calls to `address` go straight to `service`, which lives in this process. Never set in the
    /// simulator, where a node's messages to itself are to be lost and late like all others.
    pub fn set_local(&self, address: Address, service: Rc<dyn Service>) {
        let local = Local::new(&self.inner.rt, service, &self.inner.config);
        *self.inner.local.borrow_mut() = Some((address, local));
    }

    /// Ends all connections; calls fail from now on. Happens by itself when the last handle and
    /// the last call are gone, unless the local service holds a handle: it is let go here.
    pub fn close(&self) {
        self.inner.close();
    }

    /// Figures.
    pub fn stats(&self) -> ClientStats {
        let slots = self.inner.slots.borrow();
        let batches =
            slots.values().filter_map(|slot| slot.conn.as_ref()).map(|c| c.batches()).sum();
        ClientStats { batches, ..self.inner.stats.get() }
    }

    /// Payload bytes under way to `to` on `lane`, and the window granted there; `None` without a
    /// connection.
    pub fn credit(&self, to: &Address, lane: Lane) -> Option<(u64, u64)> {
        let slots = self.inner.slots.borrow();
        slots.get(&(to.clone(), lane))?.conn.as_ref().map(|conn| conn.credit())
    }
}

impl Caller for Client {
    fn call(&self, to: &Address, request: Outgoing) -> CallFuture {
        let (inner, to) = (self.inner.clone(), to.clone());
        Box::pin(async move {
            let local = match &*inner.local.borrow() {
                Some((address, local)) if *address == to => Some(local.clone()),
                _ => None,
            };
            if let Some(local) = local {
                inner.count(|stats| stats.local_calls += 1);
                return local.call(request).await;
            }
            inner.remote(to, request).await
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn close(&self) {
        self.closed.raise();
        let local = self.local.borrow_mut().take();
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        // Dropped outside of the borrows: the local service may hold a handle.
        drop(local);
        for slot in slots.into_values() {
            if let Some(conn) = slot.conn {
                conn.close(&LinkError::Closed);
            }
        }
    }

    async fn remote(
        self: Rc<Self>,
        to: Address,
        request: Outgoing,
    ) -> Result<crate::Answer, CallError> {
        let deadline = self.rt.now() + request.deadline;
        let lane = Lane::of(request.class);
        let account = self.config.account;
        let header = Header {
            fence: request.fence,
            target: request.target,
            node: account.node,
            uid: account.uid,
            job: account.job,
            ..Header::request(request.kind, request.class)
        };
        let held = request.payload.clone();
        let Some(frame) = Frame::new(header, request.body, request.payload) else {
            return Err(too_long());
        };
        let connected = self.rt.timeout(request.deadline, self.clone().connected(to, lane)).await;
        let conn = connected.map_err(|_| CallError::TimedOut)??;
        let call = conn.send(frame, held, request.sink, deadline);
        call.outcome(deadline.since(self.rt.now())).await
    }

    /// The connection to a peer, made where there is none.
    async fn connected(self: Rc<Self>, to: Address, lane: Lane) -> Connected {
        if self.closed.is_raised() {
            return Err(CallError::Disconnected { maybe_sent: false });
        }
        let attempt = {
            let mut slots = self.slots.borrow_mut();
            let slot = slots.entry((to.clone(), lane)).or_default();
            match (&slot.conn, &slot.attempt) {
                (Some(conn), _) if !conn.is_closed() => return Ok(conn.clone()),
                (_, Some(attempt)) => attempt.clone(),
                _ => {
                    // One that lived only for a moment counts as a failed attempt: a server that
                    // accepts and closes at once must not be asked in a tight loop.
                    if let Some(lost) = slot.conn.take() {
                        if lost.age() < self.config.backoff_max {
                            self.failed(slot);
                        } else {
                            slot.failures = 0;
                        }
                    }
                    let attempt = Rc::new(Attempt::default());
                    slot.attempt = Some(attempt.clone());
                    let (inner, not_before) = (self.clone(), slot.not_before);
                    let ours = attempt.clone();
                    self.rt.spawn(async move {
                        inner.attempt(to, lane, not_before, &ours).await;
                    });
                    attempt
                }
            }
        };
        loop {
            if let Some(result) = &*attempt.result.borrow() {
                return result.clone();
            }
            attempt.done.notified().await;
        }
    }

    /// Connects once, after the pause that earlier failures call for.
    async fn attempt(
        self: Rc<Self>,
        to: Address,
        lane: Lane,
        not_before: Instant,
        attempt: &Attempt,
    ) {
        let dial = async {
            self.rt.sleep_until(not_before).await;
            self.count(|stats| stats.attempts += 1);
            self.rt.timeout(self.config.connect_limit, self.dial(&to, lane)).await
        };
        let result = match self.closed.or(dial).await {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => Err(CallError::Disconnected { maybe_sent: false }),
        };
        if let Some(slot) = self.slots.borrow_mut().get_mut(&(to, lane)) {
            slot.attempt = None;
            match &result {
                Ok(conn) => slot.conn = Some(conn.clone()),
                Err(_) => self.failed(slot),
            }
        } else if let Ok(conn) = &result {
            conn.close(&LinkError::Closed);
        }
        *attempt.result.borrow_mut() = Some(result);
        attempt.done.notify_all();
    }

    fn failed(&self, slot: &mut Slot) {
        self.count(|stats| stats.failures += 1);
        let doublings = slot.failures.min(16);
        slot.failures += 1;
        let pause = self.config.backoff_min.saturating_mul(1 << doublings);
        let pause = pause.min(self.config.backoff_max);
        // Half of it is chance, so that the clients of a restarted server do not come as one.
        let nanos = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
        let pause = nanos / 2 + self.rt.random_below(nanos / 2 + 1);
        slot.not_before = self.rt.now() + Duration::from_nanos(pause);
    }

    async fn dial(&self, to: &Address, lane: Lane) -> Connected {
        let mut link = match self.network.connect(to).await {
            Ok(link) => link,
            Err(error) => {
                tracing::debug!(to = %to.0, %error, "cannot connect");
                return Err(CallError::Disconnected { maybe_sent: false });
            }
        };
        let identity =
            Identity { cluster: self.cluster.borrow().clone(), ..self.config.identity.clone() };
        match hello::initiate(&mut link, lane, &identity).await {
            Ok(agreed) => {
                tracing::debug!(to = %to.0, host = %agreed.host, ?lane, "connected");
                Ok(Conn::start(&self.rt, link, agreed.credit_bytes, self.config.clone()))
            }
            Err(HelloError::Link(error)) => {
                link.send.close();
                tracing::debug!(to = %to.0, %error, "handshake failed");
                Err(CallError::Disconnected { maybe_sent: false })
            }
            Err(HelloError::NotNow(why)) => {
                link.send.close();
                self.complaints.closed(&self.rt, &to.0, &why);
                Err(CallError::Disconnected { maybe_sent: false })
            }
            Err(HelloError::Rejected(why)) => {
                link.send.close();
                self.complaints.closed(&self.rt, &to.0, &why);
                Err(CallError::Rejected(why))
            }
        }
    }

    fn count(&self, change: impl FnOnce(&mut ClientStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }
}

/// A request that no frame can carry: our own bug, told like a refusal.
pub(crate) fn too_long() -> CallError {
    let failure = Failure::new(Code::Invalid, "the request exceeds a frame");
    CallError::Refused(failure, Vitals::default())
}
