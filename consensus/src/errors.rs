//! What can go wrong, by what a caller can do about it.

use std::collections::BTreeSet;

use crate::envelope::DecodeError;
use crate::parts::VOTERS_MAX;
use crate::{RecoverError, SnapshotRefused, StoreFailed, VoterNumber};

/// Another voter may be the leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not the leader (it may be {hint:?})")]
pub struct NotLeader {
    /// Who leads, as far as is known.
    pub hint: Option<VoterNumber>,
}

/// Why a proposal has no outcome.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// It was not proposed.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// The leadership ended on the way: it may be applied, now or later, or never.
    #[error("the leadership was lost: the proposal may or may not be applied")]
    Lost,
    /// Empty, or larger than `Settings::proposal_bytes_max`.
    #[error("a proposal of {bytes} bytes: must be 1 to {max}")]
    Size {
        /// Its size.
        bytes: usize,
        /// The largest allowed.
        max: usize,
    },
}

/// Why the voters were not changed, or may not have been.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    /// Only the leader can. A change that it began may go on under the next one.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// It takes longer than `Settings::change_timeout_ms`. What was begun goes on; no further step
    /// is begun.
    #[error("the voters have not changed within {timeout_ms} ms; still learning: {learners:?}")]
    Slow {
        /// The time it had.
        timeout_ms: u64,
        /// New voters that don't have the log yet.
        learners: BTreeSet<VoterNumber>,
    },
    /// No voter at all, too many, or number 0.
    #[error("{count} voters wanted: must be 1 to {VOTERS_MAX}, none of them number 0")]
    Impossible {
        /// How many were wanted.
        count: usize,
    },
}

/// Why a message was not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StepError {
    /// Not a message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It says that it is from somebody else.
    #[error("a message of voter {claimed} came from voter {from}")]
    FalseName {
        /// Who sent it.
        from: VoterNumber,
        /// Who wrote it, as it says.
        claimed: VoterNumber,
    },
    /// It is for another voter, perhaps one that this node was before.
    #[error("a message for voter {to} came to voter {me}")]
    NotForMe {
        /// Whom it is for.
        to: VoterNumber,
        /// Who we are.
        me: VoterNumber,
    },
    /// This voter has stopped.
    #[error("the voter has stopped: {0}")]
    Stopped(StopReason),
}

/// Why a voter stopped for good. It answers nothing any more; the process must start it anew (or,
/// with a damaged log, under a new number).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StopReason {
    /// The store failed: what is durable is not known.
    #[error(transparent)]
    Store(#[from] StoreFailed),
    /// The machine can't take in the leader's snapshot.
    #[error(transparent)]
    Machine(#[from] SnapshotRefused),
    /// The leader knows that this voter had acknowledged entries that it doesn't have. It must
    /// come back under a new number.
    #[error(
        "the log ends at {last}, but acknowledged entries up to {commit} at least: it is damaged"
    )]
    LogLost {
        /// What the leader knows it had.
        commit: u64,
        /// What it has.
        last: u64,
    },
    /// An entry of the log that can't be applied.
    #[error("an entry of the log can't be applied: {what}")]
    Log {
        /// What is wrong with it.
        what: String,
    },
}

/// Why a voter did not start.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartError {
    /// The log can't be continued.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The machine can't take in the snapshot in the log.
    #[error(transparent)]
    Machine(#[from] SnapshotRefused),
    /// Settings that can't work.
    #[error("{0}")]
    Settings(&'static str),
    /// Voter number 0 means nobody.
    #[error("0 is no voter number")]
    Number,
    /// The library refuses the log.
    #[error("the log can't be continued: {0}")]
    Library(String),
}

/// Why a group was not created.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CreateError {
    /// No voter at all, too many, number 0, or a set without this voter.
    #[error("{count} voters: must be 1 to {VOTERS_MAX}, this one among them, none number 0")]
    Impossible {
        /// How many.
        count: usize,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreFailed),
}
