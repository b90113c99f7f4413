//! One pass by columns gives what separate passes give.

use crate::support::{bytes, codecs, group, muts, refs};
use bb_erasure::{ErasureError, Geometry, crc32c, default_codec, seal};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn sealing_equals_encoding_and_checksumming(
        (data, parity) in (1_u8..=16, 0_u8..=4),
        len_units in 1_usize..1500,
        chunk_log2 in 6_u32..18,
    ) {
        let geometry = Geometry::new(data, parity).unwrap();
        let (len, chunk_bytes) = (len_units * 64, 1_usize << chunk_log2);
        for codec in codecs().into_iter().chain([default_codec(geometry)]) {
            let expected = group(codec, geometry, len);
            let data: Vec<_> = expected[..geometry.data()].to_vec();
            let mut parity = vec![vec![0xee; len]; geometry.parity()];
            let crcs =
                seal(codec, geometry, &refs(&data), &mut muts(&mut parity), chunk_bytes).unwrap();
            prop_assert!(parity == expected[geometry.data()..], "{} {geometry}", codec.name());
            for (index, block) in expected.iter().enumerate() {
                let chunks: Vec<_> = block.chunks(chunk_bytes).map(crc32c).collect();
                prop_assert_eq!(crcs.chunks(index), chunks);
                prop_assert_eq!(crcs.blocks()[index], crc32c(block));
            }
        }
    }

    /// A column touches its own bytes only, and columns make up the whole.
    #[test]
    fn columns_encode_like_whole_blocks(
        (data, parity) in (1_u8..=16, 1_u8..=4),
        units in 1_usize..600,
        cut in any::<prop::sample::Index>(),
    ) {
        let geometry = Geometry::new(data, parity).unwrap();
        let (len, cut) = (units * 64, cut.index(units) * 64);
        for codec in codecs() {
            let expected = group(codec, geometry, len);
            let data = refs(&expected[..geometry.data()]);
            let mut parity = vec![vec![0xee; len]; geometry.parity()];
            codec.encode_columns(geometry, &data, &mut muts(&mut parity), cut..len).unwrap();
            for (block, whole) in parity.iter().zip(&expected[geometry.data()..]) {
                prop_assert!(block[..cut].iter().all(|&byte| byte == 0xee));
                prop_assert!(block[cut..] == whole[cut..]);
            }
            if cut > 0 {
                codec.encode_columns(geometry, &data, &mut muts(&mut parity), 0..cut).unwrap();
            }
            prop_assert!(parity == expected[geometry.data()..]);
        }
    }
}

#[test]
fn chunk_sizes_that_are_no_power_of_two_are_refused() {
    let geometry = Geometry::new(2, 1).unwrap();
    let data = [bytes(1, 4096), bytes(2, 4096)];
    let mut parity = [vec![0; 4096]];
    for chunk_bytes in [0, 1, 32, 100, 4096 + 64, 3 * 4096] {
        let codec = default_codec(geometry);
        let refused = seal(codec, geometry, &refs(&data), &mut muts(&mut parity), chunk_bytes);
        assert_eq!(refused, Err(ErasureError::BadChunk { chunk_bytes }));
    }
}
