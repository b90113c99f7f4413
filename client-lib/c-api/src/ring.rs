//! The ring for C (`bb_ring_*`): many small requests under way from one thread.

use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bb_client::blocking::{Completion, RawBuffer, Ring};
use libc::{c_int, c_void, off_t, size_t};

use crate::guard::{Errno, Result, refuse};
use crate::library::{self, Connection};
use crate::open_file::OpenFile;
use crate::own::bb_ring_completion;
use crate::table::{self, find};
use crate::{credentials, monitor};

/// What `struct bb_ring` hides.
pub struct CRing {
    // Before the connection: it waits for its requests when it is dropped.
    ring: Ring,
    slots: Mutex<Slots>,
    buffers: Mutex<Vec<RawBuffer>>,
    connection: Arc<Connection>,
}

#[derive(Default)]
struct Slots {
    all: Vec<Option<Slot>>,
    free: Vec<usize>,
}

/// A request: what is needed at its end.
struct Slot {
    user_data: u64,
    kind: Kind,
    file: Arc<OpenFile>,
    fd: c_int,
}

/// What a request does.
#[derive(Clone)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes these bytes.
    Write(Range<u64>),
    /// Makes durable.
    Fsync,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    fn put(&mut self, slot: Slot) -> usize {
        let index = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        self.all[index] = Some(slot);
        index
    }

    fn take(&mut self, index: usize) -> Option<Slot> {
        let slot = self.all.get_mut(index)?.take()?;
        self.free.push(index);
        Some(slot)
    }
}

impl CRing {
    pub fn new(depth: usize) -> Result<Self> {
        let connection = library::connection()?;
        // As whom does not matter: files know.
        let ring = connection.client.acting_as(credentials::present()).ring(depth);
        Ok(Self { ring, slots: Mutex::default(), buffers: Mutex::default(), connection })
    }

    /// In a child of the process that made it, a ring must not be touched.
    fn check(&self) -> Result<()> {
        if self.connection.generation == library::generation() {
            return Ok(());
        }
        refuse(libc::EINVAL, "the ring was made before a fork or a failure: make another")
    }

    /// Registers buffers; the number of the first.
    pub fn register(&self, buffers: impl Iterator<Item = RawBuffer>) -> Result<usize> {
        self.check()?;
        let mut all = lock(&self.buffers);
        let first = all.len();
        all.extend(buffers);
        Ok(first)
    }

    /// A part of a registered buffer.
    pub fn part(&self, buffer: usize, from: size_t, len: size_t) -> Result<*mut c_void> {
        let all = lock(&self.buffers);
        let whole = all.get(buffer).ok_or(Errno(libc::EINVAL))?;
        match from.checked_add(len) {
            Some(end) if end <= whole.len => Ok(whole.address.wrapping_add(from).cast()),
            _ => refuse(libc::EINVAL, "the registered buffer is not that large"),
        }
    }

    /// Makes a request.
    ///
    /// # Safety
    /// The memory is lent until the request has ended.
    pub unsafe fn queue(
        &self,
        fd: c_int,
        write: Option<bool>,
        memory: (*mut c_void, size_t),
        offset: off_t,
        user_data: u64,
    ) -> Result<()> {
        self.check()?;
        let Some(named) = find(fd) else {
            return refuse(libc::EBADF, "a ring takes files of the buffer only");
        };
        let (address, len) = memory;
        let from = u64::try_from(offset).map_err(|_| Errno(libc::EINVAL))?;
        if isize::try_from(len).is_err() {
            return Err(Errno(libc::EINVAL));
        }
        if address.is_null() && len > 0 {
            return Err(Errno(libc::EFAULT));
        }
        let kind = match write {
            None => Kind::Fsync,
            Some(false) => Kind::Read,
            Some(true) => Kind::Write(from..from.saturating_add(len as u64)),
        };
        if let Some(write) = write {
            named.file.may(write)?;
        }
        let file = named.file.file()?;
        let slot = Slot { user_data, kind: kind.clone(), file: named.file, fd };
        let index = lock(&self.slots).put(slot);
        let buffer = RawBuffer { address: address.cast(), len };
        let made = match kind {
            // SAFETY: the caller's promise.
            Kind::Read => unsafe { self.ring.read_raw(&file, buffer, from, index as u64) },
            // SAFETY: as above.
            Kind::Write(_) => unsafe { self.ring.write_raw(&file, buffer, from, index as u64) },
            Kind::Fsync => self.ring.fsync(&file, index as u64),
        };
        made.map_err(|error| {
            lock(&self.slots).take(index);
            Errno::from(error)
        })
    }

    pub fn submit(&self) -> Result<usize> {
        self.check()?;
        Ok(self.ring.submit())
    }

    /// Waits for `min` ends and gives up to `out.len()`; how many.
    pub fn wait(
        &self,
        out: &mut [std::mem::MaybeUninit<bb_ring_completion>],
        min: usize,
    ) -> Result<usize> {
        self.check()?;
        let mut next = out.iter_mut();
        let max = next.len();
        let picked = self.ring.wait(min, max, |completion| {
            if let Some(slot) = next.next() {
                slot.write(self.ended(completion));
            }
        });
        Ok(picked)
    }

    fn ended(&self, completion: Completion) -> bb_ring_completion {
        let index = usize::try_from(completion.user_data).unwrap_or(usize::MAX);
        let result = completion.result.map_err(Errno::from);
        let Some(slot) = lock(&self.slots).take(index) else {
            return bb_ring_completion { user_data: 0, result: -i64::from(libc::EIO) };
        };
        let result = match &slot.kind {
            Kind::Read => {
                monitor::transferred(false, result.map_err(|errno| errno.0));
                result
            }
            Kind::Write(range) => {
                let result = slot.file.wrote(range.clone(), result);
                if result.is_ok() && !range.is_empty() {
                    table::resize(slot.fd, &slot.file, range.end, true);
                }
                result
            }
            Kind::Fsync => {
                monitor::FSYNCS.add(1);
                result.and(slot.file.check().map(|()| 0))
            }
        };
        let result = match result {
            Ok(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
            Err(Errno(errno)) => -i64::from(errno),
        };
        bb_ring_completion { user_data: slot.user_data, result }
    }

    /// Its end. A parent's ring is left alone.
    pub fn destroy(ring: Box<Self>) {
        if ring.check().is_err() && !ring.connection.client.is_broken() {
            let _never_dropped = ManuallyDrop::new(ring);
        }
    }
}
