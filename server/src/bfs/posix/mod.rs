//! Any POSIX directory as a backing file system.
//!
//! Every path is resolved beneath a held root descriptor, as the caller; every file is known by
//! its handle. Blocking calls run on two pools of threads, one for names and one for data, so that
//! a long write-out does not hold up a create. What comes in: paths, bindings, buffers. What goes
//! out: attributes, bindings, bytes. It decides nothing about Burstbay's own state.

mod credentials;
mod descriptors;
mod files;
mod marker;
mod names;
mod root;
mod sys;
#[cfg(test)]
mod tests;
mod turns;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bb_proto::meta::{Attributes, Binding, Credentials, Space};
use bb_runtime::{Buf, BufMut, ThreadPool};

use self::credentials::Own;
pub use self::marker::MarkerError;
use self::root::{Root, shown};
pub use self::root::{SetupError, format};
use super::{Bfs, BfsCalls, BfsError, BfsFuture, DirPage, Found, Times};
use crate::partition::region_mutation::ProcessId;

/// How much of the machine it may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Threads for calls by path. Each blocks for a round trip to the file system's servers.
    pub name_threads: usize,
    /// Threads for calls by binding.
    pub data_threads: usize,
    /// Calls that may wait for a thread of each kind.
    pub waiting_max: usize,
    /// Bound files that are kept open.
    pub files_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { name_threads: 16, data_threads: 8, waiting_max: 4096, files_max: 256 }
    }
}

/// A POSIX directory.
pub struct PosixBfs {
    inner: Arc<Inner>,
    names: ThreadPool,
    data: ThreadPool,
}

/// What the threads work with.
struct Inner {
    path: PathBuf,
    uuid: [u8; 16],
    own: Own,
    files_max: usize,
    current: Mutex<Arc<Root>>,
    /// Lock files of this process, open until it ends.
    locks: Mutex<Vec<OwnedFd>>,
    /// Directories whose entries are being made durable.
    directories: turns::Turns,
}

impl PosixBfs {
    /// Takes the directory `path`, which must have been formatted, and checks that everything
    /// needed works there.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn open(path: &Path, limits: Limits) -> Result<Self, SetupError> {
        let own = Own::of_this_thread()
            .map_err(|error| SetupError::Os { doing: "read own credentials".into(), error })?;
        if !own.can_act_for_others() {
            let missing = "the effective user is not root, or keeps capabilities when it changes";
            return Err(SetupError::Privileges { missing: missing.into() });
        }
        let root = Root::open(path, limits.files_max).map_err(|error| match error {
            BfsError::Errno(libc::ENOENT) if path.is_dir() => {
                SetupError::NoMarker { path: shown(path) }
            }
            error => SetupError::Open { path: shown(path), error },
        })?;
        let bytes = root.marker().map_err(|error| match error {
            BfsError::Errno(libc::ENOENT) => SetupError::NoMarker { path: shown(path) },
            error => SetupError::Open { path: shown(path), error },
        })?;
        let uuid = marker::decode(&bytes)
            .map_err(|error| SetupError::Marker { path: shown(path), error })?;
        let inner = Inner {
            path: path.to_owned(),
            uuid,
            own,
            files_max: limits.files_max,
            current: Mutex::new(Arc::new(root)),
            locks: Mutex::new(Vec::new()),
            directories: turns::Turns::default(),
        };
        inner.probe()?;
        Ok(Self {
            inner: Arc::new(inner),
            names: ThreadPool::new("bfs-name", limits.name_threads, limits.waiting_max),
            data: ThreadPool::new("bfs-data", limits.data_threads, limits.waiting_max),
        })
    }

    /// Makes a call on a thread of `pool`, at once: it is made also if the future is dropped. An error
    /// counts only if this is the backing file system (rule 11): looked at by the same thread, since
    /// to make a file begins with one (that there is none), and a way to a thread and back costs more.
    fn run<T: Send + 'static>(
        &self,
        pool: &ThreadPool,
        call: impl FnOnce(&Inner) -> Result<T, BfsError> + Send + 'static,
    ) -> BfsFuture<T> {
        let inner = self.inner.clone();
        let answer = pool.run(move || match call(&inner) {
            Err(error @ BfsError::Errno(_)) => inner.check().and(Err(error)),
            result => result,
        });
        Box::pin(async move {
            answer.await.unwrap_or_else(|error| Err(BfsError::Unavailable(error.to_string())))
        })
    }
}

impl Inner {
    fn root(&self) -> Arc<Root> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Finds out, with the marker, whether files here have an identity and can be opened by it.
    fn probe(&self) -> Result<(), SetupError> {
        let root = self.root();
        let open = |error| SetupError::Open { path: shown(&self.path), error };
        let fd = root.open_own(marker::NAME, libc::O_RDONLY).map_err(open)?;
        if let Err(error) = sys::handle_of(fd.as_fd()) {
            return Err(SetupError::NoHandles { path: shown(&self.path), error });
        }
        let binding =
            self.binding(&fd).map_err(|_| SetupError::NoIdentity { path: shown(&self.path) })?;
        match sys::open_handle(
            root.fd.as_fd(),
            binding.handle_type,
            &binding.handle,
            libc::O_RDONLY,
        ) {
            Ok(_) => Ok(()),
            Err(BfsError::Errno(libc::EPERM)) => {
                Err(SetupError::Privileges { missing: "open_by_handle_at is not permitted".into() })
            }
            Err(error) => Err(SetupError::NoHandles { path: shown(&self.path), error }),
        }
    }

    /// Rule 11: the held root must carry our marker, and be what the path leads to. A file system
    /// that was mounted again takes the place of the old one.
    fn check(&self) -> Result<(), BfsError> {
        let lost = |why: String| BfsError::Unavailable(format!("{}: {why}", shown(&self.path)));
        let held = self.root();
        let there = Root::open(&self.path, self.files_max);
        let there = there.map_err(|error| lost(format!("not mounted? {error}")))?;
        let use_other = !held.same_as(&there);
        let looked_at = if use_other { &there } else { &*held };
        let bytes = looked_at.marker().map_err(|error| lost(format!("no marker: {error}")))?;
        let uuid = marker::decode(&bytes).map_err(|error| lost(format!("its marker: {error}")))?;
        if uuid != self.uuid {
            return Err(lost("another cluster's file system is mounted here".into()));
        }
        if use_other {
            *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(there);
        } else {
            held.files().forget_deleted();
        }
        Ok(())
    }

    fn hold(&self, process: ProcessId) -> Result<(), BfsError> {
        let flags = libc::O_RDWR | libc::O_CREAT;
        let fd = self.root().open_own(&lock_name(process), flags)?;
        if !sys::try_lock(fd.as_fd())? {
            // Two processes with one incarnation: neither may go on as if it were alone.
            return Err(BfsError::Errno(libc::EWOULDBLOCK));
        }
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).push(fd);
        Ok(())
    }

    fn proven_gone(&self, process: ProcessId) -> Result<bool, BfsError> {
        // A file system that is not ours has no lock files either: that proves nothing.
        self.check()?;
        match self.root().open_own(&lock_name(process), libc::O_RDWR) {
            Ok(fd) => sys::try_lock(fd.as_fd()),
            // Each process takes its lock before it touches anything else here.
            Err(BfsError::Errno(libc::ENOENT)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn statvfs(&self) -> Result<Space, BfsError> {
        // SAFETY: all zeros is a valid statvfs buffer.
        let mut raw: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open and `raw` a statvfs buffer.
        sys::check(unsafe { libc::fstatvfs(root::raw(&self.root().fd), &raw mut raw) })?;
        Ok(Space {
            block_bytes: raw.f_frsize,
            blocks: raw.f_blocks,
            free: raw.f_bavail,
            files: raw.f_files,
            files_free: raw.f_favail,
            name_max: u32::try_from(raw.f_namemax).unwrap_or(255),
        })
    }
}

/// Lock file of a process. An empty file for each start; kept, since a missing one counts as
/// proof only for a process that never got here.
fn lock_name(process: ProcessId) -> String {
    format!("lock.{}.{}", process.node, process.incarnation)
}

impl Bfs for PosixBfs {
    fn check(&self) -> BfsFuture<()> {
        self.run(&self.data, Inner::check)
    }

    fn checks_errors(&self) -> bool {
        true
    }

    fn uuid(&self) -> [u8; 16] {
        self.inner.uuid
    }

    fn calls(&self) -> BfsCalls {
        let of = [self.names.stats(), self.data.stats()];
        let took = of[0].worked + of[1].worked;
        BfsCalls {
            count: of[0].completed + of[1].completed,
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        }
    }

    fn hold(&self, process: ProcessId) -> BfsFuture<()> {
        self.run(&self.data, move |inner| inner.hold(process))
    }

    fn proven_gone(&self, process: ProcessId) -> BfsFuture<bool> {
        self.run(&self.data, move |inner| inner.proven_gone(process))
    }

    fn lookup(&self, caller: &Credentials, path: &[u8], no_follow: bool) -> BfsFuture<Found> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.run(&self.names, move |inner| inner.lookup(&caller, &path, no_follow))
    }

    fn open(&self, caller: &Credentials, path: &[u8], flags: i32, mode: u32) -> BfsFuture<Found> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.run(&self.names, move |inner| inner.open(&caller, &path, flags, mode))
    }

    fn mkdir(&self, caller: &Credentials, path: &[u8], mode: u32) -> BfsFuture<Found> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.run(&self.names, move |inner| inner.mkdir(&caller, &path, mode))
    }

    fn rmdir(&self, caller: &Credentials, path: &[u8]) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.run(&self.names, move |inner| inner.remove(&caller, &path, libc::AT_REMOVEDIR))
    }

    fn unlink(&self, caller: &Credentials, path: &[u8]) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.run(&self.names, move |inner| inner.remove(&caller, &path, 0))
    }

    fn rename(&self, caller: &Credentials, from: &[u8], to: &[u8], flags: u32) -> BfsFuture<()> {
        let (caller, from, to) = (caller.clone(), from.to_vec(), to.to_vec());
        self.run(&self.names, move |inner| inner.rename(&caller, &from, &to, flags))
    }

    fn readdir(
        &self,
        caller: &Credentials,
        path: &[u8],
        after: &[u8],
        limit: usize,
    ) -> BfsFuture<DirPage> {
        let (caller, path, after) = (caller.clone(), path.to_vec(), after.to_vec());
        self.run(&self.names, move |inner| inner.readdir(&caller, &path, &after, limit))
    }

    fn chmod(&self, caller: &Credentials, path: &[u8], mode: u32) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.run(&self.names, move |inner| inner.chmod(&caller, &path, mode))
    }

    fn chown(
        &self,
        caller: &Credentials,
        path: &[u8],
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.run(&self.names, move |inner| inner.chown(&caller, &path, uid, gid))
    }

    fn utimens(&self, caller: &Credentials, path: &[u8], times: Times) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.run(&self.names, move |inner| inner.utimens(&caller, &path, times))
    }

    fn access(&self, caller: &Credentials, path: &[u8], mode: u32) -> BfsFuture<()> {
        let (caller, path) = (caller.clone(), path.to_vec());
        self.run(&self.names, move |inner| inner.access(&caller, &path, mode))
    }

    fn statvfs(&self) -> BfsFuture<Space> {
        self.run(&self.names, Inner::statvfs)
    }

    fn keep(&self, binding: &Binding, name: &str) -> BfsFuture<()> {
        let (binding, name) = (binding.clone(), name.to_owned());
        self.run(&self.names, move |inner| inner.keep(&binding, &name))
    }

    fn remove_hidden(&self, name: &str) -> BfsFuture<()> {
        let name = name.to_owned();
        self.run(&self.names, move |inner| inner.remove_hidden(&name))
    }

    fn stat(&self, binding: &Binding) -> BfsFuture<Attributes> {
        let binding = binding.clone();
        self.run(&self.data, move |inner| inner.stat(&binding))
    }

    fn read(&self, binding: &Binding, offset: u64, buf: BufMut) -> BfsFuture<(BufMut, usize)> {
        let binding = binding.clone();
        self.run(&self.data, move |inner| inner.read(&binding, offset, buf))
    }

    fn write(&self, binding: &Binding, offset: u64, bufs: Vec<Buf>) -> BfsFuture<()> {
        let binding = binding.clone();
        self.run(&self.data, move |inner| inner.write(&binding, offset, &bufs))
    }

    fn fsync(&self, binding: &Binding) -> BfsFuture<()> {
        let binding = binding.clone();
        self.run(&self.data, move |inner| inner.fsync(&binding))
    }

    fn fsync_name(&self, binding: &Binding) -> BfsFuture<()> {
        let binding = binding.clone();
        self.run(&self.data, move |inner| inner.fsync_name(&binding))
    }

    fn truncate(&self, binding: &Binding, size: u64) -> BfsFuture<()> {
        let binding = binding.clone();
        self.run(&self.data, move |inner| inner.truncate(&binding, size))
    }

    fn set_times(&self, binding: &Binding, times: Times) -> BfsFuture<()> {
        let binding = binding.clone();
        self.run(&self.data, move |inner| inner.set_times(&binding, times))
    }
}
