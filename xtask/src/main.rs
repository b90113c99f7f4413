//! Developer commands. People start them with `./x`.

mod bench;
mod cargo;
mod checks;
mod demo;
mod fuzz;
mod headers;
mod install;
mod man;
mod scale;
mod sim;
mod step;
mod test;
mod thrash;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a command ends with: nothing, or a sentence that says what went wrong.
type Outcome = Result<(), String>;

#[derive(Parser)]
#[command(name = "x", about = "Burstbay: build, try and test", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what there is
    Help,
    /// Copy a directory tree through four real servers and kill one of them on the way
    Demo(demo::Arguments),
    /// Measure Burstbay beside ext4, GlusterFS and the machine's limits; all arguments go to the bench
    #[command(disable_help_flag = true)]
    Bench {
        /// --quick, --json FILE, --only ROW.., --help and others
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Write man pages and completions (target/man, target/completions)
    Man,
    /// Build and install programs, the client library, its headers and man pages
    Install(install::Arguments),
    /// Generate client-lib/c-api/include/bb_client.h (needs cbindgen)
    Headers,
    /// Run all tests and checks (what CI runs)
    Test(test::Arguments),
    /// Kill, stop and cut off real servers at random, under clients that compare (root)
    Thrash(thrash::Arguments),
    /// Feed mutated bytes to every decoder (a short form is part of the tests)
    Fuzz(fuzz::Arguments),
    /// Run a simulated cluster; all arguments go to the simulator (--seeds N, --seed S, --family F)
    #[command(disable_help_flag = true)]
    Sim {
        /// Arguments of the simulator
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Count what a simulated cluster does for many ranks (docs/scale.md), then map and lease traffic
    #[command(disable_help_flag = true)]
    Scale {
        /// --ranks N, --servers N, --region-log2 N, --help and others
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Help => help(),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Bench { arguments } => bench::run(&arguments),
        Command::Man => man::run(),
        Command::Install(arguments) => install::run(&arguments),
        Command::Headers => headers::run(),
        Command::Test(arguments) => test::run(&arguments),
        Command::Thrash(arguments) => thrash::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Sim { arguments } => sim::run(&arguments),
        Command::Scale { arguments } => scale::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("x: {message}");
            ExitCode::FAILURE
        }
    }
}

fn help() -> Outcome {
    use clap::CommandFactory;
    Arguments::command().print_help().map_err(|error| error.to_string())
}
