//! Figures that are kept in a file, and what a new count says of them.

use std::fmt::Write;

use serde_json::{Map, Value, json};

/// A count may be so much above the one that is kept, or below it.
const TOLERANCE: f64 = 0.05;

/// A count.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Of what.
    pub name: String,
    /// For each of it.
    pub instructions: f64,
}

/// The text of the file.
pub fn json(figures: &[Figure], valgrind: &str) -> String {
    let kept: Map<String, Value> = figures
        .iter()
        .map(|figure| (figure.name.clone(), json!(figure.instructions.round())))
        .collect();
    format!("{:#}\n", json!({ "instructions": kept, "valgrind": valgrind }))
}

/// Each figure beside the one that is kept, for people; and an error if one is too high, or not kept
/// at all.
///
/// # Errors
/// The text is not that of [`json`].
pub fn compare(
    figures: &[Figure],
    kept: &str,
    valgrind: &str,
) -> Result<(String, Result<(), String>), String> {
    let kept: Value =
        serde_json::from_str(kept).map_err(|error| format!("kept figures: {error}"))?;
    let mut text = format!("{:<30} {:>12} {:>12} {:>8}\n", "instructions", "now", "kept", "");
    let mut wrong = Vec::new();
    for Figure { name, instructions } in figures {
        let Some(before) = kept["instructions"][name].as_f64().filter(|before| *before > 0.0)
        else {
            wrong.push(format!("{name}: no figure is kept"));
            continue;
        };
        let change = instructions / before - 1.0;
        let verdict = if change > TOLERANCE {
            wrong.push(format!("{name}: {:.1} % more instructions than kept", change * 100.0));
            "TOO MANY"
        } else if change < -TOLERANCE {
            "fewer: keep it with --renew"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "{name:<30} {instructions:>12.0} {before:>12.0} {:>+7.1}%  {verdict}",
            change * 100.0
        );
    }
    if kept["valgrind"] != valgrind {
        let _ = writeln!(
            text,
            "note: the figures are of {}, this is {valgrind}: a machine that it shows to programs \
             differently can make them take another path",
            kept["valgrind"]
        );
    }
    let outcome = if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) };
    Ok((text, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(instructions: f64) -> (String, Result<(), String>) {
        let of = |instructions| [Figure { name: "a write".to_owned(), instructions }];
        compare(&of(instructions), &json(&of(1000.0), "v"), "v").unwrap()
    }

    #[test]
    fn five_percent_more_is_an_error_and_five_less_are_said() {
        assert!(now(1049.0).1.is_ok());
        let (text, outcome) = now(1051.0);
        assert!(text.contains("TOO MANY"), "{text}");
        assert!(outcome.unwrap_err().contains("5.1 % more"));
        assert!(!now(951.0).0.contains("--renew"));
        let (text, outcome) = now(949.0);
        assert!(text.contains("--renew") && outcome.is_ok(), "{text}");
    }

    #[test]
    fn what_is_not_kept_cannot_be_compared() {
        let figure = Figure { name: "a read".to_owned(), instructions: 1.0 };
        assert!(compare(std::slice::from_ref(&figure), "{}", "v").unwrap().1.is_err());
        assert!(compare(&[figure], "nothing", "v").is_err());
    }
}
