//! One fsync of a directory for all who wait for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::bfs::BfsError;

/// What is made durable, by device and inode.
pub(super) type Id = ((u32, u32), u64);

/// Who is under way, for each directory that anybody waits for.
#[derive(Default)]
pub(super) struct Turns {
    all: Mutex<BTreeMap<Id, Arc<Turn>>>,
}

#[derive(Default)]
struct Turn {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Turns that have begun, and that have ended: one at a time.
    begun: u64,
    ended: u64,
    /// The last that failed, and how.
    failed: Option<(u64, BfsError)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// Returns once a call of `sync` that began after this one has ended. Of those who wait for the
    /// same `id`, one makes the call.
    ///
    /// # Errors
    /// Those of that call, or of a later one.
    pub fn sync(&self, id: Id, sync: impl Fn() -> Result<(), BfsError>) -> Result<(), BfsError> {
        let turn = lock(&self.all).entry(id).or_default().clone();
        let result = turn.wait(sync);
        let mut all = lock(&self.all);
        // Under the lock, so that the last one to leave sees that it is.
        drop(turn);
        if all.get(&id).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            all.remove(&id);
        }
        result
    }
}

impl Turn {
    fn wait(&self, sync: impl Fn() -> Result<(), BfsError>) -> Result<(), BfsError> {
        let mut state = lock(&self.state);
        let mine = state.begun + 1;
        while state.ended < mine {
            if state.begun > state.ended {
                state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.begun += 1;
            let number = state.begun;
            drop(state);
            let result = sync();
            state = lock(&self.state);
            state.ended = number;
            if let Err(error) = result {
                state.failed = Some((number, error));
            }
            self.ended.notify_all();
        }
        match &state.failed {
            Some((number, error)) if *number >= mine => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    const ID: Id = ((8, 1), 7);

    /// What a call takes.
    fn pause(time: Duration) {
        let nothing = Mutex::new(());
        drop(Condvar::new().wait_timeout(lock(&nothing), time));
    }

    #[test]
    fn what_was_there_before_a_call_began_is_durable_when_it_returns_and_many_share_one() {
        let turns = Turns::default();
        // What is there, what the last fsync found there, and fsyncs.
        let (there, durable, calls) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let one = || {
            for _ in 0..50 {
                let mine = there.fetch_add(1, Ordering::SeqCst) + 1;
                let sync = || {
                    let found = there.load(Ordering::SeqCst);
                    pause(Duration::from_micros(200));
                    calls.fetch_add(1, Ordering::SeqCst);
                    durable.store(found, Ordering::SeqCst);
                    Ok(())
                };
                turns.sync(ID, sync).expect("syncs");
                assert!(durable.load(Ordering::SeqCst) >= mine);
            }
        };
        thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(one))));
        assert!(calls.into_inner() < 8 * 50, "calls are shared");
        assert!(lock(&turns.all).is_empty(), "nothing is left behind");
    }

    #[test]
    fn an_error_reaches_everybody_who_waited_for_it_and_nobody_who_came_later() {
        let turns = Turns::default();
        let begun = AtomicU64::new(0);
        let failing = || {
            begun.fetch_add(1, Ordering::SeqCst);
            pause(Duration::from_millis(5));
            Err(BfsError::Errno(libc::EIO))
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| turns.sync(ID, failing))).collect();
            for thread in threads {
                thread.join().expect("no panic").expect_err("all fail");
            }
        });
        assert!(begun.into_inner() <= 6);
        turns.sync(ID, || Ok(())).expect("a later one is its own");
    }
}
