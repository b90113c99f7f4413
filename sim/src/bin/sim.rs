//! `./x sim`: whole clusters in simulation, from seeds.

#![expect(clippy::disallowed_methods, reason = "tells people how long a run took")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use bb_sim::family::Family;
use bb_sim::report::Totals;
use bb_sim::run::{Order, Outcome, run};
use bb_sim::work::{Batch, Ended, do_all};
use clap::Parser;

/// Runs simulated clusters and judges every answer.
#[derive(Parser, Clone)]
struct Arguments {
    /// How many seeds
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed; alone: only this one, with its operations on failure
    #[arg(long)]
    seed: Option<u64>,
    /// Only this family: calm, crash, power, net, rot, device-gone, full, bfs, names, hot, away, outage, mixed, nodes-calm, nodes-crash, nodes-power, nodes-net, nodes-slow, nodes-drift, nodes-mixed
    #[arg(long)]
    family: Option<Family>,
    /// Operations of clients in each run
    #[arg(long, default_value_t = 2_200)]
    operations: u64,
    /// Find every deliberate error
    #[arg(long)]
    planted: bool,
    /// With --planted: begin at the recorded seed of each error, and give up soon
    #[arg(long, requires = "planted")]
    quick: bool,
    /// Make one deliberate error
    #[arg(long, value_name = "NAME")]
    plant: Option<String>,
    /// Print every operation and every log line
    #[arg(long, short)]
    verbose: bool,
    /// Go on after failures
    #[arg(long)]
    keep_going: bool,
    /// Processes at a time
    #[arg(long)]
    cores: Option<usize>,
    /// Runs seeds in this process and tells the outcome in lines
    #[arg(long, hide = true)]
    worker: bool,
    /// A worker ends at its first failure
    #[arg(long, hide = true)]
    stop: bool,
}

/// Runs when nothing else is asked for.
const SEEDS: u64 = 200;
/// Seeds for each deliberate error in the quick search: a recorded seed is good until the code
/// changes what it draws, and most errors show at every other seed.
#[cfg(feature = "planted")]
const QUICK_SEEDS: u64 = 20;
/// Runs of one process.
const BATCH: u64 = 5;
/// Every so-many-th seed is run twice: its trace must be the same.
const TWICE: u64 = 10;
/// From so many runs over all families on, each fault must have happened.
const RUNS_FOR_ALL_FAULTS: u64 = 100;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    bb_sim::complaints::listen(arguments.verbose);
    let result = if arguments.worker {
        batch(&arguments, arguments.seed.unwrap_or(0), arguments.seeds.unwrap_or(1)).work()
    } else if arguments.planted {
        find_planted(&arguments)
    } else if let (Some(seed), None) = (arguments.seed, arguments.seeds) {
        run_one(&arguments, seed)
    } else {
        run_many(&arguments)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn batch(arguments: &Arguments, first: u64, count: u64) -> Batch {
    Batch {
        first,
        count,
        family: arguments.family,
        operations: arguments.operations,
        plant: arguments.plant.clone(),
        stop_at_failure: arguments.stop,
    }
}

fn cores(arguments: &Arguments) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    arguments.cores.unwrap_or_else(all)
}

fn show(seed: u64, family: Family, outcome: &Outcome, plant: Option<&str>) {
    println!("\nseed {seed}, family {family}, {} virtual seconds:", outcome.seconds);
    for line in &outcome.log {
        println!("  {line}");
    }
    for violation in &outcome.violations {
        println!("FAILED: {violation}");
    }
    let plant = plant.map(|name| format!(" --plant {name}")).unwrap_or_default();
    println!("to replay: ./x sim --family {family} --seed {seed}{plant} [--verbose]");
}

fn run_one(arguments: &Arguments, seed: u64) -> Result<(), String> {
    #[cfg(feature = "planted")]
    let plant = arguments.plant.as_deref().map(bb_sim::planted::Plant::find).transpose()?;
    #[cfg(not(feature = "planted"))]
    let plant = None;
    let family = arguments.family.unwrap_or_else(|| Family::of_seed(seed));
    let (operations, verbose) = (arguments.operations, arguments.verbose);
    let began = Instant::now();
    let outcome = run(&Order { seed, family, operations, plant, verbose });
    let mut totals = Totals::default();
    totals.add(family, &outcome);
    totals.print();
    println!("trace {:016x}, {:.1} s", outcome.trace, began.elapsed().as_secs_f64());
    if outcome.violations.is_empty() {
        println!("seed {seed}, family {family}: well");
        return Ok(());
    }
    show(seed, family, &outcome, arguments.plant.as_deref());
    Err("failed".to_owned())
}

fn run_many(arguments: &Arguments) -> Result<(), String> {
    let (first, count) = (arguments.seed.unwrap_or(0), arguments.seeds.unwrap_or(SEEDS));
    let mut batches: Vec<Batch> = (0..count.div_ceil(BATCH))
        .map(|n| batch(arguments, first + n * BATCH, BATCH.min(count - n * BATCH)))
        .collect();
    let again = (0..count.div_ceil(TWICE)).map(|n| batch(arguments, first + n * TWICE, 1));
    batches.extend(again);
    let began = Instant::now();
    let mut totals = Totals::default();
    let mut traces: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut failed, mut differ, mut twice) = (Vec::new(), Vec::new(), 0_u64);
    do_all(batches, cores(arguments), |Ended { seed, family, outcome }| {
        if let Some(other) = traces.insert(seed, outcome.trace) {
            twice += 1;
            if other != outcome.trace {
                differ.push(seed);
            }
            return true;
        }
        totals.add(family, &outcome);
        if !outcome.violations.is_empty() {
            show(seed, family, &outcome, arguments.plant.as_deref());
            failed.push((family, seed));
            return arguments.keep_going;
        }
        true
    })?;
    totals.print();
    println!(
        "{} runs ({twice} of them twice), {} operations (at least {} a run), {:.0} s",
        totals.runs,
        totals.operations,
        totals.operations_min.unwrap_or(0),
        began.elapsed().as_secs_f64()
    );
    if !differ.is_empty() {
        return Err(format!("these seeds do not give the same trace twice: {differ:?}"));
    }
    if !failed.is_empty() {
        let list: Vec<String> =
            failed.iter().map(|(family, seed)| format!("{family} {seed}")).collect();
        return Err(format!(
            "{} of {} runs failed: {}",
            failed.len(),
            totals.runs,
            list.join(", ")
        ));
    }
    // A run that ends early tests little, and none may where none fails. The last operations of
    // killed clients do not end.
    let least = arguments.operations / 11 * 10;
    let fewest = totals.operations_min.unwrap_or(0);
    if fewest < least {
        return Err(format!("a run did {fewest} operations: fewer than {least}"));
    }
    let missing = totals.missing();
    if arguments.family.is_none() && totals.runs >= RUNS_FOR_ALL_FAULTS && !missing.is_empty() {
        return Err(format!("these faults never happened: {}", missing.join("; ")));
    }
    Ok(())
}

#[cfg(not(feature = "planted"))]
fn find_planted(arguments: &Arguments) -> Result<(), String> {
    let quick = if arguments.quick { " --quick" } else { "" };
    Err(format!("--planted{quick}: not compiled in, that takes the feature `planted`"))
}

#[cfg(feature = "planted")]
fn find_planted(arguments: &Arguments) -> Result<(), String> {
    bb_sim::find::Search {
        first: if arguments.quick { arguments.seed } else { Some(arguments.seed.unwrap_or(0)) },
        seeds: arguments.seeds.unwrap_or(if arguments.quick { QUICK_SEEDS } else { SEEDS }),
        only: arguments.plant.clone(),
        family: arguments.family,
        operations: arguments.operations,
        cores: cores(arguments),
    }
    .find_all()
}
