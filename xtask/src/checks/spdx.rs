//! Licence expressions: as much of SPDX as crates use.

use std::collections::BTreeSet;

/// Whether an expression can be met with allowed licences only.
pub fn is_met(expression: &str, allowed: &BTreeSet<String>) -> Result<bool, String> {
    // "MIT/Apache-2.0" is how OR was written before 2018.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = either(&mut words, allowed).ok_or_else(|| format!("can't read '{expression}'"))?;
    match words.next() {
        None => Ok(met),
        Some(_) => Err(format!("can't read '{expression}'")),
    }
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> Option<bool> {
    let mut met = both(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        met |= both(words, allowed)?;
    }
    Some(met)
}

fn both(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> Option<bool> {
    let mut met = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed)?;
    }
    Some(met)
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> Option<bool> {
    match words.next()? {
        "(" => {
            let met = either(words, allowed)?;
            words.next_if_eq(&")").map(|_| met)
        }
        ")" | "OR" | "AND" | "WITH" => None,
        name if words.next_if_eq(&"WITH").is_some() => {
            let exception = words.next()?;
            // An exception only ever gives more rights: the bare licence is enough.
            Some(allowed.contains(name) || allowed.contains(&format!("{name} WITH {exception}")))
        }
        name => Some(allowed.contains(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(expression: &str) -> Result<bool, String> {
        let allowed = ["MIT", "Apache-2.0", "BSD-3-Clause"].map(str::to_owned);
        is_met(expression, &BTreeSet::from(allowed))
    }

    #[test]
    fn copyleft_is_refused_unless_another_choice_is_allowed() {
        for refused in [
            "GPL-3.0",
            "GPL-2.0-only",
            "LGPL-2.1-or-later",
            "AGPL-3.0",
            "MPL-2.0",
            "MIT AND GPL-3.0",
            "(MIT OR Apache-2.0) AND GPL-2.0",
            "GPL-2.0 OR LGPL-2.1",
            "GPL-2.0 WITH Classpath-exception-2.0",
        ] {
            assert_eq!(met(refused), Ok(false), "{refused}");
        }
        for accepted in [
            "MIT",
            "MIT/Apache-2.0",
            "MIT OR GPL-3.0",
            "GPL-3.0 OR (MIT AND BSD-3-Clause)",
            "Apache-2.0 WITH LLVM-exception",
            "((MIT))",
            "MIT OR Apache-2.0 AND GPL-3.0", // AND binds first
        ] {
            assert_eq!(met(accepted), Ok(true), "{accepted}");
        }
    }

    #[test]
    fn what_is_no_expression_is_an_error() {
        for text in ["", "OR", "MIT OR", "(MIT", "MIT)", "MIT MIT", "MIT AND", "WITH x"] {
            assert!(met(text).is_err(), "{text}");
        }
    }
}
