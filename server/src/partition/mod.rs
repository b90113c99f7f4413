//! Partitions: the metadata of files, as state machines that only their logs change.
//!
//! | file | what |
//! |---|---|
//! | `table` | what tables of a partition have in common: how to add one |
//! | `mutation`, `pg_mutation`, `region_mutation` | what changes a partition |
//! | `state`, `apply_commit` | the tables, and how a mutation is applied |
//! | `pg`, `pg_snapshot` | parity groups: records, stubs, what is left of dead ones |
//! | `region_table`, `region`, `fragment_map`, `region_snapshot` | which bytes lie where |
//! | `record`, `snapshot` | what the log holds |
//! | `journal` | what is asked of the commit log |
//! | `engine`, `replay` | numbers, logs, applies; what a restart brings |
//! | `host` | the partitions of a node, and which one a request addresses |
//! | `serve_commit`, `serve_pg`, `serve_region` | what requests do, step by step |
//! | `background` | what is done unasked: freeing, reporting, asking |
//!
//! Limits: the bytes of inline groups live in the state, and travel in every snapshot of their
//! partition (they count in its memory); they are not moved to a block before the log is trimmed.
//! Groups with members that were gone at their commit are marked, and not rebuilt yet.

pub mod apply_commit;
pub mod background;
pub mod engine;
pub mod fragment_map;
#[cfg(feature = "planted")]
mod free_early;
pub mod host;
pub mod journal;
pub mod mutation;
pub mod pg;
pub mod pg_mutation;
mod pg_snapshot;
pub mod record;
pub mod region;
pub mod region_mutation;
mod region_snapshot;
pub mod region_table;
pub mod replay;
mod serve_commit;
mod serve_pg;
pub mod serve_region;
pub mod snapshot;
pub mod state;
pub mod table;
#[cfg(test)]
pub(crate) mod test_world;

pub use engine::Partition;
pub use host::{HostConfig, PartitionHost};
pub use mutation::{Mutation, Outcome};
pub use replay::PartitionReplay;
pub use state::PartitionState;
