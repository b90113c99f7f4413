//! What the executor sees: a clock, and polite waiting.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::ring::Ring;
use super::{Uring, UringError, UringOptions, clock};
use crate::driver::{Driver, Unpark};
use crate::time::{Instant, WallTime};

/// A `sched_yield` with nobody else to run takes well below a microsecond; one that let somebody
/// run takes at least two context switches and what that somebody had to do.
const YIELD_GAVE_CORE_AWAY: Duration = Duration::from_micros(5);

/// The driver over one ring.
pub struct UringDriver {
    ring: Rc<Ring>,
    spin: Duration,
    /// Something came from outside since the last sleep, so more may be near. After a mere timer
    /// there is nothing to spin for: it would be most of what an idle server costs.
    lively: Cell<bool>,
}

impl UringDriver {
    /// A driver over a new ring, and the handle through which tasks use it. With
    /// [`RingOwner::Thread`](super::RingOwner::Thread), call it on the thread that will run the
    /// executor.
    ///
    /// # Errors
    /// When the kernel has no usable `io_uring`.
    pub fn new(options: &UringOptions) -> Result<(Rc<Self>, Uring), UringError> {
        let ring = Ring::new(options)?;
        let driver =
            Rc::new(Self { ring: ring.clone(), spin: options.spin, lively: Cell::new(true) });
        Ok((driver, Uring { ring }))
    }

    /// Hands over what is queued and takes what has ended. True if anything has.
    fn turn(&self) -> bool {
        let any = self.ring.turn() > 0;
        if any {
            self.lively.set(true);
        }
        any
    }

    /// Spins until there is news (true), or sleeping is the better choice.
    fn spin(&self, deadline: Option<Instant>) -> bool {
        let mut now = clock::now();
        let mut until = if self.lively.get() { now + self.spin } else { now };
        if let Some(deadline) = deadline {
            until = until.min(deadline);
        }
        loop {
            if self.ring.wakeup.take() {
                self.lively.set(true);
                return true;
            }
            if self.ring.has_news() && self.turn() {
                return true;
            }
            if now >= until {
                return false;
            }
            // SAFETY: takes no arguments.
            unsafe { libc::sched_yield() };
            let after = clock::now();
            if after - now > YIELD_GAVE_CORE_AWAY {
                return self.ring.has_news() && self.turn();
            }
            now = after;
        }
    }

    fn sleep(&self, deadline: Option<Instant>) {
        let timeout = deadline.map(|at| at - clock::now());
        if timeout == Some(Duration::ZERO) {
            return;
        }
        self.ring.arm_wakeup();
        if self.ring.wakeup.begin_sleep() {
            self.ring.wait(timeout);
            self.ring.wakeup.end_sleep();
        }
    }
}

impl Driver for UringDriver {
    fn now(&self) -> Instant {
        clock::now()
    }

    fn wall(&self) -> WallTime {
        clock::wall()
    }

    fn poll(&self) {
        self.turn();
    }

    fn park(&self, deadline: Option<Instant>) {
        if self.turn() || self.spin(deadline) {
            return;
        }
        self.lively.set(false);
        self.sleep(deadline);
        if self.ring.reap() > 0 {
            self.lively.set(true);
        }
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        self.ring.wakeup.clone()
    }
}
