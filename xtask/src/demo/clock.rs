//! Time, and Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From here on SIGINT and SIGTERM are noted, and every wait of the demo ends.
pub fn watch_signals() {
    let handler = note as extern "C" fn(libc::c_int) as usize;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which may be done in a signal handler.
        unsafe { libc::signal(signal, handler) };
    }
}

/// Whether somebody wants us to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Fails once somebody wants us to end.
pub fn check() -> Result<(), String> {
    if interrupted() { Err("by a signal".to_owned()) } else { Ok(()) }
}

/// Now.
#[expect(clippy::disallowed_methods, reason = "a developer's tool measures real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Between two looks at a process.
#[expect(clippy::disallowed_methods, reason = "a developer's tool waits for processes")]
pub fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
