//! Threads for calls that block (the backing file system, `ioctl`s of devices). For providers
//! over the operating system only: what makes decisions never sees it.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_channel::oneshot;

use crate::time::Instant;
use crate::uring::clock;

/// Why a call was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// All threads are busy and the queue is full: earlier calls hang, or there are too many. The
    /// call was not made.
    #[error("all threads are busy, and too many calls wait")]
    Full,
    /// The system gives no thread. The call was not made.
    #[error("cannot start a thread")]
    NoThread,
    /// The call panicked.
    #[error("the call panicked")]
    Panicked,
}

/// What a pool does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadPoolStats {
    /// Threads that exist.
    pub threads: usize,
    /// Calls that are being made.
    pub running: usize,
    /// Calls that wait for a thread.
    pub queued: usize,
    /// Calls that have ended.
    pub completed: u64,
    /// Time that these took, each from its beginning on a thread to its end.
    pub worked: Duration,
    /// How long the oldest running call has been running: a hung file system shows here.
    pub oldest_running: Option<Duration>,
}

/// A pool of named threads, started as they are needed. Cheap to clone; usable from any thread.
///
/// Each call is independent: one that hangs keeps its thread, and the results of the others are
/// delivered. When the last clone is gone, the threads make the calls that are queued, and end;
/// nobody waits for them.
#[derive(Clone)]
pub struct ThreadPool {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    threads_max: usize,
    queue_max: usize,
    state: Mutex<State>,
    work: Condvar,
}

/// Makes the call; what it returns delivers the answer.
type Job = Box<dyn FnOnce() -> Box<dyn FnOnce()> + Send>;

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
    running: BTreeMap<u64, Instant>,
    calls: u64,
    completed: u64,
    worked: Duration,
    closing: bool,
}

impl ThreadPool {
    /// A pool of at most `threads_max` threads, named `name` and a number, and at most `queue_max`
    /// calls that wait.
    pub fn new(name: &str, threads_max: usize, queue_max: usize) -> Self {
        let shared = Shared {
            name: name.to_owned(),
            threads_max: threads_max.max(1),
            queue_max,
            state: Mutex::default(),
            work: Condvar::new(),
        };
        Self { handle: Arc::new(Handle { shared: Arc::new(shared) }) }
    }

    /// Makes a blocking call on a thread of the pool. Dropping the future abandons the answer; the
    /// call is made all the same.
    pub fn run<T, F>(&self, call: F) -> impl Future<Output = Result<T, PoolError>> + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let queued = self.handle.shared.queue(Box::new(move || {
            let result = std::panic::catch_unwind(AssertUnwindSafe(call));
            Box::new(move || {
                // Nobody may be left to hear it.
                let _ = sender.send(result);
            })
        }));
        async move {
            queued?;
            match receiver.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(_)) | Err(_) => Err(PoolError::Panicked),
            }
        }
    }

    /// What the pool does now.
    pub fn stats(&self) -> ThreadPoolStats {
        let state = self.handle.shared.lock();
        ThreadPoolStats {
            threads: state.threads,
            running: state.running.len(),
            queued: state.queue.len(),
            completed: state.completed,
            worked: state.worked,
            oldest_running: state.running.values().min().map(|start| clock::now() - *start),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(self: &Arc<Self>, job: Job) -> Result<(), PoolError> {
        let mut state = self.lock();
        // Threads that were woken for a queued call still count as idle until they have taken it.
        let thread_free = state.idle > state.queue.len();
        if thread_free {
            state.queue.push_back(job);
            self.work.notify_one();
            return Ok(());
        }
        if state.threads < self.threads_max {
            let shared = self.clone();
            let name = format!("{}-{}", self.name, state.threads);
            match std::thread::Builder::new().name(name).spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                Err(_) if state.threads > 0 => {}
                Err(_) => return Err(PoolError::NoThread),
            }
        } else if state.queue.len() >= self.queue_max {
            return Err(PoolError::Full);
        }
        state.queue.push_back(job);
        Ok(())
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            let Some(job) = state.queue.pop_front() else {
                if state.closing {
                    state.threads -= 1;
                    return;
                }
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            let call = state.calls;
            state.calls += 1;
            state.running.insert(call, clock::now());
            drop(state);
            let deliver = job();
            state = self.lock();
            if let Some(start) = state.running.remove(&call) {
                state.worked += clock::now() - start;
            }
            state.completed += 1;
            drop(state);
            // After the books are right, and without the lock: it runs the receiver's waker.
            deliver();
            state = self.lock();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::Executor;
    use crate::uring::{UringOptions, executor};

    fn real() -> Executor {
        executor(&UringOptions::for_reactor()).expect("ring").0
    }

    #[test]
    fn a_call_that_hangs_holds_up_nobody_else() {
        let pool = ThreadPool::new("test", 2, 10);
        let (release, hang) = mpsc::channel::<()>();
        let hung = pool.run(move || hang.recv().is_ok());
        let executor = real();
        executor.block_on(async {
            for i in 0..100 {
                assert_eq!(pool.run(move || i * 2).await, Ok(i * 2));
            }
            let stats = pool.stats();
            assert_eq!((stats.threads, stats.running, stats.queued), (2, 1, 0));
            assert!(stats.oldest_running.is_some());
            release.send(()).expect("waits");
            assert_eq!(hung.await, Ok(true));
        });
        assert_eq!((pool.stats().completed, pool.stats().running), (101, 0));
        assert!(pool.stats().worked > Duration::ZERO, "the hung one took some time");
    }

    #[test]
    fn a_full_pool_refuses_and_recovers() {
        let pool = ThreadPool::new("test", 1, 1);
        let (release, hang) = mpsc::channel::<()>();
        let executor = real();
        executor.block_on(async {
            let first = pool.run(move || hang.recv().is_ok());
            // The thread takes the first call in its own time; the queue has one place then.
            while pool.stats().queued > 0 {
                executor.rt().yield_now().await;
            }
            let second = pool.run(|| 2);
            assert_eq!(pool.run(|| 3).await, Err(PoolError::Full));
            release.send(()).expect("waits");
            assert_eq!((first.await, second.await), (Ok(true), Ok(2)));
            assert_eq!(pool.run(|| 4).await, Ok(4));
        });
    }

    #[test]
    fn a_call_is_made_without_its_future_and_without_its_pool() {
        let pool = ThreadPool::new("test", 1, 10);
        let (sender, made) = mpsc::channel();
        let second = sender.clone();
        drop(pool.run(move || sender.send(1)));
        drop(pool.run(move || second.send(2)));
        drop(pool);
        assert_eq!(made.iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_panic_is_the_callers_error_and_the_thread_goes_on() {
        let pool = ThreadPool::new("test", 1, 10);
        real().block_on(async {
            assert_eq!(pool.run(|| panic!("on purpose")).await, Err::<(), _>(PoolError::Panicked));
            assert_eq!(pool.run(|| 1).await, Ok(1));
        });
        assert_eq!(pool.stats().threads, 1);
    }
}
