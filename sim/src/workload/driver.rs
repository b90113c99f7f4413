//! The life of a place at which client processes run: two tasks that draw operations, until all are
//! done or the process is killed, when another takes the place.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bb_client::{Error, File};
use bb_runtime::Instant;

use super::bench::Bench;
use super::names::Owner;
use crate::model::Moment;
use crate::world::{ClientProcess, client_options, pool_bytes};

/// Open files of a process at the most.
const HANDLES_MAX: usize = 8;
/// Tasks of a process.
const TASKS: usize = 2;

/// Where client processes run, one after the other.
#[derive(Default)]
pub struct Place {
    /// The process that runs there.
    pub process: RefCell<Option<Rc<ClientProcess>>>,
    /// All is done.
    pub ended: Cell<bool>,
}

/// An open file.
pub(super) struct Handle {
    pub(super) id: u64,
    pub(super) file: File,
    pub(super) flags: i32,
    /// What others had made durable before this, it sees.
    pub(super) fresh: Cell<Moment>,
    /// The same for sizes.
    pub(super) fresh_size: Moment,
}

/// One task of a process.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) bench: Rc<Bench>,
    pub(super) process: Rc<ClientProcess>,
    pub(super) place: usize,
    pub(super) handles: Rc<RefCell<Vec<Rc<Handle>>>>,
    pub(super) appender: Rc<RefCell<Option<Rc<File>>>>,
    /// When the operation of this task began.
    begun: Cell<Instant>,
}

/// Prepares the names of a run.
pub fn lay_out(bench: &Bench, places: usize) {
    let files = if bench.family.is_hot() { 1 } else { 3 };
    for n in 0..files {
        bench.names.add(&format!("/shared{n}"), Owner::Shared);
    }
    for place in 0..places {
        for n in 0..files {
            bench.names.add(&format!("/own{place}.{n}"), Owner::Place(place));
        }
    }
    for n in 0..4 {
        bench.dirs.add(&format!("/dir{n}"), Owner::Shared);
    }
}

/// Runs processes at a place until the operations of the run are used up.
pub async fn run_place(bench: Rc<Bench>, place: Rc<Place>, number: usize) {
    while bench.left.get() > 0 {
        let options = client_options(bench.rt(), bench.family.fills_up());
        let memory = pool_bytes(bench.rt());
        let process = match bench.world.connect_with(options, memory).await {
            Ok(process) => process,
            Err(why) => {
                bench.violation(format!("a client cannot connect: {why}"));
                break;
            }
        };
        bench.note(|| format!("c{} begins at place {number}", process.actor.0));
        *place.process.borrow_mut() = Some(process.clone());
        let worker = Worker {
            bench: bench.clone(),
            process: process.clone(),
            place: number,
            handles: Rc::default(),
            appender: Rc::default(),
            begun: Cell::new(bench.rt().now()),
        };
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let worker = worker.clone();
                process.rt.spawn(async move { worker.run().await })
            })
            .collect();
        let mut killed = false;
        for task in tasks {
            killed |= task.await.is_err();
        }
        if !killed {
            let ending = worker.clone();
            killed = process.rt.spawn(async move { ending.end().await }).await.is_err();
        }
        bench.note(|| format!("c{} has ended, killed: {killed}", process.actor.0));
        *place.process.borrow_mut() = None;
        bench.world.kill_client(&process);
        drop(worker);
        // What destructors have started.
        bench.world.kill_client(&process);
    }
    place.ended.set(true);
}

/// More of what moves bytes, and of fsync, in runs where everybody meets.
const fn hot(drawn: u64) -> u64 {
    const FSYNC: u64 = 63;
    const RESIDENCY: u64 = 88;
    match drawn {
        28..=34 => FSYNC,
        55..=62 | 76..=78 | 85..=87 | 94..=99 => RESIDENCY,
        other => other,
    }
}

impl Worker {
    pub(super) fn draw(&self, bound: u64) -> u64 {
        self.bench.world.draw(bound)
    }

    pub(super) fn begun(&self) -> Instant {
        self.begun.get()
    }

    /// The operation failed: see [`Bench::failed`].
    pub(super) fn failed(&self, what: &'static str, error: &Error, gone: bool) {
        self.bench.failed(what, self.process.actor, self.begun.get(), error, gone);
    }

    async fn run(&self) {
        while self.bench.left.get() > 0 {
            self.think().await;
            let left = self.bench.left.get();
            self.bench.left.set(left.saturating_sub(1));
            if left > 0 {
                self.operate().await;
                self.bench.ended.set(self.bench.ended.get() + 1);
            }
        }
    }

    /// Bursts, and pauses in which other things happen.
    async fn think(&self) {
        let longest = match self.draw(20) {
            0 => Duration::from_millis(800),
            1..=4 => Duration::from_millis(50),
            _ => Duration::from_micros(200),
        };
        self.bench.world.pause(longest).await;
    }

    async fn operate(&self) {
        self.begun.set(self.bench.rt().now());
        if self.draw(100) < self.bench.family.names_percent() {
            return self.change_names().await;
        }
        let open = self.handles.borrow().len();
        if open == 0 || open < HANDLES_MAX && self.draw(12) == 0 {
            return self.open_some().await;
        }
        let Some(handle) = self.some_handle() else { return };
        let kind = match self.draw(100) {
            drawn if self.bench.family.is_hot() => hot(drawn),
            drawn => drawn,
        };
        match kind {
            0..=34 => self.write(&handle).await,
            35..=62 => self.read(&handle).await,
            63..=72 => self.fsync(&handle).await,
            73..=78 => self.close_some(handle).await,
            79..=82 => self.truncate(&handle).await,
            83..=87 => self.fstat(&handle).await,
            // Who may read may move bytes.
            88..=93 if handle.flags & libc::O_ACCMODE == libc::O_WRONLY => {}
            88..=93 => self.residency(&handle).await,
            94..=95 => self.append().await,
            _ => self.read_outside().await,
        }
    }

    /// Closes everything.
    async fn end(&self) {
        loop {
            let Some(handle) = self.handles.borrow_mut().pop() else { break };
            self.begun.set(self.bench.rt().now());
            self.close(handle).await;
        }
        let appender = self.appender.borrow_mut().take();
        drop(appender);
        let tally = &self.bench.world.tally;
        tally.borrow_mut().reconstructed += self.process.client.reconstructed_blocks();
    }

    fn some_handle(&self) -> Option<Rc<Handle>> {
        let handles = self.handles.borrow();
        let at = self.draw(handles.len().max(1) as u64);
        handles.get(usize::try_from(at).unwrap_or(0)).cloned()
    }

    /// Closes one that the process's other task is not using.
    async fn close_some(&self, handle: Rc<Handle>) {
        self.handles.borrow_mut().retain(|other| !Rc::ptr_eq(other, &handle));
        self.close(handle).await;
    }
}
