//! Frames that wait to be sent. All that one turn of the executor produced leaves in one call.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::Rt;
use bb_runtime::sync::{Notify, Permit};

use crate::link::{Frame, LinkError, LinkSend};

/// So much is handed to the system at once: more would only make urgent frames wait.
const BATCH_BYTES: usize = 4 << 20;

struct Queued {
    frame: Frame,
    /// Held until the frame has been sent.
    held: Option<Permit>,
}

/// The queue of one connection. The writer task drains it; nobody waits for a timer.
pub(crate) struct Outbox {
    link: Rc<dyn LinkSend>,
    queue: RefCell<Vec<Queued>>,
    sending: Cell<bool>,
    batches: Cell<u64>,
    changed: Notify,
    closed: Cell<bool>,
}

impl Outbox {
    pub(crate) fn new(link: Rc<dyn LinkSend>) -> Self {
        Self {
            link,
            queue: RefCell::default(),
            sending: Cell::new(false),
            batches: Cell::new(0),
            changed: Notify::new(),
            closed: Cell::new(false),
        }
    }

    /// Queues a frame; a closed connection drops it.
    pub(crate) fn push(&self, frame: Frame, held: Option<Permit>) {
        if !self.closed.get() {
            self.queue.borrow_mut().push(Queued { frame, held });
            self.changed.notify_all();
        }
    }

    /// Ends the connection in both directions.
    pub(crate) fn close(&self) {
        if !self.closed.replace(true) {
            let dropped = std::mem::take(&mut *self.queue.borrow_mut());
            drop(dropped);
            self.link.close();
            self.changed.notify_all();
        }
    }

    /// How often frames were handed to the system.
    pub(crate) fn batches(&self) -> u64 {
        self.batches.get()
    }

    /// True when nothing is left to send.
    pub(crate) fn is_idle(&self) -> bool {
        self.closed.get() || (!self.sending.get() && self.queue.borrow().is_empty())
    }

    /// Sends until the connection ends. A peer that takes nothing for `stall_limit` is gone.
    pub(crate) async fn run(&self, rt: &Rt, stall_limit: Duration) -> LinkError {
        loop {
            let (frames, held) = self.batch();
            if self.closed.get() {
                return LinkError::Closed;
            }
            if frames.is_empty() {
                self.changed.notified().await;
                continue;
            }
            self.sending.set(true);
            self.batches.set(self.batches.get() + 1);
            let sent = rt.timeout(stall_limit, self.link.send(frames)).await;
            self.sending.set(false);
            drop(held);
            let error = match sent {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_) => LinkError::Protocol("peer takes no data"),
            };
            self.close();
            return error;
        }
    }

    fn batch(&self) -> (Vec<Frame>, Vec<Option<Permit>>) {
        let mut queue = self.queue.borrow_mut();
        // Stable: within a class the order stays.
        queue.sort_by_key(|queued| queued.frame.header().class);
        let mut bytes = 0;
        let count = queue
            .iter()
            .take_while(|queued| {
                let fits = bytes < BATCH_BYTES;
                bytes += queued.frame.wire_bytes();
                fits
            })
            .count();
        queue.drain(..count).map(|queued| (queued.frame, queued.held)).unzip()
    }
}
