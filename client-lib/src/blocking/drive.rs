//! Who drives the executor: leader, followers, background.

use std::collections::VecDeque;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use super::core::{Core, Inside, Platform};
use super::later::Later;
use super::stopped;
use crate::error::{Error, Result};
use crate::options::ClientOptions;

/// The background thread takes over when no call was made for so long: a program that makes one
/// call after the other shall not push it away each time.
const QUIET: Duration = Duration::from_millis(1);

pub(super) type LocalFuture<'a, R> = Pin<Box<dyn Future<Output = R> + 'a>>;

/// What a caller wants done.
pub(super) trait Job: Send {
    /// Makes the future, on the leading thread.
    fn begin(self: Box<Self>, inside: Rc<Inside>) -> LocalFuture<'static, ()>;
}

/// Everything that threads share.
pub(crate) struct Shared {
    core: Mutex<Option<Core>>,
    inbox: Mutex<Inbox>,
    turn: Mutex<Turn>,
    /// The background thread waits here.
    idle: Condvar,
    /// A panic has ended the executor. What it held is never touched again.
    broken: AtomicBool,
    /// Requests whose caller does not wait.
    pub(super) later: Later,
    /// The background thread, for whoever waits for its end.
    background: Mutex<Option<JoinHandle<Result<()>>>>,
}

#[derive(Default)]
struct Inbox {
    jobs: VecDeque<Box<dyn Job>>,
    /// Of the leader.
    waker: Option<Waker>,
    /// Nobody takes jobs out any more.
    closed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leader {
    Nobody,
    Caller,
    Background,
}

struct Turn {
    leader: Leader,
    /// Followers: whoever leads next is one of them.
    waiting: Vec<(u64, Thread)>,
    next: u64,
    calls: u64,
    stop: bool,
}

/// Where a call's result arrives.
struct Slot<R> {
    result: Mutex<Option<Result<R>>>,
    done: AtomicBool,
    caller: Thread,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the caller that its job has ended, finished or dropped.
struct Finish<R> {
    slot: Arc<Slot<R>>,
    shared: Arc<Shared>,
}

impl<R> Drop for Finish<R> {
    fn drop(&mut self) {
        self.slot.done.store(true, Ordering::Release);
        self.slot.caller.unpark();
        self.shared.wake_leader();
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
}

impl<R> Future for Running<'_, R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(future) = &mut self.future else { return Poll::Ready(()) };
        let Poll::Ready(result) = future.as_mut().poll(cx) else { return Poll::Pending };
        self.future = None;
        *lock(&self.finish.slot.result) = Some(result);
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
        Box::pin(Running { future: Some(job(inside)), finish })
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
    /// Connects, and starts the background thread.
    pub fn start(platform: Platform, options: ClientOptions) -> Result<Arc<Self>> {
        let core = Core::connect(platform, options)?;
        let turn =
            Turn { leader: Leader::Nobody, waiting: Vec::new(), next: 0, calls: 0, stop: false };
        let shared = Arc::new(Self {
            core: Mutex::new(Some(core)),
            inbox: Mutex::default(),
            turn: Mutex::new(turn),
            idle: Condvar::new(),
            broken: AtomicBool::new(false),
            later: Later::default(),
            background: Mutex::default(),
        });
        let background = shared.clone();
        let thread = thread::Builder::new()
            .name("burstbay".into())
            .spawn(move || background.run_background())
            .map_err(|error| Error::errno_of(libc::EAGAIN, error.to_string()))?;
        *lock(&shared.background) = Some(thread);
        Ok(shared)
    }

    /// Stops and waits for the end: what was lost, if anything. Only the first caller learns it; so
    /// does nobody where the background thread itself calls, from a callback.
    pub fn stop_and_wait(&self) -> Result<()> {
        self.stop();
        let Some(thread) = lock(&self.background).take() else { return Ok(()) };
        if thread.thread().id() == thread::current().id() {
            return Ok(());
        }
        thread.join().unwrap_or_else(|_| Err(stopped()))
    }

    /// True where a panic ended the executor: nothing will work any more.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The background thread ends, and the executor with it.
    pub fn stop(&self) {
        lock(&self.turn).stop = true;
        self.idle.notify_all();
        self.wake_leader();
    }

    /// Queues something that nobody waits for.
    pub fn send(&self, job: impl FnOnce(&Inside) + Send + 'static) {
        self.submit(Box::new(Sent(job)));
    }

    fn submit(&self, job: Box<dyn Job>) {
        self.submit_all(std::iter::once(job));
    }

    /// Queues jobs for the leader. Where none will ever be carried out any more, they are dropped
    /// at once, which tells whoever waits for them.
    pub(super) fn submit_all(&self, jobs: impl Iterator<Item = Box<dyn Job>>) {
        let mut inbox = lock(&self.inbox);
        if inbox.closed {
            drop(inbox);
            jobs.for_each(drop);
            return;
        }
        inbox.jobs.extend(jobs);
        let waker = inbox.waker.clone();
        drop(inbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The background thread looks at once: there is something that no caller drives.
    pub(super) fn wake_background(&self) {
        self.idle.notify_one();
    }

    pub(super) fn wake_leader(&self) {
        let waker = lock(&self.inbox).waker.clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Carries out `job` on the executor, by this thread or by whoever leads, and returns its
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
        // SAFETY: the job and its future may hold borrows of `'a`, and must be gone before this
        // function is left. It is left only once `done` is set. That is done by the drop of
        // `finish`, which stands behind the job in `Lent` and behind the future in `Running`, so
        // that these are dropped first, whether they end or are given up. What outlives it of
        // `Running` is its empty box. Or it is left once `broken` is set: by then jobs that had not
        // begun are dropped (`break_down`), and futures that had lie in an executor that nobody
        // polls or drops any more, so that what they borrowed is not touched again. Nothing in
        // between unwinds: a panic of the executor is caught where it is driven. Only lifetimes
        // are changed.
        let job = unsafe { forget_lifetime(job) };
        self.submit(Box::new(Lent { job, finish }));
        self.wait(|| slot.done.load(Ordering::Acquire));
        let result = lock(&slot.result).take();
        result.unwrap_or_else(|| Err(stopped()))
    }

    /// Leads or follows until `done`, or until nothing will be done any more. Whoever makes it true
    /// unparks this thread and wakes the leader.
    pub(super) fn wait(&self, done: impl Fn() -> bool) {
        let mut ticket = None;
        let enough = || done() || self.is_broken();
        loop {
            if enough() {
                self.leave_queue(ticket);
                return;
            }
            let lead = {
                let mut turn = lock(&self.turn);
                turn.calls += 1;
                match turn.leader {
                    Leader::Nobody => {
                        turn.leader = Leader::Caller;
                        true
                    }
                    _ if ticket.is_none() => {
                        let number = turn.next;
                        turn.next += 1;
                        turn.waiting.push((number, thread::current()));
                        ticket = Some(number);
                        false
                    }
                    _ => false,
                }
            };
            if lead {
                self.leave_queue(ticket.take());
                self.drive(enough);
                self.hand_over();
                continue;
            }
            // The background thread gives way when it sees somebody waiting.
            self.wake_leader();
            if !enough() && lock(&self.turn).leader != Leader::Nobody {
                thread::park();
            }
        }
    }

    fn leave_queue(&self, ticket: Option<u64>) {
        if let Some(number) = ticket {
            let mut turn = lock(&self.turn);
            turn.waiting.retain(|(other, _)| *other != number);
            // A hand-over may have chosen this thread, which no longer wants it.
            if turn.leader == Leader::Nobody
                && let Some((_, next)) = turn.waiting.first()
            {
                next.unpark();
            }
        }
    }

    /// Ends this thread's lead; wakes one who waits for it.
    fn hand_over(&self) {
        let mut turn = lock(&self.turn);
        turn.leader = Leader::Nobody;
        if let Some((_, next)) = turn.waiting.first() {
            next.unpark();
        } else if self.later.is_urgent() {
            self.wake_background();
        }
    }

    /// Drives the executor until `enough`. Only for the leader.
    fn drive(&self, enough: impl Fn() -> bool) {
        let mut core = lock(&self.core);
        let Some(driven) = &*core else {
            drop(core);
            self.close_inbox();
            return;
        };
        let drive = || {
            let rt = driven.executor.rt();
            driven.executor.block_on(std::future::poll_fn(|cx| {
                // First the waker, then the look: what comes in between wakes us again.
                let jobs = {
                    let mut inbox = lock(&self.inbox);
                    inbox.waker = Some(cx.waker().clone());
                    std::mem::take(&mut inbox.jobs)
                };
                for job in jobs {
                    rt.spawn(job.begin(driven.inside.clone()));
                }
                if enough() { Poll::Ready(()) } else { Poll::Pending }
            }));
        };
        if catch_unwind(AssertUnwindSafe(drive)).is_err() {
            // Its tasks hold what callers have lent them, and it may be anywhere.
            let _never_dropped = core.take().map(ManuallyDrop::new);
            drop(core);
            self.break_down();
        }
    }

    /// A panic has ended the executor: everybody who waits learns it.
    fn break_down(&self) {
        tracing::error!("the client has failed; its calls end with an error from now on");
        self.close_inbox();
        self.broken.store(true, Ordering::Release);
        self.later.fail_all();
        for (_, thread) in &lock(&self.turn).waiting {
            thread.unpark();
        }
        self.wake_background();
    }

    /// Nobody will take jobs out any more: whatever is queued ends here.
    fn close_inbox(&self) {
        let jobs = {
            let mut inbox = lock(&self.inbox);
            inbox.closed = true;
            inbox.waker = None;
            std::mem::take(&mut inbox.jobs)
        };
        drop(jobs);
    }

    fn run_background(&self) -> Result<()> {
        let mut calls_seen = 0;
        loop {
            self.later.run_callbacks();
            let mut turn = lock(&self.turn);
            loop {
                if turn.stop || self.later.has_callbacks() {
                    break;
                }
                // A program that makes one call after the other drives by itself, unless there is
                // something that it does not wait for.
                let quiet = turn.calls == calls_seen || self.later.is_urgent();
                let free = turn.leader == Leader::Nobody && turn.waiting.is_empty();
                if quiet && free && !self.is_broken() {
                    break;
                }
                calls_seen = turn.calls;
                let waited = self.idle.wait_timeout(turn, QUIET);
                turn = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if turn.stop {
                break;
            }
            if self.later.has_callbacks() {
                continue;
            }
            turn.leader = Leader::Background;
            drop(turn);
            self.drive(|| {
                let turn = lock(&self.turn);
                turn.stop || !turn.waiting.is_empty() || self.later.has_callbacks()
            });
            self.hand_over();
        }
        self.end()
    }

    /// The end of the background thread: nobody calls any more, or nobody shall. Closes what is
    /// open.
    fn end(&self) -> Result<()> {
        let core = lock(&self.core).take();
        let mut ended = Ok(());
        if let Some(core) = core {
            let jobs = {
                let mut inbox = lock(&self.inbox);
                inbox.closed = true;
                inbox.waker = None;
                std::mem::take(&mut inbox.jobs)
            };
            let rt = core.executor.rt();
            for job in jobs {
                rt.spawn(job.begin(core.inside.clone()));
            }
            let client = core.inside.client.clone();
            ended = core.executor.block_on(client.disconnect());
            if let Err(error) = &ended {
                tracing::warn!(%error, "written data was lost when the client was dropped");
            }
        }
        // Those that were under way were dropped with the executor, and their callbacks wait here.
        self.later.fail_all();
        self.later.run_callbacks();
        ended
    }
}
