//! Partitions: the metadata of files, as state machines that only their logs change.
//!
//! | file | what |
//! |---|---|
//! | `table` | what tables of a partition have in common: how to add one |
//! | `mutation`, `pg_mutation`, `region_mutation` | what changes a partition |
//! | `state`, `apply_commit` | the tables, and how a mutation is applied |
//! | `pg`, `pg_slots`, `pg_snapshot` | parity groups: records, stubs, what is left of dead ones |
//! | `region_table`, `region`, `fragment_map`, `fragment_leaves`, `region_snapshot` | which bytes lie where |
//! | `record`, `snapshot` | what the log holds |
//! | `journal` | what is asked of the commit log |
//! | `engine`, `tail`, `replay` | numbers, logs, applies; what is logged and not applied; what a restart brings |
//! | `host` | the partitions of a node, and which one a request addresses |
//! | `role`, `roles` | primary, member, filling, begun anew; how the map decides that |
//! | `primary`, `replicator`, `senders` | what followers have, and how they get the rest |
//! | `member`, `serve_replica` | what a follower does with it |
//! | `takeover`, `filling` | how a primary begins; how a node becomes a backup |
//! | `serve_commit`, `learning`, `serve_pg`, `serve_region` | what requests do, step by step |
//! | `background`, `degraded` | what is done unasked: freeing, reporting, asking, counting |
//!
//! Limits: the bytes of inline groups live in the state, and travel in every snapshot of their
//! partition; half of the budget of metadata is theirs, and what is beyond it goes into blocks
//! (decision 9). Groups with members that were gone at their commit are marked, and not rebuilt yet.

pub mod apply_commit;
#[cfg(test)]
mod away_tests;
pub mod background;
pub mod degraded;
mod engine;
mod filling;
mod fragment_leaves;
pub mod fragment_map;
#[cfg(feature = "planted")]
mod free_early;
pub mod host;
pub mod journal;
mod learning;
mod member;
pub mod mutation;
pub mod pg;
pub mod pg_mutation;
mod pg_slots;
mod pg_snapshot;
#[cfg(test)]
#[cfg(feature = "planted")]
mod planted_tests;
mod primary;
pub mod record;
pub mod region;
pub mod region_mutation;
mod region_snapshot;
pub mod region_table;
pub mod replay;
#[cfg(test)]
mod replica_tests;
mod replicator;
mod role;
mod roles;
mod senders;
mod serve_commit;
mod serve_pg;
pub mod serve_region;
mod serve_replica;
pub mod snapshot;
pub mod state;
pub mod table;
mod tail;
mod takeover;
#[cfg(test)]
pub(crate) mod test_world;

pub use engine::Partition;
pub use host::{HostConfig, OnServe, PartitionHost};
pub use mutation::{Mutation, Outcome};
pub use replay::{PartitionReplay, Replica};
pub use senders::{Council, NoCouncil};
pub use state::PartitionState;
