//! Partitions behind their requests, over a real log on a simulated disk.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bb_erasure::crc32c;
use bb_proto::meta::{
    ByteCounts, CancelCommit, CancelCommitReply, GetInline, Guard, Lookup, LookupReply, PgStatus,
    PgStatusReply, RegionName, RegionTruncate, decode, encode,
};
use bb_proto::{
    Capability, Code, Failure, Fid, Fragment, Incarnation, Kind, NodeId, OpId, PartitionId, PgBody,
    PgDescriptor, PgId, Reader, RegionIndex, Rights, ServiceClass, SessionId, Tick, TruncateEpoch,
    partition_of,
};
use bb_transport::{Response, Role};

use crate::files::record::HandleKey;
use crate::files::{FileChange, FileMutation};
use crate::partition::mutation::Mutation;
use crate::partition::region_mutation::{
    ProcessId, PurgeMode, Range, RegionId, RegionMutation, RegionOutcome,
};
use crate::partition::test_world::{
    EPOCH, Life, REGION_LOG2, WINDOW, World, commit_of, far_region, pg_at, simulate,
};

const REGION_START: u64 = 1 << REGION_LOG2;

fn code<T>(result: Result<T, Failure>) -> (Code, u64) {
    let failure = result.err().expect("refused");
    (failure.kind(), failure.value)
}

fn look_up(life: &Life, fid: Fid, at: PartitionId) -> LookupReply {
    let partition = life.host.partition(at).unwrap();
    crate::partition::serve_region::look_up(
        &partition.state(),
        fid,
        REGION_START,
        2 * REGION_START,
        |_| None,
    )
    .unwrap()
}

async fn submit(life: &Life, at: PartitionId, mutation: RegionMutation) -> RegionOutcome {
    let partition = life.host.partition(at).unwrap();
    let mutation = Mutation::Region(mutation);
    partition.submit(ServiceClass::Client, mutation).await.unwrap().region().unwrap()
}

async fn status(life: &Life, role: Role, pg: PgId, settle: bool) -> Result<u32, Failure> {
    let question = encode(&PgStatus { pgs: vec![pg.into()], settle });
    let response = life.send(role, Kind::PgStatus, pg.home, question, None).await?;
    Ok(decode::<PgStatusReply>(&response.body).unwrap().entries[0].state)
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_moment() {
    let (mut acked_in_all, mut issued_in_all) = (0, 0);
    for seed in 0..40 {
        issued_in_all += 60;
        acked_in_all += simulate(seed, |world| async move {
            let (fid, _, at) = far_region(1);
            world.add_file(fid, EPOCH);
            let acked: Rc<Cell<u64>> = Rc::default();
            let life = world.start().await;
            let tick = life.shared.tick().0;
            for n in 0..60_u32 {
                let host = life.host.clone();
                let (rt, acked) = (world.rt.clone(), acked.clone());
                let commit = commit_of(fid, pg_at(at, tick, n), u64::from(n) * 100, 100);
                let life = Life::clone_for_test(&life);
                world.rt.spawn(async move {
                    rt.sleep(Duration::from_micros(rt.random_below(20_000))).await;
                    if life.commit(at, &commit).await.is_ok() {
                        acked.set(acked.get() | 1 << n);
                    }
                    drop(host);
                });
            }
            world.rt.sleep(Duration::from_micros(world.rt.random_below(25_000))).await;
            if seed % 2 == 0 {
                // Begun while others are in flight; may be cut off half-way.
                let host = life.host.clone();
                world.rt.spawn(async move { host.checkpoint(at).await });
                world.rt.sleep(Duration::from_micros(world.rt.random_below(5_000))).await;
            }
            let acked_by_then = acked.get();
            world.cut(life);
            let life = world.start().await;
            let partition = life.host.partition(at).unwrap();
            let before = partition.state_bytes();
            for n in (0..60).filter(|n| acked_by_then & 1 << n != 0) {
                let found = partition.state().pgs.find(pg_at(at, tick, n)).is_some();
                assert!(found, "seed {seed}: acknowledged commit {n} is lost");
            }
            world.cut(life);
            let life = world.start().await;
            let after = life.host.partition(at).unwrap().state_bytes();
            assert_eq!(before, after, "seed {seed}: the same log, the same state");
            acked_by_then.count_ones()
        });
    }
    assert!((100..issued_in_all - 100).contains(&acked_in_all), "cut in the middle of things");
}

#[test]
fn a_small_file_is_committed_in_one_partition_without_asking_another() {
    simulate(1, |world| async move {
        let life = world.start().await;
        let fid = Fid(5);
        let at = partition_of(fid, RegionIndex(0), 8);
        let mut commit = commit_of(fid, pg_at(at, 990, 1), 0, 10);
        commit.fragments[0].offset = 0;
        commit.size_raise = 10;
        assert_eq!(code(life.commit(at, &commit).await).0, Code::StaleFile);
        let key = HandleKey { handle_type: 1, handle: vec![1; 8].into(), birth_ns: 0 };
        let meet = FileChange::Meet {
            key,
            region_log2: REGION_LOG2,
            tick: Tick(EPOCH.0),
            guard: Guard { size: 0, mtime_ns: 0 },
        };
        let change = async |change: FileChange| {
            let mutation = Mutation::File(FileMutation { fid, change });
            life.host.partition(at).unwrap().submit(ServiceClass::Client, mutation).await.unwrap();
        };
        change(meet).await;
        // The region is registered and opened, and takes the group, in one go.
        let partition = life.host.partition(at).unwrap();
        let before = partition.state().applied();
        life.commit(at, &commit).await.unwrap();
        assert_eq!(partition.state().applied() - before, 2);
        assert!(partition.state().files.get(fid).unwrap().is_registered(RegionIndex(0)));
        // A run that no file has: it would not even be read back from the log.
        let mut last = (0..=u32::MAX).rev().map(RegionIndex);
        let region = last.find(|region| partition_of(fid, *region, 8) == at).unwrap();
        let mut commit = commit_of(fid, pg_at(at, 990, 2), 0, 10);
        commit.fragments[0].offset = u64::from(region.0) << REGION_LOG2;
        let before = partition.state().applied();
        assert_eq!(code(life.commit(at, &commit).await).0, Code::Invalid);
        assert_eq!(partition.state().applied(), before);
        let state = partition.state();
        assert_eq!(state.files.get(fid).unwrap().size, 10);
        assert_eq!(state.regions.totals().dirty, 10);
    });
}

#[test]
fn a_request_with_another_configuration_is_fenced() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        let mut map = world.map.borrow().clone();
        map.partitions[at.0 as usize].config = 4;
        life.shared.set_map(map);
        life.host.follow_map(true);
        let commit = commit_of(fid, pg_at(at, 1000, 1), 0, 10);
        assert_eq!(code(life.commit(at, &commit).await).0, Code::Fenced);
    });
}

#[test]
fn rule_1_unknown_is_answered_only_with_a_horizon_in_the_log() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        let (old, young) = (pg_at(at, 900, 1), pg_at(at, 1000 - WINDOW, 2));
        assert_eq!(status(&life, Role::Client, old, false).await.unwrap(), 3);
        assert_eq!(code(status(&life, Role::Client, old, true).await).0, Code::Denied);
        assert_eq!(status(&life, Role::Server, young, true).await.unwrap(), 3);
        assert_eq!(status(&life, Role::Server, old, true).await.unwrap(), 0);
        world.cut(life);
        let life = world.start().await;
        let late = life.commit(at, &commit_of(fid, old, 0, 10)).await;
        assert_eq!(code(late), (Code::BehindHorizon, 1000));
        life.commit(at, &commit_of(fid, young, 0, 10)).await.unwrap();
        assert_eq!(status(&life, Role::Server, young, true).await.unwrap(), 1);
        let ahead = life.commit(at, &commit_of(fid, pg_at(at, 1001, 3), 0, 10)).await;
        assert_eq!(code(ahead), (Code::SlotAhead, 1000));
    });
}

#[test]
fn rule_1_a_checkpoint_moves_the_horizon_past_old_slots_only() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        life.host.checkpoint(at).await.unwrap();
        assert_eq!(life.host.partition(at).unwrap().state().horizon(), Tick(1000 - WINDOW - 1));
    });
}

/// A group at home in `at`, of which another partition is said to hold something.
async fn spread(world: &World, life: &Life, fid: Fid, at: PartitionId) -> (PgId, PartitionId) {
    world.add_file(fid, EPOCH);
    let (pg, other) = (pg_at(at, 990, 1), PartitionId((at.0 + 1) % 8));
    let mut commit = commit_of(fid, pg, 0, 10);
    commit.participants = vec![other];
    life.commit(at, &commit).await.unwrap();
    life.commit(at, &commit_of(fid, pg_at(at, 990, 2), 0, 10)).await.unwrap();
    (pg, other)
}

#[test]
fn rule_2_a_participant_that_never_got_its_commit_is_asked_and_refuses_it_from_then_on() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        let life = world.start().await;
        let (pg, other) = spread(&world, &life, fid, at).await;
        world.wait_s(60).await;
        assert_eq!(world.freed(pg, 0), 0, "too young to ask");
        life.shared.set_tick(Tick(990 + WINDOW + 1));
        world.wait_s(60).await;
        assert_eq!([0, 1, 2].map(|index| world.freed(pg, index)), [1; 3]);
        assert!(life.host.partition(other).unwrap().state().horizon() >= Tick(990));
        let found = life.host.partition(at).unwrap().state().pgs.find(pg).is_some();
        assert!(!found, "the record goes when all members have acked");
    });
}

#[test]
fn rule_2_a_participant_reports_its_release_until_home_has_heard_it() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        let life = world.start().await;
        world.add_file(fid, EPOCH);
        let home = PartitionId((at.0 + 1) % 8);
        let (home_fid, _, _) =
            (2..).map(far_region).find(|(_, _, partition)| *partition == home).unwrap();
        world.add_file(home_fid, EPOCH);
        let pg = pg_at(home, 990, 1);
        let mut first = commit_of(home_fid, pg, 0, 10);
        first.participants = vec![at];
        life.commit(home, &first).await.unwrap();
        life.commit(at, &commit_of(fid, pg, 0, 10)).await.unwrap();
        let range = Range { start: 0, end: u64::MAX };
        for (fid, at) in [(home_fid, home), (fid, at)] {
            let id = RegionId { fid, region: RegionIndex(1) };
            submit(&life, at, RegionMutation::Purge { id, range, mode: PurgeMode::All }).await;
        }
        world.elsewhere.lost_answers.borrow_mut().insert(Kind::PgRelease, 3);
        world.wait_s(10).await;
        assert_eq!(world.freed(pg, 2), 1);
        assert!(!life.host.partition(at).unwrap().state().pgs.has_work());
    });
}

#[test]
fn rule_3_a_cancel_and_a_commit_exclude_each_other() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        let ask = |pg: PgId, session| {
            let capability = Capability { session, fid, rights: Rights::WRITE, signature: [0; 16] };
            encode(&CancelCommit { pg: pg.into(), capability: (&capability).into() })
        };
        let cancel = async |pg: PgId| {
            let body = ask(pg, pg.session);
            let response = life.send(Role::Client, Kind::CancelCommit, at, body, None).await;
            decode::<CancelCommitReply>(&response.unwrap().body).unwrap().committed
        };
        let (first, second) = (pg_at(at, 990, 1), pg_at(at, 990, 2));
        let others = ask(first, SessionId(first.session.0 + 1));
        let denied = life.send(Role::Client, Kind::CancelCommit, at, others, None).await;
        assert_eq!(code(denied).0, Code::Denied, "rule 17");
        assert!(!cancel(first).await);
        let refused = life.commit(at, &commit_of(fid, first, 0, 10)).await;
        assert_eq!(code(refused).0, Code::CommitCancelled);
        life.commit(at, &commit_of(fid, second, 0, 10)).await.unwrap();
        assert!(cancel(second).await);
        life.commit(at, &commit_of(fid, second, 0, 10)).await.unwrap();
        assert_eq!(look_up(&life, fid, at).fragments.len(), 1);
    });
}

#[test]
fn rule_4_members_are_told_until_all_have_acked_and_the_record_stays_until_then() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        world.elsewhere.silent_devices.borrow_mut().insert(bb_proto::DeviceId(1));
        let (first, second) = (pg_at(at, 990, 1), pg_at(at, 990, 2));
        life.commit(at, &commit_of(fid, first, 0, 10)).await.unwrap();
        world.wait_s(5).await;
        assert!(world.elsewhere.freed.borrow().is_empty(), "it lives");
        life.commit(at, &commit_of(fid, second, 0, 10)).await.unwrap();
        world.wait_s(5).await;
        assert_eq!([0, 1, 2].map(|index| world.freed(first, index)), [1, 0, 1]);
        assert_eq!(status(&life, Role::Server, first, true).await.unwrap(), 2);
        world.cut(life);
        let life = world.start().await;
        world.wait_s(5).await;
        assert_eq!(world.freed(first, 0), 1, "acks are in the log");
        world.elsewhere.silent_devices.borrow_mut().clear();
        world.wait_s(5).await;
        assert_eq!(world.freed(first, 1), 1);
        assert!(life.host.partition(at).unwrap().state().pgs.find(first).is_none());
    });
}

#[test]
fn rule_5_a_member_that_failed_before_the_commit_is_on_record_and_more_than_k_are_refused() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        world.map.borrow_mut().devices[1].state = 1;
        let life = world.start().await;
        let pg = pg_at(at, 990, 1);
        life.commit(at, &commit_of(fid, pg, 0, 10)).await.unwrap();
        let absent = {
            let partition = life.host.partition(at).unwrap();
            let state = partition.state();
            state.pgs.find(pg).unwrap().home.as_ref().unwrap().absent_members
        };
        assert_eq!(absent, 0b010);
        let mut map = world.map.borrow().clone();
        map.devices[2].state = 1;
        life.shared.set_map(map);
        // Forbidden for good: its bytes are written elsewhere, and a late copy must not win.
        let second = commit_of(fid, pg_at(at, 990, 2), 0, 10);
        assert_eq!(code(life.commit(at, &second).await).0, Code::CommitCancelled);
        world.map.borrow_mut().devices[1].state = 0;
        world.cut(life);
        let life = world.start().await;
        assert_eq!(code(life.commit(at, &second).await).0, Code::CommitCancelled);
        assert_eq!(status(&life, Role::Server, second.descriptor.pg, true).await.unwrap(), 0);
    });
}

#[test]
fn rule_7_a_region_learns_the_truncates_that_it_missed_before_it_takes_a_commit() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        let life = world.start().await;
        let commit = commit_of(fid, pg_at(at, 990, 1), 0, 100);
        assert_eq!(code(life.commit(at, &commit).await).0, Code::StaleFile);
        world.add_file(fid, EPOCH);
        world.change_file(fid, |file| file.runs.clear());
        assert_eq!(code(life.commit(at, &commit).await).0, Code::RegionUnknown);
        world.change_file(fid, |file| file.run_ends = vec![1]);
        assert_eq!(code(life.commit(at, &commit).await).0, Code::RegionUnknown);
        // A run that is registered in part, as far as this region.
        world.change_file(fid, |file| file.run_ends = vec![2]);
        life.commit(at, &commit).await.unwrap();
        world.change_file(fid, |file| {
            file.epoch = 9;
            file.size = REGION_START + 40;
            file.truncating = true;
        });
        let mut newer = commit_of(fid, pg_at(at, 990, 2), 60, 10);
        newer.epoch = TruncateEpoch(9);
        life.commit(at, &newer).await.unwrap();
        let reply = look_up(&life, fid, at);
        let ranges: Vec<_> =
            reply.fragments.iter().map(|f| (f.offset - REGION_START, f.len)).collect();
        assert_eq!(ranges, [(0, 40), (60, 10)]);
        assert_eq!((reply.epoch, reply.zeros_from), (9, REGION_START + 40));
        let old = life.commit(at, &commit_of(fid, pg_at(at, 990, 3), 0, 10)).await;
        assert_eq!(code(old), (Code::OldTruncateEpoch, 9));
        world.change_file(fid, |file| file.truncating = false);
        world.wait_s(30).await;
        assert_eq!(look_up(&life, fid, at).zeros_from, u64::MAX, "the region asks for the end");
    });
}

#[test]
fn rule_7_a_truncate_is_answered_when_the_syncs_of_the_region_have_ended() {
    simulate(1, |world| async move {
        let (fid, region, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        life.commit(at, &commit_of(fid, pg_at(at, 990, 1), 0, 100)).await.unwrap();
        let id = RegionId { fid, region };
        let process = ProcessId { node: NodeId(1), incarnation: Incarnation(1) };
        let range = Range { start: REGION_START, end: 2 * REGION_START };
        let begin = RegionMutation::SyncBegin { id, op: OpId(1), process, range };
        assert_eq!(submit(&life, at, begin).await, RegionOutcome::Bytes(100));
        let truncate = encode(&RegionTruncate {
            fid: fid.into(),
            region: region.0,
            epoch: 6,
            size: 0,
            done: false,
            region_log2: u32::from(REGION_LOG2),
        });
        let refused =
            life.send(Role::Client, Kind::RegionTruncate, at, truncate.clone(), None).await;
        assert_eq!(code(refused).0, Code::Denied);
        let sender = Life::clone_for_test(&life);
        let sent = truncate.clone();
        let waiting = world.rt.spawn(async move {
            sender.send(Role::Server, Kind::RegionTruncate, at, sent, None).await
        });
        world.wait_s(2).await;
        assert!(!waiting.is_finished(), "a sync is under way");
        submit(&life, at, RegionMutation::SyncEnd { id, op: OpId(1), written: vec![] }).await;
        waiting.await.unwrap().unwrap();
        life.send(Role::Server, Kind::RegionTruncate, at, truncate, None).await.unwrap();
        assert!(look_up(&life, fid, at).fragments.is_empty());
    });
}

#[test]
fn rule_16_the_budget_of_metadata_is_kept_and_passing_it_is_missing_space() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let world = Rc::into_inner(world).unwrap();
        let limited = World {
            config: crate::partition::HostConfig { metadata_bytes_max: 3000, ..world.config },
            ..world
        };
        let life = limited.start().await;
        let mut taken = 0;
        for n in 0..20 {
            let commit = commit_of(fid, pg_at(at, 990, n), u64::from(n) * 100, 10);
            match life.commit(at, &commit).await {
                Ok(_) => taken += 1,
                refused => assert_eq!(code(refused).0, Code::NoSpace),
            }
        }
        assert!((2..10).contains(&taken), "{taken} were taken");
        assert!(life.host.metadata_bytes() <= 3000, "{}", life.host.metadata_bytes());
    });
}

#[test]
fn rule_16_inline_groups_have_half_of_the_budget_and_blocks_the_rest() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let world = Rc::into_inner(world).unwrap();
        let limited = World {
            config: crate::partition::HostConfig { metadata_bytes_max: 64 << 10, ..world.config },
            ..world
        };
        let life = limited.start().await;
        let bytes = vec![7; 4096];
        let mut taken = 0;
        for n in 0..16 {
            let mut commit = commit_of(fid, pg_at(at, 990, n), u64::from(n) * 4096, 4096);
            commit.descriptor.body = PgBody::Inline { len: 4096, crc: crc32c(&bytes) };
            let payload = Some(bytes.clone());
            match life.send(Role::Client, Kind::Commit, at, commit.encode(), payload).await {
                Ok(_) => taken += 1,
                refused => assert_eq!(code(refused).0, Code::NoSpace),
            }
        }
        assert_eq!(taken, 8, "half of 64 KiB");
        let blocks = commit_of(fid, pg_at(at, 991, 1), 16 * 4096, 4096);
        life.commit(at, &blocks).await.expect("blocks have room");
    });
}

#[test]
fn rule_17_a_capability_must_permit_what_is_asked() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        let mut commit = commit_of(fid, pg_at(at, 990, 1), 0, 10);
        commit.capability.rights = bb_proto::Rights::READ;
        assert_eq!(code(life.commit(at, &commit).await).0, Code::Denied);
        commit.capability.rights = bb_proto::Rights::SERVER;
        assert_eq!(code(life.commit(at, &commit).await).0, Code::Denied, "not for clients");
        commit.capability.rights = bb_proto::Rights::WRITE;
        commit.stage = OpId(1);
        assert_eq!(code(life.commit(at, &commit).await).0, Code::Denied, "prestages are servers'");
        commit.stage = OpId(0);
        commit.capability.session = bb_proto::SessionId(2);
        assert_eq!(code(life.commit(at, &commit).await).0, Code::Denied, "another's group");
    });
}

async fn page(life: &Life, fid: Fid, at: PartitionId, offset: u64) -> LookupReply {
    let capability = commit_of(fid, pg_at(at, 1, 1), 0, 1).capability;
    let len = 2 * REGION_START - offset;
    let body = encode(&Lookup { capability: (&capability).into(), offset, len });
    let response: Response = life.send(Role::Client, Kind::Lookup, at, body, None).await.unwrap();
    assert!(response.body.len() < 1 << 20);
    decode(&response.body).unwrap()
}

#[test]
fn a_lookup_is_answered_in_pages_that_together_hold_every_fragment() {
    simulate(1, |world| async move {
        let (fid, region, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        for n in 0..8_u32 {
            let mut commit = commit_of(fid, pg_at(at, 990, n), 0, 1);
            commit.fragments = (0..4000)
                .map(|i| Fragment {
                    offset: REGION_START + (u64::from(i) * 8 + u64::from(n)) * 2,
                    pg_offset: i,
                    len: 1,
                })
                .collect();
            life.commit(at, &commit).await.unwrap();
        }
        let (mut offset, mut fragments, mut pages) = (REGION_START, 0, 0);
        while offset < 2 * REGION_START {
            let reply = page(&life, fid, at, offset).await;
            assert!(reply.end > offset);
            assert!(reply.fragments.iter().all(|f| offset <= f.offset && f.offset < reply.end));
            for encoded in &reply.descriptors {
                PgDescriptor::decode(&mut Reader::new(encoded)).unwrap();
            }
            fragments += reply.fragments.len();
            offset = reply.end;
            pages += 1;
        }
        assert_eq!(fragments, 32_000);
        assert!(pages > 1);
        let name = encode(&RegionName { fid: fid.into(), region: region.0 });
        let counts = life.send(Role::Server, Kind::RegionStat, at, name.clone(), None).await;
        let counts: ByteCounts = decode(&counts.unwrap().body).unwrap();
        assert_eq!((counts.dirty, counts.fragments, counts.groups), (32_000, 32_000, 8));
        life.send(Role::Server, Kind::RegionDrop, at, name, None).await.unwrap();
        assert!(page(&life, fid, at, REGION_START).await.fragments.is_empty());
        let late = life.commit(at, &commit_of(fid, pg_at(at, 1000, 9), 0, 10)).await;
        assert_eq!(code(late).0, Code::StaleFile);
    });
}

#[test]
fn an_inline_group_is_read_back_after_a_power_cut_and_damaged_ones_are_refused() {
    simulate(1, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        let bytes = b"small things".to_vec();
        let mut commit = commit_of(fid, pg_at(at, 990, 1), 0, 12);
        commit.descriptor.body = PgBody::Inline { len: 12, crc: crc32c(&bytes) };
        let send = async |life: &Life, bytes: &[u8]| {
            let payload = Some(bytes.to_vec());
            life.send(Role::Client, Kind::Commit, at, commit.encode(), payload).await
        };
        assert_eq!(code(send(&life, b"small thingz").await).0, Code::Corrupt);
        assert_eq!(code(send(&life, b"small").await).0, Code::Invalid);
        send(&life, &bytes).await.unwrap();
        world.cut(life);
        let life = world.start().await;
        life.host.checkpoint(at).await.unwrap();
        world.cut(life);
        let life = world.start().await;
        let get = |fid: Fid| {
            let mut capability = commit.capability;
            capability.fid = fid;
            let pg = commit.descriptor.pg.into();
            encode(&GetInline { capability: (&capability).into(), pg })
        };
        let response = life.send(Role::Client, Kind::GetInline, at, get(fid), None).await.unwrap();
        assert_eq!(response.payload[0][..], bytes[..]);
        let foreign = life.send(Role::Client, Kind::GetInline, at, get(Fid(1)), None).await;
        assert_eq!(code(foreign).0, Code::Stale, "a capability for another file");
        life.commit(at, &commit_of(fid, pg_at(at, 990, 2), 0, 12)).await.unwrap();
        let gone = life.send(Role::Client, Kind::GetInline, at, get(fid), None).await;
        assert_eq!(code(gone).0, Code::Stale);
        assert_eq!(life.host.partition(at).unwrap().state().pgs.totals().inline_bytes, 0);
    });
}
