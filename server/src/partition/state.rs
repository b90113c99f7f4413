//! The state of a partition: what its committed mutations have made.

use bb_proto::{ConfigNumber, DecodeError, PartitionId, Reader, Tick, Writer};

use super::mutation::{Mutation, Outcome};
use super::pg::{Ledger, PgTable};
use super::pg_mutation::{PgMutation, PgOutcome};
use super::region_mutation::{RegionId, RegionMutation, RegionOutcome, RegionRefusal};
use super::region_table::RegionTable;
use super::table::{ApplyContext, Encoded, FileRecords, RegionTerms, Table};
use super::table::{put_bytes, put_u32, put_u64, take_bytes, take_u32, take_u64};
use crate::files::{FileTable, SessionTable};

/// All tables of a partition.
#[derive(Debug)]
pub struct PartitionState {
    id: PartitionId,
    applied: u64,
    applied_config: ConfigNumber,
    /// Parity groups.
    pub pgs: PgTable,
    /// Regions.
    pub regions: RegionTable,
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
            applied_config: ConfigNumber(0),
            pgs: PgTable::default(),
            regions: RegionTable::default(),
            files: FileTable::default(),
            sessions: SessionTable::default(),
        }
    }

    /// Nothing yet, in place of what was given up before configuration `born`.
    pub fn reborn(id: PartitionId, born: ConfigNumber) -> Self {
        Self { applied_config: born, ..Self::new(id) }
    }

    /// Which partition.
    pub const fn id(&self) -> PartitionId {
        self.id
    }

    /// Number of the last mutation applied, 0 for none.
    pub const fn applied(&self) -> u64 {
        self.applied
    }

    /// Configuration under which that mutation was numbered.
    pub const fn applied_config(&self) -> ConfigNumber {
        self.applied_config
    }

    /// The slot up to which no new parity group is accepted.
    pub const fn horizon(&self) -> Tick {
        self.pgs.horizon()
    }

    /// A deliberate error.
    #[cfg(feature = "planted")]
    pub(super) const fn drop_horizon(&mut self) {
        self.pgs.drop_horizon();
    }

    /// Memory of all tables, as counted for the budget (rule 16).
    pub fn memory_bytes(&self) -> u64 {
        self.pgs.memory_bytes()
            + self.regions.memory_bytes()
            + self.files.memory_bytes()
            + self.sessions.memory_bytes()
    }

    /// True while something that was begun on the backing file system has not ended.
    pub fn has_intents(&self) -> bool {
        let in_files = self.files.iter().any(|(_, record)| {
            let rare = record.rare();
            rare.sync.is_some() || rare.truncating.is_some() || rare.dropping
        });
        let in_regions = self
            .regions
            .iter()
            .any(|(_, region)| !region.intents().is_empty() || !region.stages().is_empty());
        in_files || in_regions || self.sessions.iter().any(|(_, session)| session.is_in_doubt())
    }

    /// Applies the next mutation, which was numbered under `config`.
    pub fn apply_numbered(&mut self, config: ConfigNumber, mutation: &Mutation) -> Outcome {
        self.applied_config = config;
        self.apply(mutation)
    }

    /// Applies the next mutation, numbered under the same configuration as the last one.
    pub fn apply(&mut self, mutation: &Mutation) -> Outcome {
        self.applied += 1;
        let context = ApplyContext { partition: self.id, sequence: self.applied };
        match mutation {
            Mutation::Pg(mutation) => Outcome::Pg(self.apply_pg(mutation)),
            Mutation::Region(mutation) => Outcome::Region(self.apply_region(mutation)),
            Mutation::File(mutation) => Outcome::File(self.files.apply(&context, mutation)),
            Mutation::Session(mutation) => {
                Outcome::Session(self.sessions.apply(&context, mutation))
            }
        }
    }

    fn apply_pg(&mut self, mutation: &PgMutation) -> PgOutcome {
        match mutation {
            PgMutation::Commit(record) => return self.apply_commit(record),
            PgMutation::Cancel { pg } => {
                return PgOutcome::Cancelled { committed: self.pgs.cancel(*pg) };
            }
            PgMutation::Horizon { slot } => {
                self.pgs.move_horizon(*slot);
                self.regions.forget_dropped(*slot);
            }
            PgMutation::Release { participant, pgs } => {
                pgs.iter().for_each(|pg| self.pgs.release(*participant, *pg));
            }
            PgMutation::ReleaseAcked { pgs } => {
                pgs.iter().for_each(|pg| self.pgs.release_acked(*pg));
            }
            PgMutation::Freed { groups } => {
                groups.iter().for_each(|freed| self.pgs.freed(freed.pg, freed.members));
            }
        }
        PgOutcome::Done
    }

    /// Registers and opens in one step: between two, the file could be dropped, or cut, without this
    /// region's learning of it.
    fn open_region(&mut self, id: RegionId) -> RegionOutcome {
        if self.regions.get(id).is_some() {
            return RegionOutcome::Done;
        }
        if self.regions.is_dropped(id.fid) {
            return RegionOutcome::Refused(RegionRefusal::Dropped);
        }
        let Some(terms) = self.files.open_region(id.fid, id.region) else {
            return RegionOutcome::Refused(RegionRefusal::Dropped);
        };
        let RegionTerms { region_log2, epoch, size, truncating } = terms;
        let done = !truncating;
        self.apply_region(&RegionMutation::Truncate { id, region_log2, epoch, size, done })
    }

    fn apply_region(&mut self, mutation: &RegionMutation) -> RegionOutcome {
        if let RegionMutation::Open { id } = mutation {
            return self.open_region(*id);
        }
        let mut ledger = Ledger::default();
        let outcome = self.regions.apply(mutation, &self.pgs, &mut ledger);
        self.pgs.settle(&ledger);
        outcome
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
        put_u64(out, self.applied_config.0);
        put_table(out, &self.pgs);
        self.regions.encode(&self.pgs, out);
        put_table(out, &self.files);
        put_table(out, &self.sessions);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let id = PartitionId(take_u32(reader)?);
        let applied = take_u64(reader)?;
        let applied_config = ConfigNumber(take_u64(reader)?);
        let mut pgs: PgTable = take_table(reader)?;
        let mut ledger = Ledger::default();
        let regions = RegionTable::decode(reader, pgs.len(), &mut ledger)?;
        pgs.settle_loaded(&ledger).map_err(|_| DecodeError::Field("a group without references"))?;
        let (files, sessions) = (take_table(reader)?, take_table(reader)?);
        Ok(Self { id, applied, applied_config, pgs, regions, files, sessions })
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
