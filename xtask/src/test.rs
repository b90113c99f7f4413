//! `./x test`: everything that must hold before a change lands.

use crate::Outcome;
use crate::cargo::{cargo, has, run as start};
use crate::checks::{house, licences, links, promises};
use crate::sim;
use crate::step::{self, Step};

/// All steps, cheap ones first. To add one: a line here and a function that returns a sentence
/// when it fails. Everything that a step starts prints to our output.
const STEPS: &[Step] = &[
    Step { name: "fmt", about: "the code is formatted", run: fmt },
    Step { name: "house", about: "house rules (CONTRIBUTING.md)", run: house::check },
    Step { name: "links", about: "relative links in *.md lead somewhere", run: links::check },
    Step { name: "promises", about: "tests named in the failure model", run: promises::check },
    Step { name: "licences", about: "deny.toml holds for every dependency", run: licences::check },
    Step { name: "clippy", about: "no warnings in any target", run: clippy },
    Step { name: "build", about: "all targets build", run: build },
    Step {
        name: "pure-rust",
        about: "server, client and codec tests without ISA-L",
        run: pure_rust,
    },
    Step { name: "doc-tests", about: "examples in the documentation", run: doc_tests },
    Step { name: "tests", about: "unit and integration tests", run: tests },
    Step { name: "sim", about: "200 simulated clusters, every fault in them", run: simulated },
];

/// Arguments of `./x test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Run these steps only (names from --list)
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    only: Vec<String>,
    /// Show the steps and end
    #[arg(long)]
    list: bool,
}

/// Runs the chosen steps.
pub fn run(arguments: &Arguments) -> Outcome {
    if arguments.list {
        STEPS.iter().for_each(|step| println!("{:<12} {}", step.name, step.about));
        return Ok(());
    }
    if let Some(name) = arguments.only.iter().find(|&name| STEPS.iter().all(|s| s.name != name)) {
        return Err(format!("there is no step '{name}': see ./x test --list"));
    }
    let chosen = |step: &&Step| {
        arguments.only.is_empty() || arguments.only.iter().any(|name| name == step.name)
    };
    step::run(&STEPS.iter().filter(chosen).collect::<Vec<_>>())
}

fn fmt() -> Outcome {
    start(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Outcome {
    let words = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    start(cargo().args(words))
}

fn build() -> Outcome {
    start(cargo().args(["build", "--locked", "--workspace", "--all-targets"]))
}

/// Builds once more, in no time: the step before has put other programs in the place of ours.
fn tests() -> Outcome {
    build()?;
    test_packages(&["--workspace"])
}

fn pure_rust() -> Outcome {
    let programs = ["--package", "bb-server", "--package", "bb-cli", "--bins"];
    start(cargo().args(["build", "--locked", "--no-default-features"]).args(programs))?;
    let packages = ["--package", "bb-erasure", "--package", "bb-pgio"];
    test_packages(&[&packages[..], &["--no-default-features"]].concat())
}

/// nextest stops tests that hang and keeps tests that need the machine apart; cargo's own runner
/// does neither, but needs no installation: a fresh clone must do with two commands.
fn test_packages(packages: &[&str]) -> Outcome {
    if has("nextest") {
        let words = ["nextest", "run", "--locked", "--profile=ci"];
        return start(cargo().args(words).args(packages).env("BB_TEST_BUILT", "1"));
    }
    println!(
        "cargo-nextest isn't installed: using `cargo test`, which doesn't stop a test that hangs."
    );
    println!("To install it (some minutes): cargo install cargo-nextest --locked");
    // It knows no groups either: real_ tests run on their own, one at a time.
    let cargo_test = |filter: &[&str]| {
        let words = ["test", "--locked", "--lib", "--bins", "--tests"];
        start(cargo().args(words).args(packages).arg("--").args(filter))
    };
    cargo_test(&["--skip=real_"])?;
    cargo_test(&["real_", "--test-threads=1"])
}

/// About four minutes on two cores. Fails also where a fault never happened, where a seed gives two
/// traces, and where a run did little.
fn simulated() -> Outcome {
    sim::run(&["--seeds".to_owned(), "200".to_owned()])
}

fn doc_tests() -> Outcome {
    start(cargo().args(["test", "--locked", "--workspace", "--doc"]))
}
