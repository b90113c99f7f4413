//! What a person reads at the end of a run.

use std::fmt::Write;

use super::goals::{Bound, Goal};
use super::report::Summary;
use super::rows::Unit;
use super::statistic::{Spread, spread};
use crate::limits::Limits;

/// One line for each row and system.
pub fn rows(summaries: &[Summary]) -> String {
    let mut text = format!(
        "{:<20} {:<13} {:>28} {:>22} {:>17} {:>7}  {}\n",
        "row",
        "system",
        "median (min .. max)",
        "p50 / p99 / p99.9 us",
        "CPU s/GB or us/op",
        "floor's",
        "share of the smallest limit"
    );
    let mut last = "";
    for summary in summaries {
        if summary.row.name != last {
            last = summary.row.name;
            let _ = writeln!(text, "\n{}: {}", last, summary.row.about);
        }
        let Some(rate) = summary.rate else {
            let why = summary.problem.as_deref().unwrap_or("not measured");
            let _ = writeln!(text, "{:<20} {:<13} {why}", "", summary.system);
            continue;
        };
        let unit = if summary.row.unit == Unit::Bytes { "MB/s" } else { "op/s" };
        let figure = format!("{} {unit}", spread_text(rate, 0));
        let share = summary.share.as_ref().map_or_else(String::new, |share| {
            format!("{:.2} of {} ({:.0})", share.share.median, share.limit, share.value)
        });
        let ratio = summary.cpu_to_floor.map_or_else(String::new, |r| format!("{:.2} x", r.median));
        let _ = writeln!(
            text,
            "{:<20} {:<13} {figure:>28} {:>22} {:>17} {ratio:>7}  {share}{}",
            "",
            summary.system,
            latencies(summary),
            cpu(summary),
            summary.problem.as_ref().map_or_else(String::new, |why| format!("  [{why}]"))
        );
    }
    text
}

fn latencies(summary: &Summary) -> String {
    match summary.latency_us {
        [Some(p50), Some(p99), Some(p999)] => format!("{p50:.0} / {p99:.0} / {p999:.0}"),
        _ => String::new(),
    }
}

/// Clients' and servers' apart.
fn cpu(summary: &Summary) -> String {
    let Some((client, server)) = summary.cpu else { return String::new() };
    match summary.row.unit {
        Unit::Bytes => format!("{client:.2} + {server:.2}"),
        Unit::Operations => format!("{client:.0} + {server:.0}"),
    }
}

fn spread_text(spread: Spread, digits: usize) -> String {
    let Spread { median, min, max } = spread;
    format!("{median:.digits$} ({min:.digits$} .. {max:.digits$})")
}

/// The parts of the machine.
pub fn limits(limits: &[Limits]) -> String {
    let mut text = String::from("limits of the machine in this run, median (min .. max)\n");
    type Of = fn(&Limits) -> f64;
    let all: [(&str, &str, Of); 6] = [
        ("copy of memory, one core", "GB/s", |l| l.copy_gbps),
        ("CRC32C, one core", "GB/s", |l| l.crc_gbps),
        ("checksums and 2+1, one core", "GB/s of data", |l| l.seal_2_1_gbps),
        ("checksums and 4+2, one core", "GB/s of data", |l| l.seal_4_2_gbps),
        ("loopback TCP, one stream", "GB/s", |l| l.tcp_gbps),
        ("blocking round trip, core to core", "us", |l| l.round_trip_us),
    ];
    for (name, unit, of) in all {
        let values: Vec<f64> = limits.iter().map(of).collect();
        if let Some(spread) = spread(&values) {
            let _ = writeln!(text, "  {name:<36} {:>22} {unit}", spread_text(spread, 1));
        }
    }
    text
}

/// Goals.
pub fn goals(goals: &[Goal]) -> String {
    let mut text = format!("{:<5} {:<58} {:<14} {:>24}  {}\n", "goal", "", "shall be", "is", "");
    for goal in goals {
        let bound = match goal.bound {
            Bound::AtLeast(bound) => format!("at least {bound}"),
            Bound::AtMost(bound) => format!("at most {bound}"),
        };
        let is = goal.measured.map_or_else(|| "-".to_owned(), |measured| spread_text(measured, 2));
        let _ = writeln!(
            text,
            "{:<5} {:<58} {bound:<14} {is:>24}  {}",
            goal.number,
            goal.text,
            goal.verdict()
        );
    }
    text
}
