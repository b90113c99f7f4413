//! Steps that are run in order, timed, and summed up in a table.

use std::time::Duration;

use crate::Outcome;

/// One step of `./x test`.
pub struct Step {
    /// Short name, for `--only` and for the table.
    pub name: &'static str,
    /// What it shows, in a few words.
    pub about: &'static str,
    /// Does it.
    pub run: fn() -> Outcome,
}

/// Runs the steps up to the first failure, then prints the table of times in either case.
pub fn run(steps: &[&Step]) -> Outcome {
    let mut results = Vec::new();
    for step in steps {
        println!("\n== {}: {}", step.name, step.about);
        let (seconds, outcome) = timed(step.run);
        let failed = outcome.is_err();
        results.push((seconds, outcome));
        if failed {
            break;
        }
    }
    println!("\n{:<12} {:>9}  result", "step", "seconds");
    let mut sum = Duration::ZERO;
    for (i, step) in steps.iter().enumerate() {
        match results.get(i) {
            Some((time, outcome)) => {
                sum += *time;
                let word = if outcome.is_ok() { "ok" } else { "FAILED" };
                println!("{:<12} {:>9.1}  {word}", step.name, time.as_secs_f64());
            }
            None => println!("{:<12} {:>9}  not run", step.name, "-"),
        }
    }
    println!("{:<12} {:>9.1}", "sum", sum.as_secs_f64());
    let passed = results.iter().filter(|(_, outcome)| outcome.is_ok()).count();
    println!("\nsteps: {passed} passed, {} failed", results.len() - passed);
    match results.pop() {
        Some((_, Err(message))) => {
            Err(format!("step '{}' failed: {message}", steps[results.len()].name))
        }
        _ => Ok(()),
    }
}

#[expect(clippy::disallowed_methods, reason = "a developer's tool measures real time")]
fn timed(run: fn() -> Outcome) -> (Duration, Outcome) {
    let start = std::time::Instant::now();
    let outcome = run();
    (start.elapsed(), outcome)
}
