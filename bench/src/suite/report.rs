//! Medians of each row and system, and the JSON file.

use serde_json::{Value, json};

use super::goals::Goal;
use super::rows::{Row, Unit, find};
use super::sample::Sample;
use super::shares::{Machine, Share};
use super::statistic::Spread;
use super::stores::Store;
use super::systems::{EXT4, FLOOR};
use crate::limits::Limits;

/// Version of the file's form.
const VERSION: u32 = 1;

/// A row on a system, over all rounds.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The row.
    pub row: &'static Row,
    /// The system.
    pub system: String,
    /// MB/s or operations per second.
    pub rate: Option<Spread>,
    /// p50, p99 and p99.9: the medians over the rounds.
    pub latency_us: [Option<f64>; 3],
    /// Of clients and of servers: seconds per GB, or microseconds per operation.
    pub cpu: Option<(f64, f64)>,
    /// CPU per GB, as a multiple of the floor's.
    pub cpu_to_floor: Option<Spread>,
    /// Most memory of a client and of a server, KiB.
    pub peak_kib: (u64, u64),
    /// Part of the smallest limit.
    pub share: Option<Share>,
    /// The first thing that went wrong.
    pub problem: Option<String>,
}

/// All of them, in the order of the rows.
pub fn summaries(
    rows: &[&'static Row],
    systems: &[(String, Option<super::cluster::Geometry>)],
    machine: &Machine<'_>,
) -> Vec<Summary> {
    let mut all = Vec::new();
    for row in rows {
        for (system, geometry) in systems {
            let tried = |s: &&Sample| s.row == row.name && s.system == *system;
            let samples: Vec<&Sample> = machine.samples.0.iter().filter(tried).collect();
            if samples.is_empty() {
                continue;
            }
            all.push(summary(row, system, *geometry, &samples, machine));
        }
    }
    all
}

fn summary(
    row: &'static Row,
    system: &str,
    geometry: Option<super::cluster::Geometry>,
    samples: &[&Sample],
    machine: &Machine<'_>,
) -> Summary {
    let (name, good) = (row.name, machine.samples);
    let median = |of: &dyn Fn(&Sample) -> Option<f64>| {
        good.spread(name, system, of).map(|spread| spread.median)
    };
    let per = |sample: &Sample, seconds: f64| match row.unit {
        Unit::Bytes => seconds / (sample.work.bytes as f64 / 1e9),
        Unit::Operations => seconds * 1e6 / sample.work.ops as f64,
    };
    let client = median(&|sample| Some(per(sample, sample.client_cpu())));
    let server = median(&|sample| Some(per(sample, sample.server_cpu())));
    let floor = if name.ends_with("write") { "seq-write" } else { "seq-read" };
    let by = |round| good.find(round, floor, FLOOR).map(Sample::cpu_per_gb);
    let comparable = row.unit == Unit::Bytes && row.phase.contains("-") && system != FLOOR;
    let peak = |of: &dyn Fn(&Sample) -> Option<u64>| {
        samples.iter().filter_map(|sample| of(sample)).max().unwrap_or(0)
    };
    let problem = samples.iter().find_map(|sample| {
        let said = sample.error.as_ref().or(sample.dishonest.first())?;
        Some(format!("round {}: {said}", sample.round + 1))
    });
    Summary {
        row,
        system: system.to_owned(),
        rate: good.rate(name, system),
        latency_us: [0.5, 0.99, 0.999]
            .map(|share| median(&|sample| sample.work.latencies.percentile_us(share))),
        cpu: client.zip(server),
        cpu_to_floor: comparable
            .then(|| good.ratio((name, system), |s| Some(s.cpu_per_gb()), by))
            .flatten(),
        peak_kib: (
            peak(&|sample| sample.work.peak_kib.iter().copied().max()),
            peak(&|sample| sample.servers.iter().map(|(_, counters)| counters.peak_kib).max()),
        ),
        share: geometry.and_then(|geometry| machine.share(row, system, geometry)),
        problem,
    }
}

/// What the file is about.
pub struct Run<'a> {
    /// `quick`, `full` or `smoke`.
    pub form: &'a str,
    /// Bytes of a large row.
    pub size: u64,
    /// Client processes.
    pub clients: u64,
    /// Whether large rows are at least twice as large as all caches of the clients that read them.
    pub beyond_caches: bool,
    /// Systems that were wanted and are not there, with the reasons.
    pub missing: &'a [(String, String)],
    /// What a reader should know.
    pub notes: &'a [String],
}

/// The whole file.
pub fn json(run: &Run<'_>, machine: &Machine<'_>, summaries: &[Summary], goals: &[Goal]) -> Value {
    let sample = |sample: &Sample| find(sample.row).map(|row| sample.json(row));
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    json!({
        "version": VERSION,
        "form": run.form,
        "machine": {
            "cores": machine.cores, "kernel": read("/proc/sys/kernel/osrelease"),
            "congestion_control": read("/proc/sys/net/ipv4/tcp_congestion_control"),
        },
        "size_bytes": run.size,
        "clients": run.clients,
        "beyond_caches": run.beyond_caches,
        "missing": run.missing.iter().map(|(s, why)| json!({ "system": s, "why": why })).collect::<Vec<_>>(),
        "notes": run.notes,
        "limits": machine.limits.iter().map(limits).collect::<Vec<_>>(),
        "samples": machine.samples.0.iter().filter_map(sample).collect::<Vec<_>>(),
        "repeats": machine.repeats.0.iter().filter_map(sample).collect::<Vec<_>>(),
        "summary": summaries.iter().map(summary_json).collect::<Vec<_>>(),
        "goals": goals.iter().map(Goal::json).collect::<Vec<_>>(),
    })
}

fn limits(limits: &Limits) -> Value {
    json!({
        "copy_gbps": limits.copy_gbps, "crc32c_gbps": limits.crc_gbps,
        "seal_2+1_gbps": limits.seal_2_1_gbps, "seal_4+2_gbps": limits.seal_4_2_gbps,
        "tcp_gbps": limits.tcp_gbps, "round_trip_us": limits.round_trip_us,
    })
}

fn spread_json(spread: Option<Spread>) -> Value {
    spread.map_or(Value::Null, |s| json!({ "median": s.median, "min": s.min, "max": s.max }))
}

fn summary_json(summary: &Summary) -> Value {
    let unit = match summary.row.unit {
        Unit::Bytes => ("MB/s", "s/GB"),
        Unit::Operations => ("operations/s", "us/operation"),
    };
    json!({
        "row": summary.row.name, "about": summary.row.about, "system": summary.system,
        "unit": unit.0, "rate": spread_json(summary.rate),
        "latency_us": {
            "p50": summary.latency_us[0], "p99": summary.latency_us[1],
            "p99.9": summary.latency_us[2],
        },
        "cpu_unit": unit.1,
        "client_cpu": summary.cpu.map(|cpu| cpu.0), "server_cpu": summary.cpu.map(|cpu| cpu.1),
        "cpu_to_floor": spread_json(summary.cpu_to_floor),
        "client_peak_kib": summary.peak_kib.0, "server_peak_kib": summary.peak_kib.1,
        "limit": summary.share.as_ref().map(|share| json!({
            "name": share.limit, "value": share.value, "share": spread_json(Some(share.share)),
        })),
        "problem": summary.problem,
    })
}

/// Time of a small file: ours, the backing file system's part of it, and what the file system takes by
/// itself for the same with an fsync. A line for each row.
pub fn small_files(machine: &Machine<'_>, system: &str) -> String {
    use std::fmt::Write;
    let mut text = format!(
        "{system}, small files: us for each, with as many under way; calls on the backing file system \
         in it and their us; us of the file system by itself\n"
    );
    for row in super::rows::ROWS.iter().filter(|row| row.phase.starts_with("small-")) {
        let each = |sample: &Sample| {
            Some(sample.work.seconds * 1e6 * row.depth as f64 / sample.work.ops as f64)
        };
        let bfs = |of: fn((i64, i64)) -> i64| {
            let part = |sample: &Sample| Some(of(sample.bfs?) as f64 / sample.work.ops as f64);
            machine.samples.spread(row.name, system, part)
        };
        let (Some(ours), Some(calls), Some(us)) =
            (machine.samples.spread(row.name, system, each), bfs(|b| b.0), bfs(|b| b.1))
        else {
            continue;
        };
        let alone = machine.samples.spread(row.name, EXT4, each);
        let alone = alone.map_or_else(|| "-".to_owned(), |alone| format!("{:.0}", alone.median));
        let _ = writeln!(
            text,
            "  {:<20} {:>8.0}   {:>4.1} calls {:>8.0}   {alone:>8}",
            row.name, ours.median, calls.median, us.median
        );
    }
    text
}

/// Bytes and flushes of the servers beside those of the disk: a line for each row that writes.
pub fn devices(machine: &Machine<'_>, system: &str, rows: &[&'static Row]) -> String {
    use std::fmt::Write;
    let mut text = format!(
        "{system}: bytes written per byte of the user's: by the servers (kernel), their devices, their \
         logs (servers), by the disk; flushes per GB: of devices, of logs, of the disk\n"
    );
    type Of = fn(&Sample) -> u64;
    let columns: [Of; 7] = [
        |s| s.servers.iter().map(|(_, counters)| counters.write_bytes).sum(),
        |s| of_stores(s, false, |store| store.write_bytes),
        |s| of_stores(s, true, |store| store.write_bytes),
        |s| s.disk.write_bytes,
        |s| of_stores(s, false, |store| store.flushes),
        |s| of_stores(s, true, |store| store.flushes),
        |s| s.disk.flushes,
    ];
    for row in rows.iter().filter(|row| row.durable) {
        let medians = columns.map(|of| {
            let per_byte = |sample: &Sample| Some(of(sample) as f64 / sample.work.bytes as f64);
            machine.samples.spread(row.name, system, per_byte).map(|spread| spread.median)
        });
        if medians.iter().any(Option::is_none) {
            continue;
        }
        let _ = write!(text, "  {:<20}", row.name);
        for (at, median) in medians.into_iter().flatten().enumerate() {
            let _ = match at {
                0..4 => write!(text, " {median:>6.2}"),
                _ => write!(text, " {:>9.0}", median * 1e9),
            };
        }
        text.push('\n');
    }
    text
}

fn of_stores(sample: &Sample, log: bool, of: fn(&Store) -> u64) -> u64 {
    sample.stores.iter().filter(|store| (store.name == "log") == log).map(of).sum()
}
