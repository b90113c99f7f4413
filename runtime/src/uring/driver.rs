//! What the executor sees: a clock, and polite waiting.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::ring::Ring;
use super::sleeper::RingSleeper;
use super::{RingOwner, Uring, UringError, UringOptions, clock};
use crate::driver::{Driver, NoSleeper, Rest, Sleeper, Unpark};
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

/// What a look while spinning shows.
#[derive(Clone, Copy)]
enum Look {
    News,
    /// Nothing yet: let others have the core, and look again.
    GiveWay,
    /// Nothing, and spinning is not worth it (any more).
    Quiet,
}

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
    /// When the spin ends that is under way.
    spin_until: Cell<Option<Instant>>,
    /// For a ring whose process has several threads.
    sleeper: Option<Arc<RingSleeper>>,
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
        let sleeper = match options.owner {
            // Such a ring's completions come to nobody but the thread that enters it.
            RingOwner::Thread => None,
            RingOwner::Process => Some(Arc::new(ring.sleeper()?)),
        };
        let driver = Rc::new(Self {
            ring: ring.clone(),
            spin: options.spin,
            lively: Cell::new(true),
            spin_again: Cell::new(Instant::ZERO),
            spin_pause: Cell::new(SPIN_PAUSE_MIN),
            spin_until: Cell::new(None),
            sleeper,
        });
        Ok((driver, Uring { ring }))
    }

    /// Hands over what is queued and takes what has ended. True if anything has.
    fn turn(&self) -> bool {
        let any = self.ring.turn() > 0;
        if any {
            self.lively.set(true);
            self.spin_until.set(None);
        }
        any
    }

    /// Spins until there is news (true), or sleeping is the better choice.
    fn spin(&self, deadline: Option<Instant>) -> bool {
        let mut gave_way = Duration::ZERO;
        loop {
            match self.look(deadline, gave_way) {
                Look::News => return true,
                Look::Quiet => return false,
                Look::GiveWay => {
                    let begin = clock::now();
                    // SAFETY: takes no arguments.
                    unsafe { libc::sched_yield() };
                    gave_way = clock::now() - begin;
                }
            }
        }
    }

    /// One look while spinning, after a yield that took `gave_way` (none before the first look).
    fn look(&self, deadline: Option<Instant>, gave_way: Duration) -> Look {
        let now = clock::now();
        let until = *self.spin_until.get().get_or_insert_with(|| self.spin_end(now, deadline));
        self.spin_until.set(Some(until));
        if gave_way > YIELD_MET_A_HOG {
            self.stop_spinning(now);
        }
        if self.ring.wakeup.take() {
            self.lively.set(true);
            return self.looked(Look::News);
        }
        if self.ring.has_news() && self.turn() {
            return self.looked(Look::News);
        }
        if gave_way > YIELD_GAVE_CORE_AWAY || now >= until {
            return self.looked(Look::Quiet);
        }
        Look::GiveWay
    }

    /// The last look of a spin.
    fn looked(&self, look: Look) -> Look {
        self.spin_until.set(None);
        look
    }

    fn spin_end(&self, now: Instant, deadline: Option<Instant>) -> Instant {
        let worthwhile = self.lively.get() && now >= self.spin_again.get();
        let until = if worthwhile { now + self.spin } else { now };
        deadline.map_or(until, |deadline| until.min(deadline))
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

    fn submit(&self) -> bool {
        self.ring.submit_queued()
    }

    fn rest(&self, deadline: Option<Instant>) -> Rest {
        let Some(sleeper) = &self.sleeper else {
            self.park(deadline);
            return Rest::Again;
        };
        // Each look of a spin takes what there is by itself.
        if self.spin_until.get().is_none() && self.turn() {
            return Rest::Again;
        }
        match self.look(deadline, sleeper.gave_way()) {
            Look::News => return Rest::Again,
            Look::GiveWay => return Rest::GiveWay,
            Look::Quiet => self.lively.set(false),
        }
        self.ring.arm_wakeup();
        // Where the request that an unpark ends is not with the kernel, it is no time to sleep.
        if self.ring.submit_queued() && self.ring.wakeup.begin_sleep() {
            return Rest::Sleep;
        }
        Rest::Again
    }

    fn end_rest(&self) {
        self.ring.wakeup.end_sleep();
    }

    fn sleeper(&self) -> Arc<dyn Sleeper> {
        match &self.sleeper {
            Some(sleeper) => sleeper.clone(),
            None => Arc::new(NoSleeper),
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
