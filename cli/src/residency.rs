//! `sync`, `prestage`, `purge`, `pin`, `unpin`: many files at a time, with progress.

use std::cell::Cell;

use bb_client::Error;
use bb_proto::meta::Residency;
use futures_util::stream::{self, StreamExt};
use serde_json::json;

use crate::arguments::{Command, Residence, Winner};
use crate::output;
use crate::progress::Progress;
use crate::session::Session;
use crate::side::join;
use crate::tree::{self, Kind};

/// Operations that are waited for at the same time.
const OPERATIONS_IN_FLIGHT: usize = 64;

/// Carries out the command; the answer is the number of failures.
pub async fn run(session: &Session, command: &Command) -> u64 {
    let (what, residency, arguments) = match command {
        Command::Sync(r) => ("sync", Residency::Sync, r),
        Command::Prestage(r) => ("prestage", Residency::Prestage, r),
        Command::Purge(p) if p.dirty => ("purge", Residency::PurgeDirty, &p.residence),
        Command::Purge(p) => ("purge", Residency::Purge, &p.residence),
        Command::Pin(r) => ("pin", Residency::Pin, r),
        Command::Unpin(r) => ("unpin", Residency::Unpin, r),
        _ => return 0,
    };
    let job = Job {
        session,
        arguments,
        residency,
        progress: Progress::bytes(what),
        bytes: Cell::new(0),
        files: Cell::new(0),
    };
    let mut paths = Vec::new();
    for root in session.paths(&arguments.paths) {
        let entries = tree::in_buffer(session, &root, arguments.recursive, false).await;
        if !arguments.recursive && entries.first().is_some_and(|e| e.kind == Kind::Directory) {
            let shown = output::path(&root);
            session.complain(&format!("-r not specified; omitting directory '{shown}'"));
            continue;
        }
        paths.extend(entries.into_iter().filter(|e| e.kind == Kind::File).map(|entry| {
            if entry.relative.is_empty() { root.clone() } else { join(&root, &entry.relative) }
        }));
    }
    stream::iter(paths)
        .for_each_concurrent(OPERATIONS_IN_FLIGHT, async |path| {
            match job.one(&path).await {
                Ok(()) => job.files.set(job.files.get() + 1),
                Err(error) => {
                    job.progress.above(|| session.complain_of(what, &path, &error));
                }
            }
            job.progress.say(format!("{} files", job.files.get()));
        })
        .await;
    if session.json {
        let line = json!({
            "operation": what, "files": job.files.get(), "bytes": job.bytes.get(),
            "failed": session.failures(), "seconds": session.seconds(),
        });
        println!("{line}");
    }
    session.failures()
}

struct Job<'a> {
    session: &'a Session,
    arguments: &'a Residence,
    residency: Residency,
    progress: Progress,
    bytes: Cell<u64>,
    files: Cell<u64>,
}

impl Job<'_> {
    async fn one(&self, path: &[u8]) -> Result<(), Error> {
        // Dropping what exists nowhere else is a change of the file; so is one side's victory.
        let changes = self.residency == Residency::PurgeDirty || self.arguments.force.is_some();
        let flags = if changes { libc::O_RDWR } else { libc::O_RDONLY };
        let file = self.session.client.open(path, flags, 0).await?;
        let done = self.operate(&file).await;
        let closed = file.close().await;
        done.and(closed)
    }

    async fn operate(&self, file: &bb_client::File) -> Result<(), Error> {
        let force = match self.arguments.force {
            None => 0,
            Some(Winner::Buffer) => 1,
            Some(Winner::Backing) => 2,
        };
        let operation = file.start(self.residency, 0, 0, force).await?;
        if self.arguments.no_wait {
            return Ok(());
        }
        let (mut total, mut done) = (0, 0);
        let tell = |state: &bb_proto::meta::OperationState| {
            self.progress.more(state.bytes_total.saturating_sub(total));
            self.progress.done(state.bytes_done.saturating_sub(done));
            total = total.max(state.bytes_total);
            done = done.max(state.bytes_done);
        };
        let end = operation.wait(tell).await?;
        self.bytes.set(self.bytes.get() + end.bytes_done);
        Ok(())
    }
}
