//! What every part of a server shares, and how log streams are named.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::ClusterMap;
use bb_commitlog::{Log, StreamId};
use bb_pgio::{Primary, partition_lost};
use bb_proto::{DeviceId, Incarnation, NodeId, PartitionId, Tick};
use bb_runtime::{BufPool, Rt};
use bb_transport::{Address, Answer, CallError, Caller, Outgoing, Vitals};
use futures_util::future::{Either, select};

use crate::bfs::Bfs;
use crate::council::Lease;
use crate::security::{Secured, Security};

/// How often who waits for a primary looks whether it still is one.
const LOOK_AT_MAP: Duration = Duration::from_millis(100);

/// Whose records a log stream holds. Part of the format: the kind is the top byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stream {
    /// The map's Raft log, where this node votes.
    Map,
    /// A page of a device's block table.
    Blocks {
        /// The device.
        device: DeviceId,
        /// Which part of the device: each page covers a fixed range of it.
        page: u32,
    },
    /// A partition.
    Partition(PartitionId),
    /// What a node knows of itself.
    Node,
}

impl Stream {
    /// The number under which the log knows it: kind in bits 56 to 63, device in 24 to 55, page in
    /// 0 to 23; or partition in 0 to 31.
    pub fn id(self) -> StreamId {
        StreamId(match self {
            Self::Map => 1 << 56,
            Self::Blocks { device, page } => {
                assert!(page < 1 << 24, "a device has fewer than 2^24 pages");
                2 << 56 | u64::from(device.0) << 24 | u64::from(page)
            }
            Self::Partition(partition) => 3 << 56 | u64::from(partition.0),
            Self::Node => 4 << 56,
        })
    }

    /// The reverse; `None` for a kind of a newer version.
    #[expect(clippy::cast_possible_truncation, reason = "the fields are cut out of the number")]
    pub const fn from_id(id: StreamId) -> Option<Self> {
        Some(match id.0 >> 56 {
            1 => Self::Map,
            2 => Self::Blocks {
                device: DeviceId((id.0 >> 24) as u32),
                page: (id.0 & 0xFF_FFFF) as u32,
            },
            3 => Self::Partition(PartitionId(id.0 as u32)),
            4 => Self::Node,
            _ => return None,
        })
    }
}

/// What every part of a server has in hand. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Time, chance, tasks.
    pub rt: Rt,
    /// Buffers.
    pub pool: BufPool,
    /// The commit log.
    pub log: Rc<Log>,
    /// Sends messages to other parts of the cluster, this node included.
    pub caller: Rc<dyn Caller>,
    /// The backing file system.
    pub bfs: Rc<dyn Bfs>,
    /// What changes while the server runs.
    pub shared: Rc<Shared>,
}

/// The node's own view of the cluster.
pub struct Shared {
    /// This node.
    pub node: NodeId,
    /// Where it listens.
    pub address: Address,
    /// Incarnation of this process.
    pub incarnation: Incarnation,
    /// What allows this node to serve as a primary.
    pub lease: Lease,
    security: OnceCell<Security>,
    map: RefCell<Rc<ClusterMap>>,
    /// Of nodes of the map that were asked for: a frame of records goes to the same few.
    addresses: RefCell<BTreeMap<NodeId, Address>>,
    tick: Cell<Tick>,
}

impl Shared {
    /// The view at start.
    pub fn new(
        rt: &Rt,
        node: NodeId,
        address: Address,
        incarnation: Incarnation,
        map: ClusterMap,
        tick: Tick,
    ) -> Self {
        Self {
            node,
            address,
            incarnation,
            lease: Lease::new(rt.clone()),
            security: OnceCell::new(),
            map: RefCell::new(Rc::new(map)),
            addresses: RefCell::default(),
            tick: Cell::new(tick),
        }
    }

    /// From now on clients are believed only what they prove. Without it, everything.
    pub fn secure(&self, secured: Secured) {
        let security = Security::new(secured, &self.map().cluster);
        assert!(self.security.set(security).is_ok(), "a server has one key");
    }

    /// What proofs are checked with; nothing where clients are trusted.
    pub fn security(&self) -> Option<&Security> {
        self.security.get()
    }

    /// The current map.
    pub fn map(&self) -> Rc<ClusterMap> {
        self.map.borrow().clone()
    }

    /// Takes over a newer map.
    pub fn set_map(&self, map: ClusterMap) {
        *self.map.borrow_mut() = Rc::new(map);
        self.addresses.borrow_mut().clear();
    }

    /// The current tick.
    pub fn tick(&self) -> Tick {
        self.tick.get()
    }

    /// Moves the tick on; never back.
    pub fn set_tick(&self, tick: Tick) {
        self.tick.set(self.tick.get().max(tick));
    }

    /// Asks the primary of a partition, and waits for its answer no longer than it is the primary:
    /// a node that was taken down will not say so. What is asked may be asked again.
    ///
    /// # Errors
    /// As the call; [`CallError::Disconnected`] where the role has moved, or nobody has it.
    pub async fn ask_primary(
        &self,
        rt: &Rt,
        caller: &dyn Caller,
        partition: PartitionId,
        request: Outgoing,
    ) -> Result<Answer, CallError> {
        let (address, config) = match Primary::of(&self.map(), partition) {
            Primary::At { address, config, .. } => (address, config),
            // Not asked in vain for a whole deadline: whoever asks tries again.
            Primary::Down => return Err(CallError::Disconnected { maybe_sent: false }),
            Primary::Lost => {
                return Err(CallError::Refused(partition_lost(partition), Vitals::default()));
            }
        };
        let still = || match Primary::of(&self.map(), partition) {
            Primary::At { address: now, .. } => now == address,
            Primary::Down | Primary::Lost => false,
        };
        let moved = async {
            while still() {
                rt.sleep(LOOK_AT_MAP).await;
            }
        };
        let call = caller.call(&address, request.to(partition.0, config));
        match select(std::pin::pin!(call), std::pin::pin!(moved)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(CallError::Disconnected { maybe_sent: true }),
        }
    }

    /// Where a node listens.
    pub fn address_of(&self, node: NodeId) -> Option<Address> {
        if let Some(known) = self.addresses.borrow().get(&node) {
            return Some(known.clone());
        }
        let address = Address::from(self.map.borrow().node(node)?.address.as_str());
        self.addresses.borrow_mut().insert(node, address.clone());
        Some(address)
    }

    /// The address of the node that drives a device, and the incarnation to fence with.
    pub fn driver(&self, device: DeviceId) -> Option<(Address, u64)> {
        let map = self.map();
        let entry = map.device(device)?;
        let node = map.node(NodeId(entry.node))?;
        Some((Address::from(node.address.as_str()), entry.incarnation))
    }
}
