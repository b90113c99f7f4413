//! An open file.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use bb_proto::meta::{
    self, Attributes, FileSize, FileStat, FileState, FileTruncate, NamespaceOp, OpOpen,
};
use bb_proto::{Kind, Rights};

use crate::ahead::ReadAhead;
use crate::client::{Client, Inner};
use crate::error::{Error, Result};
use crate::link::Ask;
use crate::namespace::clean;
use crate::node::{Node, Opened};

/// Buffers of one vectored read that are filled from one read, in bytes.
const GATHERED_BYTES_MAX: usize = 1 << 20;

/// An open file. Close it: what is dropped without is closed in the background, its errors lost.
pub struct File {
    pub(crate) client: Client,
    pub(crate) node: Rc<Node>,
    pub(crate) opened: Rc<Opened>,
    ahead: Rc<RefCell<ReadAhead>>,
    attributes: Attributes,
    closed: Cell<bool>,
}

impl Client {
    /// Opens a file: `flags` and `mode` are those of open(2).
    ///
    /// # Errors
    /// [`Error`], as open(2) would fail.
    pub async fn open(&self, path: &[u8], flags: i32, mode: u32) -> Result<File> {
        let path = clean(path)?;
        check_flags(flags)?;
        // What is written back while the server cuts the file would be refused for its epoch, sent
        // again, and come after the cut. Which file the path names is not known yet.
        let dirty_before =
            if flags & libc::O_TRUNC == 0 { Vec::new() } else { self.inner.dirty_files() };
        let op = OpOpen { path: path.clone(), flags, mode };
        let asked = self.inner.rt().now();
        let opening = Opening::new(&self.inner);
        let reply = self.names(NamespaceOp::Open(op)).await?;
        let attributes =
            reply.attributes.ok_or_else(|| Error::Protocol("open without attributes".into()))?;
        let is = |kind: u32| attributes.mode & libc::S_IFMT == kind;
        if flags & libc::O_DIRECTORY != 0 && !is(libc::S_IFDIR) {
            return Err(Error::errno_of(libc::ENOTDIR, "not a directory"));
        }
        if is(libc::S_IFDIR) {
            return Err(Error::errno_of(libc::EISDIR, "directories are listed, not opened"));
        }
        let handle = reply
            .file
            .ok_or_else(|| Error::errno_of(libc::EOPNOTSUPP, "only regular files can be opened"))?;
        let fid = bb_proto::Capability::from(&handle.capability).fid;
        let now = self.inner.rt().now();
        let make = || Node::new(&handle, &path, now);
        let was_forgotten = self.inner.forgotten.borrow().contains(&fid);
        // Of this answer and one that came meanwhile, either may be the older.
        let overtaken = self.inner.nodes.borrow().get(&fid).is_some_and(|node| {
            asked < node.size_heard.get() && handle.size != node.size_acknowledged.get()
        });
        let node = self.inner.nodes.borrow_mut().entry(fid).or_insert_with(make).clone();
        let was_dirty = node.is_dirty() || dirty_before.contains(&fid);
        let opened = node.opened(&handle, flags, &self.credentials, asked, now);
        // Close-to-open: what was known before this open may be out of date.
        node.maps.borrow_mut().forget();
        node.size_asked.set(asked);
        drop(opening);
        let file = File {
            client: self.clone(),
            node,
            opened,
            ahead: Rc::default(),
            attributes,
            closed: Cell::new(false),
        };
        if was_forgotten || overtaken {
            // Another open of it was closed meanwhile, maybe after the server answered this one: the
            // size it told then may not be in that answer. And one that was changed on the backing
            // file system may be shorter since than what another answer said.
            self.inner.ask_size(&file.node).await?;
        }
        if flags & libc::O_TRUNC != 0 && was_dirty {
            // The server cut what it had. What this client wrote before must go as well.
            file.cut(0).await?;
        }
        Ok(file)
    }
}

/// An open under way.
struct Opening<'a>(&'a Inner);

impl<'a> Opening<'a> {
    fn new(inner: &'a Inner) -> Self {
        inner.opening.set(inner.opening.get() + 1);
        Self(inner)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get() - 1);
        if self.0.opening.get() == 0 {
            self.0.forgotten.borrow_mut().clear();
        }
    }
}

fn check_flags(flags: i32) -> Result<()> {
    if flags & libc::O_PATH != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE {
        return Err(Error::errno_of(libc::EOPNOTSUPP, "O_PATH and O_TMPFILE are not offered"));
    }
    if flags & libc::O_ACCMODE == libc::O_ACCMODE {
        return Err(Error::errno_of(libc::EINVAL, "no such access mode"));
    }
    if flags & libc::O_DIRECTORY != 0 && flags & libc::O_CREAT != 0 {
        return Err(Error::errno_of(libc::EINVAL, "O_DIRECTORY does not go with O_CREAT"));
    }
    Ok(())
}

impl File {
    fn inner(&self) -> &Rc<Inner> {
        &self.client.inner
    }

    /// What reads before say about the next.
    pub(crate) fn ahead(&self) -> &Rc<RefCell<ReadAhead>> {
        &self.ahead
    }

    /// Flags it was opened with.
    pub fn flags(&self) -> i32 {
        self.opened.flags
    }

    /// The file's id.
    pub fn fid(&self) -> bb_proto::Fid {
        self.node.fid
    }

    fn may(&self, right: Rights) -> Result<()> {
        let mode = self.opened.flags & libc::O_ACCMODE;
        let refused = if right == Rights::READ { libc::O_WRONLY } else { libc::O_RDONLY };
        if mode == refused {
            return Err(Error::errno_of(libc::EBADF, "not opened for this"));
        }
        Ok(())
    }

    /// Reads into `out` from `offset`; how many bytes. Fewer than asked for only at the end.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn pread(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        self.may(Rights::READ)?;
        let wanted = checked(offset, out.len())?;
        if wanted.end > self.node.size() {
            self.inner().freshen_size(&self.node).await?;
        }
        let end = wanted.end.min(self.node.size());
        let len = usize::try_from(end.saturating_sub(offset)).unwrap_or(0);
        if len > 0 {
            self.inner().read(self, offset..end, &mut out[..len]).await?;
        }
        Ok(len)
    }

    /// Writes `data` at `offset` (with `O_APPEND`: at the end); all of it.
    ///
    /// # Errors
    /// [`Error`]. Errors of what is written back later come with fsync and close.
    pub async fn pwrite(&self, data: &[u8], offset: u64) -> Result<usize> {
        self.writev_at(&[data], offset).await
    }

    /// Reads into several buffers, one after the other.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn preadv(&self, outs: &mut [&mut [u8]], offset: u64) -> Result<usize> {
        let mut done = 0;
        let mut rest = outs;
        while !rest.is_empty() {
            // Small buffers share a read: a copy costs less than a request for each.
            let (mut count, mut wanted) = (1, rest[0].len());
            while count < rest.len() && wanted + rest[count].len() <= GATHERED_BYTES_MAX {
                wanted += rest[count].len();
                count += 1;
            }
            let (now, later) = rest.split_at_mut(count);
            let read = match now {
                [out] => self.pread(out, offset + done as u64).await?,
                several => {
                    let mut bytes = vec![0; wanted];
                    let read = self.pread(&mut bytes, offset + done as u64).await?;
                    scatter(&bytes[..read], several);
                    read
                }
            };
            done += read;
            if read < wanted {
                break;
            }
            rest = later;
        }
        Ok(done)
    }

    /// Writes several buffers, one after the other.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn pwritev(&self, datas: &[&[u8]], offset: u64) -> Result<usize> {
        self.writev_at(datas, offset).await
    }

    async fn writev_at(&self, datas: &[&[u8]], offset: u64) -> Result<usize> {
        self.may(Rights::WRITE)?;
        let len: usize = datas.iter().map(|d| d.len()).sum();
        checked(offset, len)?;
        if len == 0 {
            return Ok(0);
        }
        let mut at = offset;
        if self.opened.flags & libc::O_APPEND != 0 {
            let append = len as u64;
            let state = self.inner().tell_size(&self.node, 0, append, false).await?;
            at = state.append_at;
            checked(at, len)?;
        }
        for data in datas {
            self.inner().write(&self.node, at, data).await?;
            at += data.len() as u64;
        }
        if self.opened.flags & (libc::O_SYNC | libc::O_DSYNC) != 0 {
            self.fsync().await?;
        }
        Ok(len)
    }

    /// Returns when everything written to the file through this client is durable and visible.
    ///
    /// # Errors
    /// [`Error`], also for what was written long before.
    pub async fn fsync(&self) -> Result<()> {
        let inner = self.inner();
        inner.flush(&self.node).await?;
        // What others have made durable shows after this: bytes, and the size.
        self.node.maps.borrow_mut().forget();
        self.node.size_asked.set(bb_runtime::Instant::ZERO);
        let node = &self.node;
        let raise = node.reached.get();
        let may_write = node.write_capability.get().rights.allows(Rights::WRITE);
        if (raise > 0 || !node.named_durably.get()) && may_write {
            inner.tell_size(node, raise, 0, !node.named_durably.get()).await?;
            node.named_durably.set(true);
        }
        Ok(())
    }

    /// Attributes, with the size as this client sees it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn fstat(&self) -> Result<Attributes> {
        let state = self.inner().ask_size(&self.node).await?;
        let mut attributes = self.attributes;
        attributes.size = self.node.size();
        let mtime_ns = self.node.mtime_ns.get().max(state.mtime_ns);
        if mtime_ns != 0 {
            attributes.mtime_ns = mtime_ns;
        }
        Ok(attributes)
    }

    /// Size as this client sees it, without asking.
    pub fn size_hint(&self) -> u64 {
        self.node.size()
    }

    /// Truncates or extends to `size` bytes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn truncate(&self, size: u64) -> Result<()> {
        self.may(Rights::WRITE)?;
        checked(size, 0)?;
        self.cut(size).await
    }

    async fn cut(&self, size: u64) -> Result<()> {
        let inner = self.inner();
        // Ours, written before, must be ordered before the cut.
        inner.flush(&self.node).await?;
        loop {
            let number = inner.session.number();
            let capability = self.node.write_capability.get();
            let body = meta::encode(&FileTruncate {
                capability: (&capability).into(),
                size,
                session: number.id.0,
                sequence: number.sequence,
            });
            let ask = Ask::new(Kind::FileTruncate, body);
            let asked = inner.rt().now();
            match inner.link.ask(inner.record_partition(self.node.fid), &ask).await {
                Ok(answer) => {
                    // Perhaps not the newest: another cut, asked for later, may have been answered
                    // before.
                    let state: FileState = meta::decode(&answer.body)?;
                    self.node.saw_state(&state, asked, inner.rt().now());
                    self.node.maps.borrow_mut().forget();
                    return Ok(());
                }
                Err(error) if inner.renewed(&error, &self.node, capability.session).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes back, tells size and time, and closes.
    ///
    /// # Errors
    /// [`Error`] of asynchronous writes. The file is closed all the same.
    pub async fn close(self) -> Result<()> {
        self.close_in_place().await
    }

    /// The same where others still hold it. Once only.
    pub(crate) async fn close_in_place(&self) -> Result<()> {
        if self.closed.replace(true) {
            return Ok(());
        }
        close(self.client.inner.clone(), self.node.clone(), self.opened.clone()).await
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if !self.closed.get() {
            let (inner, node, opened) =
                (self.client.inner.clone(), self.node.clone(), self.opened.clone());
            self.inner().rt().spawn(async move {
                if let Err(error) = close(inner, node, opened).await {
                    tracing::warn!(%error, "a file that was dropped could not be written back");
                }
            });
        }
    }
}

async fn close(inner: Rc<Inner>, node: Rc<Node>, opened: Rc<Opened>) -> Result<()> {
    opened.closing.set(true);
    let writer = opened.flags & libc::O_ACCMODE != libc::O_RDONLY;
    let flushed = if writer { inner.flush_last(&node, &opened).await } else { Ok(false) };
    if matches!(flushed, Ok(true)) {
        node.opens.borrow_mut().retain(|other| !Rc::ptr_eq(other, &opened));
        inner.forget_unused(&node);
        return Ok(());
    }
    let raise = if flushed.is_ok() && writer { node.reached.get() } else { 0 };
    let mtime_ns = if writer { node.mtime_ns.take() } else { 0 };
    let epoch = node.epoch.get();
    let mut asked;
    let told = loop {
        let capability = opened.capability.get();
        let body = meta::encode(&FileSize {
            capability: (&capability).into(),
            epoch: epoch.0,
            size: raise,
            append: 0,
            durable_name: false,
            open_id: opened.open_id.get(),
            mtime_ns,
        });
        let ask = Ask::new(Kind::FileClose, body);
        asked = inner.rt().now();
        match inner.link.ask(inner.record_partition(node.fid), &ask).await {
            Err(error) if inner.renewed(&error, &node, capability.session).await => {}
            told => break told,
        }
    };
    node.opens.borrow_mut().retain(|other| !Rc::ptr_eq(other, &opened));
    inner.forget_unused(&node);
    flushed?;
    match told {
        Ok(answer) => {
            let state: FileState = meta::decode(&answer.body)?;
            if state.known {
                // Not what was asked for: somebody may have cut the file since.
                node.saw_state(&state, asked, inner.rt().now());
            }
            Ok(())
        }
        // Nothing is open there any more: as good as closed.
        Err(error) if error.is(bb_proto::Code::NoSession) && raise == 0 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Fills buffers one after the other.
fn scatter(mut bytes: &[u8], outs: &mut [&mut [u8]]) {
    for out in outs {
        let (now, later) = bytes.split_at(out.len().min(bytes.len()));
        out[..now.len()].copy_from_slice(now);
        bytes = later;
    }
}

/// The range of a transfer, within what files can be.
fn checked(offset: u64, len: usize) -> Result<Range<u64>> {
    match offset.checked_add(len as u64) {
        Some(end) if i64::try_from(end).is_ok() => Ok(offset..end),
        _ => Err(Error::errno_of(libc::EFBIG, "beyond the largest offset")),
    }
}

impl Inner {
    /// Files with bytes that the cluster has not acknowledged.
    fn dirty_files(&self) -> Vec<bb_proto::Fid> {
        let nodes = self.nodes.borrow();
        nodes.values().filter(|node| node.is_dirty()).map(|node| node.fid).collect()
    }

    /// Forgets a file that nobody has open. One with commits without an outcome stays known, since
    /// later ones must wait for them; but its errors were reported.
    pub fn forget_unused(&self, node: &Rc<Node>) {
        if !node.opens.borrow().is_empty() {
            return;
        }
        *node.error.borrow_mut() = None;
        let mut nodes = self.nodes.borrow_mut();
        let is_this = nodes.get(&node.fid).is_some_and(|other| Rc::ptr_eq(other, node));
        if is_this && node.groups.borrow().is_empty() {
            nodes.remove(&node.fid);
            if self.opening.get() > 0 {
                self.forgotten.borrow_mut().insert(node.fid);
            }
        }
    }

    /// Asks for size and epoch.
    pub async fn ask_size(self: &Rc<Self>, node: &Rc<Node>) -> Result<FileState> {
        let body = FileStat { fid: node.fid.into(), counts: false, truncates_after: None };
        let ask = Ask::new(Kind::FileStat, meta::encode(&body));
        let asked = self.rt().now();
        let answer = self.link.ask(self.record_partition(node.fid), &ask).await?;
        let state: FileState = meta::decode(&answer.body)?;
        node.size_asked.set(asked);
        if state.known {
            node.saw_state(&state, asked, self.rt().now());
        }
        Ok(state)
    }

    /// The same, where the last answer is older than maps may be.
    pub async fn freshen_size(self: &Rc<Self>, node: &Rc<Node>) -> Result<()> {
        if self.rt().now().since(node.size_asked.get()) >= self.options.map_age_max {
            self.ask_size(node).await?;
        }
        Ok(())
    }

    /// Raises the size, reserves room at the end, makes the name durable.
    pub async fn tell_size(
        self: &Rc<Self>,
        node: &Rc<Node>,
        size: u64,
        append: u64,
        durable_name: bool,
    ) -> Result<FileState> {
        loop {
            let capability = node.write_capability.get();
            let body = meta::encode(&FileSize {
                capability: (&capability).into(),
                epoch: node.epoch.get().0,
                size,
                append,
                durable_name,
                // Shows a server that has restarted what is open here.
                open_id: node.opens.borrow().first().map_or(0, |open| open.open_id.get()),
                mtime_ns: node.mtime_ns.get(),
            });
            let ask = Ask::new(Kind::FileSize, body);
            let asked = self.rt().now();
            match self.link.ask(self.record_partition(node.fid), &ask).await {
                Ok(answer) => {
                    let state: FileState = meta::decode(&answer.body)?;
                    node.saw_state(&state, asked, self.rt().now());
                    return Ok(state);
                }
                Err(error) if self.renewed(&error, node, capability.session).await => {}
                Err(error) => return Err(error),
            }
        }
    }
}
