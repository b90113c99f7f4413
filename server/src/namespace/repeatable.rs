//! Operations that may be done twice, and those that only read.

use bb_proto::meta::{
    Attributes, Done, FileHandle, FileOpen, FileSize, FileStat, FileState, FileTruncate, Guard,
    Namespace as Request, NamespaceOp, NamespaceReply, OpOpen, OpPath, OpTimes, OpTruncate,
};
use bb_proto::{Capability, Code, Failure, Fid, Kind, Rights, SessionId};

use super::write_through::WriteThrough;
use crate::bfs::{BfsError, Found, Times, confirmed};
use crate::files::fid_of;
use crate::files::peers::refusal;

/// Entries of a page: with the longest names about a quarter of the longest body.
const PAGE_ENTRIES: usize = 1000;

impl WriteThrough {
    /// Rule 11: "no such file", or "file exists", counts only if this is the backing file system.
    pub(super) async fn sure<T>(&self, result: Result<T, BfsError>) -> Result<T, Failure> {
        confirmed(&*self.parts.bfs, result).await.map_err(|error| refusal(&error))
    }

    /// And what is found counts only if it is on the backing file system, not beneath it.
    pub(super) async fn ours(&self, result: Result<Found, BfsError>) -> Result<Found, Failure> {
        let found = self.sure(result).await?;
        if found.binding.bfs == self.parts.bfs.uuid() {
            Ok(found)
        } else {
            Err(Failure::new(Code::BfsUnavailable, "another file system is mounted there"))
        }
    }

    pub(super) async fn read(&self, request: &Request) -> Result<NamespaceReply, Failure> {
        let (bfs, caller) = (&self.parts.bfs, &request.credentials);
        let mut reply = NamespaceReply::default();
        match &request.op {
            Some(NamespaceOp::Stat(op)) => reply = self.stat(request, op).await?,
            Some(NamespaceOp::Readdir(op)) => {
                let page = bfs.readdir(caller, &op.path, &op.after, PAGE_ENTRIES).await;
                let page = self.sure(page).await?;
                // A listing has no binding: it may be that of the directory beneath.
                bfs.check().await.map_err(|error| refusal(&error))?;
                (reply.entries, reply.last) = (page.entries, page.last);
            }
            Some(NamespaceOp::Access(op)) => {
                let result = bfs.access(caller, &op.path, op.mode).await;
                self.sure(result).await?;
            }
            Some(NamespaceOp::Statvfs(_)) => {
                reply.space = Some(bfs.statvfs().await.map_err(|error| refusal(&error))?);
            }
            _ => return Err(unknown()),
        }
        Ok(reply)
    }

    pub(super) async fn repeatable(&self, request: &Request) -> Result<NamespaceReply, Failure> {
        let (bfs, caller) = (&self.parts.bfs, &request.credentials);
        let done = match &request.op {
            Some(NamespaceOp::Open(op)) => return self.open(request, op).await,
            Some(NamespaceOp::Truncate(op)) => return self.truncate(request, op).await,
            Some(NamespaceOp::Utimens(op)) => return self.utimens(request, op).await,
            Some(NamespaceOp::Chmod(op)) => bfs.chmod(caller, &op.path, op.mode).await,
            Some(NamespaceOp::Chown(op)) => bfs.chown(caller, &op.path, op.uid, op.gid).await,
            _ => return Err(unknown()),
        };
        self.sure(done).await?;
        Ok(NamespaceReply::default())
    }

    /// Attributes of the backing file system under the size and time that applications made.
    async fn stat(&self, request: &Request, op: &OpPath) -> Result<NamespaceReply, Failure> {
        let found = self.parts.bfs.lookup(&request.credentials, &op.path, op.no_follow).await;
        let found = self.ours(found).await?;
        let mut attributes = found.attributes;
        let mut file = None;
        if is_regular(&attributes) {
            let fid = fid_of(&found.binding);
            let state = self.file_state(fid).await?;
            file = Some(name_of(fid, &state));
            if state.known {
                attributes.size = state.size;
            }
            if state.mtime_ns != 0 {
                attributes.mtime_ns = state.mtime_ns;
            }
        }
        Ok(NamespaceReply { attributes: Some(attributes), file, ..Default::default() })
    }

    pub(super) async fn file_state(&self, fid: Fid) -> Result<FileState, Failure> {
        let ask = FileStat { fid: fid.into(), counts: false, truncates_after: None };
        self.parts.ask_file(Kind::FileStat, fid, &ask).await
    }

    async fn open(&self, request: &Request, op: &OpOpen) -> Result<NamespaceReply, Failure> {
        let opened = self.parts.bfs.open(&request.credentials, &op.path, op.flags, op.mode).await;
        let found = self.ours(opened).await?;
        self.opened(request, op, found).await
    }

    /// The file is open on the backing file system: opens it at its record, and cuts it if asked.
    pub(super) async fn opened(
        &self,
        request: &Request,
        op: &OpOpen,
        found: Found,
    ) -> Result<NamespaceReply, Failure> {
        let mut attributes = found.attributes;
        if !is_regular(&attributes) {
            return Ok(NamespaceReply { attributes: Some(attributes), ..Default::default() });
        }
        let mut file = self.open_record(request, &found, rights_of(op.flags)).await?;
        if op.flags & libc::O_TRUNC != 0 && !found.created {
            let state = self.cut(request, fid_of(&found.binding), 0).await?;
            (file.size, file.epoch) = (state.size, state.epoch);
        }
        attributes.size = file.size;
        let (attributes, file) = (Some(attributes), Some(file));
        Ok(NamespaceReply { attributes, file, ..Default::default() })
    }

    async fn open_record(
        &self,
        request: &Request,
        found: &Found,
        rights: Rights,
    ) -> Result<FileHandle, Failure> {
        let fid = fid_of(&found.binding);
        let Attributes { size, mtime_ns, .. } = found.attributes;
        let ask = FileOpen {
            fid: fid.into(),
            binding: found.binding.clone(),
            session: request.session,
            rights: rights.0,
            guard: Guard { size, mtime_ns },
            truncate: false,
            owner: request.owner,
        };
        self.parts.ask_file(Kind::FileOpen, fid, &ask).await
    }

    /// Truncates under the number of the request: a copy that comes late is known by it.
    async fn cut(&self, request: &Request, fid: Fid, size: u64) -> Result<FileState, Failure> {
        let ask = FileTruncate {
            capability: (&Capability::server(fid)).into(),
            size,
            session: request.session,
            sequence: request.sequence,
        };
        self.parts.ask_file(Kind::FileTruncate, fid, &ask).await
    }

    async fn truncate(
        &self,
        request: &Request,
        op: &OpTruncate,
    ) -> Result<NamespaceReply, Failure> {
        // Permission first: opens for writing as the caller.
        let opened = self.parts.bfs.open(&request.credentials, &op.path, libc::O_WRONLY, 0).await;
        let found = self.ours(opened).await?;
        if !is_regular(&found.attributes) {
            return Err(Failure::errno(libc::EINVAL, "not a regular file"));
        }
        let fid = fid_of(&found.binding);
        let handle = self.open_record(request, &found, Rights::WRITE).await?;
        let result = self.cut(request, fid, op.size).await;
        let close = FileSize {
            capability: (&Capability::server(fid)).into(),
            epoch: 0,
            size: 0,
            append: 0,
            durable_name: false,
            open_id: handle.open_id,
            mtime_ns: 0,
        };
        let closed: Result<FileState, Failure> =
            self.parts.ask_file(Kind::FileClose, fid, &close).await;
        result?;
        closed?;
        Ok(NamespaceReply::default())
    }

    async fn utimens(&self, request: &Request, op: &OpTimes) -> Result<NamespaceReply, Failure> {
        let (bfs, caller) = (&self.parts.bfs, &request.credentials);
        let times = Times { atime_ns: op.atime_ns, mtime_ns: op.mtime_ns };
        self.sure(bfs.utimens(caller, &op.path, times).await).await?;
        let Some(mtime_ns) = op.mtime_ns else { return Ok(NamespaceReply::default()) };
        let found = self.ours(bfs.lookup(caller, &op.path, false).await).await?;
        if is_regular(&found.attributes) {
            let fid = fid_of(&found.binding);
            let tell = FileSize {
                capability: (&Capability::server(fid)).into(),
                epoch: 0,
                size: 0,
                append: 0,
                durable_name: false,
                open_id: 0,
                mtime_ns,
            };
            match self.parts.ask_file::<_, FileState>(Kind::FileSize, fid, &tell).await {
                // Nothing of the file is here: the backing file system's time holds.
                Err(failure) if failure.kind() == Code::StaleFile => {}
                result => drop(result?),
            }
        }
        Ok(NamespaceReply::default())
    }

    pub(super) async fn tell_drop(
        &self,
        fid: Fid,
        binding: &bb_proto::meta::Binding,
    ) -> Result<(), Failure> {
        let drop = bb_proto::meta::FileDrop { fid: fid.into(), binding: binding.clone() };
        self.parts.ask_file::<_, Done>(Kind::FileDrop, fid, &drop).await.map(|_| ())
    }
}

pub(super) const fn is_regular(attributes: &Attributes) -> bool {
    attributes.mode & libc::S_IFMT == libc::S_IFREG
}

/// Says which file something is about, and permits nothing.
fn name_of(fid: Fid, state: &FileState) -> FileHandle {
    let (session, rights) = (SessionId(0), Rights(0));
    FileHandle {
        capability: (&Capability { session, fid, rights, signature: [0; 16] }).into(),
        region_log2: state.region_log2,
        epoch: state.epoch,
        size: state.size,
        open_id: 0,
        runs: Vec::new(),
    }
}

const fn rights_of(flags: i32) -> Rights {
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => Rights::READ,
        libc::O_WRONLY => Rights::WRITE,
        _ => Rights(Rights::READ.0 | Rights::WRITE.0),
    }
}

fn unknown() -> Failure {
    Failure::new(Code::Unsupported, "an operation that this server does not know")
}
