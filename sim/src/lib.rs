//! The simulator: simulated platform parts, whole-cluster runs, and the model that judges them.

pub mod bfs;
pub mod model;
