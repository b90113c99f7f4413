//! What changes the map: commands, each a pure function of the map with conditions of its own.
//!
//! They are applied on every voter, in the order of the Raft log.

use prost::Message;

use crate::map::{ClusterMap, PartitionEntry};

/// Version of the encoded commands. A voter that meets a newer one stops: it cannot go on alone.
pub const COMMAND_VERSION: u32 = 1;

/// An entry of the Raft log.
#[derive(Clone, PartialEq, Message)]
pub struct Command {
    /// Version of this encoding.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// What shall be done.
    #[prost(oneof = "Change", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13")]
    pub change: Option<Change>,
    /// Raft term in which the proposer led, for commands that are void under another; else 0.
    #[prost(uint64, tag = "12")]
    pub term: u64,
}

/// The commands; `docs/replication.md` lists conditions and effects.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Change {
    /// The first map.
    #[prost(message, tag = "2")]
    Create(ClusterMap),
    /// Moves the tick on.
    #[prost(message, tag = "3")]
    Tick(Tick),
    /// A node wants numbers.
    #[prost(message, tag = "4")]
    Join(Join),
    /// A node's process begins.
    #[prost(message, tag = "5")]
    Started(Started),
    /// A node does not answer.
    #[prost(message, tag = "6")]
    Down(NodeName),
    /// A node is given up for good.
    #[prost(message, tag = "7")]
    Leave(Leave),
    /// A device has failed.
    #[prost(message, tag = "8")]
    DeviceFailed(DeviceName),
    /// New replicas for partitions.
    #[prost(message, tag = "9")]
    Reconfigure(Reconfigure),
    /// Which nodes shall vote.
    #[prost(message, tag = "10")]
    Voters(Voters),
    /// Settings of the cluster.
    #[prost(message, tag = "11")]
    Settings(Settings),
    /// A node's log has lost what it had acknowledged.
    #[prost(message, tag = "13")]
    Damaged(NodeName),
}

/// See [`Change::Tick`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Tick {
    /// The new tick; nothing happens unless it is above the current one.
    #[prost(uint64, tag = "1")]
    pub tick: u64,
}

/// See [`Change::Join`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Join {
    /// UUID of the node's commit log, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub log: Vec<u8>,
    /// Where it will listen.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Its devices.
    #[prost(message, repeated, tag = "3")]
    pub devices: Vec<NewDevice>,
    /// It shall vote, and hold nothing.
    #[prost(bool, tag = "4")]
    pub witness: bool,
    /// The slice that it belongs to; empty: the one without a name.
    #[prost(string, tag = "5")]
    pub slice: String,
}

/// A device of a node that joins.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NewDevice {
    /// Its UUID, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub uuid: Vec<u8>,
    /// Usable bytes.
    #[prost(uint64, tag = "2")]
    pub capacity_bytes: u64,
}

/// See [`Change::Started`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Started {
    /// The node.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// UUID of its commit log, 16 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub log: Vec<u8>,
    /// Incarnation of the process.
    #[prost(uint64, tag = "3")]
    pub incarnation: u64,
    /// Where it listens.
    #[prost(string, tag = "4")]
    pub address: String,
}

/// A node in one incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct NodeName {
    /// The node.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// The incarnation that the proposer means.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
}

/// See [`Change::Leave`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Leave {
    /// The node.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// The incarnation that the operator means: a node that has come back meanwhile stays.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// Give up the partitions whose last replica is there: they begin anew, empty. Without it such
    /// a command is void and [`Executed::last_replicas`] lists them. The operator's word only.
    #[prost(bool, tag = "3")]
    pub give_up: bool,
}

/// A device in one incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct DeviceName {
    /// The device.
    #[prost(uint32, tag = "1")]
    pub device: u32,
    /// The incarnation that the proposer means.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
}

/// See [`Change::Reconfigure`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Reconfigure {
    /// The changes, each with a condition of its own.
    #[prost(message, repeated, tag = "1")]
    pub changes: Vec<NewReplicas>,
}

/// New replicas of one partition.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NewReplicas {
    /// The partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// The new entry. Its configuration number is the one that it follows: the change is void under
    /// another. Its [`PartitionEntry::born`] means nothing here.
    #[prost(message, required, tag = "2")]
    pub entry: PartitionEntry,
}

/// See [`Change::Voters`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Voters {
    /// Nodes that vote from now on, with the numbers that the proposer saw (0 = none yet).
    #[prost(message, repeated, tag = "1")]
    pub voters: Vec<Voter>,
}

/// A node's part in the Raft group.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Voter {
    /// The node.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// Its voter number as the proposer saw it; the change is void under another. A new voter gets
    /// the next number.
    #[prost(uint64, tag = "2")]
    pub seen: u64,
    /// True to become (under a new number) or stay a voter, false to end being one.
    #[prost(bool, tag = "3")]
    pub votes: bool,
}

/// See [`Change::Settings`]: fields that are given replace what was.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Settings {
    /// Data blocks of the default geometry.
    #[prost(uint32, optional, tag = "1")]
    pub data: Option<u32>,
    /// Parity blocks of the default geometry.
    #[prost(uint32, optional, tag = "2")]
    pub parity: Option<u32>,
    /// Rendezvous placement.
    #[prost(bool, optional, tag = "3")]
    pub deterministic: Option<bool>,
    /// Length of a lease in milliseconds.
    #[prost(uint32, optional, tag = "4")]
    pub lease_ms: Option<u32>,
    /// Bound of drift within a lease, in milliseconds.
    #[prost(uint32, optional, tag = "5")]
    pub drift_ms: Option<u32>,
    /// Pause between heartbeats in milliseconds.
    #[prost(uint32, optional, tag = "6")]
    pub heartbeat_ms: Option<u32>,
    /// Without an answer for so long a node is suspected, in milliseconds.
    #[prost(uint32, optional, tag = "7")]
    pub suspect_ms: Option<u32>,
    /// Copies of the metadata beyond the first.
    #[prost(uint32, optional, tag = "8")]
    pub backups: Option<u32>,
}

/// What became of a command.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Executed {
    /// Empty if the command had its effect (or had had it before), else why it is void.
    #[prost(string, tag = "1")]
    pub void: String,
    /// For [`Change::Join`]: the node's number.
    #[prost(uint32, tag = "2")]
    pub node: u32,
    /// For [`Change::Join`]: numbers of its devices, in the order asked.
    #[prost(uint32, repeated, tag = "3")]
    pub devices: Vec<u32>,
    /// For [`Change::Reconfigure`]: partitions whose change was void.
    #[prost(uint32, repeated, tag = "4")]
    pub not_changed: Vec<u32>,
    /// For [`Change::Leave`]: partitions whose last replica is on the node; given up if the command
    /// said so, else the reason why it is void.
    #[prost(uint32, repeated, tag = "5")]
    pub last_replicas: Vec<u32>,
}

/// Bytes that are no command of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The bytes are not a command.
    #[error("command cannot be read: {0}")]
    Decode(String),
    /// Written by a newer version.
    #[error("command has version {0}, this program knows up to {COMMAND_VERSION}")]
    Newer(u32),
    /// It says nothing.
    #[error("command without a change")]
    Empty,
}

impl Command {
    /// A command of this version that holds in every term.
    pub const fn new(change: Change) -> Self {
        Self { version: COMMAND_VERSION, change: Some(change), term: 0 }
    }

    /// A command of the leader of that term: void in an entry of another. `Down`, and a
    /// `Reconfigure` that takes the role of primary from a node that did not ask, are always such.
    pub const fn of_term(change: Change, term: u64) -> Self {
        Self { version: COMMAND_VERSION, change: Some(change), term }
    }

    /// Reads a command. A voter that finds one it cannot read stops: without it, its map would
    /// differ from the others'.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn decode_command(bytes: &[u8]) -> Result<Self, CommandError> {
        let command = Self::decode(bytes).map_err(|e| CommandError::Decode(e.to_string()))?;
        match command.change {
            _ if command.version > COMMAND_VERSION => Err(CommandError::Newer(command.version)),
            None => Err(CommandError::Empty),
            Some(_) => Ok(command),
        }
    }

    /// The bytes of the command.
    pub fn encode_command(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

impl From<Change> for Command {
    fn from(change: Change) -> Self {
        Self::new(change)
    }
}
