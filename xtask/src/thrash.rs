//! `./x thrash`: faults of real servers at random, for as long as one likes.

use crate::Outcome;
use crate::cargo::{cargo, run as start};

/// The test whose long form this is.
const TEST: &str = "faults::real_faults_of_one_server_at_a_time_are_pauses_and_no_errors";

/// Arguments of `./x thrash`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long to go on; each kind of fault happens once in any case
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// These kinds of faults only: Kill, Freeze, Link, Blackhole, Restart
    #[arg(long, value_delimiter = ',', value_name = "FAULT")]
    only: Vec<String>,
    /// Begin with this seed (each run prints its own). It repeats the faults and what clients do,
    /// not the times at which the machine does it
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs it; it prints each fault, and how often each happened.
pub fn run(arguments: &Arguments) -> Outcome {
    let mut command = cargo();
    command.args(["test", "--locked", "--package=bb-cli", "--test=real_server", "--"]);
    command.args(["--exact", TEST, "--nocapture"]);
    command.env("BB_THRASH_MINUTES", arguments.minutes.to_string());
    command.env("BB_THRASH_ONLY", arguments.only.join(","));
    // What cannot run here fails.
    command.env("CI", "1");
    if let Some(seed) = arguments.seed {
        command.env("BB_TEST_SEED", seed.to_string());
    }
    start(&mut command)
}
