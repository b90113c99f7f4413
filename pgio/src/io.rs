//! What reading and writing have in common: the cluster, memory, limits.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{Candidate, ClusterMap, DeviceState, layout_over};
use bb_erasure::Geometry;
use bb_proto::{DeviceId, Failure, NodeId, PartitionId, ServiceClass};
use bb_runtime::sync::{Permit, Semaphore};
use bb_runtime::{BufMut, BufPool, Rt};
use bb_transport::{Address, Answer, CallError, CallFuture, Caller, Vitals};
use futures_util::future::{Either, select};

use crate::budget::Budget;
use crate::devices::{Devices, Why};

/// What the owner of a [`PgIo`] knows of the cluster.
pub trait View {
    /// The cluster map.
    fn map(&self) -> Rc<ClusterMap>;
    /// A server said this of itself: the tick is in it.
    fn seen(&self, vitals: Vitals);
    /// Fetches the map again; done when the attempt has ended.
    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()>>>;
    /// The slice that is written to; `None` for all. Everything is read from everywhere.
    fn slice(&self) -> Option<Rc<str>> {
        None
    }
    /// Gives back buffers that are only kept for later. False if there are none.
    fn make_room(&self) -> bool {
        false
    }
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// As whom to ask.
    pub class: ServiceClass,
    /// A put that takes longer goes to another device.
    pub put_timeout: Duration,
    /// A get that takes longer is reconstructed from others.
    pub get_timeout: Duration,
    /// A member that says "busy" for longer is replaced or reconstructed.
    pub busy_max: Duration,
    /// Without enough devices that answer, reading or writing a group fails after this.
    pub give_up: Duration,
    /// How devices are chosen; as the map says where there is none.
    pub deterministic: Option<bool>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            class: ServiceClass::Client,
            put_timeout: Duration::from_secs(5),
            get_timeout: Duration::from_secs(5),
            busy_max: Duration::from_secs(2),
            give_up: Duration::from_secs(60),
            deterministic: None,
        }
    }
}

/// What was done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PgStats {
    /// Requests for chunks of blocks, extra ones not counted.
    pub gets: u64,
    /// Reads that asked others because a member was late.
    pub hedges: u64,
    /// Extra requests that these sent.
    pub hedge_gets: u64,
    /// Hedged reads that ended before the member had answered.
    pub hedges_won: u64,
    /// Blocks that were computed from others.
    pub reconstructed: u64,
    /// Requests to write a block, extra ones not counted.
    pub puts: u64,
    /// Blocks that were written to another device because the first refused or did not answer.
    pub puts_replaced: u64,
    /// Extra requests of these, while the first was late.
    pub hedge_puts: u64,
}

/// Where requests to a partition go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Primary {
    /// To this address, with this configuration number to fence with.
    At {
        /// Where its node listens.
        address: Address,
        /// Configuration number.
        config: u64,
        /// Incarnation of the node's process.
        incarnation: u64,
    },
    /// Nowhere now: no replica of it is alive. It is waited for.
    Down,
    /// Nowhere: its last replica is damaged, and the operator decides what becomes of it.
    Lost,
}

impl Primary {
    /// What the map says of a partition.
    pub fn of(map: &ClusterMap, partition: PartitionId) -> Self {
        let entry = map.partition(partition);
        if entry.is_some_and(|entry| entry.lost) {
            return Self::Lost;
        }
        let node = entry.and_then(|entry| map.node(NodeId(entry.primary)));
        match (entry, node) {
            (Some(entry), Some(node)) if node.is_active() => Self::At {
                address: Address::from(node.address.as_str()),
                config: entry.config,
                incarnation: node.incarnation,
            },
            _ => Self::Down,
        }
    }

    /// True if a request that was sent there may still be answered: by the same process.
    pub fn is_still(&self, map: &ClusterMap, partition: PartitionId) -> bool {
        let process = |primary: &Self| match primary {
            Self::At { address, incarnation, .. } => Some((address.clone(), *incarnation)),
            Self::Down | Self::Lost => None,
        };
        process(self) == process(&Self::of(map, partition))
    }
}

/// The error for what was in a partition that is lost.
pub fn partition_lost(partition: PartitionId) -> Failure {
    let text = format!(
        "partition {partition} is lost: its last replica is damaged, and the operator has to decide"
    );
    Failure::errno(EIO, text)
}

/// As the system numbers it.
const EIO: i32 = 5;

/// Where requests to a device go.
pub(crate) enum Place {
    /// To this address, with this incarnation to fence with.
    At(Address, u64),
    /// Nowhere now: its node is down, and may come back with it.
    Away,
    /// Nowhere: it was given up.
    Gone,
}

/// Reads and writes parity groups. Cheap to clone.
#[derive(Clone)]
pub struct PgIo {
    pub(crate) rt: Rt,
    pub(crate) pool: BufPool,
    pub(crate) caller: Rc<dyn Caller>,
    pub(crate) view: Rc<dyn View>,
    pub(crate) limits: Limits,
    pub(crate) devices: Rc<Devices>,
    pub(crate) late_reads: Rc<Budget>,
    pub(crate) late_puts: Rc<Budget>,
    pub(crate) stats: Rc<Cell<PgStats>>,
    /// Held while an operation takes its buffers. Only one operation at a time holds some and waits
    /// for more; those that hold all of theirs end without taking another (rule 14).
    taking: Semaphore,
    /// Bytes of buffers that reads may have while they are under way, with all that they compute
    /// from: whoever waits for buffers must not wait for those of readers that wait, too.
    pub(crate) reads: Semaphore,
    pub(crate) reads_bytes_max: u64,
    #[cfg(feature = "planted")]
    pub(crate) trust_crcs: Rc<std::cell::Cell<bool>>,
    #[cfg(feature = "planted")]
    pub(crate) hold_and_wait: Rc<std::cell::Cell<bool>>,
}

/// A request without an answer for so long may have gone to a node that is dead: the map will say so.
/// Then again after [`LOOK_AGAIN`]: so much longer than the fail-over itself a caller waits at the
/// most. (One question for all that wait in a process, answered with a few bytes.)
const LOOK_AFTER: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Waits for the answer of a call, looking at the map now and then: once `is_current` says no, the
/// answer is not waited for any more. For requests that may be repeated elsewhere.
///
/// # Errors
/// Those of the call; [`CallError::TimedOut`] where it was given up.
pub async fn while_current(
    rt: &Rt,
    view: &dyn View,
    call: CallFuture,
    is_current: impl Fn() -> bool,
) -> Result<Answer, CallError> {
    let (mut call, mut wait) = (call, LOOK_AFTER);
    loop {
        let look = Box::pin(async {
            rt.sleep(wait).await;
            view.refresh().await;
        });
        match select(call, look).await {
            Either::Left((result, _)) => return result,
            Either::Right(((), _)) if !is_current() => return Err(CallError::TimedOut),
            Either::Right(((), rest)) => call = rest,
        }
        wait = LOOK_AGAIN;
    }
}

/// Reads have at least so many bytes of buffers.
const READS_BYTES_MIN: u64 = 4 << 20;

/// First wait after a refusal or a lost connection; doubles up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(5);
const BACK_OFF_MAX: Duration = Duration::from_millis(500);

impl PgIo {
    /// Reads and writes over `caller`, with buffers of `pool`.
    pub fn new(
        rt: Rt,
        pool: BufPool,
        caller: Rc<dyn Caller>,
        view: Rc<dyn View>,
        limits: Limits,
    ) -> Self {
        let reads_bytes_max = (pool.stats().total_bytes / 4).max(READS_BYTES_MIN);
        Self {
            rt,
            pool,
            caller,
            view,
            limits,
            devices: Rc::default(),
            late_reads: Rc::default(),
            late_puts: Rc::default(),
            stats: Rc::default(),
            taking: Semaphore::new(1),
            reads: Semaphore::new(reads_bytes_max),
            reads_bytes_max,
            #[cfg(feature = "planted")]
            trust_crcs: Rc::default(),
            #[cfg(feature = "planted")]
            hold_and_wait: Rc::default(),
        }
    }

    /// Deliberate error: what members send is not checked against its checksums.
    #[cfg(feature = "planted")]
    pub fn plant_trust_crcs(&self) {
        self.trust_crcs.set(true);
    }

    /// Deliberate error: an operation that holds blocks waits for buffers for the others, and as many
    /// are under way as there are.
    #[cfg(feature = "planted")]
    pub fn plant_hold_and_wait(&self) {
        self.hold_and_wait.set(true);
    }

    /// Waits for buffers of these sizes, all of them. The caller must hold no other buffer that it
    /// would only give back after this.
    pub async fn take_buffers(&self, sizes: &[usize]) -> Vec<BufMut> {
        let _one_at_a_time = self.taking.acquire(1).await;
        let mut taken = Vec::with_capacity(sizes.len());
        for size in sizes {
            taken.push(match self.try_buffer(*size) {
                Some(buffer) => buffer,
                None => self.pool.alloc(*size).await,
            });
        }
        taken
    }

    /// The same for a read, with a permit to be held while it is under way. One that needs more than
    /// all reads may have goes alone.
    pub(crate) async fn take_for_read(&self, sizes: &[usize]) -> (Vec<BufMut>, Permit) {
        let bytes: u64 = sizes.iter().map(|size| *size as u64).sum();
        #[cfg(feature = "planted")]
        let bytes = if self.hold_and_wait.get() { 0 } else { bytes };
        let permit = self.reads.acquire(bytes.min(self.reads_bytes_max)).await;
        (self.take_buffers(sizes).await, permit)
    }

    /// Buffers of these sizes if all can be had at once.
    pub(crate) fn try_buffers(&self, sizes: &[usize]) -> Option<Vec<BufMut>> {
        sizes.iter().map(|size| self.pool.try_alloc(*size)).collect()
    }

    /// A buffer, for which others are given up that are only kept for later.
    fn try_buffer(&self, size: usize) -> Option<BufMut> {
        loop {
            match self.pool.try_alloc(size) {
                None if self.view.make_room() => {}
                found => return found,
            }
        }
    }

    /// Figures.
    pub fn stats(&self) -> PgStats {
        self.stats.get()
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut PgStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    /// The geometry of a group that is written now: N shrinks where nodes (or devices) are missing,
    /// refuse or do not answer, K stays. `None` where not even 1+K are there.
    pub fn usable_geometry(&self, wanted: Geometry) -> Option<Geometry> {
        let (map, now) = (self.view.map(), self.rt.now());
        let all = self.candidates();
        let well: Vec<Candidate> =
            all.iter().copied().filter(|c| !self.devices.is_avoided(&map, c.device, now)).collect();
        let small = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
        let (data, parity) = (small(wanted.data()), small(wanted.parity()));
        let full = layout_over(data, parity, &all)?;
        // Never at the price of blocks that share a node.
        let now = layout_over(data, parity, &well).filter(|now| now.apart == full.apart);
        Geometry::new(now.unwrap_or(full).data, parity).ok()
    }

    /// The devices that may take blocks, with what is known of them.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let slice = self.view.slice();
        self.devices.candidates(&self.view.map(), slice.as_deref(), self.rt.now())
    }

    /// Where requests to a device go, as the map says.
    pub(crate) fn place(&self, device: DeviceId) -> Place {
        let map = self.view.map();
        let Some(entry) = map.device(device) else { return Place::Gone };
        let Some(node) = map.node(NodeId(entry.node)) else { return Place::Gone };
        if entry.state != i32::from(DeviceState::Active) || node.has_left() {
            return Place::Gone;
        }
        if !node.is_active() {
            return Place::Away;
        }
        Place::At(Address::from(node.address.as_str()), entry.incarnation)
    }

    pub(crate) fn note(&self, device: DeviceId, vitals: Vitals) {
        self.devices.seen(device, vitals, self.rt.now());
        self.view.seen(vitals);
    }

    pub(crate) fn note_error(&self, device: DeviceId, error: &CallError) {
        let (map, now) = (self.view.map(), self.rt.now());
        match error {
            CallError::Refused(_, vitals) => self.note(device, *vitals),
            CallError::TimedOut => self.devices.avoid(&map, device, Why::Silent, now),
            CallError::Disconnected { .. } | CallError::Rejected(_) => {
                self.devices.avoid_node(&map, device, now);
            }
        }
    }

    /// Waits before attempt number `attempt`, with up to half the time drawn by lot so that clients
    /// do not come back in step.
    pub(crate) async fn back_off(&self, attempt: u32) {
        let wait = (BACK_OFF_MIN * 2_u32.saturating_pow(attempt.min(10))).min(BACK_OFF_MAX);
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        let lot = self.rt.random_below(nanos / 2 + 1);
        self.rt.sleep(Duration::from_nanos(nanos / 2 + lot)).await;
    }
}
