//! Reading and writing whole parity groups over a transport.

mod budget;
mod devices;
mod error;
mod gather;
mod get;
mod io;
mod layout;
mod race;
mod read;
mod scattered;
mod sealed;
mod write;

pub use error::{ReadError, WriteError};
pub use gather::{ReadOptions, ReadReport, Want};
pub use io::{Limits, PgIo, PgStats, Primary, View, partition_lost, while_current};
pub use layout::{BlockLayout, COPIES_BYTES_MAX, Shape, chunk_log2_for};
pub use read::Piece;
pub use sealed::Sealed;
