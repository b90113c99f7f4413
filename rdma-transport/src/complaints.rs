//! One log line for a misbehaving peer, and not more than one per address and interval.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::{Instant, Rt};

const INTERVAL: Duration = Duration::from_secs(10);
/// Beyond so many addresses within the interval nothing is logged: a flood must not fill memory.
const ADDRESSES_MAX: usize = 1024;

struct Entry {
    logged: Instant,
    suppressed: u64,
}

#[derive(Default)]
pub(crate) struct Complaints {
    entries: RefCell<BTreeMap<Rc<str>, Entry>>,
    total: std::cell::Cell<u64>,
    lines: std::cell::Cell<u64>,
}

impl Complaints {
    /// Logs that the connection from `remote` was closed because of `why`.
    pub(crate) fn closed(&self, rt: &Rt, remote: &Rc<str>, why: &dyn fmt::Display) {
        self.total.set(self.total.get() + 1);
        let now = rt.now();
        let suppressed = {
            let mut entries = self.entries.borrow_mut();
            if entries.len() >= ADDRESSES_MAX {
                entries.retain(|_, entry| now.since(entry.logged) < INTERVAL);
            }
            let full = entries.len() >= ADDRESSES_MAX;
            match entries.get_mut(remote) {
                Some(entry) if now.since(entry.logged) < INTERVAL => {
                    entry.suppressed += 1;
                    return;
                }
                Some(entry) => {
                    entry.logged = now;
                    std::mem::take(&mut entry.suppressed)
                }
                None if full => return,
                None => {
                    entries.insert(remote.clone(), Entry { logged: now, suppressed: 0 });
                    0
                }
            }
        };
        self.lines.set(self.lines.get() + 1);
        tracing::warn!(%remote, reason = %why, suppressed, "closed a connection: bad peer");
    }

    /// Connections closed for misbehaviour, and lines logged about them.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.total.get(), self.lines.get())
    }
}
