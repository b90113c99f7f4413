//! Threads that share a client, with jobs that no request stands behind.

#[path = "../../tests/fake/mod.rs"]
#[expect(dead_code, reason = "made for the tests beside this crate")]
mod fake;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use bb_runtime::BufPool;
use bb_runtime::uring::{self, UringOptions};
use bb_transport::Address;

use super::Platform;
use super::drive::{Leader, Shared, lock};
use crate::ClientOptions;
use crate::error::Result;

fn connect() -> Arc<Shared> {
    let (executor, _ring) = uring::executor(&UringOptions::for_library()).expect("io_uring");
    let cluster = fake::Fake::new(&executor.rt());
    let pool = BufPool::new(16 << 20, false).expect("memory");
    // SAFETY: nothing of the executor or the cluster is kept here.
    let platform =
        unsafe { Platform::own(executor, pool, cluster.caller(), vec![Address::from("server")]) };
    Shared::connect(platform, ClientOptions::default()).expect("connects")
}

/// What a job of one thread waits for, and a job of another one does.
#[derive(Default)]
struct Gate {
    passed: AtomicU64,
    waiting: Mutex<Vec<Waker>>,
}

impl Gate {
    async fn reaches(&self, number: u64) {
        std::future::poll_fn(|cx| {
            lock(&self.waiting).push(cx.waker().clone());
            if self.passed.load(Ordering::SeqCst) >= number {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    fn pass(&self) {
        self.passed.fetch_add(1, Ordering::SeqCst);
        lock(&self.waiting).drain(..).for_each(Waker::wake);
    }
}

fn wait_at(shared: &Arc<Shared>, gate: &Arc<Gate>, number: u64) -> Result<()> {
    let gate = gate.clone();
    shared.call(move |_| {
        Box::pin(async move {
            gate.reaches(number).await;
            Ok(())
        })
    })
}

fn pass(shared: &Arc<Shared>, gate: &Gate) -> Result<()> {
    let job = || gate.pass();
    shared.call(move |_| {
        Box::pin(async move {
            job();
            Ok(())
        })
    })
}

fn local(shared: &Arc<Shared>, count: &AtomicU64) {
    let job = || count.fetch_add(1, Ordering::Relaxed);
    shared.call(move |_| Box::pin(async move { Ok(job()) })).expect("nothing fails");
}

/// Times that a thread of this process went to sleep.
fn sleeps_of(thread_id: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/self/task/{thread_id}/status"));
    let status = status.expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|line| line.trim().parse().ok()).expect("a number")
}

/// Fails loudly where nothing moves any more, instead of never ending.
fn watched<R>(moved: &AtomicU64, work: impl FnOnce() -> R) -> R {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut seen, mut still) = (0, 0);
            while !over.load(Ordering::SeqCst) {
                thread::park_timeout(Duration::from_millis(10));
                let now = moved.load(Ordering::SeqCst);
                still = if now == seen { still + 1 } else { 0 };
                seen = now;
                if still > 3_000 {
                    eprintln!("{seen} calls have ended, and none for 30 s: they sleep through it");
                    std::process::abort();
                }
            }
        });
        let result = work();
        over.store(true, Ordering::SeqCst);
        result
    })
}

fn until(what: impl Fn() -> bool) {
    while !what() {
        thread::yield_now();
    }
}

#[test]
fn local_calls_return_by_themselves_while_the_leader_sleeps() {
    let (shared, gate) = (connect(), Arc::new(Gate::default()));
    let (ended, leader) = (AtomicU64::new(0), AtomicUsize::new(0));
    let sleeps = watched(&ended, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: takes no arguments.
                let id = unsafe { libc::gettid() };
                leader.store(usize::try_from(id).expect("positive"), Ordering::SeqCst);
                wait_at(&shared, &gate, 1).expect("nothing fails");
            });
            until(|| lock(&shared.turn).leader == Leader::Caller);
            // It may be about to fall asleep still.
            (0..100).for_each(|_| local(&shared, &ended));
            let id = i32::try_from(leader.load(Ordering::SeqCst)).expect("small");
            let before = sleeps_of(id);
            (0..2_000).for_each(|_| local(&shared, &ended));
            let sleeps = sleeps_of(id) - before;
            // Many at once, who meet at the lock.
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| (0..1_000).for_each(|_| local(&shared, &ended)));
                }
            });
            // Ends the leader's own job, which must wake it.
            pass(&shared, &gate).expect("nothing fails");
            sleeps
        })
    });
    assert_eq!(ended.load(Ordering::SeqCst), 10_100);
    // Its own timers wake it now and then, and before the first of these calls it may be awake.
    assert!(sleeps < 200, "the leader was woken {sleeps} times for 2000 local calls");
    shared.stop_and_wait().expect("nothing is lost");
}

#[test]
fn no_call_is_slept_through() {
    const THREADS: usize = 16;
    const CALLS: u64 = 3_000;
    let shared = connect();
    let ended = AtomicU64::new(0);
    let gates: Vec<Arc<Gate>> = (0..THREADS).map(|_| Arc::default()).collect();
    watched(&ended, || {
        thread::scope(|scope| {
            for me in 0..THREADS {
                let (shared, ended, gates) = (&shared, &ended, &gates);
                scope.spawn(move || {
                    for number in 1..=CALLS {
                        one_call(shared, number, me as u64, &gates[me], &gates[me ^ 1]);
                        ended.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
    });
    assert_eq!(ended.load(Ordering::SeqCst), THREADS as u64 * CALLS);
    shared.stop_and_wait().expect("nothing is lost");
}

/// Every call passes its thread's gate; some wait before that, or for the neighbour's gate.
fn one_call(shared: &Arc<Shared>, number: u64, me: u64, gate: &Arc<Gate>, other: &Arc<Gate>) {
    let (mine, theirs) = (gate.clone(), other.clone());
    let result = shared.call(move |inside| {
        Box::pin(async move {
            let rt = inside.client.inner.rt();
            match (number * 7 + me / 2) % 5 {
                0 => rt.sleep(Duration::from_micros(rt.random_below(400))).await,
                1 => rt.yield_now().await,
                _ => {}
            }
            mine.pass();
            if number.is_multiple_of(3) {
                theirs.reaches(number).await;
            }
            Ok(number)
        })
    });
    assert_eq!(result.expect("nothing fails"), number);
}

#[test]
fn a_panic_on_an_assistants_thread_ends_the_calls_of_all() {
    let (shared, gate) = (connect(), Arc::new(Gate::default()));
    let ended = AtomicU64::new(0);
    watched(&ended, || {
        thread::scope(|scope| {
            let never = || {
                assert!(wait_at(&shared, &gate, 1).is_err());
                ended.fetch_add(1, Ordering::SeqCst);
            };
            scope.spawn(never);
            until(|| lock(&shared.turn).leader == Leader::Caller);
            for _ in 0..4 {
                scope.spawn(never);
            }
            until(|| lock(&shared.turn).waiting.len() == 4);
            let result: Result<()> =
                shared.call(|_| Box::pin(async { panic!("planted, with {ended:?} calls ended") }));
            assert!(result.is_err());
        });
    });
    assert_eq!(ended.load(Ordering::SeqCst), 5);
    assert!(shared.is_broken());
    assert!(shared.call(|_| Box::pin(async { Ok(()) })).is_err());
    shared.stop_and_wait().expect("nothing was written");
}

#[test]
fn a_client_that_is_stopped_waits_for_the_leader_and_drops_the_others_calls() {
    let (shared, first, second) = (connect(), Arc::new(Gate::default()), Arc::new(Gate::default()));
    let ended = AtomicU64::new(0);
    watched(&ended, || {
        thread::scope(|scope| {
            let leader = scope.spawn(|| wait_at(&shared, &first, 1));
            until(|| lock(&shared.turn).leader == Leader::Caller);
            let follower = scope.spawn(|| wait_at(&shared, &second, 1));
            until(|| lock(&shared.turn).waiting.len() == 1);
            shared.stop();
            local(&shared, &ended);
            pass(&shared, &first).expect("it is not over yet");
            leader.join().expect("no panic").expect("it had the executor");
            ended.fetch_add(1, Ordering::SeqCst);
            // The follower may lead once more before the end, or is told of it.
            second.passed.fetch_add(1, Ordering::SeqCst);
            shared.wake_leader();
            let _ = pass(&shared, &second);
            let _ = follower.join().expect("no panic");
        });
    });
    shared.stop_and_wait().expect("nothing is lost");
    assert!(shared.call(|_| Box::pin(async { Ok(()) })).is_err());
}
