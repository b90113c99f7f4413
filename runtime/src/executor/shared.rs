//! An executor that several threads drive, under a lock of theirs.
//!
//! One of them, the *leader*, makes one [`Executor::step`] after the other. Between two of them it
//! does not hold the lock, and it is there that it sleeps. Meanwhile any other thread may take the
//! lock and begin tasks with [`Executor::assist`]. Nothing is slept through:
//!
//! - Completions are taken by the leader alone. Whatever comes after its last look ends its sleep,
//!   or keeps it from beginning, also where the request was submitted by somebody else.
//! - A task that is woken while nobody runs tasks unparks the leader: `parked` is set from the end
//!   of a step to the next one, but for the time in which another thread runs tasks. That thread
//!   sets it again before its last look at the queue.
//! - A thread that leaves something to do, a request that the kernel did not take, or a timer that
//!   is due before the leader wakes up, unparks it.
//! - An unpark between the end of a step and the sleep ends that sleep ([`Driver::rest`]).
//!
//! [`Driver::rest`]: crate::Driver::rest

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Executor, Inner};
use crate::driver::{Rest, Sleeper, Unpark};
use crate::time::Instant;

/// What the leader does next. It holds no lock while it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another step.
    Again,
    /// [`Sleeper::give_way`], then another step.
    GiveWay,
    /// [`Sleeper::sleep`] until then, and another step.
    Sleep(Option<Instant>),
}

impl Inner {
    /// A round that begins with what callers have queued: it goes on its way before anything else,
    /// and what it and the calls before it have left for the kernel takes one system call.
    fn leaders_round(&self) -> bool {
        let begun = self.run_ready();
        self.round() || begun
    }
}

/// Until when the leader sleeps.
#[derive(Clone, Copy)]
pub(super) struct Resting {
    until: Option<Instant>,
}

impl Executor {
    /// The leader is back, and looks at everything from now on: call it before looking at what
    /// else an unpark may have been for, and before each [`Executor::step`].
    pub fn resume(&self) {
        self.inner.resting.set(None);
        self.inner.queue.parked.store(false, Ordering::SeqCst);
        self.inner.driver.end_rest();
    }

    /// One round of the leader's, which does not wait.
    pub fn step(&self) -> Step {
        let inner = &self.inner;
        let until = match inner.spinning.take() {
            // The driver looks for completions itself, and a timer ends the spin.
            Some(until) if inner.queue.is_empty() => until,
            _ if inner.leaders_round() => return Step::Again,
            _ => inner.deadline(),
        };
        inner.queue.parked.store(true, Ordering::SeqCst);
        // A wake-up between the round and the flag would otherwise be slept through.
        let rest = if inner.queue.is_empty() { inner.driver.rest(until) } else { Rest::Again };
        if rest == Rest::Sleep {
            inner.resting.set(Some(Resting { until }));
            return Step::Sleep(until);
        }
        inner.queue.parked.store(false, Ordering::SeqCst);
        if rest == Rest::Again {
            return Step::Again;
        }
        inner.spinning.set(Some(until));
        Step::GiveWay
    }

    /// Begins tasks on a thread that does not lead, runs what is ready, and hands over what that
    /// has queued.
    pub fn assist(&self, begin: impl FnOnce()) {
        let inner = &self.inner;
        // What is woken from here on is run below, or found by the look after that.
        inner.queue.parked.store(false, Ordering::SeqCst);
        begin();
        inner.run_ready();
        let all_submitted = inner.driver.submit();
        let Some(resting) = inner.resting.get() else {
            // One who does not sleep looks at all of it before he does.
            inner.spinning.set(None);
            return;
        };
        inner.queue.parked.store(true, Ordering::SeqCst);
        let timer = inner.next_timer();
        let too_late = timer.is_some_and(|at| resting.until.is_none_or(|until| at < until));
        if too_late || !all_submitted || !inner.queue.is_empty() {
            inner.queue.unpark.unpark();
        }
    }

    /// Wakes the leader.
    pub fn unparker(&self) -> Arc<dyn Unpark> {
        self.inner.queue.unpark.clone()
    }

    /// What the leader sleeps with.
    pub fn sleeper(&self) -> Arc<dyn Sleeper> {
        self.inner.driver.sleeper()
    }
}

#[cfg(test)]
mod tests;
