//! Four servers on this machine, and what they say of themselves.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::clock;
use super::place::{DEVICES, LOG_BYTES, Place, SERVERS};
use super::processes::{Running, Server};

/// Exit codes of `bbadm cluster status` that come with an answer.
const STATUS_CODES: [i32; 3] = [0, 3, 4];
/// Time for the cluster to become what it shall be.
const SETTLE_SECONDS: u64 = 180;

/// One of the servers.
pub struct Node {
    /// Its number here. The map may give it another: whoever joins first gets the next.
    pub number: u64,
    /// The process.
    pub server: Server,
    config: PathBuf,
    address: String,
}

impl Node {
    /// What a status says of it.
    pub fn find_in<'a>(&self, nodes: &'a [Value]) -> Option<&'a Value> {
        nodes.iter().find(|said| said["address"].as_str() == Some(&self.address))
    }
}

/// All servers.
pub struct Cluster {
    /// In the order in which they were made.
    pub nodes: Vec<Node>,
    programs: PathBuf,
    logs: PathBuf,
}

/// Who is killed: it holds blocks, and serves partitions.
pub struct Victim {
    /// Where it stands in the list.
    pub index: usize,
    /// Blocks on its devices.
    pub blocks: u64,
    /// Partitions whose primary it is.
    pub primaries: u64,
    /// Its part in the Raft group.
    pub raft: String,
}

impl Cluster {
    /// Makes directories and configurations. Nothing runs yet.
    pub fn new(place: &Place, programs: &Path, logs: &Path, keep: bool) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", place.path.display());
        std::fs::create_dir(place.path.join("bfs")).map_err(failed)?;
        // All at once, so that they differ.
        let ports: Vec<TcpListener> = (0..SERVERS)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let mut nodes: Vec<Node> = Vec::new();
        for (number, port) in (1..).zip(ports) {
            let address = port.local_addr().map_err(failed)?.to_string();
            let folder = place.path.join(format!("server{number}"));
            let config = folder.join("bb.conf");
            let join = nodes.first().map(|node| node.address.as_str());
            let text = configuration(place, &folder, number, &address, join);
            std::fs::create_dir(&folder)
                .and_then(|()| std::fs::write(&config, text))
                .map_err(failed)?;
            let log = logs.join(format!("bbd{number}"));
            let server = Server::new(programs.join("bbd"), config.clone(), log, keep);
            nodes.push(Node { number, server, config, address });
        }
        Ok(Self { nodes, programs: programs.to_owned(), logs: logs.to_owned() })
    }

    /// The list that clients get.
    pub fn addresses(&self) -> String {
        let all: Vec<&str> = self.nodes.iter().map(|node| node.address.as_str()).collect();
        all.join(",")
    }

    /// Formats some servers, all at the same time.
    pub fn format(&self, nodes: std::ops::Range<usize>) -> Result<(), String> {
        let run = |node: &Node| {
            let words = [OsStr::new("--config"), node.config.as_os_str(), OsStr::new("format")];
            let name = format!("format{}", node.number);
            Running::start(&self.programs.join("bbd"), &words, &self.logs, &name)
        };
        let all: Vec<Running> = self.nodes[nodes].iter().map(run).collect::<Result<_, _>>()?;
        for running in all {
            print!("{}", running.finish(&[0])?);
        }
        Ok(())
    }

    /// Starts a command as a client of all servers.
    pub fn client(&self, program: &str, name: &str, words: &[&OsStr]) -> Result<Running, String> {
        let addresses = self.addresses();
        let mut all = vec![OsStr::new("--server"), OsStr::new(&addresses), OsStr::new("--json")];
        all.extend(words);
        Running::start(&self.programs.join(program), &all, &self.logs, name)
    }

    /// What `bbadm cluster status` says.
    pub fn status(&self) -> Result<Value, String> {
        let words = ["cluster", "status", "--timeout", "5"].map(OsStr::new);
        self.client("bbadm", "status", &words)?.finish_json(&STATUS_CODES)
    }

    /// Waits until `good` holds of the status.
    pub fn wait(&self, what: &str, good: impl Fn(&Value) -> bool) -> Result<(), String> {
        let start = clock::now();
        loop {
            clock::check()?;
            let status = self.status()?;
            if good(&status) {
                return Ok(());
            }
            if start.elapsed().as_secs() > SETTLE_SECONDS {
                return Err(format!(
                    "{what}: not after {SETTLE_SECONDS} s: {}",
                    status["problems"]
                ));
            }
            clock::pause(100);
        }
    }

    /// The table for people.
    pub fn print_status(&self) -> Result<(), String> {
        let addresses = self.addresses();
        let words = ["--server", &addresses, "cluster", "status"].map(OsStr::new);
        let program = self.programs.join("bbadm");
        let running = Running::start(&program, &words, &self.logs, "status-table")?;
        print!("{}", running.finish(&STATUS_CODES)?);
        Ok(())
    }

    /// The server with the most blocks among those that serve partitions.
    pub fn victim(&self) -> Result<Victim, String> {
        let status = self.status()?;
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let blocks = |node: &Value| -> u64 {
            let devices = node["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
            devices.iter().map(|device| number(&device["blocks"])).sum()
        };
        let known = self.nodes.iter().enumerate().filter_map(|(index, node)| {
            let nodes = status["nodes"].as_array()?;
            let said = node.find_in(nodes)?;
            let raft = said["raft"].as_str().unwrap_or_default().to_owned();
            let primaries = number(&said["primaries"]);
            Some(Victim { index, blocks: blocks(said), primaries, raft })
        });
        let mut good: Vec<Victim> =
            known.filter(|victim| victim.blocks > 0 && victim.primaries > 0).collect();
        good.sort_by_key(|victim| victim.blocks);
        good.pop().ok_or_else(|| "no server holds blocks and serves partitions".to_owned())
    }

    /// Leaves all servers alone from here on; their process numbers.
    pub fn release(&mut self) -> Vec<u32> {
        self.nodes.iter_mut().map(|node| node.server.release()).collect()
    }
}

fn configuration(
    place: &Place,
    folder: &Path,
    number: u64,
    address: &str,
    join: Option<&str>,
) -> String {
    let quoted = |path: PathBuf| toml::Value::String(path.display().to_string());
    let mut text = format!(
        "[node]\nid = {number}\nlisten = \"{address}\"\n\n[log]\npath = {}\nsize = {LOG_BYTES}\n\n",
        quoted(folder.join("log"))
    );
    for device in 0..DEVICES {
        let path = quoted(folder.join(format!("device{device}")));
        text += &format!("[[device]]\npath = {path}\nsize = {}\n\n", place.device_bytes);
    }
    text += &format!(
        "[bfs]\npath = {}\n\n[cluster]\ngeometry = \"2+1\"\nplacement = \"least-loaded\"\n",
        quoted(place.path.join("bfs"))
    );
    match join {
        Some(address) => text + &format!("join = [\"{address}\"]\n"),
        None => text,
    }
}
