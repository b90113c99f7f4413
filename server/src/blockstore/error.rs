//! What can be wrong with a data device, in words for an operator.

use bb_commitlog::{Lsn, Nonce};
use bb_nvme::DeviceError;
use bb_proto::Failure;

use super::record::RecordError;
use super::space::{Address, ClaimError};
use super::superblock::Uuid;
use super::table::BlockKey;

/// Why a data device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No superblock is there: never formatted, overwritten, or another device under this path.
    #[error(
        "{device} is not formatted as a data device (or was overwritten). Check the path; \
         `bbd format` makes it one, and destroys what it holds"
    )]
    NotFormatted {
        /// The device.
        device: String,
    },
    /// A superblock is there, and no copy of it is whole.
    #[error("{device}: both copies of the superblock are damaged. Treat the device as failed")]
    Damaged {
        /// The device.
        device: String,
    },
    /// Written by a newer release.
    #[error("{device} has format version {found}, this program knows up to {supported}. Upgrade")]
    NewerVersion {
        /// The device.
        device: String,
        /// What it has.
        found: u32,
        /// Newest known here.
        supported: u32,
    },
    /// Belongs to another cluster.
    #[error("{device} belongs to cluster {found}, not to {expected}. Check the path")]
    OtherCluster {
        /// The device.
        device: String,
        /// Its cluster.
        found: Uuid,
        /// Ours.
        expected: Uuid,
    },
    /// Was not formatted together with the commit log.
    #[error(
        "{device} was formatted with another commit log (nonce {found}, the log has {expected}). \
         What is on it cannot be trusted without its own log"
    )]
    OtherLog {
        /// The device.
        device: String,
        /// Its nonce.
        found: Nonce,
        /// The log's.
        expected: Nonce,
    },
    /// Smaller than when it was formatted.
    #[error("{device} has {found} bytes and was formatted with {expected}: truncated or swapped")]
    Truncated {
        /// The device.
        device: String,
        /// Its size now.
        found: u64,
        /// Its size at format.
        expected: u64,
    },
    /// Too small for a single block.
    #[error("{device} has {found} bytes; a data device needs {needed} at the least")]
    TooSmall {
        /// The device.
        device: String,
        /// Its size.
        found: u64,
        /// The least.
        needed: u64,
    },
    /// The device answers with errors.
    #[error("{device}: {error}")]
    Device {
        /// The device.
        device: String,
        /// Its error.
        error: DeviceError,
    },
    /// The log failed while the device was recovered.
    #[error("recovery of {device}: {failure}")]
    Log {
        /// The device.
        device: String,
        /// What it answered.
        failure: Failure,
    },
    /// The log contradicts itself about this device.
    #[error("recovery of {device}: {fault}. The commit log is damaged")]
    Replay {
        /// The device.
        device: String,
        /// The contradiction.
        fault: ReplayFault,
    },
}

/// A log record that contradicts what came before it: the log is damaged, or was written by a
/// program with a bug. The server does not start on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayFault {
    /// It cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It names a page that the device does not have, or a block of another page.
    #[error("a record names page {0}, where it cannot be")]
    Page(u32),
    /// Two blocks at one place.
    #[error("{key} at {lsn} cannot lie at {address:?}: {error}")]
    Space {
        /// The block.
        key: BlockKey,
        /// Position of the record.
        lsn: Lsn,
        /// The place.
        address: Address,
        /// What is wrong.
        error: ClaimError,
    },
    /// The same block was put twice.
    #[error("{key} was put a second time at {lsn}")]
    Twice {
        /// The block.
        key: BlockKey,
        /// Position of the record.
        lsn: Lsn,
    },
}
