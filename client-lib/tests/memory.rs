//! A client with little memory: whoever waits for some gets it, whoever has it now (rule 14).

#[expect(dead_code, reason = "each test uses a part of it")]
mod fake;

use std::rc::Rc;
use std::time::Duration;

use bb_client::{Client, ClientOptions};
use bb_runtime::{BufPool, Executor, Rt};
use fake::{Fake, Fate};

const RDWR_CREATE: i32 = libc::O_RDWR | libc::O_CREAT;

fn run<F: Future<Output = ()>>(seed: u64, test: impl FnOnce(Rt, Rc<Fake>) -> F) {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    let fake = Fake::new(&rt);
    executor.block_on(test(rt, fake));
}

async fn client_with(rt: &Rt, fake: &Rc<Fake>, pool: &BufPool, options: ClientOptions) -> Client {
    let seeds = vec![bb_transport::Address::from("server")];
    Client::connect(rt.clone(), pool.clone(), fake.caller(), seeds, options)
        .await
        .expect("connects")
}

/// Longer than anything here takes that does not hang.
const LONG: Duration = Duration::from_secs(300);

#[test]
fn writers_that_wait_for_memory_get_it_from_files_that_others_have_begun_since() {
    run(1, |rt, fake| async move {
        let pool = BufPool::new(32 << 20, false).expect("memory");
        let options = ClientOptions { write_back_bytes: 2 << 20, ..ClientOptions::default() };
        let client = client_with(&rt, &fake, &pool, options).await;
        // Each has a group of its own, with memory for 1 MiB: two fit at a time.
        let writers: Vec<_> = (0..12)
            .map(|n| {
                let client = client.clone();
                rt.spawn(async move {
                    let path = format!("/f{n:02}");
                    let file = client.open(path.as_bytes(), RDWR_CREATE, 0o644).await;
                    let file = file.expect("opens");
                    file.pwrite(&[n; 300_000], 0).await.expect("writes");
                    file
                })
            })
            .collect();
        let all = futures_util::future::join_all(writers);
        let files = rt.timeout(LONG, all).await.expect("nobody waits for ever");
        for file in files {
            file.expect("runs").close().await.expect("closes");
        }
        assert_eq!(pool.stats().used_bytes, 0, "all given back");
    });
}

#[test]
fn writers_get_memory_also_after_others_could_not_seal_when_they_began_to_wait() {
    run(2, |rt, fake| async move {
        let pool = BufPool::new(32 << 20, false).expect("memory");
        // For two groups, and not for a third beside them.
        let options = ClientOptions { write_back_bytes: 5 << 19, ..ClientOptions::default() };
        let client = client_with(&rt, &fake, &pool, options).await;
        // Both files have as many sealed groups under way as they may, and one that is open.
        fake.on_request(|request| match request.kind {
            bb_proto::Kind::Commit => Fate::Late(Duration::from_secs(3)),
            _ => Fate::Served,
        });
        let mut files = Vec::new();
        for n in 0..2 {
            let path = format!("/f{n}");
            let file = client.open(path.as_bytes(), RDWR_CREATE, 0o644).await.expect("opens");
            let file = Rc::new(file);
            for piece in 0..4 {
                file.pwrite(&[1; 100], piece * 100).await.expect("writes");
                let flushed = file.clone();
                drop(rt.spawn(async move { flushed.fsync().await }));
                rt.sleep(Duration::from_millis(1)).await;
            }
            file.pwrite(&[1; 300_000], 400).await.expect("writes");
            files.push(file);
        }
        let third = client.open(b"/third", RDWR_CREATE, 0o644).await.expect("opens");
        let write = third.pwrite(&[3; 300_000], 0);
        rt.timeout(LONG, write).await.expect("does not wait for ever").expect("writes");
    });
}

#[test]
fn what_is_kept_of_many_small_files_leaves_memory_for_the_next_read_and_write() {
    run(3, |rt, fake| async move {
        let writer = fake.client(ClientOptions::default()).await;
        let pool = BufPool::new(8 << 20, false).expect("memory");
        let reader = client_with(&rt, &fake, &pool, ClientOptions::default()).await;
        let mut out = [0; 100];
        for n in 0..2_500 {
            let path = format!("/f{n:04}");
            let file = writer.open(path.as_bytes(), RDWR_CREATE, 0o644).await.expect("opens");
            file.pwrite(&[7; 100], 0).await.expect("writes");
            file.close().await.expect("closes");
            let file = reader.open(path.as_bytes(), libc::O_RDONLY, 0).await.expect("opens");
            let read = rt.timeout(LONG, file.pread(&mut out, 0)).await;
            assert_eq!(read.expect("memory is found").expect("reads"), 100);
            file.close().await.expect("closes");
        }
        // A page of memory serves one size at a time, and something is kept in each.
        let file = reader.open(b"/large", RDWR_CREATE, 0o644).await.expect("opens");
        let write = async {
            file.pwrite(&vec![9; 3 << 20], 0).await.expect("writes");
            file.fsync().await
        };
        rt.timeout(LONG, write).await.expect("memory is found").expect("is durable");
        assert!(pool.stats().used_bytes <= 4 << 20, "what is kept is counted by its memory");
    });
}
