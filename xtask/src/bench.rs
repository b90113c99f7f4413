//! `./x bench`: builds what is measured, without debugging aids, and hands over to the program.

use std::os::unix::process::CommandExt;

use crate::Outcome;
use crate::cargo::{cargo, command, run as start, target_directory};

/// All arguments go to the program: `./x bench --help` is its help.
pub fn run(arguments: &[String]) -> Outcome {
    let packages = ["--package=bb-server", "--package=bb-cli", "--package=bb-bench"];
    let programs = ["--bin=bbd", "--bin=bbctl", "--bin=bbadm", "--bin=bench"];
    start(cargo().args(["build", "--locked", "--release"]).args(packages).args(programs))?;
    // As users get it: see the profile.
    start(cargo().args(["build", "--locked", "--profile=library", "--package=bb-capi"]))?;
    let program = target_directory()?.join("release/bench");
    // It becomes the program: Ctrl-C is one process's, which cleans up.
    let error = command(&program.to_string_lossy()).args(arguments).exec();
    Err(format!("{}: {error}", program.display()))
}
