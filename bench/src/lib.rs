//! Burstbay: `bench`.
//!
//! The program `bench` (`./x bench`) measures the whole against what the machine can do and what
//! users have; the other programs measure single parts. See README.md and docs/performance.md.

pub mod floor;
pub mod limits;
pub mod suite;
pub mod yes;
