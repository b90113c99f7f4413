//! `--profile ROW`: where the CPU time of a row goes, with perf.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::clock;
use super::flame;
use super::process::{Guarded, bound, output};

/// Samples per second of each core: more would be a load of their own.
const PER_SECOND: u32 = 799;
/// Names of our threads, or how they begin: servers, clients, and what works for them.
const OURS: [&str; 6] = ["bbd", "load", "burstbay", "bfs-", "device-", "iou-wrk-"];
/// perf has begun.
const BEGIN_MS: u64 = 700;

/// perf, as long as the row lasts.
pub struct Profile {
    row: String,
    data: PathBuf,
    running: Option<Guarded>,
}

impl Profile {
    /// Of a row; what perf writes goes below `folder`.
    ///
    /// # Errors
    /// There is no perf.
    pub fn new(row: &str, folder: &Path) -> Result<Self, String> {
        let mut command = Command::new("perf");
        command.arg("--version").stdin(Stdio::null());
        output(command).map_err(
            |_| "perf is not here: it is Debian's package linux-perf (apt-get install linux-perf)",
        )?;
        Ok(Self { row: row.to_owned(), data: folder.join("perf.data"), running: None })
    }

    /// Begins, if this is the row; called again, ends.
    pub fn turn(&mut self, row: &str) {
        if row != self.row {
            return;
        }
        if let Some(perf) = self.running.take() {
            if let Ok(pid) = libc::pid_t::try_from(perf.pid()) {
                // SAFETY: our own child, not waited for yet.
                unsafe { libc::kill(pid, libc::SIGINT) };
            }
            let mut perf = perf;
            let _ = perf.0.wait();
            return;
        }
        let mut command = Command::new("perf");
        command.args(["record", "-q", "-a", "-e", "cpu-clock", "--call-graph", "dwarf,16384"]);
        command.arg("-F").arg(PER_SECOND.to_string()).arg("-o").arg(&self.data);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.running = bound(command).spawn().ok().map(Guarded);
        clock::pause(BEGIN_MS);
    }

    /// The graph.
    ///
    /// # Errors
    /// perf has written nothing, or cannot read it.
    pub fn svg(&self) -> Result<String, String> {
        if !self.data.exists() {
            return Err("perf has written nothing: it needs root".to_owned());
        }
        let mut command = Command::new("perf");
        command.args(["script", "--no-inline", "-F", "comm,ip,sym,dso", "-i"]).arg(&self.data);
        command.stdin(Stdio::null());
        let text = output(bound(command))?;
        let root = flame::fold(&text, &OURS);
        Ok(flame::svg(&format!("{}, 2+1 over four servers, and its clients", self.row), &root))
    }
}
