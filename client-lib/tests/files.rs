//! Files through the client against a naive cluster: what is written is read, in every weather.

#[expect(dead_code, reason = "each test uses a part of it")]
mod fake;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bb_client::{Client, ClientOptions, File};
use bb_cluster::DeviceState;
use bb_proto::{Code, Failure, Kind};
use bb_runtime::{Executor, Rt};
use fake::{Fake, Fate};

const RDWR_CREATE: i32 = libc::O_RDWR | libc::O_CREAT;

fn run<F: Future<Output = ()>>(seed: u64, test: impl FnOnce(Rt, Rc<Fake>) -> F) {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    let fake = Fake::new(&rt);
    executor.block_on(test(rt, fake));
}

fn quick() -> ClientOptions {
    ClientOptions {
        request_timeout: Duration::from_secs(2),
        command_timeout: Duration::from_secs(120),
        ..ClientOptions::default()
    }
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251 + seed * 97) % 256).expect("a byte")).collect()
}

async fn open(client: &Client, path: &str) -> File {
    client.open(path.as_bytes(), RDWR_CREATE, 0o644).await.expect("opens")
}

async fn read_all(file: &File) -> Vec<u8> {
    let mut out = vec![0; 9 << 20];
    let len = file.pread(&mut out, 0).await.expect("reads");
    out.truncate(len);
    out
}

#[test]
fn what_one_client_closes_another_reads() {
    run(1, |_rt, fake| async move {
        let (a, b) = (fake.client(quick()).await, fake.client(quick()).await);
        for (n, len) in
            [0, 1, 3_901, 16_384, 16_385, 40_000, 1 << 20, 5_000_001].into_iter().enumerate()
        {
            let path = format!("/f{n}");
            let data = pattern(n, len);
            let file = open(&a, &path).await;
            assert_eq!(file.pwrite(&data, 0).await.expect("writes"), len);
            assert!(read_all(&file).await == data, "reads its own writes");
            file.close().await.expect("closes");
            let file = b.open(path.as_bytes(), libc::O_RDONLY, 0).await.expect("opens");
            assert!(read_all(&file).await == data, "{len}");
            file.close().await.expect("closes");
        }
        let state = fake.state.borrow();
        assert_eq!(state.inline.len(), 3, "small contents travel in their commit");
        assert!(state.files.values().all(|f| f.opens == 0));
    });
}

#[test]
fn the_commit_of_a_small_file_closes_it_and_tells_size_and_time() {
    run(1, |_rt, fake| async move {
        let client = fake.client(quick()).await;
        let (small, twice) = (open(&client, "/small").await, open(&client, "/twice").await);
        small.pwrite(&pattern(1, 3_901), 0).await.expect("writes");
        small.close().await.expect("closes");
        let asked = |kind| fake.state.borrow().served.get(&kind).copied().unwrap_or(0);
        assert_eq!((asked(Kind::Commit), asked(Kind::FileClose), asked(Kind::FileSize)), (1, 0, 0));
        // Written, and durable before: nothing is left for a commit to say.
        twice.pwrite(&pattern(2, 3_901), 0).await.expect("writes");
        twice.fsync().await.expect("fsync");
        let other = open(&client, "/twice").await;
        other.pwrite(&pattern(3, 100), 5_000).await.expect("writes");
        // Of two opens, each is ended once.
        let closed = futures_util::future::join(twice.close(), other.close()).await;
        closed.0.and(closed.1).expect("both close");
        let state = fake.state.borrow();
        let told = state.files.values().map(|f| (f.opens, f.mtime_ns != 0));
        assert_eq!(told.collect::<Vec<_>>(), [(0, true), (0, true)]);
        let size = |path: &[u8]| state.files[path].size;
        assert_eq!((size(b"/small"), size(b"/twice")), (3_901, 5_100));
    });
}

#[test]
fn rule_7_a_late_answer_of_an_earlier_truncate_says_nothing_of_the_size() {
    run(1, |rt, fake| async move {
        let client = fake.client(quick()).await;
        let file = open(&client, "/f").await;
        let cuts = Cell::new(0);
        *fake.hook.borrow_mut() = Some(Box::new(move |request| {
            if request.kind == Kind::FileTruncate && cuts.replace(1) == 0 {
                return Fate::AnswerLate(Duration::from_secs(1));
            }
            Fate::Served
        }));
        let later = async {
            rt.sleep(Duration::from_millis(100)).await;
            file.truncate(300).await
        };
        let (first, second) = futures_util::future::join(file.truncate(5_000), later).await;
        first.and(second).expect("both cut");
        assert_eq!(file.size_hint(), 300);
        file.pwrite(&pattern(1, 100), 400).await.expect("writes");
        file.fsync().await.expect("durable");
        assert_eq!(fake.state.borrow().files[&b"/f"[..]].size, 500);
        file.close().await.expect("closes");
    });
}

#[test]
fn random_reads_writes_truncates_and_reopens_match_a_byte_array() {
    for seed in 0..12 {
        run(seed, |rt, fake| async move {
            let options = ClientOptions { write_back_bytes: 2 << 20, ..quick() };
            let (a, b) = (fake.client(options).await, fake.client(quick()).await);
            let mut model: Vec<u8> = Vec::new();
            let mut file = open(&a, "/f").await;
            for step in 0..120 {
                let draw = |below: u64| usize::try_from(rt.random_below(below)).expect("small");
                match draw(12) {
                    0..=5 => {
                        let (at, len) = (draw(3 << 20), [10, 5_000, 300_000][draw(3)]);
                        let data = pattern(step, 1 + draw(len));
                        file.pwrite(&data, at as u64).await.expect("writes");
                        model.resize(model.len().max(at + data.len()), 0);
                        model[at..at + data.len()].copy_from_slice(&data);
                    }
                    6..=8 => {
                        let (at, len) = (draw(3 << 20), 1 + draw(400_000));
                        let mut out = vec![0xEE; len];
                        let got = file.pread(&mut out, at as u64).await.expect("reads");
                        let end = model.len().min(at + len);
                        assert_eq!(got, end.saturating_sub(at), "seed {seed} step {step}");
                        assert!(out[..got] == model[at.min(end)..end], "seed {seed} step {step}");
                    }
                    9 => file.fsync().await.expect("fsyncs"),
                    10 => {
                        let size = draw(4 << 20);
                        file.truncate(size as u64).await.expect("truncates");
                        model.resize(size, 0);
                    }
                    _ => {
                        file.close().await.expect("closes");
                        let other = b.open(b"/f", libc::O_RDONLY, 0).await.expect("opens");
                        assert!(read_all(&other).await == model, "seed {seed} step {step}");
                        other.close().await.expect("closes");
                        file = open(&a, "/f").await;
                    }
                }
            }
            file.close().await.expect("closes");
        });
    }
}

/// Loses requests and answers, lets some arrive late, says busy, moves the horizon, forgets sessions.
fn bad_weather(rt: &Rt, fake: &Rc<Fake>) {
    let (rt, fake2) = (rt.clone(), Rc::downgrade(fake));
    fake.on_request(move |request| {
        if request.kind == Kind::GetMap {
            return Fate::Served;
        }
        if rt.random_below(40) == 0
            && let Some(fake) = fake2.upgrade()
        {
            // Behind what is minted now.
            let slot = fake.tick().saturating_sub(2);
            fake.state.borrow_mut().horizon = slot;
        }
        if rt.random_below(100) == 0
            && let Some(fake) = fake2.upgrade()
        {
            fake.state.borrow_mut().sessions.clear();
        }
        match rt.random_below(30) {
            0 => Fate::Lost,
            1 => Fate::AnswerLost,
            2 => Fate::NotConnected,
            3 => Fate::Refused(Failure::new(Code::Busy, "")),
            4 => Fate::Late(Duration::from_millis(rt.random_below(4_000))),
            _ => Fate::Served,
        }
    });
}

/// Writes, fsyncs and checks in bad weather. Panics where a byte is wrong.
fn storm(seed: u64, prepare: impl FnOnce(&Client)) {
    run(seed, |rt, fake| async move {
        let client = fake.client(quick()).await;
        prepare(&client);
        bad_weather(&rt, &fake);
        let file = open(&client, "/f").await;
        let mut model = vec![0_u8; 3 << 20];
        for step in 0..25 {
            let draw = |below: u64| usize::try_from(rt.random_below(below)).expect("small");
            let at = draw(2 << 20);
            let data = pattern(step, 1 + draw(200_000));
            file.pwrite(&data, at as u64).await.expect("writes");
            model[at..at + data.len()].copy_from_slice(&data);
            if draw(3) == 0 {
                file.fsync().await.expect("fsyncs");
                let bytes = fake.contents(b"/f");
                assert!(bytes == model[..bytes.len()], "seed {seed} step {step}");
            }
        }
        file.fsync().await.expect("fsyncs");
        fake.no_faults();
        let got = read_all(&file).await;
        assert!(got == model[..got.len()], "seed {seed}");
        rt.sleep(Duration::from_secs(20)).await;
        let late = fake.contents(b"/f");
        assert!(late == model[..late.len()], "late requests change nothing: seed {seed}");
    });
}

#[test]
fn acknowledged_writes_are_read_back_in_bad_weather() {
    (0..30).for_each(|seed| storm(seed, |_| {}));
}

#[cfg(feature = "planted")]
#[test]
fn planted_errors_are_found() {
    use bb_client::Planted;
    type Test<'a> = &'a dyn Fn(u64, &dyn Fn(&Client));
    let found = |planted, test: Test<'_>| {
        let survives = |seed| {
            let test = || test(seed, &|client: &Client| client.plant(planted));
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(test)).is_ok()
        };
        assert!(!(0..20).all(survives), "{planted:?} was not found");
    };
    found(Planted::DropSealedBeforeCommit, &|seed, plant| storm(seed, plant));
    found(Planted::FsyncBeforeCommit, &|seed, plant| storm(seed, plant));
    found(Planted::SkipReorderWait, &|seed, plant| overtaking(seed, plant));
    found(Planted::TrustCrc, &|seed, plant| rot(seed, plant));
}

/// A byte of a data block turns over.
fn rot(seed: u64, prepare: impl FnOnce(&Client)) {
    run(seed, |_rt, fake| async move {
        let client = fake.client(quick()).await;
        prepare(&client);
        let file = open(&client, "/f").await;
        file.pwrite(&pattern(3, 300_000), 0).await.expect("writes");
        file.fsync().await.expect("fsyncs");
        for ((_, _, index), (bytes, _)) in &mut fake.state.borrow_mut().blocks {
            if *index == 0 {
                bytes[1000] ^= 4;
            }
        }
        assert!(read_all(&file).await == pattern(3, 300_000));
        assert_eq!(client.reconstructed_blocks(), 1);
    });
}

#[test]
fn rot_is_found_at_the_reader_and_made_good() {
    rot(1, |_| {});
}

#[test]
fn rule_3_a_later_overlapping_commit_waits_for_the_outcome_of_the_earlier() {
    (0..5).for_each(|seed| overtaking(seed, |_| {}));
}

/// The first of two overlapping commits hangs on its way.
fn overtaking(seed: u64, prepare: impl FnOnce(&Client)) {
    run(seed, |rt, fake| async move {
        let client = fake.client(quick()).await;
        prepare(&client);
        let file = open(&client, "/f").await;
        file.pwrite(&pattern(0, 10), 500_000).await.expect("writes");
        file.fsync().await.expect("fsyncs");
        // The first commit hangs on the way for longer than its caller waits.
        let first = Cell::new(true);
        fake.on_request(move |request| {
            if request.kind == Kind::Commit && first.replace(false) {
                return Fate::Late(Duration::from_secs(3));
            }
            Fate::Served
        });
        file.pwrite(&pattern(1, 100_000), 0).await.expect("writes");
        let started = rt.now();
        let inner = file.pwrite(&pattern(1, 1), 0).await;
        inner.expect("writes");
        let flush = file.fsync();
        let mut flush = Box::pin(flush);
        assert!(rt.timeout(Duration::from_millis(100), &mut flush).await.is_err());
        file.pwrite(&pattern(2, 100_000), 50_000).await.expect("writes");
        file.fsync().await.expect("fsyncs");
        flush.await.expect("fsyncs");
        assert!(rt.now().since(started) >= Duration::from_secs(2), "it waited");
        rt.sleep(Duration::from_secs(10)).await;
        let bytes = fake.contents(b"/f");
        assert!(bytes[50_000..150_000] == pattern(2, 100_000));
        assert!(bytes[..50_000] == pattern(1, 100_000)[..50_000]);
    });
}

#[test]
fn calls_in_flight_outlive_a_restart_of_the_server() {
    run(6, |rt, fake| async move {
        let client = fake.client(quick()).await;
        let file = Rc::new(open(&client, "/f").await);
        fake.down.set(true);
        let (f, c) = (file.clone(), client.clone());
        let write = rt.spawn(async move {
            f.pwrite(&pattern(1, 3 << 20), 0).await.expect("writes");
            f.fsync().await.expect("fsyncs");
        });
        let mkdir = rt.spawn(async move { c.mkdir(b"/d", 0o755).await });
        rt.sleep(Duration::from_secs(30)).await;
        assert!(!write.is_finished() && !mkdir.is_finished());
        fake.down.set(false);
        write.await.expect("runs");
        mkdir.await.expect("runs").expect("made");
        assert!(read_all(&file).await == pattern(1, 3 << 20));
    });
}

#[test]
fn a_repeated_mkdir_is_carried_out_once() {
    run(7, |_rt, fake| async move {
        let client = fake.client(quick()).await;
        let first = Cell::new(true);
        fake.on_request(move |request| {
            let lost = request.kind == Kind::Namespace && first.replace(false);
            if lost { Fate::AnswerLost } else { Fate::Served }
        });
        client.mkdir(b"/d", 0o755).await.expect("not EEXIST");
        assert_eq!(fake.served(Kind::Namespace), 2);
        assert_eq!(client.mkdir(b"/d", 0o755).await.expect_err("exists").errno(), libc::EEXIST);
    });
}

#[test]
fn a_lost_session_is_replaced_and_unacknowledged_bytes_are_written_again() {
    run(8, |_rt, fake| async move {
        let client = fake.client(quick()).await;
        let file = open(&client, "/f").await;
        file.pwrite(&pattern(1, 700_000), 0).await.expect("writes");
        fake.state.borrow_mut().sessions.clear();
        file.fsync().await.expect("fsyncs in a new session");
        fake.state.borrow_mut().sessions.clear();
        assert!(read_all(&file).await == pattern(1, 700_000));
        fake.state.borrow_mut().sessions.clear();
        file.pwrite(&pattern(2, 10_000), 0).await.expect("writes");
        file.close().await.expect("closes");
        assert_eq!(fake.contents(b"/f")[..10_000], pattern(2, 10_000));
    });
}

#[test]
fn a_lost_device_is_made_good_by_parity() {
    run(9, |_rt, fake| async move {
        let client = fake.client(quick()).await;
        let file = open(&client, "/f").await;
        let data = pattern(3, 4 << 20);
        file.pwrite(&data, 0).await.expect("writes");
        file.close().await.expect("closes");
        let data_block = {
            let state = fake.state.borrow();
            let found = state.blocks.keys().find(|(.., index)| *index == 0).map(|(d, ..)| *d);
            found.expect("a data block")
        };
        fake.state.borrow_mut().failed_devices.insert(data_block);
        let other = fake.client(quick()).await;
        let file = other.open(b"/f", libc::O_RDONLY, 0).await.expect("opens");
        assert!(read_all(&file).await == data);
        assert!(other.reconstructed_blocks() > 0);
        let file = open(&client, "/g").await;
        file.pwrite(&data, 0).await.expect("writes");
        file.close().await.expect("goes to the other three");
    });
}

#[test]
fn what_a_block_is_computed_from_is_not_fetched_again_where_it_is_read_itself() {
    run(9, |_rt, fake| async move {
        const LEN: usize = 8 << 20;
        let client = fake.client(quick()).await;
        let file = open(&client, "/f").await;
        file.pwrite(&pattern(3, LEN), 0).await.expect("writes");
        file.close().await.expect("closes");
        // Of some groups a data block is gone, of others the parity, or nothing.
        fake.change_map(|map| map.devices[1].state = DeviceState::Failed.into());
        let reader = fake.client(ClientOptions { read_cache_bytes: 6 << 20, ..quick() }).await;
        let file = reader.open(b"/f", libc::O_RDONLY, 0).await.expect("opens");
        let (mut out, data) = (vec![0; 50_000], pattern(3, LEN));
        for at in (0..LEN).step_by(out.len()) {
            let len = file.pread(&mut out, at as u64).await.expect("reads");
            assert!(out[..len] == data[at..at + len], "at {at}");
        }
        assert!(reader.reconstructed_blocks() >= 4, "{}", reader.reconstructed_blocks());
        let gets = fake.state.borrow().served[&Kind::GetBlock];
        assert!((32..=34).contains(&gets), "{gets} requests for 32 segments");
    });
}

#[test]
fn a_full_buffer_makes_writers_wait_and_then_says_enospc_to_this_file_only() {
    run(10, |rt, fake| async move {
        let client = fake.client(quick()).await;
        let (file, other) = (open(&client, "/f").await, open(&client, "/g").await);
        fake.state.borrow_mut().full = true;
        file.pwrite(&pattern(1, 100_000), 0).await.expect("is taken");
        let started = rt.now();
        let error = file.fsync().await.expect_err("full");
        assert_eq!(error.errno(), libc::ENOSPC);
        assert!(rt.now().since(started) >= Duration::from_secs(120));
        assert_eq!(file.fsync().await.expect_err("again, until close").errno(), libc::ENOSPC);
        fake.state.borrow_mut().full = false;
        other.pwrite(&pattern(2, 100_000), 0).await.expect("writes");
        other.fsync().await.expect("its own errors only");
        assert_eq!(file.close().await.expect_err("reported at close").errno(), libc::ENOSPC);
        let file = open(&client, "/f").await;
        file.pwrite(&pattern(3, 100_000), 0).await.expect("writes");
        file.close().await.expect("forgotten with the close");
    });
}

#[test]
fn a_full_buffer_says_enospc_also_where_a_device_goes_at_the_end_of_the_wait() {
    for step in 0..40 {
        run(step, |rt, fake| async move {
            let client = fake.client(quick()).await;
            let file = open(&client, "/f").await;
            fake.state.borrow_mut().full = true;
            file.pwrite(&pattern(1, 100_000), 0).await.expect("is taken");
            let (clock, cluster) = (rt.clone(), fake.clone());
            // From then on a group can have fewer blocks only: it begins anew, with no time left.
            rt.spawn(async move {
                clock.sleep(Duration::from_millis(119_000 + step * 25)).await;
                cluster.change_map(|map| {
                    map.devices[..2].iter_mut().for_each(|d| d.state = DeviceState::Failed.into());
                });
            });
            let error = file.fsync().await.expect_err("full");
            assert_eq!(error.errno(), libc::ENOSPC, "step {step}: {error}");
        });
    }
}

#[test]
fn space_that_comes_back_ends_the_wait() {
    run(11, |rt, fake| async move {
        let client = fake.client(quick()).await;
        let file = Rc::new(open(&client, "/f").await);
        fake.state.borrow_mut().full = true;
        let f = file.clone();
        let write = rt.spawn(async move {
            f.pwrite(&pattern(1, 20 << 20), 0).await.expect("writes");
            f.fsync().await.expect("fsyncs");
        });
        rt.sleep(Duration::from_secs(60)).await;
        assert!(!write.is_finished(), "more than the client may hold back");
        fake.state.borrow_mut().full = false;
        write.await.expect("runs");
    });
}

#[test]
fn rule_3_a_given_up_commit_is_cancelled_before_a_later_one_overtakes_it() {
    run(12, |rt, fake| async move {
        let client = fake.client(quick()).await;
        let file = open(&client, "/f").await;
        let lost = Rc::new(Cell::new(true));
        let losing = lost.clone();
        fake.on_request(move |request| match request.kind {
            Kind::Commit | Kind::CancelCommit if losing.get() => Fate::Lost,
            _ => Fate::Served,
        });
        file.pwrite(&pattern(1, 50_000), 0).await.expect("is taken");
        assert!(file.fsync().await.is_err());
        assert!(file.close().await.is_err());
        let file = open(&client, "/f").await;
        file.pwrite(&pattern(2, 50_000), 0).await.expect("is taken");
        rt.sleep(Duration::from_secs(1)).await;
        assert!(fake.state.borrow().applied.is_empty(), "waits for the cancel");
        lost.set(false);
        file.fsync().await.expect("fsyncs");
        assert_eq!(fake.state.borrow().cancelled.len(), 1);
        assert!(read_all(&file).await == pattern(2, 50_000));
    });
}

#[test]
fn truncate_cuts_what_was_written_before_and_not_after() {
    run(13, |_rt, fake| async move {
        let (a, b) = (fake.client(quick()).await, fake.client(quick()).await);
        let file = open(&a, "/f").await;
        file.pwrite(&pattern(1, 100_000), 0).await.expect("writes");
        let again = a.open(b"/f", libc::O_RDWR | libc::O_TRUNC, 0).await.expect("opens");
        assert!(read_all(&again).await.is_empty(), "unsealed bytes are cut, too");
        again.pwrite(b"new", 0).await.expect("writes");
        // Somebody else cuts the file: the commit meets a newer epoch.
        b.truncate(b"/f", 1).await.expect("truncates");
        again.close().await.expect("closes");
        file.close().await.expect("closes");
        let file = b.open(b"/f", libc::O_RDONLY, 0).await.expect("opens");
        assert_eq!(read_all(&file).await, b"new");
    });
}

#[test]
fn appends_of_two_clients_do_not_overwrite_each_other() {
    run(14, |_rt, fake| async move {
        let (a, b) = (fake.client(quick()).await, fake.client(quick()).await);
        let flags = RDWR_CREATE | libc::O_APPEND;
        let (f, g) = (
            a.open(b"/f", flags, 0o644).await.expect("opens"),
            b.open(b"/f", flags, 0o644).await.expect("opens"),
        );
        for n in 0..10 {
            f.pwrite(&pattern(n, 100), 0).await.expect("appends");
            g.pwrite(&pattern(n + 100, 100), 0).await.expect("appends");
        }
        f.close().await.expect("closes");
        g.close().await.expect("closes");
        let bytes = fake.contents(b"/f");
        assert_eq!(bytes.len(), 2_000);
        assert_eq!(bytes[1_900..], pattern(109, 100));
        assert_eq!(bytes[..100], pattern(0, 100));
    });
}

#[test]
fn bytes_that_no_fragment_covers_come_from_the_backing_file_system() {
    run(15, |_rt, fake| async move {
        let client = fake.client(quick()).await;
        open(&client, "/f").await.close().await.expect("closes");
        {
            let mut state = fake.state.borrow_mut();
            let file = state.files.get_mut(&b"/f"[..]).expect("made");
            file.backing = pattern(7, 3_000_000);
            file.size = 3_000_000;
        }
        let file = open(&client, "/f").await;
        file.pwrite(b"xyz", 1_000_000).await.expect("writes");
        let mut expected = pattern(7, 3_000_000);
        expected[1_000_000..1_000_003].copy_from_slice(b"xyz");
        assert!(read_all(&file).await == expected);
        file.pwrite(b"end", 3_500_000).await.expect("writes");
        file.fsync().await.expect("fsyncs");
        expected.resize(3_500_000, 0);
        expected.extend(b"end");
        assert!(read_all(&file).await == expected, "zeros between");
    });
}

#[test]
fn an_open_shows_the_size_of_its_time_also_when_answers_overtake_each_other() {
    // The older answer comes first, or last.
    for older_ms in [30, 50] {
        run(25, |rt, fake| async move {
            let client = fake.client(quick()).await;
            let resize = |size: usize| {
                let mut state = fake.state.borrow_mut();
                let file = state.files.get_mut(&b"/f"[..]).expect("made");
                file.backing = pattern(7, size);
                file.size = size as u64;
            };
            open(&client, "/f").await.close().await.expect("closes");
            resize(3_000);
            let mut delays = [40, older_ms];
            fake.on_request(move |request| match request.kind {
                Kind::Namespace => {
                    delays.reverse();
                    Fate::AnswerLate(Duration::from_millis(delays[0]))
                }
                _ => Fate::Served,
            });
            let (other, path) = (client.clone(), "/f");
            let older = rt.spawn(async move { open(&other, path).await });
            rt.sleep(Duration::from_millis(1)).await;
            // Made shorter on the backing file system: no truncate epoch tells of it.
            resize(1_000);
            let newer = open(&client, path).await;
            assert!(read_all(&newer).await == pattern(7, 1_000), "{older_ms}");
            drop((older.await.expect("opened"), newer));
        });
    }
}

#[test]
fn a_close_does_not_bring_back_a_size_that_another_client_has_cut() {
    run(26, |rt, fake| async move {
        let (client, other) = (fake.client(quick()).await, fake.client(quick()).await);
        let (closed, kept) = (open(&client, "/f").await, open(&client, "/f").await);
        closed.pwrite(&pattern(1, 3_000), 0).await.expect("writes");
        closed.fsync().await.expect("fsyncs");
        other.truncate(b"/f", 100).await.expect("cuts");
        fake.on_request(|request| match request.kind {
            Kind::Namespace => Fate::AnswerLate(Duration::from_millis(50)),
            _ => Fate::Served,
        });
        let (asking, rt2) = (client.clone(), rt.clone());
        let stat = rt2.spawn(async move { asking.stat(b"/f").await });
        rt.sleep(Duration::from_millis(1)).await;
        closed.close().await.expect("closes");
        assert_eq!(stat.await.expect("runs").expect("there").size, 100);
        drop(kept);
    });
}

#[test]
fn a_stale_fragment_map_is_fetched_again() {
    run(16, |_rt, fake| async move {
        let (a, b) = (fake.client(quick()).await, fake.client(quick()).await);
        let file = open(&a, "/f").await;
        file.pwrite(&pattern(1, 100_000), 0).await.expect("writes");
        file.fsync().await.expect("fsyncs");
        let reader = b.open(b"/f", libc::O_RDONLY, 0).await.expect("opens");
        let mut out = vec![0; 10];
        reader.pread(&mut out, 90_000).await.expect("reads");
        file.pwrite(&pattern(2, 100_000), 0).await.expect("writes");
        file.fsync().await.expect("fsyncs");
        // The old group is freed while the reader's map still names it.
        {
            let mut state = fake.state.borrow_mut();
            let first = state.applied[0].0;
            state.blocks.retain(|(_, pg, _), _| *pg != first);
            state.groups.remove(&first);
        }
        reader.pread(&mut out, 10).await.expect("reads");
        assert_eq!(out, &pattern(2, 100_000)[10..20]);
    });
}

#[test]
fn names_and_operations() {
    run(17, |_rt, fake| async move {
        let client = fake.client(quick()).await;
        for name in ["/a", "/b", "/c", "/d"] {
            open(&client, name).await.close().await.expect("closes");
        }
        let names: Vec<Vec<u8>> =
            client.readdir(b"/").await.expect("lists").into_iter().map(|e| e.name).collect();
        assert_eq!(names, [b"/a", b"/b", b"/c", b"/d"]);
        client.rename(b"/a", b"/z", 0).await.expect("renames");
        assert_eq!(client.stat(b"/a").await.expect_err("gone").errno(), libc::ENOENT);
        client.unlink(b"/b").await.expect("unlinks");
        client.mkdir(b"/dir", 0o755).await.expect("makes");
        let directory = client.open(b"/dir", libc::O_RDONLY, 0).await.err().expect("no file");
        assert_eq!(directory.errno(), libc::EISDIR);
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let error = client.open(b"/c", flags, 0).await.err().expect("no directory");
        assert_eq!(error.errno(), libc::ENOTDIR);
        assert_eq!(client.stat(b"relative").await.expect_err("no").errno(), libc::EINVAL);
        let file = open(&client, "/z").await;
        file.pwrite(b"12345", 0).await.expect("writes");
        assert_eq!(client.stat(b"/z").await.expect("stats").size, 5, "what is not sealed counts");
        let operation = file.start(bb_proto::meta::Residency::Sync, 0, 0, 0).await.expect("starts");
        let mut seen = Vec::new();
        operation.wait(|state| seen.push(state.bytes_done)).await.expect("ends");
        assert_eq!(seen, [1, 2, 3]);
        assert!(operation.cancel().await.expect("answers").failure.is_some());
        let readonly = client.open(b"/z", libc::O_RDONLY, 0).await.expect("opens");
        assert_eq!(readonly.pwrite(b"x", 0).await.expect_err("no").errno(), libc::EBADF);
    });
}

#[test]
fn an_operation_that_its_server_does_not_know_any_more_is_started_again_unless_it_was_cancelled() {
    run(19, |_rt, fake| async move {
        let client = fake.client(quick()).await;
        let file = open(&client, "/f").await;
        let operation = file.start(bb_proto::meta::Residency::Sync, 0, 0, 0).await.expect("starts");
        let before = operation.id();
        fake.state.borrow_mut().operations.clear();
        let mut seen = Vec::new();
        operation.wait(|state| seen.push(state.bytes_done)).await.expect("ends");
        assert_eq!(seen, [1, 2, 3]);
        assert_ne!(operation.id(), before);
        let operation = file.start(bb_proto::meta::Residency::Sync, 0, 0, 0).await.expect("starts");
        operation.cancel().await.expect("answers");
        fake.state.borrow_mut().operations.clear();
        assert!(operation.wait(|_| ()).await.is_err());
        assert!(fake.state.borrow().operations.is_empty());
    });
}

#[test]
fn written_memory_stays_within_its_bound_over_many_files() {
    run(18, |rt, fake| async move {
        let options = ClientOptions { write_back_bytes: 4 << 20, ..quick() };
        let pool = bb_runtime::BufPool::new(32 << 20, false).expect("memory");
        let seeds = vec![bb_transport::Address::from("server")];
        let client = Client::connect(rt.clone(), pool.clone(), fake.caller(), seeds, options)
            .await
            .expect("connects");
        let mut files = Vec::new();
        for n in 0..60 {
            let file = open(&client, &format!("/f{n:02}")).await;
            file.pwrite(&pattern(n, 200_000), 0).await.expect("writes");
            files.push(file);
        }
        for file in files {
            file.close().await.expect("closes");
        }
        assert_eq!(pool.stats().used_bytes, 0, "all given back");
        let most = pool.stats().used_bytes_max;
        assert!(most <= 12 << 20, "{most} bytes: 4 MiB of data, parity of what is under way");
        for n in 0..60 {
            let bytes = fake.contents(format!("/f{n:02}").as_bytes());
            assert!(bytes == pattern(n, 200_000), "{n}");
        }
    });
}
