//! What reading and writing have in common: the cluster, memory, limits.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::ClusterMap;
use bb_proto::{DeviceId, NodeId, PartitionId, ServiceClass};
use bb_runtime::{BufMut, BufPool, Rt, sync::Semaphore};
use bb_transport::{Address, CallError, Caller, Vitals};

use crate::devices::Devices;

/// What the owner of a [`PgIo`] knows of the cluster.
pub trait View {
    /// The cluster map.
    fn map(&self) -> Rc<ClusterMap>;
    /// A server said this of itself: the tick is in it.
    fn seen(&self, vitals: Vitals);
    /// Fetches the map again; done when the attempt has ended.
    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()>>>;
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
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            class: ServiceClass::Client,
            put_timeout: Duration::from_secs(5),
            get_timeout: Duration::from_secs(5),
            busy_max: Duration::from_secs(2),
            give_up: Duration::from_secs(60),
        }
    }
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
    /// Held while an operation takes its buffers. Only one operation at a time holds some and waits
    /// for more; those that hold all of theirs end without taking another (rule 14).
    taking: Semaphore,
    #[cfg(feature = "planted")]
    pub(crate) trust_crcs: Rc<std::cell::Cell<bool>>,
    #[cfg(feature = "planted")]
    pub(crate) hold_and_wait: Rc<std::cell::Cell<bool>>,
}

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
        Self {
            rt,
            pool,
            caller,
            view,
            limits,
            devices: Rc::default(),
            taking: Semaphore::new(1),
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

    /// Deliberate error: an operation that holds blocks waits for buffers for the others.
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
            taken.push(self.pool.alloc(*size).await);
        }
        taken
    }

    /// Buffers of these sizes if all can be had at once.
    pub(crate) fn try_buffers(&self, sizes: &[usize]) -> Option<Vec<BufMut>> {
        sizes.iter().map(|size| self.pool.try_alloc(*size)).collect()
    }

    /// The address of a device's node and the incarnation to fence with; `None` where the map says
    /// that it is gone or failed.
    pub(crate) fn place(&self, device: DeviceId) -> Option<(Address, u64)> {
        let map = self.view.map();
        let entry = map.device(device)?;
        let node = map.node(NodeId(entry.node))?;
        let well = entry.state == bb_cluster::DeviceState::Active as i32
            && node.state == bb_cluster::NodeState::Active as i32;
        well.then(|| (Address::from(node.address.as_str()), entry.incarnation))
    }

    /// The address of a partition's primary and the configuration number to fence with.
    pub(crate) fn primary(&self, partition: PartitionId) -> Option<(Address, u64)> {
        let map = self.view.map();
        let entry = map.partition(partition)?;
        let node = map.node(NodeId(entry.primary))?;
        Some((Address::from(node.address.as_str()), entry.config))
    }

    pub(crate) fn note(&self, device: DeviceId, vitals: Vitals) {
        self.devices.seen(device, vitals);
        self.view.seen(vitals);
    }

    pub(crate) fn note_error(&self, device: DeviceId, error: &CallError) {
        if let CallError::Refused(_, vitals) = error {
            self.note(device, *vitals);
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
