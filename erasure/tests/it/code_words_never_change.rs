//! What is on devices must stay decodable: the code words of each codec id are frozen here.
//!
//! A failure means that this build writes other code words under an old id. Don't update the
//! numbers: give the new code a new id, and keep the old one readable.

use crate::support::{bytes, group};
use bb_erasure::{Codec, CodecId, Geometry, codec, crc32c, crc32c_append};

/// CRC32C over all parity bytes of all geometries, and of a few on their own.
fn fingerprint(codec: &dyn Codec, geometries: impl Iterator<Item = Geometry>) -> u32 {
    geometries.fold(0, |crc, geometry| {
        let blocks = group(codec, geometry, 192);
        blocks[geometry.data()..].iter().fold(crc, |crc, block| crc32c_append(crc, block))
    })
}

fn check(id: CodecId, all: u32, some: [(&str, u32); 4]) {
    let Ok(codec) = codec(id) else { return };
    assert_eq!(codec.id(), id);
    let one = |text: &str| std::iter::once(text.parse::<Geometry>().expect("a geometry"));
    let got = some.map(|(text, _)| (text, fingerprint(codec, one(text))));
    assert_eq!((fingerprint(codec, Geometry::all()), got), (all, some), "{}", codec.name());
}

#[test]
fn test_input_is_what_the_vectors_were_made_from() {
    assert_eq!(crc32c(&bytes(3, 192)), 0x04e0_ee9a);
}

#[test]
fn isal_code_words_are_frozen() {
    let some =
        [("2+1", 0xe4a4_d142), ("4+2", 0x0bb6_97c2), ("8+2", 0x3bcc_ae02), ("16+4", 0x112a_b20d)];
    check(CodecId::ISAL, 0xfb68_d09a, some);
}

#[test]
fn reed_solomon_simd_code_words_are_frozen() {
    let some =
        [("2+1", 0x82b7_58eb), ("4+2", 0xcaff_2caf), ("8+2", 0xc0d5_1b4f), ("16+4", 0x8767_22a8)];
    check(CodecId::REED_SOLOMON_SIMD, 0xa819_c942, some);
}

/// The ISA-L code from its definition alone, so that it could be decoded without ISA-L.
#[test]
fn isal_code_words_follow_the_documented_matrix() {
    fn product(mut a: u8, mut b: u8) -> u8 {
        let mut sum = 0;
        while b > 0 {
            sum ^= if b & 1 == 1 { a } else { 0 };
            a = (a << 1) ^ if a & 0x80 != 0 { 0x1d } else { 0 };
            b >>= 1;
        }
        sum
    }
    let inverse = |a: u8| (1..=255).find(|&b| product(a, b) == 1).unwrap();
    let Ok(codec) = codec(CodecId::ISAL) else { return };
    for geometry in Geometry::all() {
        let blocks = group(codec, geometry, 64);
        for row in geometry.data()..geometry.total() {
            for (at, &byte) in blocks[row].iter().enumerate() {
                let terms = blocks[..geometry.data()].iter().enumerate().map(|(column, block)| {
                    product(inverse(u8::try_from(row ^ column).unwrap()), block[at])
                });
                let expected = terms.fold(0, |sum, term| sum ^ term);
                assert_eq!(byte, expected, "{geometry} row {row} byte {at}");
            }
        }
    }
}

#[test]
fn ids_are_never_given_out_twice() {
    let ids = [CodecId::REPLICATION, CodecId::ISAL, CodecId::REED_SOLOMON_SIMD];
    assert_eq!(ids.map(|id| id.0), [0, 1, 2]);
    for id in ids {
        match codec(id) {
            Ok(found) => assert_eq!(found.id(), id),
            Err(error) => assert_eq!(error.kind(), bb_erasure::ErrorKind::CodecUnavailable),
        }
    }
}
