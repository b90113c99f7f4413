//! The marker: what makes a directory the backing file system of one cluster.

use bb_erasure::crc32c;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Name in our own directory.
pub(super) const NAME: &str = "marker";

const MAGIC: u64 = u64::from_le_bytes(*b"BBMARKER");
const VERSION: u32 = 1;

/// The file, 64 bytes, written once by format.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct MarkerFile {
    magic: U64,
    version: U32,
    /// CRC32C of this struct with zero here: against a marker that was cut or edited.
    crc: U32,
    uuid: [u8; 16],
    reserved: [u8; 32],
}

const _: () = assert!(size_of::<MarkerFile>() == 64);

/// A marker that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkerError {
    /// Another length, magic number or checksum.
    #[error("it is damaged, or something else's")]
    Damaged,
    /// Written by a newer version.
    #[error("it has format {0}, this program knows up to {VERSION}")]
    Newer(u32),
}

pub(super) fn encode(uuid: [u8; 16]) -> Vec<u8> {
    let mut file = MarkerFile {
        magic: MAGIC.into(),
        version: VERSION.into(),
        crc: 0.into(),
        uuid,
        reserved: [0; 32],
    };
    file.crc = crc32c(file.as_bytes()).into();
    file.as_bytes().to_vec()
}

pub(super) fn decode(bytes: &[u8]) -> Result<[u8; 16], MarkerError> {
    let mut file = *MarkerFile::ref_from_bytes(bytes).map_err(|_| MarkerError::Damaged)?;
    let crc = std::mem::replace(&mut file.crc, 0.into());
    if file.magic.get() != MAGIC || crc.get() != crc32c(file.as_bytes()) {
        return Err(MarkerError::Damaged);
    }
    if file.version.get() > VERSION {
        return Err(MarkerError::Newer(file.version.get()));
    }
    Ok(file.uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_back_and_a_damaged_or_newer_one_is_refused() {
        let good = encode([7; 16]);
        assert_eq!(decode(&good), Ok([7; 16]));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad), Err(MarkerError::Damaged), "byte {at}");
        }
        assert_eq!(decode(&good[..63]), Err(MarkerError::Damaged));
        let mut newer = MarkerFile::read_from_bytes(&good).expect("length");
        newer.version = 2.into();
        newer.crc = 0.into();
        newer.crc = crc32c(newer.as_bytes()).into();
        assert_eq!(decode(newer.as_bytes()), Err(MarkerError::Newer(2)));
    }
}
