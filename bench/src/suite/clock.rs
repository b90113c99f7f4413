//! Time, and Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From here on SIGINT, SIGTERM and SIGHUP are noted, and every wait ends.
pub fn watch_signals() {
    let handler = note as extern "C" fn(libc::c_int) as usize;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which may be done in a signal handler.
        unsafe { libc::signal(signal, handler) };
    }
}

/// Fails once somebody wants us to end.
///
/// # Errors
/// After a signal.
pub fn check() -> Result<(), String> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err("interrupted".to_owned()) } else { Ok(()) }
}

/// Now.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Between two looks at a process.
#[expect(clippy::disallowed_methods, reason = "a benchmark waits for processes")]
pub fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Looks until `good` holds, an error comes, or the time is over.
///
/// # Errors
/// Of `good`, of a signal, and after so many seconds.
pub fn wait(
    what: &str,
    seconds: u64,
    mut good: impl FnMut() -> Result<bool, String>,
) -> Result<(), String> {
    let start = now();
    while !good()? {
        check()?;
        if start.elapsed().as_secs() >= seconds {
            return Err(format!("{what}: not within {seconds} s"));
        }
        pause(20);
    }
    Ok(())
}
