//! One call of a thread: what it lends, and how it learns of the end.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::{self, Thread};

use super::core::Inside;
use super::drive::{Shared, lock};
use super::stopped;
use crate::error::Result;

pub(super) type LocalFuture<'a, R> = Pin<Box<dyn Future<Output = R> + 'a>>;

/// What a caller wants done.
pub(super) trait Job: Send {
    /// Makes the future, on the thread that has the executor.
    fn begin(self: Box<Self>, inside: Rc<Inside>) -> LocalFuture<'static, ()>;
}

/// Where a call's result arrives.
struct Slot<R> {
    result: Mutex<Option<Result<R>>>,
    done: AtomicBool,
    caller: Thread,
}

/// Tells the caller that its job was dropped, if it did not end before that.
struct Finish<R> {
    slot: Arc<Slot<R>>,
    shared: Arc<Shared>,
}

impl<R> Drop for Finish<R> {
    fn drop(&mut self) {
        if !self.slot.done.swap(true, Ordering::AcqRel) {
            self.slot.caller.unpark();
            self.shared.wake_leader();
        }
    }
}

/// A call before it begins. The order of the fields matters: what the job has borrowed is gone
/// before the caller learns of the end.
struct Lent<F, R> {
    job: F,
    finish: Finish<R>,
}

/// A call under way; the same order.
struct Running<'a, R> {
    future: Option<LocalFuture<'a, Result<R>>>,
    finish: Finish<R>,
    inside: Rc<Inside>,
}

impl<R> Future for Running<'_, R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(future) = &mut self.future else { return Poll::Ready(()) };
        let Poll::Ready(result) = future.as_mut().poll(cx) else { return Poll::Pending };
        self.future = None;
        let slot = &self.finish.slot;
        *lock(&slot.result) = Some(result);
        // From here on the caller may be gone, with all that it has lent.
        slot.done.store(true, Ordering::Release);
        self.inside.tell(&slot.caller);
        Poll::Ready(())
    }
}

impl<F, R> Job for Lent<F, R>
where
    R: Send + 'static,
    F: FnOnce(Rc<Inside>) -> LocalFuture<'static, Result<R>> + Send + 'static,
{
    fn begin(self: Box<Self>, inside: Rc<Inside>) -> LocalFuture<'static, ()> {
        let Self { job, finish } = *self;
        Box::pin(Running { future: Some(job(inside.clone())), finish, inside })
    }
}

type Begin<'a, R> = Box<dyn FnOnce(Rc<Inside>) -> LocalFuture<'a, Result<R>> + Send + 'a>;

/// The job as one that borrows nothing.
///
/// # Safety
/// The result, and the future that it makes, are gone before `'a` ends.
unsafe fn forget_lifetime<'a, R: 'static>(
    job: impl FnOnce(Rc<Inside>) -> LocalFuture<'a, Result<R>> + Send + 'a,
) -> Begin<'static, R> {
    let job: Begin<'a, R> = Box::new(job);
    // SAFETY: the caller's promise; the types differ in `'a` only.
    unsafe { std::mem::transmute::<Begin<'a, R>, Begin<'static, R>>(job) }
}

/// Something that nobody waits for.
struct Sent<F>(F);

impl<F: FnOnce(&Inside) + Send + 'static> Job for Sent<F> {
    fn begin(self: Box<Self>, inside: Rc<Inside>) -> LocalFuture<'static, ()> {
        (self.0)(&inside);
        Box::pin(std::future::ready(()))
    }
}

impl Shared {
    /// Carries out `job` on the executor, by this thread or by whoever has it, and returns its
    /// result. The job may borrow from the caller.
    pub fn call<'a, R, F>(self: &Arc<Self>, job: F) -> Result<R>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Inside>) -> LocalFuture<'a, Result<R>> + Send + 'a,
    {
        let slot = Arc::new(Slot {
            result: Mutex::new(None),
            done: AtomicBool::new(false),
            caller: thread::current(),
        });
        let finish = Finish { slot: slot.clone(), shared: self.clone() };
        // SAFETY: the job and its future may hold borrows of `'a`, and must be gone, or never be
        // touched again, before this function is left. It is left only once `done` or `broken` is
        // set, and nothing in between unwinds: a panic of the executor, on whichever thread, is
        // caught while that thread holds the lock on it.
        // - `done` is set in one of two places, and each stands behind the end of the borrows:
        //   where the future has ended, after it was dropped (`Running::poll`); or where the drop
        //   of `finish` finds that this did not happen. `finish` stands behind the job in `Lent`
        //   and behind the future in `Running`, so that these are dropped first. What outlives
        //   `done` is an empty box.
        // - `broken` is set under the lock on the executor, which was taken out of it before
        //   (`give_up`): futures that had begun lie in an executor that nobody polls or drops any
        //   more. Whoever begins or polls jobs needs that lock, and finds nothing behind it; a
        //   leader that sleeps without the lock holds nothing of the executor. Jobs that had not
        //   begun were dropped before `broken` was set, by the same thread.
        // Only lifetimes are changed.
        let job = unsafe { forget_lifetime(job) };
        self.start(Box::new(Lent { job, finish }), || slot.done.load(Ordering::Acquire));
        let result = lock(&slot.result).take();
        result.unwrap_or_else(|| Err(stopped()))
    }

    /// Queues something that nobody waits for.
    pub fn send(&self, job: impl FnOnce(&Inside) + Send + 'static) {
        self.submit_all(std::iter::once(Box::new(Sent(job)) as Box<dyn Job>));
    }
}
