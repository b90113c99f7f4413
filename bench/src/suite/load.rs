//! The client processes: compiled, started together, and heard.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use serde_json::Value;

use super::clock;
use super::histogram::Histogram;
use super::process::{Guarded, bound, output};

/// Time for a process to say that it is ready: what is slower is broken.
const READY_SECONDS: u64 = 60;

/// The program, linked with the library as it is installed.
#[derive(Debug)]
pub struct Loader {
    folder: PathBuf,
}

/// What the ranks of a row did, together.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// From the first start to the last end.
    pub seconds: f64,
    /// Bytes that the program wrote or read.
    pub bytes: u64,
    /// Operations.
    pub ops: u64,
    /// Of each rank: operations.
    pub ops_of_ranks: Vec<u64>,
    /// Of each rank: user and system time.
    pub cpu_seconds: Vec<f64>,
    /// Of each rank: the most memory it had.
    pub peak_kib: Vec<u64>,
    /// Of single calls, where they are timed.
    pub latencies: Histogram,
}

impl Loader {
    /// Compiles bench/c/load as a user would, below `folder`.
    ///
    /// # Errors
    /// Of the compiler.
    pub fn compile(folder: &Path, library: &Path) -> Result<Self, String> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        let library = library.canonicalize().map_err(|e| format!("{}: {e}", library.display()))?;
        for name in ["libbb_client.so.1", "libbb_client.so", "libim_client.so"] {
            symlink(&library, folder.join(name)).map_err(failed)?;
        }
        let sources = fs::read_dir(here.join("c/load")).map_err(failed)?;
        let mut sources: Vec<PathBuf> = sources.flatten().map(|entry| entry.path()).collect();
        sources.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
        let mut command = Command::new("cc");
        command.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-I"]);
        command.arg(here.join("../client-lib/c-api/include")).arg("-L").arg(folder);
        command.arg("-o").arg(folder.join("load")).args(sources);
        output({
            command.args(["-lim_client", "-pthread", "-lm"]);
            command
        })?;
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// Runs one process for each list of words, as [`run_ranks`]. `configuration` is the library's.
    ///
    /// # Errors
    /// One of them failed, or all were not done in so many seconds.
    pub fn run(
        &self,
        ranks: &[Vec<String>],
        configuration: Option<&Path>,
        seconds_max: u64,
        measure: impl FnMut(),
    ) -> Result<Work, String> {
        let commands = ranks.iter().map(|words| self.command(words, configuration)).collect();
        run_ranks(commands, seconds_max, measure)
    }

    /// One process, not started.
    pub fn command(&self, words: &[String], configuration: Option<&Path>) -> Command {
        self.command_under(&[], words, configuration)
    }

    /// The same, under a tool: words that go before it.
    pub fn command_under(
        &self,
        tool: &[String],
        words: &[String],
        configuration: Option<&Path>,
    ) -> Command {
        let program = self.folder.join("load").display().to_string();
        let line = [tool, &[program], words].concat();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).env("LD_LIBRARY_PATH", &self.folder);
        // A setting of the user's own must not change what is measured.
        for (name, _) in std::env::vars_os() {
            let ours = name.to_str().is_some_and(|n| n.starts_with("IM_") || n.starts_with("BB_"));
            if ours {
                command.env_remove(name);
            }
        }
        if let Some(path) = configuration {
            command.env("IM_CLIENT_CFG_FILE", path);
        }
        bound(command)
    }
}

/// Starts these, all of which say "ready"; lets them go at once, and hears what they did. `measure` is
/// called when all are ready, and again when all have ended.
///
/// # Errors
/// One of them failed, or all were not done in so many seconds.
pub fn run_ranks(
    commands: Vec<Command>,
    seconds_max: u64,
    mut measure: impl FnMut(),
) -> Result<Work, String> {
    let mut all = commands.into_iter().map(Rank::start).collect::<Result<Vec<_>, _>>()?;
    for rank in &mut all {
        let line = rank.line(READY_SECONDS)?;
        if line != "ready" {
            return Err(format!("a client said '{line}'"));
        }
    }
    measure();
    for rank in &mut all {
        rank.input.write_all(b"go\n").map_err(|error| format!("a client: {error}"))?;
    }
    let mut lines = Vec::new();
    for rank in &mut all {
        lines.push(rank.line(seconds_max)?);
    }
    measure();
    for rank in &mut all {
        rank.end()?;
    }
    sum(&lines)
}

struct Rank {
    child: Guarded,
    input: ChildStdin,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Rank {
    fn start(mut command: Command) -> Result<Self, String> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("the load program: {error}"))?;
        let (Some(input), Some(out), Some(err)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err("no pipes".to_owned());
        };
        let child = Guarded(child);
        Ok(Self { child, input, lines: lines_of(out)?, errors: lines_of(err)? })
    }

    fn line(&mut self, seconds: u64) -> Result<String, String> {
        let start = clock::now();
        loop {
            match self.lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Disconnected) => return Err(self.complaint()),
                Err(RecvTimeoutError::Timeout) => clock::check()?,
            }
            if start.elapsed().as_secs() >= seconds {
                return Err(format!("a client was not done after {seconds} s; {}", self.said()));
            }
        }
    }

    /// Errors at the end of the process count, too: it has written back what it still held.
    fn end(&mut self) -> Result<(), String> {
        let mut status = None;
        let child = &mut self.child.0;
        clock::wait("the end of a client", READY_SECONDS, || {
            status = child.try_wait().map_err(|error| error.to_string())?;
            Ok(status.is_some())
        })?;
        if status.is_some_and(|status| status.success()) { Ok(()) } else { Err(self.complaint()) }
    }

    fn complaint(&mut self) -> String {
        let status = self.child.0.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
        format!("a client failed ({status}): {}", self.said())
    }

    fn said(&self) -> String {
        let lines: Vec<String> = self.errors.try_iter().collect();
        lines[lines.len().saturating_sub(4)..].join("; ")
    }
}

fn lines_of(pipe: impl std::io::Read + Send + 'static) -> Result<Receiver<String>, String> {
    let (send, receive) = mpsc::channel();
    let reader = move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new().spawn(reader).map_err(|error| error.to_string())?;
    Ok(receive)
}

fn sum(lines: &[String]) -> Result<Work, String> {
    let mut work = Work::default();
    let (mut start, mut end) = (f64::INFINITY, 0.0_f64);
    for line in lines {
        let said: Value = serde_json::from_str(line).map_err(|e| format!("'{line}': {e}"))?;
        let real = |name: &str| said[name].as_f64().ok_or_else(|| format!("no {name}: {line}"));
        let whole = |name: &str| said[name].as_u64().ok_or_else(|| format!("no {name}: {line}"));
        start = start.min(real("start")?);
        end = end.max(real("end")?);
        work.bytes += whole("bytes")?;
        work.ops += whole("ops")?;
        work.ops_of_ranks.push(whole("ops")?);
        work.cpu_seconds.push(real("user")? + real("system")?);
        work.peak_kib.push(whole("peak_kib")?);
        work.latencies.add(&said["histogram"])?;
    }
    work.seconds = end - start;
    Ok(work)
}

#[cfg(test)]
mod tests {
    use super::sum;

    fn line(start: f64, end: f64) -> String {
        format!(
            "{{\"start\":{start},\"end\":{end},\"bytes\":10,\"ops\":2,\"user\":0.5,\
             \"system\":0.25,\"peak_kib\":7,\"histogram\":[[320,2]]}}"
        )
    }

    #[test]
    fn a_row_runs_from_the_first_start_to_the_last_end() {
        let work = sum(&[line(1.0, 3.0), line(1.5, 4.5)]).unwrap();
        assert_eq!((work.seconds, work.bytes, work.ops), (3.5, 20, 4));
        assert_eq!(work.cpu_seconds, [0.75, 0.75]);
        assert!(sum(&["{}".to_owned()]).is_err());
    }
}
