//! One process's view of a simulated disk.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::{Buf, BufMut, Instant};

use crate::device::{
    BLOCK_BYTES, Device, DeviceError, DeviceInfo, DeviceStats, Durability, IoFuture, OpStats,
    check_range,
};
use crate::sim::{BLOCK_LEN, Block, Disk, PendingWrite, SimEvent, Stalled, State};
use crate::sim_faults::FaultKind;

/// `EIO`.
const EIO: i32 = 5;

/// The device of one incarnation; see [`crate::SimDisk::attach`].
pub struct SimDevice {
    disk: Rc<Disk>,
    incarnation: u64,
    stats: Rc<RefCell<DeviceStats>>,
}

type Pick = fn(&mut DeviceStats) -> &mut OpStats;

/// An operation between its submission and its end.
struct Op {
    disk: Rc<Disk>,
    incarnation: u64,
    stats: Rc<RefCell<DeviceStats>>,
    pick: Pick,
    started: Instant,
    offset: u64,
    len: u64,
}

impl SimDevice {
    pub(crate) fn new(disk: Rc<Disk>, incarnation: u64) -> Self {
        Self { disk, incarnation, stats: Rc::default() }
    }

    fn op(&self, pick: Pick, offset: u64, len: u64) -> Op {
        Op {
            disk: self.disk.clone(),
            incarnation: self.incarnation,
            stats: self.stats.clone(),
            pick,
            started: self.disk.rt.now(),
            offset,
            len,
        }
    }

    /// Starts an operation in the disk's world: dropping the answer stops nothing.
    fn submit<T: 'static>(
        &self,
        operation: impl Future<Output = Result<T, DeviceError>> + 'static,
    ) -> IoFuture<T> {
        let running = self.disk.rt.spawn(operation);
        Box::pin(async move {
            running
                .await
                .unwrap_or_else(|_| Err(DeviceError::Failed("the simulation has ended".to_owned())))
        })
    }

    fn check(&self, offset: u64, len: u64, address: usize) -> Result<(), DeviceError> {
        if !address.is_multiple_of(BLOCK_LEN) {
            return Err(DeviceError::Range { offset, len });
        }
        check_range(&self.disk.info, offset, len)
    }
}

impl Op {
    /// The time it takes, a stall, and the end of the device or of the process.
    async fn pass_time(&self, base: Duration, reads: bool) -> Result<(), DeviceError> {
        let latency = self.disk.latency;
        let moved_us = self.len / latency.bytes_per_us.max(1);
        let jitter_ns = u64::try_from(latency.jitter.as_nanos()).unwrap_or(0);
        let jitter = Duration::from_nanos(self.disk.draw(jitter_ns + 1));
        let mut time = base + Duration::from_micros(moved_us) + jitter;
        if self.strikes(&mut self.disk.state.borrow_mut(), FaultKind::Slow) {
            time *= latency.slow_factor;
        }
        self.disk.rt.sleep(time).await;
        let mut counted = false;
        loop {
            let released = self.disk.released.notified();
            {
                let mut state = self.disk.state.borrow_mut();
                self.alive(&mut state)?;
                let hangs = match state.stalled {
                    Stalled::Nothing => false,
                    Stalled::Reads => reads,
                    Stalled::Everything => true,
                };
                if !hangs {
                    return Ok(());
                }
                if !counted {
                    state.faults.counts.hit(FaultKind::Stall);
                    counted = true;
                }
            }
            released.await;
        }
    }

    fn alive(&self, state: &mut State) -> Result<(), DeviceError> {
        if state.incarnation != self.incarnation {
            return Err(DeviceError::Failed("the process that opened it has ended".to_owned()));
        }
        if state.gone {
            state.faults.counts.hit(FaultKind::Gone);
            return Err(DeviceError::Failed("the device is gone".to_owned()));
        }
        match &state.failed {
            Some(why) => Err(DeviceError::Failed(why.clone())),
            None => Ok(()),
        }
    }

    fn strikes(&self, state: &mut State, kind: FaultKind) -> bool {
        state.faults.strikes(kind, (self.offset, self.len), |bound| self.disk.draw(bound))
    }

    fn end<T>(&self, result: Result<T, DeviceError>) -> Result<T, DeviceError> {
        let mut stats = self.stats.borrow_mut();
        let op = (self.pick)(&mut stats);
        let took_us = self.disk.rt.now().since(self.started).as_micros();
        let bucket = usize::try_from(took_us.max(1).ilog2()).unwrap_or(0).min(31);
        op.latency_us_log2[bucket] += 1;
        if result.is_ok() {
            op.count += 1;
            op.bytes += self.len;
        } else {
            op.errors += 1;
        }
        result
    }

    fn first_block(&self) -> u64 {
        self.offset / BLOCK_BYTES
    }

    fn block_count(&self) -> u64 {
        self.len / BLOCK_BYTES
    }

    async fn read(self, mut buf: BufMut) -> Result<BufMut, DeviceError> {
        let timed = self.pass_time(self.disk.latency.read, true).await;
        let result = timed.and_then(|()| self.read_blocks(&mut buf));
        self.end(result.map(|()| buf))
    }

    fn read_blocks(&self, buf: &mut [u8]) -> Result<(), DeviceError> {
        let mut state = self.disk.state.borrow_mut();
        if self.strikes(&mut state, FaultKind::ReadError) {
            return Err(DeviceError::Io { errno: EIO, offset: self.offset });
        }
        let range = self.first_block()..self.first_block() + self.block_count();
        if let Some((bad, ())) = state.bad_blocks.range(range).next() {
            let offset = *bad * BLOCK_BYTES;
            state.faults.counts.hit(FaultKind::ReadError);
            return Err(DeviceError::Io { errno: EIO, offset });
        }
        if self.strikes(&mut state, FaultKind::BitRot) {
            let block = self.first_block() + self.disk.draw(self.block_count());
            state.rot(block, self.disk.draw(BLOCK_BYTES * 8));
        }
        for (index, part) in buf.chunks_exact_mut(BLOCK_LEN).enumerate() {
            match state.current(self.first_block() + index as u64) {
                Some(block) => part.copy_from_slice(block),
                None => part.fill(0),
            }
        }
        Ok(())
    }

    async fn write(self, id: u64, durability: Durability) -> Result<(), DeviceError> {
        let latency = self.disk.latency;
        let base = match durability {
            Durability::Cached => latency.write,
            Durability::Durable => latency.write + latency.flush,
        };
        let timed = self.pass_time(base, false).await;
        let result = {
            let mut state = self.disk.state.borrow_mut();
            match (timed, state.in_flight.remove(&id)) {
                (Ok(()), Some(write)) => self.complete_write(&mut state, &write, durability),
                // What a failing device had in flight is anybody's guess.
                (Err(error), Some(write)) => {
                    self.disk.land_partly(&mut state, &write);
                    Err(error)
                }
                (timed, None) => timed.and(Err(DeviceError::Failed("crashed".to_owned()))),
            }
        };
        if result.is_ok() && durability == Durability::Durable {
            self.stats.borrow_mut().durable_writes += 1;
        }
        self.end(result)
    }

    fn complete_write(
        &self,
        state: &mut State,
        write: &PendingWrite,
        durability: Durability,
    ) -> Result<(), DeviceError> {
        if self.strikes(state, FaultKind::WriteError) {
            self.disk.land_partly(state, write);
            return Err(DeviceError::Io { errno: EIO, offset: self.offset });
        }
        // A durable write is a write and the flush that covers it.
        if durability == Durability::Durable && self.strikes(state, FaultKind::FailedFlush) {
            self.disk.land_partly(state, write);
            return Err(self.fail_flush(state));
        }
        self.disk.note(state, SimEvent::WriteCompleted, self.offset, self.len);
        if self.strikes(state, FaultKind::LostWrite) {
            return Ok(());
        }
        let blocks_total = self.disk.info.capacity_bytes / BLOCK_BYTES;
        let first = if self.strikes(state, FaultKind::MisdirectedWrite) {
            self.disk.draw(blocks_total - self.block_count() + 1)
        } else {
            self.first_block()
        };
        state.completions += 1;
        let durable = durability == Durability::Durable || !self.disk.info.volatile_cache;
        for (number, block) in (first..).zip(&write.blocks) {
            if durable {
                state.cache.remove(&number);
                state.put(number, block.clone());
            } else {
                state.complete_block(number, block.clone());
            }
        }
        if durable {
            self.disk.note(state, SimEvent::Durable, self.offset, self.len);
        }
        Ok(())
    }

    async fn flush(self, through: u64) -> Result<(), DeviceError> {
        let timed = self.pass_time(self.disk.latency.flush, false).await;
        let result = timed.and_then(|()| {
            let mut state = self.disk.state.borrow_mut();
            if self.strikes(&mut state, FaultKind::FailedFlush) {
                return Err(self.fail_flush(&mut state));
            }
            for block in state.flush_through(through) {
                self.disk.note(&mut state, SimEvent::Durable, block * BLOCK_BYTES, BLOCK_BYTES);
            }
            self.disk.note(&mut state, SimEvent::FlushCompleted, 0, 0);
            Ok(())
        });
        self.end(result)
    }

    fn fail_flush(&self, state: &mut State) -> DeviceError {
        let why = "a flush failed".to_owned();
        state.failed = Some(why.clone());
        self.lose_some_of_the_cache(state);
        DeviceError::Failed(why)
    }

    /// As kernels do: after a failed flush, pages count as clean whether they were written or not.
    fn lose_some_of_the_cache(&self, state: &mut State) {
        for (block, versions) in std::mem::take(&mut state.cache) {
            let last = versions.into_iter().next_back();
            if let Some(version) = last.filter(|_| self.disk.draw(2) == 0) {
                state.put(block, version.data);
            }
        }
    }

    async fn unmap(self) -> Result<(), DeviceError> {
        let timed = self.pass_time(self.disk.latency.write, false).await;
        let result = timed.map(|()| {
            let mut state = self.disk.state.borrow_mut();
            // Undefined afterwards: gone, or still there.
            for block in self.first_block()..self.first_block() + self.block_count() {
                if self.disk.draw(2) == 0 {
                    state.cache.remove(&block);
                    state.medium.remove(&block);
                }
            }
        });
        self.end(result)
    }
}

impl Device for SimDevice {
    fn info(&self) -> &DeviceInfo {
        &self.disk.info
    }

    fn read(&self, offset: u64, buf: BufMut) -> IoFuture<BufMut> {
        let len = buf.len() as u64;
        if let Err(error) = self.check(offset, len, buf.as_ptr() as usize) {
            return Box::pin(std::future::ready(Err(error)));
        }
        self.submit(self.op(|stats| &mut stats.read, offset, len).read(buf))
    }

    fn write(&self, offset: u64, buf: Buf, durability: Durability) -> IoFuture<()> {
        let len = buf.len() as u64;
        if let Err(error) = self.check(offset, len, buf.as_ptr() as usize) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let mut state = self.disk.state.borrow_mut();
        if state.incarnation != self.incarnation {
            let error = DeviceError::Failed("the process that opened it has ended".to_owned());
            return Box::pin(std::future::ready(Err(error)));
        }
        let id = state.next_op;
        state.next_op += 1;
        let blocks: Vec<Block> = buf.chunks_exact(BLOCK_LEN).map(Block::from).collect();
        state.in_flight.insert(id, PendingWrite { offset, blocks });
        self.disk.note(&mut state, SimEvent::WriteSubmitted, offset, len);
        drop(state);
        let operation = self.op(|stats| &mut stats.write, offset, len).write(id, durability);
        self.submit(async move {
            // Held to the end, as a card that reads from it would.
            let _buf = buf;
            operation.await
        })
    }

    fn flush(&self) -> IoFuture<()> {
        let mut state = self.disk.state.borrow_mut();
        let through = state.completions;
        self.disk.note(&mut state, SimEvent::FlushSubmitted, 0, 0);
        drop(state);
        self.submit(self.op(|stats| &mut stats.flush, 0, 0).flush(through))
    }

    fn unmap(&self, offset: u64, len: u64) -> IoFuture<()> {
        if let Err(error) = check_range(&self.disk.info, offset, len) {
            return Box::pin(std::future::ready(Err(error)));
        }
        self.submit(self.op(|stats| &mut stats.unmap, offset, len).unmap())
    }

    fn stats(&self) -> DeviceStats {
        self.stats.borrow().clone()
    }
}
