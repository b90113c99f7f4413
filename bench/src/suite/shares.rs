//! The smallest limit that applies to a row, from the same round.

use super::cluster::Geometry;
use super::rows::Row;
use super::sample::Sample;
use super::statistic::{Samples, Spread, spread};
use super::systems::{DIRECT, EXT4, FLOOR};
use crate::limits::Limits;

/// What a figure is compared with.
#[derive(Clone, Debug)]
pub struct Share {
    /// Name of the limit, the smallest one.
    pub limit: &'static str,
    /// Its value, in the row's unit.
    pub value: f64,
    /// The row's part of it.
    pub share: Spread,
}

/// All that was measured of the machine.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// Samples of all systems.
    pub samples: Samples<'a>,
    /// The same rows again and again.
    pub repeats: Samples<'a>,
    /// Of each round.
    pub limits: &'a [Limits],
    /// Cores that all processes share.
    pub cores: f64,
}

impl Machine<'_> {
    /// Of a round.
    pub fn limits(&self, round: u64) -> Option<&Limits> {
        self.limits.get(usize::try_from(round).ok()?)
    }

    fn rate(&self, round: u64, row: &str, system: &str) -> Option<f64> {
        let unit = super::rows::find(row)?.unit;
        Some(self.samples.find(round, row, system)?.rate(unit))
    }

    fn p50(&self, round: u64, row: &str, system: &str) -> Option<f64> {
        self.samples.find(round, row, system)?.p50_us()
    }

    /// All limits of a row in a round, in its unit.
    pub fn of(&self, row: &Row, geometry: Geometry, round: u64) -> Vec<(&'static str, f64)> {
        let mut all = Vec::new();
        let mut add = |name, value: Option<f64>| all.extend(value.map(|value| (name, value)));
        let more = geometry.expansion();
        let direct = |row| self.rate(round, row, DIRECT);
        // The skeleton has 2+1.
        let floor = |row| {
            let same = geometry == Geometry { data: 2, parity: 1 };
            self.rate(round, row, FLOOR).filter(|_| same)
        };
        let limits = self.limits(round);
        let of_all_cores = |gbps: fn(&Limits) -> f64| limits.map(|l| gbps(l) * 1e3 * self.cores);
        let tcp = limits.map(|limits| limits.tcp_gbps * 1e3);
        let round_trip = limits.map(|limits| limits.round_trip_us);
        let seal: fn(&Limits) -> f64 =
            if geometry.data == 4 { |l| l.seal_4_2_gbps } else { |l| l.seal_2_1_gbps };
        let per_second = |us: Option<f64>| us.map(|us| 1e6 / us);
        match row.phase {
            "stream-write" | "shared-write" => {
                add("device", direct("seq-write").map(|mb| mb / more));
                add("tcp", tcp.map(|mb| mb / more));
                add("codec", of_all_cores(seal));
                add("copy", of_all_cores(|limits| limits.copy_gbps));
                add("floor", floor("seq-write"));
            }
            "stream-read" | "shared-read" => {
                add("device", direct("seq-read"));
                add("tcp", tcp);
                add("crc32c", of_all_cores(|limits| limits.crc_gbps));
                add("copy", of_all_cores(|limits| limits.copy_gbps));
                add("floor", floor("seq-read"));
            }
            "random-read" if row.depth == 1 => {
                let us = self.p50(round, row.name, DIRECT).zip(round_trip);
                add("device and round trip", per_second(us.map(|(d, r)| d + r)));
            }
            "random-read" => add("device", direct(row.name)),
            "random-write" => {
                let pages = |mb: f64| mb * 1e6 / 4096.0;
                add("device, packed", direct("seq-write").map(|mb| pages(mb / more)));
                add("floor, packed", floor("seq-write").map(pages));
            }
            "fsync" if row.depth == 1 => {
                let us = self.p50(round, row.name, DIRECT).zip(round_trip);
                add("device and round trip", per_second(us.map(|(d, r)| d + r)));
            }
            "fsync" => add("device", direct(row.name)),
            "small-create" | "small-unlink" => add("ext4", self.rate(round, row.name, EXT4)),
            "sync" => add(
                "device",
                direct("seq-write").zip(direct("seq-read")).map(|(w, r)| {
                    // Each byte is read, and written.
                    1.0 / (1.0 / w + 1.0 / r)
                }),
            ),
            "prestage" => add(
                "device",
                direct("seq-write")
                    .zip(direct("seq-read"))
                    .map(|(w, r)| 1.0 / (more / w + 1.0 / r)),
            ),
            _ => {}
        }
        all
    }

    /// The row's part of the smallest limit: taken per round, the limit that is the smallest most
    /// often gives the name.
    pub fn share(&self, row: &Row, system: &str, geometry: Geometry) -> Option<Share> {
        let smallest = |sample: &Sample| {
            let all = self.of(row, geometry, sample.round);
            all.into_iter().min_by(|a, b| a.1.total_cmp(&b.1))
        };
        let of_rounds: Vec<(&'static str, f64, f64)> = self
            .samples
            .of(row.name, system)
            .filter_map(|sample| {
                let (name, value) = smallest(sample)?;
                Some((name, value, sample.rate(row.unit) / value))
            })
            .collect();
        let often = |name| of_rounds.iter().filter(|(other, ..)| *other == name).count();
        let limit = of_rounds.iter().map(|(name, ..)| *name).max_by_key(|name| often(*name))?;
        let values: Vec<f64> = of_rounds.iter().map(|(_, value, _)| *value).collect();
        let shares: Vec<f64> = of_rounds.iter().map(|(.., share)| *share).collect();
        Some(Share { limit, value: spread(&values)?.median, share: spread(&shares)? })
    }
}
