//! Latencies of many processes, added up: buckets of a 32nd of an octave, as bench/c/load has them.

use serde_json::Value;

/// Counts by bucket; bucket b holds what took up to 2^(b/32) ns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(Vec<u64>);

impl Histogram {
    /// Adds what a rank has printed: a list of pairs.
    ///
    /// # Errors
    /// It is not that.
    pub fn add(&mut self, printed: &Value) -> Result<(), String> {
        let wrong = || format!("no histogram: {printed}");
        for pair in printed.as_array().ok_or_else(wrong)? {
            let number = |at: usize| pair[at].as_u64().ok_or_else(wrong);
            let bucket = usize::try_from(number(0)?).map_err(|_| wrong())?;
            if bucket >= 4096 {
                return Err(wrong());
            }
            if self.0.len() <= bucket {
                self.0.resize(bucket + 1, 0);
            }
            self.0[bucket] += number(1)?;
        }
        Ok(())
    }

    /// Microseconds below which this share of all is, or None where nothing was counted.
    pub fn percentile_us(&self, share: f64) -> Option<f64> {
        let all: u64 = self.0.iter().sum();
        let wanted = all as f64 * share;
        let mut sum = 0;
        let found = self.0.iter().position(|count| {
            sum += count;
            sum > 0 && sum as f64 >= wanted
        })?;
        Some((found as f64 / 32.0).exp2() / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn percentiles_are_those_of_all_ranks_together() {
        let mut all = Histogram::default();
        assert_eq!(all.percentile_us(0.5), None);
        // 2^(320/32) = 1024 ns, 2^(640/32) = 1,048,576 ns.
        all.add(&json!([[320, 98]])).unwrap();
        all.add(&json!([[640, 2]])).unwrap();
        assert_eq!(all.percentile_us(0.5), Some(1.024));
        assert_eq!(all.percentile_us(0.98), Some(1.024));
        assert_eq!(all.percentile_us(0.99), Some(1048.576));
        assert!(all.add(&json!([[5000, 1]])).is_err());
        assert!(all.add(&json!("x")).is_err());
    }
}
