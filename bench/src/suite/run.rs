//! A whole run: start, measure, tell, clean up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::floor_run::Floor;
use super::goals::{self, OURS};
use super::load::Loader;
use super::options::Options;
use super::place::Place;
use super::profile::Profile;
use super::report::{Run, devices, json, small_files, summaries};
use super::rounds::Runner;
use super::shares::Machine;
use super::statistic::Samples;
use super::systems::{self, FLOOR};
use super::{clock, instructions, plot, rows, table, tell};

/// Time for the rounds of the quick form.
const QUICK: Duration = Duration::from_secs(180);
/// Times that a row is repeated to see whether memory grows.
const REPEATS: u64 = 4;

/// Does what the command line says.
///
/// # Errors
/// Something is missing, we were interrupted, a figure cannot be believed, or (with `--strict`) a goal
/// is missed. All processes are ended and all files removed in any case.
pub fn run(options: &Options) -> Result<(), String> {
    clock::watch_signals();
    let options = &options.narrowed();
    let chosen = rows::chosen(&options.only)?;
    let programs = programs(options)?;
    let directory = options.directory.clone().unwrap_or_else(|| beside(&programs));
    if options.instructions {
        let place = Place::make(&directory)?;
        return instructions::run(options, &place, &programs, &library(options, &programs)?);
    }
    let size = systems::size(options, &directory)?;
    let place = Place::make(&directory)?;
    tell::progress(&format!(
        "bench: in {}; large rows of {} MiB, {} clients, {} rounds",
        place.path.display(),
        size >> 20,
        options.clients,
        options.rounds()
    ));
    let busy = load_of_others();
    let loader = Loader::compile(&place.folder("client")?, &library(options, &programs)?)?;
    let floor = match options.wants(FLOOR) {
        true => Some(Floor::prepare(&place, options.clients, size)?),
        false => None,
    };
    let started = systems::start(options, &place, &programs, size)?;
    let mut runner = Runner::new(options, size, place.device, &loader, started, floor);
    if busy > cores() / 4.0 {
        let note = format!(
            "the machine was busy with something else when this began (load {busy:.1} on {} cores): \
             nothing here can be relied on",
            cores()
        );
        tell::progress(&format!("bench: {note}"));
        runner.notes.push(note);
    }
    if size < options.size_min() {
        let note = format!(
            "large rows have {} MiB, less than twice what all clients may cache ({} MiB): reads can \
             come from caches",
            size >> 20,
            options.size_min() >> 20
        );
        runner.notes.push(note);
    }
    if let Some(row) = &options.profile {
        runner.profile = Some(Profile::new(row, &place.path)?).into();
    }
    runner.prepare(&chosen)?;
    let measured = rounds(options, &mut runner, &chosen)
        .and_then(|()| memory(options, &mut runner, &chosen))
        .and_then(|()| slow(options, &mut runner, &chosen, (&place, &programs)));
    if let Err(error) = &measured {
        runner.notes.push(format!("not all was measured: {error}"));
    }
    // What there is, is told in any case.
    let told = tell(options, &runner, &chosen);
    measured.and(told)
}

/// All rounds; the quick form, where nobody says how many, goes on only while there is time for
/// another one.
fn rounds(
    options: &Options,
    runner: &mut Runner<'_>,
    chosen: &[&'static rows::Row],
) -> Result<(), String> {
    let start = clock::now();
    for round in 0..options.rounds() {
        let used = start.elapsed();
        let next = used * u32::try_from(round + 1).unwrap_or(u32::MAX)
            / u32::try_from(round.max(1)).unwrap_or(1);
        if round > 0 && options.quick && options.rounds.is_none() && next > QUICK {
            runner.notes.push(format!("the machine had no time for more than {round} rounds"));
            break;
        }
        runner.round(round, chosen)?;
    }
    Ok(())
}

/// How memory grows, where there were too few rounds to tell.
fn memory(
    options: &Options,
    runner: &mut Runner<'_>,
    chosen: &[&'static rows::Row],
) -> Result<(), String> {
    let wanted = options.quick && options.only.is_empty() && !chosen.is_empty();
    if wanted { runner.repeat(REPEATS) } else { Ok(()) }
}

/// What a slow server does to writes.
fn slow(
    options: &Options,
    runner: &mut Runner<'_>,
    chosen: &[&'static rows::Row],
    (place, programs): (&Place, &Path),
) -> Result<(), String> {
    let wanted = systems::SLOW_SYSTEMS.iter().any(|name| options.wants(name));
    if !wanted || !chosen.iter().any(|row| row.phase == "stream-write") {
        return Ok(());
    }
    let size = runner.size;
    runner.exchange(|| systems::start_slow(options, place, programs, size))?;
    (0..options.rounds()).try_for_each(|round| runner.slow_round(round, chosen))
}

fn tell(
    options: &Options,
    runner: &Runner<'_>,
    chosen: &[&'static rows::Row],
) -> Result<(), String> {
    let machine = Machine {
        samples: Samples(&runner.samples),
        repeats: Samples(&runner.repeats),
        limits: &runner.limits,
        cores: cores(),
    };
    let summaries = summaries(chosen, &runner.names, &machine);
    let goals = goals::goals(&machine);
    tell::out(&format!("{}\n{}", table::rows(&summaries), table::limits(&runner.limits)));
    tell::out(&devices(&machine, OURS, chosen));
    tell::out(&format!("{}\n{}", small_files(&machine, OURS), table::goals(&goals)));
    for (system, why) in &runner.systems.missing {
        tell::out(&format!("{system}: {why}"));
    }
    runner.notes.iter().for_each(|note| tell::out(&format!("note: {note}")));
    let form = match (options.smoke, options.quick) {
        (true, _) => "smoke",
        (_, true) => "quick",
        _ => "full",
    };
    let about = Run {
        form,
        size: runner.size,
        clients: options.clients,
        beyond_caches: runner.size >= options.size_min(),
        missing: &runner.systems.missing,
        notes: &runner.notes,
    };
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", json(&about, &machine, &summaries, &goals));
        write(path, &text)?;
    }
    if let Some((profile, path)) = runner.profile.borrow().as_ref().zip(options.svg.as_ref()) {
        write(path, &profile.svg()?)?;
    } else if let Some(path) = &options.svg {
        let cores = machine.cores;
        let title = format!("Burstbay on one machine of {cores} cores: clients, servers and disk");
        write(path, &plot::svg(&title, &summaries))?;
    }
    verdict(options, runner, &goals)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    tell::out(&format!("written: {}", path.display()));
    Ok(())
}

/// Rows that failed and figures that cannot be believed are errors; missed goals are, where that is
/// asked for.
fn verdict(options: &Options, runner: &Runner<'_>, goals: &[goals::Goal]) -> Result<(), String> {
    let failed = runner.samples.iter().filter(|sample| !sample.good()).count();
    if failed > 0 {
        return Err(format!("{failed} of {} measurements failed", runner.samples.len()));
    }
    let missed = goals.iter().filter(|goal| goal.met() == Some(false)).count();
    if options.strict && missed > 0 {
        return Err(format!("{missed} goals are not met"));
    }
    Ok(())
}

/// Processes that want a core, over the last minute.
fn load_of_others() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

fn cores() -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    f64::from(u32::try_from(cores).unwrap_or(u32::MAX))
}

fn programs(options: &Options) -> Result<PathBuf, String> {
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = options.programs.clone().or_else(|| Some(here.parent()?.to_path_buf()));
    let folder = folder.ok_or("no folder of programs")?;
    for name in ["bbd", "bbadm"] {
        if !folder.join(name).exists() {
            return Err(format!("{} is not in {}: see --programs", name, folder.display()));
        }
    }
    Ok(folder)
}

fn beside(programs: &Path) -> PathBuf {
    programs.parent().unwrap_or(programs).to_path_buf()
}

/// The one that is built to unwind, as programs get it.
fn library(options: &Options, programs: &Path) -> Result<PathBuf, String> {
    if let Some(path) = &options.library {
        return Ok(path.clone());
    }
    let name = "libbb_capi.so";
    let places = [beside(programs).join("library").join(name), programs.join(name)];
    let found = places.iter().find(|path| path.exists());
    found.cloned().ok_or_else(|| format!("{name} is not beside the programs: see --library"))
}
