//! Several nodes with replicas, in memory: logs that lose what was not durable, a network that
//! loses, delays, repeats, and a map that the test changes as a Raft leader would.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bb_cluster::{ClusterMap, NodeEntry, NodeState, PartitionEntry};
use bb_proto::{
    Code, ConfigNumber, Failure, Header, Incarnation, NodeId, PartitionId, PgId, ServiceClass,
    SessionId, Tick,
};
use bb_runtime::{BufPool, Rt};
use bb_transport::{
    Address, Answer, CallError, CallFuture, Caller, Incoming, Outgoing, Peer, Role, Vitals,
};

use crate::context::Shared;
use crate::partition::host::{HostConfig, HostEnv, PartitionHost};
use crate::partition::journal::{FrameTicket, Journal, JournalFuture, Ticket};
use crate::partition::pg_mutation::PgMutation;
use crate::partition::snapshot::encode_snapshot;
use crate::partition::{Council, Mutation, PartitionReplay, PartitionState};

pub const PARTITIONS: u32 = 4;

/// What a log holds.
#[derive(Clone)]
enum Kept {
    Record(Rc<[u8]>),
    Snapshot(Rc<[u8]>),
    Retired,
}

/// A log that survives its node.
#[derive(Default)]
pub struct Disk {
    entries: RefCell<Vec<(PartitionId, Kept)>>,
    durable: Cell<usize>,
    written: bb_runtime::sync::Notify,
}

struct MemoryLog {
    rt: Rt,
    disk: Rc<Disk>,
}

impl MemoryLog {
    fn put(&self, partition: PartitionId, kept: Kept) -> JournalFuture<()> {
        let disk = self.disk.clone();
        disk.entries.borrow_mut().push((partition, kept));
        let at = disk.entries.borrow().len();
        disk.written.notify_all();
        Box::pin(async move {
            loop {
                let written = disk.written.notified();
                if disk.durable.get() >= at {
                    return Ok(());
                }
                written.await;
            }
        })
    }
}

struct Room {
    log: Rc<MemoryLog>,
    partition: PartitionId,
}

impl Ticket for Room {
    fn append(self: Box<Self>, record: &[u8]) -> Result<JournalFuture<()>, Failure> {
        Ok(self.log.put(self.partition, Kept::Record(record.into())))
    }
}

impl FrameTicket for Room {
    fn append(&mut self, at: PartitionId, record: &[u8]) -> Result<JournalFuture<()>, Failure> {
        Ok(self.log.put(at, Kept::Record(record.into())))
    }
}

struct Log(Rc<MemoryLog>);

impl Log {
    async fn wait(log: &MemoryLog) {
        log.rt.sleep(Duration::from_micros(log.rt.random_below(300))).await;
    }
}

impl Journal for Log {
    fn admit(
        &self,
        partition: PartitionId,
        _: ServiceClass,
        _: usize,
    ) -> JournalFuture<Box<dyn Ticket>> {
        let log = self.0.clone();
        Box::pin(async move {
            Self::wait(&log).await;
            Ok(Box::new(Room { log, partition }) as _)
        })
    }

    fn admit_frame(&self, _: ServiceClass, _: Vec<usize>) -> JournalFuture<Box<dyn FrameTicket>> {
        let log = self.0.clone();
        Box::pin(async move {
            Self::wait(&log).await;
            Ok(Box::new(Room { log, partition: PartitionId(0) }) as _)
        })
    }

    fn retire(&self, partition: PartitionId) -> Result<JournalFuture<()>, Failure> {
        Ok(self.0.put(partition, Kept::Retired))
    }

    fn checkpoint(&self, at: PartitionId, bytes: Vec<u8>) -> Result<JournalFuture<()>, Failure> {
        Ok(self.0.put(at, Kept::Snapshot(bytes.into())))
    }
}

/// A node that runs.
pub struct Life {
    pub host: Rc<PartitionHost>,
    shared: Rc<Shared>,
    rt: Rt,
    /// Has no lease any more: nobody believes its answers.
    fenced: Cell<bool>,
}

/// Everything.
pub struct World {
    pub rt: Rt,
    pub map: RefCell<ClusterMap>,
    lives: RefCell<BTreeMap<NodeId, Rc<Life>>>,
    disks: BTreeMap<NodeId, Rc<Disk>>,
    /// Nodes that hear nobody and are heard by nobody.
    pub cut_off: RefCell<BTreeSet<NodeId>>,
    pub rough: Cell<bool>,
    pub problems: RefCell<Vec<String>>,
    pub acked: RefCell<BTreeSet<(PartitionId, PgId)>>,
    next_pg: Cell<u32>,
}

struct Net {
    world: Weak<World>,
    from: NodeId,
}

impl Caller for Net {
    fn call(&self, to: &Address, request: Outgoing) -> CallFuture {
        let world = self.world.upgrade().expect("the world outlives its nodes");
        let to = NodeId(to.0.trim_start_matches('n').parse().expect("a node"));
        let from = self.from;
        Box::pin(async move {
            let deadline = request.deadline;
            match world.rt.clone().timeout(deadline, world.deliver(from, to, request)).await {
                Ok(answer) => answer,
                Err(_) => Err(CallError::TimedOut),
            }
        })
    }
}

struct Leader {
    world: Weak<World>,
    of: NodeId,
}

impl Council for Leader {
    fn damaged(&self, node: NodeId, why: &str) {
        let world = self.world.upgrade().expect("the world outlives its nodes");
        world.problems.borrow_mut().push(format!("node {node} is called damaged: {why}"));
    }

    fn filled(&self, partition: PartitionId, config: ConfigNumber, node: NodeId) {
        let world = self.world.upgrade().expect("the world outlives its nodes");
        let rt = world.rt.clone();
        rt.clone().spawn(async move {
            rt.sleep(Duration::from_millis(rt.random_below(20))).await;
            world.change(|map| {
                let active = map.node(node).is_some_and(|n| n.state() == NodeState::Active);
                let entry = &mut map.partitions[partition.0 as usize];
                if !active || entry.config != config.0 || !entry.filling.contains(&node.0) {
                    return;
                }
                entry.filling.retain(|filling| *filling != node.0);
                entry.backups.push(node.0);
                entry.config += 1;
            });
        });
    }

    fn refresh_map(&self, _: Option<NodeId>) {
        let world = self.world.upgrade().expect("the world outlives its nodes");
        world.tell(self.of);
    }
}

impl World {
    /// So many nodes; each partition on `copies` of them.
    pub fn new(rt: &Rt, nodes: u32, copies: u32) -> Rc<Self> {
        let node = |id: u32| NodeEntry {
            id,
            address: format!("n{id}"),
            state: NodeState::Down.into(),
            ..NodeEntry::default()
        };
        let partition = |at: u32| {
            let member = |n: u32| (at + n) % nodes + 1;
            PartitionEntry {
                config: 1,
                since: 1,
                primary: member(0),
                backups: (1..copies).map(member).collect(),
                ..PartitionEntry::default()
            }
        };
        let map = ClusterMap {
            epoch: 1,
            cluster: vec![1; 16],
            bfs: vec![2; 16],
            nodes: (1..=nodes).map(node).collect(),
            partitions: (0..PARTITIONS).map(partition).collect(),
            data: 1,
            region_log2: 26,
            window_ticks: 60,
            ..ClusterMap::default()
        };
        let world = Rc::new(Self {
            rt: rt.clone(),
            map: RefCell::new(map),
            lives: RefCell::default(),
            disks: (1..=nodes).map(|id| (NodeId(id), Rc::default())).collect(),
            cut_off: RefCell::default(),
            rough: Cell::new(false),
            problems: RefCell::default(),
            acked: RefCell::default(),
            next_pg: Cell::new(0),
        });
        for disk in world.disks.values().cloned() {
            let rt = rt.clone();
            drop(rt.clone().spawn(async move {
                loop {
                    let more = disk.written.notified();
                    if disk.durable.get() == disk.entries.borrow().len() {
                        more.await;
                    }
                    let end = disk.entries.borrow().len();
                    rt.sleep(Duration::from_micros(20 + rt.random_below(2_000))).await;
                    // A crash may have taken some away.
                    disk.durable.set(end.min(disk.entries.borrow().len()));
                    disk.written.notify_all();
                }
            }));
        }
        (1..=nodes).for_each(|id| world.start(NodeId(id)));
        world
    }

    /// Changes the map, and tells everybody, sooner or later.
    pub fn change(self: &Rc<Self>, change: impl FnOnce(&mut ClusterMap)) {
        change(&mut self.map.borrow_mut());
        self.map.borrow_mut().epoch += 1;
        let all: Vec<NodeId> = self.lives.borrow().keys().copied().collect();
        all.into_iter().for_each(|node| self.tell(node));
    }

    fn tell(self: &Rc<Self>, node: NodeId) {
        let world = self.clone();
        self.rt.spawn(async move {
            let longest = if world.rough.get() { 60 } else { 3 };
            world.rt.sleep(Duration::from_millis(world.rt.random_below(longest))).await;
            if world.cut_off.borrow().contains(&node) {
                return;
            }
            let life = world.lives.borrow().get(&node).cloned();
            let map = world.map.borrow().clone();
            if let Some(life) = life.filter(|life| life.shared.map().epoch < map.epoch) {
                life.shared.set_map(map);
                let host = life.host.clone();
                life.rt.spawn(async move { host.follow_map(true) });
            }
        });
    }

    /// A node's process begins.
    pub fn start(self: &Rc<Self>, node: NodeId) {
        assert!(!self.lives.borrow().contains_key(&node), "it runs");
        let incarnation = {
            let mut map = self.map.borrow_mut();
            let entry = &mut map.nodes[node.0 as usize - 1];
            entry.incarnation += 1;
            entry.set_state(NodeState::Active);
            let incarnation = entry.incarnation;
            for partition in map.partitions.iter_mut().filter(|p| p.primary == node.0) {
                partition.config += 1;
                partition.since = partition.config;
            }
            incarnation
        };
        self.change(|_| {});
        let rt = self.rt.new_domain();
        let disk = self.disks[&node].clone();
        if incarnation == 1 {
            // Those of the first map are born with it.
            let mut entries = disk.entries.borrow_mut();
            for (id, entry) in self.map.borrow().numbered() {
                if entry.members().any(|member| member == node.0) {
                    let empty = PartitionState::new(PartitionId(id));
                    let bytes = encode_snapshot(&empty, std::iter::empty());
                    entries.push((PartitionId(id), Kept::Snapshot(bytes.into())));
                }
            }
            disk.durable.set(entries.len());
        }
        let mut replay = PartitionReplay::new();
        for (partition, kept) in &*disk.entries.borrow() {
            match kept {
                Kept::Record(bytes) => replay.record(*partition, bytes).expect("a good record"),
                Kept::Snapshot(bytes) => replay.snapshot(*partition, bytes).expect("a snapshot"),
                Kept::Retired => replay.retired(*partition),
            }
        }
        let map = self.map.borrow().clone();
        let address = Address::from(format!("n{node}").as_str());
        let shared =
            Rc::new(Shared::new(&rt, node, address, Incarnation(incarnation), map, Tick(1000)));
        let env = HostEnv {
            rt: rt.clone(),
            pool: BufPool::new(1 << 20, false).expect("memory"),
            caller: Rc::new(Net { world: Rc::downgrade(self), from: node }),
            shared: shared.clone(),
        };
        let journal: Rc<dyn Journal> = Rc::new(Log(Rc::new(MemoryLog { rt: rt.clone(), disk })));
        let config = HostConfig { serve_at_once: false, ..HostConfig::default() };
        let host = PartitionHost::new(env, &journal, config, replay.finish());
        let council = Rc::new(Leader { world: Rc::downgrade(self), of: node });
        host.join(council, Box::new(|_| {}));
        host.follow_map(true);
        let life = Rc::new(Life { host, shared, rt, fenced: Cell::new(false) });
        self.lives.borrow_mut().insert(node, life);
    }

    /// A node's process ends; of what was not durable, a part is lost.
    pub fn kill(&self, node: NodeId) {
        let Some(life) = self.lives.borrow_mut().remove(&node) else { return };
        self.rt.kill(life.rt.domain());
        let disk = &self.disks[&node];
        let (durable, end) = (disk.durable.get(), disk.entries.borrow().len());
        let kept = durable + self.rt.random_below((end - durable) as u64 + 1) as usize;
        disk.entries.borrow_mut().truncate(kept);
        disk.durable.set(kept);
    }

    /// Where every replica stands, for messages.
    pub fn describe(&self) -> String {
        let mut text = format!("{:#?}\n", self.map.borrow().partitions);
        for (node, life) in &*self.lives.borrow() {
            for replica in life.host.replicas() {
                text +=
                    &format!("node {node} partition {}: {}\n", replica.id(), replica.describe());
            }
        }
        text
    }

    pub fn life(&self, node: NodeId) -> Option<Rc<Life>> {
        self.lives.borrow().get(&node).cloned()
    }

    pub fn node_count(&self) -> u32 {
        self.disks.len() as u32
    }

    /// Takes a node down, as the leader does when its lease has run out.
    pub fn take_down(self: &Rc<Self>, node: NodeId) {
        if let Some(life) = self.lives.borrow().get(&node) {
            life.fenced.set(true);
        }
        self.change(|map| {
            map.nodes[node.0 as usize - 1].set_state(NodeState::Down);
            for entry in &mut map.partitions {
                let named = entry.primary == node.0
                    || entry.backups.contains(&node.0)
                    || entry.filling.contains(&node.0);
                if !named {
                    continue;
                }
                entry.config += 1;
                entry.filling.retain(|n| *n != node.0);
                if entry.primary == node.0 && !entry.backups.is_empty() {
                    entry.primary = entry.backups.remove(0);
                    entry.since = entry.config;
                } else {
                    entry.backups.retain(|n| *n != node.0);
                }
            }
        });
    }

    /// Gives every partition that lacks a copy a node to be filled.
    pub fn refill(self: &Rc<Self>, copies: usize) {
        self.change(|map| {
            let active: Vec<u32> = map
                .nodes
                .iter()
                .filter(|node| node.state() == NodeState::Active)
                .map(|node| node.id)
                .collect();
            for entry in &mut map.partitions {
                let held = 1 + entry.backups.len() + entry.filling.len();
                let free = active.iter().copied().find(|node| {
                    entry.primary != *node
                        && !entry.backups.contains(node)
                        && !entry.filling.contains(node)
                });
                if let Some(node) = free.filter(|_| held < copies) {
                    entry.filling.push(node);
                    entry.config += 1;
                }
            }
        });
    }

    async fn deliver(
        self: &Rc<Self>,
        from: NodeId,
        to: NodeId,
        request: Outgoing,
    ) -> Result<Answer, CallError> {
        let rough = self.rough.get();
        let chance = |of: u64| rough && self.rt.random_below(of) == 0;
        if chance(20) {
            std::future::pending::<()>().await;
        }
        let repeats = if chance(20) { 2 } else { 1 };
        let mut answer = None;
        for _ in 0..repeats {
            let longest = if chance(30) { 400_000 } else { 800 };
            self.rt.sleep(Duration::from_micros(self.rt.random_below(longest))).await;
            let apart = |node| self.cut_off.borrow().contains(node);
            if apart(&from) || apart(&to) {
                std::future::pending::<()>().await;
            }
            let life = self.life(to).ok_or(CallError::Disconnected { maybe_sent: false })?;
            let header = Header {
                target: request.target,
                fence: request.fence,
                ..Header::request(request.kind, request.class)
            };
            let peer = Rc::new(Peer {
                connection: 1,
                role: Role::Server,
                host: "test".into(),
                proven: None,
            });
            let incoming = Incoming { header, body: request.body.clone(), payload: None, peer };
            let host = life.host.clone();
            let handled = life.rt.spawn(async move { host.handle_replica(incoming).await });
            answer = Some(handled.await.map_err(|_| CallError::Disconnected { maybe_sent: true })?);
        }
        if chance(20) {
            std::future::pending::<()>().await;
        }
        match answer.expect("it was delivered once at least") {
            Ok(response) => {
                Ok(Answer { body: response.body, payload: None, vitals: Vitals::default() })
            }
            Err(failure) => Err(CallError::Refused(failure, Vitals::default())),
        }
    }

    /// Has one more thing remembered, at whoever serves the partition; again until it is.
    pub async fn write(self: &Rc<Self>, partition: PartitionId) {
        self.next_pg.set(self.next_pg.get() + 1);
        let pg = PgId {
            slot: Tick(1000),
            session: SessionId(1),
            sequence: self.next_pg.get(),
            home: partition,
        };
        for _ in 0..200 {
            let primary = NodeId(self.map.borrow().partitions[partition.0 as usize].primary);
            // Now and then a client has an old map.
            let primary = match self.rt.random_below(10) {
                0 => NodeId(1 + self.rt.random_below(u64::from(self.node_count())) as u32),
                _ => primary,
            };
            if let Some(life) = self.life(primary)
                && self.try_write(&life, partition, pg).await
            {
                self.acked.borrow_mut().insert((partition, pg));
                return;
            }
            self.rt.sleep(Duration::from_millis(5 + self.rt.random_below(50))).await;
        }
    }

    async fn try_write(&self, life: &Rc<Life>, at: PartitionId, pg: PgId) -> bool {
        let Some(partition) = life.host.partition(at) else { return false };
        let asked = life.rt.spawn(async move {
            let mutation = Mutation::Pg(PgMutation::Cancel { pg });
            partition.submit(ServiceClass::Client, mutation).await
        });
        let answer = self.rt.timeout(Duration::from_secs(2), asked).await;
        match answer {
            Ok(Ok(Ok(_))) => !life.fenced.get(),
            Ok(Ok(Err(failure))) => {
                assert!(matches!(failure.kind(), Code::Busy | Code::Fenced), "{failure}");
                false
            }
            _ => false,
        }
    }

    /// What of the acknowledged is not known by whoever serves.
    pub fn lost(&self) -> Vec<(PartitionId, PgId)> {
        let mut lost = Vec::new();
        for (at, pg) in &*self.acked.borrow() {
            let primary = NodeId(self.map.borrow().partitions[at.0 as usize].primary);
            let life = self.life(primary).expect("all are up");
            let partition = life.host.partition(*at).expect("it is served");
            if partition.state().pgs.fate(*pg).is_none() {
                lost.push((*at, *pg));
            }
        }
        lost
    }
}
