//! What can be set, and what holds between the settings.

use crate::wire::{APPEND_OVERHEAD_BYTES, PIECE_OVERHEAD_BYTES};

/// Times and sizes. All voters of a group should have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Length of a tick: all times are counted in these.
    pub tick_ms: u64,
    /// A leader sends a heartbeat every so many ticks. An idle group of V voters sends
    /// 2 (V - 1) messages in that time.
    pub heartbeat_ticks: u32,
    /// A follower that hears nothing begins an election after at least so many ticks, and a leader
    /// that hears from no quorum for as long steps down.
    pub election_ticks_min: u32,
    /// ... and after at most so many.
    pub election_ticks_max: u32,
    /// The largest message that `Net` takes.
    pub message_bytes_max: usize,
    /// Entries are sent in messages of about this size: heartbeats queue behind them.
    pub append_bytes_max: usize,
    /// The largest proposal.
    pub proposal_bytes_max: usize,
    /// The largest snapshot that is taken from a peer.
    pub snapshot_bytes_max: u64,
    /// A checkpoint is written after so many entries ...
    pub checkpoint_entries: u64,
    /// ... or after so many bytes of them.
    pub checkpoint_bytes: u64,
    /// Entries before a checkpoint that are kept for followers that are a little behind; one that
    /// is further behind gets a snapshot.
    pub keep_entries: u64,
    /// A change of voters that isn't through after this is given up by whoever waits for it: new
    /// voters must learn the log in that time.
    pub change_timeout_ms: u64,
    /// Messages that wait while the store is slow. Beyond, the oldest are dropped, as a network
    /// may.
    pub inbox_messages_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tick_ms: 100,
            heartbeat_ticks: 2,
            election_ticks_min: 10,
            election_ticks_max: 20,
            message_bytes_max: 512 << 10,
            append_bytes_max: 128 << 10,
            proposal_bytes_max: 256 << 10,
            snapshot_bytes_max: 256 << 20,
            checkpoint_entries: 4096,
            checkpoint_bytes: 4 << 20,
            keep_entries: 512,
            change_timeout_ms: 60_000,
            inbox_messages_max: 4096,
        }
    }
}

impl Settings {
    /// What is wrong with them, if anything.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let rules = [
            (self.tick_ms > 0, "tick_ms must not be 0"),
            (self.heartbeat_ticks > 0, "heartbeat_ticks must not be 0"),
            (
                self.election_ticks_min > self.heartbeat_ticks,
                "election_ticks_min must be greater than heartbeat_ticks",
            ),
            (
                self.election_ticks_max > self.election_ticks_min,
                "election_ticks_max must be greater than election_ticks_min: two voters that \
                 always stand at the same time elect nobody",
            ),
            (
                self.message_bytes_max > PIECE_OVERHEAD_BYTES,
                "message_bytes_max must hold a piece of a snapshot",
            ),
            (
                self.append_bytes_max.max(self.proposal_bytes_max) + APPEND_OVERHEAD_BYTES
                    <= self.message_bytes_max,
                "message_bytes_max must hold append_bytes_max and proposal_bytes_max",
            ),
            (self.proposal_bytes_max > 0, "proposal_bytes_max must not be 0"),
            (self.checkpoint_entries > 0, "checkpoint_entries must not be 0"),
            (self.change_timeout_ms > 0, "change_timeout_ms must not be 0"),
            (self.inbox_messages_max > 0, "inbox_messages_max must not be 0"),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, what)| Err(*what))
    }
}
