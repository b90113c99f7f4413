//! What allows a node to serve as a primary.

use std::cell::Cell;
use std::time::Duration;

use bb_cluster::ClusterMap;
use bb_runtime::{Instant, Rt};

use crate::planted::{self, Planted};

/// A node's lease. It counts only under a map that is at least as new as it says.
pub struct Lease {
    rt: Rt,
    until: Cell<Instant>,
    /// A lease that counts when a newer map is in force: until when, under which epoch.
    next: Cell<Option<(Instant, u64)>>,
    held: Cell<bool>,
    ended: Cell<bool>,
}

impl Lease {
    /// None yet.
    pub fn new(rt: Rt) -> Self {
        let until = Cell::new(rt.now());
        Self { rt, until, next: Cell::new(None), held: Cell::new(false), ended: Cell::new(false) }
    }

    /// One was granted, of that length, under `epoch`; it was asked for at `asked`.
    pub fn granted(&self, asked: Instant, length: Duration, epoch: u64) {
        self.next.set(Some((asked + length, epoch)));
    }

    /// True while this node may answer for its partitions; `epoch` is that of the map in force.
    pub fn is_valid(&self, epoch: u64) -> bool {
        if let Some((until, since)) = self.next.get()
            && epoch >= since
        {
            self.next.set(None);
            self.until.set(self.until.get().max(until));
            self.held.set(true);
        }
        let forever = self.held.get() && planted::is(Planted::ServeWithoutLease);
        !self.ended.get() && (self.rt.now() < self.until.get() || forever)
    }

    /// True once a lease has counted: the map is not one from before this process.
    pub fn was_held(&self) -> bool {
        self.held.get()
    }

    /// No lease counts any more.
    pub fn end(&self) {
        self.ended.set(true);
    }
}

/// Since when the leader has refused a lease without a break.
#[derive(Default)]
pub(super) struct Refused(Option<Instant>);

impl Refused {
    /// Once more; for how long now.
    pub fn again(&mut self, now: Instant) -> Duration {
        now.since(*self.0.get_or_insert(now))
    }
}

/// `exit_ms`: a process that the leader refuses a lease for so long ends, and is started anew. Twice
/// what it takes the leader to give up a silent node and to take its roles away: what can come true
/// in the map has come true by then, so the process is one that the map can neither keep nor drop.
pub(super) fn exit_after(map: &ClusterMap) -> Duration {
    let lease = u64::from(map.lease_ms) + u64::from(map.drift_ms);
    Duration::from_millis(2 * (lease + 3 * u64::from(map.suspect_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_counts_from_the_first_of_its_row() {
        let executor = bb_runtime::Executor::simulated(1);
        let rt = executor.rt();
        executor.block_on(async {
            let mut refused = Refused::default();
            assert_eq!(refused.again(rt.now()), Duration::ZERO);
            rt.sleep(Duration::from_secs(3)).await;
            assert_eq!(refused.again(rt.now()), Duration::from_secs(3));
            refused = Refused::default();
            assert_eq!(refused.again(rt.now()), Duration::ZERO);
        });
        let map = ClusterMap {
            lease_ms: 3_000,
            drift_ms: 130,
            suspect_ms: 2_000,
            ..ClusterMap::default()
        };
        assert_eq!(exit_after(&map), Duration::from_millis(18_260));
    }

    #[test]
    fn a_lease_counts_from_when_it_was_asked_for_and_under_its_map_only() {
        let executor = bb_runtime::Executor::simulated(1);
        let rt = executor.rt();
        executor.block_on(async {
            let lease = Lease::new(rt.clone());
            let asked = rt.now();
            rt.sleep(Duration::from_millis(400)).await;
            lease.granted(asked, Duration::from_secs(1), 5);
            assert!(!lease.is_valid(4) && !lease.was_held());
            assert!(lease.is_valid(5) && lease.was_held());
            rt.sleep(Duration::from_millis(599)).await;
            assert!(lease.is_valid(5));
            rt.sleep(Duration::from_millis(1)).await;
            assert!(!lease.is_valid(5));
        });
    }
}
