//! Who is dead, with explicit times.

#[expect(dead_code, reason = "each test uses a part of it")]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bb_cluster::*;
use bb_proto::{Incarnation, NodeId};
use common::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn suspicion(state: &ClusterState, reporter: u32, node: u32, since: u64, at: u64) -> Suspicion {
    let incarnation = Incarnation(name(state, node).incarnation);
    let (reporter, node) = (NodeId(reporter), NodeId(node));
    Suspicion { reporter, node, incarnation, since: ms(since), at: ms(at) }
}

struct Leader {
    state: ClusterState,
    leases: BTreeMap<NodeId, LeaseSeen>,
    suspicions: Vec<Suspicion>,
    going: BTreeSet<NodeId>,
}

impl Leader {
    /// Elected at 10 s; the node renewed at 20 s, and was granted 3 s then.
    fn of(nodes: u32, node: u32) -> Self {
        let seen = LeaseSeen {
            renewed_at: Some(ms(20_000)),
            granted: Some((ms(20_000), ms(3_000))),
            ..LeaseSeen::default()
        };
        Self {
            state: cluster(nodes, 8, 1),
            leases: BTreeMap::from([(NodeId(node), seen)]),
            suspicions: Vec::new(),
            going: BTreeSet::new(),
        }
    }

    fn judge(&self, node: u32, now: u64) -> Judgement {
        let heard = Heard {
            now: ms(now),
            leader: NodeId(1),
            elected_at: ms(10_000),
            suspicions: &self.suspicions,
            leases: &self.leases,
            going: &self.going,
        };
        may_take_down(&self.state, NodeId(node), &heard)
    }
}

#[test]
fn two_reporters_and_silence_take_a_node_down_when_its_lease_is_over() {
    let mut leader = Leader::of(5, 3);
    assert_eq!(leader.judge(3, 22_500), Judgement::Stays);
    leader.suspicions = vec![suspicion(&leader.state, 2, 3, 20_500, 22_400)];
    assert_eq!(leader.judge(3, 22_500), Judgement::Stays, "one reporter is not enough");
    leader.suspicions.push(suspicion(&leader.state, 4, 3, 20_500, 22_400));
    assert_eq!(leader.judge(3, 21_900), Judgement::Stays, "it has renewed lately");
    assert_eq!(leader.judge(3, 22_500), Judgement::GoesAt(ms(23_130)));
    assert_eq!(leader.judge(3, 23_129), Judgement::GoesAt(ms(23_130)));
    assert_eq!(leader.judge(3, 23_130), Judgement::GoesNow);
}

#[test]
fn a_lease_that_a_new_process_got_before_its_start_was_noted_is_waited_for() {
    let mut leader = Leader::of(5, 3);
    let seen = leader.leases[&NodeId(3)].of_new_process(Some(ms(20_010)));
    assert_eq!(seen.renewed_at, None, "that was another process");
    leader.leases.insert(NodeId(3), seen);
    leader.suspicions = vec![
        suspicion(&leader.state, 2, 3, 20_500, 22_400),
        suspicion(&leader.state, 4, 3, 20_500, 22_400),
    ];
    assert_eq!(leader.judge(3, 22_500), Judgement::GoesAt(ms(23_130)));
    assert_eq!(leader.judge(3, 23_130), Judgement::GoesNow);
}

#[test]
fn long_silence_needs_no_reporter_and_counts_from_election_and_start() {
    let mut leader = Leader::of(5, 3);
    assert_eq!(leader.judge(3, 25_999), Judgement::Stays);
    assert_eq!(leader.judge(3, 26_000), Judgement::GoesNow);
    assert_eq!(leader.judge(4, 15_999), Judgement::Stays, "the leader is new");
    assert_eq!(leader.judge(4, 16_000), Judgement::GoesNow);
    leader.leases.entry(NodeId(4)).or_default().started_at = Some(ms(15_000));
    assert_eq!(leader.judge(4, 16_000), Judgement::Stays, "its process is new");
}

#[test]
fn who_goes_already_goes_on_going_and_no_other_one_with_k_of_one() {
    let mut leader = Leader::of(5, 3);
    leader.going.insert(NodeId(3));
    assert_eq!(leader.judge(3, 22_000), Judgement::GoesAt(ms(23_130)));
    assert_eq!(leader.judge(4, 90_000), Judgement::Stays);
    assert_eq!(leader.judge(1, 90_000), Judgement::Stays, "the leader judges others");
}

#[test]
fn two_that_reach_only_not_each_other_lose_one() {
    let mut leader = Leader::of(5, 3);
    leader.leases.values_mut().for_each(|seen| seen.renewed_at = Some(ms(29_900)));
    leader.suspicions = vec![
        suspicion(&leader.state, 3, 4, 23_000, 29_500),
        suspicion(&leader.state, 4, 3, 23_000, 29_500),
    ];
    leader.leases.insert(NodeId(4), leader.leases[&NodeId(3)]);
    assert_eq!(leader.judge(3, 28_900), Judgement::Stays);
    assert_eq!(leader.judge(3, 30_000), Judgement::Stays, "the lower number stays");
    assert_eq!(leader.judge(4, 30_000), Judgement::GoesNow);
}

#[test]
fn everybody_is_watched_by_three_and_changes_little_when_one_comes() {
    let four = cluster(4, 8, 1).map;
    let many = cluster(30, 8, 1).map;
    assert_eq!(watchers(&four, NodeId(2)), [NodeId(1), NodeId(3), NodeId(4)]);
    assert_eq!(watchers(&cluster(2, 8, 1).map, NodeId(2)), [NodeId(1)]);
    let load: Vec<usize> = (1..=30).map(|id| watched_by(&many, NodeId(id)).len()).collect();
    assert_eq!(load.iter().sum::<usize>(), 30 * WATCHERS);
    let more = cluster(31, 8, 1).map;
    let same = (1..=30).filter(|id| watchers(&many, NodeId(*id)) == watchers(&more, NodeId(*id)));
    assert!(same.count() >= 20);
}
