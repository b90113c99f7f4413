//! Which bytes of a region lie where: a map of fragments that do not overlap.
//!
//! Fragments that continue each other, in the file and in the group, are one. Byte counts are kept
//! along. How fragments lie in memory: [`super::fragment_leaves`].

use bb_proto::meta::FragmentState;

use super::fragment_leaves::Leaves;

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
    leaves: Leaves,
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
    pub const fn is_empty(&self) -> bool {
        self.counts.fragments == 0
    }

    /// First offset behind the last byte that lies in a group, 0 if there is none.
    pub fn end(&self) -> u64 {
        self.leaves
            .backwards()
            .find(|piece| matches!(piece.place, Place::Pg { .. }))
            .map_or(0, |piece| piece.end())
    }

    /// What lies in `start .. end`, in order, cut to it.
    pub fn pieces(&self, start: u64, end: u64) -> impl Iterator<Item = Piece> + '_ {
        let before = self.leaves.before(start).filter(|piece| piece.end() > start && start < end);
        before
            .into_iter()
            .chain(self.leaves.from(start).take_while(move |piece| piece.offset < end))
            .map(move |piece| piece.clipped(start, end))
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
        let removed: Vec<Piece> =
            self.leaves.from(start).take_while(|piece| piece.offset < end).collect();
        self.leaves.remove(start, end, removed.len());
        removed.iter().for_each(|piece| self.counts.sub(piece));
        removed
    }

    /// Puts `piece` where nothing lies.
    pub fn insert(&mut self, mut piece: Piece) {
        debug_assert!(self.pieces(piece.offset, piece.end()).next().is_none(), "occupied");
        if let Some(before) = self.leaves.before(piece.offset)
            && before.continues_in(&piece)
        {
            self.take(&before);
            piece = Piece { len: before.len + piece.len, ..before };
        }
        if let Some(after) = self.leaves.at(piece.end())
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
        self.leaves.insert(piece);
    }

    fn take(&mut self, piece: &Piece) {
        self.counts.sub(piece);
        self.leaves.remove(piece.offset, piece.offset + 1, 1);
    }

    fn split_at(&mut self, at: u64) {
        let Some(whole) = self.leaves.before(at).filter(|whole| whole.end() > at) else { return };
        self.take(&whole);
        self.put(&whole.clipped(whole.offset, at));
        self.put(&whole.clipped(at, whole.end()));
    }
}

#[cfg(test)]
#[path = "fragment_map_tests.rs"]
mod tests;
