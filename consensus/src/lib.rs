//! Raft for the cluster map: a log of commands that a quorum of voters agrees on.
//!
//! The protocol is tikv's `raft`; around it are four seams. [`Store`] makes records durable, [`Net`]
//! carries messages, [`Machine`] is driven by the log, and time and chance come from
//! [`bb_runtime::Rt`] only, so that whole groups run in simulation: the same seed gives the same
//! run. [`Consensus`] is what callers see.
//!
//! # Promises
//!
//! - All machines apply the same commands in the same order, each once.
//! - A proposal that was answered with its outcome is never lost, as long as no voter loses what
//!   its store had called durable.
//! - After [`Consensus::read_barrier`] the machine holds everything that anybody's proposal was
//!   answered for before the call.
//!
//! # The caller's duties
//!
//! - A voter number stands for one log. A voter whose log lost anything that was durable must not
//!   come back under its number: it could vote a second time in the same term. It is removed by
//!   [`Consensus::change_voters`] and added under a new number. What can be noticed here (records
//!   that don't follow from each other, a leader that knows of more than we have) is an error or
//!   stops the voter, but losing the end of a log can't always be noticed.
//! - [`Consensus::create`] is called once in the life of a group, by its first voters, with the same
//!   set of voters and the same machine. Everybody else starts with [`Recovered::new`].
//! - [`Consensus::step`] gets messages of peers that were authenticated as who they say they are.

mod bulk;
mod consensus;
mod core;
mod drive;
mod envelope;
mod errors;
#[cfg(test)]
mod formats_test;
mod log;
mod logger;
mod parts;
#[cfg(feature = "planted")]
pub mod planted;
mod records;
mod sanity;
mod seams;
mod settings;
mod wire;

pub use consensus::{Consensus, Role, Status};
pub use envelope::DecodeError;
pub use errors::{
    ChangeError, CreateError, NotLeader, ProposeError, StartError, StepError, StopReason,
};
pub use parts::VOTERS_MAX;
pub use records::{RecoverError, Recovered};
pub use seams::{
    Durable, Machine, Net, Position, SnapshotRefused, Store, StoreFailed, VoterNumber,
};
pub use settings::Settings;
