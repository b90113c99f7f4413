//! `./x sim`: builds the simulator and hands it all arguments.

use crate::Outcome;
use crate::cargo::{cargo, packages, run as start};

/// Profile `sim` (Cargo.toml): optimised, with assertions.
pub fn run(arguments: &[String]) -> Outcome {
    let packages = packages()?;
    let sim = packages
        .iter()
        .find(|package| package.name == "bb-sim" && package.binaries.iter().any(|b| b == "sim"))
        .ok_or("the simulator isn't there yet: crate bb-sim has no binary `sim`")?;
    let mut command = cargo();
    command.args(["run", "--locked", "--quiet", "--profile=sim", "--package=bb-sim", "--bin=sim"]);
    // Deliberate errors are compiled in only when they are asked for.
    if arguments.iter().any(|word| word == "--planted") {
        if !sim.features.iter().any(|feature| feature == "planted") {
            return Err("planted errors aren't there yet: bb-sim has no feature `planted`".into());
        }
        command.arg("--features=planted");
    }
    start(command.arg("--").args(arguments))
}
