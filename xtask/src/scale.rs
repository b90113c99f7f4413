//! `./x scale`: what docs/scale.md counts: the data path in simulation, then map and leases.

use crate::Outcome;
use crate::cargo::{cargo, run as start};

/// Profile `sim` (Cargo.toml): optimised, with assertions.
pub fn run(arguments: &[String]) -> Outcome {
    let build = |package: &str, binary: &str| {
        let mut command = cargo();
        command.args(["run", "--locked", "--quiet", "--profile=sim"]);
        command.arg(format!("--package={package}")).arg(format!("--bin={binary}"));
        command
    };
    start(build("bb-sim", "ranks").arg("--").args(arguments))?;
    // Whoever asks for a certain cluster asks about the data path, or for help.
    if arguments.is_empty() { start(&mut build("bb-bench", "scale")) } else { Ok(()) }
}
