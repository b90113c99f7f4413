//! Files: their records (tables of the partition engine, see `crate::partition::table`) and what
//! is done with them at the partition of (file, region 0).
//!
//! | file | what |
//! |---|---|
//! | `record`, `mutation`, `file_table` | what is known of a file, how it changes |

mod file_table;
mod mutation;
pub mod record;
#[cfg(test)]
mod table_tests;

pub use file_table::{FILE_BYTES_MAX, FileTable};
pub use mutation::{FileChange, FileMutation, FileOutcome, FileRefusal};

pub use crate::namespace::{SessionMutation, SessionOutcome, SessionTable};
