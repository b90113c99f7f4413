//! What the project wants to reach, and what it has reached in this run.

use serde_json::{Value, json};

use super::rows;
use super::sample::Sample;
use super::shares::Machine;
use super::statistic::{Samples, Spread, spread};
use super::systems::{DIRECT, EXT4, FLOOR, GLUSTER, SLOW, THREE};

/// The system that the goals are about.
pub const OURS: &str = "burstbay-2+1";

/// A bound.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Bound {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

/// A goal and its state.
#[derive(Clone, Debug)]
pub struct Goal {
    /// Number, as docs/performance.md has it.
    pub number: &'static str,
    /// What it says.
    pub text: &'static str,
    /// What shall be.
    pub bound: Bound,
    /// What is; None where this run did not measure it.
    pub measured: Option<Spread>,
}

impl Goal {
    /// Whether the median is within the bound.
    pub fn met(&self) -> Option<bool> {
        let median = self.measured?.median;
        Some(match self.bound {
            Bound::AtLeast(bound) => median >= bound,
            Bound::AtMost(bound) => median <= bound,
        })
    }

    /// In words.
    pub fn verdict(&self) -> &'static str {
        match self.met() {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "not measured",
        }
    }

    /// For the JSON file.
    pub fn json(&self) -> Value {
        let (kind, bound) = match self.bound {
            Bound::AtLeast(bound) => ("at least", bound),
            Bound::AtMost(bound) => ("at most", bound),
        };
        json!({
            "number": self.number, "text": self.text, "bound": bound, "kind": kind,
            "median": self.measured.map(|m| m.median), "min": self.measured.map(|m| m.min),
            "max": self.measured.map(|m| m.max), "verdict": self.verdict(),
        })
    }
}

fn rate(sample: &Sample) -> Option<f64> {
    Some(sample.rate(rows::find(sample.row)?.unit))
}

fn cpu(sample: &Sample) -> Option<f64> {
    Some(sample.cpu_per_gb())
}

/// All goals.
pub fn goals(machine: &Machine<'_>) -> Vec<Goal> {
    let all = &machine.samples;
    let rates = |a: &str, row: &'static str, system: &'static str| {
        let by = |round| all.find(round, row, system).and_then(rate);
        all.ratio((a, OURS), rate, by)
    };
    let cpu_to_floor = |row: &str| {
        let by = |round| all.find(round, "seq-write", FLOOR).and_then(cpu);
        all.ratio((row, OURS), cpu, by)
    };
    // The device's own time and so many round trips.
    let latency = |row: &'static str, trips: f64| {
        let by = |round| {
            let device = all.find(round, row, DIRECT)?.p50_us()?;
            Some(device + trips * machine.limits(round)?.round_trip_us)
        };
        all.ratio((row, OURS), Sample::p50_us, by)
    };
    let goal = |number, text, bound, measured| Goal { number, text, bound, measured };
    let (least, most) = (Bound::AtLeast, Bound::AtMost);
    vec![
        goal(
            "1a",
            "shared writes / sequential writes",
            least(0.9),
            rates("shared-write", "seq-write", OURS),
        ),
        goal(
            "1b",
            "shared reads / sequential reads",
            least(0.8),
            rates("shared-read", "seq-read", OURS),
        ),
        goal(
            "1c",
            "the same, ranks shifted by one",
            least(0.8),
            rates("shared-read-shifted", "seq-read", OURS),
        ),
        goal(
            "1d",
            "the same, twice as many readers",
            least(0.8),
            rates("shared-read-double", "seq-read", OURS),
        ),
        goal("2a", "sequential writes / floor", least(0.6), rates("seq-write", "seq-write", FLOOR)),
        goal(
            "2b",
            "sequential reads / direct reads",
            least(0.8),
            rates("seq-read", "seq-read", DIRECT),
        ),
        goal(
            "2c",
            "sequential writes / GlusterFS",
            least(5.0),
            rates("seq-write", "seq-write", GLUSTER),
        ),
        goal(
            "2d",
            "shared writes / GlusterFS",
            least(12.0),
            rates("shared-write", "shared-write", GLUSTER),
        ),
        goal("3a", "CPU per GB written / floor's", most(1.5), cpu_to_floor("seq-write")),
        goal(
            "3b",
            "CPU per GB of shared writes / floor's",
            most(1.7),
            cpu_to_floor("shared-write"),
        ),
        goal(
            "4a",
            "4 KiB read p50 / (device + 1.5 round trips)",
            most(1.0),
            latency("rand-read-1", 1.5),
        ),
        goal(
            "4b",
            "4 KiB reads, 64 under way / direct",
            least(0.5),
            rates("rand-read-64", "rand-read-64", DIRECT),
        ),
        goal(
            "4c",
            "4 KiB write and fsync p50 / (device + 3 round trips)",
            most(1.0),
            latency("fsync-1", 3.0),
        ),
        goal(
            "4d",
            "4 KiB write and fsync, 64 jobs / O_DIRECT and fdatasync",
            least(0.3),
            rates("fsync-64", "fsync-64", DIRECT),
        ),
        goal("4e", "the same / GlusterFS", least(10.0), rates("fsync-64", "fsync-64", GLUSTER)),
        goal(
            "5",
            "degraded / healthy sequential reads",
            least(0.8),
            rates("seq-read-degraded", "seq-read", OURS),
        ),
        goal(
            "6",
            "one server's devices ten times slower / three servers",
            least(0.8),
            all.ratio(("seq-write", SLOW), rate, |round| {
                all.find(round, "seq-write", THREE).and_then(rate)
            }),
        ),
        goal(
            "7",
            "small files per second / BFS with fsync",
            least(1.0),
            rates("small-create", "small-create", EXT4),
        ),
        goal(
            "8a",
            "bytes of metadata per additional fragment and copy",
            most(64.0),
            bytes_per_fragment(machine),
        ),
        goal(
            "8b",
            "a row's peak memory of servers, last time / second",
            most(1.05),
            growth(machine),
        ),
    ]
}

/// Memory for metadata that shared writes take beyond sequential ones of as many bytes, over the
/// fragments that they have beyond those, and the copies of each: groups are the same in both.
fn bytes_per_fragment(machine: &Machine<'_>) -> Option<Spread> {
    machine.samples.spread("shared-write", OURS, |sample| {
        let shared = sample.placed?;
        let sequential = machine.samples.find(sample.round, "seq-write", OURS)?.placed?;
        let more = shared.since(&sequential);
        let copies = 1.0 + shared.parity as f64;
        (more.fragments > 0).then(|| more.metadata_bytes as f64 / (more.fragments as f64 * copies))
    })
}

/// Of the row in which the servers' peak grew most from the second time, when all caches have been
/// full, to the last one: over the rounds, or where these are too few, over repetitions.
fn growth(machine: &Machine<'_>) -> Option<Spread> {
    spread(&[grown(machine.samples).or_else(|| grown(machine.repeats))?])
}

fn grown(samples: Samples<'_>) -> Option<f64> {
    let last = samples.0.iter().map(|sample| sample.round).max().filter(|last| *last >= 2)?;
    let peak = |round, row: &str| {
        let sample = samples.find(round, row, OURS)?;
        let most = sample.servers.iter().map(|(_, counters)| counters.peak_kib).max()?;
        (most > 0).then_some(most as f64)
    };
    let rows = rows::ROWS.iter();
    rows.filter_map(|row| Some(peak(last, row.name)? / peak(1, row.name)?)).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_without_a_figure_is_not_met_and_not_missed() {
        let spread = |median| Some(Spread { median, min: 0.0, max: 9.0 });
        let goal = |bound, measured| Goal { number: "0", text: "", bound, measured };
        assert_eq!(goal(Bound::AtLeast(0.9), None).met(), None);
        assert_eq!(goal(Bound::AtLeast(0.9), spread(0.9)).met(), Some(true));
        assert_eq!(goal(Bound::AtLeast(0.9), spread(0.89)).met(), Some(false));
        assert_eq!(goal(Bound::AtMost(1.5), spread(1.6)).verdict(), "NOT MET");
        let none = super::super::statistic::Samples(&[]);
        let machine = Machine { samples: none, repeats: none, limits: &[], cores: 2.0 };
        assert!(goals(&machine).iter().all(|goal| goal.met().is_none()));
    }
}
