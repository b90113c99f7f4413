//! What goes wrong in a simulated network, and how often it did.

use std::time::Duration;

/// Chances are in parts per million, each drawn per frame unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimNetConfig {
    /// Shortest time on the way.
    pub latency_min: Duration,
    /// Longest usual time on the way.
    pub latency_max: Duration,
    /// A frame vanishes, while its connection goes on. TCP would not do that; whoever survives it
    /// survives TCP.
    pub loss_ppm: u32,
    /// A frame arrives twice.
    pub duplicate_ppm: u32,
    /// A frame does not wait for those sent before it.
    pub reorder_ppm: u32,
    /// A frame arrives late, by up to `late_max`, overtaken by others.
    pub late_ppm: u32,
    /// See `late_ppm`.
    pub late_max: Duration,
    /// The connection breaks instead of carrying the frame.
    pub reset_ppm: u32,
    /// A bit of header or body flips.
    pub corrupt_ppm: u32,
    /// A bit of the payload flips. The transport does not check payload; who uses it must.
    pub corrupt_payload_ppm: u32,
    /// The receiver takes its time before it takes the frame: up to `slow_max`.
    pub slow_ppm: u32,
    /// See `slow_ppm`.
    pub slow_max: Duration,
    /// Per host that dies: its peers notice nothing (power loss) until the host is back and
    /// answers, or `keepalive` has passed; otherwise they are told at once (process killed).
    pub half_open_ppm: u32,
    /// After so long a dead peer is noticed even without traffic.
    pub keepalive: Duration,
    /// So much can be under way in one direction of a connection before its sender waits, in bytes.
    pub window_bytes: usize,
}

impl SimNetConfig {
    /// Nothing goes wrong.
    pub const fn calm() -> Self {
        Self {
            latency_min: Duration::from_micros(20),
            latency_max: Duration::from_micros(80),
            loss_ppm: 0,
            duplicate_ppm: 0,
            reorder_ppm: 0,
            late_ppm: 0,
            late_max: Duration::from_secs(20),
            reset_ppm: 0,
            corrupt_ppm: 0,
            corrupt_payload_ppm: 0,
            slow_ppm: 0,
            slow_max: Duration::from_millis(50),
            half_open_ppm: 0,
            keepalive: Duration::from_secs(120),
            window_bytes: 4 << 20,
        }
    }

    /// Everything goes wrong now and then.
    pub const fn rough() -> Self {
        Self {
            latency_max: Duration::from_millis(2),
            loss_ppm: 2_000,
            duplicate_ppm: 5_000,
            reorder_ppm: 100_000,
            late_ppm: 2_000,
            reset_ppm: 500,
            corrupt_ppm: 200,
            slow_ppm: 5_000,
            half_open_ppm: 500_000,
            ..Self::calm()
        }
    }
}

/// How often each thing really happened: a fault that never happens tests nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SimNetCounters {
    /// Connections made.
    pub connections: u64,
    /// Attempts that nobody answered or that were turned away.
    pub connects_failed: u64,
    /// Frames that were sent.
    pub sent: u64,
    /// Frames that were received.
    pub received: u64,
    /// Frames that vanished by chance.
    pub lost: u64,
    /// Frames that a partition or a dead host swallowed.
    pub swallowed: u64,
    /// Frames that arrived twice.
    pub duplicated: u64,
    /// Frames that overtook another.
    pub reordered: u64,
    /// Frames that were late.
    pub late: u64,
    /// Connections that broke.
    pub resets: u64,
    /// Frames damaged in header or body.
    pub corrupted: u64,
    /// Frames damaged in their payload.
    pub payloads_corrupted: u64,
    /// Frames for which the receiver took its time.
    pub slow: u64,
    /// Frames to or from a slow host.
    pub slowed: u64,
    /// Hosts that died so that peers were told.
    pub died_loudly: u64,
    /// Hosts that died so that peers noticed nothing.
    pub died_silently: u64,
}
