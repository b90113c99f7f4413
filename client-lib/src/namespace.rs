//! Operations on names: numbered, so that a repeated one is carried out once.

use std::rc::Rc;

use bb_proto::meta::{
    self, Attributes, DirEntry, Namespace, NamespaceOp, NamespaceReply, OpChown, OpMode, OpOpen,
    OpPath, OpReaddir, OpTimes, OpTruncate, OpTwo, Space,
};
use bb_proto::{Capability, Kind};

use crate::client::{Client, Inner};
use crate::error::{Error, Result};
use crate::link::Ask;
use crate::node::Node;

/// What open(2) takes of a path, and what a frame's body certainly holds.
const PATH_BYTES_MAX: usize = 4095;

/// A checked path: absolute, no component "..", no NUL, as the protocol wants it.
pub(crate) fn clean(path: &[u8]) -> Result<Vec<u8>> {
    if path.is_empty() {
        return Err(Error::errno_of(libc::ENOENT, "empty path"));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(Error::errno_of(libc::ENAMETOOLONG, "path longer than 4095 bytes"));
    }
    if path.contains(&0) || path[0] != b'/' {
        return Err(Error::errno_of(libc::EINVAL, "paths are absolute and hold no NUL"));
    }
    if path.split(|b| *b == b'/').any(|part| part == b"..") {
        return Err(Error::errno_of(libc::EINVAL, "resolve \"..\" before"));
    }
    Ok(path.to_vec())
}

fn name(path: &[u8]) -> Result<OpPath> {
    Ok(OpPath { path: clean(path)?, no_follow: false })
}

fn missing(what: &str) -> Error {
    Error::Protocol(format!("answer without {what}"))
}

impl Client {
    pub(crate) async fn names(&self, op: NamespaceOp) -> Result<NamespaceReply> {
        self.inner.names(&self.credentials, op).await
    }

    /// Attributes; the size includes what this client has not written back yet.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn stat(&self, path: &[u8]) -> Result<Attributes> {
        Ok(self.stat_op(name(path)?).await?.0)
    }

    /// The same of a symbolic link itself.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn lstat(&self, path: &[u8]) -> Result<Attributes> {
        Ok(self.stat_op(OpPath { path: clean(path)?, no_follow: true }).await?.0)
    }

    /// Attributes, and what this client has of the file. By its id: the number of an inode is given
    /// again when a file is gone, and this client may have more of it.
    async fn stat_op(&self, op: OpPath) -> Result<(Attributes, Option<Rc<Node>>)> {
        let (asked, fid, mut attributes) = loop {
            let asked = self.inner.rt().now();
            let asking = self.inner.forgotten.asking(asked);
            let reply = self.names(NamespaceOp::Stat(op.clone())).await?;
            let attributes = reply.attributes.ok_or_else(|| missing("attributes"))?;
            let fid = reply.file.map(|handle| Capability::from(&handle.capability).fid);
            if !fid.is_some_and(|fid| asking.was_forgotten(fid)) {
                break (asked, fid, attributes);
            }
        };
        let node = fid.and_then(|fid| self.inner.nodes.borrow().get(&fid).cloned());
        if let Some(node) = &node {
            // What was written within an earlier, larger size counts as well: somebody else may
            // have cut the file since.
            attributes.size = attributes.size.max(node.reached.get()).max(node.dirty_end());
            // And what the cluster has taken over from it while the answer was on its way.
            if node.size_heard.get() >= asked {
                attributes.size = attributes.size.max(node.size());
            }
            attributes.mtime_ns = attributes.mtime_ns.max(node.mtime_ns.get());
        }
        Ok((attributes, node))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn mkdir(&self, path: &[u8], mode: u32) -> Result<()> {
        let op = OpMode { path: clean(path)?, mode };
        self.names(NamespaceOp::Mkdir(op)).await.map(drop)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn rmdir(&self, path: &[u8]) -> Result<()> {
        self.names(NamespaceOp::Rmdir(name(path)?)).await.map(drop)
    }

    /// Removes a name.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn unlink(&self, path: &[u8]) -> Result<()> {
        self.names(NamespaceOp::Unlink(name(path)?)).await.map(drop)
    }

    /// Renames, over what is there. `flags` are those of renameat2(2).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn rename(&self, from: &[u8], to: &[u8], flags: u32) -> Result<()> {
        let (from, to) = (clean(from)?, clean(to)?);
        let op = OpTwo { from: from.clone(), to: to.clone(), flags };
        self.names(NamespaceOp::Rename(op)).await?;
        for node in self.inner.nodes.borrow().values() {
            let mut path = node.path.borrow_mut();
            if let Some(rest) = path.strip_prefix(&from[..])
                && (rest.is_empty() || rest[0] == b'/')
            {
                *path = [&to[..], rest].concat();
            }
        }
        Ok(())
    }

    /// All entries of a directory, in byte order of their names.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn readdir(&self, path: &[u8]) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        let mut after = Vec::new();
        loop {
            let (page, last) = self.readdir_page(path, &after).await?;
            let Some(end) = page.last().map(|e| e.name.clone()) else { return Ok(entries) };
            entries.extend(page);
            if last || end <= after {
                return Ok(entries);
            }
            after = end;
        }
    }

    /// Entries of a directory behind `after` (empty: from the start), and whether they are the last.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn readdir_page(&self, path: &[u8], after: &[u8]) -> Result<(Vec<DirEntry>, bool)> {
        let op = OpReaddir { path: clean(path)?, after: after.to_vec() };
        let reply = self.names(NamespaceOp::Readdir(op)).await?;
        Ok((reply.entries, reply.last))
    }

    /// Changes permissions.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn chmod(&self, path: &[u8], mode: u32) -> Result<()> {
        let op = OpMode { path: clean(path)?, mode };
        self.names(NamespaceOp::Chmod(op)).await.map(drop)
    }

    /// Changes owner and group, each where given.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn chown(&self, path: &[u8], uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let op = OpChown { path: clean(path)?, uid, gid };
        self.names(NamespaceOp::Chown(op)).await.map(drop)
    }

    /// Sets access and modification time, each where given, in nanoseconds since 1970.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn utimens(&self, path: &[u8], atime: Option<i64>, mtime: Option<i64>) -> Result<()> {
        let path = clean(path)?;
        // What was written before must not bring a later time than the one set now.
        self.flush_path(&path).await?;
        let op = OpTimes { path, atime_ns: atime, mtime_ns: mtime };
        self.names(NamespaceOp::Utimens(op)).await.map(drop)
    }

    /// Checks permissions: `mode` is of `R_OK`, `W_OK`, `X_OK`, or 0 for existence.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn access(&self, path: &[u8], mode: u32) -> Result<()> {
        let op = OpMode { path: clean(path)?, mode };
        self.names(NamespaceOp::Access(op)).await.map(drop)
    }

    /// Space of the file system.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn statvfs(&self, path: &[u8]) -> Result<Space> {
        let reply = self.names(NamespaceOp::Statvfs(name(path)?)).await?;
        reply.space.ok_or_else(|| missing("space"))
    }

    /// Truncates by path.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn truncate(&self, path: &[u8], size: u64) -> Result<()> {
        let path = clean(path)?;
        // Which file a path names is for the server to say: any dirty one may be it.
        self.inner.flush_all().await?;
        self.names(NamespaceOp::Truncate(OpTruncate { path: path.clone(), size })).await?;
        if let (_, Some(node)) = self.stat_op(OpPath { path, no_follow: false }).await? {
            // Its epoch tells whether this client has heard of the cut.
            node.maps.borrow_mut().forget();
            self.inner.ask_size(&node).await?;
        }
        Ok(())
    }

    async fn flush_path(&self, path: &[u8]) -> Result<()> {
        let same = |n: &&Rc<Node>| *n.path.borrow() == path;
        let node = self.inner.nodes.borrow().values().find(same).cloned();
        if let Some(node) = node {
            self.inner.flush(&node).await?;
            // Its time was told, as far as anybody is concerned.
            node.mtime_ns.set(0);
        }
        Ok(())
    }
}

impl Inner {
    pub async fn names(
        self: &Rc<Self>,
        credentials: &meta::Credentials,
        op: NamespaceOp,
    ) -> Result<NamespaceReply> {
        loop {
            let session = self.session.id();
            match self.names_once(credentials, op.clone()).await {
                Err(error) if self.recovered(&error, session).await => {}
                result => return result,
            }
        }
    }

    /// In the current session only.
    async fn names_once(
        self: &Rc<Self>,
        credentials: &meta::Credentials,
        op: NamespaceOp,
    ) -> Result<NamespaceReply> {
        let number = self.session.number();
        let body = meta::encode(&Namespace {
            session: number.id.0,
            sequence: number.sequence,
            acknowledged: self.session.acknowledged(),
            credentials: credentials.clone(),
            owner: None,
            op: Some(op),
        });
        let ask = Ask::new(Kind::Namespace, body);
        let answer = self.link.ask(self.session.partition(), &ask).await?;
        Ok(meta::decode(&answer.body)?)
    }

    /// Opens the file's handles again in the new session.
    pub async fn reopen(self: &Rc<Self>, node: &Rc<Node>) -> Result<()> {
        let opens = node.opens.borrow().clone();
        for opened in opens {
            let flags = opened.flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
            let path = node.path.borrow().clone();
            let op = NamespaceOp::Open(OpOpen { path, flags, mode: 0 });
            let asked = self.rt().now();
            let reply = self.names_once(&opened.credentials, op).await?;
            match reply.file {
                Some(handle) if Capability::from(&handle.capability).fid == node.fid => {
                    let capability = Capability::from(&handle.capability);
                    opened.capability.set(capability);
                    opened.open_id.set(handle.open_id);
                    node.adopt(&capability, &handle, asked, self.rt().now());
                }
                _ => return Err(Error::errno_of(libc::ESTALE, "another file has the name now")),
            }
        }
        node.maps.borrow_mut().forget();
        Ok(())
    }
}
