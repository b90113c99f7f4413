//! One sequential pass over the ring, with several large reads under way.

use std::collections::VecDeque;

use bb_nvme::{DeviceError, DeviceRef};
use bb_runtime::{BufMut, BufPool, JoinHandle, Rt, SLAB_BYTES_MAX};

use crate::format::{BLOCK, RING_OFFSET};
use crate::group::{GroupInfo, NotAGroup, parse_header};
use crate::ids::LogIdentity;

/// Reads what lies between two LSNs, forwards.
pub(crate) struct RingReader {
    rt: Rt,
    pool: BufPool,
    dev: DeviceRef,
    pub(crate) identity: LogIdentity,
    ring_bytes: u64,
    group_bytes_max: usize,
    reads_in_flight: usize,
    /// Where the next read begins.
    ahead: u64,
    /// Nothing is read from here on.
    end: u64,
    reads: VecDeque<Read>,
    chunks: VecDeque<Chunk>,
    /// A group that lies in two chunks.
    joined: Vec<u8>,
    pub(crate) bytes_read: u64,
}

struct Read {
    lsn: u64,
    len: usize,
    task: JoinHandle<Result<BufMut, DeviceError>>,
}

struct Chunk {
    lsn: u64,
    data: BufMut,
    /// Blocks that could not be read, by LSN.
    bad: Vec<(u64, DeviceError)>,
}

/// What is at a position.
pub(crate) enum Look<'a> {
    /// A group, and its bytes. Its records are not verified yet.
    Group(GroupInfo, &'a [u8]),
    /// Something else.
    Not(NotAGroup),
    /// The device does not say.
    Unreadable(DeviceError),
    /// The end of the window.
    End,
}

/// Where and how to read.
pub(crate) struct RingSource {
    pub(crate) rt: Rt,
    pub(crate) pool: BufPool,
    pub(crate) dev: DeviceRef,
    pub(crate) identity: LogIdentity,
    pub(crate) ring_bytes: u64,
    pub(crate) group_bytes_max: usize,
    pub(crate) reads_in_flight: usize,
}

impl RingReader {
    /// Reads one lap from `from` on.
    pub(crate) fn new(source: RingSource, from: u64) -> Self {
        Self {
            rt: source.rt,
            pool: source.pool,
            dev: source.dev,
            identity: source.identity,
            ring_bytes: source.ring_bytes,
            group_bytes_max: source.group_bytes_max,
            reads_in_flight: source.reads_in_flight.max(1),
            ahead: from,
            end: from + source.ring_bytes,
            reads: VecDeque::new(),
            chunks: VecDeque::new(),
            joined: Vec::new(),
            bytes_read: 0,
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// What is at `lsn`, which must not lie before an earlier question.
    pub(crate) async fn group_at(&mut self, lsn: u64) -> Look<'_> {
        if lsn >= self.end {
            return Look::End;
        }
        self.load(lsn, lsn + BLOCK as u64).await;
        if let Some(error) = self.bad_within(lsn, BLOCK) {
            return Look::Unreadable(error);
        }
        let parsed = {
            let max = self.group_bytes_max;
            let block = self.contiguous(lsn, BLOCK).expect("a block never straddles chunks");
            parse_header(block, &self.identity, Some(lsn), max)
        };
        let info = match parsed {
            Ok(info) => info,
            Err(why) => return Look::Not(why),
        };
        let to_lap_end = self.ring_bytes - lsn % self.ring_bytes;
        if info.span_bytes as u64 > to_lap_end || lsn + info.written_bytes as u64 > self.end {
            return Look::Not(NotAGroup::Header("sizes"));
        }
        let written = info.written_bytes;
        self.load(lsn, lsn + written as u64).await;
        if let Some(error) = self.bad_within(lsn, written) {
            return Look::Unreadable(error);
        }
        if self.contiguous(lsn, written).is_none() {
            self.join(lsn, written);
            return Look::Group(info, &self.joined);
        }
        Look::Group(info, self.contiguous(lsn, written).expect("just checked"))
    }

    /// A valid header where `lsn` would be, of whatever lap or position: for the look past a gap.
    /// What it says about durability is true wherever it landed.
    pub(crate) async fn header_at(&mut self, lsn: u64) -> Option<GroupInfo> {
        self.load(lsn, lsn + BLOCK as u64).await;
        if self.bad_within(lsn, BLOCK).is_some() {
            return None;
        }
        let max = self.group_bytes_max;
        let block = self.contiguous(lsn, BLOCK)?;
        parse_header(block, &self.identity, None, max).ok()
    }

    /// Has `from..to` in memory, and nothing before it.
    async fn load(&mut self, from: u64, to: u64) {
        while self.chunks.front().is_some_and(|chunk| chunk.end() <= from) {
            self.chunks.pop_front();
        }
        while self.chunks.back().map_or(from, Chunk::end).max(from) < to {
            self.read_ahead();
            let Some(read) = self.reads.pop_front() else { return };
            let chunk = self.finish(read).await;
            if chunk.end() > from {
                self.chunks.push_back(chunk);
            }
        }
    }

    fn read_ahead(&mut self) {
        while self.reads.len() < self.reads_in_flight && self.ahead < self.end {
            let lsn = self.ahead;
            let within_chunk =
                SLAB_BYTES_MAX as u64 - lsn % self.ring_bytes % SLAB_BYTES_MAX as u64;
            let to_lap_end = self.ring_bytes - lsn % self.ring_bytes;
            let len = within_chunk.min(to_lap_end).min(self.end - lsn);
            self.ahead += len;
            let len = usize::try_from(len).expect("at most a slab");
            let (pool, dev) = (self.pool.clone(), self.dev.clone());
            let offset = RING_OFFSET + lsn % self.ring_bytes;
            let task = self.rt.spawn(async move {
                let buf = pool.alloc(len).await;
                dev.read(offset, buf).await
            });
            self.reads.push_back(Read { lsn, len, task });
        }
    }

    async fn finish(&mut self, read: Read) -> Chunk {
        self.bytes_read += read.len as u64;
        match read.task.await {
            Ok(Ok(data)) => Chunk { lsn: read.lsn, data, bad: Vec::new() },
            // Block by block, to see which ones: a large read fails as a whole.
            _ => self.salvage(read.lsn, read.len).await,
        }
    }

    async fn salvage(&self, lsn: u64, len: usize) -> Chunk {
        let mut data = self.pool.alloc(len).await;
        data.fill(0);
        let mut bad = Vec::new();
        for at in (0..len).step_by(BLOCK) {
            let block_lsn = lsn + at as u64;
            let offset = RING_OFFSET + block_lsn % self.ring_bytes;
            match self.dev.read(offset, self.pool.alloc(BLOCK).await).await {
                Ok(block) => data[at..at + BLOCK].copy_from_slice(&block),
                Err(error) => bad.push((block_lsn, error)),
            }
        }
        Chunk { lsn, data, bad }
    }

    fn bad_within(&self, lsn: u64, len: usize) -> Option<DeviceError> {
        let range = lsn..lsn + len as u64;
        let mut bad = self.chunks.iter().flat_map(|chunk| &chunk.bad);
        bad.find(|(at, _)| range.contains(at)).map(|(_, error)| error.clone())
    }

    fn contiguous(&self, lsn: u64, len: usize) -> Option<&[u8]> {
        let chunk = self.chunks.iter().find(|chunk| chunk.lsn <= lsn && lsn < chunk.end())?;
        let from = usize::try_from(lsn - chunk.lsn).ok()?;
        chunk.data.get(from..from + len)
    }

    fn join(&mut self, lsn: u64, len: usize) {
        self.joined.clear();
        let end = lsn + len as u64;
        for chunk in &self.chunks {
            let from = lsn.max(chunk.lsn);
            let to = end.min(chunk.end());
            if from < to {
                let start = usize::try_from(from - chunk.lsn).expect("within a chunk");
                let stop = usize::try_from(to - chunk.lsn).expect("within a chunk");
                self.joined.extend_from_slice(&chunk.data[start..stop]);
            }
        }
        assert_eq!(self.joined.len(), len, "the group was loaded");
    }
}

impl Chunk {
    fn end(&self) -> u64 {
        self.lsn + self.data.len() as u64
    }
}
