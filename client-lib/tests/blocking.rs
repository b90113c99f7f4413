//! The blocking client: many threads, one executor that they drive in turn.

#[expect(dead_code, reason = "made for the other tests")]
mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bb_client::ClientOptions;
use bb_client::blocking::{Client, Platform};
use bb_proto::Kind;
use bb_runtime::BufPool;
use bb_runtime::uring::{self, UringOptions};
use bb_transport::Address;
use fake::{Fake, Fate};

/// A client over a real ring, with a naive cluster in the same executor. Counts commits.
fn connect(commits: &Arc<AtomicU32>) -> Client {
    let (executor, _ring) = uring::executor(&UringOptions::for_library()).expect("io_uring");
    let fake = Fake::new(&executor.rt());
    let commits = commits.clone();
    fake.on_request(move |request| {
        if request.kind == Kind::Commit {
            commits.fetch_add(1, Ordering::SeqCst);
        }
        Fate::Served
    });
    let pool = BufPool::new(64 << 20, false).expect("memory");
    // SAFETY: nothing of the executor or the fake is kept here.
    let platform =
        unsafe { Platform::own(executor, pool, fake.caller(), vec![Address::from("server")]) };
    Client::connect_on(platform, ClientOptions::default()).expect("connects")
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251 + seed * 97) % 256).expect("a byte")).collect()
}

#[expect(clippy::disallowed_methods, reason = "real threads, real time")]
fn soon(what: impl Fn() -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(20);
    while !what() {
        if Instant::now() > until {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn threads_share_a_client_and_each_reads_what_it_wrote() {
    let client = connect(&Arc::default());
    std::thread::scope(|scope| {
        for thread in 0..8_usize {
            let client = client.clone();
            scope.spawn(move || {
                for round in 0..20 {
                    let path = format!("/t{thread}.{round}");
                    let data = pattern(thread + round, 1 + 7_001 * round);
                    let flags = libc::O_RDWR | libc::O_CREAT;
                    let file = client.open(path.as_bytes(), flags, 0o644).expect("opens");
                    file.pwrite(&data, 0).expect("writes");
                    if round % 3 == 0 {
                        file.fsync().expect("fsyncs");
                    }
                    let mut out = vec![0; data.len() + 1];
                    assert_eq!(file.pread(&mut out, 0).expect("reads"), data.len());
                    assert!(out[..data.len()] == data);
                    file.close().expect("closes");
                    assert_eq!(
                        client.stat(path.as_bytes()).expect("stats").size,
                        data.len() as u64
                    );
                }
            });
        }
    });
    client.disconnect().expect("ends");
}

#[test]
fn one_file_may_be_used_by_many_threads() {
    let client = connect(&Arc::default());
    let file = client.open(b"/f", libc::O_RDWR | libc::O_CREAT, 0o644).expect("opens");
    std::thread::scope(|scope| {
        for thread in 0..6_usize {
            let file = &file;
            scope.spawn(move || {
                for piece in 0..30 {
                    let at = ((piece * 6 + thread) * 10_000) as u64;
                    file.pwrite(&pattern(piece * 6 + thread, 10_000), at).expect("writes");
                }
            });
        }
    });
    let mut out = vec![0; 1_800_000];
    assert_eq!(file.pread(&mut out, 0).expect("reads"), 1_800_000);
    for (n, piece) in out.chunks(10_000).enumerate() {
        assert!(piece == pattern(n, 10_000), "{n}");
    }
    file.close().expect("closes");
}

#[test]
fn what_is_sealed_is_written_back_while_nobody_calls() {
    let commits = Arc::new(AtomicU32::new(0));
    let client = connect(&commits);
    let file = client.open(b"/f", libc::O_RDWR | libc::O_CREAT, 0o644).expect("opens");
    file.pwrite(&pattern(1, 5 << 20), 0).expect("writes");
    assert!(soon(|| commits.load(Ordering::SeqCst) >= 2), "the background thread drives");
    file.close().expect("closes");
}

#[test]
fn a_dropped_client_writes_back_what_its_dropped_files_hold() {
    let commits = Arc::new(AtomicU32::new(0));
    let client = connect(&commits);
    let file = client.open(b"/f", libc::O_RDWR | libc::O_CREAT, 0o644).expect("opens");
    file.pwrite(b"hello", 0).expect("writes");
    drop(file);
    drop(client);
    assert!(soon(|| commits.load(Ordering::SeqCst) == 1));
}

#[test]
fn errors_keep_their_numbers() {
    let client = connect(&Arc::default());
    let error = client.open(b"/none", libc::O_RDONLY, 0).err().expect("missing");
    assert_eq!(error.errno(), libc::ENOENT);
    assert_eq!(client.rmdir(b"/none").expect_err("missing").errno(), libc::ENOENT);
}
