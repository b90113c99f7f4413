//! The ring itself: queueing, entering the kernel, taking completions.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};

use super::fd::RingFd;
use super::op::{Op, Payload, Policy, Rearm, Running, Slot};
use super::register::Registered;
use super::sleeper::RingSleeper;
use super::wakeup::Wakeup;
use super::{RingOwner, UringError, UringOptions};

/// Completions of requests that no slot belongs to (cancellations).
const NOBODY: u64 = u64::MAX;

/// Below this, a ring is of no use.
const SUBMISSION_ENTRIES_MIN: u32 = 8;

/// How long the end of a ring waits for requests that cannot be cancelled.
const DRAIN_MS_MAX: u32 = 2000;

pub(super) struct Ring {
    pub(super) owner: RingOwner,
    uring: RefCell<IoUring>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    running: Cell<usize>,
    /// What did not fit into the submission queue.
    backlog: RefCell<VecDeque<Entry>>,
    completions: RefCell<Vec<(u64, i32)>>,
    wakeup_armed: Cell<bool>,
    complained: Cell<bool>,
    pub(super) wakeup: Arc<Wakeup>,
    pub(super) registered: RefCell<Registered>,
}

impl Ring {
    pub(super) fn new(options: &UringOptions) -> Result<Rc<Self>, UringError> {
        let uring = build(options)?;
        let ring = Rc::new(Self {
            owner: options.owner,
            uring: RefCell::new(uring),
            slots: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            running: Cell::new(0),
            backlog: RefCell::new(VecDeque::new()),
            completions: RefCell::new(Vec::new()),
            wakeup_armed: Cell::new(false),
            complained: Cell::new(false),
            wakeup: Arc::new(Wakeup::new()?),
            registered: RefCell::new(Registered::default()),
        });
        ring.make_file_table(options.registered_files);
        Ok(ring)
    }

    pub(super) fn uring(&self) -> RefMut<'_, IoUring> {
        self.uring.borrow_mut()
    }

    pub(super) fn slots(&self) -> RefMut<'_, Vec<Slot>> {
        self.slots.borrow_mut()
    }

    pub(super) fn release(&self, index: usize) {
        self.free.borrow_mut().push(index);
    }

    /// Queues an operation. `payload` must own all memory that `entry` points to.
    pub(super) fn start(
        self: &Rc<Self>,
        entry: Entry,
        fd: Option<RingFd>,
        payload: Payload,
        policy: Policy,
    ) -> Op {
        Op::new(self.clone(), self.insert(entry, fd, payload, policy))
    }

    fn insert(&self, entry: Entry, fd: Option<RingFd>, payload: Payload, policy: Policy) -> usize {
        let (index, entry) = {
            let mut slots = self.slots();
            let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
                slots.push(Slot::Free);
                slots.len() - 1
            });
            let entry = entry.user_data(index as u64);
            slots[index] = Slot::Running(Running {
                entry: entry.clone(),
                payload,
                fd,
                policy,
                waker: None,
                abandoned: false,
                cancelled: false,
            });
            (index, entry)
        };
        self.running.set(self.running.get() + 1);
        self.push(entry);
        index
    }

    /// Queues a request to cancel the operation in slot `index`. A slot is not used again before
    /// its operation has ended, and the queue keeps its order, so this can't hit a later one.
    pub(super) fn cancel(&self, index: usize) {
        self.push(opcode::AsyncCancel::new(index as u64).build().user_data(NOBODY));
    }

    fn push(&self, entry: Entry) {
        if self.backlog.borrow().is_empty() {
            if self.try_push(&entry) {
                return;
            }
            self.submit();
            if self.try_push(&entry) {
                return;
            }
        }
        self.backlog.borrow_mut().push_back(entry);
    }

    fn try_push(&self, entry: &Entry) -> bool {
        let mut uring = self.uring();
        // SAFETY: what the entry points to is owned by the operation's slot until its completion
        // has been taken from the ring.
        unsafe { uring.submission().push(entry).is_ok() }
    }

    fn push_backlog(&self) {
        let mut backlog = self.backlog.borrow_mut();
        while let Some(entry) = backlog.front() {
            if !self.try_push(entry) {
                return;
            }
            backlog.pop_front();
        }
    }

    /// Hands queued requests to the kernel and takes completions. Enters the kernel only where
    /// there is something to hand over or it has said that it has work to finish.
    pub(super) fn turn(&self) -> usize {
        self.push_backlog();
        let needed = {
            let mut uring = self.uring();
            let queue = uring.submission();
            !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
        };
        if needed {
            self.submit();
        }
        self.reap()
    }

    /// Hands queued requests to the kernel, and leaves the completions. True if none are left to
    /// hand over.
    pub(super) fn submit_queued(&self) -> bool {
        self.push_backlog();
        if !self.uring().submission().is_empty() {
            self.submit();
        }
        self.backlog.borrow().is_empty() && self.uring().submission().is_empty()
    }

    /// For threads that sleep in this ring without holding it.
    pub(super) fn sleeper(&self) -> io::Result<RingSleeper> {
        let uring = self.uring();
        // SAFETY: the descriptor is the ring's, which is not closed while it is borrowed here.
        RingSleeper::new(unsafe { BorrowedFd::borrow_raw(uring.as_raw_fd()) })
    }

    /// True if a call of [`Ring::turn`] would find something, as far as shared memory tells.
    pub(super) fn has_news(&self) -> bool {
        let mut uring = self.uring();
        let (_, submissions, completions) = uring.split();
        !completions.is_empty() || submissions.taskrun() || submissions.cq_overflow()
    }

    fn submit(&self) {
        let result = self.uring().submit();
        self.check(result);
    }

    /// Submits, and sleeps until there is a completion or the time is over.
    pub(super) fn wait(&self, timeout: Option<Duration>) {
        let result = {
            let uring = self.uring();
            match timeout {
                None => uring.submit_and_wait(1),
                Some(timeout) => {
                    let timespec = Timespec::from(timeout);
                    uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
                }
            }
        };
        self.check(result);
    }

    fn check(&self, result: io::Result<usize>) {
        let Err(error) = result else { return };
        match error.raw_os_error() {
            // A signal; the time is over; the completion queue is full, or memory is short, and
            // the requests stay queued until the next turn.
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {}
            _ => {
                if !self.complained.replace(true) {
                    tracing::error!(%error, "io_uring_enter fails: this ring makes no progress");
                }
                // Nothing will ever complete: at least leave the core to others.
                let pause = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                // SAFETY: `pause` is readable, and the remainder is not asked for.
                unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
            }
        }
    }

    /// Takes all completions, wakes their tasks, and says how many there were.
    pub(super) fn reap(&self) -> usize {
        let mut batch = std::mem::take(&mut *self.completions.borrow_mut());
        batch.extend(self.uring().completion().map(|cqe| (cqe.user_data(), cqe.result())));
        let taken = batch.len();
        for (user_data, result) in batch.drain(..) {
            if let Ok(index) = usize::try_from(user_data)
                && user_data != NOBODY
            {
                self.complete(index, result);
            }
        }
        *self.completions.borrow_mut() = batch;
        taken
    }

    fn complete(&self, index: usize, result: i32) {
        if result == -libc::ECANCELED && self.rearm(index) {
            return;
        }
        self.running.set(self.running.get() - 1);
        let (waker, fd, discarded) = {
            let mut slots = self.slots();
            let slot = &mut slots[index];
            let Slot::Running(running) = std::mem::replace(slot, Slot::Free) else {
                unreachable!("an operation ends once");
            };
            let done =
                Slot::Done { result, payload: running.payload, opens_fd: running.policy.opens_fd };
            if running.abandoned {
                (None, running.fd, Some(done))
            } else {
                *slot = done;
                (running.waker, running.fd, None)
            }
        };
        // Outside of every borrow: these run other people's destructors.
        if let Some(slot) = discarded {
            self.release(index);
            if let Slot::Done { payload: Payload::Wakeup(_), .. } = &slot {
                self.wakeup_armed.set(false);
            }
            slot.discard();
        }
        drop(fd);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Queues a request again that the kernel cancelled because its thread is gone.
    fn rearm(&self, index: usize) -> bool {
        let entry = {
            let mut slots = self.slots();
            let Slot::Running(running) = &mut slots[index] else { return false };
            if running.cancelled {
                return false;
            }
            match &mut running.policy.rearm {
                Rearm::Never | Rearm::Times(0) => return false,
                Rearm::Times(left) => *left -= 1,
                Rearm::Always => {}
            }
            running.entry.clone()
        };
        self.push(entry);
        true
    }

    /// Makes sure that an unpark ends the next wait.
    pub(super) fn arm_wakeup(&self) {
        if self.wakeup_armed.replace(true) {
            return;
        }
        let mut counter = Box::new([0_u8; 8]);
        let entry = opcode::Read::new(Fd(self.wakeup.raw_fd()), counter.as_mut_ptr(), 8).build();
        let index = self.insert(entry, None, Payload::Wakeup(counter), Policy::WAKEUP);
        if let Slot::Running(running) = &mut self.slots()[index] {
            running.abandoned = true;
        }
    }

    /// Operations that the kernel has not finished, with the driver's own.
    pub(super) fn running(&self) -> usize {
        self.running.get()
    }

    /// Operations of tasks that the kernel has not finished.
    pub(super) fn tasks_running(&self) -> usize {
        self.running.get() - usize::from(self.wakeup_armed.get())
    }
}

impl Drop for Ring {
    /// The kernel may write into buffers until it has reported the end of each operation. So all
    /// are cancelled and waited for; what a hung device still holds then is leaked, not freed.
    fn drop(&mut self) {
        for slot in self.slots.get_mut() {
            if let Slot::Running(running) = slot {
                running.cancelled = true;
            }
        }
        self.push(opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(NOBODY));
        let mut waited_ms = 0;
        while self.running() > 0 && waited_ms < DRAIN_MS_MAX {
            self.push_backlog();
            let before = self.running();
            self.wait(Some(Duration::from_millis(20)));
            self.reap();
            if self.running() == before {
                waited_ms += 20;
            }
        }
        if self.running() > 0 {
            tracing::warn!(operations = self.running(), "a ring ends with operations under way");
            let slots = std::mem::take(self.slots.get_mut());
            Box::leak(Box::new((slots, std::mem::take(self.registered.get_mut()))));
        }
    }
}

fn build(options: &UringOptions) -> Result<IoUring, UringError> {
    let mut entries = options.submission_entries.max(SUBMISSION_ENTRIES_MIN);
    let uring = loop {
        match try_build(options.owner, entries) {
            Ok(uring) => break uring,
            // Newer kernels count the queues as locked memory, of which an ordinary user has
            // little, for all his processes together. Small queues only cost more system calls.
            Err(error)
                if error.raw_os_error() == Some(libc::ENOMEM)
                    && entries / 2 >= SUBMISSION_ENTRIES_MIN =>
            {
                entries /= 2;
            }
            Err(error) => return Err(UringError::from_setup(error)),
        }
    };
    if entries < options.submission_entries {
        tracing::warn!(
            entries,
            "little memory may be locked (RLIMIT_MEMLOCK): small io_uring queues"
        );
    }
    if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
        return Err(UringError::TooOld(io::Error::from_raw_os_error(libc::EINVAL)));
    }
    Ok(uring)
}

fn try_build(owner: RingOwner, entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .dontfork()
        .setup_clamp()
        // One bad request must not keep the others of its batch from being handed over.
        .setup_submit_all()
        .setup_cqsize(entries.saturating_mul(4));
    if owner == RingOwner::Thread {
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    }
    builder.build(entries)
}
