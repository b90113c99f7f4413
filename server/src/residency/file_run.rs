//! The file's half of an operation: the sync session, and each region asked for its part.

use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::{
    Binding, ByteCounts, RegionName, RegionOperation, RegionOperationReply, Residency as Kind,
    decode, encode,
};
use bb_proto::{Code, Failure, RegionIndex, ServiceClass};
use bb_transport::{CallError, Outgoing};
use futures_util::future::{Either, select};
use futures_util::stream::{self, StreamExt};

use super::file_jobs::FileJob;
use super::region::UNDER_WAY;
use super::{Residency, failures};
use crate::bfs::{BfsError, confirmed};
use crate::files::record::{FileRecord, RUN_REGIONS};
use crate::files::{FileChange, FileMutation, FileOutcome, FileRefusal};
use crate::partition::{Mutation, Partition};

/// Regions of a file that work at once.
const REGIONS_AT_ONCE: usize = 8;
/// Regions that are counted at once.
const COUNTS_AT_ONCE: usize = 64;
/// How long one question about a region's part waits for its answer; then it is asked again.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How long a region may say "later" before the operation fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before something is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause while the backing file system is not there.
const OUTAGE_PAUSE: Duration = Duration::from_secs(1);

/// A region, and how much of it is not on the backing file system.
pub(super) struct Unsaved {
    pub regions: Vec<RegionIndex>,
    pub bytes: u64,
}

impl Residency {
    pub(super) async fn run_file(&self, job: &Rc<FileJob>) -> Result<(), Failure> {
        // One at a time for each file: a purge must not meet a sync.
        let _turn = self.turns.lock(job.fid).await;
        if job.is_cancelled() {
            return Err(cancelled());
        }
        match job.residency {
            Kind::Pin => self.change_file(job, FileChange::SetPinned { pinned: true }).await,
            Kind::Unpin => self.change_file(job, FileChange::SetPinned { pinned: false }).await,
            Kind::Purge | Kind::PurgeDirty => self.run_purge(job).await,
            Kind::Prestage => self.run_prestage(job).await,
            _ => self.run_sync(job).await,
        }
    }

    async fn run_sync(&self, job: &Rc<FileJob>) -> Result<(), Failure> {
        self.check_bfs_for(job).await?;
        let record = self.record(job)?;
        let unsaved = self.unsaved(job, &record).await?;
        job.bytes_total.set(unsaved.bytes);
        let grown = job.is_whole() && record.size > record.guard.size;
        if unsaved.bytes == 0 && !grown && !record.rare().conflict && !job.resumed {
            return Ok(());
        }
        if job.resumed {
            self.await_predecessor(job).await?;
        }
        if !self.begin_session(job).await? {
            return Ok(());
        }
        let mut regions = unsaved.regions;
        loop {
            let result = self.run_regions(job, &regions).await;
            match result {
                // Its process may still be writing: the session stays open until that is settled.
                Err(failure) if job.resumed && failure.kind() == Code::Busy => {
                    tracing::warn!(fid = %job.fid, %failure, "a sync session is not resumed yet");
                    self.ctx.rt.sleep(OUTAGE_PAUSE).await;
                    regions = self.unsaved(job, &self.record(job)?).await?.regions;
                }
                result => return self.end_session(job, result).await,
            }
        }
    }

    /// Compares with what the backing file system had, and logs that the session begins. False if
    /// there is nothing to do any more.
    async fn begin_session(&self, job: &Rc<FileJob>) -> Result<bool, Failure> {
        let process = self.process();
        self.patiently(job, async || {
            let _lock = self.files.lock(job.fid).await;
            if !job.resumed && !self.settle_changes(job).await? {
                return Ok(false);
            }
            self.change_file(job, FileChange::SyncBegin { op: job.op, process }).await?;
            Ok(true)
        })
        .await
    }

    /// The end of a session: the application's time, and the guard read again. What cannot be said
    /// while the backing file system is away is said when it is back; until then the session is
    /// open, and nothing is compared.
    async fn end_session(
        &self,
        job: &Rc<FileJob>,
        mut result: Result<(), Failure>,
    ) -> Result<(), Failure> {
        loop {
            let whole = job.is_whole() && result.is_ok();
            let ended = {
                let _lock = self.files.lock(job.fid).await;
                self.try_end_session(job, whole).await
            };
            match ended {
                Ok(size) => return result.and(size),
                // The file is gone, or its partition is another node's, which goes on with the session.
                Err(failure) if matches!(failure.kind(), Code::StaleFile | Code::Fenced) => {
                    return result.and(Err(failure));
                }
                Err(failure) => {
                    tracing::warn!(fid = %job.fid, %failure, "a sync session is not ended yet");
                    result = result.and(Err(failure));
                    job.end(self.ctx.rt.now(), result.clone());
                    self.ctx.rt.sleep(OUTAGE_PAUSE).await;
                }
            }
        }
    }

    /// The inner result is that of setting size and times.
    async fn try_end_session(
        &self,
        job: &FileJob,
        whole: bool,
    ) -> Result<Result<(), Failure>, Failure> {
        let record = self.record(job)?;
        let binding = self.binding(&record);
        let bfs = &self.ctx.bfs;
        self.check_bfs_for(job).await?;
        let mut told = Ok(());
        if record.rare().truncating.is_none() {
            told = self.tell_size_and_time(&record, &binding, whole).await;
        }
        let found = bfs.stat(&binding).await;
        let guard = match confirmed(&**bfs, found).await {
            Ok(found) => Some(guard_of(&found)),
            Err(BfsError::Errno(libc::ESTALE)) => None,
            Err(error) => return Err(failures::of_bfs(&error, "stat")),
        };
        self.change_file(job, FileChange::SyncEnd { op: job.op, guard }).await?;
        Ok(told)
    }

    async fn tell_size_and_time(
        &self,
        record: &FileRecord,
        binding: &Binding,
        whole: bool,
    ) -> Result<(), Failure> {
        let bfs = &self.ctx.bfs;
        let found = bfs.stat(binding).await;
        let found = failures::confirm(&*self.ctx.bfs, found, "stat").await?;
        if whole && found.size < record.size {
            // It ends in bytes that nobody wrote. No truncate is under way: the file is locked.
            let grown = bfs.truncate(binding, record.size).await;
            failures::confirm(&*self.ctx.bfs, grown, "setting the size").await?;
        }
        if record.mtime_ns != 0 {
            let times = crate::bfs::Times { atime_ns: None, mtime_ns: Some(record.mtime_ns) };
            let set = bfs.set_times(binding, times).await;
            failures::confirm(&*self.ctx.bfs, set, "setting the times").await?;
        }
        Ok(())
    }

    async fn run_prestage(&self, job: &Rc<FileJob>) -> Result<(), Failure> {
        self.check_bfs_for(job).await?;
        let (first, end, log2) = self
            .patiently(job, async || {
                let _lock = self.files.lock(job.fid).await;
                self.settle_changes(job).await?;
                let record = self.record(job)?;
                let found = self.ctx.bfs.stat(&self.binding(&record)).await;
                let found = failures::confirm(&*self.ctx.bfs, found, "stat").await?;
                let end = job.range.end.min(found.size).min(record.size);
                Ok((job.range.start, end, record.region_log2))
            })
            .await?;
        if first >= end {
            return Ok(());
        }
        job.bytes_total.set(end - first);
        let index = |offset: u64| {
            u32::try_from(offset >> log2)
                .map_err(|_| Failure::errno(libc::EFBIG, "the file has too many regions"))
        };
        let (from, to) = (index(first)?, index(end - 1)?);
        for run in from / RUN_REGIONS..=to / RUN_REGIONS {
            // No more than will be touched: each registered region is asked at every truncate, count
            // and drop of the file.
            let regions = (to - run * RUN_REGIONS).min(RUN_REGIONS - 1) + 1;
            self.change_file(job, FileChange::Register { run, regions }).await?;
        }
        let regions: Vec<RegionIndex> = (from..=to).map(RegionIndex).collect();
        self.run_regions(job, &regions).await?;
        // What was here already counts as done.
        job.bytes_done.set(job.bytes_total.get());
        Ok(())
    }

    async fn run_purge(&self, job: &Rc<FileJob>) -> Result<(), Failure> {
        self.check_bfs_for(job).await?;
        let record = self.record(job)?;
        self.run_regions(job, &regions_of(job, &record)).await?;
        if job.residency == Kind::PurgeDirty && job.is_whole() {
            // Nothing is left of what was written here: the file is what the other side has.
            self.patiently(job, async || {
                let _lock = self.files.lock(job.fid).await;
                let record = self.settled_record(job)?;
                let found = self.ctx.bfs.stat(&self.binding(&record)).await;
                let found = failures::confirm(&*self.ctx.bfs, found, "stat").await?;
                self.change_file(job, FileChange::Rebase { guard: guard_of(&found) }).await
            })
            .await?;
        }
        Ok(())
    }

    /// Asks each region for its part. To the end also after a failure: what has begun is waited
    /// for, because the session must not end before it.
    pub(super) async fn run_regions(
        &self,
        job: &FileJob,
        regions: &[RegionIndex],
    ) -> Result<(), Failure> {
        let stop = std::cell::Cell::new(false);
        let ask = |region: RegionIndex| {
            let stop = &stop;
            async move {
                if stop.get() || job.is_cancelled() {
                    return Ok(());
                }
                let result = self.run_region(job, region, job.residency).await;
                if let Ok(reply) = &result {
                    job.bytes_done.set(job.bytes_done.get() + reply.bytes);
                } else {
                    stop.set(true);
                }
                result.map(drop)
            }
        };
        let mut answers =
            stream::iter(regions.iter().copied()).map(ask).buffer_unordered(REGIONS_AT_ONCE);
        let mut failure = None;
        while let Some(answer) = answers.next().await {
            failure = failure.or(answer.err());
        }
        match failure {
            Some(failure) => Err(failure),
            None if job.is_cancelled() => Err(cancelled()),
            None => Ok(()),
        }
    }

    /// One region's part, asked for until there is a result.
    pub(super) async fn run_region(
        &self,
        job: &FileJob,
        region: RegionIndex,
        residency: Kind,
    ) -> Result<RegionOperationReply, Failure> {
        let mut give_up = self.ctx.rt.now() + PATIENCE;
        let mut told = false;
        loop {
            let record = self.record(job)?;
            let mut order = self.order(job, &record, region, residency);
            if job.is_cancelled() && !told {
                order.cancel = true;
                told = true;
            }
            let is_cancel = order.cancel;
            let asked = Box::pin(self.ask_region(job, &order));
            let result = if told {
                asked.await
            } else {
                let cancel = Box::pin(job.cancelled());
                match select(asked, cancel).await {
                    Either::Left((result, _)) => result,
                    // The region's part goes on without its caller: asked again, it stops.
                    Either::Right(_) => continue,
                }
            };
            match result {
                Ok(reply) if !is_cancel => return Ok(reply),
                Ok(_) => {}
                Err(CallError::TimedOut) => give_up = self.ctx.rt.now() + PATIENCE,
                Err(CallError::Refused(failure, _)) => match failure.kind() {
                    Code::Busy if failure.value == UNDER_WAY => {
                        give_up = self.ctx.rt.now() + PATIENCE;
                    }
                    // Truncated meanwhile: again, on the new terms.
                    Code::Busy | Code::Fenced | Code::OldTruncateEpoch
                        if self.ctx.rt.now() < give_up =>
                    {
                        self.ctx.rt.sleep(PAUSE).await;
                    }
                    _ => return Err(failure),
                },
                Err(error) if self.ctx.rt.now() >= give_up => {
                    return Err(Failure::new(Code::Busy, error.to_string()));
                }
                Err(_) => self.ctx.rt.sleep(PAUSE).await,
            }
        }
    }

    async fn ask_region(
        &self,
        job: &FileJob,
        order: &RegionOperation,
    ) -> Result<RegionOperationReply, CallError> {
        let to = self.parts.partition_of(job.fid, RegionIndex(order.region));
        let (kind, class) = (bb_proto::Kind::RegionOperation, ServiceClass::Reclaim);
        let request = Outgoing::new(kind, class, ATTEMPT, encode(order));
        let ctx = &self.ctx;
        let answer = ctx.shared.ask_primary(&ctx.rt, &*ctx.caller, to, request).await?;
        decode(&answer.body).map_err(|failure| CallError::Refused(failure, answer.vitals))
    }

    fn order(
        &self,
        job: &FileJob,
        record: &FileRecord,
        region: RegionIndex,
        residency: Kind,
    ) -> RegionOperation {
        RegionOperation {
            fid: job.fid.into(),
            region: region.0,
            op: job.op.0,
            residency: residency.into(),
            offset: job.range.start,
            end: job.range.end,
            binding: self.binding(record),
            epoch: record.epoch.0,
            size: record.size,
            region_log2: u32::from(record.region_log2),
            cancel: false,
        }
    }

    /// Which regions hold bytes that the backing file system has not.
    pub(super) async fn unsaved(
        &self,
        job: &FileJob,
        record: &FileRecord,
    ) -> Result<Unsaved, Failure> {
        let count = |region: RegionIndex| async move {
            let name = RegionName { fid: job.fid.into(), region: region.0 };
            let to = self.parts.partition_of(job.fid, region);
            let counts: ByteCounts = self.parts.ask(bb_proto::Kind::RegionStat, to, &name).await?;
            Ok::<_, Failure>((region, counts.dirty + counts.pending))
        };
        let regions = regions_of(job, record);
        let mut answers = stream::iter(regions).map(count).buffer_unordered(COUNTS_AT_ONCE);
        let mut unsaved = Unsaved { regions: Vec::new(), bytes: 0 };
        while let Some(answer) = answers.next().await {
            let (region, bytes) = answer?;
            if bytes > 0 {
                unsaved.regions.push(region);
                unsaved.bytes += bytes;
            }
        }
        unsaved.regions.sort_unstable();
        Ok(unsaved)
    }

    /// Tries again what says "later", for a while.
    async fn patiently<T>(
        &self,
        job: &FileJob,
        mut attempt: impl AsyncFnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let give_up = self.ctx.rt.now() + PATIENCE;
        loop {
            match attempt().await {
                Err(failure)
                    if failure.kind() == Code::Busy
                        && (job.resumed || self.ctx.rt.now() < give_up) =>
                {
                    if job.is_cancelled() {
                        return Err(cancelled());
                    }
                    self.ctx.rt.sleep(PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn check_bfs_for(&self, job: &FileJob) -> Result<(), Failure> {
        loop {
            match self.ctx.bfs.check().await {
                Ok(()) => return Ok(()),
                Err(_) if job.resumed => self.ctx.rt.sleep(OUTAGE_PAUSE).await,
                Err(error) => return Err(failures::of_bfs(&error, "looking for the marker")),
            }
        }
    }

    pub(super) fn record(&self, job: &FileJob) -> Result<FileRecord, Failure> {
        let record = job.partition.state().files.get(job.fid).cloned();
        record
            .filter(|record| !record.rare().dropping)
            .ok_or_else(|| Failure::new(Code::StaleFile, "the file is not known here"))
    }

    /// The record while no truncate and no session is under way.
    pub(super) fn settled_record(&self, job: &FileJob) -> Result<FileRecord, Failure> {
        let record = self.record(job)?;
        if record.rare().truncating.is_some() {
            return Err(Failure::new(Code::Busy, "a truncate is under way"));
        }
        if record.rare().sync.is_some_and(|sync| sync.op != job.op) {
            return Err(Failure::new(Code::Busy, "another sync is under way"));
        }
        Ok(record)
    }

    pub(super) fn binding(&self, record: &FileRecord) -> Binding {
        Binding {
            bfs: self.ctx.bfs.uuid().to_vec(),
            handle_type: record.key.handle_type,
            handle: record.key.handle.to_vec(),
            birth_ns: record.key.birth_ns,
        }
    }

    pub(super) async fn change_file(
        &self,
        job: &FileJob,
        change: FileChange,
    ) -> Result<(), Failure> {
        change_file(&job.partition, FileMutation { fid: job.fid, change }).await
    }
}

async fn change_file(partition: &Rc<Partition>, mutation: FileMutation) -> Result<(), Failure> {
    let outcome = partition.submit(ServiceClass::Reclaim, Mutation::File(mutation)).await?;
    match outcome.file()? {
        FileOutcome::Refused(FileRefusal::Syncing) => {
            Err(Failure::new(Code::Busy, "another sync is under way"))
        }
        FileOutcome::Refused(FileRefusal::Truncating) => {
            Err(Failure::new(Code::Busy, "a truncate is under way"))
        }
        FileOutcome::Refused(refused) => {
            Err(Failure::new(Code::StaleFile, format!("the file is not known here: {refused:?}")))
        }
        _ => Ok(()),
    }
}

/// The regions of the job's range that can hold bytes of the file. Bytes behind its size, that a
/// client has not accounted for yet, are left alone.
fn regions_of(job: &FileJob, record: &FileRecord) -> Vec<RegionIndex> {
    let bytes = 1_u64 << record.region_log2;
    let end = job.range.end.min(record.size);
    let in_range = |region: &RegionIndex| {
        let start = u64::from(region.0) << record.region_log2;
        start < end && start.saturating_add(bytes) > job.range.start
    };
    record.regions().filter(in_range).collect()
}

pub(super) const fn guard_of(found: &bb_proto::meta::Attributes) -> bb_proto::meta::Guard {
    bb_proto::meta::Guard { size: found.size, mtime_ns: found.mtime_ns }
}

fn cancelled() -> Failure {
    Failure::new(Code::Cancelled, "the operation was cancelled")
}
