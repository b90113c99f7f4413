//! File records and sessions: tables of the partition engine (see `crate::partition::table`).

mod file_table;
mod session_table;

pub use file_table::{FileMutation, FileOutcome, FileTable};
pub use session_table::{SessionMutation, SessionOutcome, SessionTable};
