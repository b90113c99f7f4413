//! Requests whose caller does not wait: a callback learns of their end.
//!
//! Callbacks run on the background thread, and never while it drives the executor: one may make any
//! call of this client, also a blocking one.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use super::call::{Job, LocalFuture};
use super::core::Inside;
use super::drive::{Shared, lock};
use super::stopped;
use crate::error::Result;

/// Told how a request ended.
pub(super) type Callback = Box<dyn FnOnce(Result<usize>) + Send>;

/// Memory that a caller lends to a request.
#[derive(Clone, Copy, Debug)]
pub struct RawBuffer {
    /// First byte.
    pub address: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

// SAFETY: an address and a length. What may be done with them is promised where requests are made.
unsafe impl Send for RawBuffer {}

impl RawBuffer {
    /// # Safety
    /// Readable, and written by nobody, for `'a`.
    pub(super) unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: the caller's promise; the length is not 0, so the address is not null.
        unsafe { std::slice::from_raw_parts(self.address, self.len) }
    }

    /// # Safety
    /// Writable, and touched by nobody else, for `'a`.
    pub(super) unsafe fn bytes_mut<'a>(self) -> &'a mut [u8] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.len) }
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Later {
    pending: Mutex<Pending>,
    pending_count: AtomicUsize,
    ready: Mutex<VecDeque<(Callback, Result<usize>)>>,
    ready_count: AtomicUsize,
}

#[derive(Default)]
struct Pending {
    callbacks: BTreeMap<u64, Callback>,
    next: u64,
}

impl Later {
    /// True while a request is under way: somebody must drive.
    pub fn is_urgent(&self) -> bool {
        self.pending_count.load(Ordering::Acquire) > 0
    }

    pub fn has_callbacks(&self) -> bool {
        self.ready_count.load(Ordering::Acquire) > 0
    }

    fn register(&self, callback: Callback) -> u64 {
        let mut pending = lock(&self.pending);
        let id = pending.next;
        pending.next += 1;
        pending.callbacks.insert(id, callback);
        self.pending_count.store(pending.callbacks.len(), Ordering::Release);
        id
    }

    /// Queues the request's callback, if that was not done. True if it was queued now.
    fn end(&self, id: u64, result: Result<usize>) -> bool {
        let mut pending = lock(&self.pending);
        let callback = pending.callbacks.remove(&id);
        self.pending_count.store(pending.callbacks.len(), Ordering::Release);
        drop(pending);
        let Some(callback) = callback else { return false };
        let mut ready = lock(&self.ready);
        ready.push_back((callback, result));
        self.ready_count.store(ready.len(), Ordering::Release);
        true
    }

    /// No request that is under way will end by itself any more.
    pub fn fail_all(&self) {
        let ids: Vec<u64> = lock(&self.pending).callbacks.keys().copied().collect();
        for id in ids {
            self.end(id, Err(stopped()));
        }
    }

    /// Runs what is ready. Only on the background thread, which holds no lock.
    pub fn run_callbacks(&self) {
        loop {
            let next = {
                let mut ready = lock(&self.ready);
                let next = ready.pop_front();
                self.ready_count.store(ready.len(), Ordering::Release);
                next
            };
            let Some((callback, result)) = next else { return };
            callback(result);
        }
    }
}

/// The end of a request, whether it was carried out or dropped. It stands behind what the request
/// has borrowed, which is gone before the callback can run.
struct Ending {
    id: u64,
    result: Option<Result<usize>>,
    shared: Arc<Shared>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| Err(stopped()));
        if self.shared.later.end(self.id, result) {
            // Whoever leads may be the background thread itself.
            self.shared.wake_leader();
            self.shared.wake_background();
        }
    }
}

struct Unattended<F> {
    job: F,
    ending: Ending,
}

impl<F> Job for Unattended<F>
where
    F: FnOnce(Rc<Inside>) -> LocalFuture<'static, Result<usize>> + Send + 'static,
{
    fn begin(self: Box<Self>, inside: Rc<Inside>) -> LocalFuture<'static, ()> {
        let Self { job, ending } = *self;
        Box::pin(Lending { future: Some(job(inside)), ending })
    }
}

/// Learns a result, and passes it on when it is dropped.
pub(super) trait Keep: Unpin {
    fn keep(&mut self, result: Result<usize>);
}

impl Keep for Ending {
    fn keep(&mut self, result: Result<usize>) {
        self.result = Some(result);
    }
}

/// A request under way. The order of the fields matters: what the request has borrowed is gone
/// before anybody learns of its end, also where it is dropped before that.
pub(super) struct Lending<E> {
    pub future: Option<LocalFuture<'static, Result<usize>>>,
    pub ending: E,
}

impl<E: Keep> Future for Lending<E> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(future) = &mut self.future else { return Poll::Ready(()) };
        let Poll::Ready(result) = future.as_mut().poll(cx) else { return Poll::Pending };
        self.future = None;
        self.ending.keep(result);
        Poll::Ready(())
    }
}

impl Shared {
    /// Carries out `job` in the background; `callback` is called once, whatever happens.
    pub fn call_later<F>(self: &Arc<Self>, job: F, callback: Callback)
    where
        F: FnOnce(Rc<Inside>) -> LocalFuture<'static, Result<usize>> + Send + 'static,
    {
        let id = self.later.register(callback);
        let ending = Ending { id, result: None, shared: self.clone() };
        self.submit_all(std::iter::once(Box::new(Unattended { job, ending }) as Box<dyn Job>));
        self.wake_background();
    }
}
