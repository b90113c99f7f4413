//! `./x fuzz`: the fuzz tests of all decoders (fuzz/README.md), for as long as one likes.

use crate::Outcome;
use crate::cargo::{cargo, output, run as start};

/// The crates that have fuzz tests.
const PACKAGES: [&str; 6] =
    ["bb-fuzz", "bb-proto", "bb-cluster", "bb-transport", "bb-commitlog", "bb-server"];

/// Arguments of `./x fuzz`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long, over all targets
    #[arg(long, default_value_t = 1, value_name = "M")]
    minutes: u64,
    /// Only targets with this in their name
    #[arg(long, default_value = "fuzz_")]
    target: String,
    /// Write the inputs that the tests make into the tree, instead of running for long
    #[arg(long)]
    write_corpus: bool,
}

/// Runs each target for its share of the time, from new seeds.
pub fn run(arguments: &Arguments) -> Outcome {
    let mut test = cargo();
    let packages = PACKAGES.iter().flat_map(|package| ["--package", *package]);
    let words: Vec<&str> = ["test", "--locked", "--no-fail-fast", "--lib", "--tests"]
        .into_iter()
        .chain(packages)
        .chain(["--", "--test-threads=1", &arguments.target])
        .collect();
    let listed = output(cargo().args(&words).arg("--list"))?;
    let targets = listed.lines().filter(|line| line.ends_with(": test")).count();
    if targets == 0 {
        return Err(format!("no fuzz target has '{}' in its name", arguments.target));
    }
    test.args(&words).arg("--nocapture");
    if arguments.write_corpus {
        return start(test.env("BB_FUZZ_WRITE_CORPUS", "1"));
    }
    let seconds = (arguments.minutes * 60).div_ceil(targets as u64);
    let seed = seed()?;
    println!("{targets} targets, {seconds} s each, from BB_FUZZ_SEED={seed}");
    start(test.env("BB_FUZZ_SECONDS", seconds.to_string()).env("BB_FUZZ_SEED", seed.to_string()))
}

fn seed() -> Result<u32, String> {
    let mut bytes = [0; 4];
    // SAFETY: four writable bytes.
    match unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } {
        4 => Ok(u32::from_le_bytes(bytes)),
        _ => Err(format!("no random seed: {}", std::io::Error::last_os_error())),
    }
}
