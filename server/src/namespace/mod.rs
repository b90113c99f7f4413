//! Sessions, and the namespace operations that they ask for.
//!
//! | file | what |
//! |---|---|
//! | `session_mutation`, `session_table` | who is there, which operations are in doubt or answered |

mod session_mutation;
mod session_table;
#[cfg(test)]
mod table_tests;

pub use session_mutation::{Answer, Intent, SessionChange, SessionMutation, SessionOutcome};
pub use session_table::{Operation, Session, SessionTable};
