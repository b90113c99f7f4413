//! An open file of ours, whichever descriptors lead to it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bb_client::blocking::File;
use bb_proto::meta::Credentials;

use crate::guard::{Errno, Result};
use crate::library::{self, Connection};
use crate::monitor;

/// One call of the client moves at most so much: what it plans takes memory by size.
const PIECE_BYTES_MAX: usize = 64 << 20;

/// See the module.
pub struct OpenFile {
    /// In the cluster.
    pub path: Vec<u8>,
    /// Of open(2), without those that only matter at the first open.
    pub flags: i32,
    credentials: Credentials,
    /// None where it must be opened anew: in a child, and after a failure of the client.
    backend: Mutex<Option<Backend>>,
    wrote: AtomicBool,
    failed: Mutex<Option<Failed>>,
    later: AtomicBool,
    position: Mutex<()>,
    size: Mutex<()>,
}

// The file is dropped before what it belongs to.
struct Backend {
    file: Arc<File>,
    connection: Arc<Connection>,
}

/// A write that was refused. Programs that did not look learn it again from fsync and close; those
/// that wrote the same range once more, successfully, do not.
struct Failed {
    errno: Errno,
    range: Range<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Not the fault of what was written.
fn is_about_arguments(errno: i32) -> bool {
    matches!(errno, libc::EBADF | libc::EINVAL | libc::EFAULT | libc::EFBIG)
}

impl OpenFile {
    /// Opens it.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(
        connection: Arc<Connection>,
        path: Vec<u8>,
        flags: i32,
        mode: u32,
        credentials: Credentials,
    ) -> Result<Self> {
        let file = connection.client.acting_as(credentials.clone()).open(&path, flags, mode)?;
        let backend = Backend { file: Arc::new(file), connection };
        let flags = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
        Ok(Self::new(path, flags, credentials, Some(backend)))
    }

    fn new(path: Vec<u8>, flags: i32, credentials: Credentials, backend: Option<Backend>) -> Self {
        Self {
            path,
            flags,
            credentials,
            backend: Mutex::new(backend),
            wrote: AtomicBool::default(),
            failed: Mutex::default(),
            later: AtomicBool::default(),
            position: Mutex::default(),
            size: Mutex::default(),
        }
    }

    /// The same file for a child of this process. Locks nothing: in the child, a lock may be held by
    /// a thread that is not there.
    pub fn anew(&self) -> Self {
        let new = Self::new(self.path.clone(), self.flags, self.credentials.clone(), None);
        new.later.store(self.later.load(Ordering::Relaxed), Ordering::Relaxed);
        new
    }

    /// The client's file; opens it where that must be done.
    ///
    /// # Errors
    /// As open(2).
    pub fn file(&self) -> Result<Arc<File>> {
        let mut slot = lock(&self.backend);
        if let Some(backend) = &*slot {
            if !backend.connection.client.is_broken() {
                return Ok(backend.file.clone());
            }
            if self.wrote.swap(false, Ordering::AcqRel) {
                // Which of it was stored nobody knows.
                self.refused(0..u64::MAX, Errno(libc::EIO));
            }
            *slot = None;
        }
        let connection = library::connection()?;
        let client = connection.client.acting_as(self.credentials.clone());
        let file = Arc::new(client.open(&self.path, self.flags, 0)?);
        *slot = Some(Backend { file: file.clone(), connection });
        Ok(file)
    }

    /// True where `close` shall not wait.
    pub fn closes_later(&self) -> bool {
        self.later.load(Ordering::Relaxed)
    }

    /// Sets that.
    pub fn set_closes_later(&self, later: bool) {
        self.later.store(later, Ordering::Relaxed);
    }

    /// One read(2) or write(2) at a time uses the position.
    pub fn positioned(&self) -> MutexGuard<'_, ()> {
        lock(&self.position)
    }

    /// One change of the memfd's size at a time.
    pub fn resizing(&self) -> MutexGuard<'_, ()> {
        lock(&self.size)
    }

    /// True if writes go to the end.
    pub fn appends(&self) -> bool {
        self.flags & libc::O_APPEND != 0
    }

    /// Checks what it was opened for.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn may(&self, write: bool) -> Result<()> {
        let refused = if write { libc::O_RDONLY } else { libc::O_WRONLY };
        if self.flags & libc::O_ACCMODE == refused { Err(Errno(libc::EBADF)) } else { Ok(()) }
    }

    /// A write has failed.
    fn refused(&self, range: Range<u64>, errno: Errno) {
        if is_about_arguments(errno.0) {
            return;
        }
        let mut failed = lock(&self.failed);
        match &mut *failed {
            Some(before) => {
                let range = before.range.start.min(range.start)..before.range.end.max(range.end);
                before.range = range;
            }
            none => *none = Some(Failed { errno, range }),
        }
    }

    /// A write of `range` has ended; passes its result on.
    ///
    /// # Errors
    /// The write's own.
    pub fn wrote(&self, range: Range<u64>, result: Result<usize>) -> Result<usize> {
        monitor::transferred(true, result.map_err(|errno| errno.0));
        self.wrote.store(true, Ordering::Release);
        match result {
            Ok(bytes) => {
                let mut failed = lock(&self.failed);
                let again = |f: &Failed| range.start <= f.range.start && f.range.end <= range.end;
                if failed.as_ref().is_some_and(again) {
                    *failed = None;
                }
                Ok(bytes)
            }
            Err(errno) => {
                self.refused(range, errno);
                Err(errno)
            }
        }
    }

    /// An error that a write has left.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self) -> Result<()> {
        lock(&self.failed).as_ref().map_or(Ok(()), |failed| Err(failed.errno))
    }

    /// All of `out`, unless the file ends before that.
    ///
    /// # Errors
    /// As pread(2).
    pub fn pread(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        let result = self.pread_pieces(out, offset);
        monitor::transferred(false, result.map_err(|errno| errno.0));
        result
    }

    fn pread_pieces(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        let file = self.file()?;
        if out.len() <= PIECE_BYTES_MAX {
            return Ok(file.pread(out, offset)?);
        }
        let mut done = 0;
        for piece in out.chunks_mut(PIECE_BYTES_MAX) {
            let read = file.pread(piece, offset + done as u64)?;
            done += read;
            if read < piece.len() {
                break;
            }
        }
        Ok(done)
    }

    /// All of `data`.
    ///
    /// # Errors
    /// As pwrite(2).
    pub fn pwrite(&self, data: &[u8], offset: u64) -> Result<usize> {
        let range = offset..offset.saturating_add(data.len() as u64);
        let result = self.file().and_then(|file| Ok(file.pwrite(data, offset)?));
        self.wrote(range, result)
    }

    /// All of the buffers, unless the file ends before that.
    ///
    /// # Errors
    /// As preadv(2).
    pub fn preadv(&self, outs: &mut [&mut [u8]], offset: u64) -> Result<usize> {
        let result = self.file().and_then(|file| Ok(file.preadv(outs, offset)?));
        monitor::transferred(false, result.map_err(|errno| errno.0));
        result
    }

    /// All of the buffers.
    ///
    /// # Errors
    /// As pwritev(2).
    pub fn pwritev(&self, datas: &[&[u8]], offset: u64) -> Result<usize> {
        let len: u64 = datas.iter().map(|data| data.len() as u64).sum();
        let result = self.file().and_then(|file| Ok(file.pwritev(datas, offset)?));
        self.wrote(offset..offset.saturating_add(len), result)
    }

    /// Client's cache to the servers.
    ///
    /// # Errors
    /// Also of writes long before.
    pub fn fsync(&self) -> Result<()> {
        monitor::FSYNCS.add(1);
        let is_open = lock(&self.backend).is_some();
        // Else nothing was written in this process.
        let synced = if is_open { self.file().and_then(|file| Ok(file.fsync()?)) } else { Ok(()) };
        let result = self.check().and(synced);
        if let Err(errno) = result {
            monitor::FAILURES.add(1);
            // What was lost stays lost: nobody is told "durable" after this.
            self.refused(0..u64::MAX, errno);
        }
        result
    }

    /// Size as it is in the cluster now.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn size(&self) -> Result<u64> {
        Ok(self.file()?.fstat()?.size)
    }

    /// Writes back and closes.
    ///
    /// # Errors
    /// Of writes before.
    pub fn close(&self) -> Result<()> {
        let backend = lock(&self.backend).take();
        let closed = match &backend {
            None => Ok(()),
            Some(backend) if backend.connection.client.is_broken() => {
                let lost = self.wrote.load(Ordering::Acquire);
                if lost { Err(Errno(libc::EIO)) } else { Ok(()) }
            }
            Some(backend) => backend.file.close_shared().map_err(Errno::from),
        };
        self.check().and(closed)
    }

    /// The same in the background.
    pub fn close_later(&self, done: impl FnOnce(Result<()>) + Send + 'static) {
        let before = self.check();
        let backend = lock(&self.backend).take();
        match backend {
            None => done(before),
            Some(Backend { file, connection }) => {
                file.start_close(move |result| {
                    done(before.and(result.map(drop).map_err(Errno::from)));
                    drop(connection);
                });
            }
        }
    }
}
