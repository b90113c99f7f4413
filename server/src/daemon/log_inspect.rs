//! `bbd log-inspect`: says what the commit log of a server that is down holds, and whether the
//! server would get through it.

use std::io::{self, Write};

use bb_commitlog::inspect::Ending;
use bb_nvme::OpenError;
use bb_runtime::uring::{self, UringOptions};
use bb_runtime::{BufPool, ThreadPool};
use serde::Serialize;

use super::{DaemonError, open_device};
use crate::config::Config;
use crate::node::{LogInspection, RecordLine, ReplayVerdict, StartError, inspect_log};

/// Enough to read ahead in the log and to look at a superblock.
const BUFFER_BYTES: usize = 32 << 20;

/// What to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Show {
    /// JSON: the report as the last line, and before it a line for each record.
    pub json: bool,
    /// Each record.
    pub records: bool,
}

/// Looks at the log that `config` names and writes what it finds to `out`.
///
/// # Errors
/// [`DaemonError::LogInUse`] while a server runs, [`DaemonError::Replay`] after a report that says
/// that a start would be refused, and what a start could meet before it reads the log.
pub fn log_inspect(config: &Config, show: Show, out: &mut dyn Write) -> Result<(), DaemonError> {
    let map_failed = |error| DaemonError::Os { doing: "map memory for buffers", error };
    let pool = BufPool::new(BUFFER_BYTES, false).map_err(map_failed)?;
    let (executor, uring) = uring::executor(&UringOptions::for_reactor())?;
    let rt = executor.rt();
    let threads = ThreadPool::new("device", 1, 16);
    let mut printed = Ok(());
    let report = executor.block_on(async {
        // A server that runs has this open exclusively: what it changes cannot be read meanwhile.
        let log = match open_device(&rt, &uring, &threads, &config.log).await {
            Err(DaemonError::Open(error @ OpenError::InUse { .. })) => {
                return Err(DaemonError::LogInUse(error));
            }
            other => other?,
        };
        let (mut devices, mut unusable) = (Vec::new(), Vec::new());
        for store in &config.devices {
            match open_device(&rt, &uring, &threads, store).await {
                Ok(device) => devices.push(device),
                Err(error) => unusable.push((store.path.display().to_string(), error.to_string())),
            }
        }
        let visit = &mut |line: &RecordLine| {
            if show.records && printed.is_ok() {
                printed = if show.json { print_json(out, line) } else { print_record(out, line) };
            }
        };
        inspect_log(&rt, &pool, &log, &devices, unusable, visit)
            .await
            .map_err(|error| StartError::Log(error).into())
    })?;
    let printed = printed.and_then(|()| {
        if show.json { print_json(out, &report) } else { print_report(out, &report) }
    });
    match printed {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => return Err(DaemonError::Os { doing: "write the report", error }),
        Ok(()) => {}
    }
    match report.replay {
        ReplayVerdict::WouldSucceed { .. } => Ok(()),
        ReplayVerdict::WouldFail { why } => Err(DaemonError::Replay(why)),
    }
}

fn print_json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

fn print_record(out: &mut dyn Write, line: &RecordLine) -> io::Result<()> {
    let RecordLine { lsn, owner, page, kind, payload_bytes } = line;
    let page = page.map(|page| format!(" page {page}")).unwrap_or_default();
    writeln!(out, "{:>14}  {payload_bytes:>9}  {kind:<22}  {owner}{page}", lsn.0)
}

fn print_report(out: &mut dyn Write, report: &LogInspection) -> io::Result<()> {
    let superblock = &report.superblock;
    writeln!(out, "log {} of cluster {}", report.log, report.cluster)?;
    writeln!(
        out,
        "superblock: generation {}, start {}, {} of 4 copies whole, nonce {}",
        superblock.generation,
        superblock.incarnation,
        superblock.copies_whole,
        superblock.identity.nonce
    )?;
    let lap = |lsn: u64| (lsn / superblock.ring_bytes, lsn % superblock.ring_bytes);
    let (tail_lap, tail_at) = lap(superblock.trim.0);
    let (end_lap, end_at) = lap(report.end.0);
    writeln!(
        out,
        "ring: {} MiB, {} KiB in use, groups of up to {} KiB",
        superblock.ring_bytes >> 20,
        report.used_bytes >> 10,
        superblock.group_bytes_max >> 10
    )?;
    writeln!(out, "tail: LSN {} (lap {tail_lap}, byte {tail_at})", superblock.trim)?;
    writeln!(out, "end:  LSN {} (lap {end_lap}, byte {end_at}): {}", report.end, why(report))?;
    if let Some(stray) = &report.first_stray {
        writeln!(
            out,
            "behind the end: {} groups, first LSN {} of start {} at {}",
            report.strays, stray.lsn, stray.incarnation, stray.found_at
        )?;
    }
    writeln!(out, "\n{:<26} streams  snapshots  oldest start    records       bytes", "whose")?;
    for (owner, sum) in &report.streams {
        let oldest = sum.oldest_start.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
        writeln!(
            out,
            "{:<26} {:>7}  {:>9}  {oldest:>12}  {:>9}  {:>10}",
            owner.to_string(),
            sum.streams,
            sum.snapshots,
            sum.records.records,
            sum.records.payload_bytes
        )?;
    }
    writeln!(out, "\n{:<26}   records       bytes", "kind")?;
    for (kind, sum) in &report.kinds {
        writeln!(out, "{kind:<26} {:>9}  {:>10}", sum.records, sum.payload_bytes)?;
    }
    writeln!(out)?;
    for (path, why) in &report.unusable {
        writeln!(out, "data device {path} is not usable: {why}")?;
    }
    match &report.replay {
        ReplayVerdict::WouldSucceed { end, map_epoch, incarnation, partitions } => writeln!(
            out,
            "replay would succeed: {} groups up to LSN {end}; map epoch {map_epoch}, node start \
             {incarnation}, {partitions} partitions with a state",
            report.groups
        ),
        ReplayVerdict::WouldFail { why } => writeln!(out, "replay would fail: {why}"),
    }
}

fn why(report: &LogInspection) -> String {
    match &report.ending {
        Some(Ending::TornTail { why }) => {
            format!("{why}; nothing that is known to have been durable is missing")
        }
        Some(Ending::Damaged { why, proof }) => format!("damaged: {why}; {proof}"),
        Some(Ending::Unreadable { why }) => format!("cannot be read: {why}"),
        None => "not reached".to_owned(),
    }
}
