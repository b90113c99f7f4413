//! The steps of the demo, in their order.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::clock;
use super::cluster::{Cluster, Victim};
use super::compare::{self, Comparison};
use super::place::{Place, SERVERS};
use super::processes::Running;
use super::report::{Report, Row};
use super::source::Source;
use crate::cargo::target_directory;

/// Where the copy goes.
const TARGET: &str = "bb:/data";

/// Everything that the steps share.
pub struct Demo<'a> {
    place: &'a Path,
    source: Source,
    programs: PathBuf,
    cluster: Cluster,
    report: Report,
    keep: bool,
}

impl<'a> Demo<'a> {
    /// Makes directories and the configurations.
    pub fn new(
        place: &'a Place,
        logs: &'a Path,
        source: Source,
        keep: bool,
    ) -> Result<Self, String> {
        let programs = target_directory()?.join("release");
        let cluster = Cluster::new(place, &programs, logs, keep)?;
        let report = Report::default();
        Ok(Self { place: &place.path, source, programs, cluster, report, keep })
    }

    /// All steps. With `keep` the answer says how to go on.
    pub fn run(mut self) -> Result<Option<String>, String> {
        self.form()?;
        let victim = self.copy_in()?;
        self.all_dirty()?;
        self.read_back(&victim)?;
        self.bring_back(&victim)?;
        self.sync()?;
        self.purge()?;
        self.report.print();
        if self.report.lost_bytes > 0 {
            return Err("bytes were lost".to_owned());
        }
        if !self.keep {
            return Ok(None);
        }
        let addresses = self.cluster.addresses();
        let pids: Vec<String> = self.cluster.release().iter().map(u32::to_string).collect();
        let (programs, place, pids) =
            (self.programs.display(), self.place.display(), pids.join(" "));
        Ok(Some(format!(
            "The servers run on (processes {pids}). Try:\n  \
             export BB_SERVERS={addresses}\n  \
             {programs}/bbadm cluster status --watch\n  \
             {programs}/bbctl cp -r SOME_DIRECTORY bb:/\n  \
             {programs}/bbctl ls -l /\n\
             Their backing file system is {place}/bfs. To stop them and remove everything:\n  \
             kill {pids}; rm -r {place}"
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
        self.cluster.client("bbctl", name, words)
    }

    fn bbctl_json(&self, name: &str, words: &[&str]) -> Result<Value, String> {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        self.bbctl(name, &words)?.finish_json(&[0])
    }

    fn form(&mut self) -> Result<(), String> {
        let since = self.step("format a cluster of one, and let three servers join it")?;
        self.cluster.format(0..1)?;
        self.cluster.nodes[0].server.start()?;
        self.cluster.format(1..self.cluster.nodes.len())?;
        for node in &mut self.cluster.nodes[1..] {
            node.server.start()?;
        }
        self.cluster.wait("every server has its part", |status| {
            let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
            status["state"] == "full"
                && nodes.len() as u64 == SERVERS
                && nodes.iter().all(|node| node["primaries"].as_u64() > Some(0))
        })?;
        self.cluster.print_status()?;
        self.row("format, join, spread partitions", 0, 0, since);
        Ok(())
    }

    fn copy_in(&mut self) -> Result<Victim, String> {
        let (bytes, files) = (self.source.bytes, self.source.files);
        let since = self.step("copy in; a server is killed half-way, and stays dead")?;
        let mut words: Vec<&OsStr> = ["cp", "-rp", "--parents"].map(OsStr::new).to_vec();
        words.extend(self.source.roots.iter().map(|root| root.as_os_str()));
        words.push(OsStr::new(TARGET));
        self.bbctl("mkdir", &["mkdir", TARGET].map(OsStr::new))?.finish(&[0])?;
        let mut copy = self.bbctl("copy-in", &words)?;
        let dirty = loop {
            clock::check()?;
            if let Some(status) = copy.ended()? {
                return Err(format!("the copy ended ({status}) before a server was killed"));
            }
            let dirty = self.cluster.status()?["bytes"]["dirty"].as_u64().unwrap_or(0);
            if dirty >= bytes * 2 / 5 {
                break dirty;
            }
            clock::pause(50);
        };
        let victim = self.cluster.victim()?;
        let node = &mut self.cluster.nodes[victim.index];
        let (number, pid) = (node.number, node.server.pid());
        node.server.kill()?;
        if let Some(status) = copy.ended()? {
            return Err(format!("the copy ended ({status}) before a server was killed"));
        }
        println!(
            "server {number} (process {pid}; {} in the Raft group) killed after {} MiB: it held {} \
             blocks and served {} partitions",
            victim.raft,
            dirty >> 20,
            victim.blocks,
            victim.primaries
        );
        let summary = copy.finish_json(&[0])?;
        if summary["bytes"].as_u64() != Some(bytes) || summary["files"].as_u64() != Some(files) {
            return Err(format!("copied {summary}, there are {bytes} bytes in {files} files"));
        }
        let seconds = |name: &str| {
            let seconds = summary[name].as_f64().ok_or_else(|| format!("no {name}: {summary}"));
            seconds.map(Duration::from_secs_f64)
        };
        self.report.longest_call = seconds("longest_call_seconds")?;
        self.report.longest_gap = seconds("longest_gap_seconds")?;
        self.row("copy in (a server killed)", bytes, files, since);
        Ok(victim)
    }

    fn fragments(&self, name: &str) -> Result<Value, String> {
        let answer = self.bbctl_json(name, &["frag-stat", "-rs", TARGET])?;
        let total = &answer["total"];
        println!(
            "{} files: dirty {}, pending {}, clean {}, deletable {} bytes",
            total["files"], total["dirty"], total["pending"], total["clean"], total["deletable"]
        );
        Ok(total.clone())
    }

    /// Nothing of what is read can come from a file system that holds names and not one byte.
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

    fn read_back(&mut self, victim: &Victim) -> Result<(), String> {
        let number = self.cluster.nodes[victim.index].number;
        let what = format!("read everything back, server {number} dead, from the others alone");
        let since = self.step(&what)?;
        let back = self.place.join("back");
        let words = [OsStr::new("cp"), OsStr::new("-rp"), OsStr::new(TARGET), back.as_os_str()];
        let summary = self.bbctl("copy-out", &words)?.finish_json(&[0])?;
        let (bytes, files) = (self.source.bytes, self.source.files);
        self.row("read back without the server", bytes, files, since);
        let blocks = summary["reconstructed_blocks"].as_u64().unwrap_or(0);
        println!("{blocks} blocks reconstructed");
        self.report.reconstructed_blocks = blocks;
        // Nothing came from below: it still has nothing.
        self.bfs_is_empty()?;
        self.compare("compare what was read", &back)?;
        std::fs::remove_dir_all(&back).map_err(|error| format!("{}: {error}", back.display()))?;
        if blocks == 0 {
            return Err("no block was reconstructed: the server was not really lost".to_owned());
        }
        let status = self.cluster.status()?;
        let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let said = self.cluster.nodes[victim.index].find_in(nodes);
        match said.and_then(|node| node["state"].as_str()) {
            Some("down") if status["state"] == "reduced" => self.cluster.print_status(),
            other => Err(format!("server {number} should be down, it is {other:?}: {status}")),
        }
    }

    fn bring_back(&mut self, victim: &Victim) -> Result<(), String> {
        let since = self.step("start the server again, and wait for full redundancy")?;
        let node = &mut self.cluster.nodes[victim.index];
        node.server.start()?;
        println!("server {} is process {} now", node.number, node.server.pid());
        self.cluster.wait("full redundancy", |status| status["state"] == "full")?;
        self.report.until_full = since.elapsed();
        self.cluster.print_status()?;
        self.row("start it again, full redundancy", 0, 0, since);
        Ok(())
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
        self.bbctl_json("sync", &["sync", "-r", TARGET])?;
        self.row("synchronize", self.source.bytes, self.source.files, since);
        let total = self.fragments("frag-stat-clean")?;
        if total["dirty"].as_u64() != Some(0) || total["pending"].as_u64() != Some(0) {
            return Err("nothing should be dirty any more".to_owned());
        }
        self.compare("compare the backing file system", &self.place.join("bfs/data"))
    }

    fn purge(&mut self) -> Result<(), String> {
        let since = self.step("purge")?;
        self.bbctl_json("purge", &["purge", "-r", TARGET])?;
        self.row("purge", self.source.bytes, self.source.files, since);
        let total = self.fragments("frag-stat-purged")?;
        let states = ["dirty", "pending", "clean", "deletable"];
        if states.iter().any(|state| total[*state].as_u64() != Some(0)) {
            return Err("the buffer should be empty".to_owned());
        }
        Ok(())
    }
}
