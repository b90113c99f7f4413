//! Partitions: the metadata of files, as state machines that only their logs change.
//!
//! | file | what |
//! |---|---|
//! | `table` | what tables of a partition have in common: how to add one |
//! | `mutation`, `pg_mutation`, `region_mutation` | what changes a partition |
//! | `state` | the tables, and how a mutation is applied |
//! | `record`, `snapshot` | what the log holds |
//! | `journal` | what is asked of the commit log |
//! | `engine` | numbers, logs, applies |

pub mod engine;
pub mod journal;
pub mod mutation;
pub mod pg_mutation;
pub mod record;
pub mod region_mutation;
pub mod snapshot;
pub mod state;
pub mod table;

pub use engine::Partition;
pub use mutation::{Mutation, Outcome};
pub use state::PartitionState;
