//! Deliberate errors, one at a time, that the tests must find. Not in any build that serves.

#[cfg(not(debug_assertions))]
compile_error!(
    "the feature `planted` breaks the server on purpose: only for builds with debug assertions"
);

use std::cell::Cell;

thread_local! {
    static SEND_BEFORE_PERSIST: Cell<bool> = const { Cell::new(false) };
    static BARRIER_WITHOUT_QUORUM: Cell<bool> = const { Cell::new(false) };
    static FORGET_VOTE: Cell<bool> = const { Cell::new(false) };
}

/// On this thread, answers leave before what they promise is durable: a crash takes back an
/// acknowledged entry, or a vote.
pub fn send_before_persist(on: bool) {
    SEND_BEFORE_PERSIST.set(on);
}

/// On this thread, a leader believes that it still is one.
pub fn barrier_without_quorum(on: bool) {
    BARRIER_WITHOUT_QUORUM.set(on);
}

/// On this thread, term and vote are not written unless entries go with them: a voter that restarts
/// votes again in the same term.
pub fn forget_vote(on: bool) {
    FORGET_VOTE.set(on);
}

pub(crate) fn sends_before_persist() -> bool {
    SEND_BEFORE_PERSIST.get()
}

pub(crate) fn barriers_without_quorum() -> bool {
    BARRIER_WITHOUT_QUORUM.get()
}

pub(crate) fn forgets_vote() -> bool {
    FORGET_VOTE.get()
}
