//! A backing file system in memory, with the faults that residency has to live with. Calls run as
//! tasks of their own: they go on when their process has died.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bb_proto::meta::{Attributes, Binding, Credentials, Space};
use bb_runtime::sync::Notify;
use bb_runtime::{Buf, BufMut, Rt};
use futures_channel::oneshot;

use crate::bfs::{Bfs, BfsError, BfsFuture, DirPage, Found, Times};
use crate::partition::region_mutation::ProcessId;

#[derive(Clone, Default)]
pub struct Contents {
    pub bytes: Vec<u8>,
    /// What a power cut would leave.
    pub durable: Vec<u8>,
    pub mtime_ns: i64,
}

pub struct FakeBfs {
    rt: Rt,
    pub files: RefCell<BTreeMap<Vec<u8>, Contents>>,
    pub unmounted: Cell<bool>,
    pub no_space: Cell<bool>,
    /// fsync says EIO.
    pub fsync_fails: Cell<bool>,
    /// Processes that hold their locks.
    pub alive: RefCell<BTreeSet<ProcessId>>,
    /// Writes wait here while it is shut.
    pub shut: Cell<bool>,
    pub opened: Notify,
    /// The next change of a size waits for the gate, too.
    pub resize_hangs: Cell<bool>,
    pub writes: RefCell<Vec<(u64, usize)>>,
    clock: Cell<i64>,
}

type Answer<T> = Result<T, BfsError>;

impl FakeBfs {
    pub fn new(rt: &Rt) -> Rc<Self> {
        Rc::new(Self {
            rt: rt.clone(),
            files: RefCell::default(),
            unmounted: Cell::new(false),
            no_space: Cell::new(false),
            fsync_fails: Cell::new(false),
            alive: RefCell::default(),
            shut: Cell::new(false),
            opened: Notify::new(),
            resize_hangs: Cell::new(false),
            writes: RefCell::default(),
            clock: Cell::new(1_000),
        })
    }

    pub fn open_gate(&self) {
        self.shut.set(false);
        self.opened.notify_all();
    }

    pub fn now(&self) -> i64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// As somebody else would, behind our back.
    pub fn put(&self, handle: &[u8], bytes: &[u8]) {
        let (bytes, durable, mtime_ns) = (bytes.to_vec(), bytes.to_vec(), self.now());
        self.files.borrow_mut().insert(handle.to_vec(), Contents { bytes, durable, mtime_ns });
    }

    pub fn get(&self, handle: &[u8]) -> Contents {
        self.files.borrow().get(handle).cloned().unwrap_or_default()
    }

    fn change<T>(&self, binding: &Binding, change: impl FnOnce(&mut Contents) -> T) -> Answer<T> {
        let mut files = self.files.borrow_mut();
        let file = files.get_mut(&binding.handle).ok_or(BfsError::Errno(libc::ESTALE))?;
        Ok(change(file))
    }
}

/// The file system as one process sees it.
pub struct Mounted(pub Rc<FakeBfs>);

impl Mounted {
    fn call<T: 'static>(&self, call: impl FnOnce(&FakeBfs) -> Answer<T> + 'static) -> BfsFuture<T> {
        let (bfs, rt) = (self.0.clone(), self.0.rt.clone());
        Box::pin(async move {
            rt.yield_now().await;
            call(&bfs)
        })
    }

    fn unused<T: 'static>() -> BfsFuture<T> {
        Box::pin(std::future::ready(Err(BfsError::Errno(libc::ENOSYS))))
    }
}

impl Bfs for Mounted {
    fn check(&self) -> BfsFuture<()> {
        self.call(|bfs| match bfs.unmounted.get() {
            true => Err(BfsError::Unavailable("not mounted".into())),
            false => Ok(()),
        })
    }
    fn uuid(&self) -> [u8; 16] {
        [2; 16]
    }
    fn hold(&self, process: ProcessId) -> BfsFuture<()> {
        self.0.alive.borrow_mut().insert(process);
        self.call(|_| Ok(()))
    }
    fn proven_gone(&self, process: ProcessId) -> BfsFuture<bool> {
        self.call(move |bfs| Ok(!bfs.alive.borrow().contains(&process)))
    }
    fn lookup(&self, _: &Credentials, _: &[u8], _: bool) -> BfsFuture<Found> {
        Self::unused()
    }
    fn open(&self, _: &Credentials, _: &[u8], _: i32, _: u32) -> BfsFuture<Found> {
        Self::unused()
    }
    fn mkdir(&self, _: &Credentials, _: &[u8], _: u32) -> BfsFuture<Found> {
        Self::unused()
    }
    fn rmdir(&self, _: &Credentials, _: &[u8]) -> BfsFuture<()> {
        Self::unused()
    }
    fn unlink(&self, _: &Credentials, _: &[u8]) -> BfsFuture<()> {
        Self::unused()
    }
    fn rename(&self, _: &Credentials, _: &[u8], _: &[u8], _: u32) -> BfsFuture<()> {
        Self::unused()
    }
    fn readdir(&self, _: &Credentials, _: &[u8], _: &[u8], _: usize) -> BfsFuture<DirPage> {
        Self::unused()
    }
    fn chmod(&self, _: &Credentials, _: &[u8], _: u32) -> BfsFuture<()> {
        Self::unused()
    }
    fn chown(&self, _: &Credentials, _: &[u8], _: Option<u32>, _: Option<u32>) -> BfsFuture<()> {
        Self::unused()
    }
    fn utimens(&self, _: &Credentials, _: &[u8], _: Times) -> BfsFuture<()> {
        Self::unused()
    }
    fn access(&self, _: &Credentials, _: &[u8], _: u32) -> BfsFuture<()> {
        Self::unused()
    }
    fn statvfs(&self) -> BfsFuture<Space> {
        Self::unused()
    }
    fn keep(&self, _: &Binding, _: &str) -> BfsFuture<()> {
        Self::unused()
    }
    fn remove_hidden(&self, _: &str) -> BfsFuture<()> {
        Self::unused()
    }
    fn stat(&self, binding: &Binding) -> BfsFuture<Attributes> {
        let binding = binding.clone();
        self.call(move |bfs| {
            bfs.change(&binding, |file| Attributes {
                size: file.bytes.len() as u64,
                mtime_ns: file.mtime_ns,
                ..Attributes::default()
            })
        })
    }
    fn read(&self, binding: &Binding, offset: u64, mut buf: BufMut) -> BfsFuture<(BufMut, usize)> {
        let binding = binding.clone();
        self.call(move |bfs| {
            bfs.change(&binding, |file| {
                let from = usize::try_from(offset).unwrap().min(file.bytes.len());
                let got = buf.len().min(file.bytes.len() - from);
                buf[..got].copy_from_slice(&file.bytes[from..from + got]);
                (buf, got)
            })
        })
    }
    fn write(&self, binding: &Binding, offset: u64, bufs: Vec<Buf>) -> BfsFuture<()> {
        let (bfs, binding) = (self.0.clone(), binding.clone());
        let (sender, receiver) = oneshot::channel();
        drop(self.0.rt.spawn(async move {
            bfs.rt.yield_now().await;
            loop {
                let opened = bfs.opened.notified();
                if !bfs.shut.get() {
                    break;
                }
                opened.await;
            }
            let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
            let result = if bfs.no_space.get() {
                Err(BfsError::Errno(libc::ENOSPC))
            } else {
                bfs.writes.borrow_mut().push((offset, bytes.len()));
                let now = bfs.now();
                bfs.change(&binding, |file| {
                    let from = usize::try_from(offset).unwrap();
                    let end = from + bytes.len();
                    file.bytes.resize(file.bytes.len().max(end), 0);
                    file.bytes[from..end].copy_from_slice(&bytes);
                    file.mtime_ns = now;
                })
            };
            let _ = sender.send(result);
        }));
        Box::pin(async move { receiver.await.unwrap_or(Err(BfsError::Errno(libc::EIO))) })
    }
    fn fsync(&self, binding: &Binding) -> BfsFuture<()> {
        let binding = binding.clone();
        self.call(move |bfs| {
            if bfs.fsync_fails.get() {
                return Err(BfsError::Errno(libc::EIO));
            }
            bfs.change(&binding, |file| file.durable = file.bytes.clone())
        })
    }
    fn fsync_name(&self, _: &Binding) -> BfsFuture<()> {
        self.call(|_| Ok(()))
    }
    fn truncate(&self, binding: &Binding, size: u64) -> BfsFuture<()> {
        let (bfs, binding) = (self.0.clone(), binding.clone());
        let (sender, receiver) = oneshot::channel();
        let hangs = bfs.resize_hangs.replace(false);
        drop(self.0.rt.spawn(async move {
            let opened = bfs.opened.notified();
            if hangs {
                opened.await;
            }
            let now = bfs.now();
            let _ = sender.send(bfs.change(&binding, |file| {
                file.bytes.resize(usize::try_from(size).unwrap(), 0);
                file.mtime_ns = now;
            }));
        }));
        Box::pin(async move { receiver.await.unwrap_or(Err(BfsError::Errno(libc::EIO))) })
    }
    fn set_times(&self, binding: &Binding, times: Times) -> BfsFuture<()> {
        let binding = binding.clone();
        self.call(move |bfs| {
            bfs.change(&binding, |file| file.mtime_ns = times.mtime_ns.unwrap_or(file.mtime_ns))
        })
    }
}
