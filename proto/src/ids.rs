//! Names of things. Each is a type of its own, so that two of them cannot be exchanged by mistake.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id! {
    /// A node of the cluster. Never given to another node.
    NodeId(u32)
}
id! {
    /// One device in one incarnation: the cluster map gives each (device UUID, incarnation) a
    /// number when the device is formatted, and never gives that number to another.
    DeviceId(u32)
}
id! {
    /// A piece of the metadata key space.
    PartitionId(u32)
}
id! {
    /// A piece of a file's offset space: offset / region size.
    RegionIndex(u32)
}
id! {
    /// A client's session. Issued by a server, never used again. Zero is no session.
    SessionId(u64)
}
id! {
    /// Number of a namespace or file operation within its session, rising from 1.
    ClientSequence(u64)
}
id! {
    /// The coarse cluster clock, about one step a second; never goes back.
    Tick(u64)
}
id! {
    /// Rises with each start of a node's process.
    Incarnation(u64)
}
id! {
    /// Number of a partition's configuration (its primary and backups).
    ConfigNumber(u64)
}
id! {
    /// Version of the cluster map.
    Epoch(u64)
}
id! {
    /// Rises with each truncate of a file. A new file record's starts at the current tick.
    TruncateEpoch(u64)
}
id! {
    /// A sync, prestage, purge or pin that can be asked about, awaited and cancelled.
    OpId(u64)
}

/// Most members (data and parity blocks) of a parity group: 16+4.
pub const MEMBERS_MAX: usize = 20;

/// Identity of a file: 128 opaque bits that survive renames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Fid(pub u128);

impl fmt::Debug for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fid({:032x})", self.0)
    }
}

impl fmt::Display for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Identity of a parity group. Never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PgId {
    /// Mint slot: the tick at which the client sealed the group.
    pub slot: Tick,
    /// The session that wrote it.
    pub session: SessionId,
    /// Number within the session.
    pub sequence: u32,
    /// The partition that keeps its record.
    pub home: PartitionId,
}

impl fmt::Debug for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pg({}.{:x}.{}@{})", self.home, self.session.0, self.sequence, self.slot)
    }
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The partition of a region of a file, among `partitions`.
///
/// XXH3-64 over the file's id and the region (little-endian), modulo the number of partitions: part
/// of the format, since both sides compute it.
pub fn partition_of(fid: Fid, region: RegionIndex, partitions: u32) -> PartitionId {
    let mut key = [0_u8; 20];
    key[..16].copy_from_slice(&fid.0.to_le_bytes());
    key[16..].copy_from_slice(&region.0.to_le_bytes());
    reduce(xxhash_rust::xxh3::xxh3_64(&key), partitions)
}

/// The partition that runs a session's namespace operations.
pub fn partition_of_session(session: SessionId, partitions: u32) -> PartitionId {
    reduce(xxhash_rust::xxh3::xxh3_64(&session.0.to_le_bytes()), partitions)
}

fn reduce(hash: u64, partitions: u32) -> PartitionId {
    let rest = hash % u64::from(partitions.max(1));
    PartitionId(u32::try_from(rest).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_of_metadata_is_part_of_the_format() {
        let partitions = 16_384;
        let seen: Vec<u32> =
            (0..4).map(|r| partition_of(Fid(0x1234), RegionIndex(r), partitions).0).collect();
        assert_eq!(seen, [8_890, 16_111, 13_646, 11_076]);
        assert_eq!(partition_of_session(SessionId(7), partitions).0, 5_807);
    }
}
