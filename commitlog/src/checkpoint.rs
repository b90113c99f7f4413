//! Snapshots of streams, written between other traffic.

use std::collections::VecDeque;
use std::rc::Rc;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::completion::{Completion, Durable};
use crate::error::LogError;
use crate::format::{ChunkHeader, RecordType, SnapshotEnd};
use crate::ids::StreamId;
use crate::log::{Append, Inner, Log};
use crate::space::CHECKPOINT_RANK;
use crate::streams::Start;

/// Chunks on their way at a time: the device stays busy, and others' records wait for little.
const CHUNKS_IN_FLIGHT: usize = 2;

impl Log {
    /// Writes a snapshot of `stream` as of now: records appended from now on are replayed after it.
    /// It is written in chunks between other traffic; once all is durable (that is what the result
    /// waits for) the stream starts here, and what lies before keeps the ring no longer.
    ///
    /// A stream that held nothing begins with it. Its snapshot counts only when it is whole: until
    /// then a restart delivers the records after it and not the snapshot.
    ///
    /// # Errors
    /// [`LogError::CheckpointUnderWay`], [`LogError::Full`] (not even room for the begin record),
    /// or the log's failure.
    pub fn checkpoint(&self, stream: StreamId, snapshot: Vec<u8>) -> Result<Append, LogError> {
        let inner = &self.inner;
        inner.check_alive()?;
        inner.check_room_for(stream)?;
        if inner.state.borrow().streams.snapshot_of(stream).is_some() {
            return Err(LogError::CheckpointUnderWay { stream });
        }
        let size = U64::new(snapshot.len() as u64);
        let cost = inner.take_urgent(size.as_bytes().len())?;
        let (at, _) = inner.place(cost, RecordType::SnapshotBegin, stream, [size.as_bytes(), &[]]);
        inner.state.borrow_mut().streams.begin_snapshot(stream, at);
        let completion = Completion::default();
        let durable = completion.wait();
        let inner = inner.clone();
        self.inner.rt.spawn(async move {
            let result = write_snapshot(&inner, stream, at, &snapshot).await;
            completion.resolve(result);
        });
        Ok(Append { lsn: at.lsn, durable })
    }
}

async fn write_snapshot(
    inner: &Rc<Inner>,
    stream: StreamId,
    at: Start,
    snapshot: &[u8],
) -> Result<(), LogError> {
    // One at a time: several half-written ones could fill the ring together.
    let _turn = inner.snapshot_turn.acquire(1).await;
    let chunk_bytes = inner.record_bytes_max() - size_of::<ChunkHeader>();
    let mut on_their_way: VecDeque<Durable> = VecDeque::new();
    for (index, chunk) in snapshot.chunks(chunk_bytes).enumerate() {
        if on_their_way.len() >= CHUNKS_IN_FLIGHT
            && let Some(first) = on_their_way.pop_front()
        {
            first.await?;
        }
        let header = ChunkHeader {
            begin: U64::new(at.lsn.0),
            offset: U64::new((index * chunk_bytes) as u64),
        };
        let parts = [header.as_bytes(), chunk];
        let durable = write_part(inner, stream, at, RecordType::SnapshotChunk, parts).await?;
        on_their_way.push_back(durable);
    }
    let end = SnapshotEnd {
        begin: U64::new(at.lsn.0),
        total_bytes: U64::new(snapshot.len() as u64),
        crc: U32::new(crc32c::crc32c(snapshot)),
        reserved: U32::ZERO,
    };
    let parts = [end.as_bytes(), &[]];
    write_part(inner, stream, at, RecordType::SnapshotEnd, parts).await?.await?;
    {
        let mut state = inner.state.borrow_mut();
        if state.streams.snapshot_of(stream) != Some(at.lsn) {
            return Err(LogError::Retired { stream });
        }
        state.streams.end_snapshot(stream, at);
        state.stats.checkpoints += 1;
    }
    inner.trim_if_worthwhile();
    Ok(())
}

async fn write_part(
    inner: &Rc<Inner>,
    stream: StreamId,
    at: Start,
    record_type: RecordType,
    parts: [&[u8]; 2],
) -> Result<Durable, LogError> {
    let cost = inner.cost(parts[0].len() + parts[1].len())?;
    let mut reservation = inner.admit(CHECKPOINT_RANK, cost).await?;
    if inner.state.borrow().streams.snapshot_of(stream) != Some(at.lsn) {
        return Err(LogError::Retired { stream });
    }
    inner.check_alive()?;
    let cost = inner.spend(&mut reservation, cost);
    Ok(inner.place(cost, record_type, stream, parts).1)
}
