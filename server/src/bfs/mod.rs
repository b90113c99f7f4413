//! The backing file system: what a server asks of it, whoever answers.
//!
//! Namespace calls run with the caller's credentials; calls by [`Binding`] run as the server. A
//! call may hang for minutes inside a kernel and finish late, also after its future was dropped
//! and after the process died: nothing here fences it (rule 10).

pub mod posix;

use std::future::Future;
use std::pin::Pin;

use crate::partition::region_mutation::ProcessId;
use bb_proto::meta::{Attributes, Binding, Credentials, DirEntry, Space};
use bb_runtime::{Buf, BufMut};

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BfsError {
    /// The file system's answer.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// The file system is not there, or is not the one that belongs to this cluster (rule 11).
    /// Says nothing about any file.
    #[error("backing file system unavailable: {0}")]
    Unavailable(String),
}

/// The future of a call.
pub type BfsFuture<T> = Pin<Box<dyn Future<Output = Result<T, BfsError>>>>;

/// What a call answered, if this is still the file system with our marker (rule 11): one that was
/// unmounted beneath us says "no such file" of everything. To be asked wherever an error would say
/// something about a file.
///
/// # Errors
/// The call's own, or that of [`Bfs::check`].
pub async fn confirmed<T>(bfs: &dyn Bfs, result: Result<T, BfsError>) -> Result<T, BfsError> {
    if let Err(BfsError::Errno(_)) = result
        && !bfs.checks_errors()
    {
        bfs.check().await?;
    }
    result
}

/// A file as a name lookup found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Attributes; `size` is the backing file system's own.
    pub attributes: Attributes,
    /// Identity. For regular files, directories and everything else that has a handle.
    pub binding: Binding,
    /// True if this call created it.
    pub created: bool,
}

/// What was asked of it since the process began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BfsCalls {
    /// Calls that have ended.
    pub count: u64,
    /// Time that they took, each by itself.
    pub took_us: u64,
}

/// A page of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirPage {
    /// Entries in byte order of their names, without "." and "..", and without our own hidden
    /// names.
    pub entries: Vec<DirEntry>,
    /// True if nothing follows.
    pub last: bool,
}

/// Times to set; `None` leaves one as it is. Nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Times {
    /// Access time.
    pub atime_ns: Option<i64>,
    /// Modification time.
    pub mtime_ns: Option<i64>,
}

/// Names in the root of the backing file system that belong to Burstbay and are hidden from
/// applications: the marker, lock files, files that were unlinked while open.
pub const OWN_DIRECTORY: &str = ".burstbay";

/// A backing file system.
///
/// Paths are absolute within it, raw bytes, without ".." components. All writes of a file's bytes
/// go through [`Bfs::write`] and [`Bfs::truncate`], so that a simulated one sees every one.
pub trait Bfs {
    /// Checks through the held root descriptor that this is still the file system with our marker.
    /// To be called before each batch of work (rule 11).
    fn check(&self) -> BfsFuture<()>;

    /// True if a call that ends with an error number has made this check itself, after it.
    fn checks_errors(&self) -> bool {
        false
    }

    /// UUID from the marker, 16 bytes.
    fn uuid(&self) -> [u8; 16];

    /// What was asked of it. Nothing where nobody counts.
    fn calls(&self) -> BfsCalls {
        BfsCalls::default()
    }

    /// Takes this incarnation's lock file, for as long as the process lives.
    fn hold(&self, process: ProcessId) -> BfsFuture<()>;

    /// True if the process of `incarnation` is proven gone: its lock can be taken. False while
    /// that cannot be proven.
    fn proven_gone(&self, process: ProcessId) -> BfsFuture<bool>;

    /// Looks a name up.
    fn lookup(&self, caller: &Credentials, path: &[u8], no_follow: bool) -> BfsFuture<Found>;

    /// Opens a file as open(2) would, with all its checks, creating it where the flags say so, and
    /// lets it go again. `O_TRUNC` is masked out: truncation has its own order (rule 7).
    fn open(&self, caller: &Credentials, path: &[u8], flags: i32, mode: u32) -> BfsFuture<Found>;

    /// Makes a directory.
    fn mkdir(&self, caller: &Credentials, path: &[u8], mode: u32) -> BfsFuture<Found>;

    /// Removes an empty directory.
    fn rmdir(&self, caller: &Credentials, path: &[u8]) -> BfsFuture<()>;

    /// Removes a name.
    fn unlink(&self, caller: &Credentials, path: &[u8]) -> BfsFuture<()>;

    /// Renames; `flags` of renameat2(2).
    fn rename(&self, caller: &Credentials, from: &[u8], to: &[u8], flags: u32) -> BfsFuture<()>;

    /// Lists names after `after`, at most `limit`.
    fn readdir(
        &self,
        caller: &Credentials,
        path: &[u8],
        after: &[u8],
        limit: usize,
    ) -> BfsFuture<DirPage>;

    /// Changes permissions.
    fn chmod(&self, caller: &Credentials, path: &[u8], mode: u32) -> BfsFuture<()>;

    /// Changes owner and group; `None` leaves one as it is.
    fn chown(
        &self,
        caller: &Credentials,
        path: &[u8],
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> BfsFuture<()>;

    /// Sets times as the caller.
    fn utimens(&self, caller: &Credentials, path: &[u8], times: Times) -> BfsFuture<()>;

    /// Checks permissions as access(2).
    fn access(&self, caller: &Credentials, path: &[u8], mode: u32) -> BfsFuture<()>;

    /// Space.
    fn statvfs(&self) -> BfsFuture<Space>;

    /// Gives a file a hidden name in our own directory, so that it lives on when its last other
    /// name is removed: for files that are unlinked, or renamed over, while open. Well if it has
    /// that name already.
    fn keep(&self, binding: &Binding, name: &str) -> BfsFuture<()>;

    /// Removes a hidden name. Well if it is gone already.
    fn remove_hidden(&self, name: &str) -> BfsFuture<()>;

    /// Attributes of a bound file. `ESTALE` if it exists no more.
    fn stat(&self, binding: &Binding) -> BfsFuture<Attributes>;

    /// Reads up to `buf.len()` bytes; gives back the buffer and how many there were (fewer only at
    /// the end of the file).
    fn read(&self, binding: &Binding, offset: u64, buf: BufMut) -> BfsFuture<(BufMut, usize)>;

    /// Writes all bytes of `bufs`, one after the other.
    fn write(&self, binding: &Binding, offset: u64, bufs: Vec<Buf>) -> BfsFuture<()>;

    /// Makes written bytes durable.
    fn fsync(&self, binding: &Binding) -> BfsFuture<()>;

    /// Makes inode and name of a file durable: fsync of the directory it is in.
    fn fsync_name(&self, binding: &Binding) -> BfsFuture<()>;

    /// Sets the size.
    fn truncate(&self, binding: &Binding, size: u64) -> BfsFuture<()>;

    /// Sets times as the server.
    fn set_times(&self, binding: &Binding, times: Times) -> BfsFuture<()>;
}
