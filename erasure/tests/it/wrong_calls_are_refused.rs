//! A wrong call gets an error that names what is wrong, before anything is written.

use crate::support::{bytes, codecs, group, muts, refs};
use bb_erasure::{CodecId, ErasureError, ErrorKind, Geometry, codec};

const GEOMETRY: (u8, u8) = (3, 2);

#[test]
fn encode_refuses_counts_lengths_and_columns_that_do_not_fit() {
    let geometry = Geometry::try_from(GEOMETRY).unwrap();
    for codec in codecs() {
        let try_with = |data: &[usize], parity: &[usize], columns| {
            let data: Vec<_> = data.iter().map(|&len| bytes(1, len)).collect();
            let mut parity: Vec<_> = parity.iter().map(|&len| vec![0xee; len]).collect();
            let result =
                codec.encode_columns(geometry, &refs(&data), &mut muts(&mut parity), columns);
            if result.is_err() {
                assert!(parity.iter().flatten().all(|&byte| byte == 0xee), "written to");
            }
            result
        };
        let (d, p) = ([128; 3], [128; 2]);
        assert_eq!(try_with(&d, &p, 0..128), Ok(()));
        let count = |what, got, expected| Err(ErasureError::WrongCount { what, got, expected });
        assert_eq!(try_with(&[128; 2], &p, 0..128), count("data blocks", 2, 3));
        assert_eq!(try_with(&[], &p, 0..128), count("data blocks", 0, 3));
        assert_eq!(try_with(&d, &[128; 3], 0..128), count("parity blocks", 3, 2));
        let unequal = |got, expected| Err(ErasureError::UnequalLengths { got, expected });
        assert_eq!(try_with(&[128, 64, 128], &p, 0..64), unequal(64, 128));
        assert_eq!(try_with(&d, &[128, 192], 0..64), unequal(192, 128));
        let bad = |len_bytes| Err(ErasureError::BadLength { len_bytes });
        assert_eq!(try_with(&[100; 3], &[100; 2], 0..64), bad(100));
        assert_eq!(try_with(&[0; 3], &[0; 2], 0..0), bad(0));
        assert_eq!(try_with(&d, &p, 32..128), bad(32));
        assert_eq!(try_with(&d, &p, 0..100), bad(100));
        assert_eq!(try_with(&d, &p, 64..64), bad(0));
        let outside = Err(ErasureError::ColumnsOutOfRange { end: 192, len_bytes: 128 });
        assert_eq!(try_with(&d, &p, 64..192), outside);
    }
}

#[test]
fn reconstruct_refuses_what_it_can_not_answer() {
    let geometry = Geometry::try_from(GEOMETRY).unwrap();
    for codec in codecs() {
        let blocks = group(codec, geometry, 128);
        let short = vec![0; 64];
        let mut present: Vec<_> = blocks.iter().map(|block| Some(block.as_slice())).collect();
        present[1] = None;
        present[4] = None;
        let try_with = |present: &[Option<&[u8]>], wanted: &[usize], out: &[usize]| {
            let mut out: Vec<_> = out.iter().map(|&len| vec![0xee; len]).collect();
            codec.reconstruct(geometry, present, wanted, &mut muts(&mut out))
        };
        assert_eq!(try_with(&present, &[4, 1], &[128; 2]), Ok(()));
        assert_eq!(try_with(&present, &[], &[]), Ok(()));
        let bad = |index| Err(ErasureError::BadWanted { index });
        assert_eq!(try_with(&present, &[0], &[128]), bad(0), "a present block");
        assert_eq!(try_with(&present, &[1, 1], &[128; 2]), bad(1), "twice");
        assert_eq!(try_with(&present, &[5], &[128]), bad(5), "no such block");
        assert_eq!(try_with(&present, &[usize::MAX], &[128]), bad(usize::MAX));
        let count = |what, got, expected| Err(ErasureError::WrongCount { what, got, expected });
        assert_eq!(try_with(&present, &[1], &[128; 2]), count("output blocks", 2, 1));
        assert_eq!(try_with(&present[..4], &[1], &[128]), count("blocks", 4, 5));
        let unequal = Err(ErasureError::UnequalLengths { got: 64, expected: 128 });
        assert_eq!(try_with(&present, &[1], &[64]), unequal);
        present[3] = Some(&short);
        assert_eq!(try_with(&present, &[1], &[128]), unequal);
        present[3] = None;
        let lost = try_with(&present, &[1], &[128]).unwrap_err();
        assert_eq!(lost, ErasureError::TooFewBlocks { present: 2, needed: 3 });
        assert_eq!(lost.kind(), ErrorKind::DataLost);
    }
}

#[test]
fn codecs_of_newer_versions_are_refused_by_id() {
    for id in 3..=u8::MAX {
        let error = codec(CodecId(id)).err().unwrap();
        assert_eq!(error, ErasureError::UnknownCodec { id: CodecId(id) });
        assert_eq!(error.kind(), ErrorKind::CodecUnavailable);
    }
}
