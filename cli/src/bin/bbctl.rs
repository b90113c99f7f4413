//! `bbctl`: the user's commands.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    bb_cli::bbctl(&bb_cli::arguments::Bbctl::parse())
}
