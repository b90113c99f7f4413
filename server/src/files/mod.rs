//! Files: their records (tables of the partition engine, see `crate::partition::table`) and what
//! is done with them at the partition of (file, region 0).
//!
//! | file | what |
//! |---|---|
//! | `record`, `mutation`, `file_table` | what is known of a file, how it changes |
//! | `service` | open, close, stat, size, registration of regions |
//! | `truncate` | rule 7 |
//! | `last_name` | the end of a file; what goes on after a restart |
//! | `guard` | changes behind our back |
//! | `opens` | who has what open |
//! | `peers`, `everybody` | what is asked of other partitions, what is told to all nodes |

mod everybody;
mod file_table;
mod guard;
mod last_name;
mod mutation;
pub mod opens;
pub mod peers;
pub mod record;
mod service;
#[cfg(test)]
mod table_tests;
mod truncate;

pub use everybody::WHOLE_NODE;
pub use file_table::{FILE_BYTES_MAX, FileTable, has_run};
pub use mutation::{FileChange, FileMutation, FileOutcome, FileRefusal};
pub use peers::{Parts, fid_of};
pub use service::FileService;

pub use crate::namespace::{SessionMutation, SessionOutcome, SessionTable};
