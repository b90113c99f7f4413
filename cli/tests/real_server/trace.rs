//! What the kernel saw: no acknowledgement before the flush (rule 13).
//!
//! strace can't see the operations of an `io_uring`. The kernel's own tracepoints do: direct writes
//! and flushes per inode (a write with `RWF_DSYNC` ends in the same flush as an fdatasync), and
//! what is sent on sockets.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::harness::{Cluster, Shape, bytes, not_run};

const EVENTS: [&str; 5] = [
    "iomap/iomap_dio_rw_begin",
    "iomap/iomap_dio_complete",
    "ext4/ext4_sync_file_enter",
    "ext4/ext4_sync_file_exit",
    "sock/sock_send_length",
];
const BLOCK: usize = 64 << 10;
const ROUNDS: usize = 25;

/// A trace buffer of our own; gone when dropped.
struct Tracing {
    mount: PathBuf,
    instance: PathBuf,
}

impl Tracing {
    fn start(below: &Path) -> Result<Self, String> {
        use std::os::unix::ffi::OsStrExt;
        let mount = below.join("tracefs");
        fs::create_dir_all(&mount).map_err(|error| error.to_string())?;
        let at = CString::new(mount.as_os_str().as_bytes()).expect("no NUL");
        let name = c"tracefs".as_ptr();
        // SAFETY: the strings end with a NUL and outlive the call; tracefs takes no options.
        if unsafe { libc::mount(name, at.as_ptr(), name, 0, std::ptr::null()) } != 0 {
            return Err(format!("cannot mount tracefs: {}", std::io::Error::last_os_error()));
        }
        let instance = mount.join(format!("instances/bb-{}", std::process::id()));
        let tracing = Self { mount, instance };
        fs::create_dir(&tracing.instance).map_err(|error| format!("no trace buffer: {error}"))?;
        tracing.set("buffer_size_kb", "16384")?;
        for event in EVENTS {
            tracing.set(&format!("events/{event}/enable"), "1")?;
        }
        tracing.set("tracing_on", "1")?;
        Ok(tracing)
    }

    fn set(&self, file: &str, value: &str) -> Result<(), String> {
        fs::write(self.instance.join(file), value).map_err(|error| format!("{file}: {error}"))
    }

    fn mark(&self, text: &str) {
        self.set("trace_marker", text).expect("a mark in the trace");
    }

    fn stop(&self) -> String {
        self.set("tracing_on", "0").expect("stops");
        fs::read_to_string(self.instance.join("trace")).expect("the trace")
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        use std::os::unix::ffi::OsStrExt;
        let _ = fs::remove_dir(&self.instance);
        let at = CString::new(self.mount.as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: the string ends with a NUL and outlives the call.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Inode, and offset.
    WriteBegins(u64, u64),
    /// Inode, offset, and whether it was a write with `RWF_DSYNC`.
    WriteEnds(u64, u64, bool),
    /// Inode, and number of the task that flushes.
    FlushBegins(u64, u64),
    FlushEnds(u64, u64),
    /// Bytes.
    Sent(u64),
    Mark,
}

/// Number after `key`, decimal or hexadecimal.
fn number(line: &str, key: &str) -> Option<u64> {
    let word = line.split_once(key)?.1.split([' ', ',']).next()?;
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

/// Number of the task that a line is about: the end of its first word.
fn task(line: &str) -> u64 {
    let word = line.split_whitespace().next().unwrap_or_default();
    word.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Events of these inodes and of this server, in the order in which they happened.
fn events(trace: &str, inodes: &BTreeMap<u64, String>, server: u32) -> Vec<Event> {
    let of = |line: &str| number(line, " ino ").filter(|inode| inodes.contains_key(inode));
    let by_server = format!("-{server} ");
    let event = |line: &str| {
        if line.contains("tracing_mark_write:") {
            return Some(Event::Mark);
        }
        if line.contains(" sock_send_length:") {
            let bytes = number(line, "length = ").unwrap_or(0);
            return (line.contains(&by_server) && bytes > 0).then_some(Event::Sent(bytes));
        }
        let write = line.contains("WRITE");
        if line.contains(" iomap_dio_rw_begin:") && write {
            return of(line)
                .and_then(|inode| Some(Event::WriteBegins(inode, number(line, " offset ")?)));
        }
        if line.contains(" iomap_dio_complete:") && write && line.contains(" error 0 ") {
            // It names the offset at which the write ended. The flush of a DSYNC write is inside.
            let start = number(line, " offset ")?.checked_sub(number(line, " ret ")?)?;
            let durable = line.contains("DSYNC");
            return of(line).map(|inode| Event::WriteEnds(inode, start, durable));
        }
        if line.contains(" ext4_sync_file_enter:") {
            return of(line).map(|inode| Event::FlushBegins(inode, task(line)));
        }
        if line.contains(" ext4_sync_file_exit:") && line.contains(" ret 0") {
            return of(line).map(|inode| Event::FlushEnds(inode, task(line)));
        }
        None
    };
    trace.lines().filter_map(event).collect()
}

/// How far a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Begun,
    Ended,
    Durable,
}

/// What is known of a file's durability at a moment.
#[derive(Default, Clone, Debug)]
struct Inode {
    /// By offset. A write that the kernel begins once more (it would have blocked) is one.
    writes: BTreeMap<u64, Write>,
    /// By task: what its flush, once it has ended, has made durable.
    flushes: BTreeMap<u64, Vec<u64>>,
}

impl Inode {
    fn see(&mut self, event: Event) {
        match event {
            Event::WriteBegins(_, offset) => {
                self.writes.insert(offset, Write::Begun);
            }
            Event::WriteEnds(_, offset, durable) => {
                let write = if durable { Write::Durable } else { Write::Ended };
                self.writes.insert(offset, write);
            }
            Event::FlushBegins(_, task) => {
                let ended = self.writes.iter().filter(|(_, write)| **write == Write::Ended);
                self.flushes.insert(task, ended.map(|(offset, _)| *offset).collect());
            }
            Event::FlushEnds(_, task) => {
                for offset in self.flushes.remove(&task).unwrap_or_default() {
                    self.writes.insert(offset, Write::Durable);
                }
            }
            Event::Sent(_) | Event::Mark => {}
        }
    }
}

/// What an event says of its inode.
fn see(state: &mut BTreeMap<u64, Inode>, event: Event) {
    if let Event::WriteBegins(inode, _)
    | Event::WriteEnds(inode, _, _)
    | Event::FlushBegins(inode, _)
    | Event::FlushEnds(inode, _) = event
    {
        state.entry(inode).or_default().see(event);
    }
}

/// Where each round puts one block and then commits it: its first answer, the put's, leaves when
/// block and log record are durable. Answers of rounds are those whose lengths nearly all rounds
/// see: not a renewal's, that comes now and then. Returns the number of puts seen, and violations.
fn early_puts(events: &[Event], inodes: &BTreeMap<u64, String>) -> (usize, Vec<String>) {
    let rounds: Vec<&[Event]> =
        events.split(|event| *event == Event::Mark).skip(1).step_by(2).collect();
    let has = |round: &[Event], bytes: u64| round.contains(&Event::Sent(bytes));
    let usual = |bytes: u64| {
        let often = rounds.iter().filter(|round| has(round, bytes)).count();
        often * 10 > rounds.len() * 8
    };
    let (mut puts, mut found) = (0, Vec::new());
    for (number, round) in rounds.iter().enumerate() {
        let answer = |event: &Event| matches!(event, Event::Sent(bytes) if usual(*bytes));
        let Some(first) = round.iter().position(answer) else { continue };
        puts += 1;
        let mut state: BTreeMap<u64, Inode> = BTreeMap::new();
        round[..first].iter().for_each(|event| see(&mut state, *event));
        for (inode, name) in inodes {
            let durable = |of: &Inode| of.writes.values().any(|write| *write == Write::Durable);
            if !state.get(inode).is_some_and(durable) {
                found.push(format!("put {number}: {name} {:?}", state.get(inode)));
            }
        }
    }
    (puts, found)
}

/// The last answer that the server sends before the client's fsync returns: everything that was
/// written to data devices since the last mark is durable by then, and so is a record in the log.
/// Returns the violations.
fn violations(events: &[Event], inodes: &BTreeMap<u64, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (round, window) in events.split(|event| *event == Event::Mark).enumerate() {
        let Some(last) = window.iter().rposition(|event| matches!(event, Event::Sent(_))) else {
            continue;
        };
        let mut state: BTreeMap<u64, Inode> = BTreeMap::new();
        for event in &window[..last] {
            see(&mut state, *event);
        }
        for (inode, name) in inodes {
            let of = state.get(inode).cloned().unwrap_or_default();
            let mut durable = of.writes.values().map(|write| *write == Write::Durable);
            // The log's background (ticks, checkpoints) may be on its way at any time.
            let good = if name == "log" { durable.any(|is| is) } else { durable.all(|is| is) };
            if !good {
                found.push(format!("round {round}: {name} {of:?}"));
            }
        }
        let written = |name: &str| {
            let inode = inodes.iter().find(|(_, n)| *n == name).map(|(inode, _)| inode);
            inode.and_then(|inode| state.get(inode)).is_some_and(|of| !of.writes.is_empty())
        };
        if round % 2 == 1 && !inodes.values().any(|name| name != "log" && written(name)) {
            found.push(format!("round {round}: no data device was written to"));
        }
    }
    found
}

#[test]
fn real_server_acknowledges_only_after_the_flush_of_every_device_concerned() {
    for (geometry, devices) in [("1+0", 1), ("2+1", 4)] {
        let cluster =
            Cluster::started(&Shape { devices, device_mib: 64, geometry, ..Shape::default() });
        let mut inodes = BTreeMap::new();
        for name in (0..devices).map(|n| format!("device{n}")).chain(["log".to_owned()]) {
            let inode = fs::metadata(cluster.path(&name)).expect("is there").ino();
            inodes.insert(inode, name);
        }
        let client = cluster.client(30);
        let file = client.open(b"/f", libc::O_WRONLY | libc::O_CREAT, 0o644).expect("opens");
        file.pwrite(&bytes(0, BLOCK), 0).expect("writes");
        file.fsync().expect("fsyncs");
        let tracing = match Tracing::start(&cluster.directory) {
            Ok(tracing) => tracing,
            Err(why) => {
                // Another file system, another kernel, or not root.
                return not_run(&format!("needs root, tracefs, and ext4 under target/: {why}"));
            }
        };
        for round in 1..=ROUNDS {
            let offset = (round * BLOCK) as u64;
            tracing.mark("begin");
            file.pwrite(&bytes(offset, BLOCK), offset).expect("writes");
            file.fsync().expect("fsyncs");
            tracing.mark("acknowledged");
        }
        let trace = tracing.stop();
        let events = events(&trace, &inodes, cluster.pid());
        let sent = events.iter().filter(|event| matches!(event, Event::Sent(_))).count();
        assert!(sent >= 2 * ROUNDS, "{sent} answers seen in {} events:\n{trace}", events.len());
        let found = violations(&events, &inodes);
        assert!(found.is_empty(), "{geometry}: {found:#?}\n{trace}");
        if devices == 1 {
            let (puts, found) = early_puts(&events, &inodes);
            assert!(puts * 10 >= ROUNDS * 9, "the answers of only {puts} puts were seen:\n{trace}");
            assert!(found.is_empty(), "answered early: {found:#?}\n{trace}");
        }
        file.close().expect("closes");
    }
}

#[test]
fn a_missing_or_early_flush_is_found_in_a_trace() {
    use Event::{FlushBegins, FlushEnds, Mark, Sent, WriteBegins, WriteEnds};
    let inodes = BTreeMap::from([(1, "device0".to_owned()), (2, "log".to_owned())]);
    let log = [WriteBegins(2, 0), WriteEnds(2, 0, true)];
    let check = |device: &[Event], log: &[Event]| {
        let all = [&[Mark], device, log, &[Sent(64), Mark]].concat();
        violations(&all, &inodes).len()
    };
    let good = [WriteBegins(1, 8), WriteEnds(1, 8, false), FlushBegins(1, 7), FlushEnds(1, 7)];
    assert_eq!(check(&good, &log), 0);
    assert_eq!(check(&good[..3], &log), 1, "the flush had not ended");
    assert_eq!(check(&[good[0], good[2], good[1], good[3]], &log), 1, "it began before the end");
    let other = [good[0], FlushBegins(1, 8), good[1], good[2], FlushEnds(1, 8)];
    assert_eq!(check(&other, &log), 1, "the one that began after the end of the write is not over");
    assert_eq!(check(&[WriteBegins(1, 8), WriteEnds(1, 8, true)], &log), 0, "written durably");
    assert_eq!(check(&good, &[log[0], WriteEnds(2, 0, false)]), 1, "the log was not flushed");
    assert_eq!(check(&[], &log), 1, "nothing was written");
    let put = |events: &[Event]| {
        let round = [&[Mark], events, &[Sent(96), Mark, Sent(32)]].concat();
        early_puts(&round.repeat(3), &inodes)
    };
    let durable = [&good[..], &log, &[Sent(80)]].concat();
    assert_eq!(put(&durable), (3, Vec::new()));
    let early = [&good[..3], &log, &[Sent(80)], &good[3..]].concat();
    assert_eq!(put(&early).1.len(), 3, "the put was answered before the flush had ended");
    let without = [&good[..], &[Sent(80)], &log].concat();
    assert_eq!(put(&without).1.len(), 3, "the put was answered before its record was durable");
}
