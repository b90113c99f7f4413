//! The steps of the demo, in their order.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::clock;
use super::compare::{self, Comparison};
use super::place::{DEVICES, LOG_BYTES, Place};
use super::processes::{Running, Server};
use super::report::{Report, Row};
use super::source::Source;
use crate::cargo::{run as start, target_directory};

/// The device that is lost, counted from 0.
const LOST_DEVICE: u64 = 2;
/// Where the copy goes.
const TARGET: &str = "bb:/data";

/// Everything that the steps share.
pub struct Demo<'a> {
    place: &'a Path,
    logs: &'a Path,
    source: Source,
    programs: PathBuf,
    address: String,
    config: PathBuf,
    server: Server,
    report: Report,
    keep: bool,
}

impl<'a> Demo<'a> {
    /// Makes directories and the configuration.
    pub fn new(
        place: &'a Place,
        logs: &'a Path,
        source: Source,
        keep: bool,
    ) -> Result<Self, String> {
        let programs = target_directory()?.join("release");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let address = port.map_err(|error| error.to_string())?.to_string();
        let config = place.path.join("bb.conf");
        let text = configuration(place, &address);
        std::fs::create_dir(place.path.join("bfs"))
            .and_then(|()| std::fs::write(&config, text))
            .map_err(|error| format!("{}: {error}", place.path.display()))?;
        let server = Server::new(programs.join("bbd"), config.clone(), logs.join("bbd"), keep);
        Ok(Self {
            place: &place.path,
            logs,
            source,
            programs,
            address,
            config,
            server,
            report: Report::default(),
            keep,
        })
    }

    /// All steps. With `keep` the answer says how to go on.
    pub fn run(mut self) -> Result<Option<String>, String> {
        self.format()?;
        self.copy_in()?;
        self.all_dirty()?;
        self.lose_device()?;
        self.read_back()?;
        self.sync()?;
        self.purge()?;
        self.report.print();
        if self.report.lost_bytes > 0 {
            return Err("bytes were lost".to_owned());
        }
        if !self.keep {
            return Ok(None);
        }
        let pid = self.server.pid();
        self.server.release();
        let (programs, address) = (self.programs.display(), &self.address);
        let place = self.place.display();
        Ok(Some(format!(
            "The server runs on (process {pid}), with one device lost. Try:\n  \
             export BB_SERVERS={address}\n  \
             {programs}/bbctl ls -l /data\n  \
             {programs}/bbctl cp -r SOME_DIRECTORY bb:/\n  \
             {programs}/bbadm cluster status\n\
             Its backing file system is {place}/bfs. To stop it and remove everything:\n  \
             kill {pid}; rm -r {place}"
        )))
    }

    fn step(&self, text: &str) -> Result<std::time::Instant, String> {
        clock::check()?;
        println!("\n== {text}");
        Ok(clock::now())
    }

    fn row(&mut self, name: &'static str, bytes: u64, files: u64, since: std::time::Instant) {
        let took = since.elapsed();
        println!("done in {:.1} s", took.as_secs_f64());
        self.report.rows.push(Row { name, bytes, files, took });
    }

    fn bbctl(&self, name: &str, words: &[&OsStr]) -> Result<Running, String> {
        self.client("bbctl", name, words)
    }

    fn client(&self, program: &str, name: &str, words: &[&OsStr]) -> Result<Running, String> {
        let mut all = vec![OsStr::new("--server"), OsStr::new(&self.address), OsStr::new("--json")];
        all.extend(words);
        Running::start(&self.programs.join(program), &all, self.logs, name)
    }

    fn status(&self) -> Result<Value, String> {
        let words = ["cluster", "status"].map(OsStr::new);
        self.client("bbadm", "status", &words)?.finish_json()
    }

    fn format(&mut self) -> Result<(), String> {
        let since = self.step("format: zeros through the devices and the log")?;
        let mut command = Command::new(self.programs.join("bbd"));
        command.arg("--config").arg(&self.config).arg("format").stdin(Stdio::null());
        if !std::io::stderr().is_terminal() {
            let log = std::fs::File::create(self.logs.join("format.log"));
            command.stderr(log.map_err(|error| error.to_string())?);
        }
        start(&mut command)?;
        self.row("format", 0, 0, since);
        self.step("start the server")?;
        self.server.start()?;
        println!("process {} serves on {}", self.server.pid(), self.address);
        Ok(())
    }

    fn copy_in(&mut self) -> Result<(), String> {
        let (bytes, files) = (self.source.bytes, self.source.files);
        let since = self.step("copy in; the server is killed half-way")?;
        let mut words: Vec<&OsStr> = ["cp", "-rp", "--parents"].map(OsStr::new).to_vec();
        words.extend(self.source.roots.iter().map(|root| root.as_os_str()));
        words.push(OsStr::new(TARGET));
        let made = self.bbctl("mkdir", &["mkdir", TARGET].map(OsStr::new))?;
        made.finish()?;
        let mut copy = self.bbctl("copy-in", &words)?;
        let dirty = loop {
            clock::check()?;
            if let Some(status) = copy.ended()? {
                return Err(format!("the copy ended ({status}) before the server was killed"));
            }
            let dirty = self.status()?["nodes"][0]["bytes"]["dirty"].as_u64().unwrap_or(0);
            if dirty >= bytes * 2 / 5 {
                break dirty;
            }
            clock::pause(50);
        };
        let killed = self.server.pid();
        self.server.kill()?;
        let down = clock::now();
        if let Some(status) = copy.ended()? {
            return Err(format!("the copy ended ({status}) before the server was killed"));
        }
        self.server.start()?;
        println!(
            "process {killed} killed after {} MiB; process {} serves {:.2} s later",
            dirty >> 20,
            self.server.pid(),
            down.elapsed().as_secs_f64()
        );
        if copy.ended()?.is_some() {
            return Err("the copy didn't outlive the server".to_owned());
        }
        let summary = copy.finish_json()?;
        if summary["bytes"].as_u64() != Some(bytes) || summary["files"].as_u64() != Some(files) {
            return Err(format!("copied {summary}, there are {bytes} bytes in {files} files"));
        }
        self.row("copy in (killed and restarted)", bytes, files, since);
        Ok(())
    }

    fn fragments(&self, name: &str) -> Result<Value, String> {
        let words = ["frag-stat", "-rs", TARGET].map(OsStr::new);
        let answer = self.bbctl(name, &words)?.finish_json()?;
        let total = &answer["total"];
        println!(
            "{} files: dirty {}, pending {}, clean {}, deletable {} bytes",
            total["files"], total["dirty"], total["pending"], total["clean"], total["deletable"]
        );
        Ok(total.clone())
    }

    fn bfs_is_empty(&self) -> Result<(), String> {
        let (all, with_data) = compare::with_data(&self.place.join("bfs/data"))?;
        println!("backing file system: {all} files, {with_data} of them with data");
        if all != self.source.files || with_data > 0 {
            return Err("the backing file system should have all names and no data yet".to_owned());
        }
        Ok(())
    }

    fn all_dirty(&mut self) -> Result<(), String> {
        let since = self.step("fragment statistics")?;
        let total = self.fragments("frag-stat-dirty")?;
        let is = |state: &str| total[state].as_u64();
        if is("dirty") != Some(self.source.bytes)
            || [is("pending"), is("clean"), is("deletable")] != [Some(0); 3]
        {
            return Err(format!("all {} bytes should be dirty", self.source.bytes));
        }
        self.bfs_is_empty()?;
        self.row("fragment statistics", 0, self.source.files, since);
        Ok(())
    }

    fn lose_device(&mut self) -> Result<(), String> {
        self.step("take a device away for good")?;
        let path = self.device(LOST_DEVICE);
        let used = self.device_status()?["used_bytes"].as_u64().unwrap_or(0);
        if used == 0 {
            return Err("the device to be lost holds nothing".to_owned());
        }
        std::fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|error| format!("{}: {error}", path.display()))?;
        println!("{} had {} MiB in blocks; now it has no byte", path.display(), used >> 20);
        Ok(())
    }

    fn device(&self, number: u64) -> PathBuf {
        self.place.join(format!("device{number}"))
    }

    /// What the server says of the lost device.
    fn device_status(&self) -> Result<Value, String> {
        let status = self.status()?;
        let path = self.device(LOST_DEVICE);
        let file_name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let devices = status["nodes"][0]["devices"].as_array().cloned().unwrap_or_default();
        let named =
            |device: &&Value| device["name"].as_str().is_some_and(|name| name.ends_with(file_name));
        devices.iter().find(named).cloned().ok_or_else(|| format!("no {file_name} in {status}"))
    }

    fn read_back(&mut self) -> Result<(), String> {
        let since = self.step("read everything back, from the buffer alone")?;
        let back = self.place.join("back");
        let words = [OsStr::new("cp"), OsStr::new("-rp"), OsStr::new(TARGET), back.as_os_str()];
        let summary = self.bbctl("copy-out", &words)?.finish_json()?;
        let (bytes, files) = (self.source.bytes, self.source.files);
        self.row("read back without the device", bytes, files, since);
        let blocks = summary["reconstructed_blocks"].as_u64().unwrap_or(0);
        println!("{blocks} blocks reconstructed");
        self.report.reconstructed_blocks = blocks;
        // Nothing came from below: it still has nothing.
        self.bfs_is_empty()?;
        self.compare("compare what was read", &back)?;
        std::fs::remove_dir_all(&back).map_err(|error| format!("{}: {error}", back.display()))?;
        if blocks == 0 {
            return Err("no block was reconstructed: the device was not really lost".to_owned());
        }
        let device = self.device_status()?;
        match device["problem"].as_str().unwrap_or_default() {
            "" => Err(format!("the server has not noticed that a device is lost: {device}")),
            problem => {
                println!("bbadm says: {problem}");
                Ok(())
            }
        }
    }

    fn compare(&mut self, name: &'static str, copy: &Path) -> Result<(), String> {
        let since = self.step(name)?;
        let mut sum = Comparison::default();
        for root in &self.source.roots {
            let below = root.strip_prefix("/").unwrap_or(root);
            compare::trees(root, &copy.join(below), &mut sum)?;
        }
        self.report.lost_bytes += sum.lost_bytes;
        sum.verdict()?;
        if (sum.files, sum.bytes) != (self.source.files, self.source.bytes) {
            return Err("the source has changed meanwhile".to_owned());
        }
        self.row(name, sum.bytes, sum.files, since);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), String> {
        let since = self.step("synchronize with the backing file system")?;
        let words = ["sync", "-r", TARGET].map(OsStr::new);
        self.bbctl("sync", &words)?.finish_json()?;
        self.row("synchronize", self.source.bytes, self.source.files, since);
        let total = self.fragments("frag-stat-clean")?;
        if total["dirty"].as_u64() != Some(0) || total["pending"].as_u64() != Some(0) {
            return Err("nothing should be dirty any more".to_owned());
        }
        self.compare("compare the backing file system", &self.place.join("bfs/data"))
    }

    fn purge(&mut self) -> Result<(), String> {
        let since = self.step("purge")?;
        let words = ["purge", "-r", TARGET].map(OsStr::new);
        self.bbctl("purge", &words)?.finish_json()?;
        self.row("purge", self.source.bytes, self.source.files, since);
        let total = self.fragments("frag-stat-purged")?;
        let states = ["dirty", "pending", "clean", "deletable"];
        if states.iter().any(|state| total[*state].as_u64() != Some(0)) {
            return Err("the buffer should be empty".to_owned());
        }
        Ok(())
    }
}

fn configuration(place: &Place, address: &str) -> String {
    let path = |name: &str| toml::Value::String(place.path.join(name).display().to_string());
    let mut text = format!(
        "[node]\nlisten = \"{address}\"\n\n[log]\npath = {}\nsize = {LOG_BYTES}\n\n",
        path("log")
    );
    for number in 0..DEVICES {
        let path = path(&format!("device{number}"));
        text += &format!("[[device]]\npath = {path}\nsize = {}\n\n", place.device_bytes);
    }
    text + &format!(
        "[bfs]\npath = {}\n\n[cluster]\ngeometry = \"2+1\"\nplacement = \"least-loaded\"\n",
        path("bfs")
    )
}
