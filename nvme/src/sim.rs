//! A simulated disk: the medium, which outlives the processes that use it.
//!
//! The disk belongs to the simulator's world: its operations are events in the root domain, so that
//! killing a process stops nothing that it had submitted. Each incarnation of a process gets its
//! own [`SimDevice`] from [`SimDisk::attach`].
//!
//! A block is in one of three places: on the *medium* (survives everything), in the *cache*
//! (completed but unflushed; survives a process, and after a power cut any version of it or none is
//! there), or *in flight* (submitted, not completed; after any crash any subset of its blocks is
//! there).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::sync::Notify;
use bb_runtime::{Instant, Rt};

use crate::device::{BLOCK_BYTES, DeviceInfo};
use crate::sim_device::SimDevice;
use crate::sim_faults::{FaultCounts, FaultKind, FaultRates, Faults};

pub(crate) type Block = Rc<[u8]>;

/// How long operations take on a simulated disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimLatency {
    /// Shortest read.
    pub read: Duration,
    /// Shortest write into the cache.
    pub write: Duration,
    /// Shortest flush, and what a durable write takes longer.
    pub flush: Duration,
    /// Bytes per microsecond that move on top of that.
    pub bytes_per_us: u64,
    /// Up to this much more, drawn per operation.
    pub jitter: Duration,
    /// How many times longer a [`FaultKind::Slow`] operation takes.
    pub slow_factor: u32,
}

impl Default for SimLatency {
    fn default() -> Self {
        Self {
            read: Duration::from_micros(60),
            write: Duration::from_micros(15),
            flush: Duration::from_micros(40),
            bytes_per_us: 2_000,
            jitter: Duration::from_micros(50),
            slow_factor: 200,
        }
    }
}

/// What a simulated disk is.
#[derive(Clone, Debug)]
pub struct SimDiskOptions {
    /// Name in errors and statistics.
    pub name: String,
    /// Size in bytes, a multiple of [`BLOCK_BYTES`].
    pub capacity_bytes: u64,
    /// False for a disk whose completed writes are durable.
    pub volatile_cache: bool,
    /// How long operations take.
    pub latency: SimLatency,
    /// Probabilities of faults.
    pub rates: FaultRates,
}

impl SimDiskOptions {
    /// A faultless disk with a volatile cache.
    pub fn new(name: &str, capacity_bytes: u64) -> Self {
        Self {
            name: name.to_owned(),
            capacity_bytes,
            volatile_cache: true,
            latency: SimLatency::default(),
            rates: FaultRates::default(),
        }
    }
}

/// Something that happened on the disk; for checks like "acknowledged only after the flush".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimTrace {
    /// When.
    pub at: Instant,
    /// What.
    pub event: SimEvent,
    /// Offset in bytes (0 for a flush).
    pub offset: u64,
    /// Length in bytes (0 for a flush).
    pub len: u64,
}

/// Kinds of [`SimTrace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimEvent {
    /// A write was submitted.
    WriteSubmitted,
    /// A write completed; it may be in the cache only.
    WriteCompleted,
    /// A range became durable, through a flush or a durable write.
    Durable,
    /// A flush was submitted.
    FlushSubmitted,
    /// A flush completed.
    FlushCompleted,
}

pub(crate) struct Version {
    /// Order of completion.
    pub(crate) completed: u64,
    pub(crate) data: Block,
}

pub(crate) struct PendingWrite {
    pub(crate) offset: u64,
    pub(crate) blocks: Vec<Block>,
}

/// Which operations hang.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stalled {
    Nothing,
    Reads,
    Everything,
}

pub(crate) struct State {
    pub(crate) medium: BTreeMap<u64, Block>,
    /// Unflushed versions of a block, oldest first.
    pub(crate) cache: BTreeMap<u64, Vec<Version>>,
    pub(crate) in_flight: BTreeMap<u64, PendingWrite>,
    pub(crate) bad_blocks: BTreeMap<u64, ()>,
    pub(crate) faults: Faults,
    pub(crate) next_op: u64,
    pub(crate) completions: u64,
    pub(crate) incarnation: u64,
    pub(crate) stalled: Stalled,
    pub(crate) gone: bool,
    /// Set by a failed flush; ends with the incarnation.
    pub(crate) failed: Option<String>,
    trace: Option<Vec<SimTrace>>,
}

pub(crate) struct Disk {
    pub(crate) rt: Rt,
    pub(crate) info: DeviceInfo,
    pub(crate) latency: SimLatency,
    pub(crate) state: RefCell<State>,
    pub(crate) released: Notify,
}

/// The medium. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    pub(crate) disk: Rc<Disk>,
}

/// A copy of everything that is durable on a disk.
#[derive(Clone)]
pub struct SimImage {
    blocks: BTreeMap<u64, Block>,
}

impl SimDisk {
    /// An empty disk (it reads as zeros). `rt` must be a handle in the root domain.
    ///
    /// # Panics
    /// When the capacity is not a multiple of [`BLOCK_BYTES`].
    pub fn new(rt: &Rt, options: &SimDiskOptions) -> Self {
        assert!(options.capacity_bytes.is_multiple_of(BLOCK_BYTES), "capacity in whole blocks");
        let mut faults = Faults::default();
        faults.rates = options.rates;
        let state = State {
            medium: BTreeMap::new(),
            cache: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            bad_blocks: BTreeMap::new(),
            faults,
            next_op: 0,
            completions: 0,
            incarnation: 0,
            stalled: Stalled::Nothing,
            gone: false,
            failed: None,
            trace: None,
        };
        let info = DeviceInfo {
            name: options.name.clone(),
            capacity_bytes: options.capacity_bytes,
            volatile_cache: options.volatile_cache,
        };
        Self {
            disk: Rc::new(Disk {
                rt: rt.clone(),
                info,
                latency: options.latency,
                state: RefCell::new(state),
                released: Notify::new(),
            }),
        }
    }

    /// The device of a new incarnation. Ends the one before as [`SimDisk::process_crash`] does: an
    /// old process's requests never reach the medium after a new one has opened it (the real
    /// providers get this from an exclusive lock that lives as long as the requests).
    pub fn attach(&self) -> Rc<SimDevice> {
        self.process_crash();
        Rc::new(SimDevice::new(self.disk.clone(), self.disk.state.borrow().incarnation))
    }

    /// The process that used the disk is gone: its cached writes stay, its writes in flight land
    /// whole, in part or not at all, and its device answers nothing any more.
    pub fn process_crash(&self) {
        self.disk.end_incarnation();
    }

    /// The power fails: writes in flight land in part, and of each unflushed block any version or
    /// none stays.
    pub fn power_loss(&self) {
        self.disk.end_incarnation();
        let mut state = self.disk.state.borrow_mut();
        let state = &mut *state;
        for (block, mut versions) in std::mem::take(&mut state.cache) {
            let keep = self.disk.draw(versions.len() as u64 + 1);
            match usize::try_from(keep).ok().filter(|keep| *keep < versions.len()) {
                Some(keep) => state.put(block, versions.swap_remove(keep).data),
                None => state.faults.counts.hit(FaultKind::LostUnflushed),
            }
        }
    }

    /// Blocks that are written and not flushed: what a power cut now would put at stake.
    pub fn unflushed_blocks(&self) -> usize {
        self.disk.state.borrow().cache.len()
    }

    /// The next operation of the right sort meets `kind`. Rot, stalls and loss of the disk have
    /// their own calls.
    pub fn inject(&self, kind: FaultKind) {
        self.disk.state.borrow_mut().faults.inject(kind, None);
    }

    /// The next operation of the right sort that touches `offset..offset + len` meets `kind`.
    pub fn inject_at(&self, kind: FaultKind, offset: u64, len: u64) {
        self.disk.state.borrow_mut().faults.inject(kind, Some((offset, len)));
    }

    /// Changes the probabilities.
    pub fn set_rates(&self, rates: FaultRates) {
        self.disk.state.borrow_mut().faults.rates = rates;
    }

    /// Flips a bit at rest in the block that holds `offset`.
    pub fn rot(&self, offset: u64) {
        let bit = self.disk.draw(BLOCK_BYTES * 8);
        let mut state = self.disk.state.borrow_mut();
        state.rot(offset / BLOCK_BYTES, bit);
        state.faults.counts.hit(FaultKind::BitRot);
    }

    /// Makes the block that holds `offset` unreadable until it is written again.
    pub fn break_block(&self, offset: u64) {
        self.disk.state.borrow_mut().bad_blocks.insert(offset / BLOCK_BYTES, ());
    }

    /// From now on every operation hangs, until [`SimDisk::release`].
    pub fn stall(&self) {
        self.disk.state.borrow_mut().stalled = Stalled::Everything;
    }

    /// From now on every read hangs, until [`SimDisk::release`]; what it finds then is what there is
    /// then.
    pub fn stall_reads(&self) {
        self.disk.state.borrow_mut().stalled = Stalled::Reads;
    }

    /// Ends a stall; what hung goes on.
    pub fn release(&self) {
        self.disk.state.borrow_mut().stalled = Stalled::Nothing;
        self.disk.released.notify_all();
    }

    /// Takes the disk away (every operation fails) or brings it back as it was.
    pub fn set_gone(&self, gone: bool) {
        self.disk.state.borrow_mut().gone = gone;
        self.disk.released.notify_all();
    }

    /// How often each fault happened.
    pub fn fault_counts(&self) -> FaultCounts {
        self.disk.state.borrow().faults.counts.clone()
    }

    /// Size in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.disk.info.capacity_bytes
    }

    /// True if what a read would return for this range would survive a power cut.
    pub fn is_durable(&self, offset: u64, len: u64) -> bool {
        let state = self.disk.state.borrow();
        let range = offset / BLOCK_BYTES..(offset + len).div_ceil(BLOCK_BYTES);
        state.cache.range(range).next().is_none()
    }

    /// Starts to record what happens; see [`SimDisk::take_trace`].
    pub fn start_trace(&self) {
        self.disk.state.borrow_mut().trace = Some(Vec::new());
    }

    /// What was recorded since the last call.
    pub fn take_trace(&self) -> Vec<SimTrace> {
        self.disk.state.borrow_mut().trace.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// What a read would return, without time, faults or counts. For models and tests.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let state = self.disk.state.borrow();
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = usize::try_from(at % BLOCK_BYTES).unwrap_or(0);
            let part = (len - done).min(BLOCK_LEN - within);
            if let Some(block) = state.current(at / BLOCK_BYTES) {
                bytes[done..done + part].copy_from_slice(&block[within..within + part]);
            }
            done += part;
        }
        bytes
    }

    /// Overwrites bytes on the medium behind everybody's back. For fixtures and directed damage.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.disk.state.borrow_mut();
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = usize::try_from(at % BLOCK_BYTES).unwrap_or(0);
            let part = (bytes.len() - done).min(BLOCK_LEN - within);
            let number = at / BLOCK_BYTES;
            let mut block =
                state.current(number).map_or_else(|| vec![0; BLOCK_LEN], |old| old.to_vec());
            block[within..within + part].copy_from_slice(&bytes[done..done + part]);
            state.cache.remove(&number);
            state.put(number, block.into());
            done += part;
        }
    }

    /// A copy of what is durable.
    pub fn image(&self) -> SimImage {
        SimImage { blocks: self.disk.state.borrow().medium.clone() }
    }

    /// Makes the disk what it was when `image` was taken, for a process that starts afterwards.
    pub fn restore(&self, image: &SimImage) {
        self.disk.end_incarnation();
        let mut state = self.disk.state.borrow_mut();
        state.cache.clear();
        state.bad_blocks.clear();
        state.medium.clone_from(&image.blocks);
    }

    /// Offsets of blocks that are not all zeros, in order.
    pub fn blocks_in_use(&self) -> Vec<u64> {
        let state = self.disk.state.borrow();
        let mut blocks: Vec<u64> = state
            .medium
            .keys()
            .chain(state.cache.keys())
            .map(|block| block * BLOCK_BYTES)
            .collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }
}

pub(crate) const BLOCK_LEN: usize = 4096;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_BYTES);

impl Disk {
    pub(crate) fn draw(&self, bound: u64) -> u64 {
        self.rt.random_below(bound)
    }

    /// Writes in flight find their fate, and their tasks find nothing left to do.
    fn end_incarnation(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        for (_, write) in std::mem::take(&mut state.in_flight) {
            self.land_partly(state, &write);
        }
        state.incarnation += 1;
        state.failed = None;
        self.released.notify_all();
    }

    /// Whole, not at all, or any subset of the blocks; never durable for having been asked to be.
    pub(crate) fn land_partly(&self, state: &mut State, write: &PendingWrite) {
        let fate = self.draw(4);
        let mut landed = 0;
        state.completions += 1;
        for (index, block) in write.blocks.iter().enumerate() {
            let lands = match fate {
                0 => false,
                1 => true,
                _ => self.draw(2) == 0,
            };
            if lands {
                landed += 1;
                state.complete_block(write.offset / BLOCK_BYTES + index as u64, block.clone());
            }
        }
        if !self.info.volatile_cache {
            state.flush_through(state.completions);
        }
        if landed > 0 && landed < write.blocks.len() {
            state.faults.counts.hit(FaultKind::TornWrite);
        }
    }

    pub(crate) fn note(&self, state: &mut State, event: SimEvent, offset: u64, len: u64) {
        if let Some(trace) = &mut state.trace {
            trace.push(SimTrace { at: self.rt.now(), event, offset, len });
        }
    }
}

impl State {
    /// What a read sees.
    pub(crate) fn current(&self, block: u64) -> Option<&Block> {
        let cached = self.cache.get(&block).and_then(|versions| versions.last());
        cached.map(|version| &version.data).or_else(|| self.medium.get(&block))
    }

    /// Onto the medium. Zeros take no room.
    pub(crate) fn put(&mut self, block: u64, data: Block) {
        self.bad_blocks.remove(&block);
        if data.iter().all(|byte| *byte == 0) {
            self.medium.remove(&block);
        } else {
            self.medium.insert(block, data);
        }
    }

    /// Into the cache.
    pub(crate) fn complete_block(&mut self, block: u64, data: Block) {
        self.bad_blocks.remove(&block);
        let completed = self.completions;
        self.cache.entry(block).or_default().push(Version { completed, data });
    }

    /// Moves what had completed by `through` to the medium.
    pub(crate) fn flush_through(&mut self, through: u64) -> Vec<u64> {
        let mut flushed = Vec::new();
        for block in self.cache.keys().copied().collect::<Vec<_>>() {
            let versions = self.cache.entry(block).or_default();
            let covered = versions.partition_point(|version| version.completed <= through);
            let last = versions.drain(..covered).next_back();
            if versions.is_empty() {
                self.cache.remove(&block);
            }
            if let Some(version) = last {
                self.put(block, version.data);
                flushed.push(block);
            }
        }
        flushed
    }

    pub(crate) fn rot(&mut self, block: u64, bit: u64) {
        let mut data = self.current(block).map_or_else(|| vec![0; BLOCK_LEN], |old| old.to_vec());
        let at = usize::try_from(bit / 8).unwrap_or(0) % BLOCK_LEN;
        data[at] ^= 1 << (bit % 8);
        self.cache.remove(&block);
        self.put(block, data.into());
    }
}
