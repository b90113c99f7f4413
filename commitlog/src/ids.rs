//! The log's own words.

use std::fmt;

use serde::Serialize;

/// Names a stream. Opaque to the log: the caller packs what it needs (kind and device, partition).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct StreamId(pub u64);

/// A position in the log, in bytes. It never wraps; its lap is `lsn / ring_bytes`, its place on the
/// device `ring_offset + lsn % ring_bytes`. A record's LSN names its first byte. Records that a
/// crash cut off leave their LSNs to others: an LSN is a name only once it is durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// On whose behalf a record is written, from the most to the least urgent. A class gets ring space
/// only while what the classes before it may need is left over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub enum Class {
    /// Raft, leases, horizons: what keeps the cluster alive.
    Control,
    /// Records that another node's primary waits for.
    Replication,
    /// Records that give space back, such as frees.
    Reclaim,
    /// Records that a client waits for.
    Client,
    /// Rebuild and other background copies.
    Rebuild,
}

/// Names one log: drawn when it is formatted, never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct LogUuid(pub [u8; 16]);

/// Names the cluster that the log belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct ClusterUuid(pub [u8; 16]);

/// Shared by a log and the data devices that were formatted with it: a log that meets other data
/// devices, or an older copy of itself, is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct Nonce(pub u64);

/// Who a log is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct LogIdentity {
    /// Names this log.
    pub log: LogUuid,
    /// Names its cluster.
    pub cluster: ClusterUuid,
    /// Shared with its data devices.
    pub nonce: Nonce,
}

fn write_uuid(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

impl fmt::Display for LogUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, f)
    }
}

impl fmt::Display for ClusterUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, f)
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
