//! Fuzzing decoders with the stable compiler: a corpus in the tree, seeded mutations of it, and a
//! bound on the memory that an input may cost.
//!
//! A test makes a [`Target`] and calls [`Target::check`]. To have the bound on memory checked, its
//! binary needs
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: bb_fuzz::Counting = bb_fuzz::Counting;
//! ```

mod count;
mod mutate;
mod target;

pub use count::Counting;
pub use target::{Target, crc_slot};
