//! `bbctl cp`: what goes where, directories first, then files, many at a time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
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

/// One source: what it consists of, and where it goes.
struct Tree<'s> {
    source: &'s Side,
    destination: Side,
    entries: Vec<Entry>,
}

impl Tree<'_> {
    fn of(&self, kind: Kind) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.kind == kind)
    }
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
    /// Directories that `--parents` made.
    ways: RefCell<BTreeSet<Side>>,
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
        ways: RefCell::default(),
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
    let mut trees = Vec::new();
    for source in &plan.sources {
        if let Some(destination) = copy.destination_of(source, plan, into).await {
            trees.extend(copy.find(source, destination).await);
        }
    }
    copy.trees(&trees).await;
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

    /// Where a source goes. Nothing if the way there can't be made.
    async fn destination_of(&self, source: &Side, plan: &Plan, into: bool) -> Option<Side> {
        match (into, source.name()) {
            (true, Some(name)) if plan.options.parents => {
                let above = source.above();
                let made = self.make_way(&plan.destination, &above).await;
                made.then(|| plan.destination.join(&above).join(&name))
            }
            (true, Some(name)) => Some(plan.destination.join(&name)),
            _ => Some(plan.destination.clone()),
        }
    }

    /// What a source consists of.
    async fn find<'s>(&self, source: &'s Side, destination: Side) -> Option<Tree<'s>> {
        let before = self.session.failures();
        let entries = self.walk(source).await;
        if self.session.failures() == before
            && !self.options.recursive
            && entries.first().is_some_and(|root| root.kind == Kind::Directory)
        {
            self.complain(format!("-r not specified; omitting directory '{}'", source.shown()));
            return None;
        }
        let tree = Tree { source, destination, entries };
        let sizes = tree.of(Kind::File).filter_map(|entry| entry.attributes);
        self.progress.more(sizes.map(|facts| facts.size).sum());
        for link in tree.of(Kind::Link).chain(tree.of(Kind::Other)) {
            self.skipped.set(self.skipped.get() + 1);
            if link.relative.is_empty() {
                self.complain(format!("'{}' is not a regular file", source.shown()));
            }
        }
        Some(tree)
    }

    /// Copies all of them at the same time: many small sources are as fast as a large one.
    async fn trees(&self, trees: &[Tree<'_>]) {
        let all = |kind| trees.iter().flat_map(move |tree| tree.of(kind).map(move |e| (tree, e)));
        let mut directories: Vec<(Side, &Entry)> = all(Kind::Directory)
            .map(|(tree, entry)| (tree.destination.join(&entry.relative), entry))
            .collect();
        directories.sort_by_key(|(at, _)| at.depth());
        let levels: Vec<_> =
            directories.chunk_by(|(a, _), (b, _)| a.depth() == b.depth()).collect();
        for level in &levels {
            self.make_directories(level).await;
        }
        let mut taken = BTreeSet::new();
        let files = all(Kind::File).filter(|(tree, entry)| {
            let to = tree.destination.join(&entry.relative);
            // One source can't name a file twice.
            let free = trees.len() == 1 || taken.insert(to.clone());
            if !free {
                let (from, to) = (tree.source.join(&entry.relative).shown(), to.shown());
                self.complain(format!("will not overwrite just-created '{to}' with '{from}'"));
            }
            free
        });
        stream::iter(files)
            .for_each_concurrent(self.options.jobs, async |(tree, entry)| {
                self.file(entry, tree.source, &tree.destination).await;
            })
            .await;
        if self.options.preserve {
            // Making children changes their parent's time, and a parent may become one that
            // nobody passes: at the end, and the deepest first.
            for level in levels.iter().rev() {
                stream::iter(level.iter())
                    .for_each_concurrent(NAMES_IN_FLIGHT, async |(at, entry)| {
                        self.finish_directory(entry, at).await;
                    })
                    .await;
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
            if !self.ways.borrow_mut().insert(at.clone()) {
                continue;
            }
            if let Err(why) = self.make_directory(&at, 0o755).await {
                self.complain(format!("cannot create directory '{}': {why}", at.shown()));
                return false;
            }
        }
        true
    }

    /// Makes directories that are equally deep.
    async fn make_directories(&self, level: &[(Side, &Entry)]) {
        stream::iter(level)
            .for_each_concurrent(NAMES_IN_FLIGHT, async |(at, entry)| {
                let mode = entry.attributes.map_or(0o755, |facts| facts.mode);
                match self.make_directory(at, mode).await {
                    Ok(()) => self.directories.set(self.directories.get() + 1),
                    Err(why) => {
                        self.complain(format!("cannot create directory '{}': {why}", at.shown()));
                    }
                }
            })
            .await;
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

    async fn finish_directory(&self, entry: &Entry, at: &Side) {
        let Some(facts) = entry.attributes else { return };
        let result = match at {
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
