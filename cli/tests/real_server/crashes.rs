//! kill -9 at any time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bb_client::blocking::Client;

use crate::harness::{Cluster, Shape, bytes, now, pause, random, read};

const FILES: u64 = 6;
const KILLS: u32 = 8;

/// Writes, fsyncs, truncates, renames, until told to stop; what must be there at the end.
pub fn work(
    client: &Client,
    mut random: fastrand::Rng,
    stop: &AtomicBool,
) -> BTreeMap<String, Vec<u8>> {
    let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for step in 0.. {
        if stop.load(Ordering::Relaxed) {
            println!("{step} steps");
            break;
        }
        let path = format!("/f{}", random.u64(0..FILES));
        let known = model.entry(path.clone()).or_default();
        let flags = libc::O_RDWR | libc::O_CREAT;
        let file = client.open(path.as_bytes(), flags, 0o644).expect("opens");
        for _ in 0..random.usize(1..4) {
            let at = random.usize(0..600_000);
            let len = [100, 5_000, 40_000, 400_000][random.usize(0..4)];
            let data = bytes(random.u64(..), random.usize(1..len));
            assert_eq!(file.pwrite(&data, at as u64).expect("writes"), data.len());
            known.resize(known.len().max(at + data.len()), 0);
            known[at..at + data.len()].copy_from_slice(&data);
        }
        match random.u32(0..10) {
            0 => {
                let size = random.usize(0..800_000);
                file.truncate(size as u64).expect("truncates");
                known.resize(size, 0);
            }
            1 => assert!(read(client, &path) == *known, "{path} at step {step}"),
            _ => file.fsync().expect("fsyncs"),
        }
        file.close().expect("closes");
        if random.u32(0..20) == 0 {
            let to = format!("/f{}", random.u64(0..FILES));
            if to != path {
                client.rename(path.as_bytes(), to.as_bytes(), 0).expect("renames");
                let moved = model.remove(&path).expect("known");
                model.insert(to, moved);
            }
        }
    }
    model
}

#[test]
fn real_kill_9_at_random_times_loses_nothing_that_was_acknowledged() {
    survives_kills(&Shape::default());
}

/// The cluster after that.
pub fn survives_kills(shape: &Shape) -> Cluster {
    let mut random = random();
    let mut cluster = Cluster::started(shape);
    let stop = AtomicBool::new(false);
    let client = cluster.client(60);
    let mut longest = std::time::Duration::ZERO;
    let model = std::thread::scope(|scope| {
        let rng = random.fork();
        let worker = scope.spawn({
            let (client, stop) = (&client, &stop);
            move || work(client, rng, stop)
        });
        for _ in 0..KILLS {
            pause(random.u64(20..900));
            cluster.kill();
            pause(random.u64(0..200));
            let start = now();
            cluster.start();
            longest = longest.max(start.elapsed());
            assert!(!worker.is_finished(), "the workload goes on");
        }
        pause(300);
        stop.store(true, Ordering::Relaxed);
        worker.join().expect("no call failed")
    });
    println!("longest restart: {longest:?}");
    client.disconnect().expect("ends");
    // Another process's view, and after one more crash.
    for crash in [false, true] {
        if crash {
            cluster.kill();
            cluster.start();
        }
        let client = cluster.client(60);
        for (path, data) in &model {
            let found = read(&client, path);
            let differs = found.iter().zip(data).position(|(a, b)| a != b);
            assert!(
                found == *data,
                "{path}: {} bytes, should be {}, first difference at {differs:?}",
                found.len(),
                data.len()
            );
        }
        client.disconnect().expect("ends");
    }
    cluster.bbctl_good(&["sync", "-r", "/"]);
    for (path, data) in &model {
        let found = std::fs::read(cluster.path("bfs").join(&path[1..])).expect("is there");
        assert!(found == *data, "{path} on the backing file system");
    }
    cluster
}
