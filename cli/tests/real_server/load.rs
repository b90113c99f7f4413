//! Clients that write, fsync, read back and compare, while servers fail. No call may fail.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bb_client::blocking::Client;

use crate::harness::{bytes, now, read};
use crate::several::Servers;

/// Clients, each with files of its own.
const WORKERS: u32 = 3;
const FILES: u32 = 4;

/// What must be in the files.
pub type Model = BTreeMap<String, Vec<u8>>;

/// Times of writes that were acknowledged durable: begin and end.
#[derive(Default)]
pub struct Stamps(Mutex<Vec<(Instant, Instant)>>);

impl Stamps {
    fn note(&self, begin: Instant) {
        self.0.lock().expect("no worker panicked").push((begin, now()));
    }

    /// How many so far.
    pub fn count(&self) -> usize {
        self.0.lock().expect("no worker panicked").len()
    }

    /// From `event` to the end of the first write that began after it; None if there is none yet.
    pub fn first_after(&self, event: Instant) -> Option<Duration> {
        let all = self.0.lock().expect("no worker panicked");
        let after = all.iter().filter(|(begin, _)| *begin >= event);
        after.map(|(_, end)| end.duration_since(event)).min()
    }

    /// The longest write that ended after `event`.
    pub fn longest_after(&self, event: Instant) -> Duration {
        let all = self.0.lock().expect("no worker panicked");
        let after = all.iter().filter(|(_, end)| *end >= event);
        after.map(|(begin, end)| end.duration_since(*begin)).max().unwrap_or_default()
    }
}

/// Runs `faults` while clients work; what the files must hold in the end.
pub fn under_load(
    servers: &mut Servers,
    random: &mut fastrand::Rng,
    faults: impl FnOnce(&mut Servers, &mut fastrand::Rng, &Stamps),
) -> Model {
    let (stop, stamps) = (AtomicBool::new(false), Stamps::default());
    let clients: Vec<Client> = (0..WORKERS).map(|_| servers.client(2)).collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0_u32..)
            .zip(&clients)
            .map(|(worker, client)| {
                let (random, stop, stamps) = (random.fork(), &stop, &stamps);
                scope.spawn(move || work(client, worker, random, stop, stamps))
            })
            .collect();
        // Ends the workers also where a fault's check panics.
        let guard = Stop(&stop);
        faults(servers, random, &stamps);
        drop(guard);
        let mut model = Model::new();
        for worker in workers {
            model.extend(worker.join().expect("no call failed, and every byte was right"));
        }
        println!("{} writes, none lost", stamps.count());
        model
    })
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn work(
    client: &Client,
    worker: u32,
    mut random: fastrand::Rng,
    stop: &AtomicBool,
    stamps: &Stamps,
) -> Model {
    let mut model = Model::new();
    while !stop.load(Ordering::Relaxed) {
        let path = format!("/w{worker}-{}", random.u32(0..FILES));
        let known = model.entry(path.clone()).or_default();
        let begin = now();
        let flags = libc::O_RDWR | libc::O_CREAT;
        let file = slow("open", &path, || client.open(path.as_bytes(), flags, 0o644));
        let file = file.expect("opens");
        let at = random.usize(0..400_000);
        let len = [100, 5_000, 60_000, 300_000][random.usize(0..4)];
        let data = bytes(random.u64(..), random.usize(1..len));
        assert_eq!(file.pwrite(&data, at as u64).expect("writes"), data.len());
        slow("fsync", &path, || file.fsync()).expect("fsyncs");
        stamps.note(begin);
        known.resize(known.len().max(at + data.len()), 0);
        known[at..at + data.len()].copy_from_slice(&data);
        slow("close", &path, || file.close()).expect("closes");
        if random.u32(0..4) == 0 {
            same(&slow("read", &path, || read(client, &path)), known, &path);
        }
    }
    model
}

/// Says which calls took much longer than a fail-over.
fn slow<T>(what: &str, path: &str, call: impl FnOnce() -> T) -> T {
    let begin = now();
    let result = call();
    if begin.elapsed() > Duration::from_secs(8) {
        println!("{what} of {path} took {:.2} s", begin.elapsed().as_secs_f64());
    }
    result
}

/// Reads all files with a new client.
pub fn check(servers: &Servers, model: &Model) {
    let client = servers.client(2);
    for (path, data) in model {
        same(&read(&client, path), data, path);
    }
    client.disconnect().expect("ends");
}

/// Synchronizes and compares what the backing file system has.
pub fn check_backing(servers: &Servers, model: &Model) {
    servers.bbctl_good(&["sync", "-r", "/"]);
    for (path, data) in model {
        let found =
            std::fs::read(servers.directory.join("bfs").join(&path[1..])).expect("is there");
        same(&found, data, &format!("{path} on the backing file system"));
    }
}

fn same(found: &[u8], data: &[u8], path: &str) {
    let differs = found.iter().zip(data).position(|(a, b)| a != b);
    assert!(
        found == data,
        "{path}: {} bytes, should be {}, first difference at {differs:?}",
        found.len(),
        data.len()
    );
}
