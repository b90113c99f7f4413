//! One fault at a time, each where it hurts most.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use crate::world::{World, seeds, simulate, tight};
use bb_consensus::{ChangeError, ProposeError, Role, Settings, VoterNumber};
use bb_runtime::Rt;

const fn v(number: u64) -> VoterNumber {
    VoterNumber(number)
}

fn set(numbers: &[u64]) -> BTreeSet<VoterNumber> {
    numbers.iter().map(|&number| v(number)).collect()
}

async fn group(rt: &Rt, count: u64, settings: Settings, padding: usize) -> Rc<World> {
    let world = World::new(rt, settings, padding);
    world.create(count).await;
    world
}

fn others(world: &World, leader: VoterNumber) -> Vec<VoterNumber> {
    world.up().into_iter().filter(|number| *number != leader).collect()
}

/// The leader and one follower with a slow disk acknowledge; that follower crashes at that moment,
/// the leader too, and the follower decides with the third, which knows of nothing.
async fn acknowledged_and_crashed(rt: Rt) -> Option<String> {
    let world = group(&rt, 3, tight(), 0).await;
    let leader = world.wait_leader().await;
    world.propose_somewhere().await;
    let [slow, away] = others(&world, leader.number())[..] else { panic!("three voters") };
    for other in [leader.number(), slow] {
        world.cut(other, away, true);
    }
    world.disks.borrow()[&slow].slow_us.set(100_000);
    let acknowledged = world.propose(&leader).await;
    world.crash(slow);
    world.crash(leader.number());
    world.heal();
    world.start(slow);
    if acknowledged {
        world.propose_somewhere().await;
        world.start(leader.number());
        world.converge().await;
    }
    world.truth.borrow().broken.clone()
}

#[test]
fn what_was_acknowledged_survives_the_crash_of_all_that_acknowledged_it() {
    for seed in seeds(20) {
        assert_eq!(simulate(seed, acknowledged_and_crashed).0, None, "seed {seed}");
    }
}

/// A voter helps one candidate to be elected, crashes, and is asked by the other one.
async fn voted_and_crashed(rt: Rt) -> Option<String> {
    let world = World::new(&rt, tight(), 0);
    world.create(3).await;
    world.cut(v(1), v(2), true);
    world.cut(v(2), v(3), true);
    world.disks.borrow()[&v(3)].slow_us.set(100_000);
    while world.get(v(1)).is_none_or(|first| first.role() != Role::Leader) {
        if world.get(v(3)).is_some_and(|third| third.role() == Role::Leader) {
            return None;
        }
        rt.sleep(Duration::from_micros(200)).await;
    }
    world.crash(v(3));
    world.cut(v(1), v(3), true);
    world.cut(v(2), v(3), false);
    world.start(v(3));
    rt.sleep(Duration::from_secs(5)).await;
    world.truth.borrow().broken.clone()
}

#[test]
fn a_voter_that_restarts_does_not_vote_twice_in_a_term() {
    for seed in seeds(20) {
        assert_eq!(simulate(seed, voted_and_crashed).0, None, "seed {seed}");
    }
}

/// A leader is cut off and does not know; the others go on.
async fn deposed(rt: Rt) -> Option<String> {
    let world = group(&rt, 3, tight(), 0).await;
    let old = world.wait_leader().await;
    world.propose_somewhere().await;
    assert!(world.read(old.number()).await);
    for other in others(&world, old.number()) {
        world.cut(old.number(), other, true);
    }
    let mut answered = 0;
    for _ in 0..400 {
        rt.sleep(Duration::from_millis(10)).await;
        let reading = world.clone();
        let number = old.number();
        rt.spawn(async move {
            reading.read(number).await;
        });
        let current = world.leader().filter(|leader| leader.number() != number);
        if let Some(current) = current {
            answered += u64::from(world.propose(&current).await);
        }
    }
    assert!(answered > 50, "{answered}");
    assert_ne!(old.role(), Role::Leader, "a leader without a quorum gives up");
    assert!(old.read_barrier().await.is_err());
    world.truth.borrow().broken.clone()
}

#[test]
fn a_deposed_leader_answers_no_barrier() {
    for seed in seeds(10) {
        assert_eq!(simulate(seed, deposed).0, None, "seed {seed}");
    }
}

#[test]
fn a_follower_far_behind_gets_a_snapshot_of_several_frames() {
    for seed in seeds(5) {
        simulate(seed, |rt| async move {
            let settings =
                Settings { checkpoint_entries: 40, keep_entries: 10, ..Settings::default() };
            let frame = settings.message_bytes_max;
            let world = group(&rt, 3, settings, 3 << 20).await;
            let leader = world.wait_leader().await;
            let behind = others(&world, leader.number())[0];
            world.crash(behind);
            for _ in 0..200 {
                world.propose_somewhere().await;
            }
            assert!(leader.status().checkpoint > 100);
            world.loss_percent.set(10);
            world.largest.set(0);
            world.start(behind);
            rt.timeout(Duration::from_secs(20), world.converge()).await.unwrap();
            assert!(world.largest.get() > frame / 2, "in pieces");
            world.check();
        });
    }
}

#[test]
fn all_voters_are_replaced_and_the_leader_leaves_last() {
    for seed in seeds(20) {
        simulate(seed, |rt| async move {
            let world = group(&rt, 3, tight(), 0).await;
            for _ in 0..60 {
                world.propose_somewhere().await;
            }
            for number in 4..=6 {
                world.start(v(number));
            }
            let leader = world.wait_leader().await;
            let wanted = set(&[4, 5, 6]);
            let change = leader.change_voters(wanted.clone());
            rt.timeout(Duration::from_secs(10), change).await.unwrap().unwrap();
            let changed = rt.now();
            assert_ne!(leader.role(), Role::Leader);
            while world.leader().is_none_or(|leader| !wanted.contains(&leader.number())) {
                rt.sleep(Duration::from_millis(1)).await;
            }
            // Named by the old leader: nobody waited for an election timeout.
            assert!(rt.now().since(changed) < Duration::from_millis(500));
            for number in 1..=3 {
                world.crash(v(number));
            }
            world.propose_somewhere().await;
            assert_eq!(world.wait_leader().await.status().voters, wanted);
            world.converge().await;
            world.check();
        });
    }
}

/// The voters of before are gone for ever at the very moment at which they are said to be removed;
/// and the new ones crash, with what was durable at that moment; one of them may stay away.
fn voters_replaced(before: u64, wanted: &[u64], crashes: &[u64], away: Option<u64>) {
    for seed in seeds(20) {
        simulate(seed, |rt| async move {
            let world = group(&rt, before, tight(), 0).await;
            for _ in 0..30 {
                world.propose_somewhere().await;
            }
            for &number in wanted.iter().filter(|number| **number > before) {
                world.start(v(number));
            }
            for disk in world.disks.borrow().values() {
                disk.slow_us.set([200, 60_000][usize::try_from(seed % 2).unwrap()]);
            }
            let leader = world.wait_leader().await;
            leader.change_voters(set(wanted)).await.unwrap();
            for number in (1..=before).filter(|number| !wanted.contains(number)) {
                world.crash(v(number));
            }
            for &number in crashes {
                world.crash(v(number));
            }
            for &number in crashes.iter().filter(|number| away != Some(**number)) {
                world.start(v(number));
            }
            let goes_on = async {
                world.propose_somewhere().await;
                if let Some(away) = away {
                    world.start(v(away));
                }
                world.converge().await;
            };
            let goes_on = rt.timeout(Duration::from_secs(15), goes_on).await;
            assert!(goes_on.is_ok(), "seed {seed}: nobody leads");
            assert_eq!(world.wait_leader().await.status().voters, set(wanted));
            world.check();
        });
    }
}

#[test]
fn voters_that_were_removed_can_go_at_once() {
    voters_replaced(3, &[4, 5, 6], &[], None);
    voters_replaced(3, &[3, 4, 5], &[], None);
    voters_replaced(3, &[4], &[], None);
    voters_replaced(1, &[2, 3, 4], &[], None);
}

#[test]
fn new_voters_know_that_they_are_after_a_power_cut() {
    voters_replaced(3, &[4, 5, 6], &[4, 5, 6], None);
    voters_replaced(3, &[3, 4, 5], &[3, 4, 5], None);
    voters_replaced(3, &[1], &[1], None);
    voters_replaced(3, &[2], &[2], None);
}

#[test]
fn whoever_of_the_new_voters_is_left_knows_enough() {
    for away in 4..=6 {
        voters_replaced(3, &[4, 5, 6], &[away], Some(away));
        voters_replaced(3, &[4, 5, 6], &[4, 5, 6], Some(away));
    }
}

/// Such a voter is elected at its start. Were that not durable when others hear of it, it could be
/// elected in the same term again.
#[test]
fn a_leader_that_needs_no_other_vote_sends_nothing_before_its_own_is_durable() {
    for seed in seeds(10) {
        simulate(seed, |rt| async move {
            let settings = Settings { change_timeout_ms: 1000, ..tight() };
            let world = group(&rt, 1, settings, 0).await;
            let leader = world.wait_leader().await;
            // A learner that never comes, in the checkpoint, so that it is known at the start.
            leader.change_voters(set(&[1, 9])).await.unwrap_err();
            for _ in 0..60 {
                assert!(world.propose(&leader).await);
            }
            rt.sleep(Duration::from_secs(1)).await;
            world.crash(v(1));
            let disk = world.disks.borrow()[&v(1)].clone();
            disk.slow_us.set(100_000);
            *world.tapped.borrow_mut() = Some(Vec::new());
            let before = disk.appends.get();
            world.start(v(1));
            rt.sleep(Duration::from_micros(10)).await;
            let sent = || world.tapped.borrow().as_ref().map_or(0, Vec::len);
            assert_eq!(disk.appends.get(), before + 1, "its vote is on its way to the disk");
            assert_eq!(sent(), 0);
            rt.sleep(Duration::from_secs(1)).await;
            assert!(sent() > 0);
        });
    }
}

/// The only new voter learns of it, is elected and acknowledges, while the old leader's disk takes
/// its time; which then is the leader of an earlier term, in a group of one that is not it.
#[test]
fn a_leader_that_is_no_voter_any_more_answers_no_barrier() {
    let mut both = 0;
    for seed in seeds(20) {
        both += simulate(seed, |rt| async move {
            let world = group(&rt, 3, tight(), 0).await;
            world.propose_somewhere().await;
            world.start(v(4));
            let old = world.wait_leader().await;
            let changing = old.clone();
            rt.spawn(async move { changing.change_voters(set(&[4])).await });
            let until = async |holds: &dyn Fn() -> bool| {
                while !holds() {
                    rt.sleep(Duration::from_micros(10)).await;
                }
            };
            // First it became a learner.
            until(&|| old.status().voters == set(&[4])).await;
            let leave = old.status().applied + 1;
            until(&|| old.status().last_index == leave).await;
            // It is on its way to the disk; the next write takes longer than an election.
            world.disks.borrow()[&old.number()].slow_us.set(20_000_000);
            until(&|| old.status().commit == leave).await;
            world.blocked.borrow_mut().insert((v(4), old.number()));
            let mut both = 0;
            for _ in 0..2500 {
                rt.sleep(Duration::from_millis(10)).await;
                let (reading, number) = (world.clone(), old.number());
                rt.spawn(async move { reading.read(number).await });
                if let Some(new) = world.get(v(4)).filter(|new| new.role() == Role::Leader) {
                    both += u64::from(old.role() == Role::Leader);
                    assert!(world.propose(&new).await);
                }
            }
            world.check();
            both
        })
        .0;
    }
    assert!(both > 0, "never two who think that they lead");
}

#[test]
fn a_voter_whose_log_is_lost_is_replaced_under_a_new_number() {
    for seed in seeds(10) {
        simulate(seed, |rt| async move {
            let world = group(&rt, 3, tight(), 0).await;
            for _ in 0..30 {
                world.propose_somewhere().await;
            }
            world.crash(v(2));
            world.disks.borrow_mut().remove(&v(2));
            world.start(v(9));
            loop {
                let leader = world.wait_leader().await;
                match leader.change_voters(set(&[1, 3, 9])).await {
                    Ok(()) => break,
                    Err(ChangeError::NotLeader(_)) => rt.sleep(Duration::from_millis(50)).await,
                    Err(error) => panic!("{error}"),
                }
            }
            world.converge().await;
            world.check();
        });
    }
}

#[test]
fn a_new_voter_that_never_comes_stops_nobody() {
    for seed in seeds(10) {
        simulate(seed, |rt| async move {
            let world = group(&rt, 2, tight(), 0).await;
            world.propose_somewhere().await;
            let leader = world.wait_leader().await;
            // Of 1, 2, 8, 9, two that are not there would be no majority.
            let change = leader.change_voters(set(&[1, 2, 8, 9]));
            rt.timeout(Duration::from_secs(5), change).await.unwrap_err();
            assert!(world.propose(&leader).await);
            assert_eq!(leader.status().voters, set(&[1, 2]));
            assert_eq!(leader.status().learners, set(&[8, 9]));
            let back = leader.change_voters(set(&[1, 2]));
            rt.timeout(Duration::from_secs(5), back).await.unwrap().unwrap();
            assert_eq!(leader.status().learners, set(&[]));
            assert!(world.read(leader.number()).await);
            world.check();
        });
    }
}

#[test]
fn a_change_of_voters_ends_in_time_or_with_the_leadership() {
    for seed in seeds(10) {
        simulate(seed, |rt| async move {
            let settings = Settings { change_timeout_ms: 3000, ..tight() };
            let world = group(&rt, 3, settings, 0).await;
            world.propose_somewhere().await;
            let leader = world.wait_leader().await;
            let begin = rt.now();
            let slow = leader.change_voters(set(&[1, 2, 3, 9])).await.unwrap_err();
            let learners = set(&[9]);
            assert_eq!(slow, ChangeError::Slow { timeout_ms: 3000, learners });
            assert_eq!(rt.now().since(begin), Duration::from_secs(3));
            for other in others(&world, leader.number()) {
                world.cut(leader.number(), other, true);
            }
            // The second waits for the first one's turn.
            let first = leader.change_voters(set(&[1, 2, 3]));
            let second = leader.change_voters(set(&[1, 2]));
            let both = futures_util::future::join(first, second);
            let limit = Duration::from_millis(2500);
            let (first, second) = rt.timeout(limit, both).await.expect("no quorum, no leader");
            assert!(matches!(first, Err(ChangeError::NotLeader(_))), "{first:?}");
            assert!(matches!(second, Err(ChangeError::NotLeader(_))), "{second:?}");
            world.check();
        });
    }
}

#[test]
fn who_was_removed_says_so_if_it_heard_of_it_and_disturbs_nobody_if_not() {
    let (mut told, mut count) = (0, 0);
    for seed in seeds(20) {
        let heard = simulate(seed, |rt| async move {
            let world = group(&rt, 3, tight(), 0).await;
            world.propose_somewhere().await;
            let leader = world.wait_leader().await;
            let gone = others(&world, leader.number())[0];
            let wanted = world.up().into_iter().filter(|number| *number != gone).collect();
            world.start(v(9));
            assert!(!world.get(v(9)).unwrap().status().removed, "was never named");
            leader.change_voters(wanted).await.unwrap();
            let term = leader.term();
            rt.sleep(Duration::from_secs(5)).await;
            let heard = world.get(gone).unwrap().status().removed;
            // From its own log, too.
            world.crash(gone);
            world.start(gone);
            rt.sleep(Duration::from_secs(5)).await;
            assert_eq!(world.get(gone).unwrap().status().removed, heard);
            if heard {
                assert_eq!(world.get(gone).unwrap().role(), Role::Follower);
            }
            assert_eq!((leader.role(), leader.term()), (Role::Leader, term));
            assert!(!leader.status().removed);
            world.check();
            heard
        })
        .0;
        (told, count) = (told + u64::from(heard), count + 1);
    }
    assert!(told * 2 >= count, "{told} of {count} heard of it");
}

#[test]
fn one_barrier_serves_all_who_wait_and_one_record_all_proposals() {
    let ((), _) = simulate(1, |rt| async move {
        let world = group(&rt, 3, Settings::default(), 0).await;
        world.propose_somewhere().await;
        let leader = world.wait_leader().await;
        rt.sleep(Duration::from_millis(205)).await;
        let before = world.messages.get();
        let barriers = (0..1000).map(|_| leader.read_barrier());
        for outcome in futures_util::future::join_all(barriers).await {
            outcome.unwrap();
        }
        // One or two rounds, and perhaps a heartbeat in between.
        assert!(world.messages.get() - before <= 16, "{}", world.messages.get() - before);
        let disk = world.disks.borrow()[&leader.number()].clone();
        let before = disk.appends.get();
        let proposals = (0..1000).map(|_| world.propose(&leader));
        assert!(futures_util::future::join_all(proposals).await.into_iter().all(|ok| ok));
        assert!(disk.appends.get() - before <= 3, "{}", disk.appends.get() - before);
        world.check();
    });
}

#[test]
fn a_single_voter_leads_at_once_and_after_a_restart_knows_everything() {
    simulate(1, |rt| async move {
        let world = group(&rt, 1, tight(), 0).await;
        rt.timeout(Duration::from_millis(150), world.wait_leader()).await.unwrap();
        for round in 0..5 {
            for _ in 0..100 {
                let leader = world.wait_leader().await;
                assert!(world.propose(&leader).await);
            }
            world.crash(v(1));
            world.start(v(1));
            let leader = rt.timeout(Duration::from_millis(150), world.wait_leader()).await.unwrap();
            assert!(world.read(v(1)).await, "round {round}");
            assert!(leader.leading_since().is_some());
            assert!(leader.status().memory_bytes < 100_000);
        }
        assert_eq!(world.truth.borrow().acknowledged, 500);
        world.check();
    });
}

#[test]
fn who_is_no_leader_says_so_and_names_the_leader() {
    simulate(1, |rt| async move {
        let world = group(&rt, 3, tight(), 0).await;
        world.propose_somewhere().await;
        let leader = world.wait_leader().await;
        world.converge().await;
        let follower = world.get(others(&world, leader.number())[0]).unwrap();
        let hint = Some(leader.number());
        assert_eq!(follower.read_barrier().await.unwrap_err().hint, hint);
        let refused = follower.propose(vec![1; 8]).await.unwrap_err();
        assert!(matches!(refused, ProposeError::NotLeader(it) if it.hint == hint));
        let refused = follower.change_voters(set(&[1])).await.unwrap_err();
        assert!(matches!(refused, ChangeError::NotLeader(it) if it.hint == hint));
        let too_large = leader.propose(vec![1; 1001]).await.unwrap_err();
        assert_eq!(too_large, ProposeError::Size { bytes: 1001, max: 1000 });
        assert!(leader.propose(Vec::new()).await.is_err());
        assert!(leader.change_voters(BTreeSet::new()).await.is_err());
    });
}

#[test]
fn an_idle_group_is_cheap() {
    simulate(1, |rt| async move {
        let world = group(&rt, 3, Settings::default(), 0).await;
        world.propose_somewhere().await;
        world.converge().await;
        let (before, begin) = (world.messages.get(), std::time::Duration::from_secs(100));
        let appends = world.disks.borrow()[&v(1)].appends.get();
        rt.sleep(begin).await;
        let per_second = (world.messages.get() - before) as f64 / begin.as_secs_f64();
        println!("messages per second of the whole group: {per_second}");
        assert!(per_second <= 21.0, "{per_second}");
        assert_eq!(world.disks.borrow()[&v(1)].appends.get(), appends, "idle, and writes");
        let status = world.wait_leader().await.status();
        assert!(status.memory_bytes < 10_000, "{status:?}");
    });
}

/// Planted errors are found by the tests above.
#[cfg(feature = "planted")]
mod planted {
    use super::*;
    use bb_consensus::planted;

    fn found<F: Future<Output = Option<String>>>(plant: fn(bool), run: fn(Rt) -> F) {
        plant(true);
        let found = (0..20).find_map(|seed| {
            // The library's own assertions may be the ones to find it.
            let run = std::panic::catch_unwind(|| simulate(seed, run).0);
            run.unwrap_or_else(|_| Some("panic".to_owned()))
        });
        plant(false);
        println!("{}", found.expect("the planted error is not found"));
    }

    #[test]
    fn an_answer_before_it_is_durable_is_found() {
        found(planted::send_before_persist, acknowledged_and_crashed);
    }

    #[test]
    fn a_vote_that_is_forgotten_is_found() {
        found(planted::forget_vote, voted_and_crashed);
    }

    #[test]
    fn a_barrier_without_a_quorum_is_found() {
        found(planted::barrier_without_quorum, deposed);
    }
}
