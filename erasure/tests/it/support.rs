//! Blocks and losses for the tests.

use bb_erasure::{Codec, CodecId, ErasureError, Geometry, codec};

/// The codecs of this build that do all geometries.
pub fn codecs() -> Vec<&'static dyn Codec> {
    [CodecId::ISAL, CodecId::REED_SOLOMON_SIMD]
        .into_iter()
        .filter_map(|id| codec(id).ok())
        .collect()
}

/// Bytes that look random and are the same in every run: splitmix64.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

/// All N+K blocks of a parity group.
pub fn group(codec: &dyn Codec, geometry: Geometry, len: usize) -> Vec<Vec<u8>> {
    let mut blocks: Vec<_> = (0..geometry.data() as u64).map(|i| bytes(i, len)).collect();
    // Not zeros: an encoder that forgets to write must be seen.
    blocks.resize(geometry.total(), vec![0xee; len]);
    let (data, parity) = blocks.split_at_mut(geometry.data());
    codec.encode(geometry, &refs(data), &mut muts(parity)).expect("a group encodes");
    blocks
}

pub fn refs(blocks: &[Vec<u8>]) -> Vec<&[u8]> {
    blocks.iter().map(Vec::as_slice).collect()
}

pub fn muts(blocks: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    blocks.iter_mut().map(Vec::as_mut_slice).collect()
}

/// Takes `lost` away, asks for `wanted`.
pub fn rebuilt(
    codec: &dyn Codec,
    geometry: Geometry,
    blocks: &[Vec<u8>],
    lost: &[usize],
    wanted: &[usize],
) -> Result<Vec<Vec<u8>>, ErasureError> {
    let kept = |(i, block): (usize, &'_ Vec<u8>)| (!lost.contains(&i)).then_some(block.to_owned());
    let present: Vec<_> = blocks.iter().enumerate().map(kept).collect();
    let present: Vec<_> = present.iter().map(Option::as_deref).collect();
    let mut out = vec![vec![0xee; blocks[0].len()]; wanted.len()];
    codec.reconstruct(geometry, &present, wanted, &mut muts(&mut out))?;
    Ok(out)
}

/// All sets of at most `most` numbers below `below`.
pub fn subsets(below: usize, most: usize) -> impl Iterator<Item = Vec<usize>> {
    (0_u32..1 << below)
        .filter(move |mask| mask.count_ones() as usize <= most)
        .map(move |mask| (0..below).filter(|i| mask & (1 << i) != 0).collect())
}
