//! Leaves against a map from offset to fragment, with enough of them that leaves are halved, united
//! and dropped, on both sides of a multiple of 4 GiB.

use std::collections::BTreeMap;

use bb_proto::meta::FragmentState;
use proptest::prelude::*;

use super::{LEAF_MAX, Leaf, Leaves, STEP, Slot};
use crate::partition::fragment_map::{PgRef, Piece, Place};

/// Where most of it happens: two windows meet in its middle.
const START: u64 = (3 << 32) - (1 << 20);
const SPACE: u64 = 2 << 20;

#[derive(Clone, Debug)]
enum Step {
    /// So many from there, so far apart; a negative distance goes down.
    Insert {
        at: u64,
        count: u64,
        apart: i64,
    },
    Remove {
        at: u64,
        len: u64,
    },
    /// Another window, far away.
    Far(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let apart = prop_oneof![1..40_i64, -40..-1_i64, Just(4096_i64), Just(-4096_i64)];
    prop_oneof![
        5 => (0..SPACE, 1..400_u64, apart)
            .prop_map(|(at, count, apart)| Step::Insert { at, count, apart }),
        2 => (0..SPACE, 1..40_000_u64).prop_map(|(at, len)| Step::Remove { at, len }),
        1 => (0..SPACE, Just(SPACE)).prop_map(|(at, len)| Step::Remove { at, len }),
        1 => (0..20_u64).prop_map(Step::Far),
    ]
}

fn piece(offset: u64) -> Piece {
    let pg = PgRef(u32::try_from(offset % 7919).unwrap());
    Piece { offset, len: 1, place: Place::Pg { pg, pg_offset: 5, state: FragmentState::Clean } }
}

fn put(leaves: &mut Leaves, model: &mut BTreeMap<u64, Piece>, offset: u64) {
    model.entry(offset).or_insert_with(|| {
        leaves.insert(&piece(offset));
        piece(offset)
    });
}

fn check(leaves: &Leaves, model: &BTreeMap<u64, Piece>) {
    assert!(leaves.from(0).eq(model.values().copied()));
    assert!(leaves.backwards().eq(model.values().rev().copied()));
    assert!(!leaves.first.is_empty() || leaves.rest.is_empty());
    let fits = |leaf: &Leaf| leaf.len() <= LEAF_MAX && leaf.capacity() < leaf.len() + 2 * STEP;
    assert!(fits(&leaves.first) && leaves.rest.values().all(|leaf| !leaf.is_empty() && fits(leaf)));
}

fn near(leaves: &Leaves, model: &BTreeMap<u64, Piece>, at: u64) {
    assert_eq!(leaves.before(at), model.range(..at).next_back().map(|(_, piece)| *piece));
    assert_eq!(leaves.at(at), model.get(&at).copied());
    assert_eq!(leaves.from(at).next(), model.range(at..).next().map(|(_, piece)| *piece));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn leaves_hold_what_was_put_in_and_not_removed(
        steps in proptest::collection::vec(step(), 1..40),
        looks in proptest::collection::vec(0..SPACE, 50),
    ) {
        let (mut leaves, mut model) = (Leaves::default(), BTreeMap::new());
        for step in steps {
            match step {
                Step::Insert { at, count, apart } => {
                    for number in 0..count.cast_signed() {
                        if let Some(at) = at.checked_add_signed(number * apart) {
                            put(&mut leaves, &mut model, START + at);
                        }
                    }
                }
                Step::Remove { at, len } => {
                    let (start, end) = (START + at, START + at + len);
                    let count = model.range(start..end).count();
                    leaves.remove(start, end, count);
                    model.retain(|offset, _| !(start..end).contains(offset));
                }
                Step::Far(window) => put(&mut leaves, &mut model, window << 32 | 77),
            }
            check(&leaves, &model);
        }
        for at in looks {
            near(&leaves, &model, START + at);
        }
        for offset in model.keys().copied().collect::<Vec<u64>>() {
            near(&leaves, &model, offset);
            near(&leaves, &model, offset + 1);
        }
        leaves.remove(0, u64::MAX, model.len());
        check(&leaves, &BTreeMap::new());
    }
}

fn mean_fill(leaves: &Leaves) -> f64 {
    let all = || std::iter::once(&leaves.first).chain(leaves.rest.values());
    let (held, room) =
        (all().map(Vec::len).sum::<usize>(), all().map(Vec::capacity).sum::<usize>());
    assert!(all().count() * 40 <= held, "{} leaves for {held}", all().count());
    held as f64 / room as f64
}

#[test]
fn memory_stays_in_use_in_whatever_order_fragments_come_and_go() {
    const COUNT: u64 = 20_000;
    let scattered = |number: u64| number * 7_919 % COUNT;
    type Order<'a> = &'a dyn Fn(u64) -> u64;
    let orders: [(&str, Order<'_>); 4] = [
        ("ascending", &|number| number),
        ("descending", &|number| COUNT - number),
        ("strided", &|number| number % 100 * 200 + number / 100),
        ("scattered", &scattered),
    ];
    for (name, order) in orders {
        let mut leaves = Leaves::default();
        (0..COUNT).for_each(|number| leaves.insert(&piece(order(number) * 8)));
        assert!(mean_fill(&leaves) > 0.85, "{name}: {}", mean_fill(&leaves));
        // Nine of ten go.
        for number in (0..COUNT).filter(|number| number % 10 != 0) {
            let offset = order(number) * 8;
            leaves.remove(offset, offset + 1, 1);
        }
        assert!(mean_fill(&leaves) > 0.75, "{name}, thinned out: {}", mean_fill(&leaves));
    }
}

#[test]
fn a_fragment_alone_takes_no_more_than_it_needs() {
    let mut leaves = Leaves::default();
    leaves.insert(&piece(4096));
    assert_eq!((leaves.first.capacity(), leaves.rest.len()), (1, 0));
    assert_eq!(size_of::<Slot>(), 16);
}
