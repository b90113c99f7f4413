//! Where the groups of a partition lie in memory: in slabs, so that a table that grows neither moves
//! what it holds nor keeps room for as much again.

use super::fragment_map::PgRef;
use super::pg::Pg;

/// Groups of a slab, which alone grows as vectors do: a partition with few groups has little.
const SLAB: usize = 32;

/// Groups by their local names.
#[derive(Default, Debug)]
pub(super) struct PgSlots {
    slabs: Vec<Vec<Option<Pg>>>,
    /// Names that are not in use.
    free: Vec<PgRef>,
}

impl PgSlots {
    /// A group, if there is one of that name.
    pub(super) fn get(&self, at: PgRef) -> Option<&Pg> {
        let at = at.0 as usize;
        self.slabs.get(at / SLAB)?.get(at % SLAB)?.as_ref()
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, at: PgRef) -> Option<&mut Pg> {
        let at = at.0 as usize;
        self.slabs.get_mut(at / SLAB)?.get_mut(at % SLAB)?.as_mut()
    }

    /// Puts a group in; its name may have been another's before.
    pub(super) fn put(&mut self, pg: Pg) -> PgRef {
        if let Some(at) = self.free.pop() {
            let at_slab = at.0 as usize / SLAB;
            self.slabs[at_slab][at.0 as usize % SLAB] = Some(pg);
            return at;
        }
        if self.slabs.last().is_none_or(|slab| slab.len() == SLAB) {
            self.slabs.push(Vec::new());
        }
        let before = (self.slabs.len() - 1) * SLAB;
        let slab = self.slabs.last_mut().expect("pushed just now, or not full");
        slab.push(Some(pg));
        PgRef(u32::try_from(before + slab.len() - 1).expect("the metadata budget is smaller"))
    }

    /// Takes a group out.
    pub(super) fn take(&mut self, at: PgRef) -> Option<Pg> {
        let index = at.0 as usize;
        let pg = self.slabs.get_mut(index / SLAB)?.get_mut(index % SLAB)?.take()?;
        self.free.push(at);
        Some(pg)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pg_mutation::InlineBytes;
    use super::*;
    use bb_proto::{Fid, PartitionId, PgBody, PgDescriptor, PgId, SessionId, Tick};

    use crate::partition::pg::PgTable;

    #[test]
    fn names_of_groups_that_are_gone_are_given_again_and_no_other() {
        let mut table = PgTable::default();
        let count = u32::try_from(3 * SLAB + 1).expect("small");
        let mut insert = |sequence| {
            let pg = PgId { slot: Tick(1), session: SessionId(1), sequence, home: PartitionId(0) };
            let body = PgBody::Inline { len: 1, crc: 0 };
            table.insert(Fid(1), PgDescriptor { pg, body }, None, InlineBytes::default())
        };
        let all: Vec<PgRef> = (0..count).map(&mut insert).collect();
        assert!(all.iter().zip(0..).all(|(at, number)| at.0 == number));
        let mut slots = PgSlots::default();
        all.iter().for_each(|at| assert_eq!(slots.put(table.get(*at).clone()), *at));
        let gone = [PgRef(5), PgRef(40), PgRef(count - 1)];
        for at in gone {
            assert_eq!(slots.take(at).as_ref(), Some(table.get(at)));
            assert!(slots.get(at).is_none() && slots.take(at).is_none());
        }
        let again: Vec<PgRef> = gone.iter().map(|at| slots.put(table.get(*at).clone())).collect();
        assert_eq!(again, gone.iter().rev().copied().collect::<Vec<_>>());
        assert_eq!(slots.put(table.get(PgRef(0)).clone()), PgRef(count));
        assert!(slots.get(PgRef(count + 1)).is_none());
    }
}
