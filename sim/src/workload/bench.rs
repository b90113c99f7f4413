//! What all clients of a run share: the model, the names, the log of operations, the verdict.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bb_client::Error;
use bb_proto::Code;
use bb_runtime::{Instant, Rt};

use super::names::Names;
use crate::bfs::BfsFault;
use crate::family::Family;
use crate::model::{Actor, Model, Moment, Violation};
use crate::world::World;

/// Lines of the operation log that are kept.
const LOG_LINES: usize = 400;
/// How long maps may be used again by the client.
const MAP_AGE: Duration = Duration::from_secs(1);

/// What somebody else wrote, and when.
pub type Outside = (Moment, Vec<u8>);

/// Shared by all tasks of a run.
pub struct Bench {
    /// The world.
    pub world: Rc<World>,
    /// The family.
    pub family: Family,
    /// Judge of bytes and sizes.
    pub model: RefCell<Model>,
    /// Judge of names of files.
    pub names: Names,
    /// Judge of names of directories.
    pub dirs: Names,
    /// Contents of files that are changed from outside only: versions since when.
    pub outside: RefCell<BTreeMap<usize, Vec<Outside>>>,
    /// Records appended to a file: number, and whether acknowledged as durable.
    pub appended: RefCell<BTreeMap<u64, bool>>,
    /// Operations still to be begun.
    pub left: Cell<u64>,
    /// Operations ended.
    pub ended: Cell<u64>,
    /// Operations by what they were and how they ended.
    pub outcomes: RefCell<BTreeMap<(&'static str, &'static str), u64>>,
    /// What must not happen, and did.
    pub violations: RefCell<Vec<String>>,
    next_file: Cell<u64>,
    moments: RefCell<VecDeque<(Instant, Moment)>>,
    log: RefCell<VecDeque<String>>,
    verbose: bool,
    /// A violation was seen.
    pub decided: bb_runtime::sync::Notify,
}

impl Bench {
    /// For a run of `operations`.
    pub fn new(world: &Rc<World>, operations: u64, verbose: bool) -> Rc<Self> {
        let family = world.setup.family;
        let model =
            if family.fills_up() { Model::with_writes_that_fail() } else { Model::default() };
        Rc::new(Self {
            world: world.clone(),
            family,
            model: RefCell::new(model),
            names: Names::default(),
            dirs: Names::default(),
            outside: RefCell::default(),
            appended: RefCell::default(),
            left: Cell::new(operations),
            ended: Cell::new(0),
            outcomes: RefCell::default(),
            violations: RefCell::default(),
            next_file: Cell::new(0),
            moments: RefCell::default(),
            log: RefCell::default(),
            verbose,
            decided: bb_runtime::sync::Notify::new(),
        })
    }

    /// The world's runtime.
    pub fn rt(&self) -> &Rt {
        &self.world.rt
    }

    /// A number for a new file.
    pub fn new_file(&self) -> u64 {
        self.next_file.set(self.next_file.get() + 1);
        self.next_file.get()
    }

    /// The next moment.
    pub fn tick(&self) -> Moment {
        let moment = self.model.borrow_mut().tick();
        let mut moments = self.moments.borrow_mut();
        moments.push_back((self.rt().now(), moment));
        moment
    }

    /// The last moment that lies so far back that no client remembers anything older.
    pub fn forgotten(&self) -> Moment {
        let now = self.rt().now();
        let mut moments = self.moments.borrow_mut();
        let old = |entry: &(Instant, Moment)| now.since(entry.0) > MAP_AGE;
        while moments.get(1).is_some_and(old) {
            moments.pop_front();
        }
        moments.front().filter(|entry| old(entry)).map_or_else(Moment::default, |entry| entry.1)
    }

    /// Writes a line of the operation log.
    pub fn note(&self, text: impl FnOnce() -> String) {
        let now = self.rt().now().as_nanos();
        let line = format!("{:>4}.{:06} {}", now / 1_000_000_000, now / 1_000 % 1_000_000, text());
        if self.verbose {
            println!("{line}");
        }
        let mut log = self.log.borrow_mut();
        if log.len() >= LOG_LINES {
            log.pop_front();
        }
        log.push_back(line);
    }

    /// The last lines of the operation log.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let log = self.log.borrow();
        log.iter().skip(log.len().saturating_sub(count)).cloned().collect()
    }

    /// Something that must not happen. The run ends soon after the first.
    pub fn violation(&self, text: String) {
        self.note(|| format!("VIOLATION {text}"));
        self.violations.borrow_mut().push(text);
        self.left.set(0);
        self.decided.notify_all();
    }

    /// True once the verdict is known.
    pub fn has_failed(&self) -> bool {
        !self.violations.borrow().is_empty()
    }

    /// Takes in the model's verdict.
    pub fn judge(&self, what: &str, who: Actor, verdict: Result<(), Violation>) {
        if let Err(violation) = verdict {
            self.violation(format!(
                "{what} by client {} of file {} at {}: {}",
                who.0, violation.file, violation.offset, violation.text
            ));
        }
    }

    /// Counts an operation that has ended.
    pub fn count(&self, what: &'static str, how: &'static str) {
        *self.outcomes.borrow_mut().entry((what, how)).or_default() += 1;
    }

    /// An operation that began at `begun` failed: counts it, and judges whether a fault explains
    /// that. `gone`: the file's name was removed, so that others may lose it.
    pub fn failed(
        &self,
        what: &'static str,
        who: Actor,
        begun: Instant,
        error: &Error,
        gone: bool,
    ) {
        self.note(|| format!("c{} {what} failed: {error}", who.0));
        let errno = error.errno();
        if errno == libc::ENOSPC {
            self.world.tally.borrow_mut().no_space += 1;
        }
        self.count(what, errno_name(errno));
        let permitted = match errno {
            libc::ENOSPC | libc::ETIMEDOUT => self.family.fills_up(),
            libc::ESTALE => gone,
            _ => false,
        };
        if !permitted && !self.bfs_explains(begun, error) {
            self.violation(format!("{what} by client {} failed: {error} ({errno})", who.0));
        }
    }

    /// True if the backing file system gave this answer to somebody since then, or was away. While
    /// it is away the server says that, and not what lies beneath (rule 11); only where it came back
    /// between a call and the look for the marker, the call's answer stands. (A real server resolves
    /// names beneath a root that it holds, so that nothing beneath the mount can answer.)
    fn bfs_explains(&self, begun: Instant, error: &Error) -> bool {
        let met = |fault| self.world.bfs.has_met(fault, begun);
        let came_back = met(BfsFault::Unmounted) && met(BfsFault::CameBack);
        match error {
            Error::Lost(_) | Error::Protocol(_) => false,
            error if error.is(Code::BfsUnavailable) => met(BfsFault::Unmounted),
            error => match error.errno() {
                libc::EIO => met(BfsFault::IoError),
                libc::ENOENT => met(BfsFault::Race) || came_back,
                libc::ESTALE => came_back,
                libc::ENOSPC => met(BfsFault::NoSpace),
                _ => false,
            },
        }
    }
}

/// Name of an error number, for counts.
pub fn errno_name(errno: i32) -> &'static str {
    match errno {
        libc::ENOSPC => "ENOSPC",
        libc::EIO => "EIO",
        libc::ENOENT => "ENOENT",
        libc::EEXIST => "EEXIST",
        libc::ESTALE => "ESTALE",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ECANCELED => "ECANCELED",
        libc::ENOTEMPTY => "ENOTEMPTY",
        _ => "another error",
    }
}
