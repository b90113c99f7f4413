//! Each test that docs/failure-model.md names is there.

use super::{files, verdict};
use crate::Outcome;
use crate::cargo::root;

const PAGE: &str = "docs/failure-model.md";

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
    let there = |name: &str| match name.contains('/') {
        true => root().join(name).exists(),
        false => sources.contains(&format!("fn {name}(")),
    };
    let missing = named.into_iter().filter(|name| !there(name));
    verdict(&missing.map(|name| format!("{PAGE}: `{name}` is not there")).collect::<Vec<_>>())
}

/// Words between backticks in the table's second column.
fn named(page: &str) -> Vec<&str> {
    let rows = page.lines().filter_map(|line| line.strip_prefix('|')?.split('|').nth(1));
    rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn names_are_taken_from_the_second_column_only() {
        let page = "`a`\n| b `c` | `d` in `e/f.rs`, `g` |\n| h | - |\n";
        assert_eq!(named(page), ["d", "e/f.rs", "g"]);
    }
}
