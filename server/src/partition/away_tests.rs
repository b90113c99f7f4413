//! What home does about members on nodes that are down, and about a partition that was given up.

use bb_cluster::{ClusterMap, NodeEntry, NodeState};
use bb_proto::meta::{PgHoldsReply, PgList, PgStatus, PgStatusReply, decode, encode};
use bb_proto::{Code, ConfigNumber, DeviceId, Failure, Kind, PartitionId, PgId, Tick};
use bb_transport::{Response, Role};

use super::degraded::Degraded;
use super::test_world::{EPOCH, Life, WINDOW, World, commit_of, far_region, pg_at, simulate};

/// Device 2, and so the third member of each group, is on another node.
fn two_nodes(world: &World) {
    let mut map = world.map.borrow_mut();
    let entry = NodeEntry { id: 2, address: "n2".into(), incarnation: 1, ..NodeEntry::default() };
    map.nodes.push(entry);
    map.devices[2].node = 2;
}

fn change(life: &Life, change: impl FnOnce(&mut ClusterMap)) {
    let mut map = (*life.shared.map()).clone();
    map.epoch += 1;
    change(&mut map);
    life.shared.set_map(map);
}

fn down(map: &mut ClusterMap) {
    map.nodes[1].state = NodeState::Down as i32;
}

fn active(map: &mut ClusterMap) {
    map.nodes[1].state = NodeState::Active as i32;
    map.nodes[1].incarnation += 1;
}

fn code(result: Result<Response, Failure>) -> Code {
    result.err().expect("refused").kind()
}

fn on_record(life: &Life, pg: PgId) -> bool {
    life.host.partition(pg.home).unwrap().state().pgs.find(pg).is_some()
}

#[test]
fn rule_4_frees_wait_for_a_node_that_is_down_and_hold_up_nobody_else() {
    simulate(1, |world| async move {
        two_nodes(&world);
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        // More than one round takes on, each overwritten by the next.
        let groups: Vec<PgId> = (1..=40).map(|n| pg_at(at, 990, n)).collect();
        for pg in &groups {
            life.commit(at, &commit_of(fid, *pg, 0, 10)).await.unwrap();
            if pg.sequence == 5 {
                change(&life, down);
            }
        }
        world.wait_s(20).await;
        let told = world.elsewhere.asked_to_free.borrow().get(&DeviceId(2)).copied();
        for pg in &groups[5..39] {
            assert_eq!([0, 1, 2].map(|index| world.freed(*pg, index)), [1, 1, 0]);
            assert!(on_record(&life, *pg), "until every member has acked");
        }
        assert!(told.unwrap_or(0) <= 5, "a node that is down is not asked: {told:?}");
        assert_eq!(life.host.partition(at).unwrap().state().pgs.dead().count(), 0);
        change(&life, active);
        world.wait_s(5).await;
        for pg in &groups[..39] {
            assert_eq!([0, 1, 2].map(|index| world.freed(*pg, index)), [1; 3]);
            assert!(!on_record(&life, *pg));
        }
        assert!(on_record(&life, groups[39]), "the last one lives");
    });
}

#[test]
fn rule_4_a_device_that_is_given_up_counts_as_having_freed() {
    simulate(2, |world| async move {
        two_nodes(&world);
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        let (first, second) = (pg_at(at, 990, 1), pg_at(at, 990, 2));
        life.commit(at, &commit_of(fid, first, 0, 10)).await.unwrap();
        change(&life, down);
        life.commit(at, &commit_of(fid, second, 0, 10)).await.unwrap();
        world.wait_s(5).await;
        assert!(on_record(&life, first));
        change(&life, |map| {
            map.nodes[1].state = NodeState::Left as i32;
            map.devices[2].state = 1;
        });
        world.wait_s(5).await;
        assert!(!on_record(&life, first));
        assert_eq!(world.freed(first, 2), 0);
    });
}

#[test]
fn rule_5_a_member_whose_node_went_down_before_the_commit_is_on_record() {
    simulate(3, |world| async move {
        two_nodes(&world);
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        change(&life, down);
        let pg = pg_at(at, 990, 1);
        life.commit(at, &commit_of(fid, pg, 0, 10)).await.unwrap();
        {
            let partition = life.host.partition(at).unwrap();
            let state = partition.state();
            let home = state.pgs.find(pg).and_then(|pg| pg.home.as_ref()).unwrap();
            assert_eq!(home.absent_members, 0b100);
        }
        // More than parity makes up for: the client writes it elsewhere.
        change(&life, |map| map.devices[0].state = 1);
        let second = commit_of(fid, pg_at(at, 990, 2), 0, 10);
        assert_eq!(code(life.commit(at, &second).await), Code::CommitCancelled);
    });
}

#[test]
fn groups_with_missing_members_are_counted_by_the_map_of_the_moment() {
    simulate(4, |world| async move {
        two_nodes(&world);
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        for n in 1..=3 {
            // One beside the other.
            let commit = commit_of(fid, pg_at(at, 990, n), u64::from(n) * 100, 10);
            life.commit(at, &commit).await.unwrap();
        }
        // Counted when the map changes, and now and then.
        world.wait_s(12).await;
        let counts = |groups, unreadable| (groups, unreadable);
        let counted = || {
            let Degraded { groups, unreadable, .. } = life.host.degraded();
            (groups, unreadable)
        };
        assert_eq!(counted(), counts(0, 0));
        assert_eq!(life.host.degraded().crowded, 3, "two of the three devices are on one node");
        change(&life, down);
        world.wait_s(2).await;
        assert_eq!(counted(), counts(3, 0));
        change(&life, |map| map.devices[0].state = 1);
        world.wait_s(2).await;
        assert_eq!(counted(), counts(3, 3));
        assert_eq!(life.host.degraded().crowded, 0, "one of these two is given up");
        change(&life, active);
        world.wait_s(2).await;
        assert_eq!(counted(), counts(3, 0), "one is back, one is given up");
    });
}

fn give_up(map: &mut ClusterMap, id: PartitionId) {
    let entry = &mut map.partitions[id.0 as usize];
    entry.config += 1;
    (entry.since, entry.born) = (entry.config, entry.config);
}

async fn ask<R: prost::Message + Default>(
    life: &Life,
    at: PartitionId,
    kind: Kind,
    body: Vec<u8>,
) -> R {
    let config = life.host.replica(at).unwrap().config().0;
    let response = life.send_as(config, Role::Server, kind, at, body).await.unwrap();
    decode(&response.body).unwrap()
}

#[test]
fn rule_1_a_partition_that_began_anew_never_says_unknown_of_what_it_may_have_held() {
    simulate(5, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        let pg = pg_at(at, 900, 1);
        life.commit(at, &commit_of(fid, pg, 0, 10)).await.unwrap();
        change(&life, |map| give_up(map, at));
        life.host.follow_map(true);
        world.wait_s(1).await;
        let partition = life.host.partition(at).expect("served again");
        assert_eq!(partition.config(), ConfigNumber(4));
        assert!(partition.state().pgs.is_empty(), "what it held is void");
        drop(partition);
        let question = || encode(&PgStatus { pgs: vec![pg.into()], settle: true });
        let reply: PgStatusReply = ask(&life, at, Kind::PgStatus, question()).await;
        assert_eq!(reply.entries[0].state, 3, "undecided, for ever");
        let list = encode(&PgList { pgs: vec![pg.into()], participant: at.0 });
        let reply: PgHoldsReply = ask(&life, at, Kind::PgHolds, list).await;
        assert_eq!(reply.held, [true]);
        assert!(life.shared.tick() > Tick(900 + WINDOW));
    });
}

#[test]
fn a_partition_that_began_anew_is_still_there_after_a_power_cut() {
    simulate(6, |world| async move {
        let (fid, _, at) = far_region(1);
        world.add_file(fid, EPOCH);
        let life = world.start().await;
        life.commit(at, &commit_of(fid, pg_at(at, 990, 1), 0, 10)).await.unwrap();
        change(&life, |map| give_up(map, at));
        life.host.follow_map(true);
        world.wait_s(1).await;
        let (new, config) = (pg_at(at, 991, 2), 4);
        let body = commit_of(fid, new, 0, 10).encode();
        life.send_as(config, Role::Client, Kind::Commit, at, body).await.unwrap();
        *world.map.borrow_mut() = (*life.shared.map()).clone();
        world.cut(life);
        // The start of its process.
        world.map.borrow_mut().partitions[at.0 as usize].config = 5;
        world.map.borrow_mut().partitions[at.0 as usize].since = 5;
        let life = world.start().await;
        life.host.follow_map(true);
        world.wait_s(1).await;
        let partition = life.host.partition(at).expect("served");
        assert!(partition.state().pgs.find(new).is_some());
        assert_eq!(partition.state().pgs.len(), 1, "the old one stays void");
    });
}
