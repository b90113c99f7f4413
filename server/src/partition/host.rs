//! The partitions of this node: finds the one that a request addresses, and what they share.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::PartitionEntry;
use bb_proto::meta::encode;
use bb_proto::{
    Code, ConfigNumber, Failure, Fid, Header, Kind, NodeId, PartitionId, PgId, RegionIndex,
    ServiceClass, Tick, partition_of,
};
use bb_runtime::sync::Semaphore;
use bb_runtime::{BufPool, Rt};
use bb_transport::{Address, Answer, CallError, Caller, Incoming, Outgoing, Response, Role};

use super::degraded::Degraded;
use super::engine::{Meter, Outbox, Partition, not_primary};
use super::filling::SNAPSHOTS_MAX;
use super::fragment_map::Counts;
use super::journal::Journal;
use super::learning::Learning;
use super::mutation::Mutation;
use super::pg_mutation::PgMutation;
use super::replay::Replica;
use super::role::Phase;
use super::senders::{Council, NoCouncil, Senders};
use super::serve_replica::IncomingSnapshots;
use crate::context::{Context, Shared};
use crate::planted::{self, Planted};

/// Settings of the partitions of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostConfig {
    /// Budget of memory for metadata (rule 16).
    pub metadata_bytes_max: u64,
    /// How long another server is waited for.
    pub call_deadline: Duration,
    /// Pause between attempts of work in the background.
    pub work_interval: Duration,
    /// Pause between questions to silent participants, and about truncates that do not end.
    pub ask_interval: Duration,
    /// Partitions without other members are served as soon as the host is there, before anybody
    /// says so: for tests of parts.
    pub serve_at_once: bool,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            metadata_bytes_max: 1 << 30,
            call_deadline: Duration::from_secs(10),
            work_interval: Duration::from_secs(1),
            ask_interval: Duration::from_secs(10),
            serve_at_once: true,
        }
    }
}

/// What partitions use of their server.
#[derive(Clone)]
pub struct HostEnv {
    /// Time, tasks.
    pub rt: Rt,
    /// Buffers, for the bytes of inline groups.
    pub pool: BufPool,
    /// Reaches other partitions and block stores, those of this node included.
    pub caller: Rc<dyn Caller>,
    /// Map, tick, who we are.
    pub shared: Rc<Shared>,
}

impl From<&Context> for HostEnv {
    fn from(ctx: &Context) -> Self {
        Self {
            rt: ctx.rt.clone(),
            pool: ctx.pool.clone(),
            caller: ctx.caller.clone(),
            shared: ctx.shared.clone(),
        }
    }
}

/// What is done when a partition is served by this node from now on.
pub type OnServe = Box<dyn Fn(&Rc<Partition>)>;

/// The replicas of this node.
pub struct PartitionHost {
    pub(super) env: HostEnv,
    pub(super) config: HostConfig,
    pub(super) meter: Rc<Meter>,
    pub(super) journal: Rc<dyn Journal>,
    pub(super) replicas: RefCell<BTreeMap<PartitionId, Rc<Partition>>>,
    pub(super) outbox: Rc<Senders>,
    pub(super) incoming: RefCell<IncomingSnapshots>,
    /// Snapshots on their way out: partition and node.
    pub(super) fillings: RefCell<BTreeSet<(PartitionId, NodeId)>>,
    /// Permits to have a snapshot in memory and send it.
    pub(super) snapshot_room: Semaphore,
    pub(super) on_serve: RefCell<Option<OnServe>>,
    /// Processes of other nodes, as the map that was followed last names them.
    pub(super) incarnations: RefCell<BTreeMap<NodeId, u64>>,
    council: RefCell<Rc<dyn Council>>,
    snapshots: Cell<u64>,
    /// Epoch of the map by which dead groups were set aside.
    pub(super) parked_at: Cell<u64>,
    pub(super) degraded: Cell<Degraded>,
    /// Partitions that begin anew here: their first snapshot is being written.
    pub(super) births: RefCell<BTreeSet<PartitionId>>,
    /// Participants that said they hold fragments of a group: they report by themselves. Forgotten
    /// with the process, which only costs a question.
    pub(super) holders: RefCell<BTreeSet<(PgId, PartitionId)>>,
    /// Commits that ask what a file's regions have to learn.
    pub(super) learning: Learning,
}

impl crate::residency::Partitions for PartitionHost {
    fn get(&self, id: PartitionId) -> Option<Rc<Partition>> {
        self.partition(id)
    }

    fn all(&self) -> Vec<Rc<Partition>> {
        self.partitions().collect()
    }
}

impl PartitionHost {
    /// The replicas that replay has brought; they follow [`PartitionHost::follow_map`]. (In tests of
    /// parts, partitions without other members are served at once, and born where the log does not
    /// know them.)
    pub fn new(
        env: HostEnv,
        journal: &Rc<dyn Journal>,
        config: HostConfig,
        mut replicas: BTreeMap<PartitionId, Replica>,
    ) -> Rc<Self> {
        let map = env.shared.map();
        let outbox = Rc::new(Senders::default());
        let host = Rc::new(Self {
            env,
            config,
            meter: Rc::default(),
            journal: journal.clone(),
            replicas: RefCell::default(),
            outbox,
            incoming: RefCell::default(),
            fillings: RefCell::default(),
            snapshot_room: Semaphore::new(SNAPSHOTS_MAX),
            on_serve: RefCell::default(),
            incarnations: RefCell::default(),
            council: RefCell::new(Rc::new(NoCouncil)),
            snapshots: Cell::new(0),
            parked_at: Cell::new(0),
            degraded: Cell::default(),
            births: RefCell::default(),
            holders: RefCell::default(),
            learning: Learning::default(),
        });
        host.outbox.belong_to(&host);
        let me = host.env.shared.node.0;
        for (id, entry) in (0..).map(PartitionId).zip(&map.partitions) {
            let named = entry.primary == me && config.serve_at_once;
            let replica = match replicas.remove(&id) {
                Some(replica) => replica,
                None if named => Replica::born(id),
                None => continue,
            };
            let alone = config.serve_at_once && entry.primary == me && entry.backups.is_empty();
            host.bring_back(replica, entry, alone);
        }
        host
    }

    fn bring_back(&self, mut replica: Replica, entry: &PartitionEntry, alone: bool) {
        let id = replica.state.id();
        if alone {
            replica.commit_all();
        }
        let partition = self.make(replica);
        partition.set_config(ConfigNumber(entry.config));
        if alone {
            partition.begin_tenure(entry.since);
            partition.set_phase(Phase::Serving);
        }
        self.replicas.borrow_mut().insert(id, partition);
    }

    pub(super) fn make(&self, replica: Replica) -> Rc<Partition> {
        let config = self.env.shared.map().config(replica.state.id());
        let (rt, journal) = (self.env.rt.clone(), self.journal.clone());
        let outbox: Rc<dyn Outbox> = self.outbox.clone();
        Partition::new(replica, config, rt, journal, self.meter.clone(), outbox)
    }

    /// Says who keeps the map, and what is done with each partition that is served from now on.
    pub fn join(&self, council: Rc<dyn Council>, on_serve: OnServe) {
        *self.council.borrow_mut() = council;
        *self.on_serve.borrow_mut() = Some(on_serve);
    }

    pub(super) fn council(&self) -> Rc<dyn Council> {
        self.council.borrow().clone()
    }

    pub(super) fn next_snapshot(&self) -> u64 {
        self.snapshots.set(self.snapshots.get() + 1);
        self.snapshots.get()
    }

    /// A replica of this node, whatever its role.
    pub fn replica(&self, id: PartitionId) -> Option<Rc<Partition>> {
        self.replicas.borrow().get(&id).cloned()
    }

    /// All replicas of this node, in order.
    pub fn replicas(&self) -> Vec<Rc<Partition>> {
        self.replicas.borrow().values().cloned().collect()
    }

    /// Members of a partition besides this node.
    pub(super) fn members_of(&self, id: PartitionId) -> Vec<NodeId> {
        let map = self.env.shared.map();
        let Some(entry) = map.partition(id) else { return Vec::new() };
        let all = std::iter::once(entry.primary).chain(entry.backups.iter().copied());
        all.map(NodeId).filter(|node| *node != self.env.shared.node).collect()
    }

    /// A partition that this node serves.
    pub fn partition(&self, id: PartitionId) -> Option<Rc<Partition>> {
        self.replica(id).filter(|partition| partition.serves())
    }

    /// All partitions that this node serves, in order.
    pub fn partitions(&self) -> impl Iterator<Item = Rc<Partition>> + use<> {
        self.replicas().into_iter().filter(|partition| partition.serves())
    }

    /// Memory of metadata, in bytes, as counted.
    pub fn metadata_bytes(&self) -> u64 {
        self.meter.memory_bytes()
    }

    /// Bytes by state, over all partitions of this node.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for partition in self.partitions() {
            sum.replace(&Counts::default(), &partition.state().regions.totals());
        }
        sum
    }

    /// The partition that a request addresses.
    ///
    /// # Errors
    /// [`Code::Fenced`] if it is not here, or the caller believes in another configuration.
    pub fn addressed(&self, header: &Header) -> Result<Rc<Partition>, Failure> {
        let id = PartitionId(header.target);
        let partition = self.replica(id).ok_or_else(|| not_primary(id))?;
        match partition.phase() {
            Some(Phase::Serving) => {}
            Some(_) => return Err(Failure::new(Code::Busy, "the partition is being taken over")),
            None => return Err(not_primary(id)),
        }
        let ignores = planted::is(Planted::IgnoreConfiguration);
        if header.fence != partition.config().0 && !ignores {
            let detail = format!("partition {id} is at configuration {}", partition.config());
            return Err(Failure::new(Code::Fenced, detail));
        }
        Ok(partition)
    }

    /// Answers a request to a partition about groups or regions.
    ///
    /// # Errors
    /// What the request's handler says.
    pub async fn handle(self: Rc<Self>, request: Incoming) -> Result<Response, Failure> {
        let partition = self.addressed(&request.header)?;
        match request.header.kind {
            Kind::Commit => self.serve_commit(&partition, &request).await,
            Kind::CancelCommit => self.serve_cancel(&partition, &request).await,
            Kind::PgStatus => self.serve_pg_status(&partition, &request).await,
            Kind::PgRelease => self.serve_pg_release(&partition, &request).await,
            Kind::PgHolds => self.serve_pg_holds(&partition, &request).await,
            Kind::Lookup => self.serve_lookup(&partition, &request),
            Kind::GetInline => self.serve_inline(&partition, &request),
            Kind::RegionTruncate => self.serve_truncate(&partition, &request).await,
            Kind::RegionDrop => self.serve_drop(&partition, &request).await,
            Kind::RegionStat => self.serve_region_stat(&partition, &request),
            kind => {
                Err(Failure::new(Code::Unsupported, format!("{kind:?} is not for a partition")))
            }
        }
    }

    /// Moves the partition's horizon past what is older than the window W, then writes a
    /// checkpoint (rule 1). For the stream that keeps the log's tail.
    ///
    /// # Errors
    /// [`Code::Fenced`] if the partition is not here, or the log's failure.
    pub async fn checkpoint(&self, id: PartitionId) -> Result<(), Failure> {
        let partition =
            self.replica(id).ok_or_else(|| Failure::new(Code::Fenced, "it is not here"))?;
        let slot = Tick(self.old_slots_end().saturating_sub(1));
        if partition.serves() && slot > partition.state().horizon() {
            let horizon = Mutation::Pg(PgMutation::Horizon { slot });
            partition.submit(ServiceClass::Control, horizon).await?;
        }
        partition.checkpoint().await
    }

    /// Slots below are older than the window W: they may be asked about, and passed by horizons.
    pub(super) fn old_slots_end(&self) -> u64 {
        let window = u64::from(self.env.shared.map().window_ticks);
        self.env.shared.tick().0.saturating_sub(window)
    }

    /// The partition of a region.
    pub(super) fn partition_of(&self, fid: Fid, region: RegionIndex) -> PartitionId {
        partition_of(fid, region, self.env.shared.map().partition_count())
    }

    /// Asks another partition, maybe of this node.
    pub(super) async fn ask_partition<M: prost::Message>(
        &self,
        kind: Kind,
        class: ServiceClass,
        to: PartitionId,
        message: &M,
    ) -> Result<Answer, CallError> {
        let request = Outgoing::new(kind, class, self.config.call_deadline, encode(message));
        let env = &self.env;
        env.shared.ask_primary(&env.rt, &*env.caller, to, request).await
    }

    pub(super) async fn ask<M: prost::Message>(
        &self,
        address: &Address,
        kind: Kind,
        class: ServiceClass,
        (target, fence): (u32, u64),
        message: &M,
    ) -> Result<Answer, CallError> {
        let request = Outgoing::new(kind, class, self.config.call_deadline, encode(message));
        self.env.caller.call(address, request.to(target, fence)).await
    }
}

/// The class under which a request may take log space: a client cannot make itself more urgent.
pub(super) fn class_of(request: &Incoming) -> ServiceClass {
    match request.peer.role {
        Role::Client => request.header.class.max(ServiceClass::Client),
        Role::Server => request.header.class,
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
