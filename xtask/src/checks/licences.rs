//! Every dependency's licence against deny.toml; cargo-deny does more, where it is installed.

use std::collections::{BTreeMap, BTreeSet};

use super::{spdx, verdict};
use crate::Outcome;
use crate::cargo::{Package, cargo, has, packages, root, run};

/// Our own check always, cargo-deny on top.
pub fn check() -> Outcome {
    let path = root().join("deny.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let rules = Rules::read(&text)?;
    let packages = packages()?;
    verdict(&complaints(&packages, &rules)?)?;
    let count = client_tree(&packages)?.len();
    println!(
        "{} packages are allowed; {count} of them are linked into programs that use bb-client",
        packages.len()
    );
    if has("deny") {
        // Advisories need a database from the network: see CONTRIBUTING.md.
        return run(cargo().args(["deny", "check", "bans", "licenses", "sources"]));
    }
    Ok(())
}

/// What deny.toml says.
struct Rules {
    allowed: BTreeSet<String>,
    denied: BTreeMap<String, String>,
}

impl Rules {
    fn read(text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|error| format!("deny.toml: {error}"))?;
        let list = |section: &str, key: &str| {
            table.get(section).and_then(|s| s.get(key)).and_then(|list| list.as_array()).cloned()
        };
        let text =
            |value: Option<&toml::Value>| value.and_then(toml::Value::as_str).map(str::to_owned);
        let allowed = list("licenses", "allow").ok_or("deny.toml: no licenses.allow")?;
        let denied = list("bans", "deny").unwrap_or_default();
        let allowed: BTreeSet<_> = allowed.iter().filter_map(|v| text(Some(v))).collect();
        if let Some(name) = allowed.iter().find(|name| is_copyleft(name)) {
            return Err(format!(
                "deny.toml allows {name}: the client library lives in other people's programs"
            ));
        }
        let denied = denied
            .iter()
            .filter_map(|v| {
                Some((text(v.get("crate"))?, text(v.get("reason")).unwrap_or_default()))
            })
            .collect();
        Ok(Self { allowed, denied })
    }
}

fn is_copyleft(licence: &str) -> bool {
    ["GPL", "MPL", "EUPL", "CDDL", "SSPL", "OSL"].iter().any(|family| licence.contains(family))
}

/// What is not allowed, anywhere in the graph: build and test tools too.
fn complaints(packages: &[Package], rules: &Rules) -> Result<Vec<String>, String> {
    let mut complaints = Vec::new();
    for package in packages {
        let name = format!("{} {}", package.name, package.version);
        if let Some(reason) = rules.denied.get(&package.name) {
            complaints.push(format!("{name} is banned: {reason}"));
        }
        match &package.licence {
            None => complaints.push(format!("{name} names no licence")),
            Some(licence) if !spdx::is_met(licence, &rules.allowed)? => {
                complaints
                    .push(format!("{name} is under {licence}, which deny.toml doesn't allow"));
            }
            Some(_) => {}
        }
    }
    Ok(complaints)
}

/// Everything that ends up in a program that links the client library. It is a part of what
/// `complaints` looked at, so no copyleft gets in; an empty tree means that nobody looked.
fn client_tree(packages: &[Package]) -> Result<BTreeSet<&str>, String> {
    let by_id: BTreeMap<_, _> = packages.iter().map(|p| (p.id.as_str(), p)).collect();
    let client = packages.iter().find(|package| package.name == "bb-client");
    let mut seen = BTreeSet::new();
    let mut next = vec![client.ok_or("there is no crate bb-client")?.id.as_str()];
    while let Some(id) = next.pop() {
        if seen.insert(id) {
            let package = by_id.get(id).ok_or_else(|| format!("{id} is not in the graph"))?;
            next.extend(package.links.iter().map(String::as_str));
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, licence: Option<&str>) -> Package {
        Package {
            id: name.to_owned(),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: licence.map(str::to_owned),
            folder: None,
            binaries: Vec::new(),
            features: Vec::new(),
            links: Vec::new(),
        }
    }

    fn project_rules() -> Rules {
        Rules::read(include_str!("../../../deny.toml")).unwrap()
    }

    #[test]
    fn gpl_missing_and_banned_packages_are_refused_by_the_projects_rules() {
        let refused = [
            package("a", Some("GPL-3.0-only")),
            package("b", Some("LGPL-2.1")),
            package("c", Some("MPL-2.0")),
            package("d", None),
            package("tokio", Some("MIT")),
        ];
        let good = package("good", Some("MIT OR GPL-3.0"));
        for package in refused {
            let name = package.name.clone();
            let found = complaints(&[package], &project_rules()).unwrap();
            assert_eq!(found.len(), 1, "{name}");
        }
        assert!(complaints(&[good], &project_rules()).unwrap().is_empty());
    }

    #[test]
    fn an_allow_list_with_copyleft_is_refused() {
        let text = "[licenses]\nallow = [\"MIT\", \"LGPL-3.0\"]\n";
        assert!(Rules::read(text).is_err());
        assert!(Rules::read("[licenses]\n").is_err());
    }
}
