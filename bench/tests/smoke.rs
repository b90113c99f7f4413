//! The bench as a whole, in its smallest form: no figure of it means anything, and nothing is compared
//! with a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;

use serde_json::Value;

/// Folder of the programs, which are built first if cargo runs us. Not where `./x test` does: it has
/// built everything.
fn programs() -> PathBuf {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let built = std::env::var_os("BB_TEST_BUILT").is_some();
        let Some(cargo) = std::env::var_os("CARGO").filter(|_| !built) else { return };
        let words =
            ["build", "--quiet", "--locked", "-p", "bb-server", "-p", "bb-cli", "-p", "bb-capi"];
        let status = Command::new(cargo).args(words).status().expect("cargo starts");
        assert!(status.success(), "what is measured builds");
    });
    let folder = Path::new(env!("CARGO_BIN_EXE_bench")).parent().expect("a folder");
    folder.to_path_buf()
}

/// A directory for one test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("bench-{name}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn bench(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        let programs = programs();
        command.arg("--smoke").arg("--reserve=0").arg("--directory").arg(&self.0);
        command
            .arg("--library")
            .arg(programs.join("libbb_capi.so"))
            .arg("--programs")
            .arg(programs);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// What the bench has left there, beside what it was asked to write.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("a directory").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("burstbay-bench")).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn real_every_row_runs_and_tells_what_it_did() {
    let scratch = Scratch::new("rows");
    let (file, plot) = (scratch.0.join("bench.json"), scratch.0.join("bench.svg"));
    let mut command = scratch.bench(&["--json"]);
    let output = command.arg(&file).arg("--svg").arg(&plot).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(scratch.left(), Vec::<String>::new());
    let text = fs::read_to_string(&file).expect("a file");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["version"], 1);
    let samples = report["samples"].as_array().expect("samples");
    let of = |row: &str, system: &str| {
        let found = samples.iter().find(|s| s["row"] == row && s["system"] == system);
        found.unwrap_or_else(|| panic!("no {row} of {system}"))
    };
    for summary in report["summary"].as_array().expect("summaries") {
        assert!(summary["rate"]["median"].as_f64().is_some_and(|rate| rate > 0.0), "{summary}");
    }
    let rows: std::collections::BTreeSet<&str> =
        samples.iter().filter_map(|sample| sample["row"].as_str()).collect();
    assert_eq!(rows.len(), 20, "{rows:?}");
    // The kernel saw what the servers wrote, and the cluster says what it wrote it with.
    let sample = of("seq-write", "burstbay-2+1");
    let servers = sample["servers"].as_array().expect("servers");
    let written: u64 = servers.iter().map(|s| s["write_bytes"].as_u64().unwrap_or(0)).sum();
    let bytes = sample["bytes"].as_u64().expect("bytes");
    assert_eq!((servers.len(), bytes), (4, 8 << 20));
    assert!(written >= bytes * 3 / 2, "{written}");
    assert_eq!((&sample["placed"]["data"], &sample["placed"]["parity"]), (&2.into(), &1.into()));
    // What each device and log did, by the servers, is what the kernel counted for their processes.
    let stores = sample["stores"].as_array().expect("stores");
    assert_eq!(stores.len(), 4 * 3, "two devices and a log each");
    let counted: u64 = stores.iter().map(|s| s["write_bytes"].as_u64().unwrap_or(0)).sum();
    assert!(counted.abs_diff(written) <= written / 10 + (1 << 20), "{counted} {written}");
    assert!(stores.iter().all(|store| store["flushes"].as_u64().is_some()));
    assert!(of("small-create", "burstbay-2+1")["bfs"]["calls"].as_i64() > Some(0));
    // Writes with a slow server, both ways of placement.
    for row in ["seq-write", "seq-write-fixed"] {
        assert!(of(row, "slow-2+1")["rate"].as_f64().is_some_and(|rate| rate > 0.0), "{row}");
    }
    assert!(of("seq-read", "floor-2+1")["bytes"] == 8 << 20);
    assert!(of("fsync-64", "direct")["latency_us"]["p99.9"].as_f64().is_some());
    assert_eq!(report["goals"].as_array().map(Vec::len), Some(20));
    assert!(fs::read_to_string(&plot).is_ok_and(|text| text.contains("burstbay-2+1")));
}

fn wait_for(child: &mut Child) -> std::process::ExitStatus {
    child.wait().expect("a child")
}

/// Servers whose configuration lies in the directory.
fn servers_in(directory: &Path) -> usize {
    let wanted = directory.display().to_string();
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let line = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
    processes.map(line).filter(|line| String::from_utf8_lossy(line).contains(&wanted)).count()
}

#[test]
fn real_an_interrupted_run_leaves_no_process_and_no_file() {
    use std::io::{BufRead, BufReader};
    let scratch = Scratch::new("interrupted");
    let mut command = scratch.bench(&["--rounds=1000000", "--only=seq-write"]);
    let mut child =
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let measured = |line: &String| line.contains("seq-write") && line.contains("burstbay-2+1");
    let line = lines.by_ref().map_while(Result::ok).find(measured);
    assert!(line.is_some(), "it measured something");
    assert!(servers_in(&scratch.0) >= 4);
    let pid = i32::try_from(child.id()).expect("a process number");
    // SAFETY: our own child, not waited for yet.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(wait_for(&mut child).code(), Some(1), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("interrupted")), "{rest:?}");
    assert_eq!(scratch.left(), Vec::<String>::new());
    assert_eq!(servers_in(&scratch.0), 0);
}
