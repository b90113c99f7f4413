//! A set of small numbers that finds its smallest member fast: bits, and for every 64 words of
//! bits one word above that says which of them are not empty.

/// A set of numbers below a fixed bound.
pub(super) struct BitTree {
    /// The lowest level first; the last has one word.
    levels: Vec<Vec<u64>>,
    count: usize,
}

const WORD: usize = 64;

impl BitTree {
    /// An empty set of numbers below `bound`.
    pub(super) fn new(bound: usize) -> Self {
        let mut levels = Vec::new();
        let mut words = bound.div_ceil(WORD).max(1);
        loop {
            levels.push(vec![0; words]);
            if words == 1 {
                return Self { levels, count: 0 };
            }
            words = words.div_ceil(WORD);
        }
    }

    /// How many numbers are in it.
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// True if `at` is in it.
    pub(super) fn contains(&self, at: usize) -> bool {
        self.levels[0][at / WORD] & 1 << (at % WORD) != 0
    }

    /// Puts `at` in; true if it was not.
    pub(super) fn insert(&mut self, mut at: usize) -> bool {
        if self.contains(at) {
            return false;
        }
        self.count += 1;
        for level in &mut self.levels {
            let word = &mut level[at / WORD];
            let was_empty = *word == 0;
            *word |= 1 << (at % WORD);
            if !was_empty {
                break;
            }
            at /= WORD;
        }
        true
    }

    /// Takes `at` out; true if it was in.
    pub(super) fn remove(&mut self, mut at: usize) -> bool {
        if !self.contains(at) {
            return false;
        }
        self.count -= 1;
        for level in &mut self.levels {
            let word = &mut level[at / WORD];
            *word &= !(1 << (at % WORD));
            if *word != 0 {
                break;
            }
            at /= WORD;
        }
        true
    }

    /// The smallest member.
    pub(super) fn first(&self) -> Option<usize> {
        self.first_from(0)
    }

    /// The smallest member that is not below `from`.
    pub(super) fn first_from(&self, from: usize) -> Option<usize> {
        let mut at = from;
        for (height, level) in self.levels.iter().enumerate() {
            let word = level.get(at / WORD).map_or(0, |word| word & (u64::MAX << (at % WORD)));
            if word != 0 {
                let found = at / WORD * WORD + word.trailing_zeros() as usize;
                return Some(self.descend(height, found));
            }
            // Nothing left in this word: look above for the next one that is not empty.
            at = at / WORD + 1;
        }
        None
    }

    fn descend(&self, height: usize, mut at: usize) -> usize {
        for level in self.levels[..height].iter().rev() {
            at = at * WORD + level[at].trailing_zeros() as usize;
        }
        at
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.levels.iter().map(|level| level.len() * size_of::<u64>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_finds_what_a_sorted_set_finds(
            bound in 1_usize..20_000,
            steps in prop::collection::vec((any::<bool>(), any::<u32>(), any::<u32>()), 1..200),
        ) {
            let (mut tree, mut model) = (BitTree::new(bound), BTreeSet::new());
            for (insert, at, from) in steps {
                let (at, from) = (at as usize % bound, from as usize % bound);
                if insert {
                    prop_assert_eq!(tree.insert(at), model.insert(at));
                } else {
                    prop_assert_eq!(tree.remove(at), model.remove(&at));
                }
                prop_assert_eq!(tree.len(), model.len());
                prop_assert_eq!(tree.first(), model.first().copied());
                prop_assert_eq!(tree.first_from(from), model.range(from..).next().copied());
            }
        }
    }
}
