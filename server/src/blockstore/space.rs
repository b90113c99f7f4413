//! Who owns which part of a device.
//!
//! The data area is cut into chunks of 1 MiB. A chunk serves one size class (4 KiB, 8 KiB, ...
//! 1 MiB) at a time, in slots of that size, and any class once it is empty. So no class has to be
//! sized beforehand, and a device full of small blocks that were freed takes large ones again.
//!
//! The lowest free slot of a class is taken first, and new chunks behind the last one taken: what
//! is written together lies together, and a freed chunk has time to be unmapped. The same calls
//! always give the same addresses.

use super::bits::BitTree;

/// log2 of a chunk's size in bytes.
pub const CHUNK_LOG2: u8 = 20;
/// Size of a chunk, in bytes.
pub const CHUNK_BYTES: u64 = 1 << CHUNK_LOG2;
/// log2 of the smallest block, in bytes.
pub const BLOCK_LOG2_MIN: u8 = 12;

const CLASSES: usize = (CHUNK_LOG2 - BLOCK_LOG2_MIN) as usize + 1;

/// Where a block lies in the data area.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address {
    /// Which chunk.
    pub chunk: u32,
    /// Which slot of it, in units of the chunk's class.
    pub slot: u8,
}

impl Address {
    /// Offset in the data area, in bytes.
    pub fn offset(self, block_log2: u8) -> u64 {
        u64::from(self.chunk) * CHUNK_BYTES + (u64::from(self.slot) << block_log2)
    }
}

/// Why space cannot be claimed at an address that a log record names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClaimError {
    /// It lies behind the end of the device.
    #[error("the address lies behind the end of the device")]
    Outside,
    /// Another block lies there, or the chunk serves another class.
    #[error("the address belongs to another block")]
    Taken,
}

/// A set bit is a free slot. Only the two smallest classes need more than one word.
enum Slots {
    /// Up to 64.
    Few(u64),
    /// 128 or 256.
    Many(Box<[u64; 4]>),
}

impl Slots {
    fn all_free(count: usize) -> Self {
        if count <= 64 {
            return Self::Few(u64::MAX >> (64 - count));
        }
        let mut words = [0; 4];
        words[..count / 64].fill(u64::MAX);
        Self::Many(Box::new(words))
    }

    fn word(&mut self, slot: usize) -> &mut u64 {
        match self {
            Self::Few(word) => word,
            Self::Many(words) => &mut words[slot / 64],
        }
    }

    fn first(&self) -> Option<usize> {
        let words = match self {
            Self::Few(word) => std::slice::from_ref(word),
            Self::Many(words) => &words[..],
        };
        let at = words.iter().position(|word| *word != 0)?;
        Some(at * 64 + words[at].trailing_zeros() as usize)
    }
}

struct Chunk {
    free: Slots,
    /// Slots in use; the chunk is empty at 0.
    used: u16,
    /// log2 of the slot size in bytes; 0 while it serves no class.
    block_log2: u8,
}

const _: () = assert!(size_of::<Chunk>() == 24);

/// The space of one device.
pub struct Space {
    chunks: Vec<Chunk>,
    /// Chunks that serve no class and may be taken.
    empty: BitTree,
    /// Those of them that an unmap would help.
    stale: BitTree,
    /// Per class: chunks with a free slot.
    partial: [BitTree; CLASSES],
    /// Chunks that are being unmapped.
    unmapping: usize,
    /// Where the search for an empty chunk begins.
    cursor: usize,
    /// Empty chunks that only rebuild and repack may take.
    reserve_chunks: usize,
    used_bytes: u64,
}

fn class_of(block_log2: u8) -> usize {
    assert!((BLOCK_LOG2_MIN..=CHUNK_LOG2).contains(&block_log2), "no such block size");
    usize::from(block_log2 - BLOCK_LOG2_MIN)
}

fn slots_of(block_log2: u8) -> usize {
    1 << (CHUNK_LOG2 - block_log2)
}

impl Space {
    /// Empty space of `chunks`, of which the last `reserve_chunks` are not for clients.
    pub fn new(chunks: u32, reserve_chunks: u32) -> Self {
        let bound = chunks as usize;
        let mut empty = BitTree::new(bound);
        for chunk in 0..bound {
            empty.insert(chunk);
        }
        let none = || Chunk { free: Slots::Few(0), used: 0, block_log2: 0 };
        Self {
            chunks: (0..bound).map(|_| none()).collect(),
            empty,
            stale: BitTree::new(bound),
            partial: std::array::from_fn(|_| BitTree::new(bound)),
            unmapping: 0,
            cursor: 0,
            reserve_chunks: reserve_chunks as usize,
            used_bytes: 0,
        }
    }

    /// Takes a slot; `None` when there is none (for those who may not touch the reserve: left).
    pub fn allocate(&mut self, block_log2: u8, may_use_reserve: bool) -> Option<Address> {
        let class = class_of(block_log2);
        let at = match self.partial[class].first() {
            Some(at) => at,
            None => {
                if !may_use_reserve && self.empty.len() <= self.reserve_chunks {
                    return None;
                }
                let at = self.empty.first_from(self.cursor).or_else(|| self.empty.first())?;
                self.cursor = at + 1;
                self.assign(at, block_log2);
                at
            }
        };
        let slot = self.chunks[at].free.first().expect("a partial chunk has a free slot");
        self.occupy(at, slot);
        Some(Address {
            chunk: u32::try_from(at).expect("made from 32 bits"),
            slot: u8::try_from(slot).expect("at most 256 slots"),
        })
    }

    /// Takes the slot that a record names, while the log is replayed.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn claim(&mut self, address: Address, block_log2: u8) -> Result<(), ClaimError> {
        let (at, slot) = (address.chunk as usize, usize::from(address.slot));
        let chunk = self.chunks.get(at).ok_or(ClaimError::Outside)?;
        if slot >= slots_of(block_log2) {
            return Err(ClaimError::Outside);
        }
        if self.empty.contains(at) {
            self.assign(at, block_log2);
        } else if chunk.block_log2 != block_log2 {
            return Err(ClaimError::Taken);
        }
        if *self.chunks[at].free.word(slot) & 1 << (slot % 64) == 0 {
            return Err(ClaimError::Taken);
        }
        self.occupy(at, slot);
        Ok(())
    }

    /// Gives a slot back.
    ///
    /// # Panics
    /// When it was not taken: space given twice is data lost, so the process must not go on.
    pub fn release(&mut self, address: Address) {
        let (at, slot) = (address.chunk as usize, usize::from(address.slot));
        let chunk = &mut self.chunks[at];
        let mask = 1 << (slot % 64);
        assert!(chunk.block_log2 != 0, "a slot of an empty chunk was given back");
        assert!(*chunk.free.word(slot) & mask == 0, "a slot was given back twice");
        *chunk.free.word(slot) |= mask;
        chunk.used -= 1;
        let class = class_of(chunk.block_log2);
        self.used_bytes -= 1 << chunk.block_log2;
        if chunk.used > 0 {
            self.partial[class].insert(at);
            return;
        }
        self.partial[class].remove(at);
        chunk.block_log2 = 0;
        chunk.free = Slots::Few(0);
        self.empty.insert(at);
        self.stale.insert(at);
    }

    fn assign(&mut self, at: usize, block_log2: u8) {
        self.empty.remove(at);
        self.stale.remove(at);
        let chunk = &mut self.chunks[at];
        chunk.block_log2 = block_log2;
        chunk.free = Slots::all_free(slots_of(block_log2));
        self.partial[class_of(block_log2)].insert(at);
    }

    fn occupy(&mut self, at: usize, slot: usize) {
        let chunk = &mut self.chunks[at];
        *chunk.free.word(slot) &= !(1 << (slot % 64));
        chunk.used += 1;
        self.used_bytes += 1 << chunk.block_log2;
        if chunk.free.first().is_none() {
            self.partial[class_of(chunk.block_log2)].remove(at);
        }
    }

    /// Takes up to `chunks_max` neighbouring empty chunks that wait for an unmap out of use.
    pub fn begin_unmap(&mut self, chunks_max: u32) -> Option<UnmapRun> {
        let first = self.stale.first()?;
        let mut count = 0;
        while count < chunks_max as usize
            && first + count < self.chunks.len()
            && self.stale.remove(first + count)
        {
            self.empty.remove(first + count);
            count += 1;
        }
        self.unmapping += count;
        Some(UnmapRun { first, count })
    }

    /// Puts the chunks back into use, whether the device has done it or refused: it is not asked
    /// again until something else is freed there.
    #[expect(clippy::needless_pass_by_value, reason = "a run ends once")]
    pub fn end_unmap(&mut self, run: UnmapRun) {
        for at in run.first..run.first + run.count {
            self.empty.insert(at);
        }
        self.unmapping -= run.count;
    }

    /// Size of the data area, in bytes.
    pub const fn capacity_bytes(&self) -> u64 {
        self.chunks.len() as u64 * CHUNK_BYTES
    }

    /// Bytes in slots that are taken.
    pub const fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Bytes in empty chunks that wait for an unmap, or are in one.
    pub const fn unmap_bytes(&self) -> u64 {
        (self.stale.len() + self.unmapping) as u64 * CHUNK_BYTES
    }

    /// Bytes in empty chunks that a client may still have.
    pub const fn client_free_bytes(&self) -> u64 {
        (self.empty.len() + self.unmapping).saturating_sub(self.reserve_chunks) as u64 * CHUNK_BYTES
    }

    /// True if an allocation failed only because chunks are being unmapped.
    pub const fn is_unmapping(&self) -> bool {
        self.unmapping > 0
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        let many = self.chunks.iter().filter(|chunk| matches!(chunk.free, Slots::Many(_))).count();
        let trees = self.partial.iter().chain([&self.empty, &self.stale]);
        self.chunks.len() * size_of::<Chunk>()
            + many * size_of::<[u64; 4]>()
            + trees.map(BitTree::memory_bytes).sum::<usize>()
    }
}

/// Chunks that are being unmapped and belong to nobody else.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub struct UnmapRun {
    first: usize,
    count: usize,
}

impl UnmapRun {
    /// Offset in the data area and length, in bytes.
    pub const fn range(&self) -> (u64, u64) {
        (self.first as u64 * CHUNK_BYTES, self.count as u64 * CHUNK_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Allocate { block_log2: u8, reserve: bool },
        Release(usize),
        Unmap(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (12_u8..=20, any::<bool>())
                .prop_map(|(block_log2, reserve)| Step::Allocate { block_log2, reserve }),
            3 => any::<usize>().prop_map(Step::Release),
            1 => (1_u32..4).prop_map(Step::Unmap),
        ]
    }

    /// Byte ranges that are taken: all the allocator has to be right about.
    type Model = BTreeMap<u64, u64>;

    fn take(model: &mut Model, offset: u64, len: u64, capacity: u64) {
        assert!(offset + len <= capacity, "outside of the device");
        let before = model.range(..offset + len).next_back();
        assert!(before.is_none_or(|(start, len)| start + len <= offset), "overlaps another block");
        model.insert(offset, len);
    }

    proptest! {
        #[test]
        fn space_is_never_given_twice_never_overlaps_and_never_leaks(
            chunks in 1_u32..9,
            reserve in 0_u32..3,
            steps in prop::collection::vec(step(), 1..400),
        ) {
            let mut space = Space::new(chunks, reserve);
            let mut replayed = Space::new(chunks, reserve);
            let capacity = space.capacity_bytes();
            let (mut model, mut held) = (Model::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Allocate { block_log2, reserve: may } => {
                        let len = 1 << block_log2;
                        match space.allocate(block_log2, may) {
                            Some(address) => {
                                take(&mut model, address.offset(block_log2), len, capacity);
                                held.push((address, block_log2));
                                prop_assert_eq!(replayed.claim(address, block_log2), Ok(()));
                                prop_assert_eq!(
                                    replayed.claim(address, block_log2),
                                    Err(ClaimError::Taken)
                                );
                            }
                            None => prop_assert!(
                                !may || model.len() >= chunks as usize,
                                "refused while a whole chunk was empty"
                            ),
                        }
                    }
                    Step::Release(which) if !held.is_empty() => {
                        let (address, block_log2) = held.swap_remove(which % held.len());
                        prop_assert!(model.remove(&address.offset(block_log2)).is_some());
                        space.release(address);
                        replayed.release(address);
                    }
                    Step::Release(_) => {}
                    Step::Unmap(chunks_max) => {
                        if let Some(run) = space.begin_unmap(chunks_max) {
                            let (offset, len) = run.range();
                            take(&mut model, offset, len, capacity);
                            model.remove(&offset);
                            // Nobody gets what is being unmapped.
                            if let Some(other) = space.allocate(20, true) {
                                let at = other.offset(20);
                                prop_assert!(at < offset || at >= offset + len);
                                space.release(other);
                            }
                            space.end_unmap(run);
                        }
                    }
                }
                let used: u64 = model.values().sum();
                prop_assert_eq!(space.used_bytes(), used);
                prop_assert_eq!(replayed.used_bytes(), used);
            }
            for (address, _) in held {
                space.release(address);
            }
            prop_assert_eq!(space.used_bytes(), 0);
            for _ in 0..chunks {
                prop_assert!(space.allocate(20, true).is_some(), "an empty device gives every chunk");
            }
            prop_assert_eq!(space.allocate(12, true), None);
        }
    }

    #[test]
    fn clients_leave_the_reserve_to_rebuild() {
        let mut space = Space::new(4, 1);
        let taken: Vec<_> = std::iter::from_fn(|| space.allocate(20, false)).collect();
        assert_eq!(taken.len(), 3);
        assert_eq!(space.client_free_bytes(), 0);
        assert!(space.allocate(20, true).is_some());
        assert!(space.allocate(20, true).is_none());
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn giving_a_slot_back_twice_stops_the_process() {
        let mut space = Space::new(1, 0);
        let address = space.allocate(12, true).expect("room");
        let _other = space.allocate(12, true).expect("room");
        space.release(address);
        space.release(address);
    }
}
