//! The client: packs what applications write into parity groups, reads it back, and speaks for them
//! to the servers. Async and single-threaded; [`blocking`] is for everybody else.

// The cluster in memory that tests share names this crate as users do.
#[cfg(test)]
extern crate self as bb_client;

mod ahead;
pub mod blocking;
mod cache;
mod client;
mod commit;
mod counters;
mod error;
mod file;
mod forgotten;
mod link;
mod maps;
mod namespace;
mod node;
mod observe;
mod options;
pub mod packer;
#[cfg(feature = "planted")]
mod planted;
mod ranges;
mod reader;
mod reclaim;
mod residency;
mod session;
mod status;
mod store;
mod tcp;
mod writeback;

pub use bb_cluster::{
    Apart, ClusterMap, DeviceEntry, DeviceState, NodeEntry, NodeState, PartitionEntry, Redundancy,
    candidates, layout_over, redundancy,
};
pub use bb_pgio::PgStats;
pub use bb_transport::auth::{Choice as Authentication, Mode as AuthenticationMode};
pub use client::Client;
pub use counters::Counters;
pub use error::{Error, Result};
pub use file::File;
pub use observe::{ClusterView, Observer};
pub use options::ClientOptions;
#[cfg(feature = "planted")]
pub use planted::Planted;
pub use residency::Operation;
pub use status::NodeReport;
pub use tcp::executor;
