//! The blocking client: many threads, one executor that they drive in turn.

#[expect(dead_code, reason = "made for the other tests")]
mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bb_client::ClientOptions;
use bb_client::blocking::{Client, Platform, RawBuffer};
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

#[test]
fn a_callback_comes_once_and_may_call_and_submit_again() {
    let client = connect(&Arc::default());
    let file = Arc::new(client.open(b"/f", libc::O_RDWR | libc::O_CREAT, 0o644).expect("opens"));
    let data: &'static [u8] = Vec::leak(pattern(5, 9_000));
    let ended = Arc::new(AtomicU32::new(0));
    /// Writes block after block, each from the callback of the one before.
    fn chain(
        file: &Arc<bb_client::blocking::File>,
        data: &'static [u8],
        n: u64,
        ended: Arc<AtomicU32>,
    ) {
        let buffer = RawBuffer { address: data.as_ptr().cast_mut(), len: data.len() };
        let next = file.clone();
        // SAFETY: the memory is never changed and never freed.
        unsafe {
            file.start_pwritev(vec![buffer], n * 9_000, move |result| {
                assert_eq!(result.expect("writes"), 9_000);
                ended.fetch_add(1, Ordering::SeqCst);
                let mut out = [0; 9_000];
                assert_eq!(next.pread(&mut out, n * 9_000).expect("a blocking call"), 9_000);
                assert!(out == data);
                if n < 40 {
                    chain(&next, data, n + 1, ended);
                }
            });
        }
    }
    chain(&file, data, 0, ended.clone());
    assert!(soon(|| ended.load(Ordering::SeqCst) == 41), "all of them");
    client.flush().expect("flushes");
    assert_eq!(client.stat(b"/f").expect("stats").size, 41 * 9_000);
}

#[test]
fn callbacks_of_requests_come_also_where_the_client_is_shut_down() {
    let client = connect(&Arc::default());
    let file = client.open(b"/f", libc::O_RDWR | libc::O_CREAT, 0o644).expect("opens");
    let data: &'static [u8] = Vec::leak(pattern(5, 4_096));
    let ended = Arc::new(AtomicU32::new(0));
    for n in 0..200 {
        let (buffer, ended) =
            (RawBuffer { address: data.as_ptr().cast_mut(), len: data.len() }, ended.clone());
        // SAFETY: the memory is never changed and never freed.
        unsafe {
            file.start_pwritev(vec![buffer], n * 4_096, move |_| {
                ended.fetch_add(1, Ordering::SeqCst);
            });
        }
    }
    client.shut_down().expect("nothing is lost");
    assert_eq!(ended.load(Ordering::SeqCst), 200);
    let late = file.pread(&mut [0; 10], 0);
    assert_eq!(late.expect_err("it is gone").errno(), libc::ESHUTDOWN);
}

#[test]
fn a_panic_inside_ends_calls_with_an_error_and_not_the_process() {
    let (executor, _ring) = uring::executor(&UringOptions::for_library()).expect("io_uring");
    let fake = Fake::new(&executor.rt());
    fake.on_request(|request| {
        assert!(request.kind != Kind::FileStat, "planted");
        Fate::Served
    });
    let pool = BufPool::new(64 << 20, false).expect("memory");
    // SAFETY: nothing of the executor or the fake is kept here.
    let platform =
        unsafe { Platform::own(executor, pool, fake.caller(), vec![Address::from("server")]) };
    let client = Client::connect_on(platform, ClientOptions::default()).expect("connects");
    let file = client.open(b"/f", libc::O_RDWR | libc::O_CREAT, 0o644).expect("opens");
    let ring = client.ring(8);
    let buffer = ring.register(vec![1; 4_096].into());
    ring.write(&file, buffer, 0..4_096, 0, 7).expect("fits");
    ring.submit();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(file.fstat().is_err()));
        }
    });
    assert!(client.is_broken());
    assert!(file.pwrite(b"x", 0).is_err());
    // Whether it ended before the panic or with it, its end is told.
    let mut ended = 0;
    ring.wait(1, 8, |completion| {
        assert_eq!(completion.user_data, 7);
        ended += 1;
    });
    assert_eq!(ended, 1);
}

#[test]
fn a_ring_keeps_many_requests_under_way_and_tells_each_end_once() {
    const REQUESTS: usize = 300;
    let client = connect(&Arc::default());
    let file = client.open(b"/f", libc::O_RDWR | libc::O_CREAT, 0o644).expect("opens");
    let whole = pattern(3, REQUESTS * 4_096);
    file.pwrite(&whole, 0).expect("writes");
    file.fsync().expect("fsyncs");
    let ring = client.ring(REQUESTS);
    for n in 0..REQUESTS {
        let buffer = ring.register(vec![0; 4_096].into());
        let other = (n * 7) % REQUESTS;
        ring.read(&file, buffer, 0..4_096, other as u64 * 4_096, other as u64).expect("fits");
        let taken = ring.read(&file, buffer, 0..10, 0, 0).expect_err("one request a buffer");
        assert!([libc::EBUSY, libc::EAGAIN].contains(&taken.errno()));
    }
    assert_eq!(ring.fsync(&file, 1).expect_err("full").errno(), libc::EAGAIN);
    let mut seen = vec![false; REQUESTS];
    let mut left = REQUESTS;
    while left > 0 {
        left -= ring.wait(10, 64, |completion| {
            assert_eq!(completion.result.expect("reads"), 4_096);
            let slot = &mut seen[usize::try_from(completion.user_data).expect("small")];
            assert!(!std::mem::replace(slot, true), "twice");
        });
    }
    for n in 0..REQUESTS {
        let other = (n * 7) % REQUESTS;
        ring.with_buffer(n, |bytes| assert!(bytes == &whole[other * 4_096..][..4_096]))
            .expect("idle again");
    }
    assert_eq!(ring.wait(1, 1, |_| panic!("nothing is left")), 0);
}

#[test]
fn vectored_reads_fill_small_and_large_buffers_in_order() {
    let client = connect(&Arc::default());
    let file = client.open(b"/f", libc::O_RDWR | libc::O_CREAT, 0o644).expect("opens");
    let whole = pattern(9, 5_000_000);
    file.pwrite(&whole, 0).expect("writes");
    let mut buffers: Vec<Vec<u8>> =
        (0..1_024_usize).map(|n| vec![0; if n % 100 == 7 { 300_000 } else { n }]).collect();
    let mut outs: Vec<&mut [u8]> = buffers.iter_mut().map(|b| &mut b[..]).collect();
    let wanted: usize = outs.iter().map(|out| out.len()).sum();
    let read = file.preadv(&mut outs, 1_000).expect("reads");
    assert_eq!(read, wanted.min(whole.len() - 1_000));
    let all = buffers.concat();
    assert!(all[..read] == whole[1_000..][..read]);
}
