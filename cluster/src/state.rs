//! What a voter of the Raft group keeps: the map, the tick, and what only voters need.

use bb_proto::Tick;
use prost::Message;

use crate::check;
use crate::limits::MASS_TICKS;
use crate::map::{ClusterMap, MapError};

/// Version of the encoded state. A newer one is refused.
const FORMAT_VERSION: u32 = 1;

/// The state that commands change. Two voters that executed the same commands hold the same bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// The map; of epoch 0 before there is a cluster.
    pub map: ClusterMap,
    /// The tick: no part of the map's epoch, or each second would be a change for everybody.
    pub tick: Tick,
    /// The longest lease with its drift, in milliseconds, before they were made smaller.
    pub former_lease_ms: u64,
    /// The tick of the last time at which they were.
    pub former_tick: Tick,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct StateWire {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, optional, tag = "2")]
    map: Option<ClusterMap>,
    #[prost(uint64, tag = "3")]
    tick: u64,
    #[prost(uint64, tag = "4")]
    former_lease_ms: u64,
    #[prost(uint64, tag = "5")]
    former_tick: u64,
}

impl ClusterState {
    /// The state that goes on from a map that exists, such as the one that `bbd format` logged.
    /// What the map leaves open (next numbers, copies of the metadata) is filled in.
    ///
    /// # Errors
    /// [`MapError`] where the map is none that commands could have made.
    pub fn new(map: ClusterMap, tick: Tick) -> Result<Self, MapError> {
        let state = Self { map: completed(map), tick, ..Self::default() };
        check::check(&state.map)?;
        Ok(state)
    }

    /// The bytes of a snapshot.
    pub fn encode_snapshot(&self) -> Vec<u8> {
        let map = (self.map.epoch > 0).then(|| self.map.clone());
        StateWire {
            version: FORMAT_VERSION,
            map,
            tick: self.tick.0,
            former_lease_ms: self.former_lease_ms,
            former_tick: self.former_tick.0,
        }
        .encode_to_vec()
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn decode_snapshot(bytes: &[u8]) -> Result<Self, MapError> {
        let wire = StateWire::decode(bytes).map_err(|e| MapError::Decode(e.to_string()))?;
        if wire.version > FORMAT_VERSION {
            return Err(MapError::Newer(wire.version));
        }
        if let Some(map) = &wire.map {
            map.check_version()?;
            check::check(map)?;
        }
        let map = wire.map.unwrap_or_default();
        Ok(Self {
            map,
            tick: Tick(wire.tick),
            former_lease_ms: wire.former_lease_ms,
            former_tick: Tick(wire.former_tick),
        })
    }

    /// The longest time for which a lease may still be out, drift included. A new leader waits so
    /// long before it takes a role away: it does not know under which settings its predecessors
    /// granted. Smaller settings count in full [`MASS_TICKS`] later, longer than any lease.
    pub fn longest_lease_ms(&self) -> u64 {
        let now = lease_ms(&self.map);
        let recent = self.tick.0 < self.former_tick.0.saturating_add(MASS_TICKS);
        if recent { now.max(self.former_lease_ms) } else { now }
    }
}

/// A lease and its drift.
pub(crate) fn lease_ms(map: &ClusterMap) -> u64 {
    u64::from(map.lease_ms) + u64::from(map.drift_ms)
}

/// A map with what older programs, or a plan, left open.
pub(crate) fn completed(mut map: ClusterMap) -> ClusterMap {
    let above = |highest: Option<u32>| highest.map_or(1, |id| id.saturating_add(1));
    map.format = crate::map::FORMAT_VERSION;
    map.next_node = map.next_node.max(above(map.nodes.iter().map(|n| n.id).max()));
    map.next_device = map.next_device.max(above(map.devices.iter().map(|d| d.id).max()));
    let voter = map.nodes.iter().map(|n| n.voter).max().unwrap_or(0);
    map.next_voter = map.next_voter.max(voter.saturating_add(1));
    // From two nodes on, no configured geometry may survive more than the metadata does.
    map.backups = map.backups.max(map.parity);
    map
}
