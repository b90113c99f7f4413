//! A single-threaded executor: tasks in domains, timers, and a driver underneath.
//!
//! A *domain* is everything that dies together: in the simulator one process of one node. Killing
//! a domain drops all its tasks at the await where each of them stands.

mod shared;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::driver::{Driver, PollSource, Unpark};
use crate::time::{Instant, WallTime};
use shared::Resting;

pub use shared::Step;

/// Names a group of tasks that die together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainId(pub u32);

/// In which order ready tasks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// First woken, first run.
    Fifo,
    /// Drawn from the executor's seed: every interleaving that an await permits can happen.
    Random,
}

/// How many tasks run between two looks at the driver. Large enough to batch submissions of one
/// turn into one system call, small enough that completions are not left lying.
const TASKS_PER_TURN: usize = 64;

/// How often the end of an executor looks for tasks that the destructors of others have spawned.
const SPAWNED_WHILE_ENDING_ROUNDS: usize = 16;

/// Polled sources are looked at this often just after they had something to do, ...
const SOURCE_PAUSE_MIN: Duration = Duration::from_micros(10);
/// ... and this often after a while without: an idle reactor must not burn its core, and a first
/// request after a pause may be late by this much.
const SOURCE_PAUSE_MAX: Duration = Duration::from_millis(1);

type BoxFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Slot {
    generation: u32,
    domain: DomainId,
    /// Out of its slot while it is being polled.
    future: Option<BoxFuture>,
    waker: Option<Arc<TaskWaker>>,
}

struct TaskWaker {
    key: TaskKey,
    queued: AtomicBool,
    queue: Arc<ReadyQueue>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct TaskKey {
    index: u32,
    generation: u32,
}

struct ReadyQueue {
    ready: Mutex<VecDeque<TaskKey>>,
    parked: AtomicBool,
    unpark: Arc<dyn Unpark>,
}

impl ReadyQueue {
    fn push(&self, key: TaskKey) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(key);
        if self.parked.load(Ordering::SeqCst) {
            self.unpark.unpark();
        }
    }

    fn is_empty(&self) -> bool {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.queue.push(self.key);
        }
    }
}

struct Inner {
    driver: Rc<dyn Driver>,
    queue: Arc<ReadyQueue>,
    order: Order,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    timer_sequence: Cell<u64>,
    sources: RefCell<Vec<Box<dyn PollSource>>>,
    source_pause: Cell<Duration>,
    rng: RefCell<fastrand::Rng>,
    trace: Cell<u64>,
    polls: Cell<u64>,
    next_domain: Cell<u32>,
    /// The one who drives sleeps, until then at the latest, and somebody else may
    /// [`Executor::assist`].
    resting: Cell<Option<Resting>>,
    /// The one who drives gives way again and again, until then at the latest, and no task has run
    /// since.
    spinning: Cell<Option<Option<Instant>>>,
}

/// Owns the tasks and runs them.
pub struct Executor {
    inner: Rc<Inner>,
}

/// The handle that all code carries: time, chance, tasks. Cheap to clone; belongs to one domain.
#[derive(Clone)]
pub struct Rt {
    inner: Rc<Inner>,
    domain: DomainId,
    /// How much faster this handle's clock runs than the driver's: not at all, but in simulation.
    drift_ppm: i32,
}

impl Executor {
    /// An executor over `driver`, with chance drawn from `seed`.
    pub fn new(driver: Rc<dyn Driver>, order: Order, seed: u64) -> Self {
        let unpark = driver.unparker();
        Self {
            inner: Rc::new(Inner {
                driver,
                queue: Arc::new(ReadyQueue {
                    ready: Mutex::new(VecDeque::new()),
                    parked: AtomicBool::new(false),
                    unpark,
                }),
                order,
                slots: RefCell::new(Vec::new()),
                free: RefCell::new(Vec::new()),
                timers: RefCell::new(BTreeMap::new()),
                timer_sequence: Cell::new(0),
                sources: RefCell::new(Vec::new()),
                source_pause: Cell::new(SOURCE_PAUSE_MIN),
                rng: RefCell::new(fastrand::Rng::with_seed(seed)),
                trace: Cell::new(seed),
                polls: Cell::new(0),
                next_domain: Cell::new(1),
                resting: Cell::new(None),
                spinning: Cell::new(None),
            }),
        }
    }

    /// A virtual-time executor with random task order: the simulator's.
    pub fn simulated(seed: u64) -> Self {
        Self::new(crate::VirtualTime::new(), Order::Random, seed)
    }

    /// A handle in the root domain.
    pub fn rt(&self) -> Rt {
        Rt { inner: self.inner.clone(), domain: DomainId(0), drift_ppm: 0 }
    }

    /// A handle in a new domain.
    pub fn new_domain(&self) -> Rt {
        self.rt().new_domain()
    }

    /// Drops every task of `domain` where it stands, as a process that is killed. Must not be
    /// called from a task of that domain.
    pub fn kill(&self, domain: DomainId) {
        self.rt().kill(domain);
    }

    /// Runs until `future` is done.
    ///
    /// # Panics
    /// On virtual time, when every task waits and no timer is left: that is a deadlock in the code
    /// under test.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        let main =
            Arc::new(MainWaker { woken: AtomicBool::new(true), queue: self.inner.queue.clone() });
        let waker = Waker::from(main.clone());
        let mut cx = Context::from_waker(&waker);
        loop {
            if main.woken.swap(false, Ordering::SeqCst)
                && let Poll::Ready(output) = future.as_mut().poll(&mut cx)
            {
                return output;
            }
            self.turn(&main.woken);
        }
    }

    /// One round; then a wait if there is nothing to do.
    fn turn(&self, main_woken: &AtomicBool) {
        let inner = &self.inner;
        if inner.round() || main_woken.load(Ordering::SeqCst) {
            return;
        }
        let deadline = inner.deadline();
        inner.queue.parked.store(true, Ordering::SeqCst);
        // A wake-up between the look above and the flag would otherwise be slept through.
        if inner.queue.is_empty() && !main_woken.load(Ordering::SeqCst) {
            inner.driver.park(deadline);
        }
        inner.queue.parked.store(false, Ordering::SeqCst);
        if deadline.is_none() && inner.order == Order::Random {
            assert!(
                !inner.queue.is_empty() || main_woken.load(Ordering::SeqCst),
                "deadlock: every task waits and no timer is left"
            );
        }
    }

    /// A hash over which task ran when: two runs of one seed must agree. Without random order it
    /// holds only what was given to [`Rt::trace`].
    pub fn trace_hash(&self) -> u64 {
        self.inner.trace.get()
    }

    /// How many times a task was polled.
    pub fn polls(&self) -> u64 {
        self.inner.polls.get()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Tasks hold handles to the executor: break the cycle. Again for what destructors spawn.
        for _ in 0..SPAWNED_WHILE_ENDING_ROUNDS {
            let slots = std::mem::take(&mut *self.inner.slots.borrow_mut());
            self.inner.free.borrow_mut().clear();
            if slots.is_empty() {
                break;
            }
            drop(slots);
        }
        self.inner.timers.borrow_mut().clear();
        self.inner.sources.borrow_mut().clear();
    }
}

struct MainWaker {
    woken: AtomicBool,
    queue: Arc<ReadyQueue>,
}

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if self.queue.parked.load(Ordering::SeqCst) {
            self.queue.unpark.unpark();
        }
    }
}

impl Inner {
    /// Completions, due timers, ready tasks. True if there was anything to do.
    fn round(&self) -> bool {
        self.driver.poll();
        self.fire_timers();
        let busy = self.poll_sources();
        self.run_ready() || busy
    }

    /// Runs ready tasks, but not for long. True if there were any.
    fn run_ready(&self) -> bool {
        for ran in 0..TASKS_PER_TURN {
            let Some(key) = self.next_ready() else { return ran > 0 };
            self.poll_task(key);
        }
        true
    }

    /// When there is something to do, unless something happens before that.
    fn deadline(&self) -> Option<Instant> {
        self.next_look().into_iter().chain(self.next_timer()).min()
    }

    fn next_timer(&self) -> Option<Instant> {
        self.timers.borrow().keys().next().map(|(at, _)| *at)
    }

    fn next_ready(&self) -> Option<TaskKey> {
        let mut ready = self.queue.ready.lock().unwrap_or_else(PoisonError::into_inner);
        match self.order {
            Order::Fifo => ready.pop_front(),
            Order::Random if ready.is_empty() => None,
            Order::Random => {
                let at = self.rng.borrow_mut().usize(..ready.len());
                ready.swap_remove_back(at)
            }
        }
    }

    fn fire_timers(&self) {
        let now = self.driver.now();
        loop {
            let due = {
                let mut timers = self.timers.borrow_mut();
                match timers.first_key_value() {
                    Some((&(at, _), _)) if at <= now => timers.pop_first(),
                    _ => None,
                }
            };
            match due {
                Some((_, waker)) => waker.wake(),
                None => return,
            }
        }
    }

    /// When to look at the sources again, which can't wake anybody: soon after they had something,
    /// and less and less often while they have nothing.
    fn next_look(&self) -> Option<Instant> {
        if self.sources.borrow().is_empty() {
            return None;
        }
        let pause = self.source_pause.get();
        self.source_pause.set((pause * 2).min(SOURCE_PAUSE_MAX));
        Some(self.driver.now() + pause)
    }

    fn poll_sources(&self) -> bool {
        // Taken out while they run, so that a source may add another.
        let mut sources = std::mem::take(&mut *self.sources.borrow_mut());
        let mut busy = false;
        for source in &mut sources {
            busy |= source.poll();
        }
        if busy {
            self.source_pause.set(SOURCE_PAUSE_MIN);
        }
        let mut slot = self.sources.borrow_mut();
        sources.append(&mut slot);
        *slot = sources;
        busy
    }

    fn poll_task(&self, key: TaskKey) {
        let taken = {
            let mut slots = self.slots.borrow_mut();
            match slots.get_mut(key.index as usize) {
                Some(slot) if slot.generation == key.generation => {
                    let waker = slot.waker.clone();
                    slot.future.take().zip(waker)
                }
                _ => None,
            }
        };
        let Some((mut future, waker)) = taken else { return };
        self.polls.set(self.polls.get() + 1);
        if self.order == Order::Random {
            // Only a simulation is compared with another run; elsewhere each look at the clock costs.
            self.mix(self.driver.now().as_nanos() ^ (u64::from(key.index) << 40));
        }
        // Cleared before the poll: a wake-up during it must queue the task again.
        waker.queued.store(false, Ordering::SeqCst);
        let done = {
            let task_waker = Waker::from(waker);
            future.as_mut().poll(&mut Context::from_waker(&task_waker)).is_ready()
        };
        let killed = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[key.index as usize];
            let killed = slot.generation != key.generation;
            if !killed && !done {
                slot.future = Some(future);
                return;
            }
            killed
        };
        // Dropped outside the borrow: destructors may spawn or wake.
        drop(future);
        if !killed {
            self.release(key.index);
        }
    }

    fn release(&self, index: u32) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.waker = None;
        self.free.borrow_mut().push(index);
    }

    fn mix(&self, value: u64) {
        let mixed = (self.trace.get() ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.trace.set(mixed ^ (mixed >> 29));
    }
}

impl Rt {
    /// Time now.
    pub fn now(&self) -> Instant {
        self.local_time(self.inner.driver.now())
    }

    /// Calendar time now.
    pub fn wall(&self) -> WallTime {
        self.inner.driver.wall()
    }

    /// A number from the executor's seeded generator.
    pub fn random_u64(&self) -> u64 {
        self.inner.rng.borrow_mut().u64(..)
    }

    /// A number below `bound`, which must not be 0.
    pub fn random_below(&self, bound: u64) -> u64 {
        self.inner.rng.borrow_mut().u64(..bound)
    }

    /// The domain in which this handle spawns.
    pub fn domain(&self) -> DomainId {
        self.domain
    }

    /// A handle in a new domain of the same executor.
    pub fn new_domain(&self) -> Rt {
        let id = self.inner.next_domain.get();
        self.inner.next_domain.set(id + 1);
        Rt { inner: self.inner.clone(), domain: DomainId(id), drift_ppm: self.drift_ppm }
    }

    /// A handle in a new domain whose clock, and that of all domains made from it, runs faster by
    /// so much (slower, if negative): another machine in a simulation. Its instants must not be
    /// compared with those of other handles.
    pub fn new_domain_with_drift(&self, drift_ppm: i32) -> Rt {
        assert!(drift_ppm.unsigned_abs() < 1_000_000, "a clock that stands still or runs back");
        Rt { drift_ppm, ..self.new_domain() }
    }

    /// What this handle's clock says when the driver's says `at`.
    fn local_time(&self, at: Instant) -> Instant {
        if self.drift_ppm == 0 {
            return at;
        }
        scaled(at, u128::from(self.rate()), u128::from(PPM), 0)
    }

    /// When the driver's clock says that this handle's has reached `at`.
    fn driver_time(&self, at: Instant) -> Instant {
        if self.drift_ppm == 0 {
            return at;
        }
        // Rounded up, so that whoever wakes finds the time reached.
        let rate = u128::from(self.rate());
        scaled(at, u128::from(PPM), rate, rate - 1)
    }

    fn rate(&self) -> u32 {
        PPM.saturating_add_signed(self.drift_ppm)
    }

    /// Adds `value` to the trace hash, so that a decision shows in it.
    pub fn trace(&self, value: u64) {
        self.inner.mix(value);
    }

    /// Drops every task of `domain` where it stands. A task cannot kill its own domain.
    pub fn kill(&self, domain: DomainId) {
        let doomed: Vec<(u32, Option<BoxFuture>)> = {
            let mut slots = self.inner.slots.borrow_mut();
            slots
                .iter_mut()
                .enumerate()
                .filter(|(_, slot)| slot.domain == domain && slot.waker.is_some())
                .map(|(index, slot)| (u32::try_from(index).unwrap_or(u32::MAX), slot.future.take()))
                .collect()
        };
        // All slots are given back before the first destructor runs: it may abort another of them.
        let futures: Vec<Option<BoxFuture>> = doomed
            .into_iter()
            .map(|(index, future)| {
                self.inner.release(index);
                future
            })
            .collect();
        drop(futures);
    }

    /// Starts a task in this handle's domain. Dropping the handle lets the task go on.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let state = Rc::new(RefCell::new(JoinState { result: None, waker: None, gone: false }));
        let task = Joined { future: Some(future), guard: Some(JoinGuard(state.clone())) };
        let key = self.inner.insert(self.domain, Box::pin(task));
        JoinHandle { state, inner: self.inner.clone(), key }
    }

    /// Waits for `duration`.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    /// Waits until `at`.
    pub fn sleep_until(&self, at: Instant) -> Sleep {
        Sleep { inner: self.inner.clone(), at: self.driver_time(at), sequence: None }
    }

    /// Runs `future` for at most `duration`, from the first poll; on [`Elapsed`] it has been dropped.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is over first.
    pub fn timeout<F: Future>(&self, duration: Duration, future: F) -> Timeout<'_, F> {
        Timeout { rt: self, duration, sleep: None, future: Some(future) }
    }

    /// Lets every other ready task run first.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Adds a source that the executor polls each turn.
    pub fn add_source(&self, source: Box<dyn PollSource>) {
        self.inner.sources.borrow_mut().push(source);
    }
}

/// A clock without drift counts a million of a million.
const PPM: u32 = 1_000_000;

fn scaled(at: Instant, times: u128, over: u128, round: u128) -> Instant {
    let nanos = (u128::from(at.as_nanos()) * times + round) / over;
    Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Inner {
    fn insert(self: &Rc<Self>, domain: DomainId, future: BoxFuture) -> TaskKey {
        let mut slots = self.slots.borrow_mut();
        let index = match self.free.borrow_mut().pop() {
            Some(index) => index,
            None => {
                slots.push(Slot { generation: 0, domain, future: None, waker: None });
                u32::try_from(slots.len() - 1).expect("fewer than 2^32 tasks")
            }
        };
        let slot = &mut slots[index as usize];
        let key = TaskKey { index, generation: slot.generation };
        let waker =
            Arc::new(TaskWaker { key, queued: AtomicBool::new(true), queue: self.queue.clone() });
        slot.domain = domain;
        slot.future = Some(future);
        slot.waker = Some(waker);
        drop(slots);
        self.queue.push(key);
        key
    }
}

/// The time given to [`Rt::timeout`] is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time limit has passed")]
pub struct Elapsed;

/// The task was aborted, or its domain was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the task was aborted")]
pub struct Aborted;

struct JoinState<T> {
    result: Option<T>,
    waker: Option<Waker>,
    gone: bool,
}

struct JoinGuard<T>(Rc<RefCell<JoinState<T>>>);

impl<T> Drop for JoinGuard<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.0.borrow_mut();
            state.gone = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A task as the executor has it. (An `async` block around the future would hold it twice: where it
/// came in, and where it is awaited.)
struct Joined<F: Future> {
    /// Gone once it is done. Declared first: it is dropped before whoever waits hears of it.
    future: Option<F>,
    guard: Option<JoinGuard<F::Output>>,
}

impl<F: Future> Future for Joined<F> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: `future` is moved nowhere: it is polled and dropped in its place.
        let (mut future, guard) = unsafe {
            let this = self.get_unchecked_mut();
            (Pin::new_unchecked(&mut this.future), &mut this.guard)
        };
        let running = future.as_mut().as_pin_mut().expect("not polled after its end");
        let Poll::Ready(output) = running.poll(cx) else { return Poll::Pending };
        future.set(None);
        if let Some(guard) = guard.take() {
            guard.0.borrow_mut().result = Some(output);
        }
        Poll::Ready(())
    }
}

/// A future with a time limit: see [`Rt::timeout`].
#[must_use = "futures do nothing unless polled"]
pub struct Timeout<'a, F> {
    rt: &'a Rt,
    duration: Duration,
    /// Begun when the future did not end at once.
    sleep: Option<Sleep>,
    future: Option<F>,
}

impl<F: Future> Future for Timeout<'_, F> {
    type Output = Result<F::Output, Elapsed>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: `future` is moved nowhere: it is polled and dropped in its place. Nothing else
        // here minds being moved.
        let (mut future, rt, duration, sleep) = unsafe {
            let this = self.get_unchecked_mut();
            (Pin::new_unchecked(&mut this.future), this.rt, this.duration, &mut this.sleep)
        };
        let running = future.as_mut().as_pin_mut().expect("not polled after its end");
        let result = match running.poll(cx) {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => {
                let sleep = sleep.get_or_insert_with(|| rt.sleep(duration));
                match Pin::new(sleep).poll(cx) {
                    Poll::Ready(()) => Err(Elapsed),
                    Poll::Pending => return Poll::Pending,
                }
            }
        };
        future.set(None);
        *sleep = None;
        Poll::Ready(result)
    }
}

/// Waits for a task's result. Dropping it detaches the task.
pub struct JoinHandle<T> {
    state: Rc<RefCell<JoinState<T>>>,
    inner: Rc<Inner>,
    key: TaskKey,
}

impl<T> JoinHandle<T> {
    /// Drops the task at the await where it stands. Must not be called from the task itself.
    pub fn abort(&self) {
        let future = {
            let mut slots = self.inner.slots.borrow_mut();
            match slots.get_mut(self.key.index as usize) {
                Some(slot) if slot.generation == self.key.generation => slot.future.take(),
                _ => return,
            }
        };
        self.inner.release(self.key.index);
        drop(future);
    }

    /// True once the task has ended, in whatever way.
    pub fn is_finished(&self) -> bool {
        self.state.borrow().gone
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Aborted>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.state.borrow_mut();
        if !state.gone {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(state.result.take().ok_or(Aborted))
    }
}

/// Waits for a point in time.
pub struct Sleep {
    inner: Rc<Inner>,
    /// By the driver's clock.
    at: Instant,
    sequence: Option<u64>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sequence) = self.sequence
            && let Some(waker) = self.inner.timers.borrow_mut().get_mut(&(self.at, sequence))
        {
            // Still in the list, which is looked at in each turn: no need to ask for the time.
            waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        if self.at <= self.inner.driver.now() {
            return Poll::Ready(());
        }
        let sequence = match self.sequence {
            Some(sequence) => sequence,
            None => {
                let next = self.inner.timer_sequence.get();
                self.inner.timer_sequence.set(next + 1);
                next
            }
        };
        self.sequence = Some(sequence);
        self.inner.timers.borrow_mut().insert((self.at, sequence), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(sequence) = self.sequence {
            let waker = self.inner.timers.borrow_mut().remove(&(self.at, sequence));
            drop(waker);
        }
    }
}

impl fmt::Debug for Rt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rt").field("domain", &self.domain).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_trace(seed: u64) -> (u64, Vec<u32>) {
        let executor = Executor::simulated(seed);
        let order = Rc::new(RefCell::new(Vec::new()));
        let rt = executor.rt();
        executor.block_on(async {
            let tasks: Vec<_> = (0..8_u32)
                .map(|i| {
                    let (rt2, order) = (rt.clone(), order.clone());
                    rt.spawn(async move {
                        rt2.sleep(Duration::from_millis(u64::from(i % 3))).await;
                        order.borrow_mut().push(i);
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("not aborted");
            }
        });
        let order = order.borrow().clone();
        (executor.trace_hash(), order)
    }

    #[test]
    fn one_seed_gives_one_trace_and_another_seed_another() {
        assert_eq!(run_trace(7), run_trace(7));
        assert_ne!(run_trace(7).1, run_trace(8).1);
    }

    #[test]
    fn virtual_time_passes_without_waiting() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        executor.block_on(rt.sleep(Duration::from_secs(86_400)));
        assert_eq!(rt.now().as_nanos(), 86_400_000_000_000);
    }

    #[test]
    fn a_clock_that_drifts_wakes_when_it_says_so_and_others_see_it_earlier_or_later() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        for drift_ppm in [20_000, -20_000] {
            let other = rt.new_domain_with_drift(drift_ppm);
            let child = other.new_domain();
            let (before, own) = (rt.now(), child.now());
            executor.block_on(child.sleep(Duration::from_secs(100)));
            assert!(child.now().since(own) >= Duration::from_secs(100));
            let passed = rt.now().since(before).as_secs_f64();
            let expected = 100.0 / (1.0 + f64::from(drift_ppm) / 1e6);
            assert!((passed - expected).abs() < 1e-6, "{passed} instead of {expected}");
        }
    }

    #[test]
    fn a_killed_domain_runs_no_further_and_its_joiners_learn_it() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        let doomed = rt.new_domain();
        let ran = Rc::new(Cell::new(false));
        let (ran2, doomed2) = (ran.clone(), doomed.clone());
        let task = doomed.spawn(async move {
            doomed2.sleep(Duration::from_secs(1)).await;
            ran2.set(true);
        });
        executor.block_on(async {
            rt.yield_now().await;
            rt.kill(doomed.domain());
            assert_eq!(task.await, Err(Aborted));
            rt.sleep(Duration::from_secs(2)).await;
        });
        assert!(!ran.get());
    }

    /// Does something when it is dropped, as guards in tasks do.
    struct OnDrop<F: FnMut()>(F);

    impl<F: FnMut()> Drop for OnDrop<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    #[test]
    fn a_killed_task_may_abort_another_one_of_its_domain() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        let doomed = rt.new_domain();
        executor.block_on(async {
            let victim = Rc::new(RefCell::new(None::<JoinHandle<()>>));
            let victim2 = victim.clone();
            let guard = OnDrop(move || {
                if let Some(victim) = victim2.borrow_mut().take() {
                    victim.abort();
                }
            });
            drop(doomed.spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            }));
            *victim.borrow_mut() = Some(doomed.spawn(std::future::pending::<()>()));
            rt.yield_now().await;
            rt.kill(doomed.domain());
            // A slot that was given back twice would be given out twice.
            let tasks: Vec<_> = (0..8).map(|i| rt.spawn(async move { i })).collect();
            for (i, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.await, Ok(i));
            }
        });
    }

    #[test]
    fn a_destructor_may_spawn_while_the_executor_ends() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        let ran = Rc::new(Cell::new(0));
        let (rt2, ran2) = (rt.clone(), ran.clone());
        let guard = OnDrop(move || {
            let ran = ran2.clone();
            let last = OnDrop(move || ran.set(ran.get() + 1));
            drop(rt2.spawn(async move { drop(last) }));
        });
        executor.block_on(async {
            rt.spawn(async {}).await.expect("runs");
            drop(rt.spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            }));
        });
        drop(executor);
        assert_eq!(ran.get(), 1, "what is spawned too late is dropped, not leaked");
    }

    #[test]
    fn a_source_is_polled_while_every_task_waits() {
        struct Late(u32, Option<futures_channel::oneshot::Sender<u32>>);
        impl PollSource for Late {
            fn poll(&mut self) -> bool {
                self.0 += 1;
                if self.0 < 100 {
                    return false;
                }
                self.1.take().is_some_and(|sender| sender.send(self.0).is_ok())
            }
        }
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        let (sender, receiver) = futures_channel::oneshot::channel();
        rt.add_source(Box::new(Late(0, Some(sender))));
        assert_eq!(executor.block_on(receiver), Ok(100));
        let waited = rt.now().as_nanos();
        assert!((90_000_000..100_000_000).contains(&waited), "{waited} ns: politely");
    }

    #[test]
    fn timeout_drops_the_future_and_its_timer() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        executor.block_on(async {
            let never = std::future::pending::<()>();
            assert_eq!(rt.timeout(Duration::from_secs(1), never).await, Err(Elapsed));
            assert_eq!(rt.timeout(Duration::from_secs(5), async { 3 }).await, Ok(3));
        });
        assert!(executor.inner.timers.borrow().is_empty());
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_deadlock_on_virtual_time_is_reported() {
        Executor::simulated(1).block_on(std::future::pending::<()>());
    }
}
