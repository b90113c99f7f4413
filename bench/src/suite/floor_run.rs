//! Running the skeleton of the data path (`crate::floor`) as a system of its own.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::cluster::Geometry;
use super::load::{Work, run_ranks};
use super::place::{Place, write_through};
use super::process::{Counters, Guarded, bound};

/// As many servers as the cluster that it is the floor of.
const SERVERS: u64 = 4;

/// Its files, written once.
pub struct Floor {
    files: Vec<PathBuf>,
    clients: u64,
    bytes: u64,
    geometry: Geometry,
}

impl Floor {
    /// Makes the files: room for the blocks of `bytes` bytes of data.
    ///
    /// # Errors
    /// Of the file system.
    pub fn prepare(place: &Place, clients: u64, bytes: u64) -> Result<Self, String> {
        let geometry = Geometry { data: 2, parity: 1 };
        let folder = place.folder("floor")?;
        let each = bytes / clients / (2 << 20) * (2 << 20);
        // A place for each group of each client, of which every server gets three of four.
        let blocks = clients * each.div_ceil(2 << 20);
        let mut files = Vec::new();
        for server in 0..SERVERS {
            let path = folder.join(format!("blocks{server}"));
            write_through(&path, blocks * geometry.block_bytes())?;
            files.push(path);
        }
        Ok(Self { files, clients, bytes: each, geometry })
    }

    /// Writes everything, or reads everything.
    ///
    /// # Errors
    /// A process failed.
    pub fn run(&self, read: bool) -> Result<(Work, Vec<(String, Counters)>), String> {
        let mut servers = Vec::new();
        let mut addresses = Vec::new();
        for file in &self.files {
            let mut command = this_program()?;
            command.arg("floor-server").arg(file).stdout(Stdio::piped());
            let mut child = command.spawn().map_err(|error| format!("floor: {error}"))?;
            let out = child.stdout.take().ok_or("no pipe")?;
            servers.push(Guarded(child));
            let mut line = String::new();
            BufReader::new(out).read_line(&mut line).map_err(|error| format!("floor: {error}"))?;
            addresses.push(line.trim().to_owned());
        }
        let mut clients = Vec::new();
        for rank in 0..self.clients {
            let mut command = this_program()?;
            command.args(["floor-client", "--geometry", &self.geometry.to_string()]);
            command.args(["--rank", &rank.to_string(), "--bytes", &self.bytes.to_string()]);
            if read {
                command.arg("--read");
            }
            command.args(&addresses);
            clients.push(command);
        }
        let mut counted: Vec<Vec<Counters>> = Vec::new();
        let work = run_ranks(clients, 300, || {
            counted.push(servers.iter().map(|server| Counters::of(server.pid())).collect());
        })?;
        let [before, after] = &counted[..] else { return Err("nothing was counted".to_owned()) };
        let each = before.iter().zip(after).enumerate();
        let servers = each.map(|(i, (b, a))| (format!("floor{i}"), a.since(b))).collect();
        Ok((work, servers))
    }
}

fn this_program() -> Result<Command, String> {
    let path = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(bound(Command::new(path)))
}
