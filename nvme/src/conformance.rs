//! What every provider of [`Device`](crate::Device) must do, as functions that panic where one
//! doesn't. Each provider's tests call [`run_all`] on a device without faults.

use std::time::Duration;

use bb_runtime::{Buf, BufPool, JoinHandle, Rt};

use crate::device::{BLOCK_BYTES, DeviceError, DeviceRef, DeviceStats, Durability, OpStats};

/// Smallest device that the tests work on, in bytes.
pub const CAPACITY_BYTES_MIN: u64 = 16 << 20;

/// Smallest pool that the tests work with, in bytes.
pub const POOL_BYTES_MIN: usize = 8 << 20;

const BLOCK_LEN: usize = 4096;

/// A device under test. Its contents are lost.
#[derive(Clone)]
pub struct Subject {
    /// The runtime it runs on.
    pub rt: Rt,
    /// Buffers: at least [`POOL_BYTES_MIN`], used by nobody else.
    pub pool: BufPool,
    /// The device, not smaller than [`CAPACITY_BYTES_MIN`], used by nobody else.
    pub device: DeviceRef,
}

/// All of them.
pub async fn run_all(subject: &Subject) {
    info_tells_a_usable_size(subject).await;
    what_is_written_is_read_back(subject).await;
    a_wrong_range_is_refused_and_changes_nothing(subject).await;
    many_operations_at_once_all_end_right(subject).await;
    concurrent_flushes_are_all_answered(subject).await;
    an_abandoned_write_is_still_done(subject).await;
    an_unmapped_range_can_be_written_again(subject).await;
    statistics_add_up(subject).await;
}

impl Subject {
    /// A buffer whose every 8 bytes tell its place and `tag`.
    async fn pattern(&self, len: usize, tag: u64) -> Buf {
        let mut buf = self.pool.alloc(len).await;
        for (at, word) in buf.chunks_exact_mut(8).enumerate() {
            let value = (tag << 32 | at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            word.copy_from_slice(&value.to_le_bytes());
        }
        buf.freeze()
    }

    async fn write(&self, offset: u64, buf: &Buf, durability: Durability) {
        let written = self.device.write(offset, buf.clone(), durability).await;
        written.expect("a write inside of the device succeeds");
    }

    async fn read(&self, offset: u64, len: usize) -> Buf {
        let buf = self.pool.alloc(len).await;
        let buf = self.device.read(offset, buf).await;
        buf.expect("a read inside of the device succeeds").freeze()
    }

    async fn assert_reads(&self, offset: u64, expected: &Buf) {
        let got = self.read(offset, expected.len()).await;
        let differs = got.iter().zip(expected.iter()).position(|(got, want)| got != want);
        assert_eq!(differs, None, "at {offset}: first byte that differs");
    }
}

/// The capacity is a whole number of blocks, and the name says something.
pub async fn info_tells_a_usable_size(subject: &Subject) {
    let info = subject.device.info();
    assert!(info.capacity_bytes >= CAPACITY_BYTES_MIN, "the tests need more room");
    assert!(info.capacity_bytes.is_multiple_of(BLOCK_BYTES));
    assert!(!info.name.is_empty());
}

/// Every size, first and last block, both durabilities, a slice of a buffer, and an overwrite.
pub async fn what_is_written_is_read_back(subject: &Subject) {
    let capacity = subject.device.info().capacity_bytes;
    for (tag, blocks) in [1_usize, 2, 3, 16, 255, 256].into_iter().enumerate() {
        let buf = subject.pattern(blocks * BLOCK_LEN, tag as u64).await;
        let len = buf.len() as u64;
        let durability = if tag % 2 == 0 { Durability::Cached } else { Durability::Durable };
        for offset in [0, 5 * BLOCK_BYTES, capacity - len] {
            subject.write(offset, &buf, durability).await;
            subject.assert_reads(offset, &buf).await;
        }
    }
    let whole = subject.pattern(4 * BLOCK_LEN, 77).await;
    subject.write(0, &whole, Durability::Cached).await;
    let piece = subject.pattern(4 * BLOCK_LEN, 78).await.slice(BLOCK_LEN..3 * BLOCK_LEN);
    subject.write(BLOCK_BYTES, &piece, Durability::Durable).await;
    subject.device.flush().await.expect("flushes");
    subject.assert_reads(0, &whole.slice(..BLOCK_LEN)).await;
    subject.assert_reads(BLOCK_BYTES, &piece).await;
    subject.assert_reads(3 * BLOCK_BYTES, &whole.slice(3 * BLOCK_LEN..)).await;
}

/// Misaligned, empty, too long, far outside, overflowing: an error, no write, nothing counted.
pub async fn a_wrong_range_is_refused_and_changes_nothing(subject: &Subject) {
    let device = &subject.device;
    let capacity = device.info().capacity_bytes;
    let before = subject.pattern(2 * BLOCK_LEN, 1).await;
    let last = capacity - 2 * BLOCK_BYTES;
    for offset in [0, last] {
        subject.write(offset, &before, Durability::Cached).await;
    }
    let counted = device.stats();
    let other = subject.pattern(3 * BLOCK_LEN, 2).await;
    let block = other.slice(..BLOCK_LEN);
    let wrong = [
        (1, block.clone()),
        (512, block.clone()),
        (0, other.slice(..100)),
        (0, other.slice(..BLOCK_LEN + 512)),
        (0, other.slice(..0)),
        (0, other.slice(512..512 + BLOCK_LEN)),
        (last, other.clone()),
        (capacity, block.clone()),
        (u64::MAX - 4095, block),
    ];
    for (offset, buf) in wrong {
        let len = buf.len() as u64;
        let expected = Err(DeviceError::Range { offset, len });
        assert_eq!(device.write(offset, buf.clone(), Durability::Durable).await, expected);
        // A fresh buffer always begins at a block: that case is the write's alone.
        if (buf.as_ptr() as usize).is_multiple_of(BLOCK_LEN) {
            let target = subject.pool.alloc(buf.len()).await;
            let read = device.read(offset, target).await.map(drop);
            assert_eq!(read, expected);
            assert_eq!(device.unmap(offset, len).await, expected);
        }
    }
    assert_eq!(device.stats(), counted, "a caller's mistake is not the device's");
    for offset in [0, last] {
        subject.assert_reads(offset, &before).await;
    }
}

/// 64 writers and then readers of different ranges under way together, with a flush among them.
pub async fn many_operations_at_once_all_end_right(subject: &Subject) {
    let lens = |i: u64| BLOCK_LEN << (i % 4);
    let place = |i: u64| i * 8 * BLOCK_BYTES;
    for round in 0..3_u64 {
        let mut writes = Vec::new();
        for i in 0..64_u64 {
            let buf = subject.pattern(lens(i), round << 8 | i).await;
            let durability = if i % 16 == 3 { Durability::Durable } else { Durability::Cached };
            writes.push(subject.device.write(place(i), buf, durability));
        }
        let flush = subject.device.flush();
        for write in writes {
            write.await.expect("writes");
        }
        flush.await.expect("flushes");
        let mut reads = Vec::new();
        for i in 0..64_u64 {
            let buf = subject.pool.alloc(lens(i)).await;
            reads.push(subject.device.read(place(i), buf));
        }
        // Answers may be taken in any order.
        for (i, read) in reads.into_iter().enumerate().rev() {
            let expected = subject.pattern(lens(i as u64), round << 8 | i as u64).await;
            assert_eq!(read.await.expect("reads")[..], expected[..], "operation {i}");
        }
    }
}

/// Callers that come while a flush runs are all answered, also when others among them give up, and
/// a provider needs at most one flush per call.
pub async fn concurrent_flushes_are_all_answered(subject: &Subject) {
    let before = subject.device.stats().flush;
    let buf = subject.pattern(BLOCK_LEN, 5).await;
    let tasks: Vec<JoinHandle<()>> = (0..32_u64)
        .map(|i| {
            let (subject, buf) = (subject.clone(), buf.clone());
            subject.rt.clone().spawn(async move {
                subject.write(i * BLOCK_BYTES, &buf, Durability::Cached).await;
                drop(subject.device.flush());
                subject.device.flush().await.expect("flushes");
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no task is aborted");
    }
    drop(buf);
    settle(subject).await;
    let after = subject.device.stats().flush;
    let flushes = after.count - before.count;
    // 64 of the tasks, and one of `settle`.
    assert!((1..=65).contains(&flushes), "{flushes} flushes for 65 calls");
    assert_eq!(after.errors, before.errors);
}

/// Nobody waits for the answer; the bytes arrive, and the buffer comes back.
pub async fn an_abandoned_write_is_still_done(subject: &Subject) {
    let offset = 64 * BLOCK_BYTES;
    let zeros = subject.pool.try_alloc_zeroed(BLOCK_LEN).expect("the pool has room").freeze();
    subject.write(offset, &zeros, Durability::Cached).await;
    drop(zeros);
    let buf = subject.pattern(BLOCK_LEN, 6).await;
    let expected = buf.to_vec();
    drop(subject.device.write(offset, buf, Durability::Cached));
    drop(subject.device.read(offset, subject.pool.alloc(BLOCK_LEN).await));
    settle(subject).await;
    assert_eq!(subject.read(offset, BLOCK_LEN).await[..], expected[..]);
}

/// What lies beside an unmapped range stays, and the range is as good as new.
pub async fn an_unmapped_range_can_be_written_again(subject: &Subject) {
    let old = subject.pattern(16 * BLOCK_LEN, 8).await;
    subject.write(0, &old, Durability::Durable).await;
    subject.device.unmap(4 * BLOCK_BYTES, 8 * BLOCK_BYTES).await.expect("unmaps");
    subject.assert_reads(0, &old.slice(..4 * BLOCK_LEN)).await;
    subject.assert_reads(12 * BLOCK_BYTES, &old.slice(12 * BLOCK_LEN..)).await;
    // Undefined, but readable.
    subject.read(4 * BLOCK_BYTES, 8 * BLOCK_LEN).await;
    let new = subject.pattern(2 * BLOCK_LEN, 9).await;
    subject.write(5 * BLOCK_BYTES, &new, Durability::Durable).await;
    subject.assert_reads(5 * BLOCK_BYTES, &new).await;
    subject.device.flush().await.expect("flushes");
}

/// Counts, bytes and histogram agree with what was done.
pub async fn statistics_add_up(subject: &Subject) {
    settle(subject).await;
    let before = subject.device.stats();
    let buf = subject.pattern(3 * BLOCK_LEN, 10).await;
    for i in 0..7 {
        subject.write(i * 4 * BLOCK_BYTES, &buf, Durability::Cached).await;
    }
    subject.write(7 * 4 * BLOCK_BYTES, &buf, Durability::Durable).await;
    for i in 0..5 {
        subject.read(i * 4 * BLOCK_BYTES, 2 * BLOCK_LEN).await;
    }
    subject.device.unmap(0, 4 * BLOCK_BYTES).await.expect("unmaps");
    subject.device.flush().await.expect("flushes");
    subject.device.flush().await.expect("flushes");
    let after = subject.device.stats();
    let done = |pick: fn(&DeviceStats) -> &OpStats| {
        let (after, before) = (pick(&after), pick(&before));
        let timed: u64 = after.latency_us_log2.iter().sum();
        assert_eq!(timed, after.count + after.errors, "each operation is timed once");
        assert_eq!(after.errors, before.errors);
        (after.count - before.count, after.bytes - before.bytes)
    };
    assert_eq!(done(|stats| &stats.write), (8, 24 * BLOCK_BYTES));
    assert_eq!(done(|stats| &stats.read), (5, 10 * BLOCK_BYTES));
    assert_eq!(done(|stats| &stats.unmap), (1, 4 * BLOCK_BYTES));
    assert_eq!(done(|stats| &stats.flush), (2, 0));
    assert_eq!(after.durable_writes - before.durable_writes, 1);
    assert_eq!(after.flushes() - before.flushes(), 3, "a durable write has a flush in it");
}

/// Waits until operations that nobody waits for have ended: their buffers are back, and a flush
/// that was asked for after theirs has been answered. The caller must hold no buffer.
async fn settle(subject: &Subject) {
    let mut waited_ms = 0;
    while subject.pool.stats().used_bytes > 0 {
        assert!(waited_ms < 10_000, "an operation keeps its buffer forever");
        subject.rt.sleep(Duration::from_millis(5)).await;
        waited_ms += 5;
    }
    subject.device.flush().await.expect("flushes");
}
