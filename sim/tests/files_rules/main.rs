//! Directed tests of DESIGN.md's rules 7, 8, 10 and 11 as far as files and names go.

mod late;
mod world;

use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::{FileDrop, FileSize, FileTruncate, NamespaceOp, encode};
use bb_proto::{Code, Kind};
use bb_sim::bfs::BfsFaults;
use futures_util::future::join;

use world::{LEASE, World, at, home, mkdir, open, rename, simulate};

const NEW: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
const SEEDS: u64 = 60;

fn slow() -> BfsFaults {
    BfsFaults { latency_max: Duration::from_micros(200), ..BfsFaults::default() }
}

/// Kills the server at some moment within the next `within_us`, and starts another.
async fn crash_soon(world: &Rc<World>, within_us: u64) {
    let moment = Duration::from_micros(world.rt.random_below(within_us));
    world.rt.sleep(moment).await;
    world.kill();
    world.rt.sleep(Duration::from_micros(world.rt.random_below(400))).await;
    world.start().await;
}

#[test]
fn rule_8_a_retry_across_a_crash_gets_the_answer_of_the_first() {
    for seed in 0..SEEDS {
        simulate(seed, |world| async move {
            world.bfs.set_faults(slow());
            let client = world.session(1).await;
            let ops = [
                mkdir("/d"),
                open("/d/f", NEW),
                rename("/d/f", "/d/g"),
                open("/d/h", NEW),
                rename("/d/g", "/d/h"),
                NamespaceOp::Unlink(at("/d/h")),
                NamespaceOp::Rmdir(at("/d")),
            ];
            for (step, op) in ops.into_iter().enumerate() {
                let crash = crash_soon(&world, 900);
                let (result, ()) = join(client.op(op), crash).await;
                assert!(result.is_ok(), "seed {seed}, step {step}: {result:?}");
            }
            assert!(world.bfs.files().is_empty());
            world.rt.sleep(Duration::from_secs(5)).await;
            assert_eq!(world.bfs.hidden_names(), Vec::<String>::new());
        });
    }
}

#[test]
fn rule_8_a_second_request_of_one_number_is_not_done_again() {
    simulate(3, |world| async move {
        world.bfs.set_faults(slow());
        let client = world.session(1).await;
        let body = client.request(client.number(), mkdir("/d"));
        let ask = || world.ask(Kind::Namespace, client.home(), body.clone());
        let (first, second) = join(ask(), ask()).await;
        let first = first.expect("made");
        assert_eq!(second.expect("the same answer"), first);
        assert_eq!(ask().await.expect("later, too"), first);
        // What failed is answered as it failed, also when it would succeed now.
        let missing = client.request(client.number(), rename("/x", "/y"));
        let ask = || world.ask(Kind::Namespace, client.home(), missing.clone());
        assert_eq!(ask().await.expect_err("no such file").errno, libc::ENOENT);
        let again = client.op(mkdir("/d")).await.expect_err("another number");
        assert_eq!(again.errno, libc::EEXIST);
    });
}

#[test]
fn rule_8_after_an_io_error_what_was_there_before_is_not_taken_for_our_own_work() {
    for seed in 0..SEEDS {
        simulate(seed, |world| async move {
            let client = world.session(1).await;
            client.op(mkdir("/d")).await.expect("mkdir");
            client.open("/f", NEW).await.expect("create");
            world.bfs.set_faults(BfsFaults { io_error_ppm: 300_000, ..slow() });
            for op in [mkdir("/d"), open("/f", NEW)] {
                let failure = client.op(op).await.expect_err("it is there");
                assert!([libc::EEXIST, libc::EIO].contains(&failure.errno), "{seed}: {failure}");
            }
        });
    }
}

#[test]
fn rule_8_a_failure_is_answered_as_it_was_also_when_it_would_succeed_now() {
    simulate(11, |world| async move {
        let client = world.session(1).await;
        client.op(mkdir("/d")).await.expect("mkdir");
        let mkdir_again = client.request(client.number(), mkdir("/d"));
        let unlink = client.request(client.number(), NamespaceOp::Unlink(at("/f")));
        let ask = |body: &Vec<u8>| world.ask(Kind::Namespace, client.home(), body.clone());
        assert_eq!(ask(&mkdir_again).await.expect_err("is there").errno, libc::EEXIST);
        assert_eq!(ask(&unlink).await.expect_err("is not there").errno, libc::ENOENT);
        client.op(NamespaceOp::Rmdir(at("/d"))).await.expect("rmdir");
        client.open("/f", NEW).await.expect("create");
        assert_eq!(ask(&mkdir_again).await.expect_err("late").errno, libc::EEXIST);
        assert_eq!(ask(&unlink).await.expect_err("late").errno, libc::ENOENT);
        assert!(world.bfs.files().contains_key(&b"/f"[..]));
    });
}

#[test]
fn rule_10_a_creation_that_hangs_does_not_bring_a_removed_file_back() {
    for seed in 0..SEEDS {
        simulate(seed, |world| async move {
            let client = world.session(1).await;
            let hang = Duration::from_secs(20);
            let hangs = BfsFaults { hang_ppm: 500_000, hang_max: hang, ..BfsFaults::default() };
            world.bfs.set_faults(hangs);
            let create = client.open("/f", libc::O_CREAT | libc::O_RDWR);
            let crash = async {
                world.rt.sleep(Duration::from_millis(10)).await;
                world.kill();
                world.bfs.set_faults(BfsFaults::default());
                world.start().await;
            };
            let (created, ()) = join(create, crash).await;
            created.expect("in the end");
            client.op(NamespaceOp::Unlink(at("/f"))).await.expect("unlink");
            world.rt.sleep(hang * 2).await;
            assert!(world.bfs.files().is_empty(), "seed {seed}: it is there again");
        });
    }
}

#[test]
fn rule_8_an_open_file_lives_on_until_its_last_close() {
    simulate(4, |world| async move {
        let client = world.session(1).await;
        let (fid, handle) = client.open("/f", NEW).await.expect("create");
        client.write(fid, &handle, 5000).await.expect("write");
        client.op(NamespaceOp::Unlink(at("/f"))).await.expect("unlink");
        world.rt.sleep(Duration::from_secs(2)).await;
        assert_eq!(world.bfs.hidden_names(), [format!("open.{fid}")]);
        assert_eq!(world.file(fid).await.bytes.expect("counts").dirty, 5000);
        let lookup = client.op(NamespaceOp::Stat(at("/f"))).await.expect_err("no name");
        assert_eq!(lookup.errno, libc::ENOENT);
        client.tell(fid, &handle, 0, Kind::FileClose).await.expect("close");
        world.rt.sleep(Duration::from_secs(2)).await;
        assert!(!world.file(fid).await.known);
        assert_eq!(world.bfs.hidden_names(), Vec::<String>::new());
        let late = client.commit(fid, &handle, 10).await.expect_err("dropped");
        assert!(matches!(late.kind(), Code::StaleFile | Code::RegionUnknown), "{late}");
    });
}

#[test]
fn rule_8_an_open_ends_with_the_commit_of_its_last_bytes() {
    simulate(4, |world| async move {
        let client = world.session(1).await;
        let (fid, handle) = client.open("/f", NEW).await.expect("create");
        let (same, other) = client.open("/f", libc::O_RDONLY).await.expect("open");
        assert_eq!(fid, same);
        // No region was registered: the commit does that, too.
        client.commit_last(fid, &handle, 5000).await.expect("commit");
        let state = world.file(fid).await;
        assert_eq!((state.size, state.open), (5000, true), "the other open");
        client.tell(fid, &other, 0, Kind::FileClose).await.expect("close");
        assert!(!world.file(fid).await.open);
        client.op(NamespaceOp::Unlink(at("/f"))).await.expect("unlink");
        world.rt.sleep(Duration::from_secs(2)).await;
        assert!(!world.file(fid).await.known, "nothing keeps it");
        assert_eq!(world.bfs.hidden_names(), Vec::<String>::new());
    });
}

#[test]
fn rule_8_no_hidden_name_is_left_by_an_unlink_that_failed() {
    for seed in 0..SEEDS {
        simulate(seed, |world| async move {
            let client = world.session(1).await;
            let (fid, handle) = client.open("/f", NEW).await.expect("create");
            client.write(fid, &handle, 100).await.expect("write");
            world.bfs.set_faults(BfsFaults { io_error_ppm: 400_000, ..slow() });
            let unlinked = client.op(NamespaceOp::Unlink(at("/f"))).await;
            world.bfs.set_faults(BfsFaults::default());
            client.tell(fid, &handle, 0, Kind::FileClose).await.expect("close");
            world.rt.sleep(Duration::from_secs(2)).await;
            assert_eq!(world.bfs.hidden_names(), Vec::<String>::new(), "{seed}: {unlinked:?}");
            assert_eq!(world.bfs.files().is_empty(), unlinked.is_ok(), "{seed}: {unlinked:?}");
        });
    }
}

#[test]
fn rule_8_after_a_restart_a_file_counts_as_open_until_the_grace_ends() {
    simulate(5, |world| async move {
        let client = world.session(1).await;
        let (kept, kept_handle) = client.open("/kept", NEW).await.expect("create");
        let (lost, lost_handle) = client.open("/lost", NEW).await.expect("create");
        client.write(kept, &kept_handle, 100).await.expect("write");
        client.write(lost, &lost_handle, 100).await.expect("write");
        world.kill();
        world.grace.set(Duration::from_secs(10));
        world.start().await;
        client.op(NamespaceOp::Unlink(at("/kept"))).await.expect("unlink");
        client.op(NamespaceOp::Unlink(at("/lost"))).await.expect("unlink");
        // Its client shows the open; nobody does for the other.
        client.tell(kept, &kept_handle, 100, Kind::FileSize).await.expect("reclaim");
        world.rt.sleep(Duration::from_secs(5)).await;
        assert!(world.file(lost).await.known, "the grace is not over");
        world.rt.sleep(Duration::from_secs(10)).await;
        assert!(!world.file(lost).await.known);
        assert_eq!(world.file(kept).await.bytes.expect("counts").dirty, 100);
    });
}

#[test]
fn rule_8_data_goes_only_when_the_backing_file_system_has_removed_the_last_name() {
    simulate(6, |world| async move {
        let mut client = world.session(1).await;
        client.op(mkdir("/d")).await.expect("mkdir");
        let (fid, handle) = client.open("/d/f", NEW).await.expect("create");
        client.write(fid, &handle, 100).await.expect("write");
        client.tell(fid, &handle, 0, Kind::FileClose).await.expect("close");
        client.uid = 8;
        let refused = client.op(NamespaceOp::Unlink(at("/d/f"))).await.expect_err("not his");
        assert_eq!(refused.errno, libc::EACCES);
        world.rt.sleep(Duration::from_secs(2)).await;
        assert_eq!(world.file(fid).await.bytes.expect("counts").dirty, 100);
        client.uid = 7;
        client.op(NamespaceOp::Unlink(at("/d/f"))).await.expect("unlink");
        world.rt.sleep(Duration::from_secs(2)).await;
        assert!(!world.file(fid).await.known);
    });
}

#[test]
fn rule_8_a_dead_sessions_file_gets_the_size_of_its_highest_byte() {
    simulate(7, |world| async move {
        let client = world.session(1).await;
        let (fid, handle) = client.open("/f", NEW).await.expect("create");
        client.write(fid, &handle, 10).await.expect("write");
        client.commit(fid, &handle, 700).await.expect("commit, size not told");
        assert_eq!(world.file(fid).await.size, 10);
        world.rt.sleep(LEASE * 2).await;
        assert_eq!(world.file(fid).await.size, 700);
        let renewed = client.op(mkdir("/late")).await.expect_err("the session is over");
        assert_eq!(renewed.kind(), Code::NoSession);
    });
}

#[test]
fn rule_7_a_truncate_is_finished_after_a_crash_at_any_moment() {
    for seed in 0..SEEDS {
        simulate(seed, |world| async move {
            world.bfs.set_faults(slow());
            let client = world.session(1).await;
            let (fid, handle) = client.open("/f", NEW).await.expect("create");
            client.write(fid, &handle, 5000).await.expect("write");
            let truncate = encode(&FileTruncate {
                capability: handle.capability.clone(),
                size: 1000,
                session: client.session.0,
                sequence: client.number(),
            });
            let ask = || world.ask(Kind::FileTruncate, home(fid), truncate.clone());
            let (result, ()) = join(ask(), crash_soon(&world, 20_000)).await;
            result.expect("truncated");
            let state = world.file(fid).await;
            assert_eq!((state.size, state.truncating), (1000, false), "seed {seed}");
            let counts = state.bytes.expect("counts");
            assert_eq!((counts.end, counts.dirty), (1000, 1000), "seed {seed}");
            assert_eq!(world.bfs.files()[&b"/f"[..]].len(), 1000);
            // What was written under the old epoch comes too late, and a retry cuts nothing.
            let old = client.commit(fid, &handle, 3000).await.expect_err("old epoch");
            assert_eq!(old.kind(), Code::OldTruncateEpoch);
            let fresh = bb_proto::meta::FileHandle { epoch: state.epoch, ..handle.clone() };
            client.write(fid, &fresh, 4000).await.expect("write");
            ask().await.expect("answered again");
            assert_eq!(world.file(fid).await.size, 4000, "seed {seed}");
            client.tell(fid, &handle, 9000, Kind::FileSize).await.expect("old raise");
            assert_eq!(world.file(fid).await.size, 4000, "a raise of the old epoch");
        });
    }
}

#[test]
fn rule_10_a_truncate_that_hangs_is_not_overtaken_by_the_next_process() {
    simulate(8, |world| async move {
        let client = world.session(1).await;
        let (fid, handle) = client.open("/f", NEW).await.expect("create");
        client.write(fid, &handle, 5000).await.expect("write");
        let truncate = encode(&FileTruncate {
            capability: handle.capability.clone(),
            size: 1000,
            session: client.session.0,
            sequence: client.number(),
        });
        let hang = Duration::from_secs(20);
        let faults = BfsFaults { hang_ppm: 1_000_000, hang_max: hang, ..BfsFaults::default() };
        let ask = || world.ask_once(Kind::FileTruncate, home(fid), truncate.clone());
        let crash = async {
            // The check before it goes through; the truncate itself hangs.
            while !world.file(fid).await.truncating {}
            world.bfs.set_faults(faults);
            while world.bfs.counts().hung == 0 {
                world.rt.sleep(Duration::from_micros(10)).await;
            }
            world.kill();
            world.bfs.set_faults(BfsFaults::default());
            world.start().await;
        };
        let (first, ()) = join(ask(), crash).await;
        assert_eq!(first.expect_err("died").kind(), Code::Busy);
        let late = world.bfs.counts().finished_after_death;
        let second = ask().await.expect_err("not proven gone");
        assert_eq!((second.kind(), late), (Code::Busy, 0));
        world.rt.sleep(hang * 2).await;
        ask().await.expect("now it is");
        assert_eq!(world.bfs.counts().finished_after_death, 1);
        assert_eq!(world.file(fid).await.size, 1000);
    });
}

#[test]
fn rule_11_an_unmounted_file_system_drops_nothing_and_finds_nothing() {
    simulate(9, |world| async move {
        let client = world.session(1).await;
        let (fid, handle) = client.open("/f", NEW).await.expect("create");
        client.write(fid, &handle, 100).await.expect("write");
        client.tell(fid, &handle, 0, Kind::FileClose).await.expect("close");
        let binding = world.file(fid).await.binding.expect("known");
        world.bfs.set_mounted(false);
        for op in [NamespaceOp::Unlink(at("/f")), NamespaceOp::Stat(at("/f")), open("/f", NEW)] {
            let failure = client.op(op).await.expect_err("not there");
            assert_eq!(failure.kind(), Code::BfsUnavailable);
        }
        let fsync = encode(&FileSize {
            capability: handle.capability.clone(),
            epoch: handle.epoch,
            size: 0,
            append: 0,
            durable_name: true,
            open_id: 0,
            mtime_ns: 0,
        });
        let refused = world.ask_once(Kind::FileSize, home(fid), fsync).await;
        assert_eq!(refused.expect_err("says nothing of the file").kind(), Code::BfsUnavailable);
        let drop_it = encode(&FileDrop { fid: fid.into(), binding });
        let refused = world.ask_as_server(Kind::FileDrop, home(fid), drop_it).await;
        assert_eq!(refused.expect_err("proves nothing").kind(), Code::BfsUnavailable);
        world.bfs.set_mounted(true);
        assert_eq!(world.file(fid).await.bytes.expect("counts").dirty, 100);
        let stat = client.op(NamespaceOp::Stat(at("/f"))).await.expect("there again");
        assert_eq!(stat.attributes.expect("attributes").size, 100);
    });
}

#[test]
fn a_change_behind_our_back_is_a_conflict_for_dirty_data_and_a_new_start_for_none() {
    simulate(10, |world| async move {
        let client = world.session(1).await;
        let (dirty, handle) = client.open("/dirty", NEW).await.expect("create");
        client.write(dirty, &handle, 100).await.expect("write");
        let (none, _) = client.open("/none", NEW).await.expect("create");
        world.rt.sleep(Duration::from_secs(1)).await;
        world.bfs.outside_write(b"/dirty", b"somebody else's").expect("outside");
        world.bfs.outside_write(b"/none", b"somebody else's").expect("outside");
        client.open("/dirty", libc::O_RDONLY).await.expect("open");
        client.open("/none", libc::O_RDONLY).await.expect("open");
        let state = world.file(dirty).await;
        assert!(state.conflict);
        assert_eq!((state.size, state.bytes.expect("counts").dirty), (100, 100), "nothing lost");
        let state = world.file(none).await;
        assert_eq!((state.conflict, state.size), (false, 15));
    });
}

#[test]
fn a_file_made_again_behind_our_back_never_shows_old_fragments() {
    simulate(11, |world| async move {
        let client = world.session(1).await;
        let (old, handle) = client.open("/f", NEW).await.expect("create");
        client.write(old, &handle, 100).await.expect("write");
        world.bfs.outside_remove(b"/f").expect("outside");
        world.bfs.outside_write(b"/f", b"new").expect("outside");
        let (new, handle) = client.open("/f", libc::O_RDWR).await.expect("open");
        assert_ne!(new, old);
        assert_eq!(handle.size, 3);
        assert_eq!(world.file(new).await.bytes.expect("counts").fragments, 0);
    });
}

#[cfg(feature = "planted")]
mod planted_errors_are_found {
    use bb_server::planted::{Planted, set};

    fn found(error: Planted, test: fn()) {
        set(Some(error));
        let result = std::panic::catch_unwind(test);
        set(None);
        assert!(result.is_err(), "{error:?} was not noticed");
    }

    #[test]
    fn a_retry_that_is_done_twice() {
        found(Planted::RetryTwice, super::rule_8_a_second_request_of_one_number_is_not_done_again);
    }

    #[test]
    fn data_that_is_dropped_before_the_name() {
        let test =
            super::rule_8_data_goes_only_when_the_backing_file_system_has_removed_the_last_name;
        found(Planted::DropBeforeBfsAgreed, test);
    }

    #[test]
    fn a_size_raise_of_an_old_epoch() {
        found(
            Planted::OldSizeRaise,
            super::rule_7_a_truncate_is_finished_after_a_crash_at_any_moment,
        );
    }

    #[test]
    fn a_guard_that_is_not_compared() {
        let test =
            super::a_change_behind_our_back_is_a_conflict_for_dirty_data_and_a_new_start_for_none;
        found(Planted::IgnoreGuard, test);
    }

    #[test]
    fn an_unmounted_file_system_that_is_trusted() {
        let test = super::rule_11_an_unmounted_file_system_drops_nothing_and_finds_nothing;
        found(Planted::TrustUnmounted, test);
    }
}
