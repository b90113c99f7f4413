//! A client of several nodes of which one dies, is mute, or is given up.

#[expect(dead_code, reason = "each test uses a part of it")]
mod fake;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bb_client::{Client, ClientOptions, File};
use bb_proto::{Code, Failure, Kind, PgBody, RegionIndex, partition_of};
use bb_runtime::{Executor, Rt};
use fake::{Fake, Fate, PARTITIONS, REGION_LOG2};

const RDWR_CREATE: i32 = libc::O_RDWR | libc::O_CREAT;

fn run<F: Future<Output = ()>>(seed: u64, test: impl FnOnce(Rt, Rc<Fake>) -> F) {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    let fake = Fake::over(&rt, 4, 8);
    executor.block_on(test(rt, fake));
}

fn quick() -> ClientOptions {
    ClientOptions { command_timeout: Duration::from_secs(120), ..ClientOptions::default() }
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251 + seed * 97) % 256).expect("a byte")).collect()
}

async fn open(client: &Client, path: &str) -> File {
    client.open(path.as_bytes(), RDWR_CREATE, 0o644).await.expect("opens")
}

async fn read_all(file: &File, len: usize) -> Vec<u8> {
    let mut out = vec![0; len + 1];
    let got = file.pread(&mut out, 0).await.expect("reads");
    out.truncate(got);
    out
}

/// A file whose record is not on the node `node`.
async fn file_off(fake: &Fake, client: &Client, node: u32) -> (File, String) {
    for n in 0.. {
        let path = format!("/f{n}");
        let file = open(client, &path).await;
        let fid = bb_proto::Fid(fake.state.borrow().files[path.as_bytes()].fid);
        let record = partition_of(fid, RegionIndex(0), PARTITIONS);
        if 1 + record.0 % 4 != node {
            return (file, path);
        }
        file.close().await.expect("closes");
    }
    unreachable!()
}

#[test]
fn writers_and_readers_go_on_through_the_death_of_any_node() {
    for (victim, mute) in [(1, false), (2, true), (3, false), (4, true), (1, true)] {
        run(u64::from(victim), |rt, fake| async move {
            let client = fake.client(quick()).await;
            let file = Rc::new(open(&client, "/f").await);
            let data = Rc::new(pattern(1, 6 << 20));
            file.pwrite(&data[..2 << 20], 0).await.expect("writes");
            let (f, d) = (file.clone(), data.clone());
            let rest = rt.spawn(async move {
                for at in (2 << 20..6 << 20).step_by(256 << 10) {
                    f.pwrite(&d[at..at + (256 << 10)], at as u64).await.expect("writes");
                }
                f.fsync().await.expect("fsyncs");
            });
            rt.sleep(Duration::from_millis(rt.random_below(20))).await;
            let nodes = if mute { &fake.mute } else { &fake.dead };
            nodes.borrow_mut().insert(victim);
            rt.sleep(Duration::from_secs(5)).await;
            fake.fail_over(victim);
            let failed_over = rt.now();
            rest.await.expect("runs");
            let pause = rt.now().since(failed_over);
            assert!(pause < Duration::from_secs(4), "node {victim}, mute {mute}: {pause:?}");
            // A new reader, while the node is still away.
            let other = fake.client(quick()).await;
            let started = rt.now();
            let again = open(&other, "/f").await;
            assert!(read_all(&again, 6 << 20).await == *data, "node {victim}");
            assert!(rt.now().since(started) < Duration::from_secs(3));
            assert_eq!(other.statistics().hedges, 0, "the map says who is down");
        });
    }
}

#[test]
fn a_commit_whose_answer_died_with_its_primary_is_not_done_twice() {
    run(11, |rt, fake| async move {
        let client = fake.client(quick()).await;
        let (file, path) = file_off(&fake, &client, 2).await;
        let fid = bb_proto::Fid(fake.state.borrow().files[path.as_bytes()].fid);
        // A region on node 2.
        let region = (0..).find(|r| partition_of(fid, RegionIndex(*r), PARTITIONS).0 % 4 == 1);
        let at = u64::from(region.expect("one of them")) << REGION_LOG2;
        let (died, fake2) = (Rc::new(Cell::new(false)), Rc::downgrade(&fake));
        let died2 = died.clone();
        fake.on_request(move |request| {
            let Some(fake) = fake2.upgrade() else { return Fate::Served };
            let on_victim = request.target % 4 == 1;
            if request.kind == Kind::Commit && on_victim && !died2.replace(true) {
                // Applied and replicated; then the node is gone.
                fake.dead.borrow_mut().insert(2);
                return Fate::AnswerLate(Duration::from_secs(60));
            }
            Fate::Served
        });
        file.pwrite(&pattern(1, 300_000), at).await.expect("writes");
        let (f, fake3, rt2) = (Rc::new(file), fake.clone(), rt.clone());
        let late = rt.spawn(async move {
            rt2.sleep(Duration::from_secs(3)).await;
            fake3.fail_over(2);
        });
        let started = rt.now();
        f.fsync().await.expect("fsyncs");
        assert!(died.get());
        assert!(rt.now().since(started) < Duration::from_secs(8), "{:?}", rt.now().since(started));
        late.await.expect("runs");
        let state = fake.state.borrow();
        let unique: BTreeSet<_> = state.applied.iter().collect();
        assert_eq!(unique.len(), state.applied.len(), "each group once at each partition");
    });
}

#[test]
fn new_groups_are_written_at_once_while_a_node_is_dead_and_nobody_has_said_so() {
    run(12, |rt, fake| async move {
        let geometry = bb_erasure::Geometry::new(3, 1).ok();
        let client = fake.client(ClientOptions { geometry, ..quick() }).await;
        let (file, path) = file_off(&fake, &client, 4).await;
        fake.dead.borrow_mut().insert(4);
        // Region 0 alone, so that no partition of the dead node takes part.
        let data = pattern(2, 1 << REGION_LOG2);
        file.pwrite(&data, 0).await.expect("writes");
        let started = rt.now();
        file.fsync().await.expect("fsyncs");
        assert!(rt.now().since(started) < Duration::from_secs(1));
        assert!(read_all(&file, data.len()).await == data);
        let state = fake.state.borrow();
        for group in state.groups.values() {
            let PgBody::Blocks { data, parity, members, .. } = &group.body else { continue };
            assert_eq!((*data, *parity), (2, 1), "N shrinks, K stays");
            let nodes: BTreeSet<u32> = members.iter().map(|m| 1 + m.device.0 % 4).collect();
            assert_eq!(nodes, BTreeSet::from([1, 2, 3]), "{path}");
        }
    });
}

#[test]
fn what_a_lost_partition_held_is_an_error_and_what_a_down_one_holds_is_waited_for() {
    run(13, |rt, fake| async move {
        let client = fake.client(quick()).await;
        let (file, path) = file_off(&fake, &client, 3).await;
        let fid = bb_proto::Fid(fake.state.borrow().files[path.as_bytes()].fid);
        let on_3 = |r: &u32| partition_of(fid, RegionIndex(*r), PARTITIONS).0 % 4 == 2;
        let region = (0..64).find(on_3).expect("one of them");
        let at = u64::from(region) << REGION_LOG2;
        let partition = partition_of(fid, RegionIndex(region), PARTITIONS);
        file.pwrite(&pattern(1, 100_000), at).await.expect("writes");
        file.fsync().await.expect("fsyncs");
        // Down: its only replica is on a node that is away.
        fake.dead.borrow_mut().insert(3);
        fake.change_map(|map| map.nodes[2].state = 1);
        rt.sleep(Duration::from_secs(2)).await;
        let file = Rc::new(file);
        let f = file.clone();
        let read = rt.spawn(async move {
            let mut out = vec![0; 1000];
            f.pread(&mut out, at).await.map(|_| out)
        });
        rt.sleep(Duration::from_secs(30)).await;
        assert!(!read.is_finished(), "it may come back");
        fake.dead.borrow_mut().clear();
        fake.change_map(|map| {
            map.nodes[2].state = 0;
            map.nodes[2].incarnation += 1;
            map.partitions[partition.0 as usize].config += 1;
        });
        let bytes = read.await.expect("runs").expect("reads");
        assert!(bytes == pattern(1, 100_000)[..1000]);
        // Lost: at once, with a sentence.
        rt.sleep(Duration::from_secs(2)).await;
        fake.change_map(|map| {
            let entry = &mut map.partitions[partition.0 as usize];
            entry.lost = true;
            entry.config += 1;
        });
        let started = rt.now();
        let mut out = vec![0; 1000];
        let error = file.pread(&mut out, at).await.expect_err("lost");
        assert_eq!(error.errno(), libc::EIO);
        assert!(error.to_string().contains("is lost"), "{error}");
        file.pwrite(&pattern(2, 1000), at).await.expect("into memory");
        let error = file.fsync().await.expect_err("lost");
        assert_eq!(error.errno(), libc::EIO);
        assert!(rt.now().since(started) < Duration::from_secs(10));
    });
}

#[test]
fn each_attempt_to_open_a_session_asks_for_another() {
    run(14, |_rt, fake| async move {
        // The first one's partition is down.
        let keys = Rc::new(RefCell::new(Vec::new()));
        let seen = keys.clone();
        fake.on_request(move |request| {
            if request.kind != Kind::SessionOpen {
                return Fate::Served;
            }
            seen.borrow_mut().push(request.body.clone());
            let first = seen.borrow().len() == 1;
            if first { Fate::Refused(Failure::new(Code::Busy, "")) } else { Fate::Served }
        });
        fake.client(quick()).await;
        assert!(matches!(&keys.borrow()[..], [a, b] if a != b));
    });
}

#[test]
fn whoever_asks_for_the_map_and_goes_away_holds_up_nobody() {
    for seed in 20..40 {
        run(seed, |rt, fake| async move {
            let client = fake.client(quick()).await;
            let files = [open(&client, "/a").await, open(&client, "/b").await];
            // Everything is mute in the middle of it, and comes back as it was.
            let writers: Vec<_> = files
                .into_iter()
                .map(|file| {
                    rt.spawn(async move {
                        for at in 0..12 {
                            file.pwrite(&pattern(at, 300_000), at as u64 * 300_000).await.unwrap();
                            file.fsync().await.expect("fsyncs");
                        }
                    })
                })
                .collect();
            for _ in 0..3 {
                rt.sleep(Duration::from_millis(rt.random_below(30))).await;
                fake.mute.borrow_mut().extend([1, 2, 3, 4]);
                rt.sleep(Duration::from_millis(500 + rt.random_below(6_000))).await;
                fake.mute.borrow_mut().clear();
            }
            let all = async {
                for writer in writers {
                    writer.await.expect("runs");
                }
            };
            rt.timeout(Duration::from_secs(100), all).await.expect("they end");
        });
    }
}
