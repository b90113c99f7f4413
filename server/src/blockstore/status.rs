//! How a device is doing: for clients that choose where to write, and for people.

use std::cell::Cell;
use std::time::Duration;

use bb_proto::meta::DeviceStatus;
use bb_transport::Vitals;

use super::BlockStore;
use super::table::EntryId;

/// Writes and reads under way at which a device counts as full.
const DEPTH_FULL: u64 = 128;
/// Time of a put at which a device counts as full, in microseconds.
const PUT_US_FULL: u64 = 100_000;
/// Weight of a new put in the mean: the last ten or so count.
const MEAN_SHIFT: u32 = 3;

#[derive(Default)]
pub(super) struct Load {
    operations: Cell<u64>,
    reads: Cell<u64>,
    put_us: Cell<u64>,
}

pub(super) struct Reading<'a>(&'a Load);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.reads.set(self.0.reads.get() - 1);
    }
}

impl Load {
    pub(super) fn read(&self) -> Reading<'_> {
        self.operations.set(self.operations.get() + 1);
        self.reads.set(self.reads.get() + 1);
        Reading(self)
    }

    pub(super) fn put_took(&self, time: Duration) {
        self.operations.set(self.operations.get() + 1);
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX) >> MEAN_SHIFT;
        let old = self.put_us.get();
        self.put_us.set(old - (old >> MEAN_SHIFT) + us);
    }

    /// Puts and gets so far.
    pub(super) fn operations(&self) -> u64 {
        self.operations.get()
    }
}

impl BlockStore {
    /// What to say of this device with every reply.
    pub fn vitals(&self) -> Vitals {
        let depth = u64::from(self.flusher.depth()) + self.load.reads.get();
        let by_depth = depth * 1000 / DEPTH_FULL;
        // A device without traffic is not slow because its last put was.
        let by_time = if depth == 0 { 0 } else { self.load.put_us.get() * 1000 / PUT_US_FULL };
        let free_bytes = self.state.borrow().space.client_free_bytes();
        let failed = self.failed.borrow().is_some();
        let load = if failed { 1000 } else { by_depth.max(by_time).min(1000) };
        let free_mib = if failed { 0 } else { free_bytes >> 20 };
        Vitals {
            tick: self.env.shared.tick(),
            load: u32::try_from(load).unwrap_or(1000),
            free_mib: u32::try_from(free_mib).unwrap_or(u32::MAX),
        }
    }

    /// For `bbadm cluster status`.
    pub fn status(&self) -> DeviceStatus {
        let state = self.state.borrow();
        let done = self.dev.stats();
        DeviceStatus {
            device: self.superblock.device.0,
            name: self.dev.info().name.clone(),
            capacity_bytes: state.space.capacity_bytes(),
            used_bytes: state.space.used_bytes(),
            unmap_bytes: state.space.unmap_bytes(),
            problem: self.problem().unwrap_or_default(),
            blocks: state.table.len() as u64,
            read_bytes: done.read.bytes,
            written_bytes: done.write.bytes,
            flushes: done.flushes(),
        }
    }

    /// Memory for what is known of the device's blocks and space, in bytes (rule 16).
    pub fn memory_bytes(&self) -> usize {
        let state = self.state.borrow();
        // A B-tree is about three quarters full.
        let unconfirmed = state.unconfirmed.len() * size_of::<(u64, EntryId)>() * 4 / 3;
        state.table.memory_bytes() + state.space.memory_bytes() + unconfirmed
    }
}
