//! A simulated backing file system: outlives the servers that use it, and fails as real ones do.
//!
//! A call is made by the file system's own task, not by the caller's: it goes on, and finishes
//! late, when the caller has given up or was killed (rule 10). What comes in: calls, faults,
//! changes from outside. What goes out: answers, counts of faults, the final contents.

mod tree;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bb_proto::meta::{Attributes, Binding, Credentials, Space};
use bb_runtime::{Buf, BufMut, Instant, Rt};
use bb_server::bfs::{Bfs, BfsError, BfsFuture, DirPage, Found, Times};
use bb_server::partition::region_mutation::ProcessId;
use futures_channel::oneshot;

use self::tree::Tree;

/// How often calls fail, in parts per million, and how slow they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct BfsFaults {
    /// EIO; half of them after the call had its effect.
    pub io_error_ppm: u64,
    /// ENOENT or ESTALE for something that is there: a lookup that lost a race inside the file
    /// system.
    pub race_ppm: u64,
    /// The call hangs for up to `hang_max`, then is carried out.
    pub hang_ppm: u64,
    /// Longest hang.
    pub hang_max: Duration,
    /// Longest usual latency.
    pub latency_max: Duration,
}

/// How often each fault happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BfsFaultCounts {
    /// Calls in all.
    pub calls: u64,
    /// EIO before the effect.
    pub io_errors: u64,
    /// EIO after the effect.
    pub io_errors_late: u64,
    /// ENOENT for what is there.
    pub races: u64,
    /// Calls that hung.
    pub hung: u64,
    /// Calls that had their effect after their process was killed.
    pub finished_after_death: u64,
    /// ENOSPC.
    pub no_space: u64,
    /// Calls while it was not mounted.
    pub unmounted: u64,
    /// Files that lost unflushed data, or that vanished, at a power cut.
    pub lost_at_power_cut: u64,
}

/// What a client may notice of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BfsFault {
    /// A call failed with EIO.
    IoError,
    /// A lookup did not find what is there.
    Race,
    /// A call met no space.
    NoSpace,
    /// A call met something else than the file system.
    Unmounted,
    /// It was mounted again.
    CameBack,
}

struct Shared {
    rt: Rt,
    uuid: [u8; 16],
    tree: RefCell<Tree>,
    /// What a path leads to while nothing is mounted there.
    beneath: RefCell<Tree>,
    mounted: Cell<bool>,
    faults: Cell<BfsFaults>,
    counts: Cell<BfsFaultCounts>,
    locks: RefCell<BTreeMap<ProcessId, Weak<Life>>>,
    /// When each fault last hit a call.
    last: RefCell<BTreeMap<BfsFault, Instant>>,
}

/// A process as the file system sees it: alive until it was killed and its last call has ended.
struct Life {
    killed: Cell<bool>,
    calls: Cell<u64>,
}

/// The file system itself. Cheap to clone; tests keep it while servers come and go.
#[derive(Clone)]
pub struct SimBfs {
    shared: Rc<Shared>,
}

impl SimBfs {
    /// An empty one. Its calls run in a domain of their own.
    pub fn new(rt: &Rt, uuid: [u8; 16]) -> Self {
        Self {
            shared: Rc::new(Shared {
                rt: rt.new_domain(),
                uuid,
                tree: RefCell::new(Tree::new(uuid)),
                beneath: RefCell::new(Tree::new([0; 16])),
                mounted: Cell::new(true),
                faults: Cell::default(),
                counts: Cell::default(),
                locks: RefCell::default(),
                last: RefCell::default(),
            }),
        }
    }

    /// What one server process uses. Dropping it, or [`SimProcess::kill`], ends that process.
    pub fn process(&self) -> Rc<SimProcess> {
        let life = Rc::new(Life { killed: Cell::new(false), calls: Cell::new(0) });
        Rc::new(SimProcess { shared: self.shared.clone(), life })
    }

    /// Sets the faults from now on.
    pub fn set_faults(&self, faults: BfsFaults) {
        self.shared.faults.set(faults);
    }

    /// How often each fault happened.
    pub fn counts(&self) -> BfsFaultCounts {
        self.shared.counts.get()
    }

    /// True if a call has met this fault since then.
    pub fn has_met(&self, fault: BfsFault, since: Instant) -> bool {
        self.shared.last.borrow().get(&fault).is_some_and(|last| *last >= since)
    }

    /// Takes it away, or brings it back.
    pub fn set_mounted(&self, mounted: bool) {
        if mounted && !self.shared.mounted.replace(mounted) {
            self.shared.met(BfsFault::CameBack);
        }
        self.shared.mounted.set(mounted);
    }

    /// Sets how many bytes all files may hold.
    pub fn set_capacity(&self, bytes: u64) {
        self.shared.tree.borrow_mut().capacity_bytes = bytes;
    }

    /// Cuts its power: data that was not flushed is lost, file by file, by chance.
    pub fn power_cut(&self) {
        let rt = &self.shared.rt;
        let hurt = self.shared.tree.borrow_mut().power_cut(|| rt.random_below(2) == 0);
        self.shared.count(|counts| counts.lost_at_power_cut += hurt);
    }

    /// Path and contents of every file.
    pub fn files(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.shared.tree.borrow().files()
    }

    /// Names in the servers' own directory.
    pub fn hidden_names(&self) -> Vec<String> {
        self.shared.tree.borrow().hidden_names()
    }

    /// Writes a whole file from outside.
    ///
    /// # Errors
    /// As the calls that it makes.
    pub fn outside_write(&self, path: &[u8], bytes: &[u8]) -> Result<(), BfsError> {
        let flags = libc::O_CREAT | libc::O_WRONLY;
        let mut tree = self.shared.now_tree();
        let found = tree.open(&Credentials::default(), path, flags, 0o666)?;
        tree.truncate(&found.binding, 0)?;
        tree.write(&found.binding, 0, bytes)?;
        tree.fsync(&found.binding, true)
    }

    /// Removes a file from outside.
    ///
    /// # Errors
    /// As unlink.
    pub fn outside_remove(&self, path: &[u8]) -> Result<(), BfsError> {
        self.shared.now_tree().remove(&Credentials::default(), path, false)
    }

    /// Makes a symbolic link from outside.
    ///
    /// # Errors
    /// As symlink.
    pub fn outside_symlink(&self, path: &[u8], target: &[u8]) -> Result<(), BfsError> {
        self.shared.now_tree().symlink(path, target)
    }
}

impl Shared {
    fn now_tree(&self) -> std::cell::RefMut<'_, Tree> {
        let tree = if self.mounted.get() { &self.tree } else { &self.beneath };
        let mut tree = tree.borrow_mut();
        tree.now_ns = self.rt.wall().0;
        tree
    }

    fn count(&self, change: impl FnOnce(&mut BfsFaultCounts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    fn met(&self, fault: BfsFault) {
        tracing::debug!(?fault, "a call of the backing file system");
        self.last.borrow_mut().insert(fault, self.rt.now());
    }

    fn hits(&self, ppm: u64) -> bool {
        ppm > 0 && self.rt.random_below(1_000_000) < ppm
    }

    async fn wait_up_to(&self, longest: Duration) {
        let ns = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        if ns > 0 {
            self.rt.sleep(Duration::from_nanos(self.rt.random_below(ns) + 1)).await;
        }
    }

    /// Carries out one call, with its faults.
    async fn carry_out<T>(
        &self,
        life: &Life,
        is_lookup: bool,
        call: impl FnOnce(&mut Tree) -> Result<T, BfsError>,
    ) -> Result<T, BfsError> {
        let faults = self.faults.get();
        self.count(|counts| counts.calls += 1);
        self.wait_up_to(faults.latency_max).await;
        if self.hits(faults.hang_ppm) {
            self.count(|counts| counts.hung += 1);
            self.wait_up_to(faults.hang_max).await;
        }
        if !self.mounted.get() {
            self.count(|counts| counts.unmounted += 1);
            self.met(BfsFault::Unmounted);
        }
        if is_lookup && self.hits(faults.race_ppm) {
            self.count(|counts| counts.races += 1);
            self.met(BfsFault::Race);
            return Err(BfsError::Errno(libc::ENOENT));
        }
        let fails = self.hits(faults.io_error_ppm);
        if fails && self.rt.random_below(2) == 0 {
            self.count(|counts| counts.io_errors += 1);
            self.met(BfsFault::IoError);
            return Err(BfsError::Errno(libc::EIO));
        }
        if life.killed.get() {
            self.count(|counts| counts.finished_after_death += 1);
        }
        let result = call(&mut self.now_tree());
        if matches!(result, Err(BfsError::Errno(libc::ENOSPC))) {
            self.count(|counts| counts.no_space += 1);
            self.met(BfsFault::NoSpace);
        }
        if fails {
            self.count(|counts| counts.io_errors_late += 1);
            self.met(BfsFault::IoError);
            return Err(BfsError::Errno(libc::EIO));
        }
        result
    }
}

/// The file system as one server process sees it.
pub struct SimProcess {
    shared: Rc<Shared>,
    life: Rc<Life>,
}

impl SimProcess {
    /// The process was killed. Its calls that are under way go on; until the last has ended, its
    /// lock is held.
    pub fn kill(&self) {
        self.life.killed.set(true);
    }

    fn call<T: 'static>(
        &self,
        is_lookup: bool,
        call: impl FnOnce(&mut Tree) -> Result<T, BfsError> + 'static,
    ) -> BfsFuture<T> {
        let (sender, receiver) = oneshot::channel();
        let (shared, life) = (self.shared.clone(), self.life.clone());
        life.calls.set(life.calls.get() + 1);
        drop(self.shared.rt.spawn(async move {
            let result = shared.carry_out(&life, is_lookup, call).await;
            life.calls.set(life.calls.get() - 1);
            // The caller may be gone.
            let _ = sender.send(result);
        }));
        Box::pin(async move { receiver.await.unwrap_or(Err(BfsError::Errno(libc::EIO))) })
    }

    fn unavailable(&self) -> Option<BfsError> {
        let mounted = self.shared.mounted.get();
        (!mounted).then(|| BfsError::Unavailable("not mounted".to_owned()))
    }
}

impl Drop for SimProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Bfs for SimProcess {
    fn check(&self) -> BfsFuture<()> {
        let shared = self.shared.clone();
        let call = self.call(false, move |_| {
            if shared.mounted.get() {
                Ok(())
            } else {
                Err(BfsError::Unavailable("not mounted".to_owned()))
            }
        });
        Box::pin(call)
    }

    fn uuid(&self) -> [u8; 16] {
        self.shared.uuid
    }

    fn hold(&self, process: ProcessId) -> BfsFuture<()> {
        let result = match self.unavailable() {
            Some(error) => Err(error),
            None => {
                let mut locks = self.shared.locks.borrow_mut();
                let held = locks.get(&process).and_then(Weak::upgrade);
                if held.is_some_and(|life| life.is_alive() && !Rc::ptr_eq(&life, &self.life)) {
                    Err(BfsError::Errno(libc::EWOULDBLOCK))
                } else {
                    locks.insert(process, Rc::downgrade(&self.life));
                    Ok(())
                }
            }
        };
        self.call(false, move |_| result)
    }

    fn proven_gone(&self, process: ProcessId) -> BfsFuture<bool> {
        let shared = self.shared.clone();
        self.call(false, move |_| {
            if !shared.mounted.get() {
                return Err(BfsError::Unavailable("not mounted".to_owned()));
            }
            let life = shared.locks.borrow().get(&process).and_then(Weak::upgrade);
            Ok(life.is_none_or(|life| !life.is_alive()))
        })
    }

    fn lookup(&self, caller: &Credentials, path: &[u8], no_follow: bool) -> BfsFuture<Found> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.call(true, move |tree| tree.lookup(&caller, &path, !no_follow))
    }

    fn open(&self, caller: &Credentials, path: &[u8], flags: i32, mode: u32) -> BfsFuture<Found> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.call(flags & libc::O_CREAT == 0, move |tree| tree.open(&caller, &path, flags, mode))
    }

    fn mkdir(&self, caller: &Credentials, path: &[u8], mode: u32) -> BfsFuture<Found> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.call(false, move |tree| tree.mkdir(&caller, &path, mode))
    }

    fn rmdir(&self, caller: &Credentials, path: &[u8]) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.call(false, move |tree| tree.remove(&caller, &path, true))
    }

    fn unlink(&self, caller: &Credentials, path: &[u8]) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.call(false, move |tree| tree.remove(&caller, &path, false))
    }

    fn rename(&self, caller: &Credentials, from: &[u8], to: &[u8], flags: u32) -> BfsFuture<()> {
        let (caller, from, to) = (caller.clone(), from.to_vec(), to.to_vec());
        self.call(false, move |tree| tree.rename(&caller, &from, &to, flags))
    }

    fn readdir(
        &self,
        caller: &Credentials,
        path: &[u8],
        after: &[u8],
        limit: usize,
    ) -> BfsFuture<DirPage> {
        let (caller, path, after) = (caller.clone(), path.to_vec(), after.to_vec());
        self.call(true, move |tree| tree.readdir(&caller, &path, &after, limit))
    }

    fn chmod(&self, caller: &Credentials, path: &[u8], mode: u32) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.call(false, move |tree| tree.chmod(&caller, &path, mode))
    }

    fn chown(
        &self,
        caller: &Credentials,
        path: &[u8],
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.call(false, move |tree| tree.chown(&caller, &path, uid, gid))
    }

    fn utimens(&self, caller: &Credentials, path: &[u8], times: Times) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.call(false, move |tree| tree.utimens(&caller, &path, times))
    }

    fn access(&self, caller: &Credentials, path: &[u8], mode: u32) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.call(true, move |tree| tree.access(&caller, &path, mode))
    }

    fn statvfs(&self) -> BfsFuture<Space> {
        self.call(false, |tree| {
            let block_bytes = 4096;
            let blocks = tree.capacity_bytes / block_bytes;
            let free = tree.capacity_bytes.saturating_sub(tree.used_bytes()) / block_bytes;
            let files = 1 << 32;
            Ok(Space { block_bytes, blocks, free, files, files_free: files, name_max: 255 })
        })
    }

    fn keep(&self, binding: &Binding, name: &str) -> BfsFuture<()> {
        let (binding, name) = (binding.clone(), name.to_owned());
        self.call(false, move |tree| tree.keep(&binding, &name))
    }

    fn remove_hidden(&self, name: &str) -> BfsFuture<()> {
        let name = name.to_owned();
        self.call(false, move |tree| {
            tree.remove_hidden(&name);
            Ok(())
        })
    }

    fn stat(&self, binding: &Binding) -> BfsFuture<Attributes> {
        let binding = binding.clone();
        self.call(false, move |tree| tree.stat(&binding))
    }

    fn read(&self, binding: &Binding, offset: u64, mut buf: BufMut) -> BfsFuture<(BufMut, usize)> {
        let binding = binding.clone();
        self.call(false, move |tree| {
            let len = tree.read(&binding, offset, &mut buf)?;
            Ok((buf, len))
        })
    }

    fn write(&self, binding: &Binding, offset: u64, bufs: Vec<Buf>) -> BfsFuture<()> {
        let binding = binding.clone();
        self.call(false, move |tree| {
            let mut at = offset;
            for buf in bufs {
                tree.write(&binding, at, &buf)?;
                at += buf.len() as u64;
            }
            Ok(())
        })
    }

    fn fsync(&self, binding: &Binding) -> BfsFuture<()> {
        let binding = binding.clone();
        self.call(false, move |tree| tree.fsync(&binding, false))
    }

    fn fsync_name(&self, binding: &Binding) -> BfsFuture<()> {
        let binding = binding.clone();
        self.call(false, move |tree| tree.fsync(&binding, true))
    }

    fn truncate(&self, binding: &Binding, size: u64) -> BfsFuture<()> {
        let binding = binding.clone();
        self.call(false, move |tree| tree.truncate(&binding, size))
    }

    fn set_times(&self, binding: &Binding, times: Times) -> BfsFuture<()> {
        let binding = binding.clone();
        self.call(false, move |tree| tree.set_times(&binding, times))
    }
}

impl Life {
    fn is_alive(&self) -> bool {
        !self.killed.get() || self.calls.get() > 0
    }
}
