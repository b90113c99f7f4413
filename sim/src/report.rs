//! What a worker process tells the one that started it, and what that prints.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::family::Family;
use crate::run::Outcome;

/// One run as a line of fields separated by tabs.
pub fn encode(seed: u64, family: Family, outcome: &Outcome) -> String {
    let mut line = format!(
        "END\t{seed}\t{family}\t{}\t{}\t{}",
        outcome.trace, outcome.operations, outcome.seconds
    );
    let clean = |text: &str| text.replace(['\t', '\n'], " ");
    for (name, count) in &outcome.faults {
        let _ = write!(line, "\tF{count} {}", clean(name));
    }
    for (name, count) in &outcome.outcomes {
        let _ = write!(line, "\tO{count} {}", clean(name));
    }
    for text in &outcome.violations {
        let _ = write!(line, "\tV{}", clean(text));
    }
    if !outcome.violations.is_empty() {
        for text in &outcome.log {
            let _ = write!(line, "\tL{}", clean(text));
        }
    }
    line
}

/// The reverse: seed, family, outcome.
pub fn decode(line: &str) -> Option<(u64, Family, Outcome)> {
    let mut fields = line.split('\t');
    if fields.next()? != "END" {
        return None;
    }
    let seed = fields.next()?.parse().ok()?;
    let family = fields.next()?.parse().ok()?;
    let mut outcome = Outcome {
        trace: fields.next()?.parse().ok()?,
        operations: fields.next()?.parse().ok()?,
        seconds: fields.next()?.parse().ok()?,
        ..Outcome::default()
    };
    for field in fields {
        let (kind, rest) = field.split_at_checked(1)?;
        match kind {
            "F" | "O" => {
                let (count, name) = rest.split_once(' ')?;
                let counts = if kind == "F" { &mut outcome.faults } else { &mut outcome.outcomes };
                counts.insert(name.to_owned(), count.parse().ok()?);
            }
            "V" => outcome.violations.push(rest.to_owned()),
            "L" => outcome.log.push(rest.to_owned()),
            _ => return None,
        }
    }
    Some((seed, family, outcome))
}

/// Sums over runs.
#[derive(Default)]
pub struct Totals {
    /// Runs.
    pub runs: u64,
    /// Operations.
    pub operations: u64,
    /// Fewest operations of a run.
    pub operations_min: Option<u64>,
    /// Faults by name.
    pub faults: BTreeMap<String, u64>,
    /// Operations by kind and end.
    pub outcomes: BTreeMap<String, u64>,
    /// Runs by family.
    pub families: BTreeMap<Family, u64>,
}

impl Totals {
    /// Adds a run.
    pub fn add(&mut self, family: Family, outcome: &Outcome) {
        self.runs += 1;
        self.operations += outcome.operations;
        let least = self.operations_min.unwrap_or(u64::MAX).min(outcome.operations);
        self.operations_min = Some(least);
        *self.families.entry(family).or_default() += 1;
        for (name, count) in &outcome.faults {
            *self.faults.entry(name.clone()).or_default() += count;
        }
        for (name, count) in &outcome.outcomes {
            *self.outcomes.entry(name.clone()).or_default() += count;
        }
    }

    /// Prints all sums.
    pub fn print(&self) {
        println!("\nwhat went wrong, in {} runs with {} operations:", self.runs, self.operations);
        for (name, count) in &self.faults {
            println!("  {count:>10}  {name}");
        }
        println!("what clients did:");
        for (name, count) in &self.outcomes {
            println!("  {count:>10}  {name}");
        }
    }

    /// Faults that never happened, though they should in so many runs of all families.
    pub fn missing(&self) -> Vec<&str> {
        self.faults
            .iter()
            .filter(|(_, count)| **count == 0)
            .map(|(name, _)| name.as_str())
            .collect()
    }
}
