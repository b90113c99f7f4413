//! A driver whose clock moves only when nobody has anything left to do.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::driver::{Driver, Unpark};
use crate::time::{Instant, WallTime};

/// Virtual time: parking moves the clock to the next timer at once.
///
/// Parking without a timer means that every task waits for something that can never happen; the
/// executor then returns from `run` with a deadlock report instead of calling `park`.
#[derive(Default)]
pub struct VirtualTime {
    now: Cell<Instant>,
}

/// Calendar time at virtual instant zero: 2030-01-01 UTC, so that simulated files never look older
/// than files that a test made on the host.
const EPOCH_NS: i64 = 1_893_456_000_000_000_000;

impl VirtualTime {
    /// A clock at zero.
    pub fn new() -> Rc<Self> {
        Rc::new(Self::default())
    }
}

struct NoUnpark;
impl Unpark for NoUnpark {
    fn unpark(&self) {}
}

impl Driver for VirtualTime {
    fn now(&self) -> Instant {
        self.now.get()
    }

    fn wall(&self) -> WallTime {
        WallTime(EPOCH_NS.saturating_add_unsigned(self.now.get().as_nanos()))
    }

    fn poll(&self) {}

    fn park(&self, deadline: Option<Instant>) {
        if let Some(at) = deadline
            && at > self.now.get()
        {
            self.now.set(at);
        }
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::new(NoUnpark)
    }
}
