//! Sessions, and the namespace operations that they ask for.
//!
//! | file | what |
//! |---|---|
//! | `session_mutation`, `session_table` | who is there, which operations are in doubt or answered |
//! | `sessions` | open, renew, close, lease; the door to the namespace |
//! | `write_through` | the only mode yet: each operation once, on the backing file system |
//! | `once` | operations that are logged: unlink, rename, mkdir, rmdir, create |
//! | `repeatable` | the others, and those that only read |

mod once;
mod repeatable;
mod session_mutation;
mod session_table;
mod sessions;
#[cfg(test)]
mod table_tests;
mod write_through;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::NamespaceReply;
use bb_proto::{Failure, SessionId};

pub use session_mutation::{Answer, Intent, SessionChange, SessionMutation, SessionOutcome};
pub use session_table::{Operation, Session, SessionTable};
pub use sessions::{FindPartition, SessionService, session_of_key};
pub use write_through::WriteThrough;

use crate::partition::Partition;

/// Pause between attempts in the background.
const RETRY: Duration = Duration::from_secs(1);

/// The future of an operation.
pub type NamespaceFuture<T> = Pin<Box<dyn Future<Output = Result<T, Failure>>>>;

/// How names are made, changed and found. Nothing else may assume that a file's name or inode is
/// already on the backing file system.
pub trait Namespace {
    /// Does one operation, once for its session and number; a retry gets the same answer. The
    /// partition is the session's.
    fn perform(
        self: Rc<Self>,
        partition: Rc<Partition>,
        request: bb_proto::meta::Namespace,
    ) -> NamespaceFuture<NamespaceReply>;

    /// A session has ended: its answers can be forgotten.
    fn session_ended(&self, session: SessionId);

    /// After replay: decides what the process before left in doubt in a partition.
    fn resume(self: Rc<Self>, partition: &Rc<Partition>);
}
