//! Seeded mutations of an input.

use fastrand::Rng;

/// Longest input that a mutation makes, unless the corpus has longer ones.
const LEN_MAX: usize = 16 << 10;

/// One to five changes of `bytes`; `others` is the corpus, for splices.
pub(crate) fn mutate(random: &mut Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    let len_max = others.iter().map(Vec::len).max().unwrap_or(0).max(LEN_MAX);
    for _ in 0..random.usize(1..=5) {
        change(random, bytes, others);
        bytes.truncate(len_max);
    }
}

fn change(random: &mut Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    if bytes.is_empty() {
        bytes.extend((0..random.usize(1..100)).map(|_| random.u8(..)));
        return;
    }
    let at = random.usize(..bytes.len());
    match random.u8(..10) {
        0 | 1 => bytes[at] ^= 1 << random.u8(..8),
        2 => bytes[at] = random.u8(..),
        3 | 4 => extreme(random, bytes, at),
        5 => bytes.truncate(at),
        6 => {
            let end = random.usize(at..=bytes.len());
            bytes.drain(at..end.min(at + 64));
        }
        7 => {
            let end = random.usize(at..=bytes.len()).min(at + 256);
            let copy = bytes[at..end].to_vec();
            let to = random.usize(..=bytes.len());
            bytes.splice(to..to, copy);
        }
        8 => {
            let other = &others[random.usize(..others.len())];
            let from = random.usize(..=other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => bytes.extend((0..random.usize(1..40)).map(|_| random.u8(..))),
    }
}

/// Where a length, count or offset may be: what overflows, and what is off by one.
fn extreme(random: &mut Rng, bytes: &mut [u8], at: usize) {
    let len = bytes.len() as u64;
    let values = [
        0,
        1,
        u64::MAX,
        u64::MAX - 1,
        u64::MAX >> 1,
        1 << 63,
        u64::from(u32::MAX >> 1),
        1 << 31,
        u64::from(u32::MAX) - 4095,
        u64::MAX - 4095,
        len,
        len + 1,
        len.saturating_sub(1),
        1 << random.u8(..64),
    ];
    let value = values[random.usize(..values.len())].to_le_bytes();
    let width = [1, 2, 4, 8][random.usize(..4)];
    // Fields are aligned more often than not.
    let at = if random.bool() { at } else { at / width * width };
    let width = width.min(bytes.len() - at);
    bytes[at..at + width].copy_from_slice(&value[..width]);
}
