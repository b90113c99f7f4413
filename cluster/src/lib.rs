//! The cluster map (who is there, who owns what) and placement (who gets the next parity group).

mod command;
mod map;
mod placement;

pub use command::{
    COMMAND_VERSION, Change, Command, DeviceName, Executed, Join, NewDevice, NewReplicas, NodeName,
    Reconfigure, Settings, Started, Tick, Voter, Voters,
};
pub use map::{
    ClusterMap, DeviceEntry, DeviceState, MapError, NodeEntry, NodeState, PartitionEntry,
};
pub use placement::{Candidate, Chance, Placement, choose_members};
