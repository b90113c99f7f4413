//! The server as a library: block store, partitions, residency, and what ties them together.

pub mod bfs;
pub mod blockstore;
pub mod config;
pub mod context;
pub mod council;
pub mod daemon;
pub mod files;
#[cfg(test)]
mod fuzz_tests;
pub mod groups;
pub mod namespace;
pub mod node;
pub mod partition;
pub mod planted;
pub mod residency;
mod rights;
pub mod security;
