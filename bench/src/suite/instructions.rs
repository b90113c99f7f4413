//! `--instructions`: how many instructions the client library and a server take for a write and a read,
//! beside the figures that are kept in bench/instructions.json. A noisy machine changes times, not these.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::callgrind::{self, Profile};
use super::cluster::{ALIKE, Cluster, Geometry, Shape};
use super::load::{Loader, run_ranks};
use super::options::Options;
use super::place::Place;
use super::regression::{self, Figure};
use super::tell;

/// Under valgrind all takes fifty times as long.
const SECONDS_MAX: u64 = 600;
/// Times that each is counted; the least is taken.
const REPETITIONS: u64 = 3;
/// Functions that are shown of each count.
const FUNCTIONS: usize = 8;
const MIB: u64 = 1 << 20;
/// Of a file that is read.
const FILE_BYTES: u64 = 64 * MIB;

/// Whose instructions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Client,
    Server,
}

/// What is counted: the same work twice, once more of it than the other time.
struct Count {
    name: &'static str,
    of: Of,
    phase: &'static str,
    len: u64,
    /// Units of the two runs.
    units: [u64; 2],
}

const COUNTS: [Count; 6] = [
    Count {
        name: "client, 1 MiB write",
        of: Of::Client,
        phase: "stream-write",
        len: MIB,
        units: [16, 64],
    },
    Count {
        name: "client, 4 KiB read",
        of: Of::Client,
        phase: "random-read",
        len: 4096,
        units: [256, 2304],
    },
    Count {
        name: "server, 1 MiB write",
        of: Of::Server,
        phase: "stream-write",
        len: MIB,
        units: [16, 80],
    },
    Count {
        name: "server, 4 KiB read",
        of: Of::Server,
        phase: "random-read",
        len: 4096,
        units: [256, 2304],
    },
    // One inline group each. The server is alone: the price of a replica is not in it.
    Count {
        name: "client, 4 KiB write and fsync",
        of: Of::Client,
        phase: "fsync",
        len: 4096,
        units: [32, 288],
    },
    Count {
        name: "server, 4 KiB write and fsync",
        of: Of::Server,
        phase: "fsync",
        len: 4096,
        units: [32, 288],
    },
];

/// The file of the figures that are kept.
fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json")
}

/// Counts, shows, and compares or renews.
///
/// # Errors
/// Something is missing, or a figure is too high.
pub fn run(
    options: &Options,
    place: &Place,
    programs: &Path,
    library: &Path,
) -> Result<(), String> {
    let valgrind = callgrind::version()?;
    let loader = Loader::compile(&place.folder("client")?, library)?;
    let mut figures = Vec::new();
    for of in [Of::Server, Of::Client] {
        let mut counter = Counter::start(of, place, programs, &loader)?;
        for count in COUNTS.iter().filter(|count| count.of == of) {
            let functions = counter.count(count)?;
            let instructions = functions.iter().map(|(_, count)| count).sum();
            tell::out(&format!("{}: {instructions:.0} instructions", count.name));
            for (name, count) in functions.iter().take(FUNCTIONS) {
                tell::out(&format!("  {count:>12.1}  {name}"));
            }
            figures.push(Figure { name: count.name.to_owned(), instructions });
        }
    }
    if options.renew {
        std::fs::write(file(), regression::json(&figures, &valgrind))
            .map_err(|error| format!("{}: {error}", file().display()))?;
        tell::out(&format!("written: {}", file().display()));
        return Ok(());
    }
    let text = std::fs::read_to_string(file()).map_err(|e| format!("{}: {e}", file().display()))?;
    let (said, outcome) = regression::compare(&figures, &text, &valgrind)?;
    tell::out(&said);
    outcome
}

/// A cluster, and who is counted in it.
struct Counter<'a> {
    of: Of,
    cluster: Cluster,
    loader: &'a Loader,
    counts: PathBuf,
    shim: PathBuf,
    runs: u64,
}

impl<'a> Counter<'a> {
    fn start(of: Of, place: &Place, programs: &Path, loader: &'a Loader) -> Result<Self, String> {
        let counts = place.folder("counts")?;
        // A server alone: what it says to others is a matter of time, not of work.
        let (name, servers, data, parity) = match of {
            Of::Client => ("clients", 4, 2, 1),
            Of::Server => ("server", 1, 1, 0),
        };
        let geometry = Geometry { data, parity };
        let shim = callgrind::compile_shim(&counts)?;
        let tool = match of {
            Of::Client => Vec::new(),
            Of::Server => callgrind::words(&counts.join("server"), &shim),
        };
        let shape = Shape {
            servers,
            geometry,
            user_bytes: 6 * FILE_BYTES,
            log_bytes: 64 * MIB,
            slower: ALIKE,
        };
        tell::progress(&format!("bench: {name}: format and start {servers} servers"));
        let cluster = Cluster::start_under(&tool, place, programs, name, shape)?;
        Ok(Self { of, cluster, loader, counts, shim, runs: 0 })
    }

    /// Instructions of a unit, by function.
    fn count(&mut self, count: &Count) -> Result<Vec<(String, f64)>, String> {
        let [short, long] = count.units;
        let shorter = self.least(count, short)?;
        let longer = self.least(count, long)?;
        Ok(longer.beyond(&shorter, (long - short) as f64))
    }

    /// A busy machine only adds to it: answers come in more pieces, and each wakes somebody.
    fn least(&mut self, count: &Count, units: u64) -> Result<Profile, String> {
        let mut least = self.profile(count, units)?;
        for _ in 1..REPETITIONS {
            let other = self.profile(count, units)?;
            if other.total() < least.total() {
                least = other;
            }
        }
        Ok(least)
    }

    fn profile(&mut self, count: &Count, units: u64) -> Result<Profile, String> {
        // A file of its own for each run: none has to remove what another one wrote.
        let rank = self.runs;
        self.runs += 1;
        tell::progress(&format!("bench: {}: {units} of them", count.name));
        let words = |phase: &str, bytes: u64, len: u64| {
            let path = format!("path={}", self.cluster.work);
            let numbers = [("rank", rank), ("bytes", bytes), ("len", len), ("ops", units)];
            let numbers = numbers.map(|(name, value)| format!("{name}={value}"));
            [vec![phase.to_owned(), path], numbers.to_vec()].concat()
        };
        let work = if count.phase == "random-read" {
            let file = words("stream-write", FILE_BYTES, MIB);
            self.run(self.loader.command(&file, self.configuration()), || ())?;
            words(count.phase, FILE_BYTES, count.len)
        } else {
            words(count.phase, units * count.len, count.len)
        };
        match self.of {
            Of::Client => {
                let file = self.counts.join(format!("client.{rank}"));
                let tool = callgrind::words(&file, &self.shim);
                self.run(self.loader.command_under(&tool, &work, self.configuration()), || ())?;
                Profile::read(&file)
            }
            Of::Server => {
                let mut dumped = Vec::new();
                let pid = self.cluster.pids().first().map(|(_, pid)| *pid).ok_or("no server")?;
                let client = self.loader.command(&work, self.configuration());
                self.run(client, || dumped.push(callgrind::dump(pid)))?;
                dumped.into_iter().collect::<Result<Vec<()>, String>>()?;
                // Two for each run: what was before it, and what it was.
                Profile::read(&self.counts.join(format!("server.{}", 2 * (rank + 1))))
            }
        }
    }

    fn configuration(&self) -> Option<&Path> {
        Some(&self.cluster.configuration)
    }

    fn run(&self, client: Command, measure: impl FnMut()) -> Result<(), String> {
        run_ranks(vec![client], SECONDS_MAX, measure).map(|_| ())
    }
}
