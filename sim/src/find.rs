//! The search for the deliberate errors: each must be found by a run that is well without it.

#![expect(clippy::disallowed_methods, reason = "tells people how long a search took")]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
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

/// Seeds of a family whose failures without any error are looked for before a find counts.
const SEEDS_WITHOUT: u64 = 30;

/// What is known of the runs of one error.
#[derive(Default)]
struct Tried {
    /// Seeds, whether they showed the error or not.
    count: u64,
    /// Runs that ended without a verdict.
    undecided: u64,
    /// Seeds that fail without any error, or in a way that some seed does.
    ill: u64,
}

/// How families fail without any error.
type Ways = BTreeMap<Family, BTreeSet<String>>;

/// What a failure says, without its numbers.
fn way(how: &str) -> String {
    how.chars().filter(|c| !c.is_ascii_digit()).take(60).collect()
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
        let mut ways = Ways::new();
        println!("{:<26} {:<5} {:<12} {:>5} {:>6} how", "error", "rule", "family", "seed", "tried");
        for plant in ALL.iter().filter(|p| self.only.as_deref().is_none_or(|name| name == p.name)) {
            let mut tried = Tried::default();
            let family = self.family.unwrap_or(plant.family);
            let find = self.find(plant, family, &mut tried, &mut ways)?;
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
        ways: &mut Ways,
    ) -> Result<Option<Find>, String> {
        let first = self.first.unwrap_or(plant.seed);
        let end = first + self.seeds;
        let mut next = first;
        while next < end {
            let runs = self.run(next..end, family, Some(plant.name), true)?;
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
                let how = outcome.violations.first().cloned().unwrap_or_default();
                let without = self.run(seed..seed + 1, family, None, true)?;
                let well = without.values().all(|outcome| outcome.violations.is_empty());
                if well && !self.fails_so_without(family, &how, ways)? {
                    return Ok(Some(Find { seed, how: how.chars().take(130).collect() }));
                }
                tried.ill += 1;
            }
        }
        Ok(None)
    }

    /// True if some seed of the family fails like this without any error: an error changes all that
    /// is drawn after it, so that it may as well lead to a failure that has another cause.
    fn fails_so_without(&self, family: Family, how: &str, ways: &mut Ways) -> Result<bool, String> {
        let known = match ways.entry(family) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let first = self.first.unwrap_or(0);
                let seeds = first..first + SEEDS_WITHOUT.min(self.seeds);
                let runs = self.run(seeds, family, None, false)?;
                let failures = runs.values().filter_map(|outcome| outcome.violations.first());
                unknown.insert(failures.map(|how| way(how)).collect())
            }
        };
        Ok(known.contains(&way(how)))
    }

    /// Runs seeds in order, until one fails (or all): others may be under way then, and are told, too.
    fn run(
        &self,
        seeds: std::ops::Range<u64>,
        family: Family,
        plant: Option<&str>,
        stop: bool,
    ) -> Result<BTreeMap<u64, Outcome>, String> {
        let batches = seeds.map(|seed| Batch {
            first: seed,
            count: 1,
            family: Some(family),
            operations: self.operations,
            plant: plant.map(str::to_owned),
            stop_at_failure: stop,
        });
        let mut runs = BTreeMap::new();
        do_all(batches.collect(), self.cores, |Ended { seed, outcome, .. }| {
            let well = outcome.violations.is_empty();
            runs.insert(seed, outcome);
            well || !stop
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
            notes = format!("{notes}; {} seeds fail without it, or like others that do", self.ill);
        }
        notes
    }
}
