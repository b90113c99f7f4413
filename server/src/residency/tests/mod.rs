//! Residency on a simulated node: what may never happen to bytes.

mod fake_bfs;
mod rules;
mod world;
