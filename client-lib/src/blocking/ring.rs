//! A submission and completion ring: one thread keeps hundreds of requests under way.
//!
//! Requests are collected, handed over together, and their ends picked up in any order. The thread
//! that waits for ends drives the executor itself, as one in a blocking call does.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};

use super::call::{Job, LocalFuture};
use super::core::Inside;
use super::drive::lock;
use super::later::{Keep, Lending, RawBuffer};
use super::{Client, File, Handle, stopped};
use crate::error::{Error, Result};

/// A ring of a client. May be used from several threads; each end goes to one of them.
///
/// Buffers are registered with the ring, which owns them: a request names one by its number, and
/// nobody gets at it until the request has ended.
pub struct Ring {
    shared: Arc<Handle>,
    state: Arc<State>,
    queued: Mutex<Vec<Box<dyn Job>>>,
    buffers: Mutex<Vec<Registered>>,
    depth: usize,
}

/// How a request ended.
#[derive(Debug)]
pub struct Completion {
    /// What the request was given.
    pub user_data: u64,
    /// Bytes transferred.
    pub result: Result<usize>,
}

struct Registered {
    bytes: Box<[u8]>,
    requests: u32,
}

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    /// Ends that have not been picked up.
    ready: AtomicUsize,
}

#[derive(Default)]
struct Inner {
    ended: VecDeque<Completion>,
    /// Under way: what they were given, and the registered buffer.
    flying: BTreeMap<u64, Flying>,
    next: u64,
    waiting: Vec<(Thread, usize)>,
    /// Registered buffers whose requests have ended.
    returned: Vec<usize>,
}

struct Flying {
    user_data: u64,
    buffer: Option<usize>,
}

impl State {
    /// True if somebody has waited for it.
    fn end(&self, id: u64, result: Result<usize>) -> bool {
        let mut inner = lock(&self.inner);
        let Some(flying) = inner.flying.remove(&id) else { return false };
        inner.returned.extend(flying.buffer);
        inner.ended.push_back(Completion { user_data: flying.user_data, result });
        let ready = inner.ended.len();
        self.ready.store(ready, Ordering::Release);
        let mut enough = false;
        for (thread, wanted) in &inner.waiting {
            if ready >= *wanted {
                thread.unpark();
                enough = true;
            }
        }
        enough
    }
}

/// The end of a request; it stands behind what that has borrowed.
struct Ending {
    id: u64,
    result: Option<Result<usize>>,
    state: Arc<State>,
    shared: Arc<super::drive::Shared>,
}

impl Keep for Ending {
    fn keep(&mut self, result: Result<usize>) {
        self.result = Some(result);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| Err(stopped()));
        if self.state.end(self.id, result) {
            self.shared.wake_leader();
        }
    }
}

enum What {
    Read(RawBuffer),
    Write(RawBuffer),
    Fsync,
}

struct Request {
    file: u64,
    what: What,
    offset: u64,
    ending: Ending,
}

impl Job for Request {
    fn begin(self: Box<Self>, inside: Rc<Inside>) -> LocalFuture<'static, ()> {
        let Self { file, what, offset, ending } = *self;
        let future: LocalFuture<'static, _> = Box::pin(async move {
            let file = inside.file(file)?;
            match what {
                // SAFETY: `Ring::queue`'s caller has promised that the memory is lent until the
                // request has ended, and `ending` is dropped after this block is.
                What::Read(buffer) => file.pread(unsafe { buffer.bytes_mut() }, offset).await,
                // SAFETY: as above.
                What::Write(buffer) => file.pwrite(unsafe { buffer.bytes() }, offset).await,
                What::Fsync => file.fsync().await.map(|()| 0),
            }
        });
        Box::pin(Lending { future: Some(future), ending })
    }
}

impl Client {
    /// A ring with room for `depth` requests that were made and not picked up.
    pub fn ring(&self, depth: usize) -> Ring {
        Ring {
            shared: self.shared.clone(),
            state: Arc::default(),
            queued: Mutex::default(),
            buffers: Mutex::default(),
            depth: depth.max(1),
        }
    }
}

impl Ring {
    /// Registers a buffer; its number.
    pub fn register(&self, bytes: Box<[u8]>) -> usize {
        let mut buffers = lock(&self.buffers);
        buffers.push(Registered { bytes, requests: 0 });
        buffers.len() - 1
    }

    /// Looks at, or changes, a registered buffer.
    ///
    /// # Errors
    /// `EINVAL` for a number that was not given, `EBUSY` while a request uses it.
    pub fn with_buffer<R>(&self, buffer: usize, look: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        let mut buffers = lock(&self.buffers);
        self.take_back(&mut buffers);
        let registered = buffers.get_mut(buffer).ok_or_else(no_such_buffer)?;
        if registered.requests > 0 {
            return Err(Error::errno_of(libc::EBUSY, "a request uses the buffer"));
        }
        Ok(look(&mut registered.bytes))
    }

    fn take_back(&self, buffers: &mut [Registered]) {
        for buffer in lock(&self.state.inner).returned.drain(..) {
            buffers[buffer].requests -= 1;
        }
    }

    /// Makes a read into a part of a registered buffer.
    ///
    /// # Errors
    /// `EAGAIN` when the ring is full, `EINVAL` for a part that the buffer does not have, `EBUSY`
    /// where another request uses the buffer.
    pub fn read(
        &self,
        file: &File,
        buffer: usize,
        part: Range<usize>,
        offset: u64,
        user_data: u64,
    ) -> Result<()> {
        self.registered(file, buffer, part, offset, user_data, What::Read)
    }

    /// Makes a write from a part of a registered buffer.
    ///
    /// # Errors
    /// As [`Ring::read`].
    pub fn write(
        &self,
        file: &File,
        buffer: usize,
        part: Range<usize>,
        offset: u64,
        user_data: u64,
    ) -> Result<()> {
        self.registered(file, buffer, part, offset, user_data, What::Write)
    }

    fn registered(
        &self,
        file: &File,
        buffer: usize,
        part: Range<usize>,
        offset: u64,
        user_data: u64,
        what: impl FnOnce(RawBuffer) -> What,
    ) -> Result<()> {
        let mut buffers = lock(&self.buffers);
        self.take_back(&mut buffers);
        let registered = buffers.get_mut(buffer).ok_or_else(no_such_buffer)?;
        if registered.requests > 0 {
            return Err(Error::errno_of(libc::EBUSY, "a request uses the buffer"));
        }
        let bytes = registered
            .bytes
            .get_mut(part)
            .ok_or_else(|| Error::errno_of(libc::EINVAL, "the buffer is not that large"))?;
        let raw = RawBuffer { address: bytes.as_mut_ptr(), len: bytes.len() };
        self.queue(file, what(raw), offset, user_data, Some(buffer))?;
        registered.requests += 1;
        Ok(())
    }

    /// Makes a read into memory of the caller's.
    ///
    /// # Errors
    /// `EAGAIN` when the ring is full.
    ///
    /// # Safety
    /// Until the request has ended, nobody else touches the memory, and it stays writable.
    pub unsafe fn read_raw(
        &self,
        file: &File,
        buffer: RawBuffer,
        offset: u64,
        user_data: u64,
    ) -> Result<()> {
        self.queue(file, What::Read(buffer), offset, user_data, None)
    }

    /// Makes a write from memory of the caller's.
    ///
    /// # Errors
    /// `EAGAIN` when the ring is full.
    ///
    /// # Safety
    /// Until the request has ended, nobody changes the memory, and it stays readable.
    pub unsafe fn write_raw(
        &self,
        file: &File,
        buffer: RawBuffer,
        offset: u64,
        user_data: u64,
    ) -> Result<()> {
        self.queue(file, What::Write(buffer), offset, user_data, None)
    }

    /// Makes an fsync. It covers writes that had ended before it was made.
    ///
    /// # Errors
    /// `EAGAIN` when the ring is full.
    pub fn fsync(&self, file: &File, user_data: u64) -> Result<()> {
        self.queue(file, What::Fsync, 0, user_data, None)
    }

    fn queue(
        &self,
        file: &File,
        what: What,
        offset: u64,
        user_data: u64,
        buffer: Option<usize>,
    ) -> Result<()> {
        if !Arc::ptr_eq(&file.shared, &self.shared) {
            return Err(Error::errno_of(libc::EINVAL, "the file belongs to another client"));
        }
        let id = {
            let mut inner = lock(&self.state.inner);
            if inner.flying.len() + inner.ended.len() >= self.depth {
                return Err(Error::errno_of(libc::EAGAIN, "the ring is full"));
            }
            let id = inner.next;
            inner.next += 1;
            inner.flying.insert(id, Flying { user_data, buffer });
            id
        };
        let ending = Ending {
            id,
            result: None,
            state: self.state.clone(),
            shared: self.shared.shared.clone(),
        };
        lock(&self.queued).push(Box::new(Request { file: file.id, what, offset, ending }));
        Ok(())
    }

    /// Hands over what was made since; how many.
    pub fn submit(&self) -> usize {
        let queued = std::mem::take(&mut *lock(&self.queued));
        let count = queued.len();
        if count > 0 {
            self.shared.shared.submit_all(queued.into_iter());
        }
        count
    }

    /// Requests that were made and whose ends were not picked up.
    pub fn outstanding(&self) -> usize {
        let inner = lock(&self.state.inner);
        inner.flying.len() + inner.ended.len()
    }

    /// Hands over what was made, waits until `count` requests have ended (or all that there are),
    /// and gives up to `max` ends to `each`. How many. With a `count` of 0 it does not wait: what is
    /// under way goes on in the background.
    pub fn wait(&self, count: usize, max: usize, mut each: impl FnMut(Completion)) -> usize {
        self.submit();
        let shared = &self.shared.shared;
        let wanted = {
            let mut inner = lock(&self.state.inner);
            let wanted = count.min(max).min(inner.flying.len() + inner.ended.len());
            if wanted > inner.ended.len() {
                inner.waiting.push((thread::current(), wanted));
                wanted
            } else {
                0
            }
        };
        if wanted > 0 {
            // Another thread may pick up what this one waits for: then there is nothing left.
            let done = || {
                let ready = self.state.ready.load(Ordering::Acquire);
                ready >= wanted || ready >= self.outstanding()
            };
            shared.wait(done);
            let me = thread::current().id();
            lock(&self.state.inner).waiting.retain(|(thread, _)| thread.id() != me);
        }
        if shared.is_broken() {
            let ids: Vec<u64> = lock(&self.state.inner).flying.keys().copied().collect();
            for id in ids {
                self.state.end(id, Err(stopped()));
            }
        }
        let mut picked = 0;
        while picked < max {
            let next = {
                let mut inner = lock(&self.state.inner);
                let next = inner.ended.pop_front();
                self.state.ready.store(inner.ended.len(), Ordering::Release);
                next
            };
            let Some(next) = next else { break };
            each(next);
            picked += 1;
        }
        if picked > 0 {
            self.wake_others();
        }
        picked
    }

    /// Those who wait for what this thread has picked up.
    fn wake_others(&self) {
        let inner = lock(&self.state.inner);
        if !inner.waiting.is_empty() {
            inner.waiting.iter().for_each(|(thread, _)| thread.unpark());
            drop(inner);
            self.shared.shared.wake_leader();
        }
    }
}

impl Drop for Ring {
    /// Waits for what is under way: it uses the ring's buffers.
    fn drop(&mut self) {
        while self.outstanding() > 0 {
            self.wait(usize::MAX, usize::MAX, drop);
        }
    }
}

fn no_such_buffer() -> Error {
    Error::errno_of(libc::EINVAL, "no such buffer")
}
