//! Relative links in Markdown files lead to files that are there.

use super::{files, verdict};
use crate::Outcome;
use crate::cargo::root;

/// Looks at all Markdown files of the project.
pub fn check() -> Outcome {
    let root = root();
    let mut complaints = Vec::new();
    let mut count = 0;
    for path in files()?.iter().filter(|path| path.ends_with(".md")) {
        let file = root.join(path);
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{path}: {error}"))?;
        let folder = file.parent().unwrap_or(&root);
        for target in relative_links(&text) {
            count += 1;
            if !folder.join(target).exists() {
                complaints.push(format!("{path}: {target} is not there"));
            }
        }
    }
    println!("{count} relative links looked at");
    verdict(&complaints)
}

/// Targets of `[text](target)` outside code, without their fragments.
fn relative_links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut in_code_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code_block = !in_code_block;
        }
        if in_code_block {
            continue;
        }
        // Every second part between backticks is code.
        for prose in line.split('`').step_by(2) {
            for part in prose.split("](").skip(1) {
                let target = part.split([')', ' ', '#']).next().unwrap_or_default();
                if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                    links.push(target);
                }
            }
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::relative_links;

    #[test]
    fn relative_links_are_found_and_others_are_not() {
        let text = "[a](b.md) [c](d/e.md#f), [g](#h) [i](https://j.k/l)\n`[m](n)` ![o](p.png \"q\")\n\
                    ```\n[r](s)\n```\n[`t`](u.md)\n";
        assert_eq!(relative_links(text), ["b.md", "d/e.md", "p.png", "u.md"]);
    }
}
