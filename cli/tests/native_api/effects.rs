//! Settings whose effect is in what the library asks of the servers, and when: seen in the counters
//! of the monitor file.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{Cluster, Shape, now, pause};
use crate::programs::Programs;

const MIB: u64 = 1 << 20;

/// A counter of the monitor file.
fn counter(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} in {text}"))
}

/// Runs a program with these settings; its counters.
fn counters(programs: &Programs, words: &[&str], settings: &[(&str, &str)]) -> String {
    let file = programs.path("counters");
    let mut command = programs.command(words[0]);
    command.args(&words[1..]).env("IM_MONITOR_FILE", &file).envs(settings.iter().copied());
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(file).expect("counters")
}

fn cluster() -> (Cluster, Programs) {
    let cluster = Cluster::started(&Shape { device_mib: 512, ..Shape::default() });
    let programs = Programs::new(&cluster.address, &cluster.path("bfs"), 60);
    (cluster, programs)
}

#[test]
fn real_what_fits_the_buffers_for_reading_is_fetched_once() {
    let (_cluster, programs) = cluster();
    let (place, _) = programs.place("reads");
    programs.run_in("write", &[&place, "48"]);
    let read = |settings: &[(&str, &str)]| {
        counters(&programs, &["buffers", &place, "read", "48"], settings)
    };
    let small = read(&[("IM_CLIENT_RD_BUFFERS", "32")]);
    let large = read(&[("IM_CLIENT_RD_BUFFERS", "128")]);
    let gets = |text: &str| counter(text, "block_reads");
    assert!(gets(&small) * 2 >= gets(&large) * 3, "{small}{large}");
    assert!(counter(&small, "kept_bytes_max") <= 32 * MIB, "{small}");
    assert!(counter(&large, "kept_bytes_max") >= 48 * MIB, "{large}");
}

#[test]
fn real_written_bytes_that_wait_stay_within_the_buffers_for_writing() {
    let (_cluster, programs) = cluster();
    let write = |name: &str, mib: &str| {
        let (place, _) = programs.place(name);
        let words = ["buffers", &place, "write", "48"];
        let text = counters(&programs, &words, &[("IM_CLIENT_WR_BUFFERS", mib)]);
        counter(&text, "unacknowledged_bytes_max")
    };
    let (small, large) = (write("small", "32"), write("large", "128"));
    assert!((16 * MIB..=32 * MIB).contains(&small), "{small}");
    assert!((40 * MIB..=128 * MIB).contains(&large), "{large}");
}

#[test]
fn real_nothing_is_read_ahead_where_that_is_disabled() {
    let (_cluster, programs) = cluster();
    let (place, _) = programs.place("ahead");
    programs.run_in("write", &[&place, "8"]);
    let read = |value: &str| {
        let settings = [("IM_CLIENT_DISABLE_RA", value)];
        counters(&programs, &["buffers", &place, "read", "8"], &settings)
    };
    let (with, without) = (read("0"), read("1"));
    assert!(counter(&with, "read_ahead_pieces") > 0, "{with}");
    assert_eq!(counter(&without, "read_ahead_pieces"), 0, "{without}");
    let gets = |text: &str| counter(text, "block_reads");
    assert!(gets(&without) > gets(&with), "{with}{without}");
}

/// SIGSTOP or SIGCONT to the server.
fn signal(cluster: &Cluster, signal: i32) {
    let pid = i32::try_from(cluster.pid()).expect("a process number");
    // SAFETY: our own child, not waited for yet.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Runs `waits` with the server halted; for so long, or until the call has ended. What it says of
/// the call, how long that took, and the counters.
fn halted(settings: &[(&str, &str)], halt_ms: Option<u64>) -> (String, Duration, String) {
    let (cluster, programs) = cluster();
    let (place, _) = programs.place("waits");
    let file = programs.path("counters");
    let mut command = programs.command("waits");
    command.arg(&place).env("IM_MONITOR_FILE", &file).envs(settings.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let mut input = child.stdin.take().expect("piped");
    let mut line = String::new();
    lines.read_line(&mut line).expect("read");
    assert_eq!(line, "now\n");
    signal(&cluster, libc::SIGSTOP);
    let start = now();
    input.write_all(b"\n").expect("written");
    if let Some(milliseconds) = halt_ms {
        pause(milliseconds);
        signal(&cluster, libc::SIGCONT);
    }
    line.clear();
    lines.read_line(&mut line).expect("read");
    let took = start.elapsed();
    signal(&cluster, libc::SIGCONT);
    input.write_all(b"\n").expect("written");
    let mut errors = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut errors).expect("read");
    assert!(child.wait().expect("its end").success(), "{errors}");
    (line, took, fs::read_to_string(file).expect("counters"))
}

#[test]
fn real_a_call_gives_up_after_the_command_timeout_and_not_before() {
    let seconds = ("IM_CLIENT_COMMAND_TIMEOUT", "5");
    // Also where one request would wait for longer.
    for request in ["1", "300"] {
        let settings = [seconds, ("IM_RPC_CLIENT_TIMEOUT_SECONDS", request)];
        let (line, took, _) = halted(&settings, None);
        assert!(line.starts_with("Connection timed out; "), "{line}");
        assert!(line.contains("5 s"), "{line}");
        assert!(took >= Duration::from_secs(5), "{took:?}");
        assert!(took < Duration::from_secs(60), "{took:?}");
    }
    let settings = [("IM_CLIENT_COMMAND_TIMEOUT", "300")];
    let (line, took, _) = halted(&settings, Some(5_000));
    assert_eq!(line, "good\n");
    assert!(took >= Duration::from_secs(5), "{took:?}");
}

#[test]
fn real_a_request_without_an_answer_is_repeated_after_its_timeout() {
    let repeated = |seconds: &str| {
        let settings =
            [("IM_RPC_CLIENT_TIMEOUT_SECONDS", seconds), ("IM_CLIENT_COMMAND_TIMEOUT", "300")];
        let (line, _, text) = halted(&settings, Some(5_000));
        assert_eq!(line, "good\n");
        counter(&text, "requests_repeated")
    };
    assert!(repeated("1") > 0);
    assert_eq!(repeated("200"), 0);
}
