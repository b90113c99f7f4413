//! Families of runs: which faults happen, how the workload leans, what is too small.

use std::fmt;
use std::str::FromStr;

/// A family of runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Family {
    /// Nothing goes wrong: whatever fails here is wrong anywhere.
    Calm,
    /// Server and client processes are killed.
    Crash,
    /// The server's power fails.
    Power,
    /// Messages are lost, late, duplicated, reordered, damaged; connections break.
    Net,
    /// As many devices as there is parity rot, lose, misdirect and tear writes.
    Rot,
    /// A device is gone, or a write or flush of it fails, in the middle of the run: it stays away.
    DeviceGone,
    /// Devices are too small for what is written.
    Full,
    /// The backing file system fails, hangs, fills up, is not mounted, changes from outside.
    Bfs,
    /// Mostly operations on names, with processes killed.
    Names,
    /// A few places of a few files are written, read and moved by everybody at once, over slow
    /// devices, with messages that come late and twice.
    Hot,
    /// Clients are cut off for longer than home waits for a commit.
    Away,
    /// The backing file system fails, hangs and goes away all the time, and the server is killed
    /// meanwhile.
    Outage,
    /// Several nodes, and nothing goes wrong but that one joins while clients work.
    NodesCalm,
    /// Several nodes, whose server processes are killed, and start at once or after the fail-over.
    NodesCrash,
    /// Several nodes that lose their power, all at once or one of them; a log may be damaged.
    NodesPower,
    /// Several nodes that do not all reach each other, in one direction or both.
    NodesNet,
    /// Several nodes, of which one is slow: its disks, its network.
    NodesSlow,
    /// Several nodes whose clocks run at different speed.
    NodesDrift,
    /// Several nodes with some of everything.
    NodesMixed,
    /// Some of everything.
    Mixed,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::Calm,
        Self::Crash,
        Self::Power,
        Self::Net,
        Self::Rot,
        Self::DeviceGone,
        Self::Full,
        Self::Bfs,
        Self::Names,
        Self::Hot,
        Self::Away,
        Self::Outage,
        Self::Mixed,
        Self::NodesCalm,
        Self::NodesCrash,
        Self::NodesPower,
        Self::NodesNet,
        Self::NodesSlow,
        Self::NodesDrift,
        Self::NodesMixed,
    ];
    /// Those of one node of which a default seed may be.
    const NARROW: usize = 11;

    /// The family of a seed where none was asked for: many mix everything, and each sixth has several
    /// nodes.
    pub fn of_seed(seed: u64) -> Self {
        let nodes = &Self::ALL[Self::NARROW + 2..];
        if let at @ (13 | 15 | 17) = seed % 18 {
            let number = seed / 18 * 3 + (at - 13) / 2;
            let at = usize::try_from(number % nodes.len() as u64).unwrap_or(0);
            return nodes[at];
        }
        // `outage` stands still most of the time: only when it is asked for.
        let narrow = &Self::ALL[..Self::NARROW];
        match usize::try_from(seed % 18) {
            Ok(at) if at < narrow.len() => narrow[at],
            _ => Self::Mixed,
        }
    }

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Crash => "crash",
            Self::Power => "power",
            Self::Net => "net",
            Self::Rot => "rot",
            Self::DeviceGone => "device-gone",
            Self::Full => "full",
            Self::Bfs => "bfs",
            Self::Names => "names",
            Self::Hot => "hot",
            Self::Away => "away",
            Self::Outage => "outage",
            Self::Mixed => "mixed",
            Self::NodesCalm => "nodes-calm",
            Self::NodesCrash => "nodes-crash",
            Self::NodesPower => "nodes-power",
            Self::NodesNet => "nodes-net",
            Self::NodesSlow => "nodes-slow",
            Self::NodesDrift => "nodes-drift",
            Self::NodesMixed => "nodes-mixed",
        }
    }

    /// Several nodes.
    pub const fn has_nodes(self) -> bool {
        matches!(
            self,
            Self::NodesCalm
                | Self::NodesCrash
                | Self::NodesPower
                | Self::NodesNet
                | Self::NodesSlow
                | Self::NodesDrift
                | Self::NodesMixed
        )
    }

    /// Clocks of machines run at different speed.
    pub const fn drifts(self) -> bool {
        matches!(self, Self::NodesDrift | Self::NodesMixed)
    }

    /// Server processes are killed now and then.
    pub const fn kills(self) -> bool {
        matches!(
            self,
            Self::Crash
                | Self::Power
                | Self::Rot
                | Self::Names
                | Self::Bfs
                | Self::Outage
                | Self::Mixed
        )
    }

    /// The server's power fails now and then.
    pub const fn cuts_power(self) -> bool {
        matches!(self, Self::Power | Self::Mixed)
    }

    /// The network misbehaves.
    pub const fn rough_network(self) -> bool {
        matches!(self, Self::Net | Self::Away | Self::Mixed | Self::NodesNet | Self::NodesMixed)
    }

    /// Devices destroy data.
    pub const fn rots(self) -> bool {
        matches!(self, Self::Rot | Self::Mixed)
    }

    /// Readers may meet blocks that are not what their writers gave.
    pub const fn damages_blocks(self) -> bool {
        self.rots() || self.rough_network()
    }

    /// Everybody writes, reads and moves the same few places of few files.
    pub const fn is_hot(self) -> bool {
        matches!(self, Self::Hot | Self::Outage)
    }

    /// Client processes are killed.
    pub const fn kills_clients(self) -> bool {
        matches!(self, Self::Crash | Self::Names | Self::Mixed | Self::Net | Self::NodesMixed)
    }

    /// The backing file system misbehaves.
    pub const fn bad_bfs(self) -> bool {
        matches!(self, Self::Bfs | Self::Outage | Self::Mixed | Self::NodesMixed)
    }

    /// Writes may meet ENOSPC.
    pub const fn fills_up(self) -> bool {
        matches!(self, Self::Full)
    }

    /// How much of the workload goes to names, in percent.
    pub const fn names_percent(self) -> u64 {
        match self {
            Self::Names => 60,
            Self::Outage => 30,
            Self::Full | Self::Hot => 4,
            _ => 15,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Family {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|family| family.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|family| family.name()).collect();
            format!("no family '{text}': {}", names.join(", "))
        })
    }
}
