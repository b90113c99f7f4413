//! What the log says of partitions when it is opened.

use std::collections::BTreeMap;

use bb_proto::PartitionId;

use super::record::{Record, RecordError};
use super::snapshot::decode_snapshot;
use super::state::PartitionState;

/// Takes in what the log delivers of partitions' streams, in its order.
#[derive(Default)]
pub struct PartitionReplay {
    states: BTreeMap<PartitionId, PartitionState>,
}

impl PartitionReplay {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The partition is what `bytes` say, whatever was delivered before.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn snapshot(&mut self, partition: PartitionId, bytes: &[u8]) -> Result<(), RecordError> {
        let (state, tail) = decode_snapshot(partition, bytes)?;
        self.states.insert(partition, state);
        tail.iter().try_for_each(|record| self.record(partition, record))
    }

    /// A record that was logged. Alone, everything logged is committed.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn record(&mut self, partition: PartitionId, bytes: &[u8]) -> Result<(), RecordError> {
        let record = Record::decode(bytes)?;
        let state = self.states.entry(partition).or_insert_with(|| PartitionState::new(partition));
        let (applied, found) = (state.applied(), record.sequence);
        if found <= applied {
            return Ok(());
        }
        if found != applied + 1 {
            return Err(RecordError::Gap { partition, applied, found });
        }
        state.apply(&record.mutation);
        Ok(())
    }

    /// The partition's stream was retired: it is not here any more.
    pub fn retired(&mut self, partition: PartitionId) {
        self.states.remove(&partition);
    }

    /// The states that the log brought.
    pub fn finish(self) -> BTreeMap<PartitionId, PartitionState> {
        self.states
    }
}
