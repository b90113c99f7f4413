//! One flush at a time, shared by all who came before it began.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;

use bb_runtime::sync::Notify;

use super::Core;
use crate::device::DeviceError;

/// Flushes are numbered. A caller is covered by the first one that begins after its call; while one
/// runs, all who come wait for the same next one. So a device sees at most one flush at a time,
/// and under load each serves many.
pub(super) struct Flusher {
    core: Rc<Core>,
    wanted: Cell<u64>,
    begun: Cell<u64>,
    ended: Cell<u64>,
    running: Cell<bool>,
    progress: Notify,
}

impl Flusher {
    pub(super) fn new(core: Rc<Core>) -> Self {
        Self {
            core,
            wanted: Cell::new(0),
            begun: Cell::new(0),
            ended: Cell::new(0),
            running: Cell::new(false),
            progress: Notify::new(),
        }
    }

    /// Asks for a flush that begins after this call, and waits for its end.
    pub(super) fn join(self: &Rc<Self>) -> impl Future<Output = Result<(), DeviceError>> + use<> {
        let mine = self.begun.get() + 1;
        self.wanted.set(mine);
        if !self.running.replace(true) {
            // A task of its own: those who wait may go away.
            let flusher = self.clone();
            drop(self.core.rt.spawn(async move { flusher.run().await }));
        }
        let flusher = self.clone();
        async move {
            loop {
                let progress = flusher.progress.notified();
                flusher.core.alive()?;
                if flusher.ended.get() >= mine {
                    return Ok(());
                }
                progress.await;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn begun(&self) -> u64 {
        self.begun.get()
    }

    async fn run(&self) {
        while self.begun.get() < self.wanted.get() && self.core.alive().is_ok() {
            let number = self.begun.get() + 1;
            self.begun.set(number);
            let start = self.core.rt.now();
            let result = self.flush_once().await;
            self.core.record(|stats| &mut stats.flush, result.is_ok(), 0, start);
            if result.is_ok() {
                self.ended.set(number);
            }
            self.progress.notify_all();
        }
        self.running.set(false);
    }

    async fn flush_once(&self) -> Result<(), DeviceError> {
        loop {
            match self.core.uring.fdatasync(&self.core.fd).await {
                Ok(()) => return self.core.check_size(),
                // Nothing was tried, so nothing can have been dropped.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Never again: the kernel reports a lost write once, and marks the pages clean.
                Err(error) => return Err(self.core.fail(format!("flush: {error}"))),
            }
        }
    }
}
