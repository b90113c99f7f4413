//! The client for programs with threads of their own, and no executor.
//!
//! Any number of threads may call. Each carries out its own call as far as it gets without waiting
//! (a small write is a copy, an fsync its requests), under a lock, and wakes nobody for that. What
//! is left is driven by one of them, the *leader*, until its own call is done, and with it
//! everybody's; it sleeps without the lock. The others sleep until theirs is done or it is their
//! turn to lead. So a single-threaded program makes progress on its own thread, without a switch to
//! another. A background thread drives while no caller does (renewals, write-back, read-ahead), and
//! gives way at once; and where several threads wait, instead of one of them after the other.

mod background;
mod call;
mod core;
mod drive;
mod later;
mod ring;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bb_pgio::PgStats;
use bb_proto::meta::{
    Attributes, Credentials, DirEntry, FileState, OperationState, Residency, Space,
};

use crate::counters::Counters;
use crate::error::{Error, Result};
use crate::options::ClientOptions;
use drive::Shared;

pub use core::Platform;
pub use later::RawBuffer;
pub use ring::{Completion, Ring};

/// A client that many threads may use.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Handle>,
    credentials: Option<Arc<Credentials>>,
}

/// Stops the background thread with the last client or file.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// An open file. Dropped without [`File::close`] it is closed in the background, its errors lost.
pub struct File {
    shared: Arc<Handle>,
    id: u64,
}

/// An operation at the servers.
pub struct Operation {
    shared: Arc<Handle>,
    id: u64,
}

/// One call, carried out as `$client` by the thread that leads.
macro_rules! as_client {
    ($self:ident, $client:ident, $body:expr) => {{
        let credentials = $self.credentials.clone();
        $self.shared.shared.call(move |inside| {
            Box::pin(async move {
                let $client = match credentials {
                    Some(credentials) => inside.client.acting_as((*credentials).clone()),
                    None => inside.client.clone(),
                };
                $body.await
            })
        })
    }};
}

macro_rules! as_file {
    ($self:ident, $file:ident, $body:expr) => {{
        let id = $self.id;
        $self.shared.shared.call(move |inside| {
            Box::pin(async move {
                let $file = inside.file(id)?;
                $body.await
            })
        })
    }};
}

impl Client {
    /// Connects over TCP to the cluster whose servers (at least one of them) are at `addresses`,
    /// with `pool_bytes` of buffers.
    ///
    /// # Errors
    /// [`Error`].
    pub fn connect(addresses: &[&str], options: ClientOptions, pool_bytes: usize) -> Result<Self> {
        let platform = Platform::tcp(addresses, &options, pool_bytes)?;
        Self::connect_on(platform, options)
    }

    /// Connects over a platform of the caller's: an executor and a transport.
    ///
    /// # Errors
    /// [`Error`].
    pub fn connect_on(platform: Platform, options: ClientOptions) -> Result<Self> {
        let shared = Shared::connect(platform, options)?;
        Ok(Self { shared: Arc::new(Handle { shared }), credentials: None })
    }

    /// The same client, acting as somebody else on the backing file system.
    #[must_use]
    pub fn acting_as(&self, credentials: Credentials) -> Self {
        Self { shared: self.shared.clone(), credentials: Some(Arc::new(credentials)) }
    }

    /// Opens a file: `flags` and `mode` are those of open(2).
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(&self, path: &[u8], flags: i32, mode: u32) -> Result<File> {
        let credentials = self.credentials.clone();
        let id = self.shared.shared.call(move |inside| {
            Box::pin(async move {
                let client = match credentials {
                    Some(credentials) => inside.client.acting_as((*credentials).clone()),
                    None => inside.client.clone(),
                };
                let file = client.open(path, flags, mode).await?;
                Ok(inside.keep_file(file))
            })
        })?;
        Ok(File { shared: self.shared.clone(), id })
    }

    /// See the async [`crate::Client::stat`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn stat(&self, path: &[u8]) -> Result<Attributes> {
        as_client!(self, client, client.stat(path))
    }

    /// See the async [`crate::Client::lstat`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn lstat(&self, path: &[u8]) -> Result<Attributes> {
        as_client!(self, client, client.lstat(path))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// [`Error`].
    pub fn mkdir(&self, path: &[u8], mode: u32) -> Result<()> {
        as_client!(self, client, client.mkdir(path, mode))
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`Error`].
    pub fn rmdir(&self, path: &[u8]) -> Result<()> {
        as_client!(self, client, client.rmdir(path))
    }

    /// Removes a name.
    ///
    /// # Errors
    /// [`Error`].
    pub fn unlink(&self, path: &[u8]) -> Result<()> {
        as_client!(self, client, client.unlink(path))
    }

    /// Renames, over what is there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn rename(&self, from: &[u8], to: &[u8], flags: u32) -> Result<()> {
        as_client!(self, client, client.rename(from, to, flags))
    }

    /// All entries of a directory.
    ///
    /// # Errors
    /// [`Error`].
    pub fn readdir(&self, path: &[u8]) -> Result<Vec<DirEntry>> {
        as_client!(self, client, client.readdir(path))
    }

    /// Changes permissions.
    ///
    /// # Errors
    /// [`Error`].
    pub fn chmod(&self, path: &[u8], mode: u32) -> Result<()> {
        as_client!(self, client, client.chmod(path, mode))
    }

    /// Changes owner and group, each where given.
    ///
    /// # Errors
    /// [`Error`].
    pub fn chown(&self, path: &[u8], uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        as_client!(self, client, client.chown(path, uid, gid))
    }

    /// Sets times, each where given, in nanoseconds since 1970.
    ///
    /// # Errors
    /// [`Error`].
    pub fn utimens(&self, path: &[u8], atime: Option<i64>, mtime: Option<i64>) -> Result<()> {
        as_client!(self, client, client.utimens(path, atime, mtime))
    }

    /// Checks permissions.
    ///
    /// # Errors
    /// [`Error`].
    pub fn access(&self, path: &[u8], mode: u32) -> Result<()> {
        as_client!(self, client, client.access(path, mode))
    }

    /// Space of the file system.
    ///
    /// # Errors
    /// [`Error`].
    pub fn statvfs(&self, path: &[u8]) -> Result<Space> {
        as_client!(self, client, client.statvfs(path))
    }

    /// Truncates by path.
    ///
    /// # Errors
    /// [`Error`].
    pub fn truncate(&self, path: &[u8], size: u64) -> Result<()> {
        as_client!(self, client, client.truncate(path, size))
    }

    /// Blocks that were read by reconstruction so far.
    pub fn reconstructed_blocks(&self) -> u64 {
        self.statistics().reconstructed
    }

    /// What reading and writing parity groups took so far.
    pub fn statistics(&self) -> PgStats {
        let count = |inside: &core::Inside| inside.client.statistics();
        self.shared
            .shared
            .call(move |inside| Box::pin(async move { Ok(count(&inside)) }))
            .unwrap_or_default()
    }

    /// What the client did so far, in all; nothing of one that has failed.
    pub fn counters(&self) -> Counters {
        let count = |inside: &core::Inside| inside.client.counters();
        self.shared
            .shared
            .call(move |inside| Box::pin(async move { Ok(count(&inside)) }))
            .unwrap_or_default()
    }

    /// Writes back everything that any file of the client holds.
    ///
    /// # Errors
    /// The first that there was.
    pub fn flush(&self) -> Result<()> {
        as_client!(self, client, client.flush())
    }

    /// Writes back everything and ends the session.
    ///
    /// # Errors
    /// The first error of an asynchronous write.
    pub fn disconnect(self) -> Result<()> {
        as_client!(self, client, client.disconnect())
    }

    /// The same, and the end of the background thread. Calls that are under way elsewhere, and
    /// later ones, fail with `ESHUTDOWN`. Only the first call says what was lost.
    ///
    /// # Errors
    /// The first error of an asynchronous write.
    pub fn shut_down(&self) -> Result<()> {
        self.shared.shared.stop_and_wait()
    }

    /// True after a failure of the client itself: no call will succeed any more.
    pub fn is_broken(&self) -> bool {
        self.shared.shared.is_broken()
    }
}

impl File {
    /// Reads into `out` from `offset`; fewer bytes than asked for only at the end.
    ///
    /// # Errors
    /// [`Error`].
    pub fn pread(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        as_file!(self, file, file.pread(out, offset))
    }

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn pwrite(&self, data: &[u8], offset: u64) -> Result<usize> {
        as_file!(self, file, file.pwrite(data, offset))
    }

    /// Reads into several buffers.
    ///
    /// # Errors
    /// [`Error`].
    pub fn preadv(&self, outs: &mut [&mut [u8]], offset: u64) -> Result<usize> {
        as_file!(self, file, file.preadv(outs, offset))
    }

    /// Writes several buffers.
    ///
    /// # Errors
    /// [`Error`].
    pub fn pwritev(&self, datas: &[&[u8]], offset: u64) -> Result<usize> {
        as_file!(self, file, file.pwritev(datas, offset))
    }

    /// Starts to read into several buffers and returns. `done` is called exactly once, on the
    /// client's background thread, from where it may make any call.
    ///
    /// # Safety
    /// Until `done` is called, the buffers stay writable and nobody else touches them.
    pub unsafe fn start_preadv(
        &self,
        buffers: Vec<RawBuffer>,
        offset: u64,
        done: impl FnOnce(Result<usize>) + Send + 'static,
    ) {
        let id = self.id;
        let job = move |inside: std::rc::Rc<core::Inside>| -> call::LocalFuture<'static, _> {
            Box::pin(async move {
                let file = inside.file(id)?;
                // SAFETY: lent until `done`, which runs after this block is gone.
                let whole = |b: RawBuffer| unsafe { b.bytes_mut() };
                let mut outs: Vec<&mut [u8]> = buffers.into_iter().map(whole).collect();
                file.preadv(&mut outs, offset).await
            })
        };
        self.shared.shared.call_later(job, Box::new(done));
    }

    /// Starts to write several buffers and returns. `done` is called as with
    /// [`File::start_preadv`].
    ///
    /// # Safety
    /// Until `done` is called, the buffers stay readable and nobody changes them.
    pub unsafe fn start_pwritev(
        &self,
        buffers: Vec<RawBuffer>,
        offset: u64,
        done: impl FnOnce(Result<usize>) + Send + 'static,
    ) {
        let id = self.id;
        let job = move |inside: std::rc::Rc<core::Inside>| -> call::LocalFuture<'static, _> {
            Box::pin(async move {
                let file = inside.file(id)?;
                // SAFETY: as above.
                let whole = |b: RawBuffer| unsafe { b.bytes() };
                let datas: Vec<&[u8]> = buffers.into_iter().map(whole).collect();
                file.pwritev(&datas, offset).await
            })
        };
        self.shared.shared.call_later(job, Box::new(done));
    }

    /// Size as this client sees it, without asking.
    ///
    /// # Errors
    /// [`Error`].
    pub fn size_hint(&self) -> Result<u64> {
        as_file!(self, file, async { Ok::<u64, Error>(file.size_hint()) })
    }

    /// Returns when everything written is durable and visible.
    ///
    /// # Errors
    /// [`Error`].
    pub fn fsync(&self) -> Result<()> {
        as_file!(self, file, file.fsync())
    }

    /// Attributes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn fstat(&self) -> Result<Attributes> {
        as_file!(self, file, file.fstat())
    }

    /// Truncates or extends.
    ///
    /// # Errors
    /// [`Error`].
    pub fn truncate(&self, size: u64) -> Result<()> {
        as_file!(self, file, file.truncate(size))
    }

    /// State in the buffer, with bytes by state.
    ///
    /// # Errors
    /// [`Error`].
    pub fn fragment_statistics(&self) -> Result<FileState> {
        as_file!(self, file, file.fragment_statistics())
    }

    /// Starts sync, prestage, purge or pin.
    ///
    /// # Errors
    /// [`Error`].
    pub fn start(&self, what: Residency, offset: u64, len: u64, force: u32) -> Result<Operation> {
        let id = self.id;
        let operation = self.shared.shared.call(move |inside| {
            Box::pin(async move {
                let operation = inside.file(id)?.start(what, offset, len, force).await?;
                Ok(inside.keep_operation(operation))
            })
        })?;
        Ok(Operation { shared: self.shared.clone(), id: operation })
    }

    /// Writes back and closes.
    ///
    /// # Errors
    /// [`Error`] of asynchronous writes.
    pub fn close(self) -> Result<()> {
        self.close_shared()
    }

    /// The same where others hold it still: their calls fail with `EBADF` from now on.
    ///
    /// # Errors
    /// [`Error`] of asynchronous writes.
    pub fn close_shared(&self) -> Result<()> {
        let id = self.id;
        self.shared.shared.call(move |inside| {
            Box::pin(async move {
                match inside.forget_file(id) {
                    Some(file) => file.close_in_place().await,
                    None => Ok(()),
                }
            })
        })
    }

    /// Starts to write back and close, and returns. `done` is called as with
    /// [`File::start_preadv`].
    pub fn start_close(&self, done: impl FnOnce(Result<usize>) + Send + 'static) {
        let id = self.id;
        let job = move |inside: std::rc::Rc<core::Inside>| -> call::LocalFuture<'static, _> {
            Box::pin(async move {
                match inside.forget_file(id) {
                    Some(file) => file.close_in_place().await.map(|()| 0),
                    None => Ok(0),
                }
            })
        };
        self.shared.shared.call_later(job, Box::new(done));
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let id = self.id;
        // Dropping the file closes it in the background.
        self.shared.shared.send(move |inside| drop(inside.forget_file(id)));
    }
}

impl Operation {
    /// How far it is.
    ///
    /// # Errors
    /// [`Error`].
    pub fn state(&self) -> Result<OperationState> {
        let id = self.id;
        self.shared
            .shared
            .call(move |inside| Box::pin(async move { inside.operation(id)?.state().await }))
    }

    /// Stops it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn cancel(&self) -> Result<OperationState> {
        let id = self.id;
        self.shared
            .shared
            .call(move |inside| Box::pin(async move { inside.operation(id)?.cancel().await }))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error`], also the operation's own.
    pub fn wait(&self, progress: impl FnMut(&OperationState) + Send) -> Result<OperationState> {
        let id = self.id;
        self.shared
            .shared
            .call(move |inside| Box::pin(async move { inside.operation(id)?.wait(progress).await }))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let id = self.id;
        self.shared.shared.send(move |inside| inside.forget_operation(id));
    }
}

/// What a call finds that meets the end of the executor.
fn stopped() -> Error {
    Error::errno_of(libc::ESHUTDOWN, "the client was stopped")
}
