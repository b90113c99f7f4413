//! A process that has to end starts itself anew: the same program, arguments and process number,
//! so that a service manager sees one process that was away for a moment.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::DaemonError;

/// How many restarts in a row came soon after each other: from one process image to the next.
const VARIABLE: &str = "BB_QUICK_RESTARTS";
/// A process that lived for so long begins with the shortest pause again.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// The first pause; it doubles.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What is needed to start anew, noted at the start: the file may be replaced meanwhile.
pub struct Restart {
    program: PathBuf,
    arguments: Vec<OsString>,
    started: Instant,
    quick: u32,
}

impl Restart {
    /// To be called first of all.
    ///
    /// # Errors
    /// The system does not say what program this is.
    pub fn noted() -> Result<Self, DaemonError> {
        let failed = |error| DaemonError::Os { doing: "find this program", error };
        let quick = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Self {
            program: std::env::current_exe().map_err(failed)?,
            arguments: std::env::args_os().collect(),
            started: now(),
            quick,
        })
    }

    /// Waits a little, longer each time, and becomes a new process. Returns where a signal says to
    /// end instead (`Ok`), or where the program cannot be started.
    ///
    /// To be called when everything has returned: the kernel waits for calls on the backing file
    /// system that hang, and only then gives the process's locks free.
    ///
    /// # Errors
    /// The system's.
    pub fn start_anew(&self) -> Result<(), DaemonError> {
        let quick = if self.started.elapsed() >= LONG_LIFE { 0 } else { self.quick };
        let pause = pause(quick);
        tracing::info!(pause_ms = u64::try_from(pause.as_millis()).unwrap_or(0), "starts anew");
        if signalled_within(pause).map_err(|error| DaemonError::Os { doing: "wait", error })? {
            return Ok(());
        }
        let mut command = Command::new(&self.program);
        let (name, rest) = match self.arguments.split_first() {
            Some((name, rest)) => (name.clone(), rest),
            None => (self.program.clone().into_os_string(), [].as_slice()),
        };
        command.arg0(name).args(rest).env(VARIABLE, quick.saturating_add(1).to_string());
        // Only an error returns.
        Err(DaemonError::Os { doing: "start anew", error: command.exec() })
    }
}

fn pause(quick: u32) -> Duration {
    PAUSE.saturating_mul(2_u32.saturating_pow(quick)).min(PAUSE_MAX)
}

#[expect(clippy::disallowed_methods, reason = "between two process images there is no runtime")]
fn now() -> Instant {
    Instant::now()
}

/// True if SIGTERM or SIGINT, which are blocked since the server began, comes within that time.
fn signalled_within(pause: Duration) -> io::Result<bool> {
    // SAFETY: all-zero is a valid `timespec`, and on every platform of ours its fields are these.
    let mut limit: libc::timespec = unsafe { std::mem::zeroed() };
    limit.tv_sec = libc::time_t::try_from(pause.as_secs()).unwrap_or(libc::time_t::MAX);
    limit.tv_nsec = pause.subsec_nanos().into();
    loop {
        // SAFETY: `set` is initialised by sigemptyset before it is used; both live through the call.
        let signal = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const limit)
        };
        if signal >= 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN) => return Ok(false),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let all: Vec<u64> = (0..9).map(|quick| pause(quick).as_secs()).collect();
        assert_eq!(pause(0), Duration::from_millis(100));
        assert_eq!(pause(1), Duration::from_millis(200));
        assert_eq!(all[6..], [6, 10, 10]);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }
}
