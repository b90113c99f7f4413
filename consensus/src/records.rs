//! What a voter makes durable, and how it is read back.
//!
//! An *append record* holds the hard state and entries: an entry whose index is not past the end
//! cuts the tail of the log there. A *checkpoint* holds all of it: hard state, snapshot of the
//! machine with the voters at that index, and the entries kept around it, also the ones after it.

use std::collections::VecDeque;

use raft::eraftpb::{Entry, HardState, Snapshot};

use crate::VoterNumber;
use crate::envelope::{DecodeError, Place, Writer, open, seal};
use crate::parts::{
    ENTRY_HEAD_BYTES, put_entries, put_hard_state, put_snapshot, take_entries, take_hard_state,
    take_snapshot,
};

const KIND_APPEND: u16 = 1;
const KIND_CHECKPOINT: u16 = 1;

/// A record is cut at about this size, so that no log has to take one of any size. A single entry
/// can be larger.
const RECORD_BYTES_MAX: usize = 256 << 10;

/// The records for a hard state and entries, in order. Each one is complete: where only the first
/// survives a crash, its commit index doesn't point past its entries.
pub(crate) fn encode_append(
    voter: VoterNumber,
    hard: &HardState,
    entries: &[Entry],
) -> Vec<Vec<u8>> {
    let one = |entries: &[Entry]| {
        let mut hard = hard.clone();
        if let Some(last) = entries.last() {
            hard.commit = hard.commit.min(last.index);
        }
        let mut body = Writer::default();
        put_hard_state(&mut body, &hard);
        put_entries(&mut body, entries);
        seal(Place::Record, KIND_APPEND, voter, &body)
    };
    let (mut records, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (i, entry) in entries.iter().enumerate() {
        let entry_bytes = ENTRY_HEAD_BYTES + entry.data.len() + entry.context.len();
        if i > from && bytes + entry_bytes > RECORD_BYTES_MAX {
            records.push(one(&entries[from..i]));
            (from, bytes) = (i, 0);
        }
        bytes += entry_bytes;
    }
    records.push(one(&entries[from..]));
    records
}

pub(crate) fn encode_checkpoint(
    voter: VoterNumber,
    hard: &HardState,
    snapshot: &Snapshot,
    entries: &[Entry],
) -> Vec<u8> {
    let mut body = Writer::default();
    put_hard_state(&mut body, hard);
    put_snapshot(&mut body, snapshot);
    put_entries(&mut body, entries);
    seal(Place::Checkpoint, KIND_CHECKPOINT, voter, &body)
}

/// Why what was replayed can't be continued.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecoverError {
    /// A record or checkpoint can't be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Two voters' records in one stream.
    #[error("a record of voter {found} in the log of voter {expected}")]
    OtherVoter {
        /// Whose log it is.
        expected: VoterNumber,
        /// Whose record it is.
        found: VoterNumber,
    },
    /// The records don't follow from each other: some are missing. The voter must come back under
    /// a new number.
    #[error("the log is damaged: {what} (at index {index})")]
    Damaged {
        /// What does not fit.
        what: &'static str,
        /// Where.
        index: u64,
    },
}

/// What a voter is, put together from its checkpoint and records in the order of replay.
#[derive(Debug, Default)]
pub struct Recovered {
    pub(crate) voter: Option<VoterNumber>,
    pub(crate) hard: HardState,
    pub(crate) snapshot: Snapshot,
    pub(crate) entries: VecDeque<Entry>,
    pub(crate) used: bool,
}

impl Recovered {
    /// Nothing replayed yet. A voter that starts with this has an empty log and waits to be found
    /// by a group that has made it a voter.
    pub fn new() -> Self {
        Self::default()
    }

    fn of_voter(&mut self, found: VoterNumber) -> Result<(), RecoverError> {
        let expected = *self.voter.get_or_insert(found);
        if expected == found { Ok(()) } else { Err(RecoverError::OtherVoter { expected, found }) }
    }

    /// Takes in a checkpoint: everything before it is replaced.
    pub fn snapshot(&mut self, bytes: &[u8]) -> Result<(), RecoverError> {
        let (kind, voter, mut body) = open(Place::Checkpoint, bytes)?;
        if kind != KIND_CHECKPOINT {
            return Err(
                DecodeError::Impossible { what: "kind of checkpoint", value: kind.into() }.into()
            );
        }
        self.of_voter(voter)?;
        let hard = take_hard_state(&mut body)?;
        let snapshot = take_snapshot(&mut body)?;
        let entries = take_entries(&mut body)?;
        body.end("checkpoint")?;
        let meta = snapshot.get_metadata();
        let damaged = |what| Err(RecoverError::Damaged { what, index: meta.index });
        if entries.first().is_some_and(|first| first.index > meta.index + 1)
            || entries.last().is_some_and(|last| last.index < meta.index)
        {
            return damaged("entries of the checkpoint do not touch its snapshot");
        }
        let at = entries.iter().find(|entry| entry.index == meta.index);
        if at.is_some_and(|entry| entry.term != meta.term) {
            return damaged("an entry of the checkpoint contradicts its snapshot");
        }
        self.hard = hard;
        self.hard.commit = self.hard.commit.max(meta.index);
        self.snapshot = snapshot;
        self.entries = entries.into();
        self.used = true;
        Ok(())
    }

    /// Takes in a record that follows.
    pub fn record(&mut self, bytes: &[u8]) -> Result<(), RecoverError> {
        let (kind, voter, mut body) = open(Place::Record, bytes)?;
        if kind != KIND_APPEND {
            return Err(
                DecodeError::Impossible { what: "kind of record", value: kind.into() }.into()
            );
        }
        self.of_voter(voter)?;
        let hard = take_hard_state(&mut body)?;
        let entries = take_entries(&mut body)?;
        body.end("record")?;
        if let Some(first) = entries.first() {
            self.append(first.index, entries)?;
        }
        let term_back = hard.term < self.hard.term;
        let vote_changed =
            hard.term == self.hard.term && self.hard.vote != 0 && hard.vote != self.hard.vote;
        if term_back || vote_changed {
            return Err(RecoverError::Damaged { what: "term or vote goes back", index: hard.term });
        }
        let commit = self.hard.commit.max(hard.commit);
        self.hard = HardState { commit, ..hard };
        self.used = true;
        Ok(())
    }

    fn append(&mut self, first: u64, entries: Vec<Entry>) -> Result<(), RecoverError> {
        if first > self.last_index() + 1 {
            return Err(RecoverError::Damaged { what: "entries are missing", index: first });
        }
        if first <= self.hard.commit {
            return Err(RecoverError::Damaged { what: "committed entries cut off", index: first });
        }
        while self.entries.back().is_some_and(|last| last.index >= first) {
            self.entries.pop_back();
        }
        self.entries.extend(entries);
        Ok(())
    }

    /// Whether the whole can be continued; called when everything is replayed.
    pub(crate) fn check(&self) -> Result<(), RecoverError> {
        let (commit, last) = (self.hard.commit, self.last_index());
        if commit > last {
            return Err(RecoverError::Damaged {
                what: "committed entries are missing",
                index: last,
            });
        }
        let last_term = self.entries.back().map_or(0, |entry| entry.term);
        if last_term.max(self.snapshot.get_metadata().term) > self.hard.term.max(1) {
            return Err(RecoverError::Damaged { what: "entries of a later term", index: last });
        }
        Ok(())
    }

    /// Nothing was replayed: the log is new, or was lost.
    pub fn is_empty(&self) -> bool {
        !self.used
    }

    /// Whose log it is.
    pub fn voter(&self) -> Option<VoterNumber> {
        self.voter
    }

    /// The term it had reached.
    pub fn term(&self) -> u64 {
        self.hard.term
    }

    /// The voters at the last checkpoint (changes after it are in the entries); empty for one that
    /// never got as far.
    pub fn voters_at_checkpoint(&self) -> Vec<VoterNumber> {
        let conf = self.snapshot.get_metadata().get_conf_state();
        conf.voters.iter().map(|&voter| VoterNumber(voter)).collect()
    }

    /// The machine's snapshot at the last checkpoint, and its index.
    pub fn machine(&self) -> Option<(u64, &[u8])> {
        let index = self.snapshot.get_metadata().index;
        (index > 0).then(|| (index, self.snapshot.get_data()))
    }

    /// Index of the last entry.
    pub fn last_index(&self) -> u64 {
        let snapshot = self.snapshot.get_metadata().index;
        self.entries.back().map_or(snapshot, |entry| entry.index.max(snapshot))
    }

    /// What was known to be committed.
    pub fn commit(&self) -> u64 {
        self.hard.commit
    }
}
