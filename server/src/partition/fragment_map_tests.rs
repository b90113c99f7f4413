//! The fragment map against an array with one cell per byte.

use bb_proto::meta::FragmentState;
use proptest::prelude::*;

use super::{FragmentMap, PgRef, Piece, Place, StageRef};

const BYTES: u64 = 96;

type Cell = Option<Place>;

#[derive(Clone, Debug)]
enum Step {
    Replace(u64, u32, Place),
    Remove(u64, u64),
    SetStates(u64, u64, u32, FragmentState),
}

fn state() -> impl Strategy<Value = FragmentState> {
    prop_oneof![
        Just(FragmentState::Dirty),
        Just(FragmentState::Pending),
        Just(FragmentState::Clean),
        Just(FragmentState::Deletable),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        4 => (0..3_u32, 0..40_u32, state())
            .prop_map(|(pg, pg_offset, state)| Place::Pg { pg: PgRef(pg), pg_offset, state }),
        1 => (0..2_u32).prop_map(|stage| Place::Placeholder(StageRef(stage))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..80_u64, 1..16_u32, place()).prop_map(|(o, l, p)| Step::Replace(o, l, p)),
        // Offsets in the group that follow the file's make fragments continue each other.
        4 => (0..80_u64, 1..16_u32, state()).prop_map(|(o, l, state)| {
            let pg_offset = u32::try_from(o).unwrap();
            Step::Replace(o, l, Place::Pg { pg: PgRef(7), pg_offset, state })
        }),
        2 => (0..BYTES, 0..BYTES).prop_map(|(a, b)| Step::Remove(a.min(b), a.max(b))),
        2 => (0..BYTES, 0..BYTES, prop_oneof![Just(7_u32), 0..3_u32], state())
            .prop_map(|(a, b, pg, s)| Step::SetStates(a.min(b), a.max(b), pg, s)),
    ]
}

fn cell(place: Place, by: u64) -> Cell {
    Some(place.advanced(u32::try_from(by).unwrap()))
}

fn check(map: &FragmentMap, model: &[Cell]) {
    let mut seen = vec![None; model.len()];
    let mut last: Option<Piece> = None;
    for piece in map.pieces(0, u64::MAX) {
        for at in piece.offset..piece.end() {
            seen[usize::try_from(at).unwrap()] = cell(piece.place, at - piece.offset);
        }
        if let Some(last) = last {
            assert!(last.end() <= piece.offset, "overlap");
            assert!(!last.continues_in(&piece), "unmerged: {last:?} {piece:?}");
        }
        last = Some(piece);
    }
    assert_eq!(seen, model);
    let count = |wanted: FragmentState| {
        model
            .iter()
            .filter(|c| matches!(c, Some(Place::Pg { state, .. }) if *state == wanted))
            .count() as u64
    };
    let counts = map.counts();
    assert_eq!(counts.dirty, count(FragmentState::Dirty));
    assert_eq!(counts.pending, count(FragmentState::Pending));
    assert_eq!(counts.clean, count(FragmentState::Clean));
    assert_eq!(counts.deletable, count(FragmentState::Deletable));
    assert_eq!(counts.fragments, map.pieces(0, u64::MAX).count() as u64);
    let last = model.iter().rposition(|c| matches!(c, Some(Place::Pg { .. })));
    assert_eq!(map.end(), last.map_or(0, |at| at as u64 + 1));
}

proptest! {
    #[test]
    fn the_map_says_of_every_byte_what_was_last_put_there(
        steps in proptest::collection::vec(step(), 1..60),
        (from, to) in (0..BYTES, 0..BYTES),
    ) {
        let mut map = FragmentMap::default();
        let mut model: Vec<Cell> = vec![None; usize::try_from(BYTES).unwrap()];
        for step in steps {
            match step {
                Step::Replace(offset, len, place) => {
                    map.remove(offset, offset + u64::from(len));
                    map.insert(Piece { offset, len, place });
                    for by in 0..u64::from(len) {
                        model[usize::try_from(offset + by).unwrap()] = cell(place, by);
                    }
                }
                Step::Remove(start, end) => {
                    let removed = map.remove(start, end);
                    for piece in &removed {
                        for at in piece.offset..piece.end() {
                            let expected = model[usize::try_from(at).unwrap()].take();
                            prop_assert_eq!(expected, cell(piece.place, at - piece.offset));
                        }
                    }
                    prop_assert!((start..end).all(|at| model[usize::try_from(at).unwrap()].is_none()));
                }
                Step::SetStates(start, end, wanted, new) => {
                    map.set_states(start, end, |piece| match piece.place {
                        Place::Pg { pg, .. } if pg.0 == wanted => Some(new),
                        _ => None,
                    });
                    for at in start..end {
                        if let Some(Place::Pg { pg, state, .. }) =
                            &mut model[usize::try_from(at).unwrap()]
                            && pg.0 == wanted
                        {
                            *state = new;
                        }
                    }
                }
            }
            check(&map, &model);
        }
        let (from, to) = (from.min(to), from.max(to));
        let mut covered = vec![false; usize::try_from(BYTES).unwrap()];
        for piece in map.pieces(from, to) {
            prop_assert!(from <= piece.offset && piece.end() <= to);
            for at in piece.offset..piece.end() {
                covered[usize::try_from(at).unwrap()] = true;
                prop_assert_eq!(
                    model[usize::try_from(at).unwrap()],
                    cell(piece.place, at - piece.offset)
                );
            }
        }
        for (start, end) in map.gaps(from, to) {
            for at in start..end {
                let was = std::mem::replace(&mut covered[usize::try_from(at).unwrap()], true);
                prop_assert!(!was && model[usize::try_from(at).unwrap()].is_none());
            }
        }
        prop_assert!((from..to).all(|at| covered[usize::try_from(at).unwrap()]));
    }
}
