//! How much payload peers may have under way, and the buffers behind it (rule 14).
//!
//! The budget is cut into one pot per lane, so that clients can never take what replication needs.
//! Each connection is granted an equal share of its lane's pot, but at least one frame's payload.
//! Where there are so many connections that these smallest windows exceed the pot, receiving waits
//! for the pot: TCP then slows the peers down. That cannot deadlock: a buffer of a pot is only ever
//! waited for by the receiver of a connection, never by the work that gives it back.

use std::cell::Cell;

use bb_proto::PAYLOAD_BYTES_MAX;
use bb_runtime::SLAB_BYTES_MIN;
use bb_runtime::sync::{Permit, Semaphore};

use crate::link::Lane;

/// Sixteenths of the budget for control, metadata and bulk. Control carries next to no payload;
/// replication carries inline groups and snapshots.
const SHARES: [u64; Lane::COUNT] = [1, 3, 12];
const SHARES_TOTAL: u64 = 16;

/// A payload of the largest size, for which there must always be room.
const FRAME: u64 = PAYLOAD_BYTES_MAX as u64;

/// Which part of a process's budget a server is given. All parts together are no more than the
/// whole, as long as that is [`Part::bytes_min`] or more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Part {
    /// All of it: a process with one reactor.
    #[default]
    Whole,
    /// The reactor that accepts connections, and keeps those for control and metadata.
    First {
        /// How many others there are, at least one.
        others: u64,
    },
    /// One of the others: bulk.
    Other {
        /// How many of these there are, at least one.
        others: u64,
    },
}

impl Part {
    /// The smallest budget of a process with so many reactors in which every part of every pot has
    /// room for a frame: 16 MiB for each.
    pub const fn bytes_min(reactors: u64) -> u64 {
        SHARES_TOTAL * FRAME * reactors
    }

    /// Its part of the whole pots. Each reactor has a little of each: whoever says at first that
    /// it wants another lane than it is taken for is served all the same.
    fn of(self, whole: [u64; Lane::COUNT]) -> [u64; Lane::COUNT] {
        let [control, metadata, bulk] = whole;
        match self {
            Self::Whole => whole,
            Self::First { others } => {
                let rest = |pot: u64| pot.saturating_sub(others * FRAME);
                [rest(control), rest(metadata), FRAME]
            }
            Self::Other { others } => [FRAME, FRAME, bulk.saturating_sub(FRAME) / others.max(1)],
        }
    }
}

struct Pot {
    bytes: u64,
    free: Semaphore,
    connections: Cell<u64>,
}

pub(crate) struct Budget {
    pots: [Pot; Lane::COUNT],
    window_max: u32,
}

impl Budget {
    pub(crate) fn new(bytes: u64, part: Part, window_max: u32) -> Self {
        let pots = part.of(SHARES.map(|share| bytes / SHARES_TOTAL * share)).map(|bytes| {
            // Less than one frame could never receive one.
            let bytes = bytes.max(FRAME);
            Pot { bytes, free: Semaphore::new(bytes), connections: Cell::new(0) }
        });
        Self { pots, window_max: window_max.max(PAYLOAD_BYTES_MAX) }
    }

    /// What to grant to a connection of `lane` now.
    pub(crate) fn window(&self, lane: Lane) -> u32 {
        let pot = &self.pots[lane as usize];
        let share = pot.bytes / pot.connections.get().max(1);
        u32::try_from(share).unwrap_or(u32::MAX).clamp(PAYLOAD_BYTES_MAX, self.window_max)
    }

    pub(crate) fn opened(&self, lane: Lane) {
        let count = &self.pots[lane as usize].connections;
        count.set(count.get() + 1);
    }

    pub(crate) fn closed(&self, lane: Lane) {
        let count = &self.pots[lane as usize].connections;
        count.set(count.get() - 1);
    }

    /// Waits for room for a payload. Counted in whole slabs, as the pool hands them out.
    pub(crate) async fn room(&self, lane: Lane, payload_len: u32) -> Permit {
        let slab = u64::from(payload_len).next_power_of_two().max(SLAB_BYTES_MIN as u64);
        self.pots[lane as usize].free.acquire(slab).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pots(bytes: u64, part: Part) -> [u64; Lane::COUNT] {
        Budget::new(bytes, part, PAYLOAD_BYTES_MAX).pots.map(|pot| pot.bytes)
    }

    #[test]
    fn rule_14_the_parts_of_all_reactors_are_no_more_than_the_whole() {
        for reactors in 2..=64 {
            let others = reactors - 1;
            for bytes in [1, 2, 3].map(|times| Part::bytes_min(reactors) * times) {
                let first = pots(bytes, Part::First { others });
                let other = pots(bytes, Part::Other { others });
                let all: u64 = first.iter().sum::<u64>() + others * other.iter().sum::<u64>();
                assert!(all <= bytes, "{reactors} reactors: {all} of {bytes}");
                assert!(first.iter().chain(&other).all(|pot| *pot >= FRAME));
                // And hardly less.
                assert!(all + others * 16 > bytes, "{reactors} reactors: {all} of {bytes}");
            }
        }
    }

    #[test]
    fn others_have_what_clients_send_and_the_first_what_servers_send() {
        let mib = [1, 3, 12].map(|share| share << 22);
        assert_eq!(pots(64 << 20, Part::Whole), mib);
        assert_eq!(pots(64 << 20, Part::First { others: 1 }), [3 << 20, 11 << 20, 1 << 20]);
        assert_eq!(pots(64 << 20, Part::Other { others: 1 }), [1 << 20, 1 << 20, 47 << 20]);
    }
}
