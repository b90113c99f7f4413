//! Rendezvous hashing: every pair of names has a weight, and the heaviest pairs win. The same
//! everywhere, and a node that comes or goes moves only what it wins or had won.

/// The finaliser of `SplitMix64`: each bit of the input moves half of the output's.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// What a weight is for: the same two numbers must not win everywhere.
#[derive(Clone, Copy)]
pub(crate) enum For {
    /// A partition's replicas.
    Partition,
    /// Who watches a node.
    Watch,
}

/// Weight of a node for a thing.
pub(crate) fn weight(purpose: For, thing: u32, node: u32) -> u64 {
    let salt = match purpose {
        For::Partition => 0x9E37_79B9_7F4A_7C15,
        For::Watch => 0xC2B2_AE3D_27D4_EB4F,
    };
    mix(mix(u64::from(thing).wrapping_add(salt))
        ^ u64::from(node).wrapping_mul(0xD6E8_FEB8_6659_FD93))
}
