//! What this crate needs from its surroundings.

use std::fmt;
use std::pin::Pin;

/// The number of a voter: names one log. A voter whose log was lost or damaged comes back under a
/// new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VoterNumber(pub u64);

impl fmt::Debug for VoterNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl fmt::Display for VoterNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The store failed, and what it was given may be lost: the voter stops.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the store of the consensus log failed: {reason}")]
pub struct StoreFailed {
    /// What the store says.
    pub reason: String,
}

/// Resolves when it is durable.
pub type Durable = Pin<Box<dyn Future<Output = Result<(), StoreFailed>>>>;

/// A durable log of records with a checkpoint at its beginning.
///
/// Calls take effect in the order in which they are made (not first polled). What replay gives
/// after a crash is the last checkpoint that is durable, and a prefix of the records appended
/// after that call, with at least all those whose future has resolved. While a checkpoint is being
/// written, records are appended after it.
pub trait Store {
    /// Appends records, in order.
    fn append(&self, records: Vec<Vec<u8>>) -> Durable;

    /// Replaces everything appended before this call.
    fn checkpoint(&self, snapshot: Vec<u8>) -> Durable;
}

/// Carries messages to other voters: may lose, repeat, delay and reorder them, and must not block.
pub trait Net {
    /// Sends messages of up to `Settings::message_bytes_max` each, fire and forget. They reach the
    /// peer's `Consensus::step` one by one.
    fn send(&self, to: VoterNumber, messages: Vec<Vec<u8>>);
}

/// A snapshot that the machine can't take in: of a newer version, or damaged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the snapshot can't be taken in: {reason}")]
pub struct SnapshotRefused {
    /// Why.
    pub reason: String,
}

/// Where a command stands in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Index of its entry.
    pub index: u64,
    /// Term in which its proposer led. A command that says in which term it was meant to be
    /// proposed (`Consensus::term`) can be void in any other.
    pub term: u64,
}

/// What the log of commands drives. Called one at a time, never again for the same index, except
/// that a restart begins anew at a snapshot. A read of it is current right after
/// `Consensus::read_barrier`. No method may call back into `Consensus`.
pub trait Machine {
    /// Applies a command. The outcome depends on the state, the command and its place only.
    fn apply(&mut self, position: Position, data: &[u8]) -> Vec<u8>;

    /// The whole state.
    fn snapshot(&self) -> Vec<u8>;

    /// Becomes what a snapshot says, in place of what it is.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotRefused>;
}
