//! What can go wrong with a parity group.

use bb_erasure::ErasureError;
use bb_proto::Failure;

/// Why a parity group could not be written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// No set of devices with room was left. The caller waits for space, or takes fewer blocks:
    /// `usable` devices did not refuse.
    #[error("no room for a parity group: {usable} devices left, {needed} needed")]
    NoSpace {
        /// Devices that did not refuse.
        usable: usize,
        /// Devices that the group needs.
        needed: usize,
    },
    /// Too few devices answered in time.
    #[error("too few devices answer")]
    Unreachable,
    /// A refusal that another device would repeat (session, capability, slot).
    #[error("refused: {0}")]
    Refused(Failure),
    /// The blocks do not fit the geometry.
    #[error(transparent)]
    Erasure(#[from] ErasureError),
}

/// Why bytes of a parity group could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// A member does not hold its block (any more): fetch the fragment map again (rule 4).
    #[error("the fragment map is out of date")]
    Stale,
    /// More blocks are missing or damaged than parity makes up for.
    #[error("{missing} blocks of the parity group are lost, parity makes up for {parity}")]
    Lost {
        /// Blocks that are missing or damaged.
        missing: usize,
        /// K.
        parity: usize,
    },
    /// Too few devices answered in time.
    #[error("too few devices answer")]
    Unreachable,
    /// A refusal that another device would repeat (session, capability).
    #[error("refused: {0}")]
    Refused(Failure),
    /// The range or the descriptor is impossible, or needs a codec that this build lacks.
    #[error("parity group cannot be read: {0}")]
    Descriptor(String),
}

impl From<ErasureError> for ReadError {
    fn from(error: ErasureError) -> Self {
        Self::Descriptor(error.to_string())
    }
}

#[cfg(all(test, not(feature = "isal")))]
mod tests {
    use bb_erasure::{CodecId, codec};

    use super::ReadError;

    #[test]
    fn a_group_of_a_code_that_this_build_lacks_says_which_feature_brings_it() {
        let error = codec(CodecId::ISAL).err().expect("not built");
        let said = ReadError::from(error).to_string();
        assert!(said.contains("build with feature `isal`"), "{said}");
    }
}
