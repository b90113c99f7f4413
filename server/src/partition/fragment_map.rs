//! Which bytes of a region lie where: a map of fragments that do not overlap.
//!
//! A fragment takes 20 bytes (8 of key, 12 of value) and its share of B-tree nodes. Fragments that
//! continue each other, in the file and in the group, are one. Byte counts are kept along.

use std::collections::BTreeMap;
use std::ops::Bound;

use bb_proto::meta::FragmentState;

/// A parity group, as the fragments of one partition name it: its place in the partition's table.
/// Lives in memory only; snapshots number the groups anew.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PgRef(pub u32);

/// A prestage, as the placeholders of one region name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StageRef(pub u32);

/// What a fragment points at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Bytes of a group.
    Pg {
        /// The group.
        pg: PgRef,
        /// Offset in its data, in bytes.
        pg_offset: u32,
        /// State of the bytes.
        state: FragmentState,
    },
    /// Nothing yet: a prestage may put bytes here as long as nobody else does (rule 9).
    Placeholder(StageRef),
}

/// A fragment, or a part of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
    /// Where the bytes are.
    pub place: Place,
}

impl Piece {
    /// First offset behind it.
    pub const fn end(&self) -> u64 {
        self.offset + self.len as u64
    }

    /// The part of it inside `start .. end`, which it overlaps.
    fn clipped(&self, start: u64, end: u64) -> Self {
        let from = self.offset.max(start);
        let to = self.end().min(end);
        let skipped = u32::try_from(from - self.offset).expect("less than the piece's length");
        let len = u32::try_from(to - from).expect("less than the piece's length");
        Self { offset: from, len, place: self.place.advanced(skipped) }
    }

    /// True if `next` goes on where this ends.
    fn continues_in(&self, next: &Self) -> bool {
        self.end() == next.offset
            && self.len.checked_add(next.len).is_some()
            && self.place.advanced(self.len) == next.place
    }
}

impl Place {
    const fn advanced(self, by: u32) -> Self {
        match self {
            Self::Pg { pg, pg_offset, state } => Self::Pg { pg, pg_offset: pg_offset + by, state },
            Self::Placeholder(_) => self,
        }
    }
}

/// [`Piece`] without its offset, packed: the tag takes the lowest 3 bits of `tail`, the offset in
/// the group (below 2^24: 16 blocks of 1 MiB) those above.
#[derive(Clone, Copy)]
struct Slot {
    len: u32,
    reference: u32,
    tail: u32,
}

const _: () = assert!(size_of::<Slot>() == 12);
const PLACEHOLDER: u32 = 4;

impl Slot {
    fn pack(piece: &Piece) -> Self {
        let (reference, tail) = match piece.place {
            Place::Pg { pg, pg_offset, state } => {
                assert!(pg_offset < 1 << 29, "a group is smaller");
                (pg.0, pg_offset << 3 | state_tag(state))
            }
            Place::Placeholder(stage) => (stage.0, PLACEHOLDER),
        };
        Self { len: piece.len, reference, tail }
    }

    fn unpack(self, offset: u64) -> Piece {
        let place = match self.tail & 7 {
            PLACEHOLDER => Place::Placeholder(StageRef(self.reference)),
            tag => Place::Pg {
                pg: PgRef(self.reference),
                pg_offset: self.tail >> 3,
                state: tag_state(tag),
            },
        };
        Piece { offset, len: self.len, place }
    }
}

const fn state_tag(state: FragmentState) -> u32 {
    match state {
        FragmentState::Dirty => 0,
        FragmentState::Pending => 1,
        FragmentState::Clean => 2,
        FragmentState::Deletable => 3,
    }
}

const fn tag_state(tag: u32) -> FragmentState {
    match tag {
        0 => FragmentState::Dirty,
        1 => FragmentState::Pending,
        2 => FragmentState::Clean,
        _ => FragmentState::Deletable,
    }
}

/// Bytes by state, and how many fragments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Bytes only here.
    pub dirty: u64,
    /// Bytes being synchronized.
    pub pending: u64,
    /// Bytes that the backing file system has, too.
    pub clean: u64,
    /// Bytes given up.
    pub deletable: u64,
    /// Fragments, placeholders included.
    pub fragments: u64,
}

impl Counts {
    fn of(&mut self, place: Place) -> Option<&mut u64> {
        match place {
            Place::Pg { state, .. } => Some(match state {
                FragmentState::Dirty => &mut self.dirty,
                FragmentState::Pending => &mut self.pending,
                FragmentState::Clean => &mut self.clean,
                FragmentState::Deletable => &mut self.deletable,
            }),
            Place::Placeholder(_) => None,
        }
    }

    fn add(&mut self, piece: &Piece) {
        self.fragments += 1;
        if let Some(bytes) = self.of(piece.place) {
            *bytes += u64::from(piece.len);
        }
    }

    fn sub(&mut self, piece: &Piece) {
        self.fragments -= 1;
        if let Some(bytes) = self.of(piece.place) {
            *bytes -= u64::from(piece.len);
        }
    }

    /// All bytes that lie in groups.
    pub const fn bytes(&self) -> u64 {
        self.dirty + self.pending + self.clean + self.deletable
    }

    /// Replaces what was counted as `before` by `after`.
    pub const fn replace(&mut self, before: &Self, after: &Self) {
        self.dirty = self.dirty - before.dirty + after.dirty;
        self.pending = self.pending - before.pending + after.pending;
        self.clean = self.clean - before.clean + after.clean;
        self.deletable = self.deletable - before.deletable + after.deletable;
        self.fragments = self.fragments - before.fragments + after.fragments;
    }
}

/// The fragments of a region.
#[derive(Default)]
pub struct FragmentMap {
    slots: BTreeMap<u64, Slot>,
    counts: Counts,
}

impl std::fmt::Debug for FragmentMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.pieces(0, u64::MAX)).finish()
    }
}

impl FragmentMap {
    /// Bytes by state.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// True if there is nothing, not even a placeholder.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// First offset behind the last byte that lies in a group, 0 if there is none.
    pub fn end(&self) -> u64 {
        self.slots
            .iter()
            .rev()
            .map(|(offset, slot)| slot.unpack(*offset))
            .find(|piece| matches!(piece.place, Place::Pg { .. }))
            .map_or(0, |piece| piece.end())
    }

    /// What lies in `start .. end`, in order, cut to it.
    pub fn pieces(&self, start: u64, end: u64) -> impl Iterator<Item = Piece> + '_ {
        let first = self
            .slots
            .range(..start)
            .next_back()
            .map(|(offset, slot)| slot.unpack(*offset))
            .filter(|piece| piece.end() > start && start < end)
            .map_or(start, |piece| piece.offset);
        self.slots
            .range((Bound::Included(first), Bound::Excluded(end.max(first))))
            .map(move |(offset, slot)| slot.unpack(*offset).clipped(start, end))
    }

    /// The parts of `start .. end` where nothing lies.
    pub fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = start;
        for piece in self.pieces(start, end) {
            if piece.offset > at {
                gaps.push((at, piece.offset));
            }
            at = piece.end();
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    /// Takes out what lies in `start .. end`.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<Piece> {
        if start >= end {
            return Vec::new();
        }
        self.split_at(start);
        self.split_at(end);
        let mut removed = Vec::new();
        while let Some((offset, slot)) = self.slots.range(start..end).next() {
            let piece = slot.unpack(*offset);
            self.take(&piece);
            removed.push(piece);
        }
        removed
    }

    /// Puts `piece` where nothing lies.
    pub fn insert(&mut self, mut piece: Piece) {
        debug_assert!(self.pieces(piece.offset, piece.end()).next().is_none(), "occupied");
        let before = self.slots.range(..piece.offset).next_back();
        if let Some(before) = before.map(|(offset, slot)| slot.unpack(*offset))
            && before.continues_in(&piece)
        {
            self.take(&before);
            piece = Piece { len: before.len + piece.len, ..before };
        }
        if let Some(after) = self.slots.get(&piece.end()).map(|slot| slot.unpack(piece.end()))
            && piece.continues_in(&after)
        {
            self.take(&after);
            piece.len += after.len;
        }
        self.put(&piece);
    }

    /// Gives pieces in `start .. end` the state that `decide` says; others stay. Returns how many
    /// bytes it changed.
    pub fn set_states(
        &mut self,
        start: u64,
        end: u64,
        mut decide: impl FnMut(&Piece) -> Option<FragmentState>,
    ) -> u64 {
        let mut changed = Vec::new();
        for mut piece in self.pieces(start, end) {
            if let (Some(new), Place::Pg { pg, pg_offset, state }) = (decide(&piece), piece.place)
                && new != state
            {
                piece.place = Place::Pg { pg, pg_offset, state: new };
                changed.push(piece);
            }
        }
        for piece in &changed {
            self.remove(piece.offset, piece.end());
            self.insert(*piece);
        }
        changed.iter().map(|piece| u64::from(piece.len)).sum()
    }

    fn put(&mut self, piece: &Piece) {
        assert!(piece.len > 0, "an empty fragment");
        self.counts.add(piece);
        let old = self.slots.insert(piece.offset, Slot::pack(piece));
        assert!(old.is_none(), "fragments overlap");
    }

    fn take(&mut self, piece: &Piece) {
        self.counts.sub(piece);
        self.slots.remove(&piece.offset);
    }

    fn split_at(&mut self, at: u64) {
        let Some((offset, slot)) = self.slots.range(..at).next_back() else { return };
        let whole = slot.unpack(*offset);
        if whole.end() > at {
            self.take(&whole);
            self.put(&whole.clipped(whole.offset, at));
            self.put(&whole.clipped(at, whole.end()));
        }
    }
}

#[cfg(test)]
#[path = "fragment_map_tests.rs"]
mod tests;
