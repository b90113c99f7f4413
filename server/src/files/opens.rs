//! Who has which file open. In memory only: after a restart clients show it again with their next
//! request about the file, and until the grace is over each file counts as open (rule 8).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bb_proto::{Fid, Rights, SessionId};
use bb_runtime::Instant;
use bb_runtime::sync::{Permit, Semaphore};

/// How long the end of a session is remembered: much longer than a request of it can be under way
/// between servers, or wait for a file's turn. 32 bytes each.
const ENDED_KEPT: Duration = Duration::from_secs(3_600);

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
    /// Sessions that have ended, and when: an open of theirs that comes late would never end.
    ended: RefCell<BTreeMap<SessionId, Instant>>,
}

impl Opens {
    /// None is known yet; until `grace_until` each file counts as open.
    pub fn new(grace_until: Instant) -> Self {
        let (files, ended) = (RefCell::default(), RefCell::default());
        Self { files, grace_until: std::cell::Cell::new(grace_until), ended }
    }

    /// Clients of a partition that is served from now on need time to show their opens: until then each
    /// file counts as open again.
    pub fn begin_grace(&self, until: Instant) {
        self.grace_until.set(self.grace_until.get().max(until));
    }

    /// Forgets the opens of files.
    pub fn forget(&self, which: impl Fn(Fid) -> bool) {
        self.files.borrow_mut().retain(|fid, _| !which(*fid));
    }

    /// When the grace ends.
    pub const fn grace_until(&self) -> Instant {
        self.grace_until.get()
    }

    /// Adds one, or shows it again. False if its session has ended.
    #[must_use]
    pub fn add(&self, fid: Fid, open_id: u64, open: Open) -> bool {
        if self.ended.borrow().contains_key(&open.session) {
            return false;
        }
        self.files.borrow_mut().entry(fid).or_default().insert(open_id, open);
        true
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
        now < self.grace_until.get() || self.is_known(fid)
    }

    /// True if an open of the file is known.
    pub fn is_known(&self, fid: Fid) -> bool {
        self.files.borrow().contains_key(&fid)
    }

    /// Ends a session's opens of the files that are `here`; gives the files, and whether any was
    /// for writing.
    pub fn end_session(
        &self,
        session: SessionId,
        now: Instant,
        here: impl Fn(Fid) -> bool,
    ) -> Vec<(Fid, bool)> {
        let mut sessions = self.ended.borrow_mut();
        sessions.retain(|_, at| now.since(*at) < ENDED_KEPT);
        sessions.insert(session, now);
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

#[cfg(test)]
mod tests {
    use super::*;

    const FID: Fid = Fid(7);

    fn open(session: u64) -> Open {
        Open { session: SessionId(session), rights: Rights::READ }
    }

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn rule_8_an_open_that_comes_after_the_end_of_its_session_keeps_no_file() {
        let opens = Opens::new(at(0));
        assert!(opens.add(FID, 1, open(1)));
        assert!(opens.add(FID, 2, open(2)));
        assert_eq!(opens.end_session(SessionId(1), at(10), |_| true), [(FID, false)]);
        assert!(!opens.add(FID, 1, open(1)), "shown again");
        assert!(!opens.add(FID, 3, open(1)), "a new one");
        assert!(opens.is_open(FID, at(10)), "the other session's");
        opens.remove(FID, 2);
        assert!(!opens.is_open(FID, at(10)));
    }
}
