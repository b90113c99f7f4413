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
    pub(crate) fn new(bytes: u64, window_max: u32) -> Self {
        let pots = SHARES.map(|share| {
            // Less than one frame could never receive one.
            let bytes = (bytes / 16 * share).max(u64::from(PAYLOAD_BYTES_MAX));
            Pot { bytes, free: Semaphore::new(bytes), connections: Cell::new(0) }
        });
        Self { pots, window_max: window_max.max(PAYLOAD_BYTES_MAX) }
    }

    /// The smallest budget in which every pot is honest: 16 MiB.
    pub(crate) const BYTES_MIN: u64 = 16 * PAYLOAD_BYTES_MAX as u64;

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
