//! The search for the deliberate errors: each must be found by a run that is well without it.

#![expect(clippy::disallowed_methods, reason = "tells people how long a search took")]

use std::collections::BTreeMap;
use std::time::Instant;

use crate::family::Family;
use crate::planted::{ALL, Plant};
use crate::run::Outcome;
use crate::work::{Batch, Ended, do_all, is_verdict};

/// What to search, and how far.
#[derive(Clone, Debug)]
pub struct Search {
    /// The first seed for all; none: the one recorded for each.
    pub first: Option<u64>,
    /// Seeds for each error at the most.
    pub seeds: u64,
    /// Only this error.
    pub only: Option<String>,
    /// Another family than that of the error.
    pub family: Option<Family>,
    /// Operations of clients in each run.
    pub operations: u64,
    /// Processes at a time.
    pub cores: usize,
}

/// What is known of the runs of one error.
#[derive(Default)]
struct Tried {
    /// Seeds, whether they showed the error or not.
    count: u64,
    /// Runs that ended without a verdict.
    undecided: u64,
    /// Seeds that fail without any error, too.
    ill: u64,
}

struct Find {
    seed: u64,
    how: String,
}

impl Search {
    /// Finds all, and prints for each how it showed.
    ///
    /// # Errors
    /// Which were not found.
    pub fn find_all(&self) -> Result<(), String> {
        if let Some(name) = &self.only {
            Plant::find(name)?;
        }
        let began = Instant::now();
        let mut missed = Vec::new();
        let mut found = 0;
        println!("{:<26} {:<5} {:<12} {:>5} {:>6} how", "error", "rule", "family", "seed", "tried");
        for plant in ALL.iter().filter(|p| self.only.as_deref().is_none_or(|name| name == p.name)) {
            let mut tried = Tried::default();
            let family = self.family.unwrap_or(plant.family);
            let find = self.find(plant, family, &mut tried)?;
            let (seed, how) = match &find {
                Some(find) => (find.seed.to_string(), find.how.as_str()),
                None => ("-".to_owned(), "NOT FOUND"),
            };
            let notes = tried.notes();
            println!(
                "{:<26} {:<5} {family:<12} {seed:>5} {:>6} {how}{notes}",
                plant.name, plant.rule, tried.count
            );
            match find {
                Some(_) => found += 1,
                None => missed.push(plant.name),
            }
        }
        let total = found + missed.len();
        println!("{found} of {total} found, {:.0} s", began.elapsed().as_secs_f64());
        if missed.is_empty() {
            return Ok(());
        }
        Err(format!("not found within {} seeds: {}", self.seeds, missed.join(", ")))
    }

    fn find(
        &self,
        plant: &Plant,
        family: Family,
        tried: &mut Tried,
    ) -> Result<Option<Find>, String> {
        let first = self.first.unwrap_or(plant.seed);
        let end = first + self.seeds;
        let mut next = first;
        while next < end {
            let runs = self.run(next..end, family, Some(plant.name))?;
            next = runs.last_key_value().map_or(end, |(seed, _)| seed + 1);
            tried.count = next - first;
            for (seed, outcome) in runs {
                if outcome.violations.is_empty() {
                    continue;
                }
                if !is_verdict(&outcome) && !plant.hangs {
                    tried.undecided += 1;
                    continue;
                }
                let without = self.run(seed..seed + 1, family, None)?;
                if without.values().all(|outcome| outcome.violations.is_empty()) {
                    let how = outcome.violations.first().map(|how| how.chars().take(130).collect());
                    return Ok(Some(Find { seed, how: how.unwrap_or_default() }));
                }
                tried.ill += 1;
            }
        }
        Ok(None)
    }

    /// Runs seeds in order, until one fails: others may be under way then, and are told, too.
    fn run(
        &self,
        seeds: std::ops::Range<u64>,
        family: Family,
        plant: Option<&str>,
    ) -> Result<BTreeMap<u64, Outcome>, String> {
        let batches = seeds.map(|seed| Batch {
            first: seed,
            count: 1,
            family: Some(family),
            operations: self.operations,
            plant: plant.map(str::to_owned),
            stop_at_failure: true,
        });
        let mut runs = BTreeMap::new();
        do_all(batches.collect(), self.cores, |Ended { seed, outcome, .. }| {
            let well = outcome.violations.is_empty();
            runs.insert(seed, outcome);
            well
        })?;
        Ok(runs)
    }
}

impl Tried {
    fn notes(&self) -> String {
        let mut notes = String::new();
        if self.undecided > 0 {
            notes = format!("; {} runs without a verdict", self.undecided);
        }
        if self.ill > 0 {
            notes = format!("{notes}; {} seeds fail without it, too", self.ill);
        }
        notes
    }
}
