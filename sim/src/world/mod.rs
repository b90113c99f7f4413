//! A node's hardware and surroundings, and the life of its server process.
//!
//! Disks, network and backing file system belong to the world and outlive every process; a process
//! is a domain of tasks that is killed as a whole.

mod client;
mod faults;
mod server;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bb_nvme::{SimDisk, SimDiskOptions};
use bb_runtime::Rt;
use bb_transport::Address;
use bb_transport::sim::{SimNet, SimNetConfig};

pub use self::client::{ClientProcess, client_options};
pub use self::faults::{FaultTally, disk_rates, network};
pub use self::server::{Life, StartMistake};

use crate::bfs::SimBfs;
use crate::family::Family;
use crate::planted::Plant;

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What goes wrong.
    pub family: Family,
    /// Data devices.
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
    /// W of rule 1, in ticks.
    pub window_ticks: u32,
    /// Rendezvous placement instead of least loaded.
    pub deterministic: bool,
    /// The server's calls to itself go through the network, too.
    pub calls_itself_by_network: bool,
    /// The deliberate error to make.
    pub plant: Option<Plant>,
}

impl Setup {
    /// A setup of `family`, with what may vary drawn from `rt`.
    pub fn draw(rt: &Rt, family: Family) -> Self {
        let geometries: &[(u8, u8)] = &[(2, 1), (2, 1), (3, 1), (2, 2), (1, 1), (1, 2)];
        let at = usize::try_from(rt.random_below(geometries.len() as u64)).unwrap_or(0);
        let (data, parity) = geometries[at];
        let device_bytes = if family.fills_up() { 16 << 20 } else { 96 << 20 };
        Self {
            family,
            devices: 4,
            device_bytes,
            log_bytes: 25 << 20,
            data,
            parity,
            partitions: [1, 4, 8, 16][usize::try_from(rt.random_below(4)).unwrap_or(0)],
            window_ticks: 5,
            deterministic: rt.random_below(4) == 0,
            calls_itself_by_network: rt.random_below(2) == 0,
            plant: None,
        }
    }
}

/// The world.
pub struct World {
    /// Root domain.
    pub rt: Rt,
    /// What it is made of.
    pub setup: Setup,
    /// The data devices.
    pub disks: Vec<SimDisk>,
    /// The log's device.
    pub log_disk: SimDisk,
    /// The network.
    pub net: SimNet,
    /// The backing file system.
    pub bfs: SimBfs,
    /// Where the server listens.
    pub address: Address,
    /// The server process, if one runs.
    life: RefCell<Option<Rc<Life>>>,
    /// What happened to processes.
    pub tally: RefCell<FaultTally>,
    /// Memory for metadata of server processes from now on, in bytes.
    pub metadata_bytes_max: Cell<u64>,
    /// Client processes so far, for their names.
    clients: Cell<u64>,
    /// Since when a start fails, and why.
    mistake: RefCell<Option<StartMistake>>,
}

/// Address of the server.
const SERVER: &str = "server";

impl World {
    /// A world with blank disks.
    pub fn new(rt: &Rt, setup: Setup) -> Rc<Self> {
        let disk = |name: &str, bytes| SimDisk::new(rt, &SimDiskOptions::new(name, bytes));
        let disks = (0..setup.devices).map(|n| disk(&format!("disk{n}"), setup.device_bytes));
        Rc::new(Self {
            rt: rt.clone(),
            disks: disks.collect(),
            log_disk: disk("log", setup.log_bytes),
            net: SimNet::new(rt, SimNetConfig::calm()),
            bfs: SimBfs::new(rt, [7; 16]),
            address: Address::from(SERVER),
            life: RefCell::default(),
            tally: RefCell::default(),
            metadata_bytes_max: Cell::new(64 << 20),
            clients: Cell::new(0),
            mistake: RefCell::default(),
            setup,
        })
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
