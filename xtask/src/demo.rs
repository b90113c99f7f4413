//! `./x demo`: the main job of the product, with a real server and real data.

use std::path::PathBuf;

use crate::Outcome;

/// Arguments of `./x demo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Leave the server running, and say how to use and stop it
    #[arg(long)]
    keep: bool,
    /// Copy about so much data (K, M and G are powers of 1024)
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = size_bytes)]
    size: u64,
    /// Copy this directory instead of one that the machine has
    #[arg(long, value_name = "DIRECTORY")]
    source: Option<PathBuf>,
}

/// Says that the demo can't run yet: there is no server to start.
pub fn run(arguments: &Arguments) -> Outcome {
    let source = match &arguments.source {
        Some(source) => source.display().to_string(),
        None => "a directory of this machine".to_owned(),
    };
    let end = if arguments.keep { "and leave the server running" } else { "and clean up" };
    let size = arguments.size;
    Err(format!(
        "the demo isn't built yet (it would copy {size} bytes of {source} through a server, {end})"
    ))
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
