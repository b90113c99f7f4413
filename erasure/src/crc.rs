//! CRC32C (Castagnoli), as in iSCSI and ext4: reflected, all ones before and after.

/// CRC32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// CRC32C of some bytes whose CRC32C is `crc`, followed by `bytes`. `crc` of no bytes is 0.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    // ISA-L folds with carry-less products: 70 GB/s warm where one CRC instruction at a time
    // makes 9.
    #[cfg(feature = "isal")]
    return crate::isal::crc32c_append(crc, bytes);
    #[cfg(not(feature = "isal"))]
    ::crc32c::crc32c_append(crc, bytes)
}

/// Chunks up to this size are fetched from memory ahead of their turn.
const AHEAD_BYTES_MAX: usize = 8 << 10;
const CACHE_LINE_BYTES: usize = 64;

/// CRC32C of each `chunk_bytes` of `bytes`, in order; the last chunk may be short.
///
/// # Panics
/// When `chunk_bytes` is 0.
pub fn crc32c_chunks(bytes: &[u8], chunk_bytes: usize) -> impl Iterator<Item = u32> + '_ {
    let mut chunks = bytes.chunks(chunk_bytes).peekable();
    std::iter::from_fn(move || {
        let chunk = chunks.next()?;
        if let Some(next) = chunks.peek() {
            fetch_ahead(next);
        }
        Some(crc32c(chunk))
    })
}

/// Asks for memory that is read next. The processor does so by itself only within a page and a
/// stream that it has seen for a while: of chunks of 4 KiB that are in no cache, it had less than
/// half as many per second as of chunks of 16 KiB.
pub(crate) fn fetch_ahead(bytes: &[u8]) {
    if bytes.len() > AHEAD_BYTES_MAX {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(CACHE_LINE_BYTES) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which faults nowhere; and the address is that of a live slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

/// CRC32C of A followed by B, from both and the length of B in bytes, without their bytes.
///
/// Appending B shifts A's remainder by B's length: a product with x^(8 * length) modulo the
/// polynomial. The inversions of both sides cancel out.
pub(crate) fn combined(crc_a: u32, crc_b: u32, shift: Shift) -> u32 {
    product(crc_a, shift.0) ^ crc_b
}

/// x^(8 * length) for one length.
#[derive(Clone, Copy)]
pub(crate) struct Shift(u32);

impl Shift {
    pub(crate) fn of_bytes(len_bytes: usize) -> Self {
        // Square and multiply, from x^8; bit 31 is x^0, as the CRC is reflected.
        let (mut result, mut power, mut rest) = (1 << 31, 1 << 23, len_bytes);
        while rest > 0 {
            if rest & 1 == 1 {
                result = product(result, power);
            }
            power = product(power, power);
            rest >>= 1;
        }
        Self(result)
    }
}

/// Product of two polynomials modulo the CRC32C polynomial, reflected.
fn product(a: u32, mut b: u32) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut sum = 0;
    for bit in (0..32).rev() {
        // All ones or all zeros instead of a branch that nothing can predict.
        sum ^= b & ((a >> bit) & 1).wrapping_neg();
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, bit by bit.
    fn reference(bytes: &[u8]) -> u32 {
        let mut state = !0_u32;
        for &byte in bytes {
            state ^= u32::from(byte);
            for _ in 0..8 {
                state = (state >> 1) ^ if state & 1 == 1 { 0x82f6_3b78 } else { 0 };
            }
        }
        !state
    }

    #[test]
    fn crc_check_value_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
        // RFC 3720, B.4: 32 bytes of zeros, of ones.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    proptest! {
        #[test]
        fn crc_equals_the_bitwise_definition_and_the_other_crate(
            bytes in proptest::collection::vec(any::<u8>(), 0..5000),
            skip in 0_usize..64,
        ) {
            let bytes = &bytes[skip.min(bytes.len())..];
            prop_assert_eq!(crc32c(bytes), reference(bytes));
            prop_assert_eq!(crc32c(bytes), ::crc32c::crc32c(bytes));
        }

        #[test]
        fn crcs_of_chunks_are_those_of_each(
            bytes in proptest::collection::vec(any::<u8>(), 0..5000),
            chunk_bytes in 1_usize..2000,
        ) {
            let each: Vec<u32> = bytes.chunks(chunk_bytes).map(reference).collect();
            prop_assert_eq!(crc32c_chunks(&bytes, chunk_bytes).collect::<Vec<_>>(), each);
        }

        #[test]
        fn crc_of_two_parts_equals_crc_of_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..5000),
            cut in any::<prop::sample::Index>(),
        ) {
            let (a, b) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(crc32c_append(crc32c(a), b), crc32c(&bytes));
            let by_shift = combined(crc32c(a), crc32c(b), Shift::of_bytes(b.len()));
            prop_assert_eq!(by_shift, crc32c(&bytes));
        }
    }
}
