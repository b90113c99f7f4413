//! The measuring: rounds, and in each of them every row on every system in turn.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use super::clock::{self, now};
use super::cluster::Geometry;
use super::floor_run::Floor;
use super::goals::OURS;
use super::honesty::{Claim, complaints, disagreements};
use super::load::{Loader, Work};
use super::options::Options;
use super::process::{Counters, Disk, forget_peak};
use super::profile::Profile;
use super::rows::{RECORD, Ranks, Row, Unit};
use super::sample::{Placed, Sample};
use super::stores::{self, Store};
use super::system::{Kind, System};
use super::systems::{FLOOR, Systems};
use crate::limits::{self, Limits};

/// A row that takes longer has hung.
const ROW_SECONDS: u64 = 240;
/// Time for the space of removed files to come back, where the next row can do without it, ...
const SPACE_SECONDS: u64 = 4;
/// ... and where it cannot.
const SPACE_SECONDS_MAX: u64 = 120;
/// So small a part of a large row that is left of removed files counts as nothing.
const SETTLED_PART: u64 = 16;
/// Of a job's file.
const JOB_BYTES: u64 = 1 << 20;
/// Random writes of a rank, at most: each page is written once.
const RANDOM_WRITES: u64 = 4096;
/// Small files of a rank, at most.
const SMALL_FILES: u64 = 2000;

/// What a run has come to.
pub struct Runner<'a> {
    /// The command line.
    pub options: &'a Options,
    /// Bytes of a large row, all processes together.
    pub size: u64,
    /// Device number of the disk.
    pub disk: u64,
    /// The client program.
    pub loader: &'a Loader,
    /// The skeleton, if it is wanted.
    pub floor: Option<Floor>,
    /// All systems.
    pub systems: Systems,
    /// Everything measured.
    pub samples: Vec<Sample>,
    /// The same rows again and again, which tell of memory.
    pub repeats: Vec<Sample>,
    /// Columns: all systems so far, with their geometry.
    pub names: Vec<(String, Option<Geometry>)>,
    /// Of each round.
    pub limits: Vec<Limits>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// Looks where time goes, meanwhile.
    pub profile: RefCell<Option<Profile>>,
    started: Instant,
    broken: BTreeMap<String, String>,
    /// Where space of removed files may still come back.
    unsettled: BTreeSet<String>,
    made: BTreeMap<(String, &'static str), Vec<u64>>,
}

impl<'a> Runner<'a> {
    /// Nothing is measured yet.
    pub fn new(
        options: &'a Options,
        size: u64,
        disk: u64,
        loader: &'a Loader,
        systems: Systems,
        floor: Option<Floor>,
    ) -> Self {
        let floor_name = floor.iter().map(|_| (FLOOR.to_owned(), None));
        let of_systems = systems.all.iter().map(|s| (s.name.clone(), s.geometry()));
        Self {
            options,
            size,
            disk,
            loader,
            names: floor_name.chain(of_systems).collect(),
            floor,
            systems,
            samples: Vec::new(),
            repeats: Vec::new(),
            limits: Vec::new(),
            notes: Vec::new(),
            profile: RefCell::new(None),
            started: now(),
            broken: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            made: BTreeMap::new(),
        }
    }

    /// Files of the direct limits, written once, so that no flush has to commit a journal.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn prepare(&mut self, rows: &[&'static Row]) -> Result<(), String> {
        let direct = self.systems.all.iter().position(|s| matches!(s.kind, Kind::Direct));
        let Some(index) = direct else { return Ok(()) };
        for row in rows.iter().filter(|row| matches!(row.phase, "stream-write" | "fsync")) {
            let mut words = self.words(row, &self.systems.all[index], 0);
            for rank in &mut words {
                rank.push("seconds=1e9".to_owned());
                rank.push(format!("ops={}", JOB_BYTES / 4096));
            }
            self.loader.run(&words, None, ROW_SECONDS, || ())?;
        }
        Ok(())
    }

    /// One round.
    ///
    /// # Errors
    /// We were interrupted, or the machine itself can't be measured. A row that fails is no error: it
    /// is told in its sample.
    pub fn round(&mut self, round: u64, rows: &[&'static Row]) -> Result<(), String> {
        self.say(round, "limits", "", "copy, CRC32C, codec, TCP");
        self.limits.push(limits::measure(self.options.smoke).map_err(|error| error.to_string())?);
        let mut groups: Vec<(&str, Vec<&'static Row>)> = Vec::new();
        for row in rows {
            match groups.last_mut().filter(|(root, _)| *root == root_of(row)) {
                Some((_, group)) => group.push(row),
                None => groups.push((root_of(row), vec![row])),
            }
        }
        for (root, group) in groups {
            for row in &group {
                self.floor_row(round, row)?;
                let count = self.systems.all.len();
                for i in 0..count {
                    // Another one begins in each round.
                    let index = (i + usize::try_from(round).unwrap_or(0)) % count;
                    self.row(round, row, index)?;
                }
            }
            if round + 1 < self.options.rounds() {
                self.remove(round, root)?;
            }
        }
        Ok(())
    }

    /// One round of the clusters with a slow server: writes, on each in turn.
    ///
    /// # Errors
    /// We were interrupted.
    pub fn slow_round(&mut self, round: u64, rows: &[&'static Row]) -> Result<(), String> {
        for row in rows.iter().copied().filter(|row| row.phase == "stream-write") {
            let count = self.systems.all.len();
            for i in 0..count {
                let index = (i + usize::try_from(round).unwrap_or(0)) % count;
                self.row(round, row, index)?;
            }
            self.remove(round, row.name)?;
        }
        Ok(())
    }

    /// Small numbers of large writes, again and again, on the system that the goals are about.
    ///
    /// # Errors
    /// We were interrupted.
    pub fn repeat(&mut self, times: u64) -> Result<(), String> {
        let index = self.systems.all.iter().position(|system| system.name == OURS);
        let Some(index) = index else { return Ok(()) };
        for row in ["shared-write", "seq-write"].into_iter().filter_map(super::rows::find) {
            let kept = self.samples.len();
            for round in 0..times {
                self.row(round, row, index)?;
                self.remove(round, row.name)?;
            }
            self.repeats.extend(self.samples.drain(kept..));
        }
        Ok(())
    }

    /// Goes on with other systems; those so far are ended.
    ///
    /// # Errors
    /// These do not start.
    pub fn exchange(
        &mut self,
        systems: impl FnOnce() -> Result<Systems, String>,
    ) -> Result<(), String> {
        let missing = std::mem::take(&mut self.systems.missing);
        self.systems.all.clear();
        self.unsettled.clear();
        self.systems = systems()?;
        self.systems.missing.extend(missing);
        self.names.extend(self.systems.all.iter().map(|s| (s.name.clone(), s.geometry())));
        Ok(())
    }

    fn say(&self, round: u64, row: &str, system: &str, what: &str) {
        let seconds = self.started.elapsed().as_secs();
        let of = self.options.rounds();
        super::tell::progress(&format!(
            "[{seconds:>4} s] round {}/{of}  {row:<20} {system:<14} {what}",
            round + 1
        ));
    }

    fn floor_row(&mut self, round: u64, row: &'static Row) -> Result<(), String> {
        let Some(floor) =
            self.floor.as_ref().filter(|_| matches!(row.name, "seq-write" | "seq-read"))
        else {
            return Ok(());
        };
        let before = Disk::of(self.disk);
        let outcome = floor.run(row.name == "seq-read");
        let disk = Disk::of(self.disk).since(&before);
        clock::check()?;
        let (work, servers, error) = match outcome {
            Ok((work, servers)) => (work, servers, None),
            Err(error) => (Work::default(), Vec::new(), Some(error)),
        };
        let sample = Sample {
            round,
            row: row.name,
            system: FLOOR.to_owned(),
            work,
            servers,
            disk,
            stores: Vec::new(),
            placed: None,
            bfs: None,
            error,
            dishonest: Vec::new(),
        };
        self.keep(row, sample);
        Ok(())
    }

    fn keep(&mut self, row: &Row, sample: Sample) {
        let what = match &sample.error {
            Some(error) => format!("FAILED: {error}"),
            None => {
                let rate = sample.rate(row.unit);
                let unit = if row.unit == Unit::Bytes { "MB/s" } else { "op/s" };
                let p50 =
                    sample.p50_us().map_or_else(String::new, |us| format!(", p50 {us:.0} us"));
                let lies = sample.dishonest.join("; ");
                let lies = if lies.is_empty() { lies } else { format!("  NOT BELIEVED: {lies}") };
                format!("{rate:>9.0} {unit}{p50}{lies}")
            }
        };
        self.say(sample.round, row.name, &sample.system, &what);
        self.samples.push(sample);
    }

    fn row(&mut self, round: u64, row: &'static Row, index: usize) -> Result<(), String> {
        // Killing a server and waiting until all is well again takes half a minute.
        let skip = row.degraded && self.options.quick && round > 0;
        if skip || !self.systems.all[index].does(row) {
            return Ok(());
        }
        let name = self.systems.all[index].name.clone();
        let mut sample = Sample {
            round,
            row: row.name,
            system: name.clone(),
            work: Work::default(),
            servers: Vec::new(),
            disk: Disk::default(),
            stores: Vec::new(),
            placed: None,
            bfs: None,
            error: None,
            dishonest: Vec::new(),
        };
        let needed = row.needs.is_none_or(|needs| {
            self.samples.iter().any(|s| {
                s.round == round && s.row == needs && s.system == name && s.error.is_none()
            })
        });
        let outcome = if let Some(why) = self.broken.get(&name) {
            Err(why.clone())
        } else if !needed {
            Err(format!("{} failed", row.needs.unwrap_or_default()))
        } else if row.degraded {
            self.degraded(row, index, &mut sample)
        } else {
            self.measure(row, index, &mut sample)
        };
        clock::check()?;
        sample.error = outcome.err();
        self.made.insert((name, row.name), sample.work.ops_of_ranks.clone());
        self.keep(row, sample);
        Ok(())
    }

    /// A cluster that does not come back to full redundancy is measured no further.
    fn degraded(
        &mut self,
        row: &'static Row,
        index: usize,
        sample: &mut Sample,
    ) -> Result<(), String> {
        let change =
            |runner: &mut Self, what: fn(&mut super::cluster::Cluster) -> Result<(), String>| {
                let system = &mut runner.systems.all[index];
                let Kind::Burstbay(cluster) = &mut system.kind else { return Ok(()) };
                let outcome = what(cluster);
                if let Err(error) = &outcome {
                    runner.broken.insert(system.name.clone(), error.clone());
                }
                outcome
            };
        let killed = now();
        change(self, super::cluster::Cluster::kill_one)?;
        self.say(
            sample.round,
            row.name,
            &sample.system,
            &took("a server was killed; noticed", killed),
        );
        let outcome = self.measure(row, index, sample);
        let started = now();
        change(self, super::cluster::Cluster::start_again)?;
        self.say(
            sample.round,
            row.name,
            &sample.system,
            &took("started again; all is well", started),
        );
        outcome
    }

    fn measure(&self, row: &'static Row, index: usize, sample: &mut Sample) -> Result<(), String> {
        let system = &self.systems.all[index];
        if !row.durable {
            forget(system);
        }
        let pids = system.pids();
        let mut seen: Vec<Result<Seen, String>> = Vec::new();
        pids.iter().for_each(|(_, pid)| forget_peak(*pid));
        let words = self.words(row, system, sample.round);
        let work = self.loader.run(&words, system.configuration(), ROW_SECONDS, || {
            seen.push(Seen::of(system, &pids, self.disk));
            if let Some(profile) = &mut *self.profile.borrow_mut() {
                profile.turn(row.name);
            }
        })?;
        let mut seen = seen.into_iter();
        let (Some(before), Some(after)) = (seen.next(), seen.next()) else {
            return Err("nothing was counted".to_owned());
        };
        let (before, after) = (before?, after?);
        let counters = after.servers.iter().zip(&before.servers).map(|(a, b)| a.since(b));
        sample.servers = pids.iter().map(|(name, _)| name.clone()).zip(counters).collect();
        sample.disk = after.disk.since(&before.disk);
        sample.stores = stores::since(after.stores, &before.stores);
        sample.work = work;
        let settled = !self.unsettled.contains(&system.name);
        let left = before.placed.map_or(0, |placed| placed.used_bytes);
        let left = u64::try_from(left).unwrap_or(0);
        let change = after.placed.zip(before.placed).map(|(after, before)| after.since(&before));
        sample.placed = change.filter(|_| settled);
        sample.bfs = change.map(|change| (change.bfs_calls, change.bfs_us));
        if row.durable
            && let Some(geometry) = system.geometry()
        {
            let written = sample.servers.iter().map(|(_, counters)| counters.write_bytes).sum();
            sample.dishonest = complaints(&Claim {
                geometry,
                user_bytes: sample.work.bytes,
                written_bytes: written,
                placed: sample.placed,
                left_bytes: left.min(self.size / SETTLED_PART),
                full_groups: matches!(row.phase, "stream-write" | "shared-write")
                    && !self.options.smoke,
            });
            sample.dishonest.extend(disagreements(&sample.servers, &sample.stores));
        }
        Ok(())
    }

    /// Arguments of each process of a row.
    fn words(&self, row: &Row, system: &System, round: u64) -> Vec<Vec<String>> {
        let clients = self.options.clients;
        let ranks = match row.ranks {
            Ranks::One => 1,
            Ranks::All => clients,
            Ranks::Double => 2 * clients,
        };
        let each = self.size / clients;
        let bytes = match row.phase {
            "shared-write" | "shared-read" => each / RECORD * RECORD,
            "fsync" => JOB_BYTES,
            _ => each >> 20 << 20,
        };
        let ours = system.geometry().is_some();
        let of_rank = |rank: u64| {
            let made = row.needs.and_then(|needs| {
                let made = self.made.get(&(system.name.clone(), needs))?;
                made.get(usize::try_from(rank).ok()?).copied()
            });
            // Exactly the files that were made.
            let ops = match row.phase {
                "small-create" => self.options.ops().min(SMALL_FILES),
                "small-stat" | "small-read" | "small-unlink" => made.unwrap_or(0),
                "random-write" => self.options.ops().min(RANDOM_WRITES),
                _ => self.options.ops(),
            };
            let seconds = if row.phase == "small-unlink" { 1e9 } else { self.options.seconds() };
            vec![
                row.phase.to_owned(),
                format!("path={}", system.path),
                format!("rank={rank}"),
                format!("ranks={ranks}"),
                format!("bytes={bytes}"),
                format!("len={}", row.len),
                format!("ops={ops}"),
                format!("seconds={seconds}"),
                format!("depth={}", (row.depth / ranks).max(1)),
                format!("shift={}", row.shift),
                format!("writers={clients}"),
                format!("seed={}", round + 1),
                format!("direct={}", u8::from(matches!(system.kind, Kind::Direct))),
                // Our close waits until what was written is durable; others need to be told.
                format!("durable={}", u8::from(!ours)),
            ]
            .into_iter()
            .chain(row.deterministic.then(|| "placement=DETERMINISTIC".to_owned()))
            .collect()
        };
        (0..ranks).map(of_rank).collect()
    }

    /// Removes what a group of rows has left, and waits until its space is free again.
    fn remove(&mut self, round: u64, root: &'static str) -> Result<(), String> {
        let row = Row { phase: "remove", depth: 64, ranks: Ranks::All, ..super::rows::ROWS[0] };
        for index in 0..self.systems.all.len() {
            let system = &self.systems.all[index];
            if matches!(system.kind, Kind::Direct) || self.broken.contains_key(&system.name) {
                continue;
            }
            let words = self.words(&row, system, round);
            let outcome = self.loader.run(&words, system.configuration(), ROW_SECONDS, || ());
            clock::check()?;
            if let Err(error) = outcome {
                let note = format!("{}: files of {root} were not removed: {error}", system.name);
                super::tell::progress(&format!("bench: {note}"));
                self.notes.push(note);
                continue;
            }
            self.wait_for_space(round, index)?;
        }
        Ok(())
    }

    /// What is left of removed files would be taken for what the next row writes.
    fn wait_for_space(&mut self, round: u64, index: usize) -> Result<(), String> {
        let system = &self.systems.all[index];
        let Kind::Burstbay(cluster) = &system.kind else { return Ok(()) };
        let start = now();
        let limit = if self.options.smoke { 0 } else { SPACE_SECONDS };
        let small = self.size / SETTLED_PART;
        let half = cluster.shape.capacity_bytes() / 2;
        let mut left = 0;
        let waited = clock::wait("space comes back", SPACE_SECONDS_MAX, || {
            left = u64::try_from(Placed::of(&cluster.status()?).used_bytes).unwrap_or(0);
            Ok(left < small || left < half && start.elapsed().as_secs() >= limit)
        });
        clock::check()?;
        if let Err(error) = waited {
            let note = format!(
                "round {}, {}: {} MiB are left: {error}",
                round + 1,
                system.name,
                left >> 20
            );
            super::tell::progress(&format!("bench: {note}"));
            self.notes.push(note);
        }
        let name = system.name.clone();
        if left < small {
            self.unsettled.remove(&name)
        } else {
            self.unsettled.insert(name)
        };
        Ok(())
    }
}

fn took(what: &str, since: Instant) -> String {
    format!("{what} after {:.1} s", since.elapsed().as_secs_f64())
}

fn root_of(row: &'static Row) -> &'static str {
    let mut row = row;
    let mut seen = BTreeSet::new();
    while let Some(needs) = row.needs.and_then(super::rows::find).filter(|n| seen.insert(n.name)) {
        row = needs;
    }
    row.name
}

/// All counters at one moment.
struct Seen {
    servers: Vec<Counters>,
    disk: Disk,
    stores: Vec<Store>,
    placed: Option<Placed>,
}

impl Seen {
    fn of(system: &System, pids: &[(String, u32)], disk: u64) -> Result<Self, String> {
        let (stores, placed) = match &system.kind {
            Kind::Burstbay(cluster) => {
                let status = cluster.status()?;
                (stores::stores(&status, |at| cluster.process_at(at)), Some(Placed::of(&status)))
            }
            _ => (Vec::new(), None),
        };
        let servers = pids.iter().map(|(_, pid)| Counters::of(*pid)).collect();
        Ok(Self { servers, disk: Disk::of(disk), stores, placed })
    }
}

/// Drops a system's files from the kernel's cache: reads come from the device, as ours do.
fn forget(system: &System) {
    match &system.kind {
        Kind::Plain | Kind::Direct => forget_below(Path::new(&system.path)),
        Kind::Burstbay(cluster) => {
            forget_below(Path::new(cluster.work.trim_start_matches("ime://")));
        }
        Kind::Gluster(gluster) => {
            forget_below(&gluster.mount);
            for path in gluster.bricks() {
                forget_below(&path);
            }
        }
    }
}

fn forget_below(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else { return };
    let files = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_file()));
    for path in files.map(|entry| entry.path()) {
        let Ok(file) = File::open(&path) else { continue };
        // SAFETY: the descriptor is open for the length of the call. It is advice: nothing depends on
        // its outcome but speed, and small files that stay are no matter.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_need_the_same_files_follow_each_other() {
        // What a group has left is removed at its end.
        let mut roots: Vec<&str> = super::super::rows::ROWS.iter().map(root_of).collect();
        roots.dedup();
        let each: BTreeSet<&str> = roots.iter().copied().collect();
        assert_eq!(roots.len(), each.len(), "{roots:?}");
    }
}
