//! A network in memory, on virtual time, with everything that goes wrong in a real one.
//!
//! It lives outside of the processes that it connects: it survives when one is killed, and decides
//! what its peers notice of that.

mod config;
mod pipe;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bb_runtime::Rt;
use bb_runtime::sync::Notify;

pub use config::{SimNetConfig, SimNetCounters};

use crate::Address;
use crate::codec::Decoder;
use crate::link::{Link, LinkError, Listener, LocalFuture, Network};
use pipe::{Pipe, SimRecv, SimSend};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct HostId(u64);

/// One life of a process at an address.
struct Host {
    address: Address,
    alive: bool,
}

/// Where connections to an address arrive.
struct Port {
    host: HostId,
    arrived: RefCell<VecDeque<Link>>,
    changed: Notify,
}

pub(crate) struct Net {
    rt: Rt,
    config: RefCell<SimNetConfig>,
    counters: Cell<SimNetCounters>,
    hosts: RefCell<BTreeMap<HostId, Host>>,
    ports: RefCell<BTreeMap<Address, Rc<Port>>>,
    /// Both directions of each connection.
    pipes: RefCell<Vec<(Weak<Pipe>, Weak<Pipe>)>>,
    /// Directions in which nothing passes.
    blocked: RefCell<BTreeSet<(Address, Address)>>,
    /// Hosts whose frames, in both directions, take longer by up to so much.
    slow: RefCell<BTreeMap<Address, Duration>>,
}

/// The network of a simulation. Cheap to clone.
#[derive(Clone)]
pub struct SimNet {
    net: Rc<Net>,
}

impl SimNet {
    /// A network whose chance and time come from `rt`, which should be of the root domain.
    pub fn new(rt: &Rt, config: SimNetConfig) -> Self {
        Self {
            net: Rc::new(Net {
                rt: rt.clone(),
                config: RefCell::new(config),
                counters: Cell::default(),
                hosts: RefCell::default(),
                ports: RefCell::default(),
                pipes: RefCell::default(),
                blocked: RefCell::default(),
                slow: RefCell::default(),
            }),
        }
    }

    /// The network as a process sees it that runs in `rt`'s domain and is known as `address`
    /// (also a client needs one, for partitions). When the domain is killed, the process's
    /// connections break; for its next life, ask again with the new domain.
    pub fn host(&self, rt: &Rt, address: impl Into<Address>) -> Rc<dyn Network> {
        let id = {
            let mut hosts = self.net.hosts.borrow_mut();
            let id = HostId(hosts.len() as u64);
            hosts.insert(id, Host { address: address.into(), alive: true });
            id
        };
        let life = Life { net: Rc::downgrade(&self.net), host: id };
        rt.spawn(async move {
            let _life = life;
            std::future::pending::<()>().await;
        });
        Rc::new(SimHost { net: self.net.clone(), host: id })
    }

    /// Changes what goes wrong from now on.
    pub fn set_config(&self, config: SimNetConfig) {
        *self.net.config.borrow_mut() = config;
    }

    /// What goes wrong now.
    pub fn config(&self) -> SimNetConfig {
        self.net.config.borrow().clone()
    }

    /// How often what happened.
    pub fn counters(&self) -> SimNetCounters {
        self.net.counters.get()
    }

    /// Lets nothing pass from `from` to `to`.
    pub fn block(&self, from: &Address, to: &Address) {
        self.net.blocked.borrow_mut().insert((from.clone(), to.clone()));
    }

    /// Lets nothing pass between `a` and `b`.
    pub fn partition(&self, a: &Address, b: &Address) {
        self.block(a, b);
        self.block(b, a);
    }

    /// Undoes [`SimNet::block`] and [`SimNet::partition`] between `a` and `b`.
    pub fn heal(&self, a: &Address, b: &Address) {
        let mut blocked = self.net.blocked.borrow_mut();
        blocked.remove(&(a.clone(), b.clone()));
        blocked.remove(&(b.clone(), a.clone()));
    }

    /// Undoes all blocks.
    pub fn heal_all(&self) {
        self.net.blocked.borrow_mut().clear();
    }

    /// Each frame from and to `host` takes longer by up to so much; zero ends that.
    pub fn slow_down(&self, host: &Address, longest: Duration) {
        let mut slow = self.net.slow.borrow_mut();
        if longest.is_zero() {
            slow.remove(host);
        } else {
            slow.insert(host.clone(), longest);
        }
    }

    /// Breaks every connection between `a` and `b`.
    pub fn reset_between(&self, a: &Address, b: &Address) {
        for (one, other) in self.net.live_pipes() {
            let from = self.net.address(one.from);
            let to = self.net.address(one.to);
            if (&from == a && &to == b) || (&from == b && &to == a) {
                self.net.reset(&one, &other);
            }
        }
    }
}

impl Net {
    fn count(&self, change: impl FnOnce(&mut SimNetCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    fn chance(&self, ppm: u32) -> bool {
        // No draw where there is nothing to decide, so that a calm network costs no chance.
        ppm > 0 && self.rt.random_below(1_000_000) < u64::from(ppm)
    }

    fn latency(&self) -> Duration {
        let config = self.config.borrow();
        let spread = config.latency_max.saturating_sub(config.latency_min);
        let spread = u64::try_from(spread.as_nanos()).unwrap_or(u64::MAX);
        config.latency_min + Duration::from_nanos(self.rt.random_below(spread.saturating_add(1)))
    }

    /// What a slow host at either end adds.
    fn slowness(&self, from: HostId, to: HostId) -> Duration {
        let slow = self.slow.borrow();
        if slow.is_empty() {
            return Duration::ZERO;
        }
        let of = |host| slow.get(&self.address(host)).copied().unwrap_or_default();
        let longest = u64::try_from(of(from).max(of(to)).as_nanos()).unwrap_or(u64::MAX);
        if longest == 0 {
            return Duration::ZERO;
        }
        self.count(|c| c.slowed += 1);
        Duration::from_nanos(self.rt.random_below(longest))
    }

    fn flip_bit(&self, bytes: &mut [u8]) {
        let bit = self.rt.random_below(bytes.len() as u64 * 8);
        let at = usize::try_from(bit / 8).expect("an index into the slice");
        bytes[at] ^= 1 << (bit % 8);
    }

    fn address(&self, host: HostId) -> Address {
        self.hosts.borrow()[&host].address.clone()
    }

    fn is_alive(&self, host: HostId) -> bool {
        self.hosts.borrow()[&host].alive
    }

    fn is_blocked(&self, from: HostId, to: HostId) -> bool {
        let blocked = self.blocked.borrow();
        !blocked.is_empty() && blocked.contains(&(self.address(from), self.address(to)))
    }

    /// True if a frame sent now gets to its receiver. One to a process that is gone gets no
    /// further; where the process has another life, or has closed the connection, the sender is
    /// told.
    fn reaches(&self, out: &Pipe, back: &Pipe) -> bool {
        if self.is_blocked(out.from, out.to) {
            return false;
        }
        let alive = self.is_alive(out.to);
        if alive && back.closed_at.get().is_none() {
            return true;
        }
        let address = self.address(out.to);
        let answers =
            alive || self.hosts.borrow().values().any(|h| h.alive && h.address == address);
        if answers && !self.is_blocked(out.to, out.from) {
            back.end_by(self.rt.now() + self.latency() + self.latency());
        }
        false
    }

    fn live_pipes(&self) -> Vec<(Rc<Pipe>, Rc<Pipe>)> {
        let mut pipes = self.pipes.borrow_mut();
        pipes.retain(|(one, other)| one.strong_count() > 0 && other.strong_count() > 0);
        pipes.iter().filter_map(|(one, other)| one.upgrade().zip(other.upgrade())).collect()
    }

    /// Both ends see the connection break.
    fn reset(&self, one: &Pipe, other: &Pipe) {
        self.count(|c| c.resets += 1);
        let now = self.rt.now();
        for pipe in [one, other] {
            pipe.end_by(now + self.latency());
        }
    }

    /// One end was closed in an orderly way.
    fn closed(&self, out: &Pipe, back: &Pipe) {
        let now = self.rt.now();
        if out.closed_at.get().is_some() || !self.is_alive(out.from) {
            return;
        }
        out.closed_at.set(Some(now));
        back.end_by(now);
        back.drop_frames();
        if self.is_blocked(out.from, out.to) {
            // Nobody hears of it, until they ask.
            out.end_by(now + self.config.borrow().keepalive);
        } else {
            // What was sent before arrives first.
            out.end_by((now + self.latency()).max(out.last_arrival()));
        }
    }

    /// A process is gone.
    fn died(&self, host: HostId) {
        let address = {
            let mut hosts = self.hosts.borrow_mut();
            let Some(entry) = hosts.get_mut(&host) else { return };
            entry.alive = false;
            entry.address.clone()
        };
        let ours = self.ports.borrow().get(&address).is_some_and(|port| port.host == host);
        let port = if ours { self.ports.borrow_mut().remove(&address) } else { None };
        // Dropped outside of the borrow: it may hold connections that nobody has accepted.
        drop(port);
        let now = self.rt.now();
        let silent = self.chance(self.config.borrow().half_open_ppm);
        self.count(|c| *(if silent { &mut c.died_silently } else { &mut c.died_loudly }) += 1);
        for (one, other) in self.live_pipes() {
            let (out, back) = match (one.from == host, other.from == host) {
                (true, _) => (one, other),
                (_, true) => (other, one),
                _ => continue,
            };
            back.drop_frames();
            // Tasks of the process may have been dropped before this was called, and have closed
            // their connections as if they had meant to.
            let orderly = out.closed_at.get().is_some_and(|at| at < now);
            if orderly {
                continue;
            }
            out.closed_at.set(Some(now));
            let keepalive = self.config.borrow().keepalive;
            out.end_at(now + if silent { keepalive } else { self.latency() });
        }
    }
}

/// Lives in a task of the process's domain, and tells when that is killed.
struct Life {
    net: Weak<Net>,
    host: HostId,
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(net) = self.net.upgrade() {
            net.died(self.host);
        }
    }
}

struct SimHost {
    net: Rc<Net>,
    host: HostId,
}

impl Network for SimHost {
    fn connect(&self, to: &Address) -> LocalFuture<'static, Result<Link, LinkError>> {
        let (net, host, to) = (self.net.clone(), self.host, to.clone());
        Box::pin(async move { net.connect(host, &to).await })
    }

    fn listen(&self, at: &Address) -> LocalFuture<'static, Result<Box<dyn Listener>, LinkError>> {
        let (net, host, at) = (self.net.clone(), self.host, at.clone());
        Box::pin(async move {
            let port = Rc::new(Port { host, arrived: RefCell::default(), changed: Notify::new() });
            let mut ports = net.ports.borrow_mut();
            if ports.contains_key(&at) {
                return Err(LinkError::Io(std::io::ErrorKind::AddrInUse.into()));
            }
            ports.insert(at.clone(), port.clone());
            drop(ports);
            let listener: Box<dyn Listener> = Box::new(SimListener { net, port, at });
            Ok(listener)
        })
    }
}

impl Net {
    async fn connect(self: &Rc<Self>, from: HostId, to: &Address) -> Result<Link, LinkError> {
        self.rt.sleep(self.latency()).await;
        let port = self.ports.borrow().get(to).cloned();
        let refused = || {
            self.count(|c| c.connects_failed += 1);
            LinkError::Io(std::io::ErrorKind::ConnectionRefused.into())
        };
        let Some(port) = port else {
            self.rt.sleep(self.latency()).await;
            return Err(refused());
        };
        if self.is_blocked(from, port.host) || self.is_blocked(port.host, from) {
            self.count(|c| c.connects_failed += 1);
            // As long as the kernel tries; whoever called has less patience.
            let patience = self.config.borrow().keepalive;
            self.rt.sleep(patience).await;
            return Err(LinkError::Io(std::io::ErrorKind::TimedOut.into()));
        }
        let (out, back) = (Pipe::new(from, port.host), Pipe::new(port.host, from));
        self.pipes.borrow_mut().push((Rc::downgrade(&out), Rc::downgrade(&back)));
        let near = self.link(&out, &back);
        let far = self.link(&back, &out);
        self.rt.sleep(self.latency()).await;
        let still = self.ports.borrow().get(to).is_some_and(|now| Rc::ptr_eq(now, &port));
        if !still {
            return Err(refused());
        }
        port.arrived.borrow_mut().push_back(far);
        port.changed.notify_all();
        self.count(|c| c.connections += 1);
        Ok(near)
    }

    fn link(self: &Rc<Self>, out: &Rc<Pipe>, back: &Rc<Pipe>) -> Link {
        Link {
            recv: Box::new(SimRecv {
                net: self.clone(),
                pipe: back.clone(),
                decoder: Decoder::default(),
                payload: Rc::default(),
            }),
            send: Rc::new(SimSend { net: self.clone(), out: out.clone(), back: back.clone() }),
            remote: self.address(out.to).0,
        }
    }
}

struct SimListener {
    net: Rc<Net>,
    port: Rc<Port>,
    at: Address,
}

impl Listener for SimListener {
    fn accept(&mut self) -> LocalFuture<'_, Result<Link, LinkError>> {
        Box::pin(async move {
            loop {
                let changed = self.port.changed.notified();
                let link = self.port.arrived.borrow_mut().pop_front();
                match link {
                    Some(link) => return Ok(link),
                    None => changed.await,
                }
            }
        })
    }

    fn address(&self) -> Address {
        self.at.clone()
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let mut ports = self.net.ports.borrow_mut();
        let ours = ports.get(&self.at).is_some_and(|port| Rc::ptr_eq(port, &self.port));
        let port = if ours { ports.remove(&self.at) } else { None };
        drop(ports);
        drop(port);
        let waiting = std::mem::take(&mut *self.port.arrived.borrow_mut());
        drop(waiting);
    }
}
