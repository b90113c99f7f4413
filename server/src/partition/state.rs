//! The state of a partition: what its committed mutations have made.

use bb_proto::{DecodeError, PartitionId, Reader, Tick, Writer};

use super::mutation::{Mutation, Outcome};
use super::table::{ApplyContext, Encoded, Table, put_bytes, put_u32, put_u64};
use super::table::{take_bytes, take_u32, take_u64};
use crate::files::{FileTable, SessionTable};

/// All tables of a partition.
#[derive(Debug)]
pub struct PartitionState {
    id: PartitionId,
    applied: u64,
    horizon: Tick,
    /// File records.
    pub files: FileTable,
    /// Sessions.
    pub sessions: SessionTable,
}

impl PartitionState {
    /// Nothing yet.
    pub fn new(id: PartitionId) -> Self {
        Self {
            id,
            applied: 0,
            horizon: Tick(0),
            files: FileTable::default(),
            sessions: SessionTable::default(),
        }
    }

    /// Which partition.
    pub const fn id(&self) -> PartitionId {
        self.id
    }

    /// Number of the last mutation applied, 0 for none.
    pub const fn applied(&self) -> u64 {
        self.applied
    }

    /// The slot up to which no new parity group is accepted.
    pub const fn horizon(&self) -> Tick {
        self.horizon
    }

    /// Applies the next mutation.
    pub fn apply(&mut self, mutation: &Mutation) -> Outcome {
        self.applied += 1;
        let context = ApplyContext { partition: self.id, sequence: self.applied };
        match mutation {
            Mutation::Pg(_) | Mutation::Region(_) => unreachable!("comes with the tables"),
            Mutation::File(mutation) => Outcome::File(self.files.apply(&context, mutation)),
            Mutation::Session(mutation) => {
                Outcome::Session(self.sessions.apply(&context, mutation))
            }
        }
    }
}

fn put_table<T: Encoded>(out: &mut Writer, table: &T) {
    let mut bytes = Writer::default();
    table.encode(&mut bytes);
    put_bytes(out, &bytes.finish());
}

fn take_table<T: Encoded>(reader: &mut Reader<'_>) -> Result<T, DecodeError> {
    let mut bytes = Reader::new(take_bytes(reader)?);
    let table = T::decode(&mut bytes)?;
    bytes.finish()?;
    Ok(table)
}

impl Encoded for PartitionState {
    fn encode(&self, out: &mut Writer) {
        put_u32(out, self.id.0);
        put_u64(out, self.applied);
        put_u64(out, self.horizon.0);
        put_table(out, &self.files);
        put_table(out, &self.sessions);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: PartitionId(take_u32(reader)?),
            applied: take_u64(reader)?,
            horizon: Tick(take_u64(reader)?),
            files: take_table(reader)?,
            sessions: take_table(reader)?,
        })
    }
}
