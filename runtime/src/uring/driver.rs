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

/// Somebody who computes takes a scheduler's slice at each yield (4 ms were seen), while a sleeper
/// that is woken comes before him: with such a neighbour, a round trip takes 16 ms with spinning
/// and 50 us without. Peers that wait politely themselves give the core back much sooner.
const YIELD_MET_A_HOG: Duration = Duration::from_micros(500);

/// After such a yield there is no spinning for a while, twice as long each time.
const SPIN_PAUSE_MIN: Duration = Duration::from_millis(20);
const SPIN_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The driver over one ring.
pub struct UringDriver {
    ring: Rc<Ring>,
    spin: Duration,
    /// Something came from outside since the last sleep, so more may be near. After a mere timer
    /// there is nothing to spin for: it would be most of what an idle server costs.
    lively: Cell<bool>,
    /// No spinning before this time, ...
    spin_again: Cell<Instant>,
    /// ... and this much longer after the next yield that gives the core away.
    spin_pause: Cell<Duration>,
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
        let driver = Rc::new(Self {
            ring: ring.clone(),
            spin: options.spin,
            lively: Cell::new(true),
            spin_again: Cell::new(Instant::ZERO),
            spin_pause: Cell::new(SPIN_PAUSE_MIN),
        });
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
        let worthwhile = self.lively.get() && now >= self.spin_again.get();
        let mut until = if worthwhile { now + self.spin } else { now };
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
                if after - now > YIELD_MET_A_HOG {
                    self.stop_spinning(after);
                }
                return self.ring.has_news() && self.turn();
            }
            now = after;
        }
    }

    /// A yield that ended `now` gave a whole slice away.
    fn stop_spinning(&self, now: Instant) {
        let pause = self.spin_pause.get();
        // Long without such a neighbour: he is new.
        let all_was_well = now - self.spin_again.get() > pause * 2;
        let pause = if all_was_well { SPIN_PAUSE_MIN } else { (pause * 2).min(SPIN_PAUSE_MAX) };
        self.spin_again.set(now + pause);
        self.spin_pause.set(pause);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_with_a_hog_is_left_alone_for_longer_and_longer_and_forgiven_later() {
        let (driver, _uring) = UringDriver::new(&UringOptions::for_reactor()).expect("ring");
        let mut now = Instant::ZERO + Duration::from_secs(100);
        let mut pauses_ms = Vec::new();
        for _ in 0..10 {
            driver.stop_spinning(now);
            pauses_ms.push((driver.spin_again.get() - now).as_millis());
            now = driver.spin_again.get() + Duration::from_millis(4);
        }
        assert_eq!(pauses_ms, [20, 40, 80, 160, 320, 640, 1280, 2000, 2000, 2000]);
        now = driver.spin_again.get() + SPIN_PAUSE_MAX * 3;
        driver.stop_spinning(now);
        assert_eq!(driver.spin_again.get() - now, SPIN_PAUSE_MIN);
    }
}
