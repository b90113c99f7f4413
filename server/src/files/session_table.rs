//! Sessions. Nothing can be recorded yet: the mutation type has no values.

use bb_proto::{DecodeError, Reader, Writer};

use crate::partition::table::{ApplyContext, Encoded, Table};

/// The sessions of a partition.
#[derive(Default, Debug)]
pub struct SessionTable {}

/// What changes a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionMutation {}

/// What a change answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionOutcome {}

impl Encoded for SessionMutation {
    fn encode(&self, _out: &mut Writer) {
        match *self {}
    }

    fn decode(_reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Err(DecodeError::Field("session mutation"))
    }
}

impl Encoded for SessionTable {
    fn encode(&self, _out: &mut Writer) {}

    fn decode(_reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {})
    }
}

impl Table for SessionTable {
    type Mutation = SessionMutation;
    type Outcome = SessionOutcome;

    fn apply(&mut self, _context: &ApplyContext, mutation: &SessionMutation) -> SessionOutcome {
        match *mutation {}
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}
