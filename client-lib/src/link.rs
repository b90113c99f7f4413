//! The way to the cluster: the map, the tick, and requests that are repeated until answered.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{ClusterMap, MapDelta};
use bb_pgio::{Primary, partition_lost, while_current};
use bb_proto::meta::{self, GetMap, GetMapReply};
use bb_proto::{Code, Incarnation, Kind, NodeId, PartitionId, ServiceClass, Tick};
use bb_runtime::{Buf, BufMut, BufPool, Rt, sync::Notify};
use bb_transport::{Address, Answer, CallError, Caller, Outgoing, Vitals};

use crate::cache::PgCache;
use crate::counters::Counters;
use crate::error::{Error, Result};
use crate::options::ClientOptions;

/// Longest wait for the map from one server.
const MAP_TIMEOUT: Duration = Duration::from_secs(2);
const BACK_OFF_MIN: Duration = Duration::from_millis(5);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Link(Rc<Inner>);

struct Inner {
    rt: Rt,
    pool: BufPool,
    /// What is given up where the pool is empty.
    cache: Rc<PgCache>,
    caller: Rc<dyn Caller>,
    seeds: Vec<Address>,
    map: RefCell<Rc<ClusterMap>>,
    tick: Cell<Tick>,
    refreshing: Cell<bool>,
    refreshed: Notify,
    /// The server that answered last.
    answers: RefCell<Option<Address>>,
    request_timeout: Duration,
    command_timeout: Duration,
    slice: Option<Rc<str>>,
    counters: Cell<Counters>,
}

/// What to ask of a partition.
pub(crate) struct Ask {
    pub kind: Kind,
    pub body: Vec<u8>,
    pub payload: Vec<Buf>,
    /// Room for the answer's payload.
    pub sink_bytes: usize,
    /// How long the server itself may take to answer, beyond what a request usually takes.
    pub server_wait: Duration,
}

impl Ask {
    pub fn new(kind: Kind, body: Vec<u8>) -> Self {
        let server_wait = Duration::ZERO;
        Self { kind, body, payload: Vec::new(), sink_bytes: 0, server_wait }
    }
}

impl Link {
    /// Asks the servers at `seeds` for the map, until one answers.
    pub async fn connect(
        rt: Rt,
        pool: BufPool,
        caller: Rc<dyn Caller>,
        seeds: Vec<Address>,
        options: &ClientOptions,
    ) -> Result<Self> {
        let link = Self(Rc::new(Inner {
            rt,
            cache: PgCache::new(pool.clone(), options.read_cache_bytes),
            pool,
            caller,
            seeds,
            map: RefCell::new(Rc::new(ClusterMap::default())),
            tick: Cell::new(Tick(0)),
            refreshing: Cell::new(false),
            refreshed: Notify::new(),
            answers: RefCell::default(),
            request_timeout: options.request_timeout,
            command_timeout: options.command_timeout,
            slice: options.slice.as_deref().map(Rc::from),
            counters: Cell::default(),
        }));
        let limit = options.connect_timeout.unwrap_or(options.command_timeout);
        let give_up = link.rt().now() + limit;
        for attempt in 0.. {
            match link.fetch_map().await {
                Ok(()) => break,
                Err(error @ Error::Rejected(_)) => return Err(error),
                Err(Error::TimedOut { .. }) if link.0.rt.now() >= give_up => {
                    return Err(Error::TimedOut { seconds: limit.as_secs() });
                }
                Err(error) if link.0.rt.now() >= give_up => return Err(error),
                Err(_) => link.back_off(attempt).await,
            }
        }
        Ok(link)
    }

    pub fn rt(&self) -> &Rt {
        &self.0.rt
    }

    /// Counts something.
    pub fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.0.counters.get();
        change(&mut counters);
        self.0.counters.set(counters);
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.0.counters.get()
    }

    /// What was read and is kept.
    pub fn cache(&self) -> &Rc<PgCache> {
        &self.0.cache
    }

    /// A buffer, if one can be had at once, or by giving up what is kept for later.
    pub fn try_buffer(&self, bytes: usize) -> Option<BufMut> {
        loop {
            match self.0.pool.try_alloc(bytes) {
                None if self.0.cache.evict() => {}
                found => return found,
            }
        }
    }

    pub fn pool(&self) -> &BufPool {
        &self.0.pool
    }

    pub fn tick(&self) -> Tick {
        self.0.tick.get()
    }

    /// Takes over a newer tick.
    pub fn saw_tick(&self, tick: Tick) {
        self.0.tick.set(self.0.tick.get().max(tick));
    }

    pub fn map(&self) -> Rc<ClusterMap> {
        self.0.map.borrow().clone()
    }

    /// When a call that begins now gives up.
    pub fn give_up(&self) -> bb_runtime::Instant {
        self.0.rt.now() + self.0.command_timeout
    }

    pub fn timed_out(&self) -> Error {
        Error::TimedOut { seconds: self.0.command_timeout.as_secs() }
    }

    /// Waits before attempt number `attempt`, half of it by lot so that clients that lost the same
    /// server do not come back in step.
    pub async fn back_off(&self, attempt: u32) {
        let wait = (BACK_OFF_MIN * 2_u32.saturating_pow(attempt.min(12))).min(BACK_OFF_MAX);
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        let lot = self.0.rt.random_below(nanos / 2 + 1);
        self.0.rt.sleep(Duration::from_nanos(nanos / 2 + lot)).await;
    }

    /// Asks a partition until it answers or refuses for good, or the command timeout passes.
    ///
    /// Every request of a client may be repeated: commits by their id, operations on the namespace
    /// by session and number, the others because they change nothing or say where they lead.
    pub async fn ask(&self, partition: PartitionId, ask: &Ask) -> Result<Answer> {
        let give_up = self.give_up();
        for attempt in 0.. {
            match self.ask_once(partition, ask).await {
                Ok(answer) => return Ok(answer),
                Err(CallError::Refused(failure, _)) => match failure.kind() {
                    Code::Busy => {}
                    Code::Fenced => self.refresh_map().await,
                    _ => return Err(failure.into()),
                },
                Err(CallError::Rejected(text)) => return Err(Error::Rejected(text)),
                Err(CallError::TimedOut | CallError::Disconnected { .. }) => {
                    self.count(|counters| counters.repeated += 1);
                    self.refresh_map().await;
                }
            }
            if self.0.rt.now() >= give_up {
                break;
            }
            self.back_off(attempt).await;
        }
        Err(self.timed_out())
    }

    /// Asks once.
    pub async fn ask_once(
        &self,
        partition: PartitionId,
        ask: &Ask,
    ) -> std::result::Result<Answer, CallError> {
        let primary = Primary::of(&self.map(), partition);
        let (address, fence) = match &primary {
            Primary::At { address, config, .. } => (address, *config),
            // Nobody to ask: the caller waits, and looks at the map.
            Primary::Down => return Err(CallError::Disconnected { maybe_sent: false }),
            Primary::Lost => {
                return Err(CallError::Refused(partition_lost(partition), Vitals::default()));
            }
        };
        let deadline = self.0.request_timeout + ask.server_wait;
        let mut request = Outgoing::new(ask.kind, ServiceClass::Client, deadline, ask.body.clone())
            .to(partition.0, fence)
            .with_payload(ask.payload.clone());
        if ask.sink_bytes > 0 {
            request.sink = Some(match self.try_buffer(ask.sink_bytes) {
                Some(sink) => sink,
                None => self.0.pool.alloc(ask.sink_bytes).await,
            });
        }
        let call = self.0.caller.call(address, request);
        let is_current = || primary.is_still(&self.map(), partition);
        let result = while_current(&self.0.rt, self, call, is_current).await;
        match &result {
            Ok(answer) => self.saw_tick(answer.vitals.tick),
            Err(CallError::Refused(_, vitals)) => self.saw_tick(vitals.tick),
            Err(_) => {}
        }
        result
    }

    /// Asks any server: for what is addressed to none in particular. Each attempt sends another
    /// body.
    pub async fn ask_any(&self, kind: Kind, body: impl Fn() -> Vec<u8>) -> Result<Answer> {
        let give_up = self.give_up();
        for attempt in 0.. {
            let mut last = None;
            for address in self.servers() {
                let request =
                    Outgoing::new(kind, ServiceClass::Client, self.0.request_timeout, body());
                let call = self.0.caller.call(&address, request);
                let serves = || self.may_serve(&address);
                match while_current(&self.0.rt, self, call, serves).await {
                    Ok(answer) => {
                        self.saw_tick(answer.vitals.tick);
                        return Ok(answer);
                    }
                    Err(CallError::Refused(failure, _)) => match failure.kind() {
                        Code::Busy | Code::Fenced => {}
                        _ => last = Some(Error::from(failure)),
                    },
                    Err(CallError::Rejected(text)) => last = Some(Error::Rejected(text)),
                    Err(CallError::TimedOut | CallError::Disconnected { .. }) => {
                        self.count(|counters| counters.repeated += 1);
                    }
                }
            }
            if let Some(error) = last {
                return Err(error);
            }
            if self.0.rt.now() >= give_up {
                break;
            }
            self.back_off(attempt).await;
        }
        Err(self.timed_out())
    }

    /// Asks the node at `address` itself, once.
    pub async fn ask_node(&self, address: &str, kind: Kind) -> Result<Answer> {
        let timeout = self.0.request_timeout;
        let request = Outgoing::new(kind, ServiceClass::Control, timeout, Vec::new());
        match self.0.caller.call(&Address::from(address), request).await {
            Ok(answer) => Ok(answer),
            Err(CallError::Refused(failure, _)) => Err(failure.into()),
            Err(CallError::Rejected(text)) => Err(Error::Rejected(text)),
            Err(CallError::TimedOut) => Err(Error::TimedOut { seconds: timeout.as_secs() }),
            Err(error @ CallError::Disconnected { .. }) => {
                Err(Error::errno_of(libc::ENOTCONN, error.to_string()))
            }
        }
    }

    fn servers(&self) -> Vec<Address> {
        let map = self.map();
        let active = map.nodes.iter().filter(|node| node.is_active());
        let mut all: Vec<Address> = active.map(|n| Address::from(n.address.as_str())).collect();
        // First whoever answered last; then by lot, so that a dead server costs some clients a
        // timeout, and not all of them each time.
        let first = self.0.answers.borrow().clone();
        for at in (1..all.len()).rev() {
            let other = self.0.rt.random_below(at as u64 + 1);
            all.swap(at, usize::try_from(other).unwrap_or(0));
        }
        if let Some(at) = first.and_then(|first| all.iter().position(|other| *other == first)) {
            all.swap(0, at);
        }
        // Last those that the map has as down, or does not know: it may be out of date.
        let more: Vec<Address> =
            self.0.seeds.iter().filter(|seed| !all.contains(seed)).cloned().collect();
        all.extend(more);
        all
    }

    /// The process that serves a partition, as far as the map says.
    pub fn process_of(&self, partition: PartitionId) -> Option<(NodeId, Incarnation)> {
        let map = self.map();
        let primary = NodeId(map.partition(partition)?.primary);
        let node = map.node(primary).filter(|node| node.is_active())?;
        Some((primary, Incarnation(node.incarnation)))
    }

    /// True unless the map says that no process serves at `address`.
    fn may_serve(&self, address: &Address) -> bool {
        let map = self.map();
        let mut nodes = map.nodes.iter().filter(|node| *node.address == *address.0);
        nodes.all(bb_cluster::NodeEntry::is_active)
    }

    /// Fetches the map, once for all that ask meanwhile. In a task of its own: whoever asked may stop
    /// waiting, or wait for something else, and the others must not hang by that.
    pub async fn refresh_map(&self) {
        let refreshed = self.0.refreshed.notified();
        if !self.0.refreshing.replace(true) {
            let done = RefreshGuard(self.clone());
            self.0.rt.spawn(async move {
                // Whoever asked tries again anyway.
                let _ = done.0.fetch_map().await;
                drop(done);
            });
        }
        refreshed.await;
    }

    async fn fetch_map(&self) -> Result<()> {
        let mut rejected = None;
        for address in self.servers() {
            let body = meta::encode(&GetMap { epoch: self.map().epoch, deltas: true });
            let request = Outgoing::new(Kind::GetMap, ServiceClass::Control, MAP_TIMEOUT, body);
            let answer = match self.0.caller.call(&address, request).await {
                Ok(answer) => answer,
                Err(CallError::Rejected(text)) => {
                    rejected = Some(Error::Rejected(text));
                    continue;
                }
                Err(_) => {
                    self.0.answers.borrow_mut().take();
                    continue;
                }
            };
            self.saw_tick(answer.vitals.tick);
            let before = self.map().epoch;
            let taken = self.take_update(&meta::decode(&answer.body)?);
            // The next question goes to whoever knew something newer. One that did not may be cut
            // off from those who do: then it goes to any.
            let knows_more = self.map().epoch > before;
            *self.0.answers.borrow_mut() = knows_more.then_some(address);
            return taken;
        }
        Err(rejected.unwrap_or_else(|| self.timed_out()))
    }

    fn take_update(&self, reply: &GetMapReply) -> Result<()> {
        let rejected = |error: bb_cluster::MapError| Error::Rejected(error.to_string());
        let map = if !reply.delta.is_empty() {
            let delta = MapDelta::decode_delta(&reply.delta).map_err(rejected)?;
            match delta.apply(&self.map()) {
                Ok(map) => map,
                // Another map came in between: ask again.
                Err(_) => return Ok(()),
            }
        } else if !reply.map.is_empty() {
            ClusterMap::decode_map(&reply.map).map_err(rejected)?
        } else {
            return Ok(());
        };
        if map.epoch >= self.map().epoch {
            *self.0.map.borrow_mut() = Rc::new(map);
        }
        Ok(())
    }
}

/// Ends a refresh also where its task is dropped, so that nobody waits for it for ever.
struct RefreshGuard(Link);

impl Drop for RefreshGuard {
    fn drop(&mut self) {
        self.0.0.refreshing.set(false);
        self.0.0.refreshed.notify_all();
    }
}

impl bb_pgio::View for Link {
    fn map(&self) -> Rc<ClusterMap> {
        self.map()
    }

    fn seen(&self, vitals: Vitals) {
        self.saw_tick(vitals.tick);
    }

    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        let link = self.clone();
        Box::pin(async move { link.refresh_map().await })
    }

    fn slice(&self) -> Option<Rc<str>> {
        self.0.slice.clone()
    }

    fn make_room(&self) -> bool {
        self.0.cache.evict()
    }
}
