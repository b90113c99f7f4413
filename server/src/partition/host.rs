//! The partitions of this node: finds the one that a request addresses, and what they share.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::encode;
use bb_proto::{
    Code, ConfigNumber, Failure, Fid, Header, Kind, PartitionId, PgId, RegionIndex, ServiceClass,
    Tick, partition_of,
};
use bb_runtime::{BufPool, Rt};
use bb_transport::{Address, Answer, CallError, Caller, Incoming, Outgoing, Response, Role};

use super::engine::{Meter, Partition};
use super::fragment_map::Counts;
use super::journal::Journal;
use super::mutation::Mutation;
use super::pg_mutation::PgMutation;
use super::state::PartitionState;
use crate::context::{Context, Shared};

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
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            metadata_bytes_max: 1 << 30,
            call_deadline: Duration::from_secs(10),
            work_interval: Duration::from_secs(1),
            ask_interval: Duration::from_secs(10),
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

/// The partitions of this node.
pub struct PartitionHost {
    pub(super) env: HostEnv,
    pub(super) config: HostConfig,
    pub(super) meter: Rc<Meter>,
    partitions: BTreeMap<PartitionId, Rc<Partition>>,
    /// Participants that said they hold fragments of a group: they report by themselves. Forgotten
    /// with the process, which only costs a question.
    pub(super) holders: RefCell<BTreeSet<(PgId, PartitionId)>>,
}

impl crate::residency::Partitions for PartitionHost {
    fn get(&self, id: PartitionId) -> Option<Rc<Partition>> {
        self.partition(id).cloned()
    }

    fn all(&self) -> Vec<Rc<Partition>> {
        self.partitions().cloned().collect()
    }
}

impl PartitionHost {
    /// The partitions that the map gives this node, in the states that replay has brought.
    pub fn new(
        env: HostEnv,
        journal: &Rc<dyn Journal>,
        config: HostConfig,
        mut states: BTreeMap<PartitionId, PartitionState>,
    ) -> Rc<Self> {
        let map = env.shared.map();
        let meter = Rc::new(Meter::default());
        let mut partitions = BTreeMap::new();
        for (id, entry) in (0..).map(PartitionId).zip(&map.partitions) {
            if entry.primary == env.shared.node.0 {
                let state = states.remove(&id).unwrap_or_else(|| PartitionState::new(id));
                let number = ConfigNumber(entry.config);
                let (rt, journal) = (env.rt.clone(), journal.clone());
                partitions.insert(id, Partition::new(state, number, rt, journal, meter.clone()));
            }
        }
        let holders = RefCell::default();
        Rc::new(Self { env, config, meter, partitions, holders })
    }

    /// A partition of this node.
    pub fn partition(&self, id: PartitionId) -> Option<&Rc<Partition>> {
        self.partitions.get(&id)
    }

    /// All partitions of this node, in order.
    pub fn partitions(&self) -> impl Iterator<Item = &Rc<Partition>> {
        self.partitions.values()
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
        let partition = self.partitions.get(&id).ok_or_else(|| {
            Failure::new(Code::Fenced, format!("partition {id} is not served here"))
        })?;
        let config = self.env.shared.map().config(id);
        partition.set_config(config);
        if header.fence != partition.config().0 {
            let detail = format!("partition {id} is at configuration {}", partition.config());
            return Err(Failure::new(Code::Fenced, detail));
        }
        Ok(partition.clone())
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
        let partition = self
            .partitions
            .get(&id)
            .ok_or_else(|| Failure::new(Code::Fenced, "the partition is not here"))?;
        let slot = Tick(self.old_slots_end().saturating_sub(1));
        if slot > partition.state().horizon() {
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
        let Some((address, fence)) = self.env.shared.primary(to) else {
            return Err(CallError::Disconnected { maybe_sent: false });
        };
        self.ask(&address, kind, class, (to.0, fence), message).await
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
