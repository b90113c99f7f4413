//! Each test that docs/failure-model.md names is there. A family of the simulator counts as a test:
//! it is named by the command that runs it.

use super::{files, verdict};
use crate::Outcome;
use crate::cargo::root;

const PAGE: &str = "docs/failure-model.md";
/// How a family of the simulator is named.
const FAMILY: &str = "./x sim --family ";
/// Where the families are.
const FAMILIES: &str = "sim/src/family.rs";

/// Looks for every named test in the sources, and for every named file.
pub fn check() -> Outcome {
    let read = |path: &str| {
        std::fs::read_to_string(root().join(path)).map_err(|error| format!("{path}: {error}"))
    };
    let mut sources = String::new();
    for path in files()?.iter().filter(|path| path.ends_with(".rs")) {
        sources.push_str(&read(path)?);
    }
    let page = read(PAGE)?;
    let named = named(&page);
    println!("{} tests and files named", named.len());
    let families = read(FAMILIES)?;
    let there = |name: &str| match name.strip_prefix(FAMILY) {
        Some(family) => is_family(&families, family),
        None if name.contains('/') => root().join(name).exists(),
        None => sources.contains(&format!("fn {name}(")),
    };
    let missing = named.into_iter().filter(|name| !there(name));
    verdict(&missing.map(|name| format!("{PAGE}: `{name}` is not there")).collect::<Vec<_>>())
}

/// True if the source of the families gives one this name.
fn is_family(source: &str, name: &str) -> bool {
    source.contains(&format!("=> \"{name}\","))
}

/// Words between backticks in the table's second column.
fn named(page: &str) -> Vec<&str> {
    let rows = page.lines().filter_map(|line| line.strip_prefix('|')?.split('|').nth(1));
    rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

#[cfg(test)]
mod tests {
    use super::{is_family, named};

    #[test]
    fn names_are_taken_from_the_second_column_only() {
        let page = "`a`\n| b `c` | `d` in `e/f.rs`, `g` |\n| h | - |\n";
        assert_eq!(named(page), ["d", "e/f.rs", "g"]);
    }
    #[test]
    fn a_family_is_named_by_its_command() {
        let source = "match self {\n    Self::Power => \"power\",\n}";
        assert!(is_family(source, "power"));
        assert!(!is_family(source, "pow") && !is_family(source, "Power"));
    }
}
