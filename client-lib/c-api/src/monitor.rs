//! Counters of what the program did, for `IM_MONITOR_FILE`.

use std::ffi::CString;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use bb_client::Counters;

use crate::raw;

/// What is counted.
pub struct Counter {
    name: &'static str,
    value: AtomicU64,
}

impl Counter {
    const fn new(name: &'static str) -> Self {
        Self { name, value: AtomicU64::new(0) }
    }

    /// One more, or so many more.
    pub fn add(&self, count: u64) {
        self.value.fetch_add(count, Ordering::Relaxed);
    }
}

/// Files opened.
pub static OPENS: Counter = Counter::new("opens");
/// Reads that have ended well, of all kinds.
pub static READS: Counter = Counter::new("reads");
/// Their bytes.
pub static READ_BYTES: Counter = Counter::new("read_bytes");
/// Writes that have ended well, of all kinds.
pub static WRITES: Counter = Counter::new("writes");
/// Their bytes.
pub static WRITE_BYTES: Counter = Counter::new("write_bytes");
/// Calls of fsync.
pub static FSYNCS: Counter = Counter::new("fsyncs");
/// Reads, writes and fsyncs that failed.
pub static FAILURES: Counter = Counter::new("failures");

/// Counts a transfer.
pub fn transferred(write: bool, result: Result<usize, i32>) {
    let Ok(bytes) = result else { return FAILURES.add(1) };
    let (count, sum) = if write { (&WRITES, &WRITE_BYTES) } else { (&READS, &READ_BYTES) };
    count.add(1);
    sum.add(bytes as u64);
}

/// Of connections that have ended; no lock, which a fork could leave held.
static REPEATED: Counter = Counter::new("requests_repeated");
static BLOCK_READS: Counter = Counter::new("block_reads");
static BLOCK_WRITES: Counter = Counter::new("block_writes");
static READ_AHEAD: Counter = Counter::new("read_ahead_pieces");
static KEPT_MAX: Counter = Counter::new("kept_bytes_max");
static UNACKNOWLEDGED_MAX: Counter = Counter::new("unacknowledged_bytes_max");

/// A connection ends that has done this.
pub fn ended(done: Counters) {
    REPEATED.add(done.repeated);
    BLOCK_READS.add(done.gets);
    BLOCK_WRITES.add(done.puts);
    READ_AHEAD.add(done.read_ahead);
    KEPT_MAX.value.fetch_max(done.kept_bytes_max, Ordering::Relaxed);
    UNACKNOWLEDGED_MAX.value.fetch_max(done.unacknowledged_bytes_max, Ordering::Relaxed);
}

/// Writes all counters, with those of the `present` connection; `%p` in the name is the process.
pub fn write(path: &str, present: Counters) {
    let path = path.replace("%p", &std::process::id().to_string());
    let mut text = String::new();
    for counter in [&OPENS, &READS, &READ_BYTES, &WRITES, &WRITE_BYTES, &FSYNCS, &FAILURES] {
        let _ = writeln!(text, "{} {}", counter.name, counter.value.load(Ordering::Relaxed));
    }
    for (ended, more) in [
        (&REPEATED, present.repeated),
        (&BLOCK_READS, present.gets),
        (&BLOCK_WRITES, present.puts),
        (&READ_AHEAD, present.read_ahead),
    ] {
        let _ = writeln!(text, "{} {}", ended.name, ended.value.load(Ordering::Relaxed) + more);
    }
    for (ended, other) in [
        (&KEPT_MAX, present.kept_bytes_max),
        (&UNACKNOWLEDGED_MAX, present.unacknowledged_bytes_max),
    ] {
        let most = ended.value.load(Ordering::Relaxed).max(other);
        let _ = writeln!(text, "{} {most}", ended.name);
    }
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC;
    let opened = CString::new(path.as_str()).map(|name| raw::open(&name, flags, 0o644));
    match opened {
        Ok(Ok(fd)) => {
            raw::write_all(fd, text.as_bytes());
            let _ = raw::close(fd);
        }
        _ => crate::log::error(&format!("monitor file {path} cannot be written")),
    }
}
