//! What a node is to a partition, and what a primary knows of the others.

use std::collections::BTreeMap;

use bb_proto::{ConfigNumber, NodeId};

use crate::planted::{self, Planted};

/// The role of this node's replica.
#[derive(Debug)]
pub(super) enum Role {
    /// Follows a primary.
    Member(Matched),
    /// Gets everything, and does not count yet.
    Filling(Matched),
    /// Numbers.
    Primary(Primary),
    /// Was discarded.
    Absent,
}

/// How far a follower's records are known to be those of the sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Matched {
    /// The sender's configuration.
    pub config: ConfigNumber,
    /// Sequence of the last record that was compared.
    pub end: u64,
}

/// Where a primary is in its tenure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Asks the members what they have: serves nothing, commits nothing new.
    Asking,
    /// Has all members log the chosen tail.
    Spreading,
    /// Serves.
    Serving,
    /// Gives its role away: takes no new requests, and ends what was begun.
    Draining,
    /// Has ended everything: what it knows is what the next primary will know.
    HandingOver,
}

/// What a primary knows.
#[derive(Debug)]
pub(super) struct Primary {
    /// Its tenure.
    pub since: u64,
    pub phase: Phase,
    pub followers: BTreeMap<NodeId, Follower>,
    /// Snapshots on their way: where they end.
    pub snapshots: BTreeMap<NodeId, u64>,
}

/// What a primary knows of another node that gets its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Follower {
    /// The next record to be sent.
    pub next: u64,
    /// Everything up to here is logged there.
    pub acked: u64,
    /// Its acknowledgement is needed.
    pub counts: bool,
    /// It is not a member yet.
    pub filling: bool,
    /// Where a filling node must be before its membership is asked for.
    pub target: Option<u64>,
}

impl Follower {
    /// A member that has everything up to `acked`.
    pub const fn member(acked: u64) -> Self {
        Self { next: acked + 1, acked, counts: true, filling: false, target: None }
    }

    /// A filling node that has just installed a snapshot.
    pub const fn filled(acked: u64) -> Self {
        Self { next: acked + 1, acked, counts: false, filling: true, target: None }
    }
}

impl Role {
    /// A member that has compared nothing yet.
    pub fn member() -> Self {
        Self::Member(Matched::default())
    }

    /// The phase of a primary.
    pub const fn phase(&self) -> Option<Phase> {
        match self {
            Self::Primary(primary) => Some(primary.phase),
            _ => None,
        }
    }

    /// Sequence up to which everything is committed, if `durable` is durable here and others have
    /// told of `told`.
    pub fn commit_point(&self, told: u64, durable: u64) -> u64 {
        match self {
            Self::Member(matched) | Self::Filling(matched) => told.min(matched.end),
            Self::Primary(primary) if primary.phase == Phase::Asking => told,
            Self::Primary(primary) => {
                if planted::is(Planted::AckWithoutBackup) {
                    return durable.max(told);
                }
                let needed = primary.followers.values().filter(|follower| follower.counts);
                let acked = needed.map(|follower| follower.acked).min().unwrap_or(u64::MAX);
                durable.min(acked).max(told)
            }
            Self::Absent => 0,
        }
    }
}
