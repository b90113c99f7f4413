//! fork(2): the child finds the locks free, and nothing of the parent's connection.
//!
//! Before a fork the library's two locks are taken, so that no other thread leaves them held in a
//! child in which it does not exist. Both are held for moments only, so this does not delay anybody.

use std::cell::UnsafeCell;
use std::sync::{MutexGuard, Once, RwLockWriteGuard};

use crate::library::{self, State};
use crate::table::{self, Table};

type Held = (RwLockWriteGuard<'static, Table>, MutexGuard<'static, State>);

/// Between the two handlers of one fork. Only the thread that holds the locks touches it.
struct Between(UnsafeCell<Option<Held>>);

// SAFETY: written and read only by the thread that holds the lock on the table, as its guard is
// made and before it is dropped.
unsafe impl Sync for Between {}

static BETWEEN: Between = Between(UnsafeCell::new(None));

/// From now on forks are seen.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: three functions of the right kind, which live as long as the library.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
}

unsafe extern "C" fn before() {
    // In this order everywhere.
    let held = (table::lock(), library::state());
    // SAFETY: this thread holds the lock on the table.
    unsafe { *BETWEEN.0.get() = Some(held) };
}

unsafe extern "C" fn in_parent() {
    // SAFETY: this thread still holds the lock.
    drop(unsafe { (*BETWEEN.0.get()).take() });
}

unsafe extern "C" fn in_child() {
    // SAFETY: this is the only thread, and it holds the lock as its original does in the parent.
    let held = unsafe { (*BETWEEN.0.get()).take() };
    if let Some((mut table, mut state)) = held {
        library::forget_parent(&mut state);
        table.forget_parent();
    }
}
