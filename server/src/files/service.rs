//! Answers what is asked about files, at the partition of (file, region 0).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::{
    Binding, ByteCounts, Done, FileDrop, FileHandle, FileOpen, FileRegions, FileSize, FileStat,
    FileState, FileTruncate, Guard, RegionName, SessionRenew, decode, encode,
};
use bb_proto::{
    Capability, Code, Commit, Failure, Fid, Kind, PartitionId, RegionIndex, Rights, ServiceClass,
    SessionId, TruncateEpoch,
};
use bb_transport::{Incoming, Peer, Response};

use super::opens::{FileLocks, Open, Opens};
use super::peers::{Parts, fid_of, refusal};
use super::record::{FileRecord, HandleKey, RUN_REGIONS};
use super::{FileChange, FileMutation, FileOutcome, FileRefusal, has_run};
use crate::bfs::confirmed;
use crate::partition::table::FileRecords;
use crate::partition::{Mutation, Partition, PartitionHost};
use crate::rights::{check_capability, check_server, signed};

/// The files of this node's partitions.
pub struct FileService {
    pub(super) parts: Parts,
    pub(super) opens: Opens,
    pub(super) locks: FileLocks,
    /// Files for which a task is at work in the background, with the tenure of their partition.
    pub(super) at_work: RefCell<BTreeSet<(Fid, u64)>>,
    grace: Duration,
}

impl FileService {
    /// Starts with no opens known; `grace` is how long clients may take to show theirs.
    pub fn new(parts: Parts, grace: Duration) -> Rc<Self> {
        let opens = Opens::new(parts.rt.now() + grace);
        let (locks, at_work) = (FileLocks::default(), RefCell::default());
        Rc::new(Self { parts, opens, locks, at_work, grace })
    }

    /// A partition is served from now on whose opens are not known. What this process may remember of
    /// them is from an earlier tenure: they may have ended elsewhere.
    pub fn begin_grace(&self, partition: PartitionId) {
        self.opens.forget(|fid| self.parts.partition_of(fid, RegionIndex(0)) == partition);
        self.opens.begin_grace(self.parts.rt.now() + self.grace);
    }

    /// Waits for a file's turn: no truncate of it, and no look at its guard, is under way then.
    pub async fn lock(&self, fid: Fid) -> super::opens::FileLock {
        self.locks.lock(fid).await
    }

    /// Answers a request that was addressed to `partition`.
    ///
    /// # Errors
    /// What the request's handler says.
    pub async fn handle(
        self: Rc<Self>,
        partition: Rc<Partition>,
        request: Incoming,
    ) -> Result<Response, Failure> {
        let body = request.body.as_slice();
        let peer = &request.peer;
        let answer = match request.header.kind {
            Kind::FileOpen => {
                check_server(peer)?;
                encode(&self.open(&partition, decode(body)?).await?)
            }
            Kind::FileClose => encode(&self.size(&partition, peer, decode(body)?, true).await?),
            Kind::FileSize => encode(&self.size(&partition, peer, decode(body)?, false).await?),
            Kind::FileStat => encode(&self.stat(&partition, &decode(body)?).await?),
            Kind::FileRegions => encode(&self.regions(&partition, peer, decode(body)?).await?),
            Kind::FileTruncate => {
                let ask: FileTruncate = decode(body)?;
                encode(&self.truncate(&partition, peer, &ask).await?)
            }
            Kind::FileDrop => {
                check_server(peer)?;
                let ask: FileDrop = decode(body)?;
                self.last_name_gone(&partition, &ask).await?;
                encode(&Done {})
            }
            Kind::SessionClose => {
                check_server(peer)?;
                let ask: SessionRenew = decode(body)?;
                let served = BTreeMap::from([(partition.id(), partition.clone())]);
                self.end_session(&served, SessionId(ask.session)).await;
                encode(&Done {})
            }
            kind => {
                return Err(Failure::new(Code::Unsupported, format!("{kind:?} is not for files")));
            }
        };
        Ok(Response::body(answer))
    }

    /// A commit, and the end of the open that it says it is the last of: it has brought the last bytes,
    /// size and time.
    ///
    /// # Errors
    /// What the commit's handler says.
    pub async fn commit(
        self: &Rc<Self>,
        host: &Rc<PartitionHost>,
        request: Incoming,
    ) -> Result<Response, Failure> {
        let Some((fid, open_id)) = Commit::closing(&request.body) else {
            return host.clone().handle(request).await;
        };
        let partition = host.addressed(&request.header)?;
        let response = host.clone().handle(request).await?;
        self.opens.remove(fid, open_id);
        if let Some(record) = self.record(&partition, fid) {
            self.closed(&partition, fid, &record);
        }
        Ok(response)
    }

    /// Logs a change of a file's record and applies it.
    pub(super) async fn change(
        &self,
        partition: &Rc<Partition>,
        fid: Fid,
        change: FileChange,
    ) -> Result<FileOutcome, Failure> {
        let mutation = Mutation::File(FileMutation { fid, change });
        match partition.submit(ServiceClass::Client, mutation).await?.file()? {
            FileOutcome::Refused(refused) => Err(why(refused)),
            outcome => Ok(outcome),
        }
    }

    /// A copy of a file's record.
    pub(super) fn record(&self, partition: &Partition, fid: Fid) -> Option<FileRecord> {
        partition.state().files.get(fid).cloned()
    }

    /// The binding in a record.
    pub(super) fn binding(&self, key: &HandleKey) -> Binding {
        Binding {
            bfs: self.parts.bfs.uuid().to_vec(),
            handle_type: key.handle_type,
            handle: key.handle.to_vec(),
            birth_ns: key.birth_ns,
        }
    }

    async fn open(&self, partition: &Rc<Partition>, ask: FileOpen) -> Result<FileHandle, Failure> {
        let fid = Fid::from(ask.fid);
        if ask.truncate {
            // It would have no number, and a copy of it that comes late would cut new data.
            return Err(Failure::new(Code::Unsupported, "truncate in a request of its own"));
        }
        if ask.binding.bfs != self.parts.bfs.uuid() || fid_of(&ask.binding) != fid {
            return Err(Failure::new(Code::StaleFile, "another backing file system's file"));
        }
        let _lock = self.locks.lock(fid).await;
        let key = HandleKey {
            handle_type: ask.binding.handle_type,
            handle: ask.binding.handle.as_slice().into(),
            birth_ns: ask.binding.birth_ns,
        };
        let known = self.record(partition, fid);
        if known.is_none_or(|record| record.key != key || record.rare().dropping) {
            let region_log2 = self.parts.shared.map().region_log2;
            let meet = FileChange::Meet {
                key,
                region_log2: u8::try_from(region_log2).unwrap_or(u8::MAX),
                tick: self.parts.shared.tick(),
                guard: ask.guard,
            };
            self.change(partition, fid, meet).await?;
        }
        self.compare_guard(partition, fid, ask.guard).await?;
        let record = self.record(partition, fid).ok_or_else(stale)?;
        let session = SessionId(ask.session);
        let rights = Rights(ask.rights);
        let open_id = loop {
            let id = self.parts.rt.random_u64();
            if id != 0 && !self.opens.is_used(fid, id) {
                break id;
            }
        };
        // The request may have waited long for the file's turn: longer than its session lived.
        if !self.opens.add(fid, open_id, Open { session, rights }) {
            return Err(session_ended());
        }
        let capability = Capability { session, fid, rights, signature: [0; 16] };
        let capability = signed(&self.parts.shared, capability, ask.owner);
        Ok(FileHandle {
            capability: (&capability).into(),
            region_log2: u32::from(record.region_log2),
            epoch: record.epoch.0,
            size: record.size,
            open_id,
            runs: record.whole_runs(),
        })
    }

    /// Size, append, durable name, and the end of an open.
    async fn size(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        peer: &Peer,
        ask: FileSize,
        close: bool,
    ) -> Result<FileState, Failure> {
        let capability = Capability::from(&ask.capability);
        let fid = capability.fid;
        let changes = ask.size > 0 || ask.append > 0 || ask.mtime_ns != 0;
        let wanted = if changes { Rights::WRITE } else { Rights(0) };
        check_capability(&self.parts.shared, &capability, wanted, peer)?;
        let Some(record) = self.record(partition, fid) else {
            self.opens.remove(fid, ask.open_id);
            return if close { Ok(FileState::default()) } else { Err(stale()) };
        };
        if ask.open_id != 0 && !close {
            let open = Open { session: capability.session, rights: capability.rights };
            if !self.opens.add(fid, ask.open_id, open) {
                return Err(session_ended());
            }
        }
        if ask.durable_name {
            let named = self.parts.bfs.fsync_name(&self.binding(&record.key)).await;
            let named = confirmed(&*self.parts.bfs, named).await;
            named.map_err(|error| refusal(&error))?;
        }
        if ask.size > record.size || (ask.mtime_ns != 0 && ask.mtime_ns != record.mtime_ns) {
            let (epoch, size) = (TruncateEpoch(ask.epoch), ask.size);
            let raise = FileChange::Raise { epoch, size, mtime_ns: ask.mtime_ns };
            self.change(partition, fid, raise).await?;
        }
        let mut append_at = 0;
        if ask.append > 0 {
            let append = FileChange::Append { len: ask.append };
            if let FileOutcome::Reserved { at } = self.change(partition, fid, append).await? {
                append_at = at;
            }
        }
        if capability.rights.allows(Rights::SERVER) && ask.mtime_ns != 0 {
            // The namespace has set the times on the backing file system: not somebody else's.
            self.read_guard_again(partition, fid).await?;
        }
        let record = self.record(partition, fid).ok_or_else(stale)?;
        if close {
            self.opens.remove(fid, ask.open_id);
            self.closed(partition, fid, &record);
        }
        Ok(FileState { append_at, ..self.state(fid, &record) })
    }

    /// After an open has ended: a file without name goes, a record that says nothing too.
    pub(super) fn closed(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        fid: Fid,
        record: &FileRecord,
    ) {
        if record.rare().hidden && !self.opens.is_known(fid) {
            // Waits for the end of a grace that another partition has begun meanwhile.
            self.finish_later(partition, fid);
        } else if record.is_needless() && !self.opens.is_open(fid, self.parts.rt.now()) {
            let (this, partition) = (self.clone(), partition.clone());
            self.parts.rt.spawn(async move {
                let _lock = this.locks.lock(fid).await;
                if !this.opens.is_open(fid, this.parts.rt.now()) {
                    // Nobody waits for it; a record too many does no harm.
                    let _ = this.change(&partition, fid, FileChange::Forget).await;
                }
            });
        }
    }

    /// What is known of a file.
    pub(super) fn state(&self, fid: Fid, record: &FileRecord) -> FileState {
        FileState {
            size: record.size,
            epoch: record.epoch.0,
            mtime_ns: record.mtime_ns,
            append_at: 0,
            known: true,
            bytes: None,
            pinned: record.rare().pinned,
            conflict: record.rare().conflict,
            region_log2: u32::from(record.region_log2),
            runs: record.whole_runs(),
            binding: Some(self.binding(&record.key)),
            truncating: record.rare().truncating.is_some(),
            open: self.opens.is_open(fid, self.parts.rt.now()),
            run_ends: record.run_ends(),
        }
    }

    async fn stat(&self, partition: &Partition, ask: &FileStat) -> Result<FileState, Failure> {
        let fid = Fid::from(ask.fid);
        let Some(record) = self.record(partition, fid).filter(|r| !r.rare().dropping) else {
            return Ok(FileState::default());
        };
        let mut state = self.state(fid, &record);
        if let Some(after) = ask.truncates_after {
            let terms = partition.state().files.region_terms(fid, TruncateEpoch(after));
            state.size = terms.map_or(u64::MAX, |terms| terms.size);
        }
        if ask.counts {
            state.bytes = Some(self.count(fid, &record).await?);
        }
        Ok(state)
    }

    /// Bytes by state over all regions.
    pub(super) async fn count(&self, fid: Fid, record: &FileRecord) -> Result<ByteCounts, Failure> {
        let mut sum = ByteCounts::default();
        let name = |region: RegionIndex| RegionName { fid: fid.into(), region: region.0 };
        let add = |one: ByteCounts| {
            sum.dirty += one.dirty;
            sum.pending += one.pending;
            sum.clean += one.clean;
            sum.deletable += one.deletable;
            sum.end = sum.end.max(one.end);
            sum.fragments += one.fragments;
            sum.groups += one.groups;
        };
        self.parts.ask_regions(Kind::RegionStat, fid, record.regions(), name, add).await?;
        Ok(sum)
    }

    async fn regions(
        &self,
        partition: &Rc<Partition>,
        peer: &Peer,
        ask: FileRegions,
    ) -> Result<FileState, Failure> {
        let capability = Capability::from(&ask.capability);
        check_capability(&self.parts.shared, &capability, Rights::WRITE, peer)?;
        let fid = capability.fid;
        let record = self.record(partition, fid).ok_or_else(stale)?;
        if !has_run(ask.run, record.region_log2) {
            return Err(Failure::new(Code::Invalid, "no file is that large"));
        }
        if !(1..=RUN_REGIONS).contains(&ask.regions) {
            return Err(Failure::new(Code::Invalid, "a run has 1 to 1,024 regions"));
        }
        let last = RegionIndex(ask.run * RUN_REGIONS + ask.regions - 1);
        if !record.is_registered(last) {
            let register = FileChange::Register { run: ask.run, regions: ask.regions };
            self.change(partition, fid, register).await?;
        }
        let record = self.record(partition, fid).ok_or_else(stale)?;
        Ok(self.state(fid, &record))
    }

    /// A session is over, for all partitions that this node serves.
    ///
    /// # Errors
    /// [`Code::Denied`] for one who is no server; a body that cannot be read.
    pub async fn end_session_here(
        self: &Rc<Self>,
        served: impl Iterator<Item = Rc<Partition>>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        check_server(&request.peer)?;
        let ask: SessionRenew = decode(&request.body)?;
        let served: BTreeMap<_, _> = served.map(|partition| (partition.id(), partition)).collect();
        self.end_session(&served, SessionId(ask.session)).await;
        Ok(Response::body(encode(&Done {})))
    }

    /// A session is over: its files get the size of their regions' highest byte (rule 8), since it
    /// can't say any more how far it wrote.
    async fn end_session(
        self: &Rc<Self>,
        served: &BTreeMap<PartitionId, Rc<Partition>>,
        session: SessionId,
    ) {
        let at = |fid| served.get(&self.parts.partition_of(fid, RegionIndex(0)));
        let ended = self.opens.end_session(session, self.parts.rt.now(), |fid| at(fid).is_some());
        for (fid, wrote) in ended {
            let Some(partition) = at(fid) else { continue };
            if let Err(failure) = self.end_open(partition, fid, wrote).await {
                tracing::warn!(%fid, %failure, "size after a dead session is not known");
            }
        }
    }

    async fn end_open(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        fid: Fid,
        wrote: bool,
    ) -> Result<(), Failure> {
        let Some(record) = self.record(partition, fid) else { return Ok(()) };
        if wrote && !record.rare().dropping {
            let end = self.count(fid, &record).await?.end;
            if end > record.size {
                let raise = FileChange::Raise { epoch: record.epoch, size: end, mtime_ns: 0 };
                self.change(partition, fid, raise).await?;
            }
        }
        self.closed(partition, fid, &record);
        Ok(())
    }

    /// Takes over what the backing file system has after a change of our own.
    async fn read_guard_again(&self, partition: &Rc<Partition>, fid: Fid) -> Result<(), Failure> {
        let Some(record) = self.record(partition, fid) else { return Ok(()) };
        let found = self.parts.bfs.stat(&self.binding(&record.key)).await;
        let found = confirmed(&*self.parts.bfs, found).await;
        let found = found.map_err(|error| refusal(&error))?;
        // The size is compared as before: only the time is ours.
        let guard = Guard { size: record.guard.size, mtime_ns: found.mtime_ns };
        self.change(partition, fid, FileChange::SetGuard { guard }).await.map(drop)
    }
}

/// The file is not known here.
pub(super) fn stale() -> Failure {
    Failure::new(Code::StaleFile, "the file is not known here")
}

/// The session that holds the file open is over: its client opens another.
fn session_ended() -> Failure {
    Failure::new(Code::NoSession, "the session has ended")
}

fn why(refused: FileRefusal) -> Failure {
    match refused {
        FileRefusal::Unknown | FileRefusal::OtherFile => stale(),
        FileRefusal::Dropping => Failure::new(Code::StaleFile, "the file is being dropped"),
        FileRefusal::Truncating => Failure::new(Code::Busy, "a truncate is under way"),
        FileRefusal::Syncing => Failure::new(Code::Busy, "a sync is under way"),
        FileRefusal::TooLarge => Failure::errno(libc::EFBIG, "no file is that large"),
        FileRefusal::Needed => Failure::new(Code::Busy, "the record is needed"),
    }
}
