//! The system's clocks.

use crate::time::{Instant, WallTime};

fn read(clock: libc::clockid_t) -> (i64, i64) {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `at` is valid for writing; both clocks exist on every kernel that has io_uring.
    unsafe { libc::clock_gettime(clock, &raw mut at) };
    (at.tv_sec, at.tv_nsec)
}

/// Time since boot, suspended time included: a lease must not outlive a suspend.
pub(crate) fn now() -> Instant {
    let (seconds, ns) = read(libc::CLOCK_BOOTTIME);
    let seconds = u64::try_from(seconds).unwrap_or(0);
    Instant::from_nanos(seconds.saturating_mul(1_000_000_000) + u64::try_from(ns).unwrap_or(0))
}

/// Calendar time.
pub(crate) fn wall() -> WallTime {
    let (seconds, ns) = read(libc::CLOCK_REALTIME);
    WallTime(seconds.saturating_mul(1_000_000_000).saturating_add(ns))
}
