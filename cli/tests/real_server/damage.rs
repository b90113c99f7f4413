//! Devices that are not what they were, and two servers on the same ones: refused at start, with a
//! sentence that names the device.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::harness::{Cluster, Shape, bytes, free_address, read, write};

const UNUSABLE: i32 = 3;

/// A cluster with a file in it, stopped.
fn with_data() -> (Cluster, Vec<u8>) {
    let mut cluster = Cluster::started(&Shape { device_mib: 64, ..Shape::default() });
    let data = bytes(1, 3 << 20);
    let client = cluster.client(30);
    write(&client, "/f", &data).expect("writes");
    client.disconnect().expect("ends");
    cluster.stop();
    (cluster, data)
}

/// Starts it; it must refuse, and say which device.
fn refused(cluster: &mut Cluster, what: &str, name: &str) {
    let Err((status, text)) = cluster.try_start() else { panic!("{what}: it serves") };
    let last = text.lines().next_back().unwrap_or_default();
    println!("{what}: {last}");
    assert_eq!(status.code(), Some(UNUSABLE), "{what}: {text}");
    let said: Vec<&str> = text.lines().filter(|line| line.starts_with("bbd: ")).collect();
    assert!(said.iter().any(|line| line.contains(name)), "{what}: '{name}' isn't named: {text}");
    assert!(!text.contains("panicked"), "{what}: {text}");
}

#[test]
fn real_devices_that_were_truncated_or_overwritten_are_refused() {
    let (mut cluster, data) = with_data();
    let device = cluster.path("device1");
    let whole = fs::read(&device).expect("the device");
    let file = OpenOptions::new().write(true).open(&device).expect("the device");

    file.set_len(0).expect("truncated");
    refused(&mut cluster, "truncated to nothing", "device1");
    file.write_all_at(&whole[..whole.len() / 2], 0).expect("half of it");
    refused(&mut cluster, "truncated to a half", "device1");
    file.write_all_at(&whole, 0).expect("all of it");
    file.write_all_at(&bytes(2, 1 << 20), 0).expect("garbage");
    refused(&mut cluster, "overwritten with garbage", "device1");
    file.write_all_at(&vec![0; 1 << 20], 0).expect("zeros");
    refused(&mut cluster, "overwritten with zeros", "device1");
    file.write_all_at(&whole, 0).expect("all of it");

    let log = cluster.path("log");
    let whole_log = fs::read(&log).expect("the log");
    let log_file = OpenOptions::new().write(true).open(&log).expect("the log");
    log_file.write_all_at(&bytes(3, whole_log.len()), 0).expect("garbage");
    refused(&mut cluster, "log overwritten with garbage", "log");
    log_file.set_len(0).expect("truncated");
    refused(&mut cluster, "log truncated to nothing", "log");
    log_file.write_all_at(&whole_log, 0).expect("all of it");

    // None of these attempts has changed anything.
    cluster.start();
    assert!(read(&cluster.client(30), "/f") == data);
    cluster.stop();

    // A piece of the log: refused, or made up for by a second copy; never silently less data.
    log_file.write_all_at(&bytes(4, 64 << 10), 0).expect("garbage");
    match cluster.try_start() {
        Ok(()) => assert!(read(&cluster.client(30), "/f") == data),
        Err((status, text)) => assert_eq!(status.code(), Some(UNUSABLE), "{text}"),
    }
}

#[test]
fn real_devices_of_another_cluster_or_used_twice_are_refused() {
    let (mut cluster, data) = with_data();
    let (other, _) = with_data();
    let (ours, aside) = (cluster.path("device1"), cluster.path("aside"));
    fs::rename(&ours, &aside).expect("put aside");
    fs::copy(other.path("device1"), &ours).expect("another cluster's");
    refused(&mut cluster, "another cluster's device", "device");
    fs::copy(cluster.path("device0"), &ours).expect("a copy");
    refused(&mut cluster, "a copy of another device", "device");
    fs::remove_file(&ours).expect("removed");
    refused(&mut cluster, "missing", "device1");

    // Which path a device has is not what counts.
    fs::rename(cluster.path("device0"), &ours).expect("swapped");
    fs::rename(&aside, cluster.path("device0")).expect("swapped");
    cluster.start();
    assert!(read(&cluster.client(30), "/f") == data);
    cluster.stop();

    fs::copy(other.path("log"), cluster.path("log")).expect("another cluster's log");
    refused(&mut cluster, "another cluster's log", "log");
}

#[test]
fn real_second_server_on_the_same_devices_is_refused() {
    let shape = Shape { device_mib: 64, ..Shape::default() };
    let mut cluster = Cluster::started(&shape);
    let conf = cluster.path("bb.conf");
    fs::write(&conf, cluster.configuration(&shape, &free_address())).expect("bb.conf");
    let output = std::process::Command::new(crate::harness::bbd())
        .arg("--config")
        .arg(&conf)
        .arg("run")
        .output()
        .expect("bbd starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(UNUSABLE), "{said}");
    assert!(said.contains("in use by another process"), "{said}");
    // The first one never noticed.
    cluster.bbctl_good(&["mkdir", "/d"]);
    cluster.stop();
}
