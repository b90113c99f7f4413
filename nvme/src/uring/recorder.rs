//! Counts and latencies.

use std::time::Duration;

use crate::device::OpStats;

impl OpStats {
    /// Counts one operation of `bytes` that took `took`.
    pub(super) fn record(&mut self, ok: bool, bytes: u64, took: Duration) {
        let us = took.as_micros().max(1);
        let bucket = usize::try_from(us.ilog2()).unwrap_or(usize::MAX);
        self.latency_us_log2[bucket.min(self.latency_us_log2.len() - 1)] += 1;
        if ok {
            self.count += 1;
            self.bytes += bytes;
        } else {
            self.errors += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_land_in_powers_of_two_of_microseconds() {
        let mut stats = OpStats::default();
        for (ns, bucket) in [(0, 0), (1_999, 0), (2_000, 1), (1_000_000, 9), (u64::MAX, 31)] {
            let before = stats.latency_us_log2[bucket];
            stats.record(true, 1, Duration::from_nanos(ns));
            assert_eq!(stats.latency_us_log2[bucket], before + 1, "{ns} ns");
        }
        stats.record(false, 7, Duration::ZERO);
        assert_eq!((stats.count, stats.errors, stats.bytes), (5, 1, 5));
    }
}
