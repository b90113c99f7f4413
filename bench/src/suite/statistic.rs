//! Medians, and ratios of what was measured in the same round.

use super::rows;
use super::sample::Sample;

/// Median with its spread.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The middle one; the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

/// Of some values; None of none.
pub fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median =
        if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 };
    Some(Spread { median, min, max })
}

/// Everything that was measured.
#[derive(Clone, Copy)]
pub struct Samples<'a>(pub &'a [Sample]);

impl<'a> Samples<'a> {
    /// One that has a figure.
    pub fn find(&self, round: u64, row: &str, system: &str) -> Option<&'a Sample> {
        self.of(row, system).find(|sample| sample.round == round)
    }

    /// All of a row and a system that have a figure.
    pub fn of(&self, row: &str, system: &str) -> impl Iterator<Item = &'a Sample> {
        let (row, system) = (row.to_owned(), system.to_owned());
        self.0
            .iter()
            .filter(move |sample| sample.good() && sample.row == row && sample.system == system)
    }

    /// What `of` says of each, over the rounds.
    pub fn spread(
        &self,
        row: &str,
        system: &str,
        of: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<Spread> {
        spread(&self.of(row, system).filter_map(of).collect::<Vec<_>>())
    }

    /// MB/s or operations per second.
    pub fn rate(&self, row: &str, system: &str) -> Option<Spread> {
        let unit = rows::find(row)?.unit;
        self.spread(row, system, |sample| Some(sample.rate(unit)))
    }

    /// `of` of the first, divided by what `by` says for the same round.
    pub fn ratio(
        &self,
        (row, system): (&str, &str),
        of: impl Fn(&Sample) -> Option<f64>,
        by: impl Fn(u64) -> Option<f64>,
    ) -> Option<Spread> {
        let ratios =
            self.of(row, system).filter_map(|sample| Some(of(sample)? / by(sample.round)?));
        spread(&ratios.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::load::Work;
    use crate::suite::process::Disk;

    fn sample(round: u64, row: &'static str, mb: u64) -> Sample {
        let work = Work { seconds: 1.0, bytes: mb * 1_000_000, ..Work::default() };
        Sample {
            round,
            row,
            system: "s".to_owned(),
            work,
            servers: Vec::new(),
            disk: Disk::default(),
            stores: Vec::new(),
            placed: None,
            bfs: None,
            error: None,
            dishonest: Vec::new(),
        }
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[f64::NAN]), None);
        let three = spread(&[5.0, 1.0, 3.0]).unwrap();
        assert_eq!((three.median, three.min, three.max), (3.0, 1.0, 5.0));
        assert!((spread(&[1.0, 2.0]).unwrap().median - 1.5).abs() < 1e-9);
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        // The machine was four times slower in the second round: the ratio does not see it.
        let mut all = vec![
            sample(0, "shared-write", 90),
            sample(0, "seq-write", 100),
            sample(1, "shared-write", 20),
            sample(1, "seq-write", 25),
        ];
        let ratio = |all: &[Sample]| {
            let samples = Samples(all);
            let rate = |sample: &Sample| Some(sample.rate(rows::Unit::Bytes));
            let by = |round| samples.find(round, "seq-write", "s").and_then(rate);
            samples.ratio(("shared-write", "s"), rate, by)
        };
        let found = ratio(&all).unwrap();
        assert!((found.min - 0.8).abs() < 1e-9 && (found.max - 0.9).abs() < 1e-9, "{found:?}");
        // What failed has no figure.
        all[0].dishonest.push("no".to_owned());
        assert!((ratio(&all).unwrap().median - 0.8).abs() < 1e-9);
    }
}
