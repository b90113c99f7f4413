//! One operation: what it owns, and the future of its end.

use std::cell::RefMut;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::squeue::Entry;

use super::fd::RingFd;
use super::net::{Address, Message};
use super::ring::Ring;
use crate::buf::{Buf, BufMut};

/// Memory that the kernel uses during an operation.
#[expect(dead_code, reason = "some of it is kept only for the kernel's sake")]
pub(super) enum Payload {
    None,
    Buf(Buf),
    BufMut(BufMut),
    Bytes(Vec<u8>),
    Address(Box<Address>),
    Message(Box<Message>),
    Wakeup(Box<[u8; 8]>),
}

/// What to do when the kernel cancels a request that nobody wanted cancelled (its thread is gone).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rearm {
    /// The caller gets ECANCELED.
    Never,
    /// Queue it again this often: a file system may itself answer ECANCELED, forever.
    Times(u8),
    /// Queue it again: this kind of request gets ECANCELED from nowhere else.
    Always,
}

/// How to treat an operation.
#[derive(Clone, Copy)]
pub(super) struct Policy {
    pub(super) rearm: Rearm,
    /// The operation may wait forever: cancel it when nobody wants the answer.
    pub(super) cancel_on_drop: bool,
    /// A result is a new descriptor, which must be closed when nobody wants it.
    pub(super) opens_fd: bool,
}

impl Policy {
    /// Reads, writes, flushes.
    pub(super) const STORAGE: Self =
        Self { rearm: Rearm::Times(16), cancel_on_drop: false, opens_fd: false };
    /// Receive, send, poll.
    pub(super) const WAITING: Self =
        Self { rearm: Rearm::Always, cancel_on_drop: true, opens_fd: false };
    pub(super) const ACCEPT: Self = Self { opens_fd: true, ..Self::WAITING };
    pub(super) const CONNECT: Self = Self { rearm: Rearm::Never, ..Self::WAITING };
    pub(super) const WAKEUP: Self = Self { cancel_on_drop: false, ..Self::WAITING };
}

pub(super) enum Slot {
    Free,
    Running(Running),
    Done { result: i32, payload: Payload, opens_fd: bool },
}

pub(super) struct Running {
    /// Kept to queue the operation again.
    pub(super) entry: Entry,
    pub(super) payload: Payload,
    pub(super) fd: Option<RingFd>,
    pub(super) policy: Policy,
    pub(super) waker: Option<Waker>,
    pub(super) abandoned: bool,
    pub(super) cancelled: bool,
}

/// The end of an operation: the kernel's result and the memory it used.
pub(super) struct Op {
    ring: Rc<Ring>,
    index: usize,
    finished: bool,
}

impl Op {
    pub(super) fn new(ring: Rc<Ring>, index: usize) -> Self {
        Self { ring, index, finished: false }
    }
}

impl Future for Op {
    type Output = (i32, Payload);
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.finished, "an operation was polled after its end");
        let done = {
            let mut slots = self.ring.slots();
            match &mut slots[self.index] {
                Slot::Running(running) => {
                    match &mut running.waker {
                        Some(waker) => waker.clone_from(cx.waker()),
                        none => *none = Some(cx.waker().clone()),
                    }
                    return Poll::Pending;
                }
                slot => std::mem::replace(slot, Slot::Free),
            }
        };
        self.finished = true;
        self.ring.release(self.index);
        match done {
            Slot::Done { result, payload, .. } => Poll::Ready((result, payload)),
            Slot::Free | Slot::Running(_) => unreachable!("an operation's slot is its own"),
        }
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        match abandon(self.ring.slots(), self.index) {
            Abandoned::Waits => {}
            Abandoned::Cancel => self.ring.cancel(self.index),
            Abandoned::Ended(slot) => {
                self.ring.release(self.index);
                slot.discard();
            }
        }
    }
}

enum Abandoned {
    Waits,
    Cancel,
    Ended(Slot),
}

fn abandon(mut slots: RefMut<'_, Vec<Slot>>, index: usize) -> Abandoned {
    match &mut slots[index] {
        Slot::Running(running) => {
            running.abandoned = true;
            running.waker = None;
            if !running.policy.cancel_on_drop {
                return Abandoned::Waits;
            }
            running.cancelled = true;
            Abandoned::Cancel
        }
        slot => Abandoned::Ended(std::mem::replace(slot, Slot::Free)),
    }
}

impl Slot {
    /// Drops what nobody wants. A descriptor is more than its number.
    pub(super) fn discard(self) {
        if let Slot::Done { result, opens_fd: true, .. } = self
            && result >= 0
        {
            // SAFETY: the kernel made this descriptor for an accept whose future is gone.
            unsafe { libc::close(result) };
        }
    }
}

/// The kernel's result as a count.
pub(super) fn count(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
