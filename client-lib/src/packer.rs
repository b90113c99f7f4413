//! Packing: which byte of a file goes where in the open parity group. Knows no memory, no network.
//!
//! Extents are taken in the order of writing. Bytes that are in the group already are overwritten
//! in place, since nobody has seen it yet: so its fragments never overlap, and nothing that was
//! overwritten is ever sent.

use std::collections::BTreeMap;
use std::ops::Range;

use bb_proto::Fragment;

/// Most fragments of a group: their commit must fit a frame's body.
const FRAGMENTS_MAX: usize = 16_384;

/// A stretch of a write that goes to one place in the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Offset in the group's data, in bytes.
    pub pg_offset: u32,
    /// Length in bytes.
    pub len: u32,
}

/// The open parity group of a file.
#[derive(Debug)]
pub struct Packer {
    capacity: u32,
    region_log2: u32,
    used: u32,
    /// By offset in the file: where in the group, how long. None overlaps another or crosses a
    /// region border.
    extents: BTreeMap<u64, (u32, u32)>,
}

impl Packer {
    /// An empty group for `capacity` bytes of a file with regions of `2^region_log2` bytes.
    pub const fn new(capacity: u32, region_log2: u32) -> Self {
        Self { capacity, region_log2, used: 0, extents: BTreeMap::new() }
    }

    /// Bytes in the group.
    pub const fn used(&self) -> u32 {
        self.used
    }

    /// True if nothing was placed yet.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// True if no new byte fits.
    pub fn is_full(&self) -> bool {
        self.used == self.capacity || self.extents.len() >= FRAGMENTS_MAX
    }

    /// Places as much of a write of `len` bytes at `offset` as fits, from its start: stretches in
    /// order, together a prefix of the write. An empty answer: seal the group and try again.
    ///
    /// At most `room` new bytes are taken: what the caller has memory for.
    pub fn place(&mut self, offset: u64, len: u64, room: u32) -> Vec<Placed> {
        let (mut at, end) = (offset, offset + len);
        let mut left = room.min(self.capacity - self.used);
        let mut placed = Vec::new();
        while at < end {
            let (start, pg_offset, len) = match self.find(at) {
                // Covered: in place.
                Some((start, pg, len)) => {
                    (at, pg + small(at - start), small(start + u64::from(len) - at))
                }
                None => {
                    let border = ((at >> self.region_log2) + 1) << self.region_log2;
                    let next =
                        self.extents.range(at..).next().map_or(u64::MAX, |(start, _)| *start);
                    let fresh = left.min(small(end.min(border).min(next) - at));
                    if fresh == 0 || self.extents.len() >= FRAGMENTS_MAX {
                        break;
                    }
                    left -= fresh;
                    let pg_offset = self.used;
                    self.used += fresh;
                    self.insert(at, pg_offset, fresh);
                    (at, pg_offset, fresh)
                }
            };
            let len = len.min(small(end - at));
            placed.push(Placed { offset: start, pg_offset, len });
            at += u64::from(len);
        }
        placed
    }

    fn find(&self, at: u64) -> Option<(u64, u32, u32)> {
        let (start, (pg, len)) = self.extents.range(..=at).next_back()?;
        (at < start + u64::from(*len)).then_some((*start, *pg, *len))
    }

    /// Adds an extent, as a continuation of the one before where it is one in file and group.
    fn insert(&mut self, at: u64, pg_offset: u32, len: u32) {
        if let Some((start, (pg, before))) = self.extents.range_mut(..at).next_back()
            && *start + u64::from(*before) == at
            && *pg + *before == pg_offset
            && *start >> self.region_log2 == at >> self.region_log2
        {
            *before += len;
            return;
        }
        self.extents.insert(at, (pg_offset, len));
    }

    /// The fragments, sorted by offset in the file.
    pub fn fragments(&self) -> Vec<Fragment> {
        let fragment = |(offset, (pg_offset, len)): (&u64, &(u32, u32))| Fragment {
            offset: *offset,
            pg_offset: *pg_offset,
            len: *len,
        };
        self.extents.iter().map(fragment).collect()
    }

    /// Where the bytes of `range` are that are in the group, sorted.
    pub fn lookup(&self, range: &Range<u64>) -> Vec<Placed> {
        let first = self.find(range.start).map_or(range.start, |(start, ..)| start);
        let extents = self.extents.range(first..range.end.max(first));
        cut(extents.map(|(o, (p, l))| Fragment { offset: *o, pg_offset: *p, len: *l }), range)
    }
}

/// The parts of sorted fragments that lie in `range`.
pub fn cut(fragments: impl Iterator<Item = Fragment>, range: &Range<u64>) -> Vec<Placed> {
    let mut found = Vec::new();
    for fragment in fragments {
        let (from, to) = (fragment.offset.max(range.start), fragment.end().min(range.end));
        if from < to {
            let pg_offset = fragment.pg_offset + small(from - fragment.offset);
            found.push(Placed { offset: from, pg_offset, len: small(to - from) });
        }
    }
    found
}

fn small(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REGION_LOG2: u32 = 12;

    proptest! {
        #[test]
        fn what_is_packed_reads_back_and_fragments_never_overlap_or_cross_regions(
            writes in proptest::collection::vec((0_u64..20_000, 1_u64..6_000, 1_u32..9_000), 1..40),
        ) {
            let mut packer = Packer::new(30_000, REGION_LOG2);
            let mut file: Vec<Option<u8>> = vec![None; 40_000];
            let mut group = vec![0_u8; 30_000];
            for (tag, (offset, len, room)) in writes.into_iter().enumerate() {
                let placed = packer.place(offset, len, room);
                let mut at = offset;
                for p in &placed {
                    prop_assert_eq!(p.offset, at, "a prefix, in order");
                    for i in 0..u64::from(p.len) {
                        let byte = u8::try_from((tag * 7 + usize::try_from(i).expect("small")) % 256).expect("byte");
                        file[usize::try_from(at + i).expect("small")] = Some(byte);
                        group[p.pg_offset as usize + usize::try_from(i).expect("small")] = byte;
                    }
                    at += u64::from(p.len);
                }
                prop_assert!(at <= offset + len);
                if at < offset + len {
                    prop_assert!(packer.is_full() || placed.is_empty() || u32::try_from(at - offset).expect("small") >= room);
                }
            }
            let fragments = packer.fragments();
            let mut seen = vec![false; 30_000];
            for pair in fragments.windows(2) {
                prop_assert!(pair[0].end() <= pair[1].offset);
            }
            for f in &fragments {
                prop_assert_eq!(f.offset >> REGION_LOG2, (f.end() - 1) >> REGION_LOG2);
                for i in 0..f.len {
                    let pg = (f.pg_offset + i) as usize;
                    prop_assert!(!seen[pg], "a byte of the group belongs to one place of the file");
                    seen[pg] = true;
                    prop_assert_eq!(file[usize::try_from(f.offset).expect("small") + i as usize], Some(group[pg]));
                }
            }
            let covered: u32 = fragments.iter().map(|f| f.len).sum();
            prop_assert_eq!(covered, packer.used(), "nothing overwritten is kept");
            prop_assert_eq!(file.iter().flatten().count(), covered as usize);
            let found = packer.lookup(&(3_000..17_000));
            let bytes: usize = found.iter().map(|p| p.len as usize).sum();
            prop_assert_eq!(bytes, file[3_000..17_000].iter().flatten().count());
            for p in found {
                prop_assert_eq!(file[usize::try_from(p.offset).expect("small")], Some(group[p.pg_offset as usize]));
            }
        }
    }

    #[test]
    fn a_sequential_stream_is_one_fragment_per_region() {
        let mut packer = Packer::new(1 << 20, 16);
        for i in 0..200 {
            packer.place(i * 1_000, 1_000, u32::MAX);
        }
        assert_eq!(packer.fragments().len(), 4);
    }
}
