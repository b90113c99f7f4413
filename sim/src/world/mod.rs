//! Machines with their disks and server processes, and their surroundings.
//!
//! Disks, network and backing file system belong to the world and outlive every process; a process
//! is a domain of tasks that is killed as a whole.

mod client;
mod cluster;
mod faults;
mod machine;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::Rt;
use bb_transport::sim::{SimNet, SimNetConfig};

pub use self::client::{ClientProcess, client_options, pool_bytes};
pub use self::faults::{FaultTally, disk_rates, network};
pub use self::machine::{Life, Machine, StartMistake};

use crate::bfs::SimBfs;
use crate::family::Family;
use crate::planted::Plant;
use crate::scale::Traffic;

/// Small, so that files of a few megabytes have several regions.
const REGION_LOG2: u32 = 20;

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What goes wrong.
    pub family: Family,
    /// Machines.
    pub nodes: usize,
    /// Data devices of each.
    pub devices: usize,
    /// Size of each, in bytes.
    pub device_bytes: u64,
    /// Size of the log's device, in bytes.
    pub log_bytes: u64,
    /// Data blocks per parity group.
    pub data: u8,
    /// Parity blocks per parity group.
    pub parity: u8,
    /// Metadata partitions.
    pub partitions: u32,
    /// log2 of the region size, in bytes.
    pub region_log2: u32,
    /// W of rule 1, in ticks.
    pub window_ticks: u32,
    /// Rendezvous placement instead of least loaded.
    pub deterministic: bool,
    /// The server's calls to itself go through the network, too.
    pub calls_itself_by_network: bool,
    /// What servers are asked is counted.
    pub counts_traffic: bool,
    /// The deliberate error to make.
    pub plant: Option<Plant>,
}

impl Setup {
    /// A setup of `family`, with what may vary drawn from `rt`.
    pub fn draw(rt: &Rt, family: Family) -> Self {
        if family.has_nodes() {
            return Self::draw_cluster(rt, family);
        }
        let geometries: &[(u8, u8)] = &[(2, 1), (2, 1), (3, 1), (2, 2), (1, 1), (1, 2)];
        let at = usize::try_from(rt.random_below(geometries.len() as u64)).unwrap_or(0);
        let (data, parity) = geometries[at];
        let device_bytes = if family.fills_up() { 16 << 20 } else { 96 << 20 };
        Self {
            family,
            nodes: 1,
            devices: 4,
            device_bytes,
            log_bytes: 25 << 20,
            data,
            parity,
            partitions: [1, 4, 8, 16][usize::try_from(rt.random_below(4)).unwrap_or(0)],
            region_log2: REGION_LOG2,
            window_ticks: 5,
            deterministic: rt.random_below(4) == 0,
            calls_itself_by_network: rt.random_below(2) == 0,
            counts_traffic: false,
            plant: None,
        }
    }

    fn draw_cluster(rt: &Rt, family: Family) -> Self {
        let pick = |all: &[(usize, u8, u8)]| {
            all[usize::try_from(rt.random_below(all.len() as u64)).unwrap_or(0)]
        };
        // One block of a group per node, where there are so many nodes; fewer in some.
        let (nodes, data, parity) = match rt.random_below(4) {
            0 => pick(&[(5, 3, 2), (5, 2, 2), (6, 3, 2), (7, 4, 2)]),
            _ => pick(&[(3, 2, 1), (4, 2, 1), (5, 2, 1), (4, 3, 1), (3, 1, 1), (3, 3, 1)]),
        };
        Self {
            family,
            nodes,
            devices: 1 + usize::try_from(rt.random_below(2)).unwrap_or(0),
            device_bytes: 96 << 20,
            log_bytes: 25 << 20,
            data,
            parity,
            partitions: [4, 8, 16][usize::try_from(rt.random_below(3)).unwrap_or(0)],
            region_log2: REGION_LOG2,
            window_ticks: 15,
            deterministic: rt.random_below(4) == 0,
            calls_itself_by_network: rt.random_below(2) == 0,
            counts_traffic: false,
            plant: None,
        }
    }

    /// As many nodes may be hurt at a time: K.
    pub fn spare_nodes(&self) -> usize {
        usize::from(self.parity)
    }
}

/// What all machines share.
pub struct Site {
    /// Root domain.
    pub rt: Rt,
    /// What the world is made of.
    pub setup: Setup,
    /// The network.
    pub net: SimNet,
    /// The backing file system.
    pub bfs: SimBfs,
    /// What happened to processes.
    pub tally: RefCell<FaultTally>,
    /// Memory for metadata of server processes from now on, in bytes.
    pub metadata_bytes_max: Cell<u64>,
    /// What servers were asked, where that is counted.
    pub traffic: Rc<RefCell<Traffic>>,
    /// Client processes so far, for their names.
    clients: Cell<u64>,
    /// Devices of which a log has lost what it had acknowledged.
    pub lost_blocks: RefCell<BTreeSet<u32>>,
}

/// The world.
pub struct World {
    site: Rc<Site>,
    /// The machines, in the order in which they join.
    pub machines: Vec<Rc<Machine>>,
}

impl Deref for World {
    type Target = Site;
    fn deref(&self) -> &Site {
        &self.site
    }
}

impl World {
    /// A world with blank disks.
    pub fn new(rt: &Rt, setup: Setup) -> Rc<Self> {
        let nodes = setup.nodes;
        let site = Rc::new(Site {
            rt: rt.clone(),
            net: SimNet::new(rt, SimNetConfig::calm()),
            bfs: SimBfs::new(rt, [7; 16]),
            tally: RefCell::default(),
            metadata_bytes_max: Cell::new(64 << 20),
            traffic: Rc::default(),
            clients: Cell::new(0),
            lost_blocks: RefCell::default(),
            setup,
        });
        let machines = (0..nodes).map(|number| Machine::new(&site, number)).collect();
        Rc::new(Self { site, machines })
    }

    /// The first machine: in most families the only one.
    pub fn first(&self) -> &Rc<Machine> {
        &self.machines[0]
    }
}

impl Site {
    /// True for a device whose log has lost what it had acknowledged of it.
    pub fn has_lost_blocks(&self, device: u32) -> bool {
        self.lost_blocks.borrow().contains(&device)
    }

    /// A number below `bound`.
    pub fn draw(&self, bound: u64) -> u64 {
        self.rt.random_below(bound)
    }

    /// True once in `bound` times.
    pub fn one_in(&self, bound: u64) -> bool {
        self.draw(bound) == 0
    }

    /// Waits for up to `longest`.
    pub async fn pause(&self, longest: Duration) {
        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.rt.sleep(Duration::from_nanos(self.draw(nanos))).await;
    }
}
