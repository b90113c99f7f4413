//! The block store on simulated disks: what it promises, with crashes and power cuts.
#![expect(clippy::unwrap_used, reason = "tests")]

mod crash_model;
mod opening;
mod orphans;
#[cfg(feature = "planted")]
mod planted;
mod requests;
mod world;
