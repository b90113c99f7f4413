//! `frag-stat`: bytes by state.

use std::cell::Cell;

use bb_client::Error;
use bb_proto::meta::{ByteCounts, FileState};
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};

use crate::arguments::Trees;
use crate::output;
use crate::session::Session;
use crate::side::join;
use crate::tree::{self, Kind, NAMES_IN_FLIGHT};

/// Prints bytes by state of files, and their sums.
pub async fn frag_stat(session: &Session, what: &Trees) -> u64 {
    if !session.json {
        println!("{}", heading());
    }
    let (files, sums) = (Cell::new(0_u64), Cell::new(ByteCounts::default()));
    for root in session.paths(&what.paths) {
        let entries = tree::in_buffer(session, &root, what.recursive, false).await;
        if !what.recursive && entries.first().is_some_and(|e| e.kind == Kind::Directory) {
            let shown = output::path(&root);
            session.complain(&format!("-r not specified; omitting directory '{shown}'"));
            continue;
        }
        let paths = entries.into_iter().filter(|e| e.kind == Kind::File).map(|entry| {
            if entry.relative.is_empty() { root.clone() } else { join(&root, &entry.relative) }
        });
        let mut states = stream::iter(paths)
            .map(async |path| (state(session, &path).await, path))
            .buffered(NAMES_IN_FLIGHT);
        while let Some((state, path)) = states.next().await {
            match state {
                Ok(state) => {
                    let bytes = state.bytes.unwrap_or_default();
                    files.set(files.get() + 1);
                    sums.set(sum(&sums.get(), &bytes));
                    if !what.summarize {
                        print(session, &path, &state, &bytes);
                    }
                }
                Err(error) => session.complain_of("stat", &path, &error),
            }
        }
    }
    let (files, sums) = (files.get(), sums.get());
    if session.json {
        let mut line = counts(&sums);
        line["files"] = json!(files);
        println!("{}", json!({ "total": line }));
    } else if what.recursive || files != 1 {
        println!("{}", row(&sums, &format!("total of {files} files")));
    }
    session.failures()
}

async fn state(session: &Session, path: &[u8]) -> Result<FileState, Error> {
    let file = session.client.open(path, libc::O_RDONLY, 0).await?;
    let state = file.fragment_statistics().await;
    let closed = file.close().await;
    state.and_then(|state| closed.map(|()| state))
}

fn print(session: &Session, path: &[u8], state: &FileState, bytes: &ByteCounts) {
    if session.json {
        let mut line = counts(bytes);
        line["path"] = json!(output::path(path));
        line["size"] = json!(state.size);
        line["pinned"] = json!(state.pinned);
        line["conflict"] = json!(state.conflict);
        println!("{line}");
        return;
    }
    let mut name = output::path(path);
    if state.pinned {
        name.push_str(" (pinned)");
    }
    if state.conflict {
        name.push_str(" (changed on the backing file system, too)");
    }
    println!("{}", row(bytes, &name));
}

fn heading() -> String {
    format!("{:>14} {:>14} {:>14} {:>14}  file", "dirty", "pending", "clean", "deletable")
}

fn row(of: &ByteCounts, name: &str) -> String {
    format!("{:>14} {:>14} {:>14} {:>14}  {name}", of.dirty, of.pending, of.clean, of.deletable)
}

/// Bytes by state as JSON.
pub fn counts(of: &ByteCounts) -> Value {
    json!({
        "dirty": of.dirty, "pending": of.pending, "clean": of.clean, "deletable": of.deletable,
        "fragments": of.fragments, "groups": of.groups,
    })
}

/// Counts of both.
pub fn sum(a: &ByteCounts, b: &ByteCounts) -> ByteCounts {
    ByteCounts {
        dirty: a.dirty + b.dirty,
        pending: a.pending + b.pending,
        clean: a.clean + b.clean,
        deletable: a.deletable + b.deletable,
        end: a.end.max(b.end),
        fragments: a.fragments + b.fragments,
        groups: a.groups + b.groups,
    }
}
