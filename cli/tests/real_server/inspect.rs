//! `bbd log-inspect`: what an administrator sees of a server that is down.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use serde_json::Value;

use crate::harness::{Cluster, Shape, bytes, write};

/// Where the ring begins on the log's device.
const RING_AT: u64 = 8 << 20;
const WOULD_FAIL: i32 = 4;

/// Exit code, what it printed, and its errors.
fn inspect(cluster: &Cluster, words: &[&str]) -> (Option<i32>, String, String) {
    let words = [&["log-inspect"], words].concat();
    let output = cluster.bbd(&words).output().expect("bbd starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A server that was killed after some files were written.
fn killed() -> Cluster {
    let mut cluster = Cluster::started(&Shape { device_mib: 64, ..Shape::default() });
    let client = cluster.client(30);
    for number in 0..20_u64 {
        write(&client, &format!("/f{number}"), &bytes(number, 100 << 10)).expect("writes");
    }
    let (code, _, said) = inspect(&cluster, &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("stop it first"), "{said}");
    cluster.kill();
    cluster
}

#[test]
fn real_log_of_a_killed_server_is_shown_and_not_changed() {
    let mut cluster = killed();
    let before = fs::read(cluster.path("log")).expect("the log");
    let (code, text, said) = inspect(&cluster, &["--json"]);
    assert_eq!(code, Some(0), "{said}");
    let report: Value = serde_json::from_str(&text).expect("one JSON document");
    let streams = report["streams"].as_array().expect("a list");
    let owners = |name: &str| streams.iter().filter(|s| s["owner"] == name).count();
    assert_eq!((owners("map"), owners("device"), owners("unknown")), (1, 4, 0), "{text}");
    assert!(owners("partition") > 0, "{text}");
    for kind in ["map", "put", "pg commit", "file meet", "session open"] {
        assert!(report["kinds"][kind]["records"].as_u64() > Some(0), "{kind}: {text}");
    }
    assert!(report["replay"]["WouldSucceed"]["partitions"].as_u64() > Some(0), "{text}");
    assert_eq!(report["devices"].as_array().map(Vec::len), Some(4));

    let (code, text, said) = inspect(&cluster, &["--records"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(text.contains("replay would succeed"), "{text}");
    assert!(text.contains("pg commit") && text.contains("blocks of device 1"), "{text}");

    // Data devices that are gone are named, and don't stand in the way.
    fs::rename(cluster.path("device2"), cluster.path("aside")).expect("put aside");
    let (code, text, said) = inspect(&cluster, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(text.contains("device2 is not usable"), "{text}");
    fs::rename(cluster.path("aside"), cluster.path("device2")).expect("put back");

    assert!(fs::read(cluster.path("log")).expect("the log") == before, "it only reads");
    cluster.start();
}

#[test]
fn real_log_inspection_and_server_agree_about_damage_and_torn_tails() {
    let mut cluster = killed();
    let whole = fs::read(cluster.path("log")).expect("the log");
    let log = OpenOptions::new().write(true).open(cluster.path("log")).expect("the log");
    let (_, text, _) = inspect(&cluster, &["--json", "--records"]);
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (report, records) = lines.split_last().expect("a report");
    let block_of = |record: &Value| record["lsn"].as_u64().expect("an LSN") / 4096 * 4096;
    let (first, last) = (block_of(&records[0]), block_of(&records[records.len() - 1]));
    assert!(report["end"].as_u64() > Some(last), "{report}");

    log.write_all_at(&[0; 4096], RING_AT + (first + last) / 2 / 4096 * 4096).expect("a hole");
    let (code, text, said) = inspect(&cluster, &[]);
    assert_eq!(code, Some(WOULD_FAIL), "{text}{said}");
    assert!(said.contains("damaged at LSN"), "{said}");
    assert!(text.contains("damaged: no group header"), "{text}");
    let Err((status, refusal)) = cluster.try_start() else { panic!("it serves") };
    assert_eq!(status.code(), Some(3), "{refusal}");

    // Without its last group the log ends earlier, and that is no damage.
    log.write_all_at(&whole, 0).expect("all of it");
    log.write_all_at(&[0; 4096], RING_AT + last).expect("a torn tail");
    let (code, text, said) = inspect(&cluster, &[]);
    assert_eq!(code, Some(0), "{text}{said}");
    cluster.start();
    cluster.stop();

    log.write_all_at(&vec![0; 8 << 20], 0).expect("no superblock");
    let (code, _, said) = inspect(&cluster, &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("not a commit log"), "{said}");
}

#[test]
fn real_man_page_names_the_commands_of_the_server() {
    let cluster = Cluster::format(&Shape { device_mib: 64, ..Shape::default() });
    for words in [&["man"][..], &["completions", "bash"]] {
        let page = cluster.bbd(words).output().expect("bbd starts").stdout;
        let page = String::from_utf8_lossy(&page).replace('\\', "");
        assert!(page.contains("log-inspect") && page.contains("--records"), "{page}");
    }
}
