//! What `bbctl` and `bbadm` are made of. Both are clients like any other.

pub mod admin;
pub mod arguments;
pub mod documents;

mod copy;
mod copy_file;
mod list;
mod names;
mod output;
mod pauses;
mod progress;
mod residency;
mod session;
mod side;
mod statistics;
mod tree;

use std::process::ExitCode;

use arguments::{Bbctl, Command};
use session::Session;

/// Exit code after a failed operation.
pub const FAILED: u8 = 1;
/// Exit code after a mistake on the command line.
pub const USAGE: u8 = 2;

/// Carries out a command of `bbctl`.
pub fn bbctl(arguments: &Bbctl) -> ExitCode {
    let failures = match &arguments.command {
        Command::Man => return documents::man::<Bbctl>(),
        Command::Completions { shell } => return documents::completions::<Bbctl>(*shell, "bbctl"),
        Command::Cp(cp) => {
            let plan = match copy::Plan::new(cp) {
                Ok(plan) => plan,
                Err(text) => {
                    eprintln!("bbctl: {text}");
                    return ExitCode::from(USAGE);
                }
            };
            with_session(arguments, async |session| copy::run(session, &plan).await)
        }
        Command::Cat(cat) => with_session(arguments, async |s| list::cat(s, &cat.paths).await),
        Command::Ls(ls) => with_session(arguments, async |s| list::ls(s, ls).await),
        Command::Stat(stat) => with_session(arguments, async |s| list::stat(s, stat).await),
        Command::FragStat(what) => {
            with_session(arguments, async |s| statistics::frag_stat(s, what).await)
        }
        Command::Rm(rm) => with_session(arguments, async |s| names::rm(s, rm).await),
        Command::Mkdir(mkdir) => with_session(arguments, async |s| names::mkdir(s, mkdir).await),
        Command::Mv(mv) => with_session(arguments, async |s| names::mv(s, mv).await),
        Command::Sync(_)
        | Command::Prestage(_)
        | Command::Purge(_)
        | Command::Pin(_)
        | Command::Unpin(_) => {
            with_session(arguments, async |s| residency::run(s, &arguments.command).await)
        }
    };
    ExitCode::from(if failures == 0 { 0 } else { FAILED })
}

/// Connects, runs, disconnects; the answer is the number of failures.
fn with_session(arguments: &Bbctl, run: impl AsyncFnOnce(&Session) -> u64) -> u64 {
    Session::run("bbctl", &arguments.connection, run)
}
