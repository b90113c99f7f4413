//! A cluster of several servers, each a process of its own, on loopback or each in a network
//! namespace of its own.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bb_client::ClientOptions;
use bb_client::blocking::Client;
use serde_json::Value;

use crate::harness::{bbd, free_address, now, pause};
use crate::namespaces::Namespaces;

/// One server.
pub struct Server {
    /// Its number in the map, and in the names of its files.
    pub number: u32,
    /// Where it listens.
    pub address: String,
    directory: PathBuf,
    namespace: Option<String>,
    child: Option<Child>,
    starts: u32,
}

/// All of them. Ended and removed when dropped.
pub struct Servers {
    /// Where everything is.
    pub directory: PathBuf,
    /// In the order of their numbers.
    pub nodes: Vec<Server>,
    /// The network, where they have one of their own.
    pub net: Option<Namespaces>,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Server {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = match &self.namespace {
            Some(name) => {
                let mut command = Command::new("ip");
                // It becomes the program: the process number stays.
                command.args(["netns", "exec", name]).arg(bbd());
                command
            }
            None => Command::new(bbd()),
        };
        command.arg("--config").arg(self.directory.join("bb.conf")).args(words);
        command.stdin(Stdio::null());
        // SAFETY: prctl may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        command
    }

    fn format(&self) {
        let output = self.command(&["format", "--sparse"]).output().expect("bbd starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// What it has said since its start.
    pub fn log(&self) -> String {
        let path = self.directory.join(format!("bbd.{}.log", self.starts));
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Starts it; does not wait.
    pub fn start(&mut self) {
        self.start_with(&["run"]);
    }

    /// The same, with other words.
    pub fn start_with(&mut self, words: &[&str]) {
        assert!(self.child.is_none(), "runs already");
        self.starts += 1;
        let log = self.directory.join(format!("bbd.{}.log", self.starts));
        let file = File::create(log).expect("a log file");
        self.child = Some(self.command(words).stderr(file).spawn().expect("bbd starts"));
    }

    fn signal(&mut self, signal: i32) {
        let child = self.child.as_mut().expect("runs");
        assert!(child.try_wait().expect("a child").is_none(), "it ended by itself");
        let pid = i32::try_from(child.id()).expect("a process number");
        // SAFETY: our own child, not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.child.take().expect("runs").wait().expect("gone");
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        let status = self.child.take().expect("runs").wait().expect("gone");
        assert!(status.success(), "it stops without an error");
    }

    /// How it ended by itself, within so many seconds.
    pub fn ended(&mut self, seconds: u64) -> ExitStatus {
        let mut child = self.child.take().expect("runs");
        let start = now();
        loop {
            if let Some(status) = child.try_wait().expect("a child") {
                return status;
            }
            if start.elapsed() > Duration::from_secs(seconds) {
                let _ = child.kill();
                let _ = child.wait();
                panic!("it has not ended after {seconds} s:\n{}", self.log());
            }
            pause(20);
        }
    }

    /// SIGSTOP: alive, and silent.
    pub fn freeze(&mut self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.signal(libc::SIGCONT);
    }
}

impl Servers {
    /// Formats and starts `count` servers with two devices each, and waits until all have their
    /// part. With `net` each is in a namespace of its own.
    pub fn started(count: u32, geometry: &str, net: Option<Namespaces>) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("several-{}-{number}", std::process::id());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(directory.join("bfs")).expect("a directory");
        let mut servers = Self { directory, nodes: Vec::new(), net };
        for number in 1..=count {
            let server = servers.prepare(number, geometry);
            server.format();
            servers.nodes.push(server);
            let server = servers.nodes.last_mut().expect("just pushed");
            server.start();
            // The next one asks it for a number.
            servers.wait("the new server is active", 30, |status| {
                status["nodes"][number as usize - 1]["state"] == "active"
            });
        }
        servers.wait("every server serves something, and all copies are there", 60, |status| {
            let nodes = status["nodes"].as_array().expect("nodes");
            let primaries = |node: &Value| node["primaries"].as_u64().unwrap_or(0);
            status["state"] == "full" && nodes.iter().all(|node| primaries(node) > 0)
        });
        servers
    }

    fn prepare(&self, number: u32, geometry: &str) -> Server {
        let directory = self.directory.join(format!("n{number}"));
        fs::create_dir_all(&directory).expect("a directory");
        let (namespace, address) = match &self.net {
            Some(net) => (Some(net.node(number)), net.address(number)),
            None => (None, free_address()),
        };
        let here = directory.display();
        // A cluster of both kinds: to the others the number makes no difference.
        let reactors = 1 + number % 2;
        let mut text = format!(
            "[node]\nid = {number}\nlisten = \"{address}\"\nbuffers = \"64MiB\"\n\
             reactors = {reactors}\n\
             [log]\npath = \"{here}/log\"\nsize = \"128MiB\"\n"
        );
        for device in 1..=2 {
            text += &format!("[[device]]\npath = \"{here}/device{device}\"\nsize = \"512MiB\"\n");
        }
        text += &format!("[bfs]\npath = \"{}/bfs\"\n", self.directory.display());
        text += &format!("[cluster]\ngeometry = \"{geometry}\"\npartitions = 16\n");
        if let Some(first) = self.nodes.first() {
            text += &format!("join = [\"{}\"]\n", first.address);
        }
        fs::write(directory.join("bb.conf"), text).expect("bb.conf");
        Server { number, address, directory, namespace, child: None, starts: 0 }
    }

    fn addresses(&self) -> String {
        let all: Vec<&str> = self.nodes.iter().map(|node| node.address.as_str()).collect();
        all.join(",")
    }

    /// `bbadm` as a process of its own.
    pub fn bbadm(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bbadm"));
        command.args(["--server", &self.addresses(), "--timeout", "1"]).args(words);
        command.stdin(Stdio::null()).output().expect("bbadm starts")
    }

    /// Exit code and JSON of `bbadm cluster status`.
    pub fn status(&self) -> (i32, Value) {
        let output = self.bbadm(&["--json", "cluster", "status"]);
        let line = String::from_utf8(output.stdout).expect("UTF-8");
        let value = serde_json::from_str(&line).unwrap_or(Value::Null);
        (output.status.code().expect("an exit code"), value)
    }

    /// Looks until `good` holds; the time it took. Panics after so many seconds.
    pub fn wait(&self, what: &str, seconds: u64, good: impl Fn(&Value) -> bool) -> Duration {
        let (start, mut history) = (now(), Vec::new());
        loop {
            let (code, status) = self.status();
            let (passed, problems) = (start.elapsed(), status["problems"].to_string());
            if good(&status) {
                if passed > Duration::from_secs(12) {
                    println!("{what} took {:.2} s:\n{}", passed.as_secs_f64(), history.join("\n"));
                }
                return passed;
            }
            let line = format!("  {:.1} s: {problems}", passed.as_secs_f64());
            if history.last().is_none_or(|last: &String| !last.ends_with(&problems)) {
                history.push(line);
            }
            if start.elapsed() > Duration::from_secs(seconds) {
                panic!("{what}: not after {seconds} s; status says (code {code}): {status:#}");
            }
            pause(100);
        }
    }

    /// Waits until everything has its full redundancy, but for groups that were written when there
    /// were too few nodes: nothing spreads those anew.
    pub fn wait_until_full(&self, seconds: u64) -> Duration {
        self.wait("full redundancy", seconds, |status| {
            let problems = status["problems"].as_array();
            problems.is_some_and(|all| {
                all.iter().all(|text| text.as_str().is_some_and(|t| t.contains("share a node")))
            })
        })
    }

    /// A client in this process, of all servers.
    pub fn client(&self, request_timeout_seconds: u64) -> Client {
        let options = ClientOptions {
            command_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(request_timeout_seconds),
            ..ClientOptions::default()
        };
        let all: Vec<&str> = self.nodes.iter().map(|node| node.address.as_str()).collect();
        Client::connect(&all, options, 32 << 20).expect("connects")
    }

    /// `bbctl`, not started yet.
    pub fn bbctl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bbctl"));
        command.args(["--server", &self.addresses(), "--timeout", "60"]).args(words);
        command.stdin(Stdio::null());
        command
    }

    /// The same, as a process of its own; it must succeed. What it prints.
    pub fn bbctl_good(&self, words: &[&str]) -> String {
        let output = self.bbctl(words).output().expect("bbctl starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "bbctl {words:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.nodes {
            if let Some(mut child) = server.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            if std::thread::panicking() {
                for number in 1..=server.starts {
                    let path = server.directory.join(format!("bbd.{number}.log"));
                    let text = fs::read_to_string(path).unwrap_or_default();
                    println!("--- server {}, start {number}:\n{text}", server.number);
                }
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}
