//! Waiting between tasks of one executor: no locks, no threads.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Adds a waker, unless it was added a moment ago: a task that waits with a time limit, in a loop,
/// comes again and again. Only the last ones are looked at, so that thousands who wait don't cost
/// a long search each.
pub(crate) fn remember(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().rev().take(64).any(|known| known.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

/// A fair semaphore that counts bytes, slots or anything else.
#[derive(Clone)]
pub struct Semaphore {
    state: Rc<SemaphoreState>,
}

struct SemaphoreState {
    free: Cell<u64>,
    queue: RefCell<VecDeque<Rc<Waiter>>>,
}

struct Waiter {
    amount: u64,
    granted: Cell<bool>,
    gone: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Gives its amount back when dropped.
#[must_use]
pub struct Permit {
    state: Rc<SemaphoreState>,
    amount: u64,
}

impl Semaphore {
    /// A semaphore with `amount` to give.
    pub fn new(amount: u64) -> Self {
        Self {
            state: Rc::new(SemaphoreState {
                free: Cell::new(amount),
                queue: RefCell::new(VecDeque::new()),
            }),
        }
    }

    /// What is free now.
    pub fn free(&self) -> u64 {
        self.state.free.get()
    }

    /// Takes `amount` at once, or nothing where it is not free or others wait.
    pub fn try_acquire(&self, amount: u64) -> Option<Permit> {
        if !self.state.queue.borrow().is_empty() || self.state.free.get() < amount {
            return None;
        }
        self.state.free.set(self.state.free.get() - amount);
        Some(Permit { state: self.state.clone(), amount })
    }

    /// Waits in order of arrival until `amount` is free, and takes it.
    pub async fn acquire(&self, amount: u64) -> Permit {
        if let Some(permit) = self.try_acquire(amount) {
            return permit;
        }
        let waiter = Rc::new(Waiter {
            amount,
            granted: Cell::new(false),
            gone: Cell::new(false),
            waker: RefCell::new(None),
        });
        self.state.queue.borrow_mut().push_back(waiter.clone());
        let mut guard = WaitGuard { state: self.state.clone(), waiter, taken: false };
        std::future::poll_fn(|cx| {
            if guard.waiter.granted.get() {
                return Poll::Ready(());
            }
            *guard.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        guard.taken = true;
        Permit { state: self.state.clone(), amount }
    }

    /// Adds `amount` to what can be given.
    pub fn add(&self, amount: u64) {
        self.state.give(amount);
    }
}

impl SemaphoreState {
    fn give(&self, amount: u64) {
        self.free.set(self.free.get() + amount);
        loop {
            let next = {
                let mut queue = self.queue.borrow_mut();
                match queue.front() {
                    Some(waiter) if waiter.gone.get() => {
                        queue.pop_front();
                        continue;
                    }
                    Some(waiter) if waiter.amount <= self.free.get() => queue.pop_front(),
                    _ => None,
                }
            };
            let Some(waiter) = next else { return };
            self.free.set(self.free.get() - waiter.amount);
            waiter.granted.set(true);
            if let Some(waker) = waiter.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

/// Undoes the wait of a future that is dropped before its turn, or between grant and poll.
struct WaitGuard {
    state: Rc<SemaphoreState>,
    waiter: Rc<Waiter>,
    taken: bool,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        self.waiter.gone.set(true);
        // Those behind may fit where this one did not.
        self.state.give(if self.waiter.granted.get() { self.waiter.amount } else { 0 });
    }
}

impl Permit {
    /// The amount held.
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// Never gives the amount back.
    pub fn forget(mut self) {
        self.amount = 0;
    }

    /// Joins another permit of the same semaphore to this one.
    pub fn merge(&mut self, mut other: Permit) {
        self.amount += std::mem::take(&mut other.amount);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.amount > 0 {
            self.state.give(self.amount);
        }
    }
}

/// Something that happens again and again: wakes whoever waits for the next time.
#[derive(Clone, Default)]
pub struct Notify {
    state: Rc<NotifyState>,
}

#[derive(Default)]
struct NotifyState {
    count: Cell<u64>,
    wakers: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Nobody waits yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        self.state.count.set(self.state.count.get() + 1);
        let mut wakers = std::mem::take(&mut *self.state.wakers.borrow_mut());
        for waker in wakers.drain(..) {
            waker.wake();
        }
        // What has room for as many once needs it again.
        let mut place = self.state.wakers.borrow_mut();
        if place.capacity() == 0 {
            *place = wakers;
        }
    }

    /// Waits for the first [`Notify::notify_all`] after this call (not after its first poll).
    pub fn notified(&self) -> impl Future<Output = ()> + use<> {
        let state = self.state.clone();
        let seen = state.count.get();
        std::future::poll_fn(move |cx| {
            if state.count.get() != seen {
                return Poll::Ready(());
            }
            let mut wakers = state.wakers.borrow_mut();
            remember(&mut wakers, cx.waker());
            Poll::Pending
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Executor;
    use std::time::Duration;

    #[test]
    fn a_large_request_is_not_starved_by_small_ones() {
        let executor = Executor::simulated(3);
        let rt = executor.rt();
        executor.block_on(async {
            let semaphore = Semaphore::new(4);
            let held = semaphore.acquire(3).await;
            let (s, order) = (semaphore.clone(), Rc::new(RefCell::new(Vec::new())));
            let o = order.clone();
            let large = rt.spawn(async move {
                let _permit = s.acquire(4).await;
                o.borrow_mut().push("large");
            });
            rt.sleep(Duration::from_millis(1)).await;
            assert!(semaphore.try_acquire(1).is_none(), "a waiter is ahead");
            let (s, o) = (semaphore.clone(), order.clone());
            let small = rt.spawn(async move {
                let _permit = s.acquire(1).await;
                o.borrow_mut().push("small");
            });
            rt.sleep(Duration::from_millis(1)).await;
            drop(held);
            large.await.expect("runs");
            small.await.expect("runs");
            assert_eq!(*order.borrow(), ["large", "small"]);
            assert_eq!(semaphore.free(), 4);
        });
    }

    #[test]
    fn a_waiter_that_gives_up_leaks_nothing() {
        let executor = Executor::simulated(3);
        let rt = executor.rt();
        executor.block_on(async {
            let semaphore = Semaphore::new(2);
            let held = semaphore.acquire(2).await;
            assert!(rt.timeout(Duration::from_secs(1), semaphore.acquire(2)).await.is_err());
            drop(held);
            assert_eq!(semaphore.free(), 2);
            assert_eq!(semaphore.acquire(2).await.amount(), 2);
        });
    }

    #[test]
    fn waiting_again_and_again_takes_no_more_memory() {
        let executor = Executor::simulated(3);
        let rt = executor.rt();
        let notify = Notify::new();
        executor.block_on(async {
            for _ in 0..100 {
                assert!(rt.timeout(Duration::from_secs(1), notify.notified()).await.is_err());
            }
        });
        assert_eq!(notify.state.wakers.borrow().len(), 1);
    }

    #[test]
    fn notified_counts_from_its_call() {
        let executor = Executor::simulated(3);
        executor.block_on(async {
            let notify = Notify::new();
            let next = notify.notified();
            notify.notify_all();
            next.await;
        });
    }
}
