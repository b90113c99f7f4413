//! Bounds of what a map may say.

/// Copies of the metadata beyond the first: as many as a parity group may lose blocks.
pub(crate) const BACKUPS_MAX: u32 = 4;
/// Members and filling nodes of one partition.
pub(crate) const REPLICAS_MAX: usize = 16;
/// Epochs and configuration numbers stay below: one more can always be added.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;
/// Nodes that a map may hold, those that have left included.
pub(crate) const NODES_MAX: u32 = 100_000;
/// Bytes of an address or of a slice's name.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// Within so many ticks no more than K nodes are taken down: a slow start after a power cut must
/// not look like the death of most nodes.
pub const MASS_TICKS: u64 = 60;
/// A lease, in milliseconds: shorter ones are mere network noise. With its drift it must be over
/// within [`MASS_TICKS`] seconds, even where a restart has moved the tick on by ten.
pub(crate) const LEASE_MS: std::ops::RangeInclusive<u32> = 100..=20_000;
/// Drift, in milliseconds.
pub(crate) const DRIFT_MS: std::ops::RangeInclusive<u32> = 1..=20_000;
/// Heartbeats and suspicion, in milliseconds.
pub(crate) const PAUSE_MS: std::ops::RangeInclusive<u32> = 1..=600_000;
