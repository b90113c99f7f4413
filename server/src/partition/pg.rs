//! Parity groups of a partition: records at home, stubs at participants, and the ids of those that
//! are gone.
//!
//! ```text
//!            commit                  no fragment is left anywhere      every member has freed
//! (nothing) --------> on record ----------------------------> dead ---------------> remembered
//!     \---- cancel ------------------------------------------------------------------/
//! ```
//!
//! The mutation that takes the last reference makes a group dead; what is applied is committed, so
//! members can be told to free from then on (rule 4). Ids are remembered until the horizon has
//! passed their slot (rule 3): ids sort by slot first, which makes forgetting one cut.

use std::collections::{BTreeMap, BTreeSet};

use bb_proto::{Fid, PartitionId, PgBody, PgDescriptor, PgId, SessionId, Tick};

use super::fragment_map::PgRef;
use super::pg_mutation::InlineBytes;
use super::pg_slots::PgSlots;
use crate::planted::{self, Planted};

/// What became of a group that is not on record (any more).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Fate {
    /// Was committed here; nothing is left.
    Gone = 1,
    /// Its commit was forbidden.
    Cancelled = 2,
}

/// A partition that took fragments of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Participant {
    /// Which.
    pub partition: PartitionId,
    /// It holds no fragment any more (rule 2: a set, not a counter).
    pub released: bool,
}

/// What only home knows of a group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HomeRecord {
    /// Who else took fragments; sorted, without home.
    pub participants: Vec<Participant>,
    /// Members (bit = index) that were not active at commit: to be rebuilt (rule 5).
    pub absent_members: u32,
    /// Members that have freed their block.
    pub freed_members: u32,
    /// No reference is left: members are being told to free.
    pub dead: bool,
}

/// A group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pg {
    /// The file that it belongs to.
    pub fid: Fid,
    /// Where its bytes are.
    pub descriptor: PgDescriptor,
    /// At home: the rest of the record. A stub at a participant has none.
    pub home: Option<Box<HomeRecord>>,
    /// Bytes of an inline group, at home.
    pub inline: InlineBytes,
    /// Bytes that fragments of this partition name.
    live_bytes: u64,
}

/// Sums over the groups of a partition, kept along.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PgTotals {
    /// Bytes that fragments name.
    pub live_bytes: u64,
    /// Bytes that groups on record here occupy on devices, parity included (home only).
    pub allocated_bytes: u64,
    /// Bytes of inline groups.
    pub inline_bytes: u64,
    /// Memory of records and stubs, without inline bytes.
    pub record_bytes: u64,
}

/// Memory of a record or stub besides its members: its slot, its entry in the index, the overhead of
/// an allocation. Measured in `tests/metadata_bytes.rs`.
const PG_BYTES: u64 = 208;
/// Memory of home's part, besides the participants.
const HOME_BYTES: u64 = 72;
/// Memory of an id that is remembered.
const REMEMBERED_BYTES: u64 = 64;

impl Pg {
    /// Bytes that fragments of this partition name (rule 15).
    pub const fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Bytes that its blocks occupy on devices.
    pub fn allocated_bytes(&self) -> u64 {
        match &self.descriptor.body {
            PgBody::Blocks { block_log2, members, .. } => (members.len() as u64) << block_log2,
            PgBody::Inline { .. } => 0,
        }
    }

    /// Number of members, 0 for an inline group.
    pub fn member_count(&self) -> u32 {
        match &self.descriptor.body {
            PgBody::Blocks { members, .. } => u32::try_from(members.len()).unwrap_or(u32::MAX),
            PgBody::Inline { .. } => 0,
        }
    }

    fn memory_bytes(&self) -> u64 {
        let participants = self.home.as_deref().map(|home| home.participants.len());
        record_bytes(u64::from(self.member_count()), participants)
    }
}

/// Memory of a record with so many members: home's, with its participants, or a stub.
pub fn record_bytes(members: u64, participants: Option<usize>) -> u64 {
    let home = participants.map_or(0, |others| HOME_BYTES + others as u64 * 8);
    PG_BYTES + members * 8 + home
}

/// Changes of how many bytes fragments name, gathered while a mutation is applied: a group that
/// loses its last fragment to the same mutation that gives it a new one must not die in between.
#[derive(Default, Debug)]
pub struct Ledger {
    entries: Vec<(PgRef, i64)>,
}

impl Ledger {
    /// Fragments name `bytes` more of `pg`. Zero to have it looked at.
    pub fn add(&mut self, pg: PgRef, bytes: u32) {
        self.entries.push((pg, i64::from(bytes)));
    }

    /// Fragments name `bytes` less of `pg`.
    pub fn sub(&mut self, pg: PgRef, bytes: u32) {
        self.entries.push((pg, -i64::from(bytes)));
    }
}

/// The groups of a partition.
#[derive(Default, Debug)]
pub struct PgTable {
    pub(super) horizon: Tick,
    slots: PgSlots,
    pub(super) index: BTreeMap<PgId, PgRef>,
    pub(super) remembered: BTreeMap<PgId, Fate>,
    /// Released here, home does not know yet.
    pub(super) owed: BTreeSet<PgId>,
    dead: BTreeSet<PgId>,
    /// Dead groups whose remaining members are on nodes that are down. Of this replica's memory
    /// only: they wait for another map.
    parked: BTreeSet<PgId>,
    /// At home, without a fragment here, some participant silent.
    silent: BTreeSet<PgId>,
    totals: PgTotals,
}

impl PgTable {
    /// The slot up to which no new group is accepted.
    pub const fn horizon(&self) -> Tick {
        self.horizon
    }

    /// A deliberate error.
    #[cfg(feature = "planted")]
    pub(super) const fn drop_horizon(&mut self) {
        self.horizon = Tick(0);
    }

    /// Sums.
    pub const fn totals(&self) -> PgTotals {
        self.totals
    }

    /// Number of records and stubs.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// True without records and stubs.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Memory, as counted.
    pub fn memory_bytes(&self) -> u64 {
        let dead = self.dead.len() + self.parked.len();
        let ids = self.remembered.len() + self.owed.len() + dead + self.silent.len();
        self.totals.record_bytes + self.totals.inline_bytes + ids as u64 * REMEMBERED_BYTES
    }

    /// A group on record (dead ones included).
    pub fn find(&self, id: PgId) -> Option<&Pg> {
        self.index.get(&id).map(|at| self.get(*at))
    }

    /// The local name of a group on record.
    pub fn reference(&self, id: PgId) -> Option<PgRef> {
        self.index.get(&id).copied()
    }

    /// A group by its local name.
    pub fn get(&self, at: PgRef) -> &Pg {
        self.slots.get(at).expect("fragments name groups on record")
    }

    fn get_mut(&mut self, at: PgRef) -> &mut Pg {
        self.slots.get_mut(at).expect("fragments name groups on record")
    }

    /// What became of a group that is not on record.
    pub fn fate(&self, id: PgId) -> Option<Fate> {
        self.remembered.get(&id).copied()
    }

    /// Groups in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (PgRef, &Pg)> {
        self.index.values().map(|at| (*at, self.get(*at)))
    }

    /// Dead groups of which members can be told, in order.
    pub fn dead(&self) -> impl Iterator<Item = &Pg> {
        self.dead.iter().filter_map(|id| self.find(*id))
    }

    /// Nobody can be told of these dead groups for now.
    pub fn park(&mut self, ids: &[PgId]) {
        for id in ids {
            if self.dead.remove(id) {
                self.parked.insert(*id);
            }
        }
    }

    /// The map is another: there may be somebody to tell now.
    pub fn unpark(&mut self) {
        self.dead.append(&mut self.parked);
    }

    /// Groups that were released here and whose homes do not know yet.
    pub fn owed(&self) -> impl Iterator<Item = PgId> + '_ {
        self.owed.iter().copied()
    }

    /// Groups at home that only silent participants keep alive.
    pub fn silent(&self) -> impl Iterator<Item = &Pg> {
        self.silent.iter().filter_map(|id| self.find(*id))
    }

    /// True if members are to be told to free, or homes that something was released.
    pub fn has_work(&self) -> bool {
        !self.dead.is_empty() || !self.owed.is_empty()
    }

    /// Puts a group on record. It has no fragments yet.
    pub fn insert(
        &mut self,
        fid: Fid,
        descriptor: PgDescriptor,
        home: Option<HomeRecord>,
        inline: InlineBytes,
    ) -> PgRef {
        let id = descriptor.pg;
        let pg = Pg { fid, descriptor, home: home.map(Box::new), inline, live_bytes: 0 };
        self.count(&pg, true);
        let at = self.slots.put(pg);
        let old = self.index.insert(id, at);
        assert!(old.is_none(), "{id:?} is on record");
        at
    }

    /// From a snapshot: the group was dead.
    pub(super) fn note_dead(&mut self, id: PgId) {
        self.dead.insert(id);
    }

    /// From a snapshot, when all fragments are counted: finds again what waits for silent
    /// participants.
    ///
    /// # Errors
    /// The id of a group that should have died before the snapshot was taken.
    pub(super) fn settle_loaded(&mut self, ledger: &Ledger) -> Result<(), PgId> {
        for (at, change) in &ledger.entries {
            let pg = self.get_mut(*at);
            pg.live_bytes = pg.live_bytes.checked_add_signed(*change).ok_or(pg.descriptor.pg)?;
            self.totals.live_bytes += change.unsigned_abs();
        }
        let unnamed: Vec<PgRef> =
            self.iter().filter(|(_, pg)| pg.live_bytes == 0).map(|(at, _)| at).collect();
        for at in unnamed {
            let pg = self.get(at);
            let id = pg.descriptor.pg;
            let home = pg.home.as_ref().ok_or(id)?;
            if !home.dead {
                let silent = home.participants.iter().any(|participant| !participant.released);
                silent.then(|| self.silent.insert(id)).ok_or(id)?;
            }
        }
        Ok(())
    }

    /// Carries out what a mutation has changed; afterwards groups without references are released
    /// or dead.
    pub fn settle(&mut self, ledger: &Ledger) {
        for (at, change) in &ledger.entries {
            let pg = self.get_mut(*at);
            pg.live_bytes =
                pg.live_bytes.checked_add_signed(*change).expect("no byte is released twice");
            self.totals.live_bytes =
                self.totals.live_bytes.checked_add_signed(*change).expect("the sum of those");
        }
        for (at, _) in &ledger.entries {
            // Named twice, a group may be gone by now (its slot is free, not given again).
            if self.slots.get(*at).is_some() {
                self.check_references(*at);
            }
        }
    }

    fn check_references(&mut self, at: PgRef) {
        let pg = self.get_mut(at);
        let id = pg.descriptor.pg;
        if pg.live_bytes > 0 {
            return;
        }
        let Some(home) = &mut pg.home else {
            self.drop_record(id);
            self.owed.insert(id);
            return;
        };
        if home.dead {
            return;
        }
        if home.participants.iter().any(|participant| !participant.released) {
            self.silent.insert(id);
            return;
        }
        home.dead = true;
        let members = pg.member_count();
        self.silent.remove(&id);
        if members == 0 {
            self.drop_record(id);
        } else {
            self.dead.insert(id);
        }
    }

    /// Takes a group off the record; its id is remembered.
    fn drop_record(&mut self, id: PgId) {
        let Some(at) = self.index.remove(&id) else { return };
        if let Some(pg) = self.slots.take(at) {
            self.count(&pg, false);
        }
        self.remember(id, Fate::Gone);
    }

    fn remember(&mut self, id: PgId, fate: Fate) {
        // At or below the horizon no commit is accepted anyway.
        if id.slot > self.horizon {
            self.remembered.insert(id, fate);
        }
    }

    fn count(&mut self, pg: &Pg, add: bool) {
        let allocated = if pg.home.is_some() { pg.allocated_bytes() } else { 0 };
        let changes = [
            (&mut self.totals.allocated_bytes, allocated),
            (&mut self.totals.inline_bytes, pg.inline.len() as u64),
            (&mut self.totals.record_bytes, pg.memory_bytes()),
        ];
        for (total, bytes) in changes {
            *total = if add { *total + bytes } else { *total - bytes };
        }
    }

    /// Forbids a commit; true if it had been applied before.
    pub fn cancel(&mut self, id: PgId) -> bool {
        if self.index.contains_key(&id) || self.fate(id) == Some(Fate::Gone) {
            return true;
        }
        self.remember(id, Fate::Cancelled);
        false
    }

    /// Moves the horizon; never back.
    pub fn move_horizon(&mut self, slot: Tick) {
        self.horizon = self.horizon.max(slot);
        let first = PgId {
            slot: Tick(self.horizon.0.saturating_add(1)),
            session: SessionId(0),
            sequence: 0,
            home: PartitionId(0),
        };
        self.remembered = self.remembered.split_off(&first);
    }

    /// A participant holds no fragment of `id` any more.
    pub fn release(&mut self, participant: PartitionId, id: PgId) {
        let Some(at) = self.reference(id) else { return };
        let Some(home) = &mut self.get_mut(at).home else { return };
        for entry in &mut home.participants {
            entry.released |=
                entry.partition == participant || planted::is(Planted::FreeAtFirstRelease);
        }
        self.check_references(at);
    }

    /// Home knows that `id` was released here.
    pub fn release_acked(&mut self, id: PgId) {
        self.owed.remove(&id);
    }

    /// Members of a dead group have freed their blocks.
    pub fn freed(&mut self, id: PgId, members: u32) {
        let Some(at) = self.reference(id) else { return };
        let pg = self.get_mut(at);
        let all = (1 << pg.member_count()) - 1;
        let Some(home) = pg.home.as_mut().filter(|home| home.dead) else { return };
        home.freed_members |= members & all;
        if home.freed_members == all {
            self.dead.remove(&id);
            self.parked.remove(&id);
            self.drop_record(id);
        }
    }
}
