//! The simulator: simulated platform parts, whole-cluster runs, and the model that judges them.
//!
//! | file | what |
//! |---|---|
//! | `family` | which faults happen in a run |
//! | `world` | disks, network, backing file system, and processes that come and go |
//! | `workload` | what clients do, and the judgement of each answer |
//! | `chaos` | what goes wrong meanwhile with one node |
//! | `storm` | what goes wrong with several |
//! | `watch` | what must hold of several at any moment |
//! | `counts` | the state counts add up |
//! | `epilogue`, `lost_state` | what is done to the node, or to the cluster, then |
//! | `finale` | what must hold when all is healed |
//! | `model` | which bytes a read may return |
//! | `run` | one seed from start to verdict |
//! | `scale` | how the work grows with ranks and servers: counts |
//! | `report`, `work` | many seeds on all cores |
//! | `planted`, `find` | the deliberate errors, and the search that must find each |

pub mod bfs;
mod chaos;
pub mod complaints;
mod counts;
pub mod epilogue;
pub mod family;
mod finale;
#[cfg(feature = "planted")]
pub mod find;
pub mod lost_state;
pub mod model;
pub mod planted;
pub mod report;
pub mod run;
pub mod scale;
mod storm;
mod watch;
pub mod work;
pub mod workload;
pub mod world;
