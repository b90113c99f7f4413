//! Where each stream starts: what the ring must keep.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::{Lsn, StreamId};

/// Where a stream starts: the record, and the group that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) lsn: Lsn,
    pub(crate) group: Lsn,
    /// The record begins a snapshot that is whole.
    pub(crate) snapshot: bool,
}

impl Start {
    pub(crate) fn is(&self, lsn: Lsn, snapshot: bool) -> bool {
        self.lsn == lsn && self.snapshot == snapshot
    }
}

#[derive(Default)]
struct Entry {
    /// Oldest first. More than one only while a retirement is on its way to the device.
    starts: VecDeque<Start>,
    /// False after a retirement, until the next record.
    open: bool,
    /// Begin of the snapshot that is being written.
    snapshot: Option<Lsn>,
}

/// All streams, with retirements that are not durable yet.
#[derive(Default)]
pub(crate) struct Streams {
    entries: BTreeMap<StreamId, Entry>,
    by_start: BTreeSet<(Lsn, StreamId)>,
    retiring: VecDeque<(Lsn, StreamId)>,
}

impl Streams {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_open(&self, stream: StreamId) -> bool {
        self.entries.get(&stream).is_some_and(|entry| entry.open)
    }

    pub(crate) fn knows(&self, stream: StreamId) -> bool {
        self.entries.contains_key(&stream)
    }

    /// A stream as the superblock's table has it.
    pub(crate) fn load(&mut self, stream: StreamId, start: Start) {
        self.note_record(stream, start);
    }

    /// A record was appended: it starts its stream if that held nothing.
    pub(crate) fn note_record(&mut self, stream: StreamId, at: Start) {
        let entry = self.entries.entry(stream).or_default();
        if entry.open {
            return;
        }
        entry.open = true;
        entry.starts.push_back(at);
        if entry.starts.len() == 1 {
            self.by_start.insert((at.lsn, stream));
        }
    }

    /// A snapshot begins. False while another one of the stream is being written.
    pub(crate) fn begin_snapshot(&mut self, stream: StreamId, at: Start) -> bool {
        if self.snapshot_of(stream).is_some() {
            return false;
        }
        self.note_record(stream, at);
        self.entries.entry(stream).or_default().snapshot = Some(at.lsn);
        true
    }

    pub(crate) fn snapshot_of(&self, stream: StreamId) -> Option<Lsn> {
        self.entries.get(&stream)?.snapshot
    }

    /// The snapshot that began at `start` is whole and durable: the stream starts there.
    pub(crate) fn end_snapshot(&mut self, stream: StreamId, start: Start) {
        let Some(entry) = self.entries.get_mut(&stream) else { return };
        if entry.snapshot == Some(start.lsn) {
            entry.snapshot = None;
        }
        let Some(front) = entry.starts.front().copied() else { return };
        // A retirement between begin and end leaves nothing that this could be the start of.
        let live = entry.open && entry.starts.back().is_some_and(|last| last.lsn <= start.lsn);
        if live && front.lsn <= start.lsn {
            self.by_start.remove(&(front.lsn, stream));
            entry.starts.clear();
            entry.starts.push_back(Start { snapshot: true, ..start });
            self.by_start.insert((start.lsn, stream));
        }
    }

    /// The snapshot that was being written never will be whole.
    pub(crate) fn forget_snapshot(&mut self, stream: StreamId) {
        if let Some(entry) = self.entries.get_mut(&stream) {
            entry.snapshot = None;
        }
    }

    /// A retirement was appended at `lsn`; its effect waits until it is durable.
    pub(crate) fn retire(&mut self, stream: StreamId, lsn: Lsn) {
        if let Some(entry) = self.entries.get_mut(&stream) {
            entry.open = false;
            entry.snapshot = None;
            self.retiring.push_back((lsn, stream));
        }
    }

    /// Everything below `through` is durable: retirements there take effect.
    pub(crate) fn durable(&mut self, through: Lsn) {
        while let Some((lsn, stream)) = self.retiring.front().copied()
            && lsn < through
        {
            self.retiring.pop_front();
            let Some(entry) = self.entries.get_mut(&stream) else { continue };
            if let Some(front) = entry.starts.front() {
                self.by_start.remove(&(front.lsn, stream));
            }
            entry.starts.retain(|start| start.lsn > lsn);
            match entry.starts.front() {
                Some(front) => {
                    self.by_start.insert((front.lsn, stream));
                }
                None => {
                    self.entries.remove(&stream);
                }
            }
        }
    }

    /// The stream that starts first.
    pub(crate) fn oldest(&self) -> Option<(StreamId, Start)> {
        let (_, stream) = self.by_start.first()?;
        let entry = self.entries.get(stream)?;
        entry.starts.front().map(|start| (*stream, *start))
    }

    /// The group up to which nothing is needed, given what is durable.
    pub(crate) fn trim_target(&self, durable: Lsn) -> Lsn {
        self.oldest().map_or(durable, |(_, start)| start.group.min(durable))
    }

    /// The table as of `durable`: later starts are found again by the replay.
    pub(crate) fn table(&self, durable: Lsn) -> Vec<(StreamId, Start)> {
        self.entries
            .iter()
            .filter_map(|(stream, entry)| entry.starts.front().map(|start| (*stream, *start)))
            .filter(|(_, start)| start.lsn < durable)
            .collect()
    }
}
