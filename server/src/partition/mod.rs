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
//! | `engine` | numbers, logs, applies |

pub mod apply_commit;
pub mod engine;
pub mod fragment_map;
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
pub mod snapshot;
pub mod state;
pub mod table;

pub use engine::Partition;
pub use mutation::{Mutation, Outcome};
pub use state::PartitionState;
