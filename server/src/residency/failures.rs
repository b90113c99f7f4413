//! What goes wrong below, in the words of the protocol.

use bb_pgio::{ReadError, WriteError};
use bb_proto::{Code, Failure};

use crate::bfs::{Bfs, BfsError, confirmed};
use crate::partition::region_mutation::RegionRefusal;

/// What a call on the backing file system came to, if it is still ours (rule 11).
pub(super) async fn confirm<T>(
    bfs: &dyn Bfs,
    result: Result<T, BfsError>,
    what: &str,
) -> Result<T, Failure> {
    confirmed(bfs, result).await.map_err(|error| of_bfs(&error, what))
}

/// A call on the backing file system failed.
pub(super) fn of_bfs(error: &BfsError, what: &str) -> Failure {
    match error {
        BfsError::Errno(libc::ESTALE) => {
            Failure::new(Code::StaleFile, format!("{what}: the file is gone"))
        }
        BfsError::Errno(libc::ENOSPC) => {
            Failure::errno(libc::ENOSPC, format!("{what}: the backing file system is full"))
        }
        BfsError::Errno(errno) => {
            Failure::errno(*errno, format!("{what}: the backing file system's answer"))
        }
        BfsError::Unavailable(why) => Failure::new(Code::BfsUnavailable, why.clone()),
    }
}

/// A region refused.
pub(super) fn of_region(refusal: RegionRefusal) -> Failure {
    match refusal {
        RegionRefusal::NotOpen => Failure::new(Code::RegionUnknown, "the region is not open"),
        RegionRefusal::Dropped => Failure::new(Code::StaleFile, "the file was dropped"),
        RegionRefusal::Truncating => Failure::new(Code::Busy, "a truncate is under way"),
        RegionRefusal::Overlap => Failure::new(Code::Busy, "another operation is under way here"),
        RegionRefusal::PredecessorUnproven => Failure::new(
            Code::Busy,
            "a former server process may still be writing here: it is not proven gone",
        ),
        RegionRefusal::Epoch(epoch) => {
            Failure::new(Code::OldTruncateEpoch, "the file was truncated").with_value(epoch.0)
        }
        RegionRefusal::UnknownOperation => {
            Failure::new(Code::StaleFile, "the file was dropped meanwhile")
        }
        RegionRefusal::Invalid(why) => Failure::new(Code::Invalid, why),
    }
}

/// Bytes could not be read from their group.
pub(super) fn of_read(error: &ReadError) -> Failure {
    let code = match error {
        ReadError::Stale | ReadError::Unreachable => Code::Busy,
        ReadError::Refused(failure) => return failure.clone(),
        ReadError::Lost { .. } | ReadError::Descriptor(_) => Code::Corrupt,
    };
    Failure::new(code, error.to_string())
}

/// A group could not be written.
pub(super) fn of_write(error: &WriteError) -> Failure {
    let code = match &error {
        WriteError::NoSpace { .. } => Code::NoSpace,
        WriteError::Unreachable => Code::Busy,
        WriteError::Refused(failure) => return failure.clone(),
        WriteError::Erasure(_) => Code::Invalid,
    };
    Failure::new(code, error.to_string())
}
