//! The client's own thread: it drives while no caller does, or while many would take turns, runs
//! callbacks, and ends the client.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::core::{Core, Platform};
use super::drive::{Inbox, Leader, Shared, Turn, lock};
use super::later::Later;
use super::stopped;
use crate::error::{Error, Result};
use crate::options::ClientOptions;

/// The background thread takes over when no call was made for so long: a program that makes one
/// call after the other shall not push it away each time.
const QUIET: Duration = Duration::from_millis(1);

impl Shared {
    /// Connects, and starts the background thread.
    pub fn connect(platform: Platform, options: ClientOptions) -> Result<Arc<Self>> {
        let core = Core::connect(platform, options)?;
        let inbox = Inbox { jobs: VecDeque::new(), leader: Some(core.executor.unparker()) };
        let shared = Arc::new(Self {
            core: Mutex::new(Some(core)),
            inbox: Mutex::new(inbox),
            turn: Mutex::new(Turn::new()),
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

    /// The background thread ends, and the executor with it.
    pub fn stop(&self) {
        lock(&self.turn).stop = true;
        self.idle.notify_all();
        self.wake_leader();
    }

    fn run_background(&self) -> Result<()> {
        let mut calls_seen = 0;
        loop {
            self.later.run_callbacks();
            let (stop, lead) = {
                let turn = self.wait_for_lead(&mut calls_seen);
                (turn.stop, turn.leader == Leader::Background)
            };
            if stop {
                break;
            }
            if !lead {
                // It is callbacks that there are.
                continue;
            }
            self.drive(|| {
                let turn = lock(&self.turn);
                turn.stop || turn.is_contested() || self.later.has_callbacks()
            });
            self.hand_over();
        }
        self.end()
    }

    /// Waits until the lead is this thread's, or there are callbacks, or the end has come.
    fn wait_for_lead(&self, calls_seen: &mut u64) -> MutexGuard<'_, Turn> {
        let mut turn = lock(&self.turn);
        loop {
            // Where a crowd has given it the lead, it has that also if there is something else.
            if turn.stop || turn.leader == Leader::Background || self.later.has_callbacks() {
                break;
            }
            // A program that makes one call after the other drives by itself, unless there is
            // something that it does not wait for.
            let quiet = turn.calls == *calls_seen || self.later.is_urgent();
            let free = turn.leader == Leader::Nobody && turn.waiting.is_empty();
            if quiet && free && !self.is_broken() {
                turn.leader = Leader::Background;
                break;
            }
            *calls_seen = turn.calls;
            turn.background_is_free = true;
            let waited = self.idle.wait_timeout(turn, QUIET);
            turn = waited.unwrap_or_else(PoisonError::into_inner).0;
            turn.background_is_free = false;
        }
        turn
    }

    /// The end of the background thread: nobody calls any more, or nobody shall. Closes what is
    /// open.
    fn end(&self) -> Result<()> {
        self.lead_for_the_end();
        let core = lock(&self.core).take();
        let mut ended = Ok(());
        if let Some(core) = core {
            core.inside.tell_at_once();
            let jobs = lock(&self.inbox).close();
            let rt = core.executor.rt();
            for job in jobs {
                drop(rt.spawn(job.begin(core.inside.clone())));
            }
            let client = core.inside.client.clone();
            ended = core.executor.block_on(client.disconnect());
            if let Err(error) = &ended {
                tracing::warn!(%error, "written data was lost when the client was dropped");
            }
        }
        self.hand_over();
        // Those that were under way were dropped with the executor, and their callbacks wait here.
        self.later.fail_all();
        self.later.run_callbacks();
        ended
    }

    /// Nobody sleeps in the ring any more when this is left.
    fn lead_for_the_end(&self) {
        let mut turn = lock(&self.turn);
        while turn.leader == Leader::Caller {
            turn = self.idle.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        turn.leader = Leader::Background;
    }
}
