//! `bbadm`: the administrator's commands.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    bb_cli::admin::bbadm(&bb_cli::arguments::Bbadm::parse())
}
