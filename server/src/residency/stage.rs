//! The prestage of a region (rule 9):
//!
//! ```text
//! placeholders logged -> read the file, write groups, commit them (a few at once) -> end logged
//! ```
//!
//! A commit of staged bytes replaces only what is still a placeholder: whatever was written
//! meanwhile stays.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bb_erasure::Geometry;
use bb_pgio::{Sealed, Shape, WriteError, chunk_log2_for};
use bb_proto::meta::{FileStat, FileState, RegionOperationReply};
use bb_proto::{
    Capability, Code, Commit, Failure, Fragment, Kind, PG_DATA_BYTES_MAX, PgId, Rights,
    ServiceClass, SessionId, Tick,
};
use bb_runtime::{Buf, BufMut, Instant};
use bb_transport::{CallError, Outgoing};
use futures_util::stream::{self, StreamExt};

use super::order::Job;
use super::region::PATIENCE;
use super::{Residency, failures};
use crate::partition::Partition;
use crate::partition::fragment_map::Place;
use crate::partition::region_mutation::{Range, RegionMutation, RegionOutcome, RegionRefusal};

/// Groups of a region that are under way at once.
const GROUPS_AT_ONCE: usize = 2;
/// How long a commit is waited for.
const COMMIT_DEADLINE: Duration = Duration::from_secs(10);
/// How long a group that finds too few devices with room is tried again. What is silent is avoided
/// for about a second.
const ROOM_PATIENCE: Duration = Duration::from_secs(3);
const ROOM_PAUSE: Duration = Duration::from_millis(200);
/// Pause before a commit is sent again.
const PAUSE: Duration = Duration::from_millis(50);

impl Residency {
    pub(super) async fn stage(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
    ) -> Result<RegionOperationReply, Failure> {
        let (id, op) = (job.order.id, job.order.op);
        self.settle_range(partition, job).await?;
        self.open_region(job, partition).await?;
        let begin = RegionMutation::StageBegin {
            id,
            op,
            process: self.process(),
            range: job.order.range,
            epoch: job.order.epoch,
        };
        match self.change(partition, begin).await? {
            RegionOutcome::Bytes(0) => return Ok(RegionOperationReply::default()),
            RegionOutcome::Bytes(_) => {}
            RegionOutcome::Refused(refusal) => return Err(failures::of_region(refusal)),
            _ => return Err(Failure::new(Code::Unknown, "a prestage answers with bytes")),
        }
        let result = self.stage_all(job, partition).await;
        let end = RegionMutation::StageEnd { id, op };
        match self.change_for_sure(partition, end).await? {
            RegionOutcome::Refused(refusal) if refusal != RegionRefusal::UnknownOperation => {
                result.and(Err(failures::of_region(refusal)))
            }
            _ => result.map(|bytes| RegionOperationReply { bytes, dirty_again: 0 }),
        }
    }

    /// A region of which nothing was known learns the file's terms.
    async fn open_region(&self, job: &Job, partition: &Rc<Partition>) -> Result<(), Failure> {
        let id = job.order.id;
        let known = partition.state().regions.get(id).map(|region| self.check_epoch(job, region));
        if let Some(check) = known {
            return check;
        }
        // An order that comes late may be about a file that was dropped long ago: opened again, its
        // region would be nobody's.
        let ask = FileStat { fid: id.fid.into(), counts: false, truncates_after: None };
        let file: FileState = self.parts.ask_file(Kind::FileStat, id.fid, &ask).await?;
        if !file.known {
            return Err(failures::of_region(RegionRefusal::Dropped));
        }
        let (region_log2, epoch) = (job.order.region_log2, job.order.epoch);
        let open = RegionMutation::Truncate { id, region_log2, epoch, size: u64::MAX, done: true };
        match self.change(partition, open).await? {
            RegionOutcome::Refused(refusal) => Err(failures::of_region(refusal)),
            _ => Ok(()),
        }
    }

    async fn stage_all(&self, job: &Job, partition: &Rc<Partition>) -> Result<u64, Failure> {
        let window = window_of(self.stage_geometry()?);
        let failure: RefCell<Option<Failure>> = RefCell::default();
        let stage = |range: Range| {
            let failure = &failure;
            async move {
                if failure.borrow().is_some() {
                    return 0;
                }
                let staged = self.stage_range(job, partition, range).await;
                staged.unwrap_or_else(|error| {
                    failure.borrow_mut().get_or_insert(error);
                    0
                })
            }
        };
        let ranges = windows(job, partition, window);
        let counts = stream::iter(ranges).map(stage).buffer_unordered(GROUPS_AT_ONCE);
        let bytes = counts.fold(0, |sum, bytes| async move { sum + bytes }).await;
        failure.into_inner().map_or(Ok(bytes), Err)
    }

    /// The geometry of new groups: it shrinks with the number of devices.
    fn stage_geometry(&self) -> Result<Geometry, Failure> {
        let map = self.ctx.shared.map();
        let small = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
        let wanted = Geometry::new(small(map.data), small(map.parity));
        let wanted = wanted.map_err(|e| Failure::new(Code::Invalid, e.to_string()))?;
        self.writes
            .usable_geometry(wanted)
            .ok_or_else(|| Failure::new(Code::NoSpace, "too few devices"))
    }

    /// Brings one range: as one group, unless devices were lost since it was cut out.
    async fn stage_range(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
        range: Range,
    ) -> Result<u64, Failure> {
        let (mut start, mut bytes) = (range.start, 0);
        let mut give_up = None;
        while start < range.end {
            let geometry = self.stage_geometry()?;
            let window = window_of(geometry);
            let end = range.end.min((start / window + 1) * window);
            match self.stage_group(job, partition, geometry, Range { start, end }).await {
                Ok(staged) => {
                    bytes += staged;
                    start = end;
                    give_up = None;
                }
                Err(failure) if failure.kind() == Code::NoSpace => {
                    // Not for want of room, if devices of the group failed or fell silent
                    // meanwhile: the map says so in a moment, or they are back.
                    let until = *give_up.get_or_insert(self.ctx.rt.now() + ROOM_PATIENCE);
                    self.ctx.rt.sleep(ROOM_PAUSE).await;
                    let shrank = self.stage_geometry()?.total() < geometry.total();
                    if !shrank && self.ctx.rt.now() >= until {
                        return Err(failure);
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(bytes)
    }

    /// Brings one range, as one group. Gives the number of bytes that the file has there.
    async fn stage_group(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
        geometry: Geometry,
        range: Range,
    ) -> Result<u64, Failure> {
        job.check_cancelled()?;
        self.check_bfs(job, partition).await?;
        let len = usize::try_from(range.end - range.start).unwrap_or(PG_DATA_BYTES_MAX);
        let shape =
            Shape::fit(geometry, len, chunk_log2_for(len, 1)).coded(self.ctx.shared.map().codec);
        let block = shape.block_bytes();
        let blocks = shape.geometry.total();
        // All buffers of the group before the first request (rule 14).
        let _budget = self.budget.acquire((blocks * block) as u64).await;
        let mut data = self.writes.take_buffers(&vec![block; blocks]).await;
        let parity = data.split_off(shape.geometry.data());
        let mut filled: Vec<Buf> = Vec::with_capacity(data.len());
        let mut used = 0;
        for (index, buffer) in data.into_iter().enumerate() {
            let at = range.start + (index * block) as u64;
            let wanted = block.min(len.saturating_sub(index * block));
            // Behind a short block is the end of the file.
            let wanted = if used == index * block { wanted } else { 0 };
            let (buffer, got) = self.read_block(job, at, buffer, block, wanted).await?;
            used += got;
            filled.push(buffer.freeze());
        }
        if used == 0 {
            return Ok(0);
        }
        let sealed = Sealed::new(shape, filled, parity).map_err(|e| failures::of_write(&e))?;
        let len = u32::try_from(used).expect("a group is smaller");
        self.commit(job, partition, &sealed, Fragment { offset: range.start, pg_offset: 0, len })
            .await?;
        Ok(used as u64)
    }

    /// A block with `wanted` bytes of the file, or as many as there are, and zeros behind.
    async fn read_block(
        &self,
        job: &Job,
        at: u64,
        mut buffer: BufMut,
        block: usize,
        wanted: usize,
    ) -> Result<(BufMut, usize), Failure> {
        let mut got = 0;
        if wanted > 0 {
            buffer.set_len(wanted);
            let read = self.ctx.bfs.read(&job.order.binding, at, buffer).await;
            let (filled, count) = failures::confirm(&*self.ctx.bfs, read, "read").await?;
            (buffer, got) = (filled, count.min(wanted));
        }
        buffer.set_len(block);
        buffer[got..].fill(0);
        Ok((buffer, got))
    }

    /// Waits for the next attempt under another id. After so long whoever asked may try later: the
    /// horizon is no concern of theirs.
    async fn try_again(&self, why: &Failure, give_up: Instant) -> Result<(), Failure> {
        if self.ctx.rt.now() >= give_up {
            return Err(Failure::new(
                Code::Busy,
                format!("a group is refused again and again: {why}"),
            ));
        }
        self.ctx.rt.sleep(PAUSE).await;
        Ok(())
    }

    async fn commit(
        &self,
        job: &Job,
        partition: &Rc<Partition>,
        sealed: &Sealed,
        fragment: Fragment,
    ) -> Result<(), Failure> {
        let session = self.own_session();
        let capability = Capability {
            session,
            fid: job.order.id.fid,
            rights: Rights::SERVER,
            signature: [0; 16],
        };
        let give_up = self.ctx.rt.now() + PATIENCE;
        loop {
            let sequence = self.pg_sequence.get().wrapping_add(1);
            self.pg_sequence.set(sequence);
            // A tick before the newest, as clients do: others hear of that one later.
            let slot = Tick(self.ctx.shared.tick().0.saturating_sub(1));
            let pg = PgId { slot, session, sequence, home: partition.id() };
            let descriptor = match self.writes.write(&capability, pg, sealed).await {
                Ok(descriptor) => descriptor,
                Err(WriteError::Refused(failure)) if is_for_another_id(&failure) => {
                    self.try_again(&failure, give_up).await?;
                    continue;
                }
                Err(error) => return Err(failures::of_write(&error)),
            };
            let commit = Commit {
                capability,
                epoch: job.order.epoch,
                size_raise: 0,
                mtime_ns: 0,
                closes: 0,
                stage: job.order.op,
                descriptor,
                participants: Vec::new(),
                fragments: vec![fragment],
            };
            let body = commit.encode();
            let failure = loop {
                match self.send_commit(partition, body.clone()).await {
                    Ok(_) => return Ok(()),
                    Err(CallError::Refused(failure, _)) => match failure.kind() {
                        Code::Busy | Code::Fenced | Code::SlotAhead
                            if self.ctx.rt.now() < give_up => {}
                        _ => break failure,
                    },
                    Err(error) if self.ctx.rt.now() >= give_up => {
                        break Failure::new(Code::Busy, error.to_string());
                    }
                    Err(_) => {}
                }
                self.ctx.rt.sleep(PAUSE).await;
            };
            if !is_for_another_id(&failure) {
                return Err(failure);
            }
            self.try_again(&failure, give_up).await?;
        }
    }

    async fn send_commit(
        &self,
        partition: &Partition,
        body: Vec<u8>,
    ) -> Result<bb_transport::Answer, CallError> {
        let class = ServiceClass::Background;
        let request = Outgoing::new(Kind::Commit, class, COMMIT_DEADLINE, body);
        let (rt, caller) = (&self.ctx.rt, &*self.ctx.caller);
        self.ctx.shared.ask_primary(rt, caller, partition.id(), request).await
    }

    /// The session of this process's own groups: bit 63, then 23 bits of the node, then 40 of its
    /// incarnation. The numbers in it run through all operations of the process, so no id is used
    /// twice. (Sessions of clients are hashes: one that is equal is as unlikely as two equal ones.)
    fn own_session(&self) -> SessionId {
        let shared = &self.ctx.shared;
        let node = u64::from(shared.node.0 & 0x7F_FFFF);
        SessionId(1 << 63 | node << 40 | (shared.incarnation.0 & 0xFF_FFFF_FFFF))
    }
}

/// Most bytes of a group.
fn window_of(geometry: Geometry) -> u64 {
    Shape::full(geometry, 14).data_bytes().min(PG_DATA_BYTES_MAX) as u64
}

/// What the job's placeholders cover, cut at multiples of a group's size.
fn windows(job: &Job, partition: &Partition, window: u64) -> Vec<Range> {
    let state = partition.state();
    let Some(region) = state.regions.get(job.order.id) else { return Vec::new() };
    let Some(stage) = region.stages().get(&job.order.op) else { return Vec::new() };
    let Range { start, end } = job.order.range;
    let ours = region
        .fragments()
        .pieces(start, end)
        .filter(|piece| piece.place == Place::Placeholder(stage.local));
    let mut ranges: Vec<Range> = Vec::new();
    for piece in ours {
        let mut at = piece.offset;
        while at < piece.end() {
            let to = piece.end().min((at / window + 1) * window);
            ranges.push(Range { start: at, end: to });
            at = to;
        }
    }
    ranges
}

/// True if the group can be written under another id.
fn is_for_another_id(failure: &Failure) -> bool {
    matches!(failure.kind(), Code::BehindHorizon | Code::CommitCancelled)
}
