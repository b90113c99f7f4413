//! What a server answers when it does not do what was asked.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// Why a request was refused. Callers branch on this; the number is part of the protocol.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u32)]
        pub enum Code { $($(#[$doc])* $name = $value,)* }

        impl Code {
            /// From the number on the wire; numbers of a newer version are [`Code::Unknown`].
            pub const fn from_wire(value: u32) -> Self {
                match value { $($value => Self::$name,)* _ => Self::Unknown }
            }
        }
    };
}

codes! {
    /// A code of a newer version.
    Unknown = 0,
    /// The system call on the backing file system (or a check in its stead) failed; the errno says
    /// how. Final.
    Errno = 1,
    /// Cannot be served now (starting, no buffers, log full, device busy). Try again later.
    Busy = 2,
    /// The addressed partition or device is not here, or its configuration or incarnation is
    /// another. Fetch the map and try again.
    Fenced = 3,
    /// The device holds no such block of that parity group. Fetch the fragment map again.
    Stale = 4,
    /// The parity group's slot is at or below the horizon: write its bytes again under a new id.
    BehindHorizon = 5,
    /// The parity group's slot lies above the server's tick: wait and try again.
    SlotAhead = 6,
    /// The commit was made under an old truncate epoch (the current one is given): send it again
    /// with that.
    OldTruncateEpoch = 7,
    /// No room for data or metadata here: place the parity group elsewhere; where nowhere is left,
    /// ENOSPC.
    NoSpace = 8,
    /// The session is not known (expired, or lost): open another, reopen files.
    NoSession = 9,
    /// The capability does not permit this.
    Denied = 10,
    /// Payload or block contents do not match their checksum.
    Corrupt = 11,
    /// A device failed for this request.
    DeviceFailed = 12,
    /// The file changed on the backing file system behind our back while it holds dirty data here.
    Conflict = 13,
    /// The message is malformed or breaks a rule of the protocol. A bug of the sender.
    Invalid = 14,
    /// This server cannot do it yet.
    Unsupported = 15,
    /// The operation was cancelled.
    Cancelled = 16,
    /// The commit was cancelled by its client: its bytes must be written again.
    CommitCancelled = 17,
    /// The region is not registered in the file record: register it and commit again.
    RegionUnknown = 18,
    /// The backing file system is not mounted, or is not the one that belongs to this cluster.
    BfsUnavailable = 19,
    /// The file is not known here, or was dropped since it was opened.
    StaleFile = 20,
    /// This node does not lead the Raft group; the leader's node number is given, 0 for unknown.
    NotLeader = 21,
}

/// An answer that says no: why, and what the caller needs to go on.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Failure {
    /// See [`Code`].
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// For [`Code::Errno`]: the system's error number.
    #[prost(int32, tag = "2")]
    pub errno: i32,
    /// For [`Code::BehindHorizon`] and [`Code::SlotAhead`]: the current tick; for
    /// [`Code::OldTruncateEpoch`]: the current epoch; for [`Code::NotLeader`]: the leader's node.
    #[prost(uint64, tag = "3")]
    pub value: u64,
    /// For people: one sentence.
    #[prost(string, tag = "4")]
    pub detail: String,
}

impl Failure {
    /// A refusal with a sentence for people.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code: code as u32, errno: 0, value: 0, detail: detail.into() }
    }

    /// A failed system call.
    pub fn errno(errno: i32, detail: impl Into<String>) -> Self {
        Self { code: Code::Errno as u32, errno, value: 0, detail: detail.into() }
    }

    /// Adds the tick or epoch that the caller needs.
    #[must_use]
    pub const fn with_value(mut self, value: u64) -> Self {
        self.value = value;
        self
    }

    /// What callers branch on. (`code()` is taken by the derived accessor's field.)
    pub const fn kind(&self) -> Code {
        Code::from_wire(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind())?;
        if self.errno != 0 {
            write!(f, " ({})", std::io::Error::from_raw_os_error(self.errno))?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
