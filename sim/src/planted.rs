//! The deliberate errors of all crates, and what the simulator needs to find each.

use crate::family::Family;

/// An error that can be switched on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plant {
    /// Name on the command line.
    pub name: &'static str,
    /// The rule that it breaks.
    pub rule: &'static str,
    /// The family in which it shows.
    pub family: Family,
    #[cfg(feature = "planted")]
    kind: Kind,
}

#[cfg(feature = "planted")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Server(bb_server::planted::Planted),
    Client(bb_client::Planted),
    TornRecord,
    LogAckEarly,
    IgnoreDamage,
    ReuseBuffer,
}

#[cfg(feature = "planted")]
mod list {
    use bb_client::Planted as C;
    use bb_server::planted::Planted as S;

    use super::{Family, Kind, Plant};

    const fn server(name: &'static str, rule: &'static str, family: Family, kind: S) -> Plant {
        Plant { name, rule, family, kind: Kind::Server(kind) }
    }

    const fn client(name: &'static str, rule: &'static str, family: Family, kind: C) -> Plant {
        Plant { name, rule, family, kind: Kind::Client(kind) }
    }

    /// All of them.
    pub const ALL: &[Plant] = &[
        server("skip-horizon", "1", Family::Net, S::SkipHorizon),
        server("forget-commit-ids", "3", Family::Net, S::ForgetCommitIds),
        client("skip-reorder-wait", "3", Family::Net, C::SkipReorderWait),
        server("give-block-twice", "4", Family::Crash, S::GiveBlockTwice),
        server("free-under-reader", "4", Family::Full, S::FreeUnderReader),
        server("wrong-pg-served", "4", Family::Calm, S::WrongPgServed),
        server("free-before-commit", "4", Family::Net, S::FreeBeforeCommit),
        Plant {
            name: "reuse-timed-out-buffer",
            rule: "6",
            family: Family::Net,
            kind: Kind::ReuseBuffer,
        },
        server("forget-truncate-epoch", "7", Family::Calm, S::ForgetTruncateEpoch),
        server("old-size-raise", "7", Family::Calm, S::OldSizeRaise),
        server("retry-twice", "8", Family::Net, S::RetryTwice),
        server("drop-before-bfs-agreed", "8", Family::Bfs, S::DropBeforeBfsAgreed),
        server("mark-clean-changed", "9", Family::Calm, S::MarkCleanChanged),
        server("prestage-overwrites", "9", Family::Calm, S::PrestageOverwrites),
        server("ignore-guard", "BFS guard", Family::Bfs, S::IgnoreGuard),
        server("trust-unmounted", "11", Family::Bfs, S::TrustUnmounted),
        Plant {
            name: "trust-torn-record",
            rule: "12",
            family: Family::Power,
            kind: Kind::TornRecord,
        },
        Plant {
            name: "ignore-damage",
            rule: "12",
            family: Family::Power,
            kind: Kind::IgnoreDamage,
        },
        server("skip-torn-check", "12", Family::Power, S::SkipTornCheck),
        server("ack-before-flush", "13", Family::Power, S::AckBeforeFlush),
        Plant {
            name: "log-ack-before-durable",
            rule: "13",
            family: Family::Power,
            kind: Kind::LogAckEarly,
        },
        client("drop-sealed-before-commit", "1", Family::Net, C::DropSealedBeforeCommit),
        client("trust-crc", "17", Family::Rot, C::TrustCrc),
        client("fsync-before-commit", "13", Family::Calm, C::FsyncBeforeCommit),
    ];
}

#[cfg(feature = "planted")]
pub use list::ALL;

#[cfg(feature = "planted")]
impl Plant {
    /// By name.
    ///
    /// # Errors
    /// A sentence with all names.
    pub fn find(name: &str) -> Result<Self, String> {
        ALL.iter().find(|plant| plant.name == name).copied().ok_or_else(|| {
            let names: Vec<&str> = ALL.iter().map(|plant| plant.name).collect();
            format!("no planted error '{name}': {}", names.join(", "))
        })
    }

    /// Switches on what is the thread's.
    pub fn switch_on(self) {
        switch_off();
        match self.kind {
            Kind::Server(kind) => bb_server::planted::set(Some(kind)),
            Kind::ReuseBuffer => bb_transport::planted::reuse_timed_out_buffer(true),
            _ => {}
        }
    }

    /// What the log is to do wrong.
    pub fn log_faults(self) -> bb_commitlog::PlantedLogFaults {
        bb_commitlog::PlantedLogFaults {
            trust_torn_record: self.kind == Kind::TornRecord,
            ack_before_durable: self.kind == Kind::LogAckEarly,
            ignore_damage: self.kind == Kind::IgnoreDamage,
        }
    }

    /// Plants what a client is to do wrong.
    pub fn plant_into(self, client: &bb_client::Client) {
        if let Kind::Client(kind) = self.kind {
            client.plant(kind);
        }
    }
}

/// Switches everything off that is the thread's.
#[cfg(feature = "planted")]
pub fn switch_off() {
    bb_server::planted::set(None);
    bb_transport::planted::reuse_timed_out_buffer(false);
}
