//! File records. Nothing can be recorded yet: the mutation type has no values.

use bb_proto::{DecodeError, Fid, Reader, RegionIndex, TruncateEpoch, Writer};

use crate::partition::table::{ApplyContext, Encoded, FileRecords, RegionTerms, Table};

/// The file records of a partition.
#[derive(Default, Debug)]
pub struct FileTable {}

/// What changes a file record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileMutation {}

/// What a change answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileOutcome {}

impl Encoded for FileMutation {
    fn encode(&self, _out: &mut Writer) {
        match *self {}
    }

    fn decode(_reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Err(DecodeError::Field("file mutation"))
    }
}

impl Encoded for FileTable {
    fn encode(&self, _out: &mut Writer) {}

    fn decode(_reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {})
    }
}

impl Table for FileTable {
    type Mutation = FileMutation;
    type Outcome = FileOutcome;

    fn apply(&mut self, _context: &ApplyContext, mutation: &FileMutation) -> FileOutcome {
        match *mutation {}
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

impl FileRecords for FileTable {
    fn region_terms(&self, _fid: Fid, _after: TruncateEpoch) -> Option<RegionTerms> {
        None
    }

    fn raise_size(&mut self, _fid: Fid, _epoch: TruncateEpoch, _size: u64) {}

    fn is_registered(&self, _fid: Fid, _region: RegionIndex) -> bool {
        false
    }
}
