//! What an executor needs from below: a clock, and a way to wait for the outside world.

use std::sync::Arc;

use crate::time::{Instant, WallTime};

/// Wakes a parked executor from any thread.
pub trait Unpark: Send + Sync {
    /// Makes the current or the next [`Driver::park`] return at once.
    fn unpark(&self);
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
    /// A handle that ends a park from another thread.
    fn unparker(&self) -> Arc<dyn Unpark>;
}

/// A source that is polled because it cannot wake anybody (SPDK queues, verbs completion queues).
pub trait PollSource {
    /// Takes what is there. True if anything was; the executor then does not go to sleep.
    fn poll(&mut self) -> bool;
}
