//! Messages between servers about the map, leases and replicas: see `docs/replication.md`.
//!
//! Protocol buffers, but for the entries of [`Replicate`], which are many and small.

use prost::Message;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::{DecodeError, Reader, Writer};
use crate::{ConfigNumber, PartitionId};

/// Raft messages to a voter. The answer is empty and comes at once.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RaftMessages {
    /// Encoded messages (crate consensus), in order.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub messages: Vec<Vec<u8>>,
    /// Number of the voter that sends them.
    #[prost(uint64, tag = "2")]
    pub from: u64,
}

/// Filling replicas have everything and count already: from their primary to the Raft leader,
/// repeated until the map says so.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Filled {
    /// The replicas.
    #[prost(message, repeated, tag = "1")]
    pub replicas: Vec<FilledReplica>,
}

/// See [`Filled`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Message)]
pub struct FilledReplica {
    /// The partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// The primary's configuration number.
    #[prost(uint64, tag = "2")]
    pub config: u64,
    /// The node that was filled.
    #[prost(uint32, tag = "3")]
    pub node: u32,
}

/// The leader would have other primaries: each partition's primary stops serving it and proposes
/// the change itself.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HandOver {
    /// Encoded changes (crate cluster, `Reconfigure`).
    #[prost(bytes = "vec", tag = "1")]
    pub reconfigure: Vec<u8>,
}

/// Proposes a command to the Raft leader.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Propose {
    /// Encoded command (crate cluster).
    #[prost(bytes = "vec", tag = "1")]
    pub command: Vec<u8>,
}

/// The command was applied.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ProposeReply {
    /// Epoch of the map afterwards.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// Encoded outcome of the command (crate cluster).
    #[prost(bytes = "vec", tag = "2")]
    pub outcome: Vec<u8>,
}

/// Asks the Raft leader for a lease.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Lease {
    /// The node.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// Incarnation of its process.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// Epoch of its map.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// Number of the last grant that it has received from this leader, 0 for none: only a request
    /// that names it shows that the node also hears the leader.
    #[prost(uint64, tag = "4")]
    pub granted: u64,
}

/// A lease, counted from when it was asked for.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LeaseReply {
    /// Its length in milliseconds.
    #[prost(uint32, tag = "1")]
    pub lease_ms: u32,
    /// It counts only under a map of this epoch or a newer one.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// The current tick.
    #[prost(uint64, tag = "3")]
    pub tick: u64,
    /// What leads from the caller's map to that epoch: see [`crate::meta::GetMapReply`].
    #[prost(message, optional, tag = "4")]
    pub map: Option<crate::meta::GetMapReply>,
    /// Number of this grant, rising.
    #[prost(uint64, tag = "5")]
    pub grant: u64,
}

/// Is the process of that incarnation there? Answered by `Done`, or `Fenced` by another one.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Heartbeat {
    /// Who asks.
    #[prost(uint32, tag = "1")]
    pub from: u32,
    /// Who is asked.
    #[prost(uint32, tag = "2")]
    pub node: u32,
    /// Its incarnation as the map has it.
    #[prost(uint64, tag = "3")]
    pub incarnation: u64,
}

/// A node does not answer heartbeats: to the Raft leader.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Suspect {
    /// Who says so.
    #[prost(uint32, tag = "1")]
    pub reporter: u32,
    /// Who does not answer.
    #[prost(uint32, tag = "2")]
    pub node: u32,
    /// Its incarnation as the map has it.
    #[prost(uint64, tag = "3")]
    pub incarnation: u64,
}

/// A primary that takes over asks a member what it has, and binds it to its configuration.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ReplicaStatus {
    /// The partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// The asker's configuration number: the member refuses older ones from now on.
    #[prost(uint64, tag = "2")]
    pub config: u64,
}

/// What a member has of a partition.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReplicaStatusReply {
    /// Sequence of the last mutation applied.
    #[prost(uint64, tag = "1")]
    pub applied: u64,
    /// Sequence of the last mutation logged; all of it is durable.
    #[prost(uint64, tag = "2")]
    pub logged: u64,
    /// Configuration number of the last record logged.
    #[prost(uint64, tag = "3")]
    pub logged_config: u64,
    /// Configuration number of the last record applied.
    #[prost(uint64, tag = "6")]
    pub applied_config: u64,
    /// Highest commit point that the member has recorded.
    #[prost(uint64, tag = "4")]
    pub committed: u64,
    /// Empty, or why the replica cannot be used: it is damaged, or was never filled.
    #[prost(string, tag = "5")]
    pub unusable: String,
}

/// Asks a member for records of its tail.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct FetchTail {
    /// The partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// The asker's configuration number.
    #[prost(uint64, tag = "2")]
    pub config: u64,
    /// First sequence wanted.
    #[prost(uint64, tag = "3")]
    pub from: u64,
}

/// Records of a tail, in order; as many as fit. An empty list: there are no more.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FetchTailReply {
    /// The records as the log has them.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub records: Vec<Vec<u8>>,
}

/// A piece of a snapshot for a filling node.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InstallSnapshot {
    /// The partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// The primary's configuration number.
    #[prost(uint64, tag = "2")]
    pub config: u64,
    /// The primary's tenure.
    #[prost(uint64, tag = "7")]
    pub since: u64,
    /// Names the snapshot within the tenure: pieces of different ones never mix, and none is
    /// installed twice.
    #[prost(uint64, tag = "3")]
    pub snapshot: u64,
    /// Length of the whole snapshot in bytes.
    #[prost(uint64, tag = "4")]
    pub total: u64,
    /// Where this piece begins.
    #[prost(uint64, tag = "5")]
    pub offset: u64,
    /// The piece.
    #[prost(bytes = "vec", tag = "6")]
    pub bytes: Vec<u8>,
}

/// How much of a snapshot has arrived. When all has, it is durable.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct InstallSnapshotReply {
    /// Bytes from the beginning: the next piece begins here.
    #[prost(uint64, tag = "1")]
    pub have: u64,
}

/// One entry of a `Replicate` body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicateEntry<'a> {
    /// The partition.
    pub partition: PartitionId,
    /// The sender's configuration number: fences.
    pub config: ConfigNumber,
    /// The sender's commit point.
    pub committed: u64,
    /// Sequence of the record, or of the next one where there is none.
    pub sequence: u64,
    /// Configuration number of the record before that one: what the member holds there must match.
    pub previous: ConfigNumber,
    /// The record as the log has it; empty: only the commit point.
    pub record: &'a [u8],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct EntryWire {
    config: U64,
    committed: U64,
    sequence: U64,
    previous: U64,
    partition: U32,
    len: U32,
}

const _: () = assert!(size_of::<EntryWire>() == REPLICATE_ENTRY_BYTES);

/// Bytes of an entry of a `Replicate` body before its record.
pub const REPLICATE_ENTRY_BYTES: usize = 40;

/// Adds an entry to a `Replicate` body: configuration u64, commit point u64, sequence u64,
/// configuration of the record before u64, partition u32, length u32, record.
pub fn put_replicate(out: &mut Writer, entry: &ReplicateEntry<'_>) {
    out.put(&EntryWire {
        config: U64::new(entry.config.0),
        committed: U64::new(entry.committed),
        sequence: U64::new(entry.sequence),
        previous: U64::new(entry.previous.0),
        partition: U32::new(entry.partition.0),
        len: U32::new(u32::try_from(entry.record.len()).expect("a record fits a frame")),
    });
    out.put(entry.record);
}

/// The entries of a `Replicate` body.
///
/// # Errors
/// [`DecodeError`].
pub fn take_replicate(body: &[u8]) -> Result<Vec<ReplicateEntry<'_>>, DecodeError> {
    let mut reader = Reader::new(body);
    let mut entries = Vec::new();
    while !reader.is_empty() {
        let wire: EntryWire = *reader.take()?;
        let len = usize::try_from(wire.len.get()).map_err(|_| DecodeError::Field("length"))?;
        entries.push(ReplicateEntry {
            partition: PartitionId(wire.partition.get()),
            config: ConfigNumber(wire.config.get()),
            committed: wire.committed.get(),
            sequence: wire.sequence.get(),
            previous: ConfigNumber(wire.previous.get()),
            record: reader.take_bytes(len)?,
        });
    }
    Ok(entries)
}

/// What a member did with the entries of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ReplicateVerdict {
    /// The same as the sender's, and durable, up to [`ReplicateAck::matched`].
    Logged = 0,
    /// The configuration number is older than the one that the member knows.
    Fenced = 1,
    /// Records before are missing or others: go on behind [`ReplicateAck::matched`].
    Gap = 2,
    /// The member's map is older: it fetches it; repeat.
    Behind = 3,
    /// The member cannot take it now (log full, starting): repeat later.
    Busy = 4,
    /// The member has no replica, or a damaged one: it has to be filled.
    Absent = 5,
}

/// The answer for one partition of a `Replicate` frame.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ReplicateAck {
    /// The partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// What became of its entries.
    #[prost(enumeration = "ReplicateVerdict", tag = "2")]
    pub verdict: i32,
    /// Sequence up to which all is durable there and compared with the sender's chain.
    #[prost(uint64, tag = "3")]
    pub matched: u64,
    /// Configuration number of the entries that this answers; the sender drops answers under
    /// another than its present one. For `Fenced`: the one that the member knows.
    #[prost(uint64, tag = "4")]
    pub config: u64,
}

/// The answer to a `Replicate` frame: one entry per partition in it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReplicateReply {
    /// The answers.
    #[prost(message, repeated, tag = "1")]
    pub acks: Vec<ReplicateAck>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicate_entries_survive_the_wire_and_a_cut_body_is_refused() {
        let entry = |partition, record| ReplicateEntry {
            partition: PartitionId(partition),
            config: ConfigNumber(7),
            committed: 9,
            sequence: 10,
            previous: ConfigNumber(6),
            record,
        };
        let entries = [entry(1, b"first".as_slice()), entry(2, b""), entry(1, b"third")];
        let mut out = Writer::default();
        entries.iter().for_each(|entry| put_replicate(&mut out, entry));
        let body = out.finish();
        assert_eq!(take_replicate(&body).expect("whole"), entries);
        assert!(take_replicate(&body[..body.len() - 1]).is_err());
        assert_eq!(take_replicate(&[]), Ok(Vec::new()));
    }
}
