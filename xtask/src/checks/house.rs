//! House rules: which crate may know which, file sizes, READMEs, no stubs.

use std::collections::{BTreeMap, BTreeSet};

use super::{files, verdict};
use crate::Outcome;
use crate::cargo::{Package, packages, root};

/// Arrows of the house, from the bottom up: a folder, and the folders that it may import, all of
/// them above it in this table. Tests may import more. All that runs in simulation needs `runtime`,
/// all that talks needs `proto`.
const MAY_KNOW: &[(&str, &str)] = &[
    ("proto", ""),
    ("runtime", ""),
    ("erasure", ""),
    ("nvme", "runtime"),
    ("commitlog", "runtime nvme"),
    ("rdma-transport", "proto runtime"),
    ("consensus", "proto runtime"),
    ("cluster", "proto runtime rdma-transport"),
    ("pgio", "proto runtime erasure rdma-transport cluster"),
    ("server", "proto runtime erasure nvme commitlog rdma-transport consensus cluster pgio"),
    ("client-lib", "proto runtime erasure rdma-transport cluster pgio"),
    ("client-lib/c-api", "proto erasure client-lib"),
    ("fuse", "proto runtime client-lib"),
    ("cli", "proto runtime client-lib"),
    // Benchmarks measure the parts too, not only the client.
    ("bench", "proto runtime erasure nvme commitlog rdma-transport cluster pgio client-lib"),
    (
        "sim",
        "proto runtime erasure nvme commitlog rdma-transport consensus cluster pgio server client-lib",
    ),
    // Tests of any crate may use it.
    ("fuzz", ""),
    ("xtask", ""),
];

const FILE_BYTES_MAX: u64 = 40 << 10;

/// All rules.
pub fn check() -> Outcome {
    let files = files()?;
    let mut complaints = arrows(&packages()?);
    complaints.extend(missing_readmes(&files));
    for path in files.iter().filter(|path| path.ends_with(".rs")) {
        let text = std::fs::read_to_string(root().join(path))
            .map_err(|error| format!("{path}: {error}"))?;
        complaints.extend(source(path, &text));
    }
    verdict(&complaints)
}

fn arrows(packages: &[Package]) -> Vec<String> {
    let folders: BTreeMap<_, _> =
        packages.iter().filter_map(|p| Some((p.id.as_str(), p.folder.as_deref()?))).collect();
    let mut complaints = Vec::new();
    for package in packages {
        let Some(folder) = package.folder.as_deref() else { continue };
        let Some((_, may)) = MAY_KNOW.iter().find(|(name, _)| *name == folder) else {
            complaints
                .push(format!("{folder}/ has no line in MAY_KNOW (xtask/src/checks/house.rs)"));
            continue;
        };
        let ours = package.links.iter().filter_map(|id| folders.get(id.as_str()));
        for known in ours.filter(|known| !may.split(' ').any(|name| name == **known)) {
            complaints.push(format!("{folder}/ must not import {known}/: arrows point one way"));
        }
    }
    complaints
}

fn missing_readmes(files: &[String]) -> Vec<String> {
    let tops = files.iter().filter_map(|path| path.split_once('/').map(|(top, _)| top));
    let tops: BTreeSet<_> = tops.filter(|top| !top.starts_with('.')).collect();
    let missing = |top: &&str| !files.contains(&format!("{top}/README.md"));
    tops.into_iter().filter(missing).map(|top| format!("{top}/ has no README.md")).collect()
}

fn source(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if text.len() as u64 > FILE_BYTES_MAX {
        complaints
            .push(format!("{path} has {} bytes: split it at an idea (40 KiB at most)", text.len()));
    }
    // Put together here, so that this file passes.
    for stub in ["todo", "unimplemented"].map(|name| format!("{name}!(")) {
        if text.contains(&stub) {
            complaints.push(format!("{path}: {stub}) is not an answer: return a clear error"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(folder: &str, links: &[&str]) -> Package {
        Package {
            id: folder.to_owned(),
            name: format!("bb-{folder}"),
            version: "0.1.0".to_owned(),
            licence: Some("MIT".to_owned()),
            folder: Some(folder.to_owned()),
            binaries: Vec::new(),
            features: Vec::new(),
            links: links.iter().map(|&id| id.to_owned()).collect(),
        }
    }

    #[test]
    fn an_arrow_that_points_up_is_found() {
        let house = [package("nvme", &["runtime"]), package("runtime", &[])];
        assert!(arrows(&house).is_empty());
        let house = [package("nvme", &[]), package("runtime", &["nvme"])];
        assert_eq!(arrows(&house).len(), 1);
        let house = [package("client-lib", &["server"]), package("server", &[])];
        assert_eq!(arrows(&house).len(), 1);
        assert_eq!(arrows(&[package("attic", &[])]).len(), 1, "a folder without a line");
    }

    #[test]
    fn the_house_has_no_cycle() {
        for (i, (folder, may)) in MAY_KNOW.iter().enumerate() {
            for known in may.split_whitespace() {
                let below = MAY_KNOW[..i].iter().any(|(name, _)| *name == known);
                assert!(below, "{folder} may know {known}, which is not above it in the table");
            }
        }
    }

    #[test]
    fn large_files_stubs_and_folders_without_readme_are_found() {
        assert!(source("a.rs", "fn main() {}").is_empty());
        assert_eq!(source("a.rs", &" ".repeat(41 << 10)).len(), 1);
        assert_eq!(source("a.rs", &format!("{}!()", "todo")).len(), 1);
        let files = ["a/README.md", "a/b.rs", "c/d.rs", ".e/f", "g.md"].map(str::to_owned);
        assert_eq!(missing_readmes(&files), ["c/ has no README.md"]);
    }
}
