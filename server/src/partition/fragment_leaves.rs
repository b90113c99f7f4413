//! How the fragments of a region lie in memory: 16 bytes each, sorted, in leaves of up to 128 that
//! are allocated as large as they need to be.
//!
//! ```text
//! first leaf: 0x0000_1000 len ref tail | 0x0000_9000 len ref tail | ...        (in the map itself)
//! rest:       B-tree, lower bound of the offsets in a leaf -> leaf
//! ```
//!
//! A fragment keeps the low 32 bits of its offset; the others are those of its leaf's lower bound:
//! a leaf never reaches over a multiple of 4 GiB. No region of the default size meets one, and most
//! regions of small files have one leaf and no tree.
//!
//! A full leaf is halved, except where fragments come in ascending order: then it stays full and a
//! new one begins behind it. Leaves are not kept roomy for what may come: their capacity grows and
//! shrinks in steps of 8, so that half a leaf costs half the memory. A leaf that has become small is
//! united with a neighbour. Prices: `tests/metadata_bytes.rs`.

use std::collections::BTreeMap;
use std::ops::Bound;

use bb_proto::meta::FragmentState;

use super::fragment_map::{PgRef, Piece, Place, StageRef};

/// A fragment, packed: of `tail`, the lowest 3 bits are the tag, those above the offset in the group
/// (below 2^24: 16 blocks of 1 MiB).
#[derive(Clone, Copy)]
struct Slot {
    low: u32,
    len: u32,
    reference: u32,
    tail: u32,
}

const _: () = assert!(size_of::<Slot>() == 16);
const PLACEHOLDER: u32 = 4;
/// Fragments of a leaf: inserting moves half of its 2 KiB.
const LEAF_MAX: usize = 128;
/// Leaves with fewer are united with a neighbour, where both then have at most [`UNITED_MAX`].
const LEAF_SMALL: usize = 48;
const UNITED_MAX: usize = 112;
/// Capacity of leaves grows in such steps.
const STEP: usize = 8;

impl Slot {
    fn pack(piece: &Piece) -> Self {
        let (reference, tail) = match piece.place {
            Place::Pg { pg, pg_offset, state } => {
                assert!(pg_offset < 1 << 29, "a group is smaller");
                (pg.0, pg_offset << 3 | state_tag(state))
            }
            Place::Placeholder(stage) => (stage.0, PLACEHOLDER),
        };
        Self { low: low_of(piece.offset), len: piece.len, reference, tail }
    }

    fn unpack(self, window: u32) -> Piece {
        let place = match self.tail & 7 {
            PLACEHOLDER => Place::Placeholder(StageRef(self.reference)),
            tag => Place::Pg {
                pg: PgRef(self.reference),
                pg_offset: self.tail >> 3,
                state: tag_state(tag),
            },
        };
        Piece { offset: u64::from(window) << 32 | u64::from(self.low), len: self.len, place }
    }
}

fn low_of(offset: u64) -> u32 {
    u32::try_from(offset & u64::from(u32::MAX)).expect("32 bits")
}

fn window_of(offset: u64) -> u32 {
    u32::try_from(offset >> 32).expect("32 bits")
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

/// Sorted; never empty once it is in the tree.
type Leaf = Vec<Slot>;

/// Which leaf.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    First,
    /// That of the tree with this lower bound.
    Rest(u64),
}

/// The leaves of a region.
#[derive(Default)]
pub(super) struct Leaves {
    /// Lies before all others. Empty only if there are no others.
    first: Leaf,
    first_window: u32,
    /// By lower bound of the offsets; that of the next leaf is the upper one.
    rest: BTreeMap<u64, Leaf>,
}

impl Leaves {
    /// The leaf that would hold `offset`, if there is a leaf up to there.
    fn which(&self, offset: u64) -> Which {
        self.rest
            .range(..=offset)
            .next_back()
            .map_or(Which::First, |(bound, _)| Which::Rest(*bound))
    }

    fn leaf(&self, which: Which) -> (u32, &Leaf) {
        match which {
            Which::First => (self.first_window, &self.first),
            Which::Rest(bound) => (window_of(bound), &self.rest[&bound]),
        }
    }

    fn leaf_mut(&mut self, which: Which) -> &mut Leaf {
        match which {
            Which::First => &mut self.first,
            Which::Rest(bound) => self.rest.get_mut(&bound).expect("found just now"),
        }
    }

    /// All leaves behind one, in order.
    fn behind(&self, which: Which) -> impl DoubleEndedIterator<Item = (u64, &Leaf)> {
        let after = match which {
            Which::First => Bound::Unbounded,
            Which::Rest(bound) => Bound::Excluded(bound),
        };
        self.rest.range((after, Bound::Unbounded)).map(|(bound, leaf)| (*bound, leaf))
    }

    /// The leaf before one.
    fn ahead(&self, which: Which) -> Option<Which> {
        let Which::Rest(bound) = which else { return None };
        let before = self.rest.range(..bound).next_back();
        Some(before.map_or(Which::First, |(bound, _)| Which::Rest(*bound)))
    }

    /// Fragments that begin at `start` or behind it, in order.
    pub(super) fn from(&self, start: u64) -> impl Iterator<Item = Piece> + '_ {
        let which = self.which(start);
        let (window, leaf) = self.leaf(which);
        let skipped = position(window, leaf, start);
        let rest = self.behind(which).flat_map(|(bound, leaf)| unpacked(window_of(bound), leaf));
        unpacked(window, &leaf[skipped..]).chain(rest)
    }

    /// All fragments, the last first.
    pub(super) fn backwards(&self) -> impl Iterator<Item = Piece> + '_ {
        let first = unpacked(self.first_window, &self.first);
        let rest = self.behind(Which::First);
        first.chain(rest.flat_map(|(bound, leaf)| unpacked(window_of(bound), leaf))).rev()
    }

    /// The last fragment that begins before `offset`.
    pub(super) fn before(&self, offset: u64) -> Option<Piece> {
        let which = self.which(offset);
        let (window, leaf) = self.leaf(which);
        if let Some(at) = position(window, leaf, offset).checked_sub(1) {
            return Some(leaf[at].unpack(window));
        }
        let (window, leaf) = self.leaf(self.ahead(which)?);
        leaf.last().map(|slot| slot.unpack(window))
    }

    /// The fragment that begins at `offset`.
    pub(super) fn at(&self, offset: u64) -> Option<Piece> {
        let (window, leaf) = self.leaf(self.which(offset));
        let slot = leaf.get(position(window, leaf, offset))?;
        Some(slot.unpack(window)).filter(|piece| piece.offset == offset)
    }

    /// Adds a fragment. None begins there.
    pub(super) fn insert(&mut self, piece: &Piece) {
        let which = self.room_for(piece.offset);
        let (window, leaf) = self.leaf(which);
        let at = position(window, leaf, piece.offset);
        let low = low_of(piece.offset);
        assert!(leaf.get(at).is_none_or(|slot| slot.low != low), "fragments overlap");
        let leaf = self.leaf_mut(which);
        if leaf.len() == leaf.capacity() {
            leaf.reserve_exact(capacity_for(leaf.len() + 1) - leaf.len());
        }
        leaf.insert(at, Slot::pack(piece));
    }

    /// The leaf for a new fragment at `offset`, which has room for it.
    fn room_for(&mut self, offset: u64) -> Which {
        let which = self.which(offset);
        let (window, leaf) = self.leaf(which);
        if which == Which::First && leaf.is_empty() {
            self.first_window = window_of(offset);
            return which;
        }
        if window_of(offset) < window {
            // Before the first: that goes to the tree, under a bound that all of it is above.
            let first = std::mem::take(&mut self.first);
            let old = self.rest.insert(u64::from(self.first_window) << 32, first);
            assert!(old.is_none(), "the first leaf lies before all others");
            self.first_window = window_of(offset);
            return Which::First;
        }
        if window_of(offset) > window {
            let bound = u64::from(window_of(offset)) << 32;
            self.rest.insert(bound, Leaf::new());
            return Which::Rest(bound);
        }
        if leaf.len() < LEAF_MAX {
            return which;
        }
        if position(window, leaf, offset) < LEAF_MAX {
            return self.halve(which, offset);
        }
        // Behind a full leaf: it stays full.
        let next = self.behind(which).next().map(|(bound, leaf)| (bound, leaf.len()));
        match next {
            Some((bound, len)) if window_of(bound) == window && len < LEAF_MAX => {
                let next = self.rest.remove(&bound).expect("found just now");
                self.rest.insert(offset, next);
            }
            Some((bound, _)) if window_of(bound) == window => return self.halve(which, offset),
            _ => drop(self.rest.insert(offset, Leaf::new())),
        }
        Which::Rest(offset)
    }

    /// Halves a full leaf. Returns the half for `offset`.
    fn halve(&mut self, which: Which, offset: u64) -> Which {
        let (window, _) = self.leaf(which);
        let leaf = self.leaf_mut(which);
        let mut upper = Leaf::with_capacity(LEAF_MAX / 2 + STEP);
        upper.extend_from_slice(&leaf[LEAF_MAX / 2..]);
        leaf.truncate(LEAF_MAX / 2);
        leaf.shrink_to(LEAF_MAX / 2 + STEP);
        let bound = upper[0].unpack(window).offset;
        self.rest.insert(bound, upper);
        if offset < bound { which } else { Which::Rest(bound) }
    }

    /// Takes out the `count` fragments that begin in `start .. end`.
    pub(super) fn remove(&mut self, start: u64, end: u64, count: usize) {
        let mut left = count;
        let mut which = self.which(start);
        while left > 0 {
            let (window, leaf) = self.leaf(which);
            let (from, to) = (position(window, leaf, start), position(window, leaf, end));
            let next = self.behind(which).next().map(|(bound, _)| Which::Rest(bound));
            let leaf = self.leaf_mut(which);
            leaf.drain(from..to);
            left -= to - from;
            let emptied = leaf.is_empty();
            if left == 0 {
                self.tidy(which);
            } else if emptied {
                self.drop_empty(which);
            }
            // An emptied first leaf was replaced by the next one.
            which = match next {
                Some(next) if which != Which::First || !emptied => next,
                _ => Which::First,
            };
        }
        // Where it began, a few may be left as well.
        self.tidy(self.which(start));
    }

    fn drop_empty(&mut self, which: Which) {
        match which {
            Which::First => {
                self.first = Leaf::new();
                if let Some((bound, leaf)) = self.rest.pop_first() {
                    (self.first_window, self.first) = (window_of(bound), leaf);
                }
            }
            Which::Rest(bound) => drop(self.rest.remove(&bound)),
        }
    }

    /// A leaf has lost fragments: it goes if it is empty, and is united with a neighbour if it is
    /// small.
    fn tidy(&mut self, which: Which) {
        let (window, leaf) = self.leaf(which);
        let len = leaf.len();
        if len == 0 {
            return self.drop_empty(which);
        }
        if len < LEAF_SMALL {
            let fits =
                |(other, leaf): (u32, &Leaf)| other == window && leaf.len() + len <= UNITED_MAX;
            let next = self.behind(which).next();
            if let Some((bound, _)) = next.filter(|(b, leaf)| fits((window_of(*b), *leaf))) {
                return self.unite(which, bound);
            }
            if let (Some(ahead), Which::Rest(bound)) = (self.ahead(which), which)
                && fits(self.leaf(ahead))
            {
                return self.unite(ahead, bound);
            }
        }
        shrink(self.leaf_mut(which));
    }

    /// Takes the leaf at `bound`, the next one, into `which`.
    fn unite(&mut self, which: Which, bound: u64) {
        let next = self.rest.remove(&bound).expect("a neighbour");
        let leaf = self.leaf_mut(which);
        leaf.reserve_exact(next.len());
        leaf.extend(next);
        shrink(leaf);
    }
}

/// Where in a leaf the first fragment at `offset` or behind it is.
fn position(window: u32, leaf: &[Slot], offset: u64) -> usize {
    match window_of(offset).cmp(&window) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Greater => leaf.len(),
        std::cmp::Ordering::Equal => {
            let low = low_of(offset);
            leaf.partition_point(|slot| slot.low < low)
        }
    }
}

fn unpacked(window: u32, leaf: &[Slot]) -> impl DoubleEndedIterator<Item = Piece> + '_ {
    leaf.iter().map(move |slot| slot.unpack(window))
}

/// Capacity of a leaf that shall hold so many: exact for the few of a small file.
const fn capacity_for(len: usize) -> usize {
    match len {
        ..=2 => len,
        3..=4 => 4,
        _ => len.next_multiple_of(STEP),
    }
}

fn shrink(leaf: &mut Leaf) {
    if leaf.capacity() >= leaf.len() + 2 * STEP {
        leaf.shrink_to(capacity_for(leaf.len()));
    }
}

#[cfg(test)]
#[path = "fragment_leaves_tests.rs"]
mod tests;
