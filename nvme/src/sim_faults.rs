//! What can go wrong on a simulated disk, how likely, and how often it really did.

use std::collections::{BTreeMap, VecDeque};

/// One kind of misbehaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// A crash left some blocks of a write and not others.
    TornWrite,
    /// A power cut took a completed write that nobody had flushed.
    LostUnflushed,
    /// A write was acknowledged, even as durable, and never reached the medium.
    LostWrite,
    /// A write was acknowledged and landed at another aligned offset.
    MisdirectedWrite,
    /// A bit flipped at rest.
    BitRot,
    /// A read failed.
    ReadError,
    /// A write failed; any part of it may have landed.
    WriteError,
    /// An operation took many times as long as usual.
    Slow,
    /// An operation hung until the disk was released.
    Stall,
    /// An operation met a disk that is gone.
    Gone,
    /// A flush failed, and with it the device.
    FailedFlush,
}

impl FaultKind {
    /// All kinds, so that a simulator can check that each happened.
    pub const ALL: [Self; 11] = [
        Self::TornWrite,
        Self::LostUnflushed,
        Self::LostWrite,
        Self::MisdirectedWrite,
        Self::BitRot,
        Self::ReadError,
        Self::WriteError,
        Self::Slow,
        Self::Stall,
        Self::Gone,
        Self::FailedFlush,
    ];
}

/// How often each kind really happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    counts: BTreeMap<FaultKind, u64>,
}

impl FaultCounts {
    /// How often `kind` happened.
    pub fn get(&self, kind: FaultKind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// Adds the counts of another disk.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.counts {
            *self.counts.entry(*kind).or_default() += count;
        }
    }

    /// Kinds that happened, with their counts, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (FaultKind, u64)> + '_ {
        self.counts.iter().map(|(kind, count)| (*kind, *count))
    }

    pub(crate) fn hit(&mut self, kind: FaultKind) {
        *self.counts.entry(kind).or_default() += 1;
    }
}

/// Probabilities per operation, in parts per million. All zero by default: what a crash does to
/// unflushed writes needs no rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// [`FaultKind::LostWrite`], per write.
    pub lost_write_ppm: u32,
    /// [`FaultKind::MisdirectedWrite`], per write.
    pub misdirected_write_ppm: u32,
    /// [`FaultKind::BitRot`], per read: a bit of what it covers flips just before.
    pub bit_rot_ppm: u32,
    /// [`FaultKind::ReadError`], per read.
    pub read_error_ppm: u32,
    /// [`FaultKind::WriteError`], per write.
    pub write_error_ppm: u32,
    /// [`FaultKind::Slow`], per operation.
    pub slow_ppm: u32,
    /// [`FaultKind::FailedFlush`], per flush, and per durable write.
    pub failed_flush_ppm: u32,
}

impl FaultRates {
    fn ppm(&self, kind: FaultKind) -> u32 {
        match kind {
            FaultKind::LostWrite => self.lost_write_ppm,
            FaultKind::MisdirectedWrite => self.misdirected_write_ppm,
            FaultKind::BitRot => self.bit_rot_ppm,
            FaultKind::ReadError => self.read_error_ppm,
            FaultKind::WriteError => self.write_error_ppm,
            FaultKind::Slow => self.slow_ppm,
            FaultKind::FailedFlush => self.failed_flush_ppm,
            FaultKind::TornWrite
            | FaultKind::LostUnflushed
            | FaultKind::Stall
            | FaultKind::Gone => 0,
        }
    }
}

struct Injection {
    kind: FaultKind,
    /// Only an operation that touches this range, or any.
    range: Option<(u64, u64)>,
}

/// Rates, one-shot injections and counts of one disk.
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) rates: FaultRates,
    pub(crate) counts: FaultCounts,
    injections: VecDeque<Injection>,
}

impl Faults {
    pub(crate) fn inject(&mut self, kind: FaultKind, range: Option<(u64, u64)>) {
        self.injections.push_back(Injection { kind, range });
    }

    /// Whether `kind` strikes an operation on `offset..offset + len`; counts it if so. `draw` gives
    /// a number below its argument.
    pub(crate) fn strikes(
        &mut self,
        kind: FaultKind,
        (offset, len): (u64, u64),
        draw: impl FnOnce(u64) -> u64,
    ) -> bool {
        let meant = self.injections.iter().position(|injection| {
            injection.kind == kind
                && injection
                    .range
                    .is_none_or(|(from, bytes)| offset < from + bytes && from < offset + len)
        });
        let struck = match meant {
            Some(at) => self.injections.remove(at).is_some(),
            None => {
                let ppm = u64::from(self.rates.ppm(kind));
                ppm > 0 && draw(1_000_000) < ppm
            }
        };
        if struck {
            self.counts.hit(kind);
        }
        struck
    }
}
