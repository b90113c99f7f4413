//! The open log: what callers hold.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::task::Poll;

use bb_nvme::{DeviceRef, DeviceStats};
use bb_runtime::sync::{Notify, Semaphore};
use bb_runtime::{BufMut, BufPool, Rt};

use crate::completion::{Completion, Durable};
use crate::error::LogError;
use crate::format::{BLOCK, RecordType, STREAMS_MAX, framed_bytes};
use crate::group::{header_bytes, push_record};
use crate::ids::{Class, LogIdentity, Lsn, StreamId};
use crate::options::Options;
use crate::space::{CHECKPOINT_RANK, Space, rank};
use crate::streams::{Start, Streams};
use crate::superblock::Superblock;

/// Groups' memory that is kept: one is filled while another one is sealed.
const IDLE_BYTES_MAX: usize = 2;

/// A commit log, open for appending. Clones are the same log.
#[derive(Clone)]
pub struct Log {
    pub(crate) inner: Rc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) rt: Rt,
    pub(crate) pool: BufPool,
    pub(crate) dev: DeviceRef,
    pub(crate) identity: LogIdentity,
    pub(crate) ring_bytes: u64,
    pub(crate) group_bytes_max: usize,
    pub(crate) options: Options,
    pub(crate) state: RefCell<State>,
    pub(crate) space: RefCell<Space>,
    /// Something to write, or a place to write it from.
    pub(crate) wake_writer: Notify,
    /// Wakes whoever waits for the log to run dry, with each group.
    pub(crate) changed: Notify,
    /// Wakes whoever waits for the log to fail.
    pub(crate) failing: Notify,
    /// One snapshot at a time: several half-written ones could fill the ring together.
    pub(crate) snapshot_turn: Semaphore,
}

pub(crate) struct State {
    /// As last written.
    pub(crate) superblock: Superblock,
    pub(crate) superblock_busy: bool,
    /// LSN of the next group that is opened.
    pub(crate) next_lsn: u64,
    pub(crate) next_sequence: u64,
    pub(crate) forming: Option<Forming>,
    /// Full groups that wait for a place in flight.
    pub(crate) closed: VecDeque<Forming>,
    pub(crate) in_flight: VecDeque<InFlight>,
    pub(crate) idle_buffers: Vec<BufMut>,
    /// Memory of groups that were written, for those that are filled next: one that grew does not
    /// have to grow again.
    pub(crate) idle_bytes: Vec<Vec<u8>>,
    pub(crate) previous_crc: u32,
    pub(crate) durable_through: u64,
    pub(crate) streams: Streams,
    pub(crate) externals: BTreeMap<u64, u64>,
    pub(crate) failed: Option<String>,
    pub(crate) closing: bool,
    pub(crate) stats: LogStats,
}

/// A group that is being filled.
pub(crate) struct Forming {
    pub(crate) lsn: u64,
    pub(crate) bytes: Vec<u8>,
    /// Bytes it may grow to: the largest group, or the end of the lap.
    pub(crate) limit: usize,
    /// Distance to the next group, once that is known.
    pub(crate) span: usize,
    pub(crate) external_slots: usize,
    pub(crate) records: u32,
    pub(crate) completion: Completion,
}

/// A group that was submitted.
pub(crate) struct InFlight {
    pub(crate) end: u64,
    pub(crate) done: bool,
    pub(crate) completion: Completion,
}

/// A record that was given its place.
pub struct Append {
    /// Its position.
    pub lsn: Lsn,
    /// Resolves when it and everything before it is durable.
    pub durable: Durable,
}

/// Counts since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Records appended, those of checkpoints included.
    pub records: u64,
    /// Their bytes, with record headers.
    pub record_bytes: u64,
    /// Groups submitted.
    pub groups: u64,
    /// Bytes submitted in groups.
    pub group_bytes: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Superblocks written.
    pub superblocks: u64,
}

/// How full the ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Size of the ring.
    pub ring_bytes: u64,
    /// Bytes from the tail, as the superblock has it, to the head.
    pub used_bytes: u64,
    /// Bytes promised to reservations.
    pub reserved_bytes: u64,
    /// Bytes that are left, reserves included.
    pub free_bytes: u64,
    /// Bytes that clients can still have.
    pub client_free_bytes: u64,
    /// Streams that hold something.
    pub streams: usize,
}

/// Room in the ring that was promised. What is not used goes back when it is dropped.
#[must_use]
pub struct Reservation {
    inner: Rc<Inner>,
    left: u64,
}

impl Reservation {
    /// Ring bytes left in it.
    pub fn left_bytes(&self) -> u64 {
        self.left
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.left > 0 {
            self.inner.space.borrow_mut().give(self.left);
            self.inner.grant();
        }
    }
}

impl Log {
    /// Waits for room for one record of `payload_bytes`.
    ///
    /// # Errors
    /// [`LogError::Full`] where even an empty ring has no such room for the class,
    /// [`LogError::RecordTooLarge`], or the log's failure.
    pub async fn admit(&self, class: Class, payload_bytes: usize) -> Result<Reservation, LogError> {
        let cost = self.inner.cost(payload_bytes)?;
        self.inner.admit(rank(class), cost).await
    }

    /// Waits for room for several records, so that an operation takes all it needs before it
    /// begins.
    ///
    /// # Errors
    /// As [`Log::admit`].
    pub async fn admit_all(
        &self,
        class: Class,
        payloads: impl IntoIterator<Item = usize>,
    ) -> Result<Reservation, LogError> {
        let mut cost = 0;
        for payload_bytes in payloads {
            cost += self.inner.cost(payload_bytes)?;
        }
        self.inner.admit(rank(class), cost).await
    }

    /// Room for one record now, or `None` where its class would have to wait.
    ///
    /// # Errors
    /// As [`Log::admit`].
    pub fn try_admit(
        &self,
        class: Class,
        payload_bytes: usize,
    ) -> Result<Option<Reservation>, LogError> {
        let cost = self.inner.cost(payload_bytes)?;
        self.inner.check_alive()?;
        let taken = self.inner.space.borrow_mut().try_take(rank(class), cost);
        if !taken {
            self.inner.trim(true);
        }
        Ok(taken.then(|| Reservation { inner: self.inner.clone(), left: cost }))
    }

    /// Gives `record` its place after everything that was appended before, at once, and has it
    /// written. Uses a part of `reservation`.
    ///
    /// # Errors
    /// [`LogError::Unreserved`], [`LogError::RecordTooLarge`], [`LogError::TooManyStreams`],
    /// [`LogError::Closed`] or the log's failure; nothing was appended then.
    pub fn append(
        &self,
        stream: StreamId,
        reservation: &mut Reservation,
        record: &[u8],
    ) -> Result<Append, LogError> {
        assert!(Rc::ptr_eq(&self.inner, &reservation.inner), "a reservation of another log");
        self.inner.check_room_for(stream)?;
        let needed_bytes = self.inner.cost(record.len())?;
        if reservation.left < needed_bytes {
            let left_bytes = reservation.left;
            return Err(LogError::Unreserved { needed_bytes, left_bytes });
        }
        self.inner.check_alive()?;
        reservation.left -= needed_bytes;
        let (at, durable) = self.inner.place(needed_bytes, RecordType::Data, stream, [record, &[]]);
        self.inner.state.borrow_mut().streams.note_record(stream, at);
        Ok(Append { lsn: at.lsn, durable })
    }

    /// The stream holds nothing any more: its records and snapshots are not replayed and no longer
    /// keep the ring. A later record of it starts it anew.
    ///
    /// # Errors
    /// [`LogError::UnknownStream`], [`LogError::Full`], or the log's failure.
    pub fn retire(&self, stream: StreamId) -> Result<Append, LogError> {
        self.inner.check_alive()?;
        if !self.inner.state.borrow().streams.is_open(stream) {
            return Err(LogError::UnknownStream { stream });
        }
        let cost = self.inner.take_urgent(0)?;
        let (at, durable) = self.inner.place(cost, RecordType::Retire, stream, [&[], &[]]);
        self.inner.state.borrow_mut().streams.retire(stream, at.lsn);
        Ok(Append { lsn: at.lsn, durable })
    }

    /// The stream that keeps the tail where it is, and where it starts: the next one to write a
    /// checkpoint of.
    pub fn oldest(&self) -> Option<(StreamId, Lsn)> {
        self.inner.state.borrow().streams.oldest().map(|(stream, start)| (stream, start.lsn))
    }

    /// What its device has done since it was opened.
    pub fn device_stats(&self) -> DeviceStats {
        self.inner.dev.stats()
    }

    /// How full the ring is.
    pub fn usage(&self) -> Usage {
        let space = self.inner.space.borrow();
        let below_clients = self.inner.options.reserves_for(self.inner.ring_bytes);
        let kept = below_clients.checkpoint_bytes
            + below_clients.control_bytes
            + below_clients.replication_bytes
            + below_clients.reclaim_bytes;
        Usage {
            ring_bytes: self.inner.ring_bytes,
            used_bytes: space.used(),
            reserved_bytes: space.reserved(),
            free_bytes: space.free(),
            client_free_bytes: space.free().saturating_sub(kept),
            streams: self.inner.state.borrow().streams.len(),
        }
    }

    /// Everything below is durable.
    pub fn durable_through(&self) -> Lsn {
        Lsn(self.inner.state.borrow().durable_through)
    }

    /// The next record gets this LSN or a later one.
    pub fn head(&self) -> Lsn {
        Lsn(self.inner.state.borrow().head())
    }

    /// Has the next groups say that what `tag` stands for is durable through `lsn` (the server: a
    /// data device, and every block whose put record lies at or below). Never goes back.
    ///
    /// # Errors
    /// [`LogError::Full`] past [`crate::format::EXTERNALS_MAX`] tags.
    pub fn note_external_durable(&self, tag: u64, lsn: Lsn) -> Result<(), LogError> {
        let mut state = self.inner.state.borrow_mut();
        let count = state.externals.len();
        if count >= crate::format::EXTERNALS_MAX && !state.externals.contains_key(&tag) {
            return Err(LogError::Full { needed_bytes: 16 });
        }
        let known = state.externals.entry(tag).or_default();
        *known = (*known).max(lsn.0);
        Ok(())
    }

    /// The newest LSN noted for `tag`: now, or as the log said when it was opened.
    pub fn external_durable(&self, tag: u64) -> Option<Lsn> {
        self.inner.state.borrow().externals.get(&tag).map(|lsn| Lsn(*lsn))
    }

    /// Who the log is.
    pub fn identity(&self) -> LogIdentity {
        self.inner.identity
    }

    /// Process starts of this log, this one included.
    pub fn incarnation(&self) -> u64 {
        self.inner.state.borrow().superblock.incarnation
    }

    /// Largest record, in bytes.
    pub fn record_bytes_max(&self) -> usize {
        self.inner.record_bytes_max()
    }

    /// Counts since open.
    pub fn stats(&self) -> LogStats {
        self.inner.state.borrow().stats
    }

    /// Why the log has failed, if it has.
    pub fn failure(&self) -> Option<LogError> {
        self.inner.state.borrow().failed.clone().map(LogError::Failed)
    }

    /// Waits until the log fails. A node whose log has failed must stop serving.
    pub async fn failed(&self) -> LogError {
        loop {
            let failing = self.inner.failing.notified();
            if let Some(failure) = self.failure() {
                return failure;
            }
            failing.await;
        }
    }

    /// Makes everything durable, then writes one more group that says so: a tail that goes missing
    /// after a graceful stop is damage, not a torn tail. Nothing can be appended afterwards.
    ///
    /// # Errors
    /// The log's failure.
    pub async fn close(&self) -> Result<(), LogError> {
        self.inner.check_alive()?;
        self.inner.state.borrow_mut().closing = true;
        self.inner.wake_writer.notify_all();
        loop {
            let changed = self.inner.changed.notified();
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            if self.inner.state.borrow().is_dry() {
                break;
            }
            changed.await;
        }
        let last = self.inner.state.borrow_mut().force_group(&self.inner);
        self.inner.wake_writer.notify_all();
        match last {
            Some(durable) => durable.await,
            // No room for it: what it would add is a better diagnosis, not durability.
            None => Ok(()),
        }
    }
}

impl Inner {
    pub(crate) fn record_bytes_max(&self) -> usize {
        self.group_bytes_max / 4
    }

    /// Ring bytes that a record may take at worst: a group of its own.
    pub(crate) fn cost(&self, payload_bytes: usize) -> Result<u64, LogError> {
        let bytes_max = self.record_bytes_max();
        if payload_bytes > bytes_max {
            return Err(LogError::RecordTooLarge { bytes: payload_bytes, bytes_max });
        }
        let head = header_bytes(crate::format::EXTERNALS_MAX);
        Ok((head + framed_bytes(payload_bytes)).next_multiple_of(BLOCK) as u64)
    }

    pub(crate) fn check_alive(&self) -> Result<(), LogError> {
        let state = self.state.borrow();
        match &state.failed {
            Some(why) => Err(LogError::Failed(why.clone())),
            None if state.closing => Err(LogError::Closed),
            None => Ok(()),
        }
    }

    pub(crate) fn check_room_for(&self, stream: StreamId) -> Result<(), LogError> {
        let state = self.state.borrow();
        if state.streams.len() >= STREAMS_MAX && !state.streams.knows(stream) {
            return Err(LogError::TooManyStreams { streams_max: STREAMS_MAX });
        }
        Ok(())
    }

    /// Room for a small record of the checkpoint rank, without waiting.
    pub(crate) fn take_urgent(&self, payload_bytes: usize) -> Result<u64, LogError> {
        let needed_bytes = self.cost(payload_bytes)?;
        if self.space.borrow_mut().take_urgent(CHECKPOINT_RANK, needed_bytes) {
            Ok(needed_bytes)
        } else {
            Err(LogError::Full { needed_bytes })
        }
    }

    pub(crate) async fn admit(
        self: &Rc<Self>,
        rank: usize,
        cost: u64,
    ) -> Result<Reservation, LogError> {
        self.check_alive()?;
        let waiter = {
            let mut space = self.space.borrow_mut();
            if cost > space.largest(rank) {
                return Err(LogError::Full { needed_bytes: cost });
            }
            if space.try_take(rank, cost) {
                return Ok(Reservation { inner: self.clone(), left: cost });
            }
            space.enqueue(rank, cost)
        };
        self.trim_if_worthwhile();
        let mut guard = WaitGuard { inner: self, waiter, cost };
        std::future::poll_fn(|cx| {
            if guard.waiter.granted.get() {
                return Poll::Ready(Ok(()));
            }
            if let Err(error) = self.check_alive() {
                return Poll::Ready(Err(error));
            }
            *guard.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await?;
        guard.cost = 0;
        Ok(Reservation { inner: self.clone(), left: cost })
    }

    /// Uses `left` of the reservation: for the log's own records.
    pub(crate) fn spend(&self, reservation: &mut Reservation, cost: u64) -> u64 {
        assert!(reservation.left >= cost, "the log reserves what it writes");
        reservation.left -= cost;
        cost
    }

    /// Serves those who wait for room.
    pub(crate) fn grant(&self) {
        let wakers = {
            let mut space = self.space.borrow_mut();
            if !space.waiting() {
                return;
            }
            space.grant()
        };
        for waker in wakers {
            waker.wake();
        }
    }

    /// Puts a record into the forming group; `cost` was reserved for it.
    pub(crate) fn place(
        &self,
        cost: u64,
        record_type: RecordType,
        stream: StreamId,
        parts: [&[u8]; 2],
    ) -> (Start, Durable) {
        let (placed, head) = {
            let mut state = self.state.borrow_mut();
            let placed = state.push(self, record_type, stream, parts);
            (placed, state.head())
        };
        {
            let mut space = self.space.borrow_mut();
            space.settle(cost, head);
            let room = space.trim() + self.ring_bytes;
            assert!(head <= room, "the ring's head at {head} would overwrite its tail ({room})");
        }
        self.grant();
        self.wake_writer.notify_all();
        placed
    }

    /// Nothing is acknowledged any more.
    pub(crate) fn fail(&self, why: &str) {
        let (completions, wakers) = {
            let mut state = self.state.borrow_mut();
            if state.failed.is_some() {
                return;
            }
            tracing::error!(device = %self.dev.info().name, why, "the commit log has failed");
            state.failed = Some(why.to_owned());
            let mut completions: Vec<Completion> =
                state.in_flight.drain(..).map(|group| group.completion).collect();
            completions.extend(state.closed.drain(..).map(|group| group.completion));
            completions.extend(state.forming.take().map(|group| group.completion));
            (completions, self.space.borrow_mut().abandon())
        };
        for completion in completions {
            completion.resolve(Err(LogError::Failed(why.to_owned())));
        }
        for waker in wakers {
            waker.wake();
        }
        self.changed.notify_all();
        self.failing.notify_all();
        self.wake_writer.notify_all();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        for group in state.closed.drain(..).chain(state.forming.take()) {
            group.completion.resolve(Err(LogError::Closed));
        }
        // The writer looks, finds nobody, and ends.
        self.wake_writer.notify_all();
    }
}

/// Undoes the wait of an admission that is dropped before its turn, or between grant and poll.
struct WaitGuard<'a> {
    inner: &'a Inner,
    waiter: Rc<crate::space::Waiter>,
    cost: u64,
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        if self.cost == 0 {
            return;
        }
        self.waiter.gone.set(true);
        if self.waiter.granted.get() {
            self.inner.space.borrow_mut().give(self.cost);
        }
        // Those behind may fit where this one did not.
        self.inner.grant();
    }
}

impl State {
    /// Where the ring is taken up to, the forming group included.
    pub(crate) fn head(&self) -> u64 {
        self.forming.as_ref().map_or(self.next_lsn, |group| {
            group.lsn + group.bytes.len().next_multiple_of(BLOCK) as u64
        })
    }

    /// True when everything that was appended is durable.
    pub(crate) fn is_dry(&self) -> bool {
        self.forming.is_none() && self.closed.is_empty() && self.in_flight.is_empty()
    }

    fn push(
        &mut self,
        inner: &Inner,
        record_type: RecordType,
        stream: StreamId,
        parts: [&[u8]; 2],
    ) -> (Start, Durable) {
        let framed = framed_bytes(parts[0].len() + parts[1].len());
        let full = |group: &Forming| group.bytes.len() + framed > group.limit;
        if self.forming.as_ref().is_some_and(full) {
            self.close_forming(inner, true);
        }
        if self.forming.is_none() {
            let group = self.open_group(inner);
            if full(&group) {
                // Only an empty group fits before the end of the lap: it leads over the gap.
                self.forming = Some(group);
                self.close_forming(inner, true);
                self.forming = Some(self.open_group(inner));
            } else {
                self.forming = Some(group);
            }
        }
        let group = self.forming.as_mut().expect("opened above");
        let lsn = Lsn(group.lsn + group.bytes.len() as u64);
        push_record(&mut group.bytes, record_type, stream, parts);
        group.records += 1;
        self.stats.records += 1;
        self.stats.record_bytes += framed as u64;
        (Start { lsn, group: Lsn(group.lsn), snapshot: false }, group.completion.wait())
    }

    fn open_group(&mut self, inner: &Inner) -> Forming {
        let to_lap_end = inner.ring_bytes - self.next_lsn % inner.ring_bytes;
        let limit = usize::try_from(to_lap_end).unwrap_or(usize::MAX).min(inner.group_bytes_max);
        let external_slots = self.externals.len();
        let mut bytes = self.idle_bytes.pop().unwrap_or_default();
        bytes.resize(header_bytes(external_slots), 0);
        Forming {
            lsn: self.next_lsn,
            bytes,
            limit,
            span: 0,
            external_slots,
            records: 0,
            completion: Completion::default(),
        }
    }

    /// Ends the forming group. `for_room`: because the next record did not fit, in which case the
    /// rest of a lap is skipped.
    pub(crate) fn close_forming(&mut self, inner: &Inner, for_room: bool) {
        let Some(mut group) = self.forming.take() else { return };
        let skips_to_lap_end = for_room && group.limit < inner.group_bytes_max;
        group.span =
            if skips_to_lap_end { group.limit } else { group.bytes.len().next_multiple_of(BLOCK) };
        self.next_lsn = group.lsn + group.span as u64;
        self.closed.push_back(group);
    }

    /// Takes the memory of a group that was sealed.
    pub(crate) fn keep_bytes(&mut self, mut bytes: Vec<u8>) {
        if self.idle_bytes.len() < IDLE_BYTES_MAX {
            bytes.clear();
            self.idle_bytes.push(bytes);
        }
    }

    /// A group even if there is nothing to say, where the ring has room for it.
    pub(crate) fn force_group(&mut self, inner: &Inner) -> Option<Durable> {
        if self.forming.is_none() {
            if self.next_lsn + BLOCK as u64 > inner.space.borrow().trim() + inner.ring_bytes {
                return None;
            }
            self.forming = Some(self.open_group(inner));
        }
        let durable = self.forming.as_ref().map(|group| group.completion.wait());
        let head = self.head();
        inner.space.borrow_mut().set_head(head);
        durable
    }
}
