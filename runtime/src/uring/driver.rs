//! What the executor sees: a clock, and polite waiting.

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
        let driver = Rc::new(Self { ring: ring.clone(), spin: options.spin });
        Ok((driver, Uring { ring }))
    }

    /// Spins until there is news (true), or sleeping is the better choice.
    fn spin(&self, deadline: Option<Instant>) -> bool {
        let mut now = clock::now();
        let mut until = now + self.spin;
        if let Some(deadline) = deadline {
            until = until.min(deadline);
        }
        loop {
            if self.ring.wakeup.take() {
                return true;
            }
            if self.ring.has_news() && self.ring.turn() > 0 {
                return true;
            }
            if now >= until {
                return false;
            }
            // SAFETY: takes no arguments.
            unsafe { libc::sched_yield() };
            let after = clock::now();
            if after - now > YIELD_GAVE_CORE_AWAY {
                return self.ring.has_news() && self.ring.turn() > 0;
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
        self.ring.turn();
    }

    fn park(&self, deadline: Option<Instant>) {
        if self.ring.turn() > 0 || self.spin(deadline) {
            return;
        }
        self.sleep(deadline);
        self.ring.reap();
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        self.ring.wakeup.clone()
    }
}
