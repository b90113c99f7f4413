//! What the log says of partitions when it is opened.

use std::collections::BTreeMap;
use std::rc::Rc;

use bb_proto::{ConfigNumber, PartitionId};

use super::record::{Record, RecordError};
use super::snapshot::{decode_snapshot, encode_snapshot};
use super::state::PartitionState;
use super::tail::{Logged, Tail};

/// A replica as the log brings it: what is surely committed is applied, the rest is its tail.
pub struct Replica {
    /// What committed mutations have made.
    pub state: PartitionState,
    /// What else is logged.
    pub tail: Tail,
}

impl Replica {
    /// A replica that holds nothing yet.
    pub fn born(partition: PartitionId) -> Self {
        Self::of(PartitionState::new(partition))
    }

    /// One that begins anew, in place of what was given up before configuration `born`.
    pub fn reborn(partition: PartitionId, born: ConfigNumber) -> Self {
        Self::of(PartitionState::reborn(partition, born))
    }

    /// State and tail as a checkpoint holds them.
    pub fn snapshot(&self) -> Vec<u8> {
        encode_snapshot(&self.state, self.tail.records().map(|logged| logged.record.as_slice()))
    }

    /// A replica with a state and no tail.
    pub fn of(state: PartitionState) -> Self {
        let tail = Tail::new(state.applied(), state.applied_config());
        Self { state, tail }
    }

    /// Reads a snapshot: state and tail.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(partition: PartitionId, bytes: &[u8]) -> Result<Self, RecordError> {
        let (state, records) = decode_snapshot(partition, bytes)?;
        let mut replica = Self::of(state);
        records.iter().try_for_each(|record| replica.take(partition, record))?;
        Ok(replica)
    }

    /// Takes in a record as it was logged: behind the tail, or in the place of one that was
    /// numbered under an older configuration.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn take(&mut self, partition: PartitionId, bytes: &[u8]) -> Result<(), RecordError> {
        let record = Record::decode(bytes)?;
        let (applied, found) = (self.tail.applied(), record.sequence);
        if found <= applied {
            // The log repeats what a snapshot has; nothing else is ever logged there.
            return Ok(());
        }
        if found > self.tail.end() + 1 {
            return Err(RecordError::Gap { partition, applied: self.tail.end(), found });
        }
        if self.tail.config_at(found).is_some_and(|held| held > record.config) {
            return Err(RecordError::Damaged(
                "a record of an older configuration replaces another",
            ));
        }
        self.tail.cut(found);
        self.tail.push(Logged {
            record: Rc::new(bytes.to_vec()),
            config: record.config,
            mutation: record.mutation,
            answer: None,
        });
        self.tail.note_durable(found, record.config);
        while self.tail.applied() < record.committed && self.apply_next() {}
        Ok(())
    }

    fn apply_next(&mut self) -> bool {
        let Some(next) = self.tail.pop() else { return false };
        self.state.apply_numbered(next.config, &next.mutation);
        true
    }

    /// Applies all of the tail: what a configuration without backups decides.
    pub fn commit_all(&mut self) {
        while self.apply_next() {}
    }
}

/// Takes in what the log delivers of partitions' streams, in its order.
#[derive(Default)]
pub struct PartitionReplay {
    replicas: BTreeMap<PartitionId, Replica>,
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
        self.replicas.insert(partition, Replica::decode(partition, bytes)?);
        Ok(())
    }

    /// A record that was logged.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn record(&mut self, partition: PartitionId, bytes: &[u8]) -> Result<(), RecordError> {
        let replica = self.replicas.entry(partition).or_insert_with(|| Replica::born(partition));
        replica.take(partition, bytes)
    }

    /// The partition's stream was retired: it is not here any more.
    pub fn retired(&mut self, partition: PartitionId) {
        self.replicas.remove(&partition);
    }

    /// The replicas that the log brought.
    pub fn finish(self) -> BTreeMap<PartitionId, Replica> {
        self.replicas
    }
}
