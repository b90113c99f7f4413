//! The sync of a region, in rounds:
//!
//! ```text
//! intent logged -> read groups, write the file (batches, a few at once) -> fsync -> end logged
//! ```
//!
//! A round is as much as one log record can name. From the intent to the end nothing is given up
//! half-way: a call on the backing file system that was begun is waited for, however long it
//! takes, because what it writes late could replace newer bytes (rule 10).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bb_pgio::{ReadError, ReadOptions};
use bb_proto::meta::{
    FragmentState, PgStatus, PgStatusReply, RegionOperationReply, decode, encode,
};
use bb_proto::{
    Capability, Code, Failure, Fragment, Kind, PgDescriptor, Reader, Rights, ServiceClass,
    SessionId,
};
use bb_runtime::{Buf, BufMut};
use bb_transport::Outgoing;
use futures_util::stream::{self, StreamExt};

use super::batch::{BATCH_BYTES, Batch, Part, Read, Round, runs, written};
use super::order::Job;
use super::{Residency, failures};
use crate::partition::Partition;
use crate::partition::fragment_map::{PgRef, Piece, Place};
use crate::partition::region::Region;
use crate::partition::region_mutation::{
    Range, RegionMutation, RegionOutcome, RegionRefusal, Written,
};
use crate::partition::state::PartitionState;
use crate::planted::{self, Planted};

/// Most fragments of a round: 40 bytes each in the record of its end, which may have 256 KiB.
const ROUND_PARTS: usize = 4_096;
/// Most bytes of a round: fewer fsyncs with more, but a longer time without progress in the log.
const ROUND_BYTES: u64 = 256 << 20;
/// Batches of a region that are under way at once.
const BATCHES_AT_ONCE: usize = 3;
/// Reads of a batch that are under way at once.
const READS_AT_ONCE: usize = 8;
/// How long home is waited for.
const HOME_DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// What a round has come to.
struct Progress {
    stop: Cell<bool>,
    /// What the backing file system refused: the round is for nothing.
    failure: RefCell<Option<Failure>>,
    /// What could not be read: it stays dirty, the rest goes on.
    unread: RefCell<Option<Failure>>,
    written: RefCell<Vec<Part>>,
}

impl Residency {
    pub(super) async fn sync(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
    ) -> Result<RegionOperationReply, Failure> {
        let Range { mut start, end } = job.order.range;
        let mut reply = RegionOperationReply::default();
        let mut unread = None;
        loop {
            job.check_cancelled()?;
            self.settle_range(partition, job).await?;
            let next = self.next_round(job, partition, Range { start, end }).await?;
            let Some(range) = next else { break };
            let result = self.round(job, partition, range).await?;
            reply.bytes += result.clean;
            reply.dirty_again += result.dirty_again;
            if let Some(failure) = result.failure {
                return Err(failure);
            }
            unread = unread.or(result.unread);
            start = range.end;
        }
        unread.map_or(Ok(reply), Err)
    }

    /// The next bytes that are dirty; waits while the region is being truncated.
    async fn next_round(
        &self,
        job: &Job,
        partition: &Partition,
        range: Range,
    ) -> Result<Option<Range>, Failure> {
        let next = || {
            let state = partition.state();
            let Some(region) = state.regions.get(job.order.id) else { return Ok(None) };
            let Some(round) = round_in(region, range) else { return Ok(None) };
            if region.truncating().is_some() {
                return Err(failures::of_region(RegionRefusal::Truncating));
            }
            self.check_epoch(job, region)?;
            Ok(Some(round))
        };
        self.wait_until(partition, next).await
    }

    async fn round(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
        range: Range,
    ) -> Result<RoundResult, Failure> {
        let (id, op) = (job.order.id, job.order.op);
        let begin = RegionMutation::SyncBegin { id, op, process: self.process(), range };
        if planted::is(Planted::SyncWithoutIntent) {
            let round = round_of(&partition.state(), job, range, FragmentState::Dirty);
            let progress = self.write_round(job, partition, &round, FragmentState::Dirty).await;
            self.change(partition, begin).await?;
            return self.end_round(job, partition, &round, progress).await;
        }
        match self.change(partition, begin).await? {
            RegionOutcome::Bytes(0) => return Ok(RoundResult::default()),
            RegionOutcome::Bytes(_) => {}
            RegionOutcome::Refused(refusal) => return Err(failures::of_region(refusal)),
            _ => return Err(Failure::new(Code::Unknown, "an intent answers with bytes")),
        }
        let epoch = match partition.state().regions.get(id) {
            Some(region) => self.check_epoch(job, region),
            None => Err(failures::of_region(RegionRefusal::Dropped)),
        };
        if let Err(failure) = epoch {
            // Truncated between the look and the intent: the size that we know is out of date.
            let progress = Progress::failed(failure);
            return self.end_round(job, partition, &Round::default(), progress).await;
        }
        let round = round_of(&partition.state(), job, range, FragmentState::Pending);
        let progress = self.write_round(job, partition, &round, FragmentState::Pending).await;
        self.end_round(job, partition, &round, progress).await
    }

    /// Logs what became clean: nothing at all if the backing file system failed.
    async fn end_round(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
        round: &Round,
        progress: Progress,
    ) -> Result<RoundResult, Failure> {
        let (id, op) = (job.order.id, job.order.op);
        let mut failure = progress.failure.into_inner();
        let late = planted::is(Planted::CleanBeforeBfsFsync);
        if failure.is_none() && !late {
            failure = self.fsync(job).await.err();
        }
        let mut parts = progress.written.into_inner();
        parts.sort_unstable_by_key(|part| part.fragment.offset);
        let list: Vec<Written> =
            if failure.is_none() { written(&round.groups, &parts) } else { Vec::new() };
        let end = RegionMutation::SyncEnd { id, op, written: list };
        let outcome = self.change_for_sure(partition, end).await?;
        if failure.is_none() && late {
            failure = self.fsync(job).await.err();
        }
        let unread = progress.unread.into_inner();
        match outcome {
            RegionOutcome::Synced { clean, dirty_again } => {
                Ok(RoundResult { clean, dirty_again, failure, unread })
            }
            RegionOutcome::Refused(refusal) => Err(failures::of_region(refusal)),
            _ => Err(Failure::new(Code::Unknown, "the end of a sync answers with counts")),
        }
    }

    async fn fsync(&self, job: &Job) -> Result<(), Failure> {
        let done = self.ctx.bfs.fsync(&job.order.binding).await;
        failures::confirm(&*self.ctx.bfs, done, "fsync").await
    }

    async fn write_round(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
        round: &Round,
        expected: FragmentState,
    ) -> Progress {
        let progress = Progress::default();
        let batches = Batch::all_of(&round.parts);
        let run = |batch: Batch| {
            let progress = &progress;
            async move {
                if progress.stop.get() {
                    return;
                }
                let done = self.write_batch(job, partition, round, &batch, expected, progress);
                if let Err(failure) = done.await {
                    progress.stop.set(true);
                    progress.failure.borrow_mut().get_or_insert(failure);
                }
            }
        };
        // To the end even after a failure: no write may be left behind.
        stream::iter(batches).map(run).buffer_unordered(BATCHES_AT_ONCE).collect::<()>().await;
        progress
    }

    async fn write_batch(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
        round: &Round,
        batch: &Batch,
        expected: FragmentState,
        progress: &Progress,
    ) -> Result<(), Failure> {
        job.check_cancelled()?;
        // Before the first request, all buffers of the batch (rule 14).
        let _budget = self.budget.acquire(batch.buffer_bytes().min(2 * BATCH_BYTES)).await;
        let sizes: Vec<usize> = batch.spans.iter().map(|span| span.len).collect();
        let mut buffers = self.reads.take_buffers(&sizes).await;
        for (buffer, size) in buffers.iter_mut().zip(&sizes) {
            buffer.set_len(*size);
        }
        let buffers = RefCell::new(buffers);
        let fill = |read: Read| {
            let buffers = &buffers;
            async move {
                let result =
                    self.fill(job, partition, round, batch, &read, expected, buffers).await;
                (read, result)
            }
        };
        let mut fills = stream::iter(batch.reads()).map(fill).buffer_unordered(READS_AT_ONCE);
        let mut parts: Vec<Part> = Vec::with_capacity(batch.parts.len());
        while let Some((read, result)) = fills.next().await {
            match result {
                Ok(true) => parts.extend(read.parts),
                // Overwritten meanwhile, and its group gone: nothing of it is to be written.
                Ok(false) => {}
                Err(failure) => {
                    progress.unread.borrow_mut().get_or_insert(failure);
                }
            }
        }
        drop(fills);
        parts.sort_unstable_by_key(|part| part.fragment.offset);
        self.check_bfs(job, partition).await?;
        let buffers: Vec<Buf> = buffers.into_inner().into_iter().map(BufMut::freeze).collect();
        for (start, end) in runs(&parts) {
            let bytes = cut(batch, &buffers, start, end);
            let done = self.ctx.bfs.write(&job.order.binding, start, bytes).await;
            failures::confirm(&*self.ctx.bfs, done, "write").await?;
        }
        progress.written.borrow_mut().extend(parts);
        Ok(())
    }

    /// Reads one range of a group into the buffers of its parts. False if the parts have changed
    /// since.
    #[expect(clippy::too_many_arguments, reason = "one step of one loop")]
    async fn fill(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
        round: &Round,
        batch: &Batch,
        read: &Read,
        expected: FragmentState,
        buffers: &RefCell<Vec<BufMut>>,
    ) -> Result<bool, Failure> {
        let descriptor = &round.groups[read.group];
        let mut result = self.fetch(job, descriptor, read, ReadOptions::default()).await;
        if matches!(result, Err(ReadError::Stale)) {
            let Some(newer) = self.look_again(job, partition, read, descriptor, expected).await?
            else {
                return Ok(false);
            };
            let confirmed = ReadOptions { stale_is_missing: true };
            result = self.fetch(job, &newer, read, confirmed).await;
        }
        let pieces = match result {
            Ok(pieces) => pieces,
            Err(_) if !is_current(partition, job, read, descriptor, expected) => return Ok(false),
            Err(error) => return Err(failures::of_read(&error)),
        };
        let mut buffers = buffers.borrow_mut();
        for part in &read.parts {
            let at = batch.span_of(part.fragment.offset);
            let skipped = part.fragment.offset - batch.spans[at].offset;
            let skipped = usize::try_from(skipped).expect("within the span");
            let out = &mut buffers[at][skipped..][..part.fragment.len as usize];
            copy(&pieces, part.fragment.pg_offset as usize, out);
        }
        Ok(true)
    }

    async fn fetch(
        &self,
        job: &Job,
        descriptor: &PgDescriptor,
        read: &Read,
        options: ReadOptions,
    ) -> Result<Vec<bb_pgio::Piece>, ReadError> {
        let capability = Capability {
            session: SessionId(0),
            fid: job.order.id.fid,
            rights: Rights::SERVER,
            signature: [0; 16],
        };
        let (from, len) = (read.from as usize, (read.to - read.from) as usize);
        let fetched = self.reads.fetch(&capability, descriptor, from, len, options).await;
        fetched.map(|(pieces, _report)| pieces)
    }

    /// A member did not know the block: is the fragment still there, and if so, what does home say
    /// (rule 4)?
    async fn look_again(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
        read: &Read,
        descriptor: &PgDescriptor,
        expected: FragmentState,
    ) -> Result<Option<PgDescriptor>, Failure> {
        if !is_current(partition, job, read, descriptor, expected) {
            return Ok(None);
        }
        let body = encode(&PgStatus { pgs: vec![descriptor.pg.into()], settle: false });
        let class = ServiceClass::Reclaim;
        let request = Outgoing::new(Kind::PgStatus, class, HOME_DEADLINE, body);
        let (rt, caller, home) = (&self.ctx.rt, &*self.ctx.caller, descriptor.pg.home);
        let answer = self.ctx.shared.ask_primary(rt, caller, home, request).await;
        let answer = answer.map_err(|error| {
            Failure::new(Code::Busy, format!("asking the home of a parity group: {error}"))
        })?;
        let reply: PgStatusReply = decode(&answer.body)?;
        let bytes = reply.entries.first().filter(|entry| entry.state == 1);
        let newer = bytes.and_then(|entry| {
            let mut reader = Reader::new(&entry.descriptor);
            PgDescriptor::decode(&mut reader).ok()
        });
        match newer {
            Some(newer) => Ok(Some(newer)),
            None if is_current(partition, job, read, descriptor, expected) => {
                Err(Failure::new(Code::Busy, "home does not know the parity group"))
            }
            None => Ok(None),
        }
    }
}

/// What a round came to.
#[derive(Default)]
struct RoundResult {
    clean: u64,
    dirty_again: u64,
    failure: Option<Failure>,
    unread: Option<Failure>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            stop: Cell::new(false),
            failure: RefCell::default(),
            unread: RefCell::default(),
            written: RefCell::default(),
        }
    }
}

impl Progress {
    fn failed(failure: Failure) -> Self {
        Self { failure: RefCell::new(Some(failure)), ..Self::default() }
    }
}

/// Where the next round of a sync begins and ends; `None` if nothing is dirty.
fn round_in(region: &Region, range: Range) -> Option<Range> {
    let dirty =
        |piece: &Piece| matches!(piece.place, Place::Pg { state: FragmentState::Dirty, .. });
    let (mut bytes, mut round) = (0, None::<Range>);
    let pieces = region.fragments().pieces(range.start, range.end).filter(dirty);
    for piece in pieces.take(ROUND_PARTS) {
        let start = round.map_or(piece.offset, |round| round.start);
        round = Some(Range { start, end: piece.end() });
        bytes += u64::from(piece.len);
        if bytes >= ROUND_BYTES {
            break;
        }
    }
    round
}

/// What the round has to write, as the region has it now: no more than the log can name.
fn round_of(state: &PartitionState, job: &Job, range: Range, expected: FragmentState) -> Round {
    let mut round = Round::default();
    let Some(region) = state.regions.get(job.order.id) else { return round };
    let mut known: BTreeMap<PgRef, usize> = BTreeMap::new();
    for piece in region.fragments().pieces(range.start, range.end) {
        let Place::Pg { pg, pg_offset, state: fragment } = piece.place else { continue };
        if fragment != expected || round.parts.len() >= ROUND_PARTS {
            continue;
        }
        let group = *known.entry(pg).or_insert_with(|| {
            round.groups.push(state.pgs.get(pg).descriptor.clone());
            round.groups.len() - 1
        });
        let fragment = Fragment { offset: piece.offset, pg_offset, len: piece.len };
        round.parts.push(Part { group, fragment });
    }
    round
}

/// True if any byte of the read still lies where it was read from.
fn is_current(
    partition: &Partition,
    job: &Job,
    read: &Read,
    descriptor: &PgDescriptor,
    expected: FragmentState,
) -> bool {
    let state = partition.state();
    let Some(region) = state.regions.get(job.order.id) else { return false };
    let Some(group) = state.pgs.reference(descriptor.pg) else { return false };
    read.parts.iter().any(|part| {
        let Fragment { offset, .. } = part.fragment;
        region.fragments().pieces(offset, part.fragment.end()).any(|piece| {
            matches!(piece.place, Place::Pg { pg, state, .. } if pg == group && state == expected)
        })
    })
}

/// The bytes of a batch between two offsets that it holds without a gap.
fn cut(batch: &Batch, buffers: &[Buf], start: u64, end: u64) -> Vec<Buf> {
    let mut bytes = Vec::new();
    let mut at = start;
    while at < end {
        let index = batch.span_of(at);
        let span = batch.spans[index];
        let to = end.min(span.offset + span.len as u64);
        let from = usize::try_from(at - span.offset).expect("within the span");
        let until = usize::try_from(to - span.offset).expect("within the span");
        bytes.push(buffers[index].slice(from..until));
        at = to;
    }
    bytes
}

/// Copies bytes of a group from `pieces`, which hold them.
fn copy(pieces: &[bb_pgio::Piece], pg_offset: usize, out: &mut [u8]) {
    let end = pg_offset + out.len();
    for piece in pieces {
        let piece_end = piece.pg_offset + piece.bytes.len();
        let (from, to) = (pg_offset.max(piece.pg_offset), end.min(piece_end));
        if from < to {
            out[from - pg_offset..to - pg_offset]
                .copy_from_slice(&piece.bytes[from - piece.pg_offset..to - piece.pg_offset]);
        }
    }
}
