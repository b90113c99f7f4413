//! Who is dead: the rule by which the Raft leader takes a node down, as a pure function of what it
//! has heard and when. Times are the leader's own clock, counted from any fixed point.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bb_proto::{Incarnation, NodeId};

use crate::execute::nodes::went_down_lately;
use crate::map::ClusterMap;
use crate::state::ClusterState;
use crate::watch::watchers;

/// A report that a node does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// Who says so.
    pub reporter: NodeId,
    /// Who does not answer.
    pub node: NodeId,
    /// In which incarnation.
    pub incarnation: Incarnation,
    /// When the first of an unbroken row of reports came.
    pub since: Duration,
    /// When the last report came. It is repeated while it lasts, and counts for `suspect_ms`.
    pub at: Duration,
}

/// What a leader knows of a node's leases since its election.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseSeen {
    /// When its `Started` in this incarnation was applied.
    pub started_at: Option<Duration>,
    /// When a request last named our last grant. A node that only talks to us, and does not hear
    /// us, is not alive.
    pub renewed_at: Option<Duration>,
    /// The last grant: when, and for how long.
    pub granted: Option<(Duration, Duration)>,
}

impl LeaseSeen {
    /// What is known once another state or incarnation of the node was noted, at `started_at`. The
    /// grant stays: between a process's `Started` and its being noted it may have got a lease, and
    /// forgotten, that would be taken from it while it counts.
    #[must_use]
    pub const fn of_new_process(self, started_at: Option<Duration>) -> Self {
        Self { started_at, renewed_at: None, granted: self.granted }
    }
}

/// What a leader knows.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// Now.
    pub now: Duration,
    /// Who the leader is.
    pub leader: NodeId,
    /// When it was elected.
    pub elected_at: Duration,
    /// Reports, old ones too.
    pub suspicions: &'a [Suspicion],
    /// Leases by node.
    pub leases: &'a BTreeMap<NodeId, LeaseSeen>,
    /// Nodes that are being taken down: for the rest of our term they get no lease.
    pub going: &'a BTreeSet<NodeId>,
}

/// What to do about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It stays, and gets leases.
    Stays,
    /// It gets no lease any more, and `Down` may be proposed at that time, if this still holds.
    GoesAt(Duration),
    /// Nobody can hold a lease as that node any more: propose `Down`.
    GoesNow,
}

/// Judges a node. While the answer is not [`Judgement::Stays`], the leader grants it no lease, and
/// once it has begun not to, it stays so for its term ([`Heard::going`]).
pub fn may_take_down(state: &ClusterState, candidate: NodeId, heard: &Heard<'_>) -> Judgement {
    let map = &state.map;
    let Some(node) = map.node(candidate).filter(|n| n.is_active()) else {
        return Judgement::Stays;
    };
    let lease = heard.leases.get(&candidate).copied().unwrap_or_default();
    let free = role_free_at(state, lease, heard.elected_at);
    let goes = if heard.now >= free { Judgement::GoesNow } else { Judgement::GoesAt(free) };
    if heard.going.contains(&candidate) {
        return goes;
    }
    // What would be void must not begin.
    let others = went_down_lately(map, state.tick, candidate.0)
        + heard.going.iter().filter(|node| map.is_active(node.0)).count();
    if candidate == heard.leader
        || others >= map.backups.max(1) as usize
        || !leaves_majority(map, candidate, heard.going)
    {
        return Judgement::Stays;
    }
    let suspect = Duration::from_millis(map.suspect_ms.into());
    // A new leader, or a new process, has had no chance to be heard: that says nothing about it.
    let heard_at = [lease.started_at, lease.renewed_at].into_iter().flatten().max();
    let silent = heard.now.saturating_sub(heard_at.unwrap_or_default().max(heard.elected_at));
    let incarnation = Incarnation(node.incarnation);
    let agreed = reporters(map, candidate, incarnation, heard, suspect).len()
        >= watchers(map, candidate).len().clamp(1, 2);
    let dead = silent >= 3 * suspect || (silent >= suspect && agreed);
    if dead || loses_its_route(map, candidate, heard, suspect) { goes } else { Judgement::Stays }
}

/// Two nodes that suspect only each other, for long: a route between them is dead, and one must go.
/// The leader keeps itself, else the one with more primaries, else the lower number.
fn loses_its_route(
    map: &ClusterMap,
    candidate: NodeId,
    heard: &Heard<'_>,
    suspect: Duration,
) -> bool {
    let only = |node: NodeId| {
        let incarnation = Incarnation(map.node(node)?.incarnation);
        let all = reporters(map, node, incarnation, heard, suspect);
        let (reporter, since) = all.first_key_value()?;
        let lasts = heard.now.saturating_sub(*since) >= 3 * suspect;
        (all.len() == 1 && lasts).then_some(*reporter)
    };
    let Some(other) = only(candidate).filter(|other| only(*other) == Some(candidate)) else {
        return false;
    };
    let primaries = |node: NodeId| map.partitions.iter().filter(|p| p.primary == node.0).count();
    let worth = |node: NodeId| (node == heard.leader, primaries(node), std::cmp::Reverse(node));
    worth(candidate) < worth(other)
}

/// From when on no lease of the node can be valid, if it gets no other. Also the time to wait for
/// before a `Reconfigure` that takes the role of primary from a node that has not agreed.
pub fn role_free_at(state: &ClusterState, lease: LeaseSeen, elected_at: Duration) -> Duration {
    // What predecessors granted, under whatever settings, counts from our election.
    let inherited = elected_at + Duration::from_millis(state.longest_lease_ms());
    let drift = Duration::from_millis(state.map.drift_ms.into());
    lease.granted.map_or(inherited, |(at, length)| inherited.max(at + length + drift))
}

/// Active nodes that suspect it in this incarnation, and since when.
fn reporters(
    map: &ClusterMap,
    node: NodeId,
    incarnation: Incarnation,
    heard: &Heard<'_>,
    suspect: Duration,
) -> BTreeMap<NodeId, Duration> {
    heard
        .suspicions
        .iter()
        .filter(|s| s.node == node && s.incarnation == incarnation && s.reporter != node)
        .filter(|s| heard.now.saturating_sub(s.at) < suspect && map.is_active(s.reporter.0))
        .map(|s| (s.reporter, s.since))
        .collect()
}

/// True if a majority of the voters is active without it and without those that go already.
fn leaves_majority(map: &ClusterMap, node: NodeId, going: &BTreeSet<NodeId>) -> bool {
    let voters = map.nodes.iter().filter(|n| n.voter != 0).count();
    let stay = map.nodes.iter().filter(|n| {
        n.voter != 0 && n.is_active() && n.id != node.0 && !going.contains(&NodeId(n.id))
    });
    2 * stay.count() > voters || map.node(node).is_some_and(|n| n.voter == 0)
}
