//! What an executor needs from below: a clock, and a way to wait for the outside world.

use std::sync::Arc;

use crate::time::{Instant, WallTime};

/// Wakes a parked executor from any thread.
pub trait Unpark: Send + Sync {
    /// Makes the current or the next [`Driver::park`] return at once.
    fn unpark(&self);
}

/// What to do where nothing is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Something may have happened: look again.
    Again,
    /// [`Sleeper::give_way`], then look again.
    GiveWay,
    /// [`Sleeper::sleep`].
    Sleep,
}

/// Waits for an executor without touching it, so that others can use it meanwhile.
pub trait Sleeper: Send + Sync {
    /// Waits until `deadline` (forever where there is none), a completion that nobody has taken,
    /// or an unpark; now and then for less.
    fn sleep(&self, deadline: Option<Instant>);
    /// Lets another thread have the core for a moment.
    fn give_way(&self);
}

/// For drivers that are parked at once.
pub(crate) struct NoSleeper;

impl Sleeper for NoSleeper {
    fn sleep(&self, _deadline: Option<Instant>) {}
    fn give_way(&self) {}
}

/// The clock and the waiting room under an executor.
///
/// The executor calls [`Driver::poll`] often while it has work and [`Driver::park`] when it has
/// none. Completions wake tasks through their wakers; the driver knows nothing of tasks.
pub trait Driver {
    /// Time now.
    fn now(&self) -> Instant;
    /// Calendar time now.
    fn wall(&self) -> WallTime;
    /// Hands queued submissions to the outside world and takes finished completions, without
    /// waiting.
    fn poll(&self);
    /// Waits until `deadline` (forever where there is none), a completion, or an unpark.
    fn park(&self, deadline: Option<Instant>);
    /// As [`Driver::poll`], but leaves completions to the thread that sleeps for them. False where
    /// not everything could be handed over yet.
    fn submit(&self) -> bool {
        self.poll();
        true
    }
    /// A [`Driver::park`] in pieces, for executors that several threads drive in turn: does not
    /// wait where it can be avoided, but says how to. After [`Rest::Sleep`], an unpark ends the
    /// sleep until [`Driver::end_rest`] is called.
    fn rest(&self, deadline: Option<Instant>) -> Rest {
        self.park(deadline);
        Rest::Again
    }
    /// Whoever rested is back. Unparks from before that are forgotten: he looks at everything now.
    fn end_rest(&self) {}
    /// What to wait with where [`Driver::rest`] says so.
    fn sleeper(&self) -> Arc<dyn Sleeper> {
        Arc::new(NoSleeper)
    }
    /// A handle that ends a park from another thread.
    fn unparker(&self) -> Arc<dyn Unpark>;
}

/// A source that is polled because it cannot wake anybody (SPDK queues, verbs completion queues).
pub trait PollSource {
    /// Takes what is there. True if anything was; the executor then does not go to sleep.
    fn poll(&mut self) -> bool;
}
