//! The promise of a code: any K blocks may be lost.

use crate::support::{codecs, group, rebuilt, subsets};
use bb_erasure::{CodecId, ErasureError, Geometry, codec};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

/// Sum over the geometries of the sets of at most K of N+K blocks.
const PATTERNS_PER_CODEC: usize = 1835;

#[test]
fn every_loss_of_up_to_k_blocks_is_restored_in_groups_of_up_to_ten() {
    let mut patterns = 0;
    for codec in codecs() {
        for geometry in Geometry::all().filter(|g| g.total() <= 10) {
            let blocks = group(codec, geometry, 128);
            for lost in subsets(geometry.total(), geometry.parity()) {
                let out = rebuilt(codec, geometry, &blocks, &lost, &lost).unwrap();
                for (&index, block) in lost.iter().zip(&out) {
                    assert!(*block == blocks[index], "{} {geometry} {lost:?}", codec.name());
                }
                patterns += 1;
            }
        }
    }
    assert_eq!(patterns, PATTERNS_PER_CODEC * codecs().len());
}

#[test]
fn every_single_and_double_loss_is_restored_in_all_geometries() {
    for codec in codecs() {
        for geometry in Geometry::all().filter(|g| g.total() > 10) {
            let blocks = group(codec, geometry, 64);
            for lost in subsets(geometry.total(), geometry.parity().min(2)) {
                let out = rebuilt(codec, geometry, &blocks, &lost, &lost).unwrap();
                for (&index, block) in lost.iter().zip(&out) {
                    assert!(*block == blocks[index], "{} {geometry} {lost:?}", codec.name());
                }
            }
        }
    }
}

#[test]
fn replicas_are_copies_and_any_one_restores_the_others() {
    let codec = codec(CodecId::REPLICATION).unwrap();
    for parity in 0..=4 {
        let geometry = Geometry::new(1, parity).unwrap();
        let blocks = group(codec, geometry, 192);
        assert!(blocks.iter().all(|block| *block == blocks[0]));
        for lost in subsets(geometry.total(), geometry.parity()) {
            let out = rebuilt(codec, geometry, &blocks, &lost, &lost).unwrap();
            assert!(out.iter().all(|block| *block == blocks[0]), "{geometry} {lost:?}");
        }
    }
    let geometry = Geometry::new(2, 1).unwrap();
    let (mut a, b) = (vec![0; 64], vec![0; 64]);
    let refused = codec.encode(geometry, &[&b, &b], &mut [&mut a]);
    assert!(matches!(refused, Err(ErasureError::GeometryUnsupported { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Large groups: random losses up to K, of which some are wanted, in any order.
    #[test]
    fn some_of_the_lost_blocks_are_restored_in_the_order_asked_for(
        (data, parity) in (8_u8..=16, 1_u8..=4),
        columns in 1_usize..40,
        lost in subsequence((0_usize..20).collect::<Vec<_>>(), 1..=4).prop_shuffle(),
        wanted in any::<Index>(),
    ) {
        let geometry = Geometry::new(data, parity).unwrap();
        let lost: Vec<_> = lost
            .into_iter()
            .filter(|&index| index < geometry.total())
            .take(geometry.parity())
            .collect();
        let wanted = &lost[..wanted.index(lost.len() + 1)];
        for codec in codecs() {
            let blocks = group(codec, geometry, columns * 64);
            let out = rebuilt(codec, geometry, &blocks, &lost, wanted).unwrap();
            for (&index, block) in wanted.iter().zip(&out) {
                prop_assert!(*block == blocks[index], "{} {geometry} {lost:?}", codec.name());
            }
        }
    }

    /// One loss too many is an honest error in every geometry.
    #[test]
    fn more_than_k_losses_are_refused(
        (data, parity) in (1_u8..=16, 0_u8..=4),
        lost in Just((0_usize..20).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let geometry = Geometry::new(data, parity).unwrap();
        let lost: Vec<_> = lost
            .into_iter()
            .filter(|&index| index < geometry.total())
            .take(geometry.parity() + 1)
            .collect();
        for codec in codecs() {
            let blocks = group(codec, geometry, 64);
            let refused = rebuilt(codec, geometry, &blocks, &lost, &lost[..1]);
            let present = geometry.data() - 1;
            let expected = ErasureError::TooFewBlocks { present, needed: geometry.data() };
            prop_assert_eq!(refused, Err(expected));
        }
    }
}
