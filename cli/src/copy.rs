//! `bbctl cp`: what goes where, directories first, then files, many at a time.

use std::cell::{Cell, RefCell};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bb_runtime::sync::Semaphore;
use futures_util::stream::{self, StreamExt};
use serde::Serialize;

use crate::arguments::Cp;
use crate::copy_file;
use crate::output::{bytes, client_error, local_error};
use crate::progress::Progress;
use crate::session::Session;
use crate::side::Side;
use crate::tree::{self, Entry, Facts, Kind, NAMES_IN_FLIGHT};

/// What to copy, checked.
pub struct Plan {
    sources: Vec<Side>,
    destination: Side,
    /// Settings.
    pub options: Options,
}

/// How to copy.
#[derive(Clone, Copy)]
pub struct Options {
    recursive: bool,
    dereference: bool,
    parents: bool,
    /// Permissions and times, too.
    pub preserve: bool,
    /// Durable before it counts.
    pub fsync: bool,
    jobs: usize,
}

/// What `--json` prints at the end.
#[derive(Serialize)]
struct Summary {
    files: u64,
    directories: u64,
    bytes: u64,
    skipped: u64,
    failed: u64,
    seconds: f64,
    bytes_per_second: f64,
    reconstructed_blocks: u64,
    /// Of the calls that wrote to the buffer.
    longest_call_seconds: f64,
    /// Time in which such calls waited and none was completed.
    longest_gap_seconds: f64,
    errors: Vec<String>,
}

/// One run of `cp`.
pub struct Copy<'a> {
    /// Connection.
    pub session: &'a Session,
    /// Settings.
    pub options: Options,
    /// For people.
    pub progress: Progress,
    /// Bytes that pieces of files may take.
    pub memory: Semaphore,
    files: Cell<u64>,
    directories: Cell<u64>,
    skipped: Cell<u64>,
    /// Bytes copied.
    pub bytes: Cell<u64>,
    errors: RefCell<Vec<String>>,
}

impl Plan {
    /// Checks what can be checked without looking.
    pub fn new(cp: &Cp) -> Result<Self, String> {
        let mut sides =
            cp.paths.iter().map(|text| Side::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let destination = sides.pop().ok_or("no destination")?;
        let local = |side: &Side| matches!(side, Side::Local(_));
        if local(&destination) && sides.iter().any(local) {
            return Err("source or destination must be in the buffer (bb:/path)".to_owned());
        }
        let options = Options {
            recursive: cp.recursive,
            dereference: cp.dereference,
            parents: cp.parents,
            preserve: cp.preserve,
            fsync: cp.fsync,
            jobs: usize::from(cp.jobs),
        };
        Ok(Self { sources: sides, destination, options })
    }
}

/// Copies; the answer is the number of failures.
pub async fn run(session: &Session, plan: &Plan) -> u64 {
    let copy = Copy {
        session,
        options: plan.options,
        progress: Progress::bytes("copy"),
        memory: Semaphore::new(copy_file::PIECES_BYTES_MAX),
        files: Cell::new(0),
        directories: Cell::new(0),
        skipped: Cell::new(0),
        bytes: Cell::new(0),
        errors: RefCell::default(),
    };
    let into = copy.is_directory(&plan.destination).await;
    if (plan.sources.len() > 1 || plan.options.parents) && !into {
        copy.complain(format!("target '{}' is not a directory", plan.destination.shown()));
        return session.failures();
    }
    for source in &plan.sources {
        let destination = match (into, source.name()) {
            (true, Some(name)) if plan.options.parents => {
                let above = source.above();
                if !copy.make_way(&plan.destination, &above).await {
                    continue;
                }
                plan.destination.join(&above).join(&name)
            }
            (true, Some(name)) => plan.destination.join(&name),
            _ => plan.destination.clone(),
        };
        copy.tree(source, &destination).await;
    }
    if session.json {
        copy.summarize();
    }
    session.failures()
}

impl Copy<'_> {
    /// Says what failed, and remembers it for the summary.
    pub fn complain(&self, text: String) {
        self.progress.above(|| self.session.complain(&text));
        self.errors.borrow_mut().push(text);
    }

    async fn is_directory(&self, side: &Side) -> bool {
        match side {
            Side::Local(path) => path.is_dir(),
            Side::Buffer(path) => {
                let attributes = self.session.client.stat(path).await;
                attributes.is_ok_and(|a| tree::kind_of_mode(a.mode) == Kind::Directory)
            }
        }
    }

    async fn tree(&self, source: &Side, destination: &Side) {
        let before = self.session.failures();
        let entries = self.walk(source).await;
        if self.session.failures() == before
            && !self.options.recursive
            && entries.first().is_some_and(|root| root.kind == Kind::Directory)
        {
            self.complain(format!("-r not specified; omitting directory '{}'", source.shown()));
            return;
        }
        let is = |kind: Kind| entries.iter().filter(move |entry| entry.kind == kind);
        let sizes = is(Kind::File).filter_map(|entry| entry.attributes).map(|facts| facts.size);
        self.progress.more(sizes.sum());
        for link in is(Kind::Link).chain(is(Kind::Other)) {
            self.skipped.set(self.skipped.get() + 1);
            if link.relative.is_empty() {
                self.complain(format!("'{}' is not a regular file", source.shown()));
            }
        }
        let mut directories: Vec<&Entry> = is(Kind::Directory).collect();
        directories.sort_by_key(|entry| entry.depth());
        self.make_directories(&directories, destination).await;
        stream::iter(is(Kind::File))
            .for_each_concurrent(self.options.jobs, async |entry| {
                self.file(entry, source, destination).await;
            })
            .await;
        if self.options.preserve {
            // Children change their parent's time: the deepest first.
            for entry in directories.iter().rev() {
                self.finish_directory(entry, destination).await;
            }
        }
        let skipped = self.skipped.get();
        if skipped > 0 && !self.session.json {
            self.progress.above(|| {
                eprintln!("{}: {skipped} links and special files skipped", self.session.program);
            });
        }
    }

    async fn walk(&self, source: &Side) -> Vec<Entry> {
        match source {
            Side::Buffer(path) => {
                tree::in_buffer(self.session, path, self.options.recursive, true).await
            }
            Side::Local(path) => {
                let (path, Options { recursive, dereference, .. }) = (path.clone(), self.options);
                let walk = move || Ok(tree::on_disk(&path, recursive, dereference));
                match self.session.local(walk).await {
                    Ok((entries, errors)) => {
                        errors.into_iter().for_each(|text| self.complain(text));
                        entries
                    }
                    Err(error) => {
                        self.complain(local_error(&error));
                        Vec::new()
                    }
                }
            }
        }
    }

    /// Makes the directories of `relative` below `root`.
    async fn make_way(&self, root: &Side, relative: &[u8]) -> bool {
        let ends = (1..=relative.len()).filter(|&end| relative.get(end).is_none_or(|b| *b == b'/'));
        for end in ends {
            let at = root.join(&relative[..end]);
            if let Err(why) = self.make_directory(&at, 0o755).await {
                self.complain(format!("cannot create directory '{}': {why}", at.shown()));
                return false;
            }
        }
        true
    }

    async fn make_directories(&self, directories: &[&Entry], destination: &Side) {
        for level in directories.chunk_by(|a, b| a.depth() == b.depth()) {
            stream::iter(level)
                .for_each_concurrent(NAMES_IN_FLIGHT, async |entry| {
                    let at = destination.join(&entry.relative);
                    let mode = entry.attributes.map_or(0o755, |facts| facts.mode);
                    match self.make_directory(&at, mode).await {
                        Ok(()) => self.directories.set(self.directories.get() + 1),
                        Err(why) => {
                            let shown = at.shown();
                            self.complain(format!("cannot create directory '{shown}': {why}"));
                        }
                    }
                })
                .await;
        }
    }

    async fn make_directory(&self, at: &Side, mode: u32) -> Result<(), String> {
        // Files must be made in it, whatever it becomes in the end.
        let mode = mode | 0o700;
        match at {
            Side::Buffer(path) => match self.session.client.mkdir(path, mode).await {
                Err(error) if error.errno() == libc::EEXIST && self.is_directory(at).await => {
                    Ok(())
                }
                other => other.map_err(|error| client_error(&error)),
            },
            Side::Local(path) => match std::fs::create_dir(path) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) && path.is_dir() => Ok(()),
                Err(error) => Err(local_error(&error)),
                Ok(()) => Ok(()),
            },
        }
    }

    async fn finish_directory(&self, entry: &Entry, destination: &Side) {
        let Some(facts) = entry.attributes else { return };
        let at = destination.join(&entry.relative);
        let result = match &at {
            Side::Buffer(path) => self.finish_in_buffer(path, &facts).await,
            Side::Local(path) => finish_locally(path, &facts),
        };
        if let Err(why) = result {
            self.complain(format!("cannot preserve attributes of '{}': {why}", at.shown()));
        }
    }

    async fn finish_in_buffer(&self, path: &[u8], facts: &Facts) -> Result<(), String> {
        let client = &self.session.client;
        let changed = client.chmod(path, facts.mode).await;
        changed.map_err(|error| client_error(&error))?;
        let timed = client.utimens(path, Some(facts.atime_ns), Some(facts.mtime_ns)).await;
        timed.map_err(|error| client_error(&error))
    }

    async fn file(&self, entry: &Entry, source: &Side, destination: &Side) {
        let Some(facts) = entry.attributes else { return };
        let (from, to) = (source.join(&entry.relative), destination.join(&entry.relative));
        match copy_file::copy(self, &from, &to, &facts).await {
            Ok(()) => self.files.set(self.files.get() + 1),
            Err(why) => self.complain(why),
        }
        self.progress.say(format!("{} files", self.files.get()));
    }

    fn summarize(&self) {
        let seconds = self.session.seconds();
        let count = self.bytes.get();
        let summary = Summary {
            files: self.files.get(),
            directories: self.directories.get(),
            bytes: count,
            skipped: self.skipped.get(),
            failed: self.session.failures(),
            seconds,
            bytes_per_second: copy_file::rate(count, seconds),
            reconstructed_blocks: self.session.client.reconstructed_blocks(),
            longest_call_seconds: self.session.pauses.longest_call().as_secs_f64(),
            longest_gap_seconds: self.session.pauses.longest_gap().as_secs_f64(),
            errors: self.errors.take(),
        };
        match serde_json::to_string(&summary) {
            Ok(line) => println!("{line}"),
            Err(error) => self.session.complain(&format!("{}: {error}", bytes(count))),
        }
    }
}

/// Permissions and times of a local file or directory.
pub fn finish_locally(path: &Path, facts: &Facts) -> Result<(), String> {
    let why = |error: std::io::Error| local_error(&error);
    let permissions = std::fs::Permissions::from_mode(facts.mode);
    std::fs::set_permissions(path, permissions).map_err(why)?;
    copy_file::set_times(path, facts).map_err(why)
}
