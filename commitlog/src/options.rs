//! What a caller chooses when it formats or opens a log.

use crate::ids::{ClusterUuid, LogIdentity, LogUuid, Nonce};
use crate::space::Reserves;

/// How a log is formatted.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Who it is.
    pub identity: LogIdentity,
    /// Size of the ring; all of the device behind the superblocks where this is `None`.
    pub ring_bytes: Option<u64>,
    /// Largest group: a power of two, 16 KiB to 1 MiB. A record is at most a quarter of it.
    pub group_bytes_max: usize,
    /// Writes zeros through the whole ring, so that its file has all its blocks: a flush that must
    /// also commit a file system's journal costs 2.6 times as much.
    pub zero_ring: bool,
}

impl FormatOptions {
    /// A ring as large as the device, groups of up to 1 MiB, written through.
    pub fn new(identity: LogIdentity) -> Self {
        Self { identity, ring_bytes: None, group_bytes_max: 1 << 20, zero_ring: true }
    }
}

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it must be; what is `None` is not checked.
    pub expect: Expect,
    /// Groups that may be on their way to the device at a time. Each holds a buffer of the largest
    /// group from the pool for as long as the log is open.
    pub groups_in_flight: usize,
    /// Reads of up to 1 MiB that the replay keeps under way.
    pub reads_in_flight: usize,
    /// Ring space by class; a share of the ring where this is `None`.
    pub reserves: Option<Reserves>,
    /// Deliberate errors.
    #[cfg(feature = "planted")]
    pub faults: PlantedLogFaults,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            expect: Expect::default(),
            groups_in_flight: 4,
            reads_in_flight: 4,
            reserves: None,
            #[cfg(feature = "planted")]
            faults: PlantedLogFaults::default(),
        }
    }
}

impl Options {
    pub(crate) fn reserves_for(&self, ring_bytes: u64) -> Reserves {
        self.reserves.unwrap_or_else(|| Reserves::for_ring(ring_bytes))
    }
}

/// What a log must be to be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expect {
    /// This log.
    pub log: Option<LogUuid>,
    /// A log of this cluster.
    pub cluster: Option<ClusterUuid>,
    /// The log of these data devices.
    pub nonce: Option<Nonce>,
}

/// Deliberate errors in the log, for the simulator to find.
#[cfg(feature = "planted")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlantedLogFaults {
    /// Replays a group whose records don't match their checksum.
    pub trust_torn_record: bool,
    /// Acknowledges when a group is submitted.
    pub ack_before_durable: bool,
    /// Takes damage for a torn tail.
    pub ignore_damage: bool,
}
