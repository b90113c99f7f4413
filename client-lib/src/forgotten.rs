//! Files that were forgotten while something was asked about them.
//!
//! An answer shows a file as the server had it at some time after the question. What this client
//! wrote before the question, and had not written back by then, is added from the file's
//! [`Node`](crate::node::Node). Where the file was written back, closed and forgotten before the
//! answer came, there is nothing to add it from, and the answer may be older than the writing: it
//! has to be asked for again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bb_proto::Fid;
use bb_runtime::Instant;

/// Files forgotten since the oldest question under way was asked.
#[derive(Default)]
pub(crate) struct Forgotten(RefCell<Table>);

#[derive(Default)]
struct Table {
    /// Times of the questions under way, and how many have that time.
    asked: BTreeMap<Instant, u32>,
    at: BTreeMap<Fid, Instant>,
    by_time: BTreeSet<(Instant, Fid)>,
}

impl Forgotten {
    /// A question is asked `now`; until the guard goes, what is forgotten is remembered for it.
    pub fn asking(&self, now: Instant) -> Asking<'_> {
        *self.0.borrow_mut().asked.entry(now).or_default() += 1;
        Asking { table: &self.0, asked: now }
    }

    /// A file is forgotten `now`.
    pub fn forget(&self, fid: Fid, now: Instant) {
        let mut table = self.0.borrow_mut();
        if table.asked.is_empty() {
            return;
        }
        if let Some(before) = table.at.insert(fid, now) {
            table.by_time.remove(&(before, fid));
        }
        table.by_time.insert((now, fid));
    }
}

/// A question under way.
pub(crate) struct Asking<'a> {
    table: &'a RefCell<Table>,
    asked: Instant,
}

impl Asking<'_> {
    /// True if the file was forgotten after the question was asked, or at the same time.
    pub fn was_forgotten(&self, fid: Fid) -> bool {
        self.table.borrow().at.get(&fid).is_some_and(|at| *at >= self.asked)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let table = &mut *self.table.borrow_mut();
        let others = table.asked.get_mut(&self.asked).expect("counted when it was asked");
        *others -= 1;
        if *others > 0 {
            return;
        }
        table.asked.remove(&self.asked);
        let oldest = table.asked.keys().next().copied();
        while let Some((at, fid)) = table.by_time.first().copied()
            && oldest.is_none_or(|oldest| at < oldest)
        {
            table.by_time.pop_first();
            table.at.remove(&fid);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_question_learns_of_what_was_forgotten_since_and_of_nothing_before() {
        let (old, new) = (Fid(1), Fid(2));
        let forgotten = Forgotten::default();
        let first = forgotten.asking(at(1));
        forgotten.forget(old, at(2));
        let second = forgotten.asking(at(3));
        forgotten.forget(new, at(3));
        assert!(first.was_forgotten(old) && first.was_forgotten(new));
        assert!(!second.was_forgotten(old) && second.was_forgotten(new));
        // Again: the last time counts.
        forgotten.forget(old, at(4));
        assert!(second.was_forgotten(old));
    }

    #[test]
    fn nothing_is_kept_that_no_question_under_way_can_be_older_than() {
        let forgotten = Forgotten::default();
        forgotten.forget(Fid(1), at(0));
        assert!(forgotten.0.borrow().at.is_empty());
        let mut last = forgotten.asking(at(1));
        // Questions overlap for ever, as those of a busy program do.
        for second in 2..100 {
            forgotten.forget(Fid(second.into()), at(second));
            last = forgotten.asking(at(second));
            assert!(forgotten.0.borrow().at.len() <= 2);
        }
        drop(last);
        let table = forgotten.0.borrow();
        assert!(table.at.is_empty() && table.by_time.is_empty() && table.asked.is_empty());
    }
}
