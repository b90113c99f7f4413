//! Room in the ring, reserved by class (DESIGN.md, rule 14).
//!
//! Each rank has a floor: what must stay free after it took its part. Checkpoints have a reserve
//! that nobody else may touch, because only they move the tail; above it each class leaves the
//! reserves of the classes before it alone. Whoever waits is served by rank, then by arrival.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

use crate::ids::Class;

/// Checkpoints, then the five classes.
pub(crate) const RANKS: usize = 6;
/// The rank of checkpoints and retirements.
pub(crate) const CHECKPOINT_RANK: usize = 0;

pub(crate) const fn rank(class: Class) -> usize {
    match class {
        Class::Control => 1,
        Class::Replication => 2,
        Class::Reclaim => 3,
        Class::Client => 4,
        Class::Rebuild => 5,
    }
}

/// Ring bytes that only some may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserves {
    /// For checkpoints alone. It must hold the snapshots of all streams that together pin the tail;
    /// the sum of all snapshots is always enough.
    pub checkpoint_bytes: u64,
    /// For [`Class::Control`] and checkpoints.
    pub control_bytes: u64,
    /// For [`Class::Replication`] and those before it.
    pub replication_bytes: u64,
    /// For [`Class::Reclaim`] and those before it.
    pub reclaim_bytes: u64,
    /// For [`Class::Client`] and those before it: what rebuild must leave.
    pub client_bytes: u64,
}

impl Reserves {
    /// A quarter of the ring for checkpoints, a sixteenth for each of replication and reclaim, a
    /// thirty-second for control, an eighth that rebuild leaves to clients: clients fill a little
    /// more than half.
    pub fn for_ring(ring_bytes: u64) -> Self {
        Self {
            checkpoint_bytes: ring_bytes / 4,
            control_bytes: ring_bytes / 32,
            replication_bytes: ring_bytes / 16,
            reclaim_bytes: ring_bytes / 16,
            client_bytes: ring_bytes / 8,
        }
    }

    fn floors(&self) -> [u64; RANKS] {
        let mut floors = [0; RANKS];
        let parts = [
            self.checkpoint_bytes,
            self.control_bytes,
            self.replication_bytes,
            self.reclaim_bytes,
            self.client_bytes,
        ];
        for (index, part) in parts.into_iter().enumerate() {
            floors[index + 1] = floors[index] + part;
        }
        floors
    }
}

pub(crate) struct Waiter {
    cost: u64,
    pub(crate) granted: Cell<bool>,
    pub(crate) gone: Cell<bool>,
    pub(crate) waker: RefCell<Option<Waker>>,
}

/// The ring's accounts.
pub(crate) struct Space {
    /// Ring bytes without what is always kept for the end of a lap and for restarts.
    usable: u64,
    floors: [u64; RANKS],
    /// LSN below which the superblock says that nothing is needed.
    trim: u64,
    /// LSN up to which groups have their place.
    head: u64,
    reserved: u64,
    queues: [VecDeque<Rc<Waiter>>; RANKS],
}

impl Space {
    pub(crate) fn new(ring_bytes: u64, slack: u64, reserves: &Reserves) -> Self {
        Self {
            usable: ring_bytes - slack,
            floors: reserves.floors(),
            trim: 0,
            head: 0,
            reserved: 0,
            queues: Default::default(),
        }
    }

    /// The largest request of a rank that an empty ring could satisfy.
    pub(crate) fn largest(&self, rank: usize) -> u64 {
        self.usable.saturating_sub(self.floors[rank])
    }

    pub(crate) fn free(&self) -> u64 {
        self.usable.saturating_sub(self.head - self.trim + self.reserved)
    }

    pub(crate) fn used(&self) -> u64 {
        self.head - self.trim
    }

    pub(crate) fn reserved(&self) -> u64 {
        self.reserved
    }

    pub(crate) fn trim(&self) -> u64 {
        self.trim
    }

    fn fits(&self, rank: usize, cost: u64) -> bool {
        self.free() >= cost.saturating_add(self.floors[rank])
    }

    pub(crate) fn waiting(&self) -> bool {
        self.queues.iter().any(|queue| !queue.is_empty())
    }

    /// Takes `cost` now, unless somebody of this or a more urgent rank waits.
    pub(crate) fn try_take(&mut self, rank: usize, cost: u64) -> bool {
        let others = self.queues[..=rank].iter().any(|queue| !queue.is_empty());
        let fits = !others && self.fits(rank, cost);
        if fits {
            self.reserved += cost;
        }
        fits
    }

    /// Takes `cost` now for something small that cannot wait, past those who do.
    pub(crate) fn take_urgent(&mut self, rank: usize, cost: u64) -> bool {
        let fits = self.fits(rank, cost);
        if fits {
            self.reserved += cost;
        }
        fits
    }

    pub(crate) fn enqueue(&mut self, rank: usize, cost: u64) -> Rc<Waiter> {
        let waiter = Rc::new(Waiter {
            cost,
            granted: Cell::new(false),
            gone: Cell::new(false),
            waker: RefCell::new(None),
        });
        self.queues[rank].push_back(waiter.clone());
        waiter
    }

    /// Gives back what was not used.
    pub(crate) fn give(&mut self, cost: u64) {
        self.reserved -= cost;
    }

    /// `cost` that was reserved has become a place in the ring.
    pub(crate) fn settle(&mut self, cost: u64, head: u64) {
        self.reserved -= cost;
        self.set_head(head);
    }

    pub(crate) fn set_head(&mut self, head: u64) {
        self.head = head;
    }

    pub(crate) fn set_trim(&mut self, trim: u64) {
        self.trim = trim;
    }

    /// Serves those who wait, as far as there is room. The wakers are for the caller to wake once
    /// it has let go of the accounts.
    #[must_use]
    pub(crate) fn grant(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for rank in 0..RANKS {
            while let Some(waiter) = self.queues[rank].front() {
                if !waiter.gone.get() {
                    // A smaller request of a later rank must not starve this one.
                    if !self.fits(rank, waiter.cost) {
                        return wakers;
                    }
                    self.reserved += waiter.cost;
                    waiter.granted.set(true);
                    wakers.extend(waiter.waker.borrow_mut().take());
                }
                self.queues[rank].pop_front();
            }
        }
        wakers
    }

    /// Lets everybody look again: the log has failed.
    pub(crate) fn abandon(&mut self) -> Vec<Waker> {
        let queues = std::mem::take(&mut self.queues);
        queues.iter().flatten().filter_map(|waiter| waiter.waker.borrow_mut().take()).collect()
    }
}
