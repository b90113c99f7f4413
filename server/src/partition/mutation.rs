//! What changes a partition, and what a change answers.

use bb_proto::{Code, DecodeError, Failure, Reader, Writer};

use super::pg_mutation::{PgMutation, PgOutcome};
use super::record::RECORD_HEADER_BYTES;
use super::region_mutation::{RegionMutation, RegionOutcome};
use super::table::Encoded;
use crate::files::{FileMutation, FileOutcome, SessionMutation, SessionOutcome};

/// Which table a record is for. Part of the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TableKind {
    /// Parity groups.
    Pg = 1,
    /// Regions.
    Region = 2,
    /// Files.
    File = 3,
    /// Sessions.
    Session = 4,
}

/// A change of a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// Of its parity groups (a commit changes regions along).
    Pg(PgMutation),
    /// Of its regions (parity groups lose fragments along).
    Region(RegionMutation),
    /// Of its file records.
    File(FileMutation),
    /// Of its sessions.
    Session(SessionMutation),
}

/// The answer of a change. The variant is that of the mutation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Of [`Mutation::Pg`].
    Pg(PgOutcome),
    /// Of [`Mutation::Region`].
    Region(RegionOutcome),
    /// Of [`Mutation::File`].
    File(FileOutcome),
    /// Of [`Mutation::Session`].
    Session(SessionOutcome),
}

impl Mutation {
    /// The table it is for.
    pub const fn table(&self) -> TableKind {
        match self {
            Self::Pg(_) => TableKind::Pg,
            Self::Region(_) => TableKind::Region,
            Self::File(_) => TableKind::File,
            Self::Session(_) => TableKind::Session,
        }
    }

    /// Bytes of the body of its record.
    pub fn encode_body(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.encode(&mut out);
        out.finish()
    }

    /// Its record without numbers: they are not known before the log has room for so many bytes.
    /// [`number_record`](super::record::number_record) puts them in.
    pub fn encode_unnumbered(&self) -> Vec<u8> {
        let body_bytes = match self {
            Self::Pg(mutation) => mutation.encoded_bytes(),
            _ => 64,
        };
        let mut out = Writer::with_capacity(RECORD_HEADER_BYTES + body_bytes);
        out.put(&[0_u8; RECORD_HEADER_BYTES]);
        self.encode(&mut out);
        out.finish()
    }

    fn encode(&self, out: &mut Writer) {
        match self {
            Self::Pg(mutation) => mutation.encode(out),
            Self::Region(mutation) => mutation.encode(out),
            Self::File(mutation) => mutation.encode(out),
            Self::Session(mutation) => mutation.encode(out),
        }
    }

    /// Reads the body of a record for `table`.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode_body(table: u8, body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let mutation = match table {
            1 => Self::Pg(PgMutation::decode(&mut reader)?),
            2 => Self::Region(RegionMutation::decode(&mut reader)?),
            3 => Self::File(FileMutation::decode(&mut reader)?),
            4 => Self::Session(SessionMutation::decode(&mut reader)?),
            _ => return Err(DecodeError::Field("table")),
        };
        reader.finish()?;
        Ok(mutation)
    }
}

fn foreign() -> Failure {
    Failure::new(Code::Unknown, "an outcome of another table")
}

impl Outcome {
    /// The answer of a change of parity groups.
    ///
    /// # Errors
    /// If it is of another table: a bug.
    pub fn pg(self) -> Result<PgOutcome, Failure> {
        if let Self::Pg(outcome) = self { Ok(outcome) } else { Err(foreign()) }
    }

    /// The answer of a change of regions.
    ///
    /// # Errors
    /// If it is of another table: a bug.
    pub fn region(self) -> Result<RegionOutcome, Failure> {
        if let Self::Region(outcome) = self { Ok(outcome) } else { Err(foreign()) }
    }

    /// The answer of a change of file records.
    ///
    /// # Errors
    /// If it is of another table: a bug.
    pub fn file(self) -> Result<FileOutcome, Failure> {
        if let Self::File(outcome) = self { Ok(outcome) } else { Err(foreign()) }
    }

    /// The answer of a change of sessions.
    ///
    /// # Errors
    /// If it is of another table: a bug.
    pub fn session(self) -> Result<SessionOutcome, Failure> {
        if let Self::Session(outcome) = self { Ok(outcome) } else { Err(foreign()) }
    }
}
