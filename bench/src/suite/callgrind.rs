//! Counting instructions: programs under valgrind's callgrind, and its files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::process::{bound, output};

/// What a person without it has to do.
const MISSING: &str = "valgrind is not here, which counts instructions: it is Debian's package \
                       valgrind (apt-get install valgrind)";

/// What it calls itself, such as "valgrind-3.19.0".
///
/// # Errors
/// It is not installed.
pub fn version() -> Result<String, String> {
    let mut command = Command::new("valgrind");
    command.arg("--version").stdin(Stdio::null());
    output(command).map(|said| said.trim().to_owned()).map_err(|_| MISSING.to_owned())
}

/// Words that go before a program, so that its counts come into `file` at its end, or into `file.1`,
/// `file.2`, ... at each [`dump`]. `shim` is what [`compile_shim`] has made.
pub fn words(file: &Path, shim: &Path) -> Vec<String> {
    let preload = format!("LD_PRELOAD={}", shim.display());
    let out = format!("--callgrind-out-file={}", file.display());
    let fixed = [
        "env",
        &preload,
        // A copy by `rep movsb` would count as an instruction for each byte, as would `rep stosb`.
        "GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=1073741824:\
         glibc.cpu.x86_rep_stosb_threshold=1073741824",
        "valgrind",
        "--quiet",
        "--tool=callgrind",
        "--compress-strings=no",
        "--compress-pos=no",
        &out,
    ];
    fixed.map(str::to_owned).to_vec()
}

/// Compiles what programs need under a valgrind that does not know all their system calls: see there.
///
/// # Errors
/// Of the compiler.
pub fn compile_shim(folder: &Path) -> Result<PathBuf, String> {
    let made = folder.join("syscall.so");
    let mut command = Command::new("cc");
    command.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o"]);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    command.arg(&made).arg(here.join("c/valgrind/syscall.c"));
    output(command).map(|_| made)
}

/// Has a process that runs under callgrind write what it counted since the last time, and begin anew.
///
/// # Errors
/// It does not.
pub fn dump(pid: u32) -> Result<(), String> {
    let mut command = Command::new("vgdb");
    command.arg(format!("--pid={pid}")).arg("dump").stdin(Stdio::null());
    output(bound(command)).map(|_| ())
}

/// Instructions by function, without those of what it calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile(BTreeMap<String, u64>);

impl Profile {
    /// Reads a file.
    ///
    /// # Errors
    /// It is not there, or not one of callgrind's.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Of the text of a file without compressed names and positions.
    ///
    /// # Errors
    /// It is something else, or its parts are not its whole.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        let (mut function, mut total, mut of_call) = (String::new(), None, false);
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("fn=") {
                function = name.to_owned();
            } else if line.starts_with("calls=") {
                of_call = true;
            } else if let Some(sum) = line.strip_prefix("totals: ") {
                total = sum.trim().parse::<u64>().ok();
            } else if line.starts_with(|first: char| first.is_ascii_digit()) {
                let cost = line.split(' ').nth(1).unwrap_or("0");
                let cost: u64 = cost.parse().map_err(|_| format!("what is '{line}'?"))?;
                // The line after a call has what was called, which is told at its own place.
                if !std::mem::take(&mut of_call) {
                    *all.entry(function.clone()).or_insert(0) += cost;
                }
            }
        }
        let sum: u64 = all.values().sum();
        match total {
            Some(total) if total == sum => Ok(Self(all)),
            Some(total) => Err(format!("functions have {sum} of {total} instructions")),
            None => Err("no file of callgrind".to_owned()),
        }
    }

    /// All of them, without those of functions that only wait.
    pub fn total(&self) -> u64 {
        self.0.iter().filter(|(name, _)| !waits(name)).map(|(_, count)| count).sum()
    }

    /// What this has beyond a shorter run, for each of so many units: all functions that differ, the
    /// largest first. Functions that only wait are left out.
    pub fn beyond(&self, shorter: &Self, units: f64) -> Vec<(String, f64)> {
        let names: std::collections::BTreeSet<&String> =
            self.0.keys().chain(shorter.0.keys()).collect();
        let count = |of: &Self, name: &str| of.0.get(name).copied().unwrap_or(0) as f64;
        let mut all: Vec<(String, f64)> = names
            .into_iter()
            .filter(|name| !waits(name))
            .map(|name| (name.clone(), (count(self, name) - count(shorter, name)) / units))
            .filter(|(_, count)| *count != 0.0)
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }
}

/// What is done while there is nothing to do: more of it where the other side is slower.
fn waits(function: &str) -> bool {
    // The last ones are of c/valgrind/syscall.c.
    const WAITING: [&str; 5] = ["sched_yield", "poll", "syscall", "direct", "wait_for_ring"];
    WAITING.contains(&function)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "version: 1\npositions: line\nevents: Ir\n\nfl=a.c\nfn=inner\n3 40\n+\n\
                        fn=outer\n7 5\ncfn=inner\ncalls=2 3\n8 40\nfi=b.h\n9 6\n\ntotals: 51\n";

    #[test]
    fn a_call_counts_where_it_was_done() {
        let text = TEXT.replace("+\n", "");
        let profile = Profile::parse(&text).unwrap();
        let expected = [("inner".to_owned(), 40), ("outer".to_owned(), 11)];
        assert_eq!(profile, Profile(expected.into()));
        // A part that was not understood would be missing in the sum.
        assert!(Profile::parse(&text.replace("totals: 51", "totals: 52")).is_err());
        assert!(Profile::parse("").is_err());
    }

    #[test]
    fn start_up_is_in_both_runs_and_counts_in_neither() {
        let of = |copy, start, wait| {
            let named = [("copy", copy), ("main", start), ("sched_yield", wait)];
            Profile(named.map(|(name, count)| (name.to_owned(), count)).into())
        };
        assert_eq!(of(3000, 700, 5).total(), 3700);
        let found = of(3000, 700, 5).beyond(&of(1000, 700, 90), 2.0);
        assert_eq!(found, [("copy".to_owned(), 1000.0)]);
    }
}
