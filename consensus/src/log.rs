//! The log as the library reads it: in memory what the store has made durable.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{Entry, EntryType, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use crate::parts::ENTRY_HEAD_BYTES;

/// Entries, hard state and the last snapshot. The entries may reach back before the snapshot, for
/// followers that are a little behind.
pub(crate) struct Log {
    pub(crate) hard: HardState,
    pub(crate) snapshot: Snapshot,
    entries: VecDeque<Entry>,
    /// Index and term of the entry before the first one.
    before: (u64, u64),
    bytes_since_snapshot: u64,
    /// The commit index that a restart finds at least.
    pub(crate) commit_durable: u64,
    /// A voter needs a snapshot that is newer than what we have.
    pub(crate) snapshot_wanted: Cell<bool>,
}

fn entry_bytes(entry: &Entry) -> u64 {
    (ENTRY_HEAD_BYTES + entry.data.len() + entry.context.len()) as u64
}

impl Log {
    pub(crate) fn new(hard: HardState, snapshot: Snapshot, entries: VecDeque<Entry>) -> Self {
        let meta = snapshot.get_metadata();
        let mut entries = entries;
        let mut before = (meta.index, meta.term);
        if entries.front().is_some_and(|first| first.index <= meta.index) {
            // The term of what comes before the first kept entry is not known: that one serves.
            let first = entries.pop_front().expect("just looked at");
            before = (first.index, first.term);
        }
        let newer = entries.iter().filter(|entry| entry.index > meta.index);
        let bytes_since_snapshot = newer.map(entry_bytes).sum();
        let (commit_durable, snapshot_wanted) = (hard.commit, Cell::new(false));
        Self {
            hard,
            snapshot,
            entries,
            before,
            bytes_since_snapshot,
            commit_durable,
            snapshot_wanted,
        }
    }

    fn first(&self) -> u64 {
        self.before.0 + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    /// Appends what is durable, after cutting the tail where it begins.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.before.0 && first.index <= self.last() + 1,
            "the library appends at {}, the log has {}..={}",
            first.index,
            self.first(),
            self.last()
        );
        while self.entries.back().is_some_and(|last| last.index >= first.index) {
            let cut = self.entries.pop_back().expect("just looked at");
            self.bytes_since_snapshot = self.bytes_since_snapshot.saturating_sub(entry_bytes(&cut));
        }
        self.bytes_since_snapshot += entries.iter().map(entry_bytes).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
    }

    /// What a checkpoint at `index` keeps of the entries: the last `keep` before it, and all after.
    pub(crate) fn kept(&self, index: u64, keep: u64) -> Vec<Entry> {
        let from = (index + 1).saturating_sub(keep);
        self.entries.iter().filter(|entry| entry.index >= from).cloned().collect()
    }

    /// Goes on with a newer snapshot of our own, and forgets the entries before what it keeps.
    pub(crate) fn compacted(&mut self, snapshot: Snapshot, keep: u64) {
        let index = snapshot.get_metadata().index;
        self.snapshot = snapshot;
        let from = (index + 1).saturating_sub(keep);
        while self.entries.front().is_some_and(|first| first.index < from) {
            let gone = self.entries.pop_front().expect("just looked at");
            self.before = (gone.index, gone.term);
        }
        let newer = self.entries.iter().filter(|entry| entry.index > index);
        self.bytes_since_snapshot = newer.map(entry_bytes).sum();
    }

    /// Goes on from a snapshot that the leader sent: nothing of the old log is left.
    pub(crate) fn install(&mut self, snapshot: Snapshot) {
        let meta = snapshot.get_metadata();
        self.before = (meta.index, meta.term);
        self.entries.clear();
        self.bytes_since_snapshot = 0;
        self.snapshot = snapshot;
    }

    /// Whether a change of voters is known to be committed, and a restart would not know it.
    pub(crate) fn forgets_change(&self) -> bool {
        let unknown = self.entries.iter().rev().take_while(|e| e.index > self.commit_durable);
        unknown.into_iter().any(|entry| {
            entry.index <= self.hard.commit && entry.get_entry_type() != EntryType::EntryNormal
        })
    }

    pub(crate) fn bytes_since_snapshot(&self) -> u64 {
        self.bytes_since_snapshot
    }

    /// Bytes that the log holds in memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let held = self.entries.iter().map(|e| entry_bytes(e) + size_of::<Entry>() as u64);
        held.sum::<u64>() + self.snapshot.data.len() as u64
    }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        let conf = self.snapshot.get_metadata().get_conf_state().clone();
        Ok(RaftState::new(self.hard.clone(), conf))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let position = |index: u64| {
            usize::try_from(index - self.first()).expect("an index into what is in memory")
        };
        let max = max_size.into().unwrap_or(u64::MAX);
        let (mut bytes, mut out) = (0, Vec::new());
        for entry in self.entries.range(position(low)..position(high)) {
            bytes += entry_bytes(entry);
            if !out.is_empty() && bytes > max {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        let Some(position) = index.checked_sub(self.first()) else {
            return Err(Error::Store(StorageError::Compacted));
        };
        let entry = usize::try_from(position).ok().and_then(|position| self.entries.get(position));
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        let meta = self.snapshot.get_metadata();
        let conf = meta.get_conf_state();
        // A voter that is newer than the snapshot would not find itself in it, and refuse it. One
        // that is on its way out still counts, and may have to catch up so that it can go.
        let named = [&conf.voters, &conf.voters_outgoing, &conf.learners];
        let known = named.iter().any(|set| set.contains(&to));
        if known && meta.index >= request_index {
            return Ok(self.snapshot.clone());
        }
        self.snapshot_wanted.set(true);
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::ConfState;

    use super::*;

    #[test]
    fn everybody_named_in_a_snapshot_can_have_it() {
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = 9;
        *snapshot.mut_metadata().mut_conf_state() = ConfState {
            voters: vec![1],
            voters_outgoing: vec![2],
            learners: vec![3],
            ..ConfState::default()
        };
        let log = Log::new(HardState::default(), snapshot, VecDeque::new());
        for named in 1..=3 {
            assert!(log.snapshot(9, named).is_ok(), "{named}");
        }
        assert!(!log.snapshot_wanted.get());
        assert!(log.snapshot(9, 4).is_err() && log.snapshot_wanted.get());
    }

    #[test]
    fn a_change_of_voters_that_a_restart_would_forget_is_noticed() {
        let kinds = [EntryType::EntryNormal, EntryType::EntryConfChangeV2, EntryType::EntryNormal];
        let mut log = Log::new(HardState::default(), Snapshot::default(), VecDeque::new());
        for (index, kind) in (1..).zip(kinds) {
            let mut entry = Entry { index, term: 1, ..Entry::default() };
            entry.set_entry_type(kind);
            log.append(&[entry]);
        }
        for (durable, known, forgets) in [(0, 1, false), (0, 2, true), (1, 3, true), (2, 3, false)]
        {
            (log.commit_durable, log.hard.commit) = (durable, known);
            assert_eq!(log.forgets_change(), forgets, "{durable} {known}");
        }
    }
}
