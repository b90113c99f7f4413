//! Settings of a client.

use std::time::Duration;

use bb_erasure::Geometry;
use bb_proto::meta::Credentials;
use bb_transport::auth::Choice;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Host name, for people.
    pub host: String,
    /// Process, for people.
    pub pid: u32,
    /// Job, for accounting.
    pub job: u64,
    /// As whom to act on the backing file system.
    pub credentials: Credentials,
    /// How servers and this process prove who they are; what the server wants, by default.
    pub auth: Choice,
    /// Geometry of new parity groups; the cluster's where there is none.
    pub geometry: Option<Geometry>,
    /// The slice that is written to (its name; empty for the one without a name). Without it, new
    /// groups go to all nodes. Reads come from everywhere in either case.
    pub slice: Option<String>,
    /// How long a call waits for a cluster that does not answer, or for space.
    pub command_timeout: Duration,
    /// How long the first connection may take; as long as a call where there is none.
    pub connect_timeout: Option<Duration>,
    /// Where new blocks go: by rendezvous (true) or to the least loaded of two (false); as the
    /// cluster's map says where there is none.
    pub deterministic: Option<bool>,
    /// How long one request waits for its answer before it is sent again.
    pub request_timeout: Duration,
    /// Bytes of written data, unsealed and sealed, that the cluster has not acknowledged yet.
    /// Limited to a quarter of the buffer pool.
    pub write_back_bytes: u64,
    /// Sealed and unacknowledged parity groups of one file.
    pub sealed_per_file_max: usize,
    /// Bytes of parity groups kept for reading. Limited to a quarter of the buffer pool.
    pub read_cache_bytes: u64,
    /// Furthest read-ahead, in bytes.
    pub read_ahead_bytes: u64,
    /// How long a fragment map may be used again.
    pub map_age_max: Duration,
    /// Largest contents that travel in their commit instead of in blocks.
    pub inline_bytes_max: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            host: String::new(),
            pid: 0,
            job: 0,
            credentials: Credentials { uid: 0, gid: 0, groups: Vec::new(), umask: 0o022 },
            auth: Choice::default(),
            geometry: None,
            slice: None,
            command_timeout: Duration::from_secs(600),
            connect_timeout: None,
            deterministic: None,
            request_timeout: Duration::from_secs(10),
            write_back_bytes: 64 << 20,
            sealed_per_file_max: 4,
            read_cache_bytes: 32 << 20,
            read_ahead_bytes: 4 << 20,
            map_age_max: Duration::from_secs(1),
            inline_bytes_max: 16 << 10,
        }
    }
}
