//! Child processes, and what the kernel counts for them.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// A command whose process dies with ours, whatever ends us, and which Ctrl-C at our terminal does
/// not reach: that is ours to handle.
pub fn bound(mut command: Command) -> Command {
    command.process_group(0);
    // SAFETY: prctl may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command
}

/// Runs to its end; what it printed.
///
/// # Errors
/// It cannot be started, or fails: with its error output.
pub fn output(mut command: Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let out = String::from_utf8_lossy(&output.stdout);
        return Err(format!("{name} failed ({}): {} {}", output.status, said.trim(), out.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A child that is killed when dropped.
#[derive(Debug)]
pub struct Guarded(pub Child);

impl Guarded {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the kernel has counted for a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// User and system time of all its threads.
    pub cpu_seconds: f64,
    /// Most memory it had since [`forget_peak`].
    pub peak_kib: u64,
    /// Bytes it caused to be written to devices.
    pub write_bytes: u64,
    /// Bytes it caused to be read from devices.
    pub read_bytes: u64,
}

impl Counters {
    /// Of a process that runs; zeros where it does not.
    pub fn of(pid: u32) -> Self {
        let text = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let (io, status) = (text("io").unwrap_or_default(), text("status").unwrap_or_default());
        Self {
            cpu_seconds: cpu_seconds(pid),
            peak_kib: field(&status, "VmHWM:"),
            write_bytes: field(&io, "write_bytes:"),
            read_bytes: field(&io, "read_bytes:"),
        }
    }

    /// What came on top of `before`. Peaks don't add up.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            peak_kib: self.peak_kib,
            write_bytes: self.write_bytes.saturating_sub(before.write_bytes),
            read_bytes: self.read_bytes.saturating_sub(before.read_bytes),
        }
    }
}

/// From here on the most memory of a process is that of what comes.
pub fn forget_peak(pid: u32) {
    // Refused where the process is gone or not ours: then its peak is that of its whole life.
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// To the nanosecond; /proc/PID/stat has hundredths of a second.
fn cpu_seconds(pid: u32) -> f64 {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return 0.0 };
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both are given locals that outlive the calls.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed { 0.0 } else { time.tv_sec as f64 + time.tv_nsec as f64 / 1e9 }
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// What the kernel has counted for a disk, all its users together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Flushes that it completed.
    pub flushes: u64,
}

impl Disk {
    /// Of the text of /sys/dev/block/MAJOR:MINOR/stat.
    pub fn parse(text: &str) -> Self {
        let words: Vec<u64> =
            text.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
        let at = |index: usize| words.get(index).copied().unwrap_or(0);
        Self { read_bytes: at(2) * 512, write_bytes: at(6) * 512, flushes: at(15) }
    }

    /// Of the disk that has a device number.
    pub fn of(device: u64) -> Self {
        let (major, minor) = (libc::major(device), libc::minor(device));
        let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"));
        Self::parse(&text.unwrap_or_default())
    }

    /// What came on top of `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            read_bytes: self.read_bytes.saturating_sub(before.read_bytes),
            write_bytes: self.write_bytes.saturating_sub(before.write_bytes),
            flushes: self.flushes.saturating_sub(before.flushes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_counts_for_a_disk_is_read_in_bytes() {
        let text = "  10 1 16 5 20 2 48 7 0 9 12 0 0 0 0 33 4\n";
        let disk = Disk::parse(text);
        assert_eq!(disk, Disk { read_bytes: 8192, write_bytes: 24576, flushes: 33 });
        assert_eq!(Disk::parse(""), Disk::default());
    }

    #[test]
    fn our_own_counters_are_there() {
        let counters = Counters::of(std::process::id());
        assert!(counters.cpu_seconds > 0.0 && counters.peak_kib > 0, "{counters:?}");
    }
}
