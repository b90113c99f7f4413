//! Reading and writing whole parity groups over a transport.

mod devices;
mod error;
mod gather;
mod get;
mod io;
mod layout;
mod read;
mod sealed;
mod write;

pub use error::{ReadError, WriteError};
pub use gather::{ReadOptions, ReadReport, Want};
pub use io::{Limits, PgIo, View};
pub use layout::{BlockLayout, COPIES_BYTES_MAX, Shape, chunk_log2_for, usable_geometry};
pub use read::Piece;
pub use sealed::Sealed;
