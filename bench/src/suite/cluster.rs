//! Burstbay's servers, as processes on this machine.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::clock;
use super::place::Place;
use super::process::{Guarded, bound, output};

/// Devices of each server.
const DEVICES: u64 = 2;
/// Time for the cluster to become what it shall be.
const SETTLE_SECONDS: u64 = 120;

/// N data and K parity blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// N.
    pub data: u64,
    /// K.
    pub parity: u64,
}

impl Geometry {
    /// Bytes on devices for each byte of the user's.
    pub fn expansion(self) -> f64 {
        (self.data + self.parity) as f64 / self.data as f64
    }

    /// Block size of a full parity group: 2 MiB of data, blocks of 128 KiB to 1 MiB.
    pub fn block_bytes(self) -> u64 {
        ((2 << 20) / self.data).next_power_of_two().clamp(128 << 10, 1 << 20)
    }
}

impl std::fmt::Display for Geometry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

/// How large a cluster is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of servers.
    pub servers: u64,
    /// What it writes.
    pub geometry: Geometry,
    /// Bytes of the user's that it must hold, with room to spare.
    pub user_bytes: u64,
    /// Of each commit log.
    pub log_bytes: u64,
    /// The last server is made slower.
    pub slower: Slower,
}

/// How many times as long operations of the last server's devices take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slower {
    /// Those of data devices.
    pub devices: u64,
    /// Those of the log.
    pub log: u64,
}

/// All servers are alike.
pub const ALIKE: Slower = Slower { devices: 1, log: 1 };

impl Shape {
    /// Of each data device: three times what must fit, for what is written before what was removed
    /// is free, and for small blocks.
    pub fn device_bytes(&self) -> u64 {
        let Geometry { data, parity } = self.geometry;
        let stored = (3 * self.user_bytes * (data + parity)).div_ceil(data);
        let each = stored.div_ceil(self.servers * DEVICES).next_multiple_of(1 << 20);
        each.max(192 << 20)
    }

    /// All data devices together.
    pub fn capacity_bytes(&self) -> u64 {
        self.servers * DEVICES * self.device_bytes()
    }

    /// On the disk, all in all, with a copy on the backing file system.
    pub fn disk_bytes(&self) -> u64 {
        self.servers * (DEVICES * self.device_bytes() + self.log_bytes) + self.user_bytes
    }
}

struct Node {
    address: String,
    folder: PathBuf,
    child: Option<Guarded>,
    starts: u32,
}

/// All servers of a cluster. Ended when dropped.
pub struct Cluster {
    /// Its shape.
    pub shape: Shape,
    /// The configuration of its clients.
    pub configuration: PathBuf,
    /// Where its clients work, as they name it.
    pub work: String,
    folder: PathBuf,
    programs: PathBuf,
    tool: Vec<String>,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Formats, starts, and waits until all copies are there.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn start(place: &Place, programs: &Path, name: &str, shape: Shape) -> Result<Self, String> {
        Self::start_under(&[], place, programs, name, shape)
    }

    /// The same; servers run under a tool: words that go before them.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn start_under(
        tool: &[String],
        place: &Place,
        programs: &Path,
        name: &str,
        shape: Shape,
    ) -> Result<Self, String> {
        let folder = place.folder(name)?;
        let work = place.folder(&format!("{name}/bfs/work"))?;
        let mut cluster = Self {
            shape,
            configuration: folder.join("ime.conf"),
            work: format!("ime://{}", work.display()),
            folder,
            programs: programs.to_path_buf(),
            tool: tool.to_vec(),
            nodes: Vec::new(),
        };
        cluster.configure()?;
        let formatting: Vec<Guarded> = cluster.nodes[..1]
            .iter()
            .map(|node| cluster.spawn(node, "format"))
            .collect::<Result<_, _>>()?;
        finish(formatting)?;
        cluster.start_node(0)?;
        let others = cluster.nodes[1..].iter();
        let formatting: Vec<Guarded> =
            others.map(|node| cluster.spawn(node, "format")).collect::<Result<_, _>>()?;
        finish(formatting)?;
        for index in 1..cluster.nodes.len() {
            cluster.start_node(index)?;
        }
        cluster.wait_until_full()?;
        Ok(cluster)
    }

    fn configure(&mut self) -> Result<(), String> {
        let failed = |error: std::io::Error| error.to_string();
        // All at once, so that they differ.
        let count = 0..self.shape.servers;
        let ports: Vec<TcpListener> = count
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        for (number, port) in (1..).zip(ports) {
            let address = port.local_addr().map_err(failed)?.to_string();
            let folder = self.folder.join(format!("server{number}"));
            fs::create_dir(&folder).map_err(failed)?;
            let text = self.server_configuration(number, &address, &folder);
            fs::write(folder.join("bb.conf"), text).map_err(failed)?;
            self.nodes.push(Node { address, folder, child: None, starts: 0 });
        }
        let text = format!(
            "ime_bfs {{\n    mount_point: {};\n}}\nclient {{\n    servers: {};\n    \
             command_timeout: 60;\n    init_timeout: 30;\n}}\n",
            self.folder.join("bfs").display(),
            self.addresses(", ")
        );
        fs::write(&self.configuration, text).map_err(failed)
    }

    fn server_configuration(&self, number: u64, address: &str, folder: &Path) -> String {
        let here = folder.display();
        let mut text = format!(
            "[node]\nid = {number}\nlisten = \"{address}\"\nbuffers = \"128MiB\"\n\
             [log]\npath = \"{here}/log\"\nsize = {}\n",
            self.shape.log_bytes
        );
        for device in 1..=DEVICES {
            let size = self.shape.device_bytes();
            text += &format!("[[device]]\npath = \"{here}/device{device}\"\nsize = {size}\n");
        }
        let bfs = self.folder.join("bfs");
        text += &format!("[bfs]\npath = \"{}\"\n[cluster]\n", bfs.display());
        text += &format!("geometry = \"{}\"\npartitions = 64\n", self.shape.geometry);
        if let Some(first) = self.nodes.first() {
            text += &format!("join = [\"{}\"]\n", first.address);
        }
        text
    }

    fn addresses(&self, between: &str) -> String {
        let all: Vec<&str> = self.nodes.iter().map(|node| node.address.as_str()).collect();
        all.join(between)
    }

    fn spawn(&self, node: &Node, what: &str) -> Result<Guarded, String> {
        let log = node.folder.join(format!("bbd.{what}.{}.log", node.starts));
        let file = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        // What formats needs no tool.
        let mut line = if what == "run" { self.tool.clone() } else { Vec::new() };
        line.push(self.programs.join("bbd").display().to_string());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).arg("--config").arg(node.folder.join("bb.conf")).arg(what);
        let last = self.nodes.last().is_some_and(|last| last.address == node.address);
        if what == "run" && last && self.shape.slower != ALIKE {
            let Slower { devices, log } = self.shape.slower;
            command.arg(format!("--testing-slow-devices={devices}"));
            command.arg(format!("--testing-slow-log={log}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = bound(command).spawn().map_err(|error| format!("bbd: {error}"))?;
        Ok(Guarded(child))
    }

    fn start_node(&mut self, index: usize) -> Result<(), String> {
        self.nodes[index].starts += 1;
        let mut child = self.spawn(&self.nodes[index], "run")?;
        let node = &mut self.nodes[index];
        let log = node.folder.join(format!("bbd.run.{}.log", node.starts));
        clock::wait("a server serves", SETTLE_SECONDS, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            match child.0.try_wait() {
                Ok(None) => Ok(text.contains("serving")),
                _ => Err(format!("bbd ended: {}", text.lines().next_back().unwrap_or_default())),
            }
        })?;
        node.child = Some(child);
        Ok(())
    }

    /// What `bbadm cluster status` says.
    ///
    /// # Errors
    /// It says nothing.
    pub fn status(&self) -> Result<Value, String> {
        let mut command = Command::new(self.programs.join("bbadm"));
        command.args(["--server", &self.addresses(","), "--timeout", "5", "--json"]);
        command.args(["cluster", "status"]).env("BB_LOG", "error").stdin(Stdio::null());
        // A cluster that is not quite well has an exit code of its own.
        let said = bound(command).output().map_err(|error| format!("bbadm: {error}"))?;
        serde_json::from_slice(&said.stdout)
            .map_err(|_| format!("bbadm: {}", String::from_utf8_lossy(&said.stderr).trim()))
    }

    /// Waits until everything has all its copies and every server serves something.
    ///
    /// # Errors
    /// It does not come to that.
    pub fn wait_until_full(&self) -> Result<(), String> {
        let wanted = self.nodes.len();
        let mut last = Value::Null;
        let waited = clock::wait("all copies are there", SETTLE_SECONDS, || {
            let status = self.status()?;
            let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
            let serves = |node: &&Value| node["primaries"].as_u64().is_some_and(|n| n > 0);
            let full = status["state"] == "full" && nodes.iter().filter(serves).count() == wanted;
            last = status["problems"].clone();
            Ok(full)
        });
        waited.map_err(|error| format!("{error} ({last})"))
    }

    /// Names and process numbers of the servers that run.
    pub fn pids(&self) -> Vec<(String, u32)> {
        let running = self.nodes.iter().enumerate();
        running
            .filter_map(|(i, node)| Some((process_name(i), node.child.as_ref()?.pid())))
            .collect()
    }

    /// Name of the process that serves at an address.
    pub fn process_at(&self, address: &str) -> Option<String> {
        let index = self.nodes.iter().position(|node| node.address == address)?;
        Some(process_name(index))
    }

    /// Kills the last server, and waits until the others know.
    ///
    /// # Errors
    /// It is not noticed.
    pub fn kill_one(&mut self) -> Result<(), String> {
        let Some(node) = self.nodes.last_mut() else { return Err("no servers".to_owned()) };
        node.child = None;
        let address = node.address.clone();
        clock::wait("the dead server is noticed", SETTLE_SECONDS, || {
            let status = self.status()?;
            let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
            let said = nodes.iter().find(|node| node["address"] == address.as_str());
            Ok(said.is_some_and(|node| node["state"] == "down")
                && status["partitions"]["down"] == 0)
        })
    }

    /// Starts it again, and waits until all is well.
    ///
    /// # Errors
    /// It does not come to that.
    pub fn start_again(&mut self) -> Result<(), String> {
        self.start_node(self.nodes.len() - 1)?;
        self.wait_until_full()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // All at once: a server that is alone waits for the others.
        for node in &mut self.nodes {
            node.child = None;
        }
        // Others may need the room before all is removed.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn process_name(index: usize) -> String {
    format!("bbd{}", index + 1)
}

fn finish(all: Vec<Guarded>) -> Result<(), String> {
    for mut child in all {
        let mut ended = None;
        clock::wait("bbd format", 300, || {
            ended = child.0.try_wait().map_err(|error| error.to_string())?;
            Ok(ended.is_some())
        })?;
        if !ended.is_some_and(|status| status.success()) {
            return Err("bbd format failed: see its log".to_owned());
        }
    }
    Ok(())
}

/// Runs a command that must succeed.
pub(super) fn must(program: &str, words: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    output(bound(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_expansion_follow_from_the_geometry() {
        let table = [(1, 0, 1.0, 1024), (2, 1, 1.5, 1024), (4, 2, 1.5, 512), (8, 2, 1.25, 256)];
        for (data, parity, expansion, block_kib) in table {
            let geometry = Geometry { data, parity };
            assert!((geometry.expansion() - expansion).abs() < 1e-9, "{geometry}");
            assert_eq!(geometry.block_bytes(), block_kib << 10, "{geometry}");
        }
    }

    #[test]
    fn devices_hold_three_times_what_is_written() {
        let geometry = Geometry { data: 2, parity: 1 };
        let shape = Shape {
            servers: 4,
            geometry,
            user_bytes: 1 << 30,
            log_bytes: 256 << 20,
            slower: ALIKE,
        };
        assert_eq!(shape.device_bytes(), 576 << 20);
        assert_eq!(shape.disk_bytes(), 4 * (2 * 576 + 256) * (1 << 20) + (1 << 30));
    }
}
