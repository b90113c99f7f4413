//! What a client did, for monitoring and for tests of settings.

/// Counted since the client connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests for chunks of blocks.
    pub gets: u64,
    /// Requests to write a block.
    pub puts: u64,
    /// Pieces of 256 KiB that were wanted before anybody had asked for them.
    pub read_ahead: u64,
    /// Requests that were sent again because no answer came, or the connection broke.
    pub repeated: u64,
    /// Most memory for written bytes that were not acknowledged.
    pub unacknowledged_bytes_max: u64,
    /// Most memory for bytes kept for reading.
    pub kept_bytes_max: u64,
}
