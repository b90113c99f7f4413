//! One log line for a misbehaving peer, and not more than one per address and interval.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bb_runtime::{Instant, Rt};

const INTERVAL: Duration = Duration::from_secs(10);
/// Beyond so many addresses within the interval nothing is logged: a flood must not fill memory.
const ADDRESSES_MAX: usize = 1024;

struct Entry {
    logged: Instant,
    suppressed: u64,
}

/// What is known of misbehaving peers. Clones share it: a process has one, whatever the number of
/// its reactors, so that a peer cannot have a line from each.
#[derive(Clone, Default)]
pub struct Complaints {
    shared: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Arc<str>, Entry>,
    total: u64,
    lines: u64,
}

impl State {
    /// Counts a complaint about `remote`. How many were swallowed since its last line, where it is
    /// time for another one.
    fn note(&mut self, now: Instant, remote: &str) -> Option<u64> {
        self.total += 1;
        if self.entries.len() >= ADDRESSES_MAX {
            self.entries.retain(|_, entry| now.since(entry.logged) < INTERVAL);
        }
        let full = self.entries.len() >= ADDRESSES_MAX;
        let suppressed = match self.entries.get_mut(remote) {
            Some(entry) if now.since(entry.logged) < INTERVAL => {
                entry.suppressed += 1;
                return None;
            }
            Some(entry) => {
                entry.logged = now;
                std::mem::take(&mut entry.suppressed)
            }
            None if full => return None,
            None => {
                self.entries.insert(remote.into(), Entry { logged: now, suppressed: 0 });
                0
            }
        };
        self.lines += 1;
        Some(suppressed)
    }
}

impl Complaints {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs that the connection from `remote` was closed because of `why`.
    pub(crate) fn closed(&self, rt: &Rt, remote: &str, why: &dyn fmt::Display) {
        let noted = self.lock().note(rt.now(), remote);
        if let Some(suppressed) = noted {
            tracing::warn!(%remote, reason = %why, suppressed, "closed a connection: bad peer");
        }
    }

    /// Connections closed for misbehaviour, and lines logged about them.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.total, state.lines)
    }
}
