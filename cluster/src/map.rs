//! The cluster map: the one truth about nodes, devices and partitions.

use bb_proto::{ConfigNumber, DeviceId, Epoch, Incarnation, NodeId, PartitionId};
use prost::Message;

/// Version of the encoded map. A newer one is refused.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// What a node may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NodeState {
    /// Serves.
    Active = 0,
    /// Does not answer: its roles went to others. Its devices are away, not lost: it may come back.
    Down = 1,
    /// Has been given its numbers, and has never served.
    Joining = 2,
    /// Was given up for good: comes back only formatted, under another number.
    Left = 3,
}

/// What a device may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum DeviceState {
    /// Takes new blocks and gives old ones.
    Active = 0,
    /// Has failed or is gone: its blocks are reconstructed from others.
    Failed = 1,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeEntry {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// Where it listens: `host:port` for TCP.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Incarnation of its process.
    #[prost(uint64, tag = "3")]
    pub incarnation: u64,
    /// State.
    #[prost(enumeration = "NodeState", tag = "4")]
    pub state: i32,
    /// UUID of its commit log, 16 bytes: by it a process proves to be this node.
    #[prost(bytes = "vec", tag = "5")]
    pub log: Vec<u8>,
    /// Its number in the Raft group; 0 = it is no voter. Never given to another, nor to a voter
    /// whose log was damaged.
    #[prost(uint64, tag = "6")]
    pub voter: u64,
    /// Votes, and holds neither data nor partitions.
    #[prost(bool, tag = "7")]
    pub witness: bool,
    /// Its log was found damaged: no process comes back with it.
    #[prost(bool, tag = "8")]
    pub damaged: bool,
    /// Tick at which it went down; 0 while it has not.
    #[prost(uint64, tag = "9")]
    pub down_since: u64,
    /// The slice that it belongs to; empty: the one without a name.
    #[prost(string, tag = "10")]
    pub slice: String,
}

impl NodeEntry {
    /// Serves.
    pub fn is_active(&self) -> bool {
        self.state == NodeState::Active as i32
    }

    /// Serves, and may hold partitions and blocks.
    pub fn holds_data(&self) -> bool {
        self.is_active() && !self.witness
    }

    /// Was given up for good.
    pub fn has_left(&self) -> bool {
        self.state == NodeState::Left as i32
    }

    /// Its number.
    pub const fn node_id(&self) -> NodeId {
        NodeId(self.id)
    }
}

/// A device in one incarnation.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeviceEntry {
    /// Its number; stands for (UUID, incarnation) and is never used again.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// UUID, 16 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub uuid: Vec<u8>,
    /// Incarnation: rises when the device is formatted.
    #[prost(uint64, tag = "3")]
    pub incarnation: u64,
    /// The node that drives it.
    #[prost(uint32, tag = "4")]
    pub node: u32,
    /// State.
    #[prost(enumeration = "DeviceState", tag = "5")]
    pub state: i32,
    /// Usable bytes.
    #[prost(uint64, tag = "6")]
    pub capacity_bytes: u64,
}

/// Who holds a partition.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PartitionEntry {
    /// Rises with each change of this entry.
    #[prost(uint64, tag = "1")]
    pub config: u64,
    /// The node that serves it.
    #[prost(uint32, tag = "2")]
    pub primary: u32,
    /// The nodes that log along, sorted: their acknowledgement is needed.
    #[prost(uint32, repeated, tag = "3")]
    pub backups: Vec<u32>,
    /// Nodes that become backups when they have got everything, sorted; nothing waits for them.
    #[prost(uint32, repeated, tag = "4")]
    pub filling: Vec<u32>,
    /// Configuration number at which this primary, in its incarnation, got the role: names its
    /// tenure.
    #[prost(uint64, tag = "5")]
    pub since: u64,
    /// The last replica was damaged: the operator must decide.
    #[prost(bool, tag = "6")]
    pub lost: bool,
    /// Configuration number under which it began anew, empty, after the operator had given it up;
    /// 0: it never was. What replicas hold from configurations before it is void, and a partition
    /// that was given up never answers "unknown" (rule 1).
    #[prost(uint64, tag = "7")]
    pub born: u64,
}

impl PartitionEntry {
    /// Primary and backups: those whose logs make a mutation committed.
    pub fn members(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::once(self.primary).chain(self.backups.iter().copied())
    }

    /// How many members there are.
    pub fn member_count(&self) -> usize {
        1 + self.backups.len()
    }

    /// Members and filling nodes.
    pub fn all_nodes(&self) -> impl Iterator<Item = u32> + '_ {
        self.members().chain(self.filling.iter().copied())
    }

    /// True if the node has a part in it, of whatever kind.
    pub fn names(&self, node: u32) -> bool {
        self.all_nodes().any(|named| named == node)
    }
}

/// The map.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ClusterMap {
    /// Version of this encoding.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Version of the contents.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// UUID of the cluster, 16 bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub cluster: Vec<u8>,
    /// UUID of the backing file system, 16 bytes.
    #[prost(bytes = "vec", tag = "4")]
    pub bfs: Vec<u8>,
    /// Nodes, sorted by number.
    #[prost(message, repeated, tag = "5")]
    pub nodes: Vec<NodeEntry>,
    /// Devices, sorted by number.
    #[prost(message, repeated, tag = "6")]
    pub devices: Vec<DeviceEntry>,
    /// One entry per partition.
    #[prost(message, repeated, tag = "7")]
    pub partitions: Vec<PartitionEntry>,
    /// Data blocks of the default geometry.
    #[prost(uint32, tag = "8")]
    pub data: u32,
    /// Parity blocks of the default geometry.
    #[prost(uint32, tag = "9")]
    pub parity: u32,
    /// Erasure code of new groups.
    #[prost(uint32, tag = "10")]
    pub codec: u32,
    /// log2 of the region size of new files, in bytes.
    #[prost(uint32, tag = "11")]
    pub region_log2: u32,
    /// W of rule 1, in ticks: only older parity groups are asked about and passed by horizons.
    #[prost(uint32, tag = "12")]
    pub window_ticks: u32,
    /// True for rendezvous placement, false for the least loaded of two.
    #[prost(bool, tag = "13")]
    pub deterministic: bool,
    /// Length of a lease in milliseconds.
    #[prost(uint32, tag = "14")]
    pub lease_ms: u32,
    /// How much a lease may seem longer to its holder than to the leader, in milliseconds.
    #[prost(uint32, tag = "15")]
    pub drift_ms: u32,
    /// Pause between heartbeats in milliseconds.
    #[prost(uint32, tag = "16")]
    pub heartbeat_ms: u32,
    /// Without an answer for so long a node is suspected, in milliseconds.
    #[prost(uint32, tag = "17")]
    pub suspect_ms: u32,
    /// Copies of the metadata beyond the first: K of partitions.
    #[prost(uint32, tag = "18")]
    pub backups: u32,
    /// The next node number.
    #[prost(uint32, tag = "19")]
    pub next_node: u32,
    /// The next device number.
    #[prost(uint32, tag = "20")]
    pub next_device: u32,
    /// The next voter number.
    #[prost(uint64, tag = "21")]
    pub next_voter: u64,
}

/// A map that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The bytes are not a map.
    #[error("cluster map cannot be read: {0}")]
    Decode(String),
    /// Written by a newer version.
    #[error("cluster map has format {0}, this program knows up to {FORMAT_VERSION}")]
    Newer(u32),
    /// Contradicts itself.
    #[error("cluster map is inconsistent: {0}")]
    Inconsistent(&'static str),
    /// A delta belongs to another map.
    #[error("changes lead on from epoch {base}, the map has epoch {has}")]
    NotTheBase {
        /// Epoch of the map.
        has: u64,
        /// Epoch of the map to which the delta applies.
        base: u64,
    },
}

impl ClusterMap {
    /// The bytes of the map.
    pub fn encode_map(&self) -> Vec<u8> {
        let mut map = self.clone();
        map.format = FORMAT_VERSION;
        map.encode_to_vec()
    }

    /// Reads a map and checks that it is consistent.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn decode_map(bytes: &[u8]) -> Result<Self, MapError> {
        let map = Self::decode(bytes).map_err(|error| MapError::Decode(error.to_string()))?;
        map.check_version()?;
        map.check()?;
        Ok(map)
    }

    pub(crate) const fn check_version(&self) -> Result<(), MapError> {
        if self.format > FORMAT_VERSION { Err(MapError::Newer(self.format)) } else { Ok(()) }
    }

    pub(crate) fn check(&self) -> Result<(), MapError> {
        if self.cluster.len() != 16 || self.bfs.len() != 16 {
            return Err(MapError::Inconsistent("UUIDs have 16 bytes"));
        }
        if self.partitions.is_empty() {
            return Err(MapError::Inconsistent("no partitions"));
        }
        if !self.nodes.is_sorted_by_key(|n| n.id) || !self.devices.is_sorted_by_key(|d| d.id) {
            return Err(MapError::Inconsistent("entries are not sorted"));
        }
        let known = |id: u32| self.nodes.binary_search_by_key(&id, |n| n.id).is_ok();
        if !self.partitions.iter().all(|p| p.all_nodes().all(known))
            || !self.devices.iter().all(|d| known(d.node))
        {
            return Err(MapError::Inconsistent("an entry names an unknown node"));
        }
        if !(1..=16).contains(&self.data) || self.parity > 4 {
            return Err(MapError::Inconsistent("geometry outside of 1+0 to 16+4"));
        }
        if !(20..=40).contains(&self.region_log2) {
            return Err(MapError::Inconsistent("region size outside of 1 MiB to 1 TiB"));
        }
        Ok(())
    }

    /// Version of the contents.
    pub const fn map_epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// Number of partitions.
    pub fn partition_count(&self) -> u32 {
        u32::try_from(self.partitions.len()).unwrap_or(u32::MAX)
    }

    /// The entry of a partition.
    pub fn partition(&self, id: PartitionId) -> Option<&PartitionEntry> {
        self.partitions.get(id.0 as usize)
    }

    /// The configuration number of a partition.
    pub fn config(&self, id: PartitionId) -> ConfigNumber {
        ConfigNumber(self.partition(id).map_or(0, |entry| entry.config))
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> Option<&NodeEntry> {
        self.nodes.binary_search_by_key(&id.0, |n| n.id).ok().map(|at| &self.nodes[at])
    }

    /// True if the node is known and serves.
    pub fn is_active(&self, id: u32) -> bool {
        self.node(NodeId(id)).is_some_and(NodeEntry::is_active)
    }

    /// Nodes that serve and may hold partitions and blocks, in order.
    pub fn data_nodes(&self) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.iter().filter(|node| node.holds_data())
    }

    /// Partitions with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &PartitionEntry)> {
        (0_u32..).zip(&self.partitions)
    }

    pub(crate) fn node_mut(&mut self, id: u32) -> Option<&mut NodeEntry> {
        let at = self.nodes.binary_search_by_key(&id, |n| n.id).ok()?;
        self.nodes.get_mut(at)
    }

    /// A device.
    pub fn device(&self, id: DeviceId) -> Option<&DeviceEntry> {
        self.devices.binary_search_by_key(&id.0, |d| d.id).ok().map(|at| &self.devices[at])
    }

    /// Incarnation of a device.
    pub fn device_incarnation(&self, id: DeviceId) -> Incarnation {
        Incarnation(self.device(id).map_or(0, |entry| entry.incarnation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> ClusterMap {
        ClusterMap {
            format: 1,
            epoch: 3,
            cluster: vec![1; 16],
            bfs: vec![2; 16],
            nodes: vec![NodeEntry {
                id: 1,
                address: "a:1".into(),
                incarnation: 1,
                ..NodeEntry::default()
            }],
            devices: (0..4)
                .map(|id| DeviceEntry {
                    id,
                    uuid: vec![u8::try_from(id).expect("small"); 16],
                    incarnation: 1,
                    node: 1,
                    state: 0,
                    capacity_bytes: 1 << 30,
                })
                .collect(),
            partitions: vec![
                PartitionEntry { config: 1, primary: 1, ..PartitionEntry::default() };
                8
            ],
            data: 2,
            parity: 1,
            codec: 1,
            region_log2: 26,
            window_ticks: 60,
            deterministic: false,
            ..ClusterMap::default()
        }
    }

    #[test]
    fn a_map_survives_its_encoding_and_a_newer_one_is_refused() {
        let map = sample();
        assert_eq!(ClusterMap::decode_map(&map.encode_map()), Ok(map.clone()));
        let newer = ClusterMap { format: 2, ..map };
        assert_eq!(ClusterMap::decode_map(&newer.encode_to_vec()), Err(MapError::Newer(2)));
    }

    #[test]
    fn a_map_that_contradicts_itself_is_refused() {
        let mut map = sample();
        map.devices[2].node = 9;
        assert!(matches!(
            ClusterMap::decode_map(&map.encode_map()),
            Err(MapError::Inconsistent(_))
        ));
    }
}
