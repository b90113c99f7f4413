//! Tests of the log on a simulated disk.
#![expect(clippy::unwrap_used, reason = "tests")]

mod basic;
mod common;
mod crash_model;
mod damage;
mod fixture;
mod full;
#[cfg(feature = "planted")]
mod planted;
