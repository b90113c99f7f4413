//! What a restart gets back: for each stream its latest whole snapshot and the records after it.

use std::collections::BTreeMap;

use zerocopy::FromBytes;

use crate::error::{LogError, ReplayError};
use crate::format::{ChunkHeader, RecordType, SnapshotEnd};
use crate::group::RecordView;
use crate::ids::{Lsn, StreamId};
use crate::streams::{Start, Streams};

/// Receives what the log holds when it is opened, in the order of the log. Streams interleave.
///
/// When opening fails, what was delivered before is to be thrown away.
pub trait Replay {
    /// The stream is what `bytes` say, as of `lsn`, whatever was delivered of it before.
    ///
    /// # Errors
    /// What the receiver cannot take; the log is not opened then.
    fn snapshot(&mut self, stream: StreamId, lsn: Lsn, bytes: &[u8]) -> Result<(), ReplayError>;

    /// A record, after what was delivered of the stream before.
    ///
    /// # Errors
    /// As [`Replay::snapshot`].
    fn record(&mut self, stream: StreamId, lsn: Lsn, bytes: &[u8]) -> Result<(), ReplayError>;

    /// The stream holds nothing any more, whatever was delivered of it before.
    ///
    /// # Errors
    /// As [`Replay::snapshot`].
    fn retired(&mut self, stream: StreamId, lsn: Lsn) -> Result<(), ReplayError>;
}

/// A snapshot whose end has not been seen yet, with the records that come after it.
struct Pending {
    at: Start,
    total_bytes: u64,
    bytes: Vec<u8>,
    held: Vec<(Lsn, Vec<u8>)>,
}

/// Decides what of the log is delivered.
pub(crate) struct Delivery<'a> {
    receiver: &'a mut dyn Replay,
    /// Starts as of `table_lsn`. What lies before them is void.
    table: BTreeMap<StreamId, Start>,
    table_lsn: Lsn,
    pending: BTreeMap<StreamId, Pending>,
    incarnation: u64,
    pub(crate) streams: Streams,
}

impl<'a> Delivery<'a> {
    pub(crate) fn new(
        receiver: &'a mut dyn Replay,
        table: &[(StreamId, Start)],
        table_lsn: Lsn,
    ) -> Self {
        let mut streams = Streams::default();
        for (stream, start) in table {
            streams.load(*stream, *start);
        }
        Self {
            receiver,
            table: table.iter().copied().collect(),
            table_lsn,
            pending: BTreeMap::new(),
            incarnation: 0,
            streams,
        }
    }

    /// A group of `incarnation` begins. Snapshots of an earlier one will never end.
    pub(crate) fn group(&mut self, incarnation: u64) -> Result<(), LogError> {
        if incarnation != self.incarnation {
            self.incarnation = incarnation;
            self.give_up_snapshots()?;
        }
        Ok(())
    }

    pub(crate) fn record(&mut self, group: Lsn, record: &RecordView<'_>) -> Result<(), LogError> {
        let (stream, lsn) = (record.stream, record.lsn);
        if lsn < self.table_lsn && self.table.get(&stream).is_none_or(|start| lsn < start.lsn) {
            return Ok(());
        }
        let at = Start { lsn, group, snapshot: false };
        match record.record_type {
            RecordType::Data => {
                self.streams.note_record(stream, at);
                match self.pending.get_mut(&stream) {
                    Some(pending) => pending.held.push((lsn, record.body.to_vec())),
                    None => self.receiver.record(stream, lsn, record.body)?,
                }
            }
            RecordType::SnapshotBegin => {
                let (total, _) = zerocopy::little_endian::U64::read_from_prefix(record.body)
                    .map_err(|_| damaged(lsn, "a snapshot's begin is cut off"))?;
                if !self.streams.begin_snapshot(stream, at) {
                    return Err(damaged(lsn, "a snapshot begins inside another"));
                }
                let pending =
                    Pending { at, total_bytes: total.get(), bytes: Vec::new(), held: Vec::new() };
                self.pending.insert(stream, pending);
            }
            RecordType::SnapshotChunk => self.chunk(record)?,
            RecordType::SnapshotEnd => self.end_snapshot(record)?,
            RecordType::Retire => {
                self.pending.remove(&stream);
                self.streams.retire(stream, lsn);
                self.streams.durable(Lsn(lsn.0 + 1));
                self.receiver.retired(stream, lsn)?;
            }
        }
        Ok(())
    }

    fn chunk(&mut self, record: &RecordView<'_>) -> Result<(), LogError> {
        let (header, bytes) = ChunkHeader::read_from_prefix(record.body)
            .map_err(|_| damaged(record.lsn, "a snapshot's chunk is cut off"))?;
        let Some(pending) = self.pending.get_mut(&record.stream) else { return Ok(()) };
        if pending.at.lsn.0 != header.begin.get() {
            return Ok(());
        }
        if pending.bytes.len() as u64 != header.offset.get() {
            return Err(damaged(record.lsn, "a snapshot's chunk is missing"));
        }
        pending.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn end_snapshot(&mut self, record: &RecordView<'_>) -> Result<(), LogError> {
        let (end, _) = SnapshotEnd::read_from_prefix(record.body)
            .map_err(|_| damaged(record.lsn, "a snapshot's end is cut off"))?;
        let stream = record.stream;
        let ours = |pending: &mut Pending| pending.at.lsn.0 == end.begin.get();
        if !self.pending.get_mut(&stream).is_some_and(ours) {
            return Ok(());
        }
        let Some(pending) = self.pending.remove(&stream) else { return Ok(()) };
        let sizes = [pending.bytes.len() as u64, pending.total_bytes];
        let whole =
            sizes == [end.total_bytes.get(); 2] && crc32c::crc32c(&pending.bytes) == end.crc.get();
        if !whole {
            return Err(damaged(record.lsn, "a snapshot does not match its checksum"));
        }
        self.streams.end_snapshot(stream, pending.at);
        self.receiver.snapshot(stream, pending.at.lsn, &pending.bytes)?;
        for (lsn, bytes) in &pending.held {
            self.receiver.record(stream, *lsn, bytes)?;
        }
        Ok(())
    }

    /// The log ends here.
    pub(crate) fn finish(mut self) -> Result<Streams, LogError> {
        self.give_up_snapshots()?;
        Ok(self.streams)
    }

    fn give_up_snapshots(&mut self) -> Result<(), LogError> {
        for (stream, pending) in std::mem::take(&mut self.pending) {
            // The table knew that it was whole.
            if self.table.get(&stream).is_some_and(|start| start.is(pending.at.lsn, true)) {
                return Err(damaged(pending.at.lsn, "the end of a snapshot is missing"));
            }
            self.streams.forget_snapshot(stream);
            for (lsn, bytes) in &pending.held {
                self.receiver.record(stream, *lsn, bytes)?;
            }
        }
        Ok(())
    }
}

fn damaged(lsn: Lsn, detail: &str) -> LogError {
    LogError::Damaged { lsn, detail: detail.to_owned() }
}
