//! A skeleton of the data path: the same processes, copies, CRCs, encoding, TCP, device writes and
//! group flushes as Burstbay's, and no metadata, no log, no names. Nothing that does these things can
//! cost less; what the product costs beyond is its own.
//!
//! Blocking sockets and a thread for each connection: the fewest system calls that carry a block.

mod client;
mod server;
mod wire;

pub use client::{Task, client};
pub use server::server;
pub use wire::tune;

/// Bytes of data of a parity group.
const GROUP_BYTES: usize = 2 << 20;

/// What goes wrong in a process of the skeleton.
pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;
