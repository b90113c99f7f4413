use std::cell::{Cell, RefCell};
use std::io::Write;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use super::*;
use crate::driver::Driver;
use crate::executor::{Order, Rt};
use crate::time::WallTime;
use crate::uring::{Uring, UringOptions, executor};

/// An executor behind a lock, and what its leader was seen doing.
struct Together {
    core: Mutex<Core>,
    unparker: Arc<dyn Unpark>,
    steps: AtomicU64,
    asleep: AtomicBool,
    stop: AtomicBool,
}

struct Core {
    executor: Executor,
    uring: Uring,
}

// SAFETY: nothing of it is outside, and it is used under a lock only.
unsafe impl Send for Core {}

impl Together {
    fn new() -> Self {
        let (executor, uring) = executor(&UringOptions::for_library()).expect("io_uring");
        Self {
            unparker: executor.unparker(),
            core: Mutex::new(Core { executor, uring }),
            steps: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().expect("nobody panics")
    }

    fn lead(&self) {
        let sleeper = self.lock().executor.sleeper();
        loop {
            let core = self.lock();
            core.executor.resume();
            self.asleep.store(false, Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            self.steps.fetch_add(1, Ordering::SeqCst);
            let step = core.executor.step();
            self.asleep.store(matches!(step, Step::Sleep(_)), Ordering::SeqCst);
            drop(core);
            match step {
                Step::Again => {}
                Step::GiveWay => sleeper.give_way(),
                Step::Sleep(until) => sleeper.sleep(until),
            }
        }
    }

    /// Runs `work` while a thread leads, which sleeps when `work` begins.
    fn beside_a_sleeper<R>(&self, work: impl FnOnce() -> R) -> R {
        thread::scope(|scope| {
            scope.spawn(|| self.lead());
            while !self.asleep.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            let _stop = Stop(self);
            work()
        })
    }

    fn assist(&self, begin: impl FnOnce(&Rt, &Uring)) {
        let core = self.lock();
        core.executor.assist(|| begin(&core.executor.rt(), &core.uring));
    }
}

/// Ends the leader's work, also where a check fails.
struct Stop<'a>(&'a Together);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
        self.0.unparker.unpark();
    }
}

#[test]
fn what_an_assistant_can_end_by_itself_wakes_nobody() {
    let together = Together::new();
    let ran = Arc::new(AtomicU64::new(0));
    together.beside_a_sleeper(|| {
        let before = together.steps.load(Ordering::SeqCst);
        for _ in 0..1_000 {
            together.assist(|rt, _| {
                let (rt2, ran) = (rt.clone(), ran.clone());
                drop(rt.spawn(async move {
                    rt2.yield_now().await;
                    ran.fetch_add(1, Ordering::SeqCst);
                }));
            });
        }
        assert_eq!(ran.load(Ordering::SeqCst), 1_000);
        // A debugger, or whoever else stops and continues the process, ends a sleep too.
        let steps = together.steps.load(Ordering::SeqCst) - before;
        assert!(steps < 50, "woken {steps} times for 1000 tasks");
    });
}

#[test]
fn a_timer_of_an_assistant_is_not_slept_through() {
    let together = Together::new();
    let (ended, end) = mpsc::channel();
    together.beside_a_sleeper(|| {
        // Each is due before all that the leader knows of, which at first sleeps forever.
        for ms in [400, 200, 20, 1] {
            let ended = ended.clone();
            together.assist(|rt, _| {
                let rt2 = rt.clone();
                drop(rt.spawn(async move {
                    rt2.sleep(Duration::from_millis(ms)).await;
                    let _ = ended.send(ms);
                }));
            });
        }
        let order: Vec<u64> = end.iter().take(4).collect();
        assert_eq!(order, [1, 20, 200, 400]);
    });
}

#[test]
fn no_timer_is_lost_whatever_the_leader_does_when_it_is_made() {
    let together = Together::new();
    let (ended, end) = mpsc::channel();
    together.beside_a_sleeper(|| {
        for n in 0..3_000_u64 {
            let ended = ended.clone();
            together.assist(|rt, _| {
                let rt2 = rt.clone();
                let time = Duration::from_micros(rt.random_below(60));
                drop(rt.spawn(async move {
                    rt2.sleep(time).await;
                    let _ = ended.send(n);
                }));
            });
            if n % 3 > 0 {
                continue;
            }
            // No other timer is left that could wake the leader instead of these.
            for _ in 0..if n == 0 { 1 } else { 3 } {
                end.recv_timeout(Duration::from_secs(20)).expect("it is due");
            }
        }
    });
}

#[test]
fn tasks_that_an_assistant_leaves_are_run_by_the_leader() {
    let together = Together::new();
    let (ended, end) = mpsc::channel();
    together.beside_a_sleeper(|| {
        together.assist(|rt, _| {
            for n in 0..1_000_u32 {
                let ended = ended.clone();
                drop(rt.spawn(async move { ended.send(n).expect("somebody counts") }));
            }
        });
        assert_eq!(end.iter().take(1_000).sum::<u32>(), 499_500);
    });
}

#[test]
fn a_request_of_an_assistant_that_is_gone_ends_all_the_same() {
    let together = Together::new();
    let (ended, end) = mpsc::channel();
    let (reader, mut writer) = std::os::unix::net::UnixStream::pair().expect("sockets");
    together.beside_a_sleeper(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                together.assist(|rt, uring| {
                    let uring = uring.clone();
                    let fd = uring.adopt(reader.into());
                    drop(rt.spawn(async move {
                        let (got, bytes) = uring.recv_bytes(&fd, vec![0; 8], 0..8).await;
                        let _ = ended.send((got.expect("receives"), bytes[0]));
                    }));
                });
            });
        });
        writer.write_all(&[42; 5]).expect("writes");
        assert_eq!(end.recv(), Ok((5, 42)));
    });
}

#[test]
fn a_task_that_another_thread_wakes_runs_though_everybody_sleeps() {
    let together = Together::new();
    let (ended, end) = mpsc::channel();
    let slot = Arc::new(Mutex::new((0_u32, None::<Waker>)));
    together.beside_a_sleeper(|| {
        together.assist(|rt, _| {
            let slot = slot.clone();
            drop(rt.spawn(std::future::poll_fn(move |cx| {
                let mut slot = slot.lock().expect("nobody panics");
                slot.1 = Some(cx.waker().clone());
                let _ = ended.send(slot.0);
                if slot.0 < 100 { Poll::Pending } else { Poll::Ready(()) }
            })));
        });
        for n in 0..=100 {
            assert_eq!(end.recv(), Ok(n));
            let mut slot = slot.lock().expect("nobody panics");
            slot.0 = n + 1;
            if let Some(waker) = slot.1.take() {
                waker.wake();
            }
        }
    });
}

/// Writes down what it is asked for, and always sends the leader to sleep.
#[derive(Default)]
struct Witness {
    seen: Rc<RefCell<Vec<&'static str>>>,
    takes_nothing: Cell<bool>,
    unparks: Arc<Unparks>,
}

#[derive(Default)]
struct Unparks(AtomicU64);

impl Unpark for Unparks {
    fn unpark(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Driver for Witness {
    fn now(&self) -> Instant {
        Instant::ZERO
    }
    fn wall(&self) -> WallTime {
        WallTime(0)
    }
    fn poll(&self) {
        self.seen.borrow_mut().push("kernel");
    }
    fn park(&self, _deadline: Option<Instant>) {
        unreachable!("the leader sleeps by itself");
    }
    fn submit(&self) -> bool {
        !self.takes_nothing.get()
    }
    fn rest(&self, _deadline: Option<Instant>) -> Rest {
        Rest::Sleep
    }
    fn unparker(&self) -> Arc<dyn Unpark> {
        self.unparks.clone()
    }
}

#[test]
fn what_a_caller_begins_goes_its_way_before_the_kernel_is_asked_for_anything() {
    let witness = Rc::new(Witness::default());
    let executor = Executor::new(witness.clone(), Order::Fifo, 1);
    let seen = witness.seen.clone();
    executor.resume();
    drop(executor.rt().spawn(async move { seen.borrow_mut().push("request") }));
    assert_eq!(executor.step(), Step::Again);
    assert_eq!(*witness.seen.borrow(), ["request", "kernel"]);
    executor.resume();
    assert_eq!(executor.step(), Step::Sleep(None));
}

#[test]
fn requests_of_an_assistant_that_the_kernel_did_not_take_wake_the_leader() {
    let witness = Rc::new(Witness::default());
    let executor = Executor::new(witness.clone(), Order::Fifo, 1);
    executor.resume();
    assert_eq!(executor.step(), Step::Sleep(None));
    executor.assist(|| ());
    assert_eq!(witness.unparks.0.load(Ordering::SeqCst), 0);
    witness.takes_nothing.set(true);
    executor.assist(|| ());
    assert_eq!(witness.unparks.0.load(Ordering::SeqCst), 1);
}
