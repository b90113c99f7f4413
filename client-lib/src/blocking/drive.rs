//! Who drives the executor: leader, assistants, followers, background.
//!
//! The executor lies behind a lock. The *leader* makes its turns, one after the other, and does not
//! hold the lock in between, which is where it sleeps. A thread that calls meanwhile begins its job
//! by itself, as an *assistant*: under the lock, but without waking anybody. If that is not enough
//! it becomes a *follower*: it sleeps until its job has ended or it is its turn to lead. Where the
//! lock is taken, it leaves its job in the inbox.
//!
//! Nothing is slept through:
//! - What ends, becomes due or is woken wakes the leader ([`Executor::step`], `assist`).
//! - What the leader looks at else (inbox, `enough`) it looks at after [`Executor::resume`]; whoever
//!   changes it calls [`Shared::wake_leader`] afterwards.
//! - A follower enters `waiting` while somebody leads, then looks once more, then parks. Whoever
//!   ends its job, the lead, or the executor unparks it after that.
//!
//! Followers whose calls have ended are unparked when the lock is free again: they need it next.
//!
//! [`Executor::step`]: bb_runtime::Executor::step
//! [`Executor::resume`]: bb_runtime::Executor::resume

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle, Thread};

use bb_runtime::{Step, Unpark};

use super::call::Job;
use super::core::Core;
use super::later::Later;
use crate::error::Result;

/// So many followers are a crowd: the lead then goes to the background thread, and stays there.
/// Each that led for its own call only would hand over at its end, and leave requests behind that
/// the kernel finishes on the thread that made them, which is a switch to that thread each time.
const CROWD: usize = 2;

/// The crowd is gone where so many calls in a row had to wait alone.
const LONE_CALLS_MAX: u32 = 16;

/// Everything that threads share.
pub(crate) struct Shared {
    pub(super) core: Mutex<Option<Core>>,
    pub(super) inbox: Mutex<Inbox>,
    pub(super) turn: Mutex<Turn>,
    /// The background thread waits here.
    pub(super) idle: Condvar,
    /// A panic has ended the executor. What it held is never touched again.
    pub(super) broken: AtomicBool,
    /// Requests whose caller does not wait.
    pub(super) later: Later,
    /// The background thread, for whoever waits for its end.
    pub(super) background: Mutex<Option<JoinHandle<Result<()>>>>,
}

pub(super) struct Inbox {
    pub jobs: VecDeque<Box<dyn Job>>,
    /// Wakes the leader. Gone once nobody takes jobs out any more.
    pub leader: Option<Arc<dyn Unpark>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leader {
    Nobody,
    Caller,
    Background,
}

pub(super) struct Turn {
    pub leader: Leader,
    /// Followers: whoever leads next is one of them, or the background thread.
    pub waiting: Vec<(u64, Thread)>,
    pub next: u64,
    pub calls: u64,
    pub stop: bool,
    /// The background thread does nothing, and waits for `idle`.
    pub background_is_free: bool,
    /// The background thread leads for a crowd: it does not give way to each follower.
    pub crowd: bool,
    /// Followers in a row that waited alone.
    pub alone: u32,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inbox {
    /// Nobody takes jobs out from now on; those that are there.
    pub fn close(&mut self) -> VecDeque<Box<dyn Job>> {
        self.leader = None;
        std::mem::take(&mut self.jobs)
    }
}

impl Turn {
    pub fn new() -> Self {
        Self {
            leader: Leader::Nobody,
            waiting: Vec::new(),
            next: 0,
            calls: 0,
            stop: false,
            background_is_free: false,
            crowd: false,
            alone: 0,
        }
    }

    /// A thread begins to follow. Its number.
    fn follow(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.push((number, thread::current()));
        self.alone = if self.waiting.len() > 1 { 0 } else { self.alone + 1 };
        self.crowd &= self.alone <= LONE_CALLS_MAX;
        number
    }

    /// The background thread is asked to let a caller lead.
    pub fn is_contested(&self) -> bool {
        !self.waiting.is_empty() && !self.crowd
    }
}

impl Shared {
    /// True where a panic ended the executor: nothing will work any more.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Queues jobs for the leader. Where none will ever be carried out any more, they are dropped
    /// at once, which tells whoever waits for them.
    pub(super) fn submit_all(&self, jobs: impl Iterator<Item = Box<dyn Job>>) {
        let leader = {
            let mut inbox = lock(&self.inbox);
            let leader = inbox.leader.clone();
            if leader.is_some() {
                inbox.jobs.extend(jobs);
            } else {
                drop(inbox);
                jobs.for_each(drop);
            }
            leader
        };
        if let Some(leader) = leader {
            leader.unpark();
        }
    }

    /// The background thread looks at once: there is something that no caller drives.
    pub(super) fn wake_background(&self) {
        self.idle.notify_one();
    }

    pub(super) fn wake_leader(&self) {
        let leader = lock(&self.inbox).leader.clone();
        if let Some(leader) = leader {
            leader.unpark();
        }
    }

    /// Has `job` carried out, by this thread if possible, and waits until `done`.
    pub(super) fn start(&self, job: Box<dyn Job>, done: impl Fn() -> bool) {
        let lead = {
            let mut turn = lock(&self.turn);
            turn.calls += 1;
            turn.try_lead()
        };
        if lead {
            self.submit_all(std::iter::once(job));
            self.drive(|| done() || self.is_broken());
            self.hand_over();
        } else if let Some(job) = self.assist(job) {
            self.submit_all(std::iter::once(job));
        }
        self.wait(done);
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
            let (lead, contested) = {
                let mut turn = lock(&self.turn);
                turn.calls += u64::from(ticket.is_none());
                let lead = turn.try_lead();
                if !lead {
                    ticket.get_or_insert_with(|| turn.follow());
                }
                (lead, turn.leader == Leader::Background && turn.is_contested())
            };
            if lead {
                self.leave_queue(ticket.take());
                self.drive(enough);
                self.hand_over();
                continue;
            }
            if contested {
                self.wake_leader();
            }
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
    pub(super) fn hand_over(&self) {
        let mut turn = lock(&self.turn);
        let crowd =
            turn.leader == Leader::Caller && turn.background_is_free && turn.waiting.len() >= CROWD;
        turn.leader = Leader::Nobody;
        turn.crowd = crowd;
        if crowd {
            turn.alone = 0;
            turn.background_is_free = false;
            turn.leader = Leader::Background;
            self.idle.notify_all();
            return;
        }
        if let Some((_, next)) = turn.waiting.first() {
            next.unpark();
        }
        if turn.stop || (turn.waiting.is_empty() && self.later.is_urgent()) {
            self.idle.notify_all();
        }
    }

    /// Drives the executor until `enough`. Only for the leader.
    pub(super) fn drive(&self, enough: impl Fn() -> bool) {
        loop {
            let core = lock(&self.core);
            let Some(led) = &*core else { return };
            let turn = catch_unwind(AssertUnwindSafe(|| self.lead(led, &enough)));
            let Ok(step) = turn else { return self.give_up(core) };
            let ended = led.inside.take_ended();
            let sleeper = led.sleeper.clone();
            drop(core);
            ended.iter().for_each(Thread::unpark);
            match step {
                None => return,
                Some(Step::Again) => {}
                Some(Step::GiveWay) => sleeper.give_way(),
                Some(Step::Sleep(until)) => sleeper.sleep(until),
            }
        }
    }

    /// One turn of the leader's. None where it is enough.
    fn lead(&self, led: &Core, enough: impl Fn() -> bool) -> Option<Step> {
        led.executor.resume();
        self.begin_queued(led, None);
        if enough() {
            return None;
        }
        let step = led.executor.step();
        if step == Step::Again && enough() { None } else { Some(step) }
    }

    /// Begins `job` while another thread leads. It comes back where that one is at work just now.
    fn assist(&self, job: Box<dyn Job>) -> Option<Box<dyn Job>> {
        let core = match self.core.try_lock() {
            Ok(core) => core,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Some(job),
        };
        let Some(led) = &*core else { return Some(job) };
        let turn = catch_unwind(AssertUnwindSafe(|| {
            led.executor.assist(|| self.begin_queued(led, Some(job)));
        }));
        if turn.is_err() {
            self.give_up(core);
            return None;
        }
        let ended = led.inside.take_ended();
        drop(core);
        ended.iter().for_each(Thread::unpark);
        if !ended.is_empty() {
            // One of them may be the leader, which does not park.
            self.wake_leader();
        }
        None
    }

    /// Begins what lies in the inbox, and then `job`.
    fn begin_queued(&self, core: &Core, job: Option<Box<dyn Job>>) {
        let queued = std::mem::take(&mut lock(&self.inbox).jobs);
        let rt = core.executor.rt();
        for job in queued.into_iter().chain(job) {
            drop(rt.spawn(job.begin(core.inside.clone())));
        }
    }

    /// A panic has ended the executor: its tasks hold what callers have lent them, and it may be
    /// anywhere. Everybody who waits learns it.
    fn give_up(&self, mut core: MutexGuard<'_, Option<Core>>) {
        let _never_dropped = core.take().map(ManuallyDrop::new);
        tracing::error!("the client has failed; its calls end with an error from now on");
        let inbox_leader = lock(&self.inbox).leader.clone();
        self.close_inbox();
        self.broken.store(true, Ordering::Release);
        drop(core);
        if let Some(leader) = inbox_leader {
            leader.unpark();
        }
        self.later.fail_all();
        for (_, thread) in &lock(&self.turn).waiting {
            thread.unpark();
        }
        self.wake_background();
    }

    /// Nobody will take jobs out any more: whatever is queued ends here.
    pub(super) fn close_inbox(&self) {
        let jobs = lock(&self.inbox).close();
        drop(jobs);
    }
}

impl Turn {
    fn try_lead(&mut self) -> bool {
        let free = self.leader == Leader::Nobody;
        if free {
            self.leader = Leader::Caller;
        }
        free
    }
}
