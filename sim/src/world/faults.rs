//! What goes wrong in a family, and how often it did.

use std::collections::BTreeMap;
use std::time::Duration;

use bb_nvme::{FaultKind, FaultRates};
use bb_transport::sim::SimNetConfig;

use super::World;
use crate::family::Family;

/// What happened to processes.
#[derive(Clone, Copy, Default, Debug)]
pub struct FaultTally {
    /// Starts of a server.
    pub starts: u64,
    /// Starts that failed.
    pub failed_starts: u64,
    /// Server processes killed.
    pub kills: u64,
    /// Of those and the power cuts: before they served.
    pub killed_in_recovery: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Stops in good order.
    pub stops: u64,
    /// Client processes killed.
    pub client_kills: u64,
    /// Servers that ended by themselves, and were started again.
    pub ended_by_themselves: u64,
    /// Network partitions.
    pub partitions: u64,
    /// Of servers: in one direction only.
    pub parted_one_way: u64,
    /// Of servers: in both.
    pub parted_two_ways: u64,
    /// Servers cut off from all others.
    pub cut_off: u64,
    /// Power cuts of all machines at once.
    pub site_power_cuts: u64,
    /// Logs damaged while nobody ran.
    pub logs_damaged: u64,
    /// Machines that came back formatted, as new nodes.
    pub replaced: u64,
    /// Machines that were slow for a while.
    pub slow_machines: u64,
    /// Machines whose clocks run at another speed.
    pub drifting: u64,
    /// Nodes that joined while clients worked.
    pub joined: u64,
    /// Partitions whose dead primary another node has followed.
    pub take_overs: u64,
    /// Partitions whose living primary has given its role away.
    pub hand_overs: u64,
    /// Replicas that were filled.
    pub fillings: u64,
    /// Times that the backing file system was taken away.
    pub unmounts: u64,
    /// Changes made to it from outside.
    pub outside_changes: u64,
    /// Calls of clients that met ENOSPC.
    pub no_space: u64,
    /// Blocks that clients read by reconstruction.
    pub reconstructed: u64,
}

/// Network of a family.
pub fn network(family: Family) -> SimNetConfig {
    if family == Family::Hot {
        return SimNetConfig {
            latency_max: Duration::from_millis(2),
            duplicate_ppm: 30_000,
            late_ppm: 10_000,
            late_max: Duration::from_secs(3),
            ..SimNetConfig::calm()
        };
    }
    if family.rough_network() && family.has_nodes() {
        SimNetConfig {
            late_max: Duration::from_secs(2),
            keepalive: Duration::from_secs(5),
            corrupt_payload_ppm: 500,
            ..SimNetConfig::rough()
        }
    } else if family.rough_network() {
        SimNetConfig {
            late_max: Duration::from_secs(4),
            half_open_ppm: 300_000,
            keepalive: Duration::from_secs(5),
            corrupt_payload_ppm: 500,
            ..SimNetConfig::rough()
        }
    } else {
        SimNetConfig { latency_max: Duration::from_millis(1), ..SimNetConfig::calm() }
    }
}

/// Rates of a disk that destroys data.
pub fn disk_rates() -> FaultRates {
    FaultRates {
        lost_write_ppm: 4_000,
        misdirected_write_ppm: 2_000,
        bit_rot_ppm: 10_000,
        read_error_ppm: 5_000,
        ..FaultRates::default()
    }
}

impl World {
    /// Every fault that can be counted, by name.
    pub fn fault_counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        let mut disks = bb_nvme::FaultCounts::default();
        for disk in self.machines.iter().flat_map(|machine| machine.all_disks()) {
            disks.add(&disk.fault_counts());
        }
        for kind in FaultKind::ALL {
            counts.insert(disk_fault(kind), disks.get(kind));
        }
        let net = self.net.counters();
        let bfs = self.bfs.counts();
        let tally = *self.tally.borrow();
        counts.extend([
            ("process: server killed", tally.kills),
            ("process: server killed while it recovers", tally.killed_in_recovery),
            ("process: server stopped", tally.stops),
            ("process: client killed", tally.client_kills),
            ("process: power cut", tally.power_cuts),
            ("process: power cut of the whole site", tally.site_power_cuts),
            ("process: server ended by itself", tally.ended_by_themselves),
            ("node: commit log damaged", tally.logs_damaged),
            ("node: replaced by a new one", tally.replaced),
            ("node: joined while clients worked", tally.joined),
            ("node: slow", tally.slow_machines),
            ("node: clock drifts", tally.drifting),
            ("cluster: partitions taken over", tally.take_overs),
            ("cluster: partitions handed over", tally.hand_overs),
            ("cluster: replicas filled", tally.fillings),
            ("net: servers parted in one direction", tally.parted_one_way),
            ("net: servers parted in both directions", tally.parted_two_ways),
            ("net: servers cut off from all others", tally.cut_off),
            ("net: frames of slow hosts", net.slowed),
            ("net: frames lost", net.lost),
            ("net: frames duplicated", net.duplicated),
            ("net: frames reordered", net.reordered),
            ("net: frames late", net.late),
            ("net: frames damaged", net.corrupted),
            ("net: payloads damaged", net.payloads_corrupted),
            ("net: frames swallowed by a partition or a dead host", net.swallowed),
            ("net: connections reset", net.resets),
            ("net: hosts died silently", net.died_silently),
            ("net: partitions", tally.partitions),
            ("bfs: I/O errors", bfs.io_errors),
            ("bfs: I/O errors after the effect", bfs.io_errors_late),
            ("bfs: lookups that lost a race", bfs.races),
            ("bfs: calls that hung", bfs.hung),
            ("bfs: calls finished after their process's death", bfs.finished_after_death),
            ("bfs: no space", bfs.no_space),
            ("bfs: calls while not mounted", bfs.unmounted),
            ("bfs: taken away", tally.unmounts),
            ("bfs: changed from outside", tally.outside_changes),
            ("space: calls that met ENOSPC", tally.no_space),
            ("read: blocks reconstructed", tally.reconstructed),
        ]);
        counts
    }
}

const fn disk_fault(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::TornWrite => "disk: torn writes",
        FaultKind::LostUnflushed => "disk: unflushed writes lost",
        FaultKind::LostWrite => "disk: lost writes",
        FaultKind::MisdirectedWrite => "disk: misdirected writes",
        FaultKind::BitRot => "disk: bit rot",
        FaultKind::ReadError => "disk: read errors",
        FaultKind::WriteError => "disk: write errors",
        FaultKind::Slow => "disk: slow operations",
        FaultKind::Stall => "disk: operations that stalled",
        FaultKind::Gone => "disk: operations on a device that is gone",
        FaultKind::FailedFlush => "disk: failed flushes",
    }
}
