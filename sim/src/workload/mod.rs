//! What clients do in a run, and the judgement of every answer.

mod bench;
mod driver;
mod files;
mod names;
mod namespace;
mod outside;
mod residency;

pub use bench::{Bench, errno_name};
pub use driver::{Place, lay_out, run_place};
pub use files::appended_records;
pub use names::{NameGuard, Names, Owner, Slot};
pub use outside::{change_from_outside, outside_bytes};
pub use residency::STRANGER;
