//! Servers, and commands that talk to it, as processes.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;

use super::clock;

/// Time for the server to answer after a start.
const START_SECONDS: u64 = 120;
/// Time for any one command: nothing that works takes so long.
const COMMAND_SECONDS: u64 = 1800;

/// A running `bbd`. Killed when dropped, unless it is to be kept.
pub struct Server {
    child: Option<Child>,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    starts: u32,
    keep: bool,
}

impl Server {
    /// Prepares; nothing is started yet.
    pub fn new(program: PathBuf, config: PathBuf, log: PathBuf, keep: bool) -> Self {
        Self { child: None, program, config, log, starts: 0, keep }
    }

    /// Starts it and waits until it serves.
    pub fn start(&mut self) -> Result<(), String> {
        self.starts += 1;
        let log = self.log.with_extension(format!("{}.log", self.starts));
        let file = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).arg("run");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        // Ctrl-C at our terminal is ours to handle.
        command.process_group(0);
        if !self.keep {
            // SAFETY: prctl may be called between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    Ok(())
                });
            }
        }
        let spawned = command.spawn();
        self.child = Some(spawned.map_err(|error| format!("{}: {error}", self.program.display()))?);
        let start = clock::now();
        loop {
            clock::check()?;
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("serving") {
                return Ok(());
            }
            if let Some(status) = self.exited()? {
                let last = text.lines().next_back().unwrap_or_default();
                return Err(format!("the server ended at its start ({status}): {last}"));
            }
            if start.elapsed().as_secs() > START_SECONDS {
                return Err(format!("the server doesn't serve after {START_SECONDS} s"));
            }
            clock::pause(20);
        }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    fn exited(&mut self) -> Result<Option<ExitStatus>, String> {
        match &mut self.child {
            Some(child) => child.try_wait().map_err(|error| error.to_string()),
            None => Ok(None),
        }
    }

    /// SIGKILL. An error if it had ended before.
    pub fn kill(&mut self) -> Result<(), String> {
        if let Some(status) = self.exited()? {
            return Err(format!("the server had ended by itself ({status})"));
        }
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Leaves it alone from here on; its process number.
    pub fn release(&mut self) -> u32 {
        let pid = self.pid();
        self.child = None;
        pid
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A command that runs, its output in a file. Killed when dropped.
pub struct Running {
    child: Child,
    name: String,
    output: PathBuf,
}

impl Running {
    /// Starts `program`; its standard output goes to a file `name` in `logs`, its bars to us.
    pub fn start(
        program: &Path,
        arguments: &[&std::ffi::OsStr],
        logs: &Path,
        name: &str,
    ) -> Result<Self, String> {
        let output = logs.join(format!("{name}.out"));
        let file =
            File::create(&output).map_err(|error| format!("{}: {error}", output.display()))?;
        let mut command = Command::new(program);
        // Of what it does it prints a summary.
        command.args(arguments).env("BB_LOG", "warn").stdin(Stdio::null()).stdout(file);
        let child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
        Ok(Self { child, name: name.to_owned(), output })
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, String> {
        self.child.try_wait().map_err(|error| error.to_string())
    }

    /// Waits for its end, and returns what it printed. An error unless it ends with one of these
    /// codes.
    pub fn finish(mut self, good: &[i32]) -> Result<String, String> {
        let start = clock::now();
        let status = loop {
            clock::check()?;
            if let Some(status) = self.ended()? {
                break status;
            }
            if start.elapsed().as_secs() > COMMAND_SECONDS {
                return Err(format!("{} has not ended after {COMMAND_SECONDS} s", self.name));
            }
            clock::pause(5);
        };
        let mut text = String::new();
        File::open(&self.output)
            .and_then(|mut file| file.read_to_string(&mut text))
            .map_err(|error| format!("{}: {error}", self.output.display()))?;
        if !status.code().is_some_and(|code| good.contains(&code)) {
            return Err(format!("{} failed ({status})", self.name));
        }
        Ok(text)
    }

    /// The same, with the last line read as JSON.
    pub fn finish_json(self, good: &[i32]) -> Result<Value, String> {
        let name = self.name.clone();
        let text = self.finish(good)?;
        let line = text.lines().next_back().unwrap_or_default();
        serde_json::from_str(line).map_err(|error| format!("{name} printed '{line}': {error}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
