//! Who has which file open. In memory only: after a restart clients show it again with their next
//! request about the file, and until the grace is over each file counts as open (rule 8).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use bb_proto::{Fid, Rights, SessionId};
use bb_runtime::Instant;
use bb_runtime::sync::{Permit, Semaphore};

/// One open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Open {
    /// Whose.
    pub session: SessionId,
    /// What for.
    pub rights: Rights,
}

/// The opens of the files whose records this node has.
#[derive(Default)]
pub struct Opens {
    files: RefCell<BTreeMap<Fid, BTreeMap<u64, Open>>>,
    grace_until: std::cell::Cell<Instant>,
}

impl Opens {
    /// None is known yet; until `grace_until` each file counts as open.
    pub fn new(grace_until: Instant) -> Self {
        Self { files: RefCell::default(), grace_until: std::cell::Cell::new(grace_until) }
    }

    /// When the grace ends.
    pub const fn grace_until(&self) -> Instant {
        self.grace_until.get()
    }

    /// Adds one, or shows it again.
    pub fn add(&self, fid: Fid, open_id: u64, open: Open) {
        self.files.borrow_mut().entry(fid).or_default().insert(open_id, open);
    }

    /// A number for a new one.
    pub fn is_used(&self, fid: Fid, open_id: u64) -> bool {
        self.files.borrow().get(&fid).is_some_and(|opens| opens.contains_key(&open_id))
    }

    /// Ends one.
    pub fn remove(&self, fid: Fid, open_id: u64) {
        let mut files = self.files.borrow_mut();
        if let Some(opens) = files.get_mut(&fid) {
            opens.remove(&open_id);
            if opens.is_empty() {
                files.remove(&fid);
            }
        }
    }

    /// True if somebody has the file open, or may have.
    pub fn is_open(&self, fid: Fid, now: Instant) -> bool {
        now < self.grace_until.get() || self.files.borrow().contains_key(&fid)
    }

    /// Ends a session's opens of the files that are `here`; gives the files, and whether any was
    /// for writing.
    pub fn end_session(&self, session: SessionId, here: impl Fn(Fid) -> bool) -> Vec<(Fid, bool)> {
        let mut ended = Vec::new();
        self.files.borrow_mut().retain(|fid, opens| {
            let mine = opens.values().filter(|open| open.session == session);
            let rights: Vec<Rights> = mine.map(|open| open.rights).collect();
            if !rights.is_empty() && here(*fid) {
                ended.push((*fid, rights.iter().any(|rights| rights.allows(Rights::WRITE))));
                opens.retain(|_, open| open.session != session);
            }
            !opens.is_empty()
        });
        ended
    }
}

/// One operation at a time for each file, where the order matters.
#[derive(Default)]
pub struct FileLocks {
    locks: RefCell<BTreeMap<Fid, Weak<Semaphore>>>,
}

/// Held while an operation works on a file.
pub struct FileLock {
    _permit: Permit,
    _semaphore: Rc<Semaphore>,
}

impl FileLocks {
    /// Waits for a file's turn.
    pub async fn lock(&self, fid: Fid) -> FileLock {
        let semaphore = {
            let mut locks = self.locks.borrow_mut();
            if let Some(semaphore) = locks.get(&fid).and_then(Weak::upgrade) {
                semaphore
            } else {
                locks.retain(|_, lock| lock.strong_count() > 0);
                let semaphore = Rc::new(Semaphore::new(1));
                locks.insert(fid, Rc::downgrade(&semaphore));
                semaphore
            }
        };
        FileLock { _permit: semaphore.acquire(1).await, _semaphore: semaphore }
    }
}
