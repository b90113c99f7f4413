//! The commit log: what makes metadata durable. An append-only ring of groups on a device of its
//! own, with checkpoints of the streams in it.
//!
//! ```text
//! append ----> forming group ----> one durable write ----> acknowledged, in order
//! checkpoint -> chunks in between -----------------------> the stream starts here, tail moves
//! open -------> one pass from the tail: latest snapshots, records after them, a new incarnation
//! ```
//!
//! [`format`] describes what is on the device.

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("the feature `planted` switches on deliberate errors: never in a release build");

mod checkpoint;
mod completion;
mod create;
mod error;
pub mod format;
#[cfg(test)]
mod fuzz_tests;
mod group;
mod ids;
pub mod inspect;
mod log;
mod open;
mod options;
mod reader;
mod replay;
mod space;
mod streams;
mod superblock;
mod trim;
mod writer;

pub use completion::Durable;
pub use error::{LogError, LogErrorKind, ReplayError};
pub use ids::{Class, ClusterUuid, LogIdentity, LogUuid, Lsn, Nonce, StreamId};
pub use log::{Append, Log, LogStats, Reservation, Usage};
pub use open::dry_replay;
#[cfg(feature = "planted")]
pub use options::PlantedLogFaults;
pub use options::{Expect, FormatOptions, Options};
pub use replay::Replay;
pub use space::Reserves;
