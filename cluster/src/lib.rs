//! The cluster map (who is there, who owns what) and placement (who gets the next parity group).

mod map;
mod placement;

pub use map::{
    ClusterMap, DeviceEntry, DeviceState, MapError, NodeEntry, NodeState, PartitionEntry,
};
pub use placement::{Candidate, Chance, Placement, choose_members};
