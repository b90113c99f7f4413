//! Checks that no other tool does for us.

pub mod house;
pub mod licences;
pub mod links;
pub mod promises;
mod spdx;

use crate::Outcome;
use crate::cargo::{command, output};

/// Files of the project, tracked or new, as paths below its root.
fn files() -> Result<Vec<String>, String> {
    let words = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = output(command("git").args(words))?;
    let there = |path: &&str| !path.is_empty() && crate::cargo::root().join(path).exists();
    Ok(listed.split('\0').filter(there).map(str::to_owned).collect())
}

/// No complaints is success; else each on a line of its own.
fn verdict(complaints: &[String]) -> Outcome {
    match complaints {
        [] => Ok(()),
        complaints => Err(format!("{} found\n  {}", complaints.len(), complaints.join("\n  "))),
    }
}
