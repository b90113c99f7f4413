//! Making data durable (rule 13): one flush at a time, which covers every write that had completed
//! before it was submitted; a write that is alone on the device is written durably instead.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bb_nvme::{DeviceError, DeviceRef, Durability};
use bb_runtime::sync::Notify;
use bb_runtime::{Buf, Rt};

use crate::planted::{self, Planted};

pub(super) struct Flusher {
    rt: Rt,
    dev: DeviceRef,
    writes_under_way: Cell<u32>,
    /// Flushes submitted so far; the last of them is under way while `running`.
    submitted: Cell<u64>,
    /// The last flush that ended well.
    done: Cell<u64>,
    running: Cell<bool>,
    error: RefCell<Option<DeviceError>>,
    changed: Notify,
}

struct UnderWay<'a>(&'a Cell<u32>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Flusher {
    pub(super) fn new(rt: Rt, dev: DeviceRef) -> Rc<Self> {
        Rc::new(Self {
            rt,
            dev,
            writes_under_way: Cell::new(0),
            submitted: Cell::new(0),
            done: Cell::new(0),
            running: Cell::new(false),
            error: RefCell::new(None),
            changed: Notify::new(),
        })
    }

    /// Writes under way on the device.
    pub(super) fn depth(&self) -> u32 {
        self.writes_under_way.get()
    }

    /// Writes `buf`; it survives a power cut when this returns.
    pub(super) async fn write(self: &Rc<Self>, offset: u64, buf: Buf) -> Result<(), DeviceError> {
        self.writes_under_way.set(self.writes_under_way.get() + 1);
        let under_way = UnderWay(&self.writes_under_way);
        let volatile = self.dev.info().volatile_cache;
        if volatile && self.writes_under_way.get() == 1 && !planted::is(Planted::AckBeforeFlush) {
            return self.dev.write(offset, buf, Durability::Durable).await;
        }
        self.dev.write(offset, buf, Durability::Cached).await?;
        drop(under_way);
        if !volatile || planted::is(Planted::AckBeforeFlush) {
            return Ok(());
        }
        self.cover().await
    }

    /// Makes everything durable that has completed before this call.
    pub(super) async fn cover(self: &Rc<Self>) -> Result<(), DeviceError> {
        // The one that is under way may have been submitted before our write completed.
        let needed = self.submitted.get() + 1;
        loop {
            if let Some(error) = &*self.error.borrow() {
                return Err(error.clone());
            }
            if self.done.get() >= needed {
                return Ok(());
            }
            let changed = self.changed.notified();
            if !self.running.replace(true) {
                self.submitted.set(self.submitted.get() + 1);
                // A task of its own: who waits for it may go away.
                self.rt.spawn(self.clone().flush());
            }
            changed.await;
        }
    }

    async fn flush(self: Rc<Self>) {
        let number = self.submitted.get();
        match self.dev.flush().await {
            Ok(()) => self.done.set(number),
            // Never tried again: the kernel counts what it could not write as clean.
            Err(error) => *self.error.borrow_mut() = Some(error),
        }
        self.running.set(false);
        self.changed.notify_all();
    }
}
