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
    /// A seed at which it showed: where the quick search begins.
    pub seed: u64,
    /// It shows as a process that does not end.
    pub hangs: bool,
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

    const fn of(
        rule: &'static str,
        name: &'static str,
        kind: Kind,
        family: Family,
        seed: u64,
    ) -> Plant {
        Plant { name, rule, family, seed, hangs: false, kind }
    }

    const fn server(
        rule: &'static str,
        name: &'static str,
        kind: S,
        family: Family,
        seed: u64,
    ) -> Plant {
        of(rule, name, Kind::Server(kind), family, seed)
    }

    const fn client(
        rule: &'static str,
        name: &'static str,
        kind: C,
        family: Family,
        seed: u64,
    ) -> Plant {
        of(rule, name, Kind::Client(kind), family, seed)
    }

    /// All of them, by rule.
    pub const ALL: &[Plant] = &[
        server("1", "skip-horizon", S::SkipHorizon, Family::Away, 39),
        client("1", "drop-sealed-before-commit", C::DropSealedBeforeCommit, Family::Away, 23),
        server("2", "free-at-first-release", S::FreeAtFirstRelease, Family::Hot, 19),
        server("3", "forget-commit-ids", S::ForgetCommitIds, Family::Hot, 0),
        client("3", "skip-reorder-wait", C::SkipReorderWait, Family::Net, 35),
        server("4", "give-block-twice", S::FreeByAddress, Family::Hot, 0),
        server("4", "free-under-reader", S::FreeUnderReader, Family::Calm, 8),
        server("4", "wrong-pg-served", S::WrongPgServed, Family::Hot, 21),
        server("4", "free-before-commit", S::FreeBeforeCommit, Family::Hot, 23),
        server("5", "trust-any-device", S::TrustAnyDevice, Family::Calm, 43),
        of("6", "reuse-timed-out-buffer", Kind::ReuseBuffer, Family::Away, 52),
        server("7", "forget-truncate-epoch", S::ForgetTruncateEpoch, Family::Calm, 0),
        server("7", "old-size-raise", S::OldSizeRaise, Family::Hot, 12),
        server("8", "retry-twice", S::RetryTwice, Family::Net, 11),
        server("8", "drop-before-bfs-agreed", S::DropBeforeBfsAgreed, Family::Calm, 63),
        server("9", "mark-clean-changed", S::MarkCleanChanged, Family::Hot, 5),
        server("9", "prestage-overwrites", S::PrestageOverwrites, Family::Hot, 4),
        server("10", "ignore-hung-write", S::IgnoreHungWrite, Family::Calm, 17),
        server("10", "settle-unproven", S::SettleUnproven, Family::Calm, 60),
        server("10", "sync-without-intent", S::SyncWithoutIntent, Family::Bfs, 33),
        server("11", "drop-dirty-unmounted", S::DropDirtyUnmounted, Family::Bfs, 24),
        of("12", "trust-torn-record", Kind::TornRecord, Family::Calm, 21),
        of("12", "ignore-damage", Kind::IgnoreDamage, Family::Calm, 84),
        server("12", "skip-torn-check", S::SkipTornCheck, Family::Power, 25),
        server("13", "ack-before-flush", S::AckBeforeFlush, Family::Power, 0),
        of("13", "log-ack-before-durable", Kind::LogAckEarly, Family::Power, 8),
        client("13", "fsync-before-commit", C::FsyncBeforeCommit, Family::Calm, 0),
        client("14", "hold-and-wait", C::HoldAndWait, Family::Rot, 8),
        server("15", "forget-unfreed", S::ForgetUnfreed, Family::Net, 30),
        server("16", "ignore-budget", S::IgnoreBudget, Family::Calm, 12),
        server("17", "ignore-capability", S::IgnoreCapability, Family::Calm, 18),
        server("lease", "serve-without-lease", S::ServeWithoutLease, Family::NodesNet, 1),
        server("lease", "skip-lease-wait", S::SkipLeaseWait, Family::NodesNet, 3),
        server("fence", "ignore-configuration", S::IgnoreConfiguration, Family::NodesNet, 1),
        server("commit", "ack-without-backup", S::AckWithoutBackup, Family::NodesCrash, 0),
        server("commit", "backup-acks-early", S::BackupAcksEarly, Family::NodesPower, 23),
        server("take-over", "take-over-without-all", S::TakeOverWithoutAll, Family::NodesPower, 4),
        server("filling", "fill-half", S::FillHalf, Family::NodesCrash, 18),
        server(
            "hand-over",
            "serve-while-handing-over",
            S::ServeWhileHandingOver,
            Family::NodesCalm,
            35,
        ),
        server("1", "drop-horizon-at-take-over", S::DropHorizonAtTakeOver, Family::NodesCrash, 1),
        server("1", "unknown-after-lost-state", S::UnknownAfterLostState, Family::NodesCalm, 11),
        server("12", "ignore-short-log", S::IgnoreShortLog, Family::NodesPower, 23),
        server("filling", "install-stale-snapshot", S::InstallStaleSnapshot, Family::NodesNet, 33),
        server("bfs", "ignore-guard", S::IgnoreGuard, Family::Bfs, 0),
        client("read", "trust-crc", C::TrustCrc, Family::Rot, 1),
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
