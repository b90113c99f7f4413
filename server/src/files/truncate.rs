//! Truncates (rule 7): intent, regions, backing file system, done. Redone after a crash.

use std::rc::Rc;

use bb_proto::meta::{FileState, FileTruncate, Guard, RegionTruncate};
use bb_proto::{Capability, ClientSequence, Code, Failure, Fid, Kind, Rights, SessionId};
use bb_transport::Peer;

use super::peers::refusal;
use super::record::FileRecord;
use super::service::{FileService, stale};
use super::{FileChange, FileOutcome};
use crate::bfs::{BfsError, confirmed};
use crate::partition::Partition;
use crate::rights::check_capability;

impl FileService {
    pub(super) async fn truncate(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        peer: &Peer,
        ask: &FileTruncate,
    ) -> Result<FileState, Failure> {
        let capability = Capability::from(&ask.capability);
        check_capability(&self.parts.shared, &capability, Rights::WRITE, peer)?;
        let fid = capability.fid;
        let _lock = self.locks.lock(fid).await;
        let known = self.record(partition, fid).ok_or_else(stale)?;
        let (session, sequence) = (SessionId(ask.session), ClientSequence(ask.sequence));
        let mine = known
            .rare()
            .truncates
            .iter()
            .find(|begun| begun.session == session && begun.sequence == sequence)
            .map(|begun| begun.epoch);
        // Somebody's that is not done, this very one or another's, comes first.
        if known.rare().truncating.is_some() {
            self.finish_truncate(partition, fid).await?;
        }
        if mine.is_none() {
            let begin = FileChange::TruncateBegin {
                size: ask.size,
                session,
                sequence,
                process: self.parts.process(),
            };
            let begun = self.change(partition, fid, begin).await?;
            if matches!(begun, FileOutcome::Truncating { again: false, .. })
                && let Err(failure) = self.finish_truncate(partition, fid).await
            {
                // It has begun, and is finished whatever the client does now.
                self.finish_later(partition, fid);
                return Err(failure);
            }
        }
        let record = self.record(partition, fid).ok_or_else(stale)?;
        Ok(self.state(fid, &record))
    }

    /// Carries the truncate that the record says is under way to its end. The file is locked.
    pub(super) async fn finish_truncate(
        &self,
        partition: &Rc<Partition>,
        fid: Fid,
    ) -> Result<(), Failure> {
        let Some(record) = self.record(partition, fid) else { return Ok(()) };
        let Some(process) = record.rare().truncating else { return Ok(()) };
        let Some(last) = record.rare().truncates.last().copied() else { return Ok(()) };
        if process != self.parts.process() {
            // Its call may still hang in a kernel, and would cut what is written after us.
            let gone = self.parts.bfs.proven_gone(process).await;
            if !gone.map_err(|error| refusal(&error))? {
                return Err(Failure::new(Code::Busy, "the process before is not proven gone"));
            }
            let resume = FileChange::TruncateResume { process: self.parts.process() };
            self.change(partition, fid, resume).await?;
        }
        self.tell_truncate(&record, fid, last.size, false).await?;
        let guard = self.truncate_bfs(&record, last.size).await?;
        // Regions that registered meanwhile have the newest epoch from the start.
        let done = FileChange::TruncateDone { epoch: last.epoch, guard };
        self.change(partition, fid, done).await?;
        // A region that does not hear of it asks for itself.
        if let Err(failure) = self.tell_truncate(&record, fid, last.size, true).await {
            tracing::warn!(%fid, %failure, "a region was not told that a truncate is done");
        }
        Ok(())
    }

    async fn tell_truncate(
        &self,
        record: &FileRecord,
        fid: Fid,
        size: u64,
        done: bool,
    ) -> Result<(), Failure> {
        let tell = |region: bb_proto::RegionIndex| RegionTruncate {
            fid: fid.into(),
            region: region.0,
            epoch: record.epoch.0,
            size,
            done,
            region_log2: u32::from(record.region_log2),
        };
        self.parts.tell_regions(Kind::RegionTruncate, fid, record.regions(), tell).await
    }

    /// Truncates on the backing file system; gives what it has then, nothing if the file is gone.
    async fn truncate_bfs(&self, record: &FileRecord, size: u64) -> Result<Option<Guard>, Failure> {
        let bfs = &self.parts.bfs;
        bfs.check().await.map_err(|error| refusal(&error))?;
        let binding = self.binding(&record.key);
        let cut = bfs.truncate(&binding, size).await;
        match confirmed(&**bfs, cut).await {
            Ok(()) => {}
            Err(BfsError::Errno(libc::ESTALE)) => return Ok(None),
            Err(BfsError::Errno(
                libc::EFBIG | libc::EINVAL | libc::ENOSPC | libc::EDQUOT | libc::EPERM,
            )) if size >= record.guard.size => {
                // It only grows, and there it cannot (yet): the size is ours until a sync.
            }
            Err(error) => return Err(refusal(&error)),
        }
        let found = bfs.stat(&binding).await;
        match confirmed(&**bfs, found).await {
            Ok(found) => Ok(Some(Guard { size: found.size, mtime_ns: found.mtime_ns })),
            Err(BfsError::Errno(libc::ESTALE)) => Ok(None),
            Err(error) => Err(refusal(&error)),
        }
    }
}
