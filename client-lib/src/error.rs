//! Errors as applications see them.

use bb_pgio::{ReadError, WriteError};
use bb_proto::{Code, Failure};

/// What went wrong with a call. [`Error::errno`] says it in the system's numbers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The system's error number: of the backing file system, or of a check in its stead.
    #[error("{}", sentence(*errno, detail))]
    Errno {
        /// The number.
        errno: i32,
        /// One sentence.
        detail: String,
    },
    /// A server refused, and trying again does not help.
    #[error("refused: {0}")]
    Refused(Failure),
    /// No answer within the command timeout.
    #[error("no answer from the cluster for {seconds} s")]
    TimedOut {
        /// The command timeout.
        seconds: u64,
    },
    /// Another protocol version, another cluster, or authentication refused.
    #[error("the cluster does not accept this client: {0}")]
    Rejected(String),
    /// The buffer is full, and has been for the command timeout.
    #[error("no space left in the buffer")]
    NoSpace,
    /// More of a parity group is lost than its parity makes up for.
    #[error("data lost: {0}")]
    Lost(String),
    /// A server's answer does not make sense.
    #[error("answer cannot be understood: {0}")]
    Protocol(String),
}

fn sentence(errno: i32, detail: &str) -> String {
    let system = std::io::Error::from_raw_os_error(errno);
    if detail.is_empty() { system.to_string() } else { format!("{system}: {detail}") }
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn errno_of(errno: i32, detail: impl Into<String>) -> Self {
        Self::Errno { errno, detail: detail.into() }
    }

    /// The system's number for it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Errno { errno, .. } => *errno,
            Self::Refused(failure) => match failure.kind() {
                Code::NoSpace => libc::ENOSPC,
                Code::Denied => libc::EACCES,
                Code::Invalid => libc::EINVAL,
                Code::Unsupported => libc::EOPNOTSUPP,
                Code::Cancelled => libc::ECANCELED,
                Code::StaleFile | Code::Stale => libc::ESTALE,
                _ => libc::EIO,
            },
            Self::TimedOut { .. } => libc::ETIMEDOUT,
            Self::Rejected(_) => libc::EACCES,
            Self::NoSpace => libc::ENOSPC,
            Self::Lost(_) | Self::Protocol(_) => libc::EIO,
        }
    }

    /// True for a refusal with this code.
    pub fn is(&self, code: Code) -> bool {
        matches!(self, Self::Refused(failure) if failure.kind() == code)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure.kind() {
            Code::Errno => Self::Errno { errno: failure.errno, detail: failure.detail },
            Code::NoSpace => Self::NoSpace,
            _ => Self::Refused(failure),
        }
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NoSpace { .. } => Self::NoSpace,
            WriteError::Refused(failure) => failure.into(),
            WriteError::Unreachable => Self::errno_of(libc::EIO, "too few devices answer"),
            WriteError::Erasure(error) => Self::Protocol(error.to_string()),
        }
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Refused(failure) => failure.into(),
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::from_raw_os_error(error.errno())
    }
}
