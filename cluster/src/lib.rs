//! The cluster map (who is there, who owns what) and placement (who gets the next parity group).

mod check;
mod command;
mod death;
mod delta;
mod execute;
mod failover;
mod geometry;
mod hash;
mod history;
mod limits;
mod map;
mod placement;
mod plan;
mod redundancy;
mod state;
mod watch;

pub use command::{
    COMMAND_VERSION, Change, Command, CommandError, DeviceName, Executed, Join, Leave, NewDevice,
    NewReplicas, NodeName, Reconfigure, Settings, Started, Tick, Voter, Voters,
};
pub use death::{Heard, Judgement, LeaseSeen, Suspicion, may_take_down, role_free_at};
pub use delta::MapDelta;
pub use failover::fail_over;
pub use geometry::{Apart, Layout, candidates, layout, layout_over};
pub use history::{MapHistory, MapUpdate};
pub use limits::MASS_TICKS;
pub use map::{
    ClusterMap, DeviceEntry, DeviceState, MapError, NodeEntry, NodeState, PartitionEntry,
};
pub use placement::{Candidate, Chance, Placement, Rules, choose_members, choose_members_beside};
pub use plan::{Known, Plan, PlanLimits, plan};
pub use redundancy::{Redundancy, redundancy};
pub use state::ClusterState;
pub use watch::{WATCHERS, watched_by, watchers};
