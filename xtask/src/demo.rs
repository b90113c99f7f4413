//! `./x demo`: the main job of the product, with real servers and real data.

mod clock;
mod cluster;
mod compare;
mod place;
mod processes;
mod report;
mod source;
mod steps;

use std::path::PathBuf;

use crate::Outcome;
use crate::cargo::{cargo, root, run as start};
use place::Place;
use steps::Demo;

/// Arguments of `./x demo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Leave the servers running, and say how to use and stop them
    #[arg(long)]
    keep: bool,
    /// Copy about so much data (K, M and G are powers of 1024)
    #[arg(long, value_name = "BYTES", default_value = "1200M", value_parser = size_bytes)]
    size: u64,
    /// Copy this directory instead of ones that the machine has
    #[arg(long, value_name = "DIRECTORY")]
    source: Option<PathBuf>,
}

/// Builds, runs all steps, prints the table, cleans up.
pub fn run(arguments: &Arguments) -> Outcome {
    clock::watch_signals();
    println!("== build");
    start(cargo().args([
        "build",
        "--locked",
        "--release",
        "--package=bb-server",
        "--package=bb-cli",
        "--bins",
    ]))?;
    println!("\n== choose what to copy");
    let source = source::choose(arguments.source.as_deref(), arguments.size)?;
    source.print();
    let mut place = Place::choose(source.bytes)?;
    let logs = root().join("target/demo-logs");
    let made = std::fs::remove_dir_all(&logs).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    });
    made.and_then(|()| std::fs::create_dir_all(&logs))
        .map_err(|error| format!("{}: {error}", logs.display()))?;
    let demo = Demo::new(&place, &logs, source, arguments.keep)?;
    match demo.run() {
        Ok(kept) => {
            if let Some(how) = kept {
                place.keep();
                println!("\n{how}");
            } else {
                let _ = std::fs::remove_dir_all(&logs);
            }
            Ok(())
        }
        Err(message) if clock::interrupted() => {
            let _ = std::fs::remove_dir_all(&logs);
            Err(format!("interrupted ({message}); everything is cleaned up"))
        }
        Err(message) => Err(format!("{message}\nx: logs are in {}", logs.display())),
    }
}

fn size_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err("a number and at most one of K, M, G".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "a number and at most one of K, M, G")?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::size_bytes;

    #[test]
    fn sizes_are_read_with_binary_suffixes_and_nothing_else() {
        assert_eq!(size_bytes("0"), Ok(0));
        assert_eq!(size_bytes("64K"), Ok(64 << 10));
        assert_eq!(size_bytes("2G"), Ok(2 << 30));
        for text in ["", "G", "1GG", "1KG", "-1", "1.5G", "1T", "99999999999G"] {
            assert!(size_bytes(text).is_err(), "{text}");
        }
    }
}
