//! A cluster of one node in a directory of its own.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bb_client::ClientOptions;
use bb_client::blocking::Client;
use serde_json::Value;

/// Sizes and geometry.
pub struct Shape {
    pub devices: usize,
    pub device_mib: u64,
    pub log_mib: u64,
    pub geometry: &'static str,
    pub reactors: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self { devices: 4, device_mib: 256, log_mib: 128, geometry: "2+1", reactors: 1 }
    }
}

/// A formatted node, running or not. All is removed when it is dropped.
pub struct Cluster {
    pub directory: PathBuf,
    pub address: String,
    server: Option<Child>,
    starts: u32,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

#[expect(clippy::disallowed_methods, reason = "real processes take real time")]
pub fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "real processes take real time")]
pub fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Says that a test cannot run here and what is missing. In CI (the variable `CI`, which `.ci/run`
/// sets) that is a failure: a machine that proves less than it seems to is worse than a red one.
pub fn not_run(missing: &str) {
    let ci = std::env::var("CI").unwrap_or_default();
    assert!(matches!(ci.as_str(), "" | "0" | "false"), "CI must run this test: {missing}");
    println!("not run: {missing}");
}

/// Random numbers, with the seed in the test's output.
pub fn random() -> fastrand::Rng {
    let mut seed = [0; 8];
    // SAFETY: eight writable bytes.
    let got = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), 8, 0) };
    assert_eq!(got, 8, "random bytes");
    let seed = std::env::var("BB_TEST_SEED")
        .map_or(u64::from_le_bytes(seed), |text| text.parse().expect("BB_TEST_SEED is a number"));
    println!("BB_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Bytes that depend on every bit of `seed`.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut data = vec![0; len];
    random.fill(&mut data);
    data
}

/// The server's program, built first if cargo runs us: it belongs to another crate. Not where
/// `./x test` runs us: it has built everything, and with other features it would be built twice.
pub fn bbd() -> PathBuf {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let built = std::env::var_os("BB_TEST_BUILT").is_some();
        let Some(cargo) = std::env::var_os("CARGO").filter(|_| !built) else { return };
        let words = ["build", "--quiet", "--locked", "--workspace", "--bin", "bbd"];
        let status = Command::new(cargo).args(words).status().expect("cargo starts");
        assert!(status.success(), "bbd builds");
    });
    let bbctl = Path::new(env!("CARGO_BIN_EXE_bbctl"));
    let path = bbctl.with_file_name("bbd");
    assert!(path.exists(), "{} is missing: cargo build --bin bbd", path.display());
    path
}

impl Cluster {
    /// Formats it. Nothing runs yet.
    pub fn format(shape: &Shape) -> Self {
        Self::format_with(shape, "")
    }

    /// The same, with more in its `bb.conf`.
    pub fn format_with(shape: &Shape, more: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("real-{}-{number}", std::process::id());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(directory.join("bfs")).expect("a directory");
        let cluster = Self { directory, address: free_address(), server: None, starts: 0 };
        let text = cluster.configuration(shape, &cluster.address) + more;
        fs::write(cluster.path("bb.conf"), text).expect("bb.conf");
        cluster.format_again();
        cluster
    }

    pub fn format_again(&self) {
        let output = self.bbd(&["format", "--sparse", "--force"]).output().expect("bbd starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn started(shape: &Shape) -> Self {
        let mut cluster = Self::format(shape);
        cluster.start();
        cluster
    }

    pub fn configuration(&self, shape: &Shape, address: &str) -> String {
        let directory = self.directory.display();
        let mut text = format!(
            "[node]\nlisten = \"{address}\"\nbuffers = \"64MiB\"\nreactors = {}\n\
             [log]\npath = \"{directory}/log\"\nsize = \"{}MiB\"\n",
            shape.reactors, shape.log_mib
        );
        for number in 0..shape.devices {
            let mib = shape.device_mib;
            text += &format!(
                "[[device]]\npath = \"{directory}/device{number}\"\nsize = \"{mib}MiB\"\n"
            );
        }
        text + &format!(
            "[bfs]\npath = \"{directory}/bfs\"\n\
             [cluster]\ngeometry = \"{}\"\npartitions = 16\n",
            shape.geometry
        )
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn bbd(&self, words: &[&str]) -> Command {
        let mut command = Command::new(bbd());
        command.arg("--config").arg(self.path("bb.conf")).args(words).stdin(Stdio::null());
        // SAFETY: prctl may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        command
    }

    /// Starts the server and waits until it serves.
    pub fn start(&mut self) {
        assert!(self.server.is_none(), "runs already");
        if let Err((status, text)) = self.try_start() {
            panic!("the server ended at its start ({status}):\n{text}");
        }
    }

    /// The same; an error is how it ended, and what it said.
    pub fn try_start(&mut self) -> Result<(), (ExitStatus, String)> {
        self.starts += 1;
        let log = self.path(&format!("bbd.{}.log", self.starts));
        let file = File::create(&log).expect("a log file");
        let mut child = self.bbd(&["run"]).stderr(file).spawn().expect("bbd starts");
        let start = now();
        loop {
            let text = fs::read_to_string(&log).expect("the log");
            if text.contains("serving") {
                self.server = Some(child);
                return Ok(());
            }
            if let Some(status) = child.try_wait().expect("a child") {
                return Err((status, text));
            }
            if start.elapsed() > Duration::from_secs(60) {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the server doesn't serve after 60 s:\n{text}");
            }
            pause(5);
        }
    }

    /// What the server has said since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path(&format!("bbd.{}.log", self.starts))).expect("the log")
    }

    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("runs").id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.server.take().expect("runs");
        assert!(child.try_wait().expect("a child").is_none(), "it ended by itself");
        child.kill().expect("killed");
        child.wait().expect("gone");
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) {
        let mut child = self.server.take().expect("runs");
        let pid = i32::try_from(child.id()).expect("a process number");
        // SAFETY: our own child, not waited for yet.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        assert!(child.wait().expect("gone").success(), "it stops without an error");
    }

    /// A client in this process.
    pub fn client(&self, timeout_seconds: u64) -> Client {
        let options = ClientOptions {
            command_timeout: Duration::from_secs(timeout_seconds),
            request_timeout: Duration::from_secs(2),
            ..ClientOptions::default()
        };
        Client::connect(&[&self.address], options, 32 << 20).expect("connects")
    }

    /// `bbctl` as a process of its own.
    pub fn bbctl(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bbctl"));
        command.args(["--server", &self.address, "--timeout", "30"]).args(words);
        command.stdin(Stdio::null()).output().expect("bbctl starts")
    }

    /// What `bbadm cluster status` says.
    pub fn status(&self) -> Value {
        let mut bbadm = Command::new(env!("CARGO_BIN_EXE_bbadm"));
        bbadm.args(["--server", &self.address, "--json", "cluster", "status", "--devices"]);
        serde_json::from_slice(&bbadm.output().expect("bbadm starts").stdout).expect("JSON")
    }

    /// `bbctl`, which must succeed. What it prints.
    pub fn bbctl_good(&self, words: &[&str]) -> String {
        let output = self.bbctl(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "bbctl {words:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut child) = self.server.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for number in 1..=self.starts {
                let text = fs::read_to_string(self.path(&format!("bbd.{number}.log")));
                println!("--- bbd, start {number}:\n{}", text.unwrap_or_default());
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// Makes a file of these bytes in the buffer, durably.
pub fn write(client: &Client, path: &str, data: &[u8]) -> Result<(), bb_client::Error> {
    let file = client.open(path.as_bytes(), libc::O_WRONLY | libc::O_CREAT, 0o644)?;
    let written = file.pwrite(data, 0);
    let synced = written.and_then(|_| file.fsync());
    let closed = file.close();
    synced.and(closed)
}

/// Whole contents of a file in the buffer.
pub fn read(client: &Client, path: &str) -> Vec<u8> {
    let file = client.open(path.as_bytes(), libc::O_RDONLY, 0).expect("opens");
    let size = file.fstat().expect("stats").size;
    let mut data = vec![0; usize::try_from(size).expect("small") + 1];
    let mut done = 0;
    loop {
        let read = file.pread(&mut data[done..], done as u64).expect("reads");
        if read == 0 {
            break;
        }
        done += read;
    }
    data.truncate(done);
    file.close().expect("closes");
    data
}
