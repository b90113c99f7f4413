//! What can go wrong, and what a caller can do about it.

use bb_nvme::DeviceError;

use crate::ids::{ClusterUuid, LogUuid, Lsn, Nonce, StreamId};

/// Why the log refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// No superblock: never formatted, or a format that did not finish.
    #[error("{device}: not a commit log (format it first, or check the path)")]
    NotALog {
        /// The device.
        device: String,
    },
    /// Superblocks are there and none is whole.
    #[error("{device}: every copy of the superblock is damaged")]
    SuperblockDamaged {
        /// The device.
        device: String,
    },
    /// Written by a newer release.
    #[error(
        "commit log format version {found} is newer than {supported}, which this release reads"
    )]
    NewerVersion {
        /// Version found.
        found: u32,
        /// Newest version known here.
        supported: u32,
    },
    /// Another log than the one expected.
    #[error("this is log {found}, expected {expected}")]
    WrongLog {
        /// As configured.
        expected: LogUuid,
        /// As found.
        found: LogUuid,
    },
    /// A log of another cluster.
    #[error("this log belongs to cluster {found}, not to {expected}")]
    WrongCluster {
        /// As configured.
        expected: ClusterUuid,
        /// As found.
        found: ClusterUuid,
    },
    /// The log and the data devices were not formatted together.
    #[error("log nonce {found} does not match the data devices' {expected}")]
    WrongNonce {
        /// The data devices'.
        expected: Nonce,
        /// The log's.
        found: Nonce,
    },
    /// The device is smaller than the log on it: truncated, or swapped.
    #[error("device holds {capacity_bytes} bytes, the log on it needs {needed_bytes}")]
    DeviceTooSmall {
        /// What the log needs.
        needed_bytes: u64,
        /// What the device has.
        capacity_bytes: u64,
    },
    /// Sizes that no log can have.
    #[error("a log cannot have this geometry: {0}")]
    Geometry(String),
    /// Something that was durable is not there any more. What this log says is incomplete: it must
    /// not be served from.
    #[error("log is damaged at LSN {lsn}: {detail}")]
    Damaged {
        /// Where the undamaged part ends.
        lsn: Lsn,
        /// What showed it.
        detail: String,
    },
    /// The device could not read a part of the log that may hold records.
    #[error("log cannot be read at LSN {lsn}: {source}")]
    Unreadable {
        /// Where.
        lsn: Lsn,
        /// The device's answer.
        source: DeviceError,
    },
    /// The receiver of the replay refused.
    #[error("replay was refused: {0}")]
    Replay(#[from] ReplayError),
    /// The device failed while the log was formatted or opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The log has failed (its device did not take a write). Nothing that has not been acknowledged
    /// yet ever will be; the process must stop serving.
    #[error("the log has failed: {0}")]
    Failed(String),
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// The record is too large.
    #[error("a record of {bytes} bytes is larger than {bytes_max}")]
    RecordTooLarge {
        /// Its size.
        bytes: usize,
        /// The largest.
        bytes_max: usize,
    },
    /// The reservation does not cover the record. A bug of the caller.
    #[error("record needs a reservation of {needed_bytes} bytes, {left_bytes} are left")]
    Unreserved {
        /// What the record may take from the ring.
        needed_bytes: u64,
        /// What the reservation has left.
        left_bytes: u64,
    },
    /// The ring has no room, or never can have.
    #[error("no room for {needed_bytes} bytes in the log's ring")]
    Full {
        /// What was asked.
        needed_bytes: u64,
    },
    /// More streams than the superblock can list.
    #[error("a log holds at most {streams_max} streams")]
    TooManyStreams {
        /// The limit.
        streams_max: usize,
    },
    /// The stream holds nothing.
    #[error("stream {stream} holds nothing")]
    UnknownStream {
        /// Which.
        stream: StreamId,
    },
    /// A checkpoint of the stream is still being written.
    #[error("a checkpoint of stream {stream} is under way")]
    CheckpointUnderWay {
        /// Which.
        stream: StreamId,
    },
    /// The stream was retired while its checkpoint was being written.
    #[error("stream {stream} was retired during its checkpoint")]
    Retired {
        /// Which.
        stream: StreamId,
    },
}

/// What a caller can do about a [`LogError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogErrorKind {
    /// Wrong or unusable device: the operator must look at the configuration.
    Refused,
    /// The log lost something durable: this node's replicas are not to be trusted.
    Damaged,
    /// The log device failed: eject the node.
    Failed,
    /// Wait, or write a checkpoint.
    NoSpace,
    /// A misuse that is a bug of the caller.
    Caller,
}

impl LogError {
    /// What a caller can do about it.
    pub fn kind(&self) -> LogErrorKind {
        match self {
            Self::NotALog { .. }
            | Self::NewerVersion { .. }
            | Self::WrongLog { .. }
            | Self::WrongCluster { .. }
            | Self::WrongNonce { .. }
            | Self::DeviceTooSmall { .. }
            | Self::Geometry(_) => LogErrorKind::Refused,
            Self::SuperblockDamaged { .. }
            | Self::Damaged { .. }
            | Self::Unreadable { .. }
            | Self::Replay(_) => LogErrorKind::Damaged,
            Self::Device(_) | Self::Failed(_) => LogErrorKind::Failed,
            Self::Full { .. } | Self::TooManyStreams { .. } => LogErrorKind::NoSpace,
            Self::Closed
            | Self::RecordTooLarge { .. }
            | Self::Unreserved { .. }
            | Self::UnknownStream { .. }
            | Self::CheckpointUnderWay { .. }
            | Self::Retired { .. } => LogErrorKind::Caller,
        }
    }
}

/// Why the receiver of a replay refused a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stream {stream} at LSN {lsn}: {why}")]
pub struct ReplayError {
    /// The stream.
    pub stream: StreamId,
    /// The record.
    pub lsn: Lsn,
    /// The reason.
    pub why: String,
}
